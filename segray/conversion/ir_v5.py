"""Conversion of an OpenVINO IR v5 (2019 R1: an .xml and a .bin) into a model of the current opset.

Knows the v5 files and the edges between layers. The meaning of a layer is in ir_v5_layers.py. Knows nothing of images,
devices or the meaning of outputs.

A v5 file declares every shape. Each layer's inferred shape is compared with the declared one. A misread attribute
that changes a shape is therefore an error; one that changes only values would not be noticed.

No published v5 file was at hand. The tests use files written by hand from the documentation and the engine's sources,
and no real network. Not supported, and refused by name: IR v2-4, v6 and v7, recurrent layers, SSD and YOLO heads,
quantised networks, a <pre-process> section and padding in Interp.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

import numpy as np
from numpy.typing import NDArray

from segray.conversion.ir_v5_layers import DTYPES, KINDS, IrLayer, IrPort, Output, comma_separated, dims_of, model_error
from segray.models.openvino import OVError, ov
from segray.models.openvino import opset14 as op

ADAPTER_NAME = "instance-segmentation-security-0033"
ADAPTER_INPUTS = frozenset({"im_data", "im_info"})
ADAPTER_OUTPUTS = frozenset({"classes", "scores", "boxes", "raw_masks"})
MAX_XML_BYTES = 16 << 20


def load(xml: Path) -> ov.Model:
    """Return the v5 network at `xml`, its .bin beside it, as a model that today's OpenVINO compiles and saves.

    Input and output tensors have the v5 names. Outputs are all ports that no layer consumes, as in v5. Floating point
    inputs and outputs are float32, as in the 2019 engine. Shapes are those of the file. Raises ModelError for a file
    that is no v5 network, for an inconsistent network, and for an unknown layer.
    """
    root = _read_root(xml)
    layers = _read_layers(root, xml)
    sources = _source_ports(root, layers, xml)
    built: dict[tuple[int, int], Output] = {}
    for layer in _sort_layers(layers, sources, xml):
        arguments = [built[sources[layer.id, port.id]] for port in layer.inputs]
        for index, (port, output) in enumerate(zip(layer.outputs, _build_layer(layer, arguments), strict=True)):
            output.get_tensor().add_names({layer.output_name(index)})
            built[layer.id, port.id] = output
    return _build_model(root.get("name", xml.stem), layers, built, set(sources.values()))


def convert(xml: Path, out_xml: Path) -> None:
    """Rewrite the v5 network at `xml` as IR v11 at `out_xml`, its .bin beside it; blobs keep their precision.

    A network with the ports of instance-segmentation-security-0033 gets a segray.json beside it. The card holds the
    SHA-256 of the v5 files. Raises ModelError as `load` does, or if `out_xml` would overwrite the source.
    """
    if out_xml.suffix != ".xml" or out_xml.resolve() == xml.resolve():
        hint = "Choose another path, ending in .xml."
        raise model_error(str(out_xml), "segray cannot write the converted network here.", f"source {xml}", hint)
    model = load(xml)
    out_xml.parent.mkdir(parents=True, exist_ok=True)
    ov.save_model(model, out_xml, compress_to_fp16=False)
    if _names(model.inputs) == ADAPTER_INPUTS and _names(model.outputs) >= ADAPTER_OUTPUTS:
        sha256 = {file.name: _sha256(file) for file in (xml, xml.with_suffix(".bin"))}
        card = {"contract": ADAPTER_NAME, "form": "converted", "converted_from": {"ir_version": 5, "sha256": sha256}}
        out_xml.with_name("segray.json").write_text(json.dumps(card, indent=2) + "\n", "utf-8")


def _names(ports: Iterable[Any]) -> set[str]:
    return {name for port in ports for name in port.get_names()}


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ---- the file ----------------------------------------------------------------------------------------


def _read_root(xml: Path) -> Element:
    """Return the root element of a v5 network; refuse a document type, and with it every entity."""
    if not xml.is_file() or not xml.with_suffix(".bin").is_file():
        raise model_error(str(xml), "An IR is two files, .xml and .bin, and one is missing.", hint="Copy both files.")
    if xml.stat().st_size > MAX_XML_BYTES:
        raise model_error(str(xml), "The .xml is too large for a network.", f"{xml.stat().st_size} bytes")
    builder, parser = TreeBuilder(), expat.ParserCreate()

    def refuse(name: str, *_: object) -> None:
        raise model_error(str(xml), "The .xml has a document type, which no IR has.", f"<!DOCTYPE {name}>")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler, parser.CharacterDataHandler = builder.start, builder.data
    parser.EndElementHandler = builder.end
    try:
        parser.Parse(xml.read_bytes(), True)
    except expat.ExpatError as error:
        raise model_error(str(xml), "The .xml cannot be parsed.", str(error), "Copy the file again.") from error
    root: Element = builder.close()
    if root.tag != "net" or root.get("version") != "5":
        found = f"<{root.tag}> version {root.get('version')!r}"
        raise model_error(str(xml), "This is not an IR v5.", found, "Versions 10 and newer need no conversion.")
    if root.find("pre-process") is not None:
        raise model_error(str(xml), "The network has a <pre-process> section, which is not converted.")
    return root


def _read_layers(root: Element, xml: Path) -> dict[int, IrLayer]:
    """Return all layers by id, in the order of the file."""
    file = xml.with_suffix(".bin")
    weights = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.empty(0, np.uint8)
    layers: dict[int, IrLayer] = {}
    names: set[str] = set()
    for element in root.iterfind("layers/layer"):
        layer = _read_layer(element, weights, str(xml))
        if layer.id in layers or layer.name in names:
            raise model_error(layer.where, "Another layer has the same id or name.")
        layers[layer.id] = layer
        names.add(layer.name)
    return layers


def _read_layer(element: Element, weights: NDArray[np.uint8], file: str) -> IrLayer:
    name, kind = element.get("name", ""), element.get("type", "")
    where = f"{file}: {kind} layer {name!r}"
    data, precision = element.find("data"), element.get("precision", "FP32")
    if kind not in KINDS:
        raise model_error(
            where, "This kind of layer is not known.", repr(kind), f"Known kinds: {comma_separated(KINDS)}."
        )
    if precision not in DTYPES:
        raise model_error(
            where, "This precision is not known.", repr(precision), f"Known precisions: {comma_separated(DTYPES)}."
        )
    return IrLayer(
        where=where,
        id=_parse_integer(element.get("id"), where),
        name=name,
        kind=kind,
        precision=precision,
        attributes={} if data is None else data.attrib,
        inputs=_read_ports(element, "input", where),
        outputs=_read_ports(element, "output", where),
        blobs={blob.tag: _read_blob(blob, weights, where) for blob in _blob_elements(element)},
    )


def _read_ports(element: Element, side: str, where: str) -> tuple[IrPort, ...]:
    ports = [
        IrPort(
            _parse_integer(port.get("id"), where),
            tuple(_parse_integer(dim.text, where) for dim in port.iterfind("dim")),
        )
        for port in element.iterfind(f"{side}/port")
    ]
    if len({port.id for port in ports}) < len(ports):
        raise model_error(where, "Two ports have the same id.", str([port.id for port in ports]))
    return tuple(sorted(ports, key=lambda port: port.id))


def _blob_elements(element: Element) -> list[Element]:
    """Return the blob elements: in <blobs>, or in the layer itself as older writers have it."""
    return [*element.iterfind("blobs/*"), *element.iterfind("weights"), *element.iterfind("biases")]


def _read_blob(element: Element, weights: NDArray[np.uint8], where: str) -> NDArray[np.uint8]:
    offset, size = _parse_integer(element.get("offset"), where), _parse_integer(element.get("size"), where)
    if offset + size > weights.size:
        found = f"{size} bytes from {offset}, in a .bin of {weights.size} bytes"
        raise model_error(where, f"{element.tag!r} lies beyond the end of the .bin.", found, "Copy both files again.")
    return weights[offset : offset + size]


def _parse_integer(text: str | None, where: str) -> int:
    if text is None or len(text) > 18 or not (text.isascii() and text.strip().isdigit()):
        raise model_error(where, "A number in the .xml is not a whole number from 0.", repr(text))
    return int(text)


def _source_ports(root: Element, layers: Mapping[int, IrLayer], xml: Path) -> dict[tuple[int, int], tuple[int, int]]:
    """Return the output port (layer, port) that feeds each input port (layer, port)."""
    inputs = {(layer.id, port.id) for layer in layers.values() for port in layer.inputs}
    outputs = {(layer.id, port.id) for layer in layers.values() for port in layer.outputs}
    sources: dict[tuple[int, int], tuple[int, int]] = {}
    for edge in root.iterfind("edges/edge"):
        ends = ("from-layer", "from-port", "to-layer", "to-port")
        from_layer, from_port, to_layer, to_port = (_parse_integer(edge.get(key), str(xml)) for key in ends)
        start, end = (from_layer, from_port), (to_layer, to_port)
        if start not in outputs or end not in inputs or end in sources:
            what = "An edge joins ports that do not exist, or ends at a port that is already fed."
            raise model_error(str(xml), what, f"layer {from_layer} port {from_port} -> layer {to_layer} port {to_port}")
        sources[end] = start
    if unfed := sorted(inputs - set(sources)):
        raise model_error(layers[unfed[0][0]].where, "An input has no edge.", f"port {unfed[0][1]}")
    return sources


def _sort_layers(
    layers: Mapping[int, IrLayer], sources: Mapping[tuple[int, int], tuple[int, int]], xml: Path
) -> list[IrLayer]:
    """Return the layers in the order of the computation; raise ModelError if the edges form a circle."""
    feeders = {layer.id: [sources[layer.id, port.id][0] for port in layer.inputs] for layer in layers.values()}
    try:
        return [layers[key] for key in TopologicalSorter(feeders).static_order()]
    except CycleError as error:
        found = " <- ".join(layers[key].name for key in error.args[1])
        raise model_error(str(xml), "The edges run in a circle.", found) from error


# ---- the graph ----------------------------------------------------------------------------------------


def _build_layer(layer: IrLayer, arguments: list[Output]) -> list[Output]:
    """Return the layer's outputs, as many as declared and of the declared shapes."""
    try:
        built = KINDS[layer.kind](layer, *arguments)
    except (RuntimeError, OVError, TypeError, ValueError, LookupError, ArithmeticError, MemoryError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        found = f"inputs {[list(port.dims) for port in layer.inputs]}: {lines[-1] if lines else error!r}"
        raise model_error(layer.where, "OpenVINO cannot build this layer.", found) from error
    outputs: list[Output] = [built]
    if isinstance(built, ov.Node):
        outputs = built.outputs()
    elif isinstance(built, list):
        outputs = built
    declared = [list(port.dims) for port in layer.outputs]
    shapes = [dims_of(output) for output in outputs[: len(declared)]]
    if shapes != declared:
        found = f"declared {declared}, inferred {shapes}"
        raise model_error(layer.where, "The layer's output shape is not the one that the file declares.", found)
    return outputs[: len(declared)]


def _build_model(
    name: str, layers: Mapping[int, IrLayer], built: Mapping[tuple[int, int], Output], consumed: set[tuple[int, int]]
) -> ov.Model:
    """Return the network. built, consumed: outputs and fed outputs, by layer id and port id."""
    parameters = [built[layer.id, layer.outputs[0].id].get_node() for layer in layers.values() if layer.kind == "Input"]
    results = [
        op.result(built[layer.id, port.id])
        for layer in layers.values()
        for port in layer.outputs
        if layer.kind not in ("Input", "Const") and (layer.id, port.id) not in consumed
    ]
    try:
        return ov.Model(results, parameters, name)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise model_error(name, "OpenVINO refuses the network.", reason) from error
