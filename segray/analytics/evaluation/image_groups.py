"""Groups of images whose AP is measured apart: by folder, or by the value of a SQL expression.

This module knows keys of images and rows of the table `images`. intervals measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from segray.analytics.evaluation import intervals
from segray.analytics.evaluation.coco_eval import AREAS
from segray.analytics.evaluation.intervals import ImageTallies, Slice
from segray.analytics.query import key_ranges
from segray.analytics.query.key_ranges import KeyRange
from segray.errors import UserError
from segray.label_set.snapshot import Snapshot

MOST_GROUPS = 200
_NOT_LABELLED = "not labelled"
_NO_VALUE = "NULL"


class ImageGroups:
    """The groups of the evaluated images, which are added range by range.

    by: "size", "class", "folder", or SQL expressions on a row of `images`.
    """

    def __init__(self, by: Sequence[str]) -> None:
        self._by = tuple(by)
        self._expressions = [name for name in by if name not in ("size", "class", "folder")]
        self._groups: dict[str, dict[str, list[int]]] = {
            name: {} for name in by if name == "folder" or name in self._expressions
        }
        self._connection: Any = None
        self._values: dict[str, dict[str, str]] = {}  # of the present range: value by key, by expression

    def add_range(self, state: Snapshot, key_range: KeyRange) -> None:
        """Compute the expressions for the labelled images of a range. Raise UserError for wrong SQL."""
        if not self._expressions:
            return
        if self._connection is None:
            from segray.analytics.query import duckdb_views

            self._connection = duckdb_views.connect()
        rows = key_ranges.images(state, key_range, state.images.schema.names)
        self._connection.register("images", rows)
        self._values = {expression: self._values_of(expression) for expression in self._expressions}

    def _values_of(self, expression: str) -> dict[str, str]:
        query = f"SELECT image_key, CAST(({expression}\n) AS VARCHAR) FROM images"
        try:
            pairs = self._connection.execute(query).fetchall()
        except Exception as error:  # Naming the error classes of DuckDB would import DuckDB.
            raise UserError(
                "a slice is neither size, class, folder nor SQL on a row of images", where="--by",
                found=f"{expression}: {error}", hint="for example --by folder, or --by \"width > 1000\"",
            ) from error  # fmt: skip
        return {key: _NO_VALUE if value is None else value for key, value in pairs}

    def add(self, image: int, key: str) -> None:
        """Add an evaluated image to its groups. image: its id in the truth."""
        for name, groups in self._groups.items():
            value = (key.rpartition("/")[0] or ".") if name == "folder" else self._values[name].get(key, _NOT_LABELLED)
            groups.setdefault(value, []).append(image)
            if len(groups) > MOST_GROUPS:
                raise UserError(
                    f"a slice has more than {MOST_GROUPS} values", where="--by", found=name,
                    hint="choose an expression with fewer values, such as one of split_part(image_key, '/', 1)",
                )  # fmt: skip

    def slices(self, tallies: ImageTallies, resamples: int, seed: int) -> list[Slice]:
        """Return the AP of all groups, in the order in which the groups were asked for."""
        parts: list[Slice] = []
        for name in self._by:
            if name == "size":
                parts += intervals.size_slices(tallies, AREAS, resamples, seed)
            elif name == "class":
                parts += intervals.class_slices(tallies, resamples, seed)
            else:
                parts += intervals.slices(tallies, name, self._groups[name], resamples, seed)
        return parts
