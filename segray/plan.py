"""Which images a run labels: list, compare with what is committed, freeze, cut into units.

Knows refs, versions and units; knows nothing of how images are read or labelled. A frozen plan never changes:
a restart, however many workers it has, sees the same units. It lies in storage and is read part by part.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from segray import schema
from segray.errors import SegrayError
from segray.instances import ImageRef, Task
from segray.storage import Store, join

_PART_ROWS, _PARTS_KEPT = 131_072, 3


@dataclass(frozen=True)
class Plan:
    """The frozen list, sorted by image_key, and how it is cut into units.

    starts: first row of each unit, and the end. part: the nth part of the list, schema.PLAN, of part_rows rows unless
    it is the last.
    """

    starts: NDArray[np.int64]
    part: Callable[[int], pa.Table]
    part_rows: int

    @property
    def images(self) -> int:
        return int(self.starts[-1])

    def parts(self) -> Iterator[pa.Table]:
        """The whole list, in order."""
        return map(self.part, range(-(-self.images // self.part_rows)))

    def tasks(self) -> list[Task]:
        """Every unit as one task."""
        return [Task(unit, 0, int(size)) for unit, size in enumerate(np.diff(self.starts))]

    def rows(self, task: Task) -> slice:
        """Where the task's images lie in the list."""
        first = int(self.starts[task.unit])
        return slice(first + task.start, first + task.stop)

    def refs(self, task: Task) -> list[ImageRef]:
        """The images of a task, in order. Raises SegrayError when the frozen list was changed."""
        refs, (at, end) = [], (self.rows(task).start, self.rows(task).stop)
        while at < end:
            number, first = divmod(at, self.part_rows)
            rows = self.part(number).slice(first, end - at)
            columns = [rows.column(name).to_pylist() for name in ("image_key", "uri", "version", "bytes")]
            refs += [ImageRef(*row) for row in zip(*columns, strict=True)]
            at += rows.num_rows
        return refs


def of(table: pa.Table, unit_images: int) -> Plan:
    """A list in memory as a plan that nobody froze."""
    return Plan(cut(table.num_rows, unit_images), lambda number: table, max(1, table.num_rows))


def build(batches: Iterable[pa.RecordBatch], committed: pa.Table | None) -> tuple[pa.Table, int]:
    """What is left to label, sorted by key, each key once; and how many distinct images the source has.

    batches: columns key, uri, version, size_bytes. committed: columns image_key, version of the images table.
    An image is left when no committed row has its key, or the row has another version.
    """
    listed = _by_key_once(pa.Table.from_batches(list(batches)).rename_columns(schema.PLAN.names))
    total = int(listed.num_rows)
    if committed is not None and committed.num_rows:
        known = pa.table(
            {
                "image_key": committed.column("image_key").cast(pa.string()),
                "version": committed.column("version").cast(pa.string()),
            }
        )
        listed = listed.join(known, ["image_key", "version"], join_type="left anti").sort_by("image_key")
    return listed.select(schema.PLAN.names).cast(schema.PLAN), total


def _by_key_once(table: pa.Table) -> pa.Table:
    """Sorted by key, each key once. Most listings are so already, and then nothing is copied."""
    if table.num_rows < 2:
        return table
    keys = table.column("image_key").combine_chunks()
    if pc.all(pc.greater(keys.slice(1), keys.slice(0, len(keys) - 1))).as_py():
        return table
    table = table.sort_by("image_key")
    keys = table.column("image_key").combine_chunks()
    fresh = pc.not_equal(keys.slice(1), keys.slice(0, len(keys) - 1))
    return table.filter(pa.concat_arrays([pa.array([True]), fresh]))


def cut(images: int, unit_images: int) -> NDArray[np.int64]:
    """Unit boundaries, 0 to images."""
    return np.append(np.arange(0, images, unit_images), images).astype(np.int64)


def freeze(store: Store, folder: str, table: pa.Table, unit_images: int) -> Plan:
    """Write the plan below `folder`; plan.json comes last and makes it whole."""
    parts = []
    for number, first in enumerate(range(0, table.num_rows, _PART_ROWS)):
        sink = pa.BufferOutputStream()
        pq.write_table(table.slice(first, _PART_ROWS), sink, **schema.PLAN_WRITE)
        data = sink.getvalue().to_pybytes()
        name = f"part-{number:05d}.parquet"
        store.put(join(folder, "plan", name), data)
        parts.append({"name": name, "sha256": hashlib.sha256(data).hexdigest()})
    facts = {"images": table.num_rows, "unit_images": unit_images, "part_rows": _PART_ROWS, "parts": parts}
    store.put(join(folder, "plan", "plan.json"), json.dumps(facts, indent=2).encode())
    return _frozen(store, folder, facts)


def load(store: Store, folder: str) -> Plan | None:
    """The plan frozen below `folder`; None when it never became whole."""
    try:
        return _frozen(store, folder, json.loads(store.read(join(folder, "plan", "plan.json"))))
    except FileNotFoundError:
        return None


def _frozen(store: Store, folder: str, facts: Mapping[str, Any]) -> Plan:
    def part(number: int) -> pa.Table:
        uri = join(folder, "plan", facts["parts"][number]["name"])
        data = store.read(uri)
        if hashlib.sha256(data).hexdigest() != facts["parts"][number]["sha256"]:
            raise SegrayError(
                "a part of the frozen plan was changed", where=uri, do="restore it, or delete the run's folder"
            )
        return pq.read_table(pa.BufferReader(data))

    return Plan(cut(facts["images"], facts["unit_images"]), lru_cache(_PARTS_KEPT)(part), facts["part_rows"])


def committed_rows(plan: Plan, committed: pa.Table | None) -> NDArray[np.bool_]:
    """Which rows of the plan have a committed row of their version: (images,) bool."""
    if committed is None or not committed.num_rows:
        return np.zeros(plan.images, np.bool_)
    return np.concatenate([np.zeros(0, np.bool_), *(_committed_rows(part, committed) for part in plan.parts())])


def _committed_rows(part: pa.Table, committed: pa.Table) -> NDArray[np.bool_]:
    remaining, _ = build(part.rename_columns(["key", "uri", "version", "size_bytes"]).to_batches(), committed)
    keys = remaining.column("image_key").combine_chunks()
    todo = pc.is_in(part.column("image_key"), value_set=keys)
    return np.asarray(~todo.to_numpy(zero_copy_only=False), np.bool_)


def left(plan: Plan, done: NDArray[np.bool_]) -> list[Task]:
    """What is not done, as tasks: each maximal run of images within a unit."""
    tasks = []
    for unit, (first, end) in enumerate(zip(plan.starts[:-1], plan.starts[1:], strict=True)):
        tasks += [Task(unit, a, b) for a, b in _runs(~done[first:end])]
    return tasks


def _runs(wanted: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Maximal [start, stop) runs of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], wanted, [False]]).astype(np.int8)))
    return [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True)]
