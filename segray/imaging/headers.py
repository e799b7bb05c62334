"""The header of an image file: format, size and orientation, read without decoding pixels.

This module knows formats, their metadata and the limits on a file. This module allocates no pixels, so the limits are
checked before a decoder allocates anything. EXIF's orientation is the only metadata that is read.

A file that ends early is an error. A PNG must have an IEND chunk, and right checksums in the
chunks that matter. Whether the scan of
a JPEG is complete is left to the decoder, because a JPEG may lack its end marker alone. The scans of a JPEG must send
all coefficients. TIFF tags are read in tiff_layout.py, ISO and JPEG XL containers in containers.py.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from segray.errors import ImageError
from segray.imaging import containers, tiff_layout
from segray.imaging.directory import orientation
from segray.imaging.tiff_layout import TiffLayout
from segray.limits import DEFAULT_LIMITS, ImageLimits

# No valid file has more segments, chunks or values of a tag. A loop over millions of them holds the GIL for seconds.
_MAX_PARTS = 200_000
# A decoder passes over the whole picture for each JPEG scan, even a short one. libtiff has the same limit; cameras
# write 10 scans.
_MAX_SCANS = 100
_RGB_BYTES = 3
# No usual picture at the limit of pixels takes more. A strip of a TIFF may state any number of samples.
_MOST_BYTES_PER_PIXEL = 24
# Bytes of a pixel in Pillow's memory: a mode of one channel takes a byte, a mode of more channels takes four.
_ONE_CHANNEL, _TWO_BYTES, _CHANNELS = 1.0, 2.0, 4.0
_READS = "segray reads AVIF, BMP, GIF, HEIC, JPEG, JPEG 2000, JPEG XL, JPEG-LS, PNG, TIFF and WebP"


class JpegFrame(NamedTuple):
    """The frame of a JPEG. marker: byte of the frame's marker, which names the process. bits: bits per sample.

    scans: number of scans. scan_end: position behind the last scan. has_end: whether the end marker is there.
    """

    marker: int
    bits: int
    channels: int
    scans: int
    scan_end: int
    has_end: bool

    @property
    def is_rare(self) -> bool:
        """Return whether neither OpenCV nor Pillow decodes the process."""
        return self.bits > 8 or self.marker == _LOSSLESS


@dataclass(frozen=True)
class PngKind:
    """The kind of a PNG's pixels. transparent: samples of the colour that is transparent; () without one."""

    bits: int
    colour: int
    interlaced: bool
    transparent: tuple[int, ...] = ()


@dataclass(frozen=True)
class Header:
    """The header of an image file.

    format: AVIF, BMP, GIF, HEIF, JP2, JPEG, JPEGLS, JXL, PNG, TIFF or WEBP. width, height: pixels as stored, before
    orientation. orientation: EXIF 1..8; 1 if the file has none or a broken one. plain: OpenCV decodes this kind of file
    to RGB. held_bytes_per_pixel: bytes that a decoder holds for each pixel beside the RGB picture, such as the picture
    in the file's own mode, or all coefficients of a JPEG of several scans. copied_bytes: size of the copy that the
    decoder gets, and of blocks. jpeg, png, tiff: what the decoder of this format needs to know.
    """

    format: str
    width: int
    height: int
    orientation: int
    plain: bool = False
    held_bytes_per_pixel: float = field(default=0.0, compare=False)
    copied_bytes: int = field(default=0, compare=False)
    jpeg: JpegFrame | None = field(default=None, compare=False)
    png: PngKind | None = field(default=None, compare=False)
    tiff: TiffLayout | None = field(default=None, compare=False)

    @property
    def size_hw(self) -> tuple[int, int]:
        """Return height and width of the upright picture, in pixels."""
        return (self.width, self.height) if self.orientation > 4 else (self.height, self.width)

    def decoding_bytes(self, reduction: int = 1) -> int:
        """Return the peak memory of a decode beside the file, in bytes; the tests measure each format within 20 %.

        reduction: 1, 2, 4 or 8 for a JPEG that is decoded at a fraction of its sides.
        """
        pixels = self.width * self.height
        picture = pixels * _RGB_BYTES / reduction**2
        # OpenCV gives Python a copy of its picture.
        held = max(pixels * self.held_bytes_per_pixel, picture if self.plain else 0) + self.copied_bytes
        return round(picture + max(held, picture if self.orientation > 1 else 0))


