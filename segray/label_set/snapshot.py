"""Readers of the committed tables of a label set: exact snapshots, without files that no commit names.

Knows the tables' paths, access to storage, and which commits of the two tables belong together. Knows nothing of how
tables are written.
"""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import partial
from typing import Any, Unpack

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from segray.errors import LabelSetError, UserError
from segray.label_set import dataset, delta_log, schema
from segray.label_set.current_pointer import resolved
from segray.label_set.dataset import TableDataset
from segray.label_set.delta_log import TableState, batch_of
from segray.storage.options import StorageKeywords
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import PathOrUrl, join

_EMPTY_FILE_BYTES = 5000  # size of a data file with almost no rows
# A batch reaches the tables in this order. A reader that opens `images` first sees no image without its instances.
COMMIT_ORDER = ("instances", "images")


def table_uri(root: str, name: str) -> str:
    """Return the URI of a table. name: instances or images."""
    return join(root, name)


def open_table(root: str, name: str, options: StorageOptions) -> DeltaTable | None:
    """Return the table's latest snapshot, None if there is no table. Raises as Store does."""
    store, uri = Store(options), table_uri(root, name)
    return store.retrying(root, lambda: delta_log.open_table(uri, store.delta_options(root)))


def require_table(root: str, name: str, options: StorageOptions) -> DeltaTable:
    """Return the latest snapshot of a table that must exist. Raises LabelSetError for a missing table."""
    table = open_table(root, name, options)
    if table is None:
        raise LabelSetError(
            "a table of the label set is missing",
            where=table_uri(root, name),
            found="no log of a table",
            hint="restore `instances` and `images` from one backup",
        )
    return table


def removed_files(root: str, name: str, options: StorageOptions, hours: int, *, unnamed: bool = False) -> set[str]:
    """Return the paths of files that a commit removed at least `hours` hours ago, whether deleted since or not.

    unnamed: also return files of that age in the table's folder that the log does not name.
    """
    table = require_table(root, name, options)
    list_files = partial(table.vacuum, hours, dry_run=True, enforce_retention_duration=False, full=unnamed)
    return set(Store(options).retrying(root, list_files))


def table_state(root: str, name: str, options: StorageOptions) -> TableState | None:
    """Return the table's latest state as plain values, None if there is no table. Raises as Store does."""
    store, uri = Store(options), table_uri(root, name)
    return store.retrying(root, lambda: delta_log.run(delta_log.latest_state, uri, store.delta_options(root)))


def committed(root: str, name: str, options: StorageOptions) -> ds.Dataset | None:
    """Return the table's committed rows, None if there is no table. Raises as Store does."""
    state = table_state(root, name, options)
    return None if state is None else dataset.dataset(state, options, Store(options).delta_options(root))


def scan(root: PathOrUrl, **storage_options: Unpack[StorageKeywords]) -> ds.Dataset:
    """Return the committed instances of a label set, one row each, with the partition column `class`.

    Args:
        root: A folder, as text or Path, or a URL; PARENT/CURRENT for the promoted label set.
        storage_options: The fields of StorageOptions (endpoint_url, region, ...), or deltalake's own names in capitals
            (AWS_ENDPOINT_URL, ...).

    Raises:
        LabelSetError: There is no label set.
    """
    return _dataset(root, "instances", storage_options)


def images(root: PathOrUrl, **storage_options: Unpack[StorageKeywords]) -> ds.Dataset:
    """Return the committed images of a label set, one row each, with status ok, empty or failed.

    Arguments and errors are those of `scan`.
    """
    return _dataset(root, "images", storage_options)


def _dataset(root: PathOrUrl, name: str, storage_options: Mapping[str, Any]) -> ds.Dataset:
    storage = store(storage_options)
    label_set = resolved(root, storage.options)
    delta_options = _delta_options(label_set, storage_options)
    uri = table_uri(label_set, name)
    state = storage.retrying(label_set, lambda: delta_log.run(delta_log.latest_state, uri, delta_options), retries=0)
    if state is None:
        raise _no_label_set(label_set, name)
    return dataset.dataset(state, storage.options, delta_options)


