"""Error types of detections above one score, and the confusion of classes.

This module knows objects and detections of one image at a time. Files, label sets and averages belong to other modules.
The types are those of TIDE (Bolya and others, 2020): IoU 0.5 is a match, and IoU below 0.1 is background.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segray.analytics.evaluation.coco_eval import ImageAnnotations

KINDS = ("right", "class", "localisation", "both", "duplicate", "background", "missed")
BACKGROUND = "background"
_MATCH, _TOUCH = 0.5, 0.1


@dataclass(frozen=True)
class ErrorBreakdown:
    """Counts of right detections and of each error type, over all images.

    min_score: lowest score of the detections that were counted. kinds: counts by kind, then by class name. The class is
    that of the detection; for "missed" it is that of the object. confusion: counts by the class of the truth, then by
    the class of the detection. "background" stands for no object and for no detection.
    """

    min_score: float
    kinds: Mapping[str, Mapping[str, int]]
    confusion: Mapping[str, Mapping[str, int]]


class Tally:
    """A count of errors, image by image.

    categories: name by id, of the categories that count. min_score: lowest score of the detections that count.
    """

    def __init__(self, categories: Mapping[int, str], min_score: float) -> None:
        self._names, self._min_score = categories, min_score
        self._kinds: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
        self._confusion: dict[str, Counter[str]] = {}

    def add(self, objects: ImageAnnotations, detections: ImageAnnotations, ious: NDArray[np.float64]) -> None:
        """Count the errors of one image.

        ious: (detections, objects) float64.
        """
        order = np.argsort(-detections.scores, kind="stable")
        order = order[detections.scores[order] >= self._min_score]
        order = order[[i in self._names for i in detections.class_ids[order].tolist()]] if len(order) else order
        real = np.flatnonzero(~objects.ignore)
        classes, truths, ious_here = detections.class_ids[order], objects.class_ids[real], ious[np.ix_(order, real)]
        same = classes[:, None] == truths[None]
        # On a crowd, or on an object that need not be found, a detection is neither right nor wrong.
        void = np.flatnonzero(objects.ignore)
        excused = ((ious[np.ix_(order, void)] >= _MATCH) & (classes[:, None] == objects.class_ids[void])).any(axis=1)
        self._sort(classes, truths, ious_here, same, excused)
        self._confuse(classes, truths, ious_here, excused)

    def result(self) -> ErrorBreakdown:
        """Return the counts of all images so far."""
        kinds = {kind: dict(sorted(counts.items())) for kind, counts in self._kinds.items()}
        return ErrorBreakdown(
            self._min_score, kinds, {name: dict(row) for name, row in sorted(self._confusion.items())}
        )

    def _sort(
        self,
        classes: NDArray[np.int64],
        truths: NDArray[np.int64],
        ious: NDArray[np.float64],
        same: NDArray[np.bool_],
        excused: NDArray[np.bool_],
    ) -> None:
        found = _greedy(np.where(same, ious, 0))
        explained = set(found[found >= 0].tolist())
        for row, category in enumerate(classes.tolist()):
            own, other = np.where(same[row], ious[row], 0), np.where(same[row], 0, ious[row])
            best_own, best_other = own.max(initial=0), other.max(initial=0)
            if found[row] >= 0:
                kind = "right"
            elif excused[row]:
                continue
            elif _TOUCH <= best_own < _MATCH:
                kind = "localisation"
                explained.add(int(own.argmax()))
            elif best_other >= _MATCH:
                kind = "class"
                explained.add(int(other.argmax()))
            elif best_own >= _MATCH:
                kind = "duplicate"
            else:
                kind = "background" if max(best_own, best_other) < _TOUCH else "both"
            self._kinds[kind][self._names[category]] += 1
        for number, category in enumerate(truths.tolist()):
            if number not in explained and category in self._names:
                self._kinds["missed"][self._names[category]] += 1

    def _confuse(
        self,
        classes: NDArray[np.int64],
        truths: NDArray[np.int64],
        ious: NDArray[np.float64],
        excused: NDArray[np.bool_],
    ) -> None:
        found = _greedy(ious)
        for row, category in enumerate(classes.tolist()):
            if found[row] >= 0 or not excused[row]:
                truth = self._names[int(truths[found[row]])] if found[row] >= 0 else BACKGROUND
                self._count(truth, self._names[category])
        for number, category in enumerate(truths.tolist()):
            if number not in found:
                self._count(self._names[category], BACKGROUND)

    def _count(self, truth: str, told: str) -> None:
        self._confusion.setdefault(truth, Counter())[told] += 1


def _greedy(ious: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the index of the object that each detection takes, (detections,) int64.

    Detections take objects in turn: each takes the free object of the largest IoU that is at least 0.5. -1 stands for
    none.
    """
    free = np.ones(ious.shape[1], np.bool_)
    found = np.full(len(ious), -1)
    for row, each in enumerate(ious):
        open_ious = np.where(free, each, 0)
        if open_ious.size and open_ious.max() >= _MATCH:
            found[row] = open_ious.argmax()
            free[found[row]] = False
    return found
