"""Functions on Arrow columns of COCO RLE masks: area, box, overlap, union, membership and outline.

This module knows Arrow arrays and the kernels. Tables and query engines belong to other modules.
Area, box, overlap, union and membership work on the runs and never make an image.
Arguments are Arrow arrays, chunked or not, of equal length, or scalars that go with every row. A null gives null.
Masks are text as pycocotools has it. Sizes are in pixels.
ValueError names the row of malformed counts, and of masks of different images where one image is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from segray import rle
from segray.masks import _kernels, _kernels_many
from segray.masks.arrays import EncodedMasks

BOX = pa.struct([pa.field(name, pa.int32()) for name in ("x", "y", "w", "h")])
POLYGONS = pa.list_(pa.list_(pa.float64()))
_Ints = NDArray[np.int64]


def rle_area(masks: Any) -> pa.Array:
    """Return the number of set pixels of each mask, int64."""
    (column,), valid = _aligned(masks)
    areas = _kernels.areas(*_encoded(column), rle.MAX_GROUPS)[:, 0]
    _check_codes(areas, valid, [column])
    return pa.array(areas, mask=~valid)


def rle_bbox(masks: Any, height: Any) -> pa.Array:
    """Return the tightest boxes of whole pixels, {x, y, w, h} int32; all 0 for an empty mask.

    height: heights of the images, in pixels.
    """
    (column, heights), valid = _aligned(masks, height)
    boxes = _kernels_many.boxes(*_encoded(column), rle.MAX_GROUPS, _ints(heights))
    _check_codes(np.where(boxes[:, 2] < 0, -1, 0), valid, [column])
    sides = [pa.array(boxes[:, k].astype(np.int32)) for k in range(4)]
    return pa.StructArray.from_arrays(sides, fields=list(BOX), mask=pa.array(~valid))


def rle_iou(a: Any, b: Any) -> pa.Array:
    """Return the intersection over union of the two masks of each row, float64; 0 for two empty masks."""
    (first, second), valid = _aligned(a, b)
    overlaps = _kernels_many.overlaps(*_encoded(first), *_encoded(second), rle.MAX_GROUPS)
    _check_codes(overlaps[:, 0], valid, [first, second])
    return pa.array(iou_of(overlaps), mask=~valid)


def rle_decode(masks: Any, height: Any, width: Any) -> pa.Array:
    """Return the pixels of each mask row by row, height * width bytes of 0 or 1, large_binary."""
    (column, heights, widths), valid = _aligned(masks, height, width)
    rows = zip(column.to_pylist(), heights.to_pylist(), widths.to_pylist(), valid.tolist(), strict=True)
    pixels = [rle.decode(counts, (h, w)).tobytes() if is_valid else None for counts, h, w, is_valid in rows]
    return pa.array(pixels, pa.large_binary())


def rle_merge(lists: Any, intersect: bool = False) -> pa.Array:
    """Return the union (or the intersection) of the masks of each list, as text.

    The result is null for an empty list, and for a list with a null in it.
    """
    column = _array(lists)
    masks = column.flatten()
    encoded = _encoded(masks.cast(pa.large_string()))
    bounds = np.concatenate([[0], np.cumsum(pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False))])
    nulls_before = np.concatenate([[0], np.cumsum(masks.is_null().to_numpy(zero_copy_only=False))])
    merged: list[str | None] = []
    for row, (first, last) in enumerate(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)):
        if first == last or nulls_before[first] != nulls_before[last]:
            merged.append(None)
            continue
        min_masks = last - first if intersect else 1  # the masks that must cover a pixel of the result
        edges = _kernels_many.merged_edges(*encoded.at(slice(first, last)), rle.MAX_GROUPS, min_masks)
        if edges[-1] < 0:
            reason = "counts are malformed" if edges[-1] == -1 else "masks are of images of unlike sizes"
            raise ValueError(f"row {row}: {reason}")
        merged.append(_kernels.encode_counts(edges[:-1], edges[-1]).tobytes().decode())
    return pa.array(merged, pa.string())


def rle_contains(masks: Any, height: Any, x: Any, y: Any) -> pa.Array:
    """Return whether each mask has pixel (x, y), bool; false outside the image.

    x, y: in pixels, counted from 0 at the top left.
    """
    (column, *numbers), valid = _aligned(masks, height, x, y)
    heights, xs, ys = map(_ints, numbers)
    positions = np.where((ys >= 0) & (ys < heights) & (xs >= 0), xs * heights + ys, -1)
    return pa.array(_kernels_many.covers(*_encoded(column), rle.MAX_GROUPS, positions), mask=~valid)


def rle_polygon(masks: Any, height: Any, width: Any) -> pa.Array:
    """Return COCO polygons, lists of [x, y, x, y, ...]: the exact outer outlines along pixel edges; see `outlines`."""
    (column, heights, widths), valid = _aligned(masks, height, width)
    rows = zip(column.to_pylist(), heights.to_pylist(), widths.to_pylist(), valid.tolist(), strict=True)
    polygons = [
        [ring.ravel() for ring in outlines(counts, (h, w)) if turns_right(ring)] if is_valid else None
        for counts, h, w, is_valid in rows
    ]
    return pa.array(polygons, POLYGONS)


# ---- beside the functions of SQL ------------------------------------------------------------------


def fits_image(masks: Any, height: Any, width: Any) -> NDArray[np.bool_]:
    """Return, for each mask, whether its counts are well-formed and cover exactly an image of this size, (n,) bool."""
    (column, heights, widths), valid = _aligned(masks, height, width)
    areas, covered = _kernels.areas(*_encoded(column), rle.MAX_GROUPS).T
    return np.asarray(valid & (areas >= 0) & (covered == _ints(heights) * _ints(widths)), np.bool_)


def outlines(counts: str, size_hw: tuple[int, int]) -> list[NDArray[np.float64]]:
    """Return the rings around a mask's pixels, each (n, 2) float64: x, y of its corners in order.

    Outer rings turn right on the screen, holes turn left. Coordinates are of pixel edges: the image spans 0..w, 0..h.
    """
    x, y, w, h = rle.bbox(counts, size_hw).astype(int)
    if not w:
        return []
    padded = np.zeros((h + 2, w + 2), np.bool_)
    padded[1:-1, 1:-1] = rle.decode(counts, size_hw)[y : y + h, x : x + w]
    corners = _kernels_many.rings(padded)
    starts = np.flatnonzero(np.diff(corners[:, 2])) + 1
    return [ring[:, :2] + np.array([x, y], np.float64) for ring in np.split(corners, starts)]


def turns_right(ring: NDArray[np.float64]) -> bool:
    """Return whether a ring is an outer outline, not the outline of a hole. ring: (n, 2) x, y."""
    x, y = ring.T
    return float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) > 0


def text_of(counts: Sequence[str]) -> EncodedMasks:
    """Return masks in the form that the kernels take."""
    return _encoded(pa.array(counts, pa.large_string()))


def iou_matrix(a: Sequence[str], b: Sequence[str], crowd: Sequence[bool] | None = None) -> NDArray[np.float64]:
    """Return the intersection over union of masks of one image, (len a, len b).

    crowd: for each mask of b, whether it is a crowd. For a crowd, the intersection is divided by the area of the mask
    of a.
    """
    rows, columns = np.repeat(np.arange(len(a)), len(b)), np.tile(np.arange(len(b)), len(a))
    pairs = *text_of(a).at(rows), *text_of(b).at(columns)
    overlaps = _kernels_many.overlaps(*pairs, rle.MAX_GROUPS)
    _check_codes(overlaps[:, 0], np.ones(len(overlaps), np.bool_), [])
    crowd_of_pairs = None if crowd is None else np.tile(np.asarray(crowd, np.bool_), len(a))
    return np.reshape(iou_of(overlaps, crowd_of_pairs), (len(a), len(b)))


def iou_of(overlaps: _Ints, crowd: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Return the IoU of n pairs, (n,) float64.

    overlaps: (n, 3) int64: pixels in common, first area, second area.
    crowd: (n,) bool. Where it is true, the pixels in common are divided by the first area alone.
    """
    shared, area, other_area = overlaps.T
    divisor = area + other_area - shared
    if crowd is not None:
        divisor = np.where(crowd, area, divisor)
    return np.asarray(np.divide(shared, divisor, out=np.zeros(len(overlaps)), where=divisor > 0), np.float64)


