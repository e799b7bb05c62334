"""Google Cloud Storage as a backend, and deltalake's options for the same buckets.

Knows the JSON interface of the service. gcsfs finds the credentials: GOOGLE_APPLICATION_CREDENTIALS, those of gcloud,
or those of the machine. STORAGE_EMULATOR_HOST is the address of an emulator, which needs no credentials.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import uuid
import weakref
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

import aiohttp
from fsspec.asyn import get_loop, sync
from yarl import URL

from segray.storage.backend import Attempt, ListedObject, Walk
from segray.storage.fsspec_backend import missing_package
from segray.storage.options import StorageOptions
from segray.storage.time_limits import limits_of, within
from segray.storage.uris import bucket_and_folder, bucket_and_object, name, scheme

# Without a handler, Python prints the traceback of each failed attempt between the lines of a command.
logging.getLogger("gcsfs").addHandler(logging.NullHandler())

_SERVICE = "https://storage.googleapis.com"
_FIELDS = "name,size,etag,md5Hash,generation"
_PAGE_KEYS = 1000
_CHUNK_BYTES = 1 << 20
# Makes object_store write to an emulator without credentials. With GOOGLE_SKIP_SIGNATURE alone, object_store 0.13.2
# asks for a token before each write.
_NO_ACCOUNT = {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}


class GcsError(Exception):
    """A reply of the service with an error. status: HTTP status. error_code: NoSuchBucket, or "" for all others."""

    def __init__(self, status: int, error_code: str, message: str) -> None:
        super().__init__(f"{status} {error_code}: {message}")
        self.status, self.error_code, self.message = status, error_code, message


class GcsBackend:
    """Google Cloud Storage, one request for each operation."""

    def __init__(self, uri: str, options: StorageOptions) -> None:
        try:
            from gcsfs import GCSFileSystem
        except ImportError as error:
            raise missing_package(uri, error, "gcs") from error
        self._service = _emulator() or _SERVICE
        is_open = options.anonymous or bool(_emulator())
        self._files = GCSFileSystem(token="anon" if is_open else None, skip_instance_cache=True)
        self._limits = limits_of(options.timeout_s)
        project = os.environ.get("GOOGLE_CLOUD_PROJECT")
        self._billed = {"userProject": project} if options.requester_pays and project else {}
        self._session: aiohttp.ClientSession | None = None

    def _call(
        self, method: str, path: str, *, size: int | None = None, data: bytes | None = None, **kwargs: Any
    ) -> bytes:
        total_s = self._limits.for_upload(len(data or b""))
        return sync(get_loop(), within, total_s, self._request, method, path, size, data, **kwargs)  # type: ignore[no-any-return]

    async def _request(
        self, method: str, path: str, size: int | None, data: bytes | None,
        parameters: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None,
    ) -> bytes:  # fmt: skip
        """Return the body of a reply, or its first `size` bytes. Raise GcsError for a status over 399."""
        sent = {**(headers or {})}
        self._files.credentials.apply(sent)
        request = self._open_session().request(
            method,
            URL(self._service + path, encoded=True),
            params={**(parameters or {}), **self._billed},
            headers=sent,
            data=data,
        )
        async with request as reply:
            if reply.status >= 400:
                raise _error(reply.status, path, await reply.content.read(4096))
            body = bytearray()
            async for chunk in reply.content.iter_chunked(_CHUNK_BYTES):
                body += chunk
                if size is not None and len(body) >= size:
                    reply.close()
                    return bytes(body[:size])
            return bytes(body)

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None:
            limits = aiohttp.ClientTimeout(sock_connect=self._limits.connect_s, sock_read=self._limits.silence_s)
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=64), timeout=limits, trust_env=True
            )
            weakref.finalize(self, _close, self._session, asyncio.get_running_loop(), os.getpid())
        return self._session

    def _pages(self, uri: str, prefix: str, delimiter: str, attempt: Attempt) -> Iterator[dict[str, Any]]:
        bucket, folder = bucket_and_folder(uri)
        parameters = {"prefix": folder + prefix, "maxResults": str(_PAGE_KEYS)}
        parameters |= {"fields": f"nextPageToken,prefixes,items({_FIELDS})"}
        if delimiter:
            parameters["delimiter"] = delimiter
        while True:
            page = json.loads(
                attempt(
                    lambda backend: backend._call("GET", f"/storage/v1/b/{_quoted(bucket)}/o", parameters=parameters)
                )
            )
            yield page
            if not page.get("nextPageToken"):
                return
            parameters["pageToken"] = page["nextPageToken"]

    def entries(self, uri: str, prefix: str, attempt: Attempt, walk: Walk) -> Iterator[ListedObject]:
        bucket, folder = bucket_and_folder(uri)
        root = f"{scheme(uri)}://{bucket}"
        for page in self._pages(uri, prefix, "", attempt):
            for item in page.get("items", ()):
                if not item["name"].endswith("/"):  # consoles mark empty folders by such objects
                    yield _entry(f"{root}/{item['name']}", item["name"].removeprefix(folder), item)

    def names(self, uri: str) -> list[str]:
        _, folder = bucket_and_folder(uri)
        keys: list[str] = []
        for page in self._pages(uri, "", "/", lambda call: call(self)):
            keys += [item["name"] for item in page.get("items", ())] + page.get("prefixes", [])
        return [key.removeprefix(folder) for key in keys if key != folder]

    def stat(self, uri: str) -> ListedObject:
        return _entry(uri, name(uri), json.loads(self._call("GET", _object(uri), parameters={"fields": _FIELDS})))

    def read(self, uri: str, start: int, size: int | None) -> bytes:
        last = "" if size is None else str(start + size - 1)
        headers = {"Range": f"bytes={start}-{last}"} if start or last else {}
        try:
            return self._call("GET", _object(uri), size=size, parameters={"alt": "media"}, headers=headers)
        except GcsError as error:
            if error.status == 416:  # no such range: an empty object
                return b""
            raise

    def put(self, uri: str, data: bytes) -> None:
        self._upload(uri, data, {})

    def create(self, uri: str, data: bytes) -> None:
        try:
            self._upload(uri, data, {"ifGenerationMatch": "0"})
        except GcsError as error:
            if error.status != 412:
                raise

    def _upload(self, uri: str, data: bytes, condition: Mapping[str, str]) -> None:
        bucket, key = bucket_and_object(uri)
        path = f"/upload/storage/v1/b/{_quoted(bucket)}/o"
        boundary = uuid.uuid4().hex
        headers = {"Content-Type": f"multipart/related; boundary={boundary}"}
        body = _multipart(boundary, json.dumps({"name": key}).encode(), data)
        self._call("POST", path, data=body, parameters={"uploadType": "multipart", **condition}, headers=headers)

    def delete(self, uri: str) -> None:
        self._call("DELETE", _object(uri))


def delta_options(options: StorageOptions) -> dict[str, str]:
    """Return deltalake's storage_options for a bucket. deltalake reads the variables with credentials itself."""
    storage_options = {"max_retries": "0", "timeout": f"{options.timeout_s:g}s"}
    if emulator := _emulator():
        storage_options["GOOGLE_SERVICE_ACCOUNT_KEY"] = json.dumps(_NO_ACCOUNT | {"gcs_base_url": emulator})
        storage_options["GOOGLE_ALLOW_HTTP"] = str(emulator.startswith("http://")).lower()
        return storage_options
    return storage_options | ({"GOOGLE_SKIP_SIGNATURE": "true"} if options.anonymous else {})


