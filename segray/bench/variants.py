"""The variants of the benchmark, each a function over the same workload; each runs in a process of its own.

Knows the work, and the times between which the work is measured. Knows nothing of repetition or of other variants.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from segray import config
from segray.bench import naive
from segray.bench.workload import Measurement, Workload, read_pixels
from segray.execution.events import PoolEvent, TaskFinished
from segray.execution.run import label
from segray.execution.worker_pool import WorkerPool
from segray.execution.worker_spec import WorkerSpec
from segray.imaging import codecs
from segray.imaging.opencv import cv2
from segray.instances import ImageRef
from segray.models.engine import Compiled
from segray.models.openvino import ov
from segray.tasks import Task

# Number of prepared images in memory.
_MOST_TENSORS = 32
_INSTANCES = "labels/instances"


# ---- (a) and (b): the bounds of this machine ------------------------------------------------------


def upper_bound(workload: Workload, folder: Path) -> Measurement:
    """Measure a bare AsyncInferQueue over prepared tensors; the outputs are not read."""
    compiled, tensors = _prepare_tensors(workload)
    queue = ov.AsyncInferQueue(compiled.network, 0)

    def infer(count: int) -> None:
        for tensor in islice(cycle(tensors), count):
            queue.start_async(tensor, share_inputs=True)
        queue.wait_all()

    infer(2 * len(queue))
    began_s, cpu_began_s = time.monotonic(), time.process_time()
    infer(len(workload.images))
    ended_s, cpu_s = time.monotonic(), time.process_time() - cpu_began_s
    return Measurement(began_s, ended_s, len(workload.images), {"infer": cpu_s}, facts=compiled.facts)


def lower_bound(workload: Workload, folder: Path) -> Measurement:
    """Measure the work that no variant can avoid, each part alone.

    The parts are JPEG decode on one thread, and inference of one image at a time.
    """
    files = [Path(path).read_bytes() for path in workload.images[: 2 * _MOST_TENSORS]]
    cv2.setNumThreads(1)
    cpu_began_s = time.thread_time()
    for data in files:
        _decode(data)
    decode_s_per_image = (time.thread_time() - cpu_began_s) / len(files)
    compiled, tensors = _prepare_tensors(workload)
    request = compiled.network.create_infer_request()
    request.infer(tensors[0])
    count = max(2, len(workload.images) // 4)
    began_s, cpu_began_s = time.monotonic(), time.process_time()
    for tensor in islice(cycle(tensors), count):
        request.infer(tensor, share_inputs=True)
    cpu_s = time.process_time() - cpu_began_s
    cpu_seconds = {"decode": decode_s_per_image * count, "infer": cpu_s}
    return Measurement(began_s, time.monotonic(), count, cpu_seconds, facts=compiled.facts)


def _decode(data: bytes) -> None:
    """Decode a file as fast as a program can that needs the pixels: JPEGs by libjpeg-turbo, other files by OpenCV."""
    size_hw = codecs.jpeg_size_hw(data)
    if size_hw is None or codecs.decode_sound_jpeg(data, size_hw) is None:
        cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)


def _prepare_tensors(workload: Workload) -> tuple[Compiled, list[dict[int, NDArray[Any]]]]:
    """Return the compiled model, and images prepared for it."""
    compiled, adapter, form, _ = workload.compile_model()
    prepared = [adapter.prepare(form, image) for image in read_pixels(workload.images, _MOST_TENSORS)]
    return compiled, [compiled.inputs(arrays) for arrays in prepared]


# ---- (c): segray ----------------------------------------------------------------------------------


class _TimedPool:
    """A worker pool that records when the first unit was assigned and when the first and last units came back."""

    def __init__(self, workers: WorkerPool, marks: dict[str, float]) -> None:
        self._workers, self._marks = workers, marks

    def events(self, timeout_s: float) -> list[PoolEvent]:
        events = self._workers.events(timeout_s)
        if any(isinstance(event, TaskFinished) for event in events):
            self._marks.setdefault("first_unit_s", time.monotonic())
            self._marks["last_unit_s"] = time.monotonic()
        return events

    def assign(self, worker: str, task: Task, refs: Sequence[ImageRef]) -> None:
        self._marks.setdefault("began_s", time.monotonic())
        self._workers.assign(worker, task, refs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._workers, name)


def segray(workload: Workload, folder: Path) -> Measurement:
    """Measure `segray label` of the manifest on a private Ray, from the first assigned unit to the last commit."""
    return _label(workload.configuration(folder / "labels"), folder)


def remote(workload: Workload, folder: Path) -> Measurement:
    """Measure `segray label` of the images' copies in object storage, timed as in `segray`."""
    configuration = workload.configuration(folder / "labels")
    source = configuration.source.model_copy(update={"uri": workload.remote})
    return _label(configuration.model_copy(update={"source": source}), folder)


