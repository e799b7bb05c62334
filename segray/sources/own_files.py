"""The files of a label set that lies inside its own source. These files are no images."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from segray.storage.uris import absolute, join, local_path, scheme

_OWN_KEYS = re.compile(r"_segray/.*|(instances|images)/(_delta_log/.*|.*\.parquet)", re.DOTALL)


def is_own_file(label_set: str | None, source: str) -> Callable[[str], bool]:
    """Return a function that says whether a URI below `source` belongs to the label set.

    label_set: root of the label set; None for no label set. source: the folder that is listed. Where both are the same
    folder, only the label set's tables and records belong to the label set.
    """
    if label_set is None:
        return lambda uri: False
    root, folder = absolute(label_set).rstrip("/"), absolute(source).rstrip("/")
    if not scheme(root) and not scheme(folder):
        below = _path_below(root, folder)
        root = root if below is None else join(folder, below).rstrip("/")
    if root == folder:
        return lambda uri: _OWN_KEYS.fullmatch(uri[len(root) + 1 :]) is not None
    return lambda uri: uri.startswith(f"{root}/")


def _path_below(root: str, folder: str) -> str | None:
    """Return the path from `folder` to `root`, "" for the same folder, None if root does not lie there."""
    try:
        below = Path(local_path(root)).resolve().relative_to(Path(local_path(folder)).resolve())
    except (ValueError, RuntimeError, OSError):
        return None
    return "" if str(below) == "." else str(below)
