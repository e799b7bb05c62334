"""Names and URIs as text: extensions, hidden names, glob patterns, and URIs of images inside other files.

Opens no file. An image inside another file has a URI of its own, SCHEME://NUMBERS::FILE. A worker reads the image by
this URI:

    tar-member://1536+45123::s3://bucket/train-0001.tar    offset and size of the body in the shard, in bytes
    zip-member://0+812+1000+2923::photos.zip               offset of the local header, bytes stored, bytes, CRC-32
    parquet-cell://0+3+17::train.parquet                   column, row group, row of the group
    video-frame://12480::drive.mp4                         time in milliseconds
    unreadable://REASON::train-0001.tar                    why the image cannot be read, percent-encoded
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from urllib.parse import quote, unquote

from segray.errors import SourceError
from segray.sources.braces import has_braces
from segray.storage.uris import name, scheme

BOOKKEEPING = frozenset({"_delta_log", "_segray", "_temporary", "__MACOSX"})


def extension(path: str) -> str:
    """Return the extension in lower case, without the dot; "" if there is none."""
    return name(path).rpartition(".")[2].lower() if "." in name(path) else ""


def comma_list(names: Iterable[str]) -> str:
    """Return the names, sorted, as one text with commas."""
    return ", ".join(sorted(names))


def is_hidden(key: str) -> bool:
    """Return whether the key has a hidden component (.name), or one of the folders in BOOKKEEPING."""
    # "." and ".." are ordinary names of folders in an object store.
    return any((part.startswith(".") and part.strip(".")) or part in BOOKKEEPING for part in key.split("/"))


# ---- images inside other files --------------------------------------------------------------------


@dataclass(frozen=True)
class ImageLocation:
    """The location of an image inside another file.

    kind: tar, zip, parquet, video or unreadable. file: URI of the other file. numbers: as the docstring of this module
    describes for each kind. reason: why an unreadable image cannot be read.
    """

    kind: str
    file: str
    numbers: tuple[int, ...] = ()
    reason: str = ""


_SCHEMES = {
    "tar": "tar-member",
    "zip": "zip-member",
    "parquet": "parquet-cell",
    "video": "video-frame",
    "unreadable": "unreadable",
}
_NUMBERS_OF_KIND = {"tar": 2, "zip": 4, "parquet": 3, "video": 1}
_KINDS = {scheme: kind for kind, scheme in _SCHEMES.items()}
_INSIDE = re.compile(rf"({'|'.join(_KINDS)})://([^:]*)::(.+)", re.DOTALL)


def inside_uri(kind: str, file: str, *numbers: int) -> str:
    """Return the URI of an image inside `file`. The docstring of this module describes the numbers of each kind."""
    return f"{_SCHEMES[kind]}://{'+'.join(map(str, numbers))}::{file}"


def unreadable_uri(file: str, reason: str) -> str:
    """Return the URI of an image that cannot be read, with at most 300 characters of the reason."""
    return f"unreadable://{quote(reason[:300], safe='')}::{file}"


def inside(uri: str) -> ImageLocation | None:
    """Return the location that the URI names inside another file, None for the URI of a whole file.

    A malformed URI of this form gives a location of kind unreadable.
    """
    match = _INSIDE.fullmatch(uri)
    if match is None:
        return None
    kind, file = _KINDS[match[1]], match[3]
    if kind == "unreadable":
        return ImageLocation(kind, file, reason=unquote(match[2]))
    numbers = match[2].split("+")
    if len(numbers) != _NUMBERS_OF_KIND[kind] or not all(re.fullmatch(r"\d{1,18}", number) for number in numbers):
        return ImageLocation("unreadable", file, reason=f"no place of this kind: {match[2][:100]}")
    return ImageLocation(kind, file, tuple(map(int, numbers)))


def file_of(uri: str) -> str:
    """Return the URI of the file that an image lies in: its own, or that of the file around it."""
    location = inside(uri)
    return uri if location is None else location.file


# ---- globs ----------------------------------------------------------------------------------------

WILDCARD = re.compile(r"[*?\[]")
_TOKEN = re.compile(r"(\*+|\?|\[!?[^/\]]+\])")
_ANY_FOLDERS = r"(?:(?!\.)[^/]+/)*"


def split_glob(uri: str) -> tuple[str, str]:
    """Return the folder before the first wildcard, and the pattern below that folder.

    Raises SourceError for a wildcard in a bucket's name.
    """
    return _split(uri, lambda part: WILDCARD.search(part) is not None)


def split_braces(uri: str) -> tuple[str, str]:
    """Return the folder before the first name with braces or a wildcard, and the rest. Raises as split_glob does."""
    return _split(uri, lambda part: has_braces(part) or WILDCARD.search(part) is not None)


def _split(uri: str, is_pattern: Callable[[str], bool]) -> tuple[str, str]:
    parts = uri.split("/")
    first = next((i for i, part in enumerate(parts) if is_pattern(part)), len(parts) - 1)
    if scheme(uri) and first < 3:
        raise SourceError(
            "A bucket's name cannot be a pattern",
            where=uri,
            hint="write the bucket's full name, and the pattern after the name",
        )
    return "/".join(parts[:first]) or "/", "/".join(parts[first:])


def pattern(glob: str) -> re.Pattern[str]:
    """Return the regular expression that matches a whole key. Raises SourceError for an invalid glob."""
    *folders, last = glob.split("/")
    parts = [_ANY_FOLDERS if folder == "**" else _name_pattern(folder) + "/" for folder in folders]
    parts += [_ANY_FOLDERS, _name_pattern("*")] if last == "**" else [_name_pattern(last)]
    try:
        return re.compile("".join(parts), re.DOTALL)
    except re.error as error:
        raise SourceError("Not a glob pattern", where=glob, found=str(error), hint="correct the [...] part") from error


def folder_pattern(glob: str) -> re.Pattern[str]:
    """Return the regular expression that matches the key of each folder that may hold a match of the glob."""
    *folders, last = glob.split("/")
    expression = _ANY_FOLDERS if last == "**" else ""
    for folder in reversed(folders):
        expression = _ANY_FOLDERS + expression if folder == "**" else f"(?:{_name_pattern(folder)}/{expression})?"
    return re.compile(expression, re.DOTALL)


def _name_pattern(part: str) -> str:
    visible = r"(?!\.)" if WILDCARD.match(part) else ""
    return visible + "".join(_token_pattern(token) for token in _TOKEN.split(part))


def _token_pattern(token: str) -> str:
    if token.startswith("*"):
        return "[^/]*"
    if token == "?":
        return "[^/]"
    if not _TOKEN.fullmatch(token):
        return re.escape(token)
    is_negated, characters = token[1] == "!", token[1:-1].removeprefix("!")
    escaped = "".join(character if character == "-" else re.escape(character) for character in characters)
    return f"[^/{escaped}]" if is_negated else f"[{escaped}]"
