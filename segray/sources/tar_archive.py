"""Tar and WebDataset shards: positions and sizes of their members.

Knows tar headers. Decodes no member. Shards of small members are read in one pass, with requests that grow from
FEW_BYTES to MANY_BYTES. Large bodies are skipped. A skip costs one request, which takes about as long as reading
SKIP_BYTES.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Generator, Iterator
from typing import IO, cast

from segray._compat import forget_members, next_header_offset
from segray.sources.archives import HEAD_BYTES, BrokenFileError, Member, what_it_is

EXTENSIONS = frozenset({"tar"})
_COMPRESSED = re.compile(
    r"\.(tar\.(?:gz|bz2?|xz|zstd?|lz4?|lzma|lzo|z|br|sz)|tgz|taz|tbz2?|tb2|tz2|txz|tlz|tzst)$", re.IGNORECASE
)
# Headers that describe the archive: the name of a volume, and the list of a folder.
_NO_FILES = (b"V", b"D")
BLOCK_BYTES = 512
MANY_BYTES, SKIP_BYTES, FEW_BYTES = 8 << 20, 1 << 20, 64 << 10
# The longest header that tarfile may read into memory at once; real ones are below 1 MB.
_HEADER_BYTES = 16 << 20

# An empty archive is one record of zeros, and a record is 20 blocks. Zeros behind the last member fill up a record,
# which some programs make larger. More zeros are the unwritten part of an unfinished copy.
_MAX_EMPTY_BYTES, _MAX_PADDING_BYTES = 20 * BLOCK_BYTES, 2 << 20

# (offset, size) -> bytes of the file, fewer at its end.
ReadRange = Callable[[int, int], bytes]


def compressed_ending(uri: str) -> str:
    """Return the ending of a compressed tar in lower case, without the first dot; "" for any other file."""
    match = _COMPRESSED.search(uri)
    return match[1].lower() if match is not None else ""


def members(read: ReadRange, size_bytes: int) -> Iterator[Member]:
    """Yield every member of a shard except folders; `numbers` are the offset and size of the body, in bytes.

    A file may hold several archives, as `cat a.tar b.tar` joins them. read: reads a range of the shard. size_bytes:
    size of the shard. Raises BrokenFileError, after the members that are known, where later members may be unknown: at
    an invalid header, at a missing end mark, or for a file that is no tar archive.
    """
    stream = _Headers(read, size_bytes)
    start = 0
    while start < size_bytes or not size_bytes:
        end = yield from _archive_members(stream, start, size_bytes)
        if end >= size_bytes:
            raise BrokenFileError(f"the archive ends at byte {size_bytes} without its end mark; it may be cut off")
        start = _skip_zeros(stream, end, size_bytes)
        if start == end:
            raise BrokenFileError(f"no tar header at byte {end} of {size_bytes}; later members are unknown")
    if size_bytes - end > (_MAX_PADDING_BYTES if end else _MAX_EMPTY_BYTES):
        raise BrokenFileError(f"only zeros from byte {end} to byte {size_bytes}; members may be lost")


def _archive_members(stream: _Headers, start: int, size_bytes: int) -> Generator[Member, None, int]:
    """Yield the members of the archive that starts at a byte. Return the byte at which its headers end.

    tarfile takes a header that it cannot read for the end of the archive.
    """
    stream.seek(start)
    last_offset = next_offset = start
    try:
        with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r:", errors="surrogateescape") as archive:
            while (info := archive.next()) is not None:
                forget_members(archive)
                if info.offset_data <= last_offset or info.size < 0:
                    raise BrokenFileError(f"the tar header at byte {info.offset} is invalid; later members are unknown")
                last_offset, next_offset = info.offset_data, next_header_offset(archive)
                if not info.isdir() and info.type not in _NO_FILES:
                    yield _member_of(info, size_bytes)
            return next_header_offset(archive)
    except (tarfile.TarError, OSError, ValueError, OverflowError, LookupError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise BrokenFileError(_broken_reason(stream, next_offset, size_bytes, error)) from error


def _broken_reason(stream: _Headers, offset: int, size_bytes: int, error: Exception) -> str:
    """Return why no header can be read at an offset."""
    if offset >= size_bytes > 0:
        return f"the archive ends at byte {size_bytes} without its end mark; it may be cut off"
    if offset:
        return f"the tar header at byte {offset} of {size_bytes} cannot be read: {error}"
    stream.seek(0)
    kind = what_it_is(stream.read(HEAD_BYTES), "tar")
    return f"not a tar file, but {kind}" if kind else f"not a tar file, or a broken one: {error}"


def _member_of(info: tarfile.TarInfo, size_bytes: int) -> Member:
    fault = ""
    if not info.isreg() or info.issparse():
        kind = "a link" if info.islnk() or info.issym() else "a sparse or special file"
        fault = f"{kind} in an archive is not read"
    elif info.offset_data + info.size > size_bytes:
        fault = f"the archive ends inside this member, after {size_bytes} bytes"
    return Member(info.name, info.size, (info.offset_data, info.size), fault)


def _skip_zeros(stream: _Headers, start: int, size_bytes: int) -> int:
    """Return the start of the first block after `start` that is not zero, or the size of the file."""
    stream.seek(start)
    while chunk := stream.read(FEW_BYTES if stream.tell() == start else MANY_BYTES):
        zeros = len(chunk) - len(chunk.lstrip(b"\0"))
        if zeros < len(chunk):
            offset = stream.tell() - len(chunk) + zeros
            return offset - (offset - start) % BLOCK_BYTES
    return size_bytes


def intact(header: bytes, size_bytes: int) -> bool:
    """Return whether these 512 bytes are the tar header of a member of `size_bytes` bytes."""
    try:
        return tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size == size_bytes
    except tarfile.TarError:
        return False


class _Headers(io.RawIOBase):
    """A shard as a file object for tarfile, which reads header after header."""

    def __init__(self, read: ReadRange, size_bytes: int) -> None:
        self._read, self._size = read, size_bytes
        self._at = self._start = 0
        self._data, self._next_bytes = b"", FEW_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origins = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}
        target = offset + origins[whence]
        if target < 0:
            raise ValueError(f"an offset of {target}")
        self._at = target
        return target

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _HEADER_BYTES:
            raise ValueError(f"a header of {size} bytes")
        parts, missing_bytes = [], max(0, min(size, self._size - self._at))
        while missing_bytes > 0:
            part = self._next_part(missing_bytes)
            if not part:
                break
            parts.append(part)
            self._at += len(part)
            missing_bytes -= len(part)
        return b"".join(parts)

    def _next_part(self, size: int) -> bytes:
        """Return up to `size` bytes from the position on. Request more bytes if the last request is used up."""
        offset = self._at - self._start
        if not 0 <= offset < len(self._data):
            is_near = 0 <= offset - len(self._data) <= SKIP_BYTES
            self._next_bytes = min(MANY_BYTES, 4 * self._next_bytes) if is_near and self._data else FEW_BYTES
            self._start, offset = self._at, 0
            self._data = self._read(self._start, max(size, self._next_bytes))
        return self._data[offset : offset + size]
