"""Errors of labels, estimated from a random sample of images that people corrected, and the corrections as truth.

This module knows a selection and its corrections. annotation_import knows the files of corrections.
Errors are those of the random control sample alone: the other images were chosen because they differ from the rest.
Intervals allow for the instances of one image being right and wrong together.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from segray.analytics.review.sampling import Chosen, Selection
from segray.errors import UserError
from segray.label_set import snapshot
from segray.label_set.snapshot import Snapshot

Row = dict[str, Any]
Z = 1.959964  # normal quantile of 95 % intervals
SPURIOUS, WRONG_CLASS, POOR_MASK, MISSED = KINDS = ("spurious", "wrong class", "poor mask", "missed")
_RIGHT, _DETECTIONS, _OBJECTS = "right", "detections", "objects"
# The name here of each kind of error_types.KINDS.
_CALLED = {
    "right": _RIGHT, "class": WRONG_CLASS, "both": WRONG_CLASS, "localisation": POOR_MASK, "duplicate": SPURIOUS,
    "background": SPURIOUS, "missed": MISSED,
}  # fmt: skip
ALL = "all classes"


@dataclass(frozen=True)
class ShareEstimate:
    """A share of the whole label set, estimated from a sample of its images.

    hits, of: counts in the sample. value: hits / of; None if there are no counts.
    low, high: 95 % interval by Wilson, with the effective number of independent instances.
    naive_low, naive_high: Wilson's interval as if all instances were independent and the label set infinite.
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

    detections, objects: counts in the sample. precision: share of detections that are right. recall: share of objects
    that are found. A detection is right if it has the class of an object and a mask IoU of 0.5 or more with the object.
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

    reviewed: number of reviewed images. sampled: number of them in the random sample, on which the errors rest.
    population: number of images that the sample was drawn from. total: errors over all classes; None without a sample.
    classes: errors by class name, of the classes that occur. truth: file that was written.
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
    root: str,
    selection: Path,
    corrected: Path,
    *,
    truth_out: Path | None = None,
    allow_unfinished: bool = False,
    **storage_options: Any,
) -> Review:
    """Compare labels with people's corrections.

    The labels are those that the selection was made of, with the exported scores, whatever was committed since.
    Nothing is written after an error.

    Args:
        root: Folder or URL of the label set.
        selection: A file that `select` wrote.
        corrected: JSON of Label Studio, CVAT for images 1.1, or COCO JSON.
        truth_out: COCO file to write, of all reviewed images. `segray evaluate` reads it.
        allow_unfinished: Leave out chosen images that are not done.
        **storage_options: Settings of the storage, as for segray.scan.

    Raises:
        SourceError: The selection or the corrections cannot be used.
        UserError: `truth_out` is taken, or the selection is of another label set.
        LabelSetError: As snapshot.snapshot raises it. Chosen images were labelled anew and their old labels are
            deleted.
    """
    if truth_out is not None:
        require_new_path(truth_out)
    picked = Selection.read(selection)
    state = _labels(root, picked, storage_options)
    found = annotation_import.read(corrected, picked.chosen, state.classes, allow_unfinished=allow_unfinished)
    sizes = {each.key: each.size_hw for each in picked.chosen}
    sample = sorted(picked.sample & found.keys())
    counts = Counts(fraction=len(sample) / max(picked.images, 1))
    for key, objects, labels in _pairs(state, sample, found, picked.min_score):
        counts.add(_compared(objects, labels, sizes[key], state.classes))
    if truth_out is not None:
        _write(truth_out, [each for each in picked.chosen if each.key in found], found, state.classes)
    return Review(
        state.root,
        len(found),
        len(sample),
        picked.images,
        counts.errors(ALL) if sample else None,
        {name: counts.errors(name) for name in counts.names},
        None if truth_out is None else str(truth_out),
        _notes(picked, found, sample, annotation_import.tells_done(corrected)),
    )


