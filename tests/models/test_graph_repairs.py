"""Layers that segray changes in a graph. Whole networks with such layers run in test_described_models."""

from __future__ import annotations

import numpy as np
import openvino as ov
import pytest
from openvino import opset13 as op

from segray.models import graph_repairs


def reshaped(order: list[int], shape: list[int]) -> tuple[ov.Model, ov.Node]:
    """A network of two images whose axes are moved and whose numbers get another shape; and the last layer."""
    image = op.parameter([2, 3, 4, 4], np.float32)
    layer = op.reshape(op.transpose(image, order), np.array(shape, np.int64), False)
    return ov.Model([op.result(layer)], [image], "net"), layer


@pytest.mark.parametrize(
    ("order", "shape", "expected"),
    [
        ([0, 1, 2, 3], [2, 48], [1, 48]),
        ([0, 2, 3, 1], [8, 12], [4, 12]),
        ([0, 1, 2, 3], [-1, 48], [-1, 48]),
        ([0, 1, 2, 3], [3, 32], [3, 32]),
        ([1, 0, 2, 3], [6, 16], [6, 16]),  # The images are no longer outermost.
    ],
)
def test_shapes_that_count_the_images_take_one(order: list[int], shape: list[int], expected: list[int]) -> None:
    model, layer = reshaped(order, shape)
    graph_repairs.release_batch(model, 0, 2)
    assert layer.input_value(1).get_node().data.tolist() == expected


def test_a_shape_that_no_image_reaches_keeps_its_size() -> None:
    image = op.parameter([2, 4], np.float32)
    weights = op.reshape(op.constant(np.arange(8, dtype=np.float32)), np.array([4, 2], np.int64), False)
    model = ov.Model([op.result(op.matmul(image, weights, False, False))], [image], "net")
    graph_repairs.release_batch(model, 0, 2)
    assert weights.input_value(1).get_node().data.tolist() == [4, 2]


def test_a_slice_in_steps_stays() -> None:
    table = op.parameter([1, 6, 8], np.float32)
    indices = op.constant(np.zeros((1, 2, 4), np.int64))
    kept = op.gather_elements(op.slice(table, [0], [8], [2], [2]), indices, 1)
    changed = op.gather_elements(op.slice(table, [2], [6], [1], [2]), indices, 1)
    graph_repairs.gather_slices(ov.Model([op.result(kept), op.result(changed)], [table], "net"))
    assert [layer.input_value(0).get_node().get_type_name() for layer in (kept, changed)] == ["Slice", "Gather"]
