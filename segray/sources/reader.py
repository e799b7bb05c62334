"""Readers of image bytes for workers: whole files, and portions of files that hold many images.

Knows that one ranged request of at most PORTION_BYTES reads neighbours in a shard together. Reserves memory before
filling it. Knows nothing of decoding. No shard stays open from start to end: the connection would idle during
inference, and a broken connection would mean reading from the start again.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from segray._system.memory import MemoryBudget
from segray.errors import ImageError, InfrastructureError
from segray.instances import ImageRef
from segray.limits import ImageLimits
from segray.sources import tar_archive, zip_archive
from segray.sources.parquet_images import Cells
from segray.sources.uris import Inside, inside
from segray.sources.video import VideoFrames, as_bmp
from segray.storage.store import Store

PORTION_BYTES = 16 << 20
# Largest gap between members of one read. Reading so many bytes takes about as long as another request.
_GAP_BYTES = 256 << 10
_MOST_CURSORS = 4
_NOW_AND_THEN_BYTES = 256 << 20

# Returns the bytes of one image of a portion, by its row. Raises ImageError for a row without an image.
_Content = Callable[[int], bytes]


class CoalescedRead:
    """Images that one read brings together.

    rows: indexes of the references, in the order in which to take them. Threads may take images at once. The first
    thread reads for all. Take every row once, or close the portion.
    """

    def __init__(
        self, rows: Sequence[int], size_bytes: int, load: Callable[[], _Content], budget: MemoryBudget
    ) -> None:
        self.rows = tuple(rows)
        self._size, self._load, self._budget = size_bytes, load, budget
        self._loading, self._counting = threading.Lock(), threading.Lock()
        self._left, self._taking = len(self.rows), 0
        self._loan = ExitStack()
        self._content: _Content | None = None
        self._error: Exception | None = None

    @contextmanager
    def take(self, row: int) -> Iterator[bytes]:
        """Yield the bytes of an image, which stay reserved in the memory budget within the context."""
        with self._counting:
            self._left -= 1
            self._taking += 1
        try:
            yield self._loaded()(row)
        finally:
            with self._counting:
                self._taking -= 1
                self._release_if_done()

    def close(self) -> None:
        """Give up the rows that are left, and release their memory."""
        with self._counting:
            self._left = 0
            self._error = self._error or InfrastructureError("the portion was given up")
            self._release_if_done()

    def _loaded(self) -> _Content:
        with self._loading:
            if self._content is None and self._error is None:
                self._loan.enter_context(self._budget.reserve(self._size))
                try:
                    self._content = self._load()
                except Exception as error:
                    self._error = error
            if self._content is None:
                raise self._error or AssertionError("unreachable")
            return self._content

    def _release_if_done(self) -> None:
        if self._left <= 0 and not self._taking:
            self._content = None
            self._loan.close()


class Files:
    """The files of a store, with open readers for files that are read from front to back.

    Threads may share an instance.
    """

    def __init__(self, store: Store, limits: ImageLimits, budget: MemoryBudget) -> None:
        self._store, self._limits, self._budget = store, limits, budget
        self._cursors = _ReaderPool(_MOST_CURSORS)

    def portions(self, refs: Sequence[ImageRef]) -> list[CoalescedRead]:
        """Return every image in one portion, in an order that reads each file from front to back."""
        groups: dict[tuple[str, ...], list[tuple[Inside | None, int]]] = defaultdict(list)
        for row, ref in enumerate(refs):
            place = inside(ref.uri)
            alone = place is None or place.kind == "unreadable" or self._too_large(place)
            at = (str(row),) if alone or place is None else _together(place)
            groups[at].append((place, row))
        found: list[CoalescedRead] = []
        for group in groups.values():
            place, row = group[0]
            if place is None:
                found.append(self._portion([row], refs[row].size_bytes, partial(self._whole, refs[row].uri)))
            elif place.kind == "unreadable" or self._too_large(place):
                found.append(self._portion([row], 0, partial(self._refused, place)))
            else:
                found += self._parts([(each, row) for each, row in group if each is not None], refs)
        return found

    def read(self, ref: ImageRef) -> bytes:
        """Return the bytes of one image. Raises as `CoalescedRead.take` does."""
        (portion,) = self.portions([ref])
        with portion.take(0) as data:
            return data

    def close(self) -> None:
        """Close all open readers."""
        self._cursors.close()

    def _too_large(self, place: Inside) -> bool:
        return place.kind in ("tar", "zip") and max(place.numbers[1:3]) > self._limits.max_bytes

    def _portion(self, rows: Sequence[int], size_bytes: int, load: Callable[[], _Content]) -> CoalescedRead:
        return CoalescedRead(rows, max(size_bytes, 0), load, self._budget)

    def _parts(self, group: list[tuple[Inside, int]], refs: Sequence[ImageRef]) -> Iterator[CoalescedRead]:
        """Yield portions of one group's images, from the front of the file to the back."""
        group.sort(key=lambda each: (each[0].numbers, each[1]))
        kind, file = group[0][0].kind, group[0][0].file
        if kind in ("tar", "zip"):
            for span in _spans([_Span(*_extent(place), [(place, row)]) for place, row in group]):
                rows = [row for _, row in span.images]
                yield self._portion(rows, span.stop - span.start, partial(self._span, kind, file, span))
            return
        for part in _by_size(group, refs):
            size_bytes = sum(max(refs[row].size_bytes, 0) for _, row in part)
            load = self._cells if kind == "parquet" else self._frames
            yield self._portion([row for _, row in part], size_bytes, partial(load, refs[part[0][1]].version, part))

    # ---- loading ----

    def _whole(self, uri: str) -> _Content:
        # One byte over the limit is enough for headers.admit to see it.
        data = self._store.read(uri, self._limits.max_bytes + 1)
        return lambda row: data

    def _refused(self, place: Inside) -> _Content:
        if place.kind == "unreadable":
            raise ImageError(place.reason, stage="read", where=place.file)
        found = f"{max(place.numbers[1:3])} bytes"
        raise ImageError(f"more than {self._limits.max_bytes} bytes (image.max_bytes)", stage="read", found=found)

    def _span(self, kind: str, file: str, span: _Span) -> _Content:
        data = memoryview(self._store.read_range(file, span.start, span.stop - span.start))
        places = {row: place for place, row in span.images}

        def content(row: int) -> bytes:
            numbers = places[row].numbers
            part = data[max(0, numbers[0] - span.start) :]
            if kind == "zip":
                return zip_archive.extract(part, *numbers[1:])
            header = bytes(data[max(0, numbers[0] - tar_archive.BLOCK_BYTES - span.start) : numbers[0] - span.start])
            return _member(header, bytes(part[: numbers[1]]), numbers[1])

        return content

    def _cells(self, version: str, part: list[tuple[Inside, int]]) -> _Content:
        file, (column, group, _) = part[0][0].file, part[0][0].numbers
        key = (file, version, str(column), str(group))
        with self._cursors.hold(key, lambda: Cells(self._store.reader(file), column, group)) as cells:
            return _kept(part, lambda place: cells.at(place.numbers[2]))

    def _frames(self, version: str, part: list[tuple[Inside, int]]) -> _Content:
        file, limits = part[0][0].file, self._limits

        def opened() -> VideoFrames:
            return VideoFrames(lambda: self._store.reader(file), limits.max_pixels, limits.max_side_px)

        with self._cursors.hold((file, version), opened) as frames:
            found = _kept(part, lambda place: frames.at(place.numbers[0]))
        return lambda row: as_bmp(found(row))


