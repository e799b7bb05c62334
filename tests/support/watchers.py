"""A listener for runs that nobody watches."""

from __future__ import annotations

from segray.execution.progress import ProgressListener


class Notes(ProgressListener):
    """Remembers what it was told in words."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)
