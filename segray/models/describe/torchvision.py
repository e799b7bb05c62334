"""Reader of torchvision's Mask R-CNN, told by its ports: boxes, labels, scores and masks, without a batch axis.

The file has no names. The layers of the graph tell the number of classes and whether the graph pastes its masks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from segray.models.coco_labels import COCO_NAMES
from segray.models.describe import facts
from segray.models.describe.facts import FAMILY, PORTS, Facts
from segray.models.description import Description
from segray.models.metadata import Metadata
from segray.models.paste_graph import BoxMasks

if TYPE_CHECKING:
    from segray.models.describe.facts import ImagePort
    from segray.models.engine import ModelPort, Signature

PREPARATION: Mapping[str, Any] = {
    "resize": "stretch", "rounding": "exact", "pad_value": 0, "colour": "RGB",
    "mean": None, "scale": (255.0, 255.0, 255.0),
}  # fmt: skip
_COCO_COLUMNS = 91
_SIDE = 28


def read(signature: Signature, metadata: Metadata) -> Description | None:
    """Return the description of a torchvision Mask R-CNN; None if the ports are others."""
    positions, image = _positions(signature), facts.image_port(signature)
    if positions is None or image is None:
        return None
    masks = signature.box_masks or _small_masks(signature.outputs[positions["masks"]], image)
    told = Facts()
    kind = "cut" if masks is not None and not masks.is_pasted else "pasted"
    told.add(PORTS, family="torchvision_mask_rcnn", kind=kind, outputs=positions, what="Mask R-CNN by torchvision")
    told.add_image(image)
    told.add(FAMILY, **PREPARATION)
    told.notes.append("The graph resizes and normalises images itself.")
    if masks is None:
        told.notes.append(
            "segray does not know the layers that paste the masks. The network pastes them itself, which takes more "
            "time and memory."
        )
    else:
        told.add_extra(PORTS, mask_side=masks.side)
    _add_classes(told, None if masks is None else masks.columns)
    told.versions.update(metadata.versions)
    return told.description()


def _small_masks(port: ModelPort, image: ImagePort) -> BoxMasks | None:
    """Return masks of torchvision's usual size, told by the port alone; None if the port has other masks."""
    is_small = (port.shape or ())[2:] == (_SIDE, _SIDE) != image.size_hw
    return BoxMasks(is_pasted=False, side=_SIDE, columns=None) if is_small else None


def _add_classes(told: Facts, columns: int | None) -> None:
    """Add the classes. columns: number of the network's classes, background included; None if unknown."""
    if columns is not None:
        told.add_extra(PORTS, columns=columns)
    if columns == _COCO_COLUMNS:
        told.add(PORTS, labels=dict(COCO_NAMES))
        told.notes.append("The network has 91 classes with the background. segray takes the classes for COCO's ids.")
    else:
        told.add_names(None, "")


def _positions(signature: Signature) -> dict[str, int] | None:
    """Return the positions of the outputs, by name or by rank and type; None if the outputs are others."""
    ports = signature.outputs
    boxes, labels = facts.index_by_name(ports, "boxes"), facts.index_by_name(ports, "labels")
    rest = [index for index in range(len(ports)) if index not in (boxes, labels)]
    scores = [index for index in rest if facts.rank(ports[index]) == 1]
    masks = [index for index in rest if facts.rank(ports[index]) == 4]
    if boxes is None or labels is None or [len(ports), len(scores), len(masks)] != [4, 1, 1]:
        return None
    box_shape, mask_shape = ports[boxes].shape, ports[masks[0]].shape
    if box_shape is None or mask_shape is None or facts.rank(ports[labels]) != 1:
        return None
    # A box has 4 numbers, a mask has one channel.
    if len(box_shape) != 2 or box_shape[1] != 4 or mask_shape[1] not in (1, None):
        return None
    if not ports[labels].element_type.startswith("i"):
        return None
    return {"boxes": boxes, "labels": labels, "scores": scores[0], "masks": masks[0]}
