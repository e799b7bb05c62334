"""ir5.py on v5 files written here, layer by layer and as one small Mask R-CNN, against numpy; and on broken files.

No published v5 file is at hand: these follow the documentation and the sources of OpenVINO 2019 R1.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import openvino as ov
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from segray.conversion import ir_v5
from segray.errors import ModelError
from segray.models import engine

Array = NDArray[Any]
PRECISIONS = {"float32": "FP32", "float16": "FP16", "int32": "I32"}


# ---- writing v5 files ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """A layer to write. feeds: names of layers, ":1" after it for their second output. dims: of each output."""

    name: str
    kind: str
    feeds: Sequence[str]
    dims: Sequence[Sequence[int]]
    attributes: Mapping[str, str] = field(default_factory=dict)
    blobs: Mapping[str, Array] = field(default_factory=dict)


def source(name: str, array: Array) -> Node:
    """Floats come in as an Input, whole numbers as a Const."""
    if array.dtype.kind == "f":
        return Node(name, "Input", (), [array.shape])
    return Node(name, "Const", (), [array.shape], blobs={"custom": array})


def write(folder: Path, nodes: Sequence[Node], half: bool = False) -> Path:
    ids = {node.name: index for index, node in enumerate(nodes)}
    outputs = {node.name: len(node.feeds) for node in nodes}
    weights, layers, edges = b"", [], []
    for node in nodes:
        blobs, precision = "", "FP16" if half else "FP32"
        for key, array in node.blobs.items():
            stored = array.astype(np.float16) if half and array.dtype.kind == "f" else array
            precision = PRECISIONS[stored.dtype.name]
            blobs += f'<{key} offset="{len(weights)}" size="{stored.nbytes}"/>'
            weights += stored.tobytes()
        attributes = " ".join(f"{key}={quoteattr(value)}" for key, value in node.attributes.items())
        name, head = quoteattr(node.name), f'<layer id="{ids[node.name]}" precision="{precision}" type="{node.kind}"'
        ports = _ports("output", node.dims, len(node.feeds))
        feeds = [feed.partition(":") for feed in node.feeds]
        if feeds:
            origin = {other.name: other.dims for other in nodes}
            ports = _ports("input", [origin[feed][int(index or 0)] for feed, _, index in feeds], 0) + ports
        layers.append(f"{head} name={name}><data {attributes}/>{ports}<blobs>{blobs}</blobs></layer>")
        edges += [
            f'<edge from-layer="{ids[feed]}" from-port="{outputs[feed] + int(index or 0)}"'
            f' to-layer="{ids[node.name]}" to-port="{port}"/>'
            for port, (feed, _, index) in enumerate(feeds)
        ]
    body = f"<layers>{''.join(layers)}</layers><edges>{''.join(edges)}</edges>"
    xml = folder / "net.xml"
    xml.write_text(f'<?xml version="1.0" ?><net batch="1" name="net" version="5">{body}</net>')
    xml.with_suffix(".bin").write_bytes(weights)
    return xml


def _ports(side: str, dims: Sequence[Sequence[int]], first: int) -> str:
    ports = (
        f'<port id="{first + i}">{"".join(f"<dim>{side}</dim>" for side in shape)}</port>'
        for i, shape in enumerate(dims)
    )
    return f"<{side}>{''.join(ports)}</{side}>"


def infer(model: ov.Model, **inputs: Array) -> dict[str, Array]:
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1})
    results = compiled({name: array.astype(np.float32) for name, array in inputs.items()})
    return {name: results[port] for port in compiled.outputs for name in port.get_names()}


# ---- what the layers compute ----------------------------------------------------------------------------


def numbers(*dims: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=dims).astype(np.float32)


def windows(x: Array, kernel: int, stride: int, dilation: int = 1) -> Array:
    extent = (kernel - 1) * dilation + 1
    return sliding_window_view(x, (extent, extent), (2, 3))[:, :, ::stride, ::stride, ::dilation, ::dilation]


def pad(x: Array, begin: int, end: int | None = None, value: float = 0.0) -> Array:
    spatial = (begin, begin if end is None else end)
    return np.pad(x, ((0, 0), (0, 0), spatial, spatial), constant_values=value)


def conv(
    x: Array, w: Array, b: Array | None = None, stride: int = 1, padding: int = 0, group: int = 1, d: int = 1
) -> Array:
    parts = zip(np.split(pad(x, padding), group, 1), np.split(w, group), strict=True)
    y = np.concatenate([np.einsum("nchwij,ocij->nohw", windows(p, w.shape[2], stride, d), v) for p, v in parts], 1)
    return y if b is None else y + b[:, None, None]


def deconv(x: Array, w: Array, stride: int) -> Array:
    """w: (inputs, outputs, k, k); every pixel paints its kernel."""
    k, (n, _, height, width) = w.shape[2], x.shape
    y = np.zeros((n, w.shape[1], (height - 1) * stride + k, (width - 1) * stride + k), np.float32)
    for i, j in itertools.product(range(height), range(width)):
        y[:, :, i * stride : i * stride + k, j * stride : j * stride + k] += np.einsum(
            "nc,coij->noij", x[:, :, i, j], w
        )
    return y


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def softmax(x: Array, axis: int = 1) -> Array:
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def relu(x: Array) -> Array:
    return np.maximum(x, 0)


def twice(x: Array) -> Array:
    return x.repeat(2, 2).repeat(2, 3)


def prior_grid(priors: Array, height: int, width: int, stride: float) -> Array:
    y, x = np.meshgrid((np.arange(height) + 0.5) * stride, (np.arange(width) + 0.5) * stride, indexing="ij")
    return (np.stack([x, y, x, y], -1)[:, :, None] + priors).reshape(-1, 4).astype(np.float32)


def moved(boxes: Array, deltas: Array, high: Array | float) -> Array:
    """Detectron's deltas on inclusive boxes, (n, 4) each; corners limited to 0..high."""
    size = boxes[:, 2:] - boxes[:, :2] + 1
    centre = boxes[:, :2] + size / 2 + deltas[:, :2] * size
    size = size * np.exp(np.minimum(deltas[:, 2:], np.log(1000 / 16)))
    return np.clip(np.concatenate([centre - size / 2, centre + size / 2 - 1], 1), 0, high)


