"""Resizing of images, clipping of boxes, and the outlines of masks under a bilinear resize.

This module knows arrays and their coordinates; models and run lengths belong to others. All functions are pure.
The compiled loops are imported where they are called: their import takes longer than all else that a command starts.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.masks.arrays import Taps

_FRACTION_BITS = 22
# Rows of a block: few enough to stay in the processor's cache, many enough to fill its vector registers.
_BLOCK = 128


def stretch(image_rgb: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize (h, w, 3) uint8 to size_hw as Pillow does: bilinear, antialiased when shrinking. The aspect may change.

    The result equals that of Pillow up to 12 byte for byte (Resample.c: width first, then height, 8 bits in between).
    Pillow 13 begins with the height where that costs less. This function is several times faster than Pillow.
    Both passes sum whole lines. The first pass therefore transposes the image, a block of rows at a time.
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
    """Return the source pixels that each output pixel of an axis reads.

    Returns the first source pixel (target,), their number (target,), and their weights (target, most) in fixed point.
    """
    scale = source / target
    reach = max(scale, 1.0)
    centre = (np.arange(target) + 0.5) * scale
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    taps = np.minimum((centre + reach + 0.5).astype(np.int64), source) - first
    at = np.arange(int(taps.max()))
    distance = np.abs((at + first[:, None] - centre[:, None] + 0.5) * (1 / reach))
    weights = np.where((distance < 1) & (at < taps[:, None]), 1 - distance, 0)
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # cumsum adds in Pillow's order; sum would round otherwise.
    return first, taps, (0.5 + weights * (1 << _FRACTION_BITS)).astype(np.int32)


def to_pixels(boxes_xyxy: NDArray[np.float32], size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Convert boxes (n, 4) normalised to 0..1 to source pixels, clipped to the image. Inverted boxes stay inverted."""
    height, width = size_hw
    limits = np.array([width, height, width, height], np.float32)
    clipped: NDArray[np.float32] = np.clip(boxes_xyxy * limits, 0, limits)
    return clipped


def fitted(size_hw: tuple[int, int], window_hw: tuple[int, int]) -> tuple[int, int]:
    """Return the largest height and width of this aspect within the window, cut to whole pixels, at least 1."""
    scale = min(window_hw[0] / size_hw[0], window_hw[1] / size_hw[1])
    return max(1, int(scale * size_hw[0])), max(1, int(scale * size_hw[1]))


