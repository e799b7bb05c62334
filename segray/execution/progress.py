"""The progress of a run at one moment: counts, waiting images, and each worker's speed and images in flight.

Knows the reports of workers and adds them up, each finished unit once. Work of a dead worker that nobody kept is not in
the counts. Knows nothing of storage, screens, Ray or clocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from segray.execution.events import PoolEvent, ProgressUpdate, WorkerJoined, WorkerLost
from segray.tasks import Progress, UnitReport

if TYPE_CHECKING:
    from segray.label_set.run_records import Run

_REMEMBERED_S = 60.0


@dataclass
class Counters:
    """The results of this process, summed over its reports.

    ok, empty, failed: images by status.
    seconds, cpu_seconds: wall and CPU seconds by stage.
    merge_s, commit_s: seconds from the first call to the answer.
    dropped: dropped rows by reason.
    """

    ok: int = 0
    empty: int = 0
    failed: int = 0
    instances: int = 0
    bytes_read: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    cpu_seconds: Mapping[str, float] = field(default_factory=dict)
    merge_s: float = 0.0
    commit_s: float = 0.0
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """Return the number of labelled images."""
        return self.ok + self.empty + self.failed

    def add(self, report: UnitReport) -> None:
        """Add a report."""
        self.ok += report.ok
        self.empty += report.empty
        self.failed += report.failed
        self.instances += report.instances
        self.bytes_read += report.bytes_read
        self.seconds = _sum(self.seconds, report.seconds)
        self.cpu_seconds = _sum(self.cpu_seconds, report.cpu_seconds)
        self.dropped = {name: int(count) for name, count in _sum(self.dropped, report.dropped).items()}


def _sum(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    return {name: a.get(name, 0) + b.get(name, 0) for name in {**a, **b}}


@dataclass(frozen=True)
class WorkerStatus:
    """The status of one worker.

    images: images finished since the worker began.
    in_flight: number of images in flight.
    longest: stage and seconds of the oldest image in flight; None without one.
    """

    worker: str
    host: str
    device: str
    images: int
    images_per_s: float
    in_flight: int
    rss_bytes: int
    longest: tuple[str, float] | None


@dataclass(frozen=True)
class RunProgress:
    """The progress of a run at one moment. tally, units, retries, lost and commits are those of this process.

    phase: starting, labelling or publishing.
    images: images of the plan.
    done: images of the plan that are labelled, by earlier processes too.
    waiting: images that no worker has been given yet.
    units: reports that were accepted.
    retries: tasks that were given out again.
    lost: workers that died or were replaced.
    commits: batches that were committed.
    """

    run: Run
    phase: str
    images: int
    done: int
    waiting: int
    tally: Counters
    units: int
    retries: int
    lost: int
    commits: int
    workers: tuple[WorkerStatus, ...]

    @property
    def images_per_s(self) -> float:
        """Return the images/s of all workers, over about the last minute."""
        return sum(each.images_per_s for each in self.workers)

    @property
    def eta_s(self) -> float | None:
        """Return the seconds until the plan is labelled at the present rate; None without a rate."""
        return (self.images - self.done) / self.images_per_s if self.images_per_s > 0 else None

    @property
    def in_flight(self) -> int:
        """Return the number of images in flight on all workers."""
        return sum(each.in_flight for each in self.workers)


class ProgressListener:
    """A listener to the progress of a run. A subclass overrides the methods for the news that it wants."""

    def note(self, text: str) -> None:
        """Take a message that a person may want to read."""

    def begin(self, images: int, resumed: int) -> None:
        """Take the start of labelling.

        images: images of the run's plan.
        resumed: images of the plan that were done before.
        """

    def advance(self, done: int, instances: int, failed: int) -> None:
        """Take the counts so far.

        done: labelled images of the plan.
        instances, failed: instances and failed images of this process.
        """

    def unit(self, run: Run, host: str, report: UnitReport) -> None:
        """Take an accepted report, labelled on `host`."""

    def beat(self, vitals: RunProgress) -> None:
        """Take the progress, every few seconds while labelling and once at the end, whatever the end."""


@dataclass
class _Member:
    host: str
    device: str
    seen_s: float
    progress: Progress = field(default_factory=lambda: Progress(0))
    images: float = 0.0
    seconds: float = 0.0

    def pulse(self, progress: Progress, now_s: float) -> None:
        passed_s = max(0.0, now_s - self.seen_s)
        kept = math.exp(-passed_s / _REMEMBERED_S)
        self.images = kept * self.images + max(0, progress.finished - self.progress.finished)
        self.seconds = kept * self.seconds + passed_s
        self.seen_s, self.progress = now_s, progress

    def condition(self, worker: str) -> WorkerStatus:
        in_flight = self.progress.in_flight
        oldest = max(in_flight, key=lambda image: image.seconds, default=None)
        return WorkerStatus(
            worker,
            self.host,
            self.device,
            self.progress.finished,
            self.images / self.seconds if self.seconds else 0.0,
            len(in_flight),
            self.progress.rss_bytes,
            None if oldest is None else (oldest.stage, oldest.seconds),
        )


class ProgressTracker:
    """The progress of this process so far. Its counts only grow."""

    def __init__(self) -> None:
        self.tally = Counters()
        self._units = self._retries = self._lost = self._commits = 0
        self._members: dict[str, _Member] = {}

    def begins(self) -> None:
        """Start a plan with workers of its own."""
        self._members.clear()

    def saw(self, event: PoolEvent, now_s: float) -> None:
        """Take an event: a worker joined, was lost, or sent its progress."""
        match event:
            case WorkerJoined(worker, facts):
                self._members[worker] = _Member(facts.get("host", "?"), facts.get("device", "?"), now_s)
            case ProgressUpdate(worker, progress) if worker in self._members:
                self._members[worker].pulse(progress, now_s)
            case WorkerLost(worker):
                self.left(worker)

    def left(self, worker: str, *, released: bool = False) -> None:
        """Remove a worker.

        released: whether the scheduler released the worker, which counts as no loss.
        """
        if self._members.pop(worker, None) is not None:
            self._lost += not released

    def accepted(self, report: UnitReport) -> None:
        """Add a report that counts."""
        self.tally.add(report)
        self._units += 1

    def assigned(self, attempt: int) -> None:
        """Count the assignment of a task."""
        self._retries += attempt > 1

    def committed(self, merge_s: float, commit_s: float) -> None:
        """Count a committed batch, and add its seconds of merging and committing."""
        self.tally.merge_s += merge_s
        self.tally.commit_s += commit_s
        self._commits += 1

    def vitals(self, run: Run, *, images: int, done: int, waiting: int, labelling: bool) -> RunProgress:
        """Return the present progress.

        images: images of the plan.
        done: labelled images of the plan.
        waiting: images that no worker has been given yet.
        labelling: whether work may still come from the workers.
        """
        phase = "publishing" if not labelling else "labelling" if self._members else "starting"
        workers = tuple(member.condition(name) for name, member in self._members.items())
        counts = self._units, self._retries, self._lost, self._commits
        return RunProgress(run, phase, images, done, waiting, self.tally, *counts, workers)
