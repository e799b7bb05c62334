"""Checkpoints and other files that segray cannot run, and the way to a model from each kind.

Looks at the bytes of a checkpoint's pickle. Never loads the pickle, which could run any code.
"""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib
from pathlib import Path

from segray.models import zoo
from segray.models.metadata import METADATA_YAML

SUFFIXES = (".pth", ".pt")
# Suffixes of further formats that `yolo export` writes.
_OTHER_EXPORTS = (".engine", ".tflite", ".torchscript", ".mlmodel", ".mlpackage", ".pte", ".mnn", ".rknn")
EXPORT_COMMAND = "yolo export model=best.pt format=openvino"
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


def hint_on_folder(folder: Path) -> str:
    """Return how to get a model out of a folder that has none, as a sentence."""
    entries = sorted(folder.iterdir())
    weights = sorted(file for below in (folder, folder / "weights") for file in below.glob("*.pt"))
    models = [entry for entry in entries if entry.is_dir() and any(entry.glob("*.xml"))]
    if models:
        return f"Set `model.path` to the folder of one model, such as {models[0]}."
    if ours := [file for file in weights if _is_by_ultralytics(file)]:
        return way_to_model(next((file for file in ours if file.stem == "best"), ours[0]))
    if weights or (folder / METADATA_YAML).is_file() or folder.suffix in _OTHER_EXPORTS:
        return f"Export the model as an IR: {EXPORT_COMMAND}"
    return f"Give the folder that `{EXPORT_COMMAND}` writes, a .xml, a .onnx, or a SavedModel folder."


def hint_on_suffix(suffix: str) -> str:
    """Return what to give in place of a file that segray cannot read, as a sentence."""
    if suffix in _OTHER_EXPORTS:
        return f"Give an IR or an ONNX file. A model by Ultralytics becomes an IR by: {EXPORT_COMMAND}"
    return "Give an IR (.xml), an ONNX file, a frozen graph (.pb) or a SavedModel folder."


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
