"""The loop that repeats a storage request after transient errors, with growing waits.

Knows nothing of the meaning of errors. The caller translates errors.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count
from time import sleep
from typing import TypeVar

from segray.storage.errors import StorageFailure

T = TypeVar("T")

_BACKOFF_S, _LONGEST_BACKOFF_S = 0.5, 20.0


def retrying(
    request: Callable[[], T],
    retries: int,
    translate: Callable[[Exception], StorageFailure | None],
    renew_credentials: Callable[[], None],
) -> T:
    """Return the result of `request`. Repeat the request after transient errors.

    Args:
        request: Makes the request, which must be safe to repeat.
        retries: Attempts after the first.
        translate: Returns the failure that an error means, None for an error that is not one of storage.
        renew_credentials: Called before the attempt after a failure that needs new credentials.

    Raises:
        Exception: The failure's exception, or the error itself where `translate` returns None.
    """
    for attempt in count():
        try:
            return request()
        except Exception as error:
            failure = translate(error)
            if failure is None:
                raise
            if not failure.error_class.retryable or attempt >= retries:
                raise failure.exception from error
            if failure.error_class.renew_credentials:
                renew_credentials()
        sleep(_backoff_s(attempt))
    raise AssertionError("unreachable")


def _backoff_s(attempt: int) -> float:
    return random.uniform(0.5, 1) * min(_LONGEST_BACKOFF_S, _BACKOFF_S * 2.0**attempt)
