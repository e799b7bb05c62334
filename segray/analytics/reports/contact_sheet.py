"""A contact sheet: images of a label set with their masks drawn on them, as one PNG.

This module knows colours, type and layout, and which images to show. Models belong to other modules.
Pixels come through a `read` function. Labels come from the committed tables or from the caller.
"""

from __future__ import annotations

import io
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
from segray.imaging.decode import decode
from segray.imaging.opencv import cv2
from segray.instances import image_id
from segray.label_set import snapshot
from segray.label_set.schema import BBOX

Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]

# Neighbours differ most. Classes take colours in order of id.
PALETTE: tuple[Colour, ...] = (
    (255, 77, 94), (46, 196, 255), (255, 190, 38), (168, 99, 255), (74, 222, 128), (255, 121, 198),
    (29, 209, 191), (255, 138, 52), (96, 130, 255), (190, 230, 60), (225, 100, 235), (235, 215, 130),
)  # fmt: skip
LABEL = ("class_id", "class_name", "score", *BBOX, "rle")
_PAPER, _MAT, _INK, _FAINT = (17, 19, 24), (28, 31, 38), (236, 238, 242), (140, 147, 160)
_TILE_WH, _GAP, _CAPTION, _HEADER = (440, 330), 20, 34, 92
_TINT, _FINE = 0.42, 2


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
    def of(cls, row: Mapping[str, Any]) -> Label:
        """Return the label of a row of instances, with the columns LABEL."""
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
    """The facts of an image that decide the choice.

    labels: their number. lowest: lowest score, 1 without labels. pixels: width times height.
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
    tags: bool = True,
) -> Pixels:
    """Draw tinted and outlined masks on an image, each with a tag of class and score.

    Large masks are painted first, so that small ones stay visible.

    Args:
        image: (h, w, 3) uint8 RGB, of the size that the masks span.
        labels: Instances to draw.
        colours: RGB by class id.
        size_wh: Width and height of the result, in pixels. The image's own by default.
        tags: Draw the tags.

    Returns:
        The drawing, (size_wh[1], size_wh[0], 3) uint8 RGB.
    """
    size_hw = (image.shape[0], image.shape[1])
    width, height = size_wh or (size_hw[1], size_hw[0])
    fine_wh = (width * _FINE, height * _FINE)
    canvas = _resized(image, fine_wh).astype(np.float32)
    ordered = sorted(labels, key=lambda label: -rle.area(label.rle))
    for label in ordered:
        cover = _resized(rle.decode(label.rle, size_hw).astype(np.float32), fine_wh)
        _paint(canvas, cover, colours[label.class_id])
    small = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)
    sheet = Image.fromarray(np.clip(small + 0.5, 0, 255).astype(np.uint8))
    if tags:
        scale_xy = (width / size_hw[1], height / size_hw[0])
        _tag(sheet, sorted(labels, key=lambda label: -label.score), colours, scale_xy)
    return np.asarray(sheet)


def _resized(picture: NDArray[Any], size_wh: tuple[int, int]) -> NDArray[Any]:
    shrinks = size_wh[0] < picture.shape[1]
    return cv2.resize(picture, size_wh, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _paint(canvas: NDArray[np.float32], cover: NDArray[np.float32], colour: Colour) -> None:
    """Tint the covered pixels and draw the outline in place: a coloured line on a wider dark line."""
    alpha = (cover * np.float32(_TINT))[..., None]
    ink = np.asarray(colour, np.float32)
    canvas += alpha * (ink - canvas)
    solid = (cover >= 0.5).astype(np.uint8)
    contours, _ = cv2.findContours(solid, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, (0.0, 0.0, 0.0), 4 * _FINE - 1, cv2.LINE_AA)
    cv2.drawContours(canvas, contours, -1, tuple(map(float, colour)), 2 * _FINE, cv2.LINE_AA)


def _tag(
    sheet: Image.Image, labels: Sequence[Label], colours: Mapping[int, Colour], scale_xy: tuple[float, float]
) -> None:
    """Put a tag on each mask, the highest score first, where it hides no earlier tag.

    A tag without room is left out.
    """
    pen, font = ImageDraw.Draw(sheet), _font(12)
    taken: list[tuple[int, int, int, int]] = []
    for label in labels:
        text = f"{label.class_name} {label.score:.2f}"
        size_wh = (round(pen.textlength(text, font)) + 10, 17)
        spot = _spot(size_wh, label.bbox_xywh, scale_xy, sheet.size, taken)
        if spot is None:
            continue
        taken.append(spot)
        colour = colours[label.class_id]
        pen.rounded_rectangle(spot, 4, fill=colour, outline=_dark(colour))
        pen.text(((spot[0] + spot[2]) / 2, (spot[1] + spot[3]) / 2), text, _ink_on(colour), font, anchor="mm")


def _spot(
    size_wh: tuple[int, int],
    bbox_xywh: tuple[float, float, float, float],
    scale_xy: tuple[float, float],
    sheet_wh: tuple[int, int],
    taken: Sequence[tuple[int, int, int, int]],
) -> tuple[int, int, int, int] | None:
    """Return a free place for a tag, (x0, y0, x1, y1) in pixels; None without one.

    Places above, below and beside the box come first. The middle of the box comes next, then places moved into the
    sheet.
    """
    x, y, w, h = (value * scale_xy[i % 2] for i, value in enumerate(bbox_xywh))
    width, height = size_wh
    middle, level = x + w / 2 - width / 2, y + h / 2 - height / 2
    above, below = y - height - 3, y + h + 3
    places = [(middle, above), (middle, below), (x + w + 3, level), (x - width - 3, level)]
    places += [(x, above), (x + w - width, above), (x, below), (x + w - width, below)]
    last = (sheet_wh[0] - width - 3, sheet_wh[1] - height - 3)
    pushed = [(min(max(x0, 3), last[0]), min(max(y0, 3), last[1])) for x0, y0 in (*places, (middle, level))]
    for x0, y0 in [place for place in places if place in pushed] + pushed[::-1]:
        spot = (round(x0), round(y0), round(x0) + width, round(y0) + height)
        if not any(_overlap(spot, other) for other in taken):
            return spot
    return None


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _dark(colour: Colour) -> Colour:
    return colour[0] // 3, colour[1] // 3, colour[2] // 3


def _ink_on(colour: Colour) -> Colour:
    """Return near-black or white, whichever is more legible on the colour (Rec. 709 luma)."""
    return (12, 13, 16) if 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2] > 110 else (255, 255, 255)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return the typeface that Pillow carries, so that no font of the machine is needed. size: in pixels."""
    return ImageFont.load_default(size)


