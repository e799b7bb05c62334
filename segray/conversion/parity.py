"""The rows of a model compared with reference results: the rows that another program made of the same images.

Knows how rows of two programs are matched. `reference_results` knows the files of such results. Knows nothing of the
program that made them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segray import rle
from segray.config import ModelSettings
from segray.conversion.compare import Reader
from segray.conversion.reference_results import ReferenceImage, ReferenceRow
from segray.errors import SourceError, UserError
from segray.execution.model_loading import options_of
from segray.instances import ImageRef, Instances
from segray.models import engine as runtime
from segray.models.adapters.adapter import Options
from segray.models.engine import Engine
from segray.models.resolve import ResolvedModel
from segray.sources import listing
from segray.storage.store import Store
from segray.storage.uris import redact

# Rows of less overlap are different objects.
_PARTNER_IOU = 0.5
_MAX_LISTED = 20


@dataclass(frozen=True)
class Limits:
    """What counts as the same row.

    min_score: rows of the reference and of the model with a lower score do not count. min_iou: smallest mask IoU.
    max_score_difference: largest difference of two scores.
    """

    min_score: float = 0.3
    min_iou: float = 0.95
    max_score_difference: float = 0.02


@dataclass(frozen=True)
class Pair:
    """A row of the reference with its partner among the model's rows; iou 0 and no differences without a partner."""

    image: str
    class_name: str
    score: float
    iou: float = 0.0
    score_difference: float | None = None
    box_difference_px: float | None = None

    def is_match(self, limits: Limits) -> bool:
        """Return whether both rows are the same within the limits."""
        difference = self.score_difference
        return self.iou >= limits.min_iou and difference is not None and difference <= limits.max_score_difference


@dataclass(frozen=True)
class Parity:
    """The result of a comparison.

    pairs: the rows of the reference that count. extra: rows of the model that count and have no partner, as image,
    class name and score. images: number of images compared. absent: images of the reference that the dataset lacks.
    """

    images: int
    limits: Limits
    pairs: tuple[Pair, ...]
    extra: tuple[tuple[str, str, float], ...]
    absent: tuple[str, ...]

    @property
    def matched(self) -> int:
        """Return the number of rows of the reference that the model has within the limits."""
        return sum(pair.is_match(self.limits) for pair in self.pairs)

    @property
    def matched_share(self) -> float:
        """Return the share of the reference's rows that are matched; 1 if there is none."""
        return self.matched / len(self.pairs) if self.pairs else 1.0

    @property
    def extra_share(self) -> float:
        """Return the model's extra rows as a share of the reference's rows."""
        return len(self.extra) / max(len(self.pairs), 1)

    def differing(self) -> list[Pair]:
        """Return the rows of the reference that are not matched, the worst first, at most 20."""
        others = [pair for pair in self.pairs if not pair.is_match(self.limits)]
        return sorted(others, key=lambda pair: pair.iou)[:_MAX_LISTED]


def compare_model(
    model: ResolvedModel,
    settings: ModelSettings,
    reference: Mapping[str, ReferenceImage],
    images: str,
    store: Store,
    limits: Limits,
) -> Parity:
    """Return the comparison of a model with a reference; see `compare`.

    settings: the section `model` of a configuration. The network computes in f32 under `precision: auto`, unless the
    model is quantised.
    """
    precision = settings.precision
    if precision == "auto":
        precision = "int8" if model.signature().quantised else "f32"
    options = options_of(settings, model.adapter)
    engine = runtime.compile(model.path, model.form, runtime.DeviceSettings(precision=precision))
    adapter = model.adapter.with_size(model.form.name, engine.size_hw)
    reader = Reader(adapter, adapter.forms[model.form.name], store)
    return compare(reference, images, engine, reader, options, limits)


