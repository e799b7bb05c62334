"""Reader of segray's own card: a file segray.json beside the model, which overrides what the model file says.

A card is {"contract": family, "description": {key: value}}. The keys are the fields of a description. A card of a model
of the catalogue has no description.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

from segray.errors import ModelError
from segray.imaging.geometry import Resize, Rounding
from segray.models import metadata as values
from segray.models.describe import (
    detectron2,
    facts,
    geti,
    hugging_face,
    mmdeploy,
    rf_detr,
    torchvision,
    ultralytics,
    yolov5,
)
from segray.models.describe.facts import FAMILY, Facts
from segray.models.description import Description, category_ids
from segray.models.metadata import CARD, Metadata

if TYPE_CHECKING:
    from segray.models.engine import Signature

_PREPARATION: Mapping[str, Mapping[str, Any]] = {
    "yolo_seg": ultralytics.PREPARATION,
    "geti_mask_rcnn": geti.PREPARATION,
    "geti_detr": geti.PREPARATION,
    "geti_yolo": geti.YOLO_PREPARATION,
    "rf_detr": rf_detr.PREPARATION,
    "torchvision_mask_rcnn": torchvision.PREPARATION,
    "hf_masks": hugging_face.PREPARATION,
    "mask2former": hugging_face.PREPARATION,
    "maskformer": hugging_face.PREPARATION,
    "eomt": {**hugging_face.PREPARATION, "resize": "corner"},
    "mmdeploy": mmdeploy.PREPARATION,
    "yolov5_seg": yolov5.PREPARATION,
    "detectron2": detectron2.PREPARATION,
}
KNOWN_FAMILIES = tuple(_PREPARATION)
_THRESHOLDS = ("score_threshold", "nms_iou", "max_detections")


def stated_family(metadata: Metadata) -> str | None:
    """Return the family that the card names; None if it names none, or a model of the catalogue."""
    family = _stated(metadata).get("family", metadata.card.get("contract"))
    if family is None or ("description" not in metadata.card and family not in KNOWN_FAMILIES):
        return None
    if family not in KNOWN_FAMILIES:
        near = difflib.get_close_matches(str(family), KNOWN_FAMILIES, n=1, cutoff=0.0)[0]
        hint = f"Did you mean {near!r}? The families are {', '.join(KNOWN_FAMILIES)}."
        raise ModelError(f"There is no family {family!r}.", where=_where(metadata), found=repr(family)[:80], hint=hint)
    return str(family)


def is_complete(metadata: Metadata) -> bool:
    """Return whether the card alone describes the model, so that nothing else need be read."""
    return stated_family(metadata) is not None and {"kind", "outputs"} <= _stated(metadata).keys()


def read(signature: Signature, metadata: Metadata, described: Description | None) -> Description | None:
    """Return the description with the card's facts in place of the file's.

    Args:
        signature: The ports of the model.
        metadata: The metadata of the model, with the card.
        described: What the file says; None if it says nothing.

    Raises:
        ModelError: The card has an unknown key or a wrong value, or lacks facts that nothing else states.
    """
    family, stated = stated_family(metadata), _stated(metadata)
    if family is None and not stated:
        return described
    if family is None and described is None:
        raise _incomplete(metadata, "family")
    if described is not None and hugging_face.is_one(described) and family in hugging_face.PROCESSORS:
        described = hugging_face.as_processor(described, str(family), CARD)
    if described is None or family not in (None, described.family):
        described = _bare(signature, metadata, str(family))
    checked = {key: _checked(key, value, signature, metadata) for key, value in stated.items()}
    checked.pop("family", None)
    for key in ("thresholds", "extra"):
        if key in checked:
            checked[key] = {**getattr(described, key), **checked[key]}
    _check_label_count(checked, described, metadata)
    given = {"size": "size_hw", "labels": "labels"}
    missing = tuple(key for key in described.missing if given[key] not in checked)
    sources = {**described.sources, **dict.fromkeys(checked, CARD)}
    for key in ("thresholds", "extra"):
        sources.update(dict.fromkeys(stated.get(key, ()), CARD))
    return replace(described, **checked, missing=missing, sources=sources)


def _check_label_count(checked: Mapping[str, Any], described: Description, metadata: Metadata) -> None:
    """Raise ModelError unless the card names as many classes as the ports have."""
    classes, labels = described.extra.get("classes"), checked.get("labels")
    if labels is None or classes is None or len(labels) == classes:
        return
    hint = f"Name each class in {CARD}, in the network's order, or remove `labels`."
    what = "The card names another number of classes than the network has."
    found = f"{len(labels)} names, {classes} classes"
    raise ModelError(what, where=f"{_where(metadata)}, description.labels", found=found, hint=hint)


def _bare(signature: Signature, metadata: Metadata, family: str) -> Description:
    """Return a description with the family's defaults, for a card that describes the rest."""
    if absent := {"kind", "outputs"} - _stated(metadata).keys():
        raise _incomplete(metadata, sorted(absent)[0])
    image = facts.image_port(signature)
    told = Facts()
    told.add(CARD, family=family, what=f"{family}, described by {CARD}", kind="", outputs={})
    told.add(FAMILY, **_PREPARATION[family])
    told.add_names(None, "")
    if image is None:
        told.add(FAMILY, input_name="", size_hw=None)
    else:
        told.add_image(image)
    return told.description()


