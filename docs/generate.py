"""The generated pages of the reference: commands from Typer, configuration keys from pydantic and reference.yaml.

python docs/generate.py            # writes docs/reference/cli.md and docs/reference/configuration.md
python docs/generate.py --check    # exit code 1 if a page differs
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from segray import config
from segray.cli.examples import EXAMPLES

REFERENCE = Path(__file__).parent / "reference"
_KEY = re.compile(r"^( *)([a-z][a-z0-9_]*):")


def pages() -> dict[str, str]:
    """Return the text of each generated page by file name."""
    return {"cli.md": cli_page(), "configuration.md": configuration_page()}


# ---- commands -------------------------------------------------------------------------------------


def cli_page() -> str:
    """Return the page of all commands, in the order of the help."""
    parts = [
        "# Commands\n",
        "The text of `segray COMMAND --help`. `segray --install-completion` adds completion to the shell. "
        "[When something fails](../guides/when-something-fails.md#exit-codes-and-output) has the exit codes.\n",
    ]
    parts += [f"## segray {name}\n\n```text\n{help_of(name)}\n```\n" for name in EXAMPLES]
    return "\n".join(parts)


def help_of(name: str) -> str:
    """Return the help of a command, 100 characters wide."""
    command = [sys.executable, "-m", "segray", *name.split(), "--help"]
    environ = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environ).stdout.strip()


# ---- configuration --------------------------------------------------------------------------------


def configuration_page() -> str:
    """Return the page of all configuration keys, in the order of reference.yaml."""
    parts = ["# Configuration keys\n", "`--set KEY=VALUE` overrides a key. `segray init --all` writes all of them.\n"]
    for key, meaning in keys_and_meanings((config.TEMPLATES / "reference.yaml").read_text("utf-8")):
        kind, default = _field(key)
        if "." not in key and (
            (isinstance(kind, type) and issubclass(kind, BaseModel)) or typing.get_origin(kind) is tuple
        ):
            parts += [f"## {key}\n", *([f"{meaning}\n"] if meaning else [])]
            continue
        parts.append(f"### `{key}`\n")
        parts.append(f"{kind_text(kind)}; {default}\n")
        parts += [f"{meaning}\n"] if meaning else []
    return "\n".join(parts)


def keys_and_meanings(text: str) -> Iterator[tuple[str, str]]:
    """Yield each key of reference.yaml with dots, and the comment above the key."""
    above: list[tuple[int, str]] = []  # indentation and name of each section around the key
    comment: list[str] = []
    for line in text.splitlines():
        if line.lstrip(" -").startswith("#"):
            comment.append(line.lstrip(" -")[1:])
        elif match := _KEY.match(line):
            indentation = len(match[1])
            above = [(other, name) for other, name in above if other < indentation] + [(indentation, match[2])]
            yield ".".join(name for _, name in above), _markdown(comment)
            comment = []
        elif not line.strip():
            comment = []


def _markdown(comment: list[str]) -> str:
    """Return a comment as paragraphs; lines that are indented further are examples."""
    parts: list[str] = []
    for line in comment:
        if line.startswith("   "):
            parts.append(f"\n\n    {line.strip()}\n\n")
        else:
            parts.append(f" {_escaped(line.strip())}")
    return re.sub(r"\n{3,}", "\n\n", "".join(parts)).strip()


def _escaped(text: str) -> str:
    """Return text without the signs that Markdown takes for emphasis, outside code."""
    return "`".join(part if i % 2 else re.sub(r"([*_<])", r"\\\1", part) for i, part in enumerate(text.split("`")))


def _field(key: str) -> tuple[Any, str]:
    """Return the type of a configuration key, and its default in words."""
    kind: Any = config.Config
    default: Any = PydanticUndefined
    for name in key.split("."):
        field = _section(kind).model_fields[name]
        kind, default = field.annotation, field.get_default(call_default_factory=True)
    if default is PydanticUndefined:
        return kind, "required"
    if isinstance(default, tuple) and all(isinstance(entry, BaseModel) for entry in default):
        return kind, f"default `{[entry.model_dump(exclude_defaults=True) for entry in default]}`"
    if isinstance(default, BaseModel):
        return kind, "default: the keys' own"
    if default == "":
        return kind, "default: no text"
    return kind, f"default `{json.dumps(default)}`" if isinstance(
        default, bool | type(None)
    ) else f"default `{default}`"


def _section(kind: Any) -> type[BaseModel]:
    """Return the section that a key may hold, alone or in a list."""
    for part in _parts(kind):
        inner = typing.get_args(part)[0] if typing.get_origin(part) is tuple else part
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            return inner
    raise TypeError(f"{kind} is no section")


def _parts(kind: Any) -> tuple[Any, ...]:
    """Return the alternatives of a type, without the limits of their values."""
    if typing.get_origin(kind) is typing.Annotated:
        return _parts(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        return tuple(part for inner in typing.get_args(kind) for part in _parts(inner))
    return (kind,)


_WORDS = {str: "text", int: "whole number", float: "number", bool: "true or false", type(None): "null"}


def kind_text(kind: Any) -> str:
    """Return a type in words."""
    words = []
    for part in _parts(kind):
        if typing.get_origin(part) is typing.Literal:
            words += [f"`{choice}`" for choice in typing.get_args(part)]
        elif part in _WORDS:
            words.append(_WORDS[part])
        elif isinstance(part, type) and issubclass(part, BaseModel):
            words.append("section")
        elif typing.get_origin(part) is tuple:
            words.append("list")
        elif part is typing.Any:
            words.append("`auto` or whole number")
        else:
            words.append("date" if getattr(part, "__name__", "") == "date" else "mapping")
    return ", ".join(words[:-1]) + (" or " if len(words) > 1 else "") + words[-1]


def run(arguments: list[str]) -> int:
    """Write the pages, or compare them with --check. Return the exit code."""
    differing = [name for name, text in pages().items() if not _is_current(REFERENCE / name, text)]
    if "--check" in arguments:
        for name in differing:
            print(f"{REFERENCE / name} differs: run `python docs/generate.py`", file=sys.stderr)
        return int(bool(differing))
    REFERENCE.mkdir(exist_ok=True)
    for name in differing:
        (REFERENCE / name).write_text(pages()[name], "utf-8")
    return 0


def _is_current(file: Path, text: str) -> bool:
    return file.is_file() and file.read_text("utf-8") == text


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
