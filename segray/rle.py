"""COCO's compressed run lengths: the only place that encodes masks.

Knows runs, their text and the images they span; knows nothing of models, boxes or files. A mask of h x w pixels is
read column by column; its runs alternate between 0 and 1, starting with a possibly empty run of 0. The text, after
maskApi.c of pycocotools: each run is written in groups of 5 bits, low bits first, 32 marking that more follow, plus
48 to be ASCII; from the fourth run on it is the difference to the run two before. Encoders here give byte for byte
what pycocotools gives. Malformed counts raise ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from segray.masks.arrays import EncodedMasks

# 7 groups hold any run below 2**34, and keep every sum in this module within int64.
MAX_GROUPS = 7


# ---- encode ---------------------------------------------------------------------------------------


def encode(mask: NDArray[Any]) -> str:
    """The counts of a full-image mask, (h, w) bool, or uint8 where anything but 0 is set."""
    return encode_crop(mask, 0, 0, (mask.shape[0], mask.shape[1]))


def encode_crop(crop: NDArray[Any], x0: int, y0: int, size_hw: tuple[int, int]) -> str:
    """Full-image counts of a crop, (ch, cw) bool, whose top left pixel is (x0, y0); all else is 0.

    Costs what the crop costs, whatever the image. Raises ValueError if the crop leaves the image.
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
    """The counts of the mask that flips at these positions, starting from 0.

    edges: (n,) ascending positions column * h + row. A position given twice cancels: a mask that is closed at the
    bottom of one column and opened at the top of the next runs on.
    """
    from segray.masks import _kernels

    text = _kernels.encode_counts(np.ascontiguousarray(edges, np.int64), size_hw[0] * size_hw[1])
    return str(text.tobytes(), "ascii")


def from_edges_of_all(edges: NDArray[np.int64], stops: NDArray[np.int64], size_hw: tuple[int, int]) -> tuple[str, ...]:
    """`from_edges` of n masks of one image, whose edges lie one after the other and stop at stops, (n,)."""
    from segray.masks import _kernels

    codes, ends = _kernels.texts_of_edges(edges, stops, size_hw[0] * size_hw[1])
    text, bounds = str(codes.tobytes(), "ascii"), [0, *ends.tolist()]
    return tuple(text[start:stop] for start, stop in pairwise(bounds))


# ---- decode ---------------------------------------------------------------------------------------


