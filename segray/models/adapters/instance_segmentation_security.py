"""Intel's instance-segmentation-security models, in the two output layouts that share the name.

Knows the outputs and how images are fitted into the input. Knows nothing of files or of OpenVINO. Both layouts take
BGR 0..255; mean and scale are inside the graph. Boxes are [x0, y0, x1, y1] in pixels of the network's input, masks
have the sigmoid applied. Sizes, resizing and class numbers follow Open Model Zoo's model cards and accuracy-check
files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.imaging import geometry
from segray.models.adapters import box_masks
from segray.models.adapters.adapter import ImageInput, ModelFormat, outputs_of_shapes

_RAW_OUTPUTS = ("classes", "scores", "boxes", "raw_masks")
_OWN_OUTPUTS = ("labels", "boxes", "masks")


def raw_masks(window_hw: tuple[int, int]) -> Mapping[str, ModelFormat]:
    """Return the forms of RawMasks. window_hw: height and width of the network's input, in pixels."""
    image = ImageInput("im_data", window_hw, "NCHW", "BGR", None, None, resizable=True)
    return {"converted": ModelFormat("converted", image, _RAW_OUTPUTS)}


def own_masks(window_hw: tuple[int, int]) -> Mapping[str, ModelFormat]:
    """Return the forms of OwnMasks. window_hw: height and width of the network's input, in pixels."""
    image = ImageInput("image", window_hw, "NCHW", "BGR", None, None, resizable=True)
    return {"converted": ModelFormat("converted", image, _OWN_OUTPUTS)}


@dataclass(frozen=True)
class RawMasks(box_masks.BoxMaskAdapter):
    """The adapter of 0033 and 0083: each box has a mask of every class; class 0 is background and filler."""

    def prepare(self, form: ModelFormat, image_rgb: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the fitted and padded image, and im_info.

        im_info: float32 (1, 3), height and width before padding, in pixels, and the scale.
        """
        size_hw = image_rgb.shape[0], image_rgb.shape[1]
        fitted_hw = geometry.fitted(size_hw, form.window_hw)
        scale = min(form.window_hw[0] / size_hw[0], form.window_hw[1] / size_hw[1])
        info = np.array([[*fitted_hw, scale]], np.float32)
        return {form.image.name: geometry.fit_and_pad(image_rgb, form.window_hw)[None], "im_info": info}

    def rows(self, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int]) -> box_masks.Rows:
        """Return the rows of all classes but background.

        outputs: classes (n,), scores (n,), boxes (n, 4), raw_masks (n, k + 1, m, m) for k names in the label map.
        """
        shapes: dict[str, tuple[int | str, ...]] = {
            "classes": ("n",),
            "scores": ("n",),
            "boxes": ("n", 4),
            "raw_masks": ("n", len(self.labels) + 1, "m", "m"),
        }
        *arrays, masks = outputs_of_shapes(outputs, shapes, self.name)
        is_object = arrays[0] != 0
        # `masks` is large: pick the channels first.
        object_masks = box_masks.masks_of_predicted_class(masks, arrays[0])[is_object]
        classes, scores, boxes = (array[is_object] for array in arrays)
        boxes_xyxy = _to_source(boxes, size_hw, geometry.fitted(size_hw, self.forms["converted"].window_hw))
        category_ids = box_masks.category_ids(np.array(list(self.labels), np.int32), classes - 1)
        return box_masks.Rows(category_ids, scores, boxes_xyxy, object_masks)


@dataclass(frozen=True)
class OwnMasks(box_masks.BoxMaskAdapter):
    """The adapter of 0002, 0091, 0228, 1039 and 1040: each box has one mask and its score.

    Classes are counted from 0, without background. Filler rows have boxes of 0.
    padded: images are fitted and padded, as in the accuracy checks of 0002 and 0091; images are stretched otherwise.
    """

    padded: bool = True

    def prepare(self, form: ModelFormat, image_rgb: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the image at the network's size."""
        resize = geometry.fit_and_pad if self.padded else geometry.resize
        return {form.image.name: resize(image_rgb, form.window_hw)[None]}

    def rows(self, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int]) -> box_masks.Rows:
        """Return the rows that are not filler.

        outputs: labels (n,), boxes (n, 5) with the score last, masks (n, m, m).
        """
        shapes = {"labels": ("n",), "boxes": ("n", 5), "masks": ("n", "m", "m")}
        arrays = outputs_of_shapes(outputs, shapes, self.name)
        is_object = arrays[1][:, :4].any(axis=1)
        labels, boxes, masks = (array[is_object] for array in arrays)
        window_hw = self.forms["converted"].window_hw
        resized_hw = geometry.fitted(size_hw, window_hw) if self.padded else window_hw
        boxes_xyxy = _to_source(boxes[:, :4], size_hw, resized_hw)
        category_ids = box_masks.category_ids(np.array(list(self.labels), np.int32), labels)
        return box_masks.Rows(category_ids, boxes[:, 4], boxes_xyxy, masks)


def _to_source(
    boxes_xyxy: NDArray[np.float32], size_hw: tuple[int, int], resized_hw: tuple[int, int]
) -> NDArray[np.float32]:
    """Return boxes in source pixels, float32 (n, 4), from boxes in pixels of the resized image."""
    scale_xy = [resized_hw[1] / size_hw[1], resized_hw[0] / size_hw[0]]
    boxes: NDArray[np.float32] = np.divide(boxes_xyxy, np.array(scale_xy * 2, np.float32))
    return boxes
