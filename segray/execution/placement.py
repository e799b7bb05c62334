"""The workers that the pools of a run still want, and their nodes: arithmetic over the resources of nodes.

Knows pools, and nodes as names with amounts. Knows nothing of Ray, of tasks or of a worker's work.

Pools that name resources come first. Otherwise a plain pool could take the cores beside a GPU before the GPU's own
worker has its share. A node that is being drained gets no worker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from segray.config import PoolSettings
from segray.errors import ConfigError


@dataclass(frozen=True)
class Node:
    """A living node.

    resources: total amount of each resource, in use or not.
    draining: whether the node takes nothing new and will go.
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
    pools: Sequence[PoolSettings], nodes: Sequence[Node], taken: Sequence[Slot], most: float
) -> list[Slot]:
    """Return the slots that still want a worker, in order.

    A pool with a `count` wants so many workers. Another pool wants one on every node with room.

    Args:
        pools: the pools of the run.
        nodes: the living nodes.
        taken: slots that have a worker.
        most: largest number of slots in all, those in `taken` included.
    """
    nodes = [node for node in nodes if not node.draining]
    found: list[Slot] = []
    for index in sorted(range(len(pools)), key=lambda index: not pools[index].resources):
        pool = pools[index]
        here = [slot for slot in taken if slot.pool == index]
        if pool.count is not None:
            found += [Slot(index, None, cpus_of(pool, nodes))] * (pool.count - len(here))
            continue
        for node in nodes:
            if any(slot.node == node.id for slot in here):
                continue
            left = _left(node, pools, [*taken, *found])
            cpus = pool.num_cpus or float(int(left.get("CPU", 0.0)))
            if cpus > 0 and _fits(pool, cpus, left):
                found.append(Slot(index, node.id, cpus))
    return found[: max(0, int(min(most - len(taken), len(found))))]


def cpus_of(pool: PoolSettings, nodes: Sequence[Node]) -> float:
    """Return the CPUs of each worker of a pool: its num_cpus, or an equal share of all cores, on one node."""
    if pool.num_cpus is not None:
        return pool.num_cpus
    cores = [node.resources.get("CPU", 0.0) for node in nodes]
    return float(max(1, int(min(sum(cores) / (pool.count or 1), max(cores, default=1.0)))))


def asked(pool: PoolSettings) -> dict[str, float]:
    """Return the least resources that a worker of the pool needs."""
    return {"CPU": pool.num_cpus or 1.0, **pool.resources}


def check(pools: Sequence[PoolSettings], nodes: Sequence[Node], *, autoscaling: bool) -> None:
    """Raise ConfigError for pools that can never start.

    autoscaling: whether further nodes may come.
    """
    if any(pool.count is not None for pool in pools) and len(pools) > 1 and not all(pool.num_cpus for pool in pools):
        raise ConfigError(
            "with a count for one of several pools, what is left for the others cannot be known",
            where="workers",
            found=", ".join(f"{pool.device} count: {pool.count} num_cpus: {pool.num_cpus}" for pool in pools),
            hint="set num_cpus for each of them",
        )
    for pool in pools:
        _check_gpu(pool, alone=len(nodes) == 1 and not autoscaling)
        if autoscaling and (pool.count is None or pool.num_cpus is None):
            raise ConfigError(
                "an autoscaler cannot know how many workers to make room for, or how much",
                where=f"workers: {pool.device}",
                found=f"count: {pool.count}, num_cpus: {pool.num_cpus}",
                hint="set both: the most workers of the pool, and the CPUs of each",
            )
        if not autoscaling and not any(_fits(pool, pool.num_cpus or 1.0, node.resources) for node in nodes):
            have = [{k: v for k, v in node.resources.items() if not k.startswith("node:")} for node in nodes]
            raise ConfigError(
                "no node of the cluster can hold a worker",
                where=f"workers: {pool.device}",
                found=f"a worker asks for {asked(pool)}; the nodes have {have}",
                hint="ask for less in `workers`, or add a node; with an autoscaler, set cluster.autoscaling: true",
            )


def _check_gpu(pool: PoolSettings, *, alone: bool) -> None:
    """Raise ConfigError for a GPU pool unless its resources say which nodes have an Intel GPU.

    alone: whether the only node is this one, whose devices are known.
    """
    if pool.device.split(".")[0] != "GPU" or (pool.resources and "GPU" not in pool.resources):
        return
    if not pool.resources and alone:
        return
    raise ConfigError(
        "OpenVINO's GPU means an Intel GPU, and nothing says which nodes have one",
        where=f"workers: {pool.device}",
        found=f"resources: {dict(pool.resources)}; Ray's own GPU counts cards of any maker",
        hint="start nodes that have an Intel GPU with `ray start --resources '{\"intel_gpu\": 1}'`"
        " and ask for resources: {intel_gpu: 1}",
    )


def _left(node: Node, pools: Sequence[PoolSettings], slots: Sequence[Slot]) -> dict[str, float]:
    left = dict(node.resources)
    for slot in slots:
        if slot.node == node.id:
            for name, amount in {**pools[slot.pool].resources, "CPU": slot.cpus}.items():
                left[name] = left.get(name, 0.0) - amount
    return left


def _fits(pool: PoolSettings, cpus: float, room: Mapping[str, float]) -> bool:
    return all(room.get(name, 0.0) >= amount for name, amount in {**pool.resources, "CPU": cpus}.items())
