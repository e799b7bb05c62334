"""The answer of a SQL query as text: a table for people, CSV or JSON for programs.

Knows DuckDB's results and the three forms. Knows nothing of label sets.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from datetime import date, time
from decimal import Decimal
from typing import Any

from segray.analytics.query import duckdb_views
from segray.errors import UserError

FORMATS = ("table", "csv", "json")
_ROWS_AT_A_TIME = 10_000
_MOST_ROWS = 200


def answer(connection: Any, query: str, form: str, *, width: int) -> Iterator[str]:
    """Yield the answer of a query as parts of a text, without the last line break.

    Args:
        connection: A DuckDB connection.
        query: SQL.
        form: table, csv or json. A table shows at most 200 rows; csv and json have all rows.
        width: Largest width of a table, in characters.

    Raises:
        UserError: The form is unknown.
        QueryError: DuckDB refuses the query.
    """
    import duckdb

    if form not in FORMATS:
        raise UserError("there is no such format", where="--format", found=form, hint=f"use {', '.join(FORMATS)}")
    try:
        relation = duckdb_views.relation(connection, query)
        if relation is None:  # An empty query.
            return
        if form == "table":
            yield _table(relation, width)
            return
        # Arrow, since DuckDB's own Python values of times with a zone need pytz.
        reader = relation.to_arrow_reader(_ROWS_AT_A_TIME)
        names = reader.schema.names
        rows = (list(zip(*(column.to_pylist() for column in batch.columns), strict=True)) for batch in reader)
        yield from (_csv if form == "csv" else _json)(names, rows)
    except duckdb.Error as error:
        raise duckdb_views.refusal(query, error) from error


def _table(relation: Any, width: int) -> str:
    """Return the table that DuckDB draws."""
    with redirect_stdout(io.StringIO()) as drawn:
        relation.show(max_width=width, max_rows=_MOST_ROWS)
    return drawn.getvalue().rstrip("\n")


def _csv(names: Sequence[str], chunks: Iterator[Sequence[tuple[Any, ...]]]) -> Iterator[str]:
    for rows in _with_head(names, chunks):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([[_cell(value) for value in row] for row in rows])
        yield text.getvalue().rstrip("\n")


def _with_head(names: Sequence[str], chunks: Iterator[Sequence[tuple[Any, ...]]]) -> Iterator[Sequence[Sequence[Any]]]:
    yield [names]
    yield from chunks


def _cell(value: Any) -> Any:
    """Return a value for a cell of CSV: nothing for NULL, JSON for lists and structs."""
    if isinstance(value, list | dict | tuple):
        return json.dumps(_plain(value))
    return "" if value is None else value if isinstance(value, str) else _plain(value)


def _json(names: Sequence[str], chunks: Iterator[Sequence[tuple[Any, ...]]]) -> Iterator[str]:
    """Yield a JSON array with one record on each line."""
    before = "["
    for rows in chunks:
        records = [json.dumps(dict(zip(names, map(_plain, row), strict=True)), ensure_ascii=False) for row in rows]
        yield before + "\n" + ",\n".join(records)
        before = ","
    yield "[]" if before == "[" else "]"


def _plain(value: Any) -> Any:
    """Return a value of a kind that JSON has: times as ISO 8601, bytes in hexadecimal digits, NaN as null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return value if value is None or isinstance(value, str | int | bool) else str(value)
