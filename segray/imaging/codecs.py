"""simplejpeg, tifffile and imagecodecs, which are imported when a file needs them.

This module is their home. It decodes sound JPEGs, blocks of TIFFs, and whole files that OpenCV and Pillow do not
decode. tifffile never sees a user's directory: it gets one of a few checked tags, and the bytes of one block at a time.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray._system import host_process, library_messages
from segray.imaging.tiff_layout import BLACK_IS_ZERO, JPEG, RGB, YCBCR, TiffLayout

Block = NDArray[Any]
END_OF_JPEG = b"\xff\xd9"
_CCITT_ROW_END = "000000000001"
# Alternating bits, ones, and rows that begin with black.
_CCITT_FILLINGS = (
    b"\xaa" * 64,
    b"\xff" * 64,
    int((_CCITT_ROW_END + "00110101" + "010" + "000111" + "010") * 40, 2).to_bytes(160, "big"),
)


def decode_png(data: bytes) -> Block:
    """Return the pixels of a PNG, palettes expanded, with as many bits and channels as the file has.

    Raise any error of the library's for a file that is broken or ends early.
    """
    return _squeezed(_imagecodecs().png_decode(data))


def decode_sound_jpeg(data: bytes, size_hw: tuple[int, int]) -> NDArray[np.uint8] | None:
    """Return the RGB pixels of a JPEG in which libjpeg-turbo sees no fault; None for any other file.

    size_hw: height and width that the file states, in pixels. OpenCV's libjpeg-turbo gives the same pixels. OpenCV
    decodes into memory of its own and copies the pixels, which takes as long as the decoding for 12 megapixels.
    """
    import simplejpeg

    pixels = np.empty((*size_hw, 3), np.uint8)
    try:
        decoded = simplejpeg.decode_jpeg(data, "RGB", buffer=pixels, strict=True)
    except ValueError:
        return None
    return pixels if decoded.shape == pixels.shape else None


def jpeg_size_hw(data: bytes) -> tuple[int, int] | None:
    """Return height and width of a JPEG, in pixels, as libjpeg-turbo reads them; None for any other file."""
    import simplejpeg

    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return int(height), int(width)


def decode_jpeg(data: bytes) -> Block:
    """Return the pixels of a JPEG of any process: grey, RGB or CMYK, 8 to 16 bits. Raise any error of the library's."""
    return _squeezed(_imagecodecs().jpeg8_decode(data))


def decode_jpeg_ls(data: bytes) -> Block:
    """Return the pixels of a JPEG-LS file, uint8 or uint16. Raise any error of the library's.

    CharLS 2.4.3 takes half a minute for some files of a kilobyte that end inside their scan. With end markers behind
    the file it stops at once.
    """
    return _squeezed(_imagecodecs().jpegls_decode(data + END_OF_JPEG * 8))


def decode_jpeg_xl(data: bytes) -> Block:
    """Return the upright pixels of a JPEG XL file's first frame, in its own type. Raise any error of the library's."""
    return _squeezed(_imagecodecs().jpegxl_decode(data, index=0, numthreads=1))


def decode_jpeg_2000(data: bytes) -> Block:
    """Return the pixels of a JPEG 2000 file in its own type, channels last. Raise any error of the library's."""
    return _squeezed(_imagecodecs().jpeg2k_decode(data, numthreads=1))


def tiff_block_decoder(layout: TiffLayout, rows: int, first_block: bytes) -> Callable[[memoryview], Block]:
    """Return a function that decodes the bytes of a block to (rows, columns, samples). It raises any error of tifffile.

    Args:
        layout: Layout of the picture.
        rows: Number of rows of the block. The last strip of a picture may have fewer rows than others.
        first_block: Begin of the first block. It tells whether a JPEG has a JFIF marker.
    """
    directory = _directory_of_block(layout, rows, first_block)
    tifffile = _tifffile()
    with tifffile.TiffFile(io.BytesIO(directory)) as file:
        decode = file.pages.first.decode

    def block(data: memoryview) -> Block:
        options = {"jpegtables": layout.jpeg_tables or None} if layout.compression == JPEG else {}
        samples, _, _ = decode(data, 0, **options)
        return np.asarray(samples[0])

    return block


