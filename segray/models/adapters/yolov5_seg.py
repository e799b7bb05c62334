"""YOLOv5-seg: boxes, an objectness, class scores and mask coefficients per anchor, and the prototypes of the masks.

Knows the outputs by their published layout, and the rules by which YOLOv5 7.0 decodes them with --retina-masks: scores
are objectness times class score, boxes are whole pixels, and the sigmoid comes before the masks are resized. Knows
nothing of files or of OpenVINO.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segray import rle
from segray.errors import ModelError
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
from segray.models.adapters.described import FORM, defaults_of, forms_of, rows_after_nms, thresholds_of_classes
from segray.models.description import Description

Floats = NDArray[np.float32]

DEFAULTS = Defaults(score_threshold=0.25, max_detections=1000, nms_iou=0.45)

_OUTPUTS = ("output0", "output1")
# Masks that are made at a time, so that the probabilities of all prototypes' cells stay small.
_BLOCK = 64


def of(description: Description) -> YoloV5Seg:
    """Return the adapter of a described file."""
    return YoloV5Seg(
        description.family,
        description.labels,
        forms_of(description, _OUTPUTS),
        description.pad_value,
        description.rounding,
        defaults=defaults_of(description.thresholds, DEFAULTS),
    )


@dataclass(frozen=True)
class YoloV5Seg(ModelAdapter):
    """The adapter of YOLOv5-seg. pad_value, rounding: as in Description."""

    pad_value: int
    rounding: Rounding

    supported_options = frozenset({"nms", "nms_iou"})
    nms_choices = ("per_class", "cross_class")
    kernels = ("segray.masks._kernels", "segray.masks._kernels_prototypes")

    def prepare(self, form: ModelFormat, image_rgb: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the image, fitted into the network's input and padded on both sides."""
        window_hw = form.window_hw
        fit = geometry.Fit.of((image_rgb.shape[0], image_rgb.shape[1]), window_hw)
        return {form.image.name: geometry.place(image_rgb, fit, window_hw, self.pad_value, self.rounding)[None]}

    def decode(self, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int], options: Options) -> Instances:
        """Return the detections that YOLOv5 keeps, highest score first. Empty masks stay.

        output0: (1, anchors, 5 + classes + m): centre, width and height in pixels of the network, objectness, class
        scores, m coefficients. output1: (1, m, h, w), prototypes.
        """
        shapes = {"output0": ("anchors", "columns"), "output1": ("m", "h", "w")}
        table, prototypes = outputs_of_shapes(outputs, shapes, self.name)
        if table.shape[1] != 5 + len(self.labels) + len(prototypes) or not self.labels:
            raise self._shape_error(table, prototypes)
        candidates, unreadable = _candidates(table, thresholds_of_classes(self.labels, options))
        default_iou = self.defaults.nms_iou or 0.45
        kept = rows_after_nms(candidates.scores, candidates.labels, candidates.boxes_xyxy, options, default_iou)
        rows = candidates.take(kept)
        if not len(rows.scores):
            return Instances.empty(size_hw, unreadable)
        boxes_xyxy = _to_image(rows.boxes_xyxy, size_hw, self.forms[FORM].window_hw)
        instances = Instances(
            np.array(list(self.labels), np.int32)[rows.labels],
            rows.scores,
            boxes_xyxy,
            _counts(rows.coefficients, prototypes, boxes_xyxy.astype(np.int64), size_hw),
            size_hw,
            unreadable,
        )
        return drop_small_masks(instances, options)

    def _shape_error(self, table: Floats, prototypes: Floats) -> ModelError:
        classes = table.shape[1] - 5 - len(prototypes)
        return ModelError(
            "The outputs have other shapes than the adapter expects.",
            where=self.name,
            found=f"output0 {[1, *table.shape]}, output1 {[1, *prototypes.shape]}",
            hint=f"Expected: output0 [1, anchors, {5 + len(self.labels) + len(prototypes)}] for {len(self.labels)} "
            f"classes. {f'Name {classes} classes in `model.labels`.' if classes > 0 else 'Export a -seg model.'}",
        )


