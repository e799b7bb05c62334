from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import openvino as ov
import pytest
import raw_outputs
import whole_frames as frames
from openvino import opset13 as op
from raw_outputs import Outputs

import segray
from segray import rle
from segray.errors import ModelError
from segray.instances import Instances
from segray.models import engine as runtime
from segray.models import resolve
from segray.models.adapters.adapter import Options
from segray.models.registry import ADAPTERS

NAMES = "mask_rcnn_inception_v2_coco", "mask_rcnn_inception_resnet_v2_atrous_coco"
NET_HW = (800, 1365)


def decode(outputs: Outputs, size_hw: tuple[int, int], **options: Any) -> Instances:
    return ADAPTERS[NAMES[0]].decode(outputs, size_hw, Options(**options))


def made(seed: int, side: int = 15, count: int = 40, total: int = 50) -> Outputs:
    """`count` rows grouped by label, the end mark, and zeros that look like image 0."""
    rng = np.random.default_rng(seed)
    table = np.zeros((total, 7), np.float32)
    table[:count, 1] = np.sort(rng.integers(1, 91, count))
    table[:count, 2] = rng.permutation(np.linspace(0.02, 0.98, count))
    table[:count, 3:] = frames.boxes_of(rng, count)
    table[count : count + 1, 0] = -1
    masks = rng.uniform(0, 0.2, (total, 90, side, side)).astype(np.float32)
    masks[np.arange(count), table[:count, 1].astype(int) - 1] = frames.blobs(rng, count, side)
    return {"reshape_do_2d": table, "masks": masks}


def scale_xy(size_hw: tuple[int, int], net_hw: tuple[int, int] = NET_HW) -> tuple[float, float]:
    """Normalised box -> source pixels, from the resize that the image went through."""
    scale = min(net_hw[0] / size_hw[0], net_hw[1] / size_hw[1])
    height, width = max(1, int(scale * size_hw[0])), max(1, int(scale * size_hw[1]))
    return net_hw[1] * size_hw[1] / width, net_hw[0] * size_hw[0] / height


def assert_as_oracle(outputs: Outputs, size_hw: tuple[int, int]) -> None:
    table = outputs["reshape_do_2d"]
    count = int(np.argmax(table[:, 0] == -1))
    order = np.argsort(-table[:count, 2], kind="stable")
    found = decode(outputs, size_hw)
    assert found.class_ids.tolist() == table[order, 1].tolist()
    assert found.scores.tolist() == table[order, 2].tolist()
    boxes = table[order, 3:].astype(np.float64) * (scale_xy(size_hw) * 2)
    np.testing.assert_allclose(found.boxes_xyxy, boxes.clip(0, size_hw[::-1] * 2), atol=1e-3)
    own = [outputs["masks"][row, int(table[row, 1]) - 1] for row in order]
    frames.assert_same_masks(found, [frames.tiled(m, box, size_hw) for m, box in zip(own, boxes, strict=True)])


@pytest.mark.parametrize("side", [15, 33])
@pytest.mark.parametrize("size_hw", [*frames.SIZES_HW, (5000, 2)])
def test_decode_is_the_whole_frame_path(size_hw: tuple[int, int], side: int) -> None:
    for seed in (1, 2):
        assert_as_oracle(made(seed, side), size_hw)


@pytest.mark.thorough
def test_decode_is_the_whole_frame_path_at_twelve_megapixels() -> None:
    assert_as_oracle(made(3), frames.TWELVE_MEGAPIXELS)


@pytest.mark.parametrize("size", ["640x427", "427x640"])
@pytest.mark.parametrize("side", [15, 33])
def test_decode_gives_what_the_reference_gives(side: int, size: str) -> None:
    outputs = raw_outputs.draw(7)[f"mask_rcnn_reshape_{side}"]
    width, height = map(int, size.split("x"))
    for name in NAMES:
        found = segray.decode(name, outputs, (height, width))
        frames.assert_as_golden(found, f"mask_rcnn_reshape_{side}_{size}")


@pytest.mark.integration
@pytest.mark.parametrize(
    ("seed", "size_hw"),
    [(8, (427, 640)), (9, (17, 31)), pytest.param(10, frames.TWELVE_MEGAPIXELS, marks=pytest.mark.chaos)],
)
@pytest.mark.parametrize("side", [15, 33])
def test_other_seeds_and_sizes(seed: int, size_hw: tuple[int, int], side: int) -> None:
    assert_as_oracle(raw_outputs.draw(seed)[f"mask_rcnn_reshape_{side}"], size_hw)


