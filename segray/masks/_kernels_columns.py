"""Compiled loops over columns of masks: pixels, crops, other sizes, unions, moments.

The loops are compiled as those of _kernels.py. This module is separate because only queries need these loops.
A mask whose counts are malformed, or do not cover its image, has the status -1. A window outside the image has -2, and
masks of different sizes have -3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from segray.masks._kernels import (
    BOOL,
    F64,
    I64,
    MASKS,
    U8,
    area_of,
    compiled,
    longest,
    pair_of,
    read_only,
    with_appended,
    write_run_ends,
    written,
)

_BLOCK = 32  # pixels of a side of the blocks in which an image is turned
_TRIPLE = types.Tuple((written(I64, 1), written(I64, 1), written(I64, 1)))  # type: ignore[no-untyped-call]


@compiled(I64, read_only(I64, 1), I64, written(U8, 1), I64)
def _write_counts(edges: Any, total: int, text: Any, used: int) -> Any:
    """Write the counts of one mask behind `used` characters, as `_kernels.encode_counts` does. Return their new number.

    text: has room for 13 characters for each edge, and 13 more.
    """
    at, j, size, bound = 0, 0, len(edges), total
    before: Any = np.int64(0)
    last: Any = np.int64(0)
    last_but_one: Any = np.int64(0)
    while at < size or j == 0 or before != total:
        bound = total
        if at < size:
            bound = edges[at]
            if at + 1 < size and bound == edges[at + 1]:  # The mask flips twice at one place.
                at += 2
                continue
            at += 1
        run = bound - before
        before = bound
        value = run - last_but_one if j > 2 else run
        last_but_one, last = last, run
        j += 1
        more: Any = True
        while more:
            group = value & 31
            value >>= 5
            more = value != -1 if group & 16 else value != 0
            text[used] = group + 48 + (32 if more else 0)
            used += 1
    return used


@compiled(written(U8, 1), written(U8, 1), I64, I64)
def _with_room(text: Any, used: int, room: int) -> Any:
    """Return the text, or a longer copy, with room for more characters behind the used ones."""
    if used + room <= len(text):
        return text
    longer = np.empty(2 * (used + room), np.uint8)
    longer[:used] = text[:used]
    return longer


@compiled(pair_of(written(U8, 1), written(I64, 1)), read_only(I64, 1), read_only(I64, 1), read_only(I64, 1))
def encode_all(edges: Any, stops: Any, totals: Any) -> Any:
    """Return the counts of all masks one after the other, and the end of each. totals: pixels of each image."""
    text, used, ends, first = np.empty(1024, np.uint8), 0, np.empty(len(stops), np.int64), np.int64(0)
    for i in range(len(stops)):
        text = _with_room(text, used, 13 * (stops[i] - first + 1))
        used = _write_counts(edges[first : stops[i]], totals[i], text, used)
        ends[i], first = used, stops[i]
    return text[:used].copy(), ends


@compiled(written(I64, 1), *MASKS, I64, read_only(I64, 1), read_only(I64, 1), read_only(I64, 1), written(U8, 1))
def decode_rows(
    text: Any, starts: Any, stops: Any, most_groups: int, heights: Any, widths: Any, firsts: Any, pixels: Any
) -> Any:
    """Write the pixels of each mask row by row. Return the status of each, (n,) int64, 0 if all is well.

    firsts: (n,) index of the first pixel of each mask in `pixels`, which are all 0 before.
    """
    status = np.zeros(len(starts), np.int64)
    edges = np.empty(longest(starts, stops), np.int64)
    turned = np.zeros(1, np.uint8)
    for i in range(len(starts)):
        height, width = heights[i], widths[i]
        runs = write_run_ends(text, starts[i], stops[i], most_groups, edges)
        if runs < 0 or height < 1 or edges[runs - 1] != height * width:
            status[i] = -1
            continue
        if runs < 2:
            continue
        # The columns with set pixels are filled column by column, which is fast, and turned in blocks.
        left, right = edges[0] // height, (edges[runs - 1 - runs % 2] - 1) // height + 1
        if right <= left:
            continue
        needed = (right - left) * height
        if len(turned) < needed:
            turned = np.zeros(2 * needed, np.uint8)
        else:
            turned[:needed] = 0
        for k in range(1, runs, 2):
            turned[edges[k - 1] - left * height : edges[k] - left * height] = 1
        image = pixels[firsts[i] : firsts[i] + height * width].reshape(height, width)
        columns = turned[:needed].reshape(right - left, height)
        for x0 in range(0, right - left, _BLOCK):
            x1 = min(x0 + _BLOCK, right - left)
            for y0 in range(0, height, _BLOCK):
                for y in range(y0, min(y0 + _BLOCK, height)):
                    for x in range(x0, x1):
                        image[y, left + x] = columns[x, y]
    return status


@compiled(written(I64, 2), read_only(I64, 1), I64, I64)
def column_segments(edges: Any, runs: int, height: int) -> Any:
    """Return (n, 3) int64: column, first row, and the row behind the last, of each vertical segment of a mask."""
    count = np.int64(0)
    for k in range(1, runs, 2):
        if edges[k] > edges[k - 1]:
            count += (edges[k] - 1) // height - edges[k - 1] // height + 1
    segments, n = np.empty((count, 3), np.int64), 0
    for k in range(1, runs, 2):
        at = edges[k - 1]
        while at < edges[k]:
            column = at // height
            last = min(edges[k], (column + 1) * height)
            segments[n, 0], segments[n, 1], segments[n, 2] = column, at - column * height, last - column * height
            n += 1
            at = last
    return segments


@compiled(_TRIPLE, *MASKS, I64, read_only(I64, 2), read_only(I64, 2))
def crop_edges(text: Any, starts: Any, stops: Any, most_groups: int, sizes_hw: Any, windows_xywh: Any) -> Any:
    """Return the edges of each mask within its window, the end of each mask's edges, and the status of each."""
    found, n = np.empty(256, np.int64), 0
    ends, status = np.empty(len(starts), np.int64), np.zeros(len(starts), np.int64)
    edges = np.empty(longest(starts, stops), np.int64)
    for i in range(len(starts)):
        ends[i] = n
        height, width = sizes_hw[i]
        x, y, w, h = windows_xywh[i]
        runs = write_run_ends(text, starts[i], stops[i], most_groups, edges)
        if runs < 0 or height < 1 or edges[runs - 1] != height * width:
            status[i] = -1
            continue
        if x < 0 or y < 0 or w < 1 or h < 1 or x + w > width or y + h > height:
            status[i] = -2
            continue
        segments = column_segments(edges, runs, height)
        inside, m = np.empty(2 * len(segments), np.int64), 0
        for k in range(len(segments)):
            column, low, high = segments[k, 0] - x, max(segments[k, 1] - y, 0), min(segments[k, 2] - y, h)
            if 0 <= column < w and low < high:
                inside[m], inside[m + 1] = column * h + low, column * h + high
                m += 2
        found = with_appended(found, n, inside[:m])
        n += m
        ends[i] = n
    return found[:n].copy(), ends, status


