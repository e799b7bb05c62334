from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import raw_outputs
import whole_frames as frames
from raw_outputs import Outputs

import segray
from segray import rle
from segray.errors import ImageError, ModelError
from segray.instances import Instances
from segray.models.adapters.adapter import Options
from segray.models.coco_labels import COCO_NAMES
from segray.models.registry import ADAPTERS

TILED = "mask_rcnn_inception_v2_coco", "mask_rcnn_inception_resnet_v2_atrous_coco"
REFRAMED = "mask_rcnn_inception_resnet_v2_1024x1024"


def made(seed: int, side: int = 33, count: int = 60, total: int = 80) -> Outputs:
    """`count` objects and filler up to `total`, as the graph gives them."""
    rng = np.random.default_rng(seed)
    return {
        "num_detections": np.array([count], np.float32),
        "detection_boxes": frames.boxes_of(rng, total)[None][..., [1, 0, 3, 2]],
        "detection_scores": np.sort(rng.uniform(0.01, 0.99, (1, total)))[:, ::-1].astype(np.float32),
        "detection_classes": rng.integers(1, 91, (1, total)).astype(np.float32),
        "detection_masks": frames.blobs(rng, total, side)[None],
    }


def one(
    box_yxyx: tuple[float, float, float, float] = (0.2, 0.3, 0.6, 0.5), label: float = 1, score: float = 0.9
) -> Outputs:
    return {
        "num_detections": np.array([1], np.float32),
        "detection_boxes": np.array([[box_yxyx]], np.float32),
        "detection_scores": np.array([[score]], np.float32),
        "detection_classes": np.array([[label]], np.float32),
        "detection_masks": np.ones((1, 1, 15, 15), np.float32),
    }


def decode(outputs: Outputs, size_hw: tuple[int, int], name: str = REFRAMED, **options: Any) -> Instances:
    return ADAPTERS[name].decode(outputs, size_hw, Options(**options))


def assert_as_oracle(outputs: Outputs, size_hw: tuple[int, int], paste: Any) -> None:
    count = int(outputs["num_detections"][0])
    found = decode(outputs, size_hw, paste=paste)
    boxes = outputs["detection_boxes"][0, :count][:, [1, 0, 3, 2]]
    limits = np.array([size_hw[1], size_hw[0]] * 2, np.float32)
    assert found.class_ids.tolist() == outputs["detection_classes"][0, :count].tolist()
    assert found.scores.tolist() == outputs["detection_scores"][0, :count].tolist()
    np.testing.assert_allclose(found.boxes_xyxy, (boxes * limits).clip(0, limits), atol=1e-3)
    masks = outputs["detection_masks"][0, :count]
    if paste == "tile":
        whole = [frames.tiled(mask, box, size_hw) for mask, box in zip(masks, boxes * limits, strict=True)]
    else:
        whole = [frames.reframed(mask, box, size_hw) for mask, box in zip(masks, boxes, strict=True)]
    frames.assert_same_masks(found, whole)


@pytest.mark.parametrize("paste", ["tile", "reframe"])
@pytest.mark.parametrize("side", [15, 33])
@pytest.mark.parametrize("size_hw", frames.SIZES_HW)
def test_decode_is_the_whole_frame_path(size_hw: tuple[int, int], side: int, paste: str) -> None:
    for seed in (1, 2):
        assert_as_oracle(made(seed, side), size_hw, paste)


@pytest.mark.thorough
@pytest.mark.parametrize("paste", ["tile", "reframe"])
def test_decode_is_the_whole_frame_path_at_twelve_megapixels(paste: str) -> None:
    assert_as_oracle(made(3, count=8), frames.TWELVE_MEGAPIXELS, paste)


@pytest.mark.parametrize("size", ["640x427", "427x640"])
def test_decode_gives_what_the_references_give(size: str) -> None:
    outputs = raw_outputs.draw(7)["tf_od"]
    width, height = map(int, size.split("x"))
    for name in TILED:
        frames.assert_as_golden(segray.decode(name, outputs, (height, width)), f"tf_od_{size}")
    frames.assert_as_golden(segray.decode(REFRAMED, outputs, (height, width)), f"tf_hub_{size}")


@pytest.mark.integration
@pytest.mark.parametrize("paste", ["tile", "reframe"])
@pytest.mark.parametrize(
    ("seed", "size_hw"),
    [(8, (427, 640)), (9, (17, 31)), pytest.param(10, frames.TWELVE_MEGAPIXELS, marks=pytest.mark.chaos)],
)
def test_other_seeds_and_sizes(seed: int, size_hw: tuple[int, int], paste: str) -> None:
    assert_as_oracle(raw_outputs.draw(seed)["tf_od"], size_hw, paste)


