"""The time limits of a request, and calls on an event loop or in a thread that end in time.

Knows asyncio and threads. Knows nothing of libraries of stores.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from segray._system.threads import run_in_daemon_thread

T = TypeVar("T")

_CONNECT_S = 10.0
_TOTAL_IN_SILENCES = 5  # Longest duration of a request, as a multiple of the longest silence.
_SLOWEST_UPLOAD = 2**18  # bytes per second


@dataclass(frozen=True)
class TimeLimits:
    """The longest wait for a connection, the longest silence on it and the longest duration of a request, in s."""

    connect_s: float
    silence_s: float
    total_s: float

    def for_upload(self, size_bytes: int) -> float:
        """Return the longest duration of a request that sends so many bytes, in seconds."""
        return self.total_s + size_bytes / _SLOWEST_UPLOAD


def limits_of(timeout_s: float) -> TimeLimits:
    """Return the limits for a longest silence of `timeout_s` seconds, which is storage.timeout_s."""
    return TimeLimits(min(_CONNECT_S, timeout_s), timeout_s, _TOTAL_IN_SILENCES * timeout_s)


async def within(total_s: float, function: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
    """Return the result of a coroutine function. Cancel the call and raise ConnectionError after `total_s` seconds."""
    try:
        async with asyncio.timeout(total_s) as limit:
            return await function(*args, **kwargs)
    except TimeoutError as error:
        if not limit.expired():
            raise
        raise _too_late(total_s) from error


def in_thread(total_s: float, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Return the result of a function that runs in a thread of its own. Raise ConnectionError after `total_s` seconds.

    A call that is late goes on in its thread, which does not keep the process from ending.
    """
    result = run_in_daemon_thread(partial(function, *args, **kwargs))
    try:
        return result.result(total_s)
    except TimeoutError as error:
        if result.done():
            raise
        raise _too_late(total_s) from error


def _too_late(total_s: float) -> ConnectionError:
    # Not a TimeoutError: fsspec's `sync` turns each into an error without a text.
    return ConnectionError(f"no complete answer within {total_s:g} s")
