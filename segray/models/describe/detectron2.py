"""Reader of Detectron2's Mask R-CNN as `export_model.py --export-method tracing` exports it, told by its ports.

The outputs have no dependable names. Their order is that of the fields of Detectron2's Instances, by alphabet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from segray.models.describe import facts
from segray.models.describe.facts import FAMILY, PORTS, Facts
from segray.models.description import Description
from segray.models.metadata import Metadata

if TYPE_CHECKING:
    from segray.models.engine import Signature

PREPARATION: Mapping[str, Any] = {
    "resize": "stretch", "rounding": "antialiased", "pad_value": 0, "colour": "BGR", "mean": None, "scale": None,
}  # fmt: skip
# Field -> number of axes, and whether it has whole numbers. The size of the image may follow.
_FIELDS = {"pred_boxes": (2, False), "pred_classes": (1, True), "pred_masks": (4, False), "scores": (1, False)}


def read(signature: Signature, metadata: Metadata) -> Description | None:
    """Return the description of a traced Mask R-CNN; None if the ports are others."""
    image = facts.image_port(signature)
    if image is None or not _are_fields(signature):
        return None
    told = Facts()
    outputs = {name: position for position, name in enumerate(_FIELDS)}
    told.add(PORTS, family="detectron2", kind="traced", outputs=outputs)
    told.add(PORTS, what="Mask R-CNN by Detectron2, traced, by layout")
    told.add_image(image)
    told.add(FAMILY, **PREPARATION)
    told.add_names(None, "")
    told.notes.append("The graph normalises images itself. segray takes Detectron2's BGR order.")
    told.versions.update(metadata.versions)
    return told.description()


def _are_fields(signature: Signature) -> bool:
    """Return whether the outputs have the axes and types of the fields, in their order."""
    ports = signature.outputs
    if len(ports) not in (len(_FIELDS), len(_FIELDS) + 1):
        return False
    for port, (axes, is_whole) in zip(ports, _FIELDS.values(), strict=False):
        if facts.rank(port) != axes or port.element_type.startswith("i") != is_whole:
            return False
    boxes, _, masks, *_ = (port.shape or () for port in ports)
    if boxes[1] != 4 or masks[1] != 1 or masks[2] is None or masks[2] != masks[3]:
        return False
    size = ports[-1]
    return len(ports) == len(_FIELDS) or (size.shape in ((2,), (None,)) and size.element_type.startswith("i"))
