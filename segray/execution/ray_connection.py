"""This process's connection to a Ray cluster, and calls that need the head of the cluster.

Knows how to join a cluster, how to start and end a private cluster, and how Ray changes signal handling. Knows nothing
of workers.
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
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from segray import _compat
from segray._system import child_processes, host_process, signals
from segray._system.threads import run_in_daemon_thread, run_in_lasting_thread
from segray.config import ClusterSettings
from segray.errors import ConfigError, InfrastructureError, SegrayError
from segray.execution.ray_address import PRIVATE_MARK, address_to_join
from segray.execution.ray_temp_folder import fullness, temp_folder
from segray.models.engine import available_cpus

_LOCAL_OBJECT_STORE_BYTES = 100 * 2**20
_POLL_S = 5.0
_PRIVATE_START_S = 90.0

T = TypeVar("T")


class _Connection:
    """The connection of this process to a cluster. Ray has one per process, so concurrent runs share it.

    The first run makes the connection and the last run ends it. A connection that the process made before is used and
    left as it is.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._run_count = 0
        self._undo = contextlib.ExitStack()
        self._head_lost = False
        self._ending: Future[None] | None = None
        self._mark = ""  # value of PRIVATE_MARK for the processes of a private cluster

    def join(self, cluster: ClusterSettings) -> None:
        """Add a run; see connect()."""
        with self._lock:
            if self._ending is not None:
                self._wait_for_end(self._ending, cluster)
                self._ending = None
            if self._run_count or ray.is_initialized():
                _check_same_cluster(cluster.address)
            else:
                self._connect(cluster)
            self._run_count += 1

    @staticmethod
    def _wait_for_end(ending: Future[None], cluster: ClusterSettings) -> None:
        """Wait for the end of the former connection."""
        try:
            ending.result(cluster.head_timeout_s)
        except TimeoutError:
            raise InfrastructureError(
                "this process still waits for another Ray cluster",
                where=f"cluster.address={cluster.address or 'null'}",
                found=f"Ray still waits after {cluster.head_timeout_s:.0f} s",
                hint="label in a new process",
            ) from None

    def leave(self, *, head_lost: bool) -> None:
        """Remove a run; see disconnect()."""
        with self._lock:
            self._run_count -= 1
            self._head_lost |= head_lost
            if not self._run_count:
                self._undo.close()

    def head_ended(self) -> bool:
        """Return whether the head of a private cluster has ended.

        A signal to all processes of a terminal, for example, ends the head.
        """
        return bool(self._mark) and not child_processes.marked_program_runs(PRIVATE_MARK, self._mark, _compat.RAY_HEAD)

    def _connect(self, cluster: ClusterSettings) -> None:
        address = address_to_join(cluster.address)
        if address is not None:
            self._initialise("", partial(_join, address), cluster.head_timeout_s, _not_joined(address))
            return
        try:
            self._start_private()
        except _NotStartedError:  # Ray waits 30 s for its processes, and a busy machine may need longer.
            self._start_private()

    def _start_private(self) -> None:
        mark = secrets.token_hex(16)
        self._initialise(mark, partial(_start_private, mark, temp_folder()), _PRIVATE_START_S, _not_started)

    def _initialise(
        self, mark: str, call: Callable[[], None], timeout_s: float, no_answer: Callable[[str], SegrayError]
    ) -> None:
        """Connect this process, and wait for the connection.

        Args:
            mark: value of PRIVATE_MARK for the processes of a private cluster; "" for another cluster.
            call: calls ray.init().
            timeout_s: longest wait for the call, in seconds.
            no_answer: returns the error to raise after timeout_s, from the text for `found`.
        """
        with signals.handlers_restored(), host_process.import_changes_undone(), contextlib.ExitStack() as undo:
            undo.enter_context(signals.handlers_restored(signals.FAULTS))
            undo.enter_context(host_process.runtime_changes_undone("ray", logging.WARNING))
            self._head_lost, self._mark = False, mark
            thread_end = threading.Event()
            # Ray waits for ever for a head that dies meanwhile, and handles no signal. So another thread calls Ray.
            # Ray's processes die with the thread that starts them, and the first run's thread may end early.
            initialised = run_in_lasting_thread(thread_end, call)
            undo.callback(thread_end.set)
            undo.callback(self._shut_down, initialised)
            if wait([initialised], timeout_s).not_done:
                raise no_answer(f"no answer within {timeout_s:.0f} s")
            initialised.result()
            logging.getLogger("ray").setLevel(logging.WARNING)
            self._undo = undo.pop_all()

    def _shut_down(self, initialised: Future[None]) -> None:
        # Without a head Ray waits up to 20 s for an answer, and then ends the process.
        mark, head_lost = self._mark, self._head_lost or self.head_ended()
        self._mark = ""
        try:
            if not initialised.done():
                self._ending = run_in_daemon_thread(_shut_down_when, initialised, bool(mark))
            elif head_lost:
                self._ending = run_in_daemon_thread(_shut_down, bool(mark))
            else:
                _shut_down(bool(mark))
        finally:
            if mark:
                child_processes.kill_marked(PRIVATE_MARK, mark)