def admit(data: bytes, limits: ImageLimits = DEFAULT_LIMITS) -> Header:
    """Return the header of an image file that is within the limits.

    Raise ImageError(stage="decode") for any other file.
    """
    if len(data) > limits.max_bytes:
        raise ImageError(f"more than {limits.max_bytes} bytes (image.max_bytes)")
    header = probe(data)
    check_size(header.width, header.height, limits)
    if header.tiff is not None and header.copied_bytes > _MOST_BYTES_PER_PIXEL * limits.max_pixels:
        raise ImageError(
            f"a strip or tile of the TIFF needs {header.copied_bytes / 1e6:.0f} MB, "
            f"more than {_MOST_BYTES_PER_PIXEL} bytes for each of image.max_pixels"
        )
    return header


def probe(data: bytes) -> Header:
    """Return the header of an image file. Check the segments of JPEG and PNG files up to the end marker.
    Raise ImageError(stage="decode") for bytes that are no image or end early.
    """
    if not data:
        raise ImageError("empty file")
    parse = next((parse for magic, parse in _FORMATS if data.startswith(magic)), None)
    if parse is None and containers.is_container(data):
        parse = _contained
    if parse is None:
        raise _not_an_image(data)
    try:
        return parse(data)
    except (struct.error, IndexError) as error:
        raise ImageError("truncated or corrupt: the header is cut short", found=f"{len(data)} bytes") from error


def _not_an_image(data: bytes) -> ImageError:
    return ImageError(f"not an image: starts with {repr(data[:16])[1:]}", hint=_READS)


def check_size(width: int, height: int, limits: ImageLimits) -> None:
    """Raise ImageError for an image without pixels or beyond the limits."""
    if width < 1 or height < 1:
        raise ImageError(f"{width}x{height}: the image has no pixels")
    if width * height > limits.max_pixels:
        raise ImageError(
            f"{width}x{height} = {width * height / 1e6:.6g} MP is over the limit of "
            f"{limits.max_pixels / 1e6:.6g} MP (image.max_pixels)"
        )
    if max(width, height) > limits.max_side_px:
        raise ImageError(f"{width}x{height}: a side is over the limit of {limits.max_side_px} px (image.max_side_px)")


def _held_by_pillow(picture: float, while_loading: float = 0.0) -> float:
    """Return the bytes per pixel that Pillow holds beside the RGB picture, which is made after Pillow has loaded.

    picture: bytes of Pillow's own picture. while_loading: bytes of what is freed before the RGB picture is made.
    """
    return max(picture, picture + while_loading - _RGB_BYTES)


# ---- JPEG (ITU T.81, annex B) ----------------------------------------------------------------------

# Markers that end a segment, in headers and in scans: all but stuffing, fill, TEM and RST0..7.
_JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")
_SOI, _EOI, _SOS, _APP1 = 0xD8, 0xD9, 0xDA, 0xE1
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_HUFFMAN_8_BIT = frozenset({0xC0, 0xC1, 0xC2})
_SPECTRAL = _HUFFMAN_8_BIT | {0xC9, 0xCA}  # Processes whose scans name coefficients.
_OTHER_PROCESSES = {
    0xC5: "hierarchical", 0xC6: "hierarchical", 0xC7: "hierarchical", 0xC9: "arithmetic-coded",
    0xCA: "arithmetic-coded", 0xCB: "arithmetic-coded", 0xCD: "hierarchical", 0xCE: "hierarchical",
    0xCF: "hierarchical",
}  # fmt: skip
_LOSSLESS, _JPEG_LS = 0xC3, 0xF7
# Segments that do not affect pixels: comments and application data, except JFIF's (APP0) and Adobe's (APP14).
_JPEG_METADATA = frozenset({0xFE, *range(0xE1, 0xF0)}) - {0xEE}
EXIF_SIGNATURE = b"Exif\0\0"
_COEFFICIENT_BYTES = 2
_ALL_COEFFICIENTS = (1 << 64) - 1
# The parameters of a scan that sends all coefficients in full: the first, the last, and bits left out (B.2.3).
_WHOLE_SCAN = b"\0\x3f\0"


