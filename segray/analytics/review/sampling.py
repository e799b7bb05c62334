"""Choice of a label set's images that are worth a person's review, with reasons.

This module knows scores, classes, sizes and another label set. The result of the review belongs to other modules.
Images are read in ranges of keys. Memory holds the chosen images, a number for each class, and for `diverse` a fair
pool of a few thousand images. The same labels and seed give the same choice.
"""

from __future__ import annotations

import heapq
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any

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

UNCERTAIN, DISAGREE, RARE, DIVERSE, RANDOM = CRITERIA = ("uncertain", "disagree", "rare", "diverse", "random")
MARGIN = 0.2  # A score at this distance from the threshold, or farther, is not uncertain.
_POOL = 4000
_FORMAT = "segray selection 1"
_Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Chosen:
    """One chosen image.

    size_hw: height and width, in pixels. why: the reason that each criterion gives, by criterion.
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
    """The images that were chosen from a label set.

    batch: of the label set, so that the same labels can be read again.
    take: number of images asked for, by criterion. taken: number found, by criterion.
    images: number of images that are ok or empty, the population of the random sample.
    instances: number of their instances with min_score or more. failed: number of failed images, in neither count.
    chosen: in the order of their keys. fingerprint: of the model that made the labels; "" in selections without it.
    blind: people see none of the labels.
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
    chosen: Sequence[Chosen] = field(repr=False)
    fingerprint: str = ""
    blind: bool = False

    @property
    def sample(self) -> frozenset[str]:
        """Return the keys of the random control sample."""
        return frozenset(each.key for each in self.chosen if RANDOM in each.why)

    def write(self, out: Path) -> None:
        """Write the selection as JSON, whole or not at all."""
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
            return cls(**content, chosen=tuple(Chosen(**row) for row in rows))
        except FileNotFoundError as error:
            raise SourceError("no such selection", where=str(path), hint="make one with `segray select`") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise SourceError("this is no selection", where=str(path), found=repr(error)[:120]) from error


def select(
    root: str,
    take: Mapping[str, int],
    *,
    out: Path | None = None,
    to: str | None = None,
    tasks: Path | None = None,
    against: str | None = None,
    threshold: float = 0.5,
    min_score: float = 0.0,
    seed: int = 0,
    blind: bool = False,
    version: int | None = None,
    as_of: datetime | None = None,
    **storage_options: Any,
) -> Selection:
    """Choose images of a label set for review. Failed images are never chosen.

    An image that several criteria choose is there once, with all reasons. The criteria are:

    - uncertain: most scores within MARGIN of the threshold; nearer scores count more.
    - disagree: most instances that the other label set lacks, adds, renames or moves, as `diff` counts.
    - rare: classes that few images show.
    - diverse: in turn the image least like those already taken, by its classes, sizes and number of instances.
    - random: by the hash of the key and the seed, from all images, whatever the other criteria choose.

    Args:
        root: Folder or URL of the label set.
        take: Number of images by criterion.
        out: JSON file to write.
        to: A name in formats.FORMATS.
        tasks: File or folder for the chosen images with their labels, in the format `to`.
        against: Label set for `disagree`.
        threshold: Score at which labels are uncertain.
        min_score: Lowest score of the labels that count and are exported. `uncertain` also uses lower ones.
        seed: Number that decides the random sample.
        blind: Write `tasks` without labels, so that people do not keep a mistake because it was there.
        version: Batch of an earlier state.
        as_of: Time of an earlier state.
        **storage_options: Settings of the storage, as for segray.scan.

    Raises:
        UserError: A criterion is unknown, a number is below 1, or `out` or `tasks` is taken. There is no image to
            choose.
        LabelSetError: As snapshot.snapshot raises it, or nothing is committed.
    """
    _check(take, against, to, tasks)
    if out is not None:
        require_new_path(out)
    if to is not None and tasks is not None:
        require_new_path(tasks, folder=FORMATS[to].is_folder)
        if out is not None and out.absolute() == tasks.absolute():
            raise UserError("the choice and its tasks would be one file", where=str(out), hint="give two names")
    state = key_ranges.committed(snapshot.snapshot(root, version=version, as_of=as_of, **storage_options))
    parts = key_ranges.cut(state)
    spread = _spread(state, parts, min_score) if RARE in take or DIVERSE in take else {}
    found = _BestImages(take, threshold, min_score, seed, spread)
    for part in parts:
        found.add(state, part)
    if not found.images:
        raise UserError("the label set has no images to choose from", where=root, found=f"{found.failed} failed")
    reasons = found.reasons()
    if against is not None:
        other = diff(
            state.root, against, min_score=min_score, most=take[DISAGREE], both_labelled=True, version_a=state.batch,
            **storage_options,
        )  # fmt: skip
        told = {
            each.key: ", ".join(f"{n} {kind}" for kind, n in each.kinds.items() if kind != "kept")
            for each in other.most_changed
        }
        reasons[DISAGREE] = {key: f"{kinds} in {against}" for key, kinds in told.items()}
    chosen = _chosen(state, reasons)
    taken = {name: len(reasons.get(name, {})) for name in take}
    selection = Selection(
        state.root, state.batch, dict(take), taken, found.images, found.instances, found.failed, min_score, threshold,
        seed, against, chosen, state.fingerprint, blind,
    )  # fmt: skip
    if not chosen:
        raise UserError("no image meets any of the criteria", where=root, found=", ".join(take), hint="add random")
    _check_names(chosen)
    if to is not None and tasks is not None:
        keys = frozenset(each.key for each in chosen)
        choice = ExportSelection(min_score=min_score, keys=keys, images_only=blind)
        export(state.root, to, tasks, choice, version=state.batch, **storage_options)
    if out is not None:
        selection.write(out)
    return selection


