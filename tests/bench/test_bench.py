"""bench: the naive decoding finds the same instances as segray; processes are measured; all variants run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import segray
from swift_server import Swift
from test_tf_object_detection import made as made_boxed
from test_yolact_adapter import made as made_yolact

from segray import rle
from segray.bench import naive, reference_model, report
from segray.bench.process_stats import ProcessTreeMonitor
from segray.bench.runner import VariantRun, mask_stats
from segray.bench.workload import Workload
from segray.cli import main
from segray.conversion.yolact import shapes
from segray.models.adapters.adapter import ModelAdapter, Options
from segray.models.registry import ADAPTERS

SIZE_HW = (120, 160)
RAY_DATA = importlib.util.find_spec("pandas") is not None

# ---- the naive decoding ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("yolact-resnet50-fpn-pytorch", lambda seed: made_yolact(seed, side=40, priors=300, things=30)),
        ("mask_rcnn_inception_v2_coco", made_boxed),
        ("mask_rcnn_inception_resnet_v2_1024x1024", made_boxed),
    ],
)
def test_the_naive_decoding_finds_the_same_instances_as_segray(name: str, made: Any) -> None:
    contract: ModelAdapter = ADAPTERS[name]
    options = Options(score_threshold=0.1, max_detections=40)
    for seed in range(3):
        outputs = made(seed)
        found = contract.decode(outputs, SIZE_HW, options)
        rows = naive.rows(contract, outputs, "key", SIZE_HW, options)
        boxes = np.array([[r["bbox_x"], r["bbox_y"], r["bbox_w"], r["bbox_h"]] for r in rows])
        known = [i for i in range(len(found)) if int(found.class_ids[i]) in contract.labels and written(found, i)]
        assert [row["class_id"] for row in rows] == found.class_ids[known].tolist()
        corners = found.boxes_xyxy[known]
        np.testing.assert_allclose(boxes, np.hstack([corners[:, :2], corners[:, 2:] - corners[:, :2]]), atol=1e-3)
        areas = np.array([row["area"] for row in rows])
        # TensorFlow's paste goes through OpenCV's remap, whose weights have 5 bits.
        np.testing.assert_allclose(areas, rle.area(tuple(found.rles[i] for i in known)), rtol=0.05, atol=3)
        assert len(rows) > 10


def written(found: Any, i: int) -> bool:
    x0, y0, x1, y1 = found.boxes_xyxy[i]
    return bool(rle.area((found.rles[i],))[0] > 0 and x1 > x0 and y1 > y0)


@pytest.mark.integration
def test_the_reference_model_has_every_weight() -> None:
    weights = reference_model.weights()
    assert {name: array.shape for name, array in weights.items()} == shapes()
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}


# ---- measuring ------------------------------------------------------------------------------------

_BUSY = """
import subprocess, sys, time
held = bytearray(200 * 2**20)
if len(sys.argv) > 1:
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
while time.process_time() < 1:
    pass
if len(sys.argv) > 1:
    child.wait()
"""


@pytest.mark.integration
def test_a_process_and_its_children_are_measured_from_outside() -> None:
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, "-c", _BUSY, _BUSY])
    with ProcessTreeMonitor(process.pid) as monitor:
        assert process.wait() == 0
    spent = monitor.cpu_seconds(began, time.monotonic())
    # Looked at five times a second: a little at the end is missed.
    assert 0.7 < spent["driver"] < 1.3
    assert 0.7 < spent["ray"] < 1.3
    peak = monitor.peak_rss_bytes()
    assert 200 * 2**20 < peak["driver"] < 300 * 2**20
    assert peak["all"] > 400 * 2**20
    assert sum(monitor.cpu_seconds(began - 2, began - 1).values()) == 0


_ENDS_UNSEEN = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.3: pass"])
os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
print("ended", flush=True)
time.sleep(60)
"""


@pytest.mark.integration
def test_a_process_that_ended_before_it_was_seen_is_counted_while_its_parent_does_not_wait_for_it() -> None:
    began = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", _ENDS_UNSEEN], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ended\n"
        with ProcessTreeMonitor(process.pid) as monitor:
            time.sleep(0.5)
        process.kill()
    # User and system time come in whole hundredths each.
    assert 0.25 < monitor.cpu_seconds(began, time.monotonic())["ray"] < 0.6


