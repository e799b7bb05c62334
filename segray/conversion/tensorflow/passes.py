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
    constant,
    dims,
    downward,
    end,
    first,
    given,
    kind,
    names,
    number,
    of_kind,
    replace,
    row_count,
    sources,
    substituted,
    users,
)
from segray.models.openvino import opset13 as op
from segray.models.openvino import ov

ROWS_STEP = 8
"""Masks are computed for so many rows at a time: OpenVINO prepares its kernels anew for each number of rows."""

_SHAPING = ("Reshape", "Squeeze", "Unsqueeze")
_BY_ELEMENT = ("Add", "Subtract", "Multiply", "Divide", "Relu", "Clamp", "Sigmoid", "Convert", "Minimum", "Maximum")
_BY_PLACE = ("Convolution", "GroupConvolution", "MaxPool", "AvgPool", "Interpolate")


def is_detection_graph(model: ov.Model) -> bool:
    """Return whether `model` takes one image and has the exporter's outputs."""
    return len(model.inputs) == 1 and all(any(name in names(port) for port in model.outputs) for name in OUTPUTS)


@dataclass(frozen=True)
class Rewriting:
    """The result of the rewrites. counts: rewrite -> number of times. least_score: score that rows must exceed."""

    counts: Mapping[str, int]
    least_score: float

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
    found = nms.merge(model)
    counts["suppressions merged"] = found.classes if found else 0
    counts["reshapes dropped"] = drop_reshapes(model)
    counts["mask heads cut to the rows in use"] = trim_rows(model)
    return Rewriting(counts, found.least_score if found else 0.0)


# ---- one image: loops that run once, arrays of one element ----------------------------------------


def inline_loops(model: ov.Model) -> int:
    """Replace each loop over a batch of one by its body; return the number of loops."""
    done = 0
    for loop in of_kind(model, "Loop"):
        if _runs_once(loop):
            parameters, results = loop.get_function().get_parameters(), loop.get_function().get_results()
            for each in loop.get_input_descriptions():
                replace(parameters[each.body_parameter_index].output(0), loop.input_value(each.input_index))
            for each in loop.get_output_descriptions():
                replace(loop.output(each.output_index), results[each.body_value_index].input_value(0))
            model.validate_nodes_and_infer_types()
            done += 1
    return done


def _runs_once(loop: Node) -> bool:
    """Return whether the loop runs over arrays of one element, which it reads by its counter."""
    kinds = {each.get_type_info().name for each in loop.get_input_descriptions()}
    last = all(getattr(each, "iteration", None) == -1 for each in loop.get_output_descriptions())
    carried = kinds <= {"MergedInputDescription", "InvariantInputDescription"}
    return carried and last and {first(array) for array in _read_by_element(loop)} == {1}


def _read_by_element(loop: Node) -> Iterator[Output]:
    parameters = loop.get_function().get_parameters()
    for each in loop.get_input_descriptions():
        value = parameters[each.body_parameter_index].output(0)
        if any(kind(user) == "Gather" and user.input_value(0) == value for user in users(value)):
            yield loop.input_value(each.input_index)


def drop_arrays(model: ov.Model) -> int:
    """Replace arrays of one element by the element itself; return the number of dropped accesses."""
    done = 0
    while changed := sum(_dropped(node) for node in of_kind(model, "ScatterNDUpdate", "ScatterUpdate", "Gather")):
        done += changed
        model.validate_nodes_and_infer_types()
    return done


def _dropped(node: Node) -> bool:
    array, index = node.input_value(0), dims(node.input_value(1))
    if first(array) != 1 or not node.output(0).get_target_inputs():
        return False
    if kind(node) == "Gather":
        same = number(node.input_value(2)) == 0 and index in ((), (1,)) and not node.get_attributes()["batch_dims"]
        same = same and constant(array) is None
        element = array if index else op.squeeze(array, np.array([0])).output(0)
    else:
        element = node.input_value(2)
        along = index[-1:] == (1,) if kind(node) == "ScatterNDUpdate" else number(node.input_value(3)) == 0
        same = along and first(element) == 1
    if same:
        replace(node.output(0), element)
    return same


# ---- the resizer's branches -----------------------------------------------------------------------


