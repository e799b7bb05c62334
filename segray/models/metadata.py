"""Metadata: what the authors of a model file wrote beside or into the file.

Reads the end of an IR (`rt_info`), the properties of an ONNX file, metadata.yaml and segray.json beside the model.
Loads no network, and needs neither OpenVINO nor the onnx package. Knows nothing of what the entries mean.

Model files come from anywhere. Each reader limits bytes, depth and number of entries, and raises ModelError.
"""

from __future__ import annotations

import ast
import io
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from xml.parsers import expat

import yaml

from segray.errors import ModelError

METADATA_YAML = "metadata.yaml"
CARD = "segray.json"
CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
# Files beside a model that say more of the model.
BESIDE = (CARD, METADATA_YAML, CONFIG, PROCESSOR)

# Bytes at the end of an IR that hold its rt_info. An int8 model's rt_info names its layers: about 100 kB.
_TAIL_BYTES = 2**24
# Bytes of all entries of a file together. The 4,585 names of a model without prompts take 100 kB.
_MAX_BYTES = 2**20
_MAX_DEPTH = 32
_MAX_ENTRIES = 100_000
# Characters of one value in YAML. Some resolvers of YAML take quadratic time in the length.
_MAX_SCALAR = 4096
# Digits of one number.
_MAX_DIGITS = 400

_HINT = "Export the model again, or copy its files again."

_SAFE_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Metadata:
    """The entries that a model's files hold.

    path: the model file. model_info: entries of rt_info/model_info of an IR, or of ONNX properties that begin with
    "model_info". props: ONNX properties; those that OpenVINO has kept in an IR, too. folder: content of metadata.yaml,
    None if there is no such file. card: content of segray.json, empty if there is no such file.
    where_model_info, where_props: the place of these entries, for people.
    """

    path: Path
    model_info: Mapping[str, str] = field(default_factory=dict)
    props: Mapping[str, str] = field(default_factory=dict)
    folder: Mapping[str, Any] | None = None
    card: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    where_model_info: str = "rt_info"
    where_props: str = "metadata_props"


def read(path: Path) -> Metadata:
    """Return the metadata of the model at `path`; raise ModelError for metadata that cannot be read.

    A frozen graph has only a card.
    """
    card = read_card(path)
    if path.suffix == ".xml" and path.is_file():
        entries = rt_info(path)
        props = {key[1]: value for key, value in entries.items() if key[0] == "framework" and len(key) == 2}
        model_info = {key[1]: value for key, value in entries.items() if key[0] == "model_info" and len(key) == 2}
        versions = {"openvino": entries[("Runtime_version",)]} if ("Runtime_version",) in entries else {}
        where = "rt_info" if model_info else "rt_info, framework"
        return Metadata(
            path,
            model_info or _model_info(props),
            props,
            metadata_yaml(path.parent),
            card,
            versions,
            where_model_info=where,
            where_props="rt_info, framework",
        )
    if path.suffix == ".onnx" and path.is_file():
        props, versions = onnx_properties(path)
        folder = None if "task" in props else metadata_yaml(path.parent)
        return Metadata(path, _model_info(props), props, folder, card, versions, where_model_info="metadata_props")
    return Metadata(path, folder=metadata_yaml(path) if path.is_dir() else None, card=card)


def _model_info(props: Mapping[str, str]) -> dict[str, str]:
    """Return the properties whose names are "model_info" and a key, by that key."""
    return {name.split()[1]: value for name, value in props.items() if re.fullmatch(r"model_info\s+\S+", name)}


# ---- IR -------------------------------------------------------------------------------------------


