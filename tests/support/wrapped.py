"""The embedded sticker network in the clothes of every other contract: same picture in, same things found.

OpenVINO's opset around the network's YOLACT form: the resizing, suppression, mask heads, names, layouts, colour
orders and fillers with which the real models come. What the network sees and finds stays the same, so contracts that
read their own form rightly report the same instances. Shapes and names are those of the real graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
from openvino import opset13 as op

from segray.models import resolve
from segray.models.adapters.adapter import Paste
from segray.models.coco_labels import COCO_IDS_80

Node = Any

ROWS = 100
SIDE = 550
PROTO = 138
MIN_SCORE, MAX_IOU = 0.05, 0.5
PADDED_HW = (800, 1365)
WINDOW_HW = (480, 640)
MEAN, SCALE = (123.675, 116.78, 103.94), (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Wrapped:
    """A model in one form. name: on the model card. form: of its contract. mask_side: of its heatmaps; 0 if none.

    make: the graph.
    """

    name: str
    form: str
    mask_side: int
    make: Callable[[], ov.Model]

    def save(self, folder: Path) -> Path:
        """The graph as an IR in `folder`."""
        xml = folder / "model.xml"
        ov.save_model(self.make(), xml, compress_to_fp16=False)
        return xml


# ---- the network ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Things:
    """What the graph found. columns, scores (n,): the class's column in conf, 1..80. boxes_xyxy (n, 4): over the
    picture's size. coefficients (n, 32), prototypes (138, 138, 32): what their masks are made of.
    """

    columns: Node
    scores: Node
    boxes_xyxy: Node
    coefficients: Node
    prototypes: Node


def raw_outputs(picture_bgr: Node) -> dict[str, Node]:
    """The network on (1, 3, 550, 550) float32 BGR, 0..255 -> conf, boxes, mask, proto."""
    model = ov.Core().read_model(resolve.EMBEDDED)
    for reader in model.inputs[0].get_target_inputs():
        reader.replace_source_output(picture_bgr.output(0))
    return {port.any_name: port.get_node().input_value(0) for port in model.outputs}


def find(picture_bgr: Node, *, order: str = "score") -> Things:
    """The network and greedy suppression within each class, at most 100 things. order: "score" or "classid"."""
    raw = raw_outputs(picture_bgr)
    scores = op.transpose(raw["conf"], [0, 2, 1])
    picked = op.multiclass_nms(
        raw["boxes"], scores, sort_result_type=order, output_type="i32", iou_threshold=MAX_IOU,
        score_threshold=MIN_SCORE, nms_top_k=-1, keep_top_k=ROWS, background_class=0,
    )  # fmt: skip
    rows = op.squeeze(picked.output(1), [1])
    return Things(
        columns=column(picked.output(0), 0),
        scores=column(picked.output(0), 1),
        boxes_xyxy=columns(picked.output(0), range(2, 6)),
        coefficients=op.gather(op.squeeze(raw["mask"], [0]), rows, 0),
        prototypes=op.squeeze(raw["proto"], [0]),
    )


def category_ids(things: Things) -> Node:
    """(n,) float32 COCO category ids."""
    table = np.array([0, *COCO_IDS_80], np.float32)
    return op.gather(table, op.convert(things.columns, "i32"), 0)


def heatmaps(things: Things, boxes_xyxy: Node, side: int) -> Node:
    """Probabilities (n, side, side) at the centres of the cells that tile the boxes (n, 4), over the picture's size."""
    flat = op.reshape(things.prototypes, [PROTO * PROTO, 32], False)
    logits = op.matmul(things.coefficients, flat, False, True)
    masks = op.sigmoid(op.reshape(logits, [-1, 1, PROTO, PROTO], False))
    rois = op.multiply(boxes_xyxy, f32(PROTO))
    # "half_pixel" moves the corners as well, and so, at a scale of 1, nothing.
    maps = op.roi_align(masks, rois, count_up(things.scores), side, side, 2, 1.0, "avg", "half_pixel_for_nn")
    return op.squeeze(maps, [1])


def framed(boxes_xyxy: Node, side: int, size_hw: Node) -> Node:
    """The boxes that a heatmap tiles whose outermost cells have their centres on the edges of boxes_xyxy.

    As TensorFlow crops masks for training: 0..1 there goes from the middle of the first pixel to that of the last.
    """
    pixels = xyxy(size_hw)
    boxes = op.divide(op.add(op.multiply(boxes_xyxy, op.subtract(pixels, f32(1))), f32(0.5)), pixels)
    low, high = columns(boxes, [0, 1]), columns(boxes, [2, 3])
    centre = op.multiply(op.add(low, high), f32(0.5))
    half = op.multiply(op.subtract(high, low), f32(0.5 * side / (side - 1)))
    return op.concat([op.subtract(centre, half), op.add(centre, half)], 1)


