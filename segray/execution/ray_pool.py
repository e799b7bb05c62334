"""Workers as Ray actors, one per device, and the loop that waits for them. Ray lives here and in ray_connection.py.

Knows Ray's actors, nodes and exceptions. Knows nothing of images, masks or tables. Ray's own retries are off, because
the scheduler decides how to handle a death. Only names and small reports travel between processes.
"""

from __future__ import annotations

import contextlib
import math
import platform
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy, NotIn

from segray import _compat
from segray._system import signals
from segray._system.threads import run_in_daemon_thread
from segray.config import ClusterSettings, Config, PoolSettings
from segray.errors import ConfigError, InfrastructureError, LastingError, SegrayError, UserError
from segray.execution import placement
from segray.execution.actor import Actor, images_of_dead_worker
from segray.execution.events import (
    PoolEvent,
    ProgressUpdate,
    TaskFailed,
    TaskFinished,
    WorkerDraining,
    WorkerJoined,
    WorkerLost,
)
from segray.execution.model_files import ShippedModel, offer, received
from segray.execution.placement import Node, Slot
from segray.execution.ray_connection import Head, connect, disconnect, first_line
from segray.execution.ray_temp_folder import fullness
from segray.execution.worker_handle import Dead, Draining, Gone, Starting, WorkerHandle
from segray.execution.worker_spec import ModelFilesError, WorkerSpec
from segray.instances import ImageRef
from segray.tasks import InFlight, Progress, Task

_PROGRESS_S = 1.0
_NODES_S = 5.0
_MAX_FAILED_STARTS = 3
# Longest wait for the in-flight log of a dead worker. Ray notices a dead node after 15 s by default, or after a minute
# when a link is down.
_POSTMORTEM_S = 90.0
_LEAVE_S = 2.0


@dataclass(frozen=True)
class _NodeProgress:
    """The progress of a worker, and the state of its node.

    full_folder: Ray's temporary folder on the node and the words of fullness(), if its disk is full; else None.
    """

    progress: Progress
    host: str
    full_folder: tuple[str, str] | None


@dataclass(frozen=True)
class _Refusal:
    """A start that failed by an error of segray, of the model or of the node.

    node: Ray's id of the node. host: name of the node.
    """

    node: str
    host: str
    error: SegrayError


class _Actor(Actor):
    """A worker's process that tells Ray's id of its node, also when it cannot start."""

    def start_on_node(self, spec: WorkerSpec, threads: int, offer: ShippedModel | None) -> Mapping[str, str] | _Refusal:
        """Load the model, and return the facts of its engine and the node, or the error.

        offer: the driver's model, for a node that lacks the model; None to open the model at `model.path`.
        """
        node = ray.get_runtime_context().get_node_id()
        try:
            shipped_model = None if offer is None else received(offer, ray.get)
            return {**self.start(spec, threads, shipped_model), "node": node}
        except SegrayError as exc:
            return _Refusal(node, platform.node(), exc)
        except Exception as exc:
            error = SegrayError("a worker failed by an error in segray", where=platform.node(), found=repr(exc))
            return _Refusal(node, platform.node(), error)

    def progress_on_node(self) -> _NodeProgress:
        """Return the worker's progress and the state of its node. The driver gets them while the node still answers."""
        folder = _compat.ray_session_folder()
        found = fullness(folder)
        return _NodeProgress(self.progress(), platform.node(), None if found is None else (folder, found))

    def stay(self) -> None:
        """Block the main thread until the process ends.

        Without this call Ray wakes the thread a hundred times a second.
        """
        threading.Event().wait()


# Threads by group of calls. Two tasks run at once, so that images of the second are read while the first ends.
# Progress never waits for tasks.
_CONCURRENCY_GROUPS = {"start": 1, "label": 2, "progress": 1}


def start(spec: WorkerSpec, config: Config) -> RayWorkers:
    """Start workers on the configured cluster. Their close() ends all that this call started."""
    connect(config.cluster)
    try:
        signals.check()
    except BaseException:
        disconnect()
        raise
    return RayWorkers(spec, config.workers, config.cluster)


