"""The events of workers, and the actions that the scheduler returns. All values are frozen.

Knows the values that pass between worker pool, scheduler, event loop and event log. Knows nothing of their use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from segray.tasks import InFlight, Progress, Task, TaskReport


@dataclass(frozen=True)
class WorkerJoined:
    """An event: a worker is ready for tasks.

    facts: facts of the worker, such as host, device, precision, threads and versions.
    """

    worker: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class TaskFinished:
    """An event: a worker staged the rows of a task, except those of images that storage withheld."""

    worker: str
    report: TaskReport


@dataclass(frozen=True)
class TaskFailed:
    """An event: storage or the network failed, and no row of a task was staged. The worker lives.

    lasting: whether the fault lasts, such as a full disk, so that waiting does not help.
    """

    worker: str
    task: Task
    reason: str
    lasting: bool = False


@dataclass(frozen=True)
class WorkerLost:
    """An event: a worker is gone.

    blame_images: whether the process died while its node lived, so that an image may be the cause.
    in_flight: images in flight at the death; None when they are unknown.
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
    """An action: accept the report of a task that the worker still owned."""

    worker: str
    report: TaskReport


@dataclass(frozen=True)
class ReplaceWorker:
    """An action: kill the worker and start another. The worker's tasks are in the queue again."""

    worker: str
    reason: str


@dataclass(frozen=True)
class ReleaseWorker:
    """An action: stop the worker, which has no tasks, without a successor."""

    worker: str
    reason: str


@dataclass(frozen=True)
class Quarantine:
    """An action: record the one image of this task as failed.

    A worker's process died or hung in each of `task.attempt` attempts.
    """

    task: Task
    reason: str


@dataclass(frozen=True)
class FailImage:
    """An action: record the one image of this task as failed. Storage withholds the image and serves others.

    error, reason: error and message of the failed row.
    """

    task: Task
    error: str
    reason: str


Action = Assign | Accept | ReplaceWorker | ReleaseWorker | Quarantine | FailImage
