"""Who labels what, when: a pure state machine.

Knows tasks, workers, attempts, suspects and deadlines. Knows nothing of Ray, storage, images or clocks: the
caller reports events with the time they happened and carries out the actions that come back.

The life of a task (a slice of a unit, see tasks.Task):

    waiting ──Assign──> running ──finished──> done
       ^                   │
       │                   ├─ worker lost, its process died: images in flight are suspects, each alone again
       └───────────────────┤  (attempt 2); the rest of the slice goes back (attempt + 1)
                           ├─ worker lost, its node died: the whole slice goes back, nobody is blamed
                           └─ failed by the world: goes back; after `max_attempts` it is halved, when all else is
                              done; what fails alone is left over, and with that the run halts at its end; when
                              half after half fails, or when it was stuck in storage, the run halts at once

    an image whose process died `max_attempts` times, all but the first alone ──Quarantine──> done, a failed row

What waits is given out in pieces that shrink near the end, by each worker's speed (pace.py).

A worker that holds too much memory finishes what it runs, gets nothing new and is retired; nobody is blamed. One whose
node is being drained likewise, and so does one for which nothing is left; they are released, and nobody comes instead.

A task on its second attempt or later has its worker to itself, so a death has one possible cause. Every death
raises the attempt of all it touched or narrows the slice, so the machine always comes to an end; a node's death
does so when it is the `max_attempts`th for the same task, for an image may take its whole node along.

Suspects come last, each tried until it is clear what it is. So when worker after worker is lost with images that
nobody suspects, and no image gets done anywhere, the fault is not the images': the run halts.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from segray.execution.chunk_sizing import Pace, Shares
from segray.tasks import Place, Progress, Task


@dataclass(frozen=True)
class Policy:
    """max_attempts: tries of an image before it is quarantined, and of a slice against the world's faults.

    image_timeout_s: longest an image may be in one stage. stall_timeout_s: longest silence of a busy worker, and
    longest time in which workers are lost and nothing gets done. least_images: of a unit, that are worth a task.
    idle_s: after which a worker is released when nothing waits.
    """

    max_attempts: int = 3
    image_timeout_s: float = 120.0
    stall_timeout_s: float = 600.0
    least_images: int = 4
    idle_s: float = 15.0


@dataclass(frozen=True)
class Assign:
    """Send the task to the worker."""

    worker: str
    task: Task


@dataclass(frozen=True)
class Retire:
    """Kill the worker and bring another; its tasks are already back in the queue."""

    worker: str
    reason: str


@dataclass(frozen=True)
class Release:
    """Let the worker go; it has no tasks, and nobody needs to come in its place."""

    worker: str
    reason: str


@dataclass(frozen=True)
class Quarantine:
    """Record the one image of this task as failed: it killed or hung its process `task.attempt` times."""

    task: Task
    reason: str


Action = Assign | Retire | Release | Quarantine


@dataclass(frozen=True)
class Halt:
    """Why nothing more is assigned: what kind of fault, and what was found."""

    what: str
    found: str


class Names:
    """What workers and images are called in reasons."""

    def worker(self, worker: str) -> str:
        return f"worker {worker}"

    def image(self, unit: int, index: int) -> str:
        return f"image {index} of unit {unit}"


_WORLD_FAILS = "storage or the network failed again and again"
# Stages in which an image does nothing of its own: storage is slow, or others are at work.
_IDLE = ("read", "wait")


@dataclass
class _Worker:
    last_sign_s: float
    pace: Pace
    running: list[Task] = field(default_factory=list)
    pulse: Progress = field(default_factory=lambda: Progress(0))
    leaving: bool = False

    @property
    def takes_more(self) -> bool:
        return not self.leaving and not self.pulse.swollen


class Scheduler:
    """The state machine. Every method takes the time in seconds and returns actions to carry out, in order."""

    def __init__(self, tasks: Iterable[Task], policy: Policy, names: Names | None = None) -> None:
        self._policy, self._names = policy, names or Names()
        self._waiting = deque(tasks)
        self._suspects: deque[Task] = deque()
        self._doubtful: deque[Task] = deque()  # what the world fails while it serves others
        self._left_over: list[tuple[Task, str]] = []
        self._done_at_failure: dict[tuple[int, int, int], int] = {}
        self._in_vain = 0  # tries of what is doubtful, since an image got done
        self._workers: dict[str, _Worker] = {}
        self._node_deaths: Counter[Task] = Counter()
        self._busy_s: float | None = None
        self._setbacks: list[str] = []  # since an image last got done, which was at _fruit_s
        self._fruit_s: float | None = None
        self.halted: Halt | None = None
        self.images_total = sum(len(task) for task in self._waiting)
        self.images_done = 0

    @property
    def complete(self) -> bool:
        """Every image is done or quarantined."""
        return self.images_done == self.images_total

    @property
    def images_waiting(self) -> int:
        return sum(len(task) for task in (*self._waiting, *self._suspects, *self._doubtful))

    @property
    def images_left_over(self) -> int:
        """Images that the world failed each alone, while it served others."""
        return sum(len(task) for task, _ in self._left_over)

    @property
    def workers_of_use(self) -> int:
        """How many workers have something to do, or would have if they were there now; 0 when all is over."""
        if self.complete or self.halted:
            return 0
        busy = [state for state in self._workers.values() if state.running]
        left = self._images_to_do - sum(len(task) for state in busy for task in state.running)
        return sum(not state.leaving for state in busy) + math.ceil(left / self._policy.least_images)

    @property
    def _images_to_do(self) -> int:
        return self.images_total - self.images_done - self.images_left_over

    def joined(self, worker: str, now_s: float) -> list[Action]:
        """A worker is ready for tasks."""
        self._workers[worker] = _Worker(now_s, Pace(now_s))
        return self._assign(now_s)

    def finished(self, worker: str, task: Task, now_s: float) -> tuple[bool, list[Action]]:
        """A worker finished a task. The first value says whether its result counts (it still owned the task)."""
        if not self._release(worker, task, now_s):
            return False, []
        self.images_done += len(task)
        self._in_vain = 0
        state = self._workers[worker]
        state.pace.has_done(state.pace.given - sum(map(len, state.running)), now_s)
        self._bears_fruit(now_s)
        return True, self._assign(now_s)

    def failed(self, worker: str, task: Task, reason: str, now_s: float) -> list[Action]:
        """The world failed a task (storage, network); the worker lives."""
        if not self._release(worker, task, now_s):
            return []
        self._workers[worker].pace.returns(len(task))
        done_before = self._done_at_failure.setdefault((task.unit, task.start, task.stop), self.images_done)
        if task.attempt < self._policy.max_attempts:
            self._again(_WORLD_FAILS, worker, task, reason)
        else:
            self._narrow(worker, task, reason, done_before)
        return self._assign(now_s)

    def lost(
        self, worker: str, reason: str, now_s: float, *, blame_images: bool, in_flight: Iterable[Place] | None = None
    ) -> list[Action]:
        """A worker is gone. blame_images: its process died on a living node, so an image may be the cause.

        in_flight: where it was when it died; None when only its last pulse can tell.
        """
        state = self._workers.pop(worker, None)
        if state is None:
            return []
        reason = f"{self._names.worker(worker)}: {reason}"
        if any(len(task) > 1 or task.attempt == 1 for task in state.running):
            self._setbacks.append(reason)  # The death of a suspect is no surprise.
        places = state.pulse.in_flight if in_flight is None else in_flight
        at_work = {(unit, index) for unit, index, stage, _ in places if stage not in _IDLE}
        actions: list[Action] = []
        for task in state.running:
            if not blame_images and (state.leaving or self._forgiven(task)):
                self._back(task)
                continue
            suspects = [i for i in range(task.start, task.stop) if (task.unit, i) in at_work]
            actions += self._split(task, suspects, reason)
        return actions + self._assign(now_s)

    def leaving(self, worker: str) -> None:
        """Its node is being drained: it may finish what it runs, and gets nothing new."""
        if worker in self._workers:
            self._workers[worker].leaving = True

    def pulse(self, worker: str, progress: Progress, now_s: float) -> None:
        """What a worker says it is doing; a pulse that shows no change is not a sign of life."""
        state = self._workers.get(worker)
        if state is None:
            return
        here = {(unit, index, stage) for unit, index, stage, _ in progress.in_flight}
        before = {(unit, index, stage) for unit, index, stage, _ in state.pulse.in_flight}
        if progress.finished != state.pulse.finished or here != before:
            state.last_sign_s = now_s
        if progress.finished > state.pulse.finished:
            self._bears_fruit(now_s)
        state.pace.in_flight = max(state.pace.in_flight, len(progress.in_flight))
        if state.pace.left:
            fresh = progress.finished - state.pulse.finished
            state.pace.has_done(min(state.pace.done + fresh, state.pace.given), now_s)
        state.pulse = progress

    def tick(self, now_s: float) -> list[Action]:
        """Time passes: workers with an image past its deadline, or silent for too long, are retired.

        When nobody has worked for as long, because no worker comes, or when nothing got done however many workers
        were replaced, the run halts.
        """
        if self._busy_s is None or any(state.running for state in self._workers.values()):
            self._busy_s = now_s
        actions: list[Action] = []
        for name, state in list(self._workers.items()):
            if (why := self._let_go(state, now_s)) is not None:
                del self._workers[name]
                actions.append(Release(name, why))
                continue
            if state.pulse.swollen and not state.running:
                del self._workers[name]
                actions.append(Retire(name, f"it holds {state.pulse.rss_bytes / 2**20:.0f} MiB of memory"))
                continue
            at_work = [place for place in state.pulse.in_flight if place[2] not in _IDLE]
            late = [place for place in at_work if place[3] > self._policy.image_timeout_s]
            silent_s = now_s - state.last_sign_s
            if late:
                reason = self._been(late)
                state.pulse = replace(state.pulse, in_flight=tuple(late))
            elif state.running and silent_s > self._policy.stall_timeout_s:
                reason = f"no progress for {silent_s:.0f} s; {self._whereabouts(state)}"
            else:
                continue
            actions.append(Retire(name, reason))
            actions += (
                self.lost(name, reason, now_s, blame_images=True) if at_work else self._stuck(name, reason, now_s)
            )
        self._consider(now_s)
        # Who had better wait for a quicker worker need not when that one gets slow.
        idle = any(not state.running for state in self._workers.values())
        return actions + self._assign(now_s) if idle else actions

    def _let_go(self, state: _Worker, now_s: float) -> str | None:
        """Why a worker should go for good; None when it should not."""
        if state.running:
            return None
        if state.leaving:
            return "its node is being drained"
        if self._queue or now_s - state.last_sign_s <= self._policy.idle_s:
            return None
        return "nothing is left for it to do"

    # ---- when nothing gets done ----

    def _bears_fruit(self, now_s: float) -> None:
        self._fruit_s = now_s
        self._setbacks.clear()

    def _consider(self, now_s: float) -> None:
        """Halt when time passes and nothing gets done."""
        assert self._busy_s is not None, "tick() sets it"
        idle_s = now_s - self._busy_s
        if self._queue and idle_s > self._policy.stall_timeout_s:
            self._halt("no worker comes", f"no worker for {idle_s:.0f} s")
        # One image that takes its node along, again and again, until it is set aside, is no reason yet.
        if len(self._setbacks) > 2 * self._policy.max_attempts and self._fruit_s is not None:
            barren_s = now_s - self._fruit_s
            if barren_s > self._policy.stall_timeout_s:
                found = f"no image for {barren_s:.0f} s, while {len(self._setbacks)} tasks failed, hung or died"
                self._halt("nothing gets done", f"{found}; the last: {self._setbacks[-1]}")

    def _halt(self, what: str, found: str) -> None:
        self.halted = self.halted or Halt(what, found)

    def _stuck(self, worker: str, reason: str, now_s: float) -> list[Action]:
        """A worker is retired in which no image was at work: storage or the worker itself is at fault."""
        for task in reversed(self._workers.pop(worker).running):
            # Each time takes long: with all other tasks before it, the last time would be days away.
            self._again("nothing moves", worker, task, reason, first=True)
        return self._assign(now_s)

    def _again(self, what: str, worker: str, task: Task, reason: str, *, first: bool = False) -> None:
        """The world failed a task: it goes back, and the last time the run halts."""
        last = task.attempt >= self._policy.max_attempts
        self._setbacks.append(f"{self._names.worker(worker)}, unit {task.unit}, attempt {task.attempt}: {reason}")
        if last:
            self._halt(what, self._setbacks[-1])
        self._back(task if last else replace(task, attempt=task.attempt + 1), first=first)

    def _whereabouts(self, state: _Worker) -> str:
        """What a silent worker is at."""
        if state.pulse.in_flight:
            return self._been(state.pulse.in_flight)
        return f"unit {state.running[0].unit} is with it, none of its images in flight"

    def _been(self, places: Sequence[Place]) -> str:
        unit, index, stage, seconds = max(places, key=lambda place: place[3])
        others = f" (and {len(places) - 1} more)" if len(places) > 1 else ""
        return f"{self._names.image(unit, index)} has been in {stage} for {seconds:.0f} s{others}"

    # ---- tasks ----

    def _release(self, worker: str, task: Task, now_s: float) -> bool:
        state = self._workers.get(worker)
        if state is None or task not in state.running:
            return False
        state.running.remove(task)
        state.last_sign_s = now_s
        return True

    def _forgiven(self, task: Task) -> bool:
        """Whether the death of its node is put down to chance: an image may take its whole node along."""
        self._node_deaths[task] += 1
        return self._node_deaths[task] < self._policy.max_attempts

    def _back(self, task: Task, *, first: bool = False) -> None:
        """Into the queue, at its end or before all others."""
        if first:
            self._waiting.appendleft(task)
        else:
            self._waiting.append(task)

    def _narrow(self, worker: str, task: Task, reason: str, done_before: int) -> None:
        """The world fails this task: which of its images is it? Or is it all, when nothing got done meanwhile?"""
        self._in_vain += 1
        serves = self.images_done > done_before
        if self._in_vain > self._policy.max_attempts * (4 if serves else 2):
            self._again(_WORLD_FAILS, worker, task, reason)
        elif len(task) == 1:
            self._left_over.append((task, reason))
        else:
            middle = (task.start + task.stop) // 2
            for half in (replace(task, stop=middle), replace(task, start=middle)):
                self._done_at_failure[half.unit, half.start, half.stop] = -1 if serves else done_before
                self._doubtful.append(half)

    @property
    def _queue(self) -> deque[Task]:
        return self._waiting or self._suspects or self._doubtful

    def _next(self) -> Task | None:
        return self._queue[0] if self._queue else None

    def _take(self, most: int) -> Task:
        """The next task, or its first images; what is left of it stays first in the queue."""
        task = self._queue.popleft()
        if most >= len(task):
            return task
        self._back(replace(task, start=task.start + most), first=True)
        return replace(task, stop=task.start + most)

    def _split(self, task: Task, suspects: list[int], reason: str) -> list[Action]:
        """Take a slice whose process died apart: suspects alone, the rest in the runs between them."""
        if len(task) == 1:
            if task.attempt >= self._policy.max_attempts:
                self.images_done += 1
                return [Quarantine(task, reason)]
            self._back(replace(task, attempt=task.attempt + 1), first=True)
            return []
        if not suspects and task.attempt > 1:
            # It died alone and left no trace of which image: halve it.
            cuts = [task.start, (task.start + task.stop) // 2, task.stop]
        else:
            cuts = sorted({task.start, task.stop, *suspects, *(index + 1 for index in suspects)})
        for start, stop in pairwise(cuts):
            # An image answers for its own deaths alone, not for those of the slice that it was in.
            if stop - start == 1:
                self._suspects.append(Task(task.unit, start, stop, 2))
            else:
                self._back(Task(task.unit, start, stop, task.attempt + 1))
        return []

    def _assign(self, now_s: float) -> list[Action]:
        """A task for each worker that has none, and one behind it where that leaves enough for the others."""
        actions: list[Action] = []
        if self._left_over and not self._queue and not any(state.running for state in self._workers.values()):
            (task, reason), count = self._left_over[0], self.images_left_over
            found = f"{self._names.image(task.unit, task.start)}: {reason}"
            self._halt(f"{count} image{'s' * (count > 1)} could not be labelled, all others are", found)
        if self.halted:
            return actions
        if self._fruit_s is None:
            self._fruit_s = now_s
        held = sum(len(task) for state in self._workers.values() for task in state.running)
        paces = {name: state.pace for name, state in self._workers.items() if state.takes_more}
        shares = Shares(paces, self._images_to_do - held, self._policy.least_images)
        for depth in (0, 1):
            for name, state in self._workers.items():
                following = self._next()
                if following is None or len(state.running) != depth or not state.takes_more:
                    continue
                # What failed before goes to a worker of its own, and as it is.
                alone = following.attempt > 1
                if depth and (alone or state.running[0].attempt > 1):
                    continue
                most = len(following) if alone else shares.of(name, len(following))
                if not most:
                    continue
                if not state.running:
                    state.last_sign_s = now_s
                task = self._take(most)
                state.running.append(task)
                state.pace.takes(len(task), now_s)
                shares.waiting -= len(task)
                actions.append(Assign(name, task))
        return actions
