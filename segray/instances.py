"""Instances, images and failures: frozen values over numpy and strings.

This module knows shapes, dtypes and units. Files, models, Ray and Arrow belong to other modules.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Instances:
    """The n instances that a model found in one image. All columns have the same order.

    class_ids: (n,) int32 category ids (COCO's 1..90 unless the model declares its own).
    scores: (n,) float32, 0..1.
    boxes_xyxy: (n, 4) float32, source pixels, clipped to the image; x1, y1 inclusive, x2, y2 exclusive.
    rles: n COCO compressed counts, column-major over the full image. size_hw: image height and width, in pixels.
    unreadable: number of further output rows with invalid values (NaN, infinity, a class of 16.7).
    """

    class_ids: NDArray[np.int32]
    scores: NDArray[np.float32]
    boxes_xyxy: NDArray[np.float32]
    rles: tuple[str, ...]
    size_hw: tuple[int, int]
    unreadable: int = 0

    def __post_init__(self) -> None:
        n = len(self.rles)
        for name, dtype, shape in (
            ("class_ids", np.int32, (n,)),
            ("scores", np.float32, (n,)),
            ("boxes_xyxy", np.float32, (n, 4)),
        ):
            array = getattr(self, name)
            if array.dtype != dtype or array.shape != shape:
                raise ValueError(
                    f"{name} must be {np.dtype(dtype).name} with shape {shape}, got {array.dtype} {array.shape}"
                )

    def __len__(self) -> int:
        return len(self.rles)

    @classmethod
    def empty(cls, size_hw: tuple[int, int], unreadable: int = 0) -> Instances:
        """Return an instance of this class without rows, with the right dtypes."""
        class_ids, scores, boxes_xyxy = np.zeros(0, np.int32), np.zeros(0, np.float32), np.zeros((0, 4), np.float32)
        return cls(class_ids, scores, boxes_xyxy, (), size_hw, unreadable)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.intp]) -> Instances:
        """Return the instances of these rows.

        rows: (n,) bool mask, or (m,) intp indices in the order of the result.
        """
        indices = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
        return Instances(
            self.class_ids[indices],
            self.scores[indices],
            self.boxes_xyxy[indices],
            tuple(self.rles[i] for i in indices),
            self.size_hw,
            self.unreadable,
        )


def image_id(key: str) -> str:
    """Return the id of an image: the first 32 hex digits of the SHA-256 of its key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]


@dataclass(frozen=True)
class ImageRef:
    """A reference to one image.

    key: path below the dataset's root, or the URI; the image's name in every table. uri: address that storage opens.
    version: ETag, or size and modification time for files; "" if the source gives none. size_bytes: -1 if unknown.
    """

    key: str
    uri: str
    version: str = ""
    size_bytes: int = -1

    @property
    def image_id(self) -> str:
        """Return the id of the image; see `image_id`."""
        return image_id(self.key)


@dataclass(frozen=True)
class ImageFailure:
    """The reason why an image has no labels.

    stage: read, decode, infer, postprocess or process. error: kind of error, such as ImageError. message: error text.
    """

    stage: str
    error: str
    message: str
