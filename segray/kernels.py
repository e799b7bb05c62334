"""The loops that run for every pixel, prior or run: compiled to machine code, and free of Python's lock.

Knows arrays and arithmetic; what they mean is said where each is called (geometry, rle, contracts/yolact). Numba
lives here. A function is compiled for the one signature it states when this module is first imported, which takes
seconds, and is kept beside the source or in NUMBA_CACHE_DIR, from where it loads in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types

_I64, _I32, _U8, _F32, _BOOL = types.int64, types.int32, types.uint8, types.float32, types.boolean
_F64, _U64 = types.float64, types.uint64


def _in(kind: Any, dimensions: int) -> Any:
    """An array that is only read, C-contiguous."""
    return types.Array(kind, dimensions, "C", readonly=True)


def _out(kind: Any, dimensions: int) -> Any:
    return types.Array(kind, dimensions, "C")


def _compiled(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile now, for these types alone. Integers wrap, floats round as numpy's do, no fused operations."""

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            made = njit(result(*arguments), nogil=True, cache=True)(function)
        except (OSError, RuntimeError):  # There is no place to keep it, or no room in it.
            made = njit(result(*arguments), nogil=True)(function)
        return made  # type: ignore[no-any-return]

    return compiled


# ---- resize ---------------------------------------------------------------------------------------


@_compiled(types.void, _in(_U8, 2), _in(_I64, 1), _in(_I64, 1), _in(_I32, 2), _I64, _I64, _out(_U8, 2))
def resample(lines: Any, first: Any, taps: Any, weights: Any, bits: int, step: int, resampled: Any) -> None:
    """Weighted sums of lines: output line x * step + c sums the lines (first[x] + t) * step + c, t < taps[x].

    weights: (outputs, most taps), fixed point with `bits` fraction bits, of sum 1.
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


@_compiled(_F32, _F32, _F32, _F32)
def _between(low: Any, high: Any, weight: Any) -> Any:
    """low + weight * (high - low), the product not rounded before the sum: a float32 fused multiply-add."""
    return np.float32(np.float64(low) + np.float64(np.float32(high - low)) * np.float64(weight))


_TAPS = (_in(_I64, 1), _in(_I64, 1), _in(_F32, 1))


@_compiled(_out(_I64, 1), _in(_F32, 2), _I64, *_TAPS, _I64, *_TAPS, _I64)
def edges(
    grid: Any,
    first_row: int,
    row_low: Any,
    row_high: Any,
    row_weight: Any,
    first_column: int,
    column_low: Any,
    column_high: Any,
    column_weight: Any,
    height: int,
) -> Any:
    """See geometry.mask_edges."""
    rows = len(row_low)
    # Where each run of rows between the same two grid rows begins; and where the last one ends.
    bounds = np.append(np.flatnonzero(row_low[1:] != row_low[:-1]) + 1, rows)
    found, n = np.empty(256, np.int64), 0
    line = np.empty(grid.shape[0], np.float32)
    for x in range(len(column_low)):
        left, right, weight = column_low[x], column_high[x], column_weight[x]
        for i in range(row_low[0], row_high[rows - 1] + 1):
            line[i] = _between(grid[i, left], grid[i, right], weight)
        top = (first_column + x) * height + first_row
        inside, start = False, 0
        if n + 2 * len(bounds) + 1 > len(found):
            found = np.concatenate((found, np.empty(len(found) + 2 * len(bounds), np.int64)))
        for stop in bounds:
            low, high = line[row_low[start]], line[row_high[start]]
            begins = _between(low, high, row_weight[start]) > 0.5
            ends = _between(low, high, row_weight[stop - 1]) > 0.5
            if begins != inside:
                found[n] = top + start
                n += 1
            if ends != begins:
                before, after = start, stop - 1
                while after - before > 1:
                    middle = (before + after) >> 1
                    if (_between(low, high, row_weight[middle]) > 0.5) == ends:
                        after = middle
                    else:
                        before = middle
                found[n] = top + after
                n += 1
            inside, start = ends, stop
        if inside:
            found[n] = top + rows
            n += 1
    return found[:n].copy()


# ---- run lengths ----------------------------------------------------------------------------------


@_compiled(_out(_U8, 1), _in(_I64, 1), _I64)
def text_of_edges(edges: Any, total: int) -> Any:
    """See rle.from_edges; the text as ASCII."""
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


_MASKS = (_in(_U8, 1), _in(_I64, 1), _in(_I64, 1))  # text, and where in it each mask's counts start and stop


@_compiled(_I64, _in(_U8, 1), _I64, _I64, _I64, _out(_I64, 1))
def _edges_of(text: Any, at: int, stop: int, most_groups: int, edges: Any) -> Any:
    """Write where each run of one mask ends; how many there are, -1 if the counts are malformed.

    edges: room for as many as the counts have characters.
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


