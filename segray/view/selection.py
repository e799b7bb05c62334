"""What the page shows: conditions on images and on instances, and the order of the images.

Knows the parameters of the page's address, and the SQL that they mean. Knows nothing of connections or of pages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from segray.errors import UserError

STATUSES = ("ok", "empty", "failed")
ORDERS: Mapping[str, str] = {
    "key": "image_no",
    "score": "best DESC NULLS LAST, image_no",
    "lowest": "worst NULLS LAST, image_no",
    "count": "hits DESC NULLS LAST, image_no",
    "area": "largest DESC NULLS LAST, image_no",
    "uncertain": "doubt NULLS LAST, image_no",
    "random": "hash(image_no + {seed}), image_no",
}
SCORE_BINS, AREA_BINS = 20, 26
_UNSORTED = ("key", "random")
_TEXT_MAX = 2000


@dataclass(frozen=True)
class Range:
    """A closed range of numbers; None for no bound."""

    low: float | None = None
    high: float | None = None

    def __bool__(self) -> bool:
        return self.low is not None or self.high is not None

    def __contains__(self, value: float) -> bool:
        return (self.low is None or self.low <= value) and (self.high is None or value <= self.high)

    def sql(self, expression: str) -> Sql:
        """Return the condition that the expression lies in the range."""
        parts = [(">=", self.low), ("<=", self.high)]
        given = [(sign, value) for sign, value in parts if value is not None]
        return Sql(" AND ".join(f"{expression} {sign} ?" for sign, _ in given), tuple(value for _, value in given))


@dataclass(frozen=True)
class Sql:
    """A condition in SQL and the values of its parameters, in order. An empty text is true."""

    text: str = ""
    values: tuple[Any, ...] = ()

    def __and__(self, other: Sql) -> Sql:
        texts = [text for text in (self.text, other.text) if text]
        return Sql(" AND ".join(texts), self.values + other.values)

    @property
    def where(self) -> str:
        """Return the condition as a clause, or nothing."""
        return f"WHERE {self.text}" if self.text else ""


@dataclass(frozen=True)
class Selection:
    """The images that the page shows.

    An image is shown if the conditions on images hold and, where there is any condition on instances, at least one of
    its instances fulfils all of these.

    class_ids: category ids. score: 0..1. area: pixels. where: condition in SQL on an instance.
    statuses: of STATUSES. count: number of instances of any score. text: part of the key, in any case.
    batches: batch numbers. order: of ORDERS. seed: of the random order.
    """

    class_ids: tuple[int, ...] = ()
    score: Range = Range()
    area: Range = Range()
    where: str = ""
    statuses: tuple[str, ...] = ()
    count: Range = Range()
    text: str = ""
    batches: tuple[int, ...] = ()
    order: str = "key"
    seed: int = 0

    @property
    def has_instance_condition(self) -> bool:
        """Return whether any condition is on instances."""
        return bool(self.class_ids or self.score or self.area or self.where)

    @property
    def needs_instances(self) -> bool:
        """Return whether the shown images or their order depend on instances."""
        return self.has_instance_condition or self.order not in _UNSORTED

    def without(self, *fields: str) -> Selection:
        """Return the selection without the conditions of these fields."""
        plain = Selection()
        return replace(self, **{name: getattr(plain, name) for name in fields})

    def instance_condition(self) -> Sql:
        """Return the condition on a row of `instances`, without `where`, which needs more columns."""
        return _is_in("class_id", self.class_ids) & self.score.sql("score") & self.area.sql("area")

    def holds(self, row: Mapping[str, Any]) -> bool:
        """Return whether `instance_condition` holds for a row of `instances`."""
        is_of_class = not self.class_ids or row["class_id"] in self.class_ids
        return is_of_class and row["score"] in self.score and row["area"] in self.area

    def image_condition(self) -> Sql:
        """Return the condition on a row of `images`."""
        text = Sql("contains(lower(image_key), lower(?))", (self.text,)) if self.text else Sql()
        return _is_in("status", self.statuses) & self.count.sql("n_instances") & text & _is_in("batch", self.batches)

    def order_by(self) -> str:
        """Return the order in SQL."""
        return ORDERS[self.order].format(seed=self.seed)


def from_query(query: Mapping[str, str]) -> Selection:
    """Return the selection of the parameters of an address.

    Unknown parameters are ignored: they belong to other parts of the page.

    Raises:
        UserError: A value is none.
    """
    order = query.get("order") or "key"
    if order not in ORDERS:
        raise UserError("there is no such order", where="order", found=order, hint=f"use {', '.join(ORDERS)}")
    statuses = tuple(part for part in query.get("status", "").split(",") if part)
    if unknown := next((status for status in statuses if status not in STATUSES), None):
        raise UserError("there is no such status", where="status", found=unknown, hint=f"use {', '.join(STATUSES)}")
    text, where = query.get("text", ""), query.get("where", "").strip()
    for name, value in (("text", text), ("where", where)):
        if len(value) > _TEXT_MAX:
            found = f"{len(value)} characters"
            raise UserError("the text is too long", where=name, found=found, hint=f"use at most {_TEXT_MAX}")
    return Selection(
        _whole_numbers(query, "class"), _range(query, "score"), _range(query, "area"), where, statuses,
        _range(query, "count"), text, _whole_numbers(query, "batch"), order, (_whole_numbers(query, "seed") or (0,))[0],
    )  # fmt: skip


def _is_in(column: str, values: Sequence[Any]) -> Sql:
    return Sql(f"{column} IN ({', '.join('?' * len(values))})", tuple(values)) if values else Sql()


def _whole_numbers(query: Mapping[str, str], name: str) -> tuple[int, ...]:
    parts = [part for part in query.get(name, "").split(",") if part.strip()]
    try:
        numbers = tuple(int(part) for part in parts)
    except ValueError as error:
        found = repr(query[name])[:80]
        raise UserError("the value is no whole number", where=name, found=found, hint="write 3, or 3,7") from error
    if any(abs(number) >= 1 << 31 for number in numbers):
        raise UserError("the number is too large", where=name, found=repr(query[name])[:80], hint="use 32 bits")
    return numbers


def _range(query: Mapping[str, str], name: str) -> Range:
    """Return the range of a value LOW..HIGH, where either bound may be missing."""
    if not (text := query.get(name, "").strip()):
        return Range()
    low, dots, high = text.partition("..")
    try:
        bounds = [float(bound) if bound else None for bound in (low, high if dots else low)]
    except ValueError as error:
        raise _bad_range(name, text) from error
    if any(bound is not None and not math.isfinite(bound) for bound in bounds):
        raise _bad_range(name, text)
    return Range(*bounds)


def _bad_range(name: str, text: str) -> UserError:
    return UserError(
        "the range cannot be read", where=name, found=repr(text)[:80], hint="write 0.3..0.7, 0.3.. or ..0.7"
    )
