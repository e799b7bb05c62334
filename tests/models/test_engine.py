"""runtime.py on tiny hand-made models: files, names, embedded conversion, precision, and the lending of requests."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from numpy.typing import NDArray
from openvino import opset13 as op

from segray.errors import ConfigError, ImageError, ModelError
from segray.execution import model_files
from segray.models import engine as runtime
from segray.models import resolve
from segray.models.adapters.adapter import ImageInput, ModelFormat
from segray.models.engine import DeviceSettings, FakeEngine, available_cpus

SIZE_HW = (6, 5)
F32 = DeviceSettings(threads=2, precision="f32")
MEAN, SCALE = (123.675, 116.78, 103.94), (58.395, 57.12, 57.375)


def form(**image: Any) -> ModelFormat:
    described = {"name": "input.1", "size_hw": SIZE_HW, "layout": "NCHW", "colour": "RGB", "mean": None, "scale": None}
    return ModelFormat(name="converted", image=ImageInput(**(described | image)), outputs=("pixels", "doubled"))


def named(node: Any, *names: str) -> Any:
    node.output(0).tensor.set_names(set(names))
    return node


def echo(
    folder: Path,
    shape: tuple[int, ...] = (1, 3, *SIZE_HW),
    dtype: Any = np.float32,
    input_name: str = "input.1",
    suffix: str = "",
    second_input: bool = False,
) -> Path:
    """A model that gives back what reaches it after the embedded conversion, doubles it, and has one output more."""
    x = named(op.parameter(ov.PartialShape(list(shape)), dtype, name="x"), input_name)
    as_float = op.convert(x, np.float32)
    unread = named(op.negative(as_float), "unread")
    doubled = named(op.multiply(as_float, np.float32(2)), f"doubled{suffix}", "Mul_7")
    pixels = named(op.add(as_float, np.float32(0)), "Add_3", f"pixels{suffix}")
    parameters = [x]
    if second_input:
        info = named(op.parameter([1, 3], np.float32, name="info"), "image_info")
        parameters.append(info)
        doubled = named(op.multiply(pixels, op.reduce_sum(info, 1)), f"doubled{suffix}")
    xml = folder / "echo.xml"
    ov.save_model(ov.Model([op.result(o) for o in (unread, doubled, pixels)], parameters, "echo"), xml)
    return xml


def picture(seed: int = 0, size_hw: tuple[int, int] = SIZE_HW) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (1, *size_hw, 3), dtype=np.uint8)


def run(engine: runtime.Engine, image: NDArray[np.uint8], name: str = "input.1") -> dict[str, NDArray[Any]]:
    with engine.infer({name: image}) as outputs:
        return {key: value.copy() for key, value in outputs.items()}


# ---- files ----------------------------------------------------------------------------------------


def test_a_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    echo(tmp_path)
    for absent in (tmp_path / "ecko.xml", tmp_path / "no" / "such" / "folder.xml"):
        with pytest.raises(ModelError, match=rf"does not exist[\s\S]*in {tmp_path}: .*echo\.xml"):
            runtime.read(absent)


def test_an_ir_without_its_weights(tmp_path: Path) -> None:
    echo(tmp_path).with_suffix(".bin").unlink()
    with pytest.raises(ModelError, match=r"weights beside the \.xml[\s\S]*echo\.bin"):
        runtime.read(tmp_path / "echo.xml")


def test_an_old_ir_says_its_version(tmp_path: Path) -> None:
    xml = echo(tmp_path)
    xml.write_text(xml.read_text().replace('version="11"', 'version="5"', 1))
    with pytest.raises(ModelError, match=r"OpenVINO no longer reads IR v5"):
        runtime.model_files(xml)


@pytest.mark.parametrize("content", ["", "<net", "<net version='x'/>", "<html/>", "not xml"])
def test_an_xml_that_is_no_ir(tmp_path: Path, content: str) -> None:
    xml = echo(tmp_path)
    xml.write_text(content)
    with pytest.raises(ModelError, match="not an OpenVINO IR"):
        runtime.read(xml)


def test_truncated_weights(tmp_path: Path) -> None:
    xml = echo(tmp_path)
    xml.with_suffix(".bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"cannot read the model[\s\S]*weights"):
        runtime.read(xml)


def test_other_files_and_plain_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"suffix '\.pth'"):
        runtime.read(tmp_path / "model.pth")
    with pytest.raises(ModelError, match=r"no SavedModel[\s\S]*model\.pth"):
        runtime.read(tmp_path)


def test_what_a_model_consists_of(tmp_path: Path) -> None:
    xml = echo(tmp_path)
    assert runtime.model_files(xml) == (xml, tmp_path / "echo.bin")
    saved = tmp_path / "saved"
    (saved / "variables").mkdir(parents=True)
    expected = (saved / "saved_model.pb", saved / "variables" / "variables.index")
    for file in expected:
        file.write_bytes(b"x")
    assert runtime.model_files(saved) == runtime.model_files(expected[0]) == expected


@pytest.mark.parametrize("end", ["_data", ".data"])
def test_the_weights_beside_an_onnx_belong_to_the_model(tmp_path: Path, end: str) -> None:
    """PyTorch and transformers write them so. Equal graphs with other weights are other models."""
    onnx, weights = tmp_path / "m.onnx", tmp_path / f"m.onnx{end}"
    onnx.write_bytes(b"graph")
    assert runtime.model_files(onnx) == (onnx,)
    weights.write_bytes(b"weights")
    assert runtime.model_files(onnx) == (onnx, weights)
    offered = model_files.offer(str(onnx), "fingerprint", lambda piece: piece)
    assert {file.name: file.pieces for file in offered.files} == {"m.onnx": (b"graph",), weights.name: (b"weights",)}


# The smallest protobuf writer that can make a graph: field number, then a varint, text, or nested message.


def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    head = []
    while value > 0x7F:
        head.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*head, value])


def _field(number: int, value: int | str | bytes) -> bytes:
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


TF_FLOAT, TF_UINT8 = 1, 4
TF_SHAPE = b"".join(_field(2, _field(1, side)) for side in (-1, -1, -1, 3))


def _attribute(key: str, value: bytes) -> bytes:
    return _field(5, _field(1, key) + _field(2, value))


def _tf_graph() -> bytes:
    image = _field(1, "image_tensor") + _field(2, "Placeholder")
    image += _attribute("dtype", _field(6, TF_UINT8)) + _attribute("shape", _field(7, TF_SHAPE))
    cast = _field(1, "pixels") + _field(2, "Cast") + _field(3, "image_tensor")
    cast += _attribute("SrcT", _field(6, TF_UINT8)) + _attribute("DstT", _field(6, TF_FLOAT))
    return _field(1, image) + _field(1, cast)


def _tensor_info(name: str, dtype: int) -> bytes:
    return _field(1, name) + _field(2, dtype) + _field(3, TF_SHAPE)


def _tf_saved_model() -> bytes:
    inputs = _field(1, "inputs") + _field(2, _tensor_info("image_tensor:0", TF_UINT8))
    outputs = _field(1, "pixels") + _field(2, _tensor_info("pixels:0", TF_FLOAT))
    served = _field(1, inputs) + _field(2, outputs) + _field(3, "tensorflow/serving/predict")
    signature = _field(5, _field(1, "serving_default") + _field(2, served))
    return _field(1, 1) + _field(2, _field(1, _field(4, "serve")) + _field(2, _tf_graph()) + signature)


def _onnx() -> bytes:
    shape = _field(2, b"".join(_field(1, _field(1, side)) for side in (1, 3, *SIZE_HW)))
    tensor_type = _field(2, _field(1, _field(1, 1) + shape))
    node = _field(1, "input.1") + _field(2, "pixels") + _field(4, "Relu")
    graph = _field(1, node) + _field(2, "g") + _field(11, _field(1, "input.1") + tensor_type)
    return _field(1, 8) + _field(7, graph + _field(12, _field(1, "pixels") + tensor_type)) + _field(8, _field(2, 13))


@pytest.mark.parametrize(
    ("file", "content", "image"),
    [
        ("frozen_inference_graph.pb", _tf_graph(), {"name": "image_tensor", "layout": "NHWC", "size_hw": None}),
        ("saved/saved_model.pb", _tf_saved_model(), {"name": "input_tensor", "layout": "NHWC", "size_hw": None}),
        ("model.onnx", _onnx(), {}),
    ],
)
def test_frozen_graph_saved_model_and_onnx_run(
    tmp_path: Path, file: str, content: bytes, image: dict[str, Any]
) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    wanted = ModelFormat(name="original", image=form(**image).image, outputs=("pixels",))
    sent = picture()
    received = run(runtime.compile(path, wanted, F32), sent, wanted.image.name)["pixels"]
    expected = sent if wanted.image.layout == "NHWC" else sent.transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(received, expected.astype(np.float32))


# ---- names and shapes -----------------------------------------------------------------------------


def test_signature_strips_the_port_number_and_marks_open_dimensions(tmp_path: Path) -> None:
    found = runtime.signature(echo(tmp_path, (-1, -1, 5, 3), np.uint8, "image_tensor:0", ":0"))
    assert found.inputs == (runtime.ModelPort(("image_tensor",), "u8", (None, None, 5, 3)),)
    assert {port.names for port in found.outputs} == {("unread",), ("Mul_7", "doubled"), ("Add_3", "pixels")}


def test_another_models_outputs_are_refused_with_both_lists(tmp_path: Path) -> None:
    wanted = ModelFormat(name="original", image=form().image, outputs=("pixels", "detection_masks"))
    with pytest.raises(ModelError, match=r"outputs detection_masks are missing[\s\S]*Add_3\|pixels[\s\S]*expected"):
        runtime.compile(echo(tmp_path), wanted, F32)


def test_another_image_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"another shape[\s\S]*\[1, 3, 6, 5\][\s\S]*\(550, 550\)"):
        runtime.check(runtime.signature(echo(tmp_path)), form(size_hw=(550, 550)))


def test_a_form_that_allows_it_takes_the_size_of_the_file(tmp_path: Path) -> None:
    for wanted in (form(size_hw=(550, 550), resizable=True), form(size_hw=None)):
        engine = runtime.compile(echo(tmp_path), wanted, F32)
        assert engine.size_hw == SIZE_HW
        np.testing.assert_array_equal(run(engine, picture())["pixels"], picture().transpose(0, 3, 1, 2))
    open_file = echo(tmp_path, (-1, 3, -1, -1))
    assert runtime.compile(open_file, form(size_hw=(8, 9), resizable=True), F32).size_hw == (8, 9)
    assert runtime.compile(open_file, form(size_hw=None), F32).size_hw is None


def test_the_image_is_found_by_name_among_several_inputs(tmp_path: Path) -> None:
    xml = echo(tmp_path, input_name="image_tensor:0", second_input=True)
    with pytest.raises(ModelError, match=r"no input 'input\.1'[\s\S]*image_info"):
        runtime.check(runtime.signature(xml), form())
    engine = runtime.compile(xml, form(name="image_tensor"), F32)
    info = np.array([[1, 2, 3]], np.float32)
    with engine.infer({"image_info": info, "image_tensor": picture()}) as outputs:
        np.testing.assert_array_equal(outputs["doubled"], outputs["pixels"] * 6)


def test_the_name_of_an_only_input_does_not_matter(tmp_path: Path) -> None:
    sent = picture()
    received = run(runtime.compile(echo(tmp_path, input_name="x"), form(), F32), sent)
    np.testing.assert_array_equal(received["pixels"], sent.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("suffix", ["", ":0"])
def test_outputs_come_by_name_and_the_unread_one_is_gone(tmp_path: Path, suffix: str) -> None:
    sent = picture()
    received = run(runtime.compile(echo(tmp_path, suffix=suffix), form(), F32), sent)
    assert set(received) == {"pixels", "doubled"}
    np.testing.assert_array_equal(received["doubled"], sent.transpose(0, 3, 1, 2) * np.float32(2))


def test_unread_outputs_are_removed_from_the_graph(tmp_path: Path) -> None:
    model = runtime.read(echo(tmp_path))
    runtime._keep_outputs(model, ("pixels",))
    assert [port.get_names() for port in model.outputs] == [{"Add_3", "pixels"}]


# ---- embedded conversion --------------------------------------------------------------------------


SHAPES = ((1, 3, *SIZE_HW), (-1, 3, -1, -1), (1, *SIZE_HW, 3), (-1, -1, -1, 3))
NUMBERS = ((np.uint8, None, None), (np.float32, None, None), (np.float32, MEAN, SCALE), (np.float32, MEAN, None))


def conversions() -> list[Any]:
    """All combinations. Each two values meet in those that are not thorough."""
    return [
        pytest.param(shape, *numbers, colour, marks=[pytest.mark.thorough] if (i + j + k) % 2 else [])
        for i, shape in enumerate(SHAPES)
        for j, numbers in enumerate(NUMBERS)
        for k, colour in enumerate(("RGB", "BGR"))
    ]


@pytest.mark.parametrize(("shape", "dtype", "mean", "scale", "colour"), conversions())
def test_the_graph_receives_what_the_form_says(
    tmp_path: Path, shape: tuple[int, ...], dtype: Any, mean: Any, scale: Any, colour: str
) -> None:
    layout = "NHWC" if shape[-1] == 3 else "NCHW"
    wanted = form(colour=colour, layout=layout, mean=mean, scale=scale)
    sent = picture()
    received = run(runtime.compile(echo(tmp_path, shape, dtype), wanted, F32), sent)["pixels"]

    expected = sent.astype(np.float32)[..., :: -1 if colour == "BGR" else 1]
    expected = (expected - np.float32(mean or 0)) / np.float32(scale or 1)
    np.testing.assert_allclose(received, expected if layout == "NHWC" else expected.transpose(0, 3, 1, 2), atol=1e-5)

    stored = runtime.inputs_of_stored_graph(runtime.read(tmp_path / "echo.xml"), wanted, {"input.1": sent})
    np.testing.assert_allclose(stored[0], received, atol=1e-5)
    assert (stored[0].dtype, stored[0].flags.c_contiguous) == (dtype, True)


def _convolution(folder: Path) -> tuple[Path, ov.Model]:
    """A 7x7 convolution of 3 to 16 channels as an IR, and the same behind a u8 NHWC input, made by hand."""
    weights = np.random.default_rng(5).normal(0, 1, (16, 3, 7, 7)).astype(np.float32)

    def convolved(image: Any) -> Any:
        return named(op.convolution(image, weights, [2, 2], [3, 3], [3, 3], [1, 1]), "pixels", "doubled")

    stored = named(op.parameter([1, 3, 80, 136], np.float32, name="x"), "input.1")
    ov.save_model(ov.Model([op.result(convolved(stored))], [stored], "c"), folder / "c.xml", compress_to_fp16=False)
    pixels = op.parameter([1, 80, 136, 3], np.uint8, name="x")
    nchw = op.transpose(op.convert(pixels, np.float32), np.array([0, 3, 1, 2]))
    return folder / "c.xml", ov.Model([op.result(convolved(nchw))], [pixels], "by hand")


@pytest.mark.parametrize("precision", ["f32", "bf16"])
@pytest.mark.parametrize("colour", ["RGB", "BGR"])
def test_a_convolution_adds_the_channels_in_the_models_own_order(tmp_path: Path, colour: str, precision: str) -> None:
    """A swap inside the graph becomes part of the convolution, which then adds blue, green and red in another order."""
    if precision not in runtime.precisions():
        pytest.skip(f"this CPU does not compute in {precision}")
    xml, by_hand = _convolution(tmp_path)
    sent = picture(size_hw=(80, 136))
    settings = DeviceSettings(threads=2, precision=precision)
    engine = runtime.compile(xml, form(colour=colour, size_hw=(80, 136)), settings)
    received = run(engine, sent)["pixels"]
    reference = ov.Core().compile_model(by_hand, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    swapped = np.ascontiguousarray(sent[..., ::-1] if colour == "BGR" else sent)
    np.testing.assert_array_equal(received, reference(swapped)[0])


def test_inputs_are_stored_in_the_models_own_order(tmp_path: Path) -> None:
    graph, info = runtime.read(echo(tmp_path, second_input=True)), np.ones((1, 3), np.float32)
    stored = runtime.inputs_of_stored_graph(graph, form(), {"image_info": info, "input.1": picture()})
    assert [array.shape for array in stored] == [(1, 3, *SIZE_HW), (1, 3)]


def test_the_shape_decides_the_layout_where_it_can(tmp_path: Path) -> None:
    sent = picture()
    received = run(runtime.compile(echo(tmp_path, (1, *SIZE_HW, 3)), form(layout="NCHW"), F32), sent)
    np.testing.assert_array_equal(received["pixels"], sent)


def test_any_size_goes_into_a_model_of_any_size(tmp_path: Path) -> None:
    engine = runtime.compile(echo(tmp_path, (-1, -1, -1, 3), np.uint8), form(size_hw=None, layout="NHWC"), F32)
    for size_hw in ((4, 7), (9, 2)):
        sent = picture(size_hw=size_hw)
        np.testing.assert_array_equal(run(engine, sent)["pixels"], sent)


# ---- devices --------------------------------------------------------------------------------------


def test_facts_tell_what_took_effect(tmp_path: Path) -> None:
    xml = echo(tmp_path)
    facts = runtime.compile(xml, form(), DeviceSettings(threads=1, precision="f32")).facts
    assert facts["precision"] == "f32"
    assert facts["device"] == "CPU"
    assert facts["threads"] == facts["streams"] == "1"
    assert facts["device_name"]
    assert facts["openvino"] == ov.__version__


def test_bf16_is_recorded_or_refused(tmp_path: Path) -> None:
    settings = DeviceSettings(threads=1, precision="bf16")
    if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert runtime.compile(echo(tmp_path), form(), settings).facts["precision"] == "bf16"
    else:
        with pytest.raises(ModelError, match="cannot compute in bf16"):
            runtime.compile(echo(tmp_path), form(), settings)


def quantised(folder: Path) -> Path:
    """The echo, rounded to int8 on its way: as NNCF marks the inputs of the layers that it quantises."""
    model = runtime.read(echo(folder))
    image = next(node for node in model.get_ops() if node.get_type_name() == "Parameter")
    readers = image.output(0).get_target_inputs()
    rounded = op.fake_quantize(image, *map(np.float32, (0, 255, 0, 255)), levels=256)
    for reader in readers:
        reader.replace_source_output(rounded.output(0))
    xml = folder / "quantised.xml"
    ov.save_model(model, xml)
    return xml


def test_a_quantised_model_says_what_its_floats_compute_in(tmp_path: Path) -> None:
    xml = quantised(tmp_path)
    engines = {
        name: runtime.compile(xml, form(), DeviceSettings(threads=1, precision=name)) for name in ("int8", "auto")
    }
    assert engines["int8"].facts["precision"] == "int8+f32"
    assert engines["auto"].facts["precision"] in ("int8+f32", "int8+bf16", "int8+f16")


@pytest.mark.parametrize("precision", ["f32", "bf16", "f16"])
def test_a_quantised_model_cannot_compute_in_floats(precision: str) -> None:
    found = runtime.Signature((), (), quantised=True)
    with pytest.raises(ConfigError, match=r"is quantised[\s\S]*a\.xml[\s\S]*int8 or auto"):
        runtime.check_precision(found, precision, "a.xml")


def test_int8_of_a_float_model_names_the_command_that_makes_it(tmp_path: Path) -> None:
    xml = echo(tmp_path)
    with pytest.raises(ConfigError, match=rf"not quantised[\s\S]*segray models quantize {xml} --images"):
        runtime.compile(xml, form(), DeviceSettings(threads=1, precision="int8"))
    for precision in ("auto", "f32", "bf16", "f16"):
        runtime.check_precision(runtime.signature(xml), precision)


@pytest.mark.integration
def test_a_precision_the_cpu_lacks_is_refused(tmp_path: Path) -> None:
    # Capped to AVX2, no CPU has f16 arithmetic; OpenVINO alone would silently take another precision.
    code = (
        "from test_engine import *\n"
        f"xml = echo(Path({str(tmp_path)!r}))\n"
        "try: runtime.compile(xml, form(), DeviceSettings(threads=1, precision='f16'))\n"
        "except ModelError as error: print(error)\n"
    )
    folders = os.pathsep.join([str(Path(__file__).parents[1] / "support"), *sys.path])
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "PYTHONPATH": folders}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "cannot compute in f16" in done.stdout
    assert "f32" in done.stdout


@pytest.mark.parametrize(
    ("device", "says"),
    [("CUDA", "NVIDIA"), ("GPU.7", "NVIDIA"), ("TPU", "Set .device. in .workers. to CPU"), ("AUTO", "CPU")],
)
def test_a_device_that_is_not_there(tmp_path: Path, device: str, says: str) -> None:
    with pytest.raises(ModelError, match=rf"no device '{device}'[\s\S]*devices [\s\S]*{says}"):
        runtime.compile(echo(tmp_path), form(), DeviceSettings(device=device))


def test_a_cache_folder_is_used(tmp_path: Path) -> None:
    settings = DeviceSettings(threads=1, precision="f32", cache_dir=str(tmp_path / "cache"))
    runtime.compile(echo(tmp_path), form(), settings)
    assert any((tmp_path / "cache").glob("*.blob"))


def test_a_cache_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    settings = DeviceSettings(threads=1, precision="f32", cache_dir=str(tmp_path / "file" / "cache"))
    with pytest.raises(ModelError, match=r"cache_dir"):
        runtime.compile(echo(tmp_path), form(), settings)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "99900000 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "20000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        ({"cpu.max": "150000 100000\n"}, 2),
    ],
)
def test_cpus_are_what_affinity_and_quota_leave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int | None
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert available_cpus(tmp_path) == (expected or 8)


# ---- lending --------------------------------------------------------------------------------------


def test_many_threads_each_get_their_own_answer(tmp_path: Path) -> None:
    engine = runtime.compile(echo(tmp_path), form(colour="BGR"), F32)

    def one(seed: int) -> bool:
        sent = picture(seed)
        with engine.infer({"input.1": sent}) as outputs:
            expected = sent[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32)
            return np.array_equal(outputs["pixels"], expected) and np.array_equal(outputs["doubled"], 2 * expected)

    with ThreadPoolExecutor(4 * engine.requests) as threads:
        assert all(threads.map(one, range(500)))


def test_outputs_are_views_not_copies(tmp_path: Path) -> None:
    engine = runtime.compile(echo(tmp_path), form(), F32)
    with engine.infer({"input.1": picture()}) as outputs:
        assert not any(array.flags.owndata for array in outputs.values())


@pytest.mark.parametrize(
    ("axis", "has_layer_behind", "names"),
    [(-1, False, {"pixels"}), (2, False, {"pixels"}), (1, False, set()), (-1, True, set())],
    ids=["last", "last_counted", "another_axis", "not_the_end"],
)
@pytest.mark.parametrize("suffix", ["", ":0"])
def test_outputs_that_a_softmax_makes_are_known(
    tmp_path: Path, axis: int, has_layer_behind: bool, names: set[str], suffix: str
) -> None:
    image = op.parameter([1, 3, *SIZE_HW], np.float32, name="input.1")
    values = op.reshape(image, op.constant(np.array([1, -1, 3])), False)
    scores = op.softmax(values, axis)
    last = op.multiply(scores, np.float32(0.5)) if has_layer_behind else scores
    outputs = [named(op.relu(values), f"doubled{suffix}"), named(last, f"pixels{suffix}")]
    ov.save_model(ov.Model([op.result(output) for output in outputs], [image]), tmp_path / "softmax.xml")
    assert runtime.compile(tmp_path / "softmax.xml", form(), F32).softmax_outputs == names


def test_the_embedded_model_ends_in_a_softmax() -> None:
    model = resolve.resolve("stickers")
    assert runtime.compile(model.path, model.form, F32).softmax_outputs == {"conf"}


def test_sizes_that_come_often_get_networks_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, sizes = runtime.compile_network, []

    def spied(path: Path, form: ModelFormat, settings: DeviceSettings, size_hw: tuple[int, int] | None = None) -> Any:
        sizes.append(size_hw)
        made = compiled(path, form, settings, size_hw)
        assert made.size_hw == size_hw
        return made

    monkeypatch.setattr(runtime, "compile_network", spied)
    settings = DeviceSettings(threads=2, precision="f32", fixed_shapes=2)
    engine = runtime.compile(echo(tmp_path, (1, 3, -1, -1)), form(size_hw=None), settings)
    assert engine.size_hw is None
    for _ in range(20):
        infer_all(engine, (6, 5), (9, 4), (3, 3))
    await_compiling()
    infer_all(engine, (6, 5), (9, 4), (3, 3))
    assert sorted(sizes[1:]) == [(6, 5), (9, 4)]


def infer_all(engine: runtime.Engine, *sizes_hw: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for size_hw in sizes_hw:
        image = rng.integers(0, 256, (1, *size_hw, 3), np.uint8)
        with engine.infer({"input.1": image}) as outputs:
            np.testing.assert_array_equal(outputs["pixels"], image.transpose(0, 3, 1, 2))


def await_compiling() -> None:
    for thread in threading.enumerate():
        if thread.name == "compile":
            thread.join(60)


def test_a_size_that_cannot_be_fixed_goes_on_as_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled, refused = runtime.compile_network, []

    def refusing(
        path: Path, form: ModelFormat, settings: DeviceSettings, size_hw: tuple[int, int] | None = None
    ) -> Any:
        if size_hw is not None:
            refused.append(size_hw)
            raise ModelError("no such shape")
        return compiled(path, form, settings)

    monkeypatch.setattr(runtime, "compile_network", refusing)
    settings = DeviceSettings(threads=2, precision="f32", fixed_shapes=2)
    engine = runtime.compile(echo(tmp_path, (1, 3, -1, -1)), form(size_hw=None), settings)
    for _ in range(20):
        infer_all(engine, (6, 5))
    await_compiling()
    infer_all(engine, (6, 5))
    assert refused == [(6, 5)]


def test_all_requests_can_be_lent_at_once_and_the_next_caller_waits(tmp_path: Path) -> None:
    engine = runtime.compile(echo(tmp_path), form(), F32)
    assert engine.requests >= 2
    lent = [engine.infer({"input.1": picture(seed)}) for seed in range(engine.requests)]
    answers = [lease.__enter__()["pixels"].copy() for lease in lent]
    assert len({answer.tobytes() for answer in answers}) == engine.requests
    late = threading.Thread(target=run, args=(engine, picture()))
    late.start()
    late.join(0.2)
    assert late.is_alive()
    lent[0].__exit__(None, None, None)
    late.join(30)
    assert not late.is_alive()
    for lease in lent[1:]:
        lease.__exit__(None, None, None)


def test_a_refused_image_fails_in_its_thread_and_costs_no_request(tmp_path: Path) -> None:
    engine = runtime.compile(echo(tmp_path), form(), F32)
    for _ in range(engine.requests + 1):
        with (
            pytest.raises(ImageError, match=r"incompatible[\s\S]*uint8 \(1, 7, 5, 3\)") as caught,
            engine.infer({"input.1": picture(size_hw=(7, 5))}),
        ):
            pass
        assert caught.value.stage == "infer"
    sent = picture()
    np.testing.assert_array_equal(run(engine, sent)["pixels"], sent.transpose(0, 3, 1, 2))


def test_an_error_while_decoding_costs_no_request(tmp_path: Path) -> None:
    engine = runtime.compile(echo(tmp_path), form(), F32)
    for _ in range(engine.requests + 1):
        with pytest.raises(ZeroDivisionError), engine.infer({"input.1": picture()}):
            raise ZeroDivisionError
    run(engine, picture())


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"input.1": picture()},
        {"input.1": picture(), "image_info": np.zeros((1, 3), np.float32), "more": picture()},
        {"input.1": picture() / 255, "image_info": np.zeros((1, 3), np.float32)},
    ],
)
def test_inputs_the_model_does_not_take_are_never_run(tmp_path: Path, inputs: dict[str, NDArray[Any]]) -> None:
    engine = runtime.compile(echo(tmp_path, second_input=True), form(), F32)
    with pytest.raises(ModelError, match=r"other inputs[\s\S]*image_info float32"), engine.infer(inputs):
        pass


@pytest.mark.parametrize("colour", ["RGB", "BGR"])
def test_images_that_are_not_contiguous_or_not_writeable(tmp_path: Path, colour: str) -> None:
    engine = runtime.compile(echo(tmp_path), form(colour=colour), F32)
    frozen = picture()
    frozen.flags.writeable = False
    for sent in (picture()[:, ::-1, ::-1], frozen):
        expected = sent[..., :: -1 if colour == "BGR" else 1]
        np.testing.assert_array_equal(run(engine, sent)["pixels"], expected.transpose(0, 3, 1, 2))
        np.testing.assert_array_equal(frozen, picture())


def test_the_fake_spoils_its_outputs_when_the_lease_ends() -> None:
    source = np.arange(4, dtype=np.float32)
    engine: runtime.Engine = FakeEngine(lambda inputs: {"out": inputs["in"], "count": np.array([1, 2])})
    with engine.infer({"in": source}) as outputs:
        np.testing.assert_array_equal(outputs["out"], source)
    assert np.isnan(outputs["out"]).all()
    assert (outputs["count"] == -1).all()
    np.testing.assert_array_equal(source, [0, 1, 2, 3])
