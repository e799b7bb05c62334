"""A worker's process: the labeller, the limit of the process's memory, and the log that outlives the process.

Knows the work in the process and on its node. Knows nothing of Ray; ray_pool.py calls this module.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from segray._system import host_process, memory
from segray.config import PoolSettings
from segray.errors import ConfigError
from segray.execution.in_flight import read_in_flight_log
from segray.execution.labeller import Labeller
from segray.execution.worker_spec import WorkerSpec, build, prepared_process
from segray.instances import ImageRef
from segray.tasks import InFlight, Progress, Task, TaskReport

# A multiple of max_rss_mb. Between the two limits a worker finishes its tasks and is replaced. Above the multiple the
# process is killed, because the node could run out of memory.
_KILL_FACTOR = 1.5


class Actor:
    """A worker in its own process. `start` does the work that may fail, so that the driver gets the error unchanged.

    pool: configuration of the worker's pool.
    log: name of the in-flight log, unique to this process, for images_of_dead_worker().
    """

    def __init__(self, pool: PoolSettings, log: str) -> None:
        self._pool, self._in_flight_log = pool, _path_on_node(log)
        self._labeller: Labeller | None = None
        self._process_state = ExitStack()  # Never closed, since the process belongs to this worker.
        self._max_rss_bytes = None if pool.max_rss_mb is None else pool.max_rss_mb * 2**20

    def start(self, spec: WorkerSpec, threads: int, shipped_model: Path | None = None) -> Mapping[str, str]:
        """Load the model, and return the facts of its engine. A start that failed may be tried again.

        Args:
            spec: the worker's model, limits and storage.
            threads: number of threads, for a pool that configures none.
            shipped_model: the driver's model on this machine; None for the model at `model.path`.

        Raises:
            ConfigError: the model alone needs more than max_rss_mb; see also worker_spec.build.
        """
        self._process_state.enter_context(prepared_process())
        host_process.silence_videos()
        threads = self._pool.threads or threads
        self._labeller, facts = build(spec, self._pool.device, threads, self._in_flight_log, shipped_model)
        if self._max_rss_bytes is not None:
            self._check_memory(self._max_rss_bytes)
            memory.kill_above(self._max_rss_bytes * _KILL_FACTOR)
        return facts

    def label(self, task: Task, refs: Sequence[ImageRef]) -> TaskReport:
        """Label the images of a task; see Labeller.label."""
        return self._started().label(task, refs)

    def progress(self) -> Progress:
        """Return the labeller's progress, with the memory of this process."""
        return replace(self._started().progress(), rss_bytes=memory.rss_bytes(), max_rss_bytes=self._max_rss_bytes)

    def leave(self) -> None:
        """Remove the in-flight log from the node."""
        self._in_flight_log.unlink(missing_ok=True)

    def _check_memory(self, max_rss_bytes: int) -> None:
        """Raise ConfigError if the process already holds more memory than a worker may hold."""
        rss_bytes = memory.rss_bytes()
        if rss_bytes > max_rss_bytes:
            self.leave()
            raise ConfigError(
                "the model alone needs more memory than a worker may hold",
                where="workers: max_rss_mb",
                found=f"{rss_bytes / 2**20:.0f} MiB after loading, {max_rss_bytes / 2**20:.0f} MiB allowed",
                hint=f"set max_rss_mb to {2 * rss_bytes / 2**20:.0f} or more, or remove max_rss_mb",
            )

    def _started(self) -> Labeller:
        assert self._labeller is not None, "start() must be called first"
        return self._labeller


def images_of_dead_worker(log: str) -> tuple[InFlight, ...]:
    """Return the images that a dead actor had in flight.

    The function runs on the actor's node, so a result also shows that the node lives.
    """
    return read_in_flight_log(_path_on_node(log))


def _path_on_node(name: str) -> Path:
    return Path(tempfile.gettempdir()) / name
