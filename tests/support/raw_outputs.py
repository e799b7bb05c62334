"""Plausible raw outputs of the model families, drawn from a seed.

The golden results in tests/golden/decoded belong to seed 7. The order of the draws decides every number: keep it.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Outputs = dict[str, NDArray[Any]]

ROWS = 100
YOLACT_PRIORS = 19_248
YOLACT_CANDIDATES = 300


@lru_cache(maxsize=1)
def draw(seed: int) -> Mapping[str, Outputs]:
    """Return the outputs of each family by name; the arrays are read-only."""
    rng = np.random.default_rng(seed)
    families = {
        "mask_rcnn_reshape_15": _mask_rcnn(rng, 15),
        "mask_rcnn_reshape_33": _mask_rcnn(rng, 33),
        "tf_od": _tf_od(rng),
        "yolact": _yolact(rng),
        "security": _security(rng),
    }
    for outputs in families.values():
        for array in outputs.values():
            array.flags.writeable = False
    return families


def _mask_rcnn(rng: np.random.Generator, side: int) -> Outputs:
    """Draw 100 rows, of which 40 are valid; image_id -1 ends them."""
    valid = 40
    rows = np.zeros((ROWS, 7), np.float32)
    rows[:valid, 1] = rng.integers(1, 91, valid)
    rows[:valid, 2] = _scores(rng, valid)
    rows[:valid, 3:] = _boxes(rng, valid).clip(0, 1)
    rows[valid:, 0] = -1
    masks = rng.uniform(0, 0.2, (ROWS, 90, side, side)).astype(np.float32)
    masks[np.arange(valid), rows[:valid, 1].astype(int) - 1] = _blobs(rng, valid, side)
    return {"reshape_do_2d": rows, "masks": masks}


def _tf_od(rng: np.random.Generator) -> Outputs:
    """Draw 100 rows, of which num_detections counts 60; boxes are y first."""
    boxes = _boxes(rng, ROWS).clip(0, 1)[:, [1, 0, 3, 2]]
    return {
        "num_detections": np.array([60], np.float32),
        "detection_boxes": boxes[None],
        "detection_classes": rng.integers(1, 91, (1, ROWS)).astype(np.float32),
        "detection_scores": _scores(rng, ROWS)[None],
        "detection_masks": _blobs(rng, ROWS, 33)[None],
    }


def _yolact(rng: np.random.Generator) -> Outputs:
    """Draw background everywhere but at 300 priors; 200 of these nearly repeat a box and class of another."""
    logits = rng.normal(0, 1, (YOLACT_PRIORS, 81))
    logits[:, 0] += 9
    chosen = rng.choice(YOLACT_PRIORS, YOLACT_CANDIDATES, False)
    logits[chosen, rng.integers(1, 81, YOLACT_CANDIDATES)] += rng.uniform(6, 14, YOLACT_CANDIDATES)
    powers = np.exp(logits - logits.max(1, keepdims=True))
    conf = (powers / powers.sum(1, keepdims=True)).astype(np.float32)
    boxes = _boxes(rng, YOLACT_PRIORS)
    originals, copies = chosen[:200], chosen[100:]
    boxes[copies] = boxes[originals] + rng.normal(0, 0.01, (200, 4))
    labels = conf[originals, 1:].argmax(1) + 1
    conf[copies] = 0.0005
    conf[copies, labels] = rng.uniform(0.06, 0.9, 200)
    return {
        "conf": conf[None],
        "boxes": boxes[None],
        "mask": np.tanh(rng.normal(0, 1, (1, YOLACT_PRIORS, 32))).astype(np.float32),
        "proto": np.maximum(rng.normal(0, 0.6, (1, 138, 138, 32)), 0).astype(np.float32),
    }


def _security(rng: np.random.Generator) -> Outputs:
    """Draw 100 rows, of which 35 are valid; class 0 ends them. Boxes are in pixels of the network's input."""
    valid = 35
    classes, scores, boxes = np.zeros(ROWS, np.float32), np.zeros(ROWS, np.float32), np.zeros((ROWS, 4), np.float32)
    classes[:valid] = rng.integers(1, 81, valid)
    scores[:valid] = _scores(rng, valid)
    boxes[:valid] = _boxes(rng, valid).clip(0, 1) * [620, 470, 620, 470]
    masks = rng.uniform(0, 0.2, (ROWS, 81, 28, 28)).astype(np.float32)
    masks[np.arange(valid), classes[:valid].astype(int)] = _blobs(rng, valid, 28)
    return {"classes": classes, "scores": scores, "boxes": boxes, "raw_masks": masks}


def _scores(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    return np.sort(rng.uniform(0.01, 0.99, count))[::-1].astype(np.float32)


def _boxes(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Draw boxes (count, 4) as x0, y0, x1, y1 of a unit image; some reach beyond it."""
    centre, size = rng.uniform(0.1, 0.9, (count, 2)), rng.uniform(0.02, 0.6, (count, 2))
    return np.concatenate([centre - size / 2, centre + size / 2], 1).astype(np.float32)


def _blobs(rng: np.random.Generator, count: int, side: int) -> NDArray[np.float32]:
    """Draw masks (count, side, side): ellipses with soft, ragged edges."""
    y, x = np.mgrid[0:side, 0:side] / (side - 1) * 2 - 1
    width, height = rng.uniform(0.4, 1.1, (count, 1, 1)), rng.uniform(0.4, 1.1, (count, 1, 1))
    centre_x, centre_y = rng.uniform(-0.3, 0.3, (count, 1, 1)), rng.uniform(-0.3, 0.3, (count, 1, 1))
    inside = 1 - ((x - centre_x) / width) ** 2 - ((y - centre_y) / height) ** 2
    return (1 / (1 + np.exp(-6 * inside + rng.normal(0, 0.3, inside.shape)))).astype(np.float32)
