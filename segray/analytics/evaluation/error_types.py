"""Error types of detections above one score, and the confusion of classes.

This module knows objects and detections of one image at a time. Files, label sets and averages belong to other modules.
The types are those of TIDE (Bolya and others, 2020): IoU 0.5 is a match, and IoU below 0.1 is background.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from segray.analytics.evaluation.coco_eval import ImageAnnotations

KINDS = ("right", "class", "localisation", "both", "duplicate", "background", "missed")
BACKGROUND = "background"
_MATCH_IOU, _BACKGROUND_IOU = 0.5, 0.1


@dataclass(frozen=True)
class ErrorBreakdown:
    """Counts of right detections and of each error type, over all images.

    min_score: lowest score of the detections that were counted. kinds: counts by kind, then by class name. The class is
    that of the detection; for "missed" it is that of the object. confusion: counts by the class of the truth, then by
    the class of the detection. A right detection stands in its class, and one of the kind "class" in the class of the
    object below it. "background" stands for no object below a detection, and for no detection on an object. An object
    with a right detection and one of another class counts in both. taken_for: the counts of the kind "class" alone.
    """

    min_score: float
    kinds: Mapping[str, Mapping[str, int]]
    confusion: Mapping[str, Mapping[str, int]]
    taken_for: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


class ErrorCounter:
    """A count of errors, image by image.

    categories: name by id, of the categories that count. min_score: lowest score of the detections that count.
    """

    def __init__(self, categories: Mapping[int, str], min_score: float) -> None:
        self._names, self._min_score = categories, min_score
        self._kinds: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
        self._confusion: dict[str, Counter[str]] = {}
        self._taken_for: dict[str, Counter[str]] = {}

    def add(self, objects: ImageAnnotations, detections: ImageAnnotations, ious: NDArray[np.float64]) -> None:
        """Count the errors of one image.

        ious: (detections, objects) float64.
        """
        order = np.argsort(-detections.scores, kind="stable")
        order = order[detections.scores[order] >= self._min_score]
        if len(order):
            order = order[[category in self._names for category in detections.class_ids[order].tolist()]]
        real, ignored = np.flatnonzero(~objects.ignore), np.flatnonzero(objects.ignore)
        classes, truths, real_ious = detections.class_ids[order], objects.class_ids[real], ious[np.ix_(order, real)]
        # On a crowd, or on an object that need not be found, a detection is neither right nor wrong.
        same_as_ignored = classes[:, None] == objects.class_ids[ignored]
        excused = ((ious[np.ix_(order, ignored)] >= _MATCH_IOU) & same_as_ignored).any(axis=1)
        self._count_kinds(classes, truths, real_ious, excused)

    def result(self) -> ErrorBreakdown:
        """Return the counts of all images so far."""
        kinds = {kind: dict(sorted(counts.items())) for kind, counts in self._kinds.items()}
        confusion, taken_for = (
            {name: dict(row) for name, row in sorted(pairs.items())} for pairs in (self._confusion, self._taken_for)
        )
        return ErrorBreakdown(self._min_score, kinds, confusion, taken_for)

    def _count_kinds(
        self,
        classes: NDArray[np.int64],
        truths: NDArray[np.int64],
        ious: NDArray[np.float64],
        excused: NDArray[np.bool_],
    ) -> None:
        """Count the error types, and the pairs of classes of objects and detections.

        Args:
            classes: Category ids of the detections, (detections,), best first.
            truths: Category ids of the objects, (objects,).
            ious: (detections, objects) float64.
            excused: Detections that are neither right nor wrong without an object, (detections,) bool.
        """
        same_class = classes[:, None] == truths[None]
        matches = _match_greedily(np.where(same_class, ious, 0))
        explained = set(matches[matches >= 0].tolist())
        seen = set(explained)  # objects on which a detection of any class lies well
        for row, category in enumerate(classes.tolist()):
            own, other = np.where(same_class[row], ious[row], 0), np.where(same_class[row], 0, ious[row])
            best_own, best_other = own.max(initial=0), other.max(initial=0)
            truth = BACKGROUND
            if matches[row] >= 0:
                kind, truth = "right", self._names[category]
            elif excused[row]:
                continue
            elif _BACKGROUND_IOU <= best_own < _MATCH_IOU:
                kind = "localisation"
                explained.add(int(own.argmax()))
            elif best_other >= _MATCH_IOU:
                kind = "class"
                explained.add(int(other.argmax()))
                seen.add(int(other.argmax()))
                truth = self._names[int(truths[other.argmax()])]
                self._taken_for.setdefault(truth, Counter())[self._names[category]] += 1
            elif best_own >= _MATCH_IOU:
                kind = "duplicate"
            else:
                kind = "background" if max(best_own, best_other) < _BACKGROUND_IOU else "both"
            self._kinds[kind][self._names[category]] += 1
            self._count_pair(truth, self._names[category])
        for number, category in enumerate(truths.tolist()):
            if category in self._names:
                if number not in explained:
                    self._kinds["missed"][self._names[category]] += 1
                if number not in seen:
                    self._count_pair(self._names[category], BACKGROUND)

    def _count_pair(self, truth: str, detected: str) -> None:
        self._confusion.setdefault(truth, Counter())[detected] += 1


def _match_greedily(ious: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the index of the object that each detection takes, (detections,) int64.

    Detections take objects in turn. A detection takes the free object of the largest IoU that is at least 0.5. -1
    stands for no object. ious: (detections, objects) float64.
    """
    free = np.ones(ious.shape[1], np.bool_)
    matches = np.full(len(ious), -1)
    for row, ious_of_row in enumerate(ious):
        free_ious = np.where(free, ious_of_row, 0)
        if free_ious.size and free_ious.max() >= _MATCH_IOU:
            matches[row] = free_ious.argmax()
            free[matches[row]] = False
    return matches
