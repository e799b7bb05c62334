"""The commands `segray evaluate`, `export`, `report`, `diff`, `select` and `review`, which read a label set.

Knows arguments and how results are printed. The package segray.analytics does the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from segray._system import signals
from segray._system.streams import show
from segray.cli.options import Endpoint, Json, Root, show_json
from segray.errors import UserError

if TYPE_CHECKING:
    from segray.analytics.evaluation.evaluate import Evaluation
    from segray.analytics.export.export import ExportResult
    from segray.analytics.reports.diff import LabelSetDifference
    from segray.analytics.review.review import Errors, Review
    from segray.analytics.review.sampling import Selection

app = typer.Typer(rich_markup_mode=None)

Version = Annotated[int | None, typer.Option(help="The label set as it was after this batch.")]
AsOf = Annotated[str | None, typer.Option(metavar="TIME", help="As it was then: 2026-11-21T12:00, in UTC.")]

_GATE = 4
_SHOWN = 15


@app.command()
def evaluate(
    root: Root,
    truth: Annotated[str, typer.Option(help="COCO or LVIS JSON; file_name there is image_key here.")],
    protocol: Annotated[
        str | None, typer.Option(help="coco, lvis, omz-mask-rcnn, ... or a model's name: as its card measures.")
    ] = None,
    only: Annotated[list[str], typer.Option(metavar="segm|bbox", help="Compare masks or boxes alone.")] = [],  # noqa: B006
    labelled_only: Annotated[bool, typer.Option(help="Leave out images that failed or are not labelled.")] = False,
    allow_unlisted: Annotated[bool, typer.Option(help="Ignore images that the truth does not list.")] = False,
    allow_other_classes: Annotated[bool, typer.Option(help="Compare by category id, whatever the names.")] = False,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Of detections whose mistakes are counted.")] = 0.5,
    version: Version = None,
    as_of: AsOf = None,
    endpoint_url: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Compare a label set with the truth: average precision of masks and boxes, by class and size, and mistakes."""
    with signals.ending_at_once():
        from segray.analytics.evaluation.evaluate import IOU_TYPES
        from segray.analytics.evaluation.evaluate import evaluate as compare

    result = compare(
        root,
        truth,
        iou_types=only or IOU_TYPES,
        labelled_only=labelled_only,
        allow_unlisted=allow_unlisted,
        allow_other_classes=allow_other_classes,
        protocol=protocol,
        min_score=min_score,
        curves=as_json,
        version=version,
        as_of=moment(as_of),
        endpoint_url=endpoint_url,
    )
    if as_json:
        show_json(asdict(result))
    else:
        show(describe_evaluation(result))
        show(describe_details(result))


