"""Inspection of a model file: the adapters it fits, and what it lacks for the others.

Knows file kinds, and how a signature compares with adapters and with the published models. Changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segray.errors import ConfigError, ModelError
from segray.models import engine, resolve
from segray.models import zoo as catalogue
from segray.models.adapters.adapter import ModelFormat
from segray.models.engine import ModelPort, Signature
from segray.models.registry import ADAPTERS
from segray.models.zoo import ZooModel

CHECKPOINTS = (".pth", ".pt")
_KINDS = {".onnx": "ONNX", ".pb": "TensorFlow frozen graph"}
_OLD_IR, _LOADABLE = "instance-segmentation-security-0033", "instance-segmentation-security-0083"
# Output name -> axis of the classes, and number of background classes.
_CLASS_AXES = {"conf": (-1, 1), "raw_masks": (-3, 1), "masks": (-3, 0)}


@dataclass(frozen=True)
class Fit:
    """The comparison of a file with one form of a model.

    absent: outputs that the file lacks. unlike: differences from the published model, as texts. A file without absent
    outputs fits. A file that fits with other shapes may be another network of the same kind.
    """

    name: str
    form: str
    absent: tuple[str, ...]
    unlike: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """The result of an inspection.

    fits: the best-fitting forms; only the card's form if the file has a card. nearest: the closest form if none fits.
    layout: NHWC or NCHW, of the image input. classes: number of classes, without background.
    needs: steps before segray can use the file, for the configuration or for the file's owner.
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


def inspect(path: Path) -> Inspection:
    """Inspect a model file or SavedModel folder; raise ModelError if it is no model or cannot be read."""
    path = engine.model_root(path)
    kind = _kind(path)
    if path.suffix in CHECKPOINTS and path.is_file():
        needs = f"A checkpoint has no graph: if it is YOLACT's, {catalogue.find('yolact-resnet50-fpn-pytorch').command}"
        return Inspection(str(path), kind, needs=(needs,))
    if is_old_ir(path):
        return Inspection(str(path), kind, needs=(_about_old_ir(path),))
    found = engine.signature(path)
    fits = _fits(found, path)
    return Inspection(
        str(path),
        f"{kind}, quantised to int8" if found.quantised else kind,
        tuple(map(str, found.inputs)),
        tuple(map(str, found.outputs)),
        layout_of(found),
        classes_of(found),
        fits,
        None if fits else _nearest(found),
        _needs(path, fits, classes_of(found)),
    )


def is_old_ir(path: Path) -> bool:
    """Return whether this file is an IR that OpenVINO no longer reads."""
    return path.suffix == ".xml" and path.is_file() and engine.ir_version(path) < engine.OLDEST_IR


def _about_old_ir(path: Path) -> str:
    return (
        f"OpenVINO cannot read it. If it is {_OLD_IR}: segray models convert {_OLD_IR} {path} --out DIR rewrites it; "
        f"{_LOADABLE}, with the same inputs and outputs but other weights, is published as IR v10."
    )


def _kind(path: Path) -> str:
    if path.is_dir():
        return "TensorFlow SavedModel"
    if path.suffix in CHECKPOINTS:
        return "PyTorch checkpoint"
    if path.suffix == ".xml" and path.is_file():
        return f"OpenVINO IR v{engine.ir_version(path)}"
    return _KINDS.get(path.suffix, f"{path.suffix or 'no suffix'}")


# ---- signatures -----------------------------------------------------------------------------------


def layout_of(found: Signature) -> str | None:
    """Return NHWC or NCHW by the position of the image's 3 channels; None if the shapes do not tell."""
    shapes = [port.shape for port in found.inputs if port.shape is not None and len(port.shape) == 4]
    layouts = {"NHWC" for shape in shapes if shape[3] == 3} | {"NCHW" for shape in shapes if shape[1] == 3}
    return layouts.pop() if len(layouts) == 1 else None


def classes_of(found: Signature) -> int | None:
    """Return the number of the network's classes, without background; None if no output's shape tells."""
    for name, (axis, background) in _CLASS_AXES.items():
        port = _port(found, name)
        if port is not None and port.shape is not None and len(port.shape) >= -axis + (name == "masks"):
            size = port.shape[axis]
            return None if size is None else size - background
    return None


