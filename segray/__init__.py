"""Instance masks for whole image datasets: OpenVINO models in Ray actors, Parquet tables as the result.

Each public name is imported on first use. `import segray` itself loads no library.
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # As in typing, whose import is slow.
if TYPE_CHECKING:
    from segray import errors, instances, rle
    from segray.analytics.query.duckdb_views import sql
    from segray.api.label import label
    from segray.api.label_set import LabelSet, open_label_set
    from segray.api.model import Model, load_model
    from segray.instances import Instances
    from segray.label_set.snapshot import images, scan
    from segray.models.registry import decode

__version__ = "0.1.0"

__all__ = [
    "Instances", "LabelSet", "Model", "__version__", "decode", "errors", "images", "instances", "label", "load_model",
    "open_label_set", "rle", "scan", "sql",
]  # fmt: skip

# The modules of the public names. The modules below are attributes of segray without an import by name.
_HOMES = {
    "Instances": "segray.instances",
    "LabelSet": "segray.api.label_set",
    "Model": "segray.api.model",
    "decode": "segray.models.registry",
    "images": "segray.label_set.snapshot",
    "label": "segray.api.label",
    "load_model": "segray.api.model",
    "open_label_set": "segray.api.label_set",
    "scan": "segray.label_set.snapshot",
    "sql": "segray.analytics.query.duckdb_views",
}
_MODULES = ("errors", "instances", "rle")


if not TYPE_CHECKING:  # Type checkers would accept any name of a module that has this function.

    def __getattr__(name):
        if name in _MODULES:
            return importlib.import_module(f"segray.{name}")
        if name in _HOMES:
            return getattr(importlib.import_module(_HOMES[name]), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
