"""All other file systems of fsspec as a backend: memory://, gs://, abfs://, https:// and more."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, cast

import fsspec

from segray._compat import path_in
from segray.errors import AccessError
from segray.storage.backend import Attempt, ListedObject
from segray.storage.uris import join, name, parent

# Fields in which fsspec's file systems give the identity of the content, the most exact first.
_VERSION_FIELDS = ("ETag", "etag", "md5Hash", "generation", "LastModified", "updated", "mtime", "created")


class FsspecBackend:
    """A file system of fsspec, listed folder by folder."""

    def __init__(self, scheme: str) -> None:
        try:
            self._fs = fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
        except (ImportError, ValueError) as error:
            raise AccessError(
                f"Cannot open {scheme}:// URLs",
                found=str(error),
                hint=f"install the fsspec package for {scheme}://, or use s3://",
            ) from error

    def entries(self, uri: str, prefix: str, attempt: Attempt) -> Iterator[ListedObject]:
        return self._walk(uri, "", prefix, attempt)

    def _walk(self, root: str, key: str, prefix: str, attempt: Attempt) -> Iterator[ListedObject]:
        folder = join(root, key.removesuffix("/")) if key else root
        children: dict[str, dict[str, Any]] = attempt(lambda backend: backend._children(folder))
        for child in sorted(children):
            below = key + child
            if child.endswith("/"):
                if below.startswith(prefix) or prefix.startswith(below):
                    yield from self._walk(root, below, prefix, attempt)
            elif below.startswith(prefix):
                yield _entry(join(root, below), below, children[child])

    def _children(self, uri: str) -> dict[str, dict[str, Any]]:
        """Return the entries directly in a folder, by name. Names of folders end with "/"."""
        path = path_in(self._fs, uri).rstrip("/")
        listed = self._fs.ls(path, detail=True)
        if len(listed) == 1 and listed[0]["type"] == "file" and listed[0]["name"].rstrip("/") == path:
            raise FileNotFoundError(errno.ENOENT, "a file, not a folder", uri)
        return {_child_name(child): child for child in listed if child["name"].rstrip("/") != path}

    def names(self, uri: str) -> list[str]:
        return list(self._children(uri))

    def stat(self, uri: str) -> ListedObject:
        info = self._fs.info(path_in(self._fs, uri))
        if info["type"] != "file":
            raise FileNotFoundError(errno.ENOENT, "no such object", uri)
        return _entry(uri, name(uri), info)

    def read(self, uri: str, start: int, size: int | None) -> bytes:
        stop = None if size is None else start + size
        data = self._fs.cat_file(path_in(self._fs, uri), start=start or None, end=stop)
        return cast(bytes, data if size is None else data[:size])

    def put(self, uri: str, data: bytes) -> None:
        self._pipe(uri, data, "overwrite")

    def create(self, uri: str, data: bytes) -> None:
        with suppress(FileExistsError):
            self._pipe(uri, data, "create")

    def _pipe(self, uri: str, data: bytes, mode: str) -> None:
        path = path_in(self._fs, uri)
        self._fs.makedirs(parent(path), exist_ok=True)
        self._fs.pipe_file(path, data, mode=mode)

    def delete(self, uri: str) -> None:
        self._fs.rm_file(path_in(self._fs, uri))


def _child_name(child: Mapping[str, Any]) -> str:
    last = name(child["name"].rstrip("/"))
    return last + "/" if child["type"] == "directory" else last


def _entry(uri: str, key: str, info: Mapping[str, Any]) -> ListedObject:
    size = info.get("size")
    version = next((info[field] for field in _VERSION_FIELDS if info.get(field)), "")
    if isinstance(version, datetime):  # Some file systems give the same moment as a datetime or as a number.
        version = version.timestamp()
    return ListedObject(uri, key, str(version).strip('"'), -1 if size is None else size)
