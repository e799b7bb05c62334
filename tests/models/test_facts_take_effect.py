"""Each fact that a card or the configuration can state changes what segray does, or is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from segray import rle
from segray.errors import ConfigError
from segray.imaging import geometry
from segray.models import registry
from segray.models.adapters.adapter import Options
from segray.models.describe import card
from segray.models.description import CONFIGURATION, Description
from segray.models.registry import FAMILIES

PICTURE = np.random.default_rng(3).integers(0, 256, (23, 41, 3), dtype=np.uint8)
OUTPUTS = ("output0", "output1", "boxes", "labels", "masks", "scores", "dets", "classes")
FACTS: tuple[tuple[str, Any], ...] = (
    ("colour", "BGR"),
    ("mean", (1.0, 2.0, 3.0)),
    ("scale", (4.0, 5.0, 6.0)),
    ("size_hw", (96, 128)),
    ("resize", "letterbox"),
    ("resize", "corner"),
    ("resize", "stretch"),
    ("rounding", "opencv"),
    ("rounding", "exact"),
    ("rounding", "antialiased"),
    ("pad_value", 77),
    ("stride", 64),
    ("score_threshold", 0.875),
    ("max_detections", 17),
    ("nms_iou", 0.375),
)
# Facts that a family lacks or cannot follow. The table is written out, so that a new refusal is a decision.
STRETCHED_WITHOUT_NMS = {"letterbox", "corner", "pad_value", "stride", "nms_iou"}
REFUSED: Mapping[str, set[str]] = {
    "rf_detr": STRETCHED_WITHOUT_NMS,
    "torchvision_mask_rcnn": STRETCHED_WITHOUT_NMS,
    "mask2former": STRETCHED_WITHOUT_NMS,
    "maskformer": STRETCHED_WITHOUT_NMS,
    "eomt": {"letterbox", "stretch", "stride", "nms_iou"},
    "geti_mask_rcnn": {"pad_value", "stride"},
    "geti_detr": {"pad_value", "stride"},
    "geti_yolo": {"stride"},
    "yolo_seg": set(),
    "yolov5_seg": {"corner", "stretch", "stride"},
    "mmdeploy": {"letterbox", "stride", "nms_iou"},
    "detectron2": STRETCHED_WITHOUT_NMS,
}


def description(family: str, **changes: Any) -> Description:
    kinds = {"yolo_seg": "raw", "torchvision_mask_rcnn": "cut", "mmdeploy": "boxes"}
    facts = {
        "family": family,
        "what": family,
        "kind": kinds.get(family, "queries"),
        "input_name": "x",
        "outputs": dict.fromkeys(OUTPUTS, 0),
        "size_hw": (64, 64),
        "labels": {1: "bolt"},
        # The file's suppression is on, where the family has one.
        "extra": {"nms_execute": True} if family.startswith("geti") else {},
        **card._PREPARATION[family],
    }
    return Description(**{**facts, **changes})


def changed(base: Description, fact: str, value: Any) -> Description:
    if fact in ("score_threshold", "max_detections", "nms_iou"):
        return replace(base, thresholds={fact: value}, sources={fact: CONFIGURATION})
    if fact == "stride":  # The stride is for networks of any size.
        base = replace(base, size_hw=None, extra={"window_hw": [96, 96]})
    return replace(base, **{fact: value}, sources={fact: CONFIGURATION})


def behaviour(stated: Description) -> tuple[Any, ...]:
    """All that depends on the description: the input of the network, its conversion, and the defaults."""
    registry.check(stated)
    adapter = FAMILIES[stated.family](stated)
    (form,) = adapter.forms.values()
    (levels,) = adapter.prepare(form, PICTURE).values()
    return levels.shape, levels.tobytes(), form.image, adapter.defaults


def test_the_table_has_all_families() -> None:
    assert REFUSED.keys() == FAMILIES.keys()


@pytest.mark.parametrize(("fact", "value"), FACTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_stated_fact_takes_effect_or_is_refused(family: str, fact: str, value: Any) -> None:
    base = description(family)
    if getattr(base, fact, None) == value:
        assert behaviour(changed(base, fact, value)) == behaviour(base)
    elif {fact, value if isinstance(value, str) else ""} & REFUSED[family]:
        with pytest.raises(ConfigError) as error:
            behaviour(changed(base, fact, value))
        assert error.value.hint.startswith("Remove `")
    else:
        unstated = replace(base, size_hw=None, extra={"window_hw": [96, 96]}) if fact == "stride" else base
        assert behaviour(changed(base, fact, value)) != behaviour(unstated)


@pytest.mark.parametrize("resize", ["letterbox", "corner", "stretch"])
def test_the_mask_of_yolo_returns_from_each_resize(resize: geometry.Resize) -> None:
    size_hw, window_hw = (30, 50), (64, 64)
    adapter = FAMILIES["yolo_seg"](description("yolo_seg", resize=resize))
    fit = geometry.Fit.of(size_hw, window_hw, resize)
    height, width = fit.content_hw
    anchor = [fit.left + width / 2, fit.top + height / 2, width, height, 0.9, 1]
    outputs = {"output0": np.array(anchor, np.float32)[None, :, None], "output1": np.ones((1, 1, 16, 16), np.float32)}
    instances = adapter.decode(outputs, size_hw, Options(0.25))
    np.testing.assert_allclose(instances.boxes_xyxy, [[0, 0, 50, 30]], atol=1e-5)
    assert rle.area(instances.rles).tolist() == [30 * 50]


def test_suppression_inside_the_graph_takes_no_other_iou() -> None:
    adapter = FAMILIES["yolo_seg"](description("yolo_seg", kind="selected"))
    assert not adapter.supported_options & {"nms", "nms_iou"}
    assert adapter.nms_choices == ("per_class",)


def test_a_kind_that_the_family_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="raw or selected"):
        registry.check(description("yolo_seg", kind="Raw"))
