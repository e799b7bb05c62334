"""Export of a label set, or of a choice of it, to another tool's format.

This module knows the choice and writes an export whole or not at all. The writers know the formats.
The label set is read in ranges of keys.
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
from segray.analytics.export.writer import ExportedImage, Settings
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
class ExportSelection:
    """The part of a label set to export.

    classes: names or slugs; empty for all. min_score, min_area_px, max_area_px: limits of instances, ends included.
    statuses: of images. Failed images have no size and are never written.
    where: a condition in SQL on a row of `instances`, with the functions of segray.sql.
    with_instances: leave out images of which no instance is chosen.
    sample: number of these images to draw evenly; the same label set gives the same images; None for all.
    keys: of images; None for all. bare: write the images alone, without instances.
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
    """The result of an export.

    images, instances: number written. masks: "run lengths" or "pixels", which are exact, or "polygons".
    mean_iou, least_iou: IoU of the first thousand polygons with their masks, as pycocotools draws them.
    Both are None without polygons.
    lacks_images: folder where the format's readers look for the images, if these were not copied.
    """

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
    choice: ExportSelection = ExportSelection(),
    *,
    polygons: bool = False,
    tolerance_px: float = 0.0,
    copy_images: bool | None = None,
    ids_from: str | None = None,
    version: int | None = None,
    as_of: datetime | None = None,
    **storage_options: Any,
) -> Exported:
    """Write a label set, or a choice of it, to `out` in another tool's format.

    Nothing is written to `out` if an error is raised.

    Args:
        root: Folder or URL of the label set.
        to: A name in formats.FORMATS.
        out: File or folder to write, as the format has it. It must not exist, or be an empty folder.
        choice: The part of the label set to write.
        polygons: Write polygons in place of run lengths; for `coco` alone.
        tolerance_px: Largest distance of polygons from the pixels' edges. A larger value gives fewer corners.
        copy_images: Also copy the images. None copies them if they belong to the format.
        ids_from: A COCO truth whose image ids are used. By default images are numbered from 1.
        version: Batch of an earlier state.
        as_of: Time of an earlier state.
        **storage_options: Settings of the storage, as for segray.scan.

    Raises:
        UserError: `out` is taken, or the format or class is unknown. Polygons do not fit the format, the condition
            is no SQL, or no image is chosen.
        LabelSetError: As snapshot.snapshot raises it, or nothing is committed.
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


def _check_classes(choice: ExportSelection, state: Snapshot) -> None:
    known = {slug(name) for name in state.classes.values()}
    unknown = [name for name in choice.classes if slug(name) not in known]
    if unknown and known:
        raise UserError(
            "the labels have no such class", where=state.root, found=", ".join(unknown),
            hint=f"choose from {', '.join(sorted(known)[:10])}{' ...' if len(known) > 10 else ''}",
        )  # fmt: skip


# ---- what is chosen -------------------------------------------------------------------------------


def _pictures(state: Snapshot, choice: ExportSelection) -> Iterator[ExportedImage]:
    """Yield the chosen images in the order of their keys, numbered from 1."""
    sampled = None if choice.sample is None else _sample(state, choice)
    number = 0
    for key, uri, size_hw, rows in _chosen(state, choice, _FileNameColumn(light=choice.bare)):
        if sampled is None or key in sampled:
            number += 1
            yield ExportedImage(number, key, uri, size_hw, [] if rows is None or choice.bare else rows.to_pylist())


def _sample(state: Snapshot, choice: ExportSelection) -> set[str]:
    """Return the keys of `choice.sample` chosen images: those whose hashes are least."""
    assert choice.sample is not None
    columns = _FileNameColumn("image_id", light=True)
    drawn = ((identity, key) for key, identity, _, _ in _chosen(state, choice, columns))
    return {key for _, key in heapq.nsmallest(choice.sample, drawn)}


@dataclass(frozen=True)
class _FileNameColumn:
    """The column that is read of an image beside its key.

    light: only look for instances, without their columns.
    """

    column: str = "uri"
    light: bool = False


def _chosen(
    state: Snapshot, choice: ExportSelection, found: _FileNameColumn = _FileNameColumn()
) -> Iterator[tuple[str, str, tuple[int, int], pa.Table | None]]:
    """Yield key, uri (or another column), size and rows of each chosen image."""
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


def _condition(choice: ExportSelection) -> pc.Expression:
    chosen = ds.field("score") >= choice.min_score
    if choice.classes:
        chosen &= ds.field(schema.PARTITION).isin([slug(name) for name in choice.classes])
    if choice.min_area_px:
        chosen &= ds.field("area") >= choice.min_area_px
    if choice.max_area_px is not None:
        chosen &= ds.field("area") <= choice.max_area_px
    return chosen


class _Where:
    """A filter that keeps the rows for which a condition in SQL is true."""

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
        except Exception as error:  # DuckDB's error classes are unknown without an import of DuckDB.
            raise UserError("the condition is no SQL on instances", found=f"{self._condition}: {error}") from error
        return rows.take(pa.array([row for (row,) in found], pa.int64()))


def _no_rows() -> pa.Table:
    return schema.INSTANCES.empty_table().select(["image_key", "instance", *_COLUMNS])


def _duckdb() -> Any:
    from segray.analytics.query.duckdb_views import connect, sql

    con = connect()
    sql(con)
    return con
