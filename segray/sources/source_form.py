"""The form of a source: a file, a glob, names in braces, or a folder.

Asks the store, since a name may hold wildcard characters and braces.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path

from segray.sources.braces import has_braces
from segray.sources.uris import WILDCARD, split_braces, split_glob
from segray.storage.store import Store
from segray.storage.uris import is_http, local_path, scheme


class SourceForm(Enum):
    """The forms of a source's URI."""

    FILE = "file"
    GLOB = "glob"
    BRACES = "braces"
    FOLDER = "folder"


def form_of(uri: str, store: Store) -> SourceForm:
    """Return the form of a source. A file or folder that exists is no glob and no list, whatever its name.

    An empty object beside a prefix of the same name is the mark of a folder, which some tools write.

    Raises SourceError for a wildcard in a bucket's name.
    """
    size_bytes = None if uri.endswith("/") else _size_of(uri, store)
    if size_bytes is not None and not (size_bytes == 0 and scheme(uri) and _is_folder(uri, store)):
        return SourceForm.FILE
    if size_bytes is None and has_braces(uri):
        folder = split_glob(uri)[0] if WILDCARD.search(uri) else ""
        if not _is_folder(uri, store) and not (has_braces(folder) and _is_folder(folder, store)):
            split_braces(uri)
            return SourceForm.BRACES
    if size_bytes is not None or not WILDCARD.search(uri):
        return SourceForm.FOLDER
    split_glob(uri)
    return SourceForm.FOLDER if _is_folder(uri, store) else SourceForm.GLOB


def _size_of(uri: str, store: Store) -> int | None:
    """Return the size of a file in bytes, None if there is no file."""
    try:
        return store.stat(uri).size_bytes
    except FileNotFoundError:
        return None


def _is_folder(uri: str, store: Store) -> bool:
    """Return whether `uri` is a local folder, or a prefix that is not empty."""
    if not scheme(uri):
        return Path(local_path(uri)).is_dir()
    if is_http(uri):  # A page of links is no folder, and "?" begins a query.
        return False
    try:
        return next(store.list(uri), None) is not None
    except FileNotFoundError:
        return False
