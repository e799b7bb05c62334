"""Reader of RF-DETR's own exports, told by their ports: boxes, logits of classes and logits of masks for each query.

The files state neither classes nor, as an IR, the size of the input. The config.json of transformers may name classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from segray.models.coco_labels import COCO_NAMES
from segray.models.describe import facts, transformers_config
from segray.models.describe.facts import FAMILY, PORTS, Facts
from segray.models.describe.transformers_config import TransformersConfig
from segray.models.description import Description
from segray.models.metadata import CONFIG, Metadata

if TYPE_CHECKING:
    from segray.models.engine import ModelPort, Signature

# COCO's largest id is 90; a network trained on COCO has a column for each id from 0 on.
_COCO_COLUMNS = 91
SIZES = (
    "RF-DETR-Seg: nano 312, small 384, medium 432, large 504, xlarge 624, 2xlarge 768, preview 432; sides are equal."
)
PREPARATION: Mapping[str, Any] = {
    "resize": "stretch", "rounding": "exact", "pad_value": 0, "colour": "RGB",
    "mean": facts.IMAGENET_MEAN, "scale": facts.IMAGENET_SCALE,
}  # fmt: skip


def read(signature: Signature, metadata: Metadata) -> Description | None:
    """Return the description of an RF-DETR segmentation model; None if the ports are others."""
    positions, image = _positions(signature), facts.image_port(signature)
    if positions is None or image is None:
        return None
    queries, columns = (signature.outputs[positions["labels"]].shape or (None, None))[-2:]
    told = Facts()
    told.add(PORTS, family="rf_detr", kind="queries", outputs=positions, what="RF-DETR-Seg")
    told.add_image(image)
    if image.size_hw is None:
        told.missing.append("size")
    told.add(FAMILY, **PREPARATION)
    if columns == _COCO_COLUMNS:
        told.add(PORTS, labels=dict(COCO_NAMES))
        told.notes.append("The network has 91 columns of classes. segray takes the columns for COCO's ids.")
    else:
        if columns is not None:
            told.notes.append(
                f"The network has {columns} columns: {columns - 1} classes, and a slot for the background."
            )
        _add_names(told, transformers_config.read(metadata.path.parent), columns)
    if columns is not None:
        told.add_extra(PORTS, columns=columns)
    if queries is not None:
        told.add_extra(PORTS, queries=queries)
    told.versions.update(metadata.versions)
    return told.description()


def _add_names(told: Facts, config: TransformersConfig, columns: int | None) -> None:
    """Add the names of transformers' config.json if they are as many as the network's classes."""
    names = config.labels if config.model_type.startswith("rf_detr") else None
    told.add_names(names if names is not None and columns in (None, len(names) + 1) else None, CONFIG)


def _positions(signature: Signature) -> dict[str, int] | None:
    """Return the positions of boxes, logits of classes and logits of masks; None if the outputs are others."""
    ports = signature.outputs
    names = [facts.index_by_name(ports, *pair) for pair in (("dets", "pred_boxes"), ("labels", "logits"))]
    masks = facts.index_by_name(ports, "masks", "pred_masks", "mask_logits")
    if len(ports) != 3 or masks is None:
        return None
    if None in names:
        if facts.index_by_name(ports, "mask_logits") != 2 or _is_named(ports[0]) or _is_named(ports[1]):
            return None
        names = [0, 1]
    boxes, labels = names
    assert boxes is not None
    assert labels is not None
    shapes = [ports[index].shape for index in (boxes, labels, masks)]
    if [None if shape is None else len(shape) for shape in shapes] != [3, 3, 4]:
        return None
    queries = {shape[1] for shape in shapes if shape is not None}
    last = (shapes[0] or (None,))[-1]
    if len(queries) != 1 or last != 4 or not ports[labels].element_type.startswith("f"):
        return None
    return {"dets": boxes, "labels": labels, "masks": masks}


def _is_named(port: ModelPort) -> bool:
    """Return whether a port has a name other than the one that OpenVINO gives when it saves a port without a name."""
    return any(not name.startswith("Result_") for name in port.names)