# ---- the adapter, case by case --------------------------------------------------------------------


def test_the_list_ends_at_the_first_mark() -> None:
    outputs = made(4, count=5)
    outputs["reshape_do_2d"][7, 1:3] = 1, 0.9  # After the mark, and with an image_id of 0.
    assert len(decode(outputs, (50, 60))) == 5
    outputs["reshape_do_2d"][0, 0] = -1
    assert len(decode(outputs, (50, 60))) == 0
    full = made(4, count=50)
    assert len(decode(full, (50, 60))) == 50


def test_best_first_although_the_rows_are_grouped_by_label() -> None:
    scores = decode(made(5), (50, 60)).scores
    assert (np.diff(scores) < 0).all()


def test_the_mask_is_the_channel_before_the_label() -> None:
    outputs = made(6, count=1)
    outputs["reshape_do_2d"][0] = [0, 44, 0.9, 0.1, 0.1, 0.4, 0.4]
    outputs["masks"][...] = 0
    assert rle.area(decode(outputs, (80, 60)).rles).tolist() == [0]
    outputs["masks"][0, 43] = 1
    assert rle.area(decode(outputs, (80, 60)).rles)[0] > 0


@pytest.mark.parametrize("label", [0, -3, 91, 1000])
def test_a_label_without_a_channel_has_an_empty_mask(label: int) -> None:
    outputs = made(7, count=1)
    outputs["reshape_do_2d"][0, 1] = label
    outputs["masks"][...] = 1
    found = decode(outputs, (80, 60))
    assert found.class_ids.tolist() == [label]
    assert rle.area(found.rles).tolist() == [0]


def test_boxes_of_a_padded_portrait_image() -> None:
    # 400 x 200 is fed as 800 x 400 in 800 x 1365: the right edge of the image is at 400 / 1365.
    outputs = made(8, count=1)
    outputs["reshape_do_2d"][0, 3:] = [100 / 1365, 0.25, 400 / 1365, 2]
    np.testing.assert_allclose(decode(outputs, (400, 200)).boxes_xyxy, [[50, 100, 200, 400]], rtol=1e-5)


def test_the_networks_size_may_be_another() -> None:
    outputs = made(9)
    adapter = ADAPTERS[NAMES[0]].with_size("converted", (320, 320))
    found = adapter.decode(outputs, (100, 200), Options())
    order = np.argsort(-outputs["reshape_do_2d"][:40, 2])
    boxes = outputs["reshape_do_2d"][order, 3:] * (scale_xy((100, 200), (320, 320)) * 2)
    np.testing.assert_allclose(found.boxes_xyxy, boxes.clip(0, [200, 100] * 2), atol=1e-3)


def test_names_may_end_in_zero() -> None:
    outputs = made(10)
    renamed = {f"{name}:0": array for name, array in outputs.items()}
    assert decode(renamed, (50, 60)).rles == decode(outputs, (50, 60)).rles


@pytest.mark.parametrize(
    ("name", "shape"),
    [("reshape_do_2d", (50, 6)), ("reshape_do_2d", (49, 7)), ("masks", (50, 91, 15, 15)), ("masks", (50, 90, 15, 14))],
)
def test_other_shapes_are_another_model(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"other shapes[\s\S]*masks \[n, 90, m, m\]"):
        decode(made(11) | {name: np.zeros(shape, np.float32)}, (50, 60))


def test_half_of_the_outputs_is_told() -> None:
    outputs = made(12)
    del outputs["reshape_do_2d"]
    with pytest.raises(ModelError, match=r"reshape_do_2d are missing"):
        decode(outputs, (50, 60))


def test_own_classes_are_counted_against_the_channels() -> None:
    outputs = made(13, count=2)
    outputs["reshape_do_2d"][:2, 1] = 1, 3
    adapter = ADAPTERS[NAMES[0]].with_labels({3: "nut", 1: "bolt", 2: "washer"})
    found = adapter.decode(outputs | {"masks": outputs["masks"][:, :3]}, (50, 60), Options())
    assert sorted(found.class_ids.tolist()) == [1, 3]
    with pytest.raises(ModelError, match=r"masks \[50, 90, 15, 15\][\s\S]*masks \[n, 3, m, m\]"):
        adapter.decode(outputs, (50, 60), Options())


