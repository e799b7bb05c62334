"""Quantisation to int8: calibrated with the user's images, compared with the source model.

Knows the layers that stay in float, and the card's content. Knows nothing of arguments or label sets. This module alone
imports nncf, an extra, and only when it quantises.

For each output that decode reads, the last layer with weights and all nodes after it stay in float. These nodes compute
large coordinates from small offsets, for which 256 steps over an image are too coarse. The stickers' box AP falls by
0.027 without this rule, and by 0.002 with it. The nodes are found in the graph, so the rule holds for every model.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

import segray
from segray._system import host_process
from segray.conversion import compare, pull
from segray.conversion.compare import EngineAccuracy, Reader, Speed, Truth
from segray.errors import ConfigError, ImageError, ModelError, SegrayError, SourceError, UserError
from segray.instances import ImageRef
from segray.models import engine, metadata, resolve
from segray.models.engine import Arrays, DeviceSettings, Engine
from segray.storage.store import Store
from segray.storage.uris import redact

_TIMED_IMAGES = 8
_LAYERS_WITH_WEIGHTS = frozenset(
    ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul")
)
# Kinds of nodes between stored weights and their layer.
_BETWEEN_WEIGHTS_AND_LAYER = frozenset(("Convert", "FakeQuantize", "Multiply", "Subtract", "Reshape", "Transpose"))
_INT8_KINDS = frozenset(("i8", "u8", "FakeQuantize"))
# Kinds of nodes at which the search ends. ShapeOf is one, because shapes are not quantised.
_SEARCH_ENDS = frozenset(("Constant", "Parameter", "ShapeOf"))


@dataclass(frozen=True)
class Quantised:
    """A quantised model that `segray label` can use, with its comparison to the source.

    Engines are named "f32" and so on, and "int8". samples: number of calibration images. layers: number of layers with
    weights that compute in "int8" and in "float". size_bytes: size of all files, of "source" and "int8".
    calibrated: number of images that both calibrated the model and measured its accuracy.
    """

    name: str
    form: str
    xml: Path
    samples: int
    layers: Mapping[str, int]
    size_bytes: Mapping[str, int]
    speed: Speed
    accuracy: EngineAccuracy | None
    calibrated: int

    @property
    def loss(self) -> float:
        """Return the larger fall of mask AP and box AP, 0..1; 0 without a truth."""
        measured = (self.accuracy.mask_ap, self.accuracy.box_ap) if self.accuracy else ()
        return max((ap["f32"] - ap["int8"] for ap in measured), default=0.0)


def quantize(
    model: resolve.ResolvedModel,
    images: str,
    out: Path,
    store: Store,
    *,
    samples: int = 300,
    truth: Truth | None = None,
    keep_float: Sequence[str] = (),
    note: pull.Note = lambda text: None,
) -> Quantised:
    """Write an int8 copy of the model, with a card, into the folder `out`, which holds no other model.

    Args:
        model: The float model.
        images: A dataset, as for source.uri; `samples` of its images, at even distances, calibrate.
        out: The folder of the copy.
        store: Access to the images.
        samples: Number of calibration images.
        truth: Ground truth to measure accuracy; None to skip that.
        keep_float: Regular expressions; layers whose names match stay in float too.
        note: Called with a text at each step.

    Raises:
        UserError: NNCF is not installed.
        ConfigError: The model is already quantised.
        ModelError: The model cannot be quantised.
        SourceError: No image can be read.
    """
    nncf = _import_nncf()
    graph = engine.read(model.path)
    if engine.signature_of(graph).quantised:
        hint = "Give the float model from which this model was made."
        raise ConfigError("The model is already quantised.", where=str(model.path), found="int8 layers", hint=hint)
    engine.adjust(graph, model.form, model.path)
    _check_free(model, out)
    truth_of_images = None if truth is None else compare.truth_of_dataset(truth, store, model.adapter.labels)
    for text in truth_of_images.notes if truth_of_images else ():
        note(text)
    source = engine.compile(model.path, model.form, DeviceSettings(precision="f32"))
    adapter = model.adapter.with_size(model.form.name, source.size_hw)
    reader = Reader(adapter, adapter.forms[model.form.name], store)
    sample = compare.evenly_spaced_images(images, store, samples)
    timed = reader.first(sample, _TIMED_IMAGES)
    if not timed:
        hint = "Set --images to a dataset with readable images."
        raise SourceError(
            "No image of the sample can be read.", where=redact(images), found=reader.first_failure(), hint=hint
        )
    _check_runs(source, timed[0], model)
    note(f"calibrating with {len(sample)} images")
    result = _quantize_graph(nncf, graph, _CalibrationInputs(reader, graph, sample), keep_float, str(model.path))
    with _staging_folder(out) as staging:
        xml = staging / f"{model.name}-int8.xml"
        engine.save(result, xml)
        engines = {"f32": source, **_compile_engines(model, xml)}
        note(f"measuring the speed of {', '.join(engines)}")
        speed = compare.speed(engines, timed)
        accuracy = None
        if truth_of_images is not None:
            note("measuring average precision before and after")
            accuracy = compare.accuracy({name: engines[name] for name in ("f32", "int8")}, reader, truth_of_images)
        calibration_uris = {ref.uri for ref in sample if ref.uri not in reader.failures}
        quantised = Quantised(
            name=model.name,
            form=model.form.name,
            xml=out / xml.name,
            samples=len(calibration_uris),
            layers=_count_layers(result),
            size_bytes={"source": _size_bytes(model.files), "int8": _size_bytes(engine.model_files(xml))},
            speed=speed,
            accuracy=accuracy,
            calibrated=len(calibration_uris.intersection(accuracy.uris)) if accuracy else 0,
        )
        pull.install(staging, out, _card(quantised, model, xml, images, truth, keep_float))
    if reader.failures:
        note(f"{len(reader.failures)} images could not be read, such as {reader.first_failure()}")
    return quantised


def _check_runs(source: Engine, inputs: Arrays, model: resolve.ResolvedModel) -> None:
    """Raise ModelError for a network that cannot compute an image, with a better error than NNCF's."""
    try:
        with source.infer(inputs):
            pass
    except ImageError as error:
        hint = "Check that `segray label` labels the images with this model. If not, export the model again."
        raise ModelError(error.what, where=str(model.path), found=error.found, hint=hint) from error


