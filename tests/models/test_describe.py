"""describe: what exported model files say of themselves."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import model_heads
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from model_heads import COCO, GETI_INFO, YOLO_INFO
from properties import tried
from reference_today import DESCRIPTIONS, REAL

from segray.config import ModelSettings
from segray.errors import ConfigError, ModelError, UserError
from segray.models import engine, resolve
from segray.models.adapters import yolo_seg
from segray.models.coco_labels import COCO_NAMES
from segray.models.describe import describe, model_file
from segray.models.description import Description
from segray.models.engine import ModelPort, Signature

GETI_LABELS = {1: "box", 2: "disc of tin", 3: "rod"}


def of_yolo(folder: Path, signature: Signature | None = None, **changes: Any) -> Description:
    """The description of an Ultralytics IR."""
    xml = model_heads.ir(folder, YOLO_INFO, metadata=model_heads.yolo_metadata(**changes))
    return described(xml, signature or model_heads.yolo())


def of_geti(folder: Path, signature: Signature | None = None, **changes: str | None) -> Description:
    """The description of a Geti IR; None removes a key of its model_info."""
    info = {key: value for key, value in {**GETI_INFO, **changes}.items() if value is not None}
    return described(model_heads.ir(folder, info), signature or model_heads.geti())


def described(path: Path, signature: Signature) -> Description:
    description = describe(path, signature)
    assert description is not None
    check_sources(description)
    return description


def check_sources(description: Description) -> None:
    """Each fact names its source, and each value is one that JSON has."""
    unsourced = {"thresholds", "extra", "versions", "sources", "missing", "notes"}
    facts = (
        {field.name for field in fields(description)} - unsourced - ({"stride"} if not description.stride else set())
    )
    assert (facts | description.thresholds.keys() | description.extra.keys()) <= description.sources.keys()
    json.dumps([dict(description.extra), dict(description.thresholds)])


# ---- Ultralytics ----------------------------------------------------------------------------------


def test_an_ultralytics_export_describes_itself(tmp_path: Path) -> None:
    description = of_yolo(tmp_path, model_heads.yolo((256, 416)), imgsz=[256, 416])
    assert (description.family, description.kind, description.what) == (
        "yolo_seg",
        "raw",
        "YOLO11n-seg by Ultralytics 8.4.190",
    )
    assert (description.size_hw, description.stride, description.input_name) == ((256, 416), 32, "x.1")
    assert (description.resize, description.pad_value, description.rounding) == ("letterbox", 114, "opencv")
    assert (description.colour, description.mean, description.scale) == ("RGB", None, (255, 255, 255))
    assert description.labels == {1: "cat", 2: "big dog", 3: "bird"}
    assert description.outputs == {"output0": 0, "output1": 1}
    assert description.extra["window_hw"] == [256, 416]
    assert description.sources["labels"] == "metadata.yaml"
    assert (description.thresholds, description.sources["nms_iou"]) == ({"nms_iou": 0.7}, "rt_info")
    assert description.versions == {"ultralytics": "8.4.190", "openvino": "2026.4.1-1"}
    assert (description.missing, description.notes) == ((), ())


def test_an_onnx_export_says_the_same(tmp_path: Path) -> None:
    props = model_heads.as_properties(model_heads.yolo_metadata())
    by_ir = of_yolo(tmp_path)
    by_onnx = described(model_heads.onnx(tmp_path, props), model_heads.yolo())
    assert by_onnx.sources["labels"] == "metadata_props"
    for name in ("family", "kind", "what", "labels", "size_hw", "stride", "scale", "extra"):
        assert getattr(by_onnx, name) == getattr(by_ir, name)


def test_an_ir_that_openvino_made_of_an_onnx_export_says_the_same(tmp_path: Path) -> None:
    props = model_heads.as_properties(model_heads.yolo_metadata())
    xml = model_heads.ir(tmp_path, tail=model_heads.rt_info({"framework": props}) + "</net>")
    description = described(xml, model_heads.yolo())
    assert (description.labels[2], description.sources["labels"]) == ("big dog", "rt_info, framework")


def test_outputs_are_found_in_any_order(tmp_path: Path) -> None:
    signature = model_heads.yolo()
    turned = Signature(signature.inputs, signature.outputs[::-1])
    assert of_yolo(tmp_path, turned).outputs == {"output0": 1, "output1": 0}


@pytest.mark.parametrize(
    ("changes", "limits"),
    [
        ({"end2end": True}, {"max_detections": 300}),
        ({"args": {"nms": True}}, {"max_detections": 300}),
        (
            {"args": {"nms": True, "conf": 0.4, "iou": 0.6, "max_det": 300}},
            {"max_detections": 300, "score_threshold": 0.4, "nms_iou": 0.6},
        ),
    ],
)
def test_rows_that_the_graph_selects_are_told(
    tmp_path: Path, changes: dict[str, Any], limits: Mapping[str, float]
) -> None:
    description = of_yolo(tmp_path, model_heads.yolo_selected(), **changes)
    assert (description.kind, description.thresholds, description.extra["in_graph"]) == ("selected", {}, limits)
    assert description.extra["end2end"] == ("end2end" in changes)
    assert bool(description.notes) == ("args" in changes)


def test_a_dynamic_export_takes_any_size(tmp_path: Path) -> None:
    description = of_yolo(tmp_path, model_heads.yolo((None, None), batch=None))
    assert (description.size_hw, description.extra["window_hw"], description.missing) == (None, [320, 320], ())


def test_a_size_that_is_fixed_in_part_is_completed_by_imgsz(tmp_path: Path) -> None:
    assert of_yolo(tmp_path, model_heads.yolo((None, 320)), imgsz=320).size_hw == (320, 320)
    assert of_yolo(tmp_path, model_heads.yolo((None, 320)), imgsz=None).missing == ("size",)


def test_an_export_for_several_images_says_so(tmp_path: Path) -> None:
    assert "4 images at a time" in of_yolo(tmp_path, model_heads.yolo(batch=4)).notes[0]


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["cat", "dog", "cow"], {1: "cat", 2: "dog", 3: "cow"}),
        ({0: 0, 1: 1.5, 2: True}, {1: "0", 2: "1.5", 3: "True"}),
        ({"0": "a", "2": "c", "1": "b"}, {1: "a", 2: "b", 3: "c"}),
        ({0: "größe", 1: "007", 2: "no"}, {1: "größe", 2: "007", 3: "no"}),
    ],
)
def test_class_names_have_many_forms(tmp_path: Path, names: object, labels: Mapping[int, str]) -> None:
    assert of_yolo(tmp_path, names=names).labels == labels


def test_coco_names_get_coco_ids(tmp_path: Path) -> None:
    signature = model_heads.yolo(classes=80)
    assert of_yolo(tmp_path, signature, names=dict(enumerate(COCO))).labels == COCO_NAMES
    other_order = dict(enumerate(COCO[1:] + COCO[:1]))
    assert list(of_yolo(tmp_path, signature, names=other_order).labels) == list(range(1, 81))


def test_names_of_rt_info_count_only_where_nothing_else_names_the_classes(tmp_path: Path) -> None:
    description = described(model_heads.ir(tmp_path, YOLO_INFO), model_heads.yolo())
    assert description.labels == {1: "cat", 2: "big_dog", 3: "bird"}
    assert (description.sources["labels"], description.sources["family"]) == ("rt_info", "rt_info")
    tokens = " ".join(name.replace(" ", "_") for name in COCO)
    coco = described(model_heads.ir(tmp_path, {**YOLO_INFO, "labels": tokens}), model_heads.yolo(classes=80))
    assert coco.labels == COCO_NAMES


def test_names_that_nothing_states_are_missing(tmp_path: Path) -> None:
    description = described(model_heads.ir(tmp_path, {"model_type": "YOLOv8"}), model_heads.yolo(classes=7))
    assert (description.missing, description.labels, description.extra["classes"]) == (("labels",), {}, 7)


@pytest.mark.parametrize("names", [{0: "a", 1: "a", 2: "b"}, {0: "a", 1: "", 2: "b"}])
def test_names_that_a_label_set_cannot_hold_must_be_given(tmp_path: Path, names: Mapping[int, str]) -> None:
    description = of_yolo(tmp_path, names=names)
    assert (description.missing, description.labels) == (("labels",), {})
    assert "model.labels" in description.notes[0]
    chosen = ModelSettings(path="a.xml")
    with pytest.raises(ConfigError, match=r"found: (Two classes have the name 'a'|The class name '' is empty)"):
        resolve.configured(chosen, description)


@pytest.mark.parametrize(
    ("changes", "signature", "message"),
    [
        ({"task": "detect"}, model_heads.ports([("x", (1, 3, 320, 320))], [("", (1, 7, 2100))]), "no masks"),
        ({"task": None}, model_heads.ports([("x", (1, 3, 320, 320))], [("", (1, 7, 2100))]), "no masks"),
        ({"task": "classify"}, model_heads.ports([("x", (1, 3, 320, 320))], [("", (1, 7))]), "task classify"),
        ({"task": "pose"}, model_heads.ports([("x", (1, 3, 320, 320))], [("", (1, 56, 2100))]), "task pose"),
        ({"task": "detect"}, model_heads.yolo(), "belongs to another network"),
        ({"task": "obb"}, model_heads.ports([("x", (1, 3, 320, 320))], [("", (1, 20, 2100))]), "task obb"),
        ({"names": {0: "cat"}}, model_heads.yolo(), r"another network[\s\S]*1 names, the file has 3 classes"),
        ({"imgsz": [640, 640]}, model_heads.yolo(), r"another network[\s\S]*imgsz \[640, 640\]"),
        ({"channels": 4}, model_heads.yolo(), "images of 4 channels"),
        ({}, model_heads.yolo(channels=1), "images of 1 channels"),
        ({}, model_heads.ports([("x", (1, 3, 320, 320))], [("", (1, 39, 2100)), ("", (1, 32))]), "not those of a YOLO"),
        ({}, model_heads.ports([], []), "one image input"),
        ({"names": {0: "a", 2: "b", 3: "c"}}, model_heads.yolo(), "classes 0 to n"),
        ({"names": "cat"}, model_heads.yolo(), "no Python literal"),
        ({"imgsz": [1, 2, 3]}, model_heads.yolo(), "no pair of numbers"),
        ({"stride": -1}, model_heads.yolo(), "no number from 1"),
    ],
)
def test_an_unusable_export_says_what_was_seen_and_what_to_do(
    tmp_path: Path, changes: dict[str, Any], signature: Signature, message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        of_yolo(tmp_path, signature, **changes)
    assert caught.value.exit_code == 2
    assert caught.value.where
    assert caught.value.found
    assert caught.value.hint


def test_a_detection_export_names_the_command_for_masks(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="-seg model: yolo export"):
        of_yolo(tmp_path, model_heads.ports([("x", (1, 3, 320, 320))], [("", (1, 84, 2100))]), task="detect")


def test_ports_of_yolo_are_enough_where_metadata_were_lost(tmp_path: Path) -> None:
    xml = model_heads.ir(tmp_path)
    description = described(xml, model_heads.yolo((96, 160), classes=2))
    assert (description.family, description.sources["family"], description.missing) == (
        "yolo_seg",
        "ports",
        ("labels",),
    )
    signature = model_heads.yolo()
    other_anchors = model_heads.ports([("x", (1, 3, 320, 320))], [("", (1, 39, 2000)), ("", (1, 32, 80, 80))])
    other_masks = model_heads.ports([("x", (1, 3, 320, 320))], [("", (1, 39, 2100)), ("", (1, 32, 40, 40))])
    assert describe(xml, other_anchors) is None
    assert describe(xml, other_masks) is None
    assert describe(xml, Signature(signature.inputs, signature.outputs[:1])) is None


# ---- Geti -----------------------------------------------------------------------------------------


def test_a_geti_file_describes_itself(tmp_path: Path) -> None:
    description = of_geti(tmp_path)
    assert (description.family, description.what) == (
        "geti_mask_rcnn",
        "rtmdet_inst_tiny by Intel Geti (getitune 0.4.0)",
    )
    assert (description.size_hw, description.input_name) == ((320, 320), "image")
    assert (description.resize, description.pad_value, description.rounding) == ("letterbox", 114, "exact")
    assert description.colour == "RGB"
    np.testing.assert_allclose(description.mean, (123.675, 116.28, 103.53))
    np.testing.assert_allclose(description.scale, (58.395, 57.12, 57.375))
    assert description.labels == GETI_LABELS
    assert description.outputs == {"boxes": 0, "labels": 1, "masks": 2}
    assert description.thresholds == {"score_threshold": 0.05, "nms_iou": 0.5}
    assert description.extra == {
        "intensity_mode": "scale_to_unit", "input_is_unit": True, "empty_label": True, "nms_execute": False,
        "agnostic_nms": False, "nms_max_predictions": 200,
    }  # fmt: skip
    assert description.sources["nms_max_predictions"] == "default of the family"
    assert (description.missing, description.notes) == ((), ())


def test_a_geti_onnx_file_says_the_same(tmp_path: Path) -> None:
    props = {f"model_info {key}": value for key, value in GETI_INFO.items()}
    by_onnx = described(model_heads.onnx(tmp_path, props), model_heads.geti())
    by_ir = of_geti(tmp_path)
    for name in ("family", "what", "labels", "size_hw", "mean", "scale", "extra", "thresholds", "resize"):
        assert getattr(by_onnx, name) == getattr(by_ir, name)
    xml = model_heads.ir(tmp_path, tail=model_heads.rt_info({"framework": props}) + "</net>")
    assert described(xml, model_heads.geti()).labels == by_ir.labels


def test_geti_is_asked_before_the_metadata_of_ultralytics(tmp_path: Path) -> None:
    names = {"label_info": '{"label_names": ["cat", "big dog", "bird"]}', "label_ids": "0 1 2"}
    info = {**GETI_INFO, "model_type": "YOLO-seg", "mean_values": "0.0 0.0 0.0", "scale_values": "1.0 1.0 1.0", **names}
    xml = model_heads.ir(tmp_path, info, metadata=model_heads.yolo_metadata())
    description = described(xml, model_heads.yolo())
    assert (description.family, description.extra["empty_label"]) == ("geti_yolo", False)
    assert (description.mean, description.scale) == ((0, 0, 0), (255, 255, 255))
    assert description.labels == {1: "cat", 2: "big dog", 3: "bird"}


def test_classes_without_a_name_get_model_apis(tmp_path: Path) -> None:
    info = {**GETI_INFO, "model_type": "YOLO-seg", "label_info": '{"label_names": ["cat"]}'}
    description = described(model_heads.ir(tmp_path, info), model_heads.yolo(classes=3))
    assert description.labels == {1: "cat", 2: "#1", 3: "#2"}
    assert "3 classes, of which the file names 1" in description.notes[0]
    with pytest.raises(ModelError, match="more classes than the network"):
        described(
            model_heads.ir(tmp_path, {**info, "label_info": GETI_INFO["label_info"]}), model_heads.yolo(classes=2)
        )


def test_a_geti_yolo_has_defaults_of_its_own(tmp_path: Path) -> None:
    description = described(model_heads.ir(tmp_path, {"model_type": "YOLO-seg", "labels": "a b c"}), model_heads.yolo())
    assert (description.resize, description.pad_value) == ("letterbox", 114)
    assert (description.mean, description.scale) == (None, (255, 255, 255))
    assert description.thresholds == {"score_threshold": 0.25, "nms_iou": 0.5}


def test_absent_keys_have_model_apis_defaults(tmp_path: Path) -> None:
    description = described(model_heads.ir(tmp_path, {"model_type": "MaskRCNN"}), model_heads.geti())
    assert (description.resize, description.pad_value, description.colour) == ("stretch", 0, "RGB")
    assert (description.mean, description.scale) == (None, None)
    assert description.thresholds == {"score_threshold": 0.5, "nms_iou": 0.5}
    assert (description.missing, description.what) == (("labels",), "MaskRCNN, described for model_api")
    assert description.sources["resize"] == "default of the family"


def test_a_value_of_none_is_an_absent_key(tmp_path: Path) -> None:
    assert of_geti(tmp_path, resize_type="None", pad_value="").resize == "stretch"


@pytest.mark.parametrize(
    ("resize_type", "resize"),
    [("standard", "stretch"), ("fit_to_window", "corner"), ("fit_to_window_letterbox", "letterbox")],
)
def test_model_apis_resize_types_are_known(tmp_path: Path, resize_type: str, resize: str) -> None:
    assert of_geti(tmp_path, resize_type=resize_type).resize == resize


def test_reversed_channels_are_bgr(tmp_path: Path) -> None:
    assert of_geti(tmp_path, reverse_input_channels="True").colour == "BGR"
    assert of_geti(tmp_path, reverse_input_channels="YES").colour == "BGR"
    assert of_geti(tmp_path, reverse_input_channels="NO").colour == "RGB"


@pytest.mark.parametrize(
    "changes",
    [
        {"intensity_mode": None},
        {"intensity_mode": "none"},
        {},
        {"input_dtype": None},
        {"intensity_max_value": "128"},
        {"mean_values": None},
        {"scale_values": None},
        {"mean_values": None, "scale_values": None},
        {"scale_values": "0.5"},
        {"intensity_mode": "window", "intensity_window_center": "127.5", "intensity_window_width": "300"},
        {"intensity_mode": "window", "intensity_window_center": "127.5", "intensity_window_width": "255"},
        {"intensity_mode": "window", "intensity_window_center": "9", "intensity_window_width": "800"},
        {"intensity_mode": "range_scale", "intensity_max_value": "1020", "intensity_scale_factor": "2"},
        {"intensity_mode": "range_scale", "intensity_max_value": "300", "intensity_min_value": "-50"},
    ],
)  # fmt: skip
def test_mean_and_scale_hold_for_levels_up_to_255(tmp_path: Path, changes: dict[str, str | None]) -> None:
    description = of_geti(tmp_path, **changes)
    levels = np.arange(256, dtype=np.float64)[:, None] * np.ones(3)
    mean, scale = description.mean or (0, 0, 0), description.scale or (1, 1, 1)
    info = {key: value for key, value in {**GETI_INFO, **changes}.items() if value is not None}
    np.testing.assert_allclose((levels - mean) / scale, fed_by_model_api(levels, info), rtol=1e-12, atol=1e-12)


def fed_by_model_api(levels: Any, info: Mapping[str, str]) -> Any:
    """What model_api 0.4.7 feeds a network, by the source of its preprocessing."""
    mode, largest = info.get("intensity_mode", "none"), float(info.get("intensity_max_value", 255))
    if mode == "scale_to_unit":
        levels = levels / largest
    elif mode == "window":
        low = float(info["intensity_window_center"]) - float(info["intensity_window_width"]) / 2
        levels = np.clip((levels - low) / float(info["intensity_window_width"]), 0, 1)
    elif mode == "range_scale":
        least = float(info.get("intensity_min_value", 0))
        scaled = np.clip(levels * float(info.get("intensity_scale_factor", 1)), least, largest)
        levels = (scaled - least) / (largest - least)
    mean = np.array([float(part) for part in info.get("mean_values", "0").split()])
    return (levels - mean) / np.array([float(part) for part in info.get("scale_values", "1").split()])


def test_samples_of_16_bits_are_given_as_levels_of_8(tmp_path: Path) -> None:
    description = of_geti(tmp_path, input_dtype="u16")
    np.testing.assert_allclose(description.mean, (123.675, 116.28, 103.53))
    assert "u16" in description.notes[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resize_type": "crop"}, "cropped"),
        ({"resize_type": "stretch_more"}, "does not know how"),
        ({"interpolation_mode": "CUBIC"}, "bilinearly only"),
        ({"embedded_processing": "True"}, "prepares images itself"),
        ({"intensity_mode": "percentile"}, "cannot scale intensities"),
        ({"intensity_mode": "window"}, "no number"),
        (
            {"intensity_mode": "window", "intensity_window_center": "50", "intensity_window_width": "10"},
            "limits levels",
        ),
        ({"intensity_mode": "range_scale", "intensity_max_value": "200"}, "limits levels"),
        ({"intensity_mode": "range_scale", "intensity_max_value": "9", "intensity_scale_factor": "0"}, "not positive"),
        ({"intensity_mode": "none", "input_dtype": "u16"}, "other levels"),
        ({"input_dtype": "u12"}, "type of samples"),
        ({"intensity_max_value": "0"}, "divides levels by 0"),
        ({"scale_values": "1 0 1"}, "divides levels by 0"),
        ({"mean_values": "0.4 0.5"}, "one number for each of 3 channels"),
        ({"mean_values": "a b c"}, "no number"),
        ({"pad_value": "300"}, "no number from 0 to 255"),
        ({"pad_value": "1.5"}, "no whole number"),
        ({"confidence_threshold": "2"}, "no number from 0 to 1"),
        ({"label_info": "{"}, "no JSON"),
        ({"label_info": "[]"}, "no list label_names"),
        ({"label_info": '{"label_names": [[]]}'}, "classes 0 to n"),
    ],
)
def test_values_that_segray_cannot_follow_are_refused(
    tmp_path: Path, changes: dict[str, str | None], message: str
) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        of_geti(tmp_path, **changes)
    assert "model_info" in caught.value.where
    assert caught.value.found
    assert caught.value.hint


@pytest.mark.parametrize(
    "info",
    [
        {"model_type": "Classification", "getitune_version": "0.4.0", "task_type": "classification"},
        {"model_type": "SSD", "otx_version": "2.6.0"},
        {"task_type": "instance_segmentation"},
    ],
)
def test_a_geti_model_of_another_task_is_refused(tmp_path: Path, info: dict[str, str]) -> None:
    with pytest.raises(ModelError, match=r"no instance masks[\s\S]*model_type"):
        describe(model_heads.ir(tmp_path, info), model_heads.geti())


def test_names_without_label_info_come_with_underscores(tmp_path: Path) -> None:
    description = of_geti(tmp_path, label_info=None, labels="otx_empty_lbl box disc_of_tin")
    assert (description.labels, description.extra["empty_label"]) == ({1: "box", 2: "disc_of_tin"}, True)
    assert "_ may stand for a space" in description.notes[0]


def test_the_first_name_is_never_a_class_of_a_model_with_boxes(tmp_path: Path) -> None:
    description = of_geti(tmp_path, label_info='{"label_names": ["background", "a"]}')
    assert description.labels == {1: "a"}
    assert "'background'" in description.notes[0]


def test_suppression_and_tiles_are_told_where_stated(tmp_path: Path) -> None:
    tiles = {"tile_size": "400", "tiles_overlap": "0.25", "max_pred_number": "150", "tile_with_full_img": "True"}
    changes = {"nms_execute": "True", "agnostic_nms": "YES", "nms_max_predictions": "50", "iou_threshold": "0.8"}
    description = of_geti(tmp_path, **tiles, **changes)
    assert description.thresholds == {"score_threshold": 0.05, "nms_iou": 0.8, "max_detections": 50}
    expected = {"nms_execute": True, "agnostic_nms": True, "nms_max_predictions": 50}
    expected |= {"tile_size": 400, "tiles_overlap": 0.25, "max_pred_number": 150, "tile_with_full_img": True}
    assert expected.items() <= description.extra.items()


def test_outputs_of_geti_are_found_by_name_then_by_rank(tmp_path: Path) -> None:
    image = [("image", (1, 3, 64, 64))]
    explained = [("saliency_map", (1, 3, 7, 7)), ("masks", (9, 28, 28)), ("labels", (9,)), ("bboxes", (9, 5))]
    assert of_geti(tmp_path, model_heads.ports(image, explained)).outputs == {"boxes": 3, "labels": 2, "masks": 1}
    nameless = [("", (1, None, 28, 28)), ("", (1, None)), ("", (1, None, 5))]
    assert of_geti(tmp_path, model_heads.ports(image, nameless)).outputs == {"boxes": 2, "labels": 1, "masks": 0}
    with pytest.raises(ModelError, match="not those of a MaskRCNN"):
        of_geti(tmp_path, model_heads.ports(image, nameless[:2]))


def test_a_geti_model_of_any_size_lacks_its_size(tmp_path: Path) -> None:
    assert of_geti(tmp_path, model_heads.geti((None, None))).missing == ("size",)


# ---- by ports -------------------------------------------------------------------------------------

_IMAGE = [("input", (1, 3, 312, 312))]


@pytest.mark.parametrize(
    ("outputs", "family"),
    [
        ([("dets", (1, 100, 4)), ("labels", (1, 100, 4)), ("masks", (1, 100, 78, 78))], "rf_detr"),
        ([("", (None, 9, 4)), ("", (None, 9, 91)), ("mask_logits", (None, 9, None, None))], "rf_detr"),
        ([("boxes", (None, 4)), ("labels", (9,)), ("", (9,)), ("", (None, 1, None, None))], "torchvision_mask_rcnn"),
        ([("class_queries_logits", (1, 9, 6)), ("masks_queries_logits", (1, 9, 24, 24))], "hf_masks"),
        ([("dets", (1, 100, 5)), ("labels", (1, 100)), ("masks", (1, 100, 78, 78))], None),
        ([("dets", (1, 100, 4)), ("labels", (1, 99, 4)), ("masks", (1, 100, 78, 78))], None),
        ([("boxes", (100, 5)), ("labels", (100,)), ("masks", (100, 28, 28))], None),
        ([("boxes", (9, 4)), ("labels", (9,)), ("scores", (9,)), ("masks", (9, 80, 28, 28))], None),
        ([("scores", (1, 9, 6)), ("masks_queries_logits", (1, 9, 24, 24))], None),
    ],
)  # fmt: skip
def test_families_without_metadata_are_told_by_their_ports(
    tmp_path: Path, outputs: list[model_heads.Port], family: str | None
) -> None:
    types = {} if family == "rf_detr" else {"labels": "i64"}
    description = describe(model_heads.ir(tmp_path), model_heads.ports(_IMAGE, outputs, types))
    assert (description and description.family) == family
    if description is not None:
        check_sources(description)
        assert "labels" in description.missing or family == "rf_detr"


# ---- card -----------------------------------------------------------------------------------------


def write_card(folder: Path, **content: Any) -> None:
    (folder / "segray.json").write_text(json.dumps(content))


def test_a_card_overrides_what_the_file_says(tmp_path: Path) -> None:
    stated = {
        "labels": ["bolt", "nut", "washer"], "colour": "BGR", "mean": [1, 2, 3], "scale": [4, 5, 6], "pad_value": 7,
        "thresholds": {"score_threshold": 0.4}, "extra": {"end2end": True}, "what": "my model", "resize": "corner",
    }  # fmt: skip
    write_card(tmp_path, contract="yolo_seg", description=stated)
    description = of_yolo(tmp_path)
    assert description.labels == {1: "bolt", 2: "nut", 3: "washer"}
    assert (description.colour, description.mean, description.scale) == ("BGR", (1, 2, 3), (4, 5, 6))
    assert (description.pad_value, description.what, description.resize) == (7, "my model", "corner")
    assert description.thresholds == {"nms_iou": 0.7, "score_threshold": 0.4}
    assert description.extra["end2end"] is True
    assert description.extra["window_hw"] == [320, 320]
    assert {description.sources[key] for key in ("labels", "colour", "score_threshold", "end2end")} == {"segray.json"}
    assert description.sources["kind"] == "ports"


def test_a_card_gives_what_the_file_lacks(tmp_path: Path) -> None:
    write_card(tmp_path, description={"labels": {"3": "bolt", "1": "nut"}, "size_hw": [320, 640]})
    signature = model_heads.ports(
        [("x", (None, None, None, None))],
        [("", (None, 9, 4)), ("", (None, 9, 3)), ("mask_logits", (None, 9, None, None))],
    )
    description = described(model_heads.ir(tmp_path), signature)
    assert (description.family, description.size_hw, description.missing) == ("rf_detr", (320, 640), ())
    assert list(description.labels.items()) == [(3, "bolt"), (1, "nut")]


def test_a_complete_card_needs_no_metadata(tmp_path: Path) -> None:
    stated = {"kind": "raw", "outputs": {"output0": 0, "output1": 1}, "labels": ["a", "b", "c"], "stride": 32}
    write_card(tmp_path, contract="yolo_seg", description=stated)
    xml = model_heads.ir(tmp_path, {"model_type": "MaskRCNN", "resize_type": "crop"})
    description = described(xml, model_heads.yolo())
    assert (description.family, description.size_hw, description.pad_value) == ("yolo_seg", (320, 320), 114)
    assert (description.missing, description.outputs) == ((), {"output0": 0, "output1": 1})


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ({"contract": "yolo", "description": {}}, "no family 'yolo'"),
        ({"contract": "geti_detr", "description": {}}, "does not state the kind"),
        ({"description": []}, "no object"),
        ({"description": {"colors": "RGB"}}, r"unknown key 'colors'[\s\S]*Did you mean 'colour'"),
        ({"description": {"colour": "GRB"}}, "RGB or BGR"),
        ({"description": {"size_hw": [320]}}, "height, width"),
        ({"description": {"size_hw": [0, 320]}}, "no number from 1"),
        ({"description": {"labels": []}}, "class names"),
        ({"description": {"labels": {"x": "a"}}}, "no number"),
        ({"description": {"labels": ["a", "a"]}}, "Two classes"),
        ({"description": {"scale": [1, 0, 1]}}, "other than 0"),
        ({"description": {"mean": [1, 2]}}, "one for each channel"),
        ({"description": {"outputs": {"output0": 2}}}, "no number from 0 to 1"),
        ({"description": {"outputs": []}}, "an object such as"),
        ({"description": {"thresholds": {"score": 1}}}, "score_threshold"),
        ({"description": {"thresholds": {"nms_iou": "x"}}}, "no number"),
        ({"description": {"extra": 1}}, "an object"),
        ({"description": {"extra": {"window_hw": 5}}}, "height, width"),
        (
            {"description": {"extra": {"windows_hw": [64, 64]}}},
            r"unknown key 'windows_hw'[\s\S]*Did you mean 'window_hw'",
        ),
        ({"description": {"labels": ["a"]}}, "another number of classes than the network"),
        ({"description": {"what": 1}}, "a text"),
        ({"description": {"pad_value": 256}}, "no number from 0 to 255"),
    ],
)
def test_a_wrong_card_says_what_to_write(tmp_path: Path, card: dict[str, Any], message: str) -> None:
    write_card(tmp_path, **card)
    with pytest.raises(ModelError, match=message) as caught:
        of_yolo(tmp_path)
    assert "segray.json" in caught.value.where
    assert caught.value.hint


@pytest.mark.parametrize("family", ["yolo_seg", "geti_mask_rcnn"])
def test_a_description_survives_its_card(tmp_path: Path, family: str) -> None:
    """`segray models quantize` writes what it knows of its source beside the copy, which says nothing itself."""
    (tmp_path / "source").mkdir()
    signature = model_heads.yolo() if family == "yolo_seg" else model_heads.geti()
    if family == "yolo_seg":
        xml = model_heads.ir(tmp_path / "source", metadata=model_heads.yolo_metadata())
    else:
        xml = model_heads.ir(tmp_path / "source", model_heads.GETI_INFO)
    source = described(xml, signature)
    facts = dict(source.facts_of_rows())
    facts["labels"] = {str(number): name for number, name in source.labels.items()}
    del facts["missing"]
    (tmp_path / "copy").mkdir()
    write_card(tmp_path / "copy", contract=source.family, description=facts)
    copy = described(model_heads.ir(tmp_path / "copy"), signature)
    assert json.loads(json.dumps(copy.facts_of_rows())) == json.loads(json.dumps(source.facts_of_rows()))


def test_a_card_of_the_catalogue_describes_nothing(tmp_path: Path) -> None:
    write_card(tmp_path, contract="yolact-resnet50-fpn-pytorch", form="converted", labels={"1": "a"})
    assert describe(model_heads.ir(tmp_path), model_heads.geti()) is None


def test_a_complete_card_has_the_preparation_of_its_family(tmp_path: Path) -> None:
    write_card(tmp_path, contract="geti_detr", description={"kind": "selected", "outputs": {"boxes": 0}})
    description = described(model_heads.ir(tmp_path), model_heads.geti())
    assert (description.resize, description.pad_value, description.scale) == ("stretch", 0, None)


def test_another_iou_of_an_export_is_taken_and_told(tmp_path: Path) -> None:
    xml = model_heads.ir(tmp_path, {**YOLO_INFO, "iou_threshold": "0.5"}, metadata=model_heads.yolo_metadata())
    description = described(xml, model_heads.yolo())
    assert yolo_seg.of(description).defaults.nms_iou == 0.5
    assert "model.nms_iou: 0.7" in description.notes[0]


# ---- folders --------------------------------------------------------------------------------------


def test_the_model_of_a_folder_is_its_only_one(tmp_path: Path) -> None:
    xml = model_heads.ir(tmp_path, YOLO_INFO, metadata=model_heads.yolo_metadata())
    (tmp_path / "._model.xml").write_bytes(b"")
    (tmp_path / "folder.onnx").mkdir()
    assert model_file(tmp_path) == model_file(xml) == xml
    assert described(tmp_path, model_heads.yolo()) == described(xml, model_heads.yolo())


def test_a_folder_with_several_models_lists_them(tmp_path: Path) -> None:
    model_heads.ir(tmp_path)
    (tmp_path / "other.onnx").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"several models[\s\S]*model.xml, other.onnx[\s\S]*model.path"):
        model_file(tmp_path)


def test_a_folder_without_a_model_says_so(tmp_path: Path) -> None:
    (tmp_path / "best.pt").write_bytes(b"")
    with pytest.raises(ModelError, match=r"no model[\s\S]*best.pt[\s\S]*yolo export"):
        model_file(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"")
    assert model_file(tmp_path) == tmp_path


# ---- any metadata ---------------------------------------------------------------------------------

_TEXTS = st.one_of(
    st.sampled_from(["", "None", "True", "-1", "1e999", "nan", "0", "9" * 400, "{}", "[]", "{0: 'a'}", "\x00"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)  # fmt: skip
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.integers(-1, 4) | _TEXTS, inner, max_size=4),
    max_leaves=8,
)
_SIGNATURES = st.sampled_from([model_heads.yolo(), model_heads.yolo_selected(), model_heads.geti()])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


def check(path: Path, signature: Signature) -> None:
    """A description with sources, none, or an error of the user's."""
    try:
        description = describe(path, signature)
    except UserError as error:
        assert len(str(error)) < 3000
        return
    if description is not None:
        check_sources(description)


