"""The model systems by the name on their model card, and one function that decodes any of them.

A further system is one file in this folder and one line in ADAPTERS.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from segray.errors import ConfigError
from segray.instances import Instances
from segray.models.adapters import instance_segmentation_security, mask_rcnn, tf_object_detection, yolact
from segray.models.adapters.adapter import ModelAdapter, Options
from segray.models.coco_labels import COCO_NAMES

_YOLACT = yolact.Yolact("yolact-resnet50-fpn-pytorch", COCO_NAMES, yolact.FORMS)
_SECURITY = "instance-segmentation-security"

ADAPTERS: Mapping[str, ModelAdapter] = {
    **{
        contract.name: contract
        for contract in (
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


def decode(
    name: str, outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int], *, score_threshold: float = 0.0
) -> Instances:
    """What a model found in one image, from its raw outputs, best first.

    name: as on the model card. outputs: arrays by output name, the batch axis as the model emits it; never changed.
    size_hw: height and width of the source image. score_threshold: rows below it are dropped.
    Raises ConfigError for an unknown name, ModelError for missing outputs or other shapes.
    """
    if name not in ADAPTERS:
        raise ConfigError(
            f"There is no model {name!r}.", where="name", found=repr(name), hint=f"Choose one of {', '.join(ADAPTERS)}."
        )
    return ADAPTERS[name].decode(outputs, size_hw, Options(score_threshold))
