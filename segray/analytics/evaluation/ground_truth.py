"""COCO or LVIS ground truth of any size, sorted into ranges of keys.

This module knows the sections of both formats. truth_json reads the file, truth_rows and truth_masks check its values.
Label sets belong to other modules.
A truth is sorted into ranges of keys in temporary files, each of which is removed after it was read.
26 bytes of each image stay in memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from segray.analytics.evaluation import truth_json, truth_masks, truth_rows
from segray.analytics.evaluation.coco_eval import IOU_TYPES, ImageAnnotations
from segray.analytics.query import key_ranges
from segray.analytics.query.key_ranges import KeyRange, KeySampler
from segray.errors import SourceError, UserError
from segray.instances import image_id
from segray.storage.store import Store

Row = dict[str, Any]
_SECTIONS = ("images", "annotations", "categories")
_MAX_WAITING_ROWS = 10_000  # rows in memory, for all ranges together, before they are written to the files


@dataclass(frozen=True)
class TruthImage:
    """One image of the truth with its annotations.

    id: a number that orders the images. size_hw: height and width in pixels; None where the truth does not state them.
    not_exhaustive: categories of which the image may show more than is annotated.
    negative: categories that the image does not show; None where the truth covers all categories.
    """

    id: int
    key: str
    size_hw: tuple[int, int] | None
    annotations: Sequence[Row]
    not_exhaustive: frozenset[int] = frozenset()
    negative: frozenset[int] | None = None


@dataclass(frozen=True)
class GroundTruthIndex:
    """The categories and images that a truth lists.

    names: category name by id; None for a category without a name. frequency: LVIS's r, c or f by category id. used:
    ids of the categories that have annotations. ids: (n,) int64, of the images, ascending. A number stands for each id
    that is a word. hashes: (n,) uint64, of the
    images' names, in the order of ids. example: one of the names. strip_prefix: text that is cut off the names.
    row_weight: weight of an image for a KeySampler.
    """

    path: str
    names: Mapping[int, str | None]
    frequency: Mapping[int, str]
    ids: NDArray[np.int64] = field(repr=False)
    hashes: NDArray[np.uint64] = field(repr=False)
    example: str = ""
    used: frozenset[int] = frozenset()
    strip_prefix: str = ""
    row_weight: float = 1.0

    def positions(self, keys: Iterable[str]) -> NDArray[np.int64]:
        """Return the position of each image in `ids`, (n,) int64; -1 where the truth lists no image of that name."""
        values = np.fromiter(map(key_hash, keys), np.uint64)
        found = np.searchsorted(self.hashes, values, sorter=self._by_hash)
        positions = self._by_hash[np.minimum(found, len(self.hashes) - 1)]
        return np.where(self.hashes[positions] == values, positions, -1)

    def id_of(self, key: str) -> int:
        """Return the id of the image with this key. Raise SourceError without such an image, or if the id is a word."""
        (position,) = self.positions([key])
        if position < 0:
            raise SourceError("the truth lacks an image of the label set", where=self.path, found=key)
        image = int(self.ids[position])
        if truth_rows.is_word(image):
            raise SourceError(
                "an image id of the truth is no number", where=self.path, found=key,
                hint="give a truth whose image ids are numbers, or leave out --ids-from",
            )  # fmt: skip
        return image

    def category_of(self, number: int) -> int | None:
        """Return the category of an annotation's category_id: the id of a category, or the name of one alone.

        number: what stands for the category_id. Return None for a category that the truth does not list.
        """
        return number if number in self.names else self._by_name.get(number)

    @cached_property
    def _by_name(self) -> Mapping[int, int]:
        counts = Counter(self.names.values())
        numbers = {truth_rows.id_number(name): category for category, name in self.names.items() if counts[name] == 1}
        return {number: category for number, category in numbers.items() if number and truth_rows.is_word(number)}

    def position_of(self, image: int) -> int:
        """Return the position of an image's id in `ids`, -1 for an id that the truth does not list."""
        position = int(np.searchsorted(self.ids, image))
        return position if position < len(self.ids) and self.ids[position] == image else -1

    def images(self, store: Store) -> Iterator[tuple[int, str, Row]]:
        """Read the truth's images once more. Yield each one's position in `ids`, its name and its row."""
        with closing(truth_json.members(self.path, store, ("images",))) as rows:
            images = (member for member in rows if member[1] != truth_json.START)
            for count, (_, number, row, _) in enumerate(images, 1):
                position = self.position_of(truth_rows.image_id_of(row, number, self.path))
                yield position, name_of(row, self.path, self.strip_prefix), row
                if count == len(self.ids):  # What follows in the file need not be read.
                    return

    @cached_property
    def _by_hash(self) -> NDArray[np.int64]:
        return np.argsort(self.hashes)


