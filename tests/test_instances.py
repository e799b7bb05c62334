"""Instances: columns that follow from others, parts, other programs' forms, and pictures."""

from __future__ import annotations

import io
import json
import pickle
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import segray
from segray import rle
from segray.errors import UserError
from segray.imaging.drawing import PALETTE
from segray.instances import Instances

SIZE_HW = (40, 60)
LABELS = {1: "person", 18: "dog", 44: "<bottle>"}
# x, y, width, height, category id, score
ROWS = [(2, 3, 10, 20, 1, 0.9), (30, 5, 20, 8, 18, 0.8), (1, 30, 4, 6, 1, 0.4), (50, 30, 10, 10, 44, 0.3)]


def pixels(x: int, y: int, w: int, h: int) -> np.ndarray:
    mask = np.zeros(SIZE_HW, np.bool_)
    mask[y : y + h, x : x + w] = True
    return mask


def things(**fields: Any) -> Instances:
    boxes = [(x, y, x + w, y + h) for x, y, w, h, *_ in ROWS]
    values: dict[str, Any] = {
        "class_ids": np.array([row[4] for row in ROWS], np.int32),
        "scores": np.array([row[5] for row in ROWS], np.float32),
        "boxes_xyxy": np.array(boxes, np.float32),
        "rles": tuple(rle.encode(pixels(*row[:4])) for row in ROWS),
        "size_hw": SIZE_HW,
        "labels": LABELS,
    }
    return Instances(**values | fields)


def test_names_boxes_areas_and_masks_follow_from_the_stored_columns() -> None:
    assert things().class_names.tolist() == ["person", "dog", "person", "<bottle>"]
    assert things(labels={}).class_names.tolist() == ["1", "18", "1", "44"]
    assert things().boxes_xywh.tolist() == [list(map(float, row[:4])) for row in ROWS]
    assert things().boxes_xywh.dtype == np.float32
    assert things().areas.tolist() == [200, 160, 24, 100]
    assert np.array_equal(things().masks(), np.stack([pixels(*row[:4]) for row in ROWS]))


def test_empty_instances_have_all_columns_with_the_right_types() -> None:
    none = Instances.empty(SIZE_HW)
    assert (len(none.class_names), none.boxes_xywh.shape, none.areas.tolist()) == (0, (0, 4), [])
    assert none.masks().shape == (0, *SIZE_HW)
    assert none.masks().dtype == np.bool_
    assert (list(none), none.to_coco(1), len(none[[]]), len(none[:1])) == ([], [], 0, 0)
    assert repr(none) == "Instances(0 in 60x40)"
    assert none.draw().shape == (*SIZE_HW, 3)
    assert "Instances(0" in none._repr_html_()


@pytest.mark.parametrize(
    ("rows", "scores"),
    [
        (0, [0.9]), (-1, [0.3]), (np.int64(2), [0.4]), (slice(2), [0.9, 0.8]),
        (slice(None, None, -1), [0.3, 0.4, 0.8, 0.9]),
        ([3, 0], [0.3, 0.9]), ([], []), ([True, False, True, False], [0.9, 0.4]), (np.array([1, 1]), [0.8, 0.8]),
        (np.array([False] * 4), []),
    ],
)  # fmt: skip
def test_parts_are_taken_as_from_an_array(rows: Any, scores: list[float]) -> None:
    part = things()[rows]
    assert part.scores.tolist() == np.array(scores, np.float32).tolist()
    assert len(part.rles) == len(part.boxes_xyxy) == len(part.class_names) == len(scores)
    assert (part.labels, part.size_hw) == (LABELS, SIZE_HW)


@pytest.mark.parametrize("rows", [4, -5, [0, 9], [True, False], True, [[0, 1]], "a", None, 0.5])
def test_rows_that_are_not_there_are_an_index_error(rows: Any) -> None:
    with pytest.raises(IndexError):
        things()[rows]


def test_iteration_gives_instances_of_one_row() -> None:
    assert [(thing.class_names[0], len(thing)) for thing in things()] == [
        ("person", 1), ("dog", 1), ("person", 1), ("<bottle>", 1)
    ]  # fmt: skip


def test_filters_take_scores_classes_and_areas() -> None:
    assert things().filter(min_score=0.5).class_ids.tolist() == [1, 18]
    assert things().filter(classes="person", min_area=25).scores.tolist() == pytest.approx([0.9])
    assert things().filter(classes=[44, "dog"]).class_ids.tolist() == [18, 44]
    assert len(things().filter()) == 4