def run_slices(column: pa.ChunkedArray) -> Iterator[tuple[Any, slice]]:
    """Yield each run of equal values of a column: the value and the slice of its rows."""
    if not len(column):
        return
    runs = pc.run_end_encode(column.combine_chunks())
    runs = runs.combine_chunks() if isinstance(runs, pa.ChunkedArray) else runs
    ends = runs.run_ends.to_pylist()
    yield from zip(runs.values.to_pylist(), map(slice, [0, *ends[:-1]], ends), strict=True)


def store(storage_options: Mapping[str, Any]) -> Store:
    """Return the store for storage_options like those of `scan`. deltalake's own names are ignored.

    Raises UserError for an option that no store has.
    """
    own = {key: value for key, value in storage_options.items() if not key.isupper()}
    names = [entry.name for entry in fields(StorageOptions)]
    if unknown := next((key for key in own if key not in names), None):
        (nearest,) = difflib.get_close_matches(unknown, names, 1, 0.0)
        raise UserError("there is no such storage option", found=unknown, hint=f"did you mean {nearest}?")
    return Store(StorageOptions(**own))


def _delta_options(root: str, storage_options: Mapping[str, Any]) -> dict[str, str]:
    native = {key: value for key, value in storage_options.items() if key.isupper()}
    merged = {**store(storage_options).delta_options(root), **native}
    merged.pop("max_retries", None)  # deltalake itself must retry, because nothing else does for readers.
    return merged


def _open(root: str, name: str, options: Mapping[str, str]) -> DeltaTable:
    table = delta_log.open_table(table_uri(root, name), options)
    if table is None:
        raise _no_label_set(root, name)
    return table


def _no_label_set(root: str, name: str) -> LabelSetError:
    return LabelSetError(
        "no label set here",
        where=str(root),
        found=f"no table {name}",
        hint="check the path, or run `segray label` first",
    )


# ---- both tables at once --------------------------------------------------------------------------


@dataclass(frozen=True)
class Snapshot:
    """Both tables of a label set as of one batch. The tables agree: all instances of each image are present.

    batch: the batch number, 0 before the first. classes: name by category id, for all classes of the model. model: the
    model's name, thresholds and further settings in label_set.json. fingerprint: of the model, "" if unknown.
    partitions: value of the column `class` by category id, for all classes.
    rows: number of rows of each table. rows_by_class: number of instances by value of the column `class`.
    row_bytes: mean size of an instance in storage, in bytes, most of it the mask.
    """

    root: str
    batch: int
    instances: TableDataset = field(repr=False)
    images: TableDataset = field(repr=False)
    classes: Mapping[int, str] = field(repr=False)
    model: Mapping[str, Any] = field(default_factory=dict, repr=False)
    fingerprint: str = field(default="", repr=False)
    row_bytes: float = field(default=0.0, repr=False)
    partitions: Mapping[int, str] = field(default_factory=dict, repr=False)
    rows: Mapping[str, int] = field(default_factory=dict, repr=False)
    rows_by_class: Mapping[str, int] = field(default_factory=dict, repr=False)


def snapshot(
    root: PathOrUrl,
    *,
    version: int | None = None,
    as_of: datetime | None = None,
    **storage_options: Unpack[StorageKeywords],
) -> Snapshot:
    """Return the label set's latest state, the state after batch `version`, or the state at `as_of`.

    Args:
        root: As for `scan`.
        version: A batch number.
        as_of: A time with a time zone.
        storage_options: As for `scan`.

    Raises:
        LabelSetError: There is no label set, no such state, or files of that state are deleted.
        UserError: Both version and as_of are given, or as_of has no time zone.
    """
    if version is not None and as_of is not None:
        raise UserError("version and as_of both name a state of the label set", hint="give either version or as_of")
    if as_of is not None and as_of.tzinfo is None:
        raise UserError("as_of needs a time zone", found=str(as_of), hint="write datetime(..., tzinfo=UTC)")
    storage = store(storage_options)
    label_set = resolved(root, storage.options)
    delta_options = _delta_options(label_set, storage_options)
    images, instances, batch = storage.retrying(
        label_set, lambda: delta_log.run(_states, label_set, delta_options, storage.options, version, as_of), retries=0
    )
    classes, model, fingerprint, partitions = _read_identity(label_set, storage)
    return Snapshot(
        label_set,
        batch,
        dataset.dataset(instances, storage.options, delta_options),
        dataset.dataset(images, storage.options, delta_options),
        classes,
        model,
        fingerprint,
        _row_bytes(instances),
        partitions,
        {"instances": sum(_rows_by_class(instances).values()), "images": sum(_num_records(images))},
        _rows_by_class(instances),
    )


