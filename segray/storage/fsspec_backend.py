"""All other file systems of fsspec as a backend: memory://, ftp://, hf://, github://, webhdfs:// and more.

Knows fsspec. A URL's host, port, user and password reach the file system, as `fsspec.core.url_to_fs` reads them. The
store's options reach the file system by the names that the file system gives them.
"""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar, cast

from fsspec import available_protocols
from fsspec.asyn import sync
from fsspec.core import url_to_fs

from segray._compat import coroutine_method, path_in
from segray.errors import AccessError
from segray.storage.backend import Attempt, ListedObject, Walk
from segray.storage.options import StorageOptions
from segray.storage.time_limits import TimeLimits, in_thread, limits_of, within
from segray.storage.uris import (
    AZURE_SCHEMES,
    GOOGLE_SCHEMES,
    HTTP_SCHEMES,
    S3_SCHEMES,
    join,
    name,
    parent,
    redact,
    scheme,
)

T = TypeVar("T")

# Fields in which fsspec's file systems give the identity of the content, the most exact first.
_VERSION_FIELDS = ("ETag", "etag", "md5Hash", "generation", "blob_id", "LastModified", "updated", "mtime", "modified",
                   "modify", "created")  # fmt: skip
_LISTINGS_AT_ONCE = 16  # folders that are listed at the same time
_MOST_AHEAD = 256  # listings that are kept until their turn comes
_Children = dict[str, dict[str, Any]]


def is_known_scheme(kind: str) -> bool:
    """Return whether a file system has this scheme, whether or not its package is installed."""
    return kind in (*S3_SCHEMES, *AZURE_SCHEMES, *GOOGLE_SCHEMES, *HTTP_SCHEMES) or kind in available_protocols()


class FsspecBackend:
    """A file system of fsspec, listed folder by folder, several folders at a time.

    uri: a URL of the host that the backend connects to. Threads share a file system that works on fsspec's event loop.
    Each call of any other file system has a connection of its own: such a file system seldom may be shared by threads.
    """

    def __init__(self, uri: str, options: StorageOptions, **arguments: Any) -> None:
        self._uri, self._limits = uri, limits_of(options.timeout_s)
        self._arguments = {**_arguments(scheme(uri), options, self._limits), **arguments}
        self._unused = deque([_open(uri, self._arguments)])
        self._path = self._unused[0]  # for names alone

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Return the result of a method of the file system, within the time limits."""
        filesystem = self._path
        if filesystem.async_impl:
            coroutine = coroutine_method(filesystem, method)
            return sync(filesystem.loop, within, self._limits.total_s, coroutine, *args, **kwargs)
        return in_thread(self._limits.total_s, self._on_unused, method, *args, **kwargs)

    def _on_unused(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of an unused file system, or of a new one. One whose call has failed is not used again."""
        try:
            filesystem = self._unused.pop()
        except IndexError:
            filesystem = _open(self._uri, self._arguments)
        try:
            result = getattr(filesystem, method)(*args, **kwargs)
        except FileNotFoundError:
            self._unused.append(filesystem)
            raise
        self._unused.append(filesystem)
        return result

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
        path = path_in(self._path, uri).rstrip("/")
        listed = self._call("ls", path, detail=True)
        if len(listed) == 1 and listed[0]["type"] == "file" and listed[0]["name"].rstrip("/") == path:
            raise FileNotFoundError(errno.ENOENT, "a file, not a folder", uri)
        return {_child_name(child): child for child in listed if child["name"].rstrip("/") != path}

    def names(self, uri: str) -> list[str]:
        return list(self._children(uri))

    def stat(self, uri: str) -> ListedObject:
        info = self._call("info", path_in(self._path, uri))
        if info["type"] != "file":
            raise FileNotFoundError(errno.ENOENT, "no such object", uri)
        return _entry(uri, name(uri), info)

    def read(self, uri: str, start: int, size: int | None) -> bytes:
        stop = None if size is None else start + size
        data = self._call("cat_file", path_in(self._path, uri), start=start or None, end=stop)
        return cast(bytes, data if size is None else data[:size])

    def put(self, uri: str, data: bytes) -> None:
        self._pipe(uri, data, "overwrite")

    def create(self, uri: str, data: bytes) -> None:
        with suppress(FileExistsError):
            self._pipe(uri, data, "create")

    def _pipe(self, uri: str, data: bytes, mode: str) -> None:
        path = path_in(self._path, uri)
        self._call("makedirs", parent(path), exist_ok=True)
        self._call("pipe_file", path, data, mode=mode)

    def delete(self, uri: str) -> None:
        self._call("rm_file", path_in(self._path, uri))


def _open(uri: str, arguments: Mapping[str, Any]) -> Any:
    """Return a new file system for the host of `uri`. Raises AccessError for a URL that no file system can open."""
    try:
        return url_to_fs(uri, **arguments)[0]
    except ImportError as error:
        raise missing_package(uri, error) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise AccessError(
            f"Cannot open {scheme(uri)}:// URLs",
            where=redact(uri),
            found=f"{type(error).__name__}: {error}",
            hint="correct the URL; docs/stores.md has the form and the variables of each scheme",
        ) from error


_EXTRAS = {"hf": "hf"}
_PACKAGES = {"sftp": "paramiko", "ssh": "paramiko", "smb": "smbprotocol", "github": "requests", "webhdfs": "requests"}


def missing_package(uri: str, error: ImportError, extra: str | None = None) -> AccessError:
    """Return the error for a scheme whose package is not installed.

    extra: the extra of segray that installs the package; by default the one for the scheme, if there is one.
    """
    kind = scheme(uri)
    extra = extra or _EXTRAS.get(kind)
    package = f"'segray[{extra}]'" if extra else _PACKAGES.get(kind, f"the fsspec package for {kind}://")
    command = package if package.startswith("the ") else f"pip install {package}"
    hint = f"install {package}" if command == package else command
    return AccessError(
        f"Cannot open {kind}:// URLs", where=redact(uri), found=f"{error}", hint=f"{hint}; on every node of a cluster"
    )


def _arguments(kind: str, options: StorageOptions, limits: TimeLimits) -> dict[str, Any]:
    """Return the arguments of a scheme's file system."""
    common: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    own = _ARGUMENTS.get(kind)
    return common | (own(options, limits) if own else {})


# The names that file systems give to the time limits and to anonymous access.
_ARGUMENTS: Mapping[str, Callable[[StorageOptions, TimeLimits], dict[str, Any]]] = {
    "ftp": lambda options, limits: {"timeout": limits.silence_s},
    "sftp": lambda options, limits: {"timeout": limits.connect_s, "banner_timeout": limits.silence_s},
    "ssh": lambda options, limits: {"timeout": limits.connect_s, "banner_timeout": limits.silence_s},
    "smb": lambda options, limits: {"timeout": max(1, round(limits.silence_s))},
    "github": lambda options, limits: {"timeout": (limits.connect_s, limits.silence_s)},
    "hf": lambda options, limits: {"token": False} if options.anonymous else {},
}


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