def _jpeg(data: bytes) -> Header:
    frame: tuple[int, int, int, int, int] | None = None
    exif = b""
    scans, components, is_complete = 0, b"", False
    sent, refined = dict[int, int](), dict[int, int]()  # Coefficients of each component, as bits of an integer.
    marker, end, is_ended = 0, len(data), False
    for marker, start, stop in _jpeg_segments(data):
        if marker == _EOI:
            end, is_ended = start, True
        elif marker in _FRAMES or marker == _JPEG_LS:
            if frame is None:
                frame = (marker, *struct.unpack_from(">BHHB", data, start + 4))
                components = data[start + 10 : stop]
        elif marker == _SOS:
            if frame is None:
                break
            scans += 1
            scan = data[start + 4 : stop]
            if scan[-3:] == _WHOLE_SCAN and scan[1:-3:2] == components[::3]:
                is_complete = True
            else:
                _add_sent_coefficients(scan, sent, refined)
            if frame[0] == _JPEG_LS:  # Its scans have bytes that are markers in other JPEGs.
                break
        elif marker == _APP1 and not exif and not scans and data.startswith(EXIF_SIGNATURE, start + 4, stop):
            exif = data[start + 4 + len(EXIF_SIGNATURE) : stop]
    if frame is None:
        raise ImageError("corrupt JPEG: no frame header before the first scan")
    if not scans:
        raise ImageError("truncated: the JPEG ends before its first scan", found=f"{len(data)} bytes")
    if scans > _MAX_SCANS:
        raise ImageError(f"corrupt JPEG: {scans} scans, more than {_MAX_SCANS}")
    marker, bits, height, width, channels = frame
    if not is_complete and marker in _SPECTRAL:
        complete = sent if is_ended else refined
        if any(complete.get(component) != _ALL_COEFFICIENTS for component in components[::3]):
            raise ImageError("truncated: the JPEG lacks scans", found=f"{scans} scans")
    kind = JpegFrame(marker, bits, channels, scans, end, is_ended)
    if marker == _JPEG_LS:
        return Header("JPEGLS", width, height, orientation(exif), False, channels * (1 if bits <= 8 else 2), jpeg=kind)
    if marker in _OTHER_PROCESSES and not (marker in (0xC9, 0xCA) and bits == 8):
        raise ImageError(f"a JPEG of a process that segray does not read: {_OTHER_PROCESSES[marker]}")
    plain = marker in _HUFFMAN_8_BIT and bits == 8 and channels in (1, 3)
    held = _COEFFICIENT_BYTES * _jpeg_coefficients_per_pixel(components) if scans > 1 else 0.0
    if kind.is_rare:
        held += 2 * channels * (1 if bits <= 8 else 2)  # The decoder compares two pictures.
    elif not plain:
        held = _held_by_pillow(_CHANNELS if channels > 1 else _ONE_CHANNEL, held)
    if not is_ended:
        held = max(held, 0.0) + 2 * _RGB_BYTES
    copied_bytes = 0 if kind.is_rare or (scans > 1 and is_ended) else len(data)
    return Header("JPEG", width, height, orientation(exif), plain, held, copied_bytes, jpeg=kind)


def _add_sent_coefficients(scan: bytes, sent: dict[int, int], refined: dict[int, int]) -> None:
    """Add the coefficients that a scan sends to those of its components (B.2.3).

    refined: receives the coefficients that the scan sends to their last bit.
    """
    count = scan[0]
    first, last, bits_left = scan[1 + 2 * count], min(scan[2 + 2 * count], 63), scan[3 + 2 * count] & 15
    coefficients = (1 << max(0, last + 1 - first)) - 1 << first
    for component in scan[1 : 1 + 2 * count : 2]:
        sent[component] = sent.get(component, 0) | coefficients
        if not bits_left:
            refined[component] = refined.get(component, 0) | coefficients


