"""The detection of a stalled run, from the failures since the last labelled image and the time without a busy worker.

Knows kinds of failures, their counts and times. Knows nothing of tasks, images or workers.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Halt:
    """The reason why the run halts.

    what: the kind of fault.
    found: the state that was found.
    refused: whether storage refuses access.
    """

    what: str
    found: str
    refused: bool = False


FailureKind = Literal["withheld", "refused", "stuck", "died", "lasting"]


class StallWatch:
    """A watch over the failures since the last labelled image.

    stall_timeout_s: longest time without a labelled image while tasks fail, and without a busy worker.
    """

    def __init__(self, max_attempts: int, stall_timeout_s: float) -> None:
        self._stall_timeout_s, self._max_attempts = stall_timeout_s, max_attempts
        # One image may kill several workers before its quarantine, and a new worker may end a hang.
        self._least_failures = {
            "withheld": 1,
            "refused": max_attempts,
            "stuck": max_attempts,
            "died": 2 * max_attempts + 1,
            "lasting": max_attempts,
        }
        self._failures: Counter[str] = Counter()
        self._last_failure = ""
        self._last_success_s: float | None = None
        self._without_success_since_s: float | None = None
        self._last_busy_s: float | None = None

    def assigned(self, now_s: float) -> None:
        """Record that a worker got a task."""
        self._last_busy_s = now_s
        if self._without_success_since_s is None:
            self._without_success_since_s = now_s

    def ticked(self, now_s: float, *, busy: bool) -> None:
        """Record whether a worker is busy."""
        if busy or self._last_busy_s is None:
            self._last_busy_s = now_s

    def succeeded(self, now_s: float) -> None:
        """Record that an image was labelled."""
        self._last_success_s = self._without_success_since_s = now_s
        self._failures.clear()

    def failed(self, kind: FailureKind, reason: str) -> None:
        """Record a failure."""
        self._failures[kind] += 1
        self._last_failure = reason

    def has_served_since(self, since_s: float) -> bool:
        """Return whether an image was labelled at or after a time in seconds."""
        return self._last_success_s is not None and self._last_success_s >= since_s

    def lasting_fault(self) -> Halt | None:
        """Return a reason to halt when a fault that waiting does not repair came `max_attempts` times; None if not."""
        if self._failures["lasting"] < self._max_attempts:
            return None
        return Halt("storage failed repeatedly", self._last_failure)

    def refusal(self) -> Halt | None:
        """Return a reason to halt when storage refused everything in `max_attempts` tasks; None if not."""
        if self._failures["refused"] < self._max_attempts:
            return None
        return Halt("Storage refuses access", self._last_failure, refused=True)

    def missing_workers(self, now_s: float) -> Halt | None:
        """Return a reason to halt when no worker was busy for too long; None if not. Call it while tasks wait."""
        if self._last_busy_s is None or now_s - self._last_busy_s <= self._stall_timeout_s:
            return None
        return Halt("no worker joins", f"no worker for {now_s - self._last_busy_s:.0f} s")

    def stall(self, now_s: float) -> Halt | None:
        """Return a reason to halt when no image was labelled for too long while tasks failed; None if not."""
        since_s = self._without_success_since_s
        if since_s is None or now_s - since_s <= self._stall_timeout_s:
            return None
        if not any(self._failures[kind] >= least for kind, least in self._least_failures.items()):
            return None
        count = self._failures.total()
        tasks = "1 task" if count == 1 else f"{count} tasks"
        found = f"no image for {now_s - since_s:.0f} s, while {tasks} failed, hung or died"
        return Halt("no image gets labelled", f"{found}; the last: {self._last_failure}")