def _num_records(state: TableState) -> list[int]:
    """Return the number of rows of each file."""
    records: list[int] = state.files.column("num_records").to_pylist()
    return records


def _rows_by_class(instances: TableState) -> dict[str, int]:
    """Return the number of rows of each partition, by the log alone, the largest first."""
    if not instances.files.num_rows:
        return {}
    counts: Counter[str] = Counter()
    partitions = instances.files.column(f"partition.{schema.PARTITION}").to_pylist()
    for partition, rows in zip(partitions, _num_records(instances), strict=True):
        counts[partition] += rows
    return dict(counts.most_common())


# ---- history --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Commit:
    """One change of a label set.

    kind: batch, compaction or creation. batch: number of the batch, for `snapshot(version=...)`; None for others.
    committed_at: time of the change, in UTC. run_id: run that made the change, "" where no run did.
    """

    kind: str
    batch: int | None
    committed_at: datetime
    run_id: str


def history(root: PathOrUrl, **storage_options: Unpack[StorageKeywords]) -> list[Commit]:
    """Return the changes of a label set, the latest first, as far as its log reaches back.

    Arguments and errors are those of `scan`.
    """
    storage = store(storage_options)
    label_set = resolved(root, storage.options)
    delta_options = _delta_options(label_set, storage_options)
    entries = storage.retrying(label_set, lambda: delta_log.run(_history, label_set, delta_options), retries=0)
    return [_commit_of(entry) for entry in entries]


def _history(root: str, options: Mapping[str, str]) -> list[dict[str, Any]]:
    return _open(root, "images", options).history()


def _commit_of(entry: Mapping[str, Any]) -> Commit:
    committed_at = datetime.fromtimestamp(entry["timestamp"] / 1000, UTC)
    if (record := delta_log.record_of(entry)) is not None:
        run_id, number = record
        return Commit("batch", number, committed_at, run_id)
    kind = "creation" if entry["operation"].startswith("CREATE") else "compaction"
    return Commit(kind, None, committed_at, "")


def _states(
    root: str, options: Mapping[str, str], storage: StorageOptions, version: int | None, as_of: datetime | None
) -> tuple[TableState, TableState, int]:
    """Return images and instances as of one batch, and the batch number.

    The batch is `version`, the last one until `as_of`, or the latest.
    """
    images, instances = (_open(root, name, options) for name in ("images", "instances"))
    latest_versions = images.version(), instances.version()
    if as_of is not None:
        version = _batch_until(_open(root, "images", options), root, as_of)
    if version is not None:
        _load_batch(images, root, version)
    batch = batch_of(images) if version is None else version
    if batch_of(instances) != batch:  # Happens also when a commit in progress has not reached images.
        _load_batch(instances, root, batch)
    images_state = delta_log.state_of(images, table_uri(root, "images"))
    instances_state = delta_log.state_of(instances, table_uri(root, "instances"))
    for state, latest_version in zip((images_state, instances_state), latest_versions, strict=True):
        if state.version < latest_version:
            _check_files_exist(state, Store(storage))
    return images_state, instances_state, batch


def states_to_verify(root: str, options: StorageOptions) -> tuple[TableState, TableState, int, int]:
    """Return images, the instances of no later batch, and the last batches of images and of instances.

    Raises LabelSetError for a missing table, and as Store does.
    """
    store = Store(options)
    return store.retrying(root, lambda: delta_log.run(_states_to_verify, root, store.delta_options(root)))