def overlaps(box: Array, boxes: Array, pixel: int) -> Array:
    sides = np.maximum(np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]) + pixel, 0)
    area, areas = np.prod(box[2:] - box[:2] + pixel), np.prod(boxes[:, 2:] - boxes[:, :2] + pixel, 1)
    return np.asarray(np.prod(sides, 1) / np.maximum(area + areas - np.prod(sides, 1), 1e-9))


def nms(boxes: Array, scores: Array, threshold: float, pixel: int) -> list[int]:
    """pixel: 1 if boxes include their last pixel. The engine has it so for detections, but not for proposals."""
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if not (overlaps(boxes[index], boxes[kept], pixel) > threshold).any():
            kept.append(int(index))
    return kept


def proposals(im_info: Array, anchors: Array, deltas: Array, scores: Array, count: int) -> tuple[Array, Array]:
    """deltas (4 a, h, w), scores (a, h, w); NMS at 0.7; zeros after the last."""
    height, width = im_info[:2]
    per_anchor = deltas.reshape(-1, 4, *deltas.shape[1:]).transpose(2, 3, 0, 1).reshape(-1, 4)
    flat = scores.transpose(1, 2, 0).reshape(-1)
    boxes = moved(anchors, per_anchor, np.array([width, height] * 2) - 1)
    kept = nms(boxes, flat, 0.7, 0)[:count]
    rois, best = np.zeros((count, 4), np.float32), np.zeros(count, np.float32)
    rois[: len(kept)], best[: len(kept)] = boxes[kept], flat[kept]
    return rois, best


def detections(rois: Array, deltas: Array, scores: Array, count: int) -> list[tuple[int, float, Array]]:
    """(class, score, box) above 0.05 after NMS at 0.5 within each class, best first, at most count."""
    found: list[tuple[int, float, Array]] = []
    real = (rois[:, 2] > rois[:, 0]) & (rois[:, 3] > rois[:, 1])
    for label in range(1, scores.shape[1]):
        rows = np.flatnonzero(real & (scores[:, label] > 0.05))
        weighted = deltas[rows, 4 * label : 4 * label + 4] / np.array([10, 10, 5, 5])
        boxes = moved(rois[rows], weighted, np.inf)
        found += [(label, float(scores[rows[i], label]), boxes[i]) for i in nms(boxes, scores[rows, label], 0.5, 1)]
    return sorted(found, key=lambda item: -item[1])[:count]


def roi_features(rois: Array, levels: Sequence[Array], scales: Sequence[int], side: int) -> Array:
    """Average of 2x2 bilinear samples in each of side x side cells, from the level that fits the box's size."""
    out = np.zeros((len(rois), levels[0].shape[1], side, side), np.float32)
    for row, (x0, y0, x1, y1) in enumerate(rois):
        if (area := (x1 - x0) * (y1 - y0)) <= 0:
            continue
        level = int(np.clip(np.floor(np.log2(np.sqrt(area) / 224 + 1e-6) + 2), 0, len(levels) - 1))
        plane, scale = levels[level][0], scales[level]
        ticks = [
            low / scale + (np.arange(2 * side) + 0.5) * max((high - low) / scale, 1) / (2 * side)
            for low, high in ((y0, y1), (x0, x1))
        ]
        out[row] = bilinear(plane, *ticks).reshape(-1, side, 2, side, 2).mean((2, 4))
    return out


def bilinear(plane: Array, ys: Array, xs: Array) -> Array:
    """plane (c, h, w) at the grid of ys and xs; positions a pixel or less outside take the edge."""
    weights = []
    for ticks, length in ((ys, plane.shape[1]), (xs, plane.shape[2])):
        hat = np.maximum(0, 1 - np.abs(np.clip(ticks, 0, length - 1)[:, None] - np.arange(length)))
        weights.append(np.where(((ticks >= -1) & (ticks <= length))[:, None], hat, 0))
    return np.einsum("yi,cij,xj->cyx", weights[0], plane, weights[1])


# ---- layer by layer -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One layer on these inputs gives these outputs."""

    name: str
    kind: str
    inputs: Sequence[Array]
    outputs: Sequence[Array]
    attributes: Mapping[str, str] = field(default_factory=dict)
    blobs: Mapping[str, Array] = field(default_factory=dict)


X = numbers(1, 4, 6, 5)
ODD = numbers(1, 2, 7, 7, seed=5)
W3, W1, B = numbers(6, 4, 3, 3, seed=1), numbers(6, 2, 3, 3, seed=2), numbers(6, seed=3)
KERNEL = {"kernel": "3,3", "strides": "1,1", "pads_begin": "1,1", "pads_end": "1,1", "dilations": "1,1", "output": "6"}
POOL = {"kernel": "3,3", "strides": "2,2", "pads_begin": "0,0", "pads_end": "0,0"}
UP = numbers(4, 3, 2, 2, seed=4)
GROUPED_UP = numbers(4, 2, 2, 2, seed=4)
CHANNELS = numbers(4, seed=6)
WIDE = numbers(1, 2, 4, 6, seed=7)
LINEAR_UP = bilinear(WIDE[0], np.arange(8) / 2 - 0.25, np.arange(12) / 2 - 0.25)[None]
CORNERS = bilinear(WIDE[0], np.linspace(0, 3, 7), np.linspace(0, 5, 9))[None]
NO_CORNERS = bilinear(WIDE[0], np.arange(8) / 2, np.arange(12) / 2)[None]
ORDER = np.argsort(-X, 1, kind="stable")[:, :2]


