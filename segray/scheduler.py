"""Who labels what, when: a pure state machine.

Knows tasks, workers, attempts, suspects and deadlines. Knows nothing of Ray, storage, images or clocks: the
caller reports events with the time they happened and carries out the actions that come back.

The life of a task (a slice of a unit, see instances.Task):

    waiting ──Assign──> running ──finished──> done
       ^                   │
       │                   ├─ worker lost, its process died: images in flight are suspects, each alone again
       └───────────────────┤  (attempt 2); the rest of the slice goes back (attempt + 1)
                           ├─ worker lost, its node died: the whole slice goes back, nobody is blamed
                           └─ failed by the world: goes back; after `max_attempts` the run halts

    an image whose process died `max_attempts` times, all but the first alone ──Quarantine──> done, a failed row

A worker that holds too much memory finishes what it runs, gets nothing new and is retired; nobody is blamed.

A task on its second attempt or later has its worker to itself, so a death has one possible cause. Every death
raises the attempt of all it touched or narrows the slice, so the machine always comes to an end; a node's death
does so when it is the `max_attempts`th for the same task, for an image may take its whole node along.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise

from segray.instances import Place, Progress, Task


@dataclass(frozen=True)
class Policy:
    """max_attempts: tries of an image before it is quarantined, and of a slice against the world's faults.

    image_timeout_s: longest an image may be worked on. stall_timeout_s: longest silence of a busy worker.
    """

    max_attempts: int = 3
    image_timeout_s: float = 120.0
    stall_timeout_s: float = 600.0


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
class Quarantine:
    """Record the one image of this task as failed: it killed or hung its process `task.attempt` times."""

    task: Task
    reason: str


Action = Assign | Retire | Quarantine

# Stages in which an image does nothing of its own: storage is slow, or others are at work.
_IDLE = ("read", "wait")


@dataclass
class _Worker:
    last_sign_s: float
    running: list[Task] = field(default_factory=list)
    pulse: Progress = field(default_factory=lambda: Progress(0))


class Scheduler:
    """The state machine. Every method takes the time in seconds and returns actions to carry out, in order."""

    def __init__(self, tasks: Iterable[Task], policy: Policy) -> None:
        self._policy = policy
        self._waiting = deque(tasks)
        self._workers: dict[str, _Worker] = {}
        self._node_deaths: Counter[Task] = Counter()
        self._busy_s: float | None = None
        self.halted: str | None = None
        self.images_total = sum(len(task) for task in self._waiting)
        self.images_done = 0

    @property
    def complete(self) -> bool:
        """Every image is done or quarantined."""
        return self.images_done == self.images_total

    @property
    def images_waiting(self) -> int:
        return sum(len(task) for task in self._waiting)

    def joined(self, worker: str, now_s: float) -> list[Action]:
        """A worker is ready for tasks."""
        self._workers[worker] = _Worker(now_s)
        return self._assign(now_s)

    def finished(self, worker: str, task: Task, now_s: float) -> tuple[bool, list[Action]]:
        """A worker finished a task. The first value says whether its result counts (it still owned the task)."""
        if not self._release(worker, task, now_s):
            return False, []
        self.images_done += len(task)
        return True, self._assign(now_s)

    def failed(self, worker: str, task: Task, reason: str, now_s: float) -> list[Action]:
        """The world failed a task (storage, network); the worker lives."""
        if not self._release(worker, task, now_s):
            return []
        if task.attempt >= self._policy.max_attempts:
            self.halted = self.halted or reason
            self._waiting.append(task)
            return []
        self._waiting.append(Task(task.unit, task.start, task.stop, task.attempt + 1))
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
        places = state.pulse.in_flight if in_flight is None else in_flight
        at_work = {(unit, index) for unit, index, stage, _ in places if stage not in _IDLE}
        actions: list[Action] = []
        for task in state.running:
            if not blame_images and self._forgiven(task):
                self._waiting.append(task)
                continue
            suspects = [i for i in range(task.start, task.stop) if (task.unit, i) in at_work]
            actions += self._split(task, suspects, reason)
        return actions + self._assign(now_s)

    def pulse(self, worker: str, progress: Progress, now_s: float) -> None:
        """What a worker says it is doing; a pulse that shows no change is not a sign of life."""
        state = self._workers.get(worker)
        if state is None:
            return
        here = {(unit, index, stage) for unit, index, stage, _ in progress.in_flight}
        before = {(unit, index, stage) for unit, index, stage, _ in state.pulse.in_flight}
        if progress.finished != state.pulse.finished or here != before:
            state.last_sign_s = now_s
        state.pulse = progress

    def tick(self, now_s: float) -> list[Action]:
        """Time passes: workers with an image past its deadline, or silent for too long, are retired.

        When nobody has worked for as long, because no worker comes, the run halts.
        """
        if self._busy_s is None or any(state.running for state in self._workers.values()):
            self._busy_s = now_s
        if self._waiting and now_s - self._busy_s > self._policy.stall_timeout_s:
            self.halted = self.halted or f"no worker for {now_s - self._busy_s:.0f} s"
        actions: list[Action] = []
        for name, state in list(self._workers.items()):
            if state.pulse.swollen and not state.running:
                del self._workers[name]
                actions.append(Retire(name, f"it holds {state.pulse.rss_bytes / 2**20:.0f} MiB of memory"))
                continue
            late = [
                (unit, index, stage, seconds)
                for unit, index, stage, seconds in state.pulse.in_flight
                if stage not in _IDLE and seconds > self._policy.image_timeout_s
            ]
            silent_s = now_s - state.last_sign_s
            if late:
                unit, index, stage, seconds = late[0]
                reason = f"image {index} of unit {unit} has been in {stage} for {seconds:.0f} s"
                state.pulse = replace(state.pulse, in_flight=tuple(late))
            elif state.running and silent_s > self._policy.stall_timeout_s:
                reason = f"no progress for {silent_s:.0f} s"
            else:
                continue
            actions.append(Retire(name, reason))
            actions += self.lost(name, reason, now_s, blame_images=True)
        return actions

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

    def _split(self, task: Task, suspects: list[int], reason: str) -> list[Action]:
        """Take a slice whose process died apart: suspects alone, the rest in the runs between them."""
        if len(task) == 1:
            if task.attempt >= self._policy.max_attempts:
                self.images_done += 1
                return [Quarantine(task, reason)]
            cuts = [task.start, task.stop]
        elif not suspects and task.attempt > 1:
            # It died alone and left no trace of which image: halve it.
            cuts = [task.start, (task.start + task.stop) // 2, task.stop]
        else:
            cuts = sorted({task.start, task.stop, *suspects, *(index + 1 for index in suspects)})
        for start, stop in pairwise(cuts):
            # An image answers for its own deaths alone, not for those of the slice that it was in.
            shared = stop - start == 1 < len(task)
            self._waiting.append(Task(task.unit, start, stop, 2 if shared else task.attempt + 1))
        return []

    def _assign(self, now_s: float) -> list[Action]:
        """One running task a worker, and one more behind it while the queue is longer than the workers are many."""
        actions: list[Action] = []
        if self.halted:
            return actions
        for depth in (0, 1):
            for name, state in self._workers.items():
                if len(state.running) != depth or not self._waiting or state.pulse.swollen:
                    continue
                if depth and (len(self._waiting) <= len(self._workers) or self._exclusive(state)):
                    continue
                if not state.running:
                    state.last_sign_s = now_s
                state.running.append(self._waiting.popleft())
                actions.append(Assign(name, state.running[-1]))
        return actions

    def _exclusive(self, state: _Worker) -> bool:
        return state.running[0].attempt > 1 or self._waiting[0].attempt > 1
