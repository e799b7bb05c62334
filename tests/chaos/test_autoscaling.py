"""Workers that wait for room make an autoscaler bring nodes; when the workers are gone, so are the nodes.

Ray's own autoscaler, with nodes that are processes on this machine.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from clusters import Driver, command_of, marked
from command import ENV, write_config
from command import segray as command
from ports import free_port

import segray
from segray.synthetic import dataset

pytestmark = pytest.mark.chaos

RAY = Path(sys.executable).with_name("ray")
IMAGES = 24
# Of these there may be one each; the head has no CPUs.
KINDS = {"plain": {"CPU": 1}, "fast": {"CPU": 1, "accelerator": 1}}
_HEAD = "ray.head.default"  # the only name for which Ray's provider has ears
_NOTHING = (
    "cluster_synced_files", "setup_commands", "initialization_commands", "head_setup_commands", "worker_setup_commands",
    "head_start_ray_commands", "worker_start_ray_commands", "rsync_exclude", "rsync_filter",
)  # fmt: skip


class Autoscaled:
    """A head that can bring one node of each kind, and does away with it fifteen seconds after its last worker."""

    def __init__(self, folder: Path, mark: dict[str, str]) -> None:
        taken: set[int] = set()
        names = (
            "port",
            "dashboard-port",
            "dashboard-agent-listen-port",
            "metrics-export-port",
            "ray-client-server-port",
        )
        ports = {name: free_port(taken) for name in names}
        self._mark, self.address = mark, f"127.0.0.1:{ports['port']}"
        small = {"object_store_memory": 80 * 2**20}
        types = {
            name: {"resources": kind | small, "node_config": {}, "min_workers": 0, "max_workers": 1}
            for name, kind in KINDS.items()
        }
        config = {
            "cluster_name": "segray",
            "max_workers": 2,
            "upscaling_speed": 20,
            "idle_timeout_minutes": 0.25,
            "provider": {
                "type": "fake_multinode",
                "gcs_address": self.address,
                **dict.fromkeys(("launch_multiple", "use_node_id_as_ip"), True),
                **dict.fromkeys(("disable_node_updaters", "disable_launch_config_check"), True),
            },
            "available_node_types": {
                **types,
                _HEAD: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            },
            "head_node_type": _HEAD,
            # Ray insists on these, and has nothing to do with them here.
            **{name: {} for name in ("auth", "file_mounts")},
            **{name: [] for name in _NOTHING},
        }
        (folder / "cluster.yaml").write_text(yaml.safe_dump(config))
        done = subprocess.run(
            [RAY, "start", "--head", *(f"--{name}={port}" for name, port in ports.items()),
             "--node-ip-address=127.0.0.1", "--num-cpus=0",
             "--include-dashboard=false", "--object-store-memory=80000000", "--disable-usage-stats",
             f"--autoscaling-config={folder / 'cluster.yaml'}", f"--temp-dir={folder / 'ray'}"],
            env={**os.environ, **ENV, **mark, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    @property
    def nodes(self) -> int:
        """Beside the head."""
        return sum(command_of(pid).split("\0")[0].endswith("/raylet") for pid in marked(self._mark)) - 1


@pytest.fixture
def cluster() -> Iterator[Autoscaled]:
    mark = {"SEGRAY_TEST_MARK": secrets.token_hex(8)}
    # Ray's sockets lie below, and their paths may have 107 bytes.
    folder = Path("/tmp") / f"segray-{secrets.token_hex(3)}"
    folder.mkdir()
    try:
        yield Autoscaled(folder, mark)
    finally:
        while left := list(marked(mark)):
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        shutil.rmtree(folder, ignore_errors=True)


def wait(condition: Callable[[], bool], within_s: float = 300) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


def test_workers_bring_the_nodes_that_they_need_and_the_nodes_go_when_nothing_is_left(
    cluster: Autoscaled, tmp_path: Path
) -> None:
    dataset.write(tmp_path / "scenes", IMAGES, seed=3)
    config = write_config(
        tmp_path / "run.yaml", tmp_path / "scenes" / "images", tmp_path / "labels", unit_images=8,
        workers=[{"count": 1, "num_cpus": 1}, {"count": 1, "num_cpus": 1, "resources": {"accelerator": 1}}],
        cluster={"address": cluster.address, "autoscaling": True, "start_timeout_s": 300},
    )  # fmt: skip
    assert cluster.nodes == 0
    driver = Driver(config)
    assert driver.end(600) == 0, driver.text  # The head has no CPUs, so a node must have come.
    assert segray.images(str(tmp_path / "labels")).count_rows() == IMAGES
    verified = command("verify", tmp_path / "labels")
    assert verified.returncode == 0, verified.stdout
    wait(lambda: cluster.nodes == 0)
