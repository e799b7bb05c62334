"""torchvision's Mask R-CNN: parity with its own paste, the cut of the graph, classes, and files of several kinds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import golden_files
import numpy as np
import pytest
import reference_today
import torchvision_network
import yolo_network
from numpy.typing import NDArray
from test_described_models import is_red, labelled, settings

from segray import rle
from segray.errors import ConfigError
from segray.instances import Instances
from segray.models import engine, paste_graph, resolve
from segray.models.adapters import torchvision
from segray.models.adapters.adapter import Options
from segray.models.adapters.box_masks import UNNAMED
from segray.models.coco_labels import COCO_NAMES
from segray.models.description import Description

# A mask may differ from torchvision's by this many pixels, where a value is almost 0.5.
MOST_PIXELS = 2
PICTURE = yolo_network.red_rectangle()
SIZE_HW = (PICTURE.shape[0], PICTURE.shape[1])


def description(**changed: Any) -> Description:
    described = Description(
        family="torchvision_mask_rcnn",
        what="a made file",
        kind="pasted",
        input_name="image",
        outputs={"boxes": 0, "labels": 1, "scores": 2, "masks": 3},
        size_hw=None,
        labels=dict(COCO_NAMES),
        resize="stretch",
        scale=(255.0, 255.0, 255.0),
        extra={"mask_side": 28, "columns": 91},
    )
    return replace(described, **changed)


def adapter(**changed: Any) -> torchvision.TorchvisionMaskRcnn:
    return torchvision.of(description(**changed))


def of_size(arrays: Any, size: str) -> dict[str, NDArray[Any]]:
    return {"boxes": arrays[f"boxes_{size}"], **{name: arrays[name] for name in ("labels", "scores", "masks")}}


def assert_equals(instances: Instances, rows: list[dict[str, Any]]) -> None:
    assert rows
    assert instances.class_ids.tolist() == [row["class"] for row in rows]
    assert np.abs(instances.scores - [row["score"] for row in rows]).max() <= 1e-5
    assert np.abs(instances.boxes_xyxy - [row["box"] for row in rows]).max() <= 1e-2
    for counts, row in zip(instances.rles, rows, strict=True):
        expected = row["counts"] if "counts" in row else row["rle"]
        pixels = rle.decode(counts, instances.size_hw) != rle.decode(expected, instances.size_hw)
        assert pixels.sum() <= MOST_PIXELS


# ---- parity ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", ["31x17", "427x640"])
def test_rows_equal_those_of_torchvision(size: str) -> None:
    golden = golden_files.decoded(f"torchvision_{size}")
    with np.load(golden_files.GOLDEN / "torchvision.npz") as file:
        instances = adapter().decode(of_size(file, size), tuple(golden["size"]), Options(0.05))
    assert_equals(instances, golden["rows"])
    assert instances.unreadable == 0


@pytest.mark.skipif(not reference_today.FOLDER.is_dir(), reason="no folder reference-today")
@pytest.mark.parametrize("seed", [7, 11])
def test_rows_equal_those_of_the_reference(seed: int) -> None:
    arrays, _ = reference_today.raw_outputs("torchvision", seed)
    paths = [path for path in reference_today.results(f"torchvision_seed{seed}_*") if "1080x1920" not in path.name]
    assert len(paths) >= 4
    for path in paths:
        expected = reference_today.result(path)
        size = "x".join(map(str, expected["image_size"]))
        instances = adapter().decode(of_size(arrays, size), tuple(expected["image_size"]), Options(0.05))
        assert_equals(instances, expected["rows"])


@pytest.mark.skipif(not reference_today.FOLDER.is_dir(), reason="no folder reference-today")
@pytest.mark.parametrize("seed", [7, 11])
def test_masks_that_torchvision_pasted_give_the_same_rows_as_small_masks(seed: int) -> None:
    arrays = of_size(reference_today.raw_outputs("torchvision", seed)[0], "31x17")
    with np.load(reference_today.FOLDER / "expected" / f"torchvision_pasted_seed{seed}_31x17.npz") as file:
        whole = adapter(extra={"columns": 91}).decode({**arrays, "masks": file["masks"]}, (31, 17), Options(0.05))
    small = adapter().decode(arrays, (31, 17), Options(0.05))
    assert len(whole) == len(small) > 30
    for one, other in zip(whole.rles, small.rles, strict=True):
        assert (rle.decode(one, (31, 17)) != rle.decode(other, (31, 17))).sum() <= MOST_PIXELS


# ---- rows -----------------------------------------------------------------------------------------


def rows(scores: list[float], labels: list[int] | None = None) -> dict[str, NDArray[Any]]:
    count = len(scores)
    return {
        "boxes": np.tile(np.float32([2, 3, 9, 8]), (count, 1)),
        "labels": np.array([1] * count if labels is None else labels, np.int64),
        "scores": np.array(scores, np.float32),
        "masks": np.ones((count, 1, 28, 28), np.float32),
    }


def test_a_row_at_the_threshold_is_left_out_and_the_limit_keeps_the_best() -> None:
    above = float(np.nextafter(np.float32(0.25), np.float32(1)))
    made = rows([0.9, 0.5, above, 0.25])
    assert adapter().decode(made, (12, 12), Options(0.25)).scores.tolist() == np.float32([0.9, 0.5, above]).tolist()
    assert len(adapter().decode(made, (12, 12), Options(0.05, 2))) == 2
    assert len(adapter().decode(rows([]), (12, 12), Options(0.05))) == 0


def test_a_row_with_an_invalid_number_is_dropped_and_counted() -> None:
    made = rows([0.9, 0.8, 0.7, 0.6, 0.5], [1, 0, 2, 3, 4])
    made["boxes"][2, 1] = np.nan
    made["masks"][3, 0, 5, 5] = np.inf
    instances = adapter().decode(made, (12, 12), Options(0.05))
    assert instances.class_ids.tolist() == [1, 4]
    assert instances.unreadable == 3


def test_classes_are_cocos_ids_or_count_the_labels() -> None:
    made = rows([0.9, 0.8, 0.7], [1, 12, 90])
    assert adapter().decode(made, (12, 12), Options()).class_ids.tolist() == [1, 12, 90]  # 12 has no name.
    renamed = adapter().with_labels({1000 + i: name for i, name in COCO_NAMES.items()})
    assert renamed.decode(made, (12, 12), Options()).class_ids.tolist() == [1001, 12, 1090]
    own = adapter(labels={7: "bolt", 9: "nut"}, extra={"mask_side": 28})
    assert own.decode(rows([0.9, 0.8, 0.7], [2, 1, 3]), (12, 12), Options()).class_ids.tolist() == [9, 7, UNNAMED]
    eighty = {i: f"c{i}" for i in range(1, 81)}
    own = adapter(labels=eighty, extra={"mask_side": 28, "columns": 81})
    assert own.decode(made, (12, 12), Options()).class_ids.tolist() == [1, 12, UNNAMED]


# ---- files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "export", [{}, {"batch_axis": False}, {"paste": "resize"}, {"paste": ""}, {"rows": 3}], ids=str
)
def test_every_kind_of_export_gives_the_object_its_mask(tmp_path: Path, export: dict[str, Any]) -> None:
    path = torchvision_network.write(tmp_path, **export)
    instances = labelled(path, PICTURE, labels={5: "red thing"}, score_threshold=0.5)
    assert instances.class_ids.tolist() == [5]
    assert instances.scores.tolist() == [torchvision_network.SCORE]
    assert instances.boxes_xyxy.tolist() == [[0, 0, SIZE_HW[1], SIZE_HW[0]]]
    assert is_red(instances, PICTURE)


@pytest.mark.parametrize("export", [{}, {"batch_axis": False}], ids=str)
def test_the_engine_gives_small_masks_of_a_graph_that_pastes_them(tmp_path: Path, export: dict[str, Any]) -> None:
    model = resolve.configured(settings(torchvision_network.write(tmp_path, **export), labels={1: "red thing"}))
    graph = engine.read(model.path)
    engine.adjust(graph, model.form, model.path)
    assert not [node for node in graph.get_ops() if node.get_type_name() == "Loop"]
    ports = engine.signature_of(graph)
    assert ports.outputs[3].shape == (1, 1, 28, 28)
    assert ports.inputs[0].shape == (1, 3, None, None)
    assert ports.box_masks == paste_graph.BoxMasks(is_pasted=False, side=28, columns=2)
    # A saved copy, such as a quantised one, is the same model with the same form.
    engine.save(graph, tmp_path / "cut.xml")
    network = engine.compile(tmp_path / "cut.xml", model.form, engine.DeviceSettings(precision="f32", threads=1))
    with network.infer(model.adapter.prepare(model.form, PICTURE)) as outputs:
        assert is_red(model.adapter.decode(outputs, SIZE_HW, Options(0.5)), PICTURE)
    assert is_red(labelled(tmp_path / "cut.xml", PICTURE, labels={1: "red thing"}), PICTURE)


def test_an_image_size_of_the_configuration_stretches_the_image(tmp_path: Path) -> None:
    path = torchvision_network.write(tmp_path)
    instances = labelled(path, PICTURE, labels={1: "red thing"}, size=[64, 40])
    assert instances.boxes_xyxy.tolist() == [[0, 0, SIZE_HW[1], SIZE_HW[0]]]
    assert is_red(instances, PICTURE)


def test_the_layers_tell_the_number_of_classes(tmp_path: Path) -> None:
    coco = resolve.configured(settings(torchvision_network.write(tmp_path / "coco", columns=91)))
    assert coco.adapter.labels == COCO_NAMES
    assert coco.description is not None
    assert any("COCO's ids" in note for note in coco.description.notes)
    own = {number: f"c{number}" for number in range(1, 91)}
    assert resolve.configured(settings(coco.path, labels=own)).adapter.labels == own
    two = torchvision_network.write(tmp_path / "two")
    with pytest.raises(ConfigError, match="does not tell the model's labels"):
        resolve.configured(settings(two))
    with pytest.raises(ConfigError, match="not as many") as refused:
        resolve.configured(settings(two, labels={1: "a", 2: "b"}))
    assert refused.value.found == "2 labels, 1 classes and a background"


def test_unknown_layers_of_pasting_are_told_in_a_note(tmp_path: Path) -> None:
    path = torchvision_network.write(tmp_path, paste="resize")
    model = resolve.configured(settings(path, labels={1: "red thing"}))
    assert model.description is not None
    assert any("does not know the layers" in note for note in model.description.notes)
    assert model.form.pasted_masks == ""


def test_the_card_of_a_quantised_model_states_what_the_source_states(tmp_path: Path) -> None:
    source = resolve.configured(settings(torchvision_network.write(tmp_path / "source"), labels={7: "red thing"}))
    assert source.effective is not None
    graph = engine.read(source.path)
    engine.adjust(graph, source.form, source.path)
    engine.save(graph, tmp_path / "cut.xml")
    facts = {key: value for key, value in source.effective.facts_of_rows().items() if key != "missing"}
    card = {"contract": source.name, "description": {**facts, "labels": {"7": "red thing"}}}
    (tmp_path / "segray.json").write_text(json.dumps(card))
    instances = labelled(tmp_path / "cut.xml", PICTURE)
    assert instances.class_ids.tolist() == [7]
    assert is_red(instances, PICTURE)


def test_another_resize_is_refused(tmp_path: Path) -> None:
    path = torchvision_network.write(tmp_path, columns=91)
    with pytest.raises(ConfigError, match=r"or set .model.preprocessing.resize. to stretch"):
        resolve.configured(settings(path, preprocessing={"resize": "letterbox"}))


@pytest.mark.parametrize(("threads", "streams"), [(1, "1"), (2, "1"), (9, "2")])
def test_a_thread_does_not_take_an_image_of_its_own(tmp_path: Path, threads: int, streams: str) -> None:
    """Each image that the network computes at once takes 0.7 GB."""
    folder = torchvision_network.write(tmp_path / "m")
    model = resolve.configured(settings(folder, labels={1: "red thing"}))
    device = engine.DeviceSettings(precision="f32", threads=threads)
    assert engine.compile(model.path, model.form, device).facts["streams"] == streams
