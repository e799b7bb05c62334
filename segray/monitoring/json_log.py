"""A run's log as JSON, one object a line, for log collectors.

Knows the events note, begin, progress, unit, summary and error. A run or stage that is not known yet is null. The stage
is planning, starting, labelling or publishing. log_records.py makes the lines, and turns the output of Ray and of other
libraries into lines with the event `output`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TextIO

from segray._system import log_records, streams
from segray.errors import SegrayError
from segray.execution.progress import ProgressListener, RunProgress
from segray.monitoring import console, heartbeat
from segray.tasks import UnitReport

if TYPE_CHECKING:
    from segray.execution.run import Summary
    from segray.label_set.run_records import Run

# A run with progress as text prints the summary line too, if this environment variable is set.
SUMMARY_ENV = "SEGRAY_SUMMARY_LINE"
_PROGRESS_EVERY_S = 10.0


class Json(ProgressListener):
    """Progress as lines of JSON."""

    def __init__(self, out: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._out, self._clock = out or streams.log(), clock
        self._run: str | None = None
        self._stage = "planning"
        self._unprinted_begin: tuple[int, int] | None = None
        self._printed_s = 0.0

    def note(self, text: str) -> None:
        self._print("note", message=text)

    def begin(self, images: int, resumed: int) -> None:
        self._unprinted_begin = images, resumed

    def beat(self, progress: RunProgress) -> None:
        self._run, self._stage = progress.run.id, progress.phase
        if self._unprinted_begin is not None:
            images, resumed = self._unprinted_begin
            self._unprinted_begin, self._printed_s = None, self._clock()
            self._print("begin", images=images, resumed=resumed)
        if self._clock() - self._printed_s >= _PROGRESS_EVERY_S:
            self._printed_s = self._clock()
            record = heartbeat.record(progress)
            values = {name: value for name, value in record.items() if name not in ("phase", "slowest")}
            self._print("progress", **values)

    def unit(self, run: Run, host: str, report: UnitReport) -> None:
        task = report.task
        self._run, self._stage = run.id, "labelling"
        self._print(
            "unit",
            unit=task.unit,
            start=task.start,
            stop=task.stop,
            attempt=task.attempt,
            host=host,
            ok=report.ok,
            empty=report.empty,
            failed=report.failed,
            instances=report.instances,
            bytes_read=report.bytes_read,
            seconds={name: round(value, 3) for name, value in report.seconds.items()},
            dropped=dict(report.dropped),
            guessed_depths={str(depth): count for depth, count in report.guessed_depths.items()},
        )

    def summary(self, summary: Summary) -> None:
        """Print the summary of a run that came to its end."""
        self._write(summary_line(summary, self._run))

    def error(self, error: SegrayError) -> None:
        """Print the error of a run that did not come to its end."""
        self._write(log_records.error_record(error, self._run, self._stage))

    def _print(self, event: str, **values: Any) -> None:
        self._write(log_records.record(event, "info", self._run, self._stage, values))

    def _write(self, line: str) -> None:
        streams.write_line(line, self._out)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        return None


def summary_line(summary: Summary, run: str | None = None) -> str:
    """Return the result of a run as a line of the log."""
    level = "error" if summary.exit_code else "info"
    return log_records.record("summary", level, run, None, {"result": console.as_record(summary)})


def result_of(line: str) -> dict[str, Any] | None:
    """Return the result in a summary line; None for any other line."""
    if '"event": "summary"' not in line:
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    result = record.get("result") if isinstance(record, dict) else None
    return result if isinstance(result, dict) else None
