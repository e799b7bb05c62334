"""Export of a label set, or of a part of it, to another tool's format.

This module knows the selection. A failed export leaves no file. The writers know the formats.
The label set is read in ranges of keys.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, Unpack

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from segray.analytics.evaluation import ground_truth
from segray.analytics.export import source_images
from segray.analytics.export import splits as split_names
from segray.analytics.export.formats import FORMATS, Format
from segray.analytics.export.names import OtherName, other_names
from segray.analytics.export.source_images import Fault, LabelledImage
from segray.analytics.export.splits import Splits
from segray.analytics.export.writer import ExportedImage, ExportWriter, Row, Settings
from segray.analytics.query import key_ranges, score_thresholds
from segray.analytics.query.atomic_output import atomic_output, require_new_path
from segray.analytics.query.key_ranges import KeySampler
from segray.errors import ImageError, UserError
from segray.label_set import schema, snapshot
from segray.label_set.class_names import find_class, partition_value
from segray.label_set.run_records import source_store
from segray.label_set.snapshot import Snapshot
from segray.sources.reader import by_uri
from segray.storage.options import StorageKeywords
from segray.storage.store import Store
from segray.storage.uris import PathOrUrl, as_path, as_uri

_COLUMNS = ("class_id", "class_name", "score", *schema.BBOX, "area", "height", "width", "rle")


@dataclass(frozen=True)
class ExportSelection:
    """The part of a label set to export.

    classes: names or partition values; empty for all.
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
    companion: path of the second file of a format that has two.
    left_out: what is wrong with each image that was left out, by key.
    splits: number of images by split; empty without splits.
    renamed: name of each image whose path another image has, and the key of that other image, by key.
    """

    out: str
    format: str
    images: int
    instances: int
    masks: str
    mean_iou: float | None = None
    least_iou: float | None = None
    lacks_images: str | None = None
    companion: str | None = None
    left_out: Mapping[str, str] = field(default_factory=dict)
    renamed: Mapping[str, OtherName] = field(default_factory=dict)
    splits: Mapping[str, int] = field(default_factory=dict)


def export(
    root: PathOrUrl,
    to: str,
    out: PathOrUrl,
    selection: ExportSelection = ExportSelection(),
    *,
    polygons: bool = False,
    tolerance_px: float = 0.0,
    copy_images: bool | None = None,
    skip_missing: bool = False,
    used_classes: bool = False,
    rename: Mapping[str, str] | None = None,
    thresholds: score_thresholds.Thresholds = None,
    split: str | None = None,
    split_by: str = "key",
    ids_from: PathOrUrl | None = None,
    version: int | None = None,
    as_of: datetime | None = None,
    **storage_options: Unpack[StorageKeywords],
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
        skip_missing: Leave out images that are missing, or that have changed since they were labelled.
        used_classes: List the classes of the written instances alone, not all classes of the model.
        rename: New name by class, for names or partition values of classes.
        thresholds: Smallest score by class, or a file with such scores. Both these and `selection.min_score` hold.
        split: Names and shares of splits, such as "train=0.8,val=0.1,test=0.1". The same image is in the same split in
            each export. Formats that cannot hold splits are written once for each, into the folder `out`.
        split_by: "key", or "folder" to keep the images of a folder in one split.
        ids_from: A COCO truth whose image ids are used. By default images are numbered from 1.
        version: Batch of an earlier state.
        as_of: Time of an earlier state.
        **storage_options: Settings of the storage, as for segray.scan.

    Raises:
        UserError: `out` exists, or the format or class is unknown. The format has no polygons or cannot hold images.
            The condition is not valid SQL, or no image is selected. Images to copy are missing or changed. Two classes
            would have one name.
        LabelSetError: The label set cannot be read, as in snapshot.snapshot, or has no commit.
    """
    target, out = _find_format(to), as_path(out)
    if polygons and to != "coco":
        hint = "Leave out --polygons. The formats yolo and labelme always have polygons."
        raise UserError("--polygons is for coco alone", found=to, hint=hint)
    copies_images = target.copies_images if copy_images is None else copy_images
    if copies_images and target.images_folder is None:
        formats = ", ".join(name for name, other in FORMATS.items() if other.images_folder is not None)
        hint = f"Leave out --copy-images, or choose a format that is a folder: {formats}."
        raise UserError("--copy-images is not for this format, which is one file", found=to, hint=hint)
    splits = None if split is None else split_names.parse(split, split_by)
    exports_each_split = splits is not None and not target.has_splits
    require_new_path(out, folder=target.is_folder or exports_each_split)
    companion = out.with_name(f"{out.stem}{target.companion}") if target.companion and not exports_each_split else None
    if companion is not None:
        require_new_path(companion)
    state = key_ranges.committed(snapshot.snapshot(root, version=version, as_of=as_of, **storage_options))
    _check_classes(selection, state)
    store = snapshot.store(storage_options)
    state = score_thresholds.applied(state, thresholds, store)
    ids = None if ids_from is None else ground_truth.read_index(as_uri(ids_from), store, KeySampler())
    chosen, images_store = _Chosen(state, selection), source_store(store, state.root)
    left_out = _left_out(chosen, images_store, skip_missing) if copies_images or skip_missing else {}
    classes = _classes(state, rename or {}, chosen.class_ids(left_out) if used_classes else None)
    renamed = other_names(lambda: chosen.keys(left_out), target.distinct) if target.distinct is not None else {}
    images = instances = 0
    with ExitStack() as outputs:
        unfinished = outputs.enter_context(atomic_output(out))
        unfinished_companion = None if companion is None else outputs.enter_context(atomic_output(companion))
        if target.is_folder or exports_each_split:
            unfinished.mkdir()
        settings = Settings(
            unfinished,
            classes,
            tolerance_px,
            polygons,
            _reader(images_store) if copies_images else None,
            images_only=selection.images_only,
            companion=unfinished_companion,
            splits=splits.names if splits is not None else (),
        )
        writers = _writers(target, settings, splits if exports_each_split else None)
        counts = Counter[str](dict.fromkeys(settings.splits, 0))
        for key, uri, size_hw, rows in chosen.images():
            if key in left_out:
                continue
            name = PurePosixPath(renamed[key].name) if key in renamed else None
            number = images + 1 if ids is None else ids.id_of(key)
            if rename:
                rows = [{**row, "class_name": classes[row["class_id"]]} for row in rows]
            of_split = "" if splits is None else splits.of(key)
            try:
                writers[of_split if exports_each_split else ""].add(
                    ExportedImage(number, key, uri, size_hw, rows, name=name, split=of_split)
                )
            except _UnreadableError as error:
                left_out |= _accepted([Fault(key, source_images.MISSING, str(error))], state.root, skip_missing)
                continue
            images, instances = images + 1, instances + len(rows)
            if splits is not None:
                counts[of_split] += 1
        for writer in writers.values():
            writer.close()
        if not images:
            hint = "Remove a condition of the selection, such as --min-score, --class or --where."
            raise UserError("no image of the label set is selected", where=state.root, found=str(selection), hint=hint)
    loss, masks = settings.loss, "polygons" if polygons else target.masks
    return ExportResult(
        str(out),
        to,
        images,
        instances,
        masks,
        loss.mean_iou,
        loss.least if loss.measured else None,
        str(out / target.images_folder)
        if target.needs_images and target.images_folder is not None and not copies_images
        else None,
        None if companion is None else str(companion),
        left_out,
        renamed,
        dict(counts),
    )


