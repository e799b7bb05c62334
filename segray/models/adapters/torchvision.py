"""torchvision's Mask R-CNN, versions 1 and 2: boxes, labels, scores and masks, as its paste_masks_in_image pastes them.

Knows the four outputs, whose rows the network has selected and sorted. Knows nothing of files or of OpenVINO. Masks
come in two kinds: small masks of boxes where the engine cut the graph, and masks of the whole image otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray import rle
from segray.errors import ConfigError
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
from segray.models.adapters.box_masks import FAR_PX, MAX_SCORE, UNNAMED
from segray.models.adapters.described import FORM, are_over, best_rows, defaults_of, forms_of
from segray.models.coco_labels import COCO_NAMES
from segray.models.description import Description

# The threshold and the limit that torchvision builds into the graph.
DEFAULTS = Defaults(score_threshold=0.05, max_detections=100)

_OUTPUTS = ("boxes", "labels", "scores", "masks")
_COCO_COLUMNS = 91
# The network enlarges images to 800x1200 pixels: each image that is computed at once takes 0.7 GB.
_STREAM_THREADS = 4


def of(description: Description) -> TorchvisionMaskRcnn:
    """Return the adapter of a model that describes itself.

    description.extra: mask_side and columns, as the attributes of TorchvisionMaskRcnn.

    Raises:
        ConfigError: The labels are not as many as the network's classes.
    """
    mask_side, columns = description.extra.get("mask_side"), description.extra.get("columns")
    _check_labels(description.labels, columns)
    is_cut = mask_side is not None and description.kind == "pasted"
    forms = {
        name: replace(form, pasted_masks="masks" if is_cut else "", stream_threads=_STREAM_THREADS)
        for name, form in forms_of(description, _OUTPUTS).items()
    }
    defaults = defaults_of(description.thresholds, DEFAULTS)
    return TorchvisionMaskRcnn(
        description.family,
        description.labels,
        forms,
        mask_side,
        columns,
        defaults=defaults,
        rounding=description.rounding,
    )


def _check_labels(labels: Mapping[int, str], columns: int | None) -> None:
    """Raise ConfigError unless the labels name the classes without the background, or COCO's 80 of 90."""
    if columns is None or len(labels) == columns - 1 or (columns, len(labels)) == (_COCO_COLUMNS, len(COCO_NAMES)):
        return
    raise ConfigError(
        "The labels are not as many as the network's classes.",
        where="model.labels",
        found=f"{len(labels)} labels, {columns - 1} classes and a background",
        hint="Name each class of the network but the background in `model.labels`, in the network's order.",
    )


@dataclass(frozen=True)
class TorchvisionMaskRcnn(ModelAdapter):
    """The adapter of torchvision's Mask R-CNN.

    mask_side: side of the small masks, in pixels; None if the network pastes them into the image.
    columns: number of the network's classes, background included; None if unknown.
    rounding: as in Description, for a network that takes one size only.
    """

    mask_side: int | None
    columns: int | None
    rounding: Rounding = field(default="exact", kw_only=True)

    supported_options = frozenset()
    kernels = ("segray.masks._kernels_grids",)

    def prepare(self, form: ModelFormat, image_rgb: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the image at its own size, or at the size of a network that takes one size only."""
        size_hw = form.image.size_hw
        image = image_rgb if size_hw is None else geometry.stretch_to(image_rgb, size_hw, self.rounding)
        return {form.image.name: image[None]}

    def decode(self, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int], options: Options) -> Instances:
        """Return the rows over the threshold, in the network's order. Empty masks stay.

        outputs: boxes (n, 4) in pixels of the network's input, labels (n,), scores (n,), and masks: (n, 1, m, m)
        probabilities over the box, or (n, 1, h, w) over the whole input.
        """
        side = self.mask_side
        mask_shape: tuple[int | str, ...] = ("n", 1, "h", "w") if side is None else ("n", 1, side, side)
        shapes = {"boxes": ("n", 4), "labels": ("n",), "scores": ("n",), "masks": mask_shape}
        boxes, classes, scores, masks = outputs_of_shapes(outputs, shapes, self.name)
        is_valid = np.isfinite(boxes).all(axis=1) & (scores >= 0) & (scores <= MAX_SCORE)
        is_valid &= (classes >= 1) & (classes < 2**24)
        unreadable = int((~is_valid & (scores != 0)).sum())
        class_ids = self._class_ids(classes, is_valid)
        candidates = np.flatnonzero(is_valid & are_over(scores, class_ids, options))
        has_mask = np.isfinite(masks[candidates]).all(axis=(1, 2, 3))
        unreadable += int((~has_mask).sum())
        rows = best_rows(candidates[has_mask], scores, options.max_detections)
        if not len(rows):
            return Instances.empty(size_hw, unreadable)
        boxes_xyxy = self._in_image(boxes[rows], size_hw)
        edges = (
            outlines.edges_of_planes(masks[rows, 0], size_hw)
            if side is None
            else outlines.edges_of_tiles(masks[rows, 0], boxes_xyxy, size_hw)
        )
        selected = Instances(
            class_ids[rows],
            scores[rows].clip(0, 1),
            boxes_xyxy.clip(0, np.array(size_hw[::-1] * 2, np.float32)),
            rle.from_edges_of_all(*edges, size_hw),
            size_hw,
            unreadable,
        )
        return drop_small_masks(selected, options)

    def _class_ids(self, classes: NDArray[np.float32], is_valid: NDArray[np.bool_]) -> NDArray[np.int32]:
        """Return the category ids of the network's classes, which it counts from 1.

        The 90 classes of COCO are category ids already, with numbers that have no name. Those stay as they are.
        """
        ids = np.array(list(self.labels), np.int32)
        numbers = np.where(is_valid, classes, 0).astype(np.int32)
        if self.columns == _COCO_COLUMNS and len(ids) == len(COCO_NAMES):
            own = dict(zip(COCO_NAMES, ids.tolist(), strict=True))
            return np.array([own.get(number, number) for number in numbers.tolist()], np.int32)
        is_named = is_valid & (numbers >= 1) & (numbers <= len(ids))
        class_ids = np.full(len(classes), UNNAMED, np.int32)
        class_ids[is_named] = ids[numbers[is_named] - 1]
        return class_ids

    def _in_image(self, boxes_xyxy: NDArray[np.float32], size_hw: tuple[int, int]) -> NDArray[np.float32]:
        """Return boxes in pixels of the image, in float32 as torchvision computes them."""
        window_hw = self.forms[FORM].image.size_hw
        if window_hw is not None and window_hw != size_hw:
            scale_xy = [size_hw[1] / window_hw[1], size_hw[0] / window_hw[0]]
            boxes_xyxy = boxes_xyxy * np.array(scale_xy * 2, np.float32)
        return boxes_xyxy.clip(-FAR_PX, FAR_PX)
