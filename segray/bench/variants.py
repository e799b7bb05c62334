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
from segray.bench.workload import Lap, Workload, pixels
from segray.execution.events import PoolEvent, TaskFinished
from segray.execution.run import label
from segray.execution.worker_pool import WorkerPool
from segray.execution.worker_spec import WorkerSpec
from segray.imaging.opencv import cv2
from segray.instances import ImageRef
from segray.models.engine import Compiled
from segray.models.openvino import ov
from segray.tasks import Task

# Number of prepared images in memory.
_MOST_TENSORS = 32
_INSTANCES = "labels/instances"


# ---- (a) and (b): what the machine can do ---------------------------------------------------------


def ceiling(load: Workload, folder: Path) -> Lap:
    """Measure a bare AsyncInferQueue over prepared tensors; the outputs are not read."""
    compiled, tensors = _ready(load)
    queue = ov.AsyncInferQueue(compiled.network, 0)

    def loop(count: int) -> None:
        for tensor in islice(cycle(tensors), count):
            queue.start_async(tensor, share_inputs=True)
        queue.wait_all()

    loop(2 * len(queue))
    began, cpu = time.monotonic(), time.process_time()
    loop(len(load.images))
    ended, spent = time.monotonic(), time.process_time() - cpu
    return Lap(began, ended, len(load.images), {"infer": spent}, facts=compiled.facts)


def floor(load: Workload, folder: Path) -> Lap:
    """Measure the work that no variant can avoid, each part alone.

    The parts are JPEG decode on one thread, and inference of one image at a time.
    """
    files = [np.fromfile(path, np.uint8) for path in load.images[: 2 * _MOST_TENSORS]]
    cv2.setNumThreads(1)
    cpu = time.thread_time()
    for data in files:
        cv2.imdecode(data, cv2.IMREAD_COLOR)
    decode = (time.thread_time() - cpu) / len(files)
    compiled, tensors = _ready(load)
    request = compiled.network.create_infer_request()
    request.infer(tensors[0])
    count = max(2, len(load.images) // 4)
    began, cpu = time.monotonic(), time.process_time()
    for tensor in islice(cycle(tensors), count):
        request.infer(tensor, share_inputs=True)
    spent = time.process_time() - cpu
    return Lap(began, time.monotonic(), count, {"decode": decode * count, "infer": spent})


def _ready(load: Workload) -> tuple[Compiled, list[dict[int, NDArray[Any]]]]:
    """Return the compiled model, and images prepared for it."""
    compiled, contract, form, _ = load.compiled()
    prepared = [contract.prepare(form, picture) for picture in pixels(load.images, _MOST_TENSORS)]
    return compiled, [compiled.inputs(arrays) for arrays in prepared]


# ---- (c): segray ----------------------------------------------------------------------------------


class _Timed:
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


def segray(load: Workload, folder: Path) -> Lap:
    """Measure `segray label` of the manifest on a private Ray, from the first assigned unit to the last commit."""
    return _label(load.configuration(folder / "labels"), folder)


def remote(load: Workload, folder: Path) -> Lap:
    """Measure `segray label` of the images' copies in object storage, timed as in `segray`."""
    chosen = load.configuration(folder / "labels")
    source = chosen.source.model_copy(update={"uri": load.remote})
    return _label(chosen.model_copy(update={"source": source}), folder)


def _label(chosen: config.Config, folder: Path) -> Lap:
    from segray.execution import ray_pool
    from segray.monitoring import console

    marks: dict[str, float] = {}

    def start(spec: WorkerSpec, settings: config.Config) -> WorkerPool:
        workers: Any = _Timed(ray_pool.start(spec, settings), marks)
        return workers  # type: ignore[no-any-return]

    with console.listener() as listener:
        summary = label(chosen, listener, start)
    commits = sorted(_commit_times(folder / "labels" / "images" / "_delta_log"))
    marks["first_commit_s"] = commits[0]
    facts = {"failed": str(summary.tally.failed)}
    return Lap(marks.pop("began_s"), commits[-1], summary.tally.images, summary.tally.cpu_seconds, marks, facts)


def _commit_times(log: Path) -> Iterator[float]:
    """Yield the times of a Delta log's commits, as of time.monotonic, without version 0, which creates the table."""
    offset = time.monotonic() - time.time()
    for file in log.glob("*.json"):
        if int(file.stem):
            yield file.stat().st_mtime + offset


# ---- (e): a script --------------------------------------------------------------------------------


def script(load: Workload, folder: Path) -> Lap:
    """Measure a script: one process, one image at a time.

    The model is compiled for latency, because only one image is ever in flight.
    """
    compiled, contract, form, options = load.compiled("LATENCY")
    request = compiled.network.create_infer_request()
    spent: dict[str, float] = defaultdict(float)
    rows: list[naive.Row] = []
    began = time.monotonic()
    for path in load.images:
        with _stage(spent, "decode"):
            picture = cv2.imread(path, cv2.IMREAD_COLOR_RGB)
        if picture is None:
            continue
        with _stage(spent, "prepare"):
            inputs = naive.prepare(contract, form, np.asarray(picture, np.uint8))
        with _stage(spent, "infer"):
            request.infer(compiled.inputs(inputs))
        with _stage(spent, "postprocess"):
            outputs = compiled.outputs(request)
            rows += naive.rows(contract, outputs, path, (picture.shape[0], picture.shape[1]), options)
    with _stage(spent, "write"):
        if rows:
            pq.write_to_dataset(pa.Table.from_pylist(rows), folder / _INSTANCES, partition_cols=["class"])
    return Lap(began, time.monotonic(), len(load.images), dict(spent))


@contextmanager
def _stage(spent: dict[str, float], name: str) -> Iterator[None]:
    """Add the CPU seconds of this process and all its threads to a stage."""
    began = time.process_time()
    yield
    spent[name] += time.process_time() - began


def _ray_data(load: Workload, folder: Path) -> Lap:
    from segray.bench import ray_data

    return ray_data.run(load, folder)


WAYS: Mapping[str, Callable[[Workload, Path], Lap]] = {
    "ceiling": ceiling,
    "floor": floor,
    "segray": segray,
    "remote": remote,
    "ray_data": _ray_data,
    "script": script,
}
