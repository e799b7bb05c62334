"""Label sets compared: what two runs over the same images must agree on."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import segray

# What differs from run to run whatever happens.
VOLATILE = frozenset({"batch", "run_id", "labelled_at", "attempts"})

Rows = dict[str, list[dict[str, Any]]]


def contents(root: str | Path, ignoring: Collection[str] = (), **storage: Any) -> tuple[Rows, Rows]:
    """Rows of instances and of images, by image_key; instances in order."""
    instances, images = (read(str(root), **storage).to_table() for read in (segray.scan, segray.images))
    without = VOLATILE | set(ignoring)
    return _by_key(instances, without), _by_key(images, without)


def _by_key(table: Any, without: Collection[str]) -> Rows:
    found: Rows = {}
    for row in table.to_pylist():
        found.setdefault(row["image_key"], []).append({k: v for k, v in row.items() if k not in without})
    return {key: sorted(rows, key=lambda row: row.get("instance", 0)) for key, rows in found.items()}
