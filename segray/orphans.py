"""Nothing that a command starts outlives it, not even what its children started and left.

Knows Linux's process tree; knows nothing of who starts what. On systems without /proc nothing is adopted or ended.
"""

from __future__ import annotations

import ctypes
import os
import signal
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_PROC = Path("/proc")


def adopt() -> frozenset[int]:
    """From now on, processes below this one whose parents die become its own children; those it has already.

    Source: prctl(2), PR_SET_CHILD_SUBREAPER.
    """
    if _PROC.is_dir():
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return frozenset(_children())


def end(spared: frozenset[int]) -> None:
    """Kill every child of this process but these, and what they leave behind."""
    while found := _children() - spared:
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def _children() -> set[int]:
    me, found = os.getpid(), set()
    for path in _PROC.glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            # The name before the last ")" may hold anything; the parent is the second field after it.
            if int(path.read_text().rpartition(")")[2].split()[1]) == me:
                found.add(int(path.parent.name))
    return found
