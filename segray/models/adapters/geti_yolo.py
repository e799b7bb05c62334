"""YOLO-seg models that Intel Geti has trained, as Intel's model_api decodes them.

Knows the raw outputs of a YOLO-seg network, and the mask rule of model_api 0.4.7: probabilities are cropped at the
prototypes' resolution, and resized twice. The rule of Ultralytics is another one. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from segray import rle
from segray.imaging import outlines
from segray.instances import Instances
from segray.models.adapters import geti
from segray.models.adapters.adapter import Options, drop_small_masks, outputs_of_shapes
from segray.models.adapters.box_masks import MAX_SCORE, UNNAMED
from segray.models.adapters.described import FORM, are_over, forms_of
from segray.models.description import Description

_OUTPUTS = ("output0", "output1")


@dataclass(frozen=True)
class GetiYolo(geti.GetiAdapter):
    """The adapter of Geti's YOLO-seg."""

    @classmethod
    def of(cls, description: Description) -> Self:
        """Return the adapter of a described file."""
        return cls(
            description.family,
            description.labels,
            forms_of(description, _OUTPUTS),
            geti.rules_of(description),
            defaults=geti.defaults_of(description, 0.25),
        )

    def decode(self, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int], options: Options) -> Instances:
        """Return the rows that model_api reports, in its order; empty masks and boxes stay.

        A row whose class has no name stays too, because the writer of the rows counts such rows.
        outputs: output0 (4 + classes + k, anchors): centre, width and height in pixels of the network's input, a score
        for each class, k coefficients. output1 (k, r, c): prototypes.
        """
        shapes: dict[str, tuple[int | str, ...]] = {"output0": ("p", "a"), "output1": ("k", "r", "c")}
        table, prototypes = outputs_of_shapes(outputs, shapes, self.name)
        candidates, unreadable = _candidates(table, len(prototypes), _lowest_threshold(options))
        class_ids = np.full(len(candidates.scores), UNNAMED, np.int32)
        named_ids, is_named = geti.named_classes(
            candidates.classes, self.labels, np.ones(len(candidates.scores), np.bool_)
        )
        class_ids[is_named] = named_ids[is_named]
        over = np.flatnonzero(are_over(candidates.scores, class_ids, options))
        rows = self.select(over, candidates.boxes_xyxy, candidates.classes, candidates.scores, options)
        if not len(rows) or not np.isfinite(prototypes).all():
            return Instances.empty(size_hw, unreadable + len(rows))
        window_hw = self.forms[FORM].window_hw
        placement = geti.Placement.of(size_hw, window_hw, self.rules.resize)
        boxes_xyxy = candidates.boxes_xyxy[rows]
        selected = Instances(
            class_ids[rows],
            candidates.scores[rows].clip(0, 1),
            placement.whole_pixels(boxes_xyxy, size_hw).astype(np.float32),
            _mask_counts(candidates.coefficients[rows], prototypes, boxes_xyxy, placement, window_hw, size_hw),
            size_hw,
            unreadable,
        )
        return drop_small_masks(selected, options)


@dataclass(frozen=True)
class _Candidates:
    """Anchors over the lowest threshold, n rows in the network's order.

    boxes_xyxy: (n, 4), pixels of the network's input. classes: (n,), counted from 0. scores: (n,).
    coefficients: (n, k).
    """

    boxes_xyxy: NDArray[np.float32]
    classes: NDArray[np.float32]
    scores: NDArray[np.float32]
    coefficients: NDArray[np.float32]


def _lowest_threshold(options: Options) -> np.float32:
    return np.float32(min([options.score_threshold, *options.class_thresholds.values()]))


def _candidates(table: NDArray[np.float32], depth: int, threshold: np.float32) -> tuple[_Candidates, int]:
    """Return the anchors with a class score over the threshold, and the number of anchors dropped as not finite.

    table: (4 + classes + depth, anchors). depth: number of coefficients.
    """
    best_scores = table[4 : len(table) - depth].max(axis=0, initial=-np.inf)
    with np.errstate(invalid="ignore"):
        anchors = np.flatnonzero(~(best_scores <= threshold))
    columns = table[:, anchors]
    scores = best_scores[anchors]
    is_valid = np.isfinite(columns).all(axis=0) & (scores <= MAX_SCORE)
    columns, scores = columns[:, is_valid], scores[is_valid]
    centres, sides = columns[:2].T, columns[2:4].T
    boxes_xyxy = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    classes = columns[4 : len(table) - depth].argmax(axis=0).astype(np.float32)
    coefficients = np.ascontiguousarray(columns[len(table) - depth :].T)
    return _Candidates(boxes_xyxy, classes, scores, coefficients), int((~is_valid).sum())


def _mask_counts(
    coefficients: NDArray[np.float32],
    prototypes: NDArray[np.float32],
    boxes_xyxy: NDArray[np.float32],
    placement: geti.Placement,
    window_hw: tuple[int, int],
    size_hw: tuple[int, int],
) -> tuple[str, ...]:
    """Return the RLE counts of all masks.

    A mask is the sigmoid of the weighted sum of the prototypes, 0 outside the box. The mask is resized to the network's
    input, cut to the image's part, resized to the image, and thresholded at 0.5.
    """
    side_hw = (prototypes.shape[1], prototypes.shape[2])
    crops = _crops(boxes_xyxy, side_hw, window_hw)
    with np.errstate(over="ignore"):
        logits = outlines.crops_of_sums(coefficients, prototypes, crops, frame=-np.inf)
        cells = np.asarray(1 / (1 + np.exp(-logits)), np.float32)  # sigmoid(-inf) is 0.
    axes = []
    for axis in (0, 1):
        start = placement.pad_xy[1 - axis]
        stop = start + max(round(size_hw[axis] / placement.scale_xy[1 - axis]), 1)
        axes.append(
            outlines.taps_of_two_resizes(
                side_hw[axis], window_hw[axis], start, min(stop, window_hw[axis]), size_hw[axis]
            )
        )
    return rle.from_edges_of_all(*outlines.edges_of_crops_resized_twice(cells, crops, *axes), size_hw)


def _crops(boxes_xyxy: NDArray[np.float32], side_hw: tuple[int, int], window_hw: tuple[int, int]) -> NDArray[np.int64]:
    """Return the cells of the prototypes inside each box, (n, 4) int64: a cell j is inside where low <= j < high."""
    share = np.array([side_hw[1] / window_hw[1], side_hw[0] / window_hw[0]] * 2, np.float32)
    limits = np.array([side_hw[1], side_hw[0]] * 2, np.float32)
    crops: NDArray[np.int64] = np.ceil((boxes_xyxy * share).clip(0, limits)).astype(np.int64)
    crops[:, 2:] = np.maximum(crops[:, :2], crops[:, 2:])
    return crops
