"""What every box-and-mask family does with bad numbers and with the user's choices, and how fast."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import whole_frames as frames
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from raw_outputs import Outputs

from segray import rle
from segray.errors import ConfigError
from segray.execution.valid_rows import drop_invalid_rows
from segray.instances import Instances
from segray.models.adapters.adapter import Options
from segray.models.adapters.box_masks import MAX_SCORE
from segray.models.registry import ADAPTERS

SIZE_HW = (120, 160)
COUNT = 6


class Family:
    """An adapter's outputs for COUNT well-behaved rows, and where in them each number of a row is."""

    def __init__(self, name: str, outputs: Outputs, at: Callable[[Outputs, str, int], NDArray[Any]]) -> None:
        self.name, self._outputs, self._at = name, outputs, at

    def outputs(self) -> Outputs:
        return {name: array.copy() for name, array in self._outputs.items()}

    def put(self, outputs: Outputs, what: str, row: int, value: Any) -> None:
        """what: class, score, x0, y0, x1, y1 or mask."""
        self._at(outputs, what, row)[...] = value

    def decode(self, outputs: Outputs, **options: Any) -> Instances:
        return ADAPTERS[self.name].decode(outputs, SIZE_HW, Options(**options))


SCORES = np.linspace(0.9, 0.4, COUNT, dtype=np.float32)
# 17 and up: a COCO id, and well within every list.
CLASSES = np.arange(17, 17 + COUNT, dtype=np.float32)
_EDGES = ("x0", "y0", "x1", "y1")


def boxes_of(scale: Any = 1) -> NDArray[np.float32]:
    return (np.tile([0.1, 0.2, 0.4, 0.5], (COUNT, 1)) * scale).astype(np.float32)


def tf() -> Family:
    places = {"x0": 1, "y0": 0, "x1": 3, "y1": 2}

    def at(outputs: Outputs, what: str, row: int) -> NDArray[Any]:
        if what in places:
            return outputs["detection_boxes"][0, row, places[what], ...]
        return outputs[{"class": "detection_classes", "score": "detection_scores", "mask": "detection_masks"}[what]][
            0, row, ...
        ]

    outputs = {
        "num_detections": np.array([COUNT], np.float32),
        "detection_boxes": boxes_of()[None][..., [1, 0, 3, 2]],
        "detection_scores": SCORES[None],
        "detection_classes": CLASSES[None],
        "detection_masks": np.ones((1, COUNT, 15, 15), np.float32),
    }
    return Family("mask_rcnn_inception_resnet_v2_1024x1024", outputs, at)


def converted() -> Family:
    def at(outputs: Outputs, what: str, row: int) -> NDArray[Any]:
        if what == "mask":
            return outputs["masks"][row, ...]
        return outputs["reshape_do_2d"][row, ("image", "class", "score", *_EDGES).index(what), ...]

    table = np.concatenate([np.zeros((COUNT, 1)), CLASSES[:, None], SCORES[:, None], boxes_of()], 1)
    outputs = {"reshape_do_2d": table.astype(np.float32), "masks": np.ones((COUNT, 90, 15, 15), np.float32)}
    return Family("mask_rcnn_inception_v2_coco", outputs, at)


def security() -> Family:
    def at(outputs: Outputs, what: str, row: int) -> NDArray[Any]:
        if what in _EDGES:
            return outputs["boxes"][row, _EDGES.index(what), ...]
        return outputs[{"class": "classes", "score": "scores", "mask": "raw_masks"}[what]][row, ...]

    outputs = {
        "classes": CLASSES.copy(),
        "scores": SCORES.copy(),
        "boxes": boxes_of([640, 480, 640, 480]),
        "raw_masks": np.ones((COUNT, 81, 28, 28), np.float32),
    }
    return Family("instance-segmentation-security-0033", outputs, at)


def later() -> Family:
    def at(outputs: Outputs, what: str, row: int) -> NDArray[Any]:
        if what in (*_EDGES, "score"):
            return outputs["boxes"][row, (*_EDGES, "score").index(what), ...]
        return outputs[{"class": "labels", "mask": "masks"}[what]][row, ...]

    boxes = np.concatenate([boxes_of([608] * 4), SCORES[:, None]], 1)
    outputs = {"labels": CLASSES.copy(), "boxes": boxes, "masks": np.ones((COUNT, 28, 28), np.float32)}
    return Family("instance-segmentation-security-1040", outputs, at)


@pytest.fixture(params=[tf, converted, security, later], ids=lambda make: make.__name__)
def family(request: pytest.FixtureRequest) -> Family:
    made: Family = request.param()
    return made


