"""The temporary folder of a Ray node: its files, logs and sockets.

Knows Ray's requirements for the folder, which folder meets them for a private cluster, and when a folder is full.
Starts nothing.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from segray.errors import ConfigError

# sockaddr_un holds 108 bytes, the last of them 0. Source: unix(7).
_SOCKET_PATH_BYTES = 107
_RAY_SOCKET_BYTES = len("/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store")
# Ray's processes die soon after the folder of their logs is full.
_LEAST_FREE_BYTES = 50 * 10**6


def fullness(folder: str | Path) -> str | None:
    """Return the free and total space of a folder whose disk is full, in words; None if the disk has room."""
    try:
        usage = shutil.disk_usage(folder)
    except FileNotFoundError:  # A cluster that has ended has removed the folder.
        return None
    if usage.free >= _LEAST_FREE_BYTES:
        return None
    return f"the disk is full: {usage.free / 1e6:.0f} MB of {usage.total / 1e6:.0f} MB are free"


def temp_folder() -> Path:
    """Return the folder for the files and sockets of a private cluster.

    The folder is Ray's default: "ray" in RAY_TMPDIR, or in the system's temporary folder. If another user owns the
    default, or its path is too long for a socket, the folder is one of this user in /tmp. Raises ConfigError for an
    unusable RAY_TMPDIR, or when no folder is usable.
    """
    setting = os.environ.get("RAY_TMPDIR")
    folder = Path(setting or tempfile.gettempdir()) / "ray"
    fault = _fault(folder)
    if fault and not setting:
        own = Path(f"/tmp/segray-ray-{os.getuid()}")
        if _fault(own) is None:
            return own
    if fault:
        raise ConfigError(
            "Ray cannot keep its files and sockets in its temporary folder",
            where=str(folder),
            found=fault,
            hint=f"set RAY_TMPDIR to a folder of your own whose path has at most {_longest_setting()} bytes",
        )
    return folder


def _longest_setting() -> int:
    """Return the largest number of bytes of RAY_TMPDIR that leaves room for Ray's part of a socket's path."""
    return _SOCKET_PATH_BYTES - _RAY_SOCKET_BYTES - len("/ray")


def _fault(folder: Path) -> str | None:
    """Return the reason why Ray cannot use a folder; None if Ray can."""
    length = len(os.fsencode(folder.resolve()))
    if length > _SOCKET_PATH_BYTES - _RAY_SOCKET_BYTES:
        return f"a path of {length} bytes, too long for Ray's sockets"
    nearest = folder
    while not os.access(nearest, os.F_OK) and nearest != nearest.parent:
        nearest = nearest.parent
    if not nearest.is_dir():
        return f"{nearest} is not a folder"
    if not os.access(nearest, os.W_OK | os.X_OK):
        owner = nearest.stat().st_uid
        return f"{nearest} cannot be written to; user {owner} owns it, this process is user {os.geteuid()}"
    try:
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        return f"{nearest}: {error.strerror}"
    return None
