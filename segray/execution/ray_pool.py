"""Ray lives here: workers as actors, one per device, and the loop that listens to them.

Knows Ray's actors, nodes and exceptions; knows nothing of images, masks or tables. Ray's own retries are off:
what to do about a death is the scheduler's decision. Only names and small reports cross processes.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segray import _compat
from segray._system import child_processes, host_process, signals
from segray._system.threads import run_in_daemon_thread, run_in_lasting_thread
from segray.config import Cluster, Config, Pool
from segray.errors import ConfigError, SegrayError, UserError, WorldError
from segray.execution import placement
from segray.execution.actor import Actor, inquest
from segray.execution.events import (
    PoolEvent,
    ProgressUpdate,
    TaskFailed,
    TaskFinished,
    WorkerDraining,
    WorkerJoined,
    WorkerLost,
)
from segray.execution.labeller import Recipe
from segray.execution.placement import Node, Slot
from segray.instances import ImageRef
from segray.models.engine import available_cpus
from segray.tasks import InFlight, Task

_PULSE_S = 1.0
_NODES_S = 5.0
_LOCAL_OBJECT_STORE_BYTES = 100 * 2**20
_MOST_FAILED_STARTS = 3
# Of a node that is said to be alive; Ray's own verdict takes 15 s by default, or a minute when a link is down.
_INQUEST_S = 90.0
_FAREWELL_S = 2.0

T = TypeVar("T")


class _Actor(Actor):
    """A worker's process, which also knows what Ray calls its node."""

    def start(self, recipe: Recipe, threads: int) -> Mapping[str, str]:
        return {**super().start(recipe, threads), "node": ray.get_runtime_context().get_node_id()}

    def stay(self) -> None:
        """Hold the main thread until the process ends: without a call Ray wakes it a hundred times a second."""
        threading.Event().wait()


# Two tasks at once, so that the second is read ahead while the first drains; the pulse never waits behind them.
_GROUPS = {"start": 1, "label": 2, "pulse": 1}


# Found in the environment of every process of a private cluster.
_MARK = "SEGRAY_PRIVATE_CLUSTER"
_PRIVATE = "local"


class _Connection:
    """This process's connection to a cluster. Ray has one a process, so runs at the same time share it.

    Whoever comes first makes it, whoever goes last ends it. A connection that the process made before is used and left.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs = 0
        self._undo = contextlib.ExitStack()
        self._cut_off = False
        self._ending: Future[None] | None = None
        self._mark = ""  # of the processes of a private cluster

    def join(self, cluster: Cluster) -> None:
        with self._lock:
            if self._ending is not None:
                self._ending.result()
                self._ending = None
            if self._runs or ray.is_initialized():
                _check_same(cluster.address)
            else:
                with signals.kept(), host_process.kept(), contextlib.ExitStack() as undo:
                    undo.enter_context(signals.kept(signals.FAULTS))
                    undo.enter_context(host_process.at_work("ray", logging.WARNING))
                    self._cut_off = False
                    address = cluster.address or ("auto" if "RAY_ADDRESS" in os.environ else _PRIVATE)
                    self._mark = secrets.token_hex(16) if address == _PRIVATE else ""
                    over = threading.Event()
                    undo.callback(over.set)
                    undo.callback(self._shut_down)
                    if threading.current_thread() is threading.main_thread():
                        _init(address, self._mark)
                    else:
                        run_in_lasting_thread(over, _init, address, self._mark)
                    logging.getLogger("ray").setLevel(logging.WARNING)
                    self._undo = undo.pop_all()
            self._runs += 1

    def leave(self, *, cut_off: bool) -> None:
        with self._lock:
            self._runs -= 1
            self._cut_off |= cut_off
            if not self._runs:
                self._undo.close()

    def head_ended(self) -> bool:
        """Whether the head of a private cluster has ended, as after a signal to all processes of a terminal."""
        return bool(self._mark) and not child_processes.runs_marked(_MARK, self._mark, _compat.RAY_HEAD)

    def _shut_down(self) -> None:
        # Without a head Ray takes up to 20 s to see that nobody answers; and asked to do nothing it ends the process.
        mark, nobody_answers = self._mark, self._cut_off or self.head_ended()
        self._mark = ""
        try:
            if nobody_answers:
                self._ending = run_in_daemon_thread(_shut_down, bool(mark))
            else:
                _shut_down(bool(mark))
        finally:
            if mark:
                child_processes.end_marked(_MARK, mark)


def _shut_down(private: bool) -> None:
    """Disconnect from Ray. private: its processes here are left to the caller, for they are deaf to Ray's SIGTERM."""
    if private:
        _compat.leave_ray_processes()
    with signals.kept():  # Ray takes every handler of SIGTERM away with its own.
        ray.shutdown()


