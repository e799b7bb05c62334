"""The costs of errors are tidecv's; the confusion matrix and the calibration are scikit-learn's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import label_sets
import numpy as np
import pytest
import test_coco_eval as cases
from label_sets import Image
from pycocotools import mask as coco_mask
from sklearn.calibration import calibration_curve
from sklearn.metrics import confusion_matrix

from segray import rle
from segray.analytics.evaluation.error_costs import KINDS
from segray.analytics.evaluation.evaluate import Evaluation, evaluate
from segray.cli import main

# By tidecv 1.0.1 (TIDE(mode=TIDE.MASK), crowds as ignore regions) on `case(images, seed)`, in percent: AP50; class,
# localisation, both, duplicate, background, missed; false positives, false negatives. tidecv replaces
# opencv-python-headless by opencv-python, so that it is no dependency of the tests. `write_cases` writes its input.
TIDE_SAYS = {
    (12, 3): [
        29.521211049676385,
        0,
        8.845486522336419,
        12.272146857542882,
        2.318722943722964,
        1.731335908316101,
        16.831924263854983,
        10.577798851313712,
        24.07989906133471,
    ],
    (40, 7): [
        16.46195781921739,
        1.7841709023308283,
        12.754409512526781,
        1.5769324643177995,
        0.9331897338395407,
        3.977209825985888,
        8.53781105206669,
        18.686557032267764,
        17.798437794223275,
    ],
    (40, 11): [
        19.04155766825317,
        1.8488331570256769,
        11.547194391241476,
        1.724966879362544,
        1.2237926831763843,
        4.521080697894231,
        10.927052246918713,
        17.839630450558715,
        20.763662408905347,
    ],
}


def case(images: int, seed: int) -> tuple[cases.Row, dict[str, Image]]:
    """Scores differ: tidecv orders equal scores by the kind of error."""
    content, shown = cases.made(images, seed=seed)
    rng = np.random.default_rng(seed)
    for key, image in list(shown.items()):
        found = [(category, float(np.float32(rng.random())), counts) for category, _, counts in image.found]
        shown[key] = Image(image.size_hw, sorted(found, key=lambda row: -row[1]))
    return content, shown


def counts_of(segmentation: Any, size_hw: tuple[int, int]) -> dict[str, Any]:
    """A truth's mask as pycocotools takes it, whatever its form."""
    if isinstance(segmentation, list):
        mask = coco_mask.merge(coco_mask.frPyObjects(segmentation, *size_hw))
    elif isinstance(segmentation["counts"], list):
        mask = coco_mask.frPyObjects(segmentation, *size_hw)
    else:
        return {"size": list(size_hw), "counts": segmentation["counts"]}
    return {"size": list(size_hw), "counts": mask["counts"].decode()}


def write_cases(path: Path) -> None:
    """Write the cases for a script that adds them to tidecv's Data objects."""
    written = []
    for images, seed in TIDE_SAYS:
        content, shown = case(images, seed)
        sizes = {row["id"]: (row["height"], row["width"]) for row in content["images"]}
        ids = {row["file_name"]: row["id"] for row in content["images"]}
        written.append(
            {
                "classes": list(cases.CLASSES),
                "images": list(sizes),
                "objects": [
                    (row["image_id"], row["category_id"], counts_of(row["segmentation"], sizes[row["image_id"]]),
                     row["iscrowd"]) for row in content["annotations"]
                ],
                "detections": [
                    (ids[key], category, score, {"size": list(image.size_hw), "counts": counts})
                    for key, image in shown.items() for category, score, counts in image.found
                ],
            }
        )  # fmt: skip
    path.write_text(json.dumps(written))


@pytest.mark.parametrize(("images", "seed"), TIDE_SAYS, ids=str)
def test_the_costs_of_errors_are_those_of_tidecv(tmp_path: Path, images: int, seed: int) -> None:
    costs = cases.written(tmp_path, *case(images, seed)).costs
    assert costs is not None
    ours = [costs.ap50, *(costs.kinds[kind] for kind in KINDS), costs.false_positives, costs.false_negatives]
    assert [100 * value for value in ours] == pytest.approx(TIDE_SAYS[images, seed], abs=1e-6)


def test_costs_are_the_same_from_spilled_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = cases.written(tmp_path, *case(12, 3))
    monkeypatch.setattr("segray.analytics.evaluation.coco_eval._IN_MEMORY_ROWS", 20)
    monkeypatch.setattr("segray.analytics.evaluation.coco_eval._SORTED_ROWS", 15)
    assert evaluate(str(tmp_path / "labels"), tmp_path / "truth.json").costs == whole.costs


def square(place: int) -> str:
    return rle.encode_crop(np.ones((8, 8), np.bool_), 10 * place, 0, (10, 100))


