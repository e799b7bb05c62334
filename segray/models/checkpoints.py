"""Checkpoints: files of PyTorch with weights and no graph, and the way to a model from each kind.

Looks at the bytes of a checkpoint's pickle. Never loads the pickle, which could run any code.
"""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from pathlib import Path

from segray.models import zoo

SUFFIXES = (".pth", ".pt")
# Bytes of the pickle in which the names of its classes are looked for.
_PICKLE_BYTES = 2**20


def is_checkpoint(path: Path) -> bool:
    """Return whether the path is a file with the suffix of a checkpoint."""
    return path.suffix in SUFFIXES and path.is_file()


def way_to_model(path: Path) -> str:
    """Return how to make a model of the checkpoint at `path`, as a sentence with a command."""
    if _is_by_ultralytics(path):
        return f"Export it with ultralytics: yolo export model={path} format=openvino"
    return f"Convert a YOLACT checkpoint: {zoo.find('yolact-resnet50-fpn-pytorch').command}"


def _is_by_ultralytics(path: Path) -> bool:
    """Return whether the pickle in a checkpoint names Ultralytics' modules."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
            if not names:
                return False
            with archive.open(names[0]) as pickle:
                return b"ultralytics" in pickle.read(_PICKLE_BYTES)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, RuntimeError, EOFError, OSError, ValueError, struct.error):
        return False  # Older checkpoints are no archives. Their bytes tell nothing for certain.
