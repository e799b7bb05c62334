"""What a process and all below it take of the machine: CPU seconds, peak memory. Read from /proc, from outside.

Knows Linux's process tree; knows nothing of what the processes do, but that Ray's workers are called ray::.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from segray._system import memory

_PROC = Path("/proc")
_EVERY_S = 0.2
_RAYS_OWN = (b"raylet/raylet", b"ray::DashboardAgent", b"ray::RuntimeEnvAgent")
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class _Process:
    role: str
    peak_rss_bytes: int = 0
    cpu: list[tuple[float, float]] = field(default_factory=list)

    def cpu_s(self, began_s: float, ended_s: float) -> float:
        return _at(self.cpu, ended_s) - _at(self.cpu, began_s)


class Watch:
    """Looks at a process and its descendants while it is entered. role: driver (the process itself), worker (Ray's),
    or ray (all else that it started)."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._seen: dict[tuple[int, str], _Process] = {}
        self._machine: list[tuple[float, float]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def peak_rss_bytes(self) -> Mapping[str, int]:
        """Of the driver and of the largest worker; `all` is the sum over the peaks of all processes."""
        peaks = {
            role: max((p.peak_rss_bytes for p in self._seen.values() if p.role == role), default=0)
            for role in ("driver", "worker")
        }
        return {**peaks, "all": sum(process.peak_rss_bytes for process in self._seen.values())}

    def cpu_seconds(self, began_s: float, ended_s: float) -> Mapping[str, float]:
        """By role between two moments of time.monotonic, to about a fifth of a second of each process."""
        spent: dict[str, float] = {}
        for process in self._seen.values():
            spent[process.role] = spent.get(process.role, 0.0) + process.cpu_s(began_s, ended_s)
        return spent

    def others_share(self, began_s: float, ended_s: float) -> float:
        """Of the machine's processors, what processes outside this tree took between two moments, 0..1."""
        mine = sum(self.cpu_seconds(began_s, ended_s).values())
        all_of_it = _at(self._machine, ended_s) - _at(self._machine, began_s)
        room = (ended_s - began_s) * (os.cpu_count() or 1)
        return min(1.0, max(0.0, (all_of_it - mine) / room)) if room > 0 else 0.0

    def _look(self) -> None:
        while not self._done.wait(_EVERY_S):
            self._machine.append((time.monotonic(), _machine_cpu_s()))
            for pid in self._tree():
                # It may end at any moment.
                with suppress(FileNotFoundError, ProcessLookupError, IndexError):
                    self._note(pid)

    def _note(self, pid: int) -> None:
        fields = _stat(pid)
        born = fields[19]
        if (pid, born) not in self._seen:
            self._seen[pid, born] = _Process(self._role(pid), cpu=[(time.monotonic(), 0.0)])
        process = self._seen[pid, born]
        process.cpu.append((time.monotonic(), (int(fields[11]) + int(fields[12])) / _TICKS))
        process.peak_rss_bytes = max(process.peak_rss_bytes, memory.peak_bytes(pid))

    def _role(self, pid: int) -> str:
        if pid == self._pid:
            return "driver"
        command = (_PROC / str(pid) / "cmdline").read_bytes()
        works = command.startswith(b"ray::") or b"default_worker.py" in command
        # The raylet's own command line holds that of its workers.
        return "worker" if works and not any(name in command for name in _RAYS_OWN) else "ray"

    def _tree(self) -> list[int]:
        parents: dict[int, int] = {}
        for path in _PROC.glob("[0-9]*"):
            with suppress(FileNotFoundError, ProcessLookupError):
                parents[int(path.name)] = int(_stat(int(path.name))[1])
        tree = [self._pid] if self._pid in parents else []
        for pid in tree:
            tree += [child for child, parent in parents.items() if parent == pid]
        return tree


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; the name before may hold anything."""
    return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()


def _machine_cpu_s() -> float:
    """What all processors have computed since the machine started: user, nice, system, irq, softirq, steal."""
    ticks = list(map(int, (_PROC / "stat").read_text().split(maxsplit=9)[1:9]))
    return (sum(ticks) - ticks[3] - ticks[4]) / _TICKS


def _at(samples: list[tuple[float, float]], moment_s: float) -> float:
    """The value at a moment, between samples in proportion; outside them the nearest."""
    if not samples:
        return 0.0
    before = samples[0]
    for sample in samples:
        if sample[0] >= moment_s:
            span = sample[0] - before[0]
            share = (moment_s - before[0]) / span if span > 0 and moment_s > before[0] else 0.0
            return before[1] + share * (sample[1] - before[1])
        before = sample
    return before[1]
