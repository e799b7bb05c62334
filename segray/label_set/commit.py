"""Make finished work visible: merge staged files by class, commit each table once, finish half commits.

Delta Lake lives here and in tables.py. Knows tables, files, transactions and batches; knows nothing of models or
Ray. The driver is the only committer.

A batch becomes visible in this order, and a crash between any two steps is finished by `recover`:

    1. b00001-inputs.json  what decides every byte of the batch's files; a resumed run writes the same ones again
    2. data files          complete objects, named by what they were made of; no reader of the log sees them
    3. b00001-xxxx.json    what the commit adds and removes, in both tables
    4. instances           one Delta transaction, app id "segray", version = batch number
    5. images              likewise

A batch may also just remove the rows of images that the source no longer lists; its inputs are called
b00001-retired-inputs.json, and else it is like any other.

Two runs racing for a number: the log admits one, the other gets ConflictError and plans again. `rearrange` is the
one commit without a number: maintenance moves rows between files, at any moment, even between steps 4 and 5.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from deltalake import DeltaTable, Schema
from deltalake.exceptions import CommitFailedError, DeltaError
from deltalake.transaction import (
    AddAction,
    CommitProperties,
    RemoveAction,
    Transaction,
    create_table_with_add_actions,
)

from segray.errors import ConflictError, LabelSetError, WorldError
from segray.label_set import dataset, plan, schema, snapshot
from segray.label_set.delta_log import APP_ID, TableState, batch_of, state_of
from segray.label_set.parquet_writer import DataFile, Rows, Writer, contents
from segray.label_set.run_records import Run
from segray.label_set.snapshot import COMMIT_ORDER, open_table, table_uri
from segray.storage.store import StorageOptions, Store, abreast
from segray.storage.uris import join

_RECORD_KEY = "segray_record"
_READ_AT_ONCE, _MERGED_AT_ONCE_BYTES = 8, 16 * 2**20
_REST = "-rest"  # in the names of files that hold what is left of replaced ones


@dataclass(frozen=True)
class Changes:
    """What one commit does to one table."""

    add: tuple[DataFile, ...] = ()
    remove: tuple[DataFile, ...] = ()


@dataclass(frozen=True)
class Batch:
    """A batch that is ready to commit: all its files are in place. images, instances: rows that it adds.

    retired: parts of the run's list of rows to remove, all of which it removes; removed: from so many images' rows.
    """

    number: int
    run_id: str
    images: int
    instances: int
    tables: Mapping[str, Changes]
    retired: tuple[str, ...] = ()
    removed: int = 0

    def dump(self) -> bytes:
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def parse(cls, data: bytes) -> Batch:
        raw = json.loads(data)
        tables = {
            name: Changes(*(tuple(DataFile(**f) for f in changes[kind]) for kind in ("add", "remove")))
            for name, changes in raw.pop("tables").items()
        }
        return cls(tables=tables, retired=tuple(raw.pop("retired", ())), **raw)


# ---- tables ---------------------------------------------------------------------------------------


def create_tables(root: str, options: StorageOptions) -> None:
    """Make both tables, empty, where they do not exist yet."""
    for name in COMMIT_ORDER:
        Store(options).insist(root, partial(_create_table, root, options, name))


def _create_table(root: str, options: StorageOptions, name: str) -> None:
    if open_table(root, name, options) is not None:
        return
    delta = schema.IMAGES if name == "images" else schema.INSTANCES_WITH_PARTITION
    try:
        create_table_with_add_actions(
            table_uri(root, name),
            Schema.from_arrow(delta),
            [],
            mode="ignore",
            partition_by=[schema.PARTITION] if name == "instances" else [],
            name=f"segray {name}",
            storage_options=Store(options).delta_options(root) or None,
        )
    except DeltaError as exc:
        if open_table(root, name, options) is None:  # Else another run made it first.
            raise WorldError(f"could not create the table {name}", where=root, found=str(exc)) from exc


def batch_numbers(root: str, options: StorageOptions) -> tuple[int, int]:
    """The last batch committed to instances and to images; 0 before the first.

    Others may commit between the two reads, but to instances first: so images are read first, and again where the
    difference is larger than that of a batch under way.
    """
    store = Store(options)

    def number(name: str) -> int:
        table = open_table(root, name, options)
        return 0 if table is None else batch_of(table)

    def read(name: str) -> int:
        return store.insist(root, partial(number, name))

    images, instances = read("images"), read("instances")
    while instances > images + 1 and (later := read("images")) != images:
        images, instances = later, read("instances")
    return instances, images


def recover(root: str, options: StorageOptions, store: Store) -> int:
    """Finish a batch that reached `instances` but not `images`; returns the last whole batch's number."""
    instances, images = batch_numbers(root, options)
    if instances == images:
        return images
    if instances != images + 1:
        raise LabelSetError(
            "the two tables of the label set do not belong together",
            where=root,
            found=f"instances at batch {instances}, images at batch {images}",
            do="restore both from one backup; segray never leaves them further apart than one batch",
        )
    batch, record = _newest(root, options, store)
    store.insist(root, partial(_commit_table, root, options, "images", batch, record))
    return instances


