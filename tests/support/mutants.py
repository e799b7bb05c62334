"""Image files taken apart and put together wrongly, with lengths and checksums that hold, so that decoders get far.

Knows the parts of each format: a JPEG's segments, a PNG's and a WebP's chunks, a TIFF's directory entries, a GIF's
blocks. `mutant` drops, doubles, swaps and fills them; knows nothing of segray.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable

_ODD_SIZES = (0, 1, 2, 7, 255, 256, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def mutant(data: bytes, rng: random.Random) -> bytes:
    """The file with a few of its parts changed."""
    magics = (
        (b"\xff\xd8", _jpeg),
        (b"\x89PNG", _png),
        (b"RIFF", _webp),
        (b"GIF", _gif),
        (b"II", _tiff),
        (b"MM", _tiff),
    )
    change = next((change for magic, change in magics if data.startswith(magic)), _bytes)
    for _ in range(rng.randint(1, 3)):
        try:
            data = change(data, rng)
        except (struct.error, zlib.error, IndexError, ValueError):  # Too broken by now to be taken apart.
            return _bytes(data, rng)
    return data


def _bytes(data: bytes, rng: random.Random) -> bytes:
    """Some bytes or a little or big number overwritten."""
    out = bytearray(data)
    if out:
        at = rng.randrange(len(out)) if rng.random() < 0.5 else rng.randrange(min(len(out), 64))
        number = rng.choice(_ODD_SIZES)
        value = rng.choice([rng.randbytes(rng.randint(1, 4)), struct.pack("<I", number), struct.pack(">I", number)])
        out[at : at + len(value)] = value
    return bytes(out)


def _shuffled(parts: list[bytes], rng: random.Random, fill: Callable[[bytes], bytes]) -> list[bytes]:
    """One part dropped, doubled many times, moved, or changed by `fill`."""
    if not parts:
        return parts
    parts, at = list(parts), rng.randrange(len(parts))
    match rng.choice(("drop", "double", "move", "fill", "fill")):
        case "drop":
            del parts[at]
        case "double":
            parts[at:at] = [parts[at]] * rng.choice((1, 2, 200))
        case "move":
            parts.insert(rng.randrange(len(parts)), parts.pop(at))
        case "fill":
            parts[at] = fill(parts[at])
    return parts


def _jpeg(data: bytes, rng: random.Random) -> bytes:
    """Segments up to the first scan; what follows is one part."""
    at, parts = 2, []
    while data[at] == 0xFF and data[at + 1] != 0xDA:
        end = at + 2 + struct.unpack_from(">H", data, at + 2)[0]
        parts.append(data[at:end])
        at = end

    def fill(part: bytes) -> bytes:
        body = _bytes(part[4:], rng) + rng.choice([b"", b"", rng.randbytes(9)])
        return part[:2] + struct.pack(">H", (len(body) + 2) & 0xFFFF) + body

    scans = data[at:] if rng.random() < 0.7 else _bytes(data[at:-2], rng) + data[-2:]
    return data[:2] + b"".join(_shuffled(parts, rng, fill)) + scans


def _png(data: bytes, rng: random.Random) -> bytes:
    at, parts = 8, []
    while at + 12 <= len(data):
        end = at + 12 + struct.unpack_from(">I", data, at)[0]
        parts.append(data[at + 4 : end - 4])
        at = end

    def fill(part: bytes) -> bytes:
        name, body = part[:4], part[4:]
        if name == b"IDAT" and rng.random() < 0.5:
            return name + zlib.compress(_bytes(zlib.decompress(body), rng)[: rng.randint(0, 20_000)])
        if rng.random() < 0.2:
            name = rng.choice((b"acTL", b"fcTL", b"fdAT", b"tRNS", b"PLTE", b"iCCP", b"IHDR", b"eXIf", b"zzzz"))
        return name + _bytes(body, rng)

    out = (struct.pack(">I", len(p) - 4) + p + struct.pack(">I", zlib.crc32(p)) for p in _shuffled(parts, rng, fill))
    return data[:8] + b"".join(out)


def _webp(data: bytes, rng: random.Random) -> bytes:
    at, parts = 12, []
    while at + 8 <= len(data):
        end = at + 8 + struct.unpack_from("<I", data, at + 4)[0]
        parts.append(data[at:end])
        at = end + (end - at) % 2

    def fill(part: bytes) -> bytes:
        name = part[:4] if rng.random() < 0.8 else rng.choice((b"VP8X", b"VP8L", b"VP8 ", b"ANIM", b"ANMF", b"ALPH"))
        body = _bytes(part[8:], rng)
        return name + struct.pack("<I", len(body)) + body

    body = b"".join(part + bytes(len(part) % 2) for part in _shuffled(parts, rng, fill))
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _gif(data: bytes, rng: random.Random) -> bytes:
    """Extensions and frames, each with its sub-blocks."""
    at = start = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    parts = []
    while data[at] != ord(";"):
        first, at = at, at + 2
        if data[first] == ord(","):
            flags = data[first + 9]
            at = first + 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
        while data[at]:
            at += 1 + data[at]
        at += 1
        parts.append(data[first:at])
    head = data[:start] if rng.random() < 0.7 else data[:6] + _bytes(data[6:start], rng)
    return head + b"".join(_shuffled(parts, rng, lambda part: part[:1] + _bytes(part[1:], rng))) + data[at:]


def _tiff(data: bytes, rng: random.Random) -> bytes:
    """Entries of the first directory: another tag, type, count or value; or entries of another directory."""
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    head, layout = (8, "HHQQ") if big else (2, "HHII")
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    entry = struct.Struct(order + layout)
    out = bytearray(data)
    at = start + head + entry.size * rng.randrange(count)
    fields = list(entry.unpack_from(data, at))
    tags = (256, 257, 258, 259, 262, 266, 273, 274, 277, 278, 279, 284, 317, 320, 322, 323, 324, 338, 339, 347, 34665)
    match rng.randrange(5):
        case 0:
            fields[0] = rng.choice(tags)
        case 1:
            fields[1] = rng.randrange(19)
        case 2:
            fields[2] = rng.choice((*_ODD_SIZES, fields[2] + 1))
        case 3:
            fields[3] = rng.choice((*_ODD_SIZES, *range(9), len(data) - 1, start))
        case 4:
            other = start + head + entry.size * rng.randrange(count)
            fields = list(entry.unpack_from(data, other))
    entry.pack_into(out, at, *fields)
    return bytes(out)
