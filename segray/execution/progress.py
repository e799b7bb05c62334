"""The progress of a run at one moment: counts, waiting images, and each worker's speed and images in flight.

Knows the reports of workers, and adds each accepted report once. Work that a dead worker lost is not in the counts.
Knows nothing of storage, screens, Ray or clocks.
"""

from __future__ import annotations

import math
from collections import Counter
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
    merge_s, commit_s: wall seconds of merging and of committing, summed over batches.
    dropped: dropped rows by reason.
    replaced_files: data files of both tables that commits removed from the log.
    guessed_depths: images whose 16-bit samples were taken to use fewer bits because of their values, by bits.
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
    replaced_files: int = 0
    guessed_depths: Mapping[int, int] = field(default_factory=dict)

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
        self.guessed_depths = dict(Counter(self.guessed_depths) + Counter(report.guessed_depths))


def _sum(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    return {name: a.get(name, 0) + b.get(name, 0) for name in {**a, **b}}


@dataclass(frozen=True)
class WorkerStatus:
    """The status of one worker.

    images: images finished since the worker's start.
    images_per_s: speed over about the last minute.
    in_flight: number of images in flight.
    rss_bytes: resident memory of the worker's process.
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
    """The progress of a run at one moment. counters, units, retries, lost and commits are those of this process.

    phase: starting, labelling or publishing.
    images: images of the plan.
    done: images of the plan that are labelled, by earlier processes too.
    waiting: images that no worker has.
    units: reports that were accepted.
    retries: assignments of tasks on a second or later attempt.
    lost: workers that died or were replaced.
    commits: batches that were committed.
    """

    run: Run
    phase: str
    images: int
    done: int
    waiting: int
    counters: Counters
    units: int
    retries: int
    lost: int
    commits: int
    workers: tuple[WorkerStatus, ...]

    @property
    def images_per_s(self) -> float:
        """Return the images/s of all workers, over about the last minute."""
        return sum(worker.images_per_s for worker in self.workers)

    @property
    def eta_s(self) -> float | None:
        """Return the seconds until the plan is labelled at the present rate; None without a rate."""
        return (self.images - self.done) / self.images_per_s if self.images_per_s > 0 else None

    @property
    def in_flight(self) -> int:
        """Return the number of images in flight on all workers."""
        return sum(worker.in_flight for worker in self.workers)


class ProgressListener:
    """A listener to the progress of a run. Each method does nothing; a subclass overrides those that it needs."""

    def note(self, text: str) -> None:
        """Receive a message for a person."""

    def begin(self, images: int, resumed: int) -> None:
        """Receive the start of labelling.

        images: number of images in the run's plan.
        resumed: number of these that were labelled before.
        """

    def advance(self, done: int, instances: int, failed: int) -> None:
        """Receive the counts so far.

        done: labelled images of the plan.
        instances, failed: instances and failed images of this process.
        """

    def unit(self, run: Run, host: str, report: UnitReport) -> None:
        """Receive an accepted report of images that were labelled on `host`."""

    def beat(self, progress: RunProgress) -> None:
        """Receive the progress every few seconds, and once at the end of the loop, with or without an error."""


@dataclass
class _TrackedWorker:
    """The last progress of one worker, and its recent speed.

    seen_s: time of the last progress.
    images, seconds: finished images and seconds, both weighted by age. Their quotient is the speed.
    """

    host: str
    device: str
    seen_s: float
    progress: Progress = field(default_factory=lambda: Progress(0))
    images: float = 0.0
    seconds: float = 0.0

    def update(self, progress: Progress, now_s: float) -> None:
        passed_s = max(0.0, now_s - self.seen_s)
        weight = math.exp(-passed_s / _REMEMBERED_S)
        self.images = weight * self.images + max(0, progress.finished - self.progress.finished)
        self.seconds = weight * self.seconds + passed_s
        self.seen_s, self.progress = now_s, progress

    def status(self, worker: str) -> WorkerStatus:
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
        self.counters = Counters()
        self._units = self._retries = self._lost = self._commits = 0
        self._workers: dict[str, _TrackedWorker] = {}

    def begin_plan(self) -> None:
        """Forget the workers of an earlier plan."""
        self._workers.clear()

    def add_event(self, event: PoolEvent, now_s: float) -> None:
        """Record that a worker joined, was lost, or sent its progress."""
        match event:
            case WorkerJoined(worker, facts):
                self._workers[worker] = _TrackedWorker(facts.get("host", "?"), facts.get("device", "?"), now_s)
            case ProgressUpdate(worker, progress) if worker in self._workers:
                self._workers[worker].update(progress, now_s)
            case WorkerLost(worker):
                self.remove_worker(worker)

    def remove_worker(self, worker: str, *, released: bool = False) -> None:
        """Remove a worker, and count its loss.

        released: whether the scheduler released the worker, which is no loss.
        """
        if self._workers.pop(worker, None) is not None:
            self._lost += not released

    def add_report(self, report: UnitReport) -> None:
        """Add an accepted report."""
        self.counters.add(report)
        self._units += 1

    def add_assignment(self, attempt: int) -> None:
        """Count the assignment of a task, as a retry when its attempt is not the first."""
        self._retries += attempt > 1

    def add_commit(self, merge_s: float, commit_s: float, replaced_files: int) -> None:
        """Count a committed batch, and add its seconds of merging and committing, and the files that it replaced."""
        self.counters.merge_s += merge_s
        self.counters.commit_s += commit_s
        self.counters.replaced_files += replaced_files
        self._commits += 1

    def progress(self, run: Run, *, images: int, done: int, waiting: int, labelling: bool) -> RunProgress:
        """Return the present progress.

        Args:
            run: the run.
            images: images of the plan.
            done: labelled images of the plan.
            waiting: images that no worker has.
            labelling: whether work may still come from the workers.
        """
        phase = "publishing" if not labelling else "labelling" if self._workers else "starting"
        workers = tuple(worker.status(name) for name, worker in self._workers.items())
        counts = self._units, self._retries, self._lost, self._commits
        return RunProgress(run, phase, images, done, waiting, self.counters, *counts, workers)
