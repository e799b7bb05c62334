"""A worker that is cut off and lives: what it stages late changes nothing, whoever cannot reach whom.

SEGRAY_NETNS=1 pytest -m netns    hosts in network namespaces, with links that are cut; as root, with iproute2
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from clusters import Driver, Nodes, actors_of, at_work, nodes
from command import ENV, write_config
from command import segray as command
from label_sets import contents

from segray.label_set.run_records import staged_task
from segray.synthetic import dataset

pytestmark = pytest.mark.chaos

IMAGES = 144
RAY = Path(sys.executable).with_name("ray")
# A silent node is known after nine seconds instead of a minute.
QUICK = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    dataset.write(folder, IMAGES, seed=3)
    return folder / "images"


def configure(path: Path, scenes: Path, root: Path, address: str | None) -> Path:
    return write_config(
        path, scenes, root,
        unit_images=8, publish={"batch_images": 32}, workers=[{"num_cpus": 1}],
        cluster={"address": address, "head_timeout_s": 5},
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tables that every run must end with."""
    folder = tmp_path_factory.mktemp("undisturbed")
    done = command("label", "--config", configure(folder / "run.yaml", scenes, folder / "labels", None))
    assert done.returncode == 0, done.stderr
    return contents(folder / "labels")


def wait(condition: Callable[[], object], driver: Driver | None = None, within_s: float = 120) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert driver is None or driver.running, driver.text
        assert time.monotonic() < deadline, "waited in vain" if driver is None else driver.text
        time.sleep(0.05)


def staged(root: Path) -> list[str]:
    return [path.name for path in root.glob("_segray/runs/*/staged/*.arrow")]


def most_often(root: Path) -> int:
    """How often one and the same image was staged."""
    tasks = [task for name in staged(root) if (task := staged_task(name)) is not None]
    return max(Counter((task.unit, image) for task in tasks for image in range(task.start, task.stop)).values())