def _newest(root: str, options: StorageOptions, store: Store) -> tuple[Batch, str]:
    """The last batch that reached `instances`, and where its record lies below the root."""
    history = store.insist(root, _existing(root, "instances", options).history)
    record = next(entry[_RECORD_KEY] for entry in history if _RECORD_KEY in entry)
    return Batch.parse(store.read(join(root, record))), record


def commit(batch: Batch, run: Run, options: StorageOptions, store: Store) -> None:
    """Make the batch visible. Raises ConflictError when another run took its number; nothing of ours shows then."""
    try:
        _commit(batch, run, options, store)
    except ConflictError:
        _discard(batch, run.root, options, store)
        raise


def _commit(batch: Batch, run: Run, options: StorageOptions, store: Store) -> None:
    if batch_numbers(run.root, options) != (batch.number - 1, batch.number - 1):
        raise ConflictError(
            f"batch {batch.number} was committed by another run", where=run.root, do="the work left is planned again"
        )
    record = f"_segray/runs/{run.id}/batches/b{batch.number:05d}-{secrets.token_hex(4)}.json"
    store.put(join(run.root, record), batch.dump())
    for name in COMMIT_ORDER:
        store.insist(run.root, partial(_commit_table, run.root, options, name, batch, record))


def _discard(batch: Batch, root: str, options: StorageOptions, store: Store) -> None:
    """Delete the files of a batch that lost its number, as far as nobody has committed them or still can.

    Another process may have resumed the same run and made the same files: so those that a log names stay, and those
    of the batch that has reached `instances` alone, since whoever comes next commits it to `images` too.
    """
    instances, _ = batch_numbers(root, options)
    if instances < batch.number:
        return  # Only compaction was in the way: the number is free, and the same files may come again.
    keep = {
        (name, file.path) for name, changes in _newest(root, options, store)[0].tables.items() for file in changes.add
    }
    for name, changes in batch.tables.items():
        live = {file.path for file in files_of(_existing(root, name, options))}
        for path in {file.path for file in changes.add} - live - removed_files(root, options, name, 0):
            if (name, path) not in keep:
                store.delete(join(table_uri(root, name), path))


def _commit_table(root: str, options: StorageOptions, name: str, batch: Batch, record: str) -> None:
    table = _existing(root, name, options)
    if batch_of(table) >= batch.number:
        if _made_by(table, record):
            return  # by `recover`, or by an attempt of ours whose answer was lost
        raise ConflictError(f"batch {batch.number} was committed by another run", where=root)
    changes = batch.tables[name]
    if gone := _gone(table, changes):
        if name == "instances":
            raise ConflictError(
                f"files that batch {batch.number} replaces were rewritten meanwhile",
                where=table_uri(root, name),
                found=gone[0],
                do="the work left is planned again",
            )
        changes = _replaced_anew(root, options, batch)
    properties = CommitProperties(
        custom_metadata={_RECORD_KEY: record},
        max_commit_retries=0,
        app_transactions=[Transaction(APP_ID, batch.number)],
    )
    _transact(table, name, changes, properties, f"batch {batch.number}")


def rearrange(root: str, options: StorageOptions, name: str, changes: Changes) -> None:
    """Replace files of a table by others that hold the same rows. Batch numbers stay as they are.

    Raises ConflictError, leaving the table as it was, when a replaced file is gone or another commit came between.
    """
    table = _existing(root, name, options)
    if gone := _gone(table, changes):
        raise ConflictError("a file was replaced meanwhile", where=table_uri(root, name), found=gone[0])
    properties = CommitProperties(max_commit_retries=0)
    Store(options).insist(
        root, lambda: _transact(table, name, changes, properties, "the rearrangement", data_change=False)
    )