def rt_info(xml: Path) -> dict[tuple[str, ...], str]:
    """Return the values in the rt_info of the IR at `xml`, by the names on the way to each value.

    Reads the end of the file only. The layers before have an rt_info each, which is not read.
    """
    with xml.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - _TAIL_BYTES, 0))
        tail = file.read(_TAIL_BYTES)
    end = max(tail.rfind(b"</edges>"), *(match.start() for match in re.finditer(rb"<edges\s*/>", tail)), -1)
    if end < 0:
        found = "no </edges> in the file" if size <= _TAIL_BYTES else f"no </edges> in the last {_TAIL_BYTES:,} bytes"
        raise ModelError("The metadata of the IR cannot be found.", where=str(xml), found=found, hint=_HINT)
    rest = tail[tail.index(b">", end) + 1 :]
    if len(rest) > 4 * _MAX_BYTES:
        raise _too_large("rt_info", xml, len(rest))
    return _RtInfo(xml).parse(rest)


class _RtInfo:
    """The elements after an IR's layers, as OpenVINO writes them: names as tags, or as <info name=... value=...>."""

    def __init__(self, xml: Path) -> None:
        self._xml = xml
        self._names: list[str] = []
        self._values: dict[tuple[str, ...], str] = {}

    def parse(self, rest: bytes) -> dict[tuple[str, ...], str]:
        parser = expat.ParserCreate("utf-8")
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        try:
            parser.Parse(b"<net>" + rest, True)
        except expat.ExpatError as error:
            what = "The metadata of the IR is not XML."
            raise ModelError(what, where=f"{self._xml}, rt_info", found=str(error), hint=_HINT) from error
        return self._values

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._names.append(attributes.get("name", tag) if tag == "info" else tag)
        if len(self._names) > _MAX_DEPTH or len(self._values) > _MAX_ENTRIES:
            found = f"more than {_MAX_DEPTH} levels or {_MAX_ENTRIES:,} entries"
            raise ModelError(
                "The metadata of the IR is too deep or too long.", where=str(self._xml), found=found, hint=_HINT
            )
        if self._names[1:2] == ["rt_info"] and "value" in attributes:
            self._values[tuple(self._names[2:])] = attributes["value"]

    def _end(self, _: str) -> None:
        self._names.pop()


# ---- ONNX -----------------------------------------------------------------------------------------

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_PRODUCER, _PRODUCER_VERSION, _GRAPH, _METADATA_PROPS = 2, 3, 7, 14


