"""CPU seconds and peak memory of a process and its descendants, measured from outside.

Knows the process tree. Knows nothing of the processes' work, except that the names of Ray's workers begin with ray::.
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

_SAMPLE_EVERY_S = 0.2
_RAY_SERVICES = ("raylet/raylet", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


@dataclass
class _Samples:
    """The samples of one process. cpu: pairs of time.monotonic and CPU seconds so far."""

    role: str
    peak_rss_bytes: int = 0
    cpu: list[tuple[float, float]] = field(default_factory=list)

    def cpu_s(self, began_s: float, ended_s: float) -> float:
        return _interpolate(self.cpu, ended_s) - _interpolate(self.cpu, began_s)


class ProcessTreeMonitor:
    """A monitor of a process and its descendants, active inside the `with`.

    Each process has a role: driver (the process itself), worker (Ray's) or ray (all other descendants).
    """

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._seen: dict[psutil.Process, _Samples] = {}
        self._machine: list[tuple[float, float]] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="process-stats", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def peak_rss_bytes(self) -> Mapping[str, int]:
        """Return the peak memory of the driver, of the largest worker, and of `all`: the sum of all peaks."""
        peaks = {
            role: max((p.peak_rss_bytes for p in self._seen.values() if p.role == role), default=0)
            for role in ("driver", "worker")
        }
        return {**peaks, "all": sum(process.peak_rss_bytes for process in self._seen.values())}

    def cpu_seconds(self, began_s: float, ended_s: float) -> Mapping[str, float]:
        """Return the CPU seconds by role between two times of time.monotonic.

        The error is about 0.2 s per process.
        """
        by_role: dict[str, float] = {}
        for process in self._seen.values():
            by_role[process.role] = by_role.get(process.role, 0.0) + process.cpu_s(began_s, ended_s)
        return by_role

    def others_share(self, began_s: float, ended_s: float) -> float:
        """Return the share of the machine's CPU time, 0..1, that processes outside the tree used between two times."""
        tree_s = sum(self.cpu_seconds(began_s, ended_s).values())
        machine_s = _interpolate(self._machine, ended_s) - _interpolate(self._machine, began_s)
        available_s = (ended_s - began_s) * (os.cpu_count() or 1)
        return min(1.0, max(0.0, (machine_s - tree_s) / available_s)) if available_s > 0 else 0.0

    def _sample(self) -> None:
        while not self._done.wait(_SAMPLE_EVERY_S):
            self._machine.append((time.monotonic(), _machine_cpu_s()))
            with suppress(psutil.NoSuchProcess):
                for process in (self._root, *self._root.children(recursive=True)):
                    # A process may end at any moment.
                    with suppress(psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                        self._sample_process(process)

    def _sample_process(self, process: psutil.Process) -> None:
        if process not in self._seen:
            self._seen[process] = _Samples(self._role(process), cpu=[(time.monotonic(), 0.0)])
        samples, times = self._seen[process], process.cpu_times()
        samples.cpu.append((time.monotonic(), times.user + times.system))
        samples.peak_rss_bytes = max(samples.peak_rss_bytes, memory.peak_bytes(process.pid))

    def _role(self, process: psutil.Process) -> str:
        if process == self._root:
            return "driver"
        command = _command(process)
        is_worker = command.startswith("ray::") or "default_worker.py" in command
        # The raylet's command line contains the command line of its workers.
        return "worker" if is_worker and not any(name in command for name in _RAY_SERVICES) else "ray"


def _command(process: psutil.Process) -> str:
    """Return the command line; empty for a process that has ended and that its parent has not yet reaped."""
    try:
        return " ".join(process.cmdline())
    except psutil.ZombieProcess:
        return ""


def _machine_cpu_s() -> float:
    """Return the CPU seconds of all processors since boot: user, nice, system, irq, softirq, steal."""
    times = psutil.cpu_times()
    return float(sum(times[:8]) - times.idle - times.iowait)


def _interpolate(samples: list[tuple[float, float]], moment_s: float) -> float:
    """Return the value at a time, interpolated between samples; outside the samples the nearest value."""
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
