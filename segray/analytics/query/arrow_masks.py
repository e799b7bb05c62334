"""Functions on Arrow columns of COCO RLE masks: area, box, overlap, union, crop, size, centre, outline and pictures.

This module knows Arrow arrays and the kernels. Tables and query engines belong to other modules.
Only rle_decode, rle_png and rle_polygon make an image. The others work on the runs.
Arguments are Arrow arrays, chunked or not, of equal length, or scalars that go with every row. A null gives null.
Masks are text as pycocotools has it. Sizes are in pixels.
ValueError names the row of malformed counts, and of masks of different images where one image is needed.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from segray import rle
from segray.masks import _kernels, _kernels_columns, _kernels_many
from segray.masks.arrays import EncodedMasks

BOX = pa.struct([pa.field(name, pa.int32()) for name in ("x", "y", "w", "h")])
POINT = pa.struct([pa.field(name, pa.float64()) for name in ("x", "y")])
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


def rle_intersection(a: Any, b: Any) -> pa.Array:
    """Return the mask of the pixels that both masks of each row have, as text. `rle_area` counts them."""
    (first, second), valid = _aligned(a, b)
    mask_text = pa.concat_arrays([first, second])
    # Masks lie row by row in pairs: first, second, first, second, ...
    rows = np.arange(len(first))
    encoded = _encoded(mask_text).at(np.stack([rows, rows + len(first)], axis=1).ravel())
    return _merged(encoded, 2 * np.arange(len(first) + 1), valid, intersect=True)


def rle_crop(masks: Any, height: Any, width: Any, x: Any, y: Any, w: Any, h: Any) -> pa.Array:
    """Return the part of each mask in a window, as text, for an image of the window's size.

    x, y: top left pixel of the window. w, h: its width and height. The window lies within the image.
    """
    (column, *numbers), valid = _aligned(masks, height, width, x, y, w, h)
    heights, widths, xs, ys, ws, hs = map(_ints, numbers)
    sizes_hw, windows = np.stack([heights, widths], axis=1), np.stack([xs, ys, ws, hs], axis=1)
    edges, ends, status = _kernels_columns.crop_edges(*_encoded(column), rle.MAX_GROUPS, sizes_hw, windows)
    reason = "the window is empty, or leaves the image of {1}x{0}: x {2}, y {3}, width {4}, height {5}"
    _check_status(status, valid, [column, *numbers], reason)
    return _texts(edges, ends, ws * hs, valid)


def rle_resize(masks: Any, height: Any, width: Any, new_height: Any, new_width: Any) -> pa.Array:
    """Return each mask at another size of its image, as text. A pixel takes the value of the pixel below its centre."""
    (column, *numbers), valid = _aligned(masks, height, width, new_height, new_width)
    heights, widths, new_heights, new_widths = map(_ints, numbers)
    sizes_hw, new_sizes_hw = np.stack([heights, widths], axis=1), np.stack([new_heights, new_widths], axis=1)
    edges, ends, status = _kernels_columns.resized_edges(*_encoded(column), rle.MAX_GROUPS, sizes_hw, new_sizes_hw)
    _check_status(status, valid, [column, *numbers], "an image has no pixels: {3}x{2}")
    return _texts(edges, ends, new_heights * new_widths, valid)


def rle_centroid(masks: Any, height: Any) -> pa.Array:
    """Return the centre of each mask's pixels, {x, y} float64; null for an empty mask.

    The centre of the top left pixel is 0.5, 0.5, as in `rle_polygon`. height: heights of the images, in pixels.
    """
    (column, heights), valid = _aligned(masks, height)
    values = _kernels_columns.moments(*_encoded(column), rle.MAX_GROUPS, _ints(heights))
    _check_codes(np.where(values[:, 0] < 0, -1, 0), valid, [column])
    is_known = valid & (values[:, 0] > 0)
    divisor = np.maximum(values[:, 0], 1)
    sides = [pa.array(values[:, k] / divisor) for k in (1, 2)]
    return pa.StructArray.from_arrays(sides, fields=list(POINT), mask=pa.array(~is_known))


def rle_perimeter(masks: Any, height: Any) -> pa.Array:
    """Return the number of pixel sides between each mask and what is not the mask, holes and the border too, int64.

    height: heights of the images, in pixels.
    """
    (column, heights), valid = _aligned(masks, height)
    values = _kernels_columns.moments(*_encoded(column), rle.MAX_GROUPS, _ints(heights))
    _check_codes(np.where(values[:, 0] < 0, -1, 0), valid, [column])
    return pa.array(values[:, 3].astype(np.int64), mask=~valid)


def rle_png(masks: Any, height: Any, width: Any) -> pa.Array:
    """Return each mask as a PNG of one bit a pixel, white where the mask is, large_binary."""
    column, heights, widths = (_array(value, _length(masks, height, width)) for value in (masks, height, width))
    pixels = rle_decode(column, heights, widths)
    rows = zip(pixels, heights.to_pylist(), widths.to_pylist(), strict=True)
    files = [_png(np.frombuffer(data.as_buffer(), np.uint8), (h, w)) if data.is_valid else None for data, h, w in rows]
    return pa.array(files, pa.large_binary())


def rle_decode(masks: Any, height: Any, width: Any) -> pa.Array:
    """Return the pixels of each mask row by row, height * width bytes of 0 or 1, large_binary."""
    (column, *numbers), valid = _aligned(masks, height, width)
    heights, widths = map(_ints, numbers)
    sizes = np.where(valid & (heights > 0) & (widths > 0), heights * widths, 0)
    bounds = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    pixels = np.zeros(int(bounds[-1]), np.uint8)
    encoded = _encoded(column)
    # Rows with a null are no masks. Their text may be anything.
    rows = np.flatnonzero(valid)
    status = np.zeros(len(valid), np.int64)
    status[rows] = _kernels_columns.decode_rows(
        *encoded.at(rows), rle.MAX_GROUPS, heights[rows], widths[rows], bounds[rows], pixels
    )
    _check_status(status, valid, [column, *numbers], "")
    buffers = [_bitmap(valid), pa.py_buffer(bounds), pa.py_buffer(pixels)]
    return pa.Array.from_buffers(pa.large_binary(), len(valid), buffers)


def rle_merge(lists: Any, intersect: bool = False) -> pa.Array:
    """Return the union (or the intersection) of the masks of each list, as text.

    The result is null for an empty list, and for a list with a null in it.
    """
    column = _array(lists)
    masks = column.flatten()
    bounds = np.concatenate([[0], np.cumsum(pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False))])
    nulls_before = np.concatenate([[0], np.cumsum(masks.is_null().to_numpy(zero_copy_only=False))])
    valid = (bounds[1:] > bounds[:-1]) & (nulls_before[bounds[1:]] == nulls_before[bounds[:-1]])
    return _merged(_encoded(masks.cast(pa.large_string())), bounds.astype(np.int64), valid, intersect=intersect)


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


def _length(*columns: Any) -> int:
    """Return the length of the columns that are arrays; 1 for scalars alone."""
    return next((len(column) for column in columns if isinstance(column, pa.Array | pa.ChunkedArray)), 1)


def _merged(encoded: EncodedMasks, bounds: _Ints, valid: NDArray[np.bool_], *, intersect: bool) -> pa.Array:
    """Return the unions or intersections of lists of masks. bounds: (lists + 1,). valid: (lists,) bool."""
    # A list with a null is read as an empty one.
    if not valid.all():
        lengths = np.diff(bounds)
        encoded = encoded.at(np.flatnonzero(np.repeat(valid, lengths)))
        bounds = np.concatenate([[0], np.cumsum(np.where(valid, lengths, 0))]).astype(np.int64)
    text, ends, status = _kernels_columns.merge_lists(*encoded, rle.MAX_GROUPS, bounds, intersect)
    if len(bad := np.flatnonzero(status)):
        reason = "counts are malformed" if status[bad[0]] == -1 else "masks are of images of unlike sizes"
        raise ValueError(f"row {bad[0]}: {reason}")
    return _texts_of(text, ends, valid).cast(pa.string())


def _texts(edges: _Ints, ends: _Ints, totals: _Ints, valid: NDArray[np.bool_]) -> pa.Array:
    """Return the counts of masks as text. edges: of all masks. ends: (n,) of each mask's. totals: pixels of each."""
    text, stops = _kernels_columns.encode_all(edges, ends, np.where(valid, totals, 0))
    return _texts_of(text, stops, valid)


