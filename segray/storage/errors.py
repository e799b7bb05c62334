"""The classification of storage errors: one table from the errors of all libraries to the error classes of segray.

Knows types, codes, statuses and error numbers. Knows nothing of requests. The table names libraries but imports none.
To support the errors of another library:

1. If the library's errors carry a store's reply in the usual attributes, `_any_reply` reads the reply: nothing to add.
   Otherwise add to READERS a function that reads the reply.
2. Add rows to TABLE, above those of the operating system, for errors without a reply. The first row that fits decides.
3. If no class has a hint that the user can follow, add a class with such a hint.

An error that no row names is still one of storage, if a backend raised it. Only decoding and the model may blame an
image.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

from segray.errors import AccessError, InfrastructureError, LastingError, SegrayError
from segray.storage.uris import AZURE_SCHEMES, GOOGLE_SCHEMES, HTTP_SCHEMES, bucket_and_key, is_s3, redact, scheme

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


def _number_and_reason(error: Exception, reply: Reply) -> str:
    number = _error_number(error) or 0
    return f"errno {number} {errno.errorcode.get(number, '')}: {os.strerror(number)}"


def _whole_reply(error: Exception, reply: Reply) -> str:
    return f"{reply.status} {reply.code}: {reply.message}" if reply.code else f"{reply.status}: {reply.message}"


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
_CREATE_BUCKET = "create the bucket, or correct the bucket's name or storage.endpoint_url"
_SET_CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket set storage.anonymous"
)
_NO_OBJECT = "no such object"
_MAX_CAUSES = 8

_AZURE_KEYS = (
    "check AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, and the "
    "permission to list, read, write and delete; for a public container set storage.anonymous"
)
_GOOGLE_KEYS = (
    "check GOOGLE_APPLICATION_CREDENTIALS and the permission to list, read, write and delete; for a public bucket set "
    "storage.anonymous"
)
_KEYS_BY_SCHEME = {
    **dict.fromkeys(AZURE_SCHEMES, _AZURE_KEYS),
    **dict.fromkeys(GOOGLE_SCHEMES, _GOOGLE_KEYS),
    "hf": "check HF_TOKEN and the name of the repository; for a public repository set storage.anonymous",
    **dict.fromkeys(HTTP_SCHEMES, "check storage.http_headers, and whether the host serves this link to this machine"),
    "": "check the user and password in the URL, and the permissions there",
}
# What a hint becomes for other stores, by scheme.
_OTHER_HINTS: Mapping[str, Mapping[str, str]] = {
    _CHECK_KEYS: _KEYS_BY_SCHEME,
    _SET_CREDENTIALS: _KEYS_BY_SCHEME,
    _CHECK_NETWORK: {"": "check the URL and the network, then run the same command again"},
    _CREATE_BUCKET: {"": "create the bucket or container, or correct its name or the account"},
}

NO_OBJECT = ErrorClass(FileNotFoundError, _NO_OBJECT, found=_no_detail)
NO_FILE = ErrorClass(FileNotFoundError, _NO_OBJECT, found=_reason)
NO_LINK = ErrorClass(FileNotFoundError, _NO_OBJECT, found=_status_and_message)
NOT_A_LINK = ErrorClass(FileNotFoundError, "not a URL", found=_type_and_text)
ARCHIVED = ErrorClass(
    FileNotFoundError, "the object is archived; restore the object from its storage class", found=_no_detail
)

REFUSED = ErrorClass(AccessError, "Storage refused the request", _CHECK_KEYS)
WRONG_SECRET = replace(REFUSED, hint="correct AWS_SECRET_ACCESS_KEY: the secret does not fit AWS_ACCESS_KEY_ID")
UNKNOWN_KEY = replace(REFUSED, hint="correct AWS_ACCESS_KEY_ID or AWS_PROFILE; this store does not know the key")
WRONG_REGION = replace(REFUSED, hint="set storage.region to the bucket's region")
NO_BUCKET = ErrorClass(AccessError, "No such bucket", _CREATE_BUCKET)
UNUSABLE = ErrorClass(AccessError, "Storage cannot be used as configured", _CHECK_KEYS, found=_type_and_text)
BAD_CREDENTIALS = replace(UNUSABLE, what="No usable credentials")
NO_CREDENTIALS = replace(BAD_CREDENTIALS, hint=_SET_CREDENTIALS)
NOT_SUPPORTED = replace(
    UNUSABLE, hint="choose another store, or correct the URL; docs/stores.md lists what each scheme supports"
)
NO_PERMISSION = ErrorClass(
    AccessError, "No permission", "correct the permissions of the path, or choose another path", found=_reason
)

DISK_FULL = ErrorClass(
    LastingError, "The disk is full", "free disk space, then run the same command again", found=_reason
)
TOO_MANY_FILES = ErrorClass(
    InfrastructureError,
    "Too many open files",
    "raise the limit of open files (ulimit -n), then run the same command again",
    found=_number_and_reason,
    retryable=True,
)
FILE_FAILED = ErrorClass(
    InfrastructureError,
    "The file system failed",
    "check the disk or the mount of this path, then run the same command again",
    found=_number_and_reason,
    retryable=True,
)
BUSY = ErrorClass(InfrastructureError, "Storage is overloaded or failing", _CHECK_NETWORK, retryable=True)
UNREACHABLE = ErrorClass(
    InfrastructureError, "Storage cannot be reached", _CHECK_NETWORK, found=_type_and_text, retryable=True
)
FAILED = replace(UNREACHABLE, what="A request to storage failed")
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

    source: dotted names of exception classes, one of which is the error's class or a base, or sources of a reply or
    place. "S3": a reply with S3's codes from any library. "LINK": a reply to a link by http or https. "STORE": a reply
    of any other store. "CONFIGURATION": a text of deltalake about settings. "METADATA": a text of deltalake that
    asks the machine's metadata service for credentials. "LOCAL": a file system of this machine. "BACKEND": whatever a
    backend raises. codes, statuses: codes and HTTP statuses of the reply that match, None for all. but_codes: codes
    that do not match. numbers: error numbers of the operating system, None for all.
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
_LINK = ("LINK",)
_STORE = ("STORE",)
_AIOHTTP = "aiohttp.client_exceptions"
_BOTOCORE = "botocore.exceptions"
_TRANSIENT_STATUSES = (408, 429, 500, *range(502, 1000))  # Not 501: the store does not support the request.

_NAMED_NUMBERS = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM,
    errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE,
}  # fmt: skip
_OTHER_NUMBERS = tuple(sorted(errno.errorcode.keys() - _NAMED_NUMBERS))

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
    # Links by http and https. No reply names a missing host: a host that does not exist gives no reply.
    Row(NO_LINK, _LINK, statuses=(404, 410)),
    Row(BUSY, _LINK, statuses=(425, *_TRANSIENT_STATUSES)),
    Row(REFUSED, _LINK),
    Row(SLOW_LINK, ("segray.storage.http.LinkTimeoutError",)),
    Row(NOT_A_LINK, (f"{_AIOHTTP}.InvalidURL",)),
    # Replies of other stores: Azure, Google, Hugging Face and more.
    Row(ARCHIVED, _STORE, codes=("BlobArchived", "BlobBeingRehydrated")),
    Row(NO_BUCKET, _STORE, codes=("ContainerNotFound", "ContainerBeingDeleted", "NoSuchBucket", "FilesystemNotFound")),
    Row(NO_OBJECT, _STORE, statuses=(404, 410)),
    Row(EXPIRED, _STORE, codes=("ExpiredToken", "ExpiredAuthenticationToken")),
    Row(REFUSED, _STORE, statuses=(401, 403, 407)),
    Row(BUSY, _STORE, statuses=(409, 412, 425, *_TRANSIENT_STATUSES)),
    Row(REFUSED, _STORE),
    # Errors of other stores' libraries, without a reply.
    Row(NO_CREDENTIALS, ("METADATA", "azure.identity._exceptions.CredentialUnavailableError")),
    Row(NO_CREDENTIALS, ("google.auth.exceptions.DefaultCredentialsError",)),
    Row(UNUSABLE, ("CONFIGURATION",)),
    Row(BAD_CREDENTIALS, ("azure.core.exceptions.ClientAuthenticationError",)),
    Row(BAD_CREDENTIALS, ("paramiko.ssh_exception.AuthenticationException",)),
    Row(EXPIRED, ("google.auth.exceptions.RefreshError",)),
    Row(UNREACHABLE, ("azure.core.exceptions.AzureError", "google.auth.exceptions.GoogleAuthError")),
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
    Row(TOO_MANY_FILES, ("builtins.OSError",), numbers=(errno.EMFILE, errno.ENFILE)),
    Row(FILE_FAILED, ("LOCAL",), numbers=_OTHER_NUMBERS),
    Row(UNREACHABLE, ("builtins.OSError", f"{_AIOHTTP}.ClientError")),
    Row(NOT_SUPPORTED, ("builtins.NotImplementedError", "builtins.ImportError")),
    # Whatever else a backend raises.
    Row(FAILED, ("BACKEND",)),
)

# ---- replies --------------------------------------------------------------------------------------


def _botocore_reply(error: Any) -> Reply:
    body = error.response["Error"]
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    return Reply(status, body.get("Code", ""), body.get("Message", ""), "S3")


def _ftp_reply(error: Any) -> Reply:
    code = str(error)[:3]
    return Reply({"530": 401, "532": 401, "550": 404}.get(code, 503), code, str(error)[4:])


# The text by which Azure says that a shared access signature has expired.
_OLD_SIGNATURE = "Signature not valid in the specified time frame"


def _any_reply(error: Any) -> Reply | None:
    """Return the reply in the attributes that most libraries use; None if there is no HTTP status.

    Errors of azure.core, aiohttp, gcsfs, google.api_core, httpx, requests, huggingface_hub and urllib are read so.
    """
    holders = (error, getattr(error, "response", None))
    values = (getattr(holder, name, None) for holder in holders for name in ("status_code", "status", "code"))
    status = next((status for value in values if (status := _http_status(value))), 0)
    if not status:
        return None
    code = getattr(error, "error_code", None) or ""
    message = str(getattr(error, "message", None) or error)
    is_old = _OLD_SIGNATURE in message
    return Reply(status, "ExpiredToken" if is_old else str(getattr(code, "value", code)), message)


def _http_status(value: object) -> int:
    """Return an error's HTTP status, 0 for any other value. gcsfs gives some statuses as text."""
    is_number = isinstance(value, int) or (isinstance(value, str) and value.isdigit())
    status = int(cast(int, value)) if is_number else 0
    return status if 400 <= status < 1000 else 0


