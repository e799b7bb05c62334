"""The memory that a decode is said to need is what the decode takes, measured in a process of its own."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from known_pictures import Layout, png, tiff
from PIL import Image

pytestmark = [
    pytest.mark.chaos,  # a minute for the files alone
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="a peak is measured through /proc"),
]
WIDTH, HEIGHT = 3000, 2000
# Each file is decoded in a child of its own, after a 48x32 file of the same kind, so that libraries are loaded.
_MEASURE = """
import json, os, sys
from pathlib import Path
from segray._system import memory
from segray.imaging import decode, headers

def measure(folder, least_hw):
    small, data = (folder / "small").read_bytes(), (folder / "large").read_bytes()
    decode.load(small, headers.admit(small), least_hw=least_hw)
    header = headers.admit(data)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory.rss_bytes()
    decode.load(data, header, least_hw=least_hw)
    print(json.dumps([folder.name, memory.peak_bytes() - before, decode.peak_bytes(header, least_hw)]), flush=True)

memory.return_large_blocks()
for folder in sorted(Path(sys.argv[1]).iterdir()):
    if (child := os.fork()) == 0:
        measure(folder, (500, 500) if folder.name.endswith("scaled") else None)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{folder.name}: the measurement failed")
"""


def photo(width: int, height: int) -> Image.Image:
    """A smooth picture with some noise, as a camera's."""
    rng = np.random.default_rng(5)
    smooth = cv2.resize(rng.integers(0, 255, (8, 12, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    noise = rng.integers(-6, 7, (height, width, 1))
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


def by_pillow(name: str, mode: str = "RGB", orientation: int = 1, **options: Any) -> Callable[[Image.Image], bytes]:
    def save(picture: Image.Image) -> bytes:
        file, exif = io.BytesIO(), Image.Exif()
        if orientation > 1:
            exif[274] = orientation
            options["exif"] = exif
        converted = picture.quantize(64) if mode == "P" else picture.convert(mode)
        if name == "WEBP" and mode == "RGBA":
            converted.putalpha(picture.convert("L"))
        converted.save(file, name, **options)
        return file.getvalue()

    return save


def sixteen_bit(ending: str, channels: int) -> Callable[[Image.Image], bytes]:
    def save(picture: Image.Image) -> bytes:
        pixels = np.asarray(picture.convert({1: "L", 3: "RGB", 4: "RGBA"}[channels])).astype(np.uint16) * 257
        return cv2.imencode(ending, pixels)[1].tobytes()

    return save


def tiled(picture: Image.Image) -> bytes:
    """A TIFF of one tile, packed by Deflate."""
    pixels = np.asarray(picture)
    height, width = pixels.shape[0], pixels.shape[1]
    whole = np.zeros((-(-height // 16) * 16, -(-width // 16) * 16, 3), np.uint8)
    whole[:height, :width] = pixels
    body = zlib.compress(whole.tobytes(), 1)
    body += bytes(len(body) % 2)
    bits_at = 8 + len(body)
    tags = [
        (256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, bits_at), (259, 3, 1, 8), (262, 3, 1, 2), (277, 3, 1, 3),
        (322, 4, 1, whole.shape[1]), (323, 4, 1, whole.shape[0]), (324, 4, 1, 8), (325, 4, 1, len(body)),
    ]  # fmt: skip
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    return b"II*\0" + struct.pack("<I", bits_at + 6) + body + struct.pack("<3H", 8, 8, 8) + directory


def by_tifffile(dtype: str = "uint8", separate: bool = False, **options: Any) -> Callable[[Image.Image], bytes]:
    """A TIFF that tifffile writes; its 16-bit samples have all 16 bits."""

    def save(picture: Image.Image) -> bytes:
        pixels = np.asarray(picture)
        if dtype != "uint8":
            pixels = (pixels.astype(np.uint16) << 8) + 3
        if separate:
            pixels = np.ascontiguousarray(pixels.transpose(2, 0, 1))
        file, layout = io.BytesIO(), "separate" if separate else "contig"
        tifffile.imwrite(file, pixels, photometric="rgb", planarconfig=layout, metadata=None, **options)
        return file.getvalue()

    return save


def twelve_bit_tiff(picture: Image.Image) -> bytes:
    grey = np.asarray(picture.convert("L")).astype(np.uint16)[..., None] << 4
    return tiff(grey, 12, 1, Layout(compression="Deflate"))


def interlaced(mode: str, colour: int) -> Callable[[Image.Image], bytes]:
    def save(picture: Image.Image) -> bytes:
        pixels = np.asarray(picture.convert(mode)).astype(np.uint16)
        return png(np.atleast_3d(pixels), 8, colour, interlaced=True)

    return save


def twelve_bit_png(picture: Image.Image) -> bytes:
    return cv2.imencode(".png", np.asarray(picture.convert("L")).astype(np.uint16) << 4)[1].tobytes()


def by_imagecodecs(codec: str, bits: int = 8, **options: Any) -> Callable[[Image.Image], bytes]:
    def save(picture: Image.Image) -> bytes:
        pixels = np.asarray(picture)
        if bits > 8:
            pixels = pixels.astype(np.uint16) << (bits - 8)
        return bytes(getattr(imagecodecs, f"{codec}_encode")(pixels, **options))

    return save


def heic(picture: Image.Image) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif")
    file = io.BytesIO()
    pillow_heif.from_pillow(picture).save(file, quality=50)
    return file.getvalue()


def without_end(picture: Image.Image) -> bytes:
    return by_pillow("JPEG")(picture)[:-2]


FAST = {"compress_level": 1}
FILES: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG 4:2:0": by_pillow("JPEG"),
    "JPEG 4:2:0 scaled": by_pillow("JPEG"),
    "JPEG 4:4:4": by_pillow("JPEG", subsampling=0),
    "JPEG progressive 4:2:0": by_pillow("JPEG", progressive=True),
    "JPEG progressive 4:4:4": by_pillow("JPEG", progressive=True, subsampling=0),
    "JPEG grey": by_pillow("JPEG", "L"),
    "JPEG grey progressive": by_pillow("JPEG", "L", progressive=True),
    "JPEG CMYK": by_pillow("JPEG", "CMYK"),
    "JPEG CMYK progressive": by_pillow("JPEG", "CMYK", progressive=True),
    "JPEG turned": by_pillow("JPEG", orientation=6),
    "PNG RGB": by_pillow("PNG", **FAST),
    "PNG RGB with metadata": by_pillow("PNG", dpi=(72, 72), **FAST),
    "PNG RGB turned": by_pillow("PNG", orientation=3, **FAST),
    "PNG RGB transparent colour": by_pillow("PNG", transparency=(1, 2, 3), **FAST),
    "PNG RGBA": by_pillow("PNG", "RGBA", **FAST),
    "PNG grey": by_pillow("PNG", "L", **FAST),
    "PNG grey turned": by_pillow("PNG", "L", 6, **FAST),
    "PNG grey alpha": by_pillow("PNG", "LA", **FAST),
    "PNG palette": by_pillow("PNG", "P", **FAST),
    "PNG palette transparent": by_pillow("PNG", "P", transparency=3, **FAST),
    "PNG 1 bit": by_pillow("PNG", "1"),
    "PNG 16 bit grey": sixteen_bit(".png", 1),
    "PNG 16 bit RGB": sixteen_bit(".png", 3),
    "PNG 16 bit RGBA": sixteen_bit(".png", 4),
    "TIFF RGB": by_pillow("TIFF"),
    "TIFF RGB Deflate": by_pillow("TIFF", compression="tiff_adobe_deflate"),
    "TIFF RGB one strip": by_pillow("TIFF", compression="tiff_adobe_deflate", strip_size=1 << 30),
    "TIFF RGB one tile": tiled,
    "TIFF RGB turned": by_pillow("TIFF", orientation=6),
    "TIFF grey turned": by_pillow("TIFF", "L", 6),
    "TIFF RGBA": by_pillow("TIFF", "RGBA"),
    "TIFF CMYK": by_pillow("TIFF", "CMYK"),
    "TIFF JPEG": by_pillow("TIFF", compression="jpeg"),
    "TIFF palette": by_pillow("TIFF", "P"),
    "TIFF 1 bit": by_pillow("TIFF", "1", compression="group4"),
    "TIFF 16 bit grey": sixteen_bit(".tiff", 1),
    "TIFF 16 bit RGB": sixteen_bit(".tiff", 3),
    "TIFF 16 bit RGB big endian": by_tifffile("uint16", byteorder=">", compression="zlib", rowsperstrip=HEIGHT),
    "TIFF 16 bit RGB one strip": by_tifffile("uint16", compression="zlib", predictor=2, rowsperstrip=HEIGHT),
    "TIFF 16 bit RGB planar": by_tifffile("uint16", separate=True, compression="zlib", rowsperstrip=HEIGHT),
    "TIFF RGB planar": by_tifffile(separate=True, rowsperstrip=HEIGHT),
    "TIFF RGB planar Deflate": by_tifffile(separate=True, compression="zlib", rowsperstrip=HEIGHT),
    "TIFF RGB predictor one strip": by_tifffile(compression="zlib", predictor=2, rowsperstrip=HEIGHT),
    "TIFF RGB tiles": by_tifffile(compression="lzw", tile=(256, 256)),
    "TIFF JPEG one strip": by_tifffile(compression="jpeg", rowsperstrip=HEIGHT),
    "TIFF JPEG 2000": by_tifffile(compression="jpeg2000", tile=(512, 512)),
    "TIFF 12 bit grey": twelve_bit_tiff,
    "PNG RGBA interlaced": interlaced("RGBA", 6),
    "PNG grey alpha interlaced": interlaced("LA", 4),
    "PNG grey interlaced": interlaced("L", 0),
    "PNG 16 bit grey of 12 bits": twelve_bit_png,
    "JPEG without end": without_end,
    "JPEG 12 bit": by_imagecodecs("jpeg8", 12, bitspersample=12),
    "JPEG lossless": by_imagecodecs("jpeg8", lossless=True),
    "JPEG-LS": by_imagecodecs("jpegls"),
    "JPEG XL": by_imagecodecs("jpegxl", effort=1, level=90),
    "JPEG 2000": by_pillow("JPEG2000"),
    "JPEG 2000 grey": by_pillow("JPEG2000", "L"),
    "AVIF": by_pillow("AVIF", speed=10, quality=60),
    "AVIF 4:4:4": by_pillow("AVIF", speed=10, quality=60, subsampling="4:4:4"),
    "AVIF alpha": by_pillow("AVIF", "RGBA", speed=10, quality=60),
    "HEIC": heic,
    "WebP": by_pillow("WEBP", method=0),
    "WebP turned": by_pillow("WEBP", orientation=6, method=0),
    "WebP alpha": by_pillow("WEBP", "RGBA", method=0),
    "WebP lossless": by_pillow("WEBP", lossless=True, method=0, quality=0),
    "GIF": by_pillow("GIF", "P"),
    "GIF transparent": by_pillow("GIF", "P", transparency=3),
    "BMP RGB": by_pillow("BMP"),
    "BMP RGBA": by_pillow("BMP", "RGBA"),
    "BMP palette": by_pillow("BMP", "P"),
    "BMP 1 bit": by_pillow("BMP", "1"),
}


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, int]]:
    """The bytes taken and the bytes reserved, by kind of file."""
    root, small, large = tmp_path_factory.mktemp("kinds"), photo(48, 32), photo(WIDTH, HEIGHT)
    for kind, save in FILES.items():
        folder = root / kind.replace(":", "")
        folder.mkdir()
        (folder / "small").write_bytes(save(small))
        (folder / "large").write_bytes(save(large))
    command = [sys.executable, "-c", _MEASURE, str(root)]
    ended = subprocess.run(command, check=True, capture_output=True, text=True, timeout=500)
    rows = map(json.loads, ended.stdout.splitlines())
    return {kind: (taken, reserved) for kind, taken, reserved in rows}


@pytest.mark.parametrize("kind", FILES)
def test_a_decode_takes_what_is_reserved_within_a_fifth(measured: dict[str, tuple[int, int]], kind: str) -> None:
    taken, reserved = measured[kind.replace(":", "")]
    slack = 2 * 2**20 if kind.endswith("scaled") else 0  # Tables of the decoder count beside the small picture.
    assert abs(reserved - taken) < 0.2 * taken + slack, f"{taken / 1e6:.1f} MB taken, {reserved / 1e6:.1f} MB reserved"
