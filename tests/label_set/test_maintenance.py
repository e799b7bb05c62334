"""Compaction, deletion and checkpoints: no row changes, whatever interrupts, repeats or races them."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from test_commit import CLASSES, OPTIONS, merged, row, staged

import segray
from segray.errors import ConflictError, LabelSetError
from segray.label_set import batches, commit, delta_log, maintenance, run_records, schema, snapshot
from segray.label_set.class_names import partition_value
from segray.label_set.delta_log import DataFile
from segray.label_set.maintenance import CompactionThresholds, Maintenance
from segray.label_set.run_records import LabelSetIdentity, Run
from segray.label_set.snapshot import COMMIT_ORDER
from segray.label_set.validation import verify
from segray.storage.store import Store
from segray.storage.uris import join

EAGER = CompactionThresholds(files=2)
BATCHES = 4


def good(key: str, class_ids: list[int], version: str = "1") -> dict[str, Any]:
    """A row whose mask fits: 3 pixels of 20."""
    found = row(key, class_ids, version)
    for each in found["instances"]:
        each |= {"rle": "03a0", "bbox_x": 0.0, "bbox_y": 0.0, "bbox_w": 1.0, "bbox_h": 3.0}
    return found


def empty(root: Path) -> Run:
    """A label set without a batch."""
    classes = tuple((i, name, partition_value(name)) for i, name in CLASSES.items())
    run_records.create_or_check(Store(), str(root), LabelSetIdentity("f" * 64, {"name": "test"}, classes))
    commit.create_tables(str(root), OPTIONS)
    return Run(str(root), "20260101T000000Z-a")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return empty(tmp_path / "labels")


@pytest.fixture(scope="module")
def _small(tmp_path_factory: pytest.TempPathFactory) -> Run:
    made = empty(tmp_path_factory.mktemp("small") / "labels")
    for number in range(1, BATCHES + 1):
        rows = [good(f"{number}-a.jpg", [13, 44]), good(f"{number}-b.jpg", [13])]
        commit.commit(merged(made, number, rows), made, OPTIONS, Store())
    return made


@pytest.fixture
def small(_small: Run, tmp_path: Path) -> Run:
    """Four batches of two images, a file each per class and table."""
    return Run(str(shutil.copytree(_small.root, tmp_path / "labels")), _small.id)


def rows(run: Run) -> tuple[Any, Any]:
    """All rows of both tables, through the log."""
    order = ["image_key", "instance"]
    instances = segray.scan(run.root).to_table().sort_by([(name, "ascending") for name in order])
    return instances.to_pylist(), segray.images(run.root).to_table().sort_by("image_key").to_pylist()


def globbed(run: Run) -> int:
    return int(pl.scan_parquet(f"{run.root}/instances/class=*/*.parquet", hive_partitioning=True).collect().height)


def files(run: Run) -> dict[str, int]:
    return {name: len(list(Path(run.root, name).rglob("[bc]*-*.parquet"))) for name in COMMIT_ORDER}


def tidy(run: Run, grace_hours: int = 0, limits: CompactionThresholds = EAGER) -> Maintenance:
    return maintenance.maintain(run.root, OPTIONS, grace_hours=grace_hours, limits=limits)


def clean(run: Run) -> bool:
    report = verify(run.root, OPTIONS)
    assert report.violations == ()
    return not report.warnings


def age(run: Run, hours: float) -> None:
    """Make every data file look older."""
    then = time.time() - hours * 3600
    for path in Path(run.root).rglob("[bc]*-*.parquet"):
        os.utime(path, (then, then))


def test_rows_are_the_same_and_files_fewer(small: Run) -> None:
    before, numbers = rows(small), batches.batch_numbers(small.root, OPTIONS)
    done = tidy(small)
    assert rows(small) == before
    assert batches.batch_numbers(small.root, OPTIONS) == numbers == (BATCHES, BATCHES)
    assert done.compacted == {"instances": (8, 2), "images": (4, 1)}
    assert files(small) == {"instances": 2, "images": 1}
    assert globbed(small) == len(before[0]) == 12
    assert (done.deleted, done.exit_code) == ({"instances": 8, "images": 4}, 0)
    assert clean(small)


def test_compacted_files_are_written_as_all_others_and_say_where_rows_come_from(small: Run) -> None:
    tidy(small)
    (file,) = Path(small.root, "instances", "class=stop_sign").glob("*.parquet")
    found = pq.read_table(file, partitioning=None)
    assert found.schema.remove_metadata().equals(schema.INSTANCES)
    assert found.column("image_key").to_pylist() == sorted(found.column("image_key").to_pylist())
    assert found.schema.metadata[b"segray"].count(small.id.encode()) == 1
    assert b"coco-rle-string" in found.schema.metadata[b"segray"]


def test_the_log_says_that_no_data_changed(small: Run) -> None:
    tidy(small)
    log = Path(small.root, "instances", "_delta_log")
    last = max(path for path in log.glob("*.json") if path.stem.isdigit()).read_text()
    assert last.count('"dataChange":false') == 10
    assert '"dataChange":true' not in last


def test_again_there_is_nothing_to_do(small: Run) -> None:
    tidy(small)
    version = DeltaTable(f"{small.root}/instances").version()
    done = tidy(small)
    assert (done.compacted, done.deleted) == ({}, {"instances": 0, "images": 0})
    assert DeltaTable(f"{small.root}/instances").version() == version


def test_few_files_are_left_alone_by_default(small: Run) -> None:
    assert tidy(small, limits=CompactionThresholds()).compacted == {}
    assert clean(small)


def test_replaced_files_stay_for_the_grace_time_and_a_reader_of_an_old_snapshot_can_go_on(small: Run) -> None:
    snapshot = DeltaTable(f"{small.root}/instances").to_pyarrow_dataset()
    age(small, hours=100)  # they were written long ago, but replaced only now
    done = tidy(small, grace_hours=24)
    assert done.deleted == {"instances": 0, "images": 0}
    assert done.waiting == {"instances": 8, "images": 4}
    assert snapshot.count_rows() == segray.scan(small.root).count_rows() == 12
    assert globbed(small) == 24
    assert any("segray maintain" in warning for warning in verify(small.root, OPTIONS).warnings)
    tidy(small, grace_hours=0)
    assert globbed(small) == 12
    assert clean(small)


@pytest.mark.integration
def test_labelling_goes_on_after_compaction_and_replaces_images_in_compacted_files(small: Run) -> None:
    tidy(small)
    commit.commit(merged(small, 5, [good("1-a.jpg", [44], version="2")]), small, OPTIONS, Store())
    assert len(rows(small)[0]) == 11
    assert len(rows(small)[1]) == 8
    tidy(small)
    assert globbed(small) == 11
    assert clean(small)


def test_groups_fill_files_up_to_the_limits() -> None:
    limits = CompactionThresholds(files=3, small_bytes=100, file_bytes=250, file_rows=50)
    many = [DataFile(f"class=a/{i}", 90, 10, "a") for i in range(5)]
    few = [DataFile(f"class=b/{i}", 90, 10, "b") for i in range(2)]
    large = [DataFile("class=a/x", 100, 10, "a"), DataFile("class=a/y", 10, 25, "a")]
    found = maintenance.compaction_groups([*large, *few, *many], limits)
    assert [[f.path[-1] for f in group] for group in found] == [["0", "1"], ["2", "3"]]


# ---- deletion -------------------------------------------------------------------------------------


def test_what_an_interrupted_merge_left_is_deleted_once_its_batch_is_taken(run: Run) -> None:
    merged(run, 1, [good("a.jpg", [13])])
    assert tidy(run).deleted == {"instances": 0, "images": 0}  # it might be committed yet
    other = Run(run.root, "20260101T000000Z-b")
    commit.commit(merged(other, 1, [good("a.jpg", [13])]), other, OPTIONS, Store())
    assert globbed(run) == 2
    assert tidy(run).deleted == {"instances": 1, "images": 1}
    assert globbed(run) == 1
    assert clean(run)


def test_what_an_abandoned_merge_left_is_deleted_after_a_day(run: Run) -> None:
    merged(run, 1, [good("a.jpg", [13])])
    age(run, hours=25)
    assert tidy(run).deleted == {"instances": 1, "images": 1}


def test_files_of_others_are_not_touched(small: Run) -> None:
    foreign = Path(small.root, "instances", "class=stop_sign", "mine.parquet")
    pq.write_table(pa.table({"a": [1]}), foreign)
    os.utime(foreign, (0, 0))
    tidy(small)
    assert foreign.exists()


@pytest.mark.parametrize(("state", "kept"), [("done", 0), ("superseded", 0), ("running", 2), ("interrupted", 2)])
def test_staged_files_go_when_their_run_is_over(run: Run, state: str, kept: int) -> None:
    name = staged(run, 0, [good("a.jpg", [13])])
    batches.write_batch_inputs(run, 1, batches.Inputs((name,), {}, 1000), Store())
    run.save(Store(), {"state": state, "updated": datetime.now(UTC).isoformat()})
    Run(run.root, "20260102T000000Z-b").save(Store(), {"state": "done", "updated": datetime.now(UTC).isoformat()})
    assert tidy(run, grace_hours=1).staged_deleted == 0
    later = datetime.now(UTC) + timedelta(hours=2)
    maintenance.maintain(run.root, OPTIONS, grace_hours=1, now=later)
    left = Store().names(run.staged) + Store().names(join(run.folder, "batches"))
    assert len(left) == kept


def test_a_superseded_run_that_will_be_resumed_keeps_its_staged_files(run: Run) -> None:
    staged(run, 0, [good("a.jpg", [13])])
    run.save(Store(), {"state": "superseded", "updated": "2026-01-01T00:00:00+00:00"})
    assert tidy(run).staged_deleted == 0


# ---- crashes and races ----------------------------------------------------------------------------


class Crash(BaseException):
    """As sudden as a signal: nothing in between catches it."""


STEPS: list[tuple[Any, str]] = [
    (commit, "replace_files"),
    (delta_log, "_write_transaction"),
    (snapshot, "removed_files"),
    (maintenance, "_checkpoint"),
    (Store, "put"),
    (Store, "delete"),
    (maintenance, "_delete_staged"),
]


@pytest.mark.integration
@pytest.mark.parametrize(
    ("calls", "after"),
    [
        (1, False),
        (2, True),
        pytest.param(1, True, marks=pytest.mark.chaos),
        pytest.param(2, False, marks=pytest.mark.chaos),
    ],
)
@pytest.mark.parametrize(("owner", "name"), STEPS, ids=[name for _, name in STEPS])
def test_a_crash_around_any_step_leaves_a_clean_label_set(
    small: Run, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: int, after: bool
) -> None:
    before, real, seen = rows(small), getattr(owner, name), []

    def crash(*args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        if len(seen) == calls and not after:
            raise Crash
        result = real(*args, **kwargs)
        if len(seen) == calls:
            raise Crash
        return result

    monkeypatch.setattr(owner, name, crash)
    try:
        tidy(small)
    except Crash:
        pass
    else:
        assert len(seen) < calls
    monkeypatch.undo()
    clean(small)
    assert rows(small) == before
    tidy(small)
    assert rows(small) == before
    assert globbed(small) == 12
    assert clean(small)


def test_a_half_commit_is_finished_first(small: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    half_commit(small, 5, monkeypatch, lambda: None)
    assert tidy(small).batch == 5
    assert clean(small)


def half_commit(run: Run, number: int, monkeypatch: pytest.MonkeyPatch, between: Callable[[], None]) -> None:
    """Replace an image, and crash between the two tables after `between`."""
    batch, commit_table = merged(run, number, [good("1-a.jpg", [44], version="2")]), commit._commit_table

    def stop(root: str, options: Any, name: str, *rest: Any) -> None:
        if name == "images":
            between()
            raise Crash
        commit_table(root, options, name, *rest)

    monkeypatch.setattr(commit, "_commit_table", stop)
    with pytest.raises(Crash):
        commit.commit(batch, run, OPTIONS, Store())
    monkeypatch.undo()


@pytest.mark.integration
def test_images_compacted_between_the_two_commits_of_a_batch_are_still_replaced(
    small: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compact() -> None:
        maintenance._compact(small.root, "images", OPTIONS, EAGER, Maintenance())

    half_commit(small, 5, monkeypatch, compact)
    assert commit.recover(small.root, OPTIONS, Store()) == 5
    images = rows(small)[1]
    assert [(r["version"], r["batch"]) for r in images if r["image_key"] == "1-a.jpg"] == [("2", 5)]
    assert len(images) == 8
    tidy(small)
    assert clean(small)


@pytest.mark.integration
def test_a_batch_that_replaces_files_which_were_compacted_meanwhile_is_refused_whole(small: Run) -> None:
    batch = merged(small, 5, [good("1-a.jpg", [44], version="2")])
    tidy(small, grace_hours=24)
    with pytest.raises(ConflictError, match="rewritten meanwhile"):
        commit.commit(batch, small, OPTIONS, Store())
    assert batches.batch_numbers(small.root, OPTIONS) == (4, 4)
    commit.commit(merged(small, 5, [good("1-a.jpg", [44], version="2")]), small, OPTIONS, Store())
    tidy(small)
    assert len(rows(small)[0]) == 11
    assert clean(small)


def racing(run: Run, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[int], None]) -> None:
    """Let `meanwhile(n)` commit between the table's opening and the nth commit of maintenance."""
    write_transaction, seen = delta_log._write_transaction, [0]

    def raced(*args: Any, **kwargs: Any) -> None:
        if kwargs.get("data_change") is False:
            seen[0] += 1
            meanwhile(seen[0])
        write_transaction(*args, **kwargs)

    monkeypatch.setattr(delta_log, "_write_transaction", raced)


