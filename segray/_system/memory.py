"""How much memory this process holds and keeps, an end to it when it is far too much, and shares of it for threads.

Knows /proc and malloc; knows nothing of why memory is used. On systems without /proc nothing is measured and nothing
ends.
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
    """Resident memory of this process; 0 where it cannot be told."""
    try:
        pages = int(_STATM.read_text().split()[1])
    except FileNotFoundError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes(pid: int | str = "self") -> int:
    """Most resident memory that a process has held so far; 0 if the kernel does not say. FileNotFoundError without it.

    Not getrusage: a child inherits its parent's peak there.
    """
    status = (Path("/proc") / str(pid) / "status").read_text()
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)


def limit_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that this process may use: the machine's, or less in a container (cgroup v2 or v1); 0 if unknown."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if _STATM.exists() else []
    for path in (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"):
        if path.is_file() and (said := path.read_text().strip()).isdigit():
            found.append(int(said))
    return min(found, default=0)


def return_freed() -> None:
    """From now on let this process give back what it frees. To be called before Arrow is loaded, in children too.

    Arrow's own allocator keeps what its threads free, some 100 MB after a few scans of a label set, and so does
    malloc the pieces that it did not map one by one. Where malloc is not glibc's it stays as it is.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    if set_option := getattr(ctypes.CDLL(None), "mallopt", None):
        set_option(_MMAP_THRESHOLD, 1 << 16)


def end_above(most_bytes: float) -> None:
    """From now on, kill this process when it holds more. SIGKILL: nothing in it may need memory to end.

    A thread looks ten times a second, so a library that fills memory without releasing the GIL is met late; the
    machine's own killer of the largest process remains behind it.
    """

    def look() -> None:
        while rss_bytes() <= most_bytes:
            time.sleep(_EVERY_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=look, name="memory", daemon=True).start()


class Budget:
    """So many bytes, lent to threads in the order they ask. It counts; it does not allocate."""

    def __init__(self, total_bytes: int) -> None:
        self._total = self._free = total_bytes
        self._returned = threading.Condition()
        # Held while waiting: whoever asks for much is not overtaken for ever by those who ask for little.
        self._turn = threading.Lock()

    @contextmanager
    def lend(self, asked_bytes: int) -> Iterator[Callable[[int], None]]:
        """Wait until so much is free; who asks for more than there is gets all of it, alone.

        Yields what gives back all but so many bytes before the end of the block.
        """
        share = min(asked_bytes, self._total)
        with self._turn, self._returned:
            self._returned.wait_for(lambda: self._free >= share)
            self._free -= share

        def keep(needed_bytes: int) -> None:
            nonlocal share
            with self._returned:
                self._free += share - min(share, needed_bytes)
                share = min(share, needed_bytes)
                self._returned.notify()

        try:
            yield keep
        finally:
            keep(0)
