"""The seconds of an image by stage, and of the process."""

from __future__ import annotations

import time

import pytest

from segray.execution.in_flight import InFlightTracker
from segray.execution.stage_timer import ImageTimer, ProcessCpu, StageTimer, summed


def compute(seconds: float) -> None:
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def test_waiting_counts_as_wall_time_and_computing_as_cpu_time_of_its_stage() -> None:
    timer = StageTimer("read")
    time.sleep(0.1)
    timer.enter("decode")
    compute(0.1)
    timer.stop()
    assert timer.seconds["read"] >= 0.1 > 0.05 > timer.cpu_seconds["read"]
    assert timer.cpu_seconds["decode"] >= 0.1


def test_a_stage_that_is_entered_again_goes_on() -> None:
    timer = StageTimer("decode")
    for stage in ("wait", "decode", "infer"):
        compute(0.05)
        timer.enter(stage)
    assert timer.cpu_seconds["decode"] >= 0.1
    assert timer.cpu_seconds["wait"] >= 0.05


def test_timers_add_up_by_stage() -> None:
    timers = [StageTimer("infer"), StageTimer("infer")]
    for timer in timers:
        timer.seconds.update(decode=1.0, infer=2.0)
        timer.cpu_seconds.update(decode=0.5)
    timers[1].seconds["write"] = 4.0
    assert summed(timers) == ({"decode": 2.0, "infer": 4.0, "write": 4.0}, {"decode": 1.0})


def test_the_timer_of_an_image_tells_the_tracker_where_the_image_is() -> None:
    tracker = InFlightTracker()
    timer = ImageTimer(tracker, (3, 7))
    timer.enter("decode")
    (image,) = tracker.progress().in_flight
    assert (image.unit, image.index, image.stage) == (3, 7, "decode")
    timer.leave(finished=True)
    assert (tracker.progress().finished, tracker.progress().in_flight) == (1, ())


def test_what_no_stage_computed_is_inference_and_is_reported_once() -> None:
    cpu = ProcessCpu()
    compute(0.2)
    first = cpu.with_inference({"decode": 0.05, "infer": 0.01})
    assert first["decode"] == 0.05
    assert first["infer"] >= 0.15
    second = cpu.with_inference({})
    assert second["infer"] == pytest.approx(0, abs=0.1)
