"""A contact sheet: images of a label set and their masks, drawn in one PNG.

This module knows colours, fonts and layout, and which images to show. Models belong to other modules.
A `read` function returns the bytes of images. Labels come from the committed tables or from the caller.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from segray import rle
from segray.analytics.query import key_ranges
from segray.analytics.query.atomic_output import atomic_output
from segray.errors import ImageError, InfrastructureError, UserError
from segray.imaging.decode import Decoded, load
from segray.imaging.headers import admit
from segray.imaging.opencv import cv2
from segray.instances import image_id
from segray.label_set import snapshot
from segray.label_set.schema import BBOX
from segray.limits import DEFAULT_LIMITS, ImageLimits
from segray.storage.uris import PathOrUrl, as_path, as_uri

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]

# Neighbouring colours differ most. Classes get colours in the order of their ids.
PALETTE: tuple[Colour, ...] = (
    (255, 77, 94), (46, 196, 255), (255, 190, 38), (168, 99, 255), (74, 222, 128), (255, 121, 198),
    (29, 209, 191), (255, 138, 52), (96, 130, 255), (190, 230, 60), (225, 100, 235), (235, 215, 130),
)  # fmt: skip
# Columns of `instances` from which a Label is made.
LABEL = ("class_id", "class_name", "score", *BBOX, "rle")
_BACKGROUND, _TILE_BACKGROUND, _TEXT, _SECONDARY_TEXT = (17, 19, 24), (28, 31, 38), (236, 238, 242), (140, 147, 160)
_TILE_WH, _GAP_PX, _CAPTION_PX, _HEADER_PX = (440, 330), 20, 34, 92
_MASK_OPACITY, _SUPERSAMPLING = 0.42, 2
# Level 9 needs seven times the CPU of level 3 for a file that is 9 % smaller.
_PNG_LEVEL = 3
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


@dataclass(frozen=True)
class LabelledPicture:
    """An image and its labels. size_hw: height and width of the upright image, in pixels."""

    key: str
    uri: str
    size_hw: tuple[int, int]
    labels: tuple[Label, ...]


@dataclass(frozen=True)
class SheetCandidate:
    """An image that the sheet may show.

    labels: number of labels. lowest: lowest score, 1 without labels. pixels: width times height.
    """

    key: str
    labels: int
    lowest: float
    pixels: int


# ---- one image ------------------------------------------------------------------------------------


def colours_of(pictures: Iterable[LabelledPicture]) -> dict[int, Colour]:
    """Return a colour for each class that occurs, by class id. Up to twelve classes have distinct colours."""
    ids = sorted({label.class_id for picture in pictures for label in picture.labels})
    return {class_id: PALETTE[i % len(PALETTE)] for i, class_id in enumerate(ids)}


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
    pen, font = ImageDraw.Draw(sheet), _font(12)
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


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font, because the machine may have none. size: in pixels."""
    return ImageFont.load_default(size)


# ---- which images to show -------------------------------------------------------------------------


def choose(candidates: Sequence[SheetCandidate], count: int) -> list[str]:
    """Return the keys of up to `count` images: crowded, uncertain, typical and large images in turn.

    Images without labels come last. A hash of the key breaks ties, so equal candidates give an equal result.
    """
    median_labels = float(np.median([c.labels for c in candidates if c.labels] or [0]))
    rules: tuple[Callable[[SheetCandidate], float], ...] = (
        lambda c: -c.labels,
        lambda c: c.lowest,
        lambda c: abs(c.labels - median_labels),
        lambda c: -c.pixels,
    )
    orders = [sorted(candidates, key=lambda c: (c.labels == 0, rule(c), image_id(c.key))) for rule in rules]
    in_turn = (candidate.key for rank in zip(*orders, strict=True) for candidate in rank)
    return list(dict.fromkeys(in_turn))[:count]


def candidate(picture: LabelledPicture) -> SheetCandidate:
    """Return the candidate of a labelled picture."""
    lowest = min((label.score for label in picture.labels), default=1.0)
    return SheetCandidate(picture.key, len(picture.labels), lowest, picture.size_hw[0] * picture.size_hw[1])


