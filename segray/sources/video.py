"""Videos as frames at a given rate: the moments of a video, and the picture of each moment.

Knows OpenCV's video reader, which reads the file by ranges. Planning reads only the length and the frame rate. The
frame of a moment is the first frame whose time stamp is the moment or later. The frame therefore does not depend on the
position at which reading began. Pictures are upright: OpenCV applies the rotation in the file.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from segray.errors import ImageError
from segray.imaging.opencv import cv2
from segray.instances import ImageRef
from segray.sources.archives import BrokenFileError, SourceSpec
from segray.sources.uris import inside_uri
from segray.storage.store import ListedObject

EXTENSIONS = frozenset({"mp4", "m4v", "mov", "mkv", "webm", "avi", "mpg", "mpeg"})
_MAX_FRAMES = 1_000_000
# Video files round time stamps by less than _TOLERANCE_S. A moment more than _SEEK_S ahead is reached by a seek to
# _MARGIN_S before the moment.
_TOLERANCE_S, _SEEK_S, _MARGIN_S = 0.0006, 10.0, 2.0
_BMP_HEADER_BYTES = 54


def refs(file: ListedObject, stream: BinaryIO, spec: SourceSpec) -> list[ImageRef]:
    """Return one reference for each moment, with key FILE#t=SECONDS, sorted by key.

    size_bytes of a reference is the size of the picture as BMP.

    Args:
        file: The video's entry.
        stream: The video, opened at its start.
        spec: The configured source; its `frames_per_s` decides the moments.

    Raises:
        BrokenFileError: The file is no video, gives no length, or has more than _MAX_FRAMES moments.
    """
    video = _Stream(stream)  # OpenCV drops its reference without the GIL, so another reference must outlive it.
    capture = _open_capture(video)
    try:
        fps, frames = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
        width, height = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    finally:
        capture.release()
    video.check()
    if not (math.isfinite(fps) and 0 < fps <= 10_000 and frames >= 1):
        raise BrokenFileError(f"the video has no valid length: {frames:.0f} frames at {fps:.6g} a second")
    moments = math.floor(((frames - 1) / fps + _TOLERANCE_S) * spec.frames_per_s) + 1
    if moments > _MAX_FRAMES:
        raise BrokenFileError(f"a video of {frames:.0f} frames has {moments} moments, more than {_MAX_FRAMES}")
    size_bytes = width * height * 3 + _BMP_HEADER_BYTES
    image_refs = []
    for moment in range(moments):
        milliseconds = round(1000 * moment / spec.frames_per_s)
        key, uri = f"{file.key}#t={milliseconds / 1000:.3f}", inside_uri("video", file.uri, milliseconds)
        image_refs.append(ImageRef(key, uri, file.version, size_bytes))
    return sorted(image_refs, key=lambda ref: ref.key)


class VideoFrames:
    """A video that is read forwards. Threads must take turns.

    open_file: opens the file at its start. max_pixels, max_side_px: limits of a frame, as in ImageLimits.
    """

    def __init__(self, open_file: Callable[[], BinaryIO], max_pixels: int, max_side_px: int) -> None:
        self._open_file, self._limits = open_file, (max_pixels, max_side_px)
        self._open()

    def close(self) -> None:
        self._capture.release()
        self._stream.close()

    def at(self, milliseconds: int) -> NDArray[np.uint8]:
        """Return the picture at a moment, (height, width, 3) uint8 in BGR order.

        Raises ImageError if the video ends or breaks before the moment, or the frame cannot be decoded.
        """
        target_s = milliseconds / 1000 - _TOLERANCE_S
        if self._now_s is None or target_s > self._now_s + _SEEK_S:
            self._seek(target_s)
        elif target_s < self._before_s:
            self._restart()
            self._seek(target_s)
        while self._now_s is None or self._now_s < target_s:
            if not self._grab():
                raise ImageError("the video ends or breaks before this moment", stage="read", found=self._progress())
        is_decoded, picture = self._capture.retrieve()
        self._stream.check()
        if not is_decoded or picture is None or picture.ndim != 3:
            raise ImageError("this frame of the video cannot be decoded", stage="decode", found=self._progress())
        return np.asarray(picture, np.uint8)

    def _open(self) -> None:
        self._stream = _Stream(self._open_file())
        try:
            self._capture = _open_capture(self._stream)
        except BrokenFileError as error:
            raise ImageError(str(error), stage="read") from error
        self._before_s, self._now_s = -math.inf, cast(float | None, None)
        width, height = self._capture.get(cv2.CAP_PROP_FRAME_WIDTH), self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT)
        if width * height > self._limits[0] or max(width, height) > self._limits[1]:
            self.close()
            raise ImageError(f"frames of {width:.0f}x{height:.0f} are over image.max_pixels or image.max_side_px")

    def _restart(self) -> None:
        self.close()
        self._open()

    def _seek(self, target_s: float) -> None:
        """Move to a frame before the moment by the video's index. Restart if the index leads past the moment.

        A moment in the first _SEEK_S seconds needs no seek.
        """
        if target_s < _SEEK_S:
            return
        self._capture.set(cv2.CAP_PROP_POS_MSEC, 1000 * (target_s - _MARGIN_S))
        self._before_s, self._now_s = -math.inf, None
        if not self._grab() or self._now_s is None or self._now_s > target_s:
            self._restart()
        else:
            self._before_s = self._now_s

    def _grab(self) -> bool:
        """Advance by one frame; return False at the end.

        The new frame is the first one after `_before_s`, and is shown at `_now_s`, both in seconds.
        """
        has_frame = self._capture.grab()
        self._stream.check()
        if has_frame:
            self._before_s = -math.inf if self._now_s is None else self._now_s
            self._now_s = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        return bool(has_frame)

    def _progress(self) -> str:
        return "no frame" if self._now_s is None else f"the last frame read is at {self._now_s:.3f} s"


def as_bmp(picture: NDArray[np.uint8]) -> bytes:
    """Return the picture, (height, width, 3) uint8 in BGR order, as a BMP file.

    Encoding BMP costs no more than a copy.
    """
    is_encoded, data = cv2.imencode(".bmp", picture)
    if not is_encoded:
        raise ImageError("OpenCV could not copy the frame", stage="read", found=f"{picture.shape}")
    return data.tobytes()


class _Stream(io.BufferedIOBase):
    """A file object for OpenCV. OpenCV drops errors, so an instance keeps an error until `check` raises the error."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: Exception | None = None

    def read(self, size: int | None = -1, /) -> bytes:
        try:
            return self._file.read(-1 if size is None else size)
        except Exception as error:
            self._error = error
            return b""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        try:
            return self._file.seek(offset, whence)
        except Exception as error:
            self._error = self._error or (None if isinstance(error, ValueError) else error)
            return -1

    def close(self) -> None:
        self._file.close()
        super().close()

    def check(self) -> None:
        """Raise the error that an earlier call has kept, if any."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error


def _open_capture(stream: _Stream) -> cv2.VideoCapture:
    log_level_before = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(min(log_level_before, 2))
    try:
        one_thread = [cv2.CAP_PROP_N_THREADS, 1]
        capture = cv2.VideoCapture(stream, cv2.CAP_FFMPEG, one_thread)  # type: ignore[call-overload]
    except cv2.error as error:
        raise BrokenFileError(f"not a video that OpenCV reads: {error.err}") from error
    finally:
        cv2.utils.logging.setLogLevel(log_level_before)
    stream.check()
    if not capture.isOpened():
        raise BrokenFileError("not a video that OpenCV reads")
    return cast(cv2.VideoCapture, capture)