# ---- choosing -------------------------------------------------------------------------------------


def choose(candidates: Sequence[SheetCandidate], count: int) -> list[str]:
    """Return the keys of up to `count` images: crowded, uncertain, typical and large ones in turn.

    Images without labels come last. A hash of the key breaks ties, so the choice depends on nothing else.
    """
    usual = float(np.median([c.labels for c in candidates if c.labels] or [0]))
    rules: tuple[Callable[[SheetCandidate], float], ...] = (
        lambda c: -c.labels,
        lambda c: c.lowest,
        lambda c: abs(c.labels - usual),
        lambda c: -c.pixels,
    )
    orders = [sorted(candidates, key=lambda c: (c.labels == 0, rule(c), image_id(c.key))) for rule in rules]
    in_turn = (candidate.key for together in zip(*orders, strict=True) for candidate in together)
    return list(dict.fromkeys(in_turn))[:count]


def candidate(picture: LabelledPicture) -> SheetCandidate:
    """Return the candidate of a picture whose labels are at hand."""
    lowest = min((label.score for label in picture.labels), default=1.0)
    return SheetCandidate(picture.key, len(picture.labels), lowest, picture.size_hw[0] * picture.size_hw[1])


def pictures_of(
    root: str, count: int, *, score_threshold: float = 0.3, **storage_options: Any
) -> list[LabelledPicture]:
    """Return the `count` images of a label set that `choose` gives, with the labels of score_threshold or more."""
    shown = snapshot.snapshot(root, **storage_options)
    rows = shown.images.to_table(columns=["image_key", "uri", "width", "height", "status"]).to_pylist()
    images = {row["image_key"]: row for row in rows if row["status"] != "failed"}
    sure = ds.field("score") >= score_threshold
    scores = shown.instances.to_table(columns=["image_key", "score"], filter=sure)
    grouped = scores.group_by("image_key").aggregate([("score", "count"), ("score", "min")]).to_pylist()
    found = {row["image_key"]: (row["score_count"], row["score_min"]) for row in grouped}
    keys = choose(
        [SheetCandidate(k, *found.get(k, (0, 1.0)), row["width"] * row["height"]) for k, row in images.items()], count
    )
    labels: dict[str, list[Label]] = {key: [] for key in keys}
    for row in shown.instances.to_table(
        columns=["image_key", *LABEL], filter=sure & key_ranges.of_images(keys)
    ).to_pylist():
        labels[row["image_key"]].append(Label.of(row))
    return [
        LabelledPicture(key, images[key]["uri"], (images[key]["height"], images[key]["width"]), tuple(labels[key]))
        for key in keys
    ]