def fit_and_pad(image_rgb: NDArray[np.uint8], window_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize (h, w, 3) uint8 to `fitted`, cv2's bilinear, in the top left corner of the window. The rest is 0."""
    height, width = fitted((image_rgb.shape[0], image_rgb.shape[1]), window_hw)
    window = np.zeros((*window_hw, 3), np.uint8)
    window[:height, :width] = resize(image_rgb, (height, width))
    return window


def resize(image_rgb: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize (h, w, 3) uint8 to size_hw as cv2 does: bilinear, not antialiased. The aspect may change."""
    from segray.imaging.opencv import cv2

    return np.asarray(cv2.resize(image_rgb, size_hw[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)


# ---- bilinear resize, thresholded -----------------------------------------------------------------


def linear_taps(source: int, target: int, start: int = 0, stop: int | None = None) -> Taps:
    """Return the taps of an axis resized from `source` to `target` pixels.

    Centres are at half pixels and edges are clamped, as with cv2.INTER_LINEAR.

    start, stop: range of the output pixels, stop exclusive; all by default.
    """
    centre = (np.arange(start, target if stop is None else stop) + 0.5) * (source / target) - 0.5
    floor = np.floor(centre).astype(np.intp)
    inside = (floor >= 0) & (floor < source - 1)
    low = floor.clip(0, source - 1)
    weight = np.where(inside, centre - floor, 0).astype(np.float32)
    return Taps.of(start, low, np.minimum(low + 1, source - 1), weight)


def tile_taps(low: np.floating[Any], high: np.floating[Any], side: int, limit: int) -> Taps:
    """Return the taps of one axis of a mask whose `side` pixels tile the box from low to high.

    low, high: edges of the box in source pixels. limit: pixels of the image on this axis. Indices count into the mask
    with one pixel of 0 before and one after. The mask is pasted as Detectron and Open Model Zoo do. The box grows with
    the mask and is truncated toward zero. The box includes its last pixel. The last bits decide which pixels those are,
    so the arithmetic has the dtype of the box.
    """
    half, centre = (high - low) * 0.5 * ((side + 2) / side), (high + low) * 0.5
    first, last = int(centre - half), int(centre + half)
    start, stop = np.clip((first, last + 1), 0, limit).tolist()
    taps = linear_taps(side + 2, max(last - first + 1, 1), start - first, max(start, stop) - first)
    return Taps(start, taps.low, taps.high, taps.weight)


def reframe_taps(low: np.float32, high: np.float32, side: int, limit: int) -> Taps:
    """Return the taps of one axis of a mask whose outermost pixel centres lie on the edges of the box.

    low, high: edges of the box over 0..1. limit: pixels of the image on this axis.
    The mask is pasted as TensorFlow's object detection does: by crop_and_resize of the image's frame from the mask, in
    float32. Nothing beyond the outermost centres is read.
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
    """Return the grid (r, c) with a cell of 0 on each side, (r + 2, c + 2) float32."""
    frame = np.zeros((grid.shape[0] + 2, grid.shape[1] + 2), np.float32)
    frame[1:-1, 1:-1] = grid
    return frame


def mask_edges(grid: NDArray[np.float32], rows: Taps, columns: Taps, height: int) -> NDArray[np.int64]:
    """Return the positions where the mask `bilinear resize of grid > 0.5` flips, without resizing.

    Down an output column, values between two grid rows only rise or only fall, rounding included. So they cross 0.5 at
    most once there: where a straight line would, or in a row beside it. The work grows with the grid's rows, not the
    image's. The arithmetic is that of OpenCV 5's x86 builds: columns first, one fused multiply-add per axis. Pixels
    next to 0.5 therefore fall on the same side as in OpenCV.

    Args:
        grid: (r, c) float32.
        rows: Taps of the output's rows. Output pixels beyond them are 0.
        columns: Taps of the output's columns. Output pixels beyond them are 0.
        height: Height of the full image, in pixels.

    Returns:
        Ascending positions column * height + row for rle.from_edges, (m,) int64, an even number per column.
    """
    from segray.masks import _kernels

    if not len(rows.low) or not len(columns.low):
        return np.zeros(0, np.int64)
    edges: NDArray[np.int64] = _kernels.edges(np.ascontiguousarray(grid, np.float32), 0, 0, rows, columns, height)
    return edges


def cut_out(planes: NDArray[np.float32], cuts_xyxy: NDArray[np.int64], frame: float) -> NDArray[np.float32]:
    """Return the cut of each plane with a cell of `frame` on each side, all cuts in a row, 1-dimensional float32.

    planes: (r, c, n). cuts_xyxy: (n, 4) columns x0..x1-1 and rows y0..y1-1.
    The length is the sum of (y1 - y0 + 2) * (x1 - x0 + 2).
    """
    from segray.masks import _kernels

    cut: NDArray[np.float32] = _kernels.cut_out(planes, cuts_xyxy, np.float32(frame))
    return cut


def edges_of_cuts(
    cells: NDArray[np.float32], cuts_xyxy: NDArray[np.int64], rows: Taps, columns: Taps, height: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return `mask_edges` of n grids that are 0 outside their cuts, for rle.from_edges_of_all.

    The cost grows with the cuts, not with the grids.

    Args:
        cells: The cuts as `cut_out` arranges them, framed by 0.
        cuts_xyxy: (n, 4) int64 columns x0..x1-1 and rows y0..y1-1.
        rows: Taps of the rows of all n grids. They cover the whole image.
        columns: Taps of the columns of all n grids. They cover the whole image.
        height: Height of the full image, in pixels.

    Returns:
        The edges of all masks, and the end of each mask's edges, (n,).
    """
    from segray.masks import _kernels

    x0, y0, x1, y1 = cuts_xyxy.T
    first = np.searchsorted(columns.high, x0), np.searchsorted(rows.high, y0)
    reading = np.stack([*first, np.searchsorted(columns.low, x1), np.searchsorted(rows.low, y1)], axis=1)
    edges: tuple[NDArray[np.int64], NDArray[np.int64]] = _kernels.edges_of_cuts(
        cells, cuts_xyxy, reading, rows, columns, height
    )
    return edges
