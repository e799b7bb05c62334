"""YOLACT ResNet-50 FPN in OpenVINO's opset, built from the weights of the original repository's checkpoint.

Knows the layers, the names of their weights and the priors. `read` reads a checkpoint and needs the `train` extra;
`convert` writes a converted model. Knows nothing of devices or of detections.

The network is Bolya et al., "YOLACT: Real-time Instance Segmentation" (ICCV 2019), configuration yolact_resnet50 at
550 pixels. Its ResNet-50 has the stride in the 3x3 convolutions. Five pyramid levels share one prediction head.
The network has 19,248 priors and 32 prototypes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segray.errors import ModelError
from segray.models.adapters.yolact import FORMS
from segray.models.metadata import CARD
from segray.models.openvino import opset13 as op
from segray.models.openvino import ov

ADAPTER_NAME = "yolact-resnet50-fpn-pytorch"
INPUT_PX = 550
CLASSES = 81
PROTOTYPES = 32
VARIANCES = (0.1, 0.2)
LEVEL_SIDES = (69, 35, 18, 9, 5)
PRIOR_SIDES_PX = (24.0, 48.0, 96.0, 192.0, 384.0)
ASPECTS = (1.0, 0.5, 2.0)

_STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
_WIDTH = 256
_HEAD = "prediction_layers.0"
_NORM_EPSILON = 1e-5
# Arrays that the original does not load (names before 1.0, a third downsampling) or uses in training only.
_UNUSED = re.compile(
    r"backbone\.layer(?!s)|fpn\.downsample_layers\.(?![01]\.)|semantic_seg_conv\.|.*\.num_batches_tracked$"
)

Weights = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float32]
Node = Any


# ---- layers ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConvLayer:
    """A square convolution, padded by half its kernel. name, norm: prefixes in the state dict.

    inputs, outputs: channels. kernel, stride: pixels. norm: batch norm that follows in place of a bias; empty for a
    convolution with a bias.
    """

    name: str
    inputs: int
    outputs: int
    kernel: int
    stride: int = 1
    norm: str = ""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the layer's arrays, by name in the state dict."""
        kernel = {f"{self.name}.weight": (self.outputs, self.inputs, self.kernel, self.kernel)}
        if not self.norm:
            return kernel | {f"{self.name}.bias": (self.outputs,)}
        return kernel | {
            f"{self.norm}.{array}": (self.outputs,) for array in ("weight", "bias", "running_mean", "running_var")
        }


def layers() -> Iterator[ConvLayer]:
    """Yield every convolution that inference needs, in the order of the computation."""
    yield ConvLayer("backbone.conv1", 3, 64, 7, 2, "backbone.bn1")
    inputs = 64
    for stage, (blocks, width) in enumerate(_STAGES):
        for block in range(blocks):
            yield from _bottleneck(f"backbone.layers.{stage}.{block}", inputs, width, 2 if stage and not block else 1)
            inputs = 4 * width
    for index, (_, width) in enumerate(reversed(_STAGES[1:])):
        yield ConvLayer(f"fpn.lat_layers.{index}", 4 * width, _WIDTH, 1)
        yield ConvLayer(f"fpn.pred_layers.{index}", _WIDTH, _WIDTH, 3)
    yield from (ConvLayer(f"fpn.downsample_layers.{index}", _WIDTH, _WIDTH, 3, 2) for index in range(2))
    yield from (ConvLayer(f"proto_net.{index}", _WIDTH, _WIDTH, 3) for index in (0, 2, 4, 8))
    yield ConvLayer("proto_net.10", _WIDTH, PROTOTYPES, 1)
    yield ConvLayer(f"{_HEAD}.upfeature.0", _WIDTH, _WIDTH, 3)
    for head, columns in (("bbox", 4), ("conf", CLASSES), ("mask", PROTOTYPES)):
        yield ConvLayer(f"{_HEAD}.{head}_layer", _WIDTH, len(ASPECTS) * columns, 3)


def _bottleneck(name: str, inputs: int, width: int, stride: int) -> Iterator[ConvLayer]:
    yield ConvLayer(f"{name}.conv1", inputs, width, 1, 1, f"{name}.bn1")
    yield ConvLayer(f"{name}.conv2", width, width, 3, stride, f"{name}.bn2")
    yield ConvLayer(f"{name}.conv3", width, 4 * width, 1, 1, f"{name}.bn3")
    if inputs != 4 * width:
        yield ConvLayer(f"{name}.downsample.0", inputs, 4 * width, 1, stride, f"{name}.downsample.1")


