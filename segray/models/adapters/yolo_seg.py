"""YOLO-seg of Ultralytics: boxes, class scores and mask coefficients per anchor, and the prototypes of the masks.

Knows the outputs of YOLOv8-seg, YOLOv9-seg, YOLO11-seg, YOLO12-seg, YOLO26-seg, YOLOE-seg and FastSAM, which agree, and
the rules by which Ultralytics 8.4.190 decodes them with retina_masks. Knows nothing of files or of OpenVINO. Shapes
come from the arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from segray import rle
from segray.errors import ModelError
from segray.imaging import geometry, outlines
from segray.imaging.geometry import Resize, Rounding
from segray.instances import Instances
from segray.models.adapters.adapter import (
    Defaults,
    ModelAdapter,
    ModelFormat,
    Nms,
    Options,
    drop_small_masks,
    outputs_of_shapes,
)
from segray.models.adapters.described import defaults_of, forms_of, rows_after_nms, thresholds_of_classes
from segray.models.description import Description

Floats = NDArray[np.float32]

DEFAULTS = Defaults(score_threshold=0.25, max_detections=300, nms_iou=0.7)
PAD_VALUE = 114

_OUTPUTS = ("output0", "output1")
_PROTOTYPE_STRIDE = 4  # Pixels of the network for each pixel of a prototype, on each axis.


def of(description: Description) -> YoloSeg:
    """Return the adapter of a model that describes itself.

    description.extra["window_hw"] is the image size of the export, for a model that takes images of any size.
    """
    window_hw = description.extra.get("window_hw")
    adapter = SelectedYoloSeg if description.kind == "selected" else YoloSeg
    return adapter(
        description.family,
        description.labels,
        forms_of(description, _OUTPUTS),
        defaults=defaults_of(description.thresholds, DEFAULTS),
        stride=description.stride or 32,
        window_hw=(int(window_hw[0]), int(window_hw[1])) if window_hw else None,
        resize=description.resize,
        pad_value=description.pad_value,
        rounding=description.rounding,
    )


@dataclass(frozen=True)
class YoloSeg(ModelAdapter):
    """The adapter of YOLO-seg.

    selected: whether the graph has selected the rows, by NMS or end to end. stride: the sides of an image input of any
    size are multiples of this, in pixels. window_hw: largest height and width for an image input of any size, in
    pixels. resize, pad_value, rounding: as in Description.
    """

    selected: ClassVar[bool] = False
    stride: int = field(default=32, kw_only=True)
    window_hw: tuple[int, int] | None = field(default=None, kw_only=True)
    resize: Resize = field(default="letterbox", kw_only=True)
    pad_value: int = field(default=PAD_VALUE, kw_only=True)
    rounding: Rounding = field(default="opencv", kw_only=True)
    supported_options = frozenset({"nms", "nms_iou"})
    nms_choices: ClassVar[tuple[Nms, ...]] = ("per_class", "cross_class")
    kernels = ("segray.masks._kernels_prototypes",)

    def prepare(self, form: ModelFormat, image_rgb: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the image, fitted into the network's input and padded; on both sides, unless the file says otherwise.

        An input of any size gets no more padding than its stride needs.
        """
        size_hw = (image_rgb.shape[0], image_rgb.shape[1])
        window_hw = form.image.size_hw or self._least_window_hw(size_hw)
        window = geometry.place(image_rgb, self._fit(size_hw, window_hw), window_hw, self.pad_value, self.rounding)
        return {form.image.name: window[None]}

    def decode(self, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int], options: Options) -> Instances:
        """Return the detections that Ultralytics keeps, in its order; rows with an empty mask go.

        output0: raw (1, 4 + classes + m, anchors): centre, width and height in pixels of the network, class scores, m
        coefficients. Selected (1, n, 6 + m): x0, y0, x1, y1 in pixels of the network, score, class, m coefficients.
        output1: (1, m, h, w), prototypes. A mask is coefficients @ prototypes > 0.

        Rows that the graph has selected keep their order, which is not always that of the scores.
        The largest number of rows applies before rows with an empty mask go.
        Without finite prototypes no row has a mask, and all count as unreadable.
        """
        rows, prototypes, unreadable = self._read_rows(outputs, options)
        if not self.selected:
            default_iou = self.defaults.nms_iou or 0.7
            rows = rows.take(rows_after_nms(rows.scores, rows.labels, rows.boxes_xyxy, options, default_iou))
        rows = rows.take(np.arange(min(len(rows.scores), options.max_detections)))
        if not len(rows.scores) or not np.isfinite(prototypes).all():
            return Instances.empty(size_hw, unreadable + len(rows.scores))
        network_hw = self._network_hw(prototypes)
        boxes = _to_image(rows.boxes_xyxy, size_hw, self._fit(size_hw, network_hw))
        kept, masks = _masks(rows.coefficients, prototypes, boxes, size_hw, network_hw, self.resize)
        class_ids = np.array(list(self.labels), np.int32)[rows.labels[kept]]
        return drop_small_masks(
            Instances(class_ids, rows.scores[kept], boxes[kept], masks, size_hw, unreadable), options
        )

    def _least_window_hw(self, size_hw: tuple[int, int]) -> tuple[int, int]:
        """Return the least multiples of the stride that hold an image that is fitted into the largest window."""
        window_hw = self.window_hw or (640, 640)
        height, width = self._fit(size_hw, window_hw).content_hw
        return height + (window_hw[0] - height) % self.stride, width + (window_hw[1] - width) % self.stride

    def _fit(self, size_hw: tuple[int, int], window_hw: tuple[int, int]) -> geometry.Fit:
        """Return the place of an image of this size in a window."""
        return geometry.Fit.of(size_hw, window_hw, self.resize)

    def _network_hw(self, prototypes: Floats) -> tuple[int, int]:
        """Return the height and width of the network's input in pixels, as the prototypes have them."""
        return prototypes.shape[1] * _PROTOTYPE_STRIDE, prototypes.shape[2] * _PROTOTYPE_STRIDE

    def _read_rows(self, outputs: Mapping[str, NDArray[Any]], options: Options) -> tuple[_Rows, Floats, int]:
        """Return the rows over their threshold, the prototypes, and the number of rows dropped as invalid."""
        axes = ("n", "columns") if self.selected else ("channels", "anchors")
        output0, prototypes = outputs_of_shapes(outputs, {"output0": axes, "output1": ("m", "h", "w")}, self.name)
        expected = len(prototypes) + (6 if self.selected else 4 + len(self.labels))
        if output0.shape[1 if self.selected else 0] != expected or 0 in prototypes.shape or not self.labels:
            raise self._shape_error(output0, prototypes)
        thresholds = thresholds_of_classes(self.labels, options)
        read = _selected_rows if self.selected else _raw_rows
        rows, unreadable = read(output0, thresholds)
        return rows, prototypes, unreadable

    def _shape_error(self, output0: Floats, prototypes: Floats) -> ModelError:
        m, classes = len(prototypes), len(self.labels)
        if self.selected:
            expected = f"output0 [1, n, {6 + m}] for {m} prototypes"
            hint = "Check that the file is an export of a -seg model."
        else:
            expected = f"output0 [1, {4 + classes + m}, anchors] for {classes} classes and {m} prototypes"
            actual = output0.shape[0] - 4 - m
            hint = f"Name {actual} classes in `model.labels`." if actual > 0 else "Export a -seg model."
        return ModelError(
            "The outputs have other shapes than the adapter expects.",
            where=self.name,
            found=f"output0 {[1, *output0.shape]}, output1 {[1, *prototypes.shape]}",
            hint=f"Expected: {expected}. {hint}",
        )


