from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from properties import tried

from segray import rle
from segray.imaging import geometry, outlines
from segray.masks.arrays import Taps


def stretched_by_pillow(image: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """One pass at a time: of both at once Pillow 13 chooses the order, by size."""
    wide = Image.fromarray(image).resize((size_hw[1], image.shape[0]), Image.Resampling.BILINEAR)
    return np.asarray(wide.resize(size_hw[::-1], Image.Resampling.BILINEAR))


SIDES = st.integers(1, 400)


@settings(deadline=None)  # The first call loads the compiled loops.
@given(SIDES, SIDES, SIDES, SIDES, st.integers(0, 2**32 - 1))
def test_stretch_is_pillows_bilinear(height: int, width: int, to_height: int, to_width: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image.flags.writeable = False
    resized = geometry.stretch(image, (to_height, to_width))
    assert resized.dtype == np.uint8
    assert (resized == stretched_by_pillow(image, (to_height, to_width))).all()


@pytest.mark.parametrize("size_hw", [(480, 640), (1500, 1000), (333, 3001), (1512, 2016), (550, 900), (900, 550)])
def test_stretch_of_photographs_is_pillows(size_hw: tuple[int, int]) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    assert (geometry.stretch(image, (550, 550)) == stretched_by_pillow(image, (550, 550))).all()


def test_stretch_reads_any_layout_of_memory() -> None:
    image = np.random.default_rng(2).integers(0, 256, (90, 41, 3), dtype=np.uint8)[::-1].transpose(1, 0, 2)
    assert (geometry.stretch(image, (30, 50)) == stretched_by_pillow(image.copy(), (30, 50))).all()


def test_boxes_become_clipped_pixels() -> None:
    boxes = np.array([[0.25, 0.5, 0.5, 1], [-1, -0.5, 2, 1.5], [0.5, 0.5, 0.25, 0.25]], np.float32)
    expected = [[50, 50, 100, 100], [0, 0, 200, 100], [100, 50, 50, 25]]
    found = geometry.to_pixels(boxes, (100, 200))
    assert found.tolist() == expected
    assert found.dtype == np.float32


def test_taps_by_hand() -> None:
    taps = outlines.linear_taps(2, 4)
    assert taps.low.tolist() == [0, 0, 0, 1]
    assert taps.high.tolist() == [1, 1, 1, 1]
    assert taps.weight.tolist() == [0, 0.25, 0.75, 0]


def test_taps_of_a_part_are_part_of_the_taps() -> None:
    whole, part = outlines.linear_taps(17, 300), outlines.linear_taps(17, 300, 120, 180)
    assert part.first == 120
    for name in ("low", "high", "weight"):
        assert (getattr(part, name) == getattr(whole, name)[120:180]).all()


def test_a_box_of_two_billion_pixels_costs_what_the_image_costs() -> None:
    taps = outlines.tile_taps(np.float32(-(2**30)), np.float32(2**30), 15, 40)
    assert (taps.first, len(taps.low)) == (0, 40)
    assert set(taps.low.tolist()) <= {7, 8}


@pytest.mark.parametrize(
    ("size_hw", "expected"), [((480, 640), (480, 640)), ((640, 427), (480, 320)), ((1, 9000), (1, 640))]
)
def test_fitting_into_a_window(size_hw: tuple[int, int], expected: tuple[int, int]) -> None:
    assert geometry.fitted(size_hw, (480, 640)) == expected
    window = geometry.fit_and_pad(np.full((*size_hw, 3), 9, np.uint8), (480, 640))
    assert window.shape == (480, 640, 3)
    assert (window[: expected[0], : expected[1]] == 9).all()
    assert window.astype(int).sum() == 9 * 3 * expected[0] * expected[1]


def test_no_output_no_edges() -> None:
    some = outlines.linear_taps(4, 8)
    none = Taps(0, some.low[:0], some.high[:0], some.weight[:0])
    grid = np.ones((4, 4), np.float32)
    assert outlines.mask_edges(grid, none, some, 8).shape == (0,)
    assert outlines.mask_edges(grid, some, none, 8).shape == (0,)


def test_a_crop_that_no_output_reads_has_no_edges() -> None:
    rows = columns = outlines.linear_taps(100, 3)
    crops = np.array([[0, 0, 10, 10], [5, 5, 5, 5]])
    cells = outlines.crop_logits(np.ones((100, 100, 2), np.float32), crops, 0)
    edges, stops = outlines.edges_of_crops(cells, crops, rows, columns, 3)
    assert (edges.tolist(), stops.tolist()) == ([], [0, 0])


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.tuples(st.integers(1, 120), st.integers(1, 120)),
    st.lists(st.tuples(*[st.integers(0, 30)] * 4), max_size=6),
)
@tried(200)
def test_edges_of_crops_are_those_of_grids_that_are_0_elsewhere(
    seed: int, grid_hw: tuple[int, int], size_hw: tuple[int, int], boxes: list[tuple[int, int, int, int]]
) -> None:
    ends = np.sort(np.array(boxes, np.int64).reshape(-1, 2, 2), axis=1)
    crops = np.minimum(ends, grid_hw[::-1]).reshape(-1, 4)
    planes = np.random.default_rng(seed).random((*grid_hw, len(crops)), dtype=np.float32)
    rows, columns = outlines.linear_taps(grid_hw[0], size_hw[0]), outlines.linear_taps(grid_hw[1], size_hw[1])
    cells = outlines.crop_logits(planes, crops, 0)
    assert len(cells) == ((crops[:, 2:] - crops[:, :2] + 2).prod(axis=1)).sum()
    found = rle.from_edges_of_all(*outlines.edges_of_crops(cells, crops, rows, columns, size_hw[0]), size_hw)
    alone = []
    for i, (x0, y0, x1, y1) in enumerate(crops):
        grid = np.zeros(grid_hw, np.float32)
        grid[y0:y1, x0:x1] = planes[y0:y1, x0:x1, i]
        alone.append(rle.from_edges(outlines.mask_edges(grid, rows, columns, size_hw[0]), size_hw))
    assert list(found) == alone


def resized_counts(grid: np.ndarray, size_hw: tuple[int, int]) -> str:
    return rle.encode(cv2.resize(grid, size_hw[::-1], interpolation=cv2.INTER_LINEAR) > 0.5)


def edge_counts(grid: np.ndarray, size_hw: tuple[int, int]) -> str:
    rows, columns = outlines.linear_taps(grid.shape[0], size_hw[0]), outlines.linear_taps(grid.shape[1], size_hw[1])
    return rle.from_edges(outlines.mask_edges(grid, rows, columns, size_hw[0]), size_hw)


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.tuples(st.integers(1, 200), st.integers(1, 200)),
    st.sampled_from(["noise", "steps", "ones", "halves"]),
)
@tried(200)
def test_edges_are_those_of_the_resized_mask(
    seed: int, grid_hw: tuple[int, int], size_hw: tuple[int, int], kind: str
) -> None:
    noise = np.random.default_rng(seed).random(grid_hw, dtype=np.float32)
    steps = {"noise": noise, "steps": np.round(noise), "ones": np.ones_like(noise), "halves": np.round(noise * 2) / 2}
    grid = steps[kind].astype(np.float32)
    expected, found = (rle.decode(make(grid, size_hw), size_hw) for make in (resized_counts, edge_counts))
    near = np.abs(cv2.resize(grid, size_hw[::-1], interpolation=cv2.INTER_LINEAR) - 0.5) < 2e-5
    assert (found == expected)[~near].all()