def _jpeg_coefficients_per_pixel(components: bytes) -> float:
    """Return the number of coefficients for each pixel, given the components of a frame header (B.2.2)."""
    factors = [(byte >> 4, byte & 15) for byte in components[1::3]]
    most = max((h for h, _ in factors), default=1) * max((v for _, v in factors), default=1)
    return sum(h * v for h, v in factors) / max(most, 1)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, stop) of each segment up to the end marker, which may be missing.

    Raise ImageError for a file that ends inside a segment.
    """
    at = 2
    for _ in range(_MAX_PARTS):
        match = _JPEG_MARKER.search(data, at)
        if match is None:
            if at > len(data):
                raise ImageError("truncated: the JPEG ends inside a segment", found=f"{len(data)} bytes")
            return
        marker = data[match.start() + 1]
        if marker == _EOI:
            yield marker, match.start(), match.end()
            return
        if marker == _SOI:
            raise ImageError("truncated: a second JPEG begins before the end of the first")
        (length,) = struct.unpack_from(">H", data, match.end())
        at = match.end() + length
        yield marker, match.start(), at
    raise ImageError(f"corrupt JPEG: more than {_MAX_PARTS} segments")


def _jpeg_without_metadata(data: bytes) -> bytes:
    view, parts, at = memoryview(data), [], 0
    for marker, start, stop in _jpeg_segments(data):
        if marker in _JPEG_METADATA:
            parts.append(view[at:start])
            at = stop
    return b"".join([*parts, view[at:]]) if parts else data


# ---- PNG (third edition, chapters 5 and 11) --------------------------------------------------------

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PIXEL_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_GREY, _TRUECOLOUR, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_PNG_CHANNELS = {_GREY: 1.0, _TRUECOLOUR: 3.0, _PALETTE: 3.0, _GREY_ALPHA: 2.0, _RGBA: 4.0}
_PNG_BITS = {
    _GREY: (1, 2, 4, 8, 16),
    _TRUECOLOUR: (8, 16),
    _PALETTE: (1, 2, 4, 8),
    _GREY_ALPHA: (8, 16),
    _RGBA: (8, 16),
}


def _png(data: bytes) -> Header:
    view = memoryview(data)
    exif, key, pixel_bytes = b"", None, len(_PNG_SIGNATURE)
    for name, start, stop in _png_chunks(data):
        is_heeded = name in _PIXEL_CHUNKS or name == b"eXIf"
        if is_heeded and zlib.crc32(view[start + 4 : stop - 4]) != struct.unpack_from(">I", data, stop - 4)[0]:
            raise ImageError(f"corrupt PNG: wrong checksum in its {_ascii(name)} chunk at byte {start}")
        if name == b"tRNS":
            key = data[start + 8 : stop - 4]
        pixel_bytes += stop - start if name in _PIXEL_CHUNKS else 0
        if name == b"eXIf":
            exif = data[start + 8 : stop - 4].removeprefix(EXIF_SIGNATURE)
    first, width, height, bits, colour, interlace = struct.unpack_from(">4sIIBBxxB", data, len(_PNG_SIGNATURE) + 4)
    if first != b"IHDR":
        raise ImageError("corrupt PNG: the first chunk is not IHDR")
    kind = _png_kind(bits, colour, interlace == 1, key)
    plain = bits == 8 and colour == _TRUECOLOUR and key is None
    channels = 4.0 if colour == _PALETTE and key is not None else _PNG_CHANNELS[colour]
    held = 0.0 if plain else channels * (2 if bits == 16 else 1)
    if kind.interlaced and not plain:  # OpenCV has no mode of grey with alpha, and gives Python a copy.
        held = held * (2 if colour == _GREY_ALPHA else 1)
        held = max(held, 2 * held - _RGB_BYTES)
    copied_bytes = pixel_bytes if pixel_bytes < len(data) or kind.transparent else 0
    return Header("PNG", width, height, orientation(exif), plain, held, copied_bytes, png=kind)


def _png_kind(bits: int, colour: int, interlaced: bool, key: bytes | None) -> PngKind:
    """Return the kind of pixels. The key of grey and RGB files has two bytes for each sample, whatever their depth."""
    if colour not in _PNG_CHANNELS or bits not in _PNG_BITS[colour]:
        raise ImageError(f"corrupt PNG: colour type {colour} with {bits} bits")
    samples = {_GREY: 1, _TRUECOLOUR: 3}.get(colour, 0)
    if key is None or not samples:
        return PngKind(bits, colour, interlaced)
    mask = (1 << bits) - 1  # The other bits are 0 by the standard, and readers ignore them.
    return PngKind(bits, colour, interlaced, tuple(value & mask for value in struct.unpack_from(f">{samples}H", key)))


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start, stop) of each chunk up to IEND, from the chunk's length to the end of its checksum.

    Raise ImageError for a file that ends before IEND.
    """
    at = len(_PNG_SIGNATURE)
    for _ in range(_MAX_PARTS):
        if at + 12 > len(data):
            raise ImageError("truncated: the PNG's IEND chunk is missing", found=f"{len(data)} bytes")
        length, name = struct.unpack_from(">I4s", data, at)
        stop = at + 12 + length
        if stop > len(data):
            raise ImageError(f"truncated: the PNG ends inside its {_ascii(name)} chunk", found=f"{len(data)} bytes")
        yield name, at, stop
        if name == b"IEND":
            return
        at = stop
    raise ImageError(f"corrupt PNG: more than {_MAX_PARTS} chunks")