def by_uri(store: Store) -> Callable[[str], bytes]:
    """Return a function that reads one image by its URI in the tables.

    The image may be a part of another file. The function suits single images, not bulk reads. The function raises
    ImageError for an unreadable image inside another file, and otherwise as Store does.
    """
    files = Files(store, ImageLimits(), MemoryBudget(_NOW_AND_THEN_BYTES))
    return lambda uri: store.read(uri) if inside(uri) is None else files.read(ImageRef(uri, uri))


def _together(place: Inside) -> tuple[str, ...]:
    """Return the key of the group whose images are read together."""
    same = place.numbers[:2] if place.kind == "parquet" else ()
    return (place.kind, place.file, *map(str, same))


def _kept(part: list[tuple[Inside, int]], read: Callable[[Inside], Any]) -> Callable[[int], Any]:
    """Read each image now, and return a function that gives the images by row.

    An image that cannot be read raises its ImageError only when asked for, so its neighbours stay readable.
    """
    found: dict[int, Any] = {}
    for place, row in part:
        try:
            found[row] = read(place)
        except ImageError as error:
            found[row] = error

    def content(row: int) -> Any:
        if isinstance(found[row], ImageError):
            raise found[row]
        return found.pop(row)

    return content


def _member(header: bytes, data: bytes, size_bytes: int) -> bytes:
    if len(data) < size_bytes:
        found = f"{len(data)} of {size_bytes} bytes"
        raise ImageError("the archive ends inside this member", stage="read", found=found)
    if not tar_archive.intact(header, size_bytes):
        raise ImageError("the shard is not the one that was planned", stage="read", found="another header at its place")
    return data


