"""Records of a log, one JSON object a line; and a child process that turns all other output into records.

Knows the keys that every record has, and the secrets that no record may show. Each record has `at`, `level`, `event`,
`run` and `stage`. Libraries and Ray write lines of text, also from native code and in a crash. A pipe takes the place
of standard output and standard error. The child reads the pipe, and writes each line as a record with the event
`output`. The child outlives the command for a moment, so a command that crashes or is killed loses no line.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from segray.errors import SegrayError

TYPE_CHECKING = False  # As in typing, whose import is slow.
if TYPE_CHECKING:
    from typing import Any

_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN")
_MIN_SECRET_CHARS = 6
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_READ_BYTES, _MAX_LINE_BYTES = 65_536, 65_536
# Wait for processes that hold the pipe when the command has ended, and of the command for the last records, in seconds.
_QUIET_S, _LAST_RECORDS_S = 0.3, 10.0
_LINE_END = re.compile(rb"[\r\n]")
# Colours of a terminal. Source: ECMA-48, control sequences.
_COLOUR = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


def record(event: str, level: str, run: str | None, stage: str | None, values: Mapping[str, Any]) -> str:
    """Return a record as a line without its end. Secrets of the environment are blanked."""
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    text = json.dumps({"at": at, "level": level, "event": event, "run": run, "stage": stage, **values})
    for name in _SECRETS:
        if len(secret := os.environ.get(name, "")) >= _MIN_SECRET_CHARS:
            text = text.replace(json.dumps(secret)[1:-1], "***")
    return text


def error_record(error: SegrayError, run: str | None = None, stage: str | None = None, **values: Any) -> str:
    """Return the record of an error."""
    parts = {"message": error.what, "found": error.found, "where": error.where, "do": error.hint}
    return record("error", "error", run, stage, {**parts, "exit_code": error.exit_code, **values})


def is_record(line: str) -> bool:
    """Return whether a line is a JSON object."""
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


@dataclass(frozen=True)
class Converter:
    """The child process that writes the records.

    records: descriptor that takes records. output: descriptor that takes output that is no record.
    """

    pid: int
    records: int
    output: int

    def finish(self) -> None:
        """Wait until the child has written all records. Close the other descriptors of the pipes before."""
        deadline = time.monotonic() + _LAST_RECORDS_S
        while time.monotonic() < deadline:
            try:
                if os.waitpid(self.pid, os.WNOHANG)[0]:
                    return
            except ChildProcessError:
                return
            time.sleep(0.005)


def start_converter(log: int) -> Converter:
    """Start the child process that writes records to the descriptor `log`. Call this function before any thread starts.

    The child heeds no signal, since signals may go to all processes of a terminal or service. The child ends when the
    command has ended.
    """
    records, records_in = os.pipe()
    output, output_in = os.pipe()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(records)
        os.close(output)
        return Converter(pid, records_in, output_in)
    try:
        _keep_only(log, records, output)
        _convert(log, records, output)
    finally:
        os._exit(0)


def _keep_only(*descriptors: int) -> None:
    """Close all other descriptors, such as the lock file of a script. Standard streams become /dev/null."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in {0, 1, 2} - set(descriptors):
        os.dup2(null, number)
    kept = sorted({2, *descriptors})
    for first, last in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(first + 1, last)


class _Lines:
    """The lines of one pipe, of which the last may be incomplete."""

    def __init__(self) -> None:
        self._rest = b""

    def add(self, data: bytes) -> list[bytes]:
        """Return the lines that bytes complete; the end of the pipe, b"", completes the last one."""
        *lines, self._rest = _LINE_END.split(self._rest + data)
        if not data or len(self._rest) > _MAX_LINE_BYTES:
            lines, self._rest = [*lines, self._rest], b""
        return [line for line in lines if line.strip()]


def _convert(log: int, records: int, output: int) -> None:
    """Write the records and the other output until the command has ended."""
    lines = {records: _Lines(), output: _Lines()}
    run = stage = None
    open_pipes = [records, output]
    while open_pipes:
        # The command alone holds the pipe of records. Processes that it left behind may hold the other pipe.
        ready = select.select(open_pipes, [], [], None if records in open_pipes else _QUIET_S)[0]
        if not ready:
            break
        # Records first: a line of output gets the run and stage of the record before.
        for pipe in sorted(ready, key=open_pipes.index):
            data = os.read(pipe, _READ_BYTES)
            texts = [line.decode("utf-8", "backslashreplace") for line in lines[pipe].add(data)]
            if not data:
                open_pipes.remove(pipe)
            for text in texts:
                if pipe == records and is_record(text):
                    values = json.loads(text)
                    run, stage = values.get("run"), values.get("stage")
                    _write(log, text)
                else:
                    _write(log, output_record(text, run, stage))


def output_record(text: str, run: str | None = None, stage: str | None = None) -> str:
    """Return the record of a line that a library or another process wrote."""
    return record("output", "info", run, stage, {"message": _COLOUR.sub("", text).rstrip()})


def _write(log: int, text: str) -> None:
    """Write a line. Drop a line that the descriptor does not accept."""
    data = text.encode() + b"\n"
    while data:
        try:
            data = data[os.write(log, data) :]
        except BlockingIOError:
            select.select([], [log], [])
        except OSError:
            return
