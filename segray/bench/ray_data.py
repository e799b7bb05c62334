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
from segray.bench.workload import Measurement, Workload
from segray.imaging.opencv import cv2
from segray.models.adapters.adapter import ModelAdapter, ModelFormat
from segray.models.openvino import ov

_BATCH = 16
_TASK_CPUS = 0.5
# Columns that are not tensors.
_IMAGE_COLUMNS = ("path", "height", "width")


def prepare(row: dict[str, Any], adapter: ModelAdapter, form: ModelFormat) -> list[dict[str, Any]]:
    """Decode encoded bytes into a tensor of the network's size; return no row for an unreadable image."""
    image = cv2.imdecode(np.frombuffer(row["bytes"], np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        return []
    inputs = naive.prepare(adapter, form, np.asarray(image, np.uint8))
    tensors = {name: array[0] for name, array in inputs.items()}
    return [{"path": row["path"], "height": image.shape[0], "width": image.shape[1], **tensors}]


class Predict:
    """An actor with the compiled model; a call turns a batch of tensors into rows of instances.

    ready_file: path to which the actor writes the time when the model is compiled.
    """

    def __init__(self, workload: Workload, ready_file: str) -> None:
        self._compiled, self._adapter, _, self._options = workload.compile_model()
        self._queue = ov.AsyncInferQueue(self._compiled.network, 0)
        self._queue.set_callback(self._store_rows)
        Path(ready_file).write_text(json.dumps(time.monotonic()), "utf-8")

    def __call__(self, batch: dict[str, NDArray[Any]]) -> dict[str, list[Any]]:
        rows: list[list[naive.Row]] = [[] for _ in batch["path"]]
        for i, (path, height, width) in enumerate(zip(batch["path"], batch["height"], batch["width"], strict=True)):
            tensors = {name: np.asarray(batch[name][i])[None] for name in batch if name not in _IMAGE_COLUMNS}
            self._queue.start_async(self._compiled.inputs(tensors), (rows, i, str(path), (int(height), int(width))))
        self._queue.wait_all()
        flat = [row for rows_of_image in rows for row in rows_of_image]
        return {name: [row[name] for row in flat] for name in naive.COLUMNS}

    def _store_rows(self, request: Any, userdata: tuple[list[list[naive.Row]], int, str, tuple[int, int]]) -> None:
        rows, i, path, size_hw = userdata
        outputs = self._compiled.outputs(request)
        rows[i] = naive.rows(self._adapter, outputs, path, size_hw, self._options)


def run(workload: Workload, folder: Path) -> Measurement:
    """Run the job; the timed part begins with the compiled model and ends with the last written file."""
    _, adapter, form, _ = workload.resolve_model()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    import ray
    import ray.data

    ray.init(address="local", num_cpus=workload.threads, include_dashboard=False)
    ready_file = folder / "ready.json"
    rows: Any = ray.data.read_binary_files(list(workload.images), include_paths=True, ray_remote_args=_remote_args())
    rows = rows.flat_map(prepare, fn_kwargs={"adapter": adapter, "form": form}, num_cpus=_TASK_CPUS)
    rows = rows.map_batches(
        Predict,
        fn_constructor_args=[workload, str(ready_file)],
        batch_size=_BATCH,
        num_cpus=max(_TASK_CPUS, workload.threads - 1),
        compute=ray.data.ActorPoolStrategy(size=1),
    )
    rows.write_parquet(str(folder / "labels" / "instances"), partition_cols=["class"], ray_remote_args=_remote_args())
    ended = time.monotonic()
    ray.shutdown()
    return Measurement(json.loads(ready_file.read_text("utf-8")), ended, len(workload.images))


def _remote_args() -> dict[str, Any]:
    return {"num_cpus": _TASK_CPUS}
