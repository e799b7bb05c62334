"""Readers of image bytes for workers: whole files, and portions of files that hold many images.

A portion is a group of images that one read brings together. One ranged request of at most PORTION_BYTES reads
neighbours in a shard. Memory is reserved before it is filled. Knows nothing of decoding. No shard stays open from start
to end: the connection would be idle during inference, and a broken connection would mean reading from the start again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from segray._system.memory import MemoryBudget
from segray.errors import ImageError, InfrastructureError
from segray.instances import ImageRef
from segray.limits import ImageLimits
from segray.sources import tar_archive, zip_archive
from segray.sources.uris import ImageLocation, inside
from segray.sources.video import VideoFrames, as_bmp
from segray.storage.store import Store

PORTION_BYTES = 16 << 20
# Largest gap between members of one read. Reading so many bytes takes about as long as another request.
_GAP_BYTES = 256 << 10
_MAX_OPEN_READERS = 4
_SINGLE_READS_BYTES = 256 << 20  # memory budget of `by_uri`

# Returns the bytes of one image of a portion, by the row of the image. Raises ImageError for a row without an image.
_Content = Callable[[int], bytes]


class CoalescedRead:
    """A portion: images that one read brings together.

    rows: indexes of the references, in the order in which to take them. Threads may take images at once. The first
    thread reads for all. Take every row once, or close the portion.
    """

    def __init__(
        self, rows: Sequence[int], size_bytes: int, load: Callable[[], _Content], budget: MemoryBudget
    ) -> None:
        self.rows = tuple(rows)
        self._size, self._load, self._budget = size_bytes, load, budget
        self._load_lock, self._count_lock = threading.Lock(), threading.Lock()
        self._rows_left, self._taking = len(self.rows), 0
        self._reservation = ExitStack()
        self._content: _Content | None = None
        self._error: Exception | None = None

    @contextmanager
    def take(self, row: int) -> Iterator[bytes]:
        """Yield the bytes of an image, which stay reserved in the memory budget within the context."""
        with self._count_lock:
            self._rows_left -= 1
            self._taking += 1
        try:
            yield self._load_once()(row)
        finally:
            with self._count_lock:
                self._taking -= 1
                self._release_if_done()

    def close(self) -> None:
        """Give up the rows that nobody has taken, and release their memory."""
        with self._count_lock:
            self._rows_left = 0
            self._error = self._error or InfrastructureError("the read was cancelled before an image was taken")
            self._release_if_done()

    def _load_once(self) -> _Content:
        with self._load_lock:
            if self._content is None and self._error is None:
                self._reservation.enter_context(self._budget.reserve(self._size))
                try:
                    self._content = self._load()
                except Exception as error:
                    self._error = error
            if self._content is None:
                raise self._error or AssertionError("unreachable")
            return self._content

    def _release_if_done(self) -> None:
        if self._rows_left <= 0 and not self._taking:
            self._content = None
            self._reservation.close()


class Files:
    """The files of a store, with open readers for files that are read from front to back.

    Threads may share an instance.
    """

    def __init__(self, store: Store, limits: ImageLimits, budget: MemoryBudget) -> None:
        self._store, self._limits, self._budget = store, limits, budget
        self._readers = _ReaderPool(_MAX_OPEN_READERS)

    def portions(self, refs: Sequence[ImageRef]) -> list[CoalescedRead]:
        """Return every image in one portion, in an order that reads each file from front to back."""
        locations = [inside(ref.uri) for ref in refs]
        groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for row, location in enumerate(locations):
            is_single = location is None or self._is_refused(location)
            groups[(str(row),) if is_single or location is None else _group_key(location)].append(row)
        portions: list[CoalescedRead] = []
        for rows in groups.values():
            row = rows[0]
            location = locations[row]
            if location is None:
                portions.append(self._portion([row], refs[row].size_bytes, partial(self._read_file, refs[row].uri)))
            elif self._is_refused(location):
                portions.append(self._portion([row], 0, partial(self._refuse, location)))
            else:
                group = [_InsideImage(at, row) for row in rows if (at := locations[row]) is not None]
                portions += self._group_portions(group, refs)
        return portions

    def read(self, ref: ImageRef) -> bytes:
        """Return the bytes of one image. Raises as `CoalescedRead.take` does."""
        (portion,) = self.portions([ref])
        with portion.take(0) as data:
            return data

    def close(self) -> None:
        """Close all open readers."""
        self._readers.close()

    def _is_refused(self, location: ImageLocation) -> bool:
        """Return whether the image cannot be read, or is larger than image.max_bytes."""
        is_too_large = location.kind in ("tar", "zip") and max(location.numbers[1:3]) > self._limits.max_bytes
        return location.kind == "unreadable" or is_too_large

    def _portion(self, rows: Sequence[int], size_bytes: int, load: Callable[[], _Content]) -> CoalescedRead:
        return CoalescedRead(rows, max(size_bytes, 0), load, self._budget)

    def _group_portions(self, group: list[_InsideImage], refs: Sequence[ImageRef]) -> Iterator[CoalescedRead]:
        """Yield portions of one group's images, from the front of the file to the back."""
        group.sort(key=lambda image: (image.location.numbers, image.row))
        kind, file = group[0].location.kind, group[0].location.file
        if kind in ("tar", "zip"):
            for span in _merge_spans([_Span(*_extent(image.location), [image]) for image in group]):
                rows = [image.row for image in span.images]
                yield self._portion(rows, span.stop - span.start, partial(self._read_span, kind, file, span))
            return
        read_part = self._read_cells if kind == "parquet" else self._read_frames
        for part in _split_by_size(group, refs):
            rows = [image.row for image in part]
            size_bytes = sum(max(refs[row].size_bytes, 0) for row in rows)
            yield self._portion(rows, size_bytes, partial(read_part, refs[rows[0]].version, part))

    # ---- loading ----

    def _read_file(self, uri: str) -> _Content:
        # One byte over the limit is enough for headers.admit to refuse the image.
        data = self._store.read(uri, self._limits.max_bytes + 1)
        return lambda row: data

    def _refuse(self, location: ImageLocation) -> _Content:
        if location.kind == "unreadable":
            raise ImageError(location.reason, stage="read", where=location.file)
        found = f"{max(location.numbers[1:3])} bytes"
        raise ImageError(f"more than {self._limits.max_bytes} bytes (image.max_bytes)", stage="read", found=found)

    def _read_span(self, kind: str, file: str, span: _Span) -> _Content:
        data = memoryview(self._store.read_range(file, span.start, span.stop - span.start))
        locations = {image.row: image.location for image in span.images}

        def content(row: int) -> bytes:
            numbers = locations[row].numbers
            part = data[max(0, numbers[0] - span.start) :]
            if kind == "zip":
                return zip_archive.extract(part, *numbers[1:])
            header = bytes(data[max(0, numbers[0] - tar_archive.BLOCK_BYTES - span.start) : numbers[0] - span.start])
            return _check_member(header, bytes(part[: numbers[1]]), numbers[1])

        return content

    def _read_cells(self, version: str, part: list[_InsideImage]) -> _Content:
        from segray.sources.parquet_images import CellReader  # Arrow, which readers of other files do not need.

        file, (column, group, _) = part[0].location.file, part[0].location.numbers
        key = (file, version, str(column), str(group))
        with self._readers.hold(key, lambda: CellReader(self._store.reader(file), column, group)) as cells:
            return _read_all(part, lambda location: cells.at(location.numbers[2]))

    def _read_frames(self, version: str, part: list[_InsideImage]) -> _Content:
        file, limits = part[0].location.file, self._limits

        def open_frames() -> VideoFrames:
            return VideoFrames(lambda: self._store.reader(file), limits.max_pixels, limits.max_side_px)

        with self._readers.hold((file, version), open_frames) as frames:
            picture = _read_all(part, lambda location: frames.at(location.numbers[0]))
        return lambda row: as_bmp(picture(row))


