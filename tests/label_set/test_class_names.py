from __future__ import annotations

import json
import os
import re
from pathlib import Path
from urllib.parse import unquote

import duckdb
import label_sets
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from hypothesis import example, given
from hypothesis import strategies as st
from label_sets import Image

import segray
from segray import rle
from segray.analytics.query import polars_frames
from segray.label_set import maintenance, snapshot
from segray.label_set.class_names import (
    find_class,
    folded,
    name_of_value,
    partition_folder,
    partition_value,
    value_of_folder,
)
from segray.label_set.validation import verify
from segray.models.coco_labels import COCO_NAMES
from segray.storage.store import StorageOptions

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
ODD_NAMES = [
    "болт", "гайка", "болт 1", "гайка 1", "螺栓", "螺母", "müll", "mäll", "café", "cafe\u0301", "caf", "!", "?",
    "0042", "007", "42", "1e5", "12A", "12a", "true", "2026-11-20", "null", "NULL", "Null", "nan", "a/b", "a\\b", "x=y",
    "100 %", "a:b", "*", 'q"q', "..", ".hidden", "_x", HIVE_NULL, "stop sign", "stop_sign", "Stop Sign", "stop%5Fsign",
    " ", "  ", "_", "%", "%25", "%~", "it's", "#1", "[x]", "{x}", "a\nb", "a+b", "дорожный знак " * 5,
    "дорожный знак " * 5 + "!", "🚗",
]  # fmt: skip
SIZE_HW = (8, 8)
MASK = rle.encode(np.ones(SIZE_HW, np.bool_))
TEXT_CLASS = ds.partitioning(pa.schema([("class", pa.string())]), flavor="hive")


names = st.one_of(st.text(), st.text("ab_% ~25FnulNUL"), st.sampled_from(ODD_NAMES))


@given(names)
@example("дорожный знак ограничение максимальной скорости и другие ограничения")
def test_a_value_gives_its_name_again(name: str) -> None:
    value = partition_value(name)
    assert name_of_value(value) == (name if len(partition_folder(value)) < 220 or "%~" not in value else None)
    assert value_of_folder(partition_folder(value)) == value


@given(names, names)
def test_two_names_never_have_one_value_or_one_folder(a: str, b: str) -> None:
    assert (partition_value(a) == partition_value(b)) == (a == b)
    assert (partition_folder(partition_value(a)) == partition_folder(partition_value(b))) == (a == b)


@given(names)
def test_a_folder_is_one_that_every_file_system_and_reader_takes(name: str) -> None:
    folder = partition_folder(partition_value(name))
    assert re.fullmatch(r"class=[A-Za-z0-9_.~%-]+", folder)
    assert len(folder) <= 255
    assert unquote(folder, errors="surrogatepass") not in (f"class={HIVE_NULL}", "class=")
    assert partition_value(name).casefold() != "null"


@given(st.integers(250, 400), st.sampled_from(["a", "_", "%", "я", "螺", "🚗", "null "]))
def test_long_names_stay_apart(count: int, part: str) -> None:
    values = {partition_value(part * count), partition_value(part * count + "!"), partition_value(part * (count + 1))}
    assert len(values) == 3
    assert all(len(partition_folder(value)) <= 255 for value in values)
    assert all(name_of_value(value) is None for value in values)


def test_the_values_of_words_in_small_letters_are_those_of_earlier_versions() -> None:
    expected = {name: re.sub(r"[^a-z0-9]+", "_", name) for name in COCO_NAMES.values()}
    assert {name: partition_value(name) for name in COCO_NAMES.values()} == expected
    assert {partition_folder(value) for value in expected.values()} == {f"class={value}" for value in expected.values()}


def test_the_values_that_the_documents_show() -> None:
    shown = {"tennis racket": "tennis_racket", "hard_hat": "hard%5Fhat", "болт 1": "болт_1", "a/b": "a/b", "TV": "TV",
             "null": "%6Eull", "007": "007", "100%": "100%25"}  # fmt: skip
    assert {name: partition_value(name) for name in shown} == shown
    assert partition_folder("болт_1") == "class=%D0%B1%D0%BE%D0%BB%D1%82_1"


def test_a_text_means_a_class_only_where_no_other_could_be_meant() -> None:
    classes = {1: "stop sign", 2: "Café", 3: "болт 1", 4: "гайка 1", 5: "Helmet", 6: "HELMET", 7: "hard_hat"}
    meant = {
        "stop sign": 1, "Stop Sign": 1, "stop_sign": 1, "stop-sign": 1, "cafe\u0301": 2, "caf": None, "БОЛТ_1": 3,
        "Helmet": 5, "helmet": None, "hard hat": 7, "hard%5Fhat": 7, "": None, "1": None,
    }  # fmt: skip
    assert {text: find_class(text, classes) for text in meant} == meant
    assert find_class("tv", {1: "TV", 2: "t v"}, {1: "tv", 2: "t_v"}) == 1
    assert folded("कि") != folded("का")


# ---- label sets -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A label set with one instance of each odd name, in three batches, with replaced rows and a compaction."""
    folder, classes = tmp_path_factory.mktemp("odd") / "labels", dict(enumerate(ODD_NAMES, 1))
    images = {f"{i:03d}.jpg": Image(SIZE_HW, [(i, 0.5, MASK)]) for i in classes}
    for _ in range(2):
        label_sets.write(folder, images, classes=classes)
    label_sets.write(folder, {f"x{key}": image for key, image in images.items()}, classes=classes)
    maintenance.maintain(str(folder), StorageOptions(), grace_hours=0, limits=maintenance.CompactionThresholds(files=2))
    return str(folder)


