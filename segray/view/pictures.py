"""The pictures of the page: thumbnails with their masks drawn, and whole images.

Knows how images and masks of a label set are read and kept in memory. Knows nothing of HTTP.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from segray.analytics.query import key_ranges
from segray.analytics.query.key_ranges import NO_METADATA_CACHE
from segray.analytics.reports.contact_sheet import LABEL
from segray.errors import ImageError
from segray.imaging import drawing
from segray.imaging.drawing import Colour, Label, colours_of_classes
from segray.label_set.snapshot import Snapshot
from segray.view.selection import Selection

_THUMBNAIL_PX, _THUMBNAIL_QUALITY, _PICTURE_QUALITY = 320, 80, 95
# What is kept in memory: pictures as JPEG, and rows of instances, whose Python objects take about _ROW_BYTES each.
_FILES_BYTES, _LABELS_BYTES, _ROW_BYTES = 144 << 20, 64 << 20, 700
_MOST_PX = 65_535  # side of a JPEG
# A decoded picture may take hundreds of megabytes, and a browser asks for many at once.
_DECODED_AT_ONCE = 3


T = TypeVar("T")


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
        labels = [Label.from_row(row) for row in self.instances(image.key) if _is_shown(row, shown, min_score)]
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
        _check_size(decoded.size_hw, size_hw, image)
        drawn = drawing.draw(decoded.image, labels, self.colours, size_wh=size_wh, size_hw=size_hw, tags=False)
        return drawing.jpeg(drawn, _THUMBNAIL_QUALITY)

    def _upright(self, image: LabelledKey) -> bytes:
        whole_wh = (image.size_hw[1] or _MOST_PX, image.size_hw[0] or _MOST_PX)
        with self._decoding:
            decoded = drawing.decode_for_drawing(self._read(image.uri), whole_wh)
            if all(image.size_hw):
                _check_size(decoded.size_hw, image.size_hw, image)
            return drawing.jpeg(decoded.image, _PICTURE_QUALITY)


def colours_by_frequency(state: Snapshot) -> dict[int, Colour]:
    """Return a colour for each class, by category id. The most frequent classes have distinct colours."""
    frequent = sorted(state.classes, key=lambda number: -state.rows_by_class.get(state.partitions[number], 0))
    by_rank = colours_of_classes(range(len(frequent)))
    return {class_id: by_rank[rank] for rank, class_id in enumerate(frequent)}


class Kept(Generic[T]):
    """Values by name, the least recently used of which leave when they take more than `most_bytes`.

    A value that several threads ask for is made once.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes, self._bytes = most_bytes, 0
        self._values: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()
        self._under_way: dict[Hashable, Future[T]] = {}
        self._lock = threading.Lock()

    def __contains__(self, name: Hashable) -> bool:
        with self._lock:
            return name in self._values

    def get(self, name: Hashable) -> T | None:
        """Return a value, None if it is not kept."""
        with self._lock:
            if name not in self._values:
                return None
            self._values.move_to_end(name)
            return self._values[name][0]

    def put(self, name: Hashable, value: T, size_bytes: int) -> None:
        """Keep a value."""
        with self._lock:
            _, before = self._values.pop(name, (None, 0))
            self._values[name] = value, size_bytes
            self._bytes += size_bytes - before
            while self._bytes > self._most_bytes and len(self._values) > 1:
                _, (_, freed) = self._values.popitem(last=False)
                self._bytes -= freed

    def of(self, name: Hashable, make: Callable[[], T], size: Callable[[T], int]) -> T:
        """Return the value of a name, made if it is not kept. An error is raised to all who wait for it."""
        with self._lock:
            if name in self._values:
                self._values.move_to_end(name)
                return self._values[name][0]
            future = self._under_way.get(name)
            if is_mine := future is None:
                future = self._under_way[name] = Future()
        assert future is not None
        if not is_mine:
            return future.result()
        try:
            value = make()
            self.put(name, value, size(value))
            future.set_result(value)
            return value
        except BaseException as error:
            future.set_exception(error)
            raise
        finally:
            with self._lock:
                del self._under_way[name]


def _is_shown(row: Mapping[str, Any], shown: Selection, min_score: float) -> bool:
    score, area = shown.score, shown.area
    lowest = min_score if score.low is None else score.low
    return (
        (not shown.class_ids or row["class_id"] in shown.class_ids)
        and lowest <= row["score"] <= (math.inf if score.high is None else score.high)
        and (area.low or 0) <= row["area"] <= (math.inf if area.high is None else area.high)
    )


def _check_size(size_hw: tuple[int, int], labelled_hw: tuple[int, int], image: LabelledKey) -> None:
    if size_hw != labelled_hw:
        raise ImageError(
            "the image has changed since it was labelled",
            where=image.uri,
            found=f"{size_hw[1]}x{size_hw[0]}, labelled as {labelled_hw[1]}x{labelled_hw[0]}",
            hint="label the image again: run `segray label`",
        )
