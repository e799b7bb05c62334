"""The run: label() brings a label set up to date with its dataset. Plan -> schedule -> publish -> report.

Knows the order of the steps and when a run is over. Other modules do each step. A newcomer starts reading here.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from segray.config import Config
from segray.errors import (
    AccessError,
    ConfigError,
    ConflictError,
    InfrastructureError,
    Interrupted,
    SegrayError,
    SourceError,
    UserError,
)
from segray.execution.event_loop import RunContext, RunLoop
from segray.execution.progress import Counters, ProgressListener
from segray.execution.scheduler import Policy
from segray.execution.worker_pool import WorkerPool
from segray.execution.worker_spec import WorkerSpec, options_of
from segray.imaging.tiling import TilingOptions
from segray.label_set import batches, commit, merge, plan, run_records, schema, snapshot
from segray.label_set.plan import Plan
from segray.label_set.run_records import LabelSetIdentity, Run
from segray.limits import ImageLimits
from segray.models import engine, resolve
from segray.models.coco_labels import slug
from segray.sources import base_prefix
from segray.sources import listing as sources
from segray.sources.shard_index import Index
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import absolute, join, redact
from segray.tasks import Task

StartWorkers = Callable[[WorkerSpec, Config], WorkerPool]


@dataclass(frozen=True)
class Summary:
    """The end of a run. A dry run has `planned` and `retired` as they would be.

    root: the label set.
    images: images by status over the whole label set.
    classes: instances by class name over the whole label set.
    tally: counts of this process.
    seconds: seconds from the first worker's readiness to the last commit.
    startup_s: seconds until the first worker was ready.
    planned: images of the plans that this process carried out.
    retired: images whose rows this process removed.
    workers: facts of each worker.
    failures: image_key, stage and message of a few failed images.
    exit_code: 0, or 3 when more images failed than max_failed_fraction allows.
    """

    root: str
    images: Mapping[str, int]
    classes: Mapping[str, int]
    tally: Counters
    seconds: float
    startup_s: float
    planned: int
    retired: int
    workers: tuple[Mapping[str, str], ...]
    failures: tuple[tuple[str, str, str], ...]
    exit_code: int


def label(
    config: Config,
    listener: ProgressListener,
    start_workers: StartWorkers,
    *,
    limit: int | None = None,
    dry_run: bool = False,
    retry_s: float = Policy.retry_s,
) -> Summary:
    """Label the images that have no row yet, and commit their rows.

    Args:
        config: the configuration.
        listener: receives the progress.
        start_workers: starts the workers of a run.
        limit: largest number of images, the first by key; then nothing is retired. None for all.
        dry_run: whether to count only, and write nothing.
        retry_s: seconds before an image that storage withheld is tried again.

    Returns:
        The summary of the run.

    Raises:
        UserError: raised before any image is read.
        InfrastructureError: the run stopped; everything committed is kept.
        Interrupted: the run was interrupted; everything committed is kept.
    """
    config = with_absolute_paths(config)
    model = resolve.resolve(config.model.name, config.model.path, config.model.form, config.model.labels)
    options_of(config.model, model.contract)  # An invalid choice fails here rather than on the first worker.
    found = engine.signature(model.path)
    engine.check(found, model.form, str(model.path))
    engine.check_precision(found, config.model.precision, str(model.path))
    options = StorageOptions(**config.storage.model_dump())
    job = RunContext(config, options, Store(options), identity_of(config, model), listener, retry_s)
    run_records.check(job.store, job.root, job.identity)
    done = _Done(withheld_before=run_records.left_over(job.store, job.root))
    if dry_run:
        step = next_step(job, limit=limit, resumable=False)
        _tell(job, step)
        if isinstance(step, Start):
            done.planned, done.retired = len(step.listed), len(step.gone)
        return _summary(job, done)
    while True:
        batch = commit.recover(job.root, options, job.store)
        step = next_step(job, limit=limit, number=batch + 1, over=done.runs, left_over=done.left_over)
        if isinstance(step, Nothing) and done.left_over:
            break  # Some images are not labelled; the error below says so.
        _tell(job, step)
        if isinstance(step, Nothing):
            break
        work = step if isinstance(step, Resume) else _freeze(job, step)
        done.planned += 0 if work.is_empty else work.plan.images
        whole = _carry_out(job, model.fingerprint, work, start_workers, done)
        if whole and (limit is not None or isinstance(step, Start)):
            break
        if limit is not None and not (limit := _not_committed(job, work.plan)):
            break
    if done.left_over or done.withheld_before:
        run_records.save_left_over(job.store, job.root, done.left_over)
    if done.left_over:
        raise _left_over_error(job, done.left_over)
    return _summary(job, done)


# ---- what to do -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resume:
    """A step: go on with a run.

    staged: staged files by task.
    todo: tasks of the frozen plan that are left.
    retire: names of those parts of the plan's list of rows to remove that are left.
    """

    run: Run
    plan: Plan
    staged: Mapping[Task, str]
    todo: list[Task]
    retire: list[str]

    @property
    def is_empty(self) -> bool:
        """Return whether nothing is left of the run but its record."""
        return not (self.todo or self.staged or self.retire)

    @property
    def images_before(self) -> int:
        """Return the number of images of the plan that earlier attempts labelled."""
        return self.plan.images - sum(map(len, self.todo))


@dataclass(frozen=True)
class Start:
    """A step: begin a run.

    listed: images without a row.
    total: images in the source.
    gone: rows whose image is gone.
    """

    listed: plan.ImageList
    total: int
    gone: pa.Table


@dataclass(frozen=True)
class Nothing:
    """A step: do nothing, since all `total` images of the source have a row."""

    total: int


Step = Resume | Start | Nothing


def next_step(
    job: RunContext,
    *,
    limit: int | None,
    resumable: bool = True,
    number: int = 1,
    over: Container[str] = (),
    left_over: Collection[str] = (),
) -> Step:
    """Decide the next step. Read the label set and the source, and write nothing of a run.

    Args:
        job: values that all steps of the run share.
        limit: largest number of images; None for all.
        resumable: whether an unfinished run may be resumed.
        number: number of the batch that comes next.
        over: ids of runs that must not be resumed.
        left_over: keys of images that must not be planned again.
    """
    images = snapshot.committed(job.root, "images", job.options)
    committed = None if images is None else _committed(job, images)
    retiring = job.config.source.deleted == "retire" and limit is None
    resume = _resumable(job, committed, number, retiring, over) if resumable else None
    if resume is not None:
        return resume
    listed, total, seen, prefix = listing(job.config, job.store, committed, keep_index=resumable)
    gone = schema.RETIRED.empty_table()
    if retiring and committed is not None and images is not None:
        gone = _unlisted(job, images, committed, listed, seen, prefix)
    listed = listed.without(left_over).head(limit)
    return Start(listed, total, gone) if len(listed) or len(gone) else Nothing(total)


def listing(
    config: Config, store: Store, committed: plan.Committed | None, *, keep_index: bool
) -> tuple[plan.ImageList, int, NDArray[np.bool_], str]:
    """Return the listing of the source as plan.build does, and the prefix of the source's keys.

    committed: images of the label set; None where there is none.
    keep_index: whether to write new shard indexes into the label set.
    """
    part = base_prefix.resolve_base(config.source, store)
    index = Index(store, join(config.output.root, "_segray", "index"), keep=keep_index)
    return *plan.build(part.rebased(sources.configured(config.source, store, index)), committed), part.prefix


def _resumable(
    job: RunContext, committed: plan.Committed | None, number: int, retiring: bool, over: Container[str]
) -> Resume | None:
    """Return what is left of the latest unfinished run over the same source.

    number: number of the batch that comes next.
    over: ids of runs that must not be resumed.
    """
    run = run_records.unfinished(job.store, job.root)
    if run is None or run.id in over or run.record(job.store).get("source") != job.config.source.uri:
        return None
    frozen = plan.load(job.store, run.folder)
    if frozen is None:
        return None
    done = plan.committed_rows(frozen, committed)
    inputs = batches.read_batch_inputs(run, number, job.store)
    names = run_records.select_staged(job.store.names(run.staged), inputs.staged if inputs else ())
    staged = {task: name for task, name in names.items() if not done[frozen.rows(task)].any()}
    for task in staged:
        done[frozen.rows(task)] = True
    # A later run finds the rows that are not removed now.
    retire = [name for name in frozen.retired if retiring and len(merge.keys_still_present(run, name, job.options))]
    return Resume(run, frozen, staged, plan.remaining_tasks(frozen, done), retire)


def _freeze(job: RunContext, step: Start) -> Resume:
    """Write a new run and its plan."""
    run = run_records.new_run(job.root)
    run_records.create_or_check(job.store, job.root, job.identity)
    commit.create_tables(job.root, job.options)
    config = job.config
    frozen = plan.freeze(job.store, run.folder, step.listed, config.unit_images, step.gone, config.publish.batch_images)
    job.save(run, "running", frozen.images)
    return Resume(run, frozen, {}, frozen.tasks(), list(frozen.retired))


def _tell(job: RunContext, step: Step) -> None:
    """Tell the listener the next step."""
    match step:
        case Resume(run, frozen, staged, _, retire) if not step.is_empty:
            waiting = sum(map(len, staged))
            parts = [f"{step.images_before - waiting} of {frozen.images} images committed, {waiting} staged"]
            if retire:
                parts.append(f"{sum(frozen.retired[name] for name in retire)} to retire")
            job.listener.note(f"resuming run {run.id}: {', '.join(parts)}")
        case Start(listed, total, gone):
            what = f"{len(listed)} of {total} images to label" if len(listed) else _all_labelled(job, total, "label")
            job.listener.note(f"{what}, and {len(gone)} that it no longer has to retire" if len(gone) else what)
        case Nothing(total):
            job.listener.note(_all_labelled(job, total, "do"))


def _all_labelled(job: RunContext, total: int, verb: str) -> str:
    return f"nothing to {verb}: all {total} images of {job.config.source.uri} are labelled"


def _unlisted(
    job: RunContext,
    images: ds.Dataset,
    committed: plan.Committed,
    listed: plan.ImageList,
    seen: NDArray[np.bool_],
    prefix: str,
) -> pa.Table:
    """Return the rows to retire.

    prefix: prefix of the source's keys. Rows with other keys belong to other sources.

    Raises SourceError when more rows would go than the configuration allows.
    """
    columns = ["image_key", "version", "batch"]
    gone = job.store.retrying(
        job.root, lambda: plan.unlisted(listed, seen, committed, lambda: images.to_batches(columns))
    )
    allowed, of = job.config.source.max_retired_fraction, len(committed)
    if prefix and len(gone):
        own = pc.starts_with(pc.field("image_key"), prefix)
        gone = gone.filter(own)
        of = job.store.retrying(job.root, lambda: images.count_rows(filter=own))
    nothing = not len(listed) and not seen.any()
    if len(gone) > allowed * of or (len(gone) and nothing):
        raise SourceError(
            "the source lacks too many images that the label set holds; nothing was retired",
            where=job.config.source.uri,
            found=f"{len(gone)} of {of} are not listed, such as {redact(gone['image_key'][0].as_py())!r}; "
            f"source.max_retired_fraction allows {allowed:g}",
            hint="see whether the source is whole; if it is, raise source.max_retired_fraction for this run, or keep "
            "the rows with source.deleted=keep",
        )
    return gone


def _not_committed(job: RunContext, planned: Plan) -> int:
    """Return the number of images of a plan that have no row, whoever labelled the others."""
    images = snapshot.committed(job.root, "images", job.options)
    done = plan.committed_rows(planned, None if images is None else _committed(job, images))
    return int((~done).sum())


def _committed(job: RunContext, images: ds.Dataset) -> plan.Committed:
    return job.store.retrying(job.root, lambda: plan.Committed(images.to_batches(["image_key", "version"])))


# ---- doing it -------------------------------------------------------------------------------------


@dataclass
class _Done:
    """The results of this process, plan after plan.

    withheld_before: images that storage withheld to the end of an earlier process: the error by key.
    left_over: images that storage withheld to the end of this process: the error by key.
    runs: ids of runs that left images over.
    planned, retired: numbers of images.
    startup_s: seconds until the first worker was ready.
    labelling_s: seconds from then to the end, summed over plans.
    """

    withheld_before: Mapping[str, str] = field(default_factory=dict)
    left_over: dict[str, str] = field(default_factory=dict)
    runs: set[str] = field(default_factory=set)
    planned: int = 0
    retired: int = 0
    startup_s: float = 0.0
    labelling_s: float = 0.0


def _carry_out(job: RunContext, fingerprint: str, work: Resume, start_workers: StartWorkers, done: _Done) -> bool:
    """Retire, label and commit the images of the plan. Return False when the rest must be planned again.

    The cause of False is another run that committed meanwhile.
    """
    try:
        with _ended(job, work):
            _retire(job, work, done)
        if work.todo or work.staged:
            _label(job, fingerprint, work, start_workers, done)
    except ConflictError as exc:
        job.listener.note(f"{exc.what}; planning again")
        job.save(work.run, "superseded", work.plan.images)
        return False
    if work.run.id in done.runs:
        job.save(work.run, "stopped", work.plan.images, len(done.left_over))
    else:
        job.save(work.run, "done", work.plan.images)
    return True


def _retire(job: RunContext, work: Resume, done: _Done) -> None:
    """Remove the rows of images that are gone, one commit after another. No worker is needed."""
    for name in work.retire:
        number = commit.recover(job.root, job.options, job.store) + 1
        inputs = batches.read_batch_inputs(work.run, number, job.store, retiring=True)
        if inputs is None or inputs.retired != (name,):
            inputs = batches.Inputs((), job.provenance(work.run), job.config.publish.file_rows, (name,))
            batches.write_batch_inputs(work.run, number, inputs, job.store)
        batch = merge.merge(work.run, number, inputs, job.options)
        if batch.removed:
            commit.commit(batch, work.run, job.options, job.store)
            done.retired += batch.removed


def _label(job: RunContext, fingerprint: str, work: Resume, start_workers: StartWorkers, done: _Done) -> None:
    limits = ImageLimits(**job.config.image.model_dump(exclude={"timeout_s"}))
    asked = job.config.source.tiles
    tiles = None if asked is None else TilingOptions(**asked.model_dump())
    spec = WorkerSpec(job.config.model, fingerprint, limits, job.options, work.run.staged, tiles)
    began = time.monotonic()
    with _ended(job, work):
        pool = start_workers(spec, job.config)
    with closing(pool):
        execution = RunLoop(job, work.run, work.plan, work.staged, work.todo, pool, done.withheld_before)
        try:
            with _ended(job, work, execution):
                execution.run()
            if left_over := execution.left_over:
                done.left_over |= left_over
                done.runs.add(work.run.id)
        finally:
            done.startup_s = done.startup_s or execution.ready_s - began
            done.labelling_s += time.monotonic() - execution.ready_s


@contextmanager
def _ended(job: RunContext, work: Resume, execution: RunLoop | None = None) -> Iterator[None]:
    """Record the end of a run that an error ends, and add to the error how much is left; let a ConflictError pass."""
    images = work.plan.images

    def images_done() -> int:
        return work.images_before if execution is None else execution.images_done

    try:
        yield
    except ConflictError:
        raise
    except (KeyboardInterrupt, Interrupted):
        _leave(job, work.run, "interrupted", images)
        raise Interrupted(
            "interrupted; everything finished so far is kept",
            where=job.root,
            found=f"{images_done()} of {images} images of this run labelled",
            hint="run the same command again to go on",
        ) from None
    except (InfrastructureError, UserError) as exc:
        _leave(job, work.run, "stopped", images)
        if isinstance(exc, UserError) and images_done() == work.images_before:
            raise  # This run has done nothing.
        raise _stopped(exc, images - images_done()) from exc


def _leave(job: RunContext, run: Run, state: str, images: int) -> None:
    """Record why the run ends, if storage still takes the record. Every state but "done" can be resumed."""
    try:
        job.save(run, state, images)
    except (InfrastructureError, AccessError) as exc:
        job.listener.note(f"run {run.id} is left as it stands: its record cannot be written ({exc.what})")


def _stopped(exc: SegrayError, left: int) -> InfrastructureError:
    """Return the error as the end of a run that had begun, with the number of images that are left."""
    found = "; ".join(part for part in (exc.found, f"{left} images of this run not labelled yet") if part)
    hint = "; ".join(part for part in (exc.hint, "then run the same command again to go on") if part)
    return InfrastructureError(exc.what, where=exc.where, found=found, hint=hint)


def _left_over_error(job: RunContext, images: Mapping[str, str]) -> InfrastructureError:
    key, reason = next(iter(images.items()))
    count = len(images)
    return InfrastructureError(
        f"{count} {'image' if count == 1 else 'images'} could not be labelled, all others are",
        where=job.config.source.uri,
        found=f"storage withheld {redact(key)}: {reason}",
        hint=f"run the same command again to try them; {join(job.root, '_segray', 'left_over.json')} lists them",
    )


# ---- how it ended ---------------------------------------------------------------------------------


def _summary(job: RunContext, done: _Done) -> Summary:
    images, failures = job.store.retrying(job.root, lambda: _images(job))
    allowed = job.config.max_failed_fraction * sum(images.values())
    return Summary(
        job.root,
        images,
        job.store.retrying(job.root, lambda: _classes(job)),
        job.tally,
        done.labelling_s,
        done.startup_s,
        done.planned,
        done.retired,
        tuple(job.facts),
        failures,
        exit_code=InfrastructureError.exit_code if images.get("failed", 0) > allowed else 0,
    )


def _images(job: RunContext, most: int = 5) -> tuple[dict[str, int], tuple[tuple[str, str, str], ...]]:
    rows = snapshot.committed(job.root, "images", job.options)
    if rows is None:
        return {}, ()
    status = pc.value_counts(rows.to_table(["status"]).column("status")).to_pylist()
    failed = rows.scanner(["image_key", "stage", "message"], filter=pc.field("status") == "failed").head(most)
    failures = tuple((redact(row["image_key"]), row["stage"], row["message"]) for row in failed.to_pylist())
    return {entry["values"]: entry["counts"] for entry in status}, failures


def _classes(job: RunContext) -> dict[str, int]:
    """Return committed instances by class name, most frequent first, from the table's log alone."""
    state = snapshot.table_state(job.root, "instances", job.options)
    if state is None:
        return {}
    names = {value: name for _, name, value in job.identity.classes}
    counts: dict[str, int] = {}
    for action in state.files.select(["partition.class", "num_records"]).to_pylist():
        name = names[action["partition.class"]]
        counts[name] = counts.get(name, 0) + int(action["num_records"])
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