def shapes() -> dict[str, tuple[int, ...]]:
    """Return the shapes of the arrays that `build` reads, by name in the state dict."""
    return {name: shape for layer in layers() for name, shape in layer.shapes.items()}


def random_weights(seed: int) -> dict[str, Floats]:
    """Return untrained float32 weights with every name and shape of `shapes`, for benchmarks.

    The scale is He et al.'s, but smaller where sums or outputs would grow without training. The number of a
    photograph's priors that pass YOLACT's floor of 0.05 depends on the seed: none to thousands, mostly of one class.
    With seed 0 about 1,000 pass.
    """
    rng = np.random.default_rng(seed)
    weights: dict[str, Floats] = {}
    for layer in layers():
        kernel, *others = layer.shapes.items()
        gain = 1 / 8 if layer.name.endswith(("_layer", "proto_net.10")) else 1
        deviation = gain * (2 / (layer.inputs * layer.kernel**2)) ** 0.5
        weights[kernel[0]] = rng.standard_normal(kernel[1], np.float32) * np.float32(deviation)
        for name, shape in others:
            one = 1 / 4 if name.endswith("bn3.weight") else 1
            value = one if name.endswith((".weight", ".running_var")) else 0
            weights[name] = np.full(shape, value, np.float32)
    weights[f"{_HEAD}.conf_layer.bias"][::CLASSES] = 8
    return weights


def priors_cxcywh() -> Floats:
    """Return the priors, (19248, 4): centre and size, relative to the input's side.

    The order is level, row, column, aspect. All priors are squares, scaled by the root of the aspect ratio, because the
    published weights were trained with these.
    """
    return np.concatenate(
        [_priors_of_level(side, scale) for side, scale in zip(LEVEL_SIDES, PRIOR_SIDES_PX, strict=True)]
    )


def _priors_of_level(side: int, scale_px: float) -> Floats:
    centres = (np.arange(side) + 0.5) / side
    level = np.empty((side, side, len(ASPECTS), 4), np.float32)
    level[..., 0] = centres[:, None]
    level[..., 1] = centres[:, None, None]
    level[..., 2:] = scale_px * np.sqrt(ASPECTS)[:, None] / INPUT_PX
    return level.reshape(-1, 4)


# ---- the graph ------------------------------------------------------------------------------------


def build(weights: Weights, form: Literal["original", "converted"] = "original") -> ov.Model:
    """Return the network with these weights, in float32.

    Args:
        weights: The state dict as arrays. Arrays that only training or older releases use are optional.
        form: The original form takes normalised RGB, the converted form BGR 0..255.

    Returns:
        A model with the input `input.1`, float32 (1, 3, 550, 550), and four outputs: conf (1, 19248, 81), softmax;
        boxes (1, 19248, 4), x1, y1, x2, y2 relative to the input's side; mask (1, 19248, 32); proto (1, 138, 138, 32).

    Raises:
        ModelError: Weights are missing, unknown or of another shape.
    """
    _check_weights(weights)
    image = op.parameter([1, 3, INPUT_PX, INPUT_PX], np.float32, name="input.1")
    image.output(0).tensor.set_names({"input.1"})
    x: Node = image
    if form == "converted":
        x, weights = _normalise(image), _weights_for_bgr(weights)
    net = {layer.name: _convolution(layer, weights) for layer in layers()}
    pyramid = _pyramid(net, _backbone(net, x))
    scores, offsets, coefficients = _heads(net, pyramid)
    outputs = {
        "conf": op.softmax(scores, axis=2),
        "boxes": _boxes(offsets),
        "mask": op.tanh(coefficients),
        "proto": _prototypes(net, pyramid[0]),
    }
    for name, node in outputs.items():
        node.output(0).tensor.set_names({name})
    return ov.Model([op.result(node, name=name) for name, node in outputs.items()], [image], ADAPTER_NAME)


def _check_weights(weights: Weights) -> None:
    """Raise ModelError if weights are missing, unknown or of another shape."""
    expected = shapes()
    misshapen = [name for name in expected if name in weights and np.shape(weights[name]) != expected[name]]
    faults = {
        "missing": [name for name in expected if name not in weights],
        "unknown": [name for name in weights if name not in expected and not _UNUSED.match(name)],
        "of another shape": [f"{name} {[*np.shape(weights[name])]}, not {[*expected[name]]}" for name in misshapen],
    }
    if any(faults.values()):
        raise ModelError(
            "These are not the weights of YOLACT ResNet-50 FPN with 80 classes.",
            found="; ".join(f"{fault}: {_first_names(names)}" for fault, names in faults.items() if names),
            hint="Give yolact_resnet50_54_800000.pth, or weights that yolact_resnet50_config trained on COCO.",
        )