def _stated(metadata: Metadata) -> Mapping[str, Any]:
    """Return the section `description` of the card."""
    stated = metadata.card.get("description", {})
    if not isinstance(stated, dict):
        hint = f'Write `description` in {CARD} as an object: {{"size_hw": [640, 640]}}.'
        what = "The card's description is no object."
        raise ModelError(what, where=_where(metadata), found=repr(stated)[:80], hint=hint)
    return stated


def _where(metadata: Metadata) -> str:
    folder = metadata.path if metadata.path.is_dir() else metadata.path.parent
    return str(folder / CARD)


def _incomplete(metadata: Metadata, key: str) -> ModelError:
    hint = f"Add `{key}` to `description` in {CARD}, or remove `description`."
    what = f"The card does not state the {key}, and the model file does not either."
    return ModelError(what, where=_where(metadata), found=repr(dict(metadata.card))[:120], hint=hint)


# ---- values ---------------------------------------------------------------------------------------


def _checked(key: str, value: Any, signature: Signature, metadata: Metadata) -> Any:
    """Return a value of the card as the field of a description."""
    where = f"{_where(metadata)}, description.{key}"
    if key == "outputs":
        return _outputs(value, where, len(signature.outputs))
    if key not in _CHECKS:
        near = difflib.get_close_matches(key, [*_CHECKS, "outputs"], n=1, cutoff=0.0)[0]
        hint = f"Did you mean {near!r}? The keys are {', '.join((*_CHECKS, 'outputs'))}."
        raise ModelError(f"The card has an unknown key {key!r}.", where=where, found=repr(value)[:80], hint=hint)
    return _CHECKS[key](value, where)


def _wrong(value: object, where: str, expected: str) -> ModelError:
    hint = f"Write {expected}."
    return ModelError("The card has a wrong value.", where=where, found=repr(value)[:80], hint=hint)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise _wrong(value, where, "a text")
    return value


def _one_of(*choices: str) -> Callable[[Any, str], str]:
    def check(value: Any, where: str) -> str:
        if value not in choices:
            raise _wrong(value, where, " or ".join(choices))
        return str(value)

    return check


def _outputs(value: Any, where: str, count: int) -> dict[str, int]:
    if not isinstance(value, dict) or not value:
        raise _wrong(value, where, 'an object such as {"output0": 0, "output1": 1}')
    return {name: values.whole_number(position, f"{where}.{name}", high=count - 1) for name, position in value.items()}


