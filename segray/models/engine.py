"""OpenVINO: read a model, check its ports, compile it, and lend out infer requests. Also a fake engine.

Knows ports, names, layouts, precision and threads. Knows nothing of labels, boxes, masks or storage. Compiled models
survive neither pickling nor fork: compile in the process that infers.
"""

from __future__ import annotations

import difflib
import fcntl
import functools
import math
import os
import queue
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from segray.errors import ConfigError, ImageError, ModelError, UserError
from segray.imaging.geometry import swap_red_and_blue
from segray.models import checkpoints, graph_repairs, paste_graph
from segray.models.adapters.adapter import ImageInput, ModelFormat
from segray.models.openvino import opset13, ov
from segray.models.paste_graph import BoxMasks
from segray.storage.uris import as_path

Arrays = Mapping[str, NDArray[Any]]

OLDEST_IR = 10
_CAPABILITY = {"f32": "FP32", "bf16": "BF16", "f16": "FP16", "int8": "INT8"}
_SUFFIXES = (".xml", ".onnx", ".pb")
# What exporters append to the name of an ONNX file for the file of its weights: transformers, PyTorch.
ONNX_WEIGHTS = ("_data", ".data")
# After this many images of one size, a network for that size is worth the seconds of its compilation.
_IMAGES_BEFORE_FIXED_SHAPE = 16
# An address as a path has it, which joins the slashes: s3:/bucket/key.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
_is_forked = False
# Bytes that hold the first element of an IR.
_HEAD_BYTES = 2**16


# ---- files ----------------------------------------------------------------------------------------


def model_root(path: Path) -> Path:
    """Return the path that OpenVINO opens: the folder for a saved_model.pb, otherwise the path itself."""
    return path.parent if path.name == "saved_model.pb" else path


def model_files(path: Path) -> tuple[Path, ...]:
    """Return the files of the model at `path`, sorted; raise ModelError if a file is missing or is no model.

    path: IR (.xml, its .bin beside it), .onnx, frozen graph (.pb), SavedModel folder or its saved_model.pb. Large ONNX
        files have their weights in a file beside them.
    """
    path = model_root(path)
    if path.is_dir():
        if not (path / "saved_model.pb").is_file():
            raise _missing_error(path / "saved_model.pb", "The model is a folder, but no SavedModel.")
        return tuple(sorted(file for file in path.rglob("*") if file.is_file()))
    if not path.is_file():
        if path.suffix in checkpoints.SUFFIXES:
            hint = f"Check the path. segray reads exports of a checkpoint, such as that of {checkpoints.EXPORT_COMMAND}"
            raise missing_error(path, "The checkpoint does not exist.", hint)
        raise _missing_error(path, "The model does not exist.")
    if path.suffix not in _SUFFIXES:
        hint = checkpoints.hint_on_suffix(path.suffix)
        raise ModelError(
            "segray cannot read files of this kind.", where=str(path), found=f"suffix {path.suffix!r}", hint=hint
        )
    if path.suffix == ".onnx":
        weights_files = (path.with_name(path.name + end) for end in ONNX_WEIGHTS)
        return (path, *sorted(file for file in weights_files if file.is_file()))
    if path.suffix != ".xml":
        return (path,)
    _check_ir_version(path)
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise _missing_error(weights, "The weights beside the .xml are missing.")
    return (path, weights)


def _missing_error(path: Path, what: str) -> ModelError:
    return missing_error(path, what, "Check --model or `model.path`. An IR is two files, .xml and .bin.")


def missing_error(path: Path, what: str, hint: str) -> ModelError:
    """Return the error for a file that is missing, or that is no local file. hint: what to do about a local file."""
    remote = _ADDRESS.fullmatch(str(path))
    if remote is None:
        return ModelError(what, where=str(path), found=_similar_names(path), hint=hint)
    scheme, rest = remote.groups()
    return ModelError(
        "A model is read from a local path, not from an address.",
        where=f"{scheme}://{rest}",
        found=f"the scheme {scheme}://",
        hint=f"Set `model.path` to /{rest}."
        if scheme == "file"
        else "Copy the model to this machine, and set `model.path` to the copy. Ray carries the files to the nodes.",
    )


def _similar_names(path: Path) -> str:
    """Return a text on the nearest existing folder: names similar to the missing one, otherwise a few entries."""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    names = [entry.name for entry in folder.iterdir()]
    similar = difflib.get_close_matches(path.name, names, n=5, cutoff=0.3) or sorted(names)[:5]
    return f"in {folder}: {', '.join(similar) or 'nothing'}"


