"""The model adapters by the name on the model card, and a function that decodes any model's outputs.

A further model family needs one file in `adapters` and one line in ADAPTERS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from segray.errors import ConfigError
from segray.instances import Instances
from segray.models.adapters import (
    geti,
    geti_yolo,
    hugging_face,
    instance_segmentation_security,
    mask_rcnn,
    rf_detr,
    tf_object_detection,
    torchvision,
    yolact,
    yolo_seg,
)
from segray.models.adapters.adapter import ModelAdapter, Options
from segray.models.coco_labels import COCO_NAMES
from segray.models.description import Description

_YOLACT = yolact.Yolact("yolact-resnet50-fpn-pytorch", COCO_NAMES, yolact.FORMS)
_SECURITY = "instance-segmentation-security"

ADAPTERS: Mapping[str, ModelAdapter] = {
    **{
        adapter.name: adapter
        for adapter in (
            mask_rcnn.MaskRcnn("mask_rcnn_inception_v2_coco", COCO_NAMES, mask_rcnn.FORMS),
            mask_rcnn.MaskRcnn("mask_rcnn_inception_resnet_v2_atrous_coco", COCO_NAMES, mask_rcnn.FORMS),
            tf_object_detection.DetectionApi(
                "mask_rcnn_inception_resnet_v2_1024x1024",
                COCO_NAMES,
                {"original": tf_object_detection.original("input_tensor")},
                paste="reframe",
            ),
            _YOLACT,
            instance_segmentation_security.RawMasks(
                f"{_SECURITY}-0033", COCO_NAMES, instance_segmentation_security.raw_masks((480, 640))
            ),
            instance_segmentation_security.RawMasks(
                f"{_SECURITY}-0083", COCO_NAMES, instance_segmentation_security.raw_masks((480, 640))
            ),
            instance_segmentation_security.OwnMasks(
                f"{_SECURITY}-0002", COCO_NAMES, instance_segmentation_security.own_masks((768, 1024))
            ),
            instance_segmentation_security.OwnMasks(
                f"{_SECURITY}-0091", COCO_NAMES, instance_segmentation_security.own_masks((800, 1344))
            ),
            instance_segmentation_security.OwnMasks(
                f"{_SECURITY}-0228", COCO_NAMES, instance_segmentation_security.own_masks((608, 608)), padded=False
            ),
            instance_segmentation_security.OwnMasks(
                f"{_SECURITY}-1039", COCO_NAMES, instance_segmentation_security.own_masks((480, 480)), padded=False
            ),
            instance_segmentation_security.OwnMasks(
                f"{_SECURITY}-1040", COCO_NAMES, instance_segmentation_security.own_masks((608, 608)), padded=False
            ),
        )
    },
    "stickers": _YOLACT,
}

# Family -> a function that returns the adapter of a model that describes itself.
FAMILIES: Mapping[str, Callable[[Description], ModelAdapter]] = {
    "geti_mask_rcnn": geti.GetiMaskRcnn.of,
    "geti_detr": geti.GetiDetr.of,
    "geti_yolo": geti_yolo.GetiYolo.of,
    "eomt": hugging_face.Eomt.of,
    "mask2former": hugging_face.Mask2Former.of,
    "maskformer": hugging_face.MaskFormer.of,
    "rf_detr": rf_detr.of,
    "torchvision_mask_rcnn": torchvision.of,
    "yolo_seg": yolo_seg.of,
}


def decode(
    name: str, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int], *, score_threshold: float = 0.0
) -> Instances:
    """Return the instances of one image from a model's raw outputs, in the order of ModelAdapter.decode.

    Args:
        name: The model's name, as on the model card.
        outputs: Arrays by output name, with the batch axis of the model. The arrays are not changed.
        size_hw: Height and width of the source image, in pixels.
        score_threshold: Rows with a lower score are dropped.

    Raises:
        ConfigError: The name is unknown.
        ModelError: An output is missing or has another shape.
    """
    if name not in ADAPTERS:
        raise ConfigError(
            f"There is no model {name!r}.", where="name", found=repr(name), hint=f"Give one of {', '.join(ADAPTERS)}."
        )
    adapter = ADAPTERS[name]
    return replace(adapter.decode(outputs, size_hw, Options(score_threshold)), labels=adapter.labels)