def _png_without_metadata(data: bytes) -> bytes:
    return _png_of_chunks(data, _PIXEL_CHUNKS)


def png_without_key(data: bytes) -> bytes:
    """Return a PNG of the same pixels without metadata and without a transparent colour."""
    return _png_of_chunks(data, _PIXEL_CHUNKS - {b"tRNS"})


def _png_of_chunks(data: bytes, names: frozenset[bytes]) -> bytes:
    view = memoryview(data)
    chunks = [view[start:stop] for name, start, stop in _png_chunks(data) if name in names]
    pixel_bytes = len(_PNG_SIGNATURE) + sum(map(len, chunks))
    return data if pixel_bytes == len(data) else b"".join([_PNG_SIGNATURE, *chunks])


def _ascii(name: bytes) -> str:
    return name.decode("ascii", "backslashreplace")


# ---- GIF (89a specification, appendix A) -----------------------------------------------------------


def _gif(data: bytes) -> Header:
    """Return the header with the canvas, grown to hold the first frame as Pillow grows it."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _gif_palette_bytes(flags)
    for _ in range(_MAX_PARTS):
        if data[at] == ord(","):
            left, top, frame_width, frame_height = struct.unpack_from("<HHHH", data, at + 1)
            return Header(
                "GIF", max(width, left + frame_width), max(height, top + frame_height), 1, False, _ONE_CHANNEL
            )
        if data[at] != ord("!"):
            raise ImageError(f"corrupt GIF: no block begins with byte {data[at]:#04x}")
        at = _after_gif_blocks(data, at + 2)
    raise ImageError(f"corrupt GIF: more than {_MAX_PARTS} blocks before the first frame")


def _gif_palette_bytes(flags: int) -> int:
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _after_gif_blocks(data: bytes, at: int) -> int:
    """Return the end of a chain of sub-blocks. The first byte of each is its length; the last sub-block is empty."""
    for _ in range(_MAX_PARTS):
        if data[at] == 0:
            return at + 1
        at += 1 + data[at]
    raise ImageError(f"corrupt GIF: more than {_MAX_PARTS} sub-blocks in an extension")


# ---- BMP and WebP ---------------------------------------------------------------------------------

_CANVAS_BYTES = 4  # libwebp's reader of animations holds two canvases, and gives Pillow a copy of one.


def _bmp(data: bytes) -> Header:
    (header_bytes,) = struct.unpack_from("<I", data, 14)
    if header_bytes == 12:
        width, height = struct.unpack_from("<HH", data, 18)
    elif 40 <= header_bytes <= 124:
        width, height = struct.unpack_from("<ii", data, 18)
    else:
        raise _not_an_image(data)
    (bits,) = struct.unpack_from("<H", data, 24 if header_bytes == 12 else 28)
    held = _ONE_CHANNEL if bits <= 8 else _CHANNELS
    # A negative height means rows from the top down.
    return Header("BMP", width, abs(height), 1, False, held)


def _webp(data: bytes) -> Header:
    riff_bytes, kind = struct.unpack_from("<I4s", data, 4)
    if kind != b"WEBP":
        raise _not_an_image(data)
    if riff_bytes + 8 > len(data):
        raise ImageError("truncated: the WebP is shorter than its header says", found=f"{len(data)} bytes")
    width, height = _webp_canvas(data)
    exif = next((body for name, body in _riff_chunks(data) if name == b"EXIF"), b"")
    turn = orientation(exif.removeprefix(EXIF_SIGNATURE))
    return Header("WEBP", width, height, turn, False, _held_by_pillow(_CHANNELS, 3 * _CANVAS_BYTES))


def _webp_canvas(data: bytes) -> tuple[int, int]:
    """Return width and height of the canvas, in pixels.

    RFC 9649 defines them in sections 2.7 (extended) and 3.4 (lossless), RFC 6386 in section 9.1 (lossy).
    """
    name, body = next(_riff_chunks(data), (b"", b""))
    if name == b"VP8X":
        return 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    if name == b"VP8L":
        (bits,) = struct.unpack_from("<I", body, 1)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if name == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 6)
        return width & 0x3FFF, height & 0x3FFF
    raise ImageError(f"corrupt WebP: begins with a {_ascii(name)} chunk")


def _riff_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (name, body) of the chunks after the form type, up to the end of the data."""
    at = 12
    for _ in range(_MAX_PARTS):
        if at + 8 > len(data):
            return
        name, length = struct.unpack_from("<4sI", data, at)
        yield name, data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


