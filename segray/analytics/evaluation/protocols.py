"""Protocols for measuring accuracy: COCO's, LVIS's, and those of the five model cards.

This module knows limits, box sides and the figures on the cards. Truth and detections belong to other modules.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from segray.errors import UserError

_COCO = (1, 10, 100)


@dataclass(frozen=True)
class Protocol:
    """The settings of one way of measuring.

    says: a description in a few words.
    box_limits, mask_limits: detections per image and class; the last limit counts for precision.
    widen_px: pixels that are added to width and height of detected boxes.
    per_image: largest number of detections of an image; None for any number.
    cards: by model, the box and mask AP in percent that its card states for COCO val2017.
    """

    name: str
    says: str
    box_limits: tuple[int, int, int] = _COCO
    mask_limits: tuple[int, int, int] = _COCO
    widen_px: float = 0.0
    per_image: int | None = None
    cards: Mapping[str, tuple[float, float]] = field(default_factory=dict)


PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("coco", "COCOeval of pycocotools, at most 100 detections per image and class"),
        Protocol(
            "lvis", "LVIS: at most 300 detections per image, only where the truth is exhaustive",
            (1, 10, 300), (1, 10, 300), per_image=300,
        ),
        Protocol(
            "omz-mask-rcnn", "Open Model Zoo's coco_orig_precision, which adds 1 to the sides of boxes",
            widen_px=1.0,
            cards={
                "mask_rcnn_inception_v2_coco": (27.1199, 21.4805),
                "mask_rcnn_inception_resnet_v2_atrous_coco": (39.8619, 35.3628),
            },
        ),
        Protocol(
            "tf-object-detection", "TensorFlow's Object Detection API: COCOeval; its figures are nominal, +-1.5",
            cards={"mask_rcnn_inception_resnet_v2_1024x1024": (39.0, 34.6)},
        ),
        Protocol(
            "omz-yolact", "COCOeval of pycocotools; boxes at most 20 per image and class, as on Open Model Zoo's card",
            box_limits=(1, 10, 20),
            cards={"yolact-resnet50-fpn-pytorch": (30.69, 28.00)},
        ),
        Protocol(
            "omz-instance-segmentation-security", "Open Model Zoo's coco_orig_precision, images fitted to 640x480",
            widen_px=1.0,
            cards={"instance-segmentation-security-0033": (38.6, 34.3)},
        ),
    )
}  # fmt: skip


def find(name: str) -> Protocol:
    """Return the protocol of this name, or of a model whose card was measured by it.

    Raise UserError for other names.
    """
    for protocol in PROTOCOLS.values():
        if name == protocol.name or name in protocol.cards:
            return protocol
    raise UserError("no such protocol", found=name, hint=f"choose from {', '.join(PROTOCOLS)}, or a model's name")
