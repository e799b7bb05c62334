"""Where pixels come from: resizing images, clipping boxes, and the outlines of masks under a bilinear resize.

Knows arrays and their coordinates; knows nothing of models or of run lengths. All functions are pure. The compiled
loops are imported where they are called: loading them takes longer than all else that a command needs to begin.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.masks.arrays import Taps

_FRACTION_BITS = 22
# Few enough for a block of lines to stay in the processor's cache, many enough to fill its vectors.
_BLOCK = 128


def stretch(image_rgb: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize (h, w, 3) uint8 to size_hw, whatever the aspect; bilinear, antialiased when shrinking, as Pillow does.

    Byte for byte what Pillow up to 12 gives (Resample.c: first the width, then the height, 8 bits in between; Pillow
    13 begins with the height where that costs less), several times faster: both passes are sums of whole lines, for
    which the image is turned on its side, a block of rows at a time.
    """
    from segray.imaging.opencv import cv2
    from segray.masks import _kernels

    height, width, channels = image_rgb.shape
    lines = np.ascontiguousarray(image_rgb).reshape(height, width * channels)
    if width != size_hw[1]:
        narrow = np.empty((height, size_hw[1] * channels), np.uint8)
        window = _window(width, size_hw[1])
        for at in range(0, height, _BLOCK):
            block = np.asarray(cv2.transpose(lines[at : at + _BLOCK]), np.uint8)
            turned = np.empty((narrow.shape[1], block.shape[1]), np.uint8)
            _kernels.resample(block, *window, _FRACTION_BITS, channels, turned)
            narrow[at : at + _BLOCK] = cv2.transpose(turned)
        lines = narrow
    if height != size_hw[0]:
        low = np.empty((size_hw[0], lines.shape[1]), np.uint8)
        _kernels.resample(lines, *_window(height, size_hw[0]), _FRACTION_BITS, 1, low)
        lines = low
    return lines.reshape(*size_hw, channels)


@functools.lru_cache(maxsize=64)
def _window(source: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """For each output pixel of an axis: the first source pixel it reads, how many, and their weights (target, most)."""
    scale = source / target
    reach = max(scale, 1.0)
    centre = (np.arange(target) + 0.5) * scale
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    taps = np.minimum((centre + reach + 0.5).astype(np.int64), source) - first
    at = np.arange(int(taps.max()))
    distance = np.abs((at + first[:, None] - centre[:, None] + 0.5) * (1 / reach))
    weights = np.where((distance < 1) & (at < taps[:, None]), 1 - distance, 0)
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # One after the other, as Pillow adds them.
    return first, taps, (0.5 + weights * (1 << _FRACTION_BITS)).astype(np.int32)


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
    from segray.imaging.opencv import cv2

    return np.asarray(cv2.resize(image_rgb, size_hw[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)


# ---- bilinear resize, thresholded -----------------------------------------------------------------


def linear_taps(source: int, target: int, start: int = 0, stop: int | None = None) -> Taps:
    """An axis resized from `source` to `target` pixels: half-pixel centres, clamped edges, as cv2.INTER_LINEAR.

    Only the outputs start..stop-1 of it; all by default.
    """
    centre = (np.arange(start, target if stop is None else stop) + 0.5) * (source / target) - 0.5
    floor = np.floor(centre).astype(np.intp)
    inside = (floor >= 0) & (floor < source - 1)
    low = floor.clip(0, source - 1)
    weight = np.where(inside, centre - floor, 0).astype(np.float32)
    return Taps.of(start, low, np.minimum(low + 1, source - 1), weight)


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
    return Taps(start, taps.low, taps.high, taps.weight)


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
    return Taps.of(int(inside[0]) if len(inside) else 0, low_at, np.minimum(low_at + 1, side - 1), at - floor)


def framed(grid: NDArray[np.float32]) -> NDArray[np.float32]:
    """The grid (r, c) with a cell of 0 on every side, (r + 2, c + 2)."""
    frame = np.zeros((grid.shape[0] + 2, grid.shape[1] + 2), np.float32)
    frame[1:-1, 1:-1] = grid
    return frame


def mask_edges(grid: NDArray[np.float32], rows: Taps, columns: Taps, height: int) -> NDArray[np.int64]:
    """Where the mask `bilinear resize of grid > 0.5` flips, without resizing: for rle.from_edges.

    grid: (r, c) float32. rows, columns: how the output reads it; all beyond them is 0. height: of the full image.
    Returns ascending positions column * height + row, an even number per column.

    Down an output column, values between two grid rows only rise or only fall, rounding included; so they cross 0.5
    at most once there, where a straight line would or in a row beside it. Work grows with the grid's rows, not the
    image's. The arithmetic is that of OpenCV 5's x86 builds (columns first, one fused multiply-add per axis), so that
    pixels next to 0.5 fall on the same side.
    """
    from segray.masks import _kernels

    if not len(rows.low) or not len(columns.low):
        return np.zeros(0, np.int64)
    edges: NDArray[np.int64] = _kernels.edges(np.ascontiguousarray(grid, np.float32), 0, 0, rows, columns, height)
    return edges


def cut_out(planes: NDArray[np.float32], cuts_xyxy: NDArray[np.int64], frame: float) -> NDArray[np.float32]:
    """Of each plane of (r, c, n) its cut, columns x0..x1-1 and rows y0..y1-1, with a cell of `frame` on every side.

    cuts_xyxy: (n, 4). All in a row, (sum of (y1 - y0 + 2) * (x1 - x0 + 2),).
    """
    from segray.masks import _kernels

    cut: NDArray[np.float32] = _kernels.cut_out(planes, cuts_xyxy, np.float32(frame))
    return cut


def edges_of_cuts(
    cells: NDArray[np.float32], cuts_xyxy: NDArray[np.int64], rows: Taps, columns: Taps, height: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`mask_edges` of n grids that are 0 outside their cuts, at the cost of these; for rle.from_edges_of_all.

    cells: of the cuts, as `cut_out` arranges them, framed by 0. rows, columns: of all n, which cover the whole image.
    Returns the edges of all masks, and where each mask's stop, (n,).
    """
    from segray.masks import _kernels

    x0, y0, x1, y1 = cuts_xyxy.T
    first = np.searchsorted(columns.high, x0), np.searchsorted(rows.high, y0)
    reading = np.stack([*first, np.searchsorted(columns.low, x1), np.searchsorted(rows.low, y1)], axis=1)
    edges: tuple[NDArray[np.int64], NDArray[np.int64]] = _kernels.edges_of_cuts(
        cells, cuts_xyxy, reading, rows, columns, height
    )
    return edges
