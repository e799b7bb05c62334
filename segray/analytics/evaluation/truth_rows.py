"""Rows of COCO and LVIS truth: ids, names, sizes and flags as people's tools write them, checked.

This module knows the fields of categories, images and annotations but not their masks. Each function returns a value
whose meaning is plain, or raises SourceError with the id of the row. Ids and sizes may be written as text or as floats.
An id may also be a word, such as a name or a UUID. A number stands for each word.
Where a function takes the annotation for errors, `str` of the argument is its name.
"""

from __future__ import annotations

import hashlib
import math
import re
from array import array
from collections.abc import Sequence
from reprlib import Repr
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.errors import SourceError

Row = dict[str, Any]

# Largest number that a coordinate or the side of a box may have. Code in C multiplies coordinates within 32 bits.
MAX_COORDINATE = 1e8
MAX_PIXELS = 2**31 - 1  # of an image: run lengths have 32 bits
_SMALL = 1e6  # coordinates that need no closer look
_MAX_AREA = 1e10  # the end of COCO's largest range of areas
_MAX_ID = 2**63 - 1
_LONGEST_NUMBER = 10**100  # an id that is written as an integer
_AFTER_NUMBERS = 2**62
_WORDS_END = -(2**62)  # Numbers that stand for words lie below. Truths have no ids there.
_WHOLE_NUMBER = re.compile(r"\s*([+-]?[0-9]{1,19})(?:\.0*)?\s*")
_FLAGS = {"0": False, "1": True, "false": False, "true": True, "0.0": False, "1.0": True}
_FREQUENCIES = ("r", "c", "f")

_shortened = Repr()
_shortened.maxlevel, _shortened.maxlist, _shortened.maxdict = 3, 6, 4
_shortened.maxstring = _shortened.maxother = _shortened.maxlong = 50


def shown(value: Any) -> str:
    """Return a value for an error, as short text."""
    return "null" if value is None else _shortened.repr(value)


def whole_number(value: Any) -> int | None:
    """Return an integer that is written as a number, as a float or as text; None for any other value."""
    if type(value) is int:
        number = value
    elif isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        number = int(value)
    elif isinstance(value, str) and (match := _WHOLE_NUMBER.fullmatch(value)):
        number = int(match[1])
    else:
        return None
    return number if abs(number) <= _MAX_ID else None


def id_number(value: Any) -> int | None:
    """Return the number that stands for an id: an id of digits itself, or a hash of a word; None for any other value.

    An integer of more than 64 bits is a word too. Spaces around a word do not count.
    """
    if type(value) is int and abs(value) <= _MAX_ID:
        return value
    number = whole_number(value)
    if number is not None or type(value) not in (str, int):
        return number
    word = str(value).strip() if isinstance(value, str) or abs(value) < _LONGEST_NUMBER else ""
    if not word:
        return None
    digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return _WORDS_END - (int.from_bytes(digest, "little") >> 2)


def is_word(number: int) -> bool:
    """Return whether the number stands for a word, and says nothing to a reader."""
    return number <= _WORDS_END


def rank(image: int, place: int) -> int:
    """Return the number that orders an image among the others: its id, or for words its place in the list."""
    return _AFTER_NUMBERS + place if is_word(image) else image


def numbers(values: Sequence[Any]) -> tuple[NDArray[np.float64], float]:
    """Return numbers as an array, (n,) float64, and a number that no absolute value exceeds.

    Raise ValueError unless all are finite and none is over MAX_COORDINATE.
    """
    if not values:
        return np.empty(0), 0.0
    try:
        length = math.hypot(*values)  # faster than the largest value, and not less
        checked = np.frombuffer(array("d", values), np.float64)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"{error}: {shown(values)}") from error
    if length <= _SMALL:  # Comparisons with NaN are false.
        return checked, length
    wrong = checked[~(np.abs(checked) <= MAX_COORDINATE)]
    if len(wrong):
        raise ValueError(f"{wrong[0]:g} is no place in an image")
    return checked, float(np.abs(checked).max())


def flag(row: Row, name: str, where: object) -> bool:
    """Return a field that is true or false, such as iscrowd; false if the field is missing or null."""
    value = row.get(name)
    if value is None or value is False or value is True:
        return bool(value)
    known = _FLAGS.get(str(value).strip().lower()) if isinstance(value, (int, float, str)) else None
    if known is None:
        raise SourceError(
            f"{name} is neither 0 nor 1", where=str(where), found=shown(value), hint=f"write {name} as 0 or 1"
        )
    return known


def area(row: Row, where: object) -> float | None:
    """Return the area of an annotation in pixels, None if the annotation does not state it."""
    value = row.get("area")
    if value is None:
        return None
    if isinstance(value, (int, float)) and 0 <= value <= _MAX_AREA:
        return float(value)
    raise SourceError(
        "an annotation has an area that is no number of pixels", where=str(where), found=shown(value),
        hint="correct the area, or leave the area out: the mask's own is then taken",
    )  # fmt: skip


def box_xywh(row: Row, where: object) -> list[float] | None:
    """Return the box of an annotation in pixels, None if the annotation does not state it."""
    value = row.get("bbox")
    if value is None or value == []:
        return None
    try:
        x, y, width, height = value
        # Comparisons with NaN are false, and those with text or null raise TypeError.
        is_box = abs(x) <= MAX_COORDINATE >= abs(y) and 0 <= width <= MAX_COORDINATE and 0 <= height <= MAX_COORDINATE
    except (TypeError, ValueError):
        is_box = False
    if not is_box or not isinstance(value, list):
        raise SourceError(
            "an annotation has a box that is no x, y, width, height in pixels", where=str(where), found=shown(value),
            hint="correct bbox, or leave bbox out: the mask's own is then taken",
        )  # fmt: skip
    return value