def _writers(target: Format, settings: Settings, splits: Splits | None) -> dict[str, ExportWriter]:
    """Return the writer of the export by "", or for splits, the writer of each split's own export by its name."""
    if splits is None:
        return {"": target.open(settings)}
    writers: dict[str, ExportWriter] = {}
    for name in splits.names:
        out = settings.out / (name if target.is_folder else f"{name}{target.extension}")
        if target.is_folder:
            out.mkdir()
        companion = settings.out / f"{name}{target.companion}" if target.companion else None
        writers[name] = target.open(replace(settings, out=out, companion=companion, splits=()))
    return writers


def _find_format(name: str) -> Format:
    if name not in FORMATS:
        raise UserError("no such format", found=name, hint=f"Choose from {', '.join(FORMATS)}.")
    return FORMATS[name]


def _check_classes(selection: ExportSelection, state: Snapshot) -> None:
    names = sorted(state.classes.values())
    unknown = [name for name in selection.classes if find_class(name, state.classes, state.partitions) is None]
    if unknown and names:
        raise UserError(
            "the labels have no such class, or several that are named like this", where=state.root,
            found=", ".join(unknown),
            hint=f"Choose from {', '.join(names[:10])}{' ...' if len(names) > 10 else ''}.",
        )  # fmt: skip


