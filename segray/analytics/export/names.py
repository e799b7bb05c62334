"""Names of images in an export: a relative path for each key, and other names where two paths would collide.

Knows paths as text. The writers know which files they write.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import PurePosixPath
from typing import Literal

import numpy as np

from segray.instances import image_id
from segray.sources.listing import IMAGE_EXTENSIONS
from segray.storage.uris import is_http

_MAX_NAME_BYTES = 200  # A file system takes 255, and writers append an extension.
_KEPT_CHARS = 60
# Extensions of the files that describe an image. A folder of such a name could be in the way of a file.
_DESCRIPTIONS = frozenset({"txt", "json", "png"})


# How the names of an export must differ. path: as paths. file: as paths of files, of which none is a folder of another.
# stem: as files without their extension, since a file that describes an image has another extension.
Distinct = Literal["path", "file", "stem"]


@dataclass(frozen=True)
class OtherName:
    """The name of an image whose own path is taken. beside: key of the image that has the path, or is below it."""

    name: str
    beside: str


def path_of_key(key: str) -> PurePosixPath:
    """Return the path of an image below a folder of an export.

    The path is the key without scheme, query, leading slash, empty parts and `.`. The part `..` becomes `%2E%2E`.
    """
    path = key.partition("://")[2] if "://" in key else key
    if is_http(key):
        authority, _, rest = path.partition("?")[0].partition("#")[0].partition("/")
        path = f"{authority.rpartition('@')[2]}/{rest}"
    parts = [_part(part) for part in path.split("/") if part not in ("", ".")]
    return PurePosixPath(*parts) if parts else PurePosixPath(image_id(key))


def _part(part: str) -> str:
    if part == "..":
        return "%2E%2E"
    part = part.replace("\0", "%00")
    if len(part.encode("utf-8", "surrogatepass")) <= _MAX_NAME_BYTES:
        return part
    digest = hashlib.sha256(part.encode("utf-8", "surrogatepass")).hexdigest()[:16]
    extension = PurePosixPath(part).suffix if is_image_name(PurePosixPath(part)) else ""
    return f"{part[:_KEPT_CHARS]}~{digest}{extension}"


def is_image_name(path: PurePosixPath) -> bool:
    """Return whether the name ends as the name of an image file."""
    return path.suffix[1:].lower() in IMAGE_EXTENSIONS


def without_image_extension(path: PurePosixPath) -> PurePosixPath:
    """Return the path without the extension of an image file. The key of a frame may end in other text after a dot."""
    return path.with_suffix("") if is_image_name(path) else path


def other_names(keys: Callable[[], Iterable[str]], distinct: Distinct) -> dict[str, OtherName]:
    """Return the names of the images that cannot have their own paths, by key.

    An image whose key is its path keeps the path. Otherwise the first key keeps it. Eight bytes of each image stay in
    memory.

    Args:
        keys: Returns the keys of the exported images, each time in the same order.
        distinct: How the names must differ.
    """
    hashes, folders = array("Q"), set[int]()
    for key in keys():
        path = path_of_key(key)
        hashes.append(_hash(_slot(path, distinct)))
        folders.update(map(_hash, _blocked_slots(path, distinct)))
    slots, counts = np.unique(np.array(hashes, np.uint64), return_counts=True)
    taken = set(slots[counts > 1].tolist()) | folders.intersection(slots.tolist())
    if not taken:
        return {}
    claims: dict[int, list[str]] = {}
    below: dict[int, str] = {}
    for key in keys():
        path = path_of_key(key)
        if (slot := _hash(_slot(path, distinct))) in taken:
            claims.setdefault(slot, []).append(key)
        for blocked in map(_hash, _blocked_slots(path, distinct)):
            below.setdefault(blocked, key)
    taken = set(slots.tolist()) | folders
    names: dict[str, OtherName] = {}
    for slot, claimants in claims.items():
        first, *others = sorted(claimants, key=lambda key: (str(path_of_key(key)) != key, key))
        if slot in below:
            names[first] = OtherName(_free_name(path_of_key(first), distinct, taken), below[slot])
        names |= {key: OtherName(_free_name(path_of_key(key), distinct, taken), first) for key in others}
    return names


def _free_name(path: PurePosixPath, distinct: Distinct, taken: set[int]) -> str:
    """Return the path with ~2, ~3 or a higher number, whichever is free, and take that path."""
    extension = path.suffix if is_image_name(path) else ""
    stem = path.name.removesuffix(extension)
    for number in count(2):
        candidate = path.with_name(f"{stem}~{number}{extension}")
        if (slot := _hash(_slot(candidate, distinct))) not in taken:
            taken.add(slot)
            return str(candidate)
    raise AssertionError("unreachable")


def _slot(path: PurePosixPath, distinct: Distinct) -> str:
    return str(without_image_extension(path) if distinct == "stem" else path)


def _blocked_slots(path: PurePosixPath, distinct: Distinct) -> Iterator[str]:
    """Yield the slots that the folders of a path block: those of folders that are called like a file of the export."""
    for folder in path.parents if distinct != "path" else ():
        if folder.suffix[1:].lower() in IMAGE_EXTENSIONS | _DESCRIPTIONS:
            yield str(folder if distinct == "file" else folder.with_suffix(""))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
