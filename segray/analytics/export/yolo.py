"""A writer for YOLO segmentation: one text file of polygons for each image."""

from __future__ import annotations

import json

from segray.analytics.export import polygons
from segray.analytics.export.writer import ExportedImage, Settings, with_image_file, write_new_file


class Yolo:
    """A writer of YOLO's segmentation format: labels/NAME.txt for each image, and data.yaml.

    A text file has a line "class x y x y ..." for each instance. Classes are numbered from 0 in the order of category
    ids. A line is one polygon. So bridges of no width join the parts and holes of a mask.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._numbers = {category: i for i, category in enumerate(sorted(settings.classes))}

    def add(self, picture: ExportedImage) -> None:
        picture = with_image_file(picture, self._settings, "images")
        height, width = picture.size_hw
        lines = []
        for row in picture.rows:
            ring = polygons.single(row["rle"], picture.size_hw, self._settings.tolerance_px)
            if len(ring):
                self._settings.loss.add([ring], row, picture.size_hw)
                places = " ".join(f"{value:.6g}" for value in (ring / [width, height]).ravel())
                lines.append(f"{self._numbers[row['class_id']]} {places}\n")
        write_new_file(self._settings.out / "labels" / picture.beside(".txt"), "".join(lines).encode())

    def close(self) -> None:
        names = [self._settings.classes[category] for category in self._numbers]
        lines = ["train: images", "val: images", "names:"]  # Without `path`, readers look beside this file.
        lines += [f"  {i}: {json.dumps(name)}" for i, name in enumerate(names)]
        (self._settings.out / "data.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