def read_index(path: str, store: Store, sampler: KeySampler, strip_prefix: str = "") -> GroundTruthIndex:
    """Read the index of a truth, and add the truth's images to the sampler, which must be empty.

    strip_prefix: text that is cut off the names of images. Raise SourceError for a truth that cannot be used, and
    UserError if no name begins with the prefix.
    """
    names: dict[int, str | None] = {}
    frequency: dict[int, str] = {}
    ids: list[NDArray[np.int64]] = []
    hashes: list[NDArray[np.uint64]] = []
    new_ids: list[int] = []
    new_keys: list[str] = []
    example, sections, used = "", set(), set[int]()
    has_prefix = not strip_prefix

    def add_new_images() -> None:
        ids.append(np.array(new_ids, np.int64))
        hashes.append(np.fromiter(map(key_hash, new_keys), np.uint64))
        sampler.add(new_keys, [1.0] * len(new_keys))
        new_ids.clear()
        new_keys.clear()

    for section, number, row, _ in truth_json.members(path, store, _SECTIONS):
        sections.add(section)
        if number == truth_json.START:
            continue
        if section == "annotations":
            used.add(truth_rows.annotation_ids(row, number, path)[1])
        elif section == "categories":
            _add_category(row, number, path, names, frequency)
        else:
            new_ids.append(truth_rows.image_id_of(row, number, path))
            new_keys.append(name_of(row, path, strip_prefix))
            has_prefix = has_prefix or new_keys[-1] != truth_rows.image_name(row, path)
            example = min(example or new_keys[-1], new_keys[-1])
            if len(new_ids) == _MAX_WAITING_ROWS:
                add_new_images()
    add_new_images()
    missing = [section for section in _SECTIONS if section not in sections]
    if missing:
        raise SourceError(
            "the truth is not COCO JSON", where=path, found=f"no {', '.join(missing)}",
            hint="give a file with images, annotations and categories",
        )  # fmt: skip
    all_ids, all_hashes = np.concatenate(ids), np.concatenate(hashes)
    order = np.argsort(all_ids, kind="stable")
    bytes_per_image = store.stat(path).size_bytes / max(len(all_ids), 1)
    weight = max(1.0, bytes_per_image / key_ranges.ROW_BYTES)
    sampler.scale(weight)
    index = GroundTruthIndex(
        path, names, frequency, all_ids[order], all_hashes[order], example, frozenset(used), strip_prefix, weight
    )
    index = replace(index, used=frozenset(index.category_of(number) or number for number in used))
    _check_distinct(index, store)
    if not has_prefix:
        raise UserError(
            "no file_name of the truth begins with the prefix", where=path,
            found=f"--strip-prefix {strip_prefix}, file_name {example}", hint="correct --strip-prefix",
        )  # fmt: skip
    return index


def read_all(path: str, store: Store, index: GroundTruthIndex | None = None, *, needs_sizes: bool = True) -> Row:
    """Read a whole truth of COCO into memory: images with sizes, annotations and named categories, with ids as numbers.

    index: the truth's index, if it was read before. needs_sizes: refuse images without sizes; else these have a height
    and a width of None. Raise SourceError for a truth that cannot be used.
    """
    index = index or read_index(path, store, KeySampler())
    nameless = [category for category, name in index.names.items() if name is None]
    if nameless:
        raise SourceError(
            "a category of the truth has no name", where=path, found=f"category {nameless[0]}",
            hint="write id and name of each category",
        )  # fmt: skip
    categories = [{"id": category, "name": name} for category, name in index.names.items()]
    content: Row = {"images": [], "annotations": [], "categories": categories}
    for section, number, row, _ in truth_json.members(path, store, ("images", "annotations")):
        if number == truth_json.START:
            continue
        if section == "images":
            image, size_hw = truth_rows.image_id_of(row, number, path), truth_rows.image_size_hw(row, path)
            if size_hw is None and needs_sizes:
                raise SourceError(
                    "an image of the truth has no size", where=path, found=f"image {truth_rows.shown(row['id'])}",
                    hint="write height and width of each image",
                )  # fmt: skip
            sizes = dict(zip(("height", "width"), size_hw or (None, None), strict=True))
            content["images"].append({**row, **sizes, "id": image, "file_name": name_of(row, path)})
        else:
            image, _, category = _listed_ids(row, number, index)
            content["annotations"].append({**row, "image_id": image, "category_id": category})
    return content


