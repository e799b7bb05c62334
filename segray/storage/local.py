"""The local file system as a backend: listings sorted by whole keys, durable and atomic writes."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import cast

from segray.errors import AccessError
from segray.storage.backend import Attempt, ListedObject, Walk
from segray.storage.uris import join, local_path, name

_TEMPORARY = ".segray-tmp"  # suffix of incomplete files, which no listing shows
_GONE = (errno.ENOENT, errno.ENOTDIR)


class LocalBackend:
    """The local file system. Listings follow links, except into a folder that is being listed already."""

    def entries(self, uri: str, prefix: str, attempt: Attempt, walk: Walk) -> Iterator[ListedObject]:
        return self._walk(local_path(uri), "", prefix, frozenset(), attempt, walk)

    def _walk(
        self, folder: str, key: str, prefix: str, above: frozenset[tuple[int, int]], attempt: Attempt, walk: Walk
    ) -> Iterator[ListedObject]:
        try:
            identity, children = attempt(lambda _: (_identity(folder), sorted(_scan(folder))))
        except (FileNotFoundError, AccessError) as error:
            if not key or (walk.on_fault is None and isinstance(error, AccessError)):
                raise
            if walk.on_fault is not None and _number(error) not in _GONE:
                walk.on_fault(key, _reason(error))
            return  # removed since its parent was listed
        if identity in above:
            if walk.on_fault is not None:
                walk.on_fault(key, "a link to a folder above the link")
            return
        for child in children:
            path, below = join(folder, child.removesuffix("/")), key + child
            if child.endswith("/"):
                if (below.startswith(prefix) or prefix.startswith(below)) and walk.enters(below):
                    yield from self._walk(path, below, prefix, above | {identity}, attempt, walk)
            elif below.startswith(prefix) and (entry := self._file(path, below, attempt, walk)):
                yield entry

    def _file(self, path: str, key: str, attempt: Attempt, walk: Walk) -> ListedObject | None:
        """Return the entry of a file. A link whose target cannot be reached has a size of -1 bytes."""
        try:
            entry = cast("ListedObject | None", attempt(lambda _: _file_entry(path, key)))
        except (FileNotFoundError, AccessError) as error:
            entry = ListedObject(path, key, "", -1) if os.path.islink(path) else None  # noqa: PTH114  Never raises.
            if walk.on_fault is None:
                if entry is None:
                    raise
            else:
                walk.on_fault(key, _reason(error))
            return entry
        if entry is not None and entry.size_bytes < 0 and walk.on_fault is not None:
            walk.on_fault(key, "a link without a target")
        return entry

    def names(self, uri: str) -> list[str]:
        return list(_scan(local_path(uri)))

    def stat(self, uri: str) -> ListedObject:
        path = local_path(uri)
        entry = _file_entry(path, name(path))
        if uri.endswith("/") or entry is None or entry.size_bytes < 0:
            raise FileNotFoundError(errno.ENOENT, "no such file", uri)
        return entry

    def read(self, uri: str, start: int, size: int | None) -> bytes:
        # Without O_NONBLOCK, opening a pipe without a writer would wait for ever.
        with open(local_path(uri), "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise FileNotFoundError(errno.ENOENT, "neither a file nor a link to one", uri)
            file.seek(start)
            if size is None or status.st_size - start < size:
                return file.read()[:size]  # read(size) would first take memory of that size.
            return file.read(size)

    def put(self, uri: str, data: bytes) -> None:
        path = Path(local_path(uri))
        with _durable_temporary_file(path.parent, data) as temporary:
            temporary.replace(path)

    def create(self, uri: str, data: bytes) -> None:
        path = Path(local_path(uri))
        with _durable_temporary_file(path.parent, data) as temporary, suppress(FileExistsError):
            path.hardlink_to(temporary)

    def delete(self, uri: str) -> None:
        Path(local_path(uri)).unlink()


def missing_folders(uri: str) -> list[str]:
    """Return the path of a local folder and of those above that do not exist, the deepest first."""
    path = Path(local_path(uri))
    return [str(folder) for folder in (path, *path.parents) if not folder.exists()]


def remove_empty_folders(paths: Iterable[str]) -> None:
    """Remove local folders, the deepest first, up to the first that is not empty."""
    for path in paths:
        try:
            Path(path).rmdir()
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return
            if error.errno != errno.ENOENT:
                raise


def _number(error: FileNotFoundError | AccessError) -> int:
    """Return the error number of the operating system for an error that the store made of it."""
    cause = error.__cause__
    return (cause.errno if isinstance(cause, OSError) else None) or errno.ENOENT


def _reason(error: FileNotFoundError | AccessError) -> str:
    return os.strerror(_number(error)).lower()


def _identity(folder: str) -> tuple[int, int]:
    status = Path(folder).stat()
    return status.st_dev, status.st_ino


def _scan(folder: str) -> Iterator[str]:
    """Yield the names in a folder; names of folders end with "/".

    Names sorted in this form are in the order of the whole keys.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.endswith(_TEMPORARY):
                yield entry.name + "/" if _is_folder(entry) else entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether the entry is a folder or a link to one. A link that loops is no folder."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES):  # Of the target of a link.
            return False
        raise


def _file_entry(path: str, key: str) -> ListedObject | None:
    """Return the entry of a file; None for folders, pipes, devices, and files that are gone.

    A dangling link has a size of -1 bytes.
    """
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        return ListedObject(path, key, "", -1) if Path(path).is_symlink() else None
    if not stat.S_ISREG(status.st_mode):
        return None
    return ListedObject(path, key, f"{status.st_size}-{status.st_mtime_ns}", status.st_size)


@contextmanager
def _durable_temporary_file(folder: Path, data: bytes) -> Iterator[Path]:
    """Write all of `data` to a durable temporary file in `folder`, and yield the path of the file.

    The caller renames or links the file within `folder`. The temporary file is removed at the end.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError as error:  # /proc and the like refuse with the error of a missing folder.
        raise PermissionError(errno.EACCES, "the folder cannot be made", str(folder)) from error
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
