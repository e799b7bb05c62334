"""Rows on their way into data files: every row once, in order, whatever waits where."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segray.errors import InfrastructureError
from segray.label_set import parquet_writer, schema
from segray.label_set.parquet_writer import DataFileWriter, SpillableRows
from segray.storage.store import Store

CLASSES = ("bottle", "kite", "stop sign")


def instances(first: int, count: int, class_name: str) -> pa.Table:
    numbers = range(first, first + count)
    texts = {"image_id": "i{}", "image_key": "{:06d}.jpg", "rle": "{}x"}
    columns = {name: [text.format(n) for n in numbers] for name, text in texts.items()}
    columns["class_name"] = [class_name] * count
    return pa.table(
        [pa.array(columns.get(f.name, [n % 100 for n in numbers]), f.type) for f in schema.INSTANCES],
        schema=schema.INSTANCES,
    )


def written(folder: Path, pieces: Sequence[int], file_rows: int = 10**6) -> dict[str, bytes]:
    """The files that pieces of so many rows of each class become, by path."""
    rows, first = SpillableRows(), 0
    for count in pieces:
        for class_name in CLASSES:
            rows.add(instances(first, count, class_name))
        first += count
    files = DataFileWriter(Store(), str(folder), "b", {"run_id": "r"}, file_rows).write("instances", rows)
    assert [file.path for file in files] == sorted(file.path for file in files)
    return {file.path: (folder / "instances" / file.path).read_bytes() for file in files}


def test_rows_that_waited_on_disk_are_written_as_if_they_had_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = written(tmp_path / "memory", [70, 0, 50, 1])
    monkeypatch.setattr(parquet_writer, "_WAITING_BYTES", 20_000)
    found = written(tmp_path / "disk", [70, 0, 50, 1])
    assert found.keys() == expected.keys()
    for path, data in found.items():
        table = pq.read_table(pa.BufferReader(data))
        assert table.equals(pq.read_table(pa.BufferReader(expected[path])))
        assert table.column("image_key").to_pylist() == [f"{n:06d}.jpg" for n in range(121)]


def test_the_same_rows_make_the_same_bytes(tmp_path: Path) -> None:
    assert written(tmp_path / "a", [70, 50], 64) == written(tmp_path / "b", [70, 50], 64)


def test_classes_that_come_together_are_written_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = written(tmp_path / "apart", [70, 1, 30])
    monkeypatch.setattr(parquet_writer, "_WAITING_BYTES", 20_000)
    rows, first = SpillableRows(), 0
    for count in (70, 1, 30):
        rows.add(pa.concat_tables([instances(first, count, class_name) for class_name in reversed(CLASSES)]))
        rows.add(schema.INSTANCES.empty_table())
        first += count
    files = DataFileWriter(Store(), str(tmp_path / "together"), "b", {"run_id": "r"}, 10**6).write("instances", rows)
    assert {file.path: (tmp_path / "together/instances" / file.path).read_bytes() for file in files} == expected


@given(st.lists(st.integers(0, 40), max_size=8), st.integers(1, 30), st.integers(1, 60))
def test_row_groups_and_files_are_full_but_for_the_last(pieces: list[int], most: int, file_rows: int) -> None:
    column = pa.array(range(sum(pieces)))
    ends = [sum(pieces[: i + 1]) for i in range(len(pieces))]
    parts = [pa.table({"n": column.slice(end - count, count)}) for end, count in zip(ends, pieces, strict=True)]
    groups = list(parquet_writer._row_groups(parts, most, file_rows))
    assert [n for _, group in groups for n in group.column("n").to_pylist()] == column.to_pylist()
    files: dict[int, list[int]] = {}
    for number, group in groups:
        files.setdefault(number, []).append(group.num_rows)
    assert list(files) == list(range(len(files)))
    for number, sizes in files.items():
        assert all(size == most for size in sizes[:-1])
        assert 0 < sizes[-1] <= most
        assert sum(sizes) == file_rows or number == len(files) - 1


def test_statistics_bound_what_is_in_the_file(tmp_path: Path) -> None:
    rows = SpillableRows()
    rows.add(instances(5, 3, "kite"))
    rows.add(instances(8, 2, "kite"))
    (file,) = DataFileWriter(Store(), str(tmp_path), "b", {}, 100).write("instances", rows)
    assert file.rows == 5
    assert '"minValues": {"image_key": "000005.jpg", "class_id": 5' in file.stats
    assert '"maxValues": {"image_key": "000009.jpg", "class_id": 9' in file.stats


def test_files_are_put_several_at_a_time_and_told_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put, all_under_way = Store.put, threading.Barrier(len(CLASSES))

    def together(store: Store, uri: str, data: bytes) -> None:
        all_under_way.wait(60)
        put(store, uri, data)

    monkeypatch.setattr(Store, "put", together)
    assert [path.partition("/")[0] for path in written(tmp_path, [4])] == [
        "class=bottle",
        "class=kite",
        "class=stop_sign",
    ]


def test_a_file_that_cannot_be_put_ends_the_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = Store.put

    def refuse(store: Store, uri: str, data: bytes) -> None:
        if "class=kite" in uri:
            raise InfrastructureError("storage is down")
        put(store, uri, data)

    monkeypatch.setattr(Store, "put", refuse)
    with pytest.raises(InfrastructureError, match="storage is down"):
        written(tmp_path, [4])


def test_rows_that_come_all_at_once_do_not_wait_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_writer, "_WAITING_BYTES", 1)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: pytest.fail("there was no need"))
    rows = SpillableRows()
    rows.add(instances(0, 50, "kite"))
    (file,) = DataFileWriter(Store(), str(tmp_path), "c", {}, 100).write("instances", rows)
    assert file.rows == 50
