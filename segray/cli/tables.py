"""The commands `segray info` and `segray sql`, which read the tables of a label set.

Knows arguments and how answers are printed. segray.analytics.query does the work.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from segray._system import signals
from segray._system.streams import show
from segray.cli.analytics import AsOf, Version, moment
from segray.cli.options import Endpoint, Json, Root, ThresholdsFile, show_json
from segray.errors import UserError

if TYPE_CHECKING:
    from segray.analytics.query.overview import Overview

_SHOWN = 15


def info(
    root: Root,
    version: Version = None,
    as_of: AsOf = None,
    endpoint_url: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Show what a label set holds: images, instances by class, model, files.

    The counts come from the log, so that they take a second for any number of instances.
    """
    with signals.ending_at_once():
        from segray.analytics.query.overview import overview

    result = overview(root, version=version, as_of=moment(as_of), endpoint_url=endpoint_url)
    if as_json:
        show_json(asdict(result))
    else:
        show(describe_overview(result))


def sql(
    root: Root,
    query: Annotated[
        str | None, typer.Argument(metavar="QUERY", help="SQL over the views instances, images and classes.")
    ] = None,
    form: Annotated[
        str, typer.Option("--format", metavar="table|csv|json", help="Form of the answer. csv and json have all rows.")
    ] = "table",
    views: Annotated[
        bool, typer.Option("--views", help="Print SQL that creates the views in another DuckDB, without segray.")
    ] = False,
    thresholds: ThresholdsFile = None,
    version: Version = None,
    as_of: AsOf = None,
    endpoint_url: Endpoint = None,
) -> None:
    """Ask a label set by SQL, with DuckDB.

    The views show one exact state. Functions compute with masks: rle_area, rle_bbox, rle_iou, rle_intersection,
    rle_merge, rle_contains, rle_centroid, rle_perimeter, rle_crop, rle_resize, rle_polygon, rle_decode, rle_png.
    """
    if (query is None) != views:
        hint = "for example segray sql ROOT 'SELECT class_name, count(*) FROM instances GROUP BY ALL'"
        raise UserError("give a query or --views", found="both" if views else "neither", hint=hint)
    with signals.ending_at_once():
        from segray.analytics.query import answers, duckdb_views, score_thresholds
        from segray.label_set.snapshot import snapshot, store

    connection = duckdb_views.connect()
    if views:
        state = snapshot(root, version=version, as_of=moment(as_of), endpoint_url=endpoint_url)
        condition = score_thresholds.sql_condition(state, thresholds, store({"endpoint_url": endpoint_url}))
        show(duckdb_views.statements(state, condition))
        return
    duckdb_views.sql(
        connection,
        root,
        version=version,
        as_of=moment(as_of),
        thresholds=thresholds,
        endpoint_url=endpoint_url,
    )
    for part in answers.answer(connection, query or "", form, width=shutil.get_terminal_size((120, 0)).columns):
        show(part)


def describe_overview(result: Overview) -> str:
    """Return the counts, the model, the files and the first classes, and what shows more."""
    images = sum(result.images.values())
    by_status = ", ".join(f"{count} {status}" for status, count in sorted(result.images.items(), reverse=True))
    instances, classes = sum(result.instances.values()), len(result.instances)
    counts = f"{images:,} images ({by_status}), {instances:,} instances of {classes} classes" if images else "no images"
    name, threshold = result.model.get("name", "unknown"), result.model.get("score_threshold")
    lines = [
        f"{result.root}: {counts}",
        f"model:   {name}" + ("" if threshold is None else f", scores from {threshold:g}"),
        f"state:   batch {result.batch}, {result.files} files, {result.size_bytes / 1e6:,.1f} MB",
    ]
    shown = list(result.instances.items())[:_SHOWN]
    lines += [f"{count:>11,}  {class_name}" for class_name, count in shown]
    if classes > len(shown):
        lines.append(f"{'':>11}  ... and {classes - len(shown)} classes more")
    return "\n".join(lines)