def _import_nncf() -> Any:
    """Import and return NNCF; raise UserError if it is not installed."""
    logger_class = logging.getLoggerClass()
    try:
        # The import sets up NNCF's log, which goes to stderr from here on.
        with host_process.environment(["NNCF_CI"]), contextlib.redirect_stdout(sys.stderr):
            os.environ.setdefault("NNCF_CI", "1")  # Turns NNCF's telemetry off.
            import nncf
    except ImportError as error:
        hint = "Run pip install -c constraints.txt -e '.[quantize]', or pip install nncf."
        raise UserError("NNCF is not installed. Quantisation needs NNCF.", found=str(error), hint=hint) from error
    finally:
        logging.setLoggerClass(logger_class)
    nncf.set_log_level(logging.ERROR)
    return nncf


def _compile_engines(model: resolve.ResolvedModel, xml: Path) -> dict[str, Engine]:
    """Return engines of the source in the machine's other float precisions, and of the int8 model."""
    floats = [name for name in engine.precisions() if name in ("bf16", "f16")]
    engines = {name: engine.compile(model.path, model.form, DeviceSettings(precision=name)) for name in floats}
    return {**engines, "int8": engine.compile(xml, model.form, DeviceSettings(precision="int8"))}


# ---- calibration ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _CalibrationInputs:
    """The calibration images as inputs of the graph on disk; NNCF iterates over them several times."""

    reader: Reader
    graph: Any
    refs: Sequence[ImageRef]

    def __iter__(self) -> Iterator[tuple[NDArray[Any], ...]]:
        for ref in self.refs:
            if (prepared := self.reader.read(ref)) is not None:
                yield engine.inputs_of_stored_graph(self.graph, self.reader.form, prepared[0])


def _quantize_graph(nncf: Any, graph: Any, sample: _CalibrationInputs, patterns: Sequence[str], where: str) -> Any:
    """Return the graph with quantised layers, apart from those that stay in float."""
    names = float_names(graph, sample.reader.form.outputs)
    scope = nncf.IgnoredScope(names=sorted(names), patterns=list(patterns), validate=False)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # NNCF prints its progress.
            result = nncf.quantize(graph, nncf.Dataset(sample), subset_size=len(sample.refs), ignored_scope=scope)
    except SegrayError:
        raise
    except Exception as error:
        hint = "Exclude the layer of the error with --keep-float, or use the float model."
        raise ModelError("NNCF cannot quantise this model.", where=where, found=repr(error), hint=hint) from error
    layers = _count_layers(result)
    if not layers["int8"]:
        found = f"{layers['float']} layers with weights, all left in float"
        raise ModelError(
            "No layer of this model can be quantised.", where=where, found=found, hint="Check --keep-float."
        )
    return result


def float_names(graph: Any, outputs: Sequence[str]) -> set[str]:
    """Return the names of the last layers with weights before these outputs, and of all nodes after these layers."""
    output_names = {name.removesuffix(":0") for name in outputs}
    ports = (port for port in graph.outputs if output_names & {name.removesuffix(":0") for name in port.get_names()})
    todo = [port.get_node() for port in ports]
    names: set[str] = set()
    while todo:
        node = todo.pop()
        if node.get_friendly_name() not in names and node.get_type_name() not in _SEARCH_ENDS:
            names.add(node.get_friendly_name())
            if _weight_kinds(node) is None:
                todo += [_source_node(port) for port in node.inputs()]
    return names