def between(low: np.ndarray, high: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return (low.astype(float) + (high - low).astype(float) * weight.astype(float)).astype(np.float32)


@given(
    st.integers(0, 2**32 - 1),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(st.integers(1, 100), st.integers(1, 100)),
    st.sampled_from([2**-24, 1e-3, 1, 3, 1e6]),
)
@tried(200)
def test_edges_are_those_of_the_same_arithmetic_on_every_pixel(
    seed: int, grid_hw: tuple[int, int], size_hw: tuple[int, int], spread: float
) -> None:
    steps = np.random.default_rng(seed).integers(-4, 5, grid_hw)
    grid = (0.5 + spread * steps).astype(np.float32)
    rows, columns = outlines.linear_taps(grid_hw[0], size_hw[0]), outlines.linear_taps(grid_hw[1], size_hw[1])
    lines = between(grid[:, columns.low], grid[:, columns.high], columns.weight)
    mask = between(lines[rows.low], lines[rows.high], rows.weight[:, None]) > 0.5
    assert edge_counts(grid, size_hw) == rle.encode(mask)


@pytest.mark.parametrize("size_hw", [(640, 427), (17, 31), (3024, 4032), (138, 138)])
def test_edges_of_noise(size_hw: tuple[int, int]) -> None:
    grid = np.random.default_rng(5).random((138, 138), dtype=np.float32)
    expected, found = (rle.decode(make(grid, size_hw), size_hw) for make in (resized_counts, edge_counts))
    # OpenCV's arithmetic depends on its build; with its x86 builds nothing differs.
    assert (expected != found).sum() <= 1e-5 * expected.size
