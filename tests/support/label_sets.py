"""Label sets compared, as two runs over the same images must agree; and made, from masks that a test chose."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

import segray
from segray import rle
from segray.instances import image_id
from segray.label_set import batches, commit, merge, run_records, schema
from segray.label_set.class_names import partition_value
from segray.label_set.run_records import LabelSetIdentity
from segray.models.coco_labels import COCO_NAMES
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import join
from segray.synthetic.dataset import scene_at
from segray.tasks import Task

# What differs from run to run whatever happens.
VOLATILE = frozenset({"batch", "run_id", "labelled_at", "attempts"})

Rows = dict[str, list[dict[str, Any]]]


def contents(root: str | Path, ignoring: Collection[str] = (), **storage: Any) -> tuple[Rows, Rows]:
    """Rows of instances and of images, by image_key; instances in order."""
    instances, images = (read(str(root), **storage).to_table() for read in (segray.scan, segray.images))
    without = VOLATILE | set(ignoring)
    return _by_key(instances, without), _by_key(images, without)


def _by_key(table: Any, without: Collection[str]) -> Rows:
    found: Rows = {}
    for row in table.to_pylist():
        found.setdefault(row["image_key"], []).append({k: v for k, v in row.items() if k not in without})
    return {key: sorted(rows, key=lambda row: row.get("instance", 0)) for key, rows in found.items()}


def write(
    root: str | Path,
    images: Mapping[str, Image],
    *,
    classes: Mapping[int, str] | None = None,
    values: Mapping[int, str] | None = None,
) -> str:
    """Commit these images as the next batch of the label set at root, made if need be; returns the root.

    As segray publishes them: staged, merged, one commit for each table. values: the partition value of each class, as
    an earlier version recorded it.
    """
    names, run, store, options = classes or COCO_NAMES, run_records.new_run(str(root)), Store(), StorageOptions()
    commit.create_tables(run.root, options)
    run_records.create_or_check(
        store,
        run.root,
        LabelSetIdentity("made", {}, _classes(names, values)),
    )
    rows = [_row(key, image, names) for key, image in sorted(images.items())]
    name = run_records.staged_name(Task(0, 0, len(rows)))
    store.put(join(run.staged, name), schema.staged_bytes(pa.Table.from_pylist(rows, schema=schema.STAGED)))
    number = batches.batch_numbers(run.root, options)[0] + 1
    batch = merge.merge(run, number, batches.Inputs((name,), {"run_id": run.id}, 1000), options)
    commit.commit(batch, run, options, store)
    return run.root


def _classes(names: Mapping[int, str], values: Mapping[int, str] | None) -> tuple[tuple[int, str, str], ...]:
    return tuple((i, name, values[i] if values else partition_value(name)) for i, name in names.items())


def _row(key: str, image: Image, names: Mapping[int, str]) -> dict[str, Any]:
    height, width = image.size_hw
    found = []
    for number, (class_id, score, counts) in enumerate(image.found):
        box = dict(zip(("bbox_x", "bbox_y", "bbox_w", "bbox_h"), rle.bbox(counts, image.size_hw).tolist(), strict=True))
        found.append({"instance": number, "class_id": class_id, "class_name": names[class_id], "score": score, **box,
                      "area": rle.area(counts), "rle": counts})  # fmt: skip
    uri = image.uri or f"/data/{key}"
    version, size_bytes = image.version or "1", 9
    if Path(uri).is_file():
        stored = Path(uri).stat()
        version, size_bytes = f"{stored.st_size}-{stored.st_mtime_ns}", stored.st_size
    failed = {"stage": "decode", "error": "ImageError", "message": "made to fail"} if image.failed else {}
    return {
        "image_id": image_id(key), "image_key": key, "uri": uri, "version": version, "bytes": size_bytes,
        "width": width, "height": height, "status": "failed" if image.failed else "ok" if found else "empty",
        "n_instances": len(found), "stage": None, "error": None, "message": None, **failed, "attempts": 1,
        "labelled_at": datetime(2026, 1, 1, tzinfo=UTC), "orientation": 1, "instances": found,
    }  # fmt: skip


@dataclass(frozen=True)
class Image:
    """What one image shows. found: category id, score and counts of each instance, best first."""

    size_hw: tuple[int, int]
    found: Sequence[tuple[int, float, str]] = ()
    failed: bool = False
    uri: str = ""
    version: str = ""


def stickers(count: int, seed: int = 0) -> dict[str, Image]:
    """Scenes as the sticker dataset draws them, every object found, with scores that follow its size."""
    images = {}
    for i in range(count):
        scene = scene_at(seed, i)
        size_hw = scene.owners.shape
        counts = [(category, rle.encode(scene.mask(k))) for k, category in enumerate(scene.category_ids)]
        found = [(category, round(1 - 20 / (20 + rle.area(each) ** 0.5), 4), each) for category, each in counts]
        images[f"scene-{i:05d}.jpg"] = Image(size_hw, sorted(found, key=lambda row: -row[1]))
    return images
