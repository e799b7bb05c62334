"""Videos as frames at a given rate: the moments of a video, and the picture of each moment.

Knows OpenCV's video reader, which reads the file by ranges. Planning reads the length, the frame rate and the packets
at the end. Planning reads all packets, without decoding them, where the rate cannot tell the moments. The frame of a
moment is the first frame whose time stamp is the moment or later. The frame therefore does not depend on the
position at which reading began. Pictures are upright: OpenCV applies the rotation in the file.
"""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, cast

import numpy as np
from numpy.typing import NDArray

from segray.errors import ImageError
from segray.imaging.opencv import cv2
from segray.instances import ImageRef
from segray.sources import matroska, mp4_times
from segray.sources.archives import BrokenFileError, SourceSpec
from segray.sources.uris import extension, inside_uri
from segray.storage.store import ListedObject

EXTENSIONS = frozenset(
    {"mp4", "m4v", "mov", "3gp", "3g2", "mkv", "webm", "avi", "mpg", "mpeg", "ts", "mts", "m2ts", "wmv", "asf", "flv"}
)
_MAX_FRAMES = 1_000_000
# Video files round time stamps by less than _TOLERANCE_S. A moment more than _SEEK_S ahead is reached by a seek to
# _MARGIN_S before the moment.
_TOLERANCE_S, _SEEK_S, _MARGIN_S = 0.0006, 10.0, 2.0
_BMP_HEADER_BYTES = 54
# A file whose sound is longer than its pictures gives the length of the sound. More missing pictures are a fault.
_MAX_SOUND_S = 3.0
# Rates above it are time bases, which WebM files of browsers give in place of a rate.
_MAX_RATE = 100.0
# Formats that count their frames. Others give a length, and OpenCV computes a number of frames from that.
_COUNTING = frozenset({"avi"})
# Position of the first sync byte, and size of a packet, of .ts files and of those with time codes.
_TS_SYNC = ((0, 188), (4, 192))
TS_START_BYTES = 197
# Packets that show whether the rate of a video varies, and packets behind which an earlier frame may come.
_FIRST_PACKETS, _REORDERED = 64, 16
_CODECS = {
    "av01": "AV1", "vp80": "VP8", "vp90": "VP9", "vp09": "VP9", "avc1": "H.264", "h264": "H.264", "hevc": "H.265",
    "hev1": "H.265", "hvc1": "H.265", "vvc1": "H.266", "ap4h": "ProRes", "apch": "ProRes", "apcn": "ProRes",
}  # fmt: skip


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
    size_bytes = stream.seek(0, io.SEEK_END)
    times, is_cut_off = mp4_times.times(stream, size_bytes), matroska.is_cut_off(stream, size_bytes)
    stream.seek(0)
    video = _Stream(stream)  # OpenCV drops its reference without the GIL, so another reference must outlive it.
    try:
        capture = _open_capture(video)
    except BrokenFileError as error:
        code = times.codec if times is not None else matroska.codec(stream)
        raise BrokenFileError(f"{error}: its codec is {_named(code)}" if code else str(error)) from error
    try:
        facts = _Facts(
            fps=capture.get(cv2.CAP_PROP_FPS),
            frames=capture.get(cv2.CAP_PROP_FRAME_COUNT),
            size_bytes=int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)) * int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)) * 3,
            header_s=None if times is None else times.shown_s,
            longest_s=0.0 if times is None else times.longest_s,
            is_counted=times is not None or extension(file.uri) in _COUNTING,
            is_cut_off=is_cut_off,
        )
        moments = _moments(facts, _Packets(capture, video), spec.frames_per_s)
    finally:
        capture.release()
    video.check()
    image_refs = []
    for moment in moments:
        milliseconds = _milliseconds(moment, spec.frames_per_s)
        key, uri = f"{file.key}#t={milliseconds / 1000:.3f}", inside_uri("video", file.uri, milliseconds)
        image_refs.append(ImageRef(key, uri, file.version, facts.size_bytes + _BMP_HEADER_BYTES))
    return sorted(image_refs, key=lambda ref: ref.key)


