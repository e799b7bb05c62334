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
    """Yield the files of an archive; `numbers` are the offset of the local header, bytes stored, bytes, and CRC-32.

    Raises BrokenFileError for a file that is no zip archive.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            found = archive.infolist()
    # zipfile raises these for broken directories.
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        struct.error,
        ValueError,
        EOFError,
        io.UnsupportedOperation,
    ) as error:
        raise BrokenFileError(f"not a zip file, or a broken one: {error}") from error
    for each in found:
        if not each.filename.endswith("/"):  # is_dir() of a nameless member raises IndexError
            numbers = (each.header_offset, each.compress_size, each.file_size, each.CRC)
            yield Member(each.filename, each.file_size, numbers, _trouble(each))


def _trouble(member: zipfile.ZipInfo) -> str:
    if stat.S_ISLNK(member.external_attr >> 16):
        return "a link in an archive is not read"
    if member.flag_bits & _ENCRYPTED:
        return "it is encrypted"
    if member.header_offset < 0:
        return "its place is before the archive's beginning"
    if member.compress_type not in (_STORED, _DEFLATED):
        return f"it is compressed by method {member.compress_type}; segray reads stored and deflated members"
    return ""


def extract(data: memoryview, stored_bytes: int, size_bytes: int, crc: int) -> bytes:
    """Return the bytes of the member whose local header starts `data`.

    stored_bytes, size_bytes, crc: size in the archive, size of the content, and CRC-32, as planned. Raises ImageError
    where the member differs from the plan.
    """
    try:
        signature, _, _, method, *_, name_bytes, extra_bytes = _LOCAL.unpack_from(data)
    except struct.error as error:
        raise _changed("the archive ends before it") from error
    if signature != b"PK\3\4":
        raise _changed("no local header at its place")
    start = _LOCAL.size + name_bytes + extra_bytes
    stored = data[start : start + stored_bytes]
    if len(stored) < stored_bytes:
        raise _changed("the archive ends inside it, or its header is longer than any real one")
    found = bytes(stored) if method == _STORED else _inflated(stored, size_bytes)
    if len(found) != size_bytes or zlib.crc32(found) != crc:
        raise _changed("its bytes do not have the checksum of the archive's directory")
    return found


def _inflated(stored: memoryview, size_bytes: int) -> bytes:
    """Return the inflated bytes, at most size_bytes + 1 of them.

    The limit bounds memory where the stream holds more than the archive's directory says.
    """
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, size_bytes + 1)
    except zlib.error as error:
        raise _changed(f"it cannot be inflated: {error}") from error


def _changed(found: str) -> ImageError:
    return ImageError("a broken member of a zip archive", stage="read", found=found)
