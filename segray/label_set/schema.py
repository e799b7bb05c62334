"""The Arrow schemas of a label set and how its Parquet files are written, as literals.

Knows columns, types and encodings; knows nothing of storage or of who writes.
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

# `class` is the hive level: in the path and in the log, never in a file.
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

_FOUND = pa.struct([f for f in INSTANCES if f.name not in ("image_id", "image_key", "height", "width", "batch")])

# What a worker stages: one row per image with its instances inside, so that a staged file is complete by
# construction. Batch and run are known only at the merge.
STAGED = pa.schema(
    [f for f in IMAGES if f.name not in ("batch", "run_id")]
    + [pa.field("instances", pa.list_(pa.field("item", _FOUND, nullable=False)), nullable=False)]
)

PLAN = pa.schema(
    [
        pa.field("image_key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
    ]
)

# Committed rows that a run removes: of this image, and of this batch, so not of what came after.
RETIRED = pa.schema([pa.field("image_key", pa.string(), nullable=False), pa.field("batch", pa.int32(), nullable=False)])

_COMMON: Mapping[str, Any] = {
    "version": "2.6",
    "compression": "zstd",
    "compression_level": 1,
    "write_page_index": True,
    "write_page_checksum": True,
    "data_page_size": 1 << 20,
}

# Three quarters of an instance's bytes are its mask; level 3 would save 4 % of them in nearly twice the time. Columns
# whose encoding leaves nothing to squeeze are not compressed. No BYTE_STREAM_SPLIT, though scores would be 5 % smaller:
# Spark 4.1 cannot read it.
_BARE = ("instance", "class_id", "class_name", "area", "height", "width", "batch")

INSTANCES_WRITE: Mapping[str, Any] = {
    **_COMMON,
    "row_group_size": 65_536,
    "compression": {f.name: "none" if f.name in _BARE else "zstd" for f in INSTANCES},
    "compression_level": {f.name: 1 for f in INSTANCES if f.name not in _BARE},
    "use_dictionary": ["instance", "class_id", "class_name", "height", "width", "batch", *BBOX],
    "column_encoding": {
        "image_id": "DELTA_LENGTH_BYTE_ARRAY", "area": "DELTA_BINARY_PACKED", "rle": "DELTA_LENGTH_BYTE_ARRAY",
    },
    "write_statistics": [f.name for f in INSTANCES if f.name != "rle"],
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
    """Rows of STAGED as a staged file: written once, read once, soon deleted, so as they lie in memory."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, STAGED) as writer:
        writer.write_table(rows)
    return cast(bytes, sink.getvalue().to_pybytes())


def staged_rows(data: bytes) -> pa.Table:
    """The rows of a staged file; they keep its bytes."""
    return pa.ipc.open_file(pa.BufferReader(data)).read_all()


def with_facts(schema: pa.Schema, provenance: Mapping[str, Any]) -> pa.Schema:
    """The schema carrying `segray` key-value metadata: what the columns mean and where the rows come from."""
    facts: Mapping[str, Any] = _INSTANCES_FACTS if "rle" in schema.names else {"version": VERSION}
    return schema.with_metadata({"segray": json.dumps({**facts, **provenance}, sort_keys=True)})
