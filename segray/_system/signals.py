"""Signals that ask a command to end: the first ends the command in order, the second at once, and no signal is lost.

Knows signals. Knows nothing of the command that ends.

Python drops an exception that a handler raises while an object is finalised. This module raises the exception again a
moment later. Libraries install handlers of their own. This module therefore also reads signals from the pipe to which
Python writes their numbers. During an import, library code may catch or replace an exception. A signal then ends the
process itself.

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

from segray._system import streams
from segray.errors import Interrupted

INTERRUPTED = Interrupted("interrupted", hint="run the same command again")

_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# nohup, or the background of a script, starts a command with these signals ignored. The command keeps ignoring them.
_MAY_BE_IGNORED = (signal.SIGHUP, signal.SIGQUIT)
# Signals of a fault in native code. Libraries and faulthandler report them.
FAULTS = (signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV)
_SIGACTION_BYTES = 1024  # more than any system's struct sigaction has
_RAISE_AGAIN_S = 0.02
_reader = -1
_stop_requested = False
_signal_ends_process = False


def listen() -> None:
    """Raise KeyboardInterrupt in the main thread on the first signal; leave the second to the system.

    Call this function again after a library has installed handlers of its own. Source: signal.set_wakeup_fd.
    """
    global _reader
    if _reader < 0:
        _reader, writer = os.pipe()
        os.set_blocking(_reader, False)
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    sys.unraisablehook = _on_dropped_exception
    for number in _STOP_SIGNALS:
        if not _is_ignored(number):
            signal.signal(number, signal.SIG_DFL if _stop_requested else _on_stop_signal)


@contextmanager
def handlers_restored(numbers: Sequence[int] = _STOP_SIGNALS) -> Iterator[None]:
    """Restore after the block how this process handles these signals, even if a library changes the handlers.

    Libraries set handlers without Python, and Python then still reports its own handler. The system's handlers are
    therefore restored too. Only the main thread can set Python's handlers, so a block on another thread leaves Python's
    handlers as they are. Source: sigaction(2).
    """
    import ctypes  # Not at the top: commands listen before any other import.

    libc, is_main_thread = ctypes.CDLL(None), threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in numbers if is_main_thread}
    actions = {number: ctypes.create_string_buffer(_SIGACTION_BYTES) for number in numbers}
    for number, action in actions.items():
        libc.sigaction(number, None, action)
    try:
        yield
    finally:
        if not _stop_requested:
            for number, handler in handlers.items():
                if handler is not None and signal.getsignal(number) is not handler:
                    signal.signal(number, handler)
            for number, action in actions.items():
                libc.sigaction(number, action, None)
        elif is_main_thread:  # The command ends, so the system handles the next signal.
            listen()


def check() -> None:
    """Raise KeyboardInterrupt if the exception of a signal was lost.

    Do nothing in a process that does not listen.
    """
    if _reader < 0:
        return
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal_bytes = _read_signals()
    for number in _STOP_SIGNALS:
        if number in signal_bytes:
            _on_stop_signal(number, None)


def stop_requested() -> bool:
    """Return whether a signal has asked this process to end."""
    return _stop_requested


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Let a signal end the process instead of raising an exception, with the exit code and message of an interruption.

    Meant for imports: no work has begun that needs an orderly end, and library code could catch an exception.
    """
    with _ending(at_once=True):
        yield
        check()


@contextmanager
def ending_in_order() -> Iterator[None]:
    """Let a signal raise an exception again, inside a block that ends at once."""
    with _ending(at_once=False):
        yield


@contextmanager
def _ending(*, at_once: bool) -> Iterator[None]:
    global _signal_ends_process
    before, _signal_ends_process = _signal_ends_process, at_once
    try:
        yield
    finally:
        _signal_ends_process = before


def ignore() -> None:
    """Ignore further signals, since the command has come to its end."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number in _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _read_signals() -> bytes:
    """Return the numbers of the signals that came since the last call, one byte each."""
    with suppress(BlockingIOError):
        return os.read(_reader, 4096)
    return b""


def _on_stop_signal(number: int, frame: FrameType | None) -> None:
    global _stop_requested
    _stop_requested = True
    for stop_signal in _STOP_SIGNALS:
        if not _is_ignored(stop_signal):
            signal.signal(stop_signal, signal.SIG_DFL)
    if _signal_ends_process:
        streams.end(INTERRUPTED.exit_code, INTERRUPTED)
    raise KeyboardInterrupt(signal.Signals(number).name)


def _on_dropped_exception(hook_args: sys.UnraisableHookArgs) -> None:
    """Raise a signal's exception again a moment later; let Python report any other dropped exception."""
    if _stop_requested and isinstance(hook_args.exc_value, KeyboardInterrupt):
        signal.signal(signal.SIGALRM, _raise_again)
        signal.setitimer(signal.ITIMER_REAL, _RAISE_AGAIN_S)
    else:
        sys.__unraisablehook__(hook_args)


def _raise_again(number: int, frame: FrameType | None) -> None:
    _read_signals()
    raise KeyboardInterrupt


def _is_ignored(number: int) -> bool:
    return number in _MAY_BE_IGNORED and signal.getsignal(number) is signal.SIG_IGN
