"""The layout of a TIFF's first picture, checked before a decoder allocates anything (TIFF 6.0).

This module reads tags alone. Whatever the decoder cannot turn into the right pixels is refused here, in words.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from segray.errors import ImageError
from segray.imaging import directory
from segray.imaging.directory import MAX_VALUES, Directory

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_FILL_ORDER, _STRIP_OFFSETS, _SAMPLES, _STRIP_ROWS, _STRIP_BYTES = 266, 273, 277, 278, 279
_MAX_SAMPLE, _PLANAR, _T4_OPTIONS, _PREDICTOR, _COLOUR_MAP = 281, 284, 292, 317, 320
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_BYTES = 322, 323, 324, 325
_INK_SET, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _JPEG_TABLES = 332, 338, 339, 347
_OLD_JPEG_AT, _OLD_JPEG_BYTES, _SUBSAMPLING, _BLACK_WHITE, _IMAGE_DEPTH = 513, 514, 530, 532, 32997

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
_COLOURS = {WHITE_IS_ZERO: 1, BLACK_IS_ZERO: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3}
_OTHER_COLOURS = {
    4: "a transparency mask", 8: "CIE L*a*b*", 9: "ICC L*a*b*", 10: "ITU L*a*b*", 32803: "a colour filter array",
    32844: "LogL", 32845: "LogLuv", 34892: "linear raw",
}  # fmt: skip
RAW, OLD_JPEG, JPEG, LERC, WEBP, JPEG_XL = 1, 6, 7, 34887, 50001, 50002
CCITT = frozenset({2, 3, 4})
JPEG_2000 = frozenset({33003, 33005, 34712})
_IMAGE_FILES = JPEG_2000 | {OLD_JPEG, JPEG, LERC, WEBP, JPEG_XL}
# LZW, both Deflates, PackBits, LZMA and Zstandard: streams of bytes.
_STREAMS = frozenset({RAW, 5, 8, 32946, 32773, 34925, 50000})
_COMPRESSIONS = _STREAMS | CCITT | _IMAGE_FILES
_OTHER_COMPRESSIONS = {
    32766: "NeXT", 32771: "CCITT RLEW", 32809: "ThunderScan", 34661: "JBIG", 34676: "SGI Log", 34677: "SGI Log24",
    34892: "lossy DNG JPEG", 34933: "PNG", 34934: "JPEG XR", 52546: "DNG JPEG XL",
}  # fmt: skip
_UNSIGNED, _VOID = 1, 4
_SAMPLE_KINDS = {2: "signed", 3: "float", 5: "complex", 6: "complex"}
_STRAIGHT, PREMULTIPLIED = 2, 1
_JPEG_START, _JPEG_SCAN = b"\xff\xd8\xff", b"\xff\xda"
_JPEG_IN_PARTS = "TIFF with old-style JPEG compression (6) in parts, which segray does not read"
# A block is decoded as a whole. Tiles of small pictures may be larger than the picture, but not by much.
_LEAST_BLOCK_PIXELS = 2**22


@dataclass(frozen=True)
class TiffLayout:
    """The layout of a picture in a TIFF. All lengths are in pixels, all positions in bytes.

    order: byte order, "<" or ">". bits: bits per sample. samples: samples of a pixel in the file. alpha: position of
    the alpha sample; None without alpha. premultiplied: whether colours are multiplied by alpha. planes: number of
    separate planes; 1 for pixels whose samples lie side by side. block_wh: size of a strip or tile. tiled: whether
    blocks are tiles; the last strip may be shorter. offsets, counts: position and bytes of each block. t4_options:
    options of CCITT T.4. white: MaxSampleValue; None if the tag is missing or is of no use. colour_map: red, green and
    blue values of a palette. jpeg_tables: tables that all JPEG blocks share. subsampling: pixels for each chroma
    sample. black_white: ReferenceBlackWhite, as six floats.
    """

    order: str
    width: int
    height: int
    bits: int
    samples: int
    photometric: int
    compression: int
    predictor: int
    fill_order: int
    planes: int
    alpha: int | None
    premultiplied: bool
    block_wh: tuple[int, int]
    tiled: bool
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    t4_options: int = 0
    white: int | None = None
    colour_map: tuple[int, ...] = ()
    jpeg_tables: bytes = b""
    subsampling: tuple[int, int] = (1, 1)
    black_white: tuple[float, ...] = ()

    @property
    def grid(self) -> tuple[int, int]:
        """Return the number of rows and columns of blocks in a plane."""
        return -(-self.height // self.block_wh[1]), -(-self.width // self.block_wh[0])

    @property
    def colours(self) -> int:
        """Return the number of samples that make a pixel's colour, which come first."""
        return _COLOURS[self.photometric]

    @property
    def used_samples(self) -> tuple[int, ...]:
        """Return the positions of the samples that make the picture: colours, then alpha."""
        alpha = () if self.alpha is None else (self.alpha,)
        return (*range(self.colours), *alpha)

    @property
    def block_samples(self) -> int:
        """Return the samples of a pixel in one block."""
        return 1 if self.planes > 1 else self.samples

    @property
    def chroma_is_packed(self) -> bool:
        """Return whether one chroma pair follows the luma of several pixels, without a JPEG codec around them."""
        return self.photometric == YCBCR and self.compression in _STREAMS and self.subsampling != (1, 1)

    @property
    def held_bytes(self) -> int:
        """Return the bytes that the decoder holds at its peak, beside an RGB picture in full.

        The picture takes no memory until its first block is written.
        """
        pixels, samples = self.block_wh[0] * self.block_wh[1], self.block_samples
        block = pixels * samples * (1 if self.bits <= 8 else 2)
        is_view = self.compression == RAW and self.bits in (8, 16) and self.predictor == 1 and self.fill_order == 1
        is_swapped = self.bits == 16 and self.order == ">" and self.compression not in _IMAGE_FILES
        is_packed = self.bits not in (8, 16) and self.compression not in _IMAGE_FILES
        kept = 0 if is_view and not is_swapped else block
        work = kept + (block if self.compression != RAW and (is_swapped or is_packed) else 0)
        if self.compression in JPEG_2000:
            work += 2 * 4 * pixels * samples  # OpenJPEG's 32-bit samples, twice.
        used = block // samples * len(self.used_samples)
        if self.planes > 1:
            kept, work = used, max(work, kept * len(self.used_samples) + used)
        elif self.used_samples != tuple(range(samples)):
            kept, work = used, work + used
        is_alone = self.grid == (1, 1)
        return max(kept, work - 3 * self.width * self.height) if is_alone else work


