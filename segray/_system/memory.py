"""The memory of this process: measurements, a limit that kills, and a budget of bytes that threads share.

Knows /proc and malloc. Knows nothing of why memory is used. Without /proc, functions measure nothing and kill nothing.
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
_CHECK_INTERVAL_S = 0.1
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h's M_TRIM_THRESHOLD and M_MMAP_THRESHOLD


def rss_bytes() -> int:
    """Return the resident memory of this process in bytes; 0 if the system does not give it."""
    try:
        pages = int(_STATM.read_text().split()[1])
    except FileNotFoundError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_bytes(pid: int | str = "self") -> int:
    """Return the peak resident memory of a process in bytes; 0 if the system does not give it.

    getrusage is no substitute: a child inherits the peak of its parent there. Raises FileNotFoundError if the process
    has ended.
    """
    status = (Path("/proc") / str(pid) / "status").read_text()
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)


def limit_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the memory in bytes that this process may use; 0 if the system does not give it.

    The limit is the machine's memory, or less in a container (cgroup v2 or v1).
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")] if _STATM.exists() else []
    for path in (cgroup / "memory.max", cgroup / "memory" / "memory.limit_in_bytes"):
        if path.is_file() and (limit := path.read_text().strip()).isdigit():
            limits.append(int(limit))
    return min(limits, default=0)


def release_freed_memory() -> None:
    """Let this process and its children return freed memory to the system. Call this function before Arrow is loaded.

    Arrow's own allocator keeps freed memory: about 100 MB after a few scans of a label set. glibc's malloc keeps every
    freed block that has no mapping of its own. A malloc other than glibc's stays as it is.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    if set_option := getattr(ctypes.CDLL(None), "mallopt", None):
        set_option(_MMAP_THRESHOLD, 1 << 16)


def return_large_blocks() -> None:
    """Let malloc return each freed block of 4 MiB and more to the system, from now on, and keep smaller ones.

    glibc raises its threshold for mappings to the size of each block that is freed, up to 32 MiB. Pictures of a few
    megapixels then come from the arenas of the threads, which keep them: 0.5 GB with seven threads. A threshold that is
    set stays as it is. To map such a block anew costs no measurable time beside decoding its content.

    Once a threshold is set, each thread's arena returns all but its last 128 KiB. The pictures of 640x480 in it are
    then mapped page by page for each image: 600 page faults, which took 1 ms. An arena keeps up to 4 MiB instead.
    """
    if set_option := getattr(ctypes.CDLL(None), "mallopt", None):
        set_option(_MMAP_THRESHOLD, 4 << 20)
        set_option(_TRIM_THRESHOLD, 4 << 20)


def kill_above(most_bytes: float) -> None:
    """Kill this process as soon as it holds more than `most_bytes`.

    The signal is SIGKILL, because an orderly end could need more memory. A thread measures ten times a second. A
    library that fills memory while it holds the GIL is killed late. The system's own out-of-memory killer stays active.
    """

    def watch() -> None:
        while rss_bytes() <= most_bytes:
            time.sleep(_CHECK_INTERVAL_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="memory", daemon=True).start()


class MemoryBudget:
    """A number of bytes that threads reserve in the order of their requests. A budget counts, but allocates nothing."""

    def __init__(self, total_bytes: int) -> None:
        self._total = self._free = total_bytes
        self._bytes_returned = threading.Condition()
        # A waiting thread holds this lock, so that small requests never overtake a large one.
        self._queue = threading.Lock()

    @property
    def free_bytes(self) -> int:
        """Return the bytes that nobody has reserved."""
        return self._free

    @contextmanager
    def reserve(self, asked_bytes: int) -> Iterator[Callable[[int], None]]:
        """Reserve bytes for the block. Wait until the bytes are free.

        A request for more than the whole budget gets the whole budget, alone.

        Yields:
            A function that gives back all but the given number of bytes before the end of the block.
        """
        reserved_bytes = min(asked_bytes, self._total)
        with self._queue, self._bytes_returned:
            self._bytes_returned.wait_for(lambda: self._free >= reserved_bytes)
            self._free -= reserved_bytes

        def shrink_to(needed_bytes: int) -> None:
            nonlocal reserved_bytes
            with self._bytes_returned:
                self._free += reserved_bytes - min(reserved_bytes, needed_bytes)
                reserved_bytes = min(reserved_bytes, needed_bytes)
                self._bytes_returned.notify()

        try:
            yield shrink_to
        finally:
            shrink_to(0)
