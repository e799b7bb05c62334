"""The layers of an OpenVINO IR v5, and their equivalents in the current opset.

Knows attributes, blobs and operations. Knows nothing of files, edges or networks.

Attributes mean what the 2019 R1 engine made of them. An attribute that the engine never read is not read here either,
and defaults are the engine's. Sources are the layer catalogue of the 2019 R1 documentation and the engine's published
code (inference-engine/src/extension, .../shape_infer/built-in, ie_layer_validators.cpp). Some layers differ from
today's opset: strided-slice masks are inverted, and poolings round up unless told otherwise. Batch normalisation
keeps its variance in "weights" and its mean in "biases".
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from segray.errors import ModelError
from segray.models.openvino import NodeFactory, ov
from segray.models.openvino import opset14 as op

DTYPES: Mapping[str, Any] = {
    "FP32": np.float32,
    "FP16": np.float16,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
}
COPY_OR_CONVERT = "Copy the .xml and .bin again, or convert the original model again."
_TRUE, _FALSE = ("true", "1"), ("false", "0")

Dims: TypeAlias = tuple[int, ...]
Output: TypeAlias = Any
"""One output of an OpenVINO node: an ov.Output, which carries no type information."""
BuiltLayer: TypeAlias = Any
"""A layer in the graph: a node of which all outputs are the layer's, one output, or a list of outputs."""


@dataclass(frozen=True)
class IrPort:
    """An input or output of a layer: its id, unique within the layer, and its declared shape."""

    id: int
    dims: Dims


@dataclass(frozen=True)
class IrLayer:
    """A <layer> of the file.

    where: file, kind and name, for errors. precision: the precision of the blobs. inputs, outputs: sorted by port id.
    blobs: name -> bytes of the .bin.
    """

    where: str
    id: int
    name: str
    kind: str
    precision: str
    attributes: Mapping[str, str]
    inputs: tuple[IrPort, ...]
    outputs: tuple[IrPort, ...]
    blobs: Mapping[str, NDArray[np.uint8]]

    def output_name(self, index: int) -> str:
        """Return the name that the 2019 engine gave an output: the layer's name, with ".index" if there are several."""
        return self.name if len(self.outputs) == 1 else f"{self.name}.{index}"

    def text(self, key: str, default: str | None = None, allowed: Sequence[str] = ()) -> str:
        """Return the attribute's text; raise ModelError if it is missing or not allowed the known values."""
        value = self.attributes.get(key, default)
        if value is None:
            raise model_error(
                self.where, f"The attribute {key!r} is missing.", f"attributes {', '.join(self.attributes)}"
            )
        if allowed and value.lower() not in allowed:
            raise model_error(
                self.where,
                f"The value of {key!r} is not known.",
                repr(value),
                f"Known values: {comma_separated(allowed)}.",
            )
        return value.lower() if allowed else value

    def flag(self, key: str, default: bool | None = None) -> bool:
        """Return the attribute as a boolean; raise ModelError for any other value."""
        return self.text(key, None if default is None else str(default), (*_TRUE, *_FALSE)) in _TRUE

    def numbers(self, key: str, default: str | None = None) -> list[float]:
        """Return the attribute as a list of numbers; raise ModelError for any other value."""
        text = self.text(key, default)
        try:
            return [float(part) for part in text.split(",") if part.strip()]
        except ValueError as error:
            raise model_error(self.where, f"{key!r} is not a list of numbers.", repr(text)) from error

    def integers(self, key: str, default: str | None = None) -> list[int]:
        """Return the attribute as a list of whole numbers; raise ModelError for any other value."""
        values = self.numbers(key, default)
        if not all(value.is_integer() for value in values):
            raise model_error(self.where, f"{key!r} is not a list of whole numbers.", repr(self.text(key, default)))
        return [int(value) for value in values]

    def number(self, key: str, default: str | None = None) -> float:
        """Return the attribute as one number; raise ModelError for any other value."""
        return self._single(key, self.numbers(key, default))

    def integer(self, key: str, default: str | None = None) -> int:
        """Return the attribute as one whole number; raise ModelError for any other value."""
        return int(self._single(key, self.integers(key, default)))

    def _single(self, key: str, values: Sequence[float]) -> float:
        if len(values) != 1:
            raise model_error(self.where, f"{key!r} is not one number.", str(values))
        return values[0]

    def array(self, key: str, dims: Sequence[int]) -> NDArray[Any]:
        """Return the blob of this name in this shape; raise ModelError if its length differs from the shape's."""
        dtype = np.dtype(DTYPES[self.precision])
        blob, size = self.blobs.get(key), math.prod(dims) * dtype.itemsize
        if blob is None or blob.size != size:
            found = "no such blob" if blob is None else f"{blob.size} bytes"
            raise model_error(self.where, f"{key!r} should be {list(dims)} {self.precision}, {size} bytes.", found)
        array: NDArray[Any] = np.array(blob).view(dtype)
        return array.reshape(dims)

    def weights(self, key: str, dims: Sequence[int]) -> Output:
        """Return the blob as float32 in the graph; the .bin keeps the blob's own precision."""
        return _as_floats(op.constant(self.array(key, dims)).output(0))


