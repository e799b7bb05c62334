"""TIFF and PNG files whose pixels are known, written byte by byte from the formats' specifications.

Knows TIFF 6.0, BigTIFF and the PNG specification; knows nothing of segray. Only LZW and CCITT data come from libraries.
`tiffs()` and `pngs()` are the whole collections, as functions that write one file each.
"""

from __future__ import annotations

import io
import itertools
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import imagecodecs
import numpy as np
from hostile import png_chunk, stored_for
from numpy.typing import NDArray
from PIL import Image

HEIGHT, WIDTH = 24, 40
Samples = NDArray[np.uint16]


@dataclass(frozen=True)
class KnownFile:
    """A file and its upright picture. pixels: (height, width, 3), or None for a file that must be refused.

    tolerance: largest difference that rounding may make. name: what the file is.
    """

    name: str
    data: bytes = field(repr=False)
    pixels: NDArray[np.uint8] | None = field(repr=False)
    tolerance: int = 0


def photo() -> NDArray[np.uint8]:
    """A picture with all values 0..255, no symmetry, and three different channels."""
    rng = np.random.default_rng(17)
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    picture = np.stack([255 * x / (WIDTH - 1), 255 * y / (HEIGHT - 1), 255 - 6 * np.abs(x - y)], axis=2)
    picture[4:9, 3:20] = rng.integers(0, 256, (5, 17, 3))
    picture[0, :2] = ((0, 0, 0), (255, 255, 255))
    return np.clip(picture, 0, 255).astype(np.uint8)


def widened(values: NDArray[Any], bits: int) -> Samples:
    """8-bit values as samples of another depth, 255 as its largest."""
    return np.rint(values.astype(float) * ((1 << bits) - 1) / 255).astype(np.uint16)


def narrowed(samples: Samples, bits: int) -> NDArray[np.uint8]:
    """The 8-bit values of `widened`; with fewer than 8 bits the nearest that there are."""
    return np.rint(samples.astype(float) * 255 / ((1 << bits) - 1)).astype(np.uint8)


# ---- TIFF -----------------------------------------------------------------------------------------

