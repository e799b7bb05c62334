"""Selection of images of a label set for review by people, with the reasons.

This module knows scores, classes, sizes and another label set. The result of the review belongs to other modules.
Images are read in ranges of keys. Memory holds the selected images, a number for each class, and for `diverse` a random
pool of a few thousand images. The same labels and seed give the same selection.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Unpack

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from segray.analytics.export.export import ExportSelection, export
from segray.analytics.export.formats import FORMATS
from segray.analytics.export.writer import ExportedImage
from segray.analytics.query import key_ranges
from segray.analytics.query.atomic_output import atomic_output, require_new_path
from segray.analytics.query.key_ranges import KeyRange
from segray.analytics.reports.diff import diff
from segray.errors import SourceError, UserError
from segray.instances import image_id
from segray.label_set import snapshot
from segray.label_set.snapshot import Snapshot
from segray.storage.options import StorageKeywords
from segray.storage.uris import PathOrUrl, as_path, as_uri

UNCERTAIN, DISAGREE, RARE, DIVERSE, RANDOM = CRITERIA = ("uncertain", "disagree", "rare", "diverse", "random")
MARGIN = 0.2  # A score at this distance from the threshold or more is not uncertain.
_POOL = 4000  # Number of images among which `diverse` selects.
_FORMAT = "segray selection 1"
_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SelectedImage:
    """One image of a selection.

    size_hw: height and width, in pixels. why: reason by criterion.
    """

    key: str
    uri: str
    size_hw: tuple[int, int]
    why: Mapping[str, str]

    @property
    def file(self) -> str:
        """Return the image's name in exports."""
        return str(ExportedImage(0, self.key, self.uri, self.size_hw, ()).file)


