"""The rows of a label set without their masks, in a DuckDB in memory, and what the page asks of them.

Knows the tables and the queries. Knows neither pictures nor pages. Masks stay in the label set.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.analytics.query import duckdb_views
from segray.analytics.query.key_ranges import NO_METADATA_CACHE
from segray.errors import UserError
from segray.label_set.schema import BBOX
from segray.label_set.snapshot import Snapshot
from segray.view.kept import Kept
from segray.view.selection import AREA_BINS, SCORE_BINS, STATUSES, Selection, Sql

_MEMORY = "1200MB"
_QUERY_S = 20.0
_RESULTS_BYTES = 48 << 20
_IMAGE_COLUMNS = ["image_key", "uri", "width", "height", "status", "n_instances", "batch", "stage", "message"]
_INSTANCE_COLUMNS = ["image_key", "instance", "class_id", "score", "area", *BBOX]


@dataclass(frozen=True)
class Facets:
    """Counts beside the values of each filter. Each count obeys all other filters.

    classes: number of instances by category id. statuses, batches: number of images. scores: number of instances in
    each of SCORE_BINS equal ranges of 0..1. areas: number of instances whose area is 2**i to 2**(i+1) pixels.
    """

    classes: Mapping[int, int]
    statuses: Mapping[str, int]
    batches: Mapping[int, int]
    scores: Sequence[int]
    areas: Sequence[int]


class Tables:
    """The images and instances of one state of a label set.

    Images have numbers from 0 in the order of their keys. Methods may be called from several threads.
    """

    def __init__(self, state: Snapshot) -> None:
        self._connection = duckdb_views.connect()
        self._results: Kept[NDArray[np.int32]] = Kept(_RESULTS_BYTES)
        _load(self._connection, state)

    def images(self, selection: Selection) -> NDArray[np.int32]:
        """Return the numbers of the selected images, (n,) int32, in order.

        Raises:
            UserError: The condition in SQL is wrong.
        """
        return self._results.of(selection, lambda: self._numbers(selection), lambda numbers: int(numbers.nbytes))

    def _numbers(self, selection: Selection) -> NDArray[np.int32]:
        return np.asarray(self._query(*_images_query(selection)).fetchnumpy()["image_no"], np.int32)

    def rows(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """Return the rows of images by their numbers, in the given order. A number without an image is left out."""
        text = f"SELECT image_no, {', '.join(_IMAGE_COLUMNS)} FROM images WHERE image_no IN (SELECT unnest(?))"
        found = {row["image_no"]: row for row in _records(self._query(text, [list(numbers)]))}
        return [found[number] for number in numbers if number in found]

    def number_of(self, key: str) -> int | None:
        """Return the number of an image, None if the label set has no such image."""
        row = self._query("SELECT image_no FROM images WHERE image_key = ?", [key]).fetchone()
        return None if row is None else int(row[0])

    def facets(self, selection: Selection) -> Facets:
        """Return the counts beside the filters."""
        by_status = dict(self._images_by("status", selection.without("statuses")))
        scores = self._instances_by(f"least({SCORE_BINS - 1}, floor(score * {SCORE_BINS}))", selection.without("score"))
        area_bin = f"least({AREA_BINS - 1}, floor(log2(greatest(area, 1))))"
        areas = self._instances_by(area_bin, selection.without("area"))
        return Facets(
            self._instances_by("class_id", selection.without("class_ids")),
            {status: by_status.get(status, 0) for status in STATUSES},
            dict(sorted(self._images_by("batch", selection.without("batches")).items())),
            [scores.get(number, 0) for number in range(SCORE_BINS)],
            [areas.get(number, 0) for number in range(AREA_BINS)],
        )

    def _instances_by(self, expression: str, selection: Selection) -> dict[int, int]:
        source, values = _instances_of(selection)
        text = f"SELECT CAST({expression} AS INTEGER), count(*) FROM {source} GROUP BY 1"
        return dict(self._query(text, values).fetchall())

    def _images_by(self, column: str, selection: Selection) -> dict[Any, int]:
        condition, values = _shown(selection)
        return dict(self._query(f"SELECT {column}, count(*) FROM images {condition} GROUP BY 1", values).fetchall())

    def _query(self, text: str, values: Sequence[Any]) -> Any:
        """Return the result of a query. Each call has a connection of its own, and ends after some seconds."""
        import duckdb

        cursor = self._connection.cursor()
        timer = threading.Timer(_QUERY_S, cursor.interrupt)
        timer.start()
        try:
            if len(cursor.extract_statements(text)) != 1:
                raise UserError("the condition is more than a condition", where="where", hint="write score > 0.5")
            return cursor.execute(text, list(values))
        except duckdb.InterruptException as error:
            hint = "narrow the condition"
            raise UserError(f"the question took more than {_QUERY_S:g} s", where="where", hint=hint) from error
        except duckdb.Error as error:
            found = str(error).partition("\n")[0]
            hint = "use columns of the instances: class_name, score, area, bbox_w, image_key, width, height"
            raise UserError("the condition in SQL is wrong", where="where", found=found, hint=hint) from error
        finally:
            timer.cancel()


def _load(connection: Any, state: Snapshot) -> None:
    """Copy the rows into the connection, then take away its access to files and its right to change settings."""
    connection.execute(f"SET memory_limit = '{_MEMORY}'")
    images = state.images.scanner(columns=_IMAGE_COLUMNS, **NO_METADATA_CACHE).to_reader()
    connection.register("committed_images", images)
    columns = ", ".join(_IMAGE_COLUMNS)
    connection.execute(
        f"CREATE TABLE images AS SELECT CAST(row_number() OVER (ORDER BY image_key) - 1 AS INTEGER) AS image_no, "
        f"{columns} FROM committed_images"
    )
    connection.unregister("committed_images")
    instances = state.instances.scanner(columns=_INSTANCE_COLUMNS, **NO_METADATA_CACHE).to_reader()
    connection.register("committed_instances", instances)
    own = ", ".join(f"committed_instances.{name}" for name in _INSTANCE_COLUMNS[1:])
    connection.execute(
        f"CREATE TABLE instances AS SELECT image_no, {own} FROM committed_instances JOIN images USING (image_key)"
    )
    connection.unregister("committed_instances")
    connection.register("class_list", duckdb_views.classes(state))
    connection.execute("CREATE TABLE classes AS SELECT class_id, class_name FROM class_list")
    connection.unregister("class_list")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")


# ---- queries --------------------------------------------------------------------------------------


def _hits(selection: Selection) -> tuple[str, list[Any]]:
    """Return a source of the instances that fulfil the conditions on instances."""
    condition = selection.instance_condition()
    if not selection.where:
        return f"(SELECT * FROM instances {condition.where})", list(condition.values)
    # The line break ends a comment in the condition.
    full = Sql(f"(\n{selection.where}\n)") & Sql(condition.text, condition.values)
    text = (
        "(SELECT rows.* FROM (SELECT instances.*, class_name, image_key, uri, width, height, batch FROM instances "
        f"JOIN images USING (image_no) JOIN classes USING (class_id)) AS rows {full.where})"
    )
    return text, list(full.values)


def _instances_of(selection: Selection) -> tuple[str, list[Any]]:
    """Return a source of the instances that fulfil all conditions."""
    source, values = _hits(selection)
    condition = selection.image_condition()
    if not condition.text:
        return source, values
    text = f"(SELECT * FROM {source} WHERE image_no IN (SELECT image_no FROM images {condition.where}))"
    return text, [*values, *condition.values]


def _shown(selection: Selection) -> tuple[str, list[Any]]:
    """Return a clause that selects the shown rows of `images`."""
    condition = selection.image_condition()
    if selection.has_instance_condition:
        source, values = _hits(selection)
        condition = condition & Sql(f"image_no IN (SELECT image_no FROM {source})", tuple(values))
    return condition.where, list(condition.values)


def _images_query(selection: Selection) -> tuple[str, list[Any]]:
    """Return the query for the numbers of the shown images, in order."""
    if not selection.needs_instances:
        condition = selection.image_condition()
        return f"SELECT image_no FROM images {condition.where} ORDER BY {selection.order_by()}", list(condition.values)
    source, values = _hits(selection)
    join = "JOIN" if selection.has_instance_condition else "LEFT JOIN"
    condition = selection.image_condition()
    text = (
        "WITH hits AS (SELECT image_no, max(score) AS best, min(score) AS worst, count(*) AS hits, "
        f"max(area) AS largest, min(abs(score - 0.5)) AS doubt FROM {source} GROUP BY image_no) "
        f"SELECT image_no FROM images {join} hits USING (image_no) {condition.where} ORDER BY {selection.order_by()}"
    )
    return text, [*values, *condition.values]


def _records(result: Any) -> list[dict[str, Any]]:
    names = [column[0] for column in result.description]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]
