"""A label set on one web page: what was run, what came out, what failed, and pictures worth a look.

Knows what is on the page and which images are shown, and why; what is counted is in census, HTML in page. The page is
one file without script or address, a few megabytes at most however large the label set is.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow.dataset as ds

import segray
from segray import rle
from segray._system.memory import Budget
from segray.analytics.query import key_ranges
from segray.analytics.reports import statistics
from segray.analytics.reports.contact_sheet import LABEL, Colour, Label, Picture, colours_of, draw
from segray.analytics.reports.html import (
    Markup,
    figures,
    folded,
    histogram,
    number,
    page,
    paragraph,
    picture,
    share,
    size,
    sparkline,
    table,
    text,
)
from segray.analytics.reports.statistics import Census
from segray.errors import AccessError, ImageError, UserError, WorldError
from segray.imaging.decode import Limits, decode
from segray.imaging.opencv import cv2
from segray.instances import ImageRef
from segray.label_set import snapshot
from segray.label_set.run_records import Run
from segray.label_set.snapshot import Snapshot
from segray.sources.reader import Files
from segray.storage.store import Store, join
from segray.storage.store import shown as shown_uri

if TYPE_CHECKING:
    from segray.analytics.evaluation.evaluate import Evaluation

IMAGES, MOST_IMAGES = 12, 60
_PICTURE_PX, _QUALITY = 720, 80
_PICTURES_BYTES = 5_500_000  # of base64, all together
_SURE, _UNSURE_SHOWN = 0.3, 20
_CLASSES_SHOWN, _CLASSES_LISTED, _KINDS_SHOWN, _RUNS_SHOWN = 30, 1500, 25, 12
_FILES_BYTES = 64 << 20

Part = tuple[str, str, str]


def report(
    root: str,
    *,
    truth: str | None = None,
    images: int = IMAGES,
    version: int | None = None,
    as_of: datetime | None = None,
    **storage_options: Any,
) -> str:
    """The page, as HTML. truth: COCO or LVIS JSON, to say also how good the labels are. images: how many to show.

    version, as_of: an earlier state. Images that cannot be read any more are named on the page. Raises LabelSetError
    as tables.snapshot or where nothing is committed, and as evaluate does if there is truth.
    """
    if not 0 <= images <= MOST_IMAGES:
        raise UserError("so many images are not shown", found=str(images), do=f"choose 0 to {MOST_IMAGES}")
    state = key_ranges.committed(snapshot.snapshot(root, version=version, as_of=as_of, **storage_options))
    store = snapshot.store(storage_options)
    found = statistics.count(state)
    judged = None if truth is None else _judged(state, truth, storage_options)
    run = latest_run(store, state.root)
    record = {} if run is None else run.record(store)
    parts = list(_sections(state, found, record, judged, choose(found, images), store))
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    foot = paragraph(f"segray {segray.__version__}, {made}. Exact state after batch {state.batch}.")
    return page(f"Labels of {shown_uri(state.root)}", _head(found, record), parts, foot)


def of_run(root: str, **storage_options: Any) -> str:
    """Write the page into the folder of the latest run; returns its address. Raises as report.

    storage_options: as StorageOptions, but what fails is tried once more only: a run waits for this.
    """
    storage_options["retries"] = min(1, storage_options.get("retries", 1))
    store = snapshot.store(storage_options)
    run = latest_run(store, root)
    if run is None:
        raise UserError("no run is recorded here", where=root, do="run `segray label` first")
    store.put(run.page, report(root, **storage_options).encode())
    return run.page


def _judged(state: Snapshot, truth: str, storage_options: Mapping[str, Any]) -> Evaluation:
    from segray.analytics.evaluation.evaluate import evaluate  # Not above: most pages need nothing of it.

    return evaluate(state.root, truth, version=state.batch, **storage_options)


def latest_run(store: Store, root: str) -> Run | None:
    """The run that was begun last, of those that have a record."""
    for name in reversed(store.names(join(root, "_segray", "runs"))):
        if store.exists(join(root, "_segray", "runs", name, "run.json")):
            return Run(root, name)
    return None


# ---- choosing pictures ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Choice:
    """An image to show. kind: a word or two; why: the rest of the sentence."""

    key: str
    kind: str
    why: str


def choose(found: Census, most: int) -> list[Choice]:
    """Up to `most` images worth a look: of each kind one in turn, no image twice, then kind by kind."""
    usual = found.usual_instances
    typical = sorted(found.sample, key=lambda each: abs(each.instances - usual))
    unsure = sorted((each for each in found.sample if each.score is not None), key=lambda each: each.score or 0)
    rare = sorted(found.classes.values(), key=lambda each: (each.instances, each.name))
    kinds: list[list[Choice]] = [
        [Choice(each.key, "Typical", f"{_some(each.instances)}, as many as usual") for each in typical
         if abs(each.instances - usual) <= max(1, usual // 10)],
        [Choice(each.key, "Lowest confidence", f"{_some(each.instances)}, score {each.score:.2f} on average")
         for each in unsure[: max(1, len(unsure) // 4)]],
        [Choice(each.key, "Most crowded", _some(each.instances)) for each in found.crowded if each.instances > usual],
        [Choice(each.name and each.surest, "Rare class", f"the surest of {each.instances:,} {each.name}")
         for each in (rare[: max(1, len(rare) // 2)] if len(rare) > 1 else [])],
        [Choice(each.key, "Largest image", f"{each.pixels / 1e6:.1f} megapixels, {_some(each.instances)}")
         for each in found.wide],
        [Choice(each.key, "Nothing found", "no instance reaches the threshold") for each in found.bare],
    ]  # fmt: skip
    taken: list[list[Choice]] = [[] for _ in kinds]
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


# ---- sections -------------------------------------------------------------------------------------


def _head(found: Census, record: Mapping[str, Any]) -> str:
    failed = found.statuses.get("failed", 0)
    mean = sum(each.mean_score * each.instances for each in found.classes.values()) / max(1, found.instances)
    pairs = [
        ("images", number(found.images)),
        ("instances", number(found.instances)),
        ("classes that occur", number(len(found.classes))),
        ("failed", f"{number(failed)} ({failed / max(1, found.images):.1%})"),
        ("mean score", number(mean, 3) if found.instances else "-"),
        ("read", size(found.bytes)),
    ]
    source = record.get("source")
    said = paragraph(f"Images of {shown_uri(str(source))}", kind="soft") if source else ""
    return f"{said}{figures(pairs)}"


def _sections(
    state: Snapshot,
    found: Census,
    record: Mapping[str, Any],
    judged: Evaluation | None,
    choices: Sequence[Choice],
    store: Store,
) -> Iterator[Part]:
    if judged is not None:
        yield "evaluation", "How good the labels are", _evaluation(judged)
    if choices:
        yield "gallery", "Images worth a look", _gallery(state, choices, store)
    yield "classes", "Classes and scores", _classes(found)
    yield "images", "Images", _images(found)
    if found.failures:
        yield "failures", "Failures", _failures(found)
    yield "throughput", "Throughput", _throughput(found, record)
    yield "run", "What was run", _run(state, record)


def _run(state: Snapshot, record: Mapping[str, Any]) -> str:
    model = dict(state.model)
    workers = record.get("workers") or []

    def told(name: str) -> str:
        return ", ".join(sorted({str(each[name]) for each in workers if name in each})) or "not recorded"

    facts: list[tuple[str, object]] = [
        ("Model", model.get("name", "not recorded")),
        ("Model files, sha256", model.get("files_sha256", "not recorded")),
        ("Form", model.get("form", "not recorded")),
        ("Score threshold", model.get("score_threshold", "not recorded")),
        ("Detections an image", model.get("max_detections", "not recorded")),
        ("Suppression", model.get("nms", "not recorded")),
        ("Precision in effect", told("precision")),
        ("Device", f"{told('device')}: {told('device_name')}"),
        ("Workers", f"{len(workers)} on {len({each.get('host') for each in workers})} hosts" if workers else "none"),
        ("Source", shown_uri(str(record.get("source", "not recorded")))),
        ("segray", record.get("segray", "not recorded")),
        ("OpenVINO", told("openvino")),
        ("Latest run", f"{record.get('run_id', 'none')}, {record.get('state', 'unknown')}"),
        ("State shown", f"after batch {state.batch}"),
    ]
    config = json.dumps(record.get("config", {}), indent=1, sort_keys=True)
    whole = Markup(f"<pre>{text(config, 40_000)}</pre>")
    more = folded("The whole configuration of the latest run", whole) if record.get("config") else ""
    return table("The model, and the latest run", ["What", "Value"], facts) + more


def _throughput(found: Census, record: Mapping[str, Any]) -> str:
    parts = []
    seconds, cpu = record.get("seconds") or {}, record.get("cpu_seconds") or {}
    images = sum(int((record.get("labelled") or {}).get(name, 0)) for name in ("ok", "empty", "failed"))
    if seconds and images:
        order = ["read", "decode", "wait", "infer", "postprocess", "write"]
        names = [*(each for each in order if each in seconds), *sorted(seconds.keys() - set(order))]
        total = sum(seconds.values())
        rows = [
            (name, number(seconds[name], 1), share(seconds[name], total), f"{seconds[name] / max(total, 1e-9):.0%}",
             number(cpu.get(name), 1), number(1000 * seconds[name] / images, 1), _rate(images, seconds[name]))
            for name in names
        ]  # fmt: skip
        head = ["stage", "seconds", "", "share", "CPU seconds", "ms an image", "images/s in one thread"]
        parts.append(table(f"Where the time of {images:,} images of the latest run went", head, rows, "-n-nnnn"))
        parts.append(
            paragraph(
                "Seconds are summed over the threads of all workers, which work at once; wait is for a free inference "
                "request.", kind="soft",
            )
        )  # fmt: skip
        if published := record.get("published"):
            merge, commit = (number(published.get(name), 1) for name in ("merge_s", "commit_s"))
            parts.append(paragraph(f"Publishing beside it: {merge} s of merging, {commit} s of committing."))
    else:
        parts.append(paragraph("The latest run recorded no labelling of its own."))
    spans = [
        (each.run_id, number(each.images), f"{each.first:%Y-%m-%d %H:%M:%S}", f"{each.last:%Y-%m-%d %H:%M:%S}")
        for each in found.runs[:_RUNS_SHOWN]
    ]
    head = ["run", "images", "first unit done, UTC", "last unit done"]
    parts.append(table("Runs whose rows are in this label set, the latest first", head, spans, "-n--"))
    if len(found.runs) > _RUNS_SHOWN:
        parts.append(paragraph(f"And {len(found.runs) - _RUNS_SHOWN} earlier runs.", kind="soft"))
    return "".join(parts)


def _rate(images: int, seconds: float) -> str:
    return number(images / seconds, 1) if seconds >= 1e-3 else "-"


def _classes(found: Census) -> str:
    if not found.classes:
        return paragraph("No instance was found in any image.")
    ends = [f"{i / statistics.SCORE_BINS:.2f}" for i in range(statistics.SCORE_BINS)]
    sides = _labels(statistics.SIDES_PX)
    charts = [
        histogram("Scores of all instances", "score from", ends, found.scores.tolist(), every=4),
        histogram("Sizes of the masks", "pixels along a side, up to", sides, found.sides.tolist(), every=2),
    ]
    ordered = sorted(found.classes.values(), key=lambda each: (-each.instances, each.name))
    top = ordered[0].instances
    rows = [
        (each.name, number(each.instances), share(each.instances, top), f"{each.instances / found.instances:.1%}",
         number(each.mean_score, 3), sparkline(each.scores.tolist(), f"scores of {each.name}, from 0 to 1"),
         *(number(size) for size in each.sizes))
        for each in ordered
    ]  # fmt: skip
    head = ["class", "instances", "", "share", "mean score", "scores 0 to 1", *statistics.SIZES]
    kinds = "-n-nn-nnn"
    parts = [f'<div class="charts">{"".join(charts)}</div>']
    parts.append(table("Instances by class; small is below 32² pixels, large from 96² on", head,
                       rows[:_CLASSES_SHOWN], kinds))  # fmt: skip
    if rest := rows[_CLASSES_SHOWN:_CLASSES_LISTED]:
        parts.append(folded(f"{len(rest)} more classes", table("Instances of the rarer classes", head, rest, kinds)))
    if len(rows) > _CLASSES_LISTED:
        parts.append(paragraph(f"{len(rows) - _CLASSES_LISTED} classes, the rarest, are left out.", kind="soft"))
    return "".join(parts)


def _images(found: Census) -> str:
    rows = [
        (name, number(found.statuses.get(name, 0)), share(found.statuses.get(name, 0), found.images),
         f"{found.statuses.get(name, 0) / max(1, found.images):.1%}", said)
        for name, said in (("ok", "labelled, with instances"), ("empty", "labelled, nothing found"),
                           ("failed", "could not be labelled"))
    ]  # fmt: skip
    counts = table("Images by status", ["status", "images", "", "share", "meaning"], rows, "-n-n-")
    charts = [
        histogram("Instances in an image", "instances, up to", _labels(statistics.PER_IMAGE), found.per_image.tolist()),
        histogram(
            "Sizes of the images", "megapixels, up to", _labels(statistics.MEGAPIXELS), found.megapixels.tolist()
        ),
    ]
    return f'{counts}<div class="charts">{"".join(charts)}</div>'


def _labels(ends: Sequence[float]) -> list[str]:
    return [*(f"{end:g}" for end in ends), "more"]


def _failures(found: Census) -> str:
    rows = [
        (each.stage, each.error, number(each.count),
         Markup("<br>".join(f"{text(key)}: {text(_first_line(message))}" for key, message in each.examples)))
        for each in found.failures[:_KINDS_SHOWN]
    ]  # fmt: skip
    said = table("Failed images by stage and error", ["stage", "error", "images", "such as"], rows, "--n-")
    rest = found.failures[_KINDS_SHOWN:]
    if rest:
        left = sum(each.count for each in rest)
        said = Markup(said + paragraph(f"And {len(rest)} other kinds with {left:,} images.", kind="soft"))
    return said


def _first_line(message: str) -> str:
    return message.splitlines()[0] if message.strip() else "no message"


def _evaluation(judged: Evaluation) -> str:
    columns = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar100")
    names = {"segm": "masks", "bbox": "boxes"}
    rows = [
        (names[kind], *(number(getattr(scores, column), 3) for column in columns))
        for kind, scores in judged.scores.items()
    ]
    head = ["", "AP", "AP50", "AP75", "AP small", "AP medium", "AP large", "AR"]
    said = (
        f"{judged.objects:,} objects in {judged.images:,} images of the truth, protocol {judged.protocol}; "
        f"{judged.labelled:,} labelled, {judged.failed:,} failed, {judged.missing:,} missing"
    )
    parts = [paragraph(said), *(paragraph(f"Note: {note}.") for note in judged.notes)]
    parts.append(table("Average precision and recall, 0 to 1", head, rows, "-nnnnnnn"))
    if judged.mistakes is not None:
        kinds = {name: sum(counts.values()) for name, counts in judged.mistakes.kinds.items()}
        whole = sum(kinds.values())
        found = [(name, number(n), share(n, whole), f"{n / max(1, whole):.1%}") for name, n in kinds.items()]
        caption = f"What detections with a score from {judged.mistakes.min_score:g} on are, and objects missed"
        parts.append(table(caption, ["kind", "count", "", "share"], found, "-n-n"))
    kind, scores = next(iter(judged.scores.items()))
    by_class = [
        (name, number(ap, 3), share(ap, 1.0), number(scores.class_ap50.get(name), 3),
         number(scores.class_ar.get(name), 3))
        for name, ap in sorted(scores.class_ap.items(), key=lambda item: (-item[1], item[0]))[:_CLASSES_LISTED]
    ]  # fmt: skip
    caption = f"By class, {names[kind]}, the best first"
    parts.append(table(caption, ["class", "AP", "", "AP50", "AR"], by_class, "-n-nn"))
    return "".join(parts)


# ---- the gallery ----------------------------------------------------------------------------------


def _gallery(state: Snapshot, choices: Sequence[Choice], store: Store) -> str:
    pictures = _pictures(state, [each.key for each in choices])
    colours = colours_of(each for each, _ in pictures.values())
    files = Files(store, Limits(max_pixels=statistics.MOST_PIXELS), Budget(_FILES_BYTES))
    shown, gone, room, left_out = [], list[str](), _PICTURES_BYTES, 0
    down = None
    try:
        for choice in choices:
            one, version = pictures[choice.key]
            try:
                if down is not None:  # Asking again for each of them would take long.
                    raise down
                data, size_wh = _drawn(one, version, colours, files)
            except (ImageError, WorldError, AccessError, FileNotFoundError) as exc:
                down = exc if isinstance(exc, WorldError) else down
                gone.append(f"{choice.key}: {_first_line(str(exc))}")
                continue
            if len(data) > room:
                left_out += 1
                continue
            room -= len(data)
            shown.append(_figure(choice, one, data, size_wh))
    finally:
        files.close()
    parts = [f'<div class="gallery">{"".join(shown)}</div>'] if shown else []
    if parts:
        parts.insert(0, paragraph(f"Drawn are instances with a score from {_SURE:g} on.", kind="soft"))
    if gone:
        items = "".join(f"<li>{text(each)}</li>" for each in gone)
        parts.append(f"<p>{len(gone)} of the chosen images cannot be shown:</p><ul>{items}</ul>")
    if left_out:
        parts.append(paragraph(f"{left_out} more were left out to keep this page small.", kind="soft"))
    return "".join(parts)


def _pictures(state: Snapshot, keys: Sequence[str]) -> dict[str, tuple[Picture, str]]:
    """The images with their labels and the versions that were labelled."""
    wanted = ds.field("image_key") == keys[0]
    for key in keys[1:]:
        wanted |= ds.field("image_key") == key  # Not isin: of that, readers cannot tell which files to leave out.
    labels: dict[str, list[Label]] = {key: [] for key in keys}
    for row in state.instances.to_table(columns=["image_key", *LABEL], filter=wanted).to_pylist():
        labels[row["image_key"]].append(Label.of(row))
    columns = ["image_key", "uri", "version", "height", "width"]
    images = {row["image_key"]: row for row in state.images.to_table(columns=columns, filter=wanted).to_pylist()}
    return {
        key: (
            Picture(key, row["uri"], (row["height"], row["width"]), tuple(_worth_drawing(labels[key]))),
            row["version"],
        )
        for key, row in images.items()
    }


def _worth_drawing(labels: Sequence[Label]) -> list[Label]:
    """The sure ones, or the surest where there is none."""
    sure = [each for each in labels if each.score >= _SURE]
    return sure or sorted(labels, key=lambda each: -each.score)[:_UNSURE_SHOWN]


def _drawn(one: Picture, version: str, colours: Mapping[int, Colour], files: Files) -> tuple[str, tuple[int, int]]:
    """The overlay as a data URI, and its size."""
    image = decode(files.read(ImageRef(one.key, one.uri, version)), Limits(max_pixels=statistics.MOST_PIXELS)).image
    height, width = image.shape[:2]
    if (height, width) != one.size_hw:
        raise ImageError(f"it is {width}x{height} now, and was labelled as {one.size_hw[1]}x{one.size_hw[0]}")
    ratio = min(1.0, _PICTURE_PX / max(width, height))
    size_wh = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    overlay = draw(image, one.labels, colours, size_wh=size_wh)
    whole = cv2.imencode(".jpg", overlay[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
    return f"data:image/jpeg;base64,{base64.b64encode(whole).decode()}", size_wh


def _figure(choice: Choice, one: Picture, data: str, size_wh: tuple[int, int]) -> Markup:
    names = Counter(each.class_name for each in one.labels)
    listed = ", ".join(f"{count} {name}" for name, count in names.most_common(8)) or "no mask"
    more = f" and {len(names) - 8} more classes" if len(names) > 8 else ""
    covered = sum(rle.area(each.rle) for each in one.labels) / max(1, one.size_hw[0] * one.size_hw[1])
    caption = Markup(
        f"<b>{text(choice.kind)}</b>: {text(choice.why)}.<br>Drawn: {text(listed)}{text(more)}.<br>{text(choice.key)}"
    )
    alt = f"{choice.key} with masks drawn over it: {listed}{more}; {min(covered, 1):.0%} of it covered"
    return picture(data, alt, size_wh, caption)
