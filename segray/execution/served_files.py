"""Whether storage still serves files: the files that each bucket, host or folder served last, read again.

Knows buckets, hosts, folders and single reads. Knows nothing of images, tasks or the rows of images.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from itertools import islice, takewhile

from segray.errors import AccessError, InfrastructureError
from segray.sources.uris import file_of
from segray.storage.store import Store
from segray.storage.uris import bucket_and_key, is_http, parent, scheme

_MAX_PLACES, _MAX_FILES, _MAX_OTHER_PLACES, _MAX_FOLDERS = 4096, 3, 3, 64
# Some hosts answer with a page in place of a file. Pages begin with blanks and "<", and no image does.
_PAGE_BYTES, _BLANKS = 64, b"\xef\xbb\xbf \t\r\n"


class ServedFiles:
    """The files that storage served last, by place. Threads may share it.

    A place is a bucket, a host or a local folder. Local folders have no host in common: a disk may go away while others
    stay. The place of a file in an unknown local folder is the last folder with the longest common path.
    """

    def __init__(self, store: Store) -> None:
        self._store, self._lock = store, threading.Lock()
        self._files: OrderedDict[str, deque[str]] = OrderedDict()

    def add(self, uri: str) -> None:
        """Record that storage served the file of an image."""
        file = file_of(uri)
        place = _place(file)
        with self._lock:
            files = self._files.setdefault(place, deque(maxlen=_MAX_FILES))
            if file not in files:
                files.append(file)
            self._files.move_to_end(place)
            if len(self._files) > _MAX_PLACES:
                self._files.popitem(last=False)

    def has_served(self, uri: str) -> bool:
        """Return whether the place of an image has served a file."""
        with self._lock:
            return _place(file_of(uri)) in self._files

    def place_serves(self, uri: str, max_bytes: int = _PAGE_BYTES) -> bool:
        """Return whether the place of an image serves so many bytes of another file, or the whole file, now."""
        return self._is_any_served(self._others_of(uri), max_bytes)

    def place_is_lost(self, uri: str) -> bool:
        """Return whether the place of an image served other files before and serves none of them now.

        An unmounted disk is such a place, and so is a host that has lost all its files or answers with pages.
        """
        others = self._others_of(uri)
        return bool(others) and not self._is_any_served(others, _PAGE_BYTES)

    def another_serves(self, uri: str) -> bool:
        """Return whether a place other than that of an image serves a file now."""
        own = _place(file_of(uri))
        with self._lock:
            files = [files[-1] for place, files in reversed(self._files.items()) if place != own]
        return any(self._is_any_served([file], _PAGE_BYTES) for file in files[:_MAX_OTHER_PLACES])

    def _others_of(self, uri: str) -> list[str]:
        """Return files other than that of an image, which the place of the image served, the last first."""
        file = file_of(uri)
        place = _place(file)
        with self._lock:
            if place not in self._files and not scheme(file):
                folders = list(islice((folder for folder in reversed(self._files) if not scheme(folder)), _MAX_FOLDERS))
                place = max(folders, key=lambda folder: _depth_in_common(folder, place), default=place)
            return [other for other in reversed(self._files.get(place, ())) if other != file]

    def _is_any_served(self, files: Sequence[str], max_bytes: int) -> bool:
        """Return whether one of the files of a place is served, and not a page. An outage ends the search."""
        for file in files:
            try:
                start = self._store.read(file, max_bytes, retries=0)
            except (FileNotFoundError, AccessError):
                continue
            except InfrastructureError:
                return False
            if not (is_http(file) and start.lstrip(_BLANKS).startswith(b"<")):
                return True
        return False


def _depth_in_common(folder: str, other: str) -> int:
    """Return the number of folders that two paths have in common, from the root on."""
    pairs = zip(folder.split("/"), other.split("/"), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _place(file: str) -> str:
    """Return the bucket or host of a file as SCHEME://NAME, or its local folder."""
    kind = scheme(file)
    return f"{kind}://{bucket_and_key(file)[0]}" if kind else parent(file)