@dataclass(frozen=True)
class SelectedYoloSeg(YoloSeg):
    """The adapter of YOLO-seg whose graph has selected the rows. No suppression runs after the graph."""

    selected = True
    supported_options = frozenset()
    nms_choices = ("per_class",)


@dataclass(frozen=True)
class _Rows:
    """n rows of one image.

    scores: (n,). labels: (n,), indices of classes. boxes_xyxy: (n, 4), in pixels of the network. coefficients: (n, m).
    """

    scores: Floats
    labels: NDArray[np.intp]
    boxes_xyxy: Floats
    coefficients: Floats

    def take(self, rows: NDArray[Any]) -> _Rows:
        """Return these rows. rows: indices, or a bool for each row."""
        return _Rows(self.scores[rows], self.labels[rows], self.boxes_xyxy[rows], self.coefficients[rows])


# ---- reading --------------------------------------------------------------------------------------


def _raw_rows(output0: Floats, thresholds: Floats) -> tuple[_Rows, int]:
    """Return the anchors whose best class is over its threshold, and the number of anchors dropped as not finite.

    output0: (4 + classes + m, anchors).
    """
    from segray.masks import _kernels_prototypes

    *columns, unreadable = _kernels_prototypes.anchors_over(np.ascontiguousarray(output0), thresholds)
    scores, labels, boxes_xyxy, coefficients = columns
    return _Rows(scores, labels, boxes_xyxy, coefficients), unreadable


