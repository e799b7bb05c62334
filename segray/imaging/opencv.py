"""OpenCV, imported without a change to the environment of the process.

The import of cv2 adds folders to LD_LIBRARY_PATH, which every program started later would get.
"""

from __future__ import annotations

from segray._system import host_process

with host_process.import_changes_undone():
    import cv2

__all__ = ["cv2"]
