"""Instance segmentation models of Intel Geti and OpenVINO Training Extensions, as Intel's model_api decodes them.

Knows boxes of five numbers with labels and masks, in two kinds: masks of a box (MaskRCNN) and of the whole image
(DETRInstSeg). geti_yolo.py has the third kind. Knows nothing of files: a Description has the facts of the file.

Rows follow model_api 0.4.7. Boxes are whole pixels. A row stays if its score is over the threshold, not at it. Rows
keep the network's order unless suppression ran.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from segray import rle
from segray.imaging import geometry, outlines
from segray.imaging.geometry import Resize, Rounding
from segray.instances import Instances
from segray.models.adapters.adapter import (
    Defaults,
    ModelAdapter,
    ModelFormat,
    Options,
    drop_small_masks,
    outputs_of_shapes,
)
from segray.models.adapters.box_masks import MAX_SCORE
from segray.models.adapters.described import FORM, are_over, best_rows, forms_of
from segray.models.description import Description

# Largest number of rows of a file that states no limit.
UNLIMITED = 32_767
_BOX_OUTPUTS = ("boxes", "labels", "masks")


@dataclass(frozen=True)
class Rules:
    """The facts of a file that decide how its images are fitted and its rows selected.

    resize, pad_value, rounding: as in Description. is_agnostic: suppression compares boxes of all classes.
    max_candidates: suppression across all classes looks at this many rows, the best; 0 for all.
    """

    resize: Resize
    pad_value: int
    rounding: Rounding
    is_agnostic: bool
    max_candidates: int


@dataclass(frozen=True)
class Placement:
    """Where an image lies in the network's input.

    scale_xy: pixels of the image in a pixel of the network. pad_xy: pixels of the network left of and above the image.
    """

    scale_xy: tuple[float, float]
    pad_xy: tuple[int, int]

    @classmethod
    def of(cls, size_hw: tuple[int, int], window_hw: tuple[int, int], resize: Resize) -> Placement:
        """Return the placement that model_api computes, in float64."""
        scale_xy = (size_hw[1] / window_hw[1], size_hw[0] / window_hw[0])
        if resize == "stretch":
            return cls(scale_xy, (0, 0))
        scale = max(scale_xy)
        if resize == "corner":
            return cls((scale, scale), (0, 0))
        pad_x, pad_y = ((window_hw[axis] - round(size_hw[axis] / scale)) // 2 for axis in (1, 0))
        return cls((scale, scale), (pad_x, pad_y))

    def whole_pixels(self, boxes_xyxy: NDArray[np.float32], size_hw: tuple[int, int]) -> NDArray[np.float64]:
        """Return boxes (n, 4) of the network's pixels in whole pixels of the image, clipped to the image."""
        shifted = (boxes_xyxy - np.array(self.pad_xy * 2, np.float64)).astype(np.float32)
        scaled = (shifted * np.array(self.scale_xy * 2, np.float64)).astype(np.float32)
        boxes: NDArray[np.float64] = np.around(scaled).clip(0, size_hw[::-1] * 2).astype(np.float64)
        return boxes


