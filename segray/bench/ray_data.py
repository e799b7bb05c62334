"""Variant d: the job written with Ray Data. Read, prepare in tasks, infer in an actor, write partitioned Parquet.

Knows Ray Data. Knows nothing of segray's workers, units or commits. Needs the `bench` extra (pandas).

The job follows good practice. Files travel as encoded bytes and small tensors, never as full images. The actor leaves
CPUs to the tasks, because the job would hang otherwise. A queue keeps several infer requests in flight.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.bench import naive
from segray.bench.workload import Lap, Workload
from segray.imaging.opencv import cv2
from segray.models.adapters.adapter import ModelAdapter, ModelFormat
from segray.models.openvino import ov

_BATCH = 16
_TASK_CPUS = 0.5
# Columns that are not tensors.
_ABOUT = ("path", "height", "width")


def prepare(row: dict[str, Any], contract: ModelAdapter, form: ModelFormat) -> list[dict[str, Any]]:
    """Decode encoded bytes into a tensor of the network's size; return no row for an unreadable image."""
    picture = cv2.imdecode(np.frombuffer(row["bytes"], np.uint8), cv2.IMREAD_COLOR_RGB)
    if picture is None:
        return []
    inputs = naive.prepare(contract, form, np.asarray(picture, np.uint8))
    tensors = {name: array[0] for name, array in inputs.items()}
    return [{"path": row["path"], "height": picture.shape[0], "width": picture.shape[1], **tensors}]


class Predict:
    """An actor with the compiled model; a call turns a batch of tensors into rows of instances."""

    def __init__(self, load: Workload, mark: str) -> None:
        self._compiled, self._contract, _, self._options = load.compiled()
        self._queue = ov.AsyncInferQueue(self._compiled.network, 0)
        self._queue.set_callback(self._finished)
        Path(mark).write_text(json.dumps(time.monotonic()), "utf-8")

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, list[Any]]:
        rows: list[list[naive.Row]] = [[] for _ in batch["path"]]
        for i, (path, height, width) in enumerate(zip(batch["path"], batch["height"], batch["width"], strict=True)):
            tensors = {name: np.asarray(batch[name][i])[None] for name in batch if name not in _ABOUT}
            self._queue.start_async(self._compiled.inputs(tensors), (rows, i, str(path), (int(height), int(width))))
        self._queue.wait_all()
        flat = [row for found in rows for row in found]
        return {name: [row[name] for row in flat] for name in naive.COLUMNS}

    def _finished(self, request: Any, job: tuple[list[list[naive.Row]], int, str, tuple[int, int]]) -> None:
        rows, i, path, size_hw = job
        outputs = self._compiled.outputs(request)
        rows[i] = naive.rows(self._contract, outputs, path, size_hw, self._options)


def run(load: Workload, folder: Path) -> Lap:
    """Run the job; the timed part begins when the model is compiled and ends when the last file is written."""
    _, contract, form, _ = load.resolved()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    import ray
    import ray.data

    ray.init(address="local", num_cpus=load.threads, include_dashboard=False)
    mark = folder / "ready.json"
    rows: Any = ray.data.read_binary_files(list(load.images), include_paths=True, ray_remote_args=_task())
    rows = rows.flat_map(prepare, fn_kwargs={"contract": contract, "form": form}, num_cpus=_TASK_CPUS)
    rows = rows.map_batches(
        Predict,
        fn_constructor_args=[load, str(mark)],
        batch_size=_BATCH,
        num_cpus=max(_TASK_CPUS, load.threads - 1),
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    rows.write_parquet(str(folder / "labels" / "instances"), partition_cols=["class"], ray_remote_args=_task())
    ended = time.monotonic()
    ray.shutdown()
    return Lap(json.loads(mark.read_text("utf-8")), ended, len(load.images))


def _task() -> dict[str, Any]:
    return {"num_cpus": _TASK_CPUS}
