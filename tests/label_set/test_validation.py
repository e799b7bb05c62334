"""Every promise broken once, and named: that one and no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from swift_server import Swift
from test_commit import CLASSES, OPTIONS, merged
from test_maintenance import good

from segray.cli import main
from segray.errors import LabelSetError
from segray.instances import image_id
from segray.label_set import batches, commit, merge, plan, run_records, schema
from segray.label_set.class_names import partition_value
from segray.label_set.maintenance import CompactionThresholds, maintain
from segray.label_set.run_records import LabelSetIdentity, Run, staged_name
from segray.label_set.validation import Report, verify
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import join
from segray.tasks import Task

KEYS = ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]


def failed(key: str) -> dict[str, Any]:
    told = {"status": "failed", "stage": "decode", "error": "ImageError", "message": "torn", "width": 0, "height": 0}
    return good(key, []) | told


def rows() -> list[dict[str, Any]]:
    """Two images with instances, of which one has three in two classes, one without, one that failed."""
    return [good("a.jpg", [13, 44, 13]), good("b.jpg", [13]), good("c.jpg", []), failed("d.jpg")]


def make(root: str, options: StorageOptions = OPTIONS) -> Run:
    """An empty label set with a finished run's plan."""
    store, run = Store(options), Run(root, "20260101T000000Z-a")
    classes = tuple((i, name, partition_value(name)) for i, name in CLASSES.items())
    run_records.create_or_check(store, root, LabelSetIdentity("f" * 64, {"name": "test"}, classes))
    commit.create_tables(root, options)
    listed = {"image_key": KEYS, "uri": KEYS, "version": ["1"] * 4, "bytes": [9] * 4}
    plan.freeze(store, run.folder, plan.ImageList(pa.table(listed, schema=schema.PLAN), ""), 8)
    run.save(store, {"state": "done", "updated": "2026-01-01T00:00:00+00:00"})
    return run


def publish_rows(run: Run, rows: list[dict[str, Any]], options: StorageOptions = OPTIONS) -> None:
    """Commit the rows as the next batch, whatever they say."""
    store = Store(options)
    name, number = staged_name(Task(0, 0, len(rows))), batches.batch_numbers(run.root, options)[0] + 1
    store.put(join(run.staged, name), schema.staged_bytes(pa.Table.from_pylist(rows, schema=schema.STAGED)))
    batch = merge.merge(run, number, batches.Inputs((name,), {"run_id": run.id}, 1000), options)
    commit.commit(batch, run, options, store)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make(str(tmp_path / "labels"))


def check(run: Run) -> Report:
    return verify(run.root, OPTIONS)


def kinds(run: Run) -> list[str]:
    return sorted({violation.kind for violation in check(run).violations})


def test_a_clean_label_set_is_clean(run: Run) -> None:
    publish_rows(run, rows())
    report = check(run)
    assert (report.violations, report.warnings, report.exit_code) == ((), (), 0)
    expected = {"batch": 1, "files": 3, "images": 4, "instances": 4, "runs": 1, "unlisted_files": 0}
    assert report.counts == expected


def test_reading_changes_nothing(run: Run) -> None:
    publish_rows(run, rows())
    before = {path: path.stat().st_mtime_ns for path in Path(run.root).rglob("*")}
    check(run)
    assert {path: path.stat().st_mtime_ns for path in Path(run.root).rglob("*")} == before


# ---- rows: staged as they should never be ---------------------------------------------------------


