"""What the adapters of models that describe themselves share: the form of such a model, and its thresholds.

Knows which facts of a Description decide the form. Knows nothing of a family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.models.adapters.adapter import Defaults, ImageInput, ModelFormat, Options
from segray.models.description import Description

FORM = "exported"
# Queries of a model whose file does not state them; published models have 100 to 300.
_MAX_QUERIES = 300
# Rows that NMS looks at, the best, and pixels between the boxes of neighbouring classes.
_MAX_CANDIDATES = 30_000
_CLASS_OFFSET = np.float32(7680)


def forms_of(description: Description, outputs: tuple[str, ...]) -> Mapping[str, ModelFormat]:
    """Return the only form of a described file. outputs: keys of the outputs that the adapter decodes."""
    image = ImageInput(
        description.input_name,
        description.size_hw,
        "NCHW",
        description.colour,
        description.mean,
        description.scale,
        any_batch=True,
    )
    return {FORM: ModelFormat(FORM, image, outputs, dict(description.outputs))}


def defaults_of(stated: Mapping[str, float], family: Defaults) -> Defaults:
    """Return the options of decoding that a description states, and those of the family for the rest."""
    iou = stated.get("nms_iou", family.nms_iou)
    return Defaults(
        float(stated.get("score_threshold", family.score_threshold)),
        int(stated.get("max_detections", family.max_detections)),
        family.nms,
        None if iou is None else float(iou),
    )


def defaults_of_queries(description: Description, score_threshold: float) -> Defaults:
    """Return the defaults of a model with queries: at most a row for each query.

    description.extra["queries"]: the number of queries, if the file states it. score_threshold: the family's, for a
    file that states none.
    """
    family = Defaults(score_threshold, int(description.extra.get("queries", _MAX_QUERIES)))
    return defaults_of(description.thresholds, family)


def are_over(scores: NDArray[np.float32], class_ids: NDArray[np.int32], options: Options) -> NDArray[np.bool_]:
    """Return which scores are over the threshold of their class, (n,) bool. A score at the threshold is not."""
    thresholds: Any = np.float32(options.score_threshold)
    if options.class_thresholds:
        thresholds = np.array([options.class_thresholds.get(int(i), thresholds) for i in class_ids], np.float32)
    is_over: NDArray[np.bool_] = scores > thresholds
    return is_over


def best_rows(rows: NDArray[np.intp], scores: NDArray[np.float32], most: int) -> NDArray[np.intp]:
    """Return the rows of the `most` highest scores, in the order of `rows`. Of equal scores the first stay."""
    if len(rows) <= most:
        return rows
    best: NDArray[np.intp] = rows[np.sort(np.argsort(-scores[rows], kind="stable")[:most])]
    return best


def thresholds_of_classes(labels: Mapping[int, str], options: Options) -> NDArray[np.float32]:
    """Return the threshold of each class, (n,), in the order of the labels. A score at the threshold is too low."""
    default = options.score_threshold
    return np.array([options.class_thresholds.get(class_id, default) for class_id in labels], np.float32)


def rows_after_nms(
    scores: NDArray[np.float32],
    labels: NDArray[np.intp],
    boxes_xyxy: NDArray[np.float32],
    options: Options,
    default_iou: float,
) -> NDArray[np.intp]:
    """Return the rows that greedy NMS keeps, by falling score; of equal scores the lower row comes first.

    The classes are kept apart by an offset of their boxes. The offset takes bits from the IoU, as in Ultralytics and
    YOLOv5.

    scores, labels: (n,), labels as indices of classes. boxes_xyxy: (n, 4), in pixels of the network. default_iou: the
    IoU of options that state none.
    """
    from segray.masks import _kernels_prototypes

    order = np.argsort(-scores, kind="stable")[:_MAX_CANDIDATES]
    boxes = boxes_xyxy[order]
    if options.nms != "cross_class":
        boxes = boxes + (labels[order].astype(np.float32) * _CLASS_OFFSET)[:, None]
    max_iou = default_iou if options.nms_iou is None else options.nms_iou
    kept: NDArray[np.intp] = order[_kernels_prototypes.greedy_nms_of_all(boxes, options.max_detections, max_iou)]
    return kept
