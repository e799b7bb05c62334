"""One store for local folders, S3 and every other fsspec URL.

Knows how to list, read and write whole objects, which backend to use, and when to retry. Knows nothing of images,
tables or runs.

URIs are taken as written (see uris.py). Keys are sorted by code point, which is the order of S3.

Every method raises FileNotFoundError (no such object), AccessError or InfrastructureError. AccessError means
credentials, permissions or a missing bucket, and is never retried. InfrastructureError means throttling, 5xx, network
or a full disk, and is retried if a retry may help. errors.py has the table.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from segray.errors import AccessError
from segray.storage import azure
from segray.storage.addresses import ROOT_SCHEMES
from segray.storage.backend import WHOLE_TREE, Backend, ListedObject, Walk
from segray.storage.errors import StorageFailure, translate
from segray.storage.fsspec_backend import FsspecBackend
from segray.storage.local import LocalBackend
from segray.storage.options import StorageOptions
from segray.storage.retry import retrying
from segray.storage.uris import (
    AZURE_SCHEMES,
    GOOGLE_SCHEMES,
    HTTP_SCHEMES,
    S3_SCHEMES,
    bucket_and_key,
    is_s3,
    local_path,
    redact,
    scheme,
)

__all__ = ["ListedObject", "StorageOptions", "Store", "Walk", "bounded_map"]

T = TypeVar("T")
R = TypeVar("R")

# Retries of a request for a link. A list of links often names hosts that no longer exist, and a run tries each withheld
# image again later.
_MAX_HTTP_RETRIES = 1
_MAX_CALLS, _MAX_CALL_BYTES = 8, 64 * 2**20
_S3_MODULE = "segray.storage.s3"
_REQUESTS_PER_CALL = 3  # of deltalake, approximately: the log's listing, its checkpoint, its last commits


class Store:
    """One process's access to storage. Threads may share an instance. A pickled copy connects anew.

    existing_uris: URIs in buckets that exist. A bucket that has answered a request exists too. A store that denies an
    existing bucket is failing (Swift does so while its container servers are down).
    """

    def __init__(self, options: StorageOptions | None = None, existing_uris: Iterable[str] = ()) -> None:
        self.options = options or StorageOptions()
        self._existing_buckets = {bucket_and_key(uri)[0] for uri in existing_uris}
        self._backends: dict[tuple[str, str], Backend] = {}
        self._lock = threading.Lock()
        _stores.add(self)

    def __reduce__(self) -> tuple[type[Store], tuple[StorageOptions]]:
        return Store, (self.options,)

    def list(self, uri: str, *, prefix: str = "", walk: Walk = WHOLE_TREE) -> Iterator[ListedObject]:
        """Yield all objects below folder `uri` whose key starts with `prefix`, sorted by key.

        walk: the folders to enter, and what happens to entries that cannot be listed. Memory never holds the complete
        listing. A missing folder raises FileNotFoundError in a file system with
        folders. In an object store a missing folder is empty.
        """
        backend = self._attempts(uri, lambda: self._backend(uri), self.options.retries, from_backend=True)
        return backend.entries(uri, prefix, partial(self._request, uri), walk)

    def names(self, uri: str) -> builtins.list[str]:
        """Return the sorted names directly below a small folder, including subfolders; empty for a missing folder."""
        try:
            names = self._request(uri, lambda backend: backend.names(uri))
        except FileNotFoundError:
            return []
        return sorted(name.removesuffix("/") for name in names)

    def stat(self, uri: str) -> ListedObject:
        """Return the entry of the object at exactly `uri`; its key is its name. A folder is not an object."""
        return self._request(uri, lambda backend: backend.stat(uri))

    def exists(self, uri: str) -> bool:
        """Return whether an object exists at exactly `uri`. A folder is not an object."""
        try:
            self.stat(uri)
        except FileNotFoundError:
            return False
        return True

    def read(self, uri: str, max_bytes: int | None = None, retries: int | None = None) -> bytes:
        """Return the object's bytes, or its first `max_bytes` bytes, in one request.

        retries: largest number of retries, None for that of the options.
        """
        return self._request(uri, lambda backend: backend.read(uri, 0, max_bytes), retries)

    def read_range(self, uri: str, start: int, size: int) -> bytes:
        """Return `size` bytes of the object from byte `start` on, in one request; fewer at the object's end."""
        return self._request(uri, lambda backend: backend.read(uri, start, size)) if size > 0 else b""

    def reader(self, uri: str) -> BinaryIO:
        """Open the object as a buffered, seekable binary file that is read by ranges, for pyarrow and text readers."""
        if not scheme(uri):
            return self._request(uri, lambda _: Path(local_path(uri)).open("rb"))
        raw = cast(io.RawIOBase, self.ranges(uri, self.stat(uri).size_bytes))
        return cast(BinaryIO, io.BufferedReader(raw, buffer_size=1 << 20))

    def ranges(self, uri: str, size_bytes: int) -> BinaryIO:
        """Open the object, of `size_bytes` bytes, as a seekable binary file without a buffer.

        Each read is one request.
        """

        def read(start: int, size: int) -> bytes:
            return self._request(uri, lambda backend: backend.read(uri, start, size))

        return cast(BinaryIO, _RangedFile(read, size_bytes))

    def put(self, uri: str, data: bytes) -> None:
        """Write `data` as the whole content of `uri`. Readers see the old object or the new one, never a part."""
        self._request(uri, lambda backend: backend.put(uri, data))

    def create(self, uri: str, data: bytes) -> None:
        """Write `data` to `uri`, or change nothing if the object exists. Read the object to learn which writer won.

        No return value could say which writer won. HTTP clients such as aiohttp repeat a request whose answer was lost,
        and then find their own object. Some S3 servers, such as Swift, let several simultaneous writers succeed.
        """
        self._request(uri, lambda backend: backend.create(uri, data))

    def delete(self, uri: str) -> None:
        """Delete the object. A missing object is no error."""
        with suppress(FileNotFoundError):
            self._request(uri, lambda backend: backend.delete(uri))

    def retrying(self, uri: str, call: Callable[[], T], retries: int | None = None) -> T:
        """Return the result of `call`. Retry the call, and translate its errors as any other method does.

        The call reaches `uri` by deltalake or Arrow. The call must be safe to repeat after an attempt whose answer was
        lost. The call makes several requests, and each can fail. The call therefore gets more attempts than a single
        request.

        retries: 0 for a call that retries by itself, whose errors are translated all the same.
        """
        if retries is None:
            retries = _REQUESTS_PER_CALL * self.options.retries
        return self._attempts(uri, lambda: self._answered(uri, call()), retries)

    def delta_options(self, uri: str) -> dict[str, str]:
        """Return deltalake's storage_options for the bucket or folder of `uri`.

        The options contain the secret key: never log or store them. Raises AccessError for storage that cannot hold a
        label set.
        """
        kind = scheme(uri)
        if is_s3(uri):
            from segray.storage import s3

            return s3.delta_options(self.options)
        if kind in AZURE_SCHEMES:
            return azure.delta_options(uri, self.options)
        if kind in GOOGLE_SCHEMES:
            from segray.storage import gcs

            return gcs.delta_options(self.options)
        if kind and kind not in ROOT_SCHEMES:
            raise AccessError(
                f"A label set cannot lie at a {kind}:// URL",
                where=redact(uri),
                found="its tables need a local folder, S3, Azure or Google Cloud Storage",
                hint="set `output.root` to a folder, or to a URL of s3://, az://, abfss:// or gs://",
            )
        return {}

    def _request(self, uri: str, call: Callable[[Backend], T], retries: int | None = None) -> T:
        """Return the result of `call` on the backend of `uri`. Retry after transient errors, and translate errors."""
        if retries is None:
            retries = self.options.retries
            if scheme(uri) in HTTP_SCHEMES:
                retries = min(retries, _MAX_HTTP_RETRIES)

        def request() -> T:
            try:
                return self._answered(uri, call(self._backend(uri)))
            except UnicodeError as error:  # No store has an object of a name that cannot be sent.
                raise FileNotFoundError(errno.ENOENT, f"not a name of an object: {error}", redact(uri)) from error

        return self._attempts(uri, request, retries, from_backend=True)

    def _attempts(self, uri: str, call: Callable[[], T], retries: int, *, from_backend: bool = False) -> T:
        """Return the result of `call`. Retry after transient errors, and translate errors.

        from_backend: whether `call` only calls a backend, so that each of its errors is one of storage.
        """

        def failure_of(error: Exception) -> StorageFailure | None:
            bucket_exists = bucket_and_key(uri)[0] in self._existing_buckets
            return translate(error, uri, bucket_exists=bucket_exists, from_backend=from_backend)

        return retrying(call, retries, failure_of, self._renew_credentials)

    def _answered(self, uri: str, answer: T) -> T:
        """Return an answer of the store. The bucket that has given it exists."""
        self._existing_buckets.add(bucket_and_key(uri)[0])
        return answer

    def _backend(self, uri: str) -> Backend:
        place = _place(uri)
        with self._lock:
            if place not in self._backends:
                self._backends[place] = _connect(uri, self.options)
            return self._backends[place]

    def _renew_credentials(self) -> None:
        """Make the next request connect anew, with the credentials of that moment."""
        if s3 := sys.modules.get(_S3_MODULE):
            s3.forget_credentials()
        with self._lock:
            self._backends.clear()


