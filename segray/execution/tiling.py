"""Large images in windows: the layout of the windows, and the merge of their instances into one image's.

This module knows masks, boxes and scores. Networks and files belong to other modules.

Instances of different windows are one object if their classes are equal and their masks agree where both windows saw.
Masks agree if their IoU, cut to the windows' common part, is at least SEAM_IOU.
The rule also holds for an object that a seam cut into parts of any length. Neither the IoU of the whole masks nor the
intersection over the smaller mask tells whether such parts are one object.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segray import rle
from segray.instances import Instances

SEAM_IOU = 0.5
# A cut-off piece with at least this share covered belongs to the object that covers the piece.
COVERED = 0.8
# A seam cut an object if its box ends within this distance of the window's side, as a share of the side. Predicted
# boxes end slightly before the side.
_AT_SEAM = 0.02
# More than the rounding error of an overlap in pixels, and less than a pixel.
_ROUNDING = 1e-6


@dataclass(frozen=True)
class TilingOptions:
    """The settings by which images are cut.

    size: side of a window, in pixels. overlap: share of a window's side that neighbours have in common.
    whole: whether the whole image is one more window, for objects that are larger than a window.
    """

    size: int
    overlap: float
    whole: bool


@dataclass(frozen=True)
class Window:
    """A part of an image, in pixels: x0, y0 inclusive, x1, y1 exclusive."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def size_hw(self) -> tuple[int, int]:
        """Return height and width, in pixels."""
        return self.y1 - self.y0, self.x1 - self.x0

    @property
    def slices(self) -> tuple[slice, slice]:
        """Return the slices of the image's rows and columns."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)


def windows(size_hw: tuple[int, int], tiles: TilingOptions) -> list[Window]:
    """Return all windows of an image, row by row. The whole image comes last if it is one of them.

    Windows are spread evenly from side to side, as few as the overlap allows. All but the whole image have one size.
    An image that fits into one window has that window alone.
    """
    height, width = size_hw
    if max(height, width) <= tiles.size:
        return [Window(0, 0, width, height)]
    grid = [
        Window(x, y, min(x + tiles.size, width), min(y + tiles.size, height))
        for y in _starts(height, tiles)
        for x in _starts(width, tiles)
    ]
    return [*grid, Window(0, 0, width, height)] if tiles.whole else grid


def _starts(length: int, tiles: TilingOptions) -> list[int]:
    """Return the positions where windows begin along one side: evenly spread, as few as the overlap allows."""
    longest_step = max(1, tiles.size - int(tiles.size * tiles.overlap + _ROUNDING))
    last = max(0, length - tiles.size)
    steps = -(-last // longest_step)
    return [round(i * last / max(1, steps)) for i in range(steps + 1)]


def place(instances: Instances, window: Window, size_hw: tuple[int, int]) -> Instances:
    """Return the instances of a window as instances of the whole image, of size_hw."""
    if not len(instances):
        return Instances.empty(size_hw, instances.unreadable)
    from segray.masks import _kernels_many

    window_hw = instances.size_hw
    rles = []
    for counts in instances.rles:
        runs = rle.runs_of(counts, window_hw)
        edges = _kernels_many.placed_edges(runs, window_hw[0], window.x0, window.y0, size_hw[0])
        rles.append(rle.from_edges(edges, size_hw))
    boxes = instances.boxes_xyxy + np.array([window.x0, window.y0] * 2, np.float32)
    return Instances(instances.class_ids, instances.scores, boxes, tuple(rles), size_hw, instances.unreadable)


def merge(parts: Sequence[tuple[Window, Instances]], size_hw: tuple[int, int], most: int) -> Instances:
    """Merge the placed instances of all windows into one image's instances, best first, at most `most`.

    Several windows may see one object. The merged score is the highest of all. The merged mask is that of the smallest
    window that saw the whole object. If each window cut the object, the merged mask is the union of the parts. An
    object that every window cut is dropped if another window's larger object covers at least COVERED of a part. Without
    a window of the whole image, only an object of its own class can cover: a thing in front of a larger one may be cut
    by every window.

    Args:
        parts: Each window with its instances, which `place` has moved.
        size_hw: Height and width of the image, in pixels.
        most: Largest number of instances to return.

    Returns:
        The instances of the image, by falling score.
    """
    unreadable = sum(instances.unreadable for _, instances in parts)
    seen = _concatenated([instances for _, instances in parts], size_hw, unreadable)
    window_of = np.repeat(np.arange(len(parts)), [len(instances) for _, instances in parts])
    sides = np.array([(w.x0, w.y0, w.x1, w.y1) for w, _ in parts], np.int64).reshape(-1, 4)[window_of]
    pairs = _overlapping_pairs(seen.boxes_xyxy, window_of)
    is_same, covered = _compare_pairs(seen, sides, pairs)
    groups = _connected_groups(len(seen), pairs[is_same])
    things = [_unite(seen, sides, group) for group in groups]
    thing_of = np.zeros(len(seen), np.intp)
    for number, group in enumerate(groups):
        thing_of[group] = number
    is_covered = np.zeros(len(things), np.bool_)
    saw_whole_image = any(window.size_hw == size_hw for window, _ in parts)
    areas = rle.area([thing.rles[0] for thing, _ in things]) if things else np.zeros(0)
    for (i, j), shares in zip(pairs[~is_same], covered[~is_same], strict=True):
        for piece, other, share in ((thing_of[i], thing_of[j], shares[0]), (thing_of[j], thing_of[i], shares[1])):
            _, is_cut = things[piece]
            can_cover = saw_whole_image or things[piece][0].class_ids[0] == things[other][0].class_ids[0]
            is_covered[piece] |= is_cut and can_cover and share >= COVERED and areas[other] > areas[piece]
    kept = [thing for (thing, _), hidden in zip(things, is_covered, strict=True) if not hidden]
    kept.sort(key=lambda thing: -float(thing.scores[0]))
    return _concatenated(kept[:most], size_hw, seen.unreadable)


_Ints = NDArray[np.int64]


def _overlapping_pairs(boxes_xyxy: NDArray[np.float32], window_of: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return (n, 2) rows of different windows whose boxes meet, the lower row first."""
    order = np.argsort(boxes_xyxy[:, 0], kind="stable")
    pairs = []
    for position, i in enumerate(order):
        candidates = order[position + 1 :]
        candidates = candidates[: np.searchsorted(boxes_xyxy[candidates, 0], boxes_xyxy[i, 2])]
        meets = (boxes_xyxy[candidates, 1] < boxes_xyxy[i, 3]) & (boxes_xyxy[candidates, 3] > boxes_xyxy[i, 1])
        pairs += [(min(i, j), max(i, j)) for j in candidates[meets & (window_of[candidates] != window_of[i])]]
    return np.array(pairs, np.intp).reshape(-1, 2)


