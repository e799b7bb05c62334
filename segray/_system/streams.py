"""Standard input, output and error of a command: a failed write to a stream never ends the command.

Knows descriptors 0, 1 and 2. Progress and log lines that standard error does not accept are dropped. A command reports
at its end that standard output did not accept its results. A reader that has gone, as in `| head`, is not reported.
Neither is a standard output that was closed from the start.

A command may write its log as records (log_records.py). Standard output then gets results alone, and standard error
gets records alone. Whatever else the process or a library writes becomes a record.
"""

from __future__ import annotations

import errno
import io
import os
import select
import stat
import sys
from contextlib import suppress

from segray.errors import InfrastructureError, SegrayError

TYPE_CHECKING = False  # As in typing, whose import is slow.
if TYPE_CHECKING:
    from typing import NoReturn, TextIO

    from _typeshed import ReadableBuffer

    from segray._system.log_records import Converter

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
        """Redirect the descriptor to /dev/null, since libraries and child processes also write to the descriptor."""
        self.gone = True
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, self._number)
        os.close(null)


# Escapes of all control characters but tab and line feed.
_CONTROLS = {number: f"\\x{number:02x}" for number in (*range(32), *range(127, 160)) if number not in (9, 10)}
_output: _Descriptor | None = None
_results: TextIO | None = None
_records: TextIO | None = None
_converter: Converter | None = None


def take_over(*, as_records: bool = False) -> None:
    """Take over the standard streams of this process. Call this function before any file is opened.

    A file that is opened while 0, 1 or 2 is closed gets that number, and then receives the output of libraries.

    as_records: whether standard error gets records alone.
    """
    global _output
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - it is never closed
    if as_records:
        _take_over_as_records()
        return
    _output = _Descriptor(1)
    sys.stdout = _text(_output, sys.stdout)
    sys.stderr = _text(_Descriptor(2), sys.stderr)


def _take_over_as_records() -> None:
    """Let results go to standard output, and records to standard error; let the rest become records."""
    global _output, _results, _records, _converter
    from segray._system import log_records  # Not at the top: JSON is needed by few commands.

    _converter = log_records.start_converter(2)
    _output = _Descriptor(os.dup(1))
    _results = _text(_output, sys.stdout)
    _records = _text_stream(_Descriptor(_converter.records))
    for number in (1, 2):
        os.dup2(_converter.output, number)
    os.close(_converter.output)
    sys.stdout, sys.stderr = (_text_stream(_Descriptor(number)) for number in (1, 2))


def _text(descriptor: _Descriptor, original: TextIO | None) -> TextIO:
    """Return a text stream like the one that Python opened. The stream escapes characters that its encoding lacks."""
    encoding, errors = ("utf-8", "strict") if original is None else (original.encoding, original.errors)
    error_handler = "backslashreplace" if errors == "strict" else errors
    return _text_stream(descriptor, encoding, error_handler)


def _text_stream(descriptor: _Descriptor, encoding: str = "utf-8", errors: str | None = "backslashreplace") -> TextIO:
    return io.TextIOWrapper(io.BufferedWriter(descriptor), encoding, errors, line_buffering=True)


def are_records() -> bool:
    """Return whether standard error gets records alone."""
    return _records is not None


def log() -> TextIO:
    """Return the stream of the log: of records if standard error gets records alone, else standard error."""
    return _records or sys.stderr


def show(text: str) -> None:
    """Print a result on standard output; raise InfrastructureError if the result could not be written.

    Control characters of names are escaped, since a terminal would obey them.
    """
    print(_visible(text), file=_results or sys.stdout, flush=True)
    check()


def _visible(text: str) -> str:
    return text.translate(_CONTROLS)


def write_line(text: str, stream: TextIO) -> None:
    """Write a line in one call, since several threads may write lines to a stream."""
    stream.write(f"{text}\n")
    stream.flush()


def show_line(text: str, *, in_log: bool = False) -> None:
    """Print a line of another process on standard output. check() tells later whether a line was lost.

    in_log: whether the line goes to the log instead.
    """
    if _records is not None:
        from segray._system import log_records

        text = text if log_records.is_record(text) else log_records.output_record(text)
    write_line(text, log() if in_log else _results or sys.stdout)


def check() -> None:
    """Raise InfrastructureError if standard output has not accepted every write so far."""
    (_results or sys.stdout).flush()
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
    """Print a line for a person on standard error, or a record of the event `note`."""
    if _records is None:
        print(_visible(text), file=sys.stderr, flush=True)
        return
    from segray._system import log_records

    write_line(log_records.record("note", "info", None, None, {"message": text}), _records)


def tell_error(error: SegrayError, trace: str = "") -> None:
    """Print an error on standard error, or its record.

    trace: Python's traceback of an error that segray does not know; such an error is printed as its traceback alone.
    """
    if _records is None:
        print(trace or _visible(f"error: {error}"), file=sys.stderr, flush=True, end="" if trace else "\n")
        return
    from segray._system import log_records

    values = {"traceback": trace} if trace else {}
    write_line(log_records.error_record(error, **values), _records)


def end(code: int, error: SegrayError | None = None) -> NoReturn:
    """End the process with an exit code and without teardown. A handler of signals may call this function.

    error: printed first, past Python's streams, which a signal may interrupt in a write.
    """
    text = "" if error is None else _visible(f"error: {error}\n")
    if _converter is not None and error is not None:
        from segray._system import log_records

        text = f"\n{log_records.error_record(error)}\n"
    with suppress(OSError):
        os.write(2 if _converter is None else _converter.records, text.encode())
    if _converter is not None:
        os.close(_converter.records)
        null = os.open(os.devnull, os.O_WRONLY)
        for number in (1, 2):
            os.dup2(null, number)
        _converter.finish()
    os._exit(code)
