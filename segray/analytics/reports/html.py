"""Pages of HTML from the templates in this folder.

This module knows how a value is written on a page, and how a template becomes a page. The templates know tags, charts
and style. Jinja2 escapes each value. A page is one file, and forbids itself to load or run anything.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

_LONGEST = 300
_UNSEEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def render(template: str, **values: Any) -> str:
    """Return the page that a template makes of values."""
    return environment().get_template(template).render(values)


@functools.cache
def environment() -> Environment:
    """Return the environment of the templates. Each value is escaped. A missing value is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # Imported here because only a page needs Jinja2.

    made = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )
    made.filters |= {
        "first_line": first_line,
        "number": number,
        "percent": percent,
        "px": "{:.1f}".format,
        "short": short,
        "size": size,
        "visible": visible,
    }
    return made


def visible(value: object, longest: int = _LONGEST) -> str:
    """Return the text of a value, with unprintable characters as escapes, and long text cut in the middle.

    HTML from a template is returned unchanged.
    """
    if isinstance(value, str) and hasattr(value, "__html__"):
        return value
    whole = str(value)
    if len(whole) > longest:
        whole = f"{whole[: longest // 2]} ... {whole[-longest // 2 :]}"
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in _UNSEEN and c not in "\n\t" else c for c in whole)


def first_line(message: str) -> str:
    """Return the first line of a message."""
    return message.splitlines()[0] if message.strip() else "no message"


def number(value: float | None, digits: int = 0) -> str:
    """Return a number with separators of thousands: 12345.6 gives "12,346". None gives a dash."""
    return "-" if value is None else f"{value:,.{digits}f}"


def percent(part: float, whole: float = 1, digits: int = 1) -> str:
    """Return a share in percent: 1 of 8 gives "12.5%". A share of nothing is 0."""
    return f"{part / whole if whole else 0:.{digits}%}"


def short(value: int) -> str:
    """Return a number in a few characters: 12345 gives "12k", 1234 gives "1234"."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= 10 * size or (value >= size and value % size == 0):
            return f"{value / size:.0f}{letter}"
    return str(value)


def size(in_bytes: int) -> str:
    """Return a number of bytes with its unit: 12345 gives "12 kB"."""
    value = float(in_bytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.0f} PB"
