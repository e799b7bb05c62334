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
    constant,
    dims,
    downward,
    end,
    kind,
    number,
    of_kind,
    replace,
    row_count,
    sources,
    substituted,
    upward,
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
    least_score: rows need a higher score.
    """

    boxes: Output
    scores: Output
    window: Output
    ends: Mapping[str, Output]
    classes: int
    rows: int
    per_class: int
    iou: float
    least_score: float

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
    found = find(model)
    for order in (Order(*flags) for flags in product((True, False), repeat=2)):
        if found and proven(found, order):
            for name, new in built(found, order, *found.inputs).items():
                replace(found.ends[name], new)
            model.validate_nodes_and_infer_types()
            return found
    return None


# ---- finding it -----------------------------------------------------------------------------------


def find(model: ov.Model) -> Suppression | None:
    """Return the suppression that makes the model's outputs; None if it is absent or unlike TensorFlow's."""
    for split in of_kind(model, "Split"):
        classes = split.get_output_size()
        if classes > 1 and dims(split.input_value(0))[1:] == (classes, 4):
            each = [_suppression_of(split.output(index)) for index in range(classes)]
            if found := _described(model, split.input_value(0), [node for node in each if node], classes):
                return found
    return None


def _suppression_of(boxes: Output) -> Node | None:
    """Return the suppression node that the boxes of one class pass; None unless there is exactly one."""
    found = [node for node in downward([boxes], _ends_class) if kind(node) == "NonMaxSuppression"]
    return found[0] if len(found) == 1 else None


def _ends_class(node: Node) -> bool:
    """Return whether the path of one class ends here: it joins those of other classes, or leaves the boxes."""
    joins = kind(node) == "Concat" and int(node.get_attributes()["axis"]) == 0
    return joins or kind(node) in ("NonMaxSuppression", "ShapeOf")


def _described(model: ov.Model, boxes: Output, each: list[Node], classes: int) -> Suppression | None:
    """Return the suppression of these nodes, if they differ only in the class; None otherwise."""
    rows = row_count(model)
    limits = {(_limit(node), number(node.input_value(3)), *_chosen(node, classes)) for node in each}
    if len(each) != classes or len(limits) != 1 or rows is None:
        return None
    per_class, iou, scores, least_score = limits.pop()
    if per_class is None or iou is None or scores is None or least_score is None or least_score < 0:
        return None
    ends = {name: end(model, name) for name in _RANKS}
    window = _window([boxes, scores], list(ends.values()))
    if window is None or any(len(dims(value)) != _RANKS[name] for name, value in ends.items()):
        return None
    return Suppression(boxes, scores, window, ends, classes, rows, int(per_class), iou, least_score)


def _limit(node: Node) -> float | None:
    """Return the largest number of rows of a class; None if unknown.

    The limit is a constant, or the smaller of a constant and the number of boxes.
    """
    value = node.input_value(2)
    if kind(value.get_node()) == "Minimum":
        return next((number(each) for each in sources(value.get_node()) if constant(each) is not None), None)
    return number(value)


def _chosen(node: Node, classes: int) -> tuple[Output | None, float | None]:
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
    inside = downward(begins) & upward(ends, {value.get_node() for value in begins}.__contains__)
    others = [value for node in inside for value in sources(node) if value.get_node() not in inside]
    starts = [value for value in others if constant(value) is None and value not in begins]
    found = {node for node in upward(starts, _is_window) if _is_window(node)}
    topmost = [node for node in found if not (upward(sources(node)) - {node}) & found]
    return topmost[0].output(0) if len(topmost) == 1 else None


def _is_window(node: Node) -> bool:
    one = node.get_output_size() == 1 and dims(node.output(0)) == (4,)
    return one and kind(node) != "Constant" and node.get_output_element_type(0) == ov.Type.f32


# ---- building it ----------------------------------------------------------------------------------


def built(found: Suppression, order: Order, boxes: Output, scores: Output, window: Output) -> dict[str, Output]:
    """Build one suppression with the classes as its batch; return its values by output name.

    Blank rows follow the surviving rows, so that the number of rows is constant.
    """
    low, high = (op.gather(window, _ints(sides), _ints(0)) for sides in ([0, 1, 0, 1], [2, 3, 2, 3]))
    every, score = op.transpose(boxes, _ints([1, 0, 2])), op.transpose(scores, _ints([1, 0]))
    if order.clip_first:
        every, score = _clipped(every, score, low, high)
        every = _reframed(every, low, high) if order.reframe else every
    taken = op.non_max_suppression(
        every,
        op.unsqueeze(score, _ints(1)),
        _ints(found.per_class),
        _floats(found.iou),
        _floats(found.least_score),
        sort_result_descending=False,
        output_type="i32",
    ).output(0)
    class_id, row = (op.gather(taken, _ints(column), _ints(1)) for column in (0, 2))
    count = op.gather(op.shape_of(score, "i32"), _ints(1), _ints(0))
    index = op.add(op.multiply(class_id, count), row)
    box = op.gather(op.reshape(every, _ints([-1, 4]), False), index, _ints(0))
    value = op.gather(op.reshape(score, _ints([-1]), False), index, _ints(0))
    if not order.clip_first:
        box, value = _clipped(box, value, low, high)
        box = _reframed(box, low, high) if order.reframe else box
    best = op.topk(_lengthened(value, found.rows, -1), _ints(found.rows), -1, "max", "value", "i32", stable=True)
    value, place = best.outputs()
    holds = op.greater_equal(value, _floats(0))
    box = op.gather(_lengthened(box, found.rows, 0), place, _ints(0))
    class_id = op.gather(_lengthened(op.convert(class_id, "f32"), found.rows, 0), place, _ints(0))
    new = {
        "detection_boxes": op.select(op.unsqueeze(holds, _ints(1)), box, _floats(0)),
        "detection_scores": op.select(holds, value, _floats(0)),
        "detection_classes": op.select(holds, class_id, _floats(0)),
        "num_detections": op.reduce_sum(op.convert(holds, "i32"), _ints(0)),
    }
    return {name: _as(node, found.ends[name].get_element_type()) for name, node in new.items()}


def _as(node: Node, element_type: ov.Type) -> Output:
    return op.convert(node, element_type.get_type_name()).output(0)


def _ints(value: Any) -> Node:
    return op.constant(np.array(value, np.int32))


def _floats(value: float) -> Node:
    return op.constant(np.array(value, np.float32))


def _clipped(boxes: Node, scores: Node, low: Node, high: Node) -> tuple[Node, Node]:
    """Return boxes clipped to the window, and scores with -1 for boxes without area in the window."""
    boxes = op.maximum(op.minimum(boxes, high), low)
    y0, x0, y1, x1 = (op.gather(boxes, _ints(side), _ints(-1)) for side in range(4))
    area = op.multiply(op.subtract(y1, y0), op.subtract(x1, x0))
    return boxes, op.select(op.greater(area, _floats(0)), scores, _floats(-1))


def _reframed(boxes: Node, low: Node, high: Node) -> Node:
    return op.multiply(op.subtract(boxes, low), op.divide(_floats(1), op.subtract(high, low)))


def _lengthened(rows: Node, count: int, value: float) -> Node:
    more = [count] + [0] * (len(dims(rows.output(0))) - 1)
    return op.pad(rows, _ints([0] * len(more)), _ints(more), "constant", _floats(value))


# ---- proving it -----------------------------------------------------------------------------------


def proven(found: Suppression, order: Order) -> bool:
    """Return whether both suppressions give the same rows, in the same order, on difficult boxes."""
    ports = [op.parameter(value.get_partial_shape(), np.float32) for value in found.inputs]
    inputs = [port.output(0) for port in ports]
    with substituted(list(zip(found.inputs, inputs, strict=True))):
        before = _runnable(found.ends, ports)
    after = _runnable(built(found, order, *inputs), ports)
    return all(_agree(before(case), after(case)) for case in difficult(found))


def _runnable(ends: Mapping[str, Output], ports: list[Node]) -> Callable[[list[Floats]], Arrays]:
    model = ov.Model([op.result(each) for each in ends.values()], ports, "suppression")
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda case: dict(zip(ends, map(np.array, compiled(case).values()), strict=True))


def _agree(one: Arrays, other: Arrays) -> bool:
    return all(np.allclose(one[name], other[name], rtol=_TOLERANCE, atol=_TOLERANCE) for name in _RANKS)


def difficult(found: Suppression, seed: int = 1) -> Iterator[list[Floats]]:
    """Yield boxes, scores and a window: crowds, boxes far across the window's edges, empty boxes, equal scores.

    The scores leave more rows than fit, about as many, one and none.
    """
    random = np.random.default_rng(seed)
    limit = found.boxes.get_partial_shape()[0].get_max_length()
    shape = (limit if 0 < limit < 1000 else 100, found.classes)
    window = np.array([0, 0, 800, 1000], np.float32)
    every, one = np.ones(shape), np.eye(*shape) * (np.arange(shape[1]) == 1)
    third = np.arange(shape[1]) % max(1, shape[1] // 3) == 0
    some = (random.random(shape) < 2 * found.rows / (3 * shape[0])) & third
    cases = [(every, 0.0), (every, 1 / 64), *[(some, step) for step in (0.0, 1 / 16) for _ in range(3)]]
    for above, step in [*cases, (one, 0.0), (0 * every, 0.0)]:
        places = np.sort(random.uniform(0, 1, (8, 2, 2)) * window[2:], 1).reshape(8, 4)
        across = random.exponential(400, (*shape, 4)) * [-1, -1, 1, 1] * (random.random((*shape, 4)) < 0.5)
        boxes = places[random.integers(0, 8, shape)] + across + random.normal(0, 8, (*shape, 4))
        boxes[random.random(shape) < 0.05, 2:] = 0
        scores = random.uniform(0, 1, shape)
        scores = np.where(above, found.least_score + (1 - found.least_score) * scores, found.least_score * scores)
        scores = np.round(scores / step) * step if step else scores
        yield [boxes.astype(np.float32), scores.astype(np.float32), window]
