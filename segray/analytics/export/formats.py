"""The formats that a label set is exported to, by name. Each format has a module with its writer.

This module knows how the formats differ. The writers know the formats' files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from segray.analytics.export.coco import Coco, CocoResults
from segray.analytics.export.cvat import Cvat
from segray.analytics.export.fiftyone import FiftyOne
from segray.analytics.export.imagefolder import Imagefolder
from segray.analytics.export.label_studio import LabelStudio
from segray.analytics.export.labelme import Labelme
from segray.analytics.export.png import Png
from segray.analytics.export.writer import ExportWriter, Settings
from segray.analytics.export.yolo import Yolo


@dataclass(frozen=True)
class Format:
    """The properties of a format.

    open: returns a writer.
    is_folder: the export is a folder, else one file.
    masks: "run lengths", "polygons" or "pixels".
    copies_images: the images belong to the export.
    images_folder: folder below the export where readers of the format look for images; None without such a folder.
    """

    open: Callable[[Settings], ExportWriter]
    is_folder: bool = False
    masks: str = "run lengths"
    copies_images: bool = False
    images_folder: str | None = None


FORMATS: Mapping[str, Format] = {
    "coco": Format(Coco),
    "coco-results": Format(CocoResults),
    "yolo": Format(Yolo, is_folder=True, masks="polygons", images_folder="images"),
    "label-studio": Format(LabelStudio),
    "cvat": Format(Cvat),
    "fiftyone": Format(FiftyOne, is_folder=True),
    "labelme": Format(Labelme, is_folder=True, masks="polygons", images_folder=""),
    "imagefolder": Format(Imagefolder, is_folder=True, copies_images=True),
    "png-instance": Format(lambda settings: Png(settings, semantic=False), is_folder=True, masks="pixels"),
    "png-semantic": Format(lambda settings: Png(settings, semantic=True), is_folder=True, masks="pixels"),
}
