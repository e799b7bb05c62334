"""Comparison of two label sets of the same images: the instances that B keeps, moves, gains, loses and renames.

This module knows two snapshots and when two instances are the same. It does not decide which label set is right.
Both label sets are read in ranges of keys. A million images need little more memory than ten thousand.
"""

from __future__ import annotations

import difflib
import heapq
import itertools
import math
import operator
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Unpack

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from segray import rle
from segray.analytics.evaluation import class_maps
from segray.analytics.query import arrow_masks, key_ranges
from segray.analytics.query.atomic_output import require_file_path
from segray.analytics.query.key_ranges import KeyRange
from segray.analytics.reports import common_classes, contact_sheet
from segray.analytics.reports.common_classes import CommonClasses
from segray.errors import UserError
from segray.imaging import drawing
from segray.label_set import snapshot
from segray.label_set.class_names import find_class, folded
from segray.label_set.run_records import source_store
from segray.label_set.schema import BBOX
from segray.label_set.snapshot import Snapshot
from segray.masks import _kernels_many
from segray.sources.reader import by_uri
from segray.storage.options import StorageKeywords
from segray.storage.store import Store
from segray.storage.uris import PathOrUrl, as_path

KINDS = ("kept", "moved", "renamed", "gained", "lost")
SIZES = ("small", "medium", "large")
MATCH_IOU, KEPT_IOU = 0.5, 0.9
_COLUMNS = ("class_id", "class_name", "score", *BBOX, "area", "height", "width", "rle")
_SCORE_BINS = 1000
_StatusAndSize = tuple[str, int, int]  # Status, height and width of an image.


@dataclass(frozen=True)
class Change:
    """The change of one image.

    kinds: number of instances of the image, by kind.
    weight: number of gained, lost and renamed instances, plus 1 - IoU of each moved one.
    """

    key: str
    weight: float
    kinds: Mapping[str, int]


@dataclass(frozen=True)
class Agreement:
    """What two label sets see of one class, or of all.

    both: instances that both have with this class and a mask IoU of .5 and more. only_a, only_b: instances of the class
    in one label set whose counterpart is missing or has another class. share: share of `both` in all three counts,
    0..1. iou: mean mask IoU of those in both. Both are None without instances.
    """

    both: int
    only_a: int
    only_b: int
    share: float | None
    iou: float | None


@dataclass(frozen=True)
class Drift:
    """The distance of one distribution from another.

    statistic: chi-square of the class mix, or D of Kolmogorov and Smirnov for the scores.
    p: probability of at least this statistic between samples of one distribution, if instances were independent.
    effect: Cramer's V, or D. Neither grows with the number of instances.
    """

    statistic: float
    p: float
    effect: float


@dataclass(frozen=True)
class LabelSetDifference:
    """The difference of label set B from label set A.

    images: images in both label sets, which are compared. only_a, only_b: images in A alone, or in B alone.
    resized: compared images whose size differs. Their instances count as lost and gained.
    newly_failed, newly_read: images that failed in B alone, or in A alone.
    instances: number of instances of A and of B in compared images.
    kinds: number of instances by kind:

    - kept: same class and mask IoU >= .9.
    - moved: same class and mask IoU >= .5.
    - renamed: another class and mask IoU >= .5.
    - gained, lost: in B alone, in A alone.

    by_class: kinds by class name in A; by class name in B for gained instances. A class that both label sets have bears
        A's name.
    by_size: kinds by COCO's sizes.
    renamed: old class, new class and count, the largest count first.
    most_changed: images, the largest weight first.
    failed_gates: gates whose condition is true.
    undrawn: reason for each image that is not in the drawing, by key.
    agreement, agreement_by_class: what both label sets see, over all and by class name.
    other_classes: number of instances by class name, of the classes that only A has, and of those that only B has.
    left_out: whether these instances take no part in the comparison.
    notes: how classes were matched.
    """

    images: int
    only_a: int
    only_b: int
    resized: int
    newly_failed: int
    newly_read: int
    instances: tuple[int, int]
    kinds: Mapping[str, int]
    by_class: Mapping[str, Mapping[str, int]]
    by_size: Mapping[str, Mapping[str, int]]
    renamed: Sequence[tuple[str, str, int]]
    most_changed: Sequence[Change]
    class_drift: Drift
    score_drift: Drift
    failed_gates: Sequence[str] = field(default_factory=tuple)
    undrawn: Mapping[str, str] = field(default_factory=dict)
    agreement: Agreement = Agreement(0, 0, 0, None, None)
    agreement_by_class: Mapping[str, Agreement] = field(default_factory=dict)
    other_classes: tuple[Mapping[str, int], Mapping[str, int]] = ({}, {})
    left_out: bool = False
    notes: Sequence[str] = ()