# ---- annotations ----------------------------------------------------------------------------------


def annotation_name(row: Any, number: int) -> str:
    """Return the words that name an annotation: its id, or its place in the list. number: of the member, from 0."""
    if isinstance(row, dict) and row.get("id") is not None:
        return f"annotation {shown(row['id'])}"
    return f"annotation number {number + 1} of the list"


def annotation_ids(row: Any, number: int, path: str) -> tuple[int, int]:
    """Return the numbers of the ids of an annotation's image and category.

    number: of the annotation in the list, from 0.
    """
    if type(row) is dict:
        image, category = row.get("image_id"), row.get("category_id")
        if type(image) is int and type(category) is int and abs(image) <= _MAX_ID and abs(category) <= _MAX_ID:
            return image, category
    return _lax_annotation_ids(row, number, path)


def _lax_annotation_ids(row: Any, number: int, path: str) -> tuple[int, int]:
    where = f"{annotation_name(row, number)} in {path}"
    if not isinstance(row, dict):
        raise SourceError(
            "an annotation is no mapping", where=where, found=shown(row), hint="delete this member of annotations"
        )
    ids = []
    for name, owner in (("image_id", "image"), ("category_id", "category")):
        known = id_number(row.get(name))
        if known is None:
            raise SourceError(
                f"an annotation has no usable {name}", where=where,
                found=shown(row[name]) if name in row else f"no {name}",
                hint=f"give the annotation the id of its {owner}",
            )  # fmt: skip
        ids.append(known)
    return ids[0], ids[1]


# ---- images ---------------------------------------------------------------------------------------


def image_id_of(row: Any, number: int, path: str) -> int:
    """Return the number of an image's id. number: of the image in the list, from 0."""
    if not isinstance(row, dict):
        raise SourceError(
            "an image of the truth is no mapping", where=path, found=f"image number {number + 1}: {shown(row)}",
            hint="delete this member of images",
        )  # fmt: skip
    known = id_number(row.get("id"))
    if known is None:
        raise SourceError(
            "an image of the truth has no usable id", where=path,
            found=f"image number {number + 1}: {shown(row['id']) if 'id' in row else 'no id'}",
            hint="give the image a number or a text as its `id`, and its annotations the same as `image_id`",
        )  # fmt: skip
    return known


def image_name(row: Row, path: str) -> str:
    """Return the image's name: its file_name, or for LVIS the last part of its coco_url."""
    name = row.get("file_name")
    if name is None or name == "":
        url = row.get("coco_url")
        name = url.rpartition("/")[2] if isinstance(url, str) else ""
    if not isinstance(name, str) or not name:
        raise SourceError(
            "an image of the truth has no file_name", where=path,
            found=f"image {shown(row.get('id'))}: {shown(row['file_name']) if 'file_name' in row else 'no file_name'}",
            hint="write file_name as text",
        )  # fmt: skip
    try:
        name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise SourceError(
            "a file_name of the truth has half a character", where=path, found=f"image {row.get('id')}: {name!a}",
            hint="write the file_name in UTF-8",
        ) from error  # fmt: skip
    return name


def image_size_hw(row: Row, path: str) -> tuple[int, int] | None:
    """Return height and width of an image in pixels, None if the truth does not state both."""
    sides = [row.get("height"), row.get("width")]
    if any(side is None or side == 0 for side in sides):
        return None
    height, width = (whole_number(side) for side in sides)
    if height is None or width is None or min(height, width) < 1 or height * width > MAX_PIXELS:
        raise SourceError(
            "an image of the truth has no usable size", where=path,
            found=f"image {shown(row.get('id'))}: height {shown(sides[0])}, width {shown(sides[1])}",
            hint="correct height and width, or leave both out: those of the label set are then taken",
        )  # fmt: skip
    return height, width


def category_set(row: Row, name: str, path: str) -> frozenset[int] | None:
    """Return LVIS's list of category ids under this name, None if the image has none."""
    value = row.get(name)
    if value is None:
        return None
    ids = [id_number(member) for member in value] if isinstance(value, list) else [None]
    if None in ids:
        raise SourceError(
            f"{name} of an image is no list of category ids", where=path,
            found=f"image {shown(row.get('id'))}: {shown(value)}", hint=f"correct {name}",
        )  # fmt: skip
    return frozenset(known for known in ids if known is not None)


# ---- categories -----------------------------------------------------------------------------------


def category(row: Any, number: int, path: str) -> tuple[int, str | None]:
    """Return the number of a category's id, and its name; None for a category without a name.

    A word that is an id is also the name of a category without a name. number: in the list, from 0.
    """
    known = id_number(row.get("id")) if isinstance(row, dict) else None
    if known is None:
        raise SourceError(
            "a category of the truth has no usable id", where=path,
            found=f"category number {number + 1}: {shown(row)}", hint="write id and name of each category",
        )  # fmt: skip
    name = row.get("name")
    if name is None:
        return known, str(row["id"]).strip() if is_word(known) else None
    if type(name) not in (str, int):
        raise SourceError(
            "a category of the truth has a name that is no text", where=path,
            found=f"category {shown(row['id'])}: {shown(name)}", hint="write the name as text",
        )  # fmt: skip
    return known, str(name)


def frequency(row: Row) -> str | None:
    """Return LVIS's r, c or f of a category."""
    value = row.get("frequency")
    return value if isinstance(value, str) and value in _FREQUENCIES else None
