"""Average precision of a label set against COCO or LVIS truth, and the types of its errors.

This module knows truth, label sets and how their images correspond. coco_eval and error_types compute the figures.
Both sides are read by ranges of keys. A million images need little more memory than ten thousand.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segray.analytics.evaluation import ground_truth, protocols
from segray.analytics.evaluation.coco_eval import IOU_TYPES, CocoEvaluator, ImageAnnotations, Scores
from segray.analytics.evaluation.error_types import ErrorBreakdown, Tally
from segray.analytics.evaluation.ground_truth import GroundTruthIndex, TruthImage
from segray.analytics.evaluation.protocols import Protocol
from segray.analytics.query import arrow_masks, key_ranges
from segray.analytics.query.key_ranges import KeyRange, KeySampler
from segray.errors import SourceError, UserError
from segray.instances import Instances
from segray.label_set import run_records, snapshot
from segray.label_set.schema import BBOX
from segray.label_set.snapshot import Snapshot
from segray.models.coco_labels import slug
from segray.storage.store import Store

__all__ = [
    "IOU_TYPES", "Evaluation", "Row", "Scores", "coco_results", "count_objects", "evaluate", "evaluate_detections",
    "read_truth",
]  # fmt: skip

Row = dict[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """The result of comparing a label set with truth.

    scores: by IoU type, "segm" or "bbox". images: number of evaluated images.
    labelled: number of evaluated images with status ok or empty.
    failed, missing: number of the other images. They count as images without detections.
    objects: number in the truth, without crowds. instances: number of detections that took part.
    protocol: name of the protocol. cards: by model, box and mask AP in percent that were measured by this protocol.
    mistakes: errors by masks, or by boxes if only boxes were compared. notes: warnings about the figures.
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
    notes: Sequence[str] = ()


def evaluate(
    root: str,
    truth_path: Path | str,
    *,
    iou_types: Sequence[str] = IOU_TYPES,
    labelled_only: bool = False,
    allow_unlisted: bool = False,
    allow_other_classes: bool = False,
    protocol: str | None = None,
    min_score: float = 0.5,
    curves: bool = False,
    version: int | None = None,
    as_of: datetime | None = None,
    **storage_options: Any,
) -> Evaluation:
    """Compare the label set at `root` with a COCO or LVIS truth file. The truth's `file_name` is the label set's
    `image_key`.

    Each image of the truth is evaluated. A failed or unlabelled image counts as an image without detections.

    Args:
        root: Folder or URL of the label set.
        truth_path: Path or URL of the truth.
        iou_types: Any of "segm" and "bbox".
        labelled_only: Leave out images that failed or are not labelled.
        allow_unlisted: Ignore labelled images that the truth does not list. They usually mean the wrong file.
        allow_other_classes: Compare categories by id alone, even if the model lacks them or has other names.
        protocol: A name in protocols.PROTOCOLS, or of a model. None means lvis for LVIS's truth, else coco.
        min_score: Lowest score of the detections whose errors are counted.
        curves: Also return precision at each recall.
        version: Batch of an earlier state.
        as_of: Time of an earlier state.
        **storage_options: Settings of the storage, as for segray.scan.

    Raises:
        SourceError: The truth cannot be used.
        LabelSetError: Nothing is committed.
        UserError: The two have no common image, other classes or other sizes.
    """
    store, path = snapshot.store(storage_options), str(truth_path)
    _check_types(iou_types)
    if not store.exists(path):  # This check is faster than reading the label set.
        raise SourceError("no such truth file", where=path)
    state = key_ranges.committed(snapshot.snapshot(root, version=version, as_of=as_of, **storage_options))
    keys = KeySampler()
    listed = ground_truth.read_index(path, store, keys)
    if not allow_other_classes:
        _check_classes(listed, state)
    _check_keys(listed, state, allow_unlisted, keys)
    rules = _rules(protocol, listed)
    parts = keys.cut()
    with tempfile.TemporaryDirectory(prefix="segray-") as folder:
        sorted_truth = ground_truth.GroundTruthBySlice(listed, parts, store, Path(folder))
        if not sorted_truth.objects:
            raise SourceError(
                "the truth has no objects, so precision is undefined", where=path, hint="give annotations"
            )
        panel = _Panel(listed.names, listed.frequency, rules, iou_types, min_score)
        for number, part in enumerate(parts):
            if sorted_truth.holds(number):
                _evaluate_range(state, part, sorted_truth.read(number), panel, labelled_only, path)
    notes = _notes(panel, state, store, rules)
    return panel.result(rules, notes, curves=curves)


