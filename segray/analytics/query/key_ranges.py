"""Ranges of image keys that cut a label set, and the images and instances of one range.

This module knows how to choose ranges that fit into memory. The use of the rows belongs to other modules.
Files are sorted by key and state which keys they hold. A range is read without the rest of the label set.
Memory does not grow with the number of images.
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

# The approximate number of rows of a range. A row of more than ROW_BYTES bytes in storage counts as several.
SLICE_ROWS = 80_000
ROW_BYTES = 400
_SAMPLED = 20_000
# Options of scans. By default pyarrow keeps each file's footer, about 50 kB, for the life of the dataset.
NO_METADATA_CACHE: Mapping[str, Any] = {"cache_metadata": False}


@dataclass(frozen=True)
class KeyRange:
    """A half-open range of image keys: first <= key < end. first "" and end None stand for no bound."""

    first: str = ""
    end: str | None = None

    @property
    def filter(self) -> pc.Expression:
        """Return a filter for the rows of this range."""
        chosen = ds.field("image_key") >= self.first
        return chosen if self.end is None else chosen & (ds.field("image_key") < self.end)


class KeySampler:
    """A uniform sample of weighted keys, which cuts all keys into ranges of about equal weight.

    The sample holds the keys with the smallest hashes. The same keys give the same ranges in any order.
    """

    def __init__(self, most: int = _SAMPLED) -> None:
        self._most = most
        self._sample: list[tuple[int, str, float]] = []  # a heap of -hash, key, weight
        self.seen = 0
        self._weight = 0.0

    def add(self, keys: Iterable[str], weights: Iterable[float]) -> None:
        """Add keys with their weights, in rows."""
        for key, weight in zip(keys, weights, strict=True):
            self.seen += 1
            self._weight += weight
            entry = -int(image_id(key)[:15], 16), key, weight
            if len(self._sample) < self._most:
                heapq.heappush(self._sample, entry)
            elif entry > self._sample[0]:
                heapq.heapreplace(self._sample, entry)

    def scale(self, factor: float) -> None:
        """Multiply the weight of all keys so far."""
        self._sample = [(entry, key, weight * factor) for entry, key, weight in self._sample]
        self._weight *= factor

    def cut(self, slice_weight: float = SLICE_ROWS) -> list[KeyRange]:
        """Return ranges that cover all possible keys, at least one."""
        each = slice_weight * sum(weight for _, _, weight in self._sample) / max(self._weight, 1)
        bounds, room = [""], each
        for key, weight in sorted((key, weight) for _, key, weight in self._sample):
            if room <= 0 and key > bounds[-1]:
                bounds.append(key)
                room += each
            room -= weight
        return [KeyRange(first, end) for first, end in zip(bounds, [*bounds[1:], None], strict=True)]


def number_of(slices: Sequence[KeyRange], key: str) -> int:
    """Return the index of the range that holds a key."""
    return bisect_right(slices, key, key=lambda each: each.first) - 1


def cut(*shown: Snapshot, slice_rows: float = SLICE_ROWS) -> list[KeyRange]:
    """Return the ranges of one label set, or of several together."""
    keys = KeySampler()
    for each in shown:
        add_images(keys, each)
    return keys.cut(slice_rows)


def holding(parts: Sequence[KeyRange], keys: Collection[str]) -> Iterator[tuple[KeyRange, list[str]]]:
    """Return the ranges that hold any of these keys, each with its keys in order."""
    by_part = groupby(sorted(keys), key=lambda key: number_of(parts, key))
    return ((parts[number], list(those)) for number, those in by_part)


def of_images(keys: Collection[str]) -> pc.Expression:
    """Return a filter for the rows of these images. Its range of keys skips most files and row groups."""
    if not keys:
        return ds.scalar(False)
    key = ds.field("image_key")
    return (key >= min(keys)) & (key <= max(keys)) & key.isin(pa.array(sorted(keys), pa.string()))


def add_images(keys: KeySampler, shown: Snapshot) -> None:
    """Add every image of a label set. An image weighs as much as it has rows; rows with large masks weigh more."""
    for batch in shown.images.to_batches(columns=["image_key", "n_instances"], **NO_METADATA_CACHE):
        keys.add(batch.column("image_key").to_pylist(), weights(shown, batch.column("n_instances")))


def weights(shown: Snapshot, instances: pa.Array) -> list[float]:
    """Return the weight of images, in rows, from their numbers of instances."""
    found: list[float] = pc.add(pc.multiply(instances, max(1.0, shown.row_bytes / ROW_BYTES)), 1).to_pylist()
    return found


def images(shown: Snapshot, part: KeyRange, columns: Sequence[str], where: pc.Expression | None = None) -> pa.Table:
    """Return the images of a range, sorted by key."""
    chosen = part.filter if where is None else part.filter & where
    table = shown.images.to_table(columns=_named(columns, "image_key"), filter=chosen, **NO_METADATA_CACHE)
    return table.sort_by("image_key")


def instances(shown: Snapshot, part: KeyRange, columns: Sequence[str], where: pc.Expression | None = None) -> pa.Table:
    """Return the instances of a range, sorted by key and number."""
    chosen = part.filter if where is None else part.filter & where
    table = shown.instances.to_table(
        columns=_named(columns, "image_key", "instance"), filter=chosen, **NO_METADATA_CACHE
    )
    return table.sort_by([("image_key", "ascending"), ("instance", "ascending")])


class Groups(Mapping[str, pa.Table]):
    """The rows of each image by key, as views into a table that is sorted by key."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self.rows: Mapping[str, slice] = dict(run_slices(table.column("image_key")))  # the rows of each image

    def __getitem__(self, key: str) -> pa.Table:
        where = self.rows[key]
        return self._table.slice(where.start, where.stop - where.start)

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def committed(shown: Snapshot) -> Snapshot:
    """Return the snapshot. Raise LabelSetError if nothing is committed yet."""
    if shown.batch == 0:
        raise LabelSetError(
            "nothing of this label set is committed yet", where=shown.root, found="its first run is under way or broke",
            hint="wait for the first batch, or run `segray label` again",
        )  # fmt: skip
    return shown


def _named(columns: Sequence[str], *needed: str) -> list[str]:
    return [*(name for name in needed if name not in columns), *columns]