def _texts_of(text: NDArray[np.uint8], ends: _Ints, valid: NDArray[np.bool_]) -> pa.Array:
    bounds = np.concatenate([[0], ends]).astype(np.int64)
    return pa.Array.from_buffers(
        pa.large_string(), len(valid), [_bitmap(valid), pa.py_buffer(bounds), pa.py_buffer(text)]
    )


def _bitmap(valid: NDArray[np.bool_]) -> pa.Buffer | None:
    return None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))


def _check_status(status: _Ints, valid: NDArray[np.bool_], columns: Sequence[pa.Array], window_reason: str) -> None:
    """Raise ValueError for the first valid row with a status below 0.

    columns: masks, heights, widths and further numbers. window_reason: text for the status -2, with places for numbers.
    """
    bad = np.flatnonzero((status < 0) & valid)
    if not len(bad):
        return
    row = int(bad[0])
    counts, *numbers = (column[row].as_py() for column in columns)
    if status[row] == -2:
        raise ValueError(f"row {row}: {window_reason.format(*numbers)}")
    try:
        rle.runs_of(counts, (numbers[0], numbers[1]))
    except ValueError as error:
        raise ValueError(f"row {row}: {error}") from error
    raise ValueError(f"row {row}: the image has no height or no width")


def _png(pixels: NDArray[np.uint8], size_hw: tuple[int, int]) -> bytes:
    """Return a PNG of one bit a pixel. pixels: (h * w,) of 0 or 1."""
    height, width = size_hw
    packed = np.packbits(pixels.reshape(height, width), axis=1)
    lines = np.concatenate([np.zeros((height, 1), np.uint8), packed], axis=1)  # Each line begins with its filter: none.
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 6)), (b"IEND", b""))
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


FUNCTIONS: dict[str, Callable[..., pa.Array]] = {
    function.__name__: function
    for function in (
        rle_area, rle_bbox, rle_iou, rle_intersection, rle_decode, rle_merge, rle_contains, rle_polygon, rle_crop,
        rle_resize, rle_centroid, rle_perimeter, rle_png,
    )
}  # fmt: skip
