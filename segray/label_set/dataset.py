"""A table's files as an Arrow dataset, in this process and in processes forked from it.

Knows fragments, the statistics by which readers skip files, and forks. Knows nothing of logs or label sets.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as pafs
from deltalake.fs import DeltaStorageHandler

from segray.errors import UserError
from segray.label_set.delta_log import TableState
from segray.storage import arrow_fs
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import join, scheme


@dataclass(frozen=True)
class _Source:
    """The values from which another process makes the dataset again.

    delta_options: deltalake's storage options, including credentials.
    """

    state: TableState
    storage: StorageOptions
    delta_options: Mapping[str, str]
    filter: ds.Expression | None = None


def dataset(state: TableState, storage: StorageOptions, delta_options: Mapping[str, str]) -> TableDataset:
    """Return the rows of one state of a table.

    storage, delta_options: access to the table in storage, for segray's store and for deltalake.
    """
    return TableDataset(_Source(state, storage, delta_options))


class TableDataset(ds.FileSystemDataset):  # type: ignore[misc]
    """The files of one state of a table.

    A forked child must not use its parent's connections and locks. In a child every call therefore goes to a new
    dataset.
    """

    def __init__(self, source: _Source) -> None:
        self._source, self._pid = source, os.getpid()
        self._dataset_of_child: TableDataset | None = None
        filesystem = _filesystem(source)
        format_ = ds.ParquetFileFormat(default_fragment_scan_options=ds.ParquetFragmentScanOptions(pre_buffer=True))
        fragments = [
            format_.make_fragment(path, filesystem=filesystem, partition_expression=expression, file_size=size)
            for path, size, expression in _fragments(source.state)
        ]
        super().__init__(fragments, source.state.schema, format_, filesystem)

    @property
    def state(self) -> TableState:
        """Return the state of the table that the dataset shows, without its filters."""
        return self._source.state

    def __reduce__(self) -> tuple[Any, ...]:
        return _make_again, (self._source,)

    def _in_this_process(self) -> TableDataset:
        """Return this dataset in a form that the present process can read."""
        if self._pid == os.getpid():
            return self
        if self._dataset_of_child is None or self._dataset_of_child._pid != os.getpid():
            self._dataset_of_child = _make_again(self._source)
        return self._dataset_of_child

    def filter(self, expression: ds.Expression) -> TableDataset:
        """Return the dataset with a filter that every scan applies, besides the filters that it has."""
        earlier = self._source.filter
        source = replace(self._source, filter=expression if earlier is None else earlier & expression)
        filtered = cast(TableDataset, super().filter(expression))
        filtered._source, filtered._pid, filtered._dataset_of_child = source, self._pid, None
        return filtered

    def scanner(self, *args: Any, **kwargs: Any) -> ds.Scanner:
        """Return a scanner, as pyarrow does. to_table, to_batches, head, take and count_rows all use this method."""
        return super(TableDataset, self._in_this_process()).scanner(*args, **kwargs)

    def to_batches(self, *args: Any, **kwargs: Any) -> Iterator[pa.RecordBatch]:
        """Yield record batches, as pyarrow does.

        A fork cannot continue the iteration of its parent: UserError is raised there.
        """
        return _only_in_this_process(super().to_batches(*args, **kwargs))

    def get_fragments(self, filter: ds.Expression | None = None) -> Iterator[ds.Fragment]:
        """Yield the fragments, as pyarrow does."""
        return cast("Iterator[ds.Fragment]", super(TableDataset, self._in_this_process()).get_fragments(filter))

    def sort_by(self, *args: Any, **kwargs: Any) -> ds.InMemoryDataset:
        """Return the sorted rows, as pyarrow does."""
        return super(TableDataset, self._in_this_process()).sort_by(*args, **kwargs)

    def join(self, *args: Any, **kwargs: Any) -> ds.InMemoryDataset:
        """Return the joined rows, as pyarrow does."""
        return super(TableDataset, self._in_this_process()).join(*args, **kwargs)

    def join_asof(self, *args: Any, **kwargs: Any) -> ds.InMemoryDataset:
        """Return the rows joined to the nearest key, as pyarrow does."""
        return super(TableDataset, self._in_this_process()).join_asof(*args, **kwargs)

    def replace_schema(self, schema: pa.Schema) -> TableDataset:
        """Return the dataset with another schema."""
        return _make_again(replace(self._source, state=replace(self._source.state, schema=schema)))


def _only_in_this_process(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    pid = os.getpid()
    while True:
        if os.getpid() != pid:  # Arrow would wait for threads that this process does not have.
            raise UserError(
                "a forked process cannot continue the batches of its parent",
                hint="call to_batches() after the fork, in the child",
            )
        batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _make_again(source: _Source) -> TableDataset:
    unfiltered = TableDataset(replace(source, filter=None))
    return unfiltered if source.filter is None else unfiltered.filter(source.filter)


def _filesystem(source: _Source) -> pafs.FileSystem:
    uri, options = source.state.uri, source.delta_options
    connections_are_the_parents = _is_fork() and scheme(uri)
    if not connections_are_the_parents and (native := arrow_fs.native(uri, options)) is not None:
        return native
    sizes = dict(zip(*(source.state.files.column(name).to_pylist() for name in ("path", "size_bytes")), strict=True))
    if connections_are_the_parents:
        store = Store(source.storage)
        return arrow_fs.through_python(lambda path: store.ranges(join(uri, path), sizes[path]), sizes)
    handler = DeltaStorageHandler(uri, dict(options), sizes)
    return arrow_fs.through_python(partial(_open, handler), sizes)


def _open(handler: DeltaStorageHandler, path: str) -> BinaryIO:
    return cast(BinaryIO, handler.open_input_file(path))


def _fragments(state: TableState) -> Iterator[tuple[str, int, ds.Expression]]:
    """Yield path, size in bytes and partition expression of each file."""
    with_stats = [column for column in state.schema if f"min.{column.name}" in state.files.column_names]
    for file in state.files.to_pylist():
        yield file["path"], file["size_bytes"], _file_expression(file, state.schema, with_stats)


def _file_expression(file: Mapping[str, Any], columns: pa.Schema, with_stats: Iterable[pa.Field]) -> ds.Expression:
    """Return an expression that holds for all rows of a file, by the log's statistics.

    with_stats: the columns that the log has statistics of.
    """
    expression = ds.scalar(True)
    for column in columns:
        if (key := f"partition.{column.name}") in file:
            expression &= ds.field(column.name) == pa.scalar(file[key], column.type)
    for column in with_stats:
        smallest, largest, nulls = (file.get(f"{name}.{column.name}") for name in ("min", "max", "null_count"))
        expression &= _column_expression(column, smallest, largest, nulls)
    return expression


def _column_expression(column: pa.Field, smallest: Any, largest: Any, nulls: int | None) -> ds.Expression:
    """Return an expression that holds for a column's values, by their statistics. A missing statistic gives `true`."""
    if smallest is None or largest is None or nulls is None:
        return ds.scalar(True)
    field = ds.field(column.name)
    within = (field >= pa.scalar(smallest, column.type)) & (field <= pa.scalar(largest, column.type))
    return within if not nulls else within | field.is_null()


_forked = False


def _is_fork() -> bool:
    """Return whether this process was forked from one whose Arrow clients may hold connections and locks."""
    return _forked


def _mark_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_mark_fork)
