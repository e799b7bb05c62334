"""The pictures of the page: thumbnails with their masks drawn, and whole images.

Knows how images and masks of a label set are read and kept in memory. Knows nothing of HTTP.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from segray.analytics.query import key_ranges
from segray.analytics.query.key_ranges import NO_METADATA_CACHE
from segray.analytics.query.labelled_image import check_size
from segray.analytics.reports.contact_sheet import LABEL
from segray.imaging import drawing
from segray.imaging.drawing import Colour, Label, colours_of_classes
from segray.label_set.snapshot import Snapshot
from segray.view.kept import Kept
from segray.view.selection import Range, Selection

_THUMBNAIL_PX, _THUMBNAIL_QUALITY, _PICTURE_QUALITY = 320, 80, 95
# What is kept in memory: pictures as JPEG, and rows of instances, whose Python objects take about _ROW_BYTES each.
_FILES_BYTES, _LABELS_BYTES, _ROW_BYTES = 144 << 20, 64 << 20, 700
_MOST_PX = 65_535  # side of a JPEG
# A decoded picture may take hundreds of megabytes, and a browser asks for many at once.
_DECODED_AT_ONCE = 3


@dataclass(frozen=True)
class LabelledKey:
    """An image as a row of `images`. size_hw: of the upright image, in pixels."""

    key: str
    uri: str
    size_hw: tuple[int, int]


class Pictures:
    """The pictures of one state of a label set. Methods may be called from several threads.

    state: the label set. read: returns the bytes of an image, given its URI.
    """

    def __init__(self, state: Snapshot, read: Callable[[str], bytes]) -> None:
        self._state, self._read = state, read
        self.colours = colours_by_frequency(state)
        self._labels: Kept[Sequence[dict[str, Any]]] = Kept(_LABELS_BYTES)
        self._files: Kept[bytes] = Kept(_FILES_BYTES)
        self._lock = threading.Lock()
        self._expected: dict[str, Future[Mapping[str, Sequence[dict[str, Any]]]]] = {}  # scans under way, by key
        self._scans = ThreadPoolExecutor(2, "segray-view-masks")
        self._decoding = threading.BoundedSemaphore(_DECODED_AT_ONCE)

    def expect(self, keys: Sequence[str]) -> None:
        """Begin to read the masks of images that will be asked for, all by one scan."""
        with self._lock:
            missing = [key for key in keys if key not in self._labels and key not in self._expected]
            if missing:
                scan = self._scans.submit(self._scan, missing)
                self._expected.update(dict.fromkeys(missing, scan))

    def instances(self, key: str) -> Sequence[dict[str, Any]]:
        """Return the rows of an image's instances with their masks, in the order of the column `instance`."""
        with self._lock:
            scan = self._expected.get(key)
        if scan is not None:
            return scan.result()[key]
        rows = self._labels.get(key)
        return self._scan([key])[key] if rows is None else rows

    def _scan(self, keys: Sequence[str]) -> Mapping[str, Sequence[dict[str, Any]]]:
        try:
            among = key_ranges.of_images(keys)
            columns = ["image_key", "instance", "area", *LABEL]
            table = self._state.instances.to_table(columns=columns, filter=among, **NO_METADATA_CACHE)
            rows: dict[str, list[dict[str, Any]]] = {key: [] for key in keys}
            for row in table.sort_by("instance").to_pylist():
                rows[row["image_key"]].append(row)
            for key, own in rows.items():
                self._labels.put(key, own, sum((len(row["rle"]) + _ROW_BYTES for row in own), _ROW_BYTES))
            return rows
        finally:
            with self._lock:
                for key in keys:
                    self._expected.pop(key, None)

    def thumbnail(self, image: LabelledKey, shown: Selection, min_score: float) -> bytes:
        """Return a small JPEG of an image with its masks drawn.

        Args:
            image: The image.
            shown: Masks of its classes, scores and areas are drawn. `where` is not applied.
            min_score: Smallest score of drawn masks, if `shown` has none.

        Raises:
            ImageError: The image cannot be decoded, or has another size than the labelled one.
            FileNotFoundError: The image is gone.
        """
        name = ("thumbnail", image.key, shown.class_ids, shown.score, shown.area, min_score)
        return self._files.of(name, lambda: self._draw(image, shown, min_score), len)

    def picture(self, image: LabelledKey) -> bytes:
        """Return the upright image as a JPEG of its full size. Raise as `thumbnail` does."""
        return self._files.of(("picture", image.key), lambda: self._upright(image), len)

    def _draw(self, image: LabelledKey, shown: Selection, min_score: float) -> bytes:
        drawn = shown if shown.score.low is not None else replace(shown, score=Range(min_score, shown.score.high))
        labels = [Label.from_row(row) for row in self.instances(image.key) if drawn.holds(row)]
        with self._decoding:
            return self._drawn(image, labels)

    def _drawn(self, image: LabelledKey, labels: Sequence[Label]) -> bytes:
        data = self._read(image.uri)
        if not all(image.size_hw):  # An image that failed before its size was known has no masks either.
            pixels = drawing.decode_for_drawing(data, (_THUMBNAIL_PX, _THUMBNAIL_PX)).image
            size_wh = drawing.fitted_wh((pixels.shape[0], pixels.shape[1]), _THUMBNAIL_PX)
            return drawing.jpeg(drawing.draw(pixels, (), {}, size_wh=size_wh), _THUMBNAIL_QUALITY)
        size_hw, size_wh = image.size_hw, drawing.fitted_wh(image.size_hw, _THUMBNAIL_PX)
        decoded = drawing.decode_for_drawing(data, size_wh)
        check_size(decoded.size_hw, size_hw, image.uri)
        drawn = drawing.draw(decoded.image, labels, self.colours, size_wh=size_wh, size_hw=size_hw, tags=False)
        return drawing.jpeg(drawn, _THUMBNAIL_QUALITY)

    def _upright(self, image: LabelledKey) -> bytes:
        whole_wh = (image.size_hw[1] or _MOST_PX, image.size_hw[0] or _MOST_PX)
        with self._decoding:
            decoded = drawing.decode_for_drawing(self._read(image.uri), whole_wh)
            if all(image.size_hw):
                check_size(decoded.size_hw, image.size_hw, image.uri)
            return drawing.jpeg(decoded.image, _PICTURE_QUALITY)


def colours_by_frequency(state: Snapshot) -> dict[int, Colour]:
    """Return a colour for each class, by category id. The most frequent classes have distinct colours."""
    frequent = sorted(state.classes, key=lambda number: -state.rows_by_class.get(state.partitions[number], 0))
    by_rank = colours_of_classes(range(len(frequent)))
    return {class_id: by_rank[rank] for rank, class_id in enumerate(frequent)}
