"""The interface of a run to its workers, and one worker in this process.

Knows events and commands. Knows nothing of Ray (ray_pool.py) or of labelling. `InProcess` runs the same labeller on a
thread, for tests, estimates and debugging.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from segray.errors import InfrastructureError, LastingError, UserError
from segray.execution.events import PoolEvent, ProgressUpdate, TaskFailed, TaskFinished, WorkerJoined, WorkerLost
from segray.instances import ImageRef
from segray.tasks import Progress, Task, TaskReport


class WorkerPool(Protocol):
    """The workers of a run.

    events() raises UserError for a fault that no retry repairs, such as a wrong model or wrong credentials.
    """

    def events(self, timeout_s: float) -> list[PoolEvent]:
        """Return the events since the last call; wait up to timeout_s seconds for one."""

    def assign(self, worker: str, task: Task, refs: Sequence[ImageRef]) -> None:
        """Queue a task on a worker. The task starts when the worker has finished its present one.

        refs: the images, in order of `task.indices`.
        """

    def replace(self, worker: str) -> None:
        """Kill a worker and start another in its place."""

    def release(self, worker: str) -> None:
        """Stop an idle worker. Another starts in its place only if set_needed() asks for more workers."""

    def set_needed(self, workers: int) -> None:
        """Set the number of workers that have something to do.

        workers: largest number of workers that is of use; 0 when the run is over.
        """

    def call(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Run a function outside the calling thread if the pool can; return its future result."""

    def close(self) -> None:
        """Release everything that the pool holds."""


class Labels(Protocol):
    """The interface of a worker to its labeller: labeller.Labeller, or a test double."""

    def label(self, task: Task, refs: Sequence[ImageRef]) -> TaskReport: ...

    def progress(self) -> Progress: ...

    def close(self) -> None: ...


class InProcess:
    """One worker on one thread of this process."""

    def __init__(self, labeller: Labels, facts: Mapping[str, str]) -> None:
        self._labeller = labeller
        self._events: queue.Queue[PoolEvent | UserError] = queue.Queue()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="worker")
        self._events.put(WorkerJoined("0", facts))

    def events(self, timeout_s: float) -> list[PoolEvent]:
        events: list[PoolEvent] = [ProgressUpdate("0", self._labeller.progress())]
        try:
            while True:
                event = self._events.get(timeout=timeout_s)
                if isinstance(event, UserError):
                    raise event
                events.append(event)
                timeout_s = 0.0
        except queue.Empty:
            return events

    def assign(self, worker: str, task: Task, refs: Sequence[ImageRef]) -> None:
        self._pool.submit(self._run, worker, task, refs)

    def _run(self, worker: str, task: Task, refs: Sequence[ImageRef]) -> None:
        try:
            self._events.put(TaskFinished(worker, self._labeller.label(task, refs)))
        except InfrastructureError as exc:
            self._events.put(TaskFailed(worker, task, exc.short(), isinstance(exc, LastingError)))
        except UserError as exc:
            self._events.put(exc)
        except Exception as exc:
            self._events.put(WorkerLost(worker, repr(exc), blame_images=True))

    def replace(self, worker: str) -> None:
        raise InfrastructureError(
            "an image is stuck in this process", hint="run on a cluster, where a worker can be replaced"
        )

    def release(self, worker: str) -> None: ...

    def set_needed(self, workers: int) -> None: ...

    def call(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(function(*args))
        return future

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._labeller.close()
