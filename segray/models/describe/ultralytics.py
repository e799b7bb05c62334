"""Reader of Ultralytics' exports: metadata.yaml, the properties of an ONNX file, rt_info, and the ports.

Knows what `yolo export` of the versions 8.0 to 8.4 writes. The class names of rt_info have _ for a space, so they
count only where nothing else names the classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from segray.errors import ModelError
from segray.models import metadata as values
from segray.models.checkpoints import EXPORT_COMMAND
from segray.models.describe import facts, yolov5
from segray.models.describe.facts import FAMILY, PORTS, Facts
from segray.models.description import Description
from segray.models.metadata import METADATA_YAML, Metadata

if TYPE_CHECKING:
    from segray.models.engine import Signature

_MODEL_TYPES = ("YOLO", "YOLOv8")
_LITERALS = ("names", "imgsz", "stride", "batch", "channels", "args", "end2end")
PREPARATION: Mapping[str, Any] = {
    "resize": "letterbox", "rounding": "opencv", "pad_value": 114, "colour": "RGB",
    "mean": None, "scale": (255.0, 255.0, 255.0),
}  # fmt: skip
_STRIDE = 32
# Ultralytics' own limit, which is not read from a file.
_IOU = 0.7
_SEGMENT = "yolo export model=yolo11n-seg.pt format=openvino"
# Arguments of an export with NMS inside -> name of the option.
_IN_GRAPH = {"conf": "score_threshold", "iou": "nms_iou", "max_det": "max_detections"}


@dataclass(frozen=True)
class _Entries:
    """The entries of an Ultralytics export. where: their place. entries: empty if rt_info alone names Ultralytics."""

    where: str
    entries: Mapping[str, Any] = field(default_factory=dict)

    def get(self, name: str, file: str) -> Any:
        """Return an entry as a value; None if absent. file: the model's file, for errors."""
        value = self.entries.get(name)
        if isinstance(value, str) and name in _LITERALS:
            return values.literal(value, f"{file}, {self.where}, {name}")
        return value


@dataclass(frozen=True)
class _Heads:
    """The two outputs of a segmentation head.

    rows, prototypes: positions of the outputs. kind: raw, or selected for rows that the graph has selected.
    classes: number of classes; None if the shapes do not tell. max_rows: number of selected rows; None if raw.
    """

    rows: int
    prototypes: int
    kind: str
    classes: int | None
    max_rows: int | None


def read(signature: Signature, metadata: Metadata) -> Description | None:
    """Return the description of a YOLO segmentation model; None if nothing says that it is Ultralytics'.

    Raises ModelError for an Ultralytics model without masks, or with metadata of another network.
    """
    entries = _entries(metadata)
    file = str(metadata.path)
    if entries is None:
        return _by_ports(signature, file)
    if metadata.path.is_dir():
        raise ModelError(
            "segray cannot decode a SavedModel by Ultralytics: its boxes and prototypes differ from those of an IR.",
            where=f"{file}, {entries.where}",
            found=f"outputs {facts.ports_text(signature.outputs)}",
            hint=f"Export the model as an IR: {EXPORT_COMMAND}",
        )
    _check_task(entries, signature, file)
    image = facts.image_port(signature)
    if image is None:
        raise _other_network(entries, file, f"inputs {facts.ports_text(signature.inputs)}", "one image input")
    channels = entries.get("channels", file)
    where = f"{file}, {entries.where}"
    image.check_channels(file, None if channels is None else values.whole_number(channels, f"{where}, channels"))
    window_hw = _window_hw(entries, file)
    if window_hw is not None and image.size_hw not in (None, window_hw):
        raise _other_network(entries, file, f"imgsz {list(window_hw)}", f"an image of {_text(image.size_hw)}")
    names, source = _names(entries, metadata, file)
    heads = _heads(signature, entries, file, None if names is None else len(names))
    if names is not None and heads.classes not in (None, len(names)):
        raise _other_network(entries, file, f"{len(names)} names", f"{heads.classes} classes", source)
    told = Facts()
    _add_family(told, heads)
    told.add_image(image)
    told.add_names(names, source)
    told.add(entries.where, family="yolo_seg", what=_what(entries))
    _add_sizes(told, image, window_hw, entries, file)
    _add_selection(told, heads, entries, metadata, file)
    told.versions.update(_versions(entries, metadata))
    return told.description()


def _entries(metadata: Metadata) -> _Entries | None:
    """Return the entries of an Ultralytics export; None if there are none."""
    for where, content in ((METADATA_YAML, metadata.folder or {}), (metadata.where_props, metadata.props)):
        if content.get("author") == "Ultralytics" or {"task", "names", "stride"} <= content.keys():
            return _Entries(where, content)
    return _Entries("rt_info") if metadata.model_info.get("model_type") in _MODEL_TYPES else None