def ints(*values: int) -> Array:
    return np.array(values, np.int32)


CASES = [
    Case("plain", "Convolution", [X], [conv(X, W3, B, 1, 1)], KERNEL, {"weights": W3, "biases": B}),
    Case("no bias", "Convolution", [X], [conv(X, W3, None, 1, 1)], KERNEL, {"weights": W3}),
    Case("strided", "Convolution", [ODD], [conv(ODD, W1, None, 2, 1)], KERNEL | {"strides": "2,2"}, {"weights": W1}),
    Case(
        "grouped", "Convolution", [X], [conv(X, W1, B, 1, 1, 2)], KERNEL | {"group": "2"}, {"weights": W1, "biases": B}
    ),
    Case(
        "dilated",
        "Convolution",
        [X],
        [conv(X, W3, None, 1, 2, 1, 2)],
        KERNEL | {"dilations": "2,2", "pads_begin": "2,2", "pads_end": "2,2"},
        {"weights": W3},
    ),
    Case(
        "same_upper",
        "Convolution",
        [X],
        [conv(X, W3, None, 1, 1)],
        {"kernel": "3,3", "output": "6", "auto_pad": "same_upper"},
        {"weights": W3},
    ),
    Case(
        "mask head",
        "Deconvolution",
        [X],
        [deconv(X, UP, 2)],
        {"kernel": "2,2", "strides": "2,2", "output": "3"},
        {"weights": UP},
    ),
    Case(
        "grouped",
        "Deconvolution",
        [X],
        [np.concatenate([deconv(X[:, :2], GROUPED_UP[:2], 2), deconv(X[:, 2:], GROUPED_UP[2:], 2)], 1)],
        {"kernel": "2,2", "strides": "2,2", "output": "4", "group": "2"},
        {"weights": GROUPED_UP},
    ),
    Case(
        "of images",
        "FullyConnected",
        [X],
        [X.reshape(1, -1) @ numbers(7, 120, seed=8).T + numbers(7, seed=9)],
        {"out-size": "7"},
        {"weights": numbers(7, 120, seed=8), "biases": numbers(7, seed=9)},
    ),
    *[
        Case(operation, "Eltwise", [X, Y := numbers(*X.shape, seed=10), X], [f(f(X, Y), X)], {"operation": operation})
        for operation, f in {
            "sum": np.add,
            "mul": np.multiply,
            "max": np.maximum,
            "min": np.minimum,
            "sub": np.subtract,
            "div": np.divide,
        }.items()
    ],
    Case("weighted", "Eltwise", [X, Y], [2 * X - Y], {"operation": "sum", "coeff": "2,-1"}),
    Case("maximum", "Pooling", [ODD], [windows(ODD, 3, 2).max((4, 5))], POOL | {"pool-method": "max"}),
    Case(
        "rounded up by default",
        "Pooling",
        [X[..., :4, :4]],
        [windows(pad(X[..., :4, :4], 0, 1, -np.inf), 3, 2).max((4, 5))],
        POOL,
    ),
    Case("rounded down", "Pooling", [X], [windows(X, 3, 2).max((4, 5))], POOL | {"rounding_type": "floor"}),
    Case(
        "every other",
        "Pooling",
        [ODD],
        [ODD[:, :, ::2, ::2]],
        {"kernel": "1,1", "strides": "2,2", "rounding_type": "floor"},
    ),
    Case(
        "mean over pads",
        "Pooling",
        [X],
        [windows(pad(X, 1), 3, 1).mean((4, 5))],
        POOL | {"strides": "1,1", "pads_begin": "1,1", "pads_end": "1,1", "pool-method": "avg", "exclude-pad": "false"},
    ),
    Case(
        "mean without pads",
        "Pooling",
        [X],
        [np.nanmean(windows(pad(X, 1, 1, np.nan), 3, 1), (4, 5))],
        POOL | {"strides": "1,1", "pads_begin": "1,1", "pads_end": "1,1", "pool-method": "avg", "exclude-pad": "true"},
    ),
    Case("plain", "ReLU", [X], [relu(X)]),
    Case("leaky", "ReLU", [X], [np.where(X > 0, X, X / 4)], {"negative_slope": "0.25"}),
    Case("plain", "Sigmoid", [X], [sigmoid(X)]),
    Case("sigmoid", "Activation", [X], [sigmoid(X)], {"type": "sigmoid"}),
    Case("tanh", "Activation", [X], [np.tanh(X)], {"type": "tanh"}),
    Case("axis", "SoftMax", [X], [softmax(X, 2)], {"axis": "2"}),
    Case("limits", "Clamp", [X], [X.clip(-0.5, 0.25)], {"min": "-0.5", "max": "0.25"}),
    Case("all of it", "Power", [X], [(2 * X + 0.5) ** 2], {"power": "2", "scale": "2", "shift": "0.5"}),
    Case("nothing", "Power", [X], [X], {"power": "1", "scale": "1.0", "shift": "0"}),
    Case("of integers", "Power", [ints(3, 4)], [np.array([3.0, 4.0])], {"power": "1", "scale": "1", "shift": "0"}),
    Case(
        "channels",
        "ScaleShift",
        [X],
        [X * CHANNELS[:, None, None] + 1],
        blobs={"weights": CHANNELS, "biases": np.ones(4, np.float32)},
    ),
    Case(
        "variance and mean",
        "BatchNormalization",
        [X],
        [(X - CHANNELS[:, None, None]) / np.sqrt(CHANNELS[:, None, None] ** 2 + 0.01)],
        {"epsilon": "0.01"},
        {"weights": CHANNELS**2, "biases": CHANNELS},
    ),
    Case("axis", "Concat", [X, X[:, :, :2]], [np.concatenate([X, X[:, :, :2]], 2)], {"axis": "2"}),
    Case("halves", "Split", [X], np.split(X, 2, 1), {"axis": "1", "num_split": "2"}),
    Case("uneven", "Slice", [X], [X[:, :1], X[:, 1:]], {"axis": "1"}),
    Case("by attribute", "Reshape", [X], [X.reshape(1, 8, 15)], {"dim": "0,8,-1"}),
    Case("by input", "Reshape", [X, ints(4, -1)], [X.reshape(4, 30)]),
    Case("order", "Permute", [X], [X.transpose(0, 2, 3, 1)], {"order": "0,2,3,1"}),
    Case("axis", "Flatten", [X], [X.reshape(1, 120)], {"axis": "1"}),
    Case("between axes", "Flatten", [X], [X.reshape(1, 24, 5)], {"axis": "1", "end_axis": "2"}),
    Case("front", "Squeeze", [X, ints(0)], [X[0]]),
    Case("front", "Unsqueeze", [X, ints(0)], [X[None]]),
    Case(
        "twice",
        "Resample",
        [X],
        [twice(X)],
        {"type": "caffe.ResampleParameter.NEAREST", "factor": "2.0", "antialias": "0"},
    ),
    Case("linear", "Resample", [WIDE], [LINEAR_UP], {"type": "caffe.ResampleParameter.LINEAR", "factor": "2"}),
    Case("declared size", "Resample", [X], [twice(X)], {"type": "caffe.ResampleParameter.NEAREST"}),
    Case("corners", "Interp", [WIDE], [CORNERS], {"height": "7", "width": "9", "pad_beg": "0", "pad_end": "0"}),
    Case("no corners", "Interp", [WIDE], [NO_CORNERS], {"factor": "2", "align_corners": "0"}),
    Case("offset and size", "Crop", [X], [X[:, :, 1:4, 2:4]], {"axis": "2,3", "offset": "1,2", "dim": "3,2"}),
    Case("both ends", "Crop", [X], [X[:, 1:3]], {"axis": "1", "crop_begin": "1", "crop_end": "1"}),
    Case("like another", "Crop", [X, X[:, :, :3, :3]], [X[:, :, 1:4, 1:4]], {"axis": "2,3", "offset": "1,1"}),
    Case("rows", "Gather", [X, ints(3, 0)], [X[:, [3, 0]]], {"axis": "1"}),
    Case("image", "Gather", [X, np.array(0, np.int32)], [X[0]], {"axis": "0"}),
    Case(
        "masks: 1 uses the bound",
        "StridedSlice",
        [X, ints(9, 1, 0, 0), ints(9, 3, 9, 0), ints(1, 1, 2, 1)],
        [X[:, 1:3, ::2, 0]],
        {"begin_mask": "0,1,1,1", "end_mask": "0,1,1,1", "shrink_axis_mask": "0,0,0,1"},
    ),
    Case("copies", "Tile", [X], [np.tile(X, (1, 1, 3, 1))], {"axis": "2", "tiles": "3"}),
    Case("to shape", "Broadcast", [X[:, :, :1], ints(2, 4, 6, 5)], [np.broadcast_to(X[:, :, :1], (2, 4, 6, 5))]),
    Case("to shape", "Expand", [X, ints(2, 4, 6, 5)], [np.broadcast_to(X, (2, 4, 6, 5))]),
    Case(
        "best",
        "TopK",
        [X, np.array(2, np.int32)],
        [np.take_along_axis(X, ORDER, 1), ORDER],
        {"axis": "1", "mode": "max", "sort": "value"},
    ),
]