def diff(
    root_a: PathOrUrl,
    root_b: PathOrUrl,
    *,
    fail_if: Sequence[str] = (),
    min_score: float = 0.0,
    most: int = 20,
    draw: PathOrUrl | None = None,
    both_labelled: bool = False,
    class_map: class_maps.Map | Path | str | None = None,
    shared_classes: bool = False,
    version_a: int | None = None,
    as_of_a: datetime | None = None,
    version_b: int | None = None,
    as_of_b: datetime | None = None,
    storage_options_b: StorageKeywords | None = None,
    **storage_options: Unpack[StorageKeywords],
) -> LabelSetDifference:
    """Compare label set B with label set A, image by image of the same key.

    The label sets may be of two models. Classes are compared by name: case and _ or - for a space play no part, and ids
    neither.

    Args:
        root_a: Folder or URL of A.
        root_b: Folder or URL of B, or of A again with another state.
        fail_if: Gates as `Gate.parse` reads them.
        min_score: Lowest score of the instances that take part.
        most: Number of images in `most_changed`.
        draw: PNG to write, with the readable images of `most_changed` side by side.
        both_labelled: Leave out images that failed in either label set.
        class_map: Names or ids of A's classes -> those of B's, or a file with such a map as YAML or JSON.
        shared_classes: Leave out instances of classes that only one of the label sets has.
        version_a: Batch of an earlier state of A.
        as_of_a: Time of an earlier state of A.
        version_b: Batch of an earlier state of B.
        as_of_b: Time of an earlier state of B.
        storage_options_b: Settings of the storage of B and of the drawn images; None for those of A.
        **storage_options: Settings of the storage, as for segray.scan.

    Raises:
        LabelSetError: A label set cannot be read, as in snapshot.snapshot, or has no commit.
        UserError: No image is in both label sets, a gate is not valid, neither label set has the class of a gate, or
            the map names an unknown class.
    """
    gates = [Gate.parse(text) for text in fail_if]
    picture = None if draw is None else as_path(draw)
    if picture is not None:
        require_file_path(picture)
    options_b = storage_options if storage_options_b is None else storage_options_b
    states = (
        key_ranges.committed(snapshot.snapshot(root_a, version=version_a, as_of=as_of_a, **storage_options)),
        key_ranges.committed(snapshot.snapshot(root_b, version=version_b, as_of=as_of_b, **options_b)),
    )
    pairs = class_maps.pairs(class_map, snapshot.store(storage_options))
    classes = common_classes.match(states[0].classes, states[1].classes, pairs)
    gates = [_with_class_name(gate, states, classes) for gate in gates]
    counts = _DifferenceCounts(most, classes, shared_classes)
    for key_range in key_ranges.cut(*states):
        _compare(states, key_range, min_score, counts, both_labelled)
    if not counts.images:
        raise UserError(
            "the two label sets have no image in common", where=f"{root_a}, {root_b}",
            hint="Label the same source into both label sets. Images are compared by key.",
        )  # fmt: skip
    difference = counts.result()
    failed_gates = tuple(gate.text for gate in gates if gate.fails(difference))
    undrawn: Mapping[str, str] = {}
    if picture is not None and difference.most_changed:
        undrawn = _draw_changes(states, difference.most_changed, min_score, picture, snapshot.store(options_b))
    return replace(difference, failed_gates=failed_gates, undrawn=undrawn)


# ---- gates ----------------------------------------------------------------------------------------


_GATE = re.compile(r"\s*([a-z_]+)(?:\[(.+)\])?\s*(>=|<=|>|<)\s*([0-9.]+)\s*(%?)\s*")
_COMPARE: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le,
}  # fmt: skip
_COUNTS = (*KINDS, "changed")
_IMAGES = ("only_a", "only_b", "resized", "newly_failed", "newly_read")
_DRIFTS = ("class_drift", "score_drift")


