from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from segray import rle
from segray.analytics.evaluation.evaluate import Evaluation, coco_results, evaluate, evaluate_detections, read_truth
from segray.errors import SourceError, UserError
from segray.instances import Instances, image_id
from segray.label_set import schema, snapshot
from segray.label_set.snapshot import Snapshot

SIZE_HW = (90, 120)
ROOT = "memory://labels"
Row = dict[str, Any]


def disc(cx: float, cy: float, radius: float) -> np.ndarray:
    y, x = np.ogrid[: SIZE_HW[0], : SIZE_HW[1]]
    return (x - cx) ** 2 + (y - cy) ** 2 <= radius**2


def annotation(number: int, image: int, category: int, mask: np.ndarray) -> Row:
    y, x = np.nonzero(mask)
    box = [int(x.min()), int(y.min()), int(x.max() + 1 - x.min()), int(y.max() + 1 - y.min())]
    return {
        "id": number, "image_id": image, "category_id": category, "bbox": box, "area": int(mask.sum()), "iscrowd": 0,
        "segmentation": {"size": list(SIZE_HW), "counts": rle.encode(mask)},
    }  # fmt: skip


def make_truth(seed: int = 0, images: int = 6) -> Row:
    rng = np.random.default_rng(seed)
    annotations: list[Row] = []
    for image in range(1, images + 1):
        for k in range(3):
            mask = disc(rng.uniform(0, 120), rng.uniform(0, 90), rng.uniform(8, 45))
            annotations.append(annotation(len(annotations) + 1, image, (13, 90)[k % 2], mask))
    height, width = SIZE_HW
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": height, "width": width} for i in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": i, "name": n} for i, n in ((13, "stop sign"), (44, "bottle"), (90, "toothbrush"))],
    }


def perfect(truth: Row) -> list[Row]:
    kept = ("image_id", "category_id", "bbox", "segmentation")
    return [{name: row[name] for name in kept} | {"score": 0.9} for row in truth["annotations"]]


def flawed(truth: Row) -> list[Row]:
    """Shifted masks, a miss here, an invention there, uneven scores: AP well inside 0..1."""
    rng = np.random.default_rng(3)
    rows = []
    for row in perfect(truth):
        mask = rle.decode(row["segmentation"]["counts"], SIZE_HW).astype(bool)
        moved = np.roll(mask, (int(rng.integers(-3, 4)), int(rng.integers(-6, 7))), (0, 1))
        kind = int(row["category_id"]) if rng.random() < 0.9 else 13
        rows.append(annotation(0, row["image_id"], kind, moved) | {"score": float(np.float32(rng.random()))})
        if rng.random() < 0.3:
            extra = disc(rng.uniform(0, 120), rng.uniform(0, 90), rng.uniform(5, 40))
            rows.append(annotation(0, row["image_id"], 13, extra) | {"score": float(np.float32(rng.random()))})
    return rows[2:]


def made(truth: Row, detections: list[Row], **statuses: str) -> tuple[pa.Table, pa.Table]:
    """The committed tables that hold these detections; statuses by file name stem override ok."""
    names = {image["id"]: image["file_name"] for image in truth["images"]}
    instances = [
        {
            "image_id": image_id(names[row["image_id"]]), "image_key": names[row["image_id"]], "instance": k,
            "class_id": row["category_id"], "class_name": str(row["category_id"]), "score": row["score"],
            **dict(zip(("bbox_x", "bbox_y", "bbox_w", "bbox_h"), map(float, row["bbox"]), strict=True)),
            "area": 1, "height": SIZE_HW[0], "width": SIZE_HW[1], "rle": row["segmentation"]["counts"], "batch": 1,
        }
        for k, row in enumerate(detections)
    ]  # fmt: skip
    images = [
        {"image_key": name, "status": statuses.get(f"image_{Path(name).stem}", "ok"),
         "height": SIZE_HW[0], "width": SIZE_HW[1], "n_instances": 3}
        for name in names.values()
    ]  # fmt: skip
    return pa.Table.from_pylist(instances, schema.INSTANCES), pa.Table.from_pylist(images)


@pytest.fixture
def truth() -> Row:
    return make_truth()


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """evaluate() of tables held in memory against a truth that is written to disk."""

    def run(truth: Row, instances: pa.Table, images: pa.Table, **options: Any) -> Evaluation:
        path = tmp_path / "truth.json"
        path.write_text(json.dumps(truth))
        state = Snapshot(ROOT, 1, ds.dataset(instances), ds.dataset(images), options.pop("classes", {}))
        monkeypatch.setattr(snapshot, "snapshot", lambda root, **_: state)
        return evaluate(ROOT, path, **options)

    return run


def pycocotools_alone(truth: Row, detections: list[Row], iou_type: str) -> np.ndarray:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        other = "bbox" if iou_type == "segm" else "segmentation"
        results = coco.loadRes([{k: v for k, v in row.items() if k not in (other, "area")} for row in detections])
        judge = COCOeval(coco, results, iou_type)
        judge.evaluate(), judge.accumulate(), judge.summarize()
    return np.asarray(judge.stats)


def test_perfect_labels_score_one(truth: Row, judged: Any) -> None:
    found = judged(truth, *made(truth, perfect(truth)))
    for scores in found.scores.values():
        assert scores.ap == scores.ap50 == scores.ap75 == scores.ar100 == pytest.approx(1)
        assert scores.class_ap == scores.class_ap50 == {"stop sign": pytest.approx(1), "toothbrush": pytest.approx(1)}
    counts = (found.images, found.labelled, found.failed, found.missing, found.objects, found.instances)
    assert counts == (6, 6, 0, 0, 18, 18)


