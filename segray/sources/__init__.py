"""Where the images of a dataset are: folders, globs, prefixes, single files and manifests, as references.

Knows which files count as images and how a manifest is written; opens no image and knows nothing of runs.
References travel in columns, REF_BATCH_ROWS at a time, so that a million of them stay well below 1 GB.

    photos/  s3://bucket/photos  gs://...   every image below, by extension; key = path below the folder
    photos/**/*.jpg  s3://bucket/2024-*/*   what the pattern names, whatever its extension; key = path below
                                            the folders that come before the first wildcard
    photo.jpg                               one image; key = its name
    list.txt                                one URI a line (UTF-8); key = the URI as written
    list.csv  list.parquet                  column `uri`, or the only column; optional columns `key`, `version`

In folders, hidden files and folders (.name) and the folders in BOOKKEEPING are passed over. Wildcards are *, ?
and [...] within a name and ** for any number of folders; they match a leading dot only where it is written. A
name that exists is taken as it is, wildcards or not. Relative URIs in a manifest start at its folder.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from itertools import chain, count, islice
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from segray.errors import SourceError
from segray.instances import ImageRef
from segray.storage import Entry, Store, absolute, join, name, parent, scheme

IMAGE_EXTENSIONS = frozenset({"jpg", "jpeg", "jfif", "png", "webp", "bmp", "tif", "tiff", "gif"})
BOOKKEEPING = frozenset({"_delta_log", "_segray", "_temporary", "__MACOSX"})
REF_BATCH_ROWS = 65_536
REF_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
    ]
)


def read(uri: str, store: Store, *, extensions: frozenset[str] = IMAGE_EXTENSIONS) -> Iterator[pa.RecordBatch]:
    """The dataset at `uri` in batches of REF_SCHEMA, each key once, sorted by key unless a manifest has its own order.

    extensions: lower case, without the dot. Raises SourceError if there is no such dataset, it holds no image,
    or its manifest cannot be read, and what Store raises.
    """
    uri = absolute(uri)
    yield from _batches(_refs(uri, store, extensions), uri)


def refs(batch: pa.RecordBatch) -> list[ImageRef]:
    """The rows of a batch of REF_SCHEMA."""
    return [ImageRef(*row) for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)]


def _batches(found: Iterator[ImageRef], uri: str) -> Iterator[pa.RecordBatch]:
    while rows := list(islice(found, REF_BATCH_ROWS)):
        columns = zip(*((ref.key, ref.uri, ref.version, ref.size_bytes) for ref in rows), strict=True)
        try:
            yield pa.RecordBatch.from_arrays(
                [pa.array(column, field.type) for column, field in zip(columns, REF_SCHEMA, strict=True)],
                schema=REF_SCHEMA,
            )
        except UnicodeEncodeError as error:
            raise SourceError(
                "A name that is not UTF-8", where=uri, found=ascii(error.object), do="rename the file or move it away"
            ) from error


def _refs(uri: str, store: Store, extensions: frozenset[str]) -> Iterator[ImageRef]:
    if uri.endswith("/") or not store.exists(uri):
        return _glob_refs(uri, store) if _WILDCARD.search(uri) else _folder_refs(uri, store, extensions)
    extension = _extension(uri)
    if extension in _MANIFESTS:
        return _manifest_refs(uri, store, extensions)
    if extension in extensions:
        return iter([_ref(store.stat(uri))])
    raise SourceError(
        "Neither an image nor a manifest",
        where=uri,
        found=f"a file with extension {extension!r}",
        do=f"give a folder, a glob, an image ({_listed(extensions)}) or a manifest ({_listed(_MANIFESTS)})",
    )


def _ref(entry: Entry) -> ImageRef:
    return ImageRef(entry.key, entry.uri, entry.version, entry.size_bytes)


def _extension(path: str) -> str:
    """Lower case, without the dot; "" if there is none."""
    return name(path).rpartition(".")[2].lower() if "." in name(path) else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


# Folders and globs


def _folder_refs(uri: str, store: Store, extensions: frozenset[str]) -> Iterator[ImageRef]:
    others: Counter[str] = Counter()  # counted until there is an image: then nobody will ask
    found = False
    for entry in _listing(uri, store):
        extension, hidden = _extension(entry.key), _is_hidden(entry.key)
        if extension in extensions and not hidden:
            found = True
            yield _ref(entry)
        elif not found:
            others[("hidden " if hidden else "") + (f".{extension}" if extension else "without extension")] += 1
    if not found:
        kinds = ", ".join(f"{kind} {n}" for kind, n in others.most_common(8))
        raise SourceError(
            "No images here",
            where=uri,
            found=f"{others.total()} files: {kinds}" if others else "no files at all",
            do=f"give a folder, prefix or glob with images ({_listed(extensions)}); a glob takes any extension",
        )


def _is_hidden(key: str) -> bool:
    # "." and ".." are folders like any other in an object store.
    return any((part.startswith(".") and part.strip(".")) or part in BOOKKEEPING for part in key.split("/"))


def _listing(uri: str, store: Store, prefix: str = "") -> Iterator[Entry]:
    try:
        yield from store.list(uri, prefix=prefix)
    except FileNotFoundError as error:
        raise SourceError(
            "No such folder or file", where=uri, found=_nearby(uri, store), do="correct source.uri"
        ) from error


def _nearby(uri: str, store: Store) -> str:
    """What lies where `uri` was looked for; only of local folders, because a bucket may list for hours."""
    if scheme(uri):
        return ""
    folder = parent(uri) or "/"
    names = store.names(folder)
    close = get_close_matches(name(uri), names) or names[:5]
    return f"{folder} holds {', '.join(close)}" if close else f"{folder} is empty or missing"


def _glob_refs(uri: str, store: Store) -> Iterator[ImageRef]:
    root, pattern = _split_glob(uri)
    matches = _pattern(pattern).fullmatch
    files = found = 0
    for entry in _listing(root, store, prefix=_WILDCARD.split(pattern)[0]):
        files += 1
        if matches(entry.key):
            found += 1
            yield _ref(entry)
    if not found:
        raise SourceError(
            "No file matches the glob",
            where=uri,
            found=f"{files} files below {root} begin as the pattern does",
            do="correct the pattern: * stays within one folder, ** spans any number, case counts",
        )


_WILDCARD = re.compile(r"[*?\[]")
_TOKEN = re.compile(r"(\*+|\?|\[!?[^/\]]+\])")
_ANY_FOLDERS = r"(?:(?!\.)[^/]+/)*"


def _split_glob(uri: str) -> tuple[str, str]:
    """The folder before the first wildcard, and the pattern below it."""
    parts = uri.split("/")
    first = next(i for i, part in enumerate(parts) if _WILDCARD.search(part))
    if scheme(uri) and first < 3:
        raise SourceError("A bucket's name cannot be a pattern", where=uri, do="name the bucket, then the pattern")
    return "/".join(parts[:first]) or "/", "/".join(parts[first:])


def _pattern(glob: str) -> re.Pattern[str]:
    """The regular expression for a whole key."""
    *folders, last = glob.split("/")
    parts = [_ANY_FOLDERS if folder == "**" else _name_pattern(folder) + "/" for folder in folders]
    parts += [_ANY_FOLDERS, _name_pattern("*")] if last == "**" else [_name_pattern(last)]
    try:
        return re.compile("".join(parts), re.DOTALL)
    except re.error as error:
        raise SourceError("Not a glob pattern", where=glob, found=str(error), do="correct the [...] part") from error


def _name_pattern(part: str) -> str:
    visible = r"(?!\.)" if _WILDCARD.match(part) else ""
    return visible + "".join(_token_pattern(token) for token in _TOKEN.split(part))


def _token_pattern(token: str) -> str:
    if token.startswith("*"):
        return "[^/]*"
    if token == "?":
        return "[^/]"
    if not _TOKEN.fullmatch(token):
        return re.escape(token)
    negated, characters = token[1] == "!", token[1:-1].removeprefix("!")
    inside = "".join(each if each == "-" else re.escape(each) for each in characters)
    return f"[^/{inside}]" if negated else f"[{inside}]"


# Manifests: rows of (uri, key, version) as written, "" where nothing is

# No URI is as long; a file that is no manifest may be one line of gigabytes.
_LINE_CHARS = 2**17
_SHOWN_CHARS = 500
_OTHER_SEPARATOR = re.compile(r"[;\t|]")
_Row = tuple[str, str, str]


def _manifest_refs(uri: str, store: Store, extensions: frozenset[str]) -> Iterator[ImageRef]:
    """Each key once, its first row; rows that repeat it must mean the same image."""
    seen = _Seen()
    for number, (written, key, version) in enumerate(_rows(uri, store, extensions), 1):
        if not written or "\0" in written + key + version:
            found = ascii((written, key, version)[: 3 if key or version else 1])[:200] if written else ""
            do = "fill it in or drop the row"
            raise SourceError("An image without a URI", where=f"{uri}, image {number}", found=found, do=do)
        ref = ImageRef(key or written, _resolve(written, parent(uri)), version)
        before = seen.add(ref.key, ref.uri)
        if before is None:
            yield ref
        elif not before:
            raise SourceError(
                "One key for two images",
                where=f"{uri}, image {number}",
                found=repr(ref.key),
                do="give each its own key",
            )
    if not len(seen):
        raise SourceError("The manifest names no image", where=uri, do="write one URI per image into it")


class _Seen:
    """Which keys had which URI, as two hashes of 8 bytes each, in a table that is at most two thirds full.

    A dict would take 200 bytes a key. That two of five million keys share a hash is a chance of one in a million, and
    then the manifest is refused: their URIs differ.
    """

    def __init__(self) -> None:
        self._count = 0
        self._keys, self._uris = array("Q", bytes(8 * 1024)), array("Q", bytes(8 * 1024))

    def __len__(self) -> int:
        return self._count

    def add(self, key: str, uri: str) -> bool | None:
        """Whether the key was seen with this URI; None if it was not seen before."""
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
        """Where the hash is, or the free place where it belongs."""
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
    """64 bits, never 0."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") or 1