# ---- columns --------------------------------------------------------------------------------------


def _aligned(*columns: Any) -> tuple[list[pa.Array], NDArray[np.bool_]]:
    """Return arrays of one length, and which rows have no null. Text becomes large_string, integers become int64."""
    lengths = {len(column) for column in columns if isinstance(column, pa.Array | pa.ChunkedArray)}
    if len(lengths) > 1:
        raise ValueError(f"columns of unlike lengths: {sorted(lengths)}")
    length = lengths.pop() if lengths else 1
    arrays = [_array(column, length) for column in columns]
    valid = np.ones(length, np.bool_)
    for array in arrays:
        if array.null_count:
            valid &= array.is_valid().to_numpy(zero_copy_only=False)
    return arrays, valid


def _array(column: Any, length: int = 1) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    elif not isinstance(column, pa.Array):
        column = pa.repeat(column if isinstance(column, pa.Scalar) else pa.scalar(column), length)
    if isinstance(column, pa.DictionaryArray):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or column.type in (pa.string_view(), pa.binary(), pa.large_binary()):
        return column.cast(pa.large_string())
    return column.cast(pa.int64()) if pa.types.is_integer(column.type) else column


def _encoded(column: pa.Array) -> EncodedMasks:
    """Return the masks as views of the column's own memory. A null gives an empty range."""
    if column.type != pa.large_string():
        raise ValueError(f"masks are text, not {column.type}")
    if not len(column):
        return EncodedMasks(np.empty(0, np.uint8), np.empty(0, np.int64), np.empty(0, np.int64))
    _, offsets, data = column.buffers()
    bounds = np.frombuffer(offsets, np.int64)[column.offset : column.offset + len(column) + 1]
    text = np.empty(0, np.uint8) if data is None or not data.size else np.frombuffer(data, np.uint8)
    return EncodedMasks(text, bounds[:-1], bounds[1:])


