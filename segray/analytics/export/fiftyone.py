"""A writer for FiftyOne: a COCO dataset and a list of the images' URIs."""

from __future__ import annotations

import json
from dataclasses import replace

from segray import rle
from segray.analytics.export.coco import Coco
from segray.analytics.export.writer import ExportedImage, Row, Settings, with_image_file
from segray.label_set.schema import BBOX


class FiftyOne:
    """A writer of FiftyOne's COCODetectionDataset: labels.json with run lengths, and data.json with the images' URIs.

    Each box is the bounding box of its mask, not the box of the model, because FiftyOne cuts a mask off at its box.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._coco = Coco(Settings(settings.out / "labels.json", settings.classes), lambda image: str(image.file))
        self._data = (settings.out / "data.json").open("w", encoding="utf-8") if settings.read is None else None
        self._first = True

    def add(self, image: ExportedImage) -> None:
        image = with_image_file(image, self._settings, "data")
        self._coco.add(replace(image, rows=[_with_box_of_mask(row, image.size_hw) for row in image.rows]))
        if self._data is not None:
            self._data.write("{" if self._first else ",")
            self._data.write(f"\n{json.dumps(str(image.file))}: {json.dumps(image.uri)}")
            self._first = False

    def close(self) -> None:
        self._coco.close()
        if self._data is not None:
            self._data.write("{}" if self._first else "\n}\n")
            self._data.close()


def _with_box_of_mask(row: Row, size_hw: tuple[int, int]) -> Row:
    """Return the row with the box of its mask, moved by a thousandth of a pixel.

    FiftyOne divides a box by the size of the image, later multiplies, and truncates. So 455 would become 454.
    """
    x, y, w, h = rle.bbox(row["rle"], size_hw).tolist()
    return {**row, **dict(zip(BBOX, (x + 2**-10, y + 2**-10, w, h), strict=True))}
