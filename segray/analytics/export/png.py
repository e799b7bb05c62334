"""A writer of PNG files: the pixels of one image's masks, as instance numbers or as category ids."""

from __future__ import annotations

import json

import numpy as np

from segray import rle
from segray.analytics.export.writer import (
    ExportedImage,
    JsonArray,
    Settings,
    shortest_score,
    with_image_file,
    write_new_file,
)
from segray.imaging.opencv import cv2


class Png:
    """A writer of one PNG below masks/ for each image, and of classes.json. Copied images lie below images/.

    Where instances overlap, the instance with the higher score is on top.
    Pixels of png-instance have 16 bits: 0, or an instance's number plus one. instances.json describes the instances.
    Pixels of png-semantic are 0 or the category id. They have 8 bits, or 16 where category ids need them.
    """

    def __init__(self, settings: Settings, *, semantic: bool) -> None:
        self._settings, self._semantic = settings, semantic
        highest_id = max(settings.classes, default=0)
        self._dtype = np.uint8 if semantic and highest_id < 256 else np.uint16
        self._instances = None if semantic else JsonArray(settings.out / "instances.json")

    def add(self, image: ExportedImage) -> None:
        image = with_image_file(image, self._settings, "images")
        pixels = np.zeros(image.size_hw, self._dtype)
        for row in sorted(image.rows, key=lambda row: (row["score"], -row["instance"])):
            mask = rle.decode(row["rle"], image.size_hw)
            pixels[mask] = row["class_id"] if self._semantic else row["instance"] + 1
        path = image.file_with_extension(".png")
        write_new_file(self._settings.out / "masks" / path, cv2.imencode(".png", pixels)[1].tobytes(), image.key)
        if self._instances is not None:
            names = ("instance", "class_id", "class_name", "area")
            instances = [{name: row[name] for name in names} | {"score": shortest_score(row)} for row in image.rows]
            self._instances.add({"file": str(path), "image_key": image.key, "instances": instances})

    def close(self) -> None:
        if self._instances is not None:
            self._instances.close()
        names = {str(number): name for number, name in sorted(self._settings.classes.items())}
        (self._settings.out / "classes.json").write_text(json.dumps(names, indent=1), encoding="utf-8")