def test_a_class_that_is_not_there_is_named_with_the_nearest_one() -> None:
    with pytest.raises(UserError, match="did you mean 'person'"):
        things().filter(classes="persons")
    with pytest.raises(UserError, match="these instances have no names"):
        things(labels={}).filter(classes="person")


def test_coco_records_are_json_that_pycocotools_reads() -> None:
    records = json.loads(json.dumps(things().to_coco(7)))
    assert [record["image_id"] for record in records] == [7] * 4
    for record, row in zip(records, ROWS, strict=True):
        assert (record["category_id"], record["score"], record["bbox"]) == (row[4], row[5], list(map(float, row[:4])))
        assert np.array_equal(coco_mask.decode(record["segmentation"]), pixels(*row[:4]))
        assert record["area"] == coco_mask.area(record["segmentation"]) == row[2] * row[3]


def test_supervision_gets_the_same_columns() -> None:
    pytest.importorskip("supervision", reason="to_supervision needs supervision")
    detections = things().to_supervision()
    assert np.array_equal(detections.xyxy, things().boxes_xyxy)
    assert np.array_equal(detections.mask, things().masks())
    assert detections.data["class_name"].tolist() == things().class_names.tolist()
    assert detections[detections.class_id == 18].confidence.tolist() == pytest.approx([0.8])


def test_a_missing_supervision_is_named_with_the_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match="pip install supervision"):
        things().to_supervision()


def test_a_drawing_tints_the_masks_in_the_colour_of_the_class_and_leaves_the_rest() -> None:
    image = np.full((*SIZE_HW, 3), 100, np.uint8)
    drawn = things().draw(image, tags=False)
    assert (drawn.shape, drawn.dtype) == (image.shape, np.uint8)
    assert (image == 100).all()
    assert (drawn[20:24, 18:28] == 100).all()
    dog = list(LABELS).index(18)
    expected = np.array(PALETTE[dog]) * 0.42 + 100 * 0.58
    assert np.abs(drawn[9, 40].astype(float) - expected).max() <= 1


def test_a_class_keeps_its_colour_whatever_else_is_found() -> None:
    image = np.full((*SIZE_HW, 3), 100, np.uint8)
    alone, beside = things()[1].draw(image, tags=False), things().draw(image, tags=False)
    assert np.array_equal(alone[9, 40], beside[9, 40])


def test_an_image_of_another_size_is_refused_with_the_right_shape() -> None:
    with pytest.raises(UserError, match=r"give uint8 of shape \(40, 60, 3\)"):
        things().draw(np.zeros((60, 40, 3), np.uint8))


def test_jupyter_gets_a_png_of_at_most_800_pixels_and_escaped_names() -> None:
    large = Instances.empty((3000, 1000))
    assert Image.open(io.BytesIO(large._repr_png_())).size == (267, 800)
    page = things(image=np.full((*SIZE_HW, 3), 200, np.uint8))._repr_html_()
    assert "data:image/jpeg;base64," in page
    assert "&lt;bottle&gt;" in page
    assert "<bottle>" not in page


def test_the_picture_in_a_notebook_takes_few_bytes() -> None:
    noise = np.random.default_rng(5).integers(0, 255, (600, 800, 3), np.uint8)
    noisy = Instances.empty((600, 800)).with_image(noise, {})
    assert len(noisy._repr_html_()) < len(noisy._repr_png_()) / 2


def test_the_repr_counts_the_classes_and_names_the_best_score() -> None:
    assert repr(things()) == "Instances(4 in 60x40: 2 person, 1 dog, 1 <bottle>; best 0.90)"


def test_instances_travel_between_processes() -> None:
    copy = pickle.loads(pickle.dumps(things()))
    assert (copy.rles, copy.labels, copy.scores.tolist()) == (things().rles, LABELS, things().scores.tolist())


def test_decoded_outputs_have_the_names_of_the_model() -> None:
    outputs = {
        "reshape_do_2d": np.array([[0, 1, 0.9, 0.1, 0.1, 0.5, 0.5]], np.float32),
        "masks": np.full((1, 90, 15, 15), 0.9, np.float32),
    }
    decoded = segray.decode("mask_rcnn_inception_v2_coco", outputs, (40, 60))
    assert decoded.class_names.tolist() == ["person"]