@dataclass(frozen=True)
class GetiAdapter(ModelAdapter):
    """An adapter of a file by Geti. rules: the facts of the file."""

    rules: Rules

    supported_options = frozenset({"nms_iou"})
    kernels = ("segray.masks._kernels_grids",)

    def prepare(self, form: ModelFormat, image_rgb: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the image at the network's size."""
        rules, window_hw = self.rules, form.window_hw
        fit = geometry.Fit.exact((image_rgb.shape[0], image_rgb.shape[1]), window_hw, rules.resize)
        window = geometry.place(image_rgb, fit, window_hw, rules.pad_value, rules.rounding)
        return {form.image.name: window[None]}

    def max_iou(self, options: Options) -> float | None:
        """Return the largest IoU of two boxes that both stay; None if no suppression runs."""
        return self.defaults.nms_iou if options.nms_iou is None else options.nms_iou

    def select(
        self,
        rows: NDArray[np.intp],
        boxes_xyxy: NDArray[np.floating[Any]],
        classes: NDArray[np.float32],
        scores: NDArray[np.float32],
        options: Options,
    ) -> NDArray[np.intp]:
        """Return the rows that suppression and options.max_detections leave.

        Args:
            rows: Candidates, in the network's order.
            boxes_xyxy: (n, 4), boxes of all rows. IoUs are computed in the dtype of the boxes.
            classes: (n,), the network's classes of all rows.
            scores: (n,), scores of all rows.
            options: The user's options.
        """
        max_iou = self.max_iou(options)
        if max_iou is None or not len(rows):
            return best_rows(rows, scores, options.max_detections)
        order = rows[np.argsort(-scores[rows], kind="stable")]
        if not self.rules.is_agnostic:
            boxes_xyxy = apart_by_class(boxes_xyxy, classes, rows)
        elif self.rules.max_candidates > 0:
            order = order[: max(self.rules.max_candidates, options.max_detections)]
        return kept_rows(boxes_xyxy, order, max_iou)[: options.max_detections]


@dataclass(frozen=True)
class GetiBoxes(GetiAdapter):
    """An adapter of boxes (n, 5) with the score last, labels (n,) and masks (n, r, c).

    mask_shape: the axes of a mask, as letters for any size.
    """

    mask_shape: ClassVar[tuple[str, str]] = ("r", "c")

    @classmethod
    def of(cls, description: Description) -> Self:
        """Return the adapter of a described file."""
        return cls(
            description.family,
            description.labels,
            forms_of(description, _BOX_OUTPUTS),
            rules_of(description),
            defaults=defaults_of(description, 0.5),
        )

    def decode(self, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int], options: Options) -> Instances:
        """Return the rows that model_api reports, in its order. Empty masks stay, boxes of a pixel or less go.

        outputs: boxes (n, 5) in pixels of the network's input, labels (n,), masks (n, r, c) of probabilities.
        """
        shapes: dict[str, tuple[int | str, ...]] = {
            "boxes": ("n", 5),
            "labels": ("n",),
            "masks": ("n", *self.mask_shape),
        }
        boxes, classes, masks = outputs_of_shapes(outputs, shapes, self.name)
        scores = np.ascontiguousarray(boxes[:, 4])
        is_valid = np.isfinite(boxes).all(axis=1) & (classes >= 0) & (classes == np.rint(classes))
        is_valid &= (scores >= 0) & (scores <= MAX_SCORE)
        unreadable = int((~is_valid & (scores != 0)).sum())
        class_ids, is_named = named_classes(classes, self.labels, is_valid)
        placement = Placement.of(size_hw, self.forms[FORM].window_hw, self.rules.resize)
        boxes_xyxy = np.zeros((len(boxes), 4))
        boxes_xyxy[is_valid] = placement.whole_pixels(boxes[is_valid, :4], size_hw)
        areas = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).clip(0).prod(axis=1)
        candidates = np.flatnonzero(is_named & are_over(scores, class_ids, options) & (areas > 1))
        has_mask = np.isfinite(masks[candidates]).all(axis=(1, 2))
        unreadable += int((~has_mask).sum())
        rows = self.select(candidates[has_mask], boxes_xyxy, classes, scores, options)
        if not len(rows):
            return Instances.empty(size_hw, unreadable)
        counts = self.mask_counts(masks[rows], boxes_xyxy[rows], size_hw)
        selected = Instances(
            class_ids[rows],
            scores[rows].clip(0, 1),
            boxes_xyxy[rows].astype(np.float32),
            counts,
            size_hw,
            unreadable,
        )
        return drop_small_masks(selected, options)

    @abstractmethod
    def mask_counts(
        self, masks: NDArray[np.float32], boxes_xyxy: NDArray[np.float64], size_hw: tuple[int, int]
    ) -> tuple[str, ...]:
        """Return the RLE counts of the masks (n, r, c) of these boxes (n, 4), thresholded at 0.5."""


