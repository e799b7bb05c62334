"""Which images a worker has in flight, and a trail of them that outlives its process.

Knows places (unit, index), stages and a small file on the node; knows nothing of what is done to an image, or by whom
the trail is read. A process that dies of an image leaves the place of every image it was at: the last pulse may be a
second old, and an image needs a few milliseconds. The trail is written with plain `pwrite`, one record a stage: what
has been written is the kernel's and survives any signal.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from pathlib import Path

from segray.tasks import InFlight, Progress

_STAGES = ("", "read", "decode", "wait", "infer", "postprocess")
_RECORD = struct.Struct("<qqq")  # unit, index, position in _STAGES; all zero when nothing is here


class Watch:
    """Which images are in flight, in which stage, since when; safe from any thread.

    trail: a file to keep the same in, or None. The file is made anew.
    """

    def __init__(self, trail: Path | None = None) -> None:
        self._lock = threading.Lock()
        self._here: dict[tuple[int, int], tuple[str, float]] = {}
        self._finished = 0
        self._file = None if trail is None else os.open(trail, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self._slots: dict[tuple[int, int], int] = {}
        self._free: list[int] = []

    def enter(self, place: tuple[int, int], stage: str) -> None:
        with self._lock:
            self._here[place] = (stage, time.monotonic())
            if place not in self._slots:
                self._slots[place] = self._free.pop() if self._free else len(self._slots)
            self._mark(self._slots[place], _RECORD.pack(*place, _STAGES.index(stage)))

    def leave(self, place: tuple[int, int], *, finished: bool = True) -> None:
        """Take an image out of flight. finished: whether it gets a row."""
        with self._lock:
            self._finished += finished
            if self._here.pop(place, None) is not None:
                self._free.append(self._slots.pop(place))
                self._mark(self._free[-1], bytes(_RECORD.size))

    def progress(self) -> Progress:
        now = time.monotonic()
        with self._lock:
            here = tuple(InFlight(*place, stage, round(now - since, 3)) for place, (stage, since) in self._here.items())
            return Progress(self._finished, here)

    def _mark(self, slot: int, record: bytes) -> None:
        if self._file is not None:
            os.pwrite(self._file, record, slot * _RECORD.size)


def follow(trail: Path) -> tuple[InFlight, ...]:
    """Where a dead worker was, in seconds unknown (0.0); nothing when it left no trail. Removes the trail."""
    try:
        data = trail.read_bytes()
    except FileNotFoundError:
        return ()
    trail.unlink(missing_ok=True)
    records = _RECORD.iter_unpack(data[: len(data) // _RECORD.size * _RECORD.size])
    return tuple(InFlight(unit, index, _STAGES[stage], 0.0) for unit, index, stage in records if stage)