def pictures_of(
    root: PathOrUrl, count: int, *, score_threshold: float = 0.3, **storage_options: Any
) -> list[LabelledPicture]:
    """Return the images of a label set that `choose` selects.

    Args:
        root: Folder or URL of the label set.
        count: Largest number of images.
        score_threshold: Lowest score of the labels that count and are returned.
        **storage_options: Settings of the storage, as for segray.scan.
    """
    state = snapshot.snapshot(root, **storage_options)
    rows = state.images.to_table(columns=["image_key", "uri", "width", "height", "status"]).to_pylist()
    images = {row["image_key"]: row for row in rows if row["status"] != "failed"}
    score_filter = ds.field("score") >= score_threshold
    scores = state.instances.to_table(columns=["image_key", "score"], filter=score_filter)
    grouped = scores.group_by("image_key").aggregate([("score", "count"), ("score", "min")]).to_pylist()
    count_and_lowest = {row["image_key"]: (row["score_count"], row["score_min"]) for row in grouped}
    candidates = [
        SheetCandidate(key, *count_and_lowest.get(key, (0, 1.0)), row["width"] * row["height"])
        for key, row in images.items()
    ]
    keys = choose(candidates, count)
    labels: dict[str, list[Label]] = {key: [] for key in keys}
    label_filter = score_filter & key_ranges.of_images(keys)
    for row in state.instances.to_table(columns=["image_key", *LABEL], filter=label_filter).to_pylist():
        labels[row["image_key"]].append(Label.from_row(row))
    return [
        LabelledPicture(key, images[key]["uri"], (images[key]["height"], images[key]["width"]), tuple(labels[key]))
        for key in keys
    ]


# ---- the sheet ------------------------------------------------------------------------------------


def contact_sheet(
    source: PathOrUrl | Sequence[LabelledPicture],
    out_png: PathOrUrl,
    *,
    read: Callable[[str], bytes],
    columns: int = 4,
    count: int = 16,
    title: str = "",
    score_threshold: float = 0.3,
    **storage_options: Any,
) -> list[str]:
    """Write a PNG of up to `count` images with their masks. Return the keys of the images, in order.

    Args:
        source: A label set's root, or pictures.
        out_png: File to write.
        read: Returns the bytes of an image, given its URI.
        columns: Number of images side by side.
        count: Largest number of images.
        title: Heading; the root by default.
        score_threshold: Lowest score of the labels drawn from a label set.
        **storage_options: Settings of the storage, as for segray.scan.

    Raises:
        UserError: There is no image to show, or the size of an image differs from the labelled size.
    """
    root = as_uri(source) if isinstance(source, str | os.PathLike) else ""
    if isinstance(source, str | os.PathLike):
        pictures = pictures_of(source, count, score_threshold=score_threshold, **storage_options)
    else:
        by_key = {picture.key: picture for picture in source}
        pictures = [by_key[key] for key in choose([candidate(picture) for picture in source], count)]
    if not pictures:
        raise UserError("there is no labelled image to show", where=root, hint="Label images first: `segray label`.")
    colours = colours_of(pictures)
    columns = min(columns, len(pictures))
    tiles = [_draw_tile(picture, read, colours) for picture in pictures]
    sheet = _arrange(tiles, columns)
    _draw_header(sheet, title or root, pictures, colours)
    _save_png(sheet, as_path(out_png))
    return [picture.key for picture in pictures]


def side_by_side(
    pairs: Sequence[tuple[LabelledPicture, LabelledPicture]],
    out_png: Path,
    *,
    read: Callable[[str], bytes],
    title: str = "",
) -> dict[str, str]:
    """Write a PNG of pairs of pictures, one pair in each row. Write no file if no pair can be drawn.

    Return the reason for each pair that is left out, by key. Images of such a pair cannot be read, or their sizes
    differ from the labelled sizes.
    """
    colours = colours_of(picture for pair in pairs for picture in pair)
    pictures, tiles, reasons = list[LabelledPicture](), list[Image.Image](), dict[str, str]()
    storage_error: InfrastructureError | None = None
    for pair in pairs:
        try:
            if storage_error is not None:  # A further attempt for each image would take long.
                raise storage_error
            tiles += [_draw_tile(picture, read, colours) for picture in pair]
            pictures += pair
        except (ImageError, InfrastructureError, UserError, FileNotFoundError) as error:
            storage_error = error if isinstance(error, InfrastructureError) else storage_error
            reasons[pair[0].key] = str(error).partition("\n")[0]
    if pictures:
        sheet = _arrange(tiles, 2)
        _draw_header(sheet, title, pictures, colours)
        _save_png(sheet, out_png)
    return reasons


