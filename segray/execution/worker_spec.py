"""The specification of a worker, and the making of its labeller where it runs.

Knows configuration, model files, versions and process-wide settings. Knows nothing of images or tasks.
"""

from __future__ import annotations

import difflib
import importlib
import platform
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import segray
from segray import config
from segray.errors import ConfigError, ModelError
from segray.execution.image_steps import LabellerSettings, LoadedModel
from segray.execution.labeller import Labeller
from segray.imaging.opencv import cv2
from segray.imaging.tiling import TilingOptions
from segray.limits import ImageLimits
from segray.models import engine as runtime
from segray.models import resolve
from segray.models.adapters.adapter import ModelAdapter, Options
from segray.storage.store import StorageOptions, Store

_OPENCV_ERRORS = 2


@dataclass(frozen=True)
class WorkerSpec:
    """Everything that a worker needs to build its Labeller on any node. It travels between processes.

    model: the model section of the configuration.
    fingerprint: fingerprint of the driver's model files. Each worker compares it with its own files.
    limits: largest image that is decoded.
    storage: access to storage.
    staged: folder of finished tasks.
    tiles: how large images are cut; None to label each as a whole.
    version: version of the driver's segray. Each worker compares it with its own.
    """

    model: config.ModelSettings
    fingerprint: str
    limits: ImageLimits
    storage: StorageOptions
    staged: str
    tiles: TilingOptions | None = None
    version: str = segray.__version__


@contextmanager
def prepared() -> Iterator[None]:
    """Set for the block the process-wide state that labelling needs.

    OpenCV computes on the calling thread, since the threads of the pool are the parallelism. Libraries write nothing
    about broken files to stderr, since the rows of these files name the error.
    """
    threads, level = cv2.getNumThreads(), cv2.utils.logging.getLogLevel()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        cv2.setNumThreads(1)
        cv2.utils.logging.setLogLevel(_OPENCV_ERRORS)
        try:
            yield
        finally:
            cv2.setNumThreads(threads)
            cv2.utils.logging.setLogLevel(level)


def build(
    spec: WorkerSpec, device: str, threads: int | None, in_flight_log: Path | None = None
) -> tuple[Labeller, Mapping[str, str]]:
    """Read and compile the model on this machine. Keep the process prepared() as long as the labeller is used.

    Args:
        spec: the worker's specification.
        device: device of OpenVINO.
        threads: number of threads; None for all CPUs that the process may use.
        in_flight_log: file on this machine that names the images in flight if the process dies (in_flight.py).

    Returns:
        The labeller and the facts of its engine.

    Raises:
        ModelError: the files here are missing, or are not those that the run began with.
        ConfigError: segray here has another version than the driver's.
    """
    _check_version(spec)
    model = _model_here(spec)
    cores = threads or runtime.available_cpus()
    engine = _compiled(model, spec, device, cores)
    adapter = model.contract.with_size(model.form.name, engine.size_hw)
    form, options = adapter.forms[model.form.name], options_of(spec.model, adapter)
    store = Store(spec.storage, existing_uris=[spec.staged])  # The plan is in this bucket, so the bucket exists.
    labeller = Labeller(
        LoadedModel(engine, adapter, form, options),
        LabellerSettings(cores, spec.limits, spec.tiles, scaled_decode=spec.model.scaled_decode),
        store,
        spec.staged,
        in_flight_log=in_flight_log,
    )
    return labeller, {**engine.facts, "segray": segray.__version__, "host": platform.node()}


def _check_version(spec: WorkerSpec) -> None:
    """Raise ConfigError if this is another segray than the driver's."""
    if spec.version != segray.__version__:
        raise ConfigError(
            "a worker has another segray than the driver",
            where=platform.node(),
            found=f"{segray.__version__} there, {spec.version} in the driver",
            hint="install the same version on every node",
        )


def _model_here(spec: WorkerSpec) -> resolve.ResolvedModel:
    """Return the model as this machine has it; raise ModelError if its files are missing or differ."""
    chosen = spec.model
    try:
        model = resolve.resolve(chosen.name, chosen.path, chosen.form, chosen.labels)
    except ModelError as exc:  # The driver has found the files, so only this machine lacks them.
        raise ModelError(
            exc.what, where=f"{platform.node()}: {exc.where}", found=exc.found, hint="give every node the same files"
        ) from exc
    if model.fingerprint != spec.fingerprint:
        raise ModelError(
            "the model files on this worker are not those the run began with",
            where=f"{platform.node()}: {model.path}",
            found=f"fingerprint {model.fingerprint[:12]}, expected {spec.fingerprint[:12]}",
            hint="give every node the same files",
        )
    return model


def _compiled(model: resolve.ResolvedModel, spec: WorkerSpec, device: str, cores: int) -> runtime.Engine:
    """Compile the network, and the kernels beside it."""
    chosen = spec.model
    settings = runtime.DeviceSettings(
        device, cores, chosen.precision, chosen.cache_dir, fixed_shapes=chosen.fixed_shapes
    )
    with ThreadPoolExecutor(1) as thread:
        # The kernels take seconds to compile, the first time on a machine.
        kernels = thread.submit(
            importlib.import_module, "segray.masks._kernels_many" if spec.tiles else "segray.masks._kernels"
        )
        engine = runtime.compile(model.path, model.form, settings)
        kernels.result()
    return engine


def options_of(chosen: config.ModelSettings, adapter: ModelAdapter) -> Options:
    """Return the options of the configuration; raise ConfigError for a choice that this adapter does not have."""
    for choice, default in (("nms", "per_class"), ("paste", None)):
        value = getattr(chosen, choice)
        if value != default and choice not in adapter.choices:
            what = f"{chosen.name} leaves no choice of {choice}."
            hint = f"Remove it, or set model.{choice} to {default or 'null'}."
            raise ConfigError(what, where=f"model.{choice}", found=repr(value), hint=hint)
    floor = 1.0 if chosen.score_floor is None else chosen.score_floor
    thresholds = {_class_id(key, adapter.labels): min(least, floor) for key, least in chosen.class_thresholds.items()}
    return Options(
        min(chosen.score_threshold, floor),
        chosen.max_detections,
        chosen.nms,
        class_thresholds=thresholds,
        paste=chosen.paste,
        min_area=chosen.min_area,
    )


def _class_id(key: int | str, labels: Mapping[int, str]) -> int:
    """Return the id of a class that is given by name or id; raise ConfigError for an unknown class."""
    ids = {str(i): i for i in labels} | {name: i for i, name in labels.items()}
    if str(key) not in ids:
        near = difflib.get_close_matches(str(key), ids, n=1, cutoff=0.0)
        found, hint = repr(key), f"Did you mean {near[0]!r}?"
        raise ConfigError("The label map has no such class.", where="model.class_thresholds", found=found, hint=hint)
    return ids[str(key)]
