"""Zip archives: positions and sizes of their members, and the bytes of one member.

Knows the central directory and local headers. Planning reads only the central directory. Never unpacks to a disk.
"""

from __future__ import annotations

import io
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO

from segray.errors import ImageError
from segray.sources.archives import BrokenFileError, Member

EXTENSIONS = frozenset({"zip"})
# A local header: 30 bytes, then the name and extra fields. SLACK_BYTES is room for header, name and extra fields.
_LOCAL = struct.Struct("<4s5H3I2H")
SLACK_BYTES = 1024
_STORED, _DEFLATED = 0, 8
_ENCRYPTED = 1


def members(file: IO[bytes]) -> Iterator[Member]:
    """Yield the files of an archive.

    `numbers` of a member are the offset of the local header, bytes stored, bytes, and CRC-32.

    Raises BrokenFileError for a file that is no zip archive.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    # zipfile raises these exceptions for broken directories.
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        struct.error,
        ValueError,
        EOFError,
        io.UnsupportedOperation,
    ) as error:
        raise BrokenFileError(f"not a zip file, or a broken one: {error}") from error
    for info in infos:
        if not info.filename.endswith("/"):  # is_dir() of a nameless member raises IndexError
            numbers = (info.header_offset, info.compress_size, info.file_size, info.CRC)
            yield Member(info.filename, info.file_size, numbers, _fault(info))


def _fault(member: zipfile.ZipInfo) -> str:
    """Return why a member cannot be read, "" if it can be read."""
    if stat.S_ISLNK(member.external_attr >> 16):
        return "a link in an archive is not read"
    if member.flag_bits & _ENCRYPTED:
        return "the member is encrypted"
    if member.header_offset < 0:
        return "the member lies before the start of the archive"
    if member.compress_type not in (_STORED, _DEFLATED):
        return f"the member is compressed by method {member.compress_type}; segray reads stored and deflated members"
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