@dataclass(frozen=True)
class Gate:
    """A condition that fails a comparison, such as `lost>2%`, `changed[person]>=50` or `score_drift>0.1`.

    A gate names a class by its name, its partition value, or its name in other case. A percentage of instances refers
    to A's instances (of that class). A percentage of images refers to the compared images. `changed` counts all kinds
    except kept. A gate on a drift compares the effect.
    """

    text: str
    quantity: str
    class_name: str | None
    compare: Callable[[float, float], bool]
    limit: float
    percent: bool

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Parse a gate. Raise UserError for text that is no gate."""
        match = _GATE.fullmatch(text)
        quantities = (*_COUNTS, *_IMAGES, *_DRIFTS)
        if match is None or match[1] not in quantities or (match[2] and match[1] not in _COUNTS):
            hint = f"Write a gate such as lost>2% or lost[person]>10. Quantities are {', '.join(quantities)}."
            raise UserError("this is no gate", found=text, hint=hint)
        quantity, name, sign, number, percent = match.groups()
        try:
            return cls(text, quantity, name, _COMPARE[sign], float(number), percent == "%")
        except ValueError as error:
            raise UserError("this is no gate", found=text, hint="Write a number after the sign.") from error

    def fails(self, difference: LabelSetDifference) -> bool:
        """Return whether the condition is true for the difference."""
        if self.quantity in _DRIFTS:
            value, total = getattr(difference, self.quantity).effect, 1
        elif self.quantity in _IMAGES:
            value, total = getattr(difference, self.quantity), difference.images
        else:
            kinds = Counter[str]()
            for name, of_class in difference.by_class.items():
                if self.class_name in (None, name):
                    kinds.update(of_class)
            counted = KINDS[1:] if self.quantity == "changed" else (self.quantity,)
            value = sum(kinds[kind] for kind in counted)
            total = sum(count for kind, count in kinds.items() if kind != "gained")
        if self.percent:
            # A percentage of nothing is infinite, unless the value is 0 too.
            value = 100 * value / total if total else math.inf * value if value else 0.0
        return self.compare(value, self.limit)


def _with_class_name(gate: Gate, states: Sequence[Snapshot], classes: CommonClasses) -> Gate:
    """Return the gate with the name under which the class is compared.

    Raise UserError for an unknown class, which would never fail.
    """
    if gate.class_name is None or not any(state.classes for state in states):
        return gate
    for state, names in zip(states, (classes.names_a, classes.names_b), strict=True):
        class_id = find_class(gate.class_name, state.classes, state.partitions)
        if class_id is not None:
            name = state.classes[class_id]
            return replace(gate, class_name=names.get(name, name))
    own_names = {folded(name): name for state in states for name in state.classes.values()}
    similar = difflib.get_close_matches(folded(gate.class_name), own_names) or sorted(own_names)[:10]
    raise UserError(
        "neither label set has the class of this gate", found=gate.text,
        hint=f"Name a class of the label sets, such as {', '.join(own_names[name] for name in similar)}.",
    )  # fmt: skip


# ---- range by range -------------------------------------------------------------------------------


def _compare(
    states: tuple[Snapshot, Snapshot],
    key_range: KeyRange,
    min_score: float,
    counts: _DifferenceCounts,
    both_labelled: bool,
) -> None:
    images_by_side, instances_by_side = [], []
    for state in states:
        images = key_ranges.images(state, key_range, ["image_key", "status", "height", "width"]).to_pylist()
        images_by_side.append({row["image_key"]: (row["status"], row["height"], row["width"]) for row in images})
        rows = key_ranges.instances(state, key_range, _COLUMNS, pc.field("score") >= min_score)
        instances_by_side.append(key_ranges.Groups(rows))
    images_a, images_b = images_by_side
    instances_a, instances_b = instances_by_side
    for key in sorted(images_a.keys() | images_b.keys()):
        image_a, image_b = images_a.get(key), images_b.get(key)
        if image_b is None:
            counts.only_a += 1
        elif image_a is None:
            counts.only_b += 1
        elif not both_labelled or "failed" not in (image_a[0], image_b[0]):
            counts.add(key, (image_a, image_b), instances_a.get(key), instances_b.get(key))


@dataclass(frozen=True)
class _Side:
    """One image's instances in one label set, as columns."""

    names: list[str]
    scores: NDArray[np.float64]
    boxes: NDArray[np.float64]
    areas: NDArray[np.int64]
    size_hw: tuple[int, int] | None
    rles: list[str]

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_rows(cls, rows: pa.Table | None, names: Mapping[str, str], shared: Collection[str] | None) -> _Side:
        """Return the instances of an image.

        Args:
            rows: The rows; None without any.
            names: Own name of a class -> name under which the class is compared, where both differ.
            shared: Names of classes whose instances take part; None for all.
        """
        common = [] if rows is None else [names.get(name, name) for name in rows.column("class_name").to_pylist()]
        if rows is not None and shared is not None:
            is_shared = [name in shared for name in common]
            rows, common = rows.filter(pa.array(is_shared, pa.bool_())), [name for name in common if name in shared]
        if rows is None or not rows.num_rows:
            return cls([], np.empty(0), np.empty((0, 4)), np.empty(0, np.int64), None, [])
        boxes = np.stack([rows.column(name).to_numpy() for name in BBOX], axis=1).astype(np.float64)
        return cls(
            common,
            rows.column("score").to_numpy().astype(np.float64),
            boxes,
            rows.column("area").to_numpy().astype(np.int64),
            (rows.column("height")[0].as_py(), rows.column("width")[0].as_py()),
            rows.column("rle").to_pylist(),
        )


