"""Models at an address: which files of a folder belong to the model, and how each file is fetched.

Knows the three kinds of places: the Hugging Face Hub, links by http and https, and the stores of segray. Keeps nothing;
see model_cache.py. A file at the source has a version, which is another text when the content is another.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import urlsplit

import segray
from segray.errors import AccessError, ConfigError, InfrastructureError, ModelError
from segray.models import checkpoints
from segray.models.engine import ONNX_WEIGHTS
from segray.models.metadata import BESIDE, CONFIG, PROCESSOR
from segray.storage import download, hub
from segray.storage.backend import ListedObject
from segray.storage.download import Progress
from segray.storage.hub import Hub, HubAddress, HubFile
from segray.storage.options import StorageOptions
from segray.storage.store import Store
from segray.storage.uris import is_http, join, redact, scheme

_MODELS = (".xml", ".onnx")
_FILES = (*_MODELS, ".pb")
_SAVED_MODEL = "saved_model.pb"


@dataclass(frozen=True)
class RemoteFile:
    """A file of a model at its source.

    name: path below the model's folder. address: what the place fetches. version: identity of the content there.
    size_bytes, sha256: None if the place does not tell. blob_sha1: git's checksum; None if the file has none.
    """

    name: str
    address: str
    version: str
    size_bytes: int | None = None
    sha256: str | None = None
    blob_sha1: str | None = None


@dataclass(frozen=True)
class RemoteModel:
    """A model at its source.

    opened: the file that OpenVINO opens, below the folder; "." for a SavedModel. revision: the commit; None outside
    the hub.
    """

    files: tuple[RemoteFile, ...]
    opened: str
    revision: str | None = None

    @property
    def versions(self) -> dict[str, str]:
        """Return the versions of the files by name."""
        return {file.name: file.version for file in self.files}


class RemoteFolder(Protocol):
    """A folder at an address."""

    revision: str | None

    def names(self, *, recursive: bool) -> Sequence[str]:
        """Return the names of the files in the folder, or of the files below it, as paths."""
        ...

    def stat(self, name: str) -> RemoteFile:
        """Return the facts of a file; raise FileNotFoundError if there is none."""
        ...

    def fetch(self, file: RemoteFile, target: Path, progress: Progress) -> str:
        """Write the file to `target`, resume an earlier attempt, and return the SHA-256."""
        ...


def is_remote(path: str | None) -> bool:
    """Return whether `model.path` is an address rather than a path of this machine."""
    return path is not None and scheme(path) != ""


def open_folder(uri: str, options: StorageOptions) -> tuple[RemoteFolder, str | None]:
    """Return the folder at an address, and the name of the file if the address names a file. Ask nothing.

    Raises:
        ConfigError: The address can be no model.
    """
    place = hub.parse(uri)
    path = place.path if place is not None else urlsplit(uri).path if is_http(uri) else uri.partition("://")[2]
    name = PurePosixPath(path).name
    file = name if PurePosixPath(name).suffix in _FILES and not path.endswith("/") else None
    _refuse_other_files(uri, name, path)
    if file == _SAVED_MODEL:
        raise ConfigError(
            "A SavedModel is a folder.",
            where=redact(uri),
            found=file,
            hint=f"Set `model.path` to the folder of {file}.",
        )
    if place is not None:
        folder = place.path if file is None else place.path[: -len(file)].strip("/")
        return _HubFolder(place.at(place.revision, folder), options), file
    if is_http(uri):
        if file is None:
            raise ConfigError(
                "The files behind a link cannot be listed.",
                where=redact(uri),
                found="a link without .xml or .onnx at its end",
                hint="Set `model.path` to the link of the .onnx or .xml file. The .bin must lie beside the .xml.",
            )
        return _LinkFolder(uri, options), file
    return _StoreFolder(uri if file is None else uri[: -len(file)], options), file


def _refuse_other_files(uri: str, name: str, path: str) -> None:
    """Raise ModelError for the address of a checkpoint, or of another file that segray cannot read."""
    suffix = PurePosixPath(name).suffix
    if not path.endswith("/") and suffix in (*checkpoints.SUFFIXES, ".safetensors", ".bin", ".zip", ".gz"):
        hint = checkpoints.hint_on_suffix(suffix)
        raise ModelError("The address is of no model file.", where=redact(uri), found=f"suffix {suffix!r}", hint=hint)


def look(folder: RemoteFolder, name: str | None, uri: str) -> RemoteModel:
    """Return the model in a folder: its file, the weights, and what says more of the model beside.

    Args:
        folder: The folder.
        name: Name of the model's file; None to find the only one.
        uri: The address, for errors.

    Raises:
        ModelError: The folder has no model, or lacks a file of it.
        ConfigError: The folder has several models.
        AccessError: The place refuses the request.
        InfrastructureError: The place cannot be reached or fails.
    """
    names = None if name is not None else _listed(folder, uri)
    if names is not None and _SAVED_MODEL in names:
        files = tuple(folder.stat(below) for below in _checked_names(folder.names(recursive=True), uri))
        return RemoteModel(files, ".", folder.revision)
    opened = name if name is not None else _only_model(names or (), uri)
    required = [opened, f"{opened[: -len('.xml')]}.bin"] if opened.endswith(".xml") else [opened]
    optional = [*BESIDE, *(opened + suffix for suffix in ONNX_WEIGHTS if opened.endswith(".onnx"))]
    files = tuple(_required(folder, file, uri) for file in required)
    beside = [_optional(folder, file) for file in optional if names is None or file in names]
    return RemoteModel((*files, *(file for file in beside if file is not None)), opened, folder.revision)


def _listed(folder: RemoteFolder, uri: str) -> Sequence[str]:
    try:
        return folder.names(recursive=False)
    except FileNotFoundError as error:
        raise _missing(uri, str(error.strerror or error)) from error


def _checked_names(names: Sequence[str], uri: str) -> Sequence[str]:
    """Return names of files; raise ModelError for one that would lie outside the folder of the copy."""
    for name in names:
        if name.startswith("/") or ".." in name.split("/"):
            hint = "Do not use this model: the file would be written outside the cache."
            raise ModelError("The name of a file leads out of its folder.", where=redact(uri), found=name, hint=hint)
    return names


def _only_model(names: Sequence[str], uri: str) -> str:
    """Return the only model file of these names."""
    models = [name for name in names if PurePosixPath(name).suffix in _MODELS and not name.startswith(".")]
    if len(models) == 1:
        return models[0]
    if models:
        hint = f"Set `model.path` to one of these files, such as {join(redact(uri), models[0])}."
        raise ConfigError(
            "The folder has several models.", where=redact(uri), found=", ".join(sorted(models)[:12]), hint=hint
        )
    found = ", ".join(sorted(names)[:8]) or "nothing"
    hint = "Set `model.path` to the folder or the file of an IR (.xml with .bin) or ONNX model."
    raise ModelError("The folder has no model: no .xml and no .onnx.", where=redact(uri), found=found, hint=hint)


def _required(folder: RemoteFolder, name: str, uri: str) -> RemoteFile:
    try:
        return folder.stat(name)
    except FileNotFoundError as error:
        raise _missing(uri, f"no {name}: {error.strerror or error}") from error


def _missing(uri: str, found: str) -> ModelError:
    hint = "Check `model.path`, and the page of the source in a browser. An IR is two files, .xml and .bin."
    return ModelError("The model does not exist at its address.", where=redact(uri), found=found, hint=hint)


def _optional(folder: RemoteFolder, name: str) -> RemoteFile | None:
    """Return a file beside the model; None if there is none, which some stores say by a refusal."""
    with suppress(FileNotFoundError, AccessError):
        return folder.stat(name)
    return None


# ---- places ---------------------------------------------------------------------------------------


class _HubFolder:
    """A folder of a repository on the hub. The first request settles the commit of all others."""

    def __init__(self, address: HubAddress, options: StorageOptions) -> None:
        self._address, self._hub = address, Hub(options)
        self.revision: str | None = address.revision if address.is_pinned else None

    def names(self, *, recursive: bool) -> Sequence[str]:
        self._settle(self._hub.commit(self._address))
        start = f"{self._address.path}/" if self._address.path else ""
        return [path.removeprefix(start) for path in self._hub.paths(self._address, recursive=recursive)]

    def _settle(self, commit: str) -> None:
        if commit:
            self.revision, self._address = commit, self._address.at(commit, self._address.path)

    def stat(self, name: str) -> RemoteFile:
        file = self._stat(name)
        self._settle(file.commit)
        version = f"sha256 {file.sha256}" if file.sha256 else f"git {file.blob_sha1}" if file.blob_sha1 else ""
        version = version or f"commit {file.commit}, {file.size_bytes} bytes"
        return RemoteFile(name, file.url, version, file.size_bytes, file.sha256, file.blob_sha1)

    def _stat(self, name: str) -> HubFile:
        """Return the facts of a file. The configuration of an ONNX in a folder may lie in the repository's root."""
        folder = self._address.path
        try:
            return self._hub.stat(self._address.at(self._address.revision, f"{folder}/{name}" if folder else name))
        except FileNotFoundError:
            if not folder or name not in (CONFIG, PROCESSOR):
                raise
        return self._hub.stat(self._address.at(self._address.revision, name))

    def fetch(self, file: RemoteFile, target: Path, progress: Progress) -> str:
        digest = download.download_file(
            [file.address],
            target,
            sha256=file.sha256,
            size_bytes=file.size_bytes,
            headers=self._hub.headers,
            progress=progress,
        )
        if file.blob_sha1 is not None and _blob_sha1(target) != file.blob_sha1:
            target.unlink()
            raise InfrastructureError(
                "The download is another file than the hub's.",
                where=file.address,
                found=f"not git's checksum {file.blob_sha1}",
                hint="Run the same command again.",
            )
        return digest


