"""A check of the worker pools before the source is listed, which may take an hour.

Knows which resources this machine, or the cluster to join, has. placement.py decides what fits. A cluster that does not
answer is left to the start of the workers, since a run without work needs no cluster.
"""

from __future__ import annotations

import os

from segray import _compat
from segray._system import host_process
from segray.config import Config, PoolSettings
from segray.errors import InfrastructureError
from segray.execution import placement
from segray.execution.placement import Node
from segray.execution.ray_address import address_to_join
from segray.execution.ray_token import read_token
from segray.models.engine import available_cpus

_ANSWER_S = 5.0
# Resources that Ray finds on a machine by itself. Source: ray.init, "Automatic resource detection".
_DETECTED = ("GPU", "TPU", "HPU", "NPU", "RBLN", "neuron_cores", "memory", "object_store_memory")
_DETECTED_PREFIXES = ("accelerator_type:", "node:")


def check_pools(config: Config) -> None:
    """Raise ConfigError for worker pools that can never start, as far as the nodes are known.

    Also raises ConfigError for an address that Ray cannot join.
    """
    try:
        address = address_to_join(config.cluster.address)
    except InfrastructureError:
        return
    nodes = [_this_machine(config.workers)] if address is None else _nodes_of(address)
    if nodes:
        placement.check(config.workers, nodes, autoscaling=config.cluster.autoscaling)


def _this_machine(pools: tuple[PoolSettings, ...]) -> Node:
    """Return this machine as the node of a private cluster. It has all that Ray may find by itself."""
    names = {name for pool in pools for name in pool.resources}
    detected = {name: float("inf") for name in names if name in _DETECTED or name.startswith(_DETECTED_PREFIXES)}
    return Node("this machine", {**detected, "CPU": float(available_cpus())})


def _nodes_of(address: str) -> list[Node]:
    """Return the nodes of a cluster; none if the cluster does not answer, or not without TLS."""
    if os.environ.get("RAY_USE_TLS", "0") in ("1", "true"):
        return []
    token = read_token(os.environ) if os.environ.get("RAY_AUTH_MODE") == "token" else ""
    with host_process.import_changes_undone():
        resources = _compat.ray_node_resources(address, token, _ANSWER_S)
    return [Node(str(number), node) for number, node in enumerate(resources or [])]
