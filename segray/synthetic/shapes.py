"""The ten stickers as coloured polygons in a unit frame.

Knows the outlines of things such as a teddy bear. Knows nothing of canvases, pixels or files.

A sticker is a list of layers, painted in order. A layer is one colour and one or more closed contours, filled by the
even-odd rule: a second contour cuts a hole. Coordinates are (x, y), y down, centred on the origin. The longest side of
every sticker is about 1. The silhouette of a sticker is the union of its layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
Colour = tuple[float, float, float]


@dataclass(frozen=True)
class PaintedShape:
    """One painted shape.

    contours: float64 (k, 2) points each, (x, y) in the unit frame.
    colour: RGB, 0..255.
    """

    contours: tuple[Points, ...]
    colour: Colour


@dataclass(frozen=True)
class Sticker:
    """A sticker class: how a sticker is drawn and placed.

    category_id: COCO category id.
    name: COCO category name.
    draw: returns the layers, in painting order.
    min_length_px: smallest length at which the sticker is drawn, in pixels of a canvas of 550x550.
    max_tilt_deg: rotation is drawn from -max_tilt_deg..max_tilt_deg.
    """

    category_id: int
    name: str
    draw: Callable[[np.random.Generator], list[PaintedShape]]
    min_length_px: float
    max_tilt_deg: float


def _ellipse(
    cx: float, cy: float, rx: float, ry: float, start: float = 0.0, stop: float = 360.0, n: int = 48
) -> Points:
    t = np.radians(np.linspace(start, stop, n, endpoint=stop - start < 360))
    return np.stack([cx + rx * np.cos(t), cy + ry * np.sin(t)], axis=1)


def _box(x0: float, y0: float, x1: float, y1: float) -> Points:
    return np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]])


def _rounded(x0: float, y0: float, x1: float, y1: float, r: float) -> Points:
    corners = ((x1 - r, y1 - r, 0), (x0 + r, y1 - r, 90), (x0 + r, y0 + r, 180), (x1 - r, y0 + r, 270))
    return np.concatenate([_ellipse(cx, cy, r, r, a, a + 90, 8) for cx, cy, a in corners])


def _stroke(path: Points, width: float) -> Points:
    """Return the outline of a polyline (k, 2) drawn with a pen of the given width."""
    along = np.gradient(path, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1)
    normal *= (width / 2) / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    return np.concatenate([path + normal, (path - normal)[::-1]])


def _bright(rng: np.random.Generator) -> Colour:
    """Return a colour of random hue and fair saturation."""
    hue = rng.uniform(0, 6)
    x = np.clip(np.abs((hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    value, saturation = rng.uniform(130, 250), rng.uniform(0.45, 1)
    r, g, b = value * (1 - saturation * (1 - x))
    return float(r), float(g), float(b)


def _vary(rng: np.random.Generator, colour: Colour, by: float = 25) -> Colour:
    r, g, b = np.clip(np.asarray(colour) + rng.uniform(-by, by, 3), 0, 255)
    return float(r), float(g), float(b)


def _dim(colour: Colour, factor: float) -> Colour:
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def _stop_sign(rng: np.random.Generator) -> list[PaintedShape]:
    def octagon(r: float) -> Points:
        return _ellipse(0, 0, r, r, 22.5, 382.5, 8)

    red = _vary(rng, (200, 25, 30))
    white = _vary(rng, (240, 240, 240), 12)
    letters = (
        (_box(0, 0, 3, 1), _box(0, 0, 1, 3), _box(0, 2, 3, 3), _box(2, 2, 3, 5), _box(0, 4, 3, 5)),
        (_box(0, 0, 3, 1), _box(1, 0, 2, 5)),
        (_box(0, 0, 1, 5), _box(2, 0, 3, 5), _box(0, 0, 3, 1), _box(0, 4, 3, 5)),
        (_box(0, 0, 1, 5), _box(2, 0, 3, 3), _box(0, 0, 3, 1), _box(0, 2, 3, 3)),
    )
    layers = [PaintedShape((octagon(0.54),), white), PaintedShape((octagon(0.48),), red)]
    for i, strokes in enumerate(letters):
        corner = np.array([-0.34 + 0.18 * i, -0.13])
        layers += [PaintedShape((corner + stroke * (0.045, 0.052),), white) for stroke in strokes]
    return layers


def _umbrella(rng: np.random.Generator) -> list[PaintedShape]:
    a, b = _bright(rng), _bright(rng)
    panels = int(rng.integers(4, 7))
    top, rim = -0.42, 0.02
    wood = _vary(rng, (90, 60, 40))
    hook = _ellipse(0.075, 0.42, 0.075, 0.09, 180, 0, 12)
    stick = np.concatenate([np.array([[0, top - 0.04], [0, 0.2]]), hook])
    layers = [PaintedShape((_stroke(stick, 0.045),), wood)]
    edges = np.linspace(-0.5, 0.5, panels + 1)
    for i, (x0, x1) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        s = np.linspace(0, 1, 10)

        def rib(x: float, s: Points = s) -> Points:
            return np.stack([x * np.sin(s * np.pi / 2), top + (rim - top) * (1 - np.cos(s * np.pi / 2))], axis=1)

        scallop = np.stack([x0 + (x1 - x0) * s, rim - 0.05 * np.sin(s * np.pi)], axis=1)
        layers.append(PaintedShape((np.concatenate([rib(x0), scallop, rib(x1)[::-1]]),), a if i % 2 == 0 else b))
    return layers


def _kite(rng: np.random.Generator) -> list[PaintedShape]:
    a, b, c = _bright(rng), _bright(rng), _bright(rng)
    half, cross = rng.uniform(0.3, 0.38), rng.uniform(-0.28, -0.14)
    n, e, s, w, o = (np.array(p) for p in ((0, -0.5), (half, cross), (0, 0.36), (-half, cross), (0, cross)))
    t = np.linspace(0, 1, 16)
    tail = np.stack([0.05 * np.sin(t * 2 * np.pi), 0.33 + 0.17 * t], axis=1)
    layers = [PaintedShape((_stroke(tail, 0.07),), c)]
    layers += [
        PaintedShape((np.stack(p),), q) for p, q in (((n, e, o), a), ((e, s, o), b), ((s, w, o), a), ((w, n, o), b))
    ]
    return layers


def _bottle(rng: np.random.Generator) -> list[PaintedShape]:
    palette = ((30, 110, 50), (120, 60, 20), (40, 90, 170), (170, 205, 215))
    glass = _vary(rng, palette[int(rng.integers(len(palette)))])
    half, neck = rng.uniform(0.13, 0.18), rng.uniform(0.05, 0.065)
    shoulder = rng.uniform(-0.22, -0.1)
    body = np.array([[-neck, -0.44], [neck, -0.44], [neck, shoulder - 0.1], [half, shoulder + 0.06],
                     [half, 0.48], [half - 0.02, 0.5], [-half + 0.02, 0.5], [-half, 0.48],
                     [-half, shoulder + 0.06], [-neck, shoulder - 0.1]])  # fmt: skip
    shine = _box(-half + 0.03, shoulder + 0.1, -half + 0.06, 0.44)
    label = _box(-half, 0.08, half, 0.32)
    cap = _box(-neck - 0.01, -0.5, neck + 0.01, -0.42)
    return [
        PaintedShape((body,), glass),
        PaintedShape((shine,), _vary(rng, (225, 235, 235), 15)),
        PaintedShape((label,), _bright(rng)),
        PaintedShape((cap,), _vary(rng, (190, 170, 60), 50)),
    ]


def _banana(rng: np.random.Generator) -> list[PaintedShape]:
    yellow = _vary(rng, (240, 210, 60))
    bend, thick = rng.uniform(0.5, 0.75), rng.uniform(0.1, 0.14)
    t = np.linspace(-1, 1, 32)
    spine = np.stack([0.46 * np.sin(t * 1.2) / np.sin(1.2), bend * 0.5 * (np.cos(t * 1.2) - 0.7)], axis=1)
    along = np.gradient(spine, axis=0)
    normal = np.stack([-along[:, 1], along[:, 0]], axis=1) / np.linalg.norm(along, axis=1, keepdims=True)
    half = (thick * np.sqrt(np.clip(1 - t**4, 0, 1)) + 0.025)[:, None]
    skin = np.concatenate([spine + normal * half, (spine - normal * half)[::-1]])
    ridge = _stroke(spine[4:-4] + normal[4:-4] * 0.03, 0.03)
    brown = _vary(rng, (100, 70, 35))
    tips = [
        np.concatenate([(spine + normal * half)[k], (spine - normal * half)[k][::-1]])
        for k in (slice(0, 3), slice(-3, None))
    ]
    return [
        PaintedShape((skin,), yellow),
        PaintedShape((ridge,), _dim(yellow, 0.8)),
        *(PaintedShape((tip,), brown) for tip in tips),
    ]


def _donut(rng: np.random.Generator) -> list[PaintedShape]:
    dough = _vary(rng, (205, 155, 95))
    icing = ((235, 120, 170), (95, 55, 30), (245, 240, 230), (130, 200, 215))[int(rng.integers(4))]
    hole = rng.uniform(0.13, 0.19)
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    wave = 0.43 + 0.025 * np.sin(t * int(rng.integers(6, 10)) + rng.uniform(0, 6))
    glaze = np.stack([wave * np.cos(t), wave * np.sin(t)], axis=1)
    layers = [
        PaintedShape((_ellipse(0, 0, 0.5, 0.5), _ellipse(0, 0, hole, hole)), dough),
        PaintedShape((glaze, _ellipse(0, 0, hole + 0.04, hole + 0.04)), _vary(rng, icing)),
    ]
    for _ in range(int(rng.integers(0, 14))):
        angle, r, spin = rng.uniform(0, 2 * np.pi), rng.uniform(hole + 0.09, 0.37), rng.uniform(0, np.pi)
        centre = np.array([r * np.cos(angle), r * np.sin(angle)])
        arm = np.array([np.cos(spin), np.sin(spin)]) * 0.035
        layers.append(PaintedShape((_stroke(np.stack([centre - arm, centre + arm]), 0.025),), _bright(rng)))
    return layers


def _tv(rng: np.random.Generator) -> list[PaintedShape]:
    half = rng.uniform(0.28, 0.36)
    case = _vary(rng, (40, 40, 45), 30)
    screen = _vary(rng, (90, 130, 170), 60)
    inner = (-0.45, -half + 0.05, 0.45, half - 0.14)
    glare = np.array(
        [[-0.4, inner[3] - 0.03], [-0.1, inner[1] + 0.03], [0.08, inner[1] + 0.03], [-0.22, inner[3] - 0.03]]
    )
    stand = np.array([[-0.06, half - 0.1], [0.06, half - 0.1], [0.2, half], [-0.2, half]])
    return [
        PaintedShape((stand,), _dim(case, 0.8)),
        PaintedShape((_rounded(-0.5, -half, 0.5, half - 0.09, 0.04),), case),
        PaintedShape((_box(*inner),), screen),
        PaintedShape((glare,), _vary(rng, _dim(screen, 1.25), 5)),
    ]


def _clock(rng: np.random.Generator) -> list[PaintedShape]:
    face, rim, ink = _vary(rng, (240, 235, 220), 20), _bright(rng), _vary(rng, (25, 25, 30), 20)
    layers = [PaintedShape((_ellipse(0, 0, 0.5, 0.5),), rim), PaintedShape((_ellipse(0, 0, 0.42, 0.42),), face)]
    for hour in range(12):
        a = hour * np.pi / 6
        ray = np.array([np.sin(a), -np.cos(a)])
        layers.append(PaintedShape((_stroke(np.stack([ray * 0.34, ray * 0.4]), 0.03),), ink))
    for length, width in ((0.22, 0.05), (0.33, 0.035)):
        a = rng.uniform(0, 2 * np.pi)
        ray = np.array([np.sin(a), -np.cos(a)])
        layers.append(PaintedShape((_stroke(np.stack([ray * -0.05, ray * length]), width),), ink))
    return layers


def _teddy_bear(rng: np.random.Generator) -> list[PaintedShape]:
    fur = _vary(rng, ((150, 100, 55), (190, 145, 95), (110, 75, 50))[int(rng.integers(3))])
    pale, dark = _vary(rng, _dim(fur, 1.35), 8), (35.0, 25.0, 20.0)
    reach = rng.uniform(0.24, 0.32)
    limbs = (
        _ellipse(-0.17, -0.42, 0.08, 0.08), _ellipse(0.17, -0.42, 0.08, 0.08),
        _ellipse(-reach, 0.06, 0.12, 0.08), _ellipse(reach, 0.06, 0.12, 0.08),
        _ellipse(-0.17, 0.4, 0.11, 0.1), _ellipse(0.17, 0.4, 0.11, 0.1),
    )  # fmt: skip
    layers = [PaintedShape((limb,), _dim(fur, 0.88)) for limb in limbs]
    layers += [
        PaintedShape((_ellipse(0, 0.16, 0.24, 0.28),), fur),
        PaintedShape((_ellipse(0, 0.18, 0.14, 0.17),), pale),
    ]
    layers += [PaintedShape((_ellipse(0, -0.27, 0.22, 0.2),), fur), PaintedShape((_ellipse(0, -0.2, 0.1, 0.08),), pale)]
    layers += [PaintedShape((_ellipse(x, y, rx, ry),), dark) for x, y, rx, ry in
               ((-0.08, -0.32, 0.025, 0.03), (0.08, -0.32, 0.025, 0.03), (0, -0.23, 0.035, 0.025))]  # fmt: skip
    return layers


def _toothbrush(rng: np.random.Generator) -> list[PaintedShape]:
    handle, stripe = _bright(rng), _bright(rng)
    half, head = rng.uniform(0.04, 0.055), rng.uniform(0.065, 0.085)
    grip = _rounded(-0.5, -half, 0.28, half, half * 0.95)
    neck = _rounded(0.18, -half * 0.75, 0.5, half * 0.75, half * 0.7)
    layers = [PaintedShape((grip,), handle), PaintedShape((neck,), handle)]
    layers.append(PaintedShape((_box(-0.4, -half * 0.4, 0.0, half * 0.4),), stripe))
    bristle = _vary(rng, (235, 240, 245), 12)
    for i in range(5):
        x = 0.3 + 0.038 * i
        layers.append(
            PaintedShape(
                (_box(x, -2 * head + half, x + 0.034, half * 0.2),), bristle if i % 2 == 0 else _dim(bristle, 0.8)
            )
        )
    return layers


# One class between every two gaps of COCO's 90-id list, so that an off-by-one in a label map cannot hide.
STICKERS: tuple[Sticker, ...] = (
    Sticker(13, "stop sign", _stop_sign, 24, 35),
    Sticker(28, "umbrella", _umbrella, 40, 60),
    Sticker(38, "kite", _kite, 24, 180),
    Sticker(44, "bottle", _bottle, 40, 180),
    Sticker(52, "banana", _banana, 40, 180),
    Sticker(60, "donut", _donut, 24, 180),
    Sticker(72, "tv", _tv, 24, 20),
    Sticker(85, "clock", _clock, 24, 180),
    Sticker(88, "teddy bear", _teddy_bear, 40, 45),
    Sticker(90, "toothbrush", _toothbrush, 60, 180),
)
