"""Whatever the bytes: an upright RGB picture, or an ImageError that says why."""

from __future__ import annotations

import contextlib
import io
import pickle
import random
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from hostile import (
    HEIGHT,
    WIDTH,
    converted,
    encode,
    half_transparent,
    hostile_files,
    oriented,
    picture,
    png_chunk,
    sixteen_bit,
    stored_for,
    with_broken_exif,
)
from hypothesis import given
from hypothesis import strategies as st
from mutants import mutant
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps
from properties import tried

from segray.errors import ImageError
from segray.imaging import codecs
from segray.imaging.decode import decode, load
from segray.imaging.headers import Header, admit, probe
from segray.limits import ImageLimits

FILES = hostile_files()
WHOLE = [data for data, expected in FILES.values() if expected == "ok" and len(data) < 100_000]
ORIENTATIONS = range(1, 9)
LOSSLESS = (
    ("PNG", {}),
    ("WEBP", {"lossless": True}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "tiff_adobe_deflate", "big_tiff": True}),
)


def gap(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> int:
    """The largest difference of any sample; the shapes must agree."""
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b).max())


def reason(data: bytes, **limits: int) -> str:
    with pytest.raises(ImageError) as caught:
        decode(data, ImageLimits(**limits))
    assert caught.value.stage == "decode"
    return caught.value.what


@pytest.mark.parametrize("name", [name for name, (_, expected) in FILES.items() if expected == "ok"])
def test_odd_files_become_rgb(name: str) -> None:
    image = decode(FILES[name][0]).image
    assert image.dtype == np.uint8
    assert image.shape == ((1, 1, 3) if name == "one_pixel.png" else (HEIGHT, WIDTH, 3))
    assert image.flags.c_contiguous
    assert image.flags.writeable


@pytest.mark.parametrize("name", [name for name, (_, expected) in FILES.items() if expected == "failed"])
def test_broken_files_are_image_errors(name: str) -> None:
    assert reason(FILES[name][0])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("empty.jpg", "empty file"),
        ("html.jpg", "not an image: starts with '<html"),
        ("truncated.jpg", "truncated: the JPEG ends inside a segment"),
        ("scan_cut.jpg", "truncated: the JPEG's scan ends early"),
        ("scan_cut_without_end.jpg", "truncated: the JPEG's scan ends early, and the end marker is missing"),
        ("first_scan_only.jpg", "truncated: the JPEG lacks scans"),
        ("truncated_cmyk.jpg", "truncated"),
        ("truncated.png", "truncated: the PNG ends inside its IDAT chunk"),
        ("truncated.gif", "truncated"),
        ("truncated.bmp", "truncated"),
        ("truncated.webp", "truncated"),
        ("bad_checksum.png", "wrong checksum in its IDAT chunk"),
        ("bomb.png", "60000x60000 = 3600 MP is over the limit of 200 MP (image.max_pixels)"),
        ("frame_bomb.gif", "over the limit of 200 MP (image.max_pixels)"),
        ("scan_bomb.jpg", "159 scans, more than 100"),
        ("strip_bomb.tif", "its tag 273 has 300000 values"),
        ("float.tif", "32-bit or float"),
    ],
)
def test_reasons_can_be_acted_on(name: str, words: str) -> None:
    assert words in reason(FILES[name][0])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize(("kind", "options"), LOSSLESS, ids=str)
def test_orientation_is_undone_exactly(kind: str, options: dict[str, object], orientation: int) -> None:
    decoded = decode(oriented(orientation, kind, **options))
    assert decoded.orientation == orientation
    assert gap(decoded.image, picture()) == 0


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpegs_are_turned_as_pillow_turns_them(mode: str, orientation: int) -> None:
    stored = Image.fromarray(stored_for(orientation, picture())).convert(mode)
    data = encode(stored, "JPEG", orientation=orientation)
    theirs = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    decoded = decode(data)
    assert decoded.orientation == orientation
    assert gap(decoded.image, np.asarray(theirs)) <= 2


