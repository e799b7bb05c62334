"""The event loop that carries out one frozen plan, between workers, scheduler and label set.

Knows what to do with every event and action, and when a batch is due. run.py has decided before what to label. The
scheduler decides which worker labels what. label_set.merge and label_set.commit make rows visible.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import segray
from segray._system import signals
from segray.config import Config
from segray.errors import ConfigError, ConflictError, InfrastructureError
from segray.execution import worker_pool
from segray.execution.event_log import EventLog
from segray.execution.events import (
    Accept,
    Action,
    Assign,
    Event,
    PoolEvent,
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
from segray.execution.progress import Counters, ProgressListener, ProgressTracker, RunProgress
from segray.execution.scheduler import DisplayNames, Policy, Scheduler
from segray.execution.staging import stage_failure
from segray.instances import ImageFailure
from segray.label_set import batches, commit, merge
from segray.label_set.plan import Plan
from segray.label_set.run_records import LabelSetIdentity, Run
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import redact
from segray.tasks import Task, UnitReport

_WAIT_S = 0.5
_BEAT_S = 2.0


@dataclass(frozen=True)
class RunContext:
    """The values that every step of a run shares.

    retry_s: seconds before an image that storage withheld is tried again.
    course: progress of this process; grows while the run goes on.
    facts: the facts of each worker that joined; grows while the run goes on.
    """

    config: Config
    options: StorageOptions
    store: Store
    identity: LabelSetIdentity
    listener: ProgressListener
    retry_s: float = Policy.retry_s
    course: ProgressTracker = field(default_factory=ProgressTracker)
    facts: list[Mapping[str, str]] = field(default_factory=list)

    @property
    def root(self) -> str:
        """Return the label set's root."""
        return self.config.output.root

    @property
    def tally(self) -> Counters:
        """Return the counters of this process."""
        return self.course.tally

    def save(self, run: Run, state: str, images: int, unreadable: int = 0) -> None:
        """Write the run's record.

        run: the run whose record is written.
        state: running, done, interrupted, stopped or superseded.
        images: number of images in the run's plan.
        unreadable: number of these that storage withheld to the end.
        """
        record = {
            "state": state,
            "updated": datetime.now(UTC).isoformat(timespec="seconds"),
            "source": self.config.source.uri,
            "images": images,
            "unreadable": unreadable,
            "identity": self.identity.as_json(),
            "config": self.config.model_dump(mode="json"),
            "segray": segray.__version__,
            "workers": self.facts,
            "labelled": {name: getattr(self.tally, name) for name in ("ok", "empty", "failed", "instances")},
            "published": {"merge_s": round(self.tally.merge_s, 3), "commit_s": round(self.tally.commit_s, 3)},
            "seconds": {name: round(value, 3) for name, value in self.tally.seconds.items()},
            "cpu_seconds": {name: round(value, 3) for name, value in self.tally.cpu_seconds.items()},
        }
        run.save(self.store, record)

    def provenance(self, run: Run) -> dict[str, Any]:
        """Return the origin of a batch's rows, for the metadata of its files. Equal workers count once."""
        kinds = sorted({json.dumps(dict(facts), sort_keys=True) for facts in self.facts})
        return {
            "run_id": run.id,
            "identity": self.identity.as_json(),
            "workers": [json.loads(kind) for kind in kinds],
            "segray": segray.__version__,
            "config": self.config.digest(),
        }


class PlanNames(DisplayNames):
    """Names of workers and images in messages. An image is named by its key."""

    def __init__(self, frozen: Plan) -> None:
        super().__init__()
        self._plan = frozen

    def image(self, unit: int, index: int) -> str:
        (ref,) = self._plan.refs(Task(unit, index, index + 1))
        return f"{redact(ref.key)} (image {index} of unit {unit})"


@dataclass(frozen=True)
class _Merge:
    """A merge that runs: its result, its inputs, and the time of its start in seconds."""

    batch: Future[batches.Batch]
    inputs: batches.Inputs
    since_s: float


