"""Average precision of a label set against COCO or LVIS truth, and the types of its errors.

This module knows truth, label sets and how their images correspond. coco_eval and error_types compute the figures.
Both sides are read by ranges of keys. A million images need little more memory than ten thousand.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segray.analytics.evaluation import (
    class_maps,
    class_matching,
    ground_truth,
    image_matching,
    intervals,
    protocols,
    truth_rows,
)
from segray.analytics.evaluation.class_matching import ClassMatch
from segray.analytics.evaluation.coco_eval import IOU_TYPES, IOUS, CocoEvaluator, ImageAnnotations, Scores
from segray.analytics.evaluation.error_costs import ErrorCostCounter, ErrorCosts
from segray.analytics.evaluation.error_types import ErrorBreakdown, ErrorCounter
from segray.analytics.evaluation.ground_truth import ObjectTally, Translation, TruthImage
from segray.analytics.evaluation.image_groups import ImageGroups
from segray.analytics.evaluation.intervals import ImageTallies, Intervals, Slice
from segray.analytics.evaluation.protocols import Protocol
from segray.analytics.evaluation.thresholds import ClassThresholds, Goal
from segray.analytics.query import arrow_masks, key_ranges, score_thresholds
from segray.analytics.query.key_ranges import KeyRange, KeySampler
from segray.errors import SourceError, UserError
from segray.instances import Instances
from segray.label_set import run_records, snapshot
from segray.label_set.schema import BBOX
from segray.label_set.snapshot import Snapshot
from segray.storage.options import StorageKeywords
from segray.storage.store import Store
from segray.storage.uris import PathOrUrl, as_uri, join

__all__ = [
    "IOU_TYPES", "Comparison", "Evaluation", "Row", "Scores", "coco_results", "compare", "count_objects", "evaluate",
    "evaluate_detections", "read_truth",
]  # fmt: skip

Row = dict[str, Any]
Thresholds = score_thresholds.Thresholds

_GIVE_OBJECTS = "give a truth with annotations that are not crowds"


@dataclass(frozen=True)
class Evaluation:
    """The result of comparing a label set with truth.

    scores: by IoU type, "segm" or "bbox". images: number of evaluated images.
    labelled: number of evaluated images with status ok or empty.
    failed, missing: number of the other images. They count as images without detections.
    objects: number in the truth, without crowds. instances: number of detections that took part.
    crowds: number in the truth; detections on a crowd are neither right nor wrong.
    thresholds: by class, precision and recall by score and the best threshold; of boxes if only boxes were compared.
    intervals: by IoU type, of AP by bootstrap over images; empty unless asked for. slices: AP of parts, of masks unless
    only boxes were compared.
    protocol: name of the protocol. cards: by model, box and mask AP in percent that were measured by this protocol.
    mistakes: errors by masks, or by boxes if only boxes were compared. costs: AP that each kind of error costs.
    notes: warnings about the figures.
    """

    scores: Mapping[str, Scores]
    images: int
    labelled: int
    failed: int
    missing: int
    objects: int
    instances: int
    protocol: str = "coco"
    cards: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    mistakes: ErrorBreakdown | None = None
    costs: ErrorCosts | None = None
    notes: Sequence[str] = ()
    crowds: int = 0
    thresholds: Mapping[str, ClassThresholds] = field(default_factory=dict, repr=False)
    intervals: Mapping[str, Intervals] = field(default_factory=dict)
    slices: Sequence[Slice] = ()

    @property
    def best_thresholds(self) -> dict[str, float]:
        """Return the best threshold of each class that has one, as `thresholds` of exports and views take it."""
        return {name: of_class.best.threshold for name, of_class in self.thresholds.items() if of_class.best}


def evaluate(
    root: PathOrUrl,
    truth_path: PathOrUrl,
    *,
    iou_types: Sequence[str] = IOU_TYPES,
    labelled_only: bool = False,
    allow_unlisted: bool = False,
    allow_other_classes: bool = False,
    classes_by: str | None = None,
    class_map: Mapping[str, str | Sequence[str]] | Path | str | None = None,
    files_by: str | None = None,
    strip_prefix: str = "",
    count_crowds: bool = False,
    protocol: str | None = None,
    min_score: float = 0.5,
    best: str = "f1",
    threshold_iou: float = 0.5,
    thresholds: Thresholds = None,
    resamples: int = 0,
    by: Sequence[str] = (),
    seed: int = 0,
    curves: bool = False,
    version: int | None = None,
    as_of: datetime | None = None,
    **storage_options: Unpack[StorageKeywords],
) -> Evaluation:
    """Compare the label set at `root` with a COCO or LVIS truth file.

    The truth's `file_name` is the label set's `image_key`, or the end of a path that fits one key alone. Its categories
    have the ids of the label set's classes, or their names. Each image of the truth is evaluated. A failed or
    unlabelled image counts as an image without detections.

    Args:
        root: Folder or URL of the label set.
        truth_path: Path or URL of the truth, or of a folder that `segray export --to fiftyone` wrote.
        iou_types: Any of "segm" and "bbox".
        labelled_only: Leave out images that failed or are not labelled.
        allow_unlisted: Ignore labelled images that the truth does not list. Such images usually mean the wrong file.
        allow_other_classes: Accept categories that the labels lack, and ids with other names.
        classes_by: "id" compares by id whatever the names are, "name" by name. None means id, or else name where ids
            disagree and each name fits one class. Case, `_`, `-` and spaces of names do not count.
        class_map: Names of the label set's classes by the truth's, or a file with such a mapping as YAML or JSON.
        files_by: "key", "basename" or "suffix" of file_name. None means key, or else the end of the path where it fits
            one to one.
        strip_prefix: Text that is cut off each file_name.
        count_crowds: Take crowds for objects, as for masks that CVAT exports.
        protocol: A name in protocols.PROTOCOLS, or of a model. None means lvis for LVIS's truth, else coco.
        min_score: Lowest score of the detections whose errors are counted.
        best: The rule of best thresholds: "f1", "precision=0.9" or "recall=0.8".
        threshold_iou: Least IoU of a right detection, for precision and recall by score: 0.5, 0.55, ... 0.95.
        thresholds: Smallest score of detections by class, or a file that `segray threshold` wrote. Other detections are
            left out.
        resamples: Number of samples of images for intervals of AP, such as 2000; 0 for no intervals.
        by: Parts whose AP is also measured: "size", "class", "folder", or a SQL expression on a row of `images`.
        seed: Seed of the samples.
        curves: Also return precision at each recall.
        version: Batch of an earlier state.
        as_of: Time of an earlier state.
        **storage_options: Settings of the storage, as for segray.scan.

    Raises:
        SourceError: The truth cannot be used.
        LabelSetError: Nothing is committed.
        UserError: Label set and truth have no common image, other classes or other sizes.
    """
    options = _Options(
        iou_types, labelled_only, allow_unlisted, allow_other_classes, classes_by, class_map, files_by, strip_prefix,
        count_crowds, protocol, min_score, Goal.parse(best), _iou_index(threshold_iou), thresholds,
        intervals.check_resamples(resamples), by, seed, curves,
    )  # fmt: skip
    return _evaluated(root, truth_path, options, version, as_of, storage_options)[0]


@dataclass(frozen=True)
class Comparison:
    """Two label sets, compared with one truth.

    a, b: the evaluation of each. differences: by IoU type, the AP of B less the AP of A, with its interval. An interval
    without 0 means that B differs from A by more than the choice of images.
    """

    a: Evaluation
    b: Evaluation
    differences: Mapping[str, Intervals]


def compare(
    root_a: PathOrUrl,
    root_b: PathOrUrl,
    truth_path: PathOrUrl,
    *,
    resamples: int = intervals.RESAMPLES,
    seed: int = 0,
    version: int | None = None,
    as_of: datetime | None = None,
    version_b: int | None = None,
    as_of_b: datetime | None = None,
    options: Mapping[str, Any] | None = None,
    **storage_options: Unpack[StorageKeywords],
) -> Comparison:
    """Compare two label sets with one truth, and their APs with each other on the same samples of images.

    Args:
        root_a: Folder or URL of label set A.
        root_b: Folder or URL of label set B.
        truth_path: As for `evaluate`.
        resamples: Number of samples of images.
        seed: Seed of the samples.
        version: Batch of an earlier state of A.
        as_of: Time of an earlier state of A.
        version_b: Batch of an earlier state of B.
        as_of_b: Time of an earlier state of B.
        options: Further arguments of `evaluate` for both: classes_by, class_map, iou_types and others.
        **storage_options: Settings of the storage, as for segray.scan.

    Raises:
        SourceError, LabelSetError, UserError: As `evaluate`.
        UserError: The two are not evaluated on the same images.
    """
    both = _Options(**{"resamples": intervals.check_resamples(resamples), "seed": seed, **(options or {})})
    a, tallies_a = _evaluated(root_a, truth_path, both, version, as_of, storage_options)
    b, tallies_b = _evaluated(root_b, truth_path, both, version_b, as_of_b, storage_options)
    differences = {
        kind: intervals.difference(tallies_a[kind], tallies_b[kind], resamples, seed) for kind in both.iou_types
    }
    return Comparison(a, b, differences)


@dataclass(frozen=True)
class _Options:
    """The arguments of `evaluate` that say how to compare."""

    iou_types: Sequence[str] = IOU_TYPES
    labelled_only: bool = False
    allow_unlisted: bool = False
    allow_other_classes: bool = False
    classes_by: str | None = None
    class_map: Mapping[str, str | Sequence[str]] | Path | str | None = None
    files_by: str | None = None
    strip_prefix: str = ""
    count_crowds: bool = False
    protocol: str | None = None
    min_score: float = 0.5
    goal: Goal = field(default_factory=Goal)
    iou_index: int = 0
    thresholds: Thresholds = None
    resamples: int = 0
    by: Sequence[str] = ()
    seed: int = 0
    curves: bool = False


def _evaluated(
    root: PathOrUrl,
    truth_path: PathOrUrl,
    options: _Options,
    version: int | None,
    as_of: datetime | None,
    storage_options: StorageKeywords,
) -> tuple[Evaluation, Mapping[str, ImageTallies]]:
    """Return the evaluation of a label set, and what was matched in each image where intervals or slices need that."""
    store = snapshot.store(storage_options)
    _check_types(options.iou_types)
    path = _truth_file(as_uri(truth_path), store)
    state = key_ranges.committed(snapshot.snapshot(root, version=version, as_of=as_of, **storage_options))
    state = score_thresholds.applied(state, options.thresholds, store)
    sampler = KeySampler()
    index = ground_truth.read_index(path, store, sampler, options.strip_prefix)
    where = f"{state.root}, {path}"
    classes = class_matching.match(
        index.names,
        index.used,
        state.classes,
        classes_by=options.classes_by,
        class_map=class_maps.pairs(options.class_map, store),
        allow_other_classes=options.allow_other_classes,
        where=where,
    )
    images = image_matching.match(
        index, state, store, sampler, files_by=options.files_by, allow_unlisted=options.allow_unlisted
    )
    rules = protocols.find(options.protocol or ("lvis" if index.frequency else "coco"))
    ranges = images.sampler.cut()
    translation = Translation(images.key, classes.ids)
    with tempfile.TemporaryDirectory(prefix="segray-") as folder:
        sorted_truth = ground_truth.GroundTruthBySlice(index, ranges, store, Path(folder), translation)
        _check_objects(sorted_truth.objects, sorted_truth.crowds, options.count_crowds, path)
        evaluators = _Evaluators(
            classes, index.frequency, rules, options.iou_types, options.min_score, options.count_crowds,
            keeps_images=bool(options.resamples or options.by),
        )  # fmt: skip
        groups = ImageGroups(options.by)
        for number, key_range in enumerate(ranges):
            if sorted_truth.holds(number):
                groups.add_range(state, key_range)
                _evaluate_range(
                    state, key_range, sorted_truth.read(number), evaluators, groups, options.labelled_only, path
                )
    notes = [*_notes(evaluators, state, store, rules), *images.notes, *classes.notes]
    result = evaluators.result(rules, notes, curves=options.curves, goal=options.goal, iou_index=options.iou_index)
    tallies = evaluators.tallies() if options.resamples or options.by else {}
    if options.resamples:
        by_type = {
            kind: intervals.intervals(of_type, options.resamples, options.seed) for kind, of_type in tallies.items()
        }
        result = replace(result, intervals=by_type)
    if options.by:
        first = tallies[next(iter(result.scores))]
        result = replace(result, slices=groups.slices(first, options.resamples, options.seed))
    return result, tallies


def evaluate_detections(
    detections: Sequence[Row], truth: Row, *, iou_types: Sequence[str] = IOU_TYPES
) -> dict[str, Scores]:
    """Return the COCO scores of detections, by IoU type.

    A detection of a category that the truth does not list is not counted.

    Args:
        detections: Rows as coco_results returns them.
        truth: Content of COCO JSON, with the category ids of the detections.
        iou_types: Any of "segm" and "bbox".

    Raises:
        SourceError: The truth has no objects, or an annotation is not valid.
        UserError: An IoU type does not exist.
    """
    if not count_objects(truth):
        raise SourceError("the truth has no objects, so precision is undefined", hint=_GIVE_OBJECTS)
    _check_types(iou_types)
    names = {row["id"]: row["name"] for row in truth["categories"]}
    evaluators = _Evaluators(ClassMatch(None, names), {}, protocols.PROTOCOLS["coco"], iou_types, 0.5)
    annotations_by_image, detections_by_image = _by_image(truth["annotations"]), _by_image(detections)
    for row in sorted(truth["images"], key=lambda row: row["id"]):
        image = _truth_image(row, annotations_by_image.get(row["id"], []))
        results = detections_by_image.get(row["id"], [])
        evaluators.add(image, _annotations_of_results(results, iou_types), "the truth")
    return dict(evaluators.scores(curves=False))


def coco_results(image_id: int, instances: Instances) -> list[Row]:
    """Return the rows of one image in COCO's result format. image_id: id of the image in the truth."""
    boxes_xyxy = instances.boxes_xyxy.astype(float)
    boxes_xywh = np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1)
    columns = zip(
        instances.class_ids.tolist(), instances.scores.tolist(), boxes_xywh.tolist(), instances.rles, strict=True
    )
    return [
        {
            "image_id": image_id,
            "category_id": category_id,
            "score": score,
            "bbox": box_xywh,
            "segmentation": {"size": list(instances.size_hw), "counts": counts},
        }
        for category_id, score, box_xywh, counts in columns
    ]