def _resolve(written: str, folder: str) -> str:
    if scheme(written) or written.startswith(("/", "~/", "file://")):
        return absolute(written)
    return absolute(join(folder, written.removeprefix("./")))


def _rows(uri: str, store: Store, extensions: frozenset[str]) -> Iterator[_Row]:
    extension = _extension(uri)
    try:
        with store.reader(uri) as file:
            yield from _MANIFESTS[extension](file, extensions)
    except (UnicodeDecodeError, csv.Error, pa.ArrowException, _FormatError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # The disk's own; Arrow's, of files that are not in its format, have no number.
        found, do = str(error)[:_SHOWN_CHARS], f"write it as {_FORMATS[extension]}"
        raise SourceError("Cannot read the manifest", where=uri, found=found, do=do) from error


class _FormatError(ValueError):
    """A manifest that is not in its format."""


def _lines(file: BinaryIO, newline: str) -> Iterator[str]:
    """Each with its end. newline: "\\n", or "" for \\r\\n and \\r too, as csv wants it."""
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline=newline)
    for number in count(1):
        line = text.readline(_LINE_CHARS)
        if not line:
            return
        if len(line) == _LINE_CHARS:
            raise _FormatError(f"line {number} has more than {_LINE_CHARS - 1} characters")
        yield line


