"""Whether a run still gets anywhere: what failed since an image was last labelled, and since when no worker works.

Knows kinds of failures, their counts and times; knows nothing of tasks, images or workers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Halt:
    """The reason why nothing more is assigned: the kind of fault, and what was found."""

    what: str
    found: str


Kind = Literal["withheld", "stuck", "died", "lasting"]


class StallWatch:
    """The failures since an image was last labelled.

    stall_timeout_s: longest time without a labelled image, while tasks fail, and without a busy worker.
    """

    def __init__(self, max_attempts: int, stall_timeout_s: float) -> None:
        self._stall_timeout_s, self._max_attempts = stall_timeout_s, max_attempts
        # One image may kill several workers before its quarantine, and a new worker may end a hang.
        self._least = {"withheld": 1, "stuck": max_attempts, "died": 2 * max_attempts + 1, "lasting": max_attempts}
        self._failures: Counter[str] = Counter()
        self._last_failure = ""
        self._success_s: float | None = None
        self._begin_s: float | None = None  # of the time in which nothing was labelled
        self._busy_s: float | None = None

    def assigned(self, now_s: float) -> None:
        """Note that a worker was given a task."""
        self._busy_s = now_s
        self._begin_s = now_s if self._begin_s is None else self._begin_s

    def ticked(self, now_s: float, *, busy: bool) -> None:
        """Note whether a worker is busy."""
        self._busy_s = now_s if busy or self._busy_s is None else self._busy_s

    def succeeded(self, now_s: float) -> None:
        """Note that an image was labelled."""
        self._success_s = self._begin_s = now_s
        self._failures.clear()

    def failed(self, kind: Kind, reason: str) -> None:
        """Note a failure."""
        self._failures[kind] += 1
        self._last_failure = reason

    def has_served_since(self, since_s: float) -> bool:
        """Return whether an image was labelled at or after a time."""
        return self._success_s is not None and self._success_s >= since_s

    def lasting_fault(self) -> Halt | None:
        """Return a reason to halt at once: a fault that waiting does not mend came again and again."""
        if self._failures["lasting"] < self._max_attempts:
            return None
        return Halt("storage failed again and again", self._last_failure)

    def missing_workers(self, now_s: float) -> Halt | None:
        """Return a reason to halt: there is work, and no worker has done any for too long."""
        if self._busy_s is None or now_s - self._busy_s <= self._stall_timeout_s:
            return None
        return Halt("no worker comes", f"no worker for {now_s - self._busy_s:.0f} s")

    def stall(self, now_s: float) -> Halt | None:
        """Return a reason to halt: nothing was labelled for too long, though tasks failed or workers were replaced."""
        if self._begin_s is None or now_s - self._begin_s <= self._stall_timeout_s:
            return None
        if not any(self._failures[kind] >= least for kind, least in self._least.items()):
            return None
        count = self._failures.total()
        tasks = "1 task" if count == 1 else f"{count} tasks"
        found = f"no image for {now_s - self._begin_s:.0f} s, while {tasks} failed, hung or died"
        return Halt("nothing gets done", f"{found}; the last: {self._last_failure}")
