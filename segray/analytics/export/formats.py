"""The formats that a label set is exported to, by name. Each format has a module with its writer.

This module knows how the formats differ. The writers know the formats' files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from segray.analytics.export.boxes_csv import BoxesCsv
from segray.analytics.export.coco import Coco, CocoResults
from segray.analytics.export.cvat import Cvat
from segray.analytics.export.fiftyone import FiftyOne
from segray.analytics.export.imagefolder import Imagefolder
from segray.analytics.export.label_studio import LabelStudio
from segray.analytics.export.labelme import Labelme
from segray.analytics.export.names import Distinct
from segray.analytics.export.png import Png
from segray.analytics.export.voc import Voc
from segray.analytics.export.writer import ExportWriter, Settings
from segray.analytics.export.yolo import Roboflow, Yolo


@dataclass(frozen=True)
class Format:
    """The properties of a format.

    open: returns a writer.
    is_folder: the export is a folder, else one file.
    masks: "run lengths", "polygons", "pixels" or "boxes".
    copies_images: the images belong to the export.
    images_folder: folder below the export where copied images lie; None for a format that cannot hold images.
    needs_images: readers of the format look for the images in images_folder.
    companion: ending of a second file beside the export, after the name without extension; "" without one.
    distinct: how the names of the images must differ; None where the key or the URI names an image.
    extension: ending of the file, for a format that is one file.
    has_splits: one export holds all splits. Other formats have an export for each split, in one folder.
    """

    open: Callable[[Settings], ExportWriter]
    is_folder: bool = False
    masks: str = "run lengths"
    copies_images: bool = False
    images_folder: str | None = None
    needs_images: bool = False
    companion: str = ""
    distinct: Distinct | None = None
    extension: str = ".json"
    has_splits: bool = False


FORMATS: Mapping[str, Format] = {
    "coco": Format(Coco),
    "coco-results": Format(CocoResults),
    "yolo": Format(Yolo, is_folder=True, masks="polygons", images_folder="images", needs_images=True, distinct="stem",
                   has_splits=True),
    "roboflow": Format(Roboflow, is_folder=True, masks="polygons", copies_images=True, images_folder="train/images",
                       needs_images=True, distinct="stem", has_splits=True),
    "voc": Format(Voc, is_folder=True, masks="boxes", images_folder="JPEGImages", needs_images=True, distinct="stem",
                  has_splits=True),
    "csv": Format(BoxesCsv, masks="boxes", extension=".csv", has_splits=True),
    "label-studio": Format(LabelStudio, companion=".config.xml"),
    "cvat": Format(Cvat, distinct="path", extension=".xml"),
    "fiftyone": Format(FiftyOne, is_folder=True, images_folder="data", distinct="file"),
    "labelme": Format(Labelme, is_folder=True, masks="polygons", images_folder="", needs_images=True, distinct="stem"),
    "imagefolder": Format(
        Imagefolder, is_folder=True, copies_images=True, images_folder="", needs_images=True, distinct="file"
    ),
    "png-instance": Format(
        lambda settings: Png(settings, semantic=False), is_folder=True, masks="pixels", images_folder="images",
        distinct="stem",
    ),
    "png-semantic": Format(
        lambda settings: Png(settings, semantic=True), is_folder=True, masks="pixels", images_folder="images",
        distinct="stem",
    ),
}  # fmt: skip