def _blob_sha1(path: Path) -> str:
    """Return git's checksum of a file."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class _LinkFolder:
    """The folder of a link by http or https, which cannot be listed. uri: the link of a file."""

    revision: str | None = None

    def __init__(self, uri: str, options: StorageOptions) -> None:
        self._uri, self._options = uri, options
        self._headers = {"User-Agent": f"segray/{segray.__version__}", **(options.http_headers or {})}

    def names(self, *, recursive: bool) -> Sequence[str]:
        raise AssertionError("a link is the link of a file")

    def stat(self, name: str) -> RemoteFile:
        # Some servers refuse HEAD. The body of a GET stays unread.
        url = self._link(name)
        request = urllib.request.Request(url, headers={"Accept-Encoding": "identity"})
        for header, value in self._headers.items():  # Another host, to which the link redirects, must not get them.
            request.add_unredirected_header(header.capitalize(), value)
        try:
            with urllib.request.urlopen(request, timeout=self._options.timeout_s) as response:
                return _file_of_reply(name, url, response)
        except urllib.error.HTTPError as error:
            with error:
                raise _error_of_status(error, url) from error
        except (OSError, http.client.HTTPException) as error:
            raise InfrastructureError(
                "The link cannot be reached.",
                where=redact(url),
                found=str(getattr(error, "reason", None) or error or type(error).__name__),
                hint="Check the network and its proxy settings, then run the same command again.",
            ) from error

    def _link(self, name: str) -> str:
        """Return the link of a file beside the named one. A query belongs to its own link alone."""
        address, mark, query = self._uri.partition("?")
        folder, _, own = address.rpartition("/")
        if name == own:
            return self._uri
        if mark and query:
            raise FileNotFoundError(errno.ENOENT, "a link with a query gives one file", redact(self._uri))
        return f"{folder}/{name}"

    def fetch(self, file: RemoteFile, target: Path, progress: Progress) -> str:
        digest = download.download_file(
            [file.address], target, size_bytes=file.size_bytes, headers=self._headers, progress=progress
        )
        if self.stat(file.name).version != file.version:
            target.unlink()
            raise _changed(file)
        return digest


def _file_of_reply(name: str, url: str, response: http.client.HTTPResponse) -> RemoteFile:
    """Return the facts that the headers of a reply tell. Raise FileNotFoundError for a web page."""
    headers = response.headers
    if headers.get_content_type() == "text/html":
        raise FileNotFoundError(errno.ENOENT, "a web page, not a file", redact(url))
    tag = (headers.get("ETag") or headers.get("Last-Modified") or "").removeprefix("W/").strip('"')
    length = headers.get("Content-Length")
    is_size = length is not None and length.isdigit() and "Content-Encoding" not in headers
    size_bytes = int(length) if is_size and length is not None else None
    return RemoteFile(name, url, f"tag {tag}" if tag else f"{size_bytes} bytes", size_bytes)


def _error_of_status(error: urllib.error.HTTPError, url: str) -> Exception:
    found = f"HTTP {error.code} {error.reason}"
    if error.code in (404, 410):
        return FileNotFoundError(errno.ENOENT, found, redact(url))
    if 400 <= error.code < 500 and error.code not in (408, 425, 429):
        hint = "Check the link, and whether its host serves it to this machine. A signed link may have expired."
        return AccessError("The link is refused.", where=redact(url), found=found, hint=hint)
    hint = "Run the same command again later."
    return InfrastructureError("The link's host fails.", where=redact(url), found=found, hint=hint)


class _StoreFolder:
    """A folder of an object store, or of any other file system that segray reads."""

    revision: str | None = None

    def __init__(self, uri: str, options: StorageOptions) -> None:
        self._uri, self._store = uri.rstrip("/"), Store(options)

    def names(self, *, recursive: bool) -> Sequence[str]:
        if recursive:
            return [entry.key for entry in self._store.list(self._uri)]
        return self._store.names(self._uri)

    def stat(self, name: str) -> RemoteFile:
        entry = self._store.stat(join(self._uri, name))
        return RemoteFile(name, entry.uri, _version(entry), None if entry.size_bytes < 0 else entry.size_bytes)

    def fetch(self, file: RemoteFile, target: Path, progress: Progress) -> str:
        entry = self._store.stat(file.address)
        if _version(entry) != file.version:
            raise _changed(file)
        return download.download_object(
            self._store,
            file.address,
            target,
            size_bytes=entry.size_bytes,
            version=entry.version,
            progress=progress,
        )


def _version(entry: ListedObject) -> str:
    """Return the identity of an object's content, as RemoteFile has it."""
    if entry.version:
        return f"tag {entry.version}"
    return f"{None if entry.size_bytes < 0 else entry.size_bytes} bytes"


def _changed(file: RemoteFile) -> InfrastructureError:
    return InfrastructureError(
        "The file changed while the model was fetched.",
        where=redact(file.address),
        found=f"no longer {file.version}",
        hint="Run the same command again.",
    )
