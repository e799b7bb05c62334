"""What the Mask R-CNN families share: rows of class, score, box and a small mask, made into instances.

Knows which rows can be believed, how they are cut and ordered, and how a small mask is put into its box; knows
nothing of how any family names or arranges its outputs.

A row with a number that is not one (NaN, infinity, a class of 16.7, a score outside 0..1) is dropped and counted:
only it is lost. A class without a name is kept, since whoever writes the rows counts what it leaves out.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray import rle
from segray.imaging import geometry
from segray.instances import Instances
from segray.models.adapters.adapter import ModelAdapter, Options, Paste, chosen, large_enough

Floats = NDArray[np.floating[Any]]

# Softmax may pass 1 in its last bits where a device approximates it.
MAX_SCORE = 1.001
# Pixels from the image; an edge further away is taken for one here, so that no arithmetic overflows.
FAR = 2**31
# The class of a row whose network class has no name in the label map; no label map has it.
UNNAMED = -1


@dataclass(frozen=True)
class Rows:
    """n detections of one image, in the network's order.

    classes: (n,) category ids, whole numbers or not. scores: (n,). boxes_xyxy: (n, 4) source pixels, not clipped.
    masks: (n, m, m) probabilities over the box, the row's own class only.
    """

    classes: Floats
    scores: NDArray[np.float32]
    boxes_xyxy: Floats
    masks: NDArray[np.float32]


@dataclass(frozen=True)
class BoxMaskAdapter(ModelAdapter):
    """A contract of these families. paste: how its numbers were measured."""

    paste: Paste = "tile"

    @abstractmethod
    def rows(self, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int]) -> Rows:
        """What the outputs, batch axis included, say of one image of this size. Raises ModelError, as decode does."""

    def decode(self, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int], options: Options) -> Instances:
        """The rows that can be believed, best first, an empty mask or box among them."""
        return instances(self.rows(outputs, size_hw), size_hw, options, self.paste)


def instances(rows: Rows, size_hw: tuple[int, int], options: Options, paste: Paste) -> Instances:
    """The credible rows that the options let through, best first; paste: unless the options say otherwise."""
    believed = _valid_rows(rows)
    # A score of 0 is how the networks fill up their lists.
    unreadable = int((~believed & (rows.scores != 0)).sum())
    credible = np.flatnonzero(believed)
    class_ids = np.zeros(len(rows.classes), np.int32)
    class_ids[credible] = rows.classes[credible]
    order = credible[np.argsort(-rows.scores[credible], kind="stable")]
    best = chosen(order, class_ids, rows.scores, options)
    if not len(best):
        return Instances.empty(size_hw, unreadable)
    boxes = rows.boxes_xyxy[best].clip(-FAR, FAR)
    put = _reframed if (options.paste or paste) == "reframe" else _tiled
    counts = tuple(put(mask, box, size_hw) for mask, box in zip(rows.masks[best], boxes, strict=True))
    limits = np.array(size_hw[::-1] * 2)
    found = Instances(
        class_ids[best],
        rows.scores[best].clip(0, 1),
        boxes.clip(0, limits).astype(np.float32),
        counts,
        size_hw,
        unreadable,
    )
    return large_enough(found, options)


def category_ids(labels: NDArray[np.int32], index: Floats) -> Floats:
    """Category ids, (n,), of classes that a network counts from 0; UNNAMED beyond the list, NaN for no whole number."""
    whole = np.isfinite(index) & (index == np.rint(index))
    inside = whole & (index >= 0) & (index < len(labels))
    ids = np.where(whole, float(UNNAMED), np.nan)
    ids[inside] = labels[index[inside].astype(np.intp)]
    return ids


def masks_of_predicted_class(masks: NDArray[np.float32], channel: Floats) -> NDArray[np.float32]:
    """(n, k, m, m) masks of every class -> (n, m, m), of each row's own; 0 for a row whose class has no channel."""
    there = (channel >= 0) & (channel < masks.shape[1])
    rows = np.flatnonzero(there)
    own = np.zeros((len(masks), *masks.shape[2:]), np.float32)
    own[rows] = masks[rows, channel[rows].astype(np.intp)]
    return own


def _valid_rows(rows: Rows) -> NDArray[np.bool_]:
    classes, scores = rows.classes, rows.scores
    whole = np.isfinite(classes) & (classes == np.rint(classes)) & (np.abs(classes) < 2**31)
    credible: NDArray[np.bool_] = whole & (scores > 0) & (scores <= MAX_SCORE)
    credible &= np.isfinite(rows.boxes_xyxy).all(axis=1) & np.isfinite(rows.masks).all(axis=(1, 2))
    return credible


# ---- a small mask into its box --------------------------------------------------------------------


def _tiled(mask: NDArray[np.float32], box_xyxy: Floats, size_hw: tuple[int, int]) -> str:
    """Full-image counts of the mask whose pixels tile the box, over 0.5."""
    x0, y0, x1, y1 = box_xyxy.astype(np.float32)  # As the reference, whose boxes are the network's float32.
    rows = geometry.tile_taps(y0, y1, len(mask), size_hw[0])
    columns = geometry.tile_taps(x0, x1, len(mask), size_hw[1])
    return rle.from_edges(geometry.mask_edges(geometry.framed(mask), rows, columns, size_hw[0]), size_hw)


def _reframed(mask: NDArray[np.float32], box_xyxy: Floats, size_hw: tuple[int, int]) -> str:
    """Full-image counts of the mask whose outermost pixel centres lie on the box's edges, over 0.5."""
    height, width = size_hw
    x0, y0, x1, y1 = (box_xyxy / np.array([width, height, width, height])).astype(np.float32)
    rows = geometry.reframe_taps(y0, y1, len(mask), height)
    columns = geometry.reframe_taps(x0, x1, len(mask), width)
    return rle.from_edges(geometry.mask_edges(mask, rows, columns, height), size_hw)
