"""`python -m benchmarks.bench_decode [--against TREE]`: CPU time of decoding, by kind of file.

With --against, another checkout decodes the same files in turn with this one, A B A B, each in a process of its own.
The table then has the median of the ratios of all pairs, which holds when the machine's speed drifts, and the ratio of
the best times, which holds when other programs disturb some of the runs.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

SIZES_WH = {"photo": (4000, 3000), "web": (640, 480)}
_HERE = Path(__file__).resolve().parents[1]
# A child answers each line (a file's name) with the CPU seconds of one decode.
_CHILD = """
import sys, time
from pathlib import Path
from segray.imaging.decode import decode
for line in sys.stdin:
    name, repeats = line.split("|")
    data = Path(name).read_bytes()
    start_s = time.process_time()
    try:
        for _ in range(int(repeats)):
            decode(data)
        print((time.process_time() - start_s) / int(repeats), flush=True)
    except Exception as error:
        print("nan", flush=True)
"""


def picture(width: int, height: int) -> NDArray[np.uint8]:
    """Return a smooth picture with some noise, as a camera's."""
    rng = np.random.default_rng(5)
    smooth = cv2.resize(rng.integers(0, 255, (8, 12, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    noise = rng.integers(-6, 7, (height, width, 1))
    return np.asarray(np.clip(smooth + noise, 0, 255), np.uint8)


def by_pillow(kind: str, mode: str = "RGB", **options: Any) -> Callable[[NDArray[np.uint8]], bytes]:
    def write(pixels: NDArray[np.uint8]) -> bytes:
        file, image = io.BytesIO(), Image.fromarray(pixels)
        (image.quantize(64) if mode == "P" else image.convert(mode)).save(file, kind, **options)
        return file.getvalue()

    return write


def by_tifffile(**options: Any) -> Callable[[NDArray[np.uint8]], bytes]:
    def write(pixels: NDArray[np.uint8]) -> bytes:
        file = io.BytesIO()
        tifffile.imwrite(file, pixels, photometric="rgb", metadata=None, **options)
        return file.getvalue()

    return write


FAST: dict[str, Any] = {"compress_level": 3}
FILES: dict[str, Callable[[NDArray[np.uint8]], bytes]] = {
    "JPEG": by_pillow("JPEG", quality=90),
    "JPEG progressive": by_pillow("JPEG", quality=90, progressive=True),
    "JPEG grey": by_pillow("JPEG", "L", quality=90),
    "JPEG CMYK": by_pillow("JPEG", "CMYK", quality=90),
    "PNG": by_pillow("PNG", **FAST),
    "PNG RGBA": by_pillow("PNG", "RGBA", **FAST),
    "PNG grey": by_pillow("PNG", "L", **FAST),
    "PNG palette": by_pillow("PNG", "P", **FAST),
    "PNG 16 bit": lambda pixels: cv2.imencode(".png", pixels.astype(np.uint16) * 257)[1].tobytes(),
    "WebP": by_pillow("WEBP", quality=85, method=1),
    "TIFF raw": by_pillow("TIFF"),
    "TIFF Deflate": by_pillow("TIFF", compression="tiff_adobe_deflate"),
    "TIFF LZW": by_pillow("TIFF", compression="tiff_lzw"),
    "TIFF PackBits": by_pillow("TIFF", compression="packbits"),
    "TIFF JPEG": by_pillow("TIFF", compression="jpeg", quality=90),
    "TIFF Deflate tiles": by_tifffile(compression="zlib", predictor=True, tile=(256, 256)),
    "TIFF LZW predictor": by_tifffile(compression="lzw", predictor=True, rowsperstrip=16),
    "TIFF JPEG tiles": by_tifffile(compression="jpeg", tile=(256, 256)),
    "TIFF G4": by_pillow("TIFF", "1", compression="group4"),
}


def start(tree: Path) -> subprocess.Popen[str]:
    """Start a child that decodes with the package in a checkout."""
    malloc = {"MALLOC_MMAP_THRESHOLD_": str(4 << 20)}  # As in a worker: memory.return_large_blocks.
    environment = os.environ | malloc | {"PYTHONPATH": str(tree), "OPENCV_FOR_THREADS_NUM": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", _CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
        cwd=tree,
    )


def decode_s(child: subprocess.Popen[str], file: Path, repeats: int) -> float:
    """Return the CPU seconds of a decode in a child; NaN if the child refuses the file."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{file}|{repeats}\n")
    child.stdin.flush()
    return float(child.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--only", default="", help="begin of the names of the kinds to measure")
    parser.add_argument("--json", action="store_true", help="print rows as JSON")
    options = parser.parse_args()
    trees = [_HERE, *([options.against.resolve()] if options.against else [])]
    children = [start(tree) for tree in trees]
    with tempfile.TemporaryDirectory() as folder:
        for size, (width, height) in SIZES_WH.items():
            repeats = 1 if width > 1000 else 20
            pixels = picture(width, height)
            for kind, write in FILES.items():
                if not kind.startswith(options.only):
                    continue
                file = Path(folder, "file")
                file.write_bytes(write(pixels))
                for child in children:
                    decode_s(child, file, repeats)
                pairs = [[decode_s(child, file, repeats) for child in children] for _ in range(options.pairs)]
                best_s = [min(seconds) for seconds in zip(*pairs, strict=True)]
                row: dict[str, Any] = {"size": size, "kind": kind, "best_ms": [round(1e3 * s, 2) for s in best_s]}
                if options.against:
                    row["best_ratio"] = round(best_s[0] / best_s[1], 3)
                    row["median_ratio"] = round(statistics.median(ours / theirs for ours, theirs in pairs), 3)
                print(json.dumps(row) if options.json else "  ".join(map(str, row.values())), flush=True)
    for child in children:
        child.communicate()


if __name__ == "__main__":
    main()
