"""kill -9 against a running job on a real cluster: workers, nodes and the driver, at random moments."""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from command import ENV, start, write_config
from label_sets import contents

import segray
from segray.scenes import dataset

pytestmark = pytest.mark.full

SCENES = 100
NODE = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20}
# A dead node is known after a second instead of fifteen.
QUICK = {
    "health_check_initial_delay_ms": 0,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 500,
    "health_check_failure_threshold": 2,
}


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head without CPUs and two nodes with one each."""
    from ray.cluster_utils import Cluster

    for name, value in ENV.items():
        monkeypatch.setenv(name, value)
    head = {**NODE, "num_cpus": 0, "_system_config": QUICK}
    made = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(2):
            made.add_node(**NODE)
        yield made
    finally:
        made.shutdown()


@dataclass
class Driver:
    """`segray label CONFIG` in a process of its own, with the time of each line that it prints."""

    config: Path
    process: subprocess.Popen[str] = field(init=False)
    lines: list[tuple[float, str]] = field(default_factory=list)
    began_s: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.process = start("label", self.config)
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
        code = self.process.wait(timeout_s)
        self._reader.join(10)
        return code

    def first(self, words: str, after_s: float) -> float | None:
        """When a line with these words first came after a moment."""
        return next((at for at, line in list(self.lines) if at > after_s and words in line), None)


@dataclass
class Killer:
    """Kills at random, and remembers when and what."""

    cluster: Any
    rng: random.Random
    driver: Driver | None = None
    kills: list[tuple[str, float]] = field(default_factory=list)
    detected_s: list[float] = field(default_factory=list)
    replaced_s: list[float] = field(default_factory=list)

    def strike(self) -> None:
        what = self.rng.choices(("worker", "node", "driver"), (6, 2, 2))[0]
        if {"worker": self._worker, "node": self._node, "driver": self._driver}[what]():
            self.kills.append((what, time.monotonic()))

    def _worker(self) -> bool:
        pids = [pid for node in self.cluster.worker_nodes for pid in actors_of(raylet_of(node))]
        if not pids:
            return False
        os.kill(self.rng.choice(pids), signal.SIGKILL)
        return True

    def _node(self) -> bool:
        """A raylet is killed, with all that it runs; another node comes."""
        node = self.rng.choice(sorted(self.cluster.worker_nodes, key=raylet_of))
        os.kill(raylet_of(node), signal.SIGKILL)
        self.cluster.worker_nodes.discard(node)
        node.kill_all_processes(check_alive=False, allow_graceful=False)
        self.cluster.add_node(**NODE)
        return True

    def _driver(self) -> bool:
        assert self.driver is not None
        os.killpg(self.driver.process.pid, signal.SIGKILL)
        return True

    def measure(self) -> None:
        """How soon the driver saw each worker's death, and how soon another worked."""
        assert self.driver is not None
        for what, at in self.kills:
            lost = self.driver.first("is lost", at) if what == "worker" and at > self.driver.began_s else None
            if lost is not None:
                self.detected_s.append(lost - at)
                ready = self.driver.first("worker ready", lost)
                self.replaced_s += [] if ready is None else [ready - at]


def raylet_of(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


def actors_of(raylet: int) -> list[int]:
    """The workers of a node: processes of the actor class whose parent is its raylet."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            name = (stat.parent / "cmdline").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == raylet and name.startswith("ray::_Actor"):
            found.append(int(stat.parent.name))
    return found


def run_with_kills(config: Path, killer: Killer, most: int) -> None:
    """The same command again and again until it ends by itself; at most so many kills in all."""
    for _ in range(1000):
        killer.driver, seen = Driver(config), time.monotonic()
        while killer.driver.running and len(killer.kills) < most:
            ready = killer.driver.first("worker ready", seen)
            if ready is None and time.monotonic() - seen < killer.rng.uniform(3, 30):
                time.sleep(0.05)
                continue
            time.sleep(killer.rng.uniform(0, 1.5))
            seen = time.monotonic()
            if killer.driver.running:
                killer.strike()
        code = killer.driver.end(300)
        killer.measure()
        assert code in (0, -signal.SIGKILL), killer.driver.text
        if code == 0:
            return
    raise AssertionError("the run never came to its end")


def test_whatever_is_killed_the_same_command_ends_with_the_undisturbed_tables(cluster: Any, tmp_path: Path) -> None:
    """12 kills by default, in about two minutes; SEGRAY_KILLS=200 for the long run, SEGRAY_SEED to repeat one.

    A kill from outside cannot be told from one that an image caused, so images get more attempts than by default.
    """
    most, seed = int(os.environ.get("SEGRAY_KILLS", "12")), int(os.environ.get("SEGRAY_SEED", time.time_ns() % 10**6))
    print(f"seed {seed}")
    dataset.write(tmp_path / "scenes", SCENES, seed=3)
    more = {
        "unit_images": 4,
        "max_attempts": 8,
        "cluster": {"address": cluster.address},
        "publish": {"batch_images": 24},
        "workers": [{"num_cpus": 1}],
    }
    killer, source = Killer(cluster, random.Random(seed)), tmp_path / "scenes" / "images"
    quiet = Driver(write_config(tmp_path / "quiet.yaml", source, tmp_path / "quiet", **more))
    assert quiet.end(300) == 0, quiet.text
    expected, rounds, again = contents(tmp_path / "quiet"), 0, 0
    while len(killer.kills) < most:
        root = tmp_path / f"round-{rounds}"
        run_with_kills(write_config(tmp_path / "run.yaml", source, root, **more), killer, most)
        keys = segray.images(str(root)).to_table().column("image_key").to_pylist()
        assert len(keys) == len(set(keys)) == SCENES
        assert contents(root) == expected, f"seed {seed}"
        again += sum(segray.images(str(root)).to_table().column("attempts").to_pylist()) - SCENES
        rounds += 1
    kinds = [what for what, _ in killer.kills]
    print(f"{rounds} rounds, kills: { ({kind: kinds.count(kind) for kind in sorted(set(kinds))}) }")
    for name, seconds in (("noticed", killer.detected_s), ("replaced", killer.replaced_s)):
        if seconds:
            print(f"{name} after {statistics.median(seconds):.1f} s (median), {max(seconds):.1f} s (longest)")
    print(f"{again / rounds / SCENES:.1%} of the images were given out again after a death of a worker")
