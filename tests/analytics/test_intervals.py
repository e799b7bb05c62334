"""Resampled AP is pycocotools' AP of a data set with these images; intervals, differences and slices."""

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

import segray
from segray.analytics.evaluation import evaluate as evaluations
from segray.analytics.evaluation import intervals
from segray.analytics.evaluation.coco_eval import CocoEvaluator
from segray.analytics.evaluation.evaluate import compare, evaluate
from segray.analytics.evaluation.intervals import ImageTallies
from segray.cli import main
from segray.errors import UserError

Labelled = tuple[cases.Row, dict[str, Image], str, Path]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    """Crowds, polygons and all sizes. Scores differ, since equal scores of copies of an image have no one order."""
    folder = tmp_path_factory.mktemp("intervals")
    content, shown = cases.made(24, seed=6)
    rng = np.random.default_rng(1)
    for key, image in list(shown.items()):
        found = [(category, float(np.float32(rng.random())), counts) for category, _, counts in image.found]
        shown[key] = Image(image.size_hw, sorted(found, key=lambda row: -row[1]))
    for row in content["images"]:
        row["file_name"] = f"{'day' if row['id'] % 2 else 'night'}/{row['file_name']}"
    shown = {f"{'day' if (int(key[:4]) * 7 + 3) % 2 else 'night'}/{key}": image for key, image in shown.items()}
    (folder / "truth.json").write_text(json.dumps(content))
    return content, shown, label_sets.write(folder / "labels", shown, classes=cases.CLASSES), folder / "truth.json"


def tallies_of(root: str, truth: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, ImageTallies]:
    kept: dict[str, ImageTallies] = {}
    plain = CocoEvaluator.tallies

    def keep(self: CocoEvaluator) -> ImageTallies:
        kept[self._type] = plain(self)
        return kept[self._type]

    monkeypatch.setattr(CocoEvaluator, "tallies", keep)
    evaluate(root, truth, by=["size"])
    return kept


def counts_of(segmentation: Any, size_hw: tuple[int, int]) -> str:
    """The counts of a truth's mask, whatever its form."""
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, *size_hw))["counts"].decode()
    counts = segmentation["counts"]
    return counts if isinstance(counts, str) else coco_mask.frPyObjects(segmentation, *size_hw)["counts"].decode()


def resampled(content: cases.Row, shown: dict[str, Image], weights: dict[int, int]) -> tuple[cases.Row, dict]:
    """The data set that has each image as often as its weight says, copies next to each other."""
    names = {row["id"]: row["file_name"] for row in content["images"]}
    images, annotations, again = [], [], {}
    for image, weight in weights.items():
        for copy in range(weight):
            number = image * 100 + copy
            row = next(row for row in content["images"] if row["id"] == image)
            images.append(row | {"id": number, "file_name": f"{number}.jpg"})
            annotations += [a | {"image_id": number} for a in content["annotations"] if a["image_id"] == image]
            again[f"{number}.jpg"] = shown[names[image]]
    return content | {"images": images, "annotations": annotations}, again


