"""Work as it travels between driver and workers: tasks, reports, progress. Frozen values.

Knows what is asked and told; knows nothing of how either travels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Task:
    """A slice of a unit, given to one worker: images start..stop-1 of unit, tried for the `attempt`th time."""

    unit: int
    start: int
    stop: int
    attempt: int = 1

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class UnitReport:
    """What a worker says of a finished task; the rows themselves are in `staged`.

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


# An image in flight: unit, index in unit, stage, seconds since the stage began. Stages: read, decode, wait (for a free
# inference request), infer, postprocess.
Place = tuple[int, int, str, float]


@dataclass(frozen=True)
class Progress:
    """A worker's pulse: images finished so far, and those in flight.

    rss_bytes: memory that its process holds; max_rss_bytes: from where on it is to be replaced, None for never.
    """

    finished: int
    in_flight: tuple[Place, ...] = ()
    rss_bytes: int = 0
    max_rss_bytes: int | None = None

    @property
    def swollen(self) -> bool:
        """Whether the worker holds more memory than it may."""
        return self.max_rss_bytes is not None and self.rss_bytes > self.max_rss_bytes
