"""Decoding of an image file's bytes to upright RGB pixels.

This module knows the decoders and how odd files become RGB. Any number of threads may decode at once. All libraries
release the GIL while they decode.

simplejpeg decodes sound JPEG files, OpenCV damaged ones and plain PNG files, imagecodecs other PNGs and rare kinds of
JPEG, tifffile TIFFs, Pillow all other files. Profiles, texts and thumbnails reach none of them: they may unpack to far
more than the file's size.
Odd files become RGB of 8 bits per channel by these rules:

- Alpha and transparent colours are composited over white, as a viewer on a white page shows them. A BMP whose alpha is
  0 everywhere is opaque.
- 9 to 16 bits per channel keep their upper 8 bits. A TIFF's BitsPerSample and MaxSampleValue say which value is white.
- 16-bit samples may use 8 to 14 bits. `ImageLimits.bit_depth` says how many; see `samples.Range`.
- Signed, 32-bit and float samples are refused: which value is black or white is unknown.
- Grey, 1-bit and palette images are expanded. CMYK and YCCK JPEGs are read as Adobe writes them (inverted).
- Colour profiles, gamma and XMP are ignored. Of animations and multi-page files the first frame is read.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeGuard

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.WebPImagePlugin import WebPImageFile

from segray._system import host_process, library_messages
from segray.errors import ImageError
from segray.imaging import codecs, directory, samples, tiff
from segray.imaging.headers import (
    EXIF_SIGNATURE,
    Header,
    JpegFrame,
    admit,
    block_size,
    check_size,
    png_without_key,
    without_metadata,
)
from segray.imaging.opencv import cv2
from segray.limits import DEFAULT_LIMITS, ImageLimits

Pixels = NDArray[np.uint8]
PillowImage = Image.Image
# EXIF tag of the orientation.
_ORIENTATION_TAG = 0x0112
# Bytes that a decoder reads ahead of the last pixel. In entropy-coded data 255 and 0 are eight ones, which no code is.
_AHEAD = np.tile(np.array([255, 0], np.uint8), 8)
# What may follow the last scan of a JPEG without an end marker. A scan that is complete decodes to the same with each.
_FILLINGS = (b"\xff\0", b"\0", b"\xaa", b"\x55")
_FILLING_BYTES = 64
# Buffers that no decode uses, at most as many as decodes have run at a time.
_BUFFER_BYTES = 4 * 2**20
_buffers: list[Pixels] = []


@dataclass(frozen=True, eq=False)
class Decoded:
    """A decoded picture.

    image: (height, width, 3) uint8 RGB, C-contiguous, upright. orientation: EXIF 1..8 of the file, already applied.
    size_hw: height and width of the full picture; `image` is smaller if `load` reduced the picture. guessed_depth: bits
    that 16-bit samples were taken to use because of their values; None if the file or a setting says.
    """

    image: Pixels
    orientation: int
    size_hw: tuple[int, int]
    guessed_depth: int | None = None


class _Stored(NamedTuple):
    """Pixels as stored. orientation: that of the header, unless the decoder knows better. guessed_depth: as in Decoded.

    reduction: 1, 2, 4 or 8, by which the sides are shorter than the header's.
    """

    pixels: Pixels
    orientation: int
    guessed_depth: int | None = None
    reduction: int = 1


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
    try:
        with library_messages.dropped:  # The error or the row names what is wrong with the file.
            stored = _stored(data, header, limits, _reduction(header, least_hw))
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(
            f"{header.format} of {header.width}x{header.height}: not enough memory to decode it"
        ) from error
    except Exception as error:  # Decoders raise many types for broken files: OSError, KeyError, ...
        raise ImageError(f"{header.format} cannot be decoded: {error or type(error).__name__}") from error
    upright = _upright(stored.pixels, stored.orientation)
    size_hw = upright.shape[:2] if stored.reduction == 1 else header.size_hw
    return Decoded(upright, stored.orientation, size_hw, stored.guessed_depth)


def is_pillow(image: object) -> TypeGuard[Image.Image]:
    """Return whether a value is an image of Pillow."""
    return isinstance(image, Image.Image)


def from_pillow(image: Image.Image, limits: ImageLimits = DEFAULT_LIMITS) -> Decoded:
    """Return an image of Pillow as upright RGB, by the rules of this module. The image is not changed.

    Raise ImageError for pixels that cannot be read, and for an image over the limits.
    """
    check_size(*image.size, limits)
    try:
        turn = image.getexif().get(_ORIENTATION_TAG, 1)
        if image.mode.startswith("I;16"):
            stored = _any_to_rgb(np.asarray(image), None, limits)
        else:
            stored = _Stored(_to_rgb(image), 1)
    except (OSError, SyntaxError, ValueError) as error:
        # Pillow reads a file's pixels on first use, of a closed file too, and does not convert each mode.
        found, hint = f"mode {image.mode}: {error}", 'convert or load the image first: image.convert("RGB")'
        raise ImageError("the Pillow image cannot be decoded", found=found, hint=hint) from error
    upright = _upright(stored.pixels, turn if turn in _TURNS else 1)
    return Decoded(upright, turn if turn in _TURNS else 1, upright.shape[:2], stored.guessed_depth)


def peak_bytes(header: Header, least_hw: tuple[int, int] | None = None) -> int:
    """Return the memory in bytes that `load` needs at its peak, beside the file."""
    return header.decoding_bytes(_reduction(header, least_hw))


def _reduction(header: Header, least_hw: tuple[int, int] | None) -> int:
    if least_hw is None or header.format != "JPEG":
        return 1
    height, width = header.size_hw
    return next((by for by in (8, 4, 2) if height >= by * least_hw[0] and width >= by * least_hw[1]), 1)


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
library_messages.leave_to_handlers("PIL")
# Pillow's readers by format. Image.open would try the readers of seventy formats.
_READERS: dict[str, Callable[[io.BytesIO], ImageFile]] = {
    "AVIF": lambda file: _avif_file(file),
    "BMP": BmpImageFile,
    "GIF": GifImageFile,
    "HEIF": lambda file: _heif_file(file),
    "JP2": Jpeg2KImageFile,
    "JPEG": JpegImageFile,
    "WEBP": WebPImageFile,
}
_REDUCED = {
    1: cv2.IMREAD_COLOR_RGB,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def _stored(data: bytes, header: Header, limits: ImageLimits, reduction: int) -> _Stored:
    """Return the stored pixels in RGB. Raise any error of the format's decoder."""
    if header.tiff is not None:
        picture = tiff.decode(data, header.tiff, block_size, limits.samples_depth)
        return _Stored(picture.pixels, header.orientation, picture.guessed_depth)
    if header.png is not None:
        return _decode_png(data, header, limits)
    if header.jpeg is not None:
        return _decode_jpeg(data, header, header.jpeg, limits, reduction)
    if header.format == "JXL":
        return _any_to_rgb(codecs.decode_jpeg_xl(data), None, limits)
    return _decode_by_pillow(data, header, limits)


