"""One image of a label set with its instances, read from where it was labelled.

Knows the rows of an image and the size that they hold for. Drawing belongs to imaging/drawing.py.
"""

from __future__ import annotations

import difflib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from segray._system.memory import MemoryBudget
from segray.errors import ImageError, UserError
from segray.imaging.decode import Pixels, decode
from segray.instances import ImageRef, Instances
from segray.label_set.run_records import source_store
from segray.label_set.schema import BBOX
from segray.label_set.snapshot import Snapshot
from segray.limits import DEFAULT_LIMITS
from segray.sources.reader import Files
from segray.storage.store import Store

_COLUMNS = ["instance", "class_id", "score", *BBOX, "rle"]
_FILES_BYTES = 64 << 20
# Keys among which the nearest is looked for.
_KEYS_COMPARED = 10_000


def labelled_image(state: Snapshot, key: str, store: Store) -> Instances:
    """Return the instances of an image, with the image.

    Args:
        state: The label set.
        key: The image's key, as in `image_key`.
        store: Storage of the label set. The images are read as the latest run reached them.

    Raises:
        UserError: The label set has no such image.
        ImageError: The image cannot be decoded, or has another size than the labelled one.
        FileNotFoundError: The image is gone.
    """
    row = _row_of(state, key)
    instances = _instances_of(state, key, (row["height"], row["width"]))
    pixels = _pixels_of(ImageRef(key, row["uri"], row["version"], row["bytes"]), source_store(store, state.root))
    if row["status"] == "failed":
        return Instances.empty((pixels.shape[0], pixels.shape[1])).with_image(pixels, state.classes)
    check_size(pixels.shape[:2], instances.size_hw, row["uri"])
    return instances.with_image(pixels, state.classes)


def check_size(size_hw: tuple[int, ...], labelled_hw: tuple[int, int], uri: str) -> None:
    """Raise ImageError for an image of another size than the labelled one. Sizes are of upright images, in pixels."""
    if size_hw != labelled_hw:
        raise ImageError(
            "the image has changed since it was labelled",
            where=uri,
            found=f"{size_hw[1]}x{size_hw[0]}, labelled as {labelled_hw[1]}x{labelled_hw[0]}",
            hint="label the image again: run `segray label`",
        )


def _row_of(state: Snapshot, key: str) -> dict[str, Any]:
    columns = ["uri", "version", "bytes", "height", "width", "status"]
    rows = state.images.to_table(columns=columns, filter=ds.field("image_key") == key).to_pylist()
    if not rows:
        keys = state.images.head(_KEYS_COMPARED, columns=["image_key"]).column("image_key").to_pylist()
        nearest = difflib.get_close_matches(key, keys, 1, 0.0)
        hint = f"did you mean {nearest[0]!r}?" if nearest else "the label set has no images"
        raise UserError("the label set has no such image", where=state.root, found=repr(key), hint=hint)
    row: dict[str, Any] = rows[0]
    return row


def _instances_of(state: Snapshot, key: str, size_hw: tuple[int, int]) -> Instances:
    table: pa.Table = state.instances.to_table(columns=_COLUMNS, filter=ds.field("image_key") == key).sort_by(
        "instance"
    )
    xywh = np.stack([table.column(name).to_numpy() for name in BBOX], axis=1).astype(np.float32).reshape(-1, 4)
    return Instances(
        table.column("class_id").to_numpy().astype(np.int32),
        table.column("score").to_numpy().astype(np.float32),
        np.hstack([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]]),
        tuple(table.column("rle").to_pylist()),
        size_hw,
    )


def _pixels_of(ref: ImageRef, store: Store) -> Pixels:
    files = Files(store, DEFAULT_LIMITS, MemoryBudget(_FILES_BYTES))
    try:
        data = files.read(ref)
    finally:
        files.close()
    return decode(data, DEFAULT_LIMITS).image
