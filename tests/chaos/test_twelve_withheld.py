"""A run over 10,240 tiny images on S3, 12 of which are withheld for ever: all others have rows after one run."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import plain_s3
import pytest
from fault_proxy import FaultPlan, Reply
from fault_proxy import serve as serve_proxy
from watchers import Notes

import segray
from segray import config
from segray.errors import InfrastructureError
from segray.execution import run
from segray.execution.worker_pool import InProcess
from segray.execution.worker_spec import build

pytestmark = pytest.mark.chaos

IMAGES, WITHHELD = 10_240, 12


def tiny(number: int) -> bytes:
    _, data = cv2.imencode(".png", np.full((16, 16, 3), number % 256, np.uint8))
    return bytes(data)


def label(root: Path, endpoint_url: str) -> run.Summary:
    values: dict[str, Any] = {
        "source": {"uri": "s3://b/raw"},
        "output": {"root": str(root)},
        "model": {"name": "stickers"},
        "report": False,
        "storage": {"endpoint_url": endpoint_url, "retries": 1},
    }
    chosen = config.validate(values, "test")
    return run.label(chosen, Notes(), lambda spec, _: InProcess(*build(spec, "CPU", None)), retry_s=1)


def test_twelve_withheld_images_of_10240_cost_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "any")
    keys = [f"{number:05d}.png" for number in range(IMAGES)]
    # Spread over the whole list, so that many units have one of them.
    withheld = sorted(random.Random(16).sample(keys, WITHHELD))
    contents = [tiny(number) for number in range(256)]
    begin_s = time.monotonic()
    with plain_s3.serve() as server, serve_proxy(server.endpoint_url) as proxy:
        server.objects |= {f"b/raw/{key}": contents[number % 256] for number, key in enumerate(keys)}
        proxy.change(FaultPlan(Reply(503, "SlowDown"), "|".join(withheld)))
        with pytest.raises(InfrastructureError) as caught:
            label(tmp_path / "labels", proxy.endpoint_url)
        print(f"{IMAGES} images, {WITHHELD} withheld: {time.monotonic() - begin_s:.0f} s")
        rows = segray.images(str(tmp_path / "labels")).to_table(["image_key", "status"])
        assert sorted(rows["image_key"].to_pylist()) == sorted({*keys}.difference(withheld))
        assert "failed" not in rows["status"].to_pylist()
        assert f"{WITHHELD} images" in str(caught.value)
        left_over = json.loads((tmp_path / "labels" / "_segray" / "left_over.json").read_text())
        assert sorted(left_over["images"]) == withheld

        proxy.change()
        assert label(tmp_path / "labels", proxy.endpoint_url).exit_code == 0
        assert segray.images(str(tmp_path / "labels")).count_rows() == IMAGES
