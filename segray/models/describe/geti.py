"""Reader of models by Intel Geti, getitune and OTX, and of others that model_api's `model_info` describes.

Knows the keys of model_info and model_api's defaults where a key is absent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from segray.errors import ModelError
from segray.models import metadata as values
from segray.models.describe import facts
from segray.models.describe.facts import FAMILY, PORTS, Facts
from segray.models.description import Description
from segray.models.metadata import Metadata

if TYPE_CHECKING:
    from segray.models.engine import Signature

_FAMILIES = {"MaskRCNN": "geti_mask_rcnn", "DETRInstSeg": "geti_detr", "YOLO-seg": "geti_yolo"}
_RESIZES = {"standard": "stretch", "fit_to_window": "corner", "fit_to_window_letterbox": "letterbox"}
_EMPTY_NAMES = ("getitune_empty_lbl", "otx_empty_lbl")
_PROGRAMS = ("getitune_version", "otx_version")
_IGNORED_OUTPUTS = ("feature_vector", "saliency_map")
# Largest level of each type that the file may be made for.
_LARGEST = {"u8": 255.0, "u16": 65535.0, "i16": 32767.0, "f32": 1.0}

# model_api's values for absent keys; a YOLO has some of its own.
_DEFAULTS: Mapping[str, str] = {
    "confidence_threshold": "0.5",
    "iou_threshold": "0.5",
    "nms_execute": "False",
    "agnostic_nms": "False",
    "nms_max_predictions": "200",
    "resize_type": "standard",
    "interpolation_mode": "LINEAR",
    "pad_value": "0",
    "reverse_input_channels": "False",
    "mean_values": "",
    "scale_values": "",
    "input_dtype": "u8",
    "intensity_mode": "none",
    "intensity_scale_factor": "1.0",
    "intensity_min_value": "0.0",
    "intensity_repeat_channels": "False",
    "embedded_processing": "False",
}
_YOLO_DEFAULTS: Mapping[str, str] = {
    **_DEFAULTS,
    "confidence_threshold": "0.25",
    "pad_value": "114",
    "resize_type": "fit_to_window_letterbox",
    "scale_values": "255.0",
}
# What model_api does with a file that states nothing.
PREPARATION: Mapping[str, Any] = {
    "resize": "stretch", "rounding": "exact", "pad_value": 0, "colour": "RGB", "mean": None, "scale": None,
}  # fmt: skip
YOLO_PREPARATION: Mapping[str, Any] = {
    **PREPARATION, "resize": "letterbox", "pad_value": 114, "scale": (255.0, 255.0, 255.0),
}  # fmt: skip


@dataclass(frozen=True)
class _ModelInfo:
    """The entries of model_info. where: their place. file: the model's file, for errors."""

    entries: Mapping[str, str]
    defaults: Mapping[str, str]
    where: str
    file: str

    def source(self, *keys: str) -> str:
        """Return where the values of these keys were read; the defaults, if all of them are absent."""
        return self.where if any(key in self.entries for key in keys) else FAMILY

    def place(self, key: str) -> str:
        """Return the place of a key, for errors."""
        return f"{self.file}, {self.where}, model_info, {key}"

    def text(self, key: str) -> str:
        """Return the value of a key, model_api's default if the key is absent or None."""
        value = self.entries.get(key, "None").strip()
        return self.defaults.get(key, "") if value in ("", "None") else value

    def flag(self, key: str) -> bool:
        """Return whether a key is on; model_api takes YES and True for on."""
        return self.text(key) in ("YES", "True")

    def number(self, key: str, **limits: float) -> float:
        """Return a number; raise ModelError for another value."""
        return values.number(self.text(key), self.place(key), **limits)

    def whole_number(self, key: str, **limits: int) -> int:
        """Return a whole number; raise ModelError for another value."""
        return values.whole_number(self.text(key), self.place(key), **limits)

    def channels(self, key: str) -> tuple[float, float, float] | None:
        """Return one number for each channel; None for no value. One number stands for all three channels."""
        numbers = [values.number(part, self.place(key)) for part in self.text(key).split()[:8]]
        if not numbers:
            return None
        if len(numbers) not in (1, 3):
            hint = "Export the model again, for images of 3 channels."
            what = "The file does not state one number for each of 3 channels."
            raise ModelError(what, where=self.place(key), found=self.text(key)[:80], hint=hint)
        first, second, third = numbers if len(numbers) == 3 else numbers * 3
        return first, second, third

    def refuse(self, key: str, why: str) -> ModelError:
        """Return the error for a value that segray cannot follow."""
        hint = f"Export the model with another {key}."
        return ModelError(why, where=self.place(key), found=f"{key} {self.text(key)[:80]}", hint=hint)


