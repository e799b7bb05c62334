"""Decoding as in the model authors' scripts: every mask over the full image, then pycocotools.

Families that describe themselves are decoded by segray's own code.

Knows what a user writes without segray. The other variants of the benchmark use this module. The instances must equal
the instances that segray finds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from segray.label_set.class_names import partition_value
from segray.models.adapters.adapter import ModelAdapter, ModelFormat, Options
from segray.models.adapters.box_masks import BoxMaskAdapter
from segray.models.adapters.yolact import MAX_IOU, MIN_SCORE, Yolact

Arrays = Mapping[str, NDArray[Any]]
Row = dict[str, Any]

COLUMNS = (
    "image_key", "instance", "class_id", "class_name", "score", "bbox_x", "bbox_y", "bbox_w", "bbox_h", "area",
    "height", "width", "rle", "class",
)  # fmt: skip


def prepare(adapter: ModelAdapter, form: ModelFormat, image_rgb: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Return the model's inputs; for YOLACT resized with Pillow, as in the measurement of its accuracy."""
    if not isinstance(adapter, Yolact):
        return adapter.prepare(form, image_rgb)
    height, width = form.window_hw
    resized = Image.fromarray(image_rgb).resize((width, height), Image.Resampling.BILINEAR)
    return {form.image.name: np.asarray(resized)[None]}


def rows(adapter: ModelAdapter, outputs: Arrays, key: str, size_hw: tuple[int, int], options: Options) -> list[Row]:
    """Return one row per instance of one image, highest score first.

    Args:
        adapter: The adapter of the model.
        outputs: The outputs of the model, by name.
        key: The image key.
        size_hw: Height and width of the image, in pixels.
        options: The thresholds and limits.

    Returns:
        Rows with the keys COLUMNS. Boxes and area are in source pixels.
    """
    height, width = size_hw
    rows_of_image: list[Row] = []
    for class_id, score, box_xyxy, mask in _detections(adapter, outputs, size_hw, options):
        box = np.clip(box_xyxy, 0, [width, height, width, height])
        area = int(np.count_nonzero(mask))
        if not area or box[2] <= box[0] or box[3] <= box[1]:
            continue
        counts = coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode("ascii")
        x0, y0, x1, y1 = map(float, box)
        name = adapter.labels[class_id]
        values = (
            key, len(rows_of_image), class_id, name, float(score), x0, y0, x1 - x0, y1 - y0, area,
            height, width, counts, partition_value(name),
        )  # fmt: skip
        rows_of_image.append(dict(zip(COLUMNS, values, strict=True)))
    return rows_of_image


# Class id, score, box (4,) xyxy in source pixels, mask (h, w) of the full image.
Detection = tuple[int, float, NDArray[np.floating[Any]], NDArray[np.bool_]]


def _detections(
    adapter: ModelAdapter, outputs: Arrays, size_hw: tuple[int, int], options: Options
) -> Iterator[Detection]:
    """Yield the best detections, highest score first."""
    if isinstance(adapter, BoxMaskAdapter):
        return _box_mask_detections(adapter, outputs, size_hw, options)
    if isinstance(adapter, Yolact):
        return _yolact_detections(adapter, outputs, size_hw, options)
    return _decoded_detections(adapter, outputs, size_hw, options)


def _decoded_detections(
    adapter: ModelAdapter, outputs: Arrays, size_hw: tuple[int, int], options: Options
) -> Iterator[Detection]:
    """Yield the detections that segray's own decoding finds, for families without a script of their own."""
    instances = adapter.decode(outputs, size_hw, options)
    for class_id, score, box_xyxy, counts in zip(
        instances.class_ids, instances.scores, instances.boxes_xyxy, instances.rles, strict=True
    ):
        mask = coco.decode({"size": list(size_hw), "counts": counts.encode()}).astype(np.bool_)
        yield int(class_id), float(score), box_xyxy, mask


# ---- YOLACT ---------------------------------------------------------------------------------------


