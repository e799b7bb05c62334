"""`segray sql` and `segray info`: answers in each form, views for other tools, counts from the log."""

from __future__ import annotations

import csv
import io
import json
import math
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import duckdb
import label_sets
import numpy as np
import pytest
from label_sets import Image

import segray
from segray import rle
from segray.analytics.query import answers, duckdb_views
from segray.analytics.query.overview import overview
from segray.cli import main
from segray.errors import UserError
from segray.label_set import snapshot

SQUARE = rle.encode_crop(np.ones((3, 2), np.bool_), 1, 1, (8, 10))
NAMES = {1: "stop sign", 2: "100 %", 3: 'it\'s "q"', 4: "007", 5: "дорожный знак", 6: "null", 7: "a/b"}


@pytest.fixture(scope="module", params=["labels", "set*1?[a]'s"])
def root(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A label set with odd class names, a replaced image and a failed one."""
    folder = tmp_path_factory.mktemp("sql") / request.param
    first = {key: Image((8, 10), [(number, 0.5, SQUARE)]) for number, key in enumerate("abcdefg", 1)}
    label_sets.write(folder, first, classes=NAMES)
    return label_sets.write(folder, {"a": Image((8, 10), [(2, 0.9, SQUARE)] * 2), "h": Image((0, 0), failed=True)},
                            classes=NAMES)  # fmt: skip


def test_the_views_of_another_duckdb_show_the_same_rows(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own, other = duckdb.connect(), duckdb.connect()
    segray.sql(own, root)
    statements = duckdb_views.statements(snapshot.snapshot(root))
    monkeypatch.chdir("/")
    other.execute(statements)
    for table in ("instances", "images", "classes"):
        query = f"SELECT * FROM {table} ORDER BY ALL"
        assert other.sql(query).to_arrow_table() == own.sql(query).to_arrow_table(), table
        assert other.sql(f"FROM {table}").columns == own.sql(f"FROM {table}").columns
    assert own.execute("SELECT count(*) FROM instances").fetchall() == [(8,)]


def test_the_views_of_an_empty_state_have_columns_and_no_rows(root: str) -> None:
    con = duckdb.connect()
    con.execute(duckdb_views.statements(snapshot.snapshot(root, version=0)))
    assert con.execute("SELECT class_name, score FROM instances WHERE score > 0.5").fetchall() == []
    assert con.execute("SELECT labelled_at FROM images").fetchall() == []


def test_an_overview_counts_what_the_tables_hold(root: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = overview(root)
    con = duckdb.connect()
    segray.sql(con, root)
    by_class = dict(con.execute("SELECT class_name, count(*) FROM instances GROUP BY ALL").fetchall())
    assert dict(result.instances) == by_class
    assert next(iter(result.instances)) == "100 %"
    assert result.images == {"ok": 7, "failed": 1}
    assert (result.batch, result.files) == (2, len(list(Path(root).rglob("*.parquet"))) - 2)  # two were replaced
    assert main.run(["info", root]) == 0
    assert "8 images (7 ok, 1 failed), 8 instances of 6 classes" in capsys.readouterr().out
    assert main.run(["info", root, "--version", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == {"ok": 7}


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_a_query_is_answered_in_each_form(root: str, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    query = "SELECT class_name, sum(rle_area(rle))::BIGINT AS px FROM instances GROUP BY ALL ORDER BY px DESC LIMIT 1"
    assert main.run(["sql", root, query, "--format", form]) == 0
    printed = capsys.readouterr().out
    if form == "table":
        assert "│ 100 %      │    18 │" in printed
    elif form == "csv":
        assert list(csv.reader(io.StringIO(printed))) == [["class_name", "px"], ["100 %", "18"]]
    else:
        assert json.loads(printed) == [{"class_name": "100 %", "px": 18}]


@pytest.mark.parametrize("form", ["csv", "json"])
@pytest.mark.parametrize("count", [0, 1, 25_000])
def test_csv_and_json_have_all_rows(form: str, count: int) -> None:
    text = "\n".join(answers.answer(duckdb.connect(), f"SELECT range AS x FROM range({count})", form, width=80))
    read = json.loads(text) if form == "json" else list(csv.DictReader(io.StringIO(text)))
    assert [int(row["x"]) for row in read] == list(range(count))


def test_values_of_all_kinds_become_json_and_csv() -> None:
    query = """SELECT NULL AS a, 'NaN'::FLOAT AS b, TIMESTAMPTZ '2026-01-02 03:04:05+00' AS c, [1, 2] AS d,
               {'x': 1.5::DECIMAL(4, 1)} AS e, 'é "q"' AS f, '\\xAB'::BLOB AS g, true AS h,
               7::HUGEINT AS j, DATE '2026-01-02' AS i"""
    con = duckdb.connect()
    (record,) = json.loads("\n".join(answers.answer(con, query, "json", width=80)))
    assert record == {"a": None, "b": None, "c": "2026-01-02T03:04:05+00:00", "d": [1, 2], "e": {"x": 1.5},
                      "f": 'é "q"', "g": "ab", "h": True, "i": "2026-01-02", "j": 7}  # fmt: skip
    (row,) = csv.DictReader(io.StringIO("\n".join(answers.answer(con, query, "csv", width=80))))
    assert (row["a"], row["d"], row["f"], row["h"]) == ("", "[1, 2]", 'é "q"', "True")
    assert answers._plain([math.inf, Decimal("2.5"), datetime(2026, 1, 1, tzinfo=UTC)]) == [
        None, 2.5, "2026-01-01T00:00:00+00:00"]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["SELECT x FROM nowhere"], "nowhere does not exist"),
        (["SELECT 1", "--format", "xml"], "use table, csv, json"),
        ([], "give a query or --views"),
        (["SELECT 1", "--views"], "give a query or --views"),
    ],
)
def test_a_wrong_call_says_what_to_write(
    root: str, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.run(["sql", root, *arguments]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("form", answers.FORMATS)
def test_an_empty_query_prints_nothing(form: str) -> None:
    assert list(answers.answer(duckdb.connect(), "", form, width=80)) == []


def test_a_missing_label_set_is_an_error_of_the_user(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["info"], ["sql"]):
        arguments = [*command, str(tmp_path / "none"), *(["SELECT 1"] if command == ["sql"] else [])]
        assert main.run(arguments) == 2
        assert "segray label" in capsys.readouterr().err
    with pytest.raises(UserError):
        list(answers.answer(duckdb.connect(), "SELECT", "csv", width=80))