def read(signature: Signature, metadata: Metadata) -> Description | None:
    """Return the description of a Geti model; None if model_info does not speak of one.

    Raises ModelError for a model of another task, and for values that segray cannot follow.
    """
    entries = metadata.model_info
    model_type = entries.get("model_type", "")
    if model_type not in _FAMILIES:
        _check_task(metadata)
        return None
    defaults = _YOLO_DEFAULTS if model_type == "YOLO-seg" else _DEFAULTS
    info = _ModelInfo(entries, defaults, metadata.where_model_info, str(metadata.path))
    family = _FAMILIES[model_type]
    image = facts.image_port(signature)
    if image is None:
        what = "The model has not one image input."
        hint = "Export the model again."
        found = f"inputs {facts.ports_text(signature.inputs)}"
        raise ModelError(what, where=info.file, found=found, hint=hint)
    image.check_channels(info.file)
    told = Facts()
    told.add(info.where, family=family, what=_what(info, model_type))
    told.add(PORTS, kind="raw" if family == "geti_yolo" else "selected", outputs=_outputs(signature, family, info))
    told.add_image(image)
    if image.size_hw is None:
        told.missing.append("size")
    _add_preparation(told, info)
    _add_intensity(told, info)
    _add_names(told, info, signature, family)
    _add_selection(told, info)
    _add_tiles(told, info)
    told.versions.update({**_versions(info), **metadata.versions})
    return told.description()


def _check_task(metadata: Metadata) -> None:
    """Raise ModelError for a model by Geti that has no masks of instances."""
    entries = metadata.model_info
    if not any(key in entries for key in ("task_type", *_PROGRAMS)):
        return
    model_type, task = entries.get("model_type", "none"), entries.get("task_type", "none")
    raise ModelError(
        "The model is by Intel Geti, but has no instance masks that segray decodes.",
        where=f"{metadata.path}, {metadata.where_model_info}",
        found=f"model_type {model_type[:60]}, task_type {task[:60]}",
        hint=f"Export a model of the task instance_segmentation, of the types {', '.join(_FAMILIES)}.",
    )


def _what(info: _ModelInfo, model_type: str) -> str:
    versions = [f"{name} {version}" for name, version in _versions(info).items()]
    name = info.entries.get("model_name") or model_type
    return f"{name[:80]} by Intel Geti ({', '.join(versions)})" if versions else f"{name[:80]}, described for model_api"


def _versions(info: _ModelInfo) -> dict[str, str]:
    return {key.removesuffix("_version"): info.entries[key][:40] for key in _PROGRAMS if key in info.entries}


# ---- ports ----------------------------------------------------------------------------------------


def _outputs(signature: Signature, family: str, info: _ModelInfo) -> dict[str, int]:
    """Return the positions of the outputs: by name, otherwise by rank, as model_api does."""
    ports = signature.outputs
    used = [i for i, port in enumerate(ports) if not set(_IGNORED_OUTPUTS) & set(port.names)]
    by_rank = {size: [i for i in used if facts.rank(ports[i]) == size] for size in (1, 2, 3, 4)}
    if family == "geti_yolo":
        choices = [{"output0": by_rank[3], "output1": by_rank[4]}]
    else:
        named = {
            "boxes": facts.index_by_name(ports, "boxes", "bboxes"),
            "labels": facts.index_by_name(ports, "labels"),
            "masks": facts.index_by_name(ports, "masks"),
        }
        choices = [{name: [] if index is None else [index] for name, index in named.items()}]
        choices += [{"boxes": by_rank[r + 1], "labels": by_rank[r], "masks": by_rank[r + 2]} for r in (1, 2)]
    for choice in choices:
        if all(len(positions) == 1 for positions in choice.values()):
            return {name: positions[0] for name, positions in choice.items()}
    raise ModelError(
        f"The outputs are not those of a {info.entries['model_type']}.",
        where=info.file,
        found=f"outputs {facts.ports_text(ports)}",
        hint=f"Export the model again. Expected outputs: {', '.join(choices[0])}.",
    )


