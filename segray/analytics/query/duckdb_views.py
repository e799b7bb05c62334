"""A label set in DuckDB: its tables as views, and functions over masks.

This module knows a DuckDB connection and what to register there. arrow_masks computes with masks.
DuckDB reads through pyarrow. Columns and rows that a query does not need are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Unpack

import pyarrow as pa

from segray.analytics.query import arrow_masks, score_thresholds
from segray.analytics.query.score_thresholds import quoted
from segray.errors import QueryError, UserError
from segray.label_set import snapshot
from segray.label_set.delta_log import TableState
from segray.label_set.snapshot import Snapshot
from segray.storage.options import StorageKeywords
from segray.storage.uris import PathOrUrl, as_path, join, scheme

_SIGNATURES: Mapping[str, tuple[list[str], str]] = {
    "rle_area": (["VARCHAR"], "BIGINT"),
    "rle_bbox": (["VARCHAR", "BIGINT"], "STRUCT(x INTEGER, y INTEGER, w INTEGER, h INTEGER)"),
    "rle_iou": (["VARCHAR", "VARCHAR"], "DOUBLE"),
    "rle_decode": (["VARCHAR", "BIGINT", "BIGINT"], "BLOB"),
    "rle_merge": (["VARCHAR[]"], "VARCHAR"),
    "rle_contains": (["VARCHAR", "BIGINT", "BIGINT", "BIGINT"], "BOOLEAN"),
    "rle_polygon": (["VARCHAR", "BIGINT", "BIGINT"], "DOUBLE[][]"),
    "rle_intersection": (["VARCHAR", "VARCHAR"], "VARCHAR"),
    "rle_crop": (["VARCHAR", *["BIGINT"] * 6], "VARCHAR"),
    "rle_resize": (["VARCHAR", *["BIGINT"] * 4], "VARCHAR"),
    "rle_centroid": (["VARCHAR", "BIGINT"], "STRUCT(x DOUBLE, y DOUBLE)"),
    "rle_perimeter": (["VARCHAR", "BIGINT"], "BIGINT"),
    "rle_png": (["VARCHAR", "BIGINT", "BIGINT"], "BLOB"),
}


def sql(
    con: Any,
    root: PathOrUrl | None = None,
    *,
    version: int | None = None,
    as_of: datetime | None = None,
    thresholds: score_thresholds.Thresholds = None,
    **storage_options: Unpack[StorageKeywords],
) -> Snapshot | None:
    """Register mask functions on a DuckDB connection and, given a root, the tables of a label set.

    The views are `instances` (with the partition column `class`), `images` and `classes` (class_id, class_name, class).
    The views show one exact state, whatever is committed later. Call `sql` again for a newer state.

    The functions are rle_area(rle), rle_bbox(rle, height), rle_iou(rle, rle), rle_decode(rle, height, width),
    rle_merge([rle, ...]), rle_contains(rle, height, x, y), rle_polygon(rle, height, width), rle_intersection(rle, rle),
    rle_crop(rle, height, width, x, y, w, h), rle_resize(rle, height, width, new_height, new_width),
    rle_centroid(rle, height), rle_perimeter(rle, height) and rle_png(rle, height, width). NULL gives NULL.
    See segray.analytics.query.arrow_masks for their results.

    Args:
        con: A duckdb connection, or the module duckdb for its default connection.
        root: Folder or URL of the label set; None for the functions alone.
        version: Batch whose state is shown. By default the latest state is shown.
        as_of: Time whose state is shown.
        thresholds: Smallest score by class, or a file with such scores. `instances` does not show other instances.
        **storage_options: Settings of the storage, as for segray.scan.

    Returns:
        The snapshot that the views show; None without a root.

    Raises:
        LabelSetError: As snapshot.snapshot raises it.
    """
    state = None if root is None else snapshot.snapshot(root, version=version, as_of=as_of, **storage_options)
    if state is not None:
        state = score_thresholds.applied(state, thresholds, snapshot.store(storage_options))
    register(con, state)
    return state


def register(con: Any, state: Snapshot | None) -> None:
    """Register the mask functions on a DuckDB connection, and the tables of a state, if there is one; see `sql`."""
    _register_functions(con)
    if state is not None:
        con.register("instances", state.instances)
        con.register("images", state.images)
        con.register("classes", classes(state))


def statements(state: Snapshot, where: str = "true") -> str:
    """Return SQL that creates the three views in a connection of any DuckDB, without segray.

    where: condition of the rows of `instances`, in SQL.

    The statements name the files of this state. They hold until `segray maintain` deletes a replaced file. A bucket
    needs DuckDB's httpfs and a secret of its own.
    """
    tables = {"instances": state.instances.state, "images": state.images.state}
    conditions = {"instances": "" if where == "true" else f"\nWHERE {where}"}
    views = [
        f"CREATE OR REPLACE VIEW {name} AS\n{_select(table)}{conditions.get(name, '')};"
        for name, table in tables.items()
    ]
    rows = ",\n".join(
        f"  ({number}, {quoted(name)}, {quoted(state.partitions[number])})" for number, name in state.classes.items()
    )
    listed = (
        f"SELECT * FROM (VALUES\n{rows}\n) AS listed(class_id, class_name, class)"
        if rows
        else ("SELECT 0 AS class_id, '' AS class_name, '' AS class WHERE false")
    )
    head = f"-- {state.root} after batch {state.batch}. A later state needs new statements."
    return "\n".join([head, *views, f"CREATE OR REPLACE VIEW classes AS\n{listed};"])


def _select(table: TableState) -> str:
    """Return a query of all rows of a table, with its columns in their order and their types."""
    if not table.files.num_rows:
        columns = ", ".join(
            f"CAST(NULL AS {_sql_type(column.type)}) AS {_name(column.name)}" for column in table.schema
        )
        return f"SELECT * FROM (SELECT {columns}) WHERE false"
    folder = table.uri if scheme(table.uri) else str(as_path(table.uri).absolute())
    files = ",\n".join(f"  {quoted(join(folder, path))}" for path in table.files["path"].to_pylist())
    columns = ", ".join(_name(column.name) for column in table.schema)
    is_hive = any(name.startswith("partition.") for name in table.files.column_names)
    hive = ", hive_partitioning = true, hive_types = {'class': VARCHAR}" if is_hive else ", hive_partitioning = false"
    return f"SELECT {columns}\nFROM read_parquet([\n{files}\n], union_by_name = true{hive})"


def _sql_type(kind: pa.DataType) -> str:
    """Return DuckDB's name of an Arrow type, asked of DuckDB itself."""
    import duckdb

    empty = pa.table({"x": pa.array([], kind)})
    return str(duckdb.connect().from_arrow(empty).types[0])


