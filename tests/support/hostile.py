"""Odd and broken image files as bytes, and what must become of each: labelled ("ok") or a failed row ("failed").

Knows file formats and how they go wrong; knows nothing of segray. `hostile_files()` is the whole collection,
by a name that ends in the extension a dataset might give the file.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

HEIGHT, WIDTH = 48, 64
_ORIENTATION = 274


def picture(height: int = HEIGHT, width: int = WIDTH) -> NDArray[np.uint8]:
    """(height, width, 3) uint8 RGB, smooth, with no symmetry and three different channels."""
    y, x = np.mgrid[0:height, 0:width]
    channels = (40 + 180 * x / width, 30 + 200 * y / height, 200 - 120 * (x / width) * (y / height))
    image = np.stack(channels, axis=2).astype(np.uint8)
    image[: height // 4, : width // 3] = (230, 40, 40)
    return image


def encode(image: Image.Image | NDArray[Any], kind: str, *, orientation: int | None = None, **options: Any) -> bytes:
    """A picture (a Pillow image, or an array in RGB) in one of Pillow's formats, with an EXIF orientation if told."""
    if orientation is not None:
        exif = Image.Exif()
        exif[_ORIENTATION] = orientation
        options["exif"] = exif
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, kind, **options)
    return file.getvalue()


def converted(mode: str, kind: str, **options: Any) -> bytes:
    """The picture in another of Pillow's modes."""
    return encode(Image.fromarray(picture()).convert(mode), kind, **options)


def stored_for(orientation: int, upright: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """What a camera stores so that a viewer that applies `orientation` shows `upright`."""
    turns = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }
    return np.ascontiguousarray(turns[orientation])


def oriented(orientation: int, kind: str, **options: Any) -> bytes:
    """The picture as a sensor held by `orientation` stores it: upright only once that is applied."""
    return encode(stored_for(orientation, picture()), kind, orientation=orientation, **options)


def half_transparent(mode: str = "RGBA") -> Image.Image:
    """The picture (RGBA or LA), its left half fully transparent over black, its right half opaque."""
    image = Image.fromarray(picture()).convert(mode.removesuffix("A")).convert(mode)
    image.paste((0,) * len(mode), (0, 0, WIDTH // 2, HEIGHT))
    return image


def sixteen_bit(kind: str, channels: int) -> bytes:
    """The picture, grey (its red channel) or RGB, with 257 times its 8-bit values; kind: ".png" or ".tiff"."""
    samples = picture().astype(np.uint16) * 257
    written, data = cv2.imencode(kind, samples[..., 0] if channels == 1 else samples[..., ::-1])
    assert written
    return bytes(data)


def png_chunk(name: bytes, body: bytes) -> bytes:
    """One chunk with its length and checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_with(name: bytes, body: bytes) -> bytes:
    """A good PNG with one more chunk after its header."""
    data = encode(picture(), "PNG")
    return data[:33] + png_chunk(name, body) + data[33:]


def png_bomb(side: int = 60_000) -> bytes:
    """A few bytes of PNG that promise side x side pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def jpeg_bomb(side: int = 65_500) -> bytes:
    """A small JPEG whose frame header promises side x side pixels."""
    data = bytearray(encode(picture(), "JPEG"))
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, side, side)
    return bytes(data)


def gif_bomb(side: int = 65_535) -> bytes:
    """A small GIF whose canvas is side x side."""
    data = bytearray(converted("P", "GIF"))
    struct.pack_into("<HH", data, 6, side, side)
    return bytes(data)


def gif_frame_bomb(side: int = 65_535) -> bytes:
    """A small GIF with a small canvas, whose first frame is side x side."""
    data = bytearray(converted("P", "GIF"))
    frame = data.index(b"," + struct.pack("<HHHH", 0, 0, WIDTH, HEIGHT))
    struct.pack_into("<HH", data, frame + 5, side, side)
    return bytes(data)


def bmp_bomb(side: int = 60_000) -> bytes:
    """A small BMP whose header promises side x side pixels."""
    data = bytearray(encode(picture(), "BMP"))
    struct.pack_into("<ii", data, 18, side, side)
    return bytes(data)


def webp_bomb(side: int = 16_384) -> bytes:
    """A few bytes of WebP whose extended header promises side x side pixels."""
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + 2 * (side - 1).to_bytes(3, "little")
    return b"RIFF" + struct.pack("<I", 4 + len(extended)) + b"WEBP" + extended


def tiff_bomb(side: int = 60_000) -> bytes:
    """A few bytes of TIFF whose directory promises side x side grey pixels in one strip."""
    tags = ((256, side), (257, side), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, side), (279, side**2))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)


