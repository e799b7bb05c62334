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

    def add(self, picture: ExportedImage) -> None:
        picture = with_image_file(picture, self._settings)
        shapes = []
        for number, row in enumerate(picture.rows):
            drawn = polygons.parts(row["rle"], picture.size_hw, self._settings.tolerance_px)
            self._settings.loss.add(drawn, row, picture.size_hw)
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
                for ring in drawn
            ]
        height, width = picture.size_hw
        content: Row = {
            "version": "5.5.0",
            "flags": {},
            "shapes": shapes,
            "imagePath": picture.file.name,
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        write_new_file(self._settings.out / picture.beside(".json"), json.dumps(content, indent=1).encode())

    def close(self) -> None:
        return None
