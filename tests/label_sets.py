"""Label sets compared: what two runs over the same images must agree on."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import segray

# What differs from run to run whatever happens.
VOLATILE = frozenset({"batch", "run_id", "labelled_at", "attempts"})

Rows = dict[str, list[dict[str, Any]]]


def contents(root: Path, ignoring: Collection[str] = ()) -> tuple[Rows, Rows]:
    """Rows of instances and of images, by image_key; instances in order."""
    without = VOLATILE | set(ignoring)
    return _by_key(segray.scan(str(root)).to_table(), without), _by_key(segray.images(str(root)).to_table(), without)


def _by_key(table: Any, without: Collection[str]) -> Rows:
    found: Rows = {}
    for row in table.to_pylist():
        found.setdefault(row["image_key"], []).append({k: v for k, v in row.items() if k not in without})
    return {key: sorted(rows, key=lambda row: row.get("instance", 0)) for key, rows in found.items()}
