from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import label_sets
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from label_sets import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from segray import rle
from segray.analytics.evaluation.evaluate import evaluate
from segray.analytics.export import polygons
from segray.analytics.export.export import ExportSelection, export
from segray.analytics.export.formats import FORMATS
from segray.analytics.export.label_studio import encode_brush
from segray.analytics.export.names import (
    Distinct,
    is_image_name,
    other_names,
    path_of_key,
    without_image_extension,
)
from segray.analytics.export.source_images import LabelledImage, faults
from segray.analytics.export.writer import ExportedImage, Settings, row_runs
from segray.cli.analytics import describe_export
from segray.errors import LabelSetError, UserError
from segray.label_set.commit import create_tables
from segray.models.coco_labels import COCO_NAMES, supercategory
from segray.sources.uris import inside_uri
from segray.storage.store import StorageOptions, Store

SIZE_HW = (40, 60)
CLASSES = {13: "stop sign", 44: "bottle & <glass>", 90: "toothbrush"}


def noise(seed: int) -> str:
    """Parts, holes, parts within holes, pixels that touch at corners."""
    mask = np.zeros(SIZE_HW, np.bool_)
    mask[5:30, 8:40] = np.random.default_rng(seed).random((25, 32)) < 0.7
    return rle.encode(mask)


DISC = rle.encode(np.hypot(*np.ogrid[-20:20, -25:35]) < 14)
WHOLE = rle.encode(np.ones(SIZE_HW, np.bool_))
IMAGES = {
    "a/1.jpg": Image(SIZE_HW, [(13, 0.9, noise(0)), (44, 0.4, DISC)]),
    "b.png": Image(SIZE_HW, [(90, 0.1234567, WHOLE), (13, 0.05, noise(1))]),
    "c.jpg": Image(SIZE_HW),
    "d.jpg": Image((0, 0), failed=True),
    "s3://bucket/../e.jpg": Image(SIZE_HW, [(44, 0.7, DISC)]),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("labels")
    (folder / "image").write_bytes(b"an image")
    shown = {key: Image(i.size_hw, i.found, i.failed, str(folder / "image")) for key, i in IMAGES.items()}
    return label_sets.write(folder / "root", shown, classes=CLASSES)


def found() -> list[tuple[str, int, str]]:
    """Image, class and mask of all that should be exported, in order."""
    return [(key, category, counts) for key, image in IMAGES.items() for category, _, counts in image.found]


def coco(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


@pytest.mark.parametrize("polygons_too", [False, True])
def test_coco_is_read_by_pycocotools_and_loses_nothing(root: str, tmp_path: Path, polygons_too: bool) -> None:
    done = export(root, "coco", tmp_path / "out.json", polygons=polygons_too)
    assert (done.images, done.instances, done.least_iou) == (4, 5, 1.0 if polygons_too else None)
    read = coco(tmp_path / "out.json")
    masks = [rle.encode(read.annToMask(row)) for row in read.loadAnns(read.getAnnIds())]
    assert masks == [counts for _, _, counts in found()]
    assert {row["id"]: row["name"] for row in read.dataset["categories"]} == CLASSES
    assert [row["file_name"] for row in read.dataset["images"]][:3] == ["a/1.jpg", "b.png", "c.jpg"]


def test_results_are_loaded_by_pycocotools_with_the_truths_ids(root: str, tmp_path: Path) -> None:
    listed = [{"id": 900 - i, "file_name": key, "height": 40, "width": 60} for i, key in enumerate(IMAGES)]
    content = {"images": listed, "annotations": [], "categories": [{"id": i, "name": n} for i, n in CLASSES.items()]}
    (tmp_path / "truth.json").write_text(json.dumps(content))
    export(root, "coco-results", tmp_path / "out.json", ids_from=str(tmp_path / "truth.json"))
    with contextlib.redirect_stdout(io.StringIO()):
        results = coco(tmp_path / "truth.json").loadRes(str(tmp_path / "out.json"))
    rows = results.loadAnns(results.getAnnIds())
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(900, 13), (900, 44), (899, 90), (899, 13),
                                                                      (896, 44)]  # fmt: skip
    assert [rle.encode(results.annToMask(row)) for row in rows] == [counts for _, _, counts in found()]
    assert rows[2]["score"] == 0.1234567


def test_ids_that_are_words_number_no_results(root: str, tmp_path: Path) -> None:
    """COCO's results have numbers as image_id."""
    export(root, "coco", tmp_path / "truth.json")
    truth = json.loads((tmp_path / "truth.json").read_text())
    for row in truth["images"]:
        row["id"] = f"image {row['id']}"
    (tmp_path / "truth.json").write_text(json.dumps({**truth, "annotations": []}))
    with pytest.raises(UserError, match="is no number"):
        export(root, "coco-results", tmp_path / "out.json", ids_from=tmp_path / "truth.json")
    assert not (tmp_path / "out.json").exists()


def test_yolo_lines_are_the_masks(root: str, tmp_path: Path) -> None:
    done = export(root, "yolo", tmp_path / "out")
    assert done.least_iou == pytest.approx(1, abs=1e-3)
    names = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())["names"]
    assert names == dict(enumerate(CLASSES.values()))
    lines = (tmp_path / "out" / "labels" / "a" / "1.txt").read_text().splitlines()
    number, *places = lines[1].split()
    assert names[int(number)] == "bottle & <glass>"
    ring = np.array(places, float).reshape(-1, 2) * [60, 40]
    assert polygons.overlap([ring], DISC, SIZE_HW) > 0.99
    assert (tmp_path / "out" / "labels" / "c.txt").read_text() == ""


