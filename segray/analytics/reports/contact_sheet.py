"""A contact sheet: images of a label set and their masks, drawn in one PNG.

This module knows the layout, and which images to show. imaging/drawing.py draws masks. Models belong to others.
A `read` function returns the bytes of images. Labels come from the committed tables or from the caller.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

import numpy as np
import pyarrow.dataset as ds
from PIL import Image, ImageDraw

from segray.analytics.query import key_ranges
from segray.analytics.query.atomic_output import atomic_output, require_file_path
from segray.errors import ImageError, InfrastructureError, UserError
from segray.imaging.drawing import PNG_LEVEL, Colour, Label, colours_of_classes, decode_for_drawing, draw, load_font
from segray.instances import image_id
from segray.label_set import snapshot
from segray.label_set.schema import BBOX
from segray.label_set.snapshot import Snapshot
from segray.storage.options import StorageKeywords
from segray.storage.uris import PathOrUrl, as_path, as_uri

# Columns of `instances` from which a Label is made.
LABEL = ("class_id", "class_name", "score", *BBOX, "rle")
# Lowest score of drawn labels. The many labels of low scores would hide an image.
SCORE_THRESHOLD = 0.3
_BACKGROUND, _TILE_BACKGROUND, _TEXT, _SECONDARY_TEXT = (17, 19, 24), (28, 31, 38), (236, 238, 242), (140, 147, 160)
_TILE_WH, _GAP_PX, _CAPTION_PX, _HEADER_PX = (440, 330), 20, 34, 92


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
    return colours_of_classes([label.class_id for picture in pictures for label in picture.labels])


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


def keys_of(state: Snapshot, count: int, score_threshold: float) -> list[str]:
    """Return the keys of up to `count` images that `choose` selects.

    score_threshold: lowest score of the labels that count.
    """
    rows = state.images.to_table(columns=["image_key", "width", "height"], filter=ds.field("status") != "failed")
    scores = state.instances.to_table(columns=["image_key", "score"], filter=ds.field("score") >= score_threshold)
    grouped = scores.group_by("image_key").aggregate([("score", "count"), ("score", "min")]).to_pylist()
    count_and_lowest = {row["image_key"]: (row["score_count"], row["score_min"]) for row in grouped}
    candidates = [
        SheetCandidate(
            row["image_key"], *count_and_lowest.get(row["image_key"], (0, 1.0)), row["width"] * row["height"]
        )
        for row in rows.to_pylist()
    ]
    return choose(candidates, count)


def pictures_of(
    root: PathOrUrl, count: int, *, score_threshold: float = SCORE_THRESHOLD, **storage_options: Unpack[StorageKeywords]
) -> list[LabelledPicture]:
    """Return the images of a label set that `choose` selects.

    Args:
        root: Folder or URL of the label set.
        count: Largest number of images.
        score_threshold: Lowest score of the labels that count and are returned.
        **storage_options: Settings of the storage, as for segray.scan.
    """
    state = snapshot.snapshot(root, **storage_options)
    return pictures_of_keys(state, keys_of(state, count, score_threshold), score_threshold)


def pictures_of_keys(state: Snapshot, keys: Sequence[str], score_threshold: float) -> list[LabelledPicture]:
    """Return the images of these keys with their labels, in the order of the keys."""
    among = key_ranges.of_images(keys)
    rows = state.images.to_table(columns=["image_key", "uri", "width", "height"], filter=among).to_pylist()
    images = {row["image_key"]: row for row in rows}
    labels: dict[str, list[Label]] = {key: [] for key in keys}
    label_filter = (ds.field("score") >= score_threshold) & among
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
    score_threshold: float = SCORE_THRESHOLD,
    on_undrawn: Callable[[str, Exception], None] | None = None,
    **storage_options: Unpack[StorageKeywords],
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
        on_undrawn: Receives the key of an image that cannot be drawn, and why; None to raise the error.
        **storage_options: Settings of the storage, as for segray.scan.

    Raises:
        UserError: There is no image to show, or the size of an image differs from the labelled size.
        ImageError, FileNotFoundError: An image cannot be decoded, or is gone.
    """
    require_file_path(as_path(out_png))
    root = as_uri(source) if isinstance(source, str | os.PathLike) else ""
    shown_scores = ""
    if isinstance(source, str | os.PathLike):
        shown_scores = f" of score {score_threshold:g} and more" if score_threshold else ""
        pictures = pictures_of(source, count, score_threshold=score_threshold, **storage_options)
    else:
        by_key = {picture.key: picture for picture in source}
        pictures = [by_key[key] for key in choose([candidate(picture) for picture in source], count)]
    if not pictures:
        raise UserError("there is no labelled image to show", where=root, hint="Label images first: `segray label`.")
    colours = colours_of(pictures)
    shown, tiles = list[LabelledPicture](), list[Image.Image]()
    for picture in pictures:
        try:
            tiles.append(_draw_tile(picture, read, colours))
            shown.append(picture)
        except (ImageError, UserError, FileNotFoundError) as error:
            if on_undrawn is None:
                raise
            on_undrawn(picture.key, error)
    if not tiles:
        hint = "check that the images are where they were labelled"
        raise UserError("no image of the label set can be drawn", where=root, hint=hint)
    sheet = _arrange(tiles, min(columns, len(tiles)))
    _draw_header(sheet, title or root, shown, colours, shown_scores)
    _save_png(sheet, as_path(out_png))
    return [picture.key for picture in shown]


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
    pen.text((_TILE_WH[0] - 2, _TILE_WH[1] + 9), count, _SECONDARY_TEXT, load_font(14), anchor="ra")
    key_width_px = _TILE_WH[0] - 16 - pen.textlength(count, load_font(14))
    pen.text((2, _TILE_WH[1] + 9), _fit_text(picture.key, key_width_px, pen), _TEXT, load_font(14))
    return tile


