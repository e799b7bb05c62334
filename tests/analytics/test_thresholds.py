"""Precision, recall and F1 by score are those of scikit-learn; a threshold cuts where its rule says."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import label_sets
import numpy as np
import pytest
import test_coco_eval as cases
from hypothesis import given
from hypothesis import strategies as st
from label_sets import Image
from sklearn.metrics import precision_recall_curve

import segray
from segray import rle
from segray.analytics.evaluation.coco_eval import CocoEvaluator
from segray.analytics.evaluation.evaluate import evaluate
from segray.analytics.evaluation.thresholds import SCORES, ClassThresholds, Goal, ThresholdSearch, between
from segray.analytics.query import score_thresholds
from segray.analytics.query.polars_frames import scan
from segray.cli import main
from segray.errors import UserError
from segray.storage.store import Store

DETECTIONS = st.lists(st.tuples(st.integers(1, 60).map(lambda n: n / 64), st.booleans()), min_size=1, max_size=60)


def searched(scores: np.ndarray, right: np.ndarray, objects: int, goal: str, piece: int = 7) -> ClassThresholds:
    search = ThresholdSearch(objects, Goal.parse(goal))
    order = np.argsort(-scores, kind="stable")
    for start in range(0, len(order), piece):
        rows = order[start : start + piece]
        search.add(scores[rows], right[rows])
    return search.result()


def arrays(detections: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([score for score, _ in detections]), np.array([right for _, right in detections], np.bool_)


def f1_of(scores: np.ndarray, right: np.ndarray, objects: int, threshold: float) -> float:
    kept = scores >= threshold
    return 2 * (right & kept).sum() / (kept.sum() + objects)


@given(DETECTIONS, st.integers(0, 9))
def test_a_search_gives_the_best_f1_of_all_cuts(detections: list[tuple[float, bool]], missed: int) -> None:
    scores, right = arrays(detections)
    objects = max(1, int(right.sum()) + missed)
    of_class = searched(scores, right, objects, "f1")
    every = [f1_of(scores, right, objects, cut) for cut in scores]
    if not right.any():
        assert of_class.best is None
        return
    assert of_class.best is not None
    assert of_class.best.f1 == pytest.approx(max(every))
    kept = scores >= of_class.best.threshold
    assert (of_class.best.right, of_class.best.wrong) == ((right & kept).sum(), (~right & kept).sum())
    assert (kept == (scores > of_class.best.threshold)).all()


@given(DETECTIONS, st.integers(0, 9), st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_the_other_value_is_the_largest_that_a_rule_allows(
    detections: list[tuple[float, bool]], missed: int, value: float
) -> None:
    scores, right = arrays(detections)
    objects = max(1, int(right.sum()) + missed)
    points = []
    for cut in scores:
        kept = scores >= cut
        points.append(((right & kept).sum() / kept.sum(), (right & kept).sum() / objects))
    for goal, first, second in (("precision", 0, 1), ("recall", 1, 0)):
        best = searched(scores, right, objects, f"{goal}={value}").best
        allowed = [point[second] for point in points if point[first] >= value and point[second] > 0]
        assert (best is None) == (not allowed)
        if best is not None:
            assert (best.precision, best.recall)[first] >= value
            assert (best.precision, best.recall)[second] == pytest.approx(max(allowed))


def test_precision_and_recall_by_score_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    scores = np.round(rng.random(400), 2)
    right = rng.random(400) < scores
    of_class = searched(scores, right, int(right.sum()), "f1", piece=400)
    precision, recall, cuts = precision_recall_curve(right, scores)
    for cut, p, r in zip(cuts, precision, recall, strict=False):
        at = int(np.argmin(abs(SCORES - cut)))
        assert of_class.precision[at] == pytest.approx(p)
        assert of_class.recall[at] == pytest.approx(r)
    best = 2 * precision * recall / (precision + recall)
    assert of_class.best is not None
    assert of_class.best.f1 == pytest.approx(best.max())


@given(st.integers(0, 2**23 - 2).map(lambda n: np.float32(n / 2**23)), st.integers(1, 1000))
def test_a_number_between_two_scores_separates_them_as_float32(below: np.float32, steps: int) -> None:
    score = below
    for _ in range(min(steps, 40)):
        score = np.nextafter(score, np.float32(1))
    number = between(float(below), float(score))
    assert np.float32(below) < np.float32(number) <= np.float32(score)
    assert float(below) < number <= float(score)


def test_a_number_between_two_scores_is_short() -> None:
    assert between(0.30000001192092896, 0.8123456835746765) == 0.81
    assert between(0.811, 0.8123456835746765) == 0.812
    assert between(0.2, 0.5) == 0.49  # under the score, whether or not an equal score counts


@pytest.mark.parametrize("text", ["f2", "f1=0.5", "precision", "precision=0", "recall=1.5", "recall=x", ""])
def test_an_unknown_rule_is_an_error(text: str) -> None:
    with pytest.raises(UserError, match="no such way to choose a threshold"):
        Goal.parse(text)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("thresholds")
    content, shown = cases.made(30, seed=4)
    (folder / "truth.json").write_text(json.dumps(content))
    return label_sets.write(folder / "labels", shown, classes=cases.CLASSES), folder / "truth.json"


def test_thresholds_are_the_same_from_spilled_rows(labelled: tuple[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate(*labelled).thresholds
    monkeypatch.setattr("segray.analytics.evaluation.coco_eval._SORTED_ROWS", 10)
    monkeypatch.setattr("segray.analytics.evaluation.coco_eval._SAMPLED_ROWS", 40)
    assert evaluate(*labelled).thresholds == whole
    assert list(whole) == ["person", "car", "stop sign"]


def test_the_command_writes_thresholds_that_every_reader_takes(
    labelled: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, truth = labelled
    file, plots = tmp_path / "thresholds.yaml", tmp_path / "plots"
    command = ["threshold", root, "--truth", str(truth), "--out", str(file), "--plots", str(plots)]
    assert main.run(command) == 0
    printed = capsys.readouterr().out
    values = score_thresholds.read(file, Store())
    assert values.keys() == {"person", "car", "stop sign"}
    assert f'  class_thresholds:\n    "person": {values["person"]}\n' in printed
    ET.parse(plots / "thresholds.svg")

    rows = segray.scan(root).to_table(columns=["class_name", "score"]).to_pylist()
    kept = sum(row["score"] >= values.get(row["class_name"], 0) for row in rows)
    assert 0 < kept < len(rows)
    labels = segray.open_label_set(root)
    assert labels.sql("SELECT count(*) FROM instances", thresholds=file).fetchall() == [(kept,)]
    assert scan(root, thresholds=values).collect().height == kept
    assert labels.export("coco", tmp_path / "coco.json", thresholds=file).instances == kept
    assert labels.evaluate(truth, thresholds=file).instances == kept
    query, again = "SELECT count(*) AS n FROM instances", str(tmp_path / "again.json")
    for command in (["sql", root, query, "--format", "csv"], ["export", root, again, "--to", "coco"]):
        assert main.run([*command, "--thresholds", str(file)]) == 0
        assert str(kept) in capsys.readouterr().out
    assert main.run(["sql", root, "--views", "--thresholds", str(file)]) == 0
    con = pytest.importorskip("duckdb").connect()
    con.execute(capsys.readouterr().out)
    assert con.execute("SELECT count(*) FROM instances").fetchall() == [(kept,)]
    labels.report(tmp_path / "page.html", truth=truth, thresholds=file, images=0)
    page = (tmp_path / "page.html").read_text("utf-8")
    assert "thresholds of 3 classes" in page
    assert f"({kept} in all)" in page


def test_the_counts_at_the_best_threshold_are_those_of_an_evaluation_at_it(labelled: tuple[str, Path]) -> None:
    root, truth = labelled
    thresholds = segray.open_label_set(root).thresholds(truth)
    cut = {name: of_class.best.threshold for name, of_class in thresholds.items() if of_class.best is not None}
    again = segray.open_label_set(root).evaluate(truth, iou_types=["segm"], thresholds=cut)
    for name, of_class in again.thresholds.items():
        assert of_class.recall[0] == pytest.approx(thresholds[name].best.recall)
        assert of_class.precision[0] == pytest.approx(thresholds[name].best.precision)


def test_a_class_of_few_objects_and_a_rule_that_nothing_meets_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mask, other = (rle.encode_crop(np.ones((5, 5), np.bool_), x, 0, (20, 20)) for x in (0, 10))
    root = label_sets.write(tmp_path / "labels", {"a": Image((20, 20), [(1, 0.9, other), (1, 0.5, mask)])})
    row = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "area": 25,
           "segmentation": {"size": [20, 20], "counts": mask}}  # fmt: skip
    content = {"images": [{"id": 1, "file_name": "a", "height": 20, "width": 20}], "annotations": [row],
               "categories": [{"id": 1, "name": "person"}]}  # fmt: skip
    (tmp_path / "truth.json").write_text(json.dumps(content))
    command = ["threshold", root, "--truth", str(tmp_path / "truth.json"), "--best", "precision=0.9"]
    assert main.run(command) == 0
    printed = capsys.readouterr().out
    assert "no score reaches this: person" in printed
    assert "too few objects for a threshold to rely on: person (1)" in printed
    assert main.run([*command, "--iou", "0.52"]) == 2
    assert "choose from 0.50, 0.55" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("person: 1.5", r"no score from 0 to 1.*person: 1\.5"),
        ("person: high", "no score from 0 to 1"),
        ("- person", "is no mapping"),
        ("zebra crossing: 0.5", "class that the label set does not have"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_wrong_file_of_thresholds_is_an_error(
    labelled: tuple[str, Path], tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "t.yaml").write_text(text)
    with pytest.raises(Exception, match=f"(?s){message}"):
        segray.open_label_set(labelled[0]).sql("SELECT 1", thresholds=tmp_path / "t.yaml")


@pytest.mark.parametrize(
    "text", ["person: 0.5", '{"class_thresholds": {"1": 0.5}}', "model:\n  class_thresholds: {person: 0.5}"]
)
def test_a_file_of_thresholds_may_be_a_part_of_a_configuration(
    labelled: tuple[str, Path], tmp_path: Path, text: str
) -> None:
    (tmp_path / "t.yaml").write_text(text)
    labels = segray.open_label_set(labelled[0])
    query = "SELECT min(score) FROM instances WHERE class_name = 'person'"
    assert labels.sql(query, thresholds=tmp_path / "t.yaml").fetchall()[0][0] >= 0.5
    others = "SELECT count(*) FROM instances WHERE class_name <> 'person'"
    assert labels.sql(others, thresholds=tmp_path / "t.yaml").fetchall() == labels.sql(others).fetchall()


def test_thresholds_of_boxes_use_the_boxes(labelled: tuple[str, Path]) -> None:
    masks, boxes = (evaluate(*labelled, iou_types=[kind]).thresholds for kind in ("segm", "bbox"))
    assert masks != boxes


def test_an_evaluator_without_detections_has_no_threshold() -> None:
    evaluator: Any = CocoEvaluator("segm", {1: "person"})
    evaluator._objects[1][:] = 3
    assert evaluator.thresholds(Goal())["person"].best is None
