from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import label_sets
import numpy as np
import pytest
from label_sets import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segray import rle
from segray.analytics.evaluation import coco_eval, ground_truth, truth_json
from segray.analytics.evaluation.evaluate import Evaluation, evaluate
from segray.analytics.query import arrow_masks, key_ranges
from segray.errors import LabelSetError, SourceError, UserError
from segray.label_set.commit import create_tables
from segray.label_set.run_records import Run
from segray.storage.store import StorageOptions, Store

Row = dict[str, Any]
CLASSES = {1: "person", 3: "car", 13: "stop sign", 90: "toothbrush"}


# AP, AP50, AP75, APr, APc, APf by the package lvis 0.5.3 on as_lvis(made(60, seed=1)).
LVIS_SAYS = {
    "segm": [0.14247645269450673, 0.3384736076701959, 0.108472059623222,
             0.12029624270785973, 0.15103227005399697, 0.15610084532166346],
    "bbox": [0.09931693571169713, 0.26424171386147305, 0.05791712054231994,
             0.09631108983552814, 0.10120140287193412, 0.10043831442762909],
}  # fmt: skip


def blob(rng: np.random.Generator, size_hw: tuple[int, int]) -> np.ndarray:
    """An ellipse of any size, from a few pixels on."""
    (height, width), radii = size_hw, np.exp(rng.uniform(0.7, np.log(np.array(size_hw) / 1.5)))
    y, x = np.ogrid[:height, :width]
    cy, cx = rng.uniform(0, size_hw)
    return ((y - cy) / radii[0]) ** 2 + ((x - cx) / radii[1]) ** 2 <= 1


def made(images: int, seed: int = 0, crowded: bool = False) -> tuple[Row, dict[str, Image]]:
    """A truth in all of COCO's forms of masks, and labels that are partly right."""
    rng, shown = np.random.default_rng(seed), {}
    content: Row = {"images": [], "annotations": [], "categories": [{"id": i, "name": n} for i, n in CLASSES.items()]}
    for number in rng.permutation(images).tolist():
        size_hw = (int(rng.integers(60, 160)), int(rng.integers(60, 160)))
        listed, key = {"id": int(number) * 7 + 3, "height": size_hw[0], "width": size_hw[1]}, f"{number:04d}.jpg"
        content["images"].append(listed | {"file_name": key})
        found = []
        for _ in range(rng.integers(0, 7)):
            category = int(rng.choice(list(CLASSES)[:3]))
            mask = blob(rng, size_hw)
            if not mask.any():
                continue
            content["annotations"].append(annotation(rng, len(content["annotations"]), listed["id"], category, mask))
            for _ in range(rng.integers(0, 3)):
                moved = np.roll(mask, rng.integers(-3, 4, 2), (0, 1))
                told = category if rng.random() < 0.8 else int(rng.choice(list(CLASSES)))
                found.append((told, score(rng), rle.encode(moved)))
        for _ in range(130 if crowded and number < 2 else rng.integers(0, 3)):
            found.append((1, score(rng), rle.encode(blob(rng, size_hw))))
        found = [each for each in found if rle.area(each[2])]
        shown[key] = Image(size_hw, sorted(found, key=lambda each: -each[1]))
    return content, shown


def score(rng: np.random.Generator) -> float:
    return float(np.float32(np.round(rng.uniform(0.05, 1), 2)))  # Many are equal.


def annotation(rng: np.random.Generator, number: int, image: int, category: int, mask: np.ndarray) -> Row:
    counts, kind = rle.encode(mask), number % 4
    segmentation: Any = {"size": list(mask.shape), "counts": counts}
    if kind == 1:
        segmentation["counts"] = rle.runs_of(counts, mask.shape).tolist()
    elif kind == 2:
        segmentation = [each.ravel().tolist() for each in arrow_masks.outlines(counts, mask.shape)]
    return {
        "id": number, "image_id": image, "category_id": category, "segmentation": segmentation,
        "bbox": rle.bbox(counts, mask.shape).tolist(), "area": float(rle.area(counts)),
        "iscrowd": int(kind == 1 and rng.random() < 0.5),
    }  # fmt: skip


