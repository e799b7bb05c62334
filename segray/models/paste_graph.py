"""The layers by which a graph pastes small masks of boxes into the image, as torchvision's Mask R-CNN does.

Knows how these layers are found by their kinds and shapes, and how a graph is cut before them. Knows nothing of names,
of files or of decoding. torchvision pads the small masks by a pixel on each side, and a loop pastes one mask at a time.
A picture of 1280x853 with 100 objects then gets 437 MB of masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from segray.models.openvino import ov

_AFTER_LOOP = frozenset({"Unsqueeze", "Squeeze", "Reshape", "Convert", "Identity"})
# The longest known way has 9 layers.
_MAX_LAYERS = 40


@dataclass(frozen=True)
class BoxMasks:
    """The small masks of boxes in a graph, (n, 1, side, side) probabilities.

    is_pasted: the graph pastes them into the image. columns: number of the network's classes, background included;
    None if unknown.
    """

    is_pasted: bool
    side: int
    columns: int | None


def find(model: ov.Model) -> BoxMasks | None:
    """Return the small masks behind the only output of rank 4; None if the layers are others."""
    ports = [index for index, port in enumerate(model.outputs) if len(_shape(port)) == 4]
    if len(ports) != 1:
        return None
    output = model.outputs[ports[0]].get_node().input_value(0)
    source = _before_paste(output)
    is_pasted = source is not None
    small = output if source is None else source
    side = _square_side(small)
    columns = None if side is None else _columns(small, side)
    if side is None or (columns is None and not is_pasted):
        return None
    return BoxMasks(is_pasted, side, columns)


def cut(model: ov.Model, position: int) -> None:
    """Let the output at this position give the small masks; change nothing if it gives them already.

    The output keeps its position and its names.
    """
    port = model.outputs[position]
    source = _before_paste(port.get_node().input_value(0))
    if source is None:
        return
    names = port.get_tensor().get_names()
    port.get_tensor().set_names(set())
    port.get_node().input(0).replace_source_output(source)
    model.validate_nodes_and_infer_types()
    model.outputs[position].get_tensor().set_names(names)


def _before_paste(output: ov.Output) -> ov.Output | None:
    """Return the small masks that the loop before this output pastes; None if there is no such loop."""
    for value in _upwards(output):
        kind = value.get_node().get_type_name()
        if kind == "Loop":
            layers = [source.get_node() for source in value.get_node().input_values()]
            sources = [layer.input_value(0) for layer in layers if layer.get_type_name() == "Pad" and _is_frame(layer)]
            return sources[0] if len(sources) == 1 else None
        if kind not in _AFTER_LOOP:
            return None
    return None


def _is_frame(pad: ov.Node) -> bool:
    """Return whether the layer puts a frame around square masks."""
    side = _square_side(pad.input_value(0))
    framed = _shape(pad.output(0))
    return side is not None and len(framed) == 4 and all(size in (None, side + 2) for size in framed[2:])


def _columns(small: ov.Output, side: int) -> int | None:
    """Return the number of classes: the channels of the sigmoid from which the masks of the own class are taken."""
    for value in _upwards(small):
        if value.get_node().get_type_name() == "Sigmoid":
            shape = _shape(value)
            return shape[1] if len(shape) == 4 and shape[2:] == (side, side) else None
    return None


def _upwards(output: ov.Output) -> Iterator[ov.Output]:
    """Yield this output, then the first input of its layer, and so on."""
    for _ in range(_MAX_LAYERS):
        yield output
        if not output.get_node().get_input_size() or output.get_node().get_type_name() == "Loop":
            return
        output = output.get_node().input_value(0)


def _square_side(output: ov.Output) -> int | None:
    """Return the side of square masks with one channel; None for other shapes."""
    shape = _shape(output)
    is_square = len(shape) == 4 and shape[1] in (1, None) and shape[2] == shape[3]
    return shape[2] if is_square else None


def _shape(output: ov.Output) -> tuple[int | None, ...]:
    """Return the sizes of the axes, None for an axis of any size; nothing for an unknown rank."""
    partial = output.get_partial_shape()
    return () if partial.rank.is_dynamic else tuple(d.get_length() if d.is_static else None for d in partial)