def test_keys_that_end_as_no_image_does_stay_apart_and_their_files_end_as_their_bytes(tmp_path: Path) -> None:
    ends = {
        "drive.mp4#t=12.480": ".bmp",
        "drive.mp4#t=12.960": ".bmp",
        "photo.1": ".jpg",
        "photo.2": ".PNG",
        "x.JPG": "",
    }
    coded = {end: cv2.imencode(end or ".jpg", np.zeros((*SIZE_HW, 3), np.uint8))[1].tobytes() for end in ends.values()}
    for key, end in ends.items():
        (tmp_path / key).write_bytes(coded[end])
    shown = {key: Image(SIZE_HW, [(13, 0.9, DISC)], uri=str(tmp_path / key)) for key in ends}
    labels = label_sets.write(tmp_path / "root", shown, classes=CLASSES)
    images = {f"{key}{end.lower()}" for key, end in ends.items()}
    stems = {"drive.mp4#t=12.480", "drive.mp4#t=12.960", "photo.1", "photo.2", "x"}

    def listed(folder: Path) -> set[str]:
        return {each.name for each in folder.iterdir()}

    for copies in (True, False):
        out = tmp_path / str(copies)
        assert export(labels, "yolo", out / "yolo", copy_images=copies).images == 5
        assert listed(out / "yolo" / "labels") == {f"{stem}.txt" for stem in stems}
        export(labels, "labelme", out / "labelme", copy_images=copies)
        assert listed(out / "labelme") == {f"{stem}.json" for stem in stems} | (images if copies else set())
        paths = {json.loads(each.read_text())["imagePath"] for each in (out / "labelme").glob("*.json")}
        assert paths == (images if copies else set(ends))
        export(labels, "fiftyone", out / "fiftyone", copy_images=copies)
        rows = json.loads((out / "fiftyone" / "labels.json").read_text())["images"]
        data = (
            listed(out / "fiftyone" / "data") if copies else set(json.loads((out / "fiftyone/data.json").read_text()))
        )
        assert {row["file_name"] for row in rows} == data == (images if copies else set(ends))
    assert listed(tmp_path / "True" / "yolo" / "images") == images
    export(labels, "png-semantic", tmp_path / "png")
    assert listed(tmp_path / "png" / "masks") == {f"{stem}.png" for stem in stems}


def test_yolo_looks_beside_its_file_and_what_is_not_there_is_said(root: str, tmp_path: Path) -> None:
    done = export(root, "yolo", tmp_path / "out")
    data = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    assert ("path" not in data, data["train"]) == (True, "images")
    assert f"looks for them in {tmp_path}/out/images" in describe_export(done)
    assert "looks for" not in describe_export(export(root, "yolo", tmp_path / "whole", copy_images=True))
    assert "looks for" not in describe_export(export(root, "fiftyone", tmp_path / "fo"))


@pytest.mark.parametrize("to", [name for name in FORMATS if name != "coco"])
def test_polygons_are_refused_where_nothing_would_come_of_them(root: str, tmp_path: Path, to: str) -> None:
    with pytest.raises(UserError, match="for coco alone"):
        export(root, to, tmp_path / "out", polygons=True)


