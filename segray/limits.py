"""The limits on an image that is decoded. Configuration and imaging share these defaults."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageLimits:
    """The largest image that is decoded. All limits are inclusive.

    max_bytes: size of the file. max_pixels: width times height. max_side_px: the longer side.
    """

    max_bytes: int = 256 * 2**20
    max_pixels: int = 200_000_000
    max_side_px: int = 50_000


DEFAULT_LIMITS = ImageLimits()