def by_uri(store: Store) -> Callable[[str], bytes]:
    """Return a function that reads one image by its URI in the tables.

    The image may be a part of another file. The function suits single images, not bulk reads. The function raises
    ImageError for an unreadable image inside another file, and all other errors as Store raises them.
    """
    files = Files(store, ImageLimits(), MemoryBudget(_SINGLE_READS_BYTES))
    return lambda uri: store.read(uri) if inside(uri) is None else files.read(ImageRef(uri, uri))


def _group_key(location: ImageLocation) -> tuple[str, ...]:
    """Return the key of the group whose images are read together."""
    column_and_row_group = location.numbers[:2] if location.kind == "parquet" else ()
    return (location.kind, location.file, *map(str, column_and_row_group))


def _read_all(part: list[_InsideImage], read: Callable[[ImageLocation], Any]) -> Callable[[int], Any]:
    """Read each image now, and return a function that gives the images by row.

    The function raises the ImageError of an image that could not be read. The neighbours stay readable.
    """
    contents: dict[int, Any] = {}
    for image in part:
        try:
            contents[image.row] = read(image.location)
        except ImageError as error:
            contents[image.row] = error

    def content(row: int) -> Any:
        if isinstance(contents[row], ImageError):
            raise contents[row]
        return contents.pop(row)

    return content


