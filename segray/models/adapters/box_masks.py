"""Decoding that the Mask R-CNN families share: rows of class, score, box and small mask become instances.

Knows which rows are valid, in which order rows come, and how a small mask is pasted into its box. Knows nothing of
the names and layouts of a family's outputs.

A row with an invalid number is dropped and counted: NaN, infinity, a class of 16.7, a score outside 0..1. The other
rows of the image stay. A row whose class has no name stays too, because the writer of the rows counts such rows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray import rle
from segray.imaging import outlines
from segray.instances import Instances
from segray.models.adapters.adapter import ModelAdapter, Options, Paste, drop_small_masks, select_rows

Floats = NDArray[np.floating[Any]]

# A device that approximates softmax may exceed 1 in the last bits.
MAX_SCORE = 1.001
# Box edges are clipped to this distance from 0, in pixels, so that no arithmetic overflows.
FAR_PX = 2**31
# Category id of a row whose network class is not in the label map. No label map contains this id.
UNNAMED = -1


@dataclass(frozen=True)
class Rows:
    """Detections of one image, n rows in the network's order.

    classes: (n,), category ids as floats. scores: (n,). boxes_xyxy: (n, 4), source pixels, not clipped.
    masks: (n, m, m), probabilities over the box, of the row's own class.
    """

    classes: Floats
    scores: NDArray[np.float32]
    boxes_xyxy: Floats
    masks: NDArray[np.float32]


@dataclass(frozen=True)
class BoxMaskAdapter(ModelAdapter):
    """An adapter of a Mask R-CNN family. paste: the way of pasting with which the published accuracy was measured."""

    paste: Paste = "tile"

    @abstractmethod
    def rows(self, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int]) -> Rows:
        """Return the rows of one image from its outputs, batch axis included; raise ModelError as `decode` does.

        size_hw: height and width of the source image, in pixels.
        """

    def decode(self, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int], options: Options) -> Instances:
        """Return the valid rows as instances, highest score first; empty masks and boxes stay."""
        return instances(self.rows(outputs, size_hw), size_hw, options, self.paste)


def instances(rows: Rows, size_hw: tuple[int, int], options: Options, paste: Paste) -> Instances:
    """Return the valid rows that meet the options, highest score first.

    Args:
        rows: The detections of one image.
        size_hw: Height and width of the source image, in pixels.
        options: Thresholds and limits.
        paste: How to paste masks if options.paste is None.
    """
    is_valid = _are_valid(rows)
    # The networks fill their lists with rows of score 0.
    unreadable = int((~is_valid & (rows.scores != 0)).sum())
    valid = np.flatnonzero(is_valid)
    class_ids = np.zeros(len(rows.classes), np.int32)
    class_ids[valid] = rows.classes[valid]
    order = valid[np.argsort(-rows.scores[valid], kind="stable")]
    best = select_rows(order, class_ids, rows.scores, options)
    if not len(best):
        return Instances.empty(size_hw, unreadable)
    boxes_xyxy = rows.boxes_xyxy[best].clip(-FAR_PX, FAR_PX)
    paste_mask = _paste_reframed if (options.paste or paste) == "reframe" else _paste_tiled
    counts = tuple(paste_mask(mask, box, size_hw) for mask, box in zip(rows.masks[best], boxes_xyxy, strict=True))
    limits_xyxy = np.array(size_hw[::-1] * 2)
    selected = Instances(
        class_ids[best],
        rows.scores[best].clip(0, 1),
        boxes_xyxy.clip(0, limits_xyxy).astype(np.float32),
        counts,
        size_hw,
        unreadable,
    )
    return drop_small_masks(selected, options)


def category_ids(labels: NDArray[np.int32], index: Floats) -> Floats:
    """Return the category ids, (n,), of class indices that a network counts from 0.

    labels: (k,), category id of each index. An index beyond the list gives UNNAMED, a fraction gives NaN.
    """
    is_integer = np.isfinite(index) & (index == np.rint(index))
    is_named = is_integer & (index >= 0) & (index < len(labels))
    ids = np.where(is_integer, float(UNNAMED), np.nan)
    ids[is_named] = labels[index[is_named].astype(np.intp)]
    return ids


def masks_of_predicted_class(masks: NDArray[np.float32], channel: Floats) -> NDArray[np.float32]:
    """Return the mask of each row's own class, (n, m, m), from masks of every class, (n, k, m, m).

    channel: (n,), index on axis k. A row whose class has no channel gets zeros.
    """
    rows = np.flatnonzero((channel >= 0) & (channel < masks.shape[1]))
    predicted = np.zeros((len(masks), *masks.shape[2:]), np.float32)
    predicted[rows] = masks[rows, channel[rows].astype(np.intp)]
    return predicted


def _are_valid(rows: Rows) -> NDArray[np.bool_]:
    """Return which rows are valid, bool (n,): an int32 class, a score over 0 and at most MAX_SCORE, finite numbers."""
    classes, scores = rows.classes, rows.scores
    has_class = np.isfinite(classes) & (classes == np.rint(classes)) & (np.abs(classes) < 2**31)
    is_valid: NDArray[np.bool_] = has_class & (scores > 0) & (scores <= MAX_SCORE)
    is_valid &= np.isfinite(rows.boxes_xyxy).all(axis=1) & np.isfinite(rows.masks).all(axis=(1, 2))
    return is_valid


# ---- a small mask into its box --------------------------------------------------------------------


def _paste_tiled(mask: NDArray[np.float32], box_xyxy: Floats, size_hw: tuple[int, int]) -> str:
    """Return the full-image RLE counts of a mask whose pixels tile the box, thresholded at 0.5."""
    x0, y0, x1, y1 = box_xyxy.astype(np.float32)  # The reference has float32 boxes.
    rows = outlines.tile_taps(y0, y1, len(mask), size_hw[0])
    columns = outlines.tile_taps(x0, x1, len(mask), size_hw[1])
    return rle.from_edges(outlines.mask_edges(outlines.framed(mask), rows, columns, size_hw[0]), size_hw)


def _paste_reframed(mask: NDArray[np.float32], box_xyxy: Floats, size_hw: tuple[int, int]) -> str:
    """Return the full-image RLE counts of a mask, thresholded at 0.5.

    The centres of the mask's outer pixels lie on the box's edges.
    """
    height, width = size_hw
    x0, y0, x1, y1 = (box_xyxy / np.array([width, height, width, height])).astype(np.float32)
    rows = outlines.reframe_taps(y0, y1, len(mask), height)
    columns = outlines.reframe_taps(x0, x1, len(mask), width)
    return rle.from_edges(outlines.mask_edges(mask, rows, columns, height), size_hw)
