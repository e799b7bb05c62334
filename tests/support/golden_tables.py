"""Tables to compare with golden ones: of a label set made from one seed, and of data files made from fixed rows.

`python tests/support/golden_tables.py` writes the golden files again. Do that only when tables are meant to change, and
say so in the changelog: a label set that was begun before must go on to be valid.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import label_sets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from golden_files import GOLDEN

from segray import config
from segray.execution.worker_spec import WorkerSpec, build
from segray.instances import ImageRef
from segray.label_set import batches, commit, merge, run_records, schema
from segray.label_set.class_names import partition_value
from segray.label_set.parquet_writer import DataFileWriter, SpillableRows
from segray.label_set.run_records import LabelSetIdentity
from segray.limits import ImageLimits
from segray.models import resolve
from segray.storage.store import StorageOptions, Store
from segray.synthetic import dataset
from segray.tasks import Task

LABEL_SET, DATA_FILES = GOLDEN / "label_set.json", GOLDEN / "data_files.json"
SCENES, SEED = 4, 15
# The scores lie above 0.79 or below 0.25, and those of an image are 0.004 apart or more. So rounding, which differs
# between CPUs, neither adds nor removes an instance, and does not change their order.
MODEL = config.ModelSettings(name="stickers", precision="f32", score_threshold=0.4)

Table = list[dict[str, Any]]


# ---- a label set ----------------------------------------------------------------------------------


def draw(folder: Path) -> list[ImageRef]:
    """Draw the scenes, a picture that shows nothing and a file that is no picture."""
    dataset.write(folder, SCENES, SEED)
    images = folder / dataset.IMAGES
    cv2.imwrite(str(images / "nothing.png"), np.full((48, 64, 3), 128, np.uint8))
    (images / "broken.jpg").write_bytes(b"<html>")
    return [ImageRef(path.name, str(path), "1", path.stat().st_size) for path in sorted(images.iterdir())]


def label(root: Path, refs: list[ImageRef]) -> None:
    """Label these images by the embedded model, in this process, and commit them as one batch."""
    run, options = run_records.new_run(str(root)), StorageOptions()
    model = resolve.resolve(MODEL.name)
    labels = tuple((i, name, partition_value(name)) for i, name in model.adapter.labels.items())
    commit.create_tables(run.root, options)
    run_records.create_or_check(Store(), run.root, LabelSetIdentity(MODEL.name, {}, labels))
    labeller, _ = build(WorkerSpec(MODEL, model.fingerprint, ImageLimits(), options, run.staged), "CPU", 1)
    try:
        (report,) = labeller.label(Task(0, 0, len(refs)), refs).staged
    finally:
        labeller.close()
    batch = merge.merge(run, 1, batches.Inputs((report.staged,), {"run_id": run.id}, 1000), options)
    commit.commit(batch, run, options, Store())


def tables(root: Path, folder: Path) -> dict[str, Table]:
    """Return the rows of both tables by key and instance, without what differs from run to run; URIs below folder."""
    found = {name: [row for key in sorted(rows) for row in rows[key]]
             for name, rows in zip(("instances", "images"), label_sets.contents(root), strict=True)}  # fmt: skip
    for row in found["images"]:
        row["uri"] = str(Path(row["uri"]).relative_to(folder))
    return found


def label_set(folder: Path) -> dict[str, Table]:
    """Draw and label in a folder; return the tables."""
    label(folder / "labels", draw(folder / "scenes"))
    return tables(folder / "labels", folder / "scenes" / dataset.IMAGES)


# ---- data files -----------------------------------------------------------------------------------

FACTS = {"run_id": "r", "model": "stickers"}
FILE_ROWS = schema.INSTANCES_WRITE["row_group_size"] + 300


def instances(count: int, class_id: int, class_name: str) -> pa.Table:
    """Return rows of one class; each value follows from the number of its row."""
    n = np.arange(count)
    sides = {name: ((n * 7 + i) % 500 / 4) for i, name in enumerate(schema.BBOX)}
    columns: dict[str, Any] = {
        "image_id": [f"{i * 2654435761 % 2**64:016x}" for i in range(count)],
        "image_key": [f"{i // 3:06d}.jpg" for i in range(count)],
        "instance": n % 3,
        "class_id": np.full(count, class_id),
        "class_name": [class_name] * count,
        "score": (1000 - n % 997) / 1024,
        **sides,
        "area": n * 31 % 10_007 + 1,
        "height": 480 + n // 3 % 2,
        "width": 640 - n // 3 % 5,
        "rle": [f"{i:x}O1O2N{i * 2654435761 % 2**32:x}" for i in range(count)],
        "batch": np.ones(count),
    }
    return pa.table([pa.array(columns[f.name]).cast(f.type) for f in schema.INSTANCES], schema=schema.INSTANCES)


def images(count: int) -> pa.Table:
    """Return rows of images, of which every fifth failed."""
    failed = [i % 5 == 4 for i in range(count)]
    columns: dict[str, list[Any]] = {
        "image_id": [f"{i:016x}" for i in range(count)],
        "image_key": [f"{i:06d}.jpg" for i in range(count)],
        "uri": [f"s3://bucket/{i:06d}.jpg" for i in range(count)],
        "version": [f"etag-{i}" for i in range(count)],
        "bytes": [1000 + i for i in range(count)],
        "width": [0 if bad else 640 for bad in failed],
        "height": [0 if bad else 480 for bad in failed],
        "status": ["failed" if bad else "ok" for bad in failed],
        "n_instances": [0 if bad else 3 for bad in failed],
        "stage": ["decode" if bad else None for bad in failed],
        "error": ["ImageError" if bad else None for bad in failed],
        "message": ["not an image" if bad else None for bad in failed],
        "attempts": [1] * count,
        "batch": [1] * count,
        "run_id": ["r"] * count,
        "labelled_at": [datetime(2026, 1, 1, tzinfo=UTC)] * count,
        "orientation": [1 + i % 8 for i in range(count)],
    }
    return pa.table([pa.array(columns[f.name], f.type) for f in schema.IMAGES], schema=schema.IMAGES)


def data_files(folder: Path) -> list[dict[str, Any]]:
    """Write fixed rows as segray does; return what is to be said of each file."""
    fixed = {
        "instances": [instances(FILE_ROWS + 200, 44, "bottle"), instances(5, 13, "stop sign")],
        "images": [images(70)],
    }
    writer, found = DataFileWriter(Store(), str(folder), "b00001-0", FACTS, FILE_ROWS), []
    for name, parts in fixed.items():
        rows = SpillableRows()
        for part in parts:
            rows.add(part)
        for file in writer.write(name, rows):
            path = folder / name / file.path
            assert file.size_bytes == path.stat().st_size
            listed = {"table": name, "path": file.path, "partition": file.partition, "delta": json.loads(file.stats)}
            found.append({**listed, **describe(path)})
    return found


def describe(path: Path) -> dict[str, Any]:
    """Return all of a Parquet file but its compressed bytes, which change with the libraries that compress."""
    file = pq.ParquetFile(path)
    facts = file.metadata
    groups = [facts.row_group(i) for i in range(facts.num_row_groups)]
    return {
        "format": facts.format_version,
        "schema": [f"{f.name}: {f.type}{'' if f.nullable else ' not null'}" for f in file.schema_arrow],
        "parquet": [
            f"{c.name}: {c.physical_type} {c.logical_type}" for c in map(file.schema.column, range(facts.num_columns))
        ],
        "metadata_keys": sorted(key.decode() for key in facts.metadata),
        "metadata": json.loads(facts.metadata[b"segray"]),
        "rows_sha256": digest(file.read().to_pylist()),
        "row_groups": [
            {
                "rows": group.num_rows,
                "sorting": [
                    f"{group.column(c.column_index).path_in_schema} {'desc' if c.descending else 'asc'}"
                    for c in group.sorting_columns
                ],
                "columns": [column(group.column(i)) for i in range(group.num_columns)],
            }
            for group in groups
        ],
    }


def column(chunk: Any) -> dict[str, Any]:
    """Return how a column chunk is encoded, and its statistics."""
    statistics = chunk.statistics
    return {
        "name": chunk.path_in_schema,
        "encodings": sorted(chunk.encodings),
        "compression": chunk.compression,
        "dictionary": chunk.has_dictionary_page,
        "column_index": chunk.has_column_index,
        "offset_index": chunk.has_offset_index,
        "encoded_bytes": chunk.total_uncompressed_size,
        "nulls": statistics.null_count if statistics else None,
        "bounds": [str(statistics.min), str(statistics.max)] if statistics and statistics.has_min_max else None,
    }


def digest(rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the sha256 of rows as JSON, one a line."""
    total = hashlib.sha256()
    for row in rows:
        total.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return total.hexdigest()


# ---- writing --------------------------------------------------------------------------------------


def dumped(value: Any, depth: int = 3) -> str:
    """Return JSON with a line for each entry down to a depth, so that a change shows where it is."""
    if not depth or not isinstance(value, dict | list) or not value:
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        entries = [f"{json.dumps(key)}: {dumped(inner, depth - 1)}" for key, inner in value.items()]
        return "{\n" + ",\n".join(entries) + "\n}"
    return "[\n" + ",\n".join(dumped(inner, depth - 1) for inner in value) + "\n]"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        LABEL_SET.write_text(dumped(label_set(Path(scratch)), 2) + "\n", "utf-8")
        DATA_FILES.write_text(dumped(data_files(Path(scratch)), 5) + "\n", "utf-8")
