"""The table of errors: its names exist in their libraries, no row hides another, and what replies in text mean."""

from __future__ import annotations

import errno
import ftplib
import importlib.util
import os
import subprocess
import sys
from itertools import product
from types import SimpleNamespace
from typing import Any

import aiohttp
import botocore.exceptions
import pytest

from segray.errors import AccessError, InfrastructureError
from segray.storage.errors import READERS, TABLE, Reply, Row, StorageFailure, translate

SOURCES = sorted({source for row in TABLE for source in row.source} | set(READERS))
LINK, SECRET = "https://user:pw@host/a.jpg?signature=secret", ("pw", "secret")


def class_named(source: str) -> type[Exception]:
    module, _, name = source.rpartition(".")
    kind = getattr(pytest.importorskip(module), name)
    assert issubclass(kind, Exception)
    return kind


@pytest.mark.parametrize("source", [source for source in SOURCES if "." in source])
def test_a_source_of_the_table_is_an_exception_by_the_name_that_its_library_gives_it(source: str) -> None:
    kind = class_named(source)
    assert f"{kind.__module__}.{kind.__qualname__}" == source


def includes(row: Row, source: str) -> bool:
    """Return whether errors of this source are also errors of the row's."""
    if "." not in source:
        return source in row.source
    installed = [other for other in row.source if "." in other and importlib.util.find_spec(other.partition(".")[0])]
    return issubclass(class_named(source), tuple(map(class_named, installed)))


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.source[0]} {row.means.what}")
def test_no_row_is_hidden_by_the_rows_above(row: Row) -> None:
    replies = [Reply(status, code) for status, code in product(row.statuses or [400], row.codes or ["Other"])]
    for source, reply, number in product(row.source, replies, row.numbers or [None]):
        first = next(each for each in TABLE if includes(each, source) and each.fits(reply, number))
        assert first is row, (source, reply, number)


@pytest.mark.parametrize("kind", [kind for name, kind in vars(botocore.exceptions).items() if "Credential" in name])
def test_every_error_of_botocore_about_credentials_says_so(kind: type[Exception]) -> None:
    error = kind(provider="p", cred_var="v", error_msg="m", name="n")
    assert translated(error).exception.what == "No usable credentials"


def translated(error: Exception, uri: str = "s3://b/k") -> Any:
    failure = translate(error, uri)
    assert isinstance(failure, StorageFailure), error
    return failure


# ---- replies in text ------------------------------------------------------------------------------

# As deltalake 1.6.6 writes it, colours included.
DELTALAKE = (
    "Kernel error -> Generic S3 error\n          \x1b[31m↳\x1b[0m Error performing GET http://host/b/k in 1.5ms"
    " - Server returned non-2xx status code\n           \x1b[31m↳\x1b[0m {}\n"
)
XML = "\n            \x1b[31m↳\x1b[0m <?xml version='1.0'?><Error><Code>{}</Code><Message>{}</Message></Error>"
ARROW = "When reading information for key 'k' in bucket 'b': AWS Error {} during HeadObject operation: {}"


@pytest.mark.parametrize(
    ("text", "kind", "says", "retryable"),
    [
        (DELTALAKE.format("503 Service Unavailable" + XML.format("SlowDown", "wait")), InfrastructureError,
         "overloaded[\\s\\S]*503 SlowDown: wait", True),
        (DELTALAKE.format("503 Service Unavailable"), InfrastructureError, "503 Service Unavailable:", True),
        (DELTALAKE.format("400 Bad Request" + XML.format("ExpiredToken", "late")), InfrastructureError, "have expired",
         True),
        (DELTALAKE.format("403 Forbidden" + XML.format("SignatureDoesNotMatch", "no")), AccessError,
         "refused[\\s\\S]*correct AWS_SECRET_ACCESS_KEY", False),
        (DELTALAKE.format("404 Not Found" + XML.format("NoSuchBucket", "none")), AccessError, "No such bucket", False),
        (DELTALAKE.format("404 Not Found"), FileNotFoundError, "no such object", False),
        (ARROW.format("ACCESS_DENIED", "No response body."), AccessError, "403 AccessDenied: No response body", False),
        (ARROW.format("NO_SUCH_BUCKET", "none"), AccessError, "create the bucket", False),
        (ARROW.format("SLOW_DOWN", "wait"), InfrastructureError, "503 SlowDown: wait", True),
        (ARROW.format("NETWORK_CONNECTION", "curlCode: 7"), InfrastructureError, "cannot be reached", True),
    ],
)  # fmt: skip
def test_deltalake_and_arrow_tell_a_reply_in_text(text: str, kind: type[Exception], says: str, retryable: bool) -> None:
    failure = translated(OSError(text))
    with pytest.raises(kind, match=says):
        raise failure.exception
    assert failure.error_class.retryable is retryable
    assert "\x1b" not in str(failure.exception)


