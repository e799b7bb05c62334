"""Facts with their sources: what the readers of this package share.

Knows image ports, class names and how a description is put together. Knows nothing of a family.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from segray.errors import ModelError
from segray.models.coco_labels import COCO_NAMES
from segray.models.description import Description, category_ids

if TYPE_CHECKING:
    from segray.models.engine import ModelPort, Signature

PORTS, FAMILY = "ports", "default of the family"
# The end of a note on names that segray cannot use.
NAME_CLASSES = "Name the classes in `model.labels`."

# ImageNet's mean and deviation of each channel, for levels 0..255.
IMAGENET_MEAN = (255 * 0.485, 255 * 0.456, 255 * 0.406)
IMAGENET_SCALE = (255 * 0.229, 255 * 0.224, 255 * 0.225)

_COCO_AS_TOKENS = tuple(name.replace(" ", "_") for name in COCO_NAMES.values())


@dataclass
class Facts:
    """Facts of one model as they are read, each with its source.

    fields: fields of the description. thresholds, extra: entries of these fields.
    """

    fields: dict[str, Any] = field(default_factory=dict)
    thresholds: dict[str, float] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, source: str, **fields: Any) -> None:
        """Add fields of the description that were read at one place."""
        self.fields.update(fields)
        self.sources.update(dict.fromkeys(fields, source))

    def add_extra(self, source: str, **extra: Any) -> None:
        """Add entries of `extra` that were read at one place."""
        self.extra.update(extra)
        self.sources.update(dict.fromkeys(extra, source))

    def add_thresholds(self, source: str, **thresholds: float) -> None:
        """Add thresholds that were read at one place."""
        self.thresholds.update(thresholds)
        self.sources.update(dict.fromkeys(thresholds, source))

    def add_names(self, names: Sequence[str] | None, source: str) -> None:
        """Add the classes of the network in its order; None if nothing names them."""
        fault = "" if names is None else fault_of_names(names)
        if fault:
            self.notes.append(f"{fault} {NAME_CLASSES}")
        if names is None or fault:
            self.missing.append("labels")
            names, source = (), "not stated"
        self.add(source, labels=category_ids(tuple(names)))

    def add_image(self, image: ImagePort) -> None:
        """Add the name and the size of the image input; the size is None if the network takes any."""
        self.add(PORTS, input_name=image.name, size_hw=image.size_hw)
        if image.batch is not None and image.batch > 1:
            self.notes.append(f"The file takes {image.batch} images at a time. segray gives the network one at a time.")

    def description(self) -> Description:
        """Return the description."""
        return Description(
            **self.fields,
            thresholds=self.thresholds,
            extra=self.extra,
            versions=self.versions,
            sources=self.sources,
            missing=tuple(self.missing),
            notes=tuple(self.notes),
        )


# ---- names ----------------------------------------------------------------------------------------


def names_of(value: object, where: str) -> tuple[str, ...]:
    """Return class names from a mapping index -> name, or from a list.

    Numbers become texts, as the libraries do. Raises ModelError for other values and for indices with gaps.
    """
    if isinstance(value, Mapping):
        indices = {str(index).strip(): name for index, name in value.items() if not isinstance(index, bool)}
        ordered = [indices.get(str(index)) for index in range(len(value))]
    elif isinstance(value, list | tuple):
        ordered = list(value)
    else:
        ordered = [None]
    if not ordered or not all(isinstance(name, str | int | float) for name in ordered):
        raise ModelError(
            "The metadata do not name the classes 0 to n.",
            where=where,
            found=repr(value)[:120],
            hint="Export the model again, or correct `names`: one name for each index from 0 on.",
        )
    return tuple(str(name) for name in ordered)


def names_of_tokens(text: str) -> tuple[str, ...]:
    """Return class names from a list with spaces between the names, in which names have _ for a space.

    COCO's names get their spaces again.
    """
    names = tuple(text.split())
    return tuple(COCO_NAMES.values()) if names == _COCO_AS_TOKENS else names


def fault_of_names(names: Iterable[str]) -> str:
    """Return why segray cannot use these class names, as a sentence; empty if it can."""
    seen: set[str] = set()
    for name in names:
        if not name or name.encode("utf-8", "replace").decode() != name:
            return f"The class name {name!r} is empty or has characters that UTF-8 does not have."
        if name in seen:
            return f"Two classes have the name {name!r}."
        seen.add(name)
    return ""


# ---- ports ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImagePort:
    """The image input of a model. None stands for a size that the file leaves open.

    size_hw: height and width in pixels; None unless both are fixed. is_partly_fixed: only one of them is fixed.
    """

    name: str
    batch: int | None
    channels: int | None
    size_hw: tuple[int, int] | None
    is_partly_fixed: bool

    def check_channels(self, where: str, stated: int | None = None) -> None:
        """Raise ModelError unless the model takes images of three channels. stated: the number in the metadata."""
        wrong = next((number for number in (stated, self.channels) if number not in (None, 3)), None)
        if wrong is not None:
            raise ModelError(
                f"The model takes images of {wrong} channels. segray gives RGB images of 3.",
                where=where,
                found=f"{wrong} channels",
                hint="Train and export the model with images of 3 channels.",
            )


def image_port(signature: Signature) -> ImagePort | None:
    """Return the image input: the only input of rank 4, or of rank 3 without a batch axis; None if there is none."""
    ports = [port for port in signature.inputs if port.shape is not None and len(port.shape) in (3, 4)]
    if len(ports) != 1 or ports[0].shape is None:
        return None
    shape = ports[0].shape
    batch, sizes = (shape[0], shape[1:]) if len(shape) == 4 else (None, shape)
    channels, height, width = (sizes[2], *sizes[:2]) if sizes[2] == 3 != sizes[0] else sizes
    fixed = height is not None and width is not None
    return ImagePort(
        port_name(ports[0]),
        batch,
        channels,
        (height, width) if height is not None and width is not None else None,
        not fixed and (height is not None or width is not None),
    )


def port_name(port: ModelPort) -> str:
    """Return the name of a port: the longest that is no number; "" if there is none."""
    names = [name for name in port.names if not name.isdigit()]
    return max(names, key=lambda name: (len(name), name), default="")


def index_by_name(ports: Sequence[ModelPort], *names: str) -> int | None:
    """Return the position of the first port with one of these names."""
    return next((index for index, port in enumerate(ports) if set(names) & set(port.names)), None)


def rank(port: ModelPort) -> int | None:
    """Return the number of axes of a port; None if unknown."""
    return None if port.shape is None else len(port.shape)


def ports_text(ports: Sequence[ModelPort]) -> str:
    """Return the ports as one text, for errors."""
    return "; ".join(map(str, ports)) or "none"
