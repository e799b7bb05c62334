"""Reader of torchvision's Mask R-CNN, told by its ports: boxes, labels, scores and masks, without a batch axis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from segray.models.describe import facts
from segray.models.describe.facts import FAMILY, PORTS, Facts
from segray.models.description import Description
from segray.models.metadata import Metadata

if TYPE_CHECKING:
    from segray.models.engine import Signature


def read(signature: Signature, metadata: Metadata) -> Description | None:
    """Return the description of a torchvision Mask R-CNN; None if the ports are others."""
    positions, image = _positions(signature), facts.image_port(signature)
    if positions is None or image is None:
        return None
    mask = signature.outputs[positions["masks"]].shape or ()
    told = Facts()
    kind = "cut" if mask[2:] == (28, 28) else "pasted"
    told.add(PORTS, family="torchvision_mask_rcnn", kind=kind, outputs=positions, what="Mask R-CNN by torchvision")
    told.add_image(image)
    told.add(FAMILY, resize="stretch", rounding="exact", pad_value=0, colour="RGB")
    told.add(FAMILY, mean=None, scale=(255.0, 255.0, 255.0))
    told.add_names(None, "")
    told.notes.append("The graph resizes and normalises images itself, and takes images of any size.")
    told.versions.update(metadata.versions)
    return told.description()


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
