"""TIFFs of rarer codecs and layouts, and hostile ones: their pixels, or a reason, within bounded memory and time."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tifffile
from hostile import encode, picture
from known_pictures import Layout, Tags, packed, photo, tiff, tiff_of_blocks
from numpy.typing import NDArray
from PIL import Image

from segray.errors import ImageError
from segray.imaging.decode import decode
from segray.limits import ImageLimits

LARGE = np.kron(photo(), np.ones((5, 4, 1), np.uint8))[:113, :151]
HEIGHT, WIDTH = LARGE.shape[:2]


def written(pixels: NDArray[Any] = LARGE, **options: Any) -> bytes:
    """A TIFF that tifffile writes."""
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, **{"photometric": "rgb", "metadata": None, **options})
    return file.getvalue()


def gap(data: bytes, pixels: NDArray[np.uint8] = LARGE) -> int:
    image = decode(data).image
    assert image.shape == pixels.shape
    return int(np.abs(image.astype(int) - pixels).max())


def reason(data: bytes, **limits: int) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, ImageLimits(**limits))
    return caught.value.what


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "zstd"},
        {"compression": "zstd", "tile": (48, 80), "predictor": True},
        {"compression": "lzma", "rowsperstrip": 7},
        {"compression": "jpeg2000", "tile": (64, 48)},
        {"compression": "jpeg2000", "rowsperstrip": 16},
        {"compression": "jpegxl", "tile": (64, 48), "compressionargs": {"lossless": True}},
        {"compression": "webp", "tile": (64, 48), "compressionargs": {"lossless": True}},
        {"compression": "webp", "rowsperstrip": 16, "compressionargs": {"lossless": True}},
        {"compression": "lerc", "tile": (64, 48)},
        {"compression": "lerc", "rowsperstrip": 16},
        {"software": "x" * 300_000},
    ],
    ids=lambda options: str(options)[:80],
)
def test_rarer_codecs_give_their_pixels(options: dict[str, Any]) -> None:
    assert gap(written(**options)) == 0


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("blocks", [{}, {"tile": (64, 48)}, {"rowsperstrip": 16}], ids=str)
def test_jpeg_in_tiff_is_as_libtiff_reads_it(subsampling: tuple[int, int], blocks: dict[str, Any]) -> None:
    data = written(compression="jpeg", subsampling=subsampling, compressionargs={"level": 95}, **blocks)
    assert gap(data, np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))) <= 2


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr"])
@pytest.mark.parametrize("compression", ["jpeg", "raw", "tiff_adobe_deflate"])
def test_pillows_own_tiffs_are_read(mode: str, compression: str) -> None:
    image = Image.fromarray(LARGE).convert(mode)
    data = encode(image, "TIFF", compression=compression)
    if compression == "jpeg":
        image = Image.open(io.BytesIO(data))
    assert gap(data, np.asarray(image.convert("RGB"))) <= 2


def test_planes_of_jpeg_are_read() -> None:
    planes = np.ascontiguousarray(LARGE.transpose(2, 0, 1))
    data = written(planes, compression="jpeg", planarconfig="separate", compressionargs={"level": 98})
    assert gap(data) <= 8


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 1), (1, 2), (2, 2), (4, 2), (4, 4)])
@pytest.mark.parametrize("compression", ["none", "Deflate"])
def test_packed_chroma_is_read(subsampling: tuple[int, int], compression: str) -> None:
    (across, down), ycc = subsampling, np.asarray(Image.fromarray(LARGE).convert("YCbCr"))
    tall, wide = -(-HEIGHT // down) * down, -(-WIDTH // across) * across
    padded = np.pad(ycc, ((0, tall - HEIGHT), (0, wide - WIDTH), (0, 0)), "edge")
    units, shown = b"", np.empty_like(padded)
    for top in range(0, tall, down):
        for left in range(0, wide, across):
            unit = padded[top : top + down, left : left + across]
            chroma = np.rint(unit[..., 1:].reshape(-1, 2).mean(axis=0)).astype(np.uint8)
            units += unit[..., 0].tobytes() + chroma.tobytes()
            part = shown[top : top + down, left : left + across]
            part[..., 0], part[..., 1:] = unit[..., 0], chroma
    block = units if compression == "none" else zlib.compress(units)
    tags: Tags = {530: ("H", subsampling)}
    data = tiff_of_blocks([block], LARGE.shape, 8, 6, Layout(compression=compression), tags)
    assert gap(data, np.asarray(Image.fromarray(shown[:HEIGHT, :WIDTH], "YCbCr").convert("RGB"))) <= 2


def test_the_first_of_many_pages_is_read() -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        writer.write(LARGE, photometric="rgb")
        writer.write(255 - LARGE, photometric="rgb")
    assert gap(file.getvalue()) == 0
    for options in ({"imagej": True}, {"ome": True}):
        file = io.BytesIO()
        tifffile.imwrite(file, np.stack([LARGE, 255 - LARGE]), photometric="rgb", **options)
        assert gap(file.getvalue()) == 0


def test_further_bands_are_ignored() -> None:
    bands = np.dstack([LARGE, LARGE[..., :2]])
    assert gap(written(bands, extrasamples=["unspecified"] * 2)) == 0
    grey = written(bands, photometric="minisblack", planarconfig="contig", extrasamples=["unspecified"] * 4)
    assert gap(grey, LARGE[..., :1].repeat(3, 2)) == 0


def test_a_last_strip_may_be_packed_in_full() -> None:
    rows = np.concatenate([LARGE, LARGE[-7:]]).astype(np.uint16)
    blocks = [zlib.compress(packed(rows[top : top + 24], 8, "<")) for top in range(0, 120, 24)]
    assert gap(tiff_of_blocks(blocks, LARGE.shape, 8, 2, Layout(block=24, compression="Deflate"))) == 0


def test_a_max_sample_value_that_a_sample_exceeds_is_not_heeded() -> None:
    samples = photo().astype(np.uint16) * 257
    assert gap(tiff(samples, 16, 2, Layout(), {281: ("H", (255, 255, 255))}), photo()) == 0


# ---- what is refused ------------------------------------------------------------------------------


def plain(tags: Tags | None = None, *, block: int | tuple[int, int] = 5, compression: str = "none") -> bytes:
    return tiff(photo().astype(np.uint16), 8, 2, Layout(block=block, compression=compression), tags)


BLACK = np.zeros((8, 8, 1), np.uint16)
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "colour filter array": (lambda: written(LARGE[..., 0], photometric="cfa"), "colour filter array"),
    "CIELab": (lambda: written(photometric="cielab"), r"CIE L\*a\*b\*"),
    "mask": (lambda: plain({262: ("H", (4,))}), "transparency mask"),
    "unknown photometric": (lambda: plain({262: ("H", (99,))}), "photometric interpretation 99"),
    "JPEG XR": (lambda: plain({259: ("H", (34934,))}), "compression JPEG XR"),
    "unknown compression": (lambda: plain({259: ("H", (777,))}), "compression 777"),
    "old JPEG in parts": (lambda: plain({259: ("H", (6,)), 513: ("I", (8,))}), "old-style JPEG"),
    "other depths": (lambda: plain({258: ("H", (5, 6, 5))}), "different bits per sample in one pixel: 5, 6"),
    "other inks": (lambda: tiff(np.zeros((8, 8, 4), np.uint16), 8, 5, Layout(), {332: ("H", (2,))}), "inks other than"),
    "short strip": (lambda: plain({279: ("I", (600, 600, 600, 600, 479))}), "strip 5 of 5 .* is short or broken"),
    "empty strip": (lambda: plain({279: ("I", (600, 0, 600, 600, 480))}), "strip 2 of 5 is missing"),
    "strip behind the end": (lambda: plain({273: ("I", (8, 608, 1208, 1808, 10**6))}), "strip 5 of 5 is missing"),
    "few strips": (lambda: plain({273: ("I", (8, 608))}), "names 2 of 5 strips"),
    "no strips": (lambda: plain({273: ("H", ())}), "names 0 of 5 strips"),
    "few tiles": (lambda: plain({324: ("I", (8,))}, block=(16, 16)), "names 1 of 6 tiles"),
    "short LZW": (lambda: cut(plain(compression="LZW")), "short or broken"),
    "short Deflate": (lambda: cut(plain(compression="Deflate")), "short or broken"),
    "short PackBits": (lambda: cut(plain(compression="PackBits")), "short or broken"),
    "short G4": (lambda: cut(bits("CCITT G4")), "short or broken"),
    "short G3": (lambda: cut(bits("CCITT G3")), "short or broken"),
    "short RLE": (lambda: cut(bits("CCITT RLE")), "short or broken"),
    "short JPEG": (lambda: cut(written(compression="jpeg")), "ends early|ends inside|short or broken"),
    "huge tile": (lambda: plain({322: ("I", (60_000,)), 323: ("I", (60_000,))}, block=(16, 16)), "tile of 60000x60000"),
    "no tile": (lambda: plain({322: ("I", (0,))}, block=(16, 16)), "no pixels"),
    "many samples": (lambda: plain({277: ("H", (60_000,)), 258: ("H", (8,))}), "short or broken"),
    "other colour map": (lambda: tiff(BLACK, 8, 3, Layout(), {320: ("H", (1,) * 9)}), "colour map"),
    "predictor of 4 bits": (lambda: tiff(BLACK, 4, 1, Layout(), {317: ("H", (2,))}), "predictor"),
    "a block over all limits": (lambda: deflated_bomb(), "more than 24 bytes for each of image.max_pixels"),
    "float predictor": (lambda: plain({317: ("H", (3,))}), "predictor 3"),
    "large JPEG in a small strip": (lambda: large_jpeg(), "corrupt TIFF: a picture of 65000x65000"),
    "no size": (lambda: plain({256: ("I", (0,))}), "no pixels"),
}  # fmt: skip


def deflated_bomb() -> bytes:
    """A TIFF of 40 MP whose only strip has 400 samples for each pixel."""
    tags: Tags = {256: ("I", (8000,)), 257: ("I", (5000,)), 278: ("I", (5000,)), 277: ("H", (400,)), 258: ("H", (8,))}
    return plain(tags, block=0, compression="Deflate")


def cut(data: bytes) -> bytes:
    """The TIFF, its first strip half as long."""
    file = tifffile.TiffFile(io.BytesIO(data))
    tag = file.pages.first.tags[279]
    place = tag.valueoffset
    code = file.byteorder + {3: "H", 4: "I"}[tag.dtype]
    (length,) = struct.unpack_from(code, data, place)
    changed = bytearray(data)
    struct.pack_into(code, changed, place, length // 2)
    return bytes(changed)


def bits(compression: str) -> bytes:
    samples = (np.kron(photo()[..., :1], np.ones((4, 4, 1))) > 128).astype(np.uint16)
    return tiff(samples, 1, 1, Layout(compression=compression))


def large_jpeg() -> bytes:
    jpeg = bytearray(encode(picture(), "JPEG"))
    struct.pack_into(">HH", jpeg, jpeg.index(b"\xff\xc0") + 5, 65_000, 65_000)
    return tiff_of_blocks([bytes(jpeg)], (48, 64, 3), 8, 6, Layout(), {259: ("H", (7,))})


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_in_words(name: str) -> None:
    build, words = REFUSED[name]
    data = build()
    start_s = time.process_time()
    with pytest.raises(ImageError, match=words):
        decode(data)
    assert time.process_time() - start_s < 2


def test_a_directory_that_follows_itself_is_read_once() -> None:
    data = bytearray(plain())
    start = struct.unpack_from("<I", data, 4)[0]
    count = struct.unpack_from("<H", data, start)[0]
    struct.pack_into("<I", data, start + 2 + 12 * count, start)
    assert gap(bytes(data), photo()) == 0


def test_a_tiff_over_the_limits_is_refused_before_its_blocks_are_read() -> None:
    assert "image.max_pixels" in reason(plain(), max_pixels=100)
    assert "image.max_side_px" in reason(plain(), max_side_px=30)
