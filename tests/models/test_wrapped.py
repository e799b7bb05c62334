"""One network in the clothes of all five systems must report the same things: contracts that misread theirs do not.

The embedded network's own form is what the others are held against. That every check can fail is shown as well: each
mistake that an adapter could make, made on purpose, breaks the agreement.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from wrapped import PADDED_HW, WINDOW_HW, WRAPPED

import segray
from segray import rle
from segray.analytics.evaluation.evaluate import Row, coco_results, evaluate_detections, read_truth
from segray.imaging import decode, geometry
from segray.instances import Instances
from segray.models import engine as runtime
from segray.models import resolve
from segray.models.adapters import yolact
from segray.models.adapters.adapter import ModelAdapter, ModelFormat, Options
from segray.models.coco_labels import COCO_NAMES
from segray.synthetic import dataset

Outputs = dict[str, NDArray[Any]]
Size = tuple[int, int]

SCENES, FEW = 200, 20
CONFIDENT, SAME = 0.5, 0.5
# Much like their neighbours, and so held against them on the few scenes alone.
LIKE_OTHERS = ("inception-converted-u8", "atrous-converted-f32", "security-0091", "security-0228")
STICKERS = "stickers"
# One form of each family that reads masks in its own way. Thorough has one of each other family, and chaos all others.
USUAL = ("inception-original", "inception-converted", "security")
FURTHER = ("yolact-original", "hub")
MISREAD = ("inception-original", "security")


@dataclass(frozen=True)
class Scenes:
    """The first `count` scenes of a folder that dataset.write made, and their truth."""

    folder: Path
    count: int

    def truth(self) -> Row:
        content = read_truth(self.folder / dataset.TRUTH)
        images = content["images"][: self.count]
        annotations = [row for row in content["annotations"] if row["image_id"] <= images[-1]["id"]]
        return {**content, "images": images, "annotations": annotations}

    def pictures(self) -> Iterator[NDArray[np.uint8]]:
        for listed in self.truth()["images"]:
            yield decode.decode((self.folder / dataset.IMAGES / listed["file_name"]).read_bytes()).image


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    folder = tmp_path_factory.mktemp("wrapped-scenes")
    dataset.write(folder, SCENES, seed=41)
    return Scenes(folder, SCENES)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Scenes:
    folder = tmp_path_factory.mktemp("wrapped-few")
    dataset.write(folder, FEW, seed=42)
    return Scenes(folder, FEW)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], resolve.ResolvedModel]:
    """A wrapped form as segray loads it from disk."""
    folder = tmp_path_factory.mktemp("wrapped-models")

    def model(key: str) -> resolve.ResolvedModel:
        if key == STICKERS:
            return resolve.resolve(STICKERS)
        wrapped, place = WRAPPED[key], folder / key
        place.mkdir(exist_ok=True)
        return resolve.resolve(wrapped.name, str(wrapped.save(place)), wrapped.form)

    return model


@pytest.fixture(scope="module")
def expected(scenes: Scenes) -> list[Instances]:
    return detected(resolve.resolve(STICKERS), scenes)


@pytest.fixture(scope="module")
def few_expected(few: Scenes) -> list[Instances]:
    return detected(resolve.resolve(STICKERS), few)


# ---- mistakes -------------------------------------------------------------------------------------


def _same(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Mistake:
    """How an adapter could misread its form: applied to the adapter or form, to the inputs it prepares, the outputs
    it reads, the size it is told, or to a function it calls, (module, name, made from the right one).
    """

    adapter: Callable[[ModelAdapter], ModelAdapter] = _same
    form: Callable[[ModelFormat], ModelFormat] = _same
    inputs: Callable[[Outputs, NDArray[np.uint8]], Outputs] = lambda inputs, _: inputs
    outputs: Callable[[Outputs, Size], Outputs] = lambda outputs, _: outputs
    function: tuple[Any, str, Callable[[Any], Any]] | None = None
    options: Options = field(default_factory=Options)


def detected(model: resolve.ResolvedModel, scenes: Scenes, mistake: Mistake = Mistake()) -> list[Instances]:
    """What segray finds with this model, scene by scene."""
    adapter, form = mistake.adapter(model.adapter), mistake.form(model.form)
    engine = runtime.compile(model.path, form, runtime.DeviceSettings("CPU", None, "f32"))

    def detect(picture: NDArray[np.uint8]) -> Instances:
        size_hw = picture.shape[0], picture.shape[1]
        with engine.infer(mistake.inputs(adapter.prepare(form, picture), picture)) as outputs:
            return adapter.decode(mistake.outputs(dict(outputs), size_hw), size_hw, mistake.options)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(engine.requests) as pool:
        if mistake.function:
            module, name, made = mistake.function
            patch.setattr(module, name, made(getattr(module, name)))
        return list(pool.map(detect, scenes.pictures()))


def changed(**changes: Callable[[NDArray[Any]], Any]) -> Mistake:
    """Outputs, by name, read otherwise."""

    def outputs(outputs: Outputs, _size_hw: Size) -> Outputs:
        return outputs | {name: np.asarray(change(outputs[name]), np.float32) for name, change in changes.items()}

    return Mistake(outputs=outputs)


def rescaled(name: str, first: int, factor_hw: Callable[[Size], NDArray[np.float64]], order: str = "xy") -> Mistake:
    """Boxes in the four columns from `first` of an output, times what is asked for each axis."""

    def outputs(outputs: Outputs, size_hw: Size) -> Outputs:
        rows, factors = outputs[name].copy(), factor_hw(size_hw)
        rows[..., first : first + 4] *= np.tile(factors if order == "yx" else factors[::-1], 2)
        return outputs | {name: rows}

    return Mistake(outputs=outputs)


def filled_hw(window_hw: Size) -> Callable[[Size], NDArray[np.float64]]:
    """How much of a padded window the picture fills, by axis."""
    return lambda size_hw: np.array(geometry.fitted(size_hw, window_hw)) / window_hw


def told(name: str, size_hw: Callable[[Size], Size]) -> Mistake:
    """Another image_info or im_info, from the size of the picture."""

    def inputs(inputs: Outputs, picture: NDArray[np.uint8]) -> Outputs:
        return inputs | {name: np.array([[*size_hw((picture.shape[0], picture.shape[1])), 1]], np.float32)}

    return Mistake(inputs=inputs)


def stretched(name: str, window_hw: Size) -> Mistake:
    """The picture stretched to the window where it should be fitted and padded."""
    return Mistake(inputs=lambda inputs, picture: inputs | {name: geometry.stretch(picture, window_hw)[None]})


def padded(name: str, window_hw: Size) -> Mistake:
    """The picture fitted and padded where it should be stretched."""
    return Mistake(inputs=lambda inputs, picture: inputs | {name: geometry.fit_and_pad(picture, window_hw)[None]})


def image_form(**changes: Any) -> Mistake:
    """Another idea of the image input."""
    return Mistake(form=lambda form: replace(form, image=replace(form.image, **changes)))


def half_a_cell(taps: Callable[..., Any]) -> Callable[..., Any]:
    """tile_taps or reframe_taps for a box that lies half a cell of the mask further on."""

    def shifted(low: Any, high: Any, side: int, limit: int) -> Any:
        step = (high - low) / np.float32(2 * side)
        return taps(low + step, high + step, side, limit)

    return shifted


def sigmoid(x: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(1 / (1 + np.exp(-x)))


def logit(p: NDArray[Any]) -> NDArray[Any]:
    p = np.clip(p, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(p / (1 - p)))


def plus(step: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Classes but 0 one further."""
    return lambda classes: classes + step * (classes > 0)