_YOLO_CHANGES = st.dictionaries(st.sampled_from(sorted(model_heads.yolo_metadata())), _VALUES, max_size=3)
_GETI_KEYS = (*GETI_INFO, "tile_size", "agnostic_nms", "nms_max_predictions", "intensity_max_value")
_GETI_CHANGES = st.dictionaries(st.sampled_from(_GETI_KEYS), _TEXTS, max_size=3)
_CARD_KEYS = ("family", "outputs", "labels", "size_hw", "extra", "thresholds", "scale", "kind", "x")
_CARDS = st.dictionaries(st.sampled_from(_CARD_KEYS), _VALUES, max_size=3)


def check_yolo(folder: Path, changes: Mapping[str, Any], signature: Signature) -> None:
    entries = model_heads.yolo_metadata() | changes
    check(model_heads.ir(folder, YOLO_INFO, metadata=entries), signature)
    check(model_heads.onnx(folder, model_heads.as_properties(entries)), signature)


def check_geti(folder: Path, changes: Mapping[str, str], signature: Signature) -> None:
    props = {f"model_info {key}": value for key, value in {**GETI_INFO, **changes}.items()}
    check(model_heads.onnx(folder, props), signature)


def check_card(folder: Path, stated: Mapping[str, Any]) -> None:
    write_card(folder, contract="yolo_seg", description=stated)
    try:
        check(model_heads.onnx(folder, model_heads.as_properties(model_heads.yolo_metadata())), model_heads.yolo())
    finally:
        (folder / "segray.json").unlink()