def evaluate_detections(
    detections: Sequence[Row], truth: Row, *, iou_types: Sequence[str] = IOU_TYPES
) -> dict[str, Scores]:
    """Return the COCO scores of detections, by IoU type. Neither argument is changed.

    detections: rows as coco_results returns them. truth: content of COCO JSON, with the category ids of the detections.
    A detection of a category that the truth does not list is not counted.
    """
    if not count_objects(truth):
        raise SourceError("the truth has no objects, so precision is undefined", hint="give annotations")
    _check_types(iou_types)
    names = {row["id"]: row["name"] for row in truth["categories"]}
    panel = _Panel(names, {}, protocols.PROTOCOLS["coco"], iou_types, 0.5)
    objects, found = _by_image(truth["annotations"]), _by_image(detections)
    for row in sorted(truth["images"], key=lambda row: row["id"]):
        image = _image(row, objects.get(row["id"], []))
        panel.add(image, _of_results(found.get(row["id"], []), iou_types), "the truth")
    return dict(panel.scores(curves=False))


def coco_results(image_id: int, found: Instances) -> list[Row]:
    """Return the rows of one image in COCO's result format. image_id: id of the image in the truth."""
    corners = found.boxes_xyxy.astype(float)
    boxes_xywh = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    columns = zip(found.class_ids.tolist(), found.scores.tolist(), boxes_xywh.tolist(), found.rles, strict=True)
    return [_result(image_id, category, score, box, counts, found.size_hw) for category, score, box, counts in columns]


