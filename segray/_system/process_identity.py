"""The identity of a process among all processes of all machines, and whether such a process still runs.

Knows Linux's /proc. A process is named by its machine, its id and its start, since ids are used again. On systems
without /proc a process has no identity, and nobody can say that the process has ended.
"""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")


def machine() -> str:
    """Return the boot of this machine and the process namespace in it; "" if the system tells neither.

    Ids of processes in two containers are not comparable, though both containers may have one host name.
    """
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.readlink(_PROC / 'self/ns/pid')}"  # noqa: PTH115  the target is a name, not a path
    except OSError:
        return ""


def start_of(pid: int) -> str:
    """Return the start of a process in clock ticks since the boot; "" if no such process runs, or nobody may look."""
    try:
        # The name before the last ")" may hold anything. Fields after it: state, then others; the 20th is the start.
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in ("Z", "X") else fields[19]


def has_ended(pid: int, start: str) -> bool:
    """Return whether the process of this machine that began at `start` has certainly ended."""
    if not start:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # The process of another user may hide its start.
        return start_of(pid) not in ("", start)
    return start_of(pid) != start