# deltalake's error text shows the reply as a coloured tree: a status line, and the body if there was any.
_DELTALAKE_REPLY = re.compile(r"non-2xx status code\s+\S+\s+(?P<status>\d+) (?P<name>[\w -]*\w)(?P<body>.*)", re.DOTALL)
_XML_CODE = re.compile(r"<Code>(\w+)</Code>")
_MESSAGES = (re.compile(r"<Message>([^<]*)"), re.compile(r'"message":\s*"([^"]*)'))
_TREE_MARKS = re.compile(r"\x1b\[\d+m|↳")
_OS_NUMBER = re.compile(r"\(os error (\d+)\)")
# Addresses of the metadata service of a cloud's machine. deltalake asks there if no variable names credentials.
_METADATA = re.compile(r"169\.254\.169\.254|metadata\.google\.internal")
# Texts of object_store 0.12 and 0.13 and of OpenDAL about settings, which no retry changes.
_CONFIGURATION = re.compile(
    r"must be specified|Unable to recogni[sz]e URL|Unable (?:to )?parse (?:source )?url|ConfigInvalid"
    r"|Missing bucket name|Configuration key: \S+ is not known|Unknown url scheme|did not match any known pattern"
    r"|SAS (?:key|query)"
    r"|Unable to (?:open|decode) (?:service account|application credentials) file|service account key may be provided"
    r"|in pem file|Invalid RSA key|Unable to decode access key|Invalid Access Key",
    re.IGNORECASE,
)
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
    if _METADATA.search(text):
        return Reply(0, source="METADATA")
    if match := _DELTALAKE_REPLY.search(text):
        return _deltalake_reply(match)
    if _CONFIGURATION.search(text):
        return Reply(0, source="CONFIGURATION")
    if (match := _ARROW_REPLY.search(text)) and match["code"] in _ARROW_STATUS:
        code = "".join(word.capitalize() for word in match["code"].split("_"))
        return Reply(_ARROW_STATUS[match["code"]], code, match["message"], "S3")
    return None


