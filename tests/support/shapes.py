"""The same images in every shape that a source may have, for tests that hold all shapes to one contract."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

Files = Mapping[str, bytes]


@dataclass(frozen=True)
class Shaped:
    """A source as configured, and which key each of the images that went in has there."""

    uri: str
    keys: Mapping[str, str]
    source: Mapping[str, Any] = field(default_factory=dict)
    holder: Path | None = None


def folder(files: Files, at: Path) -> Shaped:
    for name, data in files.items():
        (at / name).parent.mkdir(parents=True, exist_ok=True)
        (at / name).write_bytes(data)
    return Shaped(str(at), {name: name for name in files})


def tar(files: Files, at: Path) -> Shaped:
    """Two WebDataset shards, with the JSON and text that their samples have."""
    at.mkdir(parents=True, exist_ok=True)
    names, keys = list(files), {}
    for number in range(2):
        shard = at / f"train-{number:04d}.tar"
        with tarfile.open(shard, "w") as archive:
            for name in names[number::2]:
                add(archive, name, files[name])
                add(archive, f"{Path(name).stem}.json", b"{}")
                keys[name] = f"{shard.name}/{name}"
    return Shaped(str(at), keys, holder=at / "train-0000.tar")


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **more: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in more.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(data))


def zipped(files: Files, at: Path) -> Shaped:
    """One archive, every second member deflated."""
    at.mkdir(parents=True, exist_ok=True)
    path = at / "photos.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i, (name, data) in enumerate(files.items()):
            archive.writestr(name, data, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[i % 2])
    return Shaped(str(path), {name: f"photos.zip/{name}" for name in files}, holder=path)


def hugging_face(files: Files, at: Path) -> Shaped:
    """A struct of bytes and path beside other columns, in row groups of three."""
    at.mkdir(parents=True, exist_ok=True)
    cells = [{"bytes": data, "path": name} for name, data in files.items()]
    table = pa.table({"image": cells, "label": list(range(len(cells)))})
    pq.write_table(table, at / "train-00000.parquet", row_group_size=3)
    return Shaped(str(at), _rows(files), holder=at / "train-00000.parquet")


def column(files: Files, at: Path) -> Shaped:
    """A column of bytes, found by its name."""
    at.mkdir(parents=True, exist_ok=True)
    path = at / "train-00000.parquet"
    pq.write_table(pa.table({"jpeg": list(files.values()), "thumbnail": [b""] * len(files)}), path)
    return Shaped(str(path), _rows(files), {"image_column": "jpeg"}, holder=path)


def _rows(files: Files) -> dict[str, str]:
    return {name: f"train-00000.parquet/{i:09d}" for i, name in enumerate(files)}


def inventory(files: Files, at: Path, kind: str = "CSV") -> Shaped:
    """A report over a bucket of these objects, which nobody can list: it is only told of."""
    rows = [(f"raw/{name}", len(data), f"etag{i}") for i, (name, data) in enumerate(files.items())]
    report = at / "2026-11-21T01-00Z" / "manifest.json"
    report.parent.mkdir(parents=True)
    (at / "data").mkdir()
    where = at / "data" / ("part.csv.gz" if kind == "CSV" else "part.parquet")
    if kind == "CSV":
        text = io.StringIO()
        writer = csv.writer(text, quoting=csv.QUOTE_ALL)
        writer.writerows(["a-bucket", quote(key), size, etag, "true", "false"] for key, size, etag in rows)
        writer.writerow(["a-bucket", "raw/old.jpg", 1, "x", "false", "false"])
        writer.writerow(["a-bucket", "raw/deleted.jpg", "", "", "true", "true"])
        writer.writerow(["a-bucket", "elsewhere/a.jpg", 1, "x", "true", "false"])
        where.write_bytes(gzip.compress(text.getvalue().encode()))
    else:
        columns = {"bucket": "a-bucket", "key": "key", "size": "size", "e_tag": "etag"}
        values = zip(*rows, strict=True)
        pq.write_table(
            pa.table({"bucket": ["a-bucket"] * len(rows), **dict(zip(list(columns)[1:], values, strict=True))}), where
        )
    facts = {
        "sourceBucket": "a-bucket",
        "destinationBucket": "arn:aws:s3:::reports",
        "fileFormat": kind,
        "fileSchema": "Bucket, Key, Size, ETag, IsLatest, IsDeleteMarker",
        "files": [{"key": f"reports/a-bucket/all/data/{where.name}", "size": where.stat().st_size}],
    }
    report.write_text(json.dumps(facts))
    return Shaped(str(report), {name: name for name in files}, {"prefix": "raw/"})


SHAPES: Mapping[str, Callable[[Files, Path], Shaped]] = {
    "folder": folder,
    "tar": tar,
    "zip": zipped,
    "hugging_face": hugging_face,
    "column": column,
}


# ---- videos ---------------------------------------------------------------------------------------


def video(path: Path, frames: int, fps: float = 10.0, size_wh: tuple[int, int] = (64, 48)) -> None:
    """Each frame tells its number, below 144, by the greys of its halves; those survive compression."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fourcc = cv2.VideoWriter.fourcc(*("MJPG" if path.suffix == ".avi" else "mp4v"))
    writer = cv2.VideoWriter(str(path), fourcc, fps, size_wh)
    assert writer.isOpened()
    for i in range(frames):
        picture = np.full((size_wh[1], size_wh[0], 3), i // 12 * 20 + 10, np.uint8)
        picture[:, size_wh[0] // 2 :] = i % 12 * 20 + 10
        writer.write(picture)
    writer.release()


def frame_of(picture: NDArray[np.uint8]) -> int:
    """Which frame of `video` it is."""
    middle = picture.shape[1] // 2
    tens, ones = (round((float(half.mean()) - 10) / 20) for half in (picture[:, :middle], picture[:, middle:]))
    return tens * 12 + ones
