"""Splits of an export are stable and complete; VOC, CSV and Roboflow's folders hold what the label set holds."""

from __future__ import annotations

import csv
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import label_sets
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from label_sets import Image

from segray import rle
from segray.analytics.export import splits
from segray.analytics.export.export import ExportSelection, export
from segray.analytics.export.formats import FORMATS
from segray.cli import main
from segray.errors import UserError

SPLIT = "train=0.6,val=0.2,test=0.2"
SIZE_HW = (40, 60)
CLASSES = {13: "stop sign", 44: "bottle & cap"}
BOX = rle.encode_crop(np.ones((10, 20), np.bool_), 5, 7, SIZE_HW)
KEYS = [f"{'abcd'[i % 4]}/{i:03d}.jpg" for i in range(60)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("splits")
    (folder / "image").write_bytes(b"\xff\xd8 an image")
    images = {
        key: Image(SIZE_HW, [(13 if i % 2 else 44, 0.5 + i / 200, BOX)], uri=str(folder / "image"))
        for i, key in enumerate(KEYS)
    }
    return label_sets.write(folder / "root", images, classes=CLASSES)


@given(st.lists(st.text(min_size=1), min_size=1, unique=True), st.sampled_from(["key", "folder"]))
def test_an_image_has_one_split_whatever_other_images_there_are(keys: list[str], by: str) -> None:
    drawn = splits.parse(SPLIT, by)
    assert all(drawn.of(key) == splits.parse(SPLIT, by).of(key) in drawn.names for key in keys)
    assert len({drawn.of(f"{keys[0]}/{number}") for number in range(5)}) == 1 or by == "key"


def test_shares_are_about_what_is_asked_for_also_of_a_sample() -> None:
    """--sample takes the smallest hashes: the split must not be by the same hash."""
    from segray.instances import image_id

    drawn = splits.parse("train=0.8,val=0.1,test=0.1")
    keys = sorted((f"{number}.jpg" for number in range(20_000)), key=image_id)[:4000]
    shares = [sum(drawn.of(key) == name for key in keys) / 4000 for name in drawn.names]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.02)


def test_a_larger_share_of_one_split_keeps_its_images() -> None:
    few, many = splits.parse("train=0.5,val=0.5"), splits.parse("train=0.7,val=0.3")
    assert all(many.of(key) == "train" for key in KEYS if few.of(key) == "train")


@pytest.mark.parametrize("text", ["train", "train=x", "train=0.5,train=0.5", "a/b=1", "train=0.5,val=0.4", ""])
def test_a_wrong_split_is_an_error(text: str) -> None:
    with pytest.raises(UserError, match="split"):
        splits.parse(text)
    with pytest.raises(UserError, match="no such way to split"):
        splits.parse(SPLIT, "label")


@pytest.mark.parametrize("to", FORMATS)
def test_every_format_has_each_image_in_one_split(root: str, tmp_path: Path, to: str) -> None:
    exported = export(root, to, tmp_path / "out", split=SPLIT, copy_images=None)
    drawn = splits.parse(SPLIT)
    counts = {name: sum(drawn.of(key) == name for key in KEYS) for name in drawn.names}
    assert exported.splits == counts
    assert sum(counts.values()) == exported.images == 60
    assert all(counts.values())
    if FORMATS[to].has_splits:
        return
    each = {path.name for path in (tmp_path / "out").iterdir()}
    ending = "" if FORMATS[to].is_folder else FORMATS[to].extension
    assert each >= {f"{name}{ending}" for name in drawn.names}


def test_coco_files_of_splits_are_whole(root: str, tmp_path: Path) -> None:
    export(root, "coco", tmp_path / "out", split=SPLIT)
    keys = []
    for name in ("train", "val", "test"):
        content = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        keys += [row["file_name"] for row in content["images"]]
        assert {row["image_id"] for row in content["annotations"]} == {row["id"] for row in content["images"]}
    assert sorted(keys) == sorted(KEYS)


@pytest.mark.parametrize("to", ["yolo", "roboflow"])
def test_yolo_readers_find_images_and_labels_of_each_split(root: str, tmp_path: Path, to: str) -> None:
    out = tmp_path / "out"
    export(root, to, out, split=SPLIT, copy_images=True, split_by="folder")
    data = yaml.safe_load((out / "data.yaml").read_text())
    seen = []
    for name in ("train", "val", "test"):
        images = list((out / data[name]).rglob("*.jpg"))
        for image in images:
            parts = list(image.parts)
            place = max(i for i, part in enumerate(parts) if part == "images")  # as Ultralytics finds labels
            label = Path(*parts[:place], "labels", *parts[place + 1 :]).with_suffix(".txt")
            number, *coordinates = label.read_text().split()
            assert data["names"][int(number)] in CLASSES.values()
            xs, ys = np.array(coordinates, float).reshape(-1, 2).T
            corners = [xs.min() * 60, ys.min() * 40, xs.max() * 60, ys.max() * 40]
            assert corners == pytest.approx([5, 7, 25, 17], abs=1e-3)
        keys = {f"{path.parent.name}/{path.name}" for path in images}
        seen += sorted(keys)
        for key in keys:
            assert splits.parse(SPLIT, "folder").of(key) == name
    assert sorted(seen) == sorted(KEYS)


def test_yolo_without_splits_is_as_before(root: str, tmp_path: Path) -> None:
    export(root, "yolo", tmp_path / "out")
    data = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    assert (data["train"], data["val"]) == ("images", "images")
    assert (tmp_path / "out" / "labels" / "a" / "000.txt").is_file()


def test_voc_boxes_are_those_of_the_masks(root: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert export(root, "voc", out, split=SPLIT).masks == "boxes"
    listed = [line for name in ("train", "val", "test")
              for line in (out / "ImageSets" / "Main" / f"{name}.txt").read_text().splitlines()]  # fmt: skip
    assert sorted(listed) == sorted(key.removesuffix(".jpg") for key in KEYS)
    for stem in listed:
        page = ET.parse(out / "Annotations" / f"{stem}.xml").getroot()
        assert page.findtext("filename") == f"{stem}.jpg"
        assert (page.findtext("size/width"), page.findtext("size/height")) == ("60", "40")
        assert page.findtext("object/name") in CLASSES.values()
        corners = [int(page.findtext(f"object/bndbox/{name}")) for name in ("xmin", "ymin", "xmax", "ymax")]
        assert corners == [6, 8, 25, 17]  # whole pixels from 1, the last included


def test_csv_has_a_row_for_each_instance(root: str, tmp_path: Path) -> None:
    selection = ExportSelection(min_score=0.6)
    exported = export(root, "csv", tmp_path / "out.csv", selection, split=SPLIT)
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == exported.instances == 40
    assert {(row["x"], row["y"], row["w"], row["h"], row["area"]) for row in rows} == {("5", "7", "20", "10", "200")}
    assert all(row["split"] == splits.parse(SPLIT).of(row["image_key"]) for row in rows)
    assert {row["class_name"] for row in rows} == set(CLASSES.values())


def test_the_command_tells_the_images_of_each_split(
    root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", root, str(tmp_path / "out"), "--to", "coco", "--split", SPLIT, "--split-by", "folder"]
    assert main.run(command) == 0
    counts = splits.parse(SPLIT, "folder")
    train = sum(counts.of(key) == "train" for key in KEYS)
    assert f"images by split: {train} train" in capsys.readouterr().out
    assert main.run([*command[:-4], "--split", "train=0.5"]) == 2