# ---- JPEG -----------------------------------------------------------------------------------------


def _decode_jpeg(data: bytes, header: Header, frame: JpegFrame, limits: ImageLimits, reduction: int) -> _Stored:
    if header.format == "JPEGLS":
        return _any_to_rgb(codecs.decode_jpeg_ls(data), frame.bits, limits, header.orientation)
    if frame.is_rare:
        stored = _same_with_any_filling(data, frame, codecs.decode_jpeg)
        return _any_to_rgb(stored, frame.bits, limits, header.orientation)
    if header.plain and frame.has_end and reduction == 1:
        sound = codecs.decode_sound_jpeg(data, header.size_hw)
        if sound is not None:
            return _Stored(sound, header.orientation)
    pixels, reduction = _whole_jpeg(data, header, frame, limits, reduction)
    return _Stored(pixels, header.orientation, reduction=reduction)


def _whole_jpeg(
    data: bytes, header: Header, frame: JpegFrame, limits: ImageLimits, reduction: int
) -> tuple[Pixels, int]:
    """Return the pixels of a JPEG, and the reduction that was possible. Raise ImageError for a scan that ends early.

    libjpeg takes an end marker inside a scan for the end of the picture, and what is missing is grey. Without a marker,
    libjpeg asks for more bytes, and both OpenCV and Pillow then give up.
    """
    if frame.has_end and frame.scans > 1:
        return _jpeg_pixels(data, header, limits, reduction)
    if frame.has_end:
        buffer = _taken_buffer(frame.scan_end + len(_AHEAD))
        try:
            file = buffer[: frame.scan_end + len(_AHEAD)]
            file[: frame.scan_end] = np.frombuffer(data, np.uint8, frame.scan_end)
            file[frame.scan_end :] = _AHEAD
            return _jpeg_pixels(file, header, limits, reduction)
        except OSError as error:
            raise ImageError("truncated: the JPEG's scan ends early") from error
        finally:
            if buffer.size == _BUFFER_BYTES:
                _buffers.append(buffer)
    pixels = _same_with_any_filling(data, frame, lambda data: _jpeg_pixels(data, header, limits, 1)[0])
    return pixels, 1