# ---- preparation ----------------------------------------------------------------------------------


def _add_preparation(told: Facts, info: _ModelInfo) -> None:
    """Add resize, pad level and order of colours."""
    resize = info.text("resize_type")
    if resize == "crop":
        raise info.refuse("resize_type", "The model wants images that are cropped, and what is cropped has no labels.")
    if resize not in _RESIZES:
        raise info.refuse("resize_type", "segray does not know how the model's images are resized.")
    if info.text("interpolation_mode") != "LINEAR":
        raise info.refuse("interpolation_mode", "segray resizes images of Geti models bilinearly only.")
    if info.flag("embedded_processing"):
        raise info.refuse("embedded_processing", "The graph prepares images itself, in model_api's way.")
    told.add(info.source("resize_type"), resize=_RESIZES[resize])
    told.add(info.source("pad_value"), pad_value=info.whole_number("pad_value", high=255))
    told.add(FAMILY, rounding="exact")
    # getitune and OTX 2 give model_api RGB, so that a reversal makes it BGR.
    colour = "BGR" if info.flag("reverse_input_channels") else "RGB"
    told.add(info.source("reverse_input_channels"), colour=colour)
    if info.text("otx_version").startswith("1."):
        told.notes.append(
            "OTX 1 may have trained the model with BGR, of which the file says nothing. Label a few images first, and "
            "compare with `model.preprocessing: {colour: BGR}`."
        )
    if info.flag("intensity_repeat_channels"):
        told.notes.append("The model was made for grey images. segray gives it all three channels of an image.")


def _add_intensity(told: Facts, info: _ModelInfo) -> None:
    """Add mean and scale for levels 0..255; the file's hold after its own scaling of intensities."""
    offset, span = _intensity(told, info)
    mean, scale = info.channels("mean_values"), info.channels("scale_values")
    if scale is not None and 0 in scale:
        raise info.refuse("scale_values", "The model divides levels by 0.")
    is_unit = info.text("intensity_mode") != "none"
    if is_unit:
        mean = None if mean is None and not offset else _levels(mean or (0.0, 0.0, 0.0), span, offset)
        scale = _levels(scale or (1.0, 1.0, 1.0), span, 0.0)
    told.add(info.source("mean_values", "intensity_mode"), mean=mean)
    told.add(info.source("scale_values", "intensity_mode"), scale=scale)
    told.add_extra(info.source("intensity_mode"), intensity_mode=info.text("intensity_mode"), input_is_unit=is_unit)


def _levels(numbers: tuple[float, float, float], span: float, offset: float) -> tuple[float, float, float]:
    first, second, third = (number * span + offset for number in numbers)
    return first, second, third


def _intensity(told: Facts, info: _ModelInfo) -> tuple[float, float]:
    """Return offset and span: the file's mean and scale hold for (level - offset) / span.

    model_api limits some of these values. segray refuses a file in which a level of 0..255 would be limited.
    """
    mode, kind = info.text("intensity_mode"), info.text("input_dtype")
    if kind not in _LARGEST:
        raise info.refuse("input_dtype", "segray does not know this type of samples.")
    if kind != "u8" and mode != "scale_to_unit":
        raise info.refuse("input_dtype", "The model wants other levels than the 0..255 that segray gives.")
    if mode == "none":
        return 0.0, 1.0
    if mode == "scale_to_unit":
        if kind != "u8":
            told.notes.append(f"The model was made for {kind} samples. segray gives levels of 8 bits in their place.")
            return 0.0, 255.0
        return 0.0, _largest_level(info)
    if mode == "window":
        centre, width = info.number("intensity_window_center"), info.number("intensity_window_width")
        low, high, offset, span = centre - width / 2, centre + width / 2, centre - width / 2, width
    elif mode == "range_scale":
        factor, low_value = info.number("intensity_scale_factor"), info.number("intensity_min_value")
        high_value = info.number("intensity_max_value")
        if factor <= 0:
            raise info.refuse("intensity_scale_factor", "segray cannot follow a factor that is not positive.")
        low, high = low_value / factor, high_value / factor
        offset, span = low, high - low
    else:
        raise info.refuse("intensity_mode", "segray cannot scale intensities in this way.")
    if low > 0 or high < 255 or span <= 0:
        raise info.refuse("intensity_mode", f"The model limits levels to {low:g}..{high:g}, which segray does not do.")
    return offset, span


