"""COCO or LVIS ground truth, read piece by piece from a JSON file of any size.

This module knows both JSON formats and checks what COCO's scores need. Label sets belong to other modules.
A truth is sorted into ranges of keys in temporary files, each of which is removed after it was read.
26 bytes of each image stay in memory.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from segray import rle
from segray.analytics.evaluation.coco_eval import IOU_TYPES, ImageAnnotations
from segray.analytics.query import key_ranges
from segray.analytics.query.key_ranges import KeyRange, KeySampler
from segray.errors import SourceError
from segray.instances import image_id
from segray.storage.store import Store
from segray.storage.uris import redact

Row = dict[str, Any]
_READ_CHARS = 1 << 20
_LONGEST_WORD = 16  # characters of JSON that cannot be parsed before the last one is read
_WRITTEN_ROWS = 10_000  # held in memory for all ranges together, then written to the files


@dataclass(frozen=True)
class TruthImage:
    """One image of the truth with its annotations.

    not_exhaustive: categories of which the image may show more than is annotated.
    negative: categories that the image does not show; None where the truth covers all categories.
    """

    id: int
    key: str
    size_hw: tuple[int, int]
    annotations: Sequence[Row]
    not_exhaustive: frozenset[int] = frozenset()
    negative: frozenset[int] | None = None


@dataclass(frozen=True)
class GroundTruthIndex:
    """The categories and images that a truth lists.

    names: category name by id. frequency: LVIS's r, c or f by category id. ids: (n,) int64, of the images, ascending.
    hashes: (n,) uint64, of the images' keys, in the order of ids. example: one of the keys.
    """

    path: str
    names: Mapping[int, str]
    frequency: Mapping[int, str]
    ids: NDArray[np.int64] = field(repr=False)
    hashes: NDArray[np.uint64] = field(repr=False)
    example: str = ""

    def lists(self, keys: Iterable[str]) -> NDArray[np.bool_]:
        """Return for each of these images whether the truth lists it, (n,) bool."""
        values = np.fromiter(map(_hash, keys), np.uint64)
        where = np.searchsorted(self.hashes, values, sorter=self._by_hash)
        return np.asarray(self.hashes[self._by_hash[np.minimum(where, len(self.hashes) - 1)]] == values)

    def id_of(self, key: str) -> int:
        """Return the id of the image with this key. Raise SourceError if the truth has no such image."""
        order, value = self._by_hash, np.uint64(_hash(key))
        where = int(np.searchsorted(self.hashes, value, sorter=order))
        if where == len(order) or self.hashes[order[where]] != value:
            raise SourceError("the truth lacks an image of the label set", where=self.path, found=key)
        return int(self.ids[order[where]])

    @cached_property
    def _by_hash(self) -> NDArray[np.int64]:
        return np.argsort(self.hashes)


def read_index(path: str, store: Store, keys: KeySampler) -> GroundTruthIndex:
    """Read the index of a truth, and add its images to `keys`, which must be empty.

    Raise SourceError for a truth that cannot be used.
    """
    names, frequency = {}, {}
    ids: list[NDArray[np.int64]] = []
    hashes: list[NDArray[np.uint64]] = []
    part_ids: list[int] = []
    part_keys: list[str] = []
    example, seen = "", set()

    def keep() -> None:
        ids.append(np.array(part_ids, np.int64))
        hashes.append(np.fromiter(map(_hash, part_keys), np.uint64))
        keys.add(part_keys, [1.0] * len(part_keys))
        part_ids.clear()
        part_keys.clear()

    for section, row in elements(path, store):
        seen.add(section)
        if section == "categories" and row is not None:
            names[int(row["id"])] = str(row["name"])
            if "frequency" in row:
                frequency[int(row["id"])] = str(row["frequency"])
        elif section == "images" and row is not None:
            part_ids.append(_image_id(row, path))
            part_keys.append(key_of(row, path))
            example = min(example or part_keys[-1], part_keys[-1])
            if len(part_ids) == _WRITTEN_ROWS:
                keep()
    keep()
    missing = [part for part in ("images", "annotations", "categories") if part not in seen]
    if missing:
        raise SourceError("the truth is not COCO JSON", where=path, found=f"no {', '.join(missing)}")
    all_ids, all_hashes = np.concatenate(ids), np.concatenate(hashes)
    order = np.argsort(all_ids, kind="stable")
    keys.scale(max(1.0, store.stat(path).size_bytes / max(len(all_ids), 1) / key_ranges.ROW_BYTES))
    found = GroundTruthIndex(path, names, frequency, all_ids[order], all_hashes[order], example)
    _check_distinct(found)
    return found


def _check_distinct(found: GroundTruthIndex) -> None:
    if not len(found.ids):
        raise SourceError("the truth's images cannot be told apart by file_name", where=found.path, found="no images")
    for what, values in (("id", found.ids), ("file_name", found.hashes[found._by_hash])):
        if (values[1:] == values[:-1]).any():
            raise SourceError(
                f"the truth's images cannot be told apart by {what}", where=found.path,
                found=f"two images with the same {what}",
            )  # fmt: skip


class GroundTruthBySlice:
    """A truth's images by range of keys, in files of a temporary folder."""

    def __init__(self, listed: GroundTruthIndex, parts: Sequence[KeyRange], store: Store, folder: Path) -> None:
        self.path, self._folder, self._parts = listed.path, folder, parts
        self.objects = 0
        self._waiting: dict[int, list[str]] = {}
        self._count = 0
        numbers = np.zeros(len(listed.ids), np.uint16 if len(parts) < 1 << 16 else np.uint32)
        placed, early = False, False
        for section, row in elements(self.path, store, ("images", "annotations")):
            if row is None:
                continue
            if section == "images":
                placed = True
                number = key_ranges.number_of(parts, key_of(row, self.path))
                numbers[np.searchsorted(listed.ids, row["id"])] = number
                self._keep(number, row["id"], row)
            elif not placed:
                early = True
            else:
                self._place(row, listed, numbers)
        if early:  # Some annotations stand before the images, so all annotations are read once more.
            for _, row in elements(self.path, store, ("annotations",)):
                if row is not None:
                    self._place(row, listed, numbers)
        self._flush()

    def holds(self, number: int) -> bool:
        """Return whether a range has images that were not read yet."""
        return self._path(number).exists()

    def read(self, number: int) -> Iterator[TruthImage]:
        """Yield the images of one range by rising id, and remove the range's file."""
        path = self._path(number)
        lines: dict[int, list[bytes]] = {}  # by image, its own row first; text takes less memory than parsed rows
        with path.open("rb") as file:
            for line in file:
                image, _, text = line.partition(b" ")
                lines.setdefault(int(image), []).append(text)
        path.unlink()
        for _, texts in sorted(lines.items()):
            row, *annotations = map(json.loads, texts)
            yield image_of(row, annotations, self.path)

    def _place(self, row: Row, listed: GroundTruthIndex, numbers: NDArray[Any]) -> None:
        where = int(np.searchsorted(listed.ids, row["image_id"]))
        if where == len(listed.ids) or listed.ids[where] != row["image_id"]:
            raise SourceError(
                "an annotation is of an image that the truth does not list", where=self.path,
                found=f"annotation {row.get('id')}, image {row['image_id']}",
            )  # fmt: skip
        if row["category_id"] not in listed.names:
            raise SourceError(
                "an annotation is of a category that the truth does not list", where=self.path,
                found=f"annotation {row.get('id')}, category {row['category_id']}",
            )  # fmt: skip
        self.objects += not row.get("iscrowd", 0)
        self._keep(int(numbers[where]), int(listed.ids[where]), row)

    def _keep(self, number: int, image: int, row: Row) -> None:
        self._waiting.setdefault(number, []).append(f"{image} {json.dumps(row)}\n")
        self._count += 1
        if self._count >= _WRITTEN_ROWS:
            self._flush()

    def _flush(self) -> None:
        for number, lines in self._waiting.items():
            with self._path(number).open("a", encoding="ascii") as file:
                file.writelines(lines)
        self._waiting, self._count = {}, 0

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.truth"