def _first_names(names: Sequence[str], most: int = 4) -> str:
    text = ", ".join(names[:most])
    return f"{text} and {len(names) - most} more" if len(names) > most else text


def _normalise(image_bgr: Node) -> Node:
    """Return nodes that compute (x - mean) / scale.

    Folding both into the first convolution would be wrong: its zero padding stands for the mean, not for black.
    """
    image = FORMS["original"].image
    mean, scale = (np.array(rgb, np.float32)[::-1].reshape(1, 3, 1, 1) for rgb in (image.mean, image.scale))
    return op.divide(op.subtract(image_bgr, np.ascontiguousarray(mean)), np.ascontiguousarray(scale))


def _weights_for_bgr(weights: Weights) -> Weights:
    """Return the weights with the input channels of the first convolution in reverse order."""
    first = "backbone.conv1.weight"
    return {**weights, first: weights[first][:, ::-1]}


def _convolution(layer: ConvLayer, weights: Weights) -> Callable[[Node], Node]:
    """Return the layer as a function on nodes; all its calls share the constants."""
    kernel, bias = (op.constant(np.ascontiguousarray(array, np.float32)) for array in _fold_batch_norm(layer, weights))
    return partial(_convolve, layer, kernel, bias)


def _fold_batch_norm(layer: ConvLayer, weights: Weights) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return kernel and bias (1, outputs, 1, 1), with the batch norm, if any, multiplied in."""
    kernel = weights[f"{layer.name}.weight"]
    if not layer.norm:
        return kernel, weights[f"{layer.name}.bias"].reshape(1, -1, 1, 1)
    gamma, beta, mean, variance = (
        weights[f"{layer.norm}.{array}"].astype(np.float64)
        for array in ("weight", "bias", "running_mean", "running_var")
    )
    factor = gamma / np.sqrt(variance + _NORM_EPSILON)
    return kernel * factor.reshape(-1, 1, 1, 1), (beta - mean * factor).reshape(1, -1, 1, 1)


def _convolve(layer: ConvLayer, kernel: Node, bias: Node, x: Node) -> Node:
    stride, padding = [layer.stride] * 2, [layer.kernel // 2] * 2
    return op.add(op.convolution(x, kernel, stride, padding, padding, [1, 1]), bias)


Net = Mapping[str, Callable[[Node], Node]]


def _backbone(net: Net, image: Node) -> list[Node]:
    """Return the features at strides 8, 16 and 32."""
    x = op.relu(net["backbone.conv1"](image))
    x = op.max_pool(x, [2, 2], [1, 1], [1, 1], [1, 1], [3, 3]).output(0)
    features = []
    for stage, (blocks, _) in enumerate(_STAGES):
        for block in range(blocks):
            x = _residual(net, f"backbone.layers.{stage}.{block}", x)
        features.append(x)
    return features[1:]


def _residual(net: Net, block: str, x: Node) -> Node:
    inner = op.relu(net[f"{block}.conv1"](x))
    inner = op.relu(net[f"{block}.conv2"](inner))
    shortcut = net.get(f"{block}.downsample.0", lambda x: x)
    return op.relu(op.add(net[f"{block}.conv3"](inner), shortcut(x)))


def _pyramid(net: Net, features: Sequence[Node]) -> list[Node]:
    """Return features of 256 channels at five strides, finest first.

    The weights are numbered from the coarsest of the features.
    """
    x = net["fpn.lat_layers.0"](features[-1])
    levels = [x]
    for index, feature in enumerate(features[-2::-1], 1):
        x = op.add(_resize(x, LEVEL_SIDES[2 - index]), net[f"fpn.lat_layers.{index}"](feature))
        levels.append(x)
    levels = [op.relu(net[f"fpn.pred_layers.{index}"](level)) for index, level in enumerate(levels)][::-1]
    for index in range(2):
        levels.append(net[f"fpn.downsample_layers.{index}"](levels[-1]))
    return levels


def _resize(x: Node, side: int) -> Node:
    """Resize to side x side, bilinear with half-pixel centres."""
    sizes, axes = np.array([side, side], np.int64), np.array([2, 3], np.int64)
    return op.interpolate(x, sizes, "linear_onnx", "sizes", coordinate_transformation_mode="half_pixel", axes=axes)


def _prototypes(net: Net, finest: Node) -> Node:
    x = finest
    for index in (0, 2, 4):
        x = op.relu(net[f"proto_net.{index}"](x))
    x = op.relu(net["proto_net.8"](_resize(x, 2 * LEVEL_SIDES[0])))
    return _channels_last(op.relu(net["proto_net.10"](x)))


def _heads(net: Net, pyramid: Sequence[Node]) -> tuple[Node, Node, Node]:
    """Return class scores (1, 19248, 81), box offsets (1, 19248, 4) and mask coefficients (1, 19248, 32).

    All are linear, without activation.
    """
    shared = [op.relu(net[f"{_HEAD}.upfeature.0"](level)) for level in pyramid]

    def head(name: str, columns: int) -> Node:
        levels = [_channels_last(net[f"{_HEAD}.{name}_layer"](level)) for level in shared]
        return op.concat([op.reshape(level, [1, -1, columns], special_zero=False) for level in levels], axis=1)

    return head("conf", CLASSES), head("bbox", 4), head("mask", PROTOTYPES)


def _channels_last(x: Node) -> Node:
    return op.transpose(x, [0, 2, 3, 1])


def _boxes(offsets: Node) -> Node:
    """Decode SSD offsets (1, 19248, 4) into boxes x1, y1, x2, y2.

    Centres move by a fraction of the prior's size; sizes grow exponentially.
    """
    centres, sizes = np.split(priors_cxcywh()[None], 2, axis=2)
    shifts, growths = op.split(offsets, np.int64(2), 2).outputs()
    centre = op.add(op.multiply(shifts, sizes * np.float32(VARIANCES[0])), centres)
    half = op.multiply(op.exp(op.multiply(growths, np.float32(VARIANCES[1]))), sizes / 2)
    return op.concat([op.subtract(centre, half), op.add(centre, half)], axis=2)


# ---- files ----------------------------------------------------------------------------------------


def convert(pth: Path, xml: Path, *, form: Literal["original", "converted"] = "converted") -> None:
    """Write the checkpoint `pth` as a float32 IR, `xml` and its .bin, with a card beside it.

    Args:
        pth: The checkpoint of the original repository.
        xml: Path of the IR, in a folder for this model alone, created if needed. An earlier conversion is replaced.
        form: As in `build`.

    Raises:
        ModelError: The checkpoint is unreadable or holds other weights, or the folder has another model's card.
    """
    card = xml.parent / CARD
    if card.exists() and not xml.exists():
        hint = "Set --out to a folder for this model alone."
        raise ModelError("The folder holds another model's card.", where=str(card), hint=hint)
    try:
        model = build(read(pth), form)
    except ModelError as error:
        raise ModelError(error.what, where=str(pth), found=error.found, hint=error.hint) from error
    xml.parent.mkdir(parents=True, exist_ok=True)
    ov.save_model(model, xml, compress_to_fp16=False)
    with pth.open("rb") as stream:
        source = {"file": pth.name, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}
    content = {"contract": ADAPTER_NAME, "form": form, "source": source, "openvino": ov.__version__}
    card.write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def read(pth: Path) -> dict[str, Floats]:
    """Return the arrays of a checkpoint by name, as float32; no code in the file is run. Needs the `train` extra.

    Raises ModelError if PyTorch or the file is missing, or if the file is no flat dict of tensors.
    """
    try:
        import torch
    except ImportError as error:
        hint = "Install segray[train]. The converted model does not need PyTorch."
        raise ModelError("Reading a .pth needs PyTorch.", where=str(pth), found=str(error), hint=hint) from error
    if not pth.is_file():
        raise ModelError("The checkpoint does not exist.", where=str(pth), hint="Check the path.")
    try:
        state = torch.load(pth, map_location="cpu", weights_only=True)
    except Exception as error:  # Damaged pickles raise anything.
        hint = "Copy or download the file again. segray reads only tensors and runs no code from a checkpoint."
        raise ModelError(
            "The checkpoint cannot be read.", where=str(pth), found=_refused_part(error), hint=hint
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        hint = "Save only the state dict: torch.save(model.state_dict(), path)."
        raise ModelError(
            "The checkpoint is not a flat dict of tensors.", where=str(pth), found=_type_text(state), hint=hint
        )
    return {str(name): tensor.detach().float().numpy() for name, tensor in state.items()}


def _refused_part(error: Exception) -> str:
    """Return the refused part of the error, without PyTorch's advice to trust the file."""
    refused = re.search(r"GLOBAL \S+|Unsupported [^\n]*", str(error))
    return refused[0] if refused else f"{type(error).__name__}: {str(error).partition('. ')[0]}"


def _type_text(state: object) -> str:
    if not isinstance(state, dict):
        return type(state).__name__
    return "a dict of " + ", ".join(sorted({type(value).__name__ for value in state.values()}))