# ---- the sheet ------------------------------------------------------------------------------------


def contact_sheet(
    source: str | Sequence[LabelledPicture],
    out_png: Path,
    *,
    read: Callable[[str], bytes],
    columns: int = 4,
    count: int = 16,
    title: str = "",
    score_threshold: float = 0.3,
    **storage_options: Any,
) -> list[str]:
    """Write a PNG of up to `count` images with their masks. Return the keys shown, in order.

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
        UserError: There is no image to show, or an image is no longer the one that was labelled.
    """
    if isinstance(source, str):
        shown = pictures_of(source, count, score_threshold=score_threshold, **storage_options)
    else:
        by_key = {picture.key: picture for picture in source}
        shown = [by_key[key] for key in choose([candidate(picture) for picture in source], count)]
    if not shown:
        raise UserError("there is no labelled image to show", where=source if isinstance(source, str) else "")
    colours = colours_of(shown)
    columns = min(columns, len(shown))
    tiles = [_tile(picture, read, colours) for picture in shown]
    sheet = _laid_out(tiles, columns)
    heading = title or (source if isinstance(source, str) else "")
    _write_header(sheet, heading, shown, colours)
    _save_whole(sheet, out_png)
    return [picture.key for picture in shown]


def side_by_side(
    pairs: Sequence[tuple[LabelledPicture, LabelledPicture]],
    out_png: Path,
    *,
    read: Callable[[str], bytes],
    title: str = "",
) -> dict[str, str]:
    """Write a PNG of pairs of pictures, one pair in each row. Write no file if no pair can be drawn.

    Return the reason for each pair that is left out, by key. Its images cannot be read, or are no longer those that
    were labelled.
    """
    colours = colours_of(picture for pair in pairs for picture in pair)
    shown, tiles, left_out = list[LabelledPicture](), list[Image.Image](), dict[str, str]()
    down: InfrastructureError | None = None
    for pair in pairs:
        try:
            if down is not None:  # Another attempt for each image would take long.
                raise down
            tiles += [_tile(picture, read, colours) for picture in pair]
            shown += pair
        except (ImageError, InfrastructureError, UserError, FileNotFoundError) as error:
            down = error if isinstance(error, InfrastructureError) else down
            left_out[pair[0].key] = str(error).partition("\n")[0]
    if shown:
        sheet = _laid_out(tiles, 2)
        _write_header(sheet, title, shown, colours)
        _save_whole(sheet, out_png)
    return left_out


