"""Which failed rows are tried again, and what is said of the others."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from segray.label_set import failed_rows, schema
from segray.label_set.failed_rows import RetryRule

NOW = datetime(2026, 11, 20, tzinfo=UTC)
DAY = timedelta(days=1)
OVER = {
    "max_bytes": "more than 100 bytes (image.max_bytes)",
    "max_pixels": "9x9 = 8.1e-05 MP is over the limit of 8e-05 MP (image.max_pixels)",
    "max_side_px": "9x9: a side is over the limit of 8 px (image.max_side_px)",
}


def row(key: str, stage: str | None, error: str, *, age: timedelta = DAY, message: str = "", **values: Any) -> Any:
    texts = {"image_id": key, "image_key": key, "uri": key, "version": "1", "run_id": "r1", "message": message}
    numbers = dict.fromkeys(("bytes", "width", "height", "n_instances", "attempts", "orientation"), 0)
    facts = {"status": "failed", "stage": stage, "error": error, "batch": 1, "labelled_at": NOW - age}
    return {**texts, **numbers, **facts, **values}


def read(*rows: Mapping[str, Any]) -> pa.Table:
    return failed_rows.read(ds.dataset(pa.Table.from_pylist(list(rows), schema.IMAGES)))


def keys(rule: RetryRule, rows: pa.Table) -> list[str]:
    return rows.filter(pa.array(rule.selects(rows)))["image_key"].to_pylist()


ROWS = (
    row("a", "read", "NotFound"),
    row("b", "read", "Unreachable"),
    row("c", "read", "Unreachable", age=timedelta()),
    row("d", "decode", "Unreachable"),
    row("e", "wait", "MemoryError"),
    row("f", None, "ImageError", message=OVER["max_side_px"]),
    row("g", "infer", "RuntimeError", age=-DAY),
    row("h", None, "", status="ok"),
)


@pytest.mark.parametrize(
    ("rule", "selected"),
    [
        (RetryRule(set(), NOW), ""),
        (RetryRule({"read"}, NOW), "abc"),
        (RetryRule({"decode", "infer"}, NOW), "d"),
        (RetryRule({"all"}, NOW), "abcdef"),
        (RetryRule(set(), NOW, NOW - DAY / 2), "b"),
        (RetryRule(set(), NOW, NOW - DAY), "b"),
        (RetryRule(set(), NOW, NOW - 2 * DAY), ""),
        (RetryRule({"decode"}, NOW, NOW), "bcd"),
    ],
)
def test_rows_are_selected_by_stage_and_age(rule: RetryRule, selected: str) -> None:
    assert keys(rule, read(*ROWS)) == list(selected)


def test_a_label_set_without_failed_rows_has_nothing_to_retry() -> None:
    rows = read(ROWS[-1])
    assert (rows.schema, len(rows)) == (failed_rows.ROWS, 0)
    assert keys(RetryRule({"all"}, NOW, NOW), rows) == []
    assert failed_rows.by_stage(rows) == {}


def test_what_a_plan_has_replaced_already_is_told_from_what_it_still_has_to_replace() -> None:
    planned = pa.table({"image_key": ["a", "b"], "batch": pa.array([1, 1], pa.int32())}, schema=schema.RETIRED)
    rows = read(row("a", "read", "", batch=1), row("b", "read", "", batch=2), row("c", "read", "", batch=1))
    assert failed_rows.tried_by(planned, rows).tolist() == [False, True, False]


def test_only_limits_that_were_raised_since_and_refused_an_image_are_named() -> None:
    rows = read(
        *(
            row(f"{name}{run}", "decode", "ImageError", message=OVER[name], run_id=run)
            for name in OVER
            for run in "123"
        ),
        row("z", "decode", "ImageError", message=OVER["max_pixels"], run_id="3"),
    )
    records = {
        "1": {"max_bytes": 100, "max_pixels": 50, "max_side_px": 9},
        "2": {"max_bytes": 200, "max_pixels": 70, "max_side_px": 8},
    }
    today = {"max_bytes": 100, "max_pixels": 81, "max_side_px": 9}
    raised = failed_rows.raised_limits(rows, today, lambda run: records.get(run, {}))
    assert raised == {"max_pixels": (50, 81, 2), "max_side_px": (8, 9, 1)}


def test_images_that_are_over_a_raised_limit_too_are_not_counted() -> None:
    over = "{}x{} = 1 MP is over the limit of 1 MP (image.max_pixels)"
    side = "{}x{}: a side is over the limit of 8 px (image.max_side_px)"
    texts = [over.format(9, 9), over.format(10, 10), over.format(10, 11), side.format(9, 1), side.format(1, 11)]
    texts += ["frames of 9x99 are over image.max_pixels or image.max_side_px", "more than 8 bytes (image.max_bytes)"]
    rows = read(*(row(str(i), "decode", "ImageError", message=text) for i, text in enumerate(texts)))
    today = {"max_bytes": 9, "max_pixels": 100, "max_side_px": 10}
    raised = failed_rows.raised_limits(rows, today, lambda run: dict.fromkeys(today, 8))
    assert raised == {"max_bytes": (8, 9, 1), "max_pixels": (8, 100, 3), "max_side_px": (8, 10, 2)}
    too_large = read(row("a", "decode", "ImageError", message=over.format(99, 99)))
    assert failed_rows.raised_limits(too_large, today, lambda run: dict.fromkeys(today, 8)) == {}


def test_stages_are_counted_the_most_common_first() -> None:
    assert failed_rows.by_stage(read(*ROWS)) == {"read": 3, "decode": 1, "wait": 1, "unknown": 1, "infer": 1}
