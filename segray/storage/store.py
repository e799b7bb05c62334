"""Where bytes lie: local folders, S3 and every other fsspec URL behind one small class.

Knows how to list, read and write whole objects, when to try again, and what a storage error means; knows
nothing of images, tables or runs. The only home of fsspec, s3fs and botocore.

URIs are taken as written: a local path (plain or file://), s3://bucket/key, or any fsspec URL. Nothing is
percent-decoded. Keys are sorted by code point, which is the order of S3. Key and secret come from the usual
AWS environment variables or profile, never from here.

Every method raises FileNotFoundError (no such object), AccessError (credentials, permissions, no such bucket:
never tried again) or WorldError (throttling, 5xx, network, full disk: tried again where that may help).
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import random
import re
import stat
import threading
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from time import sleep
from typing import Any, BinaryIO, Protocol, TypeVar, cast

import fsspec
import s3fs
from aiohttp import ClientError as HttpError
from aiohttp import ClientResponseError
from botocore import exceptions as boto
from botocore.session import Session
from fsspec.asyn import sync

from segray._compat import load_session, path_in, s3_client
from segray.errors import AccessError, WorldError

T = TypeVar("T")
R = TypeVar("R")
# Runs one request of a listing, again where that may help, on the place as it then is.
_Attempt = Callable[[Callable[[Any], Any]], Any]

_TEMPORARY = ".segray-tmp"  # ends the names of files that are not whole yet; no listing shows them
_S3_SCHEMES = ("s3", "s3a")
_BACKOFF_S, _LONGEST_BACKOFF_S = 0.5, 20.0
_ABREAST, _ABREAST_BYTES = 8, 64 * 2**20
_REQUESTS_PER_CALL = 3  # of deltalake, more or less: the log's listing, its checkpoint, its last commits


@dataclass(frozen=True)
class StorageOptions:
    """How to reach storage. retries: further attempts after the first. timeout_s: silence on a connection."""

    endpoint_url: str | None = None
    region: str | None = None
    anonymous: bool = False
    retries: int = 6
    timeout_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One listed object. key: its path below the listed root, with "/" whatever the system.

    version: etag without quotes for object stores, "size-mtime_ns" for files, "" if neither is told.
    size_bytes: -1 for a link that points nowhere.
    """

    uri: str
    key: str
    version: str
    size_bytes: int


def join(root: str, *parts: str) -> str:
    """The URI of `parts` below `root`."""
    return "/".join([root[:-1] if root.endswith("/") else root, *parts]) if root else "/".join(parts)


def parent(uri: str) -> str:
    """The folder or prefix that `uri` lies in; "" for a bare name."""
    return uri.rpartition("/")[0]


def name(uri: str) -> str:
    """The last component of `uri`."""
    return uri.rpartition("/")[2]


def scheme(uri: str) -> str:
    """ "s3" of "s3://bucket/key", and "" for every local path."""
    before, separator, _ = uri.partition("://")
    return before.lower() if separator and before.lower() != "file" else ""


def absolute(uri: str) -> str:
    """`uri` as other processes can open it: local paths absolute and plain, the rest unchanged."""
    return uri if scheme(uri) else _local_path(uri)


def _local_path(uri: str) -> str:
    path = os.path.expanduser(uri.removeprefix("file://"))  # noqa: PTH111  Path would fold "//" and drop a last "/"
    if "\0" in path:
        raise FileNotFoundError(errno.ENOENT, "a path cannot contain a NUL", uri)
    return os.path.abspath(path)  # noqa: PTH100


