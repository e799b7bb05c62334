"""Every block of Python, SQL and shell in README.md and the pages of readers is run as it stands, or at least parsed.

The twenty queries have test_cookbook.py, and the recipe for Spark has test_spark.py.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import fences
import label_sets
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from fences import Block
from label_sets import Image
from typer.main import get_command

import segray
from segray import rle
from segray.analytics.export.export import export
from segray.cli import main as cli

pytestmark = pytest.mark.integration

PAGES = ("README.md", "docs/reading.md", "docs/analytics.md")
_QUERIES = "## Twenty queries"
_OTHER_TESTS = {"pyspark": "tests/analytics/test_spark.py runs the recipe"}
SHELL_PAGES = (
    "README.md",
    *sorted(str(path.relative_to(fences.REPO)) for path in (fences.REPO / "docs").rglob("*.md")),
)
# Commands that only read a label set, or write a file of their own.
READERS = ("info", "sql", "threshold", "evaluate", "diff", "select", "review", "export", "report", "verify", "maintain")
FAILED_GATE = 4


def before_queries(page: str, language: str) -> list[Block]:
    """The blocks of a page, without those of the twenty queries."""
    text = (fences.REPO / page).read_text("utf-8")
    end = text.count("\n", 0, text.index(_QUERIES)) if _QUERIES in text else text.count("\n")
    return [block for block in fences.blocks(page, language) if block.line <= end]


def in_pages(language: str) -> list[Any]:
    return [pytest.param(block, id=str(block)) for page in PAGES for block in before_queries(page, language)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders with a label set `labels`: after a replaced image, without any instance, and of a class like a number."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("replaced", "empty", "number")}
    scenes = label_sets.stickers(24)
    first = min(scenes)
    label_sets.write(folders["replaced"] / "labels", scenes)
    label_sets.write(folders["replaced"] / "labels", {first: replace(scenes[first], found=scenes[first].found[:1])})
    label_sets.write(folders["empty"] / "labels", {"a": Image((8, 10)), "b": Image((0, 0), failed=True)})
    mask = rle.encode_crop(np.ones((1, 1), np.bool_), 0, 0, (8, 10))
    label_sets.write(folders["number"] / "labels", {"a": Image((8, 10), [(1, 0.9, mask)])}, classes={1: "007"})
    return folders


@pytest.fixture(params=["replaced", *(pytest.param(name, marks=pytest.mark.thorough) for name in ("empty", "number"))])
def folder(request: pytest.FixtureRequest, made: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a reader, beside `labels`."""
    monkeypatch.chdir(made[request.param])
    return made[request.param]


@pytest.mark.parametrize("block", in_pages("python"))
def test_a_block_of_python_runs_as_it_stands_whatever_the_label_set_holds(block: Block, folder: Path) -> None:
    """Tables of instances hold the rows of the log, with classes as text. The glob counts replaced rows too."""
    if "load_model" in block.code:
        pytest.skip("tests/api/test_docs_python.py runs the block")
    for package in fences.packages(block):
        if package in _OTHER_TESTS:
            pytest.skip(_OTHER_TESTS[package])
        pytest.importorskip(package, reason=f"the block needs {package}")
    log = segray.scan("labels").to_table()
    for value in fences.run(block.code, {}):
        frame = pl.from_arrow(value) if isinstance(value, pa.Table) else value
        if not isinstance(frame, pl.DataFrame) or "rle" not in frame.columns:
            continue
        names = [name for name in ("class", "class_name") if name in frame.columns]
        assert all(frame.schema[name] == pl.String for name in names)
        counts_replaced_rows = "scan_parquet" in block.code and folder.name.startswith("replaced")
        if "filter" not in block.code and not counts_replaced_rows:
            rows = [tuple(row.values()) for row in log.select(names).to_pylist()]
            assert sorted(frame.select(names).rows()) == sorted(rows)


def load_delta() -> duckdb.DuckDBPyConnection:
    """Return a connection with DuckDB's extension `delta`; skip the test if the extension is not at hand."""
    con = duckdb.connect(config={"allow_unsigned_extensions": "true", "autoinstall_known_extensions": "false"})
    ((version,),) = con.execute("SELECT library_version FROM pragma_version()").fetchall()
    spec = importlib.util.find_spec("duckdb_ext")  # of the package duckdb-ext-delta, for one version of DuckDB
    folders = [] if spec is None else list(spec.submodule_search_locations or [])
    files = [path for folder in folders for path in Path(folder).glob(f"extensions/{version}/*/delta.*")]
    try:
        con.execute(f"LOAD '{files[0]}'" if files else "LOAD delta")
    except duckdb.Error as error:
        pytest.skip(f"DuckDB's extension delta is not at hand: {str(error).splitlines()[0]}")
    return con


