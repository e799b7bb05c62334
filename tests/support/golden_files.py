"""Read the golden files of tests/golden. A file that is not there fails the test that asks for it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

GOLDEN = Path(__file__).parents[1] / "golden"
PHOTO = GOLDEN / "truck.jpg"


def decoded(name: str) -> Any:
    """Return what a reference implementation made of the raw outputs of seed 7."""
    return json.loads((GOLDEN / "decoded" / f"{name}.json").read_text("utf-8"))


def queries(case: str) -> tuple[Mapping[str, NDArray[np.float32]], Any]:
    """Return raw outputs of a few queries by the adapter's names, and what the family's own library made of them."""
    keys = {"class_queries_logits": "classes", "masks_queries_logits": "masks"}
    with np.load(GOLDEN / "queries.npz") as file:
        named = {name.removeprefix(f"{case}."): file[name] for name in file if name.startswith(f"{case}.")}
    return {keys.get(key, key): array.astype(np.float32) for key, array in named.items()}, decoded("queries")[case]


def real_masks() -> list[dict[str, Any]]:
    """Return the masks that YOLACT found in COCO images: COCO's counts as text, and the size as height, width."""
    with gzip.open(GOLDEN / "yolact_resnet50_coco.json.gz") as file:
        images = json.load(file)["images"]
    return [found["mask"] for image in images for found in image["dets"]]
