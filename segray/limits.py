"""Limits and thresholds that several rooms share: the largest image that is decoded, the score that headlines count."""

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

# Summaries and reports count the instances of this score and more first, and then all instances.
CONFIDENT_SCORE = 0.5
