"""`ray job submit` against a real head, as the README says, with and without a token."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import heads
import pytest
from clusters import is_actor, marked
from heads import RAY

import segray
from segray.cli import ray_jobs
from segray.synthetic import dataset

pytestmark = pytest.mark.integration

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=[pytest.param("disabled", marks=pytest.mark.chaos), "token"])
def head(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which `ray job submit` reaches a head."""
    if request.param == "token":
        yield request.getfixturevalue("token_head").env
    else:
        with heads.head(tmp_path_factory.mktemp("home"), auth_mode=request.param) as fresh:
            yield fresh.env


def new_id() -> str:
    return f"segray-{secrets.token_hex(4)}"


def submit(env: dict[str, str], job: str, *entrypoint: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RAY, "job", "submit", "--submission-id", job, "--working-dir", str(REPO), "--", sys.executable, *entrypoint],
        env=env, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


LABEL = ("jobs/label.py", "configs/quickstart.yaml")


def test_a_submitted_job_labels(head: dict[str, str], tmp_path: Path) -> None:
    dataset.write(tmp_path / "scenes", 12, seed=7)
    paths = [f"source.uri={tmp_path / 'scenes' / 'images'}", f"output.root={tmp_path / 'labels'}"]
    overrides = [part for path in paths for part in ("--set", path)]
    done = submit(head, new_id(), *LABEL, *overrides)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    assert segray.images(str(tmp_path / "labels")).count_rows() == 12


WRONG = ("--set", "unit_image=3")


def test_the_entry_point_ends_with_the_exit_code_of_the_command() -> None:
    done = subprocess.run([sys.executable, *LABEL, *WRONG], cwd=REPO, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "did you mean unit_images" in done.stderr


@pytest.mark.thorough
def test_ray_keeps_the_exit_code_of_a_job(head: dict[str, str]) -> None:
    job = new_id()
    refused = submit(head, job, *LABEL, *WRONG)
    assert refused.returncode == 1
    assert "did you mean unit_images" in refused.stdout
    assert ray_jobs.Dashboard(head["RAY_API_SERVER_ADDRESS"], head).job(job)["driver_exit_code"] == 2


@pytest.mark.chaos
def test_a_stopped_job_leaves_what_the_same_command_completes(head: dict[str, str], tmp_path: Path) -> None:
    dataset.write(tmp_path / "scenes", 48, seed=7)
    root, name = tmp_path / "labels", new_id()
    paths = [f"source.uri={tmp_path / 'scenes' / 'images'}", f"output.root={root}", "unit_images=2"]
    overrides = [part for path in paths for part in ("--set", path)]
    subprocess.run(
        [RAY, "job", "submit", "--no-wait", "--submission-id", name, "--working-dir", str(REPO),
         "--", sys.executable, *LABEL, *overrides],
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
    completed = submit(head, new_id(), *LABEL, *overrides)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert "resuming run" in completed.stdout
    assert segray.images(str(root)).count_rows() == 48
