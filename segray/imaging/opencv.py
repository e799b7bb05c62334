"""OpenCV, imported so that the environment of the process stays as it was.

Knows what its import writes there: folders for LD_LIBRARY_PATH, which every program started later would get.
"""

from __future__ import annotations

from segray._system import host_process

with host_process.kept():
    import cv2

__all__ = ["cv2"]
