"""Files of reference results: rows of images, with masks, as another program has written them.

Knows three forms of JSON, plain or with gzip: COCO's results, a COCO data set with scores, and pictures by name. Knows
nothing of models.
"""

from __future__ import annotations

import gzip
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.errors import UserError

_HINT = (
    "Give COCO's results with image_id, category_id, score and a segmentation of run lengths, as `yolo val "
    "save_json=True` writes them, or a data set, as `segray export --to coco` writes it."
)


@dataclass(frozen=True)
class ReferenceRow:
    """One row: a score, a class, and a mask as RLE counts.

    The class is a name, an index in the network's order from 0, or a category id; one of the three is set.
    box_xyxy: (4,), in pixels; None if the file has none.
    """

    score: float
    counts: str
    class_name: str | None = None
    class_index: int | None = None
    class_id: int | None = None
    box_xyxy: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class ReferenceImage:
    """The rows of an image. size_hw: height and width of its masks, in pixels; None if there is no row."""

    size_hw: tuple[int, int] | None
    rows: tuple[ReferenceRow, ...]


def read(path: Path) -> Mapping[str, ReferenceImage]:
    """Return image name -> rows of a file; raise UserError for a file of another form.

    The name is a file name, or the stem of one where the file has only that.
    """
    content = _content(path)
    try:
        if isinstance(content, dict) and isinstance(content.get("pictures"), dict):
            return {str(name): _picture(picture) for name, picture in content["pictures"].items()}
        if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
            return _of_data_set(content)
        if isinstance(content, list) and content:
            return _of_results(content)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        found = f"{type(error).__name__}: {error}"[:200]
        what = "The reference has a row that cannot be read."
        raise UserError(what, where=str(path), found=found, hint=_HINT) from error
    found = f"a {type(content).__name__}" + (f" of {', '.join(list(content)[:5])}" if isinstance(content, dict) else "")
    raise UserError("The reference is no file of results.", where=str(path), found=found, hint=_HINT)


def _content(path: Path) -> Any:
    try:
        data = path.read_bytes()
        return json.loads(gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data)
    except (OSError, EOFError, ValueError, RecursionError) as error:
        hint = "Check --reference. The file is JSON, plain or with gzip."
        raise UserError("The reference cannot be read.", where=str(path), found=str(error)[:200], hint=hint) from error


def _picture(picture: Mapping[str, Any]) -> ReferenceImage:
    rows = []
    for row in picture["rows"]:
        name = row.get("name")
        box = None if row.get("box") is None else np.array(row["box"], np.float64).reshape(4)
        index = None if name is not None else int(row["cls"])
        rows.append(ReferenceRow(float(row["score"]), _counts(row["mask"]), name, index, None, box))
    height, width = picture["size"]
    return ReferenceImage((int(height), int(width)), tuple(rows))


def _of_results(results: Iterable[Mapping[str, Any]]) -> Mapping[str, ReferenceImage]:
    """Return the rows of COCO's results. An image is named by file_name, if the rows have one, else by its id."""
    by_image = defaultdict(list)
    for row in results:
        by_image[str(row.get("file_name") or row["image_id"])].append(row)
    return {name: _image([(row, None) for row in rows]) for name, rows in by_image.items()}


def _of_data_set(content: Mapping[str, Any]) -> Mapping[str, ReferenceImage]:
    names = {row["id"]: str(row["name"]) for row in content["categories"]}
    by_id = defaultdict(list)
    for row in content["annotations"]:
        by_id[row["image_id"]].append((row, names[row["category_id"]]))
    return {str(row["file_name"]): _image(by_id[row["id"]]) for row in content["images"]}


def _image(rows: Iterable[tuple[Mapping[str, Any], str | None]]) -> ReferenceImage:
    """Return an image of rows in COCO's form, each with the name of its class if the file has names."""
    read_rows, sizes = [], set()
    for row, name in rows:
        height, width = row["segmentation"]["size"]
        sizes.add((int(height), int(width)))
        class_id = None if name is not None else int(row["category_id"])
        score = float(row.get("score", 1.0))
        read_rows.append(ReferenceRow(score, _counts(row["segmentation"]), name, None, class_id, _corners(row)))
    if len(sizes) > 1:
        raise ValueError(f"masks of the sizes {sorted(sizes)} in one image")
    return ReferenceImage(sizes.pop() if sizes else None, tuple(read_rows))


def _corners(row: Mapping[str, Any]) -> NDArray[np.float64] | None:
    if row.get("bbox") is None:
        return None
    x, y, width, height = map(float, row["bbox"])
    return np.array([x, y, x + width, y + height])


def _counts(mask: Mapping[str, Any]) -> str:
    counts = mask["counts"]
    if not isinstance(counts, str):
        raise TypeError(f"counts are a {type(counts).__name__}, not a text of compressed run lengths")
    return counts
