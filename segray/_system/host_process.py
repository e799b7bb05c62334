"""The process that segray runs in, which may be somebody else's: what a library changes in it is put back.

Knows environment, warnings filters, hooks and loggers; knows nothing of who labels or reads. Signals: signals.py.
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

# What importing OpenCV and Ray, and starting Ray, write there.
_VARIABLES = (
    "LD_LIBRARY_PATH",
    "PYTHONBREAKPOINT",
    "RAY_AUTH_MODE",
    "RAY_CLIENT_MODE",
    "RAY_USAGE_STATS_ENABLED",
    "RAY_num_workers_soft_limit",
)
_turn = threading.RLock()


def silence_videos() -> None:
    """Keep FFmpeg from telling of broken videos on stderr, from the first video on: their rows tell of them.

    It changes the environment for good, so only commands and workers call it, whose process is their own.
    """
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")


@contextmanager
def environment(names: Sequence[str]) -> Iterator[None]:
    """Put these environment variables back after the block."""
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def kept() -> Iterator[None]:
    """Put back after the block what importing or starting a library in it may change.

    Threads take turns: otherwise one would take for its own what another is about to undo.
    """
    with _turn:
        hook = sys.excepthook
        try:
            with environment(_VARIABLES), warnings.catch_warnings():
                yield
        finally:
            sys.excepthook = hook


@contextmanager
def without(module: str) -> Iterator[None]:
    """Let imports in the block find no such module, unless it is loaded already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]


@contextmanager
def at_work(logger: str, level: int) -> Iterator[None]:
    """Set a logger's level for the block; put back after it what a running library needs in the process until then."""
    log = logging.getLogger(logger)
    before, traced, files = log.level, faulthandler.is_enabled(), resource.getrlimit(resource.RLIMIT_NOFILE)
    log.setLevel(level)
    try:
        yield
    finally:
        log.setLevel(before)
        if not traced:
            faulthandler.disable()
        resource.setrlimit(resource.RLIMIT_NOFILE, files)