def live_files(state: TableState) -> list[DataFile]:
    """The files that make this state, by path; without their statistics."""
    rows = state.files.to_pylist()
    files = [
        DataFile(row["path"], row["size_bytes"], row["num_records"], row.get(f"partition.{schema.PARTITION}"))
        for row in rows
    ]
    return sorted(files, key=lambda file: file.path)


def files_of(table: DeltaTable) -> list[DataFile]:
    """The files that make the snapshot which `table` has loaded, by path; without their statistics."""
    return live_files(state_of(table, table.table_uri))


def removed_files(root: str, options: StorageOptions, name: str, hours: int, *, unnamed: bool = False) -> set[str]:
    """Paths that a commit removed at least so many hours ago, deleted by now or not.

    unnamed: also the files in the table's folder that are so old and that the log does not name.
    """
    table = _existing(root, name, options)
    find = partial(table.vacuum, hours, dry_run=True, enforce_retention_duration=False, full=unnamed)
    return set(Store(options).insist(root, find))


def checkpoint(root: str, options: StorageOptions, name: str) -> None:
    """Sum up the table's log in one file, so that readers need not read every commit."""
    Store(options).insist(root, _existing(root, name, options).create_checkpoint)


def _existing(root: str, name: str, options: StorageOptions) -> DeltaTable:
    table = open_table(root, name, options)
    if table is None:
        raise LabelSetError("a table of the label set is gone", where=table_uri(root, name), do="restore it")
    return table


def _gone(table: DeltaTable, changes: Changes) -> list[str]:
    """Files to be removed that the table does not have; the log itself would accept their removal in silence."""
    if not changes.remove:
        return []
    return sorted({f.path for f in changes.remove} - {f.path for f in files_of(table)})


def _transact(
    table: DeltaTable,
    name: str,
    changes: Changes,
    properties: CommitProperties,
    what: str,
    *,
    data_change: bool = True,
) -> None:
    """One Delta commit on exactly this snapshot of the table; OSError when storage fails (see Store.insist)."""
    now_ms, uri = int(time.time() * 1000), table.table_uri
    actions: list[AddAction | RemoveAction] = [
        RemoveAction(f.path, data_change, now_ms, f.size_bytes, _partition_values(f)) for f in changes.remove
    ]
    actions += [
        AddAction(f.path, f.size_bytes, _partition_values(f), now_ms, data_change, f.stats) for f in changes.add
    ]
    try:
        table.create_write_transaction(
            actions,
            "append",
            table.schema(),
            partition_by=[schema.PARTITION] if name == "instances" else [],
            commit_properties=properties,
        )
    except CommitFailedError as exc:
        raise ConflictError(f"another commit came before {what}", where=uri, found=str(exc)) from exc
    except DeltaError as exc:
        raise OSError(f"could not commit {what} to {name}: {exc}") from exc  # so some faults of storage come, too


def _made_by(table: DeltaTable, record: str) -> bool:
    return any(entry.get(_RECORD_KEY) == record for entry in table.history())


def _partition_values(file: DataFile) -> dict[str, str | None]:
    return {} if file.partition is None else {schema.PARTITION: file.partition}


