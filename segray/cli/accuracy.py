"""The commands `segray evaluate` and `threshold`, which compare a label set with a truth.

Knows arguments and how results are printed. segray.analytics.evaluation does the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segray._system import signals
from segray._system.streams import show
from segray.cli.analytics import AsOf, Version, moment
from segray.cli.options import Endpoint, Json, Root, ThresholdsFile, show_json
from segray.cli.texts import number, table, times
from segray.errors import UserError

if TYPE_CHECKING:
    from segray.analytics.evaluation.evaluate import Comparison, Evaluation
    from segray.analytics.evaluation.intervals import Interval, Slice
    from segray.analytics.evaluation.thresholds import ClassThresholds

_SHOWN = 15
_PAIRS = 5  # of confused classes
_KINDS = {"segm": "masks", "bbox": "boxes"}

Truth = Annotated[
    str, typer.Option(help="Truth as COCO or LVIS JSON. Its file_name is image_key, or the end of a path.")
]
Protocol = Annotated[
    str | None,
    typer.Option(
        help="Measuring protocol: coco, lvis, omz-mask-rcnn, ... or a model's name for the protocol of its card."
    ),
]
LabelledOnly = Annotated[bool, typer.Option(help="Leave out images that failed or have no labels.")]
AllowUnlisted = Annotated[bool, typer.Option(help="Ignore images that the truth does not list.")]
AllowOtherClasses = Annotated[bool, typer.Option(help="Match classes by category id, even if their names differ.")]
ClassesBy = Annotated[
    str | None,
    typer.Option(
        metavar="id|name",
        help="Way to match classes. By default ids if the names agree, else names if each fits one class.",
    ),
]
ClassMap = Annotated[
    list[str],
    typer.Option(
        metavar="FILE|TRUTH=LABEL",
        help="Class of the truth and class of the labels, by name or id. Repeatable. Or a file: YAML or JSON.",
    ),
]
FilesBy = Annotated[
    str | None,
    typer.Option(
        metavar="key|basename|suffix",
        help="Way to match images: whole name, last part, or end of the path. By default the whole name, "
        "else the end of the path if each fits one image.",
    ),
]
StripPrefix = Annotated[str, typer.Option(metavar="TEXT", help="Text to cut off each file_name of the truth.")]
CountCrowds = Annotated[
    bool, typer.Option("--count-crowds", help="Take crowds for objects. CVAT exports brush masks as crowds.")
]
Best = Annotated[
    str,
    typer.Option(
        metavar="f1|precision=P|recall=R",
        help="Rule of best thresholds: the best F1, or the most recall with this precision, or the most precision "
        "with this recall.",
    ),
]


def evaluate(
    root: Root,
    truth: Truth,
    protocol: Protocol = None,
    only: Annotated[
        list[str],
        typer.Option(metavar="segm|bbox", help="Kind of comparison: masks (segm) or boxes (bbox). By default both."),
    ] = [],  # noqa: B006
    labelled_only: LabelledOnly = False,
    allow_unlisted: AllowUnlisted = False,
    allow_other_classes: AllowOtherClasses = False,
    classes_by: ClassesBy = None,
    class_map: ClassMap = [],  # noqa: B006
    files_by: FilesBy = None,
    strip_prefix: StripPrefix = "",
    count_crowds: CountCrowds = False,
    min_score: Annotated[
        float, typer.Option(min=0, max=1, help="Smallest score of detections whose errors are counted.")
    ] = 0.5,
    thresholds: ThresholdsFile = None,
    plots: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder for pictures of the figures, as SVG.")
    ] = None,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="Give AP with its 95 % interval, by resampling the images.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="ROOT_B",
            help="Label set that is compared with the same truth. Differences have intervals, on the same samples.",
        ),
    ] = None,
    draw: Annotated[
        Path | None,
        typer.Option(
            metavar="PNG", help="With --against: file for a picture of the most changed images, ROOT beside ROOT_B."
        ),
    ] = None,
    by: Annotated[
        list[str],
        typer.Option(
            metavar="size|class|folder|SQL",
            help="Parts whose AP is also given: by size, class, folder, or a SQL expression on a row of images, such "
            "as 'width > 1000'. Repeatable.",
        ),
    ] = [],  # noqa: B006
    resamples: Annotated[int, typer.Option(min=100, help="Number of samples of images, for intervals.")] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of the samples.")] = 0,
    version: Version = None,
    as_of: AsOf = None,
    endpoint_url: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Compare a label set with the truth.

    The command prints the average precision of masks and boxes, by class and size, and errors by kind.
    """
    if draw is not None and against is None:
        raise UserError("--draw draws what changed, and needs a second label set", hint="give --against ROOT_B")
    with signals.ending_at_once():
        from segray.analytics.evaluation.class_maps import from_options
        from segray.analytics.evaluation.evaluate import IOU_TYPES, compare
        from segray.analytics.evaluation.evaluate import evaluate as evaluate_one

    options: dict[str, Any] = {
        "iou_types": only or IOU_TYPES,
        "labelled_only": labelled_only,
        "allow_unlisted": allow_unlisted,
        "allow_other_classes": allow_other_classes,
        "classes_by": classes_by,
        "class_map": from_options(class_map),
        "files_by": files_by,
        "strip_prefix": strip_prefix,
        "count_crowds": count_crowds,
        "protocol": protocol,
        "min_score": min_score,
        "thresholds": thresholds,
        "by": by,
        "curves": as_json or plots is not None,
    }
    place: dict[str, Any] = {"version": version, "as_of": moment(as_of), "endpoint_url": endpoint_url}
    if against is not None:
        comparison = compare(root, against, truth, resamples=resamples, seed=seed, options=options, **place)
        result = comparison.a
        show_json(asdict(comparison)) if as_json else show(describe_comparison(comparison))
    else:
        result = evaluate_one(root, truth, resamples=resamples if intervals else 0, seed=seed, **options, **place)
        if as_json:
            show_json(asdict(result))
        else:
            show(describe_evaluation(result))
            show(describe_details(result))
    if plots is not None:
        _write_plots(result, plots, "F1", quiet=as_json)
    if draw is not None and against is not None:
        _draw_changes(root, against, draw, min_score, place, quiet=as_json)