# ---- links ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [404, 410])
def test_a_link_that_is_gone_is_a_missing_file(status: int) -> None:
    failure = translated(refusal(status), LINK)
    assert isinstance(failure.exception, FileNotFoundError)
    assert failure.exception.strerror == f"{status} Said"
    assert failure.exception.filename == "https://host/a.jpg?..."


@pytest.mark.parametrize("status", [400, 401, 402, 403, 407, 451, 501])
def test_a_link_that_is_refused_is_one_of_access_and_not_repeated(status: int) -> None:
    failure = translated(refusal(status), LINK)
    assert isinstance(failure.exception, AccessError)
    assert f"refused the request: {status}: Said" in failure.exception.short()
    assert "storage.http_headers" in failure.exception.hint
    assert not any(secret in str(failure.exception) for secret in SECRET)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 503])
def test_a_link_whose_server_is_busy_is_tried_again_and_not_repeated(status: int) -> None:
    failure = translated(refusal(status), LINK)
    assert isinstance(failure.exception, InfrastructureError)
    assert failure.error_class.retryable
    assert f"failing: {status}: Said" in failure.exception.short()
    assert not any(secret in str(failure.exception) for secret in SECRET)


def refusal(status: int) -> aiohttp.ClientResponseError:
    request: Any = SimpleNamespace(real_url=LINK)
    return aiohttp.ClientResponseError(request, (), status=status, message="Said")


def test_no_class_of_errors_repeats_the_signature_of_a_link() -> None:
    for error in (PermissionError(f"no {LINK}"), TimeoutError(f"late {LINK}"), OSError(errno.ENOSPC, f"full {LINK}")):
        assert not any(secret in str(translated(error, LINK).exception) for secret in SECRET)


def test_the_table_loads_no_library() -> None:
    program = "import sys, segray.storage.errors; print(*{name.partition('.')[0] for name in sys.modules})"
    told = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert not {"botocore", "aiohttp", "fsspec", "s3fs"} & set(told.stdout.split())


# ---- other stores ---------------------------------------------------------------------------------


def azure_error(kind: str, status: int | None, code: str = "", message: str = "Said") -> Exception:
    module = pytest.importorskip("azure.core.exceptions")
    error = getattr(module, kind)(message)
    error.status_code, error.error_code = status, code
    return error


def google_error(status: int) -> Exception:
    return pytest.importorskip("gcsfs.retry").HttpError({"code": status, "message": "Said"})


def hub_error(status: int) -> Exception:
    errors = pytest.importorskip("huggingface_hub.errors")
    response: Any = SimpleNamespace(status_code=status, headers={}, request=None)
    return errors.HfHubHTTPError("Said", response=response)


def hidden(error: Exception) -> Exception:
    """An error that a file system of fsspec has turned into one of Python."""
    try:
        try:
            raise error
        except Exception as cause:
            raise FileNotFoundError("a/b") from cause
    except FileNotFoundError as shown:
        return shown


REPLIES = [
    (404, FileNotFoundError, False),
    (410, FileNotFoundError, False),
    (401, AccessError, False),
    (403, AccessError, False),
    (408, InfrastructureError, True),
    (429, InfrastructureError, True),
    (500, InfrastructureError, True),
    (503, InfrastructureError, True),
]
STORES = {
    "az://c/k": lambda status: azure_error("HttpResponseError", status),
    "gs://b/k": google_error,
    "hf://datasets/a/b/k": hub_error,
    "webdav://h/k": lambda status: refusal(status),
    "github://a:b@main/k": lambda status: hidden(hub_error(status)),
}
HINTS = {"az": "AZURE_STORAGE_CONNECTION_STRING", "gs": "GOOGLE_APPLICATION_CREDENTIALS", "hf": "HF_TOKEN"}


