"""Read the committed tables of a label set: exact snapshots, never a file that no commit names.

Knows where the tables lie and how storage is reached; knows nothing of how they are written.
"""

from __future__ import annotations

from typing import Any

import pyarrow.dataset as ds
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from segray.errors import LabelSetError
from segray.storage import StorageOptions, Store, join


def table_uri(root: str, name: str) -> str:
    """Where a table lies. name: instances or images."""
    return join(root, name)


def open_table(root: str, name: str, options: StorageOptions) -> DeltaTable | None:
    """The table's latest snapshot; None where there is no table. Raises as Store does."""
    store = Store(options)

    def opened() -> DeltaTable | None:
        try:
            return DeltaTable(table_uri(root, name), storage_options=store.delta_options(root) or None)
        except TableNotFoundError:
            return None

    return store.insist(root, opened)


def scan(root: str, **storage_options: Any) -> ds.Dataset:
    """The committed instances of a label set, one row each, with the partition column `class`.

    root: a folder or URL. storage_options: the fields of StorageOptions (endpoint_url, region, ...), or
    deltalake's own names in capitals (AWS_ENDPOINT_URL, ...). Raises LabelSetError where there is no label set.
    """
    return _dataset(root, "instances", storage_options)


def images(root: str, **storage_options: Any) -> ds.Dataset:
    """The committed images of a label set, one row each: ok, empty or failed. Otherwise as `scan`."""
    return _dataset(root, "images", storage_options)


def _dataset(root: str, name: str, given: dict[str, Any]) -> ds.Dataset:
    native = {key: value for key, value in given.items() if key.isupper()}
    options = StorageOptions(**{key: value for key, value in given.items() if not key.isupper()})
    merged = {**Store(options).delta_options(root), **native}
    merged.pop("max_retries", None)  # Readers have nobody else who tries again for them.
    try:
        return DeltaTable(table_uri(root, name), storage_options=merged or None).to_pyarrow_dataset()
    except TableNotFoundError as exc:
        raise LabelSetError(
            "no label set here",
            where=str(root),
            found=f"no table {name}",
            do="check the path, or run `segray label` first",
        ) from exc
