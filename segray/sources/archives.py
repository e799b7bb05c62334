"""Rules for the members of archives: which members are images, their keys, and why a member cannot be labelled.

Knows names and rules. Leaves archive formats to tar_archive.py and zip_archive.py. segray never unpacks a member to a
disk, so no name does harm here. Other tools may use keys as paths, so a name that leads out of a folder is refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from segray.instances import ImageRef
from segray.sources.uris import extension, inside_uri, is_hidden, pattern, unreadable_uri
from segray.storage.store import ListedObject


@dataclass(frozen=True)
class SourceSpec:
    """Which files hold the images, and which of their images to label. configs/reference.yaml describes `source`.

    kind: auto, images, tar, zip, parquet, video or manifest. members: a glob for the names of archive members.
    frames_per_s: frames per second to take from videos. image_column: column of Parquet files. prefix: prefix of keys
    in an S3 Inventory.
    """

    kind: str = "auto"
    members: str | None = None
    frames_per_s: float = 1.0
    image_column: str | None = None
    prefix: str = ""


@dataclass(frozen=True)
class Member:
    """One file in an archive.

    numbers: position and sizes, as in the member's URI. trouble: why the file cannot be read, "" if it can be read.
    """

    name: str
    size_bytes: int
    numbers: tuple[int, ...] = ()
    trouble: str = ""


class BrokenFileError(Exception):
    """A file that should hold images and cannot be read to its end. The message says why."""


def refs(
    kind: str, file: ListedObject, members: Iterable[Member], shape: SourceSpec, extensions: frozenset[str]
) -> list[ImageRef]:
    """Return the images among the members, sorted by key.

    A member that cannot be read becomes a reference that says why. Each reference has the version of the archive. The
    first of several members with one name is the image. Each later one becomes an unreadable reference, KEY#2, KEY#3
    and so on. A truncated archive gives the members before the break, and one unreadable reference with the reason.

    Args:
        kind: Kind of archive, tar or zip.
        file: The archive.
        members: Members in the order of the archive.
        shape: The configured source; its `members` selects names.
        extensions: Extensions of images, in lower case, without the dot.
    """
    chosen = _matcher(shape.members)
    found: dict[str, ImageRef] = {}
    again: Counter[str] = Counter()

    def add(key: str, trouble: str, size_bytes: int = 0, numbers: tuple[int, ...] = ()) -> None:
        uri = unreadable_uri(file.uri, trouble) if trouble else inside_uri(kind, file.uri, *numbers)
        found[key] = ImageRef(key, uri, file.version, size_bytes)

    try:
        for member in members:
            name = _clean(member.name)
            if extension(name) not in extensions or is_hidden(name) or (chosen and not chosen.fullmatch(name)):
                continue
            key = f"{file.key}/{name}"
            if key in found:
                again[key] += 1
                add(f"{key}#{again[key] + 1}", f"another member of the archive has this name: {name}")
            else:
                add(key, _misnamed(name) or member.trouble, member.size_bytes, member.numbers)
    except BrokenFileError as error:
        add(file.key, str(error))
    return [found[key] for key in sorted(found)]


def broken(file: ListedObject, reason: str) -> ImageRef:
    """Return the one reference for a file that holds no readable image. The reference gives the reason."""
    return ImageRef(file.key, unreadable_uri(file.uri, reason), file.version, 0)


@lru_cache(8)
def _matcher(glob: str | None) -> re.Pattern[str] | None:
    return pattern(glob) if glob else None


def _clean(name: str) -> str:
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    # The result must be valid UTF-8 and the same in every run, whatever encoding the archive uses.
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _misnamed(name: str) -> str:
    absolute = name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", name)
    if absolute or ".." in re.split(r"[\\/]", name):
        return f"its name leads out of the archive: {name}"
    return "its name has a zero byte" if "\0" in name else ""
