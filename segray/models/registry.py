"""The model adapters by the name on the model card, and a function that decodes any model's outputs.

A further model family needs one file in `adapters` and one line in ADAPTERS.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from segray.errors import ConfigError
from segray.imaging.geometry import Resize
from segray.instances import Instances
from segray.models.adapters import (
    detectron2,
    geti,
    geti_yolo,
    hugging_face,
    instance_segmentation_security,
    mask_rcnn,
    mmdeploy,
    own,
    rf_detr,
    tf_object_detection,
    torchvision,
    yolact,
    yolo_seg,
    yolov5_seg,
)
from segray.models.adapters.adapter import ModelAdapter, Options
from segray.models.coco_labels import COCO_NAMES
from segray.models.decoders import Decoder
from segray.models.description import CONFIGURATION, Description
from segray.models.metadata import CARD

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
    "detectron2": detectron2.of,
    "geti_mask_rcnn": geti.GetiMaskRcnn.of,
    "geti_detr": geti.GetiDetr.of,
    "geti_yolo": geti_yolo.GetiYolo.of,
    "eomt": hugging_face.Eomt.of,
    "mask2former": hugging_face.Mask2Former.of,
    "maskformer": hugging_face.MaskFormer.of,
    "mmdeploy": mmdeploy.of,
    "rf_detr": rf_detr.of,
    "torchvision_mask_rcnn": torchvision.of,
    "yolo_seg": yolo_seg.of,
    "yolov5_seg": yolov5_seg.of,
}

# Ways in which an adapter can resize images; a family that is absent has all.
_RESIZES: Mapping[str, tuple[Resize, ...]] = {
    "detectron2": ("stretch",),
    "eomt": ("corner",),
    "mask2former": ("stretch",),
    "maskformer": ("stretch",),
    "mmdeploy": ("corner", "stretch"),
    "rf_detr": ("stretch",),
    "torchvision_mask_rcnn": ("stretch",),
    "yolov5_seg": ("letterbox",),
}
_KINDS: Mapping[str, tuple[str, ...]] = {
    "mmdeploy": ("boxes", "planes", "pasted"),
    "torchvision_mask_rcnn": ("pasted", "cut"),
    "yolo_seg": ("raw", "selected"),
}
_WITH_NMS = ("geti_detr", "geti_mask_rcnn", "geti_yolo", "yolo_seg", "yolov5_seg")
_WITH_STRIDE = ("yolo_seg",)


def check(description: Description) -> None:
    """Raise ConfigError for a fact of a card or of the configuration that the family's adapter cannot follow."""
    family = description.family
    resizes = _RESIZES.get(family, (description.resize,))
    if description.resize not in resizes:
        raise _not_followed(description, "resize", description.resize, resizes)
    kinds = _KINDS.get(family, (description.kind,))
    if description.kind not in kinds:
        raise _not_followed(description, "kind", description.kind, kinds)
    if description.stride is not None and family not in _WITH_STRIDE:
        raise _not_followed(description, "stride", description.stride, ())
    if "nms_iou" in description.thresholds and family not in _WITH_NMS:
        raise _not_followed(description, "thresholds.nms_iou", description.thresholds["nms_iou"], ())
    if description.resize == "stretch" and description.sources.get("pad_value") == CONFIGURATION:
        raise _not_followed(description, "pad", description.pad_value, ())


def _not_followed(description: Description, key: str, found: object, choices: tuple[str, ...]) -> ConfigError:
    """Return the error for a fact. choices: the values that the family takes; none if the family has no such fact."""
    is_configured = CONFIGURATION in (description.sources.get(key), description.sources.get(f"{key}_value"))
    name, where = (
        (f"model.preprocessing.{key}", f"model.preprocessing.{key}")
        if is_configured
        else (f"description.{key}", f"{CARD}, description.{key}")
    )
    what = f"Models of the family {description.family} have no {key}."
    if key == "pad":
        what = "Images that are stretched have no padding."
    elif choices:
        what = f"segray cannot follow this {key} for the family {description.family}."
    hint = f"Remove `{name}`." if not choices else f"Remove `{name}`, or set `{name}` to {' or '.join(choices)}."
    return ConfigError(what, where=where, found=str(found), hint=hint)


def adapter_of(description: Description, decoder: Decoder | None = None) -> ModelAdapter:
    """Return the adapter of a model that describes itself. decoder: the user's, for a model that it describes."""
    return FAMILIES[description.family](description) if decoder is None else own.of(description, decoder)


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
