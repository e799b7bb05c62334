"""Maintenance of a label set: compact small files, delete files that nothing needs, checkpoint the logs.

Knows which files belong together, and when a file may be deleted. Changes no row. Every step may be interrupted or
repeated, and may run at the same time as readers and `segray label`:

    1. finish a batch that reached only one table    as the next run would
    2. write compacted files, then one commit        which adds the new files and removes the old ones
    3. delete data files that the log does not name  after the grace time
    4. delete staged files of finished runs          after the grace time
    5. checkpoint                                    so that readers open the log fast

Replaced files stay for the grace time, because readers of the log may still read an older snapshot. Readers of the
plain glob count the replaced rows twice until step 3 of a later call. The defaults therefore compact a class only
when it has many small files. The default grace time is one day. With readers of the glob only, call `maintain` with a
grace time of 0 while nobody reads: steps 2 and 3 then follow each other at once. Files that a merge or compaction in
progress may still commit are kept for a day, whatever the grace time.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segray.errors import ConflictError, LabelSetError
from segray.label_set import commit, run_records, schema, snapshot
from segray.label_set.batches import batch_numbers
from segray.label_set.delta_log import Changes, DataFile, files_of
from segray.label_set.parquet_writer import DataFileWriter, SpillableRows, contents
from segray.label_set.run_records import Run
from segray.label_set.snapshot import COMMIT_ORDER, open_table, require_table, table_uri
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import PathOrUrl, as_uri, join
from segray.storage.uris import name as base_name

_ATTEMPTS = 3
_UNCOMMITTED_HOURS = 24  # the longest that a merge may take between writing a file and committing it
_DATA_FILE = re.compile(r"(?:b(?P<batch>\d+)|c[0-9a-f]+)-[^/]*\.parquet")  # data files of a batch or of compaction


@dataclass(frozen=True)
class CompactionThresholds:
    """Thresholds of compaction. A class, or the images table, is compacted if it has at least `files` small files.

    A small file has fewer than small_bytes bytes and less than half of file_rows rows. A compacted file has at most
    file_rows rows, and is made of at most file_bytes bytes.
    """

    files: int = 8
    small_bytes: int = 128 << 20
    file_bytes: int = 512 << 20
    file_rows: int = 2_000_000


@dataclass
class Maintenance:
    """The result of maintenance, filled in by the steps.

    batch: the last complete batch. compacted: for each table, how many files were rewritten, and into how many.
    deleted: number of deleted data files, by table. waiting: number of data files, by table, that the log does not name
    and that are within their grace time. staged_deleted: number of deleted files of finished runs. conflicts: tables
    left as they were because others kept committing.
    """

    batch: int = 0
    compacted: dict[str, tuple[int, int]] = field(default_factory=dict)
    deleted: dict[str, int] = field(default_factory=dict)
    waiting: dict[str, int] = field(default_factory=dict)
    staged_deleted: int = 0
    conflicts: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """Return the exit code of `segray maintain`: that of ConflictError if a table was left as it was, else 0."""
        return ConflictError.exit_code if self.conflicts else 0


def maintain(
    root: PathOrUrl,
    options: StorageOptions,
    *,
    grace_hours: int = 24,
    limits: CompactionThresholds = CompactionThresholds(),
    now: datetime | None = None,
) -> Maintenance:
    """Run all steps of maintenance, and return the result.

    Args:
        root: The label set.
        options: Access to storage.
        grace_hours: Hours for which replaced files and staged work are kept.
        limits: Thresholds of compaction.
        now: The time that runs are compared with, for tests.

    Raises:
        LabelSetError: There is no label set.
    """
    root = as_uri(root)
    if any(open_table(root, name, options) is None for name in COMMIT_ORDER):
        raise LabelSetError("no label set here", where=root, hint="check the path, or run `segray label` first")
    store, result = Store(options), Maintenance()
    result.batch = commit.recover(root, options, store)
    for name in COMMIT_ORDER:
        _compact(root, name, options, limits, result)
    for name in COMMIT_ORDER:
        _delete_unnamed(root, name, options, grace_hours, result)
    _delete_staged(root, store, (now or datetime.now(UTC)) - timedelta(hours=grace_hours), result)
    for name in COMMIT_ORDER:
        _checkpoint(root, name, options)
    return result


# ---- compaction -----------------------------------------------------------------------------------


def compaction_groups(files: Iterable[DataFile], limits: CompactionThresholds) -> list[list[DataFile]]:
    """Return the groups of files to merge into one file each. Groups stay within a partition and are sorted by path."""
    small: dict[str | None, list[DataFile]] = {}
    for file in sorted(files, key=lambda file: file.path):
        if file.size_bytes < limits.small_bytes and 2 * file.rows < limits.file_rows:
            small.setdefault(file.partition, []).append(file)
    partitions = [files for files in small.values() if len(files) >= limits.files]
    return [group for files in partitions for group in _split(files, limits) if len(group) > 1]


def _split(files: Iterable[DataFile], limits: CompactionThresholds) -> Iterator[list[DataFile]]:
    """Yield consecutive files in groups as large as the limits allow."""
    group: list[DataFile] = []
    for file in files:
        rows = sum(member.rows for member in (*group, file))
        size_bytes = sum(member.size_bytes for member in (*group, file))
        if group and (rows > limits.file_rows or size_bytes > limits.file_bytes):
            yield group
            group = []
        group.append(file)
    yield group


def _compact(root: str, name: str, options: StorageOptions, limits: CompactionThresholds, result: Maintenance) -> None:
    """Replace small files of the table by large ones in one commit, unless there are too few small files."""
    for _ in range(_ATTEMPTS):
        table = open_table(root, name, options)
        assert table is not None, "maintain checks that both tables exist"
        groups = compaction_groups(files_of(table), limits)
        if not groups:
            return
        add = [file for group in groups for file in _merge(root, name, options, group, limits)]
        changes = Changes(tuple(add), tuple(file for group in groups for file in group))
        try:
            commit.replace_files(root, options, name, changes)
        except ConflictError:
            _discard(root, name, options, changes)
            continue
        result.compacted[name] = len(changes.remove), len(changes.add)
        return
    result.conflicts.append(name)


def _merge(
    root: str, name: str, options: StorageOptions, group: list[DataFile], limits: CompactionThresholds
) -> list[DataFile]:
    """Write the group's rows to new files, sorted like all data files. Return the new files.

    Names of the new files derive from the group. A repeated attempt after a crash overwrites its own files.
    """
    store = Store(options)
    columns = schema.IMAGES if name == "images" else schema.INSTANCES
    tables, facts = [], []
    for data in contents(store, root, name, group):
        table = pq.read_table(pa.BufferReader(data), partitioning=None, page_checksum_verification=True)
        facts.append(json.loads(table.schema.metadata[b"segray"]))
        tables.append(table.cast(columns))
    token = hashlib.sha256(json.dumps([file.path for file in group]).encode()).hexdigest()[:16]
    sort_columns = ["image_key", "instance"] if name == "instances" else ["image_key"]
    rows = SpillableRows()
    rows.add(pa.concat_tables(tables).sort_by([(column, "ascending") for column in sort_columns]))
    writer = DataFileWriter(
        store, root, f"c{token}", _provenance(facts), limits.file_rows, lambda _: group[0].partition or ""
    )
    return writer.write(name, rows)


def _provenance(facts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the provenance of merged files: each distinct origin once, under `merged_from`."""
    origins = [origin for file_facts in facts for origin in file_facts.get("merged_from", [file_facts])]
    return {"merged_from": list({json.dumps(origin, sort_keys=True): origin for origin in origins}.values())}


