"""The adapters of Mask2Former, MaskFormer and EoMT: parity with transformers, sizes, boxes, and rows left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import golden_files
import numpy as np
import pytest
import reference_today
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from properties import tried

from segray import rle
from segray.errors import ModelError
from segray.imaging import outlines
from segray.instances import Instances
from segray.models.adapters.adapter import Options
from segray.models.adapters.hugging_face import HuggingFace, MaskFormer
from segray.models.description import Description
from segray.models.registry import FAMILIES

MEAN, SCALE = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def adapter(family: str, classes: int = 80, size_hw: tuple[int, int] | None = None, **changes: Any) -> HuggingFace:
    facts: dict[str, Any] = {
        "family": family,
        "what": "Mask2Former by Hugging Face",
        "kind": "queries",
        "input_name": "pixel_values",
        "outputs": {"classes": 0, "masks": 1},
        "size_hw": size_hw,
        "rounding": "antialiased",
        "labels": {i + 1: f"class {i}" for i in range(classes)},
        "extra": {"queries": 100},
    }
    model = FAMILIES[family](Description(**{**facts, **changes}))
    assert isinstance(model, HuggingFace)
    return model


def decode(
    model: HuggingFace, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int], **changes: Any
) -> Instances:
    defaults = {"score_threshold": model.defaults.score_threshold, "max_detections": model.defaults.max_detections}
    return model.decode(outputs, size_hw, Options(**{**defaults, **changes}))


def outputs_of(arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {"classes": arrays["class_queries_logits"], "masks": arrays["masks_queries_logits"]}


# ---- the results of transformers ------------------------------------------------------------------


def assert_rows_agree(instances: Instances, rows: list[dict[str, Any]], *, ordered: bool, most: float = 1e-5) -> None:
    """Mask2Former and MaskFormer have no order of rows, so that the rows are compared as sets."""
    masks = [rle.decode(row["rle"], instances.size_hw) for row in rows]
    places = list(range(len(rows)))
    if not ordered:
        free = set(places)
        for i in range(len(instances)):
            mask = rle.decode(instances.rles[i], instances.size_hw)
            same = [j for j in sorted(free) if rows[j]["class"] + 1 == instances.class_ids[i]]
            places[i] = min(same, key=lambda j: ((mask != masks[j]).sum(), abs(rows[j]["score"] - instances.scores[i])))
            free.remove(places[i])
    assert instances.class_ids.tolist() == [rows[i]["class"] + 1 for i in places]
    np.testing.assert_allclose(instances.scores, [rows[i]["score"] for i in places], rtol=0, atol=most)
    for i, counts in zip(places, instances.rles, strict=True):
        assert (rle.decode(counts, instances.size_hw) != masks[i]).sum() <= 2


def assert_boxes_are_extents(instances: Instances) -> None:
    for counts, box in zip(instances.rles, instances.boxes_xyxy.tolist(), strict=True):
        rows, columns = np.nonzero(rle.decode(counts, instances.size_hw))
        expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] if len(rows) else [0, 0, 0, 0]
        assert box == expected


REFERENCE = reference_today.results("hf_*")


@pytest.mark.skipif(not REFERENCE, reason=f"{reference_today.FOLDER} is not there")
@pytest.mark.parametrize("path", REFERENCE, ids=lambda path: path.name.removesuffix(".json.gz"))
def test_every_row_of_the_reference_is_decoded(path: Path) -> None:
    reference = reference_today.result(path)
    arrays, _ = reference_today.raw_outputs(reference["case"], reference["seed"])
    family = reference["case"].removeprefix("hf_")
    model = adapter(family, size_hw=tuple(reference["network_size"]))
    assert model.defaults.score_threshold == reference["settings"]["threshold"]
    instances = decode(model, outputs_of(arrays), tuple(reference["image_size"]))
    assert len(instances) == len(reference["rows"]) > 2
    assert instances.unreadable == 0
    assert_rows_agree(instances, reference["rows"], ordered=family == "eomt")
    assert_boxes_are_extents(instances)


@pytest.mark.skipif(not REFERENCE, reason=f"{reference_today.FOLDER} is not there")
def test_the_network_gets_the_image_of_the_processor_within_a_level() -> None:
    with np.load(reference_today.FOLDER / "preprocess" / "hf_seed7.npz") as tensors:
        keys = [key for key in tensors.files if not key.endswith("_u8")]
        assert len(keys) == 6
        for key in keys:
            size, family = key.split("_")
            height, width = map(int, size.split("x"))
            model = adapter(family, size_hw=None if family == "maskformer" else (96, 96))
            if isinstance(model, MaskFormer):
                model = replace(model, shortest=64, longest=107)
            levels = model.prepare(model.forms["exported"], reference_today.picture(7, height, width))["pixel_values"]
            expected = (tensors[key][0].astype(float).transpose(1, 2, 0) * SCALE + MEAN) * 255
            assert levels[0].shape == expected.shape
            assert np.abs(levels[0] - expected).max() <= 1 + 0.1  # The tensor is stored in float16.


@pytest.mark.parametrize("family", ["mask2former", "maskformer", "eomt"])
def test_some_queries_are_decoded_as_by_transformers(family: str) -> None:
    outputs, golden = golden_files.queries(f"hf_{family}")
    model = adapter(family, size_hw=tuple(golden["network_size"]))
    instances = decode(model, outputs, tuple(golden["size"]))
    assert len(instances) == len(golden["rows"]) > 0
    assert_rows_agree(instances, golden["rows"], ordered=family == "eomt", most=1e-4)  # Masks are rounded to float16.
    assert_boxes_are_extents(instances)


# ---- rules ----------------------------------------------------------------------------------------


def planes(masks: NDArray[np.float32], scores: list[float]) -> dict[str, NDArray[np.float32]]:
    """One class; query i has this mask and this probability of the class."""
    classes = np.log(np.array([[score, 1 - score] for score in scores], np.float32))
    return {"classes": classes[None], "masks": masks[None].astype(np.float32)}


def test_later_masks_of_eomt_paint_over_earlier_ones() -> None:
    masks = np.full((3, 8, 8), 50.0)
    masks[1, :, 4:] = -50
    found = decode(adapter("eomt", 1, (32, 32)), planes(masks, [0.99, 0.95, 0.5]), (8, 8))
    assert rle.area(found.rles).tolist() == [32, 32]
    assert found.boxes_xyxy.tolist() == [[4, 0, 8, 8], [0, 0, 4, 8]]
    assert_boxes_are_extents(decode(adapter("eomt", 1, (32, 32)), planes(masks[[1, 0]], [0.95, 0.99]), (8, 8)))


@pytest.mark.parametrize("family", ["mask2former", "maskformer"])
def test_masks_of_the_mask_formers_overlap_and_a_score_of_the_threshold_stays(family: str) -> None:
    masks = np.full((2, 8, 8), 50.0)
    masks[1, :, 4:] = -50
    outputs = planes(masks, [0.75, 0.9])
    found = decode(adapter(family, 1), outputs, (8, 8))
    assert rle.area(found.rles).tolist() == [32, 64]
    lowest = float(found.scores[1])
    assert len(decode(adapter(family, 1), outputs, (8, 8), score_threshold=lowest)) == 2
    above = float(np.nextafter(np.float32(lowest), np.float32(1)))
    assert len(decode(adapter(family, 1), outputs, (8, 8), score_threshold=above)) == 1
    assert len(decode(adapter(family, 1), outputs, (8, 8), max_detections=1)) == 1


def test_invalid_queries_are_counted_and_the_others_stay() -> None:
    outputs = planes(np.full((3, 8, 8), 50.0), [0.9, 0.9, 0.9])
    outputs["classes"][0, 0, 0], outputs["masks"][0, 1, 2, 3] = np.nan, np.inf
    found = decode(adapter("mask2former", 1), outputs, (8, 8))
    assert (len(found), found.unreadable) == (1, 2)


def test_another_number_of_classes_is_refused() -> None:
    with pytest.raises(ModelError, match="other shapes") as refused:
        decode(adapter("eomt", 3, (32, 32)), planes(np.ones((1, 8, 8), np.float32), [0.9]), (8, 8))
    assert "Name 1 classes" in refused.value.hint


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
)
@tried(100)
def test_the_edges_are_those_of_the_resized_mask(seed: int, grid_hw: tuple[int, int], size_hw: tuple[int, int]) -> None:
    mask = np.random.default_rng(seed).random(grid_hw) < 0.5
    rows, columns = (outlines.nearest_pixels(grid_hw[i], size_hw[i]) for i in (0, 1))
    assert rle.from_edges(outlines.edges_of_nearest(mask, size_hw), size_hw) == rle.encode(mask[rows][:, columns])


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.floats(0, 1),
)
@tried(100)
def test_the_positive_part_holds_all_that_is_over_0(
    seed: int, grid_hw: tuple[int, int], size_hw: tuple[int, int], share: float
) -> None:
    rng = np.random.default_rng(seed)
    plane = np.where(rng.random(grid_hw) < share, rng.normal(0, 3, grid_hw), -1).astype(np.float32)
    whole = outlines.resize_plane(plane, size_hw)
    top, left, part = outlines.positive_part(plane, size_hw)
    rebuilt = np.full(size_hw, -1, np.float32)
    rebuilt[top : top + part.shape[0], left : left + part.shape[1]] = part
    np.testing.assert_array_equal(np.maximum(rebuilt, 0), np.maximum(whole, 0))
