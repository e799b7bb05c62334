"""Images that kill: planted by a `sitecustomize` on PYTHONPATH, with no word of it in segray itself.

A crashing image is a good JPEG with a mark behind its end. In a process that has the `sitecustomize`, what the mark
says happens as soon as the image reaches the stage that it names.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

MARK = b"\nPOISON "

_SITECUSTOMIZE = """
import ctypes
import importlib.abc
import importlib.util
import os
import sys
import threading
import time

MARK = b"\\nPOISON "
here = threading.local()
hoard = []


def strike(stage):
    deed = here.deed if here.deed and here.deed[0] == stage else (stage, "nothing")
    if deed[1] == "segfault":
        ctypes.string_at(0)
    elif deed[1] == "hang":
        time.sleep(10_000)
    elif deed[1] == "hoard":
        while True:
            hoard.append(bytearray(os.urandom(2**20)) * 32)
            time.sleep(0.02)
    elif deed[1] == "leak":
        hoard.append(bytearray(b"x") * 200 * 2**20)
        time.sleep(3)
    elif deed[1] == "raise":
        raise RuntimeError("raised in " + stage)


def plant():
    from segray.execution.stage_timer import ImageTimer
    from segray.imaging import decode

    load, enter = decode.load, ImageTimer.enter

    def crashing_load(data, *more):
        mark = data.rfind(MARK)
        here.deed = tuple(data[mark + len(MARK):].decode().split()) if mark >= 0 else None
        strike("decode")
        return load(data, *more)

    def crashing_enter(timer, stage):
        enter(timer, stage)
        if stage == "read":
            here.deed = None
        elif stage != "decode":
            strike(stage)

    decode.load, ImageTimer.enter = crashing_load, crashing_enter


class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name != "segray.execution.labeller":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module

        def exec_module(module):
            load(module)
            plant()

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Finder())
"""


def environment(folder: Path) -> Mapping[str, str]:
    """The environment of a process, and of all Ray workers below it, in which crashing images do what they say."""
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(_SITECUSTOMIZE)
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


def make_crashing(path: Path, stage: str, deed: str) -> None:
    """Make a good image crash its process.

    stage: decode, infer or postprocess. deed: segfault, hang, hoard, leak (once) or raise.
    """
    path.write_bytes(path.read_bytes() + MARK + f"{stage} {deed}".encode())
