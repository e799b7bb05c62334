"""Limits and thresholds that several rooms share: the largest image that is decoded, the score that headlines count."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ImageLimits:
    """The largest image that is decoded, and how its samples are read. All limits are inclusive.

    max_bytes: size of the file. max_pixels: width times height. max_side_px: the longer side. bit_depth: bits, 8 to 16,
    that 16-bit samples use; "auto" to tell by each image's samples.
    """

    max_bytes: int = 256 * 2**20
    max_pixels: int = 200_000_000
    max_side_px: int = 50_000
    bit_depth: int | Literal["auto"] = "auto"

    @property
    def samples_depth(self) -> int | None:
        """Return the bits that 16-bit samples use; None to tell by each image's samples."""
        return None if self.bit_depth == "auto" else self.bit_depth


DEFAULT_LIMITS = ImageLimits()

# Summaries and reports count the instances of this score and more first, and then all instances.
CONFIDENT_SCORE = 0.5
