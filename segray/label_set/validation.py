"""Validation of a label set: checks every invariant against storage, and names each violation.

Knows the invariants. Changes nothing. Files are read one row group at a time. Memory holds about 30 bytes for each
image, and the plan of one run at a time.

A violation is a breach that readers of the log can meet. A warning concerns only readers of the plain glob, or a
state that the next run repairs by itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from segray import rle
from segray.errors import LabelSetError, SegrayError
from segray.instances import image_id
from segray.label_set import plan, schema
from segray.label_set.class_names import partition_folder
from segray.label_set.delta_log import DataFile, live_files
from segray.label_set.run_records import Run
from segray.label_set.snapshot import states_to_verify, table_uri
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import PathOrUrl, as_uri, join

_ROUNDING_PX = 0.01  # x + w of a clipped box, each rounded to float32
_MAX_EXAMPLES = 1000  # most images named for each kind of violation that spans both tables


@dataclass(frozen=True)
class Violation:
    """A violated invariant.

    kind: which invariant. where: file, image or run. found: the actual values, and the number of rows.
    """

    kind: str
    where: str
    found: str


@dataclass(frozen=True)
class Report:
    """The result of a validation.

    counts: the last complete batch as `batch`, and the numbers of files, images, instances, runs, unlisted_files.
    """

    violations: tuple[Violation, ...]
    warnings: tuple[str, ...]
    counts: Mapping[str, int]

    @property
    def exit_code(self) -> int:
        """Return the exit code of `segray verify`: 3 if there are violations, else 0."""
        return 3 if self.violations else 0


@dataclass
class _Findings:
    violations: list[Violation] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    has_unread_rows: bool = False  # makes counts across tables meaningless

    def add(self, kind: str, where: str, found: str) -> None:
        self.violations.append(Violation(kind, where, found))

    def add_rows(self, kind: str, where: str, bad: NDArray[np.bool_], describe: Callable[[int], str]) -> None:
        """Add one violation for all bad rows of a row group, with the first bad row as the example.

        bad: (rows,) bool. describe: returns the description of a row.
        """
        if bad.any():
            rows = int(bad.sum())
            count = "1 row" if rows == 1 else f"{rows} rows"
            self.add(kind, where, f"{describe(int(bad.argmax()))} ({count})")


def verify(root: PathOrUrl, options: StorageOptions) -> Report:
    """Read the whole label set as of the last complete batch. Return all violations and warnings.

    Raises LabelSetError where there is no label set, and AccessError or InfrastructureError as Store does.
    """
    root, store, findings = as_uri(root), Store(options), _Findings()
    classes = _check_identity(root, store, findings)
    # Runs are read before the tables, because the tables as read would lack rows of a run that ends meanwhile.
    finished_runs = _finished_runs(root, store, findings)
    files = _files_of_tables(root, options, findings)
    for name in files:
        _check_listing(root, name, files[name], store, findings)
    images = _ImagesReader(root, store, findings, findings.counts["batch"])
    for file in files["images"]:
        images.read(file)
    images.close()
    instances = _InstancesReader(root, store, findings, findings.counts["batch"], classes, images)
    for file in files["instances"]:
        instances.read(file)
    instances.close(files["images"])
    _check_plans(root, finished_runs, store, images.ids, findings)
    counts = {"images": images.rows, "instances": instances.rows, "files": sum(map(len, files.values()))}
    return Report(tuple(findings.violations), tuple(findings.warnings), {**findings.counts, **counts})


# ---- identity and batches -------------------------------------------------------------------------


def _check_identity(root: str, store: Store, findings: _Findings) -> dict[str, tuple[int, str]]:
    """Check label_set.json. Return category id and name of each class, by partition value.

    An unusable label_set.json is a violation and gives no classes.
    """
    uri = join(root, "_segray", "label_set.json")
    try:
        record = json.loads(store.read(uri))
        classes = {entry["slug"]: (int(entry["id"]), str(entry["name"])) for entry in record["classes"]}
        if record["schema_version"] != schema.VERSION:
            findings.add("label_set", uri, f"schema version {record['schema_version']}, not {schema.VERSION}")
        if not record["fingerprint"] or len(classes) != len(record["classes"]):
            findings.add("label_set", uri, "no fingerprint, or two classes with one partition value")
    except FileNotFoundError:
        findings.add("label_set", uri, "no such file")
        return {}
    except (ValueError, KeyError, TypeError) as exc:
        findings.add("label_set", uri, f"not a label set's record: {type(exc).__name__}: {exc}")
        return {}
    return classes


def _files_of_tables(root: str, options: StorageOptions, findings: _Findings) -> dict[str, list[DataFile]]:
    """Return the files of both tables as of the last batch that both have, by table."""
    images, instances, images_batch, instances_batch = states_to_verify(root, options)
    findings.counts["batch"] = images_batch
    if instances_batch == images_batch + 1:
        findings.warnings.append(
            f"batch {instances_batch} has reached `instances` but not `images`. The next `segray label` or "
            f"`segray maintain` finishes the batch. The label set was checked as of batch {images_batch}."
        )
    elif instances_batch != images_batch:
        findings.add("tables_apart", root, f"instances at batch {instances_batch}, images at batch {images_batch}")
    return {"images": live_files(images), "instances": live_files(instances)}


def _check_listing(root: str, name: str, files: Iterable[DataFile], store: Store, findings: _Findings) -> None:
    """Check that the log's files exist with their sizes. Warn of other files that a plain glob would read."""
    sizes_bytes = {
        entry.key: entry.size_bytes
        for entry in store.list(table_uri(root, name))
        if entry.key.endswith(".parquet") and not entry.key.startswith("_delta_log/")
    }
    for file in files:
        size_bytes = sizes_bytes.pop(file.path, None)
        where = join(name, file.path)
        if size_bytes is None:
            findings.add("file_missing", where, f"no such file; the log says {file.size_bytes} bytes")
        elif size_bytes != file.size_bytes:
            findings.add("file_size", where, f"{size_bytes} bytes; the log says {file.size_bytes}")
    unlisted = sizes_bytes.keys()  # The log's files are removed above.
    findings.counts["unlisted_files"] = findings.counts.get("unlisted_files", 0) + len(unlisted)
    if unlisted:
        findings.warnings.append(
            f"{name}: the log does not name {len(unlisted)} data files, such as {min(unlisted)}. These files were "
            "replaced, or an interrupted merge left them. Only readers of the plain glob see the files. "
            "`segray maintain` deletes the files after its grace time."
        )


