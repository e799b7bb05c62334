"""Whether storage still serves files: the file that each host or bucket served last, read again in part.

Knows hosts, buckets and one-byte reads. Knows nothing of images, tasks or the meaning of an error.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from segray.errors import AccessError, InfrastructureError
from segray.sources.uris import inside
from segray.storage.store import Store
from segray.storage.uris import bucket_and_key

_MAX_REMEMBERED, _MAX_READ = 16, 3


class ServedFiles:
    """The files that storage served last, one of each bucket, host or local folder tree. Threads may share it."""

    def __init__(self, store: Store) -> None:
        self._store, self._lock = store, threading.Lock()
        self._last: OrderedDict[str, str] = OrderedDict()

    def add(self, uri: str) -> None:
        """Record that storage served the file of an image."""
        file = _file(uri)
        bucket = bucket_and_key(file)[0]
        with self._lock:
            self._last[bucket] = file
            self._last.move_to_end(bucket)
            if len(self._last) > _MAX_REMEMBERED:
                self._last.popitem(last=False)

    def bucket_serves(self, uri: str) -> bool:
        """Return whether the bucket or host of an image serves another file now."""
        file = _file(uri)
        with self._lock:
            other = self._last.get(bucket_and_key(file)[0])
        return other is not None and other != file and self._is_served(other)

    def any_host_serves(self, uri: str) -> bool:
        """Return whether any host serves a file other than that of an image now. Other hosts are asked first."""
        file = _file(uri)
        own = bucket_and_key(file)[0]
        with self._lock:
            last = list(reversed(self._last.items()))
        others = [other for bucket, other in last if bucket != own][:_MAX_READ]
        same = [other for bucket, other in last if bucket == own and other != file]
        return any(self._is_served(other) for other in others + same)

    def _is_served(self, file: str) -> bool:
        try:
            self._store.read(file, 1, retries=0)
        except FileNotFoundError:
            return True  # The file is gone since; the host answered.
        except (InfrastructureError, AccessError):
            return False
        return True


def _file(uri: str) -> str:
    """Return the URI of the file that an image lies in."""
    location = inside(uri)
    return uri if location is None else location.file
