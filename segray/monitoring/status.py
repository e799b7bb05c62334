"""How the latest run of a label set stands, told from its records alone, from any machine.

Knows run.json and heartbeat.json and what their ages mean; knows nothing of Ray, and changes nothing.

Two machines' clocks differ, so age alone proves nothing: a run that looks dead is watched for two beats first, and one
new beat proves it alive, whatever the clocks say.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from segray.errors import InfrastructureError, LabelSetError
from segray.label_set.run_records import Run
from segray.monitoring import heartbeat
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import join

_SILENT_BEATS, _SILENT_S = 6, 60.0
# Clocks seldom differ by more; then nobody need wait for a beat.
_LONG_S = 6 * 3600.0


@dataclass(frozen=True)
class Status:
    """state: none, live, gone, or how the run says that it ended: done, interrupted, stopped or superseded.

    silent_s: since the last sign of life, by this machine's clock; None for a run that has ended. skew_s: how far this
    clock is behind the driver's at least, None if that does not show. beat: heartbeat.json, run: run.json.
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
        """0: a run is going on, or nothing is left of the last one; 3: something is, and nobody works at it."""
        return 0 if self.state in ("live", "done") else InfrastructureError.exit_code

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "exit_code": self.exit_code}


def status(
    root: str,
    options: StorageOptions,
    *,
    now: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> Status:
    """Look once; for two beats when the run may be dead. Raises LabelSetError where there is no label set."""
    store = Store(options)
    run = _latest(store, root)
    if run is None:
        return Status(root, "none", None, None, None, {}, {})
    record, beat = run.record(store), _beat(store, run)
    if (said := _said(record, beat)) is not None:
        return Status(root, said, run.id, None, None, record, beat)
    signs = [_age_s(each, now()) for each in (beat.get("at"), record.get("updated"))]
    age_s = min((each for each in signs if each is not None), default=float("inf"))
    every_s = float(beat.get("every_s", heartbeat.EVERY_S))
    skew_s = -age_s if age_s < -every_s else None
    if 0 <= age_s <= _SILENT_BEATS * every_s or (age_s > _LONG_S):
        fresh = age_s <= _SILENT_BEATS * every_s
        return Status(root, "live" if fresh else "gone", run.id, max(0.0, age_s), skew_s, record, beat)
    for _ in range(5):
        sleep(every_s / 2)
        record, new = run.record(store), _beat(store, run)
        if (said := _said(record, new)) is not None:
            return Status(root, said, run.id, None, None, record, new)
        if new.get("beat") != beat.get("beat") or new.get("at") != beat.get("at"):
            return Status(root, "live", run.id, 0.0, skew_s, record, new)
    # No beat came while somebody looked. A long commit or a throttled store may keep one back for a while.
    gone = skew_s is not None or age_s > _SILENT_S
    return Status(root, "gone" if gone else "live", run.id, max(0.0, age_s), skew_s, record, beat)


def _latest(store: Store, root: str) -> Run | None:
    """The run that was begun last, of those that have a record."""
    for name in reversed(store.names(join(root, "_segray", "runs"))):
        if store.exists(join(root, "_segray", "runs", name, "run.json")):
            return Run(root, name)
    if not store.exists(join(root, "_segray", "label_set.json")):
        raise LabelSetError(
            "there is no label set here",
            where=root,
            found="no _segray/label_set.json",
            hint="give the output.root of a run; for an object store that is not AWS's also --endpoint-url",
        )
    return None


def _said(record: Mapping[str, Any], beat: Mapping[str, Any]) -> str | None:
    """How the run says that it ended; None if that must be judged by signs of life.

    A resumed run's record says how its former driver ended until it commits; its heartbeat is the new driver's.
    """
    state = str(record.get("state"))
    if state == "done" or (state != "running" and beat.get("ended", True)):
        return state
    return "gone" if beat.get("ended") else None


def _beat(store: Store, run: Run) -> dict[str, Any]:
    try:
        found = json.loads(store.read(heartbeat.uri_of(run)))
    except FileNotFoundError:
        return {}
    except ValueError as exc:
        raise LabelSetError(
            "a heartbeat is not valid JSON", where=heartbeat.uri_of(run), found=str(exc), hint="remove it"
        ) from exc
    return found if isinstance(found, dict) else {}


def _age_s(stamp: Any, now_s: float) -> float | None:
    try:
        return now_s - datetime.fromisoformat(str(stamp)).astimezone(UTC).timestamp()
    except ValueError:
        return None
