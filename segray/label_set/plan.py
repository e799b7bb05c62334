"""Plans of runs: list images, compare the list with committed rows, freeze the list, cut it into units.

Knows references, versions and units. Knows nothing of how images are read or labelled. A frozen plan never changes.
A restart sees the same units with any number of workers. A frozen plan is stored, and is read part by part.

The list is in memory until it is frozen, so it is kept small. A URI that follows from its key is not stored. A
committed row takes 16 bytes. Five million images take about 1 GB less than in a plain table.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from segray.errors import SegrayError
from segray.instances import ImageRef
from segray.label_set import schema
from segray.storage.store import Store
from segray.storage.uris import join
from segray.tasks import Task

_PART_ROWS, _CACHED_PARTS = 131_072, 3


@dataclass(frozen=True)
class Plan:
    """The frozen list of images, sorted by image_key and cut into units.

    starts: (units + 1,) int64, first row of each unit, then the number of images. part: returns the nth part of the
    list, as schema.PLAN. part_rows: rows of each part but the last. retired: number of images by part of the rows to
    remove. retried: number of images by part of the failed rows that the run replaces.
    """

    starts: NDArray[np.int64]
    part: Callable[[int], pa.Table]
    part_rows: int
    retired: Mapping[str, int] = field(default_factory=dict)
    retried: Mapping[str, int] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """Return the number of images in the list."""
        return int(self.starts[-1])

    def parts(self) -> Iterator[pa.Table]:
        """Yield the list part by part, in order."""
        return map(self.part, range(-(-self.images // self.part_rows)))

    def tasks(self) -> list[Task]:
        """Return one task for each unit."""
        return [Task(unit, 0, int(size)) for unit, size in enumerate(np.diff(self.starts))]

    def rows(self, task: Task) -> slice:
        """Return the rows of the list from the task's first image to its last."""
        first = int(self.starts[task.unit])
        return slice(first + task.start, first + task.stop)

    def refs(self, task: Task) -> list[ImageRef]:
        """Return the images of a task, in order. Raises SegrayError when the frozen list was changed."""
        refs = self._refs(task)
        return [refs[index - task.start] for index in task.only] if task.only else refs

    def positions(self, keys: Collection[str]) -> list[tuple[int, int]]:
        """Return (unit, index within the unit) of each of these images that the plan has, in the order of the plan."""
        if not keys:
            return []
        rows = np.flatnonzero(self.holds(pa.array(sorted(keys), pa.string())))
        units = np.searchsorted(self.starts, rows, side="right") - 1
        return list(zip(units.tolist(), (rows - self.starts[units]).tolist(), strict=True))

    def holds(self, keys: pa.Array) -> NDArray[np.bool_]:
        """Return which images of the list have one of these keys, (images,) bool."""
        masks = [pc.is_in(part.column("image_key"), keys).to_numpy() for part in self.parts()]
        return np.concatenate([np.zeros(0, np.bool_), *masks])

    def _refs(self, task: Task) -> list[ImageRef]:
        """Return all images from the task's first to its last."""
        refs, row, end = [], self.rows(task).start, self.rows(task).stop
        while row < end:
            number, row_of_part = divmod(row, self.part_rows)
            rows = self.part(number).slice(row_of_part, end - row)
            columns = [rows.column(name).to_pylist() for name in ("image_key", "uri", "version", "bytes")]
            refs += [ImageRef(*values) for values in zip(*columns, strict=True)]
            row += rows.num_rows
        return refs