def pycocotools_says(content: Row, shown: dict[str, Image], iou_type: str, *, widen: float = 0, most: int = 100) -> Any:
    results = []
    ids = {row["file_name"]: row["id"] for row in content["images"]}
    for key, image in shown.items():
        for category, value, counts in image.found:
            row = {"image_id": ids[key], "category_id": category, "score": value}
            if iou_type == "segm":
                row["segmentation"] = {"size": list(image.size_hw), "counts": counts}
            else:
                x, y, w, h = rle.bbox(counts, image.size_hw).tolist()
                row["bbox"] = [x, y, w + widen, h + widen]
            results.append(row)
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(content)
        for number, row in enumerate(coco.dataset["annotations"], 1):
            row["id"] = number
        coco.createIndex()
        done = COCOeval(coco, coco.loadRes(results), iou_type)
        done.params.maxDets = [1, 10, most]
        done.evaluate(), done.accumulate()
        if most == 100:
            done.summarize()
    return done


def written(tmp_path: Path, content: Row, shown: dict[str, Image], **options: Any) -> Evaluation:
    (tmp_path / "truth.json").write_text(json.dumps(content))
    root = label_sets.write(tmp_path / "labels", shown, classes=CLASSES)
    return evaluate(root, tmp_path / "truth.json", **options)


def numbers(scores: coco_eval.Scores) -> list[float]:
    """In the order of COCOeval.stats."""
    found = (scores.ap, scores.ap50, scores.ap75, scores.ap_small, scores.ap_medium, scores.ap_large, scores.ar1,
             scores.ar10, scores.ar100, scores.ar_small, scores.ar_medium, scores.ar_large)  # fmt: skip
    return [-1 if value is None else value for value in found]


def test_a_truth_of_crowds_alone_is_refused(tmp_path: Path) -> None:
    """pycocotools gives -1, which is no precision."""
    content, shown = made(4)
    runs = [row for row in content["annotations"] if isinstance(row["segmentation"], dict)]
    content["annotations"] = [{**row, "iscrowd": 1} for row in runs]
    assert runs
    with pytest.raises(SourceError, match="precision is undefined"):
        written(tmp_path, content, shown)


@pytest.mark.parametrize("case", ["slices", pytest.param("spilled", marks=pytest.mark.integration)])
def test_all_numbers_are_those_of_pycocotools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    """Crowds, polygons, runs as numbers, equal scores, and more than a hundred detections of a class."""
    monkeypatch.setattr(key_ranges.KeySampler.cut, "__defaults__", (40,))
    monkeypatch.setattr(ground_truth, "_MAX_WAITING_ROWS", 10)
    monkeypatch.setattr(truth_json, "_READ_CHARS", 100)
    if case == "spilled":
        monkeypatch.setattr(coco_eval, "_IN_MEMORY_ROWS", 50)
        monkeypatch.setattr(coco_eval, "_SORTED_ROWS", 30)
    content, shown = made(12, crowded=True)
    found = written(tmp_path, content, shown, curves=True)
    assert len(content["annotations"]) > 20
    for iou_type, scores in found.scores.items():
        theirs = pycocotools_says(content, shown, iou_type)
        assert 0.02 < theirs.stats[0] < 0.9
        assert numbers(scores) == pytest.approx(theirs.stats.tolist(), abs=1e-9)
        for k, name in enumerate(list(CLASSES.values())[:3]):
            precision = theirs.eval["precision"][:, :, k, 0, -1]
            assert scores.class_ap[name] == pytest.approx(precision.mean(), abs=1e-9)
            assert scores.curves[name]["0.75"] == pytest.approx(precision[5].tolist(), abs=1e-6)
            assert scores.class_ar[name] == pytest.approx(theirs.eval["recall"][:, k, 0, -1].mean(), abs=1e-9)


@pytest.mark.integration
def test_all_numbers_are_those_of_pycocotools_for_many_images(tmp_path: Path) -> None:
    content, shown = made(250, seed=1, crowded=True)
    for iou_type, scores in written(tmp_path, content, shown).scores.items():
        theirs = pycocotools_says(content, shown, iou_type).stats.tolist()
        assert numbers(scores) == pytest.approx(theirs, abs=1e-9)


