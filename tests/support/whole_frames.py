"""Small masks put into boxes the slow way, over the whole image: what decoding is checked against.

Written from the descriptions of the two ways to paste, sharing no code with segray; and rows to paste.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import golden_files
import numpy as np
from numpy.typing import NDArray

from segray import rle
from segray.instances import Instances

SIZES_HW = [(17, 31), (31, 17), (427, 640), (640, 427), (1, 1)]
TWELVE_MEGAPIXELS = (3024, 4032)


def tiled(mask: NDArray[np.float32], box_xyxy: NDArray[np.float32], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Detectron's: zeros around the mask, the box grown as much, truncated, its last pixel in; cv2's resize."""
    side = len(mask)
    padded = np.zeros((side + 2, side + 2), np.float32)
    padded[1:-1, 1:-1] = mask
    box = box_xyxy.astype(np.float32)
    centre, half = (box[2:] + box[:2]) * 0.5, (box[2:] - box[:2]) * 0.5 * ((side + 2) / side)
    x0, y0 = np.trunc(centre - half).astype(int).tolist()
    x1, y1 = np.trunc(centre + half).astype(int).tolist()
    resized = cv2.resize(padded, (max(x1 - x0 + 1, 1), max(y1 - y0 + 1, 1))) > 0.5
    whole = np.zeros(size_hw, np.bool_)
    top, bottom = np.clip((y0, y1 + 1), 0, size_hw[0]).tolist()
    left, right = np.clip((x0, x1 + 1), 0, size_hw[1]).tolist()
    if top < bottom and left < right:
        whole[top:bottom, left:right] = resized[top - y0 : bottom - y0, left - x0 : right - x0]
    return whole


def reframed(mask: NDArray[np.float32], box: NDArray[np.float32], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """TensorFlow's: the unit square seen from the box, cut out of the mask at the image's size; 0 outside."""
    side = len(mask)
    v, u = (
        _seen_from_box(low, high, n, np.float32(side - 1))
        for low, high, n in ((box[1], box[3], size_hw[0]), (box[0], box[2], size_hw[1]))
    )
    inside = ((v >= 0) & (v <= side - 1))[:, None] & ((u >= 0) & (u <= side - 1))
    row, column = (np.floor(at.clip(0, side - 1)).astype(int) for at in (v, u))
    below, right = np.minimum(row + 1, side - 1), np.minimum(column + 1, side - 1)
    left_columns, right_columns = mask[:, column], mask[:, right]
    lines = left_columns + (right_columns - left_columns) * (u - column)
    return inside & (lines[row] + (lines[below] - lines[row]) * (v - row)[:, None] > 0.5)


def _seen_from_box(low: np.float32, high: np.float32, pixels: int, reach: np.float32) -> NDArray[np.float32]:
    extent = max(high - low, np.float32(1e-4))
    begin, end = (np.float32(0) - low) / extent, (np.float32(1) - low) / extent
    if pixels == 1:
        return np.array([(begin + end) * reach / 2], np.float32)
    return begin * reach + np.arange(pixels, dtype=np.float32) * ((end - begin) * reach / np.float32(pixels - 1))


def assert_same_masks(found: Instances, masks: list[NDArray[np.bool_]]) -> None:
    """Equal runs for 99 in 100, and no more than 2 pixels apart in the others."""
    assert len(found) == len(masks)
    other = [i for i, mask in enumerate(masks) if found.rles[i] != rle.encode(mask)]
    assert len(other) <= math.ceil(0.01 * len(masks))
    for i in other:
        assert (rle.decode(found.rles[i], found.size_hw) != masks[i]).sum() <= 2


def assert_as_golden(found: Instances, name: str, category: Any = int) -> None:
    """The classes, scores, clipped boxes and masks of a golden file; category: its class -> COCO's id."""
    expected = golden_files.decoded(name)["instances"]
    height, width = found.size_hw
    assert found.class_ids.tolist() == [category(row["class_id"]) for row in expected]
    np.testing.assert_allclose(found.scores, [row["score"] for row in expected], atol=1e-6)
    boxes = np.array([row["box"] for row in expected]).clip(0, [width, height] * 2)
    np.testing.assert_allclose(found.boxes_xyxy, boxes, atol=1e-3)
    assert_same_masks(found, [rle.decode(row["segmentation"]["counts"], found.size_hw) for row in expected])


def blobs(rng: np.random.Generator, count: int, side: int) -> NDArray[np.float32]:
    """Masks (count, side, side): an ellipse each, with a soft and ragged edge, some cut by the border."""
    y, x = np.mgrid[0:side, 0:side] / (side - 1) * 2 - 1
    radius = rng.uniform(0.4, 1.3, (2, count, 1, 1))
    centre = rng.uniform(-0.3, 0.3, (2, count, 1, 1))
    inside = 1 - ((x - centre[0]) / radius[0]) ** 2 - ((y - centre[1]) / radius[1]) ** 2
    return (1 / (1 + np.exp(-6 * inside + rng.normal(0, 0.3, inside.shape)))).astype(np.float32)


def boxes_of(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Boxes (count, 4) xyxy over 0..1, some beyond it, some smaller than a pixel."""
    centre, size = rng.uniform(-0.1, 1.1, (count, 2)), rng.uniform(0.02, 0.7, (count, 2))
    size[::7] *= 0.01
    return np.concatenate([centre - size / 2, centre + size / 2], 1).astype(np.float32)
