"""The last step of TensorFlow's detection graphs: one suppression per class, merged into one for all classes.

Knows what batch_multiclass_non_max_suppression computes, and the order of steps in its releases. Finds its inputs,
constants and outputs in a converted graph. Equality is tested, not inferred: both versions run alone on difficult
boxes, and must agree row by row before the graph is changed.

The order of rows is TensorFlow's: by score, equal scores by class, and within a class in the order of suppression.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.conversion.tensorflow.graph import (
    Node,
    Output,
    computed_value,
    constant,
    dims,
    downstream,
    kind,
    number,
    of_kind,
    replace,
    row_count,
    sources,
    substituted,
    upstream,
    users,
)
from segray.models.openvino import opset13 as op
from segray.models.openvino import ov

Floats = NDArray[np.float32]
Arrays = Mapping[str, NDArray[Any]]

_RANKS = {"detection_boxes": 2, "detection_scores": 1, "detection_classes": 1, "num_detections": 0}
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Suppression:
    """The suppression that a graph computes class by class.

    boxes: (k, classes, 4), ymin, xmin, ymax, xmax. scores: (k, classes). window: (4,), boxes are clipped to it.
    ends: output name -> value that leaves the suppression: boxes (rows, 4), scores and classes (rows,), padded with
    zeros, and the number of rows in use. per_class: largest number of rows of a class. iou: threshold of suppression.
    score_threshold: rows need a higher score.
    """

    boxes: Output
    scores: Output
    window: Output
    ends: Mapping[str, Output]
    classes: int
    rows: int
    per_class: int
    iou: float
    score_threshold: float

    @property
    def inputs(self) -> tuple[Output, Output, Output]:
        """Return all values that the suppression reads."""
        return self.boxes, self.scores, self.window


@dataclass(frozen=True)
class Order:
    """The order of steps in a release. clip_first: boxes are clipped before suppression, else after.

    reframe: boxes leave relative to the window, 0..1.
    """

    clip_first: bool
    reframe: bool


def merge(model: ov.Model) -> Suppression | None:
    """Replace the suppressions of the classes by one, if they are found and the merged one gives the same rows.

    Returns the suppression, None if nothing was replaced.
    """
    suppression = find(model)
    if suppression is None:
        return None
    for order in (Order(*flags) for flags in product((True, False), repeat=2)):
        if gives_same_rows(suppression, order):
            for name, new in build(suppression, order, *suppression.inputs).items():
                replace(suppression.ends[name], new)
            model.validate_nodes_and_infer_types()
            return suppression
    return None


# ---- find the suppression -------------------------------------------------------------------------


def find(model: ov.Model) -> Suppression | None:
    """Return the suppression that makes the model's outputs; None if it is absent or unlike TensorFlow's."""
    for split in of_kind(model, "Split"):
        classes = split.get_output_size()
        if classes > 1 and dims(split.input_value(0))[1:] == (classes, 4):
            nodes = [_suppression_of(split.output(index)) for index in range(classes)]
            suppression = _describe(model, split.input_value(0), [node for node in nodes if node], classes)
            if suppression:
                return suppression
    return None


def _suppression_of(boxes: Output) -> Node | None:
    """Return the suppression node that the boxes of one class pass; None unless there is exactly one."""
    nodes = [node for node in downstream([boxes], _ends_class) if kind(node) == "NonMaxSuppression"]
    return nodes[0] if len(nodes) == 1 else None


def _ends_class(node: Node) -> bool:
    """Return whether the path of one class ends at the node: the path joins other classes, or leaves the boxes."""
    joins = kind(node) == "Concat" and int(node.get_attributes()["axis"]) == 0
    return joins or kind(node) in ("NonMaxSuppression", "ShapeOf")


def _describe(model: ov.Model, boxes: Output, nodes: list[Node], classes: int) -> Suppression | None:
    """Return the suppression of these nodes, if they differ only in the class; None otherwise."""
    rows = row_count(model)
    limits = {
        (_max_rows_of_class(node), number(node.input_value(3)), *_scores_and_threshold(node, classes)) for node in nodes
    }
    if len(nodes) != classes or len(limits) != 1 or rows is None:
        return None
    per_class, iou, scores, score_threshold = limits.pop()
    if per_class is None or iou is None or scores is None or score_threshold is None or score_threshold < 0:
        return None
    ends = {name: computed_value(model, name) for name in _RANKS}
    window = _window([boxes, scores], list(ends.values()))
    if window is None or any(len(dims(value)) != _RANKS[name] for name, value in ends.items()):
        return None
    return Suppression(boxes, scores, window, ends, classes, rows, int(per_class), iou, score_threshold)


def _max_rows_of_class(node: Node) -> float | None:
    """Return the largest number of rows of a class; None if unknown.

    The limit is a constant, or the smaller of a constant and the number of boxes.
    """
    value = node.input_value(2)
    if kind(value.get_node()) == "Minimum":
        operands = sources(value.get_node())
        return next((number(operand) for operand in operands if constant(operand) is not None), None)
    return number(value)


def _scores_and_threshold(node: Node, classes: int) -> tuple[Output | None, float | None]:
    """Return the scores of all classes, of which this suppression reads one, and the score that rows must exceed."""
    limits = [number(node.input_value(4)) if node.get_input_size() > 4 else -np.inf]
    value = node.input_value(1)
    while value.get_node().get_input_size():
        limits += [number(user.input_value(1)) for user in users(value) if kind(user) == "Greater"]
        if dims(value)[1:] == (classes,):
            return value, None if None in limits else max(limit for limit in limits if limit is not None)
        value = value.get_node().input_value(0)
    return None, None


def _window(begins: list[Output], ends: list[Output]) -> Output | None:
    """Return the only vector of four from outside that boxes and scores depend on; None unless there is exactly one."""
    inside = downstream(begins) & upstream(ends, {value.get_node() for value in begins}.__contains__)
    others = [value for node in inside for value in sources(node) if value.get_node() not in inside]
    starts = [value for value in others if constant(value) is None and value not in begins]
    windows = {node for node in upstream(starts, _is_window) if _is_window(node)}
    topmost = [node for node in windows if not (upstream(sources(node)) - {node}) & windows]
    return topmost[0].output(0) if len(topmost) == 1 else None


def _is_window(node: Node) -> bool:
    is_vector_of_four = node.get_output_size() == 1 and dims(node.output(0)) == (4,)
    return is_vector_of_four and kind(node) != "Constant" and node.get_output_element_type(0) == ov.Type.f32


# ---- build the merged suppression -----------------------------------------------------------------


def build(suppression: Suppression, order: Order, boxes: Output, scores: Output, window: Output) -> dict[str, Output]:
    """Build one suppression with the classes as its batch; return its values by output name.

    Blank rows follow the surviving rows, so that the number of rows is constant.
    """
    low, high = (op.gather(window, _int32(sides), _int32(0)) for sides in ([0, 1, 0, 1], [2, 3, 2, 3]))
    class_boxes, class_scores = op.transpose(boxes, _int32([1, 0, 2])), op.transpose(scores, _int32([1, 0]))
    if order.clip_first:
        class_boxes, class_scores = _clip(class_boxes, class_scores, low, high)
        class_boxes = _reframe(class_boxes, low, high) if order.reframe else class_boxes
    kept = op.non_max_suppression(
        class_boxes,
        op.unsqueeze(class_scores, _int32(1)),
        _int32(suppression.per_class),
        _float32(suppression.iou),
        _float32(suppression.score_threshold),
        sort_result_descending=False,
        output_type="i32",
    ).output(0)
    class_id, row = (op.gather(kept, _int32(column), _int32(1)) for column in (0, 2))
    count = op.gather(op.shape_of(class_scores, "i32"), _int32(1), _int32(0))
    index = op.add(op.multiply(class_id, count), row)
    box = op.gather(op.reshape(class_boxes, _int32([-1, 4]), False), index, _int32(0))
    score = op.gather(op.reshape(class_scores, _int32([-1]), False), index, _int32(0))
    if not order.clip_first:
        box, score = _clip(box, score, low, high)
        box = _reframe(box, low, high) if order.reframe else box
    rows = suppression.rows
    best = op.topk(_pad_rows(score, rows, -1), _int32(rows), -1, "max", "value", "i32", stable=True)
    score, best_index = best.outputs()
    in_use = op.greater_equal(score, _float32(0))
    box = op.gather(_pad_rows(box, rows, 0), best_index, _int32(0))
    class_id = op.gather(_pad_rows(op.convert(class_id, "f32"), rows, 0), best_index, _int32(0))
    new = {
        "detection_boxes": op.select(op.unsqueeze(in_use, _int32(1)), box, _float32(0)),
        "detection_scores": op.select(in_use, score, _float32(0)),
        "detection_classes": op.select(in_use, class_id, _float32(0)),
        "num_detections": op.reduce_sum(op.convert(in_use, "i32"), _int32(0)),
    }
    return {name: _as_type(node, suppression.ends[name].get_element_type()) for name, node in new.items()}


def _as_type(node: Node, element_type: ov.Type) -> Output:
    return op.convert(node, element_type.get_type_name()).output(0)


def _int32(value: Any) -> Node:
    return op.constant(np.array(value, np.int32))


def _float32(value: float) -> Node:
    return op.constant(np.array(value, np.float32))


def _clip(boxes: Node, scores: Node, low: Node, high: Node) -> tuple[Node, Node]:
    """Return boxes clipped to the window, and scores with -1 for boxes without area in the window."""
    boxes = op.maximum(op.minimum(boxes, high), low)
    y0, x0, y1, x1 = (op.gather(boxes, _int32(side), _int32(-1)) for side in range(4))
    area = op.multiply(op.subtract(y1, y0), op.subtract(x1, x0))
    return boxes, op.select(op.greater(area, _float32(0)), scores, _float32(-1))


def _reframe(boxes: Node, low: Node, high: Node) -> Node:
    return op.multiply(op.subtract(boxes, low), op.divide(_float32(1), op.subtract(high, low)))


def _pad_rows(rows: Node, count: int, value: float) -> Node:
    """Append `count` rows that hold `value`."""
    padding = [count] + [0] * (len(dims(rows.output(0))) - 1)
    return op.pad(rows, _int32([0] * len(padding)), _int32(padding), "constant", _float32(value))


# ---- compare both suppressions --------------------------------------------------------------------


def gives_same_rows(suppression: Suppression, order: Order) -> bool:
    """Return whether both suppressions give the same rows, in the same order, on difficult boxes."""
    parameters = [op.parameter(value.get_partial_shape(), np.float32) for value in suppression.inputs]
    inputs = [parameter.output(0) for parameter in parameters]
    with substituted(list(zip(suppression.inputs, inputs, strict=True))):
        before = _compile_function(suppression.ends, parameters)
    after = _compile_function(build(suppression, order, *inputs), parameters)
    return all(_agree(before(case), after(case)) for case in difficult_cases(suppression))


def _compile_function(ends: Mapping[str, Output], parameters: list[Node]) -> Callable[[list[Floats]], Arrays]:
    """Return a function from inputs to the arrays of `ends`, by name; the part between them is compiled."""
    model = ov.Model([op.result(value) for value in ends.values()], parameters, "suppression")
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda case: dict(zip(ends, map(np.array, compiled(case).values()), strict=True))


def _agree(one: Arrays, other: Arrays) -> bool:
    return all(np.allclose(one[name], other[name], rtol=_TOLERANCE, atol=_TOLERANCE) for name in _RANKS)


def difficult_cases(suppression: Suppression, seed: int = 1) -> Iterator[list[Floats]]:
    """Yield boxes, scores and a window: crowds, boxes far across the window's edges, empty boxes, equal scores.

    The scores leave more rows than fit, about as many, one and none.
    """
    random = np.random.default_rng(seed)
    max_boxes = suppression.boxes.get_partial_shape()[0].get_max_length()
    shape = (max_boxes if 0 < max_boxes < 1000 else 100, suppression.classes)
    window = np.array([0, 0, 800, 1000], np.float32)
    every, one = np.ones(shape), np.eye(*shape) * (np.arange(shape[1]) == 1)
    third = np.arange(shape[1]) % max(1, shape[1] // 3) == 0
    some = (random.random(shape) < 2 * suppression.rows / (3 * shape[0])) & third
    cases = [(every, 0.0), (every, 1 / 64), *[(some, step) for step in (0.0, 1 / 16) for _ in range(3)]]
    threshold = suppression.score_threshold
    # Each case: the boxes whose score is above the threshold, and the step to which scores are rounded, 0 for none.
    for above, step in [*cases, (one, 0.0), (0 * every, 0.0)]:
        crowds = np.sort(random.uniform(0, 1, (8, 2, 2)) * window[2:], 1).reshape(8, 4)
        overhang = random.exponential(400, (*shape, 4)) * [-1, -1, 1, 1] * (random.random((*shape, 4)) < 0.5)
        boxes = crowds[random.integers(0, 8, shape)] + overhang + random.normal(0, 8, (*shape, 4))
        boxes[random.random(shape) < 0.05, 2:] = 0
        scores = random.uniform(0, 1, shape)
        scores = np.where(above, threshold + (1 - threshold) * scores, threshold * scores)
        scores = np.round(scores / step) * step if step else scores
        yield [boxes.astype(np.float32), scores.astype(np.float32), window]
