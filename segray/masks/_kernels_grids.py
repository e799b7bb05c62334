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
    I64,
    U8,
    compiled,
    pair_of,
    read_only,
    threshold_crossings,
    with_appended,
    with_more_room,
    written,
)
from segray.masks._kernels_prototypes import combined_planes
from segray.masks.arrays import Taps

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
    """Return one crop of each plane as outlines.crop_logits does, from planes of (n, r, c)."""
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
    """Return the framed crops of n sums of prototypes, each weighted by its coefficients, as outlines.crop_logits does.

    coefficients: (n, k). prototypes: (k, r, c).
    """
    cells, at = np.full(_framed_size(crops), np.float32(frame)), 0
    for i in range(len(crops)):
        x0, y0, x1, y1 = crops[i]
        sums = combined_planes(prototypes, coefficients[i], x0, y0, x1, y1)
        for y in range(y1 - y0):
            at += x1 - x0 + 2
            for x in range(x1 - x0):
                cells[at + 1 + x] = sums[y, x]
        at += 2 * (x1 - x0 + 2)
    return cells


# ---- outlines of masks ----------------------------------------------------------------------------


@compiled(
    pair_of(written(I64, 1), written(I64, 1)),
    *(read_only(F32, 3), read_only(I64, 2), read_only(I64, 2)),
    *(read_only(I64, 1), read_only(I64, 1), read_only(F32, 1)),
    *(read_only(I64, 1), read_only(I64, 1), read_only(F32, 1)),
    I64,
)
def edges_of_tiles(
    frames: Any,
    firsts: Any,
    stops: Any,
    row_low: Any,
    row_high: Any,
    row_weight: Any,
    column_low: Any,
    column_high: Any,
    column_weight: Any,
    height: int,
) -> Any:
    """Return the edges of n masks with taps of their own; see outlines.edges_of_tiles.

    firsts: (n, 2), first output row and column. stops: (n + 1, 2), where the taps of the rows and of the columns end.
    """
    edges, n, ends = np.empty(1024, np.int64), 0, np.empty(len(frames), np.int64)
    for i in range(len(frames)):
        r0, c0 = stops[i]
        r1, c1 = stops[i + 1]
        if r0 < r1 and c0 < c1:
            rows = Taps(firsts[i, 0], row_low[r0:r1], row_high[r0:r1], row_weight[r0:r1])
            columns = Taps(firsts[i, 1], column_low[c0:c1], column_high[c0:c1], column_weight[c0:c1])
            own = threshold_crossings(frames[i], 0, 0, rows, columns, height, np.float32(0.5))
            edges = with_appended(edges, n, own)
            n += len(own)
        ends[i] = n
    return edges[:n].copy(), ends


# A value between two values in _OVER, or two in _UNDER, is on their side of 0.5 with any rounding.
_UNDER, _OVER = np.float32(0.499), np.float32(0.501)


@compiled(F32, F32, F32, F32)
def _between(low: Any, high: Any, weight: Any) -> Any:
    return np.float32(low + np.float32(weight * np.float32(high - low)))


_TWICE = (read_only(I64, 2), read_only(F32, 2))  # cells and weights of one axis; see outlines.TwoResizes


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
    """Return the edges of all crops after two bilinear resizes; see outlines.edges_of_crops_resized_twice.

    outputs_xyxy: (n, 4) int64 x0, y0, x1, y1: the output pixels that read any cell of the crop.
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
        # Output rows from begins[k] on read no cell before k. Output rows before ends[k] read no cell after k.
        begins, ends, k_begin, k_end = np.full(rows, stop_row), np.full(rows, stop_row), 0, 0
        reads = np.empty((4, max(stop_row, 0)), np.int64)  # cells of each output row, counted in the crop
        for y in range(first_row, stop_row):
            for k in range(4):
                reads[k, y] = min(max(row_cells[y, k] - y0 + 1, 0), rows - 1)
            while k_begin <= reads[0, y]:
                begins[k_begin] = y
                k_begin += 1
            while k_end < reads[3, y]:
                ends[k_end] = y
                k_end += 1
        line, side = np.empty(rows, np.float32), np.empty(rows, np.uint8)  # 1: surely under 0.5, 2: over, 0: neither
        for x in range(first_column, stop_column):
            a = grid[min(max(column_cells[x, 0] - x0 + 1, 0), columns - 1)]
            b = grid[min(max(column_cells[x, 1] - x0 + 1, 0), columns - 1)]
            c = grid[min(max(column_cells[x, 2] - x0 + 1, 0), columns - 1)]
            d = grid[min(max(column_cells[x, 3] - x0 + 1, 0), columns - 1)]
            u, v, w = column_weights[x]
            for k in range(rows):
                line[k] = _between(_between(a[k], b[k], u), _between(c[k], d[k], v), w)
            over = 0
            for k in range(rows):
                side[k] = (line[k] < _UNDER) + 2 * (line[k] > _OVER)
                over += side[k] != 1
            if over == 0:
                continue
            if n + stop_row - first_row + 1 > len(edges):
                edges = with_more_room(edges, stop_row - first_row + 1)
            inside, y, k = False, first_row, 0
            while y < stop_row:
                # Output rows same to stop-1 read only cells of one side, and are on that side.
                common, same, stop = np.uint8(0), stop_row, stop_row
                while k < rows and common == 0:
                    start = k
                    while k < rows and side[k] == side[start]:
                        k += 1
                    if side[start] and begins[start] < ends[k - 1]:
                        common, same, stop = side[start], begins[start], ends[k - 1]
                while y < same:
                    upper = _between(line[reads[0, y]], line[reads[1, y]], row_weights[y, 0])
                    lower = _between(line[reads[2, y]], line[reads[3, y]], row_weights[y, 1])
                    if (_between(upper, lower, row_weights[y, 2]) > 0.5) != inside:
                        edges[n] = x * height + y
                        n += 1
                        inside = not inside
                    y += 1
                if common and (common == 2) != inside:
                    edges[n] = x * height + same
                    n += 1
                    inside = not inside
                y = stop
            if inside:
                edges[n] = x * height + stop_row
                n += 1
        stops[i] = n
    return edges[:n].copy(), stops
