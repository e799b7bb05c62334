from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import golden_files
import numpy as np
import plain_yolo
import pytest
import reference_today
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from plain_yolo import Outputs
from properties import tried

from segray import rle
from segray.errors import ModelError
from segray.imaging import geometry, outlines
from segray.instances import Instances
from segray.masks import _kernels_prototypes
from segray.models.adapters import yolo_seg
from segray.models.adapters.adapter import Options
from segray.models.adapters.yolo_seg import YoloSeg
from segray.models.description import Description

IOU_07 = float(np.float32(0.7))


def adapter(classes: int = 4, **changes: Any) -> YoloSeg:
    facts: dict[str, Any] = {
        "family": "yolo_seg",
        "what": "YOLO11n-seg",
        "kind": "raw",
        "input_name": "x.1",
        "outputs": {"output0": 0, "output1": 1},
        "size_hw": (96, 128),
        "labels": {i + 1: f"class {i}" for i in range(classes)},
        "pad_value": 114,
        "scale": (255.0, 255.0, 255.0),
    }
    return yolo_seg.of(Description(**{**facts, **changes}))


def options(**changes: Any) -> Options:
    return Options(**{"score_threshold": 0.25, "max_detections": 300, **changes})


def decode(outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int], model: YoloSeg, **changes: Any) -> Instances:
    return model.decode(outputs, size_hw, options(**changes))


