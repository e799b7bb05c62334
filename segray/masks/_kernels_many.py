"""The loops over many finished masks: overlaps, unions, boxes, outlines, matching. Compiled as _kernels.py compiles.

Apart from it because a worker needs none of them but for tiles, and compiling all of them takes seconds the first time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from segray.masks._kernels import BOOL, F64, I64, MASKS, U64, area_of, compiled, edges_of, longest, read_only, written

# ---- runs -----------------------------------------------------------------------------------------


@compiled(I64, read_only(I64, 1), I64, read_only(I64, 1), I64)
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


@compiled(written(I64, 2), *MASKS, I64, read_only(I64, 1))
def boxes(text: Any, starts: Any, stops: Any, most_groups: int, heights: Any) -> Any:
    """(n, 4): the tightest boxes of whole pixels, x, y, w, h; 0 for an empty mask, w -1 for malformed counts."""
    found = np.zeros((len(starts), 4), np.int64)
    edges = np.empty(longest(starts, stops), np.int64)
    for i in range(len(starts)):
        n, height = edges_of(text, starts[i], stops[i], most_groups, edges), heights[i]
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


@compiled(written(I64, 2), *MASKS, *MASKS, I64)
def overlaps(
    text: Any, starts: Any, stops: Any, other: Any, other_starts: Any, other_stops: Any, most_groups: int
) -> Any:
    """(n, 3): of each pair of masks, pixels in common and the area of each.

    In common: -1 for malformed counts on the left, -2 on the right, -3 for masks that cover unlike numbers of pixels.
    """
    found = np.zeros((len(starts), 3), np.int64)
    a = np.empty(longest(starts, stops), np.int64)
    b = np.empty(longest(other_starts, other_stops), np.int64)
    for i in range(len(starts)):
        a_runs = edges_of(text, starts[i], stops[i], most_groups, a)
        b_runs = edges_of(other, other_starts[i], other_stops[i], most_groups, b)
        if a_runs < 0 or b_runs < 0 or a[a_runs - 1] != b[b_runs - 1]:
            found[i, 0] = -1 if a_runs < 0 else -2 if b_runs < 0 else -3
        else:
            found[i, 0], found[i, 1] = _shared(a, a_runs, b, b_runs), area_of(a, a_runs)
            found[i, 2] = area_of(b, b_runs)
    return found


@compiled(written(I64, 1), *MASKS, I64, I64, read_only(I64, 2))
def areas_within(text: Any, starts: Any, stops: Any, most_groups: int, height: int, windows: Any) -> Any:
    """Pixels of each mask, of an image so high, inside its window x0, y0, x1, y1; -1 for malformed counts."""
    found = np.zeros(len(starts), np.int64)
    edges = np.empty(longest(starts, stops), np.int64)
    for i in range(len(starts)):
        n = edges_of(text, starts[i], stops[i], most_groups, edges)
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


@compiled(written(BOOL, 1), *MASKS, I64, read_only(I64, 1))
def covers(text: Any, starts: Any, stops: Any, most_groups: int, positions: Any) -> Any:
    """Whether each mask has the pixel at its position, column * h + row; not for malformed counts."""
    found = np.zeros(len(starts), np.bool_)
    edges = np.empty(longest(starts, stops), np.int64)
    for i in range(len(starts)):
        n = edges_of(text, starts[i], stops[i], most_groups, edges)
        if n > 0 and positions[i] >= 0:
            found[i] = np.searchsorted(edges[:n], positions[i], side="right") % 2 == 1 and positions[i] < edges[n - 1]
    return found


@compiled(written(I64, 1), *MASKS, I64, I64)
def merged_edges(text: Any, starts: Any, stops: Any, most_groups: int, least: int) -> Any:
    """Where the mask flips that holds the pixels which at least so many of these masks have, and its last position.

    As rle.from_edges takes them, but for the last: the pixels covered, -1 for malformed counts, -2 for unlike sizes.
    """
    room = np.int64(0)
    for i in range(len(starts)):
        room += stops[i] - starts[i]
    flips, n, total = np.empty(room, np.int64), 0, np.int64(-1)
    edges = np.empty(longest(starts, stops), np.int64)
    for i in range(len(starts)):
        runs = edges_of(text, starts[i], stops[i], most_groups, edges)
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


@compiled(written(I64, 1), read_only(I64, 1), I64, I64, I64, I64)
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


# ---- outlines of pixels ---------------------------------------------------------------------------


@compiled(written(I64, 2), read_only(BOOL, 2))
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


# ---- matching -------------------------------------------------------------------------------------


@compiled(
    types.void,
    *(
        read_only(F64, 2),
        read_only(F64, 1),
        read_only(BOOL, 1),
        read_only(BOOL, 1),
        read_only(F64, 1),
        read_only(F64, 2),
        read_only(F64, 1),
        BOOL,
    ),
    *(written(U64, 1), written(U64, 1)),
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
