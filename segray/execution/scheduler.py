"""The scheduler: a pure state machine that decides which worker labels which images, and when.

Knows tasks, workers, attempts, suspects and deadlines. Knows nothing of Ray, storage, images or clocks. The caller
gives every event to `Scheduler.handle` with its time, and carries out the returned actions. The same events give the
same actions, so a recorded run can be replayed (event_log.py).

The life of a task (images of a unit, see tasks.Task):

    waiting ──Assign──> running ──TaskFinished──> done
       ^                   │
       │                   ├─ WorkerLost, its process died: each image in flight becomes a suspect and is tried
       └───────────────────┤  alone; the rest goes back with attempt + 1
                           ├─ WorkerLost, its node died: the task goes back, and no image is blamed
                           └─ storage withheld some of its images: only these are tried again, last of all

    A suspect whose process died in `max_attempts` attempts ──Quarantine──> done, as a failed row.
    An image that storage withheld in `max_attempts` tries ──> left over: no row.
    An image that storage withheld alone, while it served others ──FailImage──> done, as a failed row.

A try of a withheld image counts in three cases. The worker found that storage serves other files at that moment.
Storage has served another image since it first withheld this one. An earlier run left the image over. In all other
cases storage as a whole is at fault.

The run halts when no image was labelled for `stall_timeout_s`, though tasks failed or workers were replaced meanwhile.
A fault that waiting does not repair, such as a full disk or refused access, halts the run after `max_attempts` tasks
in a row.

A task on its second attempt has its worker to itself, so a death has one possible cause. Every death raises an attempt
or splits a task, so the machine comes to an end. An image may take its node along. The `max_attempts`th death of a node
under the same task therefore counts as a death of the process.

Waiting tasks are cut to sizes that shrink near the end, by each worker's speed (chunk_sizing.py). A worker over its
memory limit finishes its tasks and is replaced. A worker whose node is being drained finishes its tasks and is
released.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from segray.execution.chunk_sizing import ChunkSizer, Throughput
from segray.execution.events import (
    Accept,
    Action,
    Assign,
    Event,
    FailImage,
    ProgressUpdate,
    Quarantine,
    ReleaseWorker,
    ReplaceWorker,
    TaskFailed,
    TaskFinished,
    Tick,
    WorkerDraining,
    WorkerJoined,
    WorkerLost,
)
from segray.execution.stall_watch import FailureKind, Halt, StallWatch
from segray.execution.task_queue import TaskQueue
from segray.execution.withheld_images import Position, WithheldImages
from segray.tasks import InFlight, Progress, Task, TaskReport, WithheldImage


@dataclass(frozen=True)
class Policy:
    """Limits of a run.

    max_attempts: tries of an image before it is quarantined or left over.
    image_timeout_s: longest time in seconds of an image in one stage.
    stall_timeout_s: longest time in seconds without progress of a busy worker, and without a labelled image while tasks
        fail.
    least_images: smallest number of images of a waiting task that is worth a task of its own.
    idle_s: seconds after which a worker with nothing to do is released.
    retry_s: seconds before an image that storage withheld is tried again, doubled for each further try.
    host_patience_s: seconds from an image's first try to its failure, if its host served files before.
    """

    max_attempts: int = 3
    image_timeout_s: float = 120.0
    stall_timeout_s: float = 600.0
    least_images: int = 4
    idle_s: float = 15.0
    retry_s: float = 5.0
    host_patience_s: float = 180.0


class DisplayNames:
    """Names of workers and images in messages.

    hosts: host by worker, for workers that joined with a host among their facts.
    """

    def __init__(self) -> None:
        self.hosts: dict[str, str] = {}

    def worker(self, worker: str) -> str:
        """Return the name of a worker, with its host if known."""
        return f"worker {worker} on {self.hosts[worker]}" if worker in self.hosts else f"worker {worker}"

    def image(self, unit: int, index: int) -> str:
        """Return the name of an image."""
        return f"image {index} of unit {unit}"


# Stages in which an image only waits, for storage or for other images.
_IDLE_STAGES = ("read", "wait")
_MAX_RETRY_S, _MAX_DOUBLINGS = 60.0, 8


@dataclass
class _Worker:
    """A worker that joined and is not lost.

    last_sign_s: time of the last progress or assignment.
    running: the present task, and the task queued behind it.
    progress: the last progress.
    draining: whether the worker's node is being drained.
    """

    last_sign_s: float
    throughput: Throughput
    running: list[Task] = field(default_factory=list)
    progress: Progress = field(default_factory=lambda: Progress(0))
    draining: bool = False

    @property
    def may_get_tasks(self) -> bool:
        """Return whether the worker may get another task."""
        return not self.draining and not self.progress.over_memory_limit

    @property
    def at_work(self) -> list[InFlight]:
        """Return the images that the worker computes on."""
        return [image for image in self.progress.in_flight if image.stage not in _IDLE_STAGES]

    def describe_activity(self, names: DisplayNames) -> str:
        """Return the oldest image in flight, for a message."""
        if self.progress.in_flight:
            return _describe_oldest(self.progress.in_flight, names)
        return f"no image of unit {self.running[0].unit} is in flight"


class _Workers(dict[str, _Worker]):
    """The workers that joined and are not lost, by name."""

    def running(self) -> Iterator[Task]:
        """Return the tasks that workers have."""
        return (task for worker in self.values() for task in worker.running)

    def take_back(self, name: str, task: Task, now_s: float) -> bool:
        """Take a task from its worker. Return whether the worker still had the task."""
        worker = self.get(name)
        if worker is None or task not in worker.running:
            return False
        worker.running.remove(task)
        worker.last_sign_s = now_s
        return True


class Scheduler:
    """The state machine. `handle` is the only method that changes it."""

    def __init__(
        self,
        tasks: Iterable[Task],
        policy: Policy,
        names: DisplayNames | None = None,
        withheld_before: Iterable[tuple[int, int]] = (),
    ) -> None:
        """Begin with all tasks waiting.

        Args:
            tasks: the tasks of the run.
            policy: limits of the run.
            names: names of workers and images in messages.
            withheld_before: unit and index of images that storage withheld to the end of an earlier run.
        """
        self._policy, self._names = policy, names or DisplayNames()
        self._queue = TaskQueue(tasks)
        self._withheld = WithheldImages(policy.max_attempts, policy.host_patience_s, withheld_before)
        self._stall_watch = StallWatch(policy.max_attempts, policy.stall_timeout_s)
        self._workers = _Workers()
        self._node_deaths: Counter[Task] = Counter()
        self.halted: Halt | None = None
        self.images_total = self.images_waiting
        self.images_done = 0

    # ---- properties of the state ----

    @property
    def complete(self) -> bool:
        """Return whether every image is labelled or quarantined."""
        return self.images_done == self.images_total

    @property
    def images_waiting(self) -> int:
        """Return the number of images that no worker has."""
        return self._queue.images

    @property
    def left_over(self) -> Mapping[Position, str]:
        """Return the last error of each image that is left over, by unit and index."""
        return self._withheld.left_over

    @property
    def settled(self) -> bool:
        """Return whether every image is labelled, quarantined or left over."""
        return self.images_done + len(self.left_over) == self.images_total

    @property
    def workers_of_use(self) -> int:
        """Return how many workers the run can keep busy; 0 when the run is over."""
        if self.settled or self.halted:
            return 0
        busy = sum(bool(worker.running) and not worker.draining for worker in self._workers.values())
        return busy + math.ceil(self.images_waiting / self._policy.least_images)

    def state(self) -> dict[str, object]:
        """Return the state as plain values, for comparison with that of a replay."""
        return {
            "done": self.images_done,
            **self._queue.state(),
            "left_over": sorted(map(list, self.left_over)),
            "running": {name: [task.plain() for task in worker.running] for name, worker in self._workers.items()},
            "halted": None if self.halted is None else [self.halted.what, self.halted.found],
        }

    def validate(self) -> None:
        """Raise AssertionError unless the state is consistent. For tests: the check walks over every image."""
        self._queue.validate()
        pending = [(task.unit, index) for task in (*self._queue, *self._workers.running()) for index in task.indices]
        assert len(set(pending)) == len(pending), "an image is in two tasks"
        assert not set(pending) & self.left_over.keys(), "an image that is left over is in a task"
        assert len(pending) + len(self.left_over) + self.images_done == self.images_total, "an image is lost or doubled"
        assert set(self._withheld.positions) <= set(pending), "a withheld image is done, yet remembered"
        for name, worker in self._workers.items():
            assert len(worker.running) <= 2, f"worker {name} has more than one task behind its first"
            isolated = any(task.attempt > 1 for task in worker.running)
            assert not isolated or len(worker.running) == 1, f"worker {name} runs a later attempt beside another task"
            assert worker.throughput.pending >= 0

    # ---- events ----

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """Change the state by an event; return the actions to carry out, in order.

        now_s: time of the event in seconds, not before that of the last event.
        """
        match event:
            case WorkerJoined(name, facts):
                if "host" in facts:
                    self._names.hosts[name] = facts["host"]
                self._workers[name] = _Worker(now_s, Throughput(now_s))
                actions: list[Action] = []
            case TaskFinished(name, report):
                if not self._workers.take_back(name, report.task, now_s):
                    return []
                actions = [Accept(name, report), *self._on_finished(name, report, now_s)]
            case TaskFailed(name, task, reason, lasting):
                if not self._workers.take_back(name, task, now_s):
                    return []
                self._workers[name].throughput.take_back(len(task))
                self._withhold(name, task, [WithheldImage(index, reason) for index in task.indices], now_s)
                if lasting:
                    self._stall_watch.failed("lasting", reason)
                    self.halted = self.halted or self._stall_watch.lasting_fault()
                actions = []
            case WorkerLost(name, reason, blame_images, in_flight):
                actions = self._on_lost(name, reason, blame_images=blame_images, in_flight=in_flight)
            case WorkerDraining(name):
                if name in self._workers:
                    self._workers[name].draining = True
                return []
            case ProgressUpdate(name, progress):
                self._on_progress(name, progress, now_s)
                return []
            case Tick():
                return self._on_tick(now_s)
        return actions + self._assign(now_s)

    def _on_finished(self, name: str, report: TaskReport, now_s: float) -> list[Action]:
        worker, without_row = self._workers[name], len(report.withheld) + len(report.untried)
        worker.throughput.take_back(without_row)
        worker.throughput.update(worker.throughput.assigned - sum(map(len, worker.running)), now_s)
        if staged := len(report.task) - without_row:
            self.images_done += staged
            self._stall_watch.succeeded(now_s)
        unit, withheld = report.task.unit, {image.index for image in report.withheld}
        self._withheld.forget(unit, {*report.task.indices}.difference(withheld, report.untried))
        actions = self._withhold(name, report.task, report.withheld, now_s)
        if report.untried:
            self._withheld.add_untried(unit, report.untried, report.withheld[-1].reason, now_s)
            self._retry(report.task, report.untried, self._policy.retry_s, now_s)
        self.halted = self.halted or self._stall_watch.refusal()
        return actions

    def _on_progress(self, name: str, progress: Progress, now_s: float) -> None:
        """Record a worker's progress. An update without a change does not show that the worker lives."""
        worker = self._workers.get(name)
        if worker is None:
            return
        finished = progress.finished - worker.progress.finished
        if finished or _image_stages(progress) != _image_stages(worker.progress):
            worker.last_sign_s = now_s
        if finished > 0:
            self._stall_watch.succeeded(now_s)
        worker.throughput.in_flight = max(worker.throughput.in_flight, len(progress.in_flight))
        if worker.throughput.pending:
            worker.throughput.update(min(worker.throughput.finished + finished, worker.throughput.assigned), now_s)
        worker.progress = progress

    def _on_lost(
        self, name: str, reason: str, *, blame_images: bool, in_flight: Iterable[InFlight] | None
    ) -> list[Action]:
        worker = self._workers.pop(name, None)
        if worker is None:
            return []
        reason = f"{self._names.worker(name)}: {reason}"
        if any(len(task) > 1 or task.attempt == 1 for task in worker.running):  # The death of a suspect is expected.
            self._stall_watch.failed("died", reason)
        images = worker.progress.in_flight if in_flight is None else in_flight
        at_work = {(image.unit, image.index) for image in images if image.stage not in _IDLE_STAGES}
        actions: list[Action] = []
        for task in worker.running:
            if not (blame_images or worker.draining):
                self._node_deaths[task] += 1
            if not blame_images and self._node_deaths[task] < self._policy.max_attempts:
                self._queue.append(task)
            elif len(task) == 1 and task.attempt >= self._policy.max_attempts:
                self.images_done += 1
                self._withheld.forget(task.unit, task.indices)
                actions.append(Quarantine(task, reason))
            else:
                self._queue.isolate(task, [index for index in task.indices if (task.unit, index) in at_work])
        return actions

    def _on_tick(self, now_s: float) -> list[Action]:
        self._stall_watch.ticked(now_s, busy=any(self._workers.running()))
        actions: list[Action] = []
        for name, worker in list(self._workers.items()):
            actions += self._check_worker(name, worker, now_s)
        if self._queue:
            self.halted = self.halted or self._stall_watch.missing_workers(now_s)
        if self.halted is None and (stall := self._stall_watch.stall(now_s)) is not None:
            self.halted = None if self._give_up_withheld() else stall
        # An idle worker gets no task while faster workers would finish sooner. A faster worker may become slow.
        has_idle = any(not worker.running for worker in self._workers.values())
        if has_idle or actions or not self._workers:
            actions += self._assign(now_s)
        return actions

    def _check_worker(self, name: str, worker: _Worker, now_s: float) -> list[Action]:
        """Remove a worker that has no task, holds too much memory, shows no progress or is stuck in an image."""
        if not worker.running:
            if (action := self._action_for_idle(name, worker, now_s)) is None:
                return []
            del self._workers[name]
            return [action]
        overdue = [image for image in worker.at_work if image.seconds > self._policy.image_timeout_s]
        silent_s = now_s - worker.last_sign_s
        if overdue:
            reason = _describe_oldest(overdue, self._names)
            lost = self._on_lost(name, reason, blame_images=True, in_flight=overdue)
        elif silent_s > self._policy.stall_timeout_s:
            reason = f"no progress for {silent_s:.0f} s; {worker.describe_activity(self._names)}"
            if worker.at_work:
                lost = self._on_lost(name, reason, blame_images=True, in_flight=None)
            else:
                self._on_stuck(name, reason, now_s)
                lost = []
        else:
            return []
        return [ReplaceWorker(name, reason), *lost]

    def _action_for_idle(self, name: str, worker: _Worker, now_s: float) -> ReleaseWorker | ReplaceWorker | None:
        """Return the action that ends a worker without a task; None to keep the worker."""
        if worker.draining:
            return ReleaseWorker(name, "its node is being drained")
        if not self._queue and now_s - worker.last_sign_s > self._policy.idle_s:
            return ReleaseWorker(name, "nothing is left for it to do")
        if worker.progress.over_memory_limit:
            return ReplaceWorker(name, f"it holds {worker.progress.rss_bytes / 2**20:.0f} MiB of memory")
        return None

    def _on_stuck(self, name: str, reason: str, now_s: float) -> None:
        """Take back the tasks of a worker that waits for storage, or has no image in flight."""
        worker = self._workers.pop(name)
        reading = {(image.unit, image.index) for image in worker.progress.in_flight}
        self._stall_watch.failed("stuck", f"{self._names.worker(name)}, unit {worker.running[0].unit}: {reason}")
        for task in reversed(worker.running):
            not_reading = [index for index in task.indices if reading and (task.unit, index) not in reading]
            stuck = sorted({*task.indices}.difference(not_reading))
            self._withhold(name, task, [WithheldImage(index, reason) for index in stuck], now_s, count=False)
            if not_reading:
                self._queue.append_first(Task.of(task.unit, not_reading, task.attempt))

    # ---- failures ----

    def _give_up_withheld(self) -> bool:
        """Leave over all images that are not labelled, if storage withholds all of them.

        Return whether the images are left over.
        """
        positions = [(task.unit, index) for task in (*self._queue, *self._workers.running()) for index in task.indices]
        if not self.images_done or not all(position in self._withheld for position in positions):
            return False
        self._withheld.leave_over(positions)
        self._queue.clear()
        for worker in self._workers.values():
            worker.running.clear()
        return True

    def _withhold(
        self, name: str, task: Task, images: Sequence[WithheldImage], now_s: float, *, count: bool = True
    ) -> list[Action]:
        """Queue the images that storage withheld for another try; after the last try leave them over or let them fail.

        count: whether to report the failure to the stall watch. False if the caller did.
        """
        if not images:
            return []
        blames_storage = [image for image in images if not image.row_error]
        if count and blames_storage:
            kind: FailureKind = "refused" if all(image.refused for image in blames_storage) else "withheld"
            reason = f"{self._names.worker(name)}, unit {task.unit}: {blames_storage[0].reason}"
            self._stall_watch.failed(kind, reason)
        indices, tries, failed = self._withheld.withhold(task.unit, images, now_s, self._stall_watch.has_served_since)
        if indices:
            doublings = min(max(0, tries - 1), _MAX_DOUBLINGS)
            self._retry(task, indices, self._policy.retry_s * 2**doublings, now_s)
        self.images_done += len(failed)
        return [
            FailImage(Task.of(task.unit, [image.index], task.attempt), image.row_error, image.reason)
            for image in failed
        ]

    def _retry(self, task: Task, indices: Sequence[int], delay_s: float, now_s: float) -> None:
        """Queue images of a task for a later try."""
        at_s = now_s + min(delay_s, _MAX_RETRY_S, self._policy.stall_timeout_s / 4)
        self._queue.retry(Task.of(task.unit, indices, task.attempt), at_s)

    # ---- queue and assignment ----

    def _assign(self, now_s: float) -> list[Action]:
        """Give each idle worker a task, and queue a second task behind the first while enough images wait."""
        if self.settled or self.halted:
            return []
        throughputs = {name: worker.throughput for name, worker in self._workers.items() if worker.may_get_tasks}
        sizer = ChunkSizer(throughputs, self.images_waiting, self._policy.least_images)
        actions: list[Action] = []
        for depth in (0, 1):
            for name, worker in self._workers.items():
                if len(worker.running) != depth or not worker.may_get_tasks:
                    continue
                if (task := self._queue.next(now_s)) is None:
                    continue
                # A later attempt is not cut, and has its worker to itself.
                isolated = task.attempt > 1
                if depth and (isolated or worker.running[0].attempt > 1):
                    continue
                task_images = len(task) if isolated else sizer.images_for(name, len(task))
                if not task_images:
                    continue
                task = self._queue.take(task_images)
                if not worker.running:
                    worker.last_sign_s = now_s
                worker.running.append(task)
                worker.throughput.assign(len(task), now_s)
                sizer.waiting -= len(task)
                self._stall_watch.assigned(now_s)
                actions.append(Assign(name, task))
        return actions


def _describe_oldest(images: Sequence[InFlight], names: DisplayNames) -> str:
    """Return the stage of the oldest image, and the number of the others."""
    oldest = max(images, key=lambda image: image.seconds)
    text = f"{names.image(oldest.unit, oldest.index)} has been in {oldest.stage} for {oldest.seconds:.0f} s"
    return f"{text} (and {len(images) - 1} more)" if len(images) > 1 else text


def _image_stages(progress: Progress) -> set[tuple[int, int, str]]:
    return {(image.unit, image.index, image.stage) for image in progress.in_flight}