# ---- rows -----------------------------------------------------------------------------------------


@dataclass
class _TableReader:
    """The common part of reading the files of either table. batch: the last batch that both tables have."""

    root: str
    store: Store
    findings: _Findings
    batch: int
    rows: int = 0

    def groups(self, name: str, file: DataFile, expected: pa.Schema) -> Iterator[pa.Table]:
        """Yield the row groups of a file, with verified checksums. A file that cannot be read is a violation."""
        where = join(name, file.path)
        try:
            with (
                self.store.reader(join(table_uri(self.root, name), file.path)) as source,
                pq.ParquetFile(source, page_checksum_verification=True) as parquet,
            ):
                if parquet.metadata.num_rows != file.rows:
                    self.findings.add("file_rows", where, f"{parquet.metadata.num_rows}; the log says {file.rows}")
                if not parquet.schema_arrow.equals(expected):
                    self.findings.add("file_schema", where, _difference(parquet.schema_arrow, expected))
                    self.findings.has_unread_rows = True
                    return
                for group in range(parquet.num_row_groups):
                    table = parquet.read_row_group(group)
                    self.rows += table.num_rows
                    yield table
        except FileNotFoundError:
            self.findings.has_unread_rows = True  # `_check_listing` reports the missing file.
        except (pa.ArrowException, OSError) as exc:
            self.findings.has_unread_rows = True
            self.findings.add("file_unreadable", where, f"{type(exc).__name__}: {exc}"[:300])

    def check(self, kind: str, where: str, rows: pa.Table, bad: NDArray[np.bool_], *columns: str) -> None:
        """Add a violation for bad rows, named by image_key and the values of `columns`. bad: (rows,) bool."""

        def example(row: int) -> str:
            values = {name: rows.column(name)[row].as_py() for name in ("image_key", *columns)}
            return ", ".join(f"{name} {value!r}" for name, value in values.items())[:300]

        self.findings.add_rows(kind, where, bad, example)

    def check_common(self, where: str, rows: pa.Table) -> NDArray[np.uint64]:
        """Check what holds for rows of both tables. Return the first 64 bits of the images' ids, (rows,) uint64."""
        for column in rows.schema:
            if not column.nullable and rows.column(column.name).null_count:
                self.check("null", where, rows, _numpy(pc.is_null(rows.column(column.name))), column.name)
        keys = pc.fill_null(rows.column("image_key"), "").combine_chunks().dictionary_encode()
        if isinstance(keys, pa.ChunkedArray):
            keys = keys.combine_chunks()
        distinct_ids = [image_id(key) for key in keys.dictionary.to_pylist()]
        expected = pa.array(distinct_ids, pa.string()).take(keys.indices)
        self.check("image_id", where, rows, _is_false(pc.equal(rows.column("image_id"), expected)), "image_id")
        batches = _column(rows, "batch")
        self.check("batch", where, rows, (batches < 1) | (batches > self.batch), "batch")
        return np.asarray(_short_ids(distinct_ids)[keys.indices.to_numpy()], np.uint64)


