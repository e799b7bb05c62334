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
_MAX_WAITING_ROWS = 10_000  # rows in memory, for all ranges together, before they are written to the files


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
        positions = np.searchsorted(self.hashes, values, sorter=self._by_hash)
        return np.asarray(self.hashes[self._by_hash[np.minimum(positions, len(self.hashes) - 1)]] == values)

    def id_of(self, key: str) -> int:
        """Return the id of the image with this key. Raise SourceError if the truth has no such image."""
        order, value = self._by_hash, np.uint64(_hash(key))
        position = int(np.searchsorted(self.hashes, value, sorter=order))
        if position == len(order) or self.hashes[order[position]] != value:
            raise SourceError("the truth lacks an image of the label set", where=self.path, found=key)
        return int(self.ids[order[position]])

    @cached_property
    def _by_hash(self) -> NDArray[np.int64]:
        return np.argsort(self.hashes)


def read_index(path: str, store: Store, sampler: KeySampler) -> GroundTruthIndex:
    """Read the index of a truth, and add the truth's images to the sampler, which must be empty.

    Raise SourceError for a truth that cannot be used.
    """
    names, frequency = {}, {}
    ids: list[NDArray[np.int64]] = []
    hashes: list[NDArray[np.uint64]] = []
    new_ids: list[int] = []
    new_keys: list[str] = []
    example, sections = "", set()

    def add_new_images() -> None:
        ids.append(np.array(new_ids, np.int64))
        hashes.append(np.fromiter(map(_hash, new_keys), np.uint64))
        sampler.add(new_keys, [1.0] * len(new_keys))
        new_ids.clear()
        new_keys.clear()

    for section, row in elements(path, store):
        sections.add(section)
        if section == "categories" and row is not None:
            names[int(row["id"])] = str(row["name"])
            if "frequency" in row:
                frequency[int(row["id"])] = str(row["frequency"])
        elif section == "images" and row is not None:
            new_ids.append(_image_id(row, path))
            new_keys.append(key_of(row, path))
            example = min(example or new_keys[-1], new_keys[-1])
            if len(new_ids) == _MAX_WAITING_ROWS:
                add_new_images()
    add_new_images()
    missing = [section for section in ("images", "annotations", "categories") if section not in sections]
    if missing:
        raise SourceError("the truth is not COCO JSON", where=path, found=f"no {', '.join(missing)}")
    all_ids, all_hashes = np.concatenate(ids), np.concatenate(hashes)
    order = np.argsort(all_ids, kind="stable")
    bytes_per_image = store.stat(path).size_bytes / max(len(all_ids), 1)
    sampler.scale(max(1.0, bytes_per_image / key_ranges.ROW_BYTES))
    index = GroundTruthIndex(path, names, frequency, all_ids[order], all_hashes[order], example)
    _check_distinct(index)
    return index


def _check_distinct(index: GroundTruthIndex) -> None:
    if not len(index.ids):
        raise SourceError("the truth has no images", where=index.path, found="an empty list of images")
    for name, values in (("id", index.ids), ("file_name", index.hashes[index._by_hash])):
        if (values[1:] == values[:-1]).any():
            raise SourceError(
                f"the truth's images cannot be told apart by {name}", where=index.path,
                found=f"two images with the same {name}",
            )  # fmt: skip


