"""RF-DETR-Seg and Hugging Face's models on the way that users take: a path, and rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import query_network
import yolo_network
from test_described_models import is_red, labelled, settings

from segray.errors import ConfigError, ModelError
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


# ---- what transformers keeps beside a model -------------------------------------------------------

ID2LABEL = {"0": "red thing", "1": "bird"}


def beside(folder: Path, config: Any = None, processor: Any = None) -> Path:
    for name, content in (("config.json", config), ("preprocessor_config.json", processor)):
        if content is not None:
            (folder / name).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("config", "processor", "family", "source"),
    [
        ({"model_type": "mask2former"}, None, "mask2former", "config.json"),
        ({"model_type": "eomt_dinov3"}, {"image_processor_type": "EomtImageProcessor"}, "eomt",
         "preprocessor_config.json"),
        ({"model_type": "maskformer"}, {"image_processor_type": "MaskFormerImageProcessorFast"}, "maskformer",
         "preprocessor_config.json"),
        ({"model_type": "mask2former"}, {"feature_extractor_type": "MaskFormerFeatureExtractor"}, "maskformer",
         "preprocessor_config.json"),
    ],
    ids=str,
)  # fmt: skip
def test_a_model_of_transformers_needs_its_path_alone(
    tmp_path: Path, config: dict[str, Any], processor: dict[str, Any] | None, family: str, source: str
) -> None:
    folder = query_network.write(tmp_path / "m", "hugging_face", size_hw=(96, 96), columns=3)
    beside(folder, config | {"id2label": ID2LABEL}, processor)
    picture = yolo_network.red_rectangle()
    instances = labelled(folder, picture)
    assert instances.class_ids.tolist() == [1]
    assert is_red(instances, picture)
    described = resolve.configured(settings(folder)).effective
    assert described is not None
    assert (described.family, described.labels, described.sources["family"]) == (family, LABELS, source)
    assert described.sources["labels"] == "config.json"


def test_the_processors_numbers_are_taken(tmp_path: Path) -> None:
    folder = query_network.write(tmp_path / "m", "hugging_face", size_hw=None, columns=3)
    processor = {
        "image_processor_type": "Mask2FormerImageProcessor", "size": {"height": 128, "width": 160},
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.229, 0.2240000069141388, 0.225], "rescale_factor": 1 / 255,
    }  # fmt: skip
    beside(folder, {"model_type": "mask2former", "id2label": ID2LABEL}, processor)
    described = resolve.configured(settings(folder)).effective
    assert described is not None
    assert described.size_hw == (128, 160)
    assert described.mean == pytest.approx((127.5, 127.5, 127.5))
    assert described.scale == (255 * 0.229, 255 * 0.224, 255 * 0.225)
    assert [described.sources[key] for key in ("size_hw", "mean")] == ["preprocessor_config.json"] * 2
    assert described.notes == ()


@pytest.mark.parametrize(("sides", "is_told"), [((800, 1333), False), ((640, 1024), True)])
def test_a_size_that_segray_does_not_resize_to_is_told(tmp_path: Path, sides: tuple[int, int], is_told: bool) -> None:
    folder = query_network.write(tmp_path / "m", "hugging_face", size_hw=None, columns=3)
    size = {"shortest_edge": sides[0], "longest_edge": sides[1]}
    beside(folder, {"id2label": ID2LABEL}, {"image_processor_type": "MaskFormerImageProcessor", "size": size})
    described = resolve.configured(settings(folder, labels=LABELS)).effective
    assert described is not None
    assert any("shortest_edge 640, longest_edge 1024" in note for note in described.notes) == is_told


def test_the_configuration_and_the_card_override_what_lies_beside(tmp_path: Path) -> None:
    folder = query_network.write(tmp_path / "m", "hugging_face", size_hw=None, columns=3)
    beside(folder, {"model_type": "mask2former", "id2label": ID2LABEL})
    by_name = resolve.configured(settings(folder, name="eomt", labels={5: "a", 6: "b"})).effective
    assert by_name is not None
    assert (by_name.family, by_name.resize, by_name.labels) == ("eomt", "corner", {5: "a", 6: "b"})
    assert by_name.size_hw != (384, 384)
    (folder / "segray.json").write_text(json.dumps({"contract": "maskformer"}))
    by_card = resolve.configured(settings(folder)).effective
    assert by_card is not None
    assert (by_card.family, by_card.labels, by_card.size_hw) == ("maskformer", LABELS, None)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "mask2former", "id2label": {"0": "LABEL_0", "1": "LABEL_1"}},
        {"model_type": "mask2former", "id2label": {"0": "one class too few"}},
        {"id2label": ID2LABEL},
        ["a list"],
    ],
    ids=str,
)
def test_names_that_are_no_names_of_the_network_are_not_taken(tmp_path: Path, config: Any) -> None:
    folder = query_network.write(tmp_path / "m", "hugging_face", size_hw=(96, 96), columns=3)
    beside(folder, config)
    with pytest.raises(ConfigError, match=r"does not tell the model's labels"):
        resolve.configured(settings(folder, name="mask2former"))


def test_rf_detr_of_transformers_has_its_names_from_its_configuration(tmp_path: Path) -> None:
    folder = query_network.write(tmp_path / "m", "rf_detr", size_hw=(96, 96), columns=3)
    beside(folder, {"model_type": "rf_detr", "id2label": ID2LABEL})
    assert resolve.configured(settings(folder)).adapter.labels == {**LABELS, 3: BACKGROUND}


def test_a_config_json_that_cannot_be_read_is_told_where_it_counts(tmp_path: Path) -> None:
    folder = query_network.write(tmp_path / "m", "hugging_face", size_hw=(96, 96), columns=3)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json beside the model is not JSON"):
        resolve.configured(settings(folder, name="eomt", labels=LABELS))
    other = yolo_network.write(tmp_path / "yolo")
    (other / "config.json").write_text("{")
    assert resolve.configured(settings(other)).name == "yolo_seg"
