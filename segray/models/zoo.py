"""The catalogue of models: download addresses, checksums, conversion, and the model cards' statements.

Knows facts as literals, each in one place. Downloads and converts nothing. Sizes and checksums are those of Open Model
Zoo's model.yml files.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from segray.errors import ConfigError

FormName = Literal["original", "converted"]
# Kind of the published files: a TensorFlow export, a PyTorch checkpoint, an IR, or an IR v5.
# OpenVINO no longer reads IR v5.
Kind = Literal["tensorflow", "checkpoint", "ir", "ir5", "embedded"]
# None for an axis whose size differs between files.
Shape = tuple[int | None, ...]


@dataclass(frozen=True)
class File:
    """A file to download. name: the file's name on disk. urls: mirrors, best first.

    size_bytes and the checksums, in hex digits, are None if never published.
    """

    name: str
    urls: tuple[str, ...]
    size_bytes: int | None = None
    sha256: str | None = None
    sha384: str | None = None


@dataclass(frozen=True)
class ModelSource:
    """Files from which a model can be made.

    model: path of the file or folder to convert, below the folder of the files or of the archive's content.
    archived: the only file is a .tar.gz. holds: the content, as a text for people.
    """

    files: tuple[File, ...]
    model: str
    holds: str
    archived: bool = False


@dataclass(frozen=True)
class PublishedAccuracy:
    """A model card's average precision over IoU 0.50 to 0.95, in percent, and how it was measured."""

    box_ap: float
    mask_ap: float
    protocol: str


