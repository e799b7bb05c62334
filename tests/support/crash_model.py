"""A world in which processes die, writes are refused, answers are lost and runs race; and who judges it.

The model: label() runs in this process, its one worker and what storage does abreast on the caller's thread, so that
a history is a plain sequence of writes. A write is a Store.put, create or delete, the creation of a table, or a Delta
commit. Each process has a plan: what happens at its k-th write. A process that died writes nothing more. After every
write that took effect the judge looks at what readers of the log can see then.

Knows writes and invariants; knows nothing of which histories are worth trying.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import Any, ClassVar, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from deltalake.transaction import create_table_with_add_actions
from watchers import Notes

from segray.config import Config
from segray.errors import InfrastructureError, LastingError
from segray.execution import run
from segray.execution.events import PoolEvent, TaskFailed, TaskFinished, WorkerJoined, WorkerLost
from segray.execution.staging import ImageOutcome, stage
from segray.execution.worker_spec import WorkerSpec
from segray.instances import ImageFailure, ImageRef, Instances
from segray.label_set import delta_log
from segray.models import engine, resolve
from segray.storage import retry
from segray.storage import store as storage
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import join
from segray.tasks import Progress, Task, TaskReport

# ---- what can happen ------------------------------------------------------------------------------


class Died(BaseException):
    """The process ended here."""


class WorkerDied(Died):
    """Like this, but where a worker writes it ends the worker alone."""


class Fault(Enum):
    """What becomes of one write."""

    DIES_BEFORE = "the process dies just before"
    DIES_AFTER = "the process dies just after"
    REFUSED = "storage refuses"
    UNANSWERED = "it takes effect, but the answer is lost"
    WORKER_DIES = "the worker dies just after; the driver, if it is the driver's write"


@dataclass(frozen=True)
class Race:
    """Another process runs the same command to its end, by its own plan, just before this write."""

    plan: Plan = field(default_factory=dict)


Plan = Mapping[int, Fault | Race]


@dataclass
class _Process:
    judge: Judge
    plan: Plan
    writes: int = 0
    dead: bool = False


# ---- the world ------------------------------------------------------------------------------------


class World:
    """Storage and the processes that write to it. points: what happened at which kind of write, how often.

    always: images that the source lists whatever happens to others. broken: images that cannot be decoded at present.
    """

    def __init__(self, patch: pytest.MonkeyPatch, always: frozenset[str] = frozenset()) -> None:
        self.always = always
        self.broken: frozenset[str] = frozenset()
        self.points: Counter[tuple[str, str]] = Counter()
        self._processes: list[_Process] = []
        self._started = 0
        self.put = Store.put  # as nobody's write
        for name in ("put", "create", "delete"):
            patch.setattr(Store, name, self._hooked(getattr(Store, name), lambda store, uri, *_: uri, _refuse_store))
        creation = self._hooked(create_table_with_add_actions, lambda uri, *_: f"{uri}/create", _refuse_delta)
        patch.setattr(delta_log, "create_table_with_add_actions", creation)
        commit = self._hooked(DeltaTable.create_write_transaction, _commit_uri, _refuse_delta)
        patch.setattr(DeltaTable, "create_write_transaction", commit)
        for module, name in ((engine, "signature"), (resolve, "resolve")):
            patch.setattr(module, name, cache(getattr(module, name)))
        patch.setattr(os, "fsync", lambda _: None)  # Power cuts are not in this model.
        patch.setattr(retry, "sleep", lambda _: None)
        patch.setattr(storage, "ThreadPoolExecutor", Inline)

    def label(self, config: Config, plan: Plan | None = None) -> int:
        """One process runs the command by its plan, to whatever end; how many writes it tried."""
        me = _Process(Judge(config, self.always), plan or {})
        self._processes.append(me)
        try:
            run.label(config, Notes(), self._workers)
        except (Died, InfrastructureError):
            assert any(isinstance(happens, Fault) for happens in me.plan.values()), "nothing was in the way of this run"
        finally:
            self._processes.pop()
        return me.writes

    def revive(self) -> None:
        """Only a worker died; its driver goes on."""
        self._processes[-1].dead = False

    def _workers(self, spec: WorkerSpec, config: Config) -> Here:
        self._started += 1
        return Here(spec, {"device": "FAKE", "precision": "f32", "host": "h" * (1 + self._started % 7)}, self)

    def _hooked(self, write: Callable[..., Any], uri_of: Callable[..., str], refuse: Callable[[], NoReturn]) -> Any:
        def hooked(*args: Any, **kwargs: Any) -> Any:
            me, uri = self._processes[-1], uri_of(*args)
            happens = None if me.dead else me.plan.get(me.writes)
            me.writes += 1
            if happens is not None:
                self.points[kind(uri), "a race" if isinstance(happens, Race) else happens.value] += 1
            if isinstance(happens, Race):
                self.label(me.judge.config, happens.plan)
            me.dead = me.dead or happens is Fault.DIES_BEFORE
            if me.dead:
                raise Died
            if happens is Fault.REFUSED:
                refuse()
            before = me.judge.before(uri)
            result = write(*args, **kwargs)
            me.judge.after(uri, before)
            me.dead = happens in (Fault.DIES_AFTER, Fault.WORKER_DIES)
            if me.dead:
                raise WorkerDied if happens is Fault.WORKER_DIES else Died
            if happens is Fault.UNANSWERED:
                refuse()
            return result

        return hooked


def _commit_uri(table: DeltaTable, *_: Any) -> str:
    return f"{table.table_uri.rstrip('/')}/commit"


def _refuse_store() -> NoReturn:
    raise InfrastructureError("storage is down", found="503")


def _refuse_delta() -> NoReturn:
    raise OSError("storage is down: 503")


def kind(uri: str) -> str:
    """Which step of a run writes this."""
    parts = uri.split("/")
    if "_segray" not in parts:
        table = "images" if "images" in parts[-2:] else "instances"
        return f"{table}: {parts[-1] if parts[-1] in ('create', 'commit') else 'data file'}"
    if parts[-2] == "batches":
        return "batch inputs" if parts[-1].endswith("inputs.json") else "batch record"
    return parts[-2] if parts[-2] in ("plan", "staged") else parts[-1]


class Inline(ThreadPoolExecutor):
    """Calls in the order in which they are submitted; those after one that failed are made all the same."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(function(*args, **kwargs))
        except BaseException as exc:
            done.set_exception(exc)
        return done


