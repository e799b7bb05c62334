"""A small real network with the ports of SparseInst's ONNX file.

The only certain query has the first class. Its mask is the red part of the image.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as op

QUERIES = 100
SCORE = 0.875


def write(file: Path, *, size_hw: tuple[int, int] = (64, 96), classes: int = 2) -> Path:
    """Write an IR, and return its path."""
    image = op.parameter([1, 3, *size_hw], np.float32, name="input_image")
    image.output(0).tensor.set_names({"input_image"})
    red = op.slice(image, [0], [1], [1], axes=[1])
    pooled = op.avg_pool(red, [4, 4], [0, 0], [0, 0], [4, 4], True)
    # Normalised red is -2.1 to 2.2; the sigmoid makes 0 or 1 of them.
    masks = op.sigmoid(op.multiply(op.concat([pooled] * QUERIES, 1), np.float32(30)))
    masks.output(0).tensor.set_names({"masks"})
    zero = op.unsqueeze(op.multiply(op.reduce_mean(image, [1, 2, 3]), np.float32(0)), [1, 2])
    table = np.full((1, QUERIES, classes), 0.01, np.float32)
    table[0, 41, 0] = SCORE
    scores = op.add(zero, table)
    scores.output(0).tensor.set_names({"scores"})
    ov.save_model(ov.Model([op.result(scores), op.result(masks)], [image], "sparseinst"), file)
    return file