@dataclass(frozen=True)
class ZooModel:
    """A model of the catalogue.

    sources: alternatives, best first. form: form that the conversion gives. command: command that converts with
    OpenVINO alone. inputs: names of the image input. outputs: form -> output name -> shape, without a batch axis that
    only some files have. thresholds: limits that the network itself applies. errors: mistakes of the model card.
    page: file in docs/models.
    """

    name: str
    what: str
    licence: str
    kind: Kind
    sources: tuple[ModelSource, ...]
    form: str
    command: str
    inputs: tuple[str, ...]
    outputs: Mapping[str, Mapping[str, Shape]]
    accuracy: tuple[PublishedAccuracy, ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    page: str = ""

    @property
    def how_to_get(self) -> str:
        """Return a text on how to get the model's files."""
        if self.kind == "embedded":
            return "Comes with segray; needs no path."
        return f"segray models pull {self.name}{_BY_HAND[self.kind].format(self=self, file=self.sources[0].files[0])}"

    @property
    def size_bytes(self) -> int | None:
        """Return the size of the download in bytes; None if unknown."""
        sizes = [file.size_bytes for file in self.sources[0].files] if self.sources else [0]
        return None if None in sizes else sum(size for size in sizes if size)


_BY_HAND: Mapping[Kind, str] = {
    "tensorflow": "; or unpack {file.name} and give {self.sources[0].model}, or an IR made from that model.",
    "checkpoint": "; or segray models convert {self.name} {file.name} --out DIR if you have the checkpoint.",
    "ir": "; or give the .xml of Open Model Zoo's download, its .bin beside it.",
    "ir5": (
        "; or segray models convert {self.name} {file.name} --out DIR if you have the files. It was published as IR v5 "
        "alone, which OpenVINO no longer reads. instance-segmentation-security-0083, with the same inputs and outputs "
        "but other weights, is published as IR v10."
    ),
}

# ---- TensorFlow -----------------------------------------------------------------------------------

_TF_HOST = "download.tensorflow.org/models/object_detection"
_TF_MIRRORS = (f"https://storage.googleapis.com/{_TF_HOST}", f"http://{_TF_HOST}")
_OMZ = "https://storage.openvinotoolkit.org/repositories/open_model_zoo"
_CHECKER = (
    "COCO val2017 by Open Model Zoo's accuracy checker on the converted form: fitted into 800x1365 and padded, masks "
    "pasted as tiles, no score threshold; its box AP adds 1 pixel to widths and heights"
)
_TF_ERRORS = (
    "Classes are 1..90; the card's '[1, 91]' counts an id that does not exist.",
    "The original's boxes are normalised to 0..1, not 'rescaled to input image size'.",
    "The original's masks are of the row's own class, not 'for all classes'.",
    "1x800x1365x3 is the converter's choice: the original takes images of any size.",
    "The converted form is NHWC since 2022; 1x3x800x1365 on older cards is what earlier converters made.",
)
_IN_GRAPH_TF = {"nms_iou": 0.6, "max_detections": 100}


def _original(mask_side: int) -> dict[str, Shape]:
    return {
        "num_detections": (),
        "detection_boxes": (None, 4),
        "detection_scores": (None,),
        "detection_classes": (None,),
        "detection_masks": (None, mask_side, mask_side),
    }


def _converted(mask_side: int) -> dict[str, Shape]:
    return {"reshape_do_2d": (None, 7), "masks": (None, 90, mask_side, mask_side)}


def _ovc(source: str, name: str) -> str:
    return f"ovc {source} --output_model {name}.xml --compress_to_fp16=False"


def _frozen(
    name: str, what: str, mask_side: int, size_bytes: int, sha256: str, accuracy: PublishedAccuracy, *,
    sha384: str | None = None, mirrors: tuple[str, ...] = (), errors: tuple[str, ...] = (),
) -> ZooModel:  # fmt: skip
    """Return the entry of a frozen graph from TensorFlow's detection model zoo of 2018."""
    folder = f"{name}_2018_01_28"
    archive = f"{folder}.tar.gz"
    urls = tuple(f"{root}/{archive}" for root in (*_TF_MIRRORS, *mirrors))
    model = f"{folder}/frozen_inference_graph.pb"
    holds = f"{folder}/: frozen_inference_graph.pb, pipeline.config, a checkpoint and a SavedModel"
    return ZooModel(
        name=name,
        what=what,
        licence="Apache-2.0",
        kind="tensorflow",
        sources=(ModelSource((File(archive, urls, size_bytes, sha256, sha384),), model, holds, archived=True),),
        form="original",
        command=_ovc(model, name),
        inputs=("image_tensor", "inputs"),
        outputs={"original": _original(mask_side), "converted": _converted(mask_side)},
        accuracy=(accuracy,),
        thresholds=_IN_GRAPH_TF,
        errors=(*_TF_ERRORS, *errors),
        page=f"{name}.md",
    )


_INCEPTION = _frozen(
    "mask_rcnn_inception_v2_coco",
    "Mask R-CNN, Inception v2: the fastest of the Mask R-CNNs",
    15,
    177_817_887,
    "4f57861c2ff1c87e92495789ee266e41a7dc79a038521d93a153be403b0b601f",
    PublishedAccuracy(27.1199, 21.4805, _CHECKER),
    errors=("Its 54.926 GFLOPs fit 800x800 and one region; the whole network at 800x1365 does about 250.",),
)
_ATROUS = _frozen(
    "mask_rcnn_inception_resnet_v2_atrous_coco",
    "Mask R-CNN, Inception-ResNet v2 with atrous convolutions: accurate and slow",
    33,
    727_390_102,
    "816afc8987c2152cbd0e24af3a6fb82086cea0645a38778884bd166c0d016bb5",
    PublishedAccuracy(39.8619, 35.3628, _CHECKER),
    sha384="fe7871a3b291e30b299b859ffddc2b73f25890c259aedcd5bde6fb6dd6b5507a24e7d370365e3bdd3497f1786a0f4d36",
    mirrors=(f"{_OMZ}/public/2022.1/mask_rcnn_inception_resnet_v2_atrous_coco",),
)

_HUB_NAME = "mask_rcnn_inception_resnet_v2_1024x1024"
_HUB_FOLDER = f"{_HUB_NAME}_coco17_gpu-8"
_HUB = ZooModel(
    name=_HUB_NAME,
    what="Mask R-CNN, Inception-ResNet v2 at 1024x1024, from TensorFlow Hub",
    licence="Apache-2.0",
    kind="tensorflow",
    sources=(
        ModelSource(
            (File(f"{_HUB_FOLDER}.tar.gz", tuple(f"{r}/tf2/20200711/{_HUB_FOLDER}.tar.gz" for r in _TF_MIRRORS)),),
            f"{_HUB_FOLDER}/saved_model",
            f"{_HUB_FOLDER}/: saved_model/, pipeline.config and a checkpoint; the same weights as TensorFlow Hub's",
            archived=True,
        ),
        ModelSource(
            (
                File(
                    f"{_HUB_NAME}.tar.gz",
                    (
                        "https://www.kaggle.com/models/tensorflow/mask-rcnn-inception-resnet-v2/frameworks/tensorFlow2"
                        "/variations/1024x1024/versions/1?tf-hub-format=compressed",
                    ),
                ),
            ),
            ".",
            "saved_model.pb and variables/, about 232 MB",
            archived=True,
        ),
    ),
    form="original",
    command=_ovc(f"{_HUB_FOLDER}/saved_model", _HUB_NAME),
    inputs=("input_tensor",),
    outputs={"original": _original(33)},
    accuracy=(
        PublishedAccuracy(
            39.0,
            34.6,
            "TensorFlow's own evaluation, masks reframed; the card says COCO 2017 test, the training configuration "
            "40.4 / 35.5 on val2017: they disagree, so take it as nominal",
        ),
    ),
    thresholds=_IN_GRAPH_TF,
    errors=(
        "Every output has a batch axis of 1 that the card leaves out, and classes and counts are float32.",
        "mask_predictions is (100, 90, 33, 33) logits; use detection_masks, which are probabilities.",
        "raw_detection_boxes is listed twice; (1, 300, 4) is right. Scores with background are 91 wide, not 90.",
        "'Boxes/Keypoints' over the numbers means boxes and masks.",
        "No checksum is published: segray records the checksum of the first download and compares later ones with it.",
    ),
    page=f"{_HUB_NAME}.md",
)

# ---- PyTorch --------------------------------------------------------------------------------------

_YOLACT_NAME = "yolact-resnet50-fpn-pytorch"
_YOLACT_WEIGHTS = "yolact_resnet50_54_800000.pth"
_YOLACT_OUTPUTS: Mapping[str, Shape] = {
    "conf": (19248, 81), "boxes": (19248, 4), "mask": (19248, 32), "proto": (138, 138, 32),
}  # fmt: skip
_YOLACT = ZooModel(
    name=_YOLACT_NAME,
    what="YOLACT, ResNet-50 FPN at 550x550: one stage, no region step",
    licence="MIT",
    kind="checkpoint",
    sources=(
        ModelSource(
            (
                File(
                    _YOLACT_WEIGHTS,
                    (
                        f"{_OMZ}/public/2022.1/{_YOLACT_NAME}/yolact/{_YOLACT_WEIGHTS}",
                        f"https://huggingface.co/dbolya/yolact-resnet50/resolve/main/{_YOLACT_WEIGHTS}",
                    ),
                    127_300_392,
                    "c12bb7a7e0343281db7f1407b376970bb52651f121d0b60bc4a49207acb6d6d7",
                    "7ef5b5367fd30871c77814500bbecbaf32f0a9e5721bba0a1cc4479e78e4d6ed25363ebfe6982b94189a11da1e45cf78",
                ),
            ),
            _YOLACT_WEIGHTS,
            "the weights alone, a flat dict of tensors; the network is built from them without the original's code",
        ),
    ),
    form="converted",
    command=f"segray models convert {_YOLACT_NAME} {_YOLACT_WEIGHTS} --out DIR   # needs segray[train]",
    inputs=("input.1", "x"),
    outputs={"original": _YOLACT_OUTPUTS, "converted": _YOLACT_OUTPUTS},
    accuracy=(
        PublishedAccuracy(
            30.69,
            28.0,
            "COCO val2017 by Open Model Zoo's accuracy checker: Pillow's bilinear stretch to 550x550, greedy "
            "suppression per class; mask AP by pycocotools, box AP by the checker's own with 20 per class and image",
        ),
    ),
    errors=(
        "Boxes are [x_min, y_min, x_max, y_max]; the card's y-first order is wrong.",
        "The mean is 123.675, 116.78, 103.94; cards before 2021.3 state 116.28 and 103.53.",
        "There are no heatmaps 'for all classes': coefficients and prototypes make one mask per box.",
    ),
    page=f"{_YOLACT_NAME}.md",
)

# ---- Intel ----------------------------------------------------------------------------------------

_SECURITY = "instance-segmentation-security"
_RAW_OUTPUTS: Mapping[str, Shape] = {
    "classes": (100,), "scores": (100,), "boxes": (100, 4), "raw_masks": (100, 81, 28, 28),
}  # fmt: skip
_WINDOW = "COCO val2017, fitted into {} and padded, masks pasted as tiles: what the static network does"
_SHORT_SIDE = "COCO val2017, short side up to {}, long side up to {}: needs a network of free size, not this file"


def _pair(
    root: str, number: str, xml: tuple[int | None, str], weights: tuple[int | None, str], precision: str = "FP32"
) -> ModelSource:
    """Return the two files of an IR. xml, weights: size in bytes and SHA-256 of each."""
    name = f"{_SECURITY}-{number}"
    files = tuple(
        File(f"{name}.{suffix}", (f"{root}/{name}/{precision}/{name}.{suffix}",), size, sha256)
        for suffix, (size, sha256) in (("xml", xml), ("bin", weights))
    )
    return ModelSource(files, f"{name}.xml", "the IR in FP32: .xml and .bin")


def _intel(
    number: str, what: str, source: ModelSource, size_hw: tuple[int, int], accuracy: tuple[PublishedAccuracy, ...], *,
    raw: bool, mask_side: int = 28, kind: Kind = "ir", errors: tuple[str, ...] = (),
) -> ZooModel:  # fmt: skip
    """Return the entry of one of Open Model Zoo's instance-segmentation-security models.

    raw: the model has the outputs of RawMasks, otherwise of OwnMasks.
    """
    name = f"{_SECURITY}-{number}"
    own: Mapping[str, Shape] = {"labels": (None,), "boxes": (None, 5), "masks": (None, mask_side, mask_side)}
    command = f"segray models convert {name} {name}.xml --out DIR" if kind == "ir5" else "none needed"
    return ZooModel(
        name=name,
        what=f"{what}, {size_hw[1]}x{size_hw[0]}",
        licence="Apache-2.0",
        kind=kind,
        sources=(source,),
        form="converted",
        command=command,
        inputs=("im_data",) if raw else ("image",),
        outputs={"converted": _RAW_OUTPUTS if raw else own},
        accuracy=accuracy,
        thresholds={"score": 0.05, "nms_iou": 0.5, "max_detections": 100} if raw else {"max_detections": 100},
        errors=errors,
        page=f"{name}.md" if raw else f"{_SECURITY}-siblings.md",
    )


_IM_INFO = "im_info is the size after resizing, before padding, then the scale; the network ignores the scale."
_SECURITY_0033 = _intel(
    "0033",
    "Mask R-CNN of Intel's, published as IR v5 alone",
    _pair(
        "https://download.01.org/opencv/2019/open_model_zoo/R1/20190404_140900_models_bin",
        "0033",
        (None, "2dc0e866c37247702076b8a225870b58bc48b6adaef972308dce0c78a3372e70"),
        (None, "1f496c48b4fc8ebc38f0ffb7ba82d638ff1ad2209ac9f504f7228e85a4d41f11"),
    ),
    (480, 640),
    (
        PublishedAccuracy(38.6, 34.3, _WINDOW.format("480x640")),
        PublishedAccuracy(38.9, 34.7, _SHORT_SIDE.format(480, 640)),
    ),
    raw=True,
    kind="ir5",
    errors=(
        "OpenVINO reads IR v10 and newer; the published IR v5 must be rewritten first, and no original was published.",
        _IM_INFO,
    ),
)
_SECURITY_0083 = _intel(
    "0083",
    "Mask R-CNN, ResNeXt-152 FPN, of Intel's",
    _pair(
        "https://download.01.org/opencv/2021/openvinotoolkit/2021.1/open_model_zoo/models_bin/2",
        "0083",
        (547_844, "3de868b63097f040d14dd1d79589d154eb4413f9fcaf0d160721da628aaea536"),
        (564_274_600, "744a69478c1aa00de1269b5e0487fedb591c38eca3f5d54b376d584ac0042bd7"),
    ),
    (480, 640),
    (
        PublishedAccuracy(40.16, 35.56, _WINDOW.format("480x640")),
        PublishedAccuracy(40.73, 36.05, _SHORT_SIDE.format(480, 640)),
    ),
    raw=True,
    errors=("0083 is not 0033 under another name: never report 0083's numbers as 0033's.", _IM_INFO),
)
_STRETCHED = "COCO val2017, stretched to {}"
_SIBLINGS = (
    _intel(
        "0002",
        "Mask R-CNN, ResNet-50 FPN, of Intel's",
        _pair(
            f"{_OMZ}/2021.4/models_bin/3",
            "0002",
            (840_711, "27bb8cbba8139f7757e1d0e8ff9badf8e388f61d9b1ae2d3d7fe61d21647cfd4"),
            (177_479_928, "43df120a06790f0d623645d6cc7d8e410fca005cb8ede7f3495a972f9d701ec6"),
        ),
        (768, 1024),
        (
            PublishedAccuracy(39.86, 36.44, _WINDOW.format("768x1024")),
            PublishedAccuracy(40.8, 36.9, _SHORT_SIDE.format(768, 1024)),
        ),
        raw=False,
    ),
    _intel(
        "0091",
        "Cascade Mask R-CNN, ResNet-101 with deformable convolutions, of Intel's",
        _pair(
            f"{_OMZ}/2021.4/models_bin/3",
            "0091",
            (1_381_647, "21e2ecec2c1e1a72558b06f2e87b2ee250fb342203d2a74af2cf27920d7db533"),
            (390_233_536, "247da9b3b1b746fa4bd59fae3a5ec9546390aad5b318ab9a3853936ecbc1f65c"),
        ),
        (800, 1344),
        (
            PublishedAccuracy(43.55, 38.14, _WINDOW.format("800x1344")),
            PublishedAccuracy(45.8, 39.7, _SHORT_SIDE.format(800, 1344)),
        ),
        raw=False,
    ),
    _intel(
        "0228",
        "Mask R-CNN, ResNet-101, light FPN, of Intel's",
        _pair(
            f"{_OMZ}/2021.4/models_bin/3",
            "0228",
            (985_819, "07fa70bb3ab4259c197cbd689e332199597e5458694c3e016c6a995d700a0c90"),
            (192_104_184, "1cf9b39d09637ba94ae5dd5f694ce40bdee7f3d59f7bad1d0134e9e1a2a0736c"),
        ),
        (608, 608),
        (PublishedAccuracy(38.85, 33.9, _STRETCHED.format("608x608")),),
        raw=False,
        mask_side=14,
    ),
    _intel(
        "1039",
        "Mask R-CNN, EfficientNet-B2, light FPN, of Intel's: the smallest",
        _pair(
            f"{_OMZ}/2021.3/models_bin/2",
            "1039",
            (907_600, "7f3b20ba1bae9d85c6e5ea04ee17940685755c47a331040565ca59f8ce4818bc"),
            (40_970_652, "6218a0815163633e8e1f6baa39e4b037839dc2429dababb7941353efe4837e94"),
        ),
        (480, 480),
        (PublishedAccuracy(32.9, 28.6, _STRETCHED.format("480x480")),),
        raw=False,
        mask_side=14,
    ),
    _intel(
        "1040",
        "Mask R-CNN, EfficientNet-B2, light FPN, of Intel's",
        _pair(
            f"{_OMZ}/2021.4/models_bin/3",
            "1040",
            (980_908, "97882cb3da405b5dd380f66b969827a407e05635b8f88ef9a0792be9af85a6f2"),
            (52_969_864, "3a64d4c321c7e9b490ea7b8d19f8143b1d521fe370a15f299de39de066429b3f"),
        ),
        (608, 608),
        (PublishedAccuracy(35.0, 31.2, _STRETCHED.format("608x608")),),
        raw=False,
    ),
)

_STICKERS = ZooModel(
    name="stickers",
    what="The embedded model: finds ten kinds of drawn stickers, for trials and tests",
    licence="Apache-2.0",
    kind="embedded",
    sources=(),
    form="converted",
    command="none needed",
    inputs=("input.1",),
    outputs=_YOLACT.outputs,
    page="stickers.md",
)

CATALOGUE: Mapping[str, ZooModel] = {
    entry.name: entry
    for entry in (_INCEPTION, _ATROUS, _HUB, _YOLACT, _SECURITY_0033, _SECURITY_0083, *_SIBLINGS, _STICKERS)
}


def find(name: str, where: str = "model.name") -> ZooModel:
    """Return the entry of this name; raise ConfigError with the nearest name if there is none."""
    if name not in CATALOGUE:
        nearest = difflib.get_close_matches(name, CATALOGUE, n=1, cutoff=0.0)[0]
        hint = f"Did you mean {nearest!r}? The models are {', '.join(CATALOGUE)}."
        raise ConfigError(f"There is no model {name!r}.", where=where, found=repr(name), hint=hint)
    return CATALOGUE[name]


def pulled_path(name: str) -> Path:
    """Return the path below the working directory to which `segray models pull` writes the model."""
    return Path("models", name, f"{name}.xml")
