"""A YOLO-seg network that runs: it finds one object in every image, and its mask is where the image is red.

The network has the ports and the metadata of an export by Ultralytics. Its box covers the whole image. A network that
gets the channels in another order, other levels or another place of the image gives another mask.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openvino as ov
import yaml
from model_heads import yolo_metadata
from openvino import opset13 as op

NAMES = ("red thing", "bird")
SCORE = 0.875


def write(
    folder: Path,
    *,
    size_hw: tuple[int, int] = (64, 96),
    dynamic: bool = False,
    selected: bool = False,
    batch: int = 1,
    as_onnx: bool = False,
    names: tuple[str, ...] = NAMES,
) -> Path:
    """Write the folder that `yolo export format=openvino` writes, and return its path.

    dynamic: the file takes images of any size. selected: the graph selects the rows. batch: images at a time.
    as_onnx: the graph has the layers of an ONNX export: shapes with the batch, and slices before GatherElements.
    """
    folder.mkdir(parents=True)
    model = network(size_hw, dynamic=dynamic, selected=selected, batch=batch, classes=len(names), as_onnx=as_onnx)
    ov.save_model(model, folder / "best.xml", compress_to_fp16=False)
    metadata = yolo_metadata(
        imgsz=list(size_hw),
        batch=batch,
        names=dict(enumerate(names)),
        args={"batch": batch, "nms": selected, "dynamic": dynamic},
    )
    (folder / "metadata.yaml").write_text(yaml.safe_dump(metadata, sort_keys=False), "utf-8")
    return folder


def network(
    size_hw: tuple[int, int], *, dynamic: bool, selected: bool, batch: int, classes: int, as_onnx: bool = False
) -> ov.Model:
    """The network. Its rows are constants but for the batch axis, and its prototypes are made from the red channel."""
    sides = (-1, -1) if dynamic else size_hw
    image = op.parameter([-1 if dynamic else batch, 3, *sides], np.float32, name="x")
    image.output(0).tensor.set_names({"x"})
    red = op.slice(image, [0], [1], [1], axes=[1])
    pooled = op.avg_pool(red, [4, 4], [0, 0], [0, 0], [4, 4], True)
    only_first = np.zeros((1, 32, 1, 1), np.float32)
    only_first[0, 0] = 1
    prototypes = op.multiply(op.subtract(pooled, np.float32(0.5)), only_first)
    zero = op.multiply(op.reduce_mean(image, [1, 2, 3]), np.float32(0))
    table = _selected_rows(size_hw) if selected else _anchors(size_hw, classes)
    rows = op.add(op.unsqueeze(op.unsqueeze(zero, 1), 1), table)
    if as_onnx:
        shape = [batch, *(size.get_length() for size in list(rows.output(0).partial_shape)[1:])]
        parts = [batch * 2, shape[1] // 2, shape[2]] if shape[1] % 2 == 0 else shape
        for sides in (parts, shape):
            rows = op.reshape(rows, np.array(sides, np.int64), False)
    if as_onnx and selected:
        rows = _taken(rows, batch)
    prototypes.output(0).tensor.set_names({"input"})
    return ov.Model([op.result(rows), op.result(prototypes)], [image], "yolo")


def _taken(rows: ov.Node, batch: int) -> ov.Node:
    """The rows, taken column by column as YOLO26 does as ONNX: slices, then GatherElements with expanded indices."""
    table = op.transpose(op.transpose(rows, [0, 2, 1]), [0, 2, 1])
    places = op.topk(op.squeeze(op.slice(table, [4], [5], [1], [2]), [2]), 300, 1, "max", "value", "i64").output(1)
    parts = []
    for first, stop in ((0, 4), (4, 6), (6, 38)):
        indices = op.broadcast(op.unsqueeze(places, 2), np.array([batch, 300, stop - first], np.int64))
        parts.append(op.gather_elements(op.slice(table, [first], [stop], [1], [2]), indices, 1))
    return op.concat(parts, 2)


def _anchors(size_hw: tuple[int, int], classes: int) -> np.ndarray:
    height, width = size_hw
    count = sum((height // stride) * (width // stride) for stride in (8, 16, 32))
    table = np.zeros((1, 4 + classes + 32, count), np.float32)
    table[0, :4, :2] = np.array([[width / 2, height / 2, width, height]]).T
    table[0, 4, :2] = SCORE, SCORE / 2  # The second anchor is the same object, so it is suppressed.
    table[0, 4 + classes, :2] = 1
    return table


def _selected_rows(size_hw: tuple[int, int]) -> np.ndarray:
    table = np.zeros((1, 300, 38), np.float32)
    table[0, 0, :7] = 0, 0, size_hw[1], size_hw[0], SCORE, 0, 1
    return table


def red_rectangle(size_hw: tuple[int, int] = (48, 80)) -> np.ndarray:
    """A blue picture with a red rectangle: a fourth of the picture, in its middle."""
    height, width = size_hw
    picture = np.zeros((height, width, 3), np.uint8)
    picture[..., 2] = 255
    picture[height // 4 : 3 * height // 4, width // 4 : 3 * width // 4] = (255, 0, 0)
    return picture
