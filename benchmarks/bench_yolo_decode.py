"""`python -m benchmarks.bench_yolo_decode [HxW ...]`: CPU time of YOLO-seg before and after the network, by image size.

The raw outputs are made: 80 classes, a network of 640x640, twelve anchors for each instance. An instance is an ellipse.
The figures are CPU milliseconds of one thread for one image, the median and the least of many rounds. All rows
alternate within a round, and the outputs are written again before each call, as a network does. The rows `anchors`,
`nms` and `masks` are parts of `decode`. The row `plain` is a decoder in numpy and cv2 that makes whole masks.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from segray.imaging import geometry
from segray.models.adapters import yolo_seg
from segray.models.adapters.adapter import Options
from segray.models.adapters.described import FORM, rows_after_nms, thresholds_of_classes
from segray.models.coco_labels import COCO_NAMES
from segray.models.description import Description

SIDE, PLANES, COPIES = 640, 32, 12
OPTIONS = Options(0.25, 300, nms_iou=0.7)
SIZES_HW, INSTANCES, ROUNDS = ((480, 640), (427, 640), (500, 333), (1080, 1920)), (10, 100), 30
Arrays = Mapping[str, NDArray[np.float32]]


def make_outputs(instances: int, size_hw: tuple[int, int], seed: int = 0) -> Arrays:
    """Make the raw outputs for an image with this number of instances, within the image."""
    rng = np.random.default_rng(seed)
    fit, classes = geometry.Fit.of(size_hw, (SIDE, SIDE)), len(COCO_NAMES)
    anchors = sum((SIDE // stride) ** 2 for stride in (8, 16, 32))
    content_wh = np.array(fit.content_hw[::-1])
    sides = content_wh * np.exp(rng.uniform(np.log(0.05), np.log(0.6), (instances, 2)))
    centres = [fit.left, fit.top] + sides / 2 + rng.uniform(0, 1, (instances, 2)) * (content_wh - sides)
    y, x = (np.mgrid[: SIDE // 4, : SIDE // 4] + 0.5) / (SIDE / 8) - 1
    waves = np.sin(rng.uniform(-20, 20, (PLANES - 5, 2, 1, 1)) * [x, y]).sum(1)
    # 4 - 4 ((x - u) / a)**2 - 4 ((y - v) / b)**2 as a sum of five planes, and of waves that make the outline ragged.
    (u, v), (a, b) = (centres / (SIDE / 2) - 1).T, (sides / SIDE).T
    parts = [4 - 4 * (u / a) ** 2 - 4 * (v / b) ** 2, 8 * u / a**2, 8 * v / b**2, -4 / a**2, -4 / b**2]
    weights = np.concatenate([np.stack(parts, 1), rng.normal(0, 0.05, (instances, PLANES - 5))], 1)
    output0 = rng.uniform(0, 0.02, (4 + classes + PLANES, anchors))
    output0[:4] = rng.uniform(8, 100, (4, anchors))
    owner, columns = np.repeat(np.arange(instances), COPIES), rng.choice(anchors, instances * COPIES, replace=False)
    jitter = rng.normal(0, 0.01, (len(owner), 4)) * np.tile(sides[owner], 2)
    output0[:4, columns] = (np.concatenate([centres, sides], 1)[owner] + jitter).T
    output0[4 + rng.integers(0, classes, instances)[owner], columns] = rng.uniform(0.3, 0.95, len(owner))
    output0[4 + classes :, columns] = weights[owner].T
    planes = np.stack([np.ones_like(x), x, y, x * x, y * y, *waves])
    return {"output0": output0[None].astype(np.float32), "output1": planes[None].astype(np.float32)}


def decode_plainly(outputs: Arrays, size_hw: tuple[int, int]) -> list[Any]:
    """Decode with numpy, cv2 and pycocotools: whole masks, enlarged to the network's size, cut and resized."""
    rows, planes = outputs["output0"][0].T, outputs["output1"][0]
    scores = rows[:, 4 : 4 + len(COCO_NAMES)]
    rows, best, labels = (
        array[scores.max(1) > OPTIONS.score_threshold] for array in (rows, scores.max(1), scores.argmax(1))
    )
    corners = np.concatenate([rows[:, :2] - rows[:, 2:4] / 2, rows[:, 2:4]], 1)
    kept = np.array(cv2.dnn.NMSBoxesBatched(corners.tolist(), best.tolist(), labels.tolist(), 0.25, 0.7), int)[:300]
    grids = (rows[kept, -PLANES:] @ planes.reshape(PLANES, -1)).reshape(-1, *planes.shape[1:])
    fit = geometry.Fit.of(size_hw, (SIDE, SIDE))
    boxes = yolo_seg._to_image(
        np.concatenate([corners[kept, :2], corners[kept, :2] + corners[kept, 2:]], 1), size_hw, fit
    )
    masks = []
    for grid, (x0, y0, x1, y1) in zip(grids, np.ceil(boxes).astype(int), strict=True):
        large = cv2.resize(grid, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        content = large[fit.top : fit.top + fit.content_hw[0], fit.left : fit.left + fit.content_hw[1]]
        mask = np.zeros(size_hw, np.uint8, order="F")
        mask[y0:y1, x0:x1] = cv2.resize(content, size_hw[::-1], interpolation=cv2.INTER_LINEAR)[y0:y1, x0:x1] > 0
        masks.append(coco_mask.encode(mask))
    return masks


def parts_of(model: yolo_seg.YoloSeg, outputs: Arrays, size_hw: tuple[int, int]) -> Mapping[str, Callable[[], Any]]:
    """Return what is measured, by the name of its row."""
    image = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    output0, planes = outputs["output0"][0], outputs["output1"][0]
    thresholds = thresholds_of_classes(COCO_NAMES, OPTIONS)
    rows, _ = yolo_seg._raw_rows(output0, thresholds)

    def suppress() -> yolo_seg._Rows:
        return rows.take(rows_after_nms(rows.scores, rows.labels, rows.boxes_xyxy, OPTIONS, 0.7))

    kept = suppress()
    boxes = yolo_seg._to_image(kept.boxes_xyxy, size_hw, geometry.Fit.of(size_hw, (SIDE, SIDE)))
    return {
        "prepare": lambda: model.prepare(model.forms[FORM], image),
        "decode": lambda: model.decode(outputs, size_hw, OPTIONS),
        " anchors": lambda: yolo_seg._raw_rows(output0, thresholds),
        " nms": suppress,
        " masks": lambda: yolo_seg._masks(kept.coefficients, planes, boxes, size_hw, (SIDE, SIDE)),
        "plain": lambda: decode_plainly(outputs, size_hw),
    }


def cpu_ms(calls: Mapping[str, Callable[[], Any]], outputs: Arrays) -> Mapping[str, list[float]]:
    """Return the CPU milliseconds of each call in each round. outputs: the arrays that the calls read."""
    for call in calls.values():
        call()
    written = {name: array.copy() for name, array in outputs.items()}
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):
        for name, call in calls.items():
            for output, array in outputs.items():
                np.copyto(array, written[output])
            start_s = time.process_time()
            call()
            rounds[name].append((time.process_time() - start_s) * 1000)
    return rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", nargs="*", help="height and width of the image, as 480x640")
    sizes = [(int(text.split("x")[0]), int(text.split("x")[1])) for text in parser.parse_args().sizes] or SIZES_HW
    cv2.setNumThreads(1)
    names = {"output0": 0, "output1": 1}
    description = Description(
        "yolo_seg", "made", "raw", "images", names, (SIDE, SIDE), COCO_NAMES, pad_value=114, scale=(255.0, 255.0, 255.0)
    )
    model = yolo_seg.of(description)
    print(f"{'':<9} {'instances':>9} {'image':>10} {'median ms':>10} {'least ms':>9}")
    for size_hw in sizes:
        for instances in INSTANCES:
            outputs = make_outputs(instances, size_hw)
            count = len(model.decode(outputs, size_hw, OPTIONS))
            for name, times_ms in cpu_ms(parts_of(model, outputs, size_hw), outputs).items():
                image = "x".join(map(str, size_hw))
                print(f"{name:<9} {count:>9} {image:>10} {statistics.median(times_ms):>10.2f} {min(times_ms):>9.2f}")


if __name__ == "__main__":
    main()
