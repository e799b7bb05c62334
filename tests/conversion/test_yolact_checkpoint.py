"""yolact_graph.py: the table of layers, refused weights and checkpoints, and parity with the same net in PyTorch."""

from __future__ import annotations

import json
import math
import os
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import golden_files
import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray
from PIL import Image

from segray import rle
from segray.conversion import yolact
from segray.errors import ModelError
from segray.instances import Instances
from segray.models import engine as runtime
from segray.models import resolve
from segray.models.adapters.adapter import Options
from segray.models.adapters.yolact import FORMS
from segray.models.engine import DeviceSettings

OUTPUTS = ("conf", "boxes", "mask", "proto")
EPSILON = 1e-5

Arrays = Mapping[str, NDArray[Any]]


def zeros() -> dict[str, NDArray[Any]]:
    """Weights of the right names and shapes."""
    return {name: np.zeros(shape, np.float32) for name, shape in yolact.shapes().items()}


def unlike_training(seed: int) -> dict[str, NDArray[Any]]:
    """Random weights in which no batch norm is the identity and no bias is zero."""
    rng = np.random.default_rng(seed)
    weights: dict[str, NDArray[Any]] = dict(yolact.random_weights(seed))
    for name, array in weights.items():
        if array.ndim == 1:
            drawn = rng.uniform(0.5, 1.5, array.shape)
            scales = name.endswith((".weight", ".running_var"))
            weights[name] = (array * drawn if scales else array + 0.2 * (drawn - 1)).astype(np.float32)
    return weights


def infer(model: ov.Model, image: NDArray[Any]) -> dict[str, NDArray[Any]]:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled([image.astype(np.float32)])
    return {name: found[name] for name in OUTPUTS}


# ---- layers and priors ----------------------------------------------------------------------------


def test_as_many_weights_as_the_published_checkpoint() -> None:
    # 127,300,392 bytes: these, the layers it holds beside them, and under 256 bytes of description an array.
    read = sum(map(math.prod, yolact.shapes().values()))
    semantic, third_downsampling = 80 * 256 + 80, 256 * 256 * 9 + 256
    rest = 127_300_392 - 4 * (read + semantic + third_downsampling)
    assert read == 31_197_503
    assert 0 < rest < 256 * (len(yolact.shapes()) + 4 + 53)


def test_names_follow_the_original_repository() -> None:
    shapes = yolact.shapes()
    assert shapes["backbone.conv1.weight"] == (64, 3, 7, 7)
    assert shapes["backbone.layers.1.0.downsample.0.weight"] == (512, 256, 1, 1)
    assert shapes["backbone.layers.3.2.bn3.running_var"] == (2048,)
    assert shapes["fpn.lat_layers.0.weight"] == (256, 2048, 1, 1)
    assert shapes["proto_net.10.weight"] == (32, 256, 1, 1)
    assert shapes["prediction_layers.0.upfeature.0.bias"] == (256,)
    assert shapes["prediction_layers.0.conf_layer.weight"] == (243, 256, 3, 3)


@pytest.mark.integration
def test_random_weights_are_reproducible_and_complete() -> None:
    weights = yolact.random_weights(5)
    assert {name: array.shape for name, array in weights.items()} == yolact.shapes()
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}
    name = "fpn.pred_layers.2.weight"
    np.testing.assert_array_equal(weights[name], yolact.random_weights(5)[name])
    assert not np.array_equal(weights[name], yolact.random_weights(6)[name])


def test_priors_are_those_of_a_plain_loop() -> None:
    expected = []
    for side, scale in ((69, 24), (35, 48), (18, 96), (9, 192), (5, 384)):
        for row in range(side):
            for column in range(side):
                for ratio in (1, 1 / 2, 2):
                    length = scale * math.sqrt(ratio) / 550
                    expected.append([(column + 0.5) / side, (row + 0.5) / side, length, length])
    priors = yolact.priors_cxcywh()
    assert priors.dtype == np.float32
    np.testing.assert_array_equal(priors, np.array(expected, np.float32))


# ---- weights that do not fit ----------------------------------------------------------------------


