"""The workers that the pools of a run still need, and their nodes: arithmetic over the resources of nodes.

Knows pools, and nodes as names with amounts of resources. Knows nothing of Ray, of tasks or of a worker's work.

Pools that name resources come first. Otherwise a CPU pool could take all cores of a node with a GPU, and the GPU's
worker would have none. A node that is being drained gets no worker.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from segray.config import PoolSettings
from segray.errors import ConfigError


@dataclass(frozen=True)
class Node:
    """A living node.

    resources: total amount of each resource, in use or not.
    draining: whether the node is being drained.
    """

    id: str
    resources: Mapping[str, float]
    draining: bool = False


@dataclass(frozen=True)
class Slot:
    """Room for one worker.

    pool: index of the worker's pool.
    node: id of the node; None for any node with room, now or later.
    cpus: CPUs of the worker.
    """

    pool: int
    node: str | None
    cpus: float


def slots_to_fill(
    pools: Sequence[PoolSettings],
    nodes: Sequence[Node],
    taken: Sequence[Slot],
    max_slots: float,
    left_out: Collection[tuple[int, str]] = (),
) -> list[Slot]:
    """Return the slots that still need a worker, in order.

    A pool with a `count` has so many workers. Another pool has one worker on every node with room.

    Args:
        pools: the pools of the run.
        nodes: the living nodes.
        taken: slots that have a worker.
        max_slots: largest number of slots in all, those in `taken` included.
        left_out: pools, by index, and ids of nodes on which a worker of the pool cannot start.
    """
    nodes = [node for node in nodes if not node.draining]
    slots: list[Slot] = []
    for index in sorted(range(len(pools)), key=lambda index: not pools[index].resources):
        pool = pools[index]
        taken_by_pool = [slot for slot in taken if slot.pool == index]
        nodes_of_pool = [node for node in nodes if (index, node.id) not in left_out]
        if pool.count is not None:
            if nodes_of_pool or not nodes:  # Without any node the slots wait for an autoscaler.
                slots += [Slot(index, None, cpus_of(pool, nodes_of_pool))] * (pool.count - len(taken_by_pool))
            continue
        for node in nodes_of_pool:
            if any(slot.node == node.id for slot in taken_by_pool):
                continue
            free = _free_resources(node, pools, [*taken, *slots])
            cpus = pool.num_cpus or float(int(free.get("CPU", 0.0)))
            if cpus > 0 and _fits(pool, cpus, free):
                slots.append(Slot(index, node.id, cpus))
    return slots[: max(0, int(min(max_slots - len(taken), len(slots))))]


def cpus_of(pool: PoolSettings, nodes: Sequence[Node]) -> float:
    """Return the CPUs of each worker of a pool: its num_cpus, or an equal share of all cores, at most one node's."""
    if pool.num_cpus is not None:
        return pool.num_cpus
    cores = [node.resources.get("CPU", 0.0) for node in nodes]
    return float(max(1, int(min(sum(cores) / (pool.count or 1), max(cores, default=1.0)))))


def least_resources(pool: PoolSettings) -> dict[str, float]:
    """Return the least resources that a worker of the pool needs."""
    return {"CPU": pool.num_cpus or 1.0, **pool.resources}


def check(pools: Sequence[PoolSettings], nodes: Sequence[Node], *, autoscaling: bool) -> None:
    """Raise ConfigError for pools that can never start.

    autoscaling: whether further nodes may come.
    """
    if any(pool.count is not None for pool in pools) and len(pools) > 1 and not all(pool.num_cpus for pool in pools):
        raise ConfigError(
            "with a count for one of several pools, every pool needs num_cpus",
            where="workers",
            found=", ".join(f"{pool.device} count: {pool.count} num_cpus: {pool.num_cpus}" for pool in pools),
            hint="set num_cpus for each pool",
        )
    for pool in pools:
        _check_gpu(pool, single_node=len(nodes) == 1 and not autoscaling)
        if autoscaling and (pool.count is None or pool.num_cpus is None):
            raise ConfigError(
                "with an autoscaler, a pool needs count and num_cpus",
                where=f"workers: {pool.device}",
                found=f"count: {pool.count}, num_cpus: {pool.num_cpus}",
                hint="set count to the largest number of workers of the pool, and num_cpus to the CPUs of each",
            )
        if not autoscaling and not any(_fits(pool, pool.num_cpus or 1.0, node.resources) for node in nodes):
            available = [
                {name: amount for name, amount in node.resources.items() if not name.startswith("node:")}
                for node in nodes
            ]
            raise ConfigError(
                "no node of the cluster can hold a worker",
                where=f"workers: {pool.device}",
                found=f"a worker needs {least_resources(pool)}; the nodes have {available}",
                hint="lower num_cpus or resources in `workers`, or add a node; with an autoscaler, set "
                "cluster.autoscaling: true",
            )


def _check_gpu(pool: PoolSettings, *, single_node: bool) -> None:
    """Raise ConfigError for a GPU pool unless its resources say which nodes have an Intel GPU.

    single_node: whether the cluster has one node and gets no other, so that the worker can run nowhere else.
    """
    if pool.device.split(".")[0] != "GPU" or (pool.resources and "GPU" not in pool.resources):
        return
    if not pool.resources and single_node:
        return
    raise ConfigError(
        "OpenVINO's GPU means an Intel GPU, and the pool does not say which nodes have one",
        where=f"workers: {pool.device}",
        found=f"resources: {dict(pool.resources)}; Ray's own GPU counts cards of any maker",
        hint="start nodes that have an Intel GPU with `ray start --resources '{\"intel_gpu\": 1}'`"
        " and set resources: {intel_gpu: 1} for the pool",
    )


def _free_resources(node: Node, pools: Sequence[PoolSettings], slots: Sequence[Slot]) -> dict[str, float]:
    """Return the resources of a node without those of the slots on the node."""
    free = dict(node.resources)
    for slot in slots:
        if slot.node == node.id:
            for name, amount in {**pools[slot.pool].resources, "CPU": slot.cpus}.items():
                free[name] = free.get(name, 0.0) - amount
    return free


def _fits(pool: PoolSettings, cpus: float, free: Mapping[str, float]) -> bool:
    return all(free.get(name, 0.0) >= amount for name, amount in {**pool.resources, "CPU": cpus}.items())
