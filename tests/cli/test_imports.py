"""Which libraries a command loads: those that it works with, and no other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import label_sets
import pytest

LIBRARIES = (
    "numpy", "numba", "openvino", "ray", "cv2", "pyarrow", "deltalake", "fsspec", "yaml", "rich.progress", "jinja2",
    "psutil",
)  # fmt: skip
# What reading a label set takes; numba only where masks are compared or counted.
TABLES = {"numpy", "pyarrow", "deltalake", "fsspec", "yaml"}

PROGRAM = f"""
import json, os, sys
from segray.cli import main as cli
code = cli.run(sys.argv[1:])
print(json.dumps([name for name in {LIBRARIES} if name in sys.modules]), file=sys.stderr, flush=True)
os._exit(code)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(label_sets.write(tmp_path_factory.mktemp("made") / "labels", label_sets.stickers(2)))


def loaded(*arguments: object) -> set[str]:
    """The libraries that `segray ARGUMENTS` has loaded at its end."""
    command = [sys.executable, "-c", PROGRAM, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "200"})
    return set(json.loads(done.stderr.splitlines()[-1]))


@pytest.mark.parametrize(
    "arguments",
    ["version", "--help", "label --help", "submit --help", "models --help", "models quantize --help", "models list",
     "models show stickers", "nonsense", "label a b c"],
)  # fmt: skip
def test_what_works_with_nothing_loads_nothing(arguments: str) -> None:
    assert loaded(*arguments.split()) == set()


@pytest.mark.integration
@pytest.mark.parametrize(
    "command",
    [
        "verify",
        pytest.param("status", marks=pytest.mark.thorough),
        pytest.param("maintain", marks=pytest.mark.chaos),
        pytest.param("promote", marks=pytest.mark.chaos),
    ],
)
def test_what_reads_a_label_set_loads_no_models_and_no_cluster(root: Path, tmp_path: Path, command: str) -> None:
    copy = shutil.copytree(root, tmp_path / "labels")
    found = loaded(command, copy)
    assert "pyarrow" in found
    assert ("deltalake" in found) == (command != "status"), "status reads the records of runs, no table"
    assert found <= TABLES | ({"numba"} if command in ("verify", "promote") else set())


@pytest.mark.thorough
@pytest.mark.integration
def test_what_compares_two_label_sets_loads_no_models_and_no_cluster(root: Path) -> None:
    assert not loaded("diff", root, root) & {"openvino", "ray", "jinja2"}


@pytest.mark.chaos
def test_what_compares_label_sets_loads_no_models_and_no_cluster(root: Path, tmp_path: Path) -> None:
    truth, page = tmp_path / "truth.json", tmp_path / "report.html"
    for arguments in (
        ("export", root, truth, "--to", "coco"),
        ("evaluate", root, "--truth", truth),
        ("diff", root, root),
        ("report", root, "--out", page),
        ("select", root, tmp_path / "picked.json", "--take", "random=1"),
    ):
        libraries = loaded(*arguments)
        assert not libraries & {"openvino", "ray"}, arguments
        assert ("jinja2" in libraries) == (arguments[0] == "report"), arguments
    assert truth.exists()
    assert page.exists()


@pytest.mark.integration
def test_a_label_run_that_is_refused_or_has_nothing_to_do_loads_no_cluster(tmp_path: Path) -> None:
    assert "ray" not in loaded("label", "--config", tmp_path / "nowhere.yaml")
    config = tmp_path / "run.yaml"
    config.write_text("source: {uri: photos}\noutput: {root: labels}\nmodel: {name: stickers}\n")
    submitted = loaded("submit", "--config", config, "--address", "nowhere")
    assert "fsspec" in submitted  # it got as far as to check the address
    assert not submitted & {"ray", "openvino", "numba", "cv2", "pyarrow", "deltalake"}