PRIORS = np.array([[-8, -4, 8, 4], [-6, -6, 6, 6], [-4, -8, 4, 8]], np.float32)
GRID = prior_grid(PRIORS, 4, 5, 8)
INFO = np.array([[32, 40, 1]], np.float32)
DELTAS, SCORES = numbers(12, 4, 5, seed=11) / 4, sigmoid(numbers(3, 4, 5, seed=12))
ROIS, BEST = proposals(INFO[0], GRID, DELTAS, SCORES, 70)
RPN = {"min_size": "0.0", "nms_threshold": "0.7", "pre_nms_count": "1000", "post_nms_count": "70"}
BIG = np.array([[8, 8, 40, 40], [0, 0, 255, 255], [100, 4, 130, 50], [9, 9, 160, 140], [30, 20, 20, 30]], np.float32)
LEVELS = [numbers(1, 2, 64, 64, seed=13), numbers(1, 2, 32, 32, seed=14), numbers(1, 2, 16, 16, seed=15)]
GRID_DATA = {"flatten": "1", "h": "0", "w": "0", "stride_x": "8.0", "stride_y": "8.0"}
EXTRACTOR = {
    "distribute_rois_between_levels": "1", "image_id": "0", "output_size": "7", "preserve_rois_order": "1",
    "pyramid_scales": "4,8,16", "sampling_ratio": "2",
}  # fmt: skip
DETECTRON = "ExperimentalDetectron"
CASES += [
    Case("flat", f"{DETECTRON}PriorGridGenerator", [PRIORS, X[:, :, :4], X], [GRID], GRID_DATA),
    Case(
        "own stride",
        f"{DETECTRON}PriorGridGenerator",
        [PRIORS, X[:, :, :4], numbers(1, 3, 32, 40)],
        [GRID.reshape(4, 5, 3, 4)],
        {"flatten": "0", "h": "4", "w": "5"},
    ),
    Case("info row", f"{DETECTRON}GenerateProposalsSingleImage", [INFO[0], GRID, DELTAS, SCORES], [ROIS, BEST], RPN),
    Case("info table", f"{DETECTRON}GenerateProposalsSingleImage", [INFO, GRID, DELTAS, SCORES], [ROIS, BEST], RPN),
    Case(
        "best",
        f"{DETECTRON}TopKROIs",
        [GRID, SCORES.ravel()],
        [GRID[np.argsort(-SCORES.ravel())[:9]]],
        {"max_rois": "9"},
    ),
    Case(
        "levels",
        f"{DETECTRON}ROIFeatureExtractor",
        [BIG, *LEVELS],
        [roi_features(BIG, LEVELS, (4, 8, 16), 7)],
        EXTRACTOR,
    ),
    Case(
        "levels and rois",
        f"{DETECTRON}ROIFeatureExtractor",
        [BIG, *LEVELS],
        [roi_features(BIG, LEVELS, (4, 8, 16), 7), BIG],
        EXTRACTOR,
    ),
]


