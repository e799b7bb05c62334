"""Arrow's own file systems for the storage that deltalake's options describe.

Knows how Arrow reaches local paths, S3, Google and Azure without Python. Knows nothing of tables. Arrow's threads may
read through Arrow's file systems while the interpreter ends. No thread may read through a file system written in
Python at that time: `drain` waits for such reads.
"""

from __future__ import annotations

import ctypes
import io
import os
import threading
import time
import urllib.request
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import pyarrow.fs as pafs
from fsspec import AbstractFileSystem

from segray._compat import call_before_threads_end, skip_arrow_s3_wait_at_exit
from segray.storage import azure
from segray.storage.uris import AZURE_SCHEMES, GOOGLE_SCHEMES, S3_SCHEMES, absolute, scheme

_DRAIN_S = 10.0
_QUIET_S = 0.5

# deltalake's options for S3 that Arrow's client can follow.
_S3_OPTIONS = {
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT", "AWS_ALLOW_HTTP", "AWS_VIRTUAL_HOSTED_STYLE_REQUEST", "AWS_SKIP_SIGNATURE",
    "AWS_SERVER_SIDE_ENCRYPTION", "AWS_SSE_KMS_KEY_ID",  # of written objects alone
    "AWS_CONDITIONAL_PUT", "AWS_S3_ALLOW_UNSAFE_RENAME", "timeout", "max_retries",
}  # fmt: skip
# With one of these variables, deltalake uses credentials that Arrow's client cannot use.
_GOOGLE_UNSUPPORTED = {
    "GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "GOOGLE_SERVICE_ACCOUNT_KEY", "GOOGLE_BASE_URL",
    "GOOGLE_SKIP_SIGNATURE", "SERVICE_ACCOUNT",
}  # fmt: skip


def native(uri: str, options: Mapping[str, str]) -> pafs.FileSystem | None:
    """Return Arrow's own file system with the folder `uri` as its root; None if Arrow has none for this storage.

    options: deltalake's storage options with every credential. The function reads the same environment variables as
    deltalake.
    """
    kind = scheme(uri)
    if not kind:
        return pafs.SubTreeFileSystem(absolute(uri), pafs.LocalFileSystem())
    by_schemes = ((S3_SCHEMES, _s3), (GOOGLE_SCHEMES, _google), (AZURE_SCHEMES, _azure))
    connect = next((function for schemes, function in by_schemes if kind in schemes), None)
    return None if connect is None else connect(uri, options)


def _s3(uri: str, options: Mapping[str, str]) -> pafs.FileSystem | None:
    if not set(options) <= _S3_OPTIONS:
        return None
    endpoint = urlsplit(options.get("AWS_ENDPOINT_URL") or options.get("AWS_ENDPOINT") or "")
    if endpoint.path.strip("/"):
        return None  # Arrow's client takes no address with a path.
    kind, host = endpoint.scheme or "https", endpoint.netloc
    global _s3_was_used
    _s3_was_used = True
    timeout_s = float(options.get("timeout", "60s").removesuffix("s"))
    filesystem = pafs.S3FileSystem(
        access_key=options.get("AWS_ACCESS_KEY_ID"),
        secret_key=options.get("AWS_SECRET_ACCESS_KEY"),
        session_token=options.get("AWS_SESSION_TOKEN"),
        anonymous=azure.is_on(options.get("AWS_SKIP_SIGNATURE")),
        region=options.get("AWS_REGION") or options.get("AWS_DEFAULT_REGION"),
        scheme=kind,
        endpoint_override=host or None,
        proxy_options=_proxy(kind, host or "amazonaws.com"),
        force_virtual_addressing=azure.is_on(options.get("AWS_VIRTUAL_HOSTED_STYLE_REQUEST")),
        connect_timeout=min(10.0, timeout_s),
        request_timeout=timeout_s,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=7),
        tls_ca_file_path=os.environ.get("AWS_CA_BUNDLE"),
    )
    return pafs.SubTreeFileSystem(_path_of(uri), filesystem)


def _google(uri: str, options: Mapping[str, str]) -> pafs.FileSystem | None:
    if set(options) - {"timeout", "max_retries"} or any(map(os.environ.get, _GOOGLE_UNSUPPORTED)):
        return None
    return pafs.SubTreeFileSystem(_path_of(uri), pafs.GcsFileSystem()) if hasattr(pafs, "GcsFileSystem") else None