# ---- the adapter, case by case --------------------------------------------------------------------


def test_the_two_ways_to_paste_by_hand() -> None:
    # Half the image from its middle on, all of the mask: pixels 50..149 of 200, and the last one counted in.
    outputs = one((0.25, 0.25, 0.75, 0.75))
    tiles, frame = (decode(outputs, (201, 201), paste=paste).rles[0] for paste in ("tile", "reframe"))
    assert rle.bbox(frame, (201, 201)).tolist() == [50, 50, 101, 101]
    x, y, w, h = rle.bbox(tiles, (201, 201)).tolist()
    assert (x, w) == (y, h)
    assert (50 <= x <= 51, 149 <= x + w <= 152) == (True, True)


def test_each_name_pastes_as_its_numbers_were_measured() -> None:
    outputs = made(4)
    for name in TILED:
        assert decode(outputs, (90, 120), name).rles == decode(outputs, (90, 120), paste="tile").rles
    assert decode(outputs, (90, 120), REFRAMED).rles == decode(outputs, (90, 120), paste="reframe").rles
    assert decode(outputs, (90, 120), TILED[0]).rles != decode(outputs, (90, 120), REFRAMED).rles


def test_boxes_are_y_first() -> None:
    found = decode(one((0.1, 0.5, 0.3, 1.2)), (100, 200))
    np.testing.assert_allclose(found.boxes_xyxy, [[100, 10, 200, 30]], rtol=1e-6)


def test_classes_are_category_ids_and_gaps_stay() -> None:
    for category in range(1, 91):
        assert decode(one(label=category), (50, 60)).class_ids.tolist() == [category]
    assert 12 not in COCO_NAMES


def test_rows_from_num_detections_on_are_filler() -> None:
    outputs = made(5, count=3)
    assert len(decode(outputs, (50, 60))) == 3
    outputs["num_detections"][0] = 0
    assert decode(outputs, (50, 60)).size_hw == (50, 60)
    assert len(decode(outputs, (50, 60))) == 0


@pytest.mark.parametrize("count", [np.nan, np.inf, -1, 81])
def test_a_count_that_counts_nothing_fails_the_image(count: float) -> None:
    outputs = made(6)
    outputs["num_detections"][0] = count
    with pytest.raises(ImageError, match="how many objects") as caught:
        decode(outputs, (50, 60))
    assert caught.value.stage == "postprocess"


def test_the_batch_axis_and_the_port_number_may_be_there_or_not() -> None:
    outputs = made(7)
    expected = decode(outputs, (50, 60))
    bare = decode({name: array[0] for name, array in outputs.items()}, (50, 60))
    ported = decode({f"{name}:0": array for name, array in outputs.items()} | {"raw": np.zeros(3)}, (50, 60))
    integers = outputs | {"detection_classes": outputs["detection_classes"].astype(np.int64)}
    for other in (bare, ported, decode(integers, (50, 60))):
        assert other.rles == expected.rles
        assert other.class_ids.tolist() == expected.class_ids.tolist()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("num_detections", (2,)),
        ("detection_boxes", (1, 80, 5)),
        ("detection_boxes", (2, 80, 4)),
        ("detection_boxes", (1, 79, 4)),
        ("detection_scores", (1, 80, 91)),
        ("detection_classes", ()),
        ("detection_masks", (1, 80, 33, 32)),
        ("detection_masks", (80, 90, 33, 33)),
    ],
)
def test_other_shapes_are_another_model(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"other shapes[\s\S]*found:[\s\S]*detection_masks \[n, m, m\]"):
        decode(made(8) | {name: np.zeros(shape, np.float32)}, (50, 60))


def test_missing_outputs_are_told() -> None:
    outputs = made(9)
    del outputs["detection_masks"]
    for name in (*TILED, REFRAMED):
        with pytest.raises(ModelError, match=r"detection_masks are missing[\s\S]*detection_boxes"):
            decode(outputs, (50, 60), name)


def test_prepare_feeds_the_image_as_it_is() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    for name, port in ((TILED[0], "image_tensor"), (REFRAMED, "input_tensor")):
        form = ADAPTERS[name].forms["original"]
        assert (form.image.colour, form.image.layout, form.image.size_hw) == ("RGB", "NHWC", None)
        fed = ADAPTERS[name].prepare(form, picture)
        assert list(fed) == [port]
        assert (fed[port] == picture[None]).all()


def test_prepare_stretches_for_a_file_of_fixed_size() -> None:
    adapter = ADAPTERS[REFRAMED].with_size("original", (64, 96))
    fed = adapter.prepare(adapter.forms["original"], np.zeros((30, 20, 3), np.uint8))
    assert fed["input_tensor"].shape == (1, 64, 96, 3)
