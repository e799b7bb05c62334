"""Corrections from Label Studio, CVAT or a tool that writes COCO, read back as objects of each image.

This module knows the files of these tools and the chosen images. The original labels belong to other modules.
An image without objects was reviewed and found empty. An image that the tool does not call done was not reviewed.
"""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from segray import rle
from segray.analytics.evaluation import ground_truth
from segray.analytics.review.sampling import Chosen
from segray.errors import SourceError
from segray.models.coco_labels import slug

Row = dict[str, Any]
Objects = list[tuple[int, str]]  # category id and counts
_NO_MASKS = {"rectanglelabels", "ellipselabels", "keypointlabels", "rectangle", "ellipse", "brush", "polygon"}


@dataclass(frozen=True)
class _Task:
    """One image of an export.

    name: the tool's name for the image. size_hw: height and width in pixels; None if the tool does not state them.
    shapes: label and counts of each object; None if the image is not done.
    """

    name: str
    size_hw: tuple[int, int] | None
    shapes: Sequence[tuple[str, str]] | None


def read(
    path: Path, chosen: Sequence[Chosen], classes: Mapping[int, str], *, allow_unfinished: bool = False
) -> dict[str, Objects]:
    """Read the objects of the reviewed images, by image key, in the order of the keys.

    Args:
        path: JSON of Label Studio, CVAT for images 1.1, or COCO JSON.
        chosen: The images of the selection.
        classes: Name by category id.
        allow_unfinished: Accept a file that lacks chosen images, or does not call them done.

    Raises:
        SourceError: The file has another format, no image, images that were not chosen, or unknown classes. The file
            has shapes that are no masks, or chosen images are missing or unfinished.
    """
    by_name = {name: each for each in chosen for name in (each.uri, each.file, each.key)}
    ids = {slug(name): number for number, name in sorted(classes.items(), reverse=True)}
    ids |= {name: number for number, name in classes.items()}
    found: dict[str, Objects] = {}
    seen = set[str]()
    for task in _tasks(path):
        image = by_name.get(task.name)
        if image is None:
            raise SourceError(
                "the corrections have an image that was not chosen", where=str(path), found=task.name,
                hint="give the selection that these tasks were made of",
            )  # fmt: skip
        if image.key in seen:
            raise SourceError("the corrections have an image twice", where=str(path), found=task.name)
        seen.add(image.key)
        if task.shapes is None:
            continue
        if task.size_hw is not None and task.size_hw != image.size_hw:
            raise SourceError(
                "a corrected image has another size", where=f"{task.name} in {path}",
                found=f"{task.size_hw[1]}x{task.size_hw[0]}, labelled as {image.size_hw[1]}x{image.size_hw[0]}",
            )  # fmt: skip
        shapes = [(_category(label, ids, task.name, path), counts) for label, counts in task.shapes]
        found[image.key] = [(category, counts) for category, counts in shapes if rle.area(counts)]
    if not seen:
        raise SourceError("the corrections have no images", where=str(path), hint="export the tasks again")
    missing = [each.key for each in chosen if each.key not in found]
    if missing and (not allow_unfinished or not found):
        raise SourceError(
            "not all chosen images are done", where=str(path),
            found=f"{len(missing)} of {len(chosen)} are missing or unfinished, such as {missing[0]}",
            hint="finish them, or allow unfinished ones and mind that those left out may be the hard ones",
        )  # fmt: skip
    return dict(sorted(found.items()))


def tells_done(path: Path) -> bool:
    """Return whether a file says which of its images are done. Only Label Studio's list of tasks does."""
    with path.open(encoding="utf-8-sig") as file:
        return next((line.lstrip()[0] for line in file if line.strip()), "") == "["


def _category(label: str, ids: Mapping[str, int], name: str, path: Path) -> int:
    number = ids.get(label, ids.get(slug(label)))
    if number is None:
        raise SourceError(
            "the corrections have a class that the labels' model lacks", where=f"{name} in {path}", found=label,
            hint="use the label set's class names",
        )  # fmt: skip
    return number