def _taken_buffer(size: int) -> Pixels:
    """Return a buffer of at least this many bytes for a copy of a file.

    A file of a usual size gets a buffer that decodes have used before. New memory would cost more than the copy.
    """
    if size > _BUFFER_BYTES:
        return np.empty(size, np.uint8)
    try:
        return _buffers.pop()
    except IndexError:
        return np.empty(_BUFFER_BYTES, np.uint8)


def _same_with_any_filling(data: bytes, frame: JpegFrame, decode: Callable[[bytes], NDArray[Any]]) -> NDArray[Any]:
    """Return the pixels of a JPEG whose decoder takes a scan that ends early for the whole.

    Raise ImageError if the pixels change with bytes that follow the scan.
    """
    scans = data[: frame.scan_end].rstrip(b"\xff")
    whole: NDArray[Any] | None = None
    for filling in _FILLINGS:
        pixels = decode(scans + (filling * _FILLING_BYTES)[:_FILLING_BYTES] + codecs.END_OF_JPEG)
        if whole is not None and not np.array_equal(whole, pixels):
            missing = "" if frame.has_end else ", and the end marker is missing"
            raise ImageError(f"truncated: the JPEG's scan ends early{missing}")
        whole = pixels
    assert whole is not None
    return whole


def _jpeg_pixels(data: bytes | Pixels, header: Header, limits: ImageLimits, reduction: int) -> tuple[Pixels, int]:
    pixels = _decode_by_opencv(data, header, reduction) if header.plain else None
    return (_decode_by_pillow(bytes(data), header, limits).pixels, 1) if pixels is None else (pixels, reduction)


