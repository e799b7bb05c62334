"""Where results are written: local places that are free, and nothing there until it is whole.

Knows files and folders; knows nothing of what is in them.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from segray.errors import UserError


def check_free(out: Path, *, folder: bool = False) -> None:
    """UserError unless a new file, or a folder, can be made here. An empty folder stands for one that is made."""
    if not folder:
        check_file(out)
    _check_local(out)
    if out.is_dir() and any(out.iterdir()):
        raise UserError("the folder is not empty", where=str(out), do="choose another one, or empty it")
    if out.exists() and not out.is_dir():
        raise UserError("the file is there already", where=str(out), do="choose another name, or remove it")


def check_file(out: Path) -> None:
    """UserError unless a file can be written here, in place of one that is there."""
    _check_local(out)
    if out.is_dir():
        raise UserError("a folder is there already", where=str(out), do="give the name of a file")


def _check_local(out: Path) -> None:
    """Of an address Path makes a local folder, without a word."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(out)):
        raise UserError(
            "this is written to local files alone", found=str(out), do="give a path, and copy what is there"
        )


@contextmanager
def whole(out: Path) -> Iterator[Path]:
    """A name beside `out` for what is written, which becomes `out` in the end, or is removed if that is not reached.

    Names that begin with it are removed too.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}.{secrets.token_hex(4)}.segray-tmp")
    try:
        yield unfinished
        unfinished.rename(out)
    finally:
        for each in list(unfinished.parent.iterdir()):
            if each.name.startswith(unfinished.name):
                shutil.rmtree(each) if each.is_dir() else each.unlink()