def test_fewer_corners_cost_what_is_said(root: str, tmp_path: Path) -> None:
    exact = export(root, "labelme", tmp_path / "exact")
    rough = export(root, "labelme", tmp_path / "rough", tolerance_px=2)
    assert exact.least_iou == 1
    assert rough.least_iou is not None
    assert 0 < rough.least_iou < 1
    corners = [sum(len(shape["points"]) for shape in json.loads((tmp_path / name / "a/1.json").read_text())["shapes"])
               for name in ("exact", "rough")]  # fmt: skip
    assert corners[1] < corners[0]


def unpacked(data: list[int]) -> np.ndarray:
    """rle-pack as thi.ng describes it, bit by bit."""
    bits, at = "".join(f"{byte:08b}" for byte in data), 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        return int(bits[at - count : at], 2)

    total, word, sizes = take(32), take(5) + 1, [take(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < total:
        same, length = take(1), take(sizes[take(2)]) + 1
        values += [take(word)] * length if same else [take(word) for _ in range(length)]
    return np.array(values, np.uint8)


def test_label_studio_strokes_are_the_masks(root: str, tmp_path: Path) -> None:
    export(root, "label-studio", tmp_path / "out.json")
    tasks = json.loads((tmp_path / "out.json").read_text())
    assert [task["data"]["image_key"] for task in tasks][:3] == ["a/1.jpg", "b.png", "c.jpg"]
    results = [result for task in tasks for result in task["predictions"][0]["result"]]
    for result, (_, category, counts) in zip(results, found(), strict=True):
        pixels = unpacked(result["value"]["rle"]).reshape(*SIZE_HW, 4)
        assert (pixels == 255 * rle.decode(counts, SIZE_HW)[..., None]).all()
        assert result["value"]["brushlabels"] == [CLASSES[category]]


def test_a_stroke_longer_than_a_run_can_be() -> None:
    runs = np.array([0, 70_000, 3, 1])
    assert (unpacked(encode_brush(runs).tolist()) == np.repeat([255, 0, 255], 4 * runs[1:])).all()


def test_cvat_masks_are_the_masks(root: str, tmp_path: Path) -> None:
    export(root, "cvat", tmp_path / "out.xml")
    tree = ET.parse(tmp_path / "out.xml")
    assert [each.text for each in tree.iterfind(".//label/name")] == list(CLASSES.values())
    rows = [(image.get("name"), mask) for image in tree.iterfind("image") for mask in image.iterfind("mask")]
    for (_, mask), (_, category, counts) in zip(rows, found(), strict=True):
        x, y, w, h = (int(mask.get(name) or -1) for name in ("left", "top", "width", "height"))
        runs = [int(run) for run in (mask.get("rle") or "").split(",")]
        whole = np.zeros(SIZE_HW, np.bool_)
        whole[y : y + h, x : x + w] = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(h, w)
        assert rle.encode(whole) == counts
        assert mask.get("label") == CLASSES[category]


def test_png_holds_the_surer_instance_on_top(root: str, tmp_path: Path) -> None:
    export(root, "png-instance", tmp_path / "instance")
    export(root, "png-semantic", tmp_path / "semantic")
    flags = cv2.IMREAD_UNCHANGED
    instance = cv2.imread(str(tmp_path / "instance/masks/a/1.png"), flags)
    semantic = cv2.imread(str(tmp_path / "semantic/masks/a/1.png"), flags)
    first, second = (rle.decode(counts, SIZE_HW) for counts in (noise(0), DISC))
    assert instance.dtype == np.uint16
    assert (instance == np.where(first, 1, 2 * second)).all()
    assert (semantic == np.where(first, 13, 44 * second)).all()
    listed = json.loads((tmp_path / "instance/instances.json").read_text())
    assert [row["instance"] for row in listed[0]["instances"]] == [0, 1]


def test_imagefolder_has_the_images_beside_their_objects(root: str, tmp_path: Path) -> None:
    export(root, "imagefolder", tmp_path / "out")
    rows = [json.loads(line) for line in (tmp_path / "out/metadata.jsonl").read_text().splitlines()]
    assert all((tmp_path / "out" / row["file_name"]).read_bytes() == b"an image" for row in rows)
    assert [counts for row in rows for counts in row["objects"]["rle"]] == [counts for _, _, counts in found()]
    assert ".." not in rows[3]["file_name"]


def test_fiftyone_finds_images_where_they_are(root: str, tmp_path: Path) -> None:
    export(root, "fiftyone", tmp_path / "out")
    data = json.loads((tmp_path / "out/data.json").read_text())
    read = coco(tmp_path / "out/labels.json")
    assert set(data) == {row["file_name"] for row in read.dataset["images"]}
    export(root, "fiftyone", tmp_path / "whole", copy_images=True)
    assert (tmp_path / "whole/data/a/1.jpg").read_bytes() == b"an image"


def test_fiftyone_cuts_masks_off_at_boxes_that_hold_them_whole(tmp_path: Path) -> None:
    """Cut and put back as FiftyOne 1.22 does: cut at rounded corners, divided by the size, multiplied, truncated."""
    size_hw, mask = (480, 640), np.zeros((480, 640), np.bool_)
    mask[123:139, 1:42] = True  # 480 * (123 / 480) is a little less than 123, 640 * (1 / 640 + 41 / 640) than 42.
    box = {"bbox_x": 5.4, "bbox_y": 125.6, "bbox_w": 30.0, "bbox_h": 9.0}  # the model's, smaller
    row = {"class_id": 13, "score": 0.9, "area": int(mask.sum()), "rle": rle.encode(mask), **box}
    writer = FORMATS["fiftyone"].open(Settings(tmp_path, CLASSES))
    writer.add(ExportedImage(1, "a.jpg", "/a.jpg", size_hw, [row]))
    writer.close()
    (given,) = json.loads((tmp_path / "labels.json").read_text())["annotations"]
    x, y, w, h = given["bbox"]
    cut = mask[round(y) : round(y + h), round(x) : round(x + w)]
    assert cut.sum() == mask.sum()
    left, right = (int(640 * part) for part in (x / 640, x / 640 + w / 640))
    top, bottom = (int(480 * part) for part in (y / 480, y / 480 + h / 480))
    assert (bottom - top, right - left) == cut.shape
    assert (mask[top:bottom, left:right] == cut).all()


@pytest.mark.parametrize(
    ("choice", "kept"),
    [
        (ExportSelection(classes=["Stop Sign"]), [0, 3]),
        (ExportSelection(min_score=0.4), [0, 1, 4]),
        (ExportSelection(min_area_px=700, max_area_px=2399), []),
        (ExportSelection(max_area_px=620), [0, 1, 3, 4]),
        pytest.param(
            ExportSelection(where="class_name LIKE 'bottle%' AND rle_area(rle) > 10"),
            [1, 4],
            marks=pytest.mark.integration,
        ),
        pytest.param(ExportSelection(where="rle_contains(rle, height, 0, 0)"), [2], marks=pytest.mark.integration),
    ],
)
def test_choices_of_instances(root: str, tmp_path: Path, choice: ExportSelection, kept: list[int]) -> None:
    done = export(root, "coco", tmp_path / "out.json", choice)
    assert done.images == 4
    rows = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert [row["segmentation"]["counts"] for row in rows] == [found()[i][2] for i in kept]


@pytest.mark.integration
def test_choices_of_images(root: str, tmp_path: Path) -> None:
    def names(**choice: Any) -> list[str]:
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.json"
        export(root, "coco", out, ExportSelection(**choice))
        return [row["file_name"] for row in json.loads(out.read_text())["images"]]

    assert names(statuses=["empty"]) == ["c.jpg"]
    assert names(with_instances=True, classes=["toothbrush"]) == ["b.png"]
    assert len(names(sample=2)) == 2
    assert names(sample=2) == names(sample=2)
    assert set(names(sample=1)) <= set(names(sample=3))
    assert names(sample=9, with_instances=True, where="score > 0.8") == ["a/1.jpg"]


@pytest.mark.parametrize(
    ("to", "choice", "message"),
    [
        ("parquet", ExportSelection(), "Choose from coco"),
        ("coco", ExportSelection(classes=["zebra"]), "no such class"),
        pytest.param(
            "coco", ExportSelection(where="no_such_column = 1"), "not valid SQL", marks=pytest.mark.integration
        ),
        ("coco", ExportSelection(min_score=0.99, with_instances=True), "no image of the label set is selected"),
    ],
)
def test_what_cannot_be_exported_leaves_nothing(
    root: str, tmp_path: Path, to: str, choice: ExportSelection, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        export(root, to, tmp_path / "out", choice)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", list(FORMATS))
def test_an_export_that_breaks_leaves_nothing(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
) -> None:
    count = 0

    def broken(*args: object) -> object:
        nonlocal count
        count += 1
        if count > 2:
            raise OSError("no space left")
        return None

    for module in ("writer", "yolo", "labelme", "png", "voc"):
        monkeypatch.setattr(f"segray.analytics.export.{module}.write_new_file", broken)
    monkeypatch.setattr("segray.analytics.export.writer.JsonArray.add", broken)
    monkeypatch.setattr("segray.analytics.export.boxes_csv.shortest_score", broken)
    monkeypatch.setattr("segray.analytics.export.cvat.printable", lambda text: broken() or text)
    with pytest.raises(OSError, match="no space left"):
        export(root, to, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_stays_as_it_is(root: str, tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    for to, out in (("yolo", tmp_path), ("coco", tmp_path / "mine"), ("coco", tmp_path)):
        with pytest.raises(UserError, match=r"not empty|is there already"):
            export(root, to, out)
    assert (tmp_path / "mine").read_text() == "precious"
    (tmp_path / "empty").mkdir()
    export(root, "yolo", tmp_path / "empty")
    assert (tmp_path / "empty" / "data.yaml").exists()


def test_a_label_set_in_its_first_run_is_not_exported(tmp_path: Path) -> None:
    create_tables(str(tmp_path / "young"), StorageOptions())
    with pytest.raises(LabelSetError, match="committed yet"):
        export(str(tmp_path / "young"), "coco", tmp_path / "out.json")


# ---- names of images ------------------------------------------------------------------------------

MANY_KEYS = [
    "a.jpg", "a.png", "r/x//a.jpg", "r/x/a.jpg", "r/./b.jpg", "r/b.jpg", "x.jpg", "x.jpg/y.jpg", "z.txt/1.jpg", "z.jpg",
    "/data/photos/1.jpg", "data/photos/1.jpg", "https://h/p/1.jpg?token=secret", "https://u:secret@h/p/2.jpg",
    "s3://bucket/../up.jpg", "../up.jpg", "сцена 1.jpg", "sc\u00e8ne.jpg", "sce\u0300ne.jpg", "drive.mp4#t=12.480",
    "drive.mp4#t=12.960", "long/" + "я" * 200 + ".jpg", "a~2.png", "new\nline.jpg", 'q"<&>.jpg',
    "train/images/9.jpg", "train/labels/9.jpg", "images/a.jpg",
]  # fmt: skip
HOLDS_IMAGES = {"yolo": "images", "labelme": "", "fiftyone": "data", "imagefolder": "", "png-instance": "images",
                "png-semantic": "images", "roboflow": "train/images", "voc": "JPEGImages"}  # fmt: skip


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A label set whose keys make trouble as names of files. Each image has bytes of its own."""
    folder, images = tmp_path_factory.mktemp("many"), {}
    for number, key in enumerate(MANY_KEYS):
        picture = np.full((*SIZE_HW, 3), number, np.uint8)
        (folder / f"{number}.png").write_bytes(cv2.imencode(".png", picture)[1].tobytes())
        disc = np.hypot(*np.ogrid[-20:20, -25 - number % 7 : 35 - number % 7]) < 6 + number % 5
        images[key] = Image(SIZE_HW, [(13, 0.9, rle.encode(disc))], uri=str(folder / f"{number}.png"))
    return label_sets.write(folder / "root", images, classes=CLASSES)


@pytest.mark.parametrize("to", list(HOLDS_IMAGES))
def test_every_image_has_a_name_of_its_own_and_its_own_bytes(many: str, tmp_path: Path, to: str) -> None:
    done = export(many, to, tmp_path / "out", copy_images=True)
    assert done.images == len(MANY_KEYS)
    folder = tmp_path / "out" / HOLDS_IMAGES[to]
    described = (".json", ".jsonl", ".yaml", ".txt")
    copies = [path for path in folder.rglob("*") if path.is_file() and path.suffix not in described]
    assert sorted(int(cv2.imdecode(np.fromfile(path, np.uint8), 1)[0, 0, 0]) for path in copies) == list(
        range(len(MANY_KEYS))
    )
    assert "secret" not in "".join(map(str, copies))
    assert folder / "r/x/a.jpg" in copies
    assert folder / "r/x/a~2.jpg" in copies
    told = describe_export(done)
    assert "\n  r/x//a.jpg is r/x/a~2.jpg, beside r/x/a.jpg" in told
    assert "x.jpg is x~2.jpg, beside x.jpg/y.jpg" in told
    if FORMATS[to].distinct == "stem":
        assert "a.png is a~3.png, beside a.jpg" in told


def test_a_yolo_reader_finds_the_labels_of_each_image(many: str, tmp_path: Path) -> None:
    """Ultralytics puts labels in place of the last images of a path, and .txt in place of the extension."""
    export(many, "yolo", tmp_path / "out", copy_images=True)
    images = {path for path in (tmp_path / "out/images").rglob("*") if path.is_file()}
    labels = {path for path in (tmp_path / "out").rglob("*.txt") if path.is_file()}
    images -= labels
    assert tmp_path / "out/images/train/labels/9.txt" in labels
    middle = (f"{os.sep}images{os.sep}", f"{os.sep}labels{os.sep}")
    assert {
        Path(middle[1].join(str(path).rsplit(middle[0], 1)).rsplit(".", 1)[0] + ".txt") for path in images
    } == labels


def test_a_coco_truth_names_images_by_their_keys_byte_for_byte(many: str, tmp_path: Path) -> None:
    export(many, "coco", tmp_path / "out.json")
    assert [row["file_name"] for row in json.loads((tmp_path / "out.json").read_text())["images"]] == sorted(MANY_KEYS)


def test_a_name_that_gets_the_ending_of_another_is_refused_with_both(tmp_path: Path) -> None:
    """Only the bytes tell that photo becomes photo.png."""
    (tmp_path / "image").write_bytes(cv2.imencode(".png", np.zeros((*SIZE_HW, 3), np.uint8))[1].tobytes())
    shown = {key: Image(SIZE_HW, uri=str(tmp_path / "image")) for key in ("photo", "photo.png")}
    root = label_sets.write(tmp_path / "root", shown, classes=CLASSES)
    with pytest.raises(UserError, match="one file") as refused:
        export(root, "imagefolder", tmp_path / "out")
    assert refused.value.where.endswith("/photo.png")
    assert refused.value.found == "photo.png, and an image of this name"
    assert export(root, "yolo", tmp_path / "yolo", copy_images=True).renamed["photo.png"].beside == "photo"


@pytest.mark.parametrize("polygons_too", [False, True])
def test_evaluate_reads_what_export_writes(many: str, tmp_path: Path, polygons_too: bool) -> None:
    export(many, "coco", tmp_path / "out.json", polygons=polygons_too)
    scores = evaluate(many, tmp_path / "out.json").scores
    assert (scores["segm"].ap, scores["bbox"].ap) == (pytest.approx(1, abs=1e-12),) * 2


@pytest.mark.parametrize("copy_images", [False, True])
def test_evaluate_reads_what_export_writes_for_fiftyone(many: str, tmp_path: Path, copy_images: bool) -> None:
    export(many, "fiftyone", tmp_path / "out", copy_images=copy_images)
    found = evaluate(many, tmp_path / "out/labels.json")
    assert found.scores["segm"].ap == pytest.approx(1, abs=1e-12)
    assert (found.images, found.missing) == (len(MANY_KEYS), 0)


keys = st.lists(
    st.one_of(st.text("ab./~2", min_size=1), st.sampled_from(MANY_KEYS), st.text(min_size=1)), min_size=1, unique=True
)


@given(keys, st.sampled_from(["path", "file", "stem"]))
def test_no_two_keys_have_one_path(keys: list[str], distinct: Distinct) -> None:
    others = other_names(lambda: sorted(keys), distinct)
    paths = [PurePosixPath(others[key].name) if key in others else path_of_key(key) for key in keys]
    assert len(set(paths)) == len(keys)
    assert all(path.parts and not path.is_absolute() and ".." not in path.parts for path in paths)
    assert all(len(part.encode()) <= 255 for path in paths for part in path.parts)
    if distinct == "stem":
        stems = [without_image_extension(path) for path in paths]
        assert len(set(stems)) == len(keys)
        assert not {f"{stem}.txt" for stem in stems} & {str(folder) for path in paths for folder in path.parents}
    assert distinct == "path" or not {path for path in paths if is_image_name(path)} & {
        folder for path in paths for folder in path.parents
    }
    for key, other in others.items():
        assert other.beside in keys
        assert other.beside != key


# ---- images to copy -------------------------------------------------------------------------------


@pytest.mark.parametrize("to", list(FORMATS))
def test_images_are_copied_by_every_format_or_refused_in_words(root: str, tmp_path: Path, to: str) -> None:
    if to in HOLDS_IMAGES:
        export(root, to, tmp_path / "out", copy_images=True)
        assert (tmp_path / "out" / HOLDS_IMAGES[to] / "a/1.jpg").read_bytes() == b"an image"
        return
    with pytest.raises(UserError, match="copy-images is not for this format") as refused:
        export(root, to, tmp_path / "out", copy_images=True)
    assert "yolo, roboflow, voc, fiftyone, labelme, imagefolder" in refused.value.hint
    assert list(tmp_path.iterdir()) == []


def perishable(folder: Path) -> str:
    """Label three images, of which one is removed and one is replaced by another of the same size afterwards."""
    for name in ("gone", "kept", "other"):
        (folder / f"{name}.jpg").write_bytes(b"an image")
    shown = {f"{name}.jpg": Image(SIZE_HW, [(13, 0.9, DISC)], uri=str(folder / f"{name}.jpg")) for name in
             ("gone", "kept", "other")}  # fmt: skip
    root = label_sets.write(folder / "root", shown, classes=CLASSES)
    (folder / "gone.jpg").unlink()
    (folder / "other.jpg").write_bytes(b"AN IMAGE")
    os.utime(folder / "other.jpg", ns=(0, 1_800_000_000_123_456_789))
    return root


def test_missing_and_changed_images_are_told_before_anything_is_written(tmp_path: Path) -> None:
    root, out = perishable(tmp_path), tmp_path / "out"
    for to in HOLDS_IMAGES:
        with pytest.raises(UserError, match="missing, or have changed") as refused:
            export(root, to, out, copy_images=True)
        assert refused.value.found.startswith(f"1 missing, such as gone.jpg: nothing at {tmp_path}/gone.jpg; 1 changed")
        assert "such as other.jpg: version 8-1800000000123456789, labelled as 8-" in refused.value.found
        assert "--skip-missing" in refused.value.hint
        assert not out.exists()
    done = export(root, "yolo", out, copy_images=True, skip_missing=True)
    assert (done.images, sorted(done.left_out)) == (1, ["gone.jpg", "other.jpg"])
    assert {path.name for path in (out / "images").iterdir()} == {"kept.jpg"}
    assert {path.name for path in (out / "labels").iterdir()} == {"kept.txt"}
    assert "left out: 2\n  gone.jpg is missing: nothing at" in describe_export(done)
    assert export(root, "yolo", tmp_path / "labels_alone").images == 3  # Labels need no image.
    assert export(root, "coco", tmp_path / "out.json", skip_missing=True).images == 1


def test_an_image_of_another_size_has_changed_and_a_manifests_own_version_is_not_compared(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"an image")
    store, uri = Store(), str(tmp_path / "a.jpg")

    def kinds(*images: LabelledImage) -> list[str]:
        return [fault.kind for fault in faults(images, store)]

    assert kinds(LabelledImage("a.jpg", uri, "", 9), LabelledImage("a.jpg", uri, "", 8)) == ["changed"]
    assert kinds(LabelledImage("a.jpg", uri, "v3", 8), LabelledImage("a.jpg", uri, "2026-11-30", -1)) == []
    assert kinds(LabelledImage("a.jpg", str(tmp_path), "", -1)) == ["missing"]


def test_an_image_inside_an_archive_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """The archive is as it was, but no member begins where the label set says."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.add(__file__, "1.jpg")
    stored = (tmp_path / "a.tar").stat()
    version, uri = f"{stored.st_size}-{stored.st_mtime_ns}", inside_uri("tar", str(tmp_path / "a.tar"), 1024, 99)
    shown = {"a.tar/1.jpg": Image(SIZE_HW, [(13, 0.9, DISC)], uri=uri, version=version), "b.jpg": Image(SIZE_HW)}
    shown["b.jpg"] = Image(SIZE_HW, uri=__file__)
    root = label_sets.write(tmp_path / "root", shown, classes=CLASSES)
    with pytest.raises(UserError, match=r"a\.tar/1\.jpg.*not the one that was planned"):
        export(root, "yolo", tmp_path / "out", copy_images=True)
    assert not (tmp_path / "out").exists()
    done = export(root, "yolo", tmp_path / "out", copy_images=True, skip_missing=True)
    assert (done.images, list(done.left_out)) == (1, ["a.tar/1.jpg"])


# ---- what readers of a format expect --------------------------------------------------------------


def test_categories_have_cocos_supercategories(root: str, tmp_path: Path) -> None:
    export(root, "coco", tmp_path / "out.json")
    rows = json.loads((tmp_path / "out.json").read_text())["categories"]
    assert [row["supercategory"] for row in rows] == ["outdoor", "", "indoor"]
    groups = Counter(supercategory(number, name) for number, name in COCO_NAMES.items())
    assert groups == {"person": 1, "vehicle": 8, "outdoor": 5, "animal": 10, "accessory": 5, "sports": 10, "kitchen": 7,
                      "food": 10, "furniture": 6, "electronic": 6, "appliance": 5, "indoor": 7}  # fmt: skip


@pytest.mark.parametrize("to", list(FORMATS))
def test_only_used_classes_are_listed_under_their_new_names(root: str, tmp_path: Path, to: str) -> None:
    choice = ExportSelection(min_score=0.3)
    export(root, to, tmp_path / "out", choice, used_classes=True, rename={"stop_sign": "Stop!", "toothbrush": "brush"})
    text = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".png")
    assert "brush" not in text.replace("brushlabels", "").replace("BrushLabels", "")
    assert "stop sign" not in text
    assert ("Stop!" in text) == (to != "coco-results")
    if to == "yolo":
        names = yaml.safe_load((tmp_path / "out/data.yaml").read_text())["names"]
        assert names == {0: "Stop!", 1: "bottle & <glass>"}


def test_names_of_any_characters_come_back_from_yaml_and_xml(tmp_path: Path) -> None:
    names = [
        "\U0001f697 car",
        "\U00020bb7",
        "a\\ud83d\\ude97",
        'q"\\',
        "a: #b",
        "no",
        "1e5",
        "x\ry",
        " \u00a0",
        "\x7f\u2028",
    ]
    classes = dict(enumerate(names, 1))
    shown = {"a.jpg": Image(SIZE_HW, [(number, 0.9, DISC) for number in classes])}
    root = label_sets.write(tmp_path / "root", shown, classes=classes)
    for to in ("yolo", "cvat", "label-studio"):
        export(root, to, tmp_path / to)
    assert list(yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())["names"].values()) == names
    tree = ET.parse(tmp_path / "cvat")
    assert [label.findtext("name") for label in tree.iterfind(".//label")] == names
    assert [mask.get("label") for mask in tree.iterfind(".//mask")] == names
    assert [label.get("value") for label in ET.parse(tmp_path / "label-studio.config.xml").iter("Label")] == names


@pytest.mark.parametrize("new_names", [{"zebra": "x"}, {"stop sign": ""}, {"stop sign": "toothbrush"}])
def test_a_class_gets_no_name_of_another(root: str, tmp_path: Path, new_names: dict[str, str]) -> None:
    with pytest.raises(UserError, match=r"cannot be renamed|would have one name"):
        export(root, "coco", tmp_path / "out.json", rename=new_names)
    assert list(tmp_path.iterdir()) == []


def test_cvat_shapes_have_their_score_and_the_source_of_a_model(root: str, tmp_path: Path) -> None:
    export(root, "cvat", tmp_path / "out.xml")
    tree = ET.parse(tmp_path / "out.xml")
    assert {label.findtext("attributes/attribute/name") for label in tree.iterfind(".//label")} == {"score"}
    masks = list(tree.iterfind("image/mask"))
    assert {mask.get("source") for mask in masks} == {"auto"}
    scores = [score for image in IMAGES.values() for _, score, _ in image.found]
    assert [float(mask.findtext("attribute[@name='score']") or "") for mask in masks] == pytest.approx(scores, rel=1e-5)


def test_label_studio_gets_the_configuration_of_its_project(root: str, tmp_path: Path) -> None:
    done = export(root, "label-studio", tmp_path / "tasks.json")
    assert done.companion == str(tmp_path / "tasks.config.xml")
    assert f"labelling configuration: {done.companion}" in describe_export(done)
    view = ET.parse(tmp_path / "tasks.config.xml").getroot()
    image, brush = view.find("Image"), view.find("BrushLabels")
    assert image is not None
    assert brush is not None
    assert [label.get("value") for label in brush] == list(CLASSES.values())
    task = json.loads((tmp_path / "tasks.json").read_text())[0]
    result = task["predictions"][0]["result"][0]
    assert (result["to_name"], result["from_name"]) == (image.get("name"), brush.get("name"))
    assert (image.get("value") or "").removeprefix("$") in task["data"]
    assert {path.name for path in tmp_path.iterdir()} == {"tasks.json", "tasks.config.xml"}
    (tmp_path / "other.config.xml").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        export(root, "label-studio", tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists()


def test_every_polygon_is_its_mask() -> None:
    rng = np.random.default_rng(7)
    for _ in range(20):
        mask = rng.random(rng.integers(1, 25, 2)) < rng.random()
        counts = rle.encode(mask)
        if mask.any():
            for drawn in (polygons.parts(counts, mask.shape), [polygons.single(counts, mask.shape)]):
                assert polygons.overlap(drawn, counts, mask.shape) == 1
    assert polygons.parts(rle.encode(np.zeros((3, 3), np.bool_)), (3, 3)) == []
    assert row_runs(WHOLE, SIZE_HW).tolist() == [0, 2400]
    assert coco_mask.area({"size": SIZE_HW, "counts": WHOLE.encode()}) == 2400
