"""Whether a Matroska or WebM file is complete, and its codec, by its header."""

from __future__ import annotations

import re
from typing import BinaryIO

_CODEC_ID = re.compile(rb"\x86[\x80-\xff](V_[!-~]+)", re.DOTALL)
_HEADER, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def is_cut_off(file: BinaryIO, size_bytes: int) -> bool:
    """Return whether a Matroska file is shorter than its header says. False for any other file."""
    file.seek(0)
    start = file.read(4096)
    if not start.startswith(_HEADER):
        return False
    header_bytes, at = _size(start, 4)
    if header_bytes is None or start[at + header_bytes : at + header_bytes + 4] != _SEGMENT:
        return False
    segment_bytes, at = _size(start, at + header_bytes + 4)
    return segment_bytes is not None and at + segment_bytes > size_bytes


def codec(file: BinaryIO) -> str:
    """Return the name of the pictures' codec in a Matroska file, "" for any other file."""
    file.seek(0)
    start = file.read(1 << 16)
    match = _CODEC_ID.search(start) if start.startswith(_HEADER) else None
    return "" if match is None else match[1].decode()


def _size(data: bytes, at: int) -> tuple[int | None, int]:
    """Return the size that is written at a position, None for an unknown size, and the position behind the size."""
    first = data[at] if at < len(data) else 0
    length = 9 - first.bit_length()
    if not 1 <= length <= 8 or at + length > len(data):
        return None, at
    value = int.from_bytes(data[at : at + length], "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), at + length
