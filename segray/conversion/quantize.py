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
from segray.errors import ConfigError, ModelError, SegrayError, SourceError, UserError
from segray.instances import ImageRef
from segray.models import engine, resolve
from segray.models.engine import DeviceSettings, Engine
from segray.storage.store import Store
from segray.storage.uris import redact

_TIMED_IMAGES = 8
_WEIGHTED = frozenset(
    ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul")
)
# Kinds of nodes between stored weights and their layer.
_ON_WEIGHTS = frozenset(("Convert", "FakeQuantize", "Multiply", "Subtract", "Reshape", "Transpose"))
_INT8 = frozenset(("i8", "u8", "FakeQuantize"))
# Kinds of nodes at which the search ends. ShapeOf is one, because shapes are not quantised.
_ENDS = frozenset(("Constant", "Parameter", "ShapeOf"))


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
    nncf = _nncf()
    graph = engine.read(model.path)
    if engine.described(graph).quantised:
        raise ConfigError(
            "The model is quantised already.", where=str(model.path), hint="Give the one it was made from."
        )
    _check_free(model, out)
    source = engine.compile(model.path, model.form, DeviceSettings(precision="f32"))
    contract = model.contract.with_size(model.form.name, source.size_hw)
    reader = Reader(contract, contract.forms[model.form.name], store)
    sample = compare.spread(images, store, samples)
    timed = reader.first(sample, _TIMED_IMAGES)
    if not timed:
        raise SourceError("no image of the sample can be read", where=redact(images), found=reader.trouble())
    with source.infer(timed[0]):
        pass  # Refuses a model with other inputs here, with a helpful error.
    note(f"calibrating with {len(sample)} images")
    result = _calibrated(nncf, graph, _Calibration(reader, graph, sample), keep_float, str(model.path))
    with _staging(out) as staging:
        xml = staging / f"{model.name}-int8.xml"
        engine.save(result, xml)
        engines = {"f32": source, **_compiled(model, xml)}
        note(f"measuring the speed of {', '.join(engines)}")
        speed = compare.speed(engines, timed)
        accuracy = None
        if truth is not None:
            note("measuring average precision before and after")
            accuracy = compare.accuracy({name: engines[name] for name in ("f32", "int8")}, reader, truth)
        used = {ref.uri for ref in sample if ref.uri not in reader.unread}
        done = Quantised(
            name=model.name,
            form=model.form.name,
            xml=out / xml.name,
            samples=len(used),
            layers=_layers(result),
            size_bytes={"source": _size_bytes(model.files), "int8": _size_bytes(engine.model_files(xml))},
            speed=speed,
            accuracy=accuracy,
            calibrated=len(used.intersection(accuracy.uris)) if accuracy else 0,
        )
        pull.put(staging, out, _card(done, model, xml, images, truth, keep_float))
    if reader.unread:
        note(f"{len(reader.unread)} images could not be read, such as {reader.trouble()}")
    return done


def _nncf() -> Any:
    """Import and return NNCF; raise UserError if it is not installed."""
    loggers = logging.getLoggerClass()
    try:
        # The import sets up NNCF's log, which goes to stderr from here on.
        with host_process.environment(["NNCF_CI"]), contextlib.redirect_stdout(sys.stderr):
            os.environ.setdefault("NNCF_CI", "1")  # Turns NNCF's telemetry off.
            import nncf
    except ImportError as error:
        hint = "pip install -c constraints.txt -e '.[quantize]', or pip install nncf"
        raise UserError("NNCF, which quantises, is not installed.", found=str(error), hint=hint) from error
    finally:
        logging.setLoggerClass(loggers)
    nncf.set_log_level(logging.ERROR)
    return nncf


def _compiled(model: resolve.ResolvedModel, xml: Path) -> dict[str, Engine]:
    """Return engines of the source in the machine's other float precisions, and of the int8 model."""
    floats = [name for name in engine.precisions() if name in ("bf16", "f16")]
    engines = {name: engine.compile(model.path, model.form, DeviceSettings(precision=name)) for name in floats}
    return {**engines, "int8": engine.compile(xml, model.form, DeviceSettings(precision="int8"))}


# ---- calibration ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Calibration:
    """The calibration images as inputs of the graph on disk; NNCF iterates over them several times."""

    reader: Reader
    graph: Any
    refs: Sequence[ImageRef]

    def __iter__(self) -> Iterator[tuple[NDArray[Any], ...]]:
        for ref in self.refs:
            if (prepared := self.reader.read(ref)) is not None:
                yield engine.as_stored(self.graph, self.reader.form, prepared[0])