def one_plane(rows: list[list[float]], network_hw: tuple[int, int] = (96, 128)) -> Outputs:
    """Raw outputs of these anchors, each centre, sides and class scores; each mask fills its box."""
    columns = np.array([[*row, 1] for row in rows], np.float32).T
    return {
        "output0": columns[None],
        "output1": np.ones((1, 1, network_hw[0] // 4, network_hw[1] // 4), np.float32),
    }


def one_plane_selected(rows: list[list[float]]) -> Outputs:
    """Selected rows of x0, y0, x1, y1, score and class; each mask fills its box."""
    return {**one_plane([[0] * 5]), "output0": np.array([[[*row, 1] for row in rows]], np.float32)}


# ---- the results of Ultralytics -------------------------------------------------------------------


def assert_rows_agree(instances: Instances, rows: list[Mapping[str, Any]], labels: list[int], counts: str) -> None:
    assert instances.class_ids.tolist() == [labels[row["class"]] for row in rows]
    np.testing.assert_allclose(instances.scores, [row["score"] for row in rows], rtol=0, atol=1e-5)
    boxes = np.array([row["box"] for row in rows]).reshape(-1, 4)
    np.testing.assert_allclose(instances.boxes_xyxy, boxes, rtol=0, atol=1e-3)
    for row, mask in zip(rows, instances.rles, strict=True):
        decoded, expected = (rle.decode(text, instances.size_hw) for text in (mask, row[counts]))
        assert (decoded != expected).sum() <= 2


@pytest.mark.parametrize("name", ["427x640", "500x333", "31x17", "agnostic_427x640"])
def test_the_left_of_the_network_is_decoded_as_by_ultralytics(name: str) -> None:
    golden = golden_files.decoded(f"yolo_raw_nc3_{name}")
    with np.load(golden_files.GOLDEN / "yolo_raw_nc3.npz") as file:
        outputs = {"output0": file["output0"], "output1": file["output1_times_2048"] / np.float32(2048)}
    nms = "cross_class" if golden["settings"]["agnostic_nms"] else "per_class"
    model = adapter(3, size_hw=(256, 416))
    instances = decode(outputs, tuple(golden["size"]), model, nms=nms)
    left = instances.take(instances.boxes_xyxy[:, 2] <= golden["right"])
    assert len(left) >= 8
    assert_rows_agree(left, golden["rows"], [1, 2, 3], "counts")


# Without retina_masks a mask has the size of the network's input, not of the image.
REFERENCE = [path for path in reference_today.results("yolo_*") if "_plain_" not in path.name]


@pytest.mark.skipif(not REFERENCE, reason=f"{reference_today.FOLDER} is not there")
@pytest.mark.parametrize("path", REFERENCE, ids=lambda path: path.name.removesuffix(".json.gz"))
def test_every_row_of_the_reference_is_decoded(path: Path) -> None:
    reference = reference_today.result(path)
    settings = reference["settings"]
    case = re.sub("_(agnostic|low|iou45)$", "", reference["case"])
    outputs, facts = reference_today.raw_outputs(case, reference["seed"])
    names = facts["metadata"]["names"]
    kind = "selected" if settings["end2end"] else "raw"
    model = adapter(len(names), kind=kind, size_hw=tuple(reference["network_size"]))
    instances = decode(
        outputs,
        tuple(reference["image_size"]),
        model,
        score_threshold=settings["conf"],
        max_detections=settings["max_det"],
        nms="cross_class" if settings["agnostic_nms"] else "per_class",
        nms_iou=settings["iou"],
    )
    assert_rows_agree(instances, reference["rows"], list(model.labels), "rle")


@pytest.mark.skipif(not REFERENCE, reason=f"{reference_today.FOLDER} is not there")
def test_the_network_gets_the_pixels_that_ultralytics_feeds() -> None:
    with np.load(reference_today.FOLDER / "preprocess" / "yolo_seed7.npz") as tensors:
        for key, tensor in tensors.items():
            found = re.fullmatch(r"(\d+)x(\d+)_to_(\d+)x(\d+)(_dynamic)?_u8", key)
            assert found
            height, width, *window_hw = map(int, found.groups()[:4])
            size_hw, largest = (None, window_hw) if found[5] else (tuple(window_hw), None)
            model = adapter(size_hw=size_hw, extra={"window_hw": largest})
            inputs = model.prepare(model.forms["exported"], reference_today.picture(7, height, width))
            assert (inputs["x.1"][0].transpose(2, 0, 1) == tensor[0]).all(), key


# ---- a plain decoder ------------------------------------------------------------------------------


def assert_as_plain(outputs: Outputs, size_hw: tuple[int, int], *, selected: bool, agnostic: bool = False) -> None:
    classes = 4
    model = adapter(classes, kind="selected" if selected else "raw", size_hw=None)
    instances = decode(outputs, size_hw, model, nms="cross_class" if agnostic else "per_class")
    rows = plain_yolo.decode(outputs, size_hw, selected=selected, agnostic=agnostic)
    assert instances.class_ids.tolist() == [row.label + 1 for row in rows]
    assert instances.scores.tolist() == [row.score for row in rows]
    boxes = np.array([row.box for row in rows]).reshape(-1, 4)
    np.testing.assert_allclose(instances.boxes_xyxy, boxes, rtol=0, atol=1e-3)
    for counts, row in zip(instances.rles, rows, strict=True):
        assert (rle.decode(counts, size_hw) != row.mask).sum() <= 2


@pytest.mark.parametrize("size_hw", [(72, 96), (71, 97), (96, 128), (45, 200), (300, 40), (1, 1)])
@pytest.mark.parametrize("agnostic", [False, True])
def test_raw_outputs_are_decoded_as_by_plain_numpy(size_hw: tuple[int, int], agnostic: bool) -> None:
    assert_as_plain(plain_yolo.made(1), size_hw, selected=False, agnostic=agnostic)


@pytest.mark.parametrize("planes", [1, 5, 32])
def test_selected_rows_are_decoded_as_by_plain_numpy(planes: int) -> None:
    assert_as_plain(plain_yolo.made(2, (128, 96), planes=planes, selected=True), (150, 200), selected=True)


SIDES = st.integers(1, 90)
WINDOWS = st.integers(1, 5).map(lambda count: 32 * count)


@given(st.integers(0, 2**32 - 1), st.tuples(WINDOWS, WINDOWS), st.tuples(SIDES, SIDES), st.integers(1, 9))
@tried(100)
def test_masks_are_those_of_whole_images(
    seed: int, network_hw: tuple[int, int], size_hw: tuple[int, int], planes: int
) -> None:
    rng = np.random.default_rng(seed)
    prototypes = rng.normal(0, 1, (planes, network_hw[0] // 4, network_hw[1] // 4)).astype(np.float32)
    weights = rng.normal(0, 1, (4, planes)).astype(np.float32)
    corners = np.sort(rng.uniform(-0.3, 1.3, (4, 2, 2)), axis=1).reshape(4, 4) * np.tile(size_hw[::-1], 2)
    boxes = corners.clip(0, np.tile(size_hw[::-1], 2)).astype(np.float32)
    kept, masks = yolo_seg._masks(weights, prototypes, boxes, size_hw, network_hw)
    counts = dict(zip(kept.tolist(), masks, strict=True))
    grids = np.einsum("nk,khw->nhw", weights.astype(float), prototypes.astype(float))
    for i in range(4):
        values = plain_yolo.values_in_image(grids[i], size_hw, network_hw)
        inside = plain_yolo.within(boxes[i], size_hw)
        mask = rle.decode(counts[i], size_hw) if i in counts else np.zeros(size_hw, bool)
        clear = np.abs(values) > 1e-4  # Float32 has other values near 0.
        assert (mask == (inside & (values > 0)))[clear].all()
        assert i not in counts or mask.any()


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 100), st.integers(1, 100)),
    st.sampled_from([2**-24, 1e-3, 1, 3, 2500, 1e6]),
)
@tried(200)
def test_logits_cross_0_where_the_same_arithmetic_does(
    seed: int, grid_hw: tuple[int, int], size_hw: tuple[int, int], spread: float
) -> None:
    grid = (spread * np.random.default_rng(seed).integers(-4, 5, grid_hw)).astype(np.float32)
    fit = geometry.Fit(0, 0, grid_hw)
    box = np.array([[0, 0, size_hw[1], size_hw[0]]], np.float32)
    edges, stops = outlines.edges_of_combinations(grid[None], np.ones((1, 1), np.float32), box, fit, 1, size_hw)
    rows, columns = (outlines._two_steps(0, grid_hw[i], grid_hw[i], 1, size_hw[i])[0] for i in (0, 1))
    lines = between(grid[:, columns.low], grid[:, columns.high], columns.weight)
    mask = between(lines[rows.low], lines[rows.high], rows.weight[:, None]) > 0
    assert rle.from_edges_of_all(edges, stops, size_hw)[0] == rle.encode(mask)


def between(low: NDArray[Any], high: NDArray[Any], weight: NDArray[Any]) -> NDArray[np.float32]:
    return (low.astype(float) + (high - low).astype(float) * weight.astype(float)).astype(np.float32)


@given(st.integers(0, 2**32 - 1), st.integers(0, 30), st.sampled_from([0.0, 0.3, 0.7, IOU_07, 1.0]), st.booleans())
@tried(200)
def test_suppression_is_the_greedy_rule(seed: int, count: int, max_iou: float, far: bool) -> None:
    rng = np.random.default_rng(seed)
    boxes = rng.integers(0, 12, (count, 4)).astype(np.float32) + np.float32(80 * 7680 if far else 0)  # Some inverted.
    scores = np.sort(rng.integers(0, 9, count).astype(np.float32))[::-1]
    expected = plain_yolo.suppressed(boxes, scores, max_iou)
    for most in (count, 5, 0):
        assert _kernels_prototypes.greedy_nms_of_all(boxes, most, max_iou).tolist() == expected[:most]


# ---- rules of the rows ----------------------------------------------------------------------------


def test_a_score_of_the_threshold_is_too_low() -> None:
    above, below = np.nextafter(np.float32(0.25), np.float32(1)), np.nextafter(np.float32(0.25), np.float32(0))
    rows = [[20 + 30 * i, 20, 20, 20, score] for i, score in enumerate((0.25, above, below))]
    assert decode(one_plane(rows), (96, 128), adapter(1)).scores.tolist() == [above]


def test_a_class_has_its_own_threshold() -> None:
    rows = [[20, 20, 20, 20, 0.3, 0], [60, 20, 20, 20, 0, 0.3], [100, 20, 20, 20, 0.1, 0]]
    model = adapter(2)
    assert decode(one_plane(rows), (96, 128), model, class_thresholds={2: 0.5}).class_ids.tolist() == [1]
    scores = decode(one_plane(rows), (96, 128), model, class_thresholds={1: 0.05}).scores
    np.testing.assert_array_equal(scores, np.array([0.3, 0.3, 0.1], np.float32))
    at_threshold = {1: 0.05, 2: 0.3}
    assert decode(one_plane(rows), (96, 128), model, class_thresholds=at_threshold).class_ids.tolist() == [1, 1]
    selected = one_plane_selected([[0, 0, 9, 9, 0.3, 0], [0, 0, 9, 9, 0.3, 1]])
    chosen = decode(selected, (96, 128), adapter(2, kind="selected"), class_thresholds={1: 0.3})
    assert chosen.class_ids.tolist() == [2]


def test_of_equal_scores_the_lower_anchor_comes_first() -> None:
    rows = [[20 + 30 * i, 20, 20, 20, score] for i, score in enumerate((0.5, 0.75, 0.5, 0.75))]
    boxes = decode(one_plane(rows), (96, 128), adapter(1)).boxes_xyxy
    assert boxes[:, 0].tolist() == [40, 100, 10, 70]


def test_an_anchor_has_its_best_class_alone_and_of_equal_classes_the_first() -> None:
    rows = [[20, 20, 20, 20, 0.5, 0.75, 0.5], [60, 20, 20, 20, 0.5, 0.75, 0.75]]
    assert decode(one_plane(rows), (96, 128), adapter(3)).class_ids.tolist() == [2, 2]


def test_boxes_of_two_classes_suppress_each_other_across_classes_only() -> None:
    outputs = one_plane([[40, 40, 20, 20, 0.9, 0], [40, 40, 20, 20, 0, 0.8], [40, 40, 20, 20, 0.7, 0]])
    model = adapter(2)
    assert decode(outputs, (96, 128), model).class_ids.tolist() == [1, 2]
    assert decode(outputs, (96, 128), model, nms="cross_class").class_ids.tolist() == [1]


def test_two_boxes_of_the_largest_iou_both_stay() -> None:
    outputs = one_plane([[50, 40, 100, 10, 0.9], [35, 40, 70, 10, 0.8]])  # 0.7, which is less in float32.
    model = adapter(1)
    assert len(decode(outputs, (96, 128), model)) == 2
    assert len(decode(outputs, (96, 128), model, nms_iou=0.7)) == 2
    assert len(decode(outputs, (96, 128), model, nms_iou=0.69)) == 1
    assert len(decode(outputs, (96, 128), model, nms_iou=float(np.nextafter(np.float32(0.7), np.float32(0))))) == 1


def test_the_offset_of_a_class_takes_bits_from_the_boxes() -> None:
    """Boxes of class 79 lie near 606,720, where float32 has steps of 1/16: an IoU of 0.702 becomes 0.7."""
    scores = [0] * 79
    outputs = one_plane([[20, 40, 10, 10, *scores, 0.9], [18.51, 40, 7.02, 10, *scores, 0.8]])
    assert len(decode(outputs, (96, 128), adapter(80))) == 2
    assert len(decode(outputs, (96, 128), adapter(80), nms="cross_class")) == 1


def test_the_largest_number_counts_rows_with_an_empty_mask() -> None:
    rows = [[20, 20, 20, 20, 0.9], [50, 20, 0, 20, 0.8], [80, 20, 20, 20, 0.7], [110, 20, 20, 20, 0.6]]
    assert len(decode(one_plane(rows), (96, 128), adapter(1), max_detections=3)) == 2
    assert len(decode(one_plane(rows), (96, 128), adapter(1), max_detections=4)) == 3
    assert len(decode(one_plane(rows), (96, 128), adapter(1), max_detections=0)) == 0


def test_masks_of_few_pixels_go() -> None:
    rows = [[20, 20, 20, 20, 0.9], [50, 20, 2, 2, 0.8]]
    assert len(decode(one_plane(rows), (96, 128), adapter(1), min_area=5)) == 1


def test_a_mask_has_the_pixels_whose_index_is_within_the_box() -> None:
    instances = decode(one_plane([[10, 10, 3, 4.5, 0.9]]), (96, 128), adapter(1))
    assert instances.boxes_xyxy.tolist() == [[8.5, 7.75, 11.5, 12.25]]
    y, x = np.nonzero(rle.decode(instances.rles[0], (96, 128)))
    assert (sorted(set(x.tolist())), sorted(set(y.tolist()))) == ([9, 10, 11], [8, 9, 10, 11, 12])


def test_selected_rows_keep_their_order_and_are_not_suppressed() -> None:
    rows = [[10, 10, 30, 30, 0.5, 1], [10, 10, 30, 30, 0.9, 1], [10, 10, 30, 30, 0.2, 1], [0] * 6, [9, 9, 30, 30, 1, 0]]
    outputs = one_plane_selected(rows)
    instances = decode(outputs, (96, 128), adapter(2, kind="selected"))
    np.testing.assert_array_equal(instances.scores, np.array([0.5, 0.9, 1], np.float32))
    assert instances.class_ids.tolist() == [2, 2, 1]
    assert instances.unreadable == 0
    assert len(decode(outputs, (96, 128), adapter(2, kind="selected"), max_detections=2)) == 2
    assert len(decode(outputs, (96, 128), adapter(2, kind="selected"), score_threshold=0)) == 4


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 3, 5, 6])
def test_an_anchor_that_is_not_finite_is_counted_as_unreadable(value: float, at: int) -> None:
    outputs = one_plane([[20, 20, 20, 20, 0.9, 0], [60, 20, 20, 20, 0.8, 0], [100, 20, 20, 20, 0.1, 0]])
    outputs["output0"][0, at, 0] = value
    instances = decode(outputs, (96, 128), adapter(2))
    np.testing.assert_array_equal(instances.scores, np.array([0.8], np.float32))
    assert instances.unreadable == 1


