"""Reader of MaskFormer, Mask2Former, EoMT and OneFormer by Hugging Face, told by the names of their outputs.

The file does not tell which of these models it is; their preparation differs. config.json and preprocessor_config.json
beside the file may tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from segray.models.describe import facts, transformers_config
from segray.models.describe.facts import FAMILY, NAME_CLASSES, PORTS, Facts
from segray.models.describe.transformers_config import TransformersConfig
from segray.models.description import Description
from segray.models.metadata import CONFIG, PROCESSOR, Metadata

if TYPE_CHECKING:
    from segray.models.engine import Signature

# Family of each processor -> the model in words.
PROCESSORS: Mapping[str, str] = {"mask2former": "Mask2Former", "maskformer": "MaskFormer", "eomt": "EoMT"}
UNDECIDED = "hf_masks"

PREPARATION: Mapping[str, Any] = {
    "resize": "stretch", "rounding": "antialiased", "pad_value": 0, "colour": "RGB",
    "mean": facts.IMAGENET_MEAN, "scale": facts.IMAGENET_SCALE,
}  # fmt: skip
# MaskFormer's processor: smallest length of the short side, largest length of the long side.
_MASKFORMER_SIDES = (800, 1333)
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
    config = transformers_config.read(metadata.path.parent)
    count = None if shape[-1] is None else shape[-1] - 1
    _add_labels(told, config, count)
    if count is not None:
        told.add_extra(PORTS, classes=count)
    if shape[-2] is not None:
        told.add_extra(PORTS, queries=shape[-2])
    sides = (signature.outputs[masks].shape or ())[-2:]
    if None not in sides:
        told.add_extra(PORTS, masks_hw=list(sides))
    told.notes.append(_UNDECIDED_NOTE)
    told.versions.update(metadata.versions)
    description = told.description()
    return description if config.family is None else _with_config(description, config, config.family)


def _add_labels(told: Facts, config: TransformersConfig, count: int | None) -> None:
    """Add the names of config.json if they are as many as the network's classes."""
    labels = config.labels
    if labels is not None and count not in (None, len(labels)):
        told.notes.append(f"{CONFIG} names {len(labels)} classes, and the network has {count}. {NAME_CLASSES}")
        labels = None
    told.add_names(labels, CONFIG)


def _with_config(description: Description, config: TransformersConfig, family: str) -> Description:
    """Return the description with the processor that the files beside the model name, and with its numbers."""
    described = as_processor(description, family, config.where_family)
    changes: dict[str, Any] = {}
    for key in ("mean", "scale"):
        value, usual = getattr(config, key), getattr(described, key)
        # The files have float32 numbers, such as 0.48500001430511475.
        if value is not None and not all(math.isclose(*pair, rel_tol=1e-6) for pair in zip(value, usual, strict=True)):
            changes[key] = value
    size_hw, note = _size_of_processor(config.size, family)
    if size_hw is not None and description.size_hw is None:
        changes["size_hw"] = size_hw
    notes = (*described.notes, note) if note and described.sources.get("size_hw") != PORTS else described.notes
    sources = {**described.sources, **dict.fromkeys(changes, PROCESSOR)}
    return replace(described, notes=notes, sources=sources, **changes)


def _size_of_processor(size: Mapping[str, Any], family: str) -> tuple[tuple[int, int] | None, str]:
    """Return the fixed size that the processor resizes to, and a note if segray resizes in another way."""
    sides = [size.get(key) for key in ("height", "width", "shortest_edge", "longest_edge")]
    height, width, shortest, longest = (side if isinstance(side, int) and side > 0 else None for side in sides)
    if family == "eomt" and shortest is not None and shortest == longest:
        height, width = shortest, longest
    if family != "maskformer" and height is not None and width is not None:
        return (height, width), ""
    usual = _MASKFORMER_SIDES if family == "maskformer" else (None, None)
    if not size or (shortest, longest) == usual:
        return None, ""
    stated = ", ".join(f"{key} {value}" for key, value in size.items())
    return None, f"{PROCESSOR} resizes by {stated}, which segray does not do. `model.size` sets a fixed size."


def is_one(description: Description) -> bool:
    """Return whether the description is of these models, with a processor or without."""
    return description.family in (UNDECIDED, *PROCESSORS)


def as_processor(description: Description, family: str, source: str) -> Description:
    """Return the description with the facts of one processor, in place of those of another one.

    A size that the file does not state is the processor's own. MaskFormer's depends on the image.

    Args:
        description: The description of a file with the outputs of these models.
        family: A key of PROCESSORS.
        source: The place that names the processor.
    """
    facts: dict[str, object] = {"resize": "corner" if family == "eomt" else "stretch"}
    if description.size_hw is None or description.sources.get("size_hw") != PORTS:
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
