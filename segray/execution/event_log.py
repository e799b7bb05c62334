"""The event log: the scheduler's input, stored in the run's folder so that the run can be replayed.

Knows events as lines of JSON, and the files that hold them. Knows nothing of the meaning of events.

    RUN/events/20261129T120000.000000Z-00001.jsonl.gz     one series of files for each process that worked on the run

The first line of a series has the scheduler's tasks and policy. Each other line is an event with its time, a note with
its time, or the scheduler's state when a file was written. Notes tell what the scheduler does not know: staged files of
an earlier process, merges and commits. `python -m segray.execution.replay RUN` reads the files.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import asdict, astuple, dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, NamedTuple

from segray._system.threads import run_in_daemon_thread
from segray.errors import InfrastructureError, SegrayError, UserError
from segray.execution.events import (
    Event,
    ProgressUpdate,
    TaskFailed,
    TaskFinished,
    Tick,
    WorkerDraining,
    WorkerJoined,
    WorkerLost,
)
from segray.execution.scheduler import Policy
from segray.storage.store import Store
from segray.storage.uris import join
from segray.tasks import InFlight, Progress, Task, TaskReport, UnitReport, WithheldImage

_FLUSH_S, _FLUSH_CHARS = 20.0, 8 << 20
_FIRST_FLUSH_S = 5.0  # so that a process that is killed soon leaves a trace
_MAX_LAST_FLUSH_S = 5.0  # longest wait for storage at the end of a run


class EventLog:
    """A writer of the events of one process. When storage refuses the log, the run goes on without the log.

    store: storage of the run's folder.
    folder: folder of the run.
    tasks, policy, withheld_before: arguments of the scheduler.
    note: receives one message when the log cannot be written.
    clock: returns the time in seconds.
    """

    def __init__(
        self,
        store: Store,
        folder: str,
        tasks: Iterable[Task],
        policy: Policy,
        withheld_before: Iterable[tuple[int, int]],
        note: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        self._store, self._base, self._tell, self._clock = store, join(folder, "events", stamp), note, clock
        plain_tasks = [task.plain() for task in tasks]
        withheld = sorted(withheld_before)
        self._lines = [_dump({"policy": asdict(policy), "tasks": plain_tasks, "withheld_before": withheld})]
        self._chars, self._files, self._flushed_s = 0, 0, clock() - (_FLUSH_S - _FIRST_FLUSH_S)
        self._writing: Future[None] | None = None
        self._failed = False

    def record(self, event: Event, now_s: float) -> None:
        """Add an event that the scheduler is about to handle."""
        self._add([now_s, type(event).__name__, _event_fields(event)])

    def note(self, text: str) -> None:
        """Add a note: a step outside the scheduler."""
        self._add({"note": text, "now_s": self._clock()})

    def _add(self, value: object) -> None:
        if not self._failed:
            line = _dump(value)
            self._lines.append(line)
            self._chars += len(line)

    def flush(self, state: Callable[[], Mapping[str, object]], *, last: bool = False) -> None:
        """Write the buffered lines on another thread if they are many or old, and always at the end of the run.

        state: returns the scheduler's state, with which a replay is compared.
        last: whether the run ends. Then wait a few seconds for storage.
        """
        due = last or self._chars > _FLUSH_CHARS or self._clock() - self._flushed_s > _FLUSH_S
        if self._failed or not due:
            return
        if self._writing is not None:
            wait([self._writing], _MAX_LAST_FLUSH_S if last else 0)
            if not self._writing.done():
                return
            self._check_written(self._writing)
        self._files += 1
        data = "".join([*self._lines, _dump({"state": state()})]).encode()
        uri = f"{self._base}-{self._files:05d}.jsonl.gz"
        self._lines, self._chars, self._flushed_s = [], 0, self._clock()
        self._writing = run_in_daemon_thread(self._put, uri, data)
        if last:
            wait([self._writing], _MAX_LAST_FLUSH_S)
            if self._writing.done():
                self._check_written(self._writing)

    def _put(self, uri: str, data: bytes) -> None:
        self._store.put(uri, gzip.compress(data, 6, mtime=0))

    def _check_written(self, writing: Future[None]) -> None:
        """End the log when storage refused a file; raise any other error."""
        error = writing.exception()
        if isinstance(error, (InfrastructureError, UserError)):
            self._failed, self._lines = True, []
            self._tell(f"the event log of this run ends here, since a file cannot be written ({error.short()})")
        elif error is not None:
            raise error


# ---- reading --------------------------------------------------------------------------------------


class Note(NamedTuple):
    """A step outside the scheduler, at a time in seconds."""

    now_s: float
    text: str


@dataclass(frozen=True)
class Series:
    """The event log of one process.

    policy, tasks, withheld_before: arguments of the scheduler.
    events: yields (seconds, event) and notes in order, and a mapping where the scheduler's state was recorded.
    """

    policy: Policy
    tasks: tuple[Task, ...]
    withheld_before: frozenset[tuple[int, int]]
    events: Callable[[], Iterator[tuple[float, Event] | Note | Mapping[str, Any]]]


def read(store: Store, folder: str) -> list[Series]:
    """Return the event log of the run in `folder`, one series for each process, oldest first.

    Raises SegrayError when a file is missing or is not an event log.
    """
    names = [name for name in store.names(join(folder, "events")) if name.endswith(".jsonl.gz")]
    by_process = groupby(names, lambda name: name.rpartition("-")[0])
    return [_read_series(store, folder, list(group)) for _, group in by_process]


def _read_series(store: Store, folder: str, names: list[str]) -> Series:
    uris = [join(folder, "events", name) for name in names]
    for number, name in enumerate(names, start=1):
        if not name.endswith(f"-{number:05d}.jsonl.gz"):
            raise SegrayError("a file of the event log is missing", where=folder, found=f"{name} as file {number}")
    head = next(_lines(store, uris[:1]))

    def events() -> Iterator[tuple[float, Event] | Note | Mapping[str, Any]]:
        for line in _lines(store, uris):
            if isinstance(line, dict):
                if "state" in line:
                    yield line["state"]
                elif "note" in line:
                    yield Note(line["now_s"], line["note"])
                continue
            now_s, kind, fields = line
            yield now_s, _event(kind, fields)

    withheld = frozenset((unit, index) for unit, index in head["withheld_before"])
    return Series(Policy(**head["policy"]), tuple(map(_task, head["tasks"])), withheld, events)


def _lines(store: Store, uris: Iterable[str]) -> Iterator[Any]:
    for uri in uris:
        try:
            yield from map(json.loads, gzip.decompress(store.read(uri)).splitlines())
        except (ValueError, EOFError, gzip.BadGzipFile) as error:
            raise SegrayError("a file of the event log cannot be read", where=uri, found=str(error)) from error


# ---- events as JSON -------------------------------------------------------------------------------


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":")) + "\n"


def _event_fields(event: Event) -> Any:
    """Return the fields of an event as plain values."""
    match event:
        case ProgressUpdate(worker, progress):
            in_flight = _image_fields(progress.in_flight)
            return [worker, progress.finished, in_flight, progress.rss_bytes, progress.max_rss_bytes]
        case WorkerLost(worker, reason, blame_images, in_flight):
            return [worker, reason, blame_images, None if in_flight is None else _image_fields(in_flight)]
        case TaskFailed(worker, task, reason, lasting):
            return [worker, task.plain(), reason, lasting]
        case TaskFinished(worker, report):
            staged = [{**asdict(part), "task": part.task.plain()} for part in report.staged]
            withheld = [astuple(image) for image in report.withheld]
            return [worker, report.task.plain(), staged, withheld, report.untried]
        case WorkerJoined(worker, facts):
            return [worker, dict(facts)]
        case WorkerDraining(worker):
            return [worker]
        case Tick():
            return []


def _event(kind: str, fields: list[Any]) -> Event:
    """Return the event of these plain values; raise SegrayError for an unknown kind."""
    match kind, fields:
        case "ProgressUpdate", [worker, finished, in_flight, rss_bytes, max_rss_bytes]:
            return ProgressUpdate(worker, Progress(finished, _images(in_flight), rss_bytes, max_rss_bytes))
        case "WorkerLost", [worker, reason, blame_images, in_flight]:
            return WorkerLost(worker, reason, blame_images, None if in_flight is None else _images(in_flight))
        case "TaskFailed", [worker, task, reason, lasting]:
            return TaskFailed(worker, _task(task), reason, lasting)
        case "TaskFinished", [worker, task, staged, withheld, untried]:
            reports = tuple(UnitReport(**{**part, "task": _task(part["task"])}) for part in staged)
            images = tuple(WithheldImage(*image) for image in withheld)
            return TaskFinished(worker, TaskReport(_task(task), reports, images, tuple(untried)))
        case "WorkerJoined", [worker, facts]:
            return WorkerJoined(worker, facts)
        case "WorkerDraining", [worker]:
            return WorkerDraining(worker)
        case "Tick", []:
            return Tick()
    raise SegrayError("the event log has an event that this version of segray does not know", found=kind)


def _task(fields: list[int]) -> Task:
    unit, start, stop, attempt, *only = fields
    return Task(unit, start, stop, attempt, tuple(only))


def _image_fields(images: Iterable[InFlight]) -> list[list[Any]]:
    return [[image.unit, image.index, image.stage, image.seconds] for image in images]


def _images(fields: Iterable[list[Any]]) -> tuple[InFlight, ...]:
    return tuple(InFlight(*image) for image in fields)
