"""SIGINT and SIGTERM: the first ends a command in order, the second at once, and none is lost.

Knows signals; knows nothing of what is ended. Python drops an exception that a handler raises while an object is
finalised, and libraries put handlers of their own; a signal is read from the pipe that Python writes it to then.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from types import FrameType

_ASKING = (signal.SIGINT, signal.SIGTERM)
_reader = -1


def listen() -> None:
    """Raise KeyboardInterrupt in the main thread on the first signal; leave the second to the system.

    Call it again where a library has put handlers of its own. Source: signal.set_wakeup_fd.
    """
    global _reader
    if _reader < 0:
        _reader, writer = os.pipe()
        os.set_blocking(_reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in _ASKING:
        signal.signal(number, _asked)


def check() -> None:
    """Raise KeyboardInterrupt if a signal came whose exception was lost. Nothing to do where nobody listens."""
    came = b""
    if _reader >= 0:
        with suppress(BlockingIOError):
            came = os.read(_reader, 4096)
    for number in _ASKING:
        if number in came:
            _asked(number, None)


def _asked(number: int, frame: FrameType | None) -> None:
    for each in _ASKING:
        signal.signal(each, signal.SIG_DFL)
    raise KeyboardInterrupt(signal.Signals(number).name)
