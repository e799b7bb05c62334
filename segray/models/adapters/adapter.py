"""The interface of an adapter: the meaning of one model family's inputs and outputs.

Knows the names, layouts and options that all families share. Knows nothing of a family, of files or of OpenVINO.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from segray import rle
from segray.errors import ConfigError, ModelError
from segray.instances import Instances

Nms = Literal["per_class", "fast", "cross_class"]
Paste = Literal["tile", "reframe"]


@dataclass(frozen=True)
class ImageInput:
    """The image input of a model; the engine builds the conversion of an image into the graph.

    name: name of the input tensor. size_hw: height and width in pixels, None if the input takes any size.
    layout: NCHW or NHWC. colour: RGB or BGR. mean, scale: one number per channel in the order of `colour`, for
    values 0..255, used as (x - mean) / scale; None where the model normalises by itself.
    resizable: model files of another static size fit too; size_hw then holds for a file that states no size.
    any_batch: model files with any batch axis fit too, and files without one; the engine changes the axis to 1.
    """

    name: str
    size_hw: tuple[int, int] | None
    layout: str
    colour: str
    mean: tuple[float, ...] | None
    scale: tuple[float, ...] | None
    resizable: bool = False
    any_batch: bool = False


@dataclass(frozen=True)
class ModelFormat:
    """A form in which a model is published.

    name: original, converted, or exported for a model that describes itself. outputs: outputs that `decode` needs.
    positions: output -> its position in the model, for a model whose outputs have no dependable names. An output
    without a position is looked up by name. pasted_masks: output of masks that the graph pastes into the image; the
    engine cuts the graph and gives the small masks of the boxes. "" for none. stream_threads: smallest number of
    threads for each image that the network computes at once, for a network that takes much memory for each; None to
    leave the number to OpenVINO.
    """

    name: str
    image: ImageInput
    outputs: tuple[str, ...]
    positions: Mapping[str, int] = field(default_factory=dict)
    pasted_masks: str = ""
    stream_threads: int | None = None

    @property
    def window_hw(self) -> tuple[int, int]:
        """Return the network's image size; raise ValueError if the form takes images of any size."""
        if self.image.size_hw is None:
            raise ValueError(f"the {self.name} form takes images of any size")
        return self.image.size_hw


@dataclass(frozen=True)
class Options:
    """The user's options of decoding.

    score_threshold: rows with a lower score are dropped. class_thresholds: category id -> threshold of that class,
    used in place of score_threshold. max_detections: largest number of rows. min_area: smallest mask, in pixels.
    nms: suppression, for families whose network does not suppress duplicates: greedy per class, YOLACT's fast NMS
    per class, or across all classes. paste: how a box's small mask is resized into the image; None for the
    adapter's default. nms_iou: largest IoU of two boxes that both stay, 0..1; None for the adapter's default.
    """

    score_threshold: float = 0.0
    max_detections: int = 100
    nms: Nms = "per_class"
    class_thresholds: Mapping[int, float] = field(default_factory=dict)
    paste: Paste | None = None
    min_area: int = 0
    nms_iou: float | None = None


@dataclass(frozen=True)
class Defaults:
    """The options that a model uses where the configuration says nothing. Names and units are those of Options."""

    score_threshold: float = 0.05
    max_detections: int = 100
    nms: Nms = "per_class"
    nms_iou: float | None = None