def _draw_changes(
    root: str, against: str, draw: Path, min_score: float, place: Mapping[str, Any], *, quiet: bool
) -> None:
    with signals.ending_at_once():
        from segray.analytics.reports.diff import diff

    difference = diff(
        root, against, min_score=min_score, draw=draw, version_a=place["version"], as_of_a=place["as_of"],
        endpoint_url=place["endpoint_url"],
    )  # fmt: skip
    if not quiet:
        show(f"picture: {draw}")
        for key, reason in difference.undrawn.items():
            show(f"not drawn: {key}: {reason}")


def threshold(
    root: Root,
    truth: Truth,
    best: Best = "f1",
    iou: Annotated[float, typer.Option(help="Least IoU of a right detection: 0.5, 0.55, ... 0.95.")] = 0.5,
    only: Annotated[
        str, typer.Option(metavar="segm|bbox", help="Kind of comparison: masks (segm) or boxes (bbox).")
    ] = "segm",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="File for the thresholds (YAML), for --thresholds and configurations."),
    ] = None,
    plots: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder for a picture of precision, recall and F1, as SVG.")
    ] = None,
    labelled_only: LabelledOnly = False,
    allow_unlisted: AllowUnlisted = False,
    allow_other_classes: AllowOtherClasses = False,
    classes_by: ClassesBy = None,
    class_map: ClassMap = [],  # noqa: B006
    files_by: FilesBy = None,
    strip_prefix: StripPrefix = "",
    count_crowds: CountCrowds = False,
    version: Version = None,
    as_of: AsOf = None,
    endpoint_url: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Find the best score threshold of each class, by the truth.

    The command prints precision, recall and F1 at the threshold, and lines for the section `model` of a configuration.
    """
    with signals.ending_at_once():
        from segray.analytics.evaluation.class_maps import from_options
        from segray.analytics.evaluation.evaluate import evaluate as compare
        from segray.analytics.evaluation.thresholds import Goal
        from segray.analytics.query import score_thresholds

    goal = Goal.parse(best)
    result = compare(
        root,
        truth,
        iou_types=[only],
        labelled_only=labelled_only,
        allow_unlisted=allow_unlisted,
        allow_other_classes=allow_other_classes,
        classes_by=classes_by,
        class_map=from_options(class_map),
        files_by=files_by,
        strip_prefix=strip_prefix,
        count_crowds=count_crowds,
        best=best,
        threshold_iou=iou,
        version=version,
        as_of=moment(as_of),
        endpoint_url=endpoint_url,
    )
    values = result.best_thresholds
    if out is not None:
        kind = _KINDS[only]
        comment = f"segray threshold {root} --truth {truth}: {goal}, {kind} with IoU {iou:g} and more"
        out.write_text(score_thresholds.file(values, comment), "utf-8")
    if as_json:
        classes = {name: asdict(of_class) for name, of_class in result.thresholds.items()}
        show_json({"class_thresholds": values, "classes": classes, "best": best, "iou": iou, "notes": result.notes})
    else:
        show(describe_thresholds(result.thresholds, str(goal)))
        for note in result.notes:
            show(f"note: {note}")
        if values:
            show("lines for the section `model` of a configuration:")
            show("  " + score_thresholds.lines(values).replace("\n", "\n  "))
        if out is not None:
            show(f"{out}: thresholds of {len(values)} classes, for --thresholds of sql, export, evaluate and report")
    if plots is not None:
        _write_plots(result, plots, str(goal), quiet=as_json)


def _write_plots(result: Evaluation, folder: Path, goal: str, *, quiet: bool) -> None:
    with signals.ending_at_once():
        from segray.analytics.reports import plots

    paths = plots.write(folder, result, goal)
    if not quiet:
        show("\n".join(f"picture: {path}" for path in paths))


# ---- printed texts -------------------------------------------------------------------------------


def describe_thresholds(thresholds: Mapping[str, ClassThresholds], goal: str) -> str:
    """Return the best threshold of each class with its precision, recall and F1, the worst F1 first."""
    rows: list[Sequence[Any]] = []
    lines = [f"best thresholds: {goal}"]
    for name, of_class in sorted(
        thresholds.items(), key=lambda entry: 0 if entry[1].best is None else entry[1].best.f1
    ):
        point = of_class.best
        values = ("none",) * 4 if point is None else (point.threshold, point.precision, point.recall, point.f1)
        rows.append((name, *values, of_class.objects))
    lines.append(table(("class", "threshold", "precision", "recall", "F1", "objects"), rows, len(rows)))
    without = [name for name, of_class in thresholds.items() if of_class.best is None]
    if without:
        lines.append(f"no score reaches this: {', '.join(without)}")
    few = [f"{name} ({of_class.objects})" for name, of_class in thresholds.items() if of_class.is_uncertain]
    if few:
        lines.append(f"too few objects for a threshold to rely on: {', '.join(few)}")
    return "\n".join(lines)


def describe_comparison(comparison: Comparison) -> str:
    """Return the AP of both label sets, and the differences with their intervals, the largest first."""
    lines = []
    for name, evaluation in (("A", comparison.a), ("B", comparison.b)):
        lines += [f"{name} {line}" for line in describe_evaluation(evaluation).splitlines()]
    for kind, of_kind in comparison.differences.items():
        lines.append(f"{_KINDS[kind]}: B less A, with 95 % intervals of {of_kind.resamples:,} samples of the images")
        rows = [("AP", of_kind.ap), ("AP50", of_kind.ap50)]
        classes = sorted(of_kind.class_ap.items(), key=lambda entry: -abs(entry[1].value))
        shown = [*rows, *classes[:_SHOWN]]
        lines.append(_interval_table(shown, signed=True))
        if len(classes) > _SHOWN:
            lines.append(f"{'':>20} ... and {len(classes) - _SHOWN} more")
    notes = [f"note on {name}: {n}" for name, e in (("A", comparison.a), ("B", comparison.b)) for n in e.notes]
    return "\n".join([*lines, *notes])


def describe_slices(slices: Sequence[Slice]) -> str:
    """Return the AP of each part, with its interval if there is one."""
    lines = []
    for by in dict.fromkeys(part.by for part in slices):
        parts = [part for part in slices if part.by == by]
        rows = [
            (part.name, part.objects, *(
                ("none", "none", "") if part.ap is None else (part.ap.value, part.ap50, _bounds(part.ap))
            ))
            for part in parts[:_SHOWN]
        ]  # fmt: skip
        lines.append(table((f"by {by}", "objects", "AP", "AP50", "interval"), rows, len(parts)))
    return "\n".join(lines)


def _interval_lines(result: Evaluation) -> list[str]:
    lines = []
    for kind, of_kind in result.intervals.items():
        lines.append(f"{_KINDS[kind]}: 95 % intervals of {of_kind.resamples:,} samples of {of_kind.ap.images:,} images")
        classes = sorted(of_kind.class_ap.items(), key=lambda entry: entry[1].value)
        lines.append(_interval_table([("AP", of_kind.ap), ("AP50", of_kind.ap50), *classes[:_SHOWN]]))
    return lines


def _interval_table(rows: Sequence[tuple[str, Interval]], *, signed: bool = False) -> str:
    lines = []
    for name, interval in rows:
        value = f"{interval.value:+.3f}" if signed else f"{interval.value:.3f}"
        mark = "  not chance" if signed and interval.is_clear else ""
        lines.append(f"{name:>20}  {value}  {_bounds(interval, signed=signed)}{mark}")
    return "\n".join(lines)


def _bounds(interval: Interval, *, signed: bool = False) -> str:
    """Return the ends of an interval, or why it has none."""
    if interval.low is None or interval.high is None:
        few = interval.is_of_few_images
        count = "1 image" if interval.images == 1 else f"{interval.images} images"
        return f"({count}: too few for an interval)" if few else ""
    sign = "+" if signed else ""
    return f"({interval.low:{sign}.3f}..{interval.high:{sign}.3f})"


def describe_evaluation(result: Evaluation) -> str:
    """Return the AP of masks and boxes, one line each."""
    names = {"segm": "mask", "bbox": "box"}
    return "\n".join(
        f"{names[kind]:>4} AP {scores.ap:.3f}  AP50 {scores.ap50:.3f}  AP75 {scores.ap75:.3f}  "
        f"({result.objects} objects in {result.images} images)"
        for kind, scores in result.scores.items()
    )


def describe_details(result: Evaluation) -> str:
    """Return sizes, recall, classes, error types, calibration, the model cards' figures and notes."""
    lines = []
    for kind, scores in result.scores.items():
        lines.append(
            f"{ {'segm': 'mask', 'bbox': 'box'}[kind]:>4} by size: small {number(scores.ap_small)}, medium "
            f"{number(scores.ap_medium)}, large {number(scores.ap_large)}; recall at "
            f"{', '.join(map(str, scores.limits))}: {scores.ar1:.3f}, {scores.ar10:.3f}, {scores.ar100:.3f}"
        )
        if scores.frequency_ap:
            lines.append("     " + ", ".join(f"{word} {value:.3f}" for word, value in scores.frequency_ap.items()))
    lines += _interval_lines(result)
    if result.slices:
        lines.append(describe_slices(result.slices))
    first = next(iter(result.scores.values()))
    rows = [(name, ap, first.class_ap50[name], first.class_ar[name]) for name, ap in first.class_ap.items()]
    lines.append(table(("class", "AP", "AP50", "AR"), sorted(rows, key=lambda row: row[1])[:_SHOWN], len(rows)))
    if result.mistakes is not None:
        counts = {kind: sum(by_class.values()) for kind, by_class in result.mistakes.kinds.items()}
        counts_text = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        lines.append(f"detections of score {result.mistakes.min_score:g} and more: {counts_text}")
        taken = sorted(
            ((count, truth, name) for truth, row in result.mistakes.taken_for.items() for name, count in row.items()),
            reverse=True,
        )
        lines += [f"  {times(count)} {truth} was taken for {name}" for count, truth, name in taken[:_PAIRS]]
        if others := sum(count for count, _, _ in taken[_PAIRS:]):
            lines.append(f"  {times(others)} another class was taken for one")
    if result.costs is not None:
        costs = ", ".join(f"{kind} {value:.3f}" for kind, value in result.costs.kinds.items())
        lines.append(f"AP50 that each kind of error costs, over all scores: {costs}")
        lines.append(
            f"  all false detections {result.costs.false_positives:.3f}, all objects that no right detection finds "
            f"{result.costs.false_negatives:.3f}"
        )
    if first.calibration is not None:
        lines.append(f"calibration error: scores and precision differ by {first.calibration.error:.3f} on average")
    for model, (box, mask) in result.cards.items():
        lines.append(f"card of {model}: box AP {box:.2f} %, mask AP {mask:.2f} %")
    states = f"{result.labelled} of {result.images} images are labelled, {result.failed} failed"
    return "\n".join([*lines, states, *(f"note: {note}" for note in result.notes)])