def _name(column: str) -> str:
    return '"' + column.replace('"', '""') + '"'


def connect() -> Any:
    """Return a connection to an empty DuckDB in memory. Raise UserError if DuckDB is not installed."""
    try:
        import duckdb
    except ImportError as error:
        raise UserError(
            "DuckDB is not installed",
            found=str(error),
            hint="run `pip install duckdb`",
        ) from error
    return duckdb.connect()


def relation(connection: Any, query: str) -> Any:
    """Return the result of a query, whose rows DuckDB computes when they are read; None for an empty query.

    Raises:
        QueryError: DuckDB refuses the query.
    """
    import duckdb

    try:
        return connection.sql(query)
    except duckdb.Error as error:
        raise refusal(query, error) from error


def refusal(query: str, error: Exception) -> QueryError:
    """Return the error for a query that DuckDB refuses."""
    hint = "the views are instances, images and classes; `DESCRIBE instances` lists columns"
    return QueryError("DuckDB refuses the query", where=query, found=str(error), hint=hint)


def classes(state: Snapshot) -> pa.Table:
    """Return the class list as a table: class_id, class_name and class, the partition."""
    names = list(state.classes.values())
    columns = {"class_id": list(state.classes), "class_name": names, "class": list(state.partitions.values())}
    fields = [("class_id", pa.int32()), ("class_name", pa.string()), ("class", pa.string())]
    return pa.table(columns, schema=pa.schema(fields))


def _register_functions(con: Any) -> None:
    """Register the mask functions in place of those of an earlier call, so that a second call changes nothing."""
    # DuckDB counts the parameters of a function, and rle_merge has an optional one.
    functions = {**arrow_masks.FUNCTIONS, "rle_merge": lambda lists: arrow_masks.rle_merge(lists)}
    for name, (arguments, result) in _SIGNATURES.items():
        if con.execute("SELECT count(*) FROM duckdb_functions() WHERE function_name = ?", [name]).fetchall()[0][0]:
            con.remove_function(name)
        con.create_function(
            name, functions[name], [con.type(argument) for argument in arguments], con.type(result), type="arrow",
            null_handling="special",
        )  # fmt: skip