def check_damage(folder: Path, data: st.DataObject) -> None:
    """Replace some bytes of a model's files by others."""
    xml = model_heads.ir(folder, {**YOLO_INFO, **GETI_INFO}, metadata=model_heads.yolo_metadata())
    onnx = model_heads.onnx(folder, model_heads.as_properties(model_heads.yolo_metadata()))
    path = data.draw(st.sampled_from([xml, xml.parent / "metadata.yaml", onnx]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content)))
        content[at : at + data.draw(st.sampled_from([0, 1, 9, 9999]))] = data.draw(st.binary(max_size=9))
    path.write_bytes(content)
    check(onnx if path == onnx else xml, model_heads.yolo())


_of_yolo = given(changes=_YOLO_CHANGES, signature=_SIGNATURES)
_of_geti = given(changes=_GETI_CHANGES, signature=_SIGNATURES)
test_some_values_of_ultralytics_are_read_or_refused = tried(25)(_of_yolo(check_yolo))
test_some_values_of_geti_are_read_or_refused = tried(25)(_of_geti(check_geti))
test_some_cards_are_read_or_refused = tried(25)(given(stated=_CARDS)(check_card))
test_some_damage_is_read_or_refused = tried(50)(given(data=st.data())(check_damage))


@pytest.mark.chaos
@tried(3000)
@given(st.data())
def test_any_metadata_is_read_or_refused(folder: Path, data: st.DataObject) -> None:
    match data.draw(st.sampled_from(["yolo", "geti", "card", "damage"])):
        case "yolo":
            check_yolo(folder, data.draw(_YOLO_CHANGES), data.draw(_SIGNATURES))
        case "geti":
            check_geti(folder, data.draw(_GETI_CHANGES), data.draw(_SIGNATURES))
        case "card":
            check_card(folder, data.draw(_CARDS))
        case _:
            check_damage(folder, data)


