"""Committing batches: both tables in step, each image once, whatever was interrupted."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import segray
from segray.errors import ConflictError
from segray.instances import image_id
from segray.label_set import batches, commit, merge, schema
from segray.label_set.run_records import Run, staged_name
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import join
from segray.tasks import Task

OPTIONS = StorageOptions()
CLASSES = {13: "stop sign", 44: "bottle"}
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def instance(number: int, class_id: int) -> dict[str, Any]:
    box = {"bbox_x": 1.0, "bbox_y": 2.0, "bbox_w": 3.0, "bbox_h": 4.0}
    return {"instance": number, "class_id": class_id, "class_name": CLASSES[class_id], "score": 0.5, **box,
            "area": 3, "rle": "03d"}  # fmt: skip


def row(key: str, class_ids: Sequence[int], version: str = "1") -> dict[str, Any]:
    found = [instance(i, class_id) for i, class_id in enumerate(class_ids)]
    return {
        "image_id": image_id(key), "image_key": key, "uri": f"/data/{key}", "version": version, "bytes": 9,
        "width": 4, "height": 5, "status": "ok" if found else "empty", "n_instances": len(found), "stage": None,
        "error": None, "message": None, "attempts": 1, "labelled_at": NOW, "orientation": 1, "instances": found,
    }  # fmt: skip


def staged(run: Run, unit: int, rows: list[dict[str, Any]]) -> str:
    name = staged_name(Task(unit, 0, len(rows)))
    Store().put(join(run.staged, name), schema.staged_bytes(pa.Table.from_pylist(rows, schema=schema.STAGED)))
    return name


@pytest.fixture
def run(tmp_path: Path) -> Run:
    commit.create_tables(str(tmp_path), OPTIONS)
    return Run(str(tmp_path), "20260101T000000Z-a")


def merged(run: Run, number: int, *units: list[dict[str, Any]], file_rows: int = 1000) -> batches.Batch:
    names = [staged(run, unit, rows) for unit, rows in enumerate(units)]
    return merge.merge(run, number, batches.Inputs(tuple(names), {"run_id": run.id}, file_rows), OPTIONS)


def test_new_tables_read_as_empty_everywhere(run: Run) -> None:
    assert segray.scan(run.root).count_rows() == segray.images(run.root).count_rows() == 0
    assert pl.scan_delta(f"{run.root}/instances").collect().height == 0
    assert batches.batch_numbers(run.root, OPTIONS) == (0, 0)


def test_a_batch_is_sorted_by_class_and_key_and_invisible_until_committed(run: Run) -> None:
    batch = merged(run, 1, [row("b.jpg", [44, 13]), row("c.jpg", [])], [row("a.jpg", [13])])
    assert (batch.images, batch.instances) == (3, 3)
    assert segray.scan(run.root).count_rows() == 0
    commit.commit(batch, run, OPTIONS, Store())
    table = segray.scan(run.root).to_table()
    assert table.schema.names == schema.INSTANCES_WITH_PARTITION.names
    found = sorted((r["class"], r["class_id"], r["image_key"], r["instance"], r["batch"]) for r in table.to_pylist())
    expected = [("bottle", 44, "b.jpg", 0, 1), ("stop_sign", 13, "a.jpg", 0, 1), ("stop_sign", 13, "b.jpg", 1, 1)]
    assert found == expected
    images = {
        r["image_key"]: (r["status"], r["n_instances"], r["run_id"])
        for r in segray.images(run.root).to_table().to_pylist()
    }
    assert images == {"a.jpg": ("ok", 1, run.id), "b.jpg": ("ok", 2, run.id), "c.jpg": ("empty", 0, run.id)}
    assert batches.batch_numbers(run.root, OPTIONS) == (1, 1)


def test_every_reader_sees_the_same_rows(run: Run) -> None:
    commit.commit(merged(run, 1, [row("a.jpg", [13, 44]), row("b.jpg", [13])]), run, OPTIONS, Store())
    glob = f"{run.root}/instances/class=*/*.parquet"
    query = f"select class, count(*) from read_parquet('{glob}', hive_partitioning=true) group by all order by all"
    assert duckdb.sql(query).fetchall() == [("bottle", 1), ("stop_sign", 2)]
    assert pl.scan_parquet(glob, hive_partitioning=True).collect().height == 3
    assert pl.scan_delta(f"{run.root}/instances").collect().height == 3
    assert segray.scan(run.root).count_rows() == 3


def test_files_carry_the_schema_to_the_letter_and_what_it_means(run: Run) -> None:
    commit.commit(merged(run, 1, [row("a.jpg", [13])]), run, OPTIONS, Store())
    (file,) = Path(run.root, "instances", "class=stop_sign").glob("*.parquet")
    found = pq.read_schema(file)
    assert found.remove_metadata().equals(schema.INSTANCES)
    assert b"coco-rle-string" in found.metadata[b"segray"]
    group = pq.ParquetFile(file).metadata.row_group(0)
    assert group.sorting_columns
    encodings = {each for i in range(group.num_columns) for each in group.column(i).encodings}
    assert "BYTE_STREAM_SPLIT" not in encodings, "Spark 4.1 cannot read it"


def test_large_classes_are_cut_into_files(run: Run) -> None:
    batch = merged(run, 1, [row(f"{i}.jpg", [13]) for i in range(10)], file_rows=4)
    assert [f.rows for f in batch.tables["instances"].add] == [4, 4, 2]


def test_a_crash_between_the_two_tables_is_finished_later(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = merged(run, 1, [row("a.jpg", [13])])
    commit_table = commit._commit_table

    def crash(root: str, options: StorageOptions, name: str, *rest: Any) -> None:
        if name == "images":
            raise KeyboardInterrupt
        commit_table(root, options, name, *rest)

    monkeypatch.setattr(commit, "_commit_table", crash)
    with pytest.raises(KeyboardInterrupt):
        commit.commit(batch, run, OPTIONS, Store())
    monkeypatch.undo()
    assert batches.batch_numbers(run.root, OPTIONS) == (1, 0)
    assert commit.recover(run.root, OPTIONS, Store()) == 1
    assert batches.batch_numbers(run.root, OPTIONS) == (1, 1)
    assert segray.images(run.root).to_table().column("image_key").to_pylist() == ["a.jpg"]
    assert commit.recover(run.root, OPTIONS, Store()) == 1


@pytest.mark.parametrize("commits", [1, 3])
def test_batches_that_others_commit_while_the_numbers_are_read_are_no_damage(
    run: Run, monkeypatch: pytest.MonkeyPatch, commits: int
) -> None:
    commit.commit(merged(run, 1, [row("a.jpg", [13])]), run, OPTIONS, Store())
    waiting = [2, 3, 4][:commits]
    open_table = batches.open_table

    def overtaken(*which: Any) -> Any:
        found = open_table(*which)
        if waiting:
            monkeypatch.setattr(batches, "open_table", open_table)
            for number in waiting:
                commit.commit(merged(run, number, [row(f"{number}.jpg", [13])]), run, OPTIONS, Store())
        return found

    monkeypatch.setattr(batches, "open_table", overtaken)
    assert commit.recover(run.root, OPTIONS, Store()) == 1 + commits


def test_of_two_runs_that_race_for_a_batch_one_wins(run: Run) -> None:
    other = Run(run.root, "20260101T000000Z-b")
    mine, theirs = merged(run, 1, [row("a.jpg", [13])]), merged(other, 1, [row("a.jpg", [44])])
    commit.commit(theirs, other, OPTIONS, Store())
    with pytest.raises(ConflictError):
        commit.commit(mine, run, OPTIONS, Store())
    assert segray.scan(run.root).to_table().column("class_id").to_pylist() == [44]


def test_a_changed_image_replaces_its_rows_in_the_same_commit(run: Run) -> None:
    commit.commit(merged(run, 1, [row("a.jpg", [13, 44]), row("b.jpg", [13])]), run, OPTIONS, Store())
    commit.commit(merged(run, 2, [row("a.jpg", [13], version="2")]), run, OPTIONS, Store())
    rows = segray.scan(run.root).to_table().to_pylist()
    assert sorted((r["image_key"], r["class_id"], r["batch"]) for r in rows) == [("a.jpg", 13, 2), ("b.jpg", 13, 1)]
    images = segray.images(run.root).to_table().to_pylist()
    assert sorted((r["image_key"], r["version"]) for r in images) == [("a.jpg", "2"), ("b.jpg", "1")]


def test_an_empty_batch_of_instances_commits(run: Run) -> None:
    commit.commit(merged(run, 1, [row("a.jpg", [])]), run, OPTIONS, Store())
    assert batches.batch_numbers(run.root, OPTIONS) == (1, 1)
    assert segray.images(run.root).count_rows() == 1


def test_an_attempt_repeated_after_a_crash_leaves_no_second_copy(run: Run) -> None:
    inputs = batches.Inputs((staged(run, 0, [row("a.jpg", [13])]),), {"run_id": run.id}, 1000)
    batches.write_batch_inputs(run, 1, inputs, Store())
    merge.merge(run, 1, inputs, OPTIONS)
    again = merge.merge(run, 1, batches.read_batch_inputs(run, 1, Store()) or pytest.fail("forgotten"), OPTIONS)
    commit.commit(again, run, OPTIONS, Store())
    assert len(list(Path(run.root, "instances").glob("class=*/*.parquet"))) == 1
    assert batches.read_batch_inputs(run, 2, Store()) is None


def test_what_another_worker_says_of_itself_makes_other_files(run: Run) -> None:
    names = (staged(run, 0, [row("a.jpg", [13])]),)
    mine, theirs = (merge.merge(run, 1, batches.Inputs(names, {"host": host}, 1000), OPTIONS) for host in ("a", "bb"))
    for name in ("instances", "images"):
        assert {f.path for f in mine.tables[name].add}.isdisjoint(f.path for f in theirs.tables[name].add)


def test_the_rows_do_not_depend_on_how_much_is_merged_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    units = [[row(f"{unit}{i}.jpg", [13, 44][: (unit + i) % 3]) for i in range(5)] for unit in range(4)]
    names = tuple(staged(run, unit, rows) for unit, rows in enumerate(units))

    def rows_of(host: str) -> list[Any]:
        batch = merge.merge(run, 1, batches.Inputs(names, {"host": host}, 1000), OPTIONS)
        assert (batch.images, batch.instances) == (20, sum(len(r["instances"]) for rows in units for r in rows))
        paths = [Path(run.root, name, file.path) for name in batch.tables for file in batch.tables[name].add]
        return [pq.read_table(path, partitioning=None).to_pylist() for path in paths]

    together = rows_of("a")
    monkeypatch.setattr(merge, "_READ_AT_ONCE", 1)
    monkeypatch.setattr(merge, "_MERGED_AT_ONCE_BYTES", 1)
    assert rows_of("b") == together


def test_files_without_a_replaced_image_are_left_alone(run: Run) -> None:
    commit.commit(merged(run, 1, [row("a.jpg", [13]), row("c.jpg", [44])], file_rows=1), run, OPTIONS, Store())
    batch = merged(run, 2, [row("b.jpg", [13]), row("c.jpg", [44], version="2")])
    assert [file.partition for file in batch.tables["instances"].remove] == ["bottle"]
    assert len(batch.tables["images"].remove) == 1
    commit.commit(batch, run, OPTIONS, Store())
    assert sorted(segray.images(run.root).to_table().column("image_key").to_pylist()) == ["a.jpg", "b.jpg", "c.jpg"]
