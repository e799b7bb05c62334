"""`python -m benchmarks.bench_publish`: CPU seconds from staged files to committed tables, in one process.

Generated detections (or real ones, varied, with --detections) are staged, then merged and committed in batches. For
comparison, pyarrow.dataset.write_dataset writes the same rows. Each measurement runs in a process of its own.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from benchmarks import synthetic_rows
from segray._system import memory
from segray.instances import ImageRef
from segray.label_set import batches, commit, merge
from segray.label_set.delta_log import DataFile
from segray.label_set.run_records import Run
from segray.storage.store import StorageOptions, Store
from segray.tasks import Task

OPTIONS = StorageOptions()
UNIT_IMAGES, INSTANCES_PER_IMAGE = 256, 7


def stage(root: str, instances: int, distinct: int, source: str | None) -> list[str]:
    """Write staged files with about `instances` rows, `distinct` of which differ.

    Returns the files' names in the plan's order.
    """
    rng = np.random.default_rng(0)
    shapes = synthetic_rows.read_shapes(Path(source)) if source else synthetic_rows.generate_shapes(2000, rng)
    pool = synthetic_rows.instance_rows(shapes, min(distinct, instances), rng)
    stager = synthetic_rows.Stager(pool, INSTANCES_PER_IMAGE, rng)
    run, store, names = Run(root, "bench"), Store(), []
    for unit, first in enumerate(range(0, instances // INSTANCES_PER_IMAGE, UNIT_IMAGES)):
        keys = {i: f"raw/2026/11/{i:010d}-a-name-of-common-length.jpg" for i in range(first, first + UNIT_IMAGES)}
        refs = [ImageRef(key, f"s3://bucket/{key}", f"{i * 2654435761:032x}", 100_000) for i, key in keys.items()]
        names.append(stager.stage(store, run.staged, Task(unit, 0, UNIT_IMAGES), refs).staged)
    return names


def publish(root: str, names: list[str], batch_images: int, file_rows: int) -> dict[str, Any]:
    """Merge and commit all staged files; return rows, CPU seconds, file sizes and peak memory."""
    commit.create_tables(root, OPTIONS)
    run, step = Run(root, "bench"), max(1, batch_images // UNIT_IMAGES)
    files: list[DataFile] = []
    rows, merge_s, commit_s = 0, 0.0, 0.0
    for number, first in enumerate(range(0, len(names), step), 1):
        inputs = batches.Inputs(tuple(names[first : first + step]), {"run_id": run.id}, file_rows)
        start_s = time.process_time()
        batch = merge.merge(run, number, inputs, OPTIONS)
        merged_s = time.process_time()
        commit.commit(batch, run, OPTIONS, Store())
        merge_s, commit_s = merge_s + merged_s - start_s, commit_s + time.process_time() - merged_s
        rows += batch.instances
        files += batch.tables["instances"].add
    sizes = sorted(file.size_bytes for file in files)
    return {
        "rows": rows,
        "s": merge_s + commit_s,
        "commit_s": commit_s,
        "sizes": sizes,
        "peak_mb": memory.peak_bytes() / 2**20,
    }


def write_dataset(root: str, names: list[str], batch_images: int) -> dict[str, Any]:
    """Write the same rows, unsorted and without commits, by pyarrow alone with its defaults and zstd."""
    run, step, sizes = Run(root, "bench"), max(1, batch_images // UNIT_IMAGES), []
    rows, spent_s = 0, 0.0
    for number, first in enumerate(range(0, len(names), step), 1):
        start_s = time.process_time()
        staged = merge.staged_rows(Store(), run, names[first : first + step])
        table = pa.concat_tables([merge.instance_rows(batch, number) for batch in staged])
        options = ds.ParquetFileFormat().make_write_options(compression="zstd")
        ds.write_dataset(
            table, f"{root}/write_dataset/{number}", format="parquet", file_options=options,
            partitioning=ds.partitioning(pa.schema([("class_name", pa.string())]), flavor="hive"),
        )  # fmt: skip
        spent_s += time.process_time() - start_s
        rows += table.num_rows
        sizes += [path.stat().st_size for path in Path(root, "write_dataset", str(number)).rglob("*.parquet")]
    return {"rows": rows, "s": spent_s, "commit_s": 0.0, "sizes": sorted(sizes), "peak_mb": memory.peak_bytes() / 2**20}


def print_result(name: str, result: dict[str, Any]) -> None:
    sizes = result["sizes"]
    print(
        f"{name:<28} {result['rows'] / result['s']:>9,.0f} instances/s/core  "
        f"{sum(sizes) / result['rows']:>6.1f} B/instance  peak {result['peak_mb']:>5.0f} MB  "
        f"commits {result['commit_s']:.2f} s  {len(sizes)} files, {sizes[0] / 1e3:.0f} kB to {sizes[-1] / 1e6:.1f} MB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instances", type=int, default=1_000_000)
    parser.add_argument("--distinct", type=int, default=350_000)
    parser.add_argument("--detections", help="output of YOLACT's eval.py with --output_web_json")
    parser.add_argument("--batch-images", type=int, nargs="+", default=[50_000])
    parser.add_argument("--file-rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=1, help="number of rounds, of which the best counts")
    options = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as work:
        with spawn.Pool(1) as process:
            names = process.apply(stage, (work, options.instances, options.distinct, options.detections))
        staged = sum(path.stat().st_size for path in Path(Run(work, "bench").staged).iterdir())
        print(f"{len(names)} staged files, {staged / 1e6:.0f} MB")
        for batch_images in options.batch_images:
            calls: list[tuple[str, Callable[..., dict[str, Any]], tuple[Any, ...]]] = [
                ("segray", publish, (names, batch_images, options.file_rows)),
                ("pyarrow's write_dataset", write_dataset, (names, batch_images)),
            ]
            for name, call, arguments in calls:
                results = []
                for number in range(options.rounds):
                    root = f"{work}/{name[:6]}{batch_images}-{number}"
                    Path(root, "_segray", "runs").mkdir(parents=True)
                    Path(Run(root, "bench").folder).symlink_to(Run(work, "bench").folder)
                    with spawn.Pool(1) as process:
                        results.append(process.apply(call, (root, *arguments)))
                print_result(f"{name} ({batch_images:,})", min(results, key=lambda result: result["s"]))


if __name__ == "__main__":
    main()
