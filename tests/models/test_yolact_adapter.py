from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import cv2
import golden_files
import numpy as np
import pytest
import raw_outputs
from numpy.typing import NDArray
from PIL import Image
from raw_outputs import Outputs

import segray
from segray import rle
from segray.errors import ConfigError, ModelError
from segray.instances import Instances
from segray.models.adapters.adapter import Options
from segray.models.coco_labels import COCO_IDS_80, COCO_NAMES
from segray.models.registry import ADAPTERS

NAME = "yolact-resnet50-fpn-pytorch"


def decode(outputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int], **options: Any) -> Instances:
    return ADAPTERS[NAME].decode(outputs, size_hw, Options(**options))


def made(seed: int, side: int = 138, priors: int = 900, things: int = 60) -> Outputs:
    """Outputs with things that stand out, near copies of some, boxes that leave the image, and smooth-ish noise."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (priors, 81))
    logits[:, 0] += 9
    hot = rng.choice(priors, things, replace=False)
    logits[hot, rng.integers(1, 81, things)] += rng.uniform(6, 14, things)
    twins = things // 3
    logits[hot[:twins]] = logits[hot[twins : 2 * twins]] + rng.normal(0, 0.3, (twins, 81))
    centre, size = rng.uniform(0.05, 0.95, (priors, 2)), rng.uniform(0.02, 0.6, (priors, 2))
    boxes = np.concatenate([centre - size / 2, centre + size / 2], 1)
    boxes[hot[:twins]] = boxes[hot[twins : 2 * twins]] + rng.normal(0, 0.02, (twins, 4))
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    outputs = {
        "conf": exponents / exponents.sum(1, keepdims=True),
        "boxes": boxes,
        "mask": np.tanh(rng.normal(0, 1, (priors, 32))),
        "proto": np.maximum(rng.normal(0, 0.6, (side, side, 32)), 0),
    }
    return {name: array[None].astype(np.float32) for name, array in outputs.items()}


def nothing(classes: int = 80) -> Outputs:
    outputs = made(0, side=12, priors=30, things=3)
    outputs["conf"] = np.zeros((1, 30, classes + 1), np.float32)
    outputs["conf"][..., 0] = 1
    return outputs


def one(label: int, box: tuple[float, float, float, float], score: float = 0.9) -> Outputs:
    """One detection of class column `label`, all of whose prototypes lie inside the mask."""
    outputs = nothing()
    outputs["conf"][0, 4, label] = score
    outputs["boxes"][0, 4] = box
    outputs["mask"], outputs["proto"] = np.ones_like(outputs["mask"]), np.ones_like(outputs["proto"])
    return outputs


def add(outputs: Outputs, prior: int, label: int, box: tuple[float, float, float, float], score: float) -> None:
    outputs["conf"][0, prior, label] = score
    outputs["boxes"][0, prior] = box


# ---- the whole-image oracle -----------------------------------------------------------------------


def overlap(a: NDArray[np.float32], b: NDArray[np.float32]) -> np.float32:
    width, height = (max(np.float32(0), min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    shared = width * height
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / both if both else np.float32(0)


def chosen(outputs: Outputs, most: int = 100) -> list[tuple[np.float32, int, int]]:
    """(score, class column, prior), best first, by greedy suppression written out."""
    conf, boxes = outputs["conf"][0], outputs["boxes"][0]
    kept: list[tuple[np.float32, int, int]] = []
    for score, label, prior in sorted(
        ((conf[p, k], k, p) for p, k in np.argwhere(conf > np.float32(0.05)) if k > 0), reverse=True
    ):
        if all(k != label or overlap(boxes[p], boxes[prior]) <= 0.5 for _, k, p in kept):
            kept.append((score, label, prior))
    return kept[:most]


def whole_masks(outputs: Outputs, priors: list[int], size_hw: tuple[int, int]) -> Iterator[NDArray[np.bool_]]:
    """Masks over the full frame: sigmoid, zero outside the padded box, cv2.resize, threshold."""
    probabilities = 1 / (1 + np.exp(-(outputs["proto"][0] @ outputs["mask"][0, priors].T)))
    side = len(probabilities)
    at = np.arange(side)
    for i, prior in enumerate(priors):
        x1, y1, x2, y2 = outputs["boxes"][0, prior] * np.float32(side) + np.array([-1, -1, 1, 1], np.float32)
        inside = ((at >= y1) & (at < y2))[:, None] & ((at >= x1) & (at < x2))
        yield cv2.resize(probabilities[..., i] * inside, size_hw[::-1], interpolation=cv2.INTER_LINEAR) > 0.5


def assert_as_oracle(outputs: Outputs, size_hw: tuple[int, int]) -> None:
    expected, found = chosen(outputs), decode(outputs, size_hw)
    assert found.scores.tolist() == [score for score, _, _ in expected]
    assert found.class_ids.tolist() == [COCO_IDS_80[label - 1] for _, label, _ in expected]
    height, width = size_hw
    limits = np.array([width, height, width, height])
    priors = [prior for _, _, prior in expected]
    boxes = outputs["boxes"][0, priors] * limits
    np.testing.assert_allclose(found.boxes_xyxy, boxes.clip(0, limits), atol=1e-3)
    same = 0
    for counts, mask in zip(found.rles, whole_masks(outputs, priors, size_hw), strict=True):
        same += counts == rle.encode(mask)
        assert (rle.decode(counts, size_hw) != mask).sum() <= 2
    assert same >= 0.99 * len(expected)


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("size_hw", [(17, 31), (31, 17), (427, 640), (550, 550), (138, 138), (1, 1)])
def test_decode_is_the_whole_image_path(seed: int, size_hw: tuple[int, int]) -> None:
    assert_as_oracle(made(seed), size_hw)


@pytest.mark.integration
def test_decode_is_the_whole_image_path_at_twelve_megapixels() -> None:
    assert_as_oracle(made(4, things=20), (3024, 4032))


@pytest.mark.parametrize("side", [1, 7, 90])
def test_the_prototypes_side_is_read_from_the_arrays(side: int) -> None:
    assert_as_oracle(made(5, side=side), (60, 80))


# ---- the references' own results ------------------------------------------------------------------


@pytest.fixture(scope="module")
def seed_seven() -> Outputs:
    return raw_outputs.draw(7)["yolact"]


@pytest.mark.parametrize(
    ("golden", "nms", "box_px", "same"),
    [
        ("yolact_427x640", "per_class", 1e-3, 0.99),
        ("yolact_640x427", "per_class", 1e-3, 0.99),
        ("yolact_dbolya_640x427", "fast", 1.0, 0.9),
    ],
)
def test_decode_gives_what_the_references_give(
    seed_seven: Outputs, golden: str, nms: Literal["per_class", "fast"], box_px: float, same: float
) -> None:
    listed = golden_files.decoded(golden)
    width, height = listed["image_size"]
    found = decode(seed_seven, (height, width), nms=nms)
    expected = listed["instances"]
    assert found.class_ids.tolist() == [COCO_IDS_80[row["class_id"]] for row in expected]
    np.testing.assert_allclose(found.scores, [row["score"] for row in expected], atol=1e-6)
    boxes = np.array([row["box"] for row in expected]).clip(0, [width, height] * 2)
    np.testing.assert_allclose(found.boxes_xyxy, boxes, atol=box_px)
    theirs = [row["segmentation"]["counts"] for row in expected]
    assert np.mean([a == b for a, b in zip(found.rles, theirs, strict=True)]) >= same
    for a, b in zip(found.rles, theirs, strict=True):
        assert (rle.decode(a, (height, width)) != rle.decode(b, (height, width))).sum() <= 2


@pytest.mark.integration
@pytest.mark.parametrize("nms", ["per_class", "fast", "cross_class"])
def test_a_threshold_takes_away_what_is_below_it_and_changes_nothing_else(
    seed_seven: Outputs, nms: Literal["per_class", "fast", "cross_class"]
) -> None:
    every = decode(seed_seven, (48, 64), nms=nms, max_detections=100_000)
    thresholds = {1: 0.2, 3: 0.9}
    for threshold in (float(every.scores[len(every) // 3]), 0.7):
        least = np.array([thresholds.get(int(i), threshold) for i in every.class_ids], np.float32)
        expected = every.take(every.scores >= least)
        found = decode(
            seed_seven, (48, 64), nms=nms, max_detections=100_000,
            score_threshold=threshold, class_thresholds=thresholds,
        )  # fmt: skip
        assert found.rles == expected.rles
        np.testing.assert_array_equal(found.scores, expected.scores)
        np.testing.assert_array_equal(found.class_ids, expected.class_ids)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("seed", "size_hw"),
    [(8, (427, 640)), (11, (17, 31)), (12, (1080, 1920)), pytest.param(13, (3024, 4032), marks=pytest.mark.chaos)],
)
def test_other_seeds_and_sizes(seed: int, size_hw: tuple[int, int]) -> None:
    assert_as_oracle(raw_outputs.draw(seed)["yolact"], size_hw)


# ---- the adapter, case by case --------------------------------------------------------------------


def test_every_class_column_has_its_category() -> None:
    for label, category in enumerate(COCO_NAMES, 1):
        assert decode(one(label, (0.2, 0.2, 0.6, 0.7)), (50, 60)).class_ids.tolist() == [category]


def test_background_is_no_detection() -> None:
    found = decode(nothing(), (50, 60))
    assert (len(found), found.size_hw) == (0, (50, 60))


def test_boxes_are_x_first_and_clipped() -> None:
    found = decode(one(1, (-0.1, 0.25, 0.5, 1.2)), (100, 200))
    np.testing.assert_allclose(found.boxes_xyxy, [[0, 25, 100, 100]])


def test_a_mask_reaches_one_prototype_beyond_its_box() -> None:
    found = decode(one(1, (0.5, 0.25, 0.75, 0.75)), (120, 120))
    # 12 prototypes, 10 pixels each: columns 5..9, rows 2..9, and half a prototype less than nothing by interpolation.
    x, y, w, h = rle.bbox(found.rles[0], (120, 120))
    assert 48 <= x <= 52
    assert 98 <= x + w <= 102
    assert 18 <= y <= 22
    assert 98 <= y + h <= 102


def test_an_empty_mask_stays_in_the_list() -> None:
    outputs = one(1, (0.2, 0.2, 0.6, 0.6))
    outputs["mask"] *= -1
    found = decode(outputs, (50, 60))
    assert rle.area(found.rles).tolist() == [0]


def test_boxes_outside_or_inverted() -> None:
    for box in ((1.5, 1.5, 1.9, 1.9), (-0.9, -0.9, -0.5, -0.5), (0.6, 0.6, 0.2, 0.2)):
        found = decode(one(1, box), (50, 60))
        assert rle.area(found.rles).tolist() == [0]
    repaired = decode(one(1, (0.6, 0.6, 0.2, 0.2)), (50, 60), nms="fast")
    assert rle.area(repaired.rles)[0] > 0
    np.testing.assert_allclose(repaired.boxes_xyxy[0], [12, 10, 36, 30])


def test_a_chain_of_overlaps_tells_the_two_suppressions_apart() -> None:
    outputs = one(3, (0.1, 0.2, 0.5, 0.6), 0.9)
    add(outputs, 8, 3, (0.2, 0.2, 0.6, 0.6), 0.8)
    add(outputs, 12, 3, (0.3, 0.2, 0.7, 0.6), 0.7)
    assert decode(outputs, (50, 60)).scores.tolist() == pytest.approx([0.9, 0.7])
    fast = decode(outputs, (50, 60), nms="fast", score_threshold=0.05)
    assert fast.scores.tolist() == pytest.approx([0.9])


def test_classes_suppress_each_other_only_where_asked() -> None:
    outputs = one(3, (0.1, 0.2, 0.5, 0.6), 0.6)
    add(outputs, 8, 4, (0.1, 0.2, 0.5, 0.6), 0.7)
    assert decode(outputs, (50, 60)).class_ids.tolist() == [4, 3]
    assert decode(outputs, (50, 60), nms="fast", score_threshold=0.05).class_ids.tolist() == [4, 3]
    assert decode(outputs, (50, 60), nms="cross_class").class_ids.tolist() == [4]


def test_one_prior_may_be_two_classes() -> None:
    outputs = one(3, (0.1, 0.2, 0.5, 0.6), 0.5)
    outputs["conf"][0, 4, 7] = 0.4
    assert decode(outputs, (50, 60)).class_ids.tolist() == [3, 7]
    assert decode(outputs, (50, 60), nms="cross_class").class_ids.tolist() == [3]


def test_thresholds_and_limits() -> None:
    outputs = made(6)
    everything = decode(outputs, (50, 60))
    above = decode(outputs, (50, 60), score_threshold=0.5)
    assert 0 < len(above) < len(everything)
    assert above.rles == everything.rles[: len(above)]
    assert (everything.scores[len(above) :] < 0.5).all()
    assert decode(outputs, (50, 60), max_detections=3).rles == everything.rles[:3]
    assert len(decode(one(1, (0.1, 0.1, 0.3, 0.3), 0.05), (50, 60))) == 0
    first = int(everything.class_ids[0])
    but_one = decode(outputs, (50, 60), class_thresholds={first: 1.0})
    assert but_one.scores.tolist() == everything.scores[everything.class_ids != first].tolist()
    areas = rle.area(everything.rles)
    large = decode(outputs, (50, 60), min_area=100)
    assert large.scores.tolist() == everything.scores[areas >= 100].tolist()


def test_own_classes_are_counted_against_the_scores() -> None:
    adapter = ADAPTERS[NAME].with_labels({7: "nut", 3: "bolt"})
    outputs = one(2, (0.1, 0.1, 0.3, 0.3))
    few = outputs | {"conf": outputs["conf"][..., :3]}
    assert adapter.decode(few, (50, 60), Options()).class_ids.tolist() == [7]
    with pytest.raises(ModelError, match=r"conf \[1, 30, 81\][\s\S]*conf \[1, p, 3\]"):
        adapter.decode(outputs, (50, 60), Options())


@pytest.mark.parametrize("nms", ["per_class", "fast", "cross_class"])
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_cost_only_their_row(nms: str, wrong: float) -> None:
    outputs = one(3, (0.1, 0.2, 0.5, 0.6))
    add(outputs, 8, 3, (0.7, 0.7, 0.9, 0.9), 0.8)
    add(outputs, 12, 3, (0.1, 0.7, 0.3, 0.9), 0.7)
    outputs["conf"][0, 8, 5] = wrong
    outputs["boxes"][0, 12, 1] = wrong
    found = decode(outputs, (50, 60), nms=nms, score_threshold=0.05)
    assert found.scores.tolist() == pytest.approx([0.9])
    assert found.unreadable == 2


@pytest.mark.parametrize("nms", ["per_class", "fast", "cross_class"])
def test_a_graph_with_a_softmax_gives_the_same_instances(nms: Literal["per_class", "fast", "cross_class"]) -> None:
    outputs = made(9)
    outputs["conf"][0, [3, 7]] = np.nan  # A softmax has no number at all if one of its inputs is none.
    adapter = ADAPTERS[NAME]
    for threshold in (0.0, 0.3, 0.97):
        options = Options(threshold, nms=nms)
        plain, quick = (of.decode(outputs, (60, 80), options) for of in (adapter, adapter.with_softmax({"conf"})))
        assert plain.unreadable == quick.unreadable == 2
        assert plain.rles == quick.rles
        assert plain.scores.tolist() == quick.scores.tolist()
        assert plain.class_ids.tolist() == quick.class_ids.tolist()
    assert len(plain)


@pytest.mark.parametrize("background", [0.94, 0.95, 0.955])
def test_a_softmax_that_is_rounded_loses_no_class(background: float) -> None:
    adapter = ADAPTERS[NAME].with_softmax({"conf"})
    outputs = one(3, (0.1, 0.2, 0.5, 0.6), 0.0502)
    outputs["conf"][0, 4, 0] = background  # bf16 rounds 0.9498 by up to 0.002
    assert adapter.decode(outputs, (50, 60), Options()).scores.tolist() == pytest.approx([0.0502])


def test_a_sure_background_is_all_that_is_read_of_a_softmax() -> None:
    impossible = one(3, (0.1, 0.2, 0.5, 0.6), 0.9)  # beside a background of 1
    assert len(ADAPTERS[NAME].decode(impossible, (50, 60), Options())) == 1
    assert len(ADAPTERS[NAME].with_softmax({"conf"}).decode(impossible, (50, 60), Options())) == 0
    assert len(ADAPTERS[NAME].with_softmax({"other"}).decode(impossible, (50, 60), Options())) == 1


def test_things_far_apart_have_the_masks_that_each_has_alone() -> None:
    boxes = [(0.1, 0.05, 0.3, 0.2), (0.5, 0.1, 0.7, 0.3), (0.2, 0.8, 0.4, 0.95), (0.6, 1.2, 0.9, 1.4)]
    outputs = made(10, side=40, priors=30, things=3)
    outputs["conf"][...] = 0
    for prior, box in enumerate(boxes):
        add(outputs, prior, prior + 1, box, 0.9 - prior / 10)
    together = decode(outputs, (200, 300))
    assert len(together) == len(boxes)
    assert_as_oracle(outputs, (200, 300))


@pytest.mark.filterwarnings("error")
def test_coefficients_that_are_no_numbers_give_an_empty_mask() -> None:
    for name in ("mask", "proto"):
        for wrong in (np.nan, np.inf):
            outputs = one(3, (0.1, 0.2, 0.5, 0.6))
            outputs[name][...] = wrong
            assert len(decode(outputs, (50, 60))) == 1


def test_inputs_may_be_read_only_and_stay_as_they_are() -> None:
    outputs = made(7)
    before = {name: array.copy() for name, array in outputs.items()}
    for array in outputs.values():
        array.flags.writeable = False
    decode(outputs, (50, 60))
    decode(outputs, (50, 60), nms="fast")
    assert all((outputs[name] == before[name]).all() for name in outputs)


def test_names_may_end_in_zero_and_more_may_be_there() -> None:
    outputs = made(8)
    renamed = {f"{name}:0": array for name, array in outputs.items()} | {"other": np.zeros(3)}
    assert decode(renamed, (50, 60)).rles == decode(outputs, (50, 60)).rles


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("conf", (1, 30, 80)),
        ("conf", (30, 81)),
        ("conf", (2, 30, 81)),
        ("boxes", (1, 29, 4)),
        ("mask", (1, 30, 31)),
        ("proto", (1, 12, 32)),
        ("proto", ()),
    ],
)
def test_other_shapes_are_another_model(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=r"other shapes[\s\S]*found:[\s\S]*Expected: conf \[1, p, 81\]"):
        decode(nothing() | {name: np.zeros(shape, np.float32)}, (50, 60))


def test_prepare_stretches_to_the_square() -> None:
    adapter = ADAPTERS[NAME]
    picture = np.random.default_rng(9).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    for form in adapter.forms.values():
        fed = adapter.prepare(form, picture)
        assert list(fed) == ["input.1"]
        assert fed["input.1"].shape == (1, 550, 550, 3)
        expected = Image.fromarray(picture).resize((550, 550), Image.Resampling.BILINEAR)
        assert (fed["input.1"][0] == np.asarray(expected)).all()


def test_the_forms_differ_in_colour_and_normalisation_alone() -> None:
    forms = ADAPTERS[NAME].forms
    assert list(forms) == ["original", "converted"]
    original, converted = forms["original"].image, forms["converted"].image
    assert (original.colour, original.mean) == ("RGB", (123.675, 116.78, 103.94))
    assert (converted.colour, converted.mean, converted.scale) == ("BGR", None, None)


# ---- segray.decode --------------------------------------------------------------------------------


def test_decode_by_name() -> None:
    outputs = made(10)
    for name in (NAME, "stickers"):
        assert segray.decode(name, outputs, (50, 60)).rles == decode(outputs, (50, 60)).rles
    few = segray.decode(NAME, outputs, (50, 60), score_threshold=0.5)
    assert len(few) == len(decode(outputs, (50, 60), score_threshold=0.5))


def test_an_unknown_name_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=rf"'yolo'[\s\S]*{NAME}"):
        segray.decode("yolo", {}, (50, 60))


def test_missing_outputs_are_told_beside_those_found() -> None:
    outputs = nothing()
    del outputs["proto"], outputs["mask"]
    with pytest.raises(ModelError, match=r"mask, proto[\s\S]*found: +outputs boxes, conf[\s\S]*Expected outputs"):
        segray.decode(NAME, outputs, (50, 60))
