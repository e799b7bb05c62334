"""Mask R-CNN and RTMDet-Ins of mmdetection, as mmdeploy exports them: dets, labels and masks.

Knows the outputs by their published layout, and the rules of mmdetection 3.3 for resizing and pasting. Knows nothing of
files or of OpenVINO. The network has selected and sorted the rows. Masks come in three kinds: probabilities over the
box, probabilities over the network's input (RTMDet-Ins), and masks that the network has pasted into its input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

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
    Options,
    drop_small_masks,
    outputs_by_name,
    outputs_of_shapes,
)
from segray.models.adapters.box_masks import MAX_SCORE, category_ids
from segray.models.adapters.described import FORM, are_over, best_rows, defaults_of, forms_of
from segray.models.description import CONFIGURATION, Description
from segray.models.metadata import CARD

# The threshold and the limit that mmdetection's configurations build into the graph.
DEFAULTS = Defaults(score_threshold=0.05, max_detections=100)

_OUTPUTS = ("dets", "labels", "masks")
# mmdetection resizes images for a Mask R-CNN of any size until one of these sides is reached, in pixels.
_SHORT_SIDE, _LONG_SIDE, _STRIDE = 800, 1333, 32


def of(description: Description) -> Mmdeploy:
    """Return the adapter of a described file."""
    return Mmdeploy(
        description.family,
        description.labels,
        forms_of(description, _OUTPUTS),
        description.kind,  # type: ignore[arg-type]
        description.resize,
        _levels(description),
        description.rounding,
        defaults=defaults_of(description.thresholds, DEFAULTS),
    )


def _levels(description: Description) -> tuple[int, int, int]:
    """Return the levels of the padding. A Mask R-CNN has zeros after the image is normalised, which are the mean."""
    is_stated = description.sources.get("pad_value") in (CARD, CONFIGURATION)
    if description.kind == "planes" or is_stated or description.mean is None:
        return (description.pad_value,) * 3
    # The order of `mean` is that of the network's channels, and images are RGB until the engine swaps them.
    first, second, third = (round(min(max(level, 0), 255)) for level in description.mean)
    return (first, second, third) if description.colour == "RGB" else (third, second, first)


@dataclass(frozen=True)
class Mmdeploy(ModelAdapter):
    """The adapter of mmdeploy's exports.

    kind: "boxes" for probabilities over the box, "planes" for probabilities over the network's input, "pasted" for
    masks that are pasted into the input. resize, rounding: as in Description. pad_levels: levels of the padding, RGB.
    """

    kind: Literal["boxes", "planes", "pasted"]
    resize: Resize
    pad_levels: tuple[int, int, int]
    rounding: Rounding

    supported_options = frozenset()
    kernels = ("segray.masks._kernels", "segray.masks._kernels_grids")

    def prepare(self, form: ModelFormat, image_rgb: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the image at the network's size: stretched, or fitted and padded at the right and bottom."""
        content_hw, window_hw = self._sizes((image_rgb.shape[0], image_rgb.shape[1]))
        fit = geometry.Fit(0, 0, content_hw)
        return {form.image.name: geometry.place(image_rgb, fit, window_hw, self.pad_levels, self.rounding)[None]}

    def _sizes(self, size_hw: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return height and width of the resized image and of the network's input, in pixels."""
        window_hw = self.forms[FORM].image.size_hw
        if window_hw is not None and self.resize == "stretch":
            return window_hw, window_hw
        if window_hw is None:
            scale = min(_SHORT_SIDE / min(size_hw), _LONG_SIDE / max(size_hw))
        else:
            scale = min(window_hw[0] / size_hw[0], window_hw[1] / size_hw[1])
        height, width = (max(int(side * scale + 0.5), 1) for side in size_hw)
        return (height, width), window_hw or (height + -height % _STRIDE, width + -width % _STRIDE)

    def decode(self, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int], options: Options) -> Instances:
        """Return the rows over the threshold, in the network's order. Empty masks stay.

        outputs: dets (n, 5), x0, y0, x1, y1 in pixels of the network's input and a score. labels (n,), counted from 0.
        masks (n, m, m) or (n, h, w), as `kind` says.
        """
        dets, classes = outputs_of_shapes(outputs, {"dets": ("n", 5), "labels": ("n",)}, self.name)
        masks = self._masks(outputs, len(dets))
        if len(classes) != len(dets):
            raise self._shape_error(outputs)
        boxes, scores = dets[:, :4], np.ascontiguousarray(dets[:, 4])
        is_valid = np.isfinite(dets).all(axis=1) & (scores > 0) & (scores <= MAX_SCORE)
        is_valid &= np.isfinite(classes) & (classes >= 0)
        unreadable = int((~is_valid & (scores != 0)).sum())
        ids = category_ids(np.array(list(self.labels), np.int32), np.where(is_valid, classes, 0))
        class_ids = ids.astype(np.int32)
        candidates = np.flatnonzero(is_valid & are_over(scores, class_ids, options))
        rows = best_rows(candidates, scores, options.max_detections)
        if self.kind != "pasted":
            has_mask = np.isfinite(masks[rows]).all(axis=(1, 2))
            unreadable, rows = unreadable + int((~has_mask).sum()), rows[has_mask]
        if not len(rows):
            return Instances.empty(size_hw, unreadable)
        content_hw, _ = self._sizes(size_hw)
        scale_xy = [content_hw[1] / size_hw[1], content_hw[0] / size_hw[0]]
        boxes_xyxy = (boxes[rows] / np.array(scale_xy * 2, np.float32)).astype(np.float32)
        selected = Instances(
            class_ids[rows],
            scores[rows].clip(0, 1),
            boxes_xyxy.clip(0, np.array(size_hw[::-1] * 2, np.float32)),
            self._counts(masks[rows], boxes_xyxy, content_hw, size_hw),
            size_hw,
            unreadable,
        )
        return drop_small_masks(selected, options)

    def _counts(
        self,
        masks: NDArray[Any],
        boxes_xyxy: NDArray[np.float32],
        content_hw: tuple[int, int],
        size_hw: tuple[int, int],
    ) -> tuple[str, ...]:
        """Return the RLE counts of masks (n, r, c). boxes_xyxy: (n, 4), in pixels of the image."""
        if self.kind == "boxes":
            edges = outlines.edges_of_samples(masks.astype(np.float32, copy=False), boxes_xyxy, size_hw)
            return rle.from_edges_of_all(*edges, size_hw)
        inside = masks[:, : content_hw[0], : content_hw[1]]
        if self.kind == "planes":
            planes = inside.astype(np.float32, copy=False)
            return rle.from_edges_of_all(*outlines.edges_of_planes(planes, size_hw), size_hw)
        return tuple(rle.from_edges(outlines.edges_of_nearest(mask >= 0.5, size_hw), size_hw) for mask in inside)

    def _masks(self, outputs: Mapping[str, NDArray[Any]], count: int) -> NDArray[Any]:
        """Return the masks without a batch axis, in their own type, which may be bool; raise ModelError for others."""
        (masks,) = outputs_by_name(outputs, ("masks",), self.name)
        unbatched = masks[0] if masks.ndim == 4 and len(masks) == 1 else masks
        if unbatched.ndim != 3 or len(unbatched) != count:
            raise self._shape_error(outputs)
        return unbatched

    def _shape_error(self, outputs: Mapping[str, NDArray[Any]]) -> ModelError:
        return ModelError(
            "The outputs have other shapes than the adapter expects.",
            where=self.name,
            found=", ".join(f"{name} {list(array.shape)}" for name, array in outputs.items()),
            hint="Expected: dets [1, n, 5], labels [1, n], masks [1, n, h, w]. Export the model again with mmdeploy.",
        )
