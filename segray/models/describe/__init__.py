"""Descriptions of model files: each reader of this package knows one source of facts.

Knows the order in which the readers are asked, and which file of a folder is the model. The card overrides the others.
A file that Geti wrote can have a metadata.yaml by Ultralytics beside it, so Geti's reader is asked first. Decoders of
one's own are asked after the readers of this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from segray.errors import ConfigError, ModelError
from segray.models import checkpoints
from segray.models import metadata as values
from segray.models.decoders import Decoder
from segray.models.describe import (
    card,
    detectron2,
    geti,
    hugging_face,
    mmdeploy,
    own,
    rf_detr,
    torchvision,
    ultralytics,
    yolov5,
)
from segray.models.description import Description
from segray.models.metadata import Metadata

if TYPE_CHECKING:
    from segray.models.engine import Signature

_BY_METADATA = (geti.read, ultralytics.read)
_BY_PORTS = (rf_detr.read, torchvision.read, hugging_face.read, mmdeploy.read, yolov5.read, detectron2.read)
_SUFFIXES = (".xml", ".onnx")


def describe(
    path: Path, signature: Signature, decoders: Sequence[Decoder] = (), *, own_alone: bool = False
) -> Description | None:
    """Return what the model at `path` says of itself; None if it says nothing that segray knows.

    Args:
        path: The model file, or a folder with one model, such as best_openvino_model/.
        signature: The inputs and outputs of the model.
        decoders: Decoders of one's own, which may know the model too.
        own_alone: Whether to ask these decoders alone.

    Raises:
        ModelError: The metadata cannot be read, contradict the model, or belong to a model without instance masks.
        ConfigError: A folder has several models, the file has the signs of several families, or a decoder is at fault.
    """
    metadata = values.read(model_file(path))
    is_settled = own_alone or card.is_complete(metadata)
    described = [] if is_settled else _by_readers(signature, metadata)
    if own_alone or not is_settled:
        described += [known for decoder in decoders if (known := own.read(decoder, signature, metadata)) is not None]
    if len(described) > 1:
        raise ConfigError(
            "The file has the signs of several families.",
            where=str(metadata.path),
            found=", ".join(description.family for description in described),
            hint="Set `model.name` to the right one, or name it as `contract` in segray.json beside the model.",
        )
    return card.read(signature, metadata, described[0] if described else None)


def _by_readers(signature: Signature, metadata: Metadata) -> list[Description]:
    """Return the descriptions by the readers of this package; at most one by metadata, else those by ports."""
    for read in _BY_METADATA:
        if (description := read(signature, metadata)) is not None:
            return [description]
    return [description for read in _BY_PORTS if (description := read(signature, metadata)) is not None]


def model_file(path: Path) -> Path:
    """Return the model file at `path`: the only .xml or .onnx of a folder, any other path unchanged.

    Raises:
        ConfigError: The folder has several models.
        ModelError: The folder has no model.
    """
    if not path.is_dir() or (path / "saved_model.pb").is_file():
        return path
    files = sorted(file for file in path.iterdir() if _is_model(file))
    if len(files) > 1:
        hint = f"Set `model.path` to one of these files, such as {files[0]}."
        found = ", ".join(file.name for file in files)
        raise ConfigError("The folder has several models.", where=str(path), found=found, hint=hint)
    if not files:
        names = ", ".join(sorted(file.name for file in path.iterdir())[:8]) or "nothing"
        hint = checkpoints.hint_on_folder(path)
        raise ModelError("The folder has no model: no .xml and no .onnx.", where=str(path), found=names, hint=hint)
    return files[0]


def _is_model(file: Path) -> bool:
    return file.suffix in _SUFFIXES and not file.name.startswith(".") and file.is_file()