@_compiled(_I64, _in(_I64, 1), _I64)
def _area(edges: Any, n: int) -> Any:
    area = np.int64(0)
    for k in range(1, n, 2):
        area += edges[k] - edges[k - 1]
    return area


@_compiled(_I64, _in(_I64, 1), _I64, _in(_I64, 1), _I64)
def _shared(a: Any, a_runs: int, b: Any, b_runs: int) -> Any:
    """Pixels that two masks of one image have in common."""
    shared, i, j = np.int64(0), 1, 1
    while i < a_runs and j < b_runs:
        low, high = max(a[i - 1], b[j - 1]), min(a[i], b[j])
        if high > low:
            shared += high - low
        if a[i] < b[j]:
            i += 2
        else:
            j += 2
    return shared


@_compiled(_I64, _in(_I64, 1), _in(_I64, 1))
def _longest(starts: Any, stops: Any) -> Any:
    longest = np.int64(1)
    for i in range(len(starts)):
        longest = max(longest, stops[i] - starts[i])
    return longest


@_compiled(_out(_I64, 2), *_MASKS, _I64)
def areas(text: Any, starts: Any, stops: Any, most_groups: int) -> Any:
    """(n, 2): pixels set in each mask, -1 for counts that are malformed; and pixels that the counts cover."""
    found = np.empty((len(starts), 2), np.int64)
    edges = np.empty(_longest(starts, stops), np.int64)
    for i in range(len(starts)):
        n = _edges_of(text, starts[i], stops[i], most_groups, edges)
        found[i, 0] = _area(edges, n) if n > 0 else -1
        found[i, 1] = edges[n - 1] if n > 0 else 0
    return found


@_compiled(_out(_I64, 2), *_MASKS, _I64, _in(_I64, 1))
def boxes(text: Any, starts: Any, stops: Any, most_groups: int, heights: Any) -> Any:
    """(n, 4): the tightest boxes of whole pixels, x, y, w, h; 0 for an empty mask, w -1 for malformed counts."""
    found = np.zeros((len(starts), 4), np.int64)
    edges = np.empty(_longest(starts, stops), np.int64)
    for i in range(len(starts)):
        n, height = _edges_of(text, starts[i], stops[i], most_groups, edges), heights[i]
        if n < 0 or height < 1:
            found[i, 2] = -1
            continue
        left, right, top, bottom = np.int64(-1), np.int64(-1), height, np.int64(-1)
        first_of_column = np.int64(0)  # A run begins in the column of the one before, or not far from it.
        for k in range(1, n, 2):
            start, last = edges[k - 1], edges[k] - 1
            if last < start:
                continue
            if start - first_of_column >= 4 * height:
                first_of_column = start // height * height
            while start - first_of_column >= height:
                first_of_column += height
            if left < 0:
                left = first_of_column // height
            right = last
            if last - first_of_column >= height:
                top, bottom = np.int64(0), height - 1
            else:
                top, bottom = min(top, start - first_of_column), max(bottom, last - first_of_column)
        if left >= 0:
            found[i, 0], found[i, 1] = left, top
            found[i, 2], found[i, 3] = right // height - left + 1, bottom - top + 1
    return found


@_compiled(_out(_I64, 2), *_MASKS, *_MASKS, _I64)
def overlaps(
    text: Any, starts: Any, stops: Any, other: Any, other_starts: Any, other_stops: Any, most_groups: int
) -> Any:
    """(n, 3): of each pair of masks, pixels in common and the area of each.

    In common: -1 for malformed counts on the left, -2 on the right, -3 for masks that cover unlike numbers of pixels.
    """
    found = np.zeros((len(starts), 3), np.int64)
    a = np.empty(_longest(starts, stops), np.int64)
    b = np.empty(_longest(other_starts, other_stops), np.int64)
    for i in range(len(starts)):
        a_runs = _edges_of(text, starts[i], stops[i], most_groups, a)
        b_runs = _edges_of(other, other_starts[i], other_stops[i], most_groups, b)
        if a_runs < 0 or b_runs < 0 or a[a_runs - 1] != b[b_runs - 1]:
            found[i, 0] = -1 if a_runs < 0 else -2 if b_runs < 0 else -3
        else:
            found[i, 0], found[i, 1] = _shared(a, a_runs, b, b_runs), _area(a, a_runs)
            found[i, 2] = _area(b, b_runs)
    return found


