"""A writer for Labelme: one JSON file of polygons for each image."""

from __future__ import annotations

import json

from segray.analytics.export import polygons
from segray.analytics.export.writer import ExportedImage, Row, Settings, shortest_score, with_image_file, write_new_file


class Labelme:
    """A writer of Labelme's JSON: one file for each image. Labelme expects the image beside the file.

    Parts of one mask share a group_id.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def add(self, image: ExportedImage) -> None:
        image = with_image_file(image, self._settings)
        shapes = []
        for number, row in enumerate(image.rows):
            rings = polygons.parts(row["rle"], image.size_hw, self._settings.tolerance_px)
            self._settings.loss.add(rings, row, image.size_hw)
            shapes += [
                {
                    "label": row["class_name"],
                    "points": ring.tolist(),
                    "group_id": number,
                    "description": f"score {shortest_score(row):.4f}",
                    "shape_type": "polygon",
                    "flags": {},
                    "mask": None,
                }
                for ring in rings
            ]
        height, width = image.size_hw
        content: Row = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": image.file.name,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        write_new_file(
            self._settings.out / image.file_with_extension(".json"), json.dumps(content, indent=1).encode(), image.key
        )

    def close(self) -> None:
        return None