def read(data: bytes) -> tuple[TiffLayout, int]:
    """Return the layout and the orientation.

    Raise ImageError for a file that segray refuses, and struct.error for tags behind the end.
    """
    tags = directory.read(data)
    if _WIDTH not in tags.tags or _HEIGHT not in tags.tags:
        raise ImageError("corrupt TIFF: its first directory has no width or no height")
    width, height = tags.integer(_WIDTH, 0), tags.integer(_HEIGHT, 0)
    if min(width, height) < 1:
        raise ImageError(f"{width}x{height}: the image has no pixels")
    return _layout(tags, width, height), directory.valid_orientation(tags)


def _layout(tags: Directory, width: int, height: int) -> TiffLayout:
    compression, samples = tags.integer(_COMPRESSION, RAW), tags.integer(_SAMPLES, 1)
    if tags.integer(_IMAGE_DEPTH, 1) != 1 and compression != RAW:  # The first layer begins a block without compression.
        raise ImageError(
            f"compressed TIFF of a volume of {tags.integer(_IMAGE_DEPTH, 1)} layers, which segray does not read"
        )
    photometric = tags.integer(_PHOTOMETRIC, RGB if samples >= 3 else WHITE_IS_ZERO if compression in CCITT else 1)
    bits = _same_for_all(tags, _BITS, 1, "bits per sample")
    if compression not in _COMPRESSIONS:
        name = _OTHER_COMPRESSIONS.get(compression, str(compression))
        raise ImageError(f"TIFF with compression {name}, which segray does not read")
    if photometric not in _COLOURS:
        name = _OTHER_COLOURS.get(photometric, f"photometric interpretation {photometric}")
        raise ImageError(f"TIFF of {name}, which segray does not read")
    _check_samples(tags, photometric, bits, samples)
    alpha, premultiplied = _alpha(tags, photometric, samples)
    separate = tags.integer(_PLANAR, 1) == 2 and samples > 1
    layout = TiffLayout(
        tags.order, width, height, bits, samples, photometric, compression, tags.integer(_PREDICTOR, 1),
        tags.integer(_FILL_ORDER, 1), samples if separate else 1, alpha, premultiplied, *_block(tags, width, height),
        (), (), tags.integer(_T4_OPTIONS, 0), _white(tags, bits, photometric),
        tags.integers(_COLOUR_MAP) if photometric == PALETTE else (), tags.octets(_JPEG_TABLES),
        _subsampling(tags, photometric),
    )  # fmt: skip
    _check_coding(layout)
    return _with_blocks(layout, tags)


