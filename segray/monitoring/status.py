"""The state of the latest run of a label set, read from its records on any machine.

Knows run.json and heartbeat.json, and the meaning of their ages. Knows nothing of Ray, and changes nothing.

The clocks of two machines differ, so age alone proves nothing. A run that looks dead is watched for two heartbeats. One
new heartbeat proves that the run is alive, whatever the clocks show.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from segray.errors import InfrastructureError, LabelSetError
from segray.label_set import run_records
from segray.label_set.run_records import Run
from segray.monitoring import heartbeat
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import join

_SILENT_BEATS, _SILENT_S = 6, 60.0
# Clocks seldom differ by more. A run with an older heartbeat is dead without a further look.
_MAX_CLOCK_DIFFERENCE_S = 6 * 3600.0


@dataclass(frozen=True)
class Status:
    """The state of the latest run of a label set.

    root: the label set.
    state: none, live or gone; or the recorded end: done, interrupted, stopped or superseded.
    run_id: the latest run; None for a label set without one.
    silent_s: seconds since the last heartbeat or record, by the clock of this machine; None for a run that has ended.
    skew_s: smallest number of seconds by which this clock is behind the driver's; None if no difference shows.
    run: content of run.json.
    beat: content of heartbeat.json.
    """

    root: str
    state: str
    run_id: str | None
    silent_s: float | None
    skew_s: float | None
    run: Mapping[str, Any]
    beat: Mapping[str, Any]

    @property
    def exit_code(self) -> int:
        """Return 0 when a run is live or the last run is done, else 3.

        3: images are left to label and no driver is running. So it is without a run too: a driver that dies while it
        plans its first run leaves a label set without one.
        """
        return 0 if self.state in ("live", "done") else InfrastructureError.exit_code

    def as_json(self) -> dict[str, Any]:
        """Return the fields and the exit code for a program."""
        return {**asdict(self), "exit_code": self.exit_code}


def status(
    root: str,
    options: StorageOptions,
    *,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> Status:
    """Return the state of the latest run. Read the heartbeat once, or watch for two heartbeats if the run may be dead.

    Args:
        root: the label set.
        options: access to storage.
        now: returns the time in seconds since 1970.
        sleep: waits for a number of seconds.

    Raises:
        LabelSetError: root holds no label set, or a heartbeat is not valid JSON.
    """
    store = Store(options)
    run = _latest_run(store, root)
    if run is None:
        return Status(root, "none", None, None, None, {}, {})
    record, beat = run.record(store), _read_heartbeat(store, run)
    if (end := _recorded_end(record, beat)) is not None:
        return Status(root, end, run.id, None, None, record, beat)
    ages_s = [_age_s(stamp, now()) for stamp in (beat.get("at"), record.get("updated"))]
    age_s = min((known_age_s for known_age_s in ages_s if known_age_s is not None), default=float("inf"))
    every_s = float(beat.get("every_s", heartbeat.EVERY_S))
    skew_s = -age_s if age_s < -every_s else None
    if 0 <= age_s <= _SILENT_BEATS * every_s:
        return Status(root, "live", run.id, age_s, skew_s, record, beat)
    if age_s > _MAX_CLOCK_DIFFERENCE_S:
        return Status(root, "gone", run.id, age_s, skew_s, record, beat)
    for _ in range(5):
        sleep(every_s / 2)
        record, new_beat = run.record(store), _read_heartbeat(store, run)
        if (end := _recorded_end(record, new_beat)) is not None:
            return Status(root, end, run.id, None, None, record, new_beat)
        if new_beat.get("beat") != beat.get("beat") or new_beat.get("at") != beat.get("at"):
            return Status(root, "live", run.id, 0.0, skew_s, record, new_beat)
    # No heartbeat came meanwhile. A long commit or a throttled store may delay one.
    is_gone = skew_s is not None or age_s > _SILENT_S
    return Status(root, "gone" if is_gone else "live", run.id, max(0.0, age_s), skew_s, record, beat)


def _latest_run(store: Store, root: str) -> Run | None:
    """Return the latest run that has a record; None without one. Raise LabelSetError without a label set."""
    run = run_records.latest_run(store, root)
    if run is None and not store.exists(join(root, "_segray", "label_set.json")):
        raise LabelSetError(
            "there is no label set here",
            where=root,
            found="no _segray/label_set.json",
            hint="Give the `output.root` of a run. For an object store other than AWS, give --endpoint-url too.",
        )
    return run


def _recorded_end(record: Mapping[str, Any], beat: Mapping[str, Any]) -> str | None:
    """Return the end that the run recorded; None if the run recorded no end.

    The record of a resumed run states the end of the former driver until the new driver commits. The heartbeat is
    already the new driver's.
    """
    state = str(record.get("state"))
    if state == "done" or (state != "running" and beat.get("ended", True)):
        return state
    return "gone" if beat.get("ended") else None


def _read_heartbeat(store: Store, run: Run) -> dict[str, Any]:
    """Return the content of heartbeat.json; empty without the file."""
    try:
        beat = json.loads(store.read(heartbeat.uri_of(run)))
    except FileNotFoundError:
        return {}
    except ValueError as exc:
        raise LabelSetError(
            "a heartbeat is not valid JSON", where=heartbeat.uri_of(run), found=str(exc), hint="Delete this file."
        ) from exc
    return beat if isinstance(beat, dict) else {}


def _age_s(stamp: Any, now_s: float) -> float | None:
    try:
        return now_s - datetime.fromisoformat(str(stamp)).astimezone(UTC).timestamp()
    except ValueError:
        return None
