"""Precision, recall and F1 of a class by score, and the score at which to cut.

This module knows scores and right detections. coco_eval says which detections are right.
A search takes detections in pieces, by falling score. Memory does not grow with the number of detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segray.errors import UserError

GOALS = ("f1", "precision", "recall")
SCORES = np.arange(101) / 100  # at which precision and recall are given
FEW_OBJECTS = 10  # fewer objects of a class give a threshold by chance
_MIN_DIGITS, _MAX_DIGITS = 2, 9


@dataclass(frozen=True)
class Goal:
    """The rule by which a threshold is best.

    kind: "f1", "precision" or "recall". value: the least precision or recall that is asked for, 0..1. With "precision"
    the recall is then the largest possible, and with "recall" the precision.
    """

    kind: str = "f1"
    value: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Goal:
        """Return the goal of a text: f1, precision=0.9 or recall=0.8. Raise UserError for any other text."""
        kind, separator, value = text.partition("=")
        is_number = value.replace(".", "", 1).isdecimal() and 0 < float(value) <= 1
        if kind not in GOALS or (is_number if kind == "f1" else not is_number) or (kind == "f1" and separator):
            raise UserError(
                "no such way to choose a threshold", where="--best", found=text,
                hint="write f1, precision=0.9 or recall=0.8",
            )  # fmt: skip
        return cls(kind, float(value) if value else 0.0)

    def __str__(self) -> str:
        return "F1" if self.kind == "f1" else f"{self.kind} of {self.value:g} and more"


@dataclass(frozen=True)
class OperatingPoint:
    """Precision, recall and F1 of the detections whose score is at least the threshold.

    right, wrong: number of such detections.
    """

    threshold: float
    precision: float
    recall: float
    f1: float
    right: int
    wrong: int


@dataclass(frozen=True)
class ClassThresholds:
    """The thresholds of one class.

    objects: number in the truth. best: the point that meets the goal; None where no threshold does. is_uncertain: the
    class has fewer than FEW_OBJECTS objects. precision, recall, f1: at each of SCORES, (101,); precision is None where
    no detection has such a score.
    """

    objects: int
    best: OperatingPoint | None
    is_uncertain: bool
    precision: Sequence[float | None] = field(repr=False, default=())
    recall: Sequence[float] = field(repr=False, default=())
    f1: Sequence[float] = field(repr=False, default=())


class ThresholdSearch:
    """The search for the best threshold of one class. objects: number in the truth, above 0."""

    def __init__(self, objects: int, goal: Goal) -> None:
        self._objects, self._goal = objects, goal
        self._right = self._wrong = 0
        self._waiting: tuple[float, int, int] | None = None  # the lowest score so far, and its right and wrong ones
        self._best: tuple[tuple[float, float], OperatingPoint] | None = None
        self._by_score = np.zeros((2, len(SCORES)), np.int64)

    def add(self, scores: NDArray[np.float64], is_right: NDArray[np.bool_]) -> None:
        """Add detections whose scores are not higher than those of the detections before."""
        if not len(scores):
            return
        bins = np.clip(np.searchsorted(SCORES, scores, side="right") - 1, 0, len(SCORES) - 1)
        self._by_score += [
            np.bincount(bins, weights, len(SCORES)).astype(np.int64) for weights in (is_right, ~is_right)
        ]
        starts = np.flatnonzero(np.diff(scores, prepend=np.inf))
        values, counts = scores[starts], np.diff(starts, append=len(scores))
        right = np.add.reduceat(is_right.astype(np.int64), starts)
        wrong = counts - right
        if self._waiting is not None:
            score, right_before, wrong_before = self._waiting
            if score == values[0]:
                right[0], wrong[0] = right[0] + right_before, wrong[0] + wrong_before
            else:
                values = np.insert(values, 0, score)
                right, wrong = np.insert(right, 0, right_before), np.insert(wrong, 0, wrong_before)
        self._cut(values[:-1], values[1:], right[:-1], wrong[:-1])
        self._waiting = float(values[-1]), int(right[-1]), int(wrong[-1])

    def result(self) -> ClassThresholds:
        """Return the thresholds, after all detections are added."""
        if self._waiting is not None:
            (score, right, wrong), self._waiting = self._waiting, None
            self._cut(*(np.array([value]) for value in (score, 0.0, right, wrong)))
        right_from, wrong_from = np.cumsum(self._by_score[:, ::-1], axis=1)[:, ::-1]
        detections = right_from + wrong_from
        precision = [float(hits / n) if n else None for hits, n in zip(right_from, detections, strict=True)]
        return ClassThresholds(
            self._objects,
            None if self._best is None else self._best[1],
            self._objects < FEW_OBJECTS,
            precision,
            (right_from / self._objects).tolist(),
            (2 * right_from / (detections + self._objects)).tolist(),
        )

    def _cut(
        self, values: NDArray[np.float64], below: NDArray[np.float64], right: NDArray[Any], wrong: NDArray[Any]
    ) -> None:
        """Take the best of the cuts below these scores. below: the next lower score of a detection."""
        if not len(values):
            return
        all_right, all_wrong = self._right + np.cumsum(right), self._wrong + np.cumsum(wrong)
        self._right, self._wrong = int(all_right[-1]), int(all_wrong[-1])
        precision, recall = all_right / (all_right + all_wrong), all_right / self._objects
        f1 = 2 * all_right / (all_right + all_wrong + self._objects)
        if self._goal.kind == "f1":
            ranks = f1, precision
        elif self._goal.kind == "precision":
            ranks = np.where(precision >= self._goal.value, recall, -1.0), precision
        else:
            ranks = np.where(recall >= self._goal.value, precision, -1.0), recall
        at = int(np.lexsort((ranks[1], ranks[0]))[-1])
        rank = float(ranks[0][at]), float(ranks[1][at])
        if rank[0] > 0 and (self._best is None or rank > self._best[0]):
            threshold = between(float(below[at]), float(values[at]))
            values_at = (float(precision[at]), float(recall[at]), float(f1[at]))
            self._best = rank, OperatingPoint(threshold, *values_at, int(all_right[at]), int(all_wrong[at]))


def between(below: float, score: float) -> float:
    """Return a number of few digits between two scores: over `below` and under `score`, also as float32.

    Where no such number exists, return the score. Detections of the score itself are over the number, whether equal
    scores count or not.
    """
    for digits in range(_MIN_DIGITS, _MAX_DIGITS + 1):
        step = 10.0**-digits
        for candidate in (np.floor(score / step) * step, np.floor(score / step) * step - step):
            number = round(float(candidate), digits)
            if np.float32(below) < np.float32(number) < np.float32(score) and below < number < score:
                return number
    return score
