"""The length of the pictures in an MP4 or QuickTime file, and the longest time of one picture, by its header.

A clip that was cut without re-encoding keeps packets before its start and after its end, which no player shows. An edit
list says which part is shown. OpenCV counts all packets and does not give the length.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_MAX_BOXES, _MAX_HEADER_BYTES = 100_000, 64 << 20
_NO_MEDIA = -1
# Sizes and positions of the numbers in versions 0 and 1 of a box.
_FORMS = ("I", "Q")


@dataclass(frozen=True)
class Mp4Times:
    """What the header of a file says of time, in seconds.

    shown_s: how long the pictures are shown. longest_s: how long the longest picture is shown. codec: the four
    characters that name the codec.
    """

    shown_s: float
    longest_s: float
    codec: str = ""


def times(file: BinaryIO, size_bytes: int) -> Mp4Times | None:
    """Return the times of the longest track of pictures, None for a file of another format or without a length."""
    header = _header(file, size_bytes)
    try:
        return None if header is None else _movie_times(header)
    except (struct.error, ZeroDivisionError, OverflowError):
        return None


def _header(file: BinaryIO, size_bytes: int) -> bytes | None:
    """Return the content of the box `moov`."""
    at = 0
    for _ in range(_MAX_BOXES):
        if at >= size_bytes:
            return None
        file.seek(at)
        start = file.read(16)
        if len(start) < 8 or (at == 0 and start[4:8] not in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide")):
            return None
        box_bytes, head_bytes = struct.unpack_from(">I", start)[0], 8
        if box_bytes == 1 and len(start) == 16:
            box_bytes, head_bytes = struct.unpack_from(">Q", start, 8)[0], 16
        elif box_bytes == 0:
            box_bytes = size_bytes - at
        if box_bytes < head_bytes:
            return None
        if start[4:8] == b"moov":
            if box_bytes > _MAX_HEADER_BYTES:
                return None
            file.seek(at + head_bytes)
            return file.read(box_bytes - head_bytes)
        at += box_bytes
    return None


def _movie_times(header: bytes) -> Mp4Times | None:
    movie = _child(header, b"mvhd")
    if movie is None:
        return None
    ticks_per_s = _ticks_per_s(movie)
    tracks = [content for kind, content in _boxes(header) if kind == b"trak" and _is_video(content)]
    times = [Mp4Times(_shown_ticks(track) / ticks_per_s, _longest_picture_s(track), _codec(track)) for track in tracks]
    longest = max(times, key=lambda track: track.shown_s, default=None)
    return longest if longest is not None and longest.shown_s > 0 else None


def _ticks_per_s(head: bytes) -> int:
    """Return the ticks per second by the header of a movie or of a track's media."""
    form = _FORMS[head[:1] == b"\1"]
    return int(struct.unpack_from(">I", head, 4 + 2 * struct.calcsize(f">{form}"))[0])


def _longest_picture_s(track: bytes) -> float:
    head, table = _child(_child(track, b"mdia") or b"", b"mdhd"), _child(_sample_tables(track), b"stts")
    if head is None or table is None:
        return 0.0
    count = min(struct.unpack_from(">I", table, 4)[0], (len(table) - 8) // 8)
    lengths = (struct.unpack_from(">I", table, 12 + 8 * number)[0] for number in range(count))
    return max(lengths, default=0) / _ticks_per_s(head)


def _codec(track: bytes) -> str:
    return (_child(_sample_tables(track), b"stsd") or b"")[12:16].decode("ascii", "replace")


def _sample_tables(track: bytes) -> bytes:
    return _child(_child(_child(track, b"mdia") or b"", b"minf") or b"", b"stbl") or b""


def _is_video(track: bytes) -> bool:
    handler = _child(_child(track, b"mdia") or b"", b"hdlr")
    return handler is not None and handler[8:12] == b"vide"


def _shown_ticks(track: bytes) -> int:
    """Return the length of a track in ticks of the movie, 0 if the track gives none."""
    head = _child(track, b"tkhd")
    if head is None:
        return 0
    form = _FORMS[head[:1] == b"\1"]
    length = int(struct.unpack_from(f">{form}", head, 12 + 2 * struct.calcsize(f">{form}"))[0])
    if length == 2 ** (8 * struct.calcsize(f">{form}")) - 1:
        length = 0
    edits = _child(_child(track, b"edts") or b"", b"elst")
    edited = 0 if edits is None else _edited_ticks(edits)
    return min(length, edited) if length and edited else length or edited


def _edited_ticks(edits: bytes) -> int:
    """Return the length of all parts of the track that are shown."""
    entry = struct.Struct(">QqI" if edits[:1] == b"\1" else ">IiI")
    count = min(struct.unpack_from(">I", edits, 4)[0], (len(edits) - 8) // entry.size)
    parts = (entry.unpack_from(edits, 8 + number * entry.size) for number in range(count))
    return sum(length for length, media_time, _ in parts if media_time != _NO_MEDIA)


def _child(boxes: bytes, kind: bytes) -> bytes | None:
    return next((content for found, content in _boxes(boxes) if found == kind), None)


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield kind and content of each box."""
    at = 0
    while at + 8 <= len(data):
        box_bytes = struct.unpack_from(">I", data, at)[0]
        if box_bytes < 8:
            return
        yield data[at + 4 : at + 8], data[at + 8 : at + box_bytes]
        at += box_bytes