def read_truth(path: Path) -> Row:
    """Read a COCO truth file into memory. Ids are numbers afterwards, whatever the file writes.

    Raise SourceError unless the file has images with sizes and unique file names, and annotations of these images.
    """
    return ground_truth.read_all(str(path), Store())


def count_objects(truth: Row) -> int:
    """Count the annotations that are not crowds."""
    return sum(not truth_rows.flag(row, "iscrowd", "the truth") for row in truth["annotations"])


# ---- checks that label set and truth belong together ----------------------------------------------


def _truth_file(path: str, store: Store) -> str:
    """Return the file of a truth, also of a folder that an export to fiftyone made.

    Raise SourceError without such a file. This check is faster than reading the label set.
    """
    for file in (path, join(path, "labels.json")):
        if store.exists(file):
            return file
    raise SourceError("no such truth file", where=path, hint="give --truth one file of COCO or LVIS JSON")


def _check_types(iou_types: Sequence[str]) -> None:
    unknown = set(iou_types) - set(IOU_TYPES)
    if unknown or not iou_types:
        raise UserError(
            "no such IoU type", found=", ".join(sorted(unknown)) or "none", hint=f"choose from {', '.join(IOU_TYPES)}"
        )


def _iou_index(iou: float) -> int:
    """Return the index of an IoU in IOUS. Raise UserError for an IoU that COCO does not use."""
    index = int(np.abs(IOUS - iou).argmin())
    if abs(IOUS[index] - iou) > 1e-9:
        hint = "choose from " + ", ".join(f"{value:.2f}" for value in IOUS)
        raise UserError("right detections are not counted at this IoU", where="--iou", found=f"{iou:g}", hint=hint)
    return index