class _ImagesReader(_TableReader):
    """A reader of `images`.

    After `close`, ids, (n,) uint64 in ascending order, and n_instances, (n,) int64, hold each image once. repeated_ids,
    uint64, holds the images with several rows.
    """

    def __init__(self, root: str, store: Store, findings: _Findings, batch: int) -> None:
        super().__init__(root, store, findings, batch)
        self._ids: list[NDArray[np.uint64]] = []
        self._counts: list[NDArray[np.int64]] = []
        self.ids = np.zeros(0, np.uint64)
        self.n_instances = np.zeros(0, np.int64)
        self.repeated_ids = np.zeros(0, np.uint64)

    def read(self, file: DataFile) -> None:
        where = join("images", file.path)
        for rows in self.groups("images", file, schema.IMAGES):
            self._ids.append(self.check_common(where, rows))
            self._counts.append(_column(rows, "n_instances"))
            self._check_status(where, rows)

    def _check_status(self, where: str, rows: pa.Table) -> None:
        status, counts = rows.column("status"), _column(rows, "n_instances")
        ok, empty, failed = (~_is_false(pc.equal(status, name)) for name in ("ok", "empty", "failed"))
        self.check("status", where, rows, ~(ok | empty | failed), "status")
        bad_count = (ok & (counts < 1)) | (~ok & (counts != 0))
        self.check("status_count", where, rows, bad_count, "status", "n_instances")
        stage, error, message = (_numpy(pc.is_valid(rows.column(name))) for name in ("stage", "error", "message"))
        bad_reason = np.where(failed, ~(stage & error & message), stage | error | message)
        self.check("failure", where, rows, bad_reason, "status", "stage", "error", "message")
        min_px = np.where(failed, 0, 1)  # The size of a failed image may be unknown.
        bad_size = (_column(rows, "width") < min_px) | (_column(rows, "height") < min_px)
        self.check("size", where, rows, bad_size, "width", "height")

    def close(self) -> None:
        ids = np.concatenate([self.ids, *self._ids])
        counts = np.concatenate([self.n_instances, *self._counts])
        self._ids, self._counts = [], []
        self.ids, first, rows = np.unique(ids, return_index=True, return_counts=True)
        self.n_instances, self.repeated_ids = counts[first], self.ids[rows > 1]

    def positions(self, ids: NDArray[np.uint64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the position of each id among `self.ids`, (n,) int64, and whether the id is present, (n,) bool."""
        if not len(self.ids):
            return np.zeros(len(ids), np.int64), np.zeros(len(ids), np.bool_)
        positions = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return positions, self.ids[positions] == ids


class _InstancesReader(_TableReader):
    """A reader of `instances`, which compares rows with the class list and the images."""

    def __init__(
        self,
        root: str,
        store: Store,
        findings: _Findings,
        batch: int,
        classes: Mapping[str, tuple[int, str]],
        images: _ImagesReader,
    ) -> None:
        super().__init__(root, store, findings, batch)
        self._classes, self._images = classes, images
        self._counts = np.zeros(len(images.ids), np.int64)
        # The sum of a pseudo-random value per instance number shows that the numbers are 0..n-1, in any order.
        self._marks = np.zeros(len(images.ids), np.uint64)

    def read(self, file: DataFile) -> None:
        where = join("instances", file.path)
        expected_folder = partition_folder(file.partition or "")
        if file.path.rpartition("/")[0] != expected_folder:
            self.findings.add("partition", where, f"the log says it belongs to {expected_folder}")
        for rows in self.groups("instances", file, schema.INSTANCES):
            self._count_rows(where, rows, self.check_common(where, rows))
            self._check_values(where, rows, file.partition or "")

    def _count_rows(self, where: str, rows: pa.Table, ids: NDArray[np.uint64]) -> None:
        positions, has_image = self._images.positions(ids)
        if not self.findings.has_unread_rows:
            self.check("no_image", where, rows, ~has_image, "instance")
        numbers = _column(rows, "instance")
        np.add.at(self._counts, positions[has_image], 1)
        np.add.at(self._marks, positions[has_image], _mark(numbers[has_image]))

    def _check_values(self, where: str, rows: pa.Table, partition: str) -> None:
        if self._classes:
            class_id, name = self._classes.get(partition, (-1, ""))
            bad_class = _is_false(pc.equal(rows.column("class_name"), name)) | (_column(rows, "class_id") != class_id)
            self.check("class", where, rows, bad_class, "class_id", "class_name")
        score = _column(rows, "score")
        self.check("score", where, rows, ~((score >= 0) & (score <= 1)), "score")
        width, height = _column(rows, "width"), _column(rows, "height")
        self.check("size", where, rows, (width < 1) | (height < 1), "width", "height")
        x, y, w, h = (_column(rows, f"bbox_{side}").astype(np.float64) for side in "xywh")
        inside = (x >= 0) & (y >= 0) & (w >= 0) & (h >= 0)
        inside &= (x + w <= width + _ROUNDING_PX) & (y + h <= height + _ROUNDING_PX)
        self.check("bbox", where, rows, ~inside, *schema.BBOX, "width", "height")
        self._check_masks(where, rows)

    def _check_masks(self, where: str, rows: pa.Table) -> None:
        sizes_hw = np.stack([_column(rows, "height"), _column(rows, "width")], axis=1).astype(np.int64)
        pixels = rle.pixels(pc.fill_null(rows.column("rle"), "").to_pylist(), sizes_hw)
        self.check("rle", where, rows, pixels < 0, "rle", "height", "width")
        area = _column(rows, "area")
        self.check("area", where, rows, (pixels >= 0) & ((area != pixels) | (area < 1)), "area", "rle")

    def close(self, files: Iterable[DataFile]) -> None:
        """Check what only both tables together show. files: the files of `images`, which give the images' keys."""
        images, findings = self._images, self.findings
        if findings.has_unread_rows:
            findings.warnings.append("some files could not be read, so rows were not counted across the tables")
            return
        once = ~np.isin(images.ids, images.repeated_ids)
        right_count = self._counts == images.n_instances
        bad_images = {
            "image_twice": ~once,
            "n_instances": once & ~right_count,
            "instance_numbers": once & right_count & (self._marks != _marks_up_to(images.n_instances)),
        }
        for kind, bad in bad_images.items():
            if bad.any():
                self._add_images(kind, np.flatnonzero(bad), files)

    def _add_images(self, kind: str, positions: NDArray[np.int64], files: Iterable[DataFile]) -> None:
        """Add a violation for each of the first images at `positions` among the images' ids."""
        if len(positions) > _MAX_EXAMPLES:
            self.findings.warnings.append(f"{kind}: {len(positions)} images, of which {_MAX_EXAMPLES} are named")
        bad_ids = self._images.ids[positions[:_MAX_EXAMPLES]]
        for file in files:
            uri = join(table_uri(self.root, "images"), file.path)
            with self.store.reader(uri) as source:
                images = pq.read_table(source, columns=["image_key", "n_instances"])
            ids = _short_ids([image_id(key) for key in images.column("image_key").to_pylist()])
            for row in np.flatnonzero(np.isin(ids, bad_ids)):
                key, n_instances = (images.column(name)[int(row)].as_py() for name in ("image_key", "n_instances"))
                rows = self._counts[int(np.searchsorted(self._images.ids, ids[row]))]
                self.findings.add(kind, key, f"n_instances {n_instances}, {rows} rows ({file.path})")


def _short_ids(ids: list[str]) -> NDArray[np.uint64]:
    """Return the first 64 bits of image ids, (n,) uint64."""
    return np.frombuffer(bytes.fromhex("".join(hex_id[:16] for hex_id in ids)), ">u8").astype(np.uint64)


def _mark(numbers: NDArray[Any]) -> NDArray[np.uint64]:
    """Return a well-mixed 64-bit value for each number (the finaliser of SplitMix64, Steele et al., 2014)."""
    z = (numbers.astype(np.int64).astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _marks_up_to(counts: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Return the sum of the marks of 0..count-1 for each count, (n,) uint64."""
    largest = int(counts.max(initial=0))
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(_mark(np.arange(largest)), dtype=np.uint64)])
    return sums[np.maximum(counts, 0)]


def _column(rows: pa.Table, name: str) -> NDArray[Any]:
    """Return a column of numbers, (rows,). A null becomes 0."""
    column = rows.column(name)
    return np.asarray((pc.fill_null(column, 0) if column.null_count else column).to_numpy())


def _numpy(mask: pa.ChunkedArray) -> NDArray[np.bool_]:
    return np.asarray(mask.to_numpy(), np.bool_)


def _is_false(mask: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Return where a comparison is false or null, (rows,) bool."""
    return ~_numpy(pc.fill_null(mask, False))


def _difference(actual: pa.Schema, expected: pa.Schema) -> str:
    actual_columns, expected_columns = (
        [str(column) if column.nullable else f"{column} not null" for column in columns]
        for columns in (actual, expected)
    )
    missing = [column for column in expected_columns if column not in actual_columns]
    unknown = [column for column in actual_columns if column not in expected_columns]
    return f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"[:300]


# ---- runs -----------------------------------------------------------------------------------------


def _finished_runs(root: str, store: Store, findings: _Findings) -> list[Run]:
    """Return the runs whose records say that all their planned work is committed."""
    runs = [Run(root, name.rstrip("/")) for name in store.names(join(root, "_segray", "runs"))]
    findings.counts["runs"] = len(runs)
    finished = []
    for run in runs:
        try:
            if run.record(store).get("state") == "done":
                finished.append(run)
        except FileNotFoundError:
            continue  # The run was killed before its record was written.
        except LabelSetError as exc:
            findings.add("run", run.id, f"{exc.what}: {exc.found}")
    return finished


def _check_plans(
    root: str, finished_runs: Iterable[Run], store: Store, ids: NDArray[np.uint64], findings: _Findings
) -> None:
    """Check that every image of a finished run's plan has its row.

    Images that the run or a later run was to retire need no row.
    """
    finished_ids, retired = {run.id for run in finished_runs}, set[str]()
    for name in reversed(store.names(join(root, "_segray", "runs"))):
        run = Run(root, name.rstrip("/"))
        try:
            frozen = plan.load(store, run.folder)
            for part in () if frozen is None else frozen.retired:
                retired.update(plan.old_rows(store, run.folder, part).column("image_key").to_pylist())
            is_finished = run.id in finished_ids
            missing = _keys_without_row(frozen, ids) - retired if frozen and is_finished else set()
        except (SegrayError, FileNotFoundError, pa.ArrowException) as exc:
            findings.add("run", run.id, f"the plan of the run cannot be read: {exc}"[:300])
            continue
        if frozen is None and is_finished:
            findings.add("run", run.id, "the run is done, but has no complete plan")
        elif frozen and missing and not findings.has_unread_rows:
            found = f"{len(missing)} of {frozen.images} images have no row, first {min(missing)!r}"
            findings.add("planned_image", run.id, found)


def _keys_without_row(frozen: plan.Plan, ids: NDArray[np.uint64]) -> set[str]:
    """Return the keys of the plan's images whose short ids are not among `ids`."""
    missing: set[str] = set()
    for part in frozen.parts():
        keys = part.column("image_key").to_pylist()
        has_row = np.isin(_short_ids([image_id(key) for key in keys]), ids)
        missing.update(keys[index] for index in np.flatnonzero(~has_row))
    return missing