@_compiled(_out(_BOOL, 1), *_MASKS, _I64, _in(_I64, 1))
def covers(text: Any, starts: Any, stops: Any, most_groups: int, positions: Any) -> Any:
    """Whether each mask has the pixel at its position, column * h + row; not for malformed counts."""
    found = np.zeros(len(starts), np.bool_)
    edges = np.empty(_longest(starts, stops), np.int64)
    for i in range(len(starts)):
        n = _edges_of(text, starts[i], stops[i], most_groups, edges)
        if n > 0 and positions[i] >= 0:
            found[i] = np.searchsorted(edges[:n], positions[i], side="right") % 2 == 1 and positions[i] < edges[n - 1]
    return found


@_compiled(_out(_I64, 1), *_MASKS, _I64, _I64)
def merged_edges(text: Any, starts: Any, stops: Any, most_groups: int, least: int) -> Any:
    """Where the mask flips that holds the pixels which at least so many of these masks have, and its last position.

    As rle.from_edges takes them, but for the last: the pixels covered, -1 for malformed counts, -2 for unlike sizes.
    """
    room = np.int64(0)
    for i in range(len(starts)):
        room += stops[i] - starts[i]
    flips, n, total = np.empty(room, np.int64), 0, np.int64(-1)
    edges = np.empty(_longest(starts, stops), np.int64)
    for i in range(len(starts)):
        runs = _edges_of(text, starts[i], stops[i], most_groups, edges)
        if runs < 0 or (total >= 0 and edges[runs - 1] != total):
            return np.full(1, -1 if runs < 0 else -2, np.int64)
        total = edges[runs - 1]
        for k in range(runs - runs % 2):
            flips[n] = 2 * edges[k] + k % 2  # Even where a run of ones begins, odd where it ends.
            n += 1
    flips = np.sort(flips[:n])
    kept, m, depth = np.empty(n + 1, np.int64), 0, 0
    for flip in flips:
        before = depth
        depth += 1 if flip % 2 == 0 else -1
        if (before >= least) != (depth >= least):
            kept[m] = flip // 2
            m += 1
    kept[m] = total
    return kept[: m + 1].copy()


@_compiled(_out(_I64, 1), _in(_I64, 1), _I64, _I64, _I64, _I64)
def placed_edges(runs: Any, rows: int, x0: int, y0: int, height: int) -> Any:
    """Where a mask flips in an image of this height that has it at (x0, y0); runs, rows: of the mask by itself."""
    spans, at = 0, np.int64(0)
    for k in range(len(runs)):
        if k % 2 and runs[k]:
            spans += (at + runs[k] - 1) // rows - at // rows + 1
        at += runs[k]
    edges, n, at = np.empty(2 * spans, np.int64), 0, np.int64(0)
    for k in range(len(runs)):
        stop = at + runs[k]
        while k % 2 and at < stop:  # column by column
            column = at // rows
            last = min(stop, (column + 1) * rows)
            first = (x0 + column) * height + y0 - column * rows
            edges[n], edges[n + 1] = first + at, first + last
            n += 2
            at = last
        at = stop
    return edges


@_compiled(_out(_I64, 1), *_MASKS, _I64, _I64, _in(_I64, 2))
def areas_within(text: Any, starts: Any, stops: Any, most_groups: int, height: int, windows: Any) -> Any:
    """Pixels of each mask, of an image so high, inside its window x0, y0, x1, y1; -1 for malformed counts."""
    found = np.zeros(len(starts), np.int64)
    edges = np.empty(_longest(starts, stops), np.int64)
    for i in range(len(starts)):
        n = _edges_of(text, starts[i], stops[i], most_groups, edges)
        if n < 0:
            found[i] = -1
            continue
        x0, y0, x1, y1 = windows[i]
        for k in range(1, n, 2):
            at, stop = edges[k - 1], edges[k]
            while at < stop:
                column = at // height
                last = min(stop, (column + 1) * height)
                if x0 <= column < x1:
                    low, high = max(at - column * height, y0), min(last - column * height, y1)
                    if high > low:
                        found[i] += high - low
                at = last
    return found


# ---- outlines of pixels ---------------------------------------------------------------------------