def test_the_ap_of_a_sample_is_that_of_pycocotools_on_its_images(
    labelled: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, shown, root, truth = labelled
    tallies = tallies_of(root, truth, monkeypatch)
    rng = np.random.default_rng(3)
    weights = rng.multinomial(24, np.full(24, 1 / 24), 3).astype(np.int32)
    for kind in ("segm", "bbox"):
        ids = tallies[kind].ids.tolist()
        for area in range(3):
            values = tallies[kind].precision(weights, area)
            for sample, row in enumerate(weights.tolist()):
                theirs = cases.pycocotools_says(*resampled(content, shown, dict(zip(ids, row, strict=True))), kind)
                precision = theirs.eval["precision"][:, :, :3, area, -1]
                for k in range(3):
                    expected = precision[:, :, k]
                    if (expected < 0).all():
                        assert np.isnan(values[sample, k]).all()
                        continue
                    assert values[sample, k, 0] == pytest.approx(expected.mean(), abs=1e-9)
                    assert values[sample, k, 1] == pytest.approx(expected[0].mean(), abs=1e-9)


def test_intervals_hold_the_figures_and_are_the_same_again(labelled: Labelled) -> None:
    _, _, root, truth = labelled
    once = evaluate(root, truth, resamples=400)
    assert once.intervals == evaluate(root, truth, resamples=400).intervals
    for kind, of_kind in once.intervals.items():
        assert of_kind.ap.value == pytest.approx(once.scores[kind].ap)
        assert of_kind.ap50.value == pytest.approx(once.scores[kind].ap50)
        assert of_kind.ap.low < of_kind.ap.value < of_kind.ap.high
        for name, interval in of_kind.class_ap.items():
            assert interval.value == pytest.approx(once.scores[kind].class_ap[name])
            assert 0 <= interval.low <= interval.high <= 1
    assert evaluate(root, truth).intervals == {}


def test_an_interval_is_as_wide_as_that_of_a_share() -> None:
    """Two thousand images with one object each, found or not: AP is the share of images, whose interval is known."""
    rng = np.random.default_rng(0)
    n, share = 2000, 0.6
    is_found = rng.random(n) < share
    everything = np.uint64(2**10 - 1)
    images = np.flatnonzero(is_found).astype(np.int32)
    tally = intervals.ClassTally(
        images,
        np.full(len(images), everything),
        np.zeros(len(images), np.uint64),
        np.arange(n),
        np.ones((n, 4), np.int64),
    )
    tallies = ImageTallies(np.arange(n), {"thing": tally}, 10, np.linspace(0, 1, 101))
    ap = intervals.intervals(tallies, 2000).ap
    sd = np.sqrt(is_found.mean() * (1 - is_found.mean()) / n)
    assert ap.high - ap.low == pytest.approx(2 * 1.96 * sd, rel=0.15)  # 101 recalls are steps of 0.01


def test_three_images_are_too_few_for_an_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content, shown = cases.made(3, seed=5)
    (tmp_path / "truth.json").write_text(json.dumps(content))
    root = label_sets.write(tmp_path / "labels", shown, classes=cases.CLASSES)
    assert main.run(["evaluate", root, "--truth", str(tmp_path / "truth.json"), "--intervals"]) == 0
    assert "(3 images: too few for an interval)" in capsys.readouterr().out
    interval = evaluate(root, tmp_path / "truth.json", resamples=100).intervals["segm"].ap
    assert (interval.low, interval.high, interval.images) == (None, None, 3)
    with pytest.raises(UserError, match="too few samples"):
        evaluate(root, tmp_path / "truth.json", resamples=5)


def test_a_difference_is_paired_and_of_one_label_set_with_itself_is_none(
    labelled: Labelled, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, shown, root, truth = labelled
    same = compare(root, root, truth, resamples=200)
    for of_kind in same.differences.values():
        assert (of_kind.ap.value, of_kind.ap.low, of_kind.ap.high, of_kind.ap.is_clear) == (0, 0, 0, False)
    best = {key: Image(image.size_hw) for key, image in shown.items()}
    names = {row["id"]: row["file_name"] for row in content["images"]}
    for row in content["annotations"]:
        if not row["iscrowd"]:
            image = best[names[row["image_id"]]]
            counts = counts_of(row["segmentation"], image.size_hw)
            best[names[row["image_id"]]] = Image(image.size_hw, [*image.found, (row["category_id"], 0.9, counts)])
    other = label_sets.write(tmp_path / "best", best, classes=cases.CLASSES)
    found = segray.open_label_set(root).compare(other, truth, resamples=300, iou_types=["segm"])
    change = found.differences["segm"].ap
    assert change.value == pytest.approx(found.b.scores["segm"].ap - found.a.scores["segm"].ap)
    assert change.is_clear
    assert change.low > 0
    assert main.run(["evaluate", root, "--truth", str(truth), "--against", other, "--resamples", "200"]) == 0
    printed = capsys.readouterr().out
    assert "not chance" in printed
    assert f"{change.value:+.3f}" in printed
    assert main.run(["evaluate", root, "--truth", str(truth), "--draw", "x.png"]) == 2


def test_label_sets_of_other_images_have_no_paired_difference(labelled: Labelled, tmp_path: Path) -> None:
    _, shown, root, truth = labelled
    few = label_sets.write(tmp_path / "few", dict(list(shown.items())[:20]), classes=cases.CLASSES)
    with pytest.raises(UserError, match="24 and 20 images"):
        compare(root, few, truth, resamples=100, options={"labelled_only": True})
    assert compare(root, few, truth, resamples=100).b.missing == 4


@pytest.mark.parametrize("by", ["folder", "split_part(image_key, '/', 1)"])
def test_the_ap_of_a_folder_is_that_of_its_images_alone(labelled: Labelled, tmp_path: Path, by: str) -> None:
    content, _, root, truth = labelled
    parts = {part.name: part for part in evaluate(root, truth, by=[by], iou_types=["segm"]).slices}
    assert parts.keys() == {"day", "night"}
    for name, part in parts.items():
        images = [row for row in content["images"] if row["file_name"].startswith(name)]
        ids = {row["id"] for row in images}
        annotations = [row for row in content["annotations"] if row["image_id"] in ids]
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content | {"images": images, "annotations": annotations}))
        alone = evaluate(root, path, allow_unlisted=True, iou_types=["segm"])
        assert part.ap.value == pytest.approx(alone.scores["segm"].ap)
        assert part.ap50 == pytest.approx(alone.scores["segm"].ap50)
        assert (part.objects, part.ap.images) == (alone.objects, len(images))