def label_plus(step: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """The same in the rows of reshape_do_2d."""
    return lambda rows: np.concatenate([rows[:, :1], plus(step)(rows[:, 1:2]), rows[:, 2:]], 1)


def rolled(step: int, axis: int = 1) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Each class `step` further along."""
    return lambda array: np.roll(array, step, axis)


def swapped(boxes: NDArray[Any]) -> NDArray[Any]:
    """Boxes with x for y."""
    return boxes[..., [1, 0, 3, 2]]


RGB, BGR = image_form(colour="RGB"), image_form(colour="BGR")
TILED, REFRAMED = Mistake(options=Options(paste="tile")), Mistake(options=Options(paste="reframe"))
TILED_OFF = Mistake(function=(geometry, "tile_taps", half_a_cell))
REFRAMED_OFF = Mistake(function=(geometry, "reframe_taps", half_a_cell))

MISTAKES: Mapping[str, Mapping[str, Mistake]] = {
    STICKERS: {
        "RGB": RGB,
        "boxes y first": changed(boxes=swapped),
        "class + 1": changed(conf=rolled(1, axis=2)),
        "class - 1": changed(conf=rolled(-1, axis=2)),
        "sigmoid twice": Mistake(function=(yolact, "_sigmoid", lambda right: lambda x: sigmoid(right(x)))),
        "no sigmoid": Mistake(function=(yolact, "_sigmoid", lambda _: _same)),
        "half a cell": changed(proto=lambda proto: (proto + np.roll(proto, 1, 2)) / 2),
    },
    "yolact-original": {
        "BGR": BGR,
        "no mean": image_form(mean=None),
        "no scale": image_form(scale=None),
        "neither": image_form(mean=None, scale=None),
    },
    "inception-original": {
        "BGR": BGR,
        "boxes x first": changed(detection_boxes=swapped),
        "boxes over a padded input": rescaled("detection_boxes", 0, lambda hw: 1 / filled_hw(PADDED_HW)(hw), "yx"),
        "class + 1": changed(detection_classes=plus(1)),
        "class - 1": changed(detection_classes=plus(-1)),
        "classes without gaps": changed(detection_classes=lambda ids: np.searchsorted([*COCO_NAMES], ids) + 1),
        "half a cell": TILED_OFF,
        "reframed": REFRAMED,
        "sigmoid twice": changed(detection_masks=sigmoid),
        "no sigmoid": changed(detection_masks=logit),
    },
    "atrous-original": {"half a cell": TILED_OFF, "reframed": REFRAMED},
    "hub": {
        "BGR": BGR,
        "class + 1": changed(detection_classes=plus(1)),
        "half a cell": REFRAMED_OFF,
        "tiled": TILED,
        "sigmoid twice": changed(detection_masks=sigmoid),
        "no sigmoid": changed(detection_masks=logit),
    },
    "inception-converted": {
        "RGB": RGB,
        "padding left in": rescaled("reshape_do_2d", 3, filled_hw(PADDED_HW)),
        "stretched": stretched("image_tensor", PADDED_HW),
        "image_info of the picture": told("image_info", lambda hw: hw),
        "image_info without padding": told("image_info", lambda hw: geometry.fitted(hw, PADDED_HW)),
        "channel + 1": changed(masks=rolled(-1)),
        "channel - 1": changed(masks=rolled(1)),
        "label + 1": changed(reshape_do_2d=label_plus(1), masks=rolled(1)),
        "label - 1": changed(reshape_do_2d=label_plus(-1), masks=rolled(-1)),
        "half a cell": TILED_OFF,
        "reframed": REFRAMED,
        "sigmoid twice": changed(masks=sigmoid),
        "no sigmoid": changed(masks=logit),
    },
    "atrous-converted": {"RGB": RGB, "half a cell": TILED_OFF, "reframed": REFRAMED},
    "security": {
        "RGB": RGB,
        "boxes not scaled back": rescaled("boxes", 0, lambda hw: np.array(geometry.fitted(hw, WINDOW_HW)) / hw),
        "boxes over the padded window": rescaled("boxes", 0, filled_hw(WINDOW_HW)),
        "stretched": stretched("im_data", WINDOW_HW),
        "im_info of the picture": told("im_info", lambda hw: hw),
        "channel + 1": changed(raw_masks=rolled(-1)),
        "channel - 1": changed(raw_masks=rolled(1)),
        "class + 1": changed(classes=plus(1), raw_masks=rolled(1)),
        "class - 1": changed(classes=plus(-1), raw_masks=rolled(-1)),
        "classes without gaps": Mistake(
            adapter=lambda right: replace(right, labels=dict(enumerate(COCO_NAMES.values(), 1)))
        ),
        "half a cell": TILED_OFF,
        "reframed": REFRAMED,
        "sigmoid twice": changed(raw_masks=sigmoid),
        "no sigmoid": changed(raw_masks=logit),
    },
    "security-0091": {
        "class + 1": changed(labels=lambda labels: labels + 1),
        "stretched": stretched("image", (800, 1344)),
    },
    "security-0228": {"class - 1": changed(labels=lambda labels: labels - 1), "padded": padded("image", (608, 608))},
}


# ---- agreement ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Agreement:
    """How one form's instances fit those of the network's own form.

    found: the share of the own form's confident instances that this one has, with the same class and a mask that
    overlaps by half; meant: the other way round. ap_loss: of mask AP against the truth. shift_cells: by how far masks
    lie off, x and y, in cells of the heatmap over their box; growth: by which factor they are larger, as a logarithm.
    Both are medians, and so what a wrong rule does to all of them, not what a coarse grid does to each.
    """

    found: float
    meant: float
    ap_loss: float
    shift_cells: tuple[float, float]
    growth: float

    def faults(self, mask_side: int) -> list[str]:
        """What is beyond the limits for masks of this side. Without small masks (0) nothing but rounding differs."""
        least, ap, cells, growth = LIMITS[mask_side]
        limits = {
            "found": self.found >= least,
            "meant": self.meant >= least,
            "ap_loss": abs(self.ap_loss) <= ap,
            "shift_cells": max(map(abs, self.shift_cells)) <= cells,
            "growth": abs(self.growth) <= growth,
        }
        return [name for name, kept in limits.items() if not kept]


# By mask side: least found and meant; most ap_loss, shift_cells and growth.
LIMITS = {
    0: (0.995, 0.005, 0.05, 0.005),
    15: (0.98, 0.08, 0.2, 0.02),
    28: (0.98, 0.03, 0.2, 0.02),
    33: (0.98, 0.03, 0.2, 0.02),
}


def agreement(found: list[Instances], expected: list[Instances], scenes: Scenes, mask_side: int) -> Agreement:
    there = [partner for a, b in zip(expected, found, strict=True) for partner in partners(a, b)]
    back = [partner for a, b in zip(expected, found, strict=True) for partner in partners(b, a)]
    shifts, growths = [np.zeros(2)], [0.0]
    for a, b in zip(expected, found, strict=True):
        for i, j in partners(a, b):
            if j is not None:
                shifts.append(shift(a, i, b, j) * (mask_side or 138))
                growths.append(float(np.log(rle.area(b.rles[j]) / rle.area(a.rles[i]))))
    x, y = np.median(shifts, axis=0)
    return Agreement(
        found=share(there),
        meant=share(back),
        ap_loss=mask_ap(expected, scenes) - mask_ap(found, scenes),
        shift_cells=(float(x), float(y)),
        growth=float(np.median(growths)),
    )


def partners(a: Instances, b: Instances) -> list[tuple[int, int | None]]:
    """For each confident instance of `a` the one of `b` with the same class that overlaps it most, if by half."""
    rows = np.flatnonzero(a.scores > CONFIDENT)
    overlap = rle.iou([a.rles[i] for i in rows], b.rles, a.size_hw)
    overlap = np.where(a.class_ids[rows][:, None] == b.class_ids, overlap, 0)
    best = [line.argmax() if line.max(initial=0) >= SAME else None for line in overlap]
    return [(int(row), None if j is None else int(j)) for row, j in zip(rows, best, strict=True)]


def share(pairs: list[tuple[int, int | None]]) -> float:
    return sum(j is not None for _, j in pairs) / len(pairs) if pairs else 0.0


def shift(a: Instances, i: int, b: Instances, j: int) -> NDArray[np.float64]:
    """How far the middle of b's mask lies from that of a's, x and y, in sides of a's box."""
    left, right = rle.bbox(a.rles[i], a.size_hw), rle.bbox(b.rles[j], b.size_hw)
    sides = np.maximum(a.boxes_xyxy[i, 2:] - a.boxes_xyxy[i, :2], 1)
    return np.asarray(((right[:2] + right[2:] / 2) - (left[:2] + left[2:] / 2)) / sides)


def mask_ap(found: list[Instances], scenes: Scenes) -> float:
    truth = scenes.truth()
    rows = [row for i, one in zip(truth["images"], found, strict=True) for row in coco_results(i["id"], one)]
    return evaluate_detections(rows, truth, iou_types=["segm"])["segm"].ap


def side(key: str) -> int:
    return WRAPPED[key].mask_side if key in WRAPPED else 0


def tier(key: str, plain: Collection[str]) -> list[pytest.MarkDecorator]:
    """The marks of a test with this form, which plain pytest has for some forms."""
    if key in plain:
        return []
    return [pytest.mark.thorough if key in (*USUAL, *FURTHER) else pytest.mark.chaos]


# ---- tests ----------------------------------------------------------------------------------------


@pytest.mark.chaos
@pytest.mark.parametrize("key", [key for key in WRAPPED if key not in LIKE_OTHERS])
def test_every_form_reports_the_same_instances(
    key: str, models: Callable[[str], resolve.ResolvedModel], scenes: Scenes, expected: list[Instances]
) -> None:
    agreed = agreement(detected(models(key), scenes), expected, scenes, side(key))
    print(key, agreed)
    assert agreed.faults(side(key)) == [], agreed


@pytest.mark.integration
@pytest.mark.parametrize("key", [pytest.param(key, marks=tier(key, USUAL)) for key in (STICKERS, *WRAPPED)])
def test_few_scenes_suffice_for_agreement(
    key: str, models: Callable[[str], resolve.ResolvedModel], few: Scenes, few_expected: list[Instances]
) -> None:
    agreed = agreement(detected(models(key), few), few_expected, few, side(key))
    print(key, agreed)
    assert agreed.faults(side(key)) == [], agreed


@pytest.mark.integration
@pytest.mark.parametrize(
    ("key", "name"),
    [
        pytest.param(key, name, marks=tier(key, MISREAD) if name == next(iter(mistakes)) else [pytest.mark.chaos])
        for key, mistakes in MISTAKES.items()
        for name in mistakes
    ],
)
def test_a_misread_form_does_not_agree(
    key: str, name: str, models: Callable[[str], resolve.ResolvedModel], few: Scenes, few_expected: list[Instances]
) -> None:
    agreed = agreement(detected(models(key), few, MISTAKES[key][name]), few_expected, few, side(key))
    print(key, name, agreed.faults(side(key)), agreed)
    assert agreed.faults(side(key)), agreed


@pytest.mark.chaos
@pytest.mark.parametrize("key", WRAPPED)
def test_decode_by_the_name_on_the_model_card(
    key: str, models: Callable[[str], resolve.ResolvedModel], few: Scenes, few_expected: list[Instances]
) -> None:
    picture, wanted = next(
        (picture, wanted) for picture, wanted in zip(few.pictures(), few_expected, strict=True) if len(wanted) > 2
    )
    model = models(key)
    engine = runtime.compile(model.path, model.form, runtime.DeviceSettings("CPU", None, "f32"))
    with engine.infer(model.adapter.prepare(model.form, picture)) as outputs:
        found = segray.decode(WRAPPED[key].name, outputs, picture.shape[:2])
    assert share(partners(wanted, found)) == share(partners(found, wanted)) == 1


@pytest.mark.integration
def test_two_scenes_through_the_form_with_everything_unlike(
    tmp_path: Path, models: Callable[[str], resolve.ResolvedModel]
) -> None:
    """Padded, BGR, another layout, rows by class, masks of every class."""
    dataset.write(tmp_path, 2, seed=43)
    two = Scenes(tmp_path, 2)
    expected, found = detected(resolve.resolve(STICKERS), two), detected(models("atrous-converted"), two)
    for a, b in zip(expected, found, strict=True):
        assert partners(a, b)
        assert share(partners(a, b)) == share(partners(b, a)) == 1