def _text_rows(file: BinaryIO, extensions: frozenset[str]) -> Iterator[_Row]:
    for line in _lines(file, "\n"):
        if line.strip():
            yield line.rstrip("\r\n"), "", ""


def _csv_rows(file: BinaryIO, extensions: frozenset[str]) -> Iterator[_Row]:
    reader = csv.reader(_lines(file, ""), strict=True)
    rows: Iterator[list[str]] = (row for row in reader if any(cell.strip() for cell in row))
    header = next(rows, [])
    if len(header) == 1 and _extension(header[0]) in extensions:
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
    for batch in table.iter_batches(REF_BATCH_ROWS, columns=[column for column in columns if column]):
        none = [None] * len(batch)
        values = [batch.column(column).cast(pa.string()).to_pylist() if column else none for column in columns]
        for uri, key, version in zip(*values, strict=True):
            yield uri or "", key or "", version or ""


def _is_text(kind: pa.DataType) -> bool:
    """Whether a column may hold URIs; bytes too, since not every writer says that its strings are some."""
    values = kind.value_type if pa.types.is_dictionary(kind) else kind
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_binary)
    return any(test(values) for test in (*tests, pa.types.is_large_binary, pa.types.is_null))


def _columns(names: Sequence[str]) -> tuple[str, str | None, str | None]:
    """The columns that hold uri, key and version."""
    if "uri" not in names and (len(names) != 1 or _OTHER_SEPARATOR.search(names[0])):
        raise _FormatError(f"no column 'uri' among {', '.join(map(repr, names)) or 'none'}")
    for column in ("uri", "key", "version"):
        if names.count(column) > 1:
            raise _FormatError(f"two columns {column!r}")
    if "uri" not in names:
        return names[0], None, None
    return "uri", "key" if "key" in names else None, "version" if "version" in names else None


_MANIFESTS: Mapping[str, Callable[[BinaryIO, frozenset[str]], Iterator[_Row]]] = {
    "txt": _text_rows,
    "csv": _csv_rows,
    "parquet": _parquet_rows,
}
_FORMATS: Mapping[str, str] = {
    "txt": "UTF-8 text, one URI a line",
    "csv": "UTF-8 CSV with commas and a header that names the column `uri`",
    "parquet": "Parquet with a text column `uri`",
}
