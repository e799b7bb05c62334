"""The families of models that describe themselves: their programs, forms and licences, and how to get a model.

Knows facts as literals, for people. registry.py has the adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_FORMS = ("IR", "ONNX")


@dataclass(frozen=True)
class Family:
    """A family, as `segray models list` shows it.

    name: value of model.name. programs: programs and networks of the family. forms: kinds of files that segray takes.
    licence: of the family's code and weights, with a note. how_to_get: a command that exports a model, or where to read
    the recipe. page: file in docs/models.
    """

    name: str
    programs: str
    forms: tuple[str, ...]
    licence: str
    how_to_get: str
    page: str


_GETI = "Apache-2.0; weights are your own"
_GETI_EXPORT = "download the OpenVINO model of a Geti project, or getitune export --export_format OPENVINO"
_HUGGING_FACE = "Apache-2.0 for the code; each checkpoint has its own, some forbid commercial use"


def _hugging_face(name: str, network: str) -> Family:
    how = f"the wrapper of docs/models/hugging-face.md; set model.name: {name}, or keep config.json beside the file"
    return Family(name, f"{network} of transformers", _FORMS, _HUGGING_FACE, how, "hugging-face.md")


FAMILY_FACTS: Mapping[str, Family] = {
    family.name: family
    for family in (
        Family(
            "yolo_seg",
            "Ultralytics: YOLOv8, v9, 11, 12, 26, YOLOE, FastSAM",
            _FORMS,
            "AGPL-3.0 for code and weights, or Ultralytics' commercial licence",
            "yolo export model=best.pt format=openvino",
            "yolo.md",
        ),
        Family(
            "geti_mask_rcnn",
            "Geti, OTX: Mask R-CNN, RTMDet-Ins",
            _FORMS,
            _GETI,
            _GETI_EXPORT,
            "geti.md",
        ),
        Family(
            "geti_detr",
            "Geti, OTX: RF-DETR-Seg, Mask2Former, EoMT",
            _FORMS,
            _GETI,
            _GETI_EXPORT,
            "geti.md",
        ),
        Family(
            "geti_yolo",
            "Geti, OTX: YOLO11, YOLO26",
            _FORMS,
            "Apache-2.0; weights that began as Ultralytics' are AGPL-3.0",
            _GETI_EXPORT,
            "geti.md",
        ),
        Family(
            "rf_detr",
            "RF-DETR-Seg of rfdetr, and of transformers",
            _FORMS,
            "Apache-2.0 for code and weights",
            "python -c \"from rfdetr import RFDETRSegNano; RFDETRSegNano().export(format='openvino')\"",
            "rf-detr.md",
        ),
        Family(
            "torchvision_mask_rcnn",
            "Mask R-CNN v1 and v2 of torchvision",
            _FORMS,
            "BSD-3-Clause; weights may have terms of their training images",
            "the wrapper of docs/models/torchvision.md",
            "torchvision.md",
        ),
        _hugging_face("mask2former", "Mask2Former"),
        _hugging_face("maskformer", "MaskFormer"),
        _hugging_face("eomt", "EoMT"),
        Family(
            "mmdeploy",
            "mmdetection: Mask R-CNN, RTMDet-Ins, by layout",
            _FORMS,
            "Apache-2.0 for the code",
            "mmdeploy's tools/deploy.py with a configuration of configs/mmdet/instance-seg",
            "by-layout.md",
        ),
        Family(
            "yolov5_seg",
            "YOLOv5-seg 7.0, by layout",
            _FORMS,
            "AGPL-3.0 for code and weights, or Ultralytics' commercial licence",
            "python export.py --weights yolov5s-seg.pt --include openvino",
            "by-layout.md",
        ),
        Family(
            "detectron2",
            "Mask R-CNN of Detectron2, traced, by layout",
            _FORMS,
            "Apache-2.0 for the code; published weights may have terms of their own",
            "export_model.py --export-method tracing of Detectron2, then openvino.convert_model",
            "by-layout.md",
        ),
    )
}
