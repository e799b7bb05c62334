"""Manifests: text, CSV and Parquet files that name images, or files that hold images.

Knows the formats of manifests and the keys that a manifest gives. Opens no file that a manifest names.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, count
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from segray.errors import SourceError
from segray.instances import ImageRef
from segray.sources.uris import extension
from segray.storage.store import Store
from segray.storage.uris import absolute, join, parent, scheme

# No URI is this long. A file that is no manifest may hold gigabytes without a line break.
_MAX_LINE_CHARS = 2**17
_BATCH_ROWS = 65_536
_MAX_ERROR_CHARS = 500
_OTHER_SEPARATOR = re.compile(r"[;\t|]")
_Row = tuple[str, str, str]


def refs(uri: str, store: Store, extensions: frozenset[str]) -> Iterator[ImageRef]:
    """Yield one reference for each key, from its first row. Repeated rows of a key must name the same URI.

    Raises SourceError for an invalid manifest: a row without a URI, two URIs for one key, or no image at all.
    """
    seen = _SeenKeys()
    for number, (written, key, version) in enumerate(_rows(uri, store, extensions), 1):
        if not written or "\0" in written + key + version:
            cells = (written, key, version) if key or version else (written,)
            found = ascii(cells)[:200] if written else ""
            hint = "write a URI without a NUL character into the row, or delete the row"
            raise SourceError("An image without a URI", where=f"{uri}, image {number}", found=found, hint=hint)
        ref = ImageRef(key or written, _resolve(written, parent(uri)), version)
        same_uri = seen.add(ref.key, ref.uri)
        if same_uri is None:
            yield ref
        elif not same_uri:
            raise SourceError(
                "One key for two images",
                where=f"{uri}, image {number}",
                found=repr(ref.key),
                hint="give each image its own key",
            )
    if not len(seen):
        raise SourceError("The manifest names no image", where=uri, hint="write one URI per image into the manifest")


class _SeenKeys:
    """A hash table of keys and their URIs: two 64-bit hashes for each key, at most two thirds full.

    A dict would take 200 bytes a key. Among five million keys, two share a hash with a probability of one in a million.
    segray then refuses the manifest, because the URIs of the two keys differ.
    """

    def __init__(self) -> None:
        self._count = 0
        self._keys, self._uris = array("Q", bytes(8 * 1024)), array("Q", bytes(8 * 1024))

    def __len__(self) -> int:
        return self._count

    def add(self, key: str, uri: str) -> bool | None:
        """Add a new key and return None. Return whether a key that was added before has this URI."""
        hashed, identity = _hash(key), _hash(uri)
        at = self._slot(hashed)
        if self._keys[at]:
            return self._uris[at] == identity
        self._keys[at], self._uris[at] = hashed, identity
        self._count += 1
        if 3 * self._count > 2 * len(self._keys):
            self._grow()
        return None

    def _slot(self, hashed: int) -> int:
        """Return the position of the hash, or the free position where the hash belongs."""
        keys, mask = self._keys, len(self._keys) - 1
        at = hashed & mask
        while keys[at] and keys[at] != hashed:
            at = at + 1 & mask
        return at

    def _grow(self) -> None:
        before = zip(self._keys, self._uris, strict=True)
        self._keys, self._uris = (array("Q", bytes(16 * len(self._keys))) for _ in range(2))
        for hashed, identity in before:
            if hashed:
                at = self._slot(hashed)
                self._keys[at], self._uris[at] = hashed, identity


def _hash(text: str) -> int:
    """Return a 64-bit hash of the text, never 0, which marks a free slot."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1


def _resolve(written: str, folder: str) -> str:
    if scheme(written) or written.startswith(("/", "~/", "file://")):
        return absolute(written)
    return absolute(join(folder, written.removeprefix("./")))


