"""Decoding of a TIFF's first picture to RGB, one strip or tile at a time.

This module knows how blocks become a picture. tiff_layout.py knows the tags, codecs.py decodes a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segray.errors import ImageError
from segray.imaging import codecs, samples
from segray.imaging.opencv import cv2
from segray.imaging.samples import FULL_DEPTH, Pixels
from segray.imaging.tiff_layout import (
    BLACK_IS_ZERO,
    CCITT,
    CMYK,
    JPEG,
    JPEG_2000,
    JPEG_XL,
    LERC,
    PALETTE,
    WEBP,
    WHITE_IS_ZERO,
    YCBCR,
    TiffLayout,
)

_IMAGE_FILES = frozenset({JPEG, JPEG_XL, WEBP, LERC, *JPEG_2000})
_Samples = NDArray[Any]
SizeOf = Callable[[bytes], tuple[int, int]]


class Placed(NamedTuple):
    """A decoded block: its place in the picture, and samples (rows, columns, colours and alpha)."""

    rows: slice
    columns: slice
    values: _Samples


@dataclass(frozen=True)
class TiffPicture:
    """A decoded picture.

    guessed_depth: bits that 16-bit samples were taken to use because of their values; None if the file or a setting
    says.
    """

    pixels: Pixels
    guessed_depth: int | None = None


def decode(data: bytes, layout: TiffLayout, size_of: SizeOf, depth: int | None = None) -> TiffPicture:
    """Return the picture as stored, before orientation.

    Args:
        data: Bytes of the file.
        layout: Layout of the picture.
        size_of: Returns width and height that an image file inside a block states.
        depth: Bits that 16-bit samples use; None to tell by the samples.

    Raises:
        ImageError: A block is short, or states another size than the layout.
        Exception: Any error of the decoder's.
    """
    blocks = _Blocks(data, layout, size_of)
    white, guessed = _white(layout, blocks, depth)
    rgb = np.empty((layout.height, layout.width, 3), np.uint8)
    for block in blocks:
        target = rgb[block.rows, block.columns]
        for rows in samples.bands(*block.values.shape[:2]):
            target[rows] = _to_rgb(block.values[rows], layout, white)
    return TiffPicture(rgb, guessed)


def _white(layout: TiffLayout, blocks: _Blocks, depth: int | None) -> tuple[int, int | None]:
    """Return the sample that is white, and the depth if it was guessed."""
    if layout.white is not None and _most(layout, blocks) <= layout.white:
        return layout.white, None
    if layout.bits < FULL_DEPTH or layout.photometric == PALETTE:
        return (1 << layout.bits) - 1, None
    bits, guessed = samples.used_depth(_colours(layout, blocks), depth)
    return (1 << bits) - 1, guessed


def _most(layout: TiffLayout, blocks: _Blocks) -> int:
    """Return the largest sample. Alpha does not count."""
    return max(int(values.max(initial=0)) for values in _colours(layout, blocks))


def _colours(layout: TiffLayout, blocks: _Blocks) -> Iterator[_Samples]:
    return (block.values[..., : layout.colours] for block in blocks)


class _Blocks:
    """The decoded blocks of a picture, which may be asked for twice. A block that is alone is decoded once."""

    def __init__(self, data: bytes, layout: TiffLayout, size_of: SizeOf) -> None:
        self._data, self._layout, self._size_of = memoryview(data), layout, size_of
        self._decoders: dict[int, Callable[[memoryview], _Samples]] = {}
        self._alone: Placed | None = None

    def __iter__(self) -> Iterator[Placed]:
        layout = self._layout
        rows, columns = layout.grid
        if self._alone is not None:
            yield self._alone
            return
        for row in range(rows):
            for column in range(columns):
                block = self._block(row, column)
                if rows * columns == 1:
                    self._alone = block
                yield block

    def _block(self, row: int, column: int) -> Placed:
        layout = self._layout
        width, height = layout.block_wh
        rows = slice(row * height, min((row + 1) * height, layout.height))
        columns = slice(column * width, min((column + 1) * width, layout.width))
        index, row_count = row * layout.grid[1] + column, height if layout.tiled else rows.stop - rows.start
        if layout.planes > 1:
            per_plane = layout.grid[0] * layout.grid[1]
            planes = [self._decoded(index + plane * per_plane, row_count)[..., 0] for plane in layout.used_samples]
            values = np.stack(planes, axis=-1) if len(planes) > 1 else planes[0][..., None]
        else:
            values = self._decoded(index, row_count)
            if layout.chroma_is_packed:
                values = _unpacked_chroma(values, layout)
            if layout.used_samples != tuple(range(values.shape[2])):
                values = values[..., layout.used_samples]
        return Placed(rows, columns, values[: rows.stop - rows.start, : columns.stop - columns.start])

    def _decoded(self, index: int, rows: int) -> _Samples:
        """Return the samples of a block of one plane."""
        layout = self._layout
        start = layout.offsets[index]
        packed = self._data[start : start + layout.counts[index]]
        try:
            if layout.compression in CCITT:
                return codecs.decode_ccitt(layout, rows, bytes(packed))
            if layout.compression in _IMAGE_FILES:
                _check_block(self._size_of(bytes(packed)), (layout.block_wh[0], rows))
            return self._decoder(rows, packed)(packed)
        except ImageError:
            raise
        except Exception as error:
            if rows < layout.block_wh[1]:  # Some writers pack a last strip of as many rows as the others.
                with suppress(Exception):
                    return self._decoder(layout.block_wh[1], packed)(packed)[:rows]
            kind = "tile" if layout.tiled else "strip"
            raise ImageError(
                f"{kind} {index + 1} of {len(layout.offsets)} of the TIFF is short or broken: {error}"
            ) from error

    def _decoder(self, rows: int, block: memoryview) -> Callable[[memoryview], _Samples]:
        if rows not in self._decoders:
            self._decoders[rows] = codecs.tiff_block_decoder(*_stored(self._layout, rows), bytes(block[:64]))
        return self._decoders[rows]


def _check_block(size: tuple[int, int], block_wh: tuple[int, int]) -> None:
    """Raise ImageError if an image file in a block is larger than the block."""
    if size[0] > block_wh[0] or size[1] > block_wh[1]:
        raise ImageError(
            f"corrupt TIFF: a picture of {size[0]}x{size[1]} in a strip or tile of {block_wh[0]}x{block_wh[1]}"
        )


def _stored(layout: TiffLayout, rows: int) -> tuple[TiffLayout, int]:
    """Return the layout and the rows as the decoder reads a block: packed chroma is a grey picture of bytes."""
    if not layout.chroma_is_packed:
        return layout, rows
    across, down = layout.subsampling
    bytes_wide = -(-layout.block_wh[0] // across) * (across * down + 2)
    grey = replace(layout, photometric=BLACK_IS_ZERO, samples=1, alpha=None, block_wh=(bytes_wide, layout.block_wh[1]))
    return grey, -(-rows // down)


def _unpacked_chroma(values: _Samples, layout: TiffLayout) -> _Samples:
    """Return YCbCr for each pixel, of units of luma samples and one chroma pair (TIFF 6.0 section 21)."""
    across, down = layout.subsampling
    rows = values.shape[0]
    units = values[..., 0].reshape(rows, -1, across * down + 2)
    luma = units[..., :-2].reshape(rows, -1, down, across).swapaxes(1, 2).reshape(rows * down, -1)
    chroma = (units[..., place].repeat(down, 0).repeat(across, 1) for place in (-2, -1))
    return np.stack((luma, *chroma), axis=-1)


def _to_rgb(values: _Samples, layout: TiffLayout, white: int) -> Pixels:
    """Return a band of samples (rows, columns, colours and alpha) in RGB."""
    colours = layout.colours
    if layout.photometric == PALETTE:
        index = values[..., 0]
        rgb = np.asarray(_palette(layout)[index.view(np.uint8) if index.dtype == np.bool_ else index], np.uint8)
    elif layout.photometric == CMYK:
        rgb = samples.cmyk_to_rgb(samples.eight_bits(values[..., :colours], white))
    elif layout.photometric in (WHITE_IS_ZERO, BLACK_IS_ZERO):
        grey = samples.eight_bits(values[..., 0], white)
        rgb = samples.grey_to_rgb(np.ascontiguousarray(255 - grey if layout.photometric == WHITE_IS_ZERO else grey))
    elif layout.photometric == YCBCR and layout.compression != JPEG:
        rgb = _ycbcr_to_rgb(values[..., :colours], layout.black_white)
    else:
        rgb = samples.eight_bits(values[..., :colours], white)
    if layout.alpha is None:
        return rgb
    alpha = samples.eight_bits(values[..., colours], white)
    return samples.over_white(rgb, alpha, premultiplied=layout.premultiplied)


def _palette(layout: TiffLayout) -> Pixels:
    """Return the colours (entries, 3). A map without a value over 255 holds 8 bits, as old writers left it."""
    values = np.array(layout.colour_map, np.uint16).reshape(3, -1).T
    return (values if values.max() < 256 else values >> 8).astype(np.uint8)


def _ycbcr_to_rgb(values: _Samples, black_white: tuple[float, ...]) -> Pixels:
    """Return RGB of YCbCr whose chroma is complete. black_white: ReferenceBlackWhite of the three channels."""
    if black_white and black_white != (0.0, 255.0, 128.0, 255.0, 128.0, 255.0):
        (y0, y1), (b0, b1), (r0, r1) = zip(black_white[::2], black_white[1::2], strict=True)
        steps = np.arange(256, dtype=np.float64)
        tables = (
            (steps - y0) * 255 / (y1 - y0),
            (steps - b0) * 127 / (b1 - b0) + 128,
            (steps - r0) * 127 / (r1 - r0) + 128,
        )
        mapped = [np.clip(np.rint(table), 0, 255).astype(np.uint8)[values[..., i]] for i, table in enumerate(tables)]
        values = np.stack(mapped, axis=-1)
    return np.asarray(cv2.cvtColor(np.ascontiguousarray(values[..., [0, 2, 1]]), cv2.COLOR_YCrCb2RGB), np.uint8)
