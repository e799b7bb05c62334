"""A writer of PNG files: the pixels of one image's masks, as instance numbers or as category ids."""

from __future__ import annotations

import json

import numpy as np

from segray import rle
from segray.analytics.export.writer import ExportedImage, JsonArray, Settings, shortest_score, write_new_file
from segray.imaging.opencv import cv2


class Png:
    """A writer of one PNG for each image, and of classes.json. Where instances overlap, the higher score is on top.

    Pixels of png-instance have 16 bits: 0, or an instance's number plus one. instances.json describes the instances.
    Pixels of png-semantic are 0 or the category id. They have 8 bits, or 16 where category ids need them.
    """

    def __init__(self, settings: Settings, *, semantic: bool) -> None:
        self._settings, self._semantic = settings, semantic
        most = max(settings.classes, default=0)
        self._kind = np.uint8 if semantic and most < 256 else np.uint16
        self._listed = None if semantic else JsonArray(settings.out / "instances.json")

    def add(self, picture: ExportedImage) -> None:
        pixels = np.zeros(picture.size_hw, self._kind)
        for row in sorted(picture.rows, key=lambda row: (row["score"], -row["instance"])):
            mask = rle.decode(row["rle"], picture.size_hw)
            pixels[mask] = row["class_id"] if self._semantic else row["instance"] + 1
        path = picture.beside(".png")
        write_new_file(self._settings.out / "masks" / path, cv2.imencode(".png", pixels)[1].tobytes())
        if self._listed is not None:
            names = ("instance", "class_id", "class_name", "area")
            found = [{name: row[name] for name in names} | {"score": shortest_score(row)} for row in picture.rows]
            self._listed.add({"file": str(path), "image_key": picture.key, "instances": found})

    def close(self) -> None:
        if self._listed is not None:
            self._listed.close()
        names = {str(number): name for number, name in sorted(self._settings.classes.items())}
        (self._settings.out / "classes.json").write_text(json.dumps(names, indent=1), encoding="utf-8")