def test_slices_by_size_and_class_are_the_figures_of_the_evaluation(
    labelled: Labelled, capsys: pytest.CaptureFixture[str]
) -> None:
    _, _, root, truth = labelled
    result = evaluate(root, truth, by=["size", "class"], resamples=100)
    scores = result.scores["segm"]
    sizes = {part.name: part.ap for part in result.slices if part.by == "size"}
    assert sizes["small"].value == pytest.approx(scores.ap_small)
    assert sizes["medium"].value == pytest.approx(scores.ap_medium)
    assert (sizes["large"] is None) == (scores.ap_large is None)
    assert sizes["small"].low < sizes["small"].high
    classes = {part.name: part.ap.value for part in result.slices if part.by == "class"}
    assert classes == pytest.approx(dict(scores.class_ap))
    assert main.run(["evaluate", root, "--truth", str(truth), "--by", "size", "--by", "width > 100"]) == 0
    printed = capsys.readouterr().out
    assert "by size" in printed
    assert "by width > 100" in printed


def test_a_slice_that_is_no_sql_or_has_too_many_values_is_an_error(
    labelled: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, root, truth = labelled
    with pytest.raises(UserError, match="neither size, class, folder nor SQL"):
        evaluate(root, truth, by=["colour"])
    monkeypatch.setattr("segray.analytics.evaluation.image_groups.MOST_GROUPS", 5)
    with pytest.raises(UserError, match="more than 5 values"):
        evaluate(root, truth, by=["image_key"])


@pytest.mark.chaos
def test_two_thousand_samples_of_five_thousand_images_take_less_than_ten_seconds() -> None:
    """80 classes and 36,500 detections, as many as COCO's objects in 5,000 images."""
    import time

    rng = np.random.default_rng(0)
    classes = {}
    for k in range(80):
        n = 456
        right = np.uint64(2**10 - 1) >> rng.integers(0, 11, n).astype(np.uint64)
        owners, counts = np.unique(rng.integers(0, 5000, n), return_counts=True)
        classes[str(k)] = intervals.ClassTally(
            rng.integers(0, 5000, n).astype(np.int32), right, np.zeros(n, np.uint64), owners,
            np.repeat(counts[:, None], 4, axis=1).astype(np.int64),
        )  # fmt: skip
    tallies = ImageTallies(np.arange(5000), classes, 10, np.linspace(0, 1, 101))
    intervals.intervals(tallies, 100)
    start = time.process_time()  # of all threads, whatever else the machine does
    assert intervals.intervals(tallies, 2000).resamples == 2000
    assert time.process_time() - start < 10


def test_the_public_names_of_the_evaluation_are_listed() -> None:
    assert {"compare", "Comparison"} <= set(evaluations.__all__)
