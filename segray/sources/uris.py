"""Names and URIs as text: extensions, hidden names, glob patterns, and URIs of images inside other files.

Opens no file. An image inside another file has a URI of its own, PLACE://NUMBERS::FILE, by which a worker reads it:

    tar-member://1536+45123::s3://bucket/train-0001.tar    offset and size of the body in the shard, in bytes
    zip-member://0+812+1000+2923::photos.zip               offset of the local header, bytes stored, bytes, CRC-32
    parquet-cell://0+3+17::train.parquet                   column, row group, row of the group
    video-frame://12480::drive.mp4                         time in milliseconds
    unreadable://REASON::train-0001.tar                    why the image cannot be read, percent-encoded
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote, unquote

from segray.errors import SourceError
from segray.storage.uris import name, scheme

BOOKKEEPING = frozenset({"_delta_log", "_segray", "_temporary", "__MACOSX"})


def extension(path: str) -> str:
    """Return the extension in lower case, without the dot; "" if there is none."""
    return name(path).rpartition(".")[2].lower() if "." in name(path) else ""


def listed(names: Iterable[str]) -> str:
    """Return the names, sorted, as one text with commas."""
    return ", ".join(sorted(names))


def is_hidden(key: str) -> bool:
    # "." and ".." are folders like any other in an object store.
    """Return whether the key has a hidden component (.name), or one of the folders in BOOKKEEPING."""
    return any((part.startswith(".") and part.strip(".")) or part in BOOKKEEPING for part in key.split("/"))


# ---- images inside other files --------------------------------------------------------------------


@dataclass(frozen=True)
class Inside:
    """The place of an image in another file. The head of this module describes the numbers of each kind.

    kind: tar, zip, parquet, video or unreadable. reason: why an unreadable image cannot be read.
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
_NUMBERS = {"tar": 2, "zip": 4, "parquet": 3, "video": 1}
_KINDS = {scheme: kind for kind, scheme in _SCHEMES.items()}
_INSIDE = re.compile(rf"({'|'.join(_KINDS)})://([^:]*)::(.+)", re.DOTALL)


def inside_uri(kind: str, file: str, *numbers: int) -> str:
    """Return the URI of an image inside `file`. The head of this module describes the numbers."""
    return f"{_SCHEMES[kind]}://{'+'.join(map(str, numbers))}::{file}"


def unreadable_uri(file: str, reason: str) -> str:
    """Return the URI of an image that cannot be read, with at most 300 characters of the reason."""
    return f"unreadable://{quote(reason[:300], safe='')}::{file}"


def inside(uri: str) -> Inside | None:
    """Return the place that the URI gives inside another file, None for a file of its own.

    A malformed URI of this form gives a place of kind unreadable.
    """
    found = _INSIDE.fullmatch(uri)
    if found is None:
        return None
    kind, file = _KINDS[found[1]], found[3]
    if kind == "unreadable":
        return Inside(kind, file, reason=unquote(found[2]))
    if not re.fullmatch(r"\d{1,18}(\+\d{1,18})*", found[2]) or found[2].count("+") != _NUMBERS[kind] - 1:
        return Inside("unreadable", file, reason=f"no place of this kind: {found[2][:100]}")
    return Inside(kind, file, tuple(map(int, found[2].split("+"))))


# ---- globs ----------------------------------------------------------------------------------------

WILDCARD = re.compile(r"[*?\[]")
_TOKEN = re.compile(r"(\*+|\?|\[!?[^/\]]+\])")
_ANY_FOLDERS = r"(?:(?!\.)[^/]+/)*"


def split_glob(uri: str) -> tuple[str, str]:
    """Return the folder before the first wildcard, and the pattern below that folder.

    Raises SourceError for a wildcard in a bucket's name.
    """
    parts = uri.split("/")
    first = next(i for i, part in enumerate(parts) if WILDCARD.search(part))
    if scheme(uri) and first < 3:
        raise SourceError("A bucket's name cannot be a pattern", where=uri, hint="name the bucket, then the pattern")
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
    negated, characters = token[1] == "!", token[1:-1].removeprefix("!")
    inside = "".join(each if each == "-" else re.escape(each) for each in characters)
    return f"[^/{inside}]" if negated else f"[{inside}]"
