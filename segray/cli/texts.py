"""Small parts of printed answers: tables, numbers, counts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]], total: int) -> str:
    """Return rows below heads, and how many of `total` rows are left out. The first column has names."""
    wide = max([20, *(len(str(row[0])) for row in rows)])
    lines = [f"{heads[0]:>{wide}}" + "".join(f"{head:>{_width(head)}}" for head in heads[1:])]
    for name, *values in rows:
        cells = "".join(_cell(value, _width(head)) for value, head in zip(values, heads[1:], strict=True))
        lines.append(f"{name:>{wide}}{cells}")
    if total > len(rows):
        lines.append(f"{'':>{wide}} ... and {total - len(rows)} more")
    return "\n".join(lines)


def number(value: float | None) -> str:
    """Return a number of three digits; "none" for None."""
    return "none" if value is None else f"{value:.3f}"


def times(count: int) -> str:
    """Return how often: once, or N times."""
    return "once" if count == 1 else f"{count} times"


def _width(head: str) -> int:
    return max(9, len(head) + 2)


def _cell(value: Any, width: int) -> str:
    return f"{value:>{width}.3f}" if isinstance(value, float) else f"{value:>{width}}"
