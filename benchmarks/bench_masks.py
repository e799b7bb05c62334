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


def real(path: Path) -> list[Mask]:
    """Read masks that YOLACT's eval.py wrote: RLE counts, and height and width in pixels."""
    data = path.read_bytes()
    images = json.loads(gzip.decompress(data) if path.suffix == ".gz" else data)["images"]
    return [(one["mask"]["counts"], tuple(one["mask"]["size"])) for image in images for one in image["dets"]]


def drawn() -> list[Mask]:
    """Generate 4,000 masks at 640x480: RLE counts, and height and width in pixels."""
    rng = np.random.default_rng(0)
    rows = synthetic_rows.instances(synthetic_rows.drawn(2000, rng), 4000, rng)
    return [(counts, (480, 640)) for counts in rows.field("rle").to_pylist()]


def best_s(*calls: Callable[[], Any]) -> list[float]:
    """Return the CPU seconds of each call's best round."""
    found = [[0.0] * ROUNDS for _ in calls]
    for number in range(ROUNDS):
        for which, call in enumerate(calls):
            began = time.process_time()
            call()
            found[which][number] = time.process_time() - began
    return [min(each) for each in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("detections", type=Path, nargs="?")
    path = parser.parse_args().detections
    found = (real(path) if path else drawn()) * COPIES
    counts, heights = pa.array([each for each, _ in found]), pa.array([h for _, (h, _) in found])
    theirs = [{"size": list(size), "counts": each.encode()} for each, size in found]
    same = np.flatnonzero([a[1] == b[1] for a, b in zip(found, found[1:], strict=False)])
    left, right = counts.take(pa.array(same)), counts.take(pa.array(same + 1))
    pairs = [([theirs[i]], [theirs[i + 1]]) for i in same]
    few = range(0, len(found), 255)  # pycocotools 2.0 overflows on more with numpy 2.
    print(
        f"{len(found)} masks of {np.mean([len(each) for each, _ in found]):.0f} characters on average; per CPU second"
    )
    print(f"{'':<6} {'segray':>10} {'pycocotools':>12} {'ratio':>6}")
    for name, count, ours, other in (
        (
            "area",
            len(found),
            lambda: arrow_masks.rle_area(counts),
            lambda: [coco_mask.area(theirs[i : i + 255]) for i in few],
        ),
        ("bbox", len(found), lambda: arrow_masks.rle_bbox(counts, heights), lambda: coco_mask.toBbox(theirs)),
        (
            "iou",
            len(same),
            lambda: arrow_masks.rle_iou(left, right),
            lambda: [coco_mask.iou(a, b, [0]) for a, b in pairs],
        ),
    ):
        mine_s, theirs_s = best_s(ours, other)
        print(f"{name:<6} {count / mine_s:>10,.0f} {count / theirs_s:>12,.0f} {theirs_s / mine_s:>6.1f}")
    sample = found[:2000]
    (decode_s,) = best_s(lambda: [rle.decode(each, size) for each, size in sample])
    print(f"for comparison, pixels of {len(sample) / decode_s:,.0f} masks a second are decoded")


if __name__ == "__main__":
    main()
