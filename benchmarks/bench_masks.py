"""`python -m benchmarks.bench_masks DETECTIONS`: areas, boxes and overlaps per second, beside pycocotools.

DETECTIONS: output of YOLACT's eval.py with --output_web_json, gzipped or not; without it, masks are generated. The
figures are CPU seconds of one thread. Each is the best of several rounds, in which segray and pycocotools alternate.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pycocotools import mask as coco_mask

from benchmarks import synthetic_rows
from segray import rle
from segray.analytics.query import arrow_masks

ROUNDS, COPIES = 5, 14
Mask = tuple[str, tuple[int, int]]


def read_masks(path: Path) -> list[Mask]:
    """Read masks that YOLACT's eval.py wrote: RLE counts, and height and width in pixels."""
    data = path.read_bytes()
    images = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)["images"]
    masks = [detection["mask"] for image in images for detection in image["dets"]]
    return [(mask["counts"], tuple(mask["size"])) for mask in masks]


def generate_masks() -> list[Mask]:
    """Generate 4,000 masks at 640x480: RLE counts, and height and width in pixels."""
    rng = np.random.default_rng(0)
    rows = synthetic_rows.instance_rows(synthetic_rows.generate_shapes(2000, rng), 4000, rng)
    return [(counts, (480, 640)) for counts in rows.field("rle").to_pylist()]


def best_s(*calls: Callable[[], Any]) -> list[float]:
    """Return the CPU seconds of each call's best round."""
    rounds = []
    for _ in range(ROUNDS):
        seconds = []
        for call in calls:
            start_s = time.process_time()
            call()
            seconds.append(time.process_time() - start_s)
        rounds.append(seconds)
    return [min(seconds) for seconds in zip(*rounds, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("detections", type=Path, nargs="?")
    path = parser.parse_args().detections
    masks = (read_masks(path) if path else generate_masks()) * COPIES
    counts, heights = pa.array([text for text, _ in masks]), pa.array([height for _, (height, _) in masks])
    coco_masks = [{"size": list(size_hw), "counts": text.encode()} for text, size_hw in masks]
    # Neighbours of the same image size make a pair.
    firsts = np.flatnonzero([a[1] == b[1] for a, b in zip(masks, masks[1:], strict=False)])
    left, right = counts.take(pa.array(firsts)), counts.take(pa.array(firsts + 1))
    pairs = [([coco_masks[i]], [coco_masks[i + 1]]) for i in firsts]
    starts = range(0, len(masks), 255)  # pycocotools 2.0 overflows on more than 255 masks with numpy 2.
    mean_length = np.mean([len(text) for text, _ in masks])
    print(f"{len(masks)} masks of {mean_length:.0f} characters on average; per CPU second")
    print(f"{'':<6} {'segray':>10} {'pycocotools':>12} {'ratio':>6}")
    for name, count, segray_call, coco_call in (
        (
            "area",
            len(masks),
            lambda: arrow_masks.rle_area(counts),
            lambda: [coco_mask.area(coco_masks[i : i + 255]) for i in starts],
        ),
        ("bbox", len(masks), lambda: arrow_masks.rle_bbox(counts, heights), lambda: coco_mask.toBbox(coco_masks)),
        (
            "iou",
            len(firsts),
            lambda: arrow_masks.rle_iou(left, right),
            lambda: [coco_mask.iou(a, b, [0]) for a, b in pairs],
        ),
    ):
        segray_s, coco_s = best_s(segray_call, coco_call)
        print(f"{name:<6} {count / segray_s:>10,.0f} {count / coco_s:>12,.0f} {coco_s / segray_s:>6.1f}")
    sample = masks[:2000]
    (decode_s,) = best_s(lambda: [rle.decode(text, size_hw) for text, size_hw in sample])
    print(f"for comparison: segray decodes {len(sample) / decode_s:,.0f} masks to pixels per CPU second")


if __name__ == "__main__":
    main()
