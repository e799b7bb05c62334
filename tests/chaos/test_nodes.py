"""A submitted job on three nodes labels from an object store while one node comes and another goes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from clusters import Driver, actors_of, nodes
from command import segray as command
from command import write_config
from ports import free_port
from swift_server import Swift

import segray
from segray.synthetic import dataset

pytestmark = pytest.mark.chaos

RAY = Path(sys.executable).with_name("ray")
IMAGES = 192


def wait(condition: Callable[[], object], driver: Driver, within_s: float = 180) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert driver.running, driver.text
        assert time.monotonic() < deadline, driver.text
        time.sleep(0.1)


def test_a_node_comes_and_one_is_drained_and_goes_while_a_job_labels_from_the_store(
    swift: Swift, tmp_path: Path
) -> None:
    bucket, client, storage = swift.bucket(), swift.client(), {"endpoint_url": swift.endpoint_url}
    dataset.write(tmp_path / "scenes", IMAGES // 8, seed=3)
    for path in (tmp_path / "scenes" / "images").iterdir():
        for i in range(8):
            client.put_object(Bucket=bucket, Key=f"raw/{i}-{path.name}", Body=path.read_bytes())
    root, port = f"s3://{bucket}/labels", free_port(set())
    config = write_config(
        tmp_path / "run.yaml", f"s3://{bucket}/raw", root, storage=storage, unit_images=4, workers=[{"num_cpus": 1}]
    )
    environ = {"AWS_ACCESS_KEY_ID": swift.key, "AWS_SECRET_ACCESS_KEY": swift.secret}
    with ExitStack() as stack:
        cluster = stack.enter_context(nodes(port, **environ))
        address = f"http://127.0.0.1:{port}"
        driver = Driver(config, command="submit", options=("--address", address, "--python", sys.executable))
        stack.callback(driver.kill)
        wait(lambda: len(driver.times("worker ready")) == 2, driver)
        stays, goes = cluster.raylets
        # Both hold what they have, so that the run lasts until everything below has happened.
        (staying,), (leaving,) = actors_of(stays), actors_of(goes)
        for pid in (staying, leaving):
            os.kill(pid, signal.SIGSTOP)
        cluster.add()
        wait(lambda: len(driver.times("worker ready")) == 3, driver)
        drained = subprocess.run(
            [RAY, "drain-node", "--address", cluster.address, "--node-id", cluster.node_id(goes),
             "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a test",
             "--deadline-remaining-seconds", "600"],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert drained.returncode == 0, drained.stdout + drained.stderr
        wait(lambda: driver.first("gets no new task: its node is being drained"), driver)
        os.kill(leaving, signal.SIGCONT)
        wait(lambda: driver.first("is released: its node is being drained"), driver)
        wait(lambda: not actors_of(goes), driver)
        cluster.kill_node(goes)
        os.kill(staying, signal.SIGCONT)
        assert driver.end(300) == 0, driver.text
        assert driver.first("is lost") is None, driver.text
        verified = command("verify", root, "--endpoint-url", swift.endpoint_url)
        assert verified.returncode == 0, verified.stdout + verified.stderr
        assert segray.images(root, **storage).count_rows() == IMAGES
