"""Every function that takes a place takes text and pathlib.Path, with `~` for the home folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import label_sets
import numpy as np
import pytest
from label_sets import Image

import segray
from segray import config, rle
from segray.analytics.evaluation.evaluate import evaluate
from segray.analytics.export.export import export
from segray.analytics.query import polars_frames as ex
from segray.analytics.reports.contact_sheet import contact_sheet
from segray.analytics.reports.diff import diff
from segray.analytics.reports.report import report
from segray.analytics.review.review import review
from segray.analytics.review.sampling import select
from segray.cli import main as cli
from segray.errors import UserError
from segray.label_set import maintenance, promotion, snapshot, validation
from segray.storage.store import StorageOptions
from segray.storage.uris import as_path, as_uri

pytestmark = pytest.mark.integration

Place = Callable[[str], Any]
PLACES: dict[str, Place] = {
    "path": lambda name: Path.home() / name,
    "path with ~": lambda name: Path("~") / name,
    "text with ~": lambda name: f"~/{name}",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    mask = rle.encode_crop(np.ones((3, 2), np.bool_), 1, 1, (8, 10))
    image = Image((8, 10), [(13, 0.9, mask)], uri="/nowhere/a.jpg")
    for name in ("labels/v1", "labels/v2"):
        label_sets.write(home / name, {"a": image, "b": replace(image, found=())})
    export(home / "labels" / "v1", "coco", home / "truth.json")
    return home


@pytest.mark.parametrize("folder", ["my données", "a#b?c", "year=2026/100% +&"])
def test_label_sets_are_read_in_a_folder_of_any_name(made: Path, tmp_path: Path, folder: str) -> None:
    root = shutil.copytree(made / "labels" / "v1", tmp_path / folder / "labels")
    connection = duckdb.connect()
    segray.sql(connection, root)
    assert segray.scan(root).to_table().num_rows == 1
    assert connection.sql("SELECT class_name FROM instances").fetchall() == [("stop sign",)]
    assert [frame.collect().height for frame in ex.frames(root)[:2]] == [1, 2]


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with two label sets and a truth; the working folder is another one."""
    copy = Path(shutil.copytree(made, tmp_path / "home"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("HOME", str(copy))
    return copy


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, home: Path) -> Place:
    return PLACES[request.param]


def test_readers_take_any_place(place: Place) -> None:
    root = place("labels/v1")
    assert (segray.scan(root).count_rows(), segray.images(root).count_rows()) == (1, 2)
    con = duckdb.connect()
    assert segray.sql(con, root) is not None
    assert con.execute("SELECT count(*) FROM instances").fetchall() == [(1,)]
    assert ex.frames(root).images.collect().height == 2
    assert ex.scan(root, "classes").collect().height == 80
    assert snapshot.snapshot(root).root == str(Path.home() / "labels/v1")


def test_comparisons_take_any_place(place: Place) -> None:
    assert evaluate(place("labels/v1"), place("truth.json")).scores["segm"].ap == pytest.approx(1)
    assert diff(place("labels/v1"), place("labels/v2")).kinds["kept"] == 1
    assert "Note" not in report(place("labels/v1"), truth=place("truth.json"), images=0)


def test_writers_take_any_place(place: Place, home: Path) -> None:
    export(place("labels/v1"), "coco", place("out.json"), ids_from=place("truth.json"))
    files = {"out": place("picked.json"), "tasks": place("tasks.json")}
    select(place("labels/v1"), {"random": 2, "disagree": 1}, to="coco", against=place("labels/v2"), **files)
    done = review(place("labels/v1"), place("picked.json"), place("tasks.json"), truth_out=place("reviewed.json"))
    assert done.truth == str(home / "reviewed.json")
    picture = np.zeros((8, 10, 3), np.uint8)
    contact_sheet(place("labels/v1"), place("sheet.png"), read=lambda uri: _png(picture))
    assert {path.name for path in home.iterdir()} == {
        "labels", "truth.json", "out.json", "picked.json", "tasks.json", "reviewed.json", "sheet.png",
    }  # fmt: skip
    assert list(Path.cwd().iterdir()) == []


def _png(picture: np.ndarray[Any, Any]) -> bytes:
    import cv2

    return bytes(cv2.imencode(".png", picture)[1].tobytes())


def test_care_of_a_label_set_takes_any_place(place: Place, home: Path) -> None:
    assert validation.verify(place("labels/v1"), StorageOptions()).violations == ()
    assert maintenance.maintain(place("labels/v1"), StorageOptions()).exit_code == 0
    assert promotion.promote(place("labels/v1"), StorageOptions()).current == "v1"
    assert segray.scan(place("labels/CURRENT")).count_rows() == 1


def test_a_configuration_takes_any_place(place: Place, home: Path) -> None:
    values = {"source": {"uri": Path("photos")}, "output": {"root": place("out")}, "model": {"name": "stickers"}}
    chosen = config.validate(values, "test")
    assert chosen.source.uri == "photos"
    assert str(as_path(chosen.output.root)) == str(home / "out")
    (home / "run.yaml").write_text("source: {uri: photos}\noutput: {root: labels}\nmodel: {name: stickers}\n")
    assert config.load(place("run.yaml")).output.root == "labels"


@pytest.mark.parametrize("given", [("~/labels/v1", "--out=~/page.html"), ("~/labels/v1", "--out", "~/page.html")])
def test_the_command_line_takes_the_home_folder_where_no_shell_does(home: Path, given: tuple[str, ...]) -> None:
    assert cli.run(["report", *given, "--images=0"]) == 0
    assert (home / "page.html").exists()
    assert (
        cli.run(["export", given[0], "~/o.json", "--to=coco", "--ids-from=~/truth.json", "--where", "area > ~9"]) == 0
    )
    assert (home / "o.json").exists()
    assert list(Path.cwd().iterdir()) == []


def test_a_path_made_of_a_url_is_refused_in_words() -> None:
    with pytest.raises(UserError, match="a URL is no path"):
        segray.scan(Path("s3://bucket/labels"))
    assert as_uri("s3://bucket/~/x") == "s3://bucket/~/x"
    assert as_uri("~nobody-of-this-name/x") == "~nobody-of-this-name/x"
