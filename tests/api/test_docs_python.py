"""The blocks of docs/python.md and README's lines of Python run as they stand; the page shows every method."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fences
import pytest
import yolo_network

import segray
from segray.api import label as labelling
from segray.execution.worker_pool import InProcess
from segray.execution.worker_spec import build
from segray.imaging import drawing

pytestmark = pytest.mark.integration

PAGE = "docs/python.md"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with photos and a model; runs have one worker in this process."""
    yolo_network.write(tmp_path / "best_openvino_model", names=("person", "dog"))
    (tmp_path / "photos" / "day").mkdir(parents=True)
    for name in ("one.jpg", "two.jpg", "day/three.jpg"):
        (tmp_path / "photos" / name).write_bytes(drawing.jpeg(yolo_network.red_rectangle(), 95))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(labelling, "start_workers", lambda spec, config: InProcess(*build(spec, "CPU", None)))
    yield tmp_path
    logging.getLogger("segray").setLevel(logging.NOTSET)


def missing(block: fences.Block) -> set[str]:
    """Return the packages of a block that are not installed."""
    return {name for name in fences.packages(block) if not _is_installed(name)}


def _is_installed(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def test_the_blocks_of_the_page_run_one_after_the_other(workplace: Path) -> None:
    blocks = fences.blocks(PAGE, "python")
    namespace: dict[str, Any] = {}
    values = {str(block): fences.run(block.code, namespace) for block in blocks if not missing(block)}
    assert len(values) >= len(blocks) - 1, "only supervision may be missing"
    assert repr(namespace["things"]) == "Instances(1 in 80x48: 1 person; best 0.88)"
    assert namespace["labels"].images().count_rows() == 3
    assert (workplace / "report.html").is_file()
    assert [error for value in values.values() for error in value if isinstance(error, list) and error == [1, 1, 1, 1]]


def test_the_lines_of_the_readme_run(workplace: Path) -> None:
    (block,) = [block for block in fences.blocks("README.md", "python") if "load_model" in block.code]
    assert len(block.code.strip().splitlines()) <= 7
    namespace: dict[str, Any] = {}
    fences.run(block.code, namespace)
    assert namespace["labels"].images().count_rows() == 3


@pytest.mark.parametrize("public", [segray.Model, segray.LabelSet, segray.Instances])
def test_the_page_shows_every_method(public: type) -> None:
    text = (fences.REPO / PAGE).read_text("utf-8")
    names = {name for name, _ in inspect.getmembers(public) if not name.startswith("_")}
    internal = {"take", "empty", "with_image", "drawn_at", "run_keys", "state", "storage_options", "unreadable"}
    shown = {name for name in names if f".{name}" in text or f"`{name}" in text}
    assert names - internal == shown - internal