@pytest.mark.parametrize(
    ("at", "value"), [(0, np.nan), (4, np.nan), (4, np.inf), (5, np.nan), (5, 2), (5, -1), (5, 0.5), (6, -np.inf)]
)
def test_a_selected_row_that_is_invalid_is_counted_as_unreadable(at: int, value: float) -> None:
    outputs = one_plane_selected([[10, 10, 30, 30, 0.9, 1], [10, 10, 30, 30, 0.8, 1], [0] * 6])
    outputs["output0"][0, 0, at] = value
    instances = decode(outputs, (96, 128), adapter(2, kind="selected"))
    np.testing.assert_array_equal(instances.scores, np.array([0.8], np.float32))
    assert instances.unreadable == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rows_without_finite_prototypes_are_counted_as_unreadable(value: float) -> None:
    outputs = one_plane([[20, 20, 20, 20, 0.9, 0, 0, 0], [90, 60, 20, 20, 0.8, 0, 0, 0]])
    outputs["output1"][0, 0, 3, 4] = value
    instances = decode(outputs, (96, 128), adapter())
    assert (len(instances), instances.unreadable) == (0, 2)


def test_an_image_without_detections_has_no_rows() -> None:
    for outputs, kind in ((one_plane([[20, 20, 20, 20, 0.2]]), "raw"), (one_plane_selected([[0] * 6]), "selected")):
        instances = decode(outputs, (50, 60), adapter(1, kind=kind))
        assert len(instances) == 0
        assert instances.size_hw == (50, 60)


