"""The number of images in each worker's next task: guided self-scheduling by measured speed.

Knows how fast workers are and how many images they hold. Knows nothing of tasks, queues or deaths.

All workers should end together. A worker's fair share is the number of images that it finishes until that end. A task
is a third of the fair share. Tasks therefore shrink near the end, and the next task corrects a wrong guess. Sources:
Polychronopoulos and Kuck 1987; weighted by speed: Hummel and others 1996. A task lasts a second at least and keeps all
threads of a worker busy. A new worker first gets a few images. At the end a slow worker gets no task if much faster
workers finish all images sooner.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

_SHARE_PER_TASK, _MIN_TASK_S = 1 / 3, 1.0
# The first task of a worker has at most _FIRST_IMAGES images, and this part of an equal share of the waiting images.
_FIRST_IMAGES, _FIRST_SHARE = 8, 1 / 32
_SPEED_MEMORY_S = 30.0
# Images of a slow pool differ: one may take a few times the mean.
_MUCH_FASTER, _FEW_IMAGES = 3.0, 4.0


@dataclass
class Throughput:
    """The speed of one worker, and the images that it holds.

    seen_s: time of the last measurement.
    assigned: number of images assigned so far.
    finished: number of these that are finished.
    in_flight: largest number of images in flight at once.
    """

    seen_s: float
    assigned: int = 0
    finished: int = 0
    in_flight: int = 0
    _images: float = 0.0
    _seconds: float = 0.0

    def assign(self, images: int, now_s: float) -> None:
        """Count images that are assigned to the worker."""
        if not self.pending:
            self.seen_s = now_s  # Idle time is no part of the speed.
        self.assigned += images

    def take_back(self, images: int) -> None:
        """Subtract images that are no longer assigned to the worker."""
        self.assigned -= images
        self.finished = min(self.finished, self.assigned)

    def update(self, finished: int, now_s: float) -> None:
        """Update the speed.

        finished: number of finished images of all assigned ones.
        now_s: present time in seconds.
        """
        passed_s = now_s - self.seen_s
        weight = math.exp(-passed_s / _SPEED_MEMORY_S)
        self._images = weight * self._images + max(0, finished - self.finished)
        self._seconds = weight * self._seconds + passed_s
        self.seen_s, self.finished = now_s, max(self.finished, finished)

    @property
    def pending(self) -> int:
        """Return the number of images that are assigned and not finished."""
        return self.assigned - self.finished

    @property
    def images_per_s(self) -> float | None:
        """Return the recent speed in images/s; None before the first finished image."""
        if not self._seconds:
            return None
        return self._images / self._seconds or None


class ChunkSizer:
    """The division of the remaining images among the workers at one moment.

    throughputs: throughput by worker.
    waiting: number of images that no worker has.
    least_images: smallest number of images that is worth a task.
    """

    def __init__(self, throughputs: Mapping[str, Throughput], waiting: int, least_images: int = 1) -> None:
        self._throughputs, self.waiting, self._least_images = throughputs, waiting, least_images
        speeds = {name: throughput.images_per_s for name, throughput in throughputs.items()}
        measured = [speed for speed in speeds.values() if speed is not None]
        mean = sum(measured) / len(measured) if measured else 1.0
        self._speeds = {name: mean if speed is None else speed for name, speed in speeds.items()}
        self._total_speed = sum(self._speeds.values())
        self._remaining = waiting + sum(throughput.pending for throughput in throughputs.values())

    def images_for(self, worker: str, max_images: int) -> int:
        """Return how many of the next `max_images` images the worker should get; 0 for none."""
        throughput, speed = self._throughputs[worker], self._speeds[worker]
        if throughput.images_per_s is None:
            first = min(_FIRST_IMAGES, self.waiting * _FIRST_SHARE / len(self._throughputs))
            return 0 if throughput.pending else min(max_images, max(self._least_images, round(first)))
        least = min(max_images, max(self._least_images, _MIN_TASK_S * speed, throughput.in_flight))
        fair_share = speed * self._remaining / self._total_speed - throughput.pending
        if (throughput.pending and fair_share < least) or self._others_finish_sooner(worker):
            return 0
        return min(max_images, round(max(least, fair_share * _SHARE_PER_TASK)))

    def _others_finish_sooner(self, worker: str) -> bool:
        """Return whether much faster workers finish all remaining images before this worker finishes a few."""
        latency_s = self._latency_s(worker)
        faster = [name for name in self._throughputs if self._latency_s(name) * _MUCH_FASTER < latency_s]
        faster_images_per_s = sum(self._speeds[name] for name in faster)
        return self._remaining < faster_images_per_s * latency_s * _FEW_IMAGES

    def _latency_s(self, worker: str) -> float:
        """Return the seconds that one image takes: images in flight over images/s (Little's law)."""
        return self._throughputs[worker].in_flight / self._speeds[worker]
