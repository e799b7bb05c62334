"""Formats of manifests: text, CSV, TSV, JSON Lines and Parquet, gzipped or not, as rows of URI, key and version.

Knows encodings, columns and comments. Gives a URI no meaning; manifest.py does. Reads a manifest as a stream.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import BinaryIO, Literal, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from segray.sources.uris import extension
from segray.storage.uris import name

# No URI is this long. A file that is no manifest may hold gigabytes without a line break. An object of JSON Lines may
# hold a long text beside the URI.
_MAX_LINE_CHARS, _MAX_JSON_CHARS = 2**17, 2**22
_BATCH_ROWS = 65_536
_HEAD_BYTES = 4096
_GZIP_MAGIC = b"\x1f\x8b"
_OTHER_SEPARATOR = re.compile(r"[;,\t|]")
# A name with an extension, and more behind a separator.
_FIRST_WORD = re.compile(r"([^;,\t|]*?\.\w+)[\s;,|]")
# Names of columns that hold URIs, in lower case, beside `uri`.
_KNOWN_COLUMNS = frozenset(
    {"url", "image_url", "image_uri", "img_url", "imageurl", "originalurl", "coco_url", "flickr_url", "s3_uri"}
    | {"gcs_uri", "href", "path", "filepath", "file_path", "image_path", "img_path", "imagepath", "file", "filename"}
    | {"file_name", "image_file", "image", "img"}
)


class Row(NamedTuple):
    """One image of a manifest as written. number: the line, or the row of a Parquet file, counted from 1."""

    uri: str
    key: str
    version: str
    number: int


@dataclass(frozen=True)
class ManifestReading:
    """The settings and receivers for the reading of manifests.

    extensions: extensions of images. A CSV file of one column whose first cell has one of these has no header.
    uri_column: column that holds the URIs, None for an automatic choice. tell: receives the file's name
    and a note for the user.
    """

    extensions: frozenset[str]
    uri_column: str | None = None
    tell: Callable[[str, str], None] = lambda file, note: None


class ManifestFormatError(ValueError):
    """A manifest that does not follow its format. hint: what to do, "" for the format's description."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.hint = hint


def format_of(uri: str) -> str:
    """Return the format of a manifest by its name, "" for a file that is no manifest."""
    kind = extension(uri)
    if kind == "gz":
        kind = extension(uri[: -len(".gz")])
        return kind if kind in FORMATS and kind != "parquet" else ""
    return kind if kind in FORMATS else ""


def unit_of(uri: str) -> str:
    """Return the word for the number of a row: line or row."""
    return "row" if format_of(uri) == "parquet" else "line"


def rows(uri: str, file: BinaryIO, reading: ManifestReading) -> Iterator[Row]:
    """Yield the rows of the manifest `uri`, opened at its start.

    Raises ManifestFormatError, and the errors of BROKEN, for a file that does not follow its format.
    """
    kind = format_of(uri)
    if kind == "parquet":
        yield from _parquet_rows(uri, file, reading)
    else:
        yield from _READERS[kind](uri, _decompressed(file), reading)


# Errors that the libraries raise for files of another format.
BROKEN = (UnicodeError, csv.Error, pa.ArrowException, ManifestFormatError, EOFError, zlib.error)


def _decompressed(file: BinaryIO) -> io.BufferedReader:
    """Return the content of the file. A server may have decompressed a .gz file already, so its first bytes decide."""
    buffered = cast(io.BufferedReader, file)
    if buffered.peek(2)[:2] != _GZIP_MAGIC:
        return buffered
    return io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=buffered)), 1 << 16)


# ---- text -----------------------------------------------------------------------------------------


def _lines(file: io.BufferedReader, *, is_csv: bool, max_chars: int = _MAX_LINE_CHARS) -> Iterator[str]:
    """Yield the lines of a text file, each with its line end.

    is_csv: whether lines end at \\r\\n and \\r too, and keep their ends, as the csv module needs.
    """
    head = file.peek(_HEAD_BYTES)[:_HEAD_BYTES]
    newline = "" if is_csv else "\r" if b"\r" in head and b"\n" not in head else "\n"
    text = io.TextIOWrapper(file, encoding=_encoding(head), newline=newline)
    for number in count(1):
        line = text.readline(max_chars)
        if not line:
            return
        if len(line) == max_chars:
            raise ManifestFormatError(f"line {number} has more than {max_chars - 1} characters")
        yield line