_connection = _Connection()


def connect(cluster: ClusterSettings) -> None:
    """Join the cluster, or start a private one on this machine. Use the connection that the process has, if any.

    Without an address a process inside a Ray job joins that job's cluster. A private cluster has no dashboard and
    listens on this machine only, so the cluster needs no token. Raises InfrastructureError for a cluster that cannot be
    reached now, ConfigError for a cluster that refuses this process.
    """
    _connection.join(cluster)


def disconnect(*, head_lost: bool = False) -> None:
    """Leave the cluster. The last run of the process ends a private cluster.

    head_lost: whether the head is gone, so that no call waits for an answer.
    """
    _connection.leave(head_lost=head_lost)


class Head:
    """The head of the joined cluster, which may be gone. Made after connect()."""

    def __init__(self, cluster: ClusterSettings) -> None:
        self._cluster = cluster
        self._lost = self._disconnected = False
        self._folder = _compat.ray_session_folder()

    @property
    def full_folder(self) -> tuple[str, str] | None:
        """Return Ray's folder on this machine and the words of fullness(), if its disk is full; else None."""
        found = fullness(self._folder)
        return None if found is None else (self._folder, found)

    @property
    def runs(self) -> bool:
        """Return whether the head runs, as far as this process knows. Makes no call."""
        return not (self._lost or _connection.head_ended())

    def ask(self, call: Callable[..., T], *args: Any) -> T:
        """Return the result of a call that needs the head.

        Raises InfrastructureError when there is no answer within cluster.head_timeout_s. Ray itself would wait a minute
        in the call, and then end the process.
        """
        found = f"no answer within {self._cluster.head_timeout_s:.0f} s"
        if not (self._lost or self._disconnected):
            try:
                return run_in_daemon_thread(call, *args).result(self._cluster.head_timeout_s)
            except RayError as exc:
                found = first_line(exc)
            except TimeoutError:
                self._lost = True
        if self.full_folder is not None:
            found += f"; {self._folder}: {self.full_folder[1]}"
        raise InfrastructureError(
            "the head of the Ray cluster is gone",
            where=f"cluster.address={self._cluster.address or 'null'}",
            found=found,
            hint="start the cluster again, and set cluster.address if the address has changed",
        )

    def run_elsewhere(self, function: Callable[..., Any], *args: Any) -> Any:
        """Return the result of a function that runs in another process of the cluster.

        Raises the function's SegrayError, and InfrastructureError when the process dies in each of three tries.
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
                f"{function.__name__} failed on the Ray cluster",
                where="a Ray task of the driver, tried three times",
                found=first_line(exc),
                hint="read Ray's logs; too little memory is the usual cause",
            ) from exc

    def leave(self) -> None:
        """Disconnect. Do not wait for a head that is gone."""
        self._disconnected = True
        disconnect(head_lost=self._lost)


def first_line(exc: BaseException) -> str:
    """Return the first line of an error's text that is not blank, or the name of the error's class."""
    return next((line.strip() for line in str(exc).splitlines() if line.strip()), type(exc).__name__)


class _NotStartedError(InfrastructureError):
    """A private cluster did not start. Another try may succeed."""


def _not_started(found: str) -> SegrayError:
    """Return the error of a private cluster that does not start in time."""
    return InfrastructureError(
        "Ray could not start on this machine",
        where="cluster.address=null",
        found=found,
        hint="check that the loopback network works and read Ray's logs, or set `cluster.address`",
    )


def _not_joined(address: str) -> Callable[[str], SegrayError]:
    """Return a function that returns the error of a cluster that does not answer, from the text for `found`."""
    where = f"cluster.address={address}"
    if os.environ.get("RAY_AUTH_MODE") != "token" and _has_token():
        return lambda found: ConfigError(
            "cannot join the Ray cluster",
            where=where,
            found=f"{found}; a token is set, but RAY_AUTH_MODE=token is not",
            hint="set RAY_AUTH_MODE=token if the cluster requires tokens; else check `cluster.address`",
        )
    return lambda found: InfrastructureError(
        "cannot join the Ray cluster",
        where=where,
        found=f"{found} (`cluster.head_timeout_s`)",
        hint="check that the cluster runs and that `cluster.address` is HOST:PORT of its head, often port 6379",
    )


def _has_token() -> bool:
    """Return whether the environment has a token for Ray. RAY_AUTH_TOKEN_PATH names a file with a token."""
    return bool(os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"))


def _join(address: str) -> None:
    """Connect this process to a cluster."""
    try:
        # Outside the main thread Ray warns that it cannot set its signal handler, which is intended.
        ray.init(address=address, logging_level=logging.ERROR)
    except (ConnectionError, RayError, RuntimeError, ValueError) as exc:
        error_class = InfrastructureError if isinstance(exc, ConnectionError) else ConfigError
        raise error_class(
            "cannot join the Ray cluster",
            where=f"cluster.address={address}",
            # Ray raises RuntimeError for other versions, and lists the versions on lines of their own.
            found=" ".join(str(exc).split()) if isinstance(exc, RuntimeError) else first_line(exc),
            hint="check cluster.address; check that RAY_AUTH_MODE, RAY_AUTH_TOKEN in token mode, and the versions of "
            "Ray and Python equal those of the cluster",
        ) from exc


def _start_private(mark: str, folder: Path) -> None:
    """Start a private cluster and connect this process.

    mark: value of PRIVATE_MARK in the environment of the cluster's processes.
    folder: Ray's temporary folder.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _compat.start_no_spare_ray_workers()  # An idle spare worker takes 1 % of a core.
    try:
        with host_process.environment([PRIVATE_MARK]), _signals_blocked_in_children():
            os.environ[PRIVATE_MARK] = mark
            ray.init(
                address="local",
                num_cpus=available_cpus(),
                include_dashboard=False,
                object_store_memory=_LOCAL_OBJECT_STORE_BYTES,
                logging_level=logging.ERROR,
                _temp_dir=str(folder),
            )
    except Exception as exc:  # Ray raises no special class when its processes are not up within 30 s.
        if (found := fullness(folder if folder.exists() else folder.parent)) is not None:
            raise InfrastructureError(
                "Ray could not start on this machine",
                where=str(folder),
                found=found,
                hint="free some space, or set RAY_TMPDIR to a folder on another disk",
            ) from exc
        raise _NotStartedError(
            "Ray could not start on this machine",
            where="cluster.address=null",
            found=first_line(exc),
            hint=f"run the same command when the machine is less busy, or read Ray's logs in {folder}",
        ) from exc


