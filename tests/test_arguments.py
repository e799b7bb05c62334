"""Arguments of Python functions: names and values are checked by the annotations, for each function alike."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np
import pytest

from segray.arguments import Count, PositiveCount, Share, checked, checked_methods
from segray.errors import ArgumentError, UserError

if TYPE_CHECKING:
    import pyarrow as pa


class Options(TypedDict, total=False):
    """Options by name."""

    endpoint: str | None
    retries: int


@checked
def call(
    root: str | os.PathLike[str] = "",
    *,
    limit: PositiveCount | None = None,
    min_score: Share = 0.0,
    kinds: Sequence[Literal["ok", "empty"]] = (),
    moment: datetime | None = None,
    names: Mapping[int, str] | None = None,
    size_hw: tuple[Count, Count] = (1, 1),
    options: Options | None = None,
    stages: Collection[str] = (),
    flag: bool = False,
    table: pa.Table | None = None,
    images: Iterable[Any] = (),
) -> str:
    return "called"


@pytest.mark.parametrize(
    "given",
    [
        {"root": Path("x")}, {"limit": np.int64(3)}, {"min_score": np.float32(0.5)}, {"min_score": 1},
        {"kinds": ["ok"]}, {"kinds": ("ok", "empty")}, {"names": {1: "a"}}, {"size_hw": [3, 4]},
        {"size_hw": np.zeros((3, 4)).shape}, {"options": {"endpoint": None, "AWS_REGION": "x"}},
        {"stages": {"read"}}, {"stages": np.array(["read"])}, {"flag": True}, {"table": object()}, {"images": 5},
        {"moment": datetime(2026, 1, 1)},
    ],
    ids=lambda given: next(iter(given)),
)  # fmt: skip
def test_values_of_the_right_kind_pass(given: dict[str, Any]) -> None:
    assert call(**given) == "called"


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"root": None}, "give text or a path"), ({"root": b"x"}, "give text or a path"),
        ({"limit": 0}, "give a whole number of at least 1 or None"), ({"limit": "3"}, "a whole number"),
        ({"limit": True}, "a whole number"), ({"limit": 1.5}, "a whole number"),
        ({"min_score": 50}, "give a number from 0 to 1"), ({"min_score": float("nan")}, "a number from 0 to 1"),
        ({"kinds": "ok"}, "give a list of 'ok' or 'empty'"), ({"kinds": ["bad"]}, "a list of 'ok' or 'empty'"),
        ({"names": ["a"]}, "give a mapping of a whole number to text or None"), ({"names": {"a": 1}}, "a mapping"),
        ({"size_hw": (1, 2, 3)}, "give a pair"), ({"size_hw": (-1, 2)}, "give a pair"), ({"size_hw": "ab"}, "a pair"),
        ({"options": {"retries": "x"}}, "a mapping with endpoint: text or None, retries: a whole number"),
        ({"options": "x"}, "a mapping with"), ({"stages": "read"}, "give a list of text"),
        ({"flag": 1}, "give True or False"), ({"moment": "2026-01-01"}, "give datetime.datetime or None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_wrong_value_is_a_typed_error_that_says_what_to_give(given: dict[str, Any], hint: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        call(**given)
    error = caught.value
    (name,) = given
    assert (error.what, error.where) == (f"wrong value of {name}", f"call({name}=...)")
    assert hint in error.hint
    assert type(given[name]).__name__ in error.found
    assert isinstance(error, UserError)
    assert isinstance(error, TypeError)
    assert isinstance(error, ValueError)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("limt", "did you mean limit?"), ("max_images", "did you mean limit?"), ("conf", "did you mean min_score?"),
     ("zzz", "the arguments are root, limit")],
)  # fmt: skip
def test_a_misspelt_name_gets_the_name_that_is_meant(name: str, hint: str) -> None:
    with pytest.raises(ArgumentError, match=f"no argument {name}") as caught:
        call(**{name: 3})
    assert hint in caught.value.hint


def test_a_missing_argument_stays_an_error_of_python() -> None:
    @checked
    def needs(root: str) -> str:
        return root

    with pytest.raises(TypeError, match="missing 1 required positional argument: 'root'"):
        needs()  # type: ignore[call-arg]
    assert needs.__wrapped__.__name__ == "needs"  # type: ignore[attr-defined]


def test_public_methods_of_a_class_are_checked_and_others_are_not() -> None:
    @checked_methods
    class Thing:
        """A class with checked methods."""

        def __call__(self, limit: PositiveCount) -> int:
            return limit

        def take(self, limit: PositiveCount) -> int:
            return limit

        def _take(self, limit: PositiveCount) -> int:
            return limit

    thing = Thing()
    assert (thing(1), thing.take(1), thing._take(0)) == (1, 1, 0)
    for method in (thing, thing.take):
        with pytest.raises(ArgumentError, match="wrong value of limit"):
            method(0)
