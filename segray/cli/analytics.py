"""The commands `segray export`, `report`, `diff`, `select` and `review`, which read a label set.

Knows arguments and how results are printed. The package segray.analytics does the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from segray._system import signals
from segray._system.streams import show
from segray.cli.options import Endpoint, Json, Root, ThresholdsFile, show_json
from segray.cli.texts import number, table, times
from segray.errors import UserError

if TYPE_CHECKING:
    from segray.analytics.export.export import ExportResult
    from segray.analytics.reports.diff import LabelSetDifference
    from segray.analytics.review.review import Errors, Review
    from segray.analytics.review.sampling import Selection

app = typer.Typer(rich_markup_mode=None)

Version = Annotated[int | None, typer.Option(help="Batch whose state is read. By default the latest.")]
AsOf = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="Time whose state is read, such as 2026-11-21T12:00. The default time zone is UTC."
    ),
]

_GATE = 4
_SHOWN = 15


@app.command()
def export(
    root: Root,
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="File or folder to write. It must be new; an empty folder is allowed.")
    ],
    to: Annotated[
        str,
        typer.Option(
            help="Format: coco, coco-results, yolo, roboflow, voc, csv, label-studio, cvat, fiftyone, labelme, "
            "imagefolder, png-instance or png-semantic."
        ),
    ],
    class_name: Annotated[
        list[str], typer.Option("--class", help="Name of a class to export. By default all classes. Repeatable.")
    ] = [],  # noqa: B006
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Smallest score of exported instances.")] = 0.0,
    min_area: Annotated[int, typer.Option(min=0, help="Smallest area of exported masks, in pixels.")] = 0,
    max_area: Annotated[int | None, typer.Option(min=0, help="Largest area of exported masks, in pixels.")] = None,
    status: Annotated[
        list[str], typer.Option(metavar="ok|empty", help="Status of exported images. By default both. Repeatable.")
    ] = [],  # noqa: B006
    where: Annotated[
        str | None, typer.Option(help='SQL condition on an instance, such as "rle_area(rle) > 0.1*width*height".')
    ] = None,
    with_instances: Annotated[bool, typer.Option(help="Leave out images without an exported instance.")] = False,
    sample: Annotated[
        int | None,
        typer.Option(min=1, help="Number of images in an even sample. The same label set gives the same images."),
    ] = None,
    polygons: Annotated[bool, typer.Option(help="Write polygons instead of run lengths. For coco only.")] = False,
    tolerance_px: Annotated[
        float, typer.Option(min=0, help="Largest distance of polygons from the pixels' edges, in pixels.")
    ] = 0.0,
    copy_images: Annotated[
        bool | None,
        typer.Option(help="Copy the images too. By default only for imagefolder. Not for formats of one file."),
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option(help="Leave out images that are missing, or changed since they were labelled.")
    ] = False,
    used_classes: Annotated[
        bool, typer.Option("--used-classes", help="List the classes of exported instances only, not all of the model.")
    ] = False,
    rename: Annotated[
        list[str], typer.Option(metavar="OLD=NEW", help="New name of a class in the export. Repeatable.")
    ] = [],  # noqa: B006
    thresholds: ThresholdsFile = None,
    split: Annotated[
        str | None,
        typer.Option(
            metavar="NAME=SHARE,...",
            help="Splits, such as train=0.8,val=0.1,test=0.1. An image is in the same split in each export.",
        ),
    ] = None,
    split_by: Annotated[
        str, typer.Option(metavar="key|folder", help="Keep the images of a folder in one split (folder), or not (key).")
    ] = "key",
    ids_from: Annotated[str | None, typer.Option(help="COCO JSON whose image ids are used.")] = None,
    version: Version = None,
    as_of: AsOf = None,
    endpoint_url: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Write labels in the format of another tool.

    An export is complete, or nothing is written.
    """
    with signals.ending_at_once():
        from segray.analytics.export.export import ExportSelection
        from segray.analytics.export.export import export as write

    choice = ExportSelection(
        class_name, min_score, min_area, max_area, status or ("ok", "empty"), where, with_instances, sample
    )
    exported = write(
        root,
        to,
        out,
        choice,
        polygons=polygons,
        tolerance_px=tolerance_px,
        copy_images=copy_images,
        skip_missing=skip_missing,
        used_classes=used_classes,
        rename=_new_names(rename),
        thresholds=thresholds,
        split=split,
        split_by=split_by,
        ids_from=ids_from,
        version=version,
        as_of=moment(as_of),
        endpoint_url=endpoint_url,
    )
    if as_json:
        show_json(asdict(exported))
    else:
        show(describe_export(exported))


