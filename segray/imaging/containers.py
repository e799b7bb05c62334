"""Size and format of a picture in a container of boxes: AVIF, HEIF, JPEG 2000 and JPEG XL; and of a LERC block.

This module reads boxes and the first bytes of codestreams. It decodes nothing. The sizes are the largest that a file
states, so that limits hold before a decoder allocates anything.
"""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from segray.errors import ImageError

_MAX_BOXES = 10_000
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
JPEG_2000_SIGNATURE, JPEG_XL_SIGNATURE = b"\0\0\0\x0cjP  \r\n\x87\n", b"\0\0\0\x0cJXL \r\n\x87\n"
JPEG_2000_CODESTREAM, JPEG_XL_CODESTREAM = b"\xff\x4f\xff\x51", b"\xff\x0a"
LERC_MAGIC = b"Lerc2 "
# Bytes of a pixel that decoders hold beside the RGB picture: planes of the codec, and Pillow's picture.
_AVIF_BYTES, _HEIF_BYTES, _JPEG_XL_BYTES = 7.5, 5.5, 3.0
# The width for a height, by the ratio that a JPEG XL header names (ISO 18181-1, table B.2).
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}


@dataclass(frozen=True)
class Picture:
    """The picture of a container. format: AVIF, HEIF, JP2 or JXL. width, height: largest that the file states.

    held_bytes_per_pixel: as in Header.
    """

    format: str
    width: int
    height: int
    held_bytes_per_pixel: float


def heif_is_installed() -> bool:
    """Return whether this process can decode HEIC files, which needs the extra heif."""
    return importlib.util.find_spec("pillow_heif") is not None


def is_container(data: bytes) -> bool:
    """Return whether `read` knows the format."""
    starts = (JPEG_2000_SIGNATURE, JPEG_XL_SIGNATURE, JPEG_2000_CODESTREAM, JPEG_XL_CODESTREAM)
    return data.startswith(starts) or bool(_brands(data) & (_AVIF_BRANDS | _HEIF_BRANDS))


def read(data: bytes) -> Picture:
    """Return the picture. Raise ImageError or struct.error for a header that is broken or cut short."""
    if data.startswith((JPEG_2000_SIGNATURE, JPEG_2000_CODESTREAM)):
        width, height, components = _jpeg_2000_size(data)
        # OpenJPEG's 32-bit samples, Pillow's picture and a part of the file. The RGB picture is made when all is freed.
        return Picture("JP2", width, height, 4 * components + (4 if components > 1 else 1) + 1.2 - 3)
    if data.startswith((JPEG_XL_SIGNATURE, JPEG_XL_CODESTREAM)):
        return Picture("JXL", *_jpeg_xl_size(data), _JPEG_XL_BYTES)
    is_avif = bool(_brands(data) & _AVIF_BRANDS)
    name = "AVIF" if is_avif else "HEIF"
    return Picture(name, *_largest_item(data, name), _AVIF_BYTES if is_avif else _HEIF_BYTES)


def lerc_size(block: bytes) -> tuple[int, int]:
    """Return width and height of a LERC block of version 2 or later."""
    (version,) = struct.unpack_from("<i", block, len(LERC_MAGIC))
    height, width = struct.unpack_from("<ii", block, len(LERC_MAGIC) + (8 if version >= 3 else 4))
    return width, height


def _brands(data: bytes) -> set[bytes]:
    """Return the brands of an ISO base media file (ISO 14496-12, 4.3)."""
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4], "big"), len(data), 256)
    return {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start, end) of the bodies of boxes. A box that ends behind the end is an error."""
    at = start
    for _ in range(_MAX_BOXES):
        if at + 8 > end:
            return
        length, name = struct.unpack_from(">I4s", data, at)
        body = at + 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, body)
            body += 8
        stop = at + length if length else end
        if stop > end or stop < body:
            raise ImageError(f"truncated: the file ends inside its {name.decode('ascii', 'backslashreplace')} box")
        yield name, body, stop
        at = stop
    raise ImageError(f"corrupt: more than {_MAX_BOXES} boxes")


def _largest_item(data: bytes, name: str) -> tuple[int, int]:
    """Return the width and the height that no item of an AVIF or HEIF exceeds (ISO 23008-12, 6.5.3)."""
    sizes = []
    for box, start, stop in _boxes(data, 0, len(data)):
        if box != b"meta":
            continue
        for inner, first, last in _boxes(data, start + 4, stop):
            if inner != b"iprp":
                continue
            for container, body, end in _boxes(data, first, last):
                if container == b"ipco":
                    properties = _boxes(data, body, end)
                    sizes += [struct.unpack_from(">II", data, at + 4) for kind, at, _ in properties if kind == b"ispe"]
    if not sizes:
        raise ImageError(f"corrupt {name}: no picture with a size")
    return max(width for width, _ in sizes), max(height for _, height in sizes)


def _jpeg_2000_size(data: bytes) -> tuple[int, int, int]:
    """Return width, height and the number of components in the codestream's SIZ marker (ISO 15444-1, A.5.1)."""
    at = 0
    if data.startswith(JPEG_2000_SIGNATURE):
        streams = (start for name, start, _ in _boxes(data, 0, len(data)) if name == b"jp2c")
        at = next(streams, -1)
        if at < 0 or not data.startswith(JPEG_2000_CODESTREAM, at):
            raise ImageError("corrupt JPEG 2000: no codestream")
    right, bottom, left, top = struct.unpack_from(">IIII", data, at + 8)
    if not data.rstrip(b"\0").endswith(b"\xff\xd9") and data.rfind(b"\xff\xd9", at) < 0:
        raise ImageError("truncated: the JPEG 2000's end marker is missing", found=f"{len(data)} bytes")
    (components,) = struct.unpack_from(">H", data, at + 40)
    return right - left, bottom - top, components


def _jpeg_xl_size(data: bytes) -> tuple[int, int]:
    """Return the size in the codestream's header (ISO 18181-1, B.2.2), which is not turned yet."""
    at = 0
    if data.startswith(JPEG_XL_SIGNATURE):
        for name, start, _ in _boxes(data, 0, len(data)):
            if name in (b"jxlc", b"jxlp"):
                at = start + (4 if name == b"jxlp" else 0)
                break
        if not data.startswith(JPEG_XL_CODESTREAM, at):
            raise ImageError("corrupt JPEG XL: no codestream")
    bits, place = int.from_bytes(data[at + 2 : at + 18].ljust(16, b"\0"), "little"), 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return bits >> place - count & (1 << count) - 1

    is_small = take(1) == 1

    def side() -> int:
        return 8 * (1 + take(5)) if is_small else 1 + take((9, 13, 18, 30)[take(2)])

    height = side()
    ratio = take(3)
    if not ratio:
        return side(), height
    above, below = _RATIOS[ratio]
    return height * above // below, height
