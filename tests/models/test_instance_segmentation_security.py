from __future__ import annotations

import cv2
import numpy as np
import pytest
import raw_outputs
import whole_frames as frames
from raw_outputs import Outputs

import segray
from segray import rle
from segray.errors import ModelError
from segray.models.adapters.adapter import Options
from segray.models.coco_labels import COCO_IDS_80
from segray.models.registry import ADAPTERS

RAW = "instance-segmentation-security-0033", "instance-segmentation-security-0083"
OWN = {
    f"instance-segmentation-security-{number}": facts
    for number, facts in {
        "0002": ((768, 1024), True),
        "0091": ((800, 1344), True),
        "0228": ((608, 608), False),
        "1039": ((480, 480), False),
        "1040": ((608, 608), False),
    }.items()
}


def raw_made(seed: int, count: int = 35, total: int = 60, side: int = 28) -> Outputs:
    """`count` objects in a 480 x 640 input, then class 0; the mask of the class and noise in the other channels."""
    rng = np.random.default_rng(seed)
    classes, scores, boxes = np.zeros(total), np.zeros(total), np.zeros((total, 4))
    classes[:count] = rng.integers(1, 81, count)
    scores[:count] = np.linspace(0.99, 0.05, count)
    boxes[:count] = frames.boxes_of(rng, count) * [640, 480, 640, 480]
    masks = rng.uniform(0, 0.2, (total, 81, side, side))
    masks[np.arange(count), classes[:count].astype(int)] = frames.blobs(rng, count, side)
    outputs = {"classes": classes, "scores": scores, "boxes": boxes, "raw_masks": masks}
    return {name: array.astype(np.float32) for name, array in outputs.items()}


def own_made(seed: int, net_hw: tuple[int, int], count: int = 35, total: int = 60, side: int = 28) -> Outputs:
    rng = np.random.default_rng(seed)
    boxes = np.zeros((total, 5), np.float32)
    boxes[:count, :4] = frames.boxes_of(rng, count) * (net_hw[::-1] * 2)
    boxes[:count, 4] = np.linspace(0.99, 0.05, count)
    labels = np.concatenate([rng.integers(0, 80, count), np.zeros(total - count, np.int64)])
    return {"labels": labels, "boxes": boxes, "masks": frames.blobs(rng, total, side)}


def fitted(size_hw: tuple[int, int], net_hw: tuple[int, int]) -> tuple[int, int]:
    scale = min(net_hw[0] / size_hw[0], net_hw[1] / size_hw[1])
    return max(1, int(scale * size_hw[0])), max(1, int(scale * size_hw[1]))


def to_source(boxes: np.ndarray, size_hw: tuple[int, int], fed_hw: tuple[int, int]) -> np.ndarray:
    scale = [fed_hw[1] / size_hw[1], fed_hw[0] / size_hw[0]]
    return boxes / np.array(scale * 2, np.float32)


def assert_as_oracle(outputs: Outputs, size_hw: tuple[int, int]) -> None:
    found = segray.decode(RAW[0], outputs, size_hw)
    rows = np.flatnonzero(outputs["classes"])
    classes = outputs["classes"][rows].astype(int)
    assert found.class_ids.tolist() == [COCO_IDS_80[label - 1] for label in classes]
    assert found.scores.tolist() == outputs["scores"][rows].tolist()
    boxes = to_source(outputs["boxes"][rows], size_hw, fitted(size_hw, (480, 640)))
    np.testing.assert_allclose(found.boxes_xyxy, boxes.clip(0, size_hw[::-1] * 2), atol=1e-3)
    own = outputs["raw_masks"][rows, classes]
    frames.assert_same_masks(found, [frames.tiled(m, box, size_hw) for m, box in zip(own, boxes, strict=True)])


@pytest.mark.parametrize("size_hw", frames.SIZES_HW)
def test_decode_is_the_whole_frame_path(size_hw: tuple[int, int]) -> None:
    for seed in (1, 2):
        assert_as_oracle(raw_made(seed), size_hw)


@pytest.mark.thorough
def test_decode_is_the_whole_frame_path_at_twelve_megapixels() -> None:
    assert_as_oracle(raw_made(3), frames.TWELVE_MEGAPIXELS)


@pytest.mark.parametrize("size", ["640x427", "427x640"])
def test_decode_gives_what_the_reference_gives(size: str) -> None:
    outputs = raw_outputs.draw(7)["security"]
    width, height = map(int, size.split("x"))
    for name in RAW:
        found = segray.decode(name, outputs, (height, width))
        frames.assert_as_golden(found, f"security_{size}", lambda label: COCO_IDS_80[label - 1])


