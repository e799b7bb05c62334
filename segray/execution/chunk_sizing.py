"""How much of what is left each worker should take on: guided self-scheduling by measured speed.

Knows how fast workers are and how much they hold; knows nothing of tasks, queues or deaths.

All should end together. What a worker does until then is its fair share; it takes a third of that at a time, so that
pieces shrink near the end and a wrong guess is mended by the next (Polychronopoulos and Kuck 1987; weighted by speed:
Hummel and others 1996). A piece lasts a second at least and keeps all of a worker's threads busy. A newcomer is tried
with a few images. At the very end a slow worker gets nothing that much quicker ones finish sooner.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

_AT_ONCE, _LEAST_S = 1 / 3, 1.0
_TRIED_WITH, _TRIED_WITH_SHARE = 8, 1 / 32
_REMEMBERED_S = 30.0
# Images of a slow pool differ: one may take a few times as long as they do on average.
_MUCH_QUICKER, _FEW_IMAGES = 3.0, 4.0


@dataclass
class Throughput:
    """Of one worker. seen_s: until when it was watched. given: images so far; done: of these, finished ones.

    in_flight: most images that it had at work at once.
    """

    seen_s: float
    given: int = 0
    done: int = 0
    in_flight: int = 0
    _images: float = 0.0
    _seconds: float = 0.0

    def takes(self, images: int, now_s: float) -> None:
        """It is given images."""
        if not self.left:
            self.seen_s = now_s  # It had nothing to do until now.
        self.given += images

    def returns(self, images: int) -> None:
        """So many are taken from it again."""
        self.given -= images
        self.done = min(self.done, self.given)

    def has_done(self, images: int, now_s: float) -> None:
        """So many of all that it was given are finished by now."""
        passed_s = now_s - self.seen_s
        kept = math.exp(-passed_s / _REMEMBERED_S)
        self._images = kept * self._images + max(0, images - self.done)
        self._seconds = kept * self._seconds + passed_s
        self.seen_s, self.done = now_s, max(self.done, images)

    @property
    def left(self) -> int:
        return self.given - self.done

    @property
    def images_per_s(self) -> float | None:
        """None before it has finished anything, or when that was too long ago."""
        return self._images / self._seconds or None if self._seconds else None


class ChunkSizer:
    """The division of what is left among the workers at one moment.

    waiting: images that nobody was given yet. least_images: the fewest that are worth a task.
    """

    def __init__(self, paces: Mapping[str, Throughput], waiting: int, least_images: int = 1) -> None:
        self._paces, self.waiting, self._least_images = paces, waiting, least_images
        known = [speed for pace in paces.values() if (speed := pace.images_per_s) is not None]
        usual = sum(known) / len(known) if known else 1.0
        self._speeds = {name: usual if pace.images_per_s is None else pace.images_per_s for name, pace in paces.items()}
        self._all_left = waiting + sum(pace.left for pace in paces.values())
        self._speed = sum(self._speeds.values())

    def of(self, worker: str, unit: int) -> int:
        """How many of the next `unit` images the worker should take on; 0 for none."""
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
        """Whether much quicker workers do all that is left sooner than this one does a few images."""
        mine_s = self._latency_s(worker)
        quicker = sum(self._speeds[name] for name in self._paces if self._latency_s(name) * _MUCH_QUICKER < mine_s)
        return self._all_left < quicker * mine_s * _FEW_IMAGES

    def _latency_s(self, worker: str) -> float:
        """How long one image takes: what is in flight over what comes out (Little)."""
        return self._paces[worker].in_flight / self._speeds[worker]
