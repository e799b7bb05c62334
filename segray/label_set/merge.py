"""Merges of staged files into the data files of a batch, class by class, with replacement of changed images' rows.

Knows staged rows, and which committed files hold which images. Commits nothing: readers of the log do not see the
merged files. Memory use does not grow with the batch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from segray.label_set import dataset, plan, run_records, schema, snapshot
from segray.label_set.batches import Batch, Inputs
from segray.label_set.class_names import partition_value
from segray.label_set.delta_log import Changes, DataFile, live_files
from segray.label_set.parquet_writer import DataFileWriter, SpillableRows, contents
from segray.label_set.run_records import Run
from segray.label_set.snapshot import COMMIT_ORDER, table_uri
from segray.storage.store import StorageOptions, Store, bounded_map
from segray.storage.uris import join

_READ_AT_ONCE, _MERGED_AT_ONCE_BYTES = 8, 16 * 2**20
_KEPT_ROWS = "-rest"  # in the names of files that hold the remaining rows of replaced files


def merge(run: Run, number: int, inputs: Inputs, options: StorageOptions) -> Batch:
    """Merge staged files into the data files of batch `number`, sorted by class, key and instance. Commit nothing.

    Rows of images that already have rows are replaced. Rows of retired images are removed. Files that hold such rows
    are written again without the rows, and the batch removes the old files.
    """
    store = Store(options)
    # Everything that decides the files' bytes is in their names. An attempt repeated after a crash overwrites its own
    # files, so readers of the plain glob do not count rows twice. Two processes that resume one run at once write the
    # same bytes, so the slower one does no harm to committed files.
    token = _digest([run.id, number, asdict(inputs)])
    values = run_records.partition_values(store, run.root)
    writer = DataFileWriter(
        store,
        run.root,
        f"b{number:05d}-{token}",
        inputs.facts,
        inputs.file_rows,
        lambda name: values.get(name) or partition_value(name),
    )
    new_rows = {name: SpillableRows() for name in COMMIT_ORDER}
    committed = snapshot.committed(run.root, "images", options)
    labelled_again = [pa.array([], pa.string())]
    images = instances = 0
    for rows in staged_rows(store, run, inputs.staged):
        images += rows.num_rows
        new_rows["images"].add(_image_rows(rows, number, run.id))
        instances_of_rows = instance_rows(rows, number)
        instances += instances_of_rows.num_rows
        new_rows["instances"].add(instances_of_rows)
        labelled_again.append(_keys_with_rows(store, run.root, committed, rows.column("image_key")))
    retired = [keys_still_present(run, part, options) for part in inputs.retired]
    replaced, changes = pa.concat_arrays(labelled_again + retired), {}
    for name, rows_of_table in new_rows.items():
        remove = files_containing(run.root, name, options, replaced)
        add = writer.write(name, rows_of_table, rows_excluding(replaced, store, run.root, name, remove))
        changes[name] = Changes(tuple(add), tuple(remove))
    return Batch(number, run.id, images, instances, changes, inputs.retired, sum(map(len, retired)))


def merge_images_again(root: str, options: StorageOptions, batch: Batch) -> Changes:
    """Return the batch's changes to `images`, written anew after compaction moved the rows that the batch replaces.

    `instances` has the batch already and cannot take the batch back, so the files to replace are looked up again.
    """
    store, run = Store(options), Run(root, batch.run_id)
    new_files = [file for file in batch.tables["images"].add if _KEPT_ROWS not in file.path]
    tables = [
        pq.read_table(pa.BufferReader(store.read(join(table_uri(root, "images"), file.path)))) for file in new_files
    ]
    keys = [table.column("image_key").combine_chunks() for table in tables]
    keys += [keys_still_present(run, part, options) for part in batch.retired]
    replaced = pa.concat_arrays(keys)
    remove = files_containing(root, "images", options, replaced)
    token = _digest([file.path for file in (*new_files, *remove)])
    facts = json.loads(tables[0].schema.metadata[b"segray"]) if tables else {"run_id": run.id}
    file_rows = max(file.rows for file in (*new_files, *remove))
    writer = DataFileWriter(store, root, f"b{batch.number:05d}-{token}", facts, file_rows)
    rewritten = writer.write("images", SpillableRows(), rows_excluding(replaced, store, root, "images", remove))
    return Changes((*new_files, *rewritten), tuple(remove))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


# ---- staged rows ----------------------------------------------------------------------------------


def staged_rows(store: Store, run: Run, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Yield the staged rows, sorted by key.

    names: staged files in the order of the plan, which is the order of keys. A few files are in memory at a time.
    """
    waiting: list[pa.Table] = []
    last_key = ""
    with ThreadPoolExecutor(_READ_AT_ONCE, thread_name_prefix="staged") as pool:
        for first in range(0, len(names), _READ_AT_ONCE):
            uris = [join(run.staged, name) for name in names[first : first + _READ_AT_ONCE]]
            waiting += [schema.staged_rows(data) for data in pool.map(store.read, uris)]
            is_last = first + _READ_AT_ONCE >= len(names)
            if not is_last and sum(table.nbytes for table in waiting) < _MERGED_AT_ONCE_BYTES:
                continue
            rows, waiting = _sorted_by_key(pa.concat_tables(waiting)), []
            for batch in rows.combine_chunks().to_batches():
                keys = batch.column("image_key")
                assert last_key <= keys[0].as_py(), "staged files come in the order of the plan"
                last_key = keys[-1].as_py()
                yield batch


