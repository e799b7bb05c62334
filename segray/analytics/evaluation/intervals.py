"""Average precision of samples of images: intervals by bootstrap, differences of two label sets, slices.

This module knows what was matched in each image, and resamples images. Nothing is matched again. coco_eval matches.
Each detection takes 20 bytes of memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from segray.errors import UserError
from segray.masks import _kernels_scores

RESAMPLES = 2000
FEW_IMAGES = 10  # fewer images have no interval
_SHARE = 0.95
_AT_ONCE = 250  # samples whose weights are in memory together
_Ints = NDArray[np.int64]
_Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ClassTally:
    """The matched detections of one class, and its objects.

    images: (n,) int32, index of the image of each detection, by falling score. matched, ignored: (n,) uint64, as in
    coco_eval.MatchBits. object_images: (m,) int64, indices of the images with objects. objects: (m, areas) int64.
    """

    images: NDArray[np.int32]
    matched: NDArray[np.uint64]
    ignored: NDArray[np.uint64]
    object_images: _Ints
    objects: _Ints


@dataclass(frozen=True, eq=False)
class ImageTallies:
    """What was matched in each image, for one IoU type.

    ids: (images,) int64, ids of the evaluated images, ascending. classes: by name, of the classes with objects. ious,
    recalls: those of coco_eval.
    """

    ids: _Ints
    classes: Mapping[str, ClassTally]
    ious: int
    recalls: _Floats = field(repr=False)

    def precision(self, weights: NDArray[np.int32], area: int = 0) -> _Floats:
        """Return the AP of samples of images, (samples, classes, 2): mean over all IoUs, and at the first IoU.

        NaN stands for a class without objects in a sample. weights: (samples, images) int32, how often a sample has an
        image. area: an index into coco_eval.AREAS.
        """
        weights = np.ascontiguousarray(weights, np.int32)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            by_class = pool.map(lambda tally: self._class_precision(tally, weights, area), self.classes.values())
            return np.asarray(np.stack(list(by_class), axis=1))

    def _class_precision(self, tally: ClassTally, weights: NDArray[np.int32], area: int) -> _Floats:
        objects = weights[:, tally.object_images].astype(np.int64) @ tally.objects[:, area]
        values = np.full((len(weights), 2), np.nan)
        rows = np.flatnonzero(objects)
        precision, of_rows = np.zeros((len(rows), self.ious)), np.ascontiguousarray(weights[rows])
        _kernels_scores.average_precision(
            tally.images, tally.matched, tally.ignored, area * self.ious, self.ious, of_rows, objects[rows],
            self.recalls, precision,
        )  # fmt: skip
        values[rows] = np.stack([precision.mean(axis=1), precision[:, 0]], axis=1)
        return values

    def images_with(self, name: str) -> int:
        """Return the number of images with objects of a class."""
        return int((self.classes[name].objects[:, 0] > 0).sum())


@dataclass(frozen=True)
class Interval:
    """A figure with the interval that holds it in 95 % of samples.

    low, high: None where there are too few images, or no interval is asked for. images: number of images that the
    figure is of; for a class, of those with objects of the class.
    """

    value: float
    low: float | None
    high: float | None
    images: int

    @property
    def is_of_few_images(self) -> bool:
        """Return whether there are too few images for an interval."""
        return self.images < FEW_IMAGES

    @property
    def is_clear(self) -> bool:
        """Return whether the interval leaves out 0: a difference that is not chance."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Intervals:
    """Intervals of AP by bootstrap over images, for one IoU type.

    ap, ap50: of all classes. class_ap: by class name. resamples: number of samples of images.
    """

    ap: Interval
    ap50: Interval
    class_ap: Mapping[str, Interval]
    resamples: int


@dataclass(frozen=True)
class Slice:
    """A part of the images or of the objects, with its AP.

    by: what the parts differ by. name: of the part. ap: None where the part has no object. objects: number of objects.
    """

    by: str
    name: str
    objects: int
    ap50: float | None
    ap: Interval | None


def check_resamples(resamples: int) -> int:
    """Return the number of samples. Raise UserError for too few to give an interval."""
    if resamples and resamples < 100:
        raise UserError("too few samples for an interval", where="--resamples", found=str(resamples), hint="give 2000")
    return resamples


def intervals(tallies: ImageTallies, resamples: int = RESAMPLES, seed: int = 0) -> Intervals:
    """Return the intervals of one label set. seed: of the samples. The same seed gives the same intervals."""
    sampled = np.concatenate([tallies.precision(w) for w in _samples(len(tallies.ids), resamples, seed)])
    return _intervals(tallies, _whole(tallies), sampled)


def difference(a: ImageTallies, b: ImageTallies, resamples: int = RESAMPLES, seed: int = 0) -> Intervals:
    """Return the AP of B less the AP of A, with intervals. Both are measured on the same samples of images.

    Raise UserError unless both have the same images and classes.
    """
    if not np.array_equal(a.ids, b.ids) or a.classes.keys() != b.classes.keys():
        raise UserError(
            "the two label sets are not compared on the same images", found=f"{len(a.ids)} and {len(b.ids)} images",
            hint="leave out --labelled-only, so that images without labels count in both",
        )  # fmt: skip
    sampled = [(a.precision(weights), b.precision(weights)) for weights in _samples(len(a.ids), resamples, seed)]
    before, after = (np.concatenate(parts) for parts in zip(*sampled, strict=True))
    return _intervals(a, _whole(b) - _whole(a), after - before)


