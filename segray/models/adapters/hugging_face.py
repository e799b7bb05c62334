"""Mask2Former, MaskFormer and EoMT: logits of classes and logits of masks for each query.

Knows the rules by which the image processors of Hugging Face transformers 5.24 prepare images and make instances. The
outputs of the three agree; the rules do not. Knows nothing of files: a Description has the facts of the file.

The models have no boxes: the box of an instance is the extent of its mask. A row stays if its score reaches the
threshold.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from segray import rle
from segray.errors import ModelError
from segray.imaging import geometry, outlines
from segray.imaging.geometry import Rounding
from segray.instances import Instances
from segray.models.adapters.adapter import (
    ModelAdapter,
    ModelFormat,
    Options,
    drop_small_masks,
    outputs_of_shapes,
    select_rows,
)
from segray.models.adapters.described import FORM, defaults_of_queries, forms_of
from segray.models.description import Description

Floats = NDArray[np.float32]

_OUTPUTS = ("classes", "masks")
# A score is the class's probability times a mean of at most 1. The mean may round up.
_ROUNDING = np.float32(1 + 1e-5)


@dataclass(frozen=True)
class HuggingFace(ModelAdapter):
    """An adapter of one image processor. pad_value, rounding: as in Description."""

    pad_value: int = field(default=0, kw_only=True)
    rounding: Rounding = field(default="antialiased", kw_only=True)
    supported_options = frozenset()
    kernels = ("segray.masks._kernels", "segray.masks._kernels_grids")

    @classmethod
    def of(cls, description: Description) -> Self:
        """Return the adapter of a model that describes itself. description.extra: queries, if the file states them."""
        return cls(
            description.family,
            description.labels,
            forms_of(description, _OUTPUTS),
            defaults=defaults_of_queries(description, cls._score_threshold()),
            pad_value=description.pad_value,
            rounding=description.rounding,
        )

    @staticmethod
    def _score_threshold() -> float:
        """Return the threshold of the family's processor."""
        return 0.5

    def decode(self, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int], options: Options) -> Instances:
        """Return the instances that the family's processor makes.

        classes: (1, q, classes + 1), logits, the last for no object. masks: (1, q, h, w), logits.
        A score is the class's probability times the mean of the mask's probabilities within the mask.
        """
        shapes = {"classes": ("q", "columns"), "masks": ("q", "h", "w")}
        classes, masks = outputs_of_shapes(outputs, shapes, self.name)
        if classes.shape[1] != len(self.labels) + 1 or 0 in masks.shape:
            raise self._shape_error(classes, masks)
        is_valid = np.isfinite(classes).all(axis=1)
        probabilities = np.zeros((len(classes), len(self.labels)), np.float32)
        probabilities[is_valid] = _softmax(classes[is_valid])[:, :-1]
        queries, labels = self._candidates(probabilities)
        class_ids = np.array(list(self.labels), np.int32)[labels]
        upper_bounds = probabilities[queries, labels] * _ROUNDING
        everything = replace(options, max_detections=len(queries))
        reachable = select_rows(np.arange(len(queries)), class_ids, upper_bounds, everything)
        has_mask = np.isfinite(masks[queries[reachable]]).all(axis=(1, 2))
        unreadable = int((~is_valid).sum()) + len(np.unique(queries[reachable[~has_mask]]))
        candidates = reachable[has_mask]
        means = np.zeros(len(queries), np.float32)
        is_drawn = np.zeros(len(queries), np.bool_)
        drawn: dict[int, _Part] = {}
        for query in np.unique(queries[candidates]).tolist():
            drawn[query], mean = self._draw(masks[query], size_hw)
            means[queries == query], is_drawn[queries == query] = mean, self._is_visible(drawn[query], size_hw)
        scores = probabilities[queries, labels] * means
        rows = select_rows(candidates[is_drawn[candidates]], class_ids, scores, everything)
        rows = self._best(rows, scores, options.max_detections)
        counts = self._counts([drawn[query] for query in queries[rows].tolist()], size_hw)
        return drop_small_masks(
            Instances(class_ids[rows], scores[rows].clip(0, 1), _extents(counts, size_hw), counts, size_hw, unreadable),
            options,
        )

    @abstractmethod
    def _candidates(self, probabilities: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return query and class of each row that the processor looks at, in its order.

        probabilities: (q, classes).
        """

    @abstractmethod
    def _draw(self, mask: Floats, size_hw: tuple[int, int]) -> tuple[_Part, float]:
        """Return the mask on the grid on which the processor looks at it, and the mean probability within.

        mask: (h, w), logits. size_hw: height and width of the image, in pixels.
        """

    @abstractmethod
    def _is_visible(self, part: _Part, size_hw: tuple[int, int]) -> bool:
        """Return whether the mask has pixels in the image."""

    @abstractmethod
    def _best(self, rows: NDArray[np.intp], scores: Floats, most: int) -> NDArray[np.intp]:
        """Return at most `most` of the rows, the best, in the order of the result."""

    @abstractmethod
    def _counts(self, parts: Sequence[_Part], size_hw: tuple[int, int]) -> tuple[str, ...]:
        """Return the RLE counts of the masks of these rows."""

    def _shape_error(self, classes: Floats, masks: Floats) -> ModelError:
        actual = classes.shape[1] - 1
        return ModelError(
            "The outputs have other shapes than the adapter expects.",
            where=self.name,
            found=f"class_queries_logits {[1, *classes.shape]}, masks_queries_logits {[1, *masks.shape]}",
            hint=f"Expected: class_queries_logits [1, q, {len(self.labels) + 1}]. Name {actual} classes in "
            "`model.labels`.",
        )


@dataclass(frozen=True, eq=False)
class _Part:
    """A part of a mask, (h, w) bool; the mask is 0 outside. top, left: first row and column of the part."""

    top: int
    left: int
    mask: NDArray[np.bool_]

    def of(self, canvas: NDArray[np.int16]) -> NDArray[np.int16]:
        """Return the view of a canvas at the place of the part."""
        return canvas[self.top : self.top + self.mask.shape[0], self.left : self.left + self.mask.shape[1]]


# ---- Mask2Former and MaskFormer -------------------------------------------------------------------


@dataclass(frozen=True)
class MaskFormer(HuggingFace):
    """The adapter of MaskFormer: the short side becomes 800 pixels, and each side a multiple of 32."""

    shortest: int = field(default=800, kw_only=True)
    longest: int = field(default=1333, kw_only=True)
    divisor: int = field(default=32, kw_only=True)

    def prepare(self, form: ModelFormat, image_rgb: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the image, stretched to the network's size, or to the processor's size for a network of any size."""
        window_hw = form.image.size_hw
        if window_hw is None:
            fitted = fitted_hw((image_rgb.shape[0], image_rgb.shape[1]), self.shortest, self.longest)
            height, width = (max(-(-side // self.divisor), 1) * self.divisor for side in fitted)
            window_hw = height, width
        return {form.image.name: geometry.stretch_to(image_rgb, window_hw, self.rounding)[None]}

    def _candidates(self, probabilities: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the best pairs of query and class, as many as queries."""
        order = np.argsort(-probabilities.ravel(), kind="stable")[: len(probabilities)]
        queries, labels = np.divmod(order, probabilities.shape[1])
        return queries, labels

    def _grid(self, mask: Floats) -> Floats:
        """Return the mask's logits on the grid on which the processor looks at them."""
        return mask

    def _draw(self, mask: Floats, size_hw: tuple[int, int]) -> tuple[_Part, float]:
        grid = self._grid(mask)
        return _Part(0, 0, grid > 0), mean_probability(grid)

    def _is_visible(self, part: _Part, size_hw: tuple[int, int]) -> bool:
        rows, columns = (outlines.nearest_pixels(*sides) for sides in zip(part.mask.shape, size_hw, strict=True))
        return bool(part.mask[np.unique(rows)][:, np.unique(columns)].any())

    def _best(self, rows: NDArray[np.intp], scores: Floats, most: int) -> NDArray[np.intp]:
        """Return the best rows by score. The processor itself has no order."""
        best: NDArray[np.intp] = rows[np.argsort(-scores[rows], kind="stable")][:most]
        return best

    def _counts(self, parts: Sequence[_Part], size_hw: tuple[int, int]) -> tuple[str, ...]:
        return tuple(rle.from_edges(outlines.edges_of_nearest(part.mask, size_hw), size_hw) for part in parts)


@dataclass(frozen=True)
class Mask2Former(MaskFormer):
    """The adapter of Mask2Former: masks are looked at on a grid of 384x384, whatever the network's size."""

    def _grid(self, mask: Floats) -> Floats:
        return outlines.resize_plane(mask, (384, 384))


# ---- EoMT -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Eomt(HuggingFace):
    """The adapter of EoMT: images are fitted into a square, and no pixel has two instances."""

    @staticmethod
    def _score_threshold() -> float:
        return 0.8

    def prepare(self, form: ModelFormat, image_rgb: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the image, fitted into the network's input and padded right and bottom."""
        window_hw = form.window_hw
        fit = geometry.Fit(0, 0, content_hw((image_rgb.shape[0], image_rgb.shape[1]), window_hw))
        window = geometry.place(image_rgb, fit, window_hw, self.pad_value, self.rounding)
        return {form.image.name: window[None]}

    def _candidates(self, probabilities: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Return the best class of each query."""
        return np.arange(len(probabilities)), probabilities.argmax(axis=1)

    def _draw(self, mask: Floats, size_hw: tuple[int, int]) -> tuple[_Part, float]:
        window_hw = self.forms[FORM].image.size_hw or (4 * mask.shape[0], 4 * mask.shape[1])
        height, width = content_hw(size_hw, window_hw)
        content = outlines.resize_plane(mask, window_hw)[:height, :width]
        top, left, logits = outlines.positive_part(content, size_hw)
        return _Part(top, left, logits > 0), mean_probability(logits)

    def _is_visible(self, part: _Part, size_hw: tuple[int, int]) -> bool:
        return bool(part.mask.any())

    def _best(self, rows: NDArray[np.intp], scores: Floats, most: int) -> NDArray[np.intp]:
        """Return the best rows by score, in the order of the queries."""
        best: NDArray[np.intp] = np.sort(rows[np.argsort(-scores[rows], kind="stable")][:most])
        return best

    def _counts(self, parts: Sequence[_Part], size_hw: tuple[int, int]) -> tuple[str, ...]:
        """Return the counts of masks that are painted over by the masks after them. A mask may become empty."""
        owner = np.full(size_hw, -1, np.int16)
        for row, part in enumerate(parts):
            part.of(owner)[part.mask] = row
        return tuple(
            rle.encode_crop(part.of(owner) == row, part.left, part.top, size_hw) for row, part in enumerate(parts)
        )


# ---- arithmetic -----------------------------------------------------------------------------------


def fitted_hw(size_hw: tuple[int, int], shortest: int, longest: int) -> tuple[int, int]:
    """Return the height and width to which transformers' get_size_with_aspect_ratio resizes an image.

    The short side becomes `shortest` pixels, or less if the long side would be over `longest`. The short side is
    rounded, half to even, and the long side is rounded down.
    """
    low, high = min(size_hw), max(size_hw)
    exact = float(shortest)
    if high / low * shortest > longest:
        exact = longest * low / high
    side = round(exact)
    if low == side:
        return size_hw
    other = int(exact * high / low)
    return (other, side) if size_hw[1] < size_hw[0] else (side, other)


def content_hw(size_hw: tuple[int, int], window_hw: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of an image that EoMT's processor has fitted into the window, at least 1 pixel."""
    fitted = fitted_hw(size_hw, min(window_hw), min(window_hw))
    return max(fitted[0], 1), max(fitted[1], 1)


def mean_probability(logits: Floats) -> float:
    """Return the mean of the sigmoid of the logits over 0; 0 if there is none."""
    inside = logits[logits > 0].astype(np.float64)
    return float((1 / (1 + np.exp(-inside))).sum() / (len(inside) + 1e-6))


def _softmax(logits: Floats) -> Floats:
    """Return the softmax of each row, computed in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True, initial=-math.inf))
    probabilities: Floats = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities


def _extents(counts: tuple[str, ...], size_hw: tuple[int, int]) -> Floats:
    """Return the smallest box of each mask, (n, 4); 0 for an empty mask."""
    if not counts:
        return np.zeros((0, 4), np.float32)
    boxes = rle.bbox(counts, size_hw).astype(np.float32)
    boxes[:, 2:] += boxes[:, :2]
    return boxes
