"""Statistics of a label set from one pass over each of its tables: the numbers of a report, and candidate images.

This module knows the tables `images` and `instances`. Pictures and pages belong to other modules.
Memory does not grow with the rows. The statistics hold counts by class, kind of failure and run,
a random sample of the images, and a few extreme images.
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
from segray.limits import CONFIDENT_SCORE

SCORE_BINS = 20
# Upper ends of bins: instances in an image, millions of pixels in an image, square root of a mask's pixels.
PER_IMAGE = (0, 1, 2, 3, 5, 10, 20, 50, 100)
MEGAPIXELS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)
SIDES_PX = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
SIZES = ("small", "medium", "large")
_SIZE_ENDS = (32**2, 96**2)  # COCO's ends of small and medium areas.
# Numbers of images in the sample and in each list of extreme images, and of examples of a kind of failure.
_SAMPLED, _EXTREME, _EXAMPLES = 4096, 64, 3
# Larger images are not shown, because drawing one takes gigabytes of memory.
MOST_PIXELS = 64_000_000


@dataclass(frozen=True)
class FailureKind:
    """A kind of failure.

    count: number of failed images. examples: key and message of the first few images.
    """

    stage: str
    error: str
    count: int
    examples: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class ClassStats:
    """The statistics of one class.

    scores: (SCORE_BINS,) int64, counts in equal bins of 0..1.
    sizes: number of small, medium and large instances, by COCO's sizes.
    surest: key of the image with the best score of the class.
    """

    name: str
    instances: int
    mean_score: float
    scores: NDArray[np.int64] = field(repr=False)
    sizes: tuple[int, int, int]
    best_score: float
    surest: str


@dataclass(frozen=True)
class RunSpan:
    """The images that a run labelled in this label set.

    failed: number of these that failed.
    first, last: times at which the first and the last image were labelled.
    """

    run_id: str
    images: int
    failed: int
    first: datetime
    last: datetime


@dataclass(frozen=True)
class ReportCandidate:
    """An image that a report may show.

    instances: number of instances. pixels: width times height. score: mean score; None if unknown.
    """

    key: str
    instances: int
    pixels: int
    score: float | None = None


@dataclass(frozen=True)
class LabelSetStats:
    """The statistics of one label set.

    statuses: number of images by status.
    bytes: total size of the image files.
    classes: statistics of the classes that occur, by class id.
    per_image: histogram of the instances in an image, with the ends PER_IMAGE.
    megapixels: histogram of the image sizes, with the ends MEGAPIXELS.
    sides: histogram of the square root of the mask areas in pixels, with the ends SIDES_PX.
    scores: (SCORE_BINS,) int64, histogram of the scores of all instances.
    sample: images drawn at random from the images with instances, by their hashes.
    crowded, largest, empty: images with the most instances, with the most pixels, and without instances.

    per_image, megapixels and sides have one count more than ends, for larger values. They leave out failed images.
    """

    statuses: Mapping[str, int]
    bytes: int
    failures: Sequence[FailureKind]
    runs: Sequence[RunSpan]
    classes: Mapping[int, ClassStats]
    per_image: NDArray[np.int64]
    megapixels: NDArray[np.int64]
    sides: NDArray[np.int64]
    scores: NDArray[np.int64]
    sample: Sequence[ReportCandidate]
    crowded: Sequence[ReportCandidate]
    largest: Sequence[ReportCandidate]
    empty: Sequence[ReportCandidate]

    @property
    def images(self) -> int:
        """Return the number of images."""
        return sum(self.statuses.values())

    @property
    def instances(self) -> int:
        """Return the number of instances."""
        return sum(stats.instances for stats in self.classes.values())

    @property
    def confident(self) -> int:
        """Return the number of instances of score CONFIDENT_SCORE and more."""
        return int(self.scores[round(CONFIDENT_SCORE * SCORE_BINS) :].sum())

    @property
    def mean_score(self) -> float | None:
        """Return the mean score of all instances; None without instances."""
        total = sum(stats.mean_score * stats.instances for stats in self.classes.values())
        return total / self.instances if self.instances else None

    @property
    def median_instances(self) -> int:
        """Return the median number of instances in the sampled images."""
        return int(np.median([image.instances for image in self.sample])) if self.sample else 0


def compute_stats(state: Snapshot) -> LabelSetStats:
    """Compute the statistics in one pass over the images and one pass over the instances."""
    images = _ImageCounts()
    columns = [
        "image_id", "image_key", "bytes", "width", "height", "status", "n_instances", "stage", "error", "message",
        "run_id", "labelled_at",
    ]  # fmt: skip
    for batch in state.images.to_batches(columns=columns, **NO_METADATA_CACHE):
        if batch.num_rows:
            images.add(pa.table(batch))
    instances = _InstanceCounts(images.sample.keys)
    columns = ["image_key", "class_id", "class_name", "score", "area"]
    for batch in state.instances.to_batches(columns=columns, **NO_METADATA_CACHE):
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
        largest=[_candidate(row) for row in images.largest.rows],
        empty=[_candidate(row) for row in images.empty.rows],
    )


def _candidate(row: Mapping[str, Any], score: float | None = None) -> ReportCandidate:
    return ReportCandidate(row["image_key"], row["n_instances"], row["pixels"], score)


def _histogram(values: NDArray[Any], ends: Sequence[float]) -> NDArray[np.int64]:
    """Return a histogram, (ends + 1,) int64. A bin holds the values up to its end and above the end before.

    The last bin holds the values above all ends.
    """
    return np.bincount(np.searchsorted(ends, values), minlength=len(ends) + 1).astype(np.int64)


class _TopRows:
    """The first `most` rows of all added rows, in a given order."""

    _COLUMNS = ("image_id", "image_key", "n_instances", "pixels")

    def __init__(self, most: int, *order: tuple[str, str]) -> None:
        self._most, self._order = most, [*order, ("image_id", "ascending")]
        self._kept: pa.Table | None = None

    def add(self, table: pa.Table) -> None:
        table = table.select(list(self._COLUMNS))
        rows = table if self._kept is None else pa.concat_tables([self._kept, table])
        self._kept = rows.take(pc.select_k_unstable(rows, self._most, self._order)) if len(rows) else rows

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [] if self._kept is None else self._kept.to_pylist()

    @property
    def keys(self) -> pa.Array:
        no_keys = pa.array([], pa.string())
        return no_keys if self._kept is None else pa.concat_arrays(self._kept.column("image_key").chunks or [no_keys])


class _ImageCounts:
    """The counts of the table `images`."""

    def __init__(self) -> None:
        self.statuses: dict[str, int] = {}
        self.bytes = 0
        self.per_image = np.zeros(len(PER_IMAGE) + 1, np.int64)
        self.megapixels = np.zeros(len(MEGAPIXELS) + 1, np.int64)
        self.sample, self.empty = _TopRows(_SAMPLED), _TopRows(_EXTREME)
        self.crowded = _TopRows(_EXTREME, ("n_instances", "descending"))
        self.largest = _TopRows(_EXTREME, ("pixels", "descending"))
        self._failures: dict[tuple[str, str], tuple[int, list[tuple[str, str]]]] = {}
        self._runs: dict[str, tuple[int, int, datetime, datetime]] = {}

    def add(self, rows: pa.Table) -> None:
        for entry in pc.value_counts(rows.column("status")).to_pylist():
            status, count = entry["values"], entry["counts"]
            self.statuses[status] = self.statuses.get(status, 0) + count
        self.bytes += int(pc.sum(pc.max_element_wise(rows.column("bytes"), 0)).as_py() or 0)
        failed = pc.equal(rows.column("status"), "failed")
        self._add_runs(rows.append_column("failed", failed))
        self._add_failures(rows.filter(failed))
        labelled = rows.filter(pc.invert(failed))
        pixels = pc.multiply(labelled.column("width").cast(pa.int64()), labelled.column("height").cast(pa.int64()))
        self.per_image += _histogram(labelled.column("n_instances").to_numpy(), PER_IMAGE)
        self.megapixels += _histogram(pixels.to_numpy() / 1e6, MEGAPIXELS)
        candidates = labelled.append_column("pixels", pixels).filter(pc.less_equal(pixels, MOST_PIXELS))
        has_instances = pc.greater(candidates.column("n_instances"), 0)
        for top_rows in (self.sample, self.crowded, self.largest):
            top_rows.add(candidates.filter(has_instances))
        self.empty.add(candidates.filter(pc.invert(has_instances)))

    def _add_failures(self, rows: pa.Table) -> None:
        columns = [pc.fill_null(rows.column(name), "").to_pylist() for name in ("stage", "error")]
        for i, kind in enumerate(zip(*columns, strict=True)):
            count, examples = self._failures.get(kind, (0, []))
            if count < _EXAMPLES:
                row = rows.slice(i, 1)
                examples.append((row.column("image_key")[0].as_py(), row.column("message")[0].as_py() or ""))
            self._failures[kind] = count + 1, examples

    def _add_runs(self, rows: pa.Table) -> None:
        sums = [("labelled_at", "count"), ("failed", "sum"), ("labelled_at", "min"), ("labelled_at", "max")]
        for row in rows.group_by("run_id").aggregate(sums).to_pylist():
            images, failed, first, last = (row[f"{column}_{name}"] for column, name in sums)
            images_before, failed_before, *times = self._runs.get(row["run_id"], (0, 0, first, last))
            first, last = min(times[0], first), max(times[1], last)
            self._runs[row["run_id"]] = images_before + images, failed_before + failed, first, last

    def kinds(self) -> list[FailureKind]:
        """Return the kinds of failure, the most common first."""
        kinds = [FailureKind(*kind, count, examples) for kind, (count, examples) in self._failures.items()]
        return sorted(kinds, key=lambda kind: (-kind.count, kind.stage, kind.error))

    def spans(self) -> list[RunSpan]:
        """Return the runs that labelled images of this label set, the latest first."""
        return [RunSpan(name, *self._runs[name]) for name in sorted(self._runs, reverse=True)]


class _InstanceCounts:
    """The counts of the table `instances`. sampled: keys of the images whose mean scores are needed."""

    def __init__(self, sampled: pa.Array) -> None:
        self.scores = np.zeros(SCORE_BINS, np.int64)
        self.sides = np.zeros(len(SIDES_PX) + 1, np.int64)
        self._sampled = sampled
        self._sums, self._counts = np.zeros(len(sampled)), np.zeros(len(sampled), np.int64)
        self._classes: dict[int, _ClassCounts] = {}

    def add(self, rows: pa.RecordBatch) -> None:
        scores = rows.column("score").to_numpy().astype(np.float64)
        areas, ids = rows.column("area").to_numpy(), rows.column("class_id").to_numpy()
        bins = np.clip((scores * SCORE_BINS).astype(np.int64), 0, SCORE_BINS - 1)
        self.scores += np.bincount(bins, minlength=SCORE_BINS)
        self.sides += _histogram(np.sqrt(areas), SIDES_PX)
        sample_indices = pc.index_in(rows.column("image_key"), value_set=self._sampled)
        is_sampled = np.flatnonzero(sample_indices.is_valid().to_numpy(zero_copy_only=False))
        sample_indices = sample_indices.drop_null().to_numpy()
        np.add.at(self._sums, sample_indices, scores[is_sampled])
        np.add.at(self._counts, sample_indices, 1)
        sizes = np.searchsorted(_SIZE_ENDS, areas, side="right")
        for class_id in np.unique(ids).tolist():  # Usually one class, because a data file holds one class.
            of_class = np.flatnonzero(ids == class_id)
            class_name = rows.column("class_name")[int(of_class[0])].as_py()
            counts = self._classes.setdefault(class_id, _ClassCounts(class_name))
            counts.add(scores[of_class], bins[of_class], sizes[of_class])
            best = int(of_class[np.argmax(scores[of_class])])
            if scores[best] > counts.best_score:
                counts.best_score, counts.surest = float(scores[best]), rows.column("image_key")[best].as_py()

    def mean_of(self, sampled: int) -> float | None:
        return float(self._sums[sampled] / self._counts[sampled]) if self._counts[sampled] else None

    def classes(self) -> dict[int, ClassStats]:
        return {class_id: self._classes[class_id].result() for class_id in sorted(self._classes)}


class _ClassCounts:
    """The counts of one class."""

    def __init__(self, name: str) -> None:
        self.name, self.best_score, self.surest = name, -1.0, ""
        self._sum, self._scores, self._sizes = 0.0, np.zeros(SCORE_BINS, np.int64), np.zeros(3, np.int64)

    def add(self, scores: NDArray[np.float64], bins: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
        self._sum += float(scores.sum())
        self._scores += np.bincount(bins, minlength=SCORE_BINS)
        self._sizes += np.bincount(sizes, minlength=3)

    def result(self) -> ClassStats:
        small, medium, large = self._sizes.tolist()
        instances = small + medium + large
        return ClassStats(
            self.name,
            instances,
            self._sum / instances,
            self._scores,
            (small, medium, large),
            self.best_score,
            self.surest,
        )