def test_outputs_that_are_read_only_are_not_changed() -> None:
    outputs = plain_yolo.made(3)
    copies = {name: array.copy() for name, array in outputs.items()}
    for array in outputs.values():
        array.flags.writeable = False
    assert len(decode(outputs, (96, 128), adapter()))
    assert all((outputs[name] == copies[name]).all() for name in outputs)


def test_outputs_of_half_precision_are_decoded() -> None:
    outputs = {name: array.astype(np.float16) for name, array in plain_yolo.made(4).items()}
    widened = {name: array.astype(np.float32) for name, array in outputs.items()}
    assert decode(outputs, (96, 128), adapter()).rles == decode(widened, (96, 128), adapter()).rles


# ---- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "outputs", "stated"),
    [
        ({}, plain_yolo.made(1, classes=7), "Name 7 classes in `model.labels`"),
        ({"kind": "selected"}, plain_yolo.made(1), "output0 [1, n, 14] for 8 prototypes"),
        ({}, {**plain_yolo.made(1), "output1": np.zeros((1, 8, 0, 9), np.float32)}, "output1 [1, 8, 0, 9]"),
        ({}, {"output0": np.zeros((1, 84, 8400), np.float32), "output1": np.zeros(3, np.float32)}, "output1 [3]"),
        ({}, {name: np.repeat(array, 4, 0) for name, array in plain_yolo.made(1).items()}, "output1 [4, 8, 24, 32]"),
        ({}, {"output0": plain_yolo.made(1)["output0"]}, "Outputs output1 are missing"),
    ],
)
def test_other_shapes_are_errors(changes: dict[str, Any], outputs: Outputs, stated: str) -> None:
    with pytest.raises(ModelError) as error:
        decode(outputs, (96, 128), adapter(**changes))
    assert stated in str(error.value)
    assert "yolo_seg" in str(error.value)


