"""A run as a function: label(), which brings a label set up to date and returns it.

Knows the arguments of a run and what becomes of its end. execution/run.py does the run, as for `segray label`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

from segray import config
from segray.api.label_set import LabelSet
from segray.api.model import Model
from segray.arguments import PositiveCount, checked
from segray.config import Config
from segray.errors import TooManyFailedError
from segray.execution import run
from segray.execution.pool_check import check_pools
from segray.execution.ray_start import start_workers
from segray.execution.run import Summary
from segray.label_set import snapshot
from segray.models import resolve
from segray.monitoring import library, session
from segray.storage.options import StorageKeywords
from segray.storage.uris import PathOrUrl

_WHERE = "segray.label"


@checked
def label(
    source: PathOrUrl,
    output: PathOrUrl,
    *,
    model: PathOrUrl | Model,
    limit: PositiveCount | None = None,
    progress: bool = True,
    address: str | None = None,
    retry_failed: Collection[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> LabelSet:
    """Label the images that have no row in the label set yet, and return the label set.

    The function does what `segray label` does, and may be called again to resume, or to label new and changed images.
    Without an address it starts a Ray cluster on this machine, and ends the cluster before it returns or raises. It may
    be called in any thread, in a running event loop and in a notebook.

    Args:
        source: Images: a folder, glob, prefix, archive, video or manifest; `source.uri` of a configuration.
        output: Folder or URL of the label set; `output.root` of a configuration.
        model: The file or folder of a model, a name that `segray models list` shows, or a Model of `load_model`, whose
            settings and device are taken.
        limit: Largest number of images to label, the first by key; None for all.
        progress: Show a bar in a terminal or a notebook, and lines elsewhere. The logger `segray` gets the lines too.
        address: Address of a Ray cluster, or "auto" for the cluster of this machine; None for a private cluster.
        retry_failed: Stages of failed images to label again: read, decode, infer, postprocess, process, or all.
        settings: Further keys of a configuration with dots, as for `segray label --set`, such as
            {"source.tiles.size": 1024, "max_failed_fraction": 0.05}. The values are those of Python.
            configs/reference.yaml lists all keys. Arguments of this function win over keys.

    Returns:
        The label set after the last commit. Its `summary` says what this call did.

    Raises:
        UserError: The configuration, model, source or root is at fault, as exit code 2 of the command.
        TooManyFailedError: More images of this run failed than `max_failed_fraction` allows. All rows are committed.
        InfrastructureError: The run stopped or left images over; the same call resumes it. Exit code 3 of the command.
        ConflictError: Another run works on the label set.
        Interrupted: Ctrl-C. What was committed is kept, and the same call resumes. Exit code 130 of the command.

    Example:
        >>> labels = segray.label("photos", "labels", model="best_openvino_model", limit=100)
        >>> labels
        LabelSet('/data/labels', version 1: 100 images, 312 instances, 80 classes)
    """
    run_config = _config(source, output, model, address, settings or {})
    check_pools(run_config)
    screen = library.listener(progress=progress)
    others = [] if isinstance(screen, library.LogLines) else [library.LogLines()]
    with session.observed(run_config, screen, others) as listener:
        summary = run.label(run_config, listener, start_workers, limit=limit, retry_failed=retry_failed, exclusive=True)
    session.report(run_config, summary, screen)
    if summary.exit_code:
        raise _too_many_failed(summary, run_config.max_failed_fraction)
    options = cast(StorageKeywords, run_config.storage.model_dump(exclude_defaults=True))
    return LabelSet(snapshot.snapshot(summary.root, **options), options, summary)


def _config(
    source: PathOrUrl, output: PathOrUrl, model: PathOrUrl | Model, address: str | None, settings: Mapping[str, Any]
) -> Config:
    """Return the configuration of these arguments."""
    keys: dict[str, Any] = {**settings, "source.uri": source, "output.root": output}
    if address is not None:
        keys["cluster.address"] = address
    if isinstance(model, Model):
        keys = {**model.run_keys(), **keys}
    else:
        named = {f"model.{key}": value for key, value in resolve.keys_of(model).items()}
        keys = {**named, **keys}
    return config.validate(config.nested(keys, _WHERE), _WHERE)


def _too_many_failed(summary: Summary, allowed: float) -> TooManyFailedError:
    failed, images = summary.of_runs.get("failed", 0), sum(summary.of_runs.values())
    first = [f"{key}: {stage}: {message.splitlines()[0]}" for key, stage, message in summary.failures[:3]]
    return TooManyFailedError(
        f"{failed} of {images} images failed, more than max_failed_fraction ({allowed:g}) allows",
        where=summary.root,
        found="; ".join(first),
        hint="read the reasons in images(), of status failed; call again with retry_failed, or with another "
        'settings={"max_failed_fraction": ...}',
    )