@app.command()
def diff(
    root_a: Annotated[str, typer.Argument(metavar="ROOT_A", help="Folder or URL of label set A.")],
    root_b: Annotated[str, typer.Argument(metavar="ROOT_B", help="Folder or URL of label set B, of the same images.")],
    fail_if: Annotated[
        list[str],
        typer.Option(
            metavar="GATE", help="Condition for exit code 4: lost>2%, changed[person]>50, score_drift>0.1. Repeatable."
        ),
    ] = [],  # noqa: B006
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Smallest score of compared instances.")] = 0.0,
    most: Annotated[int, typer.Option(min=1, help="Number of most changed images to list.")] = 20,
    draw: Annotated[
        Path | None, typer.Option(metavar="PNG", help="File for a picture of the most changed images, A beside B.")
    ] = None,
    class_map: Annotated[
        list[str],
        typer.Option(
            metavar="FILE|A=B",
            help="Class of A and class of B that are one class, by name or id. Repeatable. By default classes are "
            "compared by name.",
        ),
    ] = [],  # noqa: B006
    shared_classes: Annotated[
        bool, typer.Option("--shared-classes", help="Leave out the classes that only one of the label sets has.")
    ] = False,
    version_a: Version = None,
    as_of_a: AsOf = None,
    version_b: Version = None,
    as_of_b: AsOf = None,
    endpoint_url: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Compare label set B with label set A, of one model or of two.

    The command counts instances that are kept, moved, renamed, gained and lost. Exit code 4 means that a gate failed.
    """
    with signals.ending_at_once():
        from segray.analytics.evaluation.class_maps import from_options
        from segray.analytics.reports.diff import diff as compare

    difference = compare(
        root_a,
        root_b,
        fail_if=fail_if,
        min_score=min_score,
        most=most,
        draw=draw,
        class_map=from_options(class_map),
        shared_classes=shared_classes,
        version_a=version_a,
        as_of_a=moment(as_of_a),
        version_b=version_b,
        as_of_b=moment(as_of_b),
        endpoint_url=endpoint_url,
    )
    if as_json:
        show_json(asdict(difference))
    else:
        show(describe_difference(difference))
    raise typer.Exit(_GATE if difference.failed_gates else 0)


@app.command()
def select(
    root: Root,
    out: Annotated[Path, typer.Argument(metavar="OUT.json", help="New file for the selection and its reasons.")],
    take: Annotated[
        list[str],
        typer.Option(
            metavar="CRITERION=N",
            help="Criterion and number of images: uncertain, disagree, rare, diverse or random. Repeatable.",
        ),
    ],
    against: Annotated[
        str | None, typer.Option(metavar="ROOT_B", help="Label set that `disagree` compares with.")
    ] = None,
    to: Annotated[
        str | None, typer.Option(help="Export format for the selected images: label-studio, cvat, coco, ...")
    ] = None,
    tasks: Annotated[
        Path | None, typer.Option(metavar="PATH", help="New file or folder for the exported images.")
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Score threshold. Scores near the threshold are uncertain.")
    ] = 0.5,
    min_score: Annotated[
        float, typer.Option(min=0, max=1, help="Smallest score of instances that count and are exported.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of the random sample.")] = 0,
    blind: Annotated[bool, typer.Option("--blind", help="Export the images without their labels.")] = False,
    version: Version = None,
    as_of: AsOf = None,
    endpoint_url: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Choose images for review by people.

    The random sample among them measures how good the labels are.
    """
    with signals.ending_at_once():
        from segray.analytics.review.sampling import select as choose

    picked = choose(
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
        show_json(asdict(picked))
    else:
        show(f"{out}: {describe_selection(picked)}")


@app.command()
def review(
    root: Root,
    selection: Annotated[Path, typer.Option(help="Selection file that `segray select` wrote.")],
    corrected: Annotated[
        Path, typer.Option(help="Corrections: JSON of Label Studio, CVAT for images 1.1, or COCO JSON.")
    ],
    truth: Annotated[
        Path | None, typer.Option(metavar="OUT.json", help="New file for the corrections as COCO truth.")
    ] = None,
    allow_unfinished: Annotated[
        bool, typer.Option(help="Leave out selected images that are not reviewed yet.")
    ] = False,
    endpoint_url: Endpoint = None,
    as_json: Json = False,
) -> None:
    """Compare labels with people's corrections.

    The random sample gives the errors by class, with intervals.
    """
    with signals.ending_at_once():
        from segray.analytics.review.review import review as compare

    result = compare(
        root,
        selection,
        corrected,
        truth_out=truth,
        allow_unfinished=allow_unfinished,
        endpoint_url=endpoint_url,
    )
    if as_json:
        show_json(asdict(result))
    else:
        show(describe_review(result))


@app.command()
def report(
    root: Root,
    out: Annotated[str, typer.Option(metavar="FILE", help="Path or URL of the page.")] = "report.html",
    truth: Annotated[
        str | None, typer.Option(help="Truth as COCO or LVIS JSON. The page then shows average precision too.")
    ] = None,
    images: Annotated[int, typer.Option(min=0, max=60, help="Number of images on the page.")] = 12,
    thresholds: ThresholdsFile = None,
    version: Version = None,
    as_of: AsOf = None,
    endpoint_url: Endpoint = None,
) -> None:
    """Write one web page about a label set.

    The page shows counts, classes, scores, failures, throughput and images to look at.
    """
    with signals.ending_at_once():
        from segray.analytics.reports.report import write

    size_bytes = write(
        root,
        out,
        truth=truth,
        images=images,
        thresholds=thresholds,
        version=version,
        as_of=moment(as_of),
        endpoint_url=endpoint_url,
    )
    show(f"{out}: {size_bytes / 1e6:.1f} MB")


def shares(texts: Sequence[str]) -> dict[str, int]:
    """Return the number of images by criterion, from texts such as "uncertain=50"."""
    counts: dict[str, int] = {}
    for text in texts:
        criterion, _, count = text.partition("=")
        if not count.isdecimal() or criterion in counts:
            raise UserError(
                "--take takes CRITERION=N, once for each criterion", found=text, hint="for example --take uncertain=50"
            )
        counts[criterion] = int(count)
    return counts


def _new_names(texts: Sequence[str]) -> dict[str, str]:
    """Return the new name by class, from texts such as "tv=screen"."""
    for text in texts:
        if "=" not in text:
            raise UserError("--rename takes OLD=NEW", found=text, hint="for example --rename tv=screen")
    return {old: new for old, _, new in (text.rpartition("=") for text in texts)}


def moment(text: str | None) -> datetime | None:
    """Return a time of the command line, in UTC unless it names an offset."""
    if text is None:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise UserError("the text is not a time", found=text, hint="write a time such as 2026-11-21T12:00") from error
    return time if time.tzinfo else time.replace(tzinfo=UTC)


# ---- printed texts -------------------------------------------------------------------------------


def describe_export(exported: ExportResult) -> str:
    """Return what was written, and how much polygons lost."""
    counts = f"{exported.instances} instances in {exported.images} images"
    line = f"{exported.out}: {counts} as {exported.format}, masks as {exported.masks}"
    if exported.mean_iou is not None:
        line += f"\npolygons drawn again: mean IoU {exported.mean_iou:.4f}, least {exported.least_iou:.4f}"
    if exported.lacks_images is not None:
        line += (
            f"\nthe images are not copied; {exported.format} looks for them in {exported.lacks_images} (--copy-images)"
        )
    if exported.splits:
        line += "\nimages by split: " + ", ".join(f"{count} {name}" for name, count in exported.splits.items())
    if exported.companion is not None:
        line += f"\nlabelling configuration: {exported.companion}"
    left_out = [f"{key} is {text}" for key, text in exported.left_out.items()]
    renamed = [f"{key} is {other.name}, beside {other.beside}" for key, other in exported.renamed.items()]
    for title, texts in (("left out", left_out), ("renamed, since another image has the name", renamed)):
        if texts:
            line += f"\n{title}: {len(texts)}" + "".join(f"\n  {text}" for text in texts[:_SHOWN])
            line += "\n  ..." if len(texts) > _SHOWN else ""
    return line


def describe_difference(difference: LabelSetDifference) -> str:
    """Return counts, classes, the images that changed most, drift and gates."""
    a, b = difference.instances
    lines = [f"{difference.images} images in both, with {a} and {b} instances"]
    others = {"only in A": difference.only_a, "only in B": difference.only_b, "of another size": difference.resized,
              "newly failed": difference.newly_failed, "failed no more": difference.newly_read}  # fmt: skip
    lines += [f"images {name}: {count}" for name, count in others.items() if count]
    share = {kind: f"{count} {kind} ({100 * count / a:.1f} %)" if a else f"{count} {kind}"
             for kind, count in difference.kinds.items()}  # fmt: skip
    lines.append(", ".join(share.values()))
    agreement = difference.agreement
    lines.append(
        f"both see {agreement.both} alike (same class, mask IoU 0.5 and more), {agreement.only_a} in A alone, "
        f"{agreement.only_b} in B alone; agreement {number(agreement.share)}, mean IoU {number(agreement.iou)}"
    )
    counts = {name: [kinds[kind] for kind in difference.kinds] for name, kinds in difference.by_class.items()}
    changed = sorted((name for name in counts if sum(counts[name][1:])), key=lambda name: -sum(counts[name][1:]))
    if changed:
        parts = difference.agreement_by_class
        rows = [(name, *counts[name], *map(number, (parts[name].share, parts[name].iou))) for name in changed[:_SHOWN]]
        lines.append(table(("class", *difference.kinds, "agree", "IoU"), rows, len(changed)))
    for side, counted in zip("AB", difference.other_classes, strict=True):
        if counted:
            rest = ", left out" if difference.left_out else ""
            some = ", ".join(f"{name} ({count})" for name, count in list(counted.items())[:_SHOWN])
            lines.append(f"classes of {side} alone, with {sum(counted.values())} instances{rest}: {some}")
    lines += [f"  {times(count)} {old} became {new}" for old, new, count in difference.renamed[:5]]
    for change in difference.most_changed[:5]:
        lines.append(f"  {change.key}: " + ", ".join(f"{count} {kind}" for kind, count in change.kinds.items()))
    for name, drift in (("class mix", difference.class_drift), ("scores", difference.score_drift)):
        lines.append(f"drift of {name}: {drift.effect:.4f} (statistic {drift.statistic:.3f}, p {drift.p:.3g})")
    lines += [f"not drawn: {key}: {reason}" for key, reason in difference.undrawn.items()]
    lines += [f"note: {note}" for note in difference.notes]
    return "\n".join([*lines, *(f"gate failed: {gate}" for gate in difference.failed_gates)])


def describe_selection(selection: Selection) -> str:
    """Return how many images each criterion chose, and from how many."""
    counts_text = ", ".join(
        f"{selection.taken[name]} {name}" + (f" (of {count} asked for)" if selection.taken[name] < count else "")
        for name, count in selection.take.items()
    )
    return f"{len(selection.chosen)} of {selection.images} images with {selection.instances} instances: {counts_text}"


def describe_review(review: Review) -> str:
    """Return precision, recall and kinds of errors by class, with their intervals."""
    lines = [f"{review.reviewed} images reviewed, {review.sampled} of them a random sample of {review.population}"]
    if review.total is not None:
        rows = [("all classes", review.total), *review.classes.items()]
        lines.append(f"{'':>20}  {'precision (95 %)':<22}{'recall (95 %)':<22}" + "  ".join(review.total.kinds))
        lines += [f"{name:>20}  {_errors_line(errors)}" for name, errors in rows[: _SHOWN + 1]]
        if len(rows) > _SHOWN + 1:
            lines.append(f"{'':>20}  ... and {len(rows) - _SHOWN - 1} more")
    if review.truth is not None:
        lines.append(f"truth: {review.truth}")
    return "\n".join([*lines, *(f"note: {note}" for note in review.notes)])


def _errors_line(errors: Errors) -> str:
    precision, recall = [
        "none" if rate.value is None else f"{rate.value:.3f} ({rate.low:.3f}..{rate.high:.3f})"
        for rate in (errors.precision, errors.recall)
    ]
    kinds = "  ".join(f"{rate.hits:>{len(kind)}}" for kind, rate in errors.kinds.items())
    return f"{precision:<22}{recall:<22}{kinds}"