class Committed:
    """The set of committed rows, by key and version. A row takes 16 bytes.

    batches: columns image_key and version of the images table.
    """

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        digests_of_batches = [_digests(batch.column("image_key"), batch.column("version")) for batch in batches]
        digests = np.concatenate([np.zeros((0, 2), np.uint64), *digests_of_batches])
        del digests_of_batches
        digests = digests[np.argsort(digests[:, 0])]
        is_first = np.append(True, digests[1:, 0] != digests[:-1, 0])[: len(digests)]
        # Rows are sorted by the first 64 bits. Among five million rows, two agree in these bits with probability 1e-6.
        self._first = np.ascontiguousarray(digests[is_first, 0])
        self._second = np.ascontiguousarray(digests[is_first, 1])

    def positions(self, keys: pa.Array, versions: pa.Array) -> NDArray[np.int64]:
        """Return the position of each image's row among the committed rows, (images,) int64.

        The position is -1 for an image without a row of this version.
        """
        digests = _digests(keys, versions)
        if not len(self):
            return np.full(len(digests), -1, np.int64)
        positions = np.minimum(np.searchsorted(self._first, digests[:, 0]), len(self) - 1)
        is_committed = (self._first[positions] == digests[:, 0]) & (self._second[positions] == digests[:, 1])
        return np.where(is_committed, positions, -1)

    def holding(self, rows: pa.Table) -> NDArray[np.bool_]:
        """Return a mask over the committed rows, true for those with a key and version in `rows`.

        rows: columns image_key and version.
        """
        mask = np.zeros(len(self), np.bool_)
        positions = self.positions(rows["image_key"], rows["version"])
        mask[positions[positions >= 0]] = True
        return mask

    def where(self, rows: pa.Table, mask: NDArray[np.bool_]) -> pa.Table:
        """Return the rows that are committed rows which a mask selects.

        rows: columns image_key, version and others. mask: mask over the committed rows, (committed rows,) bool.
        """
        positions = self.positions(rows["image_key"], rows["version"])
        return rows.filter(pa.array((positions >= 0) & np.append(mask, False)[positions]))

    def __len__(self) -> int:
        return len(self._first)


def _digests(keys: pa.Array, versions: pa.Array) -> NDArray[np.uint64]:
    """Return 128-bit hashes of key and version, (rows, 2) uint64."""
    lengths = pc.cast(pc.binary_length(keys), pa.string())
    rows = pc.binary_join_element_wise(lengths, keys, versions, " ").cast(pa.large_string())
    if isinstance(rows, pa.ChunkedArray):
        rows = rows.combine_chunks()
    # Slices of one buffer take a third of the time of separate Python strings.
    _, offsets, data = rows.buffers()
    ends = np.frombuffer(offsets, np.int64)[rows.offset : rows.offset + len(rows) + 1].tolist()
    text = memoryview(data or b"")
    digests = b"".join([blake2b(text[start:stop], digest_size=16).digest() for start, stop in pairwise(ends)])
    return np.frombuffer(digests, np.uint64).reshape(-1, 2)


@dataclass(frozen=True)
class ImageList:
    """A list of images in memory.

    table: schema.PLAN, with a null for each URI that equals `base` followed by the key.
    """

    table: pa.Table
    base: str

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def head(self, most: int | None) -> ImageList:
        """Return the first `most` images, all for None."""
        return ImageList(self.table.slice(0, most), self.base)

    def without(self, keys: Collection[str]) -> ImageList:
        """Return the list without these images."""
        if not keys:
            return self
        is_excluded = pc.is_in(self.table.column("image_key"), pa.array(sorted(keys), pa.string()))
        return ImageList(self.table.filter(pc.invert(is_excluded)), self.base)

    def present(self, rows: pa.Table) -> pa.Table:
        """Return the rows whose image is in the list. rows: column image_key and others; few rows, a long list."""
        if not len(rows):
            return rows
        return rows.filter(pc.is_in(rows["image_key"], _intersection(self.table["image_key"], rows["image_key"])))

    def rows(self, first: int, most: int) -> pa.Table:
        """Return up to `most` rows from row `first` on as schema.PLAN, with every URI in full."""
        table = self.table.slice(first, most)
        derived = pc.binary_join_element_wise(pa.scalar(self.base), table.column("image_key"), "")
        index = table.schema.get_field_index("uri")
        return table.set_column(index, "uri", pc.coalesce(table.column("uri"), derived)).cast(schema.PLAN)


