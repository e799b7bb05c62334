"""Threads for one call: a daemon thread that does not delay the end of this process, and a thread that lasts.

Knows threads and futures. Knows nothing of the functions that run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


def run_in_daemon_thread(function: Callable[..., T], *args: Any) -> Future[T]:
    """Run a function on a thread of its own. The thread does not keep this process from ending."""
    result: Future[T] = Future()
    threading.Thread(target=_run, args=(result, function, *args), daemon=True).start()
    return result


def run_in_lasting_thread(end: threading.Event, function: Callable[..., T], *args: Any) -> Future[T]:
    """Run a function on a thread of its own, which lives on until `end` is set.

    A child process can ask for its death at the end of the thread that started it (prctl, PR_SET_PDEATHSIG). A function
    that raises ends its thread.
    """
    result: Future[T] = Future()

    def run() -> None:
        _run(result, function, *args)
        if result.exception() is None:
            end.wait()

    threading.Thread(target=run, daemon=True).start()
    return result


def _run(result: Future[T], function: Callable[..., T], *args: Any) -> None:
    try:
        result.set_result(function(*args))
    except BaseException as exc:
        result.set_exception(exc)