class GroundTruthBySlice:
    """A truth's images by range of keys, in files of a temporary folder."""

    def __init__(self, index: GroundTruthIndex, ranges: Sequence[KeyRange], store: Store, folder: Path) -> None:
        self.path, self._folder = index.path, folder
        self.objects = 0  # number of annotations that are not crowds
        self._waiting: dict[int, list[str]] = {}
        self._count = 0
        numbers = np.zeros(len(index.ids), np.uint16 if len(ranges) < 1 << 16 else np.uint32)  # the range of each image
        has_images, has_early_annotations = False, False
        for section, row in elements(self.path, store, ("images", "annotations")):
            if row is None:
                continue
            if section == "images":
                has_images = True
                number = key_ranges.number_of(ranges, key_of(row, self.path))
                numbers[np.searchsorted(index.ids, row["id"])] = number
                self._add_row(number, row["id"], row)
            elif not has_images:
                has_early_annotations = True
            else:
                self._add_annotation(row, index, numbers)
        if has_early_annotations:  # These stand before the images, so all annotations are read once more.
            for _, row in elements(self.path, store, ("annotations",)):
                if row is not None:
                    self._add_annotation(row, index, numbers)
        self._flush()

    def holds(self, number: int) -> bool:
        """Return whether a range has images that were not read yet."""
        return self._path(number).exists()

    def read(self, number: int) -> Iterator[TruthImage]:
        """Yield the images of one range by rising id, and remove the range's file."""
        path = self._path(number)
        lines: dict[
            int, list[bytes]
        ] = {}  # by image id, the image's row first; text takes less memory than parsed rows
        with path.open("rb") as file:
            for line in file:
                image, _, row_text = line.partition(b" ")
                lines.setdefault(int(image), []).append(row_text)
        path.unlink()
        for _, texts in sorted(lines.items()):
            row, *annotations = map(json.loads, texts)
            yield image_of(row, annotations, self.path)

    def _add_annotation(self, row: Row, index: GroundTruthIndex, numbers: NDArray[Any]) -> None:
        """Add an annotation to the range of its image. numbers: the range of each image, in the order of the index."""
        position = int(np.searchsorted(index.ids, row["image_id"]))
        if position == len(index.ids) or index.ids[position] != row["image_id"]:
            raise SourceError(
                "an annotation is of an image that the truth does not list", where=self.path,
                found=f"annotation {row.get('id')}, image {row['image_id']}",
            )  # fmt: skip
        if row["category_id"] not in index.names:
            raise SourceError(
                "an annotation is of a category that the truth does not list", where=self.path,
                found=f"annotation {row.get('id')}, category {row['category_id']}",
            )  # fmt: skip
        self.objects += not row.get("iscrowd", 0)
        self._add_row(int(numbers[position]), int(index.ids[position]), row)

    def _add_row(self, number: int, image: int, row: Row) -> None:
        self._waiting.setdefault(number, []).append(f"{image} {json.dumps(row)}\n")
        self._count += 1
        if self._count >= _MAX_WAITING_ROWS:
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
    mask, (height, width) = row.get("segmentation"), image.size_hw
    where = f"annotation {row.get('id')} of {image.key} in {path}"
    if isinstance(mask, list) and mask and all(isinstance(polygon, list) and len(polygon) >= 6 for polygon in mask):
        return dict(coco_mask.merge(coco_mask.frPyObjects(mask, height, width)))
    if not isinstance(mask, dict) or "counts" not in mask:
        raise SourceError(
            "an annotation has no mask",
            where=where,
            found=str(mask)[:60],
            hint="give the annotation a mask; `segray evaluate --only bbox` needs boxes alone",
        )
    if tuple(mask.get("size", ())) != image.size_hw:
        raise SourceError(
            "a mask of the truth has another size than its image", where=where,
            found=f"{mask.get('size')}, the image {list(image.size_hw)} (h, w)",
        )  # fmt: skip
    counts = mask["counts"]
    try:
        if isinstance(counts, list):
            if sum(counts) != height * width or min(counts) < 0:
                raise ValueError(f"runs cover {sum(counts)} pixels, the image has {height * width}")
            return dict(coco_mask.frPyObjects(mask, height, width))
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


def elements(path: str, store: Store, sections: Sequence[str] | None = None) -> Iterator[tuple[str, Row | None]]:
    """Yield (name, member) for each member of a JSON object's arrays, one at a time, and (name, None) before the first.

    sections: names of the arrays to read, None for all. Other arrays are skipped.
    Raise SourceError if the file does not exist or holds no JSON object.
    """
    try:
        with io.TextIOWrapper(store.reader(path), encoding="utf-8") as file:
            yield from _members(_Text(file), path, sections)
    except FileNotFoundError as error:
        raise SourceError("no such truth file", where=redact(path), hint="check the path") from error
    except ValueError as error:
        raise SourceError("the truth is not JSON", where=redact(path), found=str(error)) from error


def _members(text: _Text, path: str, sections: Sequence[str] | None) -> Iterator[tuple[str, Row | None]]:
    if text.peek() != "{":
        raise SourceError("the truth is not COCO JSON", where=path, found="no JSON object")
    text.skip()
    while (char := text.peek()) != "}":
        if char == ",":
            text.skip()
            continue
        name = str(text.value())
        if text.peek() != ":":
            raise ValueError("no ':' after a key")
        text.skip()
        if text.peek() != "[":
            text.value()
            continue
        is_read = sections is None or name in sections
        if is_read:
            yield name, None
        text.skip()
        while (char := text.peek()) != "]":
            if char == ",":
                text.skip()
                continue
            row = text.value()
            if is_read:
                yield name, row
        text.skip()


class _Text:
    """JSON text that is read piece by piece."""

    def __init__(self, file: io.TextIOBase | io.TextIOWrapper) -> None:
        self._file, self._text, self._position = file, "", 0
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """Return the next character that is no space. Raise ValueError at the end."""
        while True:
            while self._position < len(self._text) and self._text[self._position] in " \t\r\n":
                self._position += 1
            if self._position < len(self._text):
                return self._text[self._position]
            if not self._read_more():
                raise ValueError("the file ends before the object does")

    def skip(self) -> None:
        """Move past the character that `peek` returned."""
        self._position += 1

    def value(self) -> Any:
        """Return the next JSON value, and move past it."""
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._position)
            except json.JSONDecodeError as error:
                # More text helps only a string without an end, or a word, number or escape at the very end.
                broken_off = error.msg.startswith("Unterminated") or error.pos > len(self._text) - _LONGEST_WORD
                if not broken_off or not self._read_more():
                    raise
                continue
            if end > len(self._text) - _LONGEST_WORD and self._read_more():
                continue  # The number may have more digits.
            self._position = end
            return value

    def _read_more(self) -> bool:
        """Read more text. Return False at the end of the file."""
        new_text = self._file.read(max(_READ_CHARS, len(self._text) - self._position))
        if new_text:
            self._text, self._position = self._text[self._position :] + new_text, 0
        return bool(new_text)
