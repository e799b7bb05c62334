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

    says: a description in a few words. open: returns a writer. folder: the export is a folder, else one file.
    masks: "run lengths", "polygons" or "pixels". copies: the images belong to the export.
    looks_in: folder below the export where readers of the format look for images; None if they do not.
    """

    says: str
    open: Callable[[Settings], ExportWriter]
    folder: bool = False
    masks: str = "run lengths"
    copies: bool = False
    looks_in: str | None = None


FORMATS: Mapping[str, Format] = {
    "coco": Format("COCO dataset JSON, also for CVAT", Coco),
    "coco-results": Format("COCO results JSON", CocoResults),
    "yolo": Format("YOLO segmentation txt", Yolo, folder=True, masks="polygons", looks_in="images"),
    "label-studio": Format("Label Studio tasks with predictions", LabelStudio),
    "cvat": Format("CVAT for images 1.1", Cvat),
    "fiftyone": Format("FiftyOne, as COCODetectionDataset", FiftyOne, folder=True),
    "labelme": Format("Labelme JSON", Labelme, folder=True, masks="polygons", looks_in=""),
    "imagefolder": Format("Hugging Face imagefolder", Imagefolder, folder=True, copies=True),
    "png-instance": Format("PNG of instance numbers", lambda s: Png(s, semantic=False), folder=True, masks="pixels"),
    "png-semantic": Format("PNG of category ids", lambda s: Png(s, semantic=True), folder=True, masks="pixels"),
}
