"""label(): bring a label set up to date with its dataset. Plan -> schedule -> publish -> report.

Knows the order of things and when a run is over; each thing itself is done elsewhere. The page to start with.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
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
    Interrupted,
    SegrayError,
    SourceError,
    UserError,
    WorldError,
)
from segray.execution.event_loop import Execution, Job
from segray.execution.labeller import Recipe, options_of
from segray.execution.progress import Tally, Watcher
from segray.execution.worker_pool import Workers
from segray.imaging import decode
from segray.imaging.tiling import Tiles
from segray.label_set import commit, plan, run_records, schema, snapshot
from segray.label_set.plan import Plan
from segray.label_set.run_records import Identity, Run
from segray.models import engine, resolve
from segray.models.coco_labels import slug
from segray.sources import base_prefix
from segray.sources import listing as sources
from segray.sources.shard_index import Index
from segray.storage.store import StorageOptions, Store, absolute, join, shown
from segray.tasks import Task

StartWorkers = Callable[[Recipe, Config], Workers]


@dataclass(frozen=True)
class Summary:
    """How a run ended. images: by status over the whole label set; classes: instances by class name likewise.

    tally: what this process labelled, in `seconds` from the first worker's readiness to the last commit; planned:
    images of the plans it carried out; retired: images whose rows it removed. A dry run tells both as they would be.
    failures: image_key, stage and message of a few failed images.
    """

    root: str
    images: Mapping[str, int]
    classes: Mapping[str, int]
    tally: Tally
    seconds: float
    startup_s: float
    planned: int
    retired: int
    workers: tuple[Mapping[str, str], ...]
    failures: tuple[tuple[str, str, str], ...]
    exit_code: int


def label(
    config: Config,
    watcher: Watcher,
    start_workers: StartWorkers,
    *,
    limit: int | None = None,
    dry_run: bool = False,
) -> Summary:
    """Label what is not labelled yet, and commit it.

    limit: at most so many images, the first by key, and nothing is retired. dry_run: count, write nothing.
    Raises UserError before any image is read; WorldError or Interrupted with everything committed kept.
    """
    config = with_absolute_paths(config)
    model = resolve.resolve(config.model.name, config.model.path, config.model.form, config.model.labels)
    options_of(config.model, model.contract)  # Refused here rather than by the first worker.
    found = engine.signature(model.path)
    engine.check(found, model.form, str(model.path))
    engine.check_precision(found, config.model.precision, str(model.path))
    options = StorageOptions(**config.storage.model_dump())
    job = Job(config, options, Store(options), identity_of(config, model), watcher)
    run_records.check(job.store, job.root, job.identity)
    done = _Done()
    while (work := _next_work(job, limit, dry_run)) is not None:
        done.planned += work.plan.images
        if dry_run:
            done.retired = sum(work.plan.retired.values())
            break
        whole = _carry_out(job, model.fingerprint, work, start_workers, done)
        if whole and (limit is not None or not work.resumed):
            break
        if limit is not None and not (limit := _not_committed(job, work.plan)):
            break
    return _summary(job, done)


# ---- what to do -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    run: Run
    plan: Plan
    staged: Mapping[Task, str]
    todo: list[Task]
    retire: list[str]  # parts of the plan's list
    resumed: bool

    @property
    def images_before(self) -> int:
        """Images of the plan that earlier attempts labelled."""
        return self.plan.images - sum(map(len, self.todo))


def _next_work(job: Job, limit: int | None, dry_run: bool) -> _Work | None:
    """The run to resume, or a new one over what is not committed; None when all is done."""
    batch = 0 if dry_run else commit.recover(job.root, job.options, job.store)
    images = snapshot.committed(job.root, "images", job.options)
    committed = None if images is None else _committed(job, images)
    retiring = job.config.source.deleted == "retire" and limit is None
    resumed = None if dry_run else _resumable(job, committed, batch + 1, retiring)
    if resumed is not None:
        return resumed
    listed, total, seen, prefix = listing(job.config, job.store, committed, keep_index=not dry_run)
    gone = schema.RETIRED.empty_table()
    if retiring and committed is not None and images is not None:
        gone = _unlisted(job, images, committed, listed, seen, prefix)
    return _fresh(job, listed.head(limit), total, gone, dry_run)


def listing(
    config: Config, store: Store, committed: plan.Committed | None, *, keep_index: bool
) -> tuple[plan.Listed, int, NDArray[np.bool_], str]:
    """What the source lists, as plan.build says it, and what the keys of the source begin with."""
    part = base_prefix.of(config.source, store)
    index = Index(store, join(config.output.root, "_segray", "index"), keep=keep_index)
    return *plan.build(part.rebased(sources.configured(config.source, store, index)), committed), part.prefix


def _resumable(job: Job, committed: plan.Committed | None, number: int, retiring: bool) -> _Work | None:
    """What is left of the latest unfinished run over the same source. number: of the batch that comes next."""
    run = run_records.unfinished(job.store, job.root)
    record = {} if run is None else run.record(job.store)
    if run is None or record.get("source") != job.config.source.uri:
        return None
    frozen = plan.load(job.store, run.folder)
    if frozen is None:
        return None
    done = plan.committed_rows(frozen, committed)
    before = int(done.sum())
    inputs = commit.intended(run, number, job.store)
    names = run_records.chosen(job.store.names(run.staged), inputs.staged if inputs else ())
    staged = {task: name for task, name in names.items() if not done[frozen.rows(task)].any()}
    for task in staged:
        done[frozen.rows(task)] = True
    todo = plan.left(frozen, done)
    # What is not removed now, a later run finds again.
    retire = [name for name in frozen.retired if retiring and len(commit.still_there(run, name, job.options))]
    if not todo and not staged and not retire:
        job.save(run, "done", frozen.images)
        return None
    left = sum(map(len, todo))
    if record.get("state") == "stopped" and not staged and not retire and left in (record["unreadable"], frozen.images):
        return None  # It got no further. A new plan has these images too, and those that came since.
    found = f"{before} of {frozen.images} images committed, {int(done.sum()) - before} staged"
    found += f", {sum(map(frozen.retired.__getitem__, retire))} to retire" * bool(retire)
    job.watcher.note(f"resuming run {run.id}: {found}")
    return _Work(run, frozen, staged, todo, retire, resumed=True)


def _fresh(job: Job, listed: plan.Listed, total: int, gone: pa.Table, dry_run: bool) -> _Work | None:
    """A new run over what the source has and the tables lack, and what the tables have and the source lacks."""
    source, unit_images = job.config.source.uri, job.config.unit_images
    retiring = f", and {len(gone)} that it no longer has to retire" * bool(len(gone))
    if len(listed):
        job.watcher.note(f"{len(listed)} of {total} images to label{retiring}")
    else:
        nothing = "nothing to label" if retiring else "nothing to do"
        job.watcher.note(f"{nothing}: all {total} images of {source} are labelled{retiring}")
    if not len(listed) and not retiring:
        return None
    run = run_records.new_run(job.root)
    if dry_run:
        counted = replace(plan.of(listed, unit_images), retired={"": len(gone)})
        return _Work(run, counted, {}, [], [], resumed=False)
    run_records.claim(job.store, job.root, job.identity)
    commit.create_tables(job.root, job.options)
    frozen = plan.freeze(job.store, run.folder, listed, unit_images, gone, job.config.publish.batch_images)
    job.save(run, "running", frozen.images)
    return _Work(run, frozen, {}, frozen.tasks(), list(frozen.retired), resumed=False)


def _unlisted(
    job: Job, images: ds.Dataset, committed: plan.Committed, listed: plan.Listed, seen: NDArray[np.bool_], prefix: str
) -> pa.Table:
    """The rows to retire. Raises SourceError when there are more than the configuration allows.

    prefix: what the keys of the source begin with; rows of others are not its own.
    """
    columns = ["image_key", "version", "batch"]
    gone = job.store.insist(
        job.root, lambda: plan.unlisted(listed, seen, committed, lambda: images.to_batches(columns))
    )
    allowed, of = job.config.source.max_retired_fraction, len(committed)
    if prefix and len(gone):
        own = pc.starts_with(pc.field("image_key"), prefix)
        gone = gone.filter(own)
        of = job.store.insist(job.root, lambda: images.count_rows(filter=own))
    nothing = not len(listed) and not seen.any()
    if len(gone) > allowed * of or (len(gone) and nothing):
        raise SourceError(
            "the source lacks too many images that the label set holds; nothing was retired",
            where=job.config.source.uri,
            found=f"{len(gone)} of {of} are not listed, such as {shown(gone['image_key'][0].as_py())!r}; "
            f"source.max_retired_fraction allows {allowed:g}",
            do="see whether the source is whole; if it is, raise source.max_retired_fraction for this run, or keep the "
            "rows with source.deleted=keep",
        )
    return gone


def _not_committed(job: Job, planned: Plan) -> int:
    """How many images of a plan have no row, whoever labelled the others."""
    images = snapshot.committed(job.root, "images", job.options)
    done = plan.committed_rows(planned, None if images is None else _committed(job, images))
    return int((~done).sum())


def _committed(job: Job, images: ds.Dataset) -> plan.Committed:
    return job.store.insist(job.root, lambda: plan.Committed(images.to_batches(["image_key", "version"])))


# ---- doing it -------------------------------------------------------------------------------------


@dataclass
class _Done:
    """What this process did, plan after plan; planned and retired are images."""

    planned: int = 0
    retired: int = 0
    startup_s: float = 0.0
    labelling_s: float = 0.0


def _carry_out(job: Job, fingerprint: str, work: _Work, start_workers: StartWorkers, done: _Done) -> bool:
    """Retire, label and commit the plan; False when another run came between and the rest must be planned again."""
    try:
        with _ended(job, work):
            _retire(job, work, done)
        if work.todo or work.staged:
            _label(job, fingerprint, work, start_workers, done)
    except ConflictError as exc:
        job.watcher.note(f"{exc.what}; planning again")
        job.save(work.run, "superseded", work.plan.images)
        return False
    job.save(work.run, "done", work.plan.images)
    return True


def _retire(job: Job, work: _Work, done: _Done) -> None:
    """Remove the rows of images that are gone, one commit after another. That needs no worker."""
    for name in work.retire:
        number = commit.recover(job.root, job.options, job.store) + 1
        inputs = commit.intended(work.run, number, job.store, retiring=True)
        if inputs is None or inputs.retired != (name,):
            inputs = commit.Inputs((), job.provenance(work.run), job.config.publish.file_rows, (name,))
            commit.intend(work.run, number, inputs, job.store)
        batch = commit.merge(work.run, number, inputs, job.options)
        if batch.removed:
            commit.commit(batch, work.run, job.options, job.store)
            done.retired += batch.removed


def _label(job: Job, fingerprint: str, work: _Work, start_workers: StartWorkers, done: _Done) -> None:
    limits = decode.Limits(**job.config.image.model_dump(exclude={"timeout_s"}))
    asked = job.config.source.tiles
    tiles = None if asked is None else Tiles(**asked.model_dump())
    recipe = Recipe(job.config.model, fingerprint, limits, job.options, work.run.staged, tiles)
    began = time.monotonic()
    with _ended(job, work):
        pool = start_workers(recipe, job.config)
    with closing(pool):
        execution = Execution(job, work.run, work.plan, work.staged, work.todo, pool)
        try:
            with _ended(job, work, execution):
                execution.run()
        finally:
            done.startup_s = done.startup_s or execution.ready_s - began
            done.labelling_s += time.monotonic() - execution.ready_s


@contextmanager
def _ended(job: Job, work: _Work, execution: Execution | None = None) -> Iterator[None]:
    """What ends the run before its end is told with what is left of it; a lost race is not told yet."""
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
            do="run the same command again to go on",
        ) from None
    except (WorldError, UserError) as exc:
        _leave(job, work.run, "stopped", images, execution.images_unreadable if execution else 0)
        if isinstance(exc, UserError) and images_done() == work.images_before:
            raise  # Nothing was done.
        raise _stopped(exc, images - images_done()) from exc


def _leave(job: Job, run: Run, state: str, images: int, unreadable: int = 0) -> None:
    """Say in the run's record why it ends, if storage still takes it; any state but "done" is resumed."""
    try:
        job.save(run, state, images, unreadable)
    except (WorldError, AccessError) as exc:
        job.watcher.note(f"run {run.id} is left as it stands: its record cannot be written ({exc.what})")


