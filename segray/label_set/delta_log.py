"""The logs of the two tables: states as plain values, files, transactions.

Knows deltalake, and in which process deltalake may run. Leaves storage errors, batches and the content of data files
to others. deltalake panics in a forked child, because its threads do not exist there. Such a child calls deltalake in
a newly started process.
"""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ParamSpec, TypeVar, cast
from urllib.parse import unquote

import pyarrow as pa
from deltalake import DeltaTable, Schema
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import (
    AddAction,
    CommitProperties,
    RemoveAction,
    Transaction,
    create_table_with_add_actions,
)

from segray._compat import is_panic
from segray.errors import ConflictError, InfrastructureError, UserError
from segray.label_set import schema

P = ParamSpec("P")
T = TypeVar("T")

APP_ID = "segray"  # app id of the transactions whose versions are batch numbers
_RECORD_KEY = "segray_record"  # key in a commit's metadata: the path of the batch's record below the root
_RECORD = re.compile(r"_segray/runs/(?P<run>[^/]+)/batches/b(?P<batch>\d+)-.*")
_PLAIN_READER_VERSIONS = (1, 3)  # Version 2 means column mapping. Version 3 lists its features.
_READABLE_FEATURES = frozenset({"timestampNtz"})  # not deletion vectors, not column mapping
_SPAWN_HINT = "open the label set before the fork, or start processes by spawn or forkserver"
_PROGRAM = "from segray.label_set.delta_log import run_pickled_call; run_pickled_call()"

_first_user_pid = 0  # the process that has deltalake's threads; 0 before deltalake is used


@dataclass(frozen=True)
class TableState:
    """One state of a table.

    files: one row for each live file, with columns path (below the table's folder), size_bytes and num_records.
    Columns min.NAME, max.NAME and null_count.NAME hold the log's statistics, where it has any. Columns partition.NAME
    hold partition values.
    """

    uri: str
    version: int
    schema: pa.Schema
    files: pa.Table


@dataclass(frozen=True)
class DataFile:
    """One Parquet file of a table.

    path: below the table's folder. rows: number of rows. partition: value of `class`, None in `images`. stats: Delta's
    statistics, as JSON.
    """

    path: str
    size_bytes: int
    rows: int
    partition: str | None = None
    stats: str = "{}"


@dataclass(frozen=True)
class Changes:
    """The files that one commit adds to one table, and the files that it removes."""

    add: tuple[DataFile, ...] = ()
    remove: tuple[DataFile, ...] = ()


# ---- reading --------------------------------------------------------------------------------------


def open_table(uri: str, options: Mapping[str, str]) -> DeltaTable | None:
    """Return the table's latest snapshot, None if there is no table.

    options: deltalake's storage options. Raises UserError in a process forked from one that has used deltalake.
    """
    global _first_user_pid
    if _parent_used_deltalake():
        raise UserError(
            "a forked process cannot write to a label set after its parent opened one", where=uri, hint=_SPAWN_HINT
        )
    _first_user_pid = os.getpid()
    try:
        return DeltaTable(uri, storage_options=dict(options) or None)
    except TableNotFoundError:
        return None
    except BaseException as error:
        if not is_panic(error):
            raise
        raise UserError(
            "deltalake cannot run in this process", where=uri, found=str(error), hint=_SPAWN_HINT
        ) from error


def latest_state(uri: str, options: Mapping[str, str]) -> TableState | None:
    """Return the table's latest state, None if there is no table."""
    table = open_table(uri, options)
    return None if table is None else state_of(table, uri)