# ---- preparation ----------------------------------------------------------------------------------


def test_a_description_becomes_an_adapter() -> None:
    model = adapter(2, kind="selected", stride=64, labels={5: "a", 9: "b"}, input_name="images")
    form = model.forms["exported"]
    assert (model.selected, model.stride, dict(model.labels)) == (True, 64, {5: "a", 9: "b"})
    assert (form.image.name, form.image.size_hw, form.image.layout, form.image.colour) == (
        "images",
        (96, 128),
        "NCHW",
        "RGB",
    )
    assert (form.image.mean, form.image.scale) == (None, (255, 255, 255))
    assert (form.outputs, dict(form.positions)) == (("output0", "output1"), {"output0": 0, "output1": 1})
    defaults = model.defaults
    assert (defaults.score_threshold, defaults.nms_iou, defaults.max_detections, defaults.nms) == (
        0.25,
        0.7,
        300,
        "per_class",
    )


@pytest.mark.parametrize(
    ("size_hw", "window_hw", "stride", "expected"),
    [
        ((427, 640), (320, 320), 32, (224, 320)),
        ((640, 427), (320, 320), 32, (320, 224)),
        ((480, 640), (640, 640), 32, (480, 640)),
        ((20, 3000), (640, 640), 32, (32, 640)),
        ((100, 100), (640, 480), 64, (512, 480)),
    ],
)
def test_an_input_of_any_size_is_padded_to_the_stride(
    size_hw: tuple[int, int], window_hw: tuple[int, int], stride: int, expected: tuple[int, int]
) -> None:
    model = adapter(size_hw=None, stride=stride, extra={"window_hw": list(window_hw)})
    inputs = model.prepare(model.forms["exported"], np.zeros((*size_hw, 3), np.uint8))
    assert inputs["x.1"].shape == (1, *expected, 3)


