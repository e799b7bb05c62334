"""Reader of MaskFormer, Mask2Former, EoMT and OneFormer by Hugging Face, told by the names of their outputs.

The file does not tell which of these models it is; their preparation differs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from segray.models.describe import facts
from segray.models.describe.facts import FAMILY, PORTS, Facts
from segray.models.description import Description
from segray.models.metadata import Metadata

if TYPE_CHECKING:
    from segray.models.engine import Signature

_MEAN, _SCALE = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def read(signature: Signature, metadata: Metadata) -> Description | None:
    """Return the description of a model with queries of classes and masks; None if the ports are others."""
    classes = facts.index_by_name(signature.outputs, "class_queries_logits")
    masks = facts.index_by_name(signature.outputs, "masks_queries_logits")
    image = facts.image_port(signature)
    if classes is None or masks is None or image is None:
        return None
    shape = signature.outputs[classes].shape
    if shape is None or len(shape) != 3 or facts.rank(signature.outputs[masks]) != 4:
        return None
    told = Facts()
    told.add(PORTS, family="hf_masks", kind="queries", outputs={"classes": classes, "masks": masks})
    told.add(PORTS, what="Mask2Former, MaskFormer, EoMT or OneFormer by Hugging Face")
    told.add_image(image)
    if image.size_hw is None:
        told.missing.append("size")
    told.add("not stated", resize="stretch", rounding="exact", pad_value=0)
    told.add(FAMILY, colour="RGB")
    told.add(FAMILY, mean=tuple(255 * mean for mean in _MEAN), scale=tuple(255 * scale for scale in _SCALE))
    told.add_names(None, "")
    if shape[-1] is not None:
        told.add_extra(PORTS, classes=shape[-1] - 1)
    told.notes.append("The file does not tell which of these models it is. Their resizing differs.")
    told.versions.update(metadata.versions)
    return told.description()
