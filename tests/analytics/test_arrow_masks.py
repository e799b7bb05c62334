from __future__ import annotations

from typing import Any

import golden_files
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from test_rle import coco, random_mask

from segray import rle
from segray.analytics.query import arrow_masks

Mask = tuple[str, int, int]


def made(count: int, seed: int = 0) -> list[tuple[Mask, Mask]]:
    """Pairs of masks of one size each; every size and kind."""
    rng, pairs = np.random.default_rng(seed), []
    for _ in range(count):
        a = random_mask(rng)
        b = rng.random(a.shape) < rng.random() if rng.random() < 0.5 else np.roll(a, (1, 2), (0, 1))
        pairs.append(tuple((rle.encode(mask), *mask.shape) for mask in (a, b)))
    return pairs  # type: ignore[return-value]


def real() -> list[Mask]:
    return [(mask["counts"], *mask["size"]) for mask in golden_files.real_masks()]


def check_against_pycocotools(pairs: list[tuple[Mask, Mask]]) -> None:
    (left, heights, _), (right, _, _) = (list(zip(*side, strict=True)) for side in zip(*pairs, strict=True))
    rows = [coco(counts, (h, w)) for counts, h, w in (a for a, _ in pairs)]
    others = [coco(counts, (h, w)) for counts, h, w in (b for _, b in pairs)]
    areas = [int(coco_mask.area(row)) for row in rows]  # One by one: many at once overflow in pycocotools 2.0.
    assert arrow_masks.rle_area(pa.array(left)).to_pylist() == areas
    boxes = arrow_masks.rle_bbox(pa.array(left), pa.array(heights))
    assert [tuple(box.values()) for box in boxes.to_pylist()] == [tuple(b) for b in coco_mask.toBbox(rows).tolist()]
    ious = [coco_mask.iou([a], [b], [0])[0, 0] for a, b in zip(rows, others, strict=True)]
    assert np.abs(arrow_masks.rle_iou(pa.array(left), pa.array(right)).to_numpy() - ious).max() < 1e-12
    unions = [coco_mask.merge([a, b])["counts"].decode() for a, b in zip(rows, others, strict=True)]
    lists = pa.array([list(pair) for pair in zip(left, right, strict=True)])
    assert arrow_masks.rle_merge(lists).to_pylist() == unions
    shared = [coco_mask.merge([a, b], True)["counts"].decode() for a, b in zip(rows, others, strict=True)]
    assert arrow_masks.rle_merge(lists, intersect=True).to_pylist() == shared


def test_what_works_on_runs_gives_what_pycocotools_gives() -> None:
    check_against_pycocotools(made(300))


@pytest.mark.parametrize(
    "pairs", [pytest.param(3_000, marks=pytest.mark.integration), pytest.param(25_000, marks=pytest.mark.thorough)]
)
def test_thousands_of_masks_are_those_of_pycocotools(pairs: int) -> None:
    check_against_pycocotools(made(pairs, seed=1))


@pytest.mark.integration
def test_real_masks_are_those_of_pycocotools() -> None:
    found = real()
    assert len(found) > 3_000
    check_against_pycocotools([(a, b) for a, b in zip(found, found[1:], strict=False) if a[1:] == b[1:]])


def test_decoding_and_looking_up_agree_with_the_pixels() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        mask = random_mask(rng)
        (height, width), counts = mask.shape, rle.encode(mask)
        (pixels,) = arrow_masks.rle_decode(counts, height, width).to_pylist()
        assert pixels == mask.tobytes()
        y, x = rng.integers(-1, height + 1), rng.integers(-1, width + 1)
        expected = bool(0 <= y < height and 0 <= x < width and mask[y, x])
        assert arrow_masks.rle_contains(counts, height, int(x), int(y)).to_pylist() == [expected]


def filled(ring: np.ndarray, size_hw: tuple[int, int]) -> np.ndarray:
    """Pixels within a ring along pixel edges: each vertical side flips what is right of it."""
    inside = np.zeros(size_hw, np.bool_)
    for (x, y0), (x1, y1) in zip(ring.astype(int), np.roll(ring, -1, 0).astype(int), strict=True):
        if x == x1:
            inside[min(y0, y1) : max(y0, y1), x:] ^= True
    return inside