def _draw_tile(picture: LabelledPicture, read: Callable[[str], bytes], colours: Mapping[int, Colour]) -> Image.Image:
    height, width = picture.size_hw
    ratio = min(_TILE_WH[0] / width, _TILE_WH[1] / height)
    size_wh = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    decoded = decode_for_drawing(read(picture.uri), size_wh)
    if decoded.size_hw != picture.size_hw:
        raise UserError(
            "the size of an image has changed since it was labelled", where=picture.uri,
            found=f"{decoded.size_hw[1]}x{decoded.size_hw[0]}, labelled as {width}x{height}",
            hint="Run `segray label` again.",
        )  # fmt: skip
    drawing = draw(decoded.image, picture.labels, colours, size_wh=size_wh, size_hw=picture.size_hw)
    tile = Image.new("RGB", (_TILE_WH[0], _TILE_WH[1] + _CAPTION_PX), _BACKGROUND)
    pen = ImageDraw.Draw(tile)
    pen.rectangle((0, 0, _TILE_WH[0] - 1, _TILE_WH[1] - 1), fill=_TILE_BACKGROUND)
    corner = ((_TILE_WH[0] - size_wh[0]) // 2, (_TILE_WH[1] - size_wh[1]) // 2)
    tile.paste(Image.fromarray(drawing), corner)
    count = "1 instance" if len(picture.labels) == 1 else f"{len(picture.labels)} instances"
    pen.text((_TILE_WH[0] - 2, _TILE_WH[1] + 9), count, _SECONDARY_TEXT, _font(14), anchor="ra")
    key_width_px = _TILE_WH[0] - 16 - pen.textlength(count, _font(14))
    pen.text((2, _TILE_WH[1] + 9), _fit_text(picture.key, key_width_px, pen), _TEXT, _font(14))
    return tile


def _fit_text(text: str, width_px: float, pen: ImageDraw.ImageDraw) -> str:
    """Return the text, or the end of a text that does not fit, because keys differ at their end."""
    if pen.textlength(text, _font(14)) <= width_px:
        return text
    while text and pen.textlength("..." + text, _font(14)) > width_px:
        text = text[1:]
    return "..." + text


def _arrange(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    """Return a sheet with the tiles in rows, and room for the header above."""
    rows = -(-len(tiles) // columns)
    step_x, step_y = _TILE_WH[0] + _GAP_PX, _TILE_WH[1] + _CAPTION_PX + _GAP_PX // 2
    sheet = Image.new("RGB", (columns * step_x + _GAP_PX, _HEADER_PX + rows * step_y + _GAP_PX // 2), _BACKGROUND)
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (_GAP_PX + i % columns * step_x, _HEADER_PX + i // columns * step_y))
    return sheet


def _draw_header(
    sheet: Image.Image, title: str, pictures: Sequence[LabelledPicture], colours: Mapping[int, Colour]
) -> None:
    pen = ImageDraw.Draw(sheet)
    names = {label.class_id: label.class_name for picture in pictures for label in picture.labels}
    total = sum(len(picture.labels) for picture in pictures)
    counts = f"{len(pictures)} images, {total} instances, {len(names)} classes"
    pen.text((_GAP_PX, 18), title or "segray", _TEXT, _font(24))
    pen.text((sheet.width - _GAP_PX, 24), counts, _SECONDARY_TEXT, _font(16), anchor="ra")
    x = float(_GAP_PX)
    for class_id, colour in colours.items():
        if class_id not in names:
            continue
        entry_width = pen.textlength(names[class_id], _font(14)) + 36
        if x + entry_width > sheet.width - _GAP_PX:
            break
        pen.rounded_rectangle((x, 61, x + 14, 75), 4, fill=colour)
        pen.text((x + 21, 68), names[class_id], _SECONDARY_TEXT, _font(14), anchor="lm")
        x += entry_width


def _save_png(sheet: Image.Image, out_png: Path) -> None:
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", compress_level=_PNG_LEVEL)
    with atomic_output(out_png) as unfinished:
        unfinished.write_bytes(buffer.getvalue())
