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

from segray.masks.arrays import Taps

I64, I32, U8, F32, BOOL = types.int64, types.int32, types.uint8, types.float32, types.boolean
F64, U64 = types.float64, types.uint64


def read_only(kind: Any, dimensions: int) -> Any:
    """Return the type of a C-contiguous array that is only read."""
    return types.Array(kind, dimensions, "C", readonly=True)


def written(kind: Any, dimensions: int) -> Any:
    """Return the type of a C-contiguous array that is written or returned."""
    return types.Array(kind, dimensions, "C")


def both(one: Any, other: Any) -> Any:
    """Return the type of a pair of results."""
    return types.Tuple((one, other))  # type: ignore[no-untyped-call]


def together(kind: type, *fields: Any) -> Any:
    """Return the type of a NamedTuple with these fields."""
    return types.NamedTuple(fields, kind)  # type: ignore[no-untyped-call]


def compiled(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that compiles a function now, for these types alone.

    Integers wrap. Floats round as numpy's do, without fused operations.
    """

    def made_now(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            made = njit(result(*arguments), nogil=True, cache=True)(function)
        except (OSError, RuntimeError):  # The cache folder is missing, read-only or full.
            made = njit(result(*arguments), nogil=True)(function)
        return made  # type: ignore[no-any-return]

    return made_now


# ---- resize ---------------------------------------------------------------------------------------


@compiled(
    types.void, read_only(U8, 2), read_only(I64, 1), read_only(I64, 1), read_only(I32, 2), I64, I64, written(U8, 2)
)
def resample(lines: Any, first: Any, taps: Any, weights: Any, bits: int, step: int, resampled: Any) -> None:
    """Write weighted sums of lines into `resampled`.

    Output line x * step + c sums the lines (first[x] + t) * step + c with t < taps[x].
    weights: (outputs, most taps) int32, fixed point with `bits` fraction bits; each row sums to 1.
    """
    length = lines.shape[1]
    total = np.empty(length, np.int32)
    for x in range(len(first)):
        for c in range(step):
            total[:] = np.int32(1) << (bits - 1)
            for t in range(taps[x]):
                weight, line = weights[x, t], lines[(first[x] + t) * step + c]
                for i in range(length):
                    # Without the casts Numba computes in 64 bits, half as fast.
                    total[i] = np.int32(total[i] + np.int32(np.int32(line[i]) * weight))
            line = resampled[x * step + c]
            for i in range(length):
                line[i] = np.uint8(total[i] >> bits)


# ---- outlines -------------------------------------------------------------------------------------


@compiled(F32, F32, F32, F32)
def _between(low: Any, high: Any, weight: Any) -> Any:
    """Return low + weight * (high - low) as a float32 fused multiply-add: the product is not rounded before the sum."""
    return np.float32(np.float64(low) + np.float64(np.float32(high - low)) * np.float64(weight))


@compiled(written(I64, 1), read_only(I64, 1), I64)
def _grown(values: Any, room: int) -> Any:
    """Return a copy of the values, with a length of twice the values and the room together."""
    longer = np.empty(2 * (len(values) + room), np.int64)
    for i in range(len(values)):
        longer[i] = values[i]
    return longer


# A value between two values in _OVER, or two in _UNDER, is on their side of 0.5 with any rounding.
_UNDER, _OVER = (-1.0, 0.499), (0.501, 2.0)
_TAPS = together(Taps, I64, read_only(I64, 1), read_only(I64, 1), read_only(F32, 1))


@compiled(written(I64, 1), read_only(F32, 2), I64, I64, _TAPS, _TAPS, I64)
def edges(grid: Any, x0: int, y0: int, rows: Any, columns: Any, height: int) -> Any:
    """Return the edges of one mask; see geometry.mask_edges.

    x0, y0: first column and row of the grid, in the coordinates that the taps read.
    """
    # Cell k holds the output rows bounds[k] to bounds[k + 1] - 1, which lie between the same two grid rows.
    row_low, row_weight = rows.low, rows.weight
    bounds, above, below = np.empty((3, len(row_low) + 1), np.int64)
    cells = 0
    for y in range(len(row_low)):
        if y == 0 or row_low[y] != row_low[y - 1]:
            bounds[cells], above[cells], below[cells] = y, row_low[y] - y0, rows.high[y] - y0
            cells += 1
    bounds[cells] = len(row_low)
    across = np.empty((grid.shape[1], grid.shape[0]), np.float32)
    for i in range(grid.shape[0]):
        for j in range(grid.shape[1]):
            across[j, i] = grid[i, j]
    found, n = np.empty(256, np.int64), 0
    line, surely = np.empty(len(grid), np.float32), np.empty(len(grid), np.uint8)  # 1: under 0.5, 2: over, 0: neither
    for x in range(len(columns.low)):
        left, right, weight = across[columns.low[x] - x0], across[columns.high[x] - x0], columns.weight[x]
        for i in range(len(line)):
            value = _between(left[i], right[i], weight)
            line[i] = value
            under, over = (_UNDER[0] < value) & (value < _UNDER[1]), (_OVER[0] < value) & (value < _OVER[1])
            surely[i] = under + 2 * over
        top = (columns.first + x) * height + rows.first
        inside = False
        if n + 2 * cells + 1 > len(found):
            found = _grown(found, 2 * cells + 1)
        for k in range(cells):
            if surely[above[k]] & surely[below[k]] & (1 + inside):
                continue
            low, high = line[above[k]], line[below[k]]
            start, last = bounds[k], bounds[k + 1] - 1
            begins = _between(low, high, row_weight[start]) > 0.5
            ends = _between(low, high, row_weight[last]) > 0.5
            if begins != inside:
                found[n] = top + start
                n += 1
            if ends != begins:
                # A straight line crosses at the right row or next to it.
                share = ((0.5 - low) / (high - low) - row_weight[start]) / (row_weight[last] - row_weight[start])
                at = min(max(start + int(share * (last - start)), start + 1), last)
                while (_between(low, high, row_weight[at]) > 0.5) != ends:
                    at += 1
                while at - 1 > start and (_between(low, high, row_weight[at - 1]) > 0.5) == ends:
                    at -= 1
                found[n] = top + at
                n += 1
            inside = ends
        if inside:
            found[n] = top + len(row_low)
            n += 1
    return found[:n].copy()


@compiled(written(F32, 1), read_only(F32, 3), read_only(I64, 2), F32)
def cut_out(planes: Any, cuts: Any, frame: float) -> Any:
    """Return the framed cuts of all planes; see geometry.cut_out."""
    size = 0
    for x0, y0, x1, y1 in cuts:
        size += (y1 - y0 + 2) * (x1 - x0 + 2)
    flat, at = np.full(size, np.float32(frame)), 0
    for i in range(len(cuts)):
        x0, y0, x1, y1 = cuts[i]
        for y in range(y0, y1):
            at += x1 - x0 + 2
            for x in range(x0, x1):
                flat[at + 1 + x - x0] = planes[y, x, i]
        at += 2 * (x1 - x0 + 2)
    return flat


@compiled(_TAPS, _TAPS, I64, I64)
def _part(taps: Any, start: int, stop: int) -> Any:
    return Taps(start, taps.low[start:stop], taps.high[start:stop], taps.weight[start:stop])


@compiled(
    both(written(I64, 1), written(I64, 1)), read_only(F32, 1), read_only(I64, 2), read_only(I64, 2), _TAPS, _TAPS, I64
)
def edges_of_cuts(cells: Any, cuts: Any, reading: Any, all_rows: Any, all_columns: Any, height: int) -> Any:
    """Return the edges of all cuts; see geometry.edges_of_cuts.

    reading: (n, 4) int64 x0, y0, x1, y1: the output pixels that read any cell of the cut.
    """
    found, n, stops, at = np.empty(1024, np.int64), 0, np.empty(len(cuts), np.int64), 0
    for i in range(len(cuts)):
        x0, y0, x1, y1 = cuts[i]
        rows, columns = y1 - y0 + 2, x1 - x0 + 2
        grid = cells[at : at + rows * columns].reshape(rows, columns)
        at += rows * columns
        left, top, right, bottom = reading[i]
        if left < right and top < bottom:
            one = edges(grid, x0 - 1, y0 - 1, _part(all_rows, top, bottom), _part(all_columns, left, right), height)
            if n + len(one) > len(found):
                found = _grown(found, len(one))
            for k in range(len(one)):
                found[n + k] = one[k]
            n += len(one)
        stops[i] = n
    return found[:n].copy(), stops


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


@compiled(both(written(U8, 1), written(I64, 1)), read_only(I64, 1), read_only(I64, 1), I64)
def texts_of_edges(edges: Any, stops: Any, total: int) -> Any:
    """Return the counts of all masks one after the other, and the end of each; see rle.from_edges_of_all."""
    text, used, ends = np.empty(13 * (len(edges) + len(stops)), np.uint8), 0, np.empty(len(stops), np.int64)
    for i in range(len(stops)):
        one = encode_counts(edges[0 if i == 0 else stops[i - 1] : stops[i]], total)
        for k in range(len(one)):
            text[used + k] = one[k]
        used += len(one)
        ends[i] = used
    return text[:used].copy(), ends


MASKS = (read_only(U8, 1), read_only(I64, 1), read_only(I64, 1))  # the fields of arrays.EncodedMasks, one by one


@compiled(I64, read_only(U8, 1), I64, I64, I64, written(I64, 1))
def edges_of(text: Any, at: int, stop: int, most_groups: int, edges: Any) -> Any:
    """Write the end of each run of one mask. Return the number of runs, or -1 if the counts are malformed.

    edges: int64, at least as long as the counts.
    """
    n, total, last, before = 0, np.int64(0), np.int64(0), np.int64(0)
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
            value += before
        if value < 0:
            return -1
        before, last = last, value
        total += value
        edges[n] = total
        n += 1
    return n


@compiled(I64, read_only(I64, 1), I64)
def area_of(edges: Any, n: int) -> Any:
    """Return the set pixels of a mask with n runs. edges: the end of each run, as `edges_of` writes them."""
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
    found = np.empty((len(starts), 2), np.int64)
    edges = np.empty(longest(starts, stops), np.int64)
    for i in range(len(starts)):
        n = edges_of(text, starts[i], stops[i], most_groups, edges)
        found[i, 0] = area_of(edges, n) if n > 0 else -1
        found[i, 1] = edges[n - 1] if n > 0 else 0
    return found


# ---- suppression ----------------------------------------------------------------------------------


@compiled(written(BOOL, 1), read_only(F32, 2), F32)
def over(values: Any, floor: float) -> Any:
    """Return, for each row, whether a value after the first is greater than the floor or NaN.

    values: (n, m) float32.
    """
    found = np.empty(len(values), np.bool_)
    for i in range(len(values)):
        hits = 0
        for j in range(1, values.shape[1]):
            hits += not values[i, j] <= floor
        found[i] = hits > 0
    return found


@compiled(written(I64, 1), read_only(F32, 2), read_only(I64, 1), read_only(I64, 1), I64, F32)
def greedy(boxes_xyxy: Any, rows: Any, classes: Any, most: int, max_iou: float) -> Any:
    """Return the positions in `rows` that greedy suppression keeps, at most `most` for each class.

    A row is kept if its IoU with each kept row of its class is at most max_iou.
    boxes_xyxy: (n, 4) float32. rows: indices into the boxes, class after class, by falling score in each class.
    classes: the class of each entry of `rows`.
    """
    kept, n, first = np.empty(len(rows), np.int64), 0, 0
    for at in range(len(rows)):
        if at == 0 or classes[at] != classes[at - 1]:
            first = n
        if n - first == most:
            continue
        x0, y0, x1, y1 = boxes_xyxy[rows[at]]
        area = (x1 - x0) * (y1 - y0)
        clear = True
        for k in kept[first:n]:
            a0, b0, a1, b1 = boxes_xyxy[rows[k]]
            width = max(min(x1, a1) - max(x0, a0), np.float32(0))
            shared = width * max(min(y1, b1) - max(y0, b0), np.float32(0))
            union = (a1 - a0) * (b1 - b0) + area - shared
            ratio = shared / union if union != 0 else np.float32(0)
            if not ratio <= max_iou:
                clear = False
                break
        if clear:
            kept[n] = at
            n += 1
    return kept[:n].copy()
