"""Resizing of images, their place in a window, and clipping of boxes.

This module knows images and their coordinates. `outlines` knows masks. All functions are pure.
The compiled loops are imported where they are called: their import takes longer than all else that a command starts.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from segray.masks.arrays import FRACTION_BITS

# letterbox fits an image and pads both sides, corner fits and pads right and bottom, stretch ignores the aspect.
Resize = Literal["letterbox", "corner", "stretch"]
# opencv as cv2 computes in fixed point, exact as OpenVINO computes in float32, antialiased as Pillow.
Rounding = Literal["opencv", "exact", "antialiased"]

# Rows of a block: few enough to stay in the processor's cache, many enough to fill its vector registers.
_BLOCK_ROWS = 128


def stretch(image_rgb: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize (h, w, 3) uint8 to size_hw as Pillow does: bilinear, antialiased when shrinking. The aspect may change.

    The result equals that of Pillow up to 12 byte for byte (Resample.c: width first, then height, 8 bits in between).
    Pillow 13 begins with the height if that costs less. This function is several times faster than Pillow.
    Both passes sum whole lines. The first pass therefore transposes the image, a block of rows at a time.
    """
    from segray.imaging.opencv import cv2
    from segray.masks import _kernels

    height, width, channels = image_rgb.shape
    lines = np.ascontiguousarray(image_rgb).reshape(height, width * channels)
    if width != size_hw[1]:
        narrowed = np.empty((height, size_hw[1] * channels), np.uint8)
        window = _window(width, size_hw[1])
        for start in range(0, height, _BLOCK_ROWS):
            block = np.asarray(cv2.transpose(lines[start : start + _BLOCK_ROWS]), np.uint8)
            resampled = np.empty((narrowed.shape[1], block.shape[1]), np.uint8)
            _kernels.resample(block, *window, channels, resampled)
            narrowed[start : start + _BLOCK_ROWS] = cv2.transpose(resampled)
        lines = narrowed
    if height != size_hw[0]:
        resized = np.empty((size_hw[0], lines.shape[1]), np.uint8)
        _kernels.resample(lines, *_window(height, size_hw[0]), 1, resized)
        lines = resized
    return lines.reshape(*size_hw, channels)