def _tile(picture: LabelledPicture, read: Callable[[str], bytes], colours: Mapping[int, Colour]) -> Image.Image:
    image = decode(read(picture.uri)).image
    if image.shape[:2] != picture.size_hw:
        raise UserError(
            "an image is no longer the one that was labelled", where=picture.uri,
            found=f"{image.shape[1]}x{image.shape[0]}, labelled as {picture.size_hw[1]}x{picture.size_hw[0]}",
            hint="label it again",
        )  # fmt: skip
    ratio = min(_TILE_WH[0] / image.shape[1], _TILE_WH[1] / image.shape[0])
    size_wh = (max(1, round(image.shape[1] * ratio)), max(1, round(image.shape[0] * ratio)))
    tile = Image.new("RGB", (_TILE_WH[0], _TILE_WH[1] + _CAPTION), _PAPER)
    pen = ImageDraw.Draw(tile)
    pen.rectangle((0, 0, _TILE_WH[0] - 1, _TILE_WH[1] - 1), fill=_MAT)
    corner = ((_TILE_WH[0] - size_wh[0]) // 2, (_TILE_WH[1] - size_wh[1]) // 2)
    tile.paste(Image.fromarray(draw(image, picture.labels, colours, size_wh=size_wh)), corner)
    count = "1 instance" if len(picture.labels) == 1 else f"{len(picture.labels)} instances"
    pen.text((_TILE_WH[0] - 2, _TILE_WH[1] + 9), count, _FAINT, _font(14), anchor="ra")
    room = _TILE_WH[0] - 16 - pen.textlength(count, _font(14))
    pen.text((2, _TILE_WH[1] + 9), _shortened(picture.key, room, pen), _INK, _font(14))
    return tile


def _shortened(text: str, room: float, pen: ImageDraw.ImageDraw) -> str:
    """Return the text, or its end where the text does not fit: keys differ at their end."""
    if pen.textlength(text, _font(14)) <= room:
        return text
    while text and pen.textlength("..." + text, _font(14)) > room:
        text = text[1:]
    return "..." + text


def _laid_out(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    rows = -(-len(tiles) // columns)
    across, down = _TILE_WH[0] + _GAP, _TILE_WH[1] + _CAPTION + _GAP // 2
    sheet = Image.new("RGB", (columns * across + _GAP, _HEADER + rows * down + _GAP // 2), _PAPER)
    for i, tile in enumerate(tiles):
        sheet.paste(tile, (_GAP + i % columns * across, _HEADER + i // columns * down))
    return sheet


def _write_header(
    sheet: Image.Image, title: str, shown: Sequence[LabelledPicture], colours: Mapping[int, Colour]
) -> None:
    pen = ImageDraw.Draw(sheet)
    names = {label.class_id: label.class_name for picture in shown for label in picture.labels}
    total = sum(len(picture.labels) for picture in shown)
    facts = f"{len(shown)} images, {total} instances, {len(names)} classes"
    pen.text((_GAP, 18), title or "segray", _INK, _font(24))
    pen.text((sheet.width - _GAP, 24), facts, _FAINT, _font(16), anchor="ra")
    x = float(_GAP)
    for class_id, colour in colours.items():
        if class_id not in names:
            continue
        wide = pen.textlength(names[class_id], _font(14)) + 36
        if x + wide > sheet.width - _GAP:
            break
        pen.rounded_rectangle((x, 61, x + 14, 75), 4, fill=colour)
        pen.text((x + 21, 68), names[class_id], _FAINT, _font(14), anchor="lm")
        x += wide


def _save_whole(sheet: Image.Image, out_png: Path) -> None:
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    with atomic_output(out_png) as unfinished:
        unfinished.write_bytes(buffer.getvalue())
