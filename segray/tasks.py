"""Work as it travels between driver and workers: tasks, reports, progress. Frozen values.

Knows what is asked and answered; knows nothing of how either travels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Task:
    """Images of a unit that one worker labels: start..stop-1, for the `attempt`th time.

    only: the images to label, ascending; empty for all of start..stop-1.
    """

    unit: int
    start: int
    stop: int
    attempt: int = 1
    only: tuple[int, ...] = ()

    @classmethod
    def of(cls, unit: int, indices: Sequence[int], attempt: int = 1) -> Task:
        """Return the task of these images, ascending and at least one."""
        start, stop = indices[0], indices[-1] + 1
        return cls(unit, start, stop, attempt, () if stop - start == len(indices) else tuple(indices))

    @property
    def indices(self) -> Sequence[int]:
        """The images' positions in the unit, ascending."""
        return self.only or range(self.start, self.stop)

    def runs(self) -> list[Task]:
        """Split into tasks of neighbouring images, in order."""
        cuts = [0, *(at for at in range(1, len(self)) if self.indices[at] != self.indices[at - 1] + 1), len(self)]
        return [Task.of(self.unit, self.indices[a:b], self.attempt) for a, b in zip(cuts, cuts[1:], strict=False)]

    def __len__(self) -> int:
        return len(self.only) or self.stop - self.start


@dataclass(frozen=True)
class UnitReport:
    """Describe one staged file: neighbouring images of a task, all of which have a row in it.

    staged: name of the file below the run's staged folder. seconds: wall seconds by stage name, summed over threads.
    cpu_seconds: likewise what the threads computed; "infer" is all else that the process did meanwhile, so it is right
    in a sum over reports only. dropped: masks that came out empty, and rows cut for other reasons, by reason.
    """

    task: Task
    staged: str
    ok: int
    empty: int
    failed: int
    instances: int
    bytes_read: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)
    cpu_seconds: Mapping[str, float] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def images(self) -> int:
        return self.ok + self.empty + self.failed


@dataclass(frozen=True, slots=True)
class WithheldImage:
    """An image that storage did not give, though it may exist: its position in the unit, and the error."""

    index: int
    reason: str


@dataclass(frozen=True)
class TaskReport:
    """What became of a task: each of its images is in exactly one of staged, withheld and untried.

    untried: positions of images that were not read, because storage withheld all that were tried before them.
    """

    task: Task
    staged: tuple[UnitReport, ...]
    withheld: tuple[WithheldImage, ...] = ()
    untried: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class InFlight:
    """An image that a worker is at. seconds: since the stage began.

    Stages: read, decode, wait (for a free inference request), infer, postprocess.
    """

    unit: int
    index: int
    stage: str
    seconds: float


@dataclass(frozen=True)
class Progress:
    """Images that a worker finished so far, and those in flight.

    rss_bytes: memory that its process holds. max_rss_bytes: a worker that holds more is replaced; None for no limit.
    """

    finished: int
    in_flight: tuple[InFlight, ...] = ()
    rss_bytes: int = 0
    max_rss_bytes: int | None = None

    @property
    def over_memory_limit(self) -> bool:
        return self.max_rss_bytes is not None and self.rss_bytes > self.max_rss_bytes