@dataclass(frozen=True)
class _Facts:
    """What a video says of itself.

    fps, frames: as OpenCV gives them, maybe invalid. size_bytes: of a picture. header_s: seconds that MP4 files show,
    else None. longest_s: seconds that the longest picture is shown, 0 if unknown. is_counted: whether `frames` is a
    count of frames, and not computed from a length. is_cut_off: whether the file is known to lack its end.
    """

    fps: float
    frames: float
    size_bytes: int
    header_s: float | None
    longest_s: float
    is_counted: bool
    is_cut_off: bool

    @property
    def is_valid(self) -> bool:
        """Return whether the video gives a rate and a number of frames."""
        return math.isfinite(self.fps) and 0 < self.fps <= 10_000 and 1 <= self.frames < 1e15

    def is_variable(self, frames_per_s: float) -> bool:
        """Return whether the rate does not tell the frames at this many moments a second."""
        if self.header_s is None:
            return not self.is_counted and self.fps > _MAX_RATE
        is_longer = self.frames / self.fps < self.header_s - 2 / self.fps
        return is_longer or self.longest_s > 1 / frames_per_s + _TOLERANCE_S

    @property
    def is_cut(self) -> bool:
        """Return whether the file holds frames that are not shown."""
        return self.header_s is not None and self.frames / self.fps > self.header_s + 0.5 / self.fps

    @property
    def last_s(self) -> float:
        """Return the time of the last frame that the video announces: by its number of frames and by its length."""
        frames = self.frames
        if self.header_s is not None:  # Headers give milliseconds.
            frames = max(1, min(frames, math.floor((self.header_s + 0.0011) * self.fps)))
        return (frames - 1) / self.fps


def _moments(facts: _Facts, packets: _Packets, frames_per_s: float) -> list[int]:
    """Return the numbers of the moments, at number/frames_per_s seconds, that have a frame of their own.

    The time stamps of all packets are read where the rate cannot tell the moments: in a video without a length, of a
    variable rate, or with fewer frames per second than asked for. A format without a table of frames shows a variable
    rate by its first packets.
    """
    if not facts.is_valid or facts.is_variable(frames_per_s) or frames_per_s > facts.fps * (1 + 1e-9):
        moments = _moments_of_frames(_frame_times(facts, packets), frames_per_s)
        if not moments:
            frames = f"{facts.frames:.0f} frames" if abs(facts.frames) < 1e15 else "an unknown number of frames"
            raise BrokenFileError(f"the video has no valid length: {frames} at {facts.fps:.6g} a second")
        return moments
    if facts.header_s is None and packets.longest_gap_s() > 1 / frames_per_s + _TOLERANCE_S:
        return _moments_of_frames(_frame_times(facts, packets), frames_per_s)
    last_s = facts.last_s if facts.is_counted or facts.is_cut_off else packets.last_s(facts.last_s)
    count = math.floor((last_s + _TOLERANCE_S) * frames_per_s) + 1
    if count > _MAX_FRAMES:
        raise BrokenFileError(f"a video of {facts.frames:.0f} frames has {count} moments, more than {_MAX_FRAMES}")
    return list(range(count))


def _frame_times(facts: _Facts, packets: _Packets) -> list[float]:
    """Return the times of the frames in seconds, sorted. Frames that are announced and missing have times too."""
    times = packets.times_s()
    if not facts.is_valid:
        return times
    if facts.is_cut:
        times = [time for time in times if time < facts.last_s + _TOLERANCE_S]
    start_s = times[-1] if times else -1 / facts.fps
    missing = (facts.last_s - start_s) * facts.fps
    if facts.is_counted:
        missing = min(missing, facts.frames - packets.count)
    elif missing / facts.fps <= _MAX_SOUND_S and not facts.is_cut_off:
        missing = 0
    following = (start_s + number / facts.fps for number in range(1, round(min(missing, _MAX_FRAMES)) + 1))
    return times + [time for time in following if time < facts.last_s + _TOLERANCE_S]


