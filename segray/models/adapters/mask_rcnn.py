"""TensorFlow's Mask R-CNN as exported, and as the Model Optimizer converted it for Open Model Zoo.

Knows the outputs reshape_do_2d and masks, and the inputs image_tensor and image_info. Knows nothing of files or of
OpenVINO. Rows are [image_id, label, confidence, x0, y0, x1, y1], grouped by label. Boxes are normalised to the
network's input. The rows end at the first image_id of -1; the zeros after that row look like rows of image 0.
Masks have one channel for each class 1..90, with the sigmoid applied.

Images are fitted into the network's input and padded at the right and bottom. Open Model Zoo's accuracy checker does
the same; its demo stretches images, which distorts them. image_info is the network's size, padding included.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.imaging import geometry
from segray.models.adapters import box_masks, tf_object_detection
from segray.models.adapters.adapter import ImageInput, ModelFormat, outputs_of_shapes

_OUTPUTS = ("reshape_do_2d", "masks")
FORMS: Mapping[str, ModelFormat] = {
    "original": tf_object_detection.original("image_tensor"),
    "converted": ModelFormat(
        "converted", ImageInput("image_tensor", (800, 1365), "NHWC", "BGR", None, None, resizable=True), _OUTPUTS
    ),
}


@dataclass(frozen=True)
class MaskRcnn(tf_object_detection.DetectionApi):
    """The adapter of both forms; the names of the outputs tell the form."""

    def prepare(self, form: ModelFormat, image_rgb: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the fitted and padded image, and image_info: float32 (1, 3), the network's height and width, and 1.

        The original form has one input, the image.
        """
        if form.name == "original":
            return super().prepare(form, image_rgb)
        info = np.array([[*form.window_hw, 1]], np.float32)
        return {form.image.name: geometry.fit_and_pad(image_rgb, form.window_hw)[None], "image_info": info}

    def rows(self, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int]) -> box_masks.Rows:
        """Return the rows before the end mark.

        outputs: reshape_do_2d (n, 7), masks (n, k, m, m), k the last class of the label map. The original form has the
        outputs of `tf_object_detection`.
        """
        if not any(name.removesuffix(":0") in _OUTPUTS for name in outputs):
            return super().rows(outputs, size_hw)
        shapes = {"reshape_do_2d": ("n", 7), "masks": ("n", max(self.labels), "m", "m")}
        table, masks = outputs_of_shapes(outputs, shapes, self.name)
        end = np.flatnonzero(np.append(table[:, 0] == -1, True))[0]
        classes, scores, boxes = table[:end, 1], table[:end, 2], table[:end, 3:]
        predicted_masks = box_masks.masks_of_predicted_class(masks[:end], classes - 1)
        boxes_xyxy = _to_source(boxes, size_hw, self.forms["converted"].window_hw)
        return box_masks.Rows(classes, scores, boxes_xyxy, predicted_masks)


def _to_source(
    boxes_xyxy: NDArray[np.float32], size_hw: tuple[int, int], window_hw: tuple[int, int]
) -> NDArray[np.float64]:
    """Return boxes in source pixels, float64 (n, 4), from boxes normalised to the padded input.

    Each axis is scaled by its own rounded size, so that the fit is undone exactly.
    """
    height, width = geometry.fitted(size_hw, window_hw)
    scale_xy = [window_hw[1] / (width / size_hw[1]), window_hw[0] / (height / size_hw[0])]
    boxes: NDArray[np.float64] = boxes_xyxy.astype(np.float64) * np.array(scale_xy * 2)
    return boxes