def tiff_of(values: Mapping[int, int] | None = None, exif_values: int = 0) -> bytes:
    """The picture as a plain TIFF. values: tags that have so many, all zero; exif_values: half as many
    fractions of one tag in EXIF."""
    values = values or {}
    pixels = picture().tobytes()
    many = 4 * max([exif_values, *values.values()], default=0)
    tags = {256: WIDTH, 257: HEIGHT, 258: 8, 259: 1, 262: 2, 273: 8, 277: 3, 278: HEIGHT, 279: len(pixels), 34665: 0}
    start = 8 + len(pixels)
    zeros = start + 2 + 12 * len(tags) + 4
    tags[34665] = zeros + many
    entries = [(tag, 4, values.get(tag, 1), zeros if tag in values else value) for tag, value in sorted(tags.items())]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    exif = struct.pack("<HHHIII", 1, 0x9207, 5, exif_values // 2, zeros, 0)
    return b"II*\0" + struct.pack("<I", start) + pixels + directory + bytes(many) + exif


def cmyk_with_exif(values: int) -> bytes:
    """A CMYK JPEG whose EXIF has so many resolutions, of which a reader wants one, in as many segments as it takes."""
    head = b"II*\0" + struct.pack("<IH", 8, 2)
    tags = struct.pack("<HHII", 282, 5, values, 38) + struct.pack("<HHII", 296, 3, 1, 2)
    exif = head + tags + bytes(4) + bytes(8 * values)
    parts = (exif[at : at + 65_000] for at in range(0, len(exif), 65_000))
    segments = (b"\xff\xe1" + struct.pack(">H", len(part) + 8) + b"Exif\0\0" + part for part in parts)
    jpeg = converted("CMYK", "JPEG")
    jfif = 4 + int.from_bytes(jpeg[4:6], "big") if jpeg[2:4] == b"\xff\xe0" else 2
    return jpeg[:2] + b"".join(segments) + jpeg[jfif:]


def scan_bomb(scans: int = 150) -> bytes:
    """A progressive JPEG that sends one scan, which is the work of a whole picture in a few bytes, again and again."""
    jpeg = encode(picture(), "JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:last] + jpeg[last:-2] * scans + jpeg[-2:]


def with_broken_exif(data: bytes) -> bytes:
    """A JPEG with an EXIF block of noise after its start marker."""
    body = b"Exif\0\0II*\0\xff\xff\xff\x7f" + bytes(range(64))
    return data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:]


def animated(kind: str) -> bytes:
    """Two frames; the first is the picture."""
    frames = [Image.fromarray(picture()), Image.new("RGB", (WIDTH, HEIGHT), "blue")]
    return encode(frames[0], kind, save_all=True, append_images=frames[1:])


def _ycck(cmyk: bytes) -> bytes:
    """A CMYK JPEG's bytes, declared as YCCK in its Adobe segment."""
    data = bytearray(cmyk)
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data)


def _first_scan(progressive: bytes) -> bytes:
    """A progressive JPEG that ends, with an end marker, before its second scan."""
    second = progressive.index(b"\xff\xc4", progressive.index(b"\xff\xda"))
    return progressive[:second] + progressive[-2:]


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]


