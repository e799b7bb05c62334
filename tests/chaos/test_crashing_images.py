"""Images that kill, hang or swell their process, under real Ray: each found, its neighbours none the worse."""

from __future__ import annotations

import platform
import re
import shutil
from pathlib import Path

import pytest
from command import segray as command
from command import write_config
from crashing_images import environment, make_crashing
from label_sets import contents

import segray
from segray.synthetic import dataset

KILLERS = {5: ("decode", "segfault"), 17: ("infer", "segfault"), 26: ("decode", "hang"), 34: ("decode", "hoard")}
RAISERS = {9: ("decode", "raise"), 10: ("infer", "raise"), 11: ("postprocess", "raise")}


@pytest.mark.chaos
@pytest.mark.parametrize("max_attempts", [2, 3])
def test_every_culprit_is_found_within_its_attempts_and_its_neighbours_are_untouched(
    tmp_path: Path, ray_address: str, max_attempts: int
) -> None:
    """Four killers and three raisers among 40 images, two workers, units of 20."""
    dataset.write(tmp_path / "scenes", 40, seed=11)
    clean, mixed = tmp_path / "scenes" / "images", tmp_path / "mixed"
    shutil.copytree(clean, mixed)
    names = sorted(path.name for path in clean.iterdir())
    for index, (stage, deed) in {**KILLERS, **RAISERS}.items():
        make_crashing(mixed / names[index], stage, deed)
    more = {
        "unit_images": 20,
        "max_attempts": max_attempts,
        "max_failed_fraction": 0.5,
        "image": {"timeout_s": 5},
        "workers": [{"count": 2, "num_cpus": 1, "max_rss_mb": 900}],
    }
    undisturbed = write_config(tmp_path / "clean.yaml", clean, tmp_path / "clean", **more)
    done = command("label", "--config", undisturbed, env={"RAY_ADDRESS": ray_address})
    assert done.returncode == 0, done.stderr
    crashing = write_config(tmp_path / "crashing.yaml", mixed, tmp_path / "crashing", **more)
    done = command("label", "--config", crashing, env=environment(tmp_path / "plant"), timeout_s=500)
    assert done.returncode == 0, done.stderr

    rows = {row["image_key"]: row for row in segray.images(str(tmp_path / "crashing")).to_table().to_pylist()}
    assert len(rows) == 40
    failed = {key: row["stage"] for key, row in rows.items() if row["status"] == "failed"}
    assert failed == {
        **{names[index]: "process" for index in KILLERS},
        **{names[index]: stage for index, (stage, _) in RAISERS.items()},
    }
    for index in KILLERS:
        assert rows[names[index]]["attempts"] == max_attempts, done.stderr
        assert re.match(r"worker \d+ on \S+: ", rows[names[index]]["message"])
    stuck = rf"{re.escape(names[26])} \(image \d+ of unit \d+\) has been in decode for \d+ s"
    assert re.search(rf"worker \d+ on {re.escape(platform.node())} is replaced: {stuck}", done.stderr), done.stderr
    assert re.search(stuck, rows[names[26]]["message"])
    deaths = re.findall(r"worker \d+ on \S+ is (?:lost|replaced)", done.stderr)
    assert len(deaths) <= max_attempts * len(KILLERS), done.stderr

    copied = ("version", "uri")
    for want, have in zip(contents(tmp_path / "clean", copied), contents(tmp_path / "crashing", copied), strict=True):
        assert {k: v for k, v in have.items() if k not in failed} == {k: v for k, v in want.items() if k not in failed}


@pytest.mark.chaos
def test_a_run_in_which_every_image_hangs_ends_with_exit_3_and_names_one(tmp_path: Path) -> None:
    dataset.write(tmp_path / "scenes", 12, seed=5)
    source = tmp_path / "scenes" / "images"
    for path in source.iterdir():
        make_crashing(path, "infer", "hang")
    more = {
        "unit_images": 4,
        "max_attempts": 1,
        "image": {"timeout_s": 3},
        "cluster": {"stall_timeout_s": 45},
        "workers": [{"count": 2, "num_cpus": 1}],
    }
    config = write_config(tmp_path / "run.yaml", source, tmp_path / "labels", **more)
    done = command("label", "--config", config, env=environment(tmp_path / "plant"))
    assert done.returncode == 3, done.stderr
    assert re.search(
        rf"the last: worker \d+ on {re.escape(platform.node())}: \S+\.jpg \(image \d+ of unit \d+\) has been in infer",
        done.stderr,
    ), done.stderr
    assert "run the same command again" in done.stderr


@pytest.mark.chaos
def test_a_worker_over_its_ceiling_is_replaced_between_tasks_and_nobody_is_blamed(tmp_path: Path) -> None:
    """One image leaks more than the room above what the model needs, and less than would have it killed."""
    dataset.write(tmp_path / "scenes", 24, seed=2)
    source = tmp_path / "scenes" / "images"
    make_crashing(sorted(source.iterdir())[3], "decode", "leak")
    config = write_config(tmp_path / "run.yaml", source, tmp_path / "none", workers=[{"max_rss_mb": 20}])
    refused = command("label", "--config", config)
    assert refused.returncode == 2, refused.stderr
    assert "max_rss_mb" in refused.stderr
    needed = re.search(r"(\d+) MiB after loading, 20 allowed", refused.stderr)
    assert needed is not None, refused.stderr
    ceiling = int(needed.group(1)) + 150
    config = write_config(
        tmp_path / "run.yaml", source, tmp_path / "labels", unit_images=4, workers=[{"max_rss_mb": ceiling}]
    )
    done = command("label", "--config", config, env=environment(tmp_path / "plant"))
    assert done.returncode == 0, done.stderr
    assert re.search(r"worker 0 on \S+ is replaced: it holds \d+ MiB of memory\n", done.stderr), done.stderr
    rows = segray.images(str(tmp_path / "labels")).to_table().to_pylist()
    assert [(row["status"] == "failed", row["attempts"]) for row in rows] == [(False, 1)] * 24