_connection = _Connection()


def start(recipe: Recipe, chosen: Config) -> RayWorkers:
    """Workers on the configured cluster. Their close() ends what was started for them."""
    connect(chosen.cluster)
    try:
        signals.check()
    except BaseException:
        disconnect()
        raise
    return RayWorkers(recipe, chosen.workers, chosen.cluster)


def connect(cluster: Cluster) -> None:
    """Join the cluster, or start a private one on this machine; use the process's own connection if it has one.

    Without an address a process inside a Ray job joins that job's cluster. A private cluster has no
    dashboard and listens on this machine only, so it needs no token.
    Raises WorldError for a cluster that cannot be reached now, ConfigError for one that does not take us.
    """
    try:
        _connection.join(cluster)
    except SystemExit as exc:
        if exc.code != signal.SIGTERM:
            raise
        # Ray's answer to SIGTERM while it starts. The process's own comes first, if it has one.
        signal.raise_signal(signal.SIGTERM)
        raise KeyboardInterrupt("SIGTERM") from exc


def disconnect(*, cut_off: bool = False) -> None:
    """Leave the cluster; end it if it is private. cut_off: its head is gone, and nobody waits for an answer of it."""
    _connection.leave(cut_off=cut_off)


def _check_same(address: str | None) -> None:
    """Raise ConfigError unless the configuration means the cluster that this process is connected to."""
    joined = ray.get_runtime_context().gcs_address
    if address not in (None, "auto") and _numeric(address) != _numeric(joined):
        raise ConfigError(
            "this process is connected to another Ray cluster",
            where=f"cluster.address={address}",
            found=f"connected to {joined}",
            do="leave cluster.address out, call ray.shutdown() before, or label in a process of its own",
        )


def _numeric(address: str) -> str:
    """HOST:PORT with the host's number in place of its name."""
    name, colon, port = address.rpartition(":")
    try:
        return f"{socket.gethostbyname(name)}{colon}{port}"
    except OSError:
        return address


def _init(address: str, mark: str) -> None:
    """Connect this process. mark: of the processes of a private cluster."""
    # In another thread than the main one Ray warns that it cannot set its signal handler, which is as it should be.
    level = logging.WARNING if threading.current_thread() is threading.main_thread() else logging.ERROR
    if address == _PRIVATE:
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        _compat.start_no_spare_ray_workers()  # They take a percent of a core each.
        try:
            with host_process.environment([_MARK]), _deaf_children():
                os.environ[_MARK] = mark
                ray.init(
                    address=_PRIVATE,
                    num_cpus=available_cpus(),
                    include_dashboard=False,
                    object_store_memory=_LOCAL_OBJECT_STORE_BYTES,
                    logging_level=level,
                )
        except Exception as exc:  # Ray raises nothing more special when its processes are not up within 30 s.
            raise WorldError(
                "Ray could not start on this machine",
                where="cluster.address=null",
                found=_first_line(exc),
                do="run the same command when the machine is less busy, or look into Ray's logs in /tmp/ray",
            ) from exc
        return
    try:
        ray.init(address=address, logging_level=level)
    except (ConnectionError, RayError, RuntimeError, ValueError) as exc:
        kind = WorldError if isinstance(exc, ConnectionError) else ConfigError
        raise kind(
            "cannot join the Ray cluster",
            where=f"cluster.address={address}",
            found=" ".join(str(exc).split()) if "Version mismatch" in str(exc) else _first_line(exc),
            do="check the address, that RAY_AUTH_MODE is the cluster's, RAY_AUTH_TOKEN in token mode, and that Ray and "
            "Python are those of the cluster",
        ) from exc


