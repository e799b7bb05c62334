"""A comparison of a rewritten detection graph with its original: both run on images, in f32.

Knows how the rows of two runs are compare_rows. Knows nothing of how graphs are rewritten.

The images are noise, one wide and one tall, because no other images are at hand at conversion. A network finds little
in noise with a high score, which would leave no row to compare. On the first image, both graphs therefore return rows
of any score. On the second image, they return rows above a score that some rows of the first image reach.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.conversion.tensorflow.graph import OUTPUTS, kind, names, number
from segray.models.openvino import opset13 as op
from segray.models.openvino import ov

Rows = Mapping[str, NDArray[np.float32]]

SIZE_HW = (300, 400)
LARGEST_DIFFERENCE = 1e-3
LEAST_EQUAL = 0.98
_CANDIDATES = 8


@dataclass(frozen=True)
class Comparison:
    """The comparison of the rows of two runs.

    rows: number of rows of the first run. equal: number of these rows that the second run has too, within
    LARGEST_DIFFERENCE. extra: number of rows that only the second run has. difference: largest difference of boxes
    (0..1), scores and masks.
    """

    rows: int
    equal: int
    extra: int
    difference: float

    @property
    def agrees(self) -> bool:
        """Return whether the runs agree.

        A few rows may differ: rows with nearly equal scores may swap, and a proposal at the limit may be replaced.
        """
        return self.equal >= LEAST_EQUAL * self.rows and self.extra <= (1 - LEAST_EQUAL) * self.rows

    def __str__(self) -> str:
        return f"{self.equal} of {self.rows} rows equal within {self.difference:.1e}"


def compare(before: ov.Model, after: ov.Model, score_threshold: float) -> Iterator[Comparison]:
    """Yield a comparison for each image. score_threshold: score that rows exceed in both graphs; 0 if unknown."""
    wide, tall = noise(SIZE_HW), noise(SIZE_HW[::-1])
    rows = run_rows(with_score_threshold(before, score_threshold, 0), wide)
    yield compare_rows(rows, run_rows(with_score_threshold(after, score_threshold, 0), wide))
    scores = np.sort(rows["detection_scores"])
    middle = float(scores[len(scores) * 2 // 3]) if score_threshold > 0 and len(scores) else score_threshold
    yield compare_rows(
        run_rows(with_score_threshold(before, score_threshold, middle), tall),
        run_rows(with_score_threshold(after, score_threshold, middle), tall),
    )


def noise(size_hw: tuple[int, int], seed: int = 1) -> NDArray[np.uint8]:
    """Return an image of noise at several scales, uint8 (1, height, width, 3)."""
    random = np.random.default_rng(seed)
    image = np.zeros((*size_hw, 3))
    for step in (4, 16, 64):
        coarse = random.uniform(0, 255, (size_hw[0] // step + 1, size_hw[1] // step + 1, 3))
        image += coarse.repeat(step, 0).repeat(step, 1)[: size_hw[0], : size_hw[1]]
    return (image / 3).astype(np.uint8)[None]


def with_score_threshold(model: ov.Model, old: float, new: float) -> ov.Model:
    """Return a copy of the model that compares scores with `new` in place of `old`.

    Scores are compare_rows before a suppression and within it.
    """
    copy = model.clone()
    if new == old:
        return copy
    for node in _nodes(copy):
        index = {"Greater": 1, "NonMaxSuppression": 4}.get(kind(node), node.get_input_size())
        if index < node.get_input_size() and number(node.input_value(index)) == old:
            constant = op.constant(np.full(node.input_value(index).get_shape(), new, np.float32))
            node.input(index).replace_source_output(constant.output(0))
    return copy


def _nodes(model: ov.Model) -> Iterator[Any]:
    """Yield all nodes, also those in the bodies of loops."""
    for node in model.get_ops():
        yield node
        if kind(node) == "Loop":
            yield from _nodes(node.get_function())


def run_rows(model: ov.Model, image: NDArray[np.uint8]) -> Rows:
    """Return the rows that num_detections counts: output name -> array (rows, ...)."""
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = compiled(image)
    arrays = {name: outputs[port][0] for port in compiled.outputs for name in names(port) & set(OUTPUTS)}
    return {name: array[: int(arrays["num_detections"])] for name, array in arrays.items() if array.ndim}


def compare_rows(one: Rows, other: Rows) -> Comparison:
    """Find each row of `one` in `other`: the same class, and nearly equal score, box and mask."""
    one_count, other_count = len(one["detection_scores"]), len(other["detection_scores"])
    unmatched, largest = list(range(other_count)), 0.0
    for row in range(one_count):
        candidates = [(_difference(one, row, other, other_row), other_row) for other_row in unmatched[:_CANDIDATES]]
        difference, other_row = min(candidates, default=(np.inf, -1))
        if difference <= LARGEST_DIFFERENCE:
            unmatched.remove(other_row)
            largest = max(largest, difference)
    return Comparison(one_count, other_count - len(unmatched), len(unmatched), largest)


def _difference(one: Rows, one_row: int, other: Rows, other_row: int) -> float:
    """Return the largest difference of score, box and mask; infinity for rows of different classes."""
    if one["detection_classes"][one_row] != other["detection_classes"][other_row]:
        return np.inf
    parts = ("detection_scores", "detection_boxes", "detection_masks")
    return max(float(np.abs(one[name][one_row] - other[name][other_row]).max()) for name in parts)
