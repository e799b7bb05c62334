"""The models of the catalogue that a file fits, by the names and shapes of its inputs and outputs.

Knows how a signature compares with adapters and with the published models. Knows nothing of metadata but the card.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from segray.errors import ModelError
from segray.models import engine, zoo
from segray.models.adapters.adapter import ModelFormat
from segray.models.engine import ModelPort, Signature
from segray.models.metadata import read_card
from segray.models.registry import ADAPTERS
from segray.models.zoo import ZooModel


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


def layout_of(ports: Signature) -> str | None:
    """Return NHWC or NCHW by the position of the image's 3 channels; None if the shapes do not tell."""
    shapes = [port.shape for port in ports.inputs if port.shape is not None and len(port.shape) == 4]
    layouts = {"NHWC" for shape in shapes if shape[3] == 3} | {"NCHW" for shape in shapes if shape[1] == 3}
    return layouts.pop() if len(layouts) == 1 else None


def differences(ports: Signature, entry: ZooModel, form: ModelFormat) -> tuple[str, ...]:
    """Return the differences of a file with these ports from the published model in this form, as texts.

    Absent outputs are not among the differences.
    """
    unlike = []
    for name, shape in entry.outputs.get(form.name, {}).items():
        port = output_port(ports, name)
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


def output_port(ports: Signature, name: str) -> ModelPort | None:
    return next((port for port in ports.outputs if name in port.names), None)


def _same_shape(shape: tuple[int | None, ...] | None, published: tuple[int | None, ...]) -> bool:
    """Return whether the shapes agree, apart from a batch axis and axes of unknown size."""
    if shape is None:
        return True
    unbatched = shape[1:] if len(shape) == len(published) + 1 else shape
    return len(unbatched) == len(published) and all(
        None in sizes or sizes[0] == sizes[1] for sizes in zip(unbatched, published, strict=True)
    )


def _shape_text(shape: tuple[int | None, ...]) -> str:
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"


def _compare_all(ports: Signature) -> list[Fit]:
    """Return the comparison with every form of every model; forms with the fewest absent outputs come first."""
    fits = [
        Fit(name, form.name, tuple(_absent(ports, form)), differences(ports, zoo.find(name), form))
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


def nearest_fit(ports: Signature) -> Fit | None:
    """Return the form with the largest share of outputs in the file; None if the file has no output of any form."""
    fit = _compare_all(ports)[0]
    return fit if _absent_fraction(fit) < 1 else None


def fits_of(ports: Signature, path: Path) -> tuple[Fit, ...]:
    """Return the forms that the file fits: those of its card if stated, otherwise those with the fewest differences."""
    fits = [fit for fit in _compare_all(ports) if not fit.absent]
    card = read_card(path)
    stated = [fit for fit in fits if fit.name == card.get("contract") and fit.form == card.get("form", fit.form)]
    fewest = min((len(fit.unlike) for fit in fits), default=0)
    return tuple(stated or [fit for fit in fits if len(fit.unlike) == fewest])
