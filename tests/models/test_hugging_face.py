"""The adapters of Mask2Former, MaskFormer and EoMT: parity with transformers, sizes, boxes, and rows left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_today
from numpy.typing import NDArray

from segray import rle
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


def assert_rows_agree(instances: Instances, rows: list[dict[str, Any]], *, ordered: bool) -> None:
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
    np.testing.assert_allclose(instances.scores, [rows[i]["score"] for i in places], rtol=0, atol=1e-5)
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