def per_class(maps: Node, channel: Node, channels: int) -> Node:
    """Heatmaps (n, side, side) -> (n, channels, side, side): in each row's own channel; the inverse in all others."""
    own = op.equal(op.unsqueeze(channel, 1), np.arange(channels, dtype=np.int32)[None])
    maps = op.unsqueeze(maps, 1)
    return op.select(op.unsqueeze(op.unsqueeze(own, 2), 3), maps, op.subtract(f32(1), maps))


# ---- arithmetic -----------------------------------------------------------------------------------


def f32(*values: float) -> Node:
    return op.constant(np.array(values, np.float32))


def columns(rows: Node, which: Sequence[int]) -> Node:
    return op.gather(rows, np.array(which, np.int64), 1)


def column(rows: Node, which: int) -> Node:
    return op.gather(rows, np.int64(which), 1)


def count(rows: Node) -> Node:
    """() int32: how many rows there are."""
    return op.gather(op.shape_of(rows, "i32"), np.int64(0), 0)


def count_up(rows: Node) -> Node:
    """0, 1, 2 ... as many as there are rows, int32."""
    return op.range(op.constant(np.int32(0)), count(rows), op.constant(np.int32(1)), "i32")


def filled_up(rows: Node, filler: np.ndarray[Any, Any]) -> Node:
    """`rows`, then as many of `filler` (100, ...) as make 100."""
    shape = [ROWS, *filler.shape[1:]]
    return op.reshape(op.slice(op.concat([rows, filler], 0), [0], [ROWS], [1], [0]), shape, False)


def all_filled_up(things: Things) -> Things:
    """100 rows: boxes, scores and classes of 0 after the last, with masks that are not."""
    return Things(
        filled_up(things.columns, np.zeros(ROWS, np.float32)),
        filled_up(things.scores, np.zeros(ROWS, np.float32)),
        filled_up(things.boxes_xyxy, np.zeros((ROWS, 4), np.float32)),
        filled_up(things.coefficients, np.full((ROWS, 32), 0.5, np.float32)),
        things.prototypes,
    )


# ---- pictures -------------------------------------------------------------------------------------


def squared(image: Node) -> Node:
    """(1, 3, h, w) float32 -> (1, 3, 550, 550), as Pillow's bilinear resizes.

    Interpolate's bilinear_pillow gives the same, but takes seconds to prepare for each new size.
    """
    rows, columns = (triangles(op.gather(op.shape_of(image, "i32"), np.int64(axis), 0)) for axis in (2, 3))
    return op.matmul(op.matmul(rows, image, False, False), columns, False, True)


def triangles(length: Node) -> Node:
    """(550, length): what each of 550 pixels takes of `length`: triangles two of the wider pixels wide."""
    pixels = op.convert(length, "f32")
    step = op.divide(pixels, f32(SIDE))
    centres = op.multiply(np.arange(0.5, SIDE, dtype=np.float32)[:, None], step)
    at = op.range(op.constant(np.float32(0.5)), pixels, op.constant(np.float32(1)), "f32")
    distance = op.divide(op.abs(op.subtract(centres, at)), op.maximum(step, f32(1)))
    weights = op.relu(op.subtract(f32(1), distance))
    return op.divide(weights, op.reduce_sum(weights, 1, keep_dims=True))


def cropped(image: Node, size_hw: Node) -> Node:
    """The top left size_hw (2,) int32 of (1, 3, h, w)."""
    return op.slice(image, [0, 0], size_hw, [1, 1], [2, 3])


def content_hw(image: Node, window_hw: tuple[int, int]) -> Node:
    """(2,) int32: height and width up to the last row and column of (1, 3, *window_hw) that are not black all along."""
    sides = []
    for length, others in zip(window_hw, ([0, 1, 3], [0, 1, 2]), strict=True):
        seen = op.greater(op.reduce_max(image, others), f32(0))
        last = op.multiply(op.convert(seen, "i32"), np.arange(1, length + 1, dtype=np.int32))
        sides.append(op.unsqueeze(op.reduce_max(last, 0), 0))
    return op.concat(sides, 0)


def reversed_channels(image: Node) -> Node:
    return op.gather(image, np.array([2, 1, 0]), 1)


def nchw(image: Node) -> Node:
    return op.transpose(op.convert(image, "f32"), [0, 3, 1, 2])


def xyxy(size_hw: Node) -> Node:
    """(2,) height, width -> (1, 4) float32 width, height, width, height."""
    return op.unsqueeze(op.gather(op.convert(size_hw, "f32"), np.array([1, 0, 1, 0]), 0), 0)


# ---- the contracts --------------------------------------------------------------------------------


