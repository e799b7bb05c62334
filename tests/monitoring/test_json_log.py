"""A run's log as JSON lines."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest

from segray.errors import InfrastructureError
from segray.execution.progress import Counters, ProgressTracker
from segray.execution.run import Summary
from segray.label_set.run_records import Run
from segray.monitoring import json_log
from segray.monitoring.console import as_record
from segray.tasks import Task, UnitReport

RUN = Run("/labels", "r1")


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_every_line_is_an_object_that_says_which_run_and_stage() -> None:
    out, now, tracker = io.StringIO(), [0.0], ProgressTracker()
    log = json_log.Json(out, lambda: now[0])
    log.note("7 images to label")
    log.begin(7, 0)
    for second in range(0, 25, 2):
        now[0] = float(second)
        log.beat(tracker.progress(RUN, images=7, done=second // 4, waiting=3, labelling=True))
    log.unit(RUN, "a", UnitReport(Task(3, 0, 4, 2), "u", 2, 1, 1, 5, 900, {"read": 0.12345}))
    log.error(InfrastructureError("the head is gone", where="here", hint="start it again"))
    told = lines(out)
    assert [each["event"] for each in told] == ["note", "begin", "progress", "progress", "unit", "error"]
    assert told[0]["run"] is None
    assert told[0]["stage"] == "planning"
    assert {each["run"] for each in told[1:]} == {"r1"}
    unit = told[4]
    assert (unit["unit"], unit["attempt"], unit["failed"], unit["stage"]) == (3, 2, 1, "labelling")
    assert unit["seconds"] == {"read": 0.123}
    assert (told[5]["level"], told[5]["exit_code"]) == ("error", 3)


def test_secrets_never_appear(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = 'pAsS"wOrD/4711'
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "tOkEn-4712")
    out = io.StringIO()
    json_log.Json(out).note(f"the store said {secret} and tOkEn-4712")
    assert lines(out)[0]["message"] == "the store said *** and ***"


def test_the_summary_line_carries_the_result_and_is_found_again() -> None:
    tally = Counters(ok=3, merge_s=1.0, commit_s=0.5)
    summary = Summary("/out", {"ok": 3}, {"kite": 9}, tally, 6.0, 2.0, 3, 0, (), (), 0)
    line = json_log.summary_line(summary, "r1")
    result = json_log.result_of(line)
    assert result == json.loads(json.dumps(as_record(summary)))
    assert (result["images_per_s"], result["published_share"]) == (0.5, 0.25)
    assert result["next"] == "segray verify /out"
    for other in ("", "(raylet) spilled", '{"event": "summary"', '"event": "summary" is what it says', "[1]"):
        assert json_log.result_of(other) is None
