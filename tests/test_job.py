"""`ray job submit` against a real head, as the README says, with and without a token."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import segray
from segray.scenes import dataset

pytestmark = pytest.mark.full

REPO = Path(__file__).parents[1]
RAY = Path(sys.executable).with_name("ray")


def free_port(taken: set[int]) -> int:
    """A free port outside the range that Ray gives to its workers."""
    for port in range(20_000 + secrets.randbelow(8_000), 32_000):
        with socket.socket() as probe:
            if port not in taken and probe.connect_ex(("127.0.0.1", port)) != 0:
                taken.add(port)
                return port
    raise RuntimeError("no free port between 20000 and 32000")


@pytest.fixture(scope="module", params=["disabled", "token"])
def head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which `ray job submit` reaches a fresh head."""
    home = tmp_path_factory.mktemp("home")
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env |= {"HOME": str(home), "RAY_AUTH_MODE": request.param, "RAY_USAGE_STATS_ENABLED": "0"}
    if request.param == "token":
        env["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    taken: set[int] = set()
    names = ("port", "dashboard-port", "dashboard-agent-listen-port", "metrics-export-port", "ray-client-server-port")
    ports = {name: free_port(taken) for name in names}
    log = (home / "head.log").open("wb")
    process = subprocess.Popen(
        [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--num-cpus=2", "--disable-usage-stats",
         "--object-store-memory=100000000", f"--temp-dir={tmp_path_factory.mktemp('ray')}",
         *(f"--{name}={port}" for name, port in ports.items())],
        env=env, stdout=log, stderr=log, start_new_session=True,
    )  # fmt: skip
    env["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{ports['dashboard-port']}"
    try:
        wait_for_head(env, process, home / "head.log")
        yield env
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for_head(env: dict[str, str], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while subprocess.run([RAY, "job", "list"], env=env, capture_output=True).returncode != 0:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(1)


def submit(env: dict[str, str], *entrypoint: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RAY, "job", "submit", "--submission-id", f"segray-{secrets.token_hex(4)}", "--working-dir", str(REPO),
         "--", sys.executable, *entrypoint],
        env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_a_submitted_job_labels_and_its_exit_code_tells(head: dict[str, str], tmp_path: Path) -> None:
    dataset.write(tmp_path / "scenes", 12, seed=7)
    paths = [f"source.uri={tmp_path / 'scenes' / 'images'}", f"output.root={tmp_path / 'labels'}"]
    overrides = [part for path in paths for part in ("--set", path)]
    done = submit(head, "jobs/label.py", "configs/quickstart.yaml", *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert segray.images(str(tmp_path / "labels")).count_rows() == 12
    refused = submit(head, "jobs/label.py", "configs/quickstart.yaml", "--set", "unit_image=3")
    assert refused.returncode == 1
    assert "did you mean unit_images" in refused.stdout
    listed = subprocess.run([RAY, "job", "list"], env=head, capture_output=True, text=True).stdout
    assert "driver_exit_code=2" in listed


def test_a_stopped_job_leaves_what_the_same_command_completes(head: dict[str, str], tmp_path: Path) -> None:
    dataset.write(tmp_path / "scenes", 48, seed=7)
    root, name = tmp_path / "labels", f"segray-{secrets.token_hex(4)}"
    paths = [f"source.uri={tmp_path / 'scenes' / 'images'}", f"output.root={root}", "unit_images=2"]
    overrides = [part for path in paths for part in ("--set", path)]
    subprocess.run(
        [RAY, "job", "submit", "--no-wait", "--submission-id", name, "--working-dir", str(REPO),
         "--", sys.executable, "jobs/label.py", "configs/quickstart.yaml", *overrides],
        env=head, check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while not list(root.glob("_segray/runs/*/staged/*.parquet")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    subprocess.run([RAY, "job", "stop", name], env=head, check=True, capture_output=True, timeout=120)
    listed = subprocess.run([RAY, "job", "status", name], env=head, capture_output=True, text=True).stdout
    assert "STOPPED" in listed.upper()
    completed = submit(head, "jobs/label.py", "configs/quickstart.yaml", *overrides)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert "resuming run" in completed.stdout
    assert segray.images(str(root)).count_rows() == 48
