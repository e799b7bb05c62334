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
        key = ds.field("image_key")
        return key >= self.first if self.end is None else (key >= self.first) & (key < self.end)


class KeySampler:
    """A uniform sample of weighted keys, which cuts all keys into ranges of about equal weight.

    The sample holds the keys with the smallest hashes. The same keys give the same ranges in any order.
    """

    def __init__(self, max_sampled: int = _SAMPLED) -> None:
        self._max_sampled = max_sampled
        self._sample: list[tuple[int, str, float]] = []  # a heap of -hash, key, weight
        self.seen = 0
        self._weight = 0.0

    def add(self, keys: Iterable[str], weights: Iterable[float]) -> None:
        """Add keys with their weights, in rows."""
        for key, weight in zip(keys, weights, strict=True):
            self.seen += 1
            self._weight += weight
            entry = -int(image_id(key)[:15], 16), key, weight
            if len(self._sample) < self._max_sampled:
                heapq.heappush(self._sample, entry)
            elif entry > self._sample[0]:
                heapq.heapreplace(self._sample, entry)

    def scale(self, factor: float) -> None:
        """Multiply the weight of all keys so far."""
        self._sample = [(negated_hash, key, weight * factor) for negated_hash, key, weight in self._sample]
        self._weight *= factor

    def cut(self, slice_weight: float = SLICE_ROWS) -> list[KeyRange]:
        """Return ranges that cover all possible keys, at least one."""
        sampled_weight = sum(weight for _, _, weight in self._sample)
        weight_of_range = slice_weight * sampled_weight / max(self._weight, 1)
        bounds, room = [""], weight_of_range
        for key, weight in sorted((key, weight) for _, key, weight in self._sample):
            if room <= 0 and key > bounds[-1]:
                bounds.append(key)
                room += weight_of_range
            room -= weight
        return [KeyRange(first, end) for first, end in zip(bounds, [*bounds[1:], None], strict=True)]


def number_of(ranges: Sequence[KeyRange], key: str) -> int:
    """Return the index of the range that holds a key."""
    return bisect_right(ranges, key, key=lambda key_range: key_range.first) - 1


def cut(*states: Snapshot, slice_rows: float = SLICE_ROWS) -> list[KeyRange]:
    """Return the ranges of one label set, or of several together. slice_rows: rows of a range, about."""
    sampler = KeySampler()
    for state in states:
        add_images(sampler, state)
    return sampler.cut(slice_rows)


def holding(ranges: Sequence[KeyRange], keys: Collection[str]) -> Iterator[tuple[KeyRange, list[str]]]:
    """Return the ranges that hold any of these keys, each with its keys in order."""
    keys_by_number = groupby(sorted(keys), key=lambda key: number_of(ranges, key))
    return ((ranges[number], list(keys_of_range)) for number, keys_of_range in keys_by_number)


def of_images(keys: Collection[str]) -> pc.Expression:
    """Return a filter for the rows of these images. Its range of keys skips most files and row groups."""
    if not keys:
        return ds.scalar(False)
    key = ds.field("image_key")
    return (key >= min(keys)) & (key <= max(keys)) & key.isin(pa.array(sorted(keys), pa.string()))


def add_images(sampler: KeySampler, state: Snapshot) -> None:
    """Add every image of a label set. An image weighs as much as it has rows; rows with large masks weigh more."""
    for batch in state.images.to_batches(columns=["image_key", "n_instances"], **NO_METADATA_CACHE):
        sampler.add(batch.column("image_key").to_pylist(), weights(state, batch.column("n_instances")))


def weights(state: Snapshot, n_instances: pa.Array) -> list[float]:
    """Return the weight of images, in rows, from their numbers of instances."""
    rows_of_instance = max(1.0, state.row_bytes / ROW_BYTES)
    rows: list[float] = pc.add(pc.multiply(n_instances, rows_of_instance), 1).to_pylist()
    return rows


def images(
    state: Snapshot, key_range: KeyRange, columns: Sequence[str], where: pc.Expression | None = None
) -> pa.Table:
    """Return the images of a range, sorted by key.

    Args:
        state: The label set.
        key_range: The range of keys.
        columns: Columns to return. The column image_key comes first if it is not among them.
        where: A further filter of the rows.
    """
    condition = key_range.filter if where is None else key_range.filter & where
    table = state.images.to_table(columns=_with(columns, "image_key"), filter=condition, **NO_METADATA_CACHE)
    return table.sort_by("image_key")


def instances(
    state: Snapshot, key_range: KeyRange, columns: Sequence[str], where: pc.Expression | None = None
) -> pa.Table:
    """Return the instances of a range, sorted by key and number.

    The arguments are those of `images`. The column `instance` is also returned.
    """
    condition = key_range.filter if where is None else key_range.filter & where
    table = state.instances.to_table(
        columns=_with(columns, "image_key", "instance"), filter=condition, **NO_METADATA_CACHE
    )
    return table.sort_by([("image_key", "ascending"), ("instance", "ascending")])


class Groups(Mapping[str, pa.Table]):
    """The rows of each image by key, as views into a table that is sorted by key."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self.rows: Mapping[str, slice] = dict(run_slices(table.column("image_key")))  # the rows of each image

    def __getitem__(self, key: str) -> pa.Table:
        rows = self.rows[key]
        return self._table.slice(rows.start, rows.stop - rows.start)

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


def committed(state: Snapshot) -> Snapshot:
    """Return the snapshot. Raise LabelSetError if nothing is committed yet."""
    if state.batch == 0:
        raise LabelSetError(
            "nothing of this label set is committed yet",
            where=state.root,
            found="the first run is under way or was interrupted",
            hint="wait for the first batch, or run `segray label` again",
        )
    return state


def _with(columns: Sequence[str], *needed: str) -> list[str]:
    """Return the columns, with the needed columns in front if they are not among them."""
    return [*(name for name in needed if name not in columns), *columns]