def _decode_by_opencv(data: bytes | Pixels, header: Header, reduction: int = 1) -> Pixels | None:
    """Return the stored pixels in RGB, or None if OpenCV fails. Another decoder then decodes or gives a reason."""
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), _REDUCED[reduction] | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error:
        return None
    if image is None or image.shape != (-(-header.height // reduction), -(-header.width // reduction), 3):
        return None
    return np.ascontiguousarray(image if reduction == 1 else image[..., ::-1], np.uint8)


# ---- PNG ------------------------------------------------------------------------------------------


def _decode_png(data: bytes, header: Header, limits: ImageLimits) -> _Stored:
    kind = header.png
    assert kind is not None
    if header.plain:  # OpenCV unpacks a PNG's profile.
        pixels = _decode_by_opencv(without_metadata(data, header.format), header)
        if pixels is not None:
            return _Stored(pixels, header.orientation)
    data = png_without_key(data) if kind.transparent else without_metadata(data, header.format)
    stored = _interlaced_png(data) if kind.interlaced else codecs.decode_png(data)
    bits, guessed = _depth_of(stored, 8 if kind.bits < samples.FULL_DEPTH else kind.bits, limits)
    white, key = (1 << bits) - 1, _key(kind.transparent, kind.bits)
    rgb = samples.converted(header.height, header.width, lambda rows: _array_to_rgb(stored[rows], white, key))
    return _Stored(rgb, header.orientation, guessed)


def _interlaced_png(data: bytes) -> NDArray[Any]:
    """Return the samples of an interlaced PNG, by OpenCV. In imagecodecs, libpng writes a warning for each file."""
    stored = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if stored is None:
        return codecs.decode_png(data)
    if stored.ndim == 3:
        stored = cv2.cvtColor(stored, cv2.COLOR_BGR2RGB if stored.shape[2] == 3 else cv2.COLOR_BGRA2RGBA, dst=stored)
    return np.asarray(stored)


def _key(transparent: tuple[int, ...], bits: int) -> NDArray[Any] | None:
    """Return the transparent colour as samples; libpng widens fewer than 8 bits of grey to 8."""
    return np.array(transparent) * (255 // ((1 << bits) - 1) if bits < 8 else 1) if transparent else None


def _depth_of(stored: NDArray[Any], bits: int, limits: ImageLimits) -> tuple[int, int | None]:
    """Return the bits that samples use, and the same if they are guessed by the samples.

    bits: bits that the file states. 16 is what writers state for cameras of 10 to 14 bits too.
    """
    if bits < samples.FULL_DEPTH:
        return bits, None
    colours = stored.shape[2] - 1 + stored.shape[2] % 2 if stored.ndim == 3 else 1
    bands = (stored[rows] for rows in samples.bands(*stored.shape[:2]))
    parts = (band if band.ndim == 2 else band[..., :colours] for band in bands)
    return samples.used_depth(parts, limits.samples_depth)


# ---- arrays of any kind ---------------------------------------------------------------------------


def _any_to_rgb(stored: NDArray[Any], bits: int | None, limits: ImageLimits, orientation: int = 1) -> _Stored:
    """Return pixels of 1 to 4 channels as RGB. bits: bits that the file states; None for all of the samples' type."""
    if stored.dtype not in (np.uint8, np.uint16):
        raise ImageError("32-bit or float samples: which value is white is unknown", hint="convert the image to 8 bits")
    if stored.ndim not in (2, 3) or (stored.ndim == 3 and stored.shape[2] > 4):
        raise ImageError(f"pixels of shape {stored.shape}, which segray does not read")
    check_size(stored.shape[1], stored.shape[0], limits)
    used_bits, guessed = _depth_of(stored, bits or 8 * stored.dtype.itemsize, limits)
    white, (height, width) = (1 << used_bits) - 1, stored.shape[:2]
    rgb = samples.converted(height, width, lambda rows: _array_to_rgb(stored[rows], white, None))
    return _Stored(rgb, orientation, guessed)


def _array_to_rgb(band: NDArray[Any], white: int, key: NDArray[Any] | None) -> Pixels:
    """Return a band of samples as RGB. key: the colour that is transparent."""
    narrow = samples.eight_bits(band, white)
    channels = narrow.shape[2] if narrow.ndim == 3 else 1
    if channels < 3:
        rgb = samples.grey_to_rgb(np.ascontiguousarray(narrow if narrow.ndim == 2 else narrow[..., 0]))
    else:
        rgb = narrow[..., :3]
    if channels in (2, 4):
        return samples.over_white(rgb, narrow[..., -1])
    if key is not None:
        rgb = np.array(rgb)
        rgb[band == key[0] if band.ndim == 2 else (band == key).all(axis=2)] = 255
    return rgb


# ---- all other formats ----------------------------------------------------------------------------


def _decode_by_pillow(data: bytes, header: Header, limits: ImageLimits) -> _Stored:
    """Return the stored pixels in RGB. Raise Pillow's errors."""
    with _pillow_limit_lifted, _READERS[header.format](io.BytesIO(without_metadata(data, header.format))) as image:
        check_size(*image.size, limits)  # A file may state two sizes; Pillow allocates this one.
        image.load()
        turn = header.orientation
        if header.format == "AVIF":  # libavif tells the rotation of the container as EXIF does.
            turn = directory.orientation(image.info.get("exif", b"").removeprefix(EXIF_SIGNATURE))
        if image.mode.startswith("I;16"):
            return _any_to_rgb(np.asarray(image), None, limits, turn)
        return _Stored(_to_rgb(_opaque_bmp(image) if header.format == "BMP" else image), turn)


def _avif_file(file: io.BytesIO) -> ImageFile:
    from PIL.AvifImagePlugin import AvifImageFile

    return AvifImageFile(file)


def _heif_file(file: io.BytesIO) -> ImageFile:
    try:
        with host_process.import_changes_undone():
            from pillow_heif.as_plugin import HeifImageFile
    except ImportError as error:
        raise ImageError("HEIC needs the extra heif", hint="pip install 'segray[heif]' on every node") from error
    return HeifImageFile(file)  # type: ignore[no-untyped-call]


def _opaque_bmp(image: Image.Image) -> Image.Image:
    """Return a BMP without its alpha if that is 0 everywhere: then the writer left the fourth byte empty."""
    is_empty = image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0)
    return image.convert("RGB") if is_empty else image


def _to_rgb(image: Image.Image) -> Pixels:
    """Convert any of Pillow's modes to (height, width, 3) uint8. The docstring of this module has the rules."""
    if image.mode in ("I", "F"):
        raise ImageError("32-bit or float samples: which value is white is unknown", hint="convert the image to 8 bits")
    return samples.converted(
        image.height, image.width, lambda rows: _band_to_rgb(image.crop((0, rows.start, image.width, rows.stop)))
    )


def _band_to_rgb(image: Image.Image) -> Pixels:
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