@app.command()
def export(
    root: Root,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new file, or a new or empty folder.")],
    to: Annotated[
        str,
        typer.Option(
            help="coco, coco-results, yolo, label-studio, cvat, fiftyone, labelme, imagefolder, png-instance, "
            "png-semantic."
        ),
    ],
    class_name: Annotated[list[str], typer.Option("--class", help="Only this class; repeatable.")] = [],  # noqa: B006
    min_score: Annotated[float, typer.Option(min=0, max=1)] = 0.0,
    min_area: Annotated[int, typer.Option(min=0, help="Pixels.")] = 0,
    max_area: Annotated[int | None, typer.Option(min=0, help="Pixels.")] = None,
    status: Annotated[list[str], typer.Option(metavar="ok|empty", help="Only such images; repeatable.")] = [],  # noqa: B006
    where: Annotated[
        str | None, typer.Option(help='SQL on a row of instances: "rle_area(rle) > 0.1*width*height".')
    ] = None,
    with_instances: Annotated[bool, typer.Option(help="Leave out images of which no instance is chosen.")] = False,
    sample: Annotated[int | None, typer.Option(min=1, help="So many images, always the same.")] = None,
    polygons: Annotated[bool, typer.Option(help="In coco, in place of run lengths.")] = False,
    tolerance_px: Annotated[float, typer.Option(min=0, help="How far polygons may leave the pixels' edges.")] = 0.0,
    copy_images: Annotated[bool | None, typer.Option(help="Also the images; else as the format needs.")] = None,
    ids_from: Annotated[str | None, typer.Option(help="COCO JSON whose image ids to use.")] = None,
    version: Version = None,
    as_of: AsOf = None,
    endpoint_url: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Write labels in another tool's format: whole or not at all."""
    with signals.ending_at_once():
        from segray.analytics.export.export import ExportSelection
        from segray.analytics.export.export import export as write

    choice = ExportSelection(
        class_name, min_score, min_area, max_area, status or ("ok", "empty"), where, with_instances, sample
    )
    done = write(
        root,
        to,
        out,
        choice,
        polygons=polygons,
        tolerance_px=tolerance_px,
        copy_images=copy_images,
        ids_from=ids_from,
        version=version,
        as_of=moment(as_of),
        endpoint_url=endpoint_url,
    )
    if as_json:
        show_json(asdict(done))
    else:
        show(describe_export(done))


@app.command()
def diff(
    root_a: Annotated[str, typer.Argument(metavar="ROOT_A", help="A label set.")],
    root_b: Annotated[str, typer.Argument(metavar="ROOT_B", help="Another one of the same images.")],
    fail_if: Annotated[
        list[str], typer.Option(metavar="GATE", help="lost>2%, changed[person]>50, score_drift>0.1: exit code 4.")
    ] = [],  # noqa: B006
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Of instances that take part.")] = 0.0,
    most: Annotated[int, typer.Option(min=1, help="How many of the images that changed most.")] = 20,
    draw: Annotated[Path | None, typer.Option(metavar="PNG", help="Draw these side by side.")] = None,
    version_a: Version = None,
    as_of_a: AsOf = None,
    version_b: Version = None,
    as_of_b: AsOf = None,
    endpoint_url: Endpoint = None,
    as_json: Json = False,
) -> None:
    """What label set B keeps, moves, renames, gains and loses of A. Exit code 4 when a gate fails."""
    with signals.ending_at_once():
        from segray.analytics.reports.diff import diff as compare

    found = compare(
        root_a,
        root_b,
        fail_if=fail_if,
        min_score=min_score,
        most=most,
        draw=draw,
        version_a=version_a,
        as_of_a=moment(as_of_a),
        version_b=version_b,
        as_of_b=moment(as_of_b),
        endpoint_url=endpoint_url,
    )
    if as_json:
        show_json(asdict(found))
    else:
        show(describe_difference(found))
    raise typer.Exit(_GATE if found.failed_gates else 0)


@app.command()
def select(
    root: Root,
    out: Annotated[Path, typer.Argument(metavar="OUT.json", help="A new file: what was chosen, and why.")],
    take: Annotated[
        list[str],
        typer.Option(metavar="CRITERION=N", help="uncertain, disagree, rare, diverse or random; repeatable."),
    ],
    against: Annotated[str | None, typer.Option(metavar="ROOT_B", help="The label set to disagree with.")] = None,
    to: Annotated[str | None, typer.Option(help="Export the images for label-studio, cvat, coco, ...")] = None,
    tasks: Annotated[Path | None, typer.Option(metavar="PATH", help="Where to export them: a new file.")] = None,
    threshold: Annotated[float, typer.Option(min=0, max=1, help="Scores near it are uncertain.")] = 0.5,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Of labels that count and are exported.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Another one draws another random sample.")] = 0,
    blind: Annotated[bool, typer.Option("--blind", help="Export the images without their labels.")] = False,
    version: Version = None,
    as_of: AsOf = None,
    endpoint_url: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Choose images worth a person's look, and a random sample that tells how good the labels are."""
    with signals.ending_at_once():
        from segray.analytics.review.sampling import select as choose

    chosen = choose(
        root,
        shares(take),
        out=out,
        to=to,
        tasks=tasks,
        against=against,
        threshold=threshold,
        min_score=min_score,
        seed=seed,
        blind=blind,
        version=version,
        as_of=moment(as_of),
        endpoint_url=endpoint_url,
    )
    if as_json:
        show_json(asdict(chosen))
    else:
        show(f"{out}: {describe_selection(chosen)}")


@app.command()
def review(
    root: Root,
    selection: Annotated[Path, typer.Option(help="What `segray select` wrote.")],
    corrected: Annotated[Path, typer.Option(help="JSON of Label Studio, CVAT for images 1.1, or COCO JSON.")],
    truth: Annotated[Path | None, typer.Option(metavar="OUT.json", help="Write the corrections as COCO truth.")] = None,
    allow_unfinished: Annotated[bool, typer.Option(help="Leave out chosen images that are not done.")] = False,
    endpoint_url: Endpoint = None,
    as_json: Json = False,
) -> None:
    """What people's corrections say: errors by class with intervals, from the random sample."""
    with signals.ending_at_once():
        from segray.analytics.review.review import review as compare

    found = compare(
        root,
        selection,
        corrected,
        truth_out=truth,
        allow_unfinished=allow_unfinished,
        endpoint_url=endpoint_url,
    )
    if as_json:
        show_json(asdict(found))
    else:
        show(describe_review(found))


@app.command()
def report(
    root: Root,
    out: Annotated[str, typer.Option(metavar="FILE", help="Where to write it: a path, or an address.")] = "report.html",
    truth: Annotated[str | None, typer.Option(help="COCO or LVIS JSON, to say also how good the labels are.")] = None,
    images: Annotated[int, typer.Option(min=0, max=60, help="How many images to show.")] = 12,
    version: Version = None,
    as_of: AsOf = None,
    endpoint_url: Endpoint = None,
) -> None:
    """Write one web page on a label set: counts, classes, scores, failures, throughput, and images worth a look."""
    with signals.ending_at_once():
        from segray.analytics.reports.report import report as page
        from segray.storage.store import StorageOptions, Store

    made = page(root, truth=truth, images=images, version=version, as_of=moment(as_of), endpoint_url=endpoint_url)
    Store(StorageOptions(endpoint_url=endpoint_url)).put(out, made.encode())
    show(f"{out}: {len(made) / 1e6:.1f} MB")


def shares(given: Sequence[str]) -> dict[str, int]:
    """Return the number of images by criterion, from texts such as "uncertain=50"."""
    found: dict[str, int] = {}
    for text in given:
        name, _, count = text.partition("=")
        if not count.isdecimal() or name in found:
            raise UserError(
                "this does not say how many images to take", found=text, hint="write uncertain=50, once each"
            )
        found[name] = int(count)
    return found


def moment(text: str | None) -> datetime | None:
    """Return a time of the command line, in UTC unless it names an offset."""
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise UserError("this is no time", found=text, hint="write it like 2026-11-21T12:00") from error
    return found if found.tzinfo else found.replace(tzinfo=UTC)


# ---- what is printed ------------------------------------------------------------------------------


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
            f"{ {'segm': 'mask', 'bbox': 'box'}[kind]:>4} by size: small {_number(scores.ap_small)}, medium "
            f"{_number(scores.ap_medium)}, large {_number(scores.ap_large)}; recall at 1, 10, 100: "
            f"{scores.ar1:.3f}, {scores.ar10:.3f}, {scores.ar100:.3f}"
        )
        if scores.frequency_ap:
            lines.append("     " + ", ".join(f"{word} {value:.3f}" for word, value in scores.frequency_ap.items()))
    first = next(iter(result.scores.values()))
    rows = [(name, ap, first.class_ap50[name], first.class_ar[name]) for name, ap in first.class_ap.items()]
    lines.append(_table(("class", "AP", "AP50", "AR"), sorted(rows, key=lambda row: row[1])[:_SHOWN], len(rows)))
    if result.mistakes is not None:
        counts = {kind: sum(by_class.values()) for kind, by_class in result.mistakes.kinds.items()}
        told = ", ".join(f"{count} {kind}" for kind, count in counts.items())
        lines.append(f"detections of score {result.mistakes.min_score:g} and more: {told}")
        taken = [(count, truth, name) for truth, row in result.mistakes.confusion.items() for name, count in row.items()
                 if "background" not in (truth, name) and truth != name]  # fmt: skip
        for count, truth, name in sorted(taken, reverse=True)[:5]:
            lines.append(f"  {count} times {truth} was taken for {name}")
    if first.calibration is not None:
        lines.append(f"a score is off from how often it is right by {first.calibration.error:.3f} on average")
    for model, (box, mask) in result.cards.items():
        lines.append(f"card of {model}: box AP {box:.2f} %, mask AP {mask:.2f} %")
    states = f"{result.labelled} of {result.images} images are labelled, {result.failed} failed"
    return "\n".join([*lines, states, *(f"note: {note}" for note in result.notes)])


def describe_export(done: ExportResult) -> str:
    """Return what was written, and how much polygons lost."""
    line = f"{done.out}: {done.instances} instances in {done.images} images as {done.format}, masks as {done.masks}"
    if done.mean_iou is not None:
        line += f"\npolygons drawn again: mean IoU {done.mean_iou:.4f}, least {done.least_iou:.4f}"
    if done.lacks_images is not None:
        line += f"\nthe images are not copied; {done.format} looks for them in {done.lacks_images} (--copy-images)"
    return line


def describe_difference(found: LabelSetDifference) -> str:
    """Return counts, classes, the images that changed most, drift and gates."""
    a, b = found.instances
    lines = [f"{found.images} images in both, with {a} and {b} instances"]
    others = {"only in A": found.only_a, "only in B": found.only_b, "of another size": found.resized,
              "newly failed": found.newly_failed, "failed no more": found.newly_read}  # fmt: skip
    lines += [f"images {name}: {count}" for name, count in others.items() if count]
    share = {kind: f"{count} {kind} ({100 * count / a:.1f} %)" if a else f"{count} {kind}"
             for kind, count in found.kinds.items()}  # fmt: skip
    lines.append(", ".join(share.values()))
    counts = {name: [kinds[kind] for kind in found.kinds] for name, kinds in found.by_class.items()}
    changed = sorted((name for name in counts if sum(counts[name][1:])), key=lambda name: -sum(counts[name][1:]))
    if changed:
        rows = [(name, *counts[name]) for name in changed[:_SHOWN]]
        lines.append(_table(("class", *found.kinds), rows, len(changed)))
    lines += [f"  {count} times {old} became {new}" for old, new, count in found.renamed[:5]]
    for each in found.most_changed[:5]:
        told = ", ".join(f"{count} {kind}" for kind, count in each.kinds.items())
        lines.append(f"  {each.key}: {told}")
    for name, drift in (("class mix", found.class_drift), ("scores", found.score_drift)):
        lines.append(f"drift of {name}: {drift.effect:.4f} (statistic {drift.statistic:.3f}, p {drift.p:.3g})")
    lines += [f"not drawn: {key}: {why}" for key, why in found.undrawn.items()]
    return "\n".join([*lines, *(f"gate failed: {gate}" for gate in found.failed_gates)])


def describe_selection(found: Selection) -> str:
    """Return how many images each criterion chose, and from how many."""
    told = ", ".join(
        f"{found.taken[name]} {name}" + (f" (of {count} asked for)" if found.taken[name] < count else "")
        for name, count in found.take.items()
    )
    return f"{len(found.chosen)} of {found.images} images with {found.instances} instances: {told}"


def describe_review(found: Review) -> str:
    """Return precision, recall and kinds of errors by class, with their intervals."""
    lines = [f"{found.reviewed} images reviewed, {found.sampled} of them a random sample of {found.population}"]
    if found.total is not None:
        rows = [("all classes", found.total), *found.classes.items()]
        lines.append(f"{'':>20}  {'precision (95 %)':<22}{'recall (95 %)':<22}" + "  ".join(found.total.kinds))
        lines += [f"{name:>20}  {_errors(errors)}" for name, errors in rows[: _SHOWN + 1]]
        if len(rows) > _SHOWN + 1:
            lines.append(f"{'':>20}  ... and {len(rows) - _SHOWN - 1} more")
    if found.truth is not None:
        lines.append(f"truth: {found.truth}")
    return "\n".join([*lines, *(f"note: {note}" for note in found.notes)])


def _errors(errors: Errors) -> str:
    told = [
        "none" if each.value is None else f"{each.value:.3f} ({each.low:.3f}..{each.high:.3f})"
        for each in (errors.precision, errors.recall)
    ]
    kinds = "  ".join(f"{each.hits:>{len(kind)}}" for kind, each in errors.kinds.items())
    return f"{told[0]:<22}{told[1]:<22}{kinds}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]], total: int) -> str:
    lines = [f"{heads[0]:>20}" + "".join(f"{head:>9}" for head in heads[1:])]
    for name, *values in rows:
        told = "".join(f"{value:>9.3f}" if isinstance(value, float) else f"{value:>9}" for value in values)
        lines.append(f"{name:>20}{told}")
    if total > len(rows):
        lines.append(f"{'':>20} ... and {total - len(rows)} more")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
