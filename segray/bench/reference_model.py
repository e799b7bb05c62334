"""The reference model: YOLACT ResNet-50 with random weights, which does all the work of a trained network.

The weights of the heads are arranged so that the network finds about as many instances as with trained weights. The
masks have about the same size and the same length of outline. Knows the layers of segray/conversion/yolact.py. Knows
nothing of images or time. The contrast of an image only scales the features of a network without biases. Therefore
every photograph has about the same number of instances.

Values of this network, and in brackets those of the published weights, from 3,834 detections on COCO with a score of
at least 0.15:

- share of the image that a mask covers: median 0.7 % (0.7 %), mean 2 to 4 % (5 %)
- share of its box that a mask covers: 50 % (57 %)
- characters of an RLE at 640x480: median 200 (140)
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from segray.conversion import yolact
from segray.conversion.yolact import ASPECTS, CLASSES, PROTOTYPES
from segray.models import engine
from segray.models.metadata import CARD

Floats = NDArray[np.float32]

_SEED = 0
_HEAD = "prediction_layers.0"
# A class scores high where this many features are all zero: at 100 to 700 of 1.5 million pairs of prior and class.
_CONDITIONS = 15
# A feature lowers a class's score by these weights. The second one orders the scores of detections.
_CONDITION_WEIGHT, _ORDER_WEIGHT = 30.0, 0.3
_MAX_LOGIT = 3.0
# Logarithm of the box's size over its prior's size, by aspect, for small, medium and large instances.
_LOG_GROWTH = (1.1, 0.6, 2.0)


def write(folder: Path) -> Path:
    """Write the network as an IR with its card into `folder`, created if needed; return the path of the .xml."""
    xml = folder / "reference_model.xml"
    if not xml.exists():
        folder.mkdir(parents=True, exist_ok=True)
        engine.save(yolact.build(weights(), "converted"), xml)
        card = {"contract": yolact.ADAPTER_NAME, "form": "converted", "weights": f"random, seed {_SEED}"}
        (folder / CARD).write_text(json.dumps(card), "utf-8")
    return xml


def weights() -> dict[str, Floats]:
    """Return weights for segray.conversion.yolact.build."""
    rng = np.random.default_rng(_SEED)
    by_name = yolact.random_weights(_SEED)
    by_name[f"{_HEAD}.upfeature.0.weight"] = _remove_spatial_mean(by_name[f"{_HEAD}.upfeature.0.weight"])
    by_name[f"{_HEAD}.conf_layer.weight"], by_name[f"{_HEAD}.conf_layer.bias"] = _class_head(rng)
    by_name[f"{_HEAD}.bbox_layer.bias"] = _box_bias()
    coefficients = _remove_channel_mean(by_name[f"{_HEAD}.mask_layer.weight"])
    by_name[f"{_HEAD}.mask_layer.weight"] = 4 * _mirror_odd_outputs(coefficients)
    by_name["proto_net.0.weight"] = _mirror_odd_outputs(_smooth_differences(rng, 256, 256))
    for index in (2, 4, 8):
        by_name[f"proto_net.{index}.weight"] = _blur(_mirrored_mix(rng, 128, 128))
    by_name["proto_net.10.weight"] = _mirrored_mix(rng, PROTOTYPES // 2, 128)[:, :, None, None]
    return by_name


def _remove_spatial_mean(kernels: Floats) -> Floats:
    """Return kernels that respond only to change. Their output is above zero as often as below."""
    return np.asarray(kernels - kernels.mean(axis=(2, 3), keepdims=True), np.float32)


def _remove_channel_mean(kernels: Floats) -> Floats:
    """Return kernels that do not respond to a constant.

    All features are 0 or more. Other kernels would shift every output in one direction.
    """
    return np.asarray(kernels - kernels.mean(axis=1, keepdims=True), np.float32)


def _class_head(rng: np.random.Generator) -> tuple[Floats, Floats]:
    kernels = np.zeros((len(ASPECTS) * CLASSES, 256, 3, 3), np.float32)
    bias = np.full(len(kernels), _MAX_LOGIT, np.float32)
    bias[::CLASSES] = 0  # the background
    for row in np.flatnonzero(bias):
        features = rng.permutation(256)
        kernels[row, features[:_CONDITIONS], 1, 1] = -_CONDITION_WEIGHT
        kernels[row, features[_CONDITIONS : 2 * _CONDITIONS], 1, 1] = -_ORDER_WEIGHT
    return kernels, bias


def _box_bias() -> Floats:
    bias = np.zeros((len(ASPECTS), 4), np.float32)
    bias[:, 2:] = np.array(_LOG_GROWTH, np.float32)[:, None] / yolact.VARIANCES[1]
    return bias.reshape(-1)


# ---- prototypes: smooth fields around zero, in spite of every ReLU ---------------------------------


def _mirror_odd_outputs(kernels: Floats) -> Floats:
    """Return kernels in which every second output is the opposite of the output before.

    After a ReLU, both outputs together still hold all information.
    """
    return np.stack([kernels[::2], -kernels[::2]], 1).reshape(kernels.shape)


def _mirrored_mix(rng: np.random.Generator, outputs: int, inputs: int) -> Floats:
    """Return weights (2 outputs, 2 inputs) that recombine opposed inputs and give opposed outputs."""
    mix = rng.standard_normal((outputs, inputs), np.float32) / np.float32(np.sqrt(inputs))
    return np.kron(mix, np.array([[1, -1], [-1, 1]], np.float32))


def _smooth_differences(rng: np.random.Generator, outputs: int, inputs: int) -> Floats:
    """Return kernels of differences, as in `_remove_spatial_mean`, but smooth across the direction of change."""
    sobel = np.outer(np.array([1, 2, 1], np.float32), np.array([-1, 0, 1], np.float32))
    across, down = rng.standard_normal((2, outputs, inputs, 1, 1), np.float32) / np.float32(np.sqrt(inputs))
    return np.asarray(across * sobel + down * sobel.T, np.float32)


def _blur(weights: Floats) -> Floats:
    line = np.array([1, 2, 1], np.float32) / 4
    return np.asarray(weights[:, :, None, None] * np.outer(line, line), np.float32)
