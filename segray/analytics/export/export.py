"""Export of a label set, or of a part of it, to another tool's format.

This module knows the selection. A failed export leaves no file. The writers know the formats.
The label set is read in ranges of keys.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
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
from segray.label_set.run_records import source_store
from segray.label_set.snapshot import Snapshot
from segray.models.coco_labels import slug
from segray.sources.reader import by_uri
from segray.storage.uris import PathOrUrl, as_path, as_uri

_COLUMNS = ("class_id", "class_name", "score", *schema.BBOX, "area", "height", "width", "rle")


@dataclass(frozen=True)
class ExportSelection:
    """The part of a label set to export.

    classes: names or slugs; empty for all.
    min_score, min_area_px, max_area_px: limits of instances, ends included.
    statuses: statuses of images. Failed images have no size and are never written.
    where: a condition in SQL on a row of `instances`, with the functions of segray.sql.
    with_instances: leave out images without a selected instance.
    sample: number of images to draw by chance; None for all. The same label set gives the same images.
    keys: keys of images; None for all.
    images_only: write the images without their instances.
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
    images_only: bool = False


@dataclass(frozen=True)
class ExportResult:
    """The result of an export.

    images, instances: number of written images and instances.
    masks: "run lengths" or "pixels", which are exact, or "polygons".
    mean_iou, least_iou: IoU of the first thousand polygons with their masks, as pycocotools draws them; None without
    polygons.
    lacks_images: folder where readers of the format look for the images, if the images were not copied.
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
    root: PathOrUrl,
    to: str,
    out: PathOrUrl,
    selection: ExportSelection = ExportSelection(),
    *,
    polygons: bool = False,
    tolerance_px: float = 0.0,
    copy_images: bool | None = None,
    ids_from: PathOrUrl | None = None,
    version: int | None = None,
    as_of: datetime | None = None,
    **storage_options: Any,
) -> ExportResult:
    """Write a label set, or a part of it, to `out` in another tool's format.

    Nothing is written to `out` if an error is raised.

    Args:
        root: Folder or URL of the label set.
        to: A name in formats.FORMATS.
        out: File or folder to write, depending on the format. The path must not exist, or be an empty folder.
        selection: The part of the label set to write.
        polygons: Write polygons in place of run lengths; for `coco` alone.
        tolerance_px: Largest distance of polygons from the edges of the pixels. A larger value gives fewer corners.
        copy_images: Also copy the images. None copies the images if the format contains images.
        ids_from: A COCO truth whose image ids are used. By default images are numbered from 1.
        version: Batch of an earlier state.
        as_of: Time of an earlier state.
        **storage_options: Settings of the storage, as for segray.scan.

    Raises:
        UserError: `out` exists, or the format or class is unknown. The format has no polygons, the condition is not
            valid SQL, or no image is selected.
        LabelSetError: The label set cannot be read, as in snapshot.snapshot, or has no commit.
    """
    target, out = _find_format(to), as_path(out)
    if polygons and to != "coco":
        hint = "Leave out --polygons. The formats yolo and labelme always have polygons."
        raise UserError("--polygons is for coco alone", found=to, hint=hint)
    require_new_path(out, folder=target.is_folder)
    state = key_ranges.committed(snapshot.snapshot(root, version=version, as_of=as_of, **storage_options))
    _check_classes(selection, state)
    store = snapshot.store(storage_options)
    ids = None if ids_from is None else ground_truth.read_index(as_uri(ids_from), store, KeySampler())
    copies_images = target.copies_images if copy_images is None else copy_images
    images = instances = 0
    with atomic_output(out) as unfinished:
        if target.is_folder:
            unfinished.mkdir()
        read = by_uri(source_store(store, state.root)) if copies_images else None
        settings = Settings(unfinished, state.classes, tolerance_px, polygons, read, images_only=selection.images_only)
        writer = target.open(settings)
        for image in _exported_images(state, selection):
            writer.add(image if ids is None else replace(image, id=ids.id_of(image.key)))
            images, instances = images + 1, instances + len(image.rows)
        writer.close()
        if not images:
            hint = "Remove a condition of the selection, such as --min-score, --class or --where."
            raise UserError("no image of the label set is selected", where=state.root, found=str(selection), hint=hint)
    loss, masks = settings.loss, "polygons" if polygons else target.masks
    least_iou = loss.least if loss.measured else None
    lacks_images = None
    if target.images_folder is not None and not copies_images:
        lacks_images = str(out / target.images_folder)
    return ExportResult(str(out), to, images, instances, masks, loss.mean_iou, least_iou, lacks_images)


def _find_format(name: str) -> Format:
    if name not in FORMATS:
        raise UserError("no such format", found=name, hint=f"Choose from {', '.join(FORMATS)}.")
    return FORMATS[name]


def _check_classes(selection: ExportSelection, state: Snapshot) -> None:
    class_slugs = {slug(name) for name in state.classes.values()}
    unknown = [name for name in selection.classes if slug(name) not in class_slugs]
    if unknown and class_slugs:
        raise UserError(
            "the labels have no such class", where=state.root, found=", ".join(unknown),
            hint=f"Choose from {', '.join(sorted(class_slugs)[:10])}{' ...' if len(class_slugs) > 10 else ''}.",
        )  # fmt: skip


# ---- the selection --------------------------------------------------------------------------------


def _exported_images(state: Snapshot, selection: ExportSelection) -> Iterator[ExportedImage]:
    """Yield the selected images in the order of their keys, numbered from 1."""
    sampled = None if selection.sample is None else _sample_keys(state, selection)
    number = 0
    for key, uri, size_hw, rows in _select(state, selection, reads_instances=not selection.images_only):
        if sampled is None or key in sampled:
            number += 1
            instances = [] if rows is None or selection.images_only else rows.to_pylist()
            yield ExportedImage(number, key, uri, size_hw, instances)


def _sample_keys(state: Snapshot, selection: ExportSelection) -> set[str]:
    """Return the keys of the `selection.sample` selected images with the smallest hashes."""
    assert selection.sample is not None
    selected = _select(state, selection, image_column="image_id", reads_instances=False)
    return {key for _, key in heapq.nsmallest(selection.sample, ((image_id, key) for key, image_id, _, _ in selected))}


def _select(
    state: Snapshot, selection: ExportSelection, *, image_column: str = "uri", reads_instances: bool
) -> Iterator[tuple[str, str, tuple[int, int], pa.Table | None]]:
    """Yield key, image_column, size and instances of each selected image.

    reads_instances: read all columns of the instances, and not only whether an image has a selected instance.
    """
    instance_filter = _instance_filter(selection)
    sql_filter = _SqlFilter(selection.where)
    ranges = key_ranges.cut(state)
    filters = [(key_range, ds.scalar(True)) for key_range in ranges]
    if selection.keys is not None:
        holding = key_ranges.holding(ranges, selection.keys)
        filters = [(key_range, key_ranges.of_images(keys)) for key_range, keys in holding]
    statuses = [status for status in selection.statuses if status != "failed"]
    status_filter = ds.field("status").isin(pa.array(statuses, pa.string()))
    for key_range, key_filter in filters:
        image_columns = [image_column, "status", "width", "height"]
        images = key_ranges.images(state, key_range, image_columns, status_filter & key_filter)
        by_key: Mapping[str, pa.Table] = {}
        if reads_instances or selection.with_instances:
            columns = _COLUMNS if reads_instances or selection.where else ("class_id",)
            rows = key_ranges.instances(state, key_range, columns, instance_filter & key_filter)
            by_key = key_ranges.Groups(sql_filter(rows))
        for image in images.to_pylist():
            instances = by_key.get(image["image_key"])
            if instances is not None or not selection.with_instances:
                yield image["image_key"], image[image_column], (image["height"], image["width"]), instances


def _instance_filter(selection: ExportSelection) -> pc.Expression:
    condition = ds.field("score") >= selection.min_score
    if selection.classes:
        condition &= ds.field(schema.PARTITION).isin([slug(name) for name in selection.classes])
    if selection.min_area_px:
        condition &= ds.field("area") >= selection.min_area_px
    if selection.max_area_px is not None:
        condition &= ds.field("area") <= selection.max_area_px
    return condition


class _SqlFilter:
    """A filter that keeps the rows for which a condition in SQL is true."""

    def __init__(self, condition: str | None) -> None:
        self._condition, self._con = condition, None
        if condition is not None:
            self._con = _connect_duckdb()
            self(_empty_instances())

    def __call__(self, rows: pa.Table) -> pa.Table:
        if self._con is None:
            return rows
        self._con.register("instances", rows.append_column("_row", pa.array(range(rows.num_rows))))
        query = f"SELECT _row FROM instances WHERE ({self._condition}\n) ORDER BY _row"
        try:
            kept_rows = self._con.execute(query).fetchall()
        except Exception as error:  # Naming the error classes of DuckDB would import DuckDB.
            raise UserError(
                "the condition is not valid SQL on instances", found=f"{self._condition}: {error}",
                hint="Correct the condition in `--where`. `segray.scan(ROOT).schema` lists the columns.",
            ) from error  # fmt: skip
        return rows.take(pa.array([row for (row,) in kept_rows], pa.int64()))


def _empty_instances() -> pa.Table:
    return schema.INSTANCES.empty_table().select(["image_key", "instance", *_COLUMNS])


def _connect_duckdb() -> Any:
    from segray.analytics.query.duckdb_views import connect, sql

    con = connect()
    sql(con)
    return con