def _encoding(head: bytes) -> str:
    """Return the encoding of a text by its byte order mark. Without a mark, every second byte of UTF-16 is 0."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    zeros = [byte == 0 for byte in head[:4]]
    if zeros == [False, True, False, True]:
        return "utf-16-le"
    return "utf-16-be" if zeros == [True, False, True, False] else "utf-8-sig"


class Comments:
    """The comments of one manifest, which are counted and told."""

    def __init__(self, uri: str, reading: ManifestReading) -> None:
        self._uri, self._reading, self._count, self._example = uri, reading, 0, ""

    def add(self, line: str) -> None:
        """Add a line that is a comment."""
        self._count += 1
        self._example = self._example or line.strip()[:60]

    def tell(self) -> None:
        """Tell the number of comments, if there are any."""
        if self._count:
            plural = "lines are comments" if self._count > 1 else "line is a comment"
            self._reading.tell(name(self._uri), f"{self._count:,} {plural}, such as {self._example!a}")


def is_comment(line: str, extensions: frozenset[str]) -> bool:
    """Return whether a line is a comment: # alone, before a blank or another #, or before a text without extension."""
    text = line.strip()
    if not text.startswith("#"):
        return False
    return text[1:2] in ("", "#", "!") or text[1].isspace() or extension(text) not in extensions


def _text_rows(uri: str, file: io.BufferedReader, reading: ManifestReading) -> Iterator[Row]:
    is_first = True
    for number, line in enumerate(_lines(file, is_csv=False), 1):
        if line.strip().strip("\ufeff"):
            if is_first and not is_comment(line, reading.extensions):
                is_first = False
                _tell_columns(uri, line.strip(), reading)
            yield Row(line.rstrip("\r\n"), "", "", number)


def _tell_columns(uri: str, line: str, reading: ManifestReading) -> None:
    """Tell that a line of text looks like a row of a table, whose first cell names an image."""
    match = _FIRST_WORD.match(line)
    if match and extension(match[1]) in reading.extensions and extension(line) not in reading.extensions:
        note = f"each line is one URI, such as {line[:60]!a}; a table needs a name of .csv or .tsv and a header"
        reading.tell(name(uri), note)


# ---- columns --------------------------------------------------------------------------------------


class _Columns(NamedTuple):
    uri: str
    key: str | None
    version: str | None


def _columns(
    uri: str, names: Sequence[str], reading: ManifestReading, text_names: Sequence[str] | None = None
) -> _Columns:
    """Return the columns that hold URI, key and version; None for a missing key or version.

    A choice that the manifest does not name itself is told. text_names: the columns that may hold URIs.
    """
    column = _uri_column(uri, names, reading, names if text_names is None else text_names)
    for wanted in (column, "key", "version"):
        if names.count(wanted) > 1:
            raise ManifestFormatError(f"two columns {wanted!r}")
    is_alone = len(names) == 1
    key, version = ("key" in names and column != "key"), ("version" in names and column != "version")
    return _Columns(column, "key" if key and not is_alone else None, "version" if version and not is_alone else None)


def _uri_column(uri: str, names: Sequence[str], reading: ManifestReading, text_names: Sequence[str]) -> str:
    listed = ", ".join(map(repr, names))[:400] or "none"
    asked = reading.uri_column
    if asked is not None:
        if asked not in names:
            raise ManifestFormatError(f"no column {asked!r} among {listed}", "correct source.uri_column")
        return asked
    if "uri" in names:
        return "uri"
    alike = [column for column in text_names if column.strip().lower() == "uri"]
    if len(alike) == 1:
        return alike[0]
    if len(names) == 1 and not _OTHER_SEPARATOR.search(names[0]):
        if _plain(names[0]) not in _KNOWN_COLUMNS:
            reading.tell(name(uri), f"the only column, {names[0][:60]!a}, holds the URIs")
        return names[0]
    known = [column for column in text_names if column.lower() in _KNOWN_COLUMNS]
    known = known or [column for column in text_names if _plain(column) in _KNOWN_COLUMNS]
    if not known:
        hint = "set source.uri_column to the column that holds the URIs, or call it `uri`"
        if any(_is_uri(column, reading.extensions) for column in names):
            hint = "give the table a first line with the names of its columns, such as uri"
        elif len(names) == 1:
            hint = "separate the cells by commas in a .csv file, by tabs in a .tsv file"
        raise ManifestFormatError(f"no column 'uri' among {listed}", hint)
    if len(known) > 1:
        hint = "set source.uri_column to one of these columns"
        raise ManifestFormatError(f"several columns may hold the URIs: {', '.join(map(repr, known))}", hint)
    reading.tell(name(uri), f"the column {known[0]!a} holds the URIs; source.uri_column names another one")
    return known[0]


def _plain(column: str) -> str:
    """Return the name of a column in lower case, without blanks around it, with "_" for those within it."""
    return "_".join(column.lower().split())


