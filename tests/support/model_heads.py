"""Model files without a network: the metadata of exports, and ports as OpenVINO reports them.

`ir` and `onnx` write files from which metadata can be read and that no engine can load. `ports` makes a signature, and
`loadable_ir` a file with that signature.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
import openvino as ov
import yaml
from openvino import opset13 as op
from test_engine import _field

from segray.models.coco_labels import COCO_NAMES
from segray.models.engine import ModelPort, Signature

# Faster where PyYAML has libyaml.
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

COCO = tuple(COCO_NAMES.values())
Port = tuple[str, Sequence[int | None]]

YOLO_INFO: Mapping[str, str] = {"model_type": "YOLO", "iou_threshold": "0.7", "labels": "cat big_dog bird"}
GETI_INFO: Mapping[str, str] = {
    "confidence_threshold": "0.05",
    "getitune_version": "0.4.0",
    "input_dtype": "u8",
    "intensity_mode": "scale_to_unit",
    "iou_threshold": "0.5",
    "label_info": json.dumps({"label_names": ["getitune_empty_lbl", "box", "disc of tin", "rod"]}),
    "labels": "getitune_empty_lbl box disc_of_tin rod",
    "mean_values": "0.485 0.456 0.406",
    "model_name": "rtmdet_inst_tiny",
    "model_type": "MaskRCNN",
    "nms_execute": "False",
    "pad_value": "114",
    "resize_type": "fit_to_window_letterbox",
    "reverse_input_channels": "False",
    "scale_values": "0.229 0.224 0.225",
    "task_type": "instance_segmentation",
}


def ports(inputs: Iterable[Port], outputs: Iterable[Port], types: Mapping[str, str] | None = None) -> Signature:
    """A signature of ports (name, shape); "" for no name. types: name -> element type other than f32."""

    def port(name: str, shape: Sequence[int | None]) -> ModelPort:
        return ModelPort((name,) if name else (), (types or {}).get(name, "f32"), tuple(shape))

    return Signature(tuple(port(*given) for given in inputs), tuple(port(*given) for given in outputs))


def yolo(
    size_hw: tuple[int | None, int | None] = (320, 320), classes: int = 3, batch: int | None = 1, channels: int = 3
) -> Signature:
    """The ports of a raw YOLO-seg export, as an IR has them."""
    height, width = size_hw
    is_fixed = height is not None and width is not None
    anchors = sum((height // s) * (width // s) for s in (8, 16, 32)) if is_fixed else None  # type: ignore[operator]
    sides = [None if side is None else side // 4 for side in size_hw]
    rows, masks = (batch, 36 + classes, anchors), (batch, 32, *sides)
    return ports([("x.1", (batch, channels, height, width))], [("", rows), ("input", masks)])


def yolo_selected(size_hw: tuple[int, int] = (320, 320), rows: int = 300) -> Signature:
    """The ports of a YOLO-seg export that selects rows inside."""
    masks = (1, 32, size_hw[0] // 4, size_hw[1] // 4)
    return ports([("x", (1, 3, *size_hw))], [("", (1, rows, 38)), ("input", masks)])


def geti(size_hw: tuple[int | None, int | None] = (320, 320)) -> Signature:
    """The ports of a Mask R-CNN by Geti."""
    outputs: list[Port] = [("boxes", (None, None, 5)), ("labels", (None, None)), ("masks", (1, None, 28, 28))]
    return ports([("image", (None, 3, *size_hw))], outputs, {"labels": "i64"})


def yolo_metadata(**changes: Any) -> dict[str, Any]:
    """What `yolo export` writes to metadata.yaml, for `yolo()`; None removes a key."""
    entries: dict[str, Any] = {
        "description": "Ultralytics YOLO11n-seg model trained on own.yaml",
        "author": "Ultralytics",
        "version": "8.4.190",
        "stride": 32,
        "task": "segment",
        "batch": 1,
        "imgsz": [320, 320],
        "names": {0: "cat", 1: "big dog", 2: "bird"},
        "args": {"batch": 1, "nms": False, "dynamic": False},
        "channels": 3,
        "end2end": False,
    }
    return {key: value for key, value in (entries | changes).items() if value is not None}


def rt_info(sections: Mapping[str, Mapping[str, str]]) -> str:
    """The text of an IR's rt_info."""
    lines = ['<Runtime_version value="2026.4.1-1"/>']
    for section, entries in sections.items():
        values = [
            f"<{key} value={quoteattr(value)}/>"
            if key.isidentifier()
            else f'<info name="{key}" value={quoteattr(value)}/>'
            for key, value in entries.items()
        ]
        lines.append(f"<{section}>{''.join(values)}</{section}>")
    return f"<rt_info>{''.join(lines)}</rt_info>"


