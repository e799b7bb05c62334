"""The estimate of a run before the run starts: count the listing, measure a sample, and multiply.

Knows the work of a run, and how often each part of the work is done. Labels a sample on this machine with the
configured model and without Ray, into a temporary folder. Writes nothing else. Knows only the prices and machines that
the configuration names.
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
from typing import Any

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
from segray.label_set import failed_rows, plan, root_check, run_records, snapshot
from segray.limits import ImageLimits
from segray.models import engine, model_cache
from segray.sources.parquet_images import BUFFER_BYTES
from segray.sources.passed_over import PassedOver
from segray.sources.reader import Files
from segray.sources.uris import extension, inside
from segray.storage.store import Store
from segray.tasks import Task

_WARM_UP_SHARE = 0.15
_TASKS = 8
# The share of the CPUs that a labeller keeps busy if nothing delays it.
_BUSY_SHARE = 0.8
_GB = 1e9
_THIS_MACHINE = "this machine"
_LIST_KEYS = 1000
_PLAN_ROWS = 65_536


@dataclass(frozen=True)
class SourceEstimate:
    """The images of the source.

    images: number of images to label.
    total: number of images in the source.
    bytes: bytes of the images to label, as far as their sizes are known.
    formats: images to label by format, such as "jpg" or "jpg in tar".
    unversioned: images to label without a version, whose changes segray cannot notice.
    seconds: seconds of listing.
    passed_over: entries of the source that are left out, as PassedOver.as_record().
    """

    images: int
    total: int
    bytes: int
    formats: Mapping[str, int]
    unversioned: int
    seconds: float
    passed_over: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """Measurements of images that were labelled on this machine.

    images: images of the sample.
    failed: images of the sample that failed.
    failures: image_key, stage and message of a few failed images.
    labelled: images labelled in the measurement of speed, some more than once.
    seconds, cpu_seconds: wall seconds and the process's CPU seconds of labelling `labelled` images, after a warm-up.
    startup_s: seconds to load the model.
    instances: mean number of instances of an image.
    instances_error: standard error of that mean.
    classes: number of classes with instances.
    bytes, megapixels: means of an image.
    row_bytes: bytes of a row in Parquet files, by table.
    file_bytes: bytes of a Parquet file without the rows.
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

    name: name of the type.
    cpus: CPUs of the node.
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

    instances: expected number of instances.
    instances_error: half width of the 95 % interval of `instances`.
    gigabytes: size of the tables in GB.
    batches: number of commits.
    files: number of files by table.
    reads, writes: numbers of requests to storage.
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
    """The result of `segray plan`.

    source: URI of the source.
    root: root of the label set.
    listed: the images of the source.
    threads: threads of a worker on this machine.
    sample, output: None if no image is to be labelled.
    nodes: estimates by type of node, this machine first.
    costs: cost of storage by kind.
    warnings: sentences about the configuration, the sample and this machine.
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


def estimate(configuration: Config, listener: ProgressListener) -> RunEstimate:
    """List the source, label a sample of the images to label, and return the estimate for all of them.

    Args:
        configuration: the configuration of the run.
        listener: receives messages.

    Raises:
        UserError: the configuration, model or source is at fault.
        InfrastructureError: storage cannot be reached.
    """
    configuration = run.with_absolute_paths(configuration)
    model = model_cache.resolved(configuration.model, configuration.storage_options(), listener.note)
    configuration = configuration.model_copy(update={"model": model.complete(configuration.model)})
    store, source_store = Store(configuration.storage_options()), Store(configuration.source_storage_options())
    if not run_records.check(store, configuration.output.root, run.identity_of(configuration, model)):
        root_check.check_free(store, configuration.output.root)
    begin_s = time.monotonic()
    passed_over = PassedOver()
    to_label, total = _list_images(configuration, store, source_store, passed_over)
    for note in passed_over.notes():
        listener.note(note)
    counts = _count_images(to_label, total, time.monotonic() - begin_s)
    listed = replace(counts, passed_over=passed_over.as_record())
    listener.note(f"{listed.images} of {total} images to label, listed in {listed.seconds:.1f} s")
    threads = _threads(configuration.workers[0])
    run_estimate = RunEstimate(configuration.source.uri, configuration.output.root, listed, threads)
    if not listed.images:
        return run_estimate
    sample = _measure_sample(configuration, to_label, source_store, threads, listener)
    run_estimate = replace(run_estimate, sample=sample, output=_output(configuration, listed, sample))
    run_estimate = replace(run_estimate, nodes=tuple(_nodes(configuration, run_estimate)))
    return replace(
        run_estimate, costs=_costs(configuration, run_estimate), warnings=tuple(_warnings(configuration, run_estimate))
    )


# ---- counting -------------------------------------------------------------------------------------


def _list_images(
    configuration: Config, store: Store, source_store: Store, passed_over: PassedOver
) -> tuple[plan.ImageList, int]:
    """Return the images to label, and the number of images in the source."""
    root, columns = configuration.output.root, ["image_key", "version"]
    rows = snapshot.committed(root, "images", store.options)
    committed = None if rows is None else store.retrying(root, lambda: plan.Committed(rows.to_batches(columns)))
    failed = failed_rows.ROWS.empty_table() if rows is None else store.retrying(root, lambda: failed_rows.read(rows))
    to_retry = failed.filter(pa.array(run.retry_rule(configuration).selects(failed)))
    to_label, total, _, _ = run.listing(
        configuration, store, source_store, committed, to_retry, keep_index=False, passed_over=passed_over
    )
    return to_label, total


def _count_images(to_label: plan.ImageList, total: int, seconds: float) -> SourceEstimate:
    formats: Counter[str] = Counter()
    size_bytes = unversioned = 0
    for rows in _row_batches(to_label):
        formats.update(map(_format, rows["image_key"].to_pylist(), rows["uri"].to_pylist()))
        size_bytes += sum(max(0, image_bytes) for image_bytes in rows["bytes"].to_pylist())
        unversioned += sum(not version for version in rows["version"].to_pylist())
    return SourceEstimate(len(to_label), total, size_bytes, dict(formats.most_common()), unversioned, seconds)


def _row_batches(to_label: plan.ImageList) -> Iterator[pa.Table]:
    return (to_label.rows(first, _PLAN_ROWS) for first in range(0, len(to_label), _PLAN_ROWS))


def _format(key: str, uri: str) -> str:
    """Return the format of an image for people: the extension, and the kind of the container."""
    container = inside(uri)
    if container is None or container.kind in ("tar", "zip"):
        suffix = extension(key) or "no extension"
        return suffix if container is None else f"{suffix} in {container.kind}"
    return {"parquet": "rows of Parquet", "video": "frames of video"}.get(container.kind, "unreadable")


# ---- measuring ------------------------------------------------------------------------------------


class _UnclosedInProcess(InProcess):
    """A worker that does not close the labeller, since the speed of the labeller is measured afterwards."""

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _measure_sample(
    configuration: Config, to_label: plan.ImageList, store: Store, threads: int, listener: ProgressListener
) -> Sample:
    """Label images at even distances in the listing: once for their rows, then repeatedly to measure the speed."""
    sample_refs = _pick_evenly(to_label, configuration.plan.sample_images)
    listener.note(f"labelling {len(sample_refs)} of these images here, with {threads} threads and without Ray")
    built: list[tuple[Labeller, Mapping[str, str], float]] = []

    def start(spec: WorkerSpec, _: Config) -> InProcess:
        begin_s = time.monotonic()
        labeller, facts = build(spec, configuration.workers[0].device, threads)
        built.append((labeller, facts, time.monotonic() - begin_s))
        return _UnclosedInProcess(labeller, facts)

    with prepared_process(), tempfile.TemporaryDirectory(prefix="segray-plan-") as folder:
        summary = run.label(_sample_configuration(configuration, sample_refs, Path(folder)), ProgressListener(), start)
        ((labeller, facts, startup_s),) = built
        try:
            labelled, seconds, cpu_seconds = _measure_speed(
                labeller, sample_refs, configuration.plan.sample_s, len(sample_refs) / max(summary.seconds, 1e-3)
            )
        finally:
            labeller.close()
        images = snapshot.images(summary.root).to_table().to_pylist()
        sizes = {name: _sizes(Path(summary.root, name)) for name in ("instances", "images")}
    readable = [row for row in images if row["status"] != "failed"] or images
    counts = [row["n_instances"] for row in images]
    return Sample(
        images=len(images),
        failed=sum(row["status"] == "failed" for row in images),
        failures=summary.failures,
        labelled=labelled,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        startup_s=startup_s,
        instances=statistics.fmean(counts),
        instances_error=statistics.stdev(counts) / math.sqrt(len(counts)) if len(counts) > 1 else 0.0,
        classes=len(summary.classes),
        bytes=statistics.fmean(row["bytes"] for row in images),
        megapixels=statistics.fmean(row["height"] * row["width"] for row in readable) / 1e6,
        row_bytes={name: row_bytes for name, (row_bytes, _) in sizes.items()},
        file_bytes=max(file_bytes for _, file_bytes in sizes.values()),
        reads=_reads(configuration, to_label, store),
        rss_bytes=memory.rss_bytes(),
        facts=facts,
    )


def _pick_evenly(to_label: plan.ImageList, max_images: int) -> list[ImageRef]:
    count = min(max_images, len(to_label))
    refs = []
    for i in range(count):
        ((key,), (uri,), (version,), (size_bytes,)) = to_label.rows(i * len(to_label) // count, 1).to_pydict().values()
        refs.append(ImageRef(key, uri, version, size_bytes))
    return refs


def _sample_configuration(configuration: Config, refs: Sequence[ImageRef], folder: Path) -> Config:
    """Return the same configuration with the sample as its source and a label set in a folder."""
    names = ("key", "uri", "version")
    pq.write_table(pa.table({name: [getattr(ref, name) for ref in refs] for name in names}), folder / "sample.parquet")
    update = {
        "source": config.SourceSettings(
            uri=str(folder / "sample.parquet"), kind="manifest", storage=configuration.source.storage
        ),
        "output": config.OutputSettings(root=str(folder / "labels")),
        "max_failed_fraction": 1.0,
    }
    return configuration.model_copy(update=update)


def _measure_speed(
    labeller: Labeller, refs: Sequence[ImageRef], least_s: float, expected_images_per_s: float
) -> tuple[int, float, float]:
    """Label the images repeatedly, two tasks at a time as in a run.

    Args:
        labeller: the labeller.
        refs: the images.
        least_s: seconds that the measurement should last.
        expected_images_per_s: expected speed.

    Returns:
        The number of labelled images, the wall seconds and the CPU seconds, without the warm-up.
    """
    images = max(len(refs), round(expected_images_per_s * least_s))
    repeated_refs = cycle(refs)

    def label(number: int, count: int) -> None:
        labeller.label(Task(number, 0, count), list(islice(repeated_refs, count)))

    label(0, max(1, round(images * _WARM_UP_SHARE)))
    task_images = max(1, -(-images // _TASKS))
    begin_s, cpu_begin_s = time.monotonic(), time.process_time()
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(label, number, task_images) for number in range(1, _TASKS + 1)]:
            future.result()
    return task_images * _TASKS, time.monotonic() - begin_s, time.process_time() - cpu_begin_s


def _sizes(folder: Path) -> tuple[float, float]:
    """Return the mean bytes of a row in the Parquet files below a folder, and of a file without the rows."""
    rows = rows_bytes = files_bytes = 0
    files = [path for path in folder.rglob("*.parquet") if "_delta_log" not in path.parts]
    for path in files:
        metadata = pq.ParquetFile(path).metadata
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        rows += metadata.num_rows
        rows_bytes += sum(
            group.column(i).total_compressed_size for group in groups for i in range(metadata.num_columns)
        )
        files_bytes += path.stat().st_size
    return rows_bytes / max(1, rows), (files_bytes - rows_bytes) / max(1, len(files))


def _reads(configuration: Config, to_label: plan.ImageList, store: Store) -> float:
    """Return the mean number of requests to storage for an image, in a unit from the middle of the listing."""
    count = min(configuration.unit_images, len(to_label))
    (images,) = [to_label.rows((len(to_label) - count) // 2, count).to_pydict()]
    refs = [ImageRef(*row) for row in zip(*images.values(), strict=True)]
    limits = ImageLimits(**configuration.image.model_dump(exclude={"timeout_s"}))
    requests = 0
    for read in Files(store, limits, MemoryBudget(0)).portions(refs):
        container = inside(refs[read.rows[0]].uri)
        if container is not None and container.kind in ("parquet", "video"):  # These are read buffer by buffer.
            read_bytes = sum(max(0, refs[row].size_bytes) for row in read.rows)
            requests += max(1, -(-read_bytes // BUFFER_BYTES))
        else:
            requests += 1
    return requests / count


# ---- multiplying ----------------------------------------------------------------------------------


def _threads(pool: config.PoolSettings) -> int:
    return pool.threads or (max(1, int(pool.num_cpus)) if pool.num_cpus else engine.available_cpus())


def _output(configuration: Config, listed: SourceEstimate, sample: Sample) -> OutputEstimate:
    images, units = listed.images, -(-listed.images // configuration.unit_images)
    instances = round(sample.instances * images)
    batches = -(-images // configuration.publish.batch_images)
    files = {
        "instances": max(batches * sample.classes, -(-instances // configuration.publish.file_rows)),
        "images": max(batches, -(-images // configuration.publish.file_rows)),
    }
    size_bytes = instances * sample.row_bytes["instances"] + images * sample.row_bytes["images"]
    size_bytes += sum(files.values()) * sample.file_bytes
    return OutputEstimate(
        instances,
        round(1.96 * sample.instances_error * images),
        size_bytes / _GB,
        batches,
        files,
        # Images, the listing, and the reads of staged files for merging.
        reads=round(images * sample.reads) + -(-listed.total // _LIST_KEYS) + units,
        # Staged files, files of the tables, and six records for each commit.
        writes=units + sum(files.values()) + 6 * batches,
    )


def _nodes(configuration: Config, run_estimate: RunEstimate) -> Iterator[NodeEstimate]:
    assert run_estimate.sample is not None
    this_machine = config.NodeType(name=_THIS_MACHINE, cpus=run_estimate.threads)
    for node in (this_machine, *configuration.plan.nodes):
        images_per_s = run_estimate.sample.images_per_s * node.cpus * node.speed / run_estimate.threads
        hours = run_estimate.listed.images / images_per_s / 3600
        cost = None if node.price_per_hour is None else hours * node.price_per_hour
        needed_bytes = run_estimate.sample.rss_bytes + max(0, node.cpus - run_estimate.threads) * WORKING_BYTES
        yield NodeEstimate(node.name, node.cpus, images_per_s, hours, cost, node.memory_gb, needed_bytes / _GB)


def _costs(configuration: Config, run_estimate: RunEstimate) -> dict[str, float]:
    assert run_estimate.output is not None
    prices = configuration.plan
    amounts = {
        "reads": (prices.price_per_1000_reads, run_estimate.output.reads / 1000),
        "writes": (prices.price_per_1000_writes, run_estimate.output.writes / 1000),
        "storage per month": (prices.price_per_gb_month, run_estimate.output.gigabytes),
    }
    return {name: price * amount for name, (price, amount) in amounts.items() if price is not None}


# ---- warnings -------------------------------------------------------------------------------------


def _warnings(configuration: Config, run_estimate: RunEstimate) -> Iterator[str]:
    sample, output = run_estimate.sample, run_estimate.output
    assert sample is not None
    assert output is not None
    yield from _cpu_warnings(configuration, run_estimate)
    if configuration.model.precision == "auto" and configuration.workers[0].device == "CPU":
        yield (
            f"model.precision auto means {sample.facts['precision']} here and may mean another precision on other "
            "CPUs; a run whose workers differ is refused: set model.precision to one that all nodes have"
        )
    yield from _memory_warnings(run_estimate)
    if sample.failed:
        allowed = configuration.max_failed_fraction
        text = f"{sample.failed} of {sample.images} images of the sample failed"
        if sample.failed > allowed * sample.images:
            text += f", over max_failed_fraction {allowed:g}: such a run ends with exit code 3"
        key, stage, message = sample.failures[0]
        yield f"{text}; {key}: {stage}: {_first_line(message)}"
    if sample.instances and 1.96 * sample.instances_error > 0.2 * sample.instances:
        yield "the number of instances varies much between images: raise plan.sample_images for a better estimate"
    if run_estimate.listed.unversioned:
        yield f"{run_estimate.listed.unversioned} images have no version: segray cannot notice their changes"
    if output.files["instances"] > 10_000:
        yield (
            f"{output.files['instances']} files of instances: raise publish.batch_images for fewer files, or compact "
            "the label set later"
        )
    if len(configuration.workers) > 1:
        yield f"only the first of {len(configuration.workers)} pools was measured, {configuration.workers[0].device}"


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def _cpu_warnings(configuration: Config, run_estimate: RunEstimate) -> Iterator[str]:
    sample, allowed, cores = run_estimate.sample, engine.available_cpus(), os.cpu_count() or 1
    assert sample is not None
    if allowed < cores:
        yield f"this process may use {allowed} of the machine's {cores} CPUs (affinity or cgroup quota)"
    if run_estimate.threads > allowed:
        yield f"{run_estimate.threads} threads on {allowed} CPUs: the configured workers do not fit here"
    pool, busy_cpus = configuration.workers[0], sample.cpu_seconds / sample.seconds
    if pool.device == "CPU" and busy_cpus < _BUSY_SHARE * run_estimate.threads:
        yield (
            f"the sample kept {busy_cpus:.1f} of {run_estimate.threads} CPUs busy: other processes used the CPUs, or "
            "labelling waited for storage; measure on an idle machine near the storage"
        )
    if pool.device != "CPU" or run_estimate.threads < allowed:
        return
    if configuration.cluster.address is not None:
        yield (
            "a worker takes every CPU of its node, so other jobs of the cluster wait for it: leave one CPU to Ray with "
            f"workers: [{{num_cpus: {max(1, allowed - 1)}}}]"
        )
    elif allowed <= 4:
        yield f"Ray and merging share the {allowed} CPUs with the worker; the sample was measured without them"


def _memory_warnings(run_estimate: RunEstimate) -> Iterator[str]:
    local_gb = memory.limit_bytes() / _GB
    for node in run_estimate.nodes:
        node_gb = local_gb if node.memory_gb is None and node.name == _THIS_MACHINE else node.memory_gb
        if node_gb and node.needs_gb > 0.7 * node_gb:
            yield f"{node.name}: a worker holds {node.needs_gb:.1f} GB or more, and the node has {node_gb:.1f} GB"


# ---- describing -----------------------------------------------------------------------------------


def describe(run_estimate: RunEstimate, duration: Callable[[float], str]) -> str:
    """Return the estimate for a person.

    duration: writes seconds as text.
    """
    listed = run_estimate.listed
    formats = ", ".join(f"{count:,} {name}" for name, count in listed.formats.items())
    lines = [f"{listed.images:,} of {listed.total:,} images of {run_estimate.source} to label"]
    if run_estimate.sample is None or run_estimate.output is None:
        return "\n".join([*lines, "nothing to do"])
    sample, output = run_estimate.sample, run_estimate.output
    size = f"{listed.bytes / _GB:,.3f} GB"
    if not listed.bytes:
        size = f"{round(sample.bytes * listed.images) / _GB:,.3f} GB, by the sample"
    lines += [
        f"images    {size}: {formats}",
        f"sample    {sample.images} images of {sample.megapixels:.2f} megapixels, {sample.bytes / 1e6:.2f} MB: "
        f"{sample.images_per_s:.2f} images/s with {run_estimate.threads} threads, {sample.facts['device']} in "
        f"{sample.facts['precision']} ({sample.labelled} labelled in {sample.seconds:.1f} s, ready after "
        f"{sample.startup_s:.1f} s)",
        f"rows      {output.instances:,} instances, plus or minus {output.instances_error:,}; {listed.images:,} images",
        f"files     {output.files['instances']:,} of instances, {output.files['images']:,} of images in "
        f"{output.batches:,} {'commit' if output.batches == 1 else 'commits'}; {output.gigabytes:,.3f} GB",
        f"requests  {output.reads:,} reads, {output.writes:,} writes",
        "",
        f"{'node':<20} {'CPUs':>5} {'images/s':>9} {'node-hours':>11} {'one node':>12} {'cost':>10} {'memory':>9}",
    ]
    for node in run_estimate.nodes:
        cost = "" if node.cost is None else f"{node.cost:,.2f}"
        lines.append(
            f"{node.name:<20} {node.cpus:>5} {node.images_per_s:>9.2f} {node.hours:>11,.2f} "
            f"{duration(node.hours * 3600):>12} {cost:>10} {node.needs_gb:>6.1f} GB"
        )
    if len(run_estimate.nodes) > 1:
        lines.append("other nodes: a CPU is taken to be as fast as one of this machine, times `speed` of the node type")
    lines += [f"cost of {name}: {cost:,.4f}" for name, cost in run_estimate.costs.items()]
    return "\n".join([*lines, *(f"warning: {warning}" for warning in run_estimate.warnings)])
