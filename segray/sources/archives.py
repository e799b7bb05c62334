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
from segray.sources.uris import extension, inside_uri, is_hidden, pattern, unreadable_uri
from segray.storage.store import ListedObject

# Extensions of images that segray may not read. Members of archives with other extensions belong to an image or none.
_OTHER_IMAGES = frozenset(
    {"heic", "heif", "avif", "jp2", "j2k", "jxl", "jpe", "mpo", "psd", "svg", "exr", "dng", "cr2", "nef", "arw"}
)


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

    refs: sorted by key. left_out: number of members by extension that may be images and are left out.
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
    left_out: Counter[str] = Counter()
    refs_by_key: dict[str, ImageRef] = {}
    repeats: Counter[str] = Counter()

    def add(key: str, fault: str, size_bytes: int = 0, numbers: tuple[int, ...] = ()) -> None:
        uri = unreadable_uri(file.uri, fault) if fault else inside_uri(kind, file.uri, *numbers)
        refs_by_key[key] = ImageRef(key, uri, file.version, size_bytes)

    try:
        for member in members:
            name = _normalized_name(member.name)
            if is_hidden(name) or (name_pattern and not name_pattern.fullmatch(name)):
                continue
            ending = extension(name)
            if ending not in extensions and not _names_extension(spec.members, ending):
                if not ending or ending in _OTHER_IMAGES:
                    left_out[ending] += 1
                continue
            key = f"{file.key}/{name}"
            if key in refs_by_key:
                repeats[key] += 1
                add(f"{key}#{repeats[key] + 1}", f"another member of the archive has this name: {name}")
            else:
                add(key, _name_fault(name) or member.fault, member.size_bytes, member.numbers)
    except BrokenFileError as error:
        add(file.key, str(error))
    return ImagesInside([refs_by_key[key] for key in sorted(refs_by_key)], left_out)


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
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    # A key must be valid UTF-8 and the same in every run, in any encoding that the archive uses.
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _name_fault(name: str) -> str:
    """Return why a member of this name is refused, "" for a valid name."""
    absolute = name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", name)
    if absolute or ".." in re.split(r"[\\/]", name):
        return f"its name leads out of the archive: {name}"
    return "its name has a zero byte" if "\0" in name else ""
