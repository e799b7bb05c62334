"""A simulation of a run: the cost of scheduling, in a simulated time that jumps from event to event.

Knows how long images take, and the messages between driver and workers. The event loop, the scheduler, merges and
commits are those of a real run. The driver's CPU seconds are real, and also pass in the simulated time.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.synthetic_rows import Stager
from segray import config
from segray.execution.event_loop import RunContext, RunLoop
from segray.execution.events import PoolEvent, ProgressUpdate, TaskFinished, WorkerJoined
from segray.execution.progress import ProgressListener
from segray.instances import ImageRef
from segray.label_set import commit, schema
from segray.label_set.plan import Plan, cut
from segray.label_set.run_records import LabelSetIdentity, Run, staged_name
from segray.storage.store import StorageOptions, Store
from segray.tasks import InFlight, Progress, Task, TaskReport, UnitReport

_PROGRESS_S, _PART_ROWS = 1.0, 16_384


@dataclass(frozen=True)
class Pool:
    """Equal workers.

    count: number of workers.
    image_s: mean seconds of an image.
    slots: images in flight on each worker.
    """

    count: int
    image_s: float = 0.5
    slots: int = 4

    @property
    def images_per_s(self) -> float:
        """Return the images/s of all workers together."""
        return self.count * self.slots / self.image_s


@dataclass(frozen=True)
class Load:
    """The work, the workers, and the delays. The seconds of images are lognormal.

    images: number of images.
    pools: the workers.
    spread: standard deviation of the logarithm of an image's seconds.
    slow_share: share of the images that take `slow_factor` times as long.
    assign_s, report_s: seconds of a message to a worker and back.
    stage_s: seconds to write a staged file.
    unit_images, batch_images: images of a unit and of a batch.
    seed: seed of the images' seconds.
    """

    images: int
    pools: tuple[Pool, ...]
    spread: float = 0.3
    slow_share: float = 0.01
    slow_factor: float = 3.0
    assign_s: float = 0.005
    report_s: float = 0.01
    stage_s: float = 0.05
    unit_images: int = 256
    batch_images: int = 50_000
    seed: int = 0

    def seconds(self, unit: int, images: int) -> NDArray[np.float64]:
        """Return the seconds of each image of a unit, (images,) float64, for an average of one second."""
        rng = np.random.default_rng([self.seed, unit])
        slow = np.where(rng.random(images) < self.slow_share, self.slow_factor, 1.0)
        mean = math.exp(self.spread**2 / 2) * (1 + self.slow_share * (self.slow_factor - 1))
        return np.asarray(rng.lognormal(0, self.spread, images) * slow / mean)


@dataclass(frozen=True)
class Outcome:
    """The result of a simulation.

    ideal_s: duration if all workers were busy from start to end.
    labelled_s: time of the last labelled image.
    makespan_s: time of the last commit.
    tail_idle: share of the capacity until labelled_s that was idle because no task was left.
    tasks: number of tasks.
    instances: number of instances.
    driver_s: CPU seconds of event loop and scheduler.
    merge_s, commit_s: CPU seconds of publishing, 0 if nothing is published.
    """

    load: Load
    ideal_s: float
    labelled_s: float
    makespan_s: float
    tail_idle: float
    tasks: int
    instances: int
    driver_s: float
    merge_s: float
    commit_s: float

    @property
    def efficiency(self) -> float:
        """Return the ideal duration over the real one, 0..1."""
        return self.ideal_s / self.makespan_s


def simulate(load: Load, root: str | None = None, stager: Stager | None = None, *, timed: bool = True) -> Outcome:
    """Simulate a run.

    Args:
        load: the work.
        root: root of the label set in which staged files of `stager` are merged and committed; None to publish nothing.
        stager: writer of staged files; None to write none.
        timed: whether the driver's CPU seconds pass in the simulated time. Otherwise equal loads have equal outcomes.
    """
    if root is not None:
        commit.create_tables(root, StorageOptions())
        return _simulate(load, root, stager, _Published, timed=timed)
    with TemporaryDirectory() as folder:  # for the event log
        return _simulate(load, folder, stager, _Unpublished, timed=timed)


def _simulate(load: Load, root: str, stager: Stager | None, loop_class: type[_Published], *, timed: bool) -> Outcome:
    store, run = Store(), Run(root, "simulated")
    configuration = config.validate(
        {
            "source": {"uri": "nowhere"},
            "output": {"root": run.root},
            "model": {"name": "stickers"},
            "unit_images": load.unit_images,
            "image": {"timeout_s": 1e9},
            "publish": {"batch_images": load.batch_images},
        },
        "the simulation",
    )
    context = RunContext(
        configuration, StorageOptions(), store, store, LabelSetIdentity("", {}, ()), ProgressListener()
    )
    plan = _plan(load)

    def stage(task: Task, refs: Sequence[ImageRef]) -> UnitReport:
        if stager is None:
            return UnitReport(task, staged_name(task), len(task), 0, 0, 0)
        return stager.stage(store, run.staged, task, refs)

    cluster = Cluster(load, plan, stage, timed=timed)
    loop = loop_class(context, run, plan, {}, plan.tasks(), cluster, clock=lambda: cluster.now_s)
    loop.run()
    cluster.close()
    commit_s = max(0.0, loop.publish_s - cluster.merge_s)
    return Outcome(
        load,
        cluster.work / sum(pool.images_per_s for pool in load.pools),
        cluster.labelled_s,
        cluster.now_s,
        cluster.tail_idle(),
        cluster.tasks,
        context.counters.instances,
        cluster.driver_s - commit_s,
        cluster.merge_s,
        commit_s,
    )


def _plan(load: Load) -> Plan:
    """Return a plan whose parts are generated on demand."""

    def part(number: int) -> pa.Table:
        rows = range(number * _PART_ROWS, min((number + 1) * _PART_ROWS, load.images))
        keys = [f"raw/2026/11/{row:010d}-a-name-of-common-length.jpg" for row in rows]
        uris = ["s3://bucket/" + key for key in keys]
        versions = [f"{row * 2654435761:032x}" for row in rows]
        columns = [pa.array(values) for values in (keys, uris, versions, [100_000] * len(keys))]
        return pa.Table.from_arrays(columns, schema=schema.PLAN)

    return Plan(cut(load.images, load.unit_images), lru_cache(3)(part), _PART_ROWS)


class _Published(RunLoop):
    """The event loop of a run, with a clock for publishing.

    publish_s: CPU seconds of publishing.
    """

    publish_s = 0.0

    def _publish(self) -> None:
        begin_s = time.process_time()
        super()._publish()
        self.publish_s += time.process_time() - begin_s


class _Unpublished(_Published):
    """An event loop that discards the staged files instead of publishing."""

    def _publish(self) -> None:
        if self._settled() or self._staged_images >= self._context.config.publish.batch_images:
            self._staged, self._staged_images, self._images_to_merge = {}, 0, 0


@dataclass
class _Worker:
    """A simulated worker.

    slots: a heap of the times at which the slots are free.
    pending: end, begin, unit and index of each image that no progress update has reported as finished.
    finished: number of images that progress updates have reported as finished.
    """

    pool: Pool
    slots: list[float]
    pending: list[tuple[float, float, int, int]] = field(default_factory=list)
    finished: int = 0


class Cluster:
    """A worker pool (worker_pool.WorkerPool) in simulated time.

    stage: called in place of labelling.
    now_s: the simulated time.
    labelled_s, driver_s, merge_s: see Outcome.
    tasks: number of tasks.
    work: the images' seconds, for an average of one second.
    """

    def __init__(
        self, load: Load, plan: Plan, stage: Callable[[Task, Sequence[ImageRef]], UnitReport], *, timed: bool
    ) -> None:
        self.now_s = self.labelled_s = self.driver_s = self.merge_s = 0.0
        self.tasks, self.work = 0, 0.0
        self._load, self._plan, self._stage, self._timed = load, plan, stage, timed
        self._workers = {
            f"{pool_number}-{number}": _Worker(pool, [0.0] * pool.slots)
            for pool_number, pool in enumerate(load.pools)
            for number in range(pool.count)
        }
        self._unlabelled, self._last_call_end_s = load.images, 0.0
        self._event_numbers = count()
        self._events: list[tuple[float, int, PoolEvent]] = []  # a heap of (time, serial number, event)
        for worker in self._workers:
            self._send(0.0, WorkerJoined(worker, {"host": worker}))
        self._progress_at_s = _PROGRESS_S
        self._driver_since_s = time.process_time()

    # ---- worker_pool.WorkerPool ----

    def events(self, timeout_s: float) -> list[PoolEvent]:
        with self._outside_driver():
            if self._events[0][0] > self.now_s:
                self.now_s = min(self._events[0][0], self._progress_at_s, self.now_s + timeout_s)
            events: list[PoolEvent] = []
            while self._events and self._events[0][0] <= self.now_s:
                event = heapq.heappop(self._events)[2]
                events.append(event)
                if isinstance(event, TaskFinished):
                    self._unlabelled -= len(event.report.task)
                    self.labelled_s = self.now_s
            if self._progress_at_s <= self.now_s:
                self._progress_at_s = self.now_s + _PROGRESS_S
                events += [ProgressUpdate(name, self._progress(worker)) for name, worker in self._workers.items()]
            return events

    def assign(self, worker: str, task: Task, refs: Sequence[ImageRef]) -> None:
        with self._outside_driver():
            arrival_s, state = self.now_s + self._load.assign_s, self._workers[worker]
            unit_images = int(self._plan.starts[task.unit + 1] - self._plan.starts[task.unit])
            last_s = arrival_s
            work = self._load.seconds(task.unit, unit_images)[task.start : task.stop]
            for index, seconds in enumerate((work * state.pool.image_s).tolist(), task.start):
                begin_s = max(state.slots[0], arrival_s)
                heapq.heapreplace(state.slots, begin_s + seconds)
                state.pending.append((begin_s + seconds, begin_s, task.unit, index))
                last_s = max(last_s, begin_s + seconds)
            self.tasks += 1
            self.work += float(work.sum())
            done_s = last_s + self._load.stage_s + self._load.report_s
            self._send(done_s, TaskFinished(worker, TaskReport(task, (self._stage(task, refs),))))

    def replace(self, worker: str) -> None:
        raise AssertionError(f"the scheduler replaces worker {worker}, which works")

    def release(self, worker: str) -> None: ...

    def set_needed(self, workers: int) -> None: ...

    def call(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Run the function at once; in simulated time, calls run one after the other.

        When no image is left, the simulated time moves to the end of the last call.
        """
        with self._outside_driver():
            begin_s = time.process_time()
            future: Future[Any] = Future()
            future.set_result(function(*args))
            seconds = time.process_time() - begin_s
            self.merge_s += seconds
            self._last_call_end_s = max(self.now_s, self._last_call_end_s) + seconds
            if not self._unlabelled and self._timed:
                self.now_s = self._last_call_end_s
            return future

    def close(self) -> None:
        with self._outside_driver():
            pass

    # ---- measurements ----

    def tail_idle(self) -> float:
        """Return the idle share of the capacity, 0..1; see Outcome."""
        idle_images = sum(
            (self.labelled_s - free_s) / worker.pool.image_s
            for worker in self._workers.values()
            for free_s in worker.slots
        )
        return idle_images / self.labelled_s / sum(pool.images_per_s for pool in self._load.pools)

    @contextmanager
    def _outside_driver(self) -> Iterator[None]:
        """Count the CPU seconds since the last call as the driver's own; time inside the `with` is not counted."""
        spent_s = time.process_time() - self._driver_since_s
        self.driver_s += spent_s
        self.now_s += spent_s if self._timed else 0.0
        yield
        self._driver_since_s = time.process_time()

    def _send(self, at_s: float, event: PoolEvent) -> None:
        heapq.heappush(self._events, (at_s, next(self._event_numbers), event))

    def _progress(self, worker: _Worker) -> Progress:
        now_s = self.now_s
        pending = [image for image in worker.pending if image[0] > now_s]
        worker.finished += len(worker.pending) - len(pending)
        worker.pending = pending
        in_flight = [
            InFlight(unit, index, "infer", now_s - begin_s) for _, begin_s, unit, index in pending if begin_s <= now_s
        ]
        return Progress(worker.finished, tuple(in_flight))