@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_scores_are_those_of_pycocotools(truth: Row, judged: Any, iou_type: str) -> None:
    detections = flawed(truth)
    scores = judged(truth, *made(truth, detections)).scores[iou_type]
    stats = pycocotools_alone(truth, detections, iou_type)
    assert 0.1 < stats[0] < 0.8
    mine = (scores.ap, scores.ap50, scores.ap75, scores.ap_small, scores.ap_medium, scores.ap_large, scores.ar100)
    theirs = [None if value < 0 else pytest.approx(value, abs=1e-9) for value in stats[[0, 1, 2, 3, 4, 5, 8]]]
    assert list(mine) == theirs
    assert np.mean(list(scores.class_ap.values())) == pytest.approx(stats[0])
    assert np.mean(list(scores.class_ap50.values())) == pytest.approx(stats[1])


def test_a_label_map_off_by_one_scores_zero(truth: Row) -> None:
    shifted = [row | {"category_id": row["category_id"] - 1} for row in perfect(truth)]
    assert evaluate_detections(shifted, truth)["segm"].ap == 0


def test_no_detections_score_zero(truth: Row) -> None:
    assert {name: scores.ap for name, scores in evaluate_detections([], truth).items()} == {"segm": 0, "bbox": 0}


def test_missing_and_failed_images_count_as_empty_unless_left_out(truth: Row, judged: Any) -> None:
    rows = [row for row in perfect(truth) if row["image_id"] not in (1, 2)]
    instances, images = made(truth, rows, image_2="failed")
    images = images.slice(1)
    whole = judged(truth, instances, images)
    assert (whole.images, whole.labelled, whole.failed, whole.missing) == (6, 4, 1, 1)
    assert whole.scores["segm"].ar100 == pytest.approx(4 / 6)
    part = judged(truth, instances, images, labelled_only=True)
    assert (part.images, part.labelled, part.failed, part.missing, part.objects) == (4, 4, 0, 0, 12)
    assert part.scores["segm"].ap == pytest.approx(1)


def test_unlisted_images_are_an_error_unless_allowed(truth: Row, judged: Any) -> None:
    instances, images = made(truth, perfect(truth))
    truth["images"] = truth["images"][:5]
    truth["annotations"] = [row for row in truth["annotations"] if row["image_id"] < 6]
    with pytest.raises(UserError, match=r"1 of 6, such as 6\.jpg"):
        judged(truth, instances, images)
    found = judged(truth, instances, images, allow_unlisted=True)
    assert (found.images, found.instances, found.scores["segm"].ap) == (5, 15, pytest.approx(1))


def test_a_truth_of_other_images_is_an_error_with_an_example_of_each(truth: Row, judged: Any) -> None:
    instances, images = made(truth, perfect(truth))
    for image in truth["images"]:
        image["file_name"] = "val/other-" + image["file_name"]
    with pytest.raises(UserError, match=r"label set: 1\.jpg, truth: val/other-1\.jpg"):
        judged(truth, instances, images)


def test_an_image_of_another_size_is_an_error(truth: Row, judged: Any) -> None:
    instances, images = made(truth, perfect(truth))
    truth["images"][2] |= {"width": SIZE_HW[0], "height": SIZE_HW[1]}
    with pytest.raises(UserError, match="labelled as 120x90, truth 90x120"):
        judged(truth, instances, images)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such truth file"),
        ("{", "not JSON"),
        ("[]", "not COCO JSON"),
        ('{"images": [], "annotations": []}', "no categories"),
        ('{"images": [], "annotations": [], "categories": []}', "no images"),
        (
            '{"images": [{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "a"}],'
            ' "annotations": [], "categories": []}',
            "two images",
        ),
    ],
)
def test_a_truth_that_cannot_be_used_says_why(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "truth.json").write_text(text)
    with pytest.raises(SourceError, match=message):
        read_truth(tmp_path / "truth.json")


def test_a_truth_without_objects_is_an_error(truth: Row) -> None:
    with pytest.raises(SourceError, match="no objects"):
        evaluate_detections([], truth | {"annotations": []})


def test_an_unknown_iou_type_is_an_error(truth: Row) -> None:
    with pytest.raises(UserError, match="keypoints"):
        evaluate_detections([], truth, iou_types=("keypoints",))


def test_a_truth_with_annotation_id_zero_and_no_iscrowd_loses_nothing(truth: Row) -> None:
    for row in truth["annotations"]:
        row["id"] -= 1
        del row["iscrowd"]
    assert evaluate_detections(perfect(truth), truth)["segm"].ap == pytest.approx(1)


def test_arguments_are_unchanged_and_nothing_is_printed(truth: Row, capsys: pytest.CaptureFixture[str]) -> None:
    detections = perfect(truth)
    before = copy.deepcopy((detections, truth))
    evaluate_detections(detections, truth)
    assert (detections, truth) == before
    assert capsys.readouterr().out == ""


def test_coco_results_turn_corners_into_sizes() -> None:
    counts = rle.encode(disc(30, 30, 10))
    box = np.array([[20, 21, 41, 41]], np.float32)
    found = Instances(np.array([90], np.int32), np.array([0.5], np.float32), box, (counts,), SIZE_HW)
    assert coco_results(7, found) == [
        {"image_id": 7, "category_id": 90, "score": 0.5, "bbox": [20, 21, 21, 20],
         "segmentation": {"size": list(SIZE_HW), "counts": counts}}
    ]  # fmt: skip
    assert coco_results(7, Instances.empty(SIZE_HW)) == []
