"""Errors of labels, estimated from a random sample of images that people corrected, and the corrections as truth.

This module knows a selection and its corrections. annotation_import knows the files of corrections.
Errors come from the random sample alone, because the other criteria select unusual images.
The intervals allow for errors that are correlated within an image.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segray import rle
from segray.analytics.evaluation.coco_eval import ImageAnnotations
from segray.analytics.evaluation.error_types import ErrorCounter
from segray.analytics.query import key_ranges
from segray.analytics.query.atomic_output import atomic_output, require_new_path
from segray.analytics.review import annotation_import
from segray.analytics.review.annotation_import import Objects
from segray.analytics.review.sampling import SelectedImage, Selection
from segray.errors import UserError
from segray.label_set import snapshot
from segray.label_set.snapshot import Snapshot
from segray.storage.options import StorageKeywords
from segray.storage.uris import PathOrUrl, as_path

Row = dict[str, Any]
Z = 1.959964  # normal quantile of 95 % intervals
SPURIOUS, WRONG_CLASS, POOR_MASK, MISSED = KINDS = ("spurious", "wrong class", "poor mask", "missed")
_RIGHT, _DETECTIONS, _OBJECTS = "right", "detections", "objects"
# The kind that each kind of error_types.KINDS counts as.
_KIND_BY_ERROR_TYPE = {
    "right": _RIGHT, "class": WRONG_CLASS, "both": WRONG_CLASS, "localisation": POOR_MASK, "duplicate": SPURIOUS,
    "background": SPURIOUS, "missed": MISSED,
}  # fmt: skip
ALL = "all classes"


@dataclass(frozen=True)
class ShareEstimate:
    """A share in the label set, estimated from a sample of images.

    hits, of: counts in the sample. value: hits / of; None if there are no counts.
    low, high: 95 % interval by Wilson, with the effective number of independent instances.
    naive_low, naive_high: Wilson's interval for independent instances and an infinite label set.
    """

    hits: int
    of: int
    value: float | None
    low: float
    high: float
    naive_low: float
    naive_high: float


@dataclass(frozen=True)
class Errors:
    """The errors of one class, or of all.

    detections, objects: counts in the sample.
    precision: share of detections that are right. A right detection has the class of an object, and a mask IoU of 0.5
    or more with the object.
    recall: share of objects that are found.
    kinds: share of each of KINDS. "missed" is a share of objects, the other kinds are shares of detections.
    """

    detections: int
    objects: int
    precision: ShareEstimate
    recall: ShareEstimate
    kinds: Mapping[str, ShareEstimate]


@dataclass(frozen=True)
class Review:
    """The result of comparing a label set with people's corrections.

    reviewed: number of reviewed images.
    sampled: number of reviewed images in the random sample, from which the errors are estimated.
    population: number of images that the sample was drawn from.
    total: errors over all classes; None without a sample.
    classes: errors by class name, of the classes that occur.
    truth: path of the written truth; None if none was written.
    """

    root: str
    reviewed: int
    sampled: int
    population: int
    total: Errors | None
    classes: Mapping[str, Errors]
    truth: str | None = None
    notes: Sequence[str] = field(default_factory=tuple)


def review(
    root: PathOrUrl,
    selection: PathOrUrl,
    corrected: PathOrUrl,
    *,
    truth_out: PathOrUrl | None = None,
    allow_unfinished: bool = False,
    **storage_options: Unpack[StorageKeywords],
) -> Review:
    """Compare labels with people's corrections.

    The labels are those of the state that the selection was made of. Later commits change nothing. Nothing is written
    after an error.

    Args:
        root: Folder or URL of the label set.
        selection: A file that `select` wrote.
        corrected: JSON of Label Studio, CVAT for images 1.1, or COCO JSON.
        truth_out: COCO file to write with all reviewed images, for `segray evaluate`.
        allow_unfinished: Leave out images of the selection that are not done.
        **storage_options: Settings of the storage, as for segray.scan.

    Raises:
        SourceError: The selection or the corrections cannot be used.
        UserError: `truth_out` exists, or the selection is of another label set.
        LabelSetError: The label set cannot be read, as in snapshot.snapshot. Images of the selection were labelled
            again and their old labels are deleted.
    """
    corrected, new_truth = as_path(corrected), None if truth_out is None else as_path(truth_out)
    if new_truth is not None:
        require_new_path(new_truth)
    selected = Selection.read(as_path(selection))
    state = _read_reviewed_labels(root, selected, storage_options)
    corrections = annotation_import.read(corrected, selected.chosen, state.classes, allow_unfinished=allow_unfinished)
    sizes_hw = {image.key: image.size_hw for image in selected.chosen}
    sample = sorted(selected.sample & corrections.keys())
    counts = ErrorCounts(fraction=len(sample) / max(selected.images, 1))
    for key, objects, labels in _objects_and_labels(state, sample, corrections, selected.min_score):
        counts.add(_count_errors(objects, labels, sizes_hw[key], state.classes))
    if new_truth is not None:
        reviewed = [image for image in selected.chosen if image.key in corrections]
        _write_truth(new_truth, reviewed, corrections, state.classes)
    return Review(
        state.root,
        len(corrections),
        len(sample),
        selected.images,
        counts.errors(ALL) if sample else None,
        {name: counts.errors(name) for name in counts.names},
        None if new_truth is None else str(new_truth),
        _notes(selected, corrections, sample, annotation_import.marks_done_images(corrected)),
    )


def _read_reviewed_labels(root: PathOrUrl, selected: Selection, storage_options: Mapping[str, Any]) -> Snapshot:
    """Return the state that the selection was made of.

    The state is the latest one if the selected images still have the same labels, else an earlier one.
    """
    state = key_ranges.committed(snapshot.snapshot(root, **storage_options))
    if selected.fingerprint and state.fingerprint != selected.fingerprint:
        raise _wrong_label_set(state, selected, "another model's label set")
    images = _sizes_and_batches(state, selected)
    has_newer_labels = any(batch > selected.batch for _, batch in images.values())
    if state.batch < selected.batch or has_newer_labels or len(images) < len(selected.chosen):
        state = snapshot.snapshot(state.root, version=selected.batch, **storage_options)
        images = _sizes_and_batches(state, selected)
    other = [image.key for image in selected.chosen if image.key not in images or images[image.key][0] != image.size_hw]
    if other:
        found = f"{len(other)} images are missing or have another size, such as {other[0]}"
        raise _wrong_label_set(state, selected, found)
    return state


def _sizes_and_batches(state: Snapshot, selected: Selection) -> dict[str, tuple[tuple[int, int], int]]:
    """Return size (h, w) and batch of the images of the selection, by key."""
    key_filter = key_ranges.of_images([image.key for image in selected.chosen])
    rows = state.images.to_table(columns=["image_key", "height", "width", "batch"], filter=key_filter).to_pylist()
    return {row["image_key"]: ((row["height"], row["width"]), row["batch"]) for row in rows}


def _wrong_label_set(state: Snapshot, selected: Selection, found: str) -> UserError:
    return UserError(
        "the selection is not of this label set", where=state.root, found=found,
        hint=f"Give the label set that the selection was made of: {selected.root}",
    )  # fmt: skip


def _notes(
    selected: Selection, corrections: Mapping[str, Objects], sample: Sequence[str], marks_done_images: bool
) -> list[str]:
    notes = []
    if not marks_done_images:
        notes.append("this format does not say which images were reviewed: all images in the file count as reviewed")
    if not sample:
        notes.append("no image of a random sample was reviewed, so errors are unknown: give select --take random=50")
    if not_done := len(selected.chosen) - len(corrections):
        notes.append(f"{not_done} selected images are not done; if these are hard images, the labels have more errors")
    if sample and not selected.blind:
        notes.append("people who correct labels overlook mistakes in them; `segray select --blind` writes no labels")
    if selected.failed:
        notes.append(f"{selected.failed} failed images of the label set are not counted")
    return notes


# ---- image by image -------------------------------------------------------------------------------


def _objects_and_labels(
    state: Snapshot, sample: Sequence[str], corrections: Mapping[str, Objects], min_score: float
) -> list[tuple[str, Objects, pa.Table | None]]:
    """Return key, corrected objects and labels of each image of the sample."""
    labels: dict[str, pa.Table] = {}
    for key_range, keys in key_ranges.holding(key_ranges.cut(state), sample):
        condition = key_ranges.of_images(keys) & (pc.field("score") >= min_score)
        labels |= key_ranges.Groups(key_ranges.instances(state, key_range, ["class_id", "score", "rle"], condition))
    return [(key, corrections[key], labels.get(key)) for key in sample]


def _count_errors(
    objects: Objects, labels: pa.Table | None, size_hw: tuple[int, int], classes: Mapping[int, str]
) -> dict[str, Counter[str]]:
    """Return the counts of one image, by class name."""
    truth = _annotations([class_id for class_id, _ in objects], [counts for _, counts in objects], size_hw)
    if labels is None:
        detections = _annotations([], [], size_hw)
    else:
        scores = labels.column("score").to_numpy().astype(np.float64)
        class_ids, rles = labels.column("class_id").to_pylist(), labels.column("rle").to_pylist()
        detections = _annotations(class_ids, rles, size_hw, scores)
    counter = ErrorCounter(classes, 0.0)
    counter.add(truth, detections, detections.overlaps(truth, "segm"))
    counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for kind, by_class in counter.result().kinds.items():
        for name, count in by_class.items():
            counts[name][_KIND_BY_ERROR_TYPE[kind]] += count
            counts[name][_DETECTIONS] += 0 if kind == "missed" else count
    for class_id, _ in objects:
        counts[classes[class_id]][_OBJECTS] += 1
    return counts


def _annotations(
    class_ids: Sequence[int], rles: Sequence[str], size_hw: tuple[int, int], scores: Any = None
) -> ImageAnnotations:
    shapes = {"segm": [{"size": list(size_hw), "counts": counts.encode()} for counts in rles]}
    ignore = np.zeros(len(rles), np.bool_)
    areas = {"segm": np.asarray(rle.area(rles), np.float64)}
    scores = np.zeros(len(rles)) if scores is None else scores
    return ImageAnnotations(np.array(class_ids, np.int64), shapes, areas, scores=scores, crowd=ignore, ignore=ignore)


class ErrorCounts:
    """The error counts of each sampled image, by class. fraction: share of all images that is in the sample."""

    def __init__(self, fraction: float) -> None:
        self._fraction = fraction
        self._images: dict[str, list[Counter[str]]] = {ALL: []}

    def add(self, by_class: Mapping[str, Counter[str]]) -> None:
        """Add the counts of one image."""
        total = Counter[str]()
        for name, counts in by_class.items():
            self._images.setdefault(name, []).append(counts)
            total.update(counts)
        self._images[ALL].append(total)

    @property
    def names(self) -> list[str]:
        """Return the names of the classes that occur, sorted."""
        return sorted(self._images.keys() - {ALL})

    def errors(self, name: str) -> Errors:
        """Return the errors of one class, or of ALL."""
        images = self._images[name]

        def share(hits: str, of: str) -> ShareEstimate:
            return estimate([counts[hits] for counts in images], [counts[of] for counts in images], self._fraction)

        kinds = {kind: share(kind, _OBJECTS if kind == MISSED else _DETECTIONS) for kind in KINDS}
        detections = sum(counts[_DETECTIONS] for counts in images)
        objects = sum(counts[_OBJECTS] for counts in images)
        return Errors(detections, objects, share(_RIGHT, _DETECTIONS), share(_RIGHT, _OBJECTS), kinds)


# ---- intervals ------------------------------------------------------------------------------------


def estimate(hits: Sequence[int], of: Sequence[int], fraction: float = 0.0) -> ShareEstimate:
    """Estimate the share of hits from the counts of each sampled image.

    fraction: share of all images that was sampled.

    The variance is that of a ratio of totals over images drawn by chance (Cochran, Sampling Techniques, 6.4). The
    interval is Wilson's for the number of independent instances with this variance. The number is lower if few images
    are sampled, and at most the number of instances. A correction for the sampled share of all images follows. If all
    images agree, an image counts as one instance.
    """
    y, x = np.array(hits, np.float64), np.array(of, np.float64)
    y, x = y[x > 0], x[x > 0]
    total = float(x.sum())
    if not total:
        return ShareEstimate(0, 0, None, 0.0, 1.0, 0.0, 1.0)
    share, images = float(y.sum()) / total, len(x)
    effective_number = total
    if images == 1 or share in (0.0, 1.0):
        effective_number = images
    else:
        variance = images / (images - 1) * float(((y - share * x) ** 2).sum()) / total**2
        if variance > 0:
            correction = (Z / _student_quantile(images - 1)) ** 2
            effective_number = min(total, share * (1 - share) / variance * correction)
    unseen = 1 - fraction
    low, high = wilson(share, effective_number / unseen) if unseen > 0 else (share, share)
    return ShareEstimate(int(y.sum()), int(total), share, low, high, *wilson(share, total))


def _student_quantile(degrees: int) -> float:
    """Return Student's quantile, whose limit is Z. degrees: degrees of freedom.

    The formula is 26.7.5 of Abramowitz and Stegun. Its error is below 11 % for 2 degrees and more.
    """
    first, second = (Z**3 + Z) / 4, (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96
    return Z + first / degrees + second / degrees**2


def wilson(share: float, number: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share. number: number of independent trials, also fractional."""
    middle = share + Z * Z / (2 * number)
    half = Z * math.sqrt(share * (1 - share) / number + Z * Z / (4 * number * number))
    denominator = 1 + Z * Z / number
    return max(0.0, (middle - half) / denominator), min(1.0, (middle + half) / denominator)


# ---- the truth ------------------------------------------------------------------------------------


def _write_truth(
    out: Path, images: Sequence[SelectedImage], corrections: Mapping[str, Objects], classes: Mapping[int, str]
) -> None:
    """Write COCO JSON with image keys as file names. A failure leaves no file.

    `selected_by` in the file names the criteria that selected an image.
    """
    image_rows, annotations = list[Row](), list[Row]()
    for number, image in enumerate(images, 1):
        height, width = image.size_hw
        row = {"id": number, "file_name": image.key, "height": height, "width": width, "coco_url": image.uri}
        image_rows.append({**row, "selected_by": sorted(image.why)})
        for class_id, counts in corrections[image.key]:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": class_id,
                    "iscrowd": 0,
                    "area": rle.area(counts),
                    "bbox": rle.bbox(counts, image.size_hw).tolist(),
                    "segmentation": {"size": [height, width], "counts": counts},
                }
            )
    categories = [{"id": class_id, "name": name} for class_id, name in sorted(classes.items())]
    content = {"info": {"description": "corrected by people"}, "categories": categories}
    with atomic_output(out) as unfinished:
        unfinished.write_text(
            json.dumps({**content, "images": image_rows, "annotations": annotations}), encoding="utf-8"
        )
