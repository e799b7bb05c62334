"""The files of a model on their way from the driver to a node that lacks them.

Knows which files belong to a model, their pieces, and where a node keeps them. Knows nothing of Ray, which carries the
pieces, or of the model's content. A worker compares the fingerprint of the files that it opens with the driver's.

    TMP/segray-models-UID/FINGERPRINT/...      kept for later runs; the folder may be deleted while no run starts

The first worker of a run removes copies that no process uses and that no run has opened for UNUSED_S. A worker holds a
shared lock on the folder of its copy until it ends. The time of the folder's last change is the copy's last use.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from segray.errors import InfrastructureError
from segray.models import engine, metadata, resolve
from segray.models.decoders import Code

PIECE_BYTES = 16 * 2**20
UNUSED_S = 7 * 86_400
_INCOMPLETE = "incomplete-"
# Descriptors of this process whose locks mark copies as in use, by folder.
_in_use: dict[Path, int] = {}


@dataclass(frozen=True)
class ShippedFile:
    """A file that the driver offers.

    name: path below the model's folder.
    sha256: digest of the content, 64 hex digits.
    pieces: references to the file's pieces, in order; opaque here.
    """

    name: str
    sha256: str
    pieces: tuple[Any, ...]


@dataclass(frozen=True)
class ShippedModel:
    """A model that the driver offers.

    fingerprint: the driver's fingerprint of the model.
    opened: path that OpenVINO opens, below the model's folder; "." for the folder itself.
    """

    fingerprint: str
    opened: str
    files: tuple[ShippedFile, ...]


def offer(path: str, fingerprint: str, put: Callable[[bytes], Any]) -> ShippedModel:
    """Return the model at `path` on this machine as an offer.

    Args:
        path: model.path.
        fingerprint: fingerprint of the model.
        put: stores a piece and returns its reference.
    """
    opened = engine.model_root(Path(path))
    folder = opened if opened.is_dir() else opened.parent
    files = {*engine.model_files(opened), folder / metadata.CARD}
    shipped = [
        ShippedFile(file.relative_to(folder).as_posix(), resolve.sha256(file), tuple(map(put, _pieces(file))))
        for file in sorted(files)
        if file.is_file()
    ]
    return ShippedModel(fingerprint, opened.relative_to(folder).as_posix(), tuple(shipped))


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while piece := stream.read(PIECE_BYTES):
            yield piece


def received(model: ShippedModel, get: Callable[[Any], bytes], home: Path | None = None) -> Path:
    """Return the path of the model on this node. The first worker of the node writes the files, others wait for it.

    Args:
        model: the offer.
        get: returns the piece of a reference.
        home: folder of the node for models; None for the usual one.

    Raises:
        InfrastructureError: the node has no room for the files.
    """
    home = home or Path(tempfile.gettempdir()) / f"segray-models-{os.getuid()}"
    folder = home / model.fingerprint
    try:
        home.mkdir(mode=0o700, exist_ok=True)
        if home.is_symlink() or home.stat().st_uid != os.getuid():
            raise PermissionError(f"{home} belongs to another user")
        with _lock(home / "lock"):
            if not _is_complete(model.files, folder):
                shutil.rmtree(folder, ignore_errors=not folder.exists())
                _write(model.files, folder, get)
            _mark_as_used(folder)
            _remove_unused(home)
    except OSError as exc:
        raise InfrastructureError(
            "the model's files cannot be kept on this node",
            where=str(folder),
            found=str(exc),
            hint="free some space there, or set TMPDIR of `ray start` to another folder",
        ) from exc
    return folder / model.opened


def received_code(code: Code, home: Path | None = None) -> Path:
    """Return a folder of this node with the files of a decoder. Workers get the files with their specification.

    home: folder of the node for models; None for the usual one.
    """
    files = tuple(
        ShippedFile(name, hashlib.sha256(content).hexdigest(), (content,)) for name, content in code.files.items()
    )
    return received(ShippedModel(code.digest, ".", files), bytes, home)


def _is_complete(files: Iterable[ShippedFile], folder: Path) -> bool:
    """Return whether the folder has these files, with these contents."""
    paths = [(folder / PurePosixPath(file.name), file.sha256) for file in files]
    return all(path.is_file() and resolve.sha256(path) == digest for path, digest in paths)


def _write(files: Iterable[ShippedFile], folder: Path, get: Callable[[Any], bytes]) -> None:
    """Write the files into a new folder, which appears when it is complete."""
    temporary = Path(tempfile.mkdtemp(prefix=_INCOMPLETE, dir=folder.parent))
    try:
        for file in files:
            path = temporary / PurePosixPath(file.name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as stream:
                stream.writelines(map(get, file.pieces))
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary)
        raise


def _mark_as_used(folder: Path) -> None:
    """Record this moment as the copy's last use, and hold the copy until this process ends."""
    os.utime(folder)
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    before, _in_use[folder] = _in_use.get(folder), descriptor
    if before is not None:
        os.close(before)


def _remove_unused(home: Path) -> None:
    """Remove copies that nobody uses, and what a killed process left behind. The caller holds the lock of `home`."""
    for entry in os.scandir(home):
        if not entry.is_dir(follow_symlinks=False):
            continue
        is_old = time.time() - entry.stat(follow_symlinks=False).st_mtime > UNUSED_S
        if entry.name.startswith(_INCOMPLETE) or (is_old and _is_free(Path(entry.path))):
            shutil.rmtree(entry.path)


def _is_free(folder: Path) -> bool:
    """Return whether no process holds the copy in this folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Let one process of the node at a time into the block."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
