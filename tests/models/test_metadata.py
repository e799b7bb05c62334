"""metadata.py: entries of model files, and files that were made to do harm."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import model_heads
import pytest
from test_engine import _field

from segray.errors import ModelError
from segray.models import metadata


def test_an_ir_tells_its_model_info_and_not_that_of_its_layers(tmp_path: Path) -> None:
    read = metadata.read(model_heads.ir(tmp_path, {"model_type": "YOLO", "labels": 'a "b" <c> &d'}))
    assert read.model_info == {"model_type": "YOLO", "labels": 'a "b" <c> &d'}
    assert (read.versions, read.folder, read.card) == ({"openvino": "2026.4.1-1"}, None, {})


def test_an_ir_that_was_converted_from_onnx_keeps_its_properties(tmp_path: Path) -> None:
    sections = {"framework": {"task": "segment", "model_info model_type": "MaskRCNN"}}
    read = metadata.read(model_heads.ir(tmp_path, tail=model_heads.rt_info(sections) + "</net>"))
    assert read.props["task"] == "segment"
    assert read.model_info == {"model_type": "MaskRCNN"}


def test_the_end_of_a_large_ir_is_enough(tmp_path: Path) -> None:
    xml = model_heads.ir(tmp_path, {"model_type": "YOLO"})
    text = xml.read_bytes()
    with xml.open("wb") as file:
        file.write(b"<net>")
        file.truncate(2**32)  # A hole: the disk holds nothing of it.
        file.seek(2**32)
        file.write(text[text.index(b"<edges>") :])
    assert metadata.read(xml).model_info == {"model_type": "YOLO"}


def test_an_onnx_file_tells_its_properties(tmp_path: Path) -> None:
    props = {"task": "segment", "names": "{0: 'größe'}", "model_info model_type": "MaskRCNN"}
    read = metadata.read(model_heads.onnx(tmp_path, props, graph=b"\x00" * 100_000))
    assert (read.props, read.versions) == (props, {"pytorch": "2.14.1"})
    assert read.model_info == {"model_type": "MaskRCNN"}


def test_other_models_have_a_card_only(tmp_path: Path) -> None:
    (tmp_path / "segray.json").write_text('{"contract": "a"}')
    (tmp_path / "metadata.yaml").write_text("- no mapping")
    for name in ("graph.pb", "absent.xml"):
        assert metadata.read(tmp_path / name) == metadata.Metadata(tmp_path / name, card={"contract": "a"})


# ---- harm -----------------------------------------------------------------------------------------

_BOMB = '<!DOCTYPE b [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
_LEVELS = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 12))
HARMFUL_TAILS = {
    "cut": "<rt_info><model_info><a value='",
    "not closed": "<rt_info><model_info><a value='b'/>",
    "two roots": "<rt_info/></net><net/>",
    "bomb": _BOMB + "<rt_info><model_info><a value='&b;'/></model_info></rt_info></net>",
    "entity": "<rt_info><model_info><a value='&file;'/></model_info></rt_info></net>",
    "deep": "<a>" * 100_000,
    "long": f"<rt_info><model_info><a value='{'x' * 5_000_000}'/></model_info></rt_info></net>",
    "many": "<rt_info>" + "".join(f"<a{i} value=''/>" for i in range(150_000)) + "</rt_info></net>",
    "bytes": "<rt_info><model_info><a value='\udcff\udcfe'/></model_info></rt_info></net>",
    "null": "<rt_info><a value='\x00'/></rt_info></net>",
}
HARMFUL_ONNX = {
    "cut": model_heads.onnx_bytes({"a": "b" * 99})[:-50],
    "text": b"this is no protobuf",
    "two gigabytes": b"\x72\xff\xff\xff\xff\x07" + b"\x0a",
    "no end": b"\x72" + b"\xff" * 20,
    "group": b"\x0b\x0c",
    "field 0": b"\x02\x00",
    "many": b"\x08\x01" * 200_000,
    "long": model_heads.onnx_bytes({"names": "x" * 2_000_000}),
    "bytes": _field(14, _field(1, b"\xff\xfe")),
    "inside": _field(14, b"\x0a\x7f"),
}
HARMFUL_YAML = {
    "aliases": "l0: &l0 lol\n" + _LEVELS,
    "anchor": "a: &a {b: *a}",
    "deep": "[" * 100_000,
    "deep block": "".join(" " * i + "a:\n" for i in range(200)),
    "long": "a: " + "b" * 2_000_000,
    "many": "[" + "1," * 150_000 + "]",
    "list": "- a",
    "nothing": "",
    "object": "a: !!python/object/apply:os.system [ls]",
    "tab": "a:\n\t- b",
    "null": "a: \x00",
    "digits": "a: 0x" + "f" * 6000,
    "sixties": "a: 1" + ":59" * 100_000,
    "date": "a: 2026-13-45",
    "two": "a: 1\n---\nb: 2",
    "unhashable": "? [a]\n: b",
}


@pytest.mark.parametrize("name", HARMFUL_TAILS)
def test_a_harmful_ir_is_refused_at_once(tmp_path: Path, name: str) -> None:
    refused(model_heads.ir(tmp_path, tail=HARMFUL_TAILS[name]))


@pytest.mark.parametrize("name", HARMFUL_ONNX)
def test_a_harmful_onnx_file_is_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.onnx").write_bytes(HARMFUL_ONNX[name])
    refused(tmp_path / "model.onnx")


@pytest.mark.parametrize("name", HARMFUL_YAML)
def test_a_harmful_metadata_yaml_is_refused_at_once(tmp_path: Path, name: str) -> None:
    refused(model_heads.ir(tmp_path, {"model_type": "YOLO"}, metadata=HARMFUL_YAML[name]))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"a": "' + b"x" * 2_000_000 + b'"}'])
def test_a_harmful_card_is_refused_at_once(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "segray.json").write_bytes(content)
    refused(model_heads.ir(tmp_path))


def refused(path: Path) -> ModelError:
    begin_s = time.monotonic()
    with pytest.raises(ModelError) as caught:
        metadata.read(path)
    assert time.monotonic() - begin_s < 5
    error = caught.value
    assert str(path.parent) in error.where
    assert error.found
    assert len(str(error)) < 1000
    assert error.hint
    return error


def test_a_file_without_an_end_of_edges_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.xml").write_text("<net><layers/></net>")
    refused(tmp_path / "model.xml")
    (tmp_path / "model.xml").write_text("<net><layers/><edges /><rt_info/></net>")
    assert metadata.read(tmp_path / "model.xml").model_info == {}


@pytest.mark.parametrize("name", ["metadata.yaml", "segray.json"])
@pytest.mark.parametrize(
    ("target", "found"), [("/dev/zero", "a device"), ("/", "a folder"), ("absent", "a broken link to absent")]
)
def test_a_device_a_folder_or_a_broken_link_in_place_of_metadata_is_refused(
    tmp_path: Path, name: str, target: str, found: str
) -> None:
    (tmp_path / name).symlink_to(target)
    assert refused(model_heads.ir(tmp_path)).found == found


def test_a_pipe_in_place_of_metadata_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metadata.yaml")
    assert refused(model_heads.ir(tmp_path)).found == "a named pipe"


# ---- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{0: 'person', 1: \"it's\"}", {0: "person", 1: "it's"}),
        ("[320, 416]", [320, 416]),
        (" (1, -2.5e3, None, True, False,) ", (1, -2500.0, None, True, False)),
        ("'{[('", "{[("),
        (r"{'a': 'b\'c\\', 'd': {}}", {"a": "b'c\\", "d": {}}),
        ("[]", []),
    ],
)
def test_python_literals_are_read(text: str, value: Any) -> None:
    assert metadata.literal(text, "here") == value


@pytest.mark.parametrize(
    "text",
    [
        "", "segment", "{0: 'person'", "__import__('os')", "[1 for a in b]", "1 + 1", "-" * 100_000 + "1",
        "(" * 100_000, "[" * 150 + "]" * 150, "9" * 10_000, "'a' * 10**9", "f'{a}'", "{[]: 1}", "'\\x'",
        "[" + "1," * 600_000 + "]", "\x00", "'\\N{no such name}'", "1__0", "0777", "{0: 'a',, }",
    ],
)  # fmt: skip
def test_other_texts_are_no_literals(text: str) -> None:
    begin_s = time.monotonic()
    with pytest.raises(ModelError, match="no Python literal") as caught:
        metadata.literal(text, "here")
    assert time.monotonic() - begin_s < 5
    assert (caught.value.where, len(caught.value.found) < 200) == ("here", True)


@pytest.mark.parametrize("value", ["nan", "inf", "-1", "2", "x", None, True, [1], "1" * 5000, 10**400])
def test_values_outside_their_limits_are_no_numbers(value: object) -> None:
    with pytest.raises(ModelError, match="no number from 0 to 1"):
        metadata.number(value, "here", low=0, high=1)


def test_numbers_are_read_from_texts() -> None:
    assert metadata.number(" 0.5 ", "here") == 0.5
    assert metadata.whole_number("32.0", "here") == 32
    with pytest.raises(ModelError, match="no whole number"):
        metadata.whole_number("32.5", "here")
    with pytest.raises(ModelError, match="no JSON"):
        metadata.json_value("[" * 100_000, "here")
    assert metadata.json_value(json.dumps({"a": [1]}), "here") == {"a": [1]}