def _sorted_by_key(rows: pa.Table) -> pa.Table:
    keys = rows.column("image_key")
    is_sorted = len(keys) < 2 or pc.all(pc.less_equal(keys.slice(0, len(keys) - 1), keys.slice(1))).as_py()
    return rows if is_sorted else rows.sort_by("image_key")


def _image_rows(rows: pa.RecordBatch, number: int, run_id: str) -> pa.Table:
    columns = {name: rows.column(name) for name in schema.STAGED.names if name != "instances"}
    columns["batch"] = pa.array(np.full(rows.num_rows, number, np.int32))
    columns["run_id"] = pa.array([run_id] * rows.num_rows, pa.string())
    return pa.table({name: columns[name] for name in schema.IMAGES.names}).cast(schema.IMAGES)


def instance_rows(rows: pa.RecordBatch, number: int) -> pa.Table:
    """Return the instances within the rows, sorted by class. Instances of one class keep their order.

    number: the batch number.
    """
    lists = rows.column("instances")
    instances = lists.flatten()
    staged = dict(zip((field.name for field in lists.type.value_type), instances.flatten(), strict=True))
    classes = staged["class_name"].dictionary_encode()
    # numpy sorts integers of at most 16 bits by radix sort.
    codes = classes.indices.to_numpy().astype(np.min_scalar_type(len(classes.dictionary)))
    order = np.argsort(codes, kind="stable")
    image_rows = pa.array(pc.list_parent_indices(lists).to_numpy()[order])
    columns = {name: column.take(pa.array(order)) for name, column in staged.items()}
    columns |= {name: rows.column(name).take(image_rows) for name in ("image_id", "image_key", "height", "width")}
    columns["batch"] = pa.array(np.full(len(order), number, np.int32))
    return pa.Table.from_arrays([columns[name] for name in schema.INSTANCES.names], schema=schema.INSTANCES)


# ---- committed rows of the same images ------------------------------------------------------------


def keys_still_present(run: Run, part: str, options: StorageOptions) -> pa.Array:
    """Return the image keys, in one part of the run's rows to remove or replace, whose rows the table still has."""
    store, committed = Store(options), snapshot.committed(run.root, "images", options)
    rows = plan.old_rows(store, run.folder, part)
    if committed is None:
        return pa.array([], pa.string())
    has_key = _has_key_in(rows.column("image_key").combine_chunks())
    present = store.retrying(run.root, lambda: committed.to_table(["image_key", "batch"], filter=has_key))
    to_remove = present.cast(schema.RETIRED).join(rows, schema.RETIRED.names, join_type="inner")
    return to_remove.column("image_key").combine_chunks()


def _keys_with_rows(store: Store, root: str, committed: ds.Dataset | None, keys: pa.Array) -> pa.Array:
    """Return the keys among `keys` that already have a committed row."""
    if committed is None:
        return pa.array([], pa.string())
    rows = store.retrying(root, lambda: committed.to_table(["image_key"], filter=_has_key_in(keys)))
    return rows.column("image_key").cast(pa.string()).combine_chunks()


def _has_key_in(keys: pa.Array) -> pc.Expression:
    """Return a filter for rows of these images. The range of the keys alone rules out most files and row groups."""
    key, bounds = pc.field("image_key"), pc.min_max(keys)
    return (key >= bounds["min"]) & (key <= bounds["max"]) & key.isin(keys)


def files_containing(root: str, name: str, options: StorageOptions, keys: pa.Array) -> list[DataFile]:
    """Return the files of the table `name` that hold rows of these images."""
    if not len(keys):
        return []
    state = snapshot.table_state(root, name, options)
    assert state is not None, "images that have rows come from a table that exists"
    store, has_key = Store(options), _has_key_in(keys)
    files = {file.path: file for file in live_files(state)}
    table = dataset.dataset(state, options, store.delta_options(root))
    fragments = list(table.get_fragments(filter=has_key))
    counts = bounded_map(
        lambda fragment: store.retrying(root, partial(fragment.count_rows, filter=has_key)), fragments, lambda _: 0
    )
    return [files[fragment.path] for fragment, count in zip(fragments, counts, strict=True) if count]


def rows_excluding(
    keys: pa.Array, store: Store, root: str, name: str, files: Sequence[DataFile]
) -> Iterator[tuple[str, SpillableRows]]:
    """Yield, for each file, a label for the new file and the rows to keep: all rows except those of `keys`."""
    columns = schema.IMAGES if name == "images" else schema.INSTANCES
    for file, data in zip(files, contents(store, root, name, files), strict=True):
        kept, old = SpillableRows(), pq.ParquetFile(pa.BufferReader(data))
        for group in range(old.num_row_groups):
            rows = old.read_row_group(group).cast(columns)
            kept.add(rows.filter(pc.invert(pc.is_in(rows.column("image_key"), value_set=keys))))
        yield f"{_KEPT_ROWS}-{_digest(file.path)}", kept
