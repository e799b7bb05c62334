"""The images that storage withheld, with the number of their tries, and the images that are left over.

Knows tries and the last error of each image. Knows nothing of tasks, of workers, or of the time of the next try.
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

    since_s: time of the first try; -inf for an image that an earlier run left over.
    reason: error of the last try.
    count: number of tries that count.
    """

    since_s: float
    reason: str = ""
    count: int = 0


class WithheldImages:
    """The withheld images of a run.

    left_over: the last error of each image that was withheld in `max_attempts` tries that count.
    """

    def __init__(self, max_attempts: int, host_patience_s: float, withheld_before: Iterable[Position] = ()) -> None:
        """Begin with the images that storage withheld to the end of an earlier run. Each of their tries counts.

        host_patience_s: seconds from an image's first try to its failure, if its host served files before.
        """
        self._max_attempts, self._host_patience_s = max_attempts, host_patience_s
        self._tries = {position: _Tries(-math.inf) for position in withheld_before}
        self.left_over: dict[Position, str] = {}

    def __contains__(self, position: Position) -> bool:
        return position in self._tries

    @property
    def positions(self) -> Iterable[Position]:
        """Return the images that are to be tried again."""
        return self._tries.keys()

    def withhold(
        self, unit: int, images: Sequence[WithheldImage], now_s: float, has_served_since: Callable[[float], bool]
    ) -> tuple[list[int], int, list[WithheldImage]]:
        """Count a try of images of a unit.

        An image that was tried too often is left over, or fails if storage serves other files.

        Args:
            unit: the unit of the images.
            images: the images that storage withheld.
            now_s: time of the try in seconds.
            has_served_since: returns whether storage served an image at or after a time in seconds.

        Returns:
            Indices of the images to try again, the largest number of tries among them, and the images that fail.
        """
        retry_indices, max_tries, failed = [], 0, []
        for image in images:
            tries = self._tries.setdefault((unit, image.index), _Tries(now_s))
            tries.reason = image.reason
            tries.count += bool(image.row_error) or tries.since_s == -math.inf or has_served_since(tries.since_s)
            is_last = tries.count >= self._max_attempts
            if image.host_served and now_s - tries.since_s < self._host_patience_s:
                is_last = False
            if is_last and image.row_error:
                del self._tries[unit, image.index]
                failed.append(image)
            elif is_last and not image.refused:
                self.leave_over([(unit, image.index)])
            else:
                retry_indices.append(image.index)
                max_tries = max(max_tries, tries.count)
        return retry_indices, max_tries, failed

    def add_untried(self, unit: int, indices: Iterable[int], reason: str, now_s: float) -> None:
        """Add images that were not tried, because storage withheld all images tried before them."""
        for index in indices:
            self._tries.setdefault((unit, index), _Tries(now_s, reason))

    def forget(self, unit: int, indices: Iterable[int]) -> None:
        """Remove images that have a row now."""
        if self._tries:
            for index in indices:
                self._tries.pop((unit, index), None)

    def leave_over(self, positions: Iterable[Position]) -> None:
        """Move withheld images to the images that are left over."""
        self.left_over |= {position: self._tries.pop(position).reason for position in positions}
