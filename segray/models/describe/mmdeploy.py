"""Reader of mmdetection's Mask R-CNN and RTMDet-Ins as mmdeploy exports them, told by their ports.

The files state neither classes nor preparation. The facts of the preparation are those of mmdetection's configurations.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from segray.models.describe import facts
from segray.models.describe.facts import FAMILY, PORTS, Facts
from segray.models.description import Description
from segray.models.metadata import Metadata

if TYPE_CHECKING:
    from segray.models.engine import ModelPort, Signature

_NAMES = ("dets", "labels", "masks")
PREPARATION: Mapping[str, Any] = {
    "resize": "corner", "rounding": "opencv", "pad_value": 0, "colour": "RGB",
    "mean": (123.675, 116.28, 103.53), "scale": (58.395, 57.12, 57.375),
}  # fmt: skip
RTMDET_PREPARATION: Mapping[str, Any] = {
    **PREPARATION, "pad_value": 114, "colour": "BGR",
    "mean": (103.53, 116.28, 123.675), "scale": (57.375, 57.12, 58.395),
}  # fmt: skip
# Sides of the masks of a box, in pixels: mmdetection's mask head, and PointRend's.
_BOX_MASKS = (28, 56, 112, 224)


def read(signature: Signature, metadata: Metadata) -> Description | None:
    """Return the description of a model that mmdeploy exported; None if the ports are others."""
    positions, image = _positions(signature), facts.image_port(signature)
    if positions is None or image is None:
        return None
    kind = _kind(signature.outputs[positions["masks"]], image.size_hw)
    if kind is None:
        return None
    told = Facts()
    what = f"{'RTMDet-Ins' if kind == 'planes' else 'Mask R-CNN'} by mmdetection, exported by mmdeploy, by layout"
    told.add(PORTS, family="mmdeploy", kind=kind, outputs=positions, what=what)
    told.add_image(image)
    told.add(FAMILY, **(RTMDET_PREPARATION if kind == "planes" else PREPARATION))
    if kind == "planes" and image.size_hw is None:
        told.add(FAMILY, size_hw=(640, 640))
        told.notes.append("The file states no size. RTMDet-Ins is trained with 640 by 640 pixels.")
    elif kind != "planes" and image.size_hw is not None:
        told.add(FAMILY, resize="stretch")
    elif kind != "planes":
        told.notes.append("The padding is zero after the image is normalised, unless `pad` states a level.")
    told.add_names(None, "")
    told.notes.append("The file states no preparation. segray takes that of mmdetection's own configurations.")
    told.versions.update(metadata.versions)
    return told.description()


def _kind(masks: ModelPort, size_hw: tuple[int, int] | None) -> str | None:
    """Return the kind of the masks (1, n, h, w); None for masks of neither a box nor the network's input.

    size_hw: size of the input in pixels; None for any.
    """
    height, width = (masks.shape or ())[2:]
    if height in _BOX_MASKS and height == width and (height, width) != size_hw:
        return "boxes"
    pairs = zip((height, width), size_hw or (None, None), strict=True)
    if any(None not in pair and pair[0] != pair[1] for pair in pairs):
        return None
    return "pasted" if masks.element_type == "boolean" else "planes"


def _positions(signature: Signature) -> dict[str, int] | None:
    """Return the positions of the outputs by their names; None if the outputs are others."""
    ports = signature.outputs
    positions = {name: index for name in _NAMES if (index := facts.index_by_name(ports, name)) is not None}
    if len(positions) != len(_NAMES) or len(ports) != len(_NAMES):
        return None
    shapes = [ports[positions[name]].shape for name in _NAMES]
    if [None if shape is None else len(shape) for shape in shapes] != [3, 2, 4]:
        return None
    if (shapes[0] or (None,))[-1] != 5 or not ports[positions["labels"]].element_type.startswith("i"):
        return None
    return positions
