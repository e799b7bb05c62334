"""Small models with the ports of large ones, for tests that never run them."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op
from test_engine import TF_FLOAT, TF_SHAPE, TF_UINT8, _attribute, _field

from segray.models.zoo import CATALOGUE

TF_INT32 = 3
Shapes = Mapping[str, Sequence[int | None]]


def sized(shapes: Shapes, rows: int = 100) -> dict[str, list[int]]:
    """Published shapes with a number for every open dimension."""
    return {name: [rows if size is None else size for size in shape] for name, shape in shapes.items()}


def published(name: str, form: str) -> dict[str, list[int]]:
    """The outputs of a model as the catalogue has them."""
    return sized(CATALOGUE[name].outputs[form])


def ir(
    xml: Path, image: str, shape: Sequence[int], outputs: Mapping[str, Sequence[int]], dtype: Any = np.float32
) -> Path:
    """An IR whose outputs of these shapes all hold the sum of the image."""
    x = op.parameter(ov.PartialShape(list(shape)), dtype, name=image)
    x.output(0).tensor.set_names({image})
    total = op.reduce_sum(op.convert(x, np.float32), [0, 1, 2, 3])
    results = []
    for name, size in outputs.items():
        node = op.broadcast(total, np.array(size, np.int64))
        node.output(0).tensor.set_names({name})
        results.append(op.result(node))
    xml.parent.mkdir(parents=True, exist_ok=True)
    ov.save_model(ov.Model(results, [x], "m"), xml, compress_to_fp16=False)
    return xml


def yolact(xml: Path) -> Path:
    """Has the ports of YOLACT."""
    outputs = {name: [1, *shape] for name, shape in published("yolact-resnet50-fpn-pytorch", "original").items()}
    return ir(xml, "input.1", (1, 3, 550, 550), outputs)


def frozen(outputs: Mapping[str, Sequence[int]]) -> bytes:
    """A TensorFlow frozen graph: image_tensor in, the sum of its pixels in outputs of these shapes."""
    image = _field(1, "image_tensor") + _field(2, "Placeholder")
    image += _attribute("dtype", _field(6, TF_UINT8)) + _attribute("shape", _field(7, TF_SHAPE))
    cast = _field(1, "pixels") + _field(2, "Cast") + _field(3, "image_tensor")
    cast += _attribute("SrcT", _field(6, TF_UINT8)) + _attribute("DstT", _field(6, TF_FLOAT))
    axes = _constant("axes", TF_INT32, [4], b"".join(_field(7, axis) for axis in range(4)))
    total = _field(1, "total") + _field(2, "Sum") + _field(3, "pixels") + _field(3, "axes")
    total += _attribute("T", _field(6, TF_FLOAT)) + _attribute("Tidx", _field(6, TF_INT32))
    nodes = [image, cast, axes, total]
    for name, shape in outputs.items():
        nodes.append(_constant(f"zeros/{name}", TF_FLOAT, shape, _field(5, struct.pack("<f", 0))))
        added = _field(1, name) + _field(2, "AddV2") + _field(3, f"zeros/{name}") + _field(3, "total")
        nodes.append(added + _attribute("T", _field(6, TF_FLOAT)))
    return b"".join(_field(1, node) for node in nodes)


def _constant(name: str, dtype: int, shape: Sequence[int], values: bytes) -> bytes:
    sides = b"".join(_field(2, _field(1, side)) for side in shape)
    tensor = _field(1, dtype) + _field(2, sides) + values
    return (
        _field(1, name)
        + _field(2, "Const")
        + _attribute("dtype", _field(6, dtype))
        + _attribute("value", _field(8, tensor))
    )