class Store:
    """One process's way to storage; safe for many threads, and a copy sent elsewhere connects anew there.

    known: URIs in buckets that are there. Like one that has answered once, such a bucket does not cease to exist: a
    store that denies it is failing (Swift, while its container servers are gone).
    """

    def __init__(self, options: StorageOptions | None = None, known: Iterable[str] = ()) -> None:
        self.options = options or StorageOptions()
        self._known = {_bucket_and_key(uri)[0] for uri in known}
        self._places: dict[str, _Place] = {}
        self._lock = threading.Lock()
        _stores.add(self)

    def __reduce__(self) -> tuple[type[Store], tuple[StorageOptions]]:
        return Store, (self.options,)

    def list(self, uri: str, *, prefix: str = "") -> Iterator[Entry]:
        """All objects below folder `uri` whose key starts with `prefix`, sorted by key, never all in memory.

        A folder that is missing raises FileNotFoundError where folders exist; in an object store it is empty.
        """
        return self._place(uri).entries(uri, prefix, partial(self._try, uri))

    def names(self, uri: str) -> builtins.list[str]:
        """The sorted names directly below a small folder, subfolders too; none if there is no such folder."""
        try:
            found = self._try(uri, lambda place: place.names(uri))
        except FileNotFoundError:
            return []
        return sorted(each.removesuffix("/") for each in found)

    def stat(self, uri: str) -> Entry:
        """The object named `uri` exactly; its key is its name. A folder is not an object."""
        return self._try(uri, lambda place: place.stat(uri))

    def exists(self, uri: str) -> bool:
        """Whether an object of exactly this name is there. A folder is not an object."""
        try:
            self.stat(uri)
        except FileNotFoundError:
            return False
        return True

    def read(self, uri: str, max_bytes: int | None = None) -> bytes:
        """The object's bytes, or its first `max_bytes`, in one request."""
        return self._try(uri, lambda place: place.read(uri, 0, max_bytes))

    def read_range(self, uri: str, start: int, size: int) -> bytes:
        """`size` bytes of the object from byte `start` on, in one request; fewer at its end."""
        return self._try(uri, lambda place: place.read(uri, start, size)) if size > 0 else b""

    def reader(self, uri: str) -> BinaryIO:
        """The object as a seekable binary file, read by ranges; for pyarrow and text readers."""
        if not scheme(uri):
            return self._try(uri, lambda _: Path(_local_path(uri)).open("rb"))
        return cast(BinaryIO, io.BufferedReader(_Ranges(self, uri, self.stat(uri).size_bytes), buffer_size=1 << 20))

    def ranges(self, uri: str, size_bytes: int) -> BinaryIO:
        """The object of this size as a seekable binary file without a buffer: each read is one request."""
        return cast(BinaryIO, _Ranges(self, uri, size_bytes))

    def put(self, uri: str, data: bytes) -> None:
        """Make `data` the whole content of `uri`. Readers see the old object or the new one, never a part."""
        self._try(uri, lambda place: place.put(uri, data))

    def create(self, uri: str, data: bytes) -> None:
        """Like put, unless `uri` is there already: then nothing changes. Whoever must know whose it is, reads it.

        No answer could tell: HTTP clients send a request again by themselves when an answer is lost (aiohttp does),
        and then find what they wrote. Nor does every S3 server decide a race of simultaneous writers for exactly one
        of them (Swift does not).
        """
        self._try(uri, lambda place: place.create(uri, data))

    def delete(self, uri: str) -> None:
        """Remove the object; none there is fine."""
        with suppress(FileNotFoundError):
            self._try(uri, lambda place: place.delete(uri))

    def insist(self, uri: str, call: Callable[[], T]) -> T:
        """Make a call that reaches `uri` by deltalake or Arrow: tried again, its errors translated as all are here.

        The call must be safe to repeat after an attempt whose answer was lost. It makes several requests, each of
        which can fail it, so it is tried more often than one request is.
        """
        return self._try(uri, lambda _: call(), _REQUESTS_PER_CALL * self.options.retries)

    def translated(self, uri: str, call: Callable[[], T]) -> T:
        """Make a call that reaches `uri` and tries again by itself; its errors are translated as all are here."""
        return self._try(uri, lambda _: call(), 0)

    def delta_options(self, uri: str) -> dict[str, str]:
        """deltalake's storage_options for the same place. They hold the secret: never log or store them."""
        return _delta_options(self.options) if scheme(uri) in _S3_SCHEMES else {}

    def _try(self, uri: str, call: Callable[[_Place], T], retries: int | None = None) -> T:
        retries = self.options.retries if retries is None else retries
        for attempt in count():
            try:
                answer = call(self._place(uri))
                self._known.add(_bucket_and_key(uri)[0])
                return answer
            except Exception as error:
                verdict = _judge(error, uri)
                if verdict is None:
                    raise
                if verdict.no_bucket and _bucket_and_key(uri)[0] in self._known:
                    found = getattr(verdict.error, "found", "")
                    verdict = _Verdict(
                        _world("Storage denies a bucket that is there", uri, found, _REACH), may_pass=True
                    )
                if not verdict.may_pass or attempt >= retries:
                    raise verdict.error from error
                if verdict.renew:
                    _session.cache_clear()
                    with self._lock:
                        self._places.clear()
            sleep(random.uniform(0.5, 1) * min(_LONGEST_BACKOFF_S, _BACKOFF_S * 2**attempt))
        raise AssertionError("unreachable")

    def _place(self, uri: str) -> _Place:
        kind = scheme(uri)
        with self._lock:
            if kind not in self._places:
                self._places[kind] = _connect(kind, self.options)
            return self._places[kind]