@pytest.mark.parametrize(
    ("size_hw", "fed_hw"), [((400, 200), (800, 400)), ((427, 640), (800, 1199)), ((5000, 2), (800, 1))]
)
def test_prepare_fits_and_pads(size_hw: tuple[int, int], fed_hw: tuple[int, int]) -> None:
    adapter = ADAPTERS[NAMES[1]]
    picture = np.random.default_rng(0).integers(1, 256, (*size_hw, 3), dtype=np.uint8)
    fed = adapter.prepare(adapter.forms["converted"], picture)
    assert fed["image_info"].tolist() == [[800, 1365, 1]]
    assert fed["image_info"].dtype == np.float32
    window = fed["image_tensor"]
    assert (window.shape, window.dtype) == ((1, 800, 1365, 3), np.uint8)
    height, width = fed_hw
    assert (window[0, :height, :width] == cv2.resize(picture, (width, height))).all()
    assert not window[0, height:].any()
    assert not window[0, :, width:].any()


# ---- through the runtime --------------------------------------------------------------------------


def network(folder: Path, shape: tuple[int, ...], dtype: Any) -> Path:
    """An IR with the converted form's ports: one row whose score and box are what reached it.

    Score: the brightest of the blue channel over 255 if image_info is right, else 0. Box: the left half of the input.
    """
    image = op.parameter(list(shape), dtype, name="image")
    info = op.parameter([1, 3], np.float32, name="info")
    nhwc = shape[3] == 3
    size_hw = shape[1:3] if nhwc else shape[2:]
    colours = op.reduce_max(op.convert(image, np.float32), np.array([0, 1, 2] if nhwc else [0, 2, 3]))
    blue = op.gather(colours, np.array([0]), np.array(0))
    right = op.reduce_logical_and(op.equal(info, np.array([[*size_hw, 1]], np.float32)), np.array([0, 1]))
    score = op.divide(op.multiply(blue, op.convert(right, np.float32)), np.float32(255))
    row = op.concat([np.array([0, 1], np.float32), score, np.array([0, 0, 0.5, 1], np.float32)], 0)
    table = op.concat([op.reshape(row, [1, 7], False), np.array([[-1] + [0] * 6], np.float32)], 0)
    masks = op.broadcast(op.reduce_max(score, np.array([0])), np.array([2, 90, 15, 15]))
    for node, name in ((image, "image_tensor:0"), (info, "image_info:0"), (table, "reshape_do_2d:0"), (masks, "masks")):
        node.output(0).tensor.set_names({name})
    xml = folder / "model.xml"
    ov.save_model(ov.Model([op.result(masks), op.result(table)], [info, image], "m"), xml, compress_to_fp16=False)
    return xml


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shape", [(1, 40, 60, 3), (1, 3, 40, 60), (1, 800, 1365, 3)])
def test_the_converted_form_runs_at_the_size_and_in_the_layout_of_its_file(
    tmp_path: Path, shape: tuple[int, ...], dtype: Any
) -> None:
    model = resolve.resolve(NAMES[0], str(network(tmp_path, shape, dtype)))
    assert model.form.name == "converted"
    engine = runtime.compile(model.path, model.form, runtime.DeviceSettings(threads=1, precision="f32"))
    net_hw = tuple(sorted(set(shape) - {1, 3}))
    assert engine.size_hw == net_hw
    adapter = model.adapter.with_size(model.form.name, engine.size_hw)
    # As wide as the input, so that nothing but blue reaches the network.
    picture = np.zeros((net_hw[0] * 2, net_hw[1] * 2, 3), np.uint8)
    picture[..., 2] = 204
    with engine.infer(adapter.prepare(adapter.forms["converted"], picture)) as outputs:
        found = adapter.decode(outputs, (net_hw[0] * 2, net_hw[1] * 2), Options())
    assert found.scores.tolist() == pytest.approx([0.8])
    np.testing.assert_allclose(found.boxes_xyxy, [[0, 0, net_hw[1], net_hw[0] * 2]])
