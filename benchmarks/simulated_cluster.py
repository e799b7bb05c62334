"""A simulation of a run: the cost of scheduling, in a simulated time that jumps from event to event.

Knows how long images take, and the messages between driver and workers. The event loop and the scheduler are those of
every run; so are merges and commits, if asked for. The driver's CPU seconds are real, and also pass in the simulated
time.
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

_PULSE_S, _PART_ROWS = 1.0, 16_384


@dataclass(frozen=True)
class Pool:
    """Equal workers. Each has `slots` images in flight; an image takes image_s seconds on average."""

    count: int
    image_s: float = 0.5
    slots: int = 4

    @property
    def images_per_s(self) -> float:
        """Return the images/s of all workers together."""
        return self.count * self.slots / self.image_s


@dataclass(frozen=True)
class Load:
    """The work, the workers, and the delays.

    An image's seconds are lognormal; `spread` is the standard deviation of their logarithm. A share `slow_share` of
    the images takes `slow_factor` times as long. assign_s, report_s: a message to a worker and back. stage_s: writing a
    staged file.
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

    ideal_s: duration if all workers were busy from start to end. labelled_s: time of the last labelled image.
    makespan_s: time of the last commit. tail_idle: share of the capacity until labelled_s that was idle because no
    task was left. tasks: number of units and pieces of units. driver_s: CPU seconds of event loop and scheduler.
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
        return self.ideal_s / self.makespan_s


def simulate(load: Load, root: str | None = None, stager: Stager | None = None, *, timed: bool = True) -> Outcome:
    """Simulate a run.

    root: where staged files of `stager` are merged and committed; None publishes nothing. timed: the driver's CPU
    seconds pass in the simulated time. Without `timed`, each simulation has the same outcome.
    """
    if root is not None:
        commit.create_tables(root, StorageOptions())
        return _simulate(load, root, stager, _Published, timed=timed)
    with TemporaryDirectory() as folder:  # for the event log
        return _simulate(load, folder, stager, _Unpublished, timed=timed)


