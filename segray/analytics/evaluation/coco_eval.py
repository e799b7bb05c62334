"""COCO average precision, image by image. The result equals that of COCOeval of pycocotools.

This module knows objects, detections and how COCO scores them. Files and label sets belong to other modules.
The evaluator stores 36 bytes of each detection, in temporary files if there are many detections.
Stored rows are read by falling score. Memory does not grow with the number of images.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from segray.analytics.evaluation.intervals import ClassTally, ImageTallies
from segray.analytics.evaluation.thresholds import ClassThresholds, Goal, ThresholdSearch
from segray.errors import SourceError
from segray.masks import _kernels_many

IOU_TYPES = ("segm", "bbox")
AREAS = ("all", "small", "medium", "large")
_AREA_RANGES = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]], np.float64)  # by AREAS
IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
BINS = 10  # of scores, for calibration

ROW = np.dtype([("score", "f8"), ("image", "i8"), ("rank", "i4"), ("matched", "u8"), ("ignored", "u8")])
_IN_MEMORY_ROWS, _SAMPLED_ROWS, _SORTED_ROWS = 20_000, 100_000, 100_000
_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ImageAnnotations:
    """The objects of one image, or its detections. All arrays have one length n.

    class_ids: (n,) int64. shapes: by IoU type, xywh boxes (n, 4) in pixels, or masks as pycocotools has them. areas: by
    IoU type, (n,) in pixels. All types of objects have equal areas. scores: (n,), of detections. crowd: (n,), of
    objects; true if one object stands for many. ignore: (n,), of objects; true if detections need not find the object.
    """

    class_ids: NDArray[np.int64]
    shapes: Mapping[str, Any]
    areas: Mapping[str, _Floats]
    scores: _Floats = field(default_factory=lambda: np.empty(0))
    crowd: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))
    ignore: NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, np.bool_))

    def __len__(self) -> int:
        return len(self.class_ids)

    def overlaps(self, objects: ImageAnnotations, iou_type: str) -> _Floats:
        """Return the IoU with each object, (len self, len objects).

        For a crowd, the intersection is divided by the detection's own area.
        """
        if not len(self) or not len(objects):
            return np.zeros((len(self), len(objects)))
        crowd = objects.crowd.astype(np.uint8).tolist()
        return np.asarray(coco_mask.iou(self.shapes[iou_type], objects.shapes[iou_type], crowd), np.float64)


@dataclass(frozen=True)
class Scores:
    """COCO's summary for one IoU type, each value 0..1; None where the truth has no such object.

    ap: mean over IoU .50:.05:.95 and classes. ap50, ap75: at that IoU.
    ap_small, ap_medium, ap_large: by truth area below 32², below 96² and above, in pixels.
    ar1, ar10, ar100: recall at `limits` detections per image and class. The last limit is not 100 in every protocol.
    class_ap, class_ap50, class_ar: by class name in order of category id, for the classes that occur in the truth.
    class_sizes: AP of small, medium and large objects of each class.
    frequency_ap: AP of LVIS's rare, common and frequent classes. calibration: scores in ten bins, from low to high.
    curves: by class, precision at 101 recalls at IoU .50 and .75.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar100: float
    class_ap: Mapping[str, float]
    class_ap50: Mapping[str, float]
    ar1: float = 0.0
    ar10: float = 0.0
    ar_small: float | None = None
    ar_medium: float | None = None
    ar_large: float | None = None
    class_ar: Mapping[str, float] = field(default_factory=dict)
    class_sizes: Mapping[str, tuple[float | None, float | None, float | None]] = field(default_factory=dict)
    frequency_ap: Mapping[str, float] = field(default_factory=dict)
    calibration: Calibration | None = None
    curves: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict, repr=False)
    limits: tuple[int, ...] = (1, 10, 100)


@dataclass(frozen=True)
class Calibration:
    """The relation of scores to the share of right detections, at IoU .50, in BINS bins of scores.

    detections: number in each bin. score: mean score in each bin. precision: share of right detections in each bin.
    score and precision are None for an empty bin. error: mean distance of score and precision, weighted by detections
    (ECE).
    """

    detections: Sequence[int]
    score: Sequence[float | None]
    precision: Sequence[float | None]
    error: float