def _azure(uri: str, options: Mapping[str, str]) -> pafs.FileSystem | None:
    supported = {name for names in azure.VARIABLES.values() for name in names}
    supported |= {*azure.ENDPOINTS, azure.EMULATOR, "AZURE_ALLOW_HTTP", "timeout", "max_retries"}
    if not set(options) <= supported:
        return None
    if not hasattr(pafs, "AzureFileSystem"):
        return None
    settings = {**os.environ, **options}
    account = {parameter: azure.first_setting(settings, names) for parameter, names in azure.VARIABLES.items()}
    address = urlsplit(uri)
    container, _, host = address.netloc.partition("@")
    if host:  # abfss://container@account.dfs.core.windows.net/path
        account["account_name"] = host.split(".")[0]
    endpoint = urlsplit(azure.first_setting(settings, azure.ENDPOINTS) or "")
    kind, authority = endpoint.scheme, endpoint.netloc
    if azure.is_on(settings.get(azure.EMULATOR)):
        kind, authority = kind or "http", authority or azure.AZURITE_HOST
        account |= {key: account[key] or value for key, value in azure.AZURITE.items()}
    if not account["account_name"]:
        return None
    # Arrow's client puts the account before an authority that starts with a dot, and into the path after any other.
    authority = authority.removeprefix(account["account_name"]) if not endpoint.path.strip("/") else authority
    dfs_authority = authority.replace(".blob.", ".dfs.", 1) if authority.startswith(".") else authority
    authorities = {"blob_storage_authority": authority or None, "dfs_storage_authority": dfs_authority or None}
    schemes = dict.fromkeys(("blob_storage_scheme", "dfs_storage_scheme"), kind or None)
    parameters = {name: value for name, value in (account | authorities | schemes).items() if value}
    filesystem = pafs.AzureFileSystem(**parameters)
    return pafs.SubTreeFileSystem(f"{container}/{address.path.strip('/')}".rstrip("/"), filesystem)


def _path_of(uri: str) -> str:
    return uri.partition("://")[2].rstrip("/")


def _proxy(kind: str, host: str) -> str | None:
    """Return the environment's proxy for this host.

    Arrow's client does not read the environment's proxy. Other clients do.
    """
    proxy = urllib.request.getproxies().get(kind)
    return None if not proxy or urllib.request.proxy_bypass(host) else proxy


# ---- through Python -------------------------------------------------------------------------------


def through_python(open_file: Callable[[str], BinaryIO], sizes: Mapping[str, int]) -> pafs.FileSystem:
    """Return a file system of files whose bytes come from `open_file`.

    open_file: opens the file of a path. sizes: size in bytes by path. `drain` waits for reads at the interpreter's end.
    """
    return pafs.PyFileSystem(pafs.FSSpecHandler(_ReadOnlyFiles(open_file, sizes)))


class _ReadOnlyFiles(AbstractFileSystem):  # type: ignore[misc]
    """The fsspec file system that Arrow reads from, for files of known names and sizes."""

    cachable = False

    def __init__(self, open_file: Callable[[str], BinaryIO], sizes: Mapping[str, int]) -> None:
        super().__init__()
        self._open_file, self._sizes = open_file, sizes

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        if path not in self._sizes:
            raise FileNotFoundError(path)
        return {"name": path, "type": "file", "size": self._sizes[path]}

    def open(self, path: str, *_: Any, **__: Any) -> io.RawIOBase:
        with _counted_call():
            return _CountedFile(self._open_file(path), self._sizes[path])


class _CountedFile(io.RawIOBase):
    """A file that counts the calls in progress. Every read fails after `drain` began."""

    def __init__(self, source: BinaryIO, size_bytes: int) -> None:
        self._source, self._size = source, size_bytes
        _open_files.add(self)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._source.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._source.seek(offset, whence)

    def size(self) -> int:
        return self._size

    def read(self, size: int = -1) -> bytes:
        with _counted_call():
            return self._source.read(size)

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._source.close()
        super().close()


_open_files: weakref.WeakSet[_CountedFile] = weakref.WeakSet()
_lock = threading.Lock()
_calls_in_progress = 0
_last_call_s = 0.0
_ending = False
_s3_was_used = False


@contextmanager
def _counted_call() -> Iterator[None]:
    global _calls_in_progress, _last_call_s
    with _lock:
        if _ending:
            raise OSError("the interpreter ends")
        _calls_in_progress += 1
    try:
        yield
    finally:
        with _lock:
            _calls_in_progress -= 1
            _last_call_s = time.monotonic()


def drain(within_s: float = _DRAIN_S) -> None:
    """Stop reads through Python, and wait until no thread reads any more.

    within_s: longest wait, in seconds. Once all calls have ended, the wait ends too, even if files are still open.
    """
    global _ending
    with _lock:
        _ending = True
    began = time.monotonic()
    while _open_files and time.monotonic() - began < within_s:
        now = time.monotonic()
        if not _calls_in_progress and now - max(_last_call_s, began) > _QUIET_S:
            return
        time.sleep(0.01)


def _reset_after_fork() -> None:
    """Reset the state of reads in a forked child.

    The parent's threads do not exist in the child, and may have left the lock taken.
    """
    global _lock, _calls_in_progress
    _lock, _calls_in_progress = threading.Lock(), 0
    _open_files.clear()
    if _s3_was_used:
        _exit_without_destructors()


def _exit_without_destructors() -> None:
    """Let this process end without native destructors after Python has ended, with Python's exit code.

    The AWS SDK waits at exit for its own threads. A forked child has no such threads, and would hang or crash.
    Source: on_exit(3); the handler registered last is called first.
    """
    skip_arrow_s3_wait_at_exit(pafs)
    libc = ctypes.CDLL(None)
    if on_exit := getattr(libc, "on_exit", None):
        on_exit(libc._exit, None)
        on_exit(libc.fcloseall, None)


# Not by atexit: thread pools are shut down earlier, and a request in progress would then fail.
call_before_threads_end(drain)
os.register_at_fork(after_in_child=_reset_after_fork)
