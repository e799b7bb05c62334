"""Outlines of masks: the positions where a resized and thresholded mask flips, without resizing the mask.

Knows grids of values, the taps of bilinear resizes and the ways in which programs paste small masks into images. Run
lengths belong to `rle`, and images to `geometry`. All functions are pure. The compiled loops are imported where they
are called: their import takes longer than all else that a command starts.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segray.imaging.geometry import Fit
from segray.masks.arrays import Taps


def linear_taps(source: int, target: int, start: int = 0, stop: int | None = None) -> Taps:
    """Return the taps of an axis that is resized from `source` to `target` pixels.

    Centres are at half pixels and edges are clamped, as with cv2.INTER_LINEAR.
    start, stop: range of the output pixels, stop exclusive; all by default.
    """
    pixels = np.arange(start, target if stop is None else stop)
    return Taps.of(start, *_linear(pixels, source / target, source))


@functools.lru_cache(maxsize=64)
def taps_of_axis(source: int, target: int) -> Taps:
    """Return the `linear_taps` of a whole axis. Most images have one of a few sizes."""
    return linear_taps(source, target)


def _linear(
    pixels: NDArray[np.int64], scale: float | NDArray[np.float64], source: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Return low, high and weight of the taps of these output pixels. scale: source pixels in an output pixel."""
    centre = (pixels + 0.5) * scale - 0.5
    floor = np.floor(centre).astype(np.intp)
    inside = (floor >= 0) & (floor < source - 1)
    low = floor.clip(0, source - 1)
    weight = np.where(inside, centre - floor, 0).astype(np.float32)
    return low, np.minimum(low + 1, source - 1), weight


def tile_taps(low: np.floating[Any], high: np.floating[Any], side: int, limit: int) -> Taps:
    """Return the taps of one axis of a mask whose pixels tile the box from low to high.

    The mask is pasted as Detectron and Open Model Zoo do. The box grows with the mask, is truncated toward zero, and
    includes its last pixel. The last bits of the edges decide which pixels the box has. The arithmetic therefore has
    the dtype of the edges.

    Args:
        low: Lower edge of the box, in source pixels.
        high: Upper edge of the box, in source pixels.
        side: Pixels of the mask on this axis.
        limit: Pixels of the image on this axis.

    Returns:
        Taps whose indices count into the mask with one pixel of 0 before and one after.
    """
    half, centre = (high - low) * 0.5 * ((side + 2) / side), (high + low) * 0.5
    first, last = int(centre - half), int(centre + half)
    start, stop = np.clip((first, last + 1), 0, limit).tolist()
    taps = linear_taps(side + 2, max(last - first + 1, 1), start - first, max(start, stop) - first)
    return Taps(start, taps.low, taps.high, taps.weight)


class TilesTaps(NamedTuple):
    """The taps of one axis of n masks that tile boxes of their own.

    firsts: (n,) int64, first output pixel of each mask. stops: (n + 1,) int64, where the taps of each mask end.
    low, high, weight: the taps of all masks, as in Taps.
    """

    firsts: NDArray[np.int64]
    stops: NDArray[np.int64]
    low: NDArray[np.intp]
    high: NDArray[np.intp]
    weight: NDArray[np.float32]


def taps_of_tiles(low: NDArray[np.floating[Any]], high: NDArray[np.floating[Any]], side: int, limit: int) -> TilesTaps:
    """Return the `tile_taps` of n boxes.

    low, high: (n,), edges of the boxes, in source pixels. side, limit: as in `tile_taps`.
    """
    half, centre = (high - low) * 0.5 * ((side + 2) / side), (high + low) * 0.5
    first, last = (centre - half).astype(np.int64), (centre + half).astype(np.int64)
    starts, stops = first.clip(0, limit), (last + 1).clip(0, limit)
    lengths = np.maximum(stops - starts, 0)
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    pixel = np.arange(ends[-1]) - np.repeat(ends[:-1] + first - starts, lengths)
    scale = np.repeat((side + 2) / np.maximum(last - first + 1, 1), lengths)
    return TilesTaps(starts, ends, *_linear(pixel, scale, side + 2))


