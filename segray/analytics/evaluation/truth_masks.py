"""Masks of COCO truth in every form that tools write, as pycocotools takes them.

This module knows polygons and run lengths. It checks every number before code in C sees the number. Polygons that fit
are drawn by pycocotools, so areas and overlaps are those of COCOeval.
"""

from __future__ import annotations

import itertools
from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from segray import rle
from segray.analytics.evaluation import truth_rows
from segray.analytics.evaluation.truth_rows import shown, whole_number
from segray.errors import SourceError

Row = dict[str, Any]
_Size = tuple[int, int]
_LEAST_NUMBERS = 6  # three points
# pycocotools draws an outline in fifths of a pixel and keeps 16 bytes of each: 0.3 GB for so many.
_MAX_OUTLINE_STEPS = 20_000_000
_STEPS_OF_PIXEL = 5
_GIVE_MASK = "give the annotation a mask; `segray evaluate --only bbox` needs boxes alone"


def mask_of(segmentation: Any, size_hw: _Size | None, where: object) -> tuple[Row, int]:
    """Return a mask as pycocotools takes masks, and the number of its parts without area, which are left out.

    Args:
        segmentation: Polygons, one polygon as a flat list or as points, runs as numbers or text, or a list of such.
        size_hw: Height and width of the image. None takes the mask's own size, for an image of unknown size.
        where: The annotation, for errors; `str` of it is its name.

    Raises:
        SourceError: The mask is missing, malformed, of another size than its image, or has no usable part.
    """
    try:
        if isinstance(segmentation, str) and segmentation:
            segmentation = {"counts": segmentation}
        if isinstance(segmentation, dict) and segmentation.get("counts") is not None:
            return _runs(segmentation, size_hw, where), 0
        if isinstance(segmentation, list) and segmentation:
            if all(isinstance(part, dict) for part in segmentation):
                return dict(coco_mask.merge([_runs(part, size_hw, where) for part in segmentation])), 0
            return _polygons(segmentation, size_hw, where)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise SourceError(
            "a mask of the truth is malformed", where=str(where), found=str(error),
            hint="correct the segmentation, or delete the annotation",
        ) from error  # fmt: skip
    raise SourceError("an annotation has no mask", where=str(where), found=shown(segmentation), hint=_GIVE_MASK)


# ---- polygons -------------------------------------------------------------------------------------


def _polygons(parts: list[Any], size_hw: _Size | None, where: object) -> tuple[Row, int]:
    if not isinstance(parts[0], list):
        parts = [parts]  # x, y, x, y ... without the outer list
    elif len(parts) >= 3 and all(isinstance(part, list) and len(part) == 2 for part in parts):
        parts = [parts]  # the points of one polygon
    polygons = [_points(part) for part in parts]
    usable = [points for points in polygons if len(points) >= _LEAST_NUMBERS and len(points) % 2 == 0]
    if not usable:
        raise SourceError(
            "an annotation has no part with an area", where=str(where), found=shown(parts),
            hint="a part needs three points and more; correct the segmentation, or delete the annotation",
        )  # fmt: skip
    height, width = _extent(usable) if size_hw is None else size_hw
    drawn = coco_mask.frPyObjects(usable, height, width)
    return dict(coco_mask.merge(drawn)), len(polygons) - len(usable)


def _points(part: Any) -> NDArray[np.float64]:
    """Return x, y, x, y ... of a polygon, (n,) float64, from a flat list or from points."""
    if not isinstance(part, list):
        raise ValueError(f"a part is no list of coordinates: {shown(part)}")
    if part and all(isinstance(point, list) and len(point) == 2 for point in part):
        part = list(itertools.chain.from_iterable(part))
    points, bound = truth_rows.numbers(part)
    if len(points) * _STEPS_OF_PIXEL * bound > _MAX_OUTLINE_STEPS:
        _check_outline(points)
    return points


def _check_outline(points: NDArray[np.float64]) -> None:
    """Raise ValueError for an outline that takes much memory to draw: one that leads far away from any image."""
    corners = points[: len(points) // 2 * 2].reshape(-1, 2)
    length_px = np.abs(np.diff(corners, axis=0, append=corners[:1])).max(axis=1).sum()
    if length_px * _STEPS_OF_PIXEL > _MAX_OUTLINE_STEPS:
        farthest = points[np.abs(points).argmax()]
        raise ValueError(f"an outline of {length_px:.3g} pixels, with a coordinate of {farthest:g}")


def _extent(polygons: list[NDArray[np.float64]]) -> _Size:
    """Return height and width of the smallest image that holds these polygons."""
    width, height = (max(1, *(int(np.ceil(points[axis::2].max())) for points in polygons)) for axis in (0, 1))
    if height * width > truth_rows.MAX_PIXELS:
        raise ValueError(f"polygons reach to x {width}, y {height}, and the size of the image is not known")
    return height, width


# ---- run lengths ----------------------------------------------------------------------------------


def _runs(mask: Row, size_hw: _Size | None, where: object) -> Row:
    size = _size_of(mask, size_hw, where)
    counts = mask.get("counts")
    pixels = size[0] * size[1]
    if isinstance(counts, list):
        runs = _numbers_of_runs(counts)
        if len(runs) == 0 or min(runs) < 0 or max(runs) > pixels or sum(runs) != pixels:
            raise ValueError(f"runs cover {shown(sum(runs))} pixels, the image has {pixels}; {shown(counts)}")
        return dict(coco_mask.frPyObjects({"size": list(size), "counts": runs.tolist()}, *size))
    if isinstance(counts, bytes):
        counts = counts.decode()
    if isinstance(counts, str) and counts.startswith("b'") and counts.endswith("'"):
        counts = counts[2:-1].replace("\\\\", "\\")  # Python's text of bytes: no run length has a quotation mark.
    if not isinstance(counts, str):
        raise ValueError(f"counts are neither text nor a list: {shown(counts)}")
    rle.runs_of(counts, size)
    return {"size": list(size), "counts": counts.encode()}


def _size_of(mask: Row, size_hw: _Size | None, where: object) -> _Size:
    """Return height and width of a mask. Raise an error unless these are the image's."""
    stated = mask.get("size")
    if not stated:
        if size_hw is None:
            raise ValueError("neither the mask nor its image has a size")
        return size_hw
    sides = [whole_number(side) for side in stated] if isinstance(stated, list) else []
    if len(sides) != 2 or None in sides:
        raise ValueError(f"size is no height and width: {shown(stated)}")
    size = int(sides[0] or 0), int(sides[1] or 0)
    if size_hw is None:
        if min(size) < 1 or size[0] * size[1] > truth_rows.MAX_PIXELS:
            raise ValueError(f"size is no height and width: {shown(stated)}")
    elif size != size_hw:
        raise SourceError(
            "a mask of the truth has another size than its image", where=str(where),
            found=f"{list(size)}, the image {list(size_hw)} (h, w)",
            hint="correct the mask's `size`: height first, then width",
        )  # fmt: skip
    return size


def _numbers_of_runs(counts: list[Any]) -> array[int]:
    try:
        return array("q", counts)
    except TypeError:  # Some tools write 20.0 for 20.
        runs = [whole_number(count) for count in counts]
        if None in runs:
            raise ValueError(f"counts have a member that is no number of pixels: {shown(counts)}") from None
        return array("q", [run for run in runs if run is not None])