# ---- one image ------------------------------------------------------------------------------------


def image_of(row: Row, annotations: Sequence[Row], path: str) -> TruthImage:
    """Return an image of a truth, from its row and the rows of its annotations."""
    negative = row.get("neg_category_ids")
    return TruthImage(
        row["id"], key_of(row, path), (int(row["height"]), int(row["width"])), annotations,
        frozenset(row.get("not_exhaustive_category_ids", ())), None if negative is None else frozenset(negative),
    )  # fmt: skip


def key_of(row: Row, path: str) -> str:
    """Return the image's key in a label set: its file_name, or for LVIS the last part of its coco_url."""
    name = row.get("file_name") or str(row.get("coco_url", "")).rpartition("/")[2]
    if not isinstance(name, str) or not name:
        raise SourceError("an image of the truth has no file_name", where=path, found=f"image {row.get('id')}")
    return name


def objects_of(image: TruthImage, path: str, iou_types: Iterable[str] = IOU_TYPES) -> ImageAnnotations:
    """Return the objects of an image of the truth.

    Raise SourceError for masks that are malformed or of another size.
    """
    rows = image.annotations
    crowd = np.array([bool(row.get("iscrowd", 0)) for row in rows], np.bool_)
    # pycocotools ignores crowds and nothing else. The field `ignore` is LVIS's.
    ignore = crowd | np.array([bool(row.get("ignore", 0)) and image.negative is not None for row in rows], np.bool_)
    shapes: dict[str, Any] = {}
    if "segm" in iou_types:
        shapes["segm"] = [_mask(row, image, path) for row in rows]
    if "bbox" in iou_types:
        shapes["bbox"] = np.array([_box(row, image, path) for row in rows], np.float64).reshape(-1, 4)
    areas = np.array([_area(row, image, path) for row in rows], np.float64)
    class_ids = np.array([row["category_id"] for row in rows], np.int64)
    return ImageAnnotations(class_ids, shapes, dict.fromkeys(shapes, areas), crowd=crowd, ignore=ignore)


