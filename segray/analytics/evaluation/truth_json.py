"""A JSON file of any size, read piece by piece: the members of an object's arrays, one at a time.

This module knows encodings and JSON, and says where in the file a fault is. The meaning of the members belongs to
ground_truth.
"""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Generator, Iterator
from typing import Any, BinaryIO

from segray.errors import SourceError
from segray.storage.store import Store
from segray.storage.uris import redact

# Name of the array, number of the member from 0, the member, and its text. The number is START before the first member.
Member = tuple[str, int, Any, str]
START = -1
_READ_CHARS = 1 << 20
_LONGEST_WORD = 16  # characters of JSON that cannot be parsed before the last one is read
_PACKED = {b"\x1f\x8b": "gzip", b"PK": "a zip archive", b"BZ": "bzip2", b"(\xb5": "zstd", b"\xfd7": "xz"}


def members(
    path: str, store: Store, arrays: Collection[str], *, with_text: bool = False
) -> Generator[Member, None, None]:
    """Yield each member of the arrays with these names, and START before the first member of each.

    The file may be UTF-8, UTF-16 or UTF-32, with or without a byte order mark. with_text: yield the members' text too.
    Raise SourceError if the file does not exist, holds no JSON object, or holds another value under one of the names.
    """
    try:
        with store.reader(path) as file, io.TextIOWrapper(file, encoding=_encoding(file, path)) as text:
            yield from members_of(Text(text), redact(path), arrays, with_text=with_text)
    except FileNotFoundError as error:
        raise SourceError("no such truth file", where=redact(path), hint="check the path") from error
    except IsADirectoryError as error:
        hint = "give a file, such as labels.json of an export to fiftyone"
        raise SourceError("the truth is a folder", where=redact(path), hint=hint) from error
    except ValueError as error:
        hint = "correct the file at this place, or write it again as JSON in UTF-8"
        raise SourceError("the truth is not JSON", where=redact(path), found=str(error), hint=hint) from error


def members_of(text: Text, path: str, arrays: Collection[str], *, with_text: bool = False) -> Iterator[Member]:
    """Yield the members of the arrays in a text, as `members` does. Raise ValueError for text that is not JSON."""
    if (first := text.peek()) != "{":
        raise SourceError(
            "the truth is not COCO JSON", where=path,
            found="no JSON object, but a list" if first == "[" else f"no JSON object: the file begins with {first!r}",
            hint="give a file with images, annotations and categories; results of detection are no truth",
        )  # fmt: skip
    text.skip()
    names = set[str]()
    for _ in _separated(text, "}"):
        name = text.value()
        if not isinstance(name, str) or text.peek() != ":":
            raise text.fault("a key and ':' are expected")
        text.skip()
        is_read = name in arrays
        if is_read and name in names:
            raise SourceError(
                f"the truth has two lists of {name}", where=path, found=f"the key {name} twice",
                hint="join the lists, or delete one of them",
            )  # fmt: skip
        names.add(name)
        if text.peek() != "[":
            value = text.value()
            if is_read:
                kind = "a mapping" if isinstance(value, dict) else "null" if value is None else type(value).__name__
                raise SourceError(
                    f"the truth's {name} are no list", where=path, found=kind,
                    hint=f"write {name} as a list, in brackets [ ]",
                )  # fmt: skip
            continue
        if is_read:
            yield name, START, None, ""
        text.skip()
        for number, _ in enumerate(_separated(text, "]")):
            value = text.value()
            if is_read:
                yield name, number, value, text.last_value if with_text else ""
    if not text.is_at_end():
        raise text.fault("text after the end of the object")


def _separated(text: Text, closing: str) -> Iterator[None]:
    """Yield before each member of an object or array, and move past commas and the closing bracket."""
    if text.peek() == closing:
        text.skip()
        return
    while True:
        yield
        char = text.peek()
        if char not in (",", closing):
            raise text.fault(f"Expecting ',' or '{closing}', not {char!r}")
        text.skip()
        if char == closing:
            return
        if text.peek() == closing:
            raise text.fault(f"Expecting a value after ',', not '{closing}'")


class Text:
    """JSON text that is read piece by piece."""

    def __init__(self, file: io.TextIOBase | io.TextIOWrapper) -> None:
        self._file, self._text, self._position = file, "", 0
        self._start = 0  # of the last value
        self._lines = self._columns = 0  # before the text in memory: lines, and characters of the last line
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """Return the next character that is no space. Raise ValueError at the end."""
        if self.is_at_end():
            raise self.fault("the file ends before the object does")
        return self._text[self._position]

    def is_at_end(self) -> bool:
        """Move past spaces. Return whether nothing follows."""
        while True:
            while self._position < len(self._text) and self._text[self._position] in " \t\r\n":
                self._position += 1
            if self._position < len(self._text):
                return False
            if not self._read_more():
                return True

    def skip(self) -> None:
        """Move past the character that `peek` returned."""
        self._position += 1

    def value(self) -> Any:
        """Return the next JSON value, and move past it."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._position)
            except json.JSONDecodeError as error:
                # More text helps only a string without an end, or a word, number or escape at the very end.
                broken_off = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _LONGEST_WORD
                if not broken_off or not self._read_more():
                    raise self.fault(error.msg, error.pos) from error
                continue
            except RecursionError as error:
                raise self.fault("a value is nested too deeply") from error
            except ValueError as error:  # an integer of more digits than Python reads
                raise self.fault(str(error)) from error
            if end > len(self._text) - _LONGEST_WORD and self._read_more():
                continue  # The number may have more digits.
            self._start, self._position = self._position, end
            return value

    @property
    def last_value(self) -> str:
        """Return the text of the value that was read last, before anything else is read."""
        return self._text[self._start : self._position]

    def fault(self, says: str, position: int | None = None) -> ValueError:
        """Return an error that names line and column. position: index into the text in memory, by default the next."""
        end = self._position if position is None else position
        lines = self._text.count("\n", 0, end)
        column = end - self._text.rfind("\n", 0, end) if lines else self._columns + end + 1
        return ValueError(f"{says}: line {self._lines + lines + 1}, column {column}")

    def _read_more(self) -> bool:
        """Read more text. Return False at the end of the file."""
        new_text = self._file.read(max(_READ_CHARS, len(self._text) - self._position))
        if new_text:
            lines = self._text.count("\n", 0, self._position)
            self._lines += lines
            last_line = self._text.rfind("\n", 0, self._position) + 1
            self._columns = self._position - last_line if lines else self._columns + self._position
            self._text, self._position = self._text[self._position :] + new_text, 0
        return bool(new_text)


def _encoding(file: BinaryIO, path: str) -> str:
    """Return the encoding of the text, from its first bytes. Raise SourceError for a packed file."""
    start = file.read(4)
    file.seek(0)
    for magic, name in _PACKED.items():
        if start.startswith(magic):
            raise SourceError("the truth is packed", where=redact(path), found=name, hint="unpack the file first")
    return json.detect_encoding(start)
