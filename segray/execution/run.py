"""The run: label() brings a label set up to date with its dataset. Plan -> schedule -> publish -> report.

Knows the order of the steps, and when a run is over. Other modules do each step. Start reading the package here.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
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
    LabelSetError,
    SegrayError,
    SourceError,
    UserError,
)
from segray.execution.event_loop import RunContext, RunLoop
from segray.execution.model_loading import options_of
from segray.execution.progress import Counters, ProgressListener
from segray.execution.scheduler import Policy
from segray.execution.tiling import TilingOptions
from segray.execution.worker_pool import WorkerPool
from segray.execution.worker_spec import WorkerSpec
from segray.label_set import (
    batches,
    commit,
    dataset,
    failed_rows,
    merge,
    plan,
    root_check,
    run_records,
    schema,
    snapshot,
)
from segray.label_set.class_names import partition_value
from segray.label_set.conditional_put import WARNING, has_conditional_put
from segray.label_set.failed_rows import RetryRule
from segray.label_set.lease import HeldLease, holding
from segray.label_set.plan import Plan
from segray.label_set.run_records import LabelSetIdentity, Run
from segray.limits import CONFIDENT_SCORE, ImageLimits
from segray.models import engine, model_cache, resolve
from segray.sources import base_prefix
from segray.sources import listing as sources
from segray.sources.passed_over import PassedOver
from segray.sources.shard_index import Index
from segray.sources.uris import WILDCARD, file_of, split_glob
from segray.storage.store import Store
from segray.storage.uris import absolute, join, redact, scheme
from segray.tasks import ALL_STAGES, STAGES, Task

StartWorkers = Callable[[WorkerSpec, Config], WorkerPool]

# Reading the scores of so many files takes a few seconds, even from a store far away.
_MOST_FILES_COUNTED = 500


@dataclass(frozen=True)
class Summary:
    """The results of a run. In a dry run, `planned` and `retired` are what a run would do.

    root: root of the label set.
    images: images by status over the whole label set.
    classes: instances by class name over the whole label set.
    tally: counters of this process.
    seconds: seconds from the first worker's readiness to the last commit, summed over plans.
    startup_s: seconds until the first worker was ready.
    planned: images of the plans that this process carried out.
    retired: images whose rows this process removed.
    workers: facts of each worker, such as host, device and precision.
    failures: image_key, stage and message of a few failed images: of this command's runs, if there were any.
    exit_code: 0, or 3 when more images of this command's runs failed than max_failed_fraction allows.
    of_runs: images by status that this command's runs labelled, in earlier processes too.
    failed_before: failed images of earlier runs, by stage.
    confident: instances of score CONFIDENT_SCORE and more by class name, over the whole label set; None where the
        label set has too many files to count them at once.
    passed_over: entries of the source that are left out, as PassedOver.as_record().
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
    of_runs: Mapping[str, int] = field(default_factory=dict)
    failed_before: Mapping[str, int] = field(default_factory=dict)
    confident: Mapping[str, int] | None = None
    passed_over: Mapping[str, Any] = field(default_factory=dict)