def _listed_ids(row: Any, place: int, index: GroundTruthIndex) -> tuple[int, int, int]:
    """Return id and position of an annotation's image, and the id of its category.

    Raise SourceError unless the truth lists both.
    """
    image, category = truth_rows.annotation_ids(row, place, index.path)
    position = index.position_of(image)
    if position < 0:
        raise SourceError(
            "an annotation is of an image that the truth does not list", where=index.path,
            found=f"{truth_rows.annotation_name(row, place)}, image {truth_rows.shown(row['image_id'])}",
            hint="list the image, or delete the annotation",
        )  # fmt: skip
    listed = category if category in index.names else index.category_of(category)
    if listed is None:
        raise SourceError(
            "an annotation is of a category that the truth does not list", where=index.path,
            found=f"{truth_rows.annotation_name(row, place)}, category {truth_rows.shown(row['category_id'])}",
            hint="list the category, or delete the annotation",
        )  # fmt: skip
    return image, position, listed


def _add_category(row: Any, number: int, path: str, names: dict[int, str | None], frequency: dict[int, str]) -> None:
    category, name = truth_rows.category(row, number, path)
    if names.setdefault(category, name) != name:
        raise SourceError(
            "two categories of the truth have one id", where=path,
            found=f"{truth_rows.shown(row['id'])}: {names[category]}, {name}",
            hint="give each category an id of its own",
        )  # fmt: skip
    if letter := truth_rows.frequency(row):
        frequency[category] = letter


def _check_distinct(index: GroundTruthIndex, store: Store) -> None:
    if not len(index.ids):
        raise SourceError("the truth has no images", where=index.path, found="an empty list of images")
    for name, values in (("id", index.ids), ("file_name", index.hashes[index._by_hash])):
        same = np.flatnonzero(values[1:] == values[:-1])
        if len(same):
            image = index.ids[same[0]] if name == "id" else index.ids[index._by_hash[same[0]]]
            raise SourceError(
                f"the truth's images cannot be told apart by {name}", where=index.path,
                found=f"two images with the same {name}, such as image {_written_id(index, store, image)}",
                hint=f"give each image {'an' if name == 'id' else 'a'} {name} of its own",
            )  # fmt: skip


def _written_id(index: GroundTruthIndex, store: Store, image: int) -> str:
    """Return the id of an image as the truth writes it, for errors."""
    return next(truth_rows.shown(row["id"]) for position, _, row in index.images(store) if index.ids[position] == image)


@dataclass(frozen=True)
class Translation:
    """The names and categories of a truth in terms of a label set.

    key: returns the label set's key of an image, from its position in the index and its name in the truth.
    class_ids: class id by category id, of the categories that count; None where the ids are equal.
    """

    key: Callable[[int, str], str] = field(default=lambda _, name: name)
    class_ids: Mapping[int, int] | None = None


