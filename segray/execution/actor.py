"""A worker's process: the labeller, the memory that the process may hold, and the log that outlives the process.

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
from segray.execution.worker_spec import WorkerSpec, build, prepared
from segray.instances import ImageRef
from segray.tasks import InFlight, Progress, Task, TaskReport

# A multiple of max_rss_mb. Below it a worker is replaced when its tasks are done. Above it the node is in danger.
_KILLED_AT = 1.5


class Actor:
    """A worker in its own process. `start` does the work that may fail, so that its error arrives as it was raised.

    pool: configuration of the worker's pool.
    log: name of the in-flight log, unique to this process, for images_of_dead_worker().
    """

    def __init__(self, pool: PoolSettings, log: str) -> None:
        self._pool, self._in_flight_log = pool, _on_this_node(log)
        self._labeller: Labeller | None = None
        self._process = ExitStack()  # never closed, since the process is the worker's own
        self._most_bytes = None if pool.max_rss_mb is None else pool.max_rss_mb * 2**20

    def start(self, spec: WorkerSpec, threads: int) -> Mapping[str, str]:
        """Load the model, and return the facts of its engine.

        spec: the worker's model, limits and storage.
        threads: number of threads, for a pool that configures none.
        """
        self._process.enter_context(prepared())
        host_process.silence_videos()
        self._labeller, facts = build(spec, self._pool.device, self._pool.threads or threads, self._in_flight_log)
        if self._most_bytes is not None:
            self._check_room(self._most_bytes)
            memory.kill_above(self._most_bytes * _KILLED_AT)
        return facts

    def label(self, task: Task, refs: Sequence[ImageRef]) -> TaskReport:
        """Label the images of a task; see Labeller.label."""
        return self._started().label(task, refs)

    def progress(self) -> Progress:
        """Return the labeller's progress, with the memory of this process."""
        return replace(self._started().progress(), rss_bytes=memory.rss_bytes(), max_rss_bytes=self._most_bytes)

    def leave(self) -> None:
        """Remove the in-flight log from the node."""
        self._in_flight_log.unlink(missing_ok=True)

    def _check_room(self, most_bytes: int) -> None:
        held = memory.rss_bytes()
        if held > most_bytes:
            self.leave()
            raise ConfigError(
                "the model alone needs more memory than a worker may hold",
                where="workers: max_rss_mb",
                found=f"{held / 2**20:.0f} MiB after loading, {most_bytes / 2**20:.0f} allowed",
                hint="allow at least twice as much, or leave max_rss_mb out",
            )

    def _started(self) -> Labeller:
        assert self._labeller is not None, "start() comes first"
        return self._labeller


def images_of_dead_worker(log: str) -> tuple[InFlight, ...]:
    """Return the images that a dead actor had in flight.

    The function runs on the actor's node, so an answer also says that the node lives.
    """
    return read_in_flight_log(_on_this_node(log))


def _on_this_node(name: str) -> Path:
    return Path(tempfile.gettempdir()) / name