def _ints(column: pa.Array) -> _Ints:
    if column.type != pa.int64():
        raise ValueError(f"sizes and positions are whole numbers, not {column.type}")
    return np.asarray(column.fill_null(-1).to_numpy(zero_copy_only=False), np.int64)


def _check_codes(codes: _Ints, valid: NDArray[np.bool_], columns: Sequence[pa.Array]) -> None:
    """Raise ValueError for the first valid row with a negative code, with the reason.

    codes: (rows,), -1 for a bad mask in the first column, -2 in the second, -3 for images of unlike sizes.
    """
    bad_rows = np.flatnonzero((codes < 0) & valid)
    if not len(bad_rows):
        return
    row, code = int(bad_rows[0]), int(codes[bad_rows[0]])
    if code == -3:
        raise ValueError(f"row {row}: the two masks are of images of unlike sizes")
    reason = "counts are malformed, or the image has no height"
    if columns:
        try:
            rle.area(columns[0 if code == -1 else 1][row].as_py())
        except ValueError as error:
            reason = str(error)
    raise ValueError(f"row {row}: {reason}")


FUNCTIONS: dict[str, Callable[..., pa.Array]] = {
    function.__name__: function
    for function in (rle_area, rle_bbox, rle_iou, rle_decode, rle_merge, rle_contains, rle_polygon)
}