def read_truth(path: Path) -> Row:
    """Read a COCO truth file. Raise SourceError unless the file has images with unique file names."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SourceError("no such truth file", where=str(path)) from error
    except ValueError as error:
        raise SourceError("the truth is not JSON", where=str(path), found=str(error)) from error
    parts = ("images", "annotations", "categories")
    missing = [part for part in parts if not isinstance(content, dict) or part not in content]
    if missing:
        raise SourceError("the truth is not COCO JSON", where=str(path), found=f"no {', '.join(missing)}")
    names = [image["file_name"] for image in content["images"]]
    if not names or len(set(names)) < len(names):
        found = "two images with the same file_name" if names else "no images"
        raise SourceError("the truth's images cannot be told apart by file_name", where=str(path), found=found)
    return dict(content)


def count_objects(truth: Row) -> int:
    """Count the annotations that are not crowds."""
    return sum(not row.get("iscrowd", 0) for row in truth["annotations"])


# ---- does it belong together ----------------------------------------------------------------------


def _check_types(iou_types: Sequence[str]) -> None:
    unknown = set(iou_types) - set(IOU_TYPES)
    if unknown or not iou_types:
        raise UserError(
            "no such IoU type", found=", ".join(sorted(unknown)), hint=f"choose from {', '.join(IOU_TYPES)}"
        )


def _check_keys(listed: GroundTruthIndex, state: Snapshot, allow_unlisted: bool, keys: KeySampler) -> None:
    """Compare the images of both sides, and add those of the label set to `keys`.

    Raise UserError if no image is in both, or if the truth lacks a labelled image and allow_unlisted is false.
    """
    common = total = 0
    first, first_unlisted = "", ""
    for batch in state.images.to_batches(columns=["image_key", "n_instances"], **key_ranges.NO_METADATA_CACHE):
        names = batch.column("image_key").to_pylist()
        if not names:
            continue
        known = listed.lists(names)
        keys.add(names, key_ranges.weights(state, batch.column("n_instances")))
        common, total = common + int(known.sum()), total + len(names)
        first = min(first or names[0], *names)
        unlisted = [name for name, there in zip(names, known, strict=True) if not there]
        if unlisted:
            first_unlisted = min(first_unlisted or unlisted[0], *unlisted)
    where = f"{state.root}, {listed.path}"
    if not common:
        raise UserError(
            "the truth and the label set have no image in common", where=where,
            found=f"label set: {first or 'no images'}, truth: {listed.example}",
            hint="make the truth's file_name equal to image_key, the path below the dataset's root",
        )  # fmt: skip
    if common < total and not allow_unlisted:
        raise UserError(
            "the label set has images that the truth does not list", where=where,
            found=f"{total - common} of {total}, such as {first_unlisted}",
            hint="check that this is the right truth; to leave them out, allow unlisted images",
        )  # fmt: skip


def _check_classes(listed: GroundTruthIndex, state: Snapshot) -> None:
    """Raise UserError for categories of the truth that the labels lack or name otherwise.

    A category under another id would score 0 without an error.
    """
    if not state.classes:
        return
    ours = {number: slug(name) for number, name in state.classes.items()}
    other = [
        f"{number} is {name!r} in the truth, {state.classes.get(number, 'nothing')!r} in the labels"
        for number, name in sorted(listed.names.items())
        if ours.get(number) != slug(name)
    ]
    if other:
        raise UserError(
            "the truth has categories that the labels lack or call otherwise", where=f"{state.root}, {listed.path}",
            found=f"{len(other)} of {len(listed.names)}: {'; '.join(other[:3])}{' ...' if len(other) > 3 else ''}",
            hint="give the truth of this model's classes; to compare by id alone, allow other classes",
        )  # fmt: skip


def _check_size(image: TruthImage, row: Row, root: str, path: str) -> None:
    """Raise UserError if an image has another size in the truth.

    pycocotools scores masks of different sizes as not overlapping, without an error.
    """
    meant, found = image.size_hw, (row["height"], row["width"])
    if meant != found:
        raise UserError(
            "an image has another size in the truth", where=f"{image.key} in {root} and {path}",
            found=f"labelled as {found[1]}x{found[0]}, truth {meant[1]}x{meant[0]}",
            hint="label the images that the truth describes; coordinates are those of the upright image",
        )  # fmt: skip


def _rules(name: str | None, listed: GroundTruthIndex) -> Protocol:
    return protocols.find(name or ("lvis" if listed.frequency else "coco"))


def _notes(panel: _Panel, state: Snapshot, store: Store, rules: Protocol) -> list[str]:
    notes = []
    if panel.missing:
        under_way = run_records.unfinished(store, state.root) is not None
        notes.append(
            f"{panel.missing} images of the truth are not labelled"
            + (": the run is not finished" if under_way else ", which counts as finding nothing in them")
        )
    name, floor = state.model.get("name"), state.model.get("score_threshold")
    if rules.cards and floor is not None and float(floor) > 0.05:
        notes.append(f"the cards' figures are of all scores; these labels begin at {float(floor):g}")
    if rules.cards and name not in rules.cards:
        notes.append(f"this protocol is that of {' and '.join(rules.cards)}; the labels are of {name}")
    return notes


# ---- slice by slice -------------------------------------------------------------------------------


def _evaluate_range(
    state: Snapshot, part: KeyRange, listed: Iterable[TruthImage], panel: _Panel, labelled_only: bool, path: str
) -> None:
    rows = key_ranges.images(state, part, ["image_key", "status", "width", "height"]).to_pylist()
    labelled = {row["image_key"]: row for row in rows}
    columns = ["class_id", "score", *BBOX, "height", "width", "rle"]
    detections = _Detections(key_ranges.instances(state, part, columns), panel.iou_types, state.root)
    for image in listed:
        row = labelled.get(image.key)
        status = "missing" if row is None else str(row["status"])
        if row is not None and status != "failed":
            _check_size(image, row, state.root, path)
        if labelled_only and status in ("missing", "failed"):
            continue
        panel.count(status)
        panel.add(image, detections.of(image.key), path)


class _Panel:
    """The evaluators of all IoU types and the error count. Each image is added to all of them."""

    def __init__(
        self,
        names: Mapping[int, str],
        frequency: Mapping[int, str],
        rules: Protocol,
        iou_types: Sequence[str],
        min_score: float,
    ) -> None:
        self.iou_types, self._names, self._rules = tuple(iou_types), names, rules
        limits = {"segm": rules.mask_limits, "bbox": rules.box_limits}
        self._evaluators = {each: CocoEvaluator(each, names, limits[each], frequency) for each in iou_types}
        self._tally = Tally(names, min_score)
        self._states: dict[str, int] = {}
        self.objects = self.instances = 0

    @property
    def missing(self) -> int:
        return self._states.get("missing", 0)

    def count(self, status: str) -> None:
        self._states[status] = self._states.get(status, 0) + 1

    def add(self, image: TruthImage, detections: ImageAnnotations, path: str) -> None:
        objects = ground_truth.objects_of(image, path, self.iou_types)
        self.objects += int((~objects.crowd).sum())
        detections = _counted(detections, image, objects, self._rules)
        self.instances += len(detections)
        widened = _widened(detections, self._rules.widen_px)
        for number, (iou_type, evaluator) in enumerate(self._evaluators.items()):
            ious = widened.overlaps(objects, iou_type)
            evaluator.add(image.id, objects, widened, ious, image.not_exhaustive)
            if number == 0:
                self._tally.add(objects, widened, ious)

    def scores(self, *, curves: bool) -> Mapping[str, Scores]:
        return {iou_type: evaluator.scores(curves=curves) for iou_type, evaluator in self._evaluators.items()}

    def result(self, rules: Protocol, notes: Sequence[str], *, curves: bool) -> Evaluation:
        """Return the evaluation of all images so far. Raise SourceError if they have no objects."""
        states = self._states
        if not self.objects:
            raise SourceError(
                "the evaluated images have no objects, so precision is undefined", hint="label more images"
            )
        return Evaluation(
            scores=self.scores(curves=curves),
            images=sum(states.values()),
            labelled=states.get("ok", 0) + states.get("empty", 0),
            failed=states.get("failed", 0),
            missing=self.missing,
            objects=self.objects,
            instances=self.instances,
            protocol=rules.name,
            cards=rules.cards,
            mistakes=self._tally.result(),
            notes=notes,
        )


class _Detections:
    """The detections of the images of a range, from its instances sorted by key."""

    def __init__(self, found: pa.Table, iou_types: Sequence[str], root: str) -> None:
        sizes = [found.column(name) for name in ("height", "width")]
        self._counts = found.column("rle").combine_chunks()
        good = arrow_masks.fits_image(self._counts, *sizes)
        if not good.all():
            row = found.slice(int(np.flatnonzero(~good)[0]), 1).to_pylist()[0]
            raise UserError(
                "the label set has a mask that does not fit its image", where=f"{row['image_key']} in {root}",
                found=f"instance {row['instance']}", hint="look at it with `segray verify`",
            )  # fmt: skip
        self._with_masks = "segm" in iou_types
        self._sizes_hw = np.stack([size.to_numpy() for size in sizes], axis=1)
        self._areas = arrow_masks.rle_area(self._counts).to_numpy(zero_copy_only=False).astype(np.float64)
        self._class_ids = found.column("class_id").to_numpy().astype(np.int64)
        self._scores = found.column("score").to_numpy().astype(np.float64)
        self._boxes = np.stack([found.column(name).to_numpy() for name in BBOX], axis=1).astype(np.float64)
        self._rows = key_ranges.Groups(found).rows

    def of(self, key: str) -> ImageAnnotations:
        """Return the detections of one image. They are empty if the range has no instance of the image."""
        rows = self._rows.get(key, slice(0))
        boxes = self._boxes[rows]
        shapes: dict[str, Any] = {"bbox": boxes}
        if self._with_masks:
            shapes["segm"] = [
                {"size": size_hw, "counts": text.encode()}
                for size_hw, text in zip(self._sizes_hw[rows].tolist(), self._counts[rows].to_pylist(), strict=True)
            ]
        areas = {"segm": self._areas[rows], "bbox": boxes[:, 2] * boxes[:, 3]}
        return ImageAnnotations(self._class_ids[rows], shapes, areas, scores=self._scores[rows])


def _counted(
    detections: ImageAnnotations, image: TruthImage, objects: ImageAnnotations, rules: Protocol
) -> ImageAnnotations:
    """Return the detections that count by LVIS's rules: the best of each image, in categories that the truth covers."""
    if rules.per_image is None:
        return detections
    order = np.argsort(-detections.scores, kind="stable")[: rules.per_image]
    if image.negative is not None:
        told = set(objects.class_ids.tolist()) | image.negative
        order = order[[category in told for category in detections.class_ids[order].tolist()]] if len(order) else order
    return _picked(detections, order)