@dataclass(frozen=True, eq=False)
class MatchBits:
    """The result of matching n detections, at each area range and each IoU threshold, as bits of integers.

    matched, ignored: (n,) uint64. A bit of `matched` is 1 if the detection finds an object. A bit of `ignored` is 1 if
    the detection is neither right nor wrong. Then its object, or its own area, does not count. Both have one layout:

        bit = area * len(IOUS) + threshold      area: an index into AREAS, threshold: an index into IOUS

        bits  0..9  all areas, IoU .50, .55, ... .95
        bits 10..19 small      bits 20..29 medium      bits 30..39 large      bits 40..63 always 0

    `_kernels_many.match` sets the bits. All other code reads them by the methods here.
    """

    matched: NDArray[np.uint64]
    ignored: NDArray[np.uint64]

    @classmethod
    def none_set(cls, detections: int) -> MatchBits:
        """Return bits that are all 0, for the kernel to set."""
        return cls(np.zeros(detections, np.uint64), np.zeros(detections, np.uint64))

    @classmethod
    def of_rows(cls, rows: NDArray[Any]) -> MatchBits:
        """Return the bits of stored rows."""
        return cls(rows["matched"], rows["ignored"])

    def counted(self, area: int, threshold: int) -> NDArray[np.bool_]:
        """Return which detections count, as right or as wrong."""
        return ~_is_set(self.ignored, area, threshold)

    def has_object(self, area: int, threshold: int) -> NDArray[np.bool_]:
        """Return which detections find an object, whether they count or not."""
        return _is_set(self.matched, area, threshold)


def _is_set(bits: NDArray[np.uint64], area: int, threshold: int) -> NDArray[np.bool_]:
    return ((bits >> np.uint64(area * len(IOUS) + threshold)) & np.uint64(1)).astype(np.bool_)