def _simulate(load: Load, root: str, stager: Stager | None, kind: type[_Published], *, timed: bool) -> Outcome:
    store, run = Store(), Run(root, "simulated")
    chosen = config.validate(
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
    context = RunContext(chosen, StorageOptions(), store, LabelSetIdentity("", {}, ()), _Nobody())
    frozen = _plan(load)

    def stage(task: Task, refs: Sequence[ImageRef]) -> UnitReport:
        if stager is None:
            return UnitReport(task, staged_name(task), len(task), 0, 0, 0)
        return stager.stage(store, run.staged, task, refs)

    cluster = Cluster(load, frozen, stage, timed=timed)
    execution = kind(context, run, frozen, {}, frozen.tasks(), cluster, clock=lambda: cluster.now_s)
    execution.run()
    cluster.close()
    commit_s = max(0.0, execution.publish_s - cluster.merge_s)
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
        keys = [f"raw/2026/11/{i:010d}-a-name-of-common-length.jpg" for i in rows]
        columns = [keys, ["s3://bucket/" + key for key in keys], [f"{i * 2654435761:032x}" for i in rows]]
        return pa.Table.from_arrays([*map(pa.array, columns), pa.array([100_000] * len(keys))], schema=schema.PLAN)

    return Plan(cut(load.images, load.unit_images), lru_cache(3)(part), _PART_ROWS)


class _Nobody(ProgressListener):
    """A listener that ignores all events."""


class _Published(RunLoop):
    """The event loop of a run, measured. publish_s: CPU seconds of publishing."""

    publish_s = 0.0

    def _publish(self) -> None:
        began_s = time.process_time()
        super()._publish()
        self.publish_s += time.process_time() - began_s


class _Unpublished(_Published):
    """An event loop that discards the staged files instead of publishing."""

    def _publish(self) -> None:
        if self._settled() or self._staged_images >= self._context.config.publish.batch_images:
            self._staged, self._staged_images = {}, 0


@dataclass
class _Worker:
    """A simulated worker.

    slots: time when each slot is free. coming: end, begin, unit and index of each image that no progress update has
    reported as finished.
    """

    pool: Pool
    slots: list[float]
    coming: list[tuple[float, float, int, int]] = field(default_factory=list)
    finished: int = 0


class Cluster:
    """A worker pool (worker_pool.Workers) in simulated time. now_s: the time. stage: replaces labelling."""

    def __init__(
        self, load: Load, frozen: Plan, stage: Callable[[Task, Sequence[ImageRef]], UnitReport], *, timed: bool
    ) -> None:
        self.now_s = self.labelled_s = self.driver_s = self.merge_s = 0.0
        self.tasks, self.work = 0, 0.0
        self._load, self._plan, self._stage, self._timed = load, frozen, stage, timed
        self._workers = {
            f"{number}-{i}": _Worker(pool, [0.0] * pool.slots)
            for number, pool in enumerate(load.pools)
            for i in range(pool.count)
        }
        self._images_left, self._merged_at_s = load.images, 0.0
        self._numbers = count()
        self._coming: list[tuple[float, int, PoolEvent]] = []
        for worker in self._workers:
            self._send(0.0, WorkerJoined(worker, {"host": worker}))
        self._pulse_at_s = _PULSE_S
        self._left_s = time.process_time()

    # ---- worker_pool.Workers ----

    def events(self, timeout_s: float) -> list[PoolEvent]:
        with self._away():
            if self._coming[0][0] > self.now_s:
                self.now_s = min(self._coming[0][0], self._pulse_at_s, self.now_s + timeout_s)
            found: list[PoolEvent] = []
            while self._coming and self._coming[0][0] <= self.now_s:
                found.append(heapq.heappop(self._coming)[2])
                if isinstance(found[-1], TaskFinished):
                    self._images_left -= len(found[-1].report.task)
                    self.labelled_s = self.now_s
            if self._pulse_at_s <= self.now_s:
                self._pulse_at_s = self.now_s + _PULSE_S
                found += [ProgressUpdate(name, self._progress(worker)) for name, worker in self._workers.items()]
            return found

    def assign(self, worker: str, task: Task, refs: Sequence[ImageRef]) -> None:
        with self._away():
            at_s, state = self.now_s + self._load.assign_s, self._workers[worker]
            unit = int(self._plan.starts[task.unit + 1] - self._plan.starts[task.unit])
            last_s = at_s
            work = self._load.seconds(task.unit, unit)[task.start : task.stop]
            for index, seconds in enumerate((work * state.pool.image_s).tolist(), task.start):
                begin_s = max(state.slots[0], at_s)
                heapq.heapreplace(state.slots, begin_s + seconds)
                state.coming.append((begin_s + seconds, begin_s, task.unit, index))
                last_s = max(last_s, begin_s + seconds)
            self.tasks += 1
            self.work += float(work.sum())
            done_s = last_s + self._load.stage_s + self._load.report_s
            self._send(done_s, TaskFinished(worker, TaskReport(task, (self._stage(task, refs),))))

    def replace(self, worker: str) -> None:
        raise AssertionError(f"nothing is wrong with worker {worker}")

    def release(self, worker: str) -> None: ...

    def set_needed(self, workers: int) -> None: ...

    def call(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Run the function at once; in simulated time, calls run one after the other.

        When no image is left, the simulated time moves to the end of the last call.
        """
        with self._away():
            began_s = time.process_time()
            done: Future[Any] = Future()
            done.set_result(function(*args))
            seconds = time.process_time() - began_s
            self.merge_s += seconds
            self._merged_at_s = max(self.now_s, self._merged_at_s) + seconds
            if not self._images_left and self._timed:
                self.now_s = self._merged_at_s
            return done

    def close(self) -> None:
        with self._away():
            pass

    # ---- inside ----

    def tail_idle(self) -> float:
        """Return the idle share of the capacity, 0..1; see Outcome."""
        idle = sum((self.labelled_s - free_s) / w.pool.image_s for w in self._workers.values() for free_s in w.slots)
        return idle / self.labelled_s / sum(pool.images_per_s for pool in self._load.pools)

    @contextmanager
    def _away(self) -> Iterator[None]:
        """Count the CPU seconds since the last call as the driver's own; time inside the `with` is not counted."""
        spent_s = time.process_time() - self._left_s
        self.driver_s += spent_s
        self.now_s += spent_s if self._timed else 0.0
        yield
        self._left_s = time.process_time()

    def _send(self, at_s: float, event: PoolEvent) -> None:
        heapq.heappush(self._coming, (at_s, next(self._numbers), event))

    def _progress(self, worker: _Worker) -> Progress:
        left = [image for image in worker.coming if image[0] > self.now_s]
        worker.finished += len(worker.coming) - len(left)
        worker.coming = left
        now_s = self.now_s
        return Progress(
            worker.finished, tuple(InFlight(u, i, "infer", now_s - at_s) for _, at_s, u, i in left if at_s <= now_s)
        )
