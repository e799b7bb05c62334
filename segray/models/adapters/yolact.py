"""YOLACT: class scores, boxes and mask coefficients per prior, and the prototypes from which masks are combined.

Knows the outputs of the repository's network (Bolya et al., "YOLACT: Real-time Instance Segmentation", ICCV 2019) and
the two ways to decode them. Knows nothing of files or of OpenVINO. Shapes come from the arrays.

The default follows Open Model Zoo's accuracy checker, which measured the model card's numbers. nms="fast" follows the
original repository.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from segray import rle
from segray.errors import ModelError
from segray.imaging import geometry, outlines
from segray.instances import Instances
from segray.models.adapters.adapter import (
    ImageInput,
    ModelAdapter,
    ModelFormat,
    Options,
    drop_small_masks,
    outputs_by_name,
    select_rows,
)

Floats = NDArray[np.float32]

MIN_SCORE = 0.05
MAX_IOU = 0.5
FAST_NMS_TOP = 200
# Scores of a softmax sum up to 1 with an error below this, in f32 and with outputs rounded to bf16.
_SOFTMAX_ERROR = 0.01

_OUTPUTS = ("conf", "boxes", "mask", "proto")
_SIZE_HW = (550, 550)
FORMS: Mapping[str, ModelFormat] = {
    "original": ModelFormat(
        "original",
        ImageInput("input.1", _SIZE_HW, "NCHW", "RGB", (123.675, 116.78, 103.94), (58.395, 57.12, 57.375)),
        _OUTPUTS,
    ),
    "converted": ModelFormat("converted", ImageInput("input.1", _SIZE_HW, "NCHW", "BGR", None, None), _OUTPUTS),
}


@dataclass(frozen=True)
class Yolact(ModelAdapter):
    """The adapter of YOLACT.

    has_softmax: the graph ends in a softmax over the classes, so that a sure background leaves the others no score.
    """

    has_softmax: bool = field(default=False, kw_only=True)
    supported_options = frozenset({"nms"})
    nms_choices = ("per_class", "fast", "cross_class")

    def prepare(self, form: ModelFormat, image_rgb: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the image, stretched to the network's square input."""
        return {form.image.name: geometry.stretch(image_rgb, form.image.size_hw or _SIZE_HW)[None]}

    def with_softmax(self, outputs: AbstractSet[str]) -> Self:
        """Return the adapter for a graph that makes these outputs by a softmax over their last axis."""
        return replace(self, has_softmax="conf" in outputs)

    def decode(self, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int], options: Options) -> Instances:
        """Return every detection that the reference keeps, highest score first; empty masks and boxes stay.

        outputs: conf (1, p, k + 1), softmax with background first; boxes (1, p, 4), x1, y1, x2, y2 normalised to the
        image's size; mask (1, p, c), coefficients; proto (1, h, w, c), prototypes.
        nms="fast" and nms="cross_class" sort the edges of inverted boxes; nms="per_class" does not.
        """
        rejected_score = _highest_rejected_score(options)
        candidates, unreadable = _read_candidates(
            outputs, len(self.labels), self.name, rejected_score, has_softmax=self.has_softmax
        )
        prior, label, scores = _suppress(candidates, options, rejected_score)
        class_ids = np.array(list(self.labels), np.int32)[label]
        best = select_rows(_by_falling_score(scores), class_ids, scores, options)
        if not len(best):
            return Instances.empty(size_hw, unreadable)
        boxes = candidates.boxes_xyxy[prior[best]]
        if options.nms != "per_class":
            boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], 1)
        masks = _mask_counts(candidates.coefficients[prior[best]], candidates.prototypes, boxes, size_hw)
        pixels = geometry.to_pixels(boxes, size_hw)
        detections = Instances(class_ids[best], scores[best], pixels, masks, size_hw, unreadable)
        return drop_small_masks(detections, options)


@dataclass(frozen=True)
class _Candidates:
    """Candidates of one image, n rows, and the prototypes.

    scores: (n, k) without background. boxes_xyxy: (n, 4), normalised. coefficients: (n, c). prototypes: (h, w, c).
    """

    scores: Floats
    boxes_xyxy: Floats
    coefficients: Floats
    prototypes: Floats


# ---- reading --------------------------------------------------------------------------------------


