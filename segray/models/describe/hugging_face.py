"""Reader of MaskFormer, Mask2Former, EoMT and OneFormer by Hugging Face, told by the names of their outputs.

The file does not tell which of these models it is; their preparation differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from segray.models.describe import facts
from segray.models.describe.facts import FAMILY, PORTS, Facts
from segray.models.description import Description
from segray.models.metadata import Metadata

if TYPE_CHECKING:
    from segray.models.engine import Signature

# Family of each processor -> the model in words.
PROCESSORS: Mapping[str, str] = {"mask2former": "Mask2Former", "maskformer": "MaskFormer", "eomt": "EoMT"}
UNDECIDED = "hf_masks"

PREPARATION: Mapping[str, Any] = {
    "resize": "stretch", "rounding": "antialiased", "pad_value": 0, "colour": "RGB",
    "mean": facts.IMAGENET_MEAN, "scale": facts.IMAGENET_SCALE,
}  # fmt: skip
_UNDECIDED_NOTE = "The file does not tell which of these models it is. Their resizing differs."


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
    told.add(PORTS, family=UNDECIDED, kind="queries", outputs={"classes": classes, "masks": masks})
    told.add(PORTS, what="Mask2Former, MaskFormer, EoMT or OneFormer by Hugging Face")
    told.add_image(image)
    if image.size_hw is None:
        told.missing.append("size")
    told.add(FAMILY, **PREPARATION)
    told.sources["resize"] = "not stated"
    told.add_names(None, "")
    if shape[-1] is not None:
        told.add_extra(PORTS, classes=shape[-1] - 1)
    if shape[-2] is not None:
        told.add_extra(PORTS, queries=shape[-2])
    sides = (signature.outputs[masks].shape or ())[-2:]
    if None not in sides:
        told.add_extra(PORTS, masks_hw=list(sides))
    told.notes.append(_UNDECIDED_NOTE)
    told.versions.update(metadata.versions)
    return told.description()


def as_processor(description: Description, family: str, source: str) -> Description:
    """Return the description with the facts of one processor.

    A size that the file does not state is the processor's own. MaskFormer's depends on the image.

    Args:
        description: The description of a file that does not tell its processor.
        family: A key of PROCESSORS.
        source: The place that names the processor.
    """
    facts: dict[str, object] = {"resize": "corner" if family == "eomt" else "stretch"}
    if description.size_hw is None:
        facts["size_hw"] = _own_size_hw(description, family)
    return replace(
        description,
        family=family,
        what=f"{PROCESSORS[family]} by Hugging Face",
        missing=tuple(key for key in description.missing if key != "size"),
        notes=tuple(note for note in description.notes if note != _UNDECIDED_NOTE),
        sources={**description.sources, **dict.fromkeys(facts, FAMILY), "family": source},
        **facts,  # type: ignore[arg-type]
    )


def _own_size_hw(description: Description, family: str) -> tuple[int, int] | None:
    if family == "maskformer":
        return None
    if family == "mask2former":
        return 384, 384
    masks_hw = description.extra.get("masks_hw")  # EoMT's masks have a fourth of the sides of its input.
    return (4 * int(masks_hw[0]), 4 * int(masks_hw[1])) if masks_hw else (640, 640)
