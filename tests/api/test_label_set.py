"""A label set as an object: states, rows, queries, pictures, and the functions behind the commands."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import re
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import label_sets
import numpy as np
import pyarrow.dataset as ds
import pytest
from label_sets import Image

import segray
from segray import rle
from segray.analytics.export.export import ExportSelection, export
from segray.api.label_set import LabelSet
from segray.cli import main as cli
from segray.errors import ArgumentError, ImageError, LabelSetError, QueryError, UserError
from segray.imaging import drawing
from segray.synthetic import dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with scenes and `labels`: their truth as instances, in two batches; one image failed, one is gone."""
    folder = tmp_path_factory.mktemp("set")
    dataset.write(folder / "scenes", 6, 0)
    found = label_sets.stickers(6)
    paths = sorted((folder / "scenes" / "images").iterdir())
    images = {
        path.name: Image(image.size_hw, image.found, uri=str(path))
        for path, image in zip(paths, found.values(), strict=True)
    }
    keys = sorted(images)
    label_sets.write(folder / "labels", {key: images[key] for key in keys[:3]})
    gone = Image((8, 10), uri=str(folder / "gone.png"))
    broken = folder / "broken.jpg"
    broken.write_bytes(b"<html>")
    rest = {"broken.jpg": Image((0, 0), failed=True, uri=str(broken)), "gone.png": gone}
    label_sets.write(folder / "labels", {key: images[key] for key in keys[3:]} | rest)
    return folder


@pytest.fixture(scope="module")
def labels(folder: Path) -> LabelSet:
    return segray.open_label_set(folder / "labels")


def key_with_most(labels: LabelSet) -> str:
    rows = labels.to_arrow("images", columns=["image_key", "n_instances"]).sort_by([("n_instances", "descending")])
    return str(rows.column("image_key")[0])


# ---- states ---------------------------------------------------------------------------------------


def test_a_label_set_says_what_it_holds(labels: LabelSet, folder: Path) -> None:
    instances = segray.scan(folder / "labels").count_rows()
    assert repr(labels) == f"LabelSet('{folder}/labels', version 2: 8 images, {instances} instances, 80 classes)"
    assert (labels.root, labels.version, labels.classes[13]) == (f"{folder}/labels", 2, "stop sign")
    assert sum(labels.state.rows_by_class.values()) == instances


def test_an_open_label_set_stays_at_its_state_and_shows_others(tmp_path: Path) -> None:
    scenes = label_sets.stickers(4)
    keys = sorted(scenes)
    label_sets.write(tmp_path, {keys[0]: scenes[keys[0]]})
    labels = segray.open_label_set(str(tmp_path))
    between = datetime.now(UTC)
    label_sets.write(tmp_path, {key: scenes[key] for key in keys[1:]})
    assert (labels.version, labels.images().count_rows()) == (1, 1)
    latest = segray.open_label_set(tmp_path)
    assert (latest.version, latest.images().count_rows()) == (2, 4)
    assert latest.at(1).images().count_rows() == latest.at(between).images().count_rows() == 1
    assert segray.open_label_set(tmp_path, version=1).version == segray.open_label_set(tmp_path, as_of=between).version
    with pytest.raises(LabelSetError, match="no such version"):
        latest.at(9)
    with pytest.raises(UserError, match="time zone"):
        latest.at(datetime(2026, 1, 1))


def test_the_history_names_batches_and_their_runs_the_latest_first(labels: LabelSet) -> None:
    commits = labels.history()
    assert [(commit.kind, commit.batch) for commit in commits] == [("batch", 2), ("batch", 1), ("creation", None)]
    runs = dict(labels.sql("SELECT DISTINCT batch, run_id FROM images").fetchall())
    assert {commit.batch: commit.run_id for commit in commits[:2]} == runs
    assert commits[0].committed_at >= commits[1].committed_at > datetime(2026, 1, 1, tzinfo=UTC)


def test_no_label_set_and_a_wrong_option_are_typed_errors(tmp_path: Path) -> None:
    with pytest.raises(LabelSetError, match="no label set here"):
        segray.open_label_set(tmp_path)
    with pytest.raises(UserError, match="did you mean endpoint_url"):
        segray.open_label_set(tmp_path, storage_options={"endpoint_uri": "x"})  # type: ignore[typeddict-unknown-key]
    with pytest.raises(UserError, match="did you mean region"):
        segray.scan(tmp_path, regon="x")  # type: ignore[call-arg]


# ---- rows -----------------------------------------------------------------------------------------