def compare(
    reference: Mapping[str, ReferenceImage],
    images: str,
    engine: Engine,
    reader: Reader,
    options: Options,
    limits: Limits,
) -> Parity:
    """Return the comparison of a model's rows with those of a reference.

    Args:
        reference: Name of an image -> its rows.
        images: The dataset with these images, in the form of source.uri.
        engine: The compiled model.
        reader: Reader that prepares images for the engine.
        options: Thresholds and limits of decoding.
        limits: What counts as the same row.

    Raises:
        UserError: The dataset has none of the images, or an image has another size.
        SourceError: An image cannot be read.
    """
    refs = _refs_of_dataset(images, reader.store)
    keys = {name: key for name in reference if (key := _key_of(name, refs)) is not None}
    if not keys:
        raise UserError(
            "The reference and the images have nothing in common.",
            where=redact(images),
            found=f"images: {min(refs, default='none')}, reference: {min(reference, default='none')}",
            hint="Set --images to the images of which the reference was made.",
        )
    pairs: list[Pair] = []
    extra: list[tuple[str, str, float]] = []
    for name, key in keys.items():
        instances = _detect(engine, reader, refs[key], reference[name], options)
        image_pairs, partners = _pairs(name, reference[name].rows, instances, reader.adapter.labels)
        pairs += [pair for pair in image_pairs if pair.score >= limits.min_score]
        extra += [
            (name, reader.adapter.labels.get(int(class_id), str(class_id)), float(score))
            for row, (class_id, score) in enumerate(zip(instances.class_ids, instances.scores, strict=True))
            if row not in partners and score >= limits.min_score
        ]
    return Parity(len(keys), limits, tuple(pairs), tuple(extra), tuple(name for name in reference if name not in keys))


def _refs_of_dataset(images: str, store: Store) -> Mapping[str, ImageRef]:
    """Return key -> reference of each image of a dataset."""
    table = pa.Table.from_batches(listing.read(images, store), listing.REF_SCHEMA)
    return {ref.key: ref for batch in table.to_batches() for ref in listing.refs(batch)}


def _key_of(name: str, keys: Mapping[str, ImageRef]) -> str | None:
    """Return the key of the image with this name: the name itself, else the only one with this end or this stem."""
    if name in keys:
        return name
    by_end = [key for key in keys if f"/{key}".endswith(f"/{name}")]
    by_stem = [key for key in keys if PurePosixPath(key).stem == name]
    return next((matching[0] for matching in (by_end, by_stem) if len(matching) == 1), None)


def _detect(engine: Engine, reader: Reader, ref: ImageRef, reference: ReferenceImage, options: Options) -> Instances:
    """Return the model's rows of one image; raise UserError if the reference has another size of it."""
    prepared = reader.read(ref)
    if prepared is None:
        hint = "Remove the image from the reference, or set --images to readable files."
        raise SourceError("An image cannot be read.", where=redact(ref.uri), found=reader.first_failure(), hint=hint)
    inputs, size_hw = prepared
    if reference.size_hw not in (None, size_hw):
        assert reference.size_hw is not None
        height, width = reference.size_hw
        raise UserError(
            "An image has another size in the reference.",
            where=ref.key,
            found=f"{size_hw[1]}x{size_hw[0]}, reference {width}x{height}",
            hint="Set --images to the images of which the reference was made. Their masks must have the image's size.",
        )
    with engine.infer(inputs) as outputs:
        return reader.adapter.decode(outputs, size_hw, options)


def _pairs(
    image: str, rows: Sequence[ReferenceRow], instances: Instances, labels: Mapping[int, str]
) -> tuple[list[Pair], set[int]]:
    """Return each row of the reference with its partner, and the indices of the model's rows that are partners.

    The rows of the reference choose by falling score: the row of the same class with the largest mask IoU.
    """
    classes = [_class_id(row, labels) for row in rows]
    ious = _ious(instances.rles, [row.counts for row in rows], instances.size_hw)
    partners: set[int] = set()
    pairs = []
    for index in sorted(range(len(rows)), key=lambda index: -rows[index].score):
        row = rows[index]
        free = [i for i, class_id in enumerate(instances.class_ids) if class_id == classes[index] and i not in partners]
        best = max(free, key=lambda i: ious[i, index], default=None)
        name = labels.get(classes[index], row.class_name or str(row.class_index))
        if best is None or ious[best, index] < _PARTNER_IOU:
            pairs.append(Pair(image, name, row.score))
            continue
        partners.add(best)
        box = None if row.box_xyxy is None else float(np.abs(instances.boxes_xyxy[best] - row.box_xyxy).max())
        difference = abs(float(instances.scores[best]) - row.score)
        pairs.append(Pair(image, name, row.score, float(ious[best, index]), difference, box))
    return pairs, partners


def _class_id(row: ReferenceRow, labels: Mapping[int, str]) -> int:
    """Return the category id of a row: by name, by index in the network's order, or as stated; -1 if unknown."""
    if row.class_name is not None:
        return next((class_id for class_id, name in labels.items() if name == row.class_name), -1)
    if row.class_index is not None:
        return list(labels)[row.class_index] if row.class_index < len(labels) else -1
    return -1 if row.class_id is None else row.class_id


def _ious(own: Sequence[str], others: Sequence[str], size_hw: tuple[int, int]) -> NDArray[np.float64]:
    if not own or not others:
        return np.zeros((len(own), len(others)))
    return rle.iou(own, others, size_hw)