def slices(
    tallies: ImageTallies, by: str, groups: Mapping[str, Sequence[int]], resamples: int, seed: int = 0
) -> list[Slice]:
    """Return the AP of groups of images, the group with most objects first. groups: ids of the images by name."""
    parts = []
    for name, ids in groups.items():
        members = np.searchsorted(tallies.ids, np.array(sorted(ids), np.int64))
        parts.append(_slice(tallies, by, name, members, 0, resamples, seed))
    return sorted(parts, key=lambda part: (-part.objects, part.name))


def size_slices(tallies: ImageTallies, areas: Sequence[str], resamples: int, seed: int = 0) -> list[Slice]:
    """Return the AP of the objects of each area. areas: names, in the order of coco_eval.AREAS."""
    everything = np.arange(len(tallies.ids))
    return [
        _slice(tallies, "size", name, everything, area, resamples, seed) for area, name in enumerate(areas) if area > 0
    ]


def class_slices(tallies: ImageTallies, resamples: int, seed: int = 0) -> list[Slice]:
    """Return the AP of each class."""
    ap50 = tallies.precision(np.ones((1, len(tallies.ids)), np.int32))[0, :, 1]
    by_class = intervals(tallies, resamples, seed).class_ap if resamples else None
    parts = []
    for (name, tally), value50, value in zip(tallies.classes.items(), ap50, _whole(tallies)[:, 0], strict=True):
        interval = Interval(float(value), None, None, tallies.images_with(name)) if by_class is None else by_class[name]
        parts.append(Slice("class", name, int(tally.objects[:, 0].sum()), float(value50), interval))
    return sorted(parts, key=lambda part: (-part.objects, part.name))


def _slice(tallies: ImageTallies, by: str, name: str, members: _Ints, area: int, resamples: int, seed: int) -> Slice:
    weights = np.zeros((1, len(tallies.ids)), np.int32)
    weights[0, members] = 1
    values = tallies.precision(weights, area)[0]
    objects = sum(int(weights[0, t.object_images] @ t.objects[:, area]) for t in tallies.classes.values())
    if not objects:
        return Slice(by, name, 0, None, None)
    low = high = None
    if resamples and len(members) >= FEW_IMAGES:
        sampled = []
        for drawn in _samples(len(members), resamples, seed):
            of_slice = np.zeros((len(drawn), len(tallies.ids)), np.int32)
            of_slice[:, members] = drawn
            sampled.append(tallies.precision(of_slice, area))
        low, high = _bounds(_mean_of_classes(np.concatenate(sampled))[:, 0])
    ap, ap50 = _mean_of_classes(values[None])[0]
    return Slice(by, name, objects, float(ap50), Interval(float(ap), low, high, len(members)))


def _whole(tallies: ImageTallies) -> _Floats:
    """Return the AP of all images, (classes, 2)."""
    return np.asarray(tallies.precision(np.ones((1, len(tallies.ids)), np.int32))[0])


def _samples(images: int, resamples: int, seed: int) -> Iterator[NDArray[np.int32]]:
    """Yield samples of images with replacement, in pieces of weights, (samples, images) int32."""
    random = np.random.default_rng(seed)
    for start in range(0, resamples, _AT_ONCE):
        drawn = random.integers(0, images, (min(_AT_ONCE, resamples - start), images))
        yield np.stack([np.bincount(row, minlength=images) for row in drawn]).astype(np.int32)


def _intervals(tallies: ImageTallies, whole: _Floats, sampled: _Floats) -> Intervals:
    """Return the intervals. whole: (classes, 2). sampled: (samples, classes, 2)."""
    means, images = _mean_of_classes(sampled), len(tallies.ids)
    value = np.nanmean(whole, axis=0)
    total = [_interval(float(value[k]), means[:, k], images) for k in range(2)]
    by_class = {
        name: _interval(float(whole[k, 0]), sampled[:, k, 0], tallies.images_with(name))
        for k, name in enumerate(tallies.classes)
    }
    return Intervals(total[0], total[1], by_class, len(sampled))


def _interval(value: float, sampled: _Floats, images: int) -> Interval:
    without = Interval(value, None, None, images)
    return without if without.is_of_few_images else Interval(value, *_bounds(sampled), images)


def _bounds(sampled: _Floats) -> tuple[float, float]:
    """Return the ends of the interval that holds 95 % of the samples. Samples without objects do not count."""
    low, high = np.nanquantile(sampled, [(1 - _SHARE) / 2, (1 + _SHARE) / 2])
    return float(low), float(high)


def _mean_of_classes(sampled: _Floats) -> _Floats:
    """Return the mean over the classes with objects in a sample, (samples, 2)."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.nansum(sampled, axis=1) / (~np.isnan(sampled)).sum(axis=1))