class RayWorkers:
    """The workers of a run on a Ray cluster; see worker_pool.WorkerPool. Made after connect(); close() disconnects.

    spec: specification of each worker.
    pools: the configured pools.
    cluster: settings of the cluster.
    """

    def __init__(self, spec: WorkerSpec, pools: Sequence[PoolSettings], cluster: ClusterSettings) -> None:
        self._spec, self._pools, self._cluster = spec, pools, cluster
        self._head = Head(cluster)
        self._workers: dict[str, WorkerHandle] = {}  # all workers that are not gone, oldest first
        self._log_key = secrets.token_hex(6)
        self._spawned = 0
        self._failed_starts: Counter[tuple[int, str | None]] = Counter()  # in a row, by pool and node
        self._left_out: dict[tuple[int, str], SegrayError] = {}  # by pool and node: why no worker can start there
        self._last_progress: dict[str, _NodeProgress] = {}  # by node
        self._offer: ShippedModel | None = None
        self._sent_to: set[str] = set()  # names of the workers that got the offer
        self._nodes_listed_s = 0.0
        self._closed = False
        self._needed = math.inf
        self._pending: list[PoolEvent] = []
        self._fault: SegrayError | None = None  # ends the run once the events before it are told
        try:
            self._own_node = ray.get_runtime_context().get_node_id()
            placement.check(pools, self._head.ask(_nodes), autoscaling=cluster.autoscaling)
            self._head.ask(self._populate)
        except BaseException:
            self.close()
            raise

    # ---- events ----

    def events(self, timeout_s: float) -> list[PoolEvent]:
        """Return the events since the last call; wait up to timeout_s seconds for one.

        Raises UserError for a fault that no retry repairs, InfrastructureError when Ray fails.
        """
        if self._fault is not None:
            raise self._fault
        now_s = time.monotonic()
        if now_s - self._nodes_listed_s > _NODES_S:
            self._head.ask(self._populate)
        for worker in _alive(self._workers):
            _ask_progress(worker, now_s)
        events, self._pending = self._pending, []
        owners = {call: worker for worker in self._workers.values() for call in worker.awaited}
        if not owners:
            time.sleep(min(timeout_s, 0.2))
            return events
        ready, not_ready = ray.wait(list(owners), timeout=timeout_s)
        if not_ready:
            also_ready, _ = ray.wait(not_ready, num_returns=len(not_ready), timeout=0)
            ready = [*ready, *also_ready]
        try:
            for call in ready:
                events += self._on_return(owners[call], call)
            for worker in list(self._workers.values()):
                if isinstance(worker.state, Dead) and now_s - worker.state.since_s > _POSTMORTEM_S:
                    events.append(self._on_postmortem(worker, worker.state, None, node_lives=False))
            self._check_started(now_s)
        except SegrayError as exc:
            if not events:
                raise
            self._fault = exc
        return events

    def _on_return(self, worker: WorkerHandle, call: Any) -> list[PoolEvent]:
        if call not in worker.awaited:  # Another call has shown that the worker is gone.
            return []
        if isinstance(worker.state, Dead):
            in_flight, node_lives = _postmortem_result(call)
            return [self._on_postmortem(worker, worker.state, in_flight, node_lives=node_lives)]
        try:
            value = ray.get(call)
        except RayTaskError as exc:
            return _on_task_error(worker, call, exc)
        except RayError as exc:
            return self._on_actor_died(worker, exc)
        if isinstance(worker.state, Starting):
            if isinstance(value, _Refusal):
                return self._on_refusal(worker, value)
            worker.join(value["node"])
            del self._failed_starts[worker.slot.pool, worker.node]
            return [WorkerJoined(worker.name, value)]
        if call == worker.progress_call:
            worker.progress_call = None
            if worker.node is not None:
                self._last_progress[worker.node] = value
            return [ProgressUpdate(worker.name, value.progress)]
        del worker.tasks[call]
        return [TaskFinished(worker.name, value)]

    def _on_refusal(self, worker: WorkerHandle, refusal: _Refusal) -> list[PoolEvent]:
        """Send the model to a node that lacks it, and let the worker start again; leave out any other node."""
        path, was_sent = self._spec.model.path, worker.name in self._sent_to
        if isinstance(refusal.error, ModelFilesError) and path is not None and not was_sent:
            self._sent_to.add(worker.name)
            try:
                self._offer = self._offer or offer(path, self._spec.fingerprint, partial(self._head.ask, ray.put))
            except (SegrayError, OSError):  # The driver has lost its file meanwhile.
                return self._on_refusal(worker, refusal)
            worker.become(Starting(_call_start(self._spec, worker.actor, worker.slot, self._offer), time.monotonic()))
            return []
        _end_actors([worker])
        return [self._leave_out(worker, refusal.node, refusal.host, refusal.error)]

    def _leave_out(self, worker: WorkerHandle, node: str, host: str, error: SegrayError) -> WorkerLost:
        """Start no worker of the pool on a node any more, and return the loss of the worker.

        Raises the error when no other node remains for a worker.
        """
        _remove(self._workers, worker)
        self._left_out[worker.slot.pool, node] = error
        self._head.ask(self._populate)
        if not self._workers:
            raise error
        return WorkerLost(worker.name, f"node {host} is left out: {error.short()}; {error.hint}", blame_images=False)

    def _on_actor_died(self, worker: WorkerHandle, exc: RayError) -> list[PoolEvent]:
        """Handle a dead actor. Read its in-flight log on its node.

        If the node does not answer, the node died too and no image is blamed.
        """
        node = worker.node or self._head.ask(_compat.ray_node_of_actor, worker.actor)
        if (missing := _missing_parts(exc, node)) is not None:
            if node is None:
                raise missing from exc
            return [self._leave_out(worker, node, node[:8], missing)]
        with contextlib.suppress(RayError):
            ray.kill(worker.actor)  # An actor that is only out of reach must not come back and hold its CPUs.
        if node is not None and (full := self._full_folder(node)) is not None:
            return [self._leave_out(worker, node, node[:8], full)]
        postmortem = None if node is None else self._head.ask(_read_log_on, node, worker.log)
        dead = Dead(first_line(exc), time.monotonic(), postmortem, node)
        worker.become(dead)
        if postmortem is not None:
            return []
        node_died = isinstance(exc, ActorDiedError) and _compat.is_node_death(exc)
        return [self._on_postmortem(worker, dead, None, node_lives=not node_died)]

    def _full_folder(self, node: str) -> InfrastructureError | None:
        """Return the error of a node whose Ray has no room for its files; None if there is room, as far as is known.

        Ray's processes on such a node die, and a call on the node would wait for new ones.
        """
        last = self._last_progress.get(node)
        if node == self._own_node:
            host, full_folder = platform.node(), self._head.full_folder
        elif last is not None:
            host, full_folder = last.host, last.full_folder
        else:
            return None
        if full_folder is None:
            return None
        folder, found = full_folder
        return InfrastructureError(
            "Ray's temporary folder is full, and its processes die",
            where=f"{host}: {folder}",
            found=found,
            hint="free some space there, or keep the folder on another disk (RAY_TMPDIR, `ray start --temp-dir`)",
        )

    def _on_postmortem(
        self, worker: WorkerHandle, dead: Dead, in_flight: tuple[InFlight, ...] | None, *, node_lives: bool
    ) -> WorkerLost:
        """Remove a dead worker and return its loss. Start another on a living node; else _populate finds a slot."""
        if node_lives and not worker.started:
            place = worker.slot.pool, dead.node
            self._failed_starts[place] += 1
            if self._failed_starts[place] >= _MAX_FAILED_STARTS:
                error = InfrastructureError(
                    f"{_MAX_FAILED_STARTS} workers in a row died while loading the model",
                    where=f"node {dead.node}",
                    found=dead.reason,
                    hint="read the worker's log on that node; too little memory is the usual cause",
                )
                if dead.node is None:
                    raise error
                return self._leave_out(worker, dead.node, dead.node[:8], error)
        _remove(self._workers, worker)
        if node_lives:
            self._respawn(worker)
        reason = dead.reason if node_lives else f"its node is gone ({dead.reason})"
        return WorkerLost(worker.name, reason, blame_images=node_lives and worker.started, in_flight=in_flight)

    def _check_started(self, now_s: float) -> None:
        """Raise InfrastructureError when all workers still start after cluster.start_timeout_s."""
        alive = _alive(self._workers)
        starts_s = [worker.state.since_s for worker in alive if isinstance(worker.state, Starting)]
        if starts_s and len(starts_s) == len(alive) and now_s - max(starts_s) > self._cluster.start_timeout_s:
            least = [placement.least_resources(pool) for pool in self._pools]
            raise InfrastructureError(
                f"no worker started within {self._cluster.start_timeout_s:.0f} s",
                where="the Ray cluster",
                found=f"asked for {least}, available {self._head.ask(_available)}",
                hint="free resources, or lower num_cpus or resources in `workers`; nodes of an autoscaler may need "
                "minutes: raise cluster.start_timeout_s",
            )

    # ---- commands ----

    def assign(self, worker: str, task: Task, refs: Sequence[ImageRef]) -> None:
        handle = self._workers.get(worker)
        if handle is not None and handle.alive:
            call = handle.actor.label.options(concurrency_group="label")
            handle.tasks[call.remote(task, list(refs))] = task

    def replace(self, worker: str) -> None:
        handle = self._workers.get(worker)
        if handle is not None and handle.alive:
            _remove(self._workers, handle)
            ray.kill(handle.actor)
            self._respawn(handle)
            if handle.started and handle.node is not None:
                self._head.ask(_read_log_on, handle.node, handle.log)  # This removes the log; the result is unused.

    def release(self, worker: str) -> None:
        handle = self._workers.get(worker)
        if handle is not None and handle.alive:
            self._stop([handle])

    def set_needed(self, workers: int) -> None:
        """Stop surplus workers that still start, the youngest first, since they may only wait for room.

        workers: number of workers that have something to do; 0 stops all.
        """
        self._needed = workers
        alive = _alive(self._workers)
        if workers == 0:
            self._stop(alive[::-1])
            return
        starting = [worker for worker in reversed(alive) if isinstance(worker.state, Starting)]
        self._stop(starting[: max(0, len(alive) - workers)])

    def call(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        if any(worker.tasks for worker in _alive(self._workers)):
            return run_in_daemon_thread(self._head.run_elsewhere, function, *args)
        # No worker waits for this process any more, and most last merges end before a new process would start.
        return run_in_daemon_thread(function, *args)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        # Without a head every call would wait, and Ray would end this process.
        if self._head.runs:
            self._stop(_alive(self._workers))
        self._workers.clear()
        self._head.leave()

    # ---- actors ----

    def _populate(self) -> None:
        """Start the workers that the pools lack and the run needs. Stop using nodes that are being drained."""
        self._nodes_listed_s = time.monotonic()
        nodes = _nodes()
        self._drain({node.id for node in nodes if node.draining})
        taken = [worker.taken for worker in self._workers.values() if not worker.draining]
        for slot in placement.slots_to_fill(self._pools, nodes, taken, self._needed, self._left_out):
            self._spawn(slot)

    def _drain(self, nodes: Collection[str]) -> None:
        """Let workers on these nodes finish their tasks; stop workers that still start."""
        for worker in _alive(self._workers):
            if worker.draining or worker.node not in nodes:
                continue
            if worker.started:
                worker.become(Draining())
                self._pending.append(WorkerDraining(worker.name))
            else:
                self._stop([worker])

    def _respawn(self, worker: WorkerHandle) -> None:
        """Start another worker in the slot of one that is gone, unless the node is being drained."""
        if not worker.draining:
            self._head.ask(self._spawn, worker.slot)

    def _spawn(self, slot: Slot) -> None:
        """Start a worker in a slot."""
        pool, name = self._pools[slot.pool], str(self._spawned)
        log = f"segray-{self._log_key}-{name}"
        actor_class: Any = ray.remote(concurrency_groups=_CONCURRENCY_GROUPS)(_Actor)  # type: ignore[call-overload]
        configured = actor_class.options(
            num_cpus=slot.cpus,
            resources=dict(pool.resources) or None,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=_strategy(slot, self._left_out),
        )
        actor = configured.remote(pool, log)
        start_call = _call_start(self._spec, actor, slot, None)
        actor.stay.remote()
        self._workers[name] = WorkerHandle(name, actor, slot, log, Starting(start_call, time.monotonic()))
        self._spawned += 1

    def _stop(self, workers: Sequence[WorkerHandle]) -> None:
        """End workers that are alive, and remove their logs from their nodes."""
        for worker in workers:
            _remove(self._workers, worker)
        _end_actors(workers)


def _alive(workers: Mapping[str, WorkerHandle]) -> list[WorkerHandle]:
    return [worker for worker in workers.values() if worker.alive]


def _remove(workers: dict[str, WorkerHandle], worker: WorkerHandle) -> None:
    """Remove a worker that is gone from the workers by name."""
    worker.become(Gone())
    del workers[worker.name]


def _strategy(slot: Slot, left_out: Iterable[tuple[int, str]]) -> Any:
    """Return Ray's strategy for the node of a slot.

    left_out: pools, each with the id of a node that gets no worker of the pool.
    """
    if slot.node is not None:
        return NodeAffinitySchedulingStrategy(slot.node, soft=False)
    nodes = [node for pool, node in left_out if pool == slot.pool]
    if not nodes:
        return "SPREAD"
    return NodeLabelSchedulingStrategy({"ray.io/node-id": NotIn(*nodes)})  # type: ignore[no-untyped-call]


def _call_start(spec: WorkerSpec, actor: Any, slot: Slot, offer: ShippedModel | None) -> Any:
    """Begin to start the worker of an actor; return the call."""
    call = actor.start_on_node.options(concurrency_group="start")
    return call.remote(spec, max(1, int(slot.cpus)), offer)


def _ask_progress(worker: WorkerHandle, now_s: float) -> None:
    """Ask a started worker for its progress, every _PROGRESS_S seconds at most."""
    if worker.started and worker.progress_call is None and now_s - worker.progress_asked_s > _PROGRESS_S:
        worker.progress_call = worker.actor.progress_on_node.options(concurrency_group="progress").remote()
        worker.progress_asked_s = now_s


def _on_task_error(worker: WorkerHandle, call: Any, exc: RayTaskError) -> list[PoolEvent]:
    """Return TaskFailed for a fault of the infrastructure; raise UserError or SegrayError for any other error."""
    cause = exc.cause if isinstance(exc.cause, Exception) else exc
    if isinstance(cause, UserError):
        raise cause from exc
    if call in worker.tasks and isinstance(cause, InfrastructureError):
        return [TaskFailed(worker.name, worker.tasks.pop(call), cause.short(), isinstance(cause, LastingError))]
    raise SegrayError("a worker failed by an error in segray", where=f"worker {worker.name}", found=str(cause)) from exc


def _missing_parts(exc: RayError, node: str | None) -> ConfigError | None:
    """Return the error of an actor whose node lacks segray or a part of it; None for any other death."""
    if not isinstance(exc, ActorDiedError) or not exc.actor_init_failed:
        return None
    missing = [module for module in _compat.missing_modules(exc) if module.partition(".")[0] == "segray"]
    if not missing:
        return None
    return ConfigError(
        "a node of the cluster has no segray, or another one than the driver",
        where=f"node {node}",
        found=f"No module named '{missing[0]}'",
        hint="install the driver's version on every node, for the Python that `ray start` runs with",
    )


def _read_log_on(node: str, log: str) -> Any:
    """Begin to read and remove an in-flight log on its node; return the call."""
    strategy: Any = NodeAffinitySchedulingStrategy(node, soft=False)
    function: Any = ray.remote(num_cpus=0, max_retries=1)(images_of_dead_worker)
    return function.options(scheduling_strategy=strategy).remote(log)


def _postmortem_result(call: Any) -> tuple[tuple[InFlight, ...] | None, bool]:
    """Return the images that a dead worker had in flight, and whether its node lives.

    The images are None when they are unknown.
    """
    try:
        return ray.get(call), True
    except RayTaskError:
        return None, True
    except RayError:
        return None, False


def _end_actors(workers: Iterable[WorkerHandle]) -> None:
    """Let actors that have started remove their logs, then kill all actors."""
    started = [worker.actor for worker in workers if worker.started]
    leaving = [actor.leave.options(concurrency_group="progress").remote() for actor in started]
    if leaving:
        ray.wait(leaving, num_returns=len(leaving), timeout=_LEAVE_S)
    for worker in workers:
        with contextlib.suppress(RayError):
            ray.kill(worker.actor)


def _nodes() -> list[Node]:
    """Return the living nodes."""
    draining = _compat.ray_draining_nodes()
    return [
        Node(node["NodeID"], node["Resources"], node["NodeID"] in draining)
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


def _available() -> dict[str, float]:
    return dict(ray.available_resources())  # type: ignore[no-untyped-call]
