"""`segray models quantize`: which layers it leaves in float, what it refuses, and what it costs in accuracy."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import test_engine
import wrapped
from openvino import opset13 as op
from watchers import Notes

from segray import config
from segray.analytics.evaluation.evaluate import evaluate
from segray.cli import main
from segray.conversion import compare, quantize
from segray.conversion.inspect_model import inspect
from segray.errors import ConfigError, ImageError, LabelSetError, ModelError, UserError
from segray.execution import run, worker_spec
from segray.execution.worker_pool import InProcess
from segray.models import engine, resolve
from segray.storage.store import Store
from segray.synthetic import dataset

TF = "mask_rcnn_inception_v2_coco"


def settings(folder: Path, **model: Any) -> config.Config:
    source, output = {"uri": str(folder / "images")}, {"root": str(folder / "labels")}
    values = {"source": source, "output": output, "model": {"name": "stickers", **model}}
    return config.validate(values, "test")


# ---- what stays in float --------------------------------------------------------------------------


def convolved(x: Any, name: str) -> Any:
    weights = op.constant(np.ones((3, 3, 1, 1), np.float32))
    node = op.convolution(x, weights, [1, 1], [0, 0], [0, 0], [1, 1])
    node.set_friendly_name(name)
    return node


def test_the_last_layers_of_the_outputs_that_are_read_stay_in_float() -> None:
    """The features matter to the boxes through convolutions and through their shape alone; `unread` not at all."""
    image = op.parameter([1, 3, 8, 8], np.float32, name="image")
    features = op.relu(convolved(image, "features"))
    offsets = convolved(op.relu(convolved(features, "tower")), "head")
    sizes = op.convert(op.shape_of(features), np.float32)
    boxes = op.add(op.exp(offsets), op.reduce_sum(sizes, 0))
    unread = convolved(features, "unread")
    results = []
    for name, node in (("boxes:0", boxes), ("unread", unread)):
        node.output(0).tensor.set_names({name})
        results.append(op.result(node))
    names = quantize.float_names(ov.Model(results, [image], "m"), ("boxes",))
    assert {"head", boxes.get_friendly_name(), offsets.get_friendly_name()} <= names
    assert not {"tower", "features", "unread"} & names


@pytest.mark.parametrize("key", ["inception-original", "security"])
def test_the_rule_finds_the_heads_behind_suppression_and_mask_heads(key: str) -> None:
    """The network's own heads: for five scales boxes and mask coefficients; prototypes; the table of classes."""
    form = wrapped.WRAPPED[key]
    form_of_model = resolve.ADAPTERS[form.name].forms[form.form]
    kept = quantize.float_names(form.make(), form_of_model.outputs)
    own = quantize.float_names(engine.read(resolve.EMBEDDED), ("conf", "boxes", "mask", "proto"))
    heads = {name for name in own if name.endswith(("Convolution", "MatMul")) or "Convolution_" in name}
    assert len(heads) == 12
    assert heads <= kept
    assert not any("tower" in name and "Multiply" in name for name in kept)


# ---- what is refused ------------------------------------------------------------------------------


def test_without_nncf_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "nncf", None)
    with pytest.raises(UserError, match=r"not installed[\s\S]*\[quantize\]"):
        quantize.quantize(resolve.resolve("stickers"), str(tmp_path), tmp_path / "out", Store())


def test_int8_on_the_float_model_ends_before_any_image_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"segray models quantize \S*stickers\.xml --images"):
        run.label(settings(tmp_path, precision="int8"), Notes(), lambda spec, chosen: pytest.fail("started workers"))