def model_error(where: str, what: str, found: str = "", hint: str = COPY_OR_CONVERT) -> ModelError:
    """Return a ModelError with these parts."""
    return ModelError(what, where=where, found=found, hint=hint)


def comma_separated(words: Iterable[str]) -> str:
    """Return the words as one text, sorted and separated by commas."""
    return ", ".join(sorted(words))


def dims_of(x: Output) -> list[int]:
    """Return the inferred shape; -1 for an unknown size, [-1] for an unknown rank."""
    if x.get_partial_shape().rank.is_dynamic:
        return [-1]
    return [dim.get_length() if dim.is_static else -1 for dim in x.get_partial_shape()]


def _as_floats(x: Output) -> Output:
    return x if x.get_element_type() == ov.Type.f32 else op.convert(x, np.float32).output(0)


def _as_int64(x: Output) -> Output:
    return op.convert(x, np.int64).output(0)


def _constant(value: float) -> Output:
    return op.constant(np.float32(value)).output(0)


def _channel_shape(rank: int, channels: int) -> list[int]:
    return [1, channels] + [1] * (rank - 2)


# ---- one function per kind of layer --------------------------------------------------------------------


def _input(layer: IrLayer) -> BuiltLayer:
    dtype = DTYPES[layer.precision]
    return op.parameter(list(layer.outputs[0].dims), np.float32 if dtype == np.float16 else dtype, layer.name)


def _const(layer: IrLayer) -> BuiltLayer:
    constant = op.constant(layer.array("custom", layer.outputs[0].dims)).output(0)
    return _as_floats(constant) if layer.precision == "FP16" else constant


def _window_attributes(layer: IrLayer) -> dict[str, Any]:
    """Return strides, pads and automatic padding, which convolutions and poolings share."""
    ones, zeros = (",".join([digit] * len(layer.integers("kernel"))) for digit in "10")
    auto_pad = layer.text("auto_pad", "explicit", ("", "explicit", "notset", "same_upper", "same_lower", "valid"))
    return {
        "strides": layer.integers("strides", ones),
        "pads_begin": layer.integers("pads_begin", zeros),
        "pads_end": layer.integers("pads_end", layer.text("pads_begin", zeros)),
        "auto_pad": "explicit" if auto_pad in ("", "notset") else auto_pad,
    }


def _add_bias(layer: IrLayer, x: BuiltLayer, channels: int) -> BuiltLayer:
    if "biases" not in layer.blobs:
        return x
    return op.add(x, layer.weights("biases", _channel_shape(len(dims_of(x.output(0))), channels)))