def _check_objects(objects: int, crowds: int, count_crowds: bool, path: str) -> None:
    """Raise SourceError for a truth without objects."""
    if not objects + (crowds if count_crowds else 0):
        found = f"{crowds} crowds and no other annotation" if crowds else "no annotation"
        hint = f"{_GIVE_OBJECTS}, or take crowds for objects with --count-crowds" if crowds else _GIVE_OBJECTS
        raise SourceError("the truth has no objects, so precision is undefined", where=path, found=found, hint=hint)


def _check_size(image: TruthImage, row: Row, root: str, path: str) -> None:
    """Raise UserError if an image has another size in the truth.

    pycocotools scores masks of different sizes as not overlapping, without an error.
    """
    truth_hw, labelled_hw = image.size_hw, _size_hw(row)
    if truth_hw is not None and truth_hw != labelled_hw:
        raise UserError(
            "an image has another size in the truth", where=f"{image.key} in {root} and {path}",
            found=f"labelled as {labelled_hw[1]}x{labelled_hw[0]}, truth {truth_hw[1]}x{truth_hw[0]}",
            hint="label the images that the truth describes; coordinates are those of the upright image",
        )  # fmt: skip


def _size_hw(row: Row) -> tuple[int, int]:
    return int(row["height"]), int(row["width"])


