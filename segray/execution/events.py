"""The events of workers, and the actions that the scheduler asks for. All values are frozen.

Knows the words between worker pool, scheduler and event log. Knows nothing of what any of them does with an event.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from segray.tasks import InFlight, Progress, Task, TaskReport


@dataclass(frozen=True)
class WorkerJoined:
    """An event: a worker is ready for tasks.

    facts: host, device, precision, threads and versions.
    """

    worker: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class TaskFinished:
    """An event: a worker staged the rows of a task, all but those of images that storage withheld."""

    worker: str
    report: TaskReport


@dataclass(frozen=True)
class TaskFailed:
    """An event: nothing of a task was staged, for storage or the network failed. The worker lives.

    lasting: whether waiting does not help, as with a full disk.
    """

    worker: str
    task: Task
    reason: str
    lasting: bool = False


@dataclass(frozen=True)
class WorkerLost:
    """An event: a worker is gone.

    blame_images: whether its process died while its node lived, so that an image may be the cause.
    in_flight: images in flight at its death; None when they are unknown.
    """

    worker: str
    reason: str
    blame_images: bool
    in_flight: tuple[InFlight, ...] | None = None


@dataclass(frozen=True)
class WorkerDraining:
    """An event: a worker's node is being drained.

    The worker may finish its tasks and gets no new ones.
    """

    worker: str


@dataclass(frozen=True)
class ProgressUpdate:
    """An event: the progress of a worker."""

    worker: str
    progress: Progress


@dataclass(frozen=True)
class Tick:
    """An event: time has passed."""


PoolEvent = WorkerJoined | TaskFinished | TaskFailed | WorkerLost | WorkerDraining | ProgressUpdate
Event = PoolEvent | Tick


@dataclass(frozen=True)
class Assign:
    """An action: send the task to the worker."""

    worker: str
    task: Task


@dataclass(frozen=True)
class Accept:
    """An action: count the report, since the worker still owned the task."""

    worker: str
    report: TaskReport


@dataclass(frozen=True)
class ReplaceWorker:
    """An action: kill the worker and start another. Its tasks are back in the queue already."""

    worker: str
    reason: str


@dataclass(frozen=True)
class ReleaseWorker:
    """An action: stop the worker, which has no tasks. Start no other in its place."""

    worker: str
    reason: str


@dataclass(frozen=True)
class Quarantine:
    """An action: record the one image of this task as failed.

    The image killed or hung its process `task.attempt` times.
    """

    task: Task
    reason: str


Action = Assign | Accept | ReplaceWorker | ReleaseWorker | Quarantine
