"""A network that does all the work of a published one and means nothing: YOLACT ResNet-50 with random weights whose
heads are arranged so that it finds about as many things, as large and as ragged, as trained weights do.

Knows the layers of yolact_graph.py; knows nothing of images or of time. Nothing here depends on the contrast of the
images, which only scales the features of a network without biases; so no photograph has too few or too many.

Beside 3,834 detections of the published weights on COCO, of those the ones that score 0.15 or more: masks of 0.7 % of
the image in the median (there 0.7 %), 2 to 4 % in the mean (5 %), half of their boxes (57 %); RLE of 200 characters
in the median at 640x480 (140).
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
# A class is found where so many features are all zero: that is some 100 to 700 of the 1.5 million places and classes.
_CONDITIONS = 15
# How much a feature that is not zero lowers a class: of its conditions, and of others, which put them in an order.
_DENIAL, _DOUBT = 30.0, 0.3
_MOST_SURE = 3.0
# Logarithms of how much larger than its prior a box is, by aspect; so there are small, middling and large things.
_LOG_GROWTH = (1.1, 0.6, 2.0)


def write(folder: Path) -> Path:
    """The network as an IR with its card in `folder`, made if need be; returns the .xml."""
    xml = folder / "yardstick.xml"
    if not xml.exists():
        folder.mkdir(parents=True, exist_ok=True)
        engine.save(yolact.build(weights(), "converted"), xml)
        card = {"contract": yolact.CONTRACT, "form": "converted", "weights": f"random, seed {_SEED}"}
        (folder / CARD).write_text(json.dumps(card), "utf-8")
    return xml


def weights() -> dict[str, Floats]:
    """Weights for yolact_graph.build."""
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
    """Kernels that answer to change alone, so that their output is as often above zero as below."""
    return np.asarray(kernels - kernels.mean(axis=(2, 3), keepdims=True), np.float32)


def _balanced(kernels: Floats) -> Floats:
    """Kernels that answer to no constant: all features are 0 or more, and would shift every output one way."""
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
    """Every second output the opposite of the one before; after a ReLU the two together still say it all."""
    return np.stack([kernels[::2], -kernels[::2]], 1).reshape(kernels.shape)


def _linear(rng: np.random.Generator, outputs: int, inputs: int) -> Floats:
    """(2 outputs, 2 inputs) weights that join opposed inputs into what they were, and give opposed outputs."""
    mix = rng.standard_normal((outputs, inputs), np.float32) / np.float32(np.sqrt(inputs))
    return np.kron(mix, np.array([[1, -1], [-1, 1]], np.float32))


def _slopes(rng: np.random.Generator, outputs: int, inputs: int) -> Floats:
    """Differences, like `_differences`, but smooth across."""
    slope = np.outer(np.array([1, 2, 1], np.float32), np.array([-1, 0, 1], np.float32))
    across, down = rng.standard_normal((2, outputs, inputs, 1, 1), np.float32) / np.float32(np.sqrt(inputs))
    return np.asarray(across * slope + down * slope.T, np.float32)


def _blur(weights: Floats) -> Floats:
    line = np.array([1, 2, 1], np.float32) / 4
    return np.asarray(weights[:, :, None, None] * np.outer(line, line), np.float32)
