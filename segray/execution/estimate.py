"""The estimate of a run before it starts: a listing is counted, a sample is measured, and both are multiplied.

Knows the work of a run and how often each part is done. Labels a sample on this machine with the configured model and
without Ray, into a folder that it deletes. Writes nothing else. Knows only the prices and machines that the
configuration names.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import cycle, islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from segray import config
from segray._system import memory
from segray._system.memory import MemoryBudget
from segray.config import Config
from segray.execution import run
from segray.execution.image_steps import WORKING_BYTES
from segray.execution.labeller import Labeller
from segray.execution.progress import ProgressListener
from segray.execution.worker_pool import InProcess
from segray.execution.worker_spec import WorkerSpec, build, prepared_process
from segray.instances import ImageRef
from segray.label_set import plan, run_records, snapshot
from segray.limits import ImageLimits
from segray.models import engine, resolve
from segray.sources.parquet_images import BUFFER_BYTES
from segray.sources.reader import Files
from segray.sources.uris import extension, inside
from segray.storage.store import StorageOptions, Store
from segray.tasks import Task

_WARM_UP_SHARE = 0.15
_TURNS = 8
# The share of its CPUs that a labeller keeps busy when it waits for nothing.
_BUSY = 0.8
_GB = 1e9
_LIST_KEYS = 1000
_PLAN_ROWS = 65_536


@dataclass(frozen=True)
class SourceEstimate:
    """The images of the source.

    images: images that are still to label.
    total: images in the source.
    bytes: bytes of the images to label whose size is known.
    formats: images to label by extension, and by the file that holds them.
    unversioned: images to label without a version, so that segray cannot notice their change.
    seconds: seconds of listing.
    """

    images: int
    total: int
    bytes: int
    formats: Mapping[str, int]
    unversioned: int
    seconds: float


@dataclass(frozen=True)
class Sample:
    """Images that were labelled on this machine.

    images: images of the sample.
    failed: images of the sample that failed.
    failures: image_key, stage and message of a few failed images.
    labelled: images labelled against the clock, some more than once.
    seconds, cpu_seconds: wall seconds and the process's CPU seconds of labelling `labelled` images, after a warm-up.
    startup_s: seconds to load the model.
    instances: mean number of instances of an image.
    instances_error: standard error of that mean.
    classes: number of classes that were found.
    bytes, megapixels: means of an image.
    row_bytes: bytes of a row, by table.
    file_bytes: bytes of a file besides its rows.
    reads: requests to storage for an image.
    rss_bytes: resident memory of this process at its end.
    facts: facts of the engine.
    """

    images: int
    failed: int
    failures: tuple[tuple[str, str, str], ...]
    labelled: int
    seconds: float
    cpu_seconds: float
    startup_s: float
    instances: float
    instances_error: float
    classes: int
    bytes: float
    megapixels: float
    row_bytes: Mapping[str, float]
    file_bytes: float
    reads: float
    rss_bytes: int
    facts: Mapping[str, str]

    @property
    def images_per_s(self) -> float:
        """Return the speed in images/s."""
        return self.labelled / self.seconds


@dataclass(frozen=True)
class NodeEstimate:
    """The time and cost of the run on one node of a type.

    images_per_s: expected speed.
    hours: hours of one node for all images.
    cost: cost of these hours; None without a price.
    memory_gb: memory of the node in GB; None if unknown.
    needs_gb: memory in GB that a worker needs.
    """

    name: str
    cpus: int
    images_per_s: float
    hours: float
    cost: float | None
    memory_gb: float | None
    needs_gb: float


@dataclass(frozen=True)
class OutputEstimate:
    """The output of the run, for all images to label.

    instances: expected instances.
    instances_error: half width of their 95 % interval.
    gigabytes: size of the tables in GB.
    batches: commits.
    files: files by table.
    reads, writes: requests to storage.
    """

    instances: int
    instances_error: int
    gigabytes: float
    batches: int
    files: Mapping[str, int]
    reads: int
    writes: int


@dataclass(frozen=True)
class RunEstimate:
    """The answer of `segray plan`.

    threads: threads of a worker here.
    sample, output: None where nothing is left to label.
    costs: cost of storage by kind.
    """

    source: str
    root: str
    listed: SourceEstimate
    threads: int
    sample: Sample | None = None
    nodes: tuple[NodeEstimate, ...] = ()
    output: OutputEstimate | None = None
    costs: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def estimate(asked: Config, listener: ProgressListener) -> RunEstimate:
    """List the source, label a sample of the images that are left, and return the estimate for all of them.

    No Ray starts. Raises UserError as run.label does before its first image, InfrastructureError when storage cannot be
    reached.
    """
    asked = run.with_absolute_paths(asked)
    model = resolve.resolve(asked.model.name, asked.model.path, asked.model.form, asked.model.labels)
    options = StorageOptions(**asked.storage.model_dump())
    store = Store(options)
    run_records.check(store, asked.output.root, run.identity_of(asked, model))
    began = time.monotonic()
    left, total = _left(asked, store, options)
    listed = _listed(left, total, time.monotonic() - began)
    listener.note(f"{listed.images} of {total} images to label, listed in {listed.seconds:.1f} s")
    threads = _threads(asked.workers[0])
    found = RunEstimate(asked.source.uri, asked.output.root, listed, threads)
    if not listed.images:
        return found
    sample = _sampled(asked, left, store, threads, listener)
    found = replace(found, sample=sample, output=_output(asked, listed, sample))
    found = replace(found, nodes=tuple(_nodes(asked, found)))
    return replace(found, costs=_costs(asked, found), warnings=tuple(_warnings(asked, found)))


# ---- counting -------------------------------------------------------------------------------------


def _left(asked: Config, store: Store, options: StorageOptions) -> tuple[plan.ImageList, int]:
    root, columns = asked.output.root, ["image_key", "version"]
    rows = snapshot.committed(root, "images", options)
    committed = None if rows is None else store.retrying(root, lambda: plan.Committed(rows.to_batches(columns)))
    left, total, _, _ = run.listing(asked, store, committed, keep_index=False)
    return left, total


def _listed(left: plan.ImageList, total: int, seconds: float) -> SourceEstimate:
    formats: Counter[str] = Counter()
    size_bytes = unversioned = 0
    for rows in _parts(left):
        formats.update(map(_format, rows["image_key"].to_pylist(), rows["uri"].to_pylist()))
        size_bytes += sum(max(0, each) for each in rows["bytes"].to_pylist())
        unversioned += sum(not each for each in rows["version"].to_pylist())
    return SourceEstimate(len(left), total, size_bytes, dict(formats.most_common()), unversioned, seconds)


def _parts(left: plan.ImageList) -> Iterator[pa.Table]:
    return (left.rows(first, _PLAN_ROWS) for first in range(0, len(left), _PLAN_ROWS))


def _format(key: str, uri: str) -> str:
    place = inside(uri)
    if place is None or place.kind in ("tar", "zip"):
        last = extension(key) or "no extension"
        return last if place is None else f"{last} in {place.kind}"
    return {"parquet": "rows of Parquet", "video": "frames of video"}.get(place.kind, "unreadable")


# ---- measuring ------------------------------------------------------------------------------------


class _Kept(InProcess):
    """A worker that leaves the labeller open, since the labeller is measured afterwards."""

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _sampled(asked: Config, left: plan.ImageList, store: Store, threads: int, listener: ProgressListener) -> Sample:
    """Label images at even distances in the listing: once for their rows, then repeatedly against the clock."""
    chosen = _evenly(left, asked.plan.sample_images)
    listener.note(f"labelling {len(chosen)} of them here, with {threads} threads and without Ray")
    built: list[tuple[Labeller, Mapping[str, str], float]] = []

    def start(spec: WorkerSpec, given: Config) -> InProcess:
        began = time.monotonic()
        labeller, facts = build(spec, asked.workers[0].device, threads)
        built.append((labeller, facts, time.monotonic() - began))
        return _Kept(labeller, facts)

    with prepared_process(), tempfile.TemporaryDirectory(prefix="segray-plan-") as folder:
        done = run.label(_in_its_stead(asked, chosen, Path(folder)), ProgressListener(), start)
        ((labeller, facts, startup_s),) = built
        try:
            labelled, seconds, cpu_seconds = _measured(
                labeller, chosen, asked.plan.sample_s, len(chosen) / max(done.seconds, 1e-3)
            )
        finally:
            labeller.close()
        images = snapshot.images(done.root).to_table().to_pylist()
        sizes = {name: _sizes(Path(done.root, name)) for name in ("instances", "images")}
    readable = [row for row in images if row["status"] != "failed"] or images
    counts = [row["n_instances"] for row in images]
    return Sample(
        images=len(images),
        failed=sum(row["status"] == "failed" for row in images),
        failures=done.failures,
        labelled=labelled,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        startup_s=startup_s,
        instances=statistics.fmean(counts),
        instances_error=statistics.stdev(counts) / math.sqrt(len(counts)) if len(counts) > 1 else 0.0,
        classes=len(done.classes),
        bytes=statistics.fmean(row["bytes"] for row in images),
        megapixels=statistics.fmean(row["height"] * row["width"] for row in readable) / 1e6,
        row_bytes={name: rows for name, (rows, _) in sizes.items()},
        file_bytes=max(besides for _, besides in sizes.values()),
        reads=_reads(asked, left, store),
        rss_bytes=memory.rss_bytes(),
        facts=facts,
    )


def _evenly(left: plan.ImageList, most: int) -> list[ImageRef]:
    count = min(most, len(left))
    refs = []
    for i in range(count):
        ((key,), (uri,), (version,), (size_bytes,)) = left.rows(i * len(left) // count, 1).to_pydict().values()
        refs.append(ImageRef(key, uri, version, size_bytes))
    return refs


def _in_its_stead(asked: Config, chosen: Sequence[ImageRef], folder: Path) -> Config:
    """Return the same configuration for the sample alone."""
    names = ("key", "uri", "version")
    pq.write_table(
        pa.table({name: [getattr(ref, name) for ref in chosen] for name in names}), folder / "sample.parquet"
    )
    update = {
        "source": config.SourceSettings(uri=str(folder / "sample.parquet"), kind="manifest"),
        "output": config.OutputSettings(root=str(folder / "labels")),
        "max_failed_fraction": 1.0,
    }
    return asked.model_copy(update=update)


def _measured(labeller: Labeller, refs: Sequence[ImageRef], least_s: float, guess: float) -> tuple[int, float, float]:
    """Label the images again and again, two tasks at a time as in a run; return images, seconds and CPU seconds.

    least_s: seconds that the measurement should last.
    guess: expected images/s.
    """
    images = max(len(refs), round(guess * least_s))
    again = cycle(refs)

    def turn(number: int, count: int) -> None:
        labeller.label(Task(number, 0, count), list(islice(again, count)))

    turn(0, max(1, round(images * _WARM_UP_SHARE)))
    each = max(1, -(-images // _TURNS))
    began, cpu = time.monotonic(), time.process_time()
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(turn, number, each) for number in range(1, _TURNS + 1)]:
            done.result()
    return each * _TURNS, time.monotonic() - began, time.process_time() - cpu


def _sizes(folder: Path) -> tuple[float, float]:
    """Return the bytes of a row in the Parquet files below a folder, and a file's bytes besides its rows."""
    rows = columns_bytes = besides = 0
    files = [path for path in folder.rglob("*.parquet") if "_delta_log" not in path.parts]
    for path in files:
        facts = pq.ParquetFile(path).metadata
        groups = [facts.row_group(group) for group in range(facts.num_row_groups)]
        held = sum(group.column(i).total_compressed_size for group in groups for i in range(facts.num_columns))
        rows, columns_bytes, besides = rows + facts.num_rows, columns_bytes + held, besides + path.stat().st_size - held
    return columns_bytes / max(1, rows), besides / max(1, len(files))