def label(
    config: Config,
    listener: ProgressListener,
    start_workers: StartWorkers,
    *,
    limit: int | None = None,
    dry_run: bool = False,
    retry_failed: Collection[str] = (),
    retry_s: float = Policy.retry_s,
    exclusive: bool = False,
) -> Summary:
    """Label the images that have no row yet, and commit their rows.

    Args:
        config: the configuration.
        listener: receives the progress.
        start_workers: starts the workers of a run.
        limit: largest number of images to label, the first by key; None for all. With a limit nothing is retired.
        dry_run: whether to count only, and write nothing.
        retry_failed: stages of failed images to label again, besides those that config.source says; of tasks.STAGES,
            or tasks.ALL_STAGES alone.
        retry_s: seconds before an image that storage withheld is tried again.
        exclusive: whether to hold the lease of the label set, so that no other exclusive run works on it.

    Returns:
        The summary of the run.

    Raises:
        UserError: the configuration, model or source is at fault; everything committed is kept.
        ConflictError: another exclusive run works on the label set.
        InfrastructureError: the run stopped; everything committed is kept.
        Interrupted: the run was interrupted; everything committed is kept.
    """
    config = with_absolute_paths(config)
    model = model_cache.resolved(config.model, config.storage_options(), listener.note)
    config = config.model_copy(update={"model": model.complete(config.model)})
    options_of(config.model, model.adapter)  # An invalid choice fails here rather than on the first worker.
    signature = model.signature()
    engine.check(signature, model.form, str(model.path))
    engine.check_precision(signature, config.model.precision, str(model.path))
    options = config.storage_options()
    source_store = Store(config.source_storage_options())
    context = RunContext(config, options, Store(options), source_store, identity_of(config, model), listener, retry_s)
    if not run_records.check(context.store, context.root, context.identity):
        root_check.check_free(context.store, context.root)
    totals = _Totals(withheld_before=run_records.left_over(context.store, context.root))
    rule = retry_rule(config, retry_failed)
    if dry_run:
        step = next_step(context, rule, limit=limit, resumable=False)
        _announce(context, step)
        if isinstance(step, Start):
            totals.planned, totals.retired = len(step.to_label), len(step.rows_to_retire)
        return _summary(context, totals)
    with _lease(context, exclusive=exclusive) as lease:
        _bring_up_to_date(replace(context, lease=lease), model, start_workers, totals, rule, limit)
    return _summary(context, totals)


@contextmanager
def _lease(context: RunContext, *, exclusive: bool) -> Iterator[HeldLease | None]:
    """Hold the lease of the label set during the block if the run is exclusive; see lease.holding."""
    if not exclusive:
        yield None
        return
    with holding(context.root, context.store, context.listener.note) as lease:
        yield lease


def _bring_up_to_date(
    context: RunContext,
    model: resolve.ResolvedModel,
    start_workers: StartWorkers,
    totals: _Totals,
    rule: RetryRule,
    limit: int | None,
) -> None:
    """Resume and begin runs until every image has a row, and count the work in `totals`; see label().

    rule: which failed images are labelled again.
    """
    while True:
        batch_number = commit.recover(context.root, context.options, context.store)
        step = next_step(
            context,
            rule,
            limit=limit,
            next_batch=batch_number + 1,
            excluded_runs=totals.runs,
            left_over=totals.left_over,
            tried=totals.tried,
        )
        if isinstance(step, Nothing) and totals.left_over:
            break  # Some images are not labelled; the error below says so.
        _announce(context, step)
        if isinstance(step, Nothing):
            break
        if not totals.is_store_probed and not has_conditional_put(context.store, context.root):
            context.listener.note(f"warning: {WARNING}")
        totals.is_store_probed = True
        work = step if isinstance(step, Resume) else _begin_run(context, step)
        if context.lease is not None:
            context.lease.name_run(work.run.id)
        totals.planned += 0 if work.is_empty else work.plan.images
        totals.carried_out.add(work.run.id)
        is_carried_out = _carry_out(context, model, work, start_workers, totals)
        if isinstance(step, Resume):
            totals.tried = pa.concat_tables([totals.tried, *_rows_to_replace(context, work)])
        if is_carried_out and (limit is not None or isinstance(step, Start)):
            break
        if limit is not None:
            limit = _count_without_row(context, work)
            if not limit:
                break
    if totals.left_over or totals.withheld_before:
        run_records.save_left_over(context.store, context.root, totals.left_over)
    if totals.left_over:
        raise _left_over_error(context, totals.left_over)


# ---- what to do -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resume:
    """A step: go on with a run.

    staged: names of staged files by task.
    todo: tasks of the frozen plan that are neither committed nor staged.
    retire: names of the parts of the plan's rows to remove that still have rows.
    """

    run: Run
    plan: Plan
    staged: Mapping[Task, str]
    todo: list[Task]
    retire: list[str]

    @property
    def is_empty(self) -> bool:
        """Return whether the run only needs its record."""
        return not (self.todo or self.staged or self.retire)

    @property
    def images_before(self) -> int:
        """Return the number of images of the plan that were committed or staged before."""
        return self.plan.images - sum(map(len, self.todo))


@dataclass(frozen=True)
class Start:
    """A step: begin a run.

    to_label: images without a row.
    total: number of images in the source.
    rows_to_retire: committed rows of images that the source no longer lists, as schema.RETIRED.
    rows_to_replace: failed rows of images in `to_label`, as schema.RETIRED.
    """

    to_label: plan.ImageList
    total: int
    rows_to_retire: pa.Table
    rows_to_replace: pa.Table