# ---- the record -----------------------------------------------------------------------------------


def run_of(variant: str, seconds: float, **more: Any) -> VariantRun:
    values: dict[str, Any] = {
        "images": 10, "started_s": 90.0, "began_s": 100.0, "ended_s": 100 + seconds, "exited_s": 105 + seconds,
        "stages": {}, "roles": {"driver": 1.0, "worker": 4.0, "ray": 0.5}, "others_share": 0.0,
        "peak_rss_bytes": {"driver": 1, "worker": 2, "all": 3}, "bytes_written": 5, "mask_stats": {}, "marks": {},
        "facts": {},
    }  # fmt: skip
    return VariantRun(variant, **{**values, **more})


TABLE = {"instances": 7, "classes": 2, "median_share": 0.01, "mean_share": 0.02, "median_rle_chars": 9.0}


def test_ratios_are_made_within_a_round() -> None:
    stages = {"infer": 2.5, "decode": 1.0}
    marks = {"first_unit_s": 101.0, "last_unit_s": 102.0, "first_commit_s": 102.5}
    runs = []
    for ceiling, mine, other in ((1, 2, 8), (2, 4, 4), (10, 11, 22)):
        runs += [
            run_of("ceiling", ceiling, roles={"driver": 2.0}, stages={"infer": 2.0}),
            run_of("segray", mine, stages=stages, mask_stats=TABLE, marks=marks),
            run_of("ray_data", other, mask_stats=TABLE),
        ]
    workload = Workload("", ("a.jpg",) * 10, {"name": "stickers"}, 2)
    found = report.record(workload, runs)
    assert found["ratio_to_ceiling"] == 0.5
    assert found["spread"]["ratio_to_ceiling"] == [0.5, pytest.approx(10 / 11, abs=1e-3)]
    # By hand: mean 0.6364, deviation 0.2362, Student's t 4.303 for two degrees of freedom.
    assert found["confidence"]["ratio_to_ceiling"] == pytest.approx([0.0496, 1.2231], abs=2e-4)
    assert "mean at 95 %: 0.050..1.223" in report.describe(found)
    assert found["ratio_to_ray_data"] == 2.0
    assert found["ratio_to_script"] is None
    assert found["images_per_s"] == {"ceiling": 5.0, "segray": 2.5, "ray_data": 1.25}
    assert found["cpu_s_per_image"]["segray"] == {
        "infer": 0.25, "decode": 0.1, "merge": 0.05, "driver": 0.1, "ray": 0.05, "all": 0.55,
    }  # fmt: skip
    assert found["cpu_s_per_image"]["ray_data"] == {"driver": 0.1, "worker": 0.4, "ray": 0.05, "all": 0.55}
    assert found["cpu_ratio_to_ceiling"] == pytest.approx(0.2 / 0.55, abs=1e-3)
    assert (found["startup_s"]["segray"], found["first_unit_s"], found["first_commit_s"]) == (10, 11, 12.5)
    assert found["same_instances"] is True
    assert "warning" not in report.describe(found)
    assert "0.7 instances per image" in report.describe(found)


def test_one_round_gives_no_interval() -> None:
    found = report.record(Workload("", ("a.jpg",), {"name": "stickers"}, 2), [run_of("segray", 2), run_of("queue", 4)])
    assert found["confidence"] == {}
    assert found["ratio_to_queue"] == 2.0
    assert "95 %" not in report.describe(found)


@pytest.mark.parametrize(("rounds", "quantile"), [(2, 12.706), (6, 2.571), (11, 2.228), (13, 2.179), (31, 2.042)])
def test_intervals_have_the_quantiles_of_student(rounds: int, quantile: float) -> None:
    seconds = [1.0 + 0.1 * (number % 2) for number in range(rounds)]
    found = report.record(Workload("", ("a.jpg",), {"name": "x"}, 2), [run_of("segray", value) for value in seconds])
    rates = [10 / value for value in seconds]
    low, high = found["confidence"]["images_per_s.segray"]
    assert (high - low) / 2 == pytest.approx(quantile * np.std(rates, ddof=1) / rounds**0.5, rel=1e-3)