def _highest_rejected_score(options: Options) -> np.float32:
    """Return the largest score that every threshold rejects.

    NMS compares a box only with higher-scored ones, so dropping these rows first does not change the result.
    """
    lowest_threshold = np.float32(min([options.score_threshold, *options.class_thresholds.values()]))
    return np.float32(np.nextafter(lowest_threshold, np.float32(-1)))


def _read_candidates(
    outputs: Mapping[str, NDArray[Any]], classes: int, model_name: str, rejected_score: np.float32, *, has_softmax: bool
) -> tuple[_Candidates, int]:
    """Return the priors with a class score over the floor, and the number of priors dropped as not finite.

    classes: number of classes, without background. model_name: the model's name, for errors. has_softmax: as in Yolact.
    """
    from segray.masks import _kernels

    arrays = outputs_by_name(outputs, _OUTPUTS, model_name)
    shapes = [np.shape(array) for array in arrays]
    priors, side_hw, depth = shapes[0][1:2], shapes[3][1:3], shapes[3][3:4]
    if shapes != [(1, *priors, classes + 1), (1, *priors, 4), (1, *priors, *depth), (1, *side_hw, *depth)]:
        actual = ", ".join(f"{name} {list(shape)}" for name, shape in zip(_OUTPUTS, shapes, strict=True))
        expected = f"conf [1, p, {classes + 1}], boxes [1, p, 4], mask [1, p, c], proto [1, h, w, c]"
        hint = f"Expected: {expected}. Check `model.name`, and `model.labels` if the classes are your own."
        raise ModelError(
            "The outputs have other shapes than the adapter expects.", where=model_name, found=actual, hint=hint
        )
    conf, boxes, mask, proto = (np.ascontiguousarray(array[0], np.float32) for array in arrays)
    floor = max(np.float32(MIN_SCORE), rejected_score)
    # A value that is not finite makes the whole softmax NaN, so the background alone shows it.
    enough = np.float32(1 - floor + _SOFTMAX_ERROR if has_softmax else np.nan)
    rows = np.flatnonzero(_kernels.rows_above(conf, floor, enough))
    scores, boxes = conf[rows, 1:], boxes[rows]
    finite = np.isfinite(scores).all(axis=1) & np.isfinite(boxes).all(axis=1)
    candidates = _Candidates(scores[finite], boxes[finite], mask[rows[finite]], proto)
    return candidates, len(rows) - len(candidates.scores)


# ---- suppression: rows of candidates, class indices, scores ---------------------------------------

KeptRows = tuple[NDArray[np.intp], NDArray[np.intp], Floats]


def _suppress(candidates: _Candidates, options: Options, rejected_score: np.float32) -> KeptRows:
    match options.nms:
        case "per_class":
            return _greedy_nms_per_class(candidates, options.max_detections, max(np.float32(MIN_SCORE), rejected_score))
        case "fast":
            return _fast_nms_per_class(candidates, rejected_score)
        case "cross_class":
            return _fast_nms_across_classes(candidates, rejected_score)


def _greedy_nms_per_class(candidates: _Candidates, most: int, floor: np.float32) -> KeptRows:
    """Suppress greedily within each class, scores over `floor` only; keep at most `most` rows of a class."""
    from segray.masks import _kernels

    scores_by_class = candidates.scores.T
    labels, rows = np.nonzero(scores_by_class > floor)
    scores = scores_by_class[labels, rows]
    order = np.lexsort((-rows, -scores, labels))  # Ties as in _by_falling_score.
    rows, labels, scores = rows[order], labels[order], scores[order]
    kept = _kernels.greedy_nms(candidates.boxes_xyxy, rows, labels, most, MAX_IOU)
    return rows[kept], labels[kept], scores[kept]


def _fast_nms_per_class(candidates: _Candidates, rejected_score: np.float32) -> KeptRows:
    """Suppress by fast NMS within each class.

    A class has no floor but the thresholds: low scores fill the list, as in the original.
    """
    kept = [_fast_nms(candidates, scores, rejected_score) for scores in candidates.scores.T]
    rows = np.concatenate([np.zeros(0, np.intp), *kept])
    labels = np.repeat(np.arange(len(kept)), list(map(len, kept)))
    return rows, labels, candidates.scores[rows, labels]


