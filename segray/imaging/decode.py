"""Decoding of an image file's bytes to upright RGB pixels.

This module knows the decoders and how odd files become RGB. It keeps no state, so any number of threads may decode at
once; both libraries release the GIL while they decode.

OpenCV is faster and decodes plain JPEG and PNG files; Pillow decodes all others. For a file that both can decode, both
give the same picture. Profiles, texts and thumbnails reach neither: they may unpack to far more than the file's size.
Odd files become RGB of 8 bits per channel by these rules:

- Alpha and transparent colours are composited over white, as a viewer on a white page shows them.
- 16 bits per channel keep their upper byte (value >> 8). 32-bit and float samples are refused: their range is unknown.
- Grey, 1-bit and palette images are expanded. CMYK and YCCK JPEGs are read as Adobe writes them (inverted).
- Colour profiles, gamma and XMP are ignored. Of animations and multi-page files the first frame is read.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from segray.errors import ImageError
from segray.imaging.headers import ORIENTATION_TAG, Header, admit, check_size, without_metadata
from segray.imaging.opencv import cv2
from segray.limits import DEFAULT_LIMITS, ImageLimits

Pixels = NDArray[np.uint8]
_BAND_PIXELS = 2**18
_PILLOW_BLOCK_BYTES = 64 * 2**20
# EXIF, GPS and interoperability directories, which Pillow reads after the pixels.
_DIRECTORIES = (34665, 34853, 40965)


@dataclass(frozen=True, eq=False)
class Decoded:
    """A decoded picture.

    image: (height, width, 3) uint8 RGB, C-contiguous, upright. orientation: EXIF 1..8 of the file, already applied.
    size_hw: height and width of the full picture; `image` is smaller if `load` reduced the picture.
    """

    image: Pixels
    orientation: int
    size_hw: tuple[int, int]


def decode(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Decoded:
    """Decode the bytes of an image file to an upright RGB picture.

    Raise ImageError(stage="decode") for bytes that cannot be decoded, and no other error.
    The limits are checked before pixels are allocated.
    """
    return load(data, admit(data, limits), limits)


def load(
    data: bytes, header: Header, limits: ImageLimits = DEFAULT_LIMITS, least_hw: tuple[int, int] | None = None
) -> Decoded:
    """Decode an admitted file; see `decode`.

    A JPEG of at least twice the size least_hw is decoded at 1/2, 1/4 or 1/8. The result is no smaller than least_hw.
    libjpeg then skips most of the work. The pixels differ from those of a resize.

    Args:
        data: Bytes of the file.
        header: The file's header, from `headers.admit`.
        limits: Limits that also hold for a second size that the file states.
        least_hw: Smallest useful height and width of a JPEG; None for the full size.

    Raises:
        ImageError: The bytes cannot be decoded.
    """
    reduction = _reduction(header, least_hw)
    pixels = _decode_by_opencv(data, header, reduction) if header.plain else None
    if pixels is None:
        pixels, reduction = _decode_by_pillow(data, header, limits), 1
    turn = 1 if header.format == "TIFF" else header.orientation  # Pillow turns TIFFs upright itself.
    upright = _upright(pixels, turn)
    return Decoded(upright, header.orientation, upright.shape[:2] if reduction == 1 else header.size_hw)


def peak_bytes(header: Header, least_hw: tuple[int, int] | None = None) -> int:
    """Return the memory in bytes that `load` needs at its peak, beside the file."""
    return header.decoding_bytes(_reduction(header, least_hw))


def _reduction(header: Header, least_hw: tuple[int, int] | None) -> int:
    if least_hw is None or header.format != "JPEG":
        return 1
    height, width = header.size_hw
    return next((by for by in (8, 4, 2) if height >= by * least_hw[0] and width >= by * least_hw[1]), 1)


@contextmanager
def freed_pixels_returned() -> Iterator[None]:
    """Let this process return the pixels of large pictures to the system, for the block.

    Pillow allocates pictures in blocks of 16 MB. glibc raises its threshold for mappings to the size of a block that is
    freed, up to 32 MB, and each thread's arena then keeps freed blocks. A block over 32 MB always has its own mapping.
    A picture that is smaller than a block takes no more than the picture needs.
    """
    allocator: Any = Image.core  # type: ignore[attr-defined]  # Documented under "Block allocator".
    block_bytes = allocator.get_block_size()
    allocator.set_block_size(_PILLOW_BLOCK_BYTES)
    try:
        yield
    finally:
        allocator.set_block_size(block_bytes)


class _PillowLimitLifted:
    """A context that lifts Pillow's own pixel limit while a decode runs, in any number of threads.

    Pillow has one limit for the process. Each file has passed ImageLimits before Pillow sees the file. The last decode
    that runs restores Pillow's limit.
    """

    def __init__(self) -> None:
        self._lock, self._decodes = threading.Lock(), 0
        self._before: int | None = None

    def __enter__(self) -> None:
        with self._lock:
            if not self._decodes:
                self._before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._decodes += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._decodes -= 1
            if not self._decodes:
                Image.MAX_IMAGE_PIXELS = self._before


_pillow_limit_lifted = _PillowLimitLifted()
# Pillow's readers by format. Image.open would try the readers of seventy formats.
_READERS: dict[str, Callable[[io.BytesIO], ImageFile]] = {
    "BMP": BmpImageFile,
    "GIF": GifImageFile,
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "TIFF": TiffImageFile,
    "WEBP": WebPImageFile,
}
_REDUCED = {
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def _decode_by_opencv(data: bytes, header: Header, reduction: int = 1) -> Pixels | None:
    """Return the stored pixels in RGB, or None if OpenCV fails. Pillow then decodes or gives a reason."""
    if header.format == "PNG":  # OpenCV unpacks a PNG's profile, and skips a JPEG's.
        data = without_metadata(data, header.format)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED[reduction] | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    expected = tuple(-(-side // reduction) for side in (header.height, header.width))
    if image is None or image.shape != (*expected, 3):
        return None
    return np.ascontiguousarray(image if reduction == 1 else image[..., ::-1], np.uint8)


def _decode_by_pillow(data: bytes, header: Header, limits: ImageLimits) -> Pixels:
    """Return the stored pixels in RGB; a TIFF's are upright. Raise ImageError with Pillow's reason."""
    try:
        with _pillow_limit_lifted, _READERS[header.format](io.BytesIO(without_metadata(data, header.format))) as image:
            check_size(*image.size, limits)  # A file may state two sizes; Pillow allocates this one.
            if header.format == "TIFF":
                exif = image.getexif()
                for directory in _DIRECTORIES:
                    exif.pop(directory, None)
                exif[ORIENTATION_TAG] = header.orientation  # Pillow turns the picture by this value, not by XMP's.
            image.load()
            return _to_rgb(image)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(
            f"{header.format} of {header.width}x{header.height}: not enough memory to decode it"
        ) from error
    except Exception as error:  # Pillow's readers raise many types for broken files: OSError, KeyError, ...
        raise ImageError(f"{header.format} cannot be decoded: {error or type(error).__name__}") from error


def _to_rgb(image: Image.Image) -> Pixels:
    """Convert any of Pillow's modes to (height, width, 3) uint8. The docstring of this module has the rules.

    The work is done in bands of rows. Pillow's conversions hold up to four further copies of what they convert.
    """
    if image.mode in ("I", "F"):
        raise ImageError("32-bit or float samples: which value is white is unknown", hint="convert the image to 8 bits")
    rgb = np.empty((image.height, image.width, 3), np.uint8)
    band_rows = max(1, _BAND_PIXELS // max(1, image.width))
    for top in range(0, image.height, band_rows):
        bottom = min(top + band_rows, image.height)
        rgb[top:bottom] = _band_to_rgb(image.crop((0, top, image.width, bottom)))
    return rgb


def _band_to_rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I;16"):
        return (np.asarray(image) >> 8).astype(np.uint8)[..., None]
    if image.has_transparency_data:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(rgba, mask=rgba)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _upright(image: Pixels, orientation: int) -> Pixels:
    """Return the stored pixels turned upright, by EXIF orientation (CIPA DC-008, 4.6.5.1.6)."""
    return np.asarray(_TURNS[orientation](image), np.uint8)


_TURNS: dict[int, Callable[[Pixels], cv2.typing.MatLike]] = {
    1: lambda image: image,
    2: lambda image: cv2.flip(image, 1),
    3: lambda image: cv2.rotate(image, cv2.ROTATE_180),
    4: lambda image: cv2.flip(image, 0),
    5: cv2.transpose,
    6: lambda image: cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE),
    7: lambda image: cv2.transpose(cv2.rotate(image, cv2.ROTATE_180)),
    8: lambda image: cv2.rotate(image, cv2.ROTATE_90_COUNTERCLOCKWISE),
}
