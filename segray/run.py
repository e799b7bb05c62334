"""label(): bring a label set up to date with its dataset. Plan -> schedule -> publish -> report.

Knows the order of things and when a run is over; each thing itself is done elsewhere. The page to start with.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from segray import image, ledger, plan, publish, runtime, sources, zoo
from segray.config import Config
from segray.contracts.labels import slug
from segray.errors import AccessError, ConfigError, ConflictError, Interrupted, SegrayError, WorldError
from segray.execute import Execution, Job, Tally, Watcher
from segray.instances import Task
from segray.label import Recipe, options_of
from segray.ledger import Identity, Run
from segray.plan import Plan
from segray.storage import StorageOptions, Store, absolute, shown
from segray.tables import open_table
from segray.workers import Workers

StartWorkers = Callable[[Recipe, Config], Workers]


@dataclass(frozen=True)
class Summary:
    """How a run ended. images: by status over the whole label set; classes: instances by class name likewise.

    tally: what this process labelled, in `seconds` from the first worker's readiness to the last commit; planned:
    images of the plans it carried out. failures: image_key, stage and message of a few failed images.
    """

    root: str
    images: Mapping[str, int]
    classes: Mapping[str, int]
    tally: Tally
    seconds: float
    startup_s: float
    planned: int
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

    limit: at most so many images, the first by key. dry_run: count, write nothing.
    Raises UserError before any image is read; WorldError or Interrupted with everything committed kept.
    """
    config = with_absolute_paths(config)
    model = zoo.resolve(config.model.name, config.model.path, config.model.form, config.model.labels)
    options_of(config.model, model.contract)  # Refused here rather than by the first worker.
    found = runtime.signature(model.path)
    runtime.check(found, model.form, str(model.path))
    runtime.check_precision(found, config.model.precision, str(model.path))
    options = StorageOptions(**config.storage.model_dump())
    job = Job(config, options, Store(options), identity_of(config, model), watcher)
    ledger.check(job.store, job.root, job.identity)
    times, planned = _Times(), 0
    while (work := _next_work(job, limit, dry_run)) is not None:
        planned += work.plan.images
        if dry_run:
            break
        whole = _carry_out(job, model.fingerprint, work, start_workers, times)
        if limit is not None or (whole and not work.resumed):
            break
    return _summary(job, planned, times)


# ---- what to do -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Work:
    run: Run
    plan: Plan
    staged: Mapping[Task, str]
    todo: list[Task]
    resumed: bool


def _next_work(job: Job, limit: int | None, dry_run: bool) -> _Work | None:
    """The run to resume, or a new one over what is not committed; None when all is done."""
    batch = 0
    if not dry_run and open_table(job.root, "images", job.options) is not None:
        batch = publish.recover(job.root, job.options, job.store)
    committed = _committed(job)
    resumed = None if dry_run else _resumable(job, committed, batch + 1)
    return resumed or _fresh(job, committed, limit, dry_run)


def _resumable(job: Job, committed: plan.Committed | None, number: int) -> _Work | None:
    """What is left of the latest unfinished run over the same source. number: of the batch that comes next."""
    run = ledger.unfinished(job.store, job.root)
    if run is None or run.record(job.store).get("source") != job.config.source.uri:
        return None
    frozen = plan.load(job.store, run.folder)
    if frozen is None:
        return None
    done = plan.committed_rows(frozen, committed)
    before = int(done.sum())
    inputs = publish.intended(run, number, job.store)
    names = ledger.chosen(job.store.names(run.staged), inputs.staged if inputs else ())
    staged = {task: name for task, name in names.items() if not done[frozen.rows(task)].any()}
    for task in staged:
        done[frozen.rows(task)] = True
    todo = plan.left(frozen, done)
    if not todo and not staged:
        job.save(run, "done", frozen.images)
        return None
    found = f"{before} of {frozen.images} images committed, {int(done.sum()) - before} staged"
    job.watcher.note(f"resuming run {run.id}: {found}")
    return _Work(run, frozen, staged, todo, resumed=True)


def _fresh(job: Job, committed: plan.Committed | None, limit: int | None, dry_run: bool) -> _Work | None:
    """A new run over what the source has and the tables lack."""
    source, unit_images = job.config.source.uri, job.config.unit_images
    listed, total = plan.build(sources.read(source, job.store), committed)
    listed = listed.head(limit)
    if not len(listed):
        job.watcher.note(f"nothing to do: all {total} images of {source} are labelled")
        return None
    job.watcher.note(f"{len(listed)} of {total} images to label")
    run = ledger.new_run(job.root)
    if dry_run:
        return _Work(run, plan.of(listed, unit_images), {}, [], resumed=False)
    ledger.claim(job.store, job.root, job.identity)
    publish.create_tables(job.root, job.options)
    frozen = plan.freeze(job.store, run.folder, listed, unit_images)
    job.save(run, "running", frozen.images)
    return _Work(run, frozen, {}, frozen.tasks(), resumed=False)