_stores: weakref.WeakSet[Store] = weakref.WeakSet()
_inherited: list[Any] = []


def _leave_to_the_parent() -> None:
    """After a fork: use none of the parent's connections, and close none. A lock may have been taken by its threads."""
    for store in _stores:
        _inherited.append(store._places)
        store._places, store._lock = {}, threading.Lock()


os.register_at_fork(after_in_child=_leave_to_the_parent)


def abreast(call: Callable[[T], R], items: Iterable[T], size_bytes: Callable[[T], int]) -> Iterator[R]:
    """What the calls return, in the order of the items; a few are under way at once, as far as their sizes allow.

    The items are made here, each when there is room for it. The first error ends it when what is under way has ended.
    """
    waiting: deque[tuple[Future[R], int]] = deque()
    with ThreadPoolExecutor(_ABREAST, thread_name_prefix="abreast") as pool:
        for item in items:
            waiting.append((pool.submit(call, item), size_bytes(item)))
            while len(waiting) == _ABREAST or sum(size for _, size in waiting) > _ABREAST_BYTES:
                yield waiting.popleft()[0].result()
        while waiting:
            yield waiting.popleft()[0].result()


class _Ranges(io.RawIOBase):
    """A remote object as a raw, seekable file; each read is one ranged request of the store."""

    def __init__(self, store: Store, uri: str, size_bytes: int) -> None:
        self._store, self._uri, self._size, self._at = store, uri, size_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, offset + (0, self._at, self._size)[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self._size - self._at)
        if size <= 0:
            return 0
        data = self._store._try(self._uri, lambda place: place.read(self._uri, self._at, size))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class _Place(Protocol):
    """One kind of storage, without retries or translated errors. `create` says False if the object is there."""

    def entries(self, uri: str, prefix: str, attempt: _Attempt) -> Iterator[Entry]: ...
    def names(self, uri: str) -> list[str]: ...
    def stat(self, uri: str) -> Entry: ...
    def read(self, uri: str, start: int, size: int | None) -> bytes: ...
    def put(self, uri: str, data: bytes) -> None: ...
    def create(self, uri: str, data: bytes) -> None: ...
    def delete(self, uri: str) -> None: ...


def _connect(scheme: str, options: StorageOptions) -> _Place:
    if not scheme:
        return _Local()
    return _S3(options) if scheme in _S3_SCHEMES else _Other(scheme)