def _tasks(path: Path) -> Iterator[_Task]:
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except FileNotFoundError as error:
        raise SourceError("no such corrections", where=str(path)) from error
    except UnicodeDecodeError as error:
        raise SourceError("the corrections are no text", where=str(path), hint="unpack the export first") from error
    try:
        if text.startswith("<"):
            yield from _cvat(ET.fromstring(text), str(path))
            return
        content = json.loads(text)
        if isinstance(content, list):
            yield from map(_label_studio, content)
        elif isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
            yield from _coco(content, str(path))
        else:
            raise ValueError("JSON, but neither Label Studio's list of tasks nor COCO")
    except (ET.ParseError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise SourceError(
            "the corrections cannot be read", where=str(path), found=repr(error)[:200],
            hint="give JSON of Label Studio, CVAT for images 1.1, or COCO",
        ) from error  # fmt: skip


# ---- Label Studio ---------------------------------------------------------------------------------


def _label_studio(task: Row) -> _Task:
    """Return the annotation that is marked as ground truth, or else the last one that was not skipped."""
    name = str(task["data"].get("image_key") or task["data"]["image"])
    done = [each for each in task.get("annotations") or [] if not each.get("was_cancelled")]
    if not done:
        return _Task(name, None, None)
    given = max(done, key=lambda each: (bool(each.get("ground_truth")), str(each.get("updated_at", ""))))
    results = [
        each for each in given["result"] if str(each.get("type", "")) in {"brushlabels", "polygonlabels", *_NO_MASKS}
    ]
    sizes = {(int(each["original_height"]), int(each["original_width"])) for each in results}
    if len(sizes) > 1:
        raise ValueError(f"shapes of {name} are of images of unlike sizes: {sorted(sizes)}")
    return _Task(name, next(iter(sizes), None), [_studio_shape(each, name) for each in results])


def _studio_shape(result: Row, name: str) -> tuple[str, str]:
    value, size_hw = result["value"], (int(result["original_height"]), int(result["original_width"]))
    if result["type"] == "brushlabels":
        (label,) = value["brushlabels"]
        return str(label), rle.encode(decode_brush(value["rle"], size_hw))
    if result["type"] == "polygonlabels":
        (label,) = value["polygonlabels"]
        points = np.array(value["points"], np.float64) / 100 * [size_hw[1], size_hw[0]]
        return str(label), _drawn(points, size_hw)
    raise ValueError(f"a {result['type']} of {name} is no mask with a class")


def decode_brush(data: Sequence[int], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Decode a mask, (h, w) bool, from Label Studio's bytes (rle-pack of thi.ng).

    A pixel is set where alpha, the last of RGBA, exceeds half. Raise ValueError for bytes that end early or have
    another size.
    """
    bits, at = np.unpackbits(np.array(data, np.uint8)).tobytes().translate(_DIGITS).decode("ascii"), 0

    def take(count: int) -> int:
        nonlocal at
        at += count
        if at > len(bits):
            raise ValueError("a brush stroke ends too early")
        return int(bits[at - count : at], 2)

    total, word = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    if total != 4 * size_hw[0] * size_hw[1] or word != 8:
        raise ValueError(f"a brush stroke of {total} words of {word} bits on an image of {size_hw[1]}x{size_hw[0]}")
    lengths, values, done = [], [], 0
    while done < total:
        repeats, count = take(1), take(sizes[take(2)]) + 1
        done += count
        fresh = [take(word)] if repeats else [take(word) for _ in range(count)]
        lengths += [count] if repeats else [1] * count
        values += fresh
    if done != total:
        raise ValueError("a brush stroke has more words than it says")
    flat = np.repeat(np.array(values, np.uint8), lengths)
    return np.asarray(flat.reshape(*size_hw, 4)[:, :, 3] > 127, np.bool_)


_DIGITS = bytes.maketrans(b"\x00\x01", b"01")


# ---- CVAT -----------------------------------------------------------------------------------------


def _cvat(top: ET.Element, path: str) -> Iterator[_Task]:
    if top.tag != "annotations":
        raise ValueError(f"XML of {top.tag}, not of CVAT")
    for image in top.iter("image"):
        size_hw = int(image.attrib["height"]), int(image.attrib["width"])
        yield _Task(image.attrib["name"], size_hw, [_cvat_shape(each, size_hw) for each in image if each.tag != "tag"])


def _cvat_shape(shape: ET.Element, size_hw: tuple[int, int]) -> tuple[str, str]:
    given = shape.attrib
    if shape.tag == "mask":
        x, y, w, h = (int(float(given[name])) for name in ("left", "top", "width", "height"))
        runs = [int(each) for each in given["rle"].split(",")]
        flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        return given["label"], rle.encode_crop(flat.reshape(h, w), x, y, size_hw)
    if shape.tag == "polygon":
        points = [[float(value) for value in pair.split(",")] for pair in given["points"].split(";")]
        return given["label"], _drawn(np.array(points), size_hw)
    raise ValueError(f"a {shape.tag} of class {given.get('label')} is no mask")


def _drawn(points: NDArray[np.float64], size_hw: tuple[int, int]) -> str:
    """Return the counts of a polygon's pixels, as pycocotools draws it. points: (n, 2) x, y in pixels."""
    if len(points) < 3:
        raise ValueError("a polygon of less than three points")
    (drawn,) = coco_mask.frPyObjects([points.ravel().tolist()], *size_hw)
    return str(drawn["counts"].decode())


# ---- COCO -----------------------------------------------------------------------------------------


def _coco(content: Row, path: str) -> Iterator[_Task]:
    """Yield the images of COCO JSON. Each annotation is one object: CVAT marks all that are not polygons as crowds."""
    names = {int(row["id"]): str(row["name"]) for row in content["categories"]}
    rows = sorted(content["annotations"], key=lambda row: int(row["image_id"]))
    annotations = {image: list(group) for image, group in itertools.groupby(rows, lambda row: int(row["image_id"]))}
    images = {int(row["id"]): row for row in content["images"]}
    if strangers := annotations.keys() - images.keys():
        raise ValueError(f"annotations of image {min(strangers)}, which is not listed")
    for number, row in sorted(images.items()):
        image = ground_truth.image_of(row, annotations.get(number, []), path)
        masks = ground_truth.objects_of(image, path, ("segm",)).shapes["segm"]
        labels = [names[int(each["category_id"])] for each in image.annotations]
        shapes = [(label, mask["counts"].decode()) for label, mask in zip(labels, masks, strict=True)]
        yield _Task(image.key, image.size_hw, shapes)
