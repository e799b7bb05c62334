"""The limits on an image that is decoded. Configuration and imaging share them, so the defaults stand here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The largest image that is decoded: bytes of the file, pixels in all, pixels along one side (inclusive)."""

    max_bytes: int = 256 * 2**20
    max_pixels: int = 200_000_000
    max_side_px: int = 50_000


DEFAULT_LIMITS = Limits()