def _moments_of_frames(times: Sequence[float], frames_per_s: float) -> list[int]:
    """Return the first moment that shows each frame. The frame of a moment is the first at the moment or later."""
    moments: list[int] = []
    for time, before in zip(times, [-math.inf, *times], strict=False):
        moment = 0 if before < 0 else math.floor((before + _TOLERANCE_S) * frames_per_s)
        while _milliseconds(moment, frames_per_s) / 1000 - _TOLERANCE_S <= before:
            moment += 1
        if _milliseconds(moment, frames_per_s) / 1000 - _TOLERANCE_S <= time:
            moments.append(moment)
        if len(moments) > _MAX_FRAMES:
            raise BrokenFileError(f"a video of {len(times)} frames has more than {_MAX_FRAMES} moments")
    return moments


def _milliseconds(moment: int, frames_per_s: float) -> int:
    return round(1000 * moment / frames_per_s)


class _Packets:
    """The packets of a video's pictures, read without decoding. The capture gives no pictures afterwards."""

    def __init__(self, capture: cv2.VideoCapture, stream: _Stream) -> None:
        self._capture, self._stream = capture, stream
        self._times: set[float] = set()
        self.count = 0

    def longest_gap_s(self) -> float:
        """Return the longest time between two frames of the first _FIRST_PACKETS packets."""
        self._grab(_FIRST_PACKETS)
        times = sorted(self._times)
        if len(times) == _FIRST_PACKETS:
            times = times[:-_REORDERED]
        return max((after - before for before, after in itertools.pairwise(times)), default=0.0)

    def times_s(self) -> list[float]:
        """Return the different time stamps of all packets from the first one that was read, sorted, in seconds."""
        self._grab()
        return sorted(self._times)

    def _grab(self, most: int | None = None) -> None:
        """Read packets to the end, or at most this many."""
        self._capture.set(cv2.CAP_PROP_FORMAT, -1)
        for _ in itertools.count() if most is None else range(most):
            if not self._capture.grab():
                break
            self.count += 1
            self._times.add(self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000)
        self._stream.check()

    def last_s(self, announced_s: float) -> float:
        """Return the time of the last frame, or the announced time if the end is missing."""
        self._capture.set(cv2.CAP_PROP_FORMAT, -1)
        start_s = announced_s - _MAX_SOUND_S - _MARGIN_S
        if start_s > 0:
            self._capture.set(cv2.CAP_PROP_POS_MSEC, 1000 * start_s)
        times = self.times_s()
        is_complete = bool(times) and announced_s - _MAX_SOUND_S <= times[-1] < announced_s
        return times[-1] if is_complete else announced_s


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
                if self._now_s is None:
                    codec = _codec(self._capture)
                    raise ImageError(f"no frame of this video can be decoded; its codec is {codec}", stage="decode")
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
        progress = "no frame" if self._now_s is None else f"the last frame read is at {self._now_s:.3f} s"
        return f"{progress}; codec {_codec(self._capture)}"


def _codec(capture: cv2.VideoCapture) -> str:
    """Return the name of the codec, with the four characters by which files name it."""
    number = int(capture.get(cv2.CAP_PROP_FOURCC))
    code = "".join(chr(number >> shift & 0xFF) for shift in (0, 8, 16, 24)).strip("\0 ")
    return _named(code)


def _named(code: str) -> str:
    """Return the name of a codec that a file names by a code."""
    if not code or not code.isprintable():
        return "unknown"
    name = _CODECS.get(code.lower())
    return f"{name} ({code})" if name else code


def is_transport_stream(start: bytes) -> bool:
    """Return whether a file that starts so is an MPEG transport stream. Files of TypeScript have the ending .ts too."""
    return any(start[at : at + 1] == b"G" and start[at + size : at + size + 1] in (b"G", b"") for at, size in _TS_SYNC)


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
