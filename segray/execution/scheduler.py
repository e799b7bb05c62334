"""The scheduler: a pure state machine that decides which worker labels what, and when.

Knows tasks, workers, attempts, suspects and deadlines. Knows nothing of Ray, storage, images or clocks. The caller
gives every event to `Scheduler.handle` with its time, and carries out the actions that come back. The same events give
the same actions, so a recorded run can be replayed (event_log.py).

The life of a task (images of a unit, see tasks.Task):

    waiting ──Assign──> running ──TaskFinished──> done
       ^                   │
       │                   ├─ WorkerLost, its process died: each image in flight becomes a suspect and is tried
       └───────────────────┤  alone; the rest goes back with attempt + 1
                           ├─ WorkerLost, its node died: the task goes back, and no image is blamed
                           └─ storage withheld some of its images: only these are tried again, last of all

    A suspect whose process died in `max_attempts` attempts ──Quarantine──> done, as a failed row.
    An image that storage withheld in `max_attempts` tries ──> left over: no row.

A try of a withheld image counts in two cases. Storage has served another image since it first withheld this one, or an
earlier run left the image over. In all other cases storage as a whole is at fault.

The run halts when no image was labelled for `stall_timeout_s`, though tasks failed or workers were replaced meanwhile.
A fault that waiting does not repair, such as a full disk, halts the run after `max_attempts` tasks in a row.

A task on its second attempt has its worker to itself, so a death has one possible cause. Every death raises an attempt
or splits a task, so the machine comes to an end. An image may take its node along. The `max_attempts`th death of a node
under the same task therefore counts as a death of the process.

Waiting tasks are cut to sizes that shrink near the end, by each worker's speed (chunk_sizing.py). A worker over its
memory limit finishes its tasks and is replaced. A worker whose node is being drained finishes its tasks and is
released.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from segray.execution.chunk_sizing import ChunkSizer, Throughput
from segray.execution.events import (
    Accept,
    Action,
    Assign,
    Event,
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
from segray.tasks import InFlight, Progress, Task, TaskReport, WithheldImage


@dataclass(frozen=True)
class Policy:
    """Limits of a run.

    max_attempts: tries of an image before it is quarantined or left over.
    image_timeout_s: longest time in seconds of an image in one stage.
    stall_timeout_s: longest time in seconds without a sign of life of a busy worker, and without a labelled image while
        tasks fail.
    least_images: smallest number of images of a waiting task that is worth a task of its own.
    idle_s: seconds after which a worker with nothing to do is released.
    retry_s: seconds before an image that storage withheld is tried again, doubled for each further try.
    """

    max_attempts: int = 3
    image_timeout_s: float = 120.0
    stall_timeout_s: float = 600.0
    least_images: int = 4
    idle_s: float = 15.0
    retry_s: float = 5.0


@dataclass(frozen=True)
class Halt:
    """The reason why nothing more is assigned: the kind of fault, and what was found."""

    what: str
    found: str


class DisplayNames:
    """Names of workers and images in messages.

    hosts: host by worker, of the workers that joined and told it.
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
_LONGEST_RETRY_S, _MOST_DOUBLINGS = 60.0, 8


@dataclass
class _Worker:
    last_sign_s: float
    pace: Throughput
    running: list[Task] = field(default_factory=list)
    progress: Progress = field(default_factory=lambda: Progress(0))
    draining: bool = False

    @property
    def takes_more(self) -> bool:
        return not self.draining and not self.progress.over_memory_limit

    @property
    def at_work(self) -> list[InFlight]:
        """Return the images that the worker computes on."""
        return [image for image in self.progress.in_flight if image.stage not in _IDLE_STAGES]


@dataclass
class _Withheld:
    """An image that storage withheld.

    since_s: time of the first try.
    reason: error of the last try.
    tries: number of tries that count.
    """

    since_s: float
    reason: str = ""
    tries: int = 0


