"""The images that a worker has in flight, and a log of them that outlives the worker's process.

Knows units, indices, stages and a small file on the node. Knows nothing of the work of a stage, or of the log's reader.
An image needs a few milliseconds, and the last progress may be a second old. So only the log names the images of a dead
process. Each stage is one plain `pwrite`: the kernel keeps the written record when a signal kills the process.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from pathlib import Path

from segray.tasks import InFlight, Progress

_STAGES = ("", "read", "decode", "wait", "infer", "postprocess")
_RECORD = struct.Struct("<qqq")  # unit, index, position in _STAGES; all zero for an empty slot


class InFlightTracker:
    """The images in flight by (unit, index), with the stage of each and the stage's start. Threads may share a tracker.

    log: file for the same records, which is emptied first; None for no file.
    """

    def __init__(self, log: Path | None = None) -> None:
        self._lock = threading.Lock()
        self._images: dict[tuple[int, int], tuple[str, float]] = {}
        self._finished = 0
        self._log = None if log is None else os.open(log, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self._slots: dict[tuple[int, int], int] = {}
        self._free_slots: list[int] = []

    def enter(self, image: tuple[int, int], stage: str) -> None:
        """Record that an image enters a stage now.

        image: unit and index.
        """
        with self._lock:
            self._images[image] = (stage, time.monotonic())
            if image not in self._slots:
                self._slots[image] = self._free_slots.pop() if self._free_slots else len(self._slots)
            self._write(self._slots[image], _RECORD.pack(*image, _STAGES.index(stage)))

    def leave(self, image: tuple[int, int], *, finished: bool = True) -> None:
        """Remove an image from those in flight.

        image: unit and index.
        finished: whether the image gets a row.
        """
        with self._lock:
            self._finished += finished
            if self._images.pop(image, None) is not None:
                self._free_slots.append(self._slots.pop(image))
                self._write(self._free_slots[-1], bytes(_RECORD.size))

    def progress(self) -> Progress:
        """Return the number of finished images, and the images in flight."""
        now_s = time.monotonic()
        with self._lock:
            images = tuple(
                InFlight(*image, stage, round(now_s - since_s, 3)) for image, (stage, since_s) in self._images.items()
            )
            return Progress(self._finished, images)

    def _write(self, slot: int, record: bytes) -> None:
        if self._log is not None:
            os.pwrite(self._log, record, slot * _RECORD.size)


def read_in_flight_log(log: Path) -> tuple[InFlight, ...]:
    """Return the images of a dead worker, and remove the worker's log.

    The seconds of the images are unknown and given as 0.0. Without a log the result is empty.
    """
    try:
        data = log.read_bytes()
    except FileNotFoundError:
        return ()
    log.unlink(missing_ok=True)
    complete_bytes = len(data) // _RECORD.size * _RECORD.size
    records = _RECORD.iter_unpack(data[:complete_bytes])
    return tuple(InFlight(unit, index, _STAGES[stage], 0.0) for unit, index, stage in records if stage)