class _Rows(NamedTuple):
    """n rows of one image.

    scores: (n,). labels: (n,), indices of classes. boxes_xyxy: (n, 4), in pixels of the network. coefficients: (n, m).
    """

    scores: Floats
    labels: NDArray[np.intp]
    boxes_xyxy: Floats
    coefficients: Floats

    def take(self, rows: NDArray[np.intp]) -> _Rows:
        """Return these rows."""
        return _Rows(self.scores[rows], self.labels[rows], self.boxes_xyxy[rows], self.coefficients[rows])


def _candidates(table: Floats, thresholds: Floats) -> tuple[_Rows, int]:
    """Return the anchors whose best score is over its threshold, and the number of anchors dropped as not finite.

    table: (anchors, 5 + classes + m).
    """
    lowest, classes = thresholds.min(), len(thresholds)
    over = table[~(table[:, 4] <= lowest)]
    finite = np.isfinite(over).all(axis=1)
    rows = over[finite]
    scores = rows[:, 5 : 5 + classes] * rows[:, 4:5]
    labels = scores.argmax(axis=1)
    highest = scores[np.arange(len(labels)), labels]
    kept = highest > thresholds[labels]
    rows = rows[kept]
    centres, halves = rows[:, :2], rows[:, 2:4] / np.float32(2)
    boxes_xyxy = np.concatenate([centres - halves, centres + halves], axis=1)
    candidates = _Rows(highest[kept], labels[kept], boxes_xyxy, np.ascontiguousarray(rows[:, 5 + classes :]))
    return candidates, int((~finite).sum())


def _to_image(boxes_xyxy: Floats, size_hw: tuple[int, int], window_hw: tuple[int, int]) -> Floats:
    """Convert boxes (n, 4) from pixels of the network to whole pixels of the image, clipped to the image."""
    gain = min(window_hw[0] / size_hw[0], window_hw[1] / size_hw[1])
    pad_y, pad_x = ((window - side * gain) / 2 for window, side in zip(window_hw, size_hw, strict=True))
    in_image = (boxes_xyxy - np.array([pad_x, pad_y] * 2, np.float32)) / np.float32(gain)
    rounded: Floats = np.rint(in_image.clip(0, np.array(size_hw[::-1] * 2, np.float32)))
    return rounded


def _counts(
    coefficients: Floats, prototypes: Floats, boxes_xyxy: NDArray[np.int64], size_hw: tuple[int, int]
) -> tuple[str, ...]:
    """Return the RLE counts of the masks: probabilities over 0.5 after a bilinear resize, inside the boxes.

    coefficients: (n, m). prototypes: (m, h, w); the part that the image has is cut first. boxes_xyxy: (n, 4), in pixels
    of the image.
    """
    cut = _cut(prototypes, size_hw)
    depth, height, width = cut.shape
    flat, counts = cut.reshape(depth, -1), []
    for start in range(0, len(coefficients), _BLOCK):
        with np.errstate(over="ignore"):
            logits = coefficients[start : start + _BLOCK] @ flat
            planes = (1 / (1 + np.exp(-logits))).reshape(-1, height, width)
        for plane, (x0, y0, x1, y1) in zip(planes, boxes_xyxy[start : start + _BLOCK].tolist(), strict=True):
            rows = outlines.linear_taps(height, size_hw[0], y0, max(y0, y1))
            columns = outlines.linear_taps(width, size_hw[1], x0, max(x0, x1))
            counts.append(rle.from_edges(outlines.mask_edges(plane, rows, columns, size_hw[0]), size_hw))
    return tuple(counts)


def _cut(prototypes: Floats, size_hw: tuple[int, int]) -> Floats:
    """Return the part of the prototypes (m, h, w) that the image has, cut at whole cells, rounded towards zero."""
    sides = prototypes.shape[1:]
    gain = min(sides[0] / size_hw[0], sides[1] / size_hw[1])
    top, left = ((side - pixels * gain) / 2 for side, pixels in zip(sides, size_hw, strict=True))
    part = prototypes[:, int(top) : int(sides[0] - top), int(left) : int(sides[1] - left)]
    return np.ascontiguousarray(part)