def _size_hw(value: Any, where: str) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2:
        raise _wrong(value, where, "[height, width] in pixels, or null")
    height, width = (values.whole_number(side, where, low=1, high=2**16) for side in value)
    return height, width


def _labels(value: Any, where: str) -> Mapping[int, str]:
    """Return category id -> name, from such an object, or from a list of names in the network's order."""
    if isinstance(value, list):
        labels = category_ids(facts.names_of(value, where)) if value else {}
    elif isinstance(value, dict) and all(isinstance(name, str) for name in value.values()):
        labels = {values.whole_number(key, where, high=2**31 - 1): name for key, name in value.items()}
    else:
        labels = {}
    if not labels:
        raise _wrong(value, where, 'class names: ["bolt", "nut"], or {"1": "bolt", "2": "nut"}')
    if fault := facts.fault_of_names(labels.values()):
        raise ModelError(fault, where=where, found=repr(value)[:80], hint="Give each class a name of its own.")
    return labels


def _channels(value: Any, where: str) -> tuple[float, float, float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 3:
        raise _wrong(value, where, "three numbers, one for each channel")
    first, second, third = (values.number(part, where) for part in value)
    return first, second, third


def _scale(value: Any, where: str) -> tuple[float, float, float] | None:
    scale = _channels(value, where)
    if scale is not None and 0 in scale:
        raise _wrong(value, where, "three numbers other than 0")
    return scale


def _thresholds(value: Any, where: str) -> dict[str, float]:
    if not isinstance(value, dict) or not value.keys() <= set(_THRESHOLDS):
        raise _wrong(value, where, f"an object with {', '.join(_THRESHOLDS)}")
    most = {"max_detections": 32_767.0}
    return {
        name: values.number(part, f"{where}.{name}", low=0, high=most.get(name, 1.0)) for name, part in value.items()
    }


def _extra(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(value, where, "an object")
    for name, part in value.items():
        if name not in _EXTRA_CHECKS:
            near = difflib.get_close_matches(str(name), _EXTRA_CHECKS, n=1, cutoff=0.0)[0]
            hint = f"Did you mean {near!r}? The keys are {', '.join(_EXTRA_CHECKS)}."
            raise ModelError(f"The card has an unknown key {name!r}.", where=where, found=repr(part)[:80], hint=hint)
        _EXTRA_CHECKS[name](part, f"{where}.{name}")
    return value


def _count(value: Any, where: str) -> int:
    return values.whole_number(value, where, low=1, high=2**16)


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(value, where, "true or false")
    return value


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(value, where, "an object")
    return value


_EXTRA_CHECKS: Mapping[str, Callable[[Any, str], Any]] = {
    "window_hw": _size_hw,
    "end2end": _flag,
    "classes": _count,
    "in_graph": _object,
    "columns": _count,
    "queries": _count,
    "masks_hw": _size_hw,
    "mask_side": _count,
    "nms_execute": _flag,
    "agnostic_nms": _flag,
    "nms_max_predictions": lambda value, where: values.whole_number(value, where, high=2**31 - 1),
    "empty_label": _flag,
    "intensity_mode": _text,
    "input_is_unit": _flag,
    "tile_size": _count,
    "tiles_overlap": lambda value, where: values.number(value, where, low=0, high=1),
    "max_pred_number": _count,
    "tile_with_full_img": _flag,
}


_CHECKS: Mapping[str, Callable[[Any, str], Any]] = {
    "family": _text,
    "what": _text,
    "kind": _text,
    "input_name": _text,
    "size_hw": _size_hw,
    "stride": lambda value, where: None if value is None else values.whole_number(value, where, low=1, high=4096),
    "resize": _one_of(*get_args(Resize)),
    "pad_value": lambda value, where: values.whole_number(value, where, high=255),
    "rounding": _one_of(*get_args(Rounding)),
    "colour": _one_of("RGB", "BGR"),
    "mean": _channels,
    "scale": _scale,
    "labels": _labels,
    "thresholds": _thresholds,
    "extra": _extra,
}