_TYPES = {"B": 1, "s": 2, "H": 3, "I": 4, "b": 6, "h": 8, "i": 9, "Q": 16}
_COMPRESSIONS = {"none": 1, "LZW": 5, "Deflate": 8, "old Deflate": 32946, "PackBits": 32773, "LZMA": 34925}
_CCITT = {"CCITT RLE": (2, "tiff_ccitt"), "CCITT G3": (3, "group3"), "CCITT G4": (4, "group4")}
Tags = dict[int, tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Layout:
    """How samples lie in a TIFF. block: rows of a strip, or height and width of a tile; 0 for one strip."""

    order: str = "<"
    big: bool = False
    separate: bool = False
    block: int | tuple[int, int] = 0
    compression: str = "none"
    predictor: bool = False
    reversed_bits: bool = False

    def __str__(self) -> str:
        words = ["II" if self.order == "<" else "MM", "big" * self.big, "planar" * self.separate, f"block {self.block}"]
        words += [self.compression, "predictor" * self.predictor, "reversed bits" * self.reversed_bits]
        return " ".join(filter(None, words))


def packed(samples: Samples, bits: int, order: str) -> bytes:
    """Samples (rows, columns, channels) as the file has them: each row begins with a byte."""
    rows = samples.reshape(samples.shape[0], -1)
    if bits == 16:
        return rows.astype(order + "u2").tobytes()
    if bits == 8:
        return rows.astype(np.uint8).tobytes()
    places = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(places.reshape(rows.shape[0], -1).astype(np.uint8), axis=1).tobytes()


def _pack_bits(data: bytes, row_bytes: int) -> bytes:
    out = b""
    for start in range(0, len(data), row_bytes):
        row = data[start : start + row_bytes]
        for at in range(0, len(row), 100):
            part = row[at : at + 100]
            alike = len(part) > 1 and len(set(part)) == 1
            out += bytes([257 - len(part), part[0]]) if alike else bytes([len(part) - 1]) + part
    return out


def _compressed(block: Samples, bits: int, layout: Layout) -> bytes:
    if layout.compression in _CCITT:
        file = io.BytesIO()
        Image.fromarray(block[..., 0].astype(bool)).convert("1").save(
            file, "TIFF", compression=_CCITT[layout.compression][1], strip_size=1 << 30
        )
        image = Image.open(io.BytesIO(file.getvalue()))
        start, length = image.tag_v2[273][0], image.tag_v2[279][0]
        assert len(image.tag_v2[273]) == 1
        data = file.getvalue()[start : start + length]
        return data if image.tag_v2.get(266, 1) == 1 else bytes(imagecodecs.bitorder_decode(data))
    if layout.predictor:
        block = np.diff(block, axis=1, prepend=np.zeros_like(block[:, :1])) & ((1 << bits) - 1)
    data = packed(block, bits, layout.order)
    row_bytes = len(data) // block.shape[0]
    if layout.compression == "LZMA":
        return lzma.compress(data)
    return {
        "none": lambda: data,
        "LZW": lambda: bytes(imagecodecs.lzw_encode(data)),
        "Deflate": lambda: zlib.compress(data),
        "old Deflate": lambda: zlib.compress(data),
        "PackBits": lambda: _pack_bits(data, row_bytes),
    }[layout.compression]()


def _blocks(samples: Samples, layout: Layout) -> Iterator[Samples]:
    height, width, channels = samples.shape
    planes = [samples[..., [i]] for i in range(channels)] if layout.separate else [samples]
    for plane in planes:
        if isinstance(layout.block, int):
            rows = layout.block or height
            yield from (plane[top : top + rows] for top in range(0, height, rows))
            continue
        tall, wide = layout.block
        whole = np.zeros((-(-height // tall) * tall, -(-width // wide) * wide, plane.shape[2]), np.uint16)
        whole[:height, :width] = plane
        for top, left in itertools.product(range(0, height, tall), range(0, width, wide)):
            yield whole[top : top + tall, left : left + wide]


def tiff(samples: Samples, bits: int, photometric: int, layout: Layout, tags: Tags | None = None) -> bytes:
    """A TIFF of samples (height, width, channels), with further tags: {number: (code of struct, values)}."""
    blocks = [_compressed(block, bits, layout) for block in _blocks(samples, layout)]
    return tiff_of_blocks(blocks, samples.shape, bits, photometric, layout, tags)


def tiff_of_blocks(
    blocks: list[bytes], shape: tuple[int, ...], bits: int, photometric: int, layout: Layout, tags: Tags | None = None
) -> bytes:
    """A TIFF of blocks that are packed already; see `tiff`."""
    height, width, channels = shape
    if layout.reversed_bits:
        blocks = [bytes(imagecodecs.bitorder_decode(block)) for block in blocks]
    order, position = layout.order, "Q" if layout.big else "I"
    start = 16 if layout.big else 8
    offsets = tuple(itertools.accumulate((len(block) + len(block) % 2 for block in blocks), initial=start))[:-1]
    compression = _COMPRESSIONS.get(layout.compression) or _CCITT[layout.compression][0]
    all_tags: Tags = {
        256: (position, (width,)), 257: (position, (height,)), 258: ("H", (bits,) * channels),
        259: ("H", (compression,)), 262: ("H", (photometric,)), 277: ("H", (channels,)),
        284: ("H", (2 if layout.separate else 1,)),
    }  # fmt: skip
    if isinstance(layout.block, int):
        all_tags |= {273: (position, offsets), 278: ("I", (layout.block or height,))}
        all_tags[279] = (position, tuple(map(len, blocks)))
    else:
        tall, wide = layout.block
        all_tags |= {322: ("I", (wide,)), 323: ("I", (tall,)), 324: (position, offsets)}
        all_tags[325] = (position, tuple(map(len, blocks)))
    if layout.predictor:
        all_tags[317] = ("H", (2,))
    if layout.reversed_bits:
        all_tags[266] = ("H", (2,))
    all_tags |= tags or {}
    body = b"".join(block + bytes(len(block) % 2) for block in blocks)
    at = start + len(body)
    values_at = at + (8 + 20 * len(all_tags) + 8 if layout.big else 2 + 12 * len(all_tags) + 4)
    room, entries, values = 8 if layout.big else 4, b"", b""
    for number, (code, numbers) in sorted(all_tags.items()):
        data = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
        entry = struct.pack(order + ("HHQ" if layout.big else "HHI"), number, _TYPES[code], len(numbers))
        if len(data) > room:
            entries += entry + struct.pack(order + position, values_at + len(values))
            values += data + bytes(len(data) % 2)
        else:
            entries += entry + data.ljust(room, b"\0")
    magic = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if layout.big else 42)
    head = magic + (struct.pack(order + "HHQ", 8, 0, at) if layout.big else struct.pack(order + "I", at))
    count = struct.pack(order + ("Q" if layout.big else "H"), len(all_tags))
    return head + body + count + entries + bytes(8 if layout.big else 4) + values


@dataclass(frozen=True)
class Kind:
    """A kind of samples, as photometric interpretation, depth and further tags. make(upright) -> samples, pixels."""

    name: str
    photometric: int
    bits: int
    channels: int
    extra: int | None = None
    max_sample: int | None = None
    small_map: bool = False
    tolerance: int = 0

    def picture(self) -> tuple[Samples, NDArray[np.uint8], Tags]:
        """The upright samples, the pixels that they mean, and the tags that say so."""
        rng, rgb = np.random.default_rng(self.bits), photo()
        bits, most = self.bits, (1 << self.bits) - 1
        tags: Tags = {}
        if self.max_sample is not None:
            bits, most, tags[281] = (
                self.max_sample.bit_length(),
                self.max_sample,
                ("H", (self.max_sample,) * self.channels),
            )
        if self.photometric == 3:
            index = widened(rgb[..., :1], bits)
            colours = rng.integers(0, 256, (most + 1, 3))
            stored = colours if self.small_map else colours * 257
            tags[320] = ("H", tuple(map(int, stored.T.ravel())))
            return index, colours[index[..., 0]].astype(np.uint8), tags
        count = {0: 1, 1: 1, 2: 3, 5: 4}[self.photometric]
        eight = np.concatenate([rgb, rgb[::-1, :, :1]], axis=2)[..., :count]
        samples = widened(eight, bits)
        exact = narrowed(samples, bits).astype(float)
        if bits > 8:
            exact = eight.astype(float)
        if self.photometric == 0:
            exact = 255 - exact
        if self.photometric == 5:
            exact = (255 - exact[..., :3]) * (255 - exact[..., 3:]) / 255
        if exact.shape[2] == 1:
            exact = exact.repeat(3, 2)
        if self.extra is not None:
            opacity = rgb[:, ::-1, 1:2].copy()
            opacity[:4], opacity[-4:] = 0, 255
            alpha = widened(opacity, bits)
            if self.extra:
                part = alpha / most
                exact = exact * part + 255 * (1 - part)
            if self.extra == 1:
                samples = np.rint(samples * (alpha / most)).astype(np.uint16)
            samples = np.concatenate([samples, alpha], axis=2)
            tags[338] = ("H", (self.extra,))
        return samples, np.rint(exact).astype(np.uint8), tags


def kinds() -> list[Kind]:
    """All kinds of samples that must be read."""
    grey = [
        Kind(f"{name} {bits} bit", photometric, bits, 1)
        for (name, photometric), bits in itertools.product(
            (("black", 1), ("white", 0)), (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16)
        )
    ]
    colour = [Kind(f"RGB {bits} bit", 2, bits, 3) for bits in (1, 2, 4, 8, 9, 10, 12, 14, 16)]
    maps = [Kind(f"palette {bits} bit", 3, bits, 1) for bits in (1, 2, 4, 8)]
    maps += [Kind(f"palette {bits} bit of 8-bit colours", 3, bits, 1, small_map=True) for bits in (1, 2, 4, 8)]
    inks = [Kind(f"CMYK {bits} bit", 5, bits, 4, tolerance=2) for bits in (8, 16)]
    alpha = [
        Kind(f"{name} {bits} bit with extra {extra}", photometric, bits, channels, extra, tolerance=2 if extra else 0)
        for (name, photometric, channels), bits, extra in itertools.product(
            (("black", 1, 2), ("white", 0, 2), ("RGB", 2, 4)), (8, 16), (0, 1, 2)
        )
        if (photometric, extra) != (0, 1)  # What a white that is multiplied by alpha is, is not defined.
    ]
    limited = [
        Kind(f"{name} {top} of 16 bit", photometric, 16, channels, max_sample=top)
        for (name, photometric, channels), top in itertools.product(
            (("black", 1, 1), ("RGB", 2, 3)), (1023, 4095, 16383)
        )
    ]
    return [*grey, *colour, *maps, *inks, *alpha, *limited]


_ORIENTATION_TYPES = "HBbhiI"


def tiffs() -> Iterator[Callable[[], KnownFile]]:
    """Each kind of samples in each layout, byte order and compression; orientations and their types take turns."""
    layouts = ((kind, layout) for kind in kinds() for layout in _layouts(kind))
    for number, (kind, layout) in enumerate(layouts):
        yield partial(_tiff_file, kind, layout, 1 + number % 8, _ORIENTATION_TYPES[number // 8 % 6])
    yield from (partial(lambda file: file, file) for file in refused_tiffs())


def _tiff_file(kind: Kind, layout: Layout, orientation: int, code: str) -> KnownFile:
    upright, pixels, tags = _picture(kind)
    stored = stored_for(orientation, upright)  # type: ignore[arg-type]
    data = tiff(stored, kind.bits, kind.photometric, layout, {**tags, 274: (code, (orientation,))})
    name = f"{kind.name}, {layout}, orientation {orientation} of type {code}"
    return KnownFile(name, data, pixels, kind.tolerance)


@cache
def _picture(kind: Kind) -> tuple[Samples, NDArray[np.uint8], Tags]:
    return kind.picture()


def _layouts(kind: Kind) -> Iterator[Layout]:
    blocks: tuple[int | tuple[int, int], ...] = (0, 5, (16, 16), (32, 48))
    for order, block, compression in itertools.product("<>", blocks, _COMPRESSIONS):
        big = (len(compression) + (block != 0)) % 3 == 0
        yield Layout(order, big, False, block, compression)
        if kind.channels > 1:
            yield Layout(order, not big, True, block, compression)
        if compression in ("LZW", "Deflate") and kind.bits in (8, 16) and kind.photometric != 3:
            yield Layout(order, big, kind.channels > 1 and order == ">", block, compression, predictor=True)
    if kind.bits == 1 and kind.channels == 1 and kind.photometric < 2:
        for order, block, compression in itertools.product("<>", (0, 5), _CCITT):
            yield Layout(order, False, False, block, compression)
            yield Layout(order, False, False, block, compression, reversed_bits=True)
    if kind.bits < 9:
        yield Layout("<", reversed_bits=True)


def refused_tiffs() -> Iterator[KnownFile]:
    """Samples whose black or white is unknown."""
    for order, (form, name), bits, channels in itertools.product(
        "<>", ((2, "int"), (3, "float"), (1, "uint"), (5, "complex int"), (6, "complex")), (8, 16, 24, 32, 64), (1, 3)
    ):
        if form == 1 and bits <= 16:
            continue
        shape = (HEIGHT, WIDTH, channels)
        body = np.random.default_rng(bits).bytes(HEIGHT * WIDTH * channels * bits // 8)
        tags: Tags = {339: ("H", (form,) * channels)}
        data = tiff_of_blocks([body], shape, bits, 2 if channels == 3 else 1, Layout(order), tags)
        yield KnownFile(f"{name}{bits} of {channels} channels {order}", data, None)


# ---- PNG ------------------------------------------------------------------------------------------

_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Of each pass of Adam7: first row, first column, step of rows, step of columns.
_ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def _filtered(rows: Samples, bits: int, first_filter: int) -> bytes:
    """The rows of a pass, with filters 0, 1 and 2 in turn."""
    if not rows.size:
        return b""
    channels = rows.shape[2]
    step, before, out = max(1, bits * channels // 8), None, b""
    for number, row in enumerate(rows):
        line = np.frombuffer(packed(row[None], bits, ">"), np.uint8)
        before = np.zeros_like(line) if before is None else before
        how = (first_filter + number) % 3
        left = np.concatenate([np.zeros(step, np.uint8), line[:-step]])[: len(line)]
        out += bytes([how]) + (line - (np.zeros_like(line), left, before)[how]).tobytes()
        before = line
    return out


def png(
    samples: Samples, bits: int, colour: int, chunks: tuple[tuple[bytes, bytes], ...] = (), *, interlaced: bool
) -> bytes:
    """A PNG of samples (height, width, channels), with chunks before its pixels."""
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    lines = b"".join(
        _filtered(samples[top::down, left::across], bits, number)
        for number, (top, left, down, across) in enumerate(passes)
    )
    header = struct.pack(">IIBBBBB", samples.shape[1], samples.shape[0], bits, colour, 0, 0, int(interlaced))
    body = zlib.compress(lines)
    data = ((b"IHDR", header), *chunks, (b"IDAT", body[:50]), (b"IDAT", body[50:]), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in data)


def pngs() -> Iterator[Callable[[], KnownFile]]:
    """Each colour type and depth, interlaced or not, with or without transparency, in all orientations."""
    for colour, interlaced, clear, orientation in itertools.product(_DEPTHS, (False, True), (False, True), range(1, 9)):
        for bits in _DEPTHS[colour]:
            if clear and colour > 3:
                continue
            yield partial(_png_file, colour, bits, interlaced, clear, orientation)


def _png_file(colour: int, bits: int, interlaced: bool, clear: bool, orientation: int) -> KnownFile:
    samples, pixels, chunks = _png_picture(colour, bits, clear)
    exif = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 274, 3, 1, orientation, 0, 0)
    chunks += ((b"eXIf", b"Exif\0\0" * (orientation % 2) + exif),)
    stored = stored_for(orientation, samples)  # type: ignore[arg-type]
    data = png(stored, bits, colour, chunks, interlaced=interlaced)
    name = f"PNG of type {colour}, {bits} bit, interlaced {interlaced}, clear {clear}, turned {orientation}"
    return KnownFile(name, data, pixels, 2 if colour > 3 or (colour == 3 and clear) else 0)


def _png_picture(
    colour: int, bits: int, clear: bool
) -> tuple[Samples, NDArray[np.uint8], tuple[tuple[bytes, bytes], ...]]:
    """The samples and pixels of a kind of PNG, and its PLTE and tRNS chunks."""
    rgb, rng = photo(), np.random.default_rng(bits)
    eight = np.concatenate([rgb, rgb[:, ::-1, 1:2]], axis=2)
    if colour == 3:
        index = widened(rgb[..., :1], bits)
        colours, opacity = rng.integers(0, 256, (1 << bits, 3)), rng.integers(0, 256, (1 << bits, 1))
        part = opacity / 255 if clear else np.ones_like(opacity)
        flat = np.rint(colours * part + 255 * (1 - part)).astype(np.uint8)
        chunks: tuple[tuple[bytes, bytes], ...] = ((b"PLTE", colours.astype(np.uint8).tobytes()),)
        return index, flat[index[..., 0]], chunks + (((b"tRNS", opacity.astype(np.uint8).tobytes()),) if clear else ())
    channels = {0: [0], 2: [0, 1, 2], 4: [0, 3], 6: [0, 1, 2, 3]}[colour]
    samples = widened(eight[..., channels], bits)
    if bits == 16:  # Lower bytes that differ where upper ones agree.
        samples = (eight[..., channels].astype(np.uint16) << 8) + rng.integers(0, 256, samples.shape, np.uint16)
    exact = (samples >> 8 if bits == 16 else narrowed(samples, bits)).astype(float)
    colours = exact[..., :-1] if colour > 3 else exact
    flat = colours.repeat(3, 2) if colours.shape[2] == 1 else colours
    if colour > 3:
        part = exact[..., -1:] / 255
        flat = flat * part + 255 * (1 - part)
    pixels = np.rint(flat).astype(np.uint8)
    if not clear:
        return samples, pixels, ()
    key = samples[HEIGHT // 2, WIDTH // 2]
    pixels[(samples == key).all(axis=2)] = 255
    return samples, pixels, ((b"tRNS", struct.pack(f">{len(key)}H", *map(int, key))),)
