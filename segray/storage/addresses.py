"""Addresses that cannot be meant as they are written: mistyped schemes, and roots that deltalake would change.

Knows texts alone. No function here reaches storage.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from segray.storage.uris import absolute, bucket_and_key, is_http, scheme

# Schemes that deltalake can write to. Source: the object stores that deltalake registers.
ROOT_SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "azure", "abfs", "abfss", "adl", "hdfs", "lakefs")
_BUCKET_SCHEMES = ("s3", "s3a", "gs", "gcs", "az", "azure", "abfs", "abfss", "adl")
_KNOWN_SCHEMES = (*ROOT_SCHEMES, "file", "http", "https", "ftp", "sftp", "hf", "dbfs", "webhdfs", "memory", "github")
_ONE_SLASH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/(?!/)")
_NO_SLASH = re.compile(rf"({'|'.join(_KNOWN_SCHEMES)}):(?!/)", re.IGNORECASE)
# deltalake makes a URL of each root. The URL standard decodes or refuses these characters.
_CHANGED = re.compile(r"%[0-9A-Fa-f]{2}|[\\\[\]|^\x00-\x1f\x7f]")
_CHANGED_IN_KEYS = re.compile(r"[?#]|//|(?:^|/)\.{1,2}(?:/|$)")


@dataclass(frozen=True)
class AddressFault:
    """The reason why an address is refused, and what to write instead."""

    what: str
    hint: str


def address_fault(uri: str) -> AddressFault | None:
    """Return the fault in the scheme of an address, None for an address that can be meant."""
    match = _ONE_SLASH.match(uri) or _NO_SLASH.match(uri)
    if match:
        path = uri[match.end() :].lstrip("/")
        return AddressFault(f"{match[0]!r} begins no URL and no path", _hint(match[1].lower(), path, uri))
    if uri.lower().startswith("file://") and not uri.startswith("file:///"):
        return AddressFault("a file URL begins with file:///", f"write the path alone: /{uri[7:].lstrip('/')}")
    if scheme(uri) in _BUCKET_SCHEMES and not bucket_and_key(uri)[0]:
        key = uri.partition("://")[2].lstrip("/")
        return AddressFault("the URL names no bucket", f"write {scheme(uri)}://BUCKET/{key}")
    if is_http(uri) and uri.partition("://")[2][:1] in ("", "/", "?", "#"):
        return AddressFault("the URL names no host", f"write {scheme(uri)}://HOST/PATH")
    return None


def _hint(kind: str, path: str, uri: str) -> str:
    """Return what to write instead. path: what follows the scheme, without leading slashes."""
    if kind == "file":
        return f"write the path alone: /{path}"
    if kind == "dbfs":
        return f"write the path of the mount: /dbfs/{path}"
    if kind in _KNOWN_SCHEMES:
        return f"write {kind}://{path}"
    return f"write NAME://..., or ./{uri} for a folder of this name"


def root_fault(root: str) -> AddressFault | None:
    """Return why no label set can be written to an address, None for an address that can be written to."""
    fault = address_fault(root)
    if fault is not None:
        return fault
    kind = scheme(root)
    if kind and kind not in ROOT_SCHEMES:
        return AddressFault(
            f"deltalake cannot write to {kind}://", "give a folder, or a URL of one of " + ", ".join(ROOT_SCHEMES)
        )
    name, changed = (f"/{bucket_and_key(root)[1]}", _CHANGED_IN_KEYS) if kind else (root, _CHANGED)
    match = changed.search(name) or _CHANGED.search(name)
    if match is None and not kind:
        match = _CHANGED.search(absolute(root))
    if match is None:
        return None
    return AddressFault(
        f"the name contains {match[0]!r}, which deltalake reads as something else", "choose another name"
    )