def matches(a: _Side, b: _Side) -> list[tuple[int, int, float]]:
    """Return pairs of indices into a and b of the same instance, and their mask IoU, which is .5 or more.

    Pairs of one class come first, then by falling IoU. Only masks whose tight boxes touch are compared.
    """
    rows, columns = np.nonzero(_touching_pairs(_tight_boxes(a), _tight_boxes(b)))
    if not len(rows):
        return []
    text_a, text_b = arrow_masks.text_of(a.rles), arrow_masks.text_of(b.rles)
    overlaps = _kernels_many.overlaps(*text_a.at(rows), *text_b.at(columns), rle.MAX_GROUPS)
    ious = arrow_masks.iou_of(overlaps)
    other_class = np.array([a.names[i] != b.names[j] for i, j in zip(rows, columns, strict=True)])
    taken_a, taken_b, pairs = set[int](), set[int](), []
    for k in np.lexsort((columns, rows, -ious, other_class)).tolist():
        i, j = int(rows[k]), int(columns[k])
        if ious[k] >= MATCH_IOU and overlaps[k, 0] > 0 and i not in taken_a and j not in taken_b:
            taken_a.add(i)
            taken_b.add(j)
            pairs.append((i, j, float(ious[k])))
    return pairs


def _tight_boxes(side: _Side) -> NDArray[np.float64]:
    assert side.size_hw is not None or not len(side)
    return rle.bbox(side.rles, side.size_hw) if side.size_hw else np.empty((0, 4))


def _touching_pairs(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.bool_]:
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum((a[:, :2] + a[:, 2:])[:, None], (b[:, :2] + b[:, 2:])[None])
    return np.asarray((high > low).all(axis=2))