# ---- TIFF -----------------------------------------------------------------------------------------


def _tiff(data: bytes) -> Header:
    layout, turn = tiff_layout.read(data)
    return Header("TIFF", layout.width, layout.height, turn, copied_bytes=layout.held_bytes, tiff=layout)


def block_size(block: bytes) -> tuple[int, int]:
    """Return width and height that an image file in a strip or tile of a TIFF states.

    Raise ImageError for a block that is no such file or that ends early.
    """
    if block.startswith(containers.LERC_MAGIC):
        return containers.lerc_size(block)
    header = probe(block)
    if header.jpeg is not None and not header.jpeg.has_end:
        raise ImageError("truncated: a JPEG in the TIFF ends early")
    return header.width, header.height


# ---- ISO containers, JPEG 2000 and JPEG XL --------------------------------------------------------


def _contained(data: bytes) -> Header:
    picture = containers.read(data)
    return Header(picture.format, picture.width, picture.height, 1, False, picture.held_bytes_per_pixel)


# ---- all formats ----------------------------------------------------------------------------------

_FORMATS: tuple[tuple[bytes, Callable[[bytes], Header]], ...] = (
    (b"\xff\xd8\xff", _jpeg),
    (_PNG_SIGNATURE, _png),
    (b"GIF87a", _gif),
    (b"GIF89a", _gif),
    (b"RIFF", _webp),
    (b"BM", _bmp),
    (b"II*\0", _tiff),
    (b"MM\0*", _tiff),
    (b"II+\0", _tiff),
    (b"MM\0+", _tiff),
)
_STRIPPERS: dict[str, Callable[[bytes], bytes]] = {"JPEG": _jpeg_without_metadata, "PNG": _png_without_metadata}


def without_metadata(data: bytes, image_format: str) -> bytes:
    """Return a file of the same pixels without metadata. Only JPEG and PNG files are changed."""
    return _STRIPPERS.get(image_format, bytes)(data)