def _mask(row: Row, image: TruthImage, path: str) -> Row:
    """Return a mask as pycocotools takes masks, from polygons, or from runs as numbers or text."""
    given, (height, width) = row.get("segmentation"), image.size_hw
    where = f"annotation {row.get('id')} of {image.key} in {path}"
    if isinstance(given, list) and given and all(isinstance(part, list) and len(part) >= 6 for part in given):
        return dict(coco_mask.merge(coco_mask.frPyObjects(given, height, width)))
    if not isinstance(given, dict) or "counts" not in given:
        raise SourceError("an annotation has no mask", where=where, found=str(given)[:60], hint="compare boxes only")
    if tuple(given.get("size", ())) != image.size_hw:
        raise SourceError(
            "a mask of the truth has another size than its image", where=where,
            found=f"{given.get('size')}, the image {list(image.size_hw)} (h, w)",
        )  # fmt: skip
    counts = given["counts"]
    try:
        if isinstance(counts, list):
            if sum(counts) != height * width or min(counts) < 0:
                raise ValueError(f"runs cover {sum(counts)} pixels, the image has {height * width}")
            return dict(coco_mask.frPyObjects(given, height, width))
        counts = counts.decode() if isinstance(counts, bytes) else counts
        rle.runs_of(counts, image.size_hw)
    except (ValueError, TypeError) as error:
        raise SourceError("a mask of the truth is malformed", where=where, found=str(error)) from error
    return {"size": [height, width], "counts": counts.encode()}


def _box(row: Row, image: TruthImage, path: str) -> Sequence[float]:
    if "bbox" in row:
        return [float(side) for side in row["bbox"]]
    return list(coco_mask.toBbox(_mask(row, image, path)))


def _area(row: Row, image: TruthImage, path: str) -> float:
    if "area" in row:
        return float(row["area"])
    return float(coco_mask.area(_mask(row, image, path)))


def _image_id(row: Row, path: str) -> int:
    if not isinstance(row.get("id"), int):
        raise SourceError("an image of the truth has no number as its id", where=path, found=str(row.get("id")))
    return int(row["id"])


def _hash(key: str) -> int:
    return int(image_id(key)[:16], 16)


# ---- JSON -----------------------------------------------------------------------------------------


def elements(path: str, store: Store, wanted: Sequence[str] | None = None) -> Iterator[tuple[str, Row | None]]:
    """Yield (name, member) for each member of a JSON object's arrays, one at a time, and (name, None) before the first.

    wanted: names of the arrays to read; all others are skipped.
    Raise SourceError if the file does not exist or holds no JSON object.
    """
    try:
        with io.TextIOWrapper(store.reader(path), encoding="utf-8") as file:
            yield from _members(_Text(file), path, wanted)
    except FileNotFoundError as error:
        raise SourceError("no such truth file", where=redact(path)) from error
    except ValueError as error:
        raise SourceError("the truth is not JSON", where=redact(path), found=str(error)) from error


def _members(text: _Text, path: str, wanted: Sequence[str] | None) -> Iterator[tuple[str, Row | None]]:
    if text.peek() != "{":
        raise SourceError("the truth is not COCO JSON", where=path, found="no JSON object")
    text.take()
    while (mark := text.peek()) != "}":
        if mark == ",":
            text.take()
            continue
        name = str(text.value())
        if text.peek() != ":":
            raise ValueError("no ':' after a key")
        text.take()
        if text.peek() != "[":
            text.value()
            continue
        chosen = wanted is None or name in wanted
        if chosen:
            yield name, None
        text.take()
        while (mark := text.peek()) != "]":
            if mark == ",":
                text.take()
                continue
            row = text.value()
            if chosen:
                yield name, row
        text.take()


class _Text:
    """JSON text that is read piece by piece."""

    def __init__(self, file: io.TextIOBase | io.TextIOWrapper) -> None:
        self._file, self._text, self._at = file, "", 0
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """Return the next character that is no space. Raise ValueError at the end."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in " \t\r\n":
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                raise ValueError("the file ends within the object")

    def take(self) -> None:
        self._at += 1

    def value(self) -> Any:
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except json.JSONDecodeError as error:
                # More text helps only a string without an end, or a word, number or escape at the very end.
                broken_off = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _LONGEST_WORD
                if not broken_off or not self._more():
                    raise
                continue
            if end > len(self._text) - _LONGEST_WORD and self._more():
                continue  # The number may have more digits.
            self._at = end
            return value

    def _more(self) -> bool:
        read = self._file.read(max(_READ_CHARS, len(self._text) - self._at))
        if read:
            self._text, self._at = self._text[self._at :] + read, 0
        return bool(read)