@pytest.mark.integration
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind} {case.name}")
def test_a_layer_computes_what_numpy_does(case: Case, tmp_path: Path) -> None:
    inputs = {f"in{index}": array for index, array in enumerate(case.inputs)}
    layer = Node("out", case.kind, list(inputs), [y.shape for y in case.outputs], case.attributes, case.blobs)
    xml = write(tmp_path, [*(source(name, array) for name, array in inputs.items()), layer])
    found = infer(ir_v5.load(xml), **{name: array for name, array in inputs.items() if array.dtype.kind == "f"})
    names = ["out"] if len(case.outputs) == 1 else [f"out.{index}" for index in range(len(case.outputs))]
    for name, expected in zip(names, case.outputs, strict=True):
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)


DETECTION = {
    "class_agnostic_box_regression": "0", "deltas_weights": "10.0,10.0,5.0,5.0", "max_delta_log_wh": "4.1351666",
    "max_detections_per_image": "20", "nms_threshold": "0.5", "num_classes": "3", "post_nms_count": "2000",
    "score_threshold": "0.05",
}  # fmt: skip


@pytest.mark.parametrize("outputs", [3, 4], ids=["as the engine", "with image ids, as the exporter"])
def test_detections_are_the_best_after_nms_within_each_class(outputs: int, tmp_path: Path) -> None:
    deltas, scores = numbers(70, 12, seed=16), softmax(numbers(70, 3, seed=17) * 2)
    inputs = {"rois": ROIS, "deltas": deltas, "scores": scores, "im_info": INFO}
    dims = [[20, 4], [20], [20], [20]][:outputs]
    layer = Node("out", f"{DETECTRON}DetectionOutput", list(inputs), dims, DETECTION)
    found = infer(ir_v5.load(write(tmp_path, [*(source(*item) for item in inputs.items()), layer])), **inputs)
    same_detections(found["out.0"], found["out.1"], found["out.2"], detections(ROIS, deltas, scores, 20))
    assert outputs == 3 or not found["out.3"].any()


def same_detections(boxes: Array, classes: Array, scores: Array, expected: list[tuple[int, float, Array]]) -> list[int]:
    """Rows of the outputs in the order of `expected`; the rest is padding."""
    order = [int(row) for row in np.argsort(-scores, kind="stable")]
    rows, rest = order[: len(expected)], order[len(expected) :]
    assert [int(classes[row]) for row in rows] == [label for label, _, _ in expected]
    np.testing.assert_allclose(scores[rows], [score for _, score, _ in expected], rtol=1e-3)
    np.testing.assert_allclose(boxes[rows], np.array([box for _, _, box in expected]), rtol=1e-3, atol=1e-2)
    assert not scores[rest].any()
    assert not classes[rest].any()
    return rows


def test_every_known_kind_is_tested() -> None:
    tested = {case.kind for case in CASES} | {"Input", "Const", f"{DETECTRON}DetectionOutput"}
    assert tested == set(ir_v5.KINDS)


# ---- a small Mask R-CNN ---------------------------------------------------------------------------------

MEAN = np.array([102.98, 115.95, 122.77], np.float32)
ROIS_KEPT, FOUND = 30, 10
LEVEL_PRIORS = [PRIORS * 1.5, PRIORS * 3]


def weight(name: str) -> Array:
    """Weights of about the size that training leaves; the same by name."""
    dims = {
        "stem": (8, 3, 3, 3), "c2": (8, 1, 3, 3), "c3": (16, 8, 3, 3), "lat2": (6, 8, 1, 1), "lat3": (6, 16, 1, 1),
        "rpn": (6, 6, 3, 3), "cls": (3, 6, 1, 1), "reg": (12, 6, 1, 1), "fc": (24, 294), "score": (4, 24),
        "box": (16, 24), "up": (6, 6, 2, 2), "segm": (4, 6, 1, 1), "bias": (8,),
    }[name]  # fmt: skip
    gain = 0.1 if name in ("reg", "lat2", "lat3") else 1.0
    return numbers(*dims, seed=sum(map(ord, name))) * np.float32(gain * np.sqrt(2 / max(np.prod(dims[1:]), 8)))


