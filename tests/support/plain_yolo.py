"""Decoding of YOLO-seg in plain numpy over whole images, slow and in double precision; and outputs to decode."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray

Outputs = dict[str, NDArray[np.float32]]
SCORE, IOU, MOST = 0.25, 0.7, 300


@dataclass(frozen=True)
class Row:
    score: float
    label: int
    box: NDArray[np.float64]
    mask: NDArray[np.bool_]


def decode(
    outputs: Outputs, size_hw: tuple[int, int], *, selected: bool = False, agnostic: bool = False, most: int = MOST
) -> list[Row]:
    rows, planes = outputs["output0"][0], outputs["output1"][0]
    if selected:
        rows = rows[rows[:, 4] > np.float32(SCORE)]
        boxes, scores, labels, weights = rows[:, :4], rows[:, 4], rows[:, 5].astype(int), rows[:, 6:]
    else:
        classes = len(rows) - 4 - len(planes)
        rows = rows[:, rows[4 : 4 + classes].max(0) > np.float32(SCORE)].T
        of_classes, weights = rows[:, 4 : 4 + classes], rows[:, 4 + classes :]
        scores, labels = of_classes.max(1), of_classes.argmax(1)
        boxes = np.concatenate([rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2], 1)
        apart = boxes if agnostic else boxes + (labels * np.float32(7680)).astype(np.float32)[:, None]
        kept = suppressed(apart, scores, IOU)
        boxes, scores, labels, weights = boxes[kept], scores[kept], labels[kept], weights[kept]
    network_hw = planes.shape[1] * 4, planes.shape[2] * 4
    boxes = to_image(boxes[:most], size_hw, network_hw)
    grids = np.einsum("nk,khw->nhw", weights[:most].astype(float), planes.astype(float))
    masks = [resized(grid, size_hw, network_hw) & within(box, size_hw) for grid, box in zip(grids, boxes, strict=True)]
    return [Row(*row) for row in zip(scores, labels, boxes, masks, strict=False) if row[3].any()]


def iou(a: NDArray[np.float32], b: NDArray[np.float32]) -> np.float32:
    """The IoU of two boxes in float32; NaN for two boxes without area."""
    width, height = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), np.float32(0))
    shared = width * height
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.float32(shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared))


def suppressed(boxes: NDArray[np.float32], scores: NDArray[np.float32], max_iou: float) -> list[int]:
    """The rows that greedy suppression keeps, best first; of equal scores the first row comes first."""
    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda row: (-scores[row], row)):
        if not any(float(iou(boxes[k], boxes[i])) > max_iou for k in kept):
            kept.append(i)
    return kept


def placed(size_hw: tuple[int, int], window_hw: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The padding before an image in a window, top and left, and the image's height and width there."""
    scale = min(window_hw[0] / size_hw[0], window_hw[1] / size_hw[1])
    content = max(round(size_hw[0] * scale), 1), max(round(size_hw[1] * scale), 1)
    return (round((window_hw[0] - content[0]) / 2 - 0.1), round((window_hw[1] - content[1]) / 2 - 0.1)), content


def to_image(boxes: NDArray[np.float32], size_hw: tuple[int, int], network_hw: tuple[int, int]) -> NDArray[np.float64]:
    (top, left), (height, width) = placed(size_hw, network_hw)
    gains = np.array([width / size_hw[1], height / size_hw[0]] * 2)
    moved: NDArray[np.float64] = (boxes - np.array([left, top] * 2)) / gains
    return moved.clip(0, np.array([size_hw[1], size_hw[0]] * 2))


def within(box: NDArray[np.float64], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    y, x = np.ogrid[: size_hw[0], : size_hw[1]]
    inside: NDArray[np.bool_] = (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])
    return inside


def resized(grid: NDArray[np.float64], size_hw: tuple[int, int], network_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Where the sum of prototypes is over 0 in the image: enlarged, cut, and resized."""
    return values_in_image(grid, size_hw, network_hw) > 0


def values_in_image(
    grid: NDArray[np.float64], size_hw: tuple[int, int], network_hw: tuple[int, int]
) -> NDArray[np.float64]:
    _, content = placed(size_hw, network_hw)
    padding = (network_hw[0] - content[0]) | (network_hw[1] - content[1])
    factor = 4 // gcd(4, padding | padding // 2)
    large = bilinear(grid, (grid.shape[0] * factor, grid.shape[1] * factor))
    (top, left), (height, width) = placed(size_hw, (large.shape[0], large.shape[1]))
    return bilinear(large[top : top + height, left : left + width], size_hw)


def bilinear(grid: NDArray[np.float64], size_hw: tuple[int, int]) -> NDArray[np.float64]:
    """A bilinear resize with half-pixel centres, rows and then columns, as products with matrices of weights."""
    return _weights(grid.shape[0], size_hw[0]) @ grid @ _weights(grid.shape[1], size_hw[1]).T


def _weights(source: int, target: int) -> NDArray[np.float64]:
    centre = ((np.arange(target) + 0.5) * source / target - 0.5).clip(0, source - 1)
    return np.maximum(1 - np.abs(centre[:, None] - np.arange(source)), 0)


def made(
    seed: int,
    network_hw: tuple[int, int] = (96, 128),
    *,
    classes: int = 4,
    planes: int = 8,
    things: int = 12,
    selected: bool = False,
) -> Outputs:
    """Outputs with things that several boxes show, boxes that leave the network's input, and smooth masks."""
    rng = np.random.default_rng(seed)
    height, width = network_hw
    copies = 1 if selected else 4
    centre = rng.uniform(0, 1, (things, 2)) * [width, height]
    sides = rng.uniform(0.05, 0.8, (things, 2)) * [width, height]
    owner = np.repeat(np.arange(things), copies)
    jitter = rng.normal(0, 0.03, (len(owner), 4)) * np.tile(sides, 2)[owner]
    boxes = np.concatenate([centre, sides], 1)[owner] + jitter
    scores = rng.uniform(0.1, 0.95, len(owner))
    labels = rng.integers(0, classes, things)[owner]
    weights = rng.normal(0, 1, (things, planes))[owner] + rng.normal(0, 0.1, (len(owner), planes))
    y, x = np.mgrid[: height // 4, : width // 4]
    frequency, phase = rng.uniform(-0.5, 0.5, (planes, 2, 1, 1)), rng.uniform(0, 6, (planes, 1, 1))
    prototypes = np.sin(frequency[:, 0] * x + frequency[:, 1] * y + phase)
    if selected:
        corners = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], 1)
        rows = np.concatenate([corners, scores[:, None], labels[:, None], weights], 1)
        output0 = np.concatenate([rows, np.zeros((5, rows.shape[1]))])
    else:
        one_hot = np.eye(classes)[labels] * scores[:, None] + rng.uniform(0, 0.05, (len(owner), classes))
        order = rng.permutation(len(owner))
        output0 = np.concatenate([boxes, one_hot, weights], 1)[order].T
    return {
        "output0": np.ascontiguousarray(output0[None], np.float32),
        "output1": np.ascontiguousarray(prototypes[None], np.float32),
    }