def test_an_image_is_fitted_padded_and_not_changed() -> None:
    image = np.random.default_rng(1).integers(0, 256, (50, 30, 3), dtype=np.uint8)
    image.flags.writeable = False
    model = adapter(size_hw=(96, 128))
    fed = model.prepare(model.forms["exported"], image)["x.1"][0]
    resized = cv2.resize(image, (58, 96), interpolation=cv2.INTER_LINEAR)
    assert (fed == cv2.copyMakeBorder(resized, 0, 0, 35, 35, cv2.BORDER_CONSTANT, value=(114, 114, 114))).all()


@given(st.tuples(st.integers(1, 2000), st.integers(1, 2000)), st.tuples(WINDOWS, WINDOWS), st.integers(0, 2**32 - 1))
@tried(200)
def test_boxes_return_from_the_letterbox(size_hw: tuple[int, int], window_hw: tuple[int, int], seed: int) -> None:
    fit = geometry.Fit.of(size_hw, window_hw)
    assert ((fit.top, fit.left), fit.content_hw) == plain_yolo.placed(size_hw, window_hw)
    limits = np.tile(size_hw[::-1], 2)
    boxes = np.random.default_rng(seed).uniform(0, 1, (5, 4)) * limits
    scale_yx = np.array(fit.content_hw) / size_hw
    inside = (boxes * np.tile(scale_yx[::-1], 2) + [fit.left, fit.top, fit.left, fit.top]).astype(np.float32)
    returned = yolo_seg._to_image(inside, size_hw, fit)
    np.testing.assert_allclose(returned, boxes, rtol=0, atol=1e-4 * max(1, *(1 / scale_yx)))
