"""Label whole image datasets with instance masks: OpenVINO models in Ray actors, Parquet masks out."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from segray import rle
from segray.contracts import decode
from segray.instances import Instances

if TYPE_CHECKING:
    from segray.analytics.sql import sql
    from segray.tables import images, scan

# Importing OpenVINO tells Google Analytics of it. Without this module it does not, and lacks nothing.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

__version__ = "0.1.0"

__all__ = ["Instances", "__version__", "decode", "images", "rle", "scan", "sql"]


def __getattr__(name: str) -> Any:
    # Reading tables needs Delta and storage; decoding arrays should not load them.
    if name in ("images", "scan"):
        from segray import tables

        return getattr(tables, name)
    if name == "sql":
        from segray.analytics import sql

        return sql.sql
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
