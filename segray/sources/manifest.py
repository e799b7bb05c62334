"""Manifests: files that name images, or files that hold images, by their URIs.

Knows what a URI in a manifest means, and the keys that a manifest gives. manifest_rows.py knows the formats. Opens no
file that a manifest names.

The text as written wins wherever a local file of that name exists. Otherwise blanks and quotes around a URI are no part
of the URI, and a file:// URI is percent-decoded, as Path.as_uri() and Spark write it.
"""

from __future__ import annotations

import hashlib
import re
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote

from segray.errors import SourceError
from segray.instances import ImageRef
from segray.sources.manifest_rows import (
    BROKEN,
    FORMATS,
    Comments,
    ManifestFormatError,
    ManifestReading,
    Row,
    format_of,
    is_comment,
    rows,
    unit_of,
)
from segray.sources.uris import inside
from segray.storage.addresses import address_fault
from segray.storage.fsspec_backend import is_known_scheme
from segray.storage.store import Store
from segray.storage.uris import absolute, is_http, join, local_path, name, parent, scheme

__all__ = ["FORMATS", "ManifestReading", "format_of", "refs"]

_MAX_ERROR_CHARS = 500
_FILE_URI = re.compile(r"file:(?://(?P<host>[^/]*))?(?P<path>/.*)", re.IGNORECASE | re.DOTALL)
_THIS_MACHINE = ("", "localhost", "127.0.0.1")


def refs(uris: Iterable[str], store: Store, reading: ManifestReading) -> Iterator[ImageRef]:
    """Yield one reference for each key of the manifests, from its first row.

    Repeated rows of a key must name the same URI. Relative URIs start at the folder of their manifest.

    Raises SourceError for an invalid manifest: a row without a URI, a URI that no store can have, two URIs for one key,
    or no image at all.
    """
    seen = _SeenKeys()
    first = ""
    for uri in uris:
        first = first or uri
        before = len(seen)
        yield from _refs_of(uri, store, reading, seen)
        if len(seen) == before and before:
            reading.tell(name(uri), "names no further image")
    if not len(seen):
        raise SourceError("The manifest names no image", where=first, hint="write one URI per image into the manifest")


def _refs_of(uri: str, store: Store, reading: ManifestReading, seen: _SeenKeys) -> Iterator[ImageRef]:
    folder, file_format = parent(uri), format_of(uri)
    resolver = _Resolver(folder, may_have_margins=file_format in ("txt", "csv", "tsv"))
    is_text, comments = file_format == "txt", Comments(uri, reading)
    for row in _rows(uri, store, reading):
        if is_text and "#" in row.uri and is_comment(row.uri, reading.extensions) and not _exists(row.uri, folder):
            comments.add(row.uri)
            continue
        written = resolver.without_margins(row.uri)
        if not written or "\0" in written + row.key + row.version:
            cells = (row.uri, row.key, row.version) if row.key or row.version else (row.uri,)
            found = ascii(cells)[:200] if row.uri else ""
            hint = "write a URI without a NUL character into the row, or delete the row"
            raise SourceError("An image without a URI", where=_place(uri, row), found=found, hint=hint)
        try:
            ref = ImageRef(row.key or written, resolver.resolve(written), row.version)
        except SourceError as error:
            raise SourceError(error.what, where=_place(uri, row), found=error.found, hint=error.hint) from None
        same_uri = seen.add(ref.key, ref.uri)
        if same_uri is None:
            yield ref
        elif not same_uri:
            raise SourceError(
                "One key for two images",
                where=_place(uri, row),
                found=repr(ref.key),
                hint="give each image its own key",
            )
    comments.tell()


def _place(uri: str, row: Row) -> str:
    return f"{uri}, {unit_of(uri)} {row.number}"


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
        hashed = _hash(key)
        identity = hashed if uri == key else _hash(uri)
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