def _calibrated(nncf: Any, graph: Any, sample: _Calibration, patterns: Sequence[str], where: str) -> Any:
    """Return the graph with quantised layers, apart from those that stay in float."""
    names = float_names(graph, sample.reader.form.outputs)
    scope = nncf.IgnoredScope(names=sorted(names), patterns=list(patterns), validate=False)
    try:
        with contextlib.redirect_stdout(sys.stderr):  # NNCF prints its progress.
            result = nncf.quantize(graph, nncf.Dataset(sample), subset_size=len(sample.refs), ignored_scope=scope)
    except SegrayError:
        raise
    except Exception as error:
        hint = "Leave out what it stumbles over with --keep-float, or stay with f32 or bf16."
        raise ModelError("NNCF cannot quantise this model.", where=where, found=repr(error), hint=hint) from error
    layers = _layers(result)
    if not layers["int8"]:
        found = f"{layers['float']} layers with weights, all left in float"
        raise ModelError(
            "Nothing of this model can be quantised.", where=where, found=found, hint="Check --keep-float."
        )
    return result


def float_names(graph: Any, outputs: Sequence[str]) -> set[str]:
    """Return the names of the last layers with weights before these outputs, and of all nodes after these layers."""
    wanted = {name.removesuffix(":0") for name in outputs}
    ports = (port for port in graph.outputs if wanted & {name.removesuffix(":0") for name in port.get_names()})
    todo = [port.get_node() for port in ports]
    names: set[str] = set()
    while todo:
        node = todo.pop()
        if node.get_friendly_name() not in names and node.get_type_name() not in _ENDS:
            names.add(node.get_friendly_name())
            if _weights(node) is None:
                todo += [_source(port) for port in node.inputs()]
    return names


def _layers(graph: Any) -> dict[str, int]:
    """Count the layers with weights that compute in int8, and those that compute in float."""
    weights = [kinds for node in graph.get_ops() if (kinds := _weights(node)) is not None]
    int8 = sum(bool(kinds & _INT8) for kinds in weights)
    return {"int8": int8, "float": len(weights) - int8}


def _weights(node: Any) -> frozenset[str] | None:
    """Return the kinds of nodes in the layer's weights, as _stored does; None for a layer without weights."""
    if node.get_type_name() not in _WEIGHTED:
        return None
    return next((kinds for port in node.inputs() if (kinds := _stored(_source(port))) is not None), None)


def _stored(node: Any) -> frozenset[str] | None:
    """Return constant types and node kinds from which this node is computed; None if it depends on anything else."""
    kind = node.get_type_name()
    if kind == "Constant":
        return frozenset((node.get_element_type().get_type_name(),))
    if kind not in _ON_WEIGHTS:
        return None
    kinds = frozenset((kind,))
    for port in node.inputs():
        before = _stored(_source(port))
        if before is None:
            return None
        kinds |= before
    return kinds


def _source(port: Any) -> Any:
    return port.get_source_output().get_node()


# ---- files ----------------------------------------------------------------------------------------


def _check_free(model: resolve.ResolvedModel, out: Path) -> None:
    """Raise ModelError unless the folder is free, or holds an earlier result of the same quantisation."""
    card = resolve.read_card(out) if out.is_dir() else {}
    same = card.get("precision") == "int8" and card.get("source", {}).get("fingerprint") == model.fingerprint
    if (card and not same) or any(file.resolve().parent == out.resolve() for file in model.files):
        found = f"{card.get('contract', model.path.name)}, {card.get('precision', 'float')}"
        hint = "Give the int8 model a folder of its own with --out."
        raise ModelError("The folder holds another model.", where=str(out), found=found, hint=hint)


@contextlib.contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """Yield a temporary folder in `out`, while no other process writes to `out`."""
    with pull.alone(out):
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
    done: Quantised,
    model: resolve.ResolvedModel,
    xml: Path,
    images: str,
    truth: Truth | None,
    keep_float: Sequence[str],
) -> dict[str, Any]:
    """Return the card: what `segray label` must know of the model, and how the model was made."""
    card: dict[str, Any] = {
        "contract": model.contract.name,
        "form": model.form.name,
        "precision": "int8",
        "files": {file.name: resolve.sha256(file) for file in engine.model_files(xml)},
        "labels": {str(number): name for number, name in model.contract.labels.items()},
        "source": {"model": model.path.name, "fingerprint": model.fingerprint},
        "calibration": {"images": redact(images), "samples": done.samples, "keep_float": list(keep_float)},
        "layers": dict(done.layers),
        "speed": {"device": done.speed.device, "images_per_s": _rounded(done.speed.images_per_s(), 1)},
        "versions": {"segray": segray.__version__, "openvino": version("openvino"), "nncf": version("nncf")},
    }
    if licence := resolve.read_card(model.path).get("licence"):
        card["licence"] = licence
    if truth is not None and done.accuracy is not None:
        card["accuracy"] = {
            "truth": truth.path.name,
            "images": len(done.accuracy.uris),
            "calibrated": done.calibrated,
            "objects": done.accuracy.objects,
            "mask_ap": _rounded(done.accuracy.mask_ap, 4),
            "box_ap": _rounded(done.accuracy.box_ap, 4),
        }
    return card


def _rounded(values: Mapping[str, float], digits: int) -> dict[str, float]:
    return {name: round(value, digits) for name, value in values.items()}
