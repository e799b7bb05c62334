"""Detectron2's Mask R-CNN as its tracing exports it: boxes, classes, small masks and scores, in alphabetical order.

Knows the outputs by their published layout, and how Detectron2 0.6 resizes images and pastes masks. Knows nothing of
files or of OpenVINO. The network normalises the image, and has selected and sorted the rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray import rle
from segray.imaging import geometry, outlines
from segray.imaging.geometry import Rounding
from segray.instances import Instances
from segray.models.adapters.adapter import (
    Defaults,
    ModelAdapter,
    ModelFormat,
    Options,
    drop_small_masks,
    outputs_of_shapes,
)
from segray.models.adapters.box_masks import MAX_SCORE, category_ids
from segray.models.adapters.described import FORM, are_over, best_rows, defaults_of, forms_of
from segray.models.description import Description

# The threshold and the limit that Detectron2's configurations build into the graph.
DEFAULTS = Defaults(score_threshold=0.05, max_detections=100)

_OUTPUTS = ("pred_boxes", "pred_classes", "pred_masks", "scores")
_SHORT_SIDE, _LONG_SIDE = 800, 1333


def of(description: Description) -> Detectron2:
    """Return the adapter of a described file."""
    return Detectron2(
        description.family,
        description.labels,
        forms_of(description, _OUTPUTS),
        description.rounding,
        defaults=defaults_of(description.thresholds, DEFAULTS),
    )


@dataclass(frozen=True)
class Detectron2(ModelAdapter):
    """The adapter of Detectron2's traced Mask R-CNN. rounding: as in Description."""

    rounding: Rounding

    supported_options = frozenset()
    kernels = ("segray.masks._kernels_grids",)

    def prepare(self, form: ModelFormat, image_rgb: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the image at its size for the network."""
        window_hw = self._window_hw((image_rgb.shape[0], image_rgb.shape[1]))
        return {form.image.name: geometry.stretch_to(image_rgb, window_hw, self.rounding)[None]}

    def _window_hw(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Return height and width of the network's input, in pixels: the traced size, or by the sides of the image."""
        window_hw = self.forms[FORM].image.size_hw
        if window_hw is not None:
            return window_hw
        scale = _SHORT_SIDE / min(size_hw)
        sides = [side * scale for side in size_hw]
        if max(sides) > _LONG_SIDE:
            shrink = _LONG_SIDE / max(sides)
            sides = [side * shrink for side in sides]
        height, width = (max(int(side + 0.5), 1) for side in sides)
        return height, width

    def decode(self, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int], options: Options) -> Instances:
        """Return the rows over the threshold, in the network's order. Empty masks stay, empty boxes go.

        outputs: pred_boxes (n, 4) in pixels of the network's input, pred_classes (n,) counted from 0, pred_masks
        (n, 1, m, m) probabilities over the box, scores (n,).
        """
        shapes: dict[str, tuple[int | str, ...]] = {
            "pred_boxes": ("n", 4), "pred_classes": ("n",), "pred_masks": ("n", 1, "m", "m"), "scores": ("n",),
        }  # fmt: skip
        boxes, classes, masks, scores = outputs_of_shapes(outputs, shapes, self.name)
        is_valid = np.isfinite(boxes).all(axis=1) & (scores > 0) & (scores <= MAX_SCORE)
        is_valid &= (classes >= 0) & np.isfinite(masks).all(axis=(1, 2, 3))
        unreadable = int((~is_valid & (scores != 0)).sum())
        ids = category_ids(np.array(list(self.labels), np.int32), np.where(is_valid, classes, 0))
        class_ids = ids.astype(np.int32)
        window_hw = self._window_hw(size_hw)
        scale_xy = [size_hw[1] / window_hw[1], size_hw[0] / window_hw[0]]
        limits_xyxy = np.array(size_hw[::-1] * 2, np.float32)
        boxes_xyxy = np.where(is_valid[:, None], boxes * np.array(scale_xy * 2, np.float32), 0).clip(0, limits_xyxy)
        has_area = (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(axis=1)
        candidates = np.flatnonzero(is_valid & has_area & are_over(scores, class_ids, options))
        rows = best_rows(candidates, scores, options.max_detections)
        if not len(rows):
            return Instances.empty(size_hw, unreadable)
        edges = outlines.edges_of_samples(masks[rows, 0], boxes_xyxy[rows], size_hw)
        selected = Instances(
            class_ids[rows],
            scores[rows].clip(0, 1),
            boxes_xyxy[rows],
            rle.from_edges_of_all(*edges, size_hw),
            size_hw,
            unreadable,
        )
        return drop_small_masks(selected, options)