def _labels(root: str, picked: Selection, storage_options: Mapping[str, Any]) -> Snapshot:
    """Return the state that the selection was made of.

    That is the latest state if these images still have the same labels, else an earlier one.
    """
    state = key_ranges.committed(snapshot.snapshot(root, **storage_options))
    if picked.fingerprint and state.fingerprint != picked.fingerprint:
        raise _not_of(state, picked, "it is another model's")
    found = _images(state, picked)
    other_batch = state.batch < picked.batch or any(batch > picked.batch for _, batch in found.values())
    if other_batch or len(found) < len(picked.chosen):
        state = snapshot.snapshot(state.root, version=picked.batch, **storage_options)
        found = _images(state, picked)
    other = [each.key for each in picked.chosen if each.key not in found or found[each.key][0] != each.size_hw]
    if other:
        raise _not_of(state, picked, f"{len(other)} images that it lacks or has in another size, such as {other[0]}")
    return state


def _images(state: Snapshot, picked: Selection) -> dict[str, tuple[tuple[int, int], int]]:
    """Return size (h, w) and batch of the chosen images, by key."""
    these = key_ranges.of_images([each.key for each in picked.chosen])
    rows = state.images.to_table(columns=["image_key", "height", "width", "batch"], filter=these).to_pylist()
    return {row["image_key"]: ((row["height"], row["width"]), row["batch"]) for row in rows}


def _not_of(state: Snapshot, picked: Selection, found: str) -> UserError:
    return UserError(
        "the selection is not of this label set", where=state.root, found=found,
        hint=f"give the label set that it was made of: {picked.root}",
    )  # fmt: skip


def _notes(picked: Selection, found: Mapping[str, Objects], sample: Sequence[str], tells_done: bool) -> list[str]:
    notes = []
    if not tells_done:
        notes.append("this format does not say which images were looked at: all in the file count as if they were")
    if not sample:
        notes.append("no image of a random sample was looked at, so errors cannot be told: select some with random=50")
    if left := len(picked.chosen) - len(found):
        notes.append(f"{left} chosen images are not done; if these are the hard ones, the labels are worse than told")
    if sample and not picked.blind:
        notes.append("people who start from labels leave mistakes in them; `segray select --blind` shows them none")
    if picked.failed:
        notes.append(f"{picked.failed} images of the label set failed and are no part of this")
    return notes


# ---- image by image -------------------------------------------------------------------------------


def _pairs(
    state: Snapshot, sample: Sequence[str], found: Mapping[str, Objects], min_score: float
) -> list[tuple[str, Objects, pa.Table | None]]:
    """Return key, corrected objects and labels of each image of the sample."""
    labels: dict[str, pa.Table] = {}
    for part, keys in key_ranges.holding(key_ranges.cut(state), sample):
        chosen = key_ranges.of_images(keys) & (pc.field("score") >= min_score)
        labels |= key_ranges.Groups(key_ranges.instances(state, part, ["class_id", "score", "rle"], chosen))
    return [(key, found[key], labels.get(key)) for key in sample]


def _compared(
    objects: Objects, labels: pa.Table | None, size_hw: tuple[int, int], classes: Mapping[int, str]
) -> dict[str, Counter[str]]:
    """Return the counts of one image, by class name."""
    truth = _found([category for category, _ in objects], [counts for _, counts in objects], size_hw)
    if labels is None:
        told = _found([], [], size_hw)
    else:
        scores = labels.column("score").to_numpy().astype(np.float64)
        told = _found(labels.column("class_id").to_pylist(), labels.column("rle").to_pylist(), size_hw, scores)
    counter = ErrorCounter(classes, 0.0)
    counter.add(truth, told, told.overlaps(truth, "segm"))
    found: dict[str, Counter[str]] = {}
    for kind, by_class in counter.result().kinds.items():
        for name, count in by_class.items():
            found.setdefault(name, Counter())[_CALLED[kind]] += count
            found[name][_DETECTIONS] += count * (kind != "missed")
    for category, _ in objects:
        found.setdefault(classes[category], Counter())[_OBJECTS] += 1
    return found


