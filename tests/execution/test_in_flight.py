"""What is in flight, and what a process leaves behind when it dies."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from segray.execution.in_flight import Watch, follow
from segray.tasks import InFlight

_DIES = """
import os, pathlib, signal, sys
from segray.execution.in_flight import Watch
watch = Watch(pathlib.Path(sys.argv[1]))
for index in range(3):
    watch.enter((7, index), "decode")
watch.leave((7, 1))
watch.enter((7, 2), "infer")
watch.enter((7, 3), "read")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_the_place_of_every_image_it_was_at(tmp_path: Path) -> None:
    trail = tmp_path / "trail"
    subprocess.run([sys.executable, "-c", _DIES, str(trail)], cwd=Path(__file__).parents[2])
    assert set(follow(trail)) == {
        InFlight(7, 0, "decode", 0.0),
        InFlight(7, 2, "infer", 0.0),
        InFlight(7, 3, "read", 0.0),
    }
    assert not trail.exists()
    assert follow(trail) == ()


def test_the_trail_and_the_pulse_say_the_same_and_the_trail_stays_small(tmp_path: Path) -> None:
    watch = Watch(tmp_path / "trail")
    for index in range(1000):
        watch.enter((0, index), "read")
        watch.enter((0, index), "decode")
        if index >= 3:
            watch.leave((0, index - 3))
    assert (tmp_path / "trail").stat().st_size <= 4 * 24
    progress = watch.progress()
    assert progress.finished == 997
    assert stages(progress.in_flight) == {(0, index, "decode") for index in (997, 998, 999)}
    assert stages(follow(tmp_path / "trail")) == stages(progress.in_flight)


def stages(images: Iterable[InFlight]) -> set[tuple[int, int, str]]:
    return {(image.unit, image.index, image.stage) for image in images}
