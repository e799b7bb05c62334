"""What happens to workers, and what the scheduler wants done about it. Frozen values.

Knows the words between worker pool, scheduler and event log; knows nothing of what any of them does with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from segray.tasks import InFlight, Progress, Task, TaskReport


@dataclass(frozen=True)
class WorkerJoined:
    """A worker is ready for tasks. facts: host, device, precision, threads, versions."""

    worker: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class TaskFinished:
    """A worker staged the rows of a task, all but those of images that storage withheld."""

    worker: str
    report: TaskReport


@dataclass(frozen=True)
class TaskFailed:
    """Nothing of a task was staged, for storage or the network failed. The worker lives.

    lasting: waiting does not help, as with a full disk.
    """

    worker: str
    task: Task
    reason: str
    lasting: bool = False


@dataclass(frozen=True)
class WorkerLost:
    """A worker is gone. blame_images: its process died while its node lived, so an image may be the cause.

    in_flight: the images that it was at when it died; None when that is not known.
    """

    worker: str
    reason: str
    blame_images: bool
    in_flight: tuple[InFlight, ...] | None = None


@dataclass(frozen=True)
class WorkerDraining:
    """A worker's node is being drained: it may finish what it runs, and gets nothing new."""

    worker: str


@dataclass(frozen=True)
class ProgressUpdate:
    """What a worker is doing."""

    worker: str
    progress: Progress


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


PoolEvent = WorkerJoined | TaskFinished | TaskFailed | WorkerLost | WorkerDraining | ProgressUpdate
Event = PoolEvent | Tick


@dataclass(frozen=True)
class Assign:
    """Send the task to the worker."""

    worker: str
    task: Task


@dataclass(frozen=True)
class Accept:
    """Count the report: the worker still owned the task."""

    worker: str
    report: TaskReport


@dataclass(frozen=True)
class ReplaceWorker:
    """Kill the worker and start another; its tasks are already back in the queue."""

    worker: str
    reason: str


@dataclass(frozen=True)
class ReleaseWorker:
    """Stop the worker, which has no tasks. Start no other in its place."""

    worker: str
    reason: str


@dataclass(frozen=True)
class Quarantine:
    """Record the one image of this task as failed: it killed or hung its process `task.attempt` times."""

    task: Task
    reason: str


Action = Assign | Accept | ReplaceWorker | ReleaseWorker | Quarantine
