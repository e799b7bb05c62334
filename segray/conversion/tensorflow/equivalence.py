"""A comparison of a rewritten detection graph with its original: both run on images, in f32.

Knows how the rows of two runs are compared. Knows nothing of how graphs are rewritten.

The images are noise, one wide and one tall, because no other images are at hand at conversion. A network finds little
in noise with a high score, which would leave no row to compare. Both graphs are therefore asked first for rows of any
score. The second question is for rows above a score that some of the rows have.
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
_NEAR = 8


@dataclass(frozen=True)
class Comparison:
    """The comparison of the rows of two runs.

    rows: number of rows of the first run. equal: how many of these the second run has too, within LARGEST_DIFFERENCE.
    extra: rows that only the second run has. difference: largest difference of boxes (0..1), scores and masks.
    """

    rows: int
    equal: int
    extra: int
    difference: float

    @property
    def holds(self) -> bool:
        """Return whether the runs agree.

        A few rows may differ: rows with nearly equal scores may swap, and a proposal at the limit may be replaced.
        """
        return self.equal >= LEAST_EQUAL * self.rows and self.extra <= (1 - LEAST_EQUAL) * self.rows

    def __str__(self) -> str:
        return f"{self.equal} of {self.rows} rows equal within {self.difference:.1e}"


def compare(before: ov.Model, after: ov.Model, least_score: float) -> Iterator[Comparison]:
    """Yield a comparison for each image. least_score: score that rows exceed in both graphs; 0 if unknown."""
    wide, tall = noise(SIZE_HW), noise(SIZE_HW[::-1])
    found = rows(asked(before, least_score, 0), wide)
    yield compared(found, rows(asked(after, least_score, 0), wide))
    scores = np.sort(found["detection_scores"])
    middle = float(scores[len(scores) * 2 // 3]) if least_score > 0 and len(scores) else least_score
    yield compared(rows(asked(before, least_score, middle), tall), rows(asked(after, least_score, middle), tall))


def noise(size_hw: tuple[int, int], seed: int = 1) -> NDArray[np.uint8]:
    """Return an image of noise at several scales, uint8 (1, height, width, 3)."""
    random = np.random.default_rng(seed)
    image = np.zeros((*size_hw, 3))
    for step in (4, 16, 64):
        coarse = random.uniform(0, 255, (size_hw[0] // step + 1, size_hw[1] // step + 1, 3))
        image += coarse.repeat(step, 0).repeat(step, 1)[: size_hw[0], : size_hw[1]]
    return (image / 3).astype(np.uint8)[None]


def asked(model: ov.Model, least_score: float, other: float) -> ov.Model:
    """Return a copy of the model that compares scores with `other` in place of `least_score`.

    Scores are compared before a suppression and within it.
    """
    copy = model.clone()
    for node in _nodes(copy) if other != least_score else ():
        index = {"Greater": 1, "NonMaxSuppression": 4}.get(kind(node), node.get_input_size())
        if index < node.get_input_size() and number(node.input_value(index)) == least_score:
            constant = op.constant(np.full(node.input_value(index).get_shape(), other, np.float32))
            node.input(index).replace_source_output(constant.output(0))
    return copy


def _nodes(model: ov.Model) -> Iterator[Any]:
    for node in model.get_ops():
        yield node
        if kind(node) == "Loop":
            yield from _nodes(node.get_function())


def rows(model: ov.Model, image: NDArray[np.uint8]) -> Rows:
    """Return the rows that num_detections counts, by output, each (rows, ...)."""
    compiled = ov.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(image)
    arrays = {name: found[port][0] for port in compiled.outputs for name in names(port) & set(OUTPUTS)}
    return {name: array[: int(arrays["num_detections"])] for name, array in arrays.items() if array.ndim}


def compared(one: Rows, other: Rows) -> Comparison:
    """Find each row of `one` in `other`: the same class, and nearly equal score, box and mask."""
    total, more = (len(each["detection_scores"]) for each in (one, other))
    free, difference = list(range(more)), 0.0
    for row in range(total):
        near = [(_difference(one, row, other, each), each) for each in free[:_NEAR]]
        least, each = min(near, default=(np.inf, -1))
        if least <= LARGEST_DIFFERENCE:
            free.remove(each)
            difference = max(difference, least)
    return Comparison(total, more - len(free), len(free), difference)


def _difference(one: Rows, row: int, other: Rows, each: int) -> float:
    if one["detection_classes"][row] != other["detection_classes"][each]:
        return np.inf
    parts = ("detection_scores", "detection_boxes", "detection_masks")
    return max(float(np.abs(one[name][row] - other[name][each]).max()) for name in parts)