def state_of(table: DeltaTable, uri: str) -> TableState:
    """Return the state that `table`, which lies at `uri`, has loaded.

    Raises UserError where another tool switched on features that Arrow cannot read.
    """
    protocol = table.protocol()
    unreadable = set(protocol.reader_features or ()) - _READABLE_FEATURES
    if unreadable or protocol.min_reader_version not in _PLAIN_READER_VERSIONS:
        raise UserError(
            "segray cannot read the features of this table, which another tool switched on",
            where=uri,
            found=f"reader version {protocol.min_reader_version}, features: {', '.join(sorted(unreadable)) or 'none'}",
            hint="drop deletion vectors and column mapping with the other tool",
        )
    return TableState(
        uri, table.version(), pa.schema(table.schema().to_arrow()),
        _with_plain_paths(pa.table(table.get_add_actions(flatten=True))),
    )  # fmt: skip


def _with_plain_paths(files: pa.Table) -> pa.Table:
    """Return the files with their paths in storage. The log holds URLs, in which a percent sign is %25."""
    paths = [unquote(path) for path in files.column("path").to_pylist()]
    return files.set_column(files.column_names.index("path"), "path", pa.array(paths, pa.string()))


def batch_of(table: DeltaTable) -> int:
    """Return the last batch number in the state that `table` has loaded, 0 before the first. The call reads the log."""
    return table.transaction_version(APP_ID) or 0


def batch_records(table: DeltaTable) -> list[str]:
    """Return the records of batches that the table's log names, the last batch first. The call reads the log."""
    return [entry[_RECORD_KEY] for entry in table.history() if _RECORD_KEY in entry]


def record_of(entry: Mapping[str, object]) -> tuple[str, int] | None:
    """Return the run and the batch of a commit of the log's history; None for a commit that is no batch."""
    match = _RECORD.fullmatch(str(entry.get(_RECORD_KEY, "")))
    return None if match is None else (match["run"], int(match["batch"]))


def live_files(state: TableState) -> list[DataFile]:
    """Return the files of this state, sorted by path, without their statistics."""
    files = [
        DataFile(row["path"], row["size_bytes"], row["num_records"], row.get(f"partition.{schema.PARTITION}"))
        for row in state.files.to_pylist()
    ]
    return sorted(files, key=lambda file: file.path)


def files_of(table: DeltaTable) -> list[DataFile]:
    """Return the files of the state that `table` has loaded, sorted by path, without their statistics."""
    return live_files(state_of(table, table.table_uri))


def missing_files(table: DeltaTable, changes: Changes) -> list[str]:
    """Return the paths of files to remove that the table does not have.

    The log itself accepts the removal of a missing file without an error.
    """
    if not changes.remove:
        return []
    return sorted({file.path for file in changes.remove} - {file.path for file in files_of(table)})


# ---- writing --------------------------------------------------------------------------------------


def table_schema(name: str) -> pa.Schema:
    """Return the columns of a new table, with their descriptions. name: instances or images."""
    if name == "images":
        return schema.with_comments(schema.IMAGES, schema.IMAGES_DESCRIPTIONS)
    return schema.with_comments(schema.INSTANCES_WITH_PARTITION, schema.INSTANCES_DESCRIPTIONS)


def create_table(uri: str, name: str, options: Mapping[str, str]) -> None:
    """Create an empty table at `uri`, unless a table exists there.

    name: instances or images. options: deltalake's storage options. Raises InfrastructureError where deltalake cannot
    create the table.
    """
    try:
        create_table_with_add_actions(
            uri,
            Schema.from_arrow(table_schema(name)),
            [],
            mode="ignore",
            partition_by=_partition_columns(name),
            name=f"segray {name}",
            description=schema.TABLE_DESCRIPTIONS[name],
            storage_options=dict(options) or None,
        )
    except DeltaError as exc:
        if open_table(uri, options) is None:  # Otherwise another run created the table first.
            raise InfrastructureError(
                f"deltalake could not create the table {name}",
                where=uri,
                found=str(exc),
                hint="check that segray may write to `output.root`",
            ) from exc


