"""The adapter of RF-DETR-Seg: parity with rfdetr, ids of the columns, and rows that are left out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import golden_files
import numpy as np
import pytest
import reference_today
from numpy.typing import NDArray

from segray import rle
from segray.errors import ConfigError, ModelError
from segray.instances import Instances
from segray.models.adapters import rf_detr
from segray.models.adapters.adapter import Options
from segray.models.adapters.rf_detr import BACKGROUND, RfDetr
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


@pytest.mark.parametrize(("case", "labels", "columns"), [("rf_detr", COCO_NAMES, 91), ("rf_detr_finetuned", NAMES, 4)])
def test_some_queries_are_decoded_as_by_rfdetr(case: str, labels: Mapping[int, str], columns: int) -> None:
    outputs, golden = golden_files.queries(case)
    ids = list(range(91)) if columns == 91 else [1, 2, 3, 4]
    assert golden["rows"]
    assert_rows_agree(decode(outputs, tuple(golden["size"]), adapter(labels, columns)), golden["rows"], ids)


# ---- rows and ids ---------------------------------------------------------------------------------


def test_a_score_of_the_threshold_is_too_low_and_a_class_has_its_own() -> None:
    outputs = outputs_of([[0, -9, -9, -9], [-9, 0.01, -9, -9], [-9, -9, 2, -9]])
    assert decode(outputs, (8, 9)).class_ids.tolist() == [3, 2]
    assert decode(outputs, (8, 9), class_thresholds={3: 0.9}).class_ids.tolist() == [2]


def test_a_query_has_a_row_for_each_class_and_there_are_as_many_rows_as_queries() -> None:
    found = decode(outputs_of([[3, 3, -9, -9], [2, -9, -9, -9], [1, 1, -9, -9]]), (8, 9))
    assert found.class_ids.tolist() == [1, 2, 1]
    assert found.boxes_xyxy.round(3).tolist() == [[0, 0, 3, 8], [0, 0, 3, 8], [3, 0, 6, 8]]
    assert found.rles[0] == found.rles[1] != found.rles[2]


def test_a_logit_of_0_is_outside_and_the_least_over_0_is_inside() -> None:
    for level, is_set in ((0, False), (1e-30, True)):
        found = decode(outputs_of([[3, -9, -9, -9]], level), (8, 9))
        assert rle.decode(found.rles[0], (8, 9)).any() == is_set


def test_invalid_queries_are_counted_and_the_others_stay() -> None:
    outputs = outputs_of([[3, -9, -9, -9], [3, -9, -9, -9], [3, -9, -9, -9], [2, -np.inf, -9, -9]])
    outputs["dets"][0, 0, 1], outputs["labels"][0, 1, 3], outputs["masks"][0, 2, 0, 0] = np.inf, np.nan, np.nan
    found = decode(outputs, (8, 9))
    assert (len(found), found.unreadable) == (1, 3)


@pytest.mark.parametrize(
    ("labels", "columns", "ids"),
    [
        ({1: "a", 2: "b", 7: "c"}, 4, [1, 2, 7, 8]),
        ({0: "a", 1: "b", 2: "c", 3: "none"}, 4, [0, 1, 2, 3]),
        (COCO_NAMES, 91, list(range(91))),
        ({i: f"c{i}" for i in range(1, 91)}, 91, list(range(1, 92))),
    ],
)
def test_each_column_has_an_id_and_a_name(labels: Mapping[int, str], columns: int, ids: list[int]) -> None:
    model = adapter(labels, columns)
    assert list(model.labels) == ids
    assert len(set(model.labels.values())) == columns
    assert model.with_labels(labels).labels == model.labels
    assert model.labels.get(8) == BACKGROUND or columns != 4 or 7 not in labels


def test_labels_that_are_too_few_are_refused() -> None:
    with pytest.raises(ConfigError, match="not as many") as refused:
        adapter().with_labels({1: "a"})
    assert "3 classes" in refused.value.hint
    with pytest.raises(ModelError, match="other shapes"):
        decode(outputs_of([[1, 1]]), (8, 9))
