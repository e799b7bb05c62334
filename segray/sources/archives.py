"""What archives have in common: which members are images, under which keys, and which cannot be labelled, and why.

Knows names and rules; knows nothing of how an archive is written. Nothing is ever unpacked to a disk, so a name does
no harm here; but keys become paths in other hands, so a name that would leave a folder is refused.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from segray.instances import ImageRef
from segray.sources.uris import extension, inside_uri, is_hidden, pattern, unreadable_uri
from segray.storage.store import Entry


@dataclass(frozen=True)
class SourceSpec:
    """Which files hold the images, and which images of them. See `source` in configs/reference.yaml.

    kind: auto, images, tar, zip, parquet, video or manifest. members: a glob over names in archives. frames_per_s: of
    videos. image_column: of Parquet files. prefix: of the keys in an S3 Inventory.
    """

    kind: str = "auto"
    members: str | None = None
    frames_per_s: float = 1.0
    image_column: str | None = None
    prefix: str = ""


@dataclass(frozen=True)
class Member:
    """One file in an archive. trouble: why it cannot be read, "" if it can."""

    name: str
    size_bytes: int
    numbers: tuple[int, ...] = ()
    trouble: str = ""


class BrokenFileError(Exception):
    """A file that should hold images and cannot be read to its end; the message says why."""


def refs(
    kind: str, file: Entry, members: Iterable[Member], shape: SourceSpec, extensions: frozenset[str]
) -> list[ImageRef]:
    """The images among the members, sorted by key. One that cannot be read becomes a reference that says so.

    All have the version of their file. Of members with the same name the first is taken, and the others are told. An
    archive that breaks off has what came before, and a reference that says why there is no more.
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


def broken(file: Entry, reason: str) -> ImageRef:
    """A file without any image that can be read; it has one row, which says why."""
    return ImageRef(file.key, unreadable_uri(file.uri, reason), file.version, 0)


@lru_cache(8)
def _matcher(glob: str | None) -> re.Pattern[str] | None:
    return pattern(glob) if glob else None


def _clean(name: str) -> str:
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    # Whatever the archive's own encoding was: the same text every time.
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _misnamed(name: str) -> str:
    absolute = name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", name)
    if absolute or ".." in re.split(r"[\\/]", name):
        return f"its name leads out of the archive: {name}"
    return "its name has a zero byte" if "\0" in name else ""
