"""Inspection of a model file: what the file says of itself, or else the adapters that it fits.

Knows file kinds, and how a signature compares with adapters and with the published models. Changes nothing.
A file that describes itself is compared with no published model: equal ports do not make it one of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from segray.config import ModelSettings
from segray.errors import ConfigError
from segray.models import checkpoints, describe, engine, model_cache, registry, resolve
from segray.models import zoo as catalogue
from segray.models.coco_labels import COCO_NAMES
from segray.models.decoders import Decoder
from segray.models.describe import hugging_face, rf_detr
from segray.models.description import Description
from segray.models.engine import Signature
from segray.models.fits import Fit, fits_of, layout_of, nearest_fit, output_port
from segray.models.metadata import read_card
from segray.models.registry import FAMILIES, adapter_of
from segray.models.remote_folder import is_remote
from segray.storage.download import Progress
from segray.storage.options import StorageOptions

_KINDS = {".onnx": "ONNX", ".pb": "TensorFlow frozen graph"}
_OLD_IR, _LOADABLE = "instance-segmentation-security-0033", "instance-segmentation-security-0083"
# Output name -> axis of the classes, and number of background classes.
_CLASS_AXES = {"conf": (-1, 1), "raw_masks": (-3, 1), "masks": (-3, 0)}


@dataclass(frozen=True)
class Inspection:
    """The result of an inspection.

    fits: the best-fitting forms; only the card's form if the file has a card. nearest: the closest form if none fits.
    layout: NHWC or NCHW, of the image input. classes: number of classes, without background.
    needs: steps before segray can use the file, for the configuration or for the file's owner.
    description: what the file says of itself; then nothing is compared, and fits is empty.
    is_decoded: whether segray decodes the file's outputs. yaml: the lines of a configuration that use the file.
    options: options of decoding where the configuration says nothing, for a file that describes itself.
    origin: where the file was fetched from, with checksums; None for a file of this machine.
    """

    path: str
    kind: str
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    layout: str | None = None
    classes: int | None = None
    fits: tuple[Fit, ...] = ()
    nearest: Fit | None = None
    needs: tuple[str, ...] = ()
    description: Description | None = None
    is_decoded: bool = False
    yaml: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, Any] | None = None


def inspect_place(
    place: str, options: StorageOptions, note: Callable[[str], None], progress: Progress, adapter: str | None = None
) -> Inspection:
    """Inspect the model at a path or an address, as `model.path` has it. A model at an address is fetched.

    adapter: as for `inspect`.

    Raises:
        ModelError, ConfigError: As `inspect`, or the model changed since it was fetched.
        AccessError: The source refuses the request.
        InfrastructureError: The source cannot be reached, and there is no copy.
    """
    if not is_remote(place):
        return inspect(Path(place), adapter)
    settings = ModelSettings.model_construct(path=place)
    copy = model_cache.fetched(settings, options, note, progress)
    return replace(inspect(copy.path, adapter, place), origin={**copy.origin(), "folder": str(copy.folder)})


def inspect(path: Path, adapter: str | None = None, named: str | None = None) -> Inspection:
    """Inspect a model file or the folder of a model.

    Args:
        path: The file or folder.
        adapter: MODULE:CLASS of a decoder of one's own, which alone is asked; None for what segray and installed
            packages know.
        named: Name for `model.path` in the result; None for the path itself.

    Raises:
        ModelError: The path is no model, the model cannot be read, or it has no instance masks.
        ConfigError: The folder has several models, or a decoder is at fault.
    """
    file = describe.model_file(engine.model_root(path))
    kind = _file_kind(file)
    if checkpoints.is_checkpoint(file):
        advice = f"A checkpoint has no graph. {checkpoints.way_to_model(file)}"
        return Inspection(str(file), kind, needs=(advice,))
    if is_old_ir(file):
        return Inspection(str(file), kind, needs=(_advice_on_old_ir(file),))
    ports = engine.signature(file)
    kind = f"{kind}, quantised to int8" if ports.quantised else kind
    texts = tuple(map(str, ports.inputs)), tuple(map(str, ports.outputs)), layout_of(ports)
    own, own_alone = resolve.own_decoders(ModelSettings(adapter=adapter))
    description = describe.describe(file, ports, own, own_alone=own_alone)
    if own_alone and description is None:
        advice = f"The decoder {adapter} says that the model is none of its own."
        return Inspection(str(file), kind, *texts, needs=(advice,))
    if description is not None:
        decoder = next((one for one in own if one.name == description.family), None)
        is_decoded = decoder is not None or description.family in FAMILIES
        if decoder is None:
            registry.check(description)
        return Inspection(
            str(file),
            kind,
            *texts,
            _described_classes(description),
            needs=_described_needs(description, is_decoded),
            description=description,
            is_decoded=is_decoded,
            yaml=_described_yaml(description, named or str(path), adapter) if is_decoded else "",
            options=_options(description, decoder) if is_decoded else dict(description.thresholds),
        )
    fits = fits_of(ports, file)
    classes = classes_of(ports) if _have_class_axis(fits) else None
    nearest = None if fits else nearest_fit(ports)
    needs = _needs(file, fits, classes) if fits or nearest else (_UNKNOWN,)
    return Inspection(str(file), kind, *texts, classes, fits, nearest, needs, is_decoded=bool(fits))


_UNKNOWN = (
    "segray does not know this model: no output has a known name, and the file does not say what it is. segray takes "
    "YOLO-seg as `yolo export` writes it, models of Intel Geti, and the models of `segray models list`."
)


def is_old_ir(path: Path) -> bool:
    """Return whether this file is an IR that OpenVINO no longer reads."""
    return path.suffix == ".xml" and path.is_file() and engine.ir_version(path) < engine.OLDEST_IR


def _advice_on_old_ir(path: Path) -> str:
    return (
        f"OpenVINO cannot read the file. To rewrite {_OLD_IR}: segray models convert {_OLD_IR} {path} --out DIR. "
        f"{_LOADABLE} has the same inputs and outputs but other weights, and is published as IR v10."
    )


def _file_kind(path: Path) -> str:
    if path.is_dir():
        return "TensorFlow SavedModel"
    if path.suffix in checkpoints.SUFFIXES:
        return "PyTorch checkpoint"
    if path.suffix == ".xml" and path.is_file():
        return f"OpenVINO IR v{engine.ir_version(path)}"
    return _KINDS.get(path.suffix, f"{path.suffix or 'no suffix'}")


# ---- signatures -----------------------------------------------------------------------------------


def classes_of(ports: Signature) -> int | None:
    """Return the number of the network's classes, without background; None if no output's shape tells."""
    for name, (axis, background) in _CLASS_AXES.items():
        port = output_port(ports, name)
        # An output "masks" of rank 3 has one mask for each row and no class axis.
        min_rank = 4 if name == "masks" else -axis
        if port is not None and port.shape is not None and len(port.shape) >= min_rank:
            size = port.shape[axis]
            return None if size is None else size - background
    return None


def _have_class_axis(fits: tuple[Fit, ...]) -> bool:
    """Return whether an output of these forms has an axis of classes, as published."""
    published = [output for fit in fits for output in catalogue.find(fit.name).outputs.get(fit.form, {}).items()]
    # An output "masks" of rank 3 has one mask for each row and no class axis.
    return any(name in _CLASS_AXES and (name != "masks" or len(shape) == 4) for name, shape in published)


# ---- models of the catalogue ----------------------------------------------------------------------


def _needs(path: Path, fits: tuple[Fit, ...], classes: int | None) -> tuple[str, ...]:
    needs = []
    names = list(dict.fromkeys(fit.name for fit in fits))
    if len(names) > 1:
        needs.append(f"Set model.name to {' or '.join(names)}: these models have the same signature.")
    if names and not read_card(path):
        needs += _missing_configuration(names[0], path)
    if names and classes is not None and classes not in (80, 90):
        needs.append(f"Name the {classes} classes in model.labels: COCO has 80, in 90 ids.")
    return tuple(needs)


def _missing_configuration(name: str, path: Path) -> list[str]:
    """Return the hint of `resolve` on what the configuration must settle."""
    try:
        resolve.resolve(name, str(path))
    except ConfigError as error:
        return [error.hint]
    return []


# ---- files that describe themselves ---------------------------------------------------------------


def class_id_rule(description: Description) -> str:
    """Return how the classes got their ids, in words."""
    if not description.labels:
        return "not stated"
    if dict(description.labels) == COCO_NAMES:
        return "COCO's, 1 to 90: the names are COCO's 80 in order"
    if list(description.labels) == list(range(1, len(description.labels) + 1)):
        return f"1 to {len(description.labels)}, in the order of the network"
    return "as stated"


def _described_classes(description: Description) -> int | None:
    return len(description.labels) or description.extra.get("classes")


def _options(description: Description, decoder: Decoder | None) -> dict[str, Any]:
    """Return the options that segray takes where the configuration says nothing: the file's, else the family's."""
    if description.missing:
        return dict(description.thresholds)
    adapter = adapter_of(description, decoder)
    defaults = {name: value for name, value in asdict(adapter.defaults).items() if value is not None}
    has_nms = "nms_iou" in adapter.supported_options and "nms_iou" in defaults
    return {name: value for name, value in defaults.items() if has_nms or not name.startswith("nms")}


def _described_needs(description: Description, is_decoded: bool) -> tuple[str, ...]:
    if description.family == hugging_face.UNDECIDED:
        names = list(hugging_face.PROCESSORS)
        return (f"Set model.name to {', '.join(names[:-1])} or {names[-1]}, whichever the model is.",)
    if not is_decoded:
        return (f"segray recognises this model but cannot decode it yet: the family {description.family}.",)
    count = _described_classes(description)
    steps = {
        "labels": f"Name the {'' if count is None else f'{count} '}classes in model.labels, in the network's order.",
        "size": "Set model.size to the height and width of the network's input, in pixels.",
    }
    if description.family == "rf_detr":
        steps["size"] += f" {rf_detr.SIZES}"
    return tuple(f"The file does not state the {key}. {steps[key]}" for key in description.missing)


def _described_yaml(description: Description, path: str, adapter: str | None) -> str:
    """Return the lines of a configuration; placeholders in capitals stand for facts that the file lacks."""
    plain = re.fullmatch(r"([a-z][a-z0-9]*://)?[\w./][\w./@-]*", path)
    lines = ["model:", f"  path: {path if plain else json.dumps(path, ensure_ascii=False)}"]
    if adapter is not None:
        lines.append(f"  adapter: {adapter}")
    if "size" in description.missing:
        lines.append("  size: [HEIGHT, WIDTH]")
    if "labels" in description.missing:
        lines.append("  labels: {1: FIRST_NAME, 2: SECOND_NAME}")
    return "\n".join([*_tiles_yaml(description), *lines])


def _tiles_yaml(description: Description) -> list[str]:
    """Return the lines that label images in the tiles with which the model was trained."""
    extra = description.extra
    if "tile_size" not in extra:
        return []
    keys = {"size": extra["tile_size"], "overlap": extra.get("tiles_overlap"), "whole": extra.get("tile_with_full_img")}
    stated = ", ".join(f"{key}: {json.dumps(value)}" for key, value in keys.items() if value is not None)
    return ["source:", f"  tiles: {{{stated}}}"]
