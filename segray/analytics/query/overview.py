"""An overview of a label set: its images by status, its instances by class, its files and its model.

Counts of instances and files come from the log. Of the tables only the status of images is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from segray.label_set import snapshot
from segray.label_set.delta_log import TableState
from segray.storage.uris import PathOrUrl


@dataclass(frozen=True)
class Overview:
    """What a label set holds.

    batch: number of the last batch; 0 before the first. images: number of images by status (ok, empty, failed).
    instances: number of instances of any score by class name, largest first. files, size_bytes: of both tables.
    model: the record of the model; see docs/data-dictionary.md.
    """

    root: str
    batch: int
    images: Mapping[str, int]
    instances: Mapping[str, int]
    files: int
    size_bytes: int
    model: Mapping[str, Any] = field(repr=False)


def overview(
    root: PathOrUrl, *, version: int | None = None, as_of: datetime | None = None, **storage_options: Any
) -> Overview:
    """Return an overview of one state of a label set. Arguments and errors are those of `snapshot.snapshot`."""
    state = snapshot.snapshot(root, version=version, as_of=as_of, **storage_options)
    tables = [state.instances.state, state.images.state]
    statuses: Counter[str] = Counter()
    for batch in state.images.to_batches(columns=["status"]):
        counts = batch.column("status").value_counts()
        statuses.update(dict(zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True)))
    return Overview(
        state.root,
        state.batch,
        dict(statuses),
        _instances(tables[0], {value: state.classes[class_id] for class_id, value in state.partitions.items()}),
        sum(table.files.num_rows for table in tables),
        sum(sum(table.files["size_bytes"].to_pylist()) for table in tables),
        state.model,
    )


def _instances(table: TableState, names: Mapping[str, str]) -> dict[str, int]:
    """Return the number of rows by class name, largest first. names: class name by partition value."""
    rows: Counter[str] = Counter()
    if "partition.class" in table.files.column_names:
        for value, count in zip(
            table.files["partition.class"].to_pylist(), table.files["num_records"].to_pylist(), strict=True
        ):
            rows[names.get(value, value)] += count
    return dict(sorted(rows.items(), key=lambda entry: (-entry[1], entry[0])))
