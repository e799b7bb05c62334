"""Compiled loops over pixels, priors and runs. The loops release Python's global lock.

This module knows arrays and arithmetic. The callers (geometry, rle, adapters/yolact) say what the arrays mean.
Each function is compiled for its one stated signature when this module is first imported, which takes seconds.
Numba keeps the result beside the source or in NUMBA_CACHE_DIR, and loads the result in milliseconds.
The loops avoid array functions that sort, search or join: Numba takes a second and more to compile one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types

from segray.masks.arrays import FRACTION_BITS, Taps

I64, I32, U8, F32, BOOL = types.int64, types.int32, types.uint8, types.float32, types.boolean
F64, U64 = types.float64, types.uint64


def read_only(kind: Any, dimensions: int) -> Any:
    """Return the type of a C-contiguous array that is only read."""
    return types.Array(kind, dimensions, "C", readonly=True)


def written(kind: Any, dimensions: int) -> Any:
    """Return the type of a C-contiguous array that is written or returned."""
    return types.Array(kind, dimensions, "C")


def pair_of(one: Any, other: Any) -> Any:
    """Return the type of a pair of results."""
    return types.Tuple((one, other))  # type: ignore[no-untyped-call]


def named_tuple_of(kind: type, *fields: Any) -> Any:
    """Return the type of a NamedTuple with these fields."""
    return types.NamedTuple(fields, kind)  # type: ignore[no-untyped-call]


def compiled(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that compiles a function now, for these types alone.

    Integers wrap. Floats round as numpy's do, without fused operations.
    """

    def compile_now(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            kernel = njit(result(*arguments), nogil=True, cache=True)(function)
        except (OSError, RuntimeError):  # The cache folder is missing, read-only or full.
            kernel = njit(result(*arguments), nogil=True)(function)
        return kernel  # type: ignore[no-any-return]

    return compile_now


# ---- resize ---------------------------------------------------------------------------------------


@compiled(types.void, read_only(U8, 2), read_only(I64, 1), read_only(I64, 1), read_only(I32, 2), I64, written(U8, 2))
def resample(lines: Any, first: Any, taps: Any, weights: Any, step: int, resampled: Any) -> None:
    """Write weighted sums of lines into `resampled`.

    Output line x * step + c sums the lines (first[x] + t) * step + c with t < taps[x].
    weights: (outputs, most taps) int32, fixed point with FRACTION_BITS; each row sums to 1.

    Two and three lines, as a picture of about the same size has, are summed in registers.
    """
    length = lines.shape[1]
    total = np.empty(length, np.int32)
    half = np.int32(1 << (FRACTION_BITS - 1))
    # Without the casts Numba computes in 64 bits, half as fast.
    for x in range(len(first)):
        n, of_a, of_b, of_d = taps[x], weights[x, 0], np.int32(0), np.int32(0)
        if n > 1:
            of_b = weights[x, 1]
        if n > 2:
            of_d = weights[x, 2]
        for c in range(step):
            at, line = first[x] * step + c, resampled[x * step + c]
            if n == 2:
                a, b = lines[at], lines[at + step]
                for i in range(length):
                    products = np.int32(np.int32(np.int32(a[i]) * of_a) + np.int32(np.int32(b[i]) * of_b))
                    line[i] = np.uint8(np.int32(half + products) >> FRACTION_BITS)
            elif n == 3:
                a, b, d = lines[at], lines[at + step], lines[at + 2 * step]
                for i in range(length):
                    products = np.int32(np.int32(np.int32(a[i]) * of_a) + np.int32(np.int32(b[i]) * of_b))
                    products = np.int32(products + np.int32(np.int32(d[i]) * of_d))
                    line[i] = np.uint8(np.int32(half + products) >> FRACTION_BITS)
            else:
                total[:] = half
                for t in range(n):
                    weight, source = weights[x, t], lines[at + t * step]
                    for i in range(length):
                        total[i] = np.int32(total[i] + np.int32(np.int32(source[i]) * weight))
                for i in range(length):
                    line[i] = np.uint8(total[i] >> FRACTION_BITS)


# ---- outlines -------------------------------------------------------------------------------------


@compiled(F32, F32, F32, F32)
def _interpolated(low: Any, high: Any, weight: Any) -> Any:
    """Return low + weight * (high - low) as a float32 fused multiply-add: the product is not rounded before the sum."""
    return np.float32(np.float64(low) + np.float64(np.float32(high - low)) * np.float64(weight))


@compiled(written(I64, 1), read_only(I64, 1), I64)
def with_more_room(values: Any, room: int) -> Any:
    """Return a copy of the values, with a length of twice the values and the room together."""
    longer = np.empty(2 * (len(values) + room), np.int64)
    for i in range(len(values)):
        longer[i] = values[i]
    return longer


@compiled(written(I64, 1), written(I64, 1), I64, written(I64, 1))
def with_appended(values: Any, n: int, more: Any) -> Any:
    """Return the first n values with more values behind them, in the same array if it has the room."""
    if n + len(more) > len(values):
        values = with_more_room(values, len(more))
    for k in range(len(more)):
        values[n + k] = more[k]
    return values


# A value between two values that lie on one side of a threshold of 0 or 0.5, _MARGIN to _REACH away from it, is on that
# side with any rounding: the rounded difference of the two is wrong by 2**-24 of it, 0.0006 at most.
_MARGIN, _REACH = np.float32(0.001), np.float32(10_000)
TAPS = named_tuple_of(Taps, I64, read_only(I64, 1), read_only(I64, 1), read_only(F32, 1))


@compiled(written(I64, 1), read_only(F32, 2), I64, I64, TAPS, TAPS, I64, F32)
def threshold_crossings(grid: Any, x0: int, y0: int, rows: Any, columns: Any, height: int, threshold: float) -> Any:
    """Return the edges of one mask; see outlines.mask_edges.

    x0, y0: first column and row of the grid, in the coordinates that the taps read. threshold: 0 or 0.5.
    """
    under_from, under_to = np.float32(threshold - _REACH), np.float32(threshold - _MARGIN)
    over_from, over_to = np.float32(threshold + _MARGIN), np.float32(threshold + _REACH)
    # Cell k holds the output rows bounds[k] to bounds[k + 1] - 1, which lie between the same two grid rows.
    row_low, row_weight = rows.low, rows.weight
    bounds, above, below = np.empty((3, len(row_low) + 1), np.int64)
    cells = 0
    for y in range(len(row_low)):
        if y == 0 or row_low[y] != row_low[y - 1]:
            bounds[cells], above[cells], below[cells] = y, row_low[y] - y0, rows.high[y] - y0
            cells += 1
    bounds[cells] = len(row_low)
    transposed = np.empty((grid.shape[1], grid.shape[0]), np.float32)
    for i in range(grid.shape[0]):
        for j in range(grid.shape[1]):
            transposed[j, i] = grid[i, j]
    edges, n = np.empty(256, np.int64), 0
    line, side = np.empty(len(grid), np.float32), np.empty(len(grid), np.uint8)  # 1: under, 2: over, 0: neither
    for x in range(len(columns.low)):
        left, right, weight = transposed[columns.low[x] - x0], transposed[columns.high[x] - x0], columns.weight[x]
        for i in range(len(line)):
            value = _interpolated(left[i], right[i], weight)
            line[i] = value
            under, over = (under_from < value) & (value < under_to), (over_from < value) & (value < over_to)
            side[i] = under + 2 * over
        top = (columns.first + x) * height + rows.first
        inside = False
        if n + 2 * cells + 1 > len(edges):
            edges = with_more_room(edges, 2 * cells + 1)
        for k in range(cells):
            if side[above[k]] & side[below[k]] & (1 + inside):
                continue
            low, high = line[above[k]], line[below[k]]
            start, last = bounds[k], bounds[k + 1] - 1
            begins = _interpolated(low, high, row_weight[start]) > threshold
            ends = _interpolated(low, high, row_weight[last]) > threshold
            if begins != inside:
                edges[n] = top + start
                n += 1
            if ends != begins:
                # A straight line crosses at the right row or next to it.
                crossing = (np.float64(threshold) - low) / (high - low)
                share = (crossing - row_weight[start]) / (row_weight[last] - row_weight[start])
                at = min(max(start + int(share * (last - start)), start + 1), last)
                while (_interpolated(low, high, row_weight[at]) > threshold) != ends:
                    at += 1
                while at - 1 > start and (_interpolated(low, high, row_weight[at - 1]) > threshold) == ends:
                    at -= 1
                edges[n] = top + at
                n += 1
            inside = ends
        if inside:
            edges[n] = top + len(row_low)
            n += 1
    return edges[:n].copy()


@compiled(written(F32, 1), read_only(F32, 3), read_only(I64, 2), F32)
def crop_logits(planes: Any, crops: Any, frame: float) -> Any:
    """Return the framed crops of all planes; see outlines.crop_logits."""
    size = 0
    for x0, y0, x1, y1 in crops:
        size += (y1 - y0 + 2) * (x1 - x0 + 2)
    cells, at = np.full(size, np.float32(frame)), 0
    for i in range(len(crops)):
        x0, y0, x1, y1 = crops[i]
        for y in range(y0, y1):
            at += x1 - x0 + 2
            for x in range(x0, x1):
                cells[at + 1 + x - x0] = planes[y, x, i]
        at += 2 * (x1 - x0 + 2)
    return cells


@compiled(TAPS, TAPS, I64, I64)
def taps_of_range(taps: Any, start: int, stop: int) -> Any:
    """Return the taps of the output pixels start to stop-1."""
    return Taps(start, taps.low[start:stop], taps.high[start:stop], taps.weight[start:stop])


@compiled(
    pair_of(written(I64, 1), written(I64, 1)),
    read_only(F32, 1),
    read_only(I64, 2),
    read_only(I64, 2),
    TAPS,
    TAPS,
    I64,
    F32,
)
def edges_of_crops(
    cells: Any, crops: Any, outputs_xyxy: Any, all_rows: Any, all_columns: Any, height: int, threshold: float
) -> Any:
    """Return the edges of all crops; see outlines.edges_of_crops.

    outputs_xyxy: (n, 4) int64 x0, y0, x1, y1: the output pixels that read any cell of the crop. threshold: 0 or 0.5.
    """
    edges, n, stops, first_cell = np.empty(1024, np.int64), 0, np.empty(len(crops), np.int64), 0
    for i in range(len(crops)):
        x0, y0, x1, y1 = crops[i]
        rows, columns = y1 - y0 + 2, x1 - x0 + 2
        grid = cells[first_cell : first_cell + rows * columns].reshape(rows, columns)
        first_cell += rows * columns
        left, top, right, bottom = outputs_xyxy[i]
        if left < right and top < bottom:
            crop_edges = threshold_crossings(
                grid,
                x0 - 1,
                y0 - 1,
                taps_of_range(all_rows, top, bottom),
                taps_of_range(all_columns, left, right),
                height,
                threshold,
            )
            edges = with_appended(edges, n, crop_edges)
            n += len(crop_edges)
        stops[i] = n
    return edges[:n].copy(), stops


# ---- run lengths ----------------------------------------------------------------------------------


@compiled(written(U8, 1), read_only(I64, 1), I64)
def encode_counts(edges: Any, total: int) -> Any:
    """Return the counts as ASCII codes, uint8; see rle.from_edges."""
    bounds, n = np.empty(len(edges) + 1, np.int64), 0
    i = 0
    while i < len(edges):
        if i + 1 < len(edges) and edges[i] == edges[i + 1]:
            i += 2
        else:
            bounds[n] = edges[i]
            n += 1
            i += 1
    if n == 0 or bounds[n - 1] != total:
        bounds[n] = total
        n += 1
    text, used = np.empty(13 * n, np.uint8), 0
    for j in range(n):
        value = bounds[j] - (bounds[j - 1] if j > 0 else 0)
        if j > 2:
            value -= bounds[j - 2] - bounds[j - 3]
        more: Any = True
        while more:
            group = value & 31
            value >>= 5
            more = value != -1 if group & 16 else value != 0
            text[used] = group + 48 + (32 if more else 0)
            used += 1
    return text[:used].copy()


@compiled(pair_of(written(U8, 1), written(I64, 1)), read_only(I64, 1), read_only(I64, 1), I64)
def encode_counts_of_all(edges: Any, stops: Any, total: int) -> Any:
    """Return the counts of all masks one after the other, and the end of each; see rle.from_edges_of_all."""
    text, used, ends = np.empty(13 * (len(edges) + len(stops)), np.uint8), 0, np.empty(len(stops), np.int64)
    for i in range(len(stops)):
        counts = encode_counts(edges[0 if i == 0 else stops[i - 1] : stops[i]], total)
        for k in range(len(counts)):
            text[used + k] = counts[k]
        used += len(counts)
        ends[i] = used
    return text[:used].copy(), ends


MASKS = (read_only(U8, 1), read_only(I64, 1), read_only(I64, 1))  # the fields of arrays.EncodedMasks, one by one


@compiled(I64, read_only(U8, 1), I64, I64, I64, written(I64, 1))
def write_run_ends(text: Any, at: int, stop: int, most_groups: int, edges: Any) -> Any:
    """Write the end of each run of one mask. Return the number of runs, or -1 if the counts are malformed.

    edges: int64, at least as long as the counts.
    """
    n, total, previous, before_previous = 0, np.int64(0), np.int64(0), np.int64(0)
    if at >= stop:
        return -1
    while at < stop:
        code = np.int64(text[at]) - 48
        at += 1
        if code < 0 or code > 63:
            return -1
        value = code & 31
        shift = 5
        while code >= 32:
            if at == stop or shift == 5 * most_groups:
                return -1
            code = np.int64(text[at]) - 48
            at += 1
            if code < 0 or code > 63:
                return -1
            value |= (code & 31) << shift
            shift += 5
        if code & 16:
            value -= np.int64(1) << shift
        if n > 2:
            value += before_previous
        if value < 0:
            return -1
        before_previous, previous = previous, value
        total += value
        edges[n] = total
        n += 1
    return n


@compiled(I64, read_only(I64, 1), I64)
def area_of(edges: Any, n: int) -> Any:
    """Return the set pixels of a mask with n runs. edges: the end of each run, as `write_run_ends` writes them."""
    area = np.int64(0)
    for k in range(1, n, 2):
        area += edges[k] - edges[k - 1]
    return area


@compiled(I64, read_only(I64, 1), read_only(I64, 1))
def longest(starts: Any, stops: Any) -> Any:
    """Return the length of the longest counts, at least 1."""
    longest = np.int64(1)
    for i in range(len(starts)):
        longest = max(longest, stops[i] - starts[i])
    return longest


@compiled(written(I64, 2), *MASKS, I64)
def areas(text: Any, starts: Any, stops: Any, most_groups: int) -> Any:
    """Return (n, 2) int64: the set pixels of each mask, and the pixels that its counts cover.

    The set pixels are -1 for malformed counts.
    """
    counted = np.empty((len(starts), 2), np.int64)
    edges = np.empty(longest(starts, stops), np.int64)
    for i in range(len(starts)):
        n = write_run_ends(text, starts[i], stops[i], most_groups, edges)
        counted[i, 0] = area_of(edges, n) if n > 0 else -1
        counted[i, 1] = edges[n - 1] if n > 0 else 0
    return counted


# ---- suppression ----------------------------------------------------------------------------------


@compiled(written(BOOL, 1), read_only(F32, 2), F32, F32)
def rows_above(values: Any, floor: float, enough: float) -> Any:
    """Return, for each row, whether a value after the first is greater than the floor or NaN.

    values: (n, m) float32. enough: a row whose first value is at least this is not above, whatever its others are; NaN
    to look at all rows.
    """
    is_above = np.empty(len(values), np.bool_)
    for i in range(len(values)):
        hits = 0
        if values[i, 0] >= enough:
            is_above[i] = False
            continue
        for j in range(1, values.shape[1]):
            hits += not values[i, j] <= floor
        is_above[i] = hits > 0
    return is_above


@compiled(written(I64, 1), read_only(F32, 2), read_only(I64, 1), read_only(I64, 1), I64, F32)
def greedy_nms(boxes_xyxy: Any, rows: Any, classes: Any, most: int, max_iou: float) -> Any:
    """Return the positions in `rows` that greedy suppression keeps, at most `most` for each class.

    A row is kept if its IoU with each kept row of its class is at most max_iou.
    boxes_xyxy: (n, 4) float32. rows: indices into the boxes, class after class, by falling score in each class.
    classes: the class of each entry of `rows`.
    """
    kept, n, first_of_class = np.empty(len(rows), np.int64), 0, 0
    for at in range(len(rows)):
        if at == 0 or classes[at] != classes[at - 1]:
            first_of_class = n
        if n - first_of_class == most:
            continue
        x0, y0, x1, y1 = boxes_xyxy[rows[at]]
        area = (x1 - x0) * (y1 - y0)
        is_kept = True
        for k in kept[first_of_class:n]:
            a0, b0, a1, b1 = boxes_xyxy[rows[k]]
            width = max(min(x1, a1) - max(x0, a0), np.float32(0))
            shared = width * max(min(y1, b1) - max(y0, b0), np.float32(0))
            union = (a1 - a0) * (b1 - b0) + area - shared
            ratio = shared / union if union != 0 else np.float32(0)
            if not ratio <= max_iou:
                is_kept = False
                break
        if is_kept:
            kept[n] = at
            n += 1
    return kept[:n].copy()