def ir_version(xml: Path) -> int:
    """Return the version of the IR at `xml`; raise ModelError if the file is no IR."""
    parser: ElementTree.XMLPullParser[Any] = ElementTree.XMLPullParser(events=("start",))
    try:
        with xml.open("rb") as file:
            parser.feed(file.read(_HEAD_BYTES))
        start: Any = next(parser.read_events(), None)
        if start is not None:
            return int(start[1].attrib["version"])
        found = f"no XML element in {xml.stat().st_size:,} bytes"
    except ElementTree.ParseError as error:
        found = str(error)
    except (KeyError, ValueError) as error:
        found = f"no version of an IR in the first element: {error!r}"
    hint = "Copy the file again, or convert the model again."
    raise ModelError("This .xml is not an OpenVINO IR.", where=str(xml), found=found, hint=hint)


def _check_ir_version(xml: Path) -> None:
    version = ir_version(xml)
    if version < OLDEST_IR:
        raise ModelError(
            f"OpenVINO no longer reads IR v{version}, only v{OLDEST_IR} and newer.",
            where=str(xml),
            found=f"version {version}, OpenVINO {ov.__version__}",
            hint=f"Convert the original model again, or see `segray models inspect {xml}` for a way to rewrite the IR.",
        )


# ---- ports ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelPort:
    """An input or output of a model.

    names: all tensor names, without ":0". element_type: as OpenVINO writes it ("u8", "f32").
    shape: sizes of the axes; None for an axis whose size is known only at inference, or for an unknown rank.
    """

    names: tuple[str, ...]
    element_type: str
    shape: tuple[int | None, ...] | None

    def __str__(self) -> str:
        dimensions = "?" if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{'|'.join(self.names) or '(no name)'} {self.element_type} [{dimensions}]"


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a model, in the model's own order; the order has no meaning.

    quantised: the layers compute in int8 where they can, whatever precision the other layers have.
    box_masks: the small masks of boxes that the graph makes, if it makes them as torchvision does.
    """

    inputs: tuple[ModelPort, ...]
    outputs: tuple[ModelPort, ...]
    quantised: bool = False
    box_masks: BoxMasks | None = None


def read(path: Path) -> ov.Model:
    """Return the model at `path`, unchanged; raise ModelError if OpenVINO cannot read the model."""
    model_files(path)
    check_not_forked()
    try:
        return _core().read_model(model_root(path))
    except RuntimeError as error:
        hint = "Copy the files again, or convert the model again."
        raise ModelError(
            "OpenVINO cannot read the model.", where=str(path), found=_last_line(error), hint=hint
        ) from error


def adjust(model: ov.Model, form: ModelFormat, path: Path) -> None:
    """Change a model in memory: it takes one image at a time, its outputs are named as in `form`, it pastes no masks.

    Raises:
        ModelError: The model is of another kind, or it takes several images at a time and cannot take one. The error
            names `path`.
    """
    check(_signature(model), form, str(path))
    for name, position in form.positions.items():
        model.outputs[position].get_tensor().add_names({name})
    if form.pasted_masks:
        paste_graph.cut(model, form.positions[form.pasted_masks])
    if form.positions:
        graph_repairs.gather_slices(model)
    _take_one_image(model, form, path)


def _take_one_image(model: ov.Model, form: ModelFormat, path: Path) -> None:
    """Give the image input a batch axis of 1 if the form knows that the file may have another, or none."""
    index = _image_index(_signature(model), form.image, str(path))
    shape = model.inputs[index].get_partial_shape()
    if not form.image.any_batch or shape.rank.is_dynamic:
        return
    if shape.rank.get_length() == 3:
        _add_batch_axis(model, index)
        return
    layout = _model_layout(_port(model.inputs[index]), form.image, str(path))
    single = ov.PartialShape(list(shape))
    single[0], single[layout.index("C")] = 1, 3
    if shape == single:
        return
    batch = shape[0].get_length() if shape[0].is_static else None
    if batch is not None and batch > 1:
        graph_repairs.release_batch(model, index, batch)
    try:
        # Model.reshape would check the new shapes of layers with the old shape of the input.
        model.get_parameters()[index].set_partial_shape(single)
        model.validate_nodes_and_infer_types()
        if batch is not None and batch > 1:
            _check_single(model, form, batch)
    except RuntimeError as error:
        raise ModelError(
            "The model labels several images at a time, and cannot be changed to one.",
            where=str(path),
            found=f"batch {shape[0]}: {_last_line(error)}",
            hint="Export the model again with batch=1.",
        ) from error


def _check_single(model: ov.Model, form: ModelFormat, batch: int) -> None:
    """Raise RuntimeError if an output still has the rows of `batch` images, though the model takes one image."""
    ports = [_port(model.outputs[position]) for position in form.positions.values()]
    if several := [str(port) for port in ports if port.shape and port.shape[0] == batch]:
        raise RuntimeError(f"the outputs still have {batch} images: {'; '.join(several)}")


def _add_batch_axis(model: ov.Model, index: int) -> None:
    """Put an input of one axis more in place of this input. The new axis, the first, has size 1."""
    old = model.inputs[index]
    shape = ov.PartialShape([1, *old.get_partial_shape()])
    image = opset13.parameter(shape, old.get_element_type(), old.get_node().get_friendly_name())
    names = old.get_tensor().get_names()
    old.get_tensor().set_names(set())
    image.output(0).get_tensor().set_names(names)
    consumers = old.get_target_inputs()
    without_batch = opset13.squeeze(image, [0]).output(0)
    for consumer in consumers:
        consumer.replace_source_output(without_batch)
    model.replace_parameter(model.get_parameter_index(old.get_node()), image)
    model.validate_nodes_and_infer_types()


def signature(path: Path) -> Signature:
    """Return the ports of the model at `path`.

    OpenVINO reads the whole model, which takes a minute for large frozen graphs.
    """
    return signature_of(read(path))


def signature_of(model: ov.Model) -> Signature:
    """Return the ports of a model in memory, whether the model is quantised, and its masks of boxes."""
    quantised = any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())
    return replace(_signature(model), quantised=quantised, box_masks=paste_graph.find(model))


def save(model: ov.Model, xml: Path) -> None:
    """Write the model as a current IR, `xml` and its .bin; every weight keeps its precision."""
    try:
        ov.save_model(model, xml, compress_to_fp16=False)
    except RuntimeError as error:
        hint = f"Free space in {xml.parent}, or choose another folder."
        raise ModelError(
            "OpenVINO cannot write the model.", where=str(xml), found=_last_line(error), hint=hint
        ) from error


def check(ports: Signature, form: ModelFormat, where: str = "") -> None:
    """Raise ModelError unless a model with these ports can serve this form. where: the model's path, for the error."""
    if absent := absent_outputs(ports, form):
        raise ModelError(
            f"This model is of another kind: outputs {', '.join(absent)} are missing for the {form.name} form.",
            where=where,
            found=f"outputs {'; '.join(map(str, ports.outputs))}",
            hint=f"Check `model.name` and `model.form`. The expected outputs are {', '.join(form.outputs)}.",
        )
    _model_layout(ports.inputs[_image_index(ports, form.image, where)], form.image, where)