LABELS = {13: "stop sign", 44: "bottle"}


class Here:
    """One worker at a time, on the caller's thread. An image of n bytes holds n % 3 instances."""

    def __init__(self, spec: WorkerSpec, facts: Mapping[str, str], world: World) -> None:
        self._spec, self._facts, self._world = spec, facts, world
        self._events: list[PoolEvent] = [WorkerJoined("0", facts)]
        self._lives = 1

    def events(self, timeout_s: float) -> list[PoolEvent]:
        found, self._events = self._events, []
        return found

    def assign(self, worker: str, task: Task, refs: Sequence[ImageRef]) -> None:
        try:
            self._events.append(TaskFinished(worker, self._label(task, refs)))
        except InfrastructureError as exc:
            self._events.append(TaskFailed(worker, task, exc.short(), isinstance(exc, LastingError)))
        except WorkerDied:
            self._world.revive()
            self._events += [
                WorkerLost(worker, "killed", blame_images=True),
                WorkerJoined(str(self._lives), self._facts),
            ]
            self._lives += 1

    def _label(self, task: Task, refs: Sequence[ImageRef]) -> TaskReport:
        outcomes = [
            ImageOutcome(ref, task.attempt, failure=_BROKEN)
            if ref.key in self._world.broken
            else ImageOutcome(ref, task.attempt, ref.size_bytes, (2, 2), instances=_found(ref))
            for ref in refs
        ]
        rows = dict(zip(task.indices, outcomes, strict=True))
        return TaskReport(task, stage(Store(self._spec.storage), self._spec.staged, task, rows, LABELS))

    def replace(self, worker: str) -> None: ...

    def release(self, worker: str) -> None: ...

    def set_needed(self, workers: int) -> None: ...

    def call(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*args))
        return done

    def progress(self) -> Progress:
        return Progress(0)

    def close(self) -> None: ...


_BROKEN = ImageFailure("decode", "ImageError", "broken")


def _found(ref: ImageRef) -> Instances:
    n = ref.size_bytes % 3
    boxes = np.tile(np.array([0, 0, 2, 2], np.float32), (n, 1))
    return Instances(np.array([13, 44][:n], np.int32), np.ones(n, np.float32), boxes, ("04",) * n, (2, 2))


# ---- the judge ------------------------------------------------------------------------------------


Rows = list[dict[str, Any]]
_TABLES = ("instances", "images")
_OF_THE_RUN = {"batch", "run_id", "labelled_at", "attempts"}  # what may differ between histories


@dataclass(frozen=True)
class State:
    """A table as one version of its log has it: the files that make it, and the last batch in it."""

    batch: int = 0
    live: frozenset[str] = frozenset()


