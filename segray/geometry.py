"""Where pixels come from: resizing images, clipping boxes, and the outlines of masks under a bilinear resize.

Knows arrays and their coordinates; knows nothing of models or of run lengths. All functions are pure.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image


def stretch(image_rgb: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize (h, w, 3) uint8 to size_hw, whatever the aspect; bilinear, antialiased when shrinking, as Pillow does."""
    height, width = size_hw
    return np.asarray(Image.fromarray(image_rgb).resize((width, height), Image.Resampling.BILINEAR))


def to_pixels(boxes_xyxy: NDArray[np.float32], size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Boxes (n, 4) normalised to 0..1 -> source pixels, clipped to the image; inverted boxes stay inverted."""
    height, width = size_hw
    limits = np.array([width, height, width, height], np.float32)
    clipped: NDArray[np.float32] = np.clip(boxes_xyxy * limits, 0, limits)
    return clipped


def fitted(size_hw: tuple[int, int], window_hw: tuple[int, int]) -> tuple[int, int]:
    """The largest height and width of this aspect within the window, cut to whole pixels, at least 1."""
    scale = min(window_hw[0] / size_hw[0], window_hw[1] / size_hw[1])
    return max(1, int(scale * size_hw[0])), max(1, int(scale * size_hw[1]))


def fit_and_pad(image_rgb: NDArray[np.uint8], window_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize (h, w, 3) uint8 to `fitted`, cv2's bilinear, into the top left corner of the window; the rest is 0."""
    height, width = fitted((image_rgb.shape[0], image_rgb.shape[1]), window_hw)
    window = np.zeros((*window_hw, 3), np.uint8)
    window[:height, :width] = resize(image_rgb, (height, width))
    return window


def resize(image_rgb: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize (h, w, 3) uint8 to size_hw, whatever the aspect; bilinear, not antialiased, as cv2 does."""
    return np.asarray(cv2.resize(image_rgb, size_hw[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)


# ---- bilinear resize, thresholded -----------------------------------------------------------------


@dataclass(frozen=True)
class Taps:
    """What n consecutive output pixels of one axis read: source[low] * (1 - weight) + source[high] * weight.

    first: the output pixel that row 0 speaks of. low, high: (n,) intp, ascending; equal lows have equal highs.
    weight: (n,) float32, ascending where low is equal.
    """

    first: int
    low: NDArray[np.intp]
    high: NDArray[np.intp]
    weight: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.low)


def linear_taps(source: int, target: int, start: int = 0, stop: int | None = None) -> Taps:
    """An axis resized from `source` to `target` pixels: half-pixel centres, clamped edges, as cv2.INTER_LINEAR.

    Only the outputs start..stop-1 of it; all by default.
    """
    centre = (np.arange(start, target if stop is None else stop) + 0.5) * (source / target) - 0.5
    floor = np.floor(centre).astype(np.intp)
    inside = (floor >= 0) & (floor < source - 1)
    low = floor.clip(0, source - 1)
    weight = np.where(inside, centre - floor, 0).astype(np.float32)
    return Taps(start, low, np.minimum(low + 1, source - 1), weight)


def taps_on(taps: Taps, start: int, stop: int) -> Taps:
    """The outputs that read any of source[start:stop], with low and high counted from start - 1.

    That is the index into source[start:stop] with one pixel put before and one after.
    """
    reads = np.flatnonzero((taps.high >= start) & (taps.low < stop))
    if not len(reads):
        return Taps(0, taps.low[:0], taps.high[:0], taps.weight[:0])
    span = slice(reads[0], reads[-1] + 1)
    shift = start - 1
    return Taps(taps.first + int(reads[0]), taps.low[span] - shift, taps.high[span] - shift, taps.weight[span])


def tile_taps(low: np.floating[Any], high: np.floating[Any], side: int, limit: int) -> Taps:
    """One axis of a mask whose `side` pixels tile the box from low to high, source pixels; indices are into the mask
    with a pixel of 0 put before and after.

    As Detectron and Open Model Zoo paste: the box grows with the mask, is truncated toward zero and counts its last
    pixel in. Which pixels those are depends on the last bits, so it is computed in the dtype of the box.
    limit: pixels of the image on this axis.
    """
    half, centre = (high - low) * 0.5 * ((side + 2) / side), (high + low) * 0.5
    first, last = int(centre - half), int(centre + half)
    start, stop = np.clip((first, last + 1), 0, limit).tolist()
    taps = linear_taps(side + 2, max(last - first + 1, 1), start - first, max(start, stop) - first)
    return replace(taps, first=start)


def reframe_taps(low: np.float32, high: np.float32, side: int, limit: int) -> Taps:
    """One axis of a mask whose outermost pixel centres lie on the edges of the box, low and high over 0..1.

    As TensorFlow's object detection pastes: its crop_and_resize of the image's frame out of the mask, in float32.
    limit: pixels of the image on this axis. Nothing beyond the outermost centres is read.
    """
    extent = np.maximum(high - low, np.float32(1e-4))
    begin, end, reach = (0 - low) / extent, (1 - low) / extent, np.float32(side - 1)
    if limit > 1:
        at = begin * reach + np.arange(limit, dtype=np.float32) * ((end - begin) * reach / np.float32(limit - 1))
    else:
        at = np.array([0.5 * (begin + end) * reach], np.float32)
    inside = np.flatnonzero((at >= 0) & (at <= reach))
    at = at[inside]
    floor = np.floor(at)
    low_at = floor.astype(np.intp)
    return Taps(int(inside[0]) if len(inside) else 0, low_at, np.minimum(low_at + 1, side - 1), at - floor)


def mask_edges(grid: NDArray[np.float32], rows: Taps, columns: Taps, height: int) -> NDArray[np.int64]:
    """Where the mask `bilinear resize of grid > 0.5` flips, without resizing: for rle.from_edges.

    grid: (r, c) float32. rows, columns: how the output reads it; all beyond them is 0. height: of the full image.
    Returns ascending positions column * height + row, an even number per column.

    Down an output column, values between two grid rows only rise or only fall, rounding included; so they cross 0.5
    at most once there, and the crossing is found by bisection. Work grows with the grid's rows, not the image's.
    The arithmetic is that of OpenCV 5's x86 builds (columns first, one fused multiply-add per axis), so that
    pixels next to 0.5 fall on the same side.
    """
    if not len(rows) or not len(columns):
        return np.zeros(0, np.int64)
    lines = _lerp(grid.T[columns.low], grid.T[columns.high], columns.weight[:, None])
    first = np.flatnonzero(np.diff(rows.low, prepend=-1))
    last = np.append(first[1:], len(rows)) - 1
    low, high = lines[:, rows.low[first]], lines[:, rows.high[first]]
    begins = _lerp(low, high, rows.weight[first]) > 0.5
    ends = _lerp(low, high, rows.weight[last]) > 0.5
    column, slot = np.nonzero(_flips(begins, ends))
    # Slots alternate: before interval j is slot 2j, within it 2j + 1; the last one closes the column.
    at = np.append(first, len(rows))[slot // 2]
    within = slot % 2 == 1
    pick = column[within], slot[within] // 2
    at[within] = _crossing(low[pick], high[pick], rows.weight, first[pick[1]], last[pick[1]])
    edges: NDArray[np.int64] = (columns.first + column) * height + (rows.first + at)
    return edges


def _lerp(low: NDArray[Any], high: NDArray[Any], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """low + weight * (high - low), the product not rounded before the sum: a float32 fused multiply-add."""
    return _along(low.astype(np.float64), (high - low).astype(np.float64), weight)


def _along(low: NDArray[np.float64], rise: NDArray[np.float64], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    exact: NDArray[np.float64] = rise * weight
    exact += low
    return exact.astype(np.float32)


def _flips(begins: NDArray[np.bool_], ends: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(columns, intervals) states at both ends of each interval -> (columns, 2 * intervals + 1) changes of state."""
    columns, intervals = begins.shape
    states = np.zeros((columns, 2 * intervals + 2), np.bool_)
    states[:, 1:-1:2], states[:, 2:-1:2] = begins, ends
    changes: NDArray[np.bool_] = states[:, 1:] != states[:, :-1]
    return changes


def _crossing(
    low: NDArray[np.float32],
    high: NDArray[np.float32],
    weight: NDArray[np.float32],
    first: NDArray[np.intp],
    last: NDArray[np.intp],
) -> NDArray[np.intp]:
    """For each of k lines from low to high that crosses 0.5 between rows first and last: the first row beyond."""
    start, rise = low.astype(np.float64), (high - low).astype(np.float64)
    rising = rise > 0
    before, after = first, last
    for _ in range(int((last - first).max(initial=1) - 1).bit_length()):
        middle = (before + after + 1) >> 1  # Where the two are neighbours already: `after` again.
        beyond = (_along(start, rise, weight[middle]) > 0.5) == rising
        before, after = np.where(beyond, before, middle), np.where(beyond, middle, after)
    return after