# ---- what goes in ---------------------------------------------------------------------------------


def with_absolute_paths(config: Config) -> Config:
    """Return the configuration with absolute local paths, since workers run in other folders."""

    def moved(section: Any, name: str) -> Any:
        uri = getattr(section, name)
        return section.model_copy(update={name: absolute(uri)}) if uri else section

    update = {
        "source": moved(moved(config.source, "uri"), "base"),
        "output": moved(config.output, "root"),
        "model": moved(config.model, "path"),
    }
    return config.model_copy(update=update)


def identity_of(config: Config, model: resolve.ResolvedModel) -> LabelSetIdentity:
    """Return the identity of the label set: model files, contract, form, thresholds, tiles and class list.

    Raises ConfigError when two class names become the same partition.
    """
    labels = model.contract.labels
    classes = tuple((i, name, slug(name)) for i, name in sorted(labels.items()))
    if len({value for _, _, value in classes}) != len(classes):
        raise ConfigError("two class names of the label map become the same partition", where="the label map")
    rounding_alone = ("precision", "cache_dir", "fixed_shapes")
    facts = {
        "name": model.name,
        "form": model.form.name,
        "files_sha256": model.fingerprint,
        # All other keys of the section decide which rows come out.
        **config.model.model_dump(mode="json", exclude={"name", "form", "path", *rounding_alone}),
        **({"tiles": config.source.tiles.model_dump()} if config.source.tiles else {}),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return LabelSetIdentity(digest, facts, classes)
