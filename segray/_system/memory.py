"""The memory of this process: measures, a limit that kills, and a budget of bytes that threads share.

Knows /proc and malloc. Knows nothing of why memory is used. Without /proc nothing is measured and nothing is killed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_STATM = Path("/proc/self/statm")
_EVERY_S = 0.1
_MMAP_THRESHOLD = -3  # malloc.h's M_MMAP_THRESHOLD


def rss_bytes() -> int:
    """Return the resident memory of this process in bytes; 0 where it is unknown."""
    try:
        pages = int(_STATM.read_text().split()[1])
    except FileNotFoundError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes(pid: int | str = "self") -> int:
    """Return the most resident memory in bytes that a process has held so far; 0 where it is unknown.

    getrusage is no substitute: there a child inherits its parent's peak. Raises FileNotFoundError when the process is
    gone.
    """
    status = (Path("/proc") / str(pid) / "status").read_text()
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)


def limit_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the memory in bytes that this process may use; 0 where it is unknown.

    The memory is the machine's, or less in a container (cgroup v2 or v1).
    """
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if _STATM.exists() else []
    for path in (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"):
        if path.is_file() and (said := path.read_text().strip()).isdigit():
            found.append(int(said))
    return min(found, default=0)


def release_freed_memory() -> None:
    """Let this process and its children return freed memory to the system. Call it before Arrow is loaded.

    Arrow's own allocator keeps freed memory: about 100 MB after a few scans of a label set. glibc's malloc does the
    same with each block that is not mapped alone. Another malloc stays as it is.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    if set_option := getattr(ctypes.CDLL(None), "mallopt", None):
        set_option(_MMAP_THRESHOLD, 1 << 16)


def kill_above(most_bytes: float) -> None:
    """Kill this process as soon as it holds more than `most_bytes`.

    The signal is SIGKILL, so no end of the process needs memory. A thread looks ten times a second. A library that
    fills memory while it holds the GIL is seen late. The system's own out-of-memory killer remains.
    """

    def look() -> None:
        while rss_bytes() <= most_bytes:
            time.sleep(_EVERY_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=look, name="memory", daemon=True).start()


class MemoryBudget:
    """A number of bytes that threads reserve in the order in which they ask. It counts and does not allocate."""

    def __init__(self, total_bytes: int) -> None:
        self._total = self._free = total_bytes
        self._returned = threading.Condition()
        # A waiting thread holds the turn, so that small requests never overtake a large one.
        self._turn = threading.Lock()

    @property
    def free_bytes(self) -> int:
        """Return the bytes that nobody has reserved."""
        return self._free

    @contextmanager
    def reserve(self, asked_bytes: int) -> Iterator[Callable[[int], None]]:
        """Reserve bytes for the block; wait until they are free.

        A request for more than the whole budget gets the whole budget, alone.

        Yields:
            A function that gives back all but the given number of bytes before the end of the block.
        """
        share = min(asked_bytes, self._total)
        with self._turn, self._returned:
            self._returned.wait_for(lambda: self._free >= share)
            self._free -= share

        def shrink_to(needed_bytes: int) -> None:
            nonlocal share
            with self._returned:
                self._free += share - min(share, needed_bytes)
                share = min(share, needed_bytes)
                self._returned.notify()

        try:
            yield shrink_to
        finally:
            shrink_to(0)
