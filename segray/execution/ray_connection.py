"""This process's connection to a Ray cluster, and calls that need the head of the cluster.

Knows how to join a cluster, how to start and end a private one, and what Ray does to signals. Knows nothing of workers.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from segray import _compat
from segray._system import child_processes, host_process, signals
from segray._system.threads import run_in_daemon_thread, run_in_lasting_thread
from segray.config import ClusterSettings
from segray.errors import ConfigError, InfrastructureError, SegrayError
from segray.models.engine import available_cpus

_LOCAL_OBJECT_STORE_BYTES = 100 * 2**20
_POLL_S = 5.0
# A variable in the environment of every process of a private cluster.
_MARK = "SEGRAY_PRIVATE_CLUSTER"
_PRIVATE = "local"

T = TypeVar("T")


class _Connection:
    """The connection of this process to a cluster. Ray has one per process, so concurrent runs share it.

    The first run makes the connection and the last run ends it. A connection that the process made before is used and
    left as it is.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs = 0
        self._undo = contextlib.ExitStack()
        self._head_lost = False
        self._ending: Future[None] | None = None
        self._mark = ""  # value of _MARK for the processes of a private cluster

    def join(self, cluster: ClusterSettings) -> None:
        with self._lock:
            if self._ending is not None:
                self._ending.result()
                self._ending = None
            if self._runs or ray.is_initialized():
                _check_same(cluster.address)
            else:
                self._connect(cluster)
            self._runs += 1

    def leave(self, *, head_lost: bool) -> None:
        with self._lock:
            self._runs -= 1
            self._head_lost |= head_lost
            if not self._runs:
                self._undo.close()

    def head_ended(self) -> bool:
        """Return whether the head of a private cluster has ended.

        A signal to all processes of a terminal, for example, ends the head.
        """
        return bool(self._mark) and not child_processes.marked_program_runs(_MARK, self._mark, _compat.RAY_HEAD)

    def _connect(self, cluster: ClusterSettings) -> None:
        with signals.handlers_restored(), host_process.import_changes_undone(), contextlib.ExitStack() as undo:
            undo.enter_context(signals.handlers_restored(signals.FAULTS))
            undo.enter_context(host_process.runtime_changes_undone("ray", logging.WARNING))
            self._head_lost = False
            address = cluster.address or ("auto" if "RAY_ADDRESS" in os.environ else _PRIVATE)
            self._mark = secrets.token_hex(16) if address == _PRIVATE else ""
            end = threading.Event()
            undo.callback(end.set)
            undo.callback(self._shut_down)
            if threading.current_thread() is threading.main_thread():
                _init(address, self._mark)
            else:  # Ray's processes die with the thread that starts them, and the first run's thread may end early.
                run_in_lasting_thread(end, _init, address, self._mark)
            logging.getLogger("ray").setLevel(logging.WARNING)
            self._undo = undo.pop_all()

    def _shut_down(self) -> None:
        # Without a head Ray needs up to 20 s to see that nothing answers, and then ends the process.
        mark, head_lost = self._mark, self._head_lost or self.head_ended()
        self._mark = ""
        try:
            if head_lost:
                self._ending = run_in_daemon_thread(_shut_down, bool(mark))
            else:
                _shut_down(bool(mark))
        finally:
            if mark:
                child_processes.kill_marked(_MARK, mark)


_connection = _Connection()


def connect(cluster: ClusterSettings) -> None:
    """Join the cluster, or start a private one on this machine; use the process's own connection if it has one.

    Without an address a process inside a Ray job joins that job's cluster. A private cluster has no dashboard and
    listens on this machine only, so it needs no token. Raises InfrastructureError for a cluster that cannot be reached
    now, ConfigError for one that refuses this process.
    """
    try:
        _connection.join(cluster)
    except SystemExit as exc:
        if exc.code != signal.SIGTERM:
            raise
        # Ray exits on a SIGTERM during its start. The process's own handler, if it has one, comes first.
        signal.raise_signal(signal.SIGTERM)
        raise KeyboardInterrupt("SIGTERM") from exc


def disconnect(*, head_lost: bool = False) -> None:
    """Leave the cluster; end a private one.

    head_lost: whether the head is gone, so that no call waits for its answer.
    """
    _connection.leave(head_lost=head_lost)