@pytest.fixture
def any_nncf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refusals come before NNCF does anything."""
    monkeypatch.setattr(quantize, "_import_nncf", lambda: None)


@pytest.mark.usefixtures("any_nncf")
def test_a_quantised_model_is_not_quantised_again(tmp_path: Path) -> None:
    model = resolve.resolve("stickers", str(test_engine.quantised(tmp_path)), "converted")
    with pytest.raises(ConfigError, match="already quantised"):
        quantize.quantize(model, str(tmp_path), tmp_path / "out", Store())


@pytest.mark.usefixtures("any_nncf")
def test_the_truth_is_read_before_the_slow_part(tmp_path: Path) -> None:
    dataset.write(tmp_path, 2, seed=11)
    (tmp_path / "broken.json").write_text('{"images": [')
    notes: list[str] = []
    images, truth = str(tmp_path / "images"), compare.Truth(tmp_path / "broken.json", str(tmp_path / "images"))
    with pytest.raises(UserError, match=r"broken\.json"):
        quantize.quantize(
            resolve.resolve("stickers"), images, tmp_path / "out", Store(), truth=truth, note=notes.append
        )
    assert notes == []


def test_inspect_says_that_a_model_is_quantised(tmp_path: Path) -> None:
    assert inspect(test_engine.quantised(tmp_path)).kind == "OpenVINO IR v11, quantised to int8"


@pytest.mark.usefixtures("any_nncf")
def test_a_network_that_cannot_compute_an_image_is_told_before_calibration() -> None:
    def fail(inputs: engine.Arrays) -> engine.Arrays:
        raise ImageError("The network refused the image.", found="no memory")

    with pytest.raises(ModelError, match="no memory") as told:
        quantize._check_runs(engine.FakeEngine(fail), {}, resolve.resolve("stickers"))
    assert told.value.exit_code == 2


@pytest.mark.parametrize("card", [{"contract": TF}, {"precision": "int8", "source": {"fingerprint": "other"}}])
def test_the_folder_of_another_model_is_left_alone(tmp_path: Path, card: dict[str, Any]) -> None:
    (tmp_path / "segray.json").write_text(json.dumps(card))
    with pytest.raises(ModelError, match="holds another model"):
        quantize.quantize(resolve.resolve("stickers"), str(tmp_path), tmp_path, Store())
    with pytest.raises(ModelError, match=r"holds another model[\s\S]*--out"):
        quantize.quantize(resolve.resolve("stickers"), str(tmp_path), resolve.EMBEDDED.parent, Store())
    assert [path.name for path in tmp_path.iterdir()] == ["segray.json"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([TF], "segray models pull mask_rcnn_inception_v2_coco"),
        (["sticker"], "Did you mean 'stickers'"),
        (["stickers", "--labels", "{1: bolt}"], '--labels \'{"1": "bolt"'),
        (["stickers", "--labels", '{"one": "bolt"}'], "model.labels"),
    ],
)
def test_arguments_that_mean_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.run(["models", "quantize", *arguments, "--images", "images"]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "code"), [([], 4), (["--max-loss", "0.2"], 0)])
def test_a_loss_beyond_the_bound_is_told_by_words_and_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int
) -> None:
    """The worse of mask and box counts."""
    speed = compare.Speed("cpu", ({"f32": 4.0, "bf16": 8.0, "int8": 12.0},))
    accuracy = compare.EngineAccuracy(("a.png",), 3, {"f32": 0.8, "int8": 0.81}, {"f32": 0.8, "int8": 0.7})
    found = quantize.Quantised(
        "stickers", "converted", Path("out/stickers-int8.xml"), 32, {"int8": 48, "float": 12},
        {"source": 3_800_000, "int8": 2_300_000}, speed, accuracy, calibrated=1,
    )  # fmt: skip
    monkeypatch.setattr(quantize, "quantize", lambda *args, **options: found)
    assert main.run(["models", "quantize", "stickers", "--images", "images", *arguments]) == code
    said = capsys.readouterr().out
    assert ("AP fell by 0.100" in said) == (code == 4)
    assert "3.00 times as fast as f32, 1.50 times as fast as bf16" in said
    assert "AP on 3 objects in 1 images, 1 of which calibrated, too" in said
    assert "  path: out/stickers-int8.xml\n  precision: int8" in said


# ---- end to end -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """Images to calibrate with, images to judge by, and the AP that int8 may lose on them."""

    samples: int
    judged: int
    max_loss: float


FEW, MANY = Size(8, 16, 0.02), Size(32, 96, 0.01)


@dataclass(frozen=True)
class Made:
    """What the command left behind and said, on scenes that training never saw."""

    size: Size
    folder: Path
    code: int
    record: dict[str, Any]

    @property
    def xml(self) -> Path:
        return self.folder / "int8" / "stickers-int8.xml"


@pytest.fixture(
    scope="module", params=[pytest.param(FEW, id="few"), pytest.param(MANY, id="many", marks=pytest.mark.thorough)]
)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    pytest.importorskip("nncf", reason="NNCF, the extra `quantize`, is not installed")
    size, folder = request.param, tmp_path_factory.mktemp("quantised")
    dataset.write(folder / "like", size.samples, seed=11)
    (folder / "like" / "images" / "broken.jpg").write_bytes(b"no picture")
    dataset.write(folder, size.judged, seed=98)
    arguments = {
        "--images": folder / "like" / "images",
        "--truth": folder / "truth.json",
        "--truth-images": folder / "images",
        "--out": folder / "int8",
    }
    with pytest.MonkeyPatch.context() as patch, (folder / "out.json").open("w") as out:
        patch.setattr(compare, "ROUND_S", 0.05)
        patch.setattr(sys, "stdout", out)
        flat = [str(part) for pair in arguments.items() for part in pair]
        code = main.run(["models", "quantize", "stickers", *flat, "--json"])
    return Made(size, folder, code, json.loads((folder / "out.json").read_text()))


@pytest.mark.integration
def test_ap_falls_little(made: Made) -> None:
    assert made.code == 0
    accuracy = made.record["accuracy"]
    assert accuracy["mask_ap"]["f32"] > 0.75
    for ap in (accuracy["mask_ap"], accuracy["box_ap"]):
        assert ap["f32"] - ap["int8"] <= made.size.max_loss
    assert (len(accuracy["uris"]), made.record["calibrated"]) == (made.size.judged, 0)
    assert made.record["layers"] == {"int8": 48, "float": 12}
    assert made.record["size_bytes"]["int8"] < made.record["size_bytes"]["source"]
    assert {"f32", "int8"} <= made.record["speed"]["rounds"][0].keys()


@pytest.mark.integration
def test_the_card_says_how_it_came_to_be(made: Made) -> None:
    assert sorted(path.name for path in made.xml.parent.iterdir()) == [
        "segray.json", "stickers-int8.bin", "stickers-int8.xml",
    ]  # fmt: skip
    card = resolve.read_card(made.xml)
    assert (card["precision"], card["form"]) == ("int8", "converted")
    assert card["source"]["fingerprint"] == resolve.resolve("stickers").fingerprint
    assert card["calibration"]["samples"] == made.size.samples  # the broken one left out
    assert card["files"] == {
        file.name: resolve.sha256(file) for file in resolve.resolve("stickers", str(made.xml)).files
    }
    assert card["versions"].keys() == {"segray", "openvino", "nncf"}
    assert card["accuracy"]["mask_ap"].keys() == {"f32", "int8"}


@pytest.mark.integration
def test_it_labels_like_any_model_into_another_label_set(made: Made) -> None:
    def start(spec: worker_spec.WorkerSpec, chosen: config.Config) -> InProcess:
        return InProcess(*worker_spec.build(spec, "CPU", None))

    chosen = settings(made.folder, path=str(made.xml), precision="int8")
    summary = run.label(chosen, Notes(), start, limit=made.size.judged // 2)
    assert summary.images.get("failed", 0) == 0
    record = json.loads(next((made.folder / "labels" / "_segray" / "runs").glob("*/run.json")).read_text())
    assert record["workers"][0]["precision"] == "int8+f32"
    assert evaluate(str(made.folder / "labels"), made.folder / "truth.json").instances > 0
    with pytest.raises(LabelSetError):
        run.label(settings(made.folder), Notes(), start)
    with pytest.raises(ConfigError, match="is quantised"):
        run.label(settings(made.folder, path=str(made.xml), precision="f32"), Notes(), start)