class CocoEvaluator:
    """An evaluation by one IoU type, which takes image after image.

    categories: name by id, of the categories that count. limits: detections per image and class, COCO's maxDets.
    Precision is that at the last limit. frequency: LVIS's r, c or f by category id. keeps_images: `tallies` will be
    called, which needs the number of objects in each image.
    """

    def __init__(
        self,
        iou_type: str,
        categories: Mapping[int, str],
        limits: Sequence[int] = (1, 10, 100),
        frequency: Mapping[int, str] | None = None,
        *,
        keeps_images: bool = False,
    ) -> None:
        self._type, self._limits = iou_type, tuple(limits)
        self._categories = dict(sorted(categories.items()))
        self._frequency = frequency or {}
        self._objects = {category: np.zeros(len(AREAS), np.int64) for category in self._categories}
        self._rows = RowsByCategory()
        self._image_ids: list[int] | None = [] if keeps_images else None
        self._object_counts: dict[int, list[tuple[int, NDArray[np.int64]]]] = {}

    def add(
        self,
        image: int,
        objects: ImageAnnotations,
        detections: ImageAnnotations,
        ious: _Floats,
        lenient: frozenset[int] = frozenset(),
    ) -> None:
        """Add one image.

        Args:
            image: Id of the image in the truth, which orders equal scores.
            objects: Objects of the truth.
            detections: Detections of the label set.
            ious: (detections, objects) float64.
            lenient: Categories of which the truth does not have every object.
        """
        areas, object_areas = detections.areas[self._type], objects.areas[self._type]
        if self._image_ids is not None:
            self._image_ids.append(image)
        for category in np.union1d(objects.class_ids, detections.class_ids).tolist():
            if category not in self._categories:
                continue
            truth = np.flatnonzero(objects.class_ids == category)  # indices of this category's objects
            order = np.flatnonzero(detections.class_ids == category)  # indices of its detections, best first
            order = order[np.argsort(-detections.scores[order], kind="stable")][: self._limits[-1]]
            truth_areas, ignore = object_areas[truth], objects.ignore[truth]
            counted = ~ignore & (truth_areas >= _AREA_RANGES[:, :1]) & (truth_areas <= _AREA_RANGES[:, 1:])
            self._objects[category] += counted.sum(axis=1)
            if self._image_ids is not None and len(truth):
                self._object_counts.setdefault(category, []).append((image, counted.sum(axis=1)))
            bits = MatchBits.none_set(len(order))
            _kernels_many.match(
                np.ascontiguousarray(ious[np.ix_(order, truth)]), truth_areas, objects.crowd[truth], ignore,
                areas[order], _AREA_RANGES, IOUS, category in lenient, bits.matched, bits.ignored,
            )  # fmt: skip
            rows = np.zeros(len(order), ROW)
            rows["score"], rows["image"], rows["rank"] = detections.scores[order], image, np.arange(len(order))
            rows["matched"], rows["ignored"] = bits.matched, bits.ignored
            self._rows.add(category, rows)

    def scores(self, *, curves: bool = False) -> Scores:
        """Return the scores of all images so far. curves: also the precision at each recall."""
        bins = np.zeros((3, BINS))
        by_class: dict[str, PrecisionRecall] = {}
        frequency: dict[str, str] = {}
        for category, name in self._categories.items():
            curve = PrecisionRecall(self._limits, self._objects[category])
            for rows in self._rows.of(category):
                curve.add(rows)
                bins += _binned(rows)
            if curve.objects[0]:
                by_class[name] = curve
                if category in self._frequency:
                    frequency[name] = self._frequency[category]
        return replace(_summary(by_class, frequency, bins, curves), limits=self._limits)

    def tallies(self) -> ImageTallies:
        """Return what was matched in each image, for intervals and slices. Needs keeps_images."""
        assert self._image_ids is not None
        ids = np.array(sorted(self._image_ids), np.int64)
        classes: dict[str, ClassTally] = {}
        for category, name in self._categories.items():
            if not self._objects[category][0]:
                continue
            rows = np.concatenate(list(self._rows.of(category)))
            counts = self._object_counts[category]
            classes[name] = ClassTally(
                np.searchsorted(ids, rows["image"]).astype(np.int32),
                np.ascontiguousarray(rows["matched"]),
                np.ascontiguousarray(rows["ignored"]),
                np.searchsorted(ids, np.array([image for image, _ in counts], np.int64)).astype(np.int64),
                np.stack([of_areas for _, of_areas in counts]),
            )
        return ImageTallies(ids, classes, len(IOUS), RECALLS)

    def thresholds(self, goal: Goal, threshold: int = 0) -> Mapping[str, ClassThresholds]:
        """Return the thresholds of each class with objects. threshold: an index into IOUS, of right detections."""
        by_class: dict[str, ClassThresholds] = {}
        for category, name in self._categories.items():
            if not (objects := int(self._objects[category][0])):
                continue
            search = ThresholdSearch(objects, goal)
            for rows in self._rows.of(category):
                bits = MatchBits.of_rows(rows)
                counted = bits.counted(0, threshold)
                search.add(rows["score"][counted], bits.has_object(0, threshold)[counted])
            by_class[name] = search.result()
        return by_class


