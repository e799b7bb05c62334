"""The common parts of the writers: an image with its rows, the settings, and small files.

This module knows where an exported image lies and how a new file is written. The writers know the formats.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from segray import rle
from segray.analytics.export import polygons
from segray.analytics.export.names import is_image_name, path_of_key, without_image_extension
from segray.errors import UserError
from segray.label_set.schema import BBOX

Row = dict[str, Any]
_LOSS_SAMPLED = 1000  # Instances whose polygons are drawn to measure the IoU.
_EXTENSIONS = {
    b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"BM": ".bmp", b"GIF8": ".gif", b"RIFF": ".webp", b"II*\0": ".tif",
    b"MM\0*": ".tif",
}  # fmt: skip


@dataclass(frozen=True)
class ExportedImage:
    """One image and its instances, as the tables have them.

    id: number in the export, or id of the image in a COCO truth. size_hw: height and width, in pixels.
    name: path below a folder; None for the path of the key. extension: extension of the exported file, where the key
    has none. split: name of the split that has the image, "" without splits.
    """

    id: int
    key: str
    uri: str
    size_hw: tuple[int, int]
    rows: Sequence[Row]
    extension: str = ""
    name: PurePosixPath | None = None
    split: str = ""

    @property
    def file(self) -> PurePosixPath:
        """Return the path below a folder."""
        return PurePosixPath(f"{self.name or path_of_key(self.key)}{self.extension}")

    def file_with_extension(self, extension: str) -> PurePosixPath:
        """Return the path of a file that describes the image: the path of the image with another extension.

        Only the extension of an image file is replaced. The key of a video frame may end in other text after a dot.
        """
        return PurePosixPath(f"{without_image_extension(self.file)}{extension}")


@dataclass
class PolygonLoss:
    """The IoU of masks with their polygons, as pycocotools draws the polygons.

    measured: number of instances that were drawn, at most _LOSS_SAMPLED. total, least: sum and minimum of their IoU.
    """

    measured: int = 0
    total: float = 0.0
    least: float = 1.0

    def add(self, rings: Sequence[polygons.Ring], row: Row, size_hw: tuple[int, int]) -> None:
        """Add the IoU of one instance, unless enough instances were drawn.

        rings: the polygons of the instance, each (n, 2) x, y in pixels.
        """
        if self.measured < _LOSS_SAMPLED and rings:
            iou = polygons.overlap(rings, row["rle"], size_hw)
            self.measured, self.total, self.least = self.measured + 1, self.total + iou, min(self.least, iou)

    @property
    def mean_iou(self) -> float | None:
        """Return the mean IoU; None if no instance was drawn."""
        return self.total / self.measured if self.measured else None


@dataclass(frozen=True)
class Settings:
    """The settings of a writer.

    out: file or folder to write. classes: name by category id. tolerance_px: largest distance of polygons from the
    mask. polygons: COCO files have polygons in place of run lengths. read: returns the bytes of an image; None where
    images are not copied. loss: receives the IoU of polygons with their masks. images_only: the file has no labels, and
    does not state that an image is empty. companion: second file of a format that has two; None for other formats.
    splits: names of the splits, for formats that have all splits in one export.
    """

    out: Path
    classes: Mapping[int, str]
    tolerance_px: float = 0.0
    polygons: bool = False
    read: Callable[[str], bytes] | None = None
    loss: PolygonLoss = field(default_factory=PolygonLoss)
    images_only: bool = False
    companion: Path | None = None
    splits: Sequence[str] = ()


class ExportWriter(Protocol):
    """A writer of images in the order of their keys. The export is incomplete before close."""

    def add(self, image: ExportedImage) -> None: ...
    def close(self) -> None: ...


class JsonArray:
    """A JSON array that is written element by element."""

    def __init__(self, path: Path) -> None:
        self._file, self._first = path.open("w", encoding="utf-8"), True
        self._file.write("[")

    def add(self, element: Any) -> None:
        """Write one element."""
        self._file.write(("" if self._first else ",\n") + json.dumps(element, separators=(",", ":")))
        self._first = False

    def close(self) -> None:
        """Write the end of the array, and close the file."""
        self._file.write("]\n")
        self._file.close()


def with_image_file(image: ExportedImage, settings: Settings, folder: str = "") -> ExportedImage:
    """Write the image below a folder of the export, if images are copied. Return the image with its file extension."""
    if settings.read is None:
        return image
    data = settings.read(image.uri)
    if not is_image_name(image.file):
        extensions = (extension for magic, extension in _EXTENSIONS.items() if data.startswith(magic))
        image = replace(image, extension=next(extensions, ""))
    write_new_file(settings.out / folder / image.file, data, image.key)
    return image


def write_new_file(path: Path, data: bytes, key: str) -> None:
    """Write a new file of the image with this key. Raise UserError if another image has the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with path.open("xb") as file:
            file.write(data)
    except FileExistsError as error:
        raise UserError(
            "two images would be written to one file", where=str(path), found=f"{key}, and an image of this name",
            hint="Export the two images one by one with `--where`, or choose another format with `--to`.",
        ) from error  # fmt: skip


def printable(text: str) -> str:
    """Replace each character that XML cannot hold."""
    return re.sub(r"[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def box_xywh(row: Row) -> list[float]:
    """Return the row's box: x, y, width, height in pixels."""
    return [float(row[name]) for name in BBOX]


def shortest_score(row: Row) -> float:
    """Return the row's score with the fewest digits that give the same float32."""
    return float(str(np.float32(row["score"])))


def row_runs(counts: str, size_hw: tuple[int, int]) -> NDArray[np.int64]:
    """Return the lengths of a mask's runs row by row, (n,) int64, of 0 and 1 in turn.

    The first run is of 0 and may be empty.
    """
    flat = rle.decode(counts, size_hw).ravel()
    starts = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(starts, prepend=0, append=len(flat))
    return np.insert(runs, 0, 0) if flat.size and flat[0] else runs
