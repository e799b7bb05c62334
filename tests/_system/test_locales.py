"""Narrow locales: no command changes its exit code, and every file keeps its name, byte for byte."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import every_command
import pytest
import typer
from command import ENV, write_config

import segray as reader
from segray.cli.main import app
from segray.synthetic import dataset

pytestmark = pytest.mark.integration

# Variables by which Python and the C library choose an encoding.
ENCODING_VARIABLES = ("LANG", "LANGUAGE", "LC_ALL", "LC_CTYPE", "PYTHONIOENCODING", "PYTHONUTF8", "PYTHONCOERCECLOCALE")
UTF8 = {"LC_ALL": "C.UTF-8"}
ASCII_STREAMS = {**UTF8, "PYTHONIOENCODING": "ascii"}
# As C was before PEP 538 and 540, and as it is in programs that are no Python.
ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}

COMMON = ("export {a} {new} --to coco", "info {a}")
FURTHER = ("label --config {scenes} --dry-run", "sql {a} FROM/**/classes")


@dataclass(frozen=True)
class Ended:
    """How a command ended. out: its standard output as text, of whatever encoding. names: of the files it wrote."""

    code: int
    out: str
    names: list[bytes]


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> list[Mapping[str, str]]:
    """Environments with other encodings than UTF-8; Latin-1 where the C library's sources of locales are installed."""
    environments: list[Mapping[str, str]] = [ASCII_STREAMS, ASCII]
    folder = tmp_path_factory.mktemp("locales")
    localedef = shutil.which("localedef")
    if localedef is not None and Path("/usr/share/i18n/locales/de_DE").exists():
        latin1 = "de_DE.ISO-8859-1"
        subprocess.run([localedef, "-i", "de_DE", "-f", "ISO-8859-1", folder / latin1], check=True)
        environments.append({"LOCPATH": str(folder), "LC_ALL": latin1})
    return environments


def run(environment: Mapping[str, str], *arguments: str, new: Path | None = None) -> Ended:
    inherited = {name: value for name, value in os.environ.items() if name not in ENCODING_VARIABLES}
    done = subprocess.run(
        [sys.executable, "-m", "segray", *arguments], env={**inherited, **ENV, **environment}, capture_output=True,
        timeout=300,
    )  # fmt: skip
    assert b"Traceback" not in done.stderr, done.stderr
    assert b"Error:" not in done.stderr, done.stderr
    encoding = "latin-1" if "LOCPATH" in environment else "utf-8"
    names = [] if new is None else [os.fsencode(path)[len(os.fsencode(new)) :] for path in sorted(new.rglob("*"))]
    return Ended(done.returncode, done.stdout.decode(encoding), names)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, object]:
    folder = tmp_path_factory.mktemp("locales") / "K\u00e4se \u2192 \u65e5\u672c"
    folder.mkdir()
    return every_command.places(folder)


def test_the_table_has_every_command() -> None:
    group: Any = typer.main.get_command(app)
    names = {
        name for name in group.commands if name not in ("models", "quickstart", "view")
    }  # these have tests of their own
    names |= {f"models {name}" for name in group.commands["models"].commands}
    assert {name for name in names if any(text.startswith(name) for text in every_command.EVERY_COMMAND)} == names


@pytest.mark.parametrize("arguments", every_command.tried(COMMON, FURTHER))
def test_every_command_ends_as_in_utf8(
    arguments: str, places: Mapping[str, object], narrow: list[Mapping[str, str]], tmp_path: Path
) -> None:
    def ended(environment: Mapping[str, str], name: str) -> Ended:
        new = tmp_path / name / "Gr\u00f6\u00dfe"
        new.parent.mkdir()
        return run(environment, *(part.format(new=new, **places) for part in arguments.split()), new=new)

    expected = ended(UTF8, "expected")
    for number, environment in enumerate(narrow):
        found = ended(environment, str(number))
        assert (found.code, found.names) == (expected.code, expected.names), environment
        assert len(found.out.splitlines()) == len(expected.out.splitlines()), environment
        assert (tmp_path / str(number) / "Gr\u00f6\u00dfe").exists() == (
            tmp_path / "expected" / "Gr\u00f6\u00dfe"
        ).exists(), environment


@pytest.mark.chaos
def test_a_run_gives_every_file_the_key_of_its_bytes(narrow: list[Mapping[str, str]], tmp_path: Path) -> None:
    """Labelled in UTF-8 first: no image is new in any other locale, and no second root appears."""
    dataset.write(tmp_path / "data", 2, seed=11)
    folder, root = tmp_path / "d\u00e9j\u00e0", tmp_path / "r\u00e9sultat \u2192"
    folder.mkdir()
    keys = ["K\u00e4se.jpg", "\u65e5\u672c.jpg"]
    for key, path in zip(keys, sorted((tmp_path / "data" / "images").iterdir()), strict=True):
        path.rename(folder / key)
    config = write_config(tmp_path / "run.yaml", folder, root)
    first, *others = [ASCII, *(environment for environment in narrow if environment != ASCII)]
    assert run(first, "label", "--config", str(config)).code == 0
    assert sorted(reader.images(str(root)).to_table(columns=["image_key"])["image_key"].to_pylist()) == sorted(keys)
    for environment in [UTF8, *others]:
        found = run(environment, "label", "--config", str(config), "--dry-run", "--json")
        assert (found.code, '"planned": 0' in found.out) == (0, True), environment
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["data", "run.yaml", folder.name, root.name])
