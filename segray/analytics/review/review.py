"""How good labels are, told from a random sample of images that people corrected, and the corrections as truth.

Knows a selection, what was corrected of it and how to compare the two; knows nothing of the files that corrections
come in. The errors are those of the random control sample alone: the other images were chosen because they are unlike
the rest. Intervals mind that the instances of one image tend to be right and wrong together.
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
from segray.analytics.evaluation.error_types import Tally
from segray.analytics.query import key_ranges
from segray.analytics.query.atomic_output import atomic_output, require_new_path
from segray.analytics.review import annotation_import
from segray.analytics.review.annotation_import import Objects
from segray.analytics.review.sampling import Chosen, Selection
from segray.errors import UserError
from segray.label_set import snapshot
from segray.label_set.snapshot import Snapshot

Row = dict[str, Any]
Z = 1.959964  # of intervals that hold in 95 of 100 samples
SPURIOUS, WRONG_CLASS, POOR_MASK, MISSED = KINDS = ("spurious", "wrong class", "poor mask", "missed")
_RIGHT, _DETECTIONS, _OBJECTS = "right", "detections", "objects"
# What each kind of mistakes.KINDS is called here.
_CALLED = {
    "right": _RIGHT, "class": WRONG_CLASS, "both": WRONG_CLASS, "localisation": POOR_MASK, "duplicate": SPURIOUS,
    "background": SPURIOUS, "missed": MISSED,
}  # fmt: skip
ALL = "all classes"


@dataclass(frozen=True)
class Estimate:
    """A share of the whole label set, as a sample of its images tells it.

    hits, of: counts in the sample. value: hits / of; None where there is nothing. low, high: 95 % interval, Wilson's
    with as many independent instances as those of the sampled images are worth. naive_low, naive_high: Wilson's as if
    all were independent and the label set without end.
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
    """Of one class, or of all. precision: detections that are right, of the same class as an object and with a mask IoU
    of half or more. recall: objects that are found so. kinds: of KINDS; missed of objects, the others of detections."""

    detections: int
    objects: int
    precision: Estimate
    recall: Estimate
    kinds: Mapping[str, Estimate]


@dataclass(frozen=True)
class Review:
    """What people's corrections say of a label set.

    reviewed: images that were looked at; sampled: those of them that are of the random sample, on which the errors
    rest. population: the images it was drawn from. total: errors whatever the class; classes: by name, those that
    occur. truth: the file that was written.
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
    """Compare labels with what people made of them.

    selection: a file that `select` wrote. corrected: JSON of Label Studio, CVAT for images 1.1, or COCO JSON.
    truth_out: a COCO file to write, of all images that were looked at; `segray evaluate` reads it. allow_unfinished:
    leave out chosen images that are not done. The labels are those that the selection was made of, whatever became of
    them since, with the score that was exported.

    Raises, having written nothing, SourceError for a selection or corrections that cannot be used, UserError for a
    `truth_out` that is taken or a label set that is not the selection's, LabelSetError as tables.snapshot, or if chosen
    images have been labelled anew and what they had before is deleted.
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
    """The labels that the selection was made of: today's, if these images still have them, else an earlier state."""
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
    """Size (h, w) and batch of the chosen images, by key."""
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
    """Key, corrected objects and labels of each image of the sample."""
    labels: dict[str, pa.Table] = {}
    for part, keys in key_ranges.holding(key_ranges.cut(state), sample):
        chosen = key_ranges.of_images(keys) & (pc.field("score") >= min_score)
        labels |= key_ranges.Groups(key_ranges.instances(state, part, ["class_id", "score", "rle"], chosen))
    return [(key, found[key], labels.get(key)) for key in sample]


