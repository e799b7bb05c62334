"""A writer for YOLO segmentation: one text file of polygons for each image."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import PurePosixPath

from segray.analytics.export import polygons
from segray.analytics.export.names import path_of_key
from segray.analytics.export.writer import ExportedImage, Settings, with_image_file, write_new_file

_ROBOFLOW = {"val": "valid"}  # Roboflow's names of splits


class Yolo:
    """A writer of YOLO's segmentation format: labels/NAME.txt for each image, and data.yaml.

    With splits, images and labels lie in images/SPLIT and labels/SPLIT.

    The text file of an image in a folder of its own called `images` lies beside that folder, in `labels`.

    A text file has a line "class x y x y ..." for each instance. Classes are numbered from 0 in the order of category
    ids. A line is one polygon. Bridges of zero width join the parts and holes of a mask.
    """

    states_count = False  # the number of classes in data.yaml

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._class_numbers = {category: i for i, category in enumerate(sorted(settings.classes))}

    def add(self, image: ExportedImage) -> None:
        if image.split:
            image = replace(image, name=PurePosixPath(image.split, image.name or path_of_key(image.key)))
        self._add(with_image_file(image, self._settings, "images"), _label_file)

    def _add(self, image: ExportedImage, label_file: Callable[[ExportedImage], PurePosixPath]) -> None:
        height, width = image.size_hw
        lines = []
        for row in image.rows:
            ring = polygons.single(row["rle"], image.size_hw, self._settings.tolerance_px)
            if len(ring):
                self._settings.loss.add([ring], row, image.size_hw)
                coordinates = " ".join(f"{value:.6g}" for value in (ring / [width, height]).ravel())
                lines.append(f"{self._class_numbers[row['class_id']]} {coordinates}\n")
        write_new_file(self._settings.out / label_file(image), "".join(lines).encode(), image.key)

    def close(self) -> None:
        splits = self._settings.splits
        places = {name: f"images/{name}" for name in splits} if splits else {"train": "images", "val": "images"}
        self._write_names(places)

    def _write_names(self, places: Mapping[str, str]) -> None:
        """Write data.yaml. places: folder of the images of each split."""
        for place in places.values():
            (self._settings.out / place).mkdir(parents=True, exist_ok=True)
        names = [self._settings.classes[category] for category in self._class_numbers]
        # Without `path`, readers look in the folder of this file. Readers need a split val.
        first = next(iter(places.values()))
        lines = [f"{name}: {place}" for name, place in ({"train": first, "val": first} | dict(places)).items()]
        lines += [f"nc: {len(names)}", "names:"] if self.states_count else ["names:"]
        lines += [f"  {i}: {_quoted(name)}" for i, name in enumerate(names)]
        (self._settings.out / "data.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


class Roboflow(Yolo):
    """A writer of the folders of Roboflow's YOLO exports: train/images, train/labels, valid, test, and data.yaml.

    Without splits, all images are in train. The split val is called valid.
    """

    states_count = True

    def add(self, image: ExportedImage) -> None:
        split = _ROBOFLOW.get(image.split, image.split) or "train"
        self._add(
            with_image_file(image, self._settings, f"{split}/images"),
            lambda named: PurePosixPath(split, "labels", named.file_with_extension(".txt")),
        )

    def close(self) -> None:
        splits = self._settings.splits or ["train"]
        self._write_names({name: f"{_ROBOFLOW.get(name, name)}/images" for name in splits})


def _label_file(image: ExportedImage) -> PurePosixPath:
    """Return the file where readers look for an image's labels: below `labels` in place of the last `images`."""
    *folders, name = ("images", *image.file_with_extension(".txt").parts)
    last = max(place for place, folder in enumerate(folders) if folder == "images")
    return PurePosixPath(*folders[:last], "labels", *folders[last + 1 :], name)


def _quoted(text: str) -> str:
    """Return a text as YAML in double quotes. YAML does not join the two halves in which JSON escapes an emoji."""
    characters = (f"\\U{ord(char):08x}" if ord(char) > 0xFFFF else json.dumps(char)[1:-1] for char in text)
    return f'"{"".join(characters)}"'
