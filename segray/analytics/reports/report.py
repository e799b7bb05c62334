"""A label set on one web page: the run, the results, the failures and chosen pictures.

This module knows the sections of the page and which images are shown. `statistics` counts, and the template writes.
The page is one file without script or external address. It has a few megabytes at most, whatever the label set's size.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow.dataset as ds

import segray
from segray import rle
from segray._system.memory import MemoryBudget
from segray.analytics.query import key_ranges
from segray.analytics.reports import statistics
from segray.analytics.reports.contact_sheet import LABEL, Colour, Label, LabelledPicture, colours_of, draw
from segray.analytics.reports.html import first_line, render
from segray.analytics.reports.statistics import LabelSetStats
from segray.errors import AccessError, ImageError, InfrastructureError, UserError
from segray.imaging.decode import decode
from segray.imaging.opencv import cv2
from segray.instances import ImageRef
from segray.label_set import snapshot
from segray.label_set.run_records import Run
from segray.label_set.snapshot import Snapshot
from segray.limits import ImageLimits
from segray.sources.reader import Files
from segray.storage.store import Store
from segray.storage.uris import join
from segray.storage.uris import redact as shown_uri

if TYPE_CHECKING:
    from segray.analytics.evaluation.evaluate import Evaluation

IMAGES, MOST_IMAGES = 12, 60
_PICTURE_PX, _QUALITY = 720, 80
_PICTURES_BYTES = 5_500_000  # of base64, all together
_SURE, _UNSURE_SHOWN = 0.3, 20
_FILES_BYTES = 64 << 20
_SECTIONS = {
    "evaluation": "How good the labels are",
    "gallery": "Images worth a look",
    "classes": "Classes and scores",
    "images": "Images",
    "failures": "Failures",
    "throughput": "Throughput",
    "run": "What was run",
}
_STAGES = ("read", "decode", "wait", "infer", "postprocess", "write")


def report(
    root: str,
    *,
    truth: str | None = None,
    images: int = IMAGES,
    version: int | None = None,
    as_of: datetime | None = None,
    **storage_options: Any,
) -> str:
    """Return the page as HTML. Images that cannot be read any more are named on the page.

    Args:
        root: Folder or URL of the label set.
        truth: COCO or LVIS JSON. With it the page also shows the accuracy of the labels.
        images: Number of images to show.
        version: Batch of an earlier state.
        as_of: Time of an earlier state.
        **storage_options: Settings of the storage, as for segray.scan.

    Raises:
        UserError: The number of images is out of range, or as evaluate raises it.
        SourceError: As evaluate raises it.
        LabelSetError: As snapshot.snapshot raises it, or nothing is committed.
    """
    if not 0 <= images <= MOST_IMAGES:
        raise UserError("so many images are not shown", found=str(images), hint=f"choose 0 to {MOST_IMAGES}")
    state = key_ranges.committed(snapshot.snapshot(root, version=version, as_of=as_of, **storage_options))
    store = snapshot.store(storage_options)
    found = statistics.compute_stats(state)
    judged = None if truth is None else _judged(state, truth, storage_options)
    run = latest_run(store, state.root)
    record = {} if run is None else run.record(store)
    choices = choose(found, images)
    missing = {"evaluation": judged is None, "gallery": not choices, "failures": not found.failures}
    return render(
        "report.html.jinja",
        sections={name: title for name, title in _SECTIONS.items() if not missing.get(name)},
        root=shown_uri(state.root),
        batch=state.batch,
        model=state.model,
        found=found,
        classes=sorted(found.classes.values(), key=lambda each: (-each.instances, each.name)),
        labels=_LABELS,
        gallery=_gallery(state, choices, store) if choices else None,
        version=segray.__version__,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        **_evaluated(judged),
        **_recorded(record),
    )


def of_run(root: str, **storage_options: Any) -> str:
    """Write the page into the folder of the latest run, and return its address. Raise as `report`.

    storage_options: as StorageOptions, with at most one retry, because a run waits for the page.
    """
    storage_options["retries"] = min(1, storage_options.get("retries", 1))
    store = snapshot.store(storage_options)
    run = latest_run(store, root)
    if run is None:
        raise UserError("no run is recorded here", where=root, hint="run `segray label` first")
    store.put(run.page, report(root, **storage_options).encode())
    return run.page


def _judged(state: Snapshot, truth: str, storage_options: Mapping[str, Any]) -> Evaluation:
    from segray.analytics.evaluation.evaluate import evaluate  # Imported here because most pages do not need it.

    return evaluate(state.root, truth, version=state.batch, **storage_options)


def latest_run(store: Store, root: str) -> Run | None:
    """Return the latest run that has a record; None without one."""
    for name in reversed(store.names(join(root, "_segray", "runs"))):
        if store.exists(join(root, "_segray", "runs", name, "run.json")):
            return Run(root, name)
    return None


# ---- choosing pictures ----------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageToShow:
    """An image to show. kind: a word or two. why: the rest of the sentence."""

    key: str
    kind: str
    why: str


def choose(found: LabelSetStats, most: int) -> list[ImageToShow]:
    """Return up to `most` images to show: one of each kind in turn, none twice. The result is ordered by kind."""
    usual = found.usual_instances
    typical = sorted(found.sample, key=lambda each: abs(each.instances - usual))
    unsure = sorted((each for each in found.sample if each.score is not None), key=lambda each: each.score or 0)
    rare = sorted(found.classes.values(), key=lambda each: (each.instances, each.name))
    kinds: list[list[ImageToShow]] = [
        [ImageToShow(each.key, "Typical", f"{_some(each.instances)}, as many as usual") for each in typical
         if abs(each.instances - usual) <= max(1, usual // 10)],
        [ImageToShow(each.key, "Lowest confidence", f"{_some(each.instances)}, score {each.score:.2f} on average")
         for each in unsure[: max(1, len(unsure) // 4)]],
        [ImageToShow(each.key, "Most crowded", _some(each.instances))
         for each in found.crowded if each.instances > usual],
        [ImageToShow(each.name and each.surest, "Rare class", f"the surest of {each.instances:,} {each.name}")
         for each in (rare[: max(1, len(rare) // 2)] if len(rare) > 1 else [])],
        [ImageToShow(each.key, "Largest image", f"{each.pixels / 1e6:.1f} megapixels, {_some(each.instances)}")
         for each in found.wide],
        [ImageToShow(each.key, "Nothing found", "no instance reaches the threshold") for each in found.bare],
    ]  # fmt: skip
    taken: list[list[ImageToShow]] = [[] for _ in kinds]
    seen: set[str] = set()
    waiting = [iter(each) for each in kinds]
    while len(seen) < most:
        before = len(seen)
        for mine, rest in zip(taken, waiting, strict=True):
            one = next((each for each in rest if each.key not in seen), None)
            if one is not None and len(seen) < most:
                mine.append(one)
                seen.add(one.key)
        if len(seen) == before:
            break
    return [each for mine in taken for each in mine]


def _some(instances: int) -> str:
    return f"{instances:,} instance{'s' * (instances != 1)}"


# ---- what the template shows ----------------------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """The time of a stage of labelling, in seconds summed over the threads of all workers.

    cpu_seconds: None where not recorded.
    """

    name: str
    seconds: float
    cpu_seconds: float | None


@dataclass(frozen=True)
class WorkerSummary:
    """The workers of a run: their number, and each value that they reported, "" without a value."""

    count: int
    hosts: int
    precision: str
    device: str
    device_name: str
    openvino: str


def _ends(ends: Sequence[float]) -> list[str]:
    return [*(f"{end:g}" for end in ends), "more"]


_LABELS = {
    "scores": [f"{i / statistics.SCORE_BINS:.2f}" for i in range(statistics.SCORE_BINS)],
    "sides": _ends(statistics.SIDES_PX),
    "per_image": _ends(statistics.PER_IMAGE),
    "megapixels": _ends(statistics.MEGAPIXELS),
}


def _evaluated(judged: Evaluation | None) -> dict[str, Any]:
    """Return the template's values for an evaluation."""
    if judged is None:
        return {}
    kinds = {} if judged.mistakes is None else judged.mistakes.kinds
    scores = next(iter(judged.scores.values()))
    return {
        "evaluation": judged,
        "mistakes": {name: sum(counts.values()) for name, counts in kinds.items()},
        "best_first": sorted(scores.class_ap.items(), key=lambda item: (-item[1], item[0])),
    }


