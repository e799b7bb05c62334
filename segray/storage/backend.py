"""What every kind of storage offers to the store, and what the store tells of an object.

A backend neither retries nor translates errors: the store does both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

# Runs one request of a listing, with retries. The request gets the backend of that moment: an attempt may renew it.
Attempt = Callable[[Callable[[Any], Any]], Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One listed object. key: its path below the listed root, with "/" whatever the system.

    version: etag without quotes for object stores, "size-mtime_ns" for files, "" if the store tells neither.
    size_bytes: -1 for a link that points nowhere.
    """

    uri: str
    key: str
    version: str
    size_bytes: int


class Backend(Protocol):
    """One kind of storage. `create` changes nothing if the object is there."""

    def entries(self, uri: str, prefix: str, attempt: Attempt) -> Iterator[Entry]: ...
    def names(self, uri: str) -> list[str]: ...
    def stat(self, uri: str) -> Entry: ...
    def read(self, uri: str, start: int, size: int | None) -> bytes: ...
    def put(self, uri: str, data: bytes) -> None: ...
    def create(self, uri: str, data: bytes) -> None: ...
    def delete(self, uri: str) -> None: ...
