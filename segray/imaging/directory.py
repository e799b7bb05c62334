"""A directory of tags, as TIFF files and EXIF blocks begin with (TIFF 6.0 section 2; BigTIFF).

This module knows types, byte orders and positions of tags. The meaning of tags is left to others. No more values are
read than `MAX_VALUES`, whatever a directory states.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from segray.errors import ImageError

# No valid file has more values in a tag that segray reads. A loop over millions of them holds the GIL for seconds.
MAX_VALUES = 200_000
ORIENTATION_TAG = 274
# Codes of struct by type: BYTE, ASCII, SHORT, LONG, SBYTE, UNDEFINED, SSHORT, SLONG, IFD, LONG8, SLONG8, IFD8.
_INTEGERS = {1: "B", 2: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag of a directory. at: position of its first value in the file."""

    number: int
    kind: int
    count: int
    at: int


@dataclass(frozen=True)
class Directory:
    """The first directory of a file. order: "<" or ">", as struct writes byte orders."""

    data: bytes
    order: str
    tags: dict[int, Tag]

    def integers(self, number: int) -> tuple[int, ...]:
        """Return all values of an integer tag; () for a tag that is missing or holds no integers.

        Raise ImageError for more values than MAX_VALUES, and struct.error if values lie behind the end.
        """
        tag = self.tags.get(number)
        if tag is None or tag.kind not in _INTEGERS:
            return ()
        if tag.count > MAX_VALUES:
            raise ImageError(f"corrupt TIFF: its tag {number} has {tag.count} values")
        return struct.unpack_from(f"{self.order}{tag.count}{_INTEGERS[tag.kind]}", self.data, tag.at)

    def integer(self, number: int, default: int) -> int:
        """Return the first value of an integer tag, or the default."""
        tag = self.tags.get(number)
        if tag is None or tag.kind not in _INTEGERS or tag.count < 1:
            return default
        return int(struct.unpack_from(self.order + _INTEGERS[tag.kind], self.data, tag.at)[0])

    def octets(self, number: int) -> bytes:
        """Return the bytes of a tag of type BYTE, ASCII or UNDEFINED; b"" if the tag is missing."""
        tag = self.tags.get(number)
        return self.data[tag.at : tag.at + tag.count] if tag is not None and _size(tag.kind) == 1 else b""


def read(data: bytes) -> Directory:
    """Return the first directory. Raise struct.error if the directory is cut short."""
    order = "<" if data[:2] == b"II" else ">"
    return Directory(data, order, {tag.number: tag for tag in reversed(list(_tags(data, order)))})


def orientation(exif: bytes) -> int:
    """Return EXIF's orientation 1..8; 1 if the block is missing or broken, which is common.

    A block that is cut behind the tag of the orientation still has an orientation.
    """
    order = "<" if exif[:2] == b"II" else ">"
    try:
        for tag in _tags(exif, order):
            if tag.number == ORIENTATION_TAG:
                return valid_orientation(Directory(exif, order, {tag.number: tag}))
    except struct.error:
        pass
    return 1


def valid_orientation(directory: Directory) -> int:
    """Return the directory's orientation; 1 if the directory has none of 1..8."""
    value = directory.integer(ORIENTATION_TAG, 1)
    return value if 1 <= value <= 8 else 1


def _tags(data: bytes, order: str) -> Iterator[Tag]:
    """Yield the tags of the first directory. Raise struct.error if the directory is cut short."""
    (version,) = struct.unpack_from(order + "H", data, 2)
    big = version == 43
    position = struct.Struct(order + ("Q" if big else "I"))
    (start,) = position.unpack_from(data, 8 if big else 4)
    if start >= len(data):
        raise struct.error("the directory lies behind the end")
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    if count > 0xFFFF:
        raise struct.error("more entries than there are tags")
    first, entry = start + (8 if big else 2), struct.Struct(order + ("HHQ" if big else "HHI"))
    step = entry.size + position.size
    for at in range(first, first + count * step, step):
        number, kind, values = entry.unpack_from(data, at)
        value_at = at + entry.size
        if values * _size(kind) > position.size:
            (value_at,) = position.unpack_from(data, value_at)
        yield Tag(number, kind, values, min(value_at, len(data)))


def _size(kind: int) -> int:
    """Return the bytes of a value. A type that is unknown, or no integer, counts as eight bytes."""
    return struct.calcsize("=" + _INTEGERS[kind]) if kind in _INTEGERS else 8


def rationals(directory: Directory, tag: Tag) -> tuple[float, ...]:
    """Return the values of a tag of type RATIONAL. A fraction by zero is 0."""
    parts = struct.unpack_from(f"{directory.order}{2 * tag.count}I", directory.data, tag.at)
    return tuple(top / bottom if bottom else 0.0 for top, bottom in zip(parts[::2], parts[1::2], strict=True))