def _picked(found: ImageAnnotations, order: NDArray[np.int64]) -> ImageAnnotations:
    shapes = {
        name: shape[order] if isinstance(shape, np.ndarray) else [shape[i] for i in order.tolist()]
        for name, shape in found.shapes.items()
    }
    areas = {name: area[order] for name, area in found.areas.items()}
    return ImageAnnotations(found.class_ids[order], shapes, areas, scores=found.scores[order])


def _widened(found: ImageAnnotations, by_px: float) -> ImageAnnotations:
    if not by_px or "bbox" not in found.shapes or not len(found):
        return found
    boxes = found.shapes["bbox"] + np.array([0, 0, by_px, by_px])
    areas = {**found.areas, "bbox": boxes[:, 2] * boxes[:, 3]}
    return ImageAnnotations(found.class_ids, {**found.shapes, "bbox": boxes}, areas, scores=found.scores)


# ---- rows in memory -------------------------------------------------------------------------------


def _by_image(rows: Sequence[Row]) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = {}
    for row in rows:
        found.setdefault(row["image_id"], []).append(row)
    return found


def _image(row: Row, annotations: Sequence[Row]) -> TruthImage:
    return TruthImage(
        row["id"], str(row.get("file_name", row["id"])), (int(row["height"]), int(row["width"])), annotations
    )