def check_precision(ports: Signature, precision: str, where: str = "") -> None:
    """Raise ConfigError if model.precision contradicts the file. where: the model's path, for the error.

    Only `segray models quantize` makes an int8 model, and a quantised model cannot become a float model again.
    """
    if precision == "int8" and not ports.quantised:
        what = "The model is not quantised, so the model cannot compute in int8."
        hint = f"Quantise the model: segray models quantize {where or 'MODEL'} --images FOLDER --out FOLDER"
        raise ConfigError(what, where=where, found="only float layers", hint=hint)
    if precision not in ("auto", "int8") and ports.quantised:
        what = "The model is quantised: its layers compute in int8."
        hint = "Set `model.precision` to int8 or auto, or set `model.path` to the float model."
        raise ConfigError(what, where=where, found=f"model.precision: {precision}", hint=hint)


def absent_outputs(ports: Signature, form: ModelFormat) -> list[str]:
    """Return the names of the form's outputs that a model with these ports lacks."""
    return [name for name in form.outputs if _output_index(ports, form, name) is None]


def _output_index(ports: Signature, form: ModelFormat, name: str) -> int | None:
    """Return the position of one of the form's outputs among the model's; None if the model lacks the output."""
    if name not in form.positions:
        return _index(ports.outputs, name)
    position = form.positions[name]
    return position if position < len(ports.outputs) else None


@functools.cache
def _core() -> ov.Core:
    os.register_at_fork(after_in_child=_forbid_in_fork)
    return ov.Core()


def _forbid_in_fork() -> None:
    global _is_forked
    _is_forked = True


def check_not_forked() -> None:
    """Raise UserError in a process that was forked from one that uses OpenVINO, whose threads a fork lacks.

    OpenVINO 2026.4 may wait for these threads for ever, for a new model too.
    """
    if _is_forked:
        raise UserError(
            "a forked process cannot run models, because its parent has used OpenVINO",
            found=f"process {os.getpid()}",
            hint='use the start method spawn (multiprocessing.get_context("spawn")), or load the first model after the '
            "fork",
        )


def _signature(model: ov.Model | ov.CompiledModel) -> Signature:
    return Signature(tuple(map(_port, model.inputs)), tuple(map(_port, model.outputs)))


