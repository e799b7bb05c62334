"""The images that an export copies: which of them are missing, or have changed since they were labelled.

Knows the stored size and version of an image. Reading the bytes belongs to segray.sources.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from segray.sources.uris import inside
from segray.storage.backend import ListedObject
from segray.storage.store import Store

_AT_ONCE = 16
MISSING, CHANGED = "missing", "changed"


@dataclass(frozen=True)
class LabelledImage:
    """An image as it was labelled. version: its ETag, or size and time of a local file. size_bytes: -1 if unknown."""

    key: str
    uri: str
    version: str
    size_bytes: int


@dataclass(frozen=True)
class Fault:
    """Why an image cannot be copied. kind: MISSING or CHANGED. text: what was found."""

    key: str
    kind: str
    text: str


def faults(images: Iterable[LabelledImage], store: Store) -> Iterator[Fault]:
    """Yield a fault for each image that is missing or changed, in the order of the images.

    Raises AccessError and InfrastructureError as Store does.
    """

    @lru_cache(maxsize=1024)
    def stat(uri: str) -> ListedObject | None:
        try:
            return store.stat(uri)
        except FileNotFoundError:
            return None

    def fault_of(image: LabelledImage) -> Fault | None:
        location = inside(image.uri)
        entry = stat(image.uri if location is None else location.file)
        if entry is None:
            return Fault(image.key, MISSING, f"nothing at {image.uri}")
        if location is None and _differ(image.size_bytes, entry.size_bytes):
            text = f"{entry.size_bytes} bytes, labelled with {image.size_bytes}"
            return Fault(image.key, CHANGED, text)
        if _are_comparable(image.version, entry.version) and image.version != entry.version:
            return Fault(image.key, CHANGED, f"version {entry.version}, labelled as {image.version}")
        return None

    waiting = iter(images)
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="stat") as pool:
        while chunk := list(islice(waiting, 64 * _AT_ONCE)):
            yield from (fault for fault in pool.map(fault_of, chunk) if fault is not None)


def _differ(labelled_bytes: int, stored_bytes: int) -> bool:
    return labelled_bytes >= 0 and stored_bytes >= 0 and labelled_bytes != stored_bytes


def _are_comparable(a: str, b: str) -> bool:
    """Return whether two versions are of one form. A manifest may have versions of its own."""
    first, second = (re.sub(r"[0-9a-fA-F]", "0", version) for version in (a, b))
    return bool(first) and first == second