class GroundTruthBySlice:
    """A truth's images by range of keys, in files of a temporary folder."""

    def __init__(
        self,
        index: GroundTruthIndex,
        ranges: Sequence[KeyRange],
        store: Store,
        folder: Path,
        translation: Translation = Translation(),
    ) -> None:
        self.path, self._folder, self._index, self._translation = index.path, folder, index, translation
        self.objects = self.crowds = 0  # number of annotations that are not crowds, and that are
        self._waiting: dict[int, list[str]] = {}
        self._count = 0
        numbers = np.zeros(len(index.ids), np.uint16 if len(ranges) < 1 << 16 else np.uint32)  # the range of each image
        has_images, has_early_annotations = False, False
        for section, place, row, text in truth_json.members(
            self.path, store, ("images", "annotations"), with_text=True
        ):
            if place == truth_json.START:
                has_images = has_images or section == "images"
            elif section == "images":
                image = truth_rows.image_id_of(row, place, self.path)
                position = index.position_of(image)
                key = translation.key(position, name_of(row, self.path, index.strip_prefix))
                numbers[position] = number = key_ranges.number_of(ranges, key)
                self._add_line(number, image, 0, place, json.dumps({**row, "file_name": key}))
            elif not has_images:
                has_early_annotations = True
            else:
                self._add_annotation(row, place, text, numbers)
        if has_early_annotations:  # These stand before the images, so all annotations are read once more.
            for _, place, row, text in truth_json.members(self.path, store, ("annotations",), with_text=True):
                if place != truth_json.START:
                    self._add_annotation(row, place, text, numbers)
        self._flush()

    def holds(self, number: int) -> bool:
        """Return whether a range has images that were not read yet."""
        return self._path(number).exists()

    def read(self, number: int) -> Iterator[TruthImage]:
        """Yield the images of one range by rising id, and remove the range's file."""
        path = self._path(number)
        # By image id, the image's line first. Text takes less memory than parsed rows.
        lines: dict[int, list[bytes]] = {}
        with path.open("rb") as file:
            for line in file:
                image, _, rest = line.partition(b" ")
                lines.setdefault(int(image), []).append(rest)
        path.unlink()
        for number_of_id, texts in sorted(lines.items()):
            row, *annotations = map(_row_of, texts)
            rank = truth_rows.rank(number_of_id, int(texts[0].split(b" ", 2)[1]))
            yield image_of(row, annotations, self.path, self._translation.class_ids, rank=rank)

    def _add_annotation(self, row: Row, place: int, text: str, numbers: NDArray[Any]) -> None:
        """Add an annotation to the range of its image.

        place: the annotation's number in the list. numbers: the range of each image, in the order of the index.
        """
        image, position, category = _listed_ids(row, place, self._index)
        is_crowd = bool(row.get("iscrowd")) and truth_rows.flag(
            row, "iscrowd", f"{truth_rows.annotation_name(row, place)} in {self.path}"
        )
        self.crowds += is_crowd
        self.objects += not is_crowd
        class_ids = self._translation.class_ids
        class_id = category if class_ids is None else class_ids[category]
        self._add_line(int(numbers[position]), image, class_id, place, text)

    def _add_line(self, number: int, image: int, class_id: int, place: int, text: str) -> None:
        """Add a row to a range. text: JSON; line breaks lie between values alone."""
        one_line = text.replace("\n", " ")
        self._waiting.setdefault(number, []).append(f"{image} {class_id} {place} {one_line}\n")
        self._count += 1
        if self._count >= _MAX_WAITING_ROWS:
            self._flush()

    def _flush(self) -> None:
        for number, lines in self._waiting.items():
            with self._path(number).open("a", encoding="utf-8", newline="\n") as file:
                file.writelines(lines)
        self._waiting, self._count = {}, 0

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.truth"


def _row_of(line: bytes) -> Row:
    """Return the row of a line: of an image, or of an annotation with the id of its class."""
    class_id, place, text = line.split(b" ", 2)
    row: Row = json.loads(text)
    row["category_id"] = int(class_id)
    if row.get("id") is None:
        row["id"] = f"number {int(place) + 1} of the list"
    return row


# ---- one image ------------------------------------------------------------------------------------


@dataclass
class ObjectTally:
    """What is told about the masks of a truth: parts without area, which are left out, and an annotation with one."""

    parts_left_out: int = 0
    example: str = ""

    def add(self, parts_left_out: int, where: str) -> None:
        """Count the parts of one annotation."""
        self.parts_left_out += parts_left_out
        self.example = self.example or where


