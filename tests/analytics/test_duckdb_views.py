from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import label_sets
import numpy as np
import polars as pl
import pytest
from label_sets import Image
from swift_server import Swift

import segray
from segray import rle
from segray.analytics.evaluation.evaluate import evaluate
from segray.analytics.export.export import export
from segray.analytics.query import polars_frames as ex
from segray.analytics.reports.diff import diff
from segray.errors import LabelSetError, UserError
from segray.label_set import commit, snapshot
from segray.label_set.maintenance import maintain
from segray.monitoring import console
from segray.storage.store import StorageOptions, Store

pytestmark = pytest.mark.integration

SQUARE = rle.encode_crop(np.ones((3, 2), np.bool_), 1, 1, (8, 10))
BAR = rle.encode_crop(np.ones((1, 9), np.bool_), 0, 2, (8, 10))


def picture(*found: tuple[int, float, str]) -> Image:
    return Image((8, 10), found)


@pytest.fixture
def root(tmp_path: Path) -> str:
    """Two batches: two images, then a changed one and a new one that failed."""
    made = label_sets.write(tmp_path, {"a": picture((13, 0.9, SQUARE), (44, 0.5, BAR)), "b": picture()})
    return label_sets.write(made, {"a": picture((44, 0.8, BAR)), "c": Image((0, 0), failed=True)})


def rows(con: duckdb.DuckDBPyConnection, query: str) -> list[tuple[object, ...]]:
    return con.execute(query).fetchall()


def test_views_show_one_state_and_earlier_ones_on_demand(root: str) -> None:
    con = duckdb.connect()
    shown = segray.sql(con, root)
    assert shown is not None
    assert shown.batch == 2
    found = "SELECT image_key, class, class_id, rle_area(rle) FROM instances ORDER BY ALL"
    states = "SELECT image_key, status FROM images ORDER BY ALL"
    assert rows(con, found) == [("a", "bottle", 44, 9)]
    assert rows(con, states) == [("a", "ok"), ("b", "empty"), ("c", "failed")]
    assert rows(con, "SELECT class FROM classes WHERE class_id = 13") == [("stop_sign",)]
    segray.sql(con, root, version=1)
    assert rows(con, found) == [("a", "bottle", 44, 9), ("a", "stop_sign", 13, 6)]
    assert rows(con, states) == [("a", "ok"), ("b", "empty")]
    segray.sql(con, root, version=0)
    assert rows(con, found) == rows(con, states) == []


@pytest.mark.parametrize("folder", ["set*1?", 'it\'s "$HOME" `x`!'])
def test_the_query_that_a_run_prints_works_for_any_name(tmp_path: Path, folder: str) -> None:
    root = label_sets.write(tmp_path / folder, {"a": picture((13, 0.9, SQUARE))})
    (line,) = [line for line in console.next_steps(root) if line.startswith("query:")]
    command = line.removeprefix("query:").replace("segray", f"{sys.executable} -m segray", 1)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert re.findall(r"│ (bottle|stop sign) +│ +(\d+)", done.stdout) == [("stop sign", "1")]


def test_the_query_that_a_run_prints_counts_no_row_twice(root: str) -> None:
    """The first batch's row of the changed image is still in a file."""
    (line,) = [line for line in console.next_steps(root) if line.startswith("query:")]
    command = shlex.split(line.removeprefix("query:"))
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, check=True)
    assert re.findall(r"│ (bottle|stop sign) +│ +(\d+)", done.stdout) == [("bottle", "1")]


def test_a_filter_in_sql_finds_its_rows(root: str) -> None:
    con = duckdb.connect()
    segray.sql(con, root)
    assert rows(con, "SELECT count(*) FROM instances WHERE area > 5 AND width = 10 AND rle = rle") == [(1,)]


def test_a_state_by_its_moment(tmp_path: Path) -> None:
    root = label_sets.write(tmp_path, {"a": picture((13, 0.9, SQUARE))})
    time.sleep(0.05)
    between = datetime.now(UTC)
    time.sleep(0.05)
    label_sets.write(tmp_path, {"b": picture((13, 0.9, SQUARE))})
    assert snapshot.snapshot(root, as_of=between).batch == 1
    assert snapshot.snapshot(root, as_of=between).instances.count_rows() == 1
    assert snapshot.snapshot(root, as_of=datetime.now(UTC) + timedelta(days=1)).instances.count_rows() == 2
    with pytest.raises(LabelSetError, match="does not reach back"):
        snapshot.snapshot(root, as_of=between - timedelta(days=1))
    with pytest.raises(UserError, match="time zone"):
        snapshot.snapshot(root, as_of=datetime(2026, 1, 1))
    with pytest.raises(UserError, match="both"):
        snapshot.snapshot(root, as_of=between, version=1)


