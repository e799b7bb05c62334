"""Keep the records of batches: what a batch is made of, what its commit changes, which number comes next.

Knows the folder `batches` of a run and the batch numbers in the logs. Merges and commits nothing.

    RUN/batches/b00001-inputs.json           what decides every byte of the batch's files
    RUN/batches/b00001-retired-inputs.json   likewise, of a batch that only removes rows
    RUN/batches/b00001-xxxx.json             what the commit adds and removes, in both tables
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
    """All that decides what the files of a batch hold, and so their names.

    staged: names below the run's staged folder. facts: provenance for each file's metadata. file_rows: most rows of
    one file. retired: parts of the run's list of rows to remove; such a batch has nothing staged.
    """

    staged: tuple[str, ...]
    facts: Mapping[str, Any]
    file_rows: int
    retired: tuple[str, ...] = ()


@dataclass(frozen=True)
class Batch:
    """A batch that is ready to commit: all its files are in place. images, instances: rows that it adds.

    retired: parts of the run's list of rows to remove, all of which it removes; removed: from so many images' rows.
    """

    number: int
    run_id: str
    images: int
    instances: int
    tables: Mapping[str, Changes]
    retired: tuple[str, ...] = ()
    removed: int = 0

    def dump(self) -> bytes:
        """Return the batch as its record's bytes."""
        return json.dumps(asdict(self), indent=1, sort_keys=True).encode()

    @classmethod
    def parse(cls, data: bytes) -> Batch:
        """Return the batch that `dump` made these bytes of."""
        raw = json.loads(data)
        tables = {
            name: Changes(*(tuple(DataFile(**f) for f in changes[kind]) for kind in ("add", "remove")))
            for name, changes in raw.pop("tables").items()
        }
        return cls(tables=tables, retired=tuple(raw.pop("retired", ())), **raw)


# ---- inputs ---------------------------------------------------------------------------------------


def write_batch_inputs(run: Run, number: int, inputs: Inputs, store: Store) -> None:
    """Write what the batch will be made of. A resumed run then writes the same files again."""
    uri = _inputs_uri(run, number, retiring=bool(inputs.retired))
    store.put(uri, json.dumps(asdict(inputs), sort_keys=True).encode())


def read_batch_inputs(run: Run, number: int, store: Store, *, retiring: bool = False) -> Inputs | None:
    """Return the inputs of an interrupted attempt at this batch, None where there was no attempt."""
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
    """Write the batch's record under a name of its own. Return where it lies below the root."""
    record = f"_segray/runs/{run.id}/batches/b{batch.number:05d}-{secrets.token_hex(4)}.json"
    store.put(join(run.root, record), batch.dump())
    return record


def newest_batch(root: str, options: StorageOptions, store: Store) -> tuple[Batch, str]:
    """Return the last batch that reached `instances`, and where its record lies below the root."""
    table = require_table(root, "instances", options)
    record = store.retrying(root, partial(batch_records, table))[0]
    return Batch.parse(store.read(join(root, record))), record


def batch_numbers(root: str, options: StorageOptions) -> tuple[int, int]:
    """Return the last batch committed to instances and the last committed to images; 0 before the first.

    Others may commit between the two reads, but to instances first. So images are read first. They are read again
    where the difference is larger than that of a batch under way.
    """
    store = Store(options)

    def number(name: str) -> int:
        table = open_table(root, name, options)
        return 0 if table is None else batch_of(table)

    def read(name: str) -> int:
        return store.retrying(root, partial(number, name))

    images, instances = read("images"), read("instances")
    while instances > images + 1 and (later := read("images")) != images:
        images, instances = later, read("instances")
    return instances, images