def model(parameters: Sequence[Node], outputs: Sequence[tuple[set[str], Node]], name: str) -> ov.Model:
    results = []
    for names, node in outputs:
        node.output(0).tensor.set_names(names)
        results.append(op.result(node))
    return ov.Model(results, list(parameters), name)


def image_parameter(shape: Sequence[int], dtype: str, names: set[str]) -> Node:
    parameter = op.parameter(ov.PartialShape(list(shape)), ov.Type(np.dtype(dtype)), name=min(names))
    parameter.output(0).tensor.set_names(names)
    return parameter


def tf_outputs(image: Node, side: int, paste: Paste) -> dict[str, Node]:
    """TensorFlow's five outputs on (1, h, w, 3) uint8 RGB; beyond num_detections rows look like a person.

    paste: for which the masks are made.
    """
    size_hw = op.gather(op.shape_of(image), np.array([1, 2]), 0)
    found = find(squared(reversed_channels(nchw(image))))
    number = op.unsqueeze(op.convert(count(found.scores), "f32"), 0)
    found = all_filled_up(Things(**{**vars(found), "boxes_xyxy": op.clamp(found.boxes_xyxy, 0, 1)}))
    used = op.greater(found.scores, f32(0))
    classes = op.select(used, category_ids(found), f32(1))
    regions = found.boxes_xyxy if paste == "tile" else framed(found.boxes_xyxy, side, size_hw)
    outputs = {
        "detection_boxes": columns(found.boxes_xyxy, [1, 0, 3, 2]),
        "detection_classes": classes,
        "detection_scores": found.scores,
        "detection_masks": heatmaps(found, regions, side),
    }
    return {**{name: op.unsqueeze(node, 0) for name, node in outputs.items()}, "num_detections": number}


def tf_frozen(side: int) -> ov.Model:
    """As OpenVINO converts the frozen graphs: names with ":0", some outputs with a second, internal name."""
    image = image_parameter([1, -1, -1, 3], "uint8", {"image_tensor:0"})
    outputs = tf_outputs(image, side, "tile")
    internal = {"detection_boxes": {"add_1:0"}, "detection_masks": {"Sigmoid:0"}}
    named = [({f"{name}:0"} | internal.get(name, set()), node) for name, node in outputs.items()]
    return model([image], named, "tf_frozen")


_HUB_UNUSED: Mapping[str, tuple[int, ...]] = {
    "anchors": (49152, 4),
    "box_classifier_features": (300, 9, 9, 1536),
    "class_predictions_with_background": (300, 91),
    "detection_anchor_indices": (1, 100),
    "detection_multiclass_scores": (1, 100, 91),
    "image_shape": (4,),
    "mask_predictions": (100, 90, 33, 33),
    "num_proposals": (1,),
    "proposal_boxes": (1, 300, 4),
    "raw_detection_boxes": (1, 300, 4),
    "raw_detection_scores": (1, 300, 91),
    "refined_box_encodings": (300, 90, 4),
    "rpn_box_encodings": (1, 49152, 4),
    "rpn_objectness_predictions_with_background": (1, 49152, 2),
}
_HUB_SHARED = {"final_anchors", "proposal_boxes_normalized"}


def tf_hub() -> ov.Model:
    """As OpenVINO converts the SavedModel: 21 outputs in no useful order, two of which share both their names."""
    image = image_parameter([1, -1, -1, 3], "uint8", {"input_tensor"})
    wanted = tf_outputs(image, 33, "reframe")
    dummies = {name: op.broadcast(f32(0.5), op.constant(np.array(shape))) for name, shape in _HUB_UNUSED.items()}
    shared = op.broadcast(f32(0.5), op.constant(np.array([1, 300, 4])))
    outputs = [({name}, node) for name, node in sorted({**dummies, **wanted}.items(), key=lambda pair: pair[0][::-1])]
    return model([image], [*outputs[:4], (_HUB_SHARED, shared), *outputs[4:], (_HUB_SHARED, shared)], "tf_hub")