def _odd() -> dict[str, bytes]:
    """Unusual, but whole: each has labels."""
    jpeg, png = encode(picture(), "JPEG"), encode(picture(), "PNG")
    palette = Image.fromarray(picture()).quantize(16)
    files = {f"orientation_{k}.jpg": oriented(k, "JPEG", quality=95) for k in range(1, 9)}
    return files | {
        "plain.jpg": jpeg,
        "progressive.jpg": encode(picture(), "JPEG", progressive=True),
        "restarts.jpg": encode(picture(), "JPEG", restart_marker_blocks=1),
        "grey.jpg": converted("L", "JPEG"),
        "cmyk.jpg": converted("CMYK", "JPEG"),
        "ycck.jpg": _ycck(converted("CMYK", "JPEG")),
        "two_pictures.mpo": animated("MPO"),
        "no_end_marker.jpg": jpeg[:-2],
        "trailing_garbage.jpg": jpeg + b"\0\xff\xd8 appended by a phone" * 9,
        "broken_exif.jpg": with_broken_exif(jpeg),
        "png_named.jpg": png,
        "jpeg_named.png": jpeg,
        "plain.png": png,
        "16_bit_grey.png": sixteen_bit(".png", 1),
        "16_bit_rgb.png": sixteen_bit(".png", 3),
        "palette.png": encode(palette, "PNG"),
        "palette_transparent.png": encode(palette, "PNG", transparency=0),
        "rgba.png": encode(half_transparent(), "PNG"),
        "la.png": encode(half_transparent("LA"), "PNG"),
        "one_bit.png": converted("1", "PNG"),
        "text_that_swells.png": png_with(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(8_000_000))),
        "profile_that_swells.png": png_with(b"iCCP", b"icc\0\0" + zlib.compress(bytes(8_000_000))),
        "animation_out_of_order.png": png_with(b"fcTL", struct.pack(">IIIIIHHBB", 7, WIDTH, HEIGHT, 0, 0, 1, 1, 0, 0)),
        "exif_of_many_values.tif": tiff_of(exif_values=700_000),
        "exif_of_many_values.jpg": cmyk_with_exif(values=300_000),
        "one_pixel.png": encode(picture(1, 1), "PNG"),
        "plain.bmp": encode(picture(), "BMP"),
        "lossy.webp": encode(picture(), "WEBP"),
        "lossless.webp": encode(half_transparent(), "WEBP", lossless=True),
        "trailing_garbage.webp": encode(picture(), "WEBP") + b"garbage",
        "animated.webp": animated("WEBP"),
        "animated.gif": animated("GIF"),
        "plain.tif": encode(picture(), "TIFF"),
        "lzw.tif": encode(picture(), "TIFF", compression="tiff_lzw"),
        "big.tif": encode(picture(), "TIFF", big_tiff=True),
        "cmyk.tif": converted("CMYK", "TIFF"),
        "16_bit_rgb.tif": sixteen_bit(".tiff", 3),
    }


def _broken() -> dict[str, bytes]:
    """Not an image, not all of it, or too much of it: each becomes a failed row."""
    jpeg, png, gif = encode(picture(), "JPEG"), encode(picture(), "PNG"), converted("P", "GIF")
    return {
        "empty.jpg": b"",
        "html.jpg": b"<html><head><title>404 Not Found</title></head></html>",
        "text.png": b"version https://git-lfs.github.com/spec/v1\n",
        "random.jpg": np.random.default_rng(7).bytes(5000),
        "one_byte.jpg": b"\xff",
        "header_only.jpg": jpeg[:4],
        "truncated.jpg": jpeg[: len(jpeg) * 2 // 3],
        "scan_cut.jpg": jpeg[:-80] + jpeg[-2:],
        "scan_cut_without_end.jpg": jpeg[:-80],
        "first_scan_only.jpg": _first_scan(encode(picture(), "JPEG", progressive=True)),
        "zero_filled.jpg": jpeg[: len(jpeg) * 2 // 3] + bytes(len(jpeg) // 3),
        "truncated_progressive.jpg": encode(picture(), "JPEG", progressive=True)[:-40],
        "truncated_cmyk.jpg": converted("CMYK", "JPEG")[:-40],
        "spliced.jpg": jpeg[: len(jpeg) * 9 // 10] + jpeg,
        "bomb.jpg": jpeg_bomb(),
        "truncated.png": png[: len(png) * 2 // 3],
        "no_end_chunk.png": png[:-12],
        "bad_checksum.png": _flipped(png, len(png) - 14),
        "bad_data.png": _flipped(png, 60),
        "no_pixels.png": png[:33] + png[-12:],
        "bomb.png": png_bomb(),
        "scan_bomb.jpg": scan_bomb(),
        "truncated.gif": gif[: len(gif) * 2 // 3],
        "bomb.gif": gif_bomb(),
        "frame_bomb.gif": gif_frame_bomb(),
        "truncated.bmp": encode(picture(), "BMP")[:-500],
        "bomb.bmp": bmp_bomb(),
        "truncated.webp": encode(picture(), "WEBP")[:-50],
        "bomb.webp": webp_bomb(),
        "truncated.tif": encode(picture(), "TIFF", compression="tiff_lzw")[:-500],
        "float.tif": encode(picture()[..., 0].astype(np.float32), "TIFF"),
        "bomb.tif": tiff_bomb(),
        "strip_bomb.tif": tiff_of(values={273: 300_000, 279: 300_000}),
        "depth_bomb.tif": tiff_of(values={258: 300_000}),
    }


@cache
def hostile_files() -> dict[str, tuple[bytes, str]]:
    """Every file by name: (bytes, "ok" or "failed"). Files that are ok are 48x64, but one_pixel.png."""
    odd = {name: (data, "ok") for name, data in _odd().items()}
    return odd | {name: (data, "failed") for name, data in _broken().items()}