def test_the_header_is_told_as_stored() -> None:
    assert probe(oriented(6, "JPEG")) == Header("JPEG", HEIGHT, WIDTH, 6, plain=True)
    assert probe(oriented(6, "TIFF")) == Header("TIFF", HEIGHT, WIDTH, 6)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(orientation: int) -> None:
    decoded = decode(encode(picture(), "PNG", orientation=orientation))
    assert decoded.orientation == 1
    assert gap(decoded.image, picture()) == 0


def test_an_orientation_in_xmp_alone_is_ignored() -> None:
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    for data in (encode(picture(), "TIFF", tiffinfo={700: xmp}), encode(picture(), "WEBP", xmp=xmp)):
        assert xmp in data
        assert decode(data).image.shape == (HEIGHT, WIDTH, 3)


def test_broken_exif_costs_nothing() -> None:
    whole = encode(picture(), "JPEG")
    assert gap(decode(with_broken_exif(whole)).image, decode(whole).image) == 0
    assert decode(with_broken_exif(whole)).orientation == 1


@pytest.mark.parametrize(
    ("kind", "mode", "options"),
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "RGB", {"progressive": True}),
        ("JPEG", "RGB", {"subsampling": 0, "quality": 97}),
        ("JPEG", "RGB", {"keep_rgb": True}),
        ("JPEG", "L", {}),
        ("PNG", "RGB", {}),
    ],
    ids=str,
)
def test_opencv_and_pillow_see_the_same_picture(kind: str, mode: str, options: dict[str, object]) -> None:
    data = converted(mode, kind, **options)
    assert probe(data).plain
    assert gap(decode(data).image, np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))) <= 2


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}], ids=str)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_sound_jpeg_has_the_pixels_that_opencv_decodes(mode: str, options: dict[str, object]) -> None:
    data = converted(mode, "JPEG", **options)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    sound = codecs.decode_sound_jpeg(data, (HEIGHT, WIDTH))
    assert sound is not None
    np.testing.assert_array_equal(sound, expected)


