"""A world in which processes die, writes are refused, answers are lost and runs race; and who judges it.

The model: label() runs in this process, its one worker on the caller's thread, so that a history is a plain
sequence of writes. A write is a Store.put, create or delete, the creation of a table, or a Delta commit. Each
process has a plan: what happens at its k-th write. A process that died writes nothing more. After every write
that took effect the judge looks at what readers of the log can see then.

Knows writes and invariants; knows nothing of which histories are worth trying.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import Any, ClassVar, NoReturn

import numpy as np
import pytest
from deltalake import DeltaTable
from deltalake.transaction import create_table_with_add_actions
from watchers import Notes

from segray import publish, run, runtime, storage, zoo
from segray.config import Config
from segray.errors import WorldError
from segray.instances import ImageRef, Instances, Progress, Task, UnitReport
from segray.label import Outcome, Recipe, report, stage
from segray.storage import StorageOptions, Store, join
from segray.tables import open_table, table_uri
from segray.workers import Event, Failed, Finished, Joined, Lost

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
    """Storage and the processes that write to it. points: what happened at which kind of write, how often."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.points: Counter[tuple[str, str]] = Counter()
        self._processes: list[_Process] = []
        self._started = 0
        for name in ("put", "create", "delete"):
            patch.setattr(Store, name, self._hooked(getattr(Store, name), lambda store, uri, *_: uri, _refuse_store))
        creation = self._hooked(create_table_with_add_actions, lambda uri, *_: f"{uri}/create", _refuse_delta)
        patch.setattr(publish, "create_table_with_add_actions", creation)
        commit = self._hooked(DeltaTable.create_write_transaction, _commit_uri, _refuse_delta)
        patch.setattr(DeltaTable, "create_write_transaction", commit)
        for module, name in ((runtime, "signature"), (zoo, "resolve")):
            patch.setattr(module, name, cache(getattr(module, name)))
        patch.setattr(os, "fsync", lambda _: None)  # Power cuts are not in this model.
        patch.setattr(storage, "sleep", lambda _: None)

    def label(self, config: Config, plan: Plan | None = None) -> int:
        """One process runs the command by its plan, to whatever end; how many writes it tried."""
        me = _Process(Judge(config), plan or {})
        self._processes.append(me)
        try:
            run.label(config, Notes(), self._workers)
        except (Died, WorldError):
            assert any(isinstance(happens, Fault) for happens in me.plan.values()), "nothing was in the way of this run"
        finally:
            self._processes.pop()
        return me.writes

    def revive(self) -> None:
        """Only a worker died; its driver goes on."""
        self._processes[-1].dead = False

    def _workers(self, recipe: Recipe, config: Config) -> Here:
        self._started += 1
        return Here(recipe, {"device": "FAKE", "precision": "f32", "host": "h" * (1 + self._started % 7)}, self)

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
    raise WorldError("storage is down", found="503")


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


LABELS = {13: "stop sign", 44: "bottle"}


