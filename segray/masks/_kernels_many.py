"""Compiled loops over many finished masks: overlaps, unions, boxes, outlines and matching.

The loops are compiled as those of _kernels.py. They have their own module because a worker needs them only for tiles.
Compiling all of them takes seconds the first time.
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
    U64,
    area_of,
    compiled,
    longest,
    read_only,
    write_run_ends,
    written,
)

# ---- runs -----------------------------------------------------------------------------------------


@compiled(I64, read_only(I64, 1), I64, read_only(I64, 1), I64)
def _shared(a: Any, a_runs: int, b: Any, b_runs: int) -> Any:
    """Return the number of pixels that two masks of one image have in common."""
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
    """Return (n, 4) int64: the tightest boxes of whole pixels, x, y, w, h.

    The box of an empty mask is all 0. w is -1 for malformed counts or a height below 1. heights: (n,), of the images.
    """
    boxes_xywh = np.zeros((len(starts), 4), np.int64)
    edges = np.empty(longest(starts, stops), np.int64)
    for i in range(len(starts)):
        n, height = write_run_ends(text, starts[i], stops[i], most_groups, edges), heights[i]
        if n < 0 or height < 1:
            boxes_xywh[i, 2] = -1
            continue
        left, right, top, bottom = np.int64(-1), np.int64(-1), height, np.int64(-1)
        first_of_column = np.int64(0)  # A run mostly begins near the column of the run before.
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
            boxes_xywh[i, 0], boxes_xywh[i, 1] = left, top
            boxes_xywh[i, 2], boxes_xywh[i, 3] = right // height - left + 1, bottom - top + 1
    return boxes_xywh


@compiled(written(I64, 2), *MASKS, *MASKS, I64)
def overlaps(
    text: Any, starts: Any, stops: Any, other: Any, other_starts: Any, other_stops: Any, most_groups: int
) -> Any:
    """Return (n, 3) int64 for n pairs of masks: the pixels in common, the left area and the right area.

    The pixels in common are -1 for malformed counts on the left, and -2 on the right.
    They are -3 for masks that cover different numbers of pixels.
    """
    pixels = np.zeros((len(starts), 3), np.int64)
    a = np.empty(longest(starts, stops), np.int64)
    b = np.empty(longest(other_starts, other_stops), np.int64)
    for i in range(len(starts)):
        a_runs = write_run_ends(text, starts[i], stops[i], most_groups, a)
        b_runs = write_run_ends(other, other_starts[i], other_stops[i], most_groups, b)
        if a_runs < 0 or b_runs < 0 or a[a_runs - 1] != b[b_runs - 1]:
            pixels[i, 0] = -1 if a_runs < 0 else -2 if b_runs < 0 else -3
        else:
            pixels[i, 0], pixels[i, 1] = _shared(a, a_runs, b, b_runs), area_of(a, a_runs)
            pixels[i, 2] = area_of(b, b_runs)
    return pixels


@compiled(written(I64, 1), *MASKS, I64, I64, read_only(I64, 2))
def areas_within(text: Any, starts: Any, stops: Any, most_groups: int, height: int, windows: Any) -> Any:
    """Return the set pixels of each mask inside its window, (n,) int64; -1 for malformed counts.

    height: of the image, in pixels. windows: (n, 4) x0, y0, x1, y1 in pixels; x1 and y1 are exclusive.
    """
    areas = np.zeros(len(starts), np.int64)
    edges = np.empty(longest(starts, stops), np.int64)
    for i in range(len(starts)):
        n = write_run_ends(text, starts[i], stops[i], most_groups, edges)
        if n < 0:
            areas[i] = -1
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
                        areas[i] += high - low
                at = last
    return areas


@compiled(written(BOOL, 1), *MASKS, I64, read_only(I64, 1))
def covers(text: Any, starts: Any, stops: Any, most_groups: int, positions: Any) -> Any:
    """Return, for each mask, whether the pixel at its position is set: (n,) bool, false for malformed counts.

    positions: (n,) int64, column * h + row.
    """
    is_set = np.zeros(len(starts), np.bool_)
    edges = np.empty(longest(starts, stops), np.int64)
    for i in range(len(starts)):
        n = write_run_ends(text, starts[i], stops[i], most_groups, edges)
        if n > 0 and positions[i] >= 0:
            is_set[i] = np.searchsorted(edges[:n], positions[i], side="right") % 2 == 1 and positions[i] < edges[n - 1]
    return is_set


@compiled(written(I64, 1), *MASKS, I64, I64)
def merged_edges(text: Any, starts: Any, stops: Any, most_groups: int, least: int) -> Any:
    """Return the edges of the pixels that at least `least` of these masks have, and one last value.

    The edges are in the form of rle.from_edges. The last value is the number of pixels that the masks cover.
    The only value is -1 for malformed counts, and -2 for masks of different sizes.
    """
    room = np.int64(0)
    for i in range(len(starts)):
        room += stops[i] - starts[i]
    flips, n, total = np.empty(room, np.int64), 0, np.int64(-1)
    edges = np.empty(longest(starts, stops), np.int64)
    for i in range(len(starts)):
        runs = write_run_ends(text, starts[i], stops[i], most_groups, edges)
        if runs < 0 or (total >= 0 and edges[runs - 1] != total):
            return np.full(1, -1 if runs < 0 else -2, np.int64)
        total = edges[runs - 1]
        for k in range(runs - runs % 2):
            flips[n] = 2 * edges[k] + k % 2  # Even where a run of ones begins, odd where it ends.
            n += 1
    flips = np.sort(flips[:n])
    merged, n_merged, depth = np.empty(n + 1, np.int64), 0, 0
    for flip in flips:
        before = depth
        depth += 1 if flip % 2 == 0 else -1
        if (before >= least) != (depth >= least):
            merged[n_merged] = flip // 2
            n_merged += 1
    merged[n_merged] = total
    return merged[: n_merged + 1].copy()


@compiled(written(I64, 1), read_only(I64, 1), I64, I64, I64, I64)
def placed_edges(runs: Any, rows: int, x0: int, y0: int, height: int) -> Any:
    """Return the edges of a mask that is placed at (x0, y0) in an image of this height.

    runs: the runs of the mask by itself. rows: the height of the mask by itself, in pixels.
    """
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
    """Return the outlines of a mask's pixels along the pixels' edges: (n, 3) int64 x, y and ring number of each corner.

    framed: (h + 2, w + 2) bool, the mask with a frame of 0. Corners count from the mask's own top left pixel.
    Rings have the mask on their right: outer rings go clockwise on the screen, holes counterclockwise.
    Pixels that touch only at a corner belong to different rings.
    """
    rows, columns = framed.shape
    seen = np.zeros((rows, columns), np.bool_)  # top edges that a ring contains
    corners, n, ring = np.empty((256, 3), np.int64), 0, 0
    for row in range(1, rows - 1):
        for column in range(1, columns - 1):
            if not framed[row, column] or framed[row - 1, column] or seen[row, column]:
                continue
            # The pixel below and right of corner (x, y) is framed[y, x]. Headings 0..3: right, down, left, up.
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
    """Match the detections of one image and class to objects, as COCOeval.evaluateImg of pycocotools does.

    ious: (detections by falling score, objects). ranges: (r, 2) of object areas in pixels, both ends included. lenient:
    no detection is wrong for lack of an object. matched, ignored: (detections,) uint64, 0 at first. Bit r * t + i is
    set for range r and threshold i of t thresholds.
    """
    detections, objects = ious.shape
    is_ignored, order, taken = np.empty(objects, np.bool_), np.empty(objects, np.int64), np.empty(objects, np.bool_)
    for r in range(len(ranges)):
        n = 0
        for g in range(objects):
            is_ignored[g] = ignore[g] or object_areas[g] < ranges[r, 0] or object_areas[g] > ranges[r, 1]
            if not is_ignored[g]:
                order[n] = g
                n += 1
        for g in range(objects):
            if is_ignored[g]:
                order[n] = g
                n += 1
        for i in range(len(thresholds)):
            bit = np.uint64(1) << np.uint64(r * len(thresholds) + i)
            taken[:] = False
            for d in range(detections):
                best_iou, best_object = min(thresholds[i], 1 - 1e-10), -1
                for g in order:
                    if taken[g] and not crowd[g]:
                        continue
                    if best_object >= 0 and not is_ignored[best_object] and is_ignored[g]:
                        break
                    if ious[d, g] < best_iou:
                        continue
                    best_iou, best_object = ious[d, g], g
                if best_object >= 0:
                    taken[best_object] = True
                    matched[d] |= bit
                    if is_ignored[best_object]:
                        ignored[d] |= bit
                elif lenient or areas[d] < ranges[r, 0] or areas[d] > ranges[r, 1]:
                    ignored[d] |= bit
