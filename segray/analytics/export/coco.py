"""Writers for COCO: a dataset with annotations, or an array of results. Run lengths are exact."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from segray.analytics.export import polygons
from segray.analytics.export.writer import ExportedImage, JsonArray, Row, Settings, box_xywh, shortest_score
from segray.models.coco_labels import supercategory


class CocoResults:
    """A writer of COCO's result format: an array of detections, for COCO.loadRes and for upload."""

    def __init__(self, settings: Settings) -> None:
        self._array = JsonArray(settings.out)

    def add(self, image: ExportedImage) -> None:
        for row in image.rows:
            self._array.add(
                {
                    "image_id": image.id,
                    "category_id": row["class_id"],
                    "bbox": box_xywh(row),
                    "score": shortest_score(row),
                    "segmentation": {"size": list(image.size_hw), "counts": row["rle"]},
                }
            )

    def close(self) -> None:
        self._array.close()


class Coco:
    """A writer of a COCO dataset: images, annotations with their scores, and categories.

    Masks are run lengths or polygons. file_name: returns an image's file_name, which is the key byte for byte unless
    the export holds the images.
    """

    def __init__(self, settings: Settings, file_name: Callable[[ExportedImage], str] = lambda image: image.key) -> None:
        self._settings, self._count, self._file_name = settings, 0, file_name
        self._part_files = {
            name: settings.out.with_name(f"{settings.out.name}.{name}") for name in ("images", "annotations")
        }
        self._arrays = {name: JsonArray(path) for name, path in self._part_files.items()}

    def add(self, image: ExportedImage) -> None:
        height, width = image.size_hw
        self._arrays["images"].add(
            {
                "id": image.id,
                "file_name": self._file_name(image),
                "width": width,
                "height": height,
                "coco_url": image.uri,
            }
        )
        for row in image.rows:
            self._count += 1
            self._arrays["annotations"].add(
                {
                    "id": self._count,
                    "image_id": image.id,
                    "category_id": row["class_id"],
                    "bbox": box_xywh(row),
                    "area": row["area"],
                    "iscrowd": 0,
                    "score": shortest_score(row),
                    "segmentation": self._segmentation(row, image.size_hw),
                }
            )

    def close(self) -> None:
        categories = [
            {"id": number, "name": name, "supercategory": supercategory(number, name)}
            for number, name in sorted(self._settings.classes.items())
        ]
        with self._settings.out.open("w", encoding="utf-8") as file:
            file.write('{"info": {"description": "exported by segray"}, "licenses": [], "categories": ')
            file.write(json.dumps(categories))
            for name, path in self._part_files.items():
                self._arrays[name].close()
                file.write(f', "{name}": ')
                with path.open(encoding="utf-8") as part:
                    while text := part.read(1 << 20):
                        file.write(text)
                path.unlink()
            file.write("}\n")

    def _segmentation(self, row: Row, size_hw: tuple[int, int]) -> Any:
        if not self._settings.polygons:
            return {"size": list(size_hw), "counts": row["rle"]}
        rings = polygons.parts(row["rle"], size_hw, self._settings.tolerance_px)
        self._settings.loss.add(rings, row, size_hw)
        return [ring.ravel().tolist() for ring in rings]