def _recorded(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the template's values for the latest run. record: empty without a run."""
    seconds, cpu = record.get("seconds") or {}, record.get("cpu_seconds") or {}
    labelled = sum(int((record.get("labelled") or {}).get(name, 0)) for name in ("ok", "empty", "failed"))
    names = [*(each for each in _STAGES if each in seconds), *sorted(seconds.keys() - set(_STAGES))]
    config = record.get("config")
    return {
        "record": {**record, "source": shown_uri(str(record["source"]))} if "source" in record else record,
        "workers": _workers(record.get("workers") or []),
        "labelled": labelled,
        "stages": [Stage(name, seconds[name], cpu.get(name)) for name in names] if labelled else [],
        "config": json.dumps(config, indent=1, sort_keys=True) if config else None,
    }


def _workers(recorded: Sequence[Mapping[str, Any]]) -> WorkerSummary:
    def told(name: str) -> str:
        return ", ".join(sorted({str(each[name]) for each in recorded if name in each}))

    hosts = len({each.get("host") for each in recorded})
    return WorkerSummary(len(recorded), hosts, told("precision"), told("device"), told("device_name"), told("openvino"))


# ---- the gallery ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A picture on the page.

    jpeg: in base64. listed: number of drawn instances of each class. covered: share of the image below the masks, 0..1.
    """

    choice: ImageToShow
    jpeg: str
    size_wh: tuple[int, int]
    listed: str
    covered: float


@dataclass(frozen=True)
class Gallery:
    """The pictures on the page.

    unread: key and error of each image that cannot be shown. left_out: number of images that had no room on the page.
    min_score: lowest score of the drawn labels.
    """

    figures: Sequence[Figure]
    unread: Sequence[str]
    left_out: int
    min_score: float = _SURE


def _gallery(state: Snapshot, choices: Sequence[ImageToShow], store: Store) -> Gallery:
    pictures = _pictures(state, [each.key for each in choices])
    colours = colours_of(each for each, _ in pictures.values())
    files = Files(store, ImageLimits(max_pixels=statistics.MOST_PIXELS), MemoryBudget(_FILES_BYTES))
    shown, unread, room, left_out = list[Figure](), list[str](), _PICTURES_BYTES, 0
    down = None
    try:
        for choice in choices:
            one, version = pictures[choice.key]
            try:
                if down is not None:  # Another attempt for each image would take long.
                    raise down
                jpeg, size_wh = _drawn(one, version, colours, files)
            except (ImageError, InfrastructureError, AccessError, FileNotFoundError) as exc:
                down = exc if isinstance(exc, InfrastructureError) else down
                unread.append(f"{choice.key}: {first_line(str(exc))}")
                continue
            if len(jpeg) > room:
                left_out += 1
                continue
            room -= len(jpeg)
            shown.append(_figure(choice, one, jpeg, size_wh))
    finally:
        files.close()
    return Gallery(shown, unread, left_out)


def _pictures(state: Snapshot, keys: Sequence[str]) -> dict[str, tuple[LabelledPicture, str]]:
    """Return the images with their labels and the versions that were labelled, by key."""
    wanted = ds.field("image_key") == keys[0]
    for key in keys[1:]:
        wanted |= ds.field("image_key") == key  # With isin, readers could not skip files.
    labels: dict[str, list[Label]] = {key: [] for key in keys}
    for row in state.instances.to_table(columns=["image_key", *LABEL], filter=wanted).to_pylist():
        labels[row["image_key"]].append(Label.of(row))
    columns = ["image_key", "uri", "version", "height", "width"]
    images = {row["image_key"]: row for row in state.images.to_table(columns=columns, filter=wanted).to_pylist()}
    return {
        key: (
            LabelledPicture(key, row["uri"], (row["height"], row["width"]), tuple(_worth_drawing(labels[key]))),
            row["version"],
        )
        for key, row in images.items()
    }


def _worth_drawing(labels: Sequence[Label]) -> list[Label]:
    """Return the labels with a score of _SURE or more, or the surest ones if there is none."""
    sure = [each for each in labels if each.score >= _SURE]
    return sure or sorted(labels, key=lambda each: -each.score)[:_UNSURE_SHOWN]


def _drawn(
    one: LabelledPicture, version: str, colours: Mapping[int, Colour], files: Files
) -> tuple[str, tuple[int, int]]:
    """Return the picture with its masks as a JPEG in base64, and its width and height in pixels."""
    image = decode(
        files.read(ImageRef(one.key, one.uri, version)), ImageLimits(max_pixels=statistics.MOST_PIXELS)
    ).image
    height, width = image.shape[:2]
    if (height, width) != one.size_hw:
        raise ImageError(f"it is {width}x{height} now, and was labelled as {one.size_hw[1]}x{one.size_hw[0]}")
    ratio = min(1.0, _PICTURE_PX / max(width, height))
    size_wh = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    overlay = draw(image, one.labels, colours, size_wh=size_wh)
    whole = cv2.imencode(".jpg", overlay[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
    return base64.b64encode(whole).decode(), size_wh


def _figure(choice: ImageToShow, one: LabelledPicture, jpeg: str, size_wh: tuple[int, int]) -> Figure:
    names = Counter(each.class_name for each in one.labels)
    listed = ", ".join(f"{count} {name}" for name, count in names.most_common(8)) or "no mask"
    more = f" and {len(names) - 8} more classes" if len(names) > 8 else ""
    covered = sum(rle.area(each.rle) for each in one.labels) / max(1, one.size_hw[0] * one.size_hw[1])
    return Figure(choice, jpeg, size_wh, listed + more, min(covered, 1))
