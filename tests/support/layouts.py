"""Networks and raw outputs in the published layouts of mmdeploy, YOLOv5 and Detectron2, and their decoding in numpy.

The decoders follow the libraries' rules one pixel at a time. They share no code with segray.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

Rows = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
SCORE = 0.875


# ---- networks that run ----------------------------------------------------------------------------


def mmdeploy(file: Path, kind: str, size_hw: tuple[int, int] = (64, 96), colour: str = "RGB") -> Path:
    """Write an IR with the outputs dets, labels and masks. Its only object is where the image is red.

    kind: boxes, planes or pasted. colour: order of the channels that the network takes.
    """
    image = _image(size_hw, colour)
    red = op.slice(image, *[np.array([value]) for value in _channel(colour)], axes=np.array([1]))
    logits = op.multiply(red, np.float32(30))
    if kind == "boxes":
        masks = op.sigmoid(op.interpolate(logits, [28, 28], "linear", "sizes", axes=[2, 3]))
    elif kind == "planes":
        masks = op.sigmoid(logits)
    else:
        masks = op.greater(logits, np.float32(0))
    zero = op.unsqueeze(op.multiply(op.reduce_mean(image, [1, 2, 3]), np.float32(0)), [1, 2])
    dets = op.add(zero, np.array([[[0, 0, size_hw[1], size_hw[0], SCORE]]], np.float32))
    labels = op.convert(op.squeeze(zero, [2]), np.int64)
    for node, name in ((dets, "dets"), (labels, "labels"), (masks, "masks")):
        node.output(0).tensor.set_names({name})
    ov.save_model(ov.Model([op.result(node) for node in (dets, labels, masks)], [image], kind), file)
    return file


def yolov5(file: Path, size_hw: tuple[int, int] = (64, 96), classes: int = 2) -> Path:
    """Write an IR with the outputs of YOLOv5-seg. Its only object is where the image is red."""
    image = _image(size_hw, "RGB")
    red = op.slice(image, [0], [1], [1], axes=[1])
    only_first = np.zeros((1, 32, 1, 1), np.float32)
    only_first[0, 0] = 30
    pooled = op.avg_pool(red, [4, 4], [0, 0], [0, 0], [4, 4], True)
    prototypes = op.multiply(op.subtract(pooled, np.float32(0.5)), only_first)
    table = np.zeros((1, anchors(size_hw), 5 + classes + 32), np.float32)
    table[0, :2, :5] = size_hw[1] / 2, size_hw[0] / 2, size_hw[1], size_hw[0], 1
    table[0, 0, 5], table[0, 1, 5] = SCORE, SCORE / 2  # The second anchor is suppressed.
    table[0, :2, 5 + classes] = 1
    zero = op.unsqueeze(op.multiply(op.reduce_mean(image, [1, 2, 3]), np.float32(0)), [1, 2])
    ov.save_model(ov.Model([op.result(op.add(zero, table)), op.result(prototypes)], [image], "yolov5"), file)
    return file


def detectron2(file: Path, size_hw: tuple[int, int] | None = None) -> Path:
    """Write an IR with the outputs of a traced Mask R-CNN. Its only object is where the image is red.

    size_hw: the traced size; None for any.
    """
    image = op.parameter([3, *(size_hw or (-1, -1))], np.float32, name="image")
    batch = op.unsqueeze(image, 0)
    red = op.slice(batch, [2], [3], [1], axes=[1])  # BGR
    small = op.interpolate(red, [28, 28], "linear", "sizes", axes=[2, 3])
    masks = op.sigmoid(op.multiply(op.subtract(small, np.float32(127.5)), np.float32(1)))
    size = op.gather(op.shape_of(image), [1, 2], 0)
    sides = op.unsqueeze(op.convert(op.gather(size, [1, 0], 0), np.float32), 0)
    boxes = op.concat([op.multiply(sides, np.float32(0)), sides], 1)
    zero = op.reduce_sum(op.multiply(masks, np.float32(0)), [1, 2, 3])
    scores = op.add(zero, np.float32(SCORE))
    nodes = (boxes, op.convert(zero, np.int64), masks, scores, size)
    ov.save_model(ov.Model([op.result(node) for node in nodes], [image], "traced"), file)
    return file


def anchors(size_hw: tuple[int, int]) -> int:
    """The number of YOLOv5's anchors in an input of this size."""
    return 3 * sum((size_hw[0] // stride) * (size_hw[1] // stride) for stride in (8, 16, 32))


def _image(size_hw: tuple[int, int], colour: str) -> Any:
    image = op.parameter([1, 3, *size_hw], np.float32, name="input")
    image.output(0).tensor.set_names({"input"})
    return image


def _channel(colour: str) -> tuple[int, int, int]:
    start = colour.index("R")
    return start, start + 1, 1


# ---- raw outputs ----------------------------------------------------------------------------------


def boxes_in(rng: np.random.Generator, count: int, size_hw: tuple[int, int]) -> np.ndarray:
    """Boxes (n, 4) of all sizes, some of them beyond the edges."""
    corners = rng.uniform(-0.1, 1.1, (count, 2, 2)) * size_hw[::-1]
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1).astype(np.float32)


def smooth(rng: np.random.Generator, count: int, side_hw: tuple[int, int]) -> np.ndarray:
    """Grids (n, r, c) of 0..1 whose values change slowly, so that few pixels lie at 0.5."""
    y, x = np.mgrid[: side_hw[0], : side_hw[1]]
    shifts = rng.uniform(0, 6, (count, 4))[:, :, None, None]
    waves = np.sin(x * 5 / side_hw[1] + shifts[:, 0]) + np.sin(y * 5 / side_hw[0] + shifts[:, 1])
    return (0.5 + waves / 4.1).astype(np.float32)


# ---- the libraries' rules, pixel by pixel ---------------------------------------------------------


def sampled(mask: np.ndarray, box: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """A mask pasted into its box by sampling at the centre of each pixel, 0 outside the mask: values, not bool."""

    def weights(low: float, high: float, side: int, limit: int) -> np.ndarray:
        at = (np.arange(limit) + 0.5 - low) / (high - low) * side - 0.5
        return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(side)))

    x0, y0, x1, y1 = box.astype(np.float64)
    rows, columns = weights(y0, y1, mask.shape[0], size_hw[0]), weights(x0, x1, mask.shape[1], size_hw[1])
    return rows @ mask @ columns.T


