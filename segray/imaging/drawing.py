"""Drawing of instance masks on an image: tinted masks, outlines, and tags of class and score.

This module knows colours, fonts and pixels. Files, label sets and the layout of sheets and pages belong to others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from segray import rle
from segray.imaging.decode import Decoded, load
from segray.imaging.headers import admit
from segray.imaging.opencv import cv2
from segray.limits import DEFAULT_LIMITS, ImageLimits

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]

# Neighbouring colours differ most. Classes get colours in the order of their ids.
PALETTE: tuple[Colour, ...] = (
    (255, 77, 94), (46, 196, 255), (255, 190, 38), (168, 99, 255), (74, 222, 128), (255, 121, 198),
    (29, 209, 191), (255, 138, 52), (96, 130, 255), (190, 230, 60), (225, 100, 235), (235, 215, 130),
)  # fmt: skip
_MASK_OPACITY, _SUPERSAMPLING = 0.42, 2
# Level 9 needs seven times the CPU of level 3 for a file that is 9 % smaller.
PNG_LEVEL = 3
# Below this ratio of sizes, an average of areas blurs a picture; cubic interpolation does not.
_AVERAGED_FROM = 1.5


@dataclass(frozen=True)
class Label:
    """One instance to draw.

    bbox_xywh: in source pixels. rle: COCO counts over the full image. score: 0..1.
    """

    class_id: int
    class_name: str
    score: float
    bbox_xywh: tuple[float, float, float, float]
    rle: str

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> Label:
        """Return the label of a row of `instances` with the columns LABEL."""
        box = (row["bbox_x"], row["bbox_y"], row["bbox_w"], row["bbox_h"])
        return cls(row["class_id"], row["class_name"], row["score"], box, row["rle"])


def colours_of_classes(class_ids: Sequence[int]) -> dict[int, Colour]:
    """Return a colour for each class id. The first twelve ids in ascending order have distinct colours."""
    return {class_id: PALETTE[i % len(PALETTE)] for i, class_id in enumerate(sorted(set(class_ids)))}


def fitted_wh(size_hw: tuple[int, int], most_px: int) -> tuple[int, int]:
    """Return width and height of an image whose longer side has at most `most_px` pixels."""
    ratio = min(1.0, most_px / max(size_hw))
    return max(1, round(size_hw[1] * ratio)), max(1, round(size_hw[0] * ratio))


def png(image: Pixels) -> bytes:
    """Return an image, (h, w, 3) uint8 RGB, as the bytes of a PNG file."""
    return _encoded(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL])


def jpeg(image: Pixels, quality: int) -> bytes:
    """Return an image, (h, w, 3) uint8 RGB, as the bytes of a JPEG file. quality: 0..100."""
    return _encoded(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])


def _encoded(extension: str, image: Pixels, options: Sequence[int]) -> bytes:
    return cv2.imencode(extension, image[:, :, ::-1], options)[1].tobytes()


def pillow(image: Pixels) -> Image.Image:
    """Return an image, (h, w, 3) uint8 RGB, as a Pillow image, which Jupyter shows."""
    return Image.fromarray(image)


def draw(
    image: Pixels,
    labels: Sequence[Label],
    colours: Mapping[int, Colour],
    *,
    size_wh: tuple[int, int] | None = None,
    size_hw: tuple[int, int] | None = None,
    tags: bool = True,
) -> Pixels:
    """Draw tinted and outlined masks on an image, each with a tag of class and score.

    Large masks are painted first, so that small ones stay visible.

    Args:
        image: (h, w, 3) uint8 RGB.
        labels: Instances to draw.
        colours: RGB by class id.
        size_wh: Width and height of the result, in pixels. The image's own by default.
        size_hw: Height and width that the masks span, in pixels. The image's own by default.
        tags: Draw the tags.

    Returns:
        The drawing, (size_wh[1], size_wh[0], 3) uint8 RGB.
    """
    size_hw = size_hw or (image.shape[0], image.shape[1])
    width, height = size_wh or (image.shape[1], image.shape[0])
    canvas_wh = (width * _SUPERSAMPLING, height * _SUPERSAMPLING)
    # Repeated pixels: the average of four at the end gives back what is under no mask.
    repeated = cv2.resize(_resize(image, (width, height)), canvas_wh, interpolation=cv2.INTER_NEAREST)
    canvas: Pixels = np.asarray(repeated, np.uint8)
    for label in sorted(labels, key=lambda label: -rle.area(label.rle)):
        _paint_mask(canvas, *_solid(*_coverage(label.rle, size_hw, canvas_wh)), colours[label.class_id])
    sheet = Image.fromarray(cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA))
    if tags:
        scale_xy = (width / size_hw[1], height / size_hw[0])
        _draw_tags(sheet, sorted(labels, key=lambda label: -label.score), colours, scale_xy)
    return np.asarray(sheet)


def decode_for_drawing(data: bytes, size_wh: tuple[int, int], limits: ImageLimits = DEFAULT_LIMITS) -> Decoded:
    """Return the image in a file, no smaller than this width and height.

    Raise ImageError for a file that cannot be decoded.
    """
    return load(data, admit(data, limits), limits, (size_wh[1], size_wh[0]))


def _resize(pixels: NDArray[Any], size_wh: tuple[int, int]) -> NDArray[Any]:
    if size_wh[0] >= pixels.shape[1]:
        return cv2.resize(pixels, size_wh, interpolation=cv2.INTER_LINEAR)
    is_much_smaller = size_wh[0] * _AVERAGED_FROM <= pixels.shape[1]
    return cv2.resize(pixels, size_wh, interpolation=cv2.INTER_AREA if is_much_smaller else cv2.INTER_CUBIC)


def _coverage(
    counts: str, size_hw: tuple[int, int], canvas_wh: tuple[int, int]
) -> tuple[NDArray[np.floating[Any]], tuple[int, int]]:
    """Return the share of each canvas pixel under a mask, 0..1, for a box that holds the mask; and the box's corner.

    The box is the whole canvas where the canvas is larger than the image. Otherwise no pixel of the mask is made: each
    end of a vertical span changes the coverage of two rows in two columns at most, and sums along columns do the rest.
    """
    if canvas_wh[0] > size_hw[1] or canvas_wh[1] > size_hw[0]:
        return _resize(rle.decode(counts, size_hw).astype(np.float32), canvas_wh), (0, 0)
    columns, tops, bottoms = rle.spans(counts, size_hw)
    if not len(columns):
        return np.zeros((0, 0)), (0, 0)
    scale_x, scale_y = canvas_wh[0] / size_hw[1], canvas_wh[1] / size_hw[0]
    left, top = int(columns[0] * scale_x), int(tops.min() * scale_y)
    right, bottom = int(columns[-1] * scale_x) + 2, int(bottoms.max() * scale_y) + 3
    column = (columns * scale_x).astype(np.int64)
    in_next = np.maximum((columns + 1) * scale_x - (column + 1), 0)
    positions, steps = list[NDArray[np.int64]](), list[NDArray[np.float64]]()
    for edges, sign in ((tops * scale_y, 1), (bottoms * scale_y, -1)):
        row = edges.astype(np.int64)
        above = edges - row  # The part of the row that lies above the edge.
        for neighbour, share in ((column, scale_x - in_next), (column + 1, in_next)):
            position = (neighbour - left) * (bottom - top) + row - top
            positions += [position, position + 1]
            steps += [sign * share * (1 - above), sign * share * above]
    shape = (right - left, bottom - top)
    sums = np.bincount(np.concatenate(positions), np.concatenate(steps), shape[0] * shape[1])
    covered = sums.reshape(shape).cumsum(axis=1).T
    return covered[: canvas_wh[1] - top, : canvas_wh[0] - left], (left, top)


def _solid(coverage: NDArray[np.floating[Any]], corner_xy: tuple[int, int]) -> tuple[Pixels, tuple[int, int]]:
    """Return 1 for each pixel that is half covered; for a mask without such a pixel, for each that it touches."""
    solid = coverage >= 0.5
    if not solid.any():
        solid = coverage > 1e-6  # Sums leave rounding errors.
    return np.ascontiguousarray(solid).view(np.uint8), corner_xy


def _paint_mask(canvas: Pixels, solid: Pixels, corner_xy: tuple[int, int], colour: Colour) -> None:
    """Tint the mask and draw the outline in place: a coloured line on a wider dark line.

    solid: (h, w) 0 or 1, for a box of the canvas with this corner.
    """
    (left, top), (height, width) = corner_xy, solid.shape
    box = canvas[top : top + height, left : left + width]
    levels = np.arange(256)[:, None] * (1 - _MASK_OPACITY) + np.asarray(colour) * _MASK_OPACITY
    tinted = cv2.LUT(box, (levels + 0.5).astype(np.uint8)[None])
    cv2.copyTo(tinted, solid, box)
    contours, _ = cv2.findContours(solid, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    for line_colour, width_px in (((0, 0, 0), 4 * _SUPERSAMPLING - 1), (colour, 2 * _SUPERSAMPLING)):
        cv2.drawContours(canvas, contours, -1, line_colour, width_px, cv2.LINE_8, offset=corner_xy)


def _draw_tags(
    sheet: Image.Image, labels: Sequence[Label], colours: Mapping[int, Colour], scale_xy: tuple[float, float]
) -> None:
    """Draw a tag at each mask where it hides no earlier tag. The order of the labels is the order of the tags.

    A tag without a free place is left out.
    """
    pen, font = ImageDraw.Draw(sheet), load_font(12)
    taken: list[tuple[int, int, int, int]] = []
    for label in labels:
        text = f"{label.class_name} {label.score:.2f}"
        size_wh = (round(pen.textlength(text, font)) + 10, 17)
        tag_box = _find_tag_box(size_wh, label.bbox_xywh, scale_xy, sheet.size, taken)
        if tag_box is None:
            continue
        taken.append(tag_box)
        colour = colours[label.class_id]
        pen.rounded_rectangle(tag_box, 4, fill=colour, outline=_darken(colour))
        pen.text(
            ((tag_box[0] + tag_box[2]) / 2, (tag_box[1] + tag_box[3]) / 2),
            text,
            _text_colour_on(colour),
            font,
            anchor="mm",
        )


def _find_tag_box(
    size_wh: tuple[int, int],
    bbox_xywh: tuple[float, float, float, float],
    scale_xy: tuple[float, float],
    sheet_wh: tuple[int, int],
    taken: Sequence[tuple[int, int, int, int]],
) -> tuple[int, int, int, int] | None:
    """Return a free box for a tag, (x0, y0, x1, y1) in pixels; None without one.

    Positions above, below and beside the box of the mask come first. The middle of that box comes next, then positions
    that are moved into the sheet.
    """
    x, y, w, h = (value * scale_xy[i % 2] for i, value in enumerate(bbox_xywh))
    width, height = size_wh
    middle, level = x + w / 2 - width / 2, y + h / 2 - height / 2
    above, below = y - height - 3, y + h + 3
    positions = [(middle, above), (middle, below), (x + w + 3, level), (x - width - 3, level)]
    positions += [(x, above), (x + w - width, above), (x, below), (x + w - width, below)]
    last = (sheet_wh[0] - width - 3, sheet_wh[1] - height - 3)
    moved = [(min(max(x0, 3), last[0]), min(max(y0, 3), last[1])) for x0, y0 in (*positions, (middle, level))]
    inside = [position for position in positions if position in moved]
    for x0, y0 in inside + moved[::-1]:
        tag_box = (round(x0), round(y0), round(x0) + width, round(y0) + height)
        if not any(_boxes_overlap(tag_box, other) for other in taken):
            return tag_box
    return None


def _boxes_overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _darken(colour: Colour) -> Colour:
    return colour[0] // 3, colour[1] // 3, colour[2] // 3


def _text_colour_on(colour: Colour) -> Colour:
    """Return near-black or white, whichever is more legible on the colour."""
    luma = 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]  # Rec. 709
    return (12, 13, 16) if luma > 110 else (255, 255, 255)


def load_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font, because the machine may have none. size: in pixels."""
    return ImageFont.load_default(size)
