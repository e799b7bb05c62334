"""`ray job submit` against a real head, as the README says, with and without a token."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import heads
import pytest
from clusters import is_actor, marked
from heads import RAY

import segray
from segray.synthetic import dataset

pytestmark = pytest.mark.integration

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=[pytest.param("disabled", marks=pytest.mark.chaos), "token"])
def head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which `ray job submit` reaches a fresh head."""
    with heads.head(tmp_path_factory.mktemp("home"), auth_mode=request.param) as it:
        yield it.env


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
    label = "jobs/label.py", "configs/quickstart.yaml"
    with ThreadPoolExecutor() as pool:
        jobs = [pool.submit(submit, head, *label, *more) for more in (overrides, ["--set", "unit_image=3"])]
        done, refused = (job.result() for job in jobs)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert segray.images(str(tmp_path / "labels")).count_rows() == 12
    assert refused.returncode == 1
    assert "did you mean unit_images" in refused.stdout
    listed = subprocess.run([RAY, "job", "list"], env=head, capture_output=True, text=True).stdout
    assert "driver_exit_code=2" in listed


@pytest.mark.chaos
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
    while not list(root.glob("_segray/runs/*/staged/*.arrow")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    # Ray's command needs seconds to begin: that long nothing goes on.
    for pid in marked({"SEGRAY_TEST_MARK": head["SEGRAY_TEST_MARK"]}):
        if is_actor(pid):
            os.kill(pid, signal.SIGSTOP)
    subprocess.run([RAY, "job", "stop", name], env=head, check=True, capture_output=True, timeout=120)
    listed = subprocess.run([RAY, "job", "status", name], env=head, capture_output=True, text=True).stdout
    assert "STOPPED" in listed.upper()
    completed = submit(head, "jobs/label.py", "configs/quickstart.yaml", *overrides)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert "resuming run" in completed.stdout
    assert segray.images(str(root)).count_rows() == 48