@compiled(_TRIPLE, *MASKS, I64, read_only(I64, 2), read_only(I64, 2))
def resized_edges(text: Any, starts: Any, stops: Any, most_groups: int, sizes_hw: Any, new_sizes_hw: Any) -> Any:
    """Return the edges of each mask at another size, the end of each mask's edges, and the status of each.

    A pixel takes the value of the pixel below its centre.
    """
    found, n = np.empty(256, np.int64), 0
    ends, status = np.empty(len(starts), np.int64), np.zeros(len(starts), np.int64)
    edges = np.empty(longest(starts, stops), np.int64)
    for i in range(len(starts)):
        ends[i] = n
        height, width = sizes_hw[i]
        new_height, new_width = new_sizes_hw[i]
        runs = write_run_ends(text, starts[i], stops[i], most_groups, edges)
        if runs < 0 or height < 1 or edges[runs - 1] != height * width:
            status[i] = -1
            continue
        if new_height < 1 or new_width < 1:
            status[i] = -2
            continue
        segments = column_segments(edges, runs, height)
        at = np.int64(0)
        for new_column in range(new_width):
            column = (2 * new_column + 1) * width // (2 * new_width)
            while at < len(segments) and segments[at, 0] < column:
                at += 1
            k = at
            while k < len(segments) and segments[k, 0] == column:
                # The first new row whose centre is at this row or below: ceil((2 * H * row - h) / 2h).
                low = max(-((height - 2 * new_height * segments[k, 1]) // (2 * height)), 0)
                high = max(-((height - 2 * new_height * segments[k, 2]) // (2 * height)), 0)
                if low < high:
                    pair = np.empty(2, np.int64)
                    pair[0], pair[1] = new_column * new_height + low, new_column * new_height + high
                    found = with_appended(found, n, pair)
                    n += 2
                k += 1
        ends[i] = n
    return found[:n].copy(), ends, status


@compiled(written(F64, 2), *MASKS, I64, read_only(I64, 1))
def moments(text: Any, starts: Any, stops: Any, most_groups: int, heights: Any) -> Any:
    """Return (n, 4) float64: set pixels, sums of the x and of the y of their centres, sides of pixels on outlines.

    The set pixels are -1 for malformed counts, and where the image has no height.
    """
    values = np.zeros((len(starts), 4), np.float64)
    edges = np.empty(longest(starts, stops), np.int64)
    for i in range(len(starts)):
        height = heights[i]
        runs = write_run_ends(text, starts[i], stops[i], most_groups, edges)
        if runs < 0 or height < 1 or edges[runs - 1] % height != 0:
            values[i, 0] = -1
            continue
        area, neighbours = area_of(edges, runs), np.int64(0)
        segments = column_segments(edges, runs, height)
        for k in range(len(segments)):
            column, low, high = segments[k, 0], segments[k, 1], segments[k, 2]
            length = high - low
            values[i, 1] += length * (column + 0.5)
            values[i, 2] += length * (low + high) / 2
            if k == 0 or segments[k - 1, 0] != column or segments[k - 1, 2] != low:
                neighbours += length - 1
            else:
                neighbours += length  # The segment goes on where the one before ends.
        # Neighbours in a row: pixels of the mask whose place one column to the left is set too.
        a, b = 1, 1
        while a < runs and b < runs:
            low, high = max(edges[a - 1], edges[b - 1] + height), min(edges[a], edges[b] + height)
            if high > low:
                neighbours += high - low
            if edges[a] < edges[b] + height:
                a += 2
            else:
                b += 2
        values[i, 0], values[i, 3] = area, 4 * area - 2 * neighbours
    return values


@compiled(I64, read_only(I64, 1), I64, read_only(I64, 1), I64, BOOL, written(I64, 1))
def _merge_pair(a: Any, a_runs: int, b: Any, b_runs: int, intersect: bool, merged: Any) -> Any:
    """Write the run ends of the union, or of the intersection, of two masks of one image. Return their number."""
    # Without branches, which the processor would guess wrong. Edges at one place cancel when they are encoded.
    # Indices without a sign need no check.
    n, i, j, total = np.uint64(0), np.uint64(0), np.uint64(0), a[a_runs - 1]
    in_a, in_b, inside, least = 0, 0, 0, 2 if intersect else 1
    while True:
        left, right = a[i], b[j]
        at = min(left, right)
        if at >= total:
            break
        from_a, from_b = left == at, right == at
        in_a ^= from_a
        in_b ^= from_b
        i += np.uint64(from_a)
        j += np.uint64(from_b)
        now = in_a + in_b >= least
        merged[n] = at
        n += np.uint64(now != inside)
        inside = now
    merged[n] = total
    return np.int64(n) + 1


@compiled(
    types.Tuple((written(U8, 1), written(I64, 1), written(I64, 1))),  # type: ignore[no-untyped-call]
    *(*MASKS, I64, read_only(I64, 1), BOOL),
)
def merge_lists(text: Any, starts: Any, stops: Any, most_groups: int, bounds: Any, intersect: bool) -> Any:
    """Return the counts of the union or intersection of each list of masks, their ends, and the status of each.

    bounds: (lists + 1,) int64; list i holds the masks bounds[i] to bounds[i + 1] - 1. An empty list has no counts.
    """
    counts, used = np.empty(1024, np.uint8), 0
    lists = len(bounds) - 1
    ends, status = np.empty(lists, np.int64), np.zeros(lists, np.int64)
    edges = np.empty(longest(starts, stops), np.int64)
    merged, other = np.empty(2, np.int64), np.empty(2, np.int64)
    for i in range(lists):
        room = np.int64(2)
        for k in range(bounds[i], bounds[i + 1]):
            room += stops[k] - starts[k]
        if len(merged) < room:
            merged, other = np.empty(2 * room, np.int64), np.empty(2 * room, np.int64)
        runs = 0
        for k in range(bounds[i], bounds[i + 1]):
            if runs == 0:
                runs = write_run_ends(text, starts[k], stops[k], most_groups, merged)
                if runs < 0:
                    status[i] = -1
                    break
                continue
            next_runs = write_run_ends(text, starts[k], stops[k], most_groups, edges)
            if next_runs < 0 or edges[next_runs - 1] != merged[runs - 1]:
                status[i] = -1 if next_runs < 0 else -3
                break
            runs = _merge_pair(merged, runs, edges, next_runs, intersect, other)
            merged, other = other, merged
        if runs > 0 and status[i] == 0:
            counts = _with_room(counts, used, 13 * (runs + 1))
            used = _write_counts(merged[:runs], merged[runs - 1], counts, used)
        ends[i] = used
    return counts[:used].copy(), ends, status