def _deltalake_reply(match: re.Match[str]) -> Reply:
    body = _TREE_MARKS.sub("", match["body"]).strip()
    code = _XML_CODE.search(body)
    name = code[1] if code else match["name"]
    message = next((text[1] for pattern in _MESSAGES if (text := pattern.search(body))), body)
    return Reply(int(match["status"]), "ExpiredToken" if _OLD_SIGNATURE in body else name, message)


READERS: Mapping[str, Callable[[Any], Reply | None]] = {
    f"{_BOTOCORE}.ClientError": _botocore_reply,
    "ftplib.error_perm": _ftp_reply,
    "ftplib.error_temp": _ftp_reply,
    "builtins.OSError": _reply_in_text,
}

# ---- from an error to a failure -------------------------------------------------------------------


@dataclass(frozen=True)
class StorageFailure:
    """A classified storage error. exception: what the caller gets if no further attempt is made."""

    error_class: ErrorClass
    exception: FileNotFoundError | AccessError | InfrastructureError


def translate(
    error: Exception, uri: str, *, bucket_exists: bool = False, from_backend: bool = False
) -> StorageFailure | None:
    """Classify an error of a request for `uri`.

    Args:
        error: The error that a library raised.
        uri: The object or folder of the request.
        bucket_exists: Whether the bucket has answered before. A store that denies such a bucket is failing.
        from_backend: Whether a call of a backend raised the error. Such an error is always one of storage.

    Returns:
        The failure; None for an error that is not one of storage, or that this function has made.
    """
    if isinstance(error, SegrayError):
        return None
    error = _cause(error)
    names = _names(error)
    reply = _reply(error, names, uri)
    places = ("" if scheme(uri) else "LOCAL", "BACKEND" if from_backend and scheme(uri) else "")
    error_class = _classify(error, reply, (*names, *places))
    if error_class is None:
        return None
    if bucket_exists:
        error_class = _OF_AN_EXISTING_BUCKET.get(error_class, error_class)
    return StorageFailure(error_class, _exception(error_class, error, reply, uri))