def _check(take: Mapping[str, int], against: str | None, to: str | None, tasks: Path | None) -> None:
    unknown = [name for name in take if name not in CRITERIA]
    if unknown or not take:
        raise UserError("no such criterion", found=", ".join(unknown), hint=f"choose from {', '.join(CRITERIA)}")
    if few := [f"{name}={count}" for name, count in take.items() if count < 1]:
        raise UserError("a criterion takes one image at least", found=", ".join(few))
    if (DISAGREE in take) != (against is not None):
        raise UserError("`disagree` and the label set to disagree with go together", hint="give both, or neither")
    if (to is None) != (tasks is None):
        raise UserError("a format and where to write it go together", hint="give both, or neither")
    if to is not None and to not in FORMATS:
        raise UserError("no such format", found=to, hint=f"choose from {', '.join(FORMATS)}")


def _check_names(chosen: Sequence[Chosen]) -> None:
    """Raise UserError if two images have one name in an export. Corrections refer to images by this name."""
    names = Counter(each.file for each in chosen)
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise UserError("two chosen images have one name in an export", found=str(PurePosixPath(twice[0])))


def _chosen(state: Snapshot, reasons: Mapping[str, Mapping[str, str]]) -> list[Chosen]:
    keys = sorted({key for by_key in reasons.values() for key in by_key})
    columns = ["image_key", "uri", "height", "width"]
    rows = state.images.to_table(columns=columns, filter=key_ranges.of_images(keys))
    return [
        Chosen(row["image_key"], row["uri"], (row["height"], row["width"]),
               {name: by_key[row["image_key"]] for name, by_key in reasons.items() if row["image_key"] in by_key})
        for row in rows.sort_by("image_key").to_pylist()
    ]  # fmt: skip


