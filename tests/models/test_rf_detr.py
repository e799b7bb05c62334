"""The adapter of RF-DETR-Seg: parity with rfdetr, ids of the columns, and rows that are left out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_today
from numpy.typing import NDArray

from segray import rle
from segray.instances import Instances
from segray.models.adapters import rf_detr
from segray.models.adapters.adapter import Options
from segray.models.adapters.rf_detr import RfDetr
from segray.models.coco_labels import COCO_NAMES
from segray.models.description import Description

MEAN, SCALE = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
NAMES = {1: "red thing", 2: "bird", 3: "nut"}


def adapter(labels: Mapping[int, str] = NAMES, columns: int | None = 4, **changes: Any) -> RfDetr:
    facts: dict[str, Any] = {
        "family": "rf_detr",
        "what": "RF-DETR-Seg",
        "kind": "queries",
        "input_name": "input",
        "outputs": {"dets": 0, "labels": 1, "masks": 2},
        "size_hw": (312, 312),
        "labels": labels,
        "resize": "stretch",
        "rounding": "exact",
        "extra": {} if columns is None else {"columns": columns, "queries": 100},
    }
    return rf_detr.of(Description(**{**facts, **changes}))


def decode(
    outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int], model: RfDetr | None = None, **changes: Any
) -> Instances:
    model = model or adapter()
    defaults = {"score_threshold": model.defaults.score_threshold, "max_detections": model.defaults.max_detections}
    return model.decode(outputs, size_hw, Options(**{**defaults, **changes}))


def outputs_of(logits: list[list[float]], level: float = 1) -> dict[str, NDArray[np.float32]]:
    """Queries with these logits of classes; box and mask of query i fill the i-th column of the image."""
    n = len(logits)
    masks = np.full((n, 8, n), -1, np.float32)
    masks[np.arange(n), :, np.arange(n)] = level
    dets = np.array([[(i + 0.5) / n, 0.5, 1 / n, 1] for i in range(n)], np.float32)
    return {"dets": dets[None], "labels": np.array(logits, np.float32)[None], "masks": masks[None]}


# ---- the results of rfdetr ------------------------------------------------------------------------


def assert_rows_agree(instances: Instances, rows: list[Mapping[str, Any]], ids: list[int]) -> None:
    assert instances.class_ids.tolist() == [ids[row["class"]] for row in rows]
    np.testing.assert_allclose(instances.scores, [row["score"] for row in rows], rtol=0, atol=1e-5)
    boxes = np.array([row["box"] for row in rows]).reshape(-1, 4)
    np.testing.assert_allclose(instances.boxes_xyxy, boxes, rtol=0, atol=1e-3)
    for row, mask in zip(rows, instances.rles, strict=True):
        decoded, expected = (rle.decode(text, instances.size_hw) for text in (mask, row["rle"]))
        assert (decoded != expected).sum() <= 2


REFERENCE = reference_today.results("rf_detr*")


@pytest.mark.skipif(not REFERENCE, reason=f"{reference_today.FOLDER} is not there")
@pytest.mark.parametrize("path", REFERENCE, ids=lambda path: path.name.removesuffix(".json.gz"))
def test_every_row_of_the_reference_is_decoded(path: Path) -> None:
    reference = reference_today.result(path)
    outputs, facts = reference_today.raw_outputs(reference["case"], reference["seed"])
    is_coco = facts["labels"] == "COCO ids"
    model = adapter(COCO_NAMES, 91) if is_coco else adapter()
    ids = list(range(91)) if is_coco else [1, 2, 3, 4]
    instances = decode(outputs, tuple(reference["image_size"]), model)
    assert len(instances) >= 22
    assert instances.unreadable == 0
    assert_rows_agree(instances, reference["rows"], ids)
    assert set(instances.class_ids.tolist()) <= model.labels.keys()


@pytest.mark.skipif(not REFERENCE, reason=f"{reference_today.FOLDER} is not there")
def test_the_network_gets_the_image_of_rfdetr_within_half_a_level() -> None:
    with np.load(reference_today.FOLDER / "preprocess" / "rf_detr_seed7.npz") as tensors:
        for key, tensor in tensors.items():
            height, width = map(int, key.split("_")[0].split("x"))
            model = adapter(size_hw=(96, 96))
            levels = model.prepare(model.forms["exported"], reference_today.picture(7, height, width))["input"][0]
            expected = (tensor[0].astype(float).transpose(1, 2, 0) * SCALE + MEAN) * 255
            assert np.abs(levels - expected).max() <= 0.5 + 0.06  # The tensor is stored in float16.