# ---- bad outputs ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("what", ["class", "score", *_EDGES, "mask"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_cost_only_their_row(family: Family, what: str, wrong: float) -> None:
    outputs = family.outputs()
    family.put(outputs, what, 2, wrong)
    found = family.decode(outputs)
    assert found.scores.tolist() == np.delete(SCORES, 2).tolist()
    assert drop_invalid_rows(found, ADAPTERS[family.name].labels)[1] == {"unreadable": 1}


@pytest.mark.parametrize(("what", "wrong"), [("score", 1.5), ("score", -0.5), ("score", 0), ("class", 18.5)])
def test_scores_and_classes_that_cannot_be_cost_only_their_row(family: Family, what: str, wrong: float) -> None:
    outputs = family.outputs()
    family.put(outputs, what, 2, wrong)
    assert family.decode(outputs).scores.tolist() == np.delete(SCORES, 2).tolist()


def test_a_score_may_pass_one_in_its_last_bits(family: Family) -> None:
    outputs = family.outputs()
    family.put(outputs, "score", 0, (1 + MAX_SCORE) / 2)
    assert family.decode(outputs).scores.tolist() == [1, *SCORES[1:]]


def test_one_value_of_a_mask_is_enough_to_doubt_it(family: Family) -> None:
    outputs = family.outputs()
    outputs_mask = family._at(outputs, "mask", 3)
    outputs_mask[..., 4, 5] = np.nan
    assert len(family.decode(outputs)) == COUNT - 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("paste", ["tile", "reframe"])
@pytest.mark.parametrize(
    "edges",
    [
        {"x0": 1e30, "x1": 2e30},
        {"x0": -2e30, "x1": -1e30},
        {"x0": 9e3, "x1": 9.5e3},
        {"y0": -9e3, "y1": -8e3},
        {"x0": 300.5, "x1": -300.5},
        {"y0": 700, "y1": -700},
    ],
)
def test_boxes_outside_or_inverted_have_no_pixel_and_are_not_written(
    family: Family, edges: dict[str, float], paste: str
) -> None:
    outputs = family.outputs()
    for edge, value in edges.items():
        family.put(outputs, edge, 0, value)
    found = family.decode(outputs, paste=paste)
    assert len(found) == COUNT
    assert rle.area(found.rles[0]) == 0
    height, width = SIZE_HW
    assert (found.boxes_xyxy >= 0).all()
    assert (found.boxes_xyxy <= [width, height, width, height]).all()
    kept, dropped = drop_invalid_rows(found, ADAPTERS[family.name].labels)
    assert (len(kept), dict(dropped)) == (COUNT - 1, {"empty_mask": 1})


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("paste", ["tile", "reframe"])
def test_a_box_of_no_area_is_not_written(family: Family, paste: str) -> None:
    outputs = family.outputs()
    family.put(outputs, "x1", 0, family._at(outputs, "x0", 0))
    kept, dropped = drop_invalid_rows(family.decode(outputs, paste=paste), ADAPTERS[family.name].labels)
    assert (len(kept), sum(dropped.values())) == (COUNT - 1, 1)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("paste", ["tile", "reframe"])
def test_a_box_around_everything_fills_the_image(family: Family, paste: str) -> None:
    outputs = family.outputs()
    for edge, value in (("x0", -1e12), ("y0", -1e12), ("x1", 1e12), ("y1", 1e12)):
        family.put(outputs, edge, 0, value)
    found = family.decode(outputs, paste=paste)
    assert found.boxes_xyxy[0].tolist() == [0, 0, SIZE_HW[1], SIZE_HW[0]]
    assert rle.area(found.rles[0]) == SIZE_HW[0] * SIZE_HW[1]


@pytest.mark.parametrize("label", [12, 26, 0, 91, 4000])
def test_ids_without_a_name_are_kept_by_decode_and_counted_by_the_writer(label: int) -> None:
    family = tf()
    outputs = family.outputs()
    family.put(outputs, "class", 0, label)
    found = family.decode(outputs)
    assert found.class_ids[0] == label
    kept, dropped = drop_invalid_rows(found, ADAPTERS[family.name].labels)
    assert (len(kept), dict(dropped)) == (COUNT - 1, {"unnamed_class": 1})


def test_nothing_found_is_an_empty_result(family: Family) -> None:
    found = family.decode(family.outputs(), score_threshold=1.0)
    assert (len(found), found.size_hw, found.boxes_xyxy.shape) == (0, SIZE_HW, (0, 4))