def _check_task(entries: _Entries, signature: Signature, file: str) -> None:
    """Raise ModelError for a model of another task than segmentation."""
    task = entries.entries.get("task")
    has_masks = sorted(facts.rank(port) or 0 for port in signature.outputs)[-2:] == [3, 4]
    if task == "segment" or (task is None and has_masks):
        return
    if has_masks:
        raise _other_network(entries, file, f"the task {task}", "the outputs of a segmentation")
    kind = f"of the task {task}" if task is not None else "with boxes only"
    raise ModelError(
        f"The model is a YOLO {kind}: it has no masks.",
        where=f"{file}, {entries.where}",
        found=f"task {task}, outputs {facts.ports_text(signature.outputs)}",
        hint=f"Export a -seg model: {_SEGMENT}",
    )


def _other_network(entries: _Entries, file: str, stated: str, actual: str, source: str = "") -> ModelError:
    source = source or entries.where
    return ModelError(
        f"{source} belongs to another network: it does not agree with the file's inputs and outputs.",
        where=file,
        found=f"{source} states {stated}, the file has {actual}",
        hint=f"Copy the {METADATA_YAML} of this export beside the model, or export the model again.",
    )


def _text(size_hw: Sequence[int] | None) -> str:
    return "any size" if size_hw is None else f"{size_hw[0]}x{size_hw[1]}"


def _window_hw(entries: _Entries, file: str) -> tuple[int, int] | None:
    """Return height and width of the exported input, from imgsz: a number or [h, w]."""
    sizes = entries.get("imgsz", file)
    if sizes is None:
        return None
    sides = list(sizes) if isinstance(sizes, list | tuple) else [sizes]
    where = f"{file}, {entries.where}, imgsz"
    if len(sides) not in (1, 2):
        hint = "Write `imgsz` as [height, width] in pixels."
        raise ModelError("The size of the input is no pair of numbers.", where=where, found=repr(sizes)[:80], hint=hint)
    height, *width = (values.whole_number(side, where, low=1, high=2**16) for side in sides)
    return height, (width or [height])[0]


def _names(entries: _Entries, metadata: Metadata, file: str) -> tuple[tuple[str, ...] | None, str]:
    names = entries.get("names", file)
    if names is not None:
        return facts.names_of(names, f"{file}, {entries.where}, names"), entries.where
    tokens = facts.names_of_tokens(metadata.model_info.get("labels", ""))
    return (tokens, "rt_info") if tokens else (None, "")


# ---- outputs --------------------------------------------------------------------------------------


def _heads(signature: Signature, entries: _Entries, file: str, names: int | None) -> _Heads:
    """Return the outputs of the head, told by rank and shape."""
    heads = _find_heads(signature, names)
    if heads is None:
        expected = "rows [1, 4 + classes + 32, anchors] or [1, 300, 38], and prototypes [1, 32, height/4, width/4]"
        found = f"outputs {facts.ports_text(signature.outputs)}"
        hint = f"Export the model again: {_SEGMENT}. Expected: {expected}."
        raise ModelError("The outputs are not those of a YOLO segmentation model.", where=file, found=found, hint=hint)
    return heads


def _find_heads(signature: Signature, names: int | None = None) -> _Heads | None:
    by_rank = {size: [i for i, port in enumerate(signature.outputs) if facts.rank(port) == size] for size in (3, 4)}
    if any(len(positions) != 1 for positions in by_rank.values()):
        return None
    (rows,), (prototypes,) = by_rank[3], by_rank[4]
    channels, anchors = (signature.outputs[rows].shape or ())[1:]
    coefficients = (signature.outputs[prototypes].shape or ())[1]
    if coefficients is None:
        return None
    classes = None if channels is None else channels - 4 - coefficients
    # Exactly 6 + coefficients anchors are possible for tiny inputs only; then the number of names decides.
    is_selected = anchors == 6 + coefficients and (names is None or classes != names)
    if is_selected:
        return _Heads(rows, prototypes, "selected", None, channels)
    return None if classes is None or classes < 1 else _Heads(rows, prototypes, "raw", classes, None)


