"""`python -m benchmarks.measure_analytics 10000 100000 1000000`: cost of evaluate, diff and select by number of images.

Two label sets of generated detections share nine tenths of their rows; the first also gives COCO truth. Each command
runs in a process of its own. The figures are CPU seconds, all imports included, and peak memory in MB.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks import synthetic_rows
from segray._system import memory
from segray.analytics.evaluation.evaluate import evaluate
from segray.analytics.export.export import ExportSelection, export
from segray.analytics.reports.diff import diff
from segray.analytics.review.sampling import select
from segray.instances import ImageRef
from segray.label_set import batches, commit, merge, run_records
from segray.label_set.class_names import partition_value
from segray.label_set.run_records import LabelSetIdentity
from segray.models.coco_labels import COCO_NAMES
from segray.storage.store import StorageOptions, Store
from segray.tasks import Task

OPTIONS = StorageOptions()
UNIT_IMAGES, BATCH_UNITS, FILE_ROWS, DISTINCT_ROWS = 256, 200, 500_000, 20_000


def commit_label_set(root: str, images: int, pool: pa.StructArray, per_image: float) -> None:
    """Commit a label set as a run does, 51,200 images per batch.

    The seed is fixed, so an image has the same number of rows in every label set.
    """
    run, store = replace(run_records.new_run(root), id="made"), Store()
    commit.create_tables(run.root, OPTIONS)
    classes = tuple((i, name, partition_value(name)) for i, name in COCO_NAMES.items())
    run_records.create_or_check(store, run.root, LabelSetIdentity("made", {}, classes))
    stager = synthetic_rows.Stager(pool, per_image, np.random.default_rng(0))
    names = []
    for unit, first in enumerate(range(0, images, UNIT_IMAGES)):
        keys = [f"camera-{i // 10_000:04d}/IMG_{i:08d}.jpg" for i in range(first, min(images, first + UNIT_IMAGES))]
        refs = [ImageRef(key, f"s3://bucket/{key}", f"{i:032x}", 100_000) for i, key in enumerate(keys, first)]
        names.append(stager.stage(store, run.staged, Task(unit, 0, len(refs)), refs).staged)
    for number, first in enumerate(range(0, len(names), BATCH_UNITS), 1):
        batch_names = tuple(names[first : first + BATCH_UNITS])
        inputs = batches.Inputs(batch_names, {"run_id": run.id}, FILE_ROWS)
        commit.commit(merge.merge(run, number, inputs, OPTIONS), run, OPTIONS, store)


def write_inputs(folder: Path, images: int, per_image: float, commands: Collection[str]) -> None:
    """Write label set `a`, and the other inputs of these commands.

    Label set `b` is for comparisons; truth.json holds the instances of `a` with a score of at least 0.5.
    """
    rng = np.random.default_rng(1)
    pool = synthetic_rows.instance_rows(synthetic_rows.generate_shapes(2000, rng), DISTINCT_ROWS, rng)
    commit_label_set(str(folder / "a"), images, pool, per_image)
    if {"diff", "select"} & set(commands):
        rows = np.arange(DISTINCT_ROWS)
        other_pool = pool.take(pa.array(np.where(rows % 10, rows, (rows + 1) % DISTINCT_ROWS)))
        commit_label_set(str(folder / "b"), images, other_pool, per_image)
    if "evaluate" in commands:
        export(str(folder / "a"), "coco", folder / "truth.json", ExportSelection(min_score=0.5))


COMMANDS: dict[str, Callable[[Path], Any]] = {
    "evaluate": lambda folder: evaluate(str(folder / "a"), folder / "truth.json"),
    "diff": lambda folder: diff(str(folder / "a"), str(folder / "b")),
    "select": lambda folder: select(
        str(folder / "a"),
        {"uncertain": 200, "rare": 200, "diverse": 200, "disagree": 200, "random": 200},
        out=folder / "chosen.json",
        against=str(folder / "b"),
    ),
}


def run_command(name: str, folder: Path) -> tuple[float, float]:
    """Run one command; return its CPU seconds and peak megabytes.

    Call this function in a process of its own. The memory allocators are set as in the command.
    """
    memory.release_freed_memory()
    COMMANDS[name](folder)
    return time.process_time(), memory.peak_bytes() / 1e6


def in_new_process(call: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process; return the result."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(call, arguments)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=int, nargs="+")
    parser.add_argument("--per-image", type=float, default=3.0, help="average number of instances in an image")
    parser.add_argument("--only", nargs="+", choices=list(COMMANDS), default=list(COMMANDS))
    options = parser.parse_args()
    memory.release_freed_memory()  # Arrow reads the setting when it is loaded; child processes inherit the setting.
    print(f"{'images':>10}  {'command':10} {'CPU s':>8} {'peak MB':>8}")
    for images in options.images:
        with tempfile.TemporaryDirectory(prefix="segray-") as name:
            in_new_process(write_inputs, Path(name), images, options.per_image, options.only)
            for command in options.only:
                cpu_s, peak_mb = in_new_process(run_command, command, Path(name))
                print(f"{images:>10,}  {command:10} {cpu_s:>8.0f} {peak_mb:>8.0f}", flush=True)


if __name__ == "__main__":
    main()
