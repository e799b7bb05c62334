"""The options of a store, with their defaults.

Imports no library, so that the configuration can take its defaults from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class StorageOptions:
    """The options for reaching storage.

    profile: name of an AWS profile for S3; None for the usual credentials. An anonymous store has no use for it.
    retries: attempts after the first. timeout_s: longest silence on a connection, in seconds. http_headers: headers of
    each request for a link by http or https. addressing: of S3's buckets; auto means path with an endpoint and virtual
    without. requester_pays: whether the reader pays for requests. sse, sse_kms_key_id: encryption of written objects.
    """

    endpoint_url: str | None = None
    region: str | None = None
    anonymous: bool = False
    profile: str | None = None
    retries: int = 6
    timeout_s: float = 60
    http_headers: Mapping[str, str] | None = None
    addressing: Literal["auto", "path", "virtual"] = "auto"
    requester_pays: bool = False
    sse: Literal["AES256", "aws:kms", "aws:kms:dsse"] | None = None
    sse_kms_key_id: str | None = None
