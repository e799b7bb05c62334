"""Who goes where: pools of any kind, nodes that come and go, and what is refused."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from segray.config import PoolSettings
from segray.errors import ConfigError
from segray.execution.placement import Node, Slot, check, slots_to_fill

SMALL, LARGE = Node("small", {"CPU": 4.0}), Node("large", {"CPU": 16.0})
INTEL = Node("intel", {"CPU": 8.0, "intel_gpu": 1.0})
CPUS, GPUS = PoolSettings(), PoolSettings(device="GPU.0", num_cpus=2, resources={"intel_gpu": 1})


def test_one_worker_on_every_node_with_all_its_cores_as_nodes_come() -> None:
    first = slots_to_fill([CPUS], [SMALL], [], inf)
    assert first == [Slot(0, "small", 4.0)]
    assert slots_to_fill([CPUS], [SMALL, LARGE], first, inf) == [Slot(0, "large", 16.0)]
    assert slots_to_fill([CPUS], [SMALL, Node("head", {"CPU": 0.0}), Node("store", {})], first, inf) == []


def test_a_counted_pool_asks_for_all_its_workers_at_once_wherever_room_comes() -> None:
    pool = PoolSettings(count=3, num_cpus=8)
    assert slots_to_fill([pool], [SMALL], [], inf) == [Slot(0, None, 8.0)] * 3
    assert slots_to_fill([pool], [SMALL], [Slot(0, "large", 8.0)], inf) == [Slot(0, None, 8.0)] * 2
    assert slots_to_fill([PoolSettings(count=2)], [LARGE], [], inf) == [Slot(0, None, 8.0)] * 2


@pytest.mark.parametrize(("most", "slots"), [(0, 0), (1, 0), (2, 1), (9, 2)])
def test_nobody_comes_beyond_what_has_something_to_do(most: int, slots: int) -> None:
    assert len(slots_to_fill([PoolSettings(count=3, num_cpus=8)], [LARGE], [Slot(0, "large", 8.0)], most)) == slots


def test_a_gpu_worker_gets_its_cores_before_the_cpu_worker_beside_it_takes_the_rest() -> None:
    slots = slots_to_fill([CPUS, GPUS], [INTEL, SMALL], [], inf)
    assert slots == [Slot(1, "intel", 2.0), Slot(0, "intel", 6.0), Slot(0, "small", 4.0)]
    assert slots_to_fill([CPUS, GPUS], [INTEL, SMALL], slots, inf) == []
    whole = GPUS.model_copy(update={"num_cpus": None})
    assert slots_to_fill([CPUS, whole], [INTEL], [], inf) == [Slot(1, "intel", 8.0)]


def test_a_node_that_is_being_drained_gets_nobody() -> None:
    drained = Node("large", LARGE.resources, draining=True)
    assert slots_to_fill([CPUS], [SMALL, drained], [], inf) == [Slot(0, "small", 4.0)]


@pytest.mark.parametrize(
    ("pool", "nodes", "autoscaling", "words"),
    [
        ({"num_cpus": 32}, [SMALL, LARGE], False, "no node of the cluster can hold a worker"),
        ({"resources": {"intel_gpu": 1}, "device": "GPU"}, [LARGE], False, "cluster.autoscaling: true"),
        ({"device": "GPU"}, [LARGE, INTEL], False, "OpenVINO's GPU means an Intel GPU"),
        ({"device": "GPU.1"}, [LARGE], True, "OpenVINO's GPU means an Intel GPU"),
        ({"count": 3}, [LARGE], True, "num_cpus: None"),
        ({"num_cpus": 3}, [LARGE], True, "count: None"),
        ({"device": "GPU", "resources": {"GPU": 1}}, [Node("nvidia", {"CPU": 8.0, "GPU": 1.0})], False, "of any maker"),
    ],
)
def test_what_can_never_start_is_refused_and_no_card_of_another_maker_is_given_to_openvino(
    pool: dict[str, Any], nodes: list[Node], autoscaling: bool, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check([PoolSettings(**pool)], nodes, autoscaling=autoscaling)
    assert words in str(caught.value)


def test_pools_of_which_one_is_counted_must_say_what_each_worker_takes() -> None:
    for pools in ([PoolSettings(count=1), PoolSettings(count=1)], [GPUS.model_copy(update={"count": 1}), CPUS]):
        with pytest.raises(ConfigError, match="set num_cpus for each"):
            check(pools, [LARGE, INTEL], autoscaling=False)
    check([PoolSettings(count=1, num_cpus=2), PoolSettings(count=1, num_cpus=3)], [LARGE], autoscaling=False)


def test_what_fits_or_may_come_is_not_refused() -> None:
    check([CPUS, GPUS], [SMALL, INTEL], autoscaling=False)
    check(
        [PoolSettings(count=9, num_cpus=64), GPUS.model_copy(update={"count": 2})], [Node("head", {})], autoscaling=True
    )
    check([PoolSettings(device="GPU")], [LARGE], autoscaling=False)  # this very machine: its devices are looked at