def _stopped(exc: SegrayError, left: int) -> WorldError:
    """The same error as the end of a run that had begun: work is left, whoever is at fault."""
    found = "; ".join(part for part in (exc.found, f"{left} images of this run not labelled yet") if part)
    do = "; ".join(part for part in (exc.do, "then run the same command again to go on") if part)
    return WorldError(exc.what, where=exc.where, found=found, do=do)


# ---- how it ended ---------------------------------------------------------------------------------


def _summary(job: Job, done: _Done) -> Summary:
    images, failures = job.store.insist(job.root, lambda: _images(job))
    allowed = job.config.max_failed_fraction * sum(images.values())
    return Summary(
        job.root,
        images,
        job.store.insist(job.root, lambda: _classes(job)),
        job.tally,
        done.labelling_s,
        done.startup_s,
        done.planned,
        done.retired,
        tuple(job.facts),
        failures,
        exit_code=WorldError.exit_code if images.get("failed", 0) > allowed else 0,
    )


def _images(job: Job, most: int = 5) -> tuple[dict[str, int], tuple[tuple[str, str, str], ...]]:
    rows = snapshot.committed(job.root, "images", job.options)
    if rows is None:
        return {}, ()
    status = pc.value_counts(rows.to_table(["status"]).column("status")).to_pylist()
    failed = rows.scanner(["image_key", "stage", "message"], filter=pc.field("status") == "failed").head(most)
    failures = tuple((shown(row["image_key"]), row["stage"], row["message"]) for row in failed.to_pylist())
    return {entry["values"]: entry["counts"] for entry in status}, failures


