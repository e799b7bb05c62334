"""A watcher for runs that nobody watches."""

from __future__ import annotations


class Notes:
    """Remembers what it was told in words."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, images: int, resumed: int) -> None: ...

    def advance(self, done: int, instances: int, failed: int) -> None: ...