def _yolact_detections(
    adapter: ModelAdapter, outputs: Arrays, size_hw: tuple[int, int], options: Options
) -> Iterator[Detection]:
    conf, boxes, coefficients, prototypes = (outputs[name][0] for name in ("conf", "boxes", "mask", "proto"))
    detections = [
        (class_index, row)
        for class_index in range(conf.shape[1] - 1)
        for row in _greedy_nms(boxes, conf[:, class_index + 1], options.max_detections)
    ]
    detections = sorted(detections, key=lambda pair: conf[pair[1], pair[0] + 1])[::-1]
    detections = [
        (class_index, row) for class_index, row in detections if conf[row, class_index + 1] >= options.score_threshold
    ]
    ids = list(adapter.labels)
    height, width = size_hw
    for class_index, row in detections[: options.max_detections]:
        scores = 1 / (1 + np.exp(-(prototypes @ coefficients[row])))
        mask = cv2.resize(_crop_to_box(scores, boxes[row]), (width, height)) > 0.5
        yield ids[class_index], conf[row, class_index + 1], boxes[row] * [width, height, width, height], mask


def _greedy_nms(boxes: NDArray[np.float32], scores: NDArray[np.float32], most: int) -> list[int]:
    """Return the rows that greedy non-maximum suppression of one class keeps, at most `most`."""
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


def _crop_to_box(scores: NDArray[np.float32], box_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the scores, zero outside the box; one prototype pixel around the box stays."""
    height, width = scores.shape
    columns, rows = np.arange(width), np.arange(height)
    x0, y0, x1, y1 = np.clip(box_xyxy * [width, height, width, height] + [-1, -1, 1, 1], 0, [width, height] * 2)
    inside = ((rows >= y0) & (rows < y1))[:, None] & ((columns >= x0) & (columns < x1))
    return np.asarray(scores * inside, np.float32)


# ---- a small mask for every box -------------------------------------------------------------------


def _box_mask_detections(
    adapter: BoxMaskAdapter, outputs: Arrays, size_hw: tuple[int, int], options: Options
) -> Iterator[Detection]:
    detections = adapter.rows(outputs, size_hw)
    order = np.argsort(-detections.scores, kind="stable")
    order = order[detections.scores[order] >= max(options.score_threshold, 1e-9)][: options.max_detections]
    paste = _paste_like_tensorflow if (options.paste or adapter.paste) == "reframe" else _paste_like_detectron
    for i in order:
        class_id, box_xyxy = int(detections.classes[i]), detections.boxes_xyxy[i]
        if class_id in adapter.labels:
            yield class_id, detections.scores[i], box_xyxy, paste(detections.masks[i], box_xyxy, size_hw)


def _paste_like_detectron(
    mask: NDArray[np.float32], box_xyxy: NDArray[Any], size_hw: tuple[int, int]
) -> NDArray[np.bool_]:
    """Paste a mask as Detectron does; return the full-image mask."""
    side, box = len(mask), box_xyxy.astype(np.float32)
    centre, half = (box[2:] + box[:2]) * 0.5, (box[2:] - box[:2]) * 0.5 * ((side + 2) / side)
    x0, y0 = (centre - half).astype(int)
    x1, y1 = (centre + half).astype(int)
    resized = cv2.resize(np.pad(mask, 1), (max(x1 - x0 + 1, 1), max(y1 - y0 + 1, 1))) > 0.5
    full_mask = np.zeros(size_hw, np.bool_)
    top, bottom = np.clip([y0, y1 + 1], 0, size_hw[0])
    left, right = np.clip([x0, x1 + 1], 0, size_hw[1])
    full_mask[top:bottom, left:right] = resized[top - y0 : bottom - y0, left - x0 : right - x0]
    return full_mask


def _paste_like_tensorflow(
    mask: NDArray[np.float32], box_xyxy: NDArray[Any], size_hw: tuple[int, int]
) -> NDArray[np.bool_]:
    """Paste a mask as TensorFlow's object detection does; return the full-image mask.

    The mask spans its box. Resampling the mask over the frame of the image gives the full-image mask.
    """
    last = len(mask) - 1
    rows, columns = (
        ((np.arange(n) * (n / max(n - 1, 1)) - low) / max(high - low, 1e-4 * n) * last).astype(np.float32)
        for low, high, n in zip(box_xyxy[1::-1], box_xyxy[:1:-1], size_hw, strict=True)
    )
    x, y = np.meshgrid(columns, rows)
    resized = cv2.remap(mask, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    inside = ((rows >= 0) & (rows <= last))[:, None] & ((columns >= 0) & (columns <= last))
    return np.asarray((resized > 0.5) & inside)