def _found(
    class_ids: Sequence[int], rles: Sequence[str], size_hw: tuple[int, int], scores: Any = None
) -> ImageAnnotations:
    shapes = {"segm": [{"size": list(size_hw), "counts": counts.encode()} for counts in rles]}
    ignore = np.zeros(len(rles), np.bool_)
    areas = {"segm": np.asarray(rle.area(rles), np.float64)}
    given = np.zeros(len(rles)) if scores is None else scores
    return ImageAnnotations(np.array(class_ids, np.int64), shapes, areas, scores=given, crowd=ignore, ignore=ignore)


class Counts:
    """The counts of each image, by class. fraction: share of all images that is in the sample."""

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
            return estimate([each[hits] for each in images], [each[of] for each in images], self._fraction)

        kinds = {kind: share(kind, _OBJECTS if kind == MISSED else _DETECTIONS) for kind in KINDS}
        detections, objects = (sum(each[what] for each in images) for what in (_DETECTIONS, _OBJECTS))
        return Errors(detections, objects, share(_RIGHT, _DETECTIONS), share(_RIGHT, _OBJECTS), kinds)


# ---- intervals ------------------------------------------------------------------------------------


def estimate(hits: Sequence[int], of: Sequence[int], fraction: float = 0.0) -> ShareEstimate:
    """Estimate the share of hits from the counts of each sampled image. fraction: share of all images that was sampled.

    The variance is that of a ratio of totals over images drawn by chance (Cochran, Sampling Techniques, 6.4). The
    interval is Wilson's for the number of independent instances with this variance. That number is lower if few images
    are sampled. It is at most the number of instances, before the correction for the part of the label set that was
    seen. If all images agree, an image counts as one instance.
    """
    y, x = np.array(hits, np.float64), np.array(of, np.float64)
    y, x = y[x > 0], x[x > 0]
    total = float(x.sum())
    if not total:
        return ShareEstimate(0, 0, None, 0.0, 1.0, 0.0, 1.0)
    share, images = float(y.sum()) / total, len(x)
    worth = total
    if images == 1 or share in (0.0, 1.0):
        worth = images
    else:
        variance = images / (images - 1) * float(((y - share * x) ** 2).sum()) / total**2
        worth = min(total, share * (1 - share) / variance * (Z / _student(images - 1)) ** 2) if variance > 0 else total
    unseen = 1 - fraction
    low, high = wilson(share, worth / unseen) if unseen > 0 else (share, share)
    return ShareEstimate(int(y.sum()), int(total), share, low, high, *wilson(share, total))


def _student(freedom: int) -> float:
    """Return Student's quantile, of which Z is the limit. freedom: degrees of freedom.

    The formula is 26.7.5 of Abramowitz and Stegun. It is within 11 % from 2 degrees on.
    """
    first, second = (Z**3 + Z) / 4, (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96
    return Z + first / freedom + second / freedom**2


def wilson(share: float, number: float) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share. number: of independent trials, which need not be whole."""
    middle = share + Z * Z / (2 * number)
    half = Z * math.sqrt(share * (1 - share) / number + Z * Z / (4 * number * number))
    whole = 1 + Z * Z / number
    return max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole)


# ---- as truth -------------------------------------------------------------------------------------


def _write(out: Path, images: Sequence[Chosen], found: Mapping[str, Objects], classes: Mapping[int, str]) -> None:
    """Write COCO JSON with image keys as file names, whole or not at all.

    selected_by in the file: the criteria that chose an image.
    """
    listed, annotations = list[Row](), list[Row]()
    for number, image in enumerate(images, 1):
        height, width = image.size_hw
        row = {"id": number, "file_name": image.key, "height": height, "width": width, "coco_url": image.uri}
        listed.append({**row, "selected_by": sorted(image.why)})
        for category, counts in found[image.key]:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category,
                    "iscrowd": 0,
                    "area": rle.area(counts),
                    "bbox": rle.bbox(counts, image.size_hw).tolist(),
                    "segmentation": {"size": [height, width], "counts": counts},
                }
            )
    categories = [{"id": category, "name": name} for category, name in sorted(classes.items())]
    content = {"info": {"description": "corrected by people"}, "categories": categories}
    with atomic_output(out) as unfinished:
        unfinished.write_text(json.dumps({**content, "images": listed, "annotations": annotations}), encoding="utf-8")
