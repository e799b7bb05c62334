"""zoo.py: names, paths, forms and fingerprints, over tiny hand-made models."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from segray.errors import ConfigError, ModelError
from segray.models import engine as runtime
from segray.models import resolve
from segray.models.adapters.adapter import ImageInput, ModelFormat
from segray.models.registry import ADAPTERS

YOLACT = "yolact-resnet50-fpn-pytorch"
YOLACT_OUTPUTS = ("conf", "boxes", "mask", "proto")
TF = "mask_rcnn_inception_v2_coco"


def model(folder: Path, outputs: Sequence[str] = YOLACT_OUTPUTS) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    x = op.parameter([1, 3, 550, 550], np.float32, name="input.1")
    results = []
    for name in outputs:
        node = op.multiply(op.reduce_mean(x, [2, 3]), np.full((1, 3), 2, np.float32))
        node.output(0).tensor.set_names({name})
        results.append(op.result(node))
    xml = folder / "model.xml"
    ov.save_model(ov.Model(results, [x], "m"), xml, compress_to_fp16=False)
    return xml


def card(folder: Path, **content: Any) -> None:
    (folder / resolve.CARD).write_text(json.dumps(content))


def two_forms() -> Any:
    image = ImageInput(name="image_tensor", size_hw=None, layout="NHWC", colour="RGB", mean=None, scale=None)
    original = ModelFormat("original", image, ("detection_boxes", "detection_masks"))
    return SimpleNamespace(
        name=TF, forms={"original": original, "converted": ModelFormat("converted", image, ("reshape_do_2d",))}
    )


# ---- names and paths ------------------------------------------------------------------------------


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no model 'yolact-resnet50'[\s\S]*mean 'yolact-resnet50-fpn-pytorch'"):
        resolve.resolve("yolact-resnet50")


def test_a_known_name_without_a_decoder_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "ADAPTERS", {"stickers": None})
    with pytest.raises(ConfigError, match=r"0033 cannot be decoded yet[\s\S]*stickers"):
        resolve.resolve("instance-segmentation-security-0033", "x.xml")


def test_every_contract_is_a_known_name() -> None:
    assert set(ADAPTERS) <= set(resolve.HOW_TO_GET)


def test_a_model_without_a_path_says_how_to_get_it() -> None:
    with pytest.raises(ConfigError, match=r"needs its files[\s\S]*yolact_resnet50_54_800000\.pth"):
        resolve.resolve(YOLACT)


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    model(tmp_path)
    with pytest.raises(ModelError, match=r"does not exist[\s\S]*model\.xml[\s\S]*segray models pull yolact"):
        resolve.resolve(YOLACT, str(tmp_path / "modle.xml"), "original")


def test_a_path_of_another_model_is_no_path_of_the_stickers(tmp_path: Path) -> None:
    """The template of `segray init` names YOLACT's path."""
    with pytest.raises(ModelError, match=r"come with segray[\s\S]*--set model\.path=null"):
        resolve.resolve("stickers", str(tmp_path / "yolact.xml"))


# ---- form -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["original", "converted"])
def test_the_form_of_the_configuration(tmp_path: Path, form: str) -> None:
    found = resolve.resolve(YOLACT, str(model(tmp_path)), form)
    assert (found.name, found.form) == (YOLACT, ADAPTERS[YOLACT].forms[form])
    assert found.files == (tmp_path / "model.xml", tmp_path / "model.bin")


def test_yolact_does_not_tell_its_form_and_the_question_explains_both(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve.resolve(YOLACT, str(model(tmp_path)))
    assert caught.value.where == "model.form"
    assert "'original' if the graph takes normalised RGB, with mean (123.675" in caught.value.hint
    assert "'converted' if the graph takes BGR 0..255 and applies mean and scale" in caught.value.hint


def test_the_card_tells_the_form(tmp_path: Path) -> None:
    xml = model(tmp_path)
    card(tmp_path, contract=YOLACT, form="original", trained="by hand")
    assert resolve.resolve(YOLACT, str(xml)).form.name == "original"
    assert resolve.resolve(YOLACT, str(xml), "original").form.name == "original"
    with pytest.raises(ConfigError, match="state different forms"):
        resolve.resolve(YOLACT, str(xml), "converted")


def test_a_card_of_another_model_or_no_json(tmp_path: Path) -> None:
    xml = model(tmp_path)
    card(tmp_path, contract=TF, form="original")
    with pytest.raises(ConfigError, match=f"another model[\\s\\S]*{TF}"):
        resolve.resolve(YOLACT, str(xml))
    (tmp_path / resolve.CARD).write_text("{")
    with pytest.raises(ModelError, match="not JSON"):
        resolve.resolve(YOLACT, str(xml))


def test_a_form_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no form 'openvino'[\s\S]*original or converted"):
        resolve.resolve(YOLACT, str(model(tmp_path)), "openvino")


@pytest.mark.parametrize(
    ("outputs", "form"),
    [(("detection_boxes", "detection_masks", "num"), "original"), (("masks", "reshape_do_2d"), "converted")],
)
def test_outputs_tell_the_form_where_forms_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outputs: tuple[str, ...], form: str
) -> None:
    monkeypatch.setattr(resolve, "ADAPTERS", {TF: two_forms()})
    assert resolve.resolve(TF, str(model(tmp_path, outputs))).form.name == form


