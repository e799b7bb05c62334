"""Families that are decoded by their published layout: exports of mmdeploy, YOLOv5-seg, Detectron2's traced models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import layouts
import model_heads
import numpy as np
import pytest
import yaml
import yolo_network
from test_decoders import labelled

from segray import config, rle
from segray.cli.models import describe_inspection
from segray.conversion import inspect_model
from segray.errors import ModelError
from segray.instances import Instances
from segray.models import engine, resolve
from segray.models.adapters.adapter import Options
from segray.models.coco_labels import COCO_NAMES
from segray.models.describe import card, describe
from segray.models.description import Description
from segray.models.registry import FAMILIES

NAMES = {1: "red thing", 2: "bird"}
SIZES = [(48, 80), (67, 31), (96, 64)]
# A value so near the threshold may fall on either side, by the order of float32's operations.
NEAR = 1e-4


def settings(path: Path, **model: Any) -> config.ModelSettings:
    values = {"source": {"uri": "a"}, "output": {"root": "b"}, "model": {"path": str(path), "labels": NAMES, **model}}
    return config.validate(values, "test").model


def adapter(family: str, kind: str, outputs: tuple[str, ...], **facts: Any) -> Any:
    positions = {name: position for position, name in enumerate(outputs)}
    given = {**card._PREPARATION[family], "size_hw": (64, 96), "labels": NAMES, **facts}
    return FAMILIES[family](Description(family, family, kind, "x", positions, **given))


def masks_agree(instances: Instances, values: np.ndarray, threshold: float = 0.5) -> None:
    """The masks are `values > threshold`, but where a value lies at the threshold."""
    assert len(instances) == len(values)
    for counts, value in zip(instances.rles, values, strict=True):
        wrong = rle.decode(counts, instances.size_hw) != (value > threshold)
        assert not (wrong & (np.abs(value - threshold) > NEAR)).any()
    assert (values > threshold).any()


# ---- networks that run ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["boxes", "planes", "pasted"])
def test_a_model_of_mmdeploy_finds_the_red_thing(tmp_path: Path, kind: str) -> None:
    path = layouts.mmdeploy(tmp_path / "end2end.xml", kind, colour="BGR" if kind == "planes" else "RGB")
    finds_red(path, "mmdeploy", kind)


def test_a_yolov5_finds_the_red_thing(tmp_path: Path) -> None:
    finds_red(layouts.yolov5(tmp_path / "yolov5s-seg.xml"), "yolov5_seg", "raw")


@pytest.mark.parametrize("size_hw", [None, (64, 96)])
def test_a_traced_model_of_detectron2_finds_the_red_thing(tmp_path: Path, size_hw: tuple[int, int] | None) -> None:
    finds_red(layouts.detectron2(tmp_path / "model.xml", size_hw), "detectron2", "traced")


def finds_red(path: Path, family: str, kind: str) -> None:
    chosen, picture = settings(path), yolo_network.red_rectangle()
    model = resolve.configured(chosen)
    assert model.description is not None
    assert (model.name, model.description.kind, model.description.missing) == (family, kind, ("labels",))
    assert "by layout" in model.description.what
    instances = labelled(model, picture, chosen)
    assert instances.class_ids.tolist() == [1]
    assert instances.scores.tolist() == [layouts.SCORE]
    mask = rle.decode(instances.rles[0], instances.size_hw)
    assert (mask != (picture[..., 0] == 255)).mean() < 0.06


# ---- parity with numpy ----------------------------------------------------------------------------


@pytest.mark.parametrize("resize", ["corner", "stretch"])
@pytest.mark.parametrize("size_hw", SIZES)
def test_masks_of_mmdeploys_boxes_are_sampled(size_hw: tuple[int, int], resize: str) -> None:
    rng, scale_xy = np.random.default_rng(3), content_scale_xy(size_hw, resize)
    boxes, masks = layouts.boxes_in(rng, 12, (64, 96)), layouts.smooth(rng, 12, (28, 28))
    scores = np.sort(rng.uniform(0.1, 1, 12).astype(np.float32))[::-1]
    outputs = {
        "dets": np.concatenate([boxes, scores[:, None]], axis=1)[None],
        "labels": (np.arange(12) % 2)[None],
        "masks": masks[None],
    }
    found = adapter("mmdeploy", "boxes", tuple(outputs), resize=resize).decode(outputs, size_hw, Options(0.05))
    in_image = boxes / np.array(scale_xy * 2)
    assert found.class_ids.tolist() == [1, 2] * 6
    np.testing.assert_array_equal(found.scores, scores)
    np.testing.assert_allclose(found.boxes_xyxy, in_image.clip(0, size_hw[::-1] * 2), atol=1e-4)
    masks_agree(found, np.array([layouts.sampled(m, b, size_hw) for m, b in zip(masks, in_image, strict=True)]))


@pytest.mark.parametrize("size_hw", SIZES)
def test_masks_of_rtmdet_cover_the_content_of_the_window(size_hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(5)
    planes = layouts.smooth(rng, 4, (64, 96))
    outputs = {
        "dets": np.concatenate([layouts.boxes_in(rng, 4, (64, 96)), np.full((4, 1), 0.5)], axis=1, dtype=np.float32),
        "labels": np.zeros(4, np.int64),
        "masks": planes,
    }
    found = adapter("mmdeploy", "planes", tuple(outputs)).decode(outputs, size_hw, Options(0.05))
    height, width = (int(s * min(64 / size_hw[0], 96 / size_hw[1]) + 0.5) for s in size_hw)
    masks_agree(found, np.array([layouts.bilinear(plane[:height, :width], size_hw) for plane in planes]))


@pytest.mark.parametrize("size_hw", SIZES)
def test_masks_that_the_network_pasted_are_resized_to_the_nearest_pixel(size_hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(7)
    masks = layouts.smooth(rng, 3, (64, 96)) > 0.5
    outputs = {
        "dets": np.array([[[0, 0, 96, 64, 0.5]] * 3], np.float32),
        "labels": np.zeros((1, 3)),
        "masks": masks[None],
    }
    found = adapter("mmdeploy", "pasted", tuple(outputs), resize="stretch").decode(outputs, size_hw, Options(0.05))
    masks_agree(found, np.array([layouts.nearest(mask, size_hw) for mask in masks], float))


def content_scale_xy(size_hw: tuple[int, int], resize: str) -> list[float]:
    if resize == "stretch":
        return [96 / size_hw[1], 64 / size_hw[0]]
    scale = min(64 / size_hw[0], 96 / size_hw[1])
    return [int(size_hw[1] * scale + 0.5) / size_hw[1], int(size_hw[0] * scale + 0.5) / size_hw[0]]


@pytest.mark.parametrize("size_hw", SIZES)
def test_a_yolov5_is_decoded_as_numpy_decodes_it(size_hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(11)
    table = np.zeros((1, layouts.anchors((64, 96)), 5 + 2 + 8), np.float32)
    many = rng.choice(table.shape[1], 60, replace=False)
    centres = rng.uniform((0, 0), (96, 64), (20, 2))[rng.integers(0, 20, 60)] + rng.normal(0, 1, (60, 2))
    table[0, many, :2], table[0, many, 2:4] = centres, rng.uniform(8, 40, (60, 2))
    table[0, many, 4:7] = rng.uniform(0.3, 1, (60, 3))
    table[0, many, 7:] = rng.normal(0, 1, (60, 8))
    outputs = {"output0": table, "output1": layouts.smooth(rng, 8, (16, 24))[None] - np.float32(0.5)}
    model = adapter("yolov5_seg", "raw", tuple(outputs), resize="letterbox")
    defaults = model.defaults
    assert (defaults.score_threshold, defaults.nms_iou, defaults.max_detections) == (0.25, 0.45, 1000)
    found = model.decode(outputs, size_hw, Options(0.25, 1000, nms_iou=0.45))
    labels, scores, boxes, values = layouts.yolov5_rows(outputs, size_hw, (64, 96))
    assert 5 < len(labels) < 60
    assert found.class_ids.tolist() == (labels + 1).tolist()
    np.testing.assert_allclose(found.scores, scores, rtol=1e-6)
    np.testing.assert_array_equal(found.boxes_xyxy, boxes)
    masks_agree(found, values)
    across = model.decode(outputs, size_hw, Options(0.25, 1000, nms="cross_class", nms_iou=0.45))
    assert len(across) < len(found)
    assert len(model.decode(outputs, size_hw, Options(0.25, 3, nms_iou=0.45))) == 3
    table[0, many[0], 9] = np.nan
    assert model.decode(outputs, size_hw, Options(0.25, 1000, nms_iou=0.45)).unreadable == 1


@pytest.mark.parametrize("size_hw", SIZES)
def test_masks_of_detectron2_are_sampled_in_the_clipped_box(size_hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(13)
    boxes, masks = layouts.boxes_in(rng, 9, (64, 96)), layouts.smooth(rng, 9, (28, 28))
    boxes[4] = (120, 5, 140, 20)  # Beyond the image, so that no area remains.
    outputs = {
        "pred_boxes": boxes,
        "pred_classes": np.arange(9) % 2,
        "pred_masks": masks[:, None],
        "scores": np.linspace(0.9, 0.1, 9, dtype=np.float32),
    }
    found = adapter("detectron2", "traced", tuple(outputs)).decode(outputs, size_hw, Options(0.05))
    in_image = (boxes * np.array([size_hw[1] / 96, size_hw[0] / 64] * 2)).clip(0, size_hw[::-1] * 2)
    kept = np.arange(9) != 4
    np.testing.assert_allclose(found.boxes_xyxy, in_image[kept], atol=1e-4)
    assert found.class_ids.tolist() == (np.arange(9) % 2 + 1)[kept].tolist()
    values = [layouts.sampled(m, b, size_hw) for m, b in zip(masks[kept], in_image[kept], strict=True)]
    masks_agree(found, np.array(values))


def test_detectron2_scales_the_short_side_to_800_pixels() -> None:
    model = adapter("detectron2", "traced", ("a", "b", "c", "d"), size_hw=None)
    for size_hw, expected in (((480, 640), (800, 1067)), ((500, 1500), (444, 1333)), ((1600, 800), (1333, 667))):
        assert model._window_hw(size_hw) == expected


def test_a_mask_rcnn_of_mmdeploy_without_a_size_pads_with_the_mean() -> None:
    model = adapter("mmdeploy", "boxes", ("dets", "labels", "masks"), size_hw=None)
    (image,) = model.prepare(model.forms["exported"], np.zeros((500, 1500, 3), np.uint8)).values()
    assert image.shape == (1, 448, 1344, 3)
    assert image[0, -1, -1].tolist() == [124, 116, 104]
    assert not image[0, :444, :1333].any()


# ---- descriptions ---------------------------------------------------------------------------------

_IMAGE = [("input", (1, 3, 64, 96))]
_DETS, _LABELS = ("dets", (1, None, 5)), ("labels", (1, None))


@pytest.mark.parametrize(
    ("outputs", "types", "kind", "colour"),
    [
        ([_DETS, _LABELS, ("masks", (1, None, 28, 28))], {}, "boxes", "RGB"),
        ([_DETS, _LABELS, ("masks", (1, None, 64, 96))], {"masks": "boolean"}, "pasted", "RGB"),
        ([_DETS, _LABELS, ("masks", (1, None, 64, 96))], {}, "planes", "BGR"),
        ([_LABELS, ("masks", (1, None, None, None)), _DETS], {}, "planes", "BGR"),
        ([_DETS, _LABELS, ("masks", (1, None, 16, 24))], {}, None, None),
        ([("dets", (1, 9, 4)), _LABELS, ("masks", (1, 9, 28, 28))], {}, None, None),
    ],
)  # fmt: skip
def test_exports_of_mmdeploy_are_told_by_their_masks(
    tmp_path: Path, outputs: list[model_heads.Port], types: dict[str, str], kind: str | None, colour: str | None
) -> None:
    signature = model_heads.ports(_IMAGE, outputs, {"labels": "i64", **types})
    description = describe(model_heads.ir(tmp_path), signature)
    assert (description and (description.family, description.kind, description.colour)) == (
        kind and ("mmdeploy", kind, colour)
    )


@pytest.mark.parametrize("classes", [1, 2, 80])
def test_a_yolov5_is_told_by_its_anchors(tmp_path: Path, classes: int) -> None:
    """With one class its rows have as many columns as those that a YOLO-seg has selected."""
    rows = ("output0", (1, layouts.anchors((64, 96)), 5 + classes + 32))
    signature = model_heads.ports(_IMAGE, [rows, ("output1", (1, 32, 16, 24))])
    description = describe(model_heads.ir(tmp_path), signature)
    assert description is not None
    assert (description.family, description.extra["classes"]) == ("yolov5_seg", classes)


def test_rows_that_a_yolo_has_selected_are_no_anchors(tmp_path: Path) -> None:
    signature = model_heads.ports(_IMAGE, [("output0", (1, 300, 38)), ("output1", (1, 32, 16, 24))])
    description = describe(model_heads.ir(tmp_path), signature)
    assert description is not None
    assert (description.family, description.kind) == ("yolo_seg", "selected")


def test_a_yolov5_has_its_names_beside_it_or_in_its_properties(tmp_path: Path) -> None:
    rows = ("output0", (1, layouts.anchors((64, 96)), 5 + 2 + 32))
    signature = model_heads.ports(_IMAGE, [rows, ("output1", (1, 32, 16, 24))])
    xml = model_heads.ir(tmp_path)
    xml.with_suffix(".yaml").write_text(yaml.safe_dump({"stride": 32, "names": {0: "bolt", 1: "nut"}}))
    described = describe(xml, signature)
    assert described is not None
    assert (described.labels, described.missing) == ({1: "bolt", 2: "nut"}, ())
    xml.with_suffix(".yaml").write_text(yaml.safe_dump({"stride": 32, "names": ["bolt"]}))
    described = describe(xml, signature)
    assert described is not None
    assert described.missing == ("labels",)
    assert "1 classes" in described.notes[0]
    props = {"stride": "32", "names": str(dict(enumerate(COCO_NAMES.values())))}
    dynamic = model_heads.ports(
        [("images", (None, 3, None, None))], [("output0", (None, None, 117)), ("output1", (None, 32, None, None))]
    )
    described = describe(model_heads.onnx(tmp_path, props), dynamic)
    assert described is not None
    assert (described.family, described.labels, described.size_hw) == ("yolov5_seg", COCO_NAMES, (640, 640))


@pytest.mark.parametrize(
    ("change", "family"),
    [
        (None, "detectron2"),
        (("classes", (None,), "f32"), None),
        (("masks", (None, 80, 28, 28), "f32"), None),
        (("size", (None, None), "i64"), None),
    ],
)
def test_a_traced_model_of_detectron2_is_told_by_the_order_of_its_outputs(
    tmp_path: Path, change: tuple[str, tuple[int | None, ...], str] | None, family: str | None
) -> None:
    ports: dict[str, tuple[tuple[int | None, ...], str]] = {
        "boxes": ((None, 4), "f32"), "classes": ((None,), "i64"), "masks": ((None, 1, 28, 28), "f32"),
        "scores": ((None,), "f32"), "size": ((2,), "i64"),
    }  # fmt: skip
    if change is not None:
        ports[change[0]] = change[1:]
    outputs = tuple(engine.ModelPort((str(i),), kind, shape) for i, (shape, kind) in enumerate(ports.values()))
    signature = engine.Signature((engine.ModelPort(("x",), "f32", (3, None, None)),), outputs)
    description = describe(model_heads.ir(tmp_path), signature)
    assert (description and description.family) == family


def test_inspection_says_that_the_image_decides_its_size(tmp_path: Path) -> None:
    text = describe_inspection(inspect_model.inspect(layouts.detectron2(tmp_path / "model.xml")))
    assert "the short side to 800 pixels, the long side to 1333 at most" in text


# ---- what bad input gets --------------------------------------------------------------------------


def test_other_shapes_are_refused_with_what_is_expected() -> None:
    outputs = {"dets": np.zeros((1, 2, 5), np.float32), "labels": np.zeros((1, 2)), "masks": np.zeros((1, 3, 28, 28))}
    with pytest.raises(ModelError, match="other shapes"):
        adapter("mmdeploy", "boxes", tuple(outputs)).decode(outputs, (9, 9), Options())
    rows = {"output0": np.zeros((1, 9, 40), np.float32), "output1": np.zeros((1, 32, 4, 4), np.float32)}
    with pytest.raises(ModelError) as refused:
        adapter("yolov5_seg", "raw", tuple(rows)).decode(rows, (9, 9), Options())
    assert "Name 3 classes" in refused.value.hint


def test_values_that_are_no_numbers_are_dropped_and_counted() -> None:
    dets = np.tile(np.array([1, 1, 9, 9, 0.5], np.float32), (5, 1))
    dets[0, 0], dets[1, 4], dets[2, 4] = np.nan, np.inf, 0
    masks = np.ones((5, 28, 28), np.float32)
    masks[3, 4, 4] = np.nan
    outputs = {"dets": dets, "labels": np.zeros(5, np.int64), "masks": masks}
    found = adapter("mmdeploy", "boxes", tuple(outputs)).decode(outputs, (64, 96), Options(0.05))
    assert (len(found), found.unreadable) == (1, 3)