def decode(counts: str, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """The mask, (h, w) bool."""
    runs = runs_of(counts, size_hw)
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(size_hw[1], size_hw[0]).T


@overload
def area(counts: str) -> int: ...  # type: ignore[overload-overlap]  # A str is a Sequence[str] too.
@overload
def area(counts: Sequence[str]) -> NDArray[np.int64]: ...
def area(counts: str | Sequence[str]) -> int | NDArray[np.int64]:
    """Pixels of one mask, an int, or of several, (n,) int64."""
    if isinstance(counts, str):
        return int(area([counts])[0])
    from segray.masks import _kernels

    found: NDArray[np.int64] = _kernels.areas(*joined(counts), MAX_GROUPS)[:, 0]
    if len(bad := np.flatnonzero(found < 0)):
        _parse(counts[bad[0]])  # Says what is wrong.
    return found


def pixels(counts: Sequence[str], sizes_hw: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pixels of each mask, (n,) int64; -1 for counts that are none or do not span their image, of (n, 2)."""
    from segray.masks import _kernels

    found = _kernels.areas(*joined([one if one.isascii() else "" for one in counts]), MAX_GROUPS)
    return np.where(found[:, 1] == sizes_hw.prod(axis=1), found[:, 0], -1)


def joined(counts: Sequence[str]) -> EncodedMasks:
    """All counts in a row, as the kernels take them: their characters, and where each one's start and stop."""
    text = "".join(counts)
    if not text.isascii():
        for one in counts:
            _codes(one)  # Says which character is wrong.
    lengths = np.fromiter(map(len, counts), np.int64, len(counts))
    stops = np.cumsum(lengths)
    return EncodedMasks(np.frombuffer(text.encode(), np.uint8), stops - lengths, stops)


def bbox(counts: str | Sequence[str], size_hw: tuple[int, int]) -> NDArray[np.float64]:
    """The tightest boxes of whole pixels, x, y, w, h: (4,) for one mask, (n, 4) for several; 0 for an empty mask."""
    if isinstance(counts, str):
        return np.asarray(bbox([counts], size_hw)[0])
    from segray.masks import _kernels, _kernels_many

    masks, heights = joined(counts), np.full(len(counts), size_hw[0], np.int64)
    area, covered = _kernels.areas(*masks, MAX_GROUPS).T
    if len(bad := np.flatnonzero((area < 0) | (covered != size_hw[0] * size_hw[1]))):
        runs_of(counts[bad[0]], size_hw)  # Says what is wrong.
    return np.asarray(_kernels_many.boxes(*masks, MAX_GROUPS, heights), np.float64)


def iou(a: Sequence[str], b: Sequence[str], size_hw: tuple[int, int]) -> NDArray[np.float64]:
    """Intersection over union of each mask of a with each of b, (len a, len b); all masks span size_hw."""
    if not a or not b:
        return np.zeros((len(a), len(b)))
    left, right = ([_checked(counts, size_hw) for counts in side] for side in (a, b))
    return np.asarray(coco_mask.iou(left, right, [0] * len(right)), np.float64)


def union(counts: Sequence[str], size_hw: tuple[int, int]) -> str:
    """The mask of all pixels that any of these has; all span size_hw."""
    from segray.masks import _kernels_many

    edges = _kernels_many.merged_edges(*joined(counts), MAX_GROUPS, 1)
    if edges[-1] != size_hw[0] * size_hw[1]:
        for one in counts:
            runs_of(one, size_hw)  # Says what is wrong.
    return from_edges(edges[:-1], size_hw)


def _checked(counts: str, size_hw: tuple[int, int]) -> dict[str, Any]:
    """pycocotools' own words for a mask; it reads beyond its memory if the runs do not fit the image."""
    runs_of(counts, size_hw)
    return {"size": list(size_hw), "counts": counts.encode("ascii")}


def runs_of(counts: str, size_hw: tuple[int, int]) -> NDArray[np.int64]:
    """The runs of one mask, (n,) int64, of 0 and 1 in turn; they span the image exactly."""
    runs, total = _parse(counts), size_hw[0] * size_hw[1]
    if runs.sum() != total:
        raise ValueError(f"runs cover {runs.sum()} pixels, an image of {size_hw[0]}x{size_hw[1]} has {total}")
    return runs


def _parse(counts: str) -> NDArray[np.int64]:
    """The runs, none of them negative."""
    codes = _codes(counts)
    lasts = np.flatnonzero(codes < 32)
    if not len(lasts) or lasts[-1] != len(codes) - 1:
        raise ValueError(f"counts end within a number: ...{counts[-20:]!r}")
    starts = np.append(0, lasts[:-1] + 1)
    groups = lasts - starts + 1
    if groups.max() > MAX_GROUPS:
        raise ValueError(f"a number of {groups.max()} characters, where {MAX_GROUPS} is the most")
    place = np.arange(len(codes)) - np.repeat(starts, groups)
    runs = np.add.reduceat((codes & 31) << 5 * place, starts)
    runs -= ((codes[lasts] & 16) != 0) * (np.int64(1) << 5 * groups)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    if runs.min() < 0:
        raise ValueError(f"run {runs.argmin()} is negative: {runs.min()}")
    return runs


def _codes(counts: str) -> NDArray[np.int64]:
    text = np.frombuffer(counts.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.int64)
    codes = text - 48
    if len(wrong := np.flatnonzero((codes < 0) | (codes > 63))):
        raise ValueError(f"character {wrong[0]} of counts is {counts[wrong[0]]!r}, outside '0'..'o'")
    return codes
