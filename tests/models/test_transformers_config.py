"""Numbers of an image processor beside a model: mean and deviation, and what the processor leaves out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segray.errors import ModelError
from segray.models.describe import transformers_config

PROCESSOR = {"image_processor_type": "Mask2FormerImageProcessor", "image_mean": [0.5] * 3, "image_std": [0.25] * 3}


def levels(folder: Path, **changes: Any) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    (folder / "preprocessor_config.json").write_text(json.dumps({**PROCESSOR, **changes}))
    read = transformers_config.read(folder)
    return read.mean, read.scale


@pytest.mark.parametrize(
    ("changes", "mean", "scale"),
    [
        ({}, 127.5, 63.75),
        ({"rescale_factor": 0.5}, 1, 0.5),
        ({"do_rescale": False}, 0.5, 0.25),
        ({"do_normalize": False}, 0, 255),
        ({"do_normalize": False, "do_rescale": False}, 0, 1),
        ({"image_mean": 0.1, "image_std": 2}, 25.5, 510),
    ],
)
def test_mean_and_scale_are_those_of_what_the_processor_does(
    changes: dict[str, Any], mean: float, scale: float, tmp_path: Path
) -> None:
    assert levels(tmp_path, **changes) == (pytest.approx((mean,) * 3), pytest.approx((scale,) * 3))


@pytest.mark.parametrize(
    "changes",
    [{"image_std": [1, 0, 1]}, {"image_std": [-1] * 3}, {"rescale_factor": 0}, {"image_mean": [1]}, {"image_std": []}],
)
def test_numbers_that_no_processor_can_have_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"image_std|image_mean|rescale_factor"):
        levels(tmp_path, **changes)
