"""The interface of a run to its workers, and workers in this very process.

Knows events and commands. Knows nothing of Ray (ray_pool.py) or of labelling. `InProcess` runs the same labeller on a
thread, for tests and for a close look at one image.
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
    """A pool of labellers.

    events() raises the errors that no retry helps, such as a wrong model or wrong credentials.
    """

    def events(self, timeout_s: float) -> list[PoolEvent]:
        """Return the events since the last call; wait up to timeout_s seconds for one."""

    def assign(self, worker: str, task: Task, refs: Sequence[ImageRef]) -> None:
        """Start a task on a worker, behind the task that runs.

        refs: the images, in order of `task.indices`.
        """

    def retire(self, worker: str) -> None:
        """Kill a worker and start another in its place."""

    def release(self, worker: str) -> None:
        """Stop an idle worker. No other starts in its place unless need() asks for more."""

    def need(self, workers: int) -> None:
        """Set the number of workers that have something to do.

        workers: no more workers need to start than these; 0 when the run is over for all.
        """

    def call(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Run a function off the calling thread; return its future result."""

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
        found: list[PoolEvent] = [ProgressUpdate("0", self._labeller.progress())]
        try:
            while True:
                event = self._events.get(timeout=timeout_s)
                if isinstance(event, UserError):
                    raise event
                found.append(event)
                timeout_s = 0.0
        except queue.Empty:
            return found

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

    def retire(self, worker: str) -> None:
        raise InfrastructureError(
            "a stuck image holds this process", hint="run on a cluster, where a worker can be replaced"
        )

    def release(self, worker: str) -> None: ...

    def need(self, workers: int) -> None: ...

    def call(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*args))
        return done

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._labeller.close()
