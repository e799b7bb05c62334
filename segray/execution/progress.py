"""How a run goes at one moment: what is counted, what waits, who works at what and how fast.

Knows what workers report and adds it up, each finished unit once: what a dead worker did and nobody kept is not in the
counts. Knows nothing of storage, screens, Ray or clocks.
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
    """What this process did, summed over its reports. merge_s, commit_s: seconds from the first call to the answer."""

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
        return self.ok + self.empty + self.failed

    def add(self, report: UnitReport) -> None:
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
    """Of one worker. images: finished since it began. longest: stage and seconds of its oldest image in flight."""

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
    """A run at one moment.

    phase: starting, labelling or publishing. images: of the plan; done: of these, labelled, by earlier processes too;
    waiting: given to nobody yet. tally, units, retries, lost and commits: of this process. retries: units that were
    given out again; lost: workers that died or were replaced.
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
        """Of all workers, over about the last minute."""
        return sum(each.images_per_s for each in self.workers)

    @property
    def eta_s(self) -> float | None:
        """Seconds until the plan is labelled, as things go; None while that cannot be told."""
        return (self.images - self.done) / self.images_per_s if self.images_per_s > 0 else None

    @property
    def in_flight(self) -> int:
        return sum(each.in_flight for each in self.workers)


class ProgressListener:
    """Who is told how the run goes; a subclass hears what it wants to."""

    def note(self, text: str) -> None:
        """Something happened that a person may want to know."""

    def begin(self, images: int, resumed: int) -> None:
        """Labelling starts: so many images in this run's plan, so many of them done before."""

    def advance(self, done: int, instances: int, failed: int) -> None:
        """So many images, instances and failures so far, the last two of this process."""

    def unit(self, run: Run, host: str, report: UnitReport) -> None:
        """A unit's result counts; it was labelled on `host`."""

    def beat(self, vitals: RunProgress) -> None:
        """How it goes now: every few seconds while labelling, and once at its end, whatever the end."""


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
    """What has happened so far in this process; its counts only grow."""

    def __init__(self) -> None:
        self.tally = Counters()
        self._units = self._retries = self._lost = self._commits = 0
        self._members: dict[str, _Member] = {}

    def begins(self) -> None:
        """A plan is taken up, with workers of its own."""
        self._members.clear()

    def saw(self, event: PoolEvent, now_s: float) -> None:
        """A worker joined, was lost, or says what it does."""
        match event:
            case WorkerJoined(worker, facts):
                self._members[worker] = _Member(facts.get("host", "?"), facts.get("device", "?"), now_s)
            case ProgressUpdate(worker, progress) if worker in self._members:
                self._members[worker].pulse(progress, now_s)
            case WorkerLost(worker):
                self.left(worker)

    def left(self, worker: str, *, released: bool = False) -> None:
        """A worker is gone. released: nothing was left for it to do."""
        if self._members.pop(worker, None) is not None:
            self._lost += not released

    def accepted(self, report: UnitReport) -> None:
        """A unit's result counts."""
        self.tally.add(report)
        self._units += 1

    def assigned(self, attempt: int) -> None:
        """A unit was given to a worker."""
        self._retries += attempt > 1

    def committed(self, merge_s: float, commit_s: float) -> None:
        """A batch is visible."""
        self.tally.merge_s += merge_s
        self.tally.commit_s += commit_s
        self._commits += 1

    def vitals(self, run: Run, *, images: int, done: int, waiting: int, labelling: bool) -> RunProgress:
        """How it goes now."""
        phase = "publishing" if not labelling else "labelling" if self._members else "starting"
        workers = tuple(member.condition(name) for name, member in self._members.items())
        counts = self._units, self._retries, self._lost, self._commits
        return RunProgress(run, phase, images, done, waiting, self.tally, *counts, workers)