def ir(
    folder: Path, model_info: Mapping[str, str] | None = None, *, metadata: object = None, tail: str | None = None
) -> Path:
    """An IR without layers. metadata: content of metadata.yaml. tail: text after the edges, for broken files."""
    xml = folder / "model.xml"
    if tail is None:
        tail = rt_info({"model_info": model_info} if model_info else {}) + "\n</net>\n"
    layer = '<layer id="0"><rt_info><model_info><model_type value="of a layer"/></model_info></rt_info></layer>'
    head = f'<?xml version="1.0"?>\n<net name="m" version="11"><layers>{layer}</layers><edges></edges>'
    xml.write_text(head + tail, encoding="utf-8", errors="surrogateescape")
    xml.with_suffix(".bin").write_bytes(b"")
    if metadata is not None:
        text = metadata if isinstance(metadata, str) else yaml.dump(metadata, Dumper=_DUMPER, sort_keys=False)
        (folder / "metadata.yaml").write_text(text, encoding="utf-8")
    return xml


def onnx(folder: Path, props: Mapping[str, str], graph: bytes = b"graph") -> Path:
    """An ONNX file with properties and no graph that could be read."""
    path = folder / "model.onnx"
    path.write_bytes(onnx_bytes(props, graph))
    return path


def onnx_bytes(props: Mapping[str, str], graph: bytes = b"graph") -> bytes:
    entries = b"".join(_field(14, _field(1, key) + _field(2, value)) for key, value in props.items())
    return _field(1, 8) + _field(2, "pytorch") + _field(3, "2.14.1") + _field(7, graph) + entries


def as_properties(entries: Mapping[str, Any]) -> dict[str, str]:
    """What `yolo export` writes into an ONNX file: each value as Python writes it."""
    return {key: str(value) for key, value in entries.items()}


def loadable_ir(folder: Path, signature: Signature, info: Mapping[str, str], *, name: str = "model.xml") -> Path:
    """An IR that OpenVINO reads, with these ports, whose outputs are zeros of the sizes that are known."""
    inputs = []
    for port in signature.inputs:
        shape = ov.PartialShape([-1 if side is None else side for side in port.shape or ()])
        inputs.append(op.parameter(shape, np.float32, name="x"))
        inputs[-1].output(0).tensor.set_names(set(port.names))
    results = []
    for port in signature.outputs:
        dtype = np.int64 if port.element_type == "i64" else np.float32
        sizes = op.concat([_side(side, inputs[0]) for side in port.shape or ()], 0)
        node = op.broadcast(op.constant(np.zeros((), dtype)), sizes)
        node.output(0).tensor.set_names(set(port.names))
        results.append(op.result(node))
    model = ov.Model(results, inputs, "m")
    for key, value in info.items():
        model.set_rt_info(value, ["model_info", key])
    ov.save_model(model, folder / name, compress_to_fp16=False)
    return folder / name


def _side(side: int | None, image: Any) -> Any:
    """A size of an axis: a constant, or one that only inference tells."""
    if side is not None:
        return op.constant(np.array([side], np.int64))
    return op.shape_of(op.reshape(op.non_zero(image), np.array([-1], np.int64), special_zero=False))