# ---- which bytes are read together ----------------------------------------------------------------


@dataclass
class _Span:
    """The bytes start to stop-1 of a file, and the images within them."""

    start: int
    stop: int
    images: list[tuple[Inside, int]] = field(default_factory=list)


def _extent(place: Inside) -> tuple[int, int]:
    offset, stored = place.numbers[:2]
    if place.kind == "tar":  # with the header, which shows whether the member is still the planned one
        return max(0, offset - tar_archive.BLOCK_BYTES), offset + stored
    return offset, offset + stored + zip_archive.SLACK_BYTES


def _spans(members: list[_Span]) -> list[_Span]:
    """Return spans of members that lie close together, each of PORTION_BYTES at most.

    A larger member gets a span of its own.
    """
    found = members[:1]
    for each in members[1:]:
        last, stop = found[-1], max(found[-1].stop, each.stop)
        if each.start - last.stop <= _GAP_BYTES and stop - last.start <= PORTION_BYTES:
            last.stop = stop
            last.images += each.images
        else:
            found.append(each)
    return found


def _by_size(group: list[tuple[Inside, int]], refs: Sequence[ImageRef]) -> list[list[tuple[Inside, int]]]:
    parts: list[list[tuple[Inside, int]]] = []
    held = 0
    for each in group:
        size_bytes = max(refs[each[1]].size_bytes, 0)
        if not parts or held + size_bytes > PORTION_BYTES:
            parts.append([])
            held = 0
        parts[-1].append(each)
        held += size_bytes
    return parts


# ---- files that are read from front to back --------------------------------------------------------


@dataclass
class _Held:
    lock: threading.Lock = field(default_factory=threading.Lock)
    cursor: Any = None
    users: int = 0


class _ReaderPool:
    """Open readers that continue where they stopped. The most recently used ones stay open."""

    def __init__(self, most: int) -> None:
        self._most, self._lock = most, threading.Lock()
        self._held: OrderedDict[tuple[str, ...], _Held] = OrderedDict()

    @contextmanager
    def hold(self, key: tuple[str, ...], opened: Callable[[], Any]) -> Iterator[Any]:
        """Yield the reader of this key to one thread at a time. After an error, the next call opens the reader anew."""
        with self._lock:
            held = self._held.setdefault(key, _Held())
            self._held.move_to_end(key)
            held.users += 1
            idle = [each for each, other in self._held.items() if not other.users]
            leaving = [self._held.pop(each) for each in idle[: max(0, len(self._held) - self._most)]]
        for each in leaving:
            _close(each)
        try:
            with held.lock:
                try:
                    if held.cursor is None:
                        held.cursor = opened()
                    yield held.cursor
                except BaseException:
                    _close(held)
                    raise
        finally:
            with self._lock:
                held.users -= 1

    def close(self) -> None:
        with self._lock:
            leaving, self._held = list(self._held.values()), OrderedDict()
        for each in leaving:
            with each.lock:
                _close(each)


def _close(held: _Held) -> None:
    cursor, held.cursor = held.cursor, None
    if cursor is not None:
        cursor.close()