def differences(found: Signature, entry: ZooModel, form: ModelFormat) -> tuple[str, ...]:
    """Return the differences of a file with these ports from the published model in this form, as texts.

    Absent outputs are not among the differences.
    """
    unlike = []
    for name, shape in entry.outputs.get(form.name, {}).items():
        port = _port(found, name)
        if port is not None and not _same(port.shape, shape):
            unlike.append(f"{port}, published {_written(shape)}")
    if not any(name in port.names for port in found.inputs for name in entry.inputs):
        unlike.append(f"no input {' or '.join(entry.inputs)}")
    return (*unlike, *_image_size(found, form))


def _image_size(found: Signature, form: ModelFormat) -> tuple[str, ...]:
    layout, wanted = layout_of(found), form.image.size_hw
    port = next((port for port in found.inputs if port.shape is not None and len(port.shape) == 4), None)
    if port is None or port.shape is None or layout is None or wanted is None:
        return ()
    size_hw = tuple(port.shape[layout.index(axis)] for axis in "HW")
    if None in size_hw or size_hw == wanted:
        return ()
    return (f"image {size_hw[0]}x{size_hw[1]}, published {wanted[0]}x{wanted[1]}",)


def _port(found: Signature, name: str) -> ModelPort | None:
    return next((port for port in found.outputs if name in port.names), None)


def _same(shape: tuple[int | None, ...] | None, published: tuple[int | None, ...]) -> bool:
    if shape is None:
        return True
    own = shape[1:] if len(shape) == len(published) + 1 else shape
    return len(own) == len(published) and all(
        None in pair or pair[0] == pair[1] for pair in zip(own, published, strict=True)
    )


def _written(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


# ---- contracts ------------------------------------------------------------------------------------


def _compared(found: Signature) -> list[Fit]:
    """Return the comparison with every form of every model; forms of which the file lacks least come first."""
    compared = [
        Fit(name, form.name, tuple(_absent(found, form)), differences(found, catalogue.find(name), form))
        for name, contract in ADAPTERS.items()
        if name == contract.name  # The embedded model uses the adapter of another model.
        for form in contract.forms.values()
    ]
    return sorted(compared, key=lambda fit: (_share(fit), len(fit.unlike)))


def _absent(found: Signature, form: ModelFormat) -> list[str]:
    if absent := engine.absent_outputs(found, form):
        return absent
    try:
        engine.check(found, form)
    except ModelError as error:
        return [f"{error.what} {error.hint}"]
    return []


def _share(fit: Fit) -> float:
    return len(fit.absent) / len(ADAPTERS[fit.name].forms[fit.form].outputs)


def _nearest(found: Signature) -> Fit:
    return _compared(found)[0]


def _fits(found: Signature, path: Path) -> tuple[Fit, ...]:
    """Return the forms that the file fits: those of its card if stated, otherwise those with the fewest differences."""
    fits = [fit for fit in _compared(found) if not fit.absent]
    card = resolve.read_card(path)
    stated = [fit for fit in fits if fit.name == card.get("contract") and fit.form == card.get("form", fit.form)]
    least = min((len(fit.unlike) for fit in fits), default=0)
    return tuple(stated or [fit for fit in fits if len(fit.unlike) == least])


def _needs(path: Path, fits: tuple[Fit, ...], classes: int | None) -> tuple[str, ...]:
    needs = []
    names = list(dict.fromkeys(fit.name for fit in fits))
    if len(names) > 1:
        needs.append(f"Say which it is as model.name: {' or '.join(names)} have the same signature.")
    if names and not resolve.read_card(path):
        needs += _unsettled(names[0], path)
    if names and classes is not None and classes not in (80, 90):
        needs.append(f"Name its {classes} classes in model.labels: COCO has 80, in 90 ids.")
    return tuple(needs)


def _unsettled(name: str, path: Path) -> list[str]:
    """Return the hint of `resolve` on what the configuration must settle."""
    try:
        resolve.resolve(name, str(path))
    except ConfigError as error:
        return [error.hint]
    return []
