"""OpenCV, imported so that the environment of the process stays as it was.

Knows what its import writes there: folders for LD_LIBRARY_PATH, which every program started later would get.
"""

from __future__ import annotations

from segray import host

with host.kept():
    import cv2

__all__ = ["cv2"]
