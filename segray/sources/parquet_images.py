"""Parquet files with a column of image bytes: which rows hold images, and how to read them.

Knows Parquet. The column holds bytes, or structs with a field `bytes`, as Hugging Face writes. Planning reads footers
only, and keys are row numbers. A row group can be read only from its start. A reader therefore stays open, and the
next portion continues where the last one stopped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from segray.errors import ImageError, SourceError
from segray.instances import ImageRef
from segray.sources.archives import BrokenFileError, SourceSpec
from segray.sources.uris import inside_uri
from segray.storage.store import ListedObject

EXTENSIONS = frozenset({"parquet"})
# Digits of a row number in a key. Keys of equal width sort in the order of the rows.
_DIGITS = 9
BUFFER_BYTES, _BATCH_BYTES = 4 << 20, 4 << 20
# Exceptions that Arrow raises for files that are no valid Parquet; UnicodeDecodeError is a ValueError.
_BROKEN = (pa.ArrowException, ValueError, RuntimeError, LookupError, OverflowError)
_USUAL_NAMES = ("image", "img", "jpg", "png", "picture")


def open_table(file: BinaryIO) -> pq.ParquetFile:
    """Open a Parquet file so that each read takes a few pages.

    Raises BrokenFileError for anything but a Parquet file.
    """
    try:
        table = pq.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)
        table.schema_arrow.names  # noqa: B018  Raises here for names that are not valid text.
        return table
    except (*_BROKEN, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise BrokenFileError(f"not a Parquet file, or a broken one: {error}") from error


def refs(file: ListedObject, table: pq.ParquetFile, spec: SourceSpec) -> list[ImageRef]:
    """Return one reference for each row, with key FILE/ROW, counted from 0.

    size_bytes of a reference is the mean size of an image in the row group.

    Raises:
        SourceError: The file has no column of images.
        BrokenFileError: The number of rows is impossible for the size of the file.
    """
    schema = table.schema_arrow
    column = image_column(schema, spec.image_column)
    if column is None:
        raise SourceError(
            "No column of images in this Parquet file",
            where=file.uri,
            found=", ".join(f"{field.name}: {field.type}" for field in schema)[:500],
            hint="set source.image_column to a column of bytes, or of structs with a field `bytes`; set source.kind to "
            "manifest for files that name images",
        )
    if table.metadata.num_rows > file.size_bytes:
        raise BrokenFileError(f"the footer says that {file.size_bytes} bytes hold {table.metadata.num_rows} images")
    index, image_refs, row = schema.get_field_index(column), [], 0
    for group in range(table.metadata.num_row_groups):
        row_group = table.metadata.row_group(group)
        mean_bytes = _bytes_of(row_group, column) // max(1, row_group.num_rows)
        for i in range(row_group.num_rows):
            uri = inside_uri("parquet", file.uri, index, group, i)
            image_refs.append(ImageRef(f"{file.key}/{row:0{_DIGITS}d}", uri, file.version, mean_bytes))
            row += 1
    return image_refs


def _bytes_of(group: Any, column: str) -> int:
    """Return the stored bytes of one column of a row group, including all nested columns."""
    columns = (group.column(i) for i in range(group.num_columns))
    try:
        return sum(chunk.total_compressed_size for chunk in columns if chunk.path_in_schema.split(".")[0] == column)
    except UnicodeDecodeError as error:
        raise BrokenFileError(f"a column's name is no text: {error}") from error


def image_column(schema: pa.Schema, named: str | None) -> str | None:
    """Return the column that holds images, None if there is none.

    named: the configured column, which is then the only candidate. Without one, the only column of bytes holds the
    images, else the first column with a usual name.
    """
    candidates: list[str] = [field.name for field in schema if _holds_bytes(field.type)]
    if named is not None:
        return named if named in candidates else None
    if len(candidates) == 1:
        return candidates[0]
    return next((name for name in _USUAL_NAMES if name in candidates), None)


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


class CellReader:
    """A reader of the images in one column of a row group, in the order of the rows."""

    def __init__(self, file: BinaryIO, column: int, group: int) -> None:
        self._file, self._group = file, group
        try:
            self._table = open_table(file)
            self._name = self._table.schema_arrow.field(column).name
            row_group = self._table.metadata.row_group(group)
            mean_bytes = _bytes_of(row_group, self._name) // max(1, row_group.num_rows)
        except (BrokenFileError, *_BROKEN) as error:
            raise ImageError(
                "the Parquet file is not the one that was planned", stage="read", found=str(error)
            ) from error
        self._batch_rows = min(1024, max(1, _BATCH_BYTES // max(1, mean_bytes)))
        # The first row that cannot be read, and the reason.
        self._end: tuple[int, str] | None = None
        self._first, self._cells = 0, pa.array([])
        self._batches = self._read()

    def close(self) -> None:
        self._file.close()

    def at(self, row: int) -> bytes:
        """Return the image bytes of a row of the row group.

        Raises ImageError for a row without an image, or a column that cannot be read up to this row.
        """
        if row < self._first:
            self._restart()
        try:
            while self._end is None and row >= self._first + len(self._cells):
                self._first += len(self._cells)
                self._cells = next(self._batches)
        except StopIteration:
            self._end = self._first, "the row group ends before this row"
        except (*_BROKEN, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            self._end = self._first, str(error)
        if self._end is not None and row >= self._end[0]:
            raise ImageError("the column cannot be read up to this row", stage="read", found=self._end[1])
        cell = self._cells[row - self._first]
        is_struct = isinstance(cell, pa.StructScalar) and cell.is_valid
        data = (cell["bytes"] if is_struct else cell).as_py()
        if data is None:
            path = cell["path"].as_buffer() if is_struct and "path" in cell.keys() else None  # noqa: SIM118
            found = "null" if path is None else f"null, path {path.to_pybytes().decode('utf-8', 'replace')!r}"
            raise ImageError("no image in this row", stage="read", found=found)
        return bytes(data)

    def _restart(self) -> None:
        self._first, self._cells = 0, pa.array([])
        self._batches = self._read()

    def _read(self) -> Iterator[pa.Array]:
        batches = self._table.iter_batches(
            self._batch_rows, row_groups=[self._group], columns=[self._name], use_threads=False
        )
        for batch in batches:
            yield batch.column(0)