def reshape_do_2d(side: int, layout: str, dtype: str) -> ov.Model:
    """As the Model Optimizer converted the frozen graphs: a BGR image fitted into 800x1365, and rows by label.

    The picture is what is not black padding; boxes are relative to what image_info says.
    """
    height, width = PADDED_HW
    shape = [1, height, width, 3] if layout == "NHWC" else [1, 3, height, width]
    image = image_parameter(shape, dtype, {"image_tensor", "image_tensor:0"})
    info = image_parameter([1, 3], "float32", {"image_info", "image_info:0"})
    planes = nchw(image) if layout == "NHWC" else image
    size_hw = content_hw(planes, PADDED_HW)
    found = find(squared(cropped(planes, size_hw)), order="classid")
    frame = xyxy(op.squeeze(columns(info, [0, 1]), [0]))
    boxes = op.divide(op.multiply(found.boxes_xyxy, xyxy(size_hw)), frame)
    labels = category_ids(found)
    parts = [op.multiply(labels, f32(0)), labels, found.scores]
    end = np.zeros((ROWS, 7), np.float32)
    end[0, 0] = -1
    rows = filled_up(op.concat([*(op.unsqueeze(part, 1) for part in parts), boxes], 1), end)
    channel = op.convert(op.subtract(filled_up(labels, np.ones(ROWS, np.float32)), f32(1)), "i32")
    found = all_filled_up(found)
    masks = per_class(heatmaps(found, found.boxes_xyxy, side), channel, 90)
    outputs = [
        ({"masks", "SecondStageBoxPredictor_1/Conv_1/BiasAdd"}, masks),
        ({"reshape_do_2d", "reshape_do_2d:0"}, rows),
    ]
    return model([image, info], outputs, "reshape_do_2d")


def detectron() -> ov.Model:
    """As instance-segmentation-security-0033: a BGR image fitted into 480x640; boxes in the fitted image's pixels."""
    image = image_parameter([1, 3, *WINDOW_HW], "float32", {"im_data"})
    info = image_parameter([1, 3], "float32", {"im_info"})
    size_hw = op.squeeze(columns(info, [0, 1]), [0])
    found = all_filled_up(find(squared(cropped(image, op.convert(size_hw, "i32")))))
    channel = op.convert(found.columns, "i32")
    outputs = [
        ({"boxes"}, op.multiply(found.boxes_xyxy, xyxy(size_hw))),
        ({"classes"}, found.columns),
        ({"raw_masks"}, per_class(heatmaps(found, found.boxes_xyxy, 28), channel, 81)),
        ({"scores"}, found.scores),
    ]
    return model([image, info], outputs, "detectron")


def own_masks(window_hw: tuple[int, int], padded: bool) -> ov.Model:
    """As the later security models: one input; as many rows as things, classes from 0, a mask for each."""
    image = image_parameter([1, 3, *window_hw], "float32", {"image"})
    size_hw = content_hw(image, window_hw) if padded else op.constant(np.array(window_hw, np.int32))
    found = find(squared(cropped(image, size_hw)))
    boxes = op.multiply(found.boxes_xyxy, xyxy(size_hw))
    outputs = [
        ({"labels"}, op.convert(op.subtract(found.columns, f32(1)), "i32")),
        ({"boxes"}, op.concat([boxes, op.unsqueeze(found.scores, 1)], 1)),
        ({"masks"}, heatmaps(found, found.boxes_xyxy, 28)),
    ]
    return model([image], outputs, "own_masks")


def yolact_original() -> ov.Model:
    """As the original repository's network: normalised RGB in."""
    image = image_parameter([1, 3, SIDE, SIDE], "float32", {"input.1"})
    mean, scale = (np.array(values, np.float32).reshape(1, 3, 1, 1) for values in (MEAN, SCALE))
    raw = raw_outputs(reversed_channels(op.add(op.multiply(image, scale), mean)))
    outputs = [({name}, op.concat([source], 0)) for name, source in raw.items()]
    return model([image], outputs, "yolact_original")


_INCEPTION, _ATROUS = "mask_rcnn_inception_v2_coco", "mask_rcnn_inception_resnet_v2_atrous_coco"

WRAPPED: Mapping[str, Wrapped] = {
    "yolact-original": Wrapped("yolact-resnet50-fpn-pytorch", "original", 0, yolact_original),
    "inception-original": Wrapped(_INCEPTION, "original", 15, lambda: tf_frozen(15)),
    "atrous-original": Wrapped(_ATROUS, "original", 33, lambda: tf_frozen(33)),
    "hub": Wrapped("mask_rcnn_inception_resnet_v2_1024x1024", "original", 33, tf_hub),
    "inception-converted": Wrapped(_INCEPTION, "converted", 15, lambda: reshape_do_2d(15, "NCHW", "float32")),
    "inception-converted-u8": Wrapped(_INCEPTION, "converted", 15, lambda: reshape_do_2d(15, "NHWC", "uint8")),
    "atrous-converted": Wrapped(_ATROUS, "converted", 33, lambda: reshape_do_2d(33, "NHWC", "uint8")),
    "atrous-converted-f32": Wrapped(_ATROUS, "converted", 33, lambda: reshape_do_2d(33, "NCHW", "float32")),
    "security": Wrapped("instance-segmentation-security-0033", "converted", 28, detectron),
    "security-0091": Wrapped(
        "instance-segmentation-security-0091", "converted", 28, lambda: own_masks((800, 1344), padded=True)
    ),
    "security-0228": Wrapped(
        "instance-segmentation-security-0228", "converted", 28, lambda: own_masks((608, 608), padded=False)
    ),
}
