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
    kind = _file_kind(path)
    if path.suffix in CHECKPOINTS and path.is_file():
        command = catalogue.find("yolact-resnet50-fpn-pytorch").command
        advice = f"A checkpoint has no graph. Convert a YOLACT checkpoint: {command}"
        return Inspection(str(path), kind, needs=(advice,))
    if is_old_ir(path):
        return Inspection(str(path), kind, needs=(_advice_on_old_ir(path),))
    ports = engine.signature(path)
    fits = _fits(ports, path)
    return Inspection(
        str(path),
        f"{kind}, quantised to int8" if ports.quantised else kind,
        tuple(map(str, ports.inputs)),
        tuple(map(str, ports.outputs)),
        layout_of(ports),
        classes_of(ports),
        fits,
        None if fits else _nearest(ports),
        _needs(path, fits, classes_of(ports)),
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
    if path.suffix in CHECKPOINTS:
        return "PyTorch checkpoint"
    if path.suffix == ".xml" and path.is_file():
        return f"OpenVINO IR v{engine.ir_version(path)}"
    return _KINDS.get(path.suffix, f"{path.suffix or 'no suffix'}")


# ---- signatures -----------------------------------------------------------------------------------


def layout_of(ports: Signature) -> str | None:
    """Return NHWC or NCHW by the position of the image's 3 channels; None if the shapes do not tell."""
    shapes = [port.shape for port in ports.inputs if port.shape is not None and len(port.shape) == 4]
    layouts = {"NHWC" for shape in shapes if shape[3] == 3} | {"NCHW" for shape in shapes if shape[1] == 3}
    return layouts.pop() if len(layouts) == 1 else None


def classes_of(ports: Signature) -> int | None:
    """Return the number of the network's classes, without background; None if no output's shape tells."""
    for name, (axis, background) in _CLASS_AXES.items():
        port = _output_port(ports, name)
        # An output "masks" of rank 3 has one mask for each row and no class axis.
        min_rank = 4 if name == "masks" else -axis
        if port is not None and port.shape is not None and len(port.shape) >= min_rank:
            size = port.shape[axis]
            return None if size is None else size - background
    return None


def differences(ports: Signature, entry: ZooModel, form: ModelFormat) -> tuple[str, ...]:
    """Return the differences of a file with these ports from the published model in this form, as texts.

    Absent outputs are not among the differences.
    """
    unlike = []
    for name, shape in entry.outputs.get(form.name, {}).items():
        port = _output_port(ports, name)
        if port is not None and not _same_shape(port.shape, shape):
            unlike.append(f"{port}, published {_shape_text(shape)}")
    if not any(name in port.names for port in ports.inputs for name in entry.inputs):
        unlike.append(f"no input {' or '.join(entry.inputs)}")
    return (*unlike, *_image_size_difference(ports, form))


def _image_size_difference(ports: Signature, form: ModelFormat) -> tuple[str, ...]:
    layout, published_hw = layout_of(ports), form.image.size_hw
    port = next((port for port in ports.inputs if port.shape is not None and len(port.shape) == 4), None)
    if port is None or port.shape is None or layout is None or published_hw is None:
        return ()
    size_hw = tuple(port.shape[layout.index(axis)] for axis in "HW")
    if None in size_hw or size_hw == published_hw:
        return ()
    return (f"image {size_hw[0]}x{size_hw[1]}, published {published_hw[0]}x{published_hw[1]}",)


def _output_port(ports: Signature, name: str) -> ModelPort | None:
    return next((port for port in ports.outputs if name in port.names), None)


def _same_shape(shape: tuple[int | None, ...] | None, published: tuple[int | None, ...]) -> bool:
    if shape is None:
        return True
    """Return whether the shapes agree, apart from a batch axis and axes of unknown size."""
    unbatched = shape[1:] if len(shape) == len(published) + 1 else shape
    return len(unbatched) == len(published) and all(
        None in sizes or sizes[0] == sizes[1] for sizes in zip(unbatched, published, strict=True)
    )


def _shape_text(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


# ---- adapters -------------------------------------------------------------------------------------


def _compare_all(ports: Signature) -> list[Fit]:
    """Return the comparison with every form of every model; forms with the fewest absent outputs come first."""
    fits = [
        Fit(name, form.name, tuple(_absent(ports, form)), differences(ports, catalogue.find(name), form))
        for name, adapter in ADAPTERS.items()
        if name == adapter.name  # The embedded model uses the adapter of another model.
        for form in adapter.forms.values()
    ]
    return sorted(fits, key=lambda fit: (_absent_fraction(fit), len(fit.unlike)))


def _absent(ports: Signature, form: ModelFormat) -> list[str]:
    """Return the outputs that the file lacks for the form; a wrong input counts as one absent output."""
    if absent := engine.absent_outputs(ports, form):
        return absent
    try:
        engine.check(ports, form)
    except ModelError as error:
        return [f"{error.what} {error.hint}"]
    return []


def _absent_fraction(fit: Fit) -> float:
    return len(fit.absent) / len(ADAPTERS[fit.name].forms[fit.form].outputs)


def _nearest(ports: Signature) -> Fit:
    return _compare_all(ports)[0]


def _fits(ports: Signature, path: Path) -> tuple[Fit, ...]:
    """Return the forms that the file fits: those of its card if stated, otherwise those with the fewest differences."""
    fits = [fit for fit in _compare_all(ports) if not fit.absent]
    card = resolve.read_card(path)
    stated = [fit for fit in fits if fit.name == card.get("contract") and fit.form == card.get("form", fit.form)]
    fewest = min((len(fit.unlike) for fit in fits), default=0)
    return tuple(stated or [fit for fit in fits if len(fit.unlike) == fewest])


def _needs(path: Path, fits: tuple[Fit, ...], classes: int | None) -> tuple[str, ...]:
    needs = []
    names = list(dict.fromkeys(fit.name for fit in fits))
    if len(names) > 1:
        needs.append(f"Set model.name to {' or '.join(names)}: these models have the same signature.")
    if names and not resolve.read_card(path):
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
