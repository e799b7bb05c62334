"""Reading a model's outputs as its authors' scripts do: every mask over the full image, then pycocotools.

Knows what a user writes who has not met segray; the other ways of the benchmark are made of it. Must find what
segray finds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from segray.contracts.contract import Contract, Form, Options
from segray.contracts.labels import slug
from segray.contracts.yolact import MAX_IOU, MIN_SCORE, Yolact
from segray.errors import ConfigError

Arrays = Mapping[str, NDArray[Any]]
Row = dict[str, Any]

COLUMNS = (
    "image_key", "instance", "class_id", "class_name", "score", "bbox_x", "bbox_y", "bbox_w", "bbox_h", "area",
    "height", "width", "rle", "class",
)  # fmt: skip


def check(contract: Contract) -> None:
    """ConfigError for a model whose outputs only segray reads here."""
    if not isinstance(contract, Yolact):
        do = "Leave d and e out: --only abc"
        raise ConfigError("The textbook ways are written for YOLACT alone.", found=contract.name, do=do)


def prepare(contract: Contract, form: Form, image_rgb: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """The model's inputs; for YOLACT with Pillow, as its accuracy was measured."""
    if not isinstance(contract, Yolact):
        return contract.prepare(form, image_rgb)
    height, width = form.window_hw
    resized = Image.fromarray(image_rgb).resize((width, height), Image.Resampling.BILINEAR)
    return {form.image.name: np.asarray(resized)[None]}


def rows(contract: Contract, outputs: Arrays, key: str, size_hw: tuple[int, int], options: Options) -> list[Row]:
    """A row for every instance in one image."""
    height, width = size_hw
    found: list[Row] = []
    for class_id, score, box, mask in _detections(contract, outputs, size_hw, options):
        area = int(np.count_nonzero(mask))
        if not area or box[2] <= box[0] or box[3] <= box[1]:
            continue
        counts = coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode("ascii")
        x0, y0, x1, y1 = map(float, box)
        name = contract.labels[class_id]
        values = (
            key, len(found), class_id, name, float(score), x0, y0, x1 - x0, y1 - y0, area,
            height, width, counts, slug(name),
        )  # fmt: skip
        found.append(dict(zip(COLUMNS, values, strict=True)))
    return found


def _detections(contract: Contract, outputs: Arrays, size_hw: tuple[int, int], options: Options) -> Any:
    """Class id, score, clipped box in pixels and full mask of each detection, best first."""
    conf, boxes, coefficients, proto = (outputs[name][0] for name in ("conf", "boxes", "mask", "proto"))
    kept = [
        (label, row)
        for label in range(conf.shape[1] - 1)
        for row in _suppressed(boxes, conf[:, label + 1], options.max_detections)
    ]
    kept = sorted(kept, key=lambda pair: conf[pair[1], pair[0] + 1])[::-1]
    kept = [(label, row) for label, row in kept if conf[row, label + 1] >= options.score_threshold]
    ids = list(contract.labels)
    height, width = size_hw
    for label, row in kept[: options.max_detections]:
        scores = 1 / (1 + np.exp(-(proto @ coefficients[row])))
        mask = cv2.resize(_cropped(scores, boxes[row]), (width, height)) > 0.5
        box = np.clip(boxes[row] * [width, height, width, height], 0, [width, height, width, height])
        yield ids[label], conf[row, label + 1], box, mask


def _suppressed(boxes: NDArray[np.float32], scores: NDArray[np.float32], most: int) -> list[int]:
    """Greedy non-maximum suppression of one class."""
    order = np.flatnonzero(scores > MIN_SCORE)
    order = order[np.argsort(scores[order], kind="stable")[::-1]]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    while len(order) and len(kept) < most:
        best, order = order[0], order[1:]
        kept.append(int(best))
        x0, y0 = np.maximum(boxes[best, 0], boxes[order, 0]), np.maximum(boxes[best, 1], boxes[order, 1])
        x1, y1 = np.minimum(boxes[best, 2], boxes[order, 2]), np.minimum(boxes[best, 3], boxes[order, 3])
        shared = np.maximum(x1 - x0, 0) * np.maximum(y1 - y0, 0)
        order = order[shared / (areas[best] + areas[order] - shared) <= MAX_IOU]
    return kept


def _cropped(scores: NDArray[np.float32], box_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
    """Zero outside the box, a pixel of the prototypes' own around it left."""
    height, width = scores.shape
    columns, rows = np.arange(width), np.arange(height)
    x0, y0, x1, y1 = np.clip(box_xyxy * [width, height, width, height] + [-1, -1, 1, 1], 0, [width, height] * 2)
    inside = ((rows >= y0) & (rows < y1))[:, None] & ((columns >= x0) & (columns < x1))
    return np.asarray(scores * inside, np.float32)
