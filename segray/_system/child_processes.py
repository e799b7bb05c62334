"""Child processes: nothing that a command or a call starts outlives it, descendants included.

Knows Linux's process tree and the environments of processes. Knows nothing of who starts what. On systems without /proc
no process is adopted or ended.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_PROC = Path("/proc")


def adopt() -> frozenset[int]:
    """Make this process the parent of descendants whose parents die; return the ids of its present children.

    Source: prctl(2), PR_SET_CHILD_SUBREAPER.
    """
    if _PROC.is_dir():
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return frozenset(_children())


def end(spared: frozenset[int]) -> None:
    """Kill every child of this process and all that they leave behind.

    spared: ids of children that stay alive.
    """
    while found := _children() - spared:
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def end_marked(name: str, value: str) -> None:
    """Kill every process that was started with an environment variable, and all its descendants.

    A program that changes its title may overwrite its environment, so its parent leads to it. SIGSTOP first keeps a
    parent from starting further children.

    name, value: the environment variable.
    """
    mark, doomed = f"{name}={value}".encode(), set[int]()
    while found := (_marked(mark) | _below(doomed)) - doomed:
        _send(found, signal.SIGSTOP)
        doomed |= found
    _send(doomed, signal.SIGKILL)
    for pid in doomed:
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _send(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def runs_marked(name: str, value: str, program: str) -> bool:
    """Return whether a process runs that was started with an environment variable and runs a program.

    name, value: the environment variable.
    program: a part of the process's command line.
    """
    for pid in _marked(f"{name}={value}".encode()):
        with suppress(OSError):
            if program.encode() in (_PROC / str(pid) / "cmdline").read_bytes():
                return True
    return False


def commands_with_variable(name: str) -> list[list[str]]:
    """Return the command lines of this user's processes that were started with an environment variable."""
    commands, start = [], f"{name}=".encode()
    for path in _PROC.glob("[0-9]*/environ"):
        with suppress(OSError):  # The process has ended, or belongs to another user.
            if any(variable.startswith(start) for variable in path.read_bytes().split(b"\0")):
                commands.append([os.fsdecode(word) for word in path.with_name("cmdline").read_bytes().split(b"\0")])
    return commands


def _marked(mark: bytes) -> set[int]:
    found = set()
    for path in _PROC.glob("[0-9]*/environ"):
        with suppress(OSError):  # The process has ended, or belongs to another user.
            if mark in path.read_bytes().split(b"\0"):
                found.add(int(path.parent.name))
    return found


def _children() -> set[int]:
    return _below({os.getpid()})


def _below(parents: Collection[int]) -> set[int]:
    """Return the ids of processes whose parents are among `parents`."""
    found = set()
    for path in _PROC.glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            # The name before the last ")" may hold anything; the parent is the second field after it.
            if int(path.read_text().rpartition(")")[2].split()[1]) in parents:
                found.add(int(path.parent.name))
    return found