def build(
    batches: Iterable[pa.RecordBatch], committed: Committed | None, to_retry: NDArray[np.bool_] | None = None
) -> tuple[ImageList, int, NDArray[np.bool_]]:
    """Return the images to label, the number of distinct images, and which committed rows the source still lists.

    An image is to be labelled when no committed row has its key and version, or when that row is to be replaced.

    Args:
        batches: Columns key, uri, version, size_bytes.
        committed: The committed rows, None if there are none.
        to_retry: Mask over the committed rows, (rows,) bool, true for rows to replace; None for no such row.

    Returns:
        The images to label, sorted by key, each key once; the number of distinct images in the source; and a mask over
        the committed rows, (rows,) bool, true where the source lists the row's image in its version.
    """
    compacted, base = [], None
    still_listed = np.zeros(0 if committed is None else len(committed), np.bool_)
    is_kept = np.ones_like(still_listed) if to_retry is None else ~to_retry
    for batch in batches:
        if base is None and batch.num_rows:
            key, uri = batch.column("key")[0].as_py(), batch.column("uri")[0].as_py()
            base = uri.removesuffix(key) if uri.endswith(key) else ""
        if committed is not None and len(committed):
            positions = committed.positions(batch.column("key"), batch.column("version"))
            still_listed[positions[positions >= 0]] = True
            batch = batch.filter(pa.array((positions < 0) | ~is_kept[positions]))
        compacted.append(_compact(batch, base or ""))
    table = _sorted_without_duplicates(_take_columns(compacted))
    return ImageList(table, base or ""), table.num_rows + int((still_listed & is_kept).sum()), still_listed


def unlisted(
    to_label: ImageList,
    still_listed: NDArray[np.bool_],
    committed: Committed,
    batches: Callable[[], Iterable[pa.RecordBatch]],
    unread_entries: Collection[str] = (),
) -> pa.Table:
    """Return the committed rows whose image the source lists in no version, as schema.RETIRED, sorted by key.

    An archive or table that is listed as an image itself could not be read. Rows of its images are left out, because
    those images may still exist. So are rows of images below an entry that could not be listed.

    Args:
        to_label: The images to label, from `build`.
        still_listed: The mask over the committed rows, from `build`, (rows,) bool.
        committed: The committed rows.
        batches: Returns columns image_key, version and batch of the rows that `committed` was made of.
        unread_entries: Keys of folders and links that could not be listed.
    """
    if still_listed.all():
        return schema.RETIRED.empty_table()
    rows = _rows_where(batches(), committed, ~still_listed)
    new_version = _intersection(to_label.table["image_key"], rows["image_key"])
    rows = rows.filter(pc.invert(pc.is_in(rows["image_key"], new_version)))
    for entry in unread_entries:
        is_below = pc.starts_with(rows["image_key"], entry.rstrip("/") + "/")
        rows = rows.filter(pc.invert(pc.or_(is_below, pc.equal(rows["image_key"], entry))))
    prefixes_of_rows = [
        {key[: separator.start()] for separator in _SEPARATOR.finditer(key)} for key in rows["image_key"].to_pylist()
    ]
    prefixes = pa.array(sorted(set().union(*prefixes_of_rows)), pa.string())
    unread = set(_intersection(to_label.table["image_key"], prefixes).to_pylist())  # archives and tables
    if len(rows):
        listed_rows = _rows_where(batches(), committed, still_listed, prefixes)
        unread |= set(_intersection(listed_rows["image_key"], prefixes).to_pylist())
    is_gone = [not prefixes_of_row & unread for prefixes_of_row in prefixes_of_rows]
    return rows.filter(pa.array(is_gone, pa.bool_())).sort_by("image_key")


_SEPARATOR = re.compile("(?<=.)[/#]", re.DOTALL)  # stands in a key between an archive or table and the image in it


def _rows_where(
    batches: Iterable[pa.RecordBatch], committed: Committed, mask: NDArray[np.bool_], keys: pa.Array | None = None
) -> pa.Table:
    """Return the committed rows that `mask`, (rows,) bool, selects, as schema.RETIRED.

    keys: only rows of these images, None for all.
    """
    tables = [schema.RETIRED.empty_table()]
    for batch in batches:
        positions = committed.positions(batch.column("image_key"), batch.column("version"))
        rows = pa.Table.from_batches([batch.filter(pa.array(mask[positions]))]).select(schema.RETIRED.names)
        if keys is not None:
            rows = rows.filter(pc.is_in(rows["image_key"], keys))
        tables.append(rows.cast(schema.RETIRED))
    return pa.concat_tables(tables)


