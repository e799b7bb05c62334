"""The table of errors: its names exist in their libraries, no row hides another, and what replies in text mean."""

from __future__ import annotations

import errno
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
    return issubclass(class_named(source), tuple(class_named(other) for other in row.source if "." in other))


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


@pytest.mark.parametrize("status", [400, 403, 404, 410])
def test_a_link_that_is_refused_is_a_missing_file(status: int) -> None:
    failure = translated(refusal(status), LINK)
    assert isinstance(failure.exception, FileNotFoundError)
    assert failure.exception.strerror == f"{status} Said"
    assert failure.exception.filename == "https://host/a.jpg?..."


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_a_link_whose_server_is_busy_is_tried_again_and_not_repeated(status: int) -> None:
    failure = translated(refusal(status), LINK)
    assert failure.error_class.retryable
    assert f"ClientResponseError: {status}" in str(failure.exception)
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
