"""Reader of YOLOv5-seg as YOLOv5's export.py writes it: rows with an objectness, told by the ports and the names.

An ONNX file has the properties stride and names. An IR has them in a .yaml of its own name.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from segray.models import metadata as values
from segray.models.describe import facts
from segray.models.describe.facts import FAMILY, NAME_CLASSES, PORTS, Facts
from segray.models.description import Description
from segray.models.metadata import Metadata

if TYPE_CHECKING:
    from segray.models.engine import Signature

PREPARATION: Mapping[str, Any] = {
    "resize": "letterbox", "rounding": "opencv", "pad_value": 114, "colour": "RGB",
    "mean": None, "scale": (255.0, 255.0, 255.0),
}  # fmt: skip
_STRIDES, _ANCHORS_OF_CELL = (8, 16, 32), 3
# Columns of a row before the class scores: box and objectness.
_BOX_COLUMNS = 5


def read(signature: Signature, metadata: Metadata) -> Description | None:
    """Return the description of a YOLOv5-seg; None if the ports are others."""
    image, heads = facts.image_port(signature), _heads(signature)
    if image is None or heads is None:
        return None
    rows, prototypes, classes = heads
    names, source = _names(metadata)
    is_named = image.size_hw is None and len(names) == classes
    if not (is_named or are_anchors_of(image, signature.outputs[rows].shape)):
        return None
    told = Facts()
    told.add(PORTS, family="yolov5_seg", kind="raw", outputs={"output0": rows, "output1": prototypes})
    told.add(PORTS, what="YOLOv5-seg, by layout")
    told.add_image(image)
    if image.size_hw is None:
        told.add(FAMILY, size_hw=(640, 640))
        told.notes.append("The file states no size. YOLOv5's export has 640 by 640 pixels by default.")
    told.add(FAMILY, **PREPARATION)
    if names and len(names) != classes:
        told.notes.append(f"{source} names {len(names)} classes, and the network has {classes}. {NAME_CLASSES}")
        names = ()
    told.add_names(names or None, source)
    told.add_extra(PORTS, classes=classes)
    told.versions.update(metadata.versions)
    return told.description()


def are_anchors_of(image: facts.ImagePort, rows: tuple[int | None, ...] | None) -> bool:
    """Return whether rows (1, anchors, columns) are as many as the anchors of YOLOv5 in an image of fixed size."""
    if image.size_hw is None or rows is None or len(rows) != 3:
        return False
    cells = sum((image.size_hw[0] // stride) * (image.size_hw[1] // stride) for stride in _STRIDES)
    return rows[1] == _ANCHORS_OF_CELL * cells


def _heads(signature: Signature) -> tuple[int, int, int] | None:
    """Return the positions of rows and prototypes, and the number of classes; None if the outputs are others."""
    by_rank = {size: [i for i, port in enumerate(signature.outputs) if facts.rank(port) == size] for size in (3, 4)}
    if any(len(positions) != 1 for positions in by_rank.values()):
        return None
    (rows,), (prototypes,) = by_rank[3], by_rank[4]
    columns, coefficients = (signature.outputs[rows].shape or ())[2], (signature.outputs[prototypes].shape or ())[1]
    if columns is None or coefficients is None or columns - _BOX_COLUMNS - coefficients < 1:
        return None
    return rows, prototypes, columns - _BOX_COLUMNS - coefficients


def _names(metadata: Metadata) -> tuple[tuple[str, ...], str]:
    """Return the class names and their source; no names if none are stated."""
    file = metadata.path.with_suffix(".yaml")
    entries: Mapping[str, Any] = metadata.props
    source = metadata.where_props
    if not {"stride", "names"} <= entries.keys():
        entries, source = (values.yaml_mapping(file) or {}) if metadata.path.suffix == ".xml" else {}, file.name
    if not {"stride", "names"} <= entries.keys():
        return (), ""
    where = f"{metadata.path}, {source}, names"
    names = entries["names"]
    return facts.names_of(values.literal(names, where) if isinstance(names, str) else names, where), source
