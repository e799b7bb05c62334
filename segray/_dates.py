"""Dates in addresses, such as s3://raw/dt={yesterday}/, and durations in words.

Knows placeholders and units. The caller gives the day, so a repeated run means the same day. Only the value "today"
reads a clock.

    {today} {yesterday}    2026-11-20: the caller's day, and the day before
    {today:%Y/%m/%d}       2026/11/20: a format of %Y %m %d %y %j %G %V %u and plain characters
"""

from __future__ import annotations

import re
from datetime import date, datetime, timedelta
from functools import partial
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from segray.errors import ConfigError

_PLACEHOLDER = re.compile(r"\{(today|yesterday)(?::([^{}]*))?\}")
_FORMAT = re.compile(r"(?:%[YmdyjGVu]|[^%])*")
_TODAY = re.compile(r"today(?:@(.+))?")
_DURATION = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(s|min|h|d)?\s*")
_UNIT_S = {"s": 1, "min": 60, "h": 3600, "d": 86400}


def has_date(address: str) -> bool:
    """Return whether the address contains a date placeholder."""
    return _PLACEHOLDER.search(address) is not None


def fill_dates(address: str, day: date, where: str) -> str:
    """Return the address with a date in place of each placeholder.

    day: the day that {today} stands for. where: the configuration key that holds the address, for errors. Raises
    ConfigError for an invalid date format.
    """
    return _PLACEHOLDER.sub(partial(_date_text, day, where), address)


def folder_before_date(address: str) -> str:
    """Return the folder above the first path component that contains a date placeholder."""
    placeholder = _PLACEHOLDER.search(address)
    assert placeholder is not None
    return address[: placeholder.start()].rpartition("/")[0]


def parse_day(value: object) -> tuple[date, str | None]:
    """Return the day that `as_of` names, and the time zone of a day that the clock gives.

    The value is a date such as 2026-11-20, `today` in UTC, or `today@Asia/Tokyo`. Raises ConfigError for any other
    value.
    """
    if isinstance(value, str) and (today := _TODAY.fullmatch(value.strip())):
        zone = today[1] or "UTC"
        return datetime.now(_time_zone(zone)).date(), zone
    return _parse_date(value), None


def _time_zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as exc:  # ValueError for a path, OSError for a folder.
        raise ConfigError(
            "no such time zone",
            where="as_of",
            found=name,
            hint="give a name of the IANA database, as in today@Asia/Tokyo; the system's package tzdata has them",
        ) from exc


def _parse_date(value: object) -> date:
    try:
        return value if type(value) is date else date.fromisoformat(str(value).strip())
    except ValueError as exc:
        raise ConfigError(
            "as_of is no day",
            where="as_of",
            found=str(value),
            hint="set as_of to a date such as 2026-11-20, to today, or to today@Asia/Tokyo",
        ) from exc


def _date_text(day: date, where: str, placeholder: re.Match[str]) -> str:
    placeholder_day = day - timedelta(days=1) if placeholder[1] == "yesterday" else day
    if placeholder[2] is None:
        return placeholder_day.isoformat()
    if not placeholder[2] or not _FORMAT.fullmatch(placeholder[2]):
        raise ConfigError(
            "not the format of a date",
            where=where,
            found=placeholder[0],
            hint=f"write the date in {where} with %Y %m %d %y %j %G %V %u, as in {{today:%Y/%m/%d}}",
        )
    return placeholder_day.strftime(placeholder[2])


def parse_duration(value: object) -> float:
    """Return the seconds of a duration such as 3600, "3600 s", "90 min", "12 h" or "1 d".

    Raises ValueError for any other value.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("a duration is a number of seconds, or a number with the unit s, min, h or d, such as 1 d")
    return float(match[1]) * _UNIT_S[match[2] or "s"]


def duration(seconds: float | None) -> str:
    """Return a duration in words: 75 gives "1 min 15 s", None gives "?"."""
    if seconds is None:
        return "?"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60} min"