# ---- slice by slice -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ImagesOfRange:
    """The images of a range that may be chosen, and their instances as columns.

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
    def read(cls, state: Snapshot, part: KeyRange, min_score: float) -> _ImagesOfRange:
        """Read the images of a range and their instances."""
        images = key_ranges.images(state, part, ["status"])
        labelled = images.filter(pc.not_equal(images.column("status"), "failed"))
        keys = labelled.column("image_key").combine_chunks()
        rows = key_ranges.instances(state, part, ["class_id", "score", "area"])
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


def _spread(state: Snapshot, parts: Sequence[KeyRange], min_score: float) -> dict[int, int]:
    """Return the number of images that show each class, by category id."""
    found = Counter[int]()
    for part in parts:
        ids, counts = np.unique(_ImagesOfRange.read(state, part, min_score).classes()[:, 1], return_counts=True)
        found.update(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
    return dict(sorted(found.items()))


class _BestImages:
    """The best images so far by each criterion: value, tie-breaking number, key and reason."""

    def __init__(
        self, take: Mapping[str, int], threshold: float, min_score: float, seed: int, spread: Mapping[int, int]
    ) -> None:
        self.images = self.instances = self.failed = 0
        self._take, self._threshold, self._min_score, self._seed, self._spread = (
            take,
            threshold,
            min_score,
            seed,
            spread,
        )
        self._best: dict[str, list[tuple[float, int, str, str]]] = {UNCERTAIN: [], RARE: [], RANDOM: []}
        self._pool: list[tuple[int, str, _Floats]] = []
        self._names: dict[int, str] = {}

    def add(self, state: Snapshot, part: KeyRange) -> None:
        read = _ImagesOfRange.read(state, part, self._min_score)
        self.images += len(read.keys)
        self.instances += int(read.counted.sum())
        self.failed += read.failed
        self._names = self._names or dict(state.classes)
        if UNCERTAIN in self._take:
            self._keep(UNCERTAIN, self._uncertain(read))
        if RARE in self._take:
            self._keep(RARE, self._rare(read))
        if RANDOM in self._take:
            drawn = ((0.0, _draw(key, f"random {self._seed}"), key, "drawn by chance") for key in read.keys)
            self._keep(RANDOM, drawn)
        if DIVERSE in self._take:
            self._pool_up(read)

    def reasons(self) -> dict[str, dict[str, str]]:
        """Return the reason for each chosen key, by criterion, best first."""
        found = {name: {key: why for _, _, key, why in rows} for name, rows in self._best.items() if name in self._take}
        if DIVERSE in self._take:
            order = farthest(np.array([vector for _, _, vector in self._pool]), self._take[DIVERSE])
            found[DIVERSE] = {
                self._pool[i][1]: f"{distance:.2f} from what was taken before" if n else "the most typical"
                for n, (i, distance) in enumerate(order)
            }
        return found

    def _keep(self, name: str, rows: Iterable[tuple[float, int, str, str]]) -> None:
        best = heapq.nsmallest(self._take[name], [*self._best[name], *((-v, h, k, w) for v, h, k, w in rows)])
        self._best[name] = [(-value, tie, key, why) for value, tie, key, why in best]

    def _uncertain(self, read: _ImagesOfRange) -> list[tuple[float, int, str, str]]:
        nearness = np.maximum(0, 1 - np.abs(read.scores - self._threshold) / MARGIN)
        values = np.bincount(read.owners, nearness, len(read.keys))
        counts = np.bincount(read.owners, nearness > 0, len(read.keys)).astype(int)
        return [
            (round(float(values[i]), 6), _draw(read.keys[i], UNCERTAIN), read.keys[i],
             f"scores within {MARGIN:g} of {self._threshold:g}: {counts[i]}")
            for i in np.flatnonzero(values).tolist()
        ]  # fmt: skip

    def _rare(self, read: _ImagesOfRange) -> list[tuple[float, int, str, str]]:
        pairs = read.classes()
        weights = np.array([1 / self._spread[each] for each in pairs[:, 1].tolist()])
        values = np.bincount(pairs[:, 0], weights, len(read.keys))
        rarest: dict[int, int] = {}
        for image, category in pairs.tolist():
            if image not in rarest or self._spread[category] < self._spread[rarest[image]]:
                rarest[image] = category
        return [
            (round(float(values[i]), 9), _draw(read.keys[i], RARE), read.keys[i],
             f"{self._names.get(category, category)}, images that show it: {self._spread[category]}")
            for i, category in rarest.items()
        ]  # fmt: skip

    def _pool_up(self, read: _ImagesOfRange) -> None:
        most = max(_POOL, 4 * self._take[DIVERSE])
        drawn = heapq.nsmallest(most, ((_draw(key, DIVERSE), i) for i, key in enumerate(read.keys)))
        vectors = _features(read, [i for _, i in drawn], list(self._spread))
        fresh = [(tie, read.keys[i], vector) for (tie, i), vector in zip(drawn, vectors, strict=True)]
        kept = heapq.nsmallest(most, [*self._pool, *fresh], key=lambda entry: entry[:2])
        self._pool = [(tie, key, vector.copy()) for tie, key, vector in kept]  # A view keeps its whole matrix.


def _draw(key: str, salt: str) -> int:
    return int(image_id(f"{salt}\n{key}")[:15], 16)


# ---- diverse --------------------------------------------------------------------------------------


def _features(read: _ImagesOfRange, images: Sequence[int], categories: Sequence[int]) -> _Floats:
    """Return (n, classes + 4) features of these images.

    The first features are the square roots of the shares of classes, and of three sizes. So each of the two parts has
    length 1. The last feature is a fifth of the logarithm of 1 plus the number of instances.
    """
    rows = {image: row for row, image in enumerate(images)}
    columns = {category: column for column, category in enumerate(categories)}
    found = np.zeros((len(images), len(categories) + 4))
    sizes = len(categories) + (read.areas >= 32**2).astype(int) + (read.areas >= 96**2)
    for k in np.flatnonzero(read.counted & np.isin(read.owners, list(rows))).tolist():
        row = rows[int(read.owners[k])]
        found[row, columns[int(read.class_ids[k])]] += 1
        found[row, sizes[k]] += 1
    totals = found[:, len(categories) : -1].sum(axis=1)
    found = np.sqrt(found / np.maximum(totals, 1)[:, None])
    found[:, -1] = np.log1p(totals) / 5
    return np.asarray(found, np.float64)


def farthest(vectors: _Floats, most: int) -> list[tuple[int, float]]:
    """Return rows in the order of a farthest-point traversal, with their distance from the rows before.

    The first row is the nearest to the mean. Each next row is the farthest from all rows before. The traversal ends at
    `most` rows, or where each row that is left equals one before. vectors: (n, features).
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
