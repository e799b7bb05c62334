"""What a run asks of its workers, and workers in this very process.

Knows events and commands; knows nothing of Ray (cluster.py) or of what labelling is. `InProcess` runs the
same labeller on a thread, for tests and for looking closely at one image.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from segray.errors import UserError, WorldError
from segray.instances import ImageRef
from segray.tasks import Place, Progress, Task, UnitReport

T = TypeVar("T")


@dataclass(frozen=True)
class Joined:
    """A worker is ready. facts: device, precision, threads, versions."""

    worker: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class Finished:
    """A worker staged a task."""

    worker: str
    report: UnitReport


@dataclass(frozen=True)
class Failed:
    """The world failed a task; the worker lives."""

    worker: str
    task: Task
    error: WorldError


@dataclass(frozen=True)
class Lost:
    """A worker is gone; blame_images: its process died while its node lived.

    in_flight: where it was when it died; None when that is not known.
    """

    worker: str
    reason: str
    blame_images: bool
    in_flight: tuple[Place, ...] | None = None


@dataclass(frozen=True)
class Pulse:
    """What a worker is doing."""

    worker: str
    progress: Progress


@dataclass(frozen=True)
class Leaving:
    """A worker's node is being drained: it may finish what it runs and should get nothing new."""

    worker: str


Event = Joined | Finished | Failed | Lost | Pulse | Leaving


class Workers(Protocol):
    """A pool of labellers. Errors that no retry mends (wrong model, wrong credentials) are raised by events()."""

    def events(self, timeout_s: float) -> list[Event]:
        """What happened since the last call, waiting up to timeout_s for something."""

    def assign(self, worker: str, task: Task, refs: Sequence[ImageRef]) -> None:
        """Start a task on a worker; it queues behind the one that runs."""

    def retire(self, worker: str) -> None:
        """Kill a worker and bring another in its place."""

    def release(self, worker: str) -> None:
        """Let an idle worker go; nobody comes in its place unless need() asks for more."""

    def need(self, workers: int) -> None:
        """The run has something to do for so many workers; no more need to come. 0: it is over for all of them."""

    def call(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Run a function away from the thread that calls."""

    def close(self) -> None:
        """Let go of everything."""


def apart(function: Callable[..., T], *args: Any) -> Future[T]:
    """Run a function on a thread of its own, which does not keep this process from ending."""
    answer: Future[T] = Future()

    def run() -> None:
        try:
            answer.set_result(function(*args))
        except BaseException as exc:
            answer.set_exception(exc)

    threading.Thread(target=run, daemon=True).start()
    return answer


class Labels(Protocol):
    """What a worker holds: label.Labeller, or a double of it."""

    def label(self, task: Task, refs: Sequence[ImageRef]) -> UnitReport: ...

    def progress(self) -> Progress: ...

    def close(self) -> None: ...


class InProcess:
    """One worker on one thread of this process."""

    def __init__(self, labeller: Labels, facts: Mapping[str, str]) -> None:
        self._labeller = labeller
        self._events: queue.Queue[Event | UserError] = queue.Queue()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="worker")
        self._events.put(Joined("0", facts))

    def events(self, timeout_s: float) -> list[Event]:
        found: list[Event] = [Pulse("0", self._labeller.progress())]
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
            self._events.put(Finished(worker, self._labeller.label(task, refs)))
        except WorldError as exc:
            self._events.put(Failed(worker, task, exc))
        except UserError as exc:
            self._events.put(exc)
        except Exception as exc:
            self._events.put(Lost(worker, repr(exc), blame_images=True))

    def retire(self, worker: str) -> None:
        raise WorldError("a stuck image holds this process", do="run on a cluster, where a worker can be replaced")

    def release(self, worker: str) -> None: ...

    def need(self, workers: int) -> None: ...

    def call(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*args))
        return done

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._labeller.close()