def _place(uri: str) -> tuple[str, str]:
    """Return the scheme, and the host where a backend serves a single host. URIs of one place share a backend."""
    kind = scheme(uri)
    shares_a_backend = kind in ("", *S3_SCHEMES, *GOOGLE_SCHEMES, *HTTP_SCHEMES)
    return kind, "" if shares_a_backend else bucket_and_key(uri)[0]


def _connect(uri: str, options: StorageOptions) -> Backend:
    """Return a new backend. The client libraries of S3, Google and HTTP are imported with their first backend."""
    kind = scheme(uri)
    if not kind:
        return LocalBackend()
    if kind in (*S3_SCHEMES, *AZURE_SCHEMES, *GOOGLE_SCHEMES) and not bucket_and_key(uri)[0]:
        raise AccessError("No bucket in the URL", where=uri, hint=f"write {kind}://BUCKET/KEY, with two slashes")
    if kind in S3_SCHEMES:
        from segray.storage.s3 import S3Backend

        return S3Backend(options)
    if kind in AZURE_SCHEMES:
        return azure.AzureBackend(uri, options)
    if kind in GOOGLE_SCHEMES:
        from segray.storage.gcs import GcsBackend

        return GcsBackend(uri, options)
    if kind in HTTP_SCHEMES:
        from segray.storage.http import HttpBackend

        return HttpBackend(uri, options)
    return FsspecBackend(uri, options)


