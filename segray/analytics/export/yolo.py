"""A writer for YOLO segmentation: one text file of polygons for each image."""

from __future__ import annotations

import json
from pathlib import PurePosixPath

from segray.analytics.export import polygons
from segray.analytics.export.writer import ExportedImage, Settings, with_image_file, write_new_file


class Yolo:
    """A writer of YOLO's segmentation format: labels/NAME.txt for each image, and data.yaml.

    The text file of an image in a folder of its own called `images` lies beside that folder, in `labels`.

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
        write_new_file(self._settings.out / _label_file(image), "".join(lines).encode(), image.key)

    def close(self) -> None:
        names = [self._settings.classes[category] for category in self._class_numbers]
        lines = ["train: images", "val: images", "names:"]  # Without `path`, readers look in the folder of this file.
        lines += [f"  {i}: {_quoted(name)}" for i, name in enumerate(names)]
        (self._settings.out / "data.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _label_file(image: ExportedImage) -> PurePosixPath:
    """Return the file where readers look for an image's labels: below `labels` in place of the last `images`."""
    *folders, name = ("images", *image.file_with_extension(".txt").parts)
    last = max(place for place, folder in enumerate(folders) if folder == "images")
    return PurePosixPath(*folders[:last], "labels", *folders[last + 1 :], name)


def _quoted(text: str) -> str:
    """Return a text as YAML in double quotes. YAML does not join the two halves in which JSON escapes an emoji."""
    characters = (f"\\U{ord(char):08x}" if ord(char) > 0xFFFF else json.dumps(char)[1:-1] for char in text)
    return f'"{"".join(characters)}"'
