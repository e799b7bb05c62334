"""What libraries write about broken files on their own: C's `stderr`, and Python's loggers without a handler.

libjpeg, libpng and libtiff describe broken files on C's `stderr`, and OpenCV gives no way to stop them. glibc documents
`stderr` as a variable that a program may set. Python, faulthandler and Ray write to descriptor 2, which stays as it is.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading


class Dropped:
    """A context in which nothing that C libraries write to `stderr` is shown. Any number of threads may enter.

    The variable is one for the process: a line of another thread's C library is dropped at that time too. On a C
    library other than glibc the context does nothing.
    """

    def __init__(self) -> None:
        self._lock, self._blocks = threading.Lock(), 0
        libc = ctypes.CDLL(None)
        self._stderr: ctypes.c_void_p | None = None
        if hasattr(libc, "gnu_get_libc_version"):  # In musl the variable is constant.
            self._stderr = ctypes.c_void_p.in_dll(libc, "stderr")
            self._shown = self._stderr.value
            libc.fopen.restype = ctypes.c_void_p
            self._null = libc.fopen(os.fsencode(os.devnull), b"we")
            os.register_at_fork(after_in_child=self._reset)

    def __enter__(self) -> None:
        with self._lock:
            if not self._blocks and self._stderr is not None:
                self._stderr.value = self._null
            self._blocks += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._blocks -= 1
            if not self._blocks and self._stderr is not None:
                self._stderr.value = self._shown

    def _reset(self) -> None:
        """Start anew in a forked child, in which the threads of the blocks do not run."""
        self._lock, self._blocks = threading.Lock(), 0
        if self._stderr is not None:
            self._stderr.value = self._shown


dropped = Dropped()


def leave_to_handlers(logger: str) -> None:
    """Let a library's logger write to handlers that the program has set, and to nothing else.

    Python writes the warnings of a logger without a handler to standard error.
    """
    logging.getLogger(logger).addHandler(logging.NullHandler())