def _notes(evaluators: _Evaluators, state: Snapshot, store: Store, rules: Protocol) -> list[str]:
    """Return the warnings about the figures."""
    notes = []
    if missing := evaluators.missing:
        is_unfinished = run_records.unfinished(store, state.root) is not None
        reason = "the run is not finished" if is_unfinished else "each counts as an image without detections"
        words = _counted(missing, "image of the truth is not labelled", "images of the truth are not labelled")
        notes.append(f"{words}: {reason}")
    if crowds := evaluators.crowds:
        words = _counted(crowds, "annotation of the truth is a crowd", "annotations of the truth are crowds")
        notes.append(
            f"{words}: detections on a crowd are neither right nor wrong. CVAT marks each mask that is no polygon as a "
            "crowd; --count-crowds takes crowds for objects"
        )
    if parts := evaluators.tally.parts_left_out:
        words = _counted(
            parts, "part of a polygon has no area and is left out", "parts of polygons have no area and are left out"
        )
        notes.append(f"{words}, such as in {evaluators.tally.example}")
    if sizes := evaluators.sizes_from_labels:
        words = _counted(sizes, "image has no size in the truth", "images have no size in the truth")
        notes.append(f"{words}: the label set's is taken")
    name, score_threshold = state.model.get("name"), state.model.get("score_threshold")
    if rules.cards and score_threshold is not None and float(score_threshold) > 0.05:
        notes.append(f"the cards' figures are of all scores; these labels begin at {float(score_threshold):g}")
    if rules.cards and name not in rules.cards:
        notes.append(f"this protocol is that of {' and '.join(rules.cards)}; the labels are of {name}")
    return notes


