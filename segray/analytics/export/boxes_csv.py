"""A writer for CSV: one row of box, score and class for each instance."""

from __future__ import annotations

import csv

from segray import rle
from segray.analytics.export.writer import ExportedImage, Settings, shortest_score

COLUMNS = ("image_key", "split", "width", "height", "class_id", "class_name", "score", "x", "y", "w", "h", "area")


class BoxesCsv:
    """A writer of CSV with a header. Boxes are those of the masks, in pixels. An image without instances has no row."""

    def __init__(self, settings: Settings) -> None:
        self._file = settings.out.open("w", encoding="utf-8", errors="surrogateescape", newline="")
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(COLUMNS)

    def add(self, image: ExportedImage) -> None:
        height, width = image.size_hw
        for row in image.rows:
            box = rle.bbox(row["rle"], image.size_hw).astype(int).tolist()
            values = (row["class_id"], row["class_name"], shortest_score(row), *box, row["area"])
            self._writer.writerow((image.key, image.split, width, height, *values))

    def close(self) -> None:
        self._file.close()