@pytest.mark.parametrize("uri", STORES)
@pytest.mark.parametrize(("status", "kind", "retryable"), REPLIES)
def test_a_reply_of_any_store_is_told_by_its_status(
    uri: str, status: int, kind: type[Exception], retryable: bool
) -> None:
    failure = translate(STORES[uri](status), uri, from_backend=True)
    assert failure is not None
    assert isinstance(failure.exception, kind)
    assert failure.error_class.retryable is retryable
    if kind is AccessError:
        assert HINTS.get(uri.partition(":")[0], "") in str(failure.exception)
        assert "AWS_" not in str(failure.exception)


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (lambda: azure_error("ResourceNotFoundError", 404, "ContainerNotFound"), AccessError, "No such bucket"),
        (lambda: azure_error("HttpResponseError", 409, "BlobArchived"), FileNotFoundError, "archived"),
        (lambda: azure_error("ServiceRequestError", None), InfrastructureError, "cannot be reached"),
        (lambda: azure_error("ServiceResponseError", None), InfrastructureError, "cannot be reached"),
        (lambda: azure_error("ClientAuthenticationError", None), AccessError, "No usable credentials"),
        (
            lambda: azure_error("HttpResponseError", 403, "AuthenticationFailed",
                                "Signature not valid in the specified time frame"),
            InfrastructureError,
            "have expired",
        ),
        (lambda: pytest.importorskip("google.auth.exceptions").RefreshError("old"), InfrastructureError, "expired"),
        (lambda: pytest.importorskip("google.auth.exceptions").TransportError("cut"), InfrastructureError, "reached"),
        (
            lambda: pytest.importorskip("google.auth.exceptions").DefaultCredentialsError("none"),
            AccessError,
            "No usable credentials",
        ),
    ],
)  # fmt: skip
def test_an_error_of_azure_and_google_without_a_status(error: Any, kind: type[Exception], says: str) -> None:
    failure = translated(error(), "az://c/k")
    with pytest.raises(kind, match=says):
        raise failure.exception


# As deltalake 1.6.6 writes them.
AZURE = DELTALAKE.replace("S3", "MicrosoftAzure")
METADATA = "Generic GCS error\n Error performing GET http://169.254.169.254/computeMetadata/v1/ in 2ms - HTTP error"


@pytest.mark.parametrize(
    ("uri", "text", "kind", "says"),
    [
        ("az://c/t", AZURE.format("403 Forbidden" + XML.format("AuthenticationFailed", "no")), AccessError,
         r"403 AuthenticationFailed: no[\s\S]*AZURE_STORAGE_CONNECTION_STRING"),
        ("az://c/t", AZURE.format("404 Not Found" + XML.format("ContainerNotFound", "")), AccessError, "No such"),
        ("gs://b/t", DELTALAKE.format('401 Unauthorized\n {"error": {"code": 401, "message": "Anonymous caller"}}'),
         AccessError, r"Anonymous caller[\s\S]*GOOGLE_APPLICATION_CREDENTIALS"),
        ("gs://b/t", DELTALAKE.format("503 Service Unavailable"), InfrastructureError, "503 Service Unavailable"),
        ("az://c/t", "Generic MicrosoftAzure error\n Account must be specified\n", AccessError, "as configured"),
        ("gs://b/t", METADATA, AccessError, "No usable credentials"),
        ("/data/t", "Generic LocalFileSystem error: Unable to open file: No space left on device (os error 28)",
         InfrastructureError, "The disk is full"),
    ],
)  # fmt: skip
def test_deltalake_tells_replies_and_settings_of_every_store(
    uri: str, text: str, kind: type[Exception], says: str
) -> None:
    failure = translated(OSError(text), uri)
    with pytest.raises(kind, match=says):
        raise failure.exception


def test_missing_credentials_of_a_bucket_that_has_answered_are_an_outage() -> None:
    failure = translate(OSError(METADATA), "gs://b/t", bucket_exists=True)
    assert failure is not None
    assert failure.error_class.retryable


@pytest.mark.parametrize(
    ("reply", "kind"), [("530 Login incorrect", AccessError), ("550 No such file", FileNotFoundError)]
)
def test_ftp_tells_its_own_codes(reply: str, kind: type[Exception]) -> None:
    assert isinstance(translated(ftplib.error_perm(reply), "ftp://h/x").exception, kind)


def test_a_missing_package_is_named_at_once() -> None:
    commands = {
        "az://c/x": ("azure.storage.blob.aio", "pip install 'segray[azure]'"),
        "gs://b/x": ("gcsfs", "pip install 'segray[gcs]'"),
        "hf://datasets/a/b/x": ("huggingface_hub", "pip install 'segray[hf]'"),
        "sftp://h/x": ("paramiko", "pip install paramiko"),
    }
    program = (
        "import sys\n"
        "from segray.errors import AccessError\n"
        "from segray.storage.store import Store\n"
        f"for uri, (module, command) in {commands!r}.items():\n"
        "    sys.modules[module] = None\n"
        "    try: Store().read(uri)\n"
        "    except AccessError as error: print(uri, command in str(error))\n"
    )
    env = {**os.environ, "AZURE_STORAGE_CONNECTION_STRING": "AccountName=a;AccountKey=a2V5"}
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, env=env)
    assert done.stdout.splitlines() == [f"{uri} True" for uri in commands]
