"""All other file systems of fsspec as a backend: memory://, gs://, abfs://, https:// and more."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import fsspec

from segray._compat import path_in
from segray.errors import AccessError
from segray.storage.backend import Attempt, ListedObject, Walk
from segray.storage.uris import join, name, parent

# Fields in which fsspec's file systems give the identity of the content, the most exact first.
_VERSION_FIELDS = ("ETag", "etag", "md5Hash", "generation", "LastModified", "updated", "mtime", "created")
_LISTINGS_AT_ONCE = 16  # folders that are listed at the same time
_MOST_AHEAD = 256  # listings that are kept until their turn comes
_Children = dict[str, dict[str, Any]]


class FsspecBackend:
    """A file system of fsspec, listed folder by folder, several folders at a time."""

    def __init__(self, scheme: str) -> None:
        try:
            self._fs = fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
        except (ImportError, ValueError) as error:
            raise AccessError(
                f"Cannot open {scheme}:// URLs",
                found=str(error),
                hint=f"install the fsspec package for {scheme}://, or use s3://",
            ) from error

    def entries(self, uri: str, prefix: str, attempt: Attempt, walk: Walk) -> Iterator[ListedObject]:
        """Yield the objects in the order of their keys. The listings of the next folders run meanwhile."""

        def list_folder(key: str) -> _Listing:
            folder = join(uri, key.removesuffix("/")) if key else uri
            try:
                children = cast(_Children, attempt(lambda backend: backend._children(folder)))
            except (FileNotFoundError, AccessError) as error:
                if not key or (walk.on_fault is None and isinstance(error, AccessError)):
                    raise
                if walk.on_fault is not None and isinstance(error, AccessError):
                    walk.on_fault(key, error.short())
                children = {}  # The folder is refused, or gone since its parent was listed.
            return _Listing(children, _folders(key, children, prefix, walk))

        with ThreadPoolExecutor(_LISTINGS_AT_ONCE, thread_name_prefix="listing") as pool:
            ahead = _ListingsAhead(lambda key: pool.submit(list_folder, key))
            iterators: list[Iterator[ListedObject | str]] = [iter([""])]  # of the folder in hand and those above it
            try:
                while iterators:
                    item = next(iterators[-1], None)
                    if item is None:
                        iterators.pop()
                    elif isinstance(item, str):
                        iterators.append(_items(uri, item, ahead.take(item), prefix))
                    else:
                        yield item
            finally:
                pool.shutdown(cancel_futures=True)

    def _children(self, uri: str) -> _Children:
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


@dataclass(frozen=True, slots=True)
class _Listing:
    """The entries of one folder by name, and the keys of the folders among them that are to be listed, sorted."""

    children: _Children
    folders: tuple[str, ...]


class _ListingsAhead:
    """The listings of the folders that come next in the order of keys.

    submit: starts the listing of the folder of a key.
    """

    def __init__(self, submit: Callable[[str], Future[_Listing]]) -> None:
        self._submit = submit
        self._folders = [""]  # not taken yet, the next one last
        self._listings: dict[str, Future[_Listing]] = {}

    def take(self, key: str) -> _Listing:
        """Return the listing of the next folder, and start listings of folders behind it."""
        self._start()
        listing = self._listings.pop(key).result()
        self._folders.pop()
        self._folders += reversed(listing.folders)
        return listing

    def _start(self) -> None:
        """Start listings in the order of keys, also of folders inside folders whose listing has ended."""
        running = sum(not listing.done() for listing in self._listings.values())
        upcoming = self._folders[-_MOST_AHEAD:]
        while upcoming and running < _LISTINGS_AT_ONCE:
            key = upcoming.pop()
            listing = self._listings.get(key)
            if listing is None:
                if len(self._listings) >= _MOST_AHEAD and key != self._folders[-1]:
                    return
                self._listings[key] = self._submit(key)
                running += 1
            elif listing.done() and listing.exception() is None:
                upcoming += reversed(listing.result().folders)
        if self._folders[-1] not in self._listings:
            self._listings[self._folders[-1]] = self._submit(self._folders[-1])


def _folders(key: str, children: _Children, prefix: str, walk: Walk) -> tuple[str, ...]:
    keys = sorted(key + child for child in children if child.endswith("/"))
    return tuple(
        below for below in keys if (below.startswith(prefix) or prefix.startswith(below)) and walk.enters(below)
    )


def _items(uri: str, key: str, listing: _Listing, prefix: str) -> Iterator[ListedObject | str]:
    """Yield the objects directly in the folder `key`, and the keys of the folders to list, sorted by key."""
    folders = set(listing.folders)
    for child in sorted(listing.children):
        below = key + child
        if child.endswith("/"):
            if below in folders:
                yield below
        elif below.startswith(prefix):
            yield _entry(join(uri, below), below, listing.children[child])


def _child_name(child: Mapping[str, Any]) -> str:
    last = name(child["name"].rstrip("/"))
    return last + "/" if child["type"] == "directory" else last


def _entry(uri: str, key: str, info: Mapping[str, Any]) -> ListedObject:
    size = info.get("size")
    version = next((info[field] for field in _VERSION_FIELDS if info.get(field)), "")
    if isinstance(version, datetime):  # Some file systems give the same moment as a datetime or as a number.
        version = version.timestamp()
    return ListedObject(uri, key, str(version).strip('"'), -1 if size is None else size)