def merge_resizes(model: ov.Model) -> int:
    """Replace a branch between two resizes of one image by a choice of the size and one resize; return how many."""
    done = 0
    for branch in of_kind(model, "If"):
        bodies = [branch.get_function(index) for index in (0, 1)]
        resizes = [list(of_kind(body, "Interpolate")) for body in bodies]
        if [len(each) for each in resizes] == [1, 1] and _alike(resizes[0][0], resizes[1][0]):
            _merge(branch, bodies, [each[0] for each in resizes])
            model.validate_nodes_and_infer_types()
            done += 1
    return done


def _alike(one: Node, other: Node) -> bool:
    axes = [constant(node.input_value(2)) for node in (one, other) if node.get_input_size() > 2]
    return one.get_attributes() == other.get_attributes() and (len(axes) != 2 or np.array_equal(*axes))


def _merge(branch: Node, bodies: list[ov.Model], resizes: list[Node]) -> None:
    """Put both bodies in the branch's place, with the sizes of either and the image of one."""
    chosen = branch.input_value(0)
    for index, body in enumerate(bodies):
        for each in branch.get_input_descriptions(index):
            outside = branch.input_value(each.input_index)
            replace(body.get_parameters()[each.body_parameter_index].output(0), outside)
    size = op.select(chosen, resizes[0].input_value(1), resizes[1].input_value(1))
    resizes[0].input(1).replace_source_output(size.output(0))
    for this, other in zip(*(branch.get_output_descriptions(index) for index in (0, 1)), strict=True):
        value, instead = (
            body.get_results()[each.body_value_index].input_value(0)
            for body, each in zip(bodies, (this, other), strict=True)
        )
        image = len(dims(value)) >= 3
        replace(branch.output(this.output_index), value if image else op.select(chosen, value, instead).output(0))


# ---- atrous convolutions --------------------------------------------------------------------------


def unfold_atrous(model: ov.Model) -> int:
    """Replace a convolution between SpaceToBatch and BatchToSpace by a dilated convolution; return how many.

    TensorFlow writes dilated convolutions in that way.
    """
    done = 0
    for folded in of_kind(model, "SpaceToBatch"):
        conv = _only(folded.output(0), "Convolution")
        back = _only(conv.output(0), "BatchToSpace") if conv and _plain(conv) else None
        if conv and back and (geometry := _geometry(folded, conv, back)):
            block, begin, over = geometry
            image, kernel = folded.input_value(0), conv.input_value(1)
            replace(back.output(0), op.convolution(image, kernel, [1, 1], begin, over, block).output(0))
            done += 1
    model.validate_nodes_and_infer_types()
    return done


def _only(value: Output, wanted: str) -> Node | None:
    """Return the only user that needs more than the shape, if it is of the kind `wanted`; None otherwise."""
    found = [user for user in users(value) if kind(user) != "ShapeOf"]
    return found[0] if len(found) == 1 and kind(found[0]) == wanted else None


def _plain(conv: Node) -> bool:
    wanted = {"strides": [1, 1], "dilations": [1, 1], "pads_begin": [0, 0], "pads_end": [0, 0]}
    return all(list(conv.get_attributes()[name]) == value for name, value in wanted.items())


def _geometry(folded: Node, conv: Node, back: Node) -> tuple[list[int], list[int], list[int]] | None:
    """Return dilation, and padding before and after, of height and width; None unless equal for images of any size.

    TensorFlow pads to a multiple of the block and crops the padding away, by arithmetic over the size. The function
    therefore evaluates the arithmetic for sizes of every remainder.
    """
    values = [*sources(folded)[1:], *sources(back)[1:]]
    ports = [op.parameter(ov.PartialShape([-1] * 4), np.float32) for _ in range(2)]
    with substituted(
        list(zip((folded.input_value(0), conv.output(0)), (port.output(0) for port in ports), strict=True))
    ):
        asked = ov.Model([op.result(op.convert(value, "i64")) for value in values], ports, "geometry")
        compiled = ov.Core().compile_model(asked, "CPU")
    found = set()
    for height, width in ((24, 24), (25, 31), (26, 29), (35, 27), (31, 34)):
        image = np.zeros((1, 1, height, width), np.float32)
        block, begin, over, block_back, crop, crop_over = (
            tuple(map(int, v)) for v in compiled([image, image]).values()
        )
        if block != block_back or any(crop) or block[:2] != (1, 1):
            return None
        found.add((block[2:], begin[2:], tuple(a - b for a, b in zip(over, crop_over, strict=True))[2:]))
    block, begin, over = found.pop()
    return None if found else (list(block), list(begin), list(over))


