"""The loading of a resolved model onto a device: the network, the compiled loops and the options of decoding.

Knows configuration of a model and of OpenCV's threads. Knows nothing of images, tasks and label sets.
"""

from __future__ import annotations

import difflib
import importlib
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from segray import config
from segray.errors import ConfigError
from segray.execution.image_steps import LoadedModel
from segray.imaging.opencv import cv2
from segray.models import engine as runtime
from segray.models import resolve
from segray.models.adapters.adapter import ModelAdapter, Options


class _OneOpenCVThread:
    """A context in which OpenCV computes on the calling thread. The last of several contexts restores the number.

    The threads that label images are the parallelism. The number of threads is one for the process, so contexts that
    overlap must share it.
    """

    def __init__(self) -> None:
        self._lock, self._contexts, self._before = threading.Lock(), 0, 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._contexts:
                self._before = cv2.getNumThreads()
                cv2.setNumThreads(1)
            self._contexts += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._contexts -= 1
            if not self._contexts:
                cv2.setNumThreads(self._before)


one_opencv_thread = _OneOpenCVThread()


def load(
    model: resolve.ResolvedModel, settings: config.ModelSettings, device: str, cores: int, *, tiled: bool
) -> LoadedModel:
    """Compile a model on this machine, and return it with its adapter and options.

    Args:
        model: the model's files.
        settings: the section `model` of the configuration.
        device: device of OpenVINO.
        cores: number of threads.
        tiled: whether images are cut into tiles, whose instances are merged.

    Raises:
        ModelError: OpenVINO cannot load the model on this machine.
        ConfigError: the model does not support an option.
    """
    options_of(settings, model.adapter)  # An invalid choice fails before the network compiles.
    engine = _compile(model, settings, device, cores, tiled=tiled)
    adapter = model.adapter.with_size(model.form.name, engine.size_hw).with_softmax(engine.softmax_outputs)
    return LoadedModel(engine, adapter, adapter.forms[model.form.name], options_of(settings, adapter))


def _compile(
    model: resolve.ResolvedModel, settings: config.ModelSettings, device: str, cores: int, *, tiled: bool
) -> runtime.Engine:
    """Compile the network, and at the same time the mask kernels."""
    device_settings = runtime.DeviceSettings(
        device, cores, settings.precision, settings.cache_dir, fixed_shapes=settings.fixed_shapes
    )
    modules = [*model.adapter.kernels, *(["segray.masks._kernels_many"] if tiled else [])]
    with ThreadPoolExecutor(1) as thread:
        # The kernels take seconds to compile, the first time on a machine.
        kernels = [thread.submit(importlib.import_module, module) for module in modules]
        engine = runtime.compile(model.path, model.form, device_settings)
        for kernel in kernels:
            kernel.result()
    return engine


def options_of(settings: config.ModelSettings, adapter: ModelAdapter) -> Options:
    """Return the options of the configuration, or the adapter's where the configuration says nothing.

    Raise ConfigError for an option that the adapter does not support.
    """
    defaults = adapter.defaults
    for name in ("nms", "nms_iou", "paste"):
        value = getattr(settings, name)
        if value not in (None, getattr(defaults, name, None)) and name not in adapter.supported_options:
            what = f"{adapter.name} does not support the option {name}."
            hint = f"Remove model.{name}, or set model.{name} to null."
            raise ConfigError(what, where=f"model.{name}", found=repr(value), hint=hint)
    if settings.nms is not None and settings.nms not in (defaults.nms, *adapter.nms_choices):
        what, hint = f"{adapter.name} has no such suppression.", f"Set model.nms to {' or '.join(adapter.nms_choices)}."
        raise ConfigError(what, where="model.nms", found=settings.nms, hint=hint)
    floor = 1.0 if settings.score_floor is None else settings.score_floor
    class_thresholds = {
        _class_id(key, adapter.labels): min(threshold, floor) for key, threshold in settings.class_thresholds.items()
    }
    score_threshold = defaults.score_threshold if settings.score_threshold is None else settings.score_threshold
    return Options(
        min(score_threshold, floor),
        settings.max_detections or defaults.max_detections,
        settings.nms or defaults.nms,
        class_thresholds=class_thresholds,
        paste=settings.paste,
        min_area=settings.min_area,
        nms_iou=defaults.nms_iou if settings.nms_iou is None else settings.nms_iou,
    )


def _class_id(key: int | str, labels: Mapping[int, str]) -> int:
    """Return the id of a class that is named by name or id; raise ConfigError for an unknown class."""
    ids = {str(class_id): class_id for class_id in labels} | {name: class_id for class_id, name in labels.items()}
    if str(key) not in ids:
        (nearest,) = difflib.get_close_matches(str(key), ids, n=1, cutoff=0.0)
        found, hint = repr(key), f"Did you mean {nearest!r}?"
        raise ConfigError("The label map has no such class.", where="model.class_thresholds", found=found, hint=hint)
    return ids[str(key)]
