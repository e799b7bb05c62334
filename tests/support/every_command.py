"""Every command, with arguments that are quick; and the files that the arguments name.

{new} is a path that does not exist yet. The other names in braces are those of places().
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import label_sets
import pytest
from command import write_config

from segray.cli import main
from segray.synthetic import dataset

EVERY_COMMAND = (
    "nonsense",
    "models",
    "version",
    "init {new}",
    "info {a}",
    "info {a} --json",
    "sql {a} FROM/**/classes",
    "sql {a} FROM/**/classes --format csv",
    "sql {a} FROM/**/nowhere",
    "sheet {a} {new}",
    "draw {a} {new}",
    "verify {a}",
    "verify {a} --json",
    "verify {folder}/nowhere",
    "maintain {a}",
    "promote {a} --dry-run",
    "status {a}",
    "status {a} --watch --json",
    "evaluate {a} --truth {truth}",
    "threshold {a} --truth {truth}",
    "export {a} {new} --to coco",
    "report {a} --out {new}",
    "diff {a} {b}",
    "diff {a} {b} --fail-if lost>0%",
    "select {a} {new} --take random=1",
    "review {a} --selection {picked} --corrected {truth}",
    "models list",
    "models show stickers",
    "models inspect {truth}",
    "models pull stickers",
    "models convert stickers {truth} --out {new}",
    "models compare stickers --images {folder}/nowhere --reference {truth}",
    "models quantize stickers --images {folder}/nowhere --out {new}",
    "label {config}",
    "label --config {scenes} --dry-run",
    "label --config {scenes} --dry-run --json --log-format json",
    "plan --config {config}",
    "submit --config {config} --address http://127.0.0.1:9",
    "bench --only z",
)


def tried(common: Collection[str], further: Collection[str]) -> list[Any]:
    """Every command as a parameter: common ones of plain pytest, further ones of thorough, the rest of chaos."""
    seldom = {text: pytest.mark.thorough if text in further else pytest.mark.chaos for text in EVERY_COMMAND}
    return [pytest.param(text, marks=() if text in common else seldom[text]) for text in EVERY_COMMAND]


def places(folder: Path) -> Mapping[str, object]:
    """Two label sets, a truth, a selection of all images, and configurations: one without images, one with a few."""
    for name, seed in (("a", 0), ("b", 1)):
        label_sets.write(folder / name, label_sets.stickers(2, seed))
    truth, picked = folder / "truth.json", folder / "picked.json"
    assert main.run(["export", str(folder / "a"), str(truth), "--to", "coco"]) == 0
    assert main.run(["select", str(folder / "a"), str(picked), "--take", "random=2"]) == 0
    dataset.write(folder / "data", 2, seed=11)
    return {
        "folder": folder,
        "a": folder / "a",
        "b": folder / "b",
        "truth": truth,
        "picked": picked,
        "config": write_config(folder / "run.yaml", folder / "nowhere", folder / "labels"),
        "scenes": write_config(folder / "scenes.yaml", folder / "data" / "images", folder / "labels"),
    }