def _selected_rows(output0: Floats, thresholds: Floats) -> tuple[_Rows, int]:
    """Return the rows over their threshold, and the number of rows dropped as not finite or of no class.

    output0: (n, 6 + m).
    """
    rows = output0[~(output0[:, 4] <= thresholds.min())]
    labels = rows[:, 5]
    with np.errstate(invalid="ignore"):
        is_class = (labels >= 0) & (labels < len(thresholds)) & (labels == np.floor(labels))
    valid = rows[np.isfinite(rows).all(axis=1) & is_class]
    class_indices = valid[:, 5].astype(np.intp)
    selected = _Rows(valid[:, 4], class_indices, np.ascontiguousarray(valid[:, :4]), np.ascontiguousarray(valid[:, 6:]))
    return selected.take(selected.scores > thresholds[class_indices]), len(rows) - len(valid)


# ---- boxes and masks ------------------------------------------------------------------------------


def _to_image(boxes_xyxy: Floats, size_hw: tuple[int, int], fit: geometry.Fit) -> Floats:
    """Convert boxes (n, 4) from pixels of the network to pixels of the image, clipped to the image."""
    height, width = size_hw
    gain_x, gain_y = fit.content_hw[1] / width, fit.content_hw[0] / height
    start = np.array([fit.left, fit.top, fit.left, fit.top], np.float32)
    gains = np.array([gain_x, gain_y, gain_x, gain_y], np.float32)
    clipped: Floats = np.clip((boxes_xyxy - start) / gains, 0, np.array([width, height, width, height], np.float32))
    return clipped


def _masks(
    coefficients: Floats,
    prototypes: Floats,
    boxes_xyxy: Floats,
    size_hw: tuple[int, int],
    network_hw: tuple[int, int],
    resize: Resize = "letterbox",
) -> tuple[NDArray[np.intp], tuple[str, ...]]:
    """Return the rows whose mask is not empty, and the RLE counts of these masks.

    The prototypes are enlarged until the padding ends between two pixels, cut, and resized to the image.
    coefficients: (n, m). prototypes: (m, h, w). boxes_xyxy: (n, 4), in pixels of the image.
    """
    factor = _enlargement(geometry.Fit.of(size_hw, network_hw, resize), network_hw)
    enlarged_hw = prototypes.shape[1] * factor, prototypes.shape[2] * factor
    fit = geometry.Fit.of(size_hw, enlarged_hw, resize)
    edges, stops = outlines.edges_of_combinations(prototypes, coefficients, boxes_xyxy, fit, factor, size_hw)
    kept = np.flatnonzero(stops != np.concatenate([[0], stops[:-1]]))
    return kept, rle.from_edges_of_all(edges, stops[kept], size_hw)


def _enlargement(fit: geometry.Fit, network_hw: tuple[int, int]) -> int:
    """Return the factor, 1, 2 or 4, by which the prototypes are enlarged before the padding is cut."""
    padding = (network_hw[0] - fit.content_hw[0]) | (network_hw[1] - fit.content_hw[1])
    return _PROTOTYPE_STRIDE // math.gcd(_PROTOTYPE_STRIDE, padding | padding // 2)