def _port(port: Any) -> ModelPort:
    partial = port.get_partial_shape()
    shape = None if partial.rank.is_dynamic else tuple(d.get_length() if d.is_static else None for d in partial)
    names = tuple(sorted({name.removesuffix(":0") for name in port.get_names()}))
    return ModelPort(names, port.get_element_type().get_type_name(), shape)


def _index(ports: Sequence[ModelPort], name: str) -> int | None:
    return next((index for index, port in enumerate(ports) if name in port.names), None)


def _image_index(ports: Signature, image: ImageInput, where: str) -> int:
    """Return the index of the image's port: the port of that name, or the only input.

    The name of an only input depends on the converter.
    """
    index = 0 if len(ports.inputs) == 1 else _index(ports.inputs, image.name)
    if index is None:
        inputs = f"inputs {'; '.join(map(str, ports.inputs))}"
        raise ModelError(
            f"The model has no input {image.name!r}.", where=where, found=inputs, hint="Check `model.name`."
        )
    return index


def _model_layout(port: ModelPort, image: ImageInput, where: str) -> str:
    """Return the layout of the model's image input: the declared one, or the one that fits the shape's 3 channels."""
    shape = _single(port.shape) if image.any_batch else port.shape
    for layout in (image.layout, "NHWC", "NCHW"):
        if _fits(shape, layout, None if image.resizable else image.size_hw):
            return layout
    expected = f"{image.layout} with 3 channels, height and width {image.size_hw or 'any'}"
    raise ModelError("The image input has another shape.", where=where, found=str(port), hint=f"Expected: {expected}.")


def _single(shape: tuple[int | None, ...] | None) -> tuple[int | None, ...] | None:
    """Return the shape of an image input that takes one image, from a shape of any batch axis or without one."""
    if shape is None or len(shape) not in (3, 4):
        return shape
    return (1, *shape[-3:])


def _fits(shape: tuple[int | None, ...] | None, layout: str, size_hw: tuple[int, int] | None) -> bool:
    """Return whether a port of this shape can take images of this layout and size; None stands for any size."""
    expected = _input_shape(layout, size_hw)
    if shape is None:
        return True
    return len(shape) == 4 and all(None in sizes or sizes[0] == sizes[1] for sizes in zip(shape, expected, strict=True))


def _input_shape(layout: str, size_hw: tuple[int, int] | None) -> tuple[int | None, ...]:
    height, width = size_hw or (None, None)
    dimensions = {"N": 1, "C": 3, "H": height, "W": width}
    return tuple(dimensions[axis] for axis in layout)


def _size_hw(port: ModelPort) -> tuple[int, int] | None:
    """Return height and width of a compiled NHWC image input, in pixels; None if either is dynamic."""
    _, height, width, _ = port.shape or (None,) * 4
    return None if height is None or width is None else (height, width)


def _last_line(error: Exception) -> str:
    """Return the last line of an OpenVINO message; the earlier lines name OpenVINO's own source files."""
    return next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), repr(error))


# ---- compilation ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class DeviceSettings:
    """The device that runs a model, and how.

    device: one of OpenVINO's names ("CPU", "GPU.0"). threads: number of threads, None for available_cpus().
    precision: "f32", "bf16" or "f16"; "int8" for a quantised model, whose float layers then compute in f32; "auto"
    for the device's default, which differs between machines.
    cache_dir: folder for compiled models, None for no cache. hint: THROUGHPUT, or LATENCY for one image at a time.
    fixed_shapes: number of image sizes that get a network of their own if the model takes any size (see `compile`).
    """

    device: str = "CPU"
    threads: int | None = None
    precision: str = "auto"
    cache_dir: str | None = None
    hint: str = "THROUGHPUT"
    fixed_shapes: int = 0


class Engine(Protocol):
    """A compiled model that several threads share.

    requests: number of threads that keep the device busy. facts: the settings in effect, by name: openvino, device,
    device_name, precision ("int8+f32" for a quantised model), streams, threads.
    size_hw: height and width of the images in pixels, None for any size.
    softmax_outputs: outputs that the graph makes by a softmax over their last axis.
    """

    @property
    def requests(self) -> int: ...
    @property
    def facts(self) -> Mapping[str, str]: ...
    @property
    def size_hw(self) -> tuple[int, int] | None: ...
    @property
    def softmax_outputs(self) -> frozenset[str]: ...

    def infer(self, inputs: Arrays) -> AbstractContextManager[Arrays]:
        """Run one image and yield the named outputs: views of the device's buffers, valid inside the `with` only.

        inputs: arrays from the adapter's `prepare`; images are uint8 (1, h, w, 3) RGB. The call blocks while all
        requests are lent. Raises ImageError(stage="infer") if the network refuses this input, and ModelError if the
        model takes other inputs.
        """
        ...