def test_every_form_has_the_rows_of_the_tables(labels: LabelSet, folder: Path) -> None:
    rows = segray.scan(folder / "labels").to_table()
    assert labels.instances().to_table().equals(rows)
    assert labels.to_arrow().equals(rows)
    assert labels.to_pandas().image_key.tolist() == rows.column("image_key").to_pylist()
    assert labels.to_polars()["rle"].to_list() == rows.column("rle").to_pylist()
    some = {"columns": ["image_key", "status"], "filter": ds.field("status") == "failed"}
    assert labels.to_arrow("images", **some).to_pylist() == [{"image_key": "broken.jpg", "status": "failed"}]
    assert labels.to_pandas("images", **some).shape == labels.to_polars("images", **some).shape == (1, 2)
    with pytest.raises(UserError, match="give 'instances' or 'images'"):
        labels.to_arrow("classes")  # type: ignore[arg-type]


def test_queries_see_the_state_and_the_functions_over_masks(labels: LabelSet) -> None:
    query = "SELECT count(*), sum(rle_area(rle)) - sum(area) FROM instances"
    assert labels.sql(query).fetchall() == [(labels.instances().count_rows(), 0)]
    assert labels.at(1).sql("SELECT count(*) FROM images").fetchall() == [(3,)]
    assert labels.sql("SELECT class_name FROM classes WHERE class_id = 13").df().class_name.tolist() == ["stop sign"]


def test_a_missing_library_is_named_with_the_way_to_get_it(labels: LabelSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "duckdb", None)
    with pytest.raises(UserError, match="pip install"):
        labels.sql("SELECT 1")


# ---- pictures -------------------------------------------------------------------------------------


def test_an_image_comes_upright_with_its_instances(labels: LabelSet, folder: Path) -> None:
    key = key_with_most(labels)
    rgb, things = labels.image(key)
    rows = labels.to_arrow(filter=ds.field("image_key") == key).sort_by("instance").to_pylist()
    assert (rgb.shape, rgb.dtype) == ((*things.size_hw, 3), np.uint8)
    assert things.image is rgb
    assert [row["rle"] for row in rows] == list(things.rles)
    assert [row["class_name"] for row in rows] == things.class_names.tolist()
    assert things.areas.tolist() == [row["area"] for row in rows]
    boxes = [[row[f"bbox_{side}"] for side in "xywh"] for row in rows]
    assert things.boxes_xywh.tolist() == boxes
    index = int(np.argmax(things.areas))
    assert np.array_equal(things.masks()[index], rle.decode(rows[index]["rle"], things.size_hw))


def test_a_picture_of_an_image_shows_the_instances_from_a_score_on(labels: LabelSet) -> None:
    key = key_with_most(labels)
    rgb, things = labels.image(key)
    assert np.array_equal(np.asarray(labels.show(key, min_score=0.0)), things.draw())
    assert np.array_equal(np.asarray(labels.show(key, min_score=1.0)), rgb)


def test_images_that_cannot_be_shown_are_typed_errors(labels: LabelSet, folder: Path) -> None:
    with pytest.raises(UserError, match=r"did you mean 'scene-00005\.jpg'"):
        labels.image("scene-00005.jp")
    with pytest.raises(ImageError, match="gone"):
        labels.image("gone.png")
    with pytest.raises(ImageError, match="not an image"):
        labels.image("broken.jpg")