def _reads(asked: Config, left: plan.ImageList, store: Store) -> float:
    """Return the requests to storage for an image, in a unit from the middle of the listing."""
    count = min(asked.unit_images, len(left))
    (images,) = [left.rows((len(left) - count) // 2, count).to_pydict()]
    refs = [ImageRef(*row) for row in zip(*images.values(), strict=True)]
    portions = Files(store, ImageLimits(**asked.image.model_dump(exclude={"timeout_s"})), MemoryBudget(0)).portions(
        refs
    )
    requests = 0
    for portion in portions:
        place = inside(refs[portion.rows[0]].uri)
        by_buffer = place is not None and place.kind in ("parquet", "video")
        requests += (
            max(1, -(-sum(max(0, refs[row].size_bytes) for row in portion.rows) // BUFFER_BYTES)) if by_buffer else 1
        )
    return requests / count


# ---- multiplying ----------------------------------------------------------------------------------


def _threads(pool: config.PoolSettings) -> int:
    return pool.threads or (max(1, int(pool.num_cpus)) if pool.num_cpus else engine.available_cpus())


def _output(asked: Config, listed: SourceEstimate, sample: Sample) -> OutputEstimate:
    images, units = listed.images, -(-listed.images // asked.unit_images)
    instances = round(sample.instances * images)
    batches = -(-images // asked.publish.batch_images)
    files = {
        "instances": max(batches * sample.classes, -(-instances // asked.publish.file_rows)),
        "images": max(batches, -(-images // asked.publish.file_rows)),
    }
    size_bytes = instances * sample.row_bytes["instances"] + images * sample.row_bytes["images"]
    size_bytes += sum(files.values()) * sample.file_bytes
    return OutputEstimate(
        instances,
        round(1.96 * sample.instances_error * images),
        size_bytes / _GB,
        batches,
        files,
        # Images, the listing, and staged files when they are merged.
        reads=round(images * sample.reads) + -(-listed.total // _LIST_KEYS) + units,
        # Staged files, tables, and a handful of records for each commit.
        writes=units + sum(files.values()) + 6 * batches,
    )


def _nodes(asked: Config, found: RunEstimate) -> Iterator[NodeEstimate]:
    assert found.sample is not None
    here = config.NodeType(name="this machine", cpus=found.threads)
    for kind in (here, *asked.plan.nodes):
        images_per_s = found.sample.images_per_s * kind.cpus * kind.speed / found.threads
        hours = found.listed.images / images_per_s / 3600
        cost = None if kind.price_per_hour is None else hours * kind.price_per_hour
        needs = found.sample.rss_bytes + max(0, kind.cpus - found.threads) * WORKING_BYTES
        yield NodeEstimate(kind.name, kind.cpus, images_per_s, hours, cost, kind.memory_gb, needs / _GB)


def _costs(asked: Config, found: RunEstimate) -> dict[str, float]:
    assert found.output is not None
    prices = asked.plan
    amounts = {
        "reads": (prices.price_per_1000_reads, found.output.reads / 1000),
        "writes": (prices.price_per_1000_writes, found.output.writes / 1000),
        "storage per month": (prices.price_per_gb_month, found.output.gigabytes),
    }
    return {name: price * amount for name, (price, amount) in amounts.items() if price is not None}


# ---- warning --------------------------------------------------------------------------------------


def _warnings(asked: Config, found: RunEstimate) -> Iterator[str]:
    sample, output = found.sample, found.output
    assert sample is not None
    assert output is not None
    yield from _about_cpus(asked, found)
    if asked.model.precision == "auto" and asked.workers[0].device == "CPU":
        yield (
            f"model.precision auto means {sample.facts['precision']} here and may mean another on other CPUs; a run "
            "whose workers differ is refused: set it to what you want"
        )
    yield from _about_memory(found)
    if sample.failed:
        allowed = asked.max_failed_fraction
        over = f", over max_failed_fraction {allowed:g}: such a run ends with exit code 3"
        key, stage, message = sample.failures[0]
        said = f"{sample.failed} of {sample.images} images of the sample failed"
        yield f"{said}{over if sample.failed > allowed * sample.images else ''}; {key}: {stage}: {_line(message)}"
    if sample.instances and 1.96 * sample.instances_error > 0.2 * sample.instances:
        yield "images differ much in their instances: raise plan.sample_images for a better number of rows"
    if found.listed.unversioned:
        yield f"{found.listed.unversioned} images have no version: when they change they are not labelled again"
    if output.files["instances"] > 10_000:
        yield f"{output.files['instances']} files of instances: raise publish.batch_images for fewer, or compact later"
    if len(asked.workers) > 1:
        yield f"only the first of {len(asked.workers)} pools was measured, {asked.workers[0].device}"


def _line(text: str) -> str:
    return text.partition("\n")[0]


def _about_cpus(asked: Config, found: RunEstimate) -> Iterator[str]:
    sample, allowed, cores = found.sample, engine.available_cpus(), os.cpu_count() or 1
    assert sample is not None
    if allowed < cores:
        yield f"this process may use {allowed} of the machine's {cores} CPUs (affinity or cgroup quota)"
    if found.threads > allowed:
        yield f"{found.threads} threads on {allowed} CPUs: the workers asked for do not fit here"
    pool, busy = asked.workers[0], sample.cpu_seconds / sample.seconds
    if pool.device == "CPU" and busy < _BUSY * found.threads:
        yield (
            f"the sample kept {busy:.1f} of {found.threads} CPUs busy: others took them, or storage was waited for; "
            "measure on a quiet machine near the storage"
        )
    if pool.device != "CPU" or found.threads < allowed:
        return
    if asked.cluster.address is not None:
        yield (
            "a worker takes every CPU of its node, so other jobs of the cluster wait for it: leave Ray one with "
            f"workers: [{{num_cpus: {max(1, allowed - 1)}}}]"
        )
    elif allowed <= 4:
        yield f"Ray and merging share the {allowed} CPUs with the worker; the sample was measured without them"


def _about_memory(found: RunEstimate) -> Iterator[str]:
    here = memory.limit_bytes() / _GB
    for node in found.nodes:
        held = here if node.memory_gb is None and node.name == "this machine" else node.memory_gb
        if held and node.needs_gb > 0.7 * held:
            yield f"{node.name}: a worker holds {node.needs_gb:.1f} GB or more, and there are {held:.1f} GB"


# ---- saying ---------------------------------------------------------------------------------------


def describe(found: RunEstimate, duration: Callable[[float], str]) -> str:
    """Return the estimate for a person.

    duration: writes seconds as text.
    """
    listed = found.listed
    formats = ", ".join(f"{count:,} {name}" for name, count in listed.formats.items())
    lines = [f"{listed.images:,} of {listed.total:,} images of {found.source} to label"]
    if found.sample is None or found.output is None:
        return "\n".join([*lines, "nothing to do"])
    sample, output = found.sample, found.output
    size = listed.bytes or round(sample.bytes * listed.images)
    lines += [
        f"images    {size / _GB:,.3f} GB{'' if listed.bytes else ', by the sample'}: {formats}",
        f"sample    {sample.images} images of {sample.megapixels:.2f} megapixels, {sample.bytes / 1e6:.2f} MB: "
        f"{sample.images_per_s:.2f} images/s with {found.threads} threads, {sample.facts['device']} in "
        f"{sample.facts['precision']} ({sample.labelled} labelled in {sample.seconds:.1f} s, ready after "
        f"{sample.startup_s:.1f} s)",
        f"rows      {output.instances:,} instances, give or take {output.instances_error:,}; {listed.images:,} images",
        f"files     {output.files['instances']:,} of instances, {output.files['images']:,} of images in "
        f"{output.batches:,} commits; {output.gigabytes:,.3f} GB",
        f"requests  {output.reads:,} reads, {output.writes:,} writes",
        "",
        f"{'node':<20} {'CPUs':>5} {'images/s':>9} {'node-hours':>11} {'one node':>12} {'cost':>10} {'memory':>9}",
    ]
    for node in found.nodes:
        cost = "" if node.cost is None else f"{node.cost:,.2f}"
        lines.append(
            f"{node.name:<20} {node.cpus:>5} {node.images_per_s:>9.2f} {node.hours:>11,.2f} "
            f"{duration(node.hours * 3600):>12} {cost:>10} {node.needs_gb:>6.1f} GB"
        )
    if len(found.nodes) > 1:
        lines.append("other nodes by their CPUs: as if each were as fast as one here, times the type's `speed`")
    lines += [f"cost of {name}: {cost:,.4f}" for name, cost in found.costs.items()]
    return "\n".join([*lines, *(f"warning: {warning}" for warning in found.warnings)])