def _of_results(rows: Sequence[Row], iou_types: Sequence[str]) -> ImageAnnotations:
    class_ids = np.array([row["category_id"] for row in rows], np.int64)
    scores = np.array([row["score"] for row in rows], np.float64)
    shapes: dict[str, Any] = {}
    areas: dict[str, NDArray[np.float64]] = dict.fromkeys(IOU_TYPES, np.empty(len(rows)))
    if "bbox" in iou_types:
        boxes = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
        shapes["bbox"], areas["bbox"] = boxes, boxes[:, 2] * boxes[:, 3]
    if "segm" in iou_types:
        counts = [row["segmentation"]["counts"] for row in rows]
        shapes["segm"] = [
            {**row["segmentation"], "counts": text.encode()} for row, text in zip(rows, counts, strict=True)
        ]
        areas["segm"] = (
            arrow_masks.rle_area(pa.array(counts, pa.string())).to_numpy(zero_copy_only=False).astype(np.float64)
        )
    return ImageAnnotations(class_ids, shapes, areas, scores=scores)


def _result(
    image_id: int, category_id: int, score: float, bbox_xywh: list[float], counts: str, size_hw: tuple[int, int]
) -> Row:
    segmentation = {"size": list(size_hw), "counts": counts}
    return {
        "image_id": image_id,
        "category_id": category_id,
        "score": score,
        "bbox": bbox_xywh,
        "segmentation": segmentation,
    }
