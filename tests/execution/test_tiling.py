"""tiles.py: windows cover the image; what they found becomes what one look at the image would have found."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from properties import tried

from segray import rle
from segray.execution.tiling import TilingOptions, Window, merge, place, windows
from segray.instances import Instances

SIZE_HW = (300, 400)
TILES = TilingOptions(160, 0.25, whole=True)


def mask_of(x0: int, y0: int, x1: int, y1: int) -> NDArray[np.bool_]:
    mask = np.zeros(SIZE_HW, np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def seen(mask: NDArray[np.bool_], window: Window, class_id: int = 1, score: float = 0.9) -> Instances:
    """What a perfect network would find of it in the window."""
    part = mask[window.slices]
    if not part.any():
        return Instances.empty(window.size_hw)
    counts = rle.encode(part)
    x, y, w, h = rle.bbox(counts, window.size_hw)
    box = np.array([[x, y, x + w, y + h]], np.float32)
    return Instances(np.array([class_id], np.int32), np.array([score], np.float32), box, (counts,), window.size_hw)


def looked_at(mask: NDArray[np.bool_], tiles: TilingOptions = TILES) -> list[tuple[Window, Instances]]:
    return [(window, place(seen(mask, window), window, SIZE_HW)) for window in windows(SIZE_HW, tiles)]


@given(
    st.tuples(st.integers(1, 900), st.integers(1, 900)),
    st.integers(64, 300),
    st.floats(0, 0.85),
    st.booleans(),
)
def test_windows_cover_the_image_and_stay_in_it(
    size_hw: tuple[int, int], size: int, overlap: float, whole: bool
) -> None:
    covered = np.zeros(size_hw, np.bool_)
    found = windows(size_hw, TilingOptions(size, overlap, whole))
    for window in found[: len(found) - (whole and len(found) > 1)]:
        assert 0 <= window.x0 < window.x1 <= size_hw[1]
        assert 0 <= window.y0 < window.y1 <= size_hw[0]
        assert window.size_hw == (min(size, size_hw[0]), min(size, size_hw[1]))
        covered[window.slices] = True
    assert covered.all()
    assert len(set(found)) == len(found)
    assert not whole or found[-1] == Window(0, 0, size_hw[1], size_hw[0])


@given(st.integers(65, 5000), st.integers(64, 1200), st.floats(0, 0.85))
def test_windows_are_spread_evenly_and_as_few_as_the_overlap_allows(length: int, size: int, overlap: float) -> None:
    starts = [window.x0 for window in windows((1, length), TilingOptions(size, overlap, whole=False))]
    steps = np.diff(starts)
    longest_step = max(1, size - int(size * overlap + 1e-6))
    assert starts[0] == 0
    assert starts[-1] == max(0, length - size)
    if len(steps):
        assert steps.max() - steps.min() <= 1
        assert steps.max() <= longest_step
        assert (len(steps) - 1) * longest_step < starts[-1]


def test_no_window_is_one_pixel_beside_another() -> None:
    def starts(width: int) -> list[int]:
        return [window.x0 for window in windows((1024, width), TilingOptions(1024, 0.2, whole=False))]

    assert starts(1844) == [0, 820]  # before: 0, 819, 820
    assert starts(1900) == [0, 438, 876]  # before: 0, 819, 876


@tried(60)
@given(st.integers(0, 2**32 - 1))
def test_a_mask_is_placed_pixel_by_pixel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size_hw = tuple(int(side) for side in rng.integers(1, 40, 2))
    x0, y0 = int(rng.integers(size_hw[1])), int(rng.integers(size_hw[0]))
    window = Window(x0, y0, int(rng.integers(x0 + 1, size_hw[1] + 1)), int(rng.integers(y0 + 1, size_hw[0] + 1)))
    part = rng.random(window.size_hw) < rng.choice([0.1, 0.5, 0.9, 1.0])
    counts = (rle.encode(part),)
    box = np.array([[0, 0, *window.size_hw[::-1]]], np.float32)
    found = Instances(np.array([1], np.int32), np.array([1], np.float32), box, counts, window.size_hw)
    whole = np.zeros(size_hw, np.bool_)
    whole[window.slices] = part
    placed = place(found, window, (size_hw[0], size_hw[1]))
    assert placed.rles == (rle.encode(whole),)
    assert placed.boxes_xyxy.tolist() == [[window.x0, window.y0, window.x1, window.y1]]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    "box",
    [
        (10, 20, 60, 70),
        (100, 100, 180, 160),
        (20, 130, 390, 150),
        (0, 0, 400, 300),
        (150, 5, 155, 295),
        (399, 299, 400, 300),
    ],
)
def test_a_thing_is_found_once_and_whole(box: tuple[int, int, int, int], whole: bool) -> None:
    mask = mask_of(*box)
    found = merge(looked_at(mask, TilingOptions(160, 0.25, whole)), SIZE_HW, 100)
    assert found.rles == (rle.encode(mask),)
    assert found.boxes_xyxy.tolist() == [list(box)]


def test_neighbours_of_one_class_stay_apart() -> None:
    things = [mask_of(90, 100, 140, 150), mask_of(140, 100, 190, 150), mask_of(190, 100, 240, 150)]
    parts = [part for thing in things for part in looked_at(thing)]
    found = merge(parts, SIZE_HW, 100)
    assert set(found.rles) == {rle.encode(thing) for thing in things}
    assert len(merge(parts, SIZE_HW, 2)) == 2


def test_the_best_score_and_the_whole_view_win() -> None:
    left, right, around = Window(0, 0, 160, 160), Window(120, 0, 280, 160), Window(0, 0, 400, 300)
    mask, coarse = mask_of(125, 40, 150, 80), mask_of(124, 39, 152, 82)
    parts = [
        (left, place(seen(mask, left, score=0.6), left, SIZE_HW)),
        (right, place(seen(mask, right, score=0.7), right, SIZE_HW)),
        (around, place(seen(coarse, around, score=0.95), around, SIZE_HW)),
    ]
    found = merge(parts, SIZE_HW, 100)
    assert found.rles == (rle.encode(mask),)
    assert found.scores.tolist() == [np.float32(0.95)]


def test_a_piece_taken_for_something_else_is_no_thing() -> None:
    left, right, whole = Window(0, 0, 160, 160), Window(120, 0, 280, 160), Window(0, 0, *SIZE_HW[::-1])
    mask = mask_of(130, 40, 200, 80)
    piece = place(seen(mask, left, class_id=7, score=0.95), left, SIZE_HW)
    view = place(seen(mask, right, class_id=1, score=0.5), right, SIZE_HW)
    nothing = (whole, Instances.empty(SIZE_HW))
    found = merge([(left, piece), (right, view), nothing], SIZE_HW, 100)
    assert found.class_ids.tolist() == [1]
    inside = place(seen(mask_of(130, 50, 140, 60), left, class_id=7), left, SIZE_HW)  # seen whole: a thing on a thing
    assert sorted(merge([(left, inside), (right, view), nothing], SIZE_HW, 100).class_ids.tolist()) == [1, 7]


@tried(60)
@given(st.tuples(st.integers(0, 300), st.integers(0, 200), st.integers(170, 380), st.integers(20, 90)), st.booleans())
def test_a_thing_in_front_of_a_larger_one_stays_if_every_window_cuts_it(
    box_xywh: tuple[int, int, int, int], whole: bool
) -> None:
    """The thing is wider than a window of 160 px."""
    x, y, width, height = box_xywh
    thing, larger = mask_of(x, y, min(400, x + width), y + height), mask_of(0, 0, 400, 300)
    tiles = TilingOptions(160, 0.25, whole)
    parts = [
        (window, place(seen(mask, window, class_id), window, SIZE_HW))
        for class_id, mask in ((1, larger), (7, thing))
        for window in windows(SIZE_HW, tiles)
    ]
    merged = merge(parts, SIZE_HW, 100)
    assert sorted(zip(merged.class_ids.tolist(), merged.rles, strict=True)) == [
        (1, rle.encode(larger)),
        (7, rle.encode(thing)),
    ]


def test_a_piece_is_hidden_by_a_larger_object_of_its_class() -> None:
    left, right = Window(0, 0, 160, 160), Window(120, 0, 280, 160)
    larger, part = mask_of(125, 30, 260, 90), mask_of(150, 40, 160, 60)  # The left window shows a fragment of it.
    parts = [
        (left, place(seen(part, left, score=0.95), left, SIZE_HW)),
        (right, place(seen(larger, right, score=0.5), right, SIZE_HW)),
    ]
    assert merge(parts, SIZE_HW, 100).rles == (rle.encode(larger),)


def test_nothing_is_nothing() -> None:
    found = merge([(Window(0, 0, 160, 160), Instances.empty(SIZE_HW, unreadable=2))], SIZE_HW, 100)
    assert (len(found), found.unreadable, found.size_hw) == (0, 2, SIZE_HW)
