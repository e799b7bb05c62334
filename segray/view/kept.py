"""Values that take time to make, kept in memory up to a number of bytes. Knows names and sizes alone."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


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