def instance(**values: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda rows: rows[0]["instances"][1].update(values)


def image(row: int, **values: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda rows: rows[row].update(values)


ROWS: list[tuple[str, Callable[[list[dict[str, Any]]], None]]] = [
    ("score", instance(score=1.5)),
    ("score", instance(score=-0.1)),
    ("class", instance(class_id=45)),
    ("class", instance(class_name="Bottle")),
    ("rle", instance(rle="not counts")),
    ("rle", instance(rle="03b0")),
    ("rle", instance(rle="")),
    ("rle", instance(rle="03\u00e6")),
    ("area", instance(area=4)),
    ("area", instance(area=0, rle="d0")),
    ("bbox", instance(bbox_x=-1.0)),
    ("bbox", instance(bbox_w=4.5)),
    ("bbox", instance(bbox_h=-3.0)),
    ("bbox", instance(bbox_y=float("nan"))),
    ("instance_numbers", instance(instance=2)),
    ("instance_numbers", instance(instance=3)),
    ("instance_numbers", instance(instance=-1)),
    ("n_instances", image(0, n_instances=2)),
    ("n_instances", lambda rows: rows[1].update(instances=[])),
    ("status", image(1, status="good", n_instances=0, instances=[])),
    ("status_count", image(1, n_instances=0, instances=[])),
    ("status_count", image(0, status="empty")),
    ("failure", image(3, message=None)),
    ("failure", image(3, stage=None)),
    ("failure", image(0, error="ImageError")),
    ("size", image(2, width=0)),
    ("size", image(2, height=-1)),
    ("image_id", image(2, image_id=image_id("d.jpg"))),
    ("image_id", image(2, image_id="")),
    ("planned_image", lambda rows: rows.remove(rows[2])),
    ("image_twice", lambda rows: rows.append(rows[2])),
]  # fmt: skip


@pytest.mark.integration
@pytest.mark.parametrize(("kind", "spoil"), ROWS, ids=[f"{kind}-{i}" for i, (kind, _) in enumerate(ROWS)])
def test_a_spoiled_row_is_named(run: Run, kind: str, spoil: Callable[[list[dict[str, Any]]], None]) -> None:
    spoiled = rows()
    spoil(spoiled)
    publish_rows(run, spoiled)
    assert kinds(run) == [kind]
    assert check(run).exit_code == 3


def test_one_bad_row_is_shown_with_its_image_and_values(run: Run) -> None:
    spoiled = rows()
    spoiled[0]["instances"][0]["score"] = spoiled[0]["instances"][2]["score"] = 2.0
    publish_rows(run, spoiled)
    (found,) = check(run).violations
    assert found.where.startswith("instances/class=stop_sign/b00001-")
    assert found.found == "image_key 'a.jpg', score 2.0 (2 rows)"


def test_a_score_that_is_no_number_is_named(run: Run) -> None:
    spoiled = rows()
    spoiled[0]["instances"][1]["score"] = float("nan")
    publish_rows(run, spoiled)
    assert "score" in kinds(run)  # the log, whose statistics it spoils too, then has no row count


def test_an_image_of_which_a_later_batch_repeats_the_row_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_rows(run, rows())
    monkeypatch.setattr(merge, "_keys_with_rows", lambda *args: pa.array([], pa.string()))
    publish_rows(run, [good("c.jpg", [])])
    assert {(v.kind, v.where) for v in check(run).violations} == {("image_twice", "c.jpg")}


# ---- files: rewritten, damaged, removed -----------------------------------------------------------


def file(run: Run, pattern: str) -> Path:
    (found,) = Path(run.root).glob(pattern)
    return found


def rewrite(run: Run, pattern: str, change: Callable[[pa.Table], pa.Table], settings: Any = None) -> None:
    path = file(run, pattern)
    pq.write_table(change(pq.read_table(path, partitioning=None)), path, **(settings or {}))


STOP, BOTTLE, IMAGES = "instances/class=stop_sign/*.parquet", "instances/class=bottle/*.parquet", "images/*.parquet"


def damage(path: Path) -> None:
    """Flip a bit in the first page's data: nothing but its checksum can tell."""
    data = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(0).column(13)
    data[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign_class(run: Run) -> None:
    """A file whose rows belong to another class than its folder."""
    other = pq.read_table(file(run, STOP), partitioning=None)
    rewrite(run, BOTTLE, lambda t: other.filter(pc.equal(other["instance"], 0)).slice(0, 1))


FILES: list[tuple[list[str], Callable[[Run], None]]] = [
    (["file_missing"], lambda run: file(run, STOP).unlink()),
    (["file_missing"], lambda run: file(run, IMAGES).unlink()),
    (["file_unreadable"], lambda run: damage(file(run, STOP))),
    (["file_size", "file_unreadable"], lambda run: truncate(file(run, STOP))),
    (["file_size", "file_unreadable"], lambda run: empty(file(run, IMAGES))),
    (["file_rows", "file_size", "n_instances"], lambda run: rewrite(run, STOP, lambda t: t.slice(1))),
    (["file_schema", "file_size"], lambda run: rewrite(run, STOP, lambda t: t.drop_columns(["area"]))),
    (
        ["file_schema", "file_size"],
        lambda run: rewrite(run, IMAGES, lambda t: t.set_column(4, "bytes", t["bytes"].cast(pa.int32()))),
    ),
    (["class", "file_size", "instance_numbers"], foreign_class),
]


@pytest.mark.parametrize(("expected", "spoil"), FILES, ids=[f"{kinds[0]}-{i}" for i, (kinds, _) in enumerate(FILES)])
def test_a_spoiled_file_is_named(run: Run, expected: list[str], spoil: Callable[[Run], None]) -> None:
    publish_rows(run, rows())
    spoil(run)
    assert kinds(run) == expected


def test_an_instance_without_an_image_and_a_batch_from_the_future_are_named(run: Run) -> None:
    publish_rows(run, rows())

    def renamed(table: pa.Table) -> pa.Table:
        fields = {"image_key": "x.jpg", "image_id": image_id("x.jpg"), "batch": 7}
        arrays = [
            pa.array([fields[f.name]] * table.num_rows, f.type) if f.name in fields else table[f.name]
            for f in table.schema
        ]
        return pa.table(arrays, schema=table.schema)

    rewrite(run, BOTTLE, renamed)
    assert set(kinds(run)) - {"file_size"} == {"no_image", "batch", "n_instances"}
    assert ("instances", "image_key 'x.jpg', instance 1 (1 row)") in {
        (v.where[:9], v.found) for v in check(run).violations
    }


def test_files_that_no_commit_names_are_a_warning(run: Run) -> None:
    publish_rows(run, rows())
    merged(run, 2, [good("e.jpg", [13])])
    report = check(run)
    assert report.violations == ()
    assert report.counts["unlisted_files"] == 2
    assert all("segray maintain" in warning for warning in report.warnings)


# ---- records --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [None, b"{", b"[]", b"{}", b'{"schema_version": 2, "fingerprint": "f", "classes": []}']
)
def test_a_label_set_record_that_is_none_is_named(run: Run, content: bytes | None) -> None:
    publish_rows(run, rows())
    path = Path(run.root, "_segray", "label_set.json")
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    assert kinds(run) == ["label_set"]


def test_a_plan_that_was_changed_is_named(run: Run) -> None:
    publish_rows(run, rows())
    (part,) = Path(run.folder, "plan").glob("part-*.parquet")
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    assert kinds(run) == ["run"]


def test_the_plan_of_a_run_that_goes_on_need_not_be_done(run: Run) -> None:
    publish_rows(run, rows()[:2])
    assert kinds(run) == ["planned_image"]
    run.save(Store(), {"state": "running"})
    assert kinds(run) == []


def planned(run: Run, day: int, keys: list[str], gone: list[str]) -> None:
    """A finished run of that day, to label these and to retire those."""
    later = Run(run.root, f"202601{day:02d}T000000Z-a")
    listed = {"image_key": keys, "uri": keys, "version": ["1"] * len(keys), "bytes": [9] * len(keys)}
    retired = pa.table({"image_key": gone, "batch": [1] * len(gone)}, schema=schema.RETIRED)
    plan.freeze(Store(), later.folder, plan.ImageList(pa.table(listed, schema=schema.PLAN), ""), 8, retired)
    later.save(Store(), {"state": "done", "updated": "2026-01-09T00:00:00+00:00"})


def test_a_row_may_be_gone_once_its_run_or_a_later_one_retired_it(run: Run) -> None:
    publish_rows(run, rows()[1:3])
    planned(run, 2, ["d.jpg"], ["a.jpg"])
    assert kinds(run) == ["planned_image"]
    planned(run, 3, [], ["d.jpg"])
    assert kinds(run) == []
    planned(run, 4, ["a.jpg"], [])
    (found,) = check(run).violations
    assert (found.where, found.found) == ("20260104T000000Z-a", "1 of 1 images have no row, first 'a.jpg'")


def test_each_plan_is_read_once_however_many_runs_retire(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_rows(run, rows()[1:])
    for day in range(2, 8):
        planned(run, day, ["a.jpg"], ["a.jpg"])
    loaded, load = [], plan.load
    monkeypatch.setattr(plan, "load", lambda store, folder: loaded.append(folder) or load(store, folder))
    assert kinds(run) == []
    assert len(loaded) == len(set(loaded)) == 7


def test_half_a_commit_is_told_and_the_batch_before_is_checked(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    publish_rows(run, rows())
    commit_table = commit._commit_table

    def stop(root: str, options: Any, name: str, *rest: Any) -> None:
        if name == "images":
            raise KeyboardInterrupt
        commit_table(root, options, name, *rest)

    monkeypatch.setattr(commit, "_commit_table", stop)
    with pytest.raises(KeyboardInterrupt):
        publish_rows(run, [good("a.jpg", [44], version="2"), good("e.jpg", [13])])
    monkeypatch.undo()
    report = check(run)
    assert report.violations == ()
    assert any("batch 2 has reached `instances` but not `images`" in warning for warning in report.warnings)
    commit.recover(run.root, OPTIONS, Store())
    assert check(run).counts["batch"] == 2
    assert check(run).violations == ()


def test_where_no_label_set_is_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(LabelSetError, match="no label set"):
        verify(str(tmp_path / "nothing"), OPTIONS)


# ---- the command ----------------------------------------------------------------------------------


def test_the_command_says_what_is_wrong_and_ends_with_3(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    publish_rows(run, rows())
    assert main.run(["verify", run.root]) == 0
    assert "no violations" in capsys.readouterr().out
    file(run, BOTTLE).unlink()
    assert main.run(["verify", run.root]) == 3
    assert "file_missing: instances/class=bottle/" in capsys.readouterr().out
    assert main.run(["verify", run.root, "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["violations"][0]["kind"] == "file_missing"
    assert main.run(["verify", run.root + "-not"]) == 2


def test_the_command_shows_twenty_of_many(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    publish_rows(run, rows() + [good(f"{i}.jpg", [13]) | {"n_instances": 2} for i in range(30)])
    assert main.run(["verify", run.root]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 22
    assert lines[-1] == "30 violations, the first 20 shown"


@pytest.mark.thorough
@pytest.mark.integration
def test_in_a_bucket(swift_env: Swift) -> None:
    options = StorageOptions(endpoint_url=swift_env.endpoint_url)
    root = f"s3://{swift_env.bucket()}/labels"
    run = make(root, options)
    publish_rows(run, rows(), options)
    assert main.run(["verify", root, "--endpoint-url", swift_env.endpoint_url]) == 0
    publish_rows(run, [good("e.jpg", [13, 44]), good("a.jpg", [13], version="2")], options)
    done = maintain(root, options, grace_hours=0, limits=CompactionThresholds(files=2))
    assert done.compacted == {"instances": (2, 1), "images": (2, 1)}
    report = verify(root, options)
    assert (report.violations, report.warnings) == ((), ())
    assert (report.counts["files"], report.counts["images"]) == (3, 5)
    store = Store(options)
    store.delete(next(e.uri for e in store.list(join(root, "instances")) if "class=bottle" in e.uri))
    assert [v.kind for v in verify(root, options).violations] == ["file_missing"]
