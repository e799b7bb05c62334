"""The parameters of the page's address, and the conditions that they mean."""

from __future__ import annotations

import pytest

from segray.errors import UserError
from segray.view.selection import Range, Selection, from_query


def test_every_parameter_is_read() -> None:
    query = {
        "class": "3,7", "score": "0.3..0.7", "area": "..900", "where": " bbox_w > 3 ", "status": "ok,failed",
        "count": "2", "text": "day/", "batch": "1", "order": "random", "seed": "9", "image": "a.jpg",
    }  # fmt: skip
    assert from_query(query) == Selection(
        (3, 7),
        Range(0.3, 0.7),
        Range(None, 900),
        "bbox_w > 3",
        ("ok", "failed"),
        Range(2, 2),
        "day/",
        (1,),
        "random",
        9,
    )
    assert from_query({}) == Selection()


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("class", "car", "'car'"), ("class", "9" * 40, "'" + "9" * 40 + "'"), ("score", "x..", "'x..'"),
        ("area", "nan..", "'nan..'"), ("status", "done", "done"), ("order", "best", "best"), ("seed", "1.5", "'1.5'"),
        ("where", "x" * 3000, "3000 characters"),
    ],
)  # fmt: skip
def test_a_value_that_is_none_is_named(name: str, value: str, found: str) -> None:
    with pytest.raises(UserError) as caught:
        from_query({name: value})
    assert caught.value.where == name
    assert caught.value.found == found
    assert caught.value.hint
