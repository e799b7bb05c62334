from __future__ import annotations

from typing import Any

import golden_files
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from properties import tried
from pycocotools import mask as coco_mask

from segray import rle


def coco_encode(mask: NDArray[Any]) -> str:
    counts: bytes = coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"]
    return counts.decode("ascii")


def coco(counts: str, size_hw: tuple[int, int]) -> dict[str, Any]:
    return {"size": list(size_hw), "counts": counts.encode("ascii")}


def random_mask(rng: np.random.Generator) -> NDArray[np.bool_]:
    """Small pictures of every kind: noise of any density, boxes at any border, single pixels, bars, extremes."""
    height, width = (int(side) for side in rng.integers(1, 40, 2))
    kind = rng.integers(6)
    if kind == 0:
        return np.full((height, width), rng.random() < 0.5)
    if kind == 1:
        return rng.random((height, width)) < rng.random()
    mask = np.zeros((height, width), np.bool_)
    (top, bottom), (left, right) = (np.sort(rng.integers(0, side + 1, 2)) for side in (height, width))
    if kind == 2:
        mask[rng.integers(height), rng.integers(width)] = True
    elif kind == 3:
        mask[top:bottom, left:right] = True
    elif kind == 4:
        mask[:, left:right] = True
    else:
        mask[top:bottom, left:right] = rng.random((bottom - top, right - left)) < 0.7
    return mask


