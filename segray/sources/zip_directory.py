"""The central directories of zip files: of one archive, and of archives that were joined by `cat a.zip b.zip`.

Knows records and name encodings. Reads the end of a file and the directories, but no member. Python's zipfile finds the
last directory only, ignores the number of members, and reads names differently from version to version.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, NamedTuple

from segray.sources.archives import HEAD_BYTES, BrokenFileError, what_it_is

# End of the directory, its zip64 form and that form's locator; one entry of the directory.
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_MAX_COMMENT_BYTES = 2**16
_LOCAL_BYTES = 30  # of a local header, whose last two numbers are the lengths of the name and the extra fields
_UTF8_NAME = 0x800
_FULL_16, _FULL_32 = 0xFFFF, 0xFFFFFFFF
_ZIP64_FIELD, _UNICODE_PATH_FIELD = 1, 0x7075
# The start of a local header or of an entry, with a version that exists.
_MEMBER_SIGNATURE = re.compile(rb"PK(?:\x03\x04|\x01\x02..)[\x0a-\x3f]\x00", re.DOTALL)


class Entry(NamedTuple):
    """One member. header_offset: offset of its local header in the file. fault: why it cannot be read, or ""."""

    name: str
    flags: int
    method: int
    crc: int
    stored_bytes: int
    size_bytes: int
    header_offset: int
    mode: int
    fault: str


@dataclass(frozen=True)
class _Directory:
    """One central directory. All offsets are in the file.

    start, size_bytes: the directory. members: their number by the directory's end record. base: where the archive's
    offsets start. stop: the first byte behind the archive.
    """

    start: int
    size_bytes: int
    members: int
    is_zip64: bool
    base: int
    stop: int


def entries(file: IO[bytes]) -> Iterator[Entry]:
    """Yield the members of a zip file, those of the last archive first.

    Raises BrokenFileError, after the members that are known, where a part of the file was not read.
    """
    size_bytes = file.seek(0, 2)
    unread: list[str] = []
    directory = _last_directory(file, size_bytes, unread)
    if directory is None:
        kind = what_it_is(_read(file, 0, HEAD_BYTES), "zip")
        reason = f", but {kind}" if kind else ", or a broken one: no directory at its end"
        raise BrokenFileError(f"not a zip file{reason}")
    while directory is not None:
        first_offset, last = directory.start, None
        for entry in _entries_of(file, directory, unread):
            first_offset = min(first_offset, entry.header_offset) if entry.header_offset >= 0 else first_offset
            last = entry if last is None or entry.header_offset > last.header_offset else last
            yield entry
        if last is not None:
            _check_gap(file, directory, last, unread)
        directory = _directory_before(file, directory, first_offset, unread)
    if unread:
        raise BrokenFileError("; ".join(unread))


def _last_directory(file: IO[bytes], stop: int, unread: list[str]) -> _Directory | None:
    """Return the last directory among the first `stop` bytes, None if there is none."""
    tail_start = max(0, stop - _END.size - _MAX_COMMENT_BYTES - 1)
    tail = _read(file, tail_start, stop - tail_start)
    at = tail.rfind(b"PK\5\6")
    while at >= 0:
        directory = _directory_at(file, tail_start + at, tail[at : at + _END.size], stop)
        if directory is not None:
            _check_behind(tail, tail_start, directory.stop, unread)
            return directory
        at = tail.rfind(b"PK\5\6", 0, at)
    return None


def _directory_at(file: IO[bytes], location: int, record: bytes, file_stop: int) -> _Directory | None:
    """Return the directory that ends with the record at a location, None if the record leads to no directory.

    A comment may hold the signature of a record, and then numbers of any value.
    """
    if len(record) < _END.size:
        return None
    _, disk, first_disk, _, members, size_bytes, offset, comment_bytes = _END.unpack(record)
    stop = location + _END.size + comment_bytes
    end64 = _end64(file, location)
    if end64 is not None:
        location, disk, first_disk, members, size_bytes, offset = end64
    if disk not in (0, _FULL_16) or first_disk not in (0, _FULL_16):
        if stop != file_stop:
            return None
        raise BrokenFileError(f"part {disk + 1} of a zip archive in several files; join the parts first")
    start = location - size_bytes
    if start < 0 or (size_bytes and _read(file, start, 4) != b"PK\1\2") or (members and not size_bytes):
        return None
    return _Directory(start, size_bytes, members, end64 is not None, start - offset, stop)


def _end64(file: IO[bytes], location: int) -> tuple[int, int, int, int, int, int] | None:
    """Return location, disks, number of members, size and offset by the zip64 record before an end record, if any."""
    start = location - _LOCATOR64.size - _END64.size
    data = _read(file, start, _LOCATOR64.size + _END64.size) if start >= 0 else b""
    if data[:4] != b"PK\6\6" or data[_END64.size : _END64.size + 4] != b"PK\6\7":
        return None
    _, _, _, _, disk, first_disk, _, members, size_bytes, offset = _END64.unpack_from(data)
    return start, disk, first_disk, members, size_bytes, offset


def _check_behind(tail: bytes, tail_start: int, stop: int, unread: list[str]) -> None:
    """Note members behind the last directory: of an archive whose own directory is cut off or damaged."""
    behind = tail[max(0, stop - tail_start) :]
    at = 0 if behind and b"PK\3\4".startswith(behind[:4]) else behind.find(b"PK\3\4")
    if at >= 0:
        unread.append(f"from byte {tail_start + len(tail) - len(behind) + at} on, members were not read: no directory")


def _directory_before(
    file: IO[bytes], directory: _Directory, first_offset: int, unread: list[str]
) -> _Directory | None:
    """Return the directory of the archive before this one, None if there is none.

    Bytes before an archive may be a program that unpacks the archive. They may not be members without a directory.
    """
    before = directory.base if directory.base > 0 else first_offset
    if directory.base < 0 or before > directory.start:
        unread.append(f"the directory at byte {directory.start} gives offsets that this file cannot have")
        return None
    earlier: list[str] = []
    found = _last_directory(file, before, earlier) if before >= _END.size else None
    if found is not None:
        unread += earlier
    elif directory.base > 0:
        tail_start = max(0, before - _MAX_COMMENT_BYTES)
        if _read(file, 0, 4) == b"PK\3\4" or _MEMBER_SIGNATURE.search(_read(file, tail_start, before - tail_start)):
            unread.append(f"before byte {before}, members were not read: no directory")
    return found


def _check_gap(file: IO[bytes], directory: _Directory, last: Entry, unread: list[str]) -> None:
    """Note another archive between the last member and the directory, which wrong offsets would hide."""
    end = last.header_offset + _LOCAL_BYTES + last.stored_bytes
    if (
        last.header_offset < 0
        or directory.start - end < len(last.name.encode("utf-8", "surrogateescape")) + _ENTRY.size + _END.size
    ):
        return
    lengths = _read(file, last.header_offset + _LOCAL_BYTES - 4, 4)
    end += sum(struct.unpack("<2H", lengths)) if len(lengths) == 4 else 0
    gap_start = max(end, directory.start - _END.size - _MAX_COMMENT_BYTES)
    if b"PK\5\6" in _read(file, gap_start, max(0, directory.start - gap_start)):
        unread.append(f"from byte {end} to byte {directory.start}, members were not read: another directory")


def _entries_of(file: IO[bytes], directory: _Directory, unread: list[str]) -> Iterator[Entry]:
    data = _read(file, directory.start, directory.size_bytes)
    at = count = 0
    while at < len(data):
        if at + _ENTRY.size > len(data) or data[at : at + 4] != b"PK\1\2":
            unread.append(f"the directory is broken at byte {directory.start + at}; later members are unknown")
            return
        record = _ENTRY.unpack_from(data, at)
        name_bytes, extra_bytes, comment_bytes = record[10:13]
        at += _ENTRY.size
        name, extra = data[at : at + name_bytes], data[at + name_bytes : at + name_bytes + extra_bytes]
        at += name_bytes + extra_bytes + comment_bytes
        count += 1
        yield _entry(record, name, extra, directory.base)
    if at > len(data):
        unread.append(f"the directory at byte {directory.start} ends inside an entry")
    mask = -1 if directory.is_zip64 else _FULL_16  # Some programs write more members than the number can hold.
    if count & mask != directory.members & mask:
        unread.append(f"the directory at byte {directory.start} has {count} of {directory.members} members")


def _entry(record: tuple[int, ...], name: bytes, extra: bytes, base: int) -> Entry:
    _, _, _, flags, method, _, _, crc, stored, size, _, _, _, _, _, mode, offset = record
    fields = _extra_fields(extra) if extra else {}
    fault = ""
    if _FULL_32 in (stored, size, offset):
        large = iter(struct.iter_unpack("<Q", fields.get(_ZIP64_FIELD, b"")[: len(fields.get(_ZIP64_FIELD, b"")) & ~7]))
        try:
            size = next(large)[0] if size == _FULL_32 else size
            stored = next(large)[0] if stored == _FULL_32 else stored
            offset = next(large)[0] if offset == _FULL_32 else offset
        except StopIteration:
            fault = "its sizes are unknown: the zip64 field is missing or broken"
    return Entry(_name(name, flags, fields), flags, method, crc, stored, size, offset + base, mode >> 16, fault)


def _extra_fields(extra: bytes) -> dict[int, bytes]:
    fields: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(extra):
        kind, size_bytes = struct.unpack_from("<2H", extra, at)
        fields.setdefault(kind, extra[at + 4 : at + 4 + size_bytes])
        at += 4 + size_bytes
    return fields


def _name(raw: bytes, flags: int, fields: dict[int, bytes]) -> str:
    """Return the name of a member, up to its first zero byte, the same on every Python.

    The name is UTF-8 if its flag says so, if an extra field gives it in UTF-8, or if its bytes are valid UTF-8. Any
    other name is in code page 437, as the format says.
    """
    if raw.isascii() and not fields:
        name = raw.decode("ascii")
    elif flags & _UTF8_NAME:
        name = raw.decode("utf-8", "surrogateescape")
    else:
        unicode_path = fields.get(_UNICODE_PATH_FIELD, b"")
        is_valid = len(unicode_path) > 5 and unicode_path[:5] == struct.pack("<BI", 1, zlib.crc32(raw))
        try:
            name = (unicode_path[5:] if is_valid else raw).decode("utf-8")
        except UnicodeDecodeError:
            name = raw.decode("cp437")
    return name.partition("\0")[0] if "\0" in name else name


def _read(file: IO[bytes], start: int, size: int) -> bytes:
    file.seek(start)
    return file.read(size)
