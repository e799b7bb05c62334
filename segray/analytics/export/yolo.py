"""A writer for YOLO segmentation: one text file of polygons for each image."""

from __future__ import annotations

import json

from segray.analytics.export import polygons
from segray.analytics.export.writer import ExportedImage, Settings, with_image_file, write_new_file


class Yolo:
    """A writer of YOLO's segmentation format: labels/NAME.txt for each image, and data.yaml.

    A text file has a line "class x y x y ..." for each instance. Classes are numbered from 0 in the order of category
    ids. A line is one polygon. Bridges of zero width join the parts and holes of a mask.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._class_numbers = {category: i for i, category in enumerate(sorted(settings.classes))}

    def add(self, image: ExportedImage) -> None:
        image = with_image_file(image, self._settings, "images")
        height, width = image.size_hw
        lines = []
        for row in image.rows:
            ring = polygons.single(row["rle"], image.size_hw, self._settings.tolerance_px)
            if len(ring):
                self._settings.loss.add([ring], row, image.size_hw)
                coordinates = " ".join(f"{value:.6g}" for value in (ring / [width, height]).ravel())
                lines.append(f"{self._class_numbers[row['class_id']]} {coordinates}\n")
        write_new_file(
            self._settings.out / "labels" / image.file_with_extension(".txt"), "".join(lines).encode(), image.key
        )

    def close(self) -> None:
        names = [self._settings.classes[category] for category in self._class_numbers]
        lines = ["train: images", "val: images", "names:"]  # Without `path`, readers look in the folder of this file.
        lines += [f"  {i}: {json.dumps(name)}" for i, name in enumerate(names)]
        (self._settings.out / "data.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")