# ---- fingerprint ----------------------------------------------------------------------------------


def test_the_fingerprint_follows_content_and_form_but_not_place(tmp_path: Path) -> None:
    xml = model(tmp_path / "a")
    moved = Path(shutil.copytree(tmp_path / "a", tmp_path / "b")) / "moved.xml"
    for suffix in (".xml", ".bin"):
        (tmp_path / "b" / "model").with_suffix(suffix).rename(moved.with_suffix(suffix))

    first = resolve.resolve(YOLACT, str(xml), "original").fingerprint
    assert len(first) == 64
    assert resolve.resolve(YOLACT, str(moved), "original").fingerprint == first
    assert resolve.resolve(YOLACT, str(xml), "converted").fingerprint != first
    weights = bytearray(xml.with_suffix(".bin").read_bytes())
    weights[-1] ^= 1
    xml.with_suffix(".bin").write_bytes(weights)
    assert resolve.resolve(YOLACT, str(xml), "original").fingerprint != first
    moved.write_text(moved.read_text() + "\n")
    assert resolve.resolve(YOLACT, str(moved), "original").fingerprint != first


def test_the_fingerprint_covers_every_file_of_a_saved_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "ADAPTERS", {TF: two_forms()})
    (tmp_path / "variables").mkdir()
    (tmp_path / "saved_model.pb").write_bytes(b"graph")
    weights = tmp_path / "variables" / "variables.data"
    weights.write_bytes(b"one")
    first = resolve.resolve(TF, str(tmp_path), "original")
    assert first.files == (tmp_path / "saved_model.pb", weights)
    assert resolve.resolve(TF, str(tmp_path / "saved_model.pb"), "original").fingerprint == first.fingerprint
    card(tmp_path, contract=TF, form="original")
    assert resolve.resolve(TF, str(tmp_path)).fingerprint == first.fingerprint
    weights.write_bytes(b"two")
    assert resolve.resolve(TF, str(tmp_path)).fingerprint != first.fingerprint


def test_own_classes_change_the_contract_but_not_the_fingerprint(tmp_path: Path) -> None:
    xml = str(model(tmp_path))
    own = resolve.resolve(YOLACT, xml, "original", {2: "nut", 1: "bolt"})
    assert list(own.adapter.labels.items()) == [(1, "bolt"), (2, "nut")]
    assert own.fingerprint == resolve.resolve(YOLACT, xml, "original").fingerprint


# ---- the embedded model ---------------------------------------------------------------------------


def test_stickers_need_no_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "EMBEDDED", model(tmp_path))
    card(tmp_path, contract=YOLACT, form="converted")
    found = resolve.resolve("stickers")
    assert (found.path, found.form.name) == (tmp_path / "model.xml", "converted")
    assert found.adapter is ADAPTERS["stickers"]


@pytest.mark.chaos
def test_an_exported_sticker_network_serves_its_contract(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the sticker network needs the train extra")
    from segray.models.coco_labels import COCO_IDS_80
    from segray.synthetic.shapes import STICKERS
    from training.network import StickerNet, export

    xml = tmp_path / "stickers.xml"
    export(StickerNet().eval(), [COCO_IDS_80.index(sticker.category_id) + 1 for sticker in STICKERS], xml)
    card(tmp_path, contract=YOLACT, form="converted")
    found = resolve.resolve("stickers", str(xml))
    engine = runtime.compile(found.path, found.form, runtime.DeviceSettings(threads=1, precision="f32"))
    picture = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    with engine.infer(found.adapter.prepare(found.form, picture)) as outputs:
        assert set(outputs) == set(found.form.outputs)
        np.testing.assert_allclose(outputs["conf"].sum(-1), 1, rtol=1e-4)