def _emulator() -> str:
    """Return the address of the emulator that the environment names, "" for Google's own service."""
    address = os.environ.get("STORAGE_EMULATOR_HOST", "").rstrip("/")
    return address if not address or "://" in address else f"http://{address}"


def _quoted(text: str) -> str:
    return quote(text, safe="")


def _object(uri: str) -> Any:
    bucket, key = bucket_and_object(uri)
    return f"/storage/v1/b/{_quoted(bucket)}/o/{_quoted(key)}"


def _entry(uri: str, key: str, item: Mapping[str, Any]) -> ListedObject:
    version = next((str(item[field]) for field in ("etag", "md5Hash", "generation") if item.get(field)), "")
    return ListedObject(uri, key, version.strip('"'), int(item.get("size", -1)))


def _multipart(boundary: str, metadata: bytes, data: bytes) -> bytes:
    """Return the body of an upload: a part with metadata, and a part with the object's content."""
    parts = (b"application/json; charset=UTF-8", metadata), (b"application/octet-stream", data)
    mark = b"--" + boundary.encode()
    lines = [line for kind, content in parts for line in (mark, b"Content-Type: " + kind, b"", content)]
    return b"\r\n".join([*lines, mark + b"--", b""])


def _error(status: int, path: str, body: bytes) -> GcsError:
    """Return the error for a reply. The service answers 404 for a missing object and for a missing bucket."""
    message = _message(body)
    names_a_bucket = path.endswith("/o") or "bucket does not exist" in message
    return GcsError(status, "NoSuchBucket" if status == 404 and names_a_bucket else "", message)


def _message(body: bytes) -> str:
    """Return the message in the body of an error: Google's JSON, or the text itself."""
    text = body.decode(errors="replace")
    try:
        error = json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        return text
    return str(error.get("message", "")) if isinstance(error, dict) else str(error)


def _close(session: aiohttp.ClientSession, loop: asyncio.AbstractEventLoop, process: int) -> None:
    """Close a session on its event loop. A forked child leaves the session to its parent."""
    if os.getpid() == process and loop.is_running():
        asyncio.run_coroutine_threadsafe(session.close(), loop)
