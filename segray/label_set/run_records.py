"""The folder `_segray/` of a label set: identity, runs, names of staged files.

Knows the paths and contents of records. Knows nothing of images, Ray or the inside of models.

    ROOT/_segray/label_set.json                       written once, checked by every run
    ROOT/_segray/lease.json                           the run that works here (lease.py)
    ROOT/_segray/left_over.json                       images that storage withheld until the end of the last run
    ROOT/_segray/index/                               positions of the images in shards (sources/shard_index.py)
    ROOT/_segray/runs/RUN_ID/run.json                 the run's record, rewritten during the run
    ROOT/_segray/runs/RUN_ID/report.html              a web page: live during the run, then its report
    ROOT/_segray/runs/RUN_ID/plan/                    the frozen plan (plan.py)
    ROOT/_segray/runs/RUN_ID/staged/                  finished tasks that are not yet visible
    ROOT/_segray/runs/RUN_ID/events/                  events of the scheduler (execution/event_log.py)
    ROOT/_segray/runs/RUN_ID/batches/                 inputs and changes of batches (batches.py)
"""

from __future__ import annotations

import json
import re
import secrets
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from typing import Any

from segray.errors import LabelSetError
from segray.label_set import schema
from segray.label_set.current_pointer import CURRENT
from segray.storage.store import Store
from segray.storage.uris import join
from segray.storage.uris import name as base_name
from segray.tasks import Task


@dataclass(frozen=True)
class LabelSetIdentity:
    """The identity of a label set: its model, and everything else that changes the model's answers."""

    fingerprint: str
    model: Mapping[str, Any]
    classes: tuple[tuple[int, str, str], ...]  # category id, name, partition value

    def as_json(self) -> dict[str, Any]:
        """Return the content of label_set.json."""
        return {
            "schema_version": schema.VERSION,
            "fingerprint": self.fingerprint,
            "model": dict(self.model),
            "classes": [{"id": class_id, "name": name, "slug": value} for class_id, name, value in self.classes],
        }


def check(store: Store, root: str, identity: LabelSetIdentity) -> bool:
    """Return whether `root` is this identity's label set already, False for no label set. Write nothing.

    Raises LabelSetError when the root belongs to another model, thresholds, class list or schema version.
    """
    if base_name(root.rstrip("/")) == CURRENT:
        raise LabelSetError(
            "CURRENT is not a label set; CURRENT names one",
            where=root,
            hint="set `output.root` to the label set's own folder",
        )
    uri, expected = join(root, "_segray", "label_set.json"), identity.as_json()
    try:
        stored = _load(store.read(uri), uri)
    except FileNotFoundError:
        return False
    if stored.get("schema_version") != schema.VERSION:
        raise LabelSetError(
            "the output root was written with another schema version",
            where=root,
            found=f"version {stored.get('schema_version')}, this segray writes {schema.VERSION}",
            hint="set `output.root` to a new folder",
        )
    if stored.get("fingerprint") != identity.fingerprint or _names(stored) != _names(expected):
        raise LabelSetError(
            "the output root belongs to another model",
            where=root,
            found=_difference(stored, json.loads(json.dumps(expected))),
            hint="label into a new folder (OUTPUT, `output.root`), or undo the change; `segray promote` makes a "
            "complete label set the one that readers of PARENT/CURRENT read",
        )
    return True


def create_or_check(store: Store, root: str, identity: LabelSetIdentity) -> None:
    """Create the record that makes `root` this identity's label set, or check the record. Raises as `check` does."""
    if not check(store, root, identity):
        store.create(join(root, "_segray", "label_set.json"), _dump(identity.as_json()))
        check(store, root, identity)


def partition_values(store: Store, root: str) -> dict[str, str]:
    """Return the partition values that the label set records, by class name; {} without label_set.json."""
    uri = join(root, "_segray", "label_set.json")
    try:
        record = _load(store.read(uri), uri)
    except FileNotFoundError:
        return {}
    return {str(entry["name"]): str(entry["slug"]) for entry in record.get("classes") or ()}


def _names(record: Mapping[str, Any]) -> Any:
    """Return id and name of each class. Earlier versions of segray gave other partition values to some names."""
    return [(entry.get("id"), entry.get("name")) for entry in record.get("classes") or ()]


def _difference(stored: Mapping[str, Any], expected: Mapping[str, Any], most: int = 12) -> str:
    """Return the differences of two records in model and classes, as `key: old -> new`.

    most: most differences to name.
    """
    old, new = _flat_record(stored), _flat_record(expected)
    changes = [
        f"{key}: {_shown(old.get(key))} -> {_shown(new.get(key))}"
        for key in sorted(old.keys() | new.keys(), key=_place)
        if old.get(key) != new.get(key)
    ]
    if len(changes) > most:
        changes[most:] = [f"and {len(changes) - most} more"]
    return "; ".join(changes) or "another fingerprint"


def _place(key: str) -> tuple[bool, bool, str]:
    """Return the place of a key among differences: the name first, what a file says of itself last."""
    return key.startswith("model.description."), key != "model.name", key


