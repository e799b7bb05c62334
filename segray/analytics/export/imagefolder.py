"""A writer for Hugging Face imagefolder: the images, and a line of JSON for each."""

from __future__ import annotations

import json

from segray.analytics.export.writer import ExportedImage, Settings, box_xywh, shortest_score, with_image_file


class Imagefolder:
    """A writer of Hugging Face datasets' imagefolder: the images, and metadata.jsonl with the objects of each image."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._class_numbers = {category: i for i, category in enumerate(sorted(settings.classes))}
        self._file = (settings.out / "metadata.jsonl").open("w", encoding="utf-8")

    def add(self, image: ExportedImage) -> None:
        image = with_image_file(image, self._settings)
        rows = image.rows
        objects = {
            "id": [row["instance"] for row in rows],
            "category": [self._class_numbers[row["class_id"]] for row in rows],
            "category_name": [row["class_name"] for row in rows],
            "score": [shortest_score(row) for row in rows],
            "bbox": [box_xywh(row) for row in rows],
            "area": [row["area"] for row in rows],
            "rle": [row["rle"] for row in rows],
        }
        height, width = image.size_hw
        record = {"file_name": str(image.file), "image_key": image.key, "height": height, "width": width}
        self._file.write(json.dumps({**record, "objects": objects}) + "\n")

    def close(self) -> None:
        self._file.close()