class Head:
    """The head of the joined cluster, which may be gone. Made after connect()."""

    def __init__(self, cluster: ClusterSettings) -> None:
        self._cluster = cluster
        self._lost = self._left = False

    @property
    def runs(self) -> bool:
        """Return whether the head runs, as far as this process knows without a call."""
        return not (self._lost or _connection.head_ended())

    def ask(self, call: Callable[..., T], *args: Any) -> T:
        """Return the result of a call that needs the head.

        Raises InfrastructureError when there is no answer within cluster.head_timeout_s. Ray itself waits a minute, in
        the middle of the call, and then ends the process.
        """
        found = f"no answer within {self._cluster.head_timeout_s:.0f} s"
        if not (self._lost or self._left):
            try:
                return run_in_daemon_thread(call, *args).result(self._cluster.head_timeout_s)
            except RayError as exc:
                found = first_line(exc)
            except TimeoutError:
                self._lost = True
        raise InfrastructureError(
            "the head of the Ray cluster is gone",
            where=f"cluster.address={self._cluster.address or 'null'}",
            found=found,
            hint="start the cluster again, with another cluster.address if it has one",
        )

    def run_elsewhere(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return the result of a function that runs in another process of the cluster.

        Raises what the function raises, and InfrastructureError when its process dies in each of three tries.
        """
        try:
            # No CPU: the workers hold all CPUs, and the function must not wait for one.
            remote: Any = ray.remote(num_cpus=0, max_retries=2)(function)
            result = self.ask(lambda: remote.remote(*args).future())
            while wait([result], _POLL_S).not_done:
                self.ask(ray.nodes)
            return result.result()
        except RayTaskError as exc:
            if isinstance(exc.cause, SegrayError):
                raise exc.cause from exc
            raise
        except RayError as exc:
            raise InfrastructureError(
                f"{function.__name__} came to no end on the Ray cluster",
                where="a task of the driver's, tried three times",
                found=first_line(exc),
                hint="see why in Ray's logs; too little memory is the usual cause",
            ) from exc

    def leave(self) -> None:
        """Disconnect, without waiting for a head that is gone."""
        self._left = True
        disconnect(head_lost=self._lost)


def first_line(exc: BaseException) -> str:
    """Return the first line of an error that is not blank, or the name of the error's class."""
    return next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)


def _init(address: str, mark: str) -> None:
    """Connect this process.

    mark: value in the environment of a private cluster's processes.
    """
    # Outside the main thread Ray warns that it cannot set its signal handler, which is intended.
    level = logging.WARNING if threading.current_thread() is threading.main_thread() else logging.ERROR
    if address == _PRIVATE:
        _start_private(mark, level)
        return
    try:
        ray.init(address=address, logging_level=level)
    except (ConnectionError, RayError, RuntimeError, ValueError) as exc:
        kind = InfrastructureError if isinstance(exc, ConnectionError) else ConfigError
        raise kind(
            "cannot join the Ray cluster",
            where=f"cluster.address={address}",
            # Ray raises RuntimeError for other versions, and lists them on lines of their own.
            found=" ".join(str(exc).split()) if isinstance(exc, RuntimeError) else first_line(exc),
            hint="check the address, that RAY_AUTH_MODE is the cluster's, RAY_AUTH_TOKEN in token mode, and that Ray "
            "and Python are those of the cluster",
        ) from exc


def _start_private(mark: str, level: int) -> None:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _compat.start_no_spare_ray_workers()  # An idle one takes 1 % of a core.
    try:
        with host_process.environment([_MARK]), _signals_blocked_in_children():
            os.environ[_MARK] = mark
            ray.init(
                address=_PRIVATE,
                num_cpus=available_cpus(),
                include_dashboard=False,
                object_store_memory=_LOCAL_OBJECT_STORE_BYTES,
                logging_level=level,
            )
    except Exception as exc:  # Ray raises no special class when its processes are not up within 30 s.
        raise InfrastructureError(
            "Ray could not start on this machine",
            where="cluster.address=null",
            found=first_line(exc),
            hint="run the same command when the machine is less busy, or look into Ray's logs in /tmp/ray",
        ) from exc


@contextlib.contextmanager
def _signals_blocked_in_children() -> Iterator[None]:
    """Keep signals for the whole terminal or service from processes that the block starts.

    These signals would end Ray's processes before the run has ended in order, and Ray would wait for them. A blocked
    signal stays blocked in children. Ray does the same with SIGINT. In this process the other threads take the signal
    meanwhile, and Python runs its handler.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _shut_down(private: bool) -> None:
    """Disconnect from Ray.

    private: whether the caller ends Ray's processes here, which block Ray's SIGTERM.
    """
    if private:
        _compat.leave_ray_processes()
    with signals.handlers_restored():  # Ray removes every handler of SIGTERM together with its own.
        ray.shutdown()


def _check_same(address: str | None) -> None:
    """Raise ConfigError unless the configuration means the cluster that this process is connected to."""
    joined = ray.get_runtime_context().gcs_address
    if address not in (None, "auto") and _with_numeric_host(address) != _with_numeric_host(joined):
        raise ConfigError(
            "this process is connected to another Ray cluster",
            where=f"cluster.address={address}",
            found=f"connected to {joined}",
            hint="leave cluster.address out, call ray.shutdown() before, or label in a process of its own",
        )


def _with_numeric_host(address: str) -> str:
    """Return HOST:PORT with the host's IP address in place of its name."""
    name, colon, port = address.rpartition(":")
    try:
        return f"{socket.gethostbyname(name)}{colon}{port}"
    except OSError:
        return address