@pytest.mark.integration
def test_what_older_releases_and_training_leave_in_the_checkpoint_is_ignored() -> None:
    extra: dict[str, NDArray[Any]] = {
        "backbone.layer1.0.conv1.weight": np.zeros((64, 64, 1, 1), np.float32),
        "backbone.bn1.num_batches_tracked": np.zeros((), np.int64),
        "fpn.downsample_layers.2.weight": np.zeros((256, 256, 3, 3), np.float32),
        "semantic_seg_conv.bias": np.zeros(80, np.float32),
    }
    model = yolact.build(zeros() | extra)
    assert [port.get_any_name() for port in model.inputs] == ["input.1"]
    shapes = {port.get_any_name(): [*port.shape] for port in model.outputs}
    assert shapes == {
        "conf": [1, 19248, 81],
        "boxes": [1, 19248, 4],
        "mask": [1, 19248, 32],
        "proto": [1, 138, 138, 32],
    }


def test_missing_weights_are_named() -> None:
    weights = zeros()
    del weights["fpn.downsample_layers.1.bias"]
    with pytest.raises(ModelError, match=r"missing: fpn\.downsample_layers\.1\.bias"):
        yolact.build(weights)


def test_a_deeper_backbone_is_named_and_not_cut() -> None:
    unknown = {f"backbone.layers.2.{block}.conv1.weight": np.zeros((256, 1024, 1, 1)) for block in range(6, 23)}
    with pytest.raises(ModelError, match=r"unknown: backbone\.layers\.2\.6\.conv1\.weight, .* and 13 more"):
        yolact.build(zeros() | unknown)


def test_weights_of_another_shape_say_both() -> None:
    twenty_classes = {"prediction_layers.0.conf_layer.bias": np.zeros(63, np.float32)}
    with pytest.raises(ModelError, match=r"of another shape: .*conf_layer\.bias \[63\], not \[243\]"):
        yolact.build(zeros() | twenty_classes)


# ---- checkpoints ----------------------------------------------------------------------------------


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_a_checkpoint_with_code_is_refused_and_not_run(tmp_path: Path, kind: str) -> None:
    torch = pytest.importorskip("torch")
    pth, proof = tmp_path / "evil.pth", tmp_path / "executed"
    content = {"backbone.conv1.weight": Malicious(proof)}
    if kind == "pickle":
        pth.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, pth, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(ModelError, match=r"(?s)cannot be read.*evil\.pth.*mkdir") as caught:
        yolact.convert(pth, tmp_path / "ir" / "yolact.xml")
    assert "weights_only" not in str(caught.value)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["evil.pth"]


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"PK\x03\x04 cut off"])
def test_a_damaged_checkpoint_says_where(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("torch")
    pth = tmp_path / "damaged.pth"
    pth.write_bytes(content)
    with pytest.raises(ModelError, match=r"(?s)cannot be read.*damaged\.pth"):
        yolact.read(pth)


def test_a_missing_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    with pytest.raises(ModelError, match="does not exist"):
        yolact.read(tmp_path / "absent.pth")


@pytest.mark.parametrize("nested", [True, False])
def test_a_checkpoint_that_is_no_flat_dict(tmp_path: Path, nested: bool) -> None:
    torch = pytest.importorskip("torch")
    pth = tmp_path / "nested.pth"
    torch.save({"state_dict": {"a": torch.zeros(1)}} if nested else [torch.zeros(1)], pth)
    with pytest.raises(ModelError, match=r"(?s)not a flat dict of tensors.*(a dict of dict|list)"):
        yolact.read(pth)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "2019"])
def test_arrays_are_read_as_float32_from_both_of_pytorchs_formats(tmp_path: Path, zipped: bool) -> None:
    torch = pytest.importorskip("torch")
    state = OrderedDict(a=torch.full((2,), 0.5, dtype=torch.bfloat16), b=torch.tensor(7))
    torch.save(state, tmp_path / "small.pth", _use_new_zipfile_serialization=zipped)
    arrays = yolact.read(tmp_path / "small.pth")
    assert {name: array.dtype for name, array in arrays.items()} == {"a": np.float32, "b": np.float32}
    np.testing.assert_array_equal(arrays["a"], [0.5, 0.5])
    assert arrays["b"] == 7


