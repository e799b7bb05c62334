"""Crops, sizes, centres, outlines, intersections and PNGs of masks are those of the pixels, in three engines."""

from __future__ import annotations

import io
import time
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from test_rle import coco, random_mask

from segray import rle
from segray.analytics.query import arrow_masks, duckdb_views

SEEDS = st.integers(0, 10_000)


def sides(mask: np.ndarray) -> int:
    """Pixel sides between a mask and all else."""
    padded = np.pad(mask, 1).astype(int)
    return int(abs(np.diff(padded, axis=0)).sum() + abs(np.diff(padded, axis=1)).sum())


@given(SEEDS)
def test_a_crop_is_the_pixels_of_its_window(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = random_mask(rng)
    height, width = mask.shape
    x, y = int(rng.integers(0, width)), int(rng.integers(0, height))
    w, h = int(rng.integers(1, width - x + 1)), int(rng.integers(1, height - y + 1))
    cropped = arrow_masks.rle_crop(rle.encode(mask), height, width, x, y, w, h).to_pylist()
    assert cropped == [rle.encode(mask[y : y + h, x : x + w])]


@given(SEEDS)
def test_another_size_is_that_of_pillows_nearest_pixel(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = random_mask(rng)
    height, width = mask.shape
    new_height, new_width = (int(side) for side in rng.integers(1, 2 * np.array(mask.shape) + 2))
    rows = (2 * np.arange(new_height) + 1) * height // (2 * new_height)
    columns = (2 * np.arange(new_width) + 1) * width // (2 * new_width)
    resized = arrow_masks.rle_resize(rle.encode(mask), height, width, new_height, new_width).to_pylist()
    assert resized == [rle.encode(mask[np.ix_(rows, columns)])]


def test_twice_and_half_the_size_are_those_of_pillow() -> None:
    mask = random_mask(np.random.default_rng(1))
    height, width = mask.shape
    for new in ((2 * height, 2 * width), (3 * height, width), (max(height // 3, 1), max(width // 3, 1))):
        drawn = np.asarray(Image.fromarray(mask).resize((new[1], new[0]), Image.Resampling.NEAREST))
        (counts,) = arrow_masks.rle_resize(rle.encode(mask), height, width, *new).to_pylist()
        assert (rle.decode(counts, new) == drawn).all()


@given(SEEDS)
def test_centre_and_outline_are_those_of_the_pixels(seed: int) -> None:
    mask = random_mask(np.random.default_rng(seed))
    (centre,) = arrow_masks.rle_centroid(rle.encode(mask), mask.shape[0]).to_pylist()
    rows, columns = np.nonzero(mask)
    if not len(rows):
        assert centre is None
    else:
        assert (centre["x"], centre["y"]) == pytest.approx((columns.mean() + 0.5, rows.mean() + 0.5))
    assert arrow_masks.rle_perimeter(rle.encode(mask), mask.shape[0]).to_pylist() == [sides(mask)]


@given(SEEDS)
def test_an_intersection_is_that_of_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = random_mask(rng)
    b = np.roll(a, (1, 2), (0, 1)) if rng.random() < 0.5 else rng.random(a.shape) < rng.random()
    codes = [rle.encode(mask) for mask in (a, b)]
    both = coco_mask.merge([coco(counts, a.shape) for counts in codes], True)["counts"].decode()
    assert arrow_masks.rle_intersection(*codes).to_pylist() == [both]


def test_a_png_is_the_mask_in_pillow_and_opencv() -> None:
    rng = np.random.default_rng(5)
    for _ in range(20):
        mask = random_mask(rng)
        (data,) = arrow_masks.rle_png(rle.encode(mask), *mask.shape).to_pylist()
        assert (np.asarray(Image.open(io.BytesIO(data))) == mask).all()
        assert (cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE) == mask * np.uint8(255)).all()


MASK, OTHER = np.zeros((4, 6), np.bool_), np.zeros((4, 6), np.bool_)
MASK[1:3, 1:4] = True
OTHER[2:, 2:] = True
CALLS: dict[str, tuple[list[Any], Any]] = {
    "rle_crop": ([4, 6, 1, 1, 3, 2], rle.encode(MASK[1:3, 1:4])),
    "rle_resize": ([4, 6, 8, 12], rle.encode(MASK.repeat(2, 0).repeat(2, 1))),
    "rle_centroid": ([4], {"x": 2.5, "y": 2.0}),
    "rle_perimeter": ([4], 10),
    "rle_intersection": ([rle.encode(OTHER)], rle.encode(MASK & OTHER)),
    "rle_png": ([4, 6], arrow_masks.rle_png(rle.encode(MASK), 4, 6)[0].as_py()),
    "rle_decode": ([4, 6], MASK.tobytes()),
}


@pytest.mark.parametrize(("name", "arguments", "result"), [(name, *call) for name, call in CALLS.items()], ids=[*CALLS])
def test_arrow_polars_and_duckdb_agree_and_null_gives_null(name: str, arguments: list[Any], result: Any) -> None:
    import polars as pl

    from segray.analytics.query import polars_frames

    masks = pa.array([rle.encode(MASK), None, rle.encode(MASK)])
    assert arrow_masks.FUNCTIONS[name](masks, *arguments).to_pylist() == [result, None, result]
    frame = pl.DataFrame({"rle": masks})
    columns = [pl.lit(value) if isinstance(value, str) else value for value in arguments]
    assert frame.select(getattr(polars_frames, name)("rle", *columns)).to_series().to_list() == [result, None, result]
    con = duckdb_views.connect()
    duckdb_views.sql(con)
    con.register("t", pa.table({"rle": masks}))
    values = ", ".join(repr(value) for value in arguments)
    assert con.execute(f"SELECT {name}(rle, {values}) FROM t").fetchall() == [(result,), (None,), (result,)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: arrow_masks.rle_crop(m, 4, 6, 4, 0, 3, 2), "row 0: the window is empty, or leaves .* 6x4"),
        (lambda m: arrow_masks.rle_crop(m, 4, 6, 0, 0, 0, 2), "row 0: the window"),
        (lambda m: arrow_masks.rle_crop(m, 5, 6, 0, 0, 1, 1), "row 0: runs cover 24 pixels"),
        (lambda m: arrow_masks.rle_resize(m, 4, 6, 0, 3), "no pixels: 3x0"),
        (lambda m: arrow_masks.rle_resize(m, 6, 6, 1, 3), "row 0: runs cover 24 pixels"),
        (lambda m: arrow_masks.rle_decode(m, 6, 6), "row 0: runs cover 24 pixels"),
        (lambda m: arrow_masks.rle_png(pa.array([m, "zz"]), 4, 6), "row 1: character 0"),
        (lambda m: arrow_masks.rle_intersection(m, "04"), "row 0: masks are of images of unlike sizes"),
        (lambda m: arrow_masks.rle_centroid("zz", 4), "row 0: character 0"),
        (lambda m: arrow_masks.rle_perimeter(m, 0), "row 0"),
    ],
)  # fmt: skip
def test_masks_of_other_image_sizes_and_windows_outside_are_errors(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(rle.encode(MASK))


def test_unions_of_many_masks_are_those_of_pycocotools() -> None:
    rng = np.random.default_rng(8)
    masks = [rng.random((20, 30)) < 0.05 for _ in range(40)]
    codes = [rle.encode(mask) for mask in masks]
    for intersect in (False, True):
        theirs = coco_mask.merge([coco(counts, (20, 30)) for counts in codes], intersect)["counts"].decode()
        assert arrow_masks.rle_merge(pa.array([codes, codes[:1]]), intersect).to_pylist() == [theirs, codes[0]]


def test_decoding_is_faster_than_in_pycocotools_and_merging_about_as_fast() -> None:
    """Best of five, with room for a busy machine. pycocotools decodes column by column, and rows take a copy."""
    rng, size_hw = np.random.default_rng(0), (480, 640)
    y, x = np.ogrid[: size_hw[0], : size_hw[1]]
    masks = []
    for _ in range(60):
        cy, cx, ry, rx = rng.uniform(0, 480), rng.uniform(0, 640), rng.uniform(20, 150), rng.uniform(20, 150)
        masks.append(rle.encode(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1))
    column, theirs = pa.array(masks), [coco(counts, size_hw) for counts in masks]
    order = np.random.default_rng(1).integers(0, 60, (600, 2)).tolist()
    pairs = pa.array([[masks[i], masks[j]] for i, j in order])

    def seconds(function: Any) -> float:
        times = []
        for _ in range(5):
            start = time.process_time()
            function()
            times.append(time.process_time() - start)
        return min(times)

    assert seconds(lambda: arrow_masks.rle_decode(column, *size_hw)) < seconds(
        lambda: [coco_mask.decode(row).tobytes() for row in theirs]
    )
    assert seconds(lambda: arrow_masks.rle_merge(pairs)) < 2 * seconds(
        lambda: [coco_mask.merge([theirs[i], theirs[j]]) for i, j in order]
    )
