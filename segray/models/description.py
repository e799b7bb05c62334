"""A description: what a model file says of itself, and where each fact was read.

Knows the facts that decide how a model's images are prepared and how its outputs are decoded. Knows nothing of files,
of OpenVINO, or of the arithmetic of a family.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from segray.imaging.geometry import Resize, Rounding
from segray.models.coco_labels import COCO_NAMES

# The source of a fact that the configuration states.
CONFIGURATION = "configuration"


@dataclass(frozen=True)
class Description:
    """The facts that a model file states, or that follow from its ports.

    Attributes:
        family: Key of `registry.FAMILIES`, such as yolo_seg; or one that segray recognises but cannot decode; or the
            name of a decoder of one's own.
        what: The model in words, for people: "YOLO11n-seg by Ultralytics 8.4.190".
        kind: Variant of the family's outputs. yolo_seg: "raw", or "selected" for rows that the graph has selected.
        input_name: Name of the image input; "" where it has none.
        outputs: Output key -> position among the model's outputs.
        size_hw: Height and width of the network's input in pixels; None for any size.
        stride: Sides of an input of any size are multiples of this many pixels; None if unknown.
        resize: letterbox fits and pads on both sides, corner fits and pads right and bottom, stretch ignores the
            aspect.
        pad_value: Level of padded pixels, 0..255.
        rounding: opencv for the fixed-point bilinear resize of cv2, exact for OpenVINO's, which rounds exact values,
            antialiased for Pillow's, which takes the mean of pixels when it shrinks an image.
        colour: Order of the channels that the network wants: RGB or BGR.
        mean, scale: One number a channel in the order of `colour`, for levels 0..255, used as (x - mean) / scale.
        labels: Category id -> class name, in the order in which the network counts its classes.
        thresholds: Options as exported: score_threshold, nms_iou, max_detections.
        extra: Further facts that the family's adapter reads, as JSON values.
        versions: Program -> version, of the programs that wrote the file.
        sources: Fact -> where it was read, such as "metadata.yaml"; for inspection.
        missing: Facts that neither the file nor its neighbours state, and that the configuration must give:
            "size" (then size_hw is None and the network takes no other size), "labels" (then labels is empty).
        notes: What a person should know before use, as sentences.
    """

    family: str = ""
    what: str = ""
    kind: str = ""
    input_name: str = ""
    outputs: Mapping[str, int] = field(default_factory=dict)
    size_hw: tuple[int, int] | None = None
    labels: Mapping[int, str] = field(default_factory=dict)
    stride: int | None = None
    resize: Resize = "letterbox"
    pad_value: int = 0
    rounding: Rounding = "opencv"
    colour: Literal["RGB", "BGR"] = "RGB"
    mean: tuple[float, float, float] | None = None
    scale: tuple[float, float, float] | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def facts_of_rows(self) -> Mapping[str, Any]:
        """Return the facts that decide the rows of an image, as JSON values."""
        facts = asdict(self)
        for key in ("what", "versions", "sources", "notes"):
            del facts[key]
        return facts


def category_ids(names: tuple[str, ...]) -> Mapping[int, str]:
    """Return category id -> name for classes in the order of the network.

    The ids are COCO's if the names are those of COCO's 80 classes in order. Otherwise they are 1 to n, because many
    programs take a category 0 for the background.
    """
    if names == tuple(COCO_NAMES.values()):
        return dict(COCO_NAMES)
    return dict(enumerate(names, 1))