# ---- files of other libraries ---------------------------------------------------------------------

# Beginning of a name -> family, kind.
FAMILIES = {
    "geti_maskrcnn": ("geti_mask_rcnn", "selected"),
    "geti_rtmdet": ("geti_mask_rcnn", "selected"),
    "geti_rfdetr": ("geti_detr", "selected"),
    "geti_yolo": ("geti_yolo", "raw"),
    "hf_": ("hf_masks", "queries"),
    "rfdetr_": ("rf_detr", "queries"),
    "torchvision_": ("torchvision_mask_rcnn", "pasted"),
    "yolo26n_seg_by_8_4_60": ("yolo_seg", "selected"),
    "yolo26n_seg_end2end": ("yolo_seg", "selected"),
    "yolo11n_seg_nms": ("yolo_seg", "selected"),
    "yolo11n_seg_dynamic_nms": ("yolo_seg", "selected"),
    "yolo": ("yolo_seg", "raw"),
}
NAMES = sorted(path.stem for path in DESCRIPTIONS.glob("*.json"))


@pytest.mark.skipif(not NAMES, reason="the reference results of other libraries are not here")
@pytest.mark.parametrize("name", NAMES)
def test_a_true_export_is_described_as_it_is(tmp_path: Path, name: str) -> None:
    said = json.loads((DESCRIPTIONS / f"{name}.json").read_text())
    path, signature = written(tmp_path, said), signature_of(said)
    description = described(path, signature)
    family = next(expected for start, expected in FAMILIES.items() if name.startswith(start))
    assert (description.family, description.kind) == family
    shape = signature.inputs[0].shape or ()
    assert description.size_hw == (shape[-2:] if None not in shape[-2:] else None)
    assert tuple(description.labels.values()) == expected_names(said, description)
    tiny = model_file(DESCRIPTIONS / f"tiny_{name}")
    of_tiny = described(tiny, engine.signature(tiny))
    for key in ("family", "kind", "size_hw", "labels", "mean", "scale", "thresholds", "resize", "missing", "notes"):
        assert getattr(of_tiny, key) == getattr(description, key)


