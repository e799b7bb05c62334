"""Corrections from Label Studio, CVAT or a tool that writes COCO, read back as objects of each image.

This module knows the files of these tools and the images of the selection. The original labels belong to other modules.
An image without objects was reviewed and is empty. An image that is not marked as done was not reviewed.
"""

from __future__ import annotations

import json
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray import rle
from segray.analytics.evaluation import ground_truth, truth_masks, truth_rows
from segray.analytics.review.sampling import SelectedImage
from segray.errors import SourceError
from segray.label_set.class_names import find_class

Row = dict[str, Any]
_Finder = Callable[[str], SelectedImage | None]
# Category id and RLE counts of each object of an image.
Objects = list[tuple[int, str]]
# Types of shapes in Label Studio that are no masks with a class.
_NO_MASKS = {"rectanglelabels", "ellipselabels", "keypointlabels", "rectangle", "ellipse", "brush", "polygon"}


@dataclass(frozen=True)
class _Task:
    """One image in a file of corrections.

    name: the tool's name for the image. size_hw: height and width in pixels; None if the tool does not state them.
    shapes: label and RLE counts of each object; None if the image is not done.
    """

    name: str
    size_hw: tuple[int, int] | None
    shapes: Sequence[tuple[str, str]] | None


def read(
    path: Path, selected: Sequence[SelectedImage], classes: Mapping[int, str], *, allow_unfinished: bool = False
) -> dict[str, Objects]:
    """Read the objects of the reviewed images, by image key, in the order of the keys.

    Args:
        path: JSON of Label Studio, CVAT for images 1.1, or COCO JSON.
        selected: The images of the selection.
        classes: Name by category id.
        allow_unfinished: Accept a file in which images of the selection are missing or not done.

    Raises:
        SourceError: The file has another format, no image, images outside the selection, unknown classes, or shapes
            that are no masks. Images of the selection are missing or unfinished.
    """
    image_of = _finder(selected)
    objects: dict[str, Objects] = {}
    seen = set[str]()
    for task in _read_tasks(path, image_of):
        image = image_of(task.name)
        if image is None:
            raise SourceError(
                "the corrections have an image outside the selection", where=str(path), found=task.name,
                hint="Give --selection the file that `segray select` wrote with these tasks.",
            )  # fmt: skip
        if image.key in seen:
            raise SourceError(
                "the corrections have an image twice", where=str(path), found=task.name,
                hint="Export the tasks again, or delete one of the two.",
            )  # fmt: skip
        seen.add(image.key)
        if task.shapes is None:
            continue
        if task.size_hw is not None and task.size_hw != image.size_hw:
            raise SourceError(
                "a corrected image has another size", where=f"{task.name} in {path}",
                found=f"{task.size_hw[1]}x{task.size_hw[0]}, labelled as {image.size_hw[1]}x{image.size_hw[0]}",
                hint="Give the tool the image file that was labelled.",
            )  # fmt: skip
        shapes = [(_class_id(label, classes, task.name, path), counts) for label, counts in task.shapes]
        objects[image.key] = [(class_id, counts) for class_id, counts in shapes if rle.area(counts)]
    if not seen:
        raise SourceError("the corrections have no images", where=str(path), hint="Export the tasks again.")
    missing = [image.key for image in selected if image.key not in objects]
    if missing and (not allow_unfinished or not objects):
        raise SourceError(
            "not all images of the selection are done", where=str(path),
            found=f"{len(missing)} of {len(selected)} are missing or unfinished, such as {missing[0]}",
            hint="Finish these images, or give --allow-unfinished. Hard images may then be missing from the result.",
        )  # fmt: skip
    return dict(sorted(objects.items()))


def _finder(selected: Sequence[SelectedImage]) -> _Finder:
    """Return a function that finds the image with a name: its key, its name in exports, or its URI.

    A name in another composition of Unicode (macOS decomposes names), with backslashes, or with other folders before
    the name, is found where it can mean one image alone.
    """
    by_name = {name: image for image in selected for name in (image.uri, image.file, image.key)}
    composed: dict[str, set[str]] = {}
    by_last_part: dict[str, set[tuple[str, str]]] = {}
    for name, image in by_name.items():
        path = _path_of(name)
        composed.setdefault(path, set()).add(image.key)
        by_last_part.setdefault(path.rpartition("/")[2], set()).add((path, image.key))
    by_key = {image.key: image for image in selected}

    def find(name: str) -> SelectedImage | None:
        path = _path_of(name)
        keys = composed.get(path) or {
            key for other, key in by_last_part.get(path.rpartition("/")[2], ()) if _is_end(path, other)
        }
        return by_name.get(name) or (by_key[next(iter(keys))] if len(keys) == 1 else None)

    return find


def _path_of(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("\\", "/"))