def _counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


# ---- one range of keys after another --------------------------------------------------------------


def _evaluate_range(
    state: Snapshot,
    key_range: KeyRange,
    truth_images: Iterable[TruthImage],
    evaluators: _Evaluators,
    groups: ImageGroups,
    labelled_only: bool,
    path: str,
) -> None:
    """Evaluate the images of one range. path: the truth file, for errors."""
    rows = key_ranges.images(state, key_range, ["image_key", "status", "width", "height"]).to_pylist()
    labelled = {row["image_key"]: row for row in rows}
    columns = ["class_id", "score", *BBOX, "height", "width", "rle"]
    instances = key_ranges.instances(state, key_range, columns)
    detections = _Detections(instances, evaluators.iou_types, state.root, evaluators.classes.detected)
    for image in truth_images:
        row = labelled.get(image.key)
        status = "missing" if row is None else str(row["status"])
        if row is not None and status != "failed":
            _check_size(image, row, state.root, path)
            if image.size_hw is None:
                image = replace(image, size_hw=_size_hw(row))
                evaluators.sizes_from_labels += 1
        if labelled_only and status in ("missing", "failed"):
            continue
        evaluators.count(status)
        groups.add(image.id, image.key)
        evaluators.add(image, detections.of(image.key), path)


class _Evaluators:
    """The evaluators of all IoU types and the error count. Each image is added to all of them."""

    def __init__(
        self,
        classes: ClassMatch,
        frequency: Mapping[int, str],
        rules: Protocol,
        iou_types: Sequence[str],
        min_score: float,
        count_crowds: bool = False,
        *,
        keeps_images: bool = False,
    ) -> None:
        self.iou_types, self.classes, self._rules, self._count_crowds = tuple(iou_types), classes, rules, count_crowds
        limits = {"segm": rules.mask_limits, "bbox": rules.box_limits}
        self._evaluators = {
            iou_type: CocoEvaluator(
                iou_type, classes.names, limits[iou_type], classes.of(frequency), keeps_images=keeps_images
            )
            for iou_type in iou_types
        }
        self._errors = ErrorCounter(classes.names, min_score)
        self._costs = ErrorCostCounter(classes.names)
        self._images: Counter[str] = Counter()  # number of images by status
        self.objects = self.crowds = self.instances = self.sizes_from_labels = 0
        self.tally = ObjectTally()

    @property
    def missing(self) -> int:
        return self._images["missing"]

    def count(self, status: str) -> None:
        self._images[status] += 1

    def add(self, image: TruthImage, detections: ImageAnnotations, path: str) -> None:
        objects = ground_truth.objects_of(
            image, path, self.iou_types, count_crowds=self._count_crowds, tally=self.tally
        )
        self.objects += int((~objects.crowd).sum())
        self.crowds += int(objects.crowd.sum())
        detections = _best_detections(detections, image, objects, self._rules)
        self.instances += len(detections)
        widened = _widened(detections, self._rules.widen_px)
        for number, (iou_type, evaluator) in enumerate(self._evaluators.items()):
            ious = widened.overlaps(objects, iou_type)
            evaluator.add(image.id, objects, widened, ious, image.not_exhaustive)
            if number == 0:
                self._errors.add(objects, widened, ious)
                self._costs.add(image.id, objects, widened, ious)

    def scores(self, *, curves: bool) -> Mapping[str, Scores]:
        return {iou_type: evaluator.scores(curves=curves) for iou_type, evaluator in self._evaluators.items()}

    def tallies(self) -> Mapping[str, ImageTallies]:
        return {iou_type: evaluator.tallies() for iou_type, evaluator in self._evaluators.items()}

    def result(self, rules: Protocol, notes: Sequence[str], *, curves: bool, goal: Goal, iou_index: int) -> Evaluation:
        """Return the evaluation of all images so far. Raise SourceError if they have no objects."""
        if not self.objects:
            raise SourceError(
                "the evaluated images have no objects, so precision is undefined",
                found=f"{self._images.total()} images",
                hint="label images that have annotations in the truth",
            )
        return Evaluation(
            scores=self.scores(curves=curves),
            images=self._images.total(),
            labelled=self._images["ok"] + self._images["empty"],
            failed=self._images["failed"],
            missing=self.missing,
            objects=self.objects,
            instances=self.instances,
            protocol=rules.name,
            cards=rules.cards,
            mistakes=self._errors.result(),
            costs=self._costs.result(),
            notes=notes,
            crowds=self.crowds,
            thresholds=next(iter(self._evaluators.values())).thresholds(goal, iou_index),
        )


