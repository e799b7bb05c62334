"""COCO's compressed run lengths: the only module that encodes masks.

This module knows runs, their text and the images that they span. Models, boxes and files belong to other modules.
A mask of h x w pixels is read column by column. Runs alternate between 0 and 1; the first run is of 0 and may be empty.

The text follows maskApi.c of pycocotools. Each run is written in groups of 5 bits, low bits first.
A group adds 32 if more groups follow, and 48 to be ASCII. From the fourth run on, the text holds the difference to
the run two before. The encoders give byte for byte what pycocotools gives. Malformed counts raise ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from segray.masks.arrays import EncodedMasks

# 7 groups hold any run below 2**34. Each sum in this module then stays within int64.
MAX_GROUPS = 7
_AS_TEXT = "pycocotools gives bytes: call decode() on them."


# ---- encode ---------------------------------------------------------------------------------------


def encode(mask: NDArray[Any]) -> str:
    """Return the counts of a full-image mask.

    mask: (h, w) bool, or uint8 where each value but 0 is set.
    """
    return encode_crop(mask, 0, 0, (mask.shape[0], mask.shape[1]))


def encode_crop(crop: NDArray[Any], x0: int, y0: int, size_hw: tuple[int, int]) -> str:
    """Return the full-image counts of a crop. All pixels outside the crop are 0.

    The cost grows with the crop, not with the image.

    Args:
        crop: (ch, cw) bool.
        x0: Column of the crop's left edge in the image, in pixels.
        y0: Row of the crop's top edge in the image, in pixels.
        size_hw: Height and width of the image, in pixels.

    Raises:
        ValueError: The crop leaves the image.
    """
    height, width = size_hw
    rows, columns = crop.shape
    if x0 < 0 or y0 < 0 or x0 + columns > width or y0 + rows > height:
        raise ValueError(f"a crop of {rows}x{columns} (h, w) at x {x0}, y {y0} leaves the image of {height}x{width}")
    framed = np.zeros((columns, rows + 2), np.bool_)
    framed[:, 1:-1] = crop.T
    column, row = np.divmod(np.flatnonzero(framed[:, 1:] != framed[:, :-1]), rows + 1)
    return from_edges((x0 + column) * height + (y0 + row), size_hw)


def from_edges(edges: NDArray[np.int64], size_hw: tuple[int, int]) -> str:
    """Return the counts of the mask that flips at these positions, starting from 0.

    edges: (n,) int64, ascending positions column * h + row. Two equal positions cancel. A mask that continues from the
    bottom of a column at the top of the next therefore has one run.

    size_hw: height and width of the image, in pixels.
    """
    from segray.masks import _kernels

    text = _kernels.encode_counts(np.ascontiguousarray(edges, np.int64), size_hw[0] * size_hw[1])
    return str(text.tobytes(), "ascii")


def from_edges_of_all(edges: NDArray[np.int64], stops: NDArray[np.int64], size_hw: tuple[int, int]) -> tuple[str, ...]:
    """Return the counts of each of n masks of one image, as `from_edges` does for one mask.

    Args:
        edges: The edges of all masks, one mask after the other, int64.
        stops: The end of each mask's edges, (n,) int64.
        size_hw: Height and width of the image, in pixels.
    """
    from segray.masks import _kernels

    codes, ends = _kernels.encode_counts_of_all(edges, stops, size_hw[0] * size_hw[1])
    text, bounds = str(codes.tobytes(), "ascii"), [0, *ends.tolist()]
    return tuple(text[start:stop] for start, stop in pairwise(bounds))


# ---- decode ---------------------------------------------------------------------------------------


def decode(counts: str, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """Return the mask of these counts, (h, w) bool.

    Raises:
        ValueError: The counts are malformed, or do not span the image.
    """
    runs = runs_of(counts, size_hw)
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size_hw[1], size_hw[0]).T


def spans(counts: str, size_hw: tuple[int, int]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the vertical spans of a mask: columns, first rows, and the rows behind the last, (n,) int64 each.

    Raises:
        ValueError: The counts are malformed, or do not span the image.
    """
    height, ends = size_hw[0], np.cumsum(runs_of(counts, size_hw))
    starts, stops = ends[: len(ends) // 2 * 2].reshape(-1, 2).T
    starts, stops = starts[stops > starts], stops[stops > starts]
    first = starts // height
    columns_of_run = (stops - 1) // height - first + 1  # A run may go on at the top of the next column.
    run = np.repeat(np.arange(len(starts)), columns_of_run)
    columns = first[run] + np.arange(len(run)) - (np.cumsum(columns_of_run) - columns_of_run)[run]
    column_starts = columns * height
    return columns, np.maximum(starts[run] - column_starts, 0), np.minimum(stops[run] - column_starts, height)


@overload
def area(counts: str) -> int: ...  # type: ignore[overload-overlap]  # A str is a Sequence[str] too.
@overload
def area(counts: Sequence[str]) -> NDArray[np.int64]: ...
def area(counts: str | Sequence[str]) -> int | NDArray[np.int64]:
    """Return the number of set pixels: an int for one mask, (n,) int64 for several masks.

    Raises:
        ValueError: Some counts are malformed.
    """
    if isinstance(counts, str):
        return int(area([counts])[0])
    from segray.masks import _kernels

    areas: NDArray[np.int64] = _kernels.areas(*join_counts(counts), MAX_GROUPS)[:, 0]
    if len(invalid := np.flatnonzero(areas < 0)):
        _parse(counts[invalid[0]])  # Raises an error that names the fault.
    return areas


def pixels(counts: Sequence[str], sizes_hw: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of set pixels of each mask, (n,) int64.

    sizes_hw: (n, 2) heights and widths. The value is -1 for counts that are malformed or do not span their image.
    """
    from segray.masks import _kernels

    areas = _kernels.areas(*join_counts([text if text.isascii() else "" for text in counts]), MAX_GROUPS)
    return np.where(areas[:, 1] == sizes_hw.prod(axis=1), areas[:, 0], -1)


def join_counts(counts: Sequence[str]) -> EncodedMasks:
    """Return all counts in the form that the kernels take: one text, and each mask's start and stop in the text."""
    try:
        text = "".join(counts)
    except TypeError as error:
        raise TypeError(f"{type(counts).__name__} in place of a sequence of str. {_AS_TEXT}") from error
    if not text.isascii():
        for mask_counts in counts:
            _codes(mask_counts)  # Raises an error that names the character.
    lengths = np.fromiter(map(len, counts), np.int64, len(counts))
    stops = np.cumsum(lengths)
    return EncodedMasks(np.frombuffer(text.encode(), np.uint8), stops - lengths, stops)


def bbox(counts: str | Sequence[str], size_hw: tuple[int, int]) -> NDArray[np.float64]:
    """Return the tightest boxes of whole pixels, x, y, w, h: (4,) for one mask, (n, 4) for several masks.

    The box of an empty mask is all 0.

    Raises:
        ValueError: Some counts are malformed, or do not span the image.
    """
    if isinstance(counts, str):
        return np.asarray(bbox([counts], size_hw)[0])
    from segray.masks import _kernels, _kernels_many

    masks, heights = join_counts(counts), np.full(len(counts), size_hw[0], np.int64)
    area, covered = _kernels.areas(*masks, MAX_GROUPS).T
    if len(invalid := np.flatnonzero((area < 0) | (covered != size_hw[0] * size_hw[1]))):
        runs_of(counts[invalid[0]], size_hw)  # Raises an error that names the fault.
    return np.asarray(_kernels_many.boxes(*masks, MAX_GROUPS, heights), np.float64)


def iou(a: Sequence[str], b: Sequence[str], size_hw: tuple[int, int]) -> NDArray[np.float64]:
    """Return the intersection over union of each mask of a with each mask of b, (len a, len b) float64.

    All masks span size_hw.
    """
    if not a or not b:
        return np.zeros((len(a), len(b)))
    masks_a, masks_b = ([_checked(counts, size_hw) for counts in side] for side in (a, b))
    return np.asarray(coco_mask.iou(masks_a, masks_b, [0] * len(masks_b)), np.float64)


def union(counts: Sequence[str], size_hw: tuple[int, int]) -> str:
    """Return the counts of the mask of all pixels that any of these masks has. All masks span size_hw."""
    from segray.masks import _kernels_many

    edges = _kernels_many.merged_edges(*join_counts(counts), MAX_GROUPS, 1)
    if edges[-1] != size_hw[0] * size_hw[1]:
        for mask_counts in counts:
            runs_of(mask_counts, size_hw)  # Raises an error that names the fault.
    return from_edges(edges[:-1], size_hw)


def _checked(counts: str, size_hw: tuple[int, int]) -> dict[str, Any]:
    """Return a mask as pycocotools takes masks, after a check of its runs.

    pycocotools reads beyond its memory if the runs do not fit the image.
    """
    runs_of(counts, size_hw)
    return {"size": list(size_hw), "counts": counts.encode("ascii")}


def runs_of(counts: str, size_hw: tuple[int, int]) -> NDArray[np.int64]:
    """Return the runs of one mask, (n,) int64, of 0 and 1 in turn. The runs span the image exactly."""
    runs, total = _parse(counts), size_hw[0] * size_hw[1]
    if runs.sum() != total:
        raise ValueError(f"runs cover {runs.sum()} pixels, an image of {size_hw[0]}x{size_hw[1]} has {total}")
    return runs


def _parse(counts: str) -> NDArray[np.int64]:
    """Return the runs of one mask. Raise ValueError for malformed counts or a negative run."""
    codes = _codes(counts)
    last_groups = np.flatnonzero(codes < 32)
    if not len(last_groups) or last_groups[-1] != len(codes) - 1:
        raise ValueError(f"counts end within a number: ...{counts[-20:]!r}")
    starts = np.append(0, last_groups[:-1] + 1)
    groups = last_groups - starts + 1
    if groups.max() > MAX_GROUPS:
        raise ValueError(f"a number of {groups.max()} characters, where {MAX_GROUPS} is the most")
    position = np.arange(len(codes)) - np.repeat(starts, groups)
    runs = np.add.reduceat((codes & 31) << 5 * position, starts)
    runs -= ((codes[last_groups] & 16) != 0) * (np.int64(1) << 5 * groups)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    if runs.min() < 0:
        raise ValueError(f"run {runs.argmin()} is negative: {runs.min()}")
    return runs


def _codes(counts: str) -> NDArray[np.int64]:
    if not isinstance(counts, str):
        raise TypeError(f"counts are {type(counts).__name__}, not str. {_AS_TEXT}")
    text = np.frombuffer(counts.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
    codes = text - 48
    if len(invalid := np.flatnonzero((codes < 0) | (codes > 63))):
        raise ValueError(f"character {invalid[0]} of counts is {counts[invalid[0]]!r}, outside '0'..'o'")
    return codes
