"""Generated detections, staged as by workers. Their masks are as long and as hard to compress as real masks.

Knows masks as columns, and the content of a staged file. Knows nothing of models or of the later use of the files.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segray import rle
from segray.instances import ImageRef
from segray.label_set import schema
from segray.label_set.run_records import staged_name
from segray.models.coco_labels import COCO_NAMES
from segray.storage.store import Store
from segray.storage.uris import join
from segray.tasks import Task, UnitReport

_SIZE_HW = (480, 640)
_NOW = datetime(2026, 1, 1, tzinfo=UTC)
_INSTANCES_TYPE = schema.STAGED.field("instances").type


@dataclass(frozen=True)
class Shape:
    """A mask as vertical spans, with class and score.

    columns, tops, bottoms (exclusive): (n,) int64, pixels, in order. size_hw: height and width of the image.
    """

    columns: NDArray[np.int64]
    tops: NDArray[np.int64]
    bottoms: NDArray[np.int64]
    size_hw: tuple[int, int]
    class_id: int
    score: float

    def varied(self, rng: np.random.Generator) -> Shape:
        """Return the mask sheared, squeezed, shifted and perhaps mirrored; the result may lie outside the image."""
        height, width = self.size_hw
        columns, tops, bottoms = self.columns, self.tops, self.bottoms
        if rng.random() < 0.5:
            order = np.argsort(-columns, kind="stable")
            columns, tops, bottoms = width - 1 - columns[order], tops[order], bottoms[order]
        lift = np.rint(rng.uniform(-0.3, 0.3) * (columns - columns[0]) + rng.uniform(-30, 30))
        scale = rng.uniform(0.7, 1.1)
        lift += (1 - scale) * tops[0]
        columns = columns + rng.integers(-20, 20)
        tops = np.clip(np.floor(scale * tops + lift), 0, height).astype(np.int64)
        bottoms = np.clip(np.ceil(scale * bottoms + lift), 0, height).astype(np.int64)
        kept = (bottoms > tops) & (columns >= 0) & (columns < width)
        score = float(np.clip(self.score + rng.normal(0, 0.02), 0.05, 1))
        return Shape(columns[kept], tops[kept], bottoms[kept], self.size_hw, self.class_id, score)


def read_shapes(path: Path) -> list[Shape]:
    """Read the detections that YOLACT's eval.py wrote with --output_web_json, gzipped or not."""
    data = path.read_bytes()
    images = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)["images"]
    ids = {name: i for i, name in COCO_NAMES.items()}
    shapes = []
    for detection in (detection for image in images for detection in image["dets"]):
        height, width = detection["mask"]["size"]
        edges = np.cumsum(rle.runs_of(detection["mask"]["counts"], (height, width)))
        edges = edges[: len(edges) // 2 * 2]
        if not len(edges):
            continue
        starts, lasts = edges[::2], edges[1::2] - 1
        spans = lasts // height - starts // height + 1  # A run of ones may span several columns.
        first = np.cumsum(spans) - spans
        columns = np.arange(spans.sum()) + np.repeat(starts // height - first, spans)
        tops, bottoms = np.zeros(len(columns), np.int64), np.full(len(columns), height)
        tops[first], bottoms[first + spans - 1] = starts % height, lasts % height + 1
        class_id, score = ids[detection["category"]], detection["score"]
        shapes.append(Shape(columns, tops, bottoms, (height, width), class_id, score))
    return shapes


def generate_shapes(count: int, rng: np.random.Generator, size_hw: tuple[int, int] = _SIZE_HW) -> list[Shape]:
    """Generate blobs with ragged outlines, 100 of 640 columns wide on average; most blobs belong to a few classes."""
    ids = list(COCO_NAMES)
    height, width = size_hw
    scale = width / _SIZE_HW[1]
    shapes = []
    for _ in range(count):
        half_h, n = scale * (10 + 50 * rng.random()), int(np.clip(rng.gamma(2, 50 * scale), 4, width - 1))
        columns = rng.integers(0, width - n + 1) + np.arange(n)
        outline = half_h * np.sqrt(1 - np.linspace(-0.99, 0.99, n) ** 2) + 1
        ragged = [np.rint(np.cumsum(rng.normal(0, 0.8, n))) for _ in range(2)]
        middle = rng.uniform(0, height)
        tops = np.clip(middle - outline + ragged[0], 0, height - 1).astype(np.int64)
        bottoms = np.clip(middle + outline + ragged[1], tops + 1, height).astype(np.int64)
        class_id = ids[min(len(ids) - 1, int(rng.zipf(1.5)) - 1)]
        shapes.append(Shape(columns, tops, bottoms, size_hw, class_id, float(rng.uniform(0.05, 1))))
    return shapes


def instance_rows(shapes: Sequence[Shape], count: int, rng: np.random.Generator) -> pa.StructArray:
    """Return `count` rows as in a staged file's `instances`: each shape in turn, varied; no two are alike."""
    varied: list[Shape] = []
    while len(varied) < count:
        candidates = (shapes[i % len(shapes)].varied(rng) for i in range(len(varied), count))
        varied += [shape for shape in candidates if len(shape.columns)]
    rng.shuffle(varied)
    edges = [_mask_edges(shape) for shape in varied]
    boxes = [(s.columns.min(), s.tops.min(), np.ptp(s.columns) + 1, s.bottoms.max() - s.tops.min()) for s in varied]
    columns = {
        "instance": np.zeros(count),
        "class_id": [shape.class_id for shape in varied],
        "class_name": [COCO_NAMES[shape.class_id] for shape in varied],
        "score": [shape.score for shape in varied],
        **{f"bbox_{name}": side for name, side in zip("xywh", np.array(boxes, np.float32).T, strict=True)},
        "area": [int((mask[1::2] - mask[::2]).sum()) for mask in edges],
        "rle": [rle.from_edges(mask, shape.size_hw) for mask, shape in zip(edges, varied, strict=True)],
    }
    arrays = [pa.array(columns[field.name]).cast(field.type) for field in _INSTANCES_TYPE.value_type]
    return pa.StructArray.from_arrays(arrays, fields=list(_INSTANCES_TYPE.value_type))


def _mask_edges(shape: Shape) -> NDArray[np.int64]:
    column_starts = shape.columns * shape.size_hw[0]
    # Two spans of one column may touch or overlap.
    edges = np.stack([column_starts + shape.tops, column_starts + shape.bottoms], axis=1)
    return np.maximum.accumulate(edges.ravel())


class Stager:
    """A writer of staged files: images get the next rows of `pool` in turn, `per_image` on average."""

    def __init__(
        self,
        pool: pa.StructArray,
        per_image: float,
        rng: np.random.Generator,
        size_hw: tuple[int, int] = _SIZE_HW,
    ) -> None:
        self._pool, self._per_image, self._rng, self._next_row = pool, per_image, rng, 0
        self._size_hw = size_hw

    def stage(self, store: Store, staged: str, task: Task, refs: Sequence[ImageRef]) -> UnitReport:
        """Stage a task as segray.execution.staging.stage does, for images that were never read."""
        counts = self._rng.poisson(self._per_image, len(refs))
        name = staged_name(task)
        store.put(join(staged, name), schema.staged_bytes(self._table(task, refs, counts)))
        empty = int((counts == 0).sum())
        return UnitReport(task, name, len(refs) - empty, empty, 0, int(counts.sum()))

    def _table(self, task: Task, refs: Sequence[ImageRef], counts: NDArray[np.int64]) -> pa.Table:
        total = int(counts.sum())
        rows = np.arange(self._next_row, self._next_row + total) % len(self._pool)
        self._next_row += total
        names = [field.name for field in _INSTANCES_TYPE.value_type]
        fields = dict(zip(names, self._pool.take(pa.array(rows)).flatten(), strict=True))
        first = np.cumsum(counts) - counts
        fields["instance"] = pa.array(np.arange(total) - np.repeat(first, counts)).cast(pa.int16())
        instances = pa.StructArray.from_arrays(list(fields.values()), fields=list(_INSTANCES_TYPE.value_type))
        offsets = pa.array(np.append(first, total), pa.int32())
        columns = {
            "image_id": [ref.image_id for ref in refs],
            "image_key": [ref.key for ref in refs],
            "uri": [ref.uri for ref in refs],
            "version": [ref.version for ref in refs],
            "bytes": [ref.size_bytes for ref in refs],
            "width": [self._size_hw[1]] * len(refs),
            "height": [self._size_hw[0]] * len(refs),
            "status": ["ok" if count else "empty" for count in counts],
            "n_instances": counts,
            "attempts": [task.attempt] * len(refs),
            "labelled_at": [_NOW] * len(refs),
            "orientation": [1] * len(refs),
        }
        arrays = [
            pa.ListArray.from_arrays(offsets, instances, type=_INSTANCES_TYPE)
            if field.name == "instances"
            else pa.array(columns.get(field.name, [None] * len(refs)), field.type)
            for field in schema.STAGED
        ]
        return pa.Table.from_arrays(arrays, schema=schema.STAGED)
