"""Rewrites that change no result for one image, and the order of all rewrites.

Knows what TensorFlow's exporter writes around a Mask R-CNN: loops over a batch and a branch that resizes; atrous
convolutions folded into the batch; one suppression per class (nms.py); masks of blank rows. Finds these by their
structure, not by their names, and leaves unknown structures alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from segray.conversion.tensorflow import nms
from segray.conversion.tensorflow.graph import (
    OUTPUTS,
    Node,
    Output,
    computed_value,
    constant,
    dims,
    downstream,
    first_size,
    kind,
    names,
    number,
    of_kind,
    output_value,
    replace,
    row_count,
    sources,
    substituted,
    users,
)
from segray.models.openvino import opset13 as op
from segray.models.openvino import ov

ROWS_STEP = 8
"""Step of the number of rows that get masks. OpenVINO prepares its kernels again for each number of rows."""

_SHAPING = ("Reshape", "Squeeze", "Unsqueeze")
_BY_ELEMENT = ("Add", "Subtract", "Multiply", "Divide", "Relu", "Clamp", "Sigmoid", "Convert", "Minimum", "Maximum")
_BY_POSITION = ("Convolution", "GroupConvolution", "MaxPool", "AvgPool", "Interpolate")


def is_detection_graph(model: ov.Model) -> bool:
    """Return whether `model` takes one image and has the exporter's outputs."""
    return len(model.inputs) == 1 and all(any(name in names(port) for port in model.outputs) for name in OUTPUTS)


@dataclass(frozen=True)
class Rewriting:
    """The result of the rewrites. counts: rewrite -> number of times. score_threshold: score that rows must exceed."""

    counts: Mapping[str, int]
    score_threshold: float

    def __str__(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in self.counts.items() if count)


def rewrite(model: ov.Model) -> Rewriting:
    """Rewrite a detection graph in place, for one image and the outputs that decode reads."""
    for port in list(model.outputs):
        if not names(port) & set(OUTPUTS):
            model.remove_result(port.get_node())
    image = model.inputs[0]
    model.reshape({image: ov.PartialShape([1, *list(image.get_partial_shape())[1:]])})
    counts = {
        "loops inlined": inline_loops(model),
        "array accesses dropped": drop_arrays(model),
        "branches merged": merge_resizes(model),
        "atrous convolutions unfolded": unfold_atrous(model),
    }
    suppression = nms.merge(model)
    counts["suppressions merged"] = suppression.classes if suppression else 0
    counts["reshapes dropped"] = drop_reshapes(model)
    counts["mask heads cut to the rows in use"] = trim_rows(model)
    return Rewriting(counts, suppression.score_threshold if suppression else 0.0)


# ---- one image: loops that run once, arrays of one element ----------------------------------------


def inline_loops(model: ov.Model) -> int:
    """Replace each loop over a batch of one by its body; return the number of loops."""
    inlined = 0
    for loop in of_kind(model, "Loop"):
        if _runs_once(loop):
            parameters, results = loop.get_function().get_parameters(), loop.get_function().get_results()
            for source in loop.get_input_descriptions():
                replace(parameters[source.body_parameter_index].output(0), loop.input_value(source.input_index))
            for result in loop.get_output_descriptions():
                replace(loop.output(result.output_index), results[result.body_value_index].input_value(0))
            model.validate_nodes_and_infer_types()
            inlined += 1
    return inlined


def _runs_once(loop: Node) -> bool:
    """Return whether the loop runs over arrays of one element, which it reads by its counter."""
    kinds = {source.get_type_info().name for source in loop.get_input_descriptions()}
    has_known_inputs = kinds <= {"MergedInputDescription", "InvariantInputDescription"}
    gives_last_values = all(getattr(result, "iteration", None) == -1 for result in loop.get_output_descriptions())
    return has_known_inputs and gives_last_values and {first_size(array) for array in _read_by_element(loop)} == {1}


def _read_by_element(loop: Node) -> Iterator[Output]:
    """Yield the arrays of which the loop's body gathers elements."""
    parameters = loop.get_function().get_parameters()
    for source in loop.get_input_descriptions():
        value = parameters[source.body_parameter_index].output(0)
        if any(kind(user) == "Gather" and user.input_value(0) == value for user in users(value)):
            yield loop.input_value(source.input_index)


def drop_arrays(model: ov.Model) -> int:
    """Replace arrays of one element by the element itself; return the number of dropped accesses."""
    total = 0
    while dropped := sum(_drop_access(node) for node in of_kind(model, "ScatterNDUpdate", "ScatterUpdate", "Gather")):
        total += dropped
        model.validate_nodes_and_infer_types()
    return total