def _is_end(path: str, other: str) -> bool:
    """Return whether one of two paths ends with the other, from a slash on."""
    return f"/{path}".endswith(f"/{other.lstrip('/')}") or f"/{other}".endswith(f"/{path.lstrip('/')}")


def marks_done_images(path: Path) -> bool:
    """Return whether a file says which of its images are done. Only Label Studio's list of tasks does so."""
    return _text_of(path).startswith("[")


def _text_of(path: Path) -> str:
    """Return the text of a file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark."""
    data = path.read_bytes()
    return data.decode(json.detect_encoding(data)).strip()


def _class_id(label: str, classes: Mapping[int, str], name: str, path: Path) -> int:
    class_id = find_class(label, classes)
    if class_id is None:
        raise SourceError(
            "the corrections have a class that the labels' model lacks", where=f"{name} in {path}", found=label,
            hint="Use the class names of the label set.",
        )  # fmt: skip
    return class_id


def _read_tasks(path: Path, image_of: _Finder) -> Iterator[_Task]:
    try:
        text = _text_of(path)
    except FileNotFoundError as error:
        raise SourceError("no such corrections", where=str(path), hint="Check the path of the corrections.") from error
    except UnicodeDecodeError as error:
        raise SourceError("the corrections are no text", where=str(path), hint="Unpack the export first.") from error
    where = str(path)
    try:
        if text.startswith("<"):
            yield from _cvat_tasks(ET.fromstring(text), image_of)
            return
        content = json.loads(text)
        if isinstance(content, list):
            for place, task in enumerate(content):
                where = f"task number {place + 1} of {path}"
                yield _label_studio_task(task, image_of)
        elif isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
            yield from _coco_tasks(content, str(path), image_of)
        else:
            raise ValueError("JSON, but neither Label Studio's list of tasks nor COCO")
    except (
        ET.ParseError, ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError, RecursionError
    ) as error:  # fmt: skip
        raise SourceError(
            "the corrections cannot be read", where=where,
            found=f"no {error}" if isinstance(error, KeyError) else str(error)[:200],
            hint="Give JSON of Label Studio, CVAT for images 1.1, or COCO JSON.",
        ) from error  # fmt: skip


def _may_draw(name: str, size_hw: tuple[int, int], image_of: _Finder) -> bool:
    """Return whether the selection has the image, in this size. `read` refuses other images; none is drawn before."""
    image = image_of(name)
    return image is not None and image.size_hw == size_hw


# ---- Label Studio ---------------------------------------------------------------------------------


def _label_studio_task(task: Row, image_of: _Finder) -> _Task:
    """Return the task with the annotation that is marked as ground truth, or else the last that was not skipped."""
    name = str(task["data"].get("image_key") or task["data"]["image"])
    annotations = [row for row in task.get("annotations") or [] if not row.get("was_cancelled")]
    if not annotations:
        return _Task(name, None, None)
    annotation = max(annotations, key=lambda row: (bool(row.get("ground_truth")), str(row.get("updated_at", ""))))
    shape_types = {"brushlabels", "polygonlabels", *_NO_MASKS}
    results = [result for result in annotation["result"] if str(result.get("type", "")) in shape_types]
    sizes = {(int(result["original_height"]), int(result["original_width"])) for result in results}
    if len(sizes) > 1:
        raise ValueError(f"shapes of {name} have different image sizes: {sorted(sizes)}")
    size_hw = next(iter(sizes), None)
    if size_hw is None or not _may_draw(name, size_hw, image_of):
        return _Task(name, size_hw, [])
    return _Task(name, size_hw, [_label_studio_shape(result, name) for result in results])


def _label_studio_shape(result: Row, name: str) -> tuple[str, str]:
    value, size_hw = result["value"], (int(result["original_height"]), int(result["original_width"]))
    if result["type"] == "brushlabels":
        (label,) = value["brushlabels"]
        return str(label), rle.encode(decode_brush(value["rle"], size_hw))
    if result["type"] == "polygonlabels":
        (label,) = value["polygonlabels"]
        points = np.array(value["points"], np.float64) / 100 * [size_hw[1], size_hw[0]]
        return str(label), _polygon_counts(points, size_hw, name)
    raise ValueError(f"a {result['type']} of {name} is no mask with a class")