def by_name(rows: list[dict[str, object]]) -> dict[object, set[object]]:
    values: dict[object, set[object]] = {}
    for row in rows:
        values.setdefault(row["class_name"], set()).add(row["class"])
    return values


EXPECTED = {name: {partition_value(name)} for name in ODD_NAMES}


def test_every_reader_shows_the_same_text_for_every_class(root: str) -> None:
    glob, columns = f"{root}/instances/class=*/*.parquet", ["class_name", "class"]
    readers = {
        "segray": segray.scan(root).to_table(columns=columns).to_pylist(),
        "segray.sql": sql_rows(root),
        "frames": polars_frames.frames(root).instances.select(columns).collect().to_dicts(),
        "deltalake": DeltaTable(f"{root}/instances").to_pyarrow_table(columns=columns).to_pylist(),
        "polars by the log": pl.scan_delta(f"{root}/instances").select(columns).collect().to_dicts(),
        "polars": pl.scan_parquet(glob, hive_partitioning=True, hive_schema={"class": pl.String})
        .select(columns).collect().to_dicts(),
        "pyarrow": ds.dataset(f"{root}/instances", partitioning=TEXT_CLASS, exclude_invalid_files=False,
                              ignore_prefixes=["_"]).to_table(columns=columns).to_pylist(),
        "duckdb": duckdb.sql(
            f"SELECT class_name, class FROM read_parquet('{glob}', hive_partitioning=true, "
            "hive_types={'class': 'VARCHAR'})"
        ).to_arrow_table().to_pylist(),
    }  # fmt: skip
    assert {name: len(rows) for name, rows in readers.items()} == dict.fromkeys(readers, 2 * len(ODD_NAMES))
    for name, rows in readers.items():
        assert by_name(rows) == EXPECTED, name


def sql_rows(root: str) -> list[dict[str, object]]:
    connection = duckdb.connect()
    segray.sql(connection, root)
    joined = connection.sql("SELECT class_name, class FROM instances JOIN classes USING (class_id, class_name, class)")
    return list(joined.to_arrow_table().to_pylist())


def test_a_filter_on_the_class_reads_only_its_files(root: str) -> None:
    for name in ODD_NAMES:
        rows = segray.scan(root).to_table(filter=ds.field("class") == partition_value(name), columns=["class_name"])
        assert rows.column("class_name").to_pylist() == [name] * 2


def test_the_label_set_of_odd_names_is_valid_and_is_kept_small_by_maintenance(root: str) -> None:
    report = verify(root, StorageOptions())
    assert (report.violations, report.warnings) == ((), ())
    folders = {path.name: list(path.iterdir()) for path in Path(root, "instances").glob("class=*")}
    assert len(folders) == len(ODD_NAMES)
    assert all(len(files) == 1 for files in folders.values())


def test_a_label_set_of_an_earlier_version_is_extended_in_its_own_folders(tmp_path: Path) -> None:
    """Earlier versions gave TV the value tv. Its label set goes on with it, for the same command."""
    classes, images = {1: "TV", 2: "T-shirt (red)", 3: "hard_hat"}, {"a.jpg": Image(SIZE_HW, [(1, 0.9, MASK)])}
    root, values = tmp_path / "labels", {1: "tv", 2: "t_shirt_red", 3: "hard_hat"}
    label_sets.write(root, images, classes=classes, values=values)
    images = {"a.jpg": Image(SIZE_HW, [(2, 0.8, MASK)]), "b.jpg": Image(SIZE_HW, [(1, 0.9, MASK), (3, 0.7, MASK)])}
    label_sets.write(root, images, classes=classes)
    maintenance.maintain(str(root), StorageOptions(), limits=maintenance.CompactionThresholds(files=2))
    assert {path.name for path in (root / "instances").glob("class=*")} == {f"class={v}" for v in values.values()}
    assert by_name(segray.scan(str(root)).to_table().to_pylist()) == {classes[i]: {values[i]} for i in values}
    assert verify(str(root), StorageOptions()).violations == ()
    assert snapshot.snapshot(str(root)).partitions == values
    recorded = json.loads((root / "_segray/label_set.json").read_text())["classes"]
    assert {entry["id"]: entry["slug"] for entry in recorded} == values


def test_another_list_of_names_is_another_label_set(tmp_path: Path) -> None:
    label_sets.write(tmp_path / "labels", {"a.jpg": Image(SIZE_HW)}, classes={1: "TV"})
    with pytest.raises(segray.errors.LabelSetError, match="another model"):
        label_sets.write(tmp_path / "labels", {"b.jpg": Image(SIZE_HW)}, classes={1: "tv"})


def test_files_hold_names_byte_for_byte(root: str) -> None:
    stored = set()
    for folder, _, files in os.walk(Path(root, "instances")):
        for file in files:
            if file.endswith(".parquet") and "_delta_log" not in folder:
                stored.update(pq.ParquetFile(Path(folder, file)).read(["class_name"]).column(0).to_pylist())
    assert stored == set(ODD_NAMES)