@pytest.mark.integration
def test_the_cards_protocols_differ_where_they_say(tmp_path: Path) -> None:
    content, shown = made(12, seed=2, crowded=True)
    plain = written(tmp_path, content, shown)
    root, path = str(tmp_path / "labels"), tmp_path / "truth.json"
    widened = evaluate(root, path, protocol="omz-mask-rcnn")
    theirs = pycocotools_says(content, shown, "bbox", widen=1)
    assert widened.scores["bbox"].ap == pytest.approx(theirs.stats[0], abs=1e-9) != plain.scores["bbox"].ap
    assert widened.scores["segm"].ap == plain.scores["segm"].ap
    yolact = evaluate(root, path, protocol="yolact-resnet50-fpn-pytorch")
    assert yolact.protocol == "omz-yolact"
    few = pycocotools_says(content, shown, "bbox", most=20).eval["precision"][:, :, :, 0, -1]
    assert yolact.scores["bbox"].ap == pytest.approx(few[few > -1].mean(), abs=1e-9)
    assert any("the labels are of" in note for note in yolact.notes)
    with pytest.raises(UserError, match="choose from coco, lvis"):
        evaluate(root, path, protocol="voc")


def test_lvis_counts_only_what_the_truth_is_sure_of(tmp_path: Path) -> None:
    square = rle.encode_crop(np.ones((5, 5), np.bool_), 0, 0, (20, 20))
    other = rle.encode_crop(np.ones((5, 5), np.bool_), 10, 10, (20, 20))
    row = {"id": 1, "image_id": 5, "category_id": 1, "bbox": [0, 0, 5, 5], "area": 25,
           "segmentation": {"size": [20, 20], "counts": square}}  # fmt: skip
    content = {
        "images": [{"id": 5, "coco_url": "http://images.example/val/a.jpg", "height": 20, "width": 20,
                    "neg_category_ids": [13], "not_exhaustive_category_ids": []}],
        "annotations": [row],
        "categories": [{"id": i, "name": n, "frequency": f} for (i, n), f in zip(CLASSES.items(), "rcff", strict=True)],
    }  # fmt: skip
    shown = {"a.jpg": Image((20, 20), [(3, 0.99, other), (13, 0.98, other), (1, 0.9, other), (1, 0.8, square)])}
    found = written(tmp_path, content, shown)
    assert found.protocol == "lvis"
    assert found.scores["segm"].class_ap == {"person": pytest.approx(0.5)}
    assert found.scores["segm"].frequency_ap == {"rare": pytest.approx(0.5)}
    content["images"][0]["not_exhaustive_category_ids"] = [1]
    (tmp_path / "truth.json").write_text(json.dumps(content))
    lenient = evaluate(str(tmp_path / "labels"), tmp_path / "truth.json")
    assert lenient.scores["segm"].ap == pytest.approx(1)


def as_lvis(content: Row, rng: np.random.Generator) -> Row:
    """The same truth in LVIS's form: what an image certainly lacks, what is not all annotated, how rare classes are."""
    objects = [
        {key: row[key] for key in row if key != "iscrowd"} | {"id": row["id"] + 1} for row in content["annotations"]
    ]
    images = []
    for row in content["images"]:
        have = {each["category_id"] for each in objects if each["image_id"] == row["id"]}
        images.append({
            "id": row["id"], "height": row["height"], "width": row["width"],
            "coco_url": f"http://images.example/val/{row['file_name']}",
            "neg_category_ids": [i for i in CLASSES if i not in have and rng.random() < 0.5],
            "not_exhaustive_category_ids": [i for i in sorted(have) if rng.random() < 0.3],
        })  # fmt: skip
    categories = [row | {"frequency": of} for row, of in zip(content["categories"], "rcff", strict=True)]
    return {"images": images, "annotations": objects, "categories": categories}


@pytest.mark.integration
def test_the_numbers_of_lvis_are_those_of_its_package(tmp_path: Path) -> None:
    content, shown = made(60, seed=1)
    found = written(tmp_path, as_lvis(content, np.random.default_rng(1)), shown)
    assert found.protocol == "lvis"
    for iou_type, said in LVIS_SAYS.items():
        scores = found.scores[iou_type]
        ours = [scores.ap, scores.ap50, scores.ap75, *scores.frequency_ap.values()]
        assert ours == pytest.approx(said, abs=1e-12)


