"""Samples of any depth and colour, as RGB of 8 bits per channel.

This module knows arithmetic on arrays alone. Each function works on all pixels that it gets; callers bound memory by
bands of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.errors import ImageError
from segray.imaging.opencv import cv2

Pixels = NDArray[np.uint8]
_BAND_PIXELS = 2**18
# Depths that cameras and scanners have.
_DEPTHS = (8, 10, 12, 14)
FULL_DEPTH = 16


def bands(height: int, width: int) -> Iterator[slice]:
    """Yield the rows of a picture in bands. Conversions hold several copies of what they convert."""
    rows = max(1, _BAND_PIXELS // max(1, width))
    for top in range(0, height, rows):
        yield slice(top, min(top + rows, height))


def converted(height: int, width: int, band: Callable[[slice], NDArray[Any]]) -> Pixels:
    """Return the picture (height, width, 3) of the bands that the function gives."""
    rgb = np.empty((height, width, 3), np.uint8)
    for rows in bands(height, width):
        rgb[rows] = band(rows)
    return rgb


def eight_bits(samples: NDArray[Any], white: int) -> Pixels:
    """Return samples 0..white as 0..255. Of samples of 9 to 16 whole bits the upper 8 bits are kept."""
    if samples.dtype == np.bool_:
        return samples.view(np.uint8) * np.uint8(255)
    if white == 255 and samples.dtype == np.uint8:
        return samples
    if white == 65535:
        return (samples >> 8).astype(np.uint8)
    return np.asarray(_scale(white)[np.minimum(samples, white)], np.uint8)


@lru_cache(maxsize=32)
def _scale(white: int) -> Pixels:
    """Return the 8-bit value of each sample 0..white."""
    values = np.arange(white + 1, dtype=np.uint32)
    depth = white.bit_length()
    is_whole_bits = white == (1 << depth) - 1
    return (values >> depth - 8 if is_whole_bits and depth >= 8 else (values * 255 + white // 2) // white).astype(
        np.uint8
    )


def grey_to_rgb(grey: Pixels) -> Pixels:
    """Return grey (height, width) as RGB."""
    return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), np.uint8)


def cmyk_to_rgb(cmyk: Pixels) -> Pixels:
    """Return CMYK without a profile as RGB, as Pillow does."""
    light = _three(255 - cmyk[..., 3])
    inks = np.ascontiguousarray(cmyk[..., :3])
    return np.asarray(cv2.subtract(light, cv2.multiply(inks, light, scale=1 / 255)), np.uint8)


def over_white(rgb: Pixels, alpha: Pixels, *, premultiplied: bool = False) -> Pixels:
    """Return RGB composited over white. alpha: (height, width)."""
    opacity = _three(np.ascontiguousarray(alpha))
    colours = np.ascontiguousarray(rgb)
    if not premultiplied:
        colours = np.asarray(cv2.multiply(colours, opacity, scale=1 / 255), np.uint8)
    return np.asarray(cv2.add(colours, 255 - opacity), np.uint8)


def _three(grey: Pixels) -> Pixels:
    return np.asarray(cv2.merge((grey, grey, grey)), np.uint8)


@dataclass
class Range:
    """What is known of the samples of a 16-bit picture, to tell the depth that is used. Alpha does not count.

    most: largest sample. shifted, repeated: whether each sample is 256 or 257 times an 8-bit value, as converters
    write.
    """

    most: int = 0
    shifted: bool = True
    repeated: bool = True

    def add(self, samples: NDArray[Any]) -> None:
        """Add samples."""
        self.most = max(self.most, int(samples.max(initial=0)))
        if self.depth_is_open:
            low = samples & 255
            self.shifted &= not low.any()
            self.repeated &= bool((low == samples >> 8).all())

    @property
    def depth_is_open(self) -> bool:
        """Return whether the samples seen so far may be of fewer than 16 bits."""
        return self.most < 1 << _DEPTHS[-1]

    @property
    def depth(self) -> int:
        """Return the depth: the least of 8, 10, 12 and 14 bits that holds all samples, else 16.

        A picture of 8 bits that was widened to 16 is a full picture, however dark.
        """
        if not self.most or self.shifted or self.repeated:
            return FULL_DEPTH
        return next((depth for depth in _DEPTHS if self.most < 1 << depth), FULL_DEPTH)


def used_depth(parts: Iterable[NDArray[Any]], depth: int | None) -> tuple[int, int | None]:
    """Return the bits that 16-bit samples use, and the same number if it is guessed by the samples.

    parts: samples without alpha. depth: the bits by a setting; None to tell by the samples. Raise ImageError for a
    sample that needs more bits than the setting says.
    """
    if depth == FULL_DEPTH:
        return FULL_DEPTH, None
    seen = Range()
    for part in parts:
        seen.add(part)
        if depth is None and not seen.depth_is_open:
            return FULL_DEPTH, None
    if depth is None:
        return seen.depth, seen.depth if seen.depth < FULL_DEPTH else None
    check_depth(seen.most, depth)
    return depth, None


def check_depth(most: int, depth: int) -> None:
    """Raise ImageError if the largest sample needs more bits than the setting says."""
    if most >> depth:
        raise ImageError(
            f"a sample of {most} needs more than {depth} bits (image.bit_depth)",
            hint="set image.bit_depth to auto or to the camera's depth",
        )
