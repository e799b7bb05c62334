"""Output to local files and folders that appear only when they are complete.

This module knows paths. The content of the files belongs to other modules.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segray.errors import LastingError, UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def require_new_path(out: Path, *, folder: bool = False) -> None:
    """Raise UserError unless a new file, or a folder, can be made here. An empty folder counts as a new one."""
    if not folder:
        require_file_path(out)
    _check_local(out)
    if out.is_dir() and any(out.iterdir()):
        raise UserError("the folder is not empty", where=str(out), hint="choose another folder, or empty this one")
    if out.exists() and not out.is_dir():
        raise UserError("the file is there already", where=str(out), hint="choose another name, or remove the file")


def require_file_path(out: Path) -> None:
    """Raise UserError unless a file can be written here. An existing file would be replaced."""
    _check_local(out)
    if out.is_dir():
        raise UserError("a folder is there already", where=str(out), hint="give the name of a file")
    if out.exists() and not out.is_file():  # A rename would replace a device or a pipe by a file.
        raise UserError("a device or a pipe is there", where=str(out), hint="give the name of a file")


def _check_local(out: Path) -> None:
    """Raise UserError for a URL such as s3://bucket/key, which Path would take for a local folder."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(out)):
        raise UserError(
            "segray writes this output to local files only",
            found=str(out),
            hint="give a local path, then copy the output",
        )


@contextmanager
def atomic_output(out: Path) -> Iterator[Path]:
    """Yield a path beside `out` to write to. Rename the path to `out` when the block ends.

    After an exception `out` is not made. Paths whose names begin with the yielded name are removed in either case.

    Raises:
        UserError, LastingError: As `writing`.
    """
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished = out.with_name(f".{out.name}.{secrets.token_hex(4)}.segray-tmp")
        try:
            yield unfinished
            unfinished.rename(out)
        finally:
            for path in list(unfinished.parent.iterdir()):
                if path.name.startswith(unfinished.name):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Raise a typed error where the block cannot make the file or folder `out`.

    Raises:
        UserError: The system does not let segray write there.
        LastingError: There is no room.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            hint = "make room, or choose another place; then run the same command again"
            raise LastingError(
                "there is no room for the output", where=str(out), found=str(error), hint=hint
            ) from error
        if not _concerns(error, out):
            raise
        hint = "choose another place, or change the permissions of the folder"
        raise UserError("the output cannot be written", where=str(out), found=str(error), hint=hint) from error


def _concerns(error: OSError, out: Path) -> bool:
    """Return whether an error names the output, its unfinished form, or a folder above."""
    if not isinstance(error.filename, str | os.PathLike) or error.errno is None:
        return False
    path, output = Path(error.filename).absolute(), out.absolute()
    own = output.relative_to(output.parent).name
    is_below = output.parent in path.parents and path.relative_to(output.parent).parts[0].startswith((own, f".{own}."))
    return is_below or path in output.parents