def check_against_pycocotools(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        mask = random_mask(rng)
        height, width = mask.shape
        expected = coco_encode(mask)
        assert rle.encode(mask) == expected
        (y0, y1), (x0, x1) = (np.flatnonzero(mask.any(axis=axis))[[0, -1]] + [0, 1] if mask.any() else (0, 0)
                              for axis in (1, 0))  # fmt: skip
        y0, x0 = (int(rng.integers(0, first + 1)) for first in (y0, x0))
        y1, x1 = int(rng.integers(y1, height + 1)), int(rng.integers(x1, width + 1))
        assert rle.encode_crop(mask[y0:y1, x0:x1], x0, y0, mask.shape) == expected
        assert (rle.decode(expected, mask.shape) == mask).all()
        assert rle.area(expected) == mask.sum()
        assert (rle.bbox(expected, mask.shape) == coco_mask.toBbox(coco(expected, mask.shape))).all()


def test_bytes_are_those_of_pycocotools() -> None:
    check_against_pycocotools(0, 1_000)


@pytest.mark.parametrize(
    "count", [pytest.param(10_000, marks=pytest.mark.thorough), pytest.param(100_000, marks=pytest.mark.chaos)]
)
def test_bytes_are_those_of_pycocotools_for_many_masks(count: int) -> None:
    check_against_pycocotools(1, count)


def test_long_runs_of_large_images() -> None:
    size_hw = (3024, 4032)
    crop = np.random.default_rng(2).random((500, 300)) < 0.5
    crop[100:400, 20:260] = True
    mask = np.zeros(size_hw, np.bool_)
    mask[1200:1700, 3500:3800] = crop
    counts = rle.encode_crop(crop, 3500, 1200, size_hw)
    assert counts == coco_encode(mask)
    assert (rle.decode(counts, size_hw) == mask).all()


def test_runs_longer_than_an_int32() -> None:
    size_hw = (70_000, 70_000)
    counts = rle.from_edges(np.array([5, 4_000_000_000]), size_hw)
    assert rle.area(counts) == 3_999_999_995
    assert rle.bbox(counts, size_hw).tolist() == [0, 0, 57_143, 70_000]


def test_a_mask_by_hand() -> None:
    mask = np.array([[0, 1], [1, 1]], np.bool_)
    assert rle.encode(mask) == "13"
    assert rle.area("13") == 3
    assert rle.bbox("13", (2, 2)).tolist() == [0, 0, 2, 2]


@pytest.mark.parametrize("seed", range(60))
def test_spans_are_the_set_pixels_of_each_column(seed: int) -> None:
    mask = random_mask(np.random.default_rng(seed))
    drawn = np.zeros(mask.shape, np.int64)
    for column, top, bottom in zip(*rle.spans(rle.encode(mask), mask.shape), strict=True):
        assert top < bottom
        drawn[top:bottom, column] += 1
    assert np.array_equal(drawn, mask)


def test_any_nonzero_byte_is_set() -> None:
    mask = np.array([[0, 255], [7, 0]], np.uint8)
    assert rle.encode(mask) == rle.encode(mask > 0)


@pytest.mark.parametrize("size_hw", [(0, 0), (0, 5), (5, 0)])
def test_images_without_pixels(size_hw: tuple[int, int]) -> None:
    counts = rle.encode(np.zeros(size_hw, np.bool_))
    assert rle.decode(counts, size_hw).shape == size_hw
    assert rle.area(counts) == 0


@given(st.lists(st.integers(0, 70), min_size=1, max_size=60), st.integers(1, 30))
@tried(300)
def test_any_edges_round_trip(gaps: list[int], height: int) -> None:
    edges = np.cumsum(gaps)[np.diff(np.cumsum(gaps), prepend=-1) > 0]
    width = -(-int(edges[-1] + 1) // height)
    counts = rle.from_edges(edges, (height, width))
    mask = rle.decode(counts, (height, width))
    flat = np.zeros(height * width, np.bool_)
    flat[edges] = True
    assert (mask.T.ravel() == np.logical_xor.accumulate(flat)).all()
    assert rle.encode(mask) == counts == coco_encode(mask)


@given(st.text(st.characters(min_codepoint=40, max_codepoint=130), max_size=40), st.integers(0, 9), st.integers(0, 9))
@tried(500)
def test_any_text_is_a_mask_or_a_value_error(text: str, height: int, width: int) -> None:
    (pixels,) = rle.pixels([text], np.array([[height, width]]))
    try:
        mask = rle.decode(text, (height, width))
    except ValueError:
        assert pixels == -1
        return
    assert mask.shape == (height, width)
    assert rle.area(text) == mask.sum() == pixels


@pytest.mark.parametrize(
    ("counts", "complaint"),
    [
        ("", "end within"),
        ("1 3", "character 1 of counts is ' '"),
        ("1é", "character 1 of counts is 'é'"),
        ("1\ud800", "character 1 of counts"),
        ("1p", "character 1 of counts is 'p'"),
        ("13Q", "end within"),
        ("12", "runs cover 3 pixels, an image of 2x2 has 4"),
        ("14", "runs cover 5 pixels"),
        ("1N", "run 1 is negative: -2"),
        ("oooooooo0", "a number of 9 characters"),
    ],
)
def test_malformed_counts_are_value_errors(counts: str, complaint: str) -> None:
    for read in (rle.decode, rle.bbox, lambda c, size_hw: rle.iou([c], ["13"], size_hw)):
        with pytest.raises(ValueError, match=complaint.replace("...", r"\.\.\.")):
            read(counts, (2, 2))
    assert rle.pixels(["13", counts, "04"], np.full((3, 2), 2)).tolist() == [3, -1, 4]


def test_bytes_of_pycocotools_are_told() -> None:
    for read in (lambda: rle.decode(b"13", (2, 2)), lambda: rle.area(b"13"), lambda: rle.area([b"13"]),
                 lambda: rle.iou([b"13"], ["13"], (2, 2)), lambda: rle.union([b"13"], (2, 2))):  # fmt: skip
        with pytest.raises(TypeError, match=r"call decode\(\)"):
            read()


@pytest.mark.parametrize(("x0", "y0"), [(-1, 0), (0, -1), (9, 0), (0, 7)])
def test_a_crop_must_lie_inside(x0: int, y0: int) -> None:
    with pytest.raises(ValueError, match="leaves the image of 10x12"):
        rle.encode_crop(np.ones((4, 4), np.bool_), x0, y0, (10, 12))


def test_scalars_and_sequences() -> None:
    masks = ["13", "4", "04"]
    assert rle.area(masks).tolist() == [3, 0, 4]
    assert rle.area(masks).dtype == np.int64
    assert isinstance(rle.area("13"), int)
    assert rle.bbox(masks, (2, 2)).shape == (3, 4)
    assert rle.area([]).shape == (0,)
    assert rle.bbox([], (2, 2)).shape == (0, 4)


def test_more_masks_than_a_byte_counts() -> None:
    assert rle.area(["13"] * 300).tolist() == [3] * 300


def test_iou() -> None:
    rng = np.random.default_rng(3)
    masks = rng.random((5, 9, 7)) < 0.5
    a, b = ([rle.encode(mask) for mask in part] for part in (masks[:2], masks[2:]))
    expected = [[(p & q).sum() / (p | q).sum() for q in masks[2:]] for p in masks[:2]]
    np.testing.assert_allclose(rle.iou(a, b, (9, 7)), expected)
    assert rle.iou([], b, (9, 7)).shape == (0, 3)
    assert rle.iou(a, [], (9, 7)).shape == (2, 0)


@pytest.mark.integration
def test_real_masks_keep_their_bytes() -> None:
    masks = golden_files.real_masks()
    assert len(masks) > 3_000
    for mask in masks:
        counts, size_hw = mask["counts"], (mask["size"][0], mask["size"][1])
        assert rle.encode(rle.decode(counts, size_hw)) == counts
        assert rle.area(counts) == coco_mask.area(coco(counts, size_hw))
        assert (rle.bbox(counts, size_hw) == coco_mask.toBbox(coco(counts, size_hw))).all()
