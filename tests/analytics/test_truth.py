"""Truth as tools and people write it: read where its meaning is plain, else refused with the annotation's id."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import random
import subprocess
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import label_sets
import numpy as np
import pytest
from label_sets import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from test_coco_eval import made, numbers, written

from segray import rle
from segray.analytics.evaluation import class_matching
from segray.analytics.evaluation.evaluate import Evaluation, evaluate, read_truth
from segray.analytics.export.export import export
from segray.cli import main
from segray.errors import SourceError, UserError

pytestmark = pytest.mark.integration  # half a minute in all

Row = dict[str, Any]
SIZE_HW = (48, 64)
CLASSES = {38: "kite", 44: "bottle"}
SQUARE = [8, 10, 28, 10, 28, 30, 8, 30]
BOX = [30, 8, 52, 8, 52, 26, 30, 26]


def plain() -> Row:
    """Two images, a kite and a bottle in each."""
    shapes = [(38, [8, 10, 20, 20], 400, SQUARE), (44, [30, 8, 22, 18], 396, BOX)]
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 64, "height": 48} for i in (1, 2)],
        "annotations": [
            {"id": 2 * image + k - 1, "image_id": image, "category_id": category, "bbox": box, "area": area,
             "iscrowd": 0, "segmentation": [polygon]}
            for image in (1, 2)
            for k, (category, box, area, polygon) in enumerate(shapes)
        ],
        "categories": [{"id": number, "name": name} for number, name in CLASSES.items()],
    }  # fmt: skip


def counts_of(x: int, y: int, w: int, h: int) -> str:
    return rle.encode_crop(np.ones((h, w), np.bool_), x, y, SIZE_HW)


def labels(names: tuple[str, str] = ("1.jpg", "2.jpg")) -> dict[str, Image]:
    """All but one object of the truth, two of them a little beside, and an invention."""
    first = [
        (38, 0.9, counts_of(8, 10, 20, 20)),
        (44, 0.8, counts_of(32, 8, 22, 18)),
        (38, 0.95, counts_of(0, 36, 9, 9)),
    ]
    second = [(44, 0.7, counts_of(30, 10, 22, 18))]
    return {name: Image(SIZE_HW, found) for name, found in zip(names, (first, second), strict=True)}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return label_sets.write(tmp_path_factory.mktemp("labels") / "set", labels(), classes=CLASSES)


def judged(root: str, truth: Row, tmp_path: Path, **options: Any) -> Evaluation:
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(truth))
    return evaluate(root, path, **options)


def figures(result: Evaluation) -> list[Any]:
    return [
        (kind, scores.ap, scores.ap50, scores.ap75, scores.ap_small, scores.ar1, scores.ar100, dict(scores.class_ap))
        for kind, scores in result.scores.items()
    ]


def assert_equal(result: Evaluation, other: Evaluation) -> None:
    for (kind, *values, by_class), (other_kind, *others, other_by_class) in zip(
        figures(result), figures(other), strict=True
    ):
        assert kind == other_kind
        assert values == pytest.approx(others, abs=1e-12)
        assert by_class == pytest.approx(other_by_class, abs=1e-12)


@pytest.fixture(scope="module")
def usual(root: str, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return judged(root, plain(), tmp_path_factory.mktemp("plain"))


def pycocotools_ap(truth: Row, root_labels: dict[str, Image], iou_type: str) -> float:
    ids = {row["file_name"]: row["id"] for row in truth["images"]}
    results = []
    for key, image in root_labels.items():
        for category, score, counts in image.found:
            shape: Row = {"segmentation": {"size": list(SIZE_HW), "counts": counts}}
            if iou_type == "bbox":
                shape = {"bbox": rle.bbox(counts, SIZE_HW).tolist()}
            score = float(np.float32(score))
            results.append({"image_id": ids[key], "category_id": category, "score": score, **shape})
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        done = COCOeval(coco, coco.loadRes(results), iou_type)
        done.evaluate(), done.accumulate(), done.summarize()
    return float(done.stats[0])


def test_the_plain_truth_scores_as_pycocotools_says(usual: Evaluation) -> None:
    for iou_type, scores in usual.scores.items():
        assert scores.ap == pytest.approx(pycocotools_ap(plain(), labels(), iou_type), abs=1e-12)
        assert 0.1 < scores.ap < 0.9
    assert usual.notes == []


# ---- read as the plain truth ----------------------------------------------------------------------


def each(section: str, change: Callable[[Row], Any]) -> Callable[[Row], None]:
    def apply(truth: Row) -> None:
        for row in truth[section]:
            change(row)

    return apply


def first(change: Row | Callable[[Row], Any]) -> Callable[[Row], None]:
    """Change the first annotation."""

    def apply(truth: Row) -> None:
        row = truth["annotations"][0]
        row.update(change) if isinstance(change, dict) else change(row)

    return apply


def without(*names: str) -> Callable[[Row], Any]:
    return lambda row: [row.pop(name, None) for name in names]


def written_as(kind: Callable[[int], Any], *names: str) -> Callable[[Row], Any]:
    return lambda row: row.update({name: kind(row[name]) for name in names})


def all_ids(kind: Callable[[int], Any]) -> Callable[[Row], None]:
    def apply(truth: Row) -> None:
        each("images", written_as(kind, "id"))(truth)
        each("annotations", written_as(kind, "id", "image_id", "category_id"))(truth)
        each("categories", written_as(kind, "id"))(truth)

    return apply


def runs(kind: Callable[[int], Any] = int) -> list[Any]:
    return [kind(run) for run in rle.runs_of(counts_of(8, 10, 20, 20), SIZE_HW).tolist()]


READ: dict[str, Callable[[Row], Any]] = {
    "ids as text": all_ids(str),
    "ids as floats": all_ids(float),
    "ids as words": all_ids(lambda number: f" id-{number}"),
    "ids as UUIDs": all_ids(lambda number: f"0f8fad5b-d9cb-469f-a165-{number:012}"),
    "ids of 128 bits": all_ids(lambda number: 2**127 - number),
    "image ids as file names": lambda truth: [each("images", lambda row: row.update(id=row["file_name"]))(truth),
                                              each("annotations",
                                                   lambda row: row.update(image_id=f"{row['image_id']}.jpg"))(truth)],
    "classes by their names": each("annotations", lambda row: row.update(category_id=CLASSES[row["category_id"]])),
    "category ids that are the names": lambda truth: [
        each("categories", lambda row: row.update(id=row.pop("name")))(truth),
        each("annotations", lambda row: row.update(category_id=CLASSES[row["category_id"]]))(truth)],
    "image ids as text in images alone": each("images", written_as(str, "id")),
    "sizes as text": each("images", written_as(str, "width", "height")),
    "sizes as floats": each("images", written_as(float, "width", "height")),
    "no sizes": each("images", without("width", "height")),
    "no height": lambda truth: truth["images"][0].pop("height"),
    "height null": lambda truth: truth["images"][0].update(height=None),
    "sizes zero": each("images", lambda row: row.update(width=0, height=0)),
    "area null": first({"area": None}),
    "no area": each("annotations", without("area")),
    "bbox empty": first({"bbox": []}),
    "bbox null": first({"bbox": None}),
    "no bbox": each("annotations", without("bbox")),
    "no iscrowd": each("annotations", without("iscrowd")),
    "iscrowd null": each("annotations", lambda row: row.update(iscrowd=None)),
    "iscrowd false": each("annotations", lambda row: row.update(iscrowd=False)),
    "iscrowd text": first({"iscrowd": "0"}),
    "iscrowd float": first({"iscrowd": 0.0}),
    "no annotation ids": each("annotations", without("id")),
    "stray point": first({"segmentation": [SQUARE, [40.0, 40.0]]}),
    "stray line": first({"segmentation": [SQUARE, [2, 2, 9, 2]]}),
    "empty part": first({"segmentation": [[], SQUARE]}),
    "odd number": first({"segmentation": [SQUARE, [2, 2, 9, 2, 9, 9, 2]]}),
    "flat list": first({"segmentation": SQUARE}),
    "pairs": first({"segmentation": [[SQUARE[k : k + 2] for k in range(0, 8, 2)]]}),
    "points": first({"segmentation": [SQUARE[k : k + 2] for k in range(0, 8, 2)]}),
    "runs as numbers": first({"segmentation": {"size": [48, 64], "counts": runs()}}),
    "runs as floats": first({"segmentation": {"size": [48.0, 64.0], "counts": runs(float)}}),
    "runs as text": first({"segmentation": {"size": [48, 64], "counts": counts_of(8, 10, 20, 20)}}),
    "runs without a size": first({"segmentation": {"counts": counts_of(8, 10, 20, 20)}}),
    "runs as Python's text of bytes": first(
        {"segmentation": {"size": [48, 64], "counts": str(counts_of(8, 10, 20, 20).encode())}}),
    "bare runs": first({"segmentation": counts_of(8, 10, 20, 20)}),
    "a list of runs": first({"segmentation": [{"size": [48, 64], "counts": counts_of(8 + 10 * k, 10, 10, 20)}
                                              for k in (0, 1)]}),
    "no number in a field that is not read": first({"score": float("nan"), "attributes": {"a": None}}),
    "frequency null": each("categories", lambda row: row.update(frequency=None)),
    "supercategory null": each("categories", lambda row: row.update(supercategory=None)),
}  # fmt: skip
LEFT_OUT = {"stray point", "stray line", "empty part", "odd number"}


@pytest.mark.parametrize("name", READ)
def test_a_lax_form_is_read_as_the_plain_one(name: str, root: str, usual: Evaluation, tmp_path: Path) -> None:
    truth = plain()
    READ[name](truth)
    result = judged(root, truth, tmp_path)
    assert_equal(result, usual)
    assert result.protocol == "coco"
    assert ("1 part of a polygon" in " ".join(result.notes)) == (name in LEFT_OUT)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_any_unicode_is_read(encoding: str, root: str, usual: Evaluation, tmp_path: Path) -> None:
    (tmp_path / "truth.json").write_bytes(json.dumps(plain()).encode(encoding))
    assert_equal(evaluate(root, tmp_path / "truth.json"), usual)


@pytest.mark.parametrize("name", ["no sizes", "no area", "runs without a size"])
def test_images_that_are_not_labelled_need_no_size(name: str, root: str, tmp_path: Path) -> None:
    truth = plain()
    READ[name](truth)
    for row in truth["images"]:
        row.pop("width", None)
    truth["images"].append({"id": 3, "file_name": "3.jpg"})
    extra = [copy.deepcopy(row) | {"id": 9, "image_id": 3} for row in truth["annotations"][:2]]
    truth["annotations"] += extra if name != "runs without a size" else extra[1:]
    result = judged(root, truth, tmp_path)
    assert result.missing == 1
    assert "2 images have no size in the truth" in " ".join(result.notes)


# ---- refused, with the annotation's id ------------------------------------------------------------


def coordinate(value: Any) -> Callable[[Row], None]:
    return first({"segmentation": [[8, 10, value, 10, 28, 30, 8, 30]]})


REFUSED: dict[str, tuple[Callable[[Row], Any], str]] = {
    "coordinate null": (coordinate(None), "annotation 1 "),
    "coordinate nan": (coordinate(float("nan")), "annotation 1 "),
    "coordinate infinity": (coordinate(float("-inf")), "annotation 1 "),
    "coordinate 1e8": (coordinate(1e8), "annotation 1 "),
    "coordinate 9e7": (coordinate(-9e7), "annotation 1 "),
    "coordinate 1e300": (coordinate(1e300), "annotation 1 "),
    "coordinate of many digits": (coordinate(10**400), "annotation 1 "),
    "coordinate text": (coordinate("28"), "annotation 1 "),
    "coordinate mapping": (coordinate({}), "annotation 1 "),
    "zigzag": (first({"segmentation": [[1e5, -1e5, -1e5, 1e5] * 50]}), "outline"),
    "only a point": (first({"segmentation": [[40.0, 40.0]]}), "annotation 1 "),
    "only lines": (first({"segmentation": [[1, 2, 3, 4], [5, 6, 7, 8]]}), "annotation 1 "),
    "segmentation null": (first({"segmentation": None}), "annotation 1 "),
    "segmentation true": (first({"segmentation": True}), "annotation 1 "),
    "no segmentation": (first(without("segmentation")), "annotation 1 "),
    "counts null": (first({"segmentation": {"size": [48, 64], "counts": None}}), "annotation 1 "),
    "counts of a mapping": (first({"segmentation": {"size": [48, 64], "counts": {}}}), "annotation 1 "),
    "counts too short": (first({"segmentation": {"size": [48, 64], "counts": [1, 2]}}), "annotation 1 "),
    "counts too long": (first({"segmentation": {"size": [48, 64], "counts": [10**12, 2]}}), "annotation 1 "),
    "counts over 64 bits": (first({"segmentation": {"size": [48, 64], "counts": [10**30, 2]}}), "annotation 1 "),
    "counts negative": (first({"segmentation": {"size": [48, 64], "counts": [-1, 48 * 64 + 1]}}), "annotation 1 "),
    "counts huge": (first({"segmentation": {"size": [48, 64], "counts": "oooooooo0"}}), "annotation 1 "),
    "counts of letters": (first({"segmentation": {"size": [48, 64], "counts": "\ud800é"}}), "annotation 1 "),
    "mask of another size": (first({"segmentation": {"size": [64, 48], "counts": runs()}}), "annotation 1 "),
    "mask of a size of text": (first({"segmentation": {"size": "48", "counts": runs()}}), "annotation 1 "),
    "bbox of three": (first({"bbox": [1, 2, 3]}), "annotation 1 "),
    "bbox of text": (first({"bbox": ["1", 2, 3, 4]}), "annotation 1 "),
    "bbox nan": (first({"bbox": [1, 2, 3, float("nan")]}), "annotation 1 "),
    "bbox negative": (first({"bbox": [1, 2, -3, 4]}), "annotation 1 "),
    "bbox 1e300": (first({"bbox": [1, 2, 1e300, 4]}), "annotation 1 "),
    "area text": (first({"area": "400"}), "annotation 1 "),
    "area nan": (first({"area": float("nan")}), "annotation 1 "),
    "area negative": (first({"area": -1}), "annotation 1 "),
    "iscrowd two": (first({"iscrowd": 2}), "annotation 1 "),
    "no category id": (first(without("category_id")), "annotation 1 "),
    "no image id": (first(without("image_id")), "annotation 1 "),
    "image id true": (first({"image_id": True}), "annotation 1 "),
    "image id 1.5": (first({"image_id": 1.5}), "annotation 1 "),
    "image id over 64 bits": (first({"image_id": 2**80}), f"annotation 1, image {2**80}"),
    "image id of thousands of digits": (first({"image_id": 10**4000}), "annotation 1 "),
    "image id a word": (first({"image_id": "b"}), "annotation 1, image 'b'"),
    "image id blank": (first({"image_id": " "}), "annotation 1 "),
    "category id a word": (first({"category_id": "b"}), "annotation 1, category 'b'"),
    "category id a name of two": (
        lambda truth: [truth["categories"].append({"id": 7, "name": "kite"}), first({"category_id": "kite"})(truth)],
        "annotation 1, category 'kite'",
    ),
    "two images of one word": (each("images", lambda row: row.update(id="b")), "such as image 'b'"),
    "image id unknown": (first({"image_id": 7}), "annotation 1, image 7"),
    "category id unknown": (first({"category_id": 7}), "annotation 1, category 7"),
    "no ids at all": (first(without("id", "category_id")), "annotation number 1 "),
    "annotation null": (lambda truth: truth["annotations"].insert(0, None), "annotation number 1 "),
    "annotation a list": (lambda truth: truth["annotations"].append([1]), "annotation number 5 "),
    "annotations a mapping": (lambda truth: truth.update(annotations={"1": {}}), "a mapping"),
    "annotations null": (lambda truth: truth.update(annotations=None), "null"),
    "category without a name": (lambda truth: truth["categories"][0].pop("name"), "category 38"),
    "category without an id": (lambda truth: truth["categories"][1].pop("id"), "category number 2"),
    "category null": (lambda truth: truth["categories"].append(None), "category number 3"),
    "category of a list": (lambda truth: truth["categories"][0].update(name=["kite"]), "category 38"),
    "two categories of one id": (lambda truth: truth["categories"].append({"id": 38, "name": "b"}), "38: kite, b"),
    "file name a number": (lambda truth: truth["images"][0].update(file_name=1), "image 1"),
    "file name of half a character": (lambda truth: truth["images"][1].update(file_name="\ud800"), "image 2"),
    "image null": (lambda truth: truth["images"].append(None), "image number 3"),
    "image without an id": (lambda truth: truth["images"][1].pop("id"), "image number 2"),
    "image id a list": (lambda truth: truth["images"][1].update(id=["b"]), "image number 2: ['b']"),
    "two images of one id": (lambda truth: truth["images"][1].update(id=1), "such as image 1"),
    "width negative": (lambda truth: truth["images"][0].update(width=-64), "image 1"),
    "width huge": (lambda truth: truth["images"][0].update(width=10**12), "image 1"),
    "neg_category_ids": (lambda truth: truth["images"][0].update(neg_category_ids=3), "image 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_meaning_is_refused_with_its_id(name: str, root: str, tmp_path: Path) -> None:
    truth = plain()
    change, said = REFUSED[name]
    change(truth)
    with pytest.raises(UserError) as caught:
        judged(root, truth, tmp_path)
    assert said in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"images": [],}', "line 1, column 15"),
        ('{"licenses": [{"id": 1},]}', "line 1, column 25"),
        ('{"licenses": [{"id": 1}\n {"id": 2}]}', "line 2, column 2"),
        ('{"images":\n\n[{"id": 1,, "x": 2}', "line 3, column 11"),
        ('{"images": [' + "[" * 100_000, "nested too deeply"),
        ('{"images": [{"id": ' + "1" * 5000 + "}]}", "digits"),
        ('{"images": []', "ends before"),
        ('{"images": []} {}', "after the end"),
        ("[]", "a list"),
        ("", "ends before"),
        ("\x1f\x8b", "gzip"),
    ],
)
def test_what_is_no_json_is_refused_with_its_place(text: str, said: str, root: str, tmp_path: Path) -> None:
    (tmp_path / "truth.json").write_text(text, encoding="latin-1")
    with pytest.raises(SourceError) as caught:
        evaluate(root, tmp_path / "truth.json")
    assert said in str(caught.value)


def test_a_key_that_stands_twice_is_refused(root: str, tmp_path: Path) -> None:
    (tmp_path / "truth.json").write_text(json.dumps(plain())[:-1] + ', "annotations": []}')
    with pytest.raises(SourceError, match="two lists of annotations"):
        evaluate(root, tmp_path / "truth.json")


def test_images_whose_ids_are_words_are_ordered_as_the_truth_lists_them(tmp_path: Path) -> None:
    """The order of images decides between equal scores, so another order gives other figures."""
    content, shown = made(40, seed=4)
    places = {row["id"]: place for place, row in enumerate(content["images"])}

    def renamed(name: Callable[[int], Any]) -> Row:
        images = [{**row, "id": name(places[row["id"]])} for row in content["images"]]
        rows = [{**row, "image_id": name(places[row["image_id"]])} for row in content["annotations"]]
        return {**content, "images": images, "annotations": rows}

    before = written(tmp_path, renamed(lambda place: place + 1), shown)
    after = judged(str(tmp_path / "labels"), renamed(lambda place: f"{99 - place:02d}-{place * 7919 % 97}"), tmp_path)
    assert after.scores == before.scores
    backwards = judged(str(tmp_path / "labels"), renamed(lambda place: 99 - place), tmp_path)
    assert backwards.scores != before.scores


def test_places_count_from_the_start_of_the_file(root: str, tmp_path: Path) -> None:
    rows = ",\n".join(json.dumps({"id": i, "file_name": f"{i}.jpg", "note": "x" * 100}) for i in range(20_000))
    (tmp_path / "truth.json").write_text('{"images": [\n' + rows + ",\n  nul]}")
    with pytest.raises(SourceError, match="line 20002, column 3"):
        evaluate(root, tmp_path / "truth.json")


def test_a_truth_in_memory_is_checked_too(tmp_path: Path) -> None:
    truth = plain()
    all_ids(str)(truth)
    (tmp_path / "truth.json").write_text(json.dumps(truth), encoding="utf-16")
    assert read_truth(tmp_path / "truth.json")["annotations"][0]["image_id"] == 1
    truth["images"][1].pop("width")
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    with pytest.raises(SourceError, match="no size"):
        read_truth(tmp_path / "truth.json")


# ---- crowds ---------------------------------------------------------------------------------------


def test_crowds_are_counted_and_can_be_taken_for_objects(root: str, usual: Evaluation, tmp_path: Path) -> None:
    truth = plain()
    for row in truth["annotations"][::2]:
        row |= {"iscrowd": 1, "segmentation": {"size": list(SIZE_HW), "counts": runs()}}
    ignored = judged(root, truth, tmp_path)
    assert (ignored.crowds, ignored.objects) == (2, 2)
    assert any("2 annotations of the truth are crowds" in note and "--count-crowds" in note for note in ignored.notes)
    assert ignored.scores["segm"].ap == pytest.approx(pycocotools_ap(truth, labels(), "segm"), abs=1e-12)
    counted = judged(root, truth, tmp_path, count_crowds=True)
    assert (counted.crowds, counted.objects, counted.notes) == (0, 4, [])
    assert_equal(counted, usual)
    for row in truth["annotations"]:
        row |= {"iscrowd": True, "segmentation": {"size": list(SIZE_HW), "counts": runs()}}
    with pytest.raises(SourceError, match="4 crowds and no other annotation"):
        judged(root, truth, tmp_path)


# ---- classes --------------------------------------------------------------------------------------


def renumbered() -> Row:
    truth = plain()
    numbers = {38: 2, 44: 1}
    for row in truth["annotations"]:
        row["category_id"] = numbers[row["category_id"]]
    truth["categories"] = [
        {"id": 0, "name": "kite", "supercategory": "none"}, {"id": 1, "name": "Bottle"}, {"id": 2, "name": "KITE_"},
    ]  # fmt: skip
    return truth


def test_classes_are_compared_by_name_where_ids_disagree(root: str, usual: Evaluation, tmp_path: Path) -> None:
    result = judged(root, renumbered(), tmp_path)
    assert_equal(result, usual)
    notes = " ".join(result.notes)
    assert "compared by name, 2 of 2" in notes
    assert "1 'Bottle' is 44 'bottle'; 2 'KITE_' is 38 'kite'" in notes
    assert "left out: 0 'kite'" in notes
    assert_equal(judged(root, renumbered(), tmp_path, classes_by="name"), usual)


def test_classes_by_id_takes_ids_whatever_the_names_are(root: str, usual: Evaluation, tmp_path: Path) -> None:
    truth = plain()
    truth["categories"][0]["name"], truth["categories"][1]["name"] = "bottle", "kite"
    result = judged(root, truth, tmp_path, classes_by="id")
    assert [scores.ap for scores in result.scores.values()] == [scores.ap for scores in usual.scores.values()]
    assert "2 of 2 with other names" in " ".join(result.notes)
    del truth["categories"][0]["name"]
    assert judged(root, truth, tmp_path, classes_by="id").scores["segm"].class_ap.keys() == {"kite (38)", "kite (44)"}


def test_a_class_map_joins_what_names_do_not(root: str, usual: Evaluation, tmp_path: Path) -> None:
    truth = renumbered()
    truth["categories"] = [{"id": 1, "name": "Flasche"}, {"id": 2, "name": "kite"}]
    with pytest.raises(UserError, match="labels lack categories") as caught:
        judged(root, truth, tmp_path)
    assert "--class-map" in caught.value.hint
    for class_map in ({"Flasche": "bottle"}, {"1": "44"}):
        result = judged(root, truth, tmp_path, class_map=class_map)
        assert_equal(result, usual)
        assert "by the class map" in " ".join(result.notes)
    (tmp_path / "map.yaml").write_text("Flasche: bottle\n")
    assert_equal(judged(root, truth, tmp_path, class_map=tmp_path / "map.yaml"), usual)
    (tmp_path / "map.json").write_text('{\n"flasche": "bottle"\n}')
    assert_equal(judged(root, truth, tmp_path, class_map=str(tmp_path / "map.json")), usual)
    with pytest.raises(UserError, match="no such class map"):
        judged(root, truth, tmp_path, class_map=tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(UserError, match="is no mapping"):
        judged(root, truth, tmp_path, class_map=tmp_path / "list.yaml")
    with pytest.raises(UserError, match="class that the truth lacks"):
        judged(root, truth, tmp_path, class_map={"bouteille": "bottle"})


def test_a_class_map_joins_classes_of_either_side(root: str, tmp_path: Path) -> None:
    truth = plain()
    truth["categories"] = [{"id": 1, "name": "thing"}]
    for row in truth["annotations"]:
        row["category_id"] = 1
    result = judged(root, truth, tmp_path, class_map={"thing": ["kite", "bottle"]})
    assert result.scores["segm"].class_ap.keys() == {"thing"}
    assert result.instances == 4
    truth = plain()
    truth["categories"].append({"id": 45, "name": "flask"})
    truth["annotations"][3]["category_id"] = 45
    joined = judged(root, truth, tmp_path, class_map={"flask": "bottle", "bottle": "bottle"})
    assert joined.scores["segm"].class_ap.keys() == {"kite", "bottle"}


def test_the_command_takes_the_same_choices(root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = renumbered()
    truth["categories"][1]["name"] = "Flasche"
    for row in truth["images"]:
        row["file_name"] = f"val/{row['file_name']}"
    for row in truth["annotations"][::2]:
        row["iscrowd"] = 1
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    command = ["evaluate", root, "--truth", str(tmp_path / "truth.json")]
    choices = ["--class-map", "Flasche=bottle", "--count-crowds", "--strip-prefix", "val", "--files-by", "key"]
    assert main.run([*command, *choices]) == 0
    assert "(4 objects in 2 images)" in capsys.readouterr().out
    assert main.run([*command, "--class-map", "Flasche=bottle", "--files-by", "basename", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["crowds"], result["missing"], result["scores"]["segm"]["limits"]) == (2, 0, [1, 10, 100])
    (tmp_path / "map.yaml").write_text("Flasche: [bottle]\n")
    assert main.run([*command, "--class-map", str(tmp_path / "map.yaml"), "--files-by", "suffix"]) == 0
    for wrong in (["--class-map", "a=b", "--class-map", "c"], ["--classes-by", "nam"], ["--files-by", "path"]):
        assert main.run([*command, *wrong]) == 2
        assert "error" in capsys.readouterr().err
    assert main.run(["evaluate", root, "--truth", str(tmp_path)]) == 2
    assert "no such truth file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("truth", "used", "classes", "said"),
    [
        ({1: "bolt", 2: "Bolt"}, {1, 2}, {5: "bolt", 6: "nut"}, "lack"),
        ({1: "BOLT"}, {1}, {5: "bolt", 6: "Bolt"}, "lack"),
        ({1: "nut"}, {1}, {5: "bolt"}, "lack"),
    ],
)
def test_names_that_fit_no_class_alone_are_refused(truth: Any, used: Any, classes: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        class_matching.match(truth, used, classes)
    with pytest.raises(UserError):
        class_matching.match(truth, used, classes, classes_by="name")


def test_an_exact_name_counts_before_a_similar_one() -> None:
    result = class_matching.match({1: "Bolt", 2: "bolt"}, {1, 2}, {5: "bolt", 6: "Bolt"})
    assert result.ids == {1: 6, 2: 5}
    assert class_matching.match({1: "caf\u0065\u0301"}, {1}, {5: "caf\u00e9"}).ids == {1: 5}


def test_the_words_tell_what_was_confused(root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = [(38, 0.9, counts_of(8, 10, 20, 20)), *((44, 0.8 - k / 100, counts_of(8, 10, 20, 20)) for k in range(7))]
    other = label_sets.write(
        tmp_path / "set", {"1.jpg": Image(SIZE_HW, found), "2.jpg": Image(SIZE_HW)}, classes=CLASSES
    )
    (tmp_path / "truth.json").write_text(json.dumps(plain()))
    assert main.run(["evaluate", other, "--truth", str(tmp_path / "truth.json")]) == 0
    out = capsys.readouterr().out
    assert " 7 class," in out
    assert "7 times kite was taken for bottle" in out
    assert "recall at 1, 10, 100:" in out
    truth = plain()
    for row in truth["categories"]:
        row["frequency"] = "c"
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    assert main.run(["evaluate", other, "--truth", str(tmp_path / "truth.json")]) == 0
    assert "recall at 1, 10, 300:" in capsys.readouterr().out


# ---- files ----------------------------------------------------------------------------------------


def moved(prefix: str) -> Row:
    truth = plain()
    for row in truth["images"]:
        row["file_name"] = prefix + row["file_name"]
    return truth


def test_links_of_a_truth_are_matched_without_their_query(root: str, usual: Evaluation, tmp_path: Path) -> None:
    truth = moved("https://bucket.example/val/")
    for row in truth["images"]:
        row["file_name"] += "?X-Amz-Expires=60&sig=a/b#c"
    assert_equal(judged(root, truth, tmp_path), usual)


@pytest.mark.parametrize("prefix", ["val/", "/home/me/coco/val/", "C:\\data\\val\\", "./", "../"])
def test_a_truth_in_another_folder_is_matched_by_the_end_of_the_path(
    prefix: str, root: str, usual: Evaluation, tmp_path: Path
) -> None:
    result = judged(root, moved(prefix), tmp_path)
    assert_equal(result, usual)
    assert result.missing == 0
    assert any("2 of 2 images of the truth are matched by" in note for note in result.notes) or prefix == "./"
    for files_by in ("basename", "suffix"):
        assert_equal(judged(root, moved(prefix), tmp_path, files_by=files_by), usual)
    assert judged(root, moved(prefix), tmp_path, strip_prefix=prefix).scores == usual.scores


def test_a_renumbered_renamed_and_moved_truth_scores_as_the_plain_one(
    root: str, usual: Evaluation, tmp_path: Path
) -> None:
    truth = renumbered()
    for row in truth["images"]:
        row |= {"id": 10 * row["id"], "file_name": f"images/val/{row['file_name']}"}
    for row in truth["annotations"]:
        row |= {"id": row["id"] + 7, "image_id": 10 * row["image_id"]}
    result = judged(root, truth, tmp_path)
    assert_equal(result, usual)
    assert result.scores["segm"].ap == pytest.approx(pycocotools_ap(plain(), labels(), "segm"), abs=1e-12)


def test_many_objects_renumbered_renamed_and_moved_score_as_before(tmp_path: Path) -> None:
    """Crowds, equal scores, all forms of masks, and more than a hundred detections of a class."""
    content, shown = made(40, seed=4, crowded=True)
    before = written(tmp_path, content, shown)
    ids = {row["id"]: 4 - number for number, row in enumerate(content["categories"])}
    for row in content["annotations"]:
        row["category_id"] = ids[row["category_id"]]
    categories = [{"id": ids[row["id"]], "name": row["name"].title().replace(" ", "_")}
                  for row in content["categories"]]  # fmt: skip
    content["categories"] = [{"id": 0, "name": "objects"}, *categories[::-1]]
    for row in content["images"]:
        row["file_name"] = f"D:\\val\\{row['file_name']}"
    (tmp_path / "truth.json").write_text(json.dumps(content))
    after = evaluate(str(tmp_path / "labels"), tmp_path / "truth.json")
    for iou_type, scores in after.scores.items():
        assert numbers(scores) == pytest.approx(numbers(before.scores[iou_type]), abs=1e-12)
        assert scores.class_ap == pytest.approx(before.scores[iou_type].class_ap, abs=1e-12)
    assert (after.objects, after.instances, after.crowds) == (before.objects, before.instances, before.crowds)
    assert after.mistakes == before.mistakes


def test_labels_in_folders_are_matched_with_bare_names(usual: Evaluation, tmp_path: Path) -> None:
    root = label_sets.write(tmp_path / "set", labels(("a/1.jpg", "b/2.jpg")), classes=CLASSES)
    assert_equal(judged(root, plain(), tmp_path), usual)
    truth = plain()
    for row, folder in zip(truth["images"], "xy", strict=True):
        row["file_name"] = f"{folder}/{row['file_name']}"
    result = judged(root, truth, tmp_path)
    assert_equal(result, usual)
    assert "by the last part of their path, such as x/1.jpg for a/1.jpg" in " ".join(result.notes)
    with pytest.raises(UserError, match="no image in common"):
        judged(root, truth, tmp_path, files_by="key")


def test_a_label_set_without_images_is_refused_in_words(tmp_path: Path) -> None:
    root = label_sets.write(tmp_path / "set", {}, classes=CLASSES)
    with pytest.raises(UserError, match="no image in common"):
        judged(root, plain(), tmp_path)


def test_names_that_fit_two_images_are_refused(tmp_path: Path) -> None:
    root = label_sets.write(tmp_path / "set", labels(("a/1.jpg", "b/1.jpg")), classes=CLASSES)
    truth = plain()
    truth["images"][0]["file_name"], truth["images"][1]["file_name"] = "x/1.jpg", "y/1.jpg"
    with pytest.raises(UserError, match="no image in common"):
        judged(root, truth, tmp_path)
    with pytest.raises(UserError, match="two images fit one") as caught:
        judged(root, truth, tmp_path, files_by="basename")
    assert "a/1.jpg and b/1.jpg" in caught.value.found
    with pytest.raises(UserError, match="no such way to match images"):
        judged(root, truth, tmp_path, files_by="name")
    with pytest.raises(UserError, match="begins with the prefix"):
        judged(root, truth, tmp_path, strip_prefix="z")


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_composed_and_decomposed_names_meet(form: Any, usual: Evaluation, tmp_path: Path) -> None:
    other = "NFD" if form == "NFC" else "NFC"
    names = [unicodedata.normalize(form, name) for name in ("scène.jpg", "2.jpg")]
    root = label_sets.write(tmp_path / "set", labels((names[0], names[1])), classes=CLASSES)
    truth = plain()
    truth["images"][0]["file_name"] = unicodedata.normalize(other, "scène.jpg")
    result = judged(root, truth, tmp_path)
    assert_equal(result, usual)
    assert "1 of 2 images of the truth are matched by another spelling" in " ".join(result.notes)
    # Two images whose names differ in the form alone stay two images.
    both = {unicodedata.normalize(name, "scène.jpg"): image
            for name, image in zip(("NFC", "NFD"), labels().values(), strict=True)}  # fmt: skip
    root = label_sets.write(tmp_path / "both", both, classes=CLASSES)
    for row, name in zip(truth["images"], both, strict=True):
        row["file_name"] = name
    assert_equal(judged(root, truth, tmp_path), usual)
    truth["images"] = truth["images"][:1]
    truth["annotations"] = truth["annotations"][:2]
    assert judged(root, truth, tmp_path, allow_unlisted=True).missing == 0


# ---- what export writes ---------------------------------------------------------------------------


@pytest.mark.parametrize(("to", "polygons"), [("coco", False), ("coco", True), ("fiftyone", False)])
@pytest.mark.parametrize(
    "names", [("1.jpg", "x/2.jpg"), ("x//1.jpg", "./2.jpg"), ("/abs/1.jpg", "s3://b/2.jpg"), ("a b?.jpg", "日本/é.jpg")]
)
def test_evaluate_reads_what_export_writes(to: str, polygons: bool, names: Any, tmp_path: Path) -> None:
    root = label_sets.write(tmp_path / "set", labels(names), classes=CLASSES)
    export(root, to, tmp_path / "out", polygons=polygons)
    result = evaluate(root, tmp_path / "out")
    assert (result.images, result.missing, result.objects) == (2, 0, 4)
    assert [scores.ap for scores in result.scores.values()] == pytest.approx([1, 1])


# ---- hostile numbers in a process of their own ----------------------------------------------------

_EXTREMES = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, -(10**30), 1e8, 1e16, 1e300, float("nan"), float("inf"),
    float("-inf"), "", "0", "a", "1e9", "\ud800", "é" * 40, [], [[]], [[[]]], {}, [None], [1], [1, 2, 3, 4], [[1, 2]],
    {"counts": []}, {"counts": [2**40]}, {"size": [10**9, 10**9], "counts": [10**18]},
    {"size": [48, 64], "counts": [0] * 50 + [48 * 64]}, {"size": None, "counts": "0"}, "oooooooooooo", 10**4000,
    [1e7, -1e7] * 30, [1e6, 1e6, -1e6, -1e6] * 40, "../../x", "/", "a/" * 5000,
]  # fmt: skip


def mutated(rng: random.Random) -> Row:
    """Return a truth with one to three faults: fields dropped, nulled, retyped, doubled, or extreme numbers."""
    truth = plain()
    if rng.random() < 0.5:
        truth["annotations"][0]["segmentation"] = {"size": [48, 64], "counts": runs()}
    if rng.random() < 0.3:
        for row in truth["categories"]:
            row["frequency"] = "c"
        for row in truth["images"]:
            row |= {"neg_category_ids": [], "not_exhaustive_category_ids": []}
    for _ in range(rng.randint(1, 3)):
        parent, key = rng.choice(list(_places(truth)))
        kind = rng.randrange(4)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        elif kind == 2 and isinstance(parent[key], (int, float, str)):
            parent[key] = rng.choice([str, lambda value: [value], lambda value: {"1": value}, bool])(parent[key])
        else:
            parent[key] = copy.deepcopy(rng.choice(_EXTREMES))
    return truth


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    for key in keys:
        yield value, key
        yield from _places(value[key])


_JUDGE = """
import json, resource, sys, time
from pathlib import Path
from segray.analytics.evaluation.evaluate import evaluate, read_truth
from segray.errors import UserError
root, folder = sys.argv[1], Path(sys.argv[2])
evaluate(root, folder / "plain.json")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
counts = {"read": 0, "refused": 0}
for path in sorted(folder.glob("[0-9]*.json")):
    print(path.name, file=sys.stderr, flush=True)
    start = time.process_time()
    for read in (lambda: evaluate(root, path), lambda: evaluate(root, path, classes_by="id", count_crowds=True,
                 allow_unlisted=True, iou_types=("bbox",), files_by="basename"), lambda: read_truth(path)):
        try:
            read()
            counts["read"] += 1
        except UserError as error:
            counts["refused"] += 1
            assert error.what and (error.where or error.found), error
    assert time.process_time() - start < 20, path
counts["grown_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) // 1024
print(json.dumps(counts))
"""


@pytest.mark.parametrize("truths", [80, pytest.param(520, marks=pytest.mark.thorough)])
def test_no_mutated_truth_ends_in_a_traceback(root: str, tmp_path: Path, truths: int) -> None:
    rng = random.Random(int(os.environ["SEGRAY_SEED"]))
    (tmp_path / "plain.json").write_text(json.dumps(plain()))
    for number in range(truths):
        (tmp_path / f"{number:04d}.json").write_text(json.dumps(mutated(rng)), "utf-8", "surrogatepass")
    done = subprocess.run(
        [sys.executable, "-c", _JUDGE, root, str(tmp_path)], capture_output=True, text=True, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    counts = json.loads(done.stdout)
    assert counts["read"] + counts["refused"] == truths * 3
    assert min(counts["read"], counts["refused"]) > truths // 5
    assert counts["grown_mb"] < 1200