class Here:
    """One worker at a time, on the caller's thread. An image of n bytes holds n % 3 instances."""

    def __init__(self, recipe: Recipe, facts: Mapping[str, str], world: World) -> None:
        self._recipe, self._facts, self._world = recipe, facts, world
        self._events: list[Event] = [Joined("0", facts)]
        self._lives = 1

    def events(self, timeout_s: float) -> list[Event]:
        found, self._events = self._events, []
        return found

    def assign(self, worker: str, task: Task, refs: Sequence[ImageRef]) -> None:
        try:
            self._events.append(Finished(worker, self._label(task, refs)))
        except WorldError as exc:
            self._events.append(Failed(worker, task, exc))
        except WorkerDied:
            self._world.revive()
            self._events += [Lost(worker, "killed", blame_images=True), Joined(str(self._lives), self._facts)]
            self._lives += 1

    def _label(self, task: Task, refs: Sequence[ImageRef]) -> UnitReport:
        outcomes = [Outcome(ref, task.attempt, ref.size_bytes, (2, 2), instances=_found(ref)) for ref in refs]
        name = stage(Store(self._recipe.storage), self._recipe.staged, task, outcomes, LABELS)
        return report(task, name, outcomes, {})

    def retire(self, worker: str) -> None: ...

    def release(self, worker: str) -> None: ...

    def need(self, workers: int) -> None: ...

    def call(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(function(*args))
        return done

    def progress(self) -> Progress:
        return Progress(0)

    def close(self) -> None: ...


def _found(ref: ImageRef) -> Instances:
    n = ref.size_bytes % 3
    boxes = np.tile(np.array([0, 0, 2, 2], np.float32), (n, 1))
    return Instances(np.array([13, 44][:n], np.int32), np.ones(n, np.float32), boxes, ("04",) * n, (2, 2))


# ---- the judge ------------------------------------------------------------------------------------


Rows = list[dict[str, Any]]
_TABLES = ("instances", "images")
_OF_THE_RUN = {"batch", "run_id", "labelled_at", "attempts"}  # what may differ between histories


class Judge:
    """What readers of the log may see of one label set.

    A file that some commit named never changes, so what they see changes with commits alone.
    """

    _seen: ClassVar[dict[tuple[str, str, int], Rows]] = {}

    def __init__(self, config: Config) -> None:
        self.config = config
        self.options = StorageOptions(**config.storage.model_dump())
        self._store = Store(self.options)

    def before(self, uri: str) -> bytes | None:
        """The bytes that this write may not change."""
        return self._store.read(uri) if uri.endswith(".parquet") and uri in self.named() else None

    def after(self, uri: str, before: bytes | None) -> None:
        """This write took effect."""
        assert before is None or self._store.read(uri) == before, f"{uri} was committed, and written again"
        if uri.endswith("/commit"):
            self._look()

    def _look(self) -> None:
        ahead, whole = publish.batch_numbers(self.config.output.root, self.options)
        assert ahead - whole in (0, 1), f"instances at batch {ahead}, images at {whole}"
        images, instances = self._snapshot("images", whole), self._snapshot("instances", whole)
        counted = Counter(row["image_key"] for row in instances)
        assert len({row["image_key"] for row in images}) == len(images), "an image has two rows"
        assert {row["image_key"]: row["n_instances"] for row in images if row["n_instances"]} == counted
        for rows, newest in ((images, whole), (instances, whole), (self._snapshot("instances", ahead), ahead)):
            assert all(1 <= row["batch"] <= newest for row in rows)
            assert len({(row["image_key"], row.get("instance")) for row in rows}) == len(rows), "a row is there twice"

    def _snapshot(self, name: str, batch: int) -> Rows:
        """The table as batch `batch` left it: version 0 is its creation, and each batch is one version."""
        root = self.config.output.root
        if (root, name, batch) not in self._seen:
            storage_options = self._store.delta_options(root) or None
            table = DeltaTable(table_uri(root, name), version=batch, storage_options=storage_options)
            assert (table.transaction_version(publish.APP_ID) or 0) == batch
            self._seen[root, name, batch] = table.to_pyarrow_dataset().to_table().to_pylist()
        return self._seen[root, name, batch]

    def rows(self) -> dict[str, Rows]:
        """Both tables, without what tells one run from another."""
        found = {}
        for name in _TABLES:
            table = open_table(self.config.output.root, name, self.options)
            assert table is not None
            rows = [
                {key: value for key, value in row.items() if key not in _OF_THE_RUN}
                for row in table.to_pyarrow_dataset().to_table().to_pylist()
            ]
            found[name] = sorted(rows, key=lambda row: (row["image_key"], row.get("instance", 0)))
        return found

    def orphans(self) -> set[str]:
        """Data files in the table folders that no commit ever named: a plain glob reads them, and counts twice."""
        root = self.config.output.root
        there = {entry.uri for name in _TABLES for entry in self._store.list(join(root, name))}
        return {uri for uri in there if uri.endswith(".parquet") and "_delta_log" not in uri} - self.named()

    def named(self) -> set[str]:
        """The data files that the log has ever added."""
        found = set()
        for folder in (join(self.config.output.root, name) for name in _TABLES):
            log = join(folder, "_delta_log")
            for version in (name for name in self._store.names(log) if name.endswith(".json")):
                actions = [json.loads(line) for line in self._store.read(join(log, version)).splitlines()]
                found |= {join(folder, action["add"]["path"]) for action in actions if "add" in action}
        return found
