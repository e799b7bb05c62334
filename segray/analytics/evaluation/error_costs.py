"""The AP that each kind of error costs, as TIDE measures it (Bolya and others, 2020).

This module knows the objects and detections of one image at a time, and computes what the package tidecv computes.
AP is that at IoU .50 of the best 100 detections of each image. All scores count. A kind of error is put right in all
images, and AP is measured again. The gain is the cost of the kind. Costs of kinds do not add up.
Files, label sets and averages over IoUs belong to other modules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.analytics.evaluation.coco_eval import ROW, ImageAnnotations, RowsByCategory, update_best

KINDS = ("class", "localisation", "both", "duplicate", "background", "missed")
_MATCH_IOU, _BACKGROUND_IOU = 0.5, 0.1
_PER_IMAGE = 100
_RECALLS = np.arange(101) / 100  # by tidecv; some of pycocotools differ in the last bit
# Bit 0 of a row: all errors as they are. Bit k: the k-th of these kinds is put right.
_FIXED = ("", "class", "localisation", "both", "duplicate", "background")
_ALL = np.uint64(2 ** len(_FIXED) - 1)
_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ErrorCosts:
    """The costs of errors, each value 0..1.

    ap50: AP at IoU .50, as tidecv counts: a class without objects has an AP of 0. kinds: gain of AP if the errors of a
    kind were put right. false_positives: gain if all wrong detections had the lowest score. false_negatives: gain if no
    object was missed.
    """

    ap50: float
    kinds: Mapping[str, float]
    false_positives: float
    false_negatives: float


class ErrorCostCounter:
    """The rows from which the costs are computed, image by image. categories: name by id, of those that count."""

    def __init__(self, categories: Mapping[int, str]) -> None:
        self._categories = np.array(sorted(categories), np.int64)
        self._rows = RowsByCategory()
        self._objects: Counter[int] = Counter()
        self._missed: Counter[int] = Counter()
        self._unmatched: Counter[int] = Counter()
        self._detected: set[int] = set()

    def add(
        self, image: int, objects: ImageAnnotations, detections: ImageAnnotations, ious: NDArray[np.float64]
    ) -> None:
        """Add one image. image: id that orders equal scores. ious: (detections, objects) float64."""
        order = np.argsort(-detections.scores, kind="stable")
        order = order[np.isin(detections.class_ids[order], self._categories)][:_PER_IMAGE]
        counted = np.isin(objects.class_ids, self._categories)
        real, unsure = np.flatnonzero(~objects.ignore & counted), np.flatnonzero(objects.ignore & counted)
        classes, truths = detections.class_ids[order], objects.class_ids[real]
        self._objects.update(truths.tolist())
        if not len(order):
            self._missed.update(truths.tolist())
            self._unmatched.update(truths.tolist())
            return
        same_as_unsure = classes[:, None] == objects.class_ids[unsure]
        is_excused = ((ious[np.ix_(order, unsure)] > _MATCH_IOU) & same_as_unsure).any(axis=1)
        image_errors = _Errors(classes, truths, ious[np.ix_(order, real)], is_excused)
        self._missed.update(truths[image_errors.is_missed].tolist())
        self._unmatched.update(truths[~image_errors.is_used].tolist())
        self._detected.update(classes[~is_excused | image_errors.is_right].tolist())
        for category, positions, right, present in image_errors.rows():
            rows = np.zeros(len(positions), ROW)
            rows["score"], rows["image"], rows["rank"] = detections.scores[order[positions]], image, positions
            rows["matched"], rows["ignored"] = right, ~present
            self._rows.add(category, rows)

    def result(self) -> ErrorCosts:
        """Return the costs over all images so far."""
        by_case: dict[str, list[float]] = {name: [] for name in (*_FIXED, "missed", "positives", "negatives")}
        for category in self._categories.tolist():
            for name, value in self._precisions(category).items():
                by_case[name].append(value)
        means = {name: float(np.mean(values)) if values else 0.0 for name, values in by_case.items()}
        gains = {name: max(0.0, value - means[""]) for name, value in means.items()}
        return ErrorCosts(
            means[""],
            {kind: gains[kind] for kind in KINDS},
            means["positives"] - means[""],
            means["negatives"] - means[""],
        )

    def _precisions(self, category: int) -> dict[str, float]:
        """Return the AP of a class in each case in which the class has an object or a detection."""
        objects = self._objects[category]
        curves = {
            **{name: _Curve(objects) for name in _FIXED},
            "missed": _Curve(objects - self._missed[category]),
            "negatives": _Curve(objects - self._unmatched[category]),
        }
        hits = 0
        for rows in self._rows.of(category):
            for bit, name in enumerate(_FIXED):
                mask = np.uint64(1 << bit)
                is_right = (rows["matched"] & mask) != 0
                curves[name].add(is_right[(rows["ignored"] & mask) == 0])
            present = (rows["ignored"] & np.uint64(1)) == 0
            is_right = ((rows["matched"] & np.uint64(1)) != 0)[present]
            curves["missed"].add(is_right)
            curves["negatives"].add(is_right)
            hits += int(is_right.sum())
        values = {name: curve.precision for name, curve in curves.items() if curve.has_rows or curve.objects}
        if objects or category in self._detected:
            reached = int((hits / objects >= _RECALLS).sum()) if objects and hits else 0
            values["positives"] = reached / len(_RECALLS)
        return values


class _Errors:
    """The errors of one image.

    is_right: (detections,), which find an object. is_used, is_missed: (objects,), found by a right detection; found by
    no detection that could be put right.
    """

    def __init__(self, classes: _Ints, truths: _Ints, ious: NDArray[np.float64], is_excused: NDArray[np.bool_]) -> None:
        self._classes, self._truths, self._is_excused = classes, truths, is_excused
        is_same = classes[:, None] == truths[None]
        own = np.where(is_same, ious, 0.0)
        self.is_right, self.is_used = _matched(own)
        if not len(truths):
            self._kinds = np.full(len(classes), "background", object)
            self._targets = np.full(len(classes), -1)
            self.is_missed = np.zeros(0, np.bool_)
            return
        other = np.where(is_same, 0.0, ious)
        best_own = own.max(axis=1)
        is_local = (best_own >= _BACKGROUND_IOU) & (best_own <= _MATCH_IOU)
        is_class = other.max(axis=1) >= _MATCH_IOU
        is_duplicate = np.where(self.is_used[None], own, 0.0).max(axis=1) >= _MATCH_IOU
        is_background = ious.max(axis=1) <= _BACKGROUND_IOU
        conditions = [self.is_right, is_local, is_class, is_duplicate, is_background]
        names = ["right", "localisation", "class", "duplicate", "background"]
        self._kinds = np.array([*names, "both"], object)[
            np.where(np.any(conditions, axis=0), np.argmax(conditions, axis=0), len(names))
        ]
        targets = np.where(is_local, own.argmax(axis=1), other.argmax(axis=1))
        could_be = ~self.is_right & (is_local | is_class) & ~self.is_used[targets]
        # The best detection of an object can be put right. Those after it would be duplicates.
        self._targets = np.full(len(classes), -1)
        rows = np.flatnonzero(could_be)
        _, first = np.unique(targets[rows], return_index=True)
        self._targets[rows[first]] = targets[rows[first]]
        self.is_missed = ~self.is_used
        self.is_missed[targets[rows]] = False

    def rows(self) -> Iterator[tuple[int, _Ints, NDArray[np.uint64], NDArray[np.uint64]]]:
        """Yield category, positions, and the bits of cases in which a detection is right, and in which it is there."""
        right = np.where(self.is_right, _ALL, np.uint64(0))
        present = np.where(self._is_excused & ~self.is_right, np.uint64(0), _ALL)
        for bit, kind in enumerate(_FIXED):
            present[self._kinds == kind] &= ~np.uint64(1 << bit)
        is_drawn_well = (self._kinds == "localisation") & (self._targets >= 0)
        case = np.uint64(1 << _FIXED.index("localisation"))
        right[is_drawn_well] |= case
        present[is_drawn_well] |= case
        for category in np.unique(self._classes).tolist():
            positions = np.flatnonzero(self._classes == category)
            yield category, positions, right[positions], present[positions]
        case = np.uint64(1 << _FIXED.index("class"))
        for position in np.flatnonzero((self._kinds == "class") & (self._targets >= 0)).tolist():
            bits = np.array([case])
            yield int(self._truths[self._targets[position]]), np.array([position]), bits, bits


def _matched(own: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which detections find an object of their class, and which objects are found.

    own: IoU with the objects of the own class, (detections, objects).
    """
    is_right, is_used = np.zeros(own.shape[0], np.bool_), np.zeros(own.shape[1], np.bool_)
    if own.size:
        for row in np.flatnonzero(own.max(axis=1) >= _MATCH_IOU).tolist():
            free = np.where(is_used, 0.0, own[row])
            at = int(free.argmax())
            if free[at] >= _MATCH_IOU:
                is_right[row] = is_used[at] = True
    return is_right, is_used


class _Curve:
    """Precision by recall of one class. objects: number of objects that count."""

    def __init__(self, objects: int) -> None:
        self.objects, self.has_rows = objects, False
        self._right = self._wrong = 0
        self._best = np.zeros(len(_RECALLS) + 1)

    def add(self, is_right: NDArray[np.bool_]) -> None:
        """Add detections by falling score."""
        self.has_rows = self.has_rows or len(is_right) > 0
        if self.objects:
            update_best(self._best, self.objects, is_right, self._right, self._wrong, _RECALLS)
        hits = int(is_right.sum())
        self._right, self._wrong = self._right + hits, self._wrong + len(is_right) - hits

    @property
    def precision(self) -> float:
        """Return the mean of the best precision at each recall or a higher one."""
        best: Any = np.maximum.accumulate(self._best[:0:-1])
        return float(best.mean()) if self.objects else 0.0