class _Detections:
    """The detections of the images of a range, from its instances sorted by key."""

    def __init__(self, instances: pa.Table, iou_types: Sequence[str], root: str, detected: Mapping[int, int]) -> None:
        sizes = [instances.column(name) for name in ("height", "width")]
        self._counts = instances.column("rle").combine_chunks()
        fits = arrow_masks.fits_image(self._counts, *sizes)
        if not fits.all():
            row = instances.slice(int(np.flatnonzero(~fits)[0]), 1).to_pylist()[0]
            raise UserError(
                "the label set has a mask that does not fit its image", where=f"{row['image_key']} in {root}",
                found=f"instance {row['instance']}", hint="run `segray verify` to find all such masks",
            )  # fmt: skip
        self._with_masks = "segm" in iou_types
        self._sizes_hw = np.stack([size.to_numpy() for size in sizes], axis=1)
        self._areas = arrow_masks.rle_area(self._counts).to_numpy(zero_copy_only=False).astype(np.float64)
        self._class_ids = instances.column("class_id").to_numpy().astype(np.int64)
        for number, joined in detected.items():
            self._class_ids[self._class_ids == number] = joined
        self._scores = instances.column("score").to_numpy().astype(np.float64)
        self._boxes_xywh = np.stack([instances.column(name).to_numpy() for name in BBOX], axis=1).astype(np.float64)
        self._rows = key_ranges.Groups(instances).rows

    def of(self, key: str) -> ImageAnnotations:
        """Return the detections of one image. They are empty if the range has no instance of the image."""
        rows = self._rows.get(key, slice(0))
        boxes_xywh = self._boxes_xywh[rows]
        shapes: dict[str, Any] = {"bbox": boxes_xywh}
        if self._with_masks:
            shapes["segm"] = [
                {"size": size_hw, "counts": text.encode()}
                for size_hw, text in zip(self._sizes_hw[rows].tolist(), self._counts[rows].to_pylist(), strict=True)
            ]
        areas = {"segm": self._areas[rows], "bbox": boxes_xywh[:, 2] * boxes_xywh[:, 3]}
        return ImageAnnotations(self._class_ids[rows], shapes, areas, scores=self._scores[rows])


