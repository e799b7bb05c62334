"""The number of images in each worker's next task: guided self-scheduling by measured speed.

Knows how fast workers are and how many images they hold. Knows nothing of tasks, queues or deaths.

All workers should end together. A worker's fair share is the number of images that it finishes until then. A task is a
third of the fair share. Tasks therefore shrink near the end, and the next task corrects a wrong guess. Sources:
Polychronopoulos and Kuck 1987; weighted by speed: Hummel and others 1996. A task lasts a second at least and keeps all
threads of a worker busy. A new worker first gets a few images. At the end a slow worker gets nothing that much faster
workers finish sooner.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

_AT_ONCE, _LEAST_S = 1 / 3, 1.0
_TRIED_WITH, _TRIED_WITH_SHARE = 8, 1 / 32
_REMEMBERED_S = 30.0
# Images of a slow pool differ: one may take a few times the mean.
_MUCH_QUICKER, _FEW_IMAGES = 3.0, 4.0


@dataclass
class Throughput:
    """The speed of one worker, and the images that it holds.

    seen_s: time of the last measurement.
    given: images assigned so far.
    done: images of these that are finished.
    in_flight: largest number of images in flight at once.
    """

    seen_s: float
    given: int = 0
    done: int = 0
    in_flight: int = 0
    _images: float = 0.0
    _seconds: float = 0.0

    def takes(self, images: int, now_s: float) -> None:
        """Count images that the worker is given."""
        if not self.left:
            self.seen_s = now_s  # Idle time is no part of the speed.
        self.given += images

    def returns(self, images: int) -> None:
        """Subtract images that are taken from the worker again."""
        self.given -= images
        self.done = min(self.done, self.given)

    def has_done(self, images: int, now_s: float) -> None:
        """Update the speed.

        images: finished images of all that the worker was given.
        now_s: present time in seconds.
        """
        passed_s = now_s - self.seen_s
        kept = math.exp(-passed_s / _REMEMBERED_S)
        self._images = kept * self._images + max(0, images - self.done)
        self._seconds = kept * self._seconds + passed_s
        self.seen_s, self.done = now_s, max(self.done, images)

    @property
    def left(self) -> int:
        """Return the number of images that are given and not finished."""
        return self.given - self.done

    @property
    def images_per_s(self) -> float | None:
        """Return the recent speed in images/s; None before the first finished image."""
        return self._images / self._seconds or None if self._seconds else None


class ChunkSizer:
    """The division of the remaining images among the workers at one moment.

    paces: throughput by worker.
    waiting: images that no worker has.
    least_images: smallest number of images that is worth a task.
    """

    def __init__(self, paces: Mapping[str, Throughput], waiting: int, least_images: int = 1) -> None:
        self._paces, self.waiting, self._least_images = paces, waiting, least_images
        known = [speed for pace in paces.values() if (speed := pace.images_per_s) is not None]
        usual = sum(known) / len(known) if known else 1.0
        self._speeds = {name: usual if pace.images_per_s is None else pace.images_per_s for name, pace in paces.items()}
        self._all_left = waiting + sum(pace.left for pace in paces.values())
        self._speed = sum(self._speeds.values())

    def of(self, worker: str, unit: int) -> int:
        """Return how many of the next `unit` images the worker should take; 0 for none."""
        pace, speed = self._paces[worker], self._speeds[worker]
        if pace.images_per_s is None:
            few = min(_TRIED_WITH, self.waiting * _TRIED_WITH_SHARE / len(self._paces))
            return 0 if pace.left else min(unit, max(self._least_images, round(few)))
        least = min(unit, max(self._least_images, _LEAST_S * speed, pace.in_flight))
        fair = speed * self._all_left / self._speed - pace.left
        if (pace.left and fair < least) or self._better_without(worker):
            return 0
        return min(unit, round(max(least, fair * _AT_ONCE)))

    def _better_without(self, worker: str) -> bool:
        """Return whether much faster workers finish all that is left before this worker finishes a few images."""
        mine_s = self._latency_s(worker)
        quicker = sum(self._speeds[name] for name in self._paces if self._latency_s(name) * _MUCH_QUICKER < mine_s)
        return self._all_left < quicker * mine_s * _FEW_IMAGES

    def _latency_s(self, worker: str) -> float:
        """Return the seconds that one image takes: images in flight over images/s (Little's law)."""
        return self._paces[worker].in_flight / self._speeds[worker]
