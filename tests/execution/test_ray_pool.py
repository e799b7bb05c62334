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
from ray.exceptions import RayError

import segray
from segray import config
from segray.errors import ConfigError
from segray.execution import ray_pool
from segray.synthetic import dataset

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("shared_ray")]

_CALLS = """
import os
from segray.execution import ray_pool as cluster
from segray import config, errors

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
    path = write_config(tmp_path / "run.yaml", images, tmp_path / "labels", workers=[pool], unit_images=2)
    done = command("label", path)
    assert done.returncode == 0, done.stderr
    assert segray.images(str(tmp_path / "labels")).count_rows() == 8


def test_a_node_without_segray_and_a_cluster_of_other_versions_are_told_in_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = "The actor died\nray.exceptions.RaySystemError: System error: No module named 'segray'\ntraceback"
    with pytest.raises(ConfigError, match=r"(?s)no segray.*node n1.*install the driver's version on every node"):
        ray_pool._check_installed(RayError(missing), "n1")
    ray_pool._check_installed(RayError("out of memory"), "n1")

    def refuse(**_: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.12.1\n")

    monkeypatch.setattr(ray_pool.ray, "init", refuse)
    with pytest.raises(ConfigError, match=r"Ray: 2\.59\.0 Python: 3\.12\.1"):
        ray_pool.connect(config.Cluster(address="head:6379"))


def test_a_call_that_dies_again_and_again_is_a_fault_of_the_world_and_errors_arrive_as_raised() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CALLS], env={**os.environ, **ENV}, capture_output=True, text=True, timeout=300
    )
    assert "WorldError die came to no end on the Ray cluster" in done.stdout, done.stderr
    assert "ConfigError refused\n  where: here" in done.stdout
