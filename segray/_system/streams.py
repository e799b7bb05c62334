"""Standard input, output and error of a command: a failed write to a stream never ends the command.

Knows descriptors 0, 1 and 2. Knows nothing of the texts. Progress and log lines that standard error does not accept are
dropped. A command reports at its end that standard output did not accept its results. The command does not report a
reader that has gone, as in `| head`, or a standard output that was closed from the start.
"""

from __future__ import annotations

import errno
import io
import os
import select
import stat
import sys

from segray.errors import InfrastructureError

TYPE_CHECKING = False  # As in typing, whose import is slow.
if TYPE_CHECKING:
    from typing import TextIO

    from _typeshed import ReadableBuffer

_READER_GONE = (errno.EPIPE, errno.ECONNRESET)
_TERMINAL_GONE = (errno.EIO, errno.ENXIO)


class _Descriptor(io.RawIOBase):
    """A stream over a descriptor that drops bytes that the descriptor does not accept, and never raises.

    lost: the error of a dropped write, None if no write was dropped while the reader was there.
    gone: whether the reader has gone.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._gone_errors = _READER_GONE + (_TERMINAL_GONE if stat.S_ISCHR(os.fstat(number).st_mode) else ())
        self.lost: OSError | None = None
        self.gone = False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return self._write_available(data)
        except OSError as exc:
            if exc.errno in self._gone_errors:
                self._redirect_to_null()
            else:
                self.lost = exc
        return memoryview(data).nbytes

    def _write_available(self, data: ReadableBuffer) -> int:
        """Write as many bytes as the descriptor accepts. Wait for room if the descriptor does not block."""
        while True:
            try:
                return os.write(self._number, data)
            except BlockingIOError:
                select.select([], [self._number], [])

    def _redirect_to_null(self) -> None:
        """Redirect the descriptor to /dev/null, since libraries and child processes write to it too."""
        self.gone = True
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._number)
        os.close(null)


_output: _Descriptor | None = None


def take_over() -> None:
    """Take over the standard streams of this process. Call this function before any file is opened.

    A file that is opened while 0, 1 or 2 is closed would get that number, and then the output of libraries.
    """
    global _output
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - it is never closed
    _output = _Descriptor(1)
    sys.stdout = _text(_output, sys.stdout)
    sys.stderr = _text(_Descriptor(2), sys.stderr)


def _text(descriptor: _Descriptor, original: TextIO | None) -> TextIO:
    """Return a text stream like the one that Python opened. The stream escapes characters that its encoding lacks."""
    encoding, errors = ("utf-8", "strict") if original is None else (original.encoding, original.errors)
    error_handler = "backslashreplace" if errors == "strict" else errors
    return io.TextIOWrapper(io.BufferedWriter(descriptor), encoding, error_handler, line_buffering=True)


def show(text: str) -> None:
    """Print a result on standard output; raise InfrastructureError if the result could not be written."""
    print(text, flush=True)
    check()


def check() -> None:
    """Raise InfrastructureError if standard output has not accepted every write so far."""
    sys.stdout.flush()
    if _output is not None and _output.lost is not None:
        raise InfrastructureError(
            "the results could not be written",
            where="standard output",
            found=str(_output.lost),
            hint="free disk space, or redirect standard output to another file, then run the same command again",
        )


def reader_gone() -> bool:
    """Return whether the reader of standard output has gone, as far as writes have shown."""
    return _output is not None and _output.gone


def tell(text: str) -> None:
    """Print a line for a person on standard error."""
    print(text, file=sys.stderr, flush=True)