def _compare_pairs(
    seen: Instances, sides: _Ints, pairs: NDArray[np.intp]
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Compare the masks of each pair.

    Returns:
        Whether the two rows are one object, (n,); and the shares of the first and the second mask that the other
        mask covers, (n, 2).
    """
    if not len(pairs):
        return np.zeros(0, np.bool_), np.zeros((0, 2))
    from segray.masks import _kernels_many

    i, j = pairs.T
    masks = rle.join_counts(seen.rles)
    masks_i, masks_j = masks.at(i), masks.at(j)
    shared, *areas = _kernels_many.overlaps(*masks_i, *masks_j, rle.MAX_GROUPS).T
    height = seen.size_hw[0]
    # A mask lies in its own window. The part inside the other window is therefore the part that both windows saw.
    seen_by_both_i = _kernels_many.areas_within(*masks_i, rle.MAX_GROUPS, height, sides[j])
    seen_by_both_j = _kernels_many.areas_within(*masks_j, rle.MAX_GROUPS, height, sides[i])
    agreement = shared / np.maximum(seen_by_both_i + seen_by_both_j - shared, 1)
    is_same = (agreement >= SEAM_IOU) & (seen.class_ids[i] == seen.class_ids[j])
    return is_same, np.stack([shared / np.maximum(area, 1) for area in areas], axis=1)


def _connected_groups(n: int, pairs: NDArray[np.intp]) -> list[list[int]]:
    """Return the rows 0..n-1 in groups that pairs connect, in the order of each group's first row."""
    leader = list(range(n))

    def first(i: int) -> int:
        while leader[i] != i:
            leader[i] = i = leader[leader[i]]
        return i

    for i, j in pairs.tolist():
        low, high = sorted((first(i), first(j)))
        leader[high] = low
    groups: dict[int, list[int]] = {}
    for i in range(n):
        groups.setdefault(first(i), []).append(i)
    return list(groups.values())


def _unite(seen: Instances, sides: _Ints, group: list[int]) -> tuple[Instances, bool]:
    """Return the object that a group of rows saw, and whether every window cut the object."""
    boxes, window_sides = seen.boxes_xyxy[group], sides[group]
    spans = np.stack([window_sides[:, 2] - window_sides[:, 0], window_sides[:, 3] - window_sides[:, 1]] * 2, axis=1)
    frame = np.array([0, 0, seen.size_hw[1], seen.size_hw[0]])
    is_cut = ((np.abs(boxes - window_sides) <= _AT_SEAM * spans) & (window_sides != frame)).any(axis=1)
    best = max(seen.scores[group])
    uncut_rows = np.flatnonzero(~is_cut).tolist()
    if uncut_rows:
        row = min(uncut_rows, key=lambda row: (spans[row, 0] * spans[row, 1], -seen.scores[group[row]]))
        box, counts = boxes[row], seen.rles[group[row]]
    else:
        box = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])
        counts = rle.union([seen.rles[row] for row in group], seen.size_hw)
    thing = Instances(
        seen.class_ids[group[:1]], np.array([best], np.float32), box[None].astype(np.float32), (counts,), seen.size_hw
    )
    return thing, not uncut_rows


def _concatenated(things: Sequence[Instances], size_hw: tuple[int, int], unreadable: int) -> Instances:
    empty = Instances.empty(size_hw)
    return Instances(
        np.concatenate([empty.class_ids, *(thing.class_ids for thing in things)]),
        np.concatenate([empty.scores, *(thing.scores for thing in things)]),
        np.concatenate([empty.boxes_xyxy, *(thing.boxes_xyxy for thing in things)]),
        tuple(counts for thing in things for counts in thing.rles),
        size_hw,
        unreadable,
    )
