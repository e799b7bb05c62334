"""Sticker scenes: random placement, drawing, and the owner of every visible pixel.

Knows stickers, canvases and occlusion. Knows nothing of files, COCO JSON or models. A scene is a pure function of
generator state and canvas size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.imaging.opencv import cv2
from segray.synthetic.shapes import STICKERS, PaintedShape, Sticker

_SUBPIXELS = 2
_FRACTION_BITS = 4
_MIN_VISIBLE_FRACTION = 0.45
_MIN_AREA_PX = 40

Image = NDArray[np.uint8]
Field = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Scene:
    """A drawn scene.

    image: uint8 (height, width, 3) RGB.
    owners: uint8 (height, width), 0 for background, else 1 + the index into category_ids of the pixel's thing.
    category_ids: COCO category ids of the things, in drawing order.
    """

    image: Image
    owners: Image
    category_ids: tuple[int, ...]

    def mask(self, index: int) -> NDArray[np.bool_]:
        """Return the visible pixels of thing `index`: bool (height, width)."""
        return np.equal(self.owners, index + 1)


def draw_scene(
    rng: np.random.Generator,
    size_hw: tuple[int, int],
    *,
    max_things: int = 8,
    lengths_px: tuple[float, float] = (24, 300),
    frame_px: float | None = None,
) -> Scene:
    """Draw one random scene.

    Args:
        rng: generator whose state decides the scene.
        size_hw: height and width of the canvas, in pixels.
        max_things: the number of draws is uniform on 0..max_things. A thing that hides too much of others is dropped.
        lengths_px: range of a thing's longest side, log-uniform, in pixels of a canvas of 550x550.
        frame_px: side in pixels of the square canvas that lengths refer to. Lengths scale by frame_px/550. None stands
            for the square with the area of this canvas.
    """
    height, width = size_hw
    scale = (frame_px if frame_px is not None else float(np.sqrt(height * width))) / 550
    canvas = _background(rng, height, width)
    owners = np.zeros(size_hw, np.uint8)
    category_ids: list[int] = []
    silhouette_areas: list[int] = []  # in pixels, of each placed thing before later things cover it
    for _ in range(int(rng.integers(0, max_things + 1))):
        sticker = STICKERS[int(rng.integers(len(STICKERS)))]
        patch = _draw_thing(rng, sticker, size_hw, lengths_px, scale)
        if patch is None or not _may_be_placed(owners, silhouette_areas, patch):
            continue
        category_ids.append(sticker.category_id)
        silhouette_areas.append(int(patch.solid.sum()))
        owners[patch.window][patch.solid] = len(category_ids)
        canvas[patch.window] = canvas[patch.window] * (1 - patch.cover[..., None]) + patch.colour
    canvas += rng.standard_normal((height, width, 1), np.float32) * np.float32(rng.uniform(0, 8))
    image = np.clip(canvas, 0, 255).astype(np.uint8)
    return Scene(image, owners, tuple(category_ids))


@dataclass(frozen=True)
class _Patch:
    """A drawn thing. window: rows and columns of the canvas. solid: pixels that the thing owns."""

    window: tuple[slice, slice]
    colour: Field  # premultiplied by cover
    cover: Field
    solid: NDArray[np.bool_]


def _draw_thing(
    rng: np.random.Generator,
    sticker: Sticker,
    size_hw: tuple[int, int],
    lengths_px: tuple[float, float],
    scale: float,
) -> _Patch | None:
    shortest = max(lengths_px[0], sticker.min_length_px)
    length = float(np.exp(rng.uniform(np.log(shortest), np.log(max(lengths_px[1], shortest * 1.05))))) * scale
    angle = np.radians(rng.uniform(-sticker.max_tilt_deg, sticker.max_tilt_deg))
    stretch = np.exp(rng.uniform(-0.12, 0.12))
    centre = rng.uniform(0, 1, 2) * (size_hw[1], size_hw[0])
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.diag([length * stretch, length / stretch])
    layers = sticker.draw(rng)
    shade = rng.uniform(-0.25, 0.25, 2)
    return _paint_patch(layers, matrix, centre, size_hw, shade)


def _paint_patch(
    layers: list[PaintedShape],
    matrix: NDArray[np.float64],
    centre: NDArray[np.float64],
    size_hw: tuple[int, int],
    shade_xy: NDArray[np.float64],
) -> _Patch | None:
    placed = [([contour @ matrix.T + centre for contour in layer.contours], layer.colour) for layer in layers]
    corners = np.concatenate([contour for contours, _ in placed for contour in contours])
    x0, y0 = np.maximum(np.floor(corners.min(axis=0)).astype(int) - 1, 0)
    x1, y1 = np.minimum(np.ceil(corners.max(axis=0)).astype(int) + 2, (size_hw[1], size_hw[0]))
    if x1 - x0 < 2 or y1 - y0 < 2:
        return None
    fine = ((y1 - y0) * _SUBPIXELS, (x1 - x0) * _SUBPIXELS)
    colour: Any = np.zeros((*fine, 3), np.float32)
    cover: Any = np.zeros(fine, np.float32)
    for contours, rgb in placed:
        # OpenCV puts pixel centres on integers. Here they lie at +0.5.
        fixed_points = [
            np.round((((contour - (x0, y0)) * _SUBPIXELS) - 0.5) * (1 << _FRACTION_BITS)).astype(np.int32)
            for contour in contours
        ]  # fmt: skip
        cv2.fillPoly(colour, fixed_points, rgb, shift=_FRACTION_BITS)
        cv2.fillPoly(cover, fixed_points, 1.0, shift=_FRACTION_BITS)
    size = (int(x1 - x0), int(y1 - y0))
    colour = cv2.resize(colour, size, interpolation=cv2.INTER_AREA)
    cover = cv2.resize(cover, size, interpolation=cv2.INTER_AREA)
    ys = np.linspace(-0.5, 0.5, size[1], dtype=np.float32)[:, None]
    xs = np.linspace(-0.5, 0.5, size[0], dtype=np.float32)[None, :]
    light = 1 + np.float32(shade_xy[0]) * xs + np.float32(shade_xy[1]) * ys
    colour = np.minimum(colour * light[..., None], 255 * cover[..., None])
    return _Patch((slice(y0, y1), slice(x0, x1)), colour, cover, cover >= 0.5)


def _may_be_placed(owners: Image, silhouette_areas: list[int], patch: _Patch) -> bool:
    """Return whether the patch is large enough and leaves _MIN_VISIBLE_FRACTION of every earlier thing visible."""
    if patch.solid.sum() < _MIN_AREA_PX:
        return False
    covered = np.bincount(owners[patch.window][patch.solid], minlength=256)
    for index, silhouette_area in enumerate(silhouette_areas):
        if not covered[index + 1]:
            continue
        visible = int((owners == index + 1).sum()) - int(covered[index + 1])
        if visible < max(_MIN_VISIBLE_FRACTION * silhouette_area, _MIN_AREA_PX):
            return False
    return True


def _background(rng: np.random.Generator, height: int, width: int) -> Field:
    kinds: tuple[Callable[..., Field], ...] = (_cloth, _stripes, _checks, _clouds)
    base = kinds[int(rng.integers(len(kinds)))](rng, height, width)
    if rng.random() < 0.5:
        weight = np.float32(rng.uniform(0.2, 0.5))
        base = base * (1 - weight) + _clouds(rng, height, width) * weight
    return base


def _colours(rng: np.random.Generator, n: int) -> Field:
    return (rng.uniform(20, 235, (n, 1)) + rng.uniform(-45, 45, (n, 3))).clip(0, 255).astype(np.float32)


def _mix(t: Field, a: Field, b: Field) -> Field:
    return a + (b - a) * t[..., None]


def _ramp(rng: np.random.Generator, height: int, width: int) -> Field:
    """Return a linear field (height, width) at a random angle, about -1..1 corner to corner."""
    angle = rng.uniform(0, 2 * np.pi)
    ys = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    xs = np.linspace(-1, 1, width, dtype=np.float32)[None, :]
    return (xs * np.float32(np.cos(angle)) + ys * np.float32(np.sin(angle))) / np.float32(1.4)


def _cloth(rng: np.random.Generator, height: int, width: int) -> Field:
    a, b = _colours(rng, 2)
    return _mix((_ramp(rng, height, width) + 1) / 2, a, b)


def _stripes(rng: np.random.Generator, height: int, width: int) -> Field:
    a, b = _colours(rng, 2)
    wave = np.sin(_ramp(rng, height, width) * np.float32(rng.uniform(8, 40)))
    sharp = np.float32(rng.uniform(1, 6))
    return _mix((np.clip(wave * sharp, -1, 1) + 1) / 2, a, b)


def _checks(rng: np.random.Generator, height: int, width: int) -> Field:
    a, b = _colours(rng, 2)
    n = int(rng.integers(3, 14))
    rows = np.arange(height) * n // height
    columns = np.arange(width) * n // width
    t = ((rows[:, None] + columns[None, :]) % 2).astype(np.float32) * np.float32(rng.uniform(0.2, 1))
    return _mix(t, a, b)


def _clouds(rng: np.random.Generator, height: int, width: int) -> Field:
    total = np.zeros((height, width, 3), np.float32)
    for cells, weight in ((3, 0.6), (int(rng.integers(6, 14)), 0.3), (int(rng.integers(24, 60)), 0.15)):
        grid = _colours(rng, cells * cells).reshape(cells, cells, 3)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR) * np.float32(weight)
    return np.minimum(total, 255)