class _DifferenceCounts:
    """The counts of a comparison, and the images that changed most."""

    def __init__(self, most: int, classes: CommonClasses, shared_only: bool) -> None:
        self._common = classes
        self._taken = classes.shared if shared_only else None
        self._other_classes = Counter[str](), Counter[str]()
        self._pairs, self._ious = Counter[str](), defaultdict[str, float](float)
        self.images = self.only_a = self.only_b = 0
        self._resized = self._newly_failed = self._newly_read = 0
        self._kinds: dict[str, Counter[str]] = {}
        self._sizes: dict[str, Counter[str]] = {name: Counter() for name in SIZES}
        self._renamed: Counter[tuple[str, str]] = Counter()
        self._most, self._changed = most, list[tuple[float, str, Counter[str]]]()
        self._classes_a, self._classes_b = Counter[str](), Counter[str]()
        self._scores_a, self._scores_b = np.zeros(_SCORE_BINS, np.int64), np.zeros(_SCORE_BINS, np.int64)

    def add(
        self, key: str, images: tuple[_StatusAndSize, _StatusAndSize], rows_a: pa.Table | None, rows_b: pa.Table | None
    ) -> None:
        """Count one image that both label sets have.

        Args:
            key: Key of the image.
            images: Status and size of the image in A and in B.
            rows_a: Instances of the image in A; None without any.
            rows_b: Those in B.
        """
        self.images += 1
        self._count_other_classes(rows_a, rows_b)
        a = _Side.from_rows(rows_a, self._common.names_a, self._taken)
        b = _Side.from_rows(rows_b, self._common.names_b, self._taken)
        (status_a, *size_a), (status_b, *size_b) = images
        failed_a, failed_b = status_a == "failed", status_b == "failed"
        self._newly_failed += failed_b and not failed_a
        self._newly_read += failed_a and not failed_b
        self._classes_a.update(a.names)
        self._classes_b.update(b.names)
        self._scores_a += _score_histogram(a.scores)
        self._scores_b += _score_histogram(b.scores)
        resized = not failed_a and not failed_b and size_a != size_b
        self._resized += resized
        if resized:
            pairs = []
        elif a.names == b.names and a.rles == b.rles:
            pairs = [(i, i, 1.0) for i in range(len(a))]
        else:
            pairs = matches(a, b)
        self._count(key, a, b, pairs)

    def _count_other_classes(self, rows_a: pa.Table | None, rows_b: pa.Table | None) -> None:
        """Count the instances of classes that one of the label sets lacks."""
        shared = self._common.shared
        if shared is None:
            return
        own_names = (self._common.names_a, self._common.names_b)
        for rows, names, counts in zip((rows_a, rows_b), own_names, self._other_classes, strict=True):
            for name in [] if rows is None else rows.column("class_name").to_pylist():
                if names.get(name, name) not in shared:
                    counts[name] += 1

    def _count(self, key: str, a: _Side, b: _Side, pairs: Sequence[tuple[int, int, float]]) -> None:
        kinds, weight = Counter[str](), 0.0
        for i, j, iou in pairs:
            if a.names[i] != b.names[j]:
                kind = "renamed"
                self._renamed[a.names[i], b.names[j]] += 1
                weight += 1
            else:
                kind = "kept" if iou >= KEPT_IOU else "moved"
                self._pairs[a.names[i]] += 1
                self._ious[a.names[i]] += iou
                weight += 1 - iou if kind == "moved" else 0
            self._count_instance(kinds, kind, a.names[i], int(a.areas[i]))
        lost = set(range(len(a))) - {i for i, _, _ in pairs}
        gained = set(range(len(b))) - {j for _, j, _ in pairs}
        for kind, side, indices in (("lost", a, lost), ("gained", b, gained)):
            for k in indices:
                self._count_instance(kinds, kind, side.names[k], int(side.areas[k]))
        weight += len(lost) + len(gained)
        if weight:
            push = heapq.heappush if len(self._changed) < self._most else heapq.heappushpop
            push(self._changed, (weight, key, kinds))

    def _count_instance(self, kinds: Counter[str], kind: str, class_name: str, area_px: int) -> None:
        kinds[kind] += 1
        self._kinds.setdefault(class_name, Counter())[kind] += 1
        self._sizes[_size_name(area_px)][kind] += 1

    def result(self) -> LabelSetDifference:
        total = Counter[str]()
        for kinds in self._kinds.values():
            total.update(kinds)
        changed = sorted(self._changed, key=lambda entry: (-entry[0], entry[1]))
        return LabelSetDifference(
            images=self.images,
            only_a=self.only_a,
            only_b=self.only_b,
            resized=self._resized,
            newly_failed=self._newly_failed,
            newly_read=self._newly_read,
            instances=(self._classes_a.total(), self._classes_b.total()),
            kinds={kind: total[kind] for kind in KINDS},
            by_class={name: {kind: counts[kind] for kind in KINDS} for name, counts in sorted(self._kinds.items())},
            by_size={name: {kind: counts[kind] for kind in KINDS} for name, counts in self._sizes.items()},
            renamed=[(old, new, count) for (old, new), count in self._renamed.most_common()],
            most_changed=[Change(key, round(weight, 6), dict(kinds)) for weight, key, kinds in changed],
            class_drift=class_drift(self._classes_a, self._classes_b),
            score_drift=score_drift(self._scores_a, self._scores_b),
            agreement=self._agreement(None),
            agreement_by_class={name: self._agreement(name) for name in sorted(self._classes_a | self._classes_b)},
            other_classes=(dict(self._other_classes[0].most_common()), dict(self._other_classes[1].most_common())),
            left_out=self._taken is not None,
            notes=tuple(self._common.notes),
        )

    def _agreement(self, name: str | None) -> Agreement:
        """Return what both label sets see of a class; None for all classes."""
        counters = (self._pairs, self._classes_a, self._classes_b)
        both, in_a, in_b = (counter.total() if name is None else counter[name] for counter in counters)
        iou_sum = sum(self._ious.values()) if name is None else self._ious[name]
        share = round(both / (in_a + in_b - both), 6) if in_a + in_b else None
        return Agreement(both, in_a - both, in_b - both, share, round(iou_sum / both, 6) if both else None)


