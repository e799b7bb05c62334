"""The nodes of an OpenVINO graph: their kinds, users and sources.

Knows how to read and rewire a graph, and the output names of TensorFlow's exporter. Knows no rewrite.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

from segray.models.openvino import ov

Node: TypeAlias = Any
"""A node of an OpenVINO graph."""
Output: TypeAlias = Any
"""One output of a node."""
Dims: TypeAlias = tuple[int | None, ...]
"""A shape, None for an axis of unknown size."""

OUTPUTS = ("detection_boxes", "detection_scores", "detection_classes", "detection_masks", "num_detections")
"""The exporter's outputs that decode reads: boxes (1, rows, 4), scores and classes (1, rows), masks (1, rows, m, m)."""


def kind(node: Node) -> str:
    """Return the type of the operation."""
    return str(node.get_type_name())


def of_kind(model: ov.Model, *kinds: str) -> Iterator[Node]:
    """Return the nodes of these kinds in the order of computation; the graph may change during the iteration."""
    return (node for node in model.get_ordered_ops() if kind(node) in kinds)


def names(port: Output) -> set[str]:
    """Return the tensor names of a model's output, as the exporter gave them."""
    return {name.removesuffix(":0") for name in port.get_names()}


def dims(value: Output) -> Dims:
    """Return the shape; () if the rank is unknown."""
    shape = value.get_partial_shape()
    return () if shape.rank.is_dynamic else tuple(d.get_length() if d.is_static else None for d in shape)


def first_size(value: Output) -> int | None:
    """Return the size of the first axis; None if it is dynamic or absent."""
    return next(iter(dims(value)), None)


def constant(value: Output) -> Any:
    """Return the array of a constant `value`; None for any other value."""
    node = value.get_node()
    return node.data if kind(node) == "Constant" else None


def number(value: Output) -> float | None:
    """Return the single number of a constant `value`; None for any other value."""
    array = constant(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def sources(node: Node) -> list[Output]:
    """Return the values that a node reads."""
    return [node.input_value(index) for index in range(node.get_input_size())]


def users(value: Output) -> list[Node]:
    """Return the nodes that read a value."""
    return [target.get_node() for target in value.get_target_inputs()]


def downstream(values: Collection[Output], ends: Callable[[Node], bool] = lambda node: False) -> set[Node]:
    """Return all nodes that read these values, directly or not; nodes that match `ends` are the last ones."""
    return _reachable(users, lambda node: node.outputs(), values, ends)


def upstream(values: Collection[Output], ends: Callable[[Node], bool] = lambda node: False) -> set[Node]:
    """Return all nodes from which these values are computed; nodes that match `ends` are the last ones."""
    return _reachable(lambda value: [value.get_node()], sources, values, ends)


def _reachable(
    across: Callable[[Output], list[Node]],
    along: Callable[[Node], list[Output]],
    values: Collection[Output],
    ends: Callable[[Node], bool],
) -> set[Node]:
    """Return all nodes that can be reached from the values.

    across: value -> the next nodes. along: node -> the values behind the node. ends: nodes at which the search stops.
    """
    reached: set[Node] = set()
    waiting = deque(node for value in values for node in across(value))
    while waiting:
        node = waiting.popleft()
        if node not in reached:
            reached.add(node)
            if not ends(node):
                waiting.extend(other for value in along(node) for other in across(value))
    return reached


def replace(old: Output, new: Output) -> None:
    """Make all readers of `old` read `new`."""
    for target in list(old.get_target_inputs()):
        target.replace_source_output(new)


@contextmanager
def substituted(pairs: Sequence[tuple[Output, Output]]) -> Iterator[None]:
    """Make all readers of the first value of each pair read the second value inside the `with`.

    A part of the graph can then run alone.
    """
    readers = [(list(old.get_target_inputs()), old, new) for old, new in pairs]
    try:
        for targets, _, new in readers:
            for target in targets:
                target.replace_source_output(new)
        yield
    finally:
        for targets, old, _ in readers:
            for target in targets:
                target.replace_source_output(old)


def output_value(model: ov.Model, name: str) -> Output:
    """Return the value of the model's output of this name."""
    return next(port for port in model.outputs if name in names(port)).get_node().input_value(0)


def computed_value(model: ov.Model, name: str) -> Output:
    """Return the value from which an output is made, before changes of shape and type and added constants."""
    value = output_value(model, name)
    while _only_formats(node := value.get_node()):
        value = node.input_value(0)
    return value


def _only_formats(node: Node) -> bool:
    """Return whether the node only changes shape or type, or adds a constant."""
    if kind(node) == "Concat":
        return bool(node.get_input_size() == 1)
    if kind(node) == "Add":
        return constant(node.input_value(1)) is not None
    return kind(node) in ("Unsqueeze", "Squeeze", "Reshape", "Convert")


def row_count(model: ov.Model) -> int | None:
    """Return the number of rows of the outputs; None if dynamic."""
    shapes = [dims(output_value(model, name)) for name in OUTPUTS[:4]]
    return next((shape[1] for shape in shapes if len(shape) > 1 and shape[1] is not None), None)