@dataclass(frozen=True)
class Nothing:
    """A step: do nothing, since all `total` images of the source have a row.

    failed: the failed rows of these images, as failed_rows.ROWS.
    """

    total: int
    failed: pa.Table


Step = Resume | Start | Nothing


def retry_rule(config: Config, stages: Collection[str] = ()) -> RetryRule:
    """Return the rule which failed rows are tried again, as seen from now.

    stages: stages of failed images to label again, besides those that the configuration says. Raises ConfigError for an
    unknown stage.
    """
    if unknown := set(stages) - {*STAGES, ALL_STAGES}:
        raise ConfigError(
            "no such stage of labelling",
            where="--retry-failed",
            found=", ".join(sorted(unknown)),
            hint=f"give some of {', '.join(STAGES)}; without a stage, all failed images are tried again",
        )
    now, after_s = datetime.now(UTC), config.source.retry_unreachable_after
    unreachable_before = None if after_s is None else now - timedelta(seconds=after_s)
    return RetryRule({ALL_STAGES} if config.source.failed == "retry" else frozenset(stages), now, unreachable_before)


def next_step(
    context: RunContext,
    rule: RetryRule,
    *,
    limit: int | None,
    resumable: bool = True,
    next_batch: int = 1,
    excluded_runs: Container[str] = (),
    left_over: Collection[str] = (),
    tried: pa.Table | None = None,
) -> Step:
    """Decide the next step. Read the label set and the source, and write nothing of a run.

    Args:
        context: values that all steps of the run share.
        rule: which failed rows are tried again.
        limit: largest number of images; None for all.
        resumable: whether an unfinished run may be resumed.
        next_batch: number of the next batch.
        excluded_runs: ids of runs that must not be resumed.
        left_over: keys of images that must not be planned again.
        tried: rows that runs which this command resumed have tried again, as schema.RETIRED.
    """
    images = snapshot.committed(context.root, "images", context.options)
    committed = None if images is None else _committed(context, images)
    retiring = context.config.source.deleted == "retire" and limit is None
    resume = _resumable(context, committed, next_batch, retiring, excluded_runs) if resumable else None
    if resume is not None:
        return resume
    failed = failed_rows.ROWS.empty_table()
    if images is not None:
        failed = context.store.retrying(context.root, lambda: failed_rows.read(images))
    is_retried = rule.selects(failed)
    if tried is not None and len(tried):
        is_retried &= ~failed_rows.tried_by(tried, failed)
    to_retry = failed.filter(pa.array(is_retried))
    passed_over = PassedOver()
    to_label, total, is_listed, prefix = listing(
        context.config,
        context.store,
        context.source_store,
        committed,
        to_retry,
        keep_index=resumable,
        passed_over=passed_over,
    )
    for note in passed_over.notes():
        context.listener.note(note)
    context.passed_over.clear()
    context.passed_over.update(passed_over.as_record())
    rows_to_retire = schema.RETIRED.empty_table()
    if retiring and committed is not None and images is not None:
        unread_entries = [prefix + key for key in passed_over.unread]
        rows_to_retire = _rows_to_retire(context, images, committed, to_label, is_listed, prefix, unread_entries)
    to_label = to_label.without(left_over).head(limit)
    if not len(to_label) and not len(rows_to_retire):
        return Nothing(total, failed if committed is None else committed.where(failed, is_listed))
    rows_to_replace = to_label.present(to_retry).select(schema.RETIRED.names)
    return Start(to_label, total, rows_to_retire, rows_to_replace)