def test_another_model_in_the_folder_keeps_its_card(tmp_path: Path) -> None:
    (tmp_path / resolve.CARD).write_text("{}")
    with pytest.raises(ModelError, match="another model's card"):
        yolact.convert(tmp_path / "weights.pth", tmp_path / "yolact.xml")
    assert (tmp_path / resolve.CARD).read_text() == "{}"


# ---- parity ---------------------------------------------------------------------------------------


class Reference:
    """The network from its description alone, in PyTorch's functions on a state dict; batch norms are not folded."""

    def __init__(self, weights: Arrays) -> None:
        self.torch = pytest.importorskip("torch")
        self.F = self.torch.nn.functional
        self.w = {name: self.torch.from_numpy(np.ascontiguousarray(array)) for name, array in weights.items()}

    def conv(self, name: str, x: Any, stride: int = 1) -> Any:
        kernel = self.w[f"{name}.weight"]
        return self.F.conv2d(x, kernel, self.w.get(f"{name}.bias"), stride, kernel.shape[-1] // 2)

    def norm(self, name: str, x: Any) -> Any:
        mean, variance, gamma, beta = (
            self.w[f"{name}.{of}"] for of in ("running_mean", "running_var", "weight", "bias")
        )
        return self.F.batch_norm(x, mean, variance, gamma, beta, False, 0.0, EPSILON)

    def block(self, name: str, x: Any, stride: int) -> Any:
        y = self.norm(f"{name}.bn1", self.conv(f"{name}.conv1", x)).relu()
        y = self.norm(f"{name}.bn2", self.conv(f"{name}.conv2", y, stride)).relu()
        y = self.norm(f"{name}.bn3", self.conv(f"{name}.conv3", y))
        if f"{name}.downsample.0.weight" in self.w:
            x = self.norm(f"{name}.downsample.1", self.conv(f"{name}.downsample.0", x, stride))
        return (x + y).relu()

    def backbone(self, image: Any) -> list[Any]:
        x = self.norm("backbone.bn1", self.conv("backbone.conv1", image, 2)).relu()
        x = self.F.max_pool2d(x, 3, stride=2, padding=1)
        features = []
        for stage, blocks in enumerate((3, 4, 6, 3)):
            for block in range(blocks):
                x = self.block(f"backbone.layers.{stage}.{block}", x, 2 if stage > 0 and block == 0 else 1)
            features.append(x)
        return features[1:]

    def pyramid(self, c3: Any, c4: Any, c5: Any) -> list[Any]:
        def wider(x: Any, like: Any) -> Any:
            return self.F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)

        m5 = self.conv("fpn.lat_layers.0", c5)
        m4 = self.conv("fpn.lat_layers.1", c4) + wider(m5, c4)
        m3 = self.conv("fpn.lat_layers.2", c3) + wider(m4, c3)
        p5, p4, p3 = (self.conv(f"fpn.pred_layers.{i}", m).relu() for i, m in enumerate((m5, m4, m3)))
        p6 = self.conv("fpn.downsample_layers.0", p5, 2)
        return [p3, p4, p5, p6, self.conv("fpn.downsample_layers.1", p6, 2)]

    def head(self, name: str, columns: int, levels: list[Any]) -> Any:
        outputs = []
        for level in levels:
            shared = self.conv("prediction_layers.0.upfeature.0", level).relu()
            outputs.append(self.conv(f"prediction_layers.0.{name}", shared).permute(0, 2, 3, 1).reshape(1, -1, columns))
        return self.torch.cat(outputs, 1)

    def boxes(self, offsets: Any) -> Any:
        priors = self.torch.from_numpy(yolact.priors_cxcywh())
        centre = priors[:, :2] + 0.1 * offsets[..., :2] * priors[:, 2:]
        size = priors[:, 2:] * (0.2 * offsets[..., 2:]).exp()
        return self.torch.cat([centre - size / 2, centre + size / 2], -1)

    def proto(self, x: Any) -> Any:
        for index in (0, 2, 4):
            x = self.conv(f"proto_net.{index}", x).relu()
        x = self.F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return self.conv("proto_net.10", self.conv("proto_net.8", x).relu()).relu().permute(0, 2, 3, 1)

    def __call__(self, image: NDArray[Any]) -> dict[str, NDArray[Any]]:
        with self.torch.no_grad():
            levels = self.pyramid(*self.backbone(self.torch.from_numpy(image)))
            outputs = {
                "conf": self.head("conf_layer", 81, levels).softmax(-1),
                "boxes": self.boxes(self.head("bbox_layer", 4, levels)),
                "mask": self.head("mask_layer", 32, levels).tanh(),
                "proto": self.proto(levels[0]),
            }
        return {name: tensor.numpy() for name, tensor in outputs.items()}


