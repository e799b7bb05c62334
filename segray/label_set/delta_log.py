"""Read the log of a Delta table: one state of it, as plain values.

Knows deltalake and in which process it may run; knows nothing of storage, label sets or data files. deltalake runs on
threads that a forked child does not have: it panics there. Such a child asks a process of its own, newly started.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ParamSpec, TypeVar, cast

import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from segray._compat import is_panic
from segray.errors import UserError, WorldError

P = ParamSpec("P")
T = TypeVar("T")

APP_ID = "segray"  # of the transactions whose versions are batch numbers
_PLAIN_READER_VERSIONS = (1, 3)  # 2 is column mapping; 3 names its features
_READABLE_FEATURES = frozenset({"timestampNtz"})  # not deletion vectors, not column mapping
_SPAWN = "open the label set before the fork, or start processes by spawn or forkserver"
_PROGRAM = "from segray.label_set.delta_log import answer; answer()"

_first_user_pid = 0  # the process in which deltalake's threads live


@dataclass(frozen=True)
class TableState:
    """One state of a table.

    files: one row for each live file, with columns path, size_bytes, num_records and, for columns that the log has
    statistics of, min.NAME, max.NAME, null_count.NAME and partition.NAME.
    """

    uri: str
    version: int
    schema: pa.Schema
    files: pa.Table


def open_table(uri: str, options: Mapping[str, str]) -> DeltaTable | None:
    """Return the table's latest snapshot, None where there is no table.

    Raises UserError in a process that was forked from one that has used deltalake.
    """
    global _first_user_pid
    if _is_forked_from_a_user():
        raise UserError("a forked process cannot write to a label set that its parent has opened", where=uri, do=_SPAWN)
    _first_user_pid = os.getpid()
    try:
        return DeltaTable(uri, storage_options=dict(options) or None)
    except TableNotFoundError:
        return None
    except BaseException as error:
        if not is_panic(error):
            raise
        raise UserError("deltalake cannot run in this process", where=uri, found=str(error), do=_SPAWN) from error


def latest_state(uri: str, options: Mapping[str, str]) -> TableState | None:
    """Return the table's latest state, None where there is no table."""
    table = open_table(uri, options)
    return None if table is None else state_of(table, uri)


def state_of(table: DeltaTable, uri: str) -> TableState:
    """Return the state that `table`, which lies at `uri`, has loaded.

    Raises UserError where Arrow could not read its rows.
    """
    protocol = table.protocol()
    unreadable = set(protocol.reader_features or ()) - _READABLE_FEATURES
    if unreadable or protocol.min_reader_version not in _PLAIN_READER_VERSIONS:
        raise UserError(
            "another tool has switched on table features that segray cannot read",
            where=uri,
            found=f"reader version {protocol.min_reader_version}, features: {', '.join(sorted(unreadable)) or 'none'}",
            do="drop these features with that tool: deletion vectors, column mapping",
        )
    return TableState(
        uri, table.version(), pa.schema(table.schema().to_arrow()),
        pa.table(table.get_add_actions(flatten=True)),
    )  # fmt: skip


def batch_of(table: DeltaTable) -> int:
    """Return the last batch number in the state that `table` has loaded, 0 before the first. This reads its log."""
    return table.transaction_version(APP_ID) or 0


# ---- forked processes -----------------------------------------------------------------------------


def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that uses deltalake: here, or in a new process where this one is a fork that cannot.

    The function is a module's; arguments, result and errors can be pickled.
    """
    if _is_forked_from_a_user():
        return _in_new_process(function, args, kwargs)
    try:
        return function(*args, **kwargs)
    except UserError as error:
        if error.__cause__ is None or not is_panic(error.__cause__):
            raise
    return _in_new_process(function, args, kwargs)  # The parent has used deltalake without segray.


def _is_forked_from_a_user() -> bool:
    return _first_user_pid not in (0, os.getpid())


def _in_new_process(function: Callable[P, T], args: tuple[object, ...], kwargs: Mapping[str, object]) -> T:
    path = os.pathsep.join(each or str(os.getcwd()) for each in sys.path)  # noqa: PTH109
    asked = pickle.dumps((function, args, kwargs))
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], input=asked, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    if done.returncode:
        found = done.stderr.decode(errors="replace").strip()[-500:]
        raise WorldError("a process that reads the log failed", found=found, do=_SPAWN)
    answered: T | Exception = pickle.loads(done.stdout)
    if isinstance(answered, Exception):
        raise answered
    return answered


def answer() -> None:
    """Run the call that stands pickled on standard input; write its pickled result, or error, to standard output."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # so that nothing else gets between
    function, args, kwargs = pickle.load(sys.stdin.buffer)
    try:
        result = cast(object, function(*args, **kwargs))
    except Exception as error:
        result = error
    out.write(pickle.dumps(result))
    out.flush()
    os._exit(0)  # Nothing here is worth the teardown of native libraries.