def _flat_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the model and the names of the classes, by one key each."""
    classes = {f"class {entry['id']}": entry["name"] for entry in record.get("classes") or ()}
    return _flat(record.get("model") or {}, "model.") | classes


def _flat(section: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in section.items():
        values |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return values


def _shown(value: Any) -> str:
    return "none" if value is None else repr(value)


@dataclass(frozen=True)
class Run:
    """One run's folder. Sorting by `id` sorts runs by time of creation."""

    root: str
    id: str

    @property
    def folder(self) -> str:
        """Return the URI of the run's folder."""
        return join(self.root, "_segray", "runs", self.id)

    @property
    def staged(self) -> str:
        """Return the URI of the folder of staged files."""
        return join(self.folder, "staged")

    @property
    def page(self) -> str:
        """Return the URI of the run's web page."""
        return join(self.folder, "report.html")

    def save(self, store: Store, record: Mapping[str, Any]) -> None:
        """Write run.json anew."""
        store.put(join(self.folder, "run.json"), _dump({"run_id": self.id, **record}))

    def record(self, store: Store) -> dict[str, Any]:
        """Return the content of run.json. Raises FileNotFoundError for a run without one."""
        uri = join(self.folder, "run.json")
        return _load(store.read(uri), uri)


def new_run(root: str, now: datetime | None = None) -> Run:
    """Return a run with a fresh id: UTC time of creation in microseconds, and four random bytes."""
    stamp = (now or datetime.now(UTC)).strftime("%Y%m%dT%H%M%S.%fZ")
    return Run(root, f"{stamp}-{secrets.token_hex(4)}")


def unfinished(store: Store, root: str) -> Run | None:
    """Return the latest run, if it is not done; None otherwise.

    Runs without a record are skipped. A run gets its record once its plan is frozen.
    """
    for name in reversed(store.names(join(root, "_segray", "runs"))):
        run = Run(root, name.rstrip("/"))
        try:
            state = run.record(store).get("state")
        except FileNotFoundError:
            continue
        return run if state != "done" else None
    return None


def latest_run(store: Store, root: str) -> Run | None:
    """Return the latest run that has a record; None without one."""
    for name in reversed(store.names(join(root, "_segray", "runs"))):
        if store.exists(join(root, "_segray", "runs", name, "run.json")):
            return Run(root, name)
    return None


def source_store(store: Store, root: str) -> Store:
    """Return the store that reaches the images of the latest run: `store`, unless the run had a `source.storage`."""
    run = latest_run(store, root)
    recorded = None if run is None else run.record(store).get("source_storage")
    if recorded is None:
        return store
    return Store(replace(store.options, **recorded))


# ---- images that are left over --------------------------------------------------------------------

_MOST_LEFT_OVER = 100_000


def left_over(store: Store, root: str) -> dict[str, str]:
    """Return the images that storage withheld until the end of the last run: the last error of each image, by key."""
    uri = join(root, "_segray", "left_over.json")
    try:
        return dict(_load(store.read(uri), uri).get("images", {}))
    except FileNotFoundError:
        return {}


def save_left_over(store: Store, root: str, images: Mapping[str, str]) -> None:
    """Write the images that `left_over` returns, at most _MOST_LEFT_OVER of them."""
    kept = dict(islice(images.items(), _MOST_LEFT_OVER))
    store.put(join(root, "_segray", "left_over.json"), _dump({"count": len(images), "images": kept}))


# ---- staged files ---------------------------------------------------------------------------------

_STAGED = re.compile(r"u(\d+)\.(\d+)-(\d+)\.a(\d+)\.[0-9a-f]+\.arrow")


def staged_name(task: Task) -> str:
    """Return a file name for a finished task, unique to this attempt."""
    return f"u{task.unit:08d}.{task.start:06d}-{task.stop:06d}.a{task.attempt}.{secrets.token_hex(6)}.arrow"


def staged_task(name: str) -> Task | None:
    """Return the task in the name of a staged file, None for any other name."""
    match = _STAGED.fullmatch(name)
    if match is None:
        return None
    unit, start, stop, attempt = (int(number) for number in match.groups())
    return Task(unit, start, stop, attempt)


def select_staged(names: Iterable[str], first: Container[str] = ()) -> dict[Task, str]:
    """Return the tasks and names of staged files that together hold each image at most once.

    Files in `first` have priority, because an interrupted batch was made of them. The other files are chosen in the
    order of their first image. Of files with the same first image, larger files come first, then earlier attempts.
    """
    tasks = [(task, name) for name in names if (task := staged_task(name)) is not None]
    tasks.sort(key=lambda item: (item[1] not in first, item[0].start, -item[0].stop, item[0].attempt, item[1]))
    selected: dict[Task, str] = {}
    images_of_unit: defaultdict[int, int] = defaultdict(int)  # the selected images of each unit, a bit for each image
    for task, name in tasks:
        images = ((1 << len(task)) - 1) << task.start
        if not images_of_unit[task.unit] & images:
            selected[task] = name
            images_of_unit[task.unit] |= images
    return selected


def _dump(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, indent=2, sort_keys=True) + "\n").encode()


def _load(data: bytes, uri: str) -> dict[str, Any]:
    try:
        record = json.loads(data)
    except ValueError as exc:
        raise LabelSetError("a record of the label set is not valid JSON", where=uri, found=str(exc)) from exc
    if not isinstance(record, dict):
        raise LabelSetError("a record of the label set is not a JSON object", where=uri, found=type(record).__name__)
    return record
