"""The entries that a listing leaves out, and the notes that name them.

Knows reasons, counts and examples. Decides nothing about which entries are left out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

_MAX_EXAMPLES = 3
_MAX_NOTES = 20
# Notes show numbers for this many extensions, and counted for as many more. File names may end with anything.
_MAX_SHOWN, _MAX_COUNTED = 8, 1000
_MAX_EXTENSION_CHARS = 10
HIDDEN, NO_EXTENSION, OTHERS = "hidden", "without extension", "with other extensions"


class PassedOver:
    """The entries that one listing leaves out.

    unread: keys of entries whose content is unknown. Rows of images below these keys must stay.
    """

    def __init__(self) -> None:
        self.unread: list[str] = []
        self._files: Counter[str] = Counter()
        self._advice: list[str] = []
        self._reasons: Counter[str] = Counter()
        self._examples: defaultdict[str, list[str]] = defaultdict(list)
        self._files_by_note: defaultdict[str, list[str]] = defaultdict(list)
        self._left_out_notes = 0
        self._members = FileCounts()

    def tell(self, file: str, note: str) -> None:
        """Add a note on how a file was read, such as the column that a manifest's URIs come from."""
        if note not in self._files_by_note and len(self._files_by_note) == _MAX_NOTES:
            self._left_out_notes += 1
        elif len(self._files_by_note[note]) <= _MAX_EXAMPLES:
            self._files_by_note[note].append(file)

    def add(self, key: str, reason: str) -> None:
        """Add an entry that is left out for a reason of its own."""
        self._reasons[reason] += 1
        if len(self._examples[reason]) < _MAX_EXAMPLES:
            self._examples[reason].append(key)

    def add_unread(self, key: str, reason: str) -> None:
        """Add an entry that cannot be listed."""
        self.unread.append(key)
        self.add(key, reason)

    def add_files(self, counts: Mapping[str, int], advice: Sequence[str] = ()) -> None:
        """Add numbers of files that do not belong to the source.

        counts: numbers by kind: the result of kind_of, or HIDDEN. advice: what takes these files.
        """
        self._files.update(counts)
        self._advice += [text for text in advice if text not in self._advice]

    def add_members(self, counts: Mapping[str, int]) -> None:
        """Add numbers of members of archives that are left out, by kind."""
        for kind, count in counts.items():
            self._members.add(kind, count)

    def notes(self) -> list[str]:
        """Return notes on how the source was read, and a line for each reason, for all files and for all members."""
        lines = []
        for note, files in self._files_by_note.items():
            examples = ", ".join(ascii(file)[1:-1] for file in files[:_MAX_EXAMPLES])
            lines.append(f"{examples}{' and others' if len(files) > _MAX_EXAMPLES else ''}: {note}")
        if self._left_out_notes:
            lines.append(f"{self._left_out_notes:,} further notes on manifests")
        for reason, count in self._reasons.items():
            examples = ", ".join(ascii(key)[1:-1] for key in self._examples[reason])
            lines.append(f"passed over: {examples}{' and others' if count > _MAX_EXAMPLES else ''} ({reason})")
        if self._files:
            lines.append("; ".join([f"passed over: {counts_text(self._files)}", *self._advice]))
        if self._members.by_kind:
            members = f"passed over in archives: {counts_text(self._members.by_kind)}"
            lines.append(f"{members}; a glob in source.members that names them takes them")
        return lines

    def as_record(self) -> dict[str, Any]:
        """Return the numbers of files and of members of archives by kind, and the notes, for programs.

        The result is empty without a note.
        """
        notes = self.notes()
        members = dict(self._members.by_kind.most_common())
        return {"files": dict(self._files.most_common()), "members": members, "notes": notes} if notes else {}


def counts_text(counts: Mapping[str, int]) -> str:
    """Return numbers by kind as one text, the largest first, with the sum of the smallest."""
    by_number = sorted(counts.items(), key=lambda kind: (-kind[1], kind[0]))
    texts = [f"{count:,} {kind}" for kind, count in by_number[:_MAX_SHOWN]]
    if others := by_number[_MAX_SHOWN:]:
        texts.append(f"{sum(count for _, count in others):,} of {len(others):,} other kinds")
    return ", ".join(texts)


class FileCounts:
    """Numbers of files by kind. Their number is bounded, whatever the names of the files."""

    def __init__(self) -> None:
        self.by_kind: Counter[str] = Counter()

    def add(self, kind: str, count: int = 1) -> None:
        """Count files of a kind."""
        is_new = kind not in self.by_kind and len(self.by_kind) >= _MAX_COUNTED
        self.by_kind[OTHERS if is_new else kind] += count


def kind_of(extension: str) -> str:
    """Return the words for files with an extension: ".heic", or "without extension" for what looks like none."""
    is_usual = extension.replace(".", "").isalnum() and len(extension) <= _MAX_EXTENSION_CHARS
    return f".{extension}" if is_usual else NO_EXTENSION
