"""Child processes: no process that a command or a call starts outlives the command or the call, descendants included.

Knows Linux's process tree and the environments of processes. Knows nothing of who starts a process. On systems without
/proc no process is adopted or killed.
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


def adopt_descendants() -> frozenset[int]:
    """Make this process the parent of descendants whose parents die; return the ids of its present children.

    Source: prctl(2), PR_SET_CHILD_SUBREAPER.
    """
    if _PROC.is_dir():
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    return frozenset(_own_children())


def kill_children(spared: frozenset[int]) -> None:
    """Kill every child of this process, and every descendant that becomes a child by the death of its parent.

    spared: ids of children that stay alive.
    """
    while children := _own_children() - spared:
        for pid in children:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def kill_marked(name: str, value: str) -> None:
    """Kill every process that was started with an environment variable, and all its descendants.

    A program that changes its title may overwrite its environment. Such a process is found as a child of a marked one.
    SIGSTOP first keeps a parent from starting further children.

    name, value: the environment variable.
    """
    mark, pids = f"{name}={value}".encode(), set[int]()
    while new_pids := (_pids_marked(mark) | _children_of(pids)) - pids:
        _send_signal(new_pids, signal.SIGSTOP)
        pids |= new_pids
    _send_signal(pids, signal.SIGKILL)
    for pid in pids:
        with suppress(ChildProcessError):
            os.waitpid(pid, 0)


def _send_signal(pids: Iterable[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def marked_program_runs(name: str, value: str, program: str) -> bool:
    """Return whether a program runs in a process that was started with an environment variable.

    name, value: the environment variable. program: a part of the process's command line.
    """
    for pid in _pids_marked(f"{name}={value}".encode()):
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


def _pids_marked(mark: bytes) -> set[int]:
    """Return the ids of processes whose environment contains the mark, NAME=VALUE."""
    pids = set()
    for path in _PROC.glob("[0-9]*/environ"):
        with suppress(OSError):  # The process has ended, or belongs to another user.
            if mark in path.read_bytes().split(b"\0"):
                pids.add(int(path.parent.name))
    return pids


def _own_children() -> set[int]:
    return _children_of({os.getpid()})


def _children_of(parents: Collection[int]) -> set[int]:
    """Return the ids of processes whose parents are among `parents`."""
    pids = set()
    for path in _PROC.glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            # The name before the last ")" may hold anything; the parent is the second field after it.
            if int(path.read_text().rpartition(")")[2].split()[1]) in parents:
                pids.add(int(path.parent.name))
    return pids