def _count_layers(graph: Any) -> dict[str, int]:
    """Count the layers with weights that compute in int8, and those that compute in float."""
    layers = [kinds for node in graph.get_ops() if (kinds := _weight_kinds(node)) is not None]
    int8 = sum(bool(kinds & _INT8_KINDS) for kinds in layers)
    return {"int8": int8, "float": len(layers) - int8}


def _weight_kinds(node: Any) -> frozenset[str] | None:
    """Return the kinds of nodes in the layer's weights, as _constant_kinds does; None for a layer without weights."""
    if node.get_type_name() not in _LAYERS_WITH_WEIGHTS:
        return None
    return next((kinds for port in node.inputs() if (kinds := _constant_kinds(_source_node(port))) is not None), None)


def _constant_kinds(node: Any) -> frozenset[str] | None:
    """Return the constant types and node kinds from which this node is computed; None if the node has other sources."""
    kind = node.get_type_name()
    if kind == "Constant":
        return frozenset((node.get_element_type().get_type_name(),))
    if kind not in _BETWEEN_WEIGHTS_AND_LAYER:
        return None
    kinds = frozenset((kind,))
    for port in node.inputs():
        source_kinds = _constant_kinds(_source_node(port))
        if source_kinds is None:
            return None
        kinds |= source_kinds
    return kinds


def _source_node(port: Any) -> Any:
    return port.get_source_output().get_node()


# ---- files ----------------------------------------------------------------------------------------


def _check_free(model: resolve.ResolvedModel, out: Path) -> None:
    """Raise ModelError unless the folder is free, or holds an earlier result of the same quantisation."""
    card = metadata.read_card(out) if out.is_dir() else {}
    is_earlier_result = (
        card.get("precision") == "int8" and card.get("source", {}).get("fingerprint") == model.fingerprint
    )
    holds_source = any(file.resolve().parent == out.resolve() for file in model.files)
    if (card and not is_earlier_result) or holds_source:
        found = f"{card.get('contract', model.path.name)}, {card.get('precision', 'float')}"
        hint = "Set --out to a folder for the int8 model alone."
        raise ModelError("The folder holds another model.", where=str(out), found=found, hint=hint)


@contextlib.contextmanager
def _staging_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder in `out`, while no other process writes to `out`."""
    with pull.folder_lock(out):
        folder = out / ".quantizing"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _size_bytes(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def _card(
    quantised: Quantised,
    model: resolve.ResolvedModel,
    xml: Path,
    images: str,
    truth: Truth | None,
    keep_float: Sequence[str],
) -> dict[str, Any]:
    """Return the card: the facts that `segray label` needs, and how the model was made."""
    card: dict[str, Any] = {
        "contract": model.adapter.name,
        "form": model.form.name,
        "precision": "int8",
        "files": {file.name: resolve.sha256(file) for file in engine.model_files(xml)},
        "labels": {str(number): name for number, name in model.adapter.labels.items()},
        "source": {"model": model.path.name, "fingerprint": model.fingerprint, **_origin(model)},
        "calibration": {"images": redact(images), "samples": quantised.samples, "keep_float": list(keep_float)},
        "layers": dict(quantised.layers),
        "speed": {"device": quantised.speed.device, "images_per_s": _round_values(quantised.speed.images_per_s(), 1)},
        "versions": {"segray": segray.__version__, "openvino": version("openvino"), "nncf": version("nncf")},
    }
    if model.effective is not None:
        card["description"] = {**model.effective.facts_of_rows(), "labels": card["labels"]}
        del card["form"], card["description"]["missing"]
    if licence := metadata.read_card(model.path).get("licence"):
        card["licence"] = licence
    if truth is not None and quantised.accuracy is not None:
        card["accuracy"] = {
            "truth": truth.path.name,
            "images": len(quantised.accuracy.uris),
            "calibrated": quantised.calibrated,
            "objects": quantised.accuracy.objects,
            "mask_ap": _round_values(quantised.accuracy.mask_ap, 4),
            "box_ap": _round_values(quantised.accuracy.box_ap, 4),
        }
    return card


def _origin(model: resolve.ResolvedModel) -> dict[str, Any]:
    """Return where a fetched model is from, for its card."""
    return {} if model.origin is None else {"origin": dict(model.origin)}


def _round_values(values: Mapping[str, float], digits: int) -> dict[str, float]:
    return {name: round(value, digits) for name, value in values.items()}