def _best_detections(
    detections: ImageAnnotations, image: TruthImage, objects: ImageAnnotations, rules: Protocol
) -> ImageAnnotations:
    """Return the detections that count by LVIS's rules: the best of each image, in categories that the truth covers."""
    if rules.per_image is None:
        return detections
    order = np.argsort(-detections.scores, kind="stable")[: rules.per_image]
    if image.negative is not None:
        covered = set(objects.class_ids.tolist()) | image.negative
        if len(order):
            order = order[[category in covered for category in detections.class_ids[order].tolist()]]
    return _select(detections, order)


def _select(detections: ImageAnnotations, order: NDArray[np.int64]) -> ImageAnnotations:
    """Return the detections with these indices, in this order."""
    shapes = {
        iou_type: shape[order] if isinstance(shape, np.ndarray) else [shape[i] for i in order.tolist()]
        for iou_type, shape in detections.shapes.items()
    }
    areas = {iou_type: area[order] for iou_type, area in detections.areas.items()}
    return ImageAnnotations(detections.class_ids[order], shapes, areas, scores=detections.scores[order])


def _widened(detections: ImageAnnotations, by_px: float) -> ImageAnnotations:
    """Return the detections with `by_px` added to width and height of the boxes."""
    if not by_px or "bbox" not in detections.shapes or not len(detections):
        return detections
    boxes_xywh = detections.shapes["bbox"] + np.array([0, 0, by_px, by_px])
    shapes = {**detections.shapes, "bbox": boxes_xywh}
    areas = {**detections.areas, "bbox": boxes_xywh[:, 2] * boxes_xywh[:, 3]}
    return ImageAnnotations(detections.class_ids, shapes, areas, scores=detections.scores)


# ---- rows in memory -------------------------------------------------------------------------------


def _by_image(rows: Sequence[Row]) -> dict[int, list[Row]]:
    rows_by_image: dict[int, list[Row]] = {}
    for row in rows:
        rows_by_image.setdefault(row["image_id"], []).append(row)
    return rows_by_image


def _truth_image(row: Row, annotations: Sequence[Row]) -> TruthImage:
    size_hw = None if row.get("height") is None else (int(row["height"]), int(row["width"]))
    return TruthImage(row["id"], str(row.get("file_name", row["id"])), size_hw, annotations)


def _annotations_of_results(rows: Sequence[Row], iou_types: Sequence[str]) -> ImageAnnotations:
    """Return the detections of one image from rows in COCO's result format."""
    class_ids = np.array([row["category_id"] for row in rows], np.int64)
    scores = np.array([row["score"] for row in rows], np.float64)
    shapes: dict[str, Any] = {}
    areas: dict[str, NDArray[np.float64]] = dict.fromkeys(IOU_TYPES, np.empty(len(rows)))
    if "bbox" in iou_types:
        boxes_xywh = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
        shapes["bbox"], areas["bbox"] = boxes_xywh, boxes_xywh[:, 2] * boxes_xywh[:, 3]
    if "segm" in iou_types:
        counts = [row["segmentation"]["counts"] for row in rows]
        shapes["segm"] = [
            {**row["segmentation"], "counts": text.encode()} for row, text in zip(rows, counts, strict=True)
        ]
        mask_areas = arrow_masks.rle_area(pa.array(counts, pa.string()))
        areas["segm"] = mask_areas.to_numpy(zero_copy_only=False).astype(np.float64)
    return ImageAnnotations(class_ids, shapes, areas, scores=scores)
