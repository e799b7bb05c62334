"""Dates in addresses, such as s3://raw/dt={yesterday}/, and durations in words.

Knows placeholders and units. The caller gives the day, so a repeated run means the same day. Only the value "today"
reads a clock.

    {today} {yesterday}    2026-11-20: the day given, and the day before
    {today:%Y/%m/%d}       2026/11/20: made of %Y %m %d %y %j %G %V %u and plain characters
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from functools import partial

from segray.errors import ConfigError

_PLACEHOLDER = re.compile(r"\{(today|yesterday)(?::([^{}]*))?\}")
_FORMAT = re.compile(r"(?:%[YmdyjGVu]|[^%])*")


def has_date(address: str) -> bool:
    """Return whether the address contains a date placeholder."""
    return _PLACEHOLDER.search(address) is not None


def filled(address: str, day: date, where: str) -> str:
    """Return the address with each placeholder replaced by its date, as seen from `day`.

    where: the configuration key that holds the address, for errors. Raises ConfigError for an invalid date format.
    """
    return _PLACEHOLDER.sub(partial(_text, day, where), address)


def before_dates(address: str) -> str:
    """Return the folder above the first path component that contains a date placeholder."""
    found = _PLACEHOLDER.search(address)
    assert found is not None
    return address[: found.start()].rpartition("/")[0]


def parsed(given: object) -> date:
    """Return the day that `as_of` means: 2026-11-20, or today in UTC. Raises ConfigError for any other text."""
    if isinstance(given, str) and given.strip() == "today":
        return datetime.now(UTC).date()
    try:
        return given if type(given) is date else date.fromisoformat(str(given).strip())
    except ValueError as exc:
        raise ConfigError(
            "as_of is no day", where="as_of", found=str(given), hint="give it as 2026-11-20, or today"
        ) from exc


def _text(day: date, where: str, found: re.Match[str]) -> str:
    chosen = day - timedelta(days=1) if found[1] == "yesterday" else day
    if found[2] is None:
        return chosen.isoformat()
    if not found[2] or not _FORMAT.fullmatch(found[2]):
        raise ConfigError(
            "not the format of a date",
            where=where,
            found=found[0],
            hint="use %Y %m %d %y %j %G %V %u, as in {today:%Y/%m/%d}",
        )
    return chosen.strftime(found[2])


def duration(seconds: float | None) -> str:
    """Return a duration in words: 75 gives "1 min 15 s", None gives "?"."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
