"""AVIF, HEIC, JPEG 2000, JPEG XL, JPEG-LS, rare JPEGs and odd EXIF blocks: their pixels, or a reason."""

from __future__ import annotations

import io
import itertools
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
import pillow_heif
import pytest
from hostile import converted, encode, half_transparent, oriented, picture, png_chunk, stored_for
from known_pictures import photo, png
from numpy.typing import NDArray
from PIL import Image

from segray.errors import ImageError
from segray.imaging.decode import decode
from segray.imaging.headers import probe
from segray.limits import ImageLimits

ORIENTATIONS = range(1, 9)


def gap(data: bytes, pixels: NDArray[np.uint8]) -> int:
    image = decode(data).image
    assert image.shape == pixels.shape
    return int(np.abs(image.astype(int) - pixels).max())


def heic(pixels: NDArray[np.uint8], **options: Any) -> bytes:
    file = io.BytesIO()
    pillow_heif.from_pillow(Image.fromarray(pixels)).save(file, quality=100, chroma=444, **options)
    return file.getvalue()


def coded(codec: str, pixels: NDArray[Any], **options: Any) -> bytes:
    return bytes(getattr(imagecodecs, f"{codec}_encode")(pixels, **options))


WIDE = picture().astype(np.uint16)
FILES: dict[str, tuple[bytes, int]] = {
    "a.avif": (encode(picture(), "AVIF", quality=100, subsampling="4:4:4"), 4),
    "a.heic": (heic(picture()), 6),
    "a.jp2": (encode(picture(), "JPEG2000"), 0),
    "a.j2k": (encode(picture(), "JPEG2000", no_jp2=True), 0),
    "a.jxl": (coded("jpegxl", picture(), lossless=True), 0),
    "16bit.jxl": (coded("jpegxl", WIDE * 257, lossless=True), 0),
    "a.jls": (coded("jpegls", picture()), 0),
    "16bit.jls": (coded("jpegls", WIDE * 257), 0),
    "lossless.jpg": (coded("jpeg8", picture(), lossless=True), 0),
    "12bit.jpg": (coded("jpeg8", WIDE * 16, bitspersample=12, level=100, subsampling="444"), 4),
    "16bit_lossless.jpg": (coded("jpeg8", WIDE * 257, bitspersample=16, lossless=True), 0),
    "a.mpo": (encode(Image.fromarray(picture()), "MPO", quality=100, subsampling=0), 4),
}


@pytest.mark.parametrize("name", FILES)
def test_other_formats_give_their_pixels(name: str) -> None:
    data, tolerance = FILES[name]
    assert gap(data, picture()) <= tolerance


@pytest.mark.parametrize("name", FILES)
def test_other_formats_that_are_cut_are_refused(name: str) -> None:
    data, _ = FILES[name]
    whole = decode(data).image
    for share in np.linspace(0, 0.97, 30):
        try:
            image = decode(data[: int(len(data) * share)]).image
        except ImageError:
            continue
        assert np.array_equal(image, whole), share


@pytest.mark.parametrize("name", [name for name in FILES if name.endswith((".avif", ".heic", ".jp2", ".jxl", ".jls"))])
def test_limits_hold_before_other_formats_are_decoded(name: str) -> None:
    with pytest.raises(ImageError, match=r"image\.max_pixels"):
        decode(FILES[name][0], ImageLimits(max_pixels=48 * 63))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_avif_and_heic_are_upright(orientation: int) -> None:
    stored = stored_for(orientation, picture())
    avif = encode(stored, "AVIF", orientation=orientation, quality=100, subsampling="4:4:4")
    assert decode(avif).orientation == orientation
    assert gap(avif, picture()) <= 4
    exif = Image.Exif()
    exif[274] = orientation
    image = Image.fromarray(stored)
    file = io.BytesIO()
    pillow_heif.register_heif_opener()
    image.save(file, "HEIF", quality=100, chroma=444, exif=exif.tobytes())
    assert gap(file.getvalue(), picture()) <= 6


_WITHOUT_EXTRA = """
import sys
sys.modules["pillow_heif"] = None
from segray.errors import ImageError
from segray.imaging.decode import decode
from segray.sources import listing
from segray.sources.passed_over import PassedOver
from segray.storage.store import Store
passed_over = PassedOver()
batches = listing.read(sys.argv[1], Store(), passed_over=passed_over)
print([key for batch in batches for key in batch["key"].to_pylist()], passed_over.notes())
try:
    decode(open(sys.argv[1] + "/b.heic", "rb").read())
except ImageError as error:
    print(error.what, error.hint)
"""


def test_without_the_extra_heic_is_passed_over_and_the_extra_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.avif").write_bytes(FILES["a.avif"][0])
    (tmp_path / "b.heic").write_bytes(FILES["a.heic"][0])
    command = [sys.executable, "-c", _WITHOUT_EXTRA, str(tmp_path)]
    out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.splitlines()
    advice = "pip install 'segray[heif]' on every node takes .heic"
    assert out[0] == str(["a.avif"]) + " " + str([f"passed over: 1 .heic; {advice}"])
    assert out[1] == "HEIC needs the extra heif pip install 'segray[heif]' on every node"