def test_each_kind_of_mistake_is_told(tmp_path: Path) -> None:
    def box(x: int, y: int, w: int = 10, h: int = 10) -> str:
        return rle.encode_crop(np.ones((h, w), np.bool_), x, y, (100, 100))

    objects = {1: box(0, 0), 3: box(30, 0), 13: box(60, 0), 90: box(0, 50)}
    content = {
        "images": [{"id": 1, "file_name": "a", "height": 100, "width": 100}],
        "categories": [{"id": i, "name": n} for i, n in CLASSES.items()],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": i, "bbox": rle.bbox(counts, (100, 100)).tolist(), "area": 100,
             "segmentation": {"size": [100, 100], "counts": counts}, "iscrowd": 0}
            for i, counts in objects.items()
        ],
    }  # fmt: skip
    found = [
        (1, 0.95, box(0, 0)), (1, 0.9, box(0, 1)), (1, 0.85, box(80, 80)), (3, 0.8, box(34, 0)),
        (1, 0.75, box(60, 0)), (1, 0.7, box(64, 3)), (90, 0.2, box(0, 50)),
    ]  # fmt: skip
    result = written(tmp_path, content, {"a": Image((100, 100), found)})
    assert result.mistakes is not None
    assert result.mistakes.kinds == {
        "right": {"person": 1}, "duplicate": {"person": 1}, "background": {"person": 1}, "localisation": {"car": 1},
        "class": {"person": 1}, "both": {"person": 1}, "missed": {"toothbrush": 1},
    }  # fmt: skip
    assert result.mistakes.confusion["stop sign"] == {"person": 1}
    assert result.mistakes.confusion["toothbrush"] == {"background": 1}
    assert result.mistakes.confusion["background"] == {"person": 3, "car": 1}
    scores = result.scores["segm"]
    assert scores.calibration is not None
    assert sum(scores.calibration.detections) == len(found)
    assert scores.calibration.precision[2] == 1


@pytest.mark.integration
def test_a_label_set_of_other_classes_or_without_a_batch_is_an_error(tmp_path: Path) -> None:
    content, shown = made(3)
    content["categories"][0]["name"] = "bicycle"
    content["categories"].append({"id": 55, "name": "orange"})
    with pytest.raises(UserError, match="2 of 5: 1 is 'bicycle' in the truth, 'person' in the labels; 55 is 'orange'"):
        written(tmp_path, content, shown)
    found = evaluate(str(tmp_path / "labels"), tmp_path / "truth.json", allow_other_classes=True)
    assert found.images == 3
    create_tables(str(tmp_path / "young"), StorageOptions())
    with pytest.raises(LabelSetError, match="nothing of this label set is committed yet"):
        evaluate(str(tmp_path / "young"), tmp_path / "truth.json")


@pytest.mark.integration
def test_a_run_that_goes_on_is_told(tmp_path: Path) -> None:
    content, shown = made(4)
    some = dict(list(shown.items())[:3])
    found = written(tmp_path, content, some)
    note = "1 image of the truth is not labelled: each counts as an image without detections"
    assert (found.missing, found.notes[0]) == (1, note)
    Run(str(tmp_path / "labels"), "29990101T000000Z-a").save(Store(), {"state": "running"})
    assert evaluate(str(tmp_path / "labels"), tmp_path / "truth.json").notes[0].endswith("the run is not finished")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"segmentation": {"size": [3, 3], "counts": "9"}}, "another size than its image"),
        ({"segmentation": {"size": None, "counts": [1, 2]}}, "malformed"),
        ({"segmentation": {"size": None, "counts": "zz"}}, "malformed"),
        ({"segmentation": []}, "no mask"),
        ({"image_id": 999}, "does not list"),
        ({"category_id": 999}, "category that the truth does not list"),
    ],
)
def test_a_broken_annotation_is_named(tmp_path: Path, change: Row, message: str) -> None:
    content, shown = made(2, seed=5)
    row, sizes = content["annotations"][0], {i["id"]: [i["height"], i["width"]] for i in content["images"]}
    row |= copy.deepcopy(change)
    if isinstance(row["segmentation"], dict) and row["segmentation"]["size"] is None:
        row["segmentation"]["size"] = sizes[row["image_id"]]
    with pytest.raises(SourceError, match=message):
        written(tmp_path, content, shown)


