"""Messages between driver and workers: tasks, reports and progress. All values are frozen.

Knows the content of the messages. Knows nothing of their transport.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

# Stages at which an image may fail, as the column `stage` names them; and a word for all of them.
STAGES = ("read", "decode", "infer", "postprocess", "process")
ALL_STAGES = "all"


@dataclass(frozen=True, slots=True)
class Task:
    """Images of one unit that one worker labels at a time.

    unit: number of the unit in the plan.
    start, stop: half-open range of image positions in the unit.
    attempt: number of the try, 1 for the first.
    only: positions of the images to label, ascending; empty for all of start..stop-1.
    """

    unit: int
    start: int
    stop: int
    attempt: int = 1
    only: tuple[int, ...] = ()

    @classmethod
    def of(cls, unit: int, indices: Sequence[int], attempt: int = 1) -> Task:
        """Return the task of these images.

        indices: positions in the unit, ascending, at least one.
        """
        start, stop = indices[0], indices[-1] + 1
        return cls(unit, start, stop, attempt, () if stop - start == len(indices) else tuple(indices))

    @property
    def indices(self) -> Sequence[int]:
        """Return the images' positions in the unit, ascending."""
        return self.only or range(self.start, self.stop)

    def split_at_gaps(self) -> list[Task]:
        """Return the task as tasks of neighbouring images, in order."""
        gaps = [at for at in range(1, len(self)) if self.indices[at] != self.indices[at - 1] + 1]
        bounds = pairwise([0, *gaps, len(self)])
        return [Task.of(self.unit, self.indices[start:stop], self.attempt) for start, stop in bounds]

    def plain(self) -> list[int]:
        """Return the fields as integers: unit, start, stop, attempt, then those of `only`."""
        return [self.unit, self.start, self.stop, self.attempt, *self.only]

    def __len__(self) -> int:
        return len(self.only) or self.stop - self.start


@dataclass(frozen=True)
class UnitReport:
    """A report of one staged file: neighbouring images of a task, each with a row in the file.

    staged: name of the file below the run's staged folder.
    ok, empty, failed: images by status.
    instances: rows of instances in the file.
    bytes_read: bytes of image files.
    seconds: wall seconds by stage name, summed over threads.
    cpu_seconds: CPU seconds by stage name, summed over threads. "infer" also contains the work of all other threads
        during inference. Only a sum over reports is right.
    dropped: dropped rows by reason, such as an empty mask.
    guessed_depths: images whose 16-bit samples were taken to use fewer bits because of their values, by bits.
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
    guessed_depths: Mapping[int, int] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """Return the number of images in the file."""
        return self.ok + self.empty + self.failed


@dataclass(frozen=True, slots=True)
class WithheldImage:
    """An image that storage did not give, though the image may exist.

    index: position in the unit.
    reason: the error.
    refused: whether storage refused access.
    row_error: error of the failed row that the image gets if storage withholds it in every try. "" where storage serves
        no other file: then the image is not at fault.
    host_served: whether the image's host served files before. Such a host may come back, and gets more time.
    """

    index: int
    reason: str
    refused: bool = False
    row_error: str = ""
    host_served: bool = False


@dataclass(frozen=True)
class TaskReport:
    """The result of a task. Each image of the task is in exactly one of staged, withheld and untried.

    staged: reports of the staged files, in order.
    withheld: images that storage did not give.
    untried: positions of images that were not read, because storage withheld all images tried before them.
    """

    task: Task
    staged: tuple[UnitReport, ...]
    withheld: tuple[WithheldImage, ...] = ()
    untried: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class InFlight:
    """An image in flight on a worker.

    unit, index: the image.
    stage: read, decode, wait (for a free inference request), infer or postprocess.
    seconds: seconds since the stage began.
    """

    unit: int
    index: int
    stage: str
    seconds: float


@dataclass(frozen=True)
class Progress:
    """The progress of a worker: the number of finished images, and the images in flight.

    finished: number of finished images since the worker's start.
    in_flight: images in flight.
    rss_bytes: resident memory of the worker's process.
    max_rss_bytes: a worker that holds more is replaced; None for no limit.
    """

    finished: int
    in_flight: tuple[InFlight, ...] = ()
    rss_bytes: int = 0
    max_rss_bytes: int | None = None

    @property
    def over_memory_limit(self) -> bool:
        """Return whether the worker holds more memory than max_rss_bytes."""
        return self.max_rss_bytes is not None and self.rss_bytes > self.max_rss_bytes
