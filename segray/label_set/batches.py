"""Records of batches: the inputs of a batch, the changes of its commit, and the next batch number.

Knows the folder `batches` of a run and the batch numbers in the logs. Merges and commits nothing.

    RUN/batches/b00001-inputs.json           everything that decides the bytes of the batch's files
    RUN/batches/b00001-retired-inputs.json   the same, for a batch that only removes rows
    RUN/batches/b00001-xxxx.json             the files that the commit adds and removes, in both tables
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from segray.label_set.delta_log import Changes, DataFile, batch_of, batch_records
from segray.label_set.run_records import Run
from segray.label_set.snapshot import open_table, require_table
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import join


@dataclass(frozen=True)
class Inputs:
    """Everything that decides the content of a batch's files, and so their names.

    staged: names below the run's staged folder. facts: provenance for the metadata of each file. file_rows: most rows
    of one file. retired: parts of the run's list of rows to remove. A batch with retired parts has nothing staged.
    """

    staged: tuple[str, ...]
    facts: Mapping[str, Any]
    file_rows: int
    retired: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """A batch that is ready to commit: all its files are in place.

    images, instances: numbers of rows that the batch adds. tables: changes by table. retired: parts of the run's list
    of rows to remove. removed: number of images whose rows the batch removes.
    """

    number: int
    run_id: str
    images: int
    instances: int
    tables: Mapping[str, Changes]
    retired: tuple[str, ...] = ()
    removed: int = 0

    @property
    def replaced_files(self) -> int:
        """Return the number of files of both tables that the commit removes from the log."""
        return sum(len(changes.remove) for changes in self.tables.values())

    def dump(self) -> bytes:
        """Return the batch as the bytes of its record."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def parse(cls, data: bytes) -> Batch:
        """Return the batch from the bytes that `dump` returned."""
        raw = json.loads(data)
        tables = {
            name: Changes(*(tuple(DataFile(**file) for file in changes[kind]) for kind in ("add", "remove")))
            for name, changes in raw.pop("tables").items()
        }
        return cls(tables=tables, retired=tuple(raw.pop("retired", ())), **raw)


# ---- inputs ---------------------------------------------------------------------------------------


def write_batch_inputs(run: Run, number: int, inputs: Inputs, store: Store) -> None:
    """Write the inputs of the batch, so that a resumed run writes the same files again."""
    uri = _inputs_uri(run, number, retiring=bool(inputs.retired))
    store.put(uri, json.dumps(asdict(inputs), sort_keys=True).encode())


def read_batch_inputs(run: Run, number: int, store: Store, *, retiring: bool = False) -> Inputs | None:
    """Return the inputs of an interrupted attempt at this batch, None if there was no attempt.

    retiring: whether the batch only removes rows.
    """
    try:
        raw = json.loads(store.read(_inputs_uri(run, number, retiring=retiring)))
    except FileNotFoundError:
        return None
    return Inputs(tuple(raw["staged"]), raw["facts"], raw["file_rows"], tuple(raw.get("retired", ())))


def _inputs_uri(run: Run, number: int, *, retiring: bool) -> str:
    kind = "retired-inputs" if retiring else "inputs"
    return join(run.folder, "batches", f"b{number:05d}-{kind}.json")


# ---- records and numbers --------------------------------------------------------------------------


def write_record(batch: Batch, run: Run, store: Store) -> str:
    """Write the batch's record under a unique name. Return the path of the record below the root."""
    record = f"_segray/runs/{run.id}/batches/b{batch.number:05d}-{secrets.token_hex(4)}.json"
    store.put(join(run.root, record), batch.dump())
    return record


def newest_batch(root: str, options: StorageOptions, store: Store) -> tuple[Batch, str]:
    """Return the last batch that reached `instances`, and the path of its record below the root."""
    table = require_table(root, "instances", options)
    record = store.retrying(root, partial(batch_records, table))[0]
    return Batch.parse(store.read(join(root, record))), record


def batch_numbers(root: str, options: StorageOptions) -> tuple[int, int]:
    """Return the last batch committed to instances and the last committed to images; 0 before the first.

    Another run may commit between the two reads, and commits to instances first. Images are therefore read first. Both
    tables are read again while they differ by more than a batch in progress explains.
    """
    store = Store(options)

    def last_batch(name: str) -> int:
        table = open_table(root, name, options)
        return 0 if table is None else batch_of(table)

    def read_last_batch(name: str) -> int:
        return store.retrying(root, partial(last_batch, name))

    images, instances = read_last_batch("images"), read_last_batch("instances")
    while instances > images + 1 and (later_images := read_last_batch("images")) != images:
        images, instances = later_images, read_last_batch("instances")
    return instances, images