def _committed(job: Job) -> plan.Committed | None:
    table = open_table(job.root, "images", job.options)
    if table is None:
        return None
    columns = ["image_key", "version"]
    return job.store.insist(job.root, lambda: plan.Committed(table.to_pyarrow_dataset().to_batches(columns)))


# ---- doing it -------------------------------------------------------------------------------------


@dataclass
class _Times:
    startup_s: float = 0.0
    labelling_s: float = 0.0


def _carry_out(job: Job, fingerprint: str, work: _Work, start_workers: StartWorkers, times: _Times) -> bool:
    """Label and commit the plan; False when another run came between and the rest must be planned again."""
    limits = image.Limits(**job.config.image.model_dump(exclude={"timeout_s"}))
    recipe = Recipe(job.config.model, fingerprint, limits, job.options, work.run.staged)
    began, images = time.monotonic(), work.plan.images
    pool = start_workers(recipe, job.config)
    execution = Execution(job, work.run, work.plan, work.staged, work.todo, pool)
    try:
        execution.run()
    except ConflictError as exc:
        job.watcher.note(f"{exc.what}; planning again")
        job.save(work.run, "superseded", images)
        return False
    except (KeyboardInterrupt, Interrupted):
        _leave(job, work.run, "interrupted", images)
        raise Interrupted(
            "interrupted; everything finished so far is kept",
            where=job.root,
            found=f"{execution.images_done} of {images} images of this run labelled",
            do="run the same command again to go on",
        ) from None
    except (WorldError, AccessError) as exc:
        _leave(job, work.run, "stopped", images)
        if isinstance(exc, AccessError) and not execution.images_done:
            raise
        raise _stopped(exc, images - execution.images_done) from exc
    finally:
        pool.close()
        times.startup_s = times.startup_s or execution.ready_s - began
        times.labelling_s += time.monotonic() - execution.ready_s
    job.save(work.run, "done", images)
    return True


def _leave(job: Job, run: Run, state: str, images: int) -> None:
    """Say in the run's record why it ends, if storage still takes it; any state but "done" is resumed."""
    try:
        job.save(run, state, images)
    except (WorldError, AccessError) as exc:
        job.watcher.note(f"run {run.id} is left as it stands: its record cannot be written ({exc.what})")


def _stopped(exc: SegrayError, left: int) -> WorldError:
    """The same error as the end of a run that had begun: work is left, whoever is at fault."""
    found = "; ".join(part for part in (exc.found, f"{left} images of this run not labelled yet") if part)
    do = "; ".join(part for part in (exc.do, "then run the same command again to go on") if part)
    return WorldError(exc.what, where=exc.where, found=found, do=do)


# ---- how it ended ---------------------------------------------------------------------------------


def _summary(job: Job, planned: int, times: _Times) -> Summary:
    images, failures = job.store.insist(job.root, lambda: _images(job))
    allowed = job.config.max_failed_fraction * sum(images.values())
    return Summary(
        job.root,
        images,
        job.store.insist(job.root, lambda: _classes(job)),
        job.tally,
        times.labelling_s,
        times.startup_s,
        planned,
        tuple(job.facts),
        failures,
        exit_code=WorldError.exit_code if images.get("failed", 0) > allowed else 0,
    )


def _images(job: Job, most: int = 5) -> tuple[dict[str, int], tuple[tuple[str, str, str], ...]]:
    table = open_table(job.root, "images", job.options)
    if table is None:
        return {}, ()
    rows = table.to_pyarrow_dataset()
    status = pc.value_counts(rows.to_table(["status"]).column("status")).to_pylist()
    failed = rows.scanner(["image_key", "stage", "message"], filter=pc.field("status") == "failed").head(most)
    failures = tuple((shown(row["image_key"]), row["stage"], row["message"]) for row in failed.to_pylist())
    return {entry["values"]: entry["counts"] for entry in status}, failures


def _classes(job: Job) -> dict[str, int]:
    """Committed instances by class name, most first; from the log alone."""
    table = open_table(job.root, "instances", job.options)
    if table is None:
        return {}
    names = {value: name for _, name, value in job.identity.classes}
    counts: dict[str, int] = {}
    for action in pa.table(table.get_add_actions(flatten=True)).to_pylist():
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
        "source": moved(config.source, "uri"),
        "output": moved(config.output, "root"),
        "model": moved(config.model, "path"),
    }
    return config.model_copy(update=update)


def identity_of(config: Config, model: zoo.Model) -> Identity:
    """What makes the label set: files, contract, form, thresholds, class list."""
    labels = model.contract.labels
    classes = tuple((i, name, slug(name)) for i, name in sorted(labels.items()))
    if len({value for _, _, value in classes}) != len(classes):
        raise ConfigError("two class names of the label map become the same partition", where="the label map")
    facts = {
        "name": model.name,
        "form": model.form.name,
        "files_sha256": model.fingerprint,
        # Everything else in the section decides which rows come out.
        **config.model.model_dump(mode="json", exclude={"name", "form", "path", "precision", "cache_dir"}),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return Identity(digest, facts, classes)