def test_inputs_may_be_read_only_and_stay_as_they_are(family: Family) -> None:
    outputs = family.outputs()
    for array in outputs.values():
        array.flags.writeable = False
    family.decode(outputs)
    assert all((array == outputs[name]).all() for name, array in family.outputs().items())


# ---- choices --------------------------------------------------------------------------------------


def test_thresholds_limits_and_classes(family: Family) -> None:
    outputs = family.outputs()
    ids = family.decode(outputs).class_ids
    assert family.decode(outputs, score_threshold=0.65).scores.tolist() == SCORES[:3].tolist()
    assert family.decode(outputs, score_threshold=float(SCORES[2])).scores.tolist() == SCORES[:3].tolist()
    assert family.decode(outputs, max_detections=2).scores.tolist() == SCORES[:2].tolist()
    own = {int(ids[0]): 0.95, int(ids[5]): 0.1}
    chosen = family.decode(outputs, score_threshold=0.65, class_thresholds=own)
    assert chosen.scores.tolist() == SCORES[[1, 2, 5]].tolist()
    # The limit counts what passes: a row that its class's threshold drops takes no place.
    few = family.decode(outputs, score_threshold=0.65, class_thresholds=own, max_detections=3)
    assert few.scores.tolist() == chosen.scores.tolist()


def test_small_masks_can_be_dropped(family: Family) -> None:
    outputs = family.outputs()
    family.put(outputs, "mask", 1, 0)
    areas = rle.area(family.decode(outputs).rles)
    assert areas[1] == 0
    least = int(areas[0])
    assert len(family.decode(outputs, min_area=1)) == COUNT - 1
    assert len(family.decode(outputs, min_area=least)) == COUNT - 1
    assert len(family.decode(outputs, min_area=least + 1)) == 0


def test_the_paste_can_be_chosen(family: Family) -> None:
    tile, reframe = (family.decode(family.outputs(), paste=paste).rles for paste in ("tile", "reframe"))
    own = family.decode(family.outputs()).rles
    assert tile != reframe
    assert own == (reframe if family.name.endswith("1024x1024") else tile)


def test_a_label_map_is_sorted_and_takes_names_of_every_script_once() -> None:
    adapter = ADAPTERS["mask_rcnn_inception_v2_coco"]
    assert list(adapter.with_labels({2: "nut", 1: "bolt"}).labels.items()) == [(1, "bolt"), (2, "nut")]
    assert list(adapter.with_labels({2: "гайка", 1: "--"}).labels.items()) == [(1, "--"), (2, "гайка")]
    with pytest.raises(ConfigError, match="same name") as twice:
        adapter.with_labels({1: "bolt", 2: "nut", 3: "bolt"})
    assert twice.value.found == "'bolt' of categories 1, 3"
    for name in ("", "\ud800"):
        with pytest.raises(ConfigError, match="empty, or has characters"):
            adapter.with_labels({1: "bolt", 2: name})


# ---- speed ----------------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize("paste", ["tile", "reframe"])
def test_twelve_megapixels_cost_no_full_frames(paste: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    count, size_hw = 20, frames.TWELVE_MEGAPIXELS
    outputs = {
        "num_detections": np.array([count], np.float32),
        "detection_boxes": frames.boxes_of(rng, count)[None][..., [1, 0, 3, 2]].clip(0, 1),
        "detection_scores": np.linspace(0.9, 0.1, count, dtype=np.float32)[None],
        "detection_classes": np.full((1, count), 17, np.float32),
        "detection_masks": frames.blobs(rng, count, 33)[None],
    }
    adapter, options = ADAPTERS["mask_rcnn_inception_v2_coco"], Options(paste=paste)
    adapter.decode(outputs, size_hw, options)
    ours = min(_seconds(lambda: adapter.decode(outputs, size_hw, options)) for _ in range(3))

    def by_frames() -> None:
        boxes = outputs["detection_boxes"][0][:, [1, 0, 3, 2]]
        scaled = boxes * np.array([size_hw[1], size_hw[0]] * 2, np.float32)
        for mask, box in zip(outputs["detection_masks"][0], scaled, strict=True):
            coco_mask.encode(np.asfortranarray(frames.tiled(mask, box, size_hw), np.uint8))

    theirs = _seconds(by_frames)
    with capsys.disabled():
        print(f"\n{paste}: {ours:.3f} s, whole frames {theirs:.2f} s, {theirs / ours:.0f} times")
    assert theirs > 5 * ours


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
