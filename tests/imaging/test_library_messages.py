"""Nothing that libraries write about broken files reaches standard error, as a worker's log shows."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

_DECODE = """
import ctypes, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from segray.errors import ImageError
from segray.imaging.decode import decode

def outcome(path):
    try:
        return f"{path.stem}: {decode(path.read_bytes()).size_hw}"
    except ImageError as error:
        return f"{path.stem}: {error}"

libc = ctypes.CDLL(None)
libc.perror(b"before")
with ThreadPoolExecutor(4) as threads:
    print(*threads.map(outcome, sorted(Path(sys.argv[1]).iterdir()) * 8), sep="\\n")
libc.perror(b"after")
"""
_PIXELS = np.kron(np.random.default_rng(1).integers(0, 255, (8, 8, 3), np.uint8), np.ones((8, 8, 1), np.uint8))


def _by_pillow(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(_PIXELS).save(file, kind, **options)
    return file.getvalue()


def _tiff(**options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, _PIXELS, photometric="rgb", metadata=None, **options)
    return file.getvalue()


def _damaged(data: bytes) -> bytes:
    """Return a file with twenty wrong bytes in the middle."""
    middle = len(data) // 2
    return data[:middle] + b"\x5b" * 20 + data[middle + 20 :]


def _png_without_its_last_rows(*, interlaced: bool) -> bytes:
    rows = b"".join(b"\0" + row.tobytes() for row in _PIXELS[:40])
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, interlaced)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    packed = (
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def test_libraries_write_nothing_about_broken_files(tmp_path: Path) -> None:
    files = {
        "jpeg": _damaged(_by_pillow("JPEG")),
        "progressive": _damaged(_by_pillow("JPEG", progressive=True)),
        "jpeg_2000": _damaged(_by_pillow("JPEG2000")),
        "webp": _damaged(_by_pillow("WEBP")),
        "png": _png_without_its_last_rows(interlaced=False),
        "interlaced": _png_without_its_last_rows(interlaced=True),
        "tiff_jpeg": _damaged(_tiff(compression="jpeg")),
        "tiff_lzw": _damaged(_tiff(compression="lzw")),
    }
    folder = tmp_path / "files"
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-c", _DECODE, str(folder)], capture_output=True, text=True, check=True, timeout=60
    )
    outcomes = done.stdout.splitlines()
    assert len(outcomes) == 8 * len(files)
    assert sum("cannot be decoded" in line or "ends early" in line for line in outcomes) >= 8 * 2
    # C's own lines outside of a decode are shown.
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["before", "after"]