def _discard(root: str, name: str, options: StorageOptions, changes: Changes) -> None:
    """Delete compacted files of a lost race, unless somebody may still commit them."""
    table = open_table(root, name, options)
    assert table is not None, "maintain checks that both tables exist"
    live = {file.path for file in files_of(table)}
    if all(file.path in live for file in changes.remove):
        return  # The next attempt, or another process, makes and commits the same files.
    for file in changes.add:
        if file.path not in live:
            Store(options).delete(join(table_uri(root, name), file.path))


# ---- deletion -------------------------------------------------------------------------------------


def _delete_unnamed(root: str, name: str, options: StorageOptions, grace_hours: int, result: Maintenance) -> None:
    """Delete data files that the log does not name: replaced files, and files of interrupted merges."""
    store, removed_files = Store(options), partial(snapshot.removed_files, root, name, options)
    # Batch numbers are read before the files: a file of a number that is taken now can never be committed later.
    last_batch = min(batch_numbers(root, options))
    replaced = removed_files(grace_hours)
    abandoned = {path for path in removed_files(grace_hours, unnamed=True) if _batch_of(path) <= last_batch}
    old = removed_files(max(grace_hours, _UNCOMMITTED_HOURS), unnamed=True)
    paths = {entry.key for entry in store.list(table_uri(root, name)) if _DATA_FILE.fullmatch(base_name(entry.key))}
    to_delete = paths & (replaced | abandoned | old)
    for path in sorted(to_delete):
        store.delete(join(table_uri(root, name), path))
    result.deleted[name] = len(to_delete)
    result.waiting[name] = len(paths & removed_files(0, unnamed=True) - to_delete)


def _batch_of(path: str) -> float:
    """Return the number of the batch that the file was merged for, infinity for other files."""
    match = _DATA_FILE.fullmatch(base_name(path))
    return int(match["batch"]) if match and match["batch"] else math.inf


def _delete_staged(root: str, store: Store, before: datetime, result: Maintenance) -> None:
    """Delete staged files, batch inputs and event logs of runs that ended before `before`.

    The run that the next `segray label` would resume keeps its files.
    """
    latest = run_records.unfinished(store, root)
    for name in store.names(join(root, "_segray", "runs")):
        run = Run(root, name.rstrip("/"))
        is_next = latest is not None and run.id == latest.id
        if is_next or not _has_ended(run, store, before):
            continue
        batches, events = join(run.folder, "batches"), join(run.folder, "events")
        uris = [join(run.staged, file) for file in store.names(run.staged)]
        uris += [join(batches, file) for file in store.names(batches) if file.endswith("-inputs.json")]
        uris += [join(events, file) for file in store.names(events)]
        for uri in uris:
            store.delete(uri)
        result.staged_deleted += len(uris)


def _has_ended(run: Run, store: Store, before: datetime) -> bool:
    """Return whether the run ended before `before`."""
    try:
        record = run.record(store)
    except FileNotFoundError:
        return False
    updated = record.get("updated")
    return (
        record.get("state") in ("done", "superseded")
        and updated is not None
        and datetime.fromisoformat(updated) <= before
    )


# ---- logs -----------------------------------------------------------------------------------------


def _checkpoint(root: str, name: str, options: StorageOptions) -> None:
    """Write the table's log as one checkpoint file, so that readers need not read every commit."""
    Store(options).retrying(root, require_table(root, name, options).create_checkpoint)
