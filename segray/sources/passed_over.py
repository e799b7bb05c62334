"""The entries that a listing leaves out, and the notes that name them.

Knows reasons, counts and examples. Decides nothing about which entries are left out.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

_MAX_EXAMPLES = 3
_MAX_TOLD = 20


class PassedOver:
    """The entries that one listing leaves out.

    unread: keys of entries whose content is unknown. Rows of images below these keys must stay.
    """

    def __init__(self) -> None:
        self.unread: list[str] = []
        self._extensions: Counter[str] = Counter()
        self._reasons: Counter[str] = Counter()
        self._examples: defaultdict[str, list[str]] = defaultdict(list)
        self._told: list[str] = []
        self._members: Counter[str] = Counter()

    def tell(self, note: str) -> None:
        """Add a note on how the source was read, such as the column that a manifest's URIs come from."""
        if note not in self._told:
            self._told.append(note)

    def add(self, key: str, reason: str) -> None:
        """Add an entry that is left out for a reason of its own."""
        self._reasons[reason] += 1
        if len(self._examples[reason]) < _MAX_EXAMPLES:
            self._examples[reason].append(key)

    def add_unread(self, key: str, reason: str) -> None:
        """Add an entry that cannot be listed."""
        self.unread.append(key)
        self.add(key, reason)

    def add_extensions(self, counts: Mapping[str, int]) -> None:
        """Add numbers of files by extension. Files with these extensions do not belong to the source."""
        self._extensions.update(counts)

    def add_members(self, counts: Mapping[str, int]) -> None:
        """Add numbers of members of archives by extension, "" for no extension. These members may be images."""
        self._members.update(counts)

    def notes(self) -> list[str]:
        """Return the notes on how the source was read, one line for each reason, and one line for all extensions."""
        lines = self._told[:_MAX_TOLD]
        if len(self._told) > _MAX_TOLD:
            lines.append(f"{len(self._told) - _MAX_TOLD:,} further notes of this kind")
        for reason, count in self._reasons.items():
            examples = ", ".join(ascii(key)[1:-1] for key in self._examples[reason])
            lines.append(f"passed over: {examples}{' and others' if count > _MAX_EXAMPLES else ''} ({reason})")
        if self._extensions:
            counts = ", ".join(f"{count:,} .{extension}" for extension, count in self._extensions.most_common())
            lines.append(f"passed over: {counts}; source.kind says which files are taken")
        if self._members:
            named = (
                (f".{extension}" if extension else "without extension", n) for extension, n in _most(self._members)
            )
            counts = ", ".join(f"{count:,} {what}" for what, count in named)
            lines.append(f"passed over in archives: {counts}; a glob in source.members that names them takes them")
        return lines


def _most(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))
