"""The embedded model through the whole pipeline, on scenes that training never saw."""

from __future__ import annotations

from pathlib import Path

import pytest
from command import segray as command
from command import write_config

from segray.analytics.evaluation.evaluate import evaluate
from segray.synthetic import dataset

pytestmark = pytest.mark.chaos


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unseen")
    dataset.write(folder, 300, seed=99)
    return folder


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_mask_ap_on_300_unseen_scenes(tmp_path: Path, scenes: Path, precision: str) -> None:
    config = write_config(
        tmp_path / "run.yaml", scenes / "images", tmp_path / "labels",
        model={"name": "stickers", "precision": precision},
    )  # fmt: skip
    done = command("label", "--config", config)
    if "cannot" in done.stderr and precision == "bf16":
        pytest.skip(f"this CPU has no bf16: {done.stderr}")
    assert done.returncode == 0, done.stderr
    found = evaluate(str(tmp_path / "labels"), scenes / "truth.json")
    masks = found.scores["segm"]
    assert masks.ap >= 0.75
    assert masks.ap50 >= 0.92