def listing(
    config: Config,
    store: Store,
    source_store: Store,
    committed: plan.Committed | None,
    to_retry: pa.Table,
    *,
    keep_index: bool,
    passed_over: PassedOver,
) -> tuple[plan.ImageList, int, NDArray[np.bool_], str]:
    """List the source and compare the list with the committed rows.

    Args:
        config: the configuration.
        store: storage of the label set.
        source_store: storage of the source.
        committed: committed rows of the label set; None without a label set.
        to_retry: failed rows to replace, as failed_rows.ROWS.
        keep_index: whether to write new shard indexes into the label set.
        passed_over: receives the entries of the source that are left out.

    Returns:
        The images to label, the number of images in the source, and the mask over the committed rows (rows,) that the
        source still lists, all three as plan.build returns them; and the prefix of the source's keys.
    """
    base = base_prefix.resolve_base(config.source, source_store)
    index = Index(store, join(config.output.root, "_segray", "index"), keep=keep_index)
    is_replaced = None if committed is None else committed.holding(to_retry)
    batches_of_source = sources.configured(
        config.source, source_store, index, label_set=config.output.root, passed_over=passed_over
    )
    return *plan.build(base.rebased(batches_of_source), committed, is_replaced), base.prefix


def _resumable(
    context: RunContext,
    committed: plan.Committed | None,
    next_batch: int,
    retiring: bool,
    excluded_runs: Container[str],
) -> Resume | None:
    """Return the remaining work of the latest unfinished run over the same source; None without one.

    next_batch: number of the next batch.
    excluded_runs: ids of runs that must not be resumed.
    """
    run = run_records.unfinished(context.store, context.root)
    if run is None or run.id in excluded_runs or run.record(context.store).get("source") != context.config.source.uri:
        return None
    frozen_plan = plan.load(context.store, run.folder)
    if frozen_plan is None:
        return None
    context.passed_over.update(run.record(context.store).get("passed_over", {}))
    has_row = _has_row(context, run, frozen_plan, committed)
    inputs = batches.read_batch_inputs(run, next_batch, context.store)
    names = run_records.select_staged(context.store.names(run.staged), inputs.staged if inputs else ())
    staged = {task: name for task, name in names.items() if not has_row[frozen_plan.rows(task)].any()}
    for task in staged:
        has_row[frozen_plan.rows(task)] = True
    retire: list[str] = []
    if retiring:  # Otherwise a later run that retires finds these rows again.
        retire = [name for name in frozen_plan.retired if len(merge.keys_still_present(run, name, context.options))]
    return Resume(run, frozen_plan, staged, plan.remaining_tasks(frozen_plan, has_row), retire)


def _has_row(context: RunContext, run: Run, frozen_plan: Plan, committed: plan.Committed | None) -> NDArray[np.bool_]:
    """Return which images of the run's plan have a row of their version that the plan does not replace, (images,)."""
    has_row = plan.committed_rows(frozen_plan, committed)
    for name in frozen_plan.retried:
        has_row &= ~frozen_plan.holds(merge.keys_still_present(run, name, context.options))
    return has_row


def _begin_run(context: RunContext, step: Start) -> Resume:
    """Write a new run and its plan."""
    run = run_records.new_run(context.root)
    run_records.create_or_check(context.store, context.root, context.identity)
    commit.create_tables(context.root, context.options)
    config = context.config
    frozen_plan = plan.freeze(
        context.store,
        run.folder,
        step.to_label,
        config.unit_images,
        step.rows_to_retire,
        config.publish.batch_images,
        step.rows_to_replace,
    )
    context.save(run, "running", frozen_plan.images)
    return Resume(run, frozen_plan, {}, frozen_plan.tasks(), list(frozen_plan.retired))


def _announce(context: RunContext, step: Step) -> None:
    """Tell the listener the next step."""
    match step:
        case Resume(run, frozen_plan, staged, _, retire) if not step.is_empty:
            staged_images = sum(map(len, staged))
            committed_images = step.images_before - staged_images
            text = f"{committed_images} of {frozen_plan.images} images committed, {staged_images} staged"
            if retire:
                text += f", {sum(frozen_plan.retired[name] for name in retire)} to retire"
            context.listener.note(f"resuming run {run.id}: {text}")
        case Start(to_label, total, rows_to_retire, rows_to_replace):
            text = _all_labelled(context, total, "label")
            if len(to_label):
                text = f"{len(to_label)} of {total} images to label"
            if len(rows_to_replace):
                text += f", {len(rows_to_replace)} of them failed before"
            if len(rows_to_retire):
                text += f"; {len(rows_to_retire)} images to retire, which the source no longer has"
            context.listener.note(text)
        case Nothing(total, failed):
            text = _all_labelled(context, total, "do")
            if len(failed):
                text += f", {len(failed)} of them as failed. {_advice_on_failed(context, failed)}"
            context.listener.note(text)