@dataclass(frozen=True)
class ModelAdapter(ABC):
    """An adapter: a model's name on the model card, its classes, and its forms by name.

    labels: category id -> class name, in the order in which the network counts its classes, without background.
    defaults: options where the configuration says nothing.
    supported_options: names of the family-specific options that the adapter uses. nms_choices: the values of nms that
    the adapter has. kernels: modules of compiled loops
    that the adapter calls.
    """

    name: str
    labels: Mapping[int, str]
    forms: Mapping[str, ModelFormat]
    defaults: Defaults = field(default=Defaults(), kw_only=True)
    supported_options: ClassVar[frozenset[str]] = frozenset({"paste"})
    nms_choices: ClassVar[tuple[Nms, ...]] = ("per_class",)
    kernels: ClassVar[tuple[str, ...]] = ("segray.masks._kernels",)

    @abstractmethod
    def prepare(self, form: ModelFormat, image_rgb: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the input tensors for one image, by input name.

        Args:
            form: The form of the model.
            image_rgb: The upright image, uint8 (h, w, 3), RGB.

        Returns:
            The image as uint8 (1, h', w', 3) RGB at the network's size. The engine applies colour order, mean, scale,
            layout and dtype as stated by ModelFormat.image. Every other input has the model's own dtype and shape.
        """

    @abstractmethod
    def decode(self, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int], options: Options) -> Instances:
        """Return the instances of one image: highest score first, or in the order of the family's own library.

        Args:
            outputs: Arrays by output name, batch axis included. The arrays are not changed.
            size_hw: Height and width of the source image, in pixels.
            options: Thresholds and limits.

        Raises:
            ModelError: An output is missing or has another shape.
        """

    def with_labels(self, labels: Mapping[int, str]) -> Self:
        """Return the adapter with other classes, category id -> name.

        Raise ConfigError for an empty name, for a name that no file can hold, and for two classes of one name.
        """
        names = list(labels.values())
        if unusable := [name for name in names if not name or name.encode("utf-8", "replace").decode() != name]:
            raise ConfigError(
                "A class name is empty, or has characters that UTF-8 does not have.",
                where="model.labels",
                found=repr(unusable[0]),
                hint="Give each class in `model.labels` a name of at least one character.",
            )
        if repeated := [name for name in names if names.count(name) > 1]:
            raise ConfigError(
                "Two classes have the same name.",
                where="model.labels",
                found=f"{repeated[0]!r} of categories {', '.join(str(i) for i in labels if labels[i] == repeated[0])}",
                hint="Give each class in `model.labels` a name of its own.",
            )
        return replace(self, labels=dict(sorted(labels.items())))

    def with_size(self, form: str, size_hw: tuple[int, int] | None) -> Self:
        """Return the adapter with this image size, in pixels, for one form; None changes nothing."""
        if size_hw is None:
            return self
        image = replace(self.forms[form].image, size_hw=size_hw)
        return replace(self, forms={**self.forms, form: replace(self.forms[form], image=image)})

    def with_softmax(self, outputs: AbstractSet[str]) -> Self:
        """Return the adapter for a graph that makes these outputs by a softmax over their last axis.

        The instances stay the same; an adapter may find them in fewer steps.
        """
        return self


# ---- options --------------------------------------------------------------------------------------


def select_rows(
    order: NDArray[np.intp], class_ids: NDArray[np.int32], scores: NDArray[np.float32], options: Options
) -> NDArray[np.intp]:
    """Return the row indices of `order` whose score reaches the class's threshold, at most options.max_detections.

    Args:
        order: Row indices, best first.
        class_ids: (n,), category ids of all rows.
        scores: (n,), scores of all rows.
        options: The thresholds and the largest number of rows.
    """
    threshold: Any = np.float32(options.score_threshold)
    if options.class_thresholds:
        threshold = np.array([options.class_thresholds.get(int(i), threshold) for i in class_ids[order]], np.float32)
    selected: NDArray[np.intp] = order[scores[order] >= threshold]
    return selected[: options.max_detections]


def drop_small_masks(instances: Instances, options: Options) -> Instances:
    """Return the instances whose masks have at least options.min_area pixels."""
    if not options.min_area or not len(instances):
        return instances
    return instances.take(rle.area(instances.rles) >= options.min_area)


# ---- reading outputs ------------------------------------------------------------------------------


def outputs_by_name(outputs: Mapping[str, NDArray[Any]], names: Sequence[str], model_name: str) -> list[NDArray[Any]]:
    """Return the arrays of these names, in this order; raise ModelError if one is absent.

    TensorFlow's ":0" after an output name is ignored.
    """
    arrays = {name.removesuffix(":0"): array for name, array in outputs.items()}
    if absent := [name for name in names if name not in arrays]:
        raise ModelError(
            f"Outputs {', '.join(absent)} are missing.",
            where=model_name,
            found=f"outputs {', '.join(sorted(arrays)) or 'none'}",
            hint=f"Check `model.name` and `model.form`. Expected outputs: {', '.join(names)}.",
        )
    return [arrays[name] for name in names]


def outputs_of_shapes(
    outputs: Mapping[str, NDArray[Any]], shapes: Mapping[str, Sequence[int | str]], model_name: str
) -> list[NDArray[np.float32]]:
    """Return the arrays of these names as float32, in this order, without a batch axis of 1.

    Args:
        outputs: Arrays by output name.
        shapes: Output name -> sizes of the axes. A letter stands for any size, the same one in all shapes.
        model_name: The model's name, for errors.

    Raises:
        ModelError: An output is missing or has another shape.
    """
    arrays = [np.asarray(array) for array in outputs_by_name(outputs, tuple(shapes), model_name)]
    unbatched = [_without_batch_axis(array, len(shape)) for array, shape in zip(arrays, shapes.values(), strict=True)]
    sizes: dict[int | str, int] = {}
    for array, shape in zip(unbatched, shapes.values(), strict=True):
        expected = [
            size if isinstance(size, int) else sizes.setdefault(size, actual)
            for size, actual in zip(shape, array.shape, strict=False)
        ]
        if list(array.shape) != expected or array.ndim != len(shape):
            raise _shape_error(shapes, arrays, model_name)
    return [array.astype(np.float32, copy=False) for array in unbatched]


def _without_batch_axis(array: NDArray[Any], rank: int) -> NDArray[Any]:
    return array[0] if array.ndim == rank + 1 and len(array) == 1 else array


def _shape_error(
    shapes: Mapping[str, Sequence[int | str]], arrays: Sequence[NDArray[Any]], model_name: str
) -> ModelError:
    actual = ", ".join(f"{name} {list(array.shape)}" for name, array in zip(shapes, arrays, strict=True))
    expected = ", ".join(f"{name} [{', '.join(map(str, shape))}]" for name, shape in shapes.items())
    return ModelError(
        "The outputs have other shapes than the adapter expects.",
        where=model_name,
        found=actual,
        hint=f"Expected: {expected}. Check `model.name`, and `model.labels` if the classes are your own.",
    )
