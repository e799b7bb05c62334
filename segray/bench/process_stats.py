"""What a process and all below it take of the machine: CPU seconds, peak memory. Read from outside.

Knows the process tree; knows nothing of what the processes do, but that Ray's workers are called ray::.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

import psutil

from segray._system import memory

_EVERY_S = 0.2
_RAYS_OWN = ("raylet/raylet", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


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
        self._root = psutil.Process(pid)
        self._seen: dict[psutil.Process, _Process] = {}
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
            with suppress(psutil.NoSuchProcess):
                for process in (self._root, *self._root.children(recursive=True)):
                    # It may end at any moment.
                    with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                        self._note(process)

    def _note(self, process: psutil.Process) -> None:
        if process not in self._seen:
            self._seen[process] = _Process(self._role(process), cpu=[(time.monotonic(), 0.0)])
        seen, spent = self._seen[process], process.cpu_times()
        seen.cpu.append((time.monotonic(), spent.user + spent.system))
        seen.peak_rss_bytes = max(seen.peak_rss_bytes, memory.peak_bytes(process.pid))

    def _role(self, process: psutil.Process) -> str:
        if process == self._root:
            return "driver"
        command = _command(process)
        works = command.startswith("ray::") or "default_worker.py" in command
        # The raylet's own command line holds that of its workers.
        return "worker" if works and not any(name in command for name in _RAYS_OWN) else "ray"


def _command(process: psutil.Process) -> str:
    """The command line; empty when the process has ended and its parent does not know yet."""
    try:
        return " ".join(process.cmdline())
    except psutil.ZombieProcess:
        return ""


def _machine_cpu_s() -> float:
    """What all processors have computed since the machine started: user, nice, system, irq, softirq, steal."""
    times = psutil.cpu_times()
    return float(sum(times[:8]) - times.idle - times.iowait)


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