def _advice_on_failed(context: RunContext, failed: pa.Table) -> str:
    """Return how many images failed at which stage, how to label them again, and what has changed since.

    failed: failed rows, as failed_rows.ROWS.
    """

    def image_settings(run_id: str) -> Mapping[str, Any]:
        try:
            return dict(Run(context.root, run_id).record(context.store).get("config", {}).get("image", {}))
        except (FileNotFoundError, LabelSetError):
            return {}  # The advice does without a record that is lost.

    config = context.config
    stages = ", ".join(f"{count} at {stage}" for stage, count in failed_rows.by_stage(failed).items())
    sentences = [f"Failed: {stages}. To label failed images again: --retry-failed [STAGE...], or source.failed=retry"]
    raised = failed_rows.raised_limits(failed, config.image.model_dump(), image_settings)
    for name, (old, new, images) in raised.items():
        what = f"image.{name} was raised since, from {old} to {new}"
        sentences.append(f"{what}; images that it refused and that may fit now: {images}")
    unreachable = failed.filter(pa.array(failed_rows.is_unreachable(failed)))
    if len(unreachable) and config.source.retry_unreachable_after is not None:
        oldest: datetime = pc.min(unreachable["labelled_at"]).as_py()
        due = oldest + timedelta(seconds=config.source.retry_unreachable_after)
        sentences.append(f"Unreachable: {len(unreachable)}, tried again from {due:%Y-%m-%d %H:%M} UTC on")
    return ". ".join(sentences)


def _all_labelled(context: RunContext, total: int, verb: str) -> str:
    return f"nothing to {verb}: all {total} images of {context.config.source.uri} are labelled"


def _rows_to_retire(
    context: RunContext,
    images: ds.Dataset,
    committed: plan.Committed,
    to_label: plan.ImageList,
    is_listed: NDArray[np.bool_],
    prefix: str,
    unread_entries: Collection[str],
) -> pa.Table:
    """Return the rows to retire, as schema.RETIRED.

    Args:
        context: values that all steps of the run share.
        images: the table of images.
        committed: the committed rows.
        to_label: images without a row.
        is_listed: mask over the committed rows (rows,), true where the source lists the row's image.
        prefix: prefix of the source's keys. Rows with other keys belong to other sources.
        unread_entries: keys of entries that could not be listed. Rows below them stay.

    Raises:
        SourceError: more rows would go than source.max_retired_fraction allows.
    """
    columns = ["image_key", "version", "batch"]
    rows_to_retire = context.store.retrying(
        context.root,
        lambda: plan.unlisted(to_label, is_listed, committed, lambda: images.to_batches(columns), unread_entries),
    )
    allowed, rows = context.config.source.max_retired_fraction, len(committed)
    if prefix and len(rows_to_retire):
        has_prefix = pc.starts_with(pc.field("image_key"), prefix)
        rows_to_retire = rows_to_retire.filter(has_prefix)
        rows = context.store.retrying(context.root, lambda: images.count_rows(filter=has_prefix))
    is_source_empty = not len(to_label) and not is_listed.any()
    if len(rows_to_retire) > allowed * rows or (len(rows_to_retire) and is_source_empty):
        example = redact(rows_to_retire["image_key"][0].as_py())
        raise SourceError(
            "the source lacks too many images that the label set holds; nothing was retired",
            where=context.config.source.uri,
            found=f"{len(rows_to_retire)} of {rows} are not listed, such as {example!r}; "
            f"source.max_retired_fraction allows {allowed:g}",
            hint="check that the source lists all its images; if so, raise source.max_retired_fraction for this run, "
            "or keep the rows with source.deleted=keep",
        )
    return rows_to_retire


def _count_without_row(context: RunContext, work: Resume) -> int:
    """Return the number of images of a plan that have no row. Rows of other runs count as rows."""
    images = snapshot.committed(context.root, "images", context.options)
    has_row = _has_row(context, work.run, work.plan, None if images is None else _committed(context, images))
    return int((~has_row).sum())


def _rows_to_replace(context: RunContext, work: Resume) -> list[pa.Table]:
    """Return the failed rows that a plan replaces, as schema.RETIRED."""
    return [plan.old_rows(context.store, work.run.folder, name) for name in work.plan.retried]