@contextlib.contextmanager
def _signals_blocked_in_children() -> Iterator[None]:
    """Keep signals that go to all processes of a terminal or service from processes that the block starts.

    These signals would end Ray's processes before the run ends, and Ray would wait for its processes. A blocked signal
    stays blocked in children. Ray itself does the same with SIGINT. In this process the other threads receive the
    signal meanwhile, and Python runs its handler.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _shut_down_when(initialised: Future[None], private: bool) -> None:
    """Disconnect from Ray as soon as a try to connect has ended."""
    initialised.exception()
    _shut_down(private)


def _shut_down(private: bool) -> None:
    """Disconnect from Ray.

    private: whether the cluster is private. Its processes block Ray's SIGTERM, so the caller ends them.
    """
    if private:
        _compat.forget_ray_processes()
    with signals.handlers_restored():  # Ray removes every handler of SIGTERM together with its own.
        ray.shutdown()


def _check_same_cluster(address: str | None) -> None:
    """Raise ConfigError unless `address` is that of the cluster that this process is connected to.

    address: the configured address; None for any cluster.
    """
    joined = ray.get_runtime_context().gcs_address
    if address not in (None, "auto") and _with_numeric_host(address) != _with_numeric_host(joined):
        raise ConfigError(
            "this process is connected to another Ray cluster",
            where=f"cluster.address={address}",
            found=f"connected to {joined}",
            hint="remove cluster.address, call ray.shutdown() before, or label in another process",
        )


def _with_numeric_host(address: str) -> str:
    """Return HOST:PORT with the host's IP address in place of its name."""
    name, colon, port = address.rpartition(":")
    try:
        return f"{socket.gethostbyname(name)}{colon}{port}"
    except OSError:
        return address
