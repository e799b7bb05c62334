"""A label set in slices: images in the order of their keys, some at a time, each with all its instances.

Knows how to cut the keys into ranges that fit into memory and how to read one; knows nothing of what is done with
them. Files are sorted by key and say which keys they hold, so a slice is read without the rest of the label set. How
many images there are in all matters to nothing here but the time.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from segray.errors import LabelSetError
from segray.instances import image_id
from segray.label_set.snapshot import Snapshot, run_slices

# A slice's rows, more or less, and what one of them may take in storage before it counts as several.
SLICE_ROWS = 80_000
ROW_BYTES = 400
_SAMPLED = 20_000
# Of scans. Else pyarrow keeps every file's footer, some 50 kB, as long as the dataset lives; few are read again.
FRUGAL: Mapping[str, Any] = {"cache_metadata": False}


@dataclass(frozen=True)
class Slice:
    """The keys from `first` on, up to but without `end`; "" and None are the ends of all keys."""

    first: str = ""
    end: str | None = None

    @property
    def filter(self) -> pc.Expression:
        chosen = ds.field("image_key") >= self.first
        return chosen if self.end is None else chosen & (ds.field("image_key") < self.end)


class Keys:
    """A fair sample of weighted keys, by which all of them are cut into slices of about equal weight.

    The sample is of those keys whose hashes are least, so the same keys give the same slices in whatever order.
    """

    def __init__(self, most: int = _SAMPLED) -> None:
        self._most = most
        self._sample: list[tuple[int, str, float]] = []  # a heap of -hash, key, weight
        self.seen = 0
        self._weight = 0.0

    def add(self, keys: Iterable[str], weights: Iterable[float]) -> None:
        for key, weight in zip(keys, weights, strict=True):
            self.seen += 1
            self._weight += weight
            entry = -int(image_id(key)[:15], 16), key, weight
            if len(self._sample) < self._most:
                heapq.heappush(self._sample, entry)
            elif entry > self._sample[0]:
                heapq.heapreplace(self._sample, entry)

    def scale(self, factor: float) -> None:
        """Give all keys so far so many times their weight."""
        self._sample = [(entry, key, weight * factor) for entry, key, weight in self._sample]
        self._weight *= factor

    def cut(self, slice_weight: float = SLICE_ROWS) -> list[Slice]:
        """All keys there could be, in slices; one at least."""
        each = slice_weight * sum(weight for _, _, weight in self._sample) / max(self._weight, 1)
        bounds, room = [""], each
        for key, weight in sorted((key, weight) for _, key, weight in self._sample):
            if room <= 0 and key > bounds[-1]:
                bounds.append(key)
                room += each
            room -= weight
        return [Slice(first, end) for first, end in zip(bounds, [*bounds[1:], None], strict=True)]


def number_of(slices: Sequence[Slice], key: str) -> int:
    """Which of all slices a key is in."""
    return bisect_right(slices, key, key=lambda each: each.first) - 1


def cut(*shown: Snapshot, slice_rows: float = SLICE_ROWS) -> list[Slice]:
    """Slices of one label set, or of several together."""
    keys = Keys()
    for each in shown:
        add_images(keys, each)
    return keys.cut(slice_rows)


def holding(parts: Sequence[Slice], keys: Collection[str]) -> Iterator[tuple[Slice, list[str]]]:
    """The slices in which any of these keys are, with these, sorted."""
    by_part = groupby(sorted(keys), key=lambda key: number_of(parts, key))
    return ((parts[number], list(those)) for number, those in by_part)


def of_images(keys: Collection[str]) -> pc.Expression:
    """Rows of these images. By the range of the keys alone, most files and row groups need no look."""
    if not keys:
        return ds.scalar(False)
    key = ds.field("image_key")
    return (key >= min(keys)) & (key <= max(keys)) & key.isin(pa.array(sorted(keys), pa.string()))


def add_images(keys: Keys, shown: Snapshot) -> None:
    """Every image of a label set, weighing as much as it has rows, large masks more."""
    for batch in shown.images.to_batches(columns=["image_key", "n_instances"], **FRUGAL):
        keys.add(batch.column("image_key").to_pylist(), weights(shown, batch.column("n_instances")))


def weights(shown: Snapshot, instances: pa.Array) -> list[float]:
    """In rows of a slice, of images with so many instances."""
    found: list[float] = pc.add(pc.multiply(instances, max(1.0, shown.row_bytes / ROW_BYTES)), 1).to_pylist()
    return found


def images(shown: Snapshot, part: Slice, columns: Sequence[str], where: pc.Expression | None = None) -> pa.Table:
    """The slice's images, sorted by key."""
    chosen = part.filter if where is None else part.filter & where
    table = shown.images.to_table(columns=_named(columns, "image_key"), filter=chosen, **FRUGAL)
    return table.sort_by("image_key")


def instances(shown: Snapshot, part: Slice, columns: Sequence[str], where: pc.Expression | None = None) -> pa.Table:
    """The slice's instances, sorted by key and number."""
    chosen = part.filter if where is None else part.filter & where
    table = shown.instances.to_table(columns=_named(columns, "image_key", "instance"), filter=chosen, **FRUGAL)
    return table.sort_by([("image_key", "ascending"), ("instance", "ascending")])


class Groups(Mapping[str, pa.Table]):
    """The rows of each image, of a table that is sorted by key; cut out of it as they are asked for."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self.rows: Mapping[str, slice] = dict(run_slices(table.column("image_key")))  # where an image's rows are

    def __getitem__(self, key: str) -> pa.Table:
        where = self.rows[key]
        return self._table.slice(where.start, where.stop - where.start)

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def committed(shown: Snapshot) -> Snapshot:
    """The same, unless nothing is committed yet, which raises LabelSetError."""
    if shown.batch == 0:
        raise LabelSetError(
            "nothing of this label set is committed yet", where=shown.root, found="its first run is under way or broke",
            do="wait for the first batch, or run `segray label` again",
        )  # fmt: skip
    return shown


def _named(columns: Sequence[str], *needed: str) -> list[str]:
    return [*(name for name in needed if name not in columns), *columns]
