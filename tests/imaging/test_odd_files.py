"""Files as cameras, faxes and careless writers leave them: the right pixels, or a reason in words."""

from __future__ import annotations

import io
import re
import struct
import zlib
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from segray.errors import ImageError
from segray.imaging.decode import decode
from segray.limits import ImageLimits

pytestmark = pytest.mark.unit
_TWELVE_BITS = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def _tiff(pixels: NDArray[Any], **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, metadata=None, **options)
    return file.getvalue()


def _with_tag(tiff: bytes, number: int, value: int) -> bytes:
    """Return a little-endian TIFF whose tag of one number has another value."""
    (start,) = struct.unpack_from("<I", tiff, 4)
    (count,) = struct.unpack_from("<H", tiff, start)
    entries = range(start + 2, start + 2 + 12 * count, 12)
    at = next(entry for entry in entries if struct.unpack_from("<H", tiff, entry)[0] == number)
    return tiff[: at + 8] + struct.pack("<I", value) + tiff[at + 12 :]


@pytest.mark.parametrize(
    "encode",
    [
        lambda pixels: imagecodecs.jpegls_encode(pixels),
        lambda pixels: imagecodecs.jpeg8_encode(pixels, lossless=True, bitspersample=16),
        lambda pixels: imagecodecs.jpegxl_encode(pixels, lossless=True),
        lambda pixels: imagecodecs.jpeg2k_encode(pixels, level=0),
    ],
    ids=["JPEG-LS", "lossless JPEG", "JPEG XL", "JPEG 2000"],
)
def test_twelve_bits_in_sixteen_are_scaled_and_noted_in_every_format(encode: Callable[[Any], bytes]) -> None:
    data = encode(_TWELVE_BITS)
    decoded = decode(data)
    assert decoded.guessed_depth == 12
    assert np.array_equal(decoded.image[..., 1], _TWELVE_BITS >> 4)
    as_stored = decode(data, ImageLimits(bit_depth=16))
    assert as_stored.guessed_depth is None
    assert np.array_equal(as_stored.image[..., 1], _TWELVE_BITS >> 8)


def _png_with_wrong_checksum(name: bytes) -> bytes:
    pixels, text, file = np.arange(48, dtype=np.uint8).reshape(4, 4, 3), PngImagePlugin.PngInfo(), io.BytesIO()
    text.add_text("author", "nobody")
    exif = Image.Exif()
    exif[274] = 3
    Image.fromarray(pixels).save(file, "PNG", pnginfo=text, exif=exif)
    data = file.getvalue()
    body = data.index(name) + 4
    end = body + int.from_bytes(data[body - 8 : body - 4], "big")
    assert zlib.crc32(data[body - 4 : end]) == int.from_bytes(data[end : end + 4], "big")
    return data[:end] + bytes(4) + data[end + 4 :]


def test_a_wrong_checksum_of_a_png_counts_where_the_chunk_is_used() -> None:
    turned = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)[::-1, ::-1]
    assert np.array_equal(decode(_png_with_wrong_checksum(b"tEXt")).image, turned)
    for name in ("eXIf", "IDAT", "IEND"):
        with pytest.raises(ImageError, match=f"wrong checksum in its {name} chunk"):
            decode(_png_with_wrong_checksum(name.encode()))


def test_a_strip_whose_count_is_zero_reaches_to_the_end() -> None:
    black = np.zeros((40, 60), bool)
    black[5:20, 7:30] = True
    file = io.BytesIO()
    Image.fromarray(~black).save(file, "TIFF", compression="group4")
    damaged = _with_tag(file.getvalue(), 279, 0)
    assert np.array_equal(decode(damaged).image[..., 0], np.where(black, 0, 255))


def test_a_strip_without_a_place_is_missing() -> None:
    data = _with_tag(_with_tag(_tiff(np.ones((8, 8), np.uint8)), 279, 0), 273, 0)
    with pytest.raises(ImageError, match="strip 1 of 1 is missing"):
        decode(data)


def test_the_first_layer_of_a_volume_is_read_unless_it_is_compressed() -> None:
    layers = np.arange(16 * 32 * 32, dtype=np.uint32).reshape(16, 32, 32).astype(np.uint8)
    layers += np.arange(16, dtype=np.uint8)[:, None, None]
    raw = _tiff(layers, volumetric=True, tile=(16, 16, 16))
    assert np.array_equal(decode(raw).image[..., 0], layers[0])
    volume = _tiff(layers, volumetric=True, tile=(16, 16, 16), compression="zlib")
    with pytest.raises(ImageError, match="a volume of 16 layers"):
        decode(volume)


def _old_jpeg(stream: bytes) -> bytes:
    """Return a TIFF of compression 6 whose tag 513 names a stream that it holds."""
    pixels = np.frombuffer(stream.ljust(192, b"\0")[:192], np.uint8).reshape(8, 8, 3)
    written = _tiff(pixels, photometric="rgb", extratags=[(513, "I", 1, 0, True), (514, "I", 1, 192, True)])
    with tifffile.TiffFile(io.BytesIO(written)) as file:
        (place,) = file.pages.first.dataoffsets
    return _with_tag(_with_tag(written, 513, place), 259, 6)


@pytest.mark.parametrize(
    "stream", [b"\xff\xd8\xff\xdb\0\4\0\0\xff\xd9", b"\0" * 10], ids=["tables alone", "scan alone"]
)
def test_an_old_style_jpeg_in_parts_is_named(stream: bytes) -> None:
    with pytest.raises(ImageError, match=re.escape("old-style JPEG compression (6) in parts")):
        decode(_old_jpeg(stream))
    without_the_tag = _with_tag(_tiff(np.full((8, 8, 3), 7, np.uint8), photometric="rgb"), 259, 6)
    with pytest.raises(ImageError, match=re.escape("old-style JPEG compression (6) in parts")):
        decode(without_the_tag)
