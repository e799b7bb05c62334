"""Mask R-CNN of TensorFlow's Object Detection API as exported: frozen graph or SavedModel, also read by OpenVINO.

Knows the five outputs. Knows nothing of files or of OpenVINO. The graph resizes images, so images enter at their own
size. Boxes are [ymin, xmin, ymax, xmax], normalised to the image that was fed. A mask is of the row's own class, with
the sigmoid applied, 15 x 15 or 33 x 33 pixels. Classes are COCO category ids as floats. Rows from num_detections on
are filler that looks like objects.

paste="tile" pastes masks into boxes as Open Model Zoo's accuracy checker does. paste="reframe" pastes as TensorFlow's
evaluation does: the inverse of the crop in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.errors import ImageError
from segray.imaging import geometry
from segray.models.adapters import box_masks
from segray.models.adapters.adapter import ImageInput, ModelFormat, outputs_of_shapes

_SHAPES: Mapping[str, tuple[int | str, ...]] = {
    "num_detections": (),
    "detection_boxes": ("n", 4),
    "detection_scores": ("n",),
    "detection_classes": ("n",),
    "detection_masks": ("n", "m", "m"),
}


def original(input_name: str) -> ModelFormat:
    """Return the form as exported. input_name: name of the image input."""
    return ModelFormat("original", ImageInput(input_name, None, "NHWC", "RGB", None, None), tuple(_SHAPES))


@dataclass(frozen=True)
class DetectionApi(box_masks.BoxMaskAdapter):
    """The adapter of the exported form."""

    def prepare(self, form: ModelFormat, image_rgb: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the image at its own size, or stretched to the model file's fixed size."""
        size_hw = form.image.size_hw
        return {form.image.name: (image_rgb if size_hw is None else geometry.resize(image_rgb, size_hw))[None]}

    def rows(self, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int]) -> box_masks.Rows:
        """Return the rows before num_detections; raise ImageError if num_detections is not a valid count.

        outputs: num_detections (), detection_boxes (n, 4), detection_scores (n,), detection_classes (n,),
        detection_masks (n, m, m), with or without a batch axis of 1.
        """
        count, *arrays = outputs_of_shapes(outputs, _SHAPES, self.name)
        total = len(arrays[0])
        if not 0 <= count <= total:
            what = "The network does not say how many objects it found."
            raise ImageError(what, stage="postprocess", where=self.name, found=f"num_detections {count} of {total}")
        boxes, scores, classes, masks = (array[: int(count)] for array in arrays)
        # The product is exact in float64, so that each way to paste gets the numbers of its reference.
        boxes_xyxy = boxes[:, [1, 0, 3, 2]].astype(np.float64) * np.array(size_hw[::-1] * 2)
        return box_masks.Rows(classes, scores, boxes_xyxy, masks)
