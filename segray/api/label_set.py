"""A label set as an object: open_label_set() and LabelSet.

Knows the methods that a label set has. The functions behind the commands do the work. Runs belong to api/label.py.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from segray.analytics.query import labelled_image
from segray.arguments import Count, PositiveCount, Share, Within, checked, checked_methods, nearest, shortened
from segray.errors import AccessError, ArgumentError, ImageError, InfrastructureError, QueryError, UserError
from segray.imaging import drawing
from segray.instances import Instances
from segray.label_set import snapshot
from segray.label_set.snapshot import Commit, Snapshot
from segray.limits import CONFIDENT_SCORE
from segray.storage.options import StorageKeywords
from segray.storage.uris import PathOrUrl, as_uri

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    import pandas as pd
    import polars as pl
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.dataset as ds
    from numpy.typing import NDArray

    from segray.analytics.evaluation.evaluate import Comparison, Evaluation
    from segray.analytics.evaluation.thresholds import ClassThresholds
    from segray.analytics.export.export import ExportResult
    from segray.analytics.reports.diff import LabelSetDifference
    from segray.execution.run import Summary
    from segray.imaging.decode import PillowImage
    from segray.label_set.maintenance import Maintenance
    from segray.label_set.validation import Report
    from segray.view.serve import View

TableName = Literal["instances", "images"]
_DRAWN_SCORE = 0.3
_PICTURES, _PICTURE_PX, _JPEG_QUALITY = 4, 320, 80
_CLASSES_SHOWN = 8
# Images of which Jupyter's pictures are chosen.
_CANDIDATES = 64


@checked
def open_label_set(
    root: PathOrUrl,
    *,
    version: int | None = None,
    as_of: datetime | None = None,
    storage_options: StorageKeywords | None = None,
) -> LabelSet:
    """Open a label set at one exact state.

    Args:
        root: A folder, as text or Path, or a URL; PARENT/CURRENT for the promoted label set.
        version: Batch whose state is opened. By default the latest.
        as_of: Time whose state is opened, with a time zone.
        storage_options: Access to the storage, as for `segray.scan`: {"endpoint_url": "https://...", ...}.

    Raises:
        LabelSetError: There is no label set, or no such state.
        UserError: Both version and as_of are given, as_of has no time zone, or a storage option is unknown.

    Example:
        >>> labels = segray.open_label_set("s3://labels/photos")
        >>> labels.to_pandas(columns=["image_key", "class_name", "score"])
    """
    options = storage_options or StorageKeywords()
    return LabelSet(snapshot.snapshot(root, version=version, as_of=as_of, **options), options)


@checked_methods
@dataclass(frozen=True, eq=False, repr=False)
class LabelSet:
    """A label set at one exact state: what is committed later does not change what its methods return.

    `segray.open_label_set` and `segray.label` return label sets. Open the label set again to see later batches. A label
    set may be pickled, and be read in forked and spawned processes.

    Attributes:
        state: The tables, the batch number, the classes and the model.
        storage_options: Access to the storage, as for `segray.scan`.
        summary: What the run did that returned this label set; None for a label set that was opened.
    """

    state: Snapshot
    storage_options: StorageKeywords = field(default_factory=StorageKeywords)
    summary: Summary | None = None

    # ---- facts ----

    @property
    def root(self) -> str:
        """Return the folder or URL of the label set."""
        return self.state.root

    @property
    def version(self) -> int:
        """Return the number of the last batch in this state; 0 before the first."""
        return self.state.batch

    @property
    def classes(self) -> Mapping[int, str]:
        """Return category id -> class name, for all classes of the model."""
        return dict(self.state.classes)

    @property
    def model(self) -> Mapping[str, Any]:
        """Return the model's name, thresholds and further settings, as the label set records them."""
        return dict(self.state.model)

    def history(self) -> list[Commit]:
        """Return the changes of the label set, the latest first.

        Example:
            >>> [(commit.batch, commit.committed_at) for commit in labels.history() if commit.kind == "batch"]
        """
        return snapshot.history(self.root, **self.storage_options)

    def at(self, version: int | datetime) -> LabelSet:
        """Return the label set at another state.

        Args:
            version: Number of a batch, or a time with a time zone.

        Raises:
            LabelSetError: There is no such state, or files of that state are deleted.

        Example:
            >>> labels.at(labels.version - 1).to_arrow()
        """
        moment = version if isinstance(version, datetime) else None
        number = None if isinstance(version, datetime) else version
        return open_label_set(self.root, version=number, as_of=moment, storage_options=self.storage_options)

    # ---- rows ----

    def instances(self) -> ds.Dataset:
        """Return the instances as a pyarrow Dataset, one row each; docs/data-dictionary.md says what a column means.

        Example:
            >>> labels.instances().to_table(columns=["image_key", "rle"], filter=ds.field("score") >= 0.5)
        """
        return self.state.instances

    def images(self) -> ds.Dataset:
        """Return the images as a pyarrow Dataset, one row each, with status ok, empty or failed.

        Example:
            >>> labels.images().to_table(filter=ds.field("status") == "failed").to_pylist()
        """
        return self.state.images

    def to_arrow(
        self,
        table: TableName = "instances",
        *,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
    ) -> pa.Table:
        """Return a table in memory.

        Args:
            table: instances or images.
            columns: Names of columns; None for all. Masks, in `rle`, are most of the bytes.
            filter: Condition of pyarrow, such as `pyarrow.dataset.field("score") >= 0.5`.

        Raises:
            ArgumentError: The table has no such column, or the condition does not suit the table.

        Example:
            >>> labels.to_arrow("images", columns=["image_key", "status"])
        """
        dataset = self.instances() if table == "instances" else self.images()
        _check_columns(dataset, table, columns, filter)
        return dataset.to_table(columns=None if columns is None else list(columns), filter=filter)

    def to_pandas(
        self,
        table: TableName = "instances",
        *,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
    ) -> pd.DataFrame:
        """Return a table as a pandas DataFrame. The arguments are those of `to_arrow`.

        Raises:
            UserError: pandas is not installed.

        Example:
            >>> labels.to_pandas().groupby("class_name").score.describe()
        """
        try:
            return self.to_arrow(table, columns=columns, filter=filter).to_pandas()
        except ImportError as error:
            raise _missing("pandas", error) from error

    def to_polars(
        self,
        table: TableName = "instances",
        *,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
    ) -> pl.DataFrame:
        """Return a table as a Polars DataFrame. The arguments are those of `to_arrow`.

        `segray.analytics.query.polars_frames` has lazy frames, and expressions over masks.

        Raises:
            UserError: Polars is not installed.

        Example:
            >>> labels.to_polars().group_by("class_name").len()
        """
        try:
            from segray.analytics.query import polars_frames
        except ImportError as error:
            raise _missing("polars", error) from error
        return polars_frames.frame(self.to_arrow(table, columns=columns, filter=filter))

    def sql(self, query: str, *, thresholds: Mapping[str, float] | PathOrUrl | None = None) -> duckdb.DuckDBPyRelation:
        """Return the result of a query in DuckDB, over the views instances, images and classes of this state.

        The functions over masks are those of `segray.sql`: rle_area, rle_bbox, rle_iou, rle_contains and others. The
        result prints itself, and has `df()`, `pl()`, `fetchall()`, `write_parquet()` and others.

        Args:
            query: One statement of SQL.
            thresholds: Class name -> smallest score, or a file that `segray threshold` wrote. `instances` does not
                show other instances.

        Raises:
            QueryError: The query is empty, or DuckDB refuses the query.
            UserError: DuckDB is not installed, or a threshold is wrong.
            duckdb.Error: A row cannot be computed. DuckDB computes rows when they are read.

        Example:
            >>> labels.sql("SELECT class_name, count(*) FROM instances WHERE score >= 0.5 GROUP BY ALL")
        """
        from segray.analytics.query import duckdb_views, score_thresholds

        connection = duckdb_views.connect()
        state = score_thresholds.applied(self.state, thresholds, snapshot.store(self.storage_options))
        duckdb_views.register(connection, state)
        relation: duckdb.DuckDBPyRelation | None = duckdb_views.relation(connection, query)
        if relation is None:
            hint = 'write a query, such as "SELECT count(*) FROM instances"'
            raise QueryError("the query is empty", where="query", found=repr(query), hint=hint)
        return relation

    # ---- pictures ----

    def image(self, key: str) -> tuple[NDArray[np.uint8], Instances]:
        """Return an image and its instances, of any score.

        Args:
            key: The image's key, as in the column `image_key`.

        Returns:
            The upright image, (h, w, 3) uint8 RGB, and its instances, which also have the image.

        Raises:
            UserError: The label set has no such image.
            ImageError: The image is missing, cannot be decoded, or has another size than the labelled one.

        Example:
            >>> rgb, things = labels.image("day/photo.jpg")
            >>> rgb[things[0].masks()[0]].mean(axis=0)   # mean colour of the first instance
        """
        try:
            things = labelled_image.labelled_image(self.state, key, snapshot.store(self.storage_options))
        except FileNotFoundError as error:
            hint = "mount or restore the folder of the images; the label set has the address that was labelled"
            raise ImageError("the image is gone", stage="read", where=key, found=str(error), hint=hint) from error
        assert things.image is not None
        return things.image, things

    def show(self, key: str, *, min_score: Share = _DRAWN_SCORE) -> PillowImage:
        """Return a picture of an image with its instances, as a Pillow image, which Jupyter shows.

        Args:
            key: The image's key.
            min_score: Smallest score of the instances that are drawn.

        Raises:
            UserError, ImageError: As `image`.

        Example:
            >>> labels.show("day/photo.jpg").save("drawn.png")
        """
        return drawing.pillow(self.image(key)[1].filter(min_score=min_score).draw())

    def view(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        judgements: PathOrUrl = "judgements.jsonl",
        min_score: float = CONFIDENT_SCORE,
        browser: bool = False,
    ) -> View:
        """Serve a page on which people look at this state, from a thread of this process.

        Jupyter shows the page in a frame. `stop()` of the result ends the server, as the end of the process does.

        Args:
            host: Address to listen at. Beyond this machine the page needs the token that its address has.
            port: Port to listen at; 0 for a free one.
            judgements: File for what a person says of instances, one JSON record a line.
            min_score: Smallest score of masks that are drawn at first.
            browser: Open the page in a browser.

        Raises:
            UserError: The extra `view` is not installed, or the port is taken.

        Example:
            >>> page = labels.view()
            >>> print(page.address)
        """
        from segray.view import serve

        return serve.view(
            self.root, place=serve.Place(host, port), judgements=judgements, min_score=min_score,
            version=self.version, browser=browser, **self.storage_options,
        )  # fmt: skip

    # ---- care and comparison ----

    def verify(self) -> Report:
        """Check every invariant of the label set as it is now, and change nothing. Return what was checked and found.

        Example:
            >>> assert not labels.verify().violations
        """
        from segray.label_set.validation import verify

        return verify(self.root, snapshot.store(self.storage_options).options)

    def compact(self, *, grace_hours: Count = 24) -> Maintenance:
        """Compact small files, delete files that nothing needs, and checkpoint the logs, as `segray maintain` does.

        Args:
            grace_hours: Hours for which replaced files are kept, since readers of earlier states may still use them.

        Example:
            >>> labels.compact().compacted
        """
        from segray.label_set.maintenance import maintain

        return maintain(self.root, snapshot.store(self.storage_options).options, grace_hours=grace_hours)

    def evaluate(
        self,
        truth: PathOrUrl,
        *,
        protocol: str | None = None,
        iou_types: Sequence[Literal["segm", "bbox"]] = ("segm", "bbox"),
        labelled_only: bool = False,
        allow_unlisted: bool = False,
        allow_other_classes: bool = False,
        classes_by: Literal["id", "name"] | None = None,
        class_map: Mapping[str, str | Sequence[str]] | Path | str | None = None,
        files_by: Literal["key", "basename", "suffix"] | None = None,
        strip_prefix: str = "",
        count_crowds: bool = False,
        min_score: Share = 0.5,
        thresholds: Mapping[str, float] | PathOrUrl | None = None,
        resamples: int = 0,
        by: Sequence[str] = (),
    ) -> Evaluation:
        """Compare this state with a truth: average precision of masks and boxes, and errors by kind.

        Args:
            truth: COCO or LVIS JSON. Its file_name is image_key, or the end of a path.
            protocol: Measuring protocol: coco, lvis, or a model's name for the protocol of its card.
            iou_types: Masks (segm), boxes (bbox), or both.
            labelled_only: Leave out images that failed or have no labels.
            allow_unlisted: Ignore images that the truth does not list.
            allow_other_classes: Match classes by category id, even if their names differ.
            classes_by: Match classes by id or name. By default ids if the names agree.
            class_map: Class of the truth -> class or classes of the labels; or a file with these.
            files_by: Match images by the whole name, the last part, or the end of the path.
            strip_prefix: Text to cut off each file_name of the truth.
            count_crowds: Take crowds for objects.
            min_score: Smallest score of detections whose errors are counted.
            thresholds: Class name -> smallest score, or a file that `segray threshold` wrote. Other detections are left
                out.
            resamples: Number of samples of the images, such as 2000, for intervals of AP.
            by: Parts whose AP is also given: "size", "class", "folder", or SQL on a row of `images`.

        Raises:
            SourceError: The truth cannot be read.
            UserError: The truth does not fit the label set.

        Example:
            >>> labels.evaluate("truth.json").scores["segm"].ap
        """
        from segray.analytics.evaluation.evaluate import evaluate

        return evaluate(
            self.root, truth, protocol=protocol, iou_types=iou_types, labelled_only=labelled_only,
            allow_unlisted=allow_unlisted, allow_other_classes=allow_other_classes, classes_by=classes_by,
            class_map=class_map, files_by=files_by, strip_prefix=strip_prefix, count_crowds=count_crowds,
            min_score=min_score, thresholds=thresholds, resamples=resamples, by=by, version=self.version,
            **self.storage_options,
        )  # fmt: skip

    def compare(
        self, other: LabelSet | PathOrUrl, truth: PathOrUrl, *, resamples: int = 2000, **options: Any
    ) -> Comparison:
        """Compare this state and another label set with one truth. Differences of AP have 95 % intervals.

        Args:
            other: The other label set, or its root, which the storage options of this label set reach.
            truth: COCO or LVIS JSON.
            resamples: Number of samples of the images. Both label sets are measured on the same samples.
            options: Further arguments of `evaluate`, for both.

        Raises:
            SourceError, UserError: As `evaluate`.

        Example:
            >>> change = labels.compare("labels/v2", "truth.json").differences["segm"].ap
            >>> change.value, change.low, change.high
        """
        from segray.analytics.evaluation.evaluate import compare

        root, version = (other.root, other.version) if isinstance(other, LabelSet) else (other, None)
        return compare(
            self.root, root, truth, resamples=resamples, options=options, version=self.version, version_b=version,
            **self.storage_options,
        )  # fmt: skip

    def thresholds(
        self,
        truth: PathOrUrl,
        *,
        best: str = "f1",
        iou: float = 0.5,
        iou_type: Literal["segm", "bbox"] = "segm",
        labelled_only: bool = False,
        allow_unlisted: bool = False,
        allow_other_classes: bool = False,
        classes_by: Literal["id", "name"] | None = None,
        class_map: Mapping[str, str | Sequence[str]] | Path | str | None = None,
        files_by: Literal["key", "basename", "suffix"] | None = None,
        strip_prefix: str = "",
        count_crowds: bool = False,
    ) -> Mapping[str, ClassThresholds]:
        """Return precision, recall and F1 by score for each class of a truth, and the best threshold of each.

        The arguments are those of `evaluate`, and:

        Args:
            truth: COCO or LVIS JSON.
            best: "f1" for the best F1, "precision=0.9" for the most recall with this precision, or "recall=0.8".
            iou: Least IoU of a right detection: 0.5, 0.55, ... 0.95.
            iou_type: Masks (segm) or boxes (bbox).

        Raises:
            SourceError, UserError: As `evaluate`.

        Example:
            >>> found = labels.thresholds("truth.json", best="precision=0.9")
            >>> smallest = {name: of_class.best.threshold for name, of_class in found.items() if of_class.best}
            >>> labels.export("coco", "sure.json", thresholds=smallest)
        """
        from segray.analytics.evaluation.evaluate import evaluate

        return evaluate(
            self.root, truth, iou_types=[iou_type], labelled_only=labelled_only, allow_unlisted=allow_unlisted,
            allow_other_classes=allow_other_classes, classes_by=classes_by, class_map=class_map, files_by=files_by,
            strip_prefix=strip_prefix, count_crowds=count_crowds, best=best, threshold_iou=iou, version=self.version,
            **self.storage_options,
        ).thresholds  # fmt: skip

    def export(
        self,
        to: str,
        out: PathOrUrl,
        *,
        classes: Sequence[str] = (),
        min_score: Share = 0.0,
        min_area: Count = 0,
        max_area: Count | None = None,
        statuses: Sequence[Literal["ok", "empty"]] = ("ok", "empty"),
        where: str | None = None,
        with_instances: bool = False,
        sample: PositiveCount | None = None,
        polygons: bool = False,
        tolerance_px: Annotated[float, Within(0)] = 0.0,
        copy_images: bool | None = None,
        skip_missing: bool = False,
        used_classes: bool = False,
        rename: Mapping[str, str] | None = None,
        thresholds: Mapping[str, float] | PathOrUrl | None = None,
        split: str | None = None,
        split_by: Literal["key", "folder"] = "key",
        ids_from: PathOrUrl | None = None,
    ) -> ExportResult:
        """Write this state in the format of another tool. An export is complete, or nothing is written.

        Args:
            to: coco, coco-results, yolo, roboflow, voc, csv, label-studio, cvat, fiftyone, labelme, imagefolder,
                png-instance or png-semantic.
            out: New file or folder; an empty folder is allowed.
            classes: Names of classes; empty for all.
            min_score: Smallest score.
            min_area: Smallest area of masks, in pixels.
            max_area: Largest area of masks, in pixels.
            statuses: Status of images.
            where: SQL condition on an instance.
            with_instances: Leave out images without an exported instance.
            sample: Number of images in an even sample.
            polygons: Write polygons instead of run lengths, for coco.
            tolerance_px: Largest distance of polygons from the pixels' edges, in pixels.
            copy_images: Copy the images too. By default only for imagefolder.
            skip_missing: Leave out images that are missing, or changed since they were labelled.
            used_classes: List the classes of exported instances only.
            rename: Class name -> name in the export.
            thresholds: Class name -> smallest score, or a file that `segray threshold` wrote.
            split: Names and shares of splits, such as "train=0.8,val=0.1,test=0.1".
            split_by: "folder" keeps the images of a folder in one split.
            ids_from: COCO JSON whose image ids are used.

        Raises:
            UserError: The format is unknown, the place is taken, or the selection is wrong.

        Example:
            >>> labels.export("coco", "coco.json", min_score=0.5).instances
        """
        from segray.analytics.export.export import ExportSelection, export

        selection = ExportSelection(classes, min_score, min_area, max_area, statuses, where, with_instances, sample)
        return export(
            self.root, to, out, selection, polygons=polygons, tolerance_px=tolerance_px, copy_images=copy_images,
            skip_missing=skip_missing, used_classes=used_classes, rename=rename or {},
            thresholds=thresholds, split=split, split_by=split_by, ids_from=ids_from, version=self.version,
            **self.storage_options,
        )  # fmt: skip

    def report(
        self,
        out: PathOrUrl = "report.html",
        *,
        truth: PathOrUrl | None = None,
        images: Annotated[int, Within(0, 60)] = 12,
        thresholds: Mapping[str, float] | PathOrUrl | None = None,
    ) -> str:
        """Write one web page about this state: counts, classes, scores, failures and images to look at.

        Args:
            out: File or URL of the page.
            truth: COCO or LVIS JSON. The page then shows average precision too.
            images: Number of images on the page, 0 to 60.
            thresholds: Class name -> smallest score, or a file that `segray threshold` wrote. The page leaves out other
                instances.

        Returns:
            The address of the page.

        Raises:
            UserError, SourceError: As `evaluate`.

        Example:
            >>> labels.report("report.html", truth="truth.json")
        """
        from segray.analytics.reports import report

        report.write(
            self.root, out, truth=truth, images=images, thresholds=thresholds, version=self.version,
            **self.storage_options,
        )  # fmt: skip
        return as_uri(out)

    def diff(
        self,
        other: LabelSet | PathOrUrl,
        *,
        fail_if: Sequence[str] = (),
        min_score: Share = 0.0,
        most: PositiveCount = 20,
        draw: PathOrUrl | None = None,
        class_map: Mapping[str, str | Sequence[str]] | Path | str | None = None,
        shared_classes: bool = False,
    ) -> LabelSetDifference:
        """Compare another label set of the same images with this one: instances kept, moved, renamed, gained and lost.

        Args:
            other: The other label set, reached by its own storage options; or its root, reached by those of this label
                set. Gained instances are those that only `other` has.
            fail_if: Gates, such as "lost>2%"; `failed_gates` of the result names those that are true.
            min_score: Smallest score of compared instances.
            most: Number of most changed images to list.
            draw: New PNG with the most changed images, this label set beside the other.
            class_map: Class of this label set -> class of the other, for classes of two names; or a file with these.
            shared_classes: Leave out the classes that only one of the label sets has.

        Raises:
            UserError: A gate cannot be read, or the label sets have no image in common.

        Example:
            >>> labels.diff("labels/v2", fail_if=["lost>2%"]).failed_gates
        """
        from segray.analytics.reports.diff import diff

        root, version, options = (
            (other.root, other.version, other.storage_options)
            if isinstance(other, LabelSet)
            else (other, None, self.storage_options)
        )
        return diff(
            self.root, root, fail_if=fail_if, min_score=min_score, most=most, draw=draw, class_map=class_map,
            shared_classes=shared_classes, version_a=self.version, version_b=version, storage_options_b=options,
            **self.storage_options,
        )  # fmt: skip

    # ---- how it shows itself ----

    def __repr__(self) -> str:
        rows = self.state.rows
        counts = f"{rows['images']:,} images, {rows['instances']:,} instances"
        return f"LabelSet({self.root!r}, version {self.version}: {counts}, {len(self.classes)} classes)"

    def _repr_html_(self) -> str:
        """Return the counts, the most frequent classes and a few pictures, for Jupyter."""
        names = {value: self.classes[class_id] for class_id, value in self.state.partitions.items()}
        by_class = list(self.state.rows_by_class.items())
        rows = [f"<tr><td>{html.escape(names.get(name, name))}</td><td>{n:,}</td></tr>" for name, n in by_class]
        more = f"<p>and {len(rows) - _CLASSES_SHOWN} more classes</p>" if len(rows) > _CLASSES_SHOWN else ""
        return (
            f"<p>{html.escape(repr(self))}</p><table><tr><th>class</th><th>instances of any score</th></tr>"
            + "".join(rows[:_CLASSES_SHOWN])
            + f"</table>{more}<p>{''.join(self._figures())}</p>"
        )

    def _figures(self) -> list[str]:
        """Return up to _PICTURES pictures as HTML: of the first images with most instances. Few images are read."""
        columns = ["image_key", "n_instances", "status"]
        first = self.images().head(_CANDIDATES, columns=columns).to_pylist()
        keys = [row["image_key"] for row in sorted(first, key=lambda row: -row["n_instances"]) if row["status"] == "ok"]
        figures = []
        for key in keys[:_PICTURES]:
            try:
                things = self.image(key)[1].filter(min_score=_DRAWN_SCORE)
            except (ImageError, AccessError, InfrastructureError) as error:
                figures.append(f"{html.escape(f'{key}: {error.short()}')}<br>")
                continue
            jpeg = drawing.jpeg(things.drawn_at(_PICTURE_PX), _JPEG_QUALITY)
            source = f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
            figures.append(f'<img alt="{html.escape(key)}" title="{html.escape(key)}" src="{source}"> ')
        return figures


def _missing(package: str, error: ImportError) -> UserError:
    return UserError(f"{package} is not installed", found=str(error), hint=f"run `pip install {package}`")


def _check_columns(dataset: ds.Dataset, table: str, columns: Sequence[str] | None, condition: object) -> None:
    """Raise ArgumentError for a column that the table lacks, and for a condition that does not suit the table."""
    import pyarrow as pa

    names = dataset.schema.names
    for column in columns or ():
        if column not in names:
            meant = nearest(column, names)
            hint = f"did you mean {meant}?" if meant else f"the columns are {', '.join(names)}"
            raise ArgumentError(f"the table {table} has no such column", where="columns", found=repr(column), hint=hint)
    if condition is None:
        return
    try:
        dataset.schema.empty_table().filter(condition)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowKeyError, pa.ArrowTypeError, TypeError) as error:
        found = f"{shortened(condition)}: {str(error).splitlines()[0]}"
        hint = 'give an expression of pyarrow, such as pyarrow.dataset.field("score") >= 0.5'
        raise ArgumentError("the condition does not suit the table", where="filter", found=found, hint=hint) from error