def _states_to_verify(root: str, options: Mapping[str, str]) -> tuple[TableState, TableState, int, int]:
    # A run in progress commits to `instances` first. `images` is read first, so it is never ahead.
    images, instances = (_open(root, name, options) for name in reversed(COMMIT_ORDER))
    images_batch, instances_batch = batch_of(images), batch_of(instances)
    while batch_of(instances) > images_batch:
        instances.load_as_version(instances.version() - 1)
    images_state = delta_log.state_of(images, table_uri(root, "images"))
    instances_state = delta_log.state_of(instances, table_uri(root, "instances"))
    return images_state, instances_state, images_batch, instances_batch


def _row_bytes(instances: TableState) -> float:
    """Return the mean size of an instance in storage."""
    size_bytes, rows = (sum(instances.files.column(name).to_pylist()) for name in ("size_bytes", "num_records"))
    return float(max(0, size_bytes - _EMPTY_FILE_BYTES * instances.files.num_rows) / max(rows, 1))


def _check_files_exist(state: TableState, store: Store) -> None:
    """Raise LabelSetError where files of an earlier state are deleted."""
    paths = state.files.column("path").to_pylist()
    missing = set(paths) - {entry.key for entry in store.list(state.uri)}
    if missing:
        raise LabelSetError(
            "an earlier state of the label set can no longer be read", where=state.uri,
            found=f"{len(missing)} of {len(paths)} files were deleted by `segray maintain`, such as {min(missing)}",
            hint="ask for a later state, and keep replaced files longer with `segray maintain --grace-hours`",
        )  # fmt: skip


def _batch_until(table: DeltaTable, root: str, moment: datetime) -> int:
    """Return the last batch committed until `moment`, by the times in the log.

    Modification times of the log's files would change in a copy.
    """
    versions = [entry["version"] for entry in table.history() if entry["timestamp"] <= moment.timestamp() * 1000]
    if not versions:
        raise LabelSetError(
            "the label set's log does not reach back so far", where=root, found=f"asked for {moment.isoformat()}",
            hint="ask for a later moment",
        )  # fmt: skip
    table.load_as_version(max(versions))
    return batch_of(table)


def _load_batch(table: DeltaTable, root: str, batch: int) -> None:
    """Load the table's last state whose latest batch is `batch`. Batch numbers never decrease from state to state."""
    low, high, latest = 0, table.version(), batch_of(table)
    if not 0 <= batch <= latest:
        raise LabelSetError(
            "the label set has no such version", where=root, found=f"asked for batch {batch}, the last is {latest}",
            hint="give the number of a committed batch",
        )  # fmt: skip
    if batch == latest:
        return
    while high - low > 1:  # `high` is too new. `low` is not, or the log no longer has it.
        middle = (low + high) // 2
        if (_batch_of_state(table, middle) or 0) > batch:
            high = middle
        else:
            low = middle
    if _batch_of_state(table, low) != batch:
        raise LabelSetError(
            "the label set's log does not reach back so far", where=root, found=f"asked for batch {batch}",
            hint="ask for a later version",
        )  # fmt: skip


def _batch_of_state(table: DeltaTable, state: int) -> int | None:
    """Load this state. Return the last batch in it, None if the log no longer has the state."""
    try:
        table.load_as_version(state)
    except DeltaError:
        return None
    return batch_of(table)


def _read_identity(root: str, store: Store) -> tuple[dict[int, str], dict[str, Any], str, dict[int, str]]:
    """Return class names by category id, the model, its fingerprint, and partition values by category id.

    The values are empty without label_set.json.
    """
    uri = join(root, "_segray", "label_set.json")
    try:
        record = json.loads(store.read(uri))
        names = {int(entry["id"]): str(entry["name"]) for entry in record["classes"]}
        partitions = {int(entry["id"]): str(entry["slug"]) for entry in record["classes"]}
        return names, dict(record["model"]), str(record.get("fingerprint", "")), partitions
    except FileNotFoundError:
        return {}, {}, "", {}
    except (ValueError, KeyError, TypeError) as exc:
        raise LabelSetError(
            "the label set's record is not valid", where=uri, found=str(exc), hint="restore the file from a backup"
        ) from exc
