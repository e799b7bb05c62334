"""Zip archives: positions and sizes of their members, and the bytes of one member.

Knows local headers; zip_directory.py knows the central directory, which is all that planning reads. Never unpacks to a
disk.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterator
from typing import IO

from segray.errors import ImageError
from segray.sources import zip_directory
from segray.sources.archives import Member
from segray.sources.zip_directory import Entry

EXTENSIONS = frozenset({"zip"})
# A local header: 30 bytes, then the name and extra fields. SLACK_BYTES is room for header, name and extra fields.
_LOCAL = struct.Struct("<4s5H3I2H")
SLACK_BYTES = 1024
_STORED, _DEFLATED = 0, 8
# Source: section 4.4.5 of the ZIP file format specification.
_METHOD_NAMES = {
    1: "shrink",
    6: "implode",
    9: "Deflate64",
    12: "bzip2",
    14: "LZMA",
    93: "Zstandard",
    95: "XZ",
    96: "JPEG",
    98: "PPMd",
    99: "AES encryption",
}
# Bits of a member that is encrypted, strongly encrypted, or whose directory entry is masked.
_ENCRYPTED = 1 | 1 << 6 | 1 << 13
_PATCH = 1 << 5


def members(file: IO[bytes]) -> Iterator[Member]:
    """Yield the files of an archive, or of several archives in one file.

    `numbers` of a member are the offset of the local header, bytes stored, bytes, and CRC-32.

    Raises BrokenFileError, after the members that are known, for a file that is no zip archive or not read in full.
    """
    for entry in zip_directory.entries(file):
        if not entry.name.endswith("/") and not (entry.name.endswith("\\") and not entry.size_bytes):
            numbers = (entry.header_offset, entry.stored_bytes, entry.size_bytes, entry.crc)
            yield Member(entry.name, entry.size_bytes, numbers, _fault(entry))


def _fault(member: Entry) -> str:
    """Return why a member cannot be read, "" if it can be read."""
    if member.fault:
        return member.fault
    if stat.S_ISLNK(member.mode):
        return "a link in an archive is not read"
    if member.flags & _ENCRYPTED:
        return "the member is encrypted"
    if member.flags & _PATCH:
        return "the member is a patch of another file"
    if member.header_offset < 0:
        return "the member lies before the start of the archive"
    if member.method not in (_STORED, _DEFLATED):
        name = _METHOD_NAMES.get(member.method, "unknown")
        return f"the member is compressed by method {member.method} ({name}); segray reads stored and deflated members"
    return ""


def extract(data: memoryview, stored_bytes: int, size_bytes: int, crc: int) -> bytes:
    """Return the bytes of the member whose local header starts `data`.

    Args:
        data: Bytes of the archive, from the member's local header on.
        stored_bytes: Planned size of the member in the archive.
        size_bytes: Planned size of the member's content.
        crc: Planned CRC-32 of the content.

    Raises:
        ImageError: The member differs from the plan.
    """
    try:
        signature, _, _, method, *_, name_bytes, extra_bytes = _LOCAL.unpack_from(data)
    except struct.error as error:
        raise _changed_error("the archive ends before the member") from error
    if signature != b"PK\3\4":
        raise _changed_error("no local header at the planned offset")
    start = _LOCAL.size + name_bytes + extra_bytes
    stored = data[start : start + stored_bytes]
    if len(stored) < stored_bytes:
        raise _changed_error("the archive ends inside the member, or the header is longer than any real one")
    content = bytes(stored) if method == _STORED else _inflate(stored, size_bytes)
    if len(content) != size_bytes or zlib.crc32(content) != crc:
        raise _changed_error("the content does not have the checksum of the archive's directory")
    return content


def _inflate(stored: memoryview, size_bytes: int) -> bytes:
    """Return the inflated bytes, at most size_bytes + 1 of them.

    The limit bounds the memory if the stream holds more than the archive's directory says.
    """
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, size_bytes + 1)
    except zlib.error as error:
        raise _changed_error(f"the content cannot be inflated: {error}") from error


def _changed_error(found: str) -> ImageError:
    return ImageError("a broken member of a zip archive", stage="read", found=found)