def mask_rcnn() -> list[Node]:
    """A ResNeXt-FPN Mask R-CNN as the Model Optimizer of 2019 would write it, in miniature: 64x64, 4 classes."""
    nodes: list[Node] = []

    def add(
        name: str, kind: str, feeds: str, *dims: Sequence[int], blobs: Mapping[str, Array] = {}, **data: str
    ) -> None:
        nodes.append(Node(name, kind, feeds.split(), dims, data, blobs))

    def convolve(name: str, feed: str, dims: Sequence[int], weights: str, stride: int = 1, group: int = 1) -> None:
        w, s = weight(weights), f"{stride},{stride}"
        k, p = f"{w.shape[2]},{w.shape[2]}", f"{w.shape[2] // 2},{w.shape[2] // 2}"
        data = {"kernel": k, "strides": s, "pads_begin": p, "pads_end": p, "output": str(len(w)), "group": str(group)}
        blobs = {"weights": w} | ({"biases": weight("bias")} if weights == "stem" else {})
        add(name, "Convolution", feed, dims, blobs=blobs, dilations="1,1", **data)

    add("im_data", "Input", "", [1, 3, 64, 64])
    add("im_info", "Input", "", [1, 3])
    add(
        "mean",
        "ScaleShift",
        "im_data",
        [1, 3, 64, 64],
        blobs={"weights": np.float32([1 / 64] * 3), "biases": -MEAN / 64},
    )
    convolve("stem", "mean", [1, 8, 32, 32], "stem", stride=2)
    add("stem_relu", "ReLU", "stem", [1, 8, 32, 32])
    add("pool", "Pooling", "stem_relu", [1, 8, 16, 16], kernel="3,3", strides="2,2", pads_begin="0,0", pads_end="0,0")
    convolve("c2", "pool", [1, 8, 16, 16], "c2", group=8)
    add("c2_sum", "Eltwise", "c2 pool", [1, 8, 16, 16], operation="sum")
    add("c2_relu", "ReLU", "c2_sum", [1, 8, 16, 16])
    convolve("c3", "c2_relu", [1, 16, 8, 8], "c3", stride=2)
    convolve("lat3", "c3", [1, 6, 8, 8], "lat3")
    convolve("lat2", "c2_relu", [1, 6, 16, 16], "lat2")
    nearest = "caffe.ResampleParameter.NEAREST"
    add("up3", "Resample", "lat3", [1, 6, 16, 16], type=nearest, factor="2.0", antialias="0")
    add("p2", "Eltwise", "up3 lat2", [1, 6, 16, 16], operation="sum")
    add("zero", "Const", "", [], blobs={"custom": np.array(0, np.int32)})
    add("info", "Gather", "im_info zero", [3], axis="0")
    for feed, side, name in (("p2", 16, "a"), ("lat3", 8, "b")):
        stride, n = 64 / side, side * side * 3
        convolve(f"rpn_{name}", feed, [1, 6, side, side], "rpn")
        add(f"rpn_relu_{name}", "ReLU", f"rpn_{name}", [1, 6, side, side])
        convolve(f"cls_{name}", f"rpn_relu_{name}", [1, 3, side, side], "cls")
        add(f"prob_{name}", "Activation", f"cls_{name}", [1, 3, side, side], type="sigmoid")
        convolve(f"reg_{name}", f"rpn_relu_{name}", [1, 12, side, side], "reg")
        add(f"prob3_{name}", "Reshape", f"prob_{name}", [3, side, side], dim=f"3,{side},{side}")
        add(f"reg3_{name}", "Gather", f"reg_{name} zero", [12, side, side], axis="0")
        add(f"priors_{name}", "Const", "", [3, 4], blobs={"custom": LEVEL_PRIORS[name == "b"]})
        data = {"flatten": "1", "h": "0", "w": "0", "stride_x": str(stride), "stride_y": str(stride)}
        add(f"grid_{name}", f"{DETECTRON}PriorGridGenerator", f"priors_{name} {feed} im_data", [n, 4], **data)
        feeds = f"info grid_{name} reg3_{name} prob3_{name}"
        add(f"rois_{name}", f"{DETECTRON}GenerateProposalsSingleImage", feeds, [70, 4], [70], **RPN)
    add("all_rois", "Concat", "rois_a rois_b", [140, 4], axis="0")
    add("all_probs", "Concat", "rois_a:1 rois_b:1", [140], axis="0")
    add("rois", f"{DETECTRON}TopKROIs", "all_rois all_probs", [ROIS_KEPT, 4], max_rois=str(ROIS_KEPT))
    extractor = EXTRACTOR | {"pyramid_scales": "4,8"}
    feats = f"{DETECTRON}ROIFeatureExtractor"
    add("feats", feats, "rois p2 lat3", [ROIS_KEPT, 6, 7, 7], [ROIS_KEPT, 4], **extractor)
    add("flat", "Reshape", "feats", [ROIS_KEPT, 294], dim=f"{ROIS_KEPT},-1")
    add("fc", "FullyConnected", "flat", [ROIS_KEPT, 24], blobs={"weights": weight("fc")}, **{"out-size": "24"})
    add("fc_relu", "ReLU", "fc", [ROIS_KEPT, 24])
    add("score", "FullyConnected", "fc_relu", [ROIS_KEPT, 4], blobs={"weights": weight("score")}, **{"out-size": "4"})
    add("probs", "SoftMax", "score", [ROIS_KEPT, 4], axis="1")
    add("box", "FullyConnected", "fc_relu", [ROIS_KEPT, 16], blobs={"weights": weight("box")}, **{"out-size": "16"})
    detection = DETECTION | {"num_classes": "4", "max_detections_per_image": str(FOUND)}
    dims = [[FOUND, 4], [FOUND], [FOUND], [FOUND]]
    add("det", f"{DETECTRON}DetectionOutput", "feats:1 box probs im_info", *dims, **detection)
    add("mask_feats", feats, "det p2 lat3", [FOUND, 6, 14, 14], **extractor | {"output_size": "14"})
    data = {"kernel": "2,2", "strides": "2,2", "pads_begin": "0,0", "pads_end": "0,0", "output": "6"}
    add("up", "Deconvolution", "mask_feats", [FOUND, 6, 28, 28], blobs={"weights": weight("up")}, **data)
    convolve("segm", "up", [FOUND, 4, 28, 28], "segm")
    add("segm_sigmoid", "Activation", "segm", [FOUND, 4, 28, 28], type="sigmoid")
    outputs = {"boxes": ("det", 0), "classes": ("det:1", 1), "scores": ("det:2", 2), "batch_ids": ("det:3", 3)}
    for name, (feed, index) in outputs.items():
        add(name, "Power", feed, dims[index], power="1", scale="1", shift="0")
    add("raw_masks", "Power", "segm_sigmoid", [FOUND, 4, 28, 28], power="1", scale="1", shift="0")
    return nodes


