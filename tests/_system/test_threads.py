"""Threads for one call: where results and errors of a function go, and how long its thread lives."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from segray._system.threads import run_in_daemon_thread, run_in_lasting_thread

_NEVER_RETURNS = """
import threading
from segray._system.threads import run_in_daemon_thread
run_in_daemon_thread(threading.Event().wait)
"""


def fail() -> None:
    raise SystemExit("failed")


def test_results_and_errors_of_any_kind_arrive_in_the_thread_that_asks() -> None:
    assert run_in_daemon_thread(max, 3, 4).result(10) == 4
    assert run_in_daemon_thread(threading.get_ident).result(10) != threading.get_ident()
    with pytest.raises(SystemExit, match="failed"):
        run_in_daemon_thread(fail).result(10)
    with pytest.raises(SystemExit, match="failed"):
        run_in_lasting_thread(threading.Event(), fail).result(10)


def test_a_process_ends_though_a_daemon_thread_still_runs() -> None:
    subprocess.run([sys.executable, "-c", _NEVER_RETURNS], check=True, timeout=30)


def test_a_lasting_thread_ends_when_it_is_told_to_and_not_when_its_function_returns() -> None:
    end = threading.Event()
    thread = run_in_lasting_thread(end, threading.current_thread).result(10)
    thread.join(0.2)
    assert thread.is_alive()
    end.set()
    thread.join(10)
    assert not thread.is_alive()