# ---- merging --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """All that decides what the files of a batch hold, and so their names.

    staged: names below the run's staged folder. facts: provenance for each file's metadata. file_rows: most rows of
    one file. retired: parts of the run's list of rows to remove; such a batch has nothing staged.
    """

    staged: tuple[str, ...]
    facts: Mapping[str, Any]
    file_rows: int
    retired: tuple[str, ...] = ()


def intend(run: Run, number: int, inputs: Inputs, store: Store) -> None:
    """Record what the batch will be made of."""
    uri = _inputs_uri(run, number, retiring=bool(inputs.retired))
    store.put(uri, json.dumps(asdict(inputs), sort_keys=True).encode())


def intended(run: Run, number: int, store: Store, *, retiring: bool = False) -> Inputs | None:
    """What an interrupted attempt at this batch was made of; None if there was none."""
    try:
        raw = json.loads(store.read(_inputs_uri(run, number, retiring=retiring)))
    except FileNotFoundError:
        return None
    return Inputs(tuple(raw["staged"]), raw["facts"], raw["file_rows"], tuple(raw.get("retired", ())))


def _inputs_uri(run: Run, number: int, *, retiring: bool) -> str:
    return join(run.folder, "batches", f"b{number:05d}-{'retired-' * retiring}inputs.json")


def merge(run: Run, number: int, inputs: Inputs, options: StorageOptions) -> Batch:
    """Turn staged files into the data files of batch `number`, sorted by class, key, instance; commit nothing.

    Rows of images that already have rows are replaced, those of retired images removed: the files that hold them are
    written again without them, and the old ones removed in the same commit. Memory does not grow with the batch.
    """
    store = Store(options)
    # Named by all that decides their bytes. An attempt that is repeated after a crash overwrites its own files
    # instead of leaving them beside new ones, where a reader of the plain glob would count both; and when two
    # processes resume one run at once, what the slower one writes over committed files is what they hold.
    token = _digest([run.id, number, asdict(inputs)])
    writer = Writer(store, run.root, f"b{number:05d}-{token}", inputs.facts, inputs.file_rows)
    fresh = {name: Rows() for name in COMMIT_ORDER}
    committed, again = snapshot.committed(run.root, "images", options), [pa.array([], pa.string())]
    images = instances = 0
    for rows in _staged(store, run, inputs.staged):
        images += rows.num_rows
        fresh["images"].add(_images(rows, number, run.id))
        found = _instances(rows, number)
        instances += found.num_rows
        fresh["instances"].add(found)
        again.append(_replaced(store, run.root, committed, rows.column("image_key")))
    removed = sum(map(len, gone := [still_there(run, name, options) for name in inputs.retired]))
    replaced, changes = pa.concat_arrays(again + gone), {}
    for name, gathered in fresh.items():
        remove = _holding(run.root, name, options, replaced)
        add = writer.write(name, gathered, _without(replaced, store, run.root, name, remove))
        changes[name] = Changes(tuple(add), tuple(remove))
    return Batch(number, run.id, images, instances, changes, inputs.retired, removed)


def still_there(run: Run, part: str, options: StorageOptions) -> pa.Array:
    """Of one part of the run's rows to remove: the keys of those that the table still has."""
    store, committed = Store(options), snapshot.committed(run.root, "images", options)
    rows = plan.retired(store, run.folder, part)
    if committed is None:
        return pa.array([], pa.string())
    held = _one_of(rows.column("image_key").combine_chunks())
    found = store.insist(run.root, lambda: committed.to_table(["image_key", "batch"], filter=held))
    both = found.cast(schema.RETIRED).join(rows, schema.RETIRED.names, join_type="inner")
    return both.column("image_key").combine_chunks()


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