@dataclass
class _SinceSuccess:
    """The failures since an image was last labelled.

    at_s: time of that success.
    first: whether no image was labelled yet; `at_s` is then the time of the first assignment.
    counts: failures by kind.
    last: reason of the last failure.
    """

    at_s: float
    first: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    last: str = ""

    def add(self, kind: str, reason: str) -> None:
        self.counts[kind] += 1
        self.last = reason


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

        tasks: the tasks of the run.
        policy: limits of the run.
        names: names of workers and images in messages.
        withheld_before: unit and index of images that storage withheld from an earlier run to the end.
        """
        self._policy, self._names = policy, names or DisplayNames()
        self._waiting = deque(tasks)
        self._suspects: deque[Task] = deque()
        self._retries: list[tuple[float, int, Task]] = []  # a heap by the earliest time of the next try
        self._retries_made = 0
        self._withheld = {at: _Withheld(-math.inf) for at in withheld_before}
        self._left_over: dict[tuple[int, int], str] = {}
        self._workers: dict[str, _Worker] = {}
        self._node_deaths: Counter[Task] = Counter()
        self._last_busy_s: float | None = None
        self._since_success: _SinceSuccess | None = None  # None before the first task is assigned
        self.halted: Halt | None = None
        self.images_total = sum(len(task) for task in self._waiting)
        self.images_done = 0

    # ---- what the caller may read ----

    @property
    def complete(self) -> bool:
        """Return whether every image is labelled or quarantined."""
        return self.images_done == self.images_total

    @property
    def images_waiting(self) -> int:
        """Return the number of images that no worker has."""
        return sum(len(task) for task in self._queued())

    @property
    def left_over(self) -> Mapping[tuple[int, int], str]:
        """Return the images that storage withheld in every try that counts: the last error by unit and index."""
        return self._left_over

    @property
    def images_left_over(self) -> int:
        """Return the number of images that are left over."""
        return len(self._left_over)

    @property
    def settled(self) -> bool:
        """Return whether every image is labelled, quarantined or left over."""
        return self.images_done + self.images_left_over == self.images_total

    @property
    def workers_of_use(self) -> int:
        """Return how many workers have something to do, or would have if there were more; 0 when the run is over."""
        if self.settled or self.halted:
            return 0
        busy = [worker for worker in self._workers.values() if worker.running]
        unassigned = self._images_to_do - self._images_running
        return sum(not worker.draining for worker in busy) + math.ceil(unassigned / self._policy.least_images)

    def state(self) -> dict[str, object]:
        """Return the state as plain values, for comparison with that of a replay."""
        return {
            "done": self.images_done,
            "waiting": [[task.unit, *task.indices] for task in self._waiting],
            "suspects": [[task.unit, *task.indices, task.attempt] for task in self._suspects],
            "retries": [[at_s, task.unit, *task.indices] for at_s, _, task in sorted(self._retries)],
            "left_over": sorted(map(list, self._left_over)),
            "running": {
                name: [[task.unit, *task.indices] for task in worker.running] for name, worker in self._workers.items()
            },
            "halted": None if self.halted is None else [self.halted.what, self.halted.found],
        }

    def validate(self) -> None:
        """Raise AssertionError unless the state is consistent. For tests: the check walks over every image."""
        running = [task for worker in self._workers.values() for task in worker.running]
        held = [(task.unit, index) for task in (*self._queued(), *running) for index in task.indices]
        assert len(set(held)) == len(held), "an image is in two tasks"
        assert not set(held) & set(self._left_over), "an image that is left over is in a task"
        assert len(held) + self.images_left_over + self.images_done == self.images_total, "an image is lost or doubled"
        assert all(len(task) == 1 and task.attempt > 1 for task in self._suspects), "a suspect is not tried alone"
        assert self._withheld.keys() <= set(held), "a withheld image is done, yet remembered"
        for name, worker in self._workers.items():
            assert len(worker.running) <= 2, f"worker {name} has more than one task behind its first"
            isolated = any(task.attempt > 1 for task in worker.running)
            assert not isolated or len(worker.running) == 1, f"worker {name} runs a later attempt beside another task"
            assert worker.pace.left >= 0

    # ---- events ----

    def handle(self, event: Event, now_s: float) -> list[Action]:
        """Change the state by an event; return the actions to carry out, in order.

        now_s: time of the event in seconds, never less than before.
        """
        match event:
            case WorkerJoined(name, facts):
                if "host" in facts:
                    self._names.hosts[name] = facts["host"]
                self._workers[name] = _Worker(now_s, Throughput(now_s))
                actions: list[Action] = []
            case TaskFinished(name, report):
                if not self._give_back(name, report.task, now_s):
                    return []
                self._on_finished(name, report, now_s)
                actions = [Accept(name, report)]
            case TaskFailed(name, task, reason, lasting):
                if not self._give_back(name, task, now_s):
                    return []
                self._workers[name].pace.returns(len(task))
                self._withhold(name, task, [WithheldImage(index, reason) for index in task.indices], now_s)
                if lasting:
                    self._on_lasting_failure(reason)
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

    def _on_finished(self, name: str, report: TaskReport, now_s: float) -> None:
        worker, missing = self._workers[name], len(report.withheld) + len(report.untried)
        worker.pace.returns(missing)
        worker.pace.has_done(worker.pace.given - sum(map(len, worker.running)), now_s)
        if staged := len(report.task) - missing:
            self.images_done += staged
            self._on_success(now_s)
        if self._withheld:
            for index in {*report.task.indices}.difference(report.untried, (image.index for image in report.withheld)):
                self._withheld.pop((report.task.unit, index), None)
        self._withhold(name, report.task, report.withheld, now_s)
        if report.untried:
            for index in report.untried:
                self._withheld.setdefault((report.task.unit, index), _Withheld(now_s, report.withheld[-1].reason))
            self._retry(report.task, report.untried, self._policy.retry_s, now_s)

    def _on_success(self, now_s: float) -> None:
        self._since_success = _SinceSuccess(now_s)

    def _on_progress(self, name: str, progress: Progress, now_s: float) -> None:
        """Take over a worker's progress. An update that shows no change is not a sign of life."""
        worker = self._workers.get(name)
        if worker is None:
            return
        finished = progress.finished - worker.progress.finished
        if finished or _stages(progress) != _stages(worker.progress):
            worker.last_sign_s = now_s
        if finished > 0:
            self._on_success(now_s)
        worker.pace.in_flight = max(worker.pace.in_flight, len(progress.in_flight))
        if worker.pace.left:
            worker.pace.has_done(min(worker.pace.done + finished, worker.pace.given), now_s)
        worker.progress = progress

    def _on_lost(
        self, name: str, reason: str, *, blame_images: bool, in_flight: Iterable[InFlight] | None
    ) -> list[Action]:
        worker = self._workers.pop(name, None)
        if worker is None:
            return []
        reason = f"{self._names.worker(name)}: {reason}"
        if any(len(task) > 1 or task.attempt == 1 for task in worker.running):  # The death of a suspect is expected.
            self._failure("died", reason)
        images = worker.progress.in_flight if in_flight is None else in_flight
        at_work = {(image.unit, image.index) for image in images if image.stage not in _IDLE_STAGES}
        actions: list[Action] = []
        for task in worker.running:
            if not blame_images and (worker.draining or self._is_chance(task)):
                self._waiting.append(task)
            elif len(task) == 1 and task.attempt >= self._policy.max_attempts:
                self.images_done += 1
                self._withheld.pop((task.unit, task.start), None)
                actions.append(Quarantine(task, reason))
            else:
                self._isolate(task, [index for index in task.indices if (task.unit, index) in at_work])
        return actions

    def _on_tick(self, now_s: float) -> list[Action]:
        if self._last_busy_s is None or any(worker.running for worker in self._workers.values()):
            self._last_busy_s = now_s
        actions: list[Action] = []
        for name, worker in list(self._workers.items()):
            actions += self._check_worker(name, worker, now_s)
        self._check_stalled(self._last_busy_s, now_s)
        # A worker waits while a faster one does the rest. That may change when the faster one becomes slow.
        idle = any(not worker.running for worker in self._workers.values())
        return actions + self._assign(now_s) if idle or actions or not self._workers else actions

    def _check_worker(self, name: str, worker: _Worker, now_s: float) -> list[Action]:
        """Remove a worker that has nothing to do, holds too much memory, is silent or is stuck in an image."""
        if not worker.running:
            if worker.draining:
                return self._remove(ReleaseWorker(name, "its node is being drained"))
            if not any(self._queued()) and now_s - worker.last_sign_s > self._policy.idle_s:
                return self._remove(ReleaseWorker(name, "nothing is left for it to do"))
            if worker.progress.over_memory_limit:
                return self._remove(ReplaceWorker(name, f"it holds {worker.progress.rss_bytes / 2**20:.0f} MiB"))
            return []
        late = [image for image in worker.at_work if image.seconds > self._policy.image_timeout_s]
        silent_s = now_s - worker.last_sign_s
        if late:
            reason = self._where(late)
            lost = self._on_lost(name, reason, blame_images=True, in_flight=late)
        elif silent_s > self._policy.stall_timeout_s:
            reason = f"no progress for {silent_s:.0f} s; {self._where_is(worker)}"
            if worker.at_work:
                lost = self._on_lost(name, reason, blame_images=True, in_flight=None)
            else:
                self._on_stuck(name, reason, now_s)
                lost = []
        else:
            return []
        return [ReplaceWorker(name, reason), *lost]

    def _remove(self, action: ReleaseWorker | ReplaceWorker) -> list[Action]:
        del self._workers[action.worker]
        return [action]

    def _on_stuck(self, name: str, reason: str, now_s: float) -> None:
        """Take back the tasks of a worker that waits for storage, or has no image in flight."""
        worker = self._workers.pop(name)
        reading = {(image.unit, image.index) for image in worker.progress.in_flight}
        self._failure("stuck", f"{self._names.worker(name)}, unit {worker.running[0].unit}: {reason}")
        for task in reversed(worker.running):
            stuck = [index for index in task.indices if not reading or (task.unit, index) in reading]
            self._withhold(name, task, [WithheldImage(index, reason) for index in stuck], now_s, count=False)
            if rest := [index for index in task.indices if index not in stuck]:
                self._waiting.appendleft(Task.of(task.unit, rest, task.attempt))

    # ---- failures ----

    def _failure(self, kind: str, reason: str) -> None:
        if self._since_success is not None:
            self._since_success.add(kind, reason)

    def _on_lasting_failure(self, reason: str) -> None:
        """Halt when a lasting fault comes `max_attempts` times, with no image labelled between."""
        self._failure("lasting", reason)
        if self._since_success is not None and self._since_success.counts["lasting"] >= self._policy.max_attempts:
            self._halt("storage failed again and again", reason)

    def _check_stalled(self, last_busy_s: float, now_s: float) -> None:
        """Halt when time passes and nothing gets done."""
        limit_s, since = self._policy.stall_timeout_s, self._since_success
        if any(self._queued()) and now_s - last_busy_s > limit_s:
            self._halt("no worker comes", f"no worker for {now_s - last_busy_s:.0f} s")
        if since is None or now_s - since.at_s <= limit_s:
            return
        # One image may kill several workers before its quarantine, and a new worker may end a hang.
        least = {"withheld": 1, "stuck": self._policy.max_attempts, "died": 2 * self._policy.max_attempts + 1}
        if any(since.counts[kind] >= count for kind, count in least.items()):
            if self._give_up_withheld():
                return
            count = since.counts.total()
            found = (
                f"no image for {now_s - since.at_s:.0f} s, while {count} {_plural(count, 'task')} failed, hung or died"
            )
            self._halt("nothing gets done", f"{found}; the last: {since.last}")

    def _give_up_withheld(self) -> bool:
        """Leave over everything that is not labelled, if storage withholds all of it.

        Return whether storage does.
        """
        running = [task for worker in self._workers.values() for task in worker.running]
        images = [(task.unit, index) for task in (*self._queued(), *running) for index in task.indices]
        if not self.images_done or any(at not in self._withheld for at in images):
            return False
        self._left_over |= {at: self._withheld.pop(at).reason for at in images}
        self._waiting.clear()
        self._suspects.clear()
        self._retries.clear()
        for worker in self._workers.values():
            worker.running.clear()
        return True

    def _halt(self, what: str, found: str) -> None:
        self.halted = self.halted or Halt(what, found)

    def _withhold(
        self, name: str, task: Task, images: Sequence[WithheldImage], now_s: float, *, count: bool = True
    ) -> None:
        """Queue the images that storage withheld for another try, or leave them over after the last one.

        count: whether to count the failure against the run's progress. False if the caller did.
        """
        if not images:
            return
        if count:
            self._failure("withheld", f"{self._names.worker(name)}, unit {task.unit}: {images[0].reason}")
        again, tries = [], 0
        for image in images:
            at = (task.unit, image.index)
            state = self._withheld.setdefault(at, _Withheld(now_s))
            state.reason = image.reason
            state.tries += self._has_served_since(state.since_s)
            if state.tries >= self._policy.max_attempts:
                del self._withheld[at]
                self._left_over[at] = image.reason
            else:
                again.append(image.index)
                tries = max(tries, state.tries)
        if again:
            self._retry(task, again, self._policy.retry_s * 2 ** min(max(0, tries - 1), _MOST_DOUBLINGS), now_s)

    def _has_served_since(self, since_s: float) -> bool:
        if since_s == -math.inf:
            return True
        last = self._since_success
        return last is not None and not last.first and last.at_s >= since_s

    def _retry(self, task: Task, indices: Sequence[int], delay_s: float, now_s: float) -> None:
        """Queue images of a task for a later try."""
        self._retries_made += 1
        at_s = now_s + min(delay_s, _LONGEST_RETRY_S, self._policy.stall_timeout_s / 4)
        heapq.heappush(self._retries, (at_s, self._retries_made, Task.of(task.unit, indices, task.attempt)))

    def _is_chance(self, task: Task) -> bool:
        """Count the death of a task's node. Return whether the death is put down to chance."""
        self._node_deaths[task] += 1
        return self._node_deaths[task] < self._policy.max_attempts

    def _isolate(self, task: Task, suspects: Sequence[int]) -> None:
        """Queue a task again whose process died: each suspect alone, the rest together."""
        if len(task) == 1:
            self._waiting.appendleft(replace(task, attempt=task.attempt + 1))
            return
        parts = [[index for index in task.indices if index not in set(suspects)]]
        if not suspects and task.attempt > 1:
            # The task had the worker to itself and the log names no image: halve the task.
            parts = [list(task.indices[: len(task) // 2]), list(task.indices[len(task) // 2 :])]
        for indices in filter(None, parts):
            if len(indices) == 1:
                suspects = sorted({*suspects, *indices})
            else:
                self._waiting.append(Task.of(task.unit, indices, task.attempt + 1))
        # Only an image's own deaths count against it, not those of its task.
        self._suspects.extend(Task.of(task.unit, [index], 2) for index in suspects)

    def _where_is(self, worker: _Worker) -> str:
        if worker.progress.in_flight:
            return self._where(worker.progress.in_flight)
        return f"unit {worker.running[0].unit} is with it, none of its images in flight"

    def _where(self, images: Sequence[InFlight]) -> str:
        oldest = max(images, key=lambda image: image.seconds)
        where = f"{self._names.image(oldest.unit, oldest.index)} has been in {oldest.stage} for {oldest.seconds:.0f} s"
        return f"{where} (and {len(images) - 1} more)" if len(images) > 1 else where

    # ---- queue and assignment ----

    @property
    def _images_running(self) -> int:
        return sum(len(task) for worker in self._workers.values() for task in worker.running)

    @property
    def _images_to_do(self) -> int:
        return self.images_total - self.images_done - self.images_left_over

    def _queued(self) -> Iterable[Task]:
        yield from self._waiting
        yield from self._suspects
        yield from (task for *_, task in self._retries)

    def _give_back(self, name: str, task: Task, now_s: float) -> bool:
        """Take a task from its worker. Return whether the worker still had it."""
        worker = self._workers.get(name)
        if worker is None or task not in worker.running:
            return False
        worker.running.remove(task)
        worker.last_sign_s = now_s
        return True

    def _next(self, now_s: float) -> Task | None:
        """Return the next task: a waiting one, else a suspect, else withheld images whose delay is over."""
        for queue in (self._waiting, self._suspects):
            if queue:
                return queue[0]
        if self._retries and self._retries[0][0] <= now_s:
            return self._retries[0][2]
        return None

    def _take(self, task: Task, most: int) -> Task:
        """Take the next task out of its queue, or only its first `most` images; the rest stays first."""
        rest = Task.of(task.unit, task.indices[most:], task.attempt) if most < len(task) else None
        for queue in (self._waiting, self._suspects):
            if queue:
                queue.popleft()
                if rest:
                    queue.appendleft(rest)
                break
        else:
            at_s, number, _ = heapq.heappop(self._retries)
            if rest:
                heapq.heappush(self._retries, (at_s, number, rest))
        return Task.of(task.unit, task.indices[:most], task.attempt)

    def _assign(self, now_s: float) -> list[Action]:
        """Give each idle worker a task, and put a second behind the first where enough is left for the others."""
        if self.settled or self.halted:
            return []
        sizes = self._shares()
        actions: list[Action] = []
        for depth in (0, 1):
            for name, worker in self._workers.items():
                if len(worker.running) != depth or not worker.takes_more or (task := self._next(now_s)) is None:
                    continue
                # A later attempt goes uncut to a worker of its own.
                isolated = task.attempt > 1
                if depth and (isolated or worker.running[0].attempt > 1):
                    continue
                most = len(task) if isolated else sizes.of(name, len(task))
                if not most:
                    continue
                task = self._take(task, most)
                if not worker.running:
                    worker.last_sign_s = now_s
                worker.running.append(task)
                worker.pace.takes(len(task), now_s)
                sizes.waiting -= len(task)
                self._since_success = self._since_success or _SinceSuccess(now_s, first=True)
                self._last_busy_s = now_s
                actions.append(Assign(name, task))
        return actions

    def _shares(self) -> ChunkSizer:
        paces: Mapping[str, Throughput] = {
            name: worker.pace for name, worker in self._workers.items() if worker.takes_more
        }
        return ChunkSizer(paces, self._images_to_do - self._images_running, self._policy.least_images)


def _stages(progress: Progress) -> set[tuple[int, int, str]]:
    return {(image.unit, image.index, image.stage) for image in progress.in_flight}


def _plural(count: int, noun: str) -> str:
    return noun if count == 1 else f"{noun}s"
