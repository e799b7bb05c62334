"""Azure Blob Storage as a backend, and deltalake's options for the same containers.

The only home of azure. Account and key come from the environment, never from the configuration: from
AZURE_STORAGE_CONNECTION_STRING, or from AZURE_STORAGE_ACCOUNT_NAME and a key, a signature or an identity.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast
from urllib.parse import urlsplit

from fsspec.asyn import get_loop, sync

from segray.errors import AccessError
from segray.storage.backend import Attempt, ListedObject, Walk
from segray.storage.fsspec_backend import missing_package
from segray.storage.options import StorageOptions
from segray.storage.time_limits import limits_of, within
from segray.storage.uris import name, redact

# Without a handler, Python prints the client's warnings between the lines of a command. Its errors say the same.
logging.getLogger("azure").addHandler(logging.NullHandler())

# Names of environment variables and of deltalake's options, by meaning. The first name that is set counts.
VARIABLES = {
    "account_name": ("AZURE_STORAGE_ACCOUNT_NAME",),
    "account_key": ("AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_ACCESS_KEY", "AZURE_STORAGE_MASTER_KEY"),
    "sas_token": ("AZURE_STORAGE_SAS_TOKEN", "AZURE_STORAGE_SAS_KEY"),
    "client_id": ("AZURE_STORAGE_CLIENT_ID", "AZURE_CLIENT_ID"),
    "client_secret": ("AZURE_STORAGE_CLIENT_SECRET", "AZURE_CLIENT_SECRET"),
    "tenant_id": ("AZURE_STORAGE_TENANT_ID", "AZURE_TENANT_ID", "AZURE_STORAGE_AUTHORITY_ID"),
}
ENDPOINTS = ("AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT")
EMULATOR = "AZURE_STORAGE_USE_EMULATOR"
CONNECTION_STRING = "AZURE_STORAGE_CONNECTION_STRING"
# The fixed account of the emulator Azurite, from its documentation.
_AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_AZURITE_NAME = "devstoreaccount1"
AZURITE = {"account_name": _AZURITE_NAME, "account_key": _AZURITE_KEY}
AZURITE_HOST = "127.0.0.1:10000"
_SET_ACCOUNT = "set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME with AZURE_STORAGE_ACCOUNT_KEY"


@dataclass(frozen=True)
class Account:
    """A storage account. url: address of its blob service. key, signature: at most one is set."""

    name: str
    url: str
    key: str | None = None
    signature: str | None = None


def account_of(uri: str, environment: Mapping[str, str]) -> Account:
    """Return the account of a container's URI: the one in the URI, or the one that the environment names.

    Raises AccessError where neither names an account.
    """
    host = urlsplit(uri).netloc.partition("@")[2]  # abfss://container@account.dfs.core.windows.net/path
    if text := environment.get(CONNECTION_STRING):
        account = _account_in(text)
        if not host or host.split(".")[0] == account.name:
            return account
    settings = {meaning: first_setting(environment, names) for meaning, names in VARIABLES.items()}
    if is_on(environment.get(EMULATOR)):
        azurite = environment.get("AZURITE_BLOB_STORAGE_URL") or f"http://{AZURITE_HOST}"
        return Account(_AZURITE_NAME, f"{azurite}/{_AZURITE_NAME}", _AZURITE_KEY)
    account_name = host.split(".")[0] or settings["account_name"]
    if not account_name:
        raise AccessError("No Azure account", where=redact(uri), found="no variable names one", hint=_SET_ACCOUNT)
    endpoint = first_setting(environment, ENDPOINTS)
    url = endpoint or (f"https://{host.replace('.dfs.', '.blob.')}" if host else _public_url(account_name))
    signature = None if settings["account_key"] else settings["sas_token"]
    return Account(account_name, url.rstrip("/"), settings["account_key"], signature)


def _account_in(text: str) -> Account:
    """Return the account that a connection string describes."""
    fields = dict(field.strip().split("=", 1) for field in text.split(";") if "=" in field)
    parts = {key.lower(): value for key, value in fields.items()}
    if is_on(parts.get("usedevelopmentstorage")):
        return Account(_AZURITE_NAME, f"http://{AZURITE_HOST}/{_AZURITE_NAME}", _AZURITE_KEY)
    url = parts.get("blobendpoint", "").partition("?")[0].rstrip("/")
    account_name = parts.get("accountname") or urlsplit(url).netloc.split(".")[0]
    if not account_name:
        raise AccessError(
            "Not a connection string of Azure",
            where=CONNECTION_STRING,
            found=f"its parts are {', '.join(sorted(fields)) or 'none'}",
            hint="copy the connection string of the storage account: AccountName=...;AccountKey=...;...",
        )
    url = url or _public_url(account_name, parts.get("defaultendpointsprotocol"), parts.get("endpointsuffix"))
    return Account(account_name, url, parts.get("accountkey"), parts.get("sharedaccesssignature"))


def _public_url(account_name: str, protocol: str | None = None, suffix: str | None = None) -> str:
    return f"{protocol or 'https'}://{account_name}.blob.{suffix or 'core.windows.net'}"


def first_setting(settings: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    """Return the first of these settings that is not empty."""
    return next((settings[name] for name in names if settings.get(name)), None)


def is_on(text: str | None) -> bool:
    """Return whether the text of a setting means yes."""
    return (text or "").lower() in ("true", "1", "yes", "on")


def delta_options(uri: str, options: StorageOptions) -> dict[str, str]:
    """Return deltalake's storage_options for a container. They contain secrets: never log or store them.

    deltalake reads neither connection strings nor the address of an emulator on another port.
    """
    account = account_of(uri, os.environ)
    storage_options = {
        "max_retries": "0",
        "timeout": f"{options.timeout_s:g}s",
        "AZURE_STORAGE_ACCOUNT_NAME": account.name,
        "AZURE_STORAGE_ENDPOINT": account.url,
    }
    if account.url.lower().startswith("http://"):
        storage_options["AZURE_ALLOW_HTTP"] = "true"
    if options.anonymous:
        return storage_options | {"AZURE_SKIP_SIGNATURE": "true"}
    if account.key:
        return storage_options | {"AZURE_STORAGE_ACCOUNT_KEY": account.key}
    return storage_options | ({"AZURE_STORAGE_SAS_TOKEN": account.signature} if account.signature else {})


class AzureBackend:
    """The containers of one account, through Azure's own client. The client makes no attempt after the first."""

    def __init__(self, uri: str, options: StorageOptions) -> None:
        try:
            from azure.storage.blob.aio import BlobServiceClient
        except ImportError as error:
            raise missing_package(uri, error, "azure") from error
        self._account = account_of(uri, os.environ)
        self._limits = limits_of(options.timeout_s)
        try:
            self._service = BlobServiceClient(
                self._account.url,
                credential=None if options.anonymous else _credential(uri, self._account),
                retry_total=0,
                connection_timeout=self._limits.connect_s,
                read_timeout=self._limits.silence_s,
            )
        except ValueError as error:
            raise AccessError("Not an Azure account", where=redact(uri), found=str(error), hint=_SET_ACCOUNT) from error
        weakref.finalize(self, _close, self._service, os.getpid())

    def _call(self, function: Callable[..., Any], *args: Any, total_s: float | None = None, **kwargs: Any) -> Any:
        return sync(get_loop(), within, total_s or self._limits.total_s, function, *args, **kwargs)

    def _pages(self, uri: str, prefix: str, attempt: Attempt, *, is_deep: bool) -> Iterator[list[Any]]:
        container, folder = _container_and_folder(uri)
        token: str | None = None
        while True:
            request = partial(_call_page, container, folder + prefix, token, is_deep=is_deep)
            page, token = attempt(request)
            yield page
            if not token:
                return

    def page(self, container: str, prefix: str, token: str | None, *, is_deep: bool) -> tuple[list[Any], str | None]:
        """Return one page of a listing, and the token of the next page.

        is_deep: whether the page holds blobs of all folders, otherwise those directly below the prefix.
        """
        page = self._call(self._page, container, prefix, token, is_deep=is_deep)
        return cast("tuple[list[Any], str | None]", page)

    async def _page(
        self, container: str, prefix: str, token: str | None, *, is_deep: bool
    ) -> tuple[list[Any], str | None]:
        client = self._service.get_container_client(container)
        listing = client.list_blobs(prefix) if is_deep else client.walk_blobs(prefix, delimiter="/")
        pages = cast("AsyncIterator[Any]", listing.by_page(token))
        async for page in pages:
            return [blob async for blob in page], cast(Any, pages).continuation_token
        return [], None

    def entries(self, uri: str, prefix: str, attempt: Attempt, walk: Walk) -> Iterator[ListedObject]:
        _, folder = _container_and_folder(uri)
        root = _root(uri)
        for page in self._pages(uri, prefix, attempt, is_deep=True):
            for blob in page:
                if not blob.name.endswith("/") and not _is_folder(blob):
                    yield _entry(f"{root}/{blob.name}", blob.name.removeprefix(folder), blob)

    def names(self, uri: str) -> list[str]:
        _, folder = _container_and_folder(uri)
        pages = self._pages(uri, "", lambda call: call(self), is_deep=False)
        names = [blob.name.removeprefix(folder) for page in pages for blob in page]
        return [name for name in names if name]

    def stat(self, uri: str) -> ListedObject:
        found = self._call(self._blob(uri).get_blob_properties)
        if _is_folder(found):
            raise FileNotFoundError(errno.ENOENT, "a folder, not an object", uri)
        return _entry(uri, name(uri), found)

    def read(self, uri: str, start: int, size: int | None) -> bytes:
        return cast(bytes, self._call(self._read, uri, start, size))

    async def _read(self, uri: str, start: int, size: int | None) -> bytes:
        from azure.core.exceptions import HttpResponseError

        # The client reads the first 32 MiB in one request. Larger objects take a request for each 4 MiB.
        part = {"offset": start or (0 if size else None), "length": size}
        try:
            stream = await self._blob(uri).download_blob(**part, max_concurrency=1)
            return cast(bytes, await stream.readall())
        except HttpResponseError as error:
            if error.status_code == 416:  # no such range: an empty object
                return b""
            raise

    def put(self, uri: str, data: bytes) -> None:
        self._upload(uri, data, overwrite=True)

    def create(self, uri: str, data: bytes) -> None:
        from azure.core.exceptions import ResourceExistsError

        try:
            self._upload(uri, data, overwrite=False)
        except ResourceExistsError as error:
            if getattr(error, "error_code", "") not in ("BlobAlreadyExists", "ConditionNotMet"):
                raise

    def _upload(self, uri: str, data: bytes, *, overwrite: bool) -> None:
        total_s = self._limits.for_upload(len(data))
        self._call(self._blob(uri).upload_blob, data, overwrite=overwrite, max_concurrency=1, total_s=total_s)

    def delete(self, uri: str) -> None:
        self._call(self._blob(uri).delete_blob)

    def _blob(self, uri: str) -> Any:
        container, key = container_and_key(uri)
        if not container or not key:
            raise FileNotFoundError(errno.ENOENT, "a container is not an object", uri)
        return self._service.get_blob_client(container, key)


