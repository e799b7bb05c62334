"""What is in flight, and what a process leaves behind when it dies."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from segray.execution.in_flight import InFlightTracker, read_in_flight_log
from segray.tasks import InFlight

_DIES = """
import os, pathlib, signal, sys
from segray.execution.in_flight import InFlightTracker
tracker = InFlightTracker(pathlib.Path(sys.argv[1]))
for index in range(3):
    tracker.enter((7, index), "decode")
tracker.leave((7, 1))
tracker.enter((7, 2), "infer")
tracker.enter((7, 3), "read")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_the_place_of_every_image_it_was_at(tmp_path: Path) -> None:
    log = tmp_path / "log"
    subprocess.run([sys.executable, "-c", _DIES, str(log)], cwd=Path(__file__).parents[2])
    assert set(read_in_flight_log(log)) == {
        InFlight(7, 0, "decode", 0.0),
        InFlight(7, 2, "infer", 0.0),
        InFlight(7, 3, "read", 0.0),
    }
    assert not log.exists()
    assert read_in_flight_log(log) == ()


def test_the_log_and_the_progress_say_the_same_and_the_log_stays_small(tmp_path: Path) -> None:
    tracker = InFlightTracker(tmp_path / "log")
    for index in range(1000):
        tracker.enter((0, index), "read")
        tracker.enter((0, index), "decode")
        if index >= 3:
            tracker.leave((0, index - 3))
    assert (tmp_path / "log").stat().st_size <= 4 * 24
    progress = tracker.progress()
    assert progress.finished == 997
    assert stages(progress.in_flight) == {(0, index, "decode") for index in (997, 998, 999)}
    assert stages(read_in_flight_log(tmp_path / "log")) == stages(progress.in_flight)


def stages(images: Iterable[InFlight]) -> set[tuple[int, int, str]]:
    return {(image.unit, image.index, image.stage) for image in images}
