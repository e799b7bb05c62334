"""Compiled loops over images and whole-image mask grids of models that describe themselves.

The loops are compiled as those of _kernels.py. This module is separate because few models need these loops. Compiling
all loops takes seconds the first time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from segray.masks._kernels import (
    F32,
    F64,
    I64,
    U8,
    _with_more_room,
    compiled,
    pair_of,
    read_only,
    written,
)

# Adding and subtracting this number rounds a float32 below 2**22 to an integer, half to even.
_TO_INTEGER = np.float32(1.5 * 2**23)

# ---- resize ---------------------------------------------------------------------------------------


@compiled(
    types.void,
    read_only(U8, 2),
    *(read_only(I64, 1), read_only(F32, 2)),
    *(read_only(I64, 1), read_only(F32, 2)),
    I64,
    written(U8, 2),
)
def resize_linear(
    lines: Any, rows: Any, row_weights: Any, columns: Any, column_weights: Any, channels: int, resized: Any
) -> None:
    """Write the bilinear resize of an image; see geometry.resize_exact.

    lines, resized: (h, w * channels). rows, columns: the lower of the two source pixels of each output pixel. The
    other pixel is the next one, or the same one at the edge. Weights: (n, 2), of both pixels.
    """
    last_row, last_column = len(lines) - 1, lines.shape[1] // channels - 1
    length = len(columns) * channels
    upper, lower = np.empty(length, np.float32), np.empty(length, np.float32)
    upper_row, lower_row = np.int64(-1), np.int64(-1)
    for y in range(len(rows)):
        top, bottom = rows[y], min(rows[y] + 1, last_row)
        if top == lower_row:
            upper, lower = lower, upper
            upper_row, lower_row = lower_row, upper_row
        for is_lower in range(2):
            row = bottom if is_lower else top
            if row == (lower_row if is_lower else upper_row):
                continue
            line, blend = lines[row], lower if is_lower else upper
            for x in range(len(columns)):
                left, right = columns[x] * channels, min(columns[x] + 1, last_column) * channels
                near, far = np.float64(column_weights[x, 0]), column_weights[x, 1]
                for c in range(channels):
                    rest = np.float32(np.float32(line[right + c]) * far)
                    blend[x * channels + c] = np.float32(np.float64(line[left + c]) * near + np.float64(rest))
        upper_row, lower_row = top, bottom
        first, second, target = row_weights[y, 0], np.float64(row_weights[y, 1]), resized[y]
        for i in range(length):
            rest = np.float32(upper[i] * first)
            value = np.float32(np.float64(lower[i]) * second + np.float64(rest))
            target[i] = np.uint8(np.int32(np.float32(np.float32(value + _TO_INTEGER) - _TO_INTEGER)))


# ---- grids ----------------------------------------------------------------------------------------


@compiled(written(I64, 2), read_only(F32, 3), F32)
def boxes_over(planes: Any, threshold: float) -> Any:
    """Return the box of the cells over the threshold in each plane, (n, 4) int64 x0, y0, x1, y1; 0 if there is none.

    planes: (n, r, c). x1 and y1 are exclusive.
    """
    boxes = np.zeros((len(planes), 4), np.int64)
    rows, columns = planes.shape[1], planes.shape[2]
    is_over = np.empty(columns, np.bool_)
    for i in range(len(planes)):
        top, bottom = rows, 0
        is_over[:] = False
        for y in range(rows):
            line, hits = planes[i, y], 0
            for x in range(columns):
                over = line[x] > threshold
                is_over[x] |= over
                hits += over
            if hits:
                top, bottom = min(top, y), y + 1
        if bottom == 0:
            continue
        left, right = columns, 0
        for x in range(columns):
            if is_over[x]:
                left, right = min(left, x), x + 1
        boxes[i, 0], boxes[i, 1], boxes[i, 2], boxes[i, 3] = left, top, right, bottom
    return boxes


@compiled(I64, read_only(I64, 2))
def _framed_size(crops: Any) -> Any:
    """Return the number of cells of all crops with a frame of one cell."""
    size = np.int64(0)
    for x0, y0, x1, y1 in crops:
        size += (y1 - y0 + 2) * (x1 - x0 + 2)
    return size


@compiled(written(F32, 1), read_only(F32, 3), read_only(I64, 2), F32)
def crops_of_planes(planes: Any, crops: Any, frame: float) -> Any:
    """Return one crop of each plane as geometry.crop_logits does, from planes of (n, r, c)."""
    cells, at = np.full(_framed_size(crops), np.float32(frame)), 0
    for i in range(len(crops)):
        x0, y0, x1, y1 = crops[i]
        for y in range(y0, y1):
            at += x1 - x0 + 2
            for x in range(x0, x1):
                cells[at + 1 + x - x0] = planes[i, y, x]
        at += 2 * (x1 - x0 + 2)
    return cells


@compiled(written(F32, 1), read_only(F32, 2), read_only(F32, 3), read_only(I64, 2), F32)
def crops_of_sums(coefficients: Any, prototypes: Any, crops: Any, frame: float) -> Any:
    """Return the framed crops of n sums of prototypes, each weighted by its coefficients, as geometry.crop_logits does.

    coefficients: (n, k). prototypes: (k, r, c).
    """
    cells, at = np.full(_framed_size(crops), np.float32(frame)), 0
    total = np.empty(prototypes.shape[2], np.float32)
    for i in range(len(crops)):
        x0, y0, x1, y1 = crops[i]
        for y in range(y0, y1):
            at += x1 - x0 + 2
            total[: x1 - x0] = 0
            for k in range(len(prototypes)):
                weight, line = coefficients[i, k], prototypes[k, y, x0:x1]
                for x in range(x1 - x0):
                    total[x] += weight * line[x]
            for x in range(x1 - x0):
                cells[at + 1 + x] = total[x]
        at += 2 * (x1 - x0 + 2)
    return cells


# ---- outlines after two resizes -------------------------------------------------------------------


@compiled(F32, F32, F32, F32)
def _between(low: Any, high: Any, weight: Any) -> Any:
    return np.float32(low + np.float32(weight * np.float32(high - low)))


_TWICE = (read_only(I64, 2), read_only(F32, 2))  # cells and weights of one axis; see `edges_of_crops_resized_twice`


@compiled(
    pair_of(written(I64, 1), written(I64, 1)),
    *(read_only(F32, 1), read_only(I64, 2), read_only(I64, 2)),
    *(*_TWICE, *_TWICE, I64),
)
def edges_of_crops_resized_twice(
    cells: Any,
    crops: Any,
    outputs_xyxy: Any,
    row_cells: Any,
    row_weights: Any,
    column_cells: Any,
    column_weights: Any,
    height: int,
) -> Any:
    """Return the edges of all crops after two bilinear resizes; see geometry.edges_of_crops_resized_twice.

    outputs_xyxy: (n, 4) int64 x0, y0, x1, y1: the output pixels that read any cell of the crop.
    row_cells, column_cells: (output pixels, 4): the two cells of the first pixel in between, and those of the second.
    row_weights, column_weights: (output pixels, 3): of the second cell in both pairs, and of the second pixel.
    """
    edges, n, stops, at = np.empty(1024, np.int64), 0, np.empty(len(crops), np.int64), 0
    for i in range(len(crops)):
        x0, y0, x1, y1 = crops[i]
        rows, columns = y1 - y0 + 2, x1 - x0 + 2
        first_column, first_row, stop_column, stop_row = outputs_xyxy[i]
        grid = np.empty((columns, rows), np.float32)  # transposed
        for y in range(rows):
            for x in range(columns):
                grid[x, y] = cells[at + y * columns + x]
        at += rows * columns
        # Group k holds the output rows bounds[k] to bounds[k + 1] - 1, which read the same cells above[k] to below[k].
        bounds, above, below = np.empty((3, max(stop_row - first_row, 0) + 1), np.int64)
        groups = 0
        for y in range(first_row, stop_row):
            low, high = max(row_cells[y, 0] - y0 + 1, 0), min(row_cells[y, 3] - y0 + 1, rows - 1)
            if groups == 0 or low != above[groups - 1] or high != below[groups - 1]:
                bounds[groups], above[groups], below[groups] = y, low, high
                groups += 1
        bounds[groups] = stop_row
        line, side = np.empty(rows, np.float32), np.empty(rows, np.uint8)  # side 1: surely under 0.5, 2: surely over
        for x in range(first_column, stop_column):
            a = grid[min(max(column_cells[x, 0] - x0 + 1, 0), columns - 1)]
            b = grid[min(max(column_cells[x, 1] - x0 + 1, 0), columns - 1)]
            c = grid[min(max(column_cells[x, 2] - x0 + 1, 0), columns - 1)]
            d = grid[min(max(column_cells[x, 3] - x0 + 1, 0), columns - 1)]
            u, v, w = column_weights[x]
            over = 0
            for y in range(rows):
                value = _between(_between(a[y], b[y], u), _between(c[y], d[y], v), w)
                line[y] = value
                side[y] = (value < np.float32(0.499)) + 2 * (value > np.float32(0.501))
                over += side[y] != 1
            if over == 0:
                continue
            if n + stop_row - first_row + 1 > len(edges):
                edges = _with_more_room(edges, stop_row - first_row + 1)
            inside = False
            for k in range(groups):
                common = side[above[k]]
                for y in range(above[k] + 1, below[k] + 1):
                    common &= side[y]
                if common & (1 + inside):
                    continue
                for y in range(bounds[k], bounds[k + 1]):
                    e, f, g, h = row_cells[y]
                    upper = _between(
                        line[min(max(e - y0 + 1, 0), rows - 1)],
                        line[min(max(f - y0 + 1, 0), rows - 1)],
                        row_weights[y, 0],
                    )
                    lower = _between(
                        line[min(max(g - y0 + 1, 0), rows - 1)],
                        line[min(max(h - y0 + 1, 0), rows - 1)],
                        row_weights[y, 1],
                    )
                    if (_between(upper, lower, row_weights[y, 2]) > 0.5) != inside:
                        edges[n] = x * height + y
                        n += 1
                        inside = not inside
            if inside:
                edges[n] = x * height + stop_row
                n += 1
        stops[i] = n
    return edges[:n].copy(), stops


# ---- suppression ----------------------------------------------------------------------------------


def _kept(boxes_xyxy: Any, order: Any, max_iou: float) -> Any:
    """Return the rows of `order` that greedy suppression keeps, in that order.

    A row is kept if its IoU with each kept row is at most max_iou. The arithmetic has the dtype of the boxes, the
    comparison has float64. boxes_xyxy: (n, 4). order: row indices, best first.
    """
    kept, n = np.empty(len(order), np.int64), 0
    for row in order:
        x0, y0, x1, y1 = boxes_xyxy[row]
        area = (x1 - x0) * (y1 - y0)
        is_kept = True
        for k in kept[:n]:
            a0, b0, a1, b1 = boxes_xyxy[k]
            width, height = min(x1, a1) - max(x0, a0), min(y1, b1) - max(y0, b0)
            if width > 0 and height > 0:
                shared = width * height
                union = (a1 - a0) * (b1 - b0) + area - shared
                if not np.float64(shared / union) <= max_iou:
                    is_kept = False
                    break
        if is_kept:
            kept[n] = row
            n += 1
    return kept[:n].copy()


kept_rows_f32 = compiled(written(I64, 1), read_only(F32, 2), read_only(I64, 1), F64)(_kept)
kept_rows_f64 = compiled(written(I64, 1), read_only(F64, 2), read_only(I64, 1), F64)(_kept)
