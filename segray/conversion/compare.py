"""A comparison of engines on the same images: speed and accuracy.

Knows images, the clock, COCO truth and the given engines, by any names. Knows nothing of how the models were made.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from segray._system.memory import MemoryBudget
from segray.analytics.evaluation import class_maps, class_matching, ground_truth, image_matching
from segray.analytics.evaluation.evaluate import Row, coco_results, count_objects, evaluate_detections
from segray.analytics.query.key_ranges import KeySampler
from segray.errors import ImageError, UserError
from segray.imaging import decode
from segray.instances import ImageRef
from segray.limits import ImageLimits
from segray.models.adapters.adapter import ModelAdapter, ModelFormat, Options
from segray.models.engine import Arrays, Engine
from segray.sources import listing
from segray.sources.reader import Files
from segray.storage.store import Store
from segray.storage.uris import redact

ROUNDS, ROUND_S = 7, 0.7
_FILES_BYTES = 256 * 2**20


# ---- images ---------------------------------------------------------------------------------------


def evenly_spaced_images(uri: str, store: Store, most: int) -> list[ImageRef]:
    """Return at most `most` images of the dataset, at even distances in the order of the listing."""
    table = pa.Table.from_batches(listing.read(uri, store), listing.REF_SCHEMA)
    rows = table.take(pa.array(_evenly_spaced(table.num_rows, most), pa.int64()))
    return [ref for batch in rows.to_batches() for ref in listing.refs(batch)]


def _evenly_spaced(count: int, most: int | None) -> list[int]:
    """Return at most `most` of the numbers below `count`, at even distances."""
    selected = count if most is None else min(count, most)
    return [i * count // selected for i in range(selected)]


class Reader:
    """A reader that prepares images for a model. Threads may share a reader.

    failures: URI -> reason, for each image that could not be read.
    """

    def __init__(self, adapter: ModelAdapter, form: ModelFormat, store: Store) -> None:
        self.adapter, self.form, self.store = adapter, form, store
        self._files = Files(store, ImageLimits(), MemoryBudget(_FILES_BYTES))
        self.failures: dict[str, str] = {}

    def read(self, ref: ImageRef) -> tuple[Arrays, tuple[int, int]] | None:
        """Return the model's inputs, and the image's height and width in pixels; None if the image cannot be read."""
        try:
            pixels = decode.decode(self._files.read(ref)).image
        except (ImageError, FileNotFoundError) as error:
            self.failures[ref.uri] = str(error)
            return None
        return self.adapter.prepare(self.form, pixels), (pixels.shape[0], pixels.shape[1])

    def first(self, refs: Sequence[ImageRef], most: int) -> list[Arrays]:
        """Return the inputs of the first readable images, at most `most`."""
        inputs: list[Arrays] = []
        for ref in refs:
            if len(inputs) < most and (prepared := self.read(ref)) is not None:
                inputs.append(prepared[0])
        return inputs

    def first_failure(self) -> str:
        """Return one unreadable image and the reason as a text; "" if all images were readable."""
        return next((f"{redact(uri)}: {' '.join(reason.split())}" for uri, reason in self.failures.items()), "")


# ---- speed ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """The speed of networks alone, on one machine.

    rounds: engine -> images/s, one mapping per round. All engines take turns within a round.
    """

    device: str
    rounds: tuple[Mapping[str, float], ...]

    def images_per_s(self) -> dict[str, float]:
        """Return the median images/s over the rounds, by engine."""
        return {name: statistics.median(speeds[name] for speeds in self.rounds) for name in self.rounds[0]}

    def over(self, name: str) -> dict[str, float]:
        """Return how many times as fast the engine `name` is as each other engine.

        A value is the median of the ratios within the rounds.
        """
        others = [other for other in self.rounds[0] if other != name]
        return {other: statistics.median(speeds[name] / speeds[other] for speeds in self.rounds) for other in others}


def speed(engines: Mapping[str, Engine], inputs: Sequence[Arrays]) -> Speed:
    """Measure the engines in turns on these inputs, after one unmeasured turn.

    engines: the engines by any name. inputs: prepared images, which all engines take.
    """
    for engine in engines.values():
        _images_per_s(engine, inputs, 0)
    rounds = [{name: _images_per_s(engine, inputs, ROUND_S) for name, engine in engines.items()} for _ in range(ROUNDS)]
    return Speed(next(iter(engines.values())).facts.get("device_name", ""), tuple(rounds))


def _images_per_s(engine: Engine, inputs: Sequence[Arrays], seconds: float) -> float:
    """Return the images/s of `engine.requests` threads within `seconds`; each thread infers at least once."""
    start_s = time.perf_counter()

    def infer_until_end(thread: int) -> int:
        images = 0
        while not images or time.perf_counter() < start_s + seconds:
            with engine.infer(inputs[(thread + images) % len(inputs)]):
                images += 1
        return images

    with ThreadPoolExecutor(engine.requests) as pool:
        images = sum(pool.map(infer_until_end, range(engine.requests)))
    return images / (time.perf_counter() - start_s)


# ---- accuracy -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """The ground truth for accuracy.

    path: COCO JSON of images in the dataset `images`. most: largest number of images, taken at even distances; None for
    all images of the truth that the dataset has. classes_by, class_map, files_by: as for evaluate.
    """

    path: Path
    images: str
    most: int | None = None
    classes_by: str | None = None
    class_map: class_maps.Map | Path | None = None
    files_by: str | None = None


@dataclass(frozen=True)
class EngineAccuracy:
    """Average precision on the same images, 0..1, by engine.

    uris: the images. objects: number of objects in the truth of these images.
    """

    uris: tuple[str, ...]
    objects: int
    mask_ap: Mapping[str, float]
    box_ap: Mapping[str, float]


@dataclass(frozen=True)
class TruthOfDataset:
    """A truth that is read.

    content: the truth of the images that the dataset has, with the model's class ids and the dataset's keys.
    refs: references of these images, by key. notes: what is told of classes and images.
    detected: class id by the model's, where a map joins classes of the model.
    """

    content: Row
    refs: Mapping[str, ImageRef]
    notes: Sequence[str] = ()
    detected: Mapping[int, int] = field(default_factory=dict)


def accuracy(engines: Mapping[str, Engine], reader: Reader, truth: TruthOfDataset) -> EngineAccuracy:
    """Return the average precision of each engine, on the truth's images that the dataset has.

    An unreadable image counts as an image without detections.

    Args:
        engines: The engines by any name.
        reader: Reader that prepares images for these engines.
        truth: The ground truth of images of a dataset.

    Raises:
        UserError: An image has another size in the truth.
    """
    content, refs = truth.content, truth.refs
    detections: dict[str, list[Row]] = {name: [] for name in engines}
    sized_images: list[Row] = []
    with ThreadPoolExecutor(max(engine.requests for engine in engines.values())) as pool:
        sizes_and_results = pool.map(
            lambda row: _detect(engines, reader, row, refs[row["file_name"]], truth.detected), content["images"]
        )
        for row, (size_hw, results) in zip(content["images"], sizes_and_results, strict=True):
            sizes = {} if size_hw is None else {"height": size_hw[0], "width": size_hw[1]}
            sized_images.append({**row, **sizes})
            for name, rows in results.items():
                detections[name] += rows
    content = {**content, "images": sized_images}
    scores = {name: evaluate_detections(rows, content) for name, rows in detections.items()}
    return EngineAccuracy(
        uris=tuple(refs[row["file_name"]].uri for row in content["images"]),
        objects=count_objects(content),
        mask_ap={name: by_type["segm"].ap for name, by_type in scores.items()},
        box_ap={name: by_type["bbox"].ap for name, by_type in scores.items()},
    )


def truth_of_dataset(truth: Truth, store: Store, labels: Mapping[int, str]) -> TruthOfDataset:
    """Read a truth, and return its part that the dataset has. labels: class name of the model by id.

    Classes and images are matched as `segray evaluate` matches them. Raises UserError if truth and dataset share no
    image, or if the model lacks a class, and SourceError for a truth or dataset that cannot be read.
    """
    path, where = str(truth.path), f"{truth.path}, {redact(truth.images)}"
    index = ground_truth.read_index(path, Store(), KeySampler())
    classes = class_matching.match(
        index.names,
        index.used,
        labels,
        classes_by=truth.classes_by,
        class_map=class_maps.pairs(truth.class_map, Store()),
        where=str(truth.path),
    )
    dataset = [ref for batch in listing.read(truth.images, store) for ref in listing.refs(batch)]
    refs = {ref.key: ref for ref in dataset}
    matched = image_matching.match_dataset(index, {ref.key: ref.uri for ref in dataset}, Store(), where, truth.files_by)
    content = ground_truth.read_all(path, Store(), index, needs_sizes=False)
    rows = [
        {**row, "file_name": key}
        for row in content["images"]
        if (key := matched.key(index.position_of(row["id"]), row["file_name"])) in refs
    ]
    if not rows:
        raise UserError(
            "The truth and the images have nothing in common.",
            where=where,
            found=f"images: {_example(ref.key for ref in dataset)}, truth: {index.example}",
            hint="Make each `file_name` of the truth a path below the dataset's root, or set --truth-images.",
        )
    images = [rows[i] for i in _evenly_spaced(len(rows), truth.most)]
    ids = {row["id"] for row in images}
    class_ids = {category: category for category in index.names} if classes.ids is None else classes.ids
    annotations = [
        {**row, "category_id": class_ids[row["category_id"]]}
        for row in content["annotations"]
        if row["image_id"] in ids
    ]
    categories = [{"id": number, "name": name} for number, name in classes.names.items()]
    return TruthOfDataset(
        {"images": images, "annotations": annotations, "categories": categories},
        {row["file_name"]: refs[row["file_name"]] for row in rows},
        [*matched.notes, *classes.notes],
        classes.detected,
    )


def _example(names: Iterable[str]) -> str:
    """Return the first name in order, or "none"."""
    return min(names, default="none")


def _detect(
    engines: Mapping[str, Engine], reader: Reader, row: Row, ref: ImageRef, detected: Mapping[int, int]
) -> tuple[tuple[int, int] | None, dict[str, list[Row]]]:
    """Return height and width of one image, and the detections of each engine in COCO's result format.

    An image that cannot be read has neither.
    detected: class id by the model's, where a map joins classes.
    """
    prepared = reader.read(ref)
    if prepared is None:
        return None, {}
    inputs, size_hw = prepared
    if row["height"] is not None and size_hw != (row["height"], row["width"]):
        raise UserError(
            "An image has another size in the truth.",
            where=ref.key,
            found=f"{size_hw[1]}x{size_hw[0]}, truth {row['width']}x{row['height']}",
            hint="Set --truth-images to the images that the truth describes. Its coordinates must be upright.",
        )
    rows = {}
    for name, engine in engines.items():
        with engine.infer(inputs) as outputs:
            results = coco_results(row["id"], reader.adapter.decode(outputs, size_hw, Options()))
        rows[name] = [{**result, "category_id": detected.get(result["category_id"], result["category_id"])}
                      for result in results]  # fmt: skip
    return size_hw, rows