class RowsByCategory:
    """Rows by category, in memory. Beyond _IN_MEMORY_ROWS each category has a temporary file."""

    def __init__(self) -> None:
        self._waiting: dict[int, list[bytes]] = {}  # smaller and faster to join than arrays of a few rows
        self._count = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def add(self, category: int, rows: NDArray[Any]) -> None:
        if len(rows):
            self._waiting.setdefault(category, []).append(rows.tobytes())
            self._count += len(rows)
        if self._count > _IN_MEMORY_ROWS:
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix="segray-")
            for waiting_category, parts in self._waiting.items():
                with self._file(waiting_category).open("ab") as file:
                    file.writelines(parts)
            self._waiting, self._count = {}, 0

    def of(self, category: int) -> Iterator[NDArray[Any]]:
        """Yield a category's rows in pieces, by falling score; equal scores are ordered by image."""
        total = self._total(category)
        if total <= _SORTED_ROWS:
            yield _sorted(np.concatenate(list(self._parts(category))))
            return
        # A sample gives the bounds of the pieces. Each piece is picked out of all rows.
        step = -(-total // _SAMPLED_ROWS)
        sample = _sorted(np.concatenate([part[::step].copy() for part in self._parts(category)]))
        pieces = -(-total // _SORTED_ROWS)
        ends = np.zeros(2, ROW)
        ends["score"] = np.inf, -np.inf
        bounds = [ends[0], *sample[[len(sample) * k // pieces for k in range(1, pieces)]], ends[1]]
        for first, end in itertools.pairwise(bounds):
            piece = [part[_not_before(part, first) & ~_not_before(part, end)] for part in self._parts(category)]
            yield _sorted(np.concatenate(piece))

    def _total(self, category: int) -> int:
        size_bytes = sum(map(len, self._waiting.get(category, [])))
        if self._has_file(category):
            size_bytes += self._file(category).stat().st_size
        return size_bytes // ROW.itemsize

    def _parts(self, category: int) -> Iterator[NDArray[Any]]:
        """Yield all rows in pieces, in the order of their addition."""
        if self._has_file(category):
            with self._file(category).open("rb") as file:  # Read, not mapped, because mapped pages count as memory.
                while len(rows := np.fromfile(file, ROW, _SORTED_ROWS)):
                    yield rows
        yield np.frombuffer(b"".join(self._waiting.get(category, [])), ROW)

    def _has_file(self, category: int) -> bool:
        return self._folder is not None and self._file(category).exists()

    def _file(self, category: int) -> Path:
        assert self._folder is not None
        return Path(self._folder.name, f"{category}.rows")


def _not_before(rows: NDArray[Any], bound: Any) -> NDArray[np.bool_]:
    """Return which rows have a lower score than the row `bound`, or the same score and no earlier image."""
    score = rows["score"]
    return np.asarray((score < bound["score"]) | ((score == bound["score"]) & (rows["image"] >= bound["image"])))


def _sorted(rows: NDArray[Any]) -> NDArray[Any]:
    return rows[np.lexsort((rows["rank"], rows["image"], -rows["score"]))]


class PrecisionRecall:
    """Precision and recall of one category, from detections by falling score.

    precision: (areas, IoUs, recalls) at the last limit.
    recall: (limits + areas - 1, IoUs), first all areas at each limit, then each other area at the last limit.
    """

    def __init__(self, limits: Sequence[int], objects: NDArray[np.int64]) -> None:
        self.objects = objects
        # All areas at each limit, then small, medium and large at the last limit.
        self._cases = [(0, limit) for limit in limits] + [(area, limits[-1]) for area in range(1, len(AREAS))]
        self._right = np.zeros((len(self._cases), len(IOUS)), np.int64)
        self._wrong = np.zeros_like(self._right)
        self._limits = len(limits)
        self._best = np.zeros((len(AREAS), len(IOUS), len(RECALLS) + 1))

    def add(self, rows: NDArray[Any]) -> None:
        """Add rows whose scores are not higher than those of the rows before."""
        for case, (area, limit) in enumerate(self._cases):
            if not self.objects[area]:
                continue
            has_all = rows["rank"].max(initial=0) < limit
            bits = MatchBits.of_rows(rows if has_all else rows[rows["rank"] < limit])
            for threshold in range(len(IOUS)):
                right = bits.has_object(area, threshold)[bits.counted(area, threshold)]
                if case >= self._limits - 1:
                    right_before, wrong_before = self._right[case, threshold], self._wrong[case, threshold]
                    best, objects = self._best[area, threshold], int(self.objects[area])
                    update_best(best, objects, right, int(right_before), int(wrong_before))
                count = int(right.sum())
                self._right[case, threshold] += count
                self._wrong[case, threshold] += len(right) - count

    @property
    def precision(self) -> _Floats:
        """Return the best precision at each recall or a higher one; -1 without objects."""
        best = np.maximum.accumulate(self._best[..., :0:-1], axis=-1)[..., ::-1]
        return np.where(self.objects[:, None, None] > 0, best, -1)

    def recall(self, case: int) -> _Floats:
        """Return the recall by IoU, -1 without objects. case: the index of a limit; if negative, of an area."""
        area = self._cases[case][0]
        return self._right[case] / self.objects[area] if self.objects[area] else np.full(len(IOUS), -1.0)


def update_best(
    best: _Floats,
    objects: int,
    right: NDArray[np.bool_],
    right_before: int,
    wrong_before: int,
    recalls: _Floats = RECALLS,
) -> None:
    """Update the best precision between each two neighbours of the recalls.

    best: (recalls + 1,), updated in place. objects: number of objects, above 0. right: (n,) bool, of the next n
    detections by falling score. right_before, wrong_before: number of the detections before.
    """
    rows = np.flatnonzero(right)  # Precision is greatest where a detection is right.
    if not len(rows):
        return
    hits = right_before + np.arange(1, len(rows) + 1)
    precision = hits / (hits + wrong_before + rows - np.arange(len(rows)) + np.spacing(1))
    bins = np.searchsorted(recalls, hits / objects, side="right")
    starts = np.flatnonzero(np.diff(bins, prepend=-1))
    best[bins[starts]] = np.maximum(best[bins[starts]], np.maximum.reduceat(precision, starts))


def _binned(rows: NDArray[Any]) -> _Floats:
    """Return (3, BINS): number of detections, sum of scores and number of right ones, at IoU .50 for all areas."""
    bits = MatchBits.of_rows(rows)
    counted = bits.counted(0, 0)
    scores, right = rows["score"][counted], bits.has_object(0, 0)[counted].astype(np.float64)
    bins = np.clip((scores * BINS).astype(np.int64), 0, BINS - 1)
    return np.array([np.bincount(bins, weights, BINS) for weights in (None, scores, right)])


def _summary(
    by_class: Mapping[str, PrecisionRecall], frequency: Mapping[str, str], bins: _Floats, with_curves: bool
) -> Scores:
    """Return the scores of all classes. Raise SourceError if no object counts.

    frequency: LVIS's r, c or f by class name. bins: as `_binned` returns them.
    """
    if not by_class:
        raise SourceError(
            "no object of the evaluated images counts, so precision is undefined",
            found="every object is a crowd or is ignored",
            hint="give a truth with objects that are no crowds (iscrowd: 0)",
        )
    precision = {name: curve.precision for name, curve in by_class.items()}
    all_classes = np.stack(list(precision.values()))  # (classes, areas, IoUs, recalls)
    areas = {name: _mean(all_classes[:, k]) for k, name in enumerate(AREAS)}
    recalls = [_mean(np.stack([curve.recall(case) for curve in by_class.values()])) for case in (0, 1, 2, -3, -2, -1)]
    by_frequency = {
        word: _mean(np.stack(values))
        for letter, word in (("r", "rare"), ("c", "common"), ("f", "frequent"))
        if (values := [precision[name][0] for name in frequency if frequency[name] == letter])
    }
    return Scores(
        ap=areas["all"] or 0.0,
        ap50=_mean(all_classes[:, 0, 0]) or 0.0,
        ap75=_mean(all_classes[:, 0, 5]) or 0.0,
        ap_small=areas["small"],
        ap_medium=areas["medium"],
        ap_large=areas["large"],
        ar1=recalls[0] or 0.0,
        ar10=recalls[1] or 0.0,
        ar100=recalls[2] or 0.0,
        ar_small=recalls[3],
        ar_medium=recalls[4],
        ar_large=recalls[5],
        class_ap={name: float(values[0].mean()) for name, values in precision.items()},
        class_ap50={name: float(values[0, 0].mean()) for name, values in precision.items()},
        class_ar={name: float(curve.recall(2).mean()) for name, curve in by_class.items()},
        class_sizes={
            name: (_mean(values[1]), _mean(values[2]), _mean(values[3])) for name, values in precision.items()
        },
        frequency_ap={word: value for word, value in by_frequency.items() if value is not None},
        calibration=_calibration(bins),
        curves={
            name: {"0.50": np.round(values[0, 0], 6).tolist(), "0.75": np.round(values[0, 5], 6).tolist()}
            for name, values in (precision.items() if with_curves else ())
        },
    )


def _mean(values: _Floats) -> float | None:
    """Return the mean of the values that are not -1; None if there are none."""
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else None


def _calibration(bins: _Floats) -> Calibration:
    counts, scores, right = bins
    mean_scores = [float(total / count) if count else None for count, total in zip(counts, scores, strict=True)]
    precision = [float(hits / count) if count else None for count, hits in zip(counts, right, strict=True)]
    error = float(np.abs(right - scores).sum() / max(counts.sum(), 1))
    return Calibration([int(count) for count in counts], mean_scores, precision, error)
