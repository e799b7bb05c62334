"""A Ray cluster of three nodes on this machine, for tests that break it, and a driver to watch meanwhile.

Knows how to start nodes, to find their processes and to kill them; knows nothing of what is labelled.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
from command import ENV, start
from ports import free_port

_NODE = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20}
# A dead node is known after a second instead of fifteen.
_QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 2,
}


class Nodes:
    """A head without CPUs and nodes with one each. dashboard_port: of the job API; None for none."""

    def __init__(self, dashboard_port: int | None = None, count: int = 2) -> None:
        self._taken: set[int] = set()
        self._dashboard = (
            {} if dashboard_port is None else {"include_dashboard": True, "dashboard_port": dashboard_port}
        )
        self._count = count
        self._start()

    def _start(self) -> None:
        from ray.cluster_utils import Cluster

        head = {**self._node_args(), "num_cpus": 0, "_system_config": _QUICK, **self._dashboard}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(self._count):
            self.add()

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    @property
    def raylets(self) -> list[int]:
        """Of the two nodes with CPUs."""
        return sorted(map(_raylet, self._cluster.worker_nodes))

    @property
    def actors(self) -> list[int]:
        """Of both nodes."""
        return [pid for raylet in self.raylets for pid in actors_of(raylet)]

    def add(self, **env: str) -> None:
        """Add a node whose processes have further variables."""
        self._cluster.add_node(**self._node_args(), env_vars=env)

    def _node_args(self) -> dict[str, Any]:
        if not self._dashboard:
            return dict(_NODE)
        # Every node's agent would listen at the same port, and take no job where another cluster's agent has it.
        return {**_NODE, "dashboard_agent_listen_port": free_port(self._taken)}

    def node_id(self, raylet: int) -> str:
        """What Ray calls the node."""
        return str(self._node(raylet).node_id)

    def kill_node(self, raylet: int) -> None:
        """Its workers die with it. Nobody comes in its place."""
        node = self._node(raylet)
        self._cluster.worker_nodes.discard(node)
        _kill(node)

    def _node(self, raylet: int) -> Any:
        return next(node for node in self._cluster.worker_nodes if _raylet(node) == raylet)

    def kill_head(self) -> None:
        """The whole head node; then another cluster comes at another address, and the old nodes go."""
        old = list(self._cluster.worker_nodes)
        _kill(self._cluster.head_node)
        self._start()
        for node in old:
            _kill(node)


@contextmanager
def nodes(dashboard_port: int | None = None, count: int = 2, **env: str) -> Iterator[Nodes]:
    """A cluster whose processes, and those of all drivers meanwhile, have `env`; none outlives the block."""
    mark = {"SEGRAY_TEST_MARK": secrets.token_hex(8)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENV, **env, **mark}.items():
            patch.setenv(name, value)
        try:
            yield Nodes(dashboard_port, count)
        finally:
            for pid in set(marked(mark)) - {os.getpid()}:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _raylet(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def _kill(node: Any) -> None:
    node.kill_all_processes(check_alive=False, allow_graceful=False)


def marked(mark: dict[str, str]) -> Iterator[int]:
    """Running processes that have the mark in their environment."""
    (value,) = mark.values()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if value.encode() in path.read_bytes():
                yield int(path.parent.name)


def actors_of(raylet: int) -> list[int]:
    """The workers of a node: processes of the actor class whose parent is its raylet."""
    return [pid for pid in children_of(raylet) if is_actor(pid)]


def is_actor(pid: int) -> bool:
    return command_of(pid).startswith("ray::_Actor")


def at_work(worker: int) -> bool:
    """Return whether a worker has an image in flight, by its in-flight log."""
    for handle in Path(f"/proc/{worker}/fd").glob("*"):
        with suppress(OSError):
            target = handle.readlink()
            if target.parent == Path(tempfile.gettempdir()) and target.name.startswith("segray-"):
                return any(target.read_bytes())
    return False


def children_of(parent: int) -> list[int]:
    """The processes whose parent it is."""
    with suppress(psutil.NoSuchProcess):
        return sorted(child.pid for child in psutil.Process(parent).children())
    return []


def command_of(pid: int) -> str:
    """Its command line, with zero bytes between the words; empty when it has ended."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


@dataclass
class Driver:
    """`segray label`, or another command with a configuration, in a process of its own, with the time of each line."""

    config: Path
    inside: Sequence[str] = ()
    command: str = "label"
    options: Sequence[str] = ()
    process: subprocess.Popen[str] = field(init=False)
    lines: list[tuple[float, str]] = field(default_factory=list)
    began_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.process = start(self.command, "--config", self.config, *self.options, inside=self.inside)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line))

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    @property
    def text(self) -> str:
        return "".join(line for _, line in self.lines)

    def end(self, timeout_s: float) -> int:
        """Wait for its exit code."""
        code = self.process.wait(timeout_s)
        self._reader.join(10)
        return code

    def kill(self) -> None:
        """With all that it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def times(self, words: str) -> list[float]:
        """When lines with these words came."""
        return [at for at, line in list(self.lines) if words in line]

    def first(self, words: str, after_s: float = 0.0) -> float | None:
        """When a line with these words first came after a moment."""
        return next((at for at in self.times(words) if at > after_s), None)