def _partitions(selection: ExportSelection, state: Snapshot) -> list[str]:
    """Return the partition values of the selected classes, which exist."""
    class_ids = [find_class(name, state.classes, state.partitions) for name in selection.classes]
    return [
        partition_value(name) if class_id is None else state.partitions[class_id]
        for name, class_id in zip(selection.classes, class_ids, strict=True)
    ]


def _classes(state: Snapshot, rename: Mapping[str, str], class_ids: Container[int] | None) -> dict[int, str]:
    """Return the exported classes, name by category id. class_ids: the classes to list; None for all."""
    classes = dict(state.classes)
    for old, new in rename.items():
        class_id = find_class(old, state.classes, state.partitions)
        if class_id is None or not new:
            raise UserError(
                "the class cannot be renamed", where=state.root, found=f"{old}={new}",
                hint="Give --rename the name of a class of the label set, and its new name: --rename OLD=NEW.",
            )  # fmt: skip
        classes[class_id] = new
    classes = {number: name for number, name in classes.items() if class_ids is None or number in class_ids}
    twice = [name for name, count in Counter(classes.values()).items() if count > 1]
    if twice:
        hint = "Give each class a name of its own with --rename OLD=NEW."
        raise UserError("two classes would have one name", where=state.root, found=twice[0], hint=hint)
    return classes


# ---- images to copy -------------------------------------------------------------------------------


class _UnreadableError(Exception):
    """An image that cannot be read. The text says why."""


def _reader(store: Store) -> Callable[[str], bytes]:
    """Return a function that reads an image by its URI. The function raises _UnreadableError for a missing image."""
    read = by_uri(store)

    def read_labelled(uri: str) -> bytes:
        try:
            return read(uri)
        except (FileNotFoundError, ImageError) as error:
            raise _UnreadableError(str(error)) from error

    return read_labelled


def _left_out(chosen: _Chosen, store: Store, skip_missing: bool) -> dict[str, str]:
    """Return what is wrong with the images that are missing or changed, by key, as `_accepted` does."""
    return _accepted(source_images.faults(chosen.labelled_images(), store), chosen.root, skip_missing)


def _accepted(faults: Iterable[Fault], root: str, skip_missing: bool) -> dict[str, str]:
    """Return the faults' texts by key. Raise UserError for images with faults unless such images are left out."""
    by_kind: dict[str, list[Fault]] = {}
    for fault in faults:
        by_kind.setdefault(fault.kind, []).append(fault)
    if by_kind and not skip_missing:
        found = [f"{len(all_of)} {kind}, such as {all_of[0].key}: {all_of[0].text}" for kind, all_of in by_kind.items()]
        raise UserError(
            "images to copy are missing, or have changed since they were labelled", where=root,
            found="; ".join(found),
            hint="Run `segray label` again, or leave these images out with --skip-missing.",
        )  # fmt: skip
    return {fault.key: f"{kind}: {fault.text}" for kind, all_of in by_kind.items() for fault in all_of}


# ---- the selection --------------------------------------------------------------------------------