def taps_of_samples(low: NDArray[np.float32], high: NDArray[np.float32], side: int, limit: int) -> TilesTaps:
    """Return the taps of one axis of n masks whose pixels tile the boxes from low to high, in float32.

    The masks are sampled at the centre of each pixel of the image, as Detectron2 and mmdetection paste masks: by
    grid_sample with align_corners False, 0 outside the mask. An empty box has no taps.

    Args:
        low: (n,) float32, lower edges of the boxes, in source pixels.
        high: (n,) float32, upper edges of the boxes, in source pixels.
        side: Pixels of each mask on this axis.
        limit: Pixels of the image on this axis.

    Returns:
        Taps whose indices count into a mask with one pixel of 0 before and one after.
    """
    centres = np.arange(limit, dtype=np.float32) + np.float32(0.5)
    extents = np.where(high > low, high - low, np.float32(np.nan))[:, None]
    positions = (((centres - low[:, None]) / extents * 2 - 1 + 1) * np.float32(side) - 1) / 2
    is_inside = (positions > -1) & (positions < side)  # A run of pixels, since positions only rise. NaN is not inside.
    stops = np.concatenate([np.zeros(1, np.int64), np.cumsum(is_inside.sum(axis=1), dtype=np.int64)])
    inside = positions[is_inside]
    floor = np.floor(inside)
    cell = floor.astype(np.intp) + 1
    weight = (inside - floor).astype(np.float32)
    return TilesTaps(is_inside.argmax(axis=1).astype(np.int64), stops, cell, cell + 1, weight)


