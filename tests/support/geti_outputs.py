"""Raw outputs and facts of made files by Geti, drawn from a seed, and model_api's rows for them.

`python tests/support/geti_outputs.py` writes tests/golden/geti.json.gz again. The script needs openvino-model-api
0.4.7, in an environment of its own. The order of the draws decides every number: keep it.
"""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from golden_files import GOLDEN
from numpy.typing import NDArray

from segray.models.description import Description, Resize, category_ids

Outputs = dict[str, NDArray[Any]]

SEED = 3
WINDOW_HW = (64, 96)
SIZES_HW = ((37, 53), (120, 81), (9, 140))
NAMES = ("box", "disc of tin", "rod")
_EMPTY = "getitune_empty_lbl"
RESIZES: Mapping[str, Resize] = {
    "standard": "stretch",
    "fit_to_window": "corner",
    "fit_to_window_letterbox": "letterbox",
}
_NMS = {"nms_execute": "True", "iou_threshold": "0.4"}
_DRAWN = {"boxes": 1, "planes": 2, "anchors": 3}

# Case -> kind of arrays, and what model_info says beside the defaults of `model_info`.
CASES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "boxes_standard": ("boxes", {"model_type": "MaskRCNN"}),
    "boxes_letterbox": ("boxes", {"model_type": "MaskRCNN", "resize_type": "fit_to_window_letterbox", **_NMS}),
    "boxes_corner": ("boxes", {"model_type": "MaskRCNN", "resize_type": "fit_to_window"}),
    "boxes_few": ("boxes", {"model_type": "MaskRCNN", **_NMS, "nms_max_predictions": "5"}),
    "boxes_background": ("boxes", {"model_type": "MaskRCNN", "labels": "background box rod"}),
    "planes": ("planes", {"model_type": "DETRInstSeg", **_NMS}),
    "planes_agnostic": (
        "planes",
        {"model_type": "DETRInstSeg", **_NMS, "agnostic_nms": "True", "nms_max_predictions": "8"},
    ),
    "planes_tiles": (
        "planes",
        {"model_type": "DETRInstSeg", "resize_type": "fit_to_window", "tile_size": "400", "tiles_overlap": "0.2"},
    ),
    "anchors_letterbox": ("anchors", {"resize_type": "fit_to_window_letterbox", **_NMS}),
    "anchors_corner": ("anchors", {"resize_type": "fit_to_window", **_NMS, "agnostic_nms": "True"}),
    "anchors_standard": ("anchors", {}),
}


def model_info(case: str) -> dict[str, str]:
    """Return what the file of this case says of itself."""
    kind, said = CASES[case]
    names = NAMES if kind == "anchors" else (_EMPTY, *NAMES)
    return {
        "model_type": "YOLO-seg",
        "labels": " ".join(name.replace(" ", "_") for name in names),
        "resize_type": "standard",
        "pad_value": "114",
        "reverse_input_channels": "False",
        "confidence_threshold": "0.25",
        "nms_execute": "False",
        **said,
    }


def description(case: str) -> Description:
    """Return the description of the file of this case."""
    info, kind = model_info(case), CASES[case][0]
    executes = info["nms_execute"] == "True"
    names = info["labels"].split()
    thresholds = {"score_threshold": float(info["confidence_threshold"])}
    if executes:
        thresholds["nms_iou"] = float(info["iou_threshold"])
        thresholds["max_detections"] = int(info.get("nms_max_predictions", "200"))
    return Description(
        family={"boxes": "geti_mask_rcnn", "planes": "geti_detr", "anchors": "geti_yolo"}[kind],
        what="a made file",
        kind="",
        input_name="image",
        outputs={name: position for position, name in enumerate(arrays(case))},
        size_hw=WINDOW_HW,
        labels=category_ids(tuple(names if kind == "anchors" else names[1:])),
        resize=RESIZES[info["resize_type"]],
        pad_value=int(info["pad_value"]),
        rounding="exact",
        thresholds=thresholds,
        extra={
            "nms_execute": executes,
            "agnostic_nms": info.get("agnostic_nms") == "True",
            "nms_max_predictions": int(info.get("nms_max_predictions", "200")),
            "intensity_mode": "none",
        },
    )


