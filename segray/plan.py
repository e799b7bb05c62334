"""Which images a run labels: list, compare with what is committed, freeze, cut into units.

Knows refs, versions and units; knows nothing of how images are read or labelled. A frozen plan never changes:
a restart, however many workers it has, sees the same units.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
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

_PART_ROWS = 1_000_000


@dataclass(frozen=True)
class Plan:
    """The frozen list. table: schema.PLAN, sorted by image_key. starts: first row of each unit, and the end."""

    table: pa.Table
    starts: NDArray[np.int64]

    @property
    def images(self) -> int:
        return int(self.table.num_rows)

    def tasks(self) -> list[Task]:
        """Every unit as one task."""
        return [Task(unit, 0, int(size)) for unit, size in enumerate(np.diff(self.starts))]

    def rows(self, task: Task) -> slice:
        """Where the task's images lie in the table."""
        first = int(self.starts[task.unit])
        return slice(first + task.start, first + task.stop)

    def refs(self, task: Task) -> list[ImageRef]:
        """The images of a task, in order."""
        rows = self.table.slice(self.rows(task).start, len(task))
        columns = [rows.column(name).to_pylist() for name in ("image_key", "uri", "version", "bytes")]
        return [ImageRef(*row) for row in zip(*columns, strict=True)]


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
    """Unit boundaries, 0 to images. Units have `unit_images`, shrinking over the last tenth so that workers of
    different speed finish together (guided self-scheduling, Polychronopoulos and Kuck, 1987)."""
    starts, left = [0], images
    while left:
        size = min(unit_images, max(min(8, unit_images), left // 10))
        starts.append(starts[-1] + min(size, left))
        left = images - starts[-1]
    return np.array(starts, np.int64)


def freeze(store: Store, folder: str, table: pa.Table, unit_images: int) -> Plan:
    """Write the plan below `folder`; plan.json comes last and makes it whole."""
    starts = cut(table.num_rows, unit_images)
    parts = []
    for number, first in enumerate(range(0, table.num_rows, _PART_ROWS)):
        sink = pa.BufferOutputStream()
        pq.write_table(table.slice(first, _PART_ROWS), sink, **schema.PLAN_WRITE)
        data = sink.getvalue().to_pybytes()
        name = f"part-{number:05d}.parquet"
        store.put(join(folder, "plan", name), data)
        parts.append({"name": name, "sha256": hashlib.sha256(data).hexdigest()})
    facts = {"images": table.num_rows, "unit_images": unit_images, "parts": parts}
    store.put(join(folder, "plan", "plan.json"), json.dumps(facts, indent=2).encode())
    return Plan(table, starts)


def load(store: Store, folder: str) -> Plan | None:
    """The plan frozen below `folder`; None when it never became whole."""
    try:
        facts: dict[str, Any] = json.loads(store.read(join(folder, "plan", "plan.json")))
    except FileNotFoundError:
        return None
    tables = []
    for part in facts["parts"]:
        uri = join(folder, "plan", part["name"])
        data = store.read(uri)
        if hashlib.sha256(data).hexdigest() != part["sha256"]:
            raise SegrayError(
                "a part of the frozen plan was changed", where=uri, do="restore it, or delete the run's folder"
            )
        tables.append(pq.read_table(pa.BufferReader(data)))
    table = pa.concat_tables(tables) if tables else schema.PLAN.empty_table()
    return Plan(table, cut(table.num_rows, facts["unit_images"]))


def committed_rows(plan: Plan, committed: pa.Table | None) -> NDArray[np.bool_]:
    """Which rows of the plan have a committed row of their version: (images,) bool."""
    if committed is None or not committed.num_rows:
        return np.zeros(plan.images, np.bool_)
    remaining, _ = build(plan.table.rename_columns(["key", "uri", "version", "size_bytes"]).to_batches(), committed)
    keys = remaining.column("image_key").combine_chunks()
    todo = pc.is_in(plan.table.column("image_key"), value_set=keys)
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
