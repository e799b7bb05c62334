"""Links by http and https as a backend: bounded reads, with time limits for each part of a request.

Knows aiohttp. Knows nothing of images. Listings of folders are those of fsspec, which follows the links of a page.
"""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar, cast

import aiohttp
from fsspec.asyn import get_loop, sync
from yarl import URL

import segray
from segray.errors import AccessError
from segray.storage.backend import ListedObject
from segray.storage.fsspec_backend import FsspecBackend
from segray.storage.options import StorageOptions
from segray.storage.uris import name

T = TypeVar("T")

_CONNECT_S, _SILENCE_S = 10.0, 20.0
_TOTAL_IN_SILENCES = 5  # Longest duration of a request, as a multiple of the longest silence.
_LEAST_BYTES_PER_S = 2_000  # A body that is slower for the longest silence is given up.
_REQUESTS_PER_HOST = 8
_CHUNK_BYTES = 1 << 18
# A server without ranges sends a file from the start, so each read of a part receives all bytes before the part. A part
# behind more bytes than this is refused.
_MAX_SKIPPED_BYTES = 64 * 2**20
_VERSION_HEADERS = ("ETag", "Last-Modified")


class LinkTimeoutError(aiohttp.ClientError):
    """A host that did not answer in time. Another try at once would wait as long."""


class HttpBackend(FsspecBackend):
    """Links by http or https, which can only be read.

    A request fails after _CONNECT_S without a connection, or after `timeout_s` (at most _SILENCE_S) without a byte or
    below _LEAST_BYTES_PER_S. A request also fails if it takes more than _TOTAL_IN_SILENCES times the longest silence.
    """

    def __init__(self, scheme: str, options: StorageOptions) -> None:
        super().__init__(scheme)
        silence_s = self._silence_s = min(_SILENCE_S, options.timeout_s)
        self._timeout = aiohttp.ClientTimeout(
            total=_TOTAL_IN_SILENCES * silence_s, sock_connect=min(_CONNECT_S, silence_s), sock_read=silence_s
        )
        self._headers = {"User-Agent": f"segray/{segray.__version__}", "Accept-Encoding": "identity"}
        self._headers |= options.http_headers or {}
        self._session: aiohttp.ClientSession | None = None
        self._request_slots: defaultdict[str | None, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(_REQUESTS_PER_HOST)
        )

    def stat(self, uri: str) -> ListedObject:
        """Return the entry of the link, with the size and version of the server's reply; -1 and "" without them."""
        return cast(ListedObject, sync(get_loop(), self._in_time, self._stat(uri)))

    def read(self, uri: str, start: int, size: int | None) -> bytes:
        """Return bytes of the body. At most one chunk more than `size` bytes is received."""
        return cast(bytes, sync(get_loop(), self._in_time, self._read(uri, start, size)))

    def put(self, uri: str, data: bytes) -> None:
        raise _read_only(uri)

    def create(self, uri: str, data: bytes) -> None:
        raise _read_only(uri)

    def delete(self, uri: str) -> None:
        raise _read_only(uri)

    # ---- on fsspec's event loop ----

    async def _in_time(self, request: Awaitable[T]) -> T:
        """Return the result of a request. Raise LinkTimeoutError when a time limit of aiohttp's has passed."""
        try:
            return await request
        except TimeoutError as error:
            raise LinkTimeoutError(str(error) or f"not complete within {self._timeout.total:.0f} s") from error

    @asynccontextmanager
    async def _get(self, uri: str, headers: dict[str, str]) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield the reply to a GET. Raise aiohttp.ClientError without a reply, or for a status of 400 or more."""
        url = URL(uri, encoded="%" in uri and uri.isascii())
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._request_slots[url.host])
            try:
                reply = await stack.enter_async_context(self._open_session().get(url, headers=headers))
            except aiohttp.TooManyRedirects as error:
                raise aiohttp.ClientConnectionError(f"more than {len(error.history) - 1} redirects") from error
            except aiohttp.ClientResponseError as error:  # The bytes of the server are no HTTP reply.
                raise aiohttp.ClientConnectionError(f"not HTTP: {error.message}") from error
            if not (reply.status == 416 and "Range" in headers):
                reply.raise_for_status()
            yield reply

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            # _request_slots limits the connections. With a limit of aiohttp, a request's wait for a connection would
            # count as part of its duration.
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=self._timeout, headers=self._headers, trust_env=True
            )
            weakref.finalize(self, _close, self._session, asyncio.get_running_loop(), os.getpid())
        return self._session

    async def _stat(self, uri: str) -> ListedObject:
        # Some servers refuse HEAD, or reply to HEAD with another size. A GET is right, and its body stays unread.
        async with self._get(uri, {}) as reply:
            version = next((reply.headers[key] for key in _VERSION_HEADERS if key in reply.headers), "")
            size = -1 if "Content-Encoding" in reply.headers else reply.content_length
            reply.close()
            return ListedObject(uri, name(uri), version.removeprefix("W/").strip('"'), -1 if size is None else size)

    async def _read(self, uri: str, start: int, size: int | None) -> bytes:
        # A read from the start needs no range, and some servers support none.
        last = "" if size is None else str(start + size - 1)
        async with self._get(uri, {"Range": f"bytes={start}-{last}"} if start else {}) as reply:
            if reply.status == 416:
                return b""
            skip = start if reply.status == 200 else 0
            if skip > _MAX_SKIPPED_BYTES:
                raise AccessError(
                    "The server cannot send a part of a file",
                    where=uri,
                    found="the server ignores the Range header",
                    hint="copy the file to a folder or a bucket, and set source.uri to the copy",
                )
            return await _body(reply, skip, size, self._silence_s)


async def _body(reply: aiohttp.ClientResponse, skip: int, size: int | None, silence_s: float) -> bytes:
    """Return `size` bytes of the body after the first `skip`, or all bytes after them for None.

    silence_s: seconds for which the body may be slower than _LEAST_BYTES_PER_S.
    """
    body, begin_s = bytearray(), time.monotonic()
    async for chunk in reply.content.iter_chunked(_CHUNK_BYTES):
        body += chunk
        seconds = time.monotonic() - begin_s
        if seconds > silence_s and len(body) < seconds * _LEAST_BYTES_PER_S:
            raise LinkTimeoutError(f"only {len(body)} bytes in {seconds:.0f} s")
        if size is not None and len(body) >= skip + size:
            reply.close()
            break
    return bytes(body[skip:] if size is None else body[skip : skip + size])


def _close(session: aiohttp.ClientSession, loop: asyncio.AbstractEventLoop, process: int) -> None:
    """Close a session on its event loop. A forked child leaves the session to its parent."""
    if os.getpid() == process and loop.is_running():
        asyncio.run_coroutine_threadsafe(session.close(), loop)


def _read_only(uri: str) -> AccessError:
    return AccessError(
        "Links are read only", where=uri, hint="set `output.root` to a folder or an object store, such as s3://"
    )
