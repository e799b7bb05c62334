"""The reference model: YOLACT ResNet-50 with random weights, which does all the work of a trained network.

The heads' weights are arranged so that the network finds about as many instances as trained weights do. The instances
are about as large and as ragged, too. Knows the layers of segray/conversion/yolact.py. Knows nothing of images or time.
The contrast of an image has no effect, because it only scales the features of a network without biases. No photograph
has therefore too few or too many instances.

For comparison, in brackets: 3,834 detections of the published weights on COCO, only scores of at least 0.15. Masks
cover 0.7 % (0.7 %) of the image in the median, and 2 to 4 % (5 %) in the mean. Masks cover half (57 %) of their
boxes. An RLE has 200 characters (140) in the median at 640x480.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segray.conversion import yolact
from segray.conversion.yolact import ASPECTS, CLASSES, PROTOTYPES
from segray.models import engine
from segray.models.resolve import CARD

Floats = NDArray[np.float32]

_SEED = 0
_HEAD = "prediction_layers.0"
# A class is found where this many features are all zero: at 100 to 700 of 1.5 million pairs of prior and class.
_CONDITIONS = 15
# Weight by which a non-zero feature lowers a class's score: of its conditions, and of others, which order the scores.
_DENIAL, _DOUBT = 30.0, 0.3
_MOST_SURE = 3.0
# Logarithm of the box's size over its prior's size, by aspect, for small, medium and large instances.
_LOG_GROWTH = (1.1, 0.6, 2.0)


def write(folder: Path) -> Path:
    """Write the network as an IR with its card into `folder`, created if needed; return the path of the .xml."""
    xml = folder / "yardstick.xml"
    if not xml.exists():
        folder.mkdir(parents=True, exist_ok=True)
        engine.save(yolact.build(weights(), "converted"), xml)
        card = {"contract": yolact.ADAPTER_NAME, "form": "converted", "weights": f"random, seed {_SEED}"}
        (folder / CARD).write_text(json.dumps(card), "utf-8")
    return xml


def weights() -> dict[str, Floats]:
    """Return weights for segray.conversion.yolact.build."""
    rng = np.random.default_rng(_SEED)
    found = yolact.random_weights(_SEED)
    found[f"{_HEAD}.upfeature.0.weight"] = _differences(found[f"{_HEAD}.upfeature.0.weight"])
    found[f"{_HEAD}.conf_layer.weight"], found[f"{_HEAD}.conf_layer.bias"] = _classes(rng)
    found[f"{_HEAD}.bbox_layer.bias"] = _growths()
    coefficients = _balanced(found[f"{_HEAD}.mask_layer.weight"])
    found[f"{_HEAD}.mask_layer.weight"] = 4 * _opposed(coefficients)
    found["proto_net.0.weight"] = _opposed(_slopes(rng, 256, 256))
    for index in (2, 4, 8):
        found[f"proto_net.{index}.weight"] = _blur(_linear(rng, 128, 128))
    found["proto_net.10.weight"] = _linear(rng, PROTOTYPES // 2, 128)[:, :, None, None]
    return found


def _differences(kernels: Floats) -> Floats:
    """Return kernels that respond only to change, so that their output is as often above zero as below."""
    return np.asarray(kernels - kernels.mean(axis=(2, 3), keepdims=True), np.float32)


def _balanced(kernels: Floats) -> Floats:
    """Return kernels that do not respond to a constant.

    All features are 0 or more, and would otherwise shift every output in one direction.
    """
    return np.asarray(kernels - kernels.mean(axis=1, keepdims=True), np.float32)


def _classes(rng: np.random.Generator) -> tuple[Floats, Floats]:
    kernels = np.zeros((len(ASPECTS) * CLASSES, 256, 3, 3), np.float32)
    bias = np.full(len(kernels), _MOST_SURE, np.float32)
    bias[::CLASSES] = 0  # the background
    for row in np.flatnonzero(bias):
        features = rng.permutation(256)
        kernels[row, features[:_CONDITIONS], 1, 1] = -_DENIAL
        kernels[row, features[_CONDITIONS : 2 * _CONDITIONS], 1, 1] = -_DOUBT
    return kernels, bias


def _growths() -> Floats:
    bias = np.zeros((len(ASPECTS), 4), np.float32)
    bias[:, 2:] = np.array(_LOG_GROWTH, np.float32)[:, None] / yolact.VARIANCES[1]
    return bias.reshape(-1)


# ---- prototypes: smooth fields around zero, in spite of every ReLU ---------------------------------


def _opposed(kernels: Floats) -> Floats:
    """Return kernels in which every second output is the opposite of the output before.

    After a ReLU, both outputs together still hold all information.
    """
    return np.stack([kernels[::2], -kernels[::2]], 1).reshape(kernels.shape)


def _linear(rng: np.random.Generator, outputs: int, inputs: int) -> Floats:
    """Return weights (2 outputs, 2 inputs) that recombine opposed inputs and give opposed outputs."""
    mix = rng.standard_normal((outputs, inputs), np.float32) / np.float32(np.sqrt(inputs))
    return np.kron(mix, np.array([[1, -1], [-1, 1]], np.float32))


def _slopes(rng: np.random.Generator, outputs: int, inputs: int) -> Floats:
    """Return kernels of differences, as in `_differences`, but smooth across the direction of change."""
    slope = np.outer(np.array([1, 2, 1], np.float32), np.array([-1, 0, 1], np.float32))
    across, down = rng.standard_normal((2, outputs, inputs, 1, 1), np.float32) / np.float32(np.sqrt(inputs))
    return np.asarray(across * slope + down * slope.T, np.float32)


def _blur(weights: Floats) -> Floats:
    line = np.array([1, 2, 1], np.float32) / 4
    return np.asarray(weights[:, :, None, None] * np.outer(line, line), np.float32)
