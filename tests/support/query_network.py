"""A small real network with the ports of RF-DETR-Seg or of Hugging Face's models.

The only certain query has the first class, and its mask is the red part of the image.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as op

QUERIES = 5


def write(folder: Path, kind: str, *, size_hw: tuple[int, int] | None, columns: int) -> Path:
    """Write an IR and return its folder.

    kind: "rf_detr" or "hugging_face". size_hw: None for images of any size. columns: classes and background.
    """
    folder.mkdir(parents=True)
    image = op.parameter([-1, 3, *(size_hw or (-1, -1))], np.float32, name="pixel_values")
    image.output(0).tensor.set_names({"pixel_values"})
    red = op.slice(image, [0], [1], [1], axes=[1])
    pooled = op.avg_pool(red, [4, 4], [0, 0], [0, 0], [4, 4], True)
    # Normalised red is -2.1 to 2.2. The other queries have the same mask and no class.
    masks = op.multiply(op.concat([pooled] * QUERIES, 1), np.float32(30))
    zero = op.unsqueeze(op.multiply(op.reduce_mean(image, [1, 2, 3]), np.float32(0)), [1, 2])
    logits = np.full((1, QUERIES, columns), -9, np.float32)
    if kind == "hugging_face":
        logits[:, :, -1] = 9
    logits[0, 2, 0], logits[0, 2, -1] = 9, -9
    classes = op.add(zero, logits)
    if kind == "rf_detr":
        boxes = op.add(zero, np.full((1, QUERIES, 4), 0.5, np.float32))
        masks.output(0).tensor.set_names({"mask_logits"})
        results = [boxes, classes, masks]
    else:
        classes.output(0).tensor.set_names({"class_queries_logits"})
        masks.output(0).tensor.set_names({"masks_queries_logits"})
        results = [classes, masks]
    ov.save_model(ov.Model([op.result(node) for node in results], [image], kind), folder / "model.xml")
    return folder
