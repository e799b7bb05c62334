"""The adapters of Geti's models: parity with model_api, rows that are left out, options, and arithmetic as in numpy."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import geti_outputs
import numpy as np
import pytest
import reference_today
from geti_outputs import CASES, SIZES_HW
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from properties import tried

from segray import rle
from segray.errors import ModelError
from segray.imaging import geometry, outlines
from segray.instances import Instances
from segray.models.adapters import geti
from segray.models.adapters.adapter import Options
from segray.models.adapters.geti import GetiAdapter, GetiDetr, GetiMaskRcnn
from segray.models.adapters.geti_yolo import GetiYolo
from segray.models.description import Description, category_ids

REFERENCE_CASES = ("maskrcnn", "maskrcnn_batch", "maskrcnn_window", "detr", "detr_agnostic", "yolo")
# A mask may differ from model_api's by this many pixels, where a value is almost 0.5.
MOST_PIXELS = 2


def adapter_of(description: Description) -> GetiMaskRcnn | GetiDetr | GetiYolo:
    kinds = {"geti_mask_rcnn": GetiMaskRcnn, "geti_detr": GetiDetr, "geti_yolo": GetiYolo}
    return kinds[description.family].of(description)


def adapter(case: str) -> GetiMaskRcnn | GetiDetr | GetiYolo:
    return adapter_of(geti_outputs.description(case))


def options_of(adapter: GetiAdapter, **changed: Any) -> Options:
    defaults = adapter.defaults
    options = Options(defaults.score_threshold, defaults.max_detections, nms_iou=defaults.nms_iou)
    return replace(options, **changed)


def decoded(case: str, size_hw: tuple[int, int] = SIZES_HW[0], **options: Any) -> Instances:
    chosen = adapter(case)
    return chosen.decode(geti_outputs.arrays(case), size_hw, options_of(chosen, **options))


def assert_equals(instances: Instances, rows: list[dict[str, Any]]) -> None:
    """Category ids begin with 1, as the classes that model_api counts."""
    assert instances.class_ids.tolist() == [row["class"] for row in rows]
    assert np.abs(instances.scores - [row["score"] for row in rows]).max(initial=0) <= 1e-5
    assert instances.boxes_xyxy.tolist() == [row["box"] for row in rows]
    for counts, row in zip(instances.rles, rows, strict=True):
        if counts != row["rle"]:
            pixels = rle.decode(counts, instances.size_hw) != rle.decode(row["rle"], instances.size_hw)
            assert pixels.sum() <= MOST_PIXELS


# ---- parity ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_rows_equal_those_of_model_api(case: str) -> None:
    chosen = adapter(case)
    for size, rows in geti_outputs.golden_rows()[case].items():
        height, width = map(int, size.split("x"))
        instances = chosen.decode(geti_outputs.arrays(case), (height, width), options_of(chosen))
        assert rows
        assert_equals(instances, rows)
        assert instances.unreadable == 0


def reference_description(arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> Description:
    info = facts["model_info"]
    names = json.loads(info["label_info"])["label_names"]
    has_empty = names[0].endswith("_empty_lbl")
    kinds = {"MaskRCNN": "geti_mask_rcnn", "DETRInstSeg": "geti_detr", "YOLO-seg": "geti_yolo"}
    return Description(
        family=kinds[info["model_type"]],
        what="a made file",
        kind="",
        input_name="image",
        outputs={name: position for position, name in enumerate(arrays)},
        size_hw=tuple(facts["network_size"]),
        labels=category_ids(tuple(names[has_empty:])),
        resize=geti_outputs.RESIZES[info["resize_type"]],
        rounding="exact",
        thresholds={"score_threshold": float(info["confidence_threshold"]), "nms_iou": float(info["iou_threshold"])},
        extra={
            "nms_execute": info["nms_execute"] == "True",
            "agnostic_nms": info.get("agnostic_nms") == "True",
            "nms_max_predictions": int(info.get("nms_max_predictions", "200")),
            "empty_label": has_empty,
        },
    )


@pytest.mark.skipif(not reference_today.FOLDER.is_dir(), reason="no folder reference-today")
@pytest.mark.parametrize("case", REFERENCE_CASES)
def test_rows_equal_those_of_the_reference(case: str) -> None:
    for seed in (7, 11):
        arrays, facts = reference_today.raw_outputs(f"geti_{case}", seed)
        chosen = adapter_of(reference_description(arrays, facts))
        paths = reference_today.results(f"geti_{case}_seed{seed}_*")
        assert len(paths) >= 4
        for path in paths:
            expected = reference_today.result(path)
            instances = chosen.decode(arrays, tuple(expected["image_size"]), options_of(chosen))
            assert_equals(instances, expected["rows"])


@pytest.mark.skipif(not reference_today.FOLDER.is_dir(), reason="no folder reference-today")
def test_prepared_images_equal_those_of_the_reference() -> None:
    prepared = np.load(reference_today.FOLDER / "preprocess" / "geti_seed7.npz")
    names = [name for name in prepared.files if name.endswith("_u8") and "crop" not in name and "reversed" not in name]
    assert len(names) == 12
    for name in names:
        image_size, _, window_size, resize = name.removesuffix("_u8").split("_", 3)
        (height, width), (rows, columns) = (tuple(map(int, size.split("x"))) for size in (image_size, window_size))
        chosen = adapter_of(
            replace(
                geti_outputs.description("planes"),
                size_hw=(rows, columns),
                resize=geti_outputs.RESIZES[resize],
                pad_value=114 if resize.endswith("letterbox") else 0,
            )
        )
        image = chosen.prepare(chosen.forms["exported"], reference_today.picture(7, height, width))["image"]
        assert np.array_equal(image, prepared[name].transpose(0, 2, 3, 1)), name


# ---- rows -----------------------------------------------------------------------------------------


def test_a_row_at_the_threshold_is_left_out_and_one_float_above_stays() -> None:
    scores = decoded("anchors_standard").scores
    assert np.nextafter(np.float32(0.25), np.float32(1)) in scores
    assert np.float32(0.25) not in scores
    scores = decoded("anchors_standard", score_threshold=0.2).scores
    assert np.float32(0.25) in scores


@pytest.mark.parametrize("case", ["boxes_standard", "planes_tiles", "anchors_standard"])
def test_without_suppression_rows_keep_the_order_of_the_network(case: str) -> None:
    scores = decoded(case).scores
    assert not np.array_equal(scores, np.sort(scores)[::-1])


@pytest.mark.parametrize("case", ["boxes_standard", "planes_tiles", "anchors_standard"])
def test_max_detections_keeps_the_best_rows_in_their_order(case: str) -> None:
    every, few = decoded(case), decoded(case, max_detections=4)
    best = np.sort(np.argsort(-every.scores, kind="stable")[:4])
    assert few.rles == every.take(best).rles
    assert few.scores.tolist() == every.scores[best].tolist()


@pytest.mark.parametrize("case", ["boxes_letterbox", "planes", "anchors_letterbox"])
def test_suppressed_rows_come_by_falling_score(case: str) -> None:
    every, few = decoded(case), decoded(case, max_detections=3)
    assert every.scores.tolist() == sorted(every.scores.tolist(), reverse=True)
    assert few.rles == every.rles[:3]


@pytest.mark.parametrize("case", ["boxes_standard", "planes", "anchors_letterbox"])
def test_nms_iou_of_the_configuration_replaces_the_file(case: str) -> None:
    assert len(decoded(case, nms_iou=0.1)) < len(decoded(case, nms_iou=0.9)) <= len(decoded(case, nms_iou=1.0))


@pytest.mark.parametrize("case", ["boxes_standard", "planes", "anchors_standard"])
def test_a_class_has_a_threshold_of_its_own(case: str) -> None:
    every, chosen = decoded(case), decoded(case, class_thresholds={2: 0.6})
    is_kept = (every.class_ids != 2) | (every.scores > np.float32(0.6))
    assert not is_kept.all()
    assert chosen.scores.tolist() == every.scores[is_kept].tolist()


@pytest.mark.parametrize("case", ["boxes_standard", "planes", "anchors_standard"])
def test_small_masks_are_left_out_by_min_area(case: str) -> None:
    areas = rle.area(decoded(case).rles)
    least = int(np.median(areas))
    assert rle.area(decoded(case, min_area=least).rles).tolist() == areas[areas >= least].tolist()


@pytest.mark.parametrize("output", ["boxes", "masks"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_row_with_an_invalid_number_is_dropped_and_counted(output: str, value: float) -> None:
    chosen, outputs = adapter("boxes_standard"), geti_outputs.arrays("boxes_standard")
    every = chosen.decode(outputs, SIZES_HW[0], options_of(chosen))
    row = int(np.flatnonzero(outputs["boxes"][:, 4] == every.scores[0])[0])
    outputs[output][(row, 1, 1) if output == "masks" else (row, 1)] = value
    rest = chosen.decode(outputs, SIZES_HW[0], options_of(chosen))
    assert (rest.unreadable, rest.rles) == (1, every.rles[1:])


def test_an_anchor_with_an_invalid_number_is_dropped_and_counted() -> None:
    chosen, outputs = adapter("anchors_standard"), geti_outputs.arrays("anchors_standard")
    every = chosen.decode(outputs, SIZES_HW[0], options_of(chosen))
    anchor = int(np.flatnonzero(outputs["output0"][0, 4:7].max(axis=0) == every.scores[0])[0])
    for channel in (0, 5, 9):  # a centre, a score, a coefficient
        broken = outputs["output0"].copy()
        broken[0, channel, anchor] = np.nan
        rest = chosen.decode({**outputs, "output0": broken}, SIZES_HW[0], options_of(chosen))
        assert (rest.unreadable, rest.rles) == (1, every.rles[1:])


def test_prototypes_with_an_invalid_number_leave_no_row() -> None:
    chosen, outputs = adapter("anchors_standard"), geti_outputs.arrays("anchors_standard")
    every = chosen.decode(outputs, SIZES_HW[0], options_of(chosen))
    outputs["output1"][0, 2, 3, 3] = np.nan
    rest = chosen.decode(outputs, SIZES_HW[0], options_of(chosen))
    assert (len(rest), rest.unreadable) == (0, len(every))


def test_a_class_beyond_the_names_is_left_out_by_boxes_and_unnamed_for_anchors() -> None:
    outputs = geti_outputs.arrays("boxes_standard")
    assert (outputs["labels"] == 3).any()
    assert set(decoded("boxes_standard").class_ids) == {1, 2, 3}
    few = adapter("anchors_standard").with_labels({7: "box", 9: "rod"})
    ids = few.decode(geti_outputs.arrays("anchors_standard"), SIZES_HW[0], options_of(few)).class_ids
    assert set(ids) == {7, 9, -1}


def test_outputs_without_rows_give_no_instances() -> None:
    for case in ("boxes_standard", "planes"):
        empty = {name: array[:0] for name, array in geti_outputs.arrays("boxes_standard").items()}
        chosen = adapter(case)
        assert len(chosen.decode(empty, SIZES_HW[0], options_of(chosen))) == 0
    assert len(decoded("anchors_letterbox", score_threshold=1.0)) == 0


@pytest.mark.parametrize("case", CASES)
def test_an_image_of_one_pixel_and_a_line_are_decoded(case: str) -> None:
    for size_hw in ((1, 1), (1, 900), (900, 1)):
        assert all(rle.runs_of(counts, size_hw).sum() for counts in decoded(case, size_hw).rles)


def test_decoding_leaves_the_arrays_as_they_are() -> None:
    for case in CASES:
        before, after = geti_outputs.arrays(case), geti_outputs.arrays(case)
        chosen = adapter(case)
        chosen.decode(after, SIZES_HW[0], options_of(chosen))
        assert all(np.array_equal(before[name], after[name]) for name in before)


# ---- facts of the file ----------------------------------------------------------------------------


def test_a_file_without_thresholds_has_those_of_model_api() -> None:
    bare = replace(geti_outputs.description("planes"), thresholds={}, extra={})
    assert adapter_of(bare).defaults == geti.Defaults(0.5, geti.UNLIMITED)
    assert adapter_of(replace(bare, family="geti_yolo")).defaults == geti.Defaults(0.25, geti.UNLIMITED)
    suppressed = adapter_of(replace(bare, extra={"nms_execute": True}))
    assert suppressed.defaults == geti.Defaults(0.5, 200, nms_iou=0.5)


def test_other_shapes_are_an_error_that_names_them() -> None:
    chosen, outputs = adapter("boxes_standard"), geti_outputs.arrays("boxes_standard")
    outputs["boxes"] = outputs["boxes"][:, :4]
    with pytest.raises(ModelError, match=r"boxes \[n, 5\]"):
        chosen.decode(outputs, SIZES_HW[0], options_of(chosen))


# ---- images ---------------------------------------------------------------------------------------


@cache
def interpolation() -> Any:
    """Return OpenVINO's bilinear resize as a network of an image and a size."""
    import openvino as ov
    from openvino import opset10 as ops

    image, size = ops.parameter([1, -1, -1, 3], np.uint8), ops.parameter([2], np.int32)
    resized = ops.interpolate(image, size, np.zeros(2, np.float32), "linear", "sizes", axes=np.array([1, 2]))
    model = ov.Model([ops.result(ops.convert(resized, "f32"))], [image, size], "resize")
    return ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def pixels(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


SIDES = st.integers(1, 90)


@tried(60)
@given(st.integers(0, 2**32), SIDES, SIDES, SIDES, SIDES)
def test_resize_exact_equals_openvino(seed: int, height: int, width: int, rows: int, columns: int) -> None:
    image = pixels(seed, height, width)
    expected = interpolation()([image[None], np.array([rows, columns], np.int32)])[0][0]
    assert np.array_equal(geometry.resize_exact(image, (rows, columns)), expected)


def linear_matrix(source: int, target: int) -> NDArray[np.float64]:
    """Return the bilinear resize of one axis as a matrix (target, source)."""
    centre = ((np.arange(target) + 0.5) * (source / target) - 0.5).clip(0, source - 1)
    return np.maximum(0, 1 - np.abs(centre[:, None] - np.arange(source)))


@tried(40)
@given(st.integers(0, 2**32), SIDES, SIDES, SIDES, SIDES)
def test_resize_exact_rounds_the_bilinear_value(seed: int, height: int, width: int, rows: int, columns: int) -> None:
    image = pixels(seed, height, width)
    shrunk = np.tensordot(linear_matrix(height, rows), image.astype(np.float64), 1)
    exact = (linear_matrix(width, columns) @ shrunk).reshape(rows, columns, 3)
    assert np.abs(geometry.resize_exact(image, (rows, columns)) - exact).max() <= 0.505


@tried(100)
@given(SIDES, SIDES, st.integers(8, 64), st.integers(8, 64), st.booleans())
def test_an_exact_fit_pads_beside_the_resized_image(
    height: int, width: int, rows: int, columns: int, centred: bool
) -> None:
    image = pixels(0, height, width)
    fit = geometry.Fit.exact((height, width), (rows, columns), "letterbox" if centred else "corner")
    window = geometry.place(image, fit, (rows, columns), 114, "exact").copy()
    inner_hw = fit.content_hw
    assert rows in inner_hw[:1] or columns in inner_hw[1:]
    top, left = ((rows - inner_hw[0]) // 2, (columns - inner_hw[1]) // 2) if centred else (0, 0)
    inside = window[top : top + inner_hw[0], left : left + inner_hw[1]].copy()
    assert np.array_equal(inside, geometry.resize_exact(image, inner_hw))
    window[top : top + inner_hw[0], left : left + inner_hw[1]] = 114
    assert (window == 114).all()


# ---- masks and suppression, against numpy ---------------------------------------------------------


def grids(seed: int, n: int, rows: int, columns: int) -> NDArray[np.float32]:
    """Return n smooth grids of 0..1; some lie on one side of 0.5."""
    rng = np.random.default_rng(seed)
    coarse = rng.uniform(-0.4, 1.4, (n, 4, 4)) + rng.uniform(-0.8, 0.4, (n, 1, 1))
    smooth = linear_matrix(4, rows) @ coarse @ linear_matrix(4, columns).T
    return smooth.clip(0, 1).astype(np.float32)


def assert_same_mask(counts: str, values: NDArray[np.float64]) -> None:
    """The mask is where the values are over 0.5. A value that is almost 0.5 may lie on either side."""
    mask = rle.decode(counts, (values.shape[0], values.shape[1]))
    assert not ((mask != (values > 0.5)) & (np.abs(values - 0.5) > 1e-5)).any()


@tried(80)
@given(st.integers(0, 2**32), st.integers(1, 24), st.integers(1, 24), SIDES, SIDES)
def test_edges_of_planes_are_those_of_the_resized_grids(
    seed: int, rows: int, columns: int, height: int, width: int
) -> None:
    planes = grids(seed, 3, rows, columns)
    counts = rle.from_edges_of_all(*outlines.edges_of_planes(planes, (height, width)), (height, width))
    for text, plane in zip(counts, planes.astype(np.float64), strict=True):
        assert_same_mask(text, linear_matrix(rows, height) @ plane @ linear_matrix(columns, width).T)


@tried(120)
@given(st.data())
def test_edges_after_two_resizes_are_those_of_the_resized_grids(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 16)), data.draw(st.integers(1, 16))
    between_hw = rows * 4, columns * 4
    size_hw = data.draw(SIDES), data.draw(SIDES)
    top, left = data.draw(st.integers(0, between_hw[0] - 1)), data.draw(st.integers(0, between_hw[1] - 1))
    bottom, right = (data.draw(st.integers(low + 1, high)) for low, high in zip((top, left), between_hw, strict=True))
    planes = grids(data.draw(st.integers(0, 2**32)), 3, rows, columns)
    corners = [
        sorted(data.draw(st.lists(st.integers(0, side), min_size=2, max_size=2))) for side in (columns, rows) * 3
    ]
    crops = np.array([[x[0], y[0], x[1], y[1]] for x, y in zip(corners[::2], corners[1::2], strict=True)], np.int64)
    for plane, (x0, y0, x1, y1) in zip(planes, crops, strict=True):
        inside = plane[y0:y1, x0:x1].copy()
        plane[:] = 0
        plane[y0:y1, x0:x1] = inside
    cells = outlines.crop_logits(np.ascontiguousarray(planes.transpose(1, 2, 0)), crops, 0)
    axes = (
        outlines.taps_of_two_resizes(rows, between_hw[0], top, bottom, size_hw[0]),
        outlines.taps_of_two_resizes(columns, between_hw[1], left, right, size_hw[1]),
    )
    counts = rle.from_edges_of_all(*outlines.edges_of_crops_resized_twice(cells, crops, *axes), size_hw)
    for text, plane in zip(counts, planes.astype(np.float64), strict=True):
        middle = linear_matrix(rows, between_hw[0]) @ plane @ linear_matrix(columns, between_hw[1]).T
        cut = middle[top:bottom, left:right]
        assert_same_mask(
            text, linear_matrix(bottom - top, size_hw[0]) @ cut @ linear_matrix(right - left, size_hw[1]).T
        )


@tried(60)
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 12))
def test_crops_of_sums_are_those_of_the_whole_sums(seed: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng(seed)
    coefficients = rng.uniform(-1, 1, (4, 5)).astype(np.float32)
    prototypes = rng.uniform(-1, 1, (5, rows, columns)).astype(np.float32)
    x, y = np.sort(rng.integers(0, columns + 1, (4, 2))), np.sort(rng.integers(0, rows + 1, (4, 2)))
    crops = np.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], axis=1)
    sums = np.einsum("nk,krc->rcn", coefficients.astype(np.float64), prototypes).astype(np.float32)
    cells = outlines.crops_of_sums(coefficients, prototypes, crops, -np.inf)
    assert np.allclose(cells, outlines.crop_logits(np.ascontiguousarray(sums), crops, -np.inf), atol=1e-5)


def greedy(boxes: NDArray[Any], order: NDArray[np.intp], max_iou: float) -> list[int]:
    kept: list[int] = []
    for row in order:
        a = boxes[row]
        ious = []
        for k in kept:
            b = boxes[k]
            shared = np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0).prod()
            union = (b[2:] - b[:2]).prod() + (a[2:] - a[:2]).prod() - shared
            ious.append(shared / union if union else boxes.dtype.type(0))
        if all(float(iou) <= max_iou for iou in ious):
            kept.append(int(row))
    return kept


@tried(100)
@given(st.integers(0, 2**32), st.integers(0, 40), st.floats(0, 1), st.booleans())
def test_kept_rows_are_those_of_greedy_suppression(seed: int, n: int, max_iou: float, is_whole: bool) -> None:
    rng = np.random.default_rng(seed)
    corners = rng.integers(-5, 30, (n, 2)) if is_whole else rng.uniform(-5, 30, (n, 2))
    sides = rng.integers(-1, 20, (n, 2)) if is_whole else rng.uniform(-1, 20, (n, 2))
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float64 if is_whole else np.float32)
    order = rng.permutation(n)
    assert geti.kept_rows(boxes, order, max_iou).tolist() == greedy(boxes, order, max_iou)