def test_an_image_of_another_size_is_not_shown_under_its_old_masks(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(drawing.png(np.zeros((20, 30, 3), np.uint8)))
    label_sets.write(tmp_path / "labels", {"a.png": Image((10, 30), uri=str(path))})
    with pytest.raises(ImageError, match="has changed since"):
        segray.open_label_set(tmp_path / "labels").image("a.png")


def test_jupyter_gets_counts_classes_and_a_few_pictures(labels: LabelSet) -> None:
    page = labels._repr_html_()
    assert page.count("data:image/jpeg;base64,") == 4
    assert "8 images" in page
    names = [labels.classes[i] for i in labels.to_arrow(columns=["class_id"]).column(0).unique().to_pylist()]
    assert any(f"<td>{name}</td>" in page for name in names)


# ---- what the commands do -------------------------------------------------------------------------


def test_methods_do_what_the_commands_do(
    labels: LabelSet, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, truth = str(folder / "labels"), str(folder / "scenes" / "truth.json")

    def command(*arguments: str) -> Any:
        cli.run([*arguments, "--json"])
        return json.loads(capsys.readouterr().out)

    evaluation = labels.evaluate(truth, allow_unlisted=True)
    said = command("evaluate", root, "--truth", truth, "--allow-unlisted")
    assert evaluation.scores["segm"].ap == said["scores"]["segm"]["ap"] > 0.9
    exported = labels.export("coco", tmp_path / "a.json", min_score=0.5)
    assert (
        exported.instances
        == command("export", root, str(tmp_path / "b.json"), "--to", "coco", "--min-score", "0.5")["instances"]
    )
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert labels.verify().counts == command("verify", root)["counts"]
    difference = labels.at(1).diff(labels)
    assert (difference.images, difference.only_a, difference.only_b) == (3, 0, 5)
    assert labels.diff(folder / "labels", fail_if=["lost>0"]).failed_gates == ()
    page = labels.report(tmp_path / "page.html", truth=None, images=1)
    assert re.search("<title>.*</title>", Path(page).read_text("utf-8"))


def test_compaction_leaves_the_rows(tmp_path: Path) -> None:
    scenes = label_sets.stickers(9)
    for key, scene in scenes.items():
        label_sets.write(tmp_path, {key: scene})
    labels = segray.open_label_set(tmp_path)
    before = label_sets.contents(tmp_path)
    assert labels.compact().compacted["images"] == (9, 1)
    assert label_sets.contents(tmp_path) == before
    assert segray.open_label_set(tmp_path).history()[0].kind == "compaction"
    assert labels.images().count_rows() == 9


def test_an_export_is_of_the_open_state(folder: Path, tmp_path: Path) -> None:
    first = segray.open_label_set(folder / "labels", version=1)
    first.export("coco", tmp_path / "a.json", rename={"stop sign": "STOP"})
    export(
        str(folder / "labels"), "coco", tmp_path / "b.json", ExportSelection(), rename={"stop sign": "STOP"}, version=1
    )
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


# ---- other processes ------------------------------------------------------------------------------


def count(labels: LabelSet) -> tuple[int, int, int]:
    return labels.to_arrow().num_rows, len(labels.image(key_with_most(labels))[1]), len(labels.history())


@pytest.mark.integration
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_label_set_is_read_in_forked_and_spawned_processes(labels: LabelSet, method: str) -> None:
    expected = count(labels)
    assert count(pickle.loads(pickle.dumps(labels))) == expected
    # Not a Pool, whose end is a SIGTERM: a fork has the handler of a Ray of this process, which waits for ever.
    with ProcessPoolExecutor(1, multiprocessing.get_context(method)) as pool:
        assert pool.submit(count, labels).result(timeout=120) == expected


# ---- wrong arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "hint"),
    [
        (lambda x: x.at("1"), "a whole number or datetime"), (lambda x: x.to_arrow("image"), "'instances' or 'images'"),
        (lambda x: x.to_pandas(columns=["scor"]), "did you mean score?"),
        (lambda x: x.to_polars(columns="score"), "a list of text"),
        (lambda x: x.to_arrow(filter="score > 0.5"), "an expression of pyarrow"),
        (lambda x: x.to_arrow(filter=ds.field("nope") > 1), "an expression of pyarrow"),
        (lambda x: x.to_arrow(filter=ds.field("score") > "a"), "an expression of pyarrow"),
        (lambda x: x.image(None), "give text"), (lambda x: x.show("a", min_score=50), "from 0 to 1"),
        (lambda x: x.compact(grace_hours=-1), "of at least 0"), (lambda x: x.evaluate({}), "text or a path"),
        (lambda x: x.export("coco", None), "text or a path"), (lambda x: x.export("coco", "o", classes="tv"), "a list"),
        (lambda x: x.export("coco", "o", min_scor=1), "did you mean min_score?"),
        (lambda x: x.report(images=-1), "from 0 to 60"), (lambda x: x.diff(None), "a path"),
        (lambda x: x.diff(x, fail_if="lost>2%"), "a list of text"), (lambda x: x.sql(None), "give text"),
        (lambda x: segray.open_label_set(None), "text or a path"),
        (lambda x: segray.open_label_set("x", storage_options={"endpoint_url": 3}), "endpoint_url: text"),
        (lambda x: segray.open_label_set("x", as_of="2026-01-01"), "datetime"),
        (lambda x: segray.scan(None), "text or a pathlib.Path"),
    ],
)  # fmt: skip
def test_a_wrong_argument_is_a_typed_error_with_a_hint(
    labels: LabelSet, call: Callable[[Any], object], hint: str
) -> None:
    with pytest.raises(ArgumentError) as caught:
        call(labels)
    assert hint in caught.value.hint
    assert caught.value.found


@pytest.mark.parametrize("query", ["SELEC 1", "SELECT nope FROM instances", "SELECT * FROM instance"])
def test_a_wrong_query_is_a_typed_error(labels: LabelSet, query: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(QueryError) as caught:
        labels.sql(query)
    assert caught.value.hint
    assert cli.run(["sql", labels.root, query]) == 2
    assert caught.value.what in capsys.readouterr().err


@pytest.mark.parametrize("query", ["", "-- x"])
def test_an_empty_query_is_a_typed_error(labels: LabelSet, query: str) -> None:
    with pytest.raises(QueryError, match="empty"):
        labels.sql(query)
