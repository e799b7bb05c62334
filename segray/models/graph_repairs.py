"""Layers of exported graphs that OpenVINO 2026.4.1 does not take as they are, and equal layers in their place.

Knows two such layers: slices before GatherElements, which YOLO26 has end to end as ONNX, and shapes with a number of
images, which ONNX exports for several images have. Knows nothing of names, of files or of decoding.
"""

from __future__ import annotations

import numpy as np

from segray.models.openvino import opset13, ov

_GATHER_ELEMENTS, _SLICE = "GatherElements", "Slice"


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


def release_batch(model: ov.Model, index: int, batch: int) -> None:
    """Let constant shapes that count the images take one image, where the images are outermost.

    Rows of memory keep their order in a Reshape. The first image is then the first part of the result, too, if its
    first axis can be divided by the number of images. A Transpose of the images' axis makes this untrue.

    Args:
        model: The graph; nothing is checked again.
        index: Position of the image input. Give it the new shape afterwards.
        batch: Number of images for which the graph was exported.
    """
    layers = _computed_from(model, index)
    if any(_moves_first_axis(node) for node in layers):
        return
    for node in layers:
        shape = _constant(node.input_value(1)) if node.get_type_name() == "Reshape" else None
        if shape is None or not shape.size or shape[0] <= 0 or shape[0] % batch:
            continue
        first = _first(node.input_value(0).get_partial_shape())
        if first is not None and first % batch == 0:
            _set_shape(node, [shape[0] // batch, *shape[1:]])
    for node in model.get_ordered_ops():
        shape = _constant(node.input_value(1)) if node.get_type_name() == "Broadcast" else None
        if shape is not None and shape.size and shape[0] == batch:
            _set_shape(node, [1, *shape[1:]])


def _computed_from(model: ov.Model, index: int) -> list[ov.Node]:
    """Return the layers whose values are computed from an input, in order; not those that read its shape alone."""
    computed = {model.get_parameters()[index]}
    layers = []
    for node in model.get_ordered_ops():
        sources = {value.get_node() for value in node.input_values()}
        if sources & computed and node.get_type_name() != "ShapeOf":
            computed.add(node)
            layers.append(node)
    return layers


def _moves_first_axis(node: ov.Node) -> bool:
    order = _constant(node.input_value(1)) if node.get_type_name() == "Transpose" else None
    return order is not None and order.size > 0 and order[0] != 0


def _set_shape(node: ov.Node, shape: list[int]) -> None:
    node.input(1).replace_source_output(opset13.constant(np.array(shape, np.int64)).output(0))


def _first(shape: ov.PartialShape) -> int | None:
    """Return the size of the first axis; None if unknown."""
    known = shape.rank.is_static and shape.rank.get_length() > 0 and shape[0].is_static
    return int(shape[0].get_length()) if known else None


def _constant(output: ov.Output) -> np.ndarray | None:
    node = output.get_node()
    return np.array(node.data) if node.get_type_name() == "Constant" else None