class RunLoop:
    """A plan that is being carried out.

    job: values that all steps of the run share.
    frozen: the plan.
    staged: staged files of an earlier attempt, by task.
    todo: tasks that are left.
    pool: the workers.
    withheld_before: keys of images that storage withheld from an earlier run to its end.
    clock: returns the time in seconds.
    """

    def __init__(
        self,
        job: RunContext,
        run: Run,
        frozen: Plan,
        staged: Mapping[Task, str],
        todo: Iterable[Task],
        pool: worker_pool.WorkerPool,
        withheld_before: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job, self._run, self._plan, self._pool, self._clock = job, run, frozen, pool, clock
        config = job.config
        policy = Policy(
            config.max_attempts, config.image.timeout_s, config.cluster.stall_timeout_s, retry_s=job.retry_s
        )
        self._names = PlanNames(frozen)
        tasks = list(todo)
        withheld = _among(tasks, frozen.positions(withheld_before))
        self._scheduler = Scheduler(tasks, policy, self._names, withheld)
        self._log = EventLog(job.store, run.folder, tasks, policy, withheld, job.listener.note, clock)
        self._staged = dict(staged)
        self._staged_images = sum(map(len, staged))
        self._merging: _Merge | None = None
        self._before = frozen.images - self._scheduler.images_total
        self._joined = False
        self._beaten_s = float("-inf")
        self.ready_s = clock()

    @property
    def images_done(self) -> int:
        """Return the number of images of the plan that are labelled, committed or not."""
        return self._before + self._scheduler.images_done

    @property
    def left_over(self) -> dict[str, str]:
        """Return the images that storage withheld to the end: the last error of each, by key."""
        return {
            ref.key: reason
            for (unit, index), reason in sorted(self._scheduler.left_over.items())  # in the order of the plan's parts
            for ref in self._plan.refs(Task(unit, index, index + 1))
        }

    def run(self) -> None:
        """Label and commit all images but those that storage withholds.

        Raises InfrastructureError when the scheduler halts.
        """
        self._job.listener.begin(self._plan.images, self._before)
        self._job.course.begins()
        try:
            self._work()
        finally:
            self._log.flush(self._scheduler.state, last=True)
            self._job.listener.beat(self._vitals())

    def _work(self) -> None:
        while not self._settled() or self._merging or self._staged:
            signals.check()
            if not self._settled():
                for event in self._pool.events(_WAIT_S):
                    self._handle(event)
                self._carry_out(self._step(Tick(), self._clock()))
                self._log.flush(self._scheduler.state)
                self._pool.need(self._scheduler.workers_of_use)
            self._publish()
            tally = self._job.tally
            self._job.listener.advance(self.images_done, tally.instances, tally.failed)
            if self._clock() - self._beaten_s >= _BEAT_S:
                self._beaten_s = self._clock()
                self._job.listener.beat(self._vitals())
        if (halt := self._scheduler.halted) is not None:
            raise InfrastructureError(
                f"the run stopped: {halt.what}",
                where=self._job.root,
                found=halt.found,
                hint="check that storage answers, that its credentials hold, and that workers can start",
            )

    def _vitals(self) -> RunProgress:
        images, waiting = self._plan.images, self._scheduler.images_waiting
        return self._job.course.vitals(
            self._run, images=images, done=self.images_done, waiting=waiting, labelling=not self._settled()
        )

    def _settled(self) -> bool:
        """Return whether no more work will come from the workers."""
        return self._scheduler.settled or self._scheduler.halted is not None

    # ---- events and actions ----

    def _handle(self, event: PoolEvent) -> None:
        now_s, note = self._clock(), self._job.listener.note
        self._job.course.saw(event, now_s)
        actions = self._step(event, now_s)
        match event:
            case WorkerJoined(worker, facts):
                self._admit(worker, facts, now_s)
            case TaskFinished(worker, report) if report.withheld:
                count, first = len(report.withheld), report.withheld[0]
                of = f"storage withheld {count} of {len(report.task)} images of unit {report.task.unit}"
                note(f"{self._names.worker(worker)}: {of}, which will be tried again: {first.reason}")
            case TaskFailed(worker, task, reason):
                note(f"{self._names.worker(worker)}: {reason}; unit {task.unit} goes back to the queue")
            case WorkerLost(worker, reason):
                note(f"{self._names.worker(worker)} is lost: {reason}")
            case WorkerDraining(worker):
                note(f"{self._names.worker(worker)} gets nothing new: its node is being drained")
            case TaskFinished() | ProgressUpdate():
                pass
        self._carry_out(actions)

    def _step(self, event: Event, now_s: float) -> list[Action]:
        self._log.record(event, now_s)
        return self._scheduler.handle(event, now_s)

    def _carry_out(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Assign(worker, task):
                    self._job.course.assigned(task.attempt)
                    self._pool.assign(worker, task, self._plan.refs(task))
                case Accept(worker, report):
                    for staged in report.staged:
                        self._accept(staged, self._names.hosts.get(worker, "?"))
                case ReplaceWorker(worker, reason):
                    self._job.course.left(worker)
                    self._job.listener.note(f"{self._names.worker(worker)} is replaced: {reason}")
                    self._pool.retire(worker)
                case ReleaseWorker(worker, reason):
                    self._job.course.left(worker, released=True)
                    self._job.listener.note(f"{self._names.worker(worker)} is released: {reason}")
                    self._pool.release(worker)
                case Quarantine(task, reason):
                    (ref,) = self._plan.refs(task)
                    self._job.listener.note(f"{redact(ref.key)} is set aside after {task.attempt} attempts: {reason}")
                    failure = ImageFailure("process", "WorkerLost", reason)
                    self._accept(stage_failure(self._job.store, self._run.staged, task, ref, failure))

    def _admit(self, worker: str, facts: Mapping[str, str], now: float) -> None:
        """Remember a worker's facts.

        Raises ConfigError when `precision: auto` means two precisions in one run.
        """
        if not self._joined:
            self._joined, self.ready_s = True, now
        others = {known["precision"] for known in self._job.facts if "precision" in known}
        mine = facts.get("precision")
        if self._job.config.model.precision == "auto" and mine and others - {mine}:
            raise ConfigError(
                "the workers of this run compute in different precisions",
                where="model.precision=auto",
                found=f"{mine} on {facts.get('host', '?')}, {', '.join(sorted(others))} on others",
                hint="set model.precision to f32, or int8 if quantised (the same everywhere), or to one that all have",
            )
        self._job.facts.append(facts)
        described = [facts[name] for name in ("device_name", "precision") if name in facts]
        called = self._names.worker(worker).removeprefix("worker ")
        self._job.listener.note(f"worker ready: {', '.join([called, *described])}")

    def _accept(self, report: UnitReport, host: str = "") -> None:
        self._job.course.accepted(report)
        self._job.listener.unit(self._run, host, report)
        self._staged[report.task] = report.staged
        self._staged_images += len(report.task)

    # ---- publishing ----

    def _publish(self) -> None:
        """Start a merge on another thread or process, commit a finished one here; one batch at a time."""
        job = self._job
        if (merge := self._merging) is not None:
            wait([merge.batch], _WAIT_S if self._settled() else 0)
            if not merge.batch.done():
                self._check(merge)
                return
            batch, self._merging = merge.batch.result(), None
            merged_s = self._clock()
            try:
                commit.commit(batch, self._run, job.options, job.store)
            except ConflictError as exc:
                if commit.recover(self._run.root, job.options, job.store) >= batch.number:
                    raise
                job.listener.note(f"{exc.what}; merging them again")
                self._merge(batch.number, merge.inputs)
                return
            job.course.committed(merged_s - merge.since_s, self._clock() - merged_s)
            job.save(self._run, "running", self._plan.images)
        if not self._staged or (self._staged_images < job.config.publish.batch_images and not self._settled()):
            return
        number = commit.recover(self._run.root, job.options, job.store) + 1
        self._merge(number, self._next_batch(number))

    def _merge(self, number: int, inputs: batches.Inputs) -> None:
        since_s = self._clock()
        batch = self._pool.call(merge.merge, self._run, number, inputs, self._job.options)
        self._merging = _Merge(batch, inputs, since_s)

    def _check(self, merge: _Merge) -> None:
        seconds = self._clock() - merge.since_s
        if seconds > self._job.config.publish.timeout_s:
            raise InfrastructureError(
                "the run stopped: finished units were not merged in time",
                where=self._job.root,
                found=f"a merge that has not ended for {seconds:.0f} s",
                hint="see whether storage answers; allow more with publish.timeout_s, or merge less with"
                " publish.batch_images",
            )

    def _next_batch(self, number: int) -> batches.Inputs:
        """Return the inputs of the batch: those of an interrupted attempt at this batch, else all staged files."""
        job, tasks = self._job, sorted(self._staged, key=lambda task: (task.unit, task.start))
        names = tuple(self._staged[task] for task in tasks)
        inputs = batches.read_batch_inputs(self._run, number, job.store)
        if inputs is None or not set(inputs.staged) <= set(names):
            inputs = batches.Inputs(names, job.provenance(self._run), job.config.publish.file_rows)
            batches.write_batch_inputs(self._run, number, inputs, job.store)
        merged = set(inputs.staged)
        self._staged = {task: name for task, name in self._staged.items() if name not in merged}
        self._staged_images = sum(map(len, self._staged))
        return inputs


def _among(tasks: Iterable[Task], positions: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
    """Return those of few images, by unit and index, that are in one of many tasks."""
    wanted: defaultdict[int, set[int]] = defaultdict(set)
    for unit, index in positions:
        wanted[unit].add(index)
    return {
        (task.unit, at) for task in tasks if task.unit in wanted for at in wanted[task.unit].intersection(task.indices)
    }
