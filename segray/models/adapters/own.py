"""The adapter around a decoder of one's own: a user's class with `prepare` and `decode`.

Knows what the two methods may return, and turns everything else into a fault of the image. Knows nothing of files.
The class never ends a run: whatever it raises or returns, the image becomes a failed row that names the decoder.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from segray import rle
from segray.errors import ConfigError, ImageError
from segray.instances import Instances
from segray.models.adapters.adapter import (
    Defaults,
    ModelAdapter,
    ModelFormat,
    Options,
    drop_small_masks,
    select_rows,
)
from segray.models.adapters.described import forms_of
from segray.models.decoders import Decoder, place, text_of
from segray.models.description import CONFIGURATION, Description
from segray.models.metadata import CARD

_COLUMNS = ("classes", "scores", "masks")
_BOXES = "boxes_xyxy"
# A network that approximates softmax may exceed 1 in the last bits.
_MAX_SCORE = 1.001


def of(description: Description, decoder: Decoder) -> OwnAdapter:
    """Return the adapter of a model that a decoder of one's own describes.

    Raises ConfigError for a way of resizing in a card or the configuration, since the decoder resizes images itself.
    """
    for key, name in (("resize", "resize"), ("pad_value", "pad"), ("rounding", "rounding")):
        if (source := description.sources.get(key)) in (CARD, CONFIGURATION):
            where = f"{CARD}, description.{key}" if source == CARD else f"model.preprocessing.{name}"
            raise ConfigError(
                f"The decoder {decoder.code.reference} resizes images itself.",
                where=where,
                found=str(getattr(description, key)),
                hint=f"Remove `{name if source == CONFIGURATION else key}`, or change `prepare` of the decoder.",
            )
    stated = description.thresholds
    defaults = Defaults(
        float(stated.get("score_threshold", Defaults.score_threshold)),
        int(stated.get("max_detections", Defaults.max_detections)),
    )
    return OwnAdapter(
        decoder.name,
        description.labels,
        forms_of(description, tuple(description.outputs)),
        defaults=defaults,
        description=description,
        decoder=decoder,
    )


@dataclass(frozen=True)
class OwnAdapter(ModelAdapter):
    """An adapter that calls a user's class.

    description: the facts of the model, with those of the configuration. decoder: the class. instance: an instance of
    the class, which has the description as its attribute `description`.
    """

    description: Description = field(kw_only=True)
    decoder: Decoder = field(kw_only=True)
    instance: Any = field(init=False, compare=False, repr=False)
    supported_options = frozenset()

    def __post_init__(self) -> None:
        """Make the instance, which all threads use."""
        instance = self.decoder.new()
        instance.description = self.description
        object.__setattr__(self, "instance", instance)

    def with_labels(self, labels: Mapping[int, str]) -> Self:
        """Return the adapter with other classes, also for the decoder."""
        named = super().with_labels(labels)
        return replace(named, description=replace(self.description, labels=named.labels))

    def with_size(self, form: str, size_hw: tuple[int, int] | None) -> Self:
        """Return the adapter with this image size, in pixels, also for the decoder; None changes nothing."""
        sized = super().with_size(form, size_hw)
        return sized if size_hw is None else replace(sized, description=replace(self.description, size_hw=size_hw))

    # ---- prepare ----

    def prepare(self, form: ModelFormat, image_rgb: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the arrays of the decoder, the image with a batch axis.

        Raises ImageError for whatever the decoder raises, and for arrays that the network cannot take.
        """
        with self._faults_named("prepare", "infer"):
            prepared = self.instance.prepare(image_rgb)
            arrays = prepared if isinstance(prepared, Mapping) else {form.image.name: prepared}
            arrays = {str(name): np.asarray(array) for name, array in arrays.items()}
        if form.image.name not in arrays:
            found = f"arrays {', '.join(arrays) or 'none'}"
            raise self._wrong("prepare", f"prepare returned no array {form.image.name!r}, the image", found)
        image = arrays[form.image.name]
        image = image[0] if image.ndim == 4 and len(image) == 1 else image
        size_hw = form.image.size_hw or image.shape[:2]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape != (*size_hw, 3) or not image.size:
            expected = "height, width" if form.image.size_hw is None else f"{size_hw[0]}, {size_hw[1]}"
            what = f"prepare returned another image than uint8 ({expected}, 3)"
            raise self._wrong("prepare", what, _array_text(arrays[form.image.name]))
        return {**arrays, form.image.name: np.ascontiguousarray(image)[None]}

    # ---- decode ----

    def decode(self, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int], options: Options) -> Instances:
        """Return the decoder's instances that meet the options, highest score first.

        The decoder gets views that it cannot write to, since the arrays belong to the engine. Its options have the
        lowest threshold of all classes, so that it may drop rows early.

        Raises ImageError for whatever the decoder raises, and for a result that segray cannot use.
        """
        lowest = min([options.score_threshold, *options.class_thresholds.values()])
        with self._faults_named("decode", "postprocess"):
            views = {name: array.view() for name, array in outputs.items()}
            for view in views.values():
                view.flags.writeable = False
            result = self.instance.decode(views, size_hw, replace(options, score_threshold=lowest))
            instances = self._instances(result, size_hw, options)
        return drop_small_masks(instances, options)

    def _instances(self, result: Any, size_hw: tuple[int, int], options: Options) -> Instances:
        """Return the instances in what a decoder returned."""
        if isinstance(result, Instances):
            checked = self._checked_instances(result, size_hw)
            return checked.take(self._selected(checked.class_ids, checked.scores, options))
        if not isinstance(result, Mapping):
            what = "decode returned neither Instances nor a mapping of classes, scores and masks"
            raise self._wrong("decode", what, type(result).__name__)
        if result.keys() - {_BOXES} != set(_COLUMNS):
            what = f"decode returned other keys than {', '.join(_COLUMNS)} and perhaps {_BOXES}"
            raise self._wrong("decode", what, f"keys {', '.join(map(str, result)) or 'none'}")
        columns = {key: np.asarray(column) for key, column in result.items()}
        count = len(columns["scores"]) if columns["scores"].ndim else 0
        if not any(column.size for column in columns.values()) and not count:
            return Instances.empty(size_hw)
        self._check_column(columns["classes"], "classes", (count,), (np.integer,), "whole numbers")
        self._check_column(columns["scores"], "scores", (count,), (np.floating,), "floats")
        self._check_column(columns["masks"], "masks", (count, *size_hw), (np.bool_,), "bool")
        class_ids = self._class_ids(columns["classes"])
        scores = self._checked_scores(columns["scores"])
        rows = self._selected(class_ids, scores, options)
        masks = [_counts_and_box(mask, size_hw) for mask in columns["masks"][rows]]
        boxes_xyxy = np.array([box for _, box in masks], np.float32).reshape(-1, 4)
        if _BOXES in columns:
            self._check_column(columns[_BOXES], _BOXES, (count, 4), (np.floating, np.integer), "numbers")
            boxes_xyxy = self._checked_boxes(columns[_BOXES], size_hw)[rows]
        counts = tuple(text for text, _ in masks)
        return Instances(class_ids[rows], scores[rows], boxes_xyxy, counts, size_hw)

    def _selected(
        self, class_ids: NDArray[np.int32], scores: NDArray[np.float32], options: Options
    ) -> NDArray[np.intp]:
        """Return the rows over their threshold, highest score first, at most options.max_detections."""
        return select_rows(np.argsort(-scores, kind="stable"), class_ids, scores, options)

    # ---- checks ----

    def _check_column(
        self, column: NDArray[Any], key: str, shape: tuple[int, ...], kinds: tuple[type[Any], ...], words: str
    ) -> None:
        """Raise ImageError unless a column has this shape and a dtype of these kinds. words: the kinds, for people."""
        if column.shape != shape or not any(np.issubdtype(column.dtype, kind) for kind in kinds):
            text = f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
            raise self._wrong("decode", f"decode returned {key} that are not {words} {text}", _array_text(column))

    def _class_ids(self, classes: NDArray[Any]) -> NDArray[np.int32]:
        ids = np.array(list(self.labels), np.int32)
        wrong = np.flatnonzero((classes < 0) | (classes >= len(ids)))
        if len(wrong):
            what = f"decode returned a class outside 0 to {len(ids) - 1}; the labels are {len(ids)}"
            raise self._wrong("decode", what, f"class {classes[wrong[0]]} in row {wrong[0]}")
        class_ids: NDArray[np.int32] = ids[classes.astype(np.intp)]
        return class_ids

    def _checked_scores(self, scores: NDArray[Any]) -> NDArray[np.float32]:
        wrong = np.flatnonzero(~((scores >= 0) & (scores <= _MAX_SCORE)))
        if len(wrong):
            what = "decode returned a score that is no number from 0 to 1"
            raise self._wrong("decode", what, f"{scores[wrong[0]]} in row {wrong[0]}")
        return scores.clip(0, 1).astype(np.float32)

    def _checked_boxes(self, boxes_xyxy: NDArray[Any], size_hw: tuple[int, int]) -> NDArray[np.float32]:
        wrong = np.flatnonzero(~np.isfinite(boxes_xyxy).all(axis=1))
        if len(wrong):
            what = "decode returned a box with a number that is not finite"
            raise self._wrong("decode", what, f"{boxes_xyxy[wrong[0]].tolist()} in row {wrong[0]}")
        return boxes_xyxy.clip(0, np.array(size_hw[::-1] * 2)).astype(np.float32)

    def _checked_instances(self, instances: Instances, size_hw: tuple[int, int]) -> Instances:
        """Return instances with scores up to 1 and boxes within the image; raise ImageError for unusable ones."""
        if instances.size_hw != tuple(size_hw):
            what = f"decode returned instances of an image of another size than {size_hw}"
            raise self._wrong("decode", what, str(instances.size_hw))
        scores = self._checked_scores(instances.scores)
        boxes_xyxy = self._checked_boxes(instances.boxes_xyxy, size_hw)
        unknown = np.flatnonzero(~np.isin(instances.class_ids, list(self.labels)))
        if len(unknown):
            what = f"decode returned a category id that is none of {', '.join(map(str, list(self.labels)[:12]))}"
            raise self._wrong("decode", what, f"{instances.class_ids[unknown[0]]} in row {unknown[0]}")
        sizes_hw = np.tile(np.array(size_hw, np.int64), (len(instances), 1))
        broken = np.flatnonzero(rle.pixels(instances.rles, sizes_hw) < 0)
        if len(broken):
            what = "decode returned run lengths that do not span the image"
            raise self._wrong("decode", what, f"{instances.rles[broken[0]][:40]!r} in row {broken[0]}")
        return replace(instances, scores=scores, boxes_xyxy=boxes_xyxy)

    @contextmanager
    def _faults_named(self, method: str, stage: str) -> Iterator[None]:
        """Raise ImageError with the decoder's name for whatever the block raises."""
        try:
            yield
        except ImageError as error:
            if error.where == self._where(method):
                raise
            raise self._failed(method, stage, error) from error
        except BaseException as error:  # SystemExit, too, must cost one image alone.
            if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
                raise  # Ctrl-C reaches the main thread alone, and no thread of a worker.
            raise self._failed(method, stage, error) from error

    def _failed(self, method: str, stage: str, error: BaseException) -> ImageError:
        line = place(error, self.decoder.code)
        return ImageError(
            f"the decoder failed in {method}",
            stage=stage,
            where=f"{self._where(method)}{line and f', {line}'}",
            found=text_of(error),
            hint=f"correct the decoder, then label the image again: --retry-failed {stage}",
        )

    def _wrong(self, method: str, what: str, found: str) -> ImageError:
        stage = "infer" if method == "prepare" else "postprocess"
        hint = f"correct the decoder, then label the image again: --retry-failed {stage}"
        return ImageError(what, stage=stage, where=self._where(method), found=found[:300], hint=hint)

    def _where(self, method: str) -> str:
        return f"decoder {self.decoder.code.reference}, {method}"


def _counts_and_box(mask: NDArray[np.bool_], size_hw: tuple[int, int]) -> tuple[str, tuple[int, int, int, int]]:
    """Return the RLE counts of a mask, and the box of its extent, x0, y0, x1, y1; an empty mask has an empty box."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return rle.encode_crop(mask[:0, :0], 0, 0, size_hw), (0, 0, 0, 0)
    y0, y1, x0, x1 = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    return rle.encode_crop(mask[y0:y1, x0:x1], x0, y0, size_hw), (x0, y0, x1, y1)


def _array_text(array: NDArray[Any]) -> str:
    return f"{array.dtype} {array.shape}"