def decode_brush(data: Sequence[int], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Decode a mask, (h, w) bool, from Label Studio's bytes (rle-pack of thi.ng).

    A pixel is set where alpha, the last of RGBA, exceeds half. Raise ValueError for bytes that end early or have
    another size.
    """
    bits = np.unpackbits(np.array(data, np.uint8)).tobytes().translate(_DIGITS).decode("ascii")
    position = 0

    def take(count: int) -> int:
        nonlocal position
        position += count
        if position > len(bits):
            raise ValueError("a brush stroke ends too early")
        return int(bits[position - count : position], 2)

    total, word_bits = take(32), take(5) + 1
    sizes = [take(4) + 1 for _ in range(4)]
    if total != 4 * size_hw[0] * size_hw[1] or word_bits != 8:
        size_wh = f"{size_hw[1]}x{size_hw[0]}"
        raise ValueError(f"a brush stroke of {total} words of {word_bits} bits on an image of {size_wh}")
    lengths, values, words_read = [], [], 0
    while words_read < total:
        repeats, count = take(1), take(sizes[take(2)]) + 1
        words_read += count
        lengths += [count] if repeats else [1] * count
        values += [take(word_bits)] if repeats else [take(word_bits) for _ in range(count)]
    if words_read != total:
        raise ValueError("a brush stroke has more words than it says")
    flat = np.repeat(np.array(values, np.uint8), lengths)
    return np.asarray(flat.reshape(*size_hw, 4)[:, :, 3] > 127, np.bool_)


_DIGITS = bytes.maketrans(b"\x00\x01", b"01")


# ---- CVAT -----------------------------------------------------------------------------------------


def _cvat_tasks(root: ET.Element, image_of: _Finder) -> Iterator[_Task]:
    if root.tag != "annotations":
        raise ValueError(f"XML of {root.tag}, not of CVAT")
    for image in root.iter("image"):
        name, size_hw = image.attrib["name"], (int(image.attrib["height"]), int(image.attrib["width"]))
        elements = [element for element in image if element.tag != "tag"]
        if not _may_draw(name, size_hw, image_of):
            elements = []
        yield _Task(name, size_hw, [_cvat_shape(element, size_hw, name) for element in elements])


def _cvat_shape(shape: ET.Element, size_hw: tuple[int, int], name: str) -> tuple[str, str]:
    attributes = shape.attrib
    if shape.tag == "mask":
        x, y, w, h = (int(float(attributes[side])) for side in ("left", "top", "width", "height"))
        runs = [int(length) for length in attributes["rle"].split(",")]
        if min(runs) < 0 or sum(runs) != w * h or w > size_hw[1] or h > size_hw[0]:
            raise ValueError(f"runs of a mask of {name} cover {sum(runs)} pixels, its box {w}x{h}")
        flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        return attributes["label"], rle.encode_crop(flat.reshape(h, w), x, y, size_hw)
    if shape.tag == "polygon":
        points = [[float(value) for value in pair.split(",")] for pair in attributes["points"].split(";")]
        return attributes["label"], _polygon_counts(np.array(points), size_hw, name)
    raise ValueError(f"a {shape.tag} of class {attributes.get('label')} of {name} is no mask")


def _polygon_counts(points: NDArray[np.float64], size_hw: tuple[int, int], name: str) -> str:
    """Return the RLE counts of a polygon, as pycocotools draws it, once its numbers are checked.

    points: (n, 2) x, y in pixels. name: of the image, for errors.
    """
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"a polygon of {name} whose points are no x and y")
    if len(points) < 3:
        raise ValueError(f"a polygon of {name} of fewer than three points")
    mask, _ = truth_masks.mask_of([points.ravel().tolist()], size_hw, f"a polygon of {name}")
    return str(mask["counts"].decode())


# ---- COCO -----------------------------------------------------------------------------------------


def _coco_tasks(content: Row, path: str, image_of: _Finder) -> Iterator[_Task]:
    """Yield the images of COCO JSON. An image without a size takes the size of the selection's image.

    A crowd is one object too, because CVAT marks each mask that is not a polygon as a crowd.
    """
    categories = (truth_rows.category(row, place, path) for place, row in enumerate(content["categories"]))
    names = {category: str(name) for category, name in categories}
    annotations: dict[int, list[tuple[int, Row]]] = {}
    for place, row in enumerate(content["annotations"]):
        number, category = truth_rows.annotation_ids(row, place, path)
        if category not in names:
            raise ValueError(f"{truth_rows.annotation_name(row, place)} is of a category that is not listed")
        annotations.setdefault(number, []).append((category, {**row, "category_id": category}))
    images = {truth_rows.image_id_of(row, place, path): row for place, row in enumerate(content["images"])}
    if unlisted := annotations.keys() - images.keys():
        found = truth_rows.shown(annotations[min(unlisted)][0][1]["image_id"])
        raise ValueError(f"annotations of image {found}, which is not listed")
    for place, (number, row) in enumerate(images.items()):
        labelled = annotations.get(number, [])
        image = ground_truth.image_of(
            row, [annotation for _, annotation in labelled], path, rank=truth_rows.rank(number, place)
        )
        selected = image_of(image.key)
        if image.size_hw is None and selected is not None:
            image = replace(image, size_hw=selected.size_hw)
        masks = ground_truth.objects_of(image, path, ("segm",)).shapes["segm"]
        shapes = [
            (names[category], mask["counts"].decode()) for (category, _), mask in zip(labelled, masks, strict=True)
        ]
        yield _Task(image.key, image.size_hw, shapes)