def _committed(context: RunContext, images: ds.Dataset) -> plan.Committed:
    return context.store.retrying(context.root, lambda: plan.Committed(images.to_batches(["image_key", "version"])))


# ---- doing it -------------------------------------------------------------------------------------


@dataclass
class _Totals:
    """The results of this process, summed over plans.

    withheld_before: errors by key, for images that storage withheld to the end of an earlier process.
    left_over: errors by key, for images that storage withheld to the end of this process.
    runs: ids of runs that left images over.
    carried_out: ids of runs that this process began or resumed.
    tried: rows that resumed runs have tried again, as schema.RETIRED.
    planned, retired: numbers of images.
    startup_s: seconds until the first worker was ready.
    labelling_s: seconds from then to the end of labelling, summed over plans.
    is_store_probed: whether the store was asked for conditional PUT.
    """

    withheld_before: Mapping[str, str] = field(default_factory=dict)
    left_over: dict[str, str] = field(default_factory=dict)
    runs: set[str] = field(default_factory=set)
    carried_out: set[str] = field(default_factory=set)
    tried: pa.Table = field(default_factory=schema.RETIRED.empty_table)
    planned: int = 0
    retired: int = 0
    startup_s: float = 0.0
    labelling_s: float = 0.0
    is_store_probed: bool = False


def _carry_out(
    context: RunContext, model: resolve.ResolvedModel, work: Resume, start_workers: StartWorkers, totals: _Totals
) -> bool:
    """Retire, label and commit the images of the plan.

    Returns False when another run committed meanwhile, so that the remaining images must be planned again.
    """
    try:
        with _recording_end(context, work):
            _retire(context, work, totals)
        if work.todo or work.staged:
            _label(context, model, work, start_workers, totals)
    except ConflictError as exc:
        context.listener.note(f"{exc.what}; planning again")
        context.save(work.run, "superseded", work.plan.images)
        return False
    if work.run.id in totals.runs:
        context.save(work.run, "stopped", work.plan.images, len(totals.left_over))
    else:
        context.save(work.run, "done", work.plan.images)
    return True


def _retire(context: RunContext, work: Resume, totals: _Totals) -> None:
    """Remove the rows that the plan retires, in one commit for each part. No worker is needed."""
    for name in work.retire:
        number = commit.recover(context.root, context.options, context.store) + 1
        inputs = batches.read_batch_inputs(work.run, number, context.store, retiring=True)
        if inputs is None or inputs.retired != (name,):
            inputs = batches.Inputs((), context.provenance(work.run), context.config.publish.file_rows, (name,))
            batches.write_batch_inputs(work.run, number, inputs, context.store)
        batch = merge.merge(work.run, number, inputs, context.options)
        if batch.removed:
            commit.commit(batch, work.run, context.options, context.store)
            totals.retired += batch.removed
            context.counters.replaced_files += batch.replaced_files


def _label(
    context: RunContext, model: resolve.ResolvedModel, work: Resume, start_workers: StartWorkers, totals: _Totals
) -> None:
    limits = ImageLimits(**context.config.image.model_dump(exclude={"timeout_s"}))
    settings = context.config.source.tiles
    tiles = None if settings is None else TilingOptions(**settings.model_dump())
    spec = WorkerSpec(
        context.config.model,
        model.fingerprint,
        limits,
        context.options,
        work.run.staged,
        tiles,
        source_storage=context.source_store.options,
        local_source=_local_source(context.config.source.uri, work),
        description=model.description,
        decoder=None if model.decoder is None else model.decoder.code,
    )
    begin_s = time.monotonic()
    with _recording_end(context, work):
        pool = start_workers(spec, context.config)
    with closing(pool):
        loop = RunLoop(context, work.run, work.plan, work.staged, work.todo, pool, totals.withheld_before)
        try:
            with _recording_end(context, work, loop):
                loop.run()
            if left_over := loop.left_over:
                totals.left_over |= left_over
                totals.runs.add(work.run.id)
        finally:
            totals.startup_s = totals.startup_s or loop.ready_s - begin_s
            totals.labelling_s += time.monotonic() - loop.ready_s