def test_a_jpeg_with_any_fault_is_not_sound() -> None:
    data = converted("RGB", "JPEG")
    assert codecs.decode_sound_jpeg(data[: len(data) * 3 // 4] + codecs.END_OF_JPEG, (HEIGHT, WIDTH)) is None
    assert codecs.decode_sound_jpeg(data, (HEIGHT, WIDTH - 1)) is None
    assert codecs.decode_sound_jpeg(data[:-2] + bytes(range(1, 9)) + data[-2:], (HEIGHT, WIDTH)) is None


@pytest.mark.parametrize("name", ["cmyk.jpg", "rgba.png", "palette.png", "16_bit_rgb.png"])
def test_odd_files_are_left_to_pillow(name: str) -> None:
    assert not probe(FILES[name][0]).plain


@pytest.mark.parametrize(("kind", "mode"), [("PNG", "RGBA"), ("PNG", "LA"), ("WEBP", "RGBA"), ("TIFF", "RGBA")])
def test_transparent_pixels_are_white(kind: str, mode: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    image = decode(encode(half_transparent(mode), kind, **options)).image
    opaque = np.asarray(Image.fromarray(picture()).convert(mode.removesuffix("A")).convert("RGB"))
    assert (image[:, : WIDTH // 2] == 255).all()
    assert gap(image[:, WIDTH // 2 :], opaque[:, WIDTH // 2 :]) == 0


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(kind: str) -> None:
    palette = Image.fromarray(picture()).quantize(8)
    image = decode(encode(palette, kind, transparency=3)).image
    clear = np.asarray(palette) == 3
    assert (image[clear] == 255).all()
    assert gap(image[~clear], np.asarray(palette.convert("RGB"))[~clear]) == 0


@pytest.mark.parametrize("kind", [".png", ".tiff"])
def test_sixteen_bits_keep_their_upper_byte(kind: str) -> None:
    assert gap(decode(sixteen_bit(kind, 3)).image, picture()) == 0
    assert gap(decode(sixteen_bit(kind, 1)).image, np.repeat(picture()[..., :1], 3, axis=2)) == 0


def test_adobe_cmyk_is_not_a_negative() -> None:
    image = decode(converted("CMYK", "JPEG", quality=95)).image
    assert np.abs(image.astype(int) - picture()).mean() < 3


def test_only_the_first_frame_is_read() -> None:
    for name in ("animated.gif", "animated.webp", "two_pictures.mpo"):
        assert np.abs(decode(FILES[name][0]).image.astype(int) - picture()).mean() < 8


@pytest.mark.parametrize(
    "name",
    ["plain.jpg", "progressive.jpg", "cmyk.jpg", "plain.png", "palette.png", "animated.gif", "plain.bmp", "lossy.webp",
     "plain.tif", "lzw.tif"],
)  # fmt: skip
def test_a_cut_file_fails_or_is_still_whole(name: str) -> None:
    data = FILES[name][0]
    whole = decode(data).image
    for length in range(0, len(data), max(1, len(data) // 1000)):
        try:
            assert gap(decode(data[:length]).image, whole) == 0
        except ImageError:
            continue
        assert not name.endswith(".png"), f"{length} of {len(data)} bytes were taken for the whole file"


def test_limits_are_inclusive_and_named() -> None:
    data = encode(picture(), "PNG")
    fits = ImageLimits(max_bytes=len(data), max_pixels=HEIGHT * WIDTH, max_side_px=max(HEIGHT, WIDTH))
    assert decode(data, fits).image.shape == (HEIGHT, WIDTH, 3)
    assert "image.max_bytes" in reason(data, max_bytes=len(data) - 1)
    assert "image.max_pixels" in reason(data, max_pixels=HEIGHT * WIDTH - 1)
    assert "image.max_side_px" in reason(data, max_side_px=max(HEIGHT, WIDTH) - 1)


def test_files_of_endless_parts_are_refused() -> None:
    jpeg = encode(picture(), "JPEG")
    assert "segments" in reason(jpeg[:2] + b"\xff\xfe\0\2" * 200_001 + jpeg[2:])
    png = encode(picture(), "PNG")
    assert "chunks" in reason(png[:33] + png_chunk(b"tEXt", b"") * 200_001 + png[33:])
    gif = b"GIF89a" + struct.pack("<HHBBB", WIDTH, HEIGHT, 0, 0, 0)
    assert "blocks" in reason(gif + b"!\xfe\0" * 200_001)
    assert "sub-blocks" in reason(gif + b"!\xfe" + b"\1x" * 200_001)


_UNDER_A_CEILING = """
import resource, sys
from segray.errors import ImageError
from segray.imaging.decode import decode
sys.path.insert(0, sys.argv[1])
from hostile import hostile_files
swelling = ("bomb", "swells", "many_values")
files = {name: data for name, (data, _) in hostile_files().items() if any(each in name for each in swelling)}
pages = int(open("/proc/self/statm").read().split()[0])
ceiling = pages * resource.getpagesize() + 64 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (ceiling, ceiling))
# Not getrusage: a child inherits its parent's peak there.
peak = lambda: next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
for name, data in files.items():
    try:
        decode(data)
    except ImageError as error:
        assert "memory" not in error.what, (name, error.what)
        assert "bomb" in name, (name, error.what)
    else:
        assert "bomb" not in name, name + " was decoded"
grown = peak() - before
assert grown < 32 * 1024, f"{grown} KiB"
print(len(files))
"""


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and sets an address space limit")
def test_bombs_allocate_nothing(request: pytest.FixtureRequest) -> None:
    command = [sys.executable, "-c", _UNDER_A_CEILING, str(request.path.parents[1] / "support")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 14


def test_threads_do_not_disturb_each_other_nor_pillows_limit_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name, (_, expected) in FILES.items() if expected == "ok"] * 8
    alone = {name: decode(FILES[name][0]).image for name in set(names)}
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)  # Limits stand in for it.
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda name: decode(FILES[name][0]).image, names))
    assert all(gap(image, alone[name]) == 0 for name, image in zip(names, together, strict=True))
    with pytest.raises(ImageError):
        decode(FILES["truncated.tif"][0])
    assert Image.MAX_IMAGE_PIXELS == 1
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_an_image_error_travels_between_processes() -> None:
    with pytest.raises(ImageError) as caught:
        decode(FILES["truncated.tif"][0])
    assert pickle.loads(pickle.dumps(caught.value)).what == caught.value.what


@pytest.mark.parametrize("name", ["text_that_swells.png", "profile_that_swells.png", "animation_out_of_order.png"])
def test_of_a_png_only_what_makes_pixels_is_decoded(name: str) -> None:
    header = probe(FILES[name][0])
    assert header.plain
    assert gap(decode(FILES[name][0]).image, picture()) == 0
    for bits in (sixteen_bit(".png", 3), converted("P", "PNG")):
        swollen = bits[:33] + png_chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(bytes(8_000_000))) + bits[33:]
        assert gap(decode(swollen).image, decode(bits).image) == 0


def decode_or_refuse(data: bytes) -> None:
    """What comes is a small RGB picture or an ImageError, and nothing else."""
    with contextlib.suppress(ImageError):
        image = decode(data, ImageLimits(max_pixels=1_000_000)).image
        assert image.dtype == np.uint8
        assert image.shape[2:] == (3,)
        assert image.size <= 3_000_000


MAGICS = (b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"BM", b"II*\0", b"MM\0+", b"RIFF\0\0\0\0WEBPVP8 ")


@tried(300)
@given(st.sampled_from(MAGICS), st.binary(max_size=400))
def test_random_bytes_are_refused_or_decoded(magic: bytes, noise: bytes) -> None:
    decode_or_refuse(magic + noise)


@tried(600)
@given(
    st.sampled_from(WHOLE),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    st.floats(0, 1),
    st.floats(0, 1),
    st.sampled_from([data for data, _ in FILES.values() if len(data) < 100_000]),
    st.sampled_from(["whole", "cut", "splice"]),
)
def test_damaged_files_are_refused_or_decoded(
    data: bytes, flips: list[tuple[float, int]], start: float, stop: float, other: bytes, how: str
) -> None:
    damaged = bytearray(data)
    for place, value in flips:
        damaged[int(place * (len(data) - 1))] = value
    first, last = int(min(start, stop) * len(data)), int(max(start, stop) * len(data))
    insert = {"whole": damaged[first:last], "cut": b"", "splice": other[: len(other) // 2]}[how]
    decode_or_refuse(bytes(damaged[:first] + insert + damaged[last:]))


@tried(400)
@given(st.sampled_from(WHOLE), st.integers(0, 2**32))
def test_files_put_together_wrongly_are_refused_or_decoded(data: bytes, seed: int) -> None:
    decode_or_refuse(mutant(data, random.Random(seed)))


@tried(200)
@given(st.binary(max_size=120), st.sampled_from([b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b""]))
def test_any_exif_is_harmless(noise: bytes, head: bytes) -> None:
    body = b"Exif\0\0" + head + noise
    jpeg = encode(picture(), "JPEG")
    decoded = decode(jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:])
    assert decoded.orientation in ORIENTATIONS


@pytest.mark.integration
@pytest.mark.parametrize(("orientation", "size_hw"), [(1, (1203, 1604)), (6, (1604, 1203))])
def test_where_less_will_do_a_jpeg_is_decoded_smaller_and_tells_its_full_size(
    orientation: int, size_hw: tuple[int, int]
) -> None:
    gradient = np.linspace(0, 255, 1604, dtype=np.uint8)[None, :, None].repeat(1203, 0).repeat(3, 2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(gradient).save(file, "JPEG", quality=95, exif=exif)
    data = file.getvalue()
    header = admit(data)
    full = load(data, header)
    for least, by in ((None, 1), ((700, 700), 1), ((550, 550), 2), ((300, 300), 4), ((150, 150), 8), ((10, 10), 8)):
        decoded = load(data, header, least_hw=least)
        assert decoded.size_hw == full.size_hw == header.size_hw == size_hw
        assert decoded.image.shape[:2] == tuple(-(-side // by) for side in size_hw)
        small = cv2.resize(full.image, decoded.image.shape[1::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(decoded.image.astype(int) - small).max() <= 3


def test_only_jpegs_are_decoded_smaller() -> None:
    file = io.BytesIO()
    Image.new("RGB", (800, 600), "red").save(file, "PNG")
    data = file.getvalue()
    assert load(data, admit(data), least_hw=(100, 100)).image.shape == (600, 800, 3)