def _delimited(delimiter: str) -> Callable[[str, io.BufferedReader, ManifestReading], Iterator[Row]]:
    """Return a reader of tables whose cells are separated by a comma or a tab. Cells of a .tsv file have no quotes."""
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE

    def read(uri: str, file: io.BufferedReader, reading: ManifestReading) -> Iterator[Row]:
        csv.field_size_limit(_MAX_LINE_CHARS)
        comments = Comments(uri, reading)
        reader = csv.reader(_lines(file, is_csv=True), strict=True, delimiter=delimiter, quoting=quoting)
        table = (row for row in reader if any(cell.strip().strip("\ufeff") for cell in row))
        header = next(table, [])
        while header and is_comment(header[0], reading.extensions):
            comments.add(header[0])
            header = next(table, [])
        remaining: Iterator[list[str]] = table
        if len(header) == 1 and _is_uri(header[0], reading.extensions):
            remaining, header = chain([header], table), ["uri"]  # no header: the first row is an image already
        columns = _columns(uri, header, reading)
        uri_at, key_at, version_at = (None if column is None else header.index(column) for column in columns)
        for row in remaining:
            if is_comment(row[0], reading.extensions) and (len(row) != len(header) or len(header) == 1):
                comments.add(row[0])
                continue
            if len(row) != len(header):
                raise ManifestFormatError(f"line {reader.line_num} has {len(row)} columns, the header {len(header)}")
            yield Row(
                row[uri_at or 0],
                "" if key_at is None else row[key_at],
                "" if version_at is None else row[version_at],
                reader.line_num,
            )
        comments.tell()

    return read


def _is_uri(cell: str, extensions: frozenset[str]) -> bool:
    """Return whether the only cell of the first row is an image, and not the name of a column."""
    text = cell.strip()
    return extension(text) in extensions or "://" in text or text.startswith(("/", "./", "../"))


def _json_rows(uri: str, file: io.BufferedReader, reading: ManifestReading) -> Iterator[Row]:
    columns: _Columns | None = None
    for number, line in enumerate(_lines(file, is_csv=False, max_chars=_MAX_JSON_CHARS), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ManifestFormatError(f"line {number} is no JSON: {error}") from error
        if isinstance(value, str):
            yield Row(value, "", "", number)
            continue
        if not isinstance(value, dict):
            raise ManifestFormatError(f"line {number} holds neither an object nor a text")
        if columns is None:
            texts = [key for key, cell in value.items() if isinstance(cell, str)]
            columns = _columns(uri, list(value), reading, texts)
        cells = [None if column is None else value.get(column) for column in columns]
        for column, cell in zip(columns, cells, strict=True):
            if isinstance(cell, dict | list | bool | float):
                raise ManifestFormatError(f"line {number}: {column!r} is no text")
        written, key, version = ("" if cell is None else str(cell) for cell in cells)
        if not _is_utf8(written + key + version):
            raise ManifestFormatError(f"line {number} holds half of a character")
        yield Row(written, key, version, number)


def _is_utf8(text: str) -> bool:
    """Return whether a text can be stored. JSON may hold half of a surrogate pair."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def _parquet_rows(uri: str, file: BinaryIO, reading: ManifestReading) -> Iterator[Row]:
    table = pq.ParquetFile(file)
    schema = table.schema_arrow
    texts = [field.name for field in schema if _is_text(field.type)]
    columns = _columns(uri, schema.names, reading, texts)
    kind = schema.field(columns.uri).type
    if not _is_text(kind):
        raise ManifestFormatError(f"column {columns.uri!r} holds {kind}, not text")
    number = 0
    for batch in table.iter_batches(_BATCH_ROWS, columns=[column for column in columns if column]):
        none = [None] * len(batch)
        values = [batch.column(column).cast(pa.string()).to_pylist() if column else none for column in columns]
        for written, key, version in zip(*values, strict=True):
            number += 1
            yield Row(written or "", key or "", version or "", number)


def _is_text(kind: pa.DataType) -> bool:
    """Return whether a column may hold URIs.

    Columns of bytes count too, because some writers do not mark text as strings.
    """
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary)
    return any(test(values) for test in (*tests, pa.types.is_large_binary, pa.types.is_null))


_READERS: Mapping[str, Callable[[str, io.BufferedReader, ManifestReading], Iterator[Row]]] = {
    "txt": _text_rows,
    "csv": _delimited(","),
    "tsv": _delimited("\t"),
    "jsonl": _json_rows,
    "ndjson": _json_rows,
}
_TEXT = "UTF-8 or UTF-16 with a mark"
FORMATS: Mapping[str, str] = {
    "txt": f"text ({_TEXT}), one URI a line",
    "csv": f"CSV ({_TEXT}) with commas and a header that names the column `uri`",
    "tsv": f"text ({_TEXT}) with tabs between cells and a header that names the column `uri`",
    "jsonl": "one JSON object with the key `uri` a line",
    "ndjson": "one JSON object with the key `uri` a line",
    "parquet": "Parquet with a text column `uri`",
}
