"""Write a label set, or a choice of it, in another tool's format.

Knows what is chosen and that an export is there whole or not at all; knows nothing of the formats. The label set is
read in slices of keys.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from segray.analytics.evaluation import ground_truth
from segray.analytics.export.formats import FORMATS, Format
from segray.analytics.export.writer import Picture, Settings
from segray.analytics.query import key_ranges
from segray.analytics.query.atomic_output import atomic_output, require_new_path
from segray.analytics.query.key_ranges import KeySampler
from segray.errors import UserError
from segray.label_set import schema, snapshot
from segray.label_set.snapshot import Snapshot
from segray.models.coco_labels import slug
from segray.sources.reader import by_uri

_COLUMNS = ("class_id", "class_name", "score", *schema.BBOX, "area", "height", "width", "rle")


@dataclass(frozen=True)
class Choice:
    """What of a label set is meant.

    classes: names or slugs; none: all. min_score, min_area_px, max_area_px: of instances, ends included. statuses: of
    images; failed ones have no size and are never written. where: a condition in SQL on a row of `instances`, with the
    functions of segray.sql. with_instances: leave out images of which nothing is chosen. sample: so many images of
    those, always the same ones, drawn evenly. keys: of images; None: all. bare: the images alone, without instances.
    """

    classes: Sequence[str] = ()
    min_score: float = 0.0
    min_area_px: int = 0
    max_area_px: int | None = None
    statuses: Sequence[str] = ("ok", "empty")
    where: str | None = None
    with_instances: bool = False
    sample: int | None = None
    keys: frozenset[str] | None = field(default=None, repr=False)
    bare: bool = False


@dataclass(frozen=True)
class Exported:
    """What was written. masks: run lengths or pixels, which are exact, or polygons. mean_iou, least_iou: of the first
    thousand polygons with their masks, as pycocotools draws them; None without polygons. lacks_images: the folder where
    the format's readers look for the images, which were not copied."""

    out: str
    format: str
    images: int
    instances: int
    masks: str
    mean_iou: float | None = None
    least_iou: float | None = None
    lacks_images: str | None = None


def export(
    root: str,
    to: str,
    out: Path,
    choice: Choice = Choice(),
    *,
    polygons: bool = False,
    tolerance_px: float = 0.0,
    copy_images: bool | None = None,
    ids_from: str | None = None,
    version: int | None = None,
    as_of: datetime | None = None,
    **storage_options: Any,
) -> Exported:
    """Write to `out`, a file or a folder as the format has it, which must not be there, or be an empty folder.

    to: a name of formats.FORMATS. polygons: in `coco`, in place of run lengths. tolerance_px: how far polygons may
    leave the pixels' edges, for fewer corners. copy_images: also the images; None: if they belong to the format.
    ids_from: a COCO truth whose image ids are used, instead of numbers from 1. version, as_of: an earlier state.

    Raises UserError, having written nothing, for an `out` that is taken, an unknown format or class, polygons in
    another format, a condition that is no SQL, and a choice of no image; LabelSetError as snapshot.snapshot, or if
    nothing is committed.
    """
    form = _format(to)
    if polygons and to != "coco":
        raise UserError("--polygons is for coco alone", found=to, hint="yolo and labelme have polygons anyway")
    require_new_path(out, folder=form.folder)
    state = key_ranges.committed(snapshot.snapshot(root, version=version, as_of=as_of, **storage_options))
    _check_classes(choice, state)
    store = snapshot.store(storage_options)
    ids = None if ids_from is None else ground_truth.read_index(ids_from, store, KeySampler())
    copies = form.copies if copy_images is None else copy_images
    images = instances = 0
    with atomic_output(out) as unfinished:
        if form.folder:
            unfinished.mkdir()
        read = by_uri(store) if copies else None
        settings = Settings(unfinished, state.classes, tolerance_px, polygons, read, bare=choice.bare)
        writer = form.open(settings)
        for picture in _pictures(state, choice):
            writer.add(picture if ids is None else replace(picture, id=ids.id_of(picture.key)))
            images, instances = images + 1, instances + len(picture.rows)
        writer.close()
        if not images:
            raise UserError("nothing of the label set is chosen", where=root, found=str(choice), hint="choose less")
    loss, kind = settings.loss, "polygons" if polygons else form.masks
    lacks = None if copies or form.looks_in is None else str(out / form.looks_in)
    return Exported(
        str(out), to, images, instances, kind, loss.mean_iou, loss.least if loss.measured else None, lacks
    )  # fmt: skip


