"""Masks as polygons, exact or with fewer corners, and the IoU of the polygons with their mask.

This module knows outlines along pixel edges. File formats belong to other modules.
Bridges of zero width join holes and parts where a format needs one polygon.
pycocotools draws the original mask from an exact polygon.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from segray.analytics.query import arrow_masks
from segray.imaging.opencv import cv2

Ring = NDArray[np.float64]


def parts(counts: str, size_hw: tuple[int, int], tolerance_px: float = 0.0) -> list[Ring]:
    """Return one polygon (n, 2) x, y in pixels for each part of a mask. Holes are joined to their part.

    tolerance_px: largest distance of a polygon from the outline. A part is returned exactly if fewer corners
    would leave no area.
    """
    rings = arrow_masks.outlines(counts, size_hw)
    outer = [ring for ring in rings if arrow_masks.turns_right(ring)]
    holes: list[list[Ring]] = [[] for _ in outer]
    for ring in rings:
        if not arrow_masks.turns_right(ring):
            holes[_index_of_outer_ring(ring, outer)].append(ring)
    return [
        _join([_simplify(ring, tolerance_px), *(_simplify(hole, tolerance_px) for hole in holes_of_ring)])
        for ring, holes_of_ring in zip(outer, holes, strict=True)
    ]


def single(counts: str, size_hw: tuple[int, int], tolerance_px: float = 0.0) -> Ring:
    """Return the whole mask as one polygon (n, 2) x, y in pixels; (0, 2) for an empty mask."""
    rings = parts(counts, size_hw, tolerance_px)
    return _join(rings) if rings else np.empty((0, 2))


def overlap(polygons: Sequence[Ring], counts: str, size_hw: tuple[int, int]) -> float:
    """Return the IoU of a mask with its polygons as pycocotools draws them."""
    flat = [polygon.ravel().tolist() for polygon in polygons]
    polygon_rle = coco_mask.merge(coco_mask.frPyObjects(flat, *size_hw))
    mask = {"size": list(size_hw), "counts": counts.encode()}
    return float(coco_mask.iou([polygon_rle], [mask], [0])[0, 0])


def _simplify(ring: Ring, tolerance_px: float) -> Ring:
    if not tolerance_px:
        return ring
    simplified = cv2.approxPolyDP(ring.astype(np.float32)[:, None], tolerance_px, True)[:, 0].astype(np.float64)
    return simplified if len(simplified) >= 3 else ring


def _index_of_outer_ring(hole: Ring, outer: Sequence[Ring]) -> int:
    """Return the index of the part that contains a hole.

    The part contains the pixel on the right of the first side of the hole.
    """
    (x, y), (along_x, along_y) = hole[0], np.sign(hole[1] - hole[0])
    pixel = float(x + (along_x - along_y) / 2), float(y + (along_x + along_y) / 2)
    sizes = [(ring.max(0) - ring.min(0)).prod() if cv2.pointPolygonTest(ring.astype(np.float32), pixel, False) > 0
             else np.inf for ring in outer]  # fmt: skip
    return int(np.argmin(sizes))  # In a larger part around this part, the hole lies inside another hole.


def _join(rings: Sequence[Ring]) -> Ring:
    """Return one closed line along all rings, (n, 2) x, y.

    A bridge leads from the nearest corner of the line to the next ring, around the ring and back.
    """
    line = rings[0]
    for ring in rings[1:]:
        distances = np.abs(line[:, None] - ring[None]).sum(axis=2) if len(line) * len(ring) < 4_000_000 else None
        line_corner, ring_corner = (0, 0) if distances is None else divmod(int(distances.argmin()), len(ring))
        rotated = np.roll(ring, -ring_corner, axis=0)
        # The bridge follows pixel edges, so that its two directions enclose no pixel.
        bend = np.array([[rotated[0, 0], line[line_corner, 1]]])
        line = np.concatenate([line[: line_corner + 1], bend, rotated, rotated[:1], bend, line[line_corner:]])
    return line