def _label(configuration: config.Config, folder: Path) -> Measurement:
    from segray.execution import ray_pool
    from segray.monitoring import console

    marks: dict[str, float] = {}

    def start(spec: WorkerSpec, settings: config.Config) -> WorkerPool:
        workers: Any = _TimedPool(ray_pool.start(spec, settings), marks)
        return workers  # type: ignore[no-any-return]

    with console.listener() as listener:
        summary = label(configuration, listener, start)
    commits = sorted(_commit_times(folder / "labels" / "images" / "_delta_log"))
    marks["first_commit_s"] = commits[0]
    facts = {"failed": str(summary.tally.failed)}
    return Measurement(marks.pop("began_s"), commits[-1], summary.tally.images, summary.tally.cpu_seconds, marks, facts)


def _commit_times(log: Path) -> Iterator[float]:
    """Yield the times of a Delta log's commits, as of time.monotonic, without version 0, which creates the table."""
    offset_s = time.monotonic() - time.time()
    for file in log.glob("*.json"):
        if int(file.stem):
            yield file.stat().st_mtime + offset_s


# ---- (e): a script --------------------------------------------------------------------------------


def script(workload: Workload, folder: Path) -> Measurement:
    """Measure a script: one process, one image at a time.

    The model is compiled for latency, because only one image is ever in flight.
    """
    compiled, adapter, form, options = workload.compile_model("LATENCY")
    request = compiled.network.create_infer_request()
    cpu_seconds: dict[str, float] = defaultdict(float)
    rows: list[naive.Row] = []
    began_s = time.monotonic()
    for path in workload.images:
        with _count_cpu_s(cpu_seconds, "decode"):
            image = cv2.imread(path, cv2.IMREAD_COLOR_RGB)
        if image is None:
            continue
        with _count_cpu_s(cpu_seconds, "prepare"):
            inputs = naive.prepare(adapter, form, np.asarray(image, np.uint8))
        with _count_cpu_s(cpu_seconds, "infer"):
            request.infer(compiled.inputs(inputs))
        with _count_cpu_s(cpu_seconds, "postprocess"):
            outputs = compiled.outputs(request)
            rows += naive.rows(adapter, outputs, path, (image.shape[0], image.shape[1]), options)
    with _count_cpu_s(cpu_seconds, "write"):
        if rows:
            pq.write_to_dataset(pa.Table.from_pylist(rows), folder / _INSTANCES, partition_cols=["class"])
    return Measurement(began_s, time.monotonic(), len(workload.images), dict(cpu_seconds))


# ---- (f): a script with several requests ----------------------------------------------------------


def queue_script(workload: Workload, folder: Path) -> Measurement:
    """Measure a script as one writes it for speed: an AsyncInferQueue, OpenCV, pycocotools and pyarrow, one process.

    The main thread reads and prepares. The queue's callbacks decode the outputs.
    """
    compiled, adapter, form, options = workload.compile_model()
    rows: list[naive.Row] = []

    def add_rows(request: ov.InferRequest, image: tuple[str, tuple[int, int]]) -> None:
        rows.extend(naive.rows(adapter, compiled.outputs(request), *image, options))

    queue = ov.AsyncInferQueue(compiled.network, 0)
    queue.set_callback(add_rows)
    cv2.setNumThreads(1)
    began_s, cpu_began_s = time.monotonic(), time.process_time()
    for path in workload.images:
        image = cv2.imread(path, cv2.IMREAD_COLOR_RGB)
        if image is not None:
            inputs = compiled.inputs(naive.prepare(adapter, form, np.asarray(image, np.uint8)))
            queue.start_async(inputs, (path, (image.shape[0], image.shape[1])))
    queue.wait_all()
    if rows:
        pq.write_to_dataset(pa.Table.from_pylist(rows), folder / _INSTANCES, partition_cols=["class"])
    cpu_s = time.process_time() - cpu_began_s
    return Measurement(began_s, time.monotonic(), len(workload.images), {"script": cpu_s})


@contextmanager
def _count_cpu_s(cpu_seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the CPU seconds of this process and all its threads to a stage."""
    began_s = time.process_time()
    yield
    cpu_seconds[stage] += time.process_time() - began_s


def _ray_data(workload: Workload, folder: Path) -> Measurement:
    from segray.bench import ray_data

    return ray_data.run(workload, folder)


# By the name in the record, which stays the same from release to release.
VARIANTS: Mapping[str, Callable[[Workload, Path], Measurement]] = {
    "ceiling": upper_bound,
    "floor": lower_bound,
    "segray": segray,
    "remote": remote,
    "ray_data": _ray_data,
    "script": script,
    "queue": queue_script,
}