def onnx_properties(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Return the metadata_props of the ONNX file at `path`, and the version of the program that wrote the file.

    Walks over the fields of the outermost protobuf message. The graph is skipped, not read.
    """
    props: dict[str, str] = {}
    texts = {_PRODUCER: "", _PRODUCER_VERSION: ""}
    total_bytes = 0
    with path.open("rb") as file:
        for number, length in _fields(file, path):
            if number not in (_METADATA_PROPS, *texts):
                file.seek(length, 1)
                continue
            total_bytes += length
            if total_bytes > _MAX_BYTES:
                raise _too_large("metadata_props", path, total_bytes)
            content = file.read(length)
            if number == _METADATA_PROPS:
                key, value = _property(content, path)
                props[key] = value
            else:
                texts[number] = _text(content, path)
    versions = {texts[_PRODUCER]: texts[_PRODUCER_VERSION]} if all(texts.values()) else {}
    return props, versions


def _fields(file: IO[bytes], path: Path) -> Iterator[tuple[int, int]]:
    """Yield the number and length of each field that has bytes; the caller reads or skips those bytes."""
    size = file.seek(0, 2)
    file.seek(0)
    for _ in range(_MAX_ENTRIES):
        if file.tell() == size:
            return
        tag = _varint(file, path)
        kind, length = tag & 7, 0
        if kind == _BYTES:
            length = _varint(file, path)
        elif kind == _VARINT:
            _varint(file, path)
        elif kind in (_FIXED32, _FIXED64):
            length = 4 if kind == _FIXED32 else 8
        if kind not in (_VARINT, _FIXED64, _BYTES, _FIXED32) or not tag >> 3 or file.tell() + length > size:
            raise _no_protobuf(path, f"a field that ends behind the file's {size:,} bytes, or of no known kind")
        yield (tag >> 3 if kind == _BYTES else 0), length
    raise _no_protobuf(path, f"more than {_MAX_ENTRIES:,} fields")


def _varint(file: IO[bytes], path: Path) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise _no_protobuf(path, "a number without an end")


def _property(entry: bytes, path: Path) -> tuple[str, str]:
    """Return the name and the value of one StringStringEntryProto."""
    texts = {1: "", 2: ""}
    stream = io.BytesIO(entry)
    for number, length in _fields(stream, path):
        content = stream.read(length)
        if number in texts:
            texts[number] = _text(content, path)
    return texts[1], texts[2]


def _text(content: bytes, path: Path) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        what = "The metadata of the ONNX file are not UTF-8."
        raise ModelError(what, where=f"{path}, metadata_props", found=str(error), hint=_HINT) from error


def _no_protobuf(path: Path, found: str) -> ModelError:
    return ModelError("The ONNX file is cut or is no ONNX file.", where=str(path), found=found, hint=_HINT)


# ---- files beside the model -----------------------------------------------------------------------


def metadata_yaml(folder: Path) -> Mapping[str, Any] | None:
    """Return the content of metadata.yaml in this folder; None if there is no such file."""
    return yaml_mapping(folder / METADATA_YAML)


def yaml_mapping(file: Path) -> Mapping[str, Any] | None:
    """Return the content of a YAML file beside the model; None if there is no such file."""
    text = _text_of_file(file)
    if text is None:
        return None
    try:
        _check_yaml(text, file)
        content = yaml.load(text, Loader=_SAFE_LOADER)
    except (yaml.YAMLError, RecursionError, ValueError, TypeError, OverflowError) as error:
        found = " ".join(str(error).split())[:300]
        raise ModelError(
            "The metadata beside the model is not YAML.", where=str(file), found=found, hint=_HINT
        ) from error
    if not isinstance(content, dict):
        found = type(content).__name__
        raise ModelError("The metadata beside the model is no mapping.", where=str(file), found=found, hint=_HINT)
    return content


def _check_yaml(text: str, file: Path) -> None:
    """Raise ModelError for YAML that is deep, long or has references, which can stand for any amount of content."""
    depth = 0
    for count, event in enumerate(yaml.parse(text, Loader=_SAFE_LOADER)):
        found = ""
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            found = "an anchor or a reference (& or *)"
        elif isinstance(event, yaml.ScalarEvent) and len(event.value) > _MAX_SCALAR:
            found = f"a value of {len(event.value):,} characters"
        elif isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            found = f"more than {_MAX_DEPTH} levels" if depth > _MAX_DEPTH else ""
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if count > _MAX_ENTRIES:
            found = f"more than {_MAX_ENTRIES:,} entries"
        if found:
            raise ModelError("The metadata beside the model is not plain.", where=str(file), found=found, hint=_HINT)


def read_card(path: Path) -> Mapping[str, Any]:
    """Return the card beside the model file at `path`, or in that folder; empty if there is no card."""
    file = (path if path.is_dir() else path.parent) / CARD
    hint = f"Correct {CARD}, or remove the file."
    text = _text_of_file(file)
    if text is None:
        return {}
    try:
        card = json.loads(text)
    except (ValueError, RecursionError) as error:
        what = "The card beside the model is not JSON."
        raise ModelError(what, where=str(file), found=str(error)[:300], hint=hint) from error
    if not isinstance(card, dict):
        what = "The card beside the model is not a JSON object."
        raise ModelError(what, where=str(file), found=repr(card)[:80], hint=hint)
    return card


def json_beside(file: Path) -> Mapping[str, Any]:
    """Return the object in a JSON file beside a model; empty if there is no such file, or if it is no object."""
    text = _text_of_file(file)
    if text is None:
        return {}
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        what, hint = f"{file.name} beside the model is not JSON.", f"Copy {file.name} again, or remove the file."
        raise ModelError(what, where=str(file), found=str(error)[:300], hint=hint) from error
    return content if isinstance(content, dict) else {}


def _text_of_file(file: Path) -> str | None:
    """Return the content of a small text file; None if there is no such file."""
    if not os.path.lexists(file):
        return None
    if not file.is_file():  # A named pipe would block, and a device would never end.
        hint = f"Remove {file.name}, or put the file in its place."
        raise ModelError(f"{file.name} is no file.", where=str(file), found=_kind_of(file), hint=hint)
    try:
        with file.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
    except OSError as error:
        hint = "Make the file readable for this user."
        raise ModelError("The file cannot be read.", where=str(file), found=str(error), hint=hint) from error
    if len(content) > _MAX_BYTES:
        raise _too_large(file.name, file, file.stat().st_size)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ModelError("The file is not UTF-8.", where=str(file), found=str(error), hint=_HINT) from error


def _kind_of(path: Path) -> str:
    """Return what is at a path that is no file, in words."""
    if path.is_dir():
        return "a folder"
    if path.is_fifo():
        return "a named pipe"
    if path.is_symlink() and not path.exists():
        return f"a broken link to {path.readlink()}"
    return "a socket" if path.is_socket() else "a device"


def _too_large(what: str, path: Path, size_bytes: int) -> ModelError:
    found = f"{size_bytes:,} bytes, at most {_MAX_BYTES:,} are read"
    return ModelError(f"The metadata in {what} are too large.", where=str(path), found=found, hint=_HINT)


# ---- values ---------------------------------------------------------------------------------------

# Parts of a Python literal. A number has a sign only, so that no expression can nest.
_LITERAL = re.compile(
    r"""\s+ | [\[\](){},:] | '(?:[^'\\\n]|\\.)*' | "(?:[^"\\\n]|\\.)*"
    | -?[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)? | True | False | None""",
    re.VERBOSE,
)


def literal(text: str, where: str) -> Any:
    """Return the value of a Python literal made of dicts, lists, tuples, texts and numbers.

    Args:
        text: The literal.
        where: The place of the literal, for errors.

    Raises:
        ModelError: The text is no such literal, or is deep or long.
    """
    depth = position = 0
    while position < len(text) <= _MAX_BYTES and depth <= _MAX_DEPTH:
        part = _LITERAL.match(text, position)
        if part is None or (part[0][0] in "-0123456789" and len(part[0]) > _MAX_DIGITS):
            break
        depth += (part[0] in "[({") - (part[0] in "])}")
        position = part.end()
    if position == len(text):
        try:
            return ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            position = 0
    found = repr(text[position : position + 60]) + (f" at character {position}" if position else "")
    raise ModelError("The metadata has a value that is no Python literal.", where=where, found=found, hint=_HINT)


def json_value(text: str, where: str) -> Any:
    """Return the value of a text in JSON; raise ModelError if the text is no JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        what = "The metadata has a value that is no JSON."
        raise ModelError(what, where=where, found=str(error)[:300], hint=_HINT) from error


def number(value: object, where: str, *, low: float = -math.inf, high: float = math.inf) -> float:
    """Return a finite number from a number or its text; raise ModelError for other values."""
    try:
        parsed = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        parsed = math.nan
    if not math.isfinite(parsed) or not low <= parsed <= high:
        expected = f" from {low:g} to {high:g}" if math.isfinite(low) or math.isfinite(high) else ""
        what = f"The metadata has a value that is no number{expected}."
        raise ModelError(what, where=where, found=repr(value)[:80], hint=_HINT)
    return parsed


def whole_number(value: object, where: str, *, low: int = 0, high: int = 2**31) -> int:
    """Return a whole number from a number or its text; raise ModelError for other values."""
    parsed = number(value, where, low=low, high=high)
    if parsed != int(parsed):
        what = "The metadata has a value that is no whole number."
        raise ModelError(what, where=where, found=repr(value)[:80], hint=_HINT)
    return int(parsed)
