"""Who takes on how much: by measured speed, less and less near the end."""

from __future__ import annotations

import pytest

from segray.execution.chunk_sizing import ChunkSizer, Throughput


def pace(images_per_s: float, *, left: int = 0, in_flight: int = 0) -> Throughput:
    """Of a worker that has worked for a minute."""
    found = Throughput(0.0)
    found.assign(round(60 * images_per_s) + left, 0.0)
    found.update(round(60 * images_per_s), 60.0)
    found.in_flight = in_flight
    return found


def test_speed_is_what_was_finished_of_late_and_idle_time_is_not_counted() -> None:
    found = Throughput(0.0)
    assert found.images_per_s is None
    found.assign(1000, 5.0)
    for second in range(1, 301):
        found.update(2 * second, 5.0 + second)
    assert found.images_per_s == pytest.approx(2)
    found.update(1000, 505.0)
    found.assign(900, 10_000.0)
    for second in range(1, 301):
        found.update(1000 + 3 * second, 10_000.0 + second)
    assert found.images_per_s == pytest.approx(3, rel=0.01)
    assert found.pending == 0


def test_what_the_world_took_back_is_not_speed() -> None:
    found = Throughput(0.0)
    found.assign(256, 0.0)
    found.take_back(256)
    assert found.pending == 0
    assert found.images_per_s is None


def test_a_newcomer_is_tried_with_a_few_images_and_gets_no_second_task_before_it_has_done_one() -> None:
    shares = ChunkSizer({"new": Throughput(0.0), "old": pace(10)}, 100_000)
    assert shares.images_for("new", 256) == 8
    assert ChunkSizer({"new": Throughput(0.0), "old": pace(10)}, 64).images_for("new", 256) == 1
    tried = Throughput(0.0)
    tried.assign(8, 0.0)
    assert ChunkSizer({"new": tried}, 100_000).images_for("new", 256) == 0


def test_far_from_the_end_everyone_takes_whole_units() -> None:
    shares = ChunkSizer({"fast": pace(80, in_flight=8), "slow": pace(8, in_flight=8)}, 1_000_000)
    assert shares.images_for("fast", 256) == shares.images_for("slow", 256) == 256


def test_near_the_end_pieces_are_by_speed_and_shrink() -> None:
    paces = {"fast": pace(80), "slow": pace(8)}
    sizes = []
    for waiting in (880, 440, 220):
        shares = ChunkSizer(paces, waiting)
        sizes.append((shares.images_for("fast", 256), shares.images_for("slow", 256)))
    assert sizes == [(256, 27), (133, 13), (80, 8)]


def test_who_holds_enough_until_the_end_takes_nothing_more() -> None:
    shares = ChunkSizer({"fast": pace(80), "slow": pace(8, left=30)}, 300)
    assert shares.images_for("slow", 256) == 0
    assert shares.images_for("fast", 256) == 100


def test_a_slow_worker_leaves_the_last_images_to_the_fast_ones_unless_these_are_gone() -> None:
    slow = pace(1, in_flight=8)
    assert ChunkSizer({"fast": pace(80, left=100, in_flight=8), "slow": slow}, 60).images_for("slow", 256) == 0
    assert ChunkSizer({"slow": slow}, 60).images_for("slow", 256) == 20
    assert ChunkSizer({"equal": pace(1, left=8, in_flight=8), "slow": slow}, 8).images_for("slow", 256) == 8
    both = ChunkSizer({"fast": pace(80, in_flight=8), "slow": slow}, 60)
    assert [both.images_for(name, 256) for name in ("slow", "fast")] == [0, 80]


def test_few_fast_workers_among_many_slow_ones_do_not_make_these_idle() -> None:
    paces = {"fast": pace(10, left=20, in_flight=8), **{f"slow{i}": pace(1, in_flight=8) for i in range(100)}}
    assert ChunkSizer(paces, 1000).images_for("slow0", 256) > 0