def edges_of_samples(
    masks: NDArray[np.float32], boxes_xyxy: NDArray[np.float32], size_hw: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return `mask_edges` of n small masks, pasted into their boxes by `taps_of_samples`, for rle.from_edges_of_all.

    Args:
        masks: (n, r, c), values of 0..1.
        boxes_xyxy: (n, 4) float32, in pixels of the image.
        size_hw: Height and width of the image, in pixels.
    """
    x0, y0, x1, y1 = boxes_xyxy.T
    rows = taps_of_samples(y0, y1, masks.shape[1], size_hw[0])
    columns = taps_of_samples(x0, x1, masks.shape[2], size_hw[1])
    return _edges_of_boxes(masks, rows, columns, size_hw[0])


def reframe_taps(low: np.float32, high: np.float32, side: int, limit: int) -> Taps:
    """Return the taps of one axis of a mask whose outermost pixel centres lie on the edges of the box.

    The mask is pasted as TensorFlow's object detection does: by crop_and_resize of the image's frame from the mask, in
    float32. No output pixel reads beyond the outermost centres.

    Args:
        low: Lower edge of the box, over 0..1.
        high: Upper edge of the box, over 0..1.
        side: Pixels of the mask on this axis.
        limit: Pixels of the image on this axis.
    """
    extent = np.maximum(high - low, np.float32(1e-4))
    begin, end, reach = (0 - low) / extent, (1 - low) / extent, np.float32(side - 1)
    if limit > 1:
        positions = begin * reach + np.arange(limit, dtype=np.float32) * ((end - begin) * reach / np.float32(limit - 1))
    else:
        positions = np.array([0.5 * (begin + end) * reach], np.float32)
    inside = np.flatnonzero((positions >= 0) & (positions <= reach))
    positions = positions[inside]
    floor = np.floor(positions)
    low_index = floor.astype(np.intp)
    first = int(inside[0]) if len(inside) else 0
    return Taps.of(first, low_index, np.minimum(low_index + 1, side - 1), positions - floor)


def framed(grid: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the grid (r, c) with a cell of 0 on each side, (r + 2, c + 2) float32."""
    frame = np.zeros((grid.shape[0] + 2, grid.shape[1] + 2), np.float32)
    frame[1:-1, 1:-1] = grid
    return frame


def mask_edges(grid: NDArray[np.float32], rows: Taps, columns: Taps, height: int) -> NDArray[np.int64]:
    """Return the positions where the mask `bilinear resize of grid > 0.5` flips, without resizing.

    Down an output column, values between two grid rows only rise or only fall, rounding included. The values therefore
    cross 0.5 at most once between two grid rows: where a straight line crosses, or in a row beside. The work grows with
    the grid's rows, not the image's. The arithmetic is that of OpenCV 5's x86 builds: columns first, one fused
    multiply-add per axis. Pixels next to 0.5 therefore fall on the same side as in OpenCV.

    Args:
        grid: (r, c) float32.
        rows: Taps of the output's rows. Output pixels beyond them are 0.
        columns: Taps of the output's columns. Output pixels beyond them are 0.
        height: Height of the full image, in pixels.

    Returns:
        Ascending positions column * height + row for rle.from_edges, (m,) int64, an even number per column.
    """
    from segray.masks import _kernels

    if not len(rows.low) or not len(columns.low):
        return np.zeros(0, np.int64)
    edges: NDArray[np.int64] = _kernels.threshold_crossings(
        np.ascontiguousarray(grid, np.float32), 0, 0, rows, columns, height, np.float32(0.5)
    )
    return edges


def edges_of_tiles(
    masks: NDArray[np.float32], boxes_xyxy: NDArray[np.floating[Any]], size_hw: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return `mask_edges` of n small masks, each pasted into its box by `tile_taps`, for rle.from_edges_of_all.

    Args:
        masks: (n, m, m), values of 0..1.
        boxes_xyxy: (n, 4), in pixels of the image. The edges of the boxes are computed in the dtype of the boxes.
        size_hw: Height and width of the image, in pixels.

    Returns:
        The edges of all masks, and the end of each mask's edges, (n,).
    """
    side = masks.shape[1]
    x0, y0, x1, y1 = boxes_xyxy.T
    rows, columns = taps_of_tiles(y0, y1, side, size_hw[0]), taps_of_tiles(x0, x1, side, size_hw[1])
    return _edges_of_boxes(masks, rows, columns, size_hw[0])


def _edges_of_boxes(
    masks: NDArray[np.float32], rows: TilesTaps, columns: TilesTaps, height: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the edges of n masks (n, r, c) that have taps of their own, and the end of each mask's edges, (n,).

    height: of the image, in pixels.
    """
    from segray.masks import _kernels_grids

    frames = np.zeros((len(masks), masks.shape[1] + 2, masks.shape[2] + 2), np.float32)
    frames[:, 1:-1, 1:-1] = masks
    firsts, stops = (np.stack(pair, axis=1) for pair in ((rows.firsts, columns.firsts), (rows.stops, columns.stops)))
    edges: tuple[NDArray[np.int64], NDArray[np.int64]] = _kernels_grids.edges_of_tiles(
        frames, firsts, stops, *rows[2:], *columns[2:], height
    )
    return edges


def crop_logits(planes: NDArray[np.float32], crops_xyxy: NDArray[np.int64], frame: float) -> NDArray[np.float32]:
    """Return one crop of each plane, framed by cells of a constant value.

    Args:
        planes: (r, c, n) float32.
        crops_xyxy: (n, 4) int64: columns x0..x1-1 and rows y0..y1-1 of each plane's crop.
        frame: Value of the frame, which is one cell wide on each side.

    Returns:
        The crops one after the other, each row by row, 1-dimensional float32.
        The length is the sum of (y1 - y0 + 2) * (x1 - x0 + 2).
    """
    from segray.masks import _kernels

    cells: NDArray[np.float32] = _kernels.crop_logits(planes, crops_xyxy, np.float32(frame))
    return cells


def edges_of_crops(
    cells: NDArray[np.float32],
    crops_xyxy: NDArray[np.int64],
    rows: Taps,
    columns: Taps,
    height: int,
    threshold: float = 0.5,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return `mask_edges` of n grids that are 0 outside their crops, for rle.from_edges_of_all.

    The cost grows with the crops, not with the grids.

    Args:
        cells: The crops as `crop_logits` arranges them, framed by 0.
        crops_xyxy: (n, 4) int64: columns x0..x1-1 and rows y0..y1-1 of each grid's crop.
        rows: Taps of the rows of all n grids. They cover the whole image.
        columns: Taps of the columns of all n grids. They cover the whole image.
        height: Height of the full image, in pixels.
        threshold: 0 or 0.5. Pixels over the threshold are set.

    Returns:
        The edges of all masks, and the end of each mask's edges, (n,).
    """
    from segray.masks import _kernels

    x0, y0, x1, y1 = crops_xyxy.T
    first = np.searchsorted(columns.high, x0), np.searchsorted(rows.high, y0)
    outputs_xyxy = np.stack([*first, np.searchsorted(columns.low, x1), np.searchsorted(rows.low, y1)], axis=1)
    edges: tuple[NDArray[np.int64], NDArray[np.int64]] = _kernels.edges_of_crops(
        cells, crops_xyxy, outputs_xyxy, rows, columns, height, np.float32(threshold)
    )
    return edges


# ---- grids of whole images ------------------------------------------------------------------------


def crops_over(planes: NDArray[np.float32], threshold: float) -> NDArray[np.int64]:
    """Return the smallest crop of each plane outside which no resized value is over the threshold, (n, 4) int64.

    A crop holds the cells over the threshold and their neighbours. planes: (n, r, c).
    """
    from segray.masks import _kernels_grids

    boxes: NDArray[np.int64] = _kernels_grids.boxes_over(np.ascontiguousarray(planes), np.float32(threshold))
    is_empty = boxes[:, 2] == 0
    rows, columns = planes.shape[1:]
    crops: NDArray[np.int64] = (boxes + np.array([-1, -1, 1, 1])).clip(0, [columns, rows, columns, rows])
    crops[is_empty] = 0
    return crops


def edges_of_planes(
    planes: NDArray[np.float32], size_hw: tuple[int, int], threshold: float = 0.5
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return `mask_edges` of n grids that each cover the whole image, for rle.from_edges_of_all.

    Args:
        planes: (n, r, c): values of 0..1, or logits.
        size_hw: Height and width of the image, in pixels.
        threshold: 0.5 for values of 0..1, 0 for logits. Pixels over the threshold are set.

    Returns:
        The edges of all masks, and the end of each mask's edges, (n,).
    """
    from segray.masks import _kernels_grids

    planes = np.ascontiguousarray(planes)
    crops = crops_over(planes, threshold)
    cells = _kernels_grids.crops_of_planes(planes, crops, np.float32(0))
    rows, columns = taps_of_axis(planes.shape[1], size_hw[0]), taps_of_axis(planes.shape[2], size_hw[1])
    return edges_of_crops(cells, crops, rows, columns, size_hw[0], threshold)


def resize_plane(plane: NDArray[np.float32], size_hw: tuple[int, int]) -> NDArray[np.float32]:
    """Resize (h, w) float32 to size_hw as PyTorch does: bilinear, not antialiased, in float32."""
    if plane.shape == size_hw:
        return plane
    rows, columns = (_taps_in_single_precision(*sides) for sides in zip(plane.shape, size_hw, strict=True))
    return _blended(plane, rows, columns)


def positive_part(plane: NDArray[np.float32], size_hw: tuple[int, int]) -> tuple[int, int, NDArray[np.float32]]:
    """Return the part of `resize_plane` outside which no value is over 0: its first row, its first column, its values.

    The rest is not resized, so the cost grows with the part. The part is empty if no value is over 0.
    """
    (x0, y0, x1, y1), *_ = crops_over(plane[None], 0).tolist()
    rows, columns = (_taps_in_single_precision(*sides) for sides in zip(plane.shape, size_hw, strict=True))
    top, bottom = np.searchsorted(rows.high, y0), np.searchsorted(rows.low, y1)
    left, right = np.searchsorted(columns.high, x0), np.searchsorted(columns.low, x1)
    parts = (
        Taps(0, taps.low[start:stop], taps.high[start:stop], taps.weight[start:stop])
        for taps, start, stop in ((rows, top, bottom), (columns, left, right))
    )
    return int(top), int(left), _blended(plane, *parts)


def _blended(plane: NDArray[np.float32], rows: Taps, columns: Taps) -> NDArray[np.float32]:
    """Return the bilinear resize of a plane at these rows and columns, columns first."""
    one = np.float32(1)
    lines = plane[:, columns.low] * (one - columns.weight) + plane[:, columns.high] * columns.weight
    weights = rows.weight[:, None]
    blended: NDArray[np.float32] = lines[rows.low] * (one - weights) + lines[rows.high] * weights
    return blended


def nearest_pixels(source: int, target: int) -> NDArray[np.intp]:
    """Return the source pixel of each output pixel, (target,), as PyTorch's `nearest` computes it in float32."""
    pixels = np.floor(np.arange(target, dtype=np.float32) * np.float32(source / target)).astype(np.intp)
    nearest: NDArray[np.intp] = np.minimum(pixels, source - 1)
    return nearest


def edges_of_nearest(mask: NDArray[np.bool_], size_hw: tuple[int, int]) -> NDArray[np.int64]:
    """Return the positions where the mask flips after a resize by `nearest_pixels`, for rle.from_edges.

    The mask is not resized. The work grows with the number of edges.

    Args:
        mask: (r, c) bool.
        size_hw: Height and width of the image, in pixels.
    """
    height, width = size_hw
    rows, columns = nearest_pixels(mask.shape[0], height), nearest_pixels(mask.shape[1], width)
    framed_columns = np.zeros((mask.shape[1], mask.shape[0] + 2), np.bool_)
    framed_columns[:, 1:-1] = mask.T
    column, row = np.nonzero(framed_columns[:, 1:] != framed_columns[:, :-1])
    output_row = np.searchsorted(rows, row)  # Several rows may fall on one output row; pairs of equal edges cancel.
    stops = np.cumsum(np.bincount(column, minlength=mask.shape[1]))
    starts = np.concatenate([np.zeros(1, np.intp), stops[:-1]])
    lengths = (stops - starts)[columns]
    ends = np.cumsum(lengths)
    edge = np.arange(ends[-1]) + np.repeat(starts[columns] - (ends - lengths), lengths)
    edges: NDArray[np.int64] = np.repeat(np.arange(width), lengths) * height + output_row[edge]
    return edges


def crops_of_sums(
    coefficients: NDArray[np.float32], prototypes: NDArray[np.float32], crops_xyxy: NDArray[np.int64], frame: float
) -> NDArray[np.float32]:
    """Return one crop of each sum of prototypes, arranged and framed as by `crop_logits`.

    Args:
        coefficients: (n, k), weights of the prototypes.
        prototypes: (k, r, c).
        crops_xyxy: (n, 4) int64: columns x0..x1-1 and rows y0..y1-1 of each sum's crop.
        frame: Value of the frame, which is one cell wide on each side.
    """
    from segray.masks import _kernels_grids

    cells: NDArray[np.float32] = _kernels_grids.crops_of_sums(
        np.ascontiguousarray(coefficients), np.ascontiguousarray(prototypes), crops_xyxy, np.float32(frame)
    )
    return cells


class TwoResizes(NamedTuple):
    """The cells that each output pixel of an axis reads through two bilinear resizes.

    cells: (n, 4) int64, ascending: the two cells of the first pixel in between, and those of the second.
    weights: (n, 3) float32: of the second cell in both pairs, and of the second pixel in between.
    """

    cells: NDArray[np.int64]
    weights: NDArray[np.float32]


def taps_of_two_resizes(source: int, between: int, start: int, stop: int, target: int) -> TwoResizes:
    """Return the cells and weights of an axis of `source` cells.

    The axis is resized to `between` pixels. The pixels start to stop-1 of them are resized to `target` pixels.
    """
    first, second = linear_taps(source, between), linear_taps(stop - start, target)
    low, high = second.low + start, second.high + start
    cells = np.stack([first.low[low], first.high[low], first.low[high], first.high[high]], axis=1)
    weights = np.stack([first.weight[low], first.weight[high], second.weight], axis=1)
    return TwoResizes(cells.astype(np.int64), weights)


def edges_of_crops_resized_twice(
    cells: NDArray[np.float32], crops_xyxy: NDArray[np.int64], rows: TwoResizes, columns: TwoResizes
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the positions where n masks `two bilinear resizes of a grid > 0.5` flip, for rle.from_edges_of_all.

    The grids are 0 outside their crops. No grid is resized as a whole. The cost grows with the crops.

    Args:
        cells: The crops as `crop_logits` arranges them, framed by 0.
        crops_xyxy: (n, 4) int64: columns x0..x1-1 and rows y0..y1-1 of each grid's crop.
        rows: Cells that the rows of the image read.
        columns: Cells that the columns of the image read.

    Returns:
        The edges of all masks, and the end of each mask's edges, (n,).
    """
    from segray.masks import _kernels_grids

    x0, y0, x1, y1 = crops_xyxy.T
    outputs_xyxy = np.stack(
        [
            *(np.searchsorted(columns.cells[:, 3], x0), np.searchsorted(rows.cells[:, 3], y0)),
            *(np.searchsorted(columns.cells[:, 0], x1), np.searchsorted(rows.cells[:, 0], y1)),
        ],
        axis=1,
    )
    edges: tuple[NDArray[np.int64], NDArray[np.int64]] = _kernels_grids.edges_of_crops_resized_twice(
        cells, crops_xyxy, outputs_xyxy, *rows, *columns, len(rows.cells)
    )
    return edges


def edges_of_combinations(
    planes: NDArray[np.float32],
    weights: NDArray[np.float32],
    boxes_xyxy: NDArray[np.float32],
    fit: Fit,
    factor: int,
    size_hw: tuple[int, int],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the edges of the masks `combined planes > 0`, resized to the image and cut to their boxes.

    Each sum of planes is resized in two bilinear steps: by the factor, and then from the fit's content to the image.
    The cost grows with the boxes, not with the planes.

    Args:
        planes: (m, r, c) float32.
        weights: (n, m) float32: the weight of each plane in each mask.
        boxes_xyxy: (n, 4) float32, in pixels within the image. A pixel stays if its index is at least the low edge and
            below the high edge.
        fit: Place of the image in the planes that are resized by the factor.
        factor: Enlargement of the first step, at least 1.
        size_hw: Height and width of the image, in pixels.

    Returns:
        The edges of all masks, and the end of each mask's edges, (n,), for rle.from_edges_of_all.
    """
    from segray.masks import _kernels_prototypes

    axes = zip((fit.top, fit.left), fit.content_hw, planes.shape[1:], size_hw, strict=True)
    (rows, grid_rows, to_rows), (columns, grid_columns, to_columns) = (
        _two_steps(start, content, side, factor, target) for start, content, side, target in axes
    )
    edges: tuple[NDArray[np.int64], NDArray[np.int64]] = _kernels_prototypes.edges_of_combinations(
        np.ascontiguousarray(planes),
        np.ascontiguousarray(weights),
        np.ceil(boxes_xyxy).astype(np.int64),
        grid_rows,
        grid_columns,
        rows,
        columns,
        to_rows or to_columns,
        size_hw[0],
    )
    return edges


@functools.lru_cache(maxsize=256)
def _two_steps(start: int, content: int, side: int, factor: int, target: int) -> tuple[Taps, Taps, bool]:
    """Return the taps of one axis that is enlarged, cut to its content, and resized to the image.

    Args:
        start: First pixel of the content, after the enlargement.
        content: Pixels of the content, after the enlargement.
        side: Pixels of the axis before the enlargement.
        factor: Enlargement.
        target: Pixels of the image on this axis.

    Returns:
        The taps that read the content, the taps that make the content, and whether the latter do more than cut.
        The enlargement is read directly where the image has the pixels of the content.
    """
    enlarged = linear_taps(side, side * factor, start, start + content)
    if content == target:
        return Taps(0, enlarged.low, enlarged.high, enlarged.weight), _same(0, side), False
    to_image = _taps_in_single_precision(content, target)
    if factor == 1:
        return to_image, _same(start, start + content), False
    return to_image, Taps(0, enlarged.low, enlarged.high, enlarged.weight), True


def _taps_in_single_precision(source: int, target: int) -> Taps:
    """Return `linear_taps` with the centres computed in float32, as PyTorch does."""
    centre = np.float32(source / target) * (np.arange(target, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    low = np.clip(np.floor(centre), 0, source - 1).astype(np.intp)
    high = np.minimum(low + 1, source - 1)
    return Taps.of(0, low, high, np.where(low < high, np.maximum(centre - low, 0), 0).astype(np.float32))


def _same(start: int, stop: int) -> Taps:
    """Return the taps that copy the pixels start to stop-1."""
    pixels = np.arange(start, stop)
    return Taps.of(0, pixels, pixels, np.zeros(len(pixels), np.float32))
