"""The event loop that carries out one frozen plan, between workers, scheduler and label set.

Knows what to do with every event and action, and when a batch is due. run.py chose the images to label. The scheduler
assigns tasks to workers. label_set.merge and label_set.commit publish the rows.
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
from segray.errors import AccessError, ConfigError, ConflictError, InfrastructureError, SegrayError
from segray.execution import worker_pool
from segray.execution.event_log import EventLog
from segray.execution.events import (
    Accept,
    Action,
    Assign,
    Event,
    FailImage,
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
from segray.label_set.lease import HeldLease
from segray.label_set.plan import Plan
from segray.label_set.run_records import LabelSetIdentity, Run
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import redact
from segray.tasks import Task, UnitReport

_WAIT_S = 0.5
_HEARTBEAT_S = 2.0


@dataclass(frozen=True)
class RunContext:
    """The values that all steps of a run share.

    options: access to storage.
    store: storage of the label set.
    source_store: storage of the images.
    identity: identity of the label set.
    listener: receives the progress.
    retry_s: seconds before an image that storage withheld is tried again.
    tracker: progress of this process; changes while the run goes on.
    facts: the facts of each worker that joined; grows while the run goes on.
    lease: the lease of the label set; None without one.
    passed_over: entries of the source that are left out, as PassedOver.as_record(); changes with each listing.
    """

    config: Config
    options: StorageOptions
    store: Store
    source_store: Store
    identity: LabelSetIdentity
    listener: ProgressListener
    retry_s: float = Policy.retry_s
    tracker: ProgressTracker = field(default_factory=ProgressTracker)
    facts: list[Mapping[str, str]] = field(default_factory=list)
    lease: HeldLease | None = None
    passed_over: dict[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> str:
        """Return the label set's root."""
        return self.config.output.root

    @property
    def counters(self) -> Counters:
        """Return the counters of this process."""
        return self.tracker.counters

    def save(self, run: Run, state: str, images: int, unreadable: int = 0) -> None:
        """Write the run's record.

        Args:
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
            "labelled": {name: getattr(self.counters, name) for name in ("ok", "empty", "failed", "instances")},
            "published": {"merge_s": round(self.counters.merge_s, 3), "commit_s": round(self.counters.commit_s, 3)},
            "seconds": {name: round(value, 3) for name, value in self.counters.seconds.items()},
            "cpu_seconds": {name: round(value, 3) for name, value in self.counters.cpu_seconds.items()},
        }
        if self.passed_over:
            record["passed_over"] = self.passed_over
        if self.config.source.storage is not None:
            record["source_storage"] = self.config.source_storage_values()
        run.save(self.store, record)

    def provenance(self, run: Run) -> dict[str, Any]:
        """Return the origin of a batch's rows, for the metadata of its files. Equal workers are listed once."""
        distinct = sorted({json.dumps(dict(facts), sort_keys=True) for facts in self.facts})
        return {
            "run_id": run.id,
            "identity": self.identity.as_json(),
            "workers": [json.loads(facts) for facts in distinct],
            "segray": segray.__version__,
            "config": self.config.digest(),
        }