def _rows(uri: str, store: Store, extensions: frozenset[str]) -> Iterator[_Row]:
    kind = extension(uri)
    try:
        with store.reader(uri) as file:
            yield from _READERS[kind](file, extensions)
    except (UnicodeDecodeError, csv.Error, pa.ArrowException, _FormatError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # An error of storage. Arrow's OSError for a wrong format has no errno.
        found, hint = str(error)[:_MAX_ERROR_CHARS], f"write the manifest as {FORMATS[kind]}"
        raise SourceError("Cannot read the manifest", where=uri, found=found, hint=hint) from error


class _FormatError(ValueError):
    """A manifest that does not follow its format."""


def _lines(file: BinaryIO, newline: str) -> Iterator[str]:
    """Yield the lines of a text file, each with its line end.

    newline: "\\n", or "" to end lines at \\r\\n and \\r too, as the csv module needs.
    """
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline)
    for number in count(1):
        line = text.readline(_MAX_LINE_CHARS)
        if not line:
            return
        if len(line) == _MAX_LINE_CHARS:
            raise _FormatError(f"line {number} has more than {_MAX_LINE_CHARS - 1} characters")
        yield line


def _text_rows(file: BinaryIO, extensions: frozenset[str]) -> Iterator[_Row]:
    for line in _lines(file, "\n"):
        if line.strip():
            yield line.rstrip("\r\n"), "", ""


def _csv_rows(file: BinaryIO, extensions: frozenset[str]) -> Iterator[_Row]:
    reader = csv.reader(_lines(file, ""), strict=True)
    rows: Iterator[list[str]] = (row for row in reader if any(cell.strip() for cell in row))
    header = next(rows, [])
    if len(header) == 1 and extension(header[0]) in extensions:
        rows, header = chain([header], rows), ["uri"]  # no header: the first row is an image already
    columns = [header.index(column) if column else None for column in _columns(header)]
    for row in rows:
        if len(row) != len(header):
            raise _FormatError(f"line {reader.line_num} has {len(row)} columns, the header {len(header)}")
        uri, key, version = ("" if column is None else row[column] for column in columns)
        yield uri, key, version


def _parquet_rows(file: BinaryIO, extensions: frozenset[str]) -> Iterator[_Row]:
    table = pq.ParquetFile(file)
    columns = _columns(table.schema_arrow.names)
    kind = table.schema_arrow.field(columns[0]).type
    if not _is_text(kind):
        raise _FormatError(f"column {columns[0]!r} holds {kind}, not text")
    for batch in table.iter_batches(_BATCH_ROWS, columns=[column for column in columns if column]):
        none = [None] * len(batch)
        values = [batch.column(column).cast(pa.string()).to_pylist() if column else none for column in columns]
        for uri, key, version in zip(*values, strict=True):
            yield uri or "", key or "", version or ""


def _is_text(kind: pa.DataType) -> bool:
    """Return whether a column may hold URIs.

    Columns of bytes count too, because some writers do not mark text as strings.
    """
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary)
    return any(test(values) for test in (*tests, pa.types.is_large_binary, pa.types.is_null))


def _columns(names: Sequence[str]) -> tuple[str, str | None, str | None]:
    """Return the columns that hold uri, key and version; None for a missing key or version."""
    if "uri" not in names and (len(names) != 1 or _OTHER_SEPARATOR.search(names[0])):
        raise _FormatError(f"no column 'uri' among {', '.join(map(repr, names)) or 'none'}")
    for column in ("uri", "key", "version"):
        if names.count(column) > 1:
            raise _FormatError(f"two columns {column!r}")
    if "uri" not in names:
        return names[0], None, None
    return "uri", "key" if "key" in names else None, "version" if "version" in names else None


_READERS: Mapping[str, Callable[[BinaryIO, frozenset[str]], Iterator[_Row]]] = {
    "txt": _text_rows,
    "csv": _csv_rows,
    "parquet": _parquet_rows,
}
FORMATS: Mapping[str, str] = {
    "txt": "UTF-8 text, one URI a line",
    "csv": "UTF-8 CSV with commas and a header that names the column `uri`",
    "parquet": "Parquet with a text column `uri`",
}
