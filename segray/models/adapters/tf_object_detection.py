"""TensorFlow Object Detection API's Mask R-CNN as exported: frozen graph or SavedModel, also through OpenVINO.

Knows its five outputs; knows nothing of files or of OpenVINO. The graph resizes by itself, so images go in at their
own size; boxes are normalised to the image that was fed, [ymin, xmin, ymax, xmax]. Masks are those of the row's own
class, sigmoid applied, 15 x 15 or 33 x 33. Classes are COCO category ids as floats. Rows from num_detections on
are filler that looks like objects.

paste="tile" is how Open Model Zoo's accuracy checker puts masks into boxes, "reframe" how TensorFlow's own evaluation
does: the inverse of how training cut them out.
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
from segray.models.adapters.adapter import ImageInput, ModelFormat, shaped

_SHAPES: Mapping[str, tuple[int | str, ...]] = {
    "num_detections": (),
    "detection_boxes": ("n", 4),
    "detection_scores": ("n",),
    "detection_classes": ("n",),
    "detection_masks": ("n", "m", "m"),
}


def original(input_name: str) -> ModelFormat:
    """The form as exported."""
    return ModelFormat("original", ImageInput(input_name, None, "NHWC", "RGB", None, None), tuple(_SHAPES))


@dataclass(frozen=True)
class DetectionApi(box_masks.BoxMaskAdapter):
    """The contract."""

    def prepare(self, form: ModelFormat, image_rgb: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The image at its own size, or stretched where the model file was fixed to one."""
        size_hw = form.image.size_hw
        return {form.image.name: (image_rgb if size_hw is None else geometry.resize(image_rgb, size_hw))[None]}

    def rows(self, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int]) -> box_masks.Rows:
        """The rows before num_detections.

        outputs: num_detections (), detection_boxes (n, 4), detection_scores (n,), detection_classes (n,),
        detection_masks (n, m, m), with or without a batch axis of 1. ImageError if num_detections counts nothing.
        """
        count, *arrays = shaped(outputs, _SHAPES, self.name)
        total = len(arrays[0])
        if not 0 <= count <= total:
            what = "The network does not say how many objects it found."
            raise ImageError(what, stage="postprocess", where=self.name, found=f"num_detections {count} of {total}")
        boxes, scores, classes, masks = (array[: int(count)] for array in arrays)
        # Exact in float64, so that either way to paste finds the numbers it would have computed itself.
        boxes_xyxy = boxes[:, [1, 0, 3, 2]].astype(np.float64) * np.array(size_hw[::-1] * 2)
        return box_masks.Rows(classes, scores, boxes_xyxy, masks)
