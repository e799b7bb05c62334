"""The operations that every kind of storage offers to the store, and the entry of one object.

A backend neither retries requests nor translates errors. The store does both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

# Runs one request of a listing, with retries. Each attempt gets the current backend, because a retry may replace it.
Attempt = Callable[[Callable[[Any], Any]], Any]


@dataclass(frozen=True, slots=True)
class ListedObject:
    """One listed object.

    key: path below the listed root, with "/" on every system. version: etag without quotes for object stores,
    "size-mtime_ns" for files, "" if the store gives neither. size_bytes: -1 for a dangling link, or if unknown.
    """

    uri: str
    key: str
    version: str
    size_bytes: int


def _enters_all(key: str) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Walk:
    """How to list a tree of folders.

    enters: whether to list the folder of a key, which ends with "/". A store without folders lists all of them.
    on_fault: called with the key and the reason, for each entry below the listed folder that cannot be listed. None:
    such an entry raises the error.
    """

    enters: Callable[[str], bool] = _enters_all
    on_fault: Callable[[str, str], None] | None = None


WHOLE_TREE = Walk()


class Backend(Protocol):
    """One kind of storage. `create` changes nothing if the object exists."""

    def entries(self, uri: str, prefix: str, attempt: Attempt, walk: Walk) -> Iterator[ListedObject]:
        """Yield the objects below folder `uri` whose keys start with `prefix`, sorted by key.

        attempt: runs each request of the listing, with retries. walk: the folders to enter.
        """
        ...

    def names(self, uri: str) -> list[str]:
        """Return the names directly below a folder; names of folders end with "/"."""
        ...

    def stat(self, uri: str) -> ListedObject:
        """Return the entry of the object at exactly `uri`."""
        ...

    def read(self, uri: str, start: int, size: int | None) -> bytes:
        """Return `size` bytes from byte `start` on, or all bytes from there for None; fewer at the object's end."""
        ...

    def put(self, uri: str, data: bytes) -> None:
        """Write `data` as the whole content of `uri`."""
        ...

    def create(self, uri: str, data: bytes) -> None:
        """Write `data` to `uri`, or change nothing if the object exists."""
        ...

    def delete(self, uri: str) -> None:
        """Delete the object."""
        ...
