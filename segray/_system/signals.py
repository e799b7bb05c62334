"""Signals that ask a command to end: the first ends it in order, the second at once, and none is lost.

Knows signals; knows nothing of what is ended. Python drops an exception that a handler raises while an object is
finalised: it is raised again a moment later. Libraries put handlers of their own: a signal is read from the pipe that
Python writes it to then. While modules are imported an exception may also become another one, or be caught: there a
signal ends the process itself.
Only commands listen. A program that calls segray as a library keeps its own handlers.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType

from segray.errors import Interrupted

INTERRUPTED = Interrupted("interrupted", hint="run the same command again")

_ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# A command that was started with them ignored, by nohup or in the background of a script, goes on ignoring them.
_MAY_BE_IGNORED = (signal.SIGHUP, signal.SIGQUIT)
# What a fault of native code raises; libraries and faulthandler tell of it.
FAULTS = (signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV)
_SIGACTION_BYTES = 1024  # more than any system's struct sigaction has
_AGAIN_S = 0.02
_reader = -1
_came = False
_ends_process = False


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
    sys.unraisablehook = _dropped
    for number in _ASKING:
        if not _ignored(number):
            signal.signal(number, signal.SIG_DFL if _came else _asked)


@contextmanager
def kept(numbers: Sequence[int] = _ASKING) -> Iterator[None]:
    """Put back after the block what this process does on these signals, whatever a library changes in it.

    Libraries go past Python, which then still believes in its handler; so the system's own account is put back as well.
    Only the main thread can set Python's handlers; other threads leave them as they are. Source: sigaction(2).
    """
    import ctypes  # Not before: commands listen before anything else is imported.

    libc, main = ctypes.CDLL(None), threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in numbers if main}
    actions = {number: ctypes.create_string_buffer(_SIGACTION_BYTES) for number in numbers}
    for number, action in actions.items():
        libc.sigaction(number, None, action)
    try:
        yield
    finally:
        if not _came:
            for number, handler in handlers.items():
                if handler is not None and signal.getsignal(number) is not handler:
                    signal.signal(number, handler)
            for number, action in actions.items():
                libc.sigaction(number, action, None)
        elif main:  # A command that is to end: its next signal is the system's.
            listen()


def check() -> None:
    """Raise KeyboardInterrupt if a signal came whose exception was lost. Nothing to do where nobody listens."""
    if _reader < 0:
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    came = _read()
    for number in _ASKING:
        if number in came:
            _asked(number, None)


def came() -> bool:
    """Return whether a signal has asked this process to end."""
    return _came


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Let a signal end the process, with the exit code and words of an interruption, in place of an exception.

    For imports: nothing is begun that would have to be ended in order, and nothing can catch this.
    """
    global _ends_process
    before, _ends_process = _ends_process, True
    try:
        yield
        check()
    finally:
        _ends_process = before


def ignore() -> None:
    """Ignore further signals: the command has come to its end."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in _ASKING:
        signal.signal(number, signal.SIG_IGN)


def _read() -> bytes:
    """Return the numbers of the signals that came since the last call."""
    with suppress(BlockingIOError):
        return os.read(_reader, 4096)
    return b""


def _asked(number: int, frame: FrameType | None) -> None:
    global _came
    _came = True
    for each in _ASKING:
        if not _ignored(each):
            signal.signal(each, signal.SIG_DFL)
    if _ends_process:
        with suppress(OSError):  # Not through Python's streams: this may be in the middle of a write of theirs.
            os.write(2, f"error: {INTERRUPTED}\n".encode())
        os._exit(INTERRUPTED.exit_code)
    raise KeyboardInterrupt(signal.Signals(number).name)


def _dropped(told: sys.UnraisableHookArgs) -> None:
    """Raise a signal's exception again a moment later; let Python tell of any other that it drops."""
    if _came and isinstance(told.exc_value, KeyboardInterrupt):
        signal.signal(signal.SIGALRM, _again)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
    else:
        sys.__unraisablehook__(told)


def _again(number: int, frame: FrameType | None) -> None:
    _read()
    raise KeyboardInterrupt


def _ignored(number: int) -> bool:
    return number in _MAY_BE_IGNORED and signal.getsignal(number) is signal.SIG_IGN
