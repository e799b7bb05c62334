"""URIs as text: functions that join, split and redact URIs. No function here reaches storage.

A URI is a local path (plain or file://), s3://bucket/key, or any fsspec URL. Nothing is percent-decoded.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path

from segray.errors import ArgumentError, UserError

PathOrUrl = str | os.PathLike[str]

S3_SCHEMES = ("s3", "s3a")
AZURE_SCHEMES = ("az", "azure", "abfs", "abfss", "adl")
GOOGLE_SCHEMES = ("gs", "gcs")
HTTP_SCHEMES = ("http", "https")


def as_uri(place: PathOrUrl) -> str:
    """Return a path or URL as text, with the home folder in place of a leading `~`.

    Raises:
        ArgumentError: The place is neither text nor a Path.
        UserError: The place is a Path made of a URL, which has lost a slash.
    """
    text = _as_text(place)
    if not isinstance(place, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/(?!/)", text):
        raise UserError("a URL is no path", found=f"{place!r}", hint="give the URL as text, such as 's3://bucket/key'")
    return text if scheme(text) else os.path.expanduser(text)  # noqa: PTH111  Path would fold "//"


def as_path(place: PathOrUrl) -> Path:
    """Return a local path, with the home folder in place of a leading `~`."""
    return Path(os.path.expanduser(_as_text(place)))  # noqa: PTH111  Path.expanduser raises for an unknown user.


def _as_text(place: PathOrUrl) -> str:
    text = os.fspath(place) if isinstance(place, str | os.PathLike) else None
    if not isinstance(text, str):
        raise ArgumentError("this is no path", found=f"{place!r:.80}", hint="give text or a pathlib.Path")
    return text


def join(root: str, *parts: str) -> str:
    """Return the URI of `parts` below `root`."""
    return "/".join([root[:-1] if root.endswith("/") else root, *parts]) if root else "/".join(parts)


def parent(uri: str) -> str:
    """Return the folder or prefix that `uri` lies in; "" for a bare name."""
    return uri.rpartition("/")[0]


def name(uri: str) -> str:
    """Return the last component of `uri`."""
    return uri.rpartition("/")[2]


def scheme(uri: str) -> str:
    """Return "s3" for "s3://bucket/key", and "" for every local path."""
    start, separator, _ = uri.partition("://")
    lowered = start.lower()
    return lowered if separator and lowered != "file" else ""


def is_s3(uri: str) -> bool:
    """Return whether `uri` names a bucket or an object of S3."""
    return scheme(uri) in S3_SCHEMES


def is_http(uri: str) -> bool:
    """Return whether `uri` is a link by http or https."""
    return scheme(uri) in HTTP_SCHEMES


def absolute(uri: str) -> str:
    """Return `uri` in a form that other processes can open: local paths absolute and plain, other URIs unchanged."""
    return uri if scheme(uri) else local_path(uri)


def local_path(uri: str) -> str:
    """Return the absolute path of a local URI.

    Raises:
        FileNotFoundError: The path contains a NUL.
    """
    path = os.path.expanduser(uri.removeprefix("file://"))  # noqa: PTH111  Path would fold "//" and drop a last "/"
    if "\0" in path:
        raise FileNotFoundError(errno.ENOENT, "a path cannot contain a NUL", uri)
    return os.path.abspath(path)  # noqa: PTH100


def bucket_and_key(uri: str) -> tuple[str, str]:
    """Return the bucket (or host) and the key of a remote URI; two empty texts for a plain path."""
    bucket, _, key = uri.partition("://")[2].partition("/")
    return bucket, key


def bucket_and_folder(uri: str) -> tuple[str, str]:
    """Return the bucket and the prefix of a folder's keys, which ends with "/"; "" for the whole bucket."""
    bucket, key = bucket_and_key(uri)
    return bucket, key + "/" if key and not key.endswith("/") else key


def bucket_and_object(uri: str) -> tuple[str, str]:
    """Return the bucket and the key of an object. Raises FileNotFoundError for the URI of a bucket."""
    bucket, key = bucket_and_key(uri)
    if not key:
        raise FileNotFoundError(errno.ENOENT, "a bucket is not an object", uri)
    return bucket, key


def redact(uri: str) -> str:
    """Return the URI without secrets, for messages. Signed links carry their secret behind the question mark."""
    address, mark, query = uri.partition("?")
    if not is_http(uri):
        return uri
    start, separator, authority = address.partition("://")
    host = start + separator + authority.rpartition("@")[2]
    return f"{host}?..." if mark and query else host
