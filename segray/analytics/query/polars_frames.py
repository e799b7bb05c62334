"""A label set in Polars: its tables as lazy frames, and expressions over masks.

This module knows Polars' terms. arrow_masks has the same functions over Arrow arrays and says what each one returns.
An argument is an expression, a column's name or a number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, NamedTuple, Unpack

import polars as pl
import pyarrow as pa

from segray.analytics.query import arrow_masks, duckdb_views, score_thresholds
from segray.label_set import snapshot
from segray.storage.options import StorageKeywords
from segray.storage.uris import PathOrUrl

Column = pl.Expr | str | int
_BOX = pl.Struct(dict.fromkeys(("x", "y", "w", "h"), pl.Int32))


def scan(
    root: PathOrUrl,
    table: str = "instances",
    *,
    version: int | None = None,
    as_of: datetime | None = None,
    thresholds: score_thresholds.Thresholds = None,
    **storage: Unpack[StorageKeywords],
) -> pl.LazyFrame:
    """Return one table of the label set: instances, images or classes.

    Two calls may see two states. Use `frames` for tables of one state.
    """
    tables = frames(root, version=version, as_of=as_of, thresholds=thresholds, **storage)
    return {"instances": tables.instances, "images": tables.images, "classes": tables.classes}[table]


class LabelSetFrames(NamedTuple):
    """The tables of one exact state. classes: class_id, class_name and class, the partition."""

    instances: pl.LazyFrame
    images: pl.LazyFrame
    classes: pl.LazyFrame


def frames(
    root: PathOrUrl,
    *,
    version: int | None = None,
    as_of: datetime | None = None,
    thresholds: score_thresholds.Thresholds = None,
    **storage_options: Unpack[StorageKeywords],
) -> LabelSetFrames:
    """Return all tables of the label set, of one state whatever is committed later.

    The arguments are those of snapshot.snapshot. thresholds: smallest score by class, or a file with such scores;
    `instances` then leaves out other instances.
    """
    state = snapshot.snapshot(root, version=version, as_of=as_of, **storage_options)
    state = score_thresholds.applied(state, thresholds, snapshot.store(storage_options))
    return LabelSetFrames(
        pl.scan_pyarrow_dataset(state.instances),
        pl.scan_pyarrow_dataset(state.images),
        pl.LazyFrame(duckdb_views.classes(state)),
    )


def frame(table: pa.Table) -> pl.DataFrame:
    """Return an Arrow table as a frame."""
    converted = pl.from_arrow(table)
    assert isinstance(converted, pl.DataFrame)
    return converted


def rle_area(rle: Column) -> pl.Expr:
    """Return the number of set pixels, Int64."""
    return _call(arrow_masks.rle_area, [rle], pl.Int64())


def rle_bbox(rle: Column, height: Column) -> pl.Expr:
    """Return the tightest box in pixels, a struct of x, y, w, h, Int32."""
    return _call(arrow_masks.rle_bbox, [rle, height], _BOX)


def rle_iou(a: Column, b: Column) -> pl.Expr:
    """Return the intersection over union of two masks of one image, Float64."""
    return _call(arrow_masks.rle_iou, [a, b], pl.Float64())


def rle_decode(rle: Column, height: Column, width: Column) -> pl.Expr:
    """Return the pixels row by row, one byte each, Binary."""
    return _call(arrow_masks.rle_decode, [rle, height, width], pl.Binary())


def rle_merge(lists: Column) -> pl.Expr:
    """Return the union of a list of masks, String."""
    return _call(arrow_masks.rle_merge, [lists], pl.String())


def rle_contains(rle: Column, height: Column, x: Column, y: Column) -> pl.Expr:
    """Return whether the mask has pixel (x, y), Boolean."""
    return _call(arrow_masks.rle_contains, [rle, height, x, y], pl.Boolean())


def rle_polygon(rle: Column, height: Column, width: Column) -> pl.Expr:
    """Return COCO polygons, lists of [x, y, x, y, ...], in pixels."""
    return _call(arrow_masks.rle_polygon, [rle, height, width], pl.List(pl.List(pl.Float64)))


def rle_intersection(a: Column, b: Column) -> pl.Expr:
    """Return the mask of the pixels that both masks have, String."""
    return _call(arrow_masks.rle_intersection, [a, b], pl.String())


def rle_crop(rle: Column, height: Column, width: Column, x: Column, y: Column, w: Column, h: Column) -> pl.Expr:
    """Return the part of the mask in a window of x, y, width and height, String."""
    return _call(arrow_masks.rle_crop, [rle, height, width, x, y, w, h], pl.String())


def rle_resize(rle: Column, height: Column, width: Column, new_height: Column, new_width: Column) -> pl.Expr:
    """Return the mask at another size of its image, String."""
    return _call(arrow_masks.rle_resize, [rle, height, width, new_height, new_width], pl.String())


def rle_centroid(rle: Column, height: Column) -> pl.Expr:
    """Return the centre of the pixels, a struct of x and y, Float64; null for an empty mask."""
    return _call(arrow_masks.rle_centroid, [rle, height], pl.Struct({"x": pl.Float64, "y": pl.Float64}))


def rle_perimeter(rle: Column, height: Column) -> pl.Expr:
    """Return the number of pixel sides on the outlines of the mask, Int64."""
    return _call(arrow_masks.rle_perimeter, [rle, height], pl.Int64())


def rle_png(rle: Column, height: Column, width: Column) -> pl.Expr:
    """Return the mask as a PNG of one bit a pixel, Binary."""
    return _call(arrow_masks.rle_png, [rle, height, width], pl.Binary())


def _call(function: Callable[..., pa.Array], columns: Sequence[Column], dtype: Any) -> pl.Expr:
    """Return the expression that applies a function of arrow_masks to the columns."""

    def apply(batch: Sequence[pl.Series]) -> pl.Series:
        length = next((len(series) for series in batch if len(series) != 1), 1)  # Polars passes a number as one row.
        arrays = [series.to_arrow() if len(series) == length else pa.scalar(series[0]) for series in batch]
        return pl.Series(batch[0].name, pl.from_arrow(function(*arrays)), dtype=dtype)

    expressions = [pl.lit(column) if isinstance(column, int) else column for column in columns]
    return pl.map_batches(expressions, apply, return_dtype=dtype, is_elementwise=True)
