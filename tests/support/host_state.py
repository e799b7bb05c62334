"""What a program can see of its own process, before and after it calls a library.

`snapshot()` runs in programs that tests start; `changes()` says what is no longer as it was.
"""

from __future__ import annotations

import ctypes
import faulthandler
import locale
import logging
import os
import resource
import signal
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

_PR_GET_CHILD_SUBREAPER = 37


def snapshot() -> dict[str, Any]:
    """The state by name. A logger that is not known yet has no entry."""
    mask = os.umask(0)
    os.umask(mask)
    cv2, image, files = (sys.modules.get(name) for name in ("cv2", "PIL.Image", "PIL.ImageFile"))
    subreaper = ctypes.c_int()
    ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(subreaper), 0, 0, 0)
    state: dict[str, Any] = {f"handler of {each}": signal.getsignal(each) for each in signal.valid_signals()}
    state |= {f"variable {name}": value for name, value in os.environ.items()}
    state |= {f"logger {name}": _of_logger(logger) for name, logger in _loggers().items()}
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return state | {
        "handled signals": (status["SigCgt"], status["SigIgn"]),  # as the system has it, whatever Python believes
        "blocked signals": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "wake-up descriptor": _wake_up_descriptor(),
        "warnings filters": list(warnings.filters),
        "logging disabled": logging.root.manager.disable,
        "class of loggers": logging.getLoggerClass(),
        "threads": sorted(each.name for each in threading.enumerate() if not each.daemon),
        "threads of OpenCV": cv2 and cv2.getNumThreads(),
        "log level of OpenCV": cv2 and cv2.utils.logging.getLogLevel(),
        "limit of Pillow": image and image.MAX_IMAGE_PIXELS,
        "truncated images": files and files.LOAD_TRUNCATED_IMAGES,
        "folder": Path.cwd(),
        "umask": mask,
        "locale": locale.setlocale(locale.LC_ALL),
        "telemetry": sys.modules.get("openvino_telemetry", "not loaded"),
        "hooks": (sys.excepthook, threading.excepthook, sys.unraisablehook, sys.displayhook, sys.breakpointhook),
        "streams": (sys.stdin, sys.stdout, sys.stderr),
        "fault handler": faulthandler.is_enabled(),
        "descriptors allowed": resource.getrlimit(resource.RLIMIT_NOFILE),
        "recursion": sys.getrecursionlimit(),
        "subreaper": subreaper.value,
    }


def changes(before: dict[str, Any], after: dict[str, Any], importing: frozenset[str] = frozenset()) -> list[str]:
    """What differs, as lines. importing: entries that begin to mean something when a library is imported first.

    Loggers that came are the libraries' own, and say nothing of those that the program had.
    """
    found = []
    for name in sorted(before.keys() | after.keys()):
        if name not in before and name.startswith("logger "):
            continue
        if name in importing and before.get(name) is None:
            continue
        if before.get(name) != after.get(name):
            found.append(f"{name}: {before.get(name)!r} -> {after.get(name)!r}")
    return found


def _wake_up_descriptor() -> int:
    """-1 in other threads than the main one, which have none."""
    if threading.current_thread() is not threading.main_thread():
        return -1
    found = signal.set_wakeup_fd(-1)
    if found != -1:
        signal.set_wakeup_fd(found)
    return found


def _loggers() -> dict[str, logging.Logger]:
    known = logging.root.manager.loggerDict.items()
    return {"root": logging.root, **{name: each for name, each in known if isinstance(each, logging.Logger)}}


def _of_logger(logger: logging.Logger) -> tuple[Any, ...]:
    return logger.level, logger.propagate, logger.disabled, list(logger.handlers), list(logger.filters)
