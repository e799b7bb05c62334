"""What a cluster cannot hold is said at once; what it holds in part is used. Deaths: test_poison.py, test_kills.py."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import ENV, write_config
from command import segray as command

import segray
from segray.scenes import dataset

pytestmark = pytest.mark.full

_CALLS = """
import os
from segray import cluster, config, errors

def die():
    os._exit(1)

def refuse():
    raise errors.ConfigError("refused", where="here")

chosen = config.Cluster()
cluster.connect(chosen)
workers = cluster.RayWorkers(None, [], chosen)
for function in die, refuse:
    try:
        workers.remotely(function)
    except errors.SegrayError as error:
        print(type(error).__name__, error)
workers.close()
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    dataset.write(folder, 8, seed=4)
    return folder / "images"


def test_a_worker_that_fits_no_node_is_refused_with_what_is_asked_and_what_there_is(
    tmp_path: Path, images: Path
) -> None:
    pool = {"device": "GPU", "num_cpus": 1, "resources": {"intel_gpu": 1}}
    began = time.monotonic()
    done = command("label", write_config(tmp_path / "run.yaml", images, tmp_path / "labels", workers=[pool]))
    assert time.monotonic() - began < 60
    assert done.returncode == 2, done.stderr
    assert "'intel_gpu': 1" in done.stderr
    assert "'CPU': " in done.stderr


def test_a_pool_larger_than_the_cluster_starts_with_what_fits(tmp_path: Path, images: Path) -> None:
    pool = {"count": 9, "num_cpus": 1}
    config = write_config(tmp_path / "run.yaml", images, tmp_path / "labels", workers=[pool], unit_images=2)
    done = command("label", config)
    assert done.returncode == 0, done.stderr
    assert segray.images(str(tmp_path / "labels")).count_rows() == 8


def test_a_call_that_dies_again_and_again_is_a_fault_of_the_world_and_errors_arrive_as_raised() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CALLS], env={**os.environ, **ENV}, capture_output=True, text=True, timeout=300
    )
    assert "WorldError die came to no end on the Ray cluster" in done.stdout, done.stderr
    assert "ConfigError refused\n  where: here" in done.stdout
