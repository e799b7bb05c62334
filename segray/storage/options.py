"""The options of a store, with their defaults.

Imports no library, so that the configuration can take its defaults from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypedDict

Addressing = Literal["auto", "path", "virtual"]
Encryption = Literal["AES256", "aws:kms", "aws:kms:dsse"]


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
    addressing: Addressing = "auto"
    requester_pays: bool = False
    sse: Encryption | None = None
    sse_kms_key_id: str | None = None


class StorageKeywords(TypedDict, total=False):
    """The options of a store as keywords of `segray.scan` and of all other readers: the fields of StorageOptions.

    Names in capitals are deltalake's own, for reading the log. They replace what segray derives from the other options
    and from the environment. Type checkers know the usual ones; every name in capitals is taken.
    """

    endpoint_url: str | None
    region: str | None
    anonymous: bool
    profile: str | None
    retries: int
    timeout_s: float
    http_headers: Mapping[str, str] | None
    addressing: Addressing
    requester_pays: bool
    sse: Encryption | None
    sse_kms_key_id: str | None
    AWS_ACCESS_KEY_ID: str
    AWS_ALLOW_HTTP: str
    AWS_DEFAULT_REGION: str
    AWS_ENDPOINT_URL: str
    AWS_REGION: str
    AWS_SECRET_ACCESS_KEY: str
    AWS_SESSION_TOKEN: str
    AWS_SKIP_SIGNATURE: str
    AWS_VIRTUAL_HOSTED_STYLE_REQUEST: str
    AZURE_STORAGE_ACCOUNT_KEY: str
    AZURE_STORAGE_ACCOUNT_NAME: str
    AZURE_STORAGE_SAS_TOKEN: str
    GOOGLE_APPLICATION_CREDENTIALS: str
    GOOGLE_SERVICE_ACCOUNT: str
