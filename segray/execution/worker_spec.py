"""The specification of a worker, and the construction of its labeller on its node.

Knows configuration, model files, versions and process-wide settings. Knows nothing of images or tasks.
"""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import segray
from segray import config
from segray._system import memory
from segray.errors import ConfigError, ModelError, SourceError
from segray.execution.image_steps import LabellerSettings
from segray.execution.labeller import Labeller
from segray.execution.model_files import received_code
from segray.execution.model_loading import load, one_opencv_thread
from segray.execution.package_digest import package_digest
from segray.execution.tiling import TilingOptions
from segray.imaging.opencv import cv2
from segray.limits import ImageLimits
from segray.models import decoders, resolve
from segray.models import engine as runtime
from segray.models.decoders import Code
from segray.models.description import Description
from segray.storage.store import StorageOptions, Store

_OPENCV_ERROR_LEVEL = 2  # OpenCV logs errors only.


@dataclass(frozen=True)
class WorkerSpec:
    """The values from which a worker builds its Labeller on any node. Instances travel between processes.

    model: the model section of the configuration.
    fingerprint: fingerprint of the driver's model files. Each worker compares it with its own files.
    description: what the model's file says of itself, as the driver read it; None for a model of the catalogue.
    decoder: code of the user's decoder that gave the description; None for a model that segray decodes.
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
    decoder: Code | None = None


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
    log_level = cv2.utils.logging.getLogLevel()
    with warnings.catch_warnings(), one_opencv_thread:
        warnings.filterwarnings("ignore", module=r"PIL\.")
        cv2.utils.logging.setLogLevel(_OPENCV_ERROR_LEVEL)
        try:
            yield
        finally:
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
        ConfigError: segray on this machine is another one than segray in the driver, or the user's decoder cannot be
            imported here.
        SourceError: the folder of the images is missing or empty on this machine.
    """
    _check_version(spec)
    _check_source(spec.local_source)
    model = _resolve_model(spec, shipped_model)
    cores = threads or runtime.available_cpus()
    loaded = load(model, spec.model, device, cores, tiled=spec.tiles is not None)
    store = Store(spec.storage, existing_uris=[spec.staged])  # The plan is in this bucket, so the bucket exists.
    labeller = Labeller(
        loaded,
        LabellerSettings(cores, spec.limits, spec.tiles, scaled_decode=spec.model.scaled_decode),
        store,
        spec.staged,
        in_flight_log=in_flight_log,
        source_store=None if spec.source_storage in (None, spec.storage) else Store(spec.source_storage),
    )
    return labeller, {**loaded.engine.facts, "segray": segray.__version__, "host": platform.node()}


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
        decoder = None if spec.decoder is None else decoders.on_this_machine(spec.decoder, received_code)
    except ConfigError as exc:
        raise ConfigError(exc.what, where=f"{platform.node()}: {exc.where}", found=exc.found, hint=exc.hint) from exc
    try:
        model = resolve.configured(settings, spec.description, decoder)
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
