"""Commits: publish each batch in both tables, and finish half-committed batches.

Knows the order of the steps, conflicts and recovery. Leaves data files to merge.py, records to batches.py and
transactions to delta_log.py. The driver is the only committer.

A batch becomes visible in the following order. `recover` finishes the commit after a crash between any two steps.

    1. b00001-inputs.json  everything that decides the files' bytes; a resumed run writes the same files again
    2. data files          complete objects, named by their inputs; no reader of the log sees them
    3. b00001-xxxx.json    the files that the commit adds and removes, in both tables
    4. instances           one Delta transaction, app id "segray", version = batch number
    5. images              the same

A batch may also only remove the rows of images that the source no longer lists. The inputs of such a batch are called
b00001-retired-inputs.json. All other steps are the same.

When two runs race for a number, the log admits one run. The other run gets ConflictError and plans again.
`replace_files` is the only commit without a number. Maintenance uses `replace_files` to move rows between files, at
any time, even between steps 4 and 5.
"""

from __future__ import annotations

from functools import partial

from segray.errors import ConflictError, LabelSetError
from segray.label_set import delta_log
from segray.label_set.batches import Batch, batch_numbers, newest_batch, write_record
from segray.label_set.delta_log import Changes, batch_of, batch_records, files_of, missing_files
from segray.label_set.merge import merge_images_again
from segray.label_set.run_records import Run
from segray.label_set.snapshot import COMMIT_ORDER, open_table, removed_files, require_table, table_uri
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import join

_RUN_AGAIN = "run the same command again; segray then plans the remaining images"


def create_tables(root: str, options: StorageOptions) -> None:
    """Create both tables, empty, unless they exist."""
    for name in COMMIT_ORDER:
        Store(options).retrying(root, partial(_create_table, root, options, name))


def _create_table(root: str, options: StorageOptions, name: str) -> None:
    if open_table(root, name, options) is None:
        delta_log.create_table(table_uri(root, name), name, Store(options).delta_options(root))


def recover(root: str, options: StorageOptions, store: Store) -> int:
    """Finish a batch that reached `instances` but not `images`. Return the number of the last complete batch.

    Raises LabelSetError where the tables are more than one batch apart.
    """
    instances, images = batch_numbers(root, options)
    if instances == images:
        return images
    if instances != images + 1:
        raise LabelSetError(
            "the two tables of the label set are more than one batch apart",
            where=root,
            found=f"instances at batch {instances}, images at batch {images}",
            hint="restore `instances` and `images` from one backup",
        )
    batch, record = newest_batch(root, options, store)
    store.retrying(root, partial(_commit_table, root, options, "images", batch, record))
    return instances


def commit(batch: Batch, run: Run, options: StorageOptions, store: Store) -> None:
    """Commit the batch to both tables.

    Raises ConflictError when another run took the batch's number. Nothing of this batch is visible then.
    """
    try:
        _commit(batch, run, options, store)
    except ConflictError:
        _discard(batch, run.root, options, store)
        raise


def _commit(batch: Batch, run: Run, options: StorageOptions, store: Store) -> None:
    if batch_numbers(run.root, options) != (batch.number - 1, batch.number - 1):
        raise _batch_taken(batch, run.root)
    record = write_record(batch, run, store)
    for name in COMMIT_ORDER:
        store.retrying(run.root, partial(_commit_table, run.root, options, name, batch, record))


def _batch_taken(batch: Batch, root: str) -> ConflictError:
    return ConflictError(f"another run committed batch {batch.number} first", where=root, hint=_RUN_AGAIN)


def _commit_table(root: str, options: StorageOptions, name: str, batch: Batch, record: str) -> None:
    """Commit the batch to one table, unless the table has the batch.

    The call may be repeated after storage lost the answer to an earlier attempt.
    """
    table = require_table(root, name, options)
    if batch_of(table) >= batch.number:
        if record in batch_records(table):
            return  # `recover` or an earlier attempt committed the batch.
        raise _batch_taken(batch, root)
    changes = batch.tables[name]
    if missing := missing_files(table, changes):
        if name == "instances":
            raise ConflictError(
                f"files that batch {batch.number} replaces were rewritten meanwhile",
                where=table_uri(root, name),
                found=missing[0],
                hint=_RUN_AGAIN,
            )
        changes = merge_images_again(root, options, batch)
    delta_log.commit_batch(table, name, changes, batch.number, record)


def _discard(batch: Batch, root: str, options: StorageOptions, store: Store) -> None:
    """Delete the files of a batch that lost its number, unless they are committed or may still be committed.

    Another process may have resumed the same run and made the same files, so files that a log names stay. A batch that
    reached only `instances` keeps its files too, because the next process commits that batch to `images`.
    """
    instances, _ = batch_numbers(root, options)
    if instances < batch.number:
        return  # Only compaction conflicted. The number is free, and the next attempt may write the same files.
    newest, _ = newest_batch(root, options, store)
    newest_files = {(name, file.path) for name, changes in newest.tables.items() for file in changes.add}
    for name, changes in batch.tables.items():
        live = {file.path for file in files_of(require_table(root, name, options))}
        for path in {file.path for file in changes.add} - live - removed_files(root, name, options, 0):
            if (name, path) not in newest_files:
                store.delete(join(table_uri(root, name), path))


def replace_files(root: str, options: StorageOptions, name: str, changes: Changes) -> None:
    """Replace files of a table by others that hold the same rows. Batch numbers stay as they are.

    Raises ConflictError when a replaced file is gone or another commit came first. The table then stays as it was.
    """
    table = require_table(root, name, options)
    if missing := missing_files(table, changes):
        raise ConflictError(
            "another process replaced a file meanwhile",
            where=table_uri(root, name),
            found=missing[0],
            hint="run `segray maintain` again",
        )
    Store(options).retrying(root, lambda: delta_log.commit_replacement(table, name, changes))