# ---- masks of rows that hold nothing --------------------------------------------------------------


def drop_reshapes(model: ov.Model) -> int:
    """Remove changes of shape that cancel out, and replace lookups of known shapes by constants; return how many."""
    done = 0
    for node in of_kind(model, "ShapeOf", *_SHAPING):
        value = node.input_value(0)
        if kind(node) == "ShapeOf" and _known(value):
            replace(node.output(0), op.constant(np.array(dims(value)), node.get_output_element_type(0)).output(0))
            done += 1
        elif kind(node) in _SHAPING:
            while kind(value.get_node()) in _SHAPING:
                value = value.get_node().input_value(0)
            if _known(value) and dims(value) == dims(node.output(0)):
                replace(node.output(0), value)
                done += 1
    model.validate_nodes_and_infer_types()
    return done


def _known(value: Output) -> bool:
    return bool(value.get_partial_shape().is_static)


def trim_rows(model: ov.Model) -> int:
    """Compute masks only for the rows that num_detections counts, in steps of ROWS_STEP; leave the other rows blank.

    The exporter's graph crops features, convolves and enlarges for all rows, but an image fills only a few rows.
    Returns 1 if the graph was changed, otherwise 0.
    """
    rows, reached = row_count(model), downward([end(model, "detection_boxes")])
    crops = [node for node in reached if kind(node) == "ROIPooling"]
    if rows is None or rows <= ROWS_STEP or len(crops) != 1 or first(crops[0].input_value(1)) != rows:
        return 0
    inside = set(crops)
    for node in model.get_ordered_ops():
        if node in reached and _by_row(node, inside, rows):
            inside.add(node)
    used = _rows_in_use(model, rows)
    for value in [value for node in inside for value in node.outputs() if set(users(value)) - inside]:
        _pad_rows(value, inside, used)
    boxes = op.slice(crops[0].input_value(1), _ints([0]), used, _ints([1]), _ints([0]))
    crops[0].input(1).replace_source_output(boxes.output(0))
    model.validate_nodes_and_infer_types()
    return 1


def _ints(values: list[int]) -> Node:
    return op.constant(np.array(values, np.int64))


def _rows_in_use(model: ov.Model, rows: int) -> Node:
    """Return the number of rows in use, (1,), rounded up to steps, at least one step."""
    step = _ints([ROWS_STEP])
    count = op.convert(op.reshape(given(model, "num_detections"), _ints([1]), False), "i64")
    whole = op.multiply(op.divide(op.add(count, _ints([ROWS_STEP - 1])), step), step)
    return op.minimum(op.maximum(whole, step), _ints([rows]))


def _pad_rows(value: Output, inside: set[Node], used: Node) -> None:
    """Append the blank rows to `value` for its readers outside."""
    shape = [int(size or 0) for size in dims(value)]
    outside = [target for target in value.get_target_inputs() if target.get_node() not in inside]
    blank = op.concat([op.subtract(_ints(shape[:1]), used), _ints([0] * len(shape[1:]))], 0)
    padded = op.pad(value, _ints([0] * len(shape)), blank, "constant", np.float32(0))
    whole = op.reshape(padded, _ints(shape), False)
    for target in outside:
        target.replace_source_output(whole.output(0))


def _by_row(node: Node, inside: set[Node], rows: int) -> bool:
    """Return whether each row of the node depends only on the same row of nodes inside, and on constants."""
    values = [value for value in sources(node) if constant(value) is None]
    if not values or any(value.get_node() not in inside for value in values):
        return False
    if not _known(node.output(0)) or first(node.output(0)) != rows:
        return False
    if kind(node) == "Transpose":
        return int(constant(node.input_value(1))[0]) == 0
    if kind(node) == "Concat":
        return int(node.get_attributes()["axis"]) > 0
    if kind(node) in ("Squeeze", "Unsqueeze"):
        return node.get_input_size() == 2 and bool(np.all(constant(node.input_value(1)) > 0))
    if kind(node) in _BY_ELEMENT:
        rank = len(dims(node.output(0)))
        return all(constant(each) is None or len(dims(each)) < rank or first(each) == 1 for each in sources(node))
    return kind(node) in _BY_PLACE