def test_outlines_are_exact_and_pycocotools_draws_them_so() -> None:
    rng = np.random.default_rng(4)
    for _ in range(40):
        mask = random_mask(rng)
        rings = arrow_masks.outlines(rle.encode(mask), mask.shape)
        drawn = [filled(ring, mask.shape) for ring in rings]
        assert (np.logical_xor.reduce([np.zeros_like(mask), *drawn]) == mask).all()
        outer = [(ring.ravel().tolist(), each) for ring, each in zip(rings, drawn, strict=True)
                 if arrow_masks.turns_right(ring)]  # fmt: skip
        for ring, each in outer[:5]:
            (theirs,) = coco_mask.frPyObjects([ring], *mask.shape)
            assert (coco_mask.decode(theirs) == each).all()
        polygons = arrow_masks.rle_polygon(rle.encode(mask), *mask.shape).to_pylist()
        assert polygons == [[ring for ring, _ in outer]]


@given(st.lists(st.one_of(st.none(), st.booleans()), max_size=20), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_null_gives_null_and_slices_are_read_from_where_they_begin(kinds: list[Any], first: int) -> None:
    mask = np.eye(4, dtype=np.bool_)
    counts = [None if kind is None else rle.encode(mask & kind) for kind in kinds]
    expected = [None if kind is None else 4 * kind for kind in kinds][first:]
    for type_ in (pa.string(), pa.large_string(), pa.string_view()):
        column = pa.array(counts, type_)
        assert arrow_masks.rle_area(column[first:]).to_pylist() == expected
        assert (
            arrow_masks.rle_area(pa.chunked_array([column, column], type_)[first:]).to_pylist()[: len(expected)]
            == expected
        )
        boxes = arrow_masks.rle_bbox(column[first:], 4).to_pylist()
        assert [box and box["w"] for box in boxes] == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: arrow_masks.rle_area(pa.array(["04", "zz"])), "row 1: character 0"),
        (lambda: arrow_masks.rle_area(pa.array(["04", "0é"])), "row 1: character 1"),
        (lambda: arrow_masks.rle_area(pa.array([""])), "row 0"),
        (lambda: arrow_masks.rle_area(pa.array([1])), "masks are text"),
        (lambda: arrow_masks.rle_iou(pa.array(["04", "04"]), pa.array(["04", "05"])), "row 1: the two masks"),
        (lambda: arrow_masks.rle_iou(pa.array(["04"]), pa.array(["0o"])), "row 0: counts end"),
        (lambda: arrow_masks.rle_iou(pa.array(["04"]), pa.array(["04", "04"])), "unlike lengths"),
        (lambda: arrow_masks.rle_merge(pa.array([["04", "05"]])), "row 0: masks are of images"),
        (lambda: arrow_masks.rle_bbox("04", 0), "no height"),
        (lambda: arrow_masks.rle_bbox("04", 2.5), "whole numbers"),
    ],
)
def test_what_cannot_be_a_mask_is_an_error_with_its_row(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_an_empty_list_has_no_union_and_one_with_a_null_neither() -> None:
    lists = pa.array([[], None, ["04", None], ["04", "13"]])
    assert arrow_masks.rle_merge(lists).to_pylist() == [None, None, None, "04"]


def test_iou_of_each_with_each_and_of_crowds() -> None:
    a, b = np.zeros((2, 4, 6), np.bool_)
    a[:, :3], b[:, 2:] = True, True
    codes = [rle.encode(a), rle.encode(b)]
    expected = coco_mask.iou([coco(c, (4, 6)) for c in codes], [coco(c, (4, 6)) for c in codes], [0, 1])
    assert np.allclose(arrow_masks.iou_matrix(codes, codes, [False, True]), expected)
    assert arrow_masks.iou_matrix([], codes).shape == (0, 2)
