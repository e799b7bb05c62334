"""The classification of storage errors: one table from the errors of all libraries to the error classes of segray.

Knows types, codes, statuses and error numbers. Knows nothing of requests. The table names libraries but imports none.
To support the errors of another library:

1. Add rows to TABLE, above those of the operating system. The first row that fits an error decides.
2. If the library's errors carry a store's reply, add to READERS a function that reads the reply.
3. If no class has a hint that the user can follow, add a class with such a hint.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from segray.errors import AccessError, InfrastructureError, LastingError, SegrayError
from segray.storage.uris import bucket_and_key, is_s3, redact

_MAX_FOUND_CHARS = 500  # characters of an error's text in a message

# ---- replies in errors ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """The part of a store's reply that an error contains.

    status: HTTP status, 0 without a reply. source: as in `Row`, for rows that match by the reply.
    """

    status: int
    code: str = ""
    message: str = ""
    source: str = ""


_NO_REPLY = Reply(0)


def _no_detail(error: Exception, reply: Reply) -> str:
    return ""


def _reason(error: Exception, reply: Reply) -> str:
    return getattr(error, "strerror", None) or ""


def _type_and_text(error: Exception, reply: Reply) -> str:
    return f"{type(error).__name__}: {error}"


def _status_and_message(error: Exception, reply: Reply) -> str:
    return f"{reply.status} {reply.message}"


def _whole_reply(error: Exception, reply: Reply) -> str:
    return f"{reply.status} {reply.code}: {reply.message}"


# ---- the classes ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class ErrorClass:
    """A class of errors that segray treats alike.

    raises: class of the exception for the caller. what: what went wrong. hint: what the user can do.
    found: returns the part of the error that the message repeats. If that part is empty, a FileNotFoundError repeats
    `what`, and any other exception repeats the text of the error.
    retryable: whether a later attempt may succeed. renew_credentials: whether the later attempt needs new credentials.
    """

    raises: type[FileNotFoundError] | type[AccessError] | type[InfrastructureError]
    what: str
    hint: str = ""
    found: Callable[[Exception, Reply], str] = _whole_reply
    retryable: bool = False
    renew_credentials: bool = False


_CHECK_KEYS = "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and the permission to list, read, write and delete"
_CHECK_NETWORK = "check storage.endpoint_url and the network, then run the same command again"
_NO_OBJECT = "no such object"

NO_OBJECT = ErrorClass(FileNotFoundError, _NO_OBJECT, found=_no_detail)
NO_FILE = ErrorClass(FileNotFoundError, _NO_OBJECT, found=_reason)
NO_LINK = ErrorClass(FileNotFoundError, _NO_OBJECT, found=_status_and_message)
ARCHIVED = ErrorClass(
    FileNotFoundError, "the object is archived; restore the object from its storage class", found=_no_detail
)

REFUSED = ErrorClass(AccessError, "Storage refused the request", _CHECK_KEYS)
WRONG_SECRET = replace(REFUSED, hint="correct AWS_SECRET_ACCESS_KEY: the secret does not fit AWS_ACCESS_KEY_ID")
UNKNOWN_KEY = replace(REFUSED, hint="correct AWS_ACCESS_KEY_ID or AWS_PROFILE; this store does not know the key")
WRONG_REGION = replace(REFUSED, hint="set storage.region to the bucket's region")
NO_BUCKET = ErrorClass(
    AccessError, "No such bucket", "create the bucket, or correct the bucket's name or storage.endpoint_url"
)
UNUSABLE = ErrorClass(AccessError, "Storage cannot be used as configured", _CHECK_KEYS, found=_type_and_text)
BAD_CREDENTIALS = replace(UNUSABLE, what="No usable credentials")
NO_CREDENTIALS = replace(
    BAD_CREDENTIALS,
    hint="set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket set storage.anonymous",
)
NO_PERMISSION = ErrorClass(
    AccessError, "No permission", "correct the permissions of the path, or choose another path", found=_reason
)

DISK_FULL = ErrorClass(
    LastingError, "The disk is full", "free disk space, then run the same command again", found=_reason
)
BUSY = ErrorClass(InfrastructureError, "Storage is overloaded or failing", _CHECK_NETWORK, retryable=True)
UNREACHABLE = ErrorClass(
    InfrastructureError, "Storage cannot be reached", _CHECK_NETWORK, found=_type_and_text, retryable=True
)
SLOW_LINK = replace(UNREACHABLE, retryable=False)  # The whole image is tried again later.
BUCKET_DENIED = ErrorClass(InfrastructureError, "Storage denies a bucket that exists", _CHECK_NETWORK, retryable=True)
EXPIRED = ErrorClass(
    LastingError,
    "The credentials have expired",
    "renew the credentials, then run the same command again",
    retryable=True,
    renew_credentials=True,
)

# ---- the table ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A row of the table: the errors that belong to the class `means`.

    source: dotted names of exception classes, one of which is the error's class or a base. The source "S3" stands for a
    reply with S3's codes from any library. codes, statuses: codes and HTTP statuses of the reply that match, None for
    all. but_codes: codes that do not match. numbers: error numbers of the operating system, None for all.
    """

    means: ErrorClass
    source: Collection[str]
    codes: Collection[str] | None = None
    statuses: Collection[int] | None = None
    but_codes: Collection[str] = ()
    numbers: Collection[int] | None = None

    def fits(self, reply: Reply, number: int | None) -> bool:
        """Return whether an error from this row's source matches the row.

        number: errno of the error, None if it has none.
        """
        return (
            (self.codes is None or reply.code in self.codes)
            and (self.statuses is None or reply.status in self.statuses)
            and reply.code not in self.but_codes
            and (self.numbers is None or number in self.numbers)
        )


