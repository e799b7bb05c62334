"""`python -m benchmarks.bench_geti`: CPU milliseconds of decoding an image of Geti's models, and of resizing.

The outputs are drawn: boxes of a tenth to a half of the image's sides, with elliptic masks. The image has 640x480
pixels, the networks take 640x640. The figures are CPU time of one thread, each the best of several rounds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.imaging import geometry
from segray.imaging.geometry import Resize
from segray.models.adapters.adapter import Options
from segray.models.adapters.geti import GetiAdapter, GetiDetr, GetiMaskRcnn
from segray.models.adapters.geti_yolo import GetiYolo
from segray.models.description import Description

ROUNDS, REPEATS = 7, 5
SIZE_HW, WINDOW_HW = (480, 640), (640, 640)
QUERIES, CLASSES, DEPTH = 300, 5, 32

Outputs = Mapping[str, NDArray[Any]]


def ellipses(centres: NDArray[np.float64], sides: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """Return (n, side, side): 1 at the centres, 0 on the ellipses inside the boxes. All lengths are over 0..1."""
    at = (np.arange(side) + 0.5) / side
    x, y = ((at[None] - centres[:, [axis]]) / (sides[:, [axis]] / 2) for axis in (0, 1))
    return np.asarray(1 - x[:, None, :] ** 2 - y[:, :, None] ** 2)


def draw(count: int, rng: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return centres and sides of `count` objects over 0..1, (count, 2) each."""
    return rng.uniform(0.2, 0.8, (count, 2)), rng.uniform(0.1, 0.5, (count, 2))


def rows(centres: NDArray[np.float64], sides: NDArray[np.float64], rng: np.random.Generator) -> Outputs:
    """Return boxes with scores, and labels."""
    corners = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1) * WINDOW_HW[0]
    scores = rng.uniform(0.5, 1, (len(centres), 1))
    boxes = np.concatenate([corners, scores], axis=1).astype(np.float32)
    return {"boxes": boxes, "labels": rng.integers(0, CLASSES, len(centres))}


def box_masks(count: int) -> Outputs:
    """Return `count` rows of MaskRCNN."""
    rng = np.random.default_rng(0)
    own = ellipses(np.full((count, 2), 0.5), np.full((count, 2), 1.0), 28)
    return {**rows(*draw(count, rng), rng), "masks": (own / 2 + 0.5).clip(0, 1).astype(np.float32)}


def whole_masks(count: int) -> Outputs:
    """Return 300 rows of DETRInstSeg, of which `count` are over the threshold."""
    rng = np.random.default_rng(0)
    objects = draw(QUERIES, rng)
    outputs = rows(*objects, rng)
    outputs["boxes"][count:, 4] = 0.01
    masks = (ellipses(*objects, 78) / 2 + 0.5).clip(0, 1).astype(np.float32)
    return {name: array[None] for name, array in {**outputs, "masks": masks}.items()}


def anchors(count: int) -> Outputs:
    """Return the anchors of YOLO-seg at 640x640, of which `count` are over the threshold."""
    rng = np.random.default_rng(0)
    centres, sides = draw(count, rng)
    table = np.zeros((4 + CLASSES + DEPTH, 8400), np.float32)
    at = rng.permutation(8400)[:count]
    table[:2, at], table[2:4, at] = centres.T * WINDOW_HW[1], sides.T * WINDOW_HW[1]
    table[4 + rng.integers(0, CLASSES, count), at] = rng.uniform(0.5, 1, count)
    line = (np.arange(160) + 0.5) / 160
    x, y = np.broadcast_arrays(line[None, :], line[:, None])
    prototypes = [np.ones_like(x), x, y, x * x, y * y, *rng.uniform(-1, 1, (DEPTH - 5, 160, 160))]
    (u, v), (a, b) = centres.T, 4 / sides.T**2
    table[4 + CLASSES : 9 + CLASSES, at] = [1 - a * u * u - b * v * v, 2 * a * u, 2 * b * v, -a, -b]
    table[9 + CLASSES :, at] = rng.uniform(-0.01, 0.01, (DEPTH - 5, count))
    return {"output0": table[None], "output1": np.asarray(prototypes, np.float32)[None]}


def described(resize: Resize, outputs: Outputs) -> Description:
    """Return the description of a file that suppresses nothing."""
    return Description(
        family="",
        what="bench",
        kind="",
        input_name="image",
        outputs={name: position for position, name in enumerate(outputs)},
        size_hw=WINDOW_HW,
        labels={i: f"class {i}" for i in range(1, CLASSES + 1)},
        resize=resize,
        rounding="exact",
        thresholds={"nms_iou": 1.0, "max_detections": 1000},
        extra={"nms_execute": True},
    )


def best_ms(call: Callable[[], Any]) -> float:
    """Return the CPU milliseconds of one call in the best round."""
    call()
    seconds = []
    for _ in range(ROUNDS):
        start_s = time.process_time()
        for _ in range(REPEATS):
            call()
        seconds.append((time.process_time() - start_s) / REPEATS)
    return 1000 * min(seconds)


def main() -> None:
    makers: dict[str, tuple[type[GetiMaskRcnn | GetiDetr | GetiYolo], Callable[[int], Outputs], Resize]] = {
        "MaskRCNN, masks of 28x28": (GetiMaskRcnn, box_masks, "letterbox"),
        "DETRInstSeg, masks of 78x78": (GetiDetr, whole_masks, "stretch"),
        "YOLO-seg, prototypes of 160x160": (GetiYolo, anchors, "letterbox"),
    }
    print(f"{'CPU ms an image':<34} {'10 instances':>14} {'100 instances':>14}")
    for name, (kind, make, resize) in makers.items():
        figures = []
        for count in (10, 100):
            outputs = make(count)
            adapter: GetiAdapter = kind.of(described(resize, outputs))
            options = Options(0.3, 1000, nms_iou=1.0)
            if len(adapter.decode(outputs, SIZE_HW, options)) != count:
                raise AssertionError("the drawn outputs do not have this many instances")
            figures.append(best_ms(partial(adapter.decode, outputs, SIZE_HW, options)))
        print(f"{name:<34} {figures[0]:>14.2f} {figures[1]:>14.2f}")
    for size_hw in (SIZE_HW, (3000, 4000)):
        image = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), np.uint8)
        resize_ms = best_ms(partial(geometry.resize_exact, image, WINDOW_HW))
        print(f"{f'resize of {size_hw[1]}x{size_hw[0]}':<34} {resize_ms:>14.2f}")


if __name__ == "__main__":
    main()