def expected_of(im_data: Array, im_info: Array) -> tuple[list[tuple[int, float, Array]], Array]:
    """The same network in numpy: detections, best first, and their masks."""
    x = (im_data - MEAN[:, None, None]) / 64
    x = relu(conv(x, weight("stem"), weight("bias"), 2, 1))
    x = windows(pad(x, 0, 1, -np.inf), 3, 2).max((4, 5))
    c2 = relu(conv(x, weight("c2"), None, 1, 1, 8) + x)
    p3 = conv(conv(c2, weight("c3"), None, 2, 1), weight("lat3"))
    p2 = conv(c2, weight("lat2")) + twice(p3)
    found = []
    for level, priors in zip((p2, p3), LEVEL_PRIORS, strict=True):
        hidden, side = relu(conv(level, weight("rpn"), None, 1, 1)), level.shape[2]
        scores, deltas = sigmoid(conv(hidden, weight("cls"))), conv(hidden, weight("reg"))
        found.append(proposals(im_info[0], prior_grid(priors, side, side, 64 / side), deltas[0], scores[0], 70))
    rois, probs = (np.concatenate(parts) for parts in zip(*found, strict=True))
    rois = rois[np.argsort(-probs, kind="stable")[:ROIS_KEPT]]
    hidden = relu(roi_features(rois, (p2, p3), (4, 8), 7).reshape(ROIS_KEPT, -1) @ weight("fc").T)
    best = detections(rois, hidden @ weight("box").T, softmax(hidden @ weight("score").T), FOUND)
    crops = roi_features(np.array([box for _, _, box in best]), (p2, p3), (4, 8), 14)
    return best, sigmoid(conv(deconv(crops, weight("up"), 2), weight("segm")))


IM_DATA = np.random.default_rng(18).uniform(0, 255, (1, 3, 64, 64)).astype(np.float32)
IM_INFO = np.array([[60, 64, 0.5]], np.float32)


def test_a_small_mask_rcnn_sees_what_numpy_sees(tmp_path: Path) -> None:
    model = ir_v5.load(write(tmp_path, mask_rcnn()))
    found = infer(model, im_data=IM_DATA, im_info=IM_INFO)
    best, masks = expected_of(IM_DATA, IM_INFO)
    assert len(best) == FOUND
    rows = same_detections(found["boxes"], found["classes"], found["scores"], best)
    np.testing.assert_allclose(found["raw_masks"][rows], masks, atol=1e-3)


def test_conversion_is_what_todays_openvino_reads(tmp_path: Path) -> None:
    xml, out = write(tmp_path, mask_rcnn()), tmp_path / "new" / "model.xml"
    ir_v5.convert(xml, out)
    ports = engine.signature(out)
    assert {name for port in ports.inputs for name in port.names} == {"im_data", "im_info"}
    assert {name for port in ports.outputs for name in port.names} >= {"boxes", "classes", "scores", "raw_masks"}
    before, after = (infer(model, im_data=IM_DATA, im_info=IM_INFO) for model in (ir_v5.load(xml), engine.read(out)))
    for name in ("boxes", "classes", "scores", "raw_masks"):
        np.testing.assert_array_equal(before[name], after[name])
    card = json.loads((tmp_path / "new" / "segray.json").read_text())
    assert (card["contract"], card["form"]) == ("instance-segmentation-security-0033", "converted")
    assert (
        card["converted_from"]["sha256"]["net.bin"] == hashlib.sha256(xml.with_suffix(".bin").read_bytes()).hexdigest()
    )


def test_half_precision_stays_half_on_disk_and_computes_alike(tmp_path: Path) -> None:
    (folder := tmp_path / "half").mkdir()
    whole, half = write(tmp_path, mask_rcnn()), write(folder, mask_rcnn(), half=True)
    ir_v5.convert(half, folder / "model.xml")
    assert (folder / "model.bin").stat().st_size < 0.6 * whole.with_suffix(".bin").stat().st_size
    model = engine.read(folder / "model.xml")
    assert {port.get_element_type().get_type_name() for port in model.inputs} == {"f32"}
    scores = [infer(m, im_data=IM_DATA, im_info=IM_INFO)["scores"] for m in (ir_v5.load(whole), model)]
    np.testing.assert_allclose(*map(np.sort, scores), atol=0.02)


def test_another_network_gets_no_card(tmp_path: Path) -> None:
    ir_v5.convert(write(tmp_path, [source("in", X), Node("out", "ReLU", ["in"], [X.shape])]), tmp_path / "new.xml")
    assert engine.signature(tmp_path / "new.xml").outputs[0].names == ("out",)
    assert not (tmp_path / "segray.json").exists()


