"""The whole job as users run it: images in, Ray actors, committed tables out."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pyarrow as pa
import pytest
from command import here, in_both_ways, start, write_config
from command import segray as command
from hostile import hostile_files

import segray
from segray.synthetic import dataset

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("shared_ray")]

Command = Callable[..., CompletedProcess[str]]
VOLATILE = ("batch", "run_id", "labelled_at", "attempts")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    dataset.write(folder, 48, seed=5)
    return folder


def rows(table: pa.Table, *order: str) -> list[dict[str, Any]]:
    """The rows that an undisturbed run would have too, in a fixed order."""
    kept = table.select([name for name in table.column_names if name not in VOLATILE])
    return kept.sort_by([(name, "ascending") for name in order]).to_pylist()


def contents(root: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    instances = rows(segray.scan(str(root)).to_table(), "image_key", "instance")
    images = rows(segray.images(str(root)).to_table(), "image_key")
    return instances, images


def test_quickstart_labels_measures_and_draws(tmp_path: Path) -> None:
    done = command("quickstart", tmp_path / "q", "--count", 24, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["summary"]["images"].get("failed", 0) == 0
    assert sum(result["summary"]["images"].values()) == 24
    assert result["evaluation"]["scores"]["segm"]["ap50"] > 0.85
    assert (tmp_path / "q" / "contact-sheet.png").read_bytes().startswith(b"\x89PNG")
    assert "AP50" in Path(result["report"]).read_text()


def test_the_same_command_again_does_nothing(tmp_path: Path, scenes: Path) -> None:
    few = tmp_path / "images"
    few.mkdir()
    for path in sorted((scenes / "images").iterdir())[:12]:
        shutil.copy(path, few)
    config = write_config(tmp_path / "run.yaml", few, tmp_path / "labels", unit_images=4, report=True)
    first = command("label", "--config", config)
    assert first.returncode == 0, first.stderr
    before = contents(tmp_path / "labels")
    again = here("label", "--config", config)
    assert again.returncode == 0
    assert "nothing to do" in again.stderr
    assert contents(tmp_path / "labels") == before
    (page,) = (tmp_path / "labels" / "_segray" / "runs").glob("*/report.html")
    assert "refresh" not in page.read_text()  # the last word, in place of the page that was live


@pytest.mark.chaos
@pytest.mark.usefixtures("own_ray")
def test_a_killed_run_resumes_to_the_undisturbed_result(tmp_path: Path, scenes: Path) -> None:
    undisturbed = write_config(tmp_path / "a.yaml", scenes / "images", tmp_path / "a", unit_images=4)
    assert command("label", "--config", undisturbed).returncode == 0
    disturbed = write_config(
        tmp_path / "b.yaml", scenes / "images", tmp_path / "b", unit_images=4, publish={"batch_images": 8}
    )
    process = start("label", disturbed)
    staged = tmp_path / "b" / "_segray" / "runs"
    deadline = time.monotonic() + 120
    while len(list(staged.glob("*/staged/*.arrow"))) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    resumed = command("label", disturbed)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming run" in resumed.stderr
    assert contents(tmp_path / "b") == contents(tmp_path / "a")


@pytest.mark.chaos
def test_ctrl_c_keeps_what_is_done_and_exits_130(tmp_path: Path, scenes: Path) -> None:
    config = write_config(tmp_path / "run.yaml", scenes / "images", tmp_path / "labels", unit_images=4)
    process = start("label", "--config", config)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "labels" / "_segray" / "runs").glob("*/staged/*.arrow")):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "run the same command again" in output
    assert command("label", "--config", config).returncode == 0
    assert segray.images(str(tmp_path / "labels")).count_rows() == 48


@in_both_ways
def test_broken_files_become_failed_rows_and_cost_their_neighbours_nothing(
    command: Command, tmp_path: Path, scenes: Path
) -> None:
    folder = tmp_path / "mixed"
    folder.mkdir()
    good = sorted((scenes / "images").iterdir())[:5]
    for path in good:
        shutil.copy(path, folder / path.name)
    files = hostile_files()
    bad = [name for name, (_, expected) in files.items() if expected == "failed"][:5]
    for name in bad:
        (folder / f"bad-{Path(name).stem}.jpg").write_bytes(files[name][0])
    config = write_config(tmp_path / "run.yaml", folder, tmp_path / "labels")
    strict = command("label", "--config", config)
    assert strict.returncode == 3, strict.stderr
    assert command("label", "--config", config, "--set", "max_failed_fraction=0.5").returncode == 0
    images = {row["image_key"]: row for row in segray.images(str(tmp_path / "labels")).to_table().to_pylist()}
    assert len(images) == 10
    assert sum(row["status"] == "failed" for row in images.values()) == 5
    assert all(row["stage"] and row["message"] for row in images.values() if row["status"] == "failed")
    alone = write_config(tmp_path / "alone.yaml", scenes / "images", tmp_path / "alone")
    assert command("label", alone, "--limit", 5).returncode == 0
    assert contents(tmp_path / "labels")[0] == contents(tmp_path / "alone")[0]


def break_files(folder: Path) -> dict[Path, tuple[bytes, int]]:
    """Break every second file so that its size and time of change stay. Return what they were."""
    before = {}
    for path in sorted(folder.iterdir())[::2]:
        before[path] = path.read_bytes(), path.stat().st_mtime_ns
        write(path, b"\0" * len(before[path][0]), before[path][1])
    return before


def write(path: Path, data: bytes, changed_ns: int) -> None:
    path.write_bytes(data)
    os.utime(path, ns=(changed_ns, changed_ns))


def accuracy(root: Path, truth: Path) -> Any:
    return json.loads(command("evaluate", root, "--truth", truth, "--json").stdout)["scores"]


@pytest.mark.chaos
def test_mended_files_are_labelled_again_on_request_alone(tmp_path: Path, scenes: Path) -> None:
    shutil.copytree(scenes / "images", tmp_path / "images")
    before = break_files(tmp_path / "images")
    config = write_config(tmp_path / "run.yaml", tmp_path / "images", tmp_path / "labels", unit_images=8)
    first = command("label", "--config", config, "--json")
    assert first.returncode == 3, first.stderr
    assert json.loads(first.stdout)["of_runs"]["failed"] == 24
    for path, (data, changed_ns) in before.items():
        write(path, data, changed_ns)
    second = command("label", "--config", config)
    assert second.returncode == 0, second.stderr
    assert "nothing to do: all 48 images" in second.stderr
    assert "24 of them as failed. Failed: 24 at decode" in second.stderr
    assert "failed in earlier runs: 24 at decode;" in second.stdout
    third = command("label", "--config", config, "--retry-failed", "read", "infer")
    assert "nothing to do" in third.stderr
    fourth = command("label", "--config", config, "--retry-failed", "read", "decode", "--json")
    assert fourth.returncode == 0, fourth.stderr
    assert "24 of 48 images to label, 24 of them failed before" in fourth.stderr
    result = json.loads(fourth.stdout)
    assert (sum(result["of_runs"].values()), result["failed_before"]) == (24, {})
    fresh = write_config(tmp_path / "fresh.yaml", tmp_path / "images", tmp_path / "fresh")
    assert command("label", fresh).returncode == 0
    assert contents(tmp_path / "labels") == contents(tmp_path / "fresh")
    assert accuracy(tmp_path / "labels", scenes / "truth.json") == accuracy(tmp_path / "fresh", scenes / "truth.json")
    assert command("verify", tmp_path / "labels").returncode == 0


@pytest.mark.chaos
@pytest.mark.usefixtures("own_ray")
@pytest.mark.parametrize("staged_files", [1, 5])
def test_a_killed_retry_is_resumed_by_the_same_command(tmp_path: Path, scenes: Path, staged_files: int) -> None:
    """The second kill comes after the first batch of the retry is committed."""
    shutil.copytree(scenes / "images", tmp_path / "images")
    before = break_files(tmp_path / "images")
    config = write_config(
        tmp_path / "run.yaml", tmp_path / "images", tmp_path / "labels", unit_images=4, publish={"batch_images": 8}
    )
    assert command("label", "--config", config).returncode == 3
    for path, (data, changed_ns) in before.items():
        write(path, data, changed_ns)
    runs = tmp_path / "labels" / "_segray" / "runs"
    (first,) = runs.iterdir()
    process = start("label", "--config", config, "--retry-failed")
    deadline = time.monotonic() + 120
    while sum(first not in path.parents for path in runs.glob("*/staged/*.arrow")) < staged_files:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    resumed = command("label", "--config", config, "--retry-failed")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming run" in resumed.stderr
    assert command("label", "--config", config, "--retry-failed").returncode == 0
    fresh = write_config(tmp_path / "fresh.yaml", tmp_path / "images", tmp_path / "fresh")
    assert command("label", fresh).returncode == 0
    assert contents(tmp_path / "labels") == contents(tmp_path / "fresh")
    assert command("verify", tmp_path / "labels").returncode == 0


@in_both_ways
def test_a_changed_and_a_new_image_are_labelled_and_nothing_else(
    command: Command, tmp_path: Path, scenes: Path
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    first, second, third = sorted((scenes / "images").iterdir())[:3]
    shutil.copy(first, folder / "a.jpg")
    shutil.copy(second, folder / "b.jpg")
    config = write_config(tmp_path / "run.yaml", folder, tmp_path / "labels")
    assert command("label", "--config", config).returncode == 0
    shutil.copy(third, folder / "b.jpg")
    shutil.copy(second, folder / "c.jpg")
    done = command("label", "--config", config)
    assert done.returncode == 0, done.stderr
    assert "2 of 3 images to label" in done.stderr
    images = segray.images(str(tmp_path / "labels")).to_table().to_pylist()
    assert sorted((row["image_key"], row["batch"]) for row in images) == [("a.jpg", 1), ("b.jpg", 2), ("c.jpg", 2)]
    counts = {row["image_key"]: row["n_instances"] for row in images}
    found = segray.scan(str(tmp_path / "labels")).to_table().column("image_key").to_pylist()
    assert {key: found.count(key) for key in counts} == counts


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"name": "sticker"}}, "stickers"),
        ({"model": {"name": "yolact-resnet50-fpn-pytorch", "path": "none.xml", "form": "original"}}, "none.xml"),
        ({"source": {"uri": "empty"}}, "empty"),
        ({"unit_image": 3}, "unit_images"),
        ({"workers": [{"device": "CPU", "num_cpus": 4096}]}, "4096"),
    ],
)
def test_bad_input_is_refused_with_exit_2_and_nothing_written(
    tmp_path: Path, scenes: Path, change: dict[str, Any], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    source = tmp_path / "empty" if "source" in change else scenes / "images"
    more = {key: value for key, value in change.items() if key != "source"}
    config = write_config(tmp_path / "run.yaml", source, tmp_path / "labels", **more)
    done = here("label", "--config", config)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "labels").glob("i*/*.parquet"))


@in_both_ways
def test_a_root_of_another_model_is_refused_before_any_image_is_read(
    command: Command, tmp_path: Path, scenes: Path
) -> None:
    config = write_config(tmp_path / "run.yaml", scenes / "images", tmp_path / "labels")
    assert command("label", "--config", config, "--limit", 2).returncode == 0
    done = command("label", "--config", config, "--set", "model.score_threshold=0.5")
    assert done.returncode == 2
    assert "model.score_threshold: 0.05 -> 0.5" in done.stderr
    assert segray.images(str(tmp_path / "labels")).count_rows() == 2


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path, scenes: Path) -> None:
    config = write_config(tmp_path / "run.yaml", scenes / "images", tmp_path / "labels")
    done = here("label", "--config", config, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "48 of 48 images to label" in done.stderr
    assert not (tmp_path / "labels").exists()
