"""The words of a contract: what one model system's inputs and outputs mean.

Knows the names, layouts and options that every family shares; knows nothing of any family, of files or of OpenVINO.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from segray import rle
from segray.errors import ConfigError, ModelError
from segray.instances import Instances
from segray.models.coco_labels import slug

Nms = Literal["per_class", "fast", "cross_class"]
Paste = Literal["tile", "reframe"]


@dataclass(frozen=True)
class ImageInput:
    """What a model's image input expects; the runtime builds this into the graph.

    name: of the input tensor. size_hw: None if any size goes. layout: NCHW or NHWC. colour: RGB or BGR.
    mean, scale: per channel in the order of `colour`, on 0..255, as (x - mean) / scale; None where the model
    does this itself. resizable: a model file with another static size fulfils the contract too; size_hw is then
    only what is assumed of a file that states none.
    """

    name: str
    size_hw: tuple[int, int] | None
    layout: str
    colour: str
    mean: tuple[float, ...] | None
    scale: tuple[float, ...] | None
    resizable: bool = False


@dataclass(frozen=True)
class ModelFormat:
    """One shape in which a model is handed around. name: original or converted. outputs: those that decode needs."""

    name: str
    image: ImageInput
    outputs: tuple[str, ...]

    @property
    def window_hw(self) -> tuple[int, int]:
        """The network's image size, of a form that has one."""
        if self.image.size_hw is None:
            raise ValueError(f"the {self.name} form takes images of any size")
        return self.image.size_hw


@dataclass(frozen=True)
class Options:
    """What the user may choose.

    score_threshold: rows below it are dropped; class_thresholds: category id -> its own in place of that.
    max_detections: at most so many rows. min_area: masks of fewer pixels are dropped.
    nms: for families that suppress duplicates outside the network: greedy per class, YOLACT's fast NMS, or that
    across all classes. paste: for families with a small mask per box, how it is put into the image; None for the
    contract's own way.
    """

    score_threshold: float = 0.0
    max_detections: int = 100
    nms: Nms = "per_class"
    class_thresholds: Mapping[int, float] = field(default_factory=dict)
    paste: Paste | None = None
    min_area: int = 0


@dataclass(frozen=True)
class ModelAdapter(ABC):
    """A model system: its name on the model card, its classes, and its forms by name.

    labels: category id -> class name; where the network counts its classes, in that order, background left out.
    choices: which of the options that only some families can heed it heeds.
    """

    name: str
    labels: Mapping[int, str]
    forms: Mapping[str, ModelFormat]
    choices: ClassVar[frozenset[str]] = frozenset({"paste"})

    @abstractmethod
    def prepare(self, form: ModelFormat, image_rgb: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """The tensors to feed for one upright uint8 (h, w, 3) RGB image, by input name.

        The image comes out as uint8 (1, h', w', 3) RGB at the network's size: colour order, mean, scale, layout
        and dtype are the runtime's, from ModelFormat.image. Any other input has the dtype and shape the model takes.
        """

    @abstractmethod
    def decode(self, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int], options: Options) -> Instances:
        """What the model found in one image, best first; reads `outputs`, batch axis included, and changes nothing.

        size_hw: of the source image. Raises ModelError if outputs are missing or of other shapes.
        """

    def with_labels(self, labels: Mapping[int, str]) -> Self:
        """The same contract for a network of other classes, told by id; ConfigError for a name without a slug."""
        if nameless := [name for name in labels.values() if not slug(name)]:
            hint = "Use at least one of a-z and 0-9: the name becomes a folder."
            raise ConfigError("A class name has no letter.", where="model.labels", found=repr(nameless[0]), hint=hint)
        return replace(self, labels=dict(sorted(labels.items())))

    def with_size(self, form: str, size_hw: tuple[int, int] | None) -> Self:
        """The same contract for a model file whose form takes images of this size; None changes nothing."""
        if size_hw is None:
            return self
        image = replace(self.forms[form].image, size_hw=size_hw)
        return replace(self, forms={**self.forms, form: replace(self.forms[form], image=image)})


# ---- options --------------------------------------------------------------------------------------


def chosen(
    order: NDArray[np.intp], class_ids: NDArray[np.int32], scores: NDArray[np.float32], options: Options
) -> NDArray[np.intp]:
    """Of rows in this order, those that reach the threshold of their class; at most options.max_detections."""
    least: Any = np.float32(options.score_threshold)
    if options.class_thresholds:
        least = np.array([options.class_thresholds.get(int(i), least) for i in class_ids[order]], np.float32)
    reached: NDArray[np.intp] = order[scores[order] >= least]
    return reached[: options.max_detections]


def large_enough(found: Instances, options: Options) -> Instances:
    """The rows whose masks have options.min_area pixels or more."""
    if not options.min_area or not len(found):
        return found
    return found.take(rle.area(found.rles) >= options.min_area)


# ---- reading outputs ------------------------------------------------------------------------------


def named(outputs: Mapping[str, NDArray[Any]], names: Sequence[str], contract: str) -> list[NDArray[Any]]:
    """The arrays of these names, in this order; TensorFlow's ":0" after a name is ignored. ModelError if absent."""
    found = {name.removesuffix(":0"): array for name, array in outputs.items()}
    if absent := [name for name in names if name not in found]:
        raise ModelError(
            f"Outputs {', '.join(absent)} are missing.",
            where=contract,
            found=f"outputs {', '.join(sorted(found)) or 'none'}",
            hint=f"Check the model's name and form; expected outputs are {', '.join(names)}.",
        )
    return [found[name] for name in names]


def shaped(
    outputs: Mapping[str, NDArray[Any]], shapes: Mapping[str, Sequence[int | str]], contract: str
) -> list[NDArray[np.float32]]:
    """The arrays of these names as float32, in this order, without a batch axis of 1 if there is one.

    shapes: by name; a letter stands for any size, the same one wherever it occurs. ModelError where they differ.
    """
    arrays = [np.asarray(array) for array in named(outputs, tuple(shapes), contract)]
    single = [_unbatched(array, len(shape)) for array, shape in zip(arrays, shapes.values(), strict=True)]
    sizes: dict[int | str, int] = {}
    for array, shape in zip(single, shapes.values(), strict=True):
        expected = [
            size if isinstance(size, int) else sizes.setdefault(size, have)
            for size, have in zip(shape, array.shape, strict=False)
        ]
        if list(array.shape) != expected or array.ndim != len(shape):
            raise _misshapen(shapes, arrays, contract)
    return [array.astype(np.float32, copy=False) for array in single]


def _unbatched(array: NDArray[Any], rank: int) -> NDArray[Any]:
    return array[0] if array.ndim == rank + 1 and len(array) == 1 else array


def _misshapen(shapes: Mapping[str, Sequence[int | str]], arrays: Sequence[NDArray[Any]], contract: str) -> ModelError:
    found = ", ".join(f"{name} {list(array.shape)}" for name, array in zip(shapes, arrays, strict=True))
    expected = ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in shapes.items())
    return ModelError(
        "The outputs have other shapes than the contract.",
        where=contract,
        found=found,
        hint=f"Expected: {expected}. Check model.name, and model.labels if the classes are your own.",
    )
