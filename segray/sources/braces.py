"""Braces in addresses, as WebDataset and shells write them: shards-{000000..000099}.tar, {train,val}/*.tar.

Knows texts alone. The files that braces name are a list, so a file that is missing is told. A pattern names what is
there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from segray.errors import SourceError

_MAX_NAMES = 100_000
_GROUP = re.compile(r"\{([^{}]*)\}")
_NUMBERS = re.compile(r"(-?\d{1,18})\.\.(-?\d{1,18})(?:\.\.(-?\d{1,18}))?")
_LETTERS = re.compile(r"([a-z])\.\.([a-z])|([A-Z])\.\.([A-Z])")


def has_braces(text: str) -> bool:
    """Return whether the text holds braces that stand for several names."""
    return any("," in group[1] or _is_range(group[1]) for group in _GROUP.finditer(text))


def expand(text: str) -> list[str]:
    """Return the names that the braces stand for, each once, in the order of the braces.

    Raises SourceError for more than _MAX_NAMES names.
    """
    names: dict[str, None] = {}
    for expanded in _expansions(text):
        names[expanded] = None
        if len(names) > _MAX_NAMES:
            raise SourceError(
                f"Braces that stand for more than {_MAX_NAMES:,} names",
                where=text,
                hint="use a glob: * instead of the braces, or a manifest",
            )
    return list(names)


def _expansions(text: str) -> Iterator[str]:
    for group in _GROUP.finditer(text):
        if "," in group[1] or _is_range(group[1]):
            for choice in _choices(group[1]):
                yield from _expansions(text[: group.start()] + choice + text[group.end() :])
            return
    yield text


def _is_range(text: str) -> bool:
    return bool(_NUMBERS.fullmatch(text) or _LETTERS.fullmatch(text))


def _choices(text: str) -> Iterator[str]:
    """Yield the texts of one pair of braces. Numbers have the width of the wider end if one end has leading zeros."""
    if letters := _LETTERS.fullmatch(text):
        first, last = (ord(letter) for letter in letters.groups() if letter)
        yield from (chr(code) for code in _span(first, last, 1))
        return
    numbers = _NUMBERS.fullmatch(text)
    if numbers is None:
        yield from text.split(",")
        return
    ends = numbers[1], numbers[2]
    is_padded = any(re.match(r"-?0\d", end) for end in ends)
    width = max(map(len, ends)) if is_padded else 0
    yield from (f"{number:0{width}d}" for number in _span(int(ends[0]), int(ends[1]), int(numbers[3] or 1)))


def _span(first: int, last: int, step: int) -> range:
    """Return the numbers from first to last, both included, upwards or downwards."""
    size = max(1, abs(step))
    return range(first, last + 1, size) if first <= last else range(first, last - 1, -size)