def _format(name: str) -> Format:
    if name not in FORMATS:
        raise UserError("no such format", found=name, hint=f"choose from {', '.join(FORMATS)}")
    return FORMATS[name]


def _check_classes(choice: Choice, state: Snapshot) -> None:
    known = {slug(name) for name in state.classes.values()}
    unknown = [name for name in choice.classes if slug(name) not in known]
    if unknown and known:
        raise UserError(
            "the labels have no such class", where=state.root, found=", ".join(unknown),
            hint=f"choose from {', '.join(sorted(known)[:10])}{' ...' if len(known) > 10 else ''}",
        )  # fmt: skip


# ---- what is chosen -------------------------------------------------------------------------------


def _pictures(state: Snapshot, choice: Choice) -> Iterator[Picture]:
    """The chosen images in the order of their keys, numbered from 1."""
    sampled = None if choice.sample is None else _sample(state, choice)
    number = 0
    for key, uri, size_hw, rows in _chosen(state, choice, _Found(light=choice.bare)):
        if sampled is None or key in sampled:
            number += 1
            yield Picture(number, key, uri, size_hw, [] if rows is None or choice.bare else rows.to_pylist())


def _sample(state: Snapshot, choice: Choice) -> set[str]:
    """The keys of so many chosen images: those whose hashes are least."""
    assert choice.sample is not None
    columns = _Found("image_id", light=True)
    drawn = ((identity, key) for key, identity, _, _ in _chosen(state, choice, columns))
    return {key for _, key in heapq.nsmallest(choice.sample, drawn)}


@dataclass(frozen=True)
class _Found:
    """What is read of an image beside its key, and whether its instances are only looked for."""

    column: str = "uri"
    light: bool = False


def _chosen(
    state: Snapshot, choice: Choice, found: _Found = _Found()
) -> Iterator[tuple[str, str, tuple[int, int], pa.Table | None]]:
    """Key, uri (or another column), size and rows of each chosen image."""
    condition = _condition(choice)
    kept = _Where(choice.where)
    needs_rows = not found.light or choice.with_instances
    every = key_ranges.cut(state)
    some = [(each, ds.scalar(True)) for each in every]
    if choice.keys is not None:
        some = [(each, key_ranges.of_images(keys)) for each, keys in key_ranges.holding(every, choice.keys)]
    labelled = ds.field("status").isin(pa.array([each for each in choice.statuses if each != "failed"], pa.string()))
    for part, those in some:
        images = key_ranges.images(state, part, [found.column, "status", "width", "height"], labelled & those)
        by_key: Mapping[str, pa.Table] = {}
        if needs_rows:
            columns = _COLUMNS if not found.light or choice.where else ("class_id",)
            by_key = key_ranges.Groups(kept(key_ranges.instances(state, part, columns, condition & those)))
        for row in images.to_pylist():
            rows = by_key.get(row["image_key"])
            if rows is not None or not choice.with_instances:
                yield row["image_key"], row[found.column], (row["height"], row["width"]), rows


def _condition(choice: Choice) -> pc.Expression:
    chosen = ds.field("score") >= choice.min_score
    if choice.classes:
        chosen &= ds.field(schema.PARTITION).isin([slug(name) for name in choice.classes])
    if choice.min_area_px:
        chosen &= ds.field("area") >= choice.min_area_px
    if choice.max_area_px is not None:
        chosen &= ds.field("area") <= choice.max_area_px
    return chosen


class _Where:
    """Keeps the rows for which a condition in SQL is true."""

    def __init__(self, condition: str | None) -> None:
        self._condition, self._con = condition, None
        if condition is not None:
            self._con = _duckdb()
            self(_no_rows())

    def __call__(self, rows: pa.Table) -> pa.Table:
        if self._con is None:
            return rows
        self._con.register("instances", rows.append_column("_row", pa.array(range(rows.num_rows))))
        query = f"SELECT _row FROM instances WHERE ({self._condition}\n) ORDER BY _row"
        try:
            found = self._con.execute(query).fetchall()
        except Exception as error:  # All of DuckDB's, whose classes are not known without importing it.
            raise UserError("the condition is no SQL on instances", found=f"{self._condition}: {error}") from error
        return rows.take(pa.array([row for (row,) in found], pa.int64()))


def _no_rows() -> pa.Table:
    return schema.INSTANCES.empty_table().select(["image_key", "instance", *_COLUMNS])


def _duckdb() -> Any:
    from segray.analytics.query.duckdb_views import connect, sql

    con = connect()
    sql(con)
    return con
