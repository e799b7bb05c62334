"""Copies of models that lie at an address: fetched once, checked, read-only, and refused when the source changed.

Knows the folder of the copies and when a copy is used. remote_folder.py knows the places, and how a file is fetched.

    CACHE/NAME-DIGEST/source.json       address, revision and files of the copy in use
    CACHE/NAME-DIGEST/COPY/             the copy, read-only; its name is a digest of the files' versions
    CACHE/NAME-DIGEST/incoming-COPY/    a copy that is being fetched; a later run resumes
    CACHE/NAME-DIGEST/lock              held while the copy is checked or fetched

CACHE is SEGRAY_CACHE/models, by default ~/.cache/segray/models. A copy that is no longer in use stays for a week, since
a run may still read it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from segray.config import ModelSettings
from segray.errors import ConfigError, InfrastructureError, ModelError
from segray.models import remote_folder, resolve
from segray.models.remote_folder import RemoteFile, RemoteFolder, RemoteModel
from segray.storage import hub
from segray.storage.download import Progress, ProgressLines
from segray.storage.options import StorageOptions
from segray.storage.uris import redact

Note = Callable[[str], None]

UNUSED_S = 7 * 86_400
_RECORD = "source.json"
_INCOMING = "incoming-"


@dataclass(frozen=True)
class Copy:
    """A copy on this machine.

    folder: of the copy. opened: the file that OpenVINO opens, below the folder. versions: of the files at the source.
    revision: the hub's commit. fetched: the day. sha256: file name -> checksum.
    """

    folder: Path
    uri: str
    opened: str
    revision: str | None
    fetched: str
    versions: Mapping[str, str]
    sha256: Mapping[str, str]

    @property
    def path(self) -> Path:
        """Return the path for `model.path`."""
        return self.folder / self.opened

    def origin(self) -> dict[str, Any]:
        """Return where the copy is from, for records."""
        revision = {} if self.revision is None else {"revision": self.revision}
        return {"uri": self.uri, **revision, "sha256": dict(self.sha256)}


def resolved(
    settings: ModelSettings, options: StorageOptions, note: Note, progress: Progress | None = None
) -> resolve.ResolvedModel:
    """Return the configured model. A model at an address is fetched before.

    Args:
        settings: The section `model` of the configuration.
        options: How to reach storage.
        note: Receives what is fetched, and that a copy is used offline.
        progress: Receives the bytes of a download; None for a line to `note` every five seconds.

    Raises:
        ConfigError: The configuration does not settle the model.
        ModelError: The files are missing, are others than configured, or changed at their source.
        AccessError: The source refuses the request.
        InfrastructureError: The source cannot be reached, and there is no copy.
    """
    if settings.path is None or not remote_folder.is_remote(settings.path):
        model = resolve.configured(settings)
    else:
        copy = fetched(settings, options, note, progress)
        model = resolve.configured(settings.model_copy(update={"path": str(copy.path)})).from_origin(copy.origin())
    resolve.check_checksums(settings, model)
    return model


def fetched(settings: ModelSettings, options: StorageOptions, note: Note, progress: Progress | None = None) -> Copy:
    """Return the copy of the model at the address `model.path`; arguments and errors are those of `resolved`."""
    uri = str(settings.path)
    source, name = remote_folder.open_folder(uri, options)
    home = _home(uri)
    with _locked(home, note):
        copy = _read_copy(home, settings, note)
        remote = _remote(source, name, uri, copy, settings, note)
        if copy is not None and (remote is None or remote.versions == dict(copy.versions)):
            os.utime(copy.folder)
            return copy
        assert remote is not None  # Without a copy, a source that cannot be asked is an error.
        if copy is not None and settings.on_change != "take":
            raise _changed_error(uri, copy, remote)
        copy = _fetch(source, remote, home, settings, note, progress or ProgressLines(note))
        _remove_unused(home, copy.folder)
        return copy


def cache() -> Path:
    """Return the folder of all copies."""
    if stated := os.environ.get("SEGRAY_CACHE"):
        return Path(stated).expanduser() / "models"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "segray" / "models"


def _home(uri: str) -> Path:
    """Return the folder for the copies of one address."""
    words = re.sub(r"[^A-Za-z0-9.-]+", "-", redact(uri).partition("://")[2].split("?")[0]).strip("-.")
    return cache() / f"{words[-60:].lstrip('-.')}-{hashlib.sha256(uri.encode()).hexdigest()[:16]}"


@contextmanager
def _locked(home: Path, note: Note) -> Iterator[None]:
    """Let one process at a time use the copies of an address."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        file = (home / "lock").open("w")
    except OSError as error:
        raise _cache_error(home, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            note(f"waiting for another process that fetches the model into {home}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _cache_error(home: Path, error: OSError) -> InfrastructureError:
    return InfrastructureError(
        "The copies of models cannot be kept.",
        where=str(home),
        found=str(error),
        hint="Set the environment variable SEGRAY_CACHE to a folder with room that this user may write.",
    )


# ---- the copy -------------------------------------------------------------------------------------


def _read_copy(home: Path, settings: ModelSettings, note: Note) -> Copy | None:
    """Return the copy in use; None if there is none, or not the one that the configuration asks for."""
    try:
        record = json.loads((home / _RECORD).read_text("utf-8"))
        copy = Copy(**{**record, "folder": home / record["folder"]})
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    damaged = [name for name, digest in copy.sha256.items() if not _has_digest(copy.folder / name, digest)]
    if damaged:
        note(f"the copy in {copy.folder} is damaged, fetching it again: {', '.join(damaged)}")
        _remove(copy.folder)
        return None
    return None if resolve.wrong_checksums(settings, copy.sha256, copy.opened) else copy


def _has_digest(file: Path, digest: str) -> bool:
    return file.is_file() and resolve.sha256(file) == digest


def _remote(
    source: RemoteFolder, name: str | None, uri: str, copy: Copy | None, settings: ModelSettings, note: Note
) -> RemoteModel | None:
    """Return the model as it is at the source; None if the copy is to be used without asking, or cannot be compared."""
    place = hub.parse(uri)
    if copy is not None and (settings.on_change == "keep" or (place is not None and place.is_pinned)):
        return None
    if place is not None and hub.is_offline():
        if copy is None:
            what, hint = "There is no copy of the model.", "Remove HF_HUB_OFFLINE from the environment for one run."
            raise ConfigError(what, where=redact(uri), found="HF_HUB_OFFLINE is set", hint=hint)
        note(f"HF_HUB_OFFLINE is set: using the copy of {copy.fetched} in {copy.folder}")
        return None
    try:
        return remote_folder.look(source, name, uri)
    except InfrastructureError as error:
        if copy is None:
            raise
        note(f"{redact(uri)} cannot be reached, using the copy of {copy.fetched} in {copy.folder}: {error.short()}")
        return None


def _changed_error(uri: str, copy: Copy, remote: RemoteModel) -> ModelError:
    changes = [
        f"{name}: {copy.versions.get(name, 'absent')} -> {remote.versions.get(name, 'absent')}"
        for name in sorted({*copy.versions, *remote.versions})
        if copy.versions.get(name) != remote.versions.get(name)
    ]
    hint = f"Set `model.on_change` to take for the new files, or to keep for the copy of {copy.fetched}."
    place = hub.parse(uri)
    if place is not None and copy.revision is not None:
        hint += f" Or set `model.path` to {place.at(copy.revision, place.path)}, the commit of the copy."
    return ModelError(
        "The model at the address has changed since it was fetched.",
        where=redact(uri),
        found="; ".join(changes),
        hint=hint,
    )


# ---- fetching -------------------------------------------------------------------------------------


def _fetch(
    source: RemoteFolder, remote: RemoteModel, home: Path, settings: ModelSettings, note: Note, progress: Progress
) -> Copy:
    """Fetch the files, and make them the copy in use."""
    stated = {file.name: file.sha256 for file in remote.files if file.sha256 is not None}
    _check_configured(settings, stated, remote.opened)
    name = hashlib.sha256(json.dumps(remote.versions, sort_keys=True).encode()).hexdigest()[:16]
    folder, incoming = home / name, home / f"{_INCOMING}{name}"
    for other in home.glob(f"{_INCOMING}*"):
        if other != incoming:
            _remove(other)
    sha256 = {}
    for file in remote.files:
        note(f"fetching {file.name} from {redact(str(settings.path))}{_size_text(file)}")
        sha256[file.name] = source.fetch(file, incoming / file.name, progress)
    try:
        _check_configured(settings, sha256, remote.opened)
    except ModelError:
        _remove(incoming)
        raise
    copy = Copy(
        folder,
        redact(str(settings.path)),
        remote.opened,
        remote.revision,
        datetime.now(UTC).strftime("%Y-%m-%d"),
        remote.versions,
        sha256,
    )
    try:
        _install(copy, incoming)
    except OSError as error:
        raise _cache_error(home, error) from error
    note(f"the model is in {folder}")
    return copy


def _size_text(file: RemoteFile) -> str:
    return "" if file.size_bytes is None else f", {file.size_bytes / 1e6:.1f} MB"


def _check_configured(settings: ModelSettings, sha256: Mapping[str, str], opened: str) -> None:
    """Raise ModelError if a file has another checksum than `model.sha256` says."""
    if wrong := resolve.wrong_checksums(settings, sha256, opened):
        raise resolve.checksum_error(redact(str(settings.path)), wrong)


def _install(copy: Copy, incoming: Path) -> None:
    """Give a complete copy its name, and make it read-only and the one in use."""
    for file in [file for file in incoming.rglob("*") if file.is_file()]:
        if file.relative_to(incoming).as_posix() in copy.sha256:
            file.chmod(0o444)
        else:
            file.unlink()  # Notes of downloads on their progress.
    if copy.folder.exists():
        _remove(copy.folder)
    incoming.rename(copy.folder)
    for folder in (copy.folder, *(below for below in copy.folder.rglob("*") if below.is_dir())):
        folder.chmod(0o555)
    record = {**vars(copy), "folder": copy.folder.name}
    temporary = copy.folder.with_name(f"{_RECORD}.new")
    temporary.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    temporary.replace(copy.folder.with_name(_RECORD))


def _remove_unused(home: Path, current: Path) -> None:
    """Remove copies that were replaced and have not been used for a week."""
    for folder in home.iterdir():
        if folder.is_dir() and folder != current and time.time() - folder.stat().st_mtime > UNUSED_S:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder, which may be read-only."""
    for below in (folder, *folder.rglob("*")):
        if below.is_dir():
            below.chmod(0o755)
    shutil.rmtree(folder, ignore_errors=not folder.exists())