def _check_member(header: bytes, data: bytes, size_bytes: int) -> bytes:
    """Return the data of a tar member. Raise ImageError if the data is short or the header is not the planned one."""
    if len(data) < size_bytes:
        found = f"{len(data)} of {size_bytes} bytes"
        raise ImageError("the archive ends inside this member", stage="read", found=found)
    if not tar_archive.intact(header, size_bytes):
        raise ImageError("the shard is not the one that was planned", stage="read", found="another header at its place")
    return data


# ---- which bytes are read together ----------------------------------------------------------------


class _InsideImage(NamedTuple):
    """An image inside another file. row: index of the image's reference."""

    location: ImageLocation
    row: int


@dataclass
class _Span:
    """The bytes start to stop-1 of a file, and the images within these bytes."""

    start: int
    stop: int
    images: list[_InsideImage] = field(default_factory=list)


def _extent(location: ImageLocation) -> tuple[int, int]:
    """Return start and stop of the bytes that an archive member needs."""
    offset, stored = location.numbers[:2]
    if location.kind == "tar":  # The header shows whether the member is still the planned one.
        return max(0, offset - tar_archive.BLOCK_BYTES), offset + stored
    return offset, offset + stored + zip_archive.SLACK_BYTES


def _merge_spans(members: list[_Span]) -> list[_Span]:
    """Return the spans with neighbours merged, each span of PORTION_BYTES at most.

    A larger member keeps a span of its own.
    """
    spans = members[:1]
    for member in members[1:]:
        span, stop = spans[-1], max(spans[-1].stop, member.stop)
        if member.start - span.stop <= _GAP_BYTES and stop - span.start <= PORTION_BYTES:
            span.stop = stop
            span.images += member.images
        else:
            spans.append(member)
    return spans


def _split_by_size(group: list[_InsideImage], refs: Sequence[ImageRef]) -> list[list[_InsideImage]]:
    """Return the group in parts of neighbours, each of PORTION_BYTES at most or of one image."""
    parts: list[list[_InsideImage]] = []
    part_bytes = 0
    for image in group:
        size_bytes = max(refs[image.row].size_bytes, 0)
        if not parts or part_bytes + size_bytes > PORTION_BYTES:
            parts.append([])
            part_bytes = 0
        parts[-1].append(image)
        part_bytes += size_bytes
    return parts


# ---- files that are read from front to back --------------------------------------------------------


@dataclass
class _PooledReader:
    """A reader of the pool. users: threads that hold the reader or wait for the reader. reader: None if closed."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    reader: Any = None
    users: int = 0

    def close(self) -> None:
        reader, self.reader = self.reader, None
        if reader is not None:
            reader.close()


class _ReaderPool:
    """Open readers that continue where they stopped. The most recently used readers stay open."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._pooled: OrderedDict[tuple[str, ...], _PooledReader] = OrderedDict()

    @contextmanager
    def hold(self, key: tuple[str, ...], open_reader: Callable[[], Any]) -> Iterator[Any]:
        """Yield the reader of this key to one thread at a time. After an error, the next call opens the reader anew."""
        with self._lock:
            pooled = self._pooled.setdefault(key, _PooledReader())
            self._pooled.move_to_end(key)
            pooled.users += 1
            idle_keys = [other for other, candidate in self._pooled.items() if not candidate.users]
            surplus = max(0, len(self._pooled) - self._most)
            evicted = [self._pooled.pop(idle) for idle in idle_keys[:surplus]]
        for unused in evicted:
            unused.close()
        try:
            with pooled.lock:
                try:
                    if pooled.reader is None:
                        pooled.reader = open_reader()
                    yield pooled.reader
                except BaseException:
                    pooled.close()
                    raise
        finally:
            with self._lock:
                pooled.users -= 1

    def close(self) -> None:
        with self._lock:
            all_pooled, self._pooled = list(self._pooled.values()), OrderedDict()
        for pooled in all_pooled:
            with pooled.lock:
                pooled.close()