def _fast_nms_across_classes(candidates: _Candidates, rejected_score: np.float32) -> KeptRows:
    """Suppress by fast NMS across all classes; each prior counts as its best class only."""
    rows = _fast_nms(candidates, candidates.scores.max(axis=1, initial=0), rejected_score)
    label = candidates.scores[rows].argmax(axis=1)
    return rows, label, candidates.scores[rows, label]


def _fast_nms(candidates: _Candidates, scores: Floats, rejected_score: np.float32) -> NDArray[np.intp]:
    """Return the best priors by these scores that overlap no higher-scored prior, kept or not."""
    rows = _by_falling_score(scores)[:FAST_NMS_TOP]
    rows = rows[scores[rows] > rejected_score]
    boxes = candidates.boxes_xyxy[rows]
    highest_iou = np.triu(_iou(boxes[:, None], boxes[None]), 1).max(axis=0, initial=0)
    kept: NDArray[np.intp] = rows[highest_iou <= MAX_IOU]
    return kept


def _iou(a: Floats, b: Floats) -> Floats:
    """Return the IoU of boxes (..., 4) xyxy, broadcast to (...); 0 where both boxes are empty.

    Inverted boxes keep their signed areas.
    """
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    intersection = sides.clip(0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - intersection
    iou: Floats = np.divide(intersection, union, out=np.zeros_like(union), where=union != 0)
    return iou


def _by_falling_score(scores: Floats) -> NDArray[np.intp]:
    """Return the indices by falling score; of equal scores the later comes first, as in a reversed sort."""
    return np.argsort(scores, kind="stable")[::-1]


# ---- masks ----------------------------------------------------------------------------------------


def _mask_counts(
    coefficients: Floats, prototypes: Floats, boxes_xyxy: Floats, size_hw: tuple[int, int]
) -> tuple[str, ...]:
    """Return the RLE counts of all masks, thresholded at 0.5 after resizing to the image.

    A mask is the sigmoid of prototypes @ coefficients, cut to the box. The cut keeps one prototype pixel around the
    box, so a mask may reach slightly beyond its box.
    coefficients: (n, c). prototypes: (h, w, c). boxes_xyxy: (n, 4), normalised. size_hw: the image's, in pixels.
    """
    height, width, _ = prototypes.shape
    start_x, stop_x = _crop_range(boxes_xyxy[:, 0], boxes_xyxy[:, 2], width)
    start_y, stop_y = _crop_range(boxes_xyxy[:, 1], boxes_xyxy[:, 3], height)
    cuts = np.stack([start_x, start_y, stop_x, stop_y], axis=1)
    logits = np.empty((height, width, len(coefficients)), np.float32)
    with np.errstate(all="ignore"):
        for rows_of_some in _joined(start_y, stop_y):
            # The operand order of the references decides the last bits, and so does the number of columns: all of them.
            np.matmul(prototypes[rows_of_some], coefficients.T, out=logits[rows_of_some])
    cells = _sigmoid(outlines.crop_logits(logits, cuts, frame=-np.inf))  # sigmoid(-inf) is 0.
    rows, columns = outlines.taps_of_axis(height, size_hw[0]), outlines.taps_of_axis(width, size_hw[1])
    return rle.from_edges_of_all(*outlines.edges_of_crops(cells, cuts, rows, columns, size_hw[0]), size_hw)


def _joined(starts: NDArray[np.intp], stops: NDArray[np.intp]) -> list[slice]:
    """Return the ranges start to stop-1, those that touch joined, in ascending order; empty ranges are left out."""
    joined: list[slice] = []
    for start, stop in sorted(zip(starts.tolist(), stops.tolist(), strict=True)):
        if joined and start <= joined[-1].stop:
            joined[-1] = slice(joined[-1].start, max(joined[-1].stop, stop))
        elif start < stop:
            joined.append(slice(start, stop))
    return joined


def _crop_range(low: Floats, high: Floats, side: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return start and stop of the prototype pixels of a box with one pixel around; stop >= start.

    A pixel j is inside where low * side - 1 <= j < high * side + 1.
    """
    start = np.ceil(np.clip(low * side - 1, 0, side)).astype(np.intp)
    stop = np.ceil(np.clip(high * side + 1, 0, side)).astype(np.intp)
    return start, np.maximum(start, stop)


def _sigmoid(logits: Floats) -> Floats:
    with np.errstate(all="ignore"):
        return np.asarray(1 / (1 + np.exp(-logits)), np.float32)