def swap_red_and_blue(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return (n, h, w, 3) uint8 with the first and the third channel swapped, as a copy.

    An array of another shape is returned unchanged.
    """
    from segray.imaging.opencv import cv2

    if images.ndim != 4 or images.shape[3] != 3:
        return images
    rows = np.ascontiguousarray(images).reshape(-1, *images.shape[2:])
    return np.asarray(cv2.cvtColor(rows, cv2.COLOR_RGB2BGR), np.uint8).reshape(images.shape)


@functools.lru_cache(maxsize=64)
def _window(source: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int32]]:
    """Return the source pixels that each output pixel of an axis reads.

    Returns the first source pixel (target,), the number of source pixels (target,), and the weights (target, most) in
    fixed point.
    """
    scale = source / target
    reach = max(scale, 1.0)
    centre = (np.arange(target) + 0.5) * scale
    first = np.maximum((centre - reach + 0.5).astype(np.int64), 0)
    taps = np.minimum((centre + reach + 0.5).astype(np.int64), source) - first
    tap = np.arange(int(taps.max()))
    distance = np.abs((tap + first[:, None] - centre[:, None] + 0.5) * (1 / reach))
    weights = np.where((distance < 1) & (tap < taps[:, None]), 1 - distance, 0)
    weights /= np.cumsum(weights, axis=1)[:, -1:]  # cumsum adds in Pillow's order; sum would round otherwise.
    return first, taps, (0.5 + weights * (1 << FRACTION_BITS)).astype(np.int32)


def to_pixels(boxes_xyxy: NDArray[np.float32], size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Convert boxes (n, 4) normalised to 0..1 to source pixels, clipped to the image. Inverted boxes stay inverted."""
    height, width = size_hw
    limits = np.array([width, height, width, height], np.float32)
    clipped: NDArray[np.float32] = np.clip(boxes_xyxy * limits, 0, limits)
    return clipped


def fitted(size_hw: tuple[int, int], window_hw: tuple[int, int]) -> tuple[int, int]:
    """Return the largest height and width of this aspect within the window, rounded down to pixels, at least 1."""
    scale = min(window_hw[0] / size_hw[0], window_hw[1] / size_hw[1])
    return max(1, int(scale * size_hw[0])), max(1, int(scale * size_hw[1]))


def fit_and_pad(image_rgb: NDArray[np.uint8], window_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize (h, w, 3) uint8 to the `fitted` size, as cv2 does, and pad right and bottom with 0.

    window_hw: height and width of the result, in pixels.
    """
    height, width = fitted((image_rgb.shape[0], image_rgb.shape[1]), window_hw)
    window = np.zeros((*window_hw, 3), np.uint8)
    window[:height, :width] = resize(image_rgb, (height, width))
    return window


@dataclass(frozen=True)
class Fit:
    """The place of an image in a window: fitted and centred, fitted into the upper left corner, or stretched.

    top, left: padding before the image, in pixels; an odd pixel of padding is after the image. content_hw: height and
    width of the resized image, in pixels.
    """

    top: int
    left: int
    content_hw: tuple[int, int]

    @classmethod
    def of(cls, size_hw: tuple[int, int], window_hw: tuple[int, int], resize: Resize = "letterbox") -> Self:
        """Return the fit of an image of this size in a window, rounded to whole pixels, half to even."""
        if resize == "stretch":
            return cls(0, 0, window_hw)
        scale = min(window_hw[0] / size_hw[0], window_hw[1] / size_hw[1])
        height, width = max(round(size_hw[0] * scale), 1), max(round(size_hw[1] * scale), 1)
        if resize == "corner":
            return cls(0, 0, (height, width))
        return cls((window_hw[0] - height) // 2, (window_hw[1] - width) // 2, (height, width))

    @classmethod
    def exact(cls, size_hw: tuple[int, int], window_hw: tuple[int, int], resize: Resize) -> Self:
        """Return the fit that OpenVINO computes in float32."""
        if resize == "stretch":
            return cls(0, 0, window_hw)
        size, window = np.array(size_hw, np.float32), np.array(window_hw, np.float32)
        height, width = np.rint(size * (window / size).min()).clip(1).astype(int).tolist()
        if resize == "corner":
            return cls(0, 0, (height, width))
        return cls((window_hw[0] - height) // 2, (window_hw[1] - width) // 2, (height, width))


def place(
    image_rgb: NDArray[np.uint8],
    fit: Fit,
    window_hw: tuple[int, int],
    pad_value: int | tuple[int, int, int],
    rounding: Rounding,
) -> NDArray[np.uint8]:
    """Resize (h, w, 3) uint8 to the fit, and pad with a constant level, or with one for each channel.

    window_hw: height and width of the result, in pixels. pad_value: level of the padding, 0..255.
    """
    content = stretch_to(image_rgb, fit.content_hw, rounding)
    if fit.content_hw == window_hw:
        return content
    bottom, right = fit.top + fit.content_hw[0], fit.left + fit.content_hw[1]
    window = np.empty((*window_hw, content.shape[2]), np.uint8)
    window[: fit.top] = window[bottom:] = pad_value
    window[fit.top : bottom, : fit.left] = window[fit.top : bottom, right:] = pad_value
    window[fit.top : bottom, fit.left : right] = content
    return window


def stretch_to(image_rgb: NDArray[np.uint8], size_hw: tuple[int, int], rounding: Rounding) -> NDArray[np.uint8]:
    """Resize (h, w, 3) uint8 to size_hw, unless the image has that size. The aspect may change."""
    if image_rgb.shape[:2] == size_hw:
        return image_rgb
    return {"opencv": resize, "exact": resize_exact, "antialiased": stretch}[rounding](image_rgb, size_hw)


def resize(image_rgb: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize (h, w, 3) uint8 to size_hw as cv2 does: bilinear, not antialiased. The aspect may change."""
    from segray.imaging.opencv import cv2

    return np.asarray(cv2.resize(image_rgb, size_hw[::-1], interpolation=cv2.INTER_LINEAR), np.uint8)


@functools.lru_cache(maxsize=64)
def _exact_taps(source: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the lower source pixel of each output pixel, (target,), and the weights of both pixels, (target, 2)."""
    scale = np.float32(target) / np.float32(source)
    centre = (np.arange(target, dtype=np.float32) + np.float32(0.5)) / scale - np.float32(0.5)
    centre = centre.clip(0, source - 1)
    low = centre.astype(np.int64)
    high_weight = centre - low.astype(np.float32)
    return low, np.stack([1 - high_weight, high_weight], axis=1)


def resize_exact(image_rgb: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize (h, w, 3) uint8 to size_hw as OpenVINO does: bilinear, not antialiased. The aspect may change.

    OpenVINO rounds the value that it computes in float32, half to even. cv2 computes in fixed point and is one level
    lower at every eighth pixel. The order of the fused operations is that of OpenVINO 2026.4 on x86.
    """
    from segray.masks import _kernels_grids

    height, width, channels = image_rgb.shape
    if (height, width) == size_hw:
        return image_rgb
    lines = np.ascontiguousarray(image_rgb).reshape(height, width * channels)
    resized = np.empty((size_hw[0], size_hw[1] * channels), np.uint8)
    rows, columns = _exact_taps(height, size_hw[0]), _exact_taps(width, size_hw[1])
    _kernels_grids.resize_linear(lines, *rows, *columns, channels, resized)
    return resized.reshape(*size_hw, channels)
