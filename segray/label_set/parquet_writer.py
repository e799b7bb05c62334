"""The writer of a table's Parquet files: row groups, file sizes, names, statistics.

Knows how data files are cut and encoded. Memory use is small for any number of rows. Leaves logs, batches and the
origin of rows to others. A file is stored once it is complete, and no reader of the log sees the file yet.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segray.label_set import schema
from segray.label_set.class_names import partition_folder, partition_value
from segray.label_set.delta_log import DataFile
from segray.label_set.snapshot import run_slices, table_uri
from segray.storage.store import Store, bounded_map
from segray.storage.uris import join

# Most bytes of rows that wait in memory for their class to be written. Further rows wait in a local temporary file.
_WAITING_BYTES = 192 * 2**20

_FORMATS: Mapping[str, tuple[pa.Schema, Mapping[str, Any], tuple[str, ...]]] = {
    "instances": (schema.INSTANCES, schema.INSTANCES_WRITE, ("image_key", "instance")),
    "images": (schema.IMAGES, schema.IMAGES_WRITE, ("image_key",)),
}


def contents(store: Store, root: str, name: str, files: Sequence[DataFile]) -> Iterator[bytes]:
    """Yield the bytes of these files of a table, in order. The next files are read in the background."""
    return bounded_map(
        lambda file: store.read(join(table_uri(root, name), file.path)), files, lambda file: file.size_bytes
    )


class SpillableRows:
    """Rows of one table, gathered by class. Rows of a class keep their order.

    Rows beyond a limit wait in a temporary file. A table without classes has one class, named "".
    """

    def __init__(self) -> None:
        self._parts: dict[str, list[pa.Table | _Spilled]] = {}
        self._bytes = 0

    def add(self, rows: pa.Table) -> None:
        """Add rows, class after class.

        The rows should own their memory, because a slice keeps its whole table in memory.
        """
        if not rows.num_rows:
            return
        if self._bytes > _WAITING_BYTES:  # Checked before adding, because the last rows need no spill.
            self._spill()
        self._bytes += rows.nbytes
        for name, part in _by_class(rows):
            self._parts.setdefault(name, []).append(part)

    def take(self) -> Iterator[tuple[str, Iterator[pa.Table]]]:
        """Yield the classes by name, each with its rows. Rows are freed as they are yielded."""
        for name in sorted(self._parts):
            yield name, _read_and_free(self._parts.pop(name))

    def _spill(self) -> None:
        """Move the rows in memory to an unnamed temporary file, which disappears with its last reader."""
        tables = {name: [part for part in parts if isinstance(part, pa.Table)] for name, parts in self._parts.items()}
        waiting = {name: parts for name, parts in tables.items() if parts}
        file, counts = tempfile.TemporaryFile(prefix="segray-"), {}  # noqa: SIM115  Closed with its last reader.
        with pa.ipc.new_file(file, next(iter(waiting.values()))[0].schema) as writer:
            for name, parts in waiting.items():
                batches = pa.concat_tables(parts).combine_chunks().to_batches()
                for batch in batches:
                    writer.write_batch(batch)
                counts[name] = len(batches)
        reader, first = pa.ipc.open_file(file), 0
        for name, count in counts.items():
            spilled_before = [part for part in self._parts[name] if isinstance(part, _Spilled)]
            self._parts[name] = [*spilled_before, *(_Spilled(reader, first + i) for i in range(count))]
            first += count
        self._bytes = 0


@dataclass(frozen=True)
class _Spilled:
    """One record batch of a temporary file."""

    file: pa.ipc.RecordBatchFileReader
    number: int

    def read(self) -> pa.Table:
        return pa.Table.from_batches([self.file.get_batch(self.number)])


def _by_class(rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """Yield each run of rows of one class. All rows of a table without classes are one run."""
    if "class_name" not in rows.column_names:
        yield "", rows
        return
    for name, run in run_slices(rows.column("class_name")):
        yield name, rows.slice(run.start, run.stop - run.start)


def _read_and_free(parts: list[pa.Table | _Spilled]) -> Iterator[pa.Table]:
    """Yield the rows of each part in order, and remove the part from the list."""
    parts.reverse()
    while parts:
        part = parts.pop()
        yield part.read() if isinstance(part, _Spilled) else part


@dataclass(frozen=True)
class DataFileWriter:
    """A writer of complete data files that readers of the log do not see yet.

    stem: prefix of the files' names. facts: provenance for the files' metadata. file_rows: most rows of one file.
    value_of: returns the partition value of a class name, as the label set records the value.
    """

    store: Store
    root: str
    stem: str
    facts: Mapping[str, Any]
    file_rows: int
    value_of: Callable[[str], str] = partition_value

    def write(
        self, name: str, rows: SpillableRows, rewritten: Iterable[tuple[str, SpillableRows]] = ()
    ) -> list[DataFile]:
        """Write all rows of the table `name`, class by class. Return the files.

        rewritten: rows of further files, each with a label for the names of its new files.
        """
        labelled_rows = chain([("", rows)], rewritten)
        encoded = (file for label, file_rows in labelled_rows for file in self._encode_all(name, file_rows, label))
        return list(bounded_map(partial(self._put, name), encoded, lambda file_and_data: file_and_data[0].size_bytes))

    def _encode_all(self, name: str, rows: SpillableRows, label: str) -> Iterator[tuple[DataFile, bytes]]:
        """Yield each new file and its bytes."""
        for class_name, parts in rows.take():
            partition = self.value_of(class_name) if name == "instances" else None
            groups = _row_groups(parts, _FORMATS[name][1]["row_group_size"], self.file_rows)
            for number, groups_of_file in groupby(groups, key=itemgetter(0)):
                stem = f"{self.stem}{label}-{number:03d}"
                yield self._encode(name, map(itemgetter(1), groups_of_file), stem, partition)

    def _encode(
        self, name: str, groups: Iterable[pa.Table], stem: str, partition: str | None
    ) -> tuple[DataFile, bytes]:
        path = f"{stem}.parquet" if partition is None else f"{partition_folder(partition)}/{stem}.parquet"
        columns, settings, sort_columns = _FORMATS[name]
        file_schema = schema.with_facts(columns, self.facts)
        sorting = pq.SortingColumn.from_ordering(file_schema, [(column, "ascending") for column in sort_columns])
        options = {key: value for key, value in settings.items() if key != "row_group_size"}
        sink, stats = io.BytesIO(), ColumnStats()
        with pq.ParquetWriter(sink, file_schema, sorting_columns=sorting, **options) as writer:
            for rows in groups:
                # The writer encodes each chunk of a column separately, and rare classes come in many small chunks.
                joined = rows.combine_chunks()
                writer.write_table(joined)
                stats.add(joined)
        data = sink.getvalue()
        return DataFile(path, len(data), stats.rows, partition, stats.as_json()), data

    def _put(self, name: str, file_and_data: tuple[DataFile, bytes]) -> DataFile:
        file, data = file_and_data
        self.store.put(join(table_uri(self.root, name), file.path), data)
        return file


def _row_groups(parts: Iterable[pa.Table], group_rows: int, file_rows: int) -> Iterator[tuple[int, pa.Table]]:
    """Yield row groups, each with the number of its file.

    group_rows: rows of a row group; the last group of a file may have fewer. file_rows: most rows of a file.
    """
    waiting: list[pa.Table] = []
    number = written = count = 0  # number of the file, rows in its groups so far, rows that wait
    for part in parts:
        while part.num_rows:
            room = min(group_rows, file_rows - written) - count
            waiting.append(part.slice(0, room))
            count += waiting[-1].num_rows
            part = part.slice(room)
            if waiting[-1].num_rows == room:
                yield number, pa.concat_tables(waiting)
                written += count
                waiting, count = [], 0
                if written == file_rows:
                    number, written = number + 1, 0
    if waiting:
        yield number, pa.concat_tables(waiting)


class ColumnStats:
    """Delta's statistics of one file: smallest and largest value of the columns by which readers skip files."""

    def __init__(self) -> None:
        self.rows = 0
        self._smallest: dict[str, Any] = {}
        self._largest: dict[str, Any] = {}

    def add(self, rows: pa.Table) -> None:
        """Add these rows of the file to the statistics."""
        self.rows += rows.num_rows
        for name in ("image_key", "class_id", "score", "batch", "status"):
            if name in rows.column_names:
                smallest, largest = pc.min_max(rows.column(name)).as_py().values()
                self._smallest[name] = min(smallest, self._smallest.get(name, smallest))
                self._largest[name] = max(largest, self._largest.get(name, largest))

    def as_json(self) -> str:
        """Return the statistics as JSON, in the form of the log."""
        return json.dumps(
            {
                "numRecords": self.rows,
                "minValues": self._smallest,
                "maxValues": self._largest,
                "nullCount": dict.fromkeys(self._smallest, 0),
            }
        )
