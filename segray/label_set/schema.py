"""The Arrow schemas of a label set, and the settings of its Parquet files, as literals.

Knows columns, types and encodings. Knows nothing of storage or of writers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import pyarrow as pa

VERSION = 1

BBOX = ("bbox_x", "bbox_y", "bbox_w", "bbox_h")
INSTANCES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image_key", pa.string(), nullable=False),
        pa.field("instance", pa.int16(), nullable=False),
        pa.field("class_id", pa.int32(), nullable=False),
        pa.field("class_name", pa.string(), nullable=False),
        pa.field("score", pa.float32(), nullable=False),
        *(pa.field(name, pa.float32(), nullable=False) for name in BBOX),
        pa.field("area", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("rle", pa.string(), nullable=False),
        pa.field("batch", pa.int32(), nullable=False),
    ]
)

# `class` is the hive partition: it stands in paths and in the log, never in a file.
PARTITION = "class"
INSTANCES_WITH_PARTITION = INSTANCES.append(pa.field(PARTITION, pa.string(), nullable=False))

IMAGES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image_key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("n_instances", pa.int32(), nullable=False),
        pa.field("stage", pa.string()),
        pa.field("error", pa.string()),
        pa.field("message", pa.string()),
        pa.field("attempts", pa.int16(), nullable=False),
        pa.field("batch", pa.int32(), nullable=False),
        pa.field("run_id", pa.string(), nullable=False),
        pa.field("labelled_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("orientation", pa.int8(), nullable=False),
    ]
)

# The meaning of the tables and of their columns: comments in the log, and docs/data-dictionary.md.
TABLE_DESCRIPTIONS: Mapping[str, str] = {
    "instances": "Instance masks, one row each: where a model saw an object, of which class, and how surely.",
    "images": "Images, one row each: labelled with instances, labelled without any, or failed with a reason.",
}
_SHARED_DESCRIPTIONS: Mapping[str, str] = {
    "image_id": "First 32 hexadecimal digits of the SHA-256 of image_key. Sort by it for a fair sample.",
    "image_key": "Name of the image: its path below the source, or its key in a manifest. Joins the two tables.",
    "batch": "Number of the commit that wrote the row, from 1.",
}
INSTANCES_DESCRIPTIONS: Mapping[str, str] = {
    **_SHARED_DESCRIPTIONS,
    "instance": "Number of the instance within its image, from 0. image_key and instance name one row.",
    "class_id": "Category id of the model; for models of COCO, COCO's id of 1 to 90.",
    "class_name": "Name of the class as the model has it, such as stop sign. Use it in conditions.",
    "score": "Confidence of the model, 0 to 1. Rows begin at model.score_threshold, 0.05 by default.",
    "bbox_x": "Left edge of the network's box, in pixels. rle_bbox(rle, height) gives the extent of the mask.",
    "bbox_y": "Upper edge of the network's box, in pixels. See bbox_x.",
    "bbox_w": "Width of the network's box, in pixels. See bbox_x.",
    "bbox_h": "Height of the network's box, in pixels. See bbox_x.",
    "area": "Number of pixels of the mask.",
    "height": "Height of the upright image, in pixels.",
    "width": "Width of the upright image, in pixels.",
    "rle": "Mask as COCO's compressed run lengths, column by column over the whole upright image.",
    "class": "Partition: class_name as a folder name, such as stop_sign. class = 'stop sign' matches no row.",
}
IMAGES_DESCRIPTIONS: Mapping[str, str] = {
    **_SHARED_DESCRIPTIONS,
    "uri": "Address from which segray read the image.",
    "version": "State of the file that was labelled: its ETag, or its size and time; empty if the source has none.",
    "bytes": "Size of the image's file, in bytes.",
    "width": "Width of the upright image, in pixels; 0 if unknown.",
    "height": "Height of the upright image, in pixels; 0 if unknown.",
    "status": "ok: the image has instances. empty: no instance reached the thresholds. failed: see stage and message.",
    "n_instances": "Number of the image's rows in the table instances, of any score.",
    "stage": "Step that failed: read, decode, infer, postprocess or process; null unless failed.",
    "error": "Kind of error, such as ImageError; null unless failed.",
    "message": "Text of the error; null unless failed.",
    "attempts": "Number of the attempt that gave the row.",
    "run_id": "Run that labelled the image; ROOT/_segray/runs/RUN_ID holds its record.",
    "labelled_at": "Time at which the image was labelled, in UTC.",
    "orientation": "EXIF orientation that was applied, 1 to 8.",
}

_STAGED_INSTANCE = pa.struct(
    [field for field in INSTANCES if field.name not in ("image_id", "image_key", "height", "width", "batch")]
)

# A staged file has one row per image with its instances inside, so it is complete by construction. Batch and run are
# known only at the merge.
STAGED = pa.schema(
    [field for field in IMAGES if field.name not in ("batch", "run_id")]
    + [pa.field("instances", pa.list_(pa.field("item", _STAGED_INSTANCE, nullable=False)), nullable=False)]
)

PLAN = pa.schema(
    [
        pa.field("image_key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
    ]
)

# Committed rows that a run removes, or failed rows that it replaces. The batch number protects rows that later batches
# commit for the same image.
RETIRED = pa.schema([pa.field("image_key", pa.string(), nullable=False), pa.field("batch", pa.int32(), nullable=False)])

_COMMON: Mapping[str, Any] = {
    "version": "2.6",
    "compression": "zstd",
    "compression_level": 1,
    "write_page_index": True,
    "write_page_checksum": True,
    "data_page_size": 1 << 20,
}

# The mask is three quarters of an instance's bytes. zstd level 3 would save 4 % of these bytes in nearly twice the
# time. Columns that compression cannot shrink further are not compressed. BYTE_STREAM_SPLIT would make scores 5 %
# smaller, but Spark 4.1 cannot read it.
_UNCOMPRESSED = ("instance", "class_id", "class_name", "area", "height", "width", "batch")

INSTANCES_WRITE: Mapping[str, Any] = {
    **_COMMON,
    "row_group_size": 65_536,
    "compression": {name: "none" if name in _UNCOMPRESSED else "zstd" for name in INSTANCES.names},
    "compression_level": {name: 1 for name in INSTANCES.names if name not in _UNCOMPRESSED},
    "use_dictionary": ["instance", "class_id", "class_name", "height", "width", "batch", *BBOX],
    "column_encoding": {
        "image_id": "DELTA_LENGTH_BYTE_ARRAY", "area": "DELTA_BINARY_PACKED", "rle": "DELTA_LENGTH_BYTE_ARRAY",
    },
    "write_statistics": [name for name in INSTANCES.names if name != "rle"],
}  # fmt: skip

IMAGES_WRITE: Mapping[str, Any] = {
    **_COMMON,
    "row_group_size": 65_536,
    "use_dictionary": [
        "width", "height", "status", "n_instances", "stage", "error", "message", "attempts", "batch", "run_id",
        "orientation",
    ],
    "column_encoding": {"image_id": "DELTA_LENGTH_BYTE_ARRAY"},
}  # fmt: skip
PLAN_WRITE: Mapping[str, Any] = {**_COMMON, "row_group_size": 65_536}

_INSTANCES_FACTS: Mapping[str, Any] = {
    "version": VERSION,
    "primary_column": "rle",
    "columns": {
        "rle": {"encoding": "coco-rle-string", "order": "column-major", "size": ["height", "width"]},
        "bbox": {"columns": list(BBOX), "format": "xywh", "unit": "source pixels"},
    },
    "orientation": "EXIF orientation applied; coordinates are those of the upright image",
}


def with_comments(columns: pa.Schema, descriptions: Mapping[str, str]) -> pa.Schema:
    """Return the columns with their descriptions as the metadata `comment`, which Delta's readers show."""
    return pa.schema([column.with_metadata({"comment": descriptions[column.name]}) for column in columns])


def staged_bytes(rows: pa.Table) -> bytes:
    """Return rows of STAGED as the bytes of a staged file.

    The file is uncompressed Arrow IPC, because it is written once, read once and soon deleted.
    """
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, STAGED) as writer:
        writer.write_table(rows)
    return cast(bytes, sink.getvalue().to_pybytes())


def staged_rows(data: bytes) -> pa.Table:
    """Return the rows of a staged file. The rows share memory with `data`."""
    return pa.ipc.open_file(pa.BufferReader(data)).read_all()


def with_facts(schema: pa.Schema, provenance: Mapping[str, Any]) -> pa.Schema:
    """Return the schema with metadata `segray`: the meaning of the columns and the origin of the rows, as JSON."""
    facts: Mapping[str, Any] = _INSTANCES_FACTS if "rle" in schema.names else {"version": VERSION}
    return schema.with_metadata({"segray": json.dumps({**facts, **provenance}, sort_keys=True)})