def written(folder: Path, said: Mapping[str, Any]) -> Path:
    if said["format"] == "onnx":
        return model_heads.onnx(folder, said["metadata_props"])
    return model_heads.ir(folder, tail=(said["rt_info"] or "") + "</net>", metadata=said.get("metadata.yaml"))


def signature_of(said: Mapping[str, Any]) -> Signature:
    return Signature(tuple(map(port_of, said["inputs"])), tuple(map(port_of, said["outputs"])))


def port_of(port: Mapping[str, Any]) -> ModelPort:
    types = {"FLOAT": "f32", "INT64": "i64"}
    shape = port["shape"]
    sizes = re.findall(r"[^,\[\]]+", shape) if isinstance(shape, str) else shape
    numbers = tuple(int(size) if str(size).isdigit() else None for size in sizes)
    return ModelPort(tuple(port.get("names", [port.get("name")])), types.get(port["type"], port["type"]), numbers)


def expected_names(said: Mapping[str, Any], description: Description) -> tuple[str, ...]:
    """The names as the file has them, found with regular expressions and PyYAML alone."""
    info = {**said.get("metadata_props", {}), "rt_info": said.get("rt_info") or ""}
    geti = info.get("model_info label_info") or "".join(re.findall(r'label_info value="([^"]*)', info["rt_info"]))
    if geti:
        names = json.loads(geti.replace("&quot;", '"'))["label_names"]
        names = names[1:] if names[0].endswith("_empty_lbl") else names
        return (*names, *(f"#{i}" for i in range(len(names), len(description.labels))))
    if "metadata.yaml" in said:
        return tuple(yaml.safe_load(said["metadata.yaml"])["names"].values())
    if "names" in info:
        return tuple(re.findall(r"\d+: '([^']*)'", info["names"]))
    return tuple(COCO_NAMES.values()) if description.family == "rf_detr" and "labels" not in description.missing else ()


@pytest.mark.skipif(not REAL.is_dir(), reason="the real network is not here")
@pytest.mark.parametrize("name", ["yolov8n-seg_coco.onnx", "yolov8n-seg_coco_openvino_model"])
def test_a_real_network_is_described(name: str) -> None:
    path = model_file(REAL / name)
    description = described(path, engine.signature(path))
    assert (description.labels, description.size_hw, description.kind) == (COCO_NAMES, (640, 640), "raw")