def decode_ccitt(layout: TiffLayout, rows: int, data: bytes) -> Block:
    """Return the pixels (rows, columns, 1) of a CCITT block as booleans. Raise EOFError for a block that ends early.

    The codec fills missing rows with white. Rows that are complete do not change with what follows them.
    """
    imagecodecs, width = _imagecodecs(), layout.block_wh[0]
    if layout.fill_order == 2:
        data = imagecodecs.bitorder_decode(data)
    codecs: dict[int, Callable[[bytes], Block]] = {
        2: lambda data: imagecodecs.ccittrle_decode(data, rows, width),
        3: lambda data: imagecodecs.ccittfax3_decode(data, rows, width, t4options=layout.t4_options),
        4: lambda data: imagecodecs.ccittfax4_decode(data, rows, width),
    }
    decode = codecs[layout.compression]
    pixels = decode(data)
    fillings = _CCITT_FILLINGS[:1] if layout.compression == 4 else _CCITT_FILLINGS  # G4 rows depend on all before.
    if any(not np.array_equal(pixels, decode(data + filling)) for filling in fillings):
        raise EOFError("a block of CCITT rows ends early")
    if layout.compression == 3:
        row_ends = bin(int.from_bytes(data, "big")).count(_CCITT_ROW_END)
        if 0 < row_ends < rows - 1:  # The first may lack its zeros.
            raise EOFError(f"a block of CCITT rows has {row_ends} of {rows} rows")
    return np.asarray(pixels, np.bool_)[..., None]


def _directory_of_block(layout: TiffLayout, rows: int, first_block: bytes) -> bytes:
    """Return a TIFF whose picture is one block of the layout. The pixels are left out."""
    count = layout.block_samples
    alpha_kind = 1 if layout.premultiplied else 2
    extra = tuple(alpha_kind if position == layout.alpha else 0 for position in range(layout.colours, count))
    photometric = BLACK_IS_ZERO if layout.planes > 1 else layout.photometric
    if photometric == YCBCR and layout.compression != JPEG:  # tifffile would refuse chroma without a JPEG.
        photometric = RGB
    tags: list[tuple[int, str, tuple[int, ...]]] = [
        (256, "I", (layout.block_wh[0],)), (257, "I", (rows,)), (258, "H", (layout.bits,) * count),
        (259, "H", (layout.compression,)), (262, "H", (photometric,)), (266, "H", (layout.fill_order,)),
        (273, "I", (8,)), (277, "H", (count,)), (278, "I", (rows,)), (279, "I", (len(first_block),)),
        (284, "H", (1,)), (317, "H", (layout.predictor,)), (338, "H", extra),
    ]  # fmt: skip
    tags = sorted(tag for tag in tags if tag[2])
    start = 8 + len(first_block) + len(first_block) % 2
    values_at, entries, values = start + 2 + 12 * len(tags) + 4, b"", b""
    for number, code, numbers in tags:
        packed = struct.pack(f"{layout.order}{len(numbers)}{code}", *numbers)
        if len(packed) > 4:
            place = struct.pack(layout.order + "I", values_at + len(values))
            values += packed + bytes(len(packed) % 2)
        else:
            place = packed.ljust(4, b"\0")
        entries += struct.pack(layout.order + "HHI", number, {"H": 3, "I": 4}[code], len(numbers)) + place
    magic = b"II*\0" if layout.order == "<" else b"MM\0*"
    head = magic + struct.pack(layout.order + "I", start) + first_block + bytes(len(first_block) % 2)
    return head + struct.pack(layout.order + "H", len(tags)) + entries + bytes(4) + values


def _squeezed(pixels: Any) -> Block:
    array = np.asarray(pixels)
    return array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array


@cache
def _imagecodecs() -> ModuleType:
    with host_process.import_changes_undone():
        import imagecodecs
    library_messages.leave_to_handlers("imagecodecs")
    return imagecodecs


@cache
def _tifffile() -> ModuleType:
    with host_process.import_changes_undone():
        import tifffile
    library_messages.leave_to_handlers("tifffile")
    return tifffile