def _local_source(uri: str, work: Resume) -> str:
    """Return the local folder or file that holds all images of a source; "" for remote sources and manifests."""
    if scheme(uri) or not work.todo:
        return ""
    folder = split_glob(uri)[0] if WILDCARD.search(uri) else uri.rstrip("/")
    task = work.todo[0]
    (first,) = work.plan.refs(Task.of(task.unit, [task.indices[0]]))
    return folder if f"{file_of(first.uri)}/".startswith(f"{folder}/") else ""


@contextmanager
def _recording_end(context: RunContext, work: Resume, loop: RunLoop | None = None) -> Iterator[None]:
    """Record that an error ended the run, and add the number of remaining images to the error.

    A ConflictError passes unchanged.
    """
    images = work.plan.images

    def images_done() -> int:
        return work.images_before if loop is None else loop.images_done

    try:
        yield
    except ConflictError:
        raise
    except (KeyboardInterrupt, Interrupted):
        _save_end(context, work.run, "interrupted", images)
        raise Interrupted(
            "interrupted; everything finished so far is kept",
            where=context.root,
            found=f"{images_done()} of {images} images of this run labelled",
            hint="run the same command again to resume",
        ) from None
    except (InfrastructureError, UserError) as exc:
        _save_end(context, work.run, "stopped", images)
        if isinstance(exc, UserError) and images_done() == work.images_before:
            raise  # This process has labelled nothing.
        raise _stop_error(exc, images - images_done()) from exc


def _save_end(context: RunContext, run: Run, state: str, images: int) -> None:
    """Write the state in which the run ends, if storage accepts the record. Every state except "done" can resume."""
    try:
        context.save(run, state, images)
    except (InfrastructureError, AccessError) as exc:
        context.listener.note(f"the record of run {run.id} cannot be written and keeps its last state ({exc.what})")


def _stop_error(exc: InfrastructureError | UserError, remaining_images: int) -> SegrayError:
    """Return the error that ends a run which had begun, with the number of images that remain.

    An error of the user keeps its class and its exit code: no retry repairs the cause.
    """
    found = "; ".join(part for part in (exc.found, f"{remaining_images} images of this run not labelled yet") if part)
    hint = "; ".join(part for part in (exc.hint, "then run the same command again to resume") if part)
    error_class = type(exc) if isinstance(exc, UserError) else InfrastructureError
    return error_class(exc.what, where=exc.where, found=found, hint=hint)


def _left_over_error(context: RunContext, reasons: Mapping[str, str]) -> InfrastructureError:
    """Return the error of a run that left images over.

    reasons: errors by key.
    """
    key, reason = next(iter(reasons.items()))
    images = "1 image" if len(reasons) == 1 else f"{len(reasons)} images"
    return InfrastructureError(
        f"{images} could not be labelled; all others are labelled",
        where=context.config.source.uri,
        found=f"storage withheld {redact(key)}: {reason}",
        hint=f"run the same command again to retry; {join(context.root, '_segray', 'left_over.json')} lists the images",
    )


# ---- how it ended ---------------------------------------------------------------------------------


def _summary(context: RunContext, totals: _Totals) -> Summary:
    images = context.store.retrying(context.root, lambda: _images(context, totals.carried_out))
    allowed = context.config.max_failed_fraction * sum(images.of_runs.values())
    classes, confident = context.store.retrying(context.root, lambda: _instances(context))
    return Summary(
        context.root,
        images.by_status,
        classes,
        context.counters,
        totals.labelling_s,
        totals.startup_s,
        totals.planned,
        totals.retired,
        tuple(context.facts),
        images.failures,
        exit_code=InfrastructureError.exit_code if images.of_runs.get("failed", 0) > allowed else 0,
        of_runs=images.of_runs,
        failed_before=images.failed_before,
        confident=confident,
        passed_over=dict(context.passed_over),
    )


@dataclass(frozen=True)
class _CommittedImages:
    """The committed images: numbers by status, and those of some runs apart; see Summary."""

    by_status: Mapping[str, int] = field(default_factory=dict)
    of_runs: Mapping[str, int] = field(default_factory=dict)
    failed_before: Mapping[str, int] = field(default_factory=dict)
    failures: tuple[tuple[str, str, str], ...] = ()


