"""A network with torchvision's four outputs that runs: it finds one object in every image, where the image is red.

The graph makes small masks of all classes, takes those of the own class, frames them and pastes them in a loop, as an
exported Mask R-CNN does. Its box covers the whole image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

SCORE = 0.875
SIDE = 28


def write(folder: Path, *, batch_axis: bool = True, columns: int = 2, paste: str = "loop", rows: int = 1) -> Path:
    """Write the IR and return its path.

    batch_axis: the image has rank 4; otherwise 3, as in an ONNX export. columns: classes with the background. paste:
    "loop" as torchvision; "resize" for other layers; "" for small masks. rows: objects that differ in score alone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = network(batch_axis=batch_axis, columns=columns, paste=paste, rows=rows)
    ov.save_model(model, folder / "maskrcnn.xml", compress_to_fp16=False)
    return folder / "maskrcnn.xml"


def network(*, batch_axis: bool = True, columns: int = 2, paste: str = "loop", rows: int = 1) -> ov.Model:
    """Return the network. Its weights are in one convolution, which makes the logits from the red channel."""
    image = op.parameter([-1] * 4 if batch_axis else [3, -1, -1], np.float32, name="image")
    image.output(0).tensor.set_names({"images"})
    batch = image if batch_axis else op.unsqueeze(image, 0)
    size_hw = op.gather(op.shape_of(batch), [2, 3], 0)
    weights = np.zeros((columns, 3, 1, 1), np.float32)
    weights[1, 0] = 40
    pooled = op.adaptive_avg_pool(batch, np.array([SIDE, SIDE], np.int64))
    convolved = op.convolution(pooled, weights, [1, 1], [0, 0], [0, 0], [1, 1])
    logits = op.broadcast(op.subtract(convolved, np.float32(20)), np.array([rows, columns, SIDE, SIDE], np.int64))
    every_class = op.reshape(op.sigmoid(logits), [rows * columns, SIDE * SIDE], False)
    own_class = op.gather(every_class, np.arange(rows) * columns + 1, 0)
    masks = op.unsqueeze(op.reshape(own_class, [rows, SIDE, SIDE], False), 1)
    if paste == "loop":
        masks = op.unsqueeze(_loop(_framed(masks), size_hw, rows), 1)
    elif paste == "resize":
        masks = _resized(masks, size_hw)
    zero = op.multiply(op.reduce_sum(pooled, [0, 1, 2, 3]), np.float32(0))
    width_height = op.convert(op.gather(size_hw, [1, 0], 0), np.float32)
    corners = op.concat([op.constant(np.zeros(2, np.float32)), width_height], 0)
    boxes = op.broadcast(op.add(corners, zero), np.array([rows, 4], np.int64))
    labels = op.convert(op.add(op.constant(np.ones(rows, np.float32)), zero), np.int64)
    scores = op.add(op.constant(np.float32(SCORE) / 2 ** np.arange(rows, dtype=np.float32)), zero)
    boxes.output(0).tensor.set_names({"boxes"})
    labels.output(0).tensor.set_names({"labels"})
    return ov.Model([op.result(node) for node in (boxes, labels, scores, masks)], [image], "Model41")


def _framed(masks: Any) -> Any:
    frame = np.array([0, 0, 1, 1], np.int64)
    return op.pad(masks, frame, frame, "constant", op.constant(np.float32(0)))


def _resized(masks: Any, size_hw: Any) -> Any:
    return op.interpolate(masks, size_hw, "linear_onnx", "sizes", axes=[2, 3])


def _loop(framed: Any, size_hw: Any, rows: int) -> Any:
    """Return the masks (n, h, w) of a loop over the framed masks."""
    one = op.parameter([1, 1, SIDE + 2, SIDE + 2], np.float32)
    sides = op.parameter([2], np.int64)
    pasted = op.result(op.squeeze(_resized(one, sides), [1]))
    go_on = op.result(op.constant(np.array(True)))
    loop = op.loop(op.constant(np.int64(rows)), op.constant(np.array(True)))
    loop.set_function(ov.Model([go_on, pasted], [one, sides], "body"))
    loop.set_special_body_ports([-1, 0])
    loop.set_sliced_input(one, framed.output(0), 0, 1, 1, -1, 0)
    loop.set_invariant_input(sides, size_hw.output(0))
    return loop.get_concatenated_slices(pasted.output(0), 0, 1, 1, -1, 0)
