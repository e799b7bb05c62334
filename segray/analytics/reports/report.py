"""A report of a label set on one web page: the run, the results, the failures and example images.

This module knows the sections of the page and which images to show. `statistics` counts. The template formats.
The page is one file without scripts and external addresses, and has at most a few megabytes.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import pyarrow.dataset as ds

import segray
from segray import rle
from segray._system.memory import MemoryBudget
from segray.analytics.query import key_ranges, score_thresholds
from segray.analytics.query.atomic_output import require_file_path, writing
from segray.analytics.reports import statistics
from segray.analytics.reports.contact_sheet import LABEL, LabelledPicture, colours_of
from segray.analytics.reports.html import first_line, render
from segray.analytics.reports.statistics import LabelSetStats
from segray.errors import AccessError, ImageError, InfrastructureError, UserError
from segray.imaging.drawing import Colour, Label, decode_for_drawing, draw, fitted_wh, jpeg
from segray.instances import ImageRef
from segray.label_set import snapshot
from segray.label_set.run_records import latest_run, source_store
from segray.label_set.snapshot import Snapshot
from segray.limits import CONFIDENT_SCORE, ImageLimits
from segray.sources.reader import Files
from segray.storage.options import StorageKeywords
from segray.storage.store import Store
from segray.storage.uris import PathOrUrl, as_uri, local_path, scheme
from segray.storage.uris import redact as shown_uri

if TYPE_CHECKING:
    from segray.analytics.evaluation.evaluate import Evaluation

IMAGES, MOST_IMAGES = 12, 60
_PICTURE_PX, _JPEG_QUALITY = 720, 80
_PICTURES_BYTES = 5_500_000  # Base64 bytes of all pictures of a page.
# Lowest score of drawn labels. An image without such a label shows this many of its best labels.
_DRAWN_SCORE, _MOST_UNSURE_LABELS = 0.3, 20
_FILES_BYTES = 64 << 20
_SECTIONS = {
    "evaluation": "Accuracy",
    "gallery": "Example images",
    "classes": "Classes and scores",
    "images": "Images",
    "failures": "Failures",
    "throughput": "Throughput",
    "run": "Model and run",
}
_STAGES = ("read", "decode", "wait", "infer", "postprocess", "write")


def report(
    root: PathOrUrl,
    *,
    truth: PathOrUrl | None = None,
    images: int = IMAGES,
    thresholds: score_thresholds.Thresholds = None,
    version: int | None = None,
    as_of: datetime | None = None,
    **storage_options: Unpack[StorageKeywords],
) -> str:
    """Return the page as HTML. The page names images that cannot be read.

    Args:
        root: Folder or URL of the label set.
        truth: COCO or LVIS JSON. With a truth, the page also shows the accuracy of the labels.
        images: Number of images to show.
        thresholds: Smallest score by class, or a file with such scores. The page leaves out other instances.
        version: Batch of an earlier state.
        as_of: Time of an earlier state.
        **storage_options: Settings of the storage, as for segray.scan.

    Raises:
        UserError: The number of images is out of range, or the truth does not fit, as in evaluate.
        SourceError: The truth cannot be used, as in evaluate.
        LabelSetError: The label set cannot be read, as in snapshot.snapshot, or has no commit.
    """
    if not 0 <= images <= MOST_IMAGES:
        hint = f"Give --images a number from 0 to {MOST_IMAGES}."
        raise UserError(f"a report shows at most {MOST_IMAGES} images", found=str(images), hint=hint)
    state = key_ranges.committed(snapshot.snapshot(root, version=version, as_of=as_of, **storage_options))
    store = snapshot.store(storage_options)
    if thresholds is not None:
        thresholds = score_thresholds.read(thresholds, store)
        state = score_thresholds.applied(state, thresholds, store)
    stats = statistics.compute_stats(state)
    evaluation = None if truth is None else _evaluate(state, truth, thresholds, storage_options)
    run = latest_run(store, state.root)
    record = {} if run is None else run.record(store)
    choices = choose(stats, images)
    is_left_out = {"evaluation": evaluation is None, "gallery": not choices, "failures": not stats.failures}
    return render(
        "report.html.jinja",
        sections={name: title for name, title in _SECTIONS.items() if not is_left_out.get(name)},
        root=shown_uri(state.root),
        batch=state.batch,
        model=state.model,
        stats=stats,
        confident_score=CONFIDENT_SCORE,
        thresholds=thresholds,
        classes=sorted(stats.classes.values(), key=lambda of_class: (-of_class.instances, of_class.name)),
        labels=_LABELS,
        gallery=_gallery(state, choices, source_store(store, state.root)) if choices else None,
        version=segray.__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **_evaluation_values(evaluation),
        **_run_values(record),
    )


def write(
    root: PathOrUrl,
    out: PathOrUrl,
    *,
    truth: PathOrUrl | None = None,
    images: int = IMAGES,
    thresholds: score_thresholds.Thresholds = None,
    version: int | None = None,
    as_of: datetime | None = None,
    **storage_options: Unpack[StorageKeywords],
) -> int:
    """Write the page to a file or URL, and return its size in bytes. The other arguments are those of `report`."""
    uri = as_uri(out)
    path = None if scheme(uri) else Path(local_path(uri))
    if path is not None:
        require_file_path(path)
    page = report(
        root, truth=truth, images=images, thresholds=thresholds, version=version, as_of=as_of, **storage_options
    ).encode()
    with nullcontext() if path is None else writing(path):
        snapshot.store(storage_options).put(uri, page)
    return len(page)


def of_run(root: str, **storage_options: Unpack[StorageKeywords]) -> str:
    """Write the page into the folder of the latest run, and return the URI of the page.

    storage_options: settings of the storage, as for segray.scan. Storage is retried once at most, because a run waits
    for the page. Raise UserError without a recorded run, and errors as `report`.
    """
    storage_options["retries"] = min(1, storage_options.get("retries", 1))
    store = snapshot.store(storage_options)
    run = latest_run(store, root)
    if run is None:
        raise UserError("no run is recorded here", where=root, hint="Run `segray label` first.")
    store.put(run.page, report(root, **storage_options).encode())
    return run.page


def _evaluate(
    state: Snapshot, truth: PathOrUrl, thresholds: Mapping[str, float] | None, storage_options: Mapping[str, Any]
) -> Evaluation:
    from segray.analytics.evaluation.evaluate import evaluate  # Most pages need no evaluation.

    return evaluate(state.root, truth, thresholds=thresholds, version=state.batch, **storage_options)


# ---- which images to show -------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageToShow:
    """An image to show. kind and reason form the caption: "kind: reason."."""

    key: str
    kind: str
    reason: str


def choose(stats: LabelSetStats, most: int) -> list[ImageToShow]:
    """Return up to `most` images to show: one of each kind in turn, none twice. The result is ordered by kind."""
    candidates = [iter(images) for images in _candidates_by_kind(stats)]
    selected: list[list[ImageToShow]] = [[] for _ in candidates]
    keys: set[str] = set()
    is_exhausted = False
    while len(keys) < most and not is_exhausted:
        is_exhausted = True
        for selected_of_kind, candidates_of_kind in zip(selected, candidates, strict=True):
            image = next((image for image in candidates_of_kind if image.key not in keys), None)
            if image is not None and len(keys) < most:
                selected_of_kind.append(image)
                keys.add(image.key)
                is_exhausted = False
    return [image for selected_of_kind in selected for image in selected_of_kind]


def _candidates_by_kind(stats: LabelSetStats) -> list[list[ImageToShow]]:
    """Return the images to show of each kind, the best example of a kind first."""
    usual = stats.median_instances
    typical = [
        image
        for image in sorted(stats.sample, key=lambda image: abs(image.instances - usual))
        if abs(image.instances - usual) <= max(1, usual // 10)
    ]
    scored = [image for image in stats.sample if image.score is not None]
    unsure = sorted(scored, key=lambda image: image.score or 0)[: max(1, len(scored) // 4)]
    classes = sorted(stats.classes.values(), key=lambda of_class: (of_class.instances, of_class.name))
    rare = classes[: max(1, len(classes) // 2)] if len(classes) > 1 else []
    return [
        [ImageToShow(image.key, "Typical", f"{_count(image.instances)}, as many as usual") for image in typical],
        [ImageToShow(image.key, "Lowest confidence", f"{_count(image.instances)}, score {image.score:.2f} on average")
         for image in unsure],
        [ImageToShow(image.key, "Most crowded", _count(image.instances))
         for image in stats.crowded if image.instances > usual],
        [ImageToShow(of_class.surest, "Rare class", f"the best score of {of_class.instances:,} {of_class.name}")
         for of_class in rare],
        [ImageToShow(image.key, "Largest image", f"{image.pixels / 1e6:.1f} megapixels, {_count(image.instances)}")
         for image in stats.largest],
        [ImageToShow(image.key, "No instances", "no instance reaches the score threshold") for image in stats.empty],
    ]  # fmt: skip


def _count(instances: int) -> str:
    return "1 instance" if instances == 1 else f"{instances:,} instances"


# ---- values of the template -----------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """The time of a stage of labelling, in seconds summed over the threads of all workers.

    cpu_seconds: None if not recorded.
    """

    name: str
    seconds: float
    cpu_seconds: float | None


@dataclass(frozen=True)
class WorkerSummary:
    """The workers of a run. precision, device, device_name and openvino list all reported values; "" without one."""

    count: int
    hosts: int
    precision: str
    device: str
    device_name: str
    openvino: str


def _bin_labels(ends: Sequence[float]) -> list[str]:
    return [*(f"{end:g}" for end in ends), "more"]


_LABELS = {
    "scores": [f"{i / statistics.SCORE_BINS:.2f}" for i in range(statistics.SCORE_BINS)],
    "sides": _bin_labels(statistics.SIDES_PX),
    "per_image": _bin_labels(statistics.PER_IMAGE),
    "megapixels": _bin_labels(statistics.MEGAPIXELS),
}


def _evaluation_values(evaluation: Evaluation | None) -> dict[str, Any]:
    """Return the template's values for an evaluation."""
    if evaluation is None:
        return {}
    kinds = {} if evaluation.mistakes is None else evaluation.mistakes.kinds
    scores = next(iter(evaluation.scores.values()))
    return {
        "evaluation": evaluation,
        "mistakes": {name: sum(counts.values()) for name, counts in kinds.items()},
        "best_first": sorted(scores.class_ap.items(), key=lambda item: (-item[1], item[0])),
    }


