"""The results of each family's own library, in folders outside the repository.

They lie in `shared` beside the repository, or where SEGRAY_SHARED says. The folders are too large for the repository,
and some of them have another licence. Their tests skip without them.
"""

from __future__ import annotations

import functools
import gzip
import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHARED = Path(os.environ.get("SEGRAY_SHARED") or Path(__file__).parents[3] / "shared")
FOLDER = SHARED / "reference-today"
DESCRIPTIONS = FOLDER / "describe"
REAL = SHARED / "real"


def results(pattern: str) -> list[Path]:
    """Return the files of expected results by a pattern of names; none if the folder is not there."""
    return sorted((FOLDER / "expected").glob(f"{pattern}.json.gz"))


def result(path: Path) -> Any:
    """Return one file of expected results."""
    return json.loads(gzip.decompress(path.read_bytes()))


@functools.lru_cache(maxsize=4)
def raw_outputs(case: str, seed: int) -> tuple[Mapping[str, NDArray[Any]], Mapping[str, Any]]:
    """Return the arrays of a case, read-only, and what the model's file says; fail for other arrays than theirs."""
    script = _script()
    arrays, facts = script.make(case, seed)
    digests = json.loads((FOLDER / "raw_sha256.json").read_text("utf-8"))
    assert script.digest(arrays) == digests[str(seed)][case]
    for array in arrays.values():
        array.flags.writeable = False
    return arrays, facts


def picture(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """Return the picture of this seed and size, RGB."""
    drawn: NDArray[np.uint8] = _script().picture(seed, height, width)
    return drawn


@functools.lru_cache(maxsize=1)
def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_raw_today", FOLDER / "make_raw_today.py")
    assert spec
    assert spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script