def check(config: Path, root: Path, undisturbed: Any) -> None:
    """The tables are right, and the same command has nothing to do."""
    assert contents(root) == undisturbed
    for arguments, words in ((("verify", root), "no violations"), (("label", "--config", config), "nothing to do")):
        done = command(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        assert words in done.stdout + done.stderr


# ---- processes that stand still -------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[Nodes]:
    with nodes() as found:
        yield found


@pytest.mark.parametrize("meanwhile", [True, False], ids=["meanwhile", "when the run is over"])
def test_a_worker_that_was_given_up_and_goes_on_changes_nothing(
    cluster: Nodes, scenes: Path, undisturbed: Any, tmp_path: Path, meanwhile: bool
) -> None:
    """It stands still, and its raylet too, until its node counts as dead or until the run is over."""
    root = tmp_path / "labels"
    config = configure(tmp_path / "run.yaml", scenes, root, cluster.address)
    driver = Driver(config)
    busy: list[int] = []
    wait(lambda: busy.extend(pid for pid in cluster.actors if at_work(pid)) or busy, driver)
    worker = busy[0]
    (raylet,) = (each for each in cluster.raylets if worker in actors_of(each))
    for pid in (worker, raylet):
        os.kill(pid, signal.SIGSTOP)
    try:
        wait(lambda: driver.first("its node is gone"), driver)
        if meanwhile:
            os.kill(worker, signal.SIGCONT)
        assert driver.end(300) == 0, driver.text
        if not meanwhile:
            os.kill(worker, signal.SIGCONT)
        wait(lambda: most_often(root) == 2)
        check(config, root, undisturbed)
    finally:
        cluster.kill_node(raylet)
        cluster.add()


# ---- hosts that cannot reach each other -----------------------------------------------------------


class Hosts:
    """Three hosts on one switch, each in a network namespace: the first is Ray's head, the others have a CPU each."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._name, self.address = folder, f"segray-{secrets.token_hex(3)}", "10.77.0.1:6379"

    def start(self) -> None:
        _ip("netns", "add", self._name)
        _ip("-n", self._name, "link", "add", "switch", "type", "bridge")
        _ip("-n", self._name, "link", "set", "switch", "up")
        for number in (1, 2, 3):
            self._plug(number)
        self._ray(1, "--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false")
        for number in (2, 3):
            self._ray(number, f"--address={self.address}", "--num-cpus=1")

    def inside(self, number: int) -> list[str]:
        """The beginning of a command that runs on a host."""
        return ["ip", "netns", "exec", f"{self._name}-{number}"]

    def link(self, number: int, state: str) -> None:
        """Cut a host off, or plug it in again. state: down or up."""
        _ip("-n", self._name, "link", "set", f"port{number}", state)

    def end(self) -> None:
        for name in (*(f"{self._name}-{number}" for number in (1, 2, 3)), self._name):
            for pid in _ip("netns", "pids", name).split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            _ip("netns", "delete", name)

    def _plug(self, number: int) -> None:
        host, port = f"{self._name}-{number}", f"port{number}"
        _ip("netns", "add", host)
        _ip("-n", self._name, "link", "add", port, "type", "veth", "peer", "name", "e0", "netns", host)
        _ip("-n", self._name, "link", "set", port, "master", "switch", "up")
        _ip("-n", host, "address", "add", f"10.77.0.{number}/24", "dev", "e0")
        for device in ("lo", "e0"):
            _ip("-n", host, "link", "set", device, "up")
        _ip("-n", host, "route", "add", "default", "via", "10.77.0.254")  # by which Ray finds its own address

    def _ray(self, number: int, *options: str) -> None:
        where = [f"--node-ip-address=10.77.0.{number}", f"--temp-dir={self._folder / str(number)}"]
        done = subprocess.run(
            [*self.inside(number), RAY, "start", *options, *where,
             "--object-store-memory=80000000", "--disable-usage-stats"],
            env={**os.environ, **ENV, **QUICK}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
    return done.stdout


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if os.environ.get("SEGRAY_NETNS") != "1" or os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("needs SEGRAY_NETNS=1, root and iproute2")
    # Ray's sockets lie below, and their paths may have 107 bytes.
    folder = Path("/tmp") / f"segray-{secrets.token_hex(3)}"
    found = Hosts(folder)
    try:
        found.start()
        yield found
    finally:
        found.end()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.netns
def test_a_short_cut_costs_nothing(hosts: Hosts, scenes: Path, undisturbed: Any, tmp_path: Path) -> None:
    root = tmp_path / "labels"
    config = configure(tmp_path / "run.yaml", scenes, root, hosts.address)
    driver = Driver(config, hosts.inside(1))
    wait(lambda: staged(root), driver)
    hosts.link(3, "down")
    time.sleep(3)
    hosts.link(3, "up")
    assert driver.end(120) == 0, driver.text
    assert driver.first("is lost") is None, driver.text
    assert most_often(root) == 1
    check(config, root, undisturbed)


@pytest.mark.netns
def test_a_worker_behind_a_cut_link_changes_nothing_when_it_comes_back(
    hosts: Hosts, scenes: Path, undisturbed: Any, tmp_path: Path
) -> None:
    root = tmp_path / "labels"
    config = configure(tmp_path / "run.yaml", scenes, root, hosts.address)
    driver = Driver(config, hosts.inside(1))
    wait(lambda: len(driver.times("worker ready")) == 2, driver)
    hosts.link(3, "down")
    wait(lambda: driver.first("its node is gone"), driver)
    hosts.link(3, "up")
    assert driver.end(120) == 0, driver.text
    assert most_often(root) == 2, "the worker staged nothing after it was given up"
    check(config, root, undisturbed)


@pytest.mark.netns
def test_a_driver_that_cannot_reach_the_head_ends_with_3_and_the_same_command_resumes(
    hosts: Hosts, scenes: Path, undisturbed: Any, tmp_path: Path
) -> None:
    root = tmp_path / "labels"
    driver = Driver(configure(tmp_path / "run.yaml", scenes, root, hosts.address), hosts.inside(2))
    wait(lambda: staged(root), driver)
    hosts.link(1, "down")
    assert driver.end(45) == 3, driver.text
    assert "the head of the Ray cluster is gone" in driver.text
    assert "Traceback" not in driver.text
    config = configure(tmp_path / "run.yaml", scenes, root, None)
    done = command("label", "--config", config)
    assert done.returncode == 0, done.stderr
    assert "resuming run" in done.stderr
    check(config, root, undisturbed)
