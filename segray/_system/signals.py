"""Signals that ask a command to end: the first ends it in order, the second at once, and none is lost.

Knows signals. Knows nothing of what is ended.

Python drops an exception that a handler raises while an object is finalised. This module raises the exception again a
moment later. Libraries install handlers of their own. This module therefore reads signals from the pipe that Python
writes them to. During imports an exception may become another one or be caught. There a signal ends the process itself.

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
# nohup, or the background of a script, starts a command with these ignored. The command goes on ignoring them.
_MAY_BE_IGNORED = (signal.SIGHUP, signal.SIGQUIT)
# Signals of a fault in native code. Libraries and faulthandler report them.
FAULTS = (signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV)
_SIGACTION_BYTES = 1024  # more than any system's struct sigaction has
_AGAIN_S = 0.02
_reader = -1
_came = False
_ends_process = False


def listen() -> None:
    """Raise KeyboardInterrupt in the main thread on the first signal; leave the second to the system.

    Call it again where a library has installed handlers of its own. Source: signal.set_wakeup_fd.
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
    """Restore after the block how this process handles these signals, whatever a library changes.

    Libraries bypass Python, which then still names its own handler. The system's handlers are therefore restored too.
    Only the main thread can set Python's handlers. Other threads leave them as they are. Source: sigaction(2).
    """
    import ctypes  # Not at the top: commands listen before any other import.

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
        elif main:  # The command ends, so the system handles the next signal.
            listen()


def check() -> None:
    """Raise KeyboardInterrupt if a signal came whose exception was lost.

    Do nothing in a process that does not listen.
    """
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
    """Let a signal end the process in place of raising an exception, with the interruption's exit code and words.

    Meant for imports: no work has begun that needs an orderly end, and no code can catch the end.
    """
    global _ends_process
    before, _ends_process = _ends_process, True
    try:
        yield
        check()
    finally:
        _ends_process = before


def ignore() -> None:
    """Ignore further signals, since the command has come to its end."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in _ASKING:
        signal.signal(number, signal.SIG_IGN)


def _read() -> bytes:
    """Return the numbers of the signals that came since the last call, one byte each."""
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
        with suppress(OSError):  # Not through Python's streams, which a signal may interrupt in a write.
            os.write(2, f"error: {INTERRUPTED}\n".encode())
        os._exit(INTERRUPTED.exit_code)
    raise KeyboardInterrupt(signal.Signals(number).name)


def _dropped(told: sys.UnraisableHookArgs) -> None:
    """Raise a signal's exception again a moment later; let Python report any other dropped exception."""
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