def _call_page(container: str, prefix: str, token: str | None, backend: AzureBackend, *, is_deep: bool) -> Any:
    return backend.page(container, prefix, token, is_deep=is_deep)


def container_and_key(uri: str) -> tuple[str, str]:
    """Return the container and the key of a URI, of which the host may name the account too."""
    authority, _, key = uri.partition("://")[2].partition("/")
    return authority.partition("@")[0], key


def _container_and_folder(uri: str) -> tuple[str, str]:
    container, key = container_and_key(uri)
    return container, key + "/" if key and not key.endswith("/") else key


def _root(uri: str) -> str:
    """Return the URI of the container."""
    start, separator, container_and_path = uri.partition("://")
    return start + separator + container_and_path.partition("/")[0]


def _is_folder(blob: Any) -> bool:
    """Return whether a blob marks a folder, as accounts with hierarchical names list one."""
    return str((blob.metadata or {}).get("hdi_isfolder", "")).lower() == "true"


def _entry(uri: str, key: str, blob: Any) -> ListedObject:
    return ListedObject(uri, key, (blob.etag or "").strip('"'), blob.size)


def _credential(uri: str, account: Account) -> Any:
    if account.key:
        return account.key
    if account.signature:
        return account.signature
    try:
        from azure.identity.aio import ClientSecretCredential, DefaultAzureCredential
    except ImportError as error:
        raise missing_package(uri, error, "azure") from error
    tenant, client, secret = (
        first_setting(os.environ, VARIABLES[meaning]) for meaning in ("tenant_id", "client_id", "client_secret")
    )
    if tenant and client and secret:
        return ClientSecretCredential(tenant, client, secret)
    return DefaultAzureCredential()


def _close(service: Any, process: int) -> None:
    """Close a client on its event loop. A forked child leaves the client to its parent."""
    loop = get_loop()
    if os.getpid() == process and loop.is_running():
        asyncio.run_coroutine_threadsafe(service.close(), loop)