def _intersection(keys: pa.ChunkedArray, others: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    return keys.filter(pc.is_in(keys, others))


_COMPACT = pa.schema([field.with_nullable(field.name == "uri") for field in schema.PLAN])


def _compact(batch: pa.RecordBatch, base: str) -> pa.RecordBatch:
    """Return the batch with a null for each URI that equals `base` followed by the key."""
    keys, uris, versions, sizes = batch.columns
    is_derived = pc.equal(pc.binary_join_element_wise(pa.scalar(base), keys, ""), uris)
    if pc.all(is_derived, min_count=0).as_py():
        needed_uris = pa.nulls(len(uris), pa.string())  # The nulls of if_else still take the memory of the URIs.
    else:
        needed_uris = pc.if_else(is_derived, pa.scalar(None, pa.string()), uris)
    return pa.record_batch([keys, needed_uris, versions, sizes], _COMPACT)


def _take_columns(batches: list[pa.RecordBatch]) -> dict[str, pa.ChunkedArray]:
    """Return the columns of the batches, and empty the list of batches to free its memory."""
    table = pa.Table.from_batches(batches, _COMPACT)
    batches.clear()
    return dict(zip(table.column_names, table.columns, strict=True))


def _sorted_without_duplicates(columns: dict[str, pa.ChunkedArray]) -> pa.Table:
    """Return the table sorted by key, each key once. A listing that is sorted already is not copied.

    The columns are removed from `columns`, so that only one column at a time is in memory twice.
    """
    if _is_strictly_ascending(columns["image_key"]):
        return pa.table(columns, _COMPACT)
    order = pc.sort_indices(pa.table({"key": columns["image_key"]}), sort_keys=[("key", "ascending")])
    # Chunks are joined first. `take` from several chunks joins them too, but keeps the copy.
    table = pa.table({name: columns.pop(name).combine_chunks().take(order) for name in list(columns)}, _COMPACT)
    keys = table.column("image_key").combine_chunks()
    is_first = pc.not_equal(keys.slice(1), keys.slice(0, len(keys) - 1))
    if pc.all(is_first).as_py():
        return table
    return table.filter(pa.concat_arrays([pa.array([True]), is_first]))


def _is_strictly_ascending(keys: pa.ChunkedArray) -> bool:
    """Return whether each key is larger than the one before."""
    chunks = [chunk for chunk in keys.chunks if len(chunk)]
    within_chunks = all(pc.all(pc.greater(chunk.slice(1), chunk.slice(0, len(chunk) - 1))).as_py() for chunk in chunks)
    return within_chunks and all(chunk[-1].as_py() < after[0].as_py() for chunk, after in pairwise(chunks))


def cut(images: int, unit_images: int) -> NDArray[np.int64]:
    """Return the unit boundaries, (units + 1,) int64, from 0 to `images`."""
    return np.append(np.arange(0, images, unit_images), images).astype(np.int64)


def freeze(
    store: Store,
    folder: str,
    listed: ImageList,
    unit_images: int,
    retired: pa.Table | None = None,
    batch_images: int = _PART_ROWS,
    retried: pa.Table | None = None,
) -> Plan:
    """Write the plan below `folder`, and return it. plan.json is written last and makes the plan complete.

    Args:
        store: The store of the label set.
        folder: The run's folder.
        listed: The images to label.
        unit_images: Images of one unit.
        retired: Rows to remove, as schema.RETIRED.
        batch_images: Images of one part of `retired`, which one batch removes.
        retried: Failed rows of images in `listed`, as schema.RETIRED. Such a row does not count as the image's row.
    """
    parts = [
        _write_part(store, folder, f"part-{number:05d}.parquet", listed.rows(first, _PART_ROWS))
        for number, first in enumerate(range(0, len(listed), _PART_ROWS))
    ]
    facts: dict[str, Any] = {
        "images": len(listed), "unit_images": unit_images, "part_rows": _PART_ROWS, "parts": parts,
        "retired": _write_old_rows(store, folder, "retired", retired, batch_images),
    }  # fmt: skip
    if retried is not None and len(retried):
        facts["retried"] = _write_old_rows(store, folder, "retried", retried, _PART_ROWS)
    store.put(join(folder, "plan", "plan.json"), json.dumps(facts, indent=2).encode())
    return _plan_of(store, folder, facts)


def _write_old_rows(store: Store, folder: str, kind: str, rows: pa.Table | None, size: int) -> list[dict[str, Any]]:
    """Write committed rows that the run removes or replaces, as parts of `size` rows."""
    rows = schema.RETIRED.empty_table() if rows is None else rows
    return [
        _write_part(store, folder, f"{kind}-{number:05d}.parquet", rows.slice(first, size))
        for number, first in enumerate(range(0, len(rows), size))
    ]


def _write_part(store: Store, folder: str, name: str, rows: pa.Table) -> dict[str, Any]:
    sink = pa.BufferOutputStream()
    pq.write_table(rows, sink, **schema.PLAN_WRITE)
    data = sink.getvalue().to_pybytes()
    store.put(join(folder, "plan", name), data)
    return {"name": name, "rows": rows.num_rows, "sha256": hashlib.sha256(data).hexdigest()}


def load(store: Store, folder: str) -> Plan | None:
    """Return the plan frozen below `folder`, None if it was never complete."""
    try:
        return _plan_of(store, folder, _read_facts(store, folder))
    except FileNotFoundError:
        return None


def old_rows(store: Store, folder: str, name: str) -> pa.Table:
    """Return one part of the rows that the plan frozen below `folder` removes or replaces, as schema.RETIRED."""
    facts = _read_facts(store, folder)
    (part,) = (part for part in (*facts["retired"], *facts.get("retried", ())) if part["name"] == name)
    return _read_part(store, folder, part)


def _read_facts(store: Store, folder: str) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(store.read(join(folder, "plan", "plan.json")))
    return facts


def _plan_of(store: Store, folder: str, facts: Mapping[str, Any]) -> Plan:
    def read_part(number: int) -> pa.Table:
        return _read_part(store, folder, facts["parts"][number])

    retired, retried = ({part["name"]: part["rows"] for part in facts.get(kind, ())} for kind in ("retired", "retried"))
    starts = cut(facts["images"], facts["unit_images"])
    return Plan(starts, lru_cache(_CACHED_PARTS)(read_part), facts["part_rows"], retired, retried)


def _read_part(store: Store, folder: str, part: Mapping[str, Any]) -> pa.Table:
    uri = join(folder, "plan", part["name"])
    data = store.read(uri)
    if hashlib.sha256(data).hexdigest() != part["sha256"]:
        raise SegrayError(
            "a part of the frozen plan was changed", where=uri, hint="restore the file, or delete the run's folder"
        )
    return pq.read_table(pa.BufferReader(data))


def committed_rows(plan: Plan, committed: Committed | None) -> NDArray[np.bool_]:
    """Return which rows of the plan have a committed row of their version, (images,) bool."""
    if committed is None or not len(committed):
        return np.zeros(plan.images, np.bool_)
    masks = [committed.positions(part.column("image_key"), part.column("version")) >= 0 for part in plan.parts()]
    return np.concatenate([np.zeros(0, np.bool_), *masks])


def remaining_tasks(plan: Plan, done: NDArray[np.bool_]) -> list[Task]:
    """Return the images that are not done, as one task for each maximal run of images within a unit.

    done: (images,) bool, true for each image of the plan that is done.
    """
    tasks = []
    for unit, (first, end) in enumerate(zip(plan.starts[:-1], plan.starts[1:], strict=True)):
        tasks += [Task(unit, start, stop) for start, stop in _true_runs(~done[first:end])]
    return tasks


def _true_runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Return the maximal [start, stop) runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return [(int(start), int(stop)) for start, stop in zip(edges[::2], edges[1::2], strict=True)]