@pytest.mark.integration
def test_parity_with_pytorch() -> None:
    weights = unlike_training(3)
    image = np.random.default_rng(4).normal(0, 1, (1, 3, 550, 550)).astype(np.float32)
    expected, found = Reference(weights)(image), infer(yolact.build(weights), image)
    for name in OUTPUTS:
        assert expected[name].std() > 1e-2 or name == "conf", f"{name} is too flat to tell anything"
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4, err_msg=name)
    assert expected["conf"][..., 1:].max() > 0.3


@pytest.mark.integration
def test_the_converted_form_is_the_original_behind_bgr_mean_and_scale() -> None:
    weights = unlike_training(8)
    rgb = np.random.default_rng(9).integers(0, 256, (1, 3, 550, 550)).astype(np.float32)
    mean, scale = (
        np.array(values).reshape(1, 3, 1, 1) for values in (FORMS["original"].image.mean, FORMS["original"].image.scale)
    )
    original = infer(yolact.build(weights), (rgb - mean) / scale)
    converted = infer(yolact.build(weights, "converted"), rgb[:, ::-1])
    for name in OUTPUTS:
        np.testing.assert_allclose(converted[name], original[name], rtol=1e-4, atol=1e-4, err_msg=name)


# ---- conversion -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One checkpoint, and what became of it: "pth", "original" and "converted"."""
    torch = pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("yolact")
    paths = {"pth": folder / "yolact.pth", **{form: folder / form / "yolact.xml" for form in FORMS}}
    state = {name: torch.from_numpy(array) for name, array in yolact.random_weights(0).items()}
    torch.save(state, paths["pth"])
    yolact.convert(paths["pth"], paths["original"], form="original")
    yolact.convert(paths["pth"], paths["converted"])
    return paths


@pytest.mark.integration
@pytest.mark.parametrize("form", list(FORMS))
def test_a_conversion_is_float32_and_says_what_it_is(converted: Mapping[str, Path], form: str) -> None:
    xml = converted[form]
    card = json.loads((xml.parent / resolve.CARD).read_text())
    source = {"file": "yolact.pth", "sha256": sha256(converted["pth"].read_bytes()).hexdigest()}
    assert (card["contract"], card["form"], card["source"]) == (yolact.ADAPTER_NAME, form, source)
    assert xml.with_suffix(".bin").stat().st_size > 4 * 31_000_000
    assert resolve.resolve(yolact.ADAPTER_NAME, str(xml)).form == FORMS[form]


@pytest.mark.integration
def test_both_forms_give_the_same_masks(converted: Mapping[str, Path]) -> None:
    image = np.asarray(Image.open(golden_files.PHOTO))
    one, other = (labelled(converted[form], image) for form in FORMS)
    assert len(one) > 10
    np.testing.assert_array_equal(one.class_ids, other.class_ids)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-4)
    np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy, atol=0.05)
    for a, b in zip(one.rles, other.rles, strict=True):
        differing = rle.decode(a, one.size_hw) != rle.decode(b, one.size_hw)
        assert differing.sum() <= max(3, 0.001 * rle.area(a))


def labelled(xml: Path, image_rgb: NDArray[Any]) -> Instances:
    """The whole way from files to instances, as a run goes it."""
    model = resolve.resolve(yolact.ADAPTER_NAME, str(xml))
    engine = runtime.compile(model.path, model.form, DeviceSettings(threads=2, precision="f32"))
    height, width, _ = image_rgb.shape
    with engine.infer(model.adapter.prepare(model.form, image_rgb)) as outputs:
        return model.adapter.decode(outputs, (height, width), Options(score_threshold=0.2))
