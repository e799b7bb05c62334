"""The heartbeat of a running driver: a small object beside the run's record, rewritten every few seconds.

Knows the content, and how to write it without slowing or failing the run. status.py judges the heartbeat. The heartbeat
is a file of its own, since the event loop writes run.json and a thread writes the heartbeat. Neither may undo what the
other wrote.

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
from segray.execution.progress import ProgressListener, RunProgress
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import join

if TYPE_CHECKING:
    from segray.label_set.run_records import Run

EVERY_S = 5.0
_TIMEOUT_S, _FAREWELL_S = 10.0, 5.0
_SHOWN_WORKERS = 20


def uri_of(run: Run) -> str:
    """Return the URI of a run's heartbeat."""
    return join(run.folder, "heartbeat.json")


class HeartbeatWriter(ProgressListener):
    """A thread that writes the latest progress of a run.

    The writer counts each heartbeat that fails, tells of the first one in a row, and tries the next one.

    note: receives messages, from the writer's thread.
    every_s: seconds between two heartbeats.
    live: turns a heartbeat into a web page, which is written beside it; None for no page.
    """

    def __init__(
        self,
        options: StorageOptions,
        note: Callable[[str], None],
        every_s: float = EVERY_S,
        live: Callable[[Mapping[str, Any]], str] | None = None,
    ) -> None:
        self._options = replace(options, retries=0, timeout_s=min(options.timeout_s, _TIMEOUT_S))
        self._note, self._every_s, self._live = note, every_s, live
        self._latest: RunProgress | None = None
        self._news, self._ended = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self.beats = self.missed = 0

    def beat(self, vitals: RunProgress) -> None:
        self._latest = vitals
        self._news.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._go, name="heartbeat", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Write a last heartbeat that says so, if storage answers in time."""
        self._ended.set()
        self._news.set()
        if self._thread is not None:
            self._thread.join(_FAREWELL_S)

    def _go(self) -> None:
        store = Store(self._options)
        failing = False
        while not self._ended.is_set():
            self._news.wait()
            self._news.clear()
            if self._latest is not None and not self._ended.is_set():
                failing = self._write(store, self._latest, failing)
            self._ended.wait(self._every_s)
        if self._latest is not None:
            self._write(store, self._latest, failing)

    def _write(self, store: Store, vitals: RunProgress, failing: bool) -> bool:
        """Write a heartbeat, and return whether the write failed. failing: whether the one before failed."""
        try:
            told = self._record(vitals)
            store.put(uri_of(vitals.run), (json.dumps(told) + "\n").encode())
            if self._live is not None:
                store.put(vitals.run.page, self._live(told).encode())
        except Exception as exc:  # The run goes on without a heartbeat, and a note says so.
            self.missed += 1
            if not failing:
                why = f"{exc.what} ({exc.found or exc.where})" if isinstance(exc, SegrayError) else repr(exc)
                self._note(f"the heartbeat cannot be written, the run goes on: {why}")
            return True
        if failing:
            self._note(f"the heartbeat is written again, after {self.missed} that were not")
        self.beats += 1
        return False

    def _record(self, vitals: RunProgress) -> dict[str, Any]:
        return {
            "run_id": vitals.run.id,
            "beat": self.beats,
            "missed": self.missed,
            "ended": self._ended.is_set(),
            "every_s": self._every_s,
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "driver": {"host": platform.node(), "pid": os.getpid(), "job": submission_id()},
            **record(vitals),
        }


def record(vitals: RunProgress) -> dict[str, Any]:
    """Return the progress for a program, with the 20 slowest workers."""
    tally = vitals.counters
    slowest = sorted(vitals.workers, key=lambda each: (each.images_per_s, each.worker))[:_SHOWN_WORKERS]
    return {
        "phase": vitals.phase,
        "images": vitals.images,
        "done": vitals.done,
        "waiting": vitals.waiting,
        "in_flight": vitals.in_flight,
        "images_per_s": round(vitals.images_per_s, 3),
        "eta_s": None if vitals.eta_s is None else round(vitals.eta_s, 1),
        "labelled": {name: getattr(tally, name) for name in ("ok", "empty", "failed", "instances")},
        "bytes_read": tally.bytes_read,
        "units": vitals.units,
        "retries": vitals.retries,
        "lost_workers": vitals.lost,
        "commits": vitals.commits,
        "workers": len(vitals.workers),
        "slowest": [
            {
                "worker": each.worker,
                "host": each.host,
                "device": each.device,
                "images": each.images,
                "images_per_s": round(each.images_per_s, 3),
                "in_flight": each.in_flight,
                "rss_mb": round(each.rss_bytes / 2**20),
                "longest": None if each.longest is None else {"stage": each.longest[0], "s": round(each.longest[1], 1)},
            }
            for each in slowest
        ],
    }


def submission_id() -> str | None:
    """Return the submission id of the Ray job whose driver this process is; None without one."""
    try:
        told = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}"))
    except ValueError:
        return None
    found = told.get("metadata", {}).get("job_submission_id") if isinstance(told, dict) else None
    return found if isinstance(found, str) else None
