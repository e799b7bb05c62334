"""`python -m benchmarks.bench_tiles`: AP on large scenes, whole, in tiles, and with SAHI's merging.

segray's merging gets the same windows, network and detections as SAHI's GREEDYNMM with intersection over the smaller
mask. SAHI is compared only if the package sahi is installed. Both run with and without a pass over the whole image.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray import rle
from segray.analytics.evaluation.evaluate import coco_results, evaluate_detections
from segray.execution import tiling
from segray.instances import Instances
from segray.models import engine as runtime
from segray.models import resolve
from segray.models.adapters.adapter import Options
from segray.synthetic import dataset
from segray.synthetic.scene import draw_scene
from segray.synthetic.shapes import STICKERS

Parts = list[tuple[tiling.Window, Instances]]
SIZE_HW = (1600, 2000)
OPTIONS = Options(max_detections=300)


def merge_with_sahi(parts: Parts, size_hw: tuple[int, int]) -> Instances:
    """Merge by SAHI's default: greedy non-maximum merging within a class, intersection over smaller at least 0.5."""
    combine: Any = importlib.import_module("sahi.postprocess.combine")
    prediction: Any = importlib.import_module("sahi.prediction").ObjectPrediction
    objects = []
    for _, instances in parts:
        for i, counts in enumerate(instances.rles):
            outline = polygons(rle.decode(counts, size_hw))
            if outline:
                objects.append(
                    prediction(
                        segmentation=outline,
                        category_id=int(instances.class_ids[i]),
                        category_name=str(instances.class_ids[i]),
                        score=float(instances.scores[i]),
                        shift_amount=[0, 0],
                        full_shape=list(size_hw),
                    )
                )
    merge = combine.GreedyNMMPostprocess(match_threshold=0.5, match_metric="IOS", class_agnostic=False)
    merged = merge(objects)
    masks = [detection.mask.bool_mask[: size_hw[0], : size_hw[1]] for detection in merged]
    boxes_xyxy = np.array([detection.bbox.to_xyxy() for detection in merged], np.float32).reshape(-1, 4)
    return Instances(
        np.array([detection.category.id for detection in merged], np.int32),
        np.array([detection.score.value for detection in merged], np.float32),
        boxes_xyxy,
        tuple(rle.encode(np.asarray(mask, np.bool_)) for mask in masks),
        size_hw,
    )


def polygons(mask: NDArray[np.bool_]) -> list[list[float]]:
    """Return the mask's outlines in SAHI's format."""
    import cv2

    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return [contour.ravel().astype(float).tolist() for contour in contours if len(contour) >= 3]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--things", type=int, default=70, help="largest number of objects in a scene")
    parser.add_argument("--size", type=int, default=550)
    parser.add_argument("--overlap", type=float, default=0.2)
    options = parser.parse_args()
    model = resolve.resolve("stickers", None)
    engine = runtime.compile(model.path, model.form, runtime.DeviceSettings(precision="f32"))
    images: list[dict[str, Any]] = []
    truth: list[dict[str, Any]] = []
    results: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    seconds: defaultdict[str, float] = defaultdict(float)

    def detect(image: NDArray[np.uint8], window: tiling.Window) -> tuple[tiling.Window, Instances]:
        inputs = model.adapter.prepare(model.form, np.ascontiguousarray(image[window.slices]))
        with engine.infer(inputs) as outputs:
            return window, tiling.place(model.adapter.decode(outputs, window.size_hw, OPTIONS), window, SIZE_HW)

    for i in range(options.scenes):
        lengths = (24.0, 700.0)  # The largest things do not fit into a window.
        scene = draw_scene(
            np.random.default_rng([3, i]), SIZE_HW, max_things=options.things, lengths_px=lengths, frame_px=550
        )
        images.append({"id": i + 1, "file_name": f"{i}.png", "width": SIZE_HW[1], "height": SIZE_HW[0]})
        truth += [{"id": len(truth) + k, **row} for k, row in enumerate(dataset.annotations_of(scene, i + 1), 1)]
        windows = tiling.windows(SIZE_HW, tiling.TilingOptions(options.size, options.overlap, whole=True))
        with ThreadPoolExecutor(engine.requests) as pool:
            parts: Parts = list(pool.map(lambda window, scene=scene: detect(scene.image, window), windows))
        variants: dict[str, Any] = {
            "whole image": lambda p: p[-1][1],
            "tiles": lambda p: tiling.merge(p[:-1], SIZE_HW, OPTIONS.max_detections),
            "tiles and whole": lambda p: tiling.merge(p, SIZE_HW, OPTIONS.max_detections),
        }
        if importlib.util.find_spec("sahi"):
            variants["SAHI, tiles"] = lambda p: merge_with_sahi(p[:-1], SIZE_HW)
            variants["SAHI, tiles and whole"] = lambda p: merge_with_sahi(p, SIZE_HW)
        for name, merge in variants.items():
            start_s = time.process_time()
            instances = merge(parts)
            seconds[name] += time.process_time() - start_s
            results[name] += coco_results(i + 1, instances)
    categories = [{"id": sticker.category_id, "name": sticker.name} for sticker in STICKERS]
    coco_truth = {"images": images, "annotations": truth, "categories": categories}
    print(f"{options.scenes} scenes of {SIZE_HW[1]}x{SIZE_HW[0]}, {len(truth)} objects, windows of {options.size}")
    print("| | mask AP | AP50 | rows | CPU s an image, merging |\n|---|---|---|---|---|")
    for name, rows in results.items():
        scores = evaluate_detections(rows, coco_truth)["segm"]
        print(f"| {name} | {scores.ap:.3f} | {scores.ap50:.3f} | {len(rows)} | {seconds[name] / options.scenes:.2f} |")


if __name__ == "__main__":
    main()
