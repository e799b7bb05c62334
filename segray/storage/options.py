"""The options of a store, with their defaults.

Imports no library, so that the configuration can take its defaults from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class StorageOptions:
    """The options for reaching storage.

    retries: attempts after the first. timeout_s: longest silence on a connection, in seconds. http_headers: sent with
    each request of a link by http or https.
    """

    endpoint_url: str | None = None
    region: str | None = None
    anonymous: bool = False
    retries: int = 6
    timeout_s: float = 60
    http_headers: Mapping[str, str] | None = None