def available_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of CPUs this process may use: the affinity mask, limited by the container's quota, rounded up.

    OpenVINO respects the mask by itself, but not the quota. cgroup: folder with the CFS quota (cgroup v2 or v1).
    """
    affinity, quota = len(os.sched_getaffinity(0)), _cpu_quota(cgroup)
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))


def _cpu_quota(cgroup: Path) -> float | None:
    """Return the container's CPU quota in CPUs; None if there is no quota."""
    v2, v1 = cgroup / "cpu.max", cgroup / "cpu" / "cpu.cfs_quota_us"
    if v2.is_file():
        quota, period = v2.read_text().split()
    elif v1.is_file():
        quota, period = v1.read_text(), v1.with_name("cpu.cfs_period_us").read_text()
    else:
        return None
    return None if quota == "max" or int(quota) <= 0 else int(quota) / int(period)


def compile(path: Path, form: ModelFormat, settings: DeviceSettings) -> Engine:
    """Return an engine: read and check the model, embed the image conversion of `form`, and compile.

    Outputs that the form does not name are removed. A network for images of any size is compiled again for each of
    the first `settings.fixed_shapes` sizes that come often. OpenVINO then folds the layers whose paddings depend on the
    size, which makes atrous convolutions faster. Sums may round differently in such a network.

    Args:
        path: The model, as for `model_files`.
        form: The form of the model.
        settings: The device that runs the model, and how.

    Raises:
        ModelError: The files are missing, do not fit the form, or do not compile on this device.
        ConfigError: The precision contradicts the file.
    """

    def compile_for(size_hw: tuple[int, int]) -> Compiled:
        return compile_network(path, form, settings, size_hw)

    network = compile_network(path, form, settings)
    max_sizes = settings.fixed_shapes if network.size_hw is None else 0
    return _OpenVINOEngine(network, form.image.name, compile_for, max_sizes)


def compile_network(
    path: Path, form: ModelFormat, settings: DeviceSettings, size_hw: tuple[int, int] | None = None
) -> Compiled:
    """Return the compiled model without an engine, for callers that drive infer requests themselves.

    Args:
        path: The model, as for `model_files`.
        form: The form of the model.
        settings: The device that runs the model, and how.
        size_hw: Height and width of the only image size, in pixels; None for the form's size, or for any size.

    Raises:
        ModelError: The files are missing, do not fit the form, or do not compile on this device.
        ConfigError: The precision contradicts the file.
    """
    _check_device(settings)
    if settings.cache_dir is not None:
        settings = replace(settings, cache_dir=str(as_path(settings.cache_dir)))
    model = read(path)
    adjust(model, form, path)
    ports = signature_of(model)
    check_precision(ports, settings.precision, str(path))
    image = _image_index(ports, form.image, str(path))
    layout = _model_layout(ports.inputs[image], form.image, str(path))
    try:
        _keep_outputs(model, form.outputs)
        softmax_outputs = _softmax_outputs(model, form)
        _fix_shape(model.inputs[image], model, _input_shape(layout, form.image.size_hw or size_hw))
        model = _embed_preprocessing(model, image, form.image, layout)
        with _cache_lock(settings.cache_dir):
            network = _core().compile_model(model, settings.device, _options(settings, form))
    except RuntimeError as error:
        hint = "Set another `device` in `workers` or another `model.precision`, or convert the model again."
        if path.suffix == ".onnx":
            hint = f"Export the model as an OpenVINO IR. For a model by Ultralytics: {checkpoints.EXPORT_COMMAND}"
        raise ModelError(
            "OpenVINO cannot compile the model.", where=str(path), found=_last_line(error), hint=hint
        ) from error
    return Compiled(network, form, image, _effective_settings(network, settings, ports.quantised), softmax_outputs)


@contextmanager
def _cache_lock(cache_dir: str | None) -> Iterator[None]:
    """Hold the lock of the model cache, so that one process of a machine compiles at a time.

    The first process fills the cache, the others read it.
    """
    if cache_dir is None:
        yield
        return
    try:
        Path(cache_dir).mkdir(parents=True, exist_ok=True)
        file = (Path(cache_dir) / "segray.lock").open("w")
    except OSError as error:
        what = "segray cannot write to the folder for compiled models."
        hint = "Set `model.cache_dir` to another folder, or to null."
        raise ModelError(what, where=cache_dir, found=str(error), hint=hint) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def precisions(device: str = "CPU") -> tuple[str, ...]:
    """Return the precisions the device can compute in, out of "f32", "bf16", "f16" and "int8"."""
    capabilities = _core().get_property(device, "OPTIMIZATION_CAPABILITIES")
    return tuple(name for name, capability in _CAPABILITY.items() if capability in capabilities)


