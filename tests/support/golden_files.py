"""Read the golden files of tests/golden. A file that is not there fails the test that asks for it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).parents[1] / "golden"
PHOTO = GOLDEN / "truck.jpg"


def decoded(name: str) -> Any:
    """Return what a reference implementation made of the raw outputs of seed 7."""
    return json.loads((GOLDEN / "decoded" / f"{name}.json").read_text("utf-8"))


def real_masks() -> list[dict[str, Any]]:
    """Return the masks that YOLACT found in COCO images: COCO's counts as text, and the size as height, width."""
    with gzip.open(GOLDEN / "yolact_resnet50_coco.json.gz") as file:
        images = json.load(file)["images"]
    return [found["mask"] for image in images for found in image["dets"]]