class PlanNames(DisplayNames):
    """Names of workers and images in messages. An image is named by its key."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._plan = plan

    def image(self, unit: int, index: int) -> str:
        (ref,) = self._plan.refs(Task(unit, index, index + 1))
        return f"{redact(ref.key)} (image {index} of unit {unit})"


@dataclass(frozen=True)
class _RunningMerge:
    """A merge on another thread or process.

    batch: the future result.
    inputs: the inputs of the merge.
    since_s: time of the start in seconds.
    """

    batch: Future[batches.Batch]
    inputs: batches.Inputs
    since_s: float


class RunLoop:
    """The loop that carries out a plan.

    context: values that all steps of the run share.
    run: the run of the plan.
    plan: the frozen plan.
    staged: names of the staged files of an earlier attempt, by task.
    todo: tasks to carry out.
    pool: the workers.
    withheld_before: keys of images that storage withheld to the end of an earlier run.
    clock: returns the time in seconds.
    """

    def __init__(
        self,
        context: RunContext,
        run: Run,
        plan: Plan,
        staged: Mapping[Task, str],
        todo: Iterable[Task],
        pool: worker_pool.WorkerPool,
        withheld_before: Collection[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._context, self._run, self._plan, self._pool, self._clock = context, run, plan, pool, clock
        config = context.config
        policy = Policy(
            config.max_attempts, config.image.timeout_s, config.cluster.stall_timeout_s, retry_s=context.retry_s
        )
        self._names = PlanNames(plan)
        tasks = list(todo)
        withheld = _positions_in(tasks, plan.positions(withheld_before))
        self._scheduler = Scheduler(tasks, policy, self._names, withheld)
        self._log = EventLog(context.store, run.folder, tasks, policy, withheld, context.listener.note, clock)
        self._staged = dict(staged)
        self._staged_images = sum(map(len, staged))
        self._merging: _RunningMerge | None = None
        self._images_before = plan.images - self._scheduler.images_total
        self._images_to_merge = self._staged_images  # all that were ever staged and are not in a merge
        if staged:
            self._log.note(f"{len(staged)} staged files of an earlier process, {self._staged_images} images")
        self._worker_joined = False
        self._heartbeat_s = float("-inf")
        self.ready_s = clock()

    @property
    def images_done(self) -> int:
        """Return the number of images of the plan that are labelled, committed or not."""
        return self._images_before + self._scheduler.images_done

    @property
    def left_over(self) -> dict[str, str]:
        """Return the last error of each image that storage withheld to the end, by key."""
        return {
            ref.key: reason
            for (unit, index), reason in sorted(self._scheduler.left_over.items())  # in the order of the plan's parts
            for ref in self._plan.refs(Task(unit, index, index + 1))
        }

    def run(self) -> None:
        """Label and commit all images except those that storage withholds.

        Raises InfrastructureError when the scheduler halts.
        """
        self._context.listener.begin(self._plan.images, self._images_before)
        self._context.tracker.begin_plan()
        try:
            self._work()
        finally:
            self._log.flush(self._scheduler.state, last=True)
            self._context.listener.beat(self._progress())

    def _work(self) -> None:
        while not self._settled() or self._merging or self._staged:
            signals.check()
            if self._context.lease is not None:
                self._context.lease.check()
            if not self._settled():
                for event in self._pool.events(_WAIT_S):
                    self._handle(event)
                self._carry_out(self._step(Tick(), self._clock()))
                self._log.flush(self._scheduler.state)
                self._pool.set_needed(self._scheduler.workers_of_use)
            self._publish()
            counters = self._context.counters
            self._context.listener.advance(self.images_done, counters.instances, counters.failed)
            if self._clock() - self._heartbeat_s >= _HEARTBEAT_S:
                self._heartbeat_s = self._clock()
                self._context.listener.beat(self._progress())
        if self._images_to_merge:
            raise SegrayError(
                "staged images are in no batch",
                where=self._run.folder,
                found=f"{self._images_to_merge} images",
                hint="run the same command again to label them; report this defect with the folder `events`",
            )
        if (halt := self._scheduler.halted) is not None:
            if halt.refused:
                raise AccessError(
                    halt.what,
                    where=self._context.config.source.uri,
                    found=halt.found,
                    hint="check the credentials, and that they may list and read the source",
                )
            raise InfrastructureError(
                f"the run stopped: {halt.what}",
                where=self._context.root,
                found=halt.found,
                hint="check that storage answers, that its credentials are valid, and that workers can start",
            )

    def _progress(self) -> RunProgress:
        images, waiting = self._plan.images, self._scheduler.images_waiting
        return self._context.tracker.progress(
            self._run, images=images, done=self.images_done, waiting=waiting, labelling=not self._settled()
        )

    def _settled(self) -> bool:
        """Return whether no more work will come from the workers."""
        return self._scheduler.settled or self._scheduler.halted is not None

    # ---- events and actions ----

    def _handle(self, event: PoolEvent) -> None:
        now_s, note = self._clock(), self._context.listener.note
        self._context.tracker.add_event(event, now_s)
        actions = self._step(event, now_s)
        match event:
            case WorkerJoined(worker, facts):
                self._on_joined(worker, facts, now_s)
            case TaskFinished(worker, report) if report.withheld:
                images = f"{len(report.withheld)} of {len(report.task)} images of unit {report.task.unit}"
                reason = report.withheld[0].reason
                note(f"{self._names.worker(worker)}: storage withheld {images}, which will be tried again: {reason}")
            case TaskFailed(worker, task, reason):
                note(f"{self._names.worker(worker)}: {reason}; unit {task.unit} goes back to the queue")
            case WorkerLost(worker, reason):
                note(f"{self._names.worker(worker)} is lost: {reason}")
            case WorkerDraining(worker):
                note(f"{self._names.worker(worker)} gets no new task: its node is being drained")
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
                    self._context.tracker.add_assignment(task.attempt)
                    self._pool.assign(worker, task, self._plan.refs(task))
                case Accept(worker, report):
                    for staged in report.staged:
                        self._accept(staged, self._names.hosts.get(worker, "?"))
                case ReplaceWorker(worker, reason):
                    self._context.tracker.remove_worker(worker)
                    self._context.listener.note(f"{self._names.worker(worker)} is replaced: {reason}")
                    self._pool.replace(worker)
                case ReleaseWorker(worker, reason):
                    self._context.tracker.remove_worker(worker, released=True)
                    self._context.listener.note(f"{self._names.worker(worker)} is released: {reason}")
                    self._pool.release(worker)
                case Quarantine(task, reason):
                    (ref,) = self._plan.refs(task)
                    self._context.listener.note(
                        f"{redact(ref.key)} is quarantined after {task.attempt} attempts: {reason}"
                    )
                    failure = ImageFailure("process", "WorkerLost", reason)
                    self._accept(stage_failure(self._context.store, self._run.staged, task, ref, failure))
                case FailImage(task, error, reason):
                    (ref,) = self._plan.refs(task)
                    self._context.listener.note(f"{redact(ref.key)} fails, while storage serves others: {reason}")
                    failure = ImageFailure("read", error, reason)
                    self._accept(stage_failure(self._context.store, self._run.staged, task, ref, failure))

    def _on_joined(self, worker: str, facts: Mapping[str, str], now_s: float) -> None:
        """Keep a worker's facts.

        Raises ConfigError when `precision: auto` means two precisions in one run.
        """
        if not self._worker_joined:
            self._worker_joined, self.ready_s = True, now_s
        other_precisions = {other["precision"] for other in self._context.facts if "precision" in other}
        precision = facts.get("precision")
        if self._context.config.model.precision == "auto" and precision and other_precisions - {precision}:
            raise ConfigError(
                "the workers of this run compute in different precisions",
                where="model.precision=auto",
                found=f"{precision} on {facts.get('host', '?')}, {', '.join(sorted(other_precisions))} on others",
                hint="set model.precision to one that all nodes have: f32, or int8 for a quantised model",
            )
        self._context.facts.append(facts)
        name = self._names.worker(worker).removeprefix("worker ")
        details = [facts[key] for key in ("device_name", "precision") if key in facts]
        if self._context.config.model.precision == "auto" and precision:
            details.append(f"precision auto, since {reason_of_auto(precision, facts.get('device', ''))}")
        self._context.listener.note(f"worker ready: {', '.join([name, *details])}")

    def _accept(self, report: UnitReport, host: str = "") -> None:
        self._context.tracker.add_report(report)
        self._context.listener.unit(self._run, host, report)
        self._staged[report.task] = report.staged
        self._staged_images += len(report.task)
        self._images_to_merge += len(report.task)

    # ---- publishing ----

    def _publish(self) -> None:
        """Start a merge on another thread or process, or commit a finished one here; one batch at a time."""
        context = self._context
        if (running := self._merging) is not None:
            wait([running.batch], _WAIT_S if self._settled() else 0)
            if not running.batch.done():
                self._check_timeout(running)
                return
            batch, self._merging = running.batch.result(), None
            merged_s = self._clock()
            try:
                commit.commit(batch, self._run, context.options, context.store)
            except ConflictError as exc:
                if commit.recover(self._run.root, context.options, context.store) >= batch.number:
                    raise
                context.listener.note(f"{exc.what}; merging them again")
                self._merge(batch.number, running.inputs)
                return
            self._log.note(f"batch {batch.number} is committed: {batch.images} images, {batch.instances} instances")
            context.tracker.add_commit(merged_s - running.since_s, self._clock() - merged_s, batch.replaced_files)
            context.save(self._run, "running", self._plan.images)
        due = self._settled() or self._staged_images >= context.config.publish.batch_images
        if not self._staged or not due:
            return
        number = commit.recover(self._run.root, context.options, context.store) + 1
        self._merge(number, self._next_batch(number))

    def _merge(self, number: int, inputs: batches.Inputs) -> None:
        since_s = self._clock()
        waiting = f"{len(self._staged)} staged files wait for the next batch"
        self._log.note(f"batch {number}: merging {len(inputs.staged)} staged files; {waiting}")
        batch = self._pool.call(merge.merge, self._run, number, inputs, self._context.options)
        self._merging = _RunningMerge(batch, inputs, since_s)

    def _check_timeout(self, running: _RunningMerge) -> None:
        """Raise InfrastructureError for a merge that takes longer than publish.timeout_s."""
        seconds = self._clock() - running.since_s
        if seconds > self._context.config.publish.timeout_s:
            raise InfrastructureError(
                "the run stopped: finished units were not merged in time",
                where=self._context.root,
                found=f"a merge that has not ended for {seconds:.0f} s",
                hint="check that storage answers; raise publish.timeout_s, or lower publish.batch_images",
            )

    def _next_batch(self, number: int) -> batches.Inputs:
        """Return the inputs of a batch: those of an interrupted attempt at this batch, else all staged files.

        The other staged files wait for the next batch.
        """
        context, tasks = self._context, sorted(self._staged, key=lambda task: (task.unit, task.start))
        names = tuple(self._staged[task] for task in tasks)
        inputs = batches.read_batch_inputs(self._run, number, context.store)
        if inputs is None or not set(inputs.staged) <= set(names):
            inputs = batches.Inputs(names, context.provenance(self._run), context.config.publish.file_rows)
            batches.write_batch_inputs(self._run, number, inputs, context.store)
        in_batch = set(inputs.staged)
        self._images_to_merge -= sum(len(task) for task, name in self._staged.items() if name in in_batch)
        self._staged = {task: name for task, name in self._staged.items() if name not in in_batch}
        self._staged_images = sum(map(len, self._staged))
        return inputs


def _positions_in(tasks: Iterable[Task], positions: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
    """Return the positions (unit, index) that are in one of the tasks. Fast for few positions and many tasks."""
    indices_by_unit: defaultdict[int, set[int]] = defaultdict(set)
    for unit, index in positions:
        indices_by_unit[unit].add(index)
    return {
        (task.unit, index)
        for task in tasks
        if task.unit in indices_by_unit
        for index in indices_by_unit[task.unit].intersection(task.indices)
    }


def reason_of_auto(precision: str, device: str) -> str:
    """Return why `precision: auto` gave a worker its precision, as a clause.

    Args:
        precision: precision in effect, as in the facts of an engine.
        device: name of the device.
    """
    floats = precision.removeprefix("int8+")
    reasons = {"bf16": "the CPU has bf16", "f32": "the CPU has no bf16"} if device == "CPU" else {}
    reason = reasons.get(floats, f"{floats} is the default of the device")
    return reason if floats == precision else f"the model is quantised and {reason}"
