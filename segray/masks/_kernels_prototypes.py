"""Compiled loops over prototypes, whose weighted sums are masks, and over boxes of all classes together.

The loops are compiled as those of _kernels.py. This module is separate because few models have prototypes of this kind.
Compiling all loops takes seconds the first time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from segray.masks._kernels import (
    BOOL,
    F32,
    F64,
    I64,
    TAPS,
    compiled,
    pair_of,
    read_only,
    taps_of_range,
    threshold_crossings,
    with_appended,
    written,
)

# ---- anchors --------------------------------------------------------------------------------------


@compiled(written(I64, 1), read_only(F32, 2), I64, F32)
def _columns_over(values: Any, rows: int, floor: float) -> Any:
    """Return the columns that have a value over the floor, or NaN, in rows 4 to rows-1."""
    is_over = np.zeros(values.shape[1], np.uint8)
    for k in range(4, rows):
        line = values[k]
        for a in range(len(line)):
            is_over[a] |= not line[a] <= floor
    columns, n = np.empty(len(is_over), np.int64), 0
    for a in range(len(is_over)):
        if is_over[a]:
            columns[n] = a
            n += 1
    return columns[:n].copy()


@compiled(
    types.Tuple((written(F32, 1), written(I64, 1), written(F32, 2), written(F32, 2), I64)),  # type: ignore[no-untyped-call]
    read_only(F32, 2),
    read_only(F32, 1),
)
def anchors_over(anchors: Any, thresholds: Any) -> Any:
    """Return the anchors whose best class is over the threshold of this class.

    anchors: (4 + classes + m, n) float32: centre, width and height, class scores, m coefficients. thresholds:
    (classes,). Returns scores, indices of the classes, boxes (k, 4) x0, y0, x1, y1, coefficients (k, m), and the number
    of anchors over the lowest threshold that are dropped as not finite. Of equal scores the lowest class counts.
    """
    classes = len(thresholds)
    first_coefficient, floor = 4 + classes, np.float32(np.inf)
    for threshold in thresholds:
        floor = min(floor, threshold)
    columns = _columns_over(anchors, first_coefficient, floor)
    scores, labels = np.empty(len(columns), np.float32), np.empty(len(columns), np.int64)
    boxes_xyxy = np.empty((len(columns), 4), np.float32)
    coefficients = np.empty((len(columns), len(anchors) - first_coefficient), np.float32)
    n, not_finite = 0, 0
    for a in columns:
        is_finite, label = True, 0
        for k in range(len(anchors)):
            is_finite &= np.isfinite(anchors[k, a])
        if not is_finite:
            not_finite += 1
            continue
        for k in range(1, classes):
            if anchors[4 + k, a] > anchors[4 + label, a]:
                label = k
        if not anchors[4 + label, a] > thresholds[label]:
            continue
        half_width, half_height = anchors[2, a] / np.float32(2), anchors[3, a] / np.float32(2)
        boxes_xyxy[n, 0], boxes_xyxy[n, 1] = anchors[0, a] - half_width, anchors[1, a] - half_height
        boxes_xyxy[n, 2], boxes_xyxy[n, 3] = anchors[0, a] + half_width, anchors[1, a] + half_height
        scores[n], labels[n] = anchors[4 + label, a], label
        for k in range(coefficients.shape[1]):
            coefficients[n, k] = anchors[first_coefficient + k, a]
        n += 1
    return scores[:n].copy(), labels[:n].copy(), boxes_xyxy[:n].copy(), coefficients[:n].copy(), not_finite


# ---- masks ----------------------------------------------------------------------------------------


@compiled(written(F32, 2), read_only(F32, 3), read_only(F32, 1), I64, I64, I64, I64)
def combined_planes(planes: Any, weights: Any, x0: int, y0: int, x1: int, y1: int) -> Any:
    """Return the weighted sum of planes in the columns x0 to x1-1 and the rows y0 to y1-1.

    planes: (n, r, c) float32. weights: (n,) float32.
    """
    sums = np.zeros((y1 - y0, x1 - x0), np.float32)
    quads = len(weights) // 4 * 4
    for y in range(y0, y1):
        line = sums[y - y0]
        for k in range(0, quads, 4):  # Four planes at a time: the sums are read and written a quarter as often.
            a, b, c, d = planes[k, y, x0:x1], planes[k + 1, y, x0:x1], planes[k + 2, y, x0:x1], planes[k + 3, y, x0:x1]
            of_a, of_b, of_c, of_d = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
            for x in range(len(line)):
                line[x] += (of_a * a[x] + of_b * b[x]) + (of_c * c[x] + of_d * d[x])
        for k in range(quads, len(weights)):
            a, of_a = planes[k, y, x0:x1], weights[k]
            for x in range(len(line)):
                line[x] += of_a * a[x]
    return sums


@compiled(written(F32, 2), read_only(F32, 2), I64, I64, TAPS, TAPS)
def resized_grid(grid: Any, x0: int, y0: int, rows: Any, columns: Any) -> Any:
    """Return the bilinear resize of a grid, float32.

    x0, y0: first column and row of the grid, in the coordinates that the taps read.
    """
    resized = np.empty((len(rows.low), len(columns.low)), np.float32)
    line = np.empty(grid.shape[1], np.float32)
    for y in range(len(rows.low)):
        above, below, weight = grid[rows.low[y] - y0], grid[rows.high[y] - y0], rows.weight[y]
        for i in range(len(line)):
            line[i] = above[i] + weight * (below[i] - above[i])
        for x in range(len(columns.low)):
            left, right = line[columns.low[x] - x0], line[columns.high[x] - x0]
            resized[y, x] = left + columns.weight[x] * (right - left)
    return resized


@compiled(
    pair_of(written(I64, 1), written(I64, 1)),
    read_only(F32, 3),
    read_only(F32, 2),
    read_only(I64, 2),
    TAPS,
    TAPS,
    TAPS,
    TAPS,
    BOOL,
    I64,
)
def edges_of_combinations(
    planes: Any,
    weights: Any,
    outputs_xyxy: Any,
    grid_rows: Any,
    grid_columns: Any,
    all_rows: Any,
    all_columns: Any,
    is_resized: bool,
    height: int,
) -> Any:
    """Return the edges of all masks; see outlines.edges_of_combinations.

    is_resized: whether the taps of the grid do more than number its rows and columns.
    """
    edges, n, stops = np.empty(1024, np.int64), 0, np.empty(len(weights), np.int64)
    for i in range(len(weights)):
        left, top, right, bottom = outputs_xyxy[i]
        if left < right and top < bottom:
            rows, columns = taps_of_range(all_rows, top, bottom), taps_of_range(all_columns, left, right)
            x0, y0, x1, y1 = columns.low[0], rows.low[0], columns.high[-1] + 1, rows.high[-1] + 1
            across, down = taps_of_range(grid_columns, x0, x1), taps_of_range(grid_rows, y0, y1)
            first_x, first_y = across.low[0], down.low[0]
            grid = combined_planes(planes, weights[i], first_x, first_y, across.high[-1] + 1, down.high[-1] + 1)
            if is_resized:
                grid = resized_grid(grid, first_x, first_y, down, across)
            mask_edges = threshold_crossings(grid, x0, y0, rows, columns, height, np.float32(0))
            edges = with_appended(edges, n, mask_edges)
            n += len(mask_edges)
        stops[i] = n
    return edges[:n].copy(), stops


# ---- suppression ----------------------------------------------------------------------------------


def _greedy_nms_of_all(boxes_xyxy: Any, most: int, max_iou: float) -> Any:
    """Return the rows that greedy suppression across all boxes keeps, at most `most`.

    A row is dropped if its IoU with a kept row exceeds max_iou. The IoU is computed in the dtype of the boxes, and
    compared in float64. boxes_xyxy: (n, 4), by falling score.
    """
    kept, n = np.empty(min(most, len(boxes_xyxy)), np.int64), 0
    for i in range(len(boxes_xyxy)):
        if n == len(kept):
            break
        x0, y0, x1, y1 = boxes_xyxy[i]
        area = (x1 - x0) * (y1 - y0)
        is_kept = True
        for k in range(n):
            a0, b0, a1, b1 = boxes_xyxy[kept[k]]
            width, height = min(x1, a1) - max(x0, a0), min(y1, b1) - max(y0, b0)
            if width > 0 and height > 0:
                shared = width * height
                union = (a1 - a0) * (b1 - b0) + area - shared
                if union == 0 or np.float64(shared / union) > max_iou:
                    is_kept = False
                    break
        if is_kept:
            kept[n] = i
            n += 1
    return kept[:n].copy()


greedy_nms_of_all = compiled(written(I64, 1), read_only(F32, 2), I64, F64)(_greedy_nms_of_all)
greedy_nms_of_all_f64 = compiled(written(I64, 1), read_only(F64, 2), I64, F64)(_greedy_nms_of_all)