# ---- arrays ---------------------------------------------------------------------------------------


def arrays(case: str, seed: int = SEED) -> Outputs:
    """Return the raw outputs of a case, by name in the order of the ports."""
    kind = CASES[case][0]
    rng = np.random.default_rng([seed, _DRAWN[kind]])
    drawn = {"boxes": _boxes, "planes": _planes, "anchors": _anchors}[kind](rng)
    return {name: array[None] for name, array in drawn.items()} if case == "boxes_letterbox" else drawn


def _steps(values: Any, step: float) -> NDArray[np.float32]:
    """Return the values rounded to multiples of a power of two, so that every machine has the same ones."""
    return np.asarray(np.round(np.asarray(values, np.float64) / step) * step, np.float32)


def _objects(rng: np.random.Generator, n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return centres and sides of n boxes over 0..1, (n, 2) each; pairs of neighbours overlap."""
    centres = rng.uniform(0.05, 0.95, (n, 2))
    sides = rng.uniform(0.1, 0.6, (n, 2))
    centres[1::2] = centres[::2] + rng.uniform(-0.05, 0.05, (n // 2, 2))
    sides[1::2] = sides[::2] * rng.uniform(0.8, 1.2, (n // 2, 2))
    sides[4], sides[5], sides[6, 0], sides[7] = 1.4, -0.3, 0, 0.01  # too large, inside out, no width, a pixel
    return centres, sides


def _scores(rng: np.random.Generator, n: int) -> NDArray[np.float32]:
    """Return n scores, all different; some lie on the threshold of 0.25 and one step beside it."""
    scores = _steps(rng.permutation(n) / n * 0.9 + 0.05, 2**-12)
    scores[8:11] = 0.25, np.nextafter(np.float32(0.25), np.float32(1)), np.nextafter(np.float32(0.25), np.float32(0))
    return scores


def _ellipses(
    rng: np.random.Generator, centres: NDArray[np.float64], sides: NDArray[np.float64], side_hw: tuple[int, int]
) -> NDArray[np.float64]:
    """Return n grids, positive inside a noisy ellipse, (n, r, c)."""
    y, x = ((np.arange(side) + 0.5) / side for side in side_hw)
    reach = np.maximum(np.abs(sides), 0.05)
    dx = (x[None, None, :] - centres[:, 0, None, None]) / reach[:, 0, None, None]
    dy = (y[None, :, None] - centres[:, 1, None, None]) / reach[:, 1, None, None]
    return 0.25 - dx * dx - dy * dy + rng.uniform(-0.1, 0.1, (len(centres), *side_hw))


def _rows(rng: np.random.Generator, n: int) -> tuple[Outputs, NDArray[np.float64], NDArray[np.float64]]:
    centres, sides = _objects(rng, n)
    corners = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1) * [*WINDOW_HW[::-1], *WINDOW_HW[::-1]]
    boxes = np.concatenate([_steps(corners, 2**-6), _scores(rng, n)[:, None]], axis=1)
    labels = rng.integers(0, len(NAMES), n)
    labels[3] = len(NAMES)  # beyond the names
    return {"boxes": boxes, "labels": labels}, centres, sides


def _boxes(rng: np.random.Generator) -> Outputs:
    rows, _, _ = _rows(rng, 30)
    own = _ellipses(rng, rng.uniform(0.4, 0.6, (30, 2)), rng.uniform(0.5, 1.1, (30, 2)), (14, 14))
    return {**rows, "masks": _steps(np.clip(0.5 + own, 0, 1), 2**-10)}


def _planes(rng: np.random.Generator) -> Outputs:
    rows, centres, sides = _rows(rng, 30)
    drawn = {name: array[None] for name, array in rows.items()}
    return {**drawn, "masks": _steps(np.clip(0.5 + _ellipses(rng, centres, sides, (16, 20)), 0, 1), 2**-10)[None]}


def _anchors(rng: np.random.Generator) -> Outputs:
    """Draw 126 anchors of 3 classes and 8 coefficients, and prototypes of which sums are ellipses."""
    height, width = WINDOW_HW
    n, anchors = 40, sum((height // stride) * (width // stride) for stride in (8, 16, 32))
    centres, sides = _objects(rng, n)
    at = rng.permutation(anchors)[:n]
    table = np.zeros((4 + len(NAMES) + 8, anchors), np.float32)
    table[:4] = _steps(rng.uniform(0, 60, (4, anchors)), 2**-6)
    table[4:7] = _steps(rng.uniform(0, 0.2, (len(NAMES), anchors)), 2**-10)
    table[:2, at], table[2:4, at] = (_steps(side.T * [[width], [height]], 2**-6) for side in (centres, sides))
    table[4 + rng.integers(0, len(NAMES), n), at] = _scores(rng, n)
    y, x = ((np.arange(side // 4) + 0.5) / (side // 4) for side in WINDOW_HW)
    x, y = np.broadcast_arrays(x[None, :], y[:, None])
    noise = rng.uniform(-1, 1, (3, *x.shape))
    prototypes = _steps([np.ones_like(x), x, y, x * x, y * y, *noise], 2**-12)
    a, b = (1 / np.maximum(np.abs(sides), 0.05).T ** 2).round(2)
    u, v = centres.T
    smooth = [1 - a * u * u - b * v * v, 2 * a * u, 2 * b * v, -a, -b]
    table[7:, at] = _steps([*(6 * np.array(smooth)), *rng.uniform(-0.5, 0.5, (3, n))], 2**-8)
    return {"output0": table[None], "output1": prototypes[None]}


# ---- model_api ------------------------------------------------------------------------------------


def golden_rows() -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Return model_api's rows by case and size ("HxW"): score, class as model_api counts, box and mask counts."""
    with gzip.open(GOLDEN / "geti.json.gz") as file:
        rows: dict[str, dict[str, list[dict[str, Any]]]] = json.load(file)
    return rows


def rows_of_model_api(case: str, sizes_hw: tuple[tuple[int, int], ...]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of one case by size, from a file with the facts of the case."""
    import openvino as ov
    from model_api.adapters import OpenvinoAdapter, create_core
    from model_api.models.instance_segmentation import DETRInstanceSegmentation, MaskRCNNModel
    from model_api.models.yolo_seg import YOLOSeg

    classes = {"boxes": MaskRCNNModel, "planes": DETRInstanceSegmentation, "anchors": YOLOSeg}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "made.xml"
        ov.save_model(_file(case), path)
        wrapper = classes[CASES[case][0]](OpenvinoAdapter(create_core(), str(path), device="CPU"), {})
    rows = {}
    for height, width in sizes_hw:
        meta = {"original_shape": (height, width, 3), "resized_shape": (wrapper.w, wrapper.h, 3)}
        result = wrapper.postprocess({name: array.copy() for name, array in arrays(case).items()}, meta)
        rows[f"{height}x{width}"] = [
            {"score": float(score), "class": int(label), "box": [int(edge) for edge in box], "rle": _counts(mask)}
            for score, label, box, mask in zip(result.scores, result.labels, result.bboxes, result.masks, strict=True)
        ]
    return rows


def _file(case: str) -> Any:
    """Return a network with the ports and the model_info of this case; its outputs are zeros."""
    import openvino as ov
    from openvino import opset13 as ops

    image = ops.parameter([1, 3, *WINDOW_HW], np.float32, name="image")
    image.output(0).get_tensor().set_names({"image"})
    results = []
    for name, array in arrays(case).items():
        node = ops.constant(np.zeros(array.shape, array.dtype))
        node.output(0).get_tensor().set_names({name})
        results.append(ops.result(node))
    model = ov.Model(results, [image], "made")
    for key, value in model_info(case).items():
        model.set_rt_info(value, ["model_info", key])
    return model


def _counts(mask: NDArray[Any]) -> str:
    from pycocotools import mask as coco_mask

    counts: bytes = coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"]
    return counts.decode()


if __name__ == "__main__":
    text = json.dumps({case: rows_of_model_api(case, SIZES_HW) for case in CASES}, indent=0)
    (GOLDEN / "geti.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