class _Resolver:
    """The meaning of the URIs in one manifest.

    folder: the manifest's folder. may_have_margins: whether blanks and quotes around a name are no part of the name, as
    in text that people write. Programs write names into Parquet and JSON as they are.
    """

    def __init__(self, folder: str, *, may_have_margins: bool = True) -> None:
        self._folder, self._may_have_margins = folder, may_have_margins
        self._known_schemes: set[str] = set()

    def without_margins(self, written: str) -> str:
        """Return the URI without blanks and quotes around it, unless a local file has the name as written.

        No URL begins with a blank, and no link ends with one.
        """
        text = written.strip().lstrip("\ufeff")
        if text == written and text[:1] != '"':
            return text
        if not self._may_have_margins and not is_http(text):
            return written.lstrip() if scheme(text) else written
        if len(text) > 2 and text[0] == text[-1] == '"':
            text = text[1:-1].replace('""', '"')
        return written if text != written and _exists(written, self._folder) else text

    def resolve(self, written: str) -> str:
        """Return the URI that storage opens.

        Raises SourceError, without a place, for a URI that no store can have: a mistyped or unknown scheme, or a file
        of another machine.
        """
        kind = scheme(written)
        if kind in self._known_schemes and written[len(kind) + 3 : len(kind) + 4] not in ("", "/"):
            return written
        if written[:5].lower() == "file:":
            return self._resolve_file(written)
        fault = address_fault(written) if ":" in written else None
        if fault is not None and not _exists(written, self._folder):
            raise SourceError(f"An address in the manifest: {fault.what}", found=_shown(written), hint=fault.hint)
        if kind:
            if inside(written) is None:
                self._check_scheme(kind, written)
            return written
        if written.startswith(("/", "~/")):
            return absolute(written)
        return absolute(join(self._folder, written.removeprefix("./")))

    def _check_scheme(self, kind: str, written: str) -> None:
        if not is_known_scheme(kind):
            raise SourceError(
                f"A scheme in the manifest that segray does not know: {_shown(kind)[1:-1][:60]}://",
                found=_shown(written),
                hint="correct the address; docs/stores.md lists the schemes",
            )
        self._known_schemes.add(kind)

    def _resolve_file(self, written: str) -> str:
        """Return the path of a file URI: as written if that file exists, else percent-decoded."""
        match = _FILE_URI.fullmatch(written)
        host = "" if match is None else (match["host"] or "").lower()
        if match is None or host not in _THIS_MACHINE:
            literal = written[7:] if written[5:7] == "//" else written[5:]
            if literal and _exists(literal, "."):  # A path from the working directory, as earlier versions took it.
                return absolute(literal)
            raise SourceError(
                "A file URI that names no file of this machine",
                found=_shown(written),
                hint="write file:///PATH, or the path alone",
            )
        path = match["path"]
        if "%" not in path or _exists(path, "/"):
            return absolute(path)
        try:
            decoded = unquote(path, errors="strict")
        except UnicodeDecodeError:
            return absolute(path)
        return absolute(path if "\0" in decoded else decoded)


def _shown(text: str) -> str:
    return ascii(text)[:200]


def _exists(written: str, folder: str) -> bool:
    """Return whether a local file has the name as written. A remote folder is not asked."""
    if scheme(folder) or scheme(written) or "\0" in written:
        return False
    path = written if written.startswith(("/", "~/")) else join(folder, written.removeprefix("./"))
    try:
        return Path(local_path(path)).exists()
    except OSError:  # Such as a name that is too long.
        return False


def _rows(uri: str, store: Store, reading: ManifestReading) -> Iterator[Row]:
    try:
        with store.reader(uri) as file:
            yield from rows(uri, file, reading)
    except FileNotFoundError as error:
        raise SourceError("The manifest is gone", where=uri, hint="correct source.uri, or restore the file") from error
    except (*BROKEN, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # An error of storage. Arrow's OSError for a wrong format has no errno.
        hint = error.hint if isinstance(error, ManifestFormatError) else ""
        found, written_as = str(error)[:_MAX_ERROR_CHARS], FORMATS[format_of(uri)]
        raise SourceError(
            "Cannot read the manifest", where=uri, found=found, hint=hint or f"write the manifest as {written_as}"
        ) from error
