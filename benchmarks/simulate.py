"""`python -m benchmarks.simulate`: cost by workers and images, on simulated clusters, as a Markdown table.

Each row runs in a process of its own, so that its memory is measured alone. --publish merges and commits generated
detections in a temporary folder, which is slow: use it for one or two rows.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile

import numpy as np

from benchmarks import simulated_cluster, synthetic_rows
from segray._system import memory

HEADER = (
    "| images | workers | pools | ideal s | efficiency | tail idle | tasks | driver ms/task | driver MB | publishing |"
)


def row(images: int, workers: int, mixed: bool, publish: bool) -> str:
    """Return one row of the table. mixed: half of the workers are ten times slower."""
    half = workers // 2
    fast = simulated_cluster.Pool(workers - half)
    slow = simulated_cluster.Pool(half, image_s=10 * simulated_cluster.Pool(1).image_s)
    load = simulated_cluster.Load(images, (fast, slow) if mixed else (simulated_cluster.Pool(workers),))
    if publish:
        rng = np.random.default_rng(0)
        pool = synthetic_rows.instance_rows(synthetic_rows.generate_shapes(500, rng), 20_000, rng)
        stager = synthetic_rows.Stager(pool, 7, rng)
        with tempfile.TemporaryDirectory() as root:
            outcome = simulated_cluster.simulate(load, root, stager)
    else:
        outcome = simulated_cluster.simulate(load)
    publish_s = outcome.merge_s + outcome.commit_s
    return (
        f"| {images:,} | {workers} | {'1 : 10' if mixed else 'equal'} | {outcome.ideal_s:,.0f} "
        f"| {outcome.efficiency:.3f} | {outcome.tail_idle:.1%} | {outcome.tasks:,} "
        f"| {1000 * outcome.driver_s / outcome.tasks:.2f} | {memory.peak_bytes() / 2**20:.0f} "
        f"| {f'{publish_s / outcome.makespan_s:.1%} of the time' if publish else '-'} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--publish", action="store_true")
    options = parser.parse_args()
    print(HEADER, "|---" * HEADER.count(" | ") + "|---|", sep="\n", flush=True)
    spawn = multiprocessing.get_context("spawn")
    for images in options.images:
        for workers in options.workers:
            for mixed in (False, True) if workers > 1 else (False,):
                with spawn.Pool(1) as process:
                    print(process.apply(row, (images, workers, mixed, options.publish)), flush=True)


if __name__ == "__main__":
    main()
