"""Compiled loops over matched detections: average precision of many samples of images.

The loops are compiled as those of _kernels.py. This module is separate because no worker needs these loops.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from segray.masks._kernels import F64, I32, I64, U64, compiled, read_only, written


@compiled(
    types.void,
    *(read_only(I32, 1), read_only(U64, 1), read_only(U64, 1), I64, I64),
    *(read_only(I32, 2), read_only(I64, 1), read_only(F64, 1), written(F64, 2)),
)
def average_precision(
    images: Any,
    matched: Any,
    ignored: Any,
    first_bit: int,
    thresholds: int,
    weights: Any,
    objects: Any,
    recalls: Any,
    precision: Any,
) -> None:
    """Write the average precision of one class in each sample of images, at each IoU threshold.

    images: (n,) index of the image of each detection, by falling score. matched, ignored: (n,) bits as those of
    coco_eval.MatchBits, from first_bit on. weights: (samples, images) how often a sample has an image. objects:
    (samples,) of the class, above 0. precision: (samples, thresholds), written.
    """
    levels = len(recalls)
    needed = np.full(levels + 1, np.iinfo(np.int64).max, np.int64)
    # The best precision at each recall, as a fraction: a comparison of products is faster than a division.
    numerator = np.empty((thresholds, levels + 1), np.int64)
    denominator = np.empty((thresholds, levels + 1), np.int64)
    right, skipped, level = np.empty((3, thresholds), np.int64)
    for sample in range(len(weights)):
        weight_of = weights[sample]
        numerator[:] = 0
        denominator[:] = 1
        right[:] = 0
        skipped[:] = 0
        level[:] = 0
        for at in range(levels):  # the hits that reach each recall, by the division that COCOeval makes
            hits_at = np.int64(recalls[at] * objects[sample])
            while hits_at / objects[sample] < recalls[at]:
                hits_at += 1
            while hits_at > 0 and (hits_at - 1) / objects[sample] >= recalls[at]:
                hits_at -= 1
            needed[at] = hits_at
        total = np.int64(0)
        for d in range(len(images)):
            weight = np.int64(weight_of[images[d]])
            if weight == 0:
                continue
            total += weight
            unsure = ignored[d] >> np.uint64(first_bit)
            hits = (matched[d] >> np.uint64(first_bit)) & ~unsure
            for t in range(thresholds):
                if unsure == 0:
                    break
                if unsure & np.uint64(1):
                    skipped[t] += weight
                unsure >>= np.uint64(1)
            for t in range(thresholds):
                if hits == 0:
                    break
                if hits & np.uint64(1):
                    right[t] += weight
                    at = level[t]
                    while needed[at] <= right[t]:
                        at += 1
                    level[t] = at
                    counted = total - skipped[t]
                    if right[t] * denominator[t, at] > numerator[t, at] * counted:
                        numerator[t, at], denominator[t, at] = right[t], counted
                hits >>= np.uint64(1)
        for t in range(thresholds):
            summed, highest = 0.0, 0.0
            for at in range(levels, 0, -1):
                highest = max(highest, numerator[t, at] / denominator[t, at])
                summed += highest
            precision[sample, t] = summed / levels