def _by_ports(signature: Signature, file: str) -> Description | None:
    """Return the description of a model without metadata, if its ports can be those of YOLO-seg alone."""
    image, heads = facts.image_port(signature), _find_heads(signature)
    if image is None or image.size_hw is None or image.channels != 3 or heads is None:
        return None
    height, width = image.size_hw
    rows, prototypes = signature.outputs[heads.rows].shape, signature.outputs[heads.prototypes].shape
    anchors = sum((height // stride) * (width // stride) for stride in (8, 16, 32))
    if rows is None or prototypes is None or prototypes[2:] != (height // 4, width // 4):
        return None
    if heads.kind == "raw" and rows[2] != anchors:
        return None
    if heads.kind == "selected" and yolov5.are_anchors_of(image, rows):
        return None  # YOLOv5-seg with one class has as many columns as selected rows.
    told = Facts()
    _add_family(told, heads)
    told.sources["family"] = PORTS
    told.add_image(image)
    told.add_names(None, "")
    told.add(PORTS, what="YOLO-seg without metadata")
    told.add(FAMILY, stride=_STRIDE)
    told.add_extra(PORTS, window_hw=list(image.size_hw), end2end=False, **_classes(heads))
    told.notes.append(
        "Nothing in the file says that Ultralytics made it. Its inputs and outputs are those of YOLO-seg."
    )
    return told.description()


# ---- facts ----------------------------------------------------------------------------------------


def _add_family(told: Facts, heads: _Heads) -> None:
    """Add what holds for the whole family."""
    told.add(PORTS, kind=heads.kind, outputs={"output0": heads.rows, "output1": heads.prototypes})
    told.add(FAMILY, family="yolo_seg", **PREPARATION)


def _classes(heads: _Heads) -> dict[str, Any]:
    return {} if heads.classes is None else {"classes": heads.classes}


def _what(entries: _Entries) -> str:
    """Return the model in words, such as "YOLO11n-seg by Ultralytics 8.4.190"."""
    text = re.match(r"Ultralytics (\S.{0,80}?) model\b", str(entries.entries.get("description", "")))
    version = str(entries.entries.get("version", ""))[:40]
    return f"{text[1] if text else 'YOLO-seg'} by Ultralytics {version}".strip()


def _add_sizes(
    told: Facts, image: facts.ImagePort, window_hw: tuple[int, int] | None, entries: _Entries, file: str
) -> None:
    stride = entries.get("stride", file)
    if stride is None:
        told.add(FAMILY, stride=_STRIDE)
    else:
        where = f"{file}, {entries.where}, stride"
        told.add(entries.where, stride=values.whole_number(stride, where, low=1, high=4096))
    if image.is_partly_fixed and window_hw is not None:
        told.add(entries.where, size_hw=window_hw)
    elif image.is_partly_fixed:
        told.missing.append("size")
    if window_hw is not None:
        told.add_extra(entries.where, window_hw=list(window_hw))
    elif image.size_hw is not None:
        told.add_extra(PORTS, window_hw=list(image.size_hw))
    if image.size_hw is None and not image.is_partly_fixed:
        told.notes.append(f"The network takes any size of {told.fields['stride']} pixels times a whole number.")


def _add_selection(told: Facts, heads: _Heads, entries: _Entries, metadata: Metadata, file: str) -> None:
    """Add thresholds, and what the graph has selected already."""
    arguments = entries.get("args", file)
    arguments = arguments if isinstance(arguments, Mapping) else {}
    stated_end2end = entries.get("end2end", file)
    has_nms = arguments.get("nms") is True
    is_end2end = heads.kind == "selected" and (stated_end2end is True or not has_nms)
    told.add_extra(PORTS if stated_end2end is None else entries.where, end2end=is_end2end)
    told.add_extra(PORTS, **_classes(heads))
    if heads.kind == "raw":
        iou = metadata.model_info.get("iou_threshold")
        if iou is not None:
            stated = values.number(iou, f"{file}, rt_info, iou_threshold", low=0, high=1)
            told.add_thresholds("rt_info", nms_iou=stated)
            if stated != _IOU:
                told.notes.append(
                    f"The file states an IoU of {stated:g} for suppression, and segray takes it. `yolo predict` takes "
                    f"{_IOU} unless told otherwise: for its rows set `model.nms_iou: {_IOU}`."
                )
        return
    limits: dict[str, Any] = {} if heads.max_rows is None else {"max_detections": heads.max_rows}
    if has_nms:
        for name, option in _IN_GRAPH.items():
            if arguments.get(name) is not None:
                limits[option] = values.number(arguments[name], f"{file}, {entries.where}, args, {name}", low=0)
        told.notes.append(
            "The graph suppresses duplicates itself, with the thresholds of its export: by default a score of 0.25 and "
            "an IoU of 0.7. Lower thresholds in the configuration bring no further instances."
        )
    told.add_extra(f"{PORTS}, {entries.where}" if has_nms else PORTS, in_graph=limits)


def _versions(entries: _Entries, metadata: Metadata) -> dict[str, str]:
    version = entries.entries.get("version")
    return {**({} if version is None else {"ultralytics": str(version)[:40]}), **metadata.versions}