def _drop_access(node: Node) -> bool:
    """Replace a read or write of a one-element array by the element; return whether the node was such an access."""
    array, index_dims = node.input_value(0), dims(node.input_value(1))
    if first_size(array) != 1 or not node.output(0).get_target_inputs():
        return False
    if kind(node) == "Gather":
        on_first_axis = number(node.input_value(2)) == 0 and not node.get_attributes()["batch_dims"]
        gives_element = on_first_axis and index_dims in ((), (1,)) and constant(array) is None
        element = array if index_dims else op.squeeze(array, np.array([0])).output(0)
    else:
        element = node.input_value(2)
        on_first_axis = index_dims[-1:] == (1,) if kind(node) == "ScatterNDUpdate" else number(node.input_value(3)) == 0
        gives_element = on_first_axis and first_size(element) == 1
    if gives_element:
        replace(node.output(0), element)
    return gives_element


# ---- the resizer's branches -----------------------------------------------------------------------


def merge_resizes(model: ov.Model) -> int:
    """Replace each branch between two resizes of one image by one resize with a choice of the size.

    Returns the number of replaced branches.
    """
    merged = 0
    for branch in of_kind(model, "If"):
        bodies = [branch.get_function(index) for index in (0, 1)]
        resizes = [list(of_kind(body, "Interpolate")) for body in bodies]
        if [len(nodes) for nodes in resizes] == [1, 1] and _are_alike(resizes[0][0], resizes[1][0]):
            _merge_branch(branch, bodies, [nodes[0] for nodes in resizes])
            model.validate_nodes_and_infer_types()
            merged += 1
    return merged


def _are_alike(one: Node, other: Node) -> bool:
    axes = [constant(node.input_value(2)) for node in (one, other) if node.get_input_size() > 2]
    return one.get_attributes() == other.get_attributes() and (len(axes) != 2 or np.array_equal(*axes))


def _merge_branch(branch: Node, bodies: list[ov.Model], resizes: list[Node]) -> None:
    """Put both bodies in the branch's place, with the sizes of either and the image of one."""
    condition = branch.input_value(0)
    for index, body in enumerate(bodies):
        for source in branch.get_input_descriptions(index):
            outside = branch.input_value(source.input_index)
            replace(body.get_parameters()[source.body_parameter_index].output(0), outside)
    size = op.select(condition, resizes[0].input_value(1), resizes[1].input_value(1))
    resizes[0].input(1).replace_source_output(size.output(0))
    for results in zip(*(branch.get_output_descriptions(index) for index in (0, 1)), strict=True):
        then_value, else_value = (
            body.get_results()[result.body_value_index].input_value(0)
            for body, result in zip(bodies, results, strict=True)
        )
        is_image = len(dims(then_value)) >= 3
        value = then_value if is_image else op.select(condition, then_value, else_value).output(0)
        replace(branch.output(results[0].output_index), value)


# ---- atrous convolutions --------------------------------------------------------------------------


def unfold_atrous(model: ov.Model) -> int:
    """Replace each convolution between SpaceToBatch and BatchToSpace by a dilated convolution; return their number.

    TensorFlow exports dilated convolutions in this form.
    """
    unfolded = 0
    for folded in of_kind(model, "SpaceToBatch"):
        conv = _only_user(folded.output(0), "Convolution")
        back = _only_user(conv.output(0), "BatchToSpace") if conv and _is_plain(conv) else None
        if conv and back and (geometry := _dilation_and_padding(folded, conv, back)):
            block, begin, over = geometry
            image, kernel = folded.input_value(0), conv.input_value(1)
            replace(back.output(0), op.convolution(image, kernel, [1, 1], begin, over, block).output(0))
            unfolded += 1
    model.validate_nodes_and_infer_types()
    return unfolded


def _only_user(value: Output, user_kind: str) -> Node | None:
    """Return the only user that needs more than the shape, if the user is of this kind; None otherwise."""
    nodes = [user for user in users(value) if kind(user) != "ShapeOf"]
    return nodes[0] if len(nodes) == 1 and kind(nodes[0]) == user_kind else None


def _is_plain(conv: Node) -> bool:
    """Return whether the convolution has no stride, dilation or padding."""
    plain = {"strides": [1, 1], "dilations": [1, 1], "pads_begin": [0, 0], "pads_end": [0, 0]}
    return all(list(conv.get_attributes()[name]) == value for name, value in plain.items())


def _dilation_and_padding(folded: Node, conv: Node, back: Node) -> tuple[list[int], list[int], list[int]] | None:
    """Return dilation, and padding before and after, of height and width; None unless equal for images of any size.

    TensorFlow pads to a multiple of the block and crops the padding away, by arithmetic over the size. The function
    therefore evaluates the arithmetic for sizes of every remainder.
    """
    values = [*sources(folded)[1:], *sources(back)[1:]]
    image, folded_image = (op.parameter(ov.PartialShape([-1] * 4), np.float32) for _ in range(2))
    with substituted([(folded.input_value(0), image.output(0)), (conv.output(0), folded_image.output(0))]):
        arithmetic = ov.Model([op.result(op.convert(value, "i64")) for value in values], [image, folded_image], "sizes")
        compiled = ov.Core().compile_model(arithmetic, "CPU")
    geometries = set()
    for height, width in ((24, 24), (25, 31), (26, 29), (35, 27), (31, 34)):
        blank = np.zeros((1, 1, height, width), np.float32)
        block, begin, over, block_back, crop, crop_over = (
            tuple(map(int, array)) for array in compiled([blank, blank]).values()
        )
        if block != block_back or any(crop) or block[:2] != (1, 1):
            return None
        geometries.add((block[2:], begin[2:], tuple(a - b for a, b in zip(over, crop_over, strict=True))[2:]))
    block, begin, over = geometries.pop()
    return None if geometries else (list(block), list(begin), list(over))


