"""`python -m benchmarks.bench_families`: CPU milliseconds of decoding 100 instances, by family.

The outputs are drawn: boxes of a tenth to a half of the image's sides, with elliptic masks. The figures are CPU time of
one thread, the least and the median of several rounds. bench_yolo_decode and bench_geti have the other families.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench_geti import draw, ellipses
from segray.models.adapters.adapter import Options
from segray.models.coco_labels import COCO_NAMES
from segray.models.description import Description
from segray.models.registry import adapter_of

COUNT, ROUNDS = 100, 25
SMALL_HW, LARGE_HW = (480, 640), (853, 1280)
Outputs = Mapping[str, NDArray[Any]]
Size = tuple[int, int]


def boxes_xyxy(size_hw: Size) -> NDArray[np.float32]:
    """Return 100 boxes, (100, 4), in pixels of an image."""
    centres, sides = draw(COUNT, np.random.default_rng(0))
    corners = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
    return np.asarray(corners * np.array(size_hw[::-1] * 2), np.float32)


def of_boxes(size_hw: Size) -> tuple[NDArray[Any], ...]:
    """Return boxes, classes, scores and masks of 28x28."""
    rng = np.random.default_rng(1)
    own = ellipses(np.full((COUNT, 2), 0.5), np.full((COUNT, 2), 1.0), 28)
    masks = (own / 2 + 0.5 + rng.normal(0, 0.02, own.shape)).clip(0, 1).astype(np.float32)
    scores = np.sort(rng.uniform(0.5, 1, COUNT))[::-1].astype(np.float32)
    return boxes_xyxy(size_hw), rng.integers(1, 80, COUNT), scores, masks


def rf_detr(size_hw: Size) -> tuple[Outputs, dict[str, Any]]:
    """Return 100 queries with masks of 78x78 over the whole image."""
    centres, sides = draw(COUNT, np.random.default_rng(0))
    logits = np.full((1, COUNT, 91), -9, np.float32)
    logits[0, np.arange(COUNT), np.arange(COUNT) % 80 + 1] = np.linspace(4, 1, COUNT)
    dets = np.concatenate([centres, sides], axis=1)[None].astype(np.float32)
    masks = (4 * ellipses(centres, sides, 78))[None].astype(np.float32)
    return {"dets": dets, "labels": logits, "masks": masks}, {"size_hw": (312, 312), "extra": {"columns": 91}}


def torchvision(size_hw: Size) -> tuple[Outputs, dict[str, Any]]:
    """Return 100 rows of a network that is cut before its own pasting."""
    boxes, classes, scores, masks = of_boxes(size_hw)
    outputs = {"boxes": boxes, "labels": classes, "scores": scores, "masks": masks[:, None]}
    return outputs, {"kind": "pasted", "extra": {"mask_side": 28, "columns": 91}}


def mmdeploy(size_hw: Size) -> tuple[Outputs, dict[str, Any]]:
    """Return 100 rows of a Mask R-CNN that gives small masks."""
    boxes, classes, scores, masks = of_boxes(size_hw)
    dets = np.concatenate([boxes, scores[:, None]], axis=1)
    return {"dets": dets, "labels": classes, "masks": masks}, {"kind": "boxes", "size_hw": size_hw, "resize": "stretch"}


def detectron2(size_hw: Size) -> tuple[Outputs, dict[str, Any]]:
    """Return 100 rows of a traced Mask R-CNN."""
    boxes, classes, scores, masks = of_boxes(size_hw)
    outputs = {"pred_boxes": boxes, "pred_classes": classes, "pred_masks": masks[:, None], "scores": scores}
    return outputs, {"size_hw": size_hw}


CASES = {
    "rf_detr": (rf_detr, SMALL_HW),
    "torchvision_mask_rcnn": (torchvision, LARGE_HW),
    "mmdeploy": (mmdeploy, LARGE_HW),
    "detectron2": (detectron2, LARGE_HW),
}


def main() -> None:
    print(f"{'':24} {'image':>10} {'least ms':>9} {'median ms':>10}")
    for family, (make, size_hw) in CASES.items():
        outputs, facts = make(size_hw)
        positions = {name: position for position, name in enumerate(outputs)}
        adapter = adapter_of(Description(family, outputs=positions, labels=COCO_NAMES, **facts))
        options = Options(0.3, 300)
        times_ms = []
        for number in range(ROUNDS + 1):
            began_s = time.process_time()
            rows = len(adapter.decode(outputs, size_hw, options))
            if rows != COUNT:
                raise AssertionError(f"{family}: {rows} instances in place of {COUNT}")
            if number:  # The first call loads the compiled loops.
                times_ms.append(1e3 * (time.process_time() - began_s))
        image = f"{size_hw[1]}x{size_hw[0]}"
        print(f"{family:24} {image:>10} {min(times_ms):9.2f} {statistics.median(times_ms):10.2f}")


if __name__ == "__main__":
    main()
