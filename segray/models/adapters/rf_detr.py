"""RF-DETR-Seg: boxes, logits of classes and logits of masks for each query.

Knows the outputs of rfdetr's own exports and of transformers' RfDetrForInstanceSegmentation, which agree, and the rules
by which rfdetr 1.11.2 decodes them. Knows nothing of files: a Description has the facts of the file.

The network has a column for each class. A network of COCO has 91 columns, one for each id from 0 on. Any other network
has a last column for the background. The library reports rows of all columns, so each column has an id and a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from segray import rle
from segray.errors import ConfigError, ModelError
from segray.imaging import geometry, outlines
from segray.imaging.geometry import Rounding
from segray.instances import Instances
from segray.models.adapters.adapter import (
    ModelAdapter,
    ModelFormat,
    Options,
    drop_small_masks,
    outputs_of_shapes,
)
from segray.models.adapters.described import are_over, defaults_of_queries, forms_of
from segray.models.description import Description

BACKGROUND = "__background__"
_OUTPUTS = ("dets", "labels", "masks")
_COCO_COLUMNS = 91


def of(description: Description) -> RfDetr:
    """Return the adapter of a model that describes itself.

    description.extra: columns and queries of the network, if the file states them.
    """
    columns = description.extra.get("columns")
    return RfDetr(
        description.family,
        labels_of_columns(description.labels, columns),
        forms_of(description, _OUTPUTS),
        defaults=defaults_of_queries(description, 0.5),
        columns=columns,
        rounding=description.rounding,
    )


def labels_of_columns(labels: Mapping[int, str], columns: int | None) -> Mapping[int, str]:
    """Return category id -> name for each column of the network, in its order.

    Args:
        labels: Category id -> name: of each column, of each class but the background, or by COCO's ids for 91 columns.
        columns: Columns of the network; None if unknown.

    Raises:
        ConfigError: The labels are not as many as the network's classes.
    """
    if columns is None or len(labels) == columns:
        return dict(labels)
    if len(labels) == columns - 1:
        return {**labels, max(labels, default=0) + 1: BACKGROUND}
    if columns == _COCO_COLUMNS and labels.keys() <= set(range(columns)):
        return {column: labels.get(column, f"category {column}") for column in range(columns)}
    raise ConfigError(
        "The labels are not as many as the network's classes.",
        where="model.labels",
        found=f"{len(labels)} labels, {columns - 1} classes and a background",
        hint=f"Name the {columns - 1} classes of the network in `model.labels`, in the network's order.",
    )


@dataclass(frozen=True)
class RfDetr(ModelAdapter):
    """The adapter of RF-DETR-Seg.

    labels: those of all columns. columns: columns of classes that the file states; None if it states none.
    rounding: as in Description.
    """

    columns: int | None = field(default=None, kw_only=True)
    rounding: Rounding = field(default="exact", kw_only=True)
    supported_options = frozenset()
    kernels = ("segray.masks._kernels_grids",)

    def with_labels(self, labels: Mapping[int, str]) -> Self:
        """Return the adapter with other classes; see `labels_of_columns`."""
        checked = super().with_labels(labels)
        return replace(checked, labels=labels_of_columns(checked.labels, self.columns))

    def prepare(self, form: ModelFormat, image_rgb: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the image, stretched to the network's size.

        rfdetr resizes floats. segray rounds them to whole levels, half a level away at most.
        """
        return {form.image.name: geometry.stretch_to(image_rgb, form.window_hw, self.rounding)[None]}

    def decode(self, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int], options: Options) -> Instances:
        """Return the rows that rfdetr reports, in its order. Rows with an empty mask or box stay.

        A query can have several rows, one for each class. There are at most as many rows as queries.

        dets: (1, q, 4), centre, width and height over 0..1. labels: (1, q, columns), logits. masks: (1, q, h, w),
        logits of the whole image. A mask is bilinear logits > 0, and may leave its box.
        """
        shapes: dict[str, tuple[int | str, ...]] = {
            "dets": ("q", 4),
            "labels": ("q", "columns"),
            "masks": ("q", "h", "w"),
        }
        dets, logits, masks = outputs_of_shapes(outputs, shapes, self.name)
        if logits.shape[1] != len(self.labels) or 0 in masks.shape:
            raise self._shape_error(logits, masks)
        is_valid = np.isfinite(dets).all(axis=1) & (logits < np.inf).all(axis=1)
        unreadable = int((~is_valid).sum())
        with np.errstate(over="ignore", invalid="ignore"):
            scores = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
        scores[~is_valid] = -1
        queries, columns, scores = _best_pairs(scores)
        class_ids = np.array(list(self.labels), np.int32)[columns]
        over = np.flatnonzero(are_over(scores, class_ids, options))
        planes, plane = np.unique(queries[over], return_inverse=True)
        has_mask: NDArray[np.bool_] = np.asarray(np.isfinite(masks[planes]).all(axis=(1, 2)), np.bool_)
        unreadable += int((~has_mask).sum())
        rows, plane = over[has_mask[plane]][: options.max_detections], plane[has_mask[plane]][: options.max_detections]
        if not len(rows):
            return Instances.empty(size_hw, unreadable)
        drawn, place = np.unique(plane, return_inverse=True)
        edges = outlines.edges_of_planes(masks[planes[drawn]], size_hw, 0)
        counts = rle.from_edges_of_all(*edges, size_hw)
        selected = Instances(
            class_ids[rows],
            scores[rows],
            _to_image(dets[queries[rows]], size_hw),
            tuple(counts[i] for i in place),
            size_hw,
            unreadable,
        )
        return drop_small_masks(selected, options)

    def _shape_error(self, logits: NDArray[np.float32], masks: NDArray[np.float32]) -> ModelError:
        return ModelError(
            "The outputs have other shapes than the adapter expects.",
            where=self.name,
            found=f"labels {[1, *logits.shape]}, masks {[1, *masks.shape]}",
            hint=f"Expected: labels [1, q, {len(self.labels)}]. Name the classes of the network in `model.labels`.",
        )


def _best_pairs(
    scores: NDArray[np.float32],
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Return queries, columns and scores of the best pairs, as many as queries, best first.

    scores: (q, columns). Of equal scores the lower query comes first, then the lower column.
    """
    flat = scores.ravel()
    order = np.argsort(-flat, kind="stable")[: len(scores)]
    queries, columns = np.divmod(order, scores.shape[1])
    return queries, columns, flat[order]


def _to_image(dets: NDArray[np.float32], size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Return boxes (n, 4) of centre, width and height over 0..1 in pixels of the image, clipped to the image."""
    centres, halves = dets[:, :2], np.float32(0.5) * np.maximum(dets[:, 2:], 0)
    return geometry.to_pixels(np.concatenate([centres - halves, centres + halves], axis=1), size_hw)