def _compared(
    objects: Objects, labels: pa.Table | None, size_hw: tuple[int, int], classes: Mapping[int, str]
) -> dict[str, Counter[str]]:
    """What one image adds, by class name."""
    truth = _found([category for category, _ in objects], [counts for _, counts in objects], size_hw)
    if labels is None:
        told = _found([], [], size_hw)
    else:
        scores = labels.column("score").to_numpy().astype(np.float64)
        told = _found(labels.column("class_id").to_pylist(), labels.column("rle").to_pylist(), size_hw, scores)
    tally = Tally(classes, 0.0)
    tally.add(truth, told, told.overlaps(truth, "segm"))
    found: dict[str, Counter[str]] = {}
    for kind, by_class in tally.result().kinds.items():
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
    """What each image adds, by class. fraction: of all images, that are in the sample."""

    def __init__(self, fraction: float) -> None:
        self._fraction = fraction
        self._images: dict[str, list[Counter[str]]] = {ALL: []}

    def add(self, by_class: Mapping[str, Counter[str]]) -> None:
        total = Counter[str]()
        for name, counts in by_class.items():
            self._images.setdefault(name, []).append(counts)
            total.update(counts)
        self._images[ALL].append(total)

    @property
    def names(self) -> list[str]:
        return sorted(self._images.keys() - {ALL})

    def errors(self, name: str) -> Errors:
        images = self._images[name]

        def share(hits: str, of: str) -> Estimate:
            return estimate([each[hits] for each in images], [each[of] for each in images], self._fraction)

        kinds = {kind: share(kind, _OBJECTS if kind == MISSED else _DETECTIONS) for kind in KINDS}
        detections, objects = (sum(each[what] for each in images) for what in (_DETECTIONS, _OBJECTS))
        return Errors(detections, objects, share(_RIGHT, _DETECTIONS), share(_RIGHT, _OBJECTS), kinds)


# ---- intervals ------------------------------------------------------------------------------------


def estimate(hits: Sequence[int], of: Sequence[int], fraction: float = 0.0) -> Estimate:
    """The share of hits, from what each sampled image has of both. fraction: of all images, that were sampled.

    The variance is that of a ratio of totals over images drawn by chance (Cochran, Sampling Techniques, 6.4); the
    interval is Wilson's for so many independent instances as have this variance, fewer yet where it rests on few
    images, never more than there are but for the part of the label set that was seen. Where all images agree, an image
    counts as one instance.
    """
    y, x = np.array(hits, np.float64), np.array(of, np.float64)
    y, x = y[x > 0], x[x > 0]
    total = float(x.sum())
    if not total:
        return Estimate(0, 0, None, 0.0, 1.0, 0.0, 1.0)
    share, images = float(y.sum()) / total, len(x)
    worth = total
    if images == 1 or share in (0.0, 1.0):
        worth = images
    else:
        variance = images / (images - 1) * float(((y - share * x) ** 2).sum()) / total**2
        worth = min(total, share * (1 - share) / variance * (Z / _student(images - 1)) ** 2) if variance > 0 else total
    unseen = 1 - fraction
    low, high = wilson(share, worth / unseen) if unseen > 0 else (share, share)
    return Estimate(int(y.sum()), int(total), share, low, high, *wilson(share, total))


def _student(freedom: int) -> float:
    """Student's quantile that Z is the limit of, after Abramowitz and Stegun 26.7.5; within 11 % from 2 degrees on."""
    first, second = (Z**3 + Z) / 4, (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96
    return Z + first / freedom + second / freedom**2


def wilson(share: float, number: float) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of so many independent trials, which need not be whole."""
    middle = share + Z * Z / (2 * number)
    half = Z * math.sqrt(share * (1 - share) / number + Z * Z / (4 * number * number))
    whole = 1 + Z * Z / number
    return max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole)


# ---- as truth -------------------------------------------------------------------------------------


def _write(out: Path, images: Sequence[Chosen], found: Mapping[str, Objects], classes: Mapping[int, str]) -> None:
    """COCO JSON with image keys as file names, whole or not at all. selected_by: why an image was chosen."""
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
