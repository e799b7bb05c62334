"""`segray models compare`: a model's rows and reference results, over a small network that finds the red rectangle."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_today
import yolo_network
from PIL import Image

from segray import rle
from segray.cli import main
from segray.conversion import reference_results
from segray.errors import UserError

SIZE_HW = (48, 80)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "images" / "a").mkdir(parents=True)
    Image.fromarray(yolo_network.red_rectangle(SIZE_HW)).save(tmp_path / "images" / "a" / "one.png")
    return yolo_network.write(tmp_path / "best_openvino_model")


def mask(rows: slice = slice(12, 36), columns: slice = slice(20, 60)) -> dict[str, Any]:
    pixels = np.zeros(SIZE_HW, np.bool_)
    pixels[rows, columns] = True
    return {"size": list(SIZE_HW), "counts": rle.encode(pixels)}


def result(**changes: Any) -> dict[str, Any]:
    return {
        "image_id": "one",
        "category_id": 1,
        "score": 0.875,
        "bbox": [0, 0, 80, 48],
        "segmentation": mask(),
        **changes,
    }


def compare(model: Path, content: object, *arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, Any]:
    reference = model.parent / "reference.json"
    reference.write_text(json.dumps(content))
    words = ["models", "compare", str(model), "--images", str(model.parent / "images"), "--reference", str(reference)]
    code = main.run([*words, *arguments])
    return code, capsys.readouterr()


def test_equal_rows_match(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = compare(model, [result()], capsys=capsys)
    assert code == 0
    assert "matched  1 of 1 (100.0%)" in printed.out
    assert "extra    0 rows" in printed.out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([result(segmentation=mask(columns=slice(20, 56)))], "differs: one, red thing, score 0.875: mask IoU 0.9"),
        ([result(score=0.8)], "difference of scores 0.075"),
        ([result(category_id=2)], "no such row"),
        ([result(), result(segmentation=mask(slice(0, 9), slice(0, 9)))], "matched  1 of 2"),
        ([result(score=0.2, category_id=2)], "extra: one, red thing, score 0.875"),
    ],
)
def test_other_rows_end_with_4(model: Path, capsys: pytest.CaptureFixture[str], content: object, said: str) -> None:
    code, printed = compare(model, content, capsys=capsys)
    assert code == 4
    assert said in printed.out


def test_a_row_below_the_smallest_score_may_be_the_partner(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = compare(model, [result(score=0.87)], "--min-score", "0.872", "--json", capsys=capsys)
    figures = json.loads(printed.out)
    assert (code, figures["pairs"], figures["extra"], figures["matched_share"]) == (0, [], [], 1.0)


def test_options_of_the_model_are_set(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, printed = compare(model, [result()], "--set", "model.score_threshold=0.9", capsys=capsys)
    assert (code, "no such row" in printed.out) == (4, True)


def test_all_forms_of_results_say_the_same(tmp_path: Path) -> None:
    picture = {"size": list(SIZE_HW), "rows": [{"score": 0.875, "cls": 0, "box": [0, 0, 80, 48], "mask": mask()}]}
    data_set = {
        "images": [{"id": 7, "file_name": "a/one.png"}, {"id": 8, "file_name": "two.png"}],
        "categories": [{"id": 3, "name": "red thing"}],
        "annotations": [{**result(image_id=7, category_id=3)}],
    }
    forms = {"pictures": {"pictures": {"one.png": picture}}, "results": [result(file_name="one.png")], "set": data_set}
    read = {}
    for name, content in forms.items():
        (tmp_path / name).write_bytes(gzip.compress(json.dumps(content).encode()))
        read[name] = reference_results.read(tmp_path / name)
    assert [list(images) for images in read.values()] == [["one.png"], ["one.png"], ["a/one.png", "two.png"]]
    rows = [next(iter(images.values())).rows[0] for images in read.values()]
    assert [(row.class_index, row.class_id, row.class_name) for row in rows] == [
        (0, None, None), (None, 1, None), (None, None, "red thing")
    ]  # fmt: skip
    assert all((row.box_xyxy == [0, 0, 80, 48]).all() and row.counts == mask()["counts"] for row in rows)
    assert read["set"]["two.png"] == reference_results.ReferenceImage(None, ())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "no file of results"),
        ([], "no file of results"),
        ([{"image_id": 1}], "a row that cannot be read"),
        ([result(segmentation=[[1, 2, 3, 4, 5, 6]])], "a row that cannot be read"),
        ([result(segmentation={"size": [48, 80], "counts": [1, 2]})], "compressed run lengths"),
        ([result(image_id="two")], "nothing in common"),
        ([result(segmentation={"size": [64, 96], "counts": "0"})], "another size in the reference"),
    ],
)
def test_a_wrong_reference_ends_with_2(
    model: Path, capsys: pytest.CaptureFixture[str], content: object, said: str
) -> None:
    code, printed = compare(model, content, capsys=capsys)
    assert (code, said in printed.err) == (2, True)


def test_a_reference_that_is_no_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"\x1f\x8bnothing")
    with pytest.raises(UserError, match="cannot be read"):
        reference_results.read(tmp_path / "x.json")


@pytest.mark.skipif(not reference_today.REAL.is_dir(), reason=f"{reference_today.REAL} is not there")
def test_a_real_network_agrees_with_ultralytics(capsys: pytest.CaptureFixture[str]) -> None:
    real = reference_today.REAL
    code = main.run(
        ["models", "compare", str(real / "yolov8n-seg_coco_openvino_model"), "--images", str(real.parent / "photos"),
         "--reference", str(real / "expected.json.gz")]
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert (code, "matched  18 of 18" in printed) == (0, True), printed