def commit_batch(table: DeltaTable, name: str, changes: Changes, number: int, record: str) -> None:
    """Commit batch `number` to exactly the state that `table` has loaded.

    Args:
        table: The table, with the state that the commit must follow.
        name: instances or images.
        changes: The files that the commit adds and removes.
        number: The batch number.
        record: The path of the batch's record below the label set's root.

    Raises:
        ConflictError: Another commit came first.
        OSError: Storage failed.
    """
    properties = CommitProperties(
        custom_metadata={_RECORD_KEY: record},
        max_commit_retries=0,
        app_transactions=[Transaction(APP_ID, number)],
    )
    _write_transaction(table, name, changes, properties, f"batch {number}", data_change=True)


def commit_replacement(table: DeltaTable, name: str, changes: Changes) -> None:
    """Commit files that hold the same rows as the files they replace. The last batch number stays.

    Raises ConflictError where another commit came first, and OSError where storage fails.
    """
    properties = CommitProperties(max_commit_retries=0)
    _write_transaction(table, name, changes, properties, "the replacement", data_change=False)


def _write_transaction(
    table: DeltaTable, name: str, changes: Changes, properties: CommitProperties, title: str, *, data_change: bool
) -> None:
    """Commit the changes to the state that `table` has loaded. title: what errors call the commit."""
    now_ms, uri = int(time.time() * 1000), table.table_uri
    actions: list[AddAction | RemoveAction] = [
        RemoveAction(file.path, data_change, now_ms, file.size_bytes, _partition_values(file))
        for file in changes.remove
    ]
    actions += [
        AddAction(file.path, file.size_bytes, _partition_values(file), now_ms, data_change, file.stats)
        for file in changes.add
    ]
    try:
        table.create_write_transaction(
            actions,
            "append",
            table.schema(),
            partition_by=_partition_columns(name),
            commit_properties=properties,
        )
    except CommitFailedError as exc:
        raise ConflictError(f"another commit came before {title}", where=uri, found=str(exc)) from exc
    except DeltaError as exc:  # deltalake reports some storage faults as its own error.
        raise OSError(f"deltalake could not commit {title} to {name}: {exc}") from exc


def _partition_columns(name: str) -> list[str]:
    return [schema.PARTITION] if name == "instances" else []


def _partition_values(file: DataFile) -> dict[str, str | None]:
    return {} if file.partition is None else {schema.PARTITION: file.partition}


# ---- forked processes -----------------------------------------------------------------------------


def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Return the result of a function that uses deltalake, called here or in a new process.

    A fork that cannot use deltalake calls the function in a new process. The function must be importable from a module.
    Arguments, result and errors must be picklable.
    """
    if _parent_used_deltalake():
        return _in_new_process(function, args, kwargs)
    try:
        return function(*args, **kwargs)
    except UserError as error:
        if error.__cause__ is None or not is_panic(error.__cause__):
            raise
    return _in_new_process(function, args, kwargs)  # The parent used deltalake without segray, so deltalake panicked.


def _parent_used_deltalake() -> bool:
    return _first_user_pid not in (0, os.getpid())


def _in_new_process(function: Callable[P, T], args: tuple[object, ...], kwargs: Mapping[str, object]) -> T:
    python_path = os.pathsep.join(folder or str(os.getcwd()) for folder in sys.path)  # noqa: PTH109
    completed = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        input=pickle.dumps((function, args, kwargs)),
        env={**os.environ, "PYTHONPATH": python_path},
        capture_output=True,
        check=False,
    )
    if completed.returncode:
        last_output = completed.stderr.decode(errors="replace").strip()[-500:]
        raise InfrastructureError("a process that reads the log failed", found=last_output, hint=_SPAWN_HINT)
    result: T | Exception = pickle.loads(completed.stdout)
    if isinstance(result, Exception):
        raise result
    return result


def run_pickled_call() -> None:
    """Run the pickled call on standard input. Write its pickled result, or error, to standard output."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # Prints of libraries go to standard error, so that only the result is on standard output.
    function, args, kwargs = pickle.load(sys.stdin.buffer)
    try:
        result = cast(object, function(*args, **kwargs))
    except Exception as error:
        result = error
    output.write(pickle.dumps(result))
    output.flush()
    os._exit(0)  # The teardown of native libraries would only take time.
