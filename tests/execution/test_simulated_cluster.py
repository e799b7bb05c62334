"""Simulated clusters: how well the workers are used, by the real scheduler and event loop."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import segray
from benchmarks import synthetic_rows
from benchmarks.simulated_cluster import Load, Outcome, Pool, simulate
from segray import rle

SLOW = 5.0


def simulated(images: int, *pools: Pool) -> Outcome:
    return simulate(Load(images, pools), timed=False)


def test_sixteen_workers_are_busy_and_end_together() -> None:
    outcome = simulated(10_000, Pool(16))
    assert outcome.efficiency >= 0.95
    assert outcome.tail_idle < 0.05


@pytest.mark.integration
def test_a_pool_ten_times_slower_costs_the_other_nothing() -> None:
    outcome = simulated(10_000, Pool(8), Pool(8, SLOW))
    assert outcome.makespan_s <= 1.1 * outcome.ideal_s
    assert outcome.tail_idle < 0.05


@pytest.mark.integration
def test_one_fast_worker_among_slow_ones() -> None:
    outcome = simulated(5_000, Pool(1), Pool(15, SLOW))
    assert outcome.makespan_s <= 1.1 * outcome.ideal_s


def test_the_same_load_gives_the_same_outcome() -> None:
    assert simulated(2_000, Pool(3)).labelled_s == simulated(2_000, Pool(3)).labelled_s


def stager(seed: int = 0) -> synthetic_rows.Stager:
    rng = np.random.default_rng(seed)
    return synthetic_rows.Stager(synthetic_rows.instance_rows(synthetic_rows.generate_shapes(20, rng), 60, rng), 3, rng)


def test_what_is_published_is_every_image_once(tmp_path: Path) -> None:
    outcome = simulate(Load(300, (Pool(3),), batch_images=150), str(tmp_path), stager())
    keys = segray.images(str(tmp_path)).to_table().column("image_key").to_pylist()
    assert len(keys) == len(set(keys)) == 300
    assert segray.scan(str(tmp_path)).count_rows() == outcome.instances
    assert outcome.merge_s > 0


def test_made_up_masks_are_what_their_rows_say() -> None:
    rng = np.random.default_rng(1)
    for row in synthetic_rows.instance_rows(synthetic_rows.generate_shapes(20, rng), 60, rng).to_pylist():
        mask = rle.decode(row["rle"], (480, 640))
        assert mask.sum() == row["area"] == rle.area(row["rle"])
        assert rle.bbox(row["rle"], (480, 640)).tolist() == [row[f"bbox_{name}"] for name in "xywh"]


@pytest.mark.integration
@pytest.mark.parametrize("images", [10_000, pytest.param(100_000, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("pools", [(Pool(16),), (Pool(32), Pool(32, SLOW))], ids=["16", "64 mixed"])
def test_the_figures_hold_at_every_size(images: int, pools: tuple[Pool, ...]) -> None:
    outcome = simulated(images, *pools)
    assert outcome.makespan_s <= 1.1 * outcome.ideal_s
    assert outcome.tail_idle < (0.05 if images > 10_000 or len(pools) == 1 else 0.1)