_S3 = ("S3",)
_AIOHTTP = "aiohttp.client_exceptions"
_BOTOCORE = "botocore.exceptions"
_TRANSIENT_STATUSES = (408, 429, 500, *range(502, 1000))  # Not 501: the store does not support the request.

TABLE: tuple[Row, ...] = (
    # Replies of S3 and compatible stores, through botocore, deltalake or Arrow.
    Row(ARCHIVED, _S3, codes=("InvalidObjectState",)),
    Row(NO_OBJECT, _S3, statuses=(404,), but_codes=("NoSuchBucket",)),
    Row(EXPIRED, _S3, codes=("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired")),
    Row(EXPIRED, _S3, codes=("RequestTimeTooSkewed",)),  # the clock may be corrected meanwhile
    Row(BUSY, _S3, codes=("SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "RequestLimitExceeded")),
    Row(BUSY, _S3, codes=("RequestTimeout", "InternalError", "ServiceUnavailable")),
    Row(BUSY, _S3, codes=("ConditionalRequestConflict", "OperationAborted")),
    Row(BUSY, _S3, statuses=_TRANSIENT_STATUSES),
    Row(NO_BUCKET, _S3, codes=("NoSuchBucket",)),
    Row(WRONG_SECRET, _S3, codes=("SignatureDoesNotMatch",)),
    Row(UNKNOWN_KEY, _S3, codes=("InvalidAccessKeyId",)),
    Row(WRONG_REGION, _S3, codes=("PermanentRedirect", "AuthorizationHeaderMalformed")),
    Row(REFUSED, _S3),
    # botocore itself, without a reply.
    Row(UNREACHABLE, (f"{_BOTOCORE}.ConnectionError", f"{_BOTOCORE}.HTTPClientError")),
    Row(UNREACHABLE, (f"{_BOTOCORE}.IncompleteReadError",)),
    Row(NO_CREDENTIALS, (f"{_BOTOCORE}.NoCredentialsError",)),
    Row(BAD_CREDENTIALS, (f"{_BOTOCORE}.PartialCredentialsError", f"{_BOTOCORE}.CredentialRetrievalError")),
    Row(BAD_CREDENTIALS, (f"{_BOTOCORE}.UnknownCredentialError",)),
    Row(UNUSABLE, (f"{_BOTOCORE}.BotoCoreError",)),
    # Links by http and https. A 4xx concerns one link: the image is gone, or the link's signature has expired.
    Row(NO_LINK, (f"{_AIOHTTP}.ClientResponseError",), statuses={*range(400, 500)} - {408, 429}),
    Row(SLOW_LINK, ("segray.storage.http.LinkTimeoutError",)),
    # Errors of the operating system, which fsspec's file systems raise too.
    Row(NO_FILE, ("builtins.FileNotFoundError",)),
    Row(
        NO_FILE,
        ("builtins.OSError",),
        numbers=(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP),
    ),
    Row(NO_PERMISSION, ("builtins.PermissionError",)),
    Row(NO_PERMISSION, ("builtins.OSError",), numbers=(errno.EROFS,)),
    Row(DISK_FULL, ("builtins.OSError",), numbers=(errno.ENOSPC, errno.EDQUOT, errno.EFBIG)),
    Row(UNREACHABLE, ("builtins.OSError", f"{_AIOHTTP}.ClientError")),
)

# ---- replies --------------------------------------------------------------------------------------


def _botocore_reply(error: Any) -> Reply:
    body = error.response["Error"]
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return Reply(status, body.get("Code", ""), body.get("Message", ""), "S3")


def _aiohttp_reply(error: Any) -> Reply:
    return Reply(error.status, message=error.message)


# deltalake's error text shows the reply as a coloured tree: a status line, and the XML if there was any.
_DELTALAKE_REPLY = re.compile(
    r"non-2xx status code\s+\S+\s+(?P<status>\d+) (?P<name>[\w -]*\w)"
    r"(?:.*?<Code>(?P<code>\w+)</Code>(?:.*?<Message>(?P<message>[^<]*)<)?)?",
    re.DOTALL,
)
_TREE_MARKS = re.compile(r"\x1b\[\d+m|↳")
# The error text of Arrow's S3 client has the SDK's name of the error, and the store's message.
_ARROW_REPLY = re.compile(r"AWS Error (?P<code>[A-Z_]+) during \w+ operation: (?P<message>.*)", re.DOTALL)
_ARROW_STATUS = {"ACCESS_DENIED": 403, "SIGNATURE_DOES_NOT_MATCH": 403, "INVALID_ACCESS_KEY_ID": 403,
                 "EXPIRED_TOKEN": 400, "NO_SUCH_KEY": 404, "NO_SUCH_BUCKET": 404, "RESOURCE_NOT_FOUND": 404,
                 "SLOW_DOWN": 503}  # fmt: skip


def _reply_in_text(error: Any) -> Reply | None:
    """Return the reply in the text of an error of deltalake or Arrow; None if the text holds no reply.

    Errors of these libraries have no errno.
    """
    if error.errno is not None:
        return None
    text = str(error)
    if match := _DELTALAKE_REPLY.search(text):
        return Reply(int(match["status"]), match["code"] or match["name"], match["message"] or "", "S3")
    if (match := _ARROW_REPLY.search(text)) and match["code"] in _ARROW_STATUS:
        code = "".join(word.capitalize() for word in match["code"].split("_"))
        return Reply(_ARROW_STATUS[match["code"]], code, match["message"], "S3")
    return None


READERS: Mapping[str, Callable[[Any], Reply | None]] = {
    f"{_BOTOCORE}.ClientError": _botocore_reply,
    f"{_AIOHTTP}.ClientResponseError": _aiohttp_reply,
    "builtins.OSError": _reply_in_text,
}

# ---- from an error to a failure -------------------------------------------------------------------


@dataclass(frozen=True)
class StorageFailure:
    """A classified storage error. exception: what the caller gets if no further attempt is made."""

    error_class: ErrorClass
    exception: FileNotFoundError | AccessError | InfrastructureError


def translate(error: Exception, uri: str, *, bucket_exists: bool = False) -> StorageFailure | None:
    """Classify an error of a request for `uri`.

    Args:
        error: The error that a library raised.
        uri: The object or folder of the request.
        bucket_exists: Whether the bucket has answered before. A store that denies such a bucket is failing.

    Returns:
        The failure; None for an error that is not one of storage, or that this function has made.
    """
    names = _names(error)
    reply = _reply(error, names)
    error_class = _classify(error, reply, names)
    if error_class is None:
        return None
    if error_class is NO_BUCKET and bucket_exists:
        error_class = BUCKET_DENIED
    return StorageFailure(error_class, _exception(error_class, error, reply, uri))


def status_of(error: Exception) -> int:
    """Return the HTTP status of the reply in an error, 0 if the error holds no reply."""
    return _reply(error, _names(error)).status


def _names(error: Exception) -> tuple[str, ...]:
    """Return the dotted names of the error's class and of its bases, the nearest first."""
    return tuple([f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__])


def _reply(error: Exception, names: Sequence[str]) -> Reply:
    read = next((READERS[name] for name in names if name in READERS), None)
    return (read(error) if read else None) or _NO_REPLY


def _classify(error: Exception, reply: Reply, names: tuple[str, ...]) -> ErrorClass | None:
    number = error.errno if isinstance(error, OSError) else None
    rows = _rows_of((reply.source, *names))
    return next((row.means for row in rows if row.fits(reply, number)), None)


@lru_cache(256)
def _rows_of(sources: tuple[str, ...]) -> tuple[Row, ...]:
    return tuple(row for row in TABLE if not set(sources).isdisjoint(row.source))


def _exception(
    error_class: ErrorClass, error: Exception, reply: Reply, uri: str
) -> FileNotFoundError | AccessError | InfrastructureError:
    found = _one_line(error_class.found(error, reply), uri)[:_MAX_FOUND_CHARS]
    if issubclass(error_class.raises, SegrayError):
        found = found or _one_line(str(error), uri)
        return error_class.raises(error_class.what, where=_where(uri), found=found, hint=error_class.hint)
    return FileNotFoundError(errno.ENOENT, found or error_class.what, redact(uri))


def _one_line(text: str, uri: str) -> str:
    """Return a text on one line, with secrets removed from the URI."""
    return " ".join(_TREE_MARKS.sub("", text).replace(uri, redact(uri)).split()) if text else ""


def _where(uri: str) -> str:
    return f"bucket {bucket_and_key(uri)[0]} ({uri})" if is_s3(uri) else redact(uri)