@pytest.mark.integration
@pytest.mark.parametrize(
    ("seed", "size_hw"),
    [(8, (427, 640)), (9, (17, 31)), pytest.param(10, frames.TWELVE_MEGAPIXELS, marks=pytest.mark.chaos)],
)
def test_other_seeds_and_sizes(seed: int, size_hw: tuple[int, int]) -> None:
    assert_as_oracle(raw_outputs.draw(seed)["security"], size_hw)


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("size_hw", [(427, 640), (31, 17)])
def test_the_later_contract_is_the_whole_frame_path(name: str, size_hw: tuple[int, int]) -> None:
    net_hw, padded = OWN[name]
    outputs = own_made(4, net_hw)
    found = segray.decode(name, outputs, size_hw)
    assert found.class_ids.tolist() == [COCO_IDS_80[label] for label in outputs["labels"][:35]]
    assert found.scores.tolist() == outputs["boxes"][:35, 4].tolist()
    boxes = to_source(outputs["boxes"][:35, :4], size_hw, fitted(size_hw, net_hw) if padded else net_hw)
    np.testing.assert_allclose(found.boxes_xyxy, boxes.clip(0, size_hw[::-1] * 2), atol=1e-3)
    masks = outputs["masks"][:35]
    frames.assert_same_masks(found, [frames.tiled(m, box, size_hw) for m, box in zip(masks, boxes, strict=True)])


# ---- the contracts, case by case ------------------------------------------------------------------


def test_the_mask_is_the_channel_of_the_class_itself() -> None:
    outputs = raw_made(5, count=1)
    outputs["classes"][0], outputs["boxes"][0] = 40, (100, 100, 300, 300)
    outputs["raw_masks"][...] = 0
    assert rle.area(segray.decode(RAW[0], outputs, (480, 640)).rles).tolist() == [0]
    outputs["raw_masks"][0, 40] = 1
    assert rle.area(segray.decode(RAW[0], outputs, (480, 640)).rles)[0] > 0


def test_class_zero_is_dropped_even_with_a_score() -> None:
    outputs = raw_made(6, count=2)
    outputs["scores"][:] = 0.9
    assert len(segray.decode(RAW[0], outputs, (480, 640))) == 2


def test_class_zero_of_the_later_contract_is_a_person() -> None:
    name = "instance-segmentation-security-1039"
    outputs = own_made(7, (480, 480), count=3)
    outputs["labels"][:3] = 0, 1, 79
    assert segray.decode(name, outputs, (480, 480)).class_ids.tolist() == [1, 2, 90]


@pytest.mark.parametrize("label", [81, 85, 300, -1])
def test_a_class_beyond_the_label_map_is_no_other_class(label: int) -> None:
    outputs = raw_made(8, count=1)
    outputs["classes"][0] = label
    assert segray.decode(RAW[0], outputs, (50, 60)).class_ids.tolist() == [-1]
    later = own_made(8, (480, 480), count=1)
    later["labels"][0] = label
    assert segray.decode("instance-segmentation-security-1039", later, (50, 60)).class_ids.tolist() == [-1]


def test_own_classes_are_counted_against_the_channels() -> None:
    adapter = ADAPTERS[RAW[1]].with_labels({20: "nut", 10: "bolt"})
    outputs = raw_made(9, count=2)
    outputs["classes"][:2] = 1, 2
    few = outputs | {"raw_masks": outputs["raw_masks"][:, :3]}
    assert adapter.decode(few, (50, 60), Options()).class_ids.tolist() == [10, 20]
    with pytest.raises(ModelError, match=r"raw_masks \[60, 81, 28, 28\][\s\S]*raw_masks \[n, 3, m, m\]"):
        adapter.decode(outputs, (50, 60), Options())


@pytest.mark.parametrize(
    ("name", "shape"), [("classes", (60, 1, 1)), ("boxes", (60, 5)), ("scores", (59,)), ("raw_masks", (60, 80, 28, 28))]
)
def test_other_shapes_are_another_model(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"other shapes[\s\S]*raw_masks \[n, 81, m, m\]"):
        segray.decode(RAW[0], raw_made(10) | {name: np.zeros(shape, np.float32)}, (50, 60))


def test_prepare_fits_pads_and_tells_the_size_before_padding() -> None:
    adapter = ADAPTERS[RAW[0]]
    picture = np.random.default_rng(0).integers(1, 256, (640, 427, 3), dtype=np.uint8)
    fed = adapter.prepare(adapter.forms["converted"], picture)
    np.testing.assert_allclose(fed["im_info"], [[480, 320, 0.75]])
    assert fed["im_info"].dtype == np.float32
    assert fed["im_data"].shape == (1, 480, 640, 3)
    assert (fed["im_data"][0, :, :320] == cv2.resize(picture, (320, 480))).all()
    assert not fed["im_data"][0, :, 320:].any()


@pytest.mark.parametrize("name", OWN)
def test_the_later_contract_prepares_as_it_was_measured(name: str) -> None:
    net_hw, padded = OWN[name]
    adapter = ADAPTERS[name]
    picture = np.random.default_rng(0).integers(1, 256, (300, 100, 3), dtype=np.uint8)
    fed = adapter.prepare(adapter.forms["converted"], picture)
    assert list(fed) == ["image"]
    height, width = fitted((300, 100), net_hw) if padded else net_hw
    assert (fed["image"][0, :height, :width] == cv2.resize(picture, (width, height))).all()
    assert fed["image"].shape == (1, *net_hw, 3)
    assert not fed["image"][0, :, width:].any()


def test_every_form_is_blue_first() -> None:
    for name in (*RAW, *OWN):
        (form,) = ADAPTERS[name].forms.values()
        assert (form.image.colour, form.image.layout, form.image.mean) == ("BGR", "NCHW", None)