def graded(tmp_path: Path) -> tuple[Evaluation, list[tuple[str, str]]]:
    """Objects that detections cover exactly, in their class or another, or not at all; and inventions beside them."""
    rng = np.random.default_rng(2)
    names, ids, pairs = {**cases.CLASSES, 0: "background"}, list(cases.CLASSES), list[tuple[str, str]]()
    content: cases.Row = {"images": [], "annotations": [],
                          "categories": [{"id": i, "name": n} for i, n in cases.CLASSES.items()]}  # fmt: skip
    shown = {}
    for number in range(1, 41):
        content["images"].append({"id": number, "file_name": f"{number}.jpg", "height": 10, "width": 100})
        found = []
        for place in range(10):
            truth = int(rng.choice([0, *ids]))
            told = truth if rng.random() < 0.6 else int(rng.choice([0, *ids]))
            if truth:
                content["annotations"].append({
                    "id": len(content["annotations"]) + 1, "image_id": number, "category_id": truth, "iscrowd": 0,
                    "bbox": [10 * place, 0, 8, 8], "area": 64,
                    "segmentation": {"size": [10, 100], "counts": square(place)},
                })  # fmt: skip
            if told:
                found.append((told, float(np.float32(rng.uniform(0.5, 1))), square(place)))
            if truth or told:
                pairs.append((names[truth], names[told]))
        shown[f"{number}.jpg"] = Image((10, 100), sorted(found, key=lambda row: -row[1]))
    return cases.written(tmp_path, content, shown), pairs


def test_class_errors_stand_in_the_confusion_matrix_as_scikit_learn_counts_them(tmp_path: Path) -> None:
    result, pairs = graded(tmp_path)
    labels = [*cases.CLASSES.values(), "background"]
    theirs = confusion_matrix([truth for truth, _ in pairs], [told for _, told in pairs], labels=labels)
    assert result.mistakes is not None
    ours = [[result.mistakes.confusion.get(a, {}).get(b, 0) for b in labels] for a in labels]
    assert ours == theirs.tolist()
    off_diagonal = theirs[:-1, :-1].sum() - np.trace(theirs[:-1, :-1])
    assert off_diagonal == sum(result.mistakes.kinds["class"].values()) > 10


def test_a_class_error_on_an_object_that_is_also_found_stands_in_the_matrix(tmp_path: Path) -> None:
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 8, 8], "area": 64, "iscrowd": 0,
           "segmentation": {"size": [10, 100], "counts": square(0)}}  # fmt: skip
    content = {"images": [{"id": 1, "file_name": "a", "height": 10, "width": 100}], "annotations": [row],
               "categories": [{"id": i, "name": n} for i, n in cases.CLASSES.items()]}  # fmt: skip
    result = cases.written(tmp_path, content, {"a": Image((10, 100), [(1, 0.9, square(0)), (3, 0.8, square(0))])})
    assert result.mistakes is not None
    assert result.mistakes.confusion == {"person": {"person": 1, "car": 1}}


def test_calibration_is_that_of_scikit_learn(tmp_path: Path) -> None:
    result, _ = graded(tmp_path)
    detections = [(score, right) for score, right in _right_detections(tmp_path)]
    right, scores = np.array([r for _, r in detections]), np.array([s for s, _ in detections])
    shares, means = calibration_curve(right, scores, n_bins=10, strategy="uniform")
    calibration = result.scores["segm"].calibration
    assert calibration is not None
    assert [value for value in calibration.precision if value is not None] == pytest.approx(shares.tolist())
    assert [value for value in calibration.score if value is not None] == pytest.approx(means.tolist())
    counts = np.array([n for n in calibration.detections if n])
    assert calibration.error == pytest.approx((counts * abs(shares - means)).sum() / counts.sum())


def _right_detections(tmp_path: Path) -> list[tuple[float, bool]]:
    """Score of each detection, and whether an object of its class has exactly its mask."""
    content = json.loads((tmp_path / "truth.json").read_text())
    names = {row["id"]: row["file_name"] for row in content["images"]}
    objects = {
        (names[row["image_id"]], row["category_id"], row["segmentation"]["counts"]) for row in content["annotations"]
    }
    rows, _ = label_sets.contents(tmp_path / "labels")
    return [
        (row["score"], (key, row["class_id"], row["rle"]) in objects)
        for key, of_image in rows.items()
        for row in of_image
    ]


def test_the_command_prints_what_each_kind_of_error_costs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result, _ = graded(tmp_path)
    plots = tmp_path / "plots"
    command = ["evaluate", str(tmp_path / "labels"), "--truth", str(tmp_path / "truth.json"), "--plots", str(plots)]
    assert main.run(command) == 0
    assert result.costs is not None
    assert f"over all scores: class {result.costs.kinds['class']:.3f}, localisation 0.000" in capsys.readouterr().out
    assert {"costs.svg", "confusion.svg", "calibration.svg"} <= {path.name for path in plots.iterdir()}
    assert "stop sign" in (plots / "confusion.svg").read_text("utf-8")
