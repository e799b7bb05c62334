"""segray models inspect, for files that say what they are, and for files that nothing fits."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import model_heads
import pytest
import yaml
from model_heads import COCO, GETI_INFO, YOLO_INFO
from reference_today import DESCRIPTIONS

from segray.cli import main
from segray.cli.models import describe_inspection
from segray.conversion.inspect_model import inspect
from segray.errors import ModelError
from segray.models import resolve
from segray.models.engine import Signature
from segray.models.registry import FAMILIES


def yolo_folder(tmp_path: Path, network: Signature | None = None, **changes: object) -> Path:
    """What `yolo export format=openvino` writes. network: its ports; None for a segmentation of 80 classes."""
    folder = tmp_path / "best_openvino_model"
    folder.mkdir()
    model_heads.loadable_ir(folder, network or model_heads.yolo(classes=80), YOLO_INFO, name="best.xml")
    metadata = model_heads.yolo_metadata(**{"names": dict(enumerate(COCO)), **changes})
    (folder / "metadata.yaml").write_text(yaml.safe_dump(metadata))
    return folder


def geti_file(tmp_path: Path, **changes: str) -> Path:
    return model_heads.loadable_ir(tmp_path, model_heads.geti(), {**GETI_INFO, **changes}, name="exported_model.xml")


def test_a_folder_of_yolo_export_is_told_with_the_source_of_each_fact(tmp_path: Path) -> None:
    folder = yolo_folder(tmp_path)
    inspection = inspect(folder)
    text = describe_inspection(inspection)
    for line in (
        f"{folder}/best.xml: OpenVINO IR v11",
        "  in   x.1 f32 [1, 3, 320, 320]",
        "YOLO11n-seg by Ultralytics 8.4.190",
        "yolo_seg, raw (metadata.yaml)",
        "320x320 (ports)",
        "fitted, padded on both sides with 114",
        "RGB (default of the family)",
        "80: 1 person, 2 bicycle,",
        "21 cow and 60 more (metadata.yaml)",
        "COCO's, 1 to 90: the names are COCO's 80 in order",
        "0.7 (rt_info)",
        "[320, 320] (metadata.yaml)",
    ):
        assert line in text
    assert inspection.classes == 80
    assert (inspection.fits, inspection.nearest) == ((), None)
    assert inspection.is_decoded == ("yolo_seg" in FAMILIES)


def test_a_geti_file_is_told_and_no_other_model_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    xml = geti_file(tmp_path)
    assert main.run(["models", "inspect", str(xml)]) == 0
    text = capsys.readouterr().out
    assert "security" not in text
    assert "the nearest is" not in text
    for part in (
        "rtmdet_inst_tiny by Intel Geti (getitune 0.4.0)",
        "geti_mask_rcnn",
        "3: 1 box, 2 disc of tin, 3 rod (rt_info, label_info)",
        "1 to 3, in the order of the network",
        "123.675 116.28 103.53 (rt_info)",
        "0.05 (rt_info)",
    ):
        assert part in text
    assert yaml.safe_load(text[text.index("\nmodel:") :]) == {"model": {"path": str(xml)}}


def test_json_has_all_that_the_text_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["models", "inspect", str(geti_file(tmp_path)), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    description = found["description"]
    assert (description["family"], description["labels"]["2"]) == ("geti_mask_rcnn", "disc of tin")
    assert description["sources"]["resize"] == "rt_info"
    assert (found["is_decoded"], found["fits"], found["options"]["score_threshold"]) == (True, [], 0.05)
    assert found["yaml"].startswith("model:\n  path: ")


def test_a_path_with_odd_characters_is_quoted_for_yaml(tmp_path: Path) -> None:
    folder = tmp_path / "my: model #1 größe"
    folder.mkdir()
    xml = geti_file(folder)
    assert yaml.safe_load(inspect(xml).yaml) == {"model": {"path": str(xml)}}


def test_what_a_file_lacks_is_said_with_how_to_give_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    signature = model_heads.geti((None, None))
    model_heads.loadable_ir(tmp_path, signature, {"model_type": "MaskRCNN"})
    assert main.run(["models", "inspect", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "does not state the size. Set model.size" in text
    assert "does not state the labels. Name the classes in model.labels" in text
    model = yaml.safe_load(text[text.index("\nmodel:") :])["model"]
    assert model == {"path": str(tmp_path), "size": ["HEIGHT", "WIDTH"], "labels": {1: "FIRST_NAME", 2: "SECOND_NAME"}}


def test_tiles_of_the_training_become_lines_of_the_configuration(tmp_path: Path) -> None:
    xml = geti_file(tmp_path, tile_size="400", tiles_overlap="0.25", tile_with_full_img="True")
    assert yaml.safe_load(inspect(xml).yaml)["source"] == {"tiles": {"size": 400, "overlap": 0.25, "whole": True}}


def test_a_file_that_does_not_tell_its_processor_has_three_to_choose_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs: list[model_heads.Port] = [("class_queries_logits", (1, 9, 6)), ("masks_queries_logits", (1, 9, 24, 24))]
    model_heads.loadable_ir(tmp_path, model_heads.ports([("pixel_values", (1, 3, 96, 96))], outputs), {})
    assert main.run(["models", "inspect", str(tmp_path)]) == 2
    text = capsys.readouterr().out
    assert "Set model.name to mask2former, maskformer or eomt" in text
    assert "cannot decode" not in text
    assert "\nmodel:" not in text
    assert "5, not named" in text


def test_no_model_is_nearest_to_one_without_a_known_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs: list[model_heads.Port] = [("logits", (1, 9)), ("features", (1, 100, 28, 28))]
    model_heads.loadable_ir(tmp_path, model_heads.ports([("x", (1, 3, 96, 96))], outputs), {})
    assert main.run(["models", "inspect", str(tmp_path)]) == 2
    text = capsys.readouterr().out
    assert "the nearest is" not in text
    assert "segray does not know this model" in text


def test_queries_are_not_counted_as_classes(tmp_path: Path) -> None:
    outputs: list[model_heads.Port] = [("dets", (1, 77, 5)), ("labels", (1, 77)), ("masks", (1, 77, 78, 78))]
    signature = model_heads.ports([("input", (1, 3, 96, 96))], outputs, {"labels": "i64"})
    inspection = inspect(model_heads.loadable_ir(tmp_path, signature, {}))
    assert (inspection.description, inspection.fits, inspection.classes) == (None, (), None)
    assert "77 classes" not in describe_inspection(inspection)


@pytest.mark.parametrize(
    ("task", "message"),
    [("detect", "no masks"), ("classify", "task classify"), ("pose", "task pose"), ("obb", "task obb")],
)
def test_a_model_without_masks_names_the_export_of_one_with_masks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, message: str
) -> None:
    shape = (1, 80) if task == "classify" else (1, 84, 2100)
    network = model_heads.ports([("x", (1, 3, 320, 320))], [("output0", shape)])
    folder = yolo_folder(tmp_path, network, task=task)
    assert main.run(["models", "inspect", str(folder)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Export a -seg model: yolo export" in error


def test_metadata_of_another_network_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["models", "inspect", str(yolo_folder(tmp_path, names={0: "cat"}))]) == 2
    assert "belongs to another network" in capsys.readouterr().err


def test_an_ir_without_its_weights_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    geti_file(tmp_path).with_suffix(".bin").unlink()
    assert main.run(["models", "inspect", str(tmp_path)]) == 2
    assert "weights beside the .xml are missing" in capsys.readouterr().err


# ---- checkpoints ----------------------------------------------------------------------------------


def checkpoint(path: Path, pickle: bytes, name: str = "best/data.pkl") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, pickle)
    return path


def test_a_checkpoint_of_ultralytics_names_its_export(tmp_path: Path) -> None:
    pt = checkpoint(tmp_path / "best.pt", b"\x80\x02}cultralytics.nn.tasks\nSegmentationModel\n")
    assert inspect(pt).needs == (
        f"A checkpoint has no graph. Export it with ultralytics: yolo export model={pt} format=openvino",
    )


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x02ultralytics", None])
def test_other_checkpoints_name_the_conversion_of_yolact(tmp_path: Path, content: bytes | None) -> None:
    pt = tmp_path / "weights.pt"
    if content is None:
        checkpoint(pt, b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n")
    else:
        pt.write_bytes(content)
    inspection = inspect(pt)
    assert "segray models convert yolact" in inspection.needs[0]
    assert not inspection.is_decoded


def test_a_large_or_broken_checkpoint_is_read_in_part(tmp_path: Path) -> None:
    pt = checkpoint(tmp_path / "best.pt", b"\x00" * 50_000_000 + b"ultralytics")
    assert "yolact" in inspect(pt).needs[0]
    content = bytearray(pt.read_bytes())
    content[60:90] = b"\xff" * 30
    pt.write_bytes(content)
    assert "yolact" in inspect(pt).needs[0]
    encrypted = io.BytesIO(checkpoint(tmp_path / "best.pt", b"ultralytics").read_bytes()).getvalue()
    central = encrypted.index(b"PK\x01\x02")
    for flag in (6, central + 8):
        encrypted = encrypted[:flag] + b"\x01" + encrypted[flag + 1 :]
    pt.write_bytes(encrypted)
    assert "yolact" in inspect(pt).needs[0]


# ---- files of other libraries ---------------------------------------------------------------------

TINY = sorted(DESCRIPTIONS.glob("tiny_*"))


@pytest.mark.skipif(not TINY, reason="the reference results of other libraries are not here")
@pytest.mark.parametrize("folder", TINY, ids=lambda folder: folder.name)
def test_every_true_export_is_inspected_truthfully(folder: Path) -> None:
    inspection = inspect(folder)
    text = describe_inspection(inspection)
    assert inspection.description is not None
    assert inspection.description.what in text
    assert not any(word in text for word in ("security", "nearest", "fits"))
    assert inspection.is_decoded == (inspection.description.family in FAMILIES)
    assert inspection.is_decoded == (f"path: {folder}" in text)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no model"):
        inspect(tmp_path)


def test_a_checkpoint_as_the_path_of_a_model_names_its_export(tmp_path: Path) -> None:
    pt = checkpoint(tmp_path / "best.pt", b"cultralytics.nn.tasks\nSegmentationModel\n")
    with pytest.raises(ModelError, match=f"no graph[\\s\\S]*yolo export model={pt} format=openvino"):
        resolve.resolve(path=str(pt))
