"""S3 Inventory reports as listings: what a bucket held when the report was made, without listing the bucket.

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
_LINE_CHARS = 2**17
_DO = "give the manifest.json of an S3 Inventory in CSV or Parquet"
_Row = Mapping[str, str]
# Names of Parquet columns, and the CSV names of the same columns. CSV files have no header: fileSchema names them.
_PARQUET = {
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

    Old versions and deleted objects are skipped. Raises SourceError for a file that is no report, or a broken report.
    """
    folder = f"{prefix.rstrip('/')}/" if prefix else ""
    try:
        report = json.loads(store.read(uri))
        bucket, kind = str(report["sourceBucket"]), str(report["fileFormat"])
        columns = [column.strip() for column in str(report.get("fileSchema", "")).split(",")]
        files = [str(each["key"]) for each in report["files"]]
        read = _READERS[kind.upper()]
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(
            "Not an S3 Inventory report", where=uri, found=f"{type(error).__name__}: {error}", hint=_DO
        ) from error
    for key in files:
        where = _where(uri, key)
        try:
            with store.reader(where) as file:
                for row in read(file, columns):
                    if _is_there(row) and row["Key"].startswith(folder) and not row["Key"].endswith("/"):
                        found = row["Key"]
                        yield ListedObject(
                            f"s3://{bucket}/{found}",
                            found.removeprefix(folder),
                            row.get("ETag", "").strip('"'),
                            _size(row),
                        )
        except FileNotFoundError as error:
            raise SourceError(
                "The report names a file that is not there", where=where, hint="restore it, or take another report"
            ) from error
        except (csv.Error, pa.ArrowException, ValueError, KeyError, EOFError, zlib.error, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise SourceError(
                "Cannot read a file of the report", where=where, found=str(error)[:500], hint=_DO
            ) from error


def _where(report: str, key: str) -> str:
    """Return the URI of a file that the report names by its key in the report's bucket.

    A local copy of a report has its files in the folder `data` beside the report's folder.
    """
    if scheme(report):
        return "/".join([*report.split("/")[:3], key])
    return join(parent(parent(report)), "data", name(key))


def _is_there(row: _Row) -> bool:
    return row.get("IsLatest", "").lower() != "false" and row.get("IsDeleteMarker", "").lower() != "true"


def _size(row: _Row) -> int:
    return int(row["Size"]) if row.get("Size") else -1


def _csv(file: BinaryIO, columns: list[str]) -> Iterator[_Row]:
    """Yield the rows of a gzipped CSV file.

    Keys are percent-encoded: a plus sign stands for a space, and %2B for a plus sign.
    """
    csv.field_size_limit(_LINE_CHARS)
    text = io.TextIOWrapper(cast(BinaryIO, gzip.GzipFile(fileobj=file)), encoding="utf-8", newline="")
    for row in csv.reader(text, strict=True):
        if len(row) != len(columns):
            raise ValueError(f"a row of {len(row)} columns, fileSchema names {len(columns)}")
        found = dict(zip(columns, row, strict=True))
        yield {**found, "Key": unquote_plus(found["Key"], errors="strict")}


def _parquet(file: BinaryIO, columns: list[str]) -> Iterator[_Row]:
    table = pq.ParquetFile(file)
    names = [each for each in table.schema_arrow.names if each in _PARQUET]
    for batch in table.iter_batches(_BATCH_ROWS, columns=names):
        values = [batch.column(each).cast(pa.string()).to_pylist() for each in names]
        for row in zip(*values, strict=True):
            yield {_PARQUET[each]: value or "" for each, value in zip(names, row, strict=True)}


_READERS: Mapping[str, Callable[[Any, list[str]], Iterator[_Row]]] = {"CSV": _csv, "PARQUET": _parquet}
