"""Rules for the members of archives: which members are images, their keys, and why a member cannot be labelled.

Knows names and rules. Leaves archive formats to tar_archive.py and zip_archive.py. segray never unpacks a member to a
disk, so every name is harmless to segray. Other tools may use keys as paths. segray therefore refuses a name that
leads out of a folder.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from segray.instances import ImageRef
from segray.sources.passed_over import HIDDEN, FileCounts, kind_of
from segray.sources.uris import extension, inside_uri, is_hidden, pattern, unreadable_uri
from segray.storage.store import ListedObject

_ZIP_START = b"PK\3\4"
# The first bytes of files that are often called .tar or .zip, and the words for them.
_SIGNATURES = (
    (b"\x1f\x8b", "compressed by gzip; decompress the file"),
    (b"BZh", "compressed by bzip2; decompress the file"),
    (b"\xfd7zXZ\0", "compressed by xz; decompress the file"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; decompress the file"),
    (_ZIP_START, "a zip archive; its name must end with .zip"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack the file"),
    (b"Rar!\x1a\x07", "a RAR archive; unpack the file"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"\x89PNG", "a PNG image"),
    (b"<", "a page of HTML or XML, as servers send instead of a file"),
)
_TAR_MAGIC, _TAR_MAGIC_START = b"ustar", 257
HEAD_BYTES = _TAR_MAGIC_START + len(_TAR_MAGIC)


@dataclass(frozen=True)
class SourceSpec:
    """The settings that say which files hold the images, and which of their images to label.

    configs/reference.yaml describes the same keys of `source`.

    kind: auto, images, tar, zip, parquet, video or manifest. members: a glob for the names of archive members.
    frames_per_s: frames per second to take from videos. image_column: column of Parquet files. prefix: prefix of keys
    in an S3 Inventory. uri_column: column of manifests.
    """

    kind: str = "auto"
    members: str | None = None
    frames_per_s: float = 1.0
    image_column: str | None = None
    prefix: str = ""
    uri_column: str | None = None


@dataclass(frozen=True)
class Member:
    """One file in an archive.

    numbers: position and sizes, as in the member's URI. fault: why the member cannot be read, "" if it can be read.
    """

    name: str
    size_bytes: int
    numbers: tuple[int, ...] = ()
    fault: str = ""


class BrokenFileError(Exception):
    """A file that should hold images and cannot be read to its end. The message says why."""


@dataclass(frozen=True)
class ImagesInside:
    """The images in one file.

    refs: sorted by key. left_out: number of members by kind that are left out, as passed_over.kind_of names kinds.
    """

    refs: list[ImageRef]
    left_out: Mapping[str, int] = field(default_factory=dict)


def images(
    kind: str,
    file: ListedObject,
    members: Iterable[Member],
    spec: SourceSpec,
    extensions: frozenset[str],
) -> ImagesInside:
    """Return the images among the members of an archive.

    Each reference has the version of the archive. A member that cannot be read becomes an unreadable reference with the
    reason. Of several members with one name, the first is the image. Each later one becomes an unreadable reference,
    KEY#2, KEY#3 and so on. A truncated archive gives the members before the break, and one unreadable reference with
    the reason.

    Args:
        kind: Kind of archive, tar or zip.
        file: The archive.
        members: Members in the order of the archive.
        spec: The configured source; its `members` selects names.
        extensions: Extensions of images, in lower case, without the dot.
    """
    name_pattern = _compiled_glob(spec.members)
    left_out = FileCounts()
    refs_by_key: dict[str, ImageRef] = {}
    repeats: Counter[str] = Counter()

    def add(key: str, fault: str, size_bytes: int = 0, numbers: tuple[int, ...] = ()) -> None:
        uri = unreadable_uri(file.uri, fault) if fault else inside_uri(kind, file.uri, *numbers)
        refs_by_key[key] = ImageRef(key, uri, file.version, size_bytes)

    try:
        for member in members:
            name = _normalized_name(member.name)
            if is_hidden(name):
                left_out.add(HIDDEN)
                continue
            if name_pattern and not name_pattern.fullmatch(name):
                continue
            ending = extension(name)
            if ending not in extensions and not _names_extension(spec.members, ending):
                left_out.add(kind_of(ending))
                continue
            key = f"{file.key}/{name}"
            if key in refs_by_key:
                repeats[key] += 1
                add(f"{key}#{repeats[key] + 1}", f"another member of the archive has this name: {name}")
            else:
                add(key, _name_fault(member.name) or member.fault, member.size_bytes, member.numbers)
    except BrokenFileError as error:
        add(file.key, str(error))
    return ImagesInside([refs_by_key[key] for key in sorted(refs_by_key)], left_out.by_kind)


def what_it_is(head: bytes, expected: str) -> str:
    """Return the words for a file that starts with these bytes, "" for the expected kind or an unknown one.

    Args:
        head: The first HEAD_BYTES of the file, or all bytes of a shorter file.
        expected: The kind that the file should have, tar or zip.
    """
    if not head:
        return "an empty file"
    if head[_TAR_MAGIC_START:] == _TAR_MAGIC:
        return "" if expected == "tar" else "a tar archive; its name must end with .tar"
    if expected == "zip" and head.startswith(_ZIP_START):
        return ""
    return next((words for start, words in _SIGNATURES if head.lstrip(b" \t\r\n").startswith(start)), "")


def _names_extension(glob: str | None, ending: str) -> bool:
    """Return whether a glob for members takes an extension that is no image's.

    A glob takes the extension that it ends with, as in *.dat. A glob without a dot takes names without an extension, as
    in 0*. The globs * and ** take images alone.
    """
    last = (glob or "*").rpartition("/")[2]
    return extension(last) == ending if ending else "." not in last and last not in ("*", "**")


def broken(file: ListedObject, reason: str) -> ImageRef:
    """Return the one reference for a file that holds no readable image. The reference gives the reason."""
    return ImageRef(file.key, unreadable_uri(file.uri, reason), file.version, 0)


@lru_cache(8)
def _compiled_glob(glob: str | None) -> re.Pattern[str] | None:
    return pattern(glob) if glob else None


def _normalized_name(name: str) -> str:
    """Return the name without a leading "./", as valid UTF-8."""
    name = _without_dot(name)
    # A key must be valid UTF-8 and the same in every run, in any encoding that the archive uses.
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _without_dot(name: str) -> str:
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def _name_fault(name: str) -> str:
    """Return why a member of this name is refused, "" for a valid name. name: as the archive has it."""
    name = _without_dot(name)
    absolute = name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", name)
    if absolute or ".." in re.split(r"[\\/]", name):
        return f"its name leads out of the archive: {_normalized_name(name)}"
    return "its name has a zero byte" if "\0" in name else ""