_stores: weakref.WeakSet[Store] = weakref.WeakSet()
_connections_of_parent: list[Any] = []


def _drop_inherited_connections() -> None:
    """Drop the parent's connections in a forked child without closing them, and replace the locks.

    A thread of the parent may have held a lock at the fork.
    """
    for store in _stores:
        _connections_of_parent.append(store._backends)
        store._backends, store._lock = {}, threading.Lock()


os.register_at_fork(after_in_child=_drop_inherited_connections)


def bounded_map(call: Callable[[T], R], items: Iterable[T], size_bytes: Callable[[T], int]) -> Iterator[R]:
    """Yield the results of the calls, in the order of the items.

    At most _MAX_CALLS calls run at once. A new call starts only while the running calls take at most _MAX_CALL_BYTES.
    An item is taken from the iterable when its call can start. The first error ends the iteration, after the running
    calls have ended.

    Args:
        call: Called in a thread for each item.
        items: Iterated in the caller's thread.
        size_bytes: Returns the memory that an item's call takes, in bytes.
    """
    running: deque[tuple[Future[R], int]] = deque()
    with ThreadPoolExecutor(_MAX_CALLS, thread_name_prefix="bounded-map") as pool:
        for item in items:
            running.append((pool.submit(call, item), size_bytes(item)))
            while len(running) == _MAX_CALLS or sum(size for _, size in running) > _MAX_CALL_BYTES:
                yield running.popleft()[0].result()
        while running:
            yield running.popleft()[0].result()


class _RangedFile(io.RawIOBase):
    """An object of `size_bytes` bytes as a raw, seekable file. Each read is one call of `read(start, size)`."""

    def __init__(self, read: Callable[[int, int], bytes], size_bytes: int) -> None:
        self._read, self._size, self._at = read, size_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origins = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}
        self._at = max(0, offset + origins[whence])
        return self._at

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self._size - self._at)
        if size <= 0:
            return 0
        data = self._read(self._at, size)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)
