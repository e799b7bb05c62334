"""Pages of HTML from the templates in this folder.

This module knows how to format a value and how to render a template. The templates know tags, charts and style. Jinja2
escapes each value. A page is one file whose content security policy forbids scripts and external addresses.
"""

from __future__ import annotations

import functools
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment

_MAX_CHARS = 300
# Unicode categories of unprintable characters and line separators.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def render(template: str, **values: Any) -> str:
    """Return a template's page with these values."""
    return environment().get_template(template).render(values)


@functools.cache
def environment() -> Environment:
    """Return the environment of the templates. Each value is escaped. A missing value is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # Imported here because only a page needs Jinja2.

    created = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )
    created.filters |= {
        "first_line": first_line,
        "number": number,
        "percent": percent,
        "px": "{:.1f}".format,
        "short": short,
        "size": size,
        "visible": visible,
    }
    return created


def visible(value: object, max_chars: int = _MAX_CHARS) -> str:
    """Return the text of a value, with escapes for unprintable characters. Cut a long text in the middle.

    HTML from a template is returned unchanged.
    """
    if isinstance(value, str) and hasattr(value, "__html__"):
        return value
    text = str(value)
    if len(text) > max_chars:
        text = f"{text[: max_chars // 2]} ... {text[-max_chars // 2 :]}"
    return "".join(ascii(c)[1:-1] if unicodedata.category(c) in _UNPRINTABLE and c not in "\n\t" else c for c in text)


def first_line(message: str) -> str:
    """Return the first line of a message."""
    return message.splitlines()[0] if message.strip() else "no message"


def number(value: float | None, digits: int = 0) -> str:
    """Return a number with thousands separators: 12345.6 gives "12,346". None gives a dash."""
    return "-" if value is None else f"{value:,.{digits}f}"


def percent(part: float, whole: float = 1, digits: int = 1) -> str:
    """Return a share in percent: 1 of 8 gives "12.5%". A share of 0 is 0."""
    return f"{part / whole if whole else 0:.{digits}%}"


def short(value: int) -> str:
    """Return a number in a few characters: 12345 gives "12k", 1234 gives "1234"."""
    for unit, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if value >= 10 * unit or (value >= unit and value % unit == 0):
            return f"{value / unit:.0f}{letter}"
    return str(value)


def size(n_bytes: int) -> str:
    """Return a number of bytes with its unit: 12345 gives "12 kB"."""
    value = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if value >= 10 or unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.0f} PB"
