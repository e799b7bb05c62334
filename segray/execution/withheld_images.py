"""The images that storage withheld: how often each was tried, and which are left over.

Knows tries and the last error of each image; knows nothing of tasks, workers or when an image is tried again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from segray.tasks import WithheldImage

Position = tuple[int, int]  # unit, index in the unit


@dataclass
class _Tries:
    """The tries of one image.

    since_s: time of the first try.
    reason: error of the last try.
    count: number of tries that count.
    """

    since_s: float
    reason: str = ""
    count: int = 0


class WithheldImages:
    """The withheld images of a run.

    left_over: images that were withheld in `max_attempts` tries that count; the last error of each.
    """

    def __init__(self, max_attempts: int, before: Iterable[Position] = ()) -> None:
        """Begin with images that storage withheld from an earlier run to the end; each of their tries counts."""
        self._max_attempts = max_attempts
        self._tries = {at: _Tries(-math.inf) for at in before}
        self.left_over: dict[Position, str] = {}

    def __contains__(self, at: Position) -> bool:
        return at in self._tries

    @property
    def positions(self) -> Iterable[Position]:
        """Return the images that are to be tried again."""
        return self._tries.keys()

    def withhold(
        self, unit: int, images: Sequence[WithheldImage], now_s: float, has_served_since: Callable[[float], bool]
    ) -> tuple[list[int], int]:
        """Count a try of images of a unit.

        has_served_since: whether storage served an image at or after a time in seconds.
        Returns: indices of the images to try again, and the most tries of one of them. The others are left over.
        """
        again, most = [], 0
        for image in images:
            tries = self._tries.setdefault((unit, image.index), _Tries(now_s))
            tries.reason = image.reason
            tries.count += tries.since_s == -math.inf or has_served_since(tries.since_s)
            if tries.count >= self._max_attempts:
                self.leave_over([(unit, image.index)])
            else:
                again.append(image.index)
                most = max(most, tries.count)
        return again, most

    def add_untried(self, unit: int, indices: Iterable[int], reason: str, now_s: float) -> None:
        """Remember images that were not tried, because storage withheld all before them."""
        for index in indices:
            self._tries.setdefault((unit, index), _Tries(now_s, reason))

    def forget(self, unit: int, indices: Iterable[int]) -> None:
        """Forget images that have a row now."""
        if self._tries:
            for index in indices:
                self._tries.pop((unit, index), None)

    def leave_over(self, images: Iterable[Position]) -> None:
        """Give withheld images up."""
        self.left_over |= {at: self._tries.pop(at).reason for at in images}