def image_of(
    row: Row,
    annotations: Sequence[Row],
    path: str,
    class_ids: Mapping[int, int] | None = None,
    *,
    rank: int,
) -> TruthImage:
    """Return an image of a truth, from its row and the rows of its annotations.

    class_ids: class id by category id, for LVIS's lists of categories; None where the ids are equal. rank: the number
    that orders the image among the others.
    """
    negative = truth_rows.category_set(row, "neg_category_ids", path)
    not_exhaustive = truth_rows.category_set(row, "not_exhaustive_category_ids", path) or frozenset()
    if class_ids is not None:
        not_exhaustive = _translated(not_exhaustive, class_ids)
        negative = None if negative is None else _translated(negative, class_ids)
    return TruthImage(
        rank, truth_rows.image_name(row, path), truth_rows.image_size_hw(row, path), annotations, not_exhaustive,
        negative,
    )  # fmt: skip


def _translated(categories: frozenset[int], class_ids: Mapping[int, int]) -> frozenset[int]:
    return frozenset(class_ids[category] for category in categories if category in class_ids)


def name_of(row: Row, path: str, strip_prefix: str = "") -> str:
    """Return the image's name in a truth, without a prefix and the slash behind the prefix."""
    name = truth_rows.image_name(row, path)
    if not strip_prefix or not name.startswith(strip_prefix):
        return name
    return name.removeprefix(strip_prefix).lstrip("/") or name


def objects_of(
    image: TruthImage,
    path: str,
    iou_types: Iterable[str] = IOU_TYPES,
    *,
    count_crowds: bool = False,
    tally: ObjectTally | None = None,
) -> ImageAnnotations:
    """Return the objects of an image of the truth.

    Args:
        image: The image. An image without a size takes the size of each mask.
        path: The truth, for errors.
        iou_types: Any of "segm" and "bbox".
        count_crowds: Take crowds for objects.
        tally: Receives what is told about the masks.

    Raises:
        SourceError: A mask or a number is malformed, or a mask has another size.
    """
    rows = image.annotations
    objects = [_Object(row, image, path, tally or ObjectTally()) for row in rows]
    crowd = np.array([not count_crowds and item.flag("iscrowd") for item in objects], np.bool_)
    # pycocotools ignores crowds and nothing else. The field `ignore` is LVIS's.
    ignore = crowd | np.array([image.negative is not None and item.flag("ignore") for item in objects], np.bool_)
    shapes: dict[str, Any] = {}
    if "segm" in iou_types:
        shapes["segm"] = [item.mask for item in objects]
    if "bbox" in iou_types:
        shapes["bbox"] = np.array([item.box_xywh for item in objects], np.float64).reshape(-1, 4)
    areas = np.array([item.area for item in objects], np.float64)
    class_ids = np.array([row["category_id"] for row in rows], np.int64)
    return ImageAnnotations(class_ids, shapes, dict.fromkeys(shapes, areas), crowd=crowd, ignore=ignore)


class _Object:
    """One annotation, whose mask is drawn when it is needed first. `str` gives its name for errors."""

    def __init__(self, row: Row, image: TruthImage, path: str, tally: ObjectTally) -> None:
        self._row, self._image, self._path, self._tally = row, image, path, tally
        self._mask: Row | None = None

    def __str__(self) -> str:
        return f"annotation {truth_rows.shown(self._row.get('id'))} of {self._image.key} in {self._path}"

    def flag(self, name: str) -> bool:
        return bool(self._row.get(name)) and truth_rows.flag(self._row, name, self)

    @property
    def mask(self) -> Row:
        if self._mask is None:
            self._mask, left_out = truth_masks.mask_of(self._row.get("segmentation"), self._image.size_hw, self)
            if left_out:
                self._tally.add(left_out, str(self))
        return self._mask

    @property
    def box_xywh(self) -> Sequence[float]:
        box = truth_rows.box_xywh(self._row, self)
        return list(coco_mask.toBbox(self.mask)) if box is None else box

    @property
    def area(self) -> float:
        """Return the stated area, else the mask's own, else that of the box."""
        area = truth_rows.area(self._row, self)
        if area is not None:
            return area
        if not self._row.get("segmentation") and (box := truth_rows.box_xywh(self._row, self)):
            return box[2] * box[3]
        return float(coco_mask.area(self.mask))


def key_hash(key: str) -> int:
    """Return a hash of an image's name, 64 bits."""
    return int(image_id(key)[:16], 16)
