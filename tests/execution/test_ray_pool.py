"""What a cluster cannot hold is said at once; what it holds in part is used.

Deaths: test_crashing_images.py and test_kills.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import ENV, write_config
from command import segray as command
from ray.exceptions import ActorDiedError, RayError, RayTaskError

import segray
from segray import config
from segray.errors import ConfigError
from segray.execution import ray_connection, ray_pool
from segray.synthetic import dataset

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("shared_ray")]

_CALLS = """
import os
from segray.execution import ray_connection
from segray import config, errors

def die():
    os._exit(1)

def refuse():
    raise errors.ConfigError("refused", where="here")

cluster = config.ClusterSettings()
ray_connection.connect(cluster)
head = ray_connection.Head(cluster)
for function in die, refuse:
    try:
        head.run_elsewhere(function)
    except errors.SegrayError as error:
        print(type(error).__name__, error)
head.leave()
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
    done = command(
        "label", "--config", write_config(tmp_path / "run.yaml", images, tmp_path / "labels", workers=[pool])
    )
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


def failed_in_constructor(text: str) -> ActorDiedError:
    return ActorDiedError(RayTaskError("__init__", text, ImportError(text), proctitle="ray", pid=1, ip="127.0.0.1"))


@pytest.mark.parametrize("module", ["segray", "segray.execution.worker_handle"])
def test_a_node_without_segray_or_with_another_one_is_told_in_words(module: str) -> None:
    text = f"ray.exceptions.RaySystemError: System error: No module named '{module}'\ntraceback"
    told = str(ray_pool._missing_parts(failed_in_constructor(text), "n1"))
    assert re.search(rf"(?s)no segray.*node n1.*'{module}'.*install the driver's version on every", told)
    assert ray_pool._missing_parts(failed_in_constructor("No module named 'segrays'"), "n1") is None
    assert ray_pool._missing_parts(failed_in_constructor("No usable temporary directory"), "n1") is None
    assert ray_pool._missing_parts(ActorDiedError(), "n1") is None
    assert ray_pool._missing_parts(RayError(text), "n1") is None


def test_a_cluster_of_other_versions_is_told_with_all_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.59.0\n    Python: 3.12.1\n")

    monkeypatch.setattr(ray_connection.ray, "init", refuse)
    with pytest.raises(ConfigError, match=r"Ray: 2\.59\.0 Python: 3\.12\.1"):
        ray_connection.connect(config.ClusterSettings(address="head:6379"))


def test_a_call_that_dies_again_and_again_is_a_fault_of_the_world_and_errors_arrive_as_raised() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CALLS], env={**os.environ, **ENV}, capture_output=True, text=True, timeout=300
    )
    assert "InfrastructureError die failed on the Ray cluster" in done.stdout, done.stderr
    assert "ConfigError refused\n  where: here" in done.stdout