# ---- masks of blank rows --------------------------------------------------------------------------


def drop_reshapes(model: ov.Model) -> int:
    """Remove changes of shape that cancel out, and replace lookups of known shapes by constants.

    Returns the number of both.
    """
    dropped = 0
    for node in of_kind(model, "ShapeOf", *_SHAPING):
        value = node.input_value(0)
        if kind(node) == "ShapeOf" and _has_static_shape(value):
            replace(node.output(0), op.constant(np.array(dims(value)), node.get_output_element_type(0)).output(0))
            dropped += 1
        elif kind(node) in _SHAPING:
            while kind(value.get_node()) in _SHAPING:
                value = value.get_node().input_value(0)
            if _has_static_shape(value) and dims(value) == dims(node.output(0)):
                replace(node.output(0), value)
                dropped += 1
    model.validate_nodes_and_infer_types()
    return dropped


def _has_static_shape(value: Output) -> bool:
    return bool(value.get_partial_shape().is_static)


def trim_rows(model: ov.Model) -> int:
    """Compute masks only for the rows that num_detections counts, in steps of ROWS_STEP; leave the other rows blank.

    The exporter's graph crops features, convolves and enlarges for all rows, but an image fills only a few rows.
    Returns 1 if the graph was changed, otherwise 0.
    """
    rows, reached = row_count(model), downstream([computed_value(model, "detection_boxes")])
    crops = [node for node in reached if kind(node) == "ROIPooling"]
    if rows is None or rows <= ROWS_STEP or len(crops) != 1 or first_size(crops[0].input_value(1)) != rows:
        return 0
    inside = set(crops)
    for node in model.get_ordered_ops():
        if node in reached and _is_computed_by_row(node, inside, rows):
            inside.add(node)
    rows_in_use = _rows_in_use(model, rows)
    for value in [value for node in inside for value in node.outputs() if set(users(value)) - inside]:
        _pad_rows(value, inside, rows_in_use)
    boxes = op.slice(crops[0].input_value(1), _int64([0]), rows_in_use, _int64([1]), _int64([0]))
    crops[0].input(1).replace_source_output(boxes.output(0))
    model.validate_nodes_and_infer_types()
    return 1


def _int64(values: list[int]) -> Node:
    return op.constant(np.array(values, np.int64))


def _rows_in_use(model: ov.Model, rows: int) -> Node:
    """Return the number of rows in use, (1,), rounded up to steps, at least one step."""
    step = _int64([ROWS_STEP])
    count = op.convert(op.reshape(output_value(model, "num_detections"), _int64([1]), False), "i64")
    rounded = op.multiply(op.divide(op.add(count, _int64([ROWS_STEP - 1])), step), step)
    return op.minimum(op.maximum(rounded, step), _int64([rows]))


def _pad_rows(value: Output, inside: set[Node], rows_in_use: Node) -> None:
    """Append the blank rows to `value` for its readers outside."""
    shape = [int(size or 0) for size in dims(value)]
    outside = [target for target in value.get_target_inputs() if target.get_node() not in inside]
    blank_rows = op.concat([op.subtract(_int64(shape[:1]), rows_in_use), _int64([0] * len(shape[1:]))], 0)
    padded = op.pad(value, _int64([0] * len(shape)), blank_rows, "constant", np.float32(0))
    all_rows = op.reshape(padded, _int64(shape), False)
    for target in outside:
        target.replace_source_output(all_rows.output(0))


def _is_computed_by_row(node: Node, inside: set[Node], rows: int) -> bool:
    """Return whether each row of the node depends only on the same row of nodes inside, and on constants."""
    values = [value for value in sources(node) if constant(value) is None]
    if not values or any(value.get_node() not in inside for value in values):
        return False
    if not _has_static_shape(node.output(0)) or first_size(node.output(0)) != rows:
        return False
    if kind(node) == "Transpose":
        return int(constant(node.input_value(1))[0]) == 0
    if kind(node) == "Concat":
        return int(node.get_attributes()["axis"]) > 0
    if kind(node) in ("Squeeze", "Unsqueeze"):
        return node.get_input_size() == 2 and bool(np.all(constant(node.input_value(1)) > 0))
    if kind(node) in _BY_ELEMENT:
        rank = len(dims(node.output(0)))
        constants = [value for value in sources(node) if constant(value) is not None]
        return all(len(dims(value)) < rank or first_size(value) == 1 for value in constants)
    return kind(node) in _BY_POSITION