def _same_for_all(tags: Directory, number: int, default: int, name: str) -> int:
    values = set(tags.integers(number)) or {default}
    if len(values) > 1:
        raise ImageError(f"TIFF with different {name} in one pixel: {', '.join(map(str, sorted(values)))}")
    return values.pop()


def _check_samples(tags: Directory, photometric: int, bits: int, samples: int) -> None:
    kind = _same_for_all(tags, _SAMPLE_FORMAT, _UNSIGNED, "sample formats")
    if kind == 3 or bits > 16:
        raise ImageError("32-bit or float samples: which value is white is unknown; convert the image to 8 bits")
    if kind not in (_UNSIGNED, _VOID):
        name = _SAMPLE_KINDS.get(kind, f"unknown ({kind})")
        raise ImageError(f"{name} samples: which value is black is unknown; convert the image to 8 bits")
    if bits < 1:
        raise ImageError("corrupt TIFF: its samples have no bits")
    if samples < _COLOURS[photometric]:
        raise ImageError(
            f"corrupt TIFF: {samples} samples for each pixel, of {_COLOURS[photometric]} that its colours need"
        )
    if samples > MAX_VALUES:
        raise ImageError(f"corrupt TIFF: {samples} samples for each pixel")
    if photometric == PALETTE and (bits > 16 or len(tags.integers(_COLOUR_MAP)) != 3 << bits):
        raise ImageError("corrupt TIFF: its colour map does not fit its bits per sample")
    if photometric == CMYK and tags.integer(_INK_SET, 1) != 1:
        raise ImageError("TIFF of inks other than CMYK, which segray does not read")


def _alpha(tags: Directory, photometric: int, samples: int) -> tuple[int | None, bool]:
    """Return the position of the alpha sample and whether colours are multiplied by alpha.

    RGB with a fourth sample and without the tag is RGBA, as Pillow takes such files.
    """
    colours = _COLOURS[photometric]
    kinds = tags.integers(_EXTRA_SAMPLES)
    if not kinds and photometric == RGB and samples == colours + 1:
        kinds = (_STRAIGHT,)
    for position, kind in enumerate(kinds[: samples - colours], colours):
        if kind in (_STRAIGHT, PREMULTIPLIED):
            return position, kind == PREMULTIPLIED
    return None, False


def _block(tags: Directory, width: int, height: int) -> tuple[tuple[int, int], bool]:
    """Return the size of a block, and whether blocks are tiles."""
    if _TILE_WIDTH in tags.tags or _TILE_OFFSETS in tags.tags:
        block_wh = tags.integer(_TILE_WIDTH, 0), tags.integer(_TILE_HEIGHT, 0)
        is_tiled = True
    else:
        block_wh = width, min(tags.integer(_STRIP_ROWS, height), height)
        is_tiled = False
    if min(block_wh) < 1:
        raise ImageError("corrupt TIFF: its strips or tiles have no pixels")
    if is_tiled and block_wh[0] * block_wh[1] > max(2 * width * height, _LEAST_BLOCK_PIXELS):
        raise ImageError(f"corrupt TIFF: a tile of {block_wh[0]}x{block_wh[1]} for a picture of {width}x{height}")
    return block_wh, is_tiled


def _white(tags: Directory, bits: int, photometric: int) -> int | None:
    value = tags.integer(_MAX_SAMPLE, 0)
    return value if bits > 8 and photometric != PALETTE and 0 < value < (1 << bits) - 1 else None


def _subsampling(tags: Directory, photometric: int) -> tuple[int, int]:
    if photometric != YCBCR:
        return 1, 1
    factors = tags.integers(_SUBSAMPLING)[:2]
    if not factors and tags.integer(_COMPRESSION, RAW) == RAW:  # Pillow leaves the tag out of pixels with all chroma.
        pixels = tags.integer(_WIDTH, 0) * tags.integer(_HEIGHT, 0)
        factors = (1, 1) if sum(tags.integers(_STRIP_BYTES)) >= 3 * pixels else ()
    across, down = (*factors, 2, 2)[:2]
    if across not in (1, 2, 4) or down not in (1, 2, 4):
        raise ImageError(f"corrupt TIFF: chroma subsampling of {across}x{down}")
    return across, down