class _Local:
    """The local file system. Links are followed, except into a folder that is being listed already."""

    def entries(self, uri: str, prefix: str, attempt: _Attempt) -> Iterator[Entry]:
        return self._walk(_local_path(uri), "", prefix, frozenset(), attempt)

    def _walk(
        self, folder: str, key: str, prefix: str, above: frozenset[tuple[int, int]], attempt: _Attempt
    ) -> Iterator[Entry]:
        try:
            identity, found = attempt(lambda _: (_identity(folder), sorted(_scan(folder))))
        except FileNotFoundError:
            if not key:
                raise
            return  # removed since its parent was listed
        if identity in above:
            return
        for each in found:
            path, below = join(folder, each.removesuffix("/")), key + each
            if each.endswith("/"):
                if below.startswith(prefix) or prefix.startswith(below):
                    yield from self._walk(path, below, prefix, above | {identity}, attempt)
            elif below.startswith(prefix):
                yield from self._file(path, below, attempt)

    def _file(self, path: str, key: str, attempt: _Attempt) -> Iterator[Entry]:
        if entry := attempt(lambda _: _file_entry(path, key)):
            yield entry

    def names(self, uri: str) -> list[str]:
        return list(_scan(_local_path(uri)))

    def stat(self, uri: str) -> Entry:
        path = _local_path(uri)
        entry = _file_entry(path, name(path))
        if uri.endswith("/") or entry is None or entry.size_bytes < 0:
            raise FileNotFoundError(errno.ENOENT, "no such file", uri)
        return entry

    def read(self, uri: str, start: int, size: int | None) -> bytes:
        # Without blocking: a pipe that nobody writes to would be waited for.
        with open(_local_path(uri), "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise FileNotFoundError(errno.ENOENT, "neither a file nor a link to one", uri)
            file.seek(start)
            return file.read(-1 if size is None else size)

    def put(self, uri: str, data: bytes) -> None:
        path = Path(_local_path(uri))
        with _whole_file(path.parent, data) as temporary:
            temporary.replace(path)

    def create(self, uri: str, data: bytes) -> None:
        path = Path(_local_path(uri))
        with _whole_file(path.parent, data) as temporary, suppress(FileExistsError):
            path.hardlink_to(temporary)

    def delete(self, uri: str) -> None:
        Path(_local_path(uri)).unlink()


def _identity(folder: str) -> tuple[int, int]:
    status = Path(folder).stat()
    return status.st_dev, status.st_ino


def _scan(folder: str) -> Iterator[str]:
    """Names, folders with a last "/": sorted as names, they are then in the order of the whole keys."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.endswith(_TEMPORARY):
                yield entry.name + "/" if entry.is_dir() else entry.name


def _file_entry(path: str, key: str) -> Entry | None:
    """None for what is no file: folders, pipes, devices, and files that are gone."""
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        return Entry(path, key, "", -1) if Path(path).is_symlink() else None
    if not stat.S_ISREG(status.st_mode):
        return None
    return Entry(path, key, f"{status.st_size}-{status.st_mtime_ns}", status.st_size)


@contextmanager
def _whole_file(folder: Path, data: bytes) -> Iterator[Path]:
    """A durable file with all of `data`, to be renamed or linked within `folder`; nothing else is left behind."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{uuid.uuid4().hex}{_TEMPORARY}"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
        _sync_folder(folder)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class _S3:
    """S3 and its kin through the botocore client that s3fs keeps on its event loop.

    Not through s3fs' file methods: these retry on their own, ask for the size before each read, rewrite some
    keys, hold whole listings, and turn a missing bucket into a missing file.
    """

    def __init__(self, options: StorageOptions) -> None:
        config: dict[str, Any] = {
            "connect_timeout": min(10.0, options.timeout_s),
            "read_timeout": options.timeout_s,
            "retries": {"mode": "standard", "total_max_attempts": 1},
            "max_pool_connections": 64,
        }
        if endpoint := _endpoint(options):
            if scheme(endpoint) not in ("http", "https") or "@" in endpoint or "?" in endpoint:
                # Without what may be a secret.
                found = repr(endpoint.rpartition("@")[2].partition("?")[0])
                raise AccessError("Not an endpoint", found=found, do="write storage.endpoint_url as http://host:port")
            # S3-compatible servers seldom have a host name per bucket, and some refuse chunked checksums.
            config["s3"] = {"addressing_style": "path"}
            config |= dict.fromkeys(("request_checksum_calculation", "response_checksum_validation"), "when_required")
        self._fs = s3fs.S3FileSystem(
            anon=options.anonymous,
            endpoint_url=endpoint,
            client_kwargs={"region_name": options.region} if options.region else {},
            config_kwargs=config,
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return cast(dict[str, Any], sync(self._fs.loop, self._request, method, parameters))

    async def _request(self, method: str, parameters: Mapping[str, Any]) -> Any:
        client = await s3_client(self._fs)
        reply = await getattr(client, method)(**parameters)
        if method == "get_object":
            async with reply["Body"] as body:
                return {"Body": await body.read()}
        return reply

    def _pages(self, uri: str, prefix: str, delimiter: str, attempt: _Attempt) -> Iterator[dict[str, Any]]:
        bucket, folder = _bucket_and_folder(uri)
        ask: dict[str, Any] = {"Bucket": bucket, "Prefix": folder + prefix, "Delimiter": delimiter}
        while True:
            page = attempt(lambda place: place._call("list_objects_v2", **ask))
            yield page
            if not page.get("IsTruncated"):
                return
            ask["ContinuationToken"] = page["NextContinuationToken"]

    def entries(self, uri: str, prefix: str, attempt: _Attempt) -> Iterator[Entry]:
        bucket, folder = _bucket_and_folder(uri)
        for page in self._pages(uri, prefix, "", attempt):
            for found in page.get("Contents", ()):
                if not found["Key"].endswith("/"):  # the marks that consoles leave for empty folders
                    yield _object_entry(bucket, found["Key"], folder, found)

    def names(self, uri: str) -> list[str]:
        _, folder = _bucket_and_folder(uri)
        found: list[str] = []
        for page in self._pages(uri, "", "/", lambda call: call(self)):
            found += [each["Key"] for each in page.get("Contents", ())]
            found += [each["Prefix"] for each in page.get("CommonPrefixes", ())]
        return [each.removeprefix(folder) for each in found if each != folder]

    def stat(self, uri: str) -> Entry:
        bucket, key = _bucket_and_object(uri)
        reply = self._call("head_object", Bucket=bucket, Key=key)
        return _object_entry(bucket, key, parent(key) + "/" if "/" in key else "", reply)

    def read(self, uri: str, start: int, size: int | None) -> bytes:
        bucket, key = _bucket_and_object(uri)
        part = {} if size is None else {"Range": f"bytes={start}-{start + size - 1}"}
        try:
            return cast(bytes, self._call("get_object", Bucket=bucket, Key=key, **part)["Body"])
        except boto.ClientError as error:
            if _status(error) == 416:  # no such range: an empty object
                return b""
            raise

    def put(self, uri: str, data: bytes) -> None:
        bucket, key = _bucket_and_object(uri)
        self._call("put_object", Bucket=bucket, Key=key, Body=data)

    def create(self, uri: str, data: bytes) -> None:
        bucket, key = _bucket_and_object(uri)
        try:
            self._call("put_object", Bucket=bucket, Key=key, Body=data, IfNoneMatch="*")
        except boto.ClientError as error:
            if _status(error) != 412:
                raise

    def delete(self, uri: str) -> None:
        bucket, key = _bucket_and_object(uri)
        self._call("delete_object", Bucket=bucket, Key=key)


def _bucket_and_key(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.partition("://")[2].partition("/")
    return bucket, key


def _bucket_and_folder(uri: str) -> tuple[str, str]:
    bucket, key = _bucket_and_key(uri)
    return bucket, key + "/" if key and not key.endswith("/") else key


def _bucket_and_object(uri: str) -> tuple[str, str]:
    bucket, key = _bucket_and_key(uri)
    if not key:
        raise FileNotFoundError(errno.ENOENT, "a bucket is not an object", uri)
    return bucket, key


def _object_entry(bucket: str, key: str, folder: str, found: Mapping[str, Any]) -> Entry:
    size = found["Size"] if "Size" in found else found["ContentLength"]
    return Entry(f"s3://{bucket}/{key}", key.removeprefix(folder), found.get("ETag", "").strip('"'), size)


def _endpoint(options: StorageOptions) -> str | None:
    return options.endpoint_url or os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


@lru_cache(8)
def _session(process: int, environment: frozenset[tuple[str, str]]) -> Session:
    """Asking anew costs milliseconds, or a request for a role's credentials; botocore renews these by itself."""
    session = Session()
    load_session(session)
    return session


def _delta_options(options: StorageOptions) -> dict[str, str]:
    session = _session(os.getpid(), frozenset(each for each in os.environ.items() if each[0].startswith("AWS_")))
    region = options.region or session.get_config_variable("region") or "us-east-1"
    # Trying again is ours: deltalake's own ten attempts last some three seconds, and spare bodies that are cut short.
    chosen = {"AWS_REGION": region, "max_retries": "0", "timeout": f"{options.timeout_s:g}s"}
    if endpoint := _endpoint(options):
        allow_http = str(endpoint.lower().startswith("http://")).lower()
        chosen |= {"AWS_ENDPOINT_URL": endpoint, "AWS_ALLOW_HTTP": allow_http}
        chosen |= {"AWS_VIRTUAL_HOSTED_STYLE_REQUEST": "false"}
    if options.anonymous:
        return chosen | {"AWS_SKIP_SIGNATURE": "true"}
    credentials = session.get_credentials()
    if credentials is None:
        return chosen
    frozen = credentials.get_frozen_credentials()
    chosen |= {"AWS_ACCESS_KEY_ID": frozen.access_key, "AWS_SECRET_ACCESS_KEY": frozen.secret_key}
    return chosen | ({"AWS_SESSION_TOKEN": frozen.token} if frozen.token else {})


class _Other:
    """Any other fsspec file system: memory://, gs://, abfs://, https:// ..., listed folder by folder."""

    def __init__(self, scheme: str) -> None:
        try:
            self._fs = fsspec.filesystem(scheme, use_listings_cache=False, skip_instance_cache=True)
        except (ImportError, ValueError) as error:
            raise AccessError(
                f"Cannot open {scheme}:// URLs", found=str(error), do="install the fsspec package for it, or use s3://"
            ) from error

    def entries(self, uri: str, prefix: str, attempt: _Attempt) -> Iterator[Entry]:
        return self._walk(uri, "", prefix, attempt)

    def _walk(self, root: str, key: str, prefix: str, attempt: _Attempt) -> Iterator[Entry]:
        folder = join(root, key.removesuffix("/")) if key else root
        found: dict[str, dict[str, Any]] = attempt(lambda place: place._children(folder))
        for each in sorted(found):
            below = key + each
            if each.endswith("/"):
                if below.startswith(prefix) or prefix.startswith(below):
                    yield from self._walk(root, below, prefix, attempt)
            elif below.startswith(prefix):
                yield self._entry(join(root, below), below, found[each])

    def _children(self, uri: str) -> dict[str, dict[str, Any]]:
        path = path_in(self._fs, uri).rstrip("/")
        found = self._fs.ls(path, detail=True)
        if len(found) == 1 and found[0]["type"] == "file" and found[0]["name"].rstrip("/") == path:
            raise FileNotFoundError(errno.ENOENT, "a file, not a folder", uri)
        below = [each for each in found if each["name"].rstrip("/") != path]
        return {name(each["name"].rstrip("/")) + "/" * (each["type"] == "directory"): each for each in below}

    def _entry(self, uri: str, key: str, found: Mapping[str, Any]) -> Entry:
        size = found.get("size")
        version = next((found[each] for each in _VERSION_FIELDS if found.get(each)), "")
        if isinstance(version, datetime):  # some file systems tell the same moment in either form
            version = version.timestamp()
        return Entry(uri, key, str(version).strip('"'), -1 if size is None else size)

    def names(self, uri: str) -> list[str]:
        return list(self._children(uri))

    def stat(self, uri: str) -> Entry:
        found = self._fs.info(path_in(self._fs, uri))
        if found["type"] != "file":
            raise FileNotFoundError(errno.ENOENT, "no such object", uri)
        return self._entry(uri, name(uri), found)

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


# What fsspec's file systems call the content's identity, most exact first.
_VERSION_FIELDS = ("ETag", "etag", "md5Hash", "generation", "LastModified", "updated", "mtime", "created")


@dataclass(frozen=True)
class _Verdict:
    """What a storage error means. may_pass: worth another attempt; renew: with fresh credentials.

    no_bucket: the store says that there is no such bucket.
    """

    error: Exception
    may_pass: bool = False
    renew: bool = False
    no_bucket: bool = False


# Refusals that a later attempt with fresh credentials or a corrected clock may not meet.
_STALE = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestTimeTooSkewed", "RequestExpired"}
_BUSY = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded"}
_BUSY |= {"ConditionalRequestConflict", "OperationAborted", "InternalError", "ServiceUnavailable"}
_NO_SUCH_FILE = {errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP}
_ADVICE = {
    "SignatureDoesNotMatch": "correct AWS_SECRET_ACCESS_KEY (it does not fit AWS_ACCESS_KEY_ID)",
    "InvalidAccessKeyId": "correct AWS_ACCESS_KEY_ID or AWS_PROFILE; this store does not know the key",
    "NoSuchBucket": "create the bucket, or correct its name or storage.endpoint_url",
    "NoCredentialsError": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; "
    "for a public bucket set storage.anonymous",
    "PermanentRedirect": "set storage.region to the bucket's region",
    "AuthorizationHeaderMalformed": "set storage.region to the bucket's region",
}
_ADVICE_ELSE = "check the key and secret, and that they may list, read, write and delete in this bucket"
_REACH = "check storage.endpoint_url and the network; the same command resumes"


def _judge(error: Exception, uri: str) -> _Verdict | None:
    """What `error` means for `uri`; None if it is not storage's error or is translated already."""
    if isinstance(error, boto.ClientError):
        return _judge_reply(error, uri)
    if isinstance(error, boto.BotoCoreError):
        return _judge_client(error, uri)
    if isinstance(error, ClientResponseError) and 400 <= error.status < 500 and error.status not in (408, 429):
        return _Verdict(_missing(uri, f"{error.status} {error.message}"))
    if isinstance(error, OSError):
        return _judge_os(error, uri)
    if isinstance(error, HttpError):
        return _Verdict(_unreachable(uri, error), may_pass=True)
    return None


def _judge_reply(error: boto.ClientError, uri: str) -> _Verdict:
    told = error.response["Error"]
    return _judge_answer(_status(error), told.get("Code", ""), told.get("Message", ""), uri)


def _judge_answer(status: int, code: str, message: str, uri: str) -> _Verdict:
    found = f"{status} {code}: {message}"[:500]
    if code == "InvalidObjectState":
        return _Verdict(_missing(uri, "archived; restore it from its storage class first"))
    if status == 404 and code != "NoSuchBucket":
        return _Verdict(_missing(uri, "no such object"))
    if code in _STALE:
        return _Verdict(
            _world("The credentials have expired", uri, found, "renew them; the same command resumes"),
            may_pass=True,
            renew=True,
        )
    if code in _BUSY or status in (408, 429) or (status >= 500 and status != 501):
        return _Verdict(_world("Storage is overloaded or failing", uri, found, _REACH), may_pass=True)
    no_bucket = code == "NoSuchBucket"
    what = "No such bucket" if no_bucket else "Storage refused the request"
    error = AccessError(what, where=_where(uri), found=found, do=_ADVICE.get(code, _ADVICE_ELSE))
    return _Verdict(error, no_bucket=no_bucket)


def _judge_client(error: boto.BotoCoreError, uri: str) -> _Verdict:
    """Errors of botocore itself, without an answer from the store."""
    if isinstance(
        error, (boto.ConnectionError, boto.HTTPClientError, boto.IncompleteReadError, boto.ResponseStreamingError)
    ):
        return _Verdict(_unreachable(uri, error), may_pass=True)
    kind = type(error).__name__
    what = "No usable credentials" if "redential" in kind else "Storage cannot be used as configured"
    return _Verdict(
        AccessError(what, where=_where(uri), found=f"{kind}: {error}"[:500], do=_ADVICE.get(kind, _ADVICE_ELSE))
    )


# deltalake tells an answer of the store as a coloured tree of text: a status line and the XML, if there was any.
_DELTA_ANSWER = re.compile(
    r"non-2xx status code\s+\S+\s+(?P<status>\d+) (?P<name>[\w -]*\w)"
    r"(?:.*?<Code>(?P<code>\w+)</Code>(?:.*?<Message>(?P<message>[^<]*)<)?)?",
    re.DOTALL,
)
# Arrow's S3 client tells the SDK's name of the error, and what the store said of it.
_ARROW_ANSWER = re.compile(r"AWS Error (?P<code>[A-Z_]+) during \w+ operation: (?P<message>.*)", re.DOTALL)
_ARROW_STATUS = {"ACCESS_DENIED": 403, "SIGNATURE_DOES_NOT_MATCH": 403, "INVALID_ACCESS_KEY_ID": 403,
                 "EXPIRED_TOKEN": 400, "NO_SUCH_KEY": 404, "NO_SUCH_BUCKET": 404, "RESOURCE_NOT_FOUND": 404,
                 "SLOW_DOWN": 503}  # fmt: skip
_DRAWN = re.compile(r"\x1b\[\d+m|↳")


def _judge_os(error: OSError, uri: str) -> _Verdict:
    number = error.errno
    if number is None and (answer := _DELTA_ANSWER.search(str(error))):
        return _judge_answer(int(answer["status"]), answer["code"] or answer["name"], answer["message"] or "", uri)
    if number is None and (answer := _ARROW_ANSWER.search(str(error))) and answer["code"] in _ARROW_STATUS:
        code = "".join(word.capitalize() for word in answer["code"].split("_"))
        return _judge_answer(_ARROW_STATUS[answer["code"]], code, answer["message"], uri)
    if isinstance(error, FileNotFoundError) or number in _NO_SUCH_FILE:
        return _Verdict(_missing(uri, error.strerror or "no such object"))
    if isinstance(error, PermissionError) or number == errno.EROFS:
        found = error.strerror or str(error)
        return _Verdict(AccessError("No permission", where=_where(uri), found=found, do="correct the permissions"))
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        found = error.strerror or "no space"
        return _Verdict(_world("The disk is full", uri, found, "make room; the same command resumes"))
    return _Verdict(_unreachable(uri, error), may_pass=True)


def _status(error: boto.ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _missing(uri: str, reason: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, reason, shown(uri))


def _world(what: str, uri: str, found: str, do: str) -> WorldError:
    return WorldError(what, where=_where(uri), found=found, do=do)


def _unreachable(uri: str, error: Exception) -> WorldError:
    told = " ".join(_DRAWN.sub("", str(error)).replace(uri, shown(uri)).split())
    return _world("Storage cannot be reached", uri, f"{type(error).__name__}: {told}"[:500], _REACH)


def _where(uri: str) -> str:
    return f"bucket {_bucket_and_key(uri)[0]} ({uri})" if scheme(uri) in _S3_SCHEMES else shown(uri)


def shown(uri: str) -> str:
    """The URI as messages may repeat it: signed links carry their secret behind the question mark."""
    address, mark, query = uri.partition("?")
    if scheme(uri) not in ("http", "https"):
        return uri
    start, separator, rest = address.partition("://")
    host = start + separator + rest.rpartition("@")[2]
    return f"{host}?..." if mark and query else host