def test_a_commit_that_reached_one_table_is_not_shown(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    commit_table = commit._commit_table

    def half(root: str, options: StorageOptions, name: str, *rest: object) -> None:
        if name == "images":
            raise KeyboardInterrupt
        commit_table(root, options, name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(commit, "_commit_table", half)
    with pytest.raises(KeyboardInterrupt):
        label_sets.write(root, {"d": picture((13, 0.9, SQUARE))})
    shown = snapshot.snapshot(root)
    assert (shown.batch, shown.instances.count_rows(), shown.images.count_rows()) == (2, 1, 3)


def test_a_state_that_is_not_there_is_an_error(root: str, tmp_path: Path) -> None:
    with pytest.raises(LabelSetError, match="asked for batch 3, the last is 2"):
        segray.sql(duckdb.connect(), root, version=3)
    with pytest.raises(LabelSetError, match="no label set"):
        segray.sql(duckdb.connect(), str(tmp_path / "nowhere"))


def test_functions_are_the_same_in_duckdb_and_polars(root: str) -> None:
    con = duckdb.connect()
    assert segray.sql(con) is None
    segray.sql(con, root, version=1)
    columns = {
        "area": ("rle_area(rle)", ex.rle_area("rle")),
        "box": ("rle_bbox(rle, height)", ex.rle_bbox("rle", "height")),
        "same": ("rle_iou(rle, rle)", ex.rle_iou("rle", "rle")),
        "pixels": ("rle_decode(rle, height, width)", ex.rle_decode("rle", "height", "width")),
        "union": ("rle_merge([rle, rle])", ex.rle_merge(pl.concat_list("rle", "rle"))),
        "there": ("rle_contains(rle, height, 1, 2)", ex.rle_contains("rle", "height", 1, 2)),
        "away": ("rle_contains(rle, height, 1, 1)", ex.rle_contains("rle", "height", 1, 1)),
        "outline": ("rle_polygon(rle, height, width)", ex.rle_polygon("rle", "height", "width")),
    }
    query = ", ".join(f"{call} AS {name}" for name, (call, _) in columns.items())
    theirs = con.execute(f"SELECT {query} FROM instances ORDER BY score DESC").fetchall()
    frame = ex.scan(root, version=1).sort("score", descending=True)
    mine = frame.select(expression.alias(name) for name, (_, expression) in columns.items()).collect()
    assert [tuple(row.values()) for row in mine.to_dicts()] == theirs
    square, bar = mine.to_dicts()
    assert square["box"] == {"x": 1, "y": 1, "w": 2, "h": 3}
    assert square["outline"] == [[3, 1, 3, 4, 1, 4, 1, 1]]
    assert (square["area"], square["away"], bar["area"], bar["away"]) == (6, True, 9, False)


def test_frames_are_of_one_state_whatever_is_committed_later(root: str) -> None:
    instances, images, classes = ex.frames(root)
    earlier = ex.frames(root, version=1)
    label_sets.write(root, {"b": picture((13, 0.9, SQUARE))})
    assert instances.select("image_key").collect().rows() == [("a",)]
    assert images.select("image_key", "status").sort("image_key").collect().rows() == [
        ("a", "ok"), ("b", "empty"), ("c", "failed"),
    ]  # fmt: skip
    assert earlier.images.select(pl.len()).collect().item() == 2
    assert classes.filter(pl.col("class_id") == 13).collect().rows() == [(13, "stop sign", "stop_sign")]
    assert ex.scan(root).select(pl.len()).collect().item() == 2


def test_null_gives_null(root: str) -> None:
    con = duckdb.connect()
    segray.sql(con)
    calls = ("rle_area(x)", "rle_bbox(x, 2)", "rle_iou(x, x)", "rle_decode(x, 2, 2)", "rle_merge([x])",
             "rle_contains(x, 2, 0, 0)", "rle_polygon(x, 2, 2)")  # fmt: skip
    query = ", ".join(calls)
    assert rows(con, f"SELECT {query} FROM (SELECT NULL::VARCHAR AS x)") == [(None,) * 7]


def test_masks_merged_by_image(root: str) -> None:
    con = duckdb.connect()
    segray.sql(con, root, version=1)
    query = "SELECT image_key, rle_area(rle_merge(list(rle))) FROM instances GROUP BY image_key"
    assert rows(con, query) == [("a", 13)]
    merged = ex.scan(root, version=1).group_by("image_key").agg(ex.rle_merge(pl.col("rle").implode()))
    assert merged.select("image_key", ex.rle_area("rle")).collect().rows() == [("a", 13)]


def test_malformed_counts_fail_the_query() -> None:
    con = duckdb.connect()
    segray.sql(con)
    with pytest.raises(duckdb.InvalidInputException, match="character 0"):
        con.execute("SELECT rle_area('zz')").fetchall()


@pytest.mark.thorough
def test_everything_works_on_a_bucket(swift: Swift, swift_env: Swift, tmp_path: Path) -> None:
    bucket, options = swift.bucket(), {"endpoint_url": swift.endpoint_url}
    root, truth = f"s3://{bucket}/labels", f"s3://{bucket}/truth.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", swift.endpoint_url)
        label_sets.write(root, {"a": picture((13, 0.9, SQUARE))})
    con = duckdb.connect()
    shown = segray.sql(con, root, **options)
    assert shown is not None
    assert rows(con, "SELECT image_key, rle_area(rle) FROM instances WHERE area > 0") == [("a", 6)]
    assert ex.scan(root, "images", **options).collect()["image_key"].to_list() == ["a"]
    done = export(root, "coco", tmp_path / "out.json", **options)
    assert done.instances == 1
    Store(StorageOptions(**options)).put(truth, (tmp_path / "out.json").read_bytes())
    assert evaluate(root, truth, **options).scores["segm"].ap == pytest.approx(1)
    assert diff(root, root, **options).kinds["kept"] == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", swift.endpoint_url)
        label_sets.write(root, {"a": picture()})
    assert diff(root, root, version_a=1, **options).kinds["lost"] == 1
    maintain(root, StorageOptions(**options), grace_hours=0)
    with pytest.raises(LabelSetError, match="were deleted"):
        snapshot.snapshot(root, version=1, **options)