def _score_histogram(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    bins = np.clip((scores * _SCORE_BINS).astype(np.int64), 0, _SCORE_BINS - 1)
    return np.bincount(bins, minlength=_SCORE_BINS)


def _size_name(area_px: int) -> str:
    """Return the name of COCO's size of an instance."""
    if area_px < 32**2:
        return "small"
    return "medium" if area_px < 96**2 else "large"


# ---- drift ----------------------------------------------------------------------------------------


def class_drift(a: Mapping[str, int], b: Mapping[str, int]) -> Drift:
    """Return the chi-square test of homogeneity on two class mixes. a, b: number of instances by class name."""
    names = sorted(a.keys() | b.keys())
    table = np.array([[side.get(name, 0) for name in names] for side in (a, b)], np.float64)
    total = table.sum()
    if not names or not table.sum(axis=1).all():
        return Drift(0.0, 1.0, 1.0 if names else 0.0)
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / total
    statistic = float(((table - expected) ** 2 / expected).sum())
    degrees = len(names) - 1
    return Drift(statistic, _chi_square_tail(statistic, degrees), math.sqrt(statistic / total))


def _chi_square_tail(statistic: float, degrees: int) -> float:
    """Return the tail of the chi-square distribution by Wilson and Hilferty's approximation, good to about 0.01."""
    if not degrees or statistic <= 0:
        return 1.0
    spread = 2 / (9 * degrees)
    return 0.5 * math.erfc((((statistic / degrees) ** (1 / 3)) - (1 - spread)) / math.sqrt(2 * spread))


def score_drift(a: NDArray[np.int64], b: NDArray[np.int64]) -> Drift:
    """Return Kolmogorov and Smirnov's test on two histograms of scores with the same bins. a, b: (bins,) int64."""
    total_a, total_b = int(a.sum()), int(b.sum())
    if not total_a or not total_b:
        return Drift(0.0, 1.0, 0.0 if total_a == total_b else 1.0)
    distance = float(np.abs(np.cumsum(a) / total_a - np.cumsum(b) / total_b).max())
    root = math.sqrt(total_a * total_b / (total_a + total_b))
    scaled = (root + 0.12 + 0.11 / root) * distance
    tail = 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * scaled * scaled) for k in range(1, 101))
    return Drift(distance, min(1.0, max(0.0, tail)) if scaled > 0.2 else 1.0, distance)


# ---- drawing --------------------------------------------------------------------------------------


def _draw_changes(
    states: tuple[Snapshot, Snapshot], changed: Sequence[Change], min_score: float, out_png: Path, store: Store
) -> Mapping[str, str]:
    """Draw the changed images that can be drawn. Return the reasons for the others, by key."""
    old, new = states
    old_name, new_name = _names(old, new)
    keys = [change.key for change in changed]
    pairs = [(_labelled_picture(old, key, min_score), _labelled_picture(new, key, min_score)) for key in keys]
    failed = [pair for pair in pairs if (0, 0) in (pair[0].size_hw, pair[1].size_hw)]
    labelled = [pair for pair in pairs if pair not in failed]
    reasons = contact_sheet.side_by_side(
        labelled, out_png, read=by_uri(source_store(store, new.root)), title=f"{old_name}  >  {new_name}"
    )
    return {**dict.fromkeys((a.key for a, _ in failed), "failed in one of the label sets"), **reasons}


def _names(old: Snapshot, new: Snapshot) -> tuple[str, str]:
    """Return a short name for each of two label sets: the root without the folders of both, or the batch."""
    if old.root == new.root:
        return f"{old.root}, batch {old.batch}", f"batch {new.batch}"
    folders = [state.root.split("/") for state in (old, new)]
    pairs = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(folders[0][:-1], folders[1][:-1], strict=False))
    shared = [name for name, _ in pairs]
    start = len(shared) if any(shared) else 0
    old_name, new_name = ("/".join(parts[start:]) for parts in folders)
    return old_name, new_name


def _labelled_picture(state: Snapshot, key: str, min_score: float) -> contact_sheet.LabelledPicture:
    key_filter = pc.field("image_key") == key
    (image,) = state.images.to_table(columns=["uri", "height", "width"], filter=key_filter).to_pylist()
    rows = state.instances.to_table(
        columns=list(contact_sheet.LABEL), filter=key_filter & (pc.field("score") >= min_score)
    )
    labels = [drawing.Label.from_row(row) for row in rows.to_pylist()]
    return contact_sheet.LabelledPicture(key, image["uri"], (image["height"], image["width"]), tuple(labels))
