"""The start of a run's workers on Ray, for callers that may not need Ray at all.

Knows that the import of Ray takes seconds and changes the process. ray_pool.py knows Ray.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from segray._system import host_process, signals

if TYPE_CHECKING:
    from segray.config import Config
    from segray.execution.worker_pool import WorkerPool
    from segray.execution.worker_spec import WorkerSpec


@contextmanager
def _without_advice_on_widgets() -> Iterator[None]:
    """Drop the advice to install ipywidgets, which Ray 2.60 and its tqdm write into a notebook on import.

    The caller restores the filters of warnings.
    """
    widgets = logging.getLogger("ray.widgets")
    level = widgets.level
    widgets.setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message="IProgress not found")
    try:
        yield
    finally:
        widgets.setLevel(level)


def start_workers(spec: WorkerSpec, config: Config) -> WorkerPool:
    """Return workers on the configured Ray cluster."""
    try:
        # The import of Ray changes the process too.
        with host_process.import_changes_undone(), _without_advice_on_widgets():
            from segray.execution import ray_pool
        return ray_pool.start(spec, config)
    except Exception as exc:  # A KeyboardInterrupt during an import or Ray's start may become any exception.
        if signals.stop_requested():
            raise KeyboardInterrupt from exc
        raise