def _convolution(layer: IrLayer, x: Output) -> BuiltLayer:
    group, channels = layer.integer("group", "1"), layer.integer("output")
    dims = [channels // group, dims_of(x)[1] // group, *layer.integers("kernel")]
    return _convolve(layer, x, dims, op.convolution, op.group_convolution)


def _deconvolution(layer: IrLayer, x: Output) -> BuiltLayer:
    layer.text("auto_pad", "explicit", ("", "explicit", "notset"))
    group, channels = layer.integer("group", "1"), layer.integer("output")
    dims = [dims_of(x)[1] // group, channels // group, *layer.integers("kernel")]
    return _convolve(layer, x, dims, op.convolution_backprop_data, op.group_convolution_backprop_data)


def _convolve(
    layer: IrLayer, x: Output, dims: list[int], plain: Callable[..., Any], grouped: Callable[..., Any]
) -> BuiltLayer:
    """Build a convolution. dims: shape of one group's weights; the groups follow each other in the blob."""
    group = layer.integer("group", "1")
    dilations = layer.integers("dilations", ",".join(["1"] * len(layer.integers("kernel"))))
    filters = layer.weights("weights", dims if group == 1 else [group, *dims])
    convolved = (plain if group == 1 else grouped)(x, filters, dilations=dilations, **_window_attributes(layer))
    return _add_bias(layer, convolved, layer.integer("output"))


def _fully_connected(layer: IrLayer, x: Output) -> BuiltLayer:
    channels, rows = layer.integer("out-size"), dims_of(x)[0]
    flat = op.reshape(x, np.array([rows, -1]), False).output(0)
    weights = layer.weights("weights", [channels, dims_of(flat)[1]])
    return _add_bias(layer, op.matmul(flat, weights, False, True), channels)


def _pooling(layer: IrLayer, x: Output) -> BuiltLayer:
    # When rounding up, the 2019 engine drops a last window that begins beyond the image. So does ceil_torch.
    rounding = {"ceil": "ceil_torch", "floor": "floor"}[layer.text("rounding_type", "ceil", ("ceil", "floor"))]
    window = {**_window_attributes(layer), "kernel_shape": layer.integers("kernel"), "rounding_type": rounding}
    if layer.text("pool-method", "max", ("max", "avg")) == "avg":
        return op.avg_pool(x, exclude_pad=layer.flag("exclude-pad", False), **window)
    return op.max_pool(x, dilations=[1] * len(window["kernel_shape"]), **window).output(0)


_ELTWISE: Mapping[str, Callable[[Any, Any], Any]] = {
    "sum": op.add,
    "mul": op.multiply,
    "prod": op.multiply,
    "max": op.maximum,
    "min": op.minimum,
    "sub": op.subtract,
    "div": op.divide,
    "pow": op.power,
    "squared_diff": op.squared_difference,
}


def _eltwise(layer: IrLayer, *inputs: Output) -> BuiltLayer:
    operation = layer.text("operation", "sum", tuple(_ELTWISE))
    coefficients = layer.numbers("coeff", "")
    operands = [_as_floats(x) for x in inputs]
    if any(coefficient != 1 for coefficient in coefficients):
        if operation != "sum":
            raise model_error(layer.where, "Coefficients are known only for sums.", f"{operation} of {coefficients}")
        pairs = zip(coefficients, operands, strict=True)
        operands = [op.multiply(x, _constant(coefficient)).output(0) for coefficient, x in pairs]
    return functools.reduce(_ELTWISE[operation], operands)


_ACTIVATIONS: Mapping[str, Callable[[Any], Any]] = {
    "sigmoid": op.sigmoid,
    "tanh": op.tanh,
    "relu": op.relu,
    "relu6": lambda x: op.clamp(x, 0.0, 6.0),
    "exp": op.exp,
}


def _activation(layer: IrLayer, x: Output) -> BuiltLayer:
    return _ACTIVATIONS[layer.text("type", None, tuple(_ACTIVATIONS))](_as_floats(x))


def _relu(layer: IrLayer, x: Output) -> BuiltLayer:
    slope = layer.number("negative_slope", "0")
    return op.prelu(x, _constant(slope)) if slope else op.relu(x)


def _power(layer: IrLayer, x: Output) -> BuiltLayer:
    """Build (scale x + shift) ^ power, without the parts that change nothing.

    Networks use this layer to name their outputs.
    """
    power, scale, shift = (layer.number(key) for key in ("power", "scale", "shift"))
    x = _as_floats(x)
    scaled = x if scale == 1 else op.multiply(x, _constant(scale)).output(0)
    shifted = scaled if shift == 0 else op.add(scaled, _constant(shift)).output(0)
    return shifted if power == 1 else op.power(shifted, _constant(power))


def _scale_shift(layer: IrLayer, x: Output) -> BuiltLayer:
    dims = _channel_shape(len(dims_of(x)), dims_of(x)[1])
    scaled = op.multiply(x, layer.weights("weights", dims))
    return op.add(scaled, layer.weights("biases", dims)) if "biases" in layer.blobs else scaled


def _batch_normalization(layer: IrLayer, x: Output) -> BuiltLayer:
    channels = [dims_of(x)[1]]
    mean, variance = layer.weights("biases", channels), layer.weights("weights", channels)
    one, zero = (op.constant(np.full(channels, value, np.float32)) for value in (1, 0))
    return op.batch_norm_inference(x, one, zero, mean, variance, layer.number("epsilon"))


def _split(layer: IrLayer, x: Output) -> BuiltLayer:
    """Build Split or Slice; the declared outputs give the sizes."""
    axis = layer.integer("axis", "1")
    return op.variadic_split(x, np.int64(axis), np.array([port.dims[axis] for port in layer.outputs]))


def _reshape(layer: IrLayer, x: Output, shape: Output | None = None) -> BuiltLayer:
    return op.reshape(x, np.array(layer.integers("dim")) if shape is None else _as_int64(shape), True)


def _flatten(layer: IrLayer, x: Output) -> BuiltLayer:
    dims, axis = dims_of(x), layer.integer("axis", "1")
    end = layer.integer("end_axis", "-1") % len(dims)
    return op.reshape(x, np.array([*dims[:axis], math.prod(dims[axis : end + 1]), *dims[end + 1 :]]), False)


def _crop(layer: IrLayer, x: Output, like: Output | None = None) -> BuiltLayer:
    """Build a crop by `dim`, by `crop_end`, or to the shape of a second input.

    Axes, offsets and sizes are parallel lists.
    """
    axes = layer.integers("axis")
    begin = layer.integers("crop_begin" if "crop_begin" in layer.attributes else "offset")
    if "crop_end" in layer.attributes:
        end = [dims_of(x)[axis] - cut for axis, cut in zip(axes, layer.integers("crop_end"), strict=True)]
    else:
        sizes = layer.integers("dim") if like is None else [dims_of(like)[axis] for axis in axes]
        end = [start + size for start, size in zip(begin, sizes, strict=True)]
    return op.slice(x, np.array(begin), np.array(end), np.ones(len(axes), np.int64), np.array(axes))


def _strided_slice(layer: IrLayer, x: Output, begin: Output, end: Output, strides: Output | None = None) -> BuiltLayer:
    def mask(key: str) -> list[int]:
        return [int(digit) for digit in layer.text(key, "") if digit in "01"]

    return op.strided_slice(
        x,
        _as_int64(begin),
        _as_int64(end),
        np.ones(dims_of(begin), np.int64) if strides is None else _as_int64(strides),
        begin_mask=[1 - digit for digit in mask("begin_mask")],
        end_mask=[1 - digit for digit in mask("end_mask")],
        new_axis_mask=mask("new_axis_mask"),
        shrink_axis_mask=mask("shrink_axis_mask"),
        ellipsis_mask=mask("ellipsis_mask"),
    )


def _resample(layer: IrLayer, x: Output, size: Output | None = None) -> BuiltLayer:
    """Build a resize with half-pixel sampling, by a factor rounded up or to the declared size."""
    kind = layer.text("type", None, ("caffe.resampleparameter.nearest", "caffe.resampleparameter.linear"))
    spatial = list(layer.outputs[0].dims[2:])
    if size is None and "factor" in layer.attributes:
        spatial = [math.ceil(side * layer.number("factor")) for side in dims_of(x)[2:]]
    mode, axes = kind.rpartition(".")[2], np.arange(2, len(dims_of(x)))
    antialias = layer.flag("antialias", False) and mode == "linear"
    return op.interpolate(
        x, np.array(spatial), mode, "sizes", nearest_mode="round_prefer_ceil", antialias=antialias, axes=axes
    )


def _interp(layer: IrLayer, x: Output) -> BuiltLayer:
    """Build a bilinear resize to the declared size, as the 2019 engine did whatever the attributes said."""
    if layer.integer("pad_beg", "0") or layer.integer("pad_end", "0"):
        raise model_error(layer.where, "Interp with padding is not known.", str(dict(layer.attributes)))
    corners = "align_corners" if layer.flag("align_corners", True) else "asymmetric"
    size, axes = np.array(layer.outputs[0].dims[2:]), np.array([2, 3])
    return op.interpolate(x, size, "linear_onnx", "sizes", coordinate_transformation_mode=corners, axes=axes)


def _tile(layer: IrLayer, x: Output) -> BuiltLayer:
    repeats = np.ones(len(dims_of(x)), np.int64)
    repeats[layer.integer("axis")] = layer.integer("tiles")
    return op.tile(x, repeats)


def _topk(layer: IrLayer, x: Output, k: Output) -> BuiltLayer:
    mode, sort = layer.text("mode", None, ("max", "min")), layer.text("sort", None, ("value", "index", "none"))
    return op.topk(x, op.reshape(_as_int64(k), np.empty(0, np.int64), False), layer.integer("axis"), mode, sort)


# ---- Mask R-CNN heads: the same layers exist in opset 6 --------------------------------------------------


def _detectron_node(layer: IrLayer, inputs: Sequence[Output], **attributes: object) -> BuiltLayer:
    return NodeFactory("opset6").create(layer.kind, list(inputs), attributes)


def _image_info(im_info: Output, dims: list[int]) -> Output:
    """Return [height, width, scale] in this shape.

    The 2019 engine read three floats; today's operations need an exact rank.
    """
    return im_info if dims_of(im_info) == dims else op.reshape(im_info, np.array(dims), False).output(0)


def _prior_grid(layer: IrLayer, priors: Output, features: Output, im_data: Output) -> BuiltLayer:
    """Shift priors (p, 4) to each cell of features (1, c, h, w): (h w p, 4), or (h, w, p, 4)."""
    grid_hw = layer.integer("h", "0"), layer.integer("w", "0")
    if any(side not in (0, actual) for side, actual in zip(grid_hw, dims_of(features)[2:], strict=True)):
        found = f"grid {grid_hw}, features {dims_of(features)}"
        raise model_error(layer.where, "A grid of another size than the features is not known.", found)
    strides = {key: layer.number(key, "0") for key in ("stride_x", "stride_y")}
    return _detectron_node(layer, (priors, features, im_data), flatten=layer.flag("flatten", True), h=0, w=0, **strides)


def _proposals(layer: IrLayer, im_info: Output, anchors: Output, deltas: Output, scores: Output) -> BuiltLayer:
    """Build proposals from im_info, anchors (h w a, 4), deltas (4 a, h, w) and scores (a, h, w).

    The outputs are rois (n, 4) and their scores (n,).
    """
    counts = {key: layer.integer(key) for key in ("pre_nms_count", "post_nms_count")}
    limits = {key: layer.number(key) for key in ("min_size", "nms_threshold")}
    return _detectron_node(layer, (_image_info(im_info, [3]), anchors, deltas, scores), **counts, **limits)


def _top_rois(layer: IrLayer, rois: Output, scores: Output) -> BuiltLayer:
    """Keep the best max_rois of rois (n, 4) by scores (n,): (m, 4)."""
    return _detectron_node(layer, (rois, scores), max_rois=layer.integer("max_rois"))


def _roi_features(layer: IrLayer, rois: Output, *features: Output) -> BuiltLayer:
    """Build features (n, c, side, side) of rois (n, 4) from feature maps, and the rois.

    The rois are spread over the levels and keep their order, as in the engine.
    """
    layer.text("distribute_rois_between_levels", "1", _TRUE)
    layer.text("preserve_rois_order", "1", _TRUE)
    layer.text("image_id", "0", ("0",))
    sizes = {key: layer.integer(key) for key in ("output_size", "sampling_ratio")}
    scales = layer.integers("pyramid_scales")
    return _detectron_node(layer, (rois, *features), pyramid_scales=scales, aligned=False, **sizes)


def _detection_output(layer: IrLayer, rois: Output, deltas: Output, scores: Output, im_info: Output) -> BuiltLayer:
    """Build detections from rois (n, 4), deltas (n, 4 c), scores (n, c) and im_info.

    The outputs are boxes (m, 4), classes (m,), scores (m,) and images (m,). Only some writers declare the fourth
    output, the image's index; it is zero, because the batch is 1.
    """
    layer.text("class_agnostic_box_regression", "0", _FALSE)
    counts = {key: layer.integer(key) for key in ("num_classes", "post_nms_count", "max_detections_per_image")}
    limits = {key: layer.number(key) for key in ("score_threshold", "nms_threshold", "max_delta_log_wh")}
    detections = _detectron_node(
        layer,
        (rois, deltas, scores, _image_info(im_info, [1, 3])),
        class_agnostic_box_regression=False,
        deltas_weights=layer.numbers("deltas_weights"),
        **counts,
        **limits,
    )
    image = op.broadcast(np.int32(0), np.array([counts["max_detections_per_image"]]))
    return [*detections.outputs(), image.output(0)]


KINDS: Mapping[str, Callable[..., BuiltLayer]] = {
    "Activation": _activation,
    "BatchNormalization": _batch_normalization,
    "Broadcast": lambda layer, x, shape: op.broadcast(x, _as_int64(shape)),
    "Clamp": lambda layer, x: op.clamp(x, layer.number("min"), layer.number("max")),
    "Concat": lambda layer, *inputs: op.concat(list(inputs), layer.integer("axis", "1")),
    "Const": _const,
    "Convolution": _convolution,
    "Crop": _crop,
    "Deconvolution": _deconvolution,
    "Eltwise": _eltwise,
    "Expand": lambda layer, x, shape: op.broadcast(x, _as_int64(shape)),
    "ExperimentalDetectronDetectionOutput": _detection_output,
    "ExperimentalDetectronGenerateProposalsSingleImage": _proposals,
    "ExperimentalDetectronPriorGridGenerator": _prior_grid,
    "ExperimentalDetectronROIFeatureExtractor": _roi_features,
    "ExperimentalDetectronTopKROIs": _top_rois,
    "Flatten": _flatten,
    "FullyConnected": _fully_connected,
    "Gather": lambda layer, x, indices: op.gather(x, _as_int64(indices), np.int64(layer.integer("axis", "0"))),
    "Input": _input,
    "Interp": _interp,
    "Permute": lambda layer, x: op.transpose(x, np.array(layer.integers("order"))),
    "Pooling": _pooling,
    "Power": _power,
    "ReLU": _relu,
    "Resample": _resample,
    "Reshape": _reshape,
    "ScaleShift": _scale_shift,
    "Sigmoid": lambda layer, x: op.sigmoid(x),
    "Slice": _split,
    "SoftMax": lambda layer, x: op.softmax(x, layer.integer("axis", "1")),
    "Split": _split,
    "Squeeze": lambda layer, x, axes: op.squeeze(x, _as_int64(axes)),
    "StridedSlice": _strided_slice,
    "Tile": _tile,
    "TopK": _topk,
    "Unsqueeze": lambda layer, x, axes: op.unsqueeze(x, _as_int64(axes)),
}