class _Chosen:
    """The selected images of a label set, in the order of their keys. They can be read several times."""

    def __init__(self, state: Snapshot, selection: ExportSelection) -> None:
        self.root, self._state, self._selection = state.root, state, selection
        self._sampled = None if selection.sample is None else _sample_keys(state, selection)

    def images(self) -> Iterator[tuple[str, str, tuple[int, int], Sequence[Row]]]:
        """Yield key, URI, size and instances of each image."""
        for image, rows in self._rows(["uri", "width", "height"], () if self._selection.images_only else _COLUMNS):
            instances = [] if rows is None or self._selection.images_only else rows.to_pylist()
            yield image["image_key"], image["uri"], (image["height"], image["width"]), instances

    def keys(self, left_out: Container[str]) -> Iterator[str]:
        """Yield the keys of the images that are not left out."""
        for image, _ in self._rows([]):
            if image["image_key"] not in left_out:
                yield image["image_key"]

    def labelled_images(self) -> Iterator[LabelledImage]:
        """Yield each image as it was labelled."""
        for image, _ in self._rows(["uri", "version", "bytes"]):
            yield LabelledImage(image["image_key"], image["uri"], image["version"], image["bytes"])

    def class_ids(self, left_out: Container[str]) -> set[int]:
        """Return the classes of the instances of all images that are not left out."""
        class_ids = set[int]()
        for image, rows in self._rows([], ("class_id",)):
            if rows is not None and image["image_key"] not in left_out:
                class_ids.update(rows.column("class_id").to_pylist())
        return class_ids

    def _rows(
        self, columns: Sequence[str], instance_columns: Sequence[str] = ()
    ) -> Iterator[tuple[Row, pa.Table | None]]:
        for image, rows in _select(self._state, self._selection, columns, instance_columns):
            if self._sampled is None or image["image_key"] in self._sampled:
                yield image, rows


def _sample_keys(state: Snapshot, selection: ExportSelection) -> set[str]:
    """Return the keys of the `selection.sample` selected images with the smallest hashes."""
    assert selection.sample is not None
    selected = _select(state, selection, ["image_id"])
    hashed = ((image["image_id"], image["image_key"]) for image, _ in selected)
    return {key for _, key in heapq.nsmallest(selection.sample, hashed)}


def _select(
    state: Snapshot, selection: ExportSelection, image_columns: Sequence[str], instance_columns: Sequence[str] = ()
) -> Iterator[tuple[Row, pa.Table | None]]:
    """Yield the row and the instances of each selected image.

    image_columns: columns of the row besides the key.
    instance_columns: columns of the instances. Without any, instances are None unless the selection depends on them.
    """
    instance_filter = _instance_filter(selection, state)
    sql_filter = _SqlFilter(selection.where)
    ranges = key_ranges.cut(state)
    filters = [(key_range, ds.scalar(True)) for key_range in ranges]
    if selection.keys is not None:
        holding = key_ranges.holding(ranges, selection.keys)
        filters = [(key_range, key_ranges.of_images(keys)) for key_range, keys in holding]
    statuses = [status for status in selection.statuses if status != "failed"]
    status_filter = ds.field("status").isin(pa.array(statuses, pa.string()))
    for key_range, key_filter in filters:
        images = key_ranges.images(state, key_range, ["image_key", *image_columns], status_filter & key_filter)
        by_key: Mapping[str, pa.Table] = {}
        if instance_columns or selection.with_instances:
            columns = _COLUMNS if selection.where else instance_columns or ("class_id",)
            rows = key_ranges.instances(state, key_range, columns, instance_filter & key_filter)
            by_key = key_ranges.Groups(sql_filter(rows))
        for image in images.to_pylist():
            instances = by_key.get(image["image_key"])
            if instances is not None or not selection.with_instances:
                yield image, instances


def _instance_filter(selection: ExportSelection, state: Snapshot) -> pc.Expression:
    condition = ds.field("score") >= selection.min_score
    if selection.classes:
        condition &= ds.field(schema.PARTITION).isin(_partitions(selection, state))
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