def test_the_table_names_a_model_without_a_name_and_its_precision() -> None:
    runs = [run_of("floor", 1, stages={"infer": 1.0, "decode": 1.0}, roles={"driver": 2.0})]
    model = {"name": "auto", "path": "models/best_openvino_model", "precision": "bf16"}
    text = report.describe(report.record(Workload("", ("a.jpg",), model, 2), runs))
    assert "best_openvino_model, bf16, 2 threads" in text


def test_other_instances_and_busy_neighbours_are_told() -> None:
    runs = [
        run_of("segray", 1, mask_stats=TABLE),
        run_of("script", 1, mask_stats=TABLE | {"instances": 8}, others_share=0.4),
    ]
    found = report.record(Workload("", ("a.jpg",), {"name": "stickers"}, 2), runs)
    assert found["same_instances"] is False
    text = report.describe(found)
    assert "did not find the same" in text
    assert "up to 40% of the CPUs" in text


def test_a_model_that_finds_nothing_is_measured_too(tmp_path: Path) -> None:
    assert mask_stats(tmp_path) == {"instances": 0}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--size", "640"], "WIDTHxHEIGHT"),
        (["--only", "abx"], "a upper bound, b lower bound"),
        (["--only", "cr"], "--remote"),
        (["--images", "nowhere", "--model-name", "stickers"], "nowhere"),
        (["--model-name", "stickres"], "stickers"),
        (["--precision", "f8"], "precision"),
        (["--model-name", "stickers", "--set", "unit_image=3"], "unit_images"),
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["bench", *arguments]) == 2
    assert said in capsys.readouterr().err


# ---- all of it ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured(swift: Swift, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every variant once, on the embedded model in f32, which every machine computes in."""
    only = "abcdefr" if RAY_DATA else "abcefr"
    folder = tmp_path_factory.mktemp("bench")
    done = segray(
        "bench", "--model-name", "stickers", "--count", 48, "--repeats", 1, "--precision", "f32", "--only", only,
        "--folder", folder, "--remote", f"s3://{swift.bucket()}/copies/",
        "--set", f"storage.endpoint_url={swift.endpoint_url}", "--json",
        env={"AWS_ACCESS_KEY_ID": swift.key, "AWS_SECRET_ACCESS_KEY": swift.secret, "AWS_REGION": "us-east-1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.skipif(RAY_DATA, reason="pandas is installed")
def test_ray_data_without_pandas_is_refused_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["bench", "--model-name", "stickers", "--only", "d"]) == 2
    assert "segray[bench]" in capsys.readouterr().err


@pytest.mark.chaos
def test_every_variant_runs_and_finds_the_same(measured: dict[str, Any]) -> None:
    variants = {"ceiling", "floor", "segray", "script", "queue", "remote"} | ({"ray_data"} if RAY_DATA else set())
    assert set(measured["images_per_s"]) == variants
    assert measured["same_instances"] is True
    assert measured["found"]["segray"]["instances"] > 48
    assert measured["facts"]["precision"] == "f32"
    for name in (
        "ratio_to_ceiling",
        "ratio_to_script",
        "ratio_to_queue",
        "ratio_with_startup",
        "cpu_ratio_to_ceiling",
        "ratio_remote_to_local",
    ):
        assert measured[name] > 0, name
    assert (measured["ratio_to_ray_data"] is not None) == RAY_DATA
    assert 0 < measured["startup_s"]["segray"] < measured["first_unit_s"] < measured["first_commit_s"]
    assert measured["peak_rss_bytes"]["segray"]["worker"] > 50 * 2**20
    assert measured["bytes_written"]["segray"] > 10_000


@pytest.mark.chaos
def test_no_stage_has_become_slow(measured: dict[str, Any]) -> None:
    """CPU seconds beside those of inference in the same run; each bound is about three times what is usual."""
    parts = measured["cpu_s_per_image"]["segray"]
    usual = {
        "read": 0.005,
        "decode": 0.045,
        "postprocess": 0.04,
        "write": 0.1,
        "driver": 0.04,
        "ray": 0.1,
        "merge": 0.4,
    }
    alone = measured["cpu_s_per_image"]["ceiling"]["infer"]
    found = {name: round(parts.get(name, 0.0) / alone, 4) for name in usual}
    assert {name: share for name, share in found.items() if share > 3 * usual[name]} == {}
    assert parts["infer"] < 1.5 * alone
    assert set(parts) <= {*usual, "infer", "wait", "prepare", "merge", "all"}