# ---- EXIF -----------------------------------------------------------------------------------------


def exif(kind: int, value: bytes, entries: int = 1, order: str = "<") -> bytes:
    """An EXIF block with an orientation of a type, that states a number of entries and ends behind the first."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(order + "HHI", 274, kind, 1) + value.ljust(4, b"\0")
    return head + struct.pack(order + "IH", 8, entries) + entry + (bytes(4) if entries == 1 else b"")


def with_app1(jpeg: bytes, block: bytes) -> bytes:
    body = b"Exif\0\0" + block
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i"}


@pytest.mark.parametrize(("kind", "order"), [*itertools.product(CODES, "<>")])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_an_orientation_of_any_integer_type_is_heeded(kind: int, order: str, orientation: int) -> None:
    block = exif(kind, struct.pack(order + CODES[kind], orientation), order=order)
    assert probe(with_app1(encode(picture(), "JPEG"), block)).orientation == orientation


def test_a_block_that_is_cut_after_its_orientation_is_heeded() -> None:
    assert probe(with_app1(encode(picture(), "JPEG"), exif(3, struct.pack("<H", 6), entries=9))).orientation == 6


def test_a_block_after_the_scan_is_not_heeded() -> None:
    jpeg = encode(picture(), "JPEG")
    block = b"Exif\0\0" + exif(3, struct.pack("<H", 6))
    late = jpeg[:-2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg[-2:]
    assert probe(late).orientation == 1
    assert np.array_equal(decode(late).image, decode(jpeg).image)


@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0"])
def test_exif_of_a_png_may_have_the_prefix_of_jpegs(prefix: bytes) -> None:
    data = encode(stored_for(6, picture()), "PNG")
    chunk = png_chunk(b"eXIf", prefix + exif(3, struct.pack("<H", 6)))
    assert gap(data[:33] + chunk + data[33:], picture()) == 0


# ---- JPEG and PNG that end early ------------------------------------------------------------------

JPEGS: dict[str, Callable[[], bytes]] = {
    "RGB": lambda: encode(photo_large(), "JPEG", quality=90),
    "progressive": lambda: encode(photo_large(), "JPEG", quality=90, progressive=True),
    "grey": lambda: encode(photo_large()[..., 0], "JPEG", quality=90),
    "CMYK": lambda: encode(Image.fromarray(photo_large()).convert("CMYK"), "JPEG", quality=90),
    "restarts": lambda: encode(photo_large(), "JPEG", quality=90, restart_marker_blocks=4),
    "4:4:4": lambda: encode(photo_large(), "JPEG", quality=90, subsampling=0),
    "12 bit": lambda: coded("jpeg8", photo_large().astype(np.uint16) * 16, bitspersample=12),
}


def photo_large() -> NDArray[np.uint8]:
    return np.kron(photo(), np.ones((4, 4, 1), np.uint8))


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_that_lacks_only_its_end_marker_is_read(name: str) -> None:
    data = JPEGS[name]()
    assert data.endswith(b"\xff\xd9")
    assert gap(data[:-2], decode(data).image) == 0
    assert gap(data[:-1], decode(data).image) == 0


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"])
def test_a_jpeg_whose_scan_ends_early_is_refused(name: str, end: bytes) -> None:
    data = JPEGS[name]()
    last_scan = data.rindex(b"\xff\xda")
    if name == "progressive" and end:
        pytest.skip("what is missing of the last scan is the last bit of some coefficients, and libjpeg tells no one")
    for share in (0.2, 0.5, 0.9):
        cut = last_scan + int((len(data) - last_scan) * share)
        with pytest.raises(ImageError, match="truncated"):
            decode(data[:cut] + end)


def test_a_progressive_jpeg_that_lacks_scans_is_refused() -> None:
    data = JPEGS["progressive"]()
    second = data.index(b"\xff\xc4", data.index(b"\xff\xda"))
    with pytest.raises(ImageError, match="lacks scans"):
        decode(data[:second] + data[-2:])


@pytest.mark.parametrize(
    ("mode", "interlaced"), [*itertools.product(["L", "LA", "RGB", "RGBA", "P", "1"], [False, True])]
)
def test_a_png_whose_pixels_end_early_is_refused(mode: str, interlaced: bool) -> None:
    if interlaced:
        if mode in ("P", "1"):
            pytest.skip("the writer of interlaced files has no palette")
        channels = {"L": 0, "LA": 4, "RGB": 2, "RGBA": 6}[mode]
        samples = np.atleast_3d(np.asarray(Image.fromarray(photo()).convert(mode))).astype(np.uint16)
        data = png(samples, 8, channels, interlaced=True)
    else:
        data = converted(mode, "PNG")
    chunks, at, packed = [], 8, b""
    while at < len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        body = data[at + 8 : at + 8 + length]
        if name == b"IDAT":
            packed += body
        else:
            chunks.append((name, body))
        at += 12 + length
    rows = zlib.decompress(packed)
    chunks.insert(-1, (b"IDAT", zlib.compress(rows[: len(rows) // 2])))
    with pytest.raises(ImageError):
        decode(data[:8] + b"".join(png_chunk(*chunk) for chunk in chunks))


# ---- 10 to 14 bits in 16 --------------------------------------------------------------------------


def grey_png(samples: NDArray[np.uint16]) -> bytes:
    return cv2.imencode(".png", samples)[1].tobytes()


def grey_tiff(samples: NDArray[np.uint16]) -> bytes:
    return encode(Image.fromarray(samples), "TIFF")


@pytest.mark.parametrize("write", [grey_png, grey_tiff])
@pytest.mark.parametrize("bits", [8, 10, 12, 14])
def test_fewer_bits_in_16_are_scaled_and_told(write: Callable[[NDArray[np.uint16]], bytes], bits: int) -> None:
    grey = photo()[..., 0]
    samples = np.rint(grey * (((1 << bits) - 1) / 255)).astype(np.uint16)
    decoded = decode(write(samples))
    assert decoded.guessed_depth == bits
    assert np.array_equal(decoded.image[..., 1], grey)
    stored = decode(write(samples), ImageLimits(bit_depth=16))
    assert stored.guessed_depth is None
    assert np.array_equal(stored.image[..., 1], samples >> 8)
    same = decode(write(samples), ImageLimits(bit_depth=bits))
    assert same.guessed_depth is None
    assert np.array_equal(same.image, decoded.image)


@pytest.mark.parametrize("write", [grey_png, grey_tiff])
def test_a_dark_picture_of_8_bits_widened_to_16_is_not_scaled(write: Callable[[NDArray[np.uint16]], bytes]) -> None:
    dark = photo()[..., 0] // 8
    for factor in (256, 257):
        decoded = decode(write(dark.astype(np.uint16) * factor))
        assert decoded.guessed_depth is None
        assert np.array_equal(decoded.image[..., 0], dark)
    assert decode(write(np.zeros((8, 8), np.uint16))).guessed_depth is None


@pytest.mark.parametrize("write", [grey_png, grey_tiff])
def test_a_sample_beyond_the_configured_bits_is_refused(write: Callable[[NDArray[np.uint16]], bytes]) -> None:
    samples = np.full((8, 8), 4096, np.uint16)
    with pytest.raises(ImageError, match=r"4096 needs more than 12 bits \(image\.bit_depth\)"):
        decode(write(samples), ImageLimits(bit_depth=12))


def test_one_bright_pixel_makes_a_picture_of_16_bits() -> None:
    samples = photo()[..., 0].astype(np.uint16) * 16
    samples[-1, -1] = 16384
    assert decode(grey_png(samples)).guessed_depth is None
    assert np.array_equal(decode(grey_png(samples)).image[..., 0], samples >> 8)


def test_opaque_alpha_of_16_bits_says_nothing_of_the_colours() -> None:
    rgba = np.dstack([photo().astype(np.uint16) * 16, np.full(photo().shape[:2], 65535, np.uint16)])
    decoded = decode(cv2.imencode(".png", rgba[..., [2, 1, 0, 3]])[1].tobytes())
    assert decoded.guessed_depth == 12
    assert np.abs(decoded.image.astype(int) - photo()).max() <= 1


# ---- BMP ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0, 255])
def test_a_bmp_without_any_alpha_is_opaque(alpha: int) -> None:
    rgba = np.dstack([picture(), np.full(picture().shape[:2], alpha, np.uint8)])
    height, width = rgba.shape[:2]
    body = np.ascontiguousarray(rgba[::-1][..., [2, 1, 0, 3]]).tobytes()
    header = struct.pack("<IiiHHIIiiII", 124, width, height, 1, 32, 3, len(body), 0, 0, 0, 0)
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    head = header + masks + b"BGRs" + bytes(124 - len(header) - len(masks) - 4)
    data = b"BM" + struct.pack("<IHHI", 14 + len(head) + len(body), 0, 0, 14 + len(head)) + head + body
    assert gap(data, picture()) == 0


def test_half_transparent_pictures_are_white_in_all_formats() -> None:
    flat = np.asarray(Image.fromarray(picture()))
    for kind, options in (("AVIF", {"quality": 100, "subsampling": "4:4:4"}), ("JPEG2000", {}), ("TIFF", {})):
        image = decode(encode(half_transparent(), kind, **options)).image.astype(int)
        assert np.abs(image[:, :30] - 255).max() <= 4
        assert np.abs(image[:, 34:] - flat[:, 34:]).max() <= 6
    assert decode(oriented(3, "TIFF")).orientation == 3