def _fit_text(text: str, width_px: float, pen: ImageDraw.ImageDraw, size_px: int = 14) -> str:
    """Return the text, or the end of a text that does not fit, because keys and roots differ at their end."""
    font = load_font(size_px)
    if pen.textlength(text, font) <= width_px:
        return text
    while text and pen.textlength("..." + text, font) > width_px:
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
    sheet: Image.Image,
    title: str,
    pictures: Sequence[LabelledPicture],
    colours: Mapping[int, Colour],
    shown_scores: str = "",
) -> None:
    pen = ImageDraw.Draw(sheet)
    names = {label.class_id: label.class_name for picture in pictures for label in picture.labels}
    total = sum(len(picture.labels) for picture in pictures)
    counts = f"{len(pictures)} images, {total} instances{shown_scores}, {len(names)} classes"
    title_width_px = sheet.width - 3 * _GAP_PX - pen.textlength(counts, load_font(16))
    pen.text((_GAP_PX, 18), _fit_text(title or "segray", title_width_px, pen, 24), _TEXT, load_font(24))
    pen.text((sheet.width - _GAP_PX, 24), counts, _SECONDARY_TEXT, load_font(16), anchor="ra")
    x = float(_GAP_PX)
    for class_id, colour in colours.items():
        if class_id not in names:
            continue
        entry_width = pen.textlength(names[class_id], load_font(14)) + 36
        if x + entry_width > sheet.width - _GAP_PX:
            break
        pen.rounded_rectangle((x, 61, x + 14, 75), 4, fill=colour)
        pen.text((x + 21, 68), names[class_id], _SECONDARY_TEXT, load_font(14), anchor="lm")
        x += entry_width


def _save_png(sheet: Image.Image, out_png: Path) -> None:
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", compress_level=PNG_LEVEL)
    with atomic_output(out_png) as unfinished:
        unfinished.write_bytes(buffer.getvalue())
