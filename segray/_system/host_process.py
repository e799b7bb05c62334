"""The process that segray runs in, which a user's program may own: segray undoes what libraries change.

Knows environment variables, warnings filters, hooks and loggers. Knows nothing of who labels or reads. signals.py does
the same for signals.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import resource
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# Variables that the import of OpenCV or Ray, or the start of Ray, writes.
_VARIABLES = (
    "LD_LIBRARY_PATH",
    "PYTHONBREAKPOINT",
    "RAY_AUTH_MODE",
    "RAY_CLIENT_MODE",
    "RAY_USAGE_STATS_ENABLED",
    "RAY_num_workers_soft_limit",
)
_one_at_a_time = threading.RLock()


def silence_videos() -> None:
    """Keep FFmpeg from writing about broken videos to stderr. The rows of the frames name the error.

    The change of the environment is permanent. Only commands and workers, which own their process, call this function.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


@contextmanager
def environment(names: Sequence[str]) -> Iterator[None]:
    """Restore these environment variables after the block."""
    values_before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in values_before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def import_changes_undone() -> Iterator[None]:
    """Undo after the block what the import or the start of a library in the block changes.

    Restored are environment variables, warnings filters and sys.excepthook. Threads take turns. Otherwise a thread
    could save a value as the original that another thread is about to undo.
    """
    with _one_at_a_time:
        hook = sys.excepthook
        try:
            with environment(_VARIABLES), warnings.catch_warnings():
                yield
        finally:
            sys.excepthook = hook


@contextmanager
def import_blocked(module: str) -> Iterator[None]:
    """Let imports of a module fail in the block, unless the module is loaded already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


@contextmanager
def runtime_changes_undone(logger: str, level: int) -> Iterator[None]:
    """Set a logger's level for the block, and undo after the block what a running library changes.

    Restored are the level, faulthandler, and the limit of open files.
    """
    log = logging.getLogger(logger)
    level_before, faulthandler_was_on = log.level, faulthandler.is_enabled()
    open_files_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(level_before)
        if not faulthandler_was_on:
            faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_NOFILE, open_files_limit)