@pytest.mark.integration
@pytest.mark.parametrize("order", [("annotations", "images", "categories"), ("categories", "annotations", "images")])
def test_a_truth_is_read_in_any_order(tmp_path: Path, order: tuple[str, ...]) -> None:
    content, shown = made(4)
    whole = written(tmp_path, content, shown)
    (tmp_path / "truth.json").write_text(
        json.dumps({"info": {"n": [1, {}]}, **{name: content[name] for name in order}})
    )
    assert evaluate(str(tmp_path / "labels"), tmp_path / "truth.json").scores == whole.scores


TEXT = (
    r'{"info": {"a": "\"\\\ud83d\ude00 é"}, "y": -12.5e+3, "images": [{"id": 1}, {"id": -Infinity, "x": [true, null]}'
    r', 7], "other": [1, 2.25], "annotations": [ ]}'
)


@pytest.mark.parametrize("read_chars", [1, 2, 3, 7, 16, 17, 50, 1000])
def test_a_truth_is_the_same_wherever_its_pieces_end(monkeypatch: pytest.MonkeyPatch, read_chars: int) -> None:
    monkeypatch.setattr(truth_json, "_READ_CHARS", read_chars)
    text, arrays = truth_json.Text(io.StringIO(TEXT)), ("images", "annotations")
    found = list(truth_json.members_of(text, "t", arrays, with_text=True))
    content, start = json.loads(TEXT), truth_json.START
    rows = [("images", number, row) for number, row in enumerate(content["images"])]
    assert [member[:3] for member in found] == [("images", start, None), *rows, ("annotations", start, None)]
    assert [json.loads(member[3]) for member in found if member[1] != start] == content["images"]


@pytest.mark.parametrize(
    "broken", ['{"images": [{"id": 1,, "x": 2}', '{"images": [{"id": tru, "x": 2}', '{"images": [{"a": "\\x"}']
)
def test_a_truth_that_is_no_json_is_not_read_on(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    monkeypatch.setattr(truth_json, "_READ_CHARS", 100)
    file = io.StringIO(broken + " " * 100_000)
    with pytest.raises(ValueError, match=r"Expecting|Invalid"):
        list(truth_json.members_of(truth_json.Text(file), "t", ("images",)))
    assert file.tell() < 1000


def test_rows_of_one_score_are_cut_between_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces of about as many as are sorted at once, in the order that all together have."""
    monkeypatch.setattr(coco_eval, "_IN_MEMORY_ROWS", 300)
    monkeypatch.setattr(coco_eval, "_SORTED_ROWS", 200)
    monkeypatch.setattr(coco_eval, "_SAMPLED_ROWS", 400)
    rng = np.random.default_rng(0)
    rows, given = coco_eval.RowsByCategory(), []
    for image in rng.permutation(1000).tolist():
        some = np.zeros(int(rng.integers(1, 4)), coco_eval.ROW)
        some["score"], some["image"], some["rank"] = 0.5 if image % 5 else rng.random(), image, np.arange(len(some))
        rows.add(13, some)
        given.append(some)
    pieces = list(rows.of(13))
    assert np.array_equal(np.concatenate(pieces), coco_eval._sorted(np.concatenate(given)))
    assert len(pieces) > 8
    assert max(map(len, pieces)) < 300


def test_a_slice_of_a_truth_leaves_no_file(tmp_path: Path) -> None:
    content, _ = made(6, seed=3)
    (tmp_path / "truth.json").write_text(json.dumps(content))
    (tmp_path / "sorted").mkdir()
    keys, store = key_ranges.KeySampler(), Store()
    listed = ground_truth.read_index(str(tmp_path / "truth.json"), store, keys)
    names = [row["file_name"] for row in content["images"]]
    assert (listed.positions([*names, "none.jpg", "zzz"]) >= 0).tolist() == [True] * 6 + [False] * 2
    parts = keys.cut(16)
    assert len(parts) > 1
    found = ground_truth.GroundTruthBySlice(listed, parts, store, tmp_path / "sorted")
    read = [image.key for number in range(len(parts)) for image in (found.read(number) if found.holds(number) else ())]
    assert sorted(read) == sorted(names)
    assert list((tmp_path / "sorted").iterdir()) == []


def test_pycocotools_still_reads_polygons_as_we_write_them() -> None:
    mask = np.ones((4, 4), np.bool_)
    (polygon,) = (each.ravel().tolist() for each in arrow_masks.outlines(rle.encode(mask), (4, 4)))
    assert coco_mask.decode(coco_mask.frPyObjects([polygon], 4, 4)[0]).all()