def _check_coding(layout: TiffLayout) -> None:
    """Raise ImageError for combinations that no codec decodes."""
    compression, bits = layout.compression, layout.bits
    if compression in _STREAMS and layout.predictor not in (1, 2):
        raise ImageError(f"TIFF with predictor {layout.predictor} for integers, which segray does not read")
    if compression in _STREAMS and layout.predictor == 2 and bits not in (8, 16):
        raise ImageError(f"TIFF with a predictor for samples of {bits} bits, which segray does not read")
    if compression in CCITT and (bits != 1 or layout.samples != 1):
        raise ImageError("corrupt TIFF: CCITT compression of other than 1-bit pixels")
    if compression in (OLD_JPEG, JPEG) and bits not in (8, 12):
        raise ImageError(f"TIFF with JPEG compression of {bits} bits, which segray does not read")
    if compression == WEBP and (bits != 8 or layout.planes > 1 or layout.samples not in (3, 4)):
        raise ImageError("TIFF with WebP compression of other than 8-bit RGB, which segray does not read")
    if layout.photometric == YCBCR and compression not in (OLD_JPEG, JPEG):
        if bits != 8 or layout.samples != 3 or layout.planes > 1 or layout.predictor != 1:
            raise ImageError("TIFF of YCbCr in other than 8-bit pixels of 3 samples, which segray does not read")
        if compression not in _STREAMS:
            raise ImageError(f"TIFF of YCbCr with compression {compression}, which segray does not read")
        down = layout.subsampling[1]
        if layout.block_wh[1] % down and layout.grid[0] > 1:
            raise ImageError("corrupt TIFF: its strips cut a chroma sample")
    if layout.photometric == CMYK and layout.premultiplied:
        raise ImageError("TIFF of CMYK multiplied by alpha, which segray does not read")


def _with_blocks(layout: TiffLayout, tags: Directory) -> TiffLayout:
    """Return the layout with the positions of its blocks. Raise ImageError if blocks are missing."""
    kind = "tiles" if layout.tiled else "strips"
    numbers = (_TILE_OFFSETS, _TILE_BYTES) if layout.tiled else (_STRIP_OFFSETS, _STRIP_BYTES)
    if layout.compression == OLD_JPEG and _OLD_JPEG_AT in tags.tags:
        return _one_jpeg(layout, tags)
    if not tags.integers(numbers[0]) and layout.tiled:  # Some writers name tiles by the tags of strips.
        numbers = _STRIP_OFFSETS, _STRIP_BYTES
    offsets, counts = tags.integers(numbers[0]), tags.integers(numbers[1])
    rows, columns = layout.grid
    needed = rows * columns * layout.planes
    if needed > MAX_VALUES:
        raise ImageError(f"corrupt TIFF: {needed} {kind}")
    if not any(counts) and len(offsets) == needed:  # Some writers leave the counts out, or 0.
        ends = (*offsets[1:], len(tags.data))
        counts = tuple(max(0, end - start) for start, end in zip(offsets, ends, strict=True))
    if min(len(offsets), len(counts)) < needed:
        raise ImageError(f"truncated: the TIFF names {min(len(offsets), len(counts))} of {needed} {kind}")
    for index, (offset, count) in enumerate(zip(offsets[:needed], counts, strict=False)):
        if not 0 < offset < len(tags.data) or count < 1:
            raise ImageError(f"truncated: {kind[:-1]} {index + 1} of {needed} is missing in the TIFF")
    if layout.compression == OLD_JPEG and not tags.data.startswith(_JPEG_START, offsets[0]):
        raise ImageError(_JPEG_IN_PARTS)
    floats = _fractions(tags) if layout.photometric == YCBCR else ()
    return replace(layout, offsets=offsets[:needed], counts=counts[:needed], black_white=floats)


def _one_jpeg(layout: TiffLayout, tags: Directory) -> TiffLayout:
    """Return the layout of an old-style JPEG TIFF, as one strip that is a whole JPEG file."""
    at = tags.integer(_OLD_JPEG_AT, 0)
    count = tags.integer(_OLD_JPEG_BYTES, len(tags.data) - at)
    is_whole = tags.data.startswith(_JPEG_START, at) and _JPEG_SCAN in tags.data[at : at + count]
    if not is_whole:
        raise ImageError(_JPEG_IN_PARTS)
    return replace(
        layout, compression=JPEG, block_wh=(layout.width, layout.height), tiled=False, planes=1, offsets=(at,),
        counts=(count,), jpeg_tables=b"",
    )  # fmt: skip


def _fractions(tags: Directory) -> tuple[float, ...]:
    """Return ReferenceBlackWhite; () if the tag is missing or broken."""
    tag = tags.tags.get(_BLACK_WHITE)
    if tag is None or tag.kind != 5 or tag.count != 6:
        return ()
    parts = directory.rationals(tags, tag)
    return parts if all(white > black for black, white in zip(parts[::2], parts[1::2], strict=True)) else ()