@_compiled(_out(_I64, 2), _in(_BOOL, 2))
def rings(framed: Any) -> Any:
    """(n, 3) corners x, y and the number of their ring: the outlines of a mask's pixels along the pixels' edges.

    framed: (h + 2, w + 2), the mask with a frame of 0. Corners count from the mask's own top left pixel. Rings have
    the mask on their right: outer ones go clockwise on the screen, holes the other way. Pixels that touch at a
    corner only are of different rings.
    """
    rows, columns = framed.shape
    seen = np.zeros((rows, columns), np.bool_)  # top edges that some ring has gone along
    corners, n, ring = np.empty((256, 3), np.int64), 0, 0
    for row in range(1, rows - 1):
        for column in range(1, columns - 1):
            if not framed[row, column] or framed[row - 1, column] or seen[row, column]:
                continue
            # At corner (x, y) the pixel below and right of it is framed[y, x]. Directions: right, down, left, up.
            x, y, heading = column, row, 0
            while True:
                if heading == 0:
                    if seen[y, x]:
                        break
                    seen[y, x] = True
                    x += 1
                elif heading == 1:
                    y += 1
                elif heading == 2:
                    x -= 1
                else:
                    y -= 1
                if heading == 0:
                    left, right = framed[y - 1, x], framed[y, x]
                elif heading == 1:
                    left, right = framed[y, x], framed[y, x - 1]
                elif heading == 2:
                    left, right = framed[y, x - 1], framed[y - 1, x - 1]
                else:
                    left, right = framed[y - 1, x - 1], framed[y - 1, x]
                turn = 1 if not right else 3 if left else 0
                if turn:
                    if n == len(corners):
                        corners = np.concatenate((corners, np.empty((n, 3), np.int64)))
                    corners[n, 0], corners[n, 1], corners[n, 2] = x - 1, y - 1, ring
                    n += 1
                    heading = (heading + turn) % 4
            ring += 1
    return corners[:n].copy()


# ---- suppression ----------------------------------------------------------------------------------


@_compiled(_out(_BOOL, 1), _in(_F32, 2), _F32)
def over(values: Any, floor: float) -> Any:
    """Whether a row has a value, not counting its first, that is over the floor or no number."""
    found = np.empty(len(values), np.bool_)
    for i in range(len(values)):
        hits = 0
        for j in range(1, values.shape[1]):
            hits += not values[i, j] <= floor
        found[i] = hits > 0
    return found


@_compiled(_out(_I64, 1), _in(_F32, 2), _in(_I64, 1), _I64, _F32)
def greedy(boxes_xyxy: Any, order: Any, most: int, max_iou: float) -> Any:
    """Of rows in this order, those that overlap no kept one before them; at most so many."""
    kept, n = np.empty(min(most, len(order)), np.int64), 0
    for row in order:
        if n == most:
            break
        x0, y0, x1, y1 = boxes_xyxy[row]
        area = (x1 - x0) * (y1 - y0)
        clear = True
        for k in kept[:n]:
            a0, b0, a1, b1 = boxes_xyxy[k]
            width = max(min(x1, a1) - max(x0, a0), np.float32(0))
            shared = width * max(min(y1, b1) - max(y0, b0), np.float32(0))
            union = (a1 - a0) * (b1 - b0) + area - shared
            ratio = shared / union if union != 0 else np.float32(0)
            if not ratio <= max_iou:
                clear = False
                break
        if clear:
            kept[n] = row
            n += 1
    return kept[:n].copy()


# ---- matching -------------------------------------------------------------------------------------


@_compiled(
    types.void,
    *(_in(_F64, 2), _in(_F64, 1), _in(_BOOL, 1), _in(_BOOL, 1), _in(_F64, 1), _in(_F64, 2), _in(_F64, 1), _BOOL),
    *(_out(_U64, 1), _out(_U64, 1)),
)
def match(
    ious: Any,
    object_areas: Any,
    crowd: Any,
    ignore: Any,
    areas: Any,
    ranges: Any,
    thresholds: Any,
    lenient: bool,
    matched: Any,
    ignored: Any,
) -> None:
    """Which detections of one image and class find an object, as COCOeval.evaluateImg of pycocotools decides.

    ious: (detections by falling score, objects). ranges: (r, 2) of object areas, both ends included. lenient: no
    detection is wrong for want of an object. matched, ignored: (detections,), 0 at first; bit r * t + i is set for
    range r and threshold i.
    """
    detections, objects = ious.shape
    out, order, taken = np.empty(objects, np.bool_), np.empty(objects, np.int64), np.empty(objects, np.bool_)
    for r in range(len(ranges)):
        n = 0
        for g in range(objects):
            out[g] = ignore[g] or object_areas[g] < ranges[r, 0] or object_areas[g] > ranges[r, 1]
            if not out[g]:
                order[n] = g
                n += 1
        for g in range(objects):
            if out[g]:
                order[n] = g
                n += 1
        for i in range(len(thresholds)):
            bit = np.uint64(1) << np.uint64(r * len(thresholds) + i)
            taken[:] = False
            for d in range(detections):
                best, found = min(thresholds[i], 1 - 1e-10), -1
                for g in order:
                    if taken[g] and not crowd[g]:
                        continue
                    if found >= 0 and not out[found] and out[g]:
                        break
                    if ious[d, g] < best:
                        continue
                    best, found = ious[d, g], g
                if found >= 0:
                    taken[found] = True
                    matched[d] |= bit
                    if out[found]:
                        ignored[d] |= bit
                elif lenient or areas[d] < ranges[r, 0] or areas[d] > ranges[r, 1]:
                    ignored[d] |= bit
