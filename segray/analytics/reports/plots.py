"""Pictures of an evaluation as SVG: curves of thresholds, precision by recall, calibration.

This module knows which numbers belong into a picture. The templates know how a picture looks, in light and dark.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from segray.analytics.evaluation.coco_eval import RECALLS, Scores
from segray.analytics.evaluation.error_costs import ErrorCosts
from segray.analytics.evaluation.error_types import BACKGROUND, ErrorBreakdown
from segray.analytics.evaluation.evaluate import Evaluation
from segray.analytics.evaluation.thresholds import SCORES, ClassThresholds
from segray.analytics.reports.html import render

MOST_PANELS, MOST_CLASSES = 24, 20
_NAMES = {"segm": "masks", "bbox": "boxes"}
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Panel:
    """A part of a picture. x and y go from 0 to 1.

    curves: points by name, at most three curves. mark: x of a vertical line; None without a line.
    """

    title: str
    x_label: str
    curves: Mapping[str, Points]
    mark: float | None = None
    mark_label: str = ""


def curves(title: str, panels: Sequence[Panel]) -> str:
    """Return a picture of up to MOST_PANELS panels as SVG."""
    return render("plot.svg.jinja", title=title, panels=panels[:MOST_PANELS])


def thresholds_plot(thresholds: Mapping[str, ClassThresholds], goal: str) -> str:
    """Return precision, recall and F1 by score, with the best threshold, the classes with most objects first."""
    order = sorted(thresholds.items(), key=lambda entry: -entry[1].objects)
    return curves(f"Precision, recall and F1 by score; threshold for {goal}", [_threshold_panel(*e) for e in order])


def precision_plot(scores: Scores, kind: str) -> str:
    """Return precision by recall at IoU .50 and .75 of each class. The scores must have curves."""
    recalls = RECALLS.tolist()
    panels = [
        Panel(
            f"{name}: AP {scores.class_ap[name]:.3f}",
            "recall",
            {f"IoU {iou}": list(zip(recalls, values, strict=True)) for iou, values in by_iou.items()},
        )
        for name, by_iou in scores.curves.items()
    ]
    return curves(f"Precision by recall of {_NAMES[kind]}", panels)


def calibration_plot(scores: Scores, kind: str) -> str:
    """Return the share of right detections by score, beside the line where both are equal."""
    assert scores.calibration is not None
    pairs = zip(scores.calibration.score, scores.calibration.precision, strict=True)
    measured = [(score, share) for score, share in pairs if score is not None and share is not None]
    panel = Panel(
        f"mean distance {scores.calibration.error:.3f}",
        "score",
        {"measured": measured, "ideal": [(0.0, 0.0), (1.0, 1.0)]},
    )
    return curves(f"Share of right {_NAMES[kind]} by score", [panel])


def confusion_plot(errors: ErrorBreakdown) -> str:
    """Return the confusion matrix, of the classes that occur most often in it."""
    totals: Counter[str] = Counter()
    for truth, row in errors.confusion.items():
        for detected, count in row.items():
            totals.update({truth: count, detected: count})
    totals.pop(BACKGROUND, None)
    names = [name for name, _ in totals.most_common(MOST_CLASSES)]
    left_out = len(totals) - len(names)
    note = f"The {left_out} rarest classes are left out." if left_out else ""
    listed = [*names, BACKGROUND]
    counts = [[errors.confusion.get(truth, {}).get(detected, 0) for detected in listed] for truth in listed]
    title = f"Confusion of classes, scores of {errors.min_score:g} and more"
    return render("matrix.svg.jinja", title=title, note=note, names=listed, counts=counts)


def costs_plot(costs: ErrorCosts) -> str:
    """Return the AP that each kind of error costs."""
    return render("bars.svg.jinja", title="AP50 that each kind of error costs", bars=costs.kinds)


def write(folder: Path, evaluation: Evaluation, goal: str) -> list[Path]:
    """Write all pictures of an evaluation into a folder, and return their paths."""
    kind, scores = next(iter(evaluation.scores.items()))
    pages = {"thresholds": thresholds_plot(evaluation.thresholds, goal)}
    if scores.curves:
        pages["precision-recall"] = precision_plot(scores, kind)
    if scores.calibration is not None:
        pages["calibration"] = calibration_plot(scores, kind)
    if evaluation.mistakes is not None and evaluation.mistakes.confusion:
        pages["confusion"] = confusion_plot(evaluation.mistakes)
    if evaluation.costs is not None:
        pages["costs"] = costs_plot(evaluation.costs)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, page in pages.items():
        path = folder / f"{name}.svg"
        path.write_text(page, "utf-8")
        paths.append(path)
    return paths


def _threshold_panel(name: str, of_class: ClassThresholds) -> Panel:
    scores = SCORES.tolist()
    known = [(s, p) for s, p in zip(scores, of_class.precision, strict=True) if p is not None]
    best = of_class.best
    return Panel(
        f"{name}: {of_class.objects} objects",
        "smallest score",
        {
            "precision": known,
            "recall": list(zip(scores, of_class.recall, strict=True)),
            "F1": list(zip(scores, of_class.f1, strict=True)),
        },
        None if best is None else best.threshold,
        "" if best is None else f"{best.threshold:g}: F1 {best.f1:.3f}",
    )
