"""Layers of exported graphs that OpenVINO 2026.4.1 does not take as they are, and equal layers in their place.

Knows two such layers: slices before GatherElements, which YOLO26 has end to end as ONNX, and shapes with a number of
images, which ONNX exports for several images have. Knows nothing of names, of files or of decoding.
"""

from __future__ import annotations

import numpy as np

from segray.models.openvino import opset13, ov

_GATHER_ELEMENTS, _SLICE = "GatherElements", "Slice"
# Layers that take a shape as their second input.
_SHAPED = frozenset({"Reshape", "Broadcast"})


def gather_slices(model: ov.Model) -> None:
    """Put a Gather of constant columns in place of each constant Slice that a GatherElements reads.

    OpenVINO drops such slices when it compiles, and then refuses the shapes.
    """
    sources = {
        node.input_value(0).get_node()
        for node in model.get_ordered_ops()
        if node.get_type_name() == _GATHER_ELEMENTS and node.input_value(0).get_node().get_type_name() == _SLICE
    }
    columns = {node: _columns(node) for node in sources}
    for node, column in columns.items():
        if column is None:
            continue
        first, count, axis = column
        indices = opset13.constant(np.arange(first, first + count, dtype=np.int64))
        gathered = opset13.gather(node.input_value(0), indices, opset13.constant(np.int64(axis)))
        for consumer in node.output(0).get_target_inputs():
            consumer.replace_source_output(gathered.output(0))
    if any(columns.values()):
        model.validate_nodes_and_infer_types()


def _columns(node: ov.Node) -> tuple[int, int, int] | None:
    """Return first index, number of indices and axis of a slice of one axis, in steps of 1; None for other slices."""
    numbers = [_constant(node.input_value(index)) for index in (1, 2, 4)] if node.get_input_size() == 5 else [None]
    if any(number is None or number.size != 1 for number in numbers):
        return None
    first, stop, axis = (int(number.ravel()[0]) for number in numbers if number is not None)
    sizes = node.output(0).get_partial_shape()
    if first < 0 or sizes.rank.is_dynamic or sizes[axis].is_dynamic:
        return None
    count = int(sizes[axis].get_length())
    return (first, count, axis) if count == stop - first else None


def release_batch(model: ov.Model, batch: int) -> None:
    """Let constant shapes that begin with the number of images take one image.

    batch: number of images for which the graph was exported. Reshape the image input afterwards.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() not in _SHAPED:
            continue
        shape = _constant(node.input_value(1))
        source, target = (port.get_partial_shape() for port in (node.input_value(0), node.output(0)))
        keeps_batch = _first(target) == batch and (node.get_type_name() == "Broadcast" or _first(source) == batch)
        if shape is not None and shape.size and shape[0] == batch and keeps_batch:
            single = np.concatenate([[1], shape[1:]]).astype(shape.dtype)
            node.input(1).replace_source_output(opset13.constant(single).output(0))


def _first(shape: ov.PartialShape) -> int | None:
    """Return the size of the first axis; None if unknown."""
    known = shape.rank.is_static and shape.rank.get_length() > 0 and shape[0].is_static
    return int(shape[0].get_length()) if known else None


def _constant(output: ov.Output) -> np.ndarray | None:
    node = output.get_node()
    return np.array(node.data) if node.get_type_name() == "Constant" else None
