"""RF-DETR-Seg and Hugging Face's models on the way that users take: a path, and rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import query_network
import yolo_network
from test_described_models import is_red, labelled, settings

from segray.errors import ConfigError
from segray.models import resolve
from segray.models.adapters.rf_detr import BACKGROUND

LABELS = {1: "red thing", 2: "bird"}


@pytest.mark.parametrize(
    ("size_hw", "model"),
    [((96, 96), {}), (None, {"size": [96, 96]}), ((64, 96), {"name": "rf_detr", "precision": "f32"})],
    ids=str,
)
def test_rf_detr_gives_the_object_its_mask(
    tmp_path: Path, size_hw: tuple[int, int] | None, model: dict[str, Any]
) -> None:
    folder = query_network.write(tmp_path / "m", "rf_detr", size_hw=size_hw, columns=3)
    picture = yolo_network.red_rectangle()
    instances = labelled(folder, picture, labels=LABELS, **model)
    assert instances.class_ids.tolist() == [1]
    assert instances.boxes_xyxy.tolist() == [[20, 12, 60, 36]]
    assert is_red(instances, picture)
    chosen = settings(folder, labels=LABELS, **model)
    assert resolve.configured(chosen).adapter.labels == {**LABELS, 3: BACKGROUND}


def test_coco_columns_have_coco_ids(tmp_path: Path) -> None:
    folder = query_network.write(tmp_path / "m", "rf_detr", size_hw=(96, 96), columns=91)
    instances = labelled(folder, yolo_network.red_rectangle())
    assert instances.class_ids.tolist() == [0]
    labels = resolve.configured(settings(folder)).adapter.labels
    assert (labels[0], labels[1], labels[90]) == ("category 0", "person", "toothbrush")


@pytest.mark.parametrize(
    ("family", "size_hw", "model"),
    [
        ("mask2former", None, {}),
        ("mask2former", (96, 96), {}),
        ("maskformer", None, {}),
        ("maskformer", None, {"size": [96, 128]}),
        ("eomt", (96, 96), {}),
        ("eomt", None, {}),
        ("eomt", None, {"size": [96, 96]}),
    ],
    ids=str,
)
def test_the_processors_give_the_object_its_mask(
    tmp_path: Path, family: str, size_hw: tuple[int, int] | None, model: dict[str, Any]
) -> None:
    folder = query_network.write(tmp_path / "m", "hugging_face", size_hw=size_hw, columns=3)
    picture = yolo_network.red_rectangle()
    instances = labelled(folder, picture, name=family, labels=LABELS, **model)
    assert instances.class_ids.tolist() == [1]
    assert is_red(instances, picture)
    (box,) = instances.boxes_xyxy.tolist()
    assert box == pytest.approx([20, 12, 60, 36], abs=2)


def test_a_card_names_the_processor_and_the_classes(tmp_path: Path) -> None:
    folder = query_network.write(tmp_path / "m", "hugging_face", size_hw=(96, 96), columns=3)
    card = {"contract": "eomt", "description": {"labels": ["red thing", "bird"]}}
    (folder / "segray.json").write_text(json.dumps(card))
    picture = yolo_network.red_rectangle()
    assert is_red(labelled(folder, picture), picture)
    described = resolve.configured(settings(folder)).effective
    assert described is not None
    assert (described.family, described.resize, described.labels) == ("eomt", "corner", LABELS)


def test_without_a_processor_the_three_are_named(tmp_path: Path) -> None:
    folder = query_network.write(tmp_path / "m", "hugging_face", size_hw=(96, 96), columns=3)
    for model in ({}, {"labels": LABELS}):
        with pytest.raises(ConfigError, match="which image processor") as refused:
            resolve.configured(settings(folder, **model))
        assert "`model.name` to mask2former, maskformer or eomt" in refused.value.hint


def test_without_a_size_the_sizes_of_rfdetr_are_named(tmp_path: Path) -> None:
    folder = query_network.write(tmp_path / "m", "rf_detr", size_hw=None, columns=91)
    with pytest.raises(ConfigError, match="size") as refused:
        resolve.configured(settings(folder))
    assert "nano 312" in refused.value.hint
    assert "model.size" in refused.value.hint


def test_a_worker_takes_the_processor_of_the_driver(tmp_path: Path) -> None:
    chosen = settings(
        query_network.write(tmp_path / "m", "hugging_face", size_hw=(96, 96), columns=3), name="eomt", labels=LABELS
    )
    model = resolve.configured(chosen)
    there = resolve.configured(model.complete(chosen), model.description)
    assert (there.fingerprint, there.adapter) == (model.fingerprint, model.adapter)
    other = resolve.configured(chosen.model_copy(update={"name": "mask2former"}))
    assert other.fingerprint != model.fingerprint