# What a class becomes for a bucket that has answered. The service that gives credentials then fails.
_OF_AN_EXISTING_BUCKET: Mapping[ErrorClass, ErrorClass] = {
    NO_BUCKET: BUCKET_DENIED,
    NO_CREDENTIALS: UNREACHABLE,
    BAD_CREDENTIALS: UNREACHABLE,
}


def status_of(error: Exception) -> int:
    """Return the HTTP status of the reply in an error, 0 if the error holds no reply."""
    return _reply(error, _names(error), "s3://").status


def _cause(error: Exception) -> Exception:
    """Return the error with a reply that caused a plain error of Python, otherwise the error itself.

    File systems of fsspec turn replies into errors of Python. Some turn any reply into FileNotFoundError.
    """
    cause: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if not isinstance(cause, Exception) or (cause is error and type(error).__module__ != "builtins"):
            break
        if cause is not error and (_any_reply(cause) or hasattr(cause, "response")):
            return cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return error


def _names(error: Exception) -> tuple[str, ...]:
    """Return the dotted names of the error's class and of its bases, the nearest first."""
    return tuple([f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__])


def _reply(error: Exception, names: Sequence[str], uri: str) -> Reply:
    read = next((READERS[name] for name in names if name in READERS), _any_reply)
    reply = read(error) or _any_reply(error) or _NO_REPLY
    return replace(reply, source=_source(uri)) if reply.status and not reply.source else reply


def _source(uri: str) -> str:
    if is_s3(uri):
        return "S3"
    return "LINK" if scheme(uri) in HTTP_SCHEMES else "STORE"


def _classify(error: Exception, reply: Reply, names: tuple[str, ...]) -> ErrorClass | None:
    rows = _rows_of((reply.source, *names))
    return next((row.means for row in rows if row.fits(reply, _error_number(error))), None)


def _error_number(error: Exception) -> int | None:
    """Return the errno of an error; deltalake writes it into its text."""
    if not isinstance(error, OSError):
        return None
    match = None if error.errno else _OS_NUMBER.search(str(error))
    return int(match[1]) if match else error.errno


@lru_cache(256)
def _rows_of(sources: tuple[str, ...]) -> tuple[Row, ...]:
    return tuple(row for row in TABLE if not set(sources).isdisjoint(row.source))


def _exception(
    error_class: ErrorClass, error: Exception, reply: Reply, uri: str
) -> FileNotFoundError | AccessError | InfrastructureError:
    found = _one_line(error_class.found(error, reply), uri)[:_MAX_FOUND_CHARS]
    if issubclass(error_class.raises, SegrayError):
        found = found or _one_line(str(error), uri)
        return error_class.raises(error_class.what, where=_where(uri), found=found, hint=_hint(error_class.hint, uri))
    return FileNotFoundError(errno.ENOENT, found or error_class.what, redact(uri))


def _hint(hint: str, uri: str) -> str:
    """Return the hint with the settings of the store of `uri`. The hints of the classes name those of S3."""
    if is_s3(uri) or hint not in _OTHER_HINTS:
        return hint
    return _OTHER_HINTS[hint].get(scheme(uri), _OTHER_HINTS[hint][""])


def _one_line(text: str, uri: str) -> str:
    """Return a text on one line, with secrets removed from the URI."""
    return " ".join(_TREE_MARKS.sub("", text).replace(uri, redact(uri)).split()) if text else ""


def _where(uri: str) -> str:
    return f"bucket {bucket_and_key(uri)[0]} ({uri})" if is_s3(uri) else redact(uri)
