"""The heartbeat of a running driver: a small object beside the run's record, rewritten every few seconds.

Knows the content, and how to write a heartbeat without slowing or failing the run. status.py judges the heartbeat.
The heartbeat is a file of its own, since the event loop writes run.json and a thread writes the heartbeat. Neither may
overwrite the data of the other.

    ROOT/_segray/runs/RUN_ID/heartbeat.json
"""

from __future__ import annotations

import json
import os
import platform
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from segray.errors import SegrayError
from segray.execution.progress import ProgressListener, RunProgress, WorkerStatus
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import join

if TYPE_CHECKING:
    from segray.label_set.run_records import Run

EVERY_S = 5.0
_TIMEOUT_S, _CLOSE_S = 10.0, 5.0
_SHOWN_WORKERS = 20


def uri_of(run: Run) -> str:
    """Return the URI of a run's heartbeat."""
    return join(run.folder, "heartbeat.json")


class HeartbeatWriter(ProgressListener):
    """A thread that writes the latest progress of a run.

    The writer counts each heartbeat that fails, sends a note for the first one in a row, and tries the next one.

    note: receives messages, from the writer's thread.
    every_s: seconds between two heartbeats.
    render_page: turns a heartbeat into a web page, which is written beside the heartbeat; None for no page.
    beats, missed: number of heartbeats that were written, and that failed.
    """

    def __init__(
        self,
        options: StorageOptions,
        note: Callable[[str], None],
        every_s: float = EVERY_S,
        render_page: Callable[[Mapping[str, Any]], str] | None = None,
    ) -> None:
        self._options = replace(options, retries=0, timeout_s=min(options.timeout_s, _TIMEOUT_S))
        self._note, self._every_s, self._render_page = note, every_s, render_page
        self._latest: RunProgress | None = None
        self._has_progress, self._ended = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self.beats = self.missed = 0

    def beat(self, progress: RunProgress) -> None:
        self._latest = progress
        self._has_progress.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Write a last heartbeat with `ended` set, if storage answers in time."""
        self._ended.set()
        self._has_progress.set()
        if self._thread is not None:
            self._thread.join(_CLOSE_S)

    def _run(self) -> None:
        store = Store(self._options)
        failing = False
        while not self._ended.is_set():
            self._has_progress.wait()
            self._has_progress.clear()
            if self._latest is not None and not self._ended.is_set():
                failing = self._write(store, self._latest, failing)
            self._ended.wait(self._every_s)
        if self._latest is not None:
            self._write(store, self._latest, failing)

    def _write(self, store: Store, progress: RunProgress, failing: bool) -> bool:
        """Write a heartbeat, and return whether the write failed.

        failing: whether the heartbeat before failed.
        """
        try:
            content = self._record(progress)
            store.put(uri_of(progress.run), (json.dumps(content) + "\n").encode())
            if self._render_page is not None:
                store.put(progress.run.page, self._render_page(content).encode())
        except Exception as exc:  # The run goes on without a heartbeat, and a note says so.
            self.missed += 1
            if not failing:
                reason = f"{exc.what} ({exc.found or exc.where})" if isinstance(exc, SegrayError) else repr(exc)
                self._note(f"the heartbeat cannot be written, the run continues: {reason}")
            return True
        if failing:
            self._note(f"the heartbeat is written again; heartbeats that failed so far: {self.missed}")
        self.beats += 1
        return False

    def _record(self, progress: RunProgress) -> dict[str, Any]:
        return {
            "run_id": progress.run.id,
            "beat": self.beats,
            "missed": self.missed,
            "ended": self._ended.is_set(),
            "every_s": self._every_s,
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "driver": {"host": platform.node(), "pid": os.getpid(), "job": submission_id()},
            **record(progress),
        }


def record(progress: RunProgress) -> dict[str, Any]:
    """Return the progress for a program, with the 20 slowest workers."""
    slowest = sorted(progress.workers, key=lambda worker: (worker.images_per_s, worker.worker))[:_SHOWN_WORKERS]
    return {
        "phase": progress.phase,
        "images": progress.images,
        "done": progress.done,
        "waiting": progress.waiting,
        "in_flight": progress.in_flight,
        "images_per_s": round(progress.images_per_s, 3),
        "eta_s": None if progress.eta_s is None else round(progress.eta_s, 1),
        "labelled": {name: getattr(progress.counters, name) for name in ("ok", "empty", "failed", "instances")},
        "bytes_read": progress.counters.bytes_read,
        "units": progress.units,
        "retries": progress.retries,
        "lost_workers": progress.lost,
        "commits": progress.commits,
        "workers": len(progress.workers),
        "slowest": [
            {
                "worker": worker.worker,
                "host": worker.host,
                "device": worker.device,
                "images": worker.images,
                "images_per_s": round(worker.images_per_s, 3),
                "in_flight": worker.in_flight,
                "rss_mb": round(worker.rss_bytes / 2**20),
                "longest": _longest(worker),
            }
            for worker in slowest
        ],
    }


def _longest(worker: WorkerStatus) -> dict[str, Any] | None:
    """Return the stage and the seconds of the oldest image in flight; None without one."""
    if worker.longest is None:
        return None
    stage, seconds = worker.longest
    return {"stage": stage, "s": round(seconds, 1)}


def submission_id() -> str | None:
    """Return the submission id of the Ray job whose driver this process is; None without one."""
    try:
        job_config = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    except ValueError:
        return None
    job_id = job_config.get("metadata", {}).get("job_submission_id") if isinstance(job_config, dict) else None
    return job_id if isinstance(job_id, str) else None
