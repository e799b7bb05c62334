"""The time that an image takes, by stage.

Knows clocks of threads and of the process. Knows nothing of the work of a stage.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping

from segray.execution.in_flight import InFlightTracker


class StageTimer:
    """A timer of one thread.

    stage: the present stage.
    seconds, cpu_seconds: wall and CPU seconds of the thread, by stage.
    """

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.seconds: dict[str, float] = defaultdict(float)
        self.cpu_seconds: dict[str, float] = defaultdict(float)
        self._since_s, self._cpu_since_s = time.perf_counter(), time.thread_time()

    def enter(self, stage: str) -> None:
        """End the present stage and begin another."""
        self.stop()
        self.stage = stage

    def stop(self) -> None:
        """Add the time since the last call to the present stage."""
        now_s, cpu_now_s = time.perf_counter(), time.thread_time()
        self.seconds[self.stage] += now_s - self._since_s
        self.cpu_seconds[self.stage] += cpu_now_s - self._cpu_since_s
        self._since_s, self._cpu_since_s = now_s, cpu_now_s


class ImageTimer(StageTimer):
    """A timer of one image, which also tells a tracker the image's stage.

    image: unit and index.
    """

    def __init__(self, tracker: InFlightTracker, image: tuple[int, int]) -> None:
        super().__init__("read")
        self._tracker, self._image = tracker, image

    def enter(self, stage: str) -> None:
        """End the present stage and begin another."""
        super().enter(stage)
        self._tracker.enter(self._image, stage)

    def leave(self, *, finished: bool) -> None:
        """End the last stage.

        finished: whether the image gets a row.
        """
        self.stop()
        self._tracker.leave(self._image, finished=finished)


class ProcessCpu:
    """The CPU seconds of this process that no report has yet. Threads may share an instance."""

    def __init__(self) -> None:
        self._lock, self._reported_s = threading.Lock(), time.process_time()

    def with_inference(self, cpu_seconds: Mapping[str, float]) -> Mapping[str, float]:
        """Return CPU seconds by stage, with all other CPU seconds of the process since the last call as "infer".

        The timers of images do not measure the threads of OpenVINO.

        cpu_seconds: CPU seconds by stage of the images' threads.
        """
        with self._lock:
            now_s = time.process_time()
            passed_s, self._reported_s = now_s - self._reported_s, now_s
        return {**cpu_seconds, "infer": passed_s - sum(cpu_seconds.values()) + cpu_seconds.get("infer", 0.0)}


def summed(timers: Iterable[StageTimer]) -> tuple[dict[str, float], dict[str, float]]:
    """Return the wall seconds and the CPU seconds of all timers, by stage."""
    seconds: dict[str, float] = defaultdict(float)
    cpu_seconds: dict[str, float] = defaultdict(float)
    for timer in timers:
        for stage, value in timer.seconds.items():
            seconds[stage] += value
        for stage, value in timer.cpu_seconds.items():
            cpu_seconds[stage] += value
    return dict(seconds), dict(cpu_seconds)