@dataclass(frozen=True)
class Selection:
    """The images that were selected from a label set. The names of the fields are the keys of the JSON file.

    batch: batch of the label set, so that the same labels can be read again.
    take: requested number of images, by criterion. taken: selected number of images, by criterion.
    images: number of images that are ok or empty, the population of the random sample.
    instances: number of their instances with min_score or more.
    failed: number of failed images, which are in neither count.
    chosen: the selected images, in the order of their keys.
    fingerprint: fingerprint of the model that made the labels; "" in selections without it.
    blind: the tasks hold no labels.
    """

    root: str
    batch: int
    take: Mapping[str, int]
    taken: Mapping[str, int]
    images: int
    instances: int
    failed: int
    min_score: float
    threshold: float
    seed: int
    against: str | None
    chosen: Sequence[SelectedImage] = field(repr=False)
    fingerprint: str = ""
    blind: bool = False

    @property
    def sample(self) -> frozenset[str]:
        """Return the keys of the random control sample."""
        return frozenset(image.key for image in self.chosen if RANDOM in image.why)

    def write(self, out: Path) -> None:
        """Write the selection as JSON. A failure leaves no file."""
        with atomic_output(out) as unfinished:
            unfinished.write_text(json.dumps({"format": _FORMAT, **asdict(self)}, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Selection:
        """Read a selection. Raise SourceError for a file that `write` did not write."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("format") != _FORMAT:
                raise ValueError("another format")
            rows = [{**row, "size_hw": tuple(row["size_hw"])} for row in content.pop("chosen")]
            return cls(**content, chosen=tuple(SelectedImage(**row) for row in rows))
        except FileNotFoundError as error:
            raise SourceError("no such selection", where=str(path), hint="Write one with `segray select`.") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            hint = "Give the file that `segray select` wrote."
            raise SourceError("this is no selection", where=str(path), found=repr(error)[:120], hint=hint) from error


def select(
    root: PathOrUrl,
    take: Mapping[str, int],
    *,
    out: PathOrUrl | None = None,
    to: str | None = None,
    tasks: PathOrUrl | None = None,
    against: PathOrUrl | None = None,
    threshold: float = 0.5,
    min_score: float = 0.0,
    seed: int = 0,
    blind: bool = False,
    version: int | None = None,
    as_of: datetime | None = None,
    **storage_options: Unpack[StorageKeywords],
) -> Selection:
    """Select images of a label set for review. Failed images are never selected.

    An image that several criteria select is listed once, with all reasons. The criteria are:

    - uncertain: most scores within MARGIN of the threshold; nearer scores count more.
    - disagree: most instances that the other label set lacks, adds, renames or moves, as `diff` counts.
    - rare: classes that occur in few images.
    - diverse: one by one the image that differs most from the images already taken, by classes, sizes and number of
      instances.
    - random: by the hash of the key and the seed, from all images, independent of the other criteria.

    Args:
        root: Folder or URL of the label set.
        take: Number of images by criterion.
        out: JSON file to write.
        to: A name in formats.FORMATS.
        tasks: File or folder for the selected images with their labels, in the format `to`.
        against: Label set for `disagree`.
        threshold: Score at which labels are uncertain.
        min_score: Lowest score of the labels that count and are exported. `uncertain` also uses lower scores.
        seed: Number that decides the random sample.
        blind: Write `tasks` without labels, so that people do not keep the mistakes in the labels.
        version: Batch of an earlier state.
        as_of: Time of an earlier state.
        **storage_options: Settings of the storage, as for segray.scan.

    Raises:
        UserError: A criterion is unknown, a number is below 1, or `out` or `tasks` exists. There is no image to
            select.
        LabelSetError: The label set cannot be read, as in snapshot.snapshot, or has no commit.
    """
    out, tasks = (None if place is None else as_path(place) for place in (out, tasks))
    against = None if against is None else as_uri(against)
    _check_options(take, against, to, tasks)
    if out is not None:
        require_new_path(out)
    if to is not None and tasks is not None:
        require_new_path(tasks, folder=FORMATS[to].is_folder)
        if out is not None and out.absolute() == tasks.absolute():
            hint = "Give OUT.json and --tasks different paths."
            raise UserError("the selection and its tasks would be one file", where=str(out), hint=hint)
    state = key_ranges.committed(snapshot.snapshot(root, version=version, as_of=as_of, **storage_options))
    ranges = key_ranges.cut(state)
    images_per_class = _images_per_class(state, ranges, min_score) if RARE in take or DIVERSE in take else {}
    best = _BestImages(take, threshold, min_score, seed, images_per_class)
    for key_range in ranges:
        best.add(state, key_range)
    if not best.images:
        raise UserError(
            "the label set has no image to select", where=state.root, found=f"failed images: {best.failed}",
            hint="`segray report` lists the failed images and their errors.",
        )  # fmt: skip
    reasons = best.reasons()
    if against is not None:
        difference = diff(
            state.root, against, min_score=min_score, most=take[DISAGREE], both_labelled=True, version_a=state.batch,
            **storage_options,
        )  # fmt: skip
        changes = {
            change.key: ", ".join(f"{count} {kind}" for kind, count in change.kinds.items() if kind != "kept")
            for change in difference.most_changed
        }
        reasons[DISAGREE] = {key: f"{kinds} in {against}" for key, kinds in changes.items()}
    selected = _selected_images(state, reasons)
    taken = {name: len(reasons.get(name, {})) for name in take}
    selection = Selection(
        state.root, state.batch, dict(take), taken, best.images, best.instances, best.failed, min_score, threshold,
        seed, against, selected, state.fingerprint, blind,
    )  # fmt: skip
    if not selected:
        hint = "Add a random sample, such as --take random=50."
        raise UserError("no image meets any of the criteria", where=state.root, found=", ".join(take), hint=hint)
    _check_unique_file_names(selected)
    if to is not None and tasks is not None:
        keys = frozenset(image.key for image in selected)
        export_selection = ExportSelection(min_score=min_score, keys=keys, images_only=blind)
        export(state.root, to, tasks, export_selection, version=state.batch, **storage_options)
    if out is not None:
        selection.write(out)
    return selection


def _check_options(take: Mapping[str, int], against: str | None, to: str | None, tasks: Path | None) -> None:
    unknown = [name for name in take if name not in CRITERIA]
    if unknown or not take:
        raise UserError("no such criterion", found=", ".join(unknown), hint=f"Choose from {', '.join(CRITERIA)}.")
    if too_small := [f"{name}={count}" for name, count in take.items() if count < 1]:
        hint = "Give each criterion a number of 1 or more, such as --take random=50."
        raise UserError("a criterion takes one image at least", found=", ".join(too_small), hint=hint)
    if (DISAGREE in take) != (against is not None):
        hint = "Give both --take disagree=N and --against, or neither."
        raise UserError("the criterion `disagree` and the other label set go together", hint=hint)
    if (to is None) != (tasks is None):
        hint = "Give both --to and --tasks, or neither."
        raise UserError("the format and the path of the tasks go together", hint=hint)
    if to is not None and to not in FORMATS:
        raise UserError("no such format", found=to, hint=f"Choose from {', '.join(FORMATS)}.")


def _check_unique_file_names(selected: Sequence[SelectedImage]) -> None:
    """Raise UserError if two images have one name in an export. Corrections refer to images by this name."""
    keys: dict[str, str] = {}
    for image in selected:
        if image.file in keys:
            raise UserError(
                "two selected images have one name in an export", where=image.file,
                found=f"{keys[image.file]} and {image.key}",
                hint="Select other images, for example with another --seed.",
            )  # fmt: skip
        keys[image.file] = image.key


def _selected_images(state: Snapshot, reasons: Mapping[str, Mapping[str, str]]) -> list[SelectedImage]:
    keys = sorted({key for by_key in reasons.values() for key in by_key})
    columns = ["image_key", "uri", "height", "width"]
    rows = state.images.to_table(columns=columns, filter=key_ranges.of_images(keys))
    return [
        SelectedImage(row["image_key"], row["uri"], (row["height"], row["width"]),
               {name: by_key[row["image_key"]] for name, by_key in reasons.items() if row["image_key"] in by_key})
        for row in rows.sort_by("image_key").to_pylist()
    ]  # fmt: skip


# ---- range by range -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ImagesOfRange:
    """The images of a range that did not fail, and their instances as columns.

    owners: (n,) int64, index of each instance's image. counted: (n,) bool, whether the score reaches min_score.
    areas: (n,) in pixels.
    """

    keys: list[str]
    failed: int
    owners: NDArray[np.int64]
    class_ids: NDArray[np.int64]
    scores: _Floats
    areas: _Floats
    counted: NDArray[np.bool_]

    @classmethod
    def read(cls, state: Snapshot, key_range: KeyRange, min_score: float) -> _ImagesOfRange:
        """Read the images of a range and their instances."""
        images = key_ranges.images(state, key_range, ["status"])
        labelled = images.filter(pc.not_equal(images.column("status"), "failed"))
        keys = labelled.column("image_key").combine_chunks()
        rows = key_ranges.instances(state, key_range, ["class_id", "score", "area"])
        owners = pc.index_in(rows.column("image_key"), value_set=keys)
        rows, owners = rows.filter(owners.is_valid()), owners.drop_null()
        return cls(
            keys.to_pylist(),
            images.num_rows - labelled.num_rows,
            owners.to_numpy().astype(np.int64),
            rows.column("class_id").to_numpy().astype(np.int64),
            rows.column("score").to_numpy().astype(np.float64),
            rows.column("area").to_numpy().astype(np.float64),
            pc.greater_equal(rows.column("score"), min_score).to_numpy().astype(np.bool_),
        )

    def classes(self) -> NDArray[np.int64]:
        """Return (n, 2) image and class, each pair once, of the instances that count."""
        pairs = np.stack([self.owners, self.class_ids], axis=1)[self.counted]
        return np.unique(pairs, axis=0) if len(pairs) else pairs


def _images_per_class(state: Snapshot, ranges: Sequence[KeyRange], min_score: float) -> dict[int, int]:
    """Return the number of images with each class, by category id."""
    totals = Counter[int]()
    for key_range in ranges:
        pairs = _ImagesOfRange.read(state, key_range, min_score).classes()
        ids, counts = np.unique(pairs[:, 1], return_counts=True)
        totals.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
    return dict(sorted(totals.items()))


class _BestImages:
    """The best images so far by each criterion: negated value, tie-breaking number, key and reason, best first."""

    def __init__(
        self,
        take: Mapping[str, int],
        threshold: float,
        min_score: float,
        seed: int,
        images_per_class: Mapping[int, int],
    ) -> None:
        self.images = self.instances = self.failed = 0
        self._take, self._threshold, self._min_score, self._seed = take, threshold, min_score, seed
        self._images_per_class = images_per_class
        self._best: dict[str, list[tuple[float, int, str, str]]] = {UNCERTAIN: [], RARE: [], RANDOM: []}
        self._pool: list[tuple[int, str, _Floats]] = []
        self._class_names: dict[int, str] = {}

    def add(self, state: Snapshot, key_range: KeyRange) -> None:
        images = _ImagesOfRange.read(state, key_range, self._min_score)
        self.images += len(images.keys)
        self.instances += int(images.counted.sum())
        self.failed += images.failed
        self._class_names = self._class_names or dict(state.classes)
        if UNCERTAIN in self._take:
            self._keep_best(UNCERTAIN, self._uncertain(images))
        if RARE in self._take:
            self._keep_best(RARE, self._rare(images))
        if RANDOM in self._take:
            rows = ((0.0, _hash_number(key, f"random {self._seed}"), key, "drawn by chance") for key in images.keys)
            self._keep_best(RANDOM, rows)
        if DIVERSE in self._take:
            self._add_to_pool(images)

    def reasons(self) -> dict[str, dict[str, str]]:
        """Return the reason for each chosen key, by criterion, best first."""
        best = {name: rows for name, rows in self._best.items() if name in self._take}
        reasons = {name: {key: reason for _, _, key, reason in rows} for name, rows in best.items()}
        if DIVERSE in self._take:
            order = farthest(np.array([vector for _, _, vector in self._pool]), self._take[DIVERSE])
            reasons[DIVERSE] = {
                self._pool[i][1]: f"distance {distance:.2f} from the images before" if rank else "the most typical"
                for rank, (i, distance) in enumerate(order)
            }
        return reasons

    def _keep_best(self, name: str, rows: Iterable[tuple[float, int, str, str]]) -> None:
        negated = ((-value, tie, key, reason) for value, tie, key, reason in rows)
        self._best[name] = heapq.nsmallest(self._take[name], [*self._best[name], *negated])

    def _uncertain(self, images: _ImagesOfRange) -> list[tuple[float, int, str, str]]:
        nearness = np.maximum(0, 1 - np.abs(images.scores - self._threshold) / MARGIN)
        values = np.bincount(images.owners, nearness, len(images.keys))
        counts = np.bincount(images.owners, nearness > 0, len(images.keys)).astype(int)
        return [
            (round(float(values[i]), 6), _hash_number(images.keys[i], UNCERTAIN), images.keys[i],
             f"scores within {MARGIN:g} of {self._threshold:g}: {counts[i]}")
            for i in np.flatnonzero(values).tolist()
        ]  # fmt: skip

    def _rare(self, images: _ImagesOfRange) -> list[tuple[float, int, str, str]]:
        pairs = images.classes()
        weights = np.array([1 / self._images_per_class[class_id] for class_id in pairs[:, 1].tolist()])
        values = np.bincount(pairs[:, 0], weights, len(images.keys))
        rarest: dict[int, int] = {}
        for image, class_id in pairs.tolist():
            if image not in rarest or self._images_per_class[class_id] < self._images_per_class[rarest[image]]:
                rarest[image] = class_id
        return [
            (round(float(values[i]), 9), _hash_number(images.keys[i], RARE), images.keys[i],
             f"{self._class_names.get(class_id, class_id)}, images that show it: {self._images_per_class[class_id]}")
            for i, class_id in rarest.items()
        ]  # fmt: skip

    def _add_to_pool(self, images: _ImagesOfRange) -> None:
        size = max(_POOL, 4 * self._take[DIVERSE])
        sampled = heapq.nsmallest(size, ((_hash_number(key, DIVERSE), i) for i, key in enumerate(images.keys)))
        vectors = _features(images, [i for _, i in sampled], list(self._images_per_class))
        entries = [(tie, images.keys[i], vector) for (tie, i), vector in zip(sampled, vectors, strict=True)]
        pool = heapq.nsmallest(size, [*self._pool, *entries], key=lambda entry: entry[:2])
        self._pool = [(tie, key, vector.copy()) for tie, key, vector in pool]  # A view keeps its whole matrix.


def _hash_number(key: str, salt: str) -> int:
    """Return a number that decides random draws and ties, the same for the same key and salt."""
    return int(image_id(f"{salt}\n{key}")[:15], 16)


# ---- diverse --------------------------------------------------------------------------------------


def _features(images: _ImagesOfRange, indices: Sequence[int], class_ids: Sequence[int]) -> _Floats:
    """Return (n, classes + 4) features of the images with these indices.

    The first features are the square roots of the shares of classes, and of three sizes. So each of the two parts has
    length 1. The last feature is a fifth of the logarithm of 1 plus the number of instances.
    """
    rows = {index: row for row, index in enumerate(indices)}
    columns = {class_id: column for column, class_id in enumerate(class_ids)}
    counts = np.zeros((len(indices), len(class_ids) + 4))
    size_columns = len(class_ids) + (images.areas >= 32**2).astype(int) + (images.areas >= 96**2)
    for k in np.flatnonzero(images.counted & np.isin(images.owners, list(rows))).tolist():
        row = rows[int(images.owners[k])]
        counts[row, columns[int(images.class_ids[k])]] += 1
        counts[row, size_columns[k]] += 1
    totals = counts[:, len(class_ids) : -1].sum(axis=1)
    features = np.sqrt(counts / np.maximum(totals, 1)[:, None])
    features[:, -1] = np.log1p(totals) / 5
    return np.asarray(features, np.float64)


def farthest(vectors: _Floats, most: int) -> list[tuple[int, float]]:
    """Return rows in the order of a farthest-point traversal, with their distance from the rows before.

    The first row is the nearest to the mean. Each next row is the farthest from all rows before. The traversal ends at
    `most` rows, or when each remaining row equals a row before. vectors: (n, features).
    """
    if not len(vectors):
        return []
    first = int(np.linalg.norm(vectors - vectors.mean(axis=0), axis=1).argmin())
    order = [(first, 0.0)]
    distances = np.linalg.norm(vectors - vectors[first], axis=1)
    while len(order) < most:
        row = int(distances.argmax())
        if distances[row] <= 1e-9:
            break
        order.append((row, float(distances[row])))
        distances = np.minimum(distances, np.linalg.norm(vectors - vectors[row], axis=1))
    return order
