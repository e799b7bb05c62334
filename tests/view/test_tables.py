"""What the page counts and lists is what SQL over the label set gives."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import duckdb
import label_sets
import pytest
from label_sets import Image

import segray
from segray.errors import UserError
from segray.label_set.snapshot import snapshot
from segray.view.selection import AREA_BINS, SCORE_BINS, from_query
from segray.view.tables import Tables

QUERIES: list[dict[str, str]] = [
    {}, {"class": "85"}, {"class": "85,44", "score": "0.5.."}, {"score": "..0.4"}, {"area": "500..4000"},
    {"status": "empty,failed"}, {"count": "3.."}, {"text": "KEY-1"}, {"where": "score > 0.5 AND bbox_w > bbox_h"},
    {"where": "class_name = 'clock' -- and no more", "area": "100..", "status": "ok"}, {"order": "score"},
    {"order": "area", "class": "44"}, {"batch": "1", "order": "uncertain"}, {"order": "lowest", "score": "0.2.."},
    {"order": "count"}, {"text": "no such key"},
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("view")
    images = {f"key-{number}-{key}": image for number, (key, image) in enumerate(label_sets.stickers(24).items())}
    images |= {"key-empty": Image((40, 30)), "key-failed": Image((0, 0), failed=True)}
    label_sets.write(folder / "labels", images)
    return folder / "labels"


@pytest.fixture(scope="module")
def tables(root: Path) -> Tables:
    return Tables(snapshot(root))


@pytest.fixture(scope="module")
def con(root: Path) -> Any:
    connection = duckdb.connect()
    segray.sql(connection, str(root))
    return connection


def conditions(query: dict[str, str]) -> tuple[str, str]:
    """The conditions on an image and on an instance, written anew."""
    image, instance = ["true"], ["true"]
    for name, into in (("score", instance), ("area", instance), ("count", image)):
        if name in query:
            low, _, high = query[name].partition("..")
            column = "n_instances" if name == "count" else name
            into += [f"{column} >= {low}"] if low else []
            into += [f"{column} <= {high}"] if high else []
    image += [f"status IN ('{query['status'].replace(',', chr(39) + ',' + chr(39))}')"] if "status" in query else []
    image += [f"image_key ILIKE '%{query['text']}%'"] if "text" in query else []
    image += [f"batch = {query['batch']}"] if "batch" in query else []
    instance += [f"class_id IN ({query['class']})"] if "class" in query else []
    instance += [f"({query['where'].partition('--')[0]})"] if "where" in query else []
    return " AND ".join(image), " AND ".join(instance)


def expected(con: Any, query: dict[str, str]) -> dict[str, dict[str, float]]:
    image, instance = conditions(query)
    rows = con.execute(
        f"SELECT image_key, count(*), max(score), min(score), max(area), min(abs(score - 0.5)) FROM instances "
        f"WHERE {instance} GROUP BY 1"
    ).fetchall()
    names = ("count", "score", "lowest", "area", "uncertain")
    hits = {key: dict(zip(names, values, strict=True)) for key, *values in rows}
    has_condition = instance != "true"
    keys = [key for (key,) in con.execute(f"SELECT image_key FROM images WHERE {image}").fetchall()]
    return {key: hits.get(key, {}) for key in keys if key in hits or not has_condition}


@pytest.mark.parametrize("query", QUERIES, ids=str)
def test_the_images_and_their_order_are_those_of_sql(tables: Tables, con: Any, query: dict[str, str]) -> None:
    numbers = tables.images(from_query(query)).tolist()
    keys = [row["image_key"] for row in tables.rows(numbers)]
    wanted = expected(con, query)
    assert sorted(keys) == sorted(wanted)
    order = query.get("order", "key")
    sign = -1 if order in ("score", "area", "count") else 1
    values = [key if order == "key" else sign * wanted[key].get(order, sign * math.inf) for key in keys]
    assert values == sorted(values)


@pytest.mark.parametrize("query", [query for query in QUERIES if "where" not in query], ids=str)
def test_the_counts_beside_the_filters_are_those_of_sql(tables: Tables, con: Any, query: dict[str, str]) -> None:
    facets = tables.facets(from_query(query))

    def instances(expression: str, without: str) -> dict[Any, int]:
        image, instance = conditions({name: value for name, value in query.items() if name != without})
        source = f"instances WHERE {instance} AND image_key IN (SELECT image_key FROM images WHERE {image})"
        return dict(con.execute(f"SELECT {expression} AS value, count(*) FROM {source} GROUP BY 1").fetchall())

    assert facets.classes == instances("class_id", "class")
    scores = instances(f"least(floor(score * {SCORE_BINS}), {SCORE_BINS - 1})::INT", "score")
    assert list(facets.scores) == [scores.get(number, 0) for number in range(SCORE_BINS)]
    areas = instances("floor(log2(area))::INT", "area")
    assert list(facets.areas) == [areas.get(number, 0) for number in range(AREA_BINS)]
    images = expected(con, {name: value for name, value in query.items() if name != "status"})
    statuses = dict(con.execute("SELECT image_key, status FROM images").fetchall())
    counted = [statuses[key] for key in images]
    assert facets.statuses == {status: counted.count(status) for status in ("ok", "empty", "failed")}


def test_the_random_order_is_that_of_its_seed(tables: Tables) -> None:
    orders = [tables.images(from_query({"order": "random", "seed": seed})).tolist() for seed in ("1", "1", "2")]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[2]) == list(range(26))


@pytest.mark.parametrize(
    "where",
    [
        "score >", "no_such_column = 1", "1 = 1) UNION SELECT 1 --", "1 = 1; DROP TABLE images",
        "1 = 1)) AS rows; DROP TABLE images; --", "(SELECT count(*) FROM read_text('/etc/passwd')) > 0",
        "(SELECT count(*) FROM glob('/*')) > 0", "(SELECT count(*) FROM '/etc/passwd') > 0",
        "(SELECT count(*) FROM read_parquet('https://example.invalid/x.parquet')) > 0",
    ],
)  # fmt: skip
def test_a_condition_that_is_wrong_or_reaches_out_is_refused_and_changes_nothing(tables: Tables, where: str) -> None:
    with pytest.raises(UserError) as caught:
        tables.images(from_query({"where": where}))
    assert caught.value.where == "where"
    assert len(tables.images(from_query({}))) == 26


def test_a_condition_that_never_ends_is_ended(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segray.view.tables._QUERY_S", 0.3)
    endless = "(SELECT count(*) FROM range(10000000000) a(x), range(1000) b(y) WHERE x % 7 = y) > 0"
    with pytest.raises(UserError, match=r"more than 0\.3 s"):
        Tables(snapshot(root)).images(from_query({"where": endless}))
