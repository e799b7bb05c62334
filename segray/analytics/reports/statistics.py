"""Statistics of a label set from one pass over each of its tables: the numbers of a report, and candidate images.

This module knows two tables and bounded counts of them. Pictures and pages belong to other modules.
Memory does not grow with the rows. Classes, kinds of failure and runs are counted.
A fair sample of the images is kept, and a few extreme images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from segray.analytics.query.key_ranges import NO_METADATA_CACHE
from segray.label_set.snapshot import Snapshot

SCORE_BINS = 20
# Upper ends of bins: instances in an image, millions of pixels in an image, square root of a mask's pixels.
PER_IMAGE = (0, 1, 2, 3, 5, 10, 20, 50, 100)
MEGAPIXELS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)
SIDES_PX = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
SIZES = ("small", "medium", "large")
_SIZE_ENDS = (32**2, 96**2)  # COCO's
_SAMPLED, _EXTREME, _EXAMPLES = 4096, 64, 3
# Larger images are not shown: drawing one takes gigabytes of memory.
MOST_PIXELS = 64_000_000


@dataclass(frozen=True)
class Kind:
    """A kind of failure. examples: key and message of the first few."""

    stage: str
    error: str
    count: int
    examples: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Class:
    """The statistics of one class.

    scores: (SCORE_BINS,) counts in equal bins of 0..1. sizes: number of small, medium and large instances, by COCO's
    sizes. surest: key of the image with the class's best score.
    """

    name: str
    instances: int
    mean_score: float
    scores: NDArray[np.int64] = field(repr=False)
    sizes: tuple[int, int, int]
    best_score: float
    surest: str


@dataclass(frozen=True)
class Span:
    """The images that a run left in the label set, and the times when the first and the last were labelled."""

    run_id: str
    images: int
    first: datetime
    last: datetime


@dataclass(frozen=True)
class ReportCandidate:
    """An image that may be shown.

    pixels: width times height. score: mean of its instances; None if unknown.
    """

    key: str
    instances: int
    pixels: int
    score: float | None = None


@dataclass(frozen=True)
class LabelSetStats:
    """The statistics of one label set.

    classes: by id, those that occur. per_image, megapixels: histograms of images that did not fail.
    sides: histogram of the square root of masks' pixels. The three have one count more than there are ends.
    scores: (SCORE_BINS,) counts of instances.
    sample: drawn evenly from the images with instances, by their hashes.
    crowded, wide, bare: images with the most instances, with the most pixels, and without instances.
    """

    statuses: Mapping[str, int]
    bytes: int
    failures: Sequence[Kind]
    runs: Sequence[Span]
    classes: Mapping[int, Class]
    per_image: NDArray[np.int64]
    megapixels: NDArray[np.int64]
    sides: NDArray[np.int64]
    scores: NDArray[np.int64]
    sample: Sequence[ReportCandidate]
    crowded: Sequence[ReportCandidate]
    wide: Sequence[ReportCandidate]
    bare: Sequence[ReportCandidate]

    @property
    def images(self) -> int:
        """Return the number of images."""
        return sum(self.statuses.values())

    @property
    def instances(self) -> int:
        """Return the number of instances."""
        return sum(each.instances for each in self.classes.values())

    @property
    def mean_score(self) -> float | None:
        """Return the mean over all instances; None if there are none."""
        whole = sum(each.mean_score * each.instances for each in self.classes.values())
        return whole / self.instances if self.instances else None

    @property
    def usual_instances(self) -> int:
        """Return the median number of instances in the sampled images."""
        return int(np.median([each.instances for each in self.sample])) if self.sample else 0


def compute_stats(shown: Snapshot) -> LabelSetStats:
    """Count a label set in one pass over its images and one over its instances."""
    images = _ImageCounts()
    columns = [
        "image_id", "image_key", "bytes", "width", "height", "status", "n_instances", "stage", "error", "message",
        "run_id", "labelled_at",
    ]  # fmt: skip
    for batch in shown.images.to_batches(columns=columns, **NO_METADATA_CACHE):
        if batch.num_rows:
            images.add(pa.table(batch))
    instances = _InstanceCounts(images.sample.keys)
    columns = ["image_key", "class_id", "class_name", "score", "area"]
    for batch in shown.instances.to_batches(columns=columns, **NO_METADATA_CACHE):
        if batch.num_rows:
            instances.add(batch)
    return LabelSetStats(
        statuses=images.statuses,
        bytes=images.bytes,
        failures=images.kinds(),
        runs=images.spans(),
        classes=instances.classes(),
        per_image=images.per_image,
        megapixels=images.megapixels,
        sides=instances.sides,
        scores=instances.scores,
        sample=[_candidate(row, instances.mean_of(i)) for i, row in enumerate(images.sample.rows)],
        crowded=[_candidate(row) for row in images.crowded.rows],
        wide=[_candidate(row) for row in images.wide.rows],
        bare=[_candidate(row) for row in images.bare.rows],
    )


def _candidate(row: Mapping[str, Any], score: float | None = None) -> ReportCandidate:
    return ReportCandidate(row["image_key"], row["n_instances"], row["pixels"], score)


def _binned(values: NDArray[Any], ends: Sequence[float]) -> NDArray[np.int64]:
    """Return the number of values at most each end and above the one before, (ends + 1,) int64.

    The last count is of values above all ends.
    """
    return np.bincount(np.searchsorted(ends, values), minlength=len(ends) + 1).astype(np.int64)


class _First:
    """The first `most` rows by an order, of all rows that were added."""

    _COLUMNS = ("image_id", "image_key", "n_instances", "pixels")

    def __init__(self, most: int, *order: tuple[str, str]) -> None:
        self._most, self._order = most, [*order, ("image_id", "ascending")]
        self._kept: pa.Table | None = None

    def add(self, table: pa.Table) -> None:
        table = table.select(list(self._COLUMNS))
        both = table if self._kept is None else pa.concat_tables([self._kept, table])
        self._kept = both.take(pc.select_k_unstable(both, self._most, self._order)) if len(both) else both

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [] if self._kept is None else self._kept.to_pylist()

    @property
    def keys(self) -> pa.Array:
        none = pa.array([], pa.string())
        return none if self._kept is None else pa.concat_arrays(self._kept.column("image_key").chunks or [none])


class _ImageCounts:
    """Counts of the table of images."""

    def __init__(self) -> None:
        self.statuses: dict[str, int] = {}
        self.bytes = 0
        self.per_image = np.zeros(len(PER_IMAGE) + 1, np.int64)
        self.megapixels = np.zeros(len(MEGAPIXELS) + 1, np.int64)
        self.sample, self.bare = _First(_SAMPLED), _First(_EXTREME)
        self.crowded = _First(_EXTREME, ("n_instances", "descending"))
        self.wide = _First(_EXTREME, ("pixels", "descending"))
        self._failures: dict[tuple[str, str], tuple[int, list[tuple[str, str]]]] = {}
        self._runs: dict[str, tuple[int, datetime, datetime]] = {}

    def add(self, rows: pa.Table) -> None:
        for found in pc.value_counts(rows.column("status")).to_pylist():
            self.statuses[found["values"]] = self.statuses.get(found["values"], 0) + found["counts"]
        self.bytes += int(pc.sum(pc.max_element_wise(rows.column("bytes"), 0)).as_py() or 0)
        self._add_runs(rows)
        failed = pc.equal(rows.column("status"), "failed")
        self._add_failures(rows.filter(failed))
        read = rows.filter(pc.invert(failed))
        pixels = pc.multiply(read.column("width").cast(pa.int64()), read.column("height").cast(pa.int64()))
        self.per_image += _binned(read.column("n_instances").to_numpy(), PER_IMAGE)
        self.megapixels += _binned(pixels.to_numpy() / 1e6, MEGAPIXELS)
        read = read.append_column("pixels", pixels).filter(pc.less_equal(pixels, MOST_PIXELS))
        some = pc.greater(read.column("n_instances"), 0)
        for kept in (self.sample, self.crowded, self.wide):
            kept.add(read.filter(some))
        self.bare.add(read.filter(pc.invert(some)))

    def _add_failures(self, rows: pa.Table) -> None:
        columns = [pc.fill_null(rows.column(name), "").to_pylist() for name in ("stage", "error")]
        for i, kind in enumerate(zip(*columns, strict=True)):
            number, examples = self._failures.get(kind, (0, []))
            if number < _EXAMPLES:
                row = rows.slice(i, 1)
                examples.append((row.column("image_key")[0].as_py(), row.column("message")[0].as_py() or ""))
            self._failures[kind] = number + 1, examples

    def _add_runs(self, rows: pa.Table) -> None:
        sums = [("labelled_at", "count"), ("labelled_at", "min"), ("labelled_at", "max")]
        for found in rows.group_by("run_id").aggregate(sums).to_pylist():
            images, first, last = (found[f"labelled_at_{name}"] for name in ("count", "min", "max"))
            before = self._runs.get(found["run_id"], (0, first, last))
            self._runs[found["run_id"]] = before[0] + images, min(before[1], first), max(before[2], last)

    def kinds(self) -> list[Kind]:
        """Return the kinds of failure, the most common first."""
        found = [Kind(*kind, number, examples) for kind, (number, examples) in self._failures.items()]
        return sorted(found, key=lambda each: (-each.count, each.stage, each.error))

    def spans(self) -> list[Span]:
        """Return the runs whose rows are here, the latest first."""
        return [Span(name, *self._runs[name]) for name in sorted(self._runs, reverse=True)]


class _InstanceCounts:
    """Counts of the table of instances. sampled: keys of the images whose mean scores are needed."""

    def __init__(self, sampled: pa.Array) -> None:
        self.scores = np.zeros(SCORE_BINS, np.int64)
        self.sides = np.zeros(len(SIDES_PX) + 1, np.int64)
        self._sampled = sampled
        self._sums, self._counts = np.zeros(len(sampled)), np.zeros(len(sampled), np.int64)
        self._classes: dict[int, _Class] = {}

    def add(self, rows: pa.RecordBatch) -> None:
        scores = rows.column("score").to_numpy().astype(np.float64)
        areas, ids = rows.column("area").to_numpy(), rows.column("class_id").to_numpy()
        bins = np.clip((scores * SCORE_BINS).astype(np.int64), 0, SCORE_BINS - 1)
        self.scores += np.bincount(bins, minlength=SCORE_BINS)
        self.sides += _binned(np.sqrt(areas), SIDES_PX)
        place = pc.index_in(rows.column("image_key"), value_set=self._sampled)
        known = np.flatnonzero(place.is_valid().to_numpy(zero_copy_only=False))
        where = place.drop_null().to_numpy()
        np.add.at(self._sums, where, scores[known])
        np.add.at(self._counts, where, 1)
        sizes = np.searchsorted(_SIZE_ENDS, areas, side="right")
        for number in np.unique(ids).tolist():  # Mostly one class: a file holds one class.
            here = np.flatnonzero(ids == number)
            known_class = self._classes.setdefault(number, _Class(rows.column("class_name")[int(here[0])].as_py()))
            known_class.add(scores[here], bins[here], sizes[here])
            best = int(here[np.argmax(scores[here])])
            if scores[best] > known_class.best_score:
                known_class.best_score, known_class.surest = float(scores[best]), rows.column("image_key")[best].as_py()

    def mean_of(self, sampled: int) -> float | None:
        return float(self._sums[sampled] / self._counts[sampled]) if self._counts[sampled] else None

    def classes(self) -> dict[int, Class]:
        return {number: self._classes[number].result() for number in sorted(self._classes)}


class _Class:
    def __init__(self, name: str) -> None:
        self.name, self.best_score, self.surest = name, -1.0, ""
        self._sum, self._scores, self._sizes = 0.0, np.zeros(SCORE_BINS, np.int64), np.zeros(3, np.int64)

    def add(self, scores: NDArray[np.float64], bins: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
        self._sum += float(scores.sum())
        self._scores += np.bincount(bins, minlength=SCORE_BINS)
        self._sizes += np.bincount(sizes, minlength=3)

    def result(self) -> Class:
        small, medium, large = self._sizes.tolist()
        number = small + medium + large
        return Class(
            self.name, number, self._sum / number, self._scores, (small, medium, large), self.best_score, self.surest
        )
