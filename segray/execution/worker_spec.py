"""The specification of a worker, and the construction of its labeller on its node.

Knows configuration, model files, versions and process-wide settings. Knows nothing of images or tasks.
"""

from __future__ import annotations

import difflib
import importlib
import os
import platform
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import segray
from segray import config
from segray._system import memory
from segray.errors import ConfigError, ModelError, SourceError
from segray.execution.image_steps import LabellerSettings, LoadedModel
from segray.execution.labeller import Labeller
from segray.execution.package_digest import package_digest
from segray.execution.tiling import TilingOptions
from segray.imaging.opencv import cv2
from segray.limits import ImageLimits
from segray.models import engine as runtime
from segray.models import resolve
from segray.models.adapters.adapter import ModelAdapter, Options
from segray.models.description import Description
from segray.storage.store import StorageOptions, Store

_OPENCV_ERROR_LEVEL = 2  # OpenCV logs errors only.


@dataclass(frozen=True)
class WorkerSpec:
    """The values from which a worker builds its Labeller on any node. Instances travel between processes.

    model: the model section of the configuration.
    fingerprint: fingerprint of the driver's model files. Each worker compares it with its own files.
    description: what the model's file says of itself, as the driver read it; None for a model of the catalogue.
    limits: largest image that is decoded.
    storage: access to the label set.
    staged: folder of staged files.
    tiles: options for cutting large images into windows; None to label each image as a whole.
    version, package: version and digest of the driver's segray. Each worker compares them with its own.
    source_storage: access to the images; None for `storage`.
    local_source: local folder or file that holds all images; "" for other sources.
    """

    model: config.ModelSettings
    fingerprint: str
    limits: ImageLimits
    storage: StorageOptions
    staged: str
    tiles: TilingOptions | None = None
    version: str = segray.__version__
    package: str = field(default_factory=package_digest)
    source_storage: StorageOptions | None = None
    local_source: str = ""
    description: Description | None = None


class ModelFilesError(ModelError):
    """Model files that a machine lacks, or that differ from those of the driver."""


@contextmanager
def prepared_process() -> Iterator[None]:
    """Set the process-wide state that labelling needs, and restore the former state after the block.

    OpenCV computes on the calling thread, since the threads of the pool are the parallelism. OpenCV and Pillow write
    nothing about broken files to stderr, since the rows of broken files name the error; `imaging.decode` silences the
    libraries below them. Memory of pictures is returned; malloc keeps that setting after the block.
    """
    memory.return_large_blocks()
    threads, log_level = cv2.getNumThreads(), cv2.utils.logging.getLogLevel()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        cv2.setNumThreads(1)
        cv2.utils.logging.setLogLevel(_OPENCV_ERROR_LEVEL)
        try:
            yield
        finally:
            cv2.setNumThreads(threads)
            cv2.utils.logging.setLogLevel(log_level)


def build(
    spec: WorkerSpec,
    device: str,
    threads: int | None,
    in_flight_log: Path | None = None,
    shipped_model: Path | None = None,
) -> tuple[Labeller, Mapping[str, str]]:
    """Read and compile the model on this machine. The caller and the labeller run in prepared_process().

    Args:
        spec: the worker's specification.
        device: device of OpenVINO.
        threads: number of threads; None for all CPUs that the process may use.
        in_flight_log: file on this machine that names the images in flight if the process dies (in_flight.py).
        shipped_model: the driver's model on this machine (model_files.py); None for the model at `model.path`.

    Returns:
        The labeller, and the facts of its engine with the host and the version of segray.

    Raises:
        ModelFilesError: the model files on this machine are missing, or differ from those of the driver.
        ModelError: OpenVINO cannot load the model on this machine.
        ConfigError: segray on this machine is another one than segray in the driver.
        SourceError: the folder of the images is missing or empty on this machine.
    """
    _check_version(spec)
    _check_source(spec.local_source)
    model = _resolve_model(spec, shipped_model)
    cores = threads or runtime.available_cpus()
    engine = _compile(model, spec, device, cores)
    adapter = model.adapter.with_size(model.form.name, engine.size_hw)
    form, options = adapter.forms[model.form.name], options_of(spec.model, adapter)
    store = Store(spec.storage, existing_uris=[spec.staged])  # The plan is in this bucket, so the bucket exists.
    labeller = Labeller(
        LoadedModel(engine, adapter, form, options),
        LabellerSettings(cores, spec.limits, spec.tiles, scaled_decode=spec.model.scaled_decode),
        store,
        spec.staged,
        in_flight_log=in_flight_log,
        source_store=None if spec.source_storage in (None, spec.storage) else Store(spec.source_storage),
    )
    return labeller, {**engine.facts, "segray": segray.__version__, "host": platform.node()}


def _check_version(spec: WorkerSpec) -> None:
    """Raise ConfigError if segray on this machine has another version or other code than segray in the driver."""
    if spec.version != segray.__version__:
        raise ConfigError(
            "a worker has another version of segray than the driver",
            where=platform.node(),
            found=f"{segray.__version__} there, {spec.version} in the driver",
            hint="install the same version of segray on every node",
        )
    if spec.package != package_digest():
        raise ConfigError(
            "a worker has another segray than the driver, with the same version",
            where=f"{platform.node()}: {Path(segray.__file__).parent}",
            found=f"files with digest {package_digest()} there, {spec.package} in the driver",
            hint="install the same wheel, or the same commit, on every node",
        )


def _check_source(local_source: str) -> None:
    """Raise SourceError if the folder or file of the images is missing or empty on this machine.

    An unmounted disk leaves such a folder. Without this check each image would become a failed row.
    """
    if not local_source or Path(local_source).is_file():
        return
    try:
        with os.scandir(local_source) as entries:
            found = "" if next(entries, None) else "an empty folder"
    except PermissionError:  # A folder that may not be listed may still serve its files.
        return
    except OSError as error:
        found = error.strerror or str(error)
    if found:
        raise SourceError(
            "the images are not on this machine",
            where=f"{platform.node()}: {local_source}",
            found=found,
            hint="mount the disk of source.uri on every node, then run the same command again",
        )


def _resolve_model(spec: WorkerSpec, shipped_model: Path | None) -> resolve.ResolvedModel:
    """Return the model on this machine; raise ModelFilesError if its files are missing or differ from the driver's."""
    settings = spec.model
    if shipped_model is not None:
        settings = settings.model_copy(update={"path": str(shipped_model)})
    try:
        model = resolve.configured(settings, spec.description)
    except (ModelError, ConfigError) as exc:  # The driver has resolved the model, so the files here are others.
        raise ModelFilesError(
            exc.what,
            where=f"{platform.node()}: {exc.where}",
            found=exc.found,
            hint="give every node the same files of the model",
        ) from exc
    if model.fingerprint != spec.fingerprint:
        raise ModelFilesError(
            "the model files on this worker differ from those of the driver",
            where=f"{platform.node()}: {model.path}",
            found=f"fingerprint {model.fingerprint[:12]}, expected {spec.fingerprint[:12]}",
            hint="give every node the same files of the model",
        )
    return model


def _compile(model: resolve.ResolvedModel, spec: WorkerSpec, device: str, cores: int) -> runtime.Engine:
    """Compile the network, and at the same time the mask kernels."""
    settings = spec.model
    device_settings = runtime.DeviceSettings(
        device, cores, settings.precision, settings.cache_dir, fixed_shapes=settings.fixed_shapes
    )
    modules = [*model.adapter.kernels, *(["segray.masks._kernels_many"] if spec.tiles else [])]
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
