"""The listeners of a run: a terminal or a log, Prometheus and the heartbeat; and the report at its end.

Knows the listeners and when they are closed. Each listener knows how to report progress.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from segray.analytics.reports.live_page import live
from segray.config import Config
from segray.execution.progress import ProgressListener, RunProgress
from segray.execution.run import Summary
from segray.label_set.run_records import Run
from segray.monitoring import console, library
from segray.monitoring.heartbeat import HeartbeatWriter
from segray.monitoring.json_log import Json
from segray.monitoring.prometheus import Metrics
from segray.tasks import UnitReport

Console = console.Plain | console.Bar | console.Quiet | library.Notebook | Json


class ListenerGroup(ProgressListener):
    """A group of listeners, which are called in turn."""

    def __init__(self, listeners: Sequence[ProgressListener]) -> None:
        self._listeners = listeners

    def note(self, text: str) -> None:
        for listener in self._listeners:
            listener.note(text)

    def begin(self, images: int, resumed: int) -> None:
        for listener in self._listeners:
            listener.begin(images, resumed)

    def advance(self, done: int, instances: int, failed: int) -> None:
        for listener in self._listeners:
            listener.advance(done, instances, failed)

    def unit(self, run: Run, host: str, report: UnitReport) -> None:
        for listener in self._listeners:
            listener.unit(run, host, report)

    def beat(self, progress: RunProgress) -> None:
        for listener in self._listeners:
            listener.beat(progress)


@contextmanager
def observed(config: Config, screen: Console, others: Sequence[ProgressListener] = ()) -> Iterator[ProgressListener]:
    """Yield one listener that reports a run on a Ray cluster; close the heartbeat afterwards.

    screen: shows the progress. others: get the same progress.
    """
    options = config.storage_options()
    render_page = live if config.report else None
    heartbeat_writer = HeartbeatWriter(options, screen.note, render_page=render_page)
    with screen:
        try:
            yield ListenerGroup((screen, *others, Metrics(config.output.root), heartbeat_writer))
        finally:
            heartbeat_writer.close()


def report(config: Config, summary: Summary, screen: Console) -> str | None:
    """Write the report page of a finished run. Return the URI of the page, or None if no page was written.

    A failure is printed as a note and raises no error, because the labels are complete without the page.
    """
    if not config.report or not (summary.planned or summary.retired):
        return None
    try:
        from segray.analytics.reports import report as pages  # A run without a report does not need these imports.

        return pages.of_run(summary.root, **config.storage.model_dump())
    except Exception as exc:
        screen.note(f"the report page cannot be written, the labels are complete: {type(exc).__name__}: {exc}")
        return None