def _staged(store: Store, run: Run, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """The staged rows sorted by key, several files at a time: these come in the order of the plan, which is by key."""
    waiting: list[pa.Table] = []
    last = ""
    with ThreadPoolExecutor(_READ_AT_ONCE, thread_name_prefix="staged") as pool:
        for first in range(0, len(names), _READ_AT_ONCE):
            uris = [join(run.staged, name) for name in names[first : first + _READ_AT_ONCE]]
            waiting += [schema.staged_rows(data) for data in pool.map(store.read, uris)]
            if first + _READ_AT_ONCE < len(names) and sum(table.nbytes for table in waiting) < _MERGED_AT_ONCE_BYTES:
                continue
            rows, waiting = _by_key(pa.concat_tables(waiting)), []
            for batch in rows.combine_chunks().to_batches():
                keys = batch.column("image_key")
                assert last <= keys[0].as_py(), "staged files come in the order of the plan"
                last = keys[-1].as_py()
                yield batch


def _by_key(rows: pa.Table) -> pa.Table:
    keys = rows.column("image_key")
    sorted_already = len(keys) < 2 or pc.all(pc.less_equal(keys.slice(0, len(keys) - 1), keys.slice(1))).as_py()
    return rows if sorted_already else rows.sort_by("image_key")


def _images(rows: pa.RecordBatch, number: int, run_id: str) -> pa.Table:
    columns = {name: rows.column(name) for name in schema.STAGED.names if name != "instances"}
    columns["batch"] = pa.array(np.full(rows.num_rows, number, np.int32))
    columns["run_id"] = pa.array([run_id] * rows.num_rows, pa.string())
    return pa.table({name: columns[name] for name in schema.IMAGES.names}).cast(schema.IMAGES)


def _instances(rows: pa.RecordBatch, number: int) -> pa.Table:
    """The instances within the rows, class after class; those of a class keep their order."""
    lists = rows.column("instances")
    found = dict(zip((f.name for f in lists.type.value_type), lists.flatten().flatten(), strict=True))
    classes = found["class_name"].dictionary_encode()
    # Of so few bits as numpy sorts by radix.
    codes = classes.indices.to_numpy().astype(np.min_scalar_type(len(classes.dictionary)))
    order = np.argsort(codes, kind="stable")
    image = pa.array(pc.list_parent_indices(lists).to_numpy()[order])
    columns = {name: column.take(pa.array(order)) for name, column in found.items()}
    columns |= {name: rows.column(name).take(image) for name in ("image_id", "image_key", "height", "width")}
    columns["batch"] = pa.array(np.full(len(order), number, np.int32))
    return pa.Table.from_arrays([columns[name] for name in schema.INSTANCES.names], schema=schema.INSTANCES)


# ---- replacing changed images ---------------------------------------------------------------------


def _replaced(store: Store, root: str, committed: ds.Dataset | None, keys: pa.Array) -> pa.Array:
    """Those of the keys that already have a committed row."""
    if committed is None:
        return pa.array([], pa.string())
    found = store.insist(root, lambda: committed.to_table(["image_key"], filter=_one_of(keys)))
    return found.column("image_key").cast(pa.string()).combine_chunks()


def _one_of(keys: pa.Array) -> pc.Expression:
    """Rows of these images. By the range of the keys alone, most files and row groups need no look."""
    key, bounds = pc.field("image_key"), pc.min_max(keys)
    return (key >= bounds["min"]) & (key <= bounds["max"]) & key.isin(keys)


def _holding(root: str, name: str, options: StorageOptions, keys: pa.Array) -> list[DataFile]:
    """Files of the table that hold rows of these images."""
    if not len(keys):
        return []
    state = snapshot.table_state(root, name, options)
    assert state is not None, "images that have rows come from a table that exists"
    store, held, files = Store(options), _one_of(keys), {file.path: file for file in live_files(state)}
    rows = dataset.dataset(state, options, store.delta_options(root))
    fragments = list(rows.get_fragments(filter=held))
    counts = abreast(lambda each: store.insist(root, partial(each.count_rows, filter=held)), fragments, lambda _: 0)
    return [files[each.path] for each, rows in zip(fragments, counts, strict=True) if rows]


def _without(
    keys: pa.Array, store: Store, root: str, name: str, files: Sequence[DataFile]
) -> Iterator[tuple[str, Rows]]:
    """What each file holds of other images, and a label for the file that is to hold it instead."""
    arrow = schema.IMAGES if name == "images" else schema.INSTANCES
    for file, data in zip(files, contents(store, root, name, files), strict=True):
        rest, old = Rows(), pq.ParquetFile(pa.BufferReader(data))
        for group in range(old.num_row_groups):
            rows = old.read_row_group(group).cast(arrow)
            rest.add(rows.filter(pc.invert(pc.is_in(rows.column("image_key"), value_set=keys))))
        yield f"{_REST}-{_digest(file.path)}", rest


def _replaced_anew(root: str, options: StorageOptions, batch: Batch) -> Changes:
    """The batch's changes to `images`, when compaction moved the rows that it replaces after `instances` was committed.

    What is in `instances` cannot be taken back, so the files to replace are found again.
    """
    store, run = Store(options), Run(root, batch.run_id)
    fresh = [f for f in batch.tables["images"].add if _REST not in f.path]
    tables = [pq.read_table(pa.BufferReader(store.read(join(table_uri(root, "images"), f.path)))) for f in fresh]
    keys = [table.column("image_key").combine_chunks() for table in tables]
    keys += [still_there(run, part, options) for part in batch.retired]
    replaced = pa.concat_arrays(keys)
    remove = _holding(root, "images", options, replaced)
    token = _digest([f.path for f in (*fresh, *remove)])
    facts = json.loads(tables[0].schema.metadata[b"segray"]) if tables else {"run_id": run.id}
    writer = Writer(store, root, f"b{batch.number:05d}-{token}", facts, max(f.rows for f in (*fresh, *remove)))
    rest = writer.write("images", Rows(), _without(replaced, store, root, "images", remove))
    return Changes((*fresh, *rest), tuple(remove))
