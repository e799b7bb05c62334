"""S3 Inventory reports as listings: the objects of a bucket at the time of the report, without listing the bucket.

Knows manifest.json and the CSV and Parquet files that manifest.json names. Knows nothing of images. Keys and versions
equal those of a listing. One run may therefore list the bucket, and the next run read a report.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, cast
from urllib.parse import unquote_plus

import pyarrow as pa
import pyarrow.parquet as pq

from segray.errors import SourceError
from segray.storage.store import ListedObject, Store
from segray.storage.uris import join, name, parent, scheme

_BATCH_ROWS = 65_536
_MAX_FIELD_CHARS = 2**17
_HINT = "give the manifest.json of an S3 Inventory in CSV or Parquet"
_Row = Mapping[str, str]
# CSV names of the columns, by their Parquet names. CSV files have no header; fileSchema of manifest.json is the header.
_CSV_NAMES = {
    "key": "Key",
    "size": "Size",
    "e_tag": "ETag",
    "is_latest": "IsLatest",
    "is_delete_marker": "IsDeleteMarker",
}


def is_report(uri: str) -> bool:
    """Return whether the URI may be an S3 Inventory report, by its name."""
    return name(uri) == "manifest.json"


def entries(uri: str, store: Store, prefix: str) -> Iterator[ListedObject]:
    """Yield the objects below the prefix, in the order of the report, with keys relative to the prefix.

    Old versions and deleted objects are skipped.

    Args:
        uri: The report's manifest.json.
        store: The store that reaches the report.
        prefix: Prefix in the bucket, "" for the whole bucket.

    Raises:
        SourceError: The file is no report, or a file of the report is missing or broken.
    """
    folder = f"{prefix.rstrip('/')}/" if prefix else ""
    try:
        report = json.loads(store.read(uri))
        bucket, kind = str(report["sourceBucket"]), str(report["fileFormat"])
        columns = [column.strip() for column in str(report.get("fileSchema", "")).split(",")]
        files = [str(entry["key"]) for entry in report["files"]]
        read = _READERS[kind.upper()]
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(
            "Not an S3 Inventory report", where=uri, found=f"{type(error).__name__}: {error}", hint=_HINT
        ) from error
    for file_key in files:
        file_uri = _file_uri(uri, file_key)
        try:
            with store.reader(file_uri) as file:
                for row in read(file, columns):
                    if _is_current(row) and row["Key"].startswith(folder) and not row["Key"].endswith("/"):
                        object_key = row["Key"]
                        yield ListedObject(
                            f"s3://{bucket}/{object_key}",
                            object_key.removeprefix(folder),
                            row.get("ETag", "").strip('"'),
                            _size(row),
                        )
        except FileNotFoundError as error:
            raise SourceError(
                "The report names a file that is not there",
                where=file_uri,
                hint="restore the file, or set source.uri to another report",
            ) from error
        except (csv.Error, pa.ArrowException, ValueError, KeyError, EOFError, zlib.error, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise SourceError(
                "Cannot read a file of the report", where=file_uri, found=str(error)[:500], hint=_HINT
            ) from error


def _file_uri(report: str, key: str) -> str:
    """Return the URI of a file that the report names by its key in the report's bucket.

    A local copy of a report has its files in the folder `data` beside the report's folder.
    """
    if scheme(report):
        return "/".join([*report.split("/")[:3], key])
    return join(parent(parent(report)), "data", name(key))


def _is_current(row: _Row) -> bool:
    return row.get("IsLatest", "").lower() != "false" and row.get("IsDeleteMarker", "").lower() != "true"


def _size(row: _Row) -> int:
    return int(row["Size"]) if row.get("Size") else -1


def _csv(file: BinaryIO, columns: list[str]) -> Iterator[_Row]:
    """Yield the rows of a gzipped CSV file.

    Keys are percent-encoded: a plus sign stands for a space, and %2B for a plus sign.
    """
    csv.field_size_limit(_MAX_FIELD_CHARS)
    text = io.TextIOWrapper(cast(BinaryIO, gzip.GzipFile(fileobj=file)), encoding="utf-8", newline="")
    for row in csv.reader(text, strict=True):
        if len(row) != len(columns):
            raise ValueError(f"a row of {len(row)} columns, fileSchema names {len(columns)}")
        record = dict(zip(columns, row, strict=True))
        yield {**record, "Key": unquote_plus(record["Key"], errors="strict")}


def _parquet(file: BinaryIO, columns: list[str]) -> Iterator[_Row]:
    table = pq.ParquetFile(file)
    names = [name for name in table.schema_arrow.names if name in _CSV_NAMES]
    for batch in table.iter_batches(_BATCH_ROWS, columns=names):
        values = [batch.column(name).cast(pa.string()).to_pylist() for name in names]
        for row in zip(*values, strict=True):
            yield {_CSV_NAMES[name]: value or "" for name, value in zip(names, row, strict=True)}


_READERS: Mapping[str, Callable[[Any, list[str]], Iterator[_Row]]] = {"CSV": _csv, "PARQUET": _parquet}