def _largest_level(info: _ModelInfo) -> float:
    if not info.text("intensity_max_value"):
        return _LARGEST["u8"]
    largest = info.number("intensity_max_value", low=0.0)
    if largest == 0:
        raise info.refuse("intensity_max_value", "The model divides levels by 0.")
    return largest


# ---- classes and thresholds -----------------------------------------------------------------------


def _add_names(told: Facts, info: _ModelInfo, signature: Signature, family: str) -> None:
    """Add the names of label_info, as written, without the one of the empty label."""
    names, source = _stated_names(told, info)
    if names and family != "geti_yolo":
        # model_api names the class i of the network by the name i + 1.
        if names[0] not in _EMPTY_NAMES:
            told.notes.append(f"model_api takes the first name, {names[0]!r}, for the background, and so does segray.")
        names, has_empty = names[1:], True
    else:
        has_empty = bool(names) and names[0] in _EMPTY_NAMES
        names = names[1:] if has_empty else names
    if family == "geti_yolo" and names:
        names = _all_names_of_head(told, signature, names, info)
    told.add_extra(source if names else "not stated", empty_label=has_empty)
    told.add_names(names or None, source)


def _stated_names(told: Facts, info: _ModelInfo) -> tuple[tuple[str, ...], str]:
    if info.text("label_info"):
        place = info.place("label_info")
        content = values.json_value(info.text("label_info"), place)
        if not isinstance(content, dict) or not isinstance(content.get("label_names"), list):
            raise info.refuse("label_info", "label_info has no list label_names.")
        return facts.names_of(content["label_names"], place), f"{info.where}, label_info"
    tokens = facts.names_of_tokens(info.text("labels"))
    if any("_" in name and name not in _EMPTY_NAMES for name in tokens):
        told.notes.append("The names come from `labels`, in which _ may stand for a space.")
    return tokens, f"{info.where}, labels"


def _all_names_of_head(told: Facts, signature: Signature, names: tuple[str, ...], info: _ModelInfo) -> tuple[str, ...]:
    """Return a name for each class of a YOLO head; model_api calls classes without a name #3, #4 and so on."""
    outputs = _outputs(signature, "geti_yolo", info)
    rows, prototypes = (signature.outputs[outputs[key]].shape or () for key in ("output0", "output1"))
    if rows[1] is None or prototypes[1] is None:
        return names
    classes = rows[1] - 4 - prototypes[1]
    if classes < len(names):
        raise ModelError(
            "The file names more classes than the network has.",
            where=info.file,
            found=f"{len(names)} names, {classes} classes in outputs {facts.ports_text(signature.outputs)}",
            hint="Export the model again.",
        )
    if classes > len(names):
        told.notes.append(
            f"The network has {classes} classes, of which the file names {len(names)}; the rest have numbers."
        )
    return (*names, *(f"#{index}" for index in range(len(names), classes)))


def _add_selection(told: Facts, info: _ModelInfo) -> None:
    runs_nms, most = info.flag("nms_execute"), info.whole_number("nms_max_predictions")
    told.add_extra(info.source("nms_execute"), nms_execute=runs_nms)
    told.add_extra(info.source("agnostic_nms"), agnostic_nms=info.flag("agnostic_nms"))
    told.add_extra(info.source("nms_max_predictions"), nms_max_predictions=most)
    score, iou = (info.number(key, low=0.0, high=1.0) for key in ("confidence_threshold", "iou_threshold"))
    told.add_thresholds(info.source("confidence_threshold"), score_threshold=score)
    told.add_thresholds(info.source("iou_threshold"), nms_iou=iou)
    if runs_nms:
        told.add_thresholds(info.source("nms_max_predictions"), max_detections=most)


def _add_tiles(told: Facts, info: _ModelInfo) -> None:
    """Add the tiles that the model was trained with, if the file states them."""
    tiles: dict[str, Any] = {}
    if info.text("tile_size"):
        tiles["tile_size"] = info.whole_number("tile_size", low=1)
    if info.text("tiles_overlap"):
        tiles["tiles_overlap"] = info.number("tiles_overlap", low=0.0, high=1.0)
    if info.text("max_pred_number"):
        tiles["max_pred_number"] = info.whole_number("max_pred_number", low=1)
    if info.text("tile_with_full_img"):
        tiles["tile_with_full_img"] = info.flag("tile_with_full_img")
    told.add_extra(info.where, **tiles)
