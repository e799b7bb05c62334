"""segray plan: counted, measured, multiplied, and nothing written."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import shapes
from test_run import start
from watchers import Notes

from segray import config
from segray.errors import LabelSetError
from segray.execution import estimate, run
from segray.execution.estimate import RunEstimate, Sample, SourceEstimate
from segray.monitoring import console
from segray.synthetic import dataset

SAMPLE = Sample(
    images=40, failed=0, failures=(), labelled=200, seconds=10.0, cpu_seconds=19.0, startup_s=1.0, instances=3.0,
    instances_error=0.1, classes=5, bytes=2e5, megapixels=0.3, row_bytes={"instances": 150.0, "images": 60.0},
    file_bytes=10_000.0, reads=1.0, rss_bytes=10**9, facts={"precision": "bf16", "device": "CPU"},
)  # fmt: skip


def chosen(**more: Any) -> config.Config:
    values = {"source": {"uri": "photos"}, "output": {"root": "labels"}, "model": {"name": "stickers"}}
    return config.validate({**values, **more}, "test")


def multiplied(asked: config.Config, images: int, sample: Sample = SAMPLE, threads: int = 2) -> RunEstimate:
    listed = SourceEstimate(images, images + 5, images * 200_000, {"jpg": images}, 0, 1.0)
    found = RunEstimate("photos", "labels", listed, threads, sample, output=estimate._output(asked, listed, sample))
    found = replace(found, nodes=tuple(estimate._nodes(asked, found)))
    costs, warnings = estimate._costs(asked, found), tuple(estimate._warnings(asked, found))
    return replace(found, costs=costs, warnings=warnings)


def test_a_million_images_are_the_sample_multiplied() -> None:
    nodes = [{"name": "big", "cpus": 16, "speed": 1.5, "memory_gb": 2, "price_per_hour": 2.0}]
    plan = {"nodes": nodes, "price_per_1000_reads": 0.4, "price_per_gb_month": 0.02}
    found = multiplied(chosen(plan=plan, publish={"batch_images": 100_000}), 1_000_000)
    here, big = found.nodes
    assert (here.images_per_s, here.hours, here.cost) == (20.0, pytest.approx(13.889, abs=1e-3), None)
    assert (big.images_per_s, big.hours) == (240.0, pytest.approx(1.1574, abs=1e-4))
    assert big.cost == pytest.approx(2 * big.hours)
    assert found.output is not None
    assert (found.output.instances, found.output.instances_error) == (3_000_000, 196_000)
    assert (found.output.batches, found.output.files) == (10, {"instances": 50, "images": 10})
    assert found.output.reads == 1_000_000 + 1001 + 3907
    assert found.output.gigabytes == pytest.approx(0.51 + 60 * 1e4 / 1e9)
    assert found.costs == {
        "reads": pytest.approx(0.4 * found.output.reads / 1000),
        "storage per month": pytest.approx(0.02 * found.output.gigabytes),
    }
    assert any("big: a worker holds 2.9 GB" in warning for warning in found.warnings)


def test_no_price_is_invented() -> None:
    found = multiplied(chosen(), 1000)
    assert found.costs == {}
    assert [node.cost for node in found.nodes] == [None]
    assert "cost of" not in estimate.describe(found, console.duration)


@pytest.mark.parametrize(
    ("more", "sample", "says"),
    [
        ({}, {}, "model.precision auto means bf16 here"),
        ({}, {"cpu_seconds": 9.0}, "kept 0.9 of 2 CPUs busy"),
        (
            {},
            {"failed": 4, "failures": (("a.jpg", "decode", "broken\nmore"),)},
            "4 of 40 .* exit code 3; a.jpg: decode: broken$",
        ),
        ({}, {"instances_error": 1.0}, "raise plan.sample_images"),
        ({"workers": [{}, {"device": "GPU"}]}, {}, "only the first of 2 pools"),
        ({"publish": {"batch_images": 1}}, {}, "50000 files of instances"),
    ],
)
def test_what_may_go_wrong_is_warned_of(more: dict[str, Any], sample: dict[str, Any], says: str) -> None:
    found = multiplied(chosen(**more), 10_000, replace(SAMPLE, **sample))
    assert any(re.search(says, warning) for warning in found.warnings), found.warnings


def test_a_quota_and_a_full_node_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate.engine, "available_cpus", lambda: 2)
    monkeypatch.setattr(estimate.os, "cpu_count", lambda: 64)
    found = multiplied(chosen(cluster={"address": "auto"}, model={"name": "stickers", "precision": "f32"}), 10)
    assert [warning.split(":")[0] for warning in found.warnings] == [
        "this process may use 2 of the machine's 64 CPUs (affinity or cgroup quota)",
        "a worker takes every CPU of its node, so other jobs of the cluster wait for it",
    ]
    assert "num_cpus: 1" in found.warnings[1]
    assert any("do not fit here" in each for each in multiplied(chosen(), 10, threads=8).warnings)


# ---- with the embedded model ----------------------------------------------------------------------


@pytest.mark.integration
def test_a_plan_counts_measures_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset.write(tmp_path / "scenes", 16, seed=5)
    scenes = {path.name: path.read_bytes() for path in sorted((tmp_path / "scenes" / "images").iterdir())}
    shaped = shapes.tar({**scenes, "broken.jpg": b"no image"}, tmp_path / "data")
    asked = chosen(
        source={"uri": shaped.uri}, output={"root": str(tmp_path / "labels")}, plan={"sample_images": 17, "sample_s": 0}
    )
    found = estimate.estimate(asked, Notes())
    assert not (tmp_path / "labels").exists()
    assert (found.listed.images, found.listed.total) == (17, 17)
    assert sum(found.listed.formats.values()) == 17
    assert all(name.endswith(" in tar") for name in found.listed.formats)
    assert found.sample is not None
    assert (found.sample.images, found.sample.failed) == (17, 1)
    assert found.sample.reads < 0.2
    assert found.output is not None
    assert 0 < found.output.instances < 17 * 20
    assert found.nodes[0].images_per_s == pytest.approx(found.sample.images_per_s)
    text = estimate.describe(found, console.duration)
    assert "17 of 17 images" in text
    assert "1 of 17 images of the sample failed" in text
    json.dumps(asdict(found))


@pytest.mark.integration
def test_a_plan_counts_what_is_left_and_minds_whose_root_it_is(tmp_path: Path) -> None:
    dataset.write(tmp_path / "scenes", 6, seed=5)
    file = tmp_path / "c.yaml"
    file.write_text(
        f"source: {{uri: {tmp_path}/scenes/images}}\noutput: {{root: {tmp_path}/labels}}\nmodel: {{name: stickers}}\n"
        "plan: {sample_images: 2, sample_s: 0}\n"
    )
    run.label(config.load(file), Notes(), start(), limit=4)
    left = estimate.estimate(config.load(file), Notes())
    assert (left.listed.images, left.listed.total) == (2, 6)
    run.label(config.load(file), Notes(), start())
    done = estimate.estimate(config.load(file), Notes())
    assert done.sample is None
    assert "nothing to do" in estimate.describe(done, console.duration)
    with pytest.raises(LabelSetError, match="score_threshold"):
        estimate.estimate(config.load(file, ["model.score_threshold=0.5"]), Notes())