def _classes(job: Job) -> dict[str, int]:
    """Committed instances by class name, most first; from the log alone."""
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
    """Local paths made absolute: workers run in other folders."""

    def moved(section: Any, name: str) -> Any:
        uri = getattr(section, name)
        return section.model_copy(update={name: absolute(uri)}) if uri else section

    update = {
        "source": moved(moved(config.source, "uri"), "base"),
        "output": moved(config.output, "root"),
        "model": moved(config.model, "path"),
    }
    return config.model_copy(update=update)


def identity_of(config: Config, model: resolve.Model) -> Identity:
    """What makes the label set: files, contract, form, thresholds, class list."""
    labels = model.contract.labels
    classes = tuple((i, name, slug(name)) for i, name in sorted(labels.items()))
    if len({value for _, _, value in classes}) != len(classes):
        raise ConfigError("two class names of the label map become the same partition", where="the label map")
    rounding_alone = ("precision", "cache_dir", "fixed_shapes")
    facts = {
        "name": model.name,
        "form": model.form.name,
        "files_sha256": model.fingerprint,
        # Everything else in the section decides which rows come out.
        **config.model.model_dump(mode="json", exclude={"name", "form", "path", *rounding_alone}),
        **({"tiles": config.source.tiles.model_dump()} if config.source.tiles else {}),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return Identity(digest, facts, classes)