class Judge:
    """What readers of the log may see of one label set.

    A file that some commit named never changes, nor does a commit; so either is read once. As every commit is judged,
    what was read is all there is.
    """

    _states: ClassVar[dict[str, list[State]]] = {}
    _rows_of: ClassVar[dict[str, Rows]] = {}
    _named: ClassVar[set[str]] = set()

    def __init__(self, config: Config, always: frozenset[str] = frozenset()) -> None:
        """always: images that no run may retire."""
        self.config, self.always = config, always
        self.options = StorageOptions(**config.storage.model_dump())
        self._store = Store(self.options)
        self._folders = {name: join(config.output.root, name) for name in _TABLES}

    def before(self, uri: str) -> bytes | None:
        """The bytes that this write may not change."""
        return self._store.read(uri) if uri in self._named else None

    def after(self, uri: str, before: bytes | None) -> None:
        """This write took effect."""
        assert before is None or self._store.read(uri) == before, f"{uri} was committed, and written again"
        if uri.endswith(("/commit", "/create")):
            self._read_log(self._folders[uri.split("/")[-2]])
        if uri.endswith("/commit"):
            self._look()

    def look_anew(self) -> None:
        """The label set came to be in another way."""
        for folder in self._folders.values():
            self._read_log(folder)
        self._look()

    def _read_log(self, folder: str) -> None:
        """Add the versions that came since; version 0 is the table's creation, and each batch is one version."""
        states, log = self._states.setdefault(folder, []), join(folder, "_delta_log")
        for name in [name for name in self._store.names(log) if name.endswith(".json")][len(states) :]:
            actions = [json.loads(line) for line in self._store.read(join(log, name)).splitlines()]
            added = {join(folder, action["add"]["path"]) for action in actions if "add" in action}
            removed = {join(folder, action["remove"]["path"]) for action in actions if "remove" in action}
            ours = [action["txn"] for action in actions if action.get("txn", {}).get("appId") == delta_log.APP_ID]
            batches = [transaction["version"] for transaction in ours]
            assert batches == ([len(states)] if states else []), f"version {len(states)} is of the batches {batches}"
            live = states[-1].live if states else frozenset()
            assert removed <= live, "a file is removed that is not there"
            states.append(State(len(states), live - removed | added))
            self._named |= added

    def _look(self) -> None:
        images, instances = (self._states[self._folders[name]] for name in ("images", "instances"))
        whole, ahead = images[-1].batch, instances[-1].batch
        assert ahead - whole in (0, 1), f"instances at batch {ahead}, images at batch {whole}"
        rows, found, newest = (self._rows(state) for state in (images[-1], instances[whole], instances[-1]))
        keys = {row["image_key"] for row in rows}
        assert len(keys) == len(rows), "an image has two rows"
        counted = Counter(row["image_key"] for row in found)
        assert {row["image_key"]: row["n_instances"] for row in rows if row["n_instances"]} == counted
        for each, last in ((rows, whole), (found, whole), (newest, ahead)):
            assert all(1 <= row["batch"] <= last for row in each)
            assert len({(row["image_key"], row.get("instance")) for row in each}) == len(each), "a row is there twice"
        lost = {row["image_key"] for row in self._rows(images[max(0, whole - 1)])} - keys
        assert not lost & self.always, "the rows of images that were always listed are gone"
        assert not lost or self.config.source.deleted == "retire"

    def _rows(self, state: State) -> Rows:
        return [row for uri in sorted(state.live) for row in self._read(uri)]

    def _read(self, uri: str) -> Rows:
        if uri not in self._rows_of:
            self._rows_of[uri] = pq.ParquetFile(pa.BufferReader(self._store.read(uri))).read().to_pylist()
        return self._rows_of[uri]

    def rows(self) -> dict[str, Rows]:
        """Both tables, without what tells one run from another."""
        found = {}
        for name, folder in self._folders.items():
            rows = [
                {key: value for key, value in row.items() if key not in _OF_THE_RUN}
                for row in self._rows(self._states[folder][-1])
            ]
            found[name] = sorted(rows, key=lambda row: (row["image_key"], row.get("instance", 0)))
        return found

    def orphans(self) -> set[str]:
        """Data files in the table folders that no commit ever named: a plain glob reads them, and counts twice."""
        there = {entry.uri for folder in self._folders.values() for entry in self._store.list(folder)}
        return {uri for uri in there if uri.endswith(".parquet") and "_delta_log" not in uri} - self._named