@contextlib.contextmanager
def _deaf_children() -> Iterator[None]:
    """Let processes that are started in the block never get the signals that a terminal or a supervisor sends to all.

    Ray's processes would die of them before the run has ended in order, and Ray would wait for them. A blocked signal
    stays blocked in children; Ray does the same with SIGINT. In this process the other threads take it meanwhile, and
    Python runs its handler.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@dataclass
class _Member:
    """slot.node: where it was told to be, None for anywhere; home: where it is, once it has said so.

    leaving: its node is being drained.
    """

    handle: Any
    slot: Slot
    trail: str
    born_s: float
    home: str | None = None
    starting: Any = None
    tasks: dict[Any, Task] = field(default_factory=dict)
    pulse: Any = None
    pulsed_s: float = 0.0
    leaving: bool = False


@dataclass(frozen=True)
class _Death:
    name: str
    member: _Member
    reason: str
    at_s: float


class RayWorkers:
    """The workers of a run on a Ray cluster; see workers.Workers. Made after connect(); close() disconnects."""

    def __init__(self, recipe: Recipe, pools: Sequence[Pool], cluster: Cluster) -> None:
        self._recipe, self._pools, self._cluster = recipe, pools, cluster
        self._members: dict[str, _Member] = {}
        self._deaths: dict[Any, _Death] = {}
        self._key = secrets.token_hex(6)
        self._born = 0
        self._failed_starts = 0
        self._nodes_seen_s = 0.0
        self._cut_off = self._closed = False
        self._needed = math.inf
        self._news: list[PoolEvent] = []
        try:
            placement.check(pools, self._answered(_nodes), autoscaling=cluster.autoscaling)
            self._answered(self._populate)
        except BaseException:
            self.close()
            raise

    # ---- what happened ----

    def events(self, timeout_s: float) -> list[PoolEvent]:
        """Whatever is ready; raises UserError when a worker says that no retry can help, WorldError when Ray cannot."""
        now = time.monotonic()
        if now - self._nodes_seen_s > _NODES_S:
            self._answered(self._populate)
        self._ask_pulses(now)
        found, self._news = self._news, []
        owners = {ref: name for name, member in self._members.items() for ref in self._awaited(member)}
        refs = [*owners, *self._deaths]
        if not refs:
            time.sleep(min(timeout_s, 0.2))
            return found
        ready, rest = ray.wait(refs, timeout=timeout_s)
        more, _ = ray.wait(rest, num_returns=len(rest), timeout=0) if rest else ([], [])
        for ref in [*ready, *more]:
            found += self._decide(ref) if ref in self._deaths else self._collect(ref, owners[ref])
        for ref in [ref for ref, death in self._deaths.items() if now - death.at_s > _INQUEST_S]:
            found.append(self._lost(self._deaths.pop(ref), None, alive=False))
        self._check_started(now)
        return found

    def _awaited(self, member: _Member) -> list[Any]:
        return [ref for ref in (member.starting, member.pulse, *member.tasks) if ref is not None]

    def _ask_pulses(self, now: float) -> None:
        for member in self._members.values():
            if member.starting is None and member.pulse is None and now - member.pulsed_s > _PULSE_S:
                member.pulse, member.pulsed_s = member.handle.progress.options(concurrency_group="pulse").remote(), now

    def _collect(self, ref: Any, name: str) -> list[PoolEvent]:
        member = self._members.get(name)
        if member is None or ref not in self._awaited(member):  # Another of its calls has told that it is gone.
            return []
        try:
            value = ray.get(ref)
        except RayTaskError as exc:
            return self._trouble(name, member, ref, exc)
        except RayError as exc:
            return self._bury(name, exc)
        if ref == member.starting:
            member.starting, member.home, self._failed_starts = None, value["node"], 0
            return [WorkerJoined(name, value)]
        if ref == member.pulse:
            member.pulse = None
            return [ProgressUpdate(name, value)]
        del member.tasks[ref]
        return [TaskFinished(name, value)]

    def _trouble(self, name: str, member: _Member, ref: Any, exc: RayTaskError) -> list[PoolEvent]:
        """A call raised: the world's fault is an event, a user's is final, anything else is ours."""
        cause = exc.cause if isinstance(exc.cause, Exception) else exc
        if isinstance(cause, UserError):
            raise cause from exc
        if ref in member.tasks and isinstance(cause, WorldError):
            return [TaskFailed(name, member.tasks.pop(ref), cause.short())]
        raise SegrayError("a worker met an error of segray's own", where=f"worker {name}", found=str(cause)) from exc

    def _bury(self, name: str, exc: RayError) -> list[PoolEvent]:
        """An actor is gone: ask its node what it was at. Who is to blame is known when the node answers, or is dead."""
        member = self._members.pop(name)
        _check_installed(exc, member.slot.node)
        death = _Death(name, member, _first_line(exc), time.monotonic())
        with contextlib.suppress(RayError):
            ray.kill(member.handle)  # In case it is only out of reach: it must not come back and hold its CPUs.
        node = member.home or member.slot.node
        if node is None:  # It had not said yet where it is.
            return [self._lost(death, None, alive=not _compat.is_node_death(exc))]
        self._deaths[self._answered(self._ask, node, member.trail)] = death
        return []

    def _ask(self, node: str, trail: str) -> Any:
        pinned: Any = NodeAffinitySchedulingStrategy(node, soft=False)
        function: Any = ray.remote(num_cpus=0, max_retries=1)(inquest)
        return function.options(scheduling_strategy=pinned).remote(trail)

    def _decide(self, ref: Any) -> list[PoolEvent]:
        death = self._deaths.pop(ref)
        try:
            return [self._lost(death, ray.get(ref), alive=True)]
        except RayTaskError:
            return [self._lost(death, None, alive=True)]
        except RayError:
            return [self._lost(death, None, alive=False)]

    def _lost(self, death: _Death, in_flight: tuple[InFlight, ...] | None, *, alive: bool) -> WorkerLost:
        """Replace the dead on a living node; elsewhere _populate finds a place."""
        started = death.member.starting is None
        if alive:
            self._failed_starts += not started
            self._check_starts(death)
            self._succeed(death.member)
        reason = death.reason if alive else f"its node is gone ({death.reason})"
        return WorkerLost(death.name, reason, blame_images=alive and started, in_flight=in_flight)

    def _check_starts(self, death: _Death) -> None:
        if self._failed_starts >= _MOST_FAILED_STARTS:
            raise WorldError(
                f"{_MOST_FAILED_STARTS} workers in a row died while loading the model",
                where=f"node {death.member.slot.node}",
                found=death.reason,
                do="look at the worker's log; too little memory is the usual cause",
            )

    def _check_started(self, now: float) -> None:
        if any(member.starting is None for member in self._members.values()):
            return
        waiting = [now - member.born_s for member in self._members.values()]
        if waiting and min(waiting) > self._cluster.start_timeout_s:
            raise WorldError(
                f"no worker started within {self._cluster.start_timeout_s:.0f} s",
                where="the Ray cluster",
                found=f"asked for {list(map(placement.asked, self._pools))}, available {self._answered(_available)}",
                do="free resources, or ask for less in `workers`; nodes that an autoscaler brings may need minutes:"
                " allow more with cluster.start_timeout_s",
            )

    # ---- commands ----

    def assign(self, worker: str, task: Task, refs: Sequence[ImageRef]) -> None:
        member = self._members.get(worker)
        if member is not None:
            call = member.handle.label.options(concurrency_group="label")
            member.tasks[call.remote(task, list(refs))] = task

    def retire(self, worker: str) -> None:
        member = self._members.pop(worker, None)
        if member is not None:
            ray.kill(member.handle)
            self._succeed(member)
            if member.home is not None:
                self._answered(self._ask, member.home, member.trail)  # Nobody reads the answer: it removes the trail.

    def release(self, worker: str) -> None:
        member = self._members.pop(worker, None)
        if member is not None:
            self._dismiss([member])

    def need(self, workers: int) -> None:
        """Those that are still starting go first, the youngest first of all: they may only wait for room."""
        self._needed = workers
        surplus = len(self._members) - workers if workers else len(self._members)
        young = [name for name, member in reversed(self._members.items()) if not workers or member.starting is not None]
        gone = [self._members.pop(name) for name in young[: max(0, surplus)]]
        if gone:
            self._dismiss(gone)

    def call(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        if any(member.tasks for member in self._members.values()):
            return run_in_daemon_thread(self.remotely, function, *args)
        # Nothing is left that this process could keep waiting, and a new one starts slower than most last merges end.
        return run_in_daemon_thread(function, *args)

    def remotely(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a function returns in another process of the cluster; WorldError if that dies again and again."""
        try:
            # No CPU: the workers hold them all, and this must never wait for one.
            remote: Any = ray.remote(num_cpus=0, max_retries=2)(function)
            called = self._answered(lambda: remote.remote(*args).future())
            while wait([called], _NODES_S).not_done:
                self._answered(_nodes)
            return called.result()
        except RayTaskError as exc:
            if isinstance(exc.cause, SegrayError):
                raise exc.cause from exc
            raise
        except RayError as exc:
            raise _given_up(function, exc) from exc

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        # Without a head every call would wait for it, and Ray would end the process.
        if not (self._cut_off or _connection.head_ended()):
            self._dismiss(list(self._members.values()))
        self._members.clear()
        disconnect(cut_off=self._cut_off)

    def _dismiss(self, members: Sequence[_Member]) -> None:
        """End workers, which leave nothing behind."""
        ready = [member.handle for member in members if member.starting is None]
        farewells = [handle.leave.options(concurrency_group="pulse").remote() for handle in ready]
        if farewells:
            ray.wait(farewells, num_returns=len(farewells), timeout=_FAREWELL_S)
        for member in members:
            with contextlib.suppress(RayError):
                ray.kill(member.handle)

    # ---- the head ----

    def _answered(self, call: Callable[..., T], *args: Any) -> T:
        """The answer of a call that needs the cluster's head; WorldError when there is none in time.

        Ray itself waits a minute, in the middle of the call, and then ends the process.
        """
        found = f"no answer within {self._cluster.head_timeout_s:.0f} s"
        if not (self._cut_off or self._closed):
            try:
                return run_in_daemon_thread(call, *args).result(self._cluster.head_timeout_s)
            except RayError as exc:
                found = _first_line(exc)
            except TimeoutError:
                self._cut_off = True
        raise WorldError(
            "the head of the Ray cluster is gone",
            where=f"cluster.address={self._cluster.address or 'null'}",
            found=found,
            do="start the cluster again, with another cluster.address if it has one",
        )

    # ---- actors ----

    def _populate(self) -> None:
        """Bring each pool to its size, as far as the run has need of it; leave nodes that are being drained."""
        self._nodes_seen_s = time.monotonic()
        nodes = _nodes()
        self._leave({node.id for node in nodes if node.draining})
        dying = [death.member for death in self._deaths.values()]
        members = [member for member in (*self._members.values(), *dying) if not member.leaving]
        taken = [replace(member.slot, node=member.home or member.slot.node) for member in members]
        for slot in placement.slots_to_fill(self._pools, nodes, taken, self._needed):
            self._spawn(slot)

    def _leave(self, draining: Collection[str]) -> None:
        """Workers on these nodes may finish what they run; those that have not begun are of no use."""
        for name, member in list(self._members.items()):
            if member.leaving or (member.home or member.slot.node) not in draining:
                continue
            member.leaving = True
            if member.starting is None:
                self._news.append(WorkerDraining(name))
            else:
                self._dismiss([self._members.pop(name)])

    def _succeed(self, member: _Member) -> None:
        """Another worker in the place of one that is gone, unless its node goes too."""
        if not member.leaving:
            self._answered(self._spawn, member.slot)

    def _spawn(self, slot: Slot) -> None:
        pool = self._pools[slot.pool]
        strategy: Any = "SPREAD" if slot.node is None else NodeAffinitySchedulingStrategy(slot.node, soft=False)
        kind: Any = ray.remote(concurrency_groups=_GROUPS)(_Actor)  # type: ignore[call-overload]
        actor = kind.options(
            num_cpus=slot.cpus,
            resources=dict(pool.resources) or None,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy=strategy,
        )
        trail = f"segray-{self._key}-{self._born}"
        member = _Member(actor.remote(pool, trail), slot, trail, time.monotonic())
        start = member.handle.start.options(concurrency_group="start")
        member.starting = start.remote(self._recipe, max(1, int(slot.cpus)))
        member.handle.stay.remote()
        self._members[str(self._born)] = member
        self._born += 1


def _check_installed(exc: RayError, node: str | None) -> None:
    if "No module named 'segray" in str(exc):
        raise ConfigError(
            "a node of the cluster has no segray, or another one than the driver",
            where=f"node {node}",
            found=next(line.strip() for line in str(exc).splitlines() if "No module named 'segray" in line),
            do="install the driver's version on every node, for the Python that `ray start` runs with",
        ) from exc


def _given_up(function: Callable[..., Any], exc: RayError) -> WorldError:
    return WorldError(
        f"{function.__name__} came to no end on the Ray cluster",
        where="a task of the driver's, tried three times",
        found=_first_line(exc),
        do="see why in Ray's logs; too little memory is the usual cause",
    )


def _nodes() -> list[Node]:
    """The living nodes."""
    draining = _compat.ray_draining_nodes()
    return [
        Node(node["NodeID"], node["Resources"], node["NodeID"] in draining)
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"]
    ]


def _available() -> dict[str, float]:
    return dict(ray.available_resources())  # type: ignore[no-untyped-call]


def _first_line(exc: BaseException) -> str:
    return next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)