@dataclass(frozen=True)
class GetiMaskRcnn(GetiBoxes):
    """The adapter of MaskRCNN (Mask R-CNN, RTMDet): the pixels of a square mask tile its box."""

    mask_shape = ("m", "m")

    def mask_counts(
        self, masks: NDArray[np.float32], boxes_xyxy: NDArray[np.float64], size_hw: tuple[int, int]
    ) -> tuple[str, ...]:
        """Return the RLE counts of masks that are pasted into their boxes."""
        return rle.from_edges_of_all(*outlines.edges_of_tiles(masks, boxes_xyxy, size_hw), size_hw)


@dataclass(frozen=True)
class GetiDetr(GetiBoxes):
    """The adapter of DETRInstSeg (RF-DETR): a mask covers the whole image and may leave its box."""

    def mask_counts(
        self, masks: NDArray[np.float32], boxes_xyxy: NDArray[np.float64], size_hw: tuple[int, int]
    ) -> tuple[str, ...]:
        """Return the RLE counts of masks that are resized to the image."""
        return rle.from_edges_of_all(*outlines.edges_of_planes(masks, size_hw), size_hw)


# ---- facts of a file ------------------------------------------------------------------------------


def rules_of(description: Description) -> Rules:
    """Return the rules of a described file, with model_api's own where the file states none."""
    extra = description.extra
    return Rules(
        description.resize,
        description.pad_value,
        description.rounding,
        bool(extra.get("agnostic_nms", False)),
        int(extra.get("nms_max_predictions", 200)),
    )


def defaults_of(description: Description, score_threshold: float) -> Defaults:
    """Return the defaults of a described file. score_threshold: the threshold if the file states none."""
    stated = description.thresholds
    score_threshold = float(stated.get("score_threshold", score_threshold))
    if not description.extra.get("nms_execute", False):
        return Defaults(score_threshold, int(stated.get("max_detections", UNLIMITED)))
    limit = int(stated.get("max_detections", description.extra.get("nms_max_predictions", 200)))
    return Defaults(score_threshold, limit if limit > 0 else UNLIMITED, nms_iou=float(stated.get("nms_iou", 0.5)))


# ---- selection ------------------------------------------------------------------------------------


def named_classes(
    classes: NDArray[np.float32], labels: Mapping[int, str], is_valid: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
    """Return the category ids of the network's classes, (n,) int32, and which rows have one, (n,) bool."""
    ids = np.array(list(labels), np.int32)
    is_named = is_valid & (classes < len(ids))
    class_ids = np.zeros(len(classes), np.int32)
    class_ids[is_named] = ids[classes[is_named].astype(np.intp)]
    return class_ids, is_named


def apart_by_class(
    boxes_xyxy: NDArray[np.floating[Any]], classes: NDArray[np.float32], rows: NDArray[np.intp]
) -> NDArray[np.floating[Any]]:
    """Return the boxes, shifted by their class so that the boxes of two classes do not meet. rows: those that count."""
    step = boxes_xyxy[rows].max() + 1
    shifted: NDArray[np.floating[Any]] = boxes_xyxy + (classes.astype(boxes_xyxy.dtype) * step)[:, None]
    return shifted


def kept_rows(boxes_xyxy: NDArray[np.floating[Any]], order: NDArray[np.intp], max_iou: float) -> NDArray[np.intp]:
    """Return the rows of `order` that greedy suppression keeps, in that order.

    boxes_xyxy: (n, 4), float32 or float64. order: row indices, best first.
    """
    from segray.masks import _kernels_prototypes as kernels

    suppress = kernels.greedy_nms_of_all if boxes_xyxy.dtype == np.float32 else kernels.greedy_nms_of_all_f64
    kept: NDArray[np.intp] = order[suppress(boxes_xyxy[order], len(order), max_iou)]
    return kept
