"""Worker pools that can never start are refused before the source is listed, on every kind of cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import segray, write_config
from ports import free_port

from segray.cli import main

pytestmark = pytest.mark.integration

NO_NODE = "no node of the cluster can hold a worker"
POOLS = [
    ({"num_cpus": 10_000}, NO_NODE),
    ({"resources": {"camera": 1}}, NO_NODE),
    ({"device": "GPU", "resources": {"GPU": 1}}, "OpenVINO's GPU means an Intel GPU"),
]


def asked(tmp_path: Path, pools: list[Any], **cluster: Any) -> Path:
    """A configuration whose source does not exist, which a listing would tell."""
    source, root = tmp_path / "nowhere", tmp_path / "labels"
    return write_config(tmp_path / "run.yaml", source, root, workers=pools, cluster=cluster)


def refused(tmp_path: Path, pools: list[Any], **cluster: Any) -> str:
    """What the command says."""
    done = segray("label", "--config", asked(tmp_path, pools, **cluster))
    assert done.returncode == 2, done.stderr
    assert not (tmp_path / "labels").exists()
    return done.stderr


@pytest.fixture
def refused_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The same in this process, for commands that join no cluster."""

    def refused_here(pools: list[Any]) -> str:
        assert main.run(["label", str(asked(tmp_path, pools))]) == 2
        assert not (tmp_path / "labels").exists()
        return capsys.readouterr().err

    return refused_here


@pytest.mark.parametrize(("pool", "message"), POOLS)
def test_a_pool_that_this_machine_cannot_hold(
    refused_here: Callable[..., str], pool: dict[str, Any], message: str
) -> None:
    assert message in refused_here([pool])


def test_pools_that_contradict_each_other(refused_here: Callable[..., str]) -> None:
    assert "every pool needs num_cpus" in refused_here([{"count": 1}, {"num_cpus": 1}])


@pytest.mark.usefixtures("shared_ray")
@pytest.mark.parametrize(
    ("pool", "message"), [POOLS[0], *(pytest.param(*pool, marks=pytest.mark.thorough) for pool in POOLS[1:])]
)
def test_a_pool_that_no_node_of_a_cluster_can_hold(tmp_path: Path, pool: dict[str, Any], message: str) -> None:
    assert message in refused(tmp_path, [pool])


@pytest.mark.thorough
@pytest.mark.usefixtures("shared_ray")
def test_an_autoscaler_may_bring_a_larger_node(tmp_path: Path) -> None:
    pool = {"num_cpus": 10_000, "count": 1}
    assert "No such folder or file" in refused(tmp_path, [pool], autoscaling=True)


def test_a_cluster_that_does_not_answer_is_left_to_the_start_of_the_workers(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port(set())}"
    assert "No such folder or file" in refused(tmp_path, [{"num_cpus": 10_000}], address=address)


def test_a_pool_that_fits_is_not_refused(refused_here: Callable[..., str]) -> None:
    assert "No such folder or file" in refused_here([{"num_cpus": 1}, {"num_cpus": 1, "resources": {"GPU": 1}}])