def _images(context: RunContext, runs: Collection[str], max_failures: int = 5) -> _CommittedImages:
    """Return the committed images by status, those of the runs apart, and a few failed images.

    runs: ids of the runs of this command.
    """
    rows = snapshot.committed(context.root, "images", context.options)
    if rows is None:
        return _CommittedImages()
    is_of_runs = pc.field("run_id").isin(pa.array(sorted(runs), pa.string()))
    is_failed = pc.field("status") == "failed"
    by_status = _count_statuses(rows.to_table(["status"]))
    of_runs = _count_statuses(rows.to_table(["status"], filter=is_of_runs)) if runs else {}
    if not by_status.get("failed"):
        return _CommittedImages(by_status, of_runs)
    before = rows.to_table(["stage"], filter=is_failed & ~is_of_runs)
    named = is_failed & is_of_runs if runs else is_failed
    failed = rows.scanner(["image_key", "stage", "message"], filter=named).head(max_failures)
    failures = tuple((redact(row["image_key"]), row["stage"], row["message"]) for row in failed.to_pylist())
    return _CommittedImages(by_status, of_runs, failed_rows.by_stage(before), failures)


def _count_statuses(rows: pa.Table) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(rows["status"]).to_pylist()}


def _instances(context: RunContext) -> tuple[dict[str, int], dict[str, int] | None]:
    """Return the committed instances by class name, most frequent first: all, and those of CONFIDENT_SCORE and more.

    The first come from the table's log alone. The second are None if the table has more than _MOST_FILES_COUNTED files.
    """
    state = snapshot.table_state(context.root, "instances", context.options)
    if state is None:
        return {}, {}
    recorded = run_records.partition_values(context.store, context.root)
    names = {partition: name for name, partition in recorded.items()}
    totals = Counter[str]()
    for action in state.files.select(["partition.class", "num_records"]).to_pylist():
        totals[names[action["partition.class"]]] += int(action["num_records"])
    classes = dict(totals.most_common())
    if state.files.num_rows > _MOST_FILES_COUNTED:
        return classes, None
    rows = dataset.dataset(state, context.options, context.store.delta_options(context.root))
    is_confident = pc.field("score") >= CONFIDENT_SCORE
    partitions = Counter[str]()
    for batch in rows.to_batches([schema.PARTITION], filter=is_confident):
        for entry in pc.value_counts(batch.column(schema.PARTITION)).to_pylist():
            partitions[entry["values"]] += entry["counts"]
    return classes, {names[partition]: count for partition, count in partitions.most_common()}


# ---- what goes in ---------------------------------------------------------------------------------


def with_absolute_paths(config: Config) -> Config:
    """Return the configuration with absolute local paths, since workers run in other folders."""

    def with_absolute(section: Any, name: str) -> Any:
        uri = getattr(section, name)
        return section.model_copy(update={name: absolute(uri)}) if uri else section

    update = {
        "source": with_absolute(with_absolute(config.source, "uri"), "base"),
        "output": with_absolute(config.output, "root"),
        "model": with_absolute(config.model, "path"),
    }
    return config.model_copy(update=update)


def identity_of(config: Config, model: resolve.ResolvedModel) -> LabelSetIdentity:
    """Return the identity of the label set: model files, contract, form, thresholds, tiles and class list."""
    labels = model.adapter.labels
    classes = tuple((i, name, partition_value(name)) for i, name in sorted(labels.items()))
    settings = model.complete(config.model).model_dump(mode="json")
    keys_that_change_rounding_only = ("precision", "cache_dir", "fixed_shapes")
    keys_of_described_models = [key for key in ("size", "preprocessing", "nms_iou") if settings[key] is None]
    # The fingerprint stands for the files' contents, and the description for a decoder of one's own.
    keys_of_files = ("path", "sha256", "on_change", "adapter")
    left_out = {"name", "form", *keys_of_files, *keys_that_change_rounding_only, *keys_of_described_models}
    facts = {
        "name": model.name,
        "form": model.form.name,
        "files_sha256": model.fingerprint,
        # All other keys of the section change the rows.
        **{key: value for key, value in settings.items() if key not in left_out},
        **({} if model.description is None else {"description": model.description.facts_of_rows()}),
        **({"tiles": config.source.tiles.model_dump()} if config.source.tiles else {}),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    # Equal files from another place are the same model.
    return LabelSetIdentity(digest, facts if model.origin is None else {**facts, "origin": model.origin}, classes)
