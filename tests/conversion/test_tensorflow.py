"""tf_graph: graphs of TensorFlow's exporter rewritten, and that what is not equal is never taken.

tf_graphs/ agrees two tiny Mask R-CNNs of random weights, written by TensorFlow's Object Detection API as it was in 2018
and in 2020: three classes, 24 proposals, 20 rows, images resized to 64..110 pixels, one atrous convolution.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from segray.conversion.tensorflow import convert, equivalence, nms, passes
from segray.conversion.tensorflow.graph import (
    OUTPUTS,
    computed_value,
    dims,
    kind,
    names,
    of_kind,
    output_value,
    replace,
)
from segray.models import engine

EXPORTED = Path(__file__).parent / "tf_graphs"
RELEASES = {"2018": nms.Order(True, True), "2020": nms.Order(False, True)}


def exported(release: str, folder: Path) -> Path:
    """The frozen graph of a release, unpacked."""
    path = folder / "frozen_inference_graph.pb"
    path.write_bytes(gzip.decompress((EXPORTED / f"exported_{release}.pb.gz").read_bytes()))
    return path


def prepared(path: Path) -> ov.Model:
    """Read, for one image, without loops: as suppression finds it."""
    model = engine.read(path)
    model.reshape({model.inputs[0]: ov.PartialShape([1, -1, -1, 3])})
    passes.inline_loops(model)
    passes.drop_arrays(model)
    return model


def run(model: ov.Model, *arrays: Any) -> list[Any]:
    return list(ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(list(arrays)).values())


# ---- real graphs ----------------------------------------------------------------------------------


@pytest.mark.integration
@pytest.mark.parametrize("release", ["2020", pytest.param("2018", marks=pytest.mark.thorough)])
def test_a_graph_is_rewritten_to_give_the_same_rows(release: str, tmp_path: Path) -> None:
    path, xml, notes = exported(release, tmp_path), tmp_path / "m.xml", []
    done = convert.save(path, xml, notes.append)
    assert {name for name, count in done["rewritten"].items() if count} == set(done["rewritten"]), notes
    assert done["rewritten"]["loops inlined"] == 5
    assert done["rewritten"]["suppressions merged"] == 3
    before, after = engine.read(path), engine.read(xml)
    assert not list(of_kind(after, "Loop", "If", "SpaceToBatch"))
    assert {name for port in after.outputs for name in names(port) & set(OUTPUTS)} == set(OUTPUTS)
    for size_hw in ((37, 110), (200, 150)):
        image = equivalence.noise(size_hw, seed=size_hw[0])
        found = equivalence.compare_rows(equivalence.run_rows(before, image), equivalence.run_rows(after, image))
        assert found.rows == found.equal > 0
        assert (found.extra, found.difference < 1e-5) == (0, True), found


@pytest.mark.integration
@pytest.mark.parametrize("release", RELEASES)
def test_only_the_order_of_the_release_is_proven(release: str, tmp_path: Path) -> None:
    found = nms.find(prepared(exported(release, tmp_path)))
    assert found is not None
    assert (found.classes, found.rows, found.per_class) == (3, 20, 12)
    assert (found.iou, found.score_threshold) == pytest.approx((0.6, 0.45))
    for clip_first in (True, False):
        for reframe in (True, False):
            order = nms.Order(clip_first, reframe)
            assert nms.gives_same_rows(found, order) == (order == RELEASES[release]), order


@pytest.mark.integration
def test_a_rewrite_that_changes_rows_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(model: ov.Model) -> int:
        boxes = computed_value(model, "detection_boxes")
        targets = list(boxes.get_target_inputs())
        moved = op.add(boxes, np.float32(0.01))
        for target in targets:
            target.replace_source_output(moved.output(0))
        model.validate_nodes_and_infer_types()
        return 1

    path, notes = exported("2018", tmp_path), []
    monkeypatch.setattr(passes, "trim_rows", spoil)
    assert convert.save(path, tmp_path / "m.xml", notes.append) == {}
    assert "other rows" in notes[-1]
    assert list(of_kind(engine.read(tmp_path / "m.xml"), "Loop"))


@pytest.mark.integration
def test_a_rewrite_that_fails_leaves_the_graph_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(model: ov.Model) -> int:
        raise RuntimeError("an unexpected graph")

    path, notes = exported("2020", tmp_path), []
    monkeypatch.setattr(passes, "drop_reshapes", fail)
    assert convert.save(path, tmp_path / "m.xml", notes.append) == {}
    assert "an unexpected graph" in notes[-1]
    assert list(of_kind(engine.read(tmp_path / "m.xml"), "Loop"))


# ---- parts ----------------------------------------------------------------------------------------


def test_an_array_of_one_element_is_left_out() -> None:
    value = op.parameter([3, 4], np.float32)
    array = op.scatter_update(np.zeros((1, 3, 4), np.float32), np.array([0]), op.unsqueeze(value, np.array(0)), 0)
    read = op.gather(array, np.array(0), np.array(0))
    model = ov.Model([op.result(read)], [value], "m")
    assert passes.drop_arrays(model) == 2
    assert not list(of_kind(model, "ScatterUpdate", "Gather"))
    image = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert np.array_equal(run(model, image)[0], image)


def test_an_array_of_two_elements_stays() -> None:
    value = op.parameter([2, 3], np.float32)
    model = ov.Model([op.result(op.gather(value, np.array(0), np.array(0)))], [value], "m")
    assert passes.drop_arrays(model) == 0


@pytest.mark.parametrize("size_hw", [(9, 12), (10, 11)])
def test_an_atrous_convolution_is_unfolded_as_tensorflow_folds_it(size_hw: tuple[int, int]) -> None:
    image = op.parameter([1, 2, -1, -1], np.float32)
    kernel = np.random.default_rng(0).normal(size=(3, 2, 3, 3)).astype(np.float32)
    size = op.gather(op.shape_of(image), np.array([2, 3]), np.array(0))
    over = op.mod(op.subtract(np.array([2, 2]), op.mod(size, np.array([2, 2]))), np.array([2, 2]))
    none, two, block = (op.constant(np.array(v, np.int64)) for v in ([0, 0], [2, 2], [1, 1, 2, 2]))
    begin, crop = op.concat([none, two], 0), op.concat([none, none], 0)
    folded = op.space_to_batch(image, block, begin, op.concat([none, op.add(two, over)], 0))
    conv = op.convolution(folded, kernel, [1, 1], [0, 0], [0, 0], [1, 1])
    back = op.batch_to_space(conv, block, crop, op.concat([none, over], 0))
    model = ov.Model([op.result(back)], [image], "m")
    array = np.random.default_rng(1).normal(size=(1, 2, *size_hw)).astype(np.float32)
    before = run(model, array)[0]
    assert passes.unfold_atrous(model) == 1
    assert not list(of_kind(model, "SpaceToBatch", "BatchToSpace"))
    np.testing.assert_allclose(run(model, array)[0], before, atol=1e-5)


def test_a_convolution_whose_padding_follows_the_size_stays_folded() -> None:
    image = op.parameter([1, 2, -1, -1], np.float32)
    size = op.gather(op.shape_of(image), np.array([2, 3]), np.array(0))
    block, none = op.constant(np.array([1, 1, 2, 2], np.int64)), op.constant(np.zeros(2, np.int64))
    over = op.concat([none, op.mod(size, np.array([2, 2]))], 0)
    zeros = op.concat([none, none], 0)
    folded = op.space_to_batch(image, block, zeros, over)
    conv = op.convolution(folded, np.ones((1, 2, 1, 1), np.float32), [1, 1], [0, 0], [0, 0], [1, 1])
    model = ov.Model([op.result(op.batch_to_space(conv, block, zeros, zeros))], [image], "m")
    assert passes.unfold_atrous(model) == 0


def test_a_graph_without_anything_to_rewrite_is_left_alone(tmp_path: Path) -> None:
    image = op.parameter(ov.PartialShape([1, -1, -1, 3]), np.uint8, name="image_tensor")
    shapes = ([1, 100, 4], [1, 100], [1, 100], [1, 100, 15, 15], [1])
    results = []
    for name, shape in zip(OUTPUTS, shapes, strict=True):
        node = op.broadcast(op.reduce_sum(op.convert(image, np.float32), [0, 1, 2, 3]), np.array(shape))
        node.output(0).tensor.set_names({name})
        results.append(op.result(node))
    engine.save(ov.Model(results, [image], "m"), tmp_path / "a.xml")
    assert convert.save(tmp_path / "a.xml", tmp_path / "b.xml", lambda text: None) == {}


def test_an_outputs_end_lies_above_its_changes_of_shape() -> None:
    value = op.parameter([5], np.float32)
    node = op.unsqueeze(op.add(op.relu(value), np.float32(1)), np.array([0]))
    node.output(0).tensor.set_names({"detection_scores:0"})
    model = ov.Model([op.result(node)], [value], "m")
    assert kind(computed_value(model, "detection_scores").get_node()) == "Relu"
    assert dims(output_value(model, "detection_scores")) == (1, 5)
    replace(computed_value(model, "detection_scores"), value.output(0))
    assert run(model, np.full(5, -1, np.float32))[0].tolist() == [[0.0] * 5]


# ---- comparing ------------------------------------------------------------------------------------


def some_rows(count: int, seed: int = 0) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    shapes = {"detection_boxes": (4,), "detection_scores": (), "detection_masks": (5, 5)}
    rows = {name: random.random((count, *shape), np.float32) for name, shape in shapes.items()}
    return {**rows, "detection_classes": np.arange(count, dtype=np.float32) % 3}


def test_rows_that_swapped_are_equal() -> None:
    rows = some_rows(10)
    order = [1, 0, *range(2, 10)]
    found = equivalence.compare_rows(rows, {name: array[order] for name, array in rows.items()})
    assert (found.rows, found.equal, found.extra, found.agrees) == (10, 10, 0, True)


@pytest.mark.parametrize("name", ["detection_boxes", "detection_scores", "detection_masks", "detection_classes"])
def test_a_row_that_changed_is_seen(name: str) -> None:
    rows = some_rows(10)
    other = {**rows, name: rows[name].copy()}
    other[name][4] += 1
    found = equivalence.compare_rows(rows, other)
    assert (found.equal, found.extra, found.agrees) == (9, 1, False)


def test_a_row_too_many_is_seen() -> None:
    rows = some_rows(10)
    assert not equivalence.compare_rows({name: array[:9] for name, array in rows.items()}, rows).agrees
    assert not equivalence.compare_rows(rows, {name: array[:9] for name, array in rows.items()}).agrees