def _run_values(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the template's values for the latest run. record: empty without a run."""
    seconds, cpu = record.get("seconds") or {}, record.get("cpu_seconds") or {}
    labelled = sum(int((record.get("labelled") or {}).get(name, 0)) for name in ("ok", "empty", "failed"))
    stages = [*(stage for stage in _STAGES if stage in seconds), *sorted(seconds.keys() - set(_STAGES))]
    config = record.get("config")
    return {
        "record": {**record, "source": shown_uri(str(record["source"]))} if "source" in record else record,
        "workers": _workers(record.get("workers") or []),
        "labelled": labelled,
        "stages": [Stage(stage, seconds[stage], cpu.get(stage)) for stage in stages] if labelled else [],
        "config": json.dumps(config, indent=1, sort_keys=True) if config else None,
    }


def _workers(recorded: Sequence[Mapping[str, Any]]) -> WorkerSummary:
    def values(name: str) -> str:
        return ", ".join(sorted({str(worker[name]) for worker in recorded if name in worker}))

    hosts = len({worker.get("host") for worker in recorded})
    names = ("precision", "device", "device_name", "openvino")
    return WorkerSummary(len(recorded), hosts, *map(values, names))


# ---- the gallery ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A picture on the page.

    jpeg: JPEG file in base64. size_wh: width and height of the picture, in pixels.
    class_counts: number of drawn instances of each class. covered: share of the image below the masks, 0..1.
    """

    choice: ImageToShow
    jpeg: str
    size_wh: tuple[int, int]
    class_counts: str
    covered: float


@dataclass(frozen=True)
class Gallery:
    """The pictures on the page.

    unreadable: key and error of each image that cannot be shown. left_out: number of images that exceed the page size.
    min_score: lowest score of the drawn labels.
    """

    figures: Sequence[Figure]
    unreadable: Sequence[str]
    left_out: int
    min_score: float = _DRAWN_SCORE


def _gallery(state: Snapshot, choices: Sequence[ImageToShow], store: Store) -> Gallery:
    pictures = _read_pictures(state, [choice.key for choice in choices])
    colours = colours_of(picture for picture, _ in pictures.values())
    files = Files(store, ImageLimits(max_pixels=statistics.MOST_PIXELS), MemoryBudget(_FILES_BYTES))
    figures, unreadable = list[Figure](), list[str]()
    free_bytes, left_out = _PICTURES_BYTES, 0
    storage_error = None
    try:
        for choice in choices:
            picture, version = pictures[choice.key]
            try:
                if storage_error is not None:  # A further attempt for each image would take long.
                    raise storage_error
                encoded, size_wh = _draw_jpeg(picture, version, colours, files)
            except (ImageError, InfrastructureError, AccessError, FileNotFoundError) as exc:
                storage_error = exc if isinstance(exc, InfrastructureError) else storage_error
                unreadable.append(f"{choice.key}: {first_line(str(exc))}")
                continue
            if len(encoded) > free_bytes:
                left_out += 1
                continue
            free_bytes -= len(encoded)
            figures.append(_figure(choice, picture, encoded, size_wh))
    finally:
        files.close()
    return Gallery(figures, unreadable, left_out)


def _read_pictures(state: Snapshot, keys: Sequence[str]) -> dict[str, tuple[LabelledPicture, str]]:
    """Return the picture and the labelled version of each image, by key."""
    key_filter = ds.field("image_key") == keys[0]
    for key in keys[1:]:
        key_filter |= ds.field("image_key") == key  # With isin, readers cannot skip files.
    labels: dict[str, list[Label]] = {key: [] for key in keys}
    for row in state.instances.to_table(columns=["image_key", *LABEL], filter=key_filter).to_pylist():
        labels[row["image_key"]].append(Label.from_row(row))
    columns = ["image_key", "uri", "version", "height", "width"]
    images = {row["image_key"]: row for row in state.images.to_table(columns=columns, filter=key_filter).to_pylist()}
    return {
        key: (
            LabelledPicture(key, row["uri"], (row["height"], row["width"]), tuple(_labels_to_draw(labels[key]))),
            row["version"],
        )
        for key, row in images.items()
    }


def _labels_to_draw(labels: Sequence[Label]) -> list[Label]:
    """Return the labels with a score of _DRAWN_SCORE or more; without such a label, those with the best scores."""
    sure = [label for label in labels if label.score >= _DRAWN_SCORE]
    return sure or sorted(labels, key=lambda label: -label.score)[:_MOST_UNSURE_LABELS]


def _draw_jpeg(
    picture: LabelledPicture, version: str, colours: Mapping[int, Colour], files: Files
) -> tuple[str, tuple[int, int]]:
    """Return the picture with its masks as a JPEG in base64, and its width and height in pixels."""
    height, width = picture.size_hw
    size_wh = fitted_wh(picture.size_hw, _PICTURE_PX)
    data = files.read(ImageRef(picture.key, picture.uri, version))
    decoded = decode_for_drawing(data, size_wh, ImageLimits(max_pixels=statistics.MOST_PIXELS))
    if decoded.size_hw != picture.size_hw:
        size_now = f"{decoded.size_hw[1]}x{decoded.size_hw[0]}"
        raise ImageError(f"the image is {size_now} now, and was labelled as {width}x{height}")
    overlay = draw(decoded.image, picture.labels, colours, size_wh=size_wh, size_hw=picture.size_hw)
    return base64.b64encode(jpeg(overlay, _JPEG_QUALITY)).decode(), size_wh


def _figure(choice: ImageToShow, picture: LabelledPicture, jpeg: str, size_wh: tuple[int, int]) -> Figure:
    names = Counter(label.class_name for label in picture.labels)
    class_counts = ", ".join(f"{count} {name}" for name, count in names.most_common(8)) or "no mask"
    if len(names) > 8:
        class_counts += f" and {len(names) - 8} more classes"
    height, width = picture.size_hw
    covered = sum(rle.area(label.rle) for label in picture.labels) / max(1, height * width)
    return Figure(choice, jpeg, size_wh, class_counts, min(covered, 1))
