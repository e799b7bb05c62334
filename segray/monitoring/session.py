"""The listeners of a run: a terminal or a log, Prometheus and the heartbeat; and the report at its end.

Knows which listeners there are and when they are closed. Knows nothing of what each does with its news.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from segray.analytics.reports.live_page import live
from segray.config import Config
from segray.execution.progress import ProgressListener, RunProgress
from segray.execution.run import Summary
from segray.label_set.run_records import Run
from segray.monitoring import console
from segray.monitoring.heartbeat import HeartbeatWriter
from segray.monitoring.json_log import Json
from segray.monitoring.prometheus import Metrics
from segray.storage.store import StorageOptions
from segray.tasks import UnitReport

Console = console.Plain | console.Bar | Json


class ListenerGroup(ProgressListener):
    """Several listeners as one. Each is called in turn."""

    def __init__(self, watchers: Sequence[ProgressListener]) -> None:
        self._watchers = watchers

    def note(self, text: str) -> None:
        for each in self._watchers:
            each.note(text)

    def begin(self, images: int, resumed: int) -> None:
        for each in self._watchers:
            each.begin(images, resumed)

    def advance(self, done: int, instances: int, failed: int) -> None:
        for each in self._watchers:
            each.advance(done, instances, failed)

    def unit(self, run: Run, host: str, report: UnitReport) -> None:
        for each in self._watchers:
            each.unit(run, host, report)

    def beat(self, vitals: RunProgress) -> None:
        for each in self._watchers:
            each.beat(vitals)


@contextmanager
def observed(chosen: Config, screen: Console) -> Iterator[ProgressListener]:
    """Yield the listeners of a run on a Ray cluster as one; close the heartbeat afterwards."""
    options = StorageOptions(**chosen.storage.model_dump())
    heart = HeartbeatWriter(options, screen.note, live=live if chosen.report else None)
    with screen:
        try:
            yield ListenerGroup((screen, Metrics(), heart))
        finally:
            heart.close()


def report(chosen: Config, summary: Summary, screen: Console) -> str | None:
    """Write the report page of a run that came to its end; return its URI, None where there is none.

    A failure is a note and no error, since the labels are complete without the page.
    """
    if not chosen.report or not (summary.planned or summary.retired):
        return None
    try:
        from segray.analytics.reports import report as pages  # Not at the top: a run needs none of these imports.

        return pages.of_run(summary.root, **chosen.storage.model_dump())
    except Exception as exc:
        screen.note(f"there is no report, the labels are whole: {type(exc).__name__}: {exc}")
        return None