@pytest.mark.parametrize("block", in_pages("sql"))
def test_a_block_of_sql_counts_the_rows_of_the_log(block: Block, folder: Path) -> None:
    counts: dict[str, int] = {}
    for name in segray.scan("labels").to_table(["class_name"]).column("class_name").to_pylist():
        counts[name] = counts.get(name, 0) + 1
    if "deltaLakeLocal" in block.code:
        chdb = pytest.importorskip("chdb", reason="ClickHouse is the package chdb")
        lines = str(chdb.query(block.code.replace("/data/", f"{folder}/"), "JSONEachRow")).splitlines()
        rows = [tuple(json.loads(line).values()) for line in lines]
    else:
        rows = load_delta().execute(block.code).fetchall()
    assert {name: int(count) for name, count in rows} == counts


def test_the_pages_of_readers_begin_with_the_log_and_end_with_the_glob() -> None:
    for page in PAGES[1:]:
        text = (fences.REPO / page).read_text("utf-8")
        places = [
            text.index(name) for name in ("segray.s", "scan_delta(", "DeltaTable(", "delta_scan(", "scan_parquet(")
        ]
        assert places == sorted(places), page
        assert "deltaLakeLocal(" in text[: places[-1]]


def test_the_function_for_fiftyone_names_files_of_the_export(
    made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FiftyOne is seldom installed. Its part here reads what the arguments of the call name."""
    (block,) = [block for block in fences.blocks("docs/analytics.md", "python") if "def to_fiftyone" in block.code]

    def from_dir(folder: str, dataset_type: str, *, label_types: str, data_path: str) -> dict[str, Any]:
        assert (dataset_type, label_types) == ("coco", "segmentations")
        labels = json.loads(Path(folder, "labels.json").read_text("utf-8"))
        places = json.loads(Path(folder, data_path).read_text("utf-8"))
        assert len(places) == len(labels["images"])
        return {"scores": [row["score"] for row in labels["annotations"]]}

    fiftyone = SimpleNamespace(
        Dataset=SimpleNamespace(from_dir=from_dir), types=SimpleNamespace(COCODetectionDataset="coco")
    )
    monkeypatch.setitem(sys.modules, "fiftyone", fiftyone)
    shutil.copytree(made["replaced"] / "labels", tmp_path / "labels")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    fences.run(block.code, namespace)
    sure = segray.scan("labels").count_rows(filter=ds.field("score") >= 0.5)
    assert len(namespace["dataset"]["scores"]) == sure > 0


# ---- shell ----------------------------------------------------------------------------------------


def shell_blocks(pages: Sequence[str], names: Collection[str] = ()) -> list[Any]:
    """The blocks with a command of segray: any, or one of `names`."""
    return [
        pytest.param(block, id=str(block))
        for page in pages
        for block in fences.blocks(page, "sh")
        if any(not names or arguments[0] in names for arguments in fences.commands(block))
    ]


@pytest.mark.parametrize("block", shell_blocks(SHELL_PAGES))
def test_every_command_of_a_block_is_one_that_segray_takes(block: Block) -> None:
    for arguments in fences.commands(block):
        fences.check_usage(get_command(cli.app), arguments)


@pytest.fixture
def workplace(made: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the commands of the two pages read."""
    for name in ("labels", "labels/v1", "labels/v2", "labels-v1", "labels-v2", "labels-yolo", "labels-mask-rcnn"):
        shutil.copytree(made["replaced"] / "labels", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for name in ("truth.json", "COCO.json", "instances_val2017.json", "corrected.json"):
        export("labels", "coco", Path(name))
    return tmp_path


@pytest.mark.parametrize("block", shell_blocks(PAGES, READERS))
def test_commands_that_read_a_label_set_run_as_they_stand(block: Block, workplace: Path) -> None:
    for arguments in fences.commands(block):
        if arguments[0] not in READERS or "lvis_v1_val.json" in arguments:
            continue
        if arguments[0] == "review":
            (workplace / "truth.json").unlink()
        assert cli.run(arguments) in (0, FAILED_GATE), arguments