def _check_device(settings: DeviceSettings) -> None:
    device, devices = settings.device, _core().available_devices
    if not any(device in (name, name.split(".")[0], f"{name}.0") for name in devices):
        hint = f"Set `device` in `workers` to {' or '.join(devices)}."
        if device.upper().startswith(("GPU", "CUDA", "NVIDIA")):
            hint += " OpenVINO's GPU means an Intel GPU with its driver. OpenVINO does not support NVIDIA cards."
        raise ModelError(f"There is no device {device!r}.", found=f"devices {', '.join(devices)}", hint=hint)
    supported = precisions(device)
    if settings.precision not in ("auto", *supported):
        raise ModelError(
            f"The device cannot compute in {settings.precision}.",
            where=f"device {device}",
            found=f"{_core().get_property(device, 'FULL_DEVICE_NAME')}: {', '.join(supported)}",
            hint=f"Set `model.precision` to {', '.join(supported)} or auto.",
        )


def _options(settings: DeviceSettings, form: ModelFormat) -> dict[str, Any]:
    threads = settings.threads or available_cpus()
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": settings.hint,
        "INFERENCE_NUM_THREADS": threads,
        # With pinning, all processes of a host take the same cores.
        "ENABLE_CPU_PINNING": False,
    }
    supported = _core().get_property(settings.device, "SUPPORTED_PROPERTIES")
    options = {name: value for name, value in options.items() if name in supported}
    if settings.precision != "auto":
        options["INFERENCE_PRECISION_HINT"] = _float_precision(settings.precision)
    if settings.cache_dir:
        options["CACHE_DIR"] = settings.cache_dir
    if form.stream_threads is not None and settings.hint == "THROUGHPUT" and settings.device == "CPU":
        options["NUM_STREAMS"] = max(1, threads // form.stream_threads)
    return options


def _float_precision(precision: str) -> str:
    """Return the precision of the float layers.

    A quantised model's float layers compute in f32, so that every machine gives the same rows.
    """
    return "f32" if precision == "int8" else precision


def _keep_outputs(model: ov.Model, names: Sequence[str]) -> None:
    kept = {_index(_signature(model).outputs, name) for name in names}
    for index, port in enumerate(model.outputs):
        if index not in kept:
            model.remove_result(port.get_node())


def _softmax_outputs(model: ov.Model, form: ModelFormat) -> frozenset[str]:
    """Return the form's outputs that a softmax over the last axis makes, without a layer behind it."""
    indices = {name: _index(_signature(model).outputs, name) for name in form.outputs}
    return frozenset(
        name
        for name, index in indices.items()
        if index is not None and _is_softmax(model.outputs[index].get_node().input_value(0))
    )


def _is_softmax(source: Any) -> bool:
    node, rank = source.get_node(), source.get_partial_shape().rank
    if node.get_type_name() != "Softmax" or rank.is_dynamic:
        return False
    return bool(node.get_attributes()["axis"] in (-1, rank.get_length() - 1))


def _fix_shape(port: Any, model: ov.Model, shape: tuple[int | None, ...]) -> None:
    """Make the image input static where the form knows its size.

    A static network is faster, and its outputs are static too.
    """
    if None not in shape and port.get_partial_shape().is_dynamic:
        model.reshape({port: ov.PartialShape(list(shape))})


def _embed_preprocessing(model: ov.Model, index: int, image: ImageInput, layout: str) -> ov.Model:
    """Put layout, type, mean and scale into the graph, behind a uint8 NHWC input in the form's colour order.

    `Compiled.inputs` swaps the channels of a BGR form. OpenVINO folds a swap in the graph into the first convolution,
    which then adds the channels in another order: last bits change, and with them the order of tied detections.
    """
    steps = ov.preprocess.PrePostProcessor(model)
    port = steps.input(index)
    port.model().set_layout(ov.Layout(layout))
    port.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    if image.mean is not None or image.scale is not None:
        port.preprocess().convert_element_type(ov.Type.f32)
    if image.mean is not None:
        port.preprocess().mean(list(image.mean))
    if image.scale is not None:
        port.preprocess().scale(list(image.scale))
    return steps.build()


def inputs_of_stored_graph(model: ov.Model, form: ModelFormat, inputs: Arrays) -> tuple[NDArray[Any], ...]:
    """Return prepared inputs as the graph on disk takes them, in the graph's order.

    Use this function for a model that `compile` has not changed. The image gets the colour order, mean, scale, layout
    and type that `compile` builds into its copy of the graph.

    Args:
        model: The graph on disk.
        form: The form of the model.
        inputs: All inputs by name, as for Engine.infer; the image is uint8 (1, h, w, 3) RGB.

    Returns:
        One array for each input of the graph, with the input's dtype.
    """
    ports, image = _signature(model), form.image
    index = _image_index(ports, image, form.name)
    pixels = inputs[image.name][..., ::-1] if image.colour == "BGR" else inputs[image.name]
    if image.mean is not None:
        pixels = pixels - np.array(image.mean, np.float32)
    if image.scale is not None:
        pixels = pixels / np.array(image.scale, np.float32)
    if _model_layout(ports.inputs[index], image, form.name) == "NCHW":
        pixels = pixels.transpose(0, 3, 1, 2)
    others = {name: array for name, array in inputs.items() if name != image.name}
    arrays = [
        pixels if i == index else next(array for name, array in others.items() if name in port.names)
        for i, port in enumerate(ports.inputs)
    ]
    dtypes = [port.get_element_type().to_dtype() for port in model.inputs]
    return tuple(np.ascontiguousarray(array, dtype) for array, dtype in zip(arrays, dtypes, strict=True))


def graph_inputs(model: ov.Model, form: ModelFormat, inputs: Arrays) -> dict[str, NDArray[Any]]:
    """Return prepared inputs as `inputs_of_stored_graph` does, by the name that the graph on disk gives each input."""
    arrays = inputs_of_stored_graph(model, form, inputs)
    ports = [port.names for port in _signature(model).inputs]
    names = [form.image.name if form.image.name in all_names else min(all_names, default="") for all_names in ports]
    return dict(zip(names, arrays, strict=True))


def form_outputs(ports: Signature, form: ModelFormat, outputs: Arrays | Sequence[NDArray[Any]]) -> Arrays:
    """Return a graph's outputs by the names of the form, as an adapter decodes them.

    Args:
        ports: The ports of the graph on disk.
        form: The form of the model.
        outputs: Arrays by the graph's own names or by those of the form; or a list in the order of the graph.

    Raises:
        ModelError: An output is missing.
    """
    if not isinstance(outputs, Mapping):
        outputs = {name: array for port, array in zip(ports.outputs, outputs, strict=False) for name in port.names}
    arrays = {name.removesuffix(":0"): array for name, array in outputs.items()}
    by_form = {}
    for name in form.outputs:
        index = _output_index(ports, form, name)
        names = [name, *(ports.outputs[index].names if index is not None else ())]
        given = next((candidate for candidate in names if candidate in arrays), None)
        if given is None:
            raise ModelError(
                f"The output {name} is missing.",
                where="outputs",
                found=", ".join(arrays) or "none",
                hint=f"Give the outputs by name: {'; '.join(map(str, ports.outputs))}.",
            )
        by_form[name] = arrays[given]
    return by_form


def _effective_settings(compiled: ov.CompiledModel, settings: DeviceSettings, quantised: bool) -> dict[str, str]:
    supported = compiled.get_property("SUPPORTED_PROPERTIES")

    def effective(name: str) -> str:
        return str(compiled.get_property(name)) if name in supported else ""

    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if _float_precision(settings.precision) not in ("auto", precision):
        raise ModelError(
            f"The device does not compute in {settings.precision}.",
            where=settings.device,
            found=f"precision in effect: {precision}",
            hint=f"Set `model.precision` to {precision} or auto.",
        )
    return {
        "openvino": ov.__version__,
        "device": settings.device,
        "device_name": _core().get_property(settings.device, "FULL_DEVICE_NAME"),
        "precision": f"int8+{precision}" if quantised else precision,
        "streams": effective("NUM_STREAMS"),
        "threads": effective("INFERENCE_NUM_THREADS"),
    }


# ---- engines --------------------------------------------------------------------------------------


class Compiled:
    """A compiled model and its ports by name.

    network: OpenVINO's compiled model. facts, size_hw, softmax_outputs: as in Engine.
    """

    def __init__(
        self,
        network: ov.CompiledModel,
        form: ModelFormat,
        image: int,
        facts: Mapping[str, str],
        softmax_outputs: frozenset[str] = frozenset(),
    ) -> None:
        self.network, self.facts, self.softmax_outputs = network, facts, softmax_outputs
        ports = _signature(network)
        self.size_hw = _size_hw(ports.inputs[image])
        self._inputs = {name: index for index, port in enumerate(ports.inputs) for name in port.names}
        self._inputs[form.image.name] = image
        self._bgr_input = image if form.image.colour == "BGR" else None
        self._dtypes = [port.get_element_type().to_dtype() for port in network.inputs]
        self._outputs = {name: _index(ports.outputs, name) for name in form.outputs}

    def inputs(self, arrays: Arrays) -> dict[int, NDArray[Any]]:
        """Return the arrays by port index, the image in the model's colour order.

        Raise ModelError unless names and dtypes are those of the model. OpenVINO itself accepts a missing input, and
        wraps floats into uint8.
        """
        by_port = {self._inputs[name]: array for name, array in arrays.items() if name in self._inputs}
        fits = len(by_port) == len(arrays) == len(self._dtypes)
        if not fits or any(self._dtypes[index] != array.dtype for index, array in by_port.items()):
            prepared = ", ".join(f"{name} {array.dtype}" for name, array in arrays.items())
            expected = ", ".join(f"{name} {self._dtypes[index]}" for name, index in self._inputs.items())
            raise ModelError(
                "The model takes other inputs than its adapter prepares.",
                found=f"prepared {prepared}; the model takes {expected}",
                hint="Check `model.name` and `model.form`.",
            )
        if self._bgr_input is not None:
            by_port[self._bgr_input] = swap_red_and_blue(by_port[self._bgr_input])
        return by_port

    def outputs(self, request: ov.InferRequest) -> dict[str, NDArray[Any]]:
        """Return the form's outputs of a finished request, by name: views of its buffers."""
        return {name: request.get_output_tensor(index).data for name, index in self._outputs.items()}


class _Requests:
    """The infer requests of one network, created on demand, each lent to one thread at a time."""

    def __init__(self, compiled: Compiled) -> None:
        self.compiled = compiled
        self._idle: queue.SimpleQueue[ov.InferRequest] = queue.SimpleQueue()

    @contextmanager
    def lend(self) -> Iterator[ov.InferRequest]:
        """Yield a request that no other thread uses inside the `with`."""
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            request = self.compiled.network.create_infer_request()
        try:
            yield request
        finally:
            self._idle.put(request)


class _OpenVINOEngine:
    """A network for any image size, and networks for frequent sizes; at most `requests` infer requests run at once."""

    def __init__(
        self, compiled: Compiled, image_name: str, compile_for: Callable[[tuple[int, int]], Compiled], max_sizes: int
    ) -> None:
        self._any_size, self._image_name = _Requests(compiled), image_name
        self._compile_for, self._max_sizes = compile_for, max_sizes
        self.facts, self.size_hw, self.softmax_outputs = compiled.facts, compiled.size_hw, compiled.softmax_outputs
        # One more than the device works on, so that the device never waits for a thread that is decoding.
        self.requests: int = compiled.network.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS") + 1
        self._slots = threading.Semaphore(self.requests)
        self._by_size: dict[tuple[int, int], _Requests] = {}
        self._images_of_size: Counter[tuple[int, int]] = Counter()
        self._lock = threading.Lock()

    @contextmanager
    def infer(self, inputs: Arrays) -> Iterator[Arrays]:
        requests = self._requests_for(inputs)
        by_port = requests.compiled.inputs(inputs)
        with self._slots, requests.lend() as request:
            try:
                request.start_async(by_port, share_inputs=True)
                request.wait()
            except RuntimeError as error:
                found = ", ".join(f"{name} {array.dtype} {array.shape}" for name, array in inputs.items())
                what = f"The network refused the image: {_last_line(error)}"
                raise ImageError(what, stage="infer", found=found) from error
            yield requests.compiled.outputs(request)

    def _requests_for(self, inputs: Arrays) -> _Requests:
        """Return the requests of the image's size; start to compile a network for a size that has come often."""
        if not self._max_sizes:
            return self._any_size
        _, height, width, _ = inputs[self._image_name].shape
        size_hw = (height, width)
        with self._lock:
            self._images_of_size[size_hw] += 1
            if self._images_of_size[size_hw] != _IMAGES_BEFORE_FIXED_SHAPE or self._max_sizes == len(self._by_size):
                return self._by_size.get(size_hw, self._any_size)
            self._by_size[size_hw] = self._any_size  # Reserves the slot while the network compiles.
        threading.Thread(target=self._compile_fixed, args=(size_hw,), name="compile").start()
        return self._any_size

    def _compile_fixed(self, size_hw: tuple[int, int]) -> None:
        with suppress(ModelError):  # The network for any size then serves this size too.
            self._by_size[size_hw] = _Requests(self._compile_for(size_hw))


@dataclass(frozen=True)
class FakeEngine:
    """An engine over a function, for tests. Outputs are overwritten when the `with` ends, as device buffers may be."""

    function: Callable[[Arrays], Arrays]
    requests: int = 2
    facts: Mapping[str, str] = field(default_factory=lambda: {"device": "FAKE", "precision": "f32"})
    delay_s: float = 0.0
    size_hw: tuple[int, int] | None = None
    softmax_outputs: frozenset[str] = frozenset()

    @contextmanager
    def infer(self, inputs: Arrays) -> Iterator[Arrays]:
        time.sleep(self.delay_s)
        outputs = {name: np.array(array, order="C") for name, array in self.function(inputs).items()}
        try:
            yield outputs
        finally:
            for array in outputs.values():
                array.reshape(-1).view(np.uint8).fill(255)