@pytest.mark.parametrize("name", ["net.xml", "new.bin"])
def test_conversion_overwrites_no_source(name: str, tmp_path: Path) -> None:
    xml = write(tmp_path, mask_rcnn())
    before = xml.with_suffix(".bin").read_bytes()
    with pytest.raises(ModelError, match="cannot write the converted network here"):
        ir_v5.convert(xml, tmp_path / name)
    assert xml.with_suffix(".bin").read_bytes() == before


# ---- broken files ---------------------------------------------------------------------------------------

SMALL = [
    source("in", X),
    Node("conv", "Convolution", ["in"], [[1, 6, 6, 5]], KERNEL, {"weights": W3}),
    Node("pool", "Pooling", ["conv"], [[1, 6, 6, 5]], {"kernel": "1,1", "rounding_type": "floor"}),
    Node("out", "Eltwise", ["conv", "pool"], [[1, 6, 6, 5]], {"operation": "sum"}),
]
BOMB = '<!DOCTYPE net [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
POOL_EDGE = '<edge from-layer="1" from-port="1" to-layer="2" to-port="0"/>'
BROKEN = {
    "weights beyond the bin": ('offset="0"', 'offset="8"', r"(?s)lies beyond the end.*conv.*864 bytes from 8"),
    "negative offset": ('offset="0"', 'offset="-4"', "not a whole number"),
    "huge number": ('offset="0"', f'offset="{"9" * 400}"', "not a whole number"),
    "weights too short": ('size="864"', 'size="860"', r"(?s)'weights' should be \[6, 4, 3, 3\].*860 bytes"),
    "no weights": ("<weights", "<other", "(?s)'weights' should be.*no such blob"),
    "circle": (
        POOL_EDGE,
        POOL_EDGE.replace('from-layer="1"', 'from-layer="3"').replace('port="1"', 'port="2"'),
        "in a circle",
    ),
    "missing edge": (POOL_EDGE, "", r"(?s)input has no edge.*'pool'"),
    "doubled edge": (POOL_EDGE, POOL_EDGE * 2, "already fed"),
    "edge from nowhere": (POOL_EDGE, POOL_EDGE.replace('from-port="1"', 'from-port="7"'), "do not exist"),
    "entities": ("<net", f"{BOMB}<net", "document type"),
    "wrong dims": (
        "<dim>6</dim><dim>6</dim><dim>5</dim></port></output><blobs><weights",
        "<dim>6</dim><dim>7</dim><dim>5</dim></port></output><blobs><weights",
        r"(?s)output shape.*'conv'.*declared \[\[1, 6, 7, 5\]\], inferred \[\[1, 6, 6, 5\]\]",
    ),
    "unknown kind": ('type="Pooling"', 'type="RegionYolo"', "(?s)not known.*'RegionYolo'.*Known kinds: .*Pooling"),
    "unknown value": (
        'operation="sum"',
        'operation="xor"',
        "(?s)'operation' is not known.*'xor'.*Known values: div, max",
    ),
    "unknown precision": ('precision="FP32"', 'precision="FP8"', "precision is not known"),
    "missing attribute": ('kernel="3,3"', "", "'kernel' is missing"),
    "no numbers": ('kernel="3,3"', 'kernel="a,b"', "not a list of numbers"),
    "half a stride": ('strides="1,1"', 'strides="1.5,1"', "not a list of whole numbers"),
    "no groups": ('output="6"', 'output="6" group="0"', "(?s)cannot build.*'conv'"),
    "stride of zero": ('strides="1,1"', 'strides="0,0"', "(?s)cannot build.*'conv'"),
    "same name": ('name="pool"', 'name="conv"', "same id or name"),
    "same port": ('<port id="1">', '<port id="0">', "(?s)same id|do not exist"),
    "newer": ('version="5"', 'version="10"', "(?s)not an IR v5.*'10'"),
    "pre-processing": ("<layers>", "<pre-process/><layers>", "pre-process"),
    "cut short": ("</edges></net>", "", "cannot be parsed"),
}


@pytest.mark.parametrize(("old", "new", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_is_refused_with_the_reason(old: str, new: str, message: str, tmp_path: Path) -> None:
    xml = write(tmp_path, SMALL)
    assert ir_v5.load(xml).outputs[0].get_any_name() == "out"
    text = xml.read_text()
    assert old in text
    xml.write_text(text.replace(old, new, 1))
    with pytest.raises(ModelError, match=message):
        ir_v5.load(xml)


def test_missing_and_oversized_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    xml = write(tmp_path, SMALL)
    monkeypatch.setattr(ir_v5, "MAX_XML_BYTES", 100)
    with pytest.raises(ModelError, match="too large"):
        ir_v5.load(xml)
    xml.with_suffix(".bin").unlink()
    with pytest.raises(ModelError, match="one is missing"):
        ir_v5.load(xml)


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [
        ("ROIFeatureExtractor", EXTRACTOR | {"preserve_rois_order": "0"}),
        ("ROIFeatureExtractor", EXTRACTOR | {"image_id": "1"}),
        ("PriorGridGenerator", GRID_DATA | {"h": "3"}),
        ("DetectionOutput", DETECTION | {"class_agnostic_box_regression": "1"}),
    ],
)
def test_what_the_engine_did_not_do_is_refused(kind: str, attributes: dict[str, str], tmp_path: Path) -> None:
    inputs = {
        "ROIFeatureExtractor": [BIG, *LEVELS], "PriorGridGenerator": [PRIORS, X, X], "DetectionOutput": [ROIS] * 4
    }[kind]  # fmt: skip
    sources = [source(f"in{index}", array) for index, array in enumerate(inputs)]
    layer = Node("out", f"{DETECTRON}{kind}", [node.name for node in sources], [[1]], attributes)
    with pytest.raises(ModelError, match="not known"):
        ir_v5.load(write(tmp_path, [*sources, layer]))
