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