def test_a_batch_committed_during_compaction_is_kept_and_compaction_tries_again(
    small: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(time: int) -> None:
        if time == 1:
            commit.commit(merged(small, 5, [good("5.jpg", [13])]), small, OPTIONS, Store())

    racing(small, monkeypatch, meanwhile)
    done = tidy(small)
    assert done.exit_code == 0
    assert done.compacted["instances"] == (9, 2)
    assert len(rows(small)[0]) == 13
    age(small, hours=25)  # the first attempt's files, of another set of inputs
    tidy(small)
    assert clean(small)


def test_an_image_replaced_during_compaction_stays_replaced(small: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(time: int) -> None:
        if time == 1:
            commit.commit(merged(small, 5, [good("1-a.jpg", [44], version="2")]), small, OPTIONS, Store())

    racing(small, monkeypatch, meanwhile)
    assert tidy(small).exit_code == 0
    assert len(rows(small)[0]) == 11
    assert globbed(small) == 11
    assert clean(small)


@pytest.mark.integration
def test_whoever_never_wins_says_so_and_loses_nothing(small: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(time: int) -> None:
        number = batches.batch_numbers(small.root, OPTIONS)[0] + 1
        commit.commit(merged(small, number, [good(f"new-{number}.jpg", [13])]), small, OPTIONS, Store())

    racing(small, monkeypatch, meanwhile)
    done = tidy(small)
    assert (done.conflicts, done.exit_code) == (["instances", "images"], 3)
    assert len(rows(small)[1]) == 8 + 6
    clean(small)


@pytest.mark.integration
def test_two_compactions_at_once_do_no_harm(small: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def meanwhile(time: int) -> None:
        if time == 1:
            maintenance._compact(small.root, "instances", OPTIONS, EAGER, Maintenance())

    before = rows(small)
    racing(small, monkeypatch, meanwhile)
    tidy(small)
    assert rows(small) == before
    assert globbed(small) == 12
    assert clean(small)


def test_where_no_label_set_is_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(LabelSetError, match="no label set"):
        maintenance.maintain(str(tmp_path), OPTIONS)
    assert list(tmp_path.iterdir()) == []
