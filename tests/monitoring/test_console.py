"""What a person reads while a run goes on and when it ends."""

from __future__ import annotations

import io
import sys
from dataclasses import replace

import pytest

from segray.execution.progress import Counters
from segray.execution.run import Summary
from segray.monitoring.console import Plain, RateMeter, as_record, describe, duration


def test_durations_read_naturally() -> None:
    assert [duration(s) for s in (None, 0.4, 59.6, 75, 7300)] == ["?", "0 s", "1 min 0 s", "1 min 15 s", "2 h 1 min"]


def test_the_rate_counts_from_the_first_image_on() -> None:
    meter = RateMeter(100, resumed=20)
    assert meter.update(20, 0) == 0
    assert meter.eta_s(20) is None
    meter.update(30, 50)
    assert meter.update(50, 60) == 2.0
    assert meter.eta_s(50) == 25.0


def test_plain_progress_is_a_line_now_and_then() -> None:
    out, now = io.StringIO(), [0.0]
    with Plain(out, lambda: now[0]) as plain:
        plain.begin(100, 0)
        for done in range(1, 41):
            now[0] = float(done)
            plain.advance(done, done * 3, 1)
    lines = out.getvalue().splitlines()
    assert len(lines) == 4
    assert "20/100 images, 60 instances, 1 failed, 1.0 images/s, 1 min 20 s left" in lines[1]


def test_the_summary_names_one_thing_to_look_at() -> None:
    lines = describe(summary(), "sheet.png  report.html").splitlines()
    assert [line for line in lines if line.startswith("look at:")] == ["look at: sheet.png  report.html"]
    assert f"look at: segray sheet {summary().root}" in describe(summary()).splitlines()


def test_plain_progress_says_that_workers_start_until_the_first_image() -> None:
    out, now = io.StringIO(), [0.0]
    with Plain(out, lambda: now[0]) as plain:
        plain.begin(100, 20)
        for now[0], done in ((11.0, 20), (22.0, 21)):
            plain.advance(done, done - 20, 0)
    waiting, first = out.getvalue().splitlines()
    assert waiting.endswith("20/100 images, starting workers")
    assert first.endswith("21/100 images, 1 instances, 0 failed")


def summary(exit_code: int = 0, failed: int = 0) -> Summary:
    failures = (("bad.jpg", "decode", "truncated\n  found: 3 bytes"),) if failed else ()
    images = {"ok": 8, "empty": 2, "failed": failed} if failed else {"ok": 8, "empty": 2}
    tally = Counters(ok=8, empty=2, failed=failed, instances=30, dropped={"empty_mask": 4}, guessed_depths={12: 3})
    before = {"decode": 2, "read": 1} if failed else {}
    return Summary("/out", images, {"kite": 30}, tally, 5.0, 4.0, 10, 0, (), failures, exit_code, images, before)


def test_the_summary_says_what_was_done_and_what_to_look_at_next() -> None:
    text = describe(summary())
    assert "labelled 10 images in 5 s (2.0 images/s" in text
    assert "30 instances of any score\n" in text
    assert "30  kite\n" in text
    assert "dropped: 4 empty_mask" in text
    assert "3 images as 12 bits; image.bit_depth" in text
    assert 'segray sql /out "SELECT class_name' in text


def test_the_query_installs_duckdb_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "query:   segray sql " in describe(summary())
    monkeypatch.setitem(sys.modules, "duckdb", None)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.delitem(sys.modules, "duckdb")
    assert "query:   pip install duckdb && segray sql " in describe(summary())


def test_the_headline_counts_confident_instances_first() -> None:
    counted = replace(summary(), classes={"kite": 24, "tv": 6_000, "clock": 2}, confident={"kite": 20, "tv": 15})
    lines = describe(counted).splitlines()
    begin = lines.index("35 instances of score 0.5 and more (6,026 in all)")
    assert [line.split() for line in lines[begin + 1 : begin + 4]] == [
        ["20", "kite", "(24", "in", "all)"], ["15", "tv", "(6,000", "in", "all)"], ["0", "clock", "(2", "in", "all)"],
    ]  # fmt: skip


def test_a_run_that_replaced_files_says_what_that_means_for_the_glob() -> None:
    assert "replaced" not in describe(summary())
    text = describe(replace(summary(), root="/my labels", tally=Counters(ok=1, replaced_files=3)))
    assert "replaced 3 data files: readers of the log see the current rows alone" in text
    assert "The plain glob also counts replaced rows, until `segray maintain '/my labels' --grace-hours 0`" in text
    assert "replaced 1 data file:" in describe(replace(summary(), tally=Counters(replaced_files=1)))


def test_failures_are_named_with_their_reason_on_one_line() -> None:
    text = describe(summary(3, failed=10))
    assert "failed: bad.jpg: decode: truncated\n" in text
    assert "50.0% of the images of this run failed" in text


def test_failures_of_earlier_runs_have_a_line_of_their_own() -> None:
    text = describe(summary(0, failed=10))
    assert "failed in earlier runs: 2 at decode, 1 at read; label these images again: --retry-failed\n" in text
    assert "exit code" not in text
    assert as_record(summary(3, failed=10))["next"] == "the same command with --retry-failed"
    assert "earlier runs" not in describe(summary())