def bilinear(plane: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """A bilinear resize with half-pixel centres and clamped edges, in float64."""

    def weights(source: int, target: int) -> np.ndarray:
        at = ((np.arange(target) + 0.5) * source / target - 0.5).clip(0, source - 1)
        return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(source)))

    return weights(plane.shape[0], size_hw[0]) @ plane.astype(np.float64) @ weights(plane.shape[1], size_hw[1]).T


def nearest(mask: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """PyTorch's nearest resize."""
    rows, columns = (np.floor(np.arange(t) * (s / t)).astype(int) for s, t in zip(mask.shape, size_hw, strict=True))
    return mask[rows][:, columns]


def yolov5_rows(outputs: Mapping[str, np.ndarray], size_hw: tuple[int, int], window_hw: tuple[int, int]) -> Rows:
    """Labels from 0, scores, boxes and values of masks of a YOLOv5-seg, at conf 0.25, IoU 0.45, retina masks."""
    table, prototypes = outputs["output0"][0].astype(np.float64), outputs["output1"][0].astype(np.float64)
    classes = table.shape[1] - 5 - len(prototypes)
    found = []
    for row in table:
        scores = row[4] * row[5 : 5 + classes]
        if row[4] > 0.25 and scores.max() > 0.25:
            x, y, w, h = row[:4]
            found.append(
                (scores.max(), int(scores.argmax()), np.array([x - w / 2, y - h / 2, x + w / 2, y + h / 2]), row)
            )
    found.sort(key=lambda entry: -entry[0])
    kept: list[Any] = []
    for entry in found:
        if all(entry[1] != other[1] or _iou(entry[2], other[2]) <= 0.45 for other in kept):
            kept.append(entry)
    gain = min(window_hw[0] / size_hw[0], window_hw[1] / size_hw[1])
    pad = np.array([(window_hw[1] - size_hw[1] * gain) / 2, (window_hw[0] - size_hw[0] * gain) / 2] * 2)
    boxes = np.array([((entry[2] - pad) / gain).clip(0, [*size_hw[::-1]] * 2).round() for entry in kept]).reshape(-1, 4)
    _, height, width = prototypes.shape
    gain = min(height / size_hw[0], width / size_hw[1])
    left, top = (width - size_hw[1] * gain) / 2, (height - size_hw[0] * gain) / 2
    values = []
    for entry, (x0, y0, x1, y1) in zip(kept, boxes, strict=True):
        logits = np.tensordot(entry[3][5 + classes :], prototypes, 1)
        part = (1 / (1 + np.exp(-logits)))[int(top) : int(height - top), int(left) : int(width - left)]
        whole = bilinear(part, size_hw)
        y, x = np.mgrid[: size_hw[0], : size_hw[1]]
        values.append(np.where((x >= x0) & (x < x1) & (y >= y0) & (y < y1), whole, 0))
    labels, scores = np.array([entry[1] for entry in kept], int), np.array([entry[0] for entry in kept])
    return labels, scores, boxes, np.array(values).reshape(-1, *size_hw)


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    both = sides.clip(0).prod()
    return float(both / ((a[2:] - a[:2]).prod() + (b[2:] - b[:2]).prod() - both))
