"""The tasks that no worker has: waiting tasks, suspects, and withheld images that are tried again later.

Knows the order of tasks, and how a task is cut. Knows nothing of workers, limits of attempts, or clocks.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from segray.tasks import Task


class TaskQueue:
    """A queue of three parts: waiting tasks come first, then suspects, then retries whose delay is over.

    images: number of images in all tasks. Each change updates the number, since a sum over many tasks would be slow.
    """

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._waiting = deque(tasks)
        self._suspects: deque[Task] = deque()
        self._retries: list[tuple[float, int, Task]] = []  # a heap of (earliest time, serial number, task)
        self._retry_number = 0
        self.images = sum(map(len, self._waiting))

    def __iter__(self) -> Iterator[Task]:
        yield from self._waiting
        yield from self._suspects
        yield from (task for *_, task in self._retries)

    def __bool__(self) -> bool:
        return bool(self._waiting or self._suspects or self._retries)

    def append(self, task: Task) -> None:
        """Put a task behind all waiting tasks."""
        self._waiting.append(task)
        self.images += len(task)

    def append_first(self, task: Task) -> None:
        """Put a task before all others."""
        self._waiting.appendleft(task)
        self.images += len(task)

    def retry(self, task: Task, at_s: float) -> None:
        """Queue a task for a try at `at_s` or later."""
        self._retry_number += 1
        heapq.heappush(self._retries, (at_s, self._retry_number, task))
        self.images += len(task)

    def isolate(self, task: Task, suspects: Sequence[int]) -> None:
        """Queue a task again whose process died: each suspect alone, all other images together, with attempt + 1.

        suspects: indices of images that were in flight.
        """
        if len(task) == 1:
            self.append_first(replace(task, attempt=task.attempt + 1))
            return
        parts = [sorted({*task.indices}.difference(suspects))]
        if not suspects and task.attempt > 1:
            # The task had the worker to itself, and no image was in flight: halve the task.
            middle = len(task) // 2
            parts = [list(task.indices[:middle]), list(task.indices[middle:])]
        for indices in filter(None, parts):
            if len(indices) == 1:
                suspects = sorted({*suspects, *indices})
            else:
                self.append(Task.of(task.unit, indices, task.attempt + 1))
        # A suspect begins with attempt 2: deaths of its task do not count against the image.
        self._suspects.extend(Task.of(task.unit, [index], 2) for index in suspects)
        self.images += len(suspects)

    def next(self, now_s: float) -> Task | None:
        """Return the next task and leave it in the queue; None when no task is due."""
        for queue in (self._waiting, self._suspects):
            if queue:
                return queue[0]
        if self._retries and self._retries[0][0] <= now_s:
            return self._retries[0][2]
        return None

    def take(self, max_images: int) -> Task:
        """Remove and return the next task, or only its first `max_images` images. The other images stay first."""
        for queue in (self._waiting, self._suspects):
            if queue:
                head, tail = _split(queue.popleft(), max_images)
                if tail is not None:
                    queue.appendleft(tail)
                self.images -= len(head)
                return head
        at_s, number, task = heapq.heappop(self._retries)
        head, tail = _split(task, max_images)
        if tail is not None:
            heapq.heappush(self._retries, (at_s, number, tail))
        self.images -= len(head)
        return head

    def clear(self) -> None:
        """Remove all tasks."""
        self._waiting.clear()
        self._suspects.clear()
        self._retries.clear()
        self.images = 0

    def state(self) -> dict[str, object]:
        """Return the tasks as plain values, by part."""
        return {
            "waiting": [task.plain() for task in self._waiting],
            "suspects": [task.plain() for task in self._suspects],
            "retries": [[at_s, *task.plain()] for at_s, _, task in sorted(self._retries)],
        }

    def validate(self) -> None:
        """Raise AssertionError unless each suspect is alone in its task and the number of images is right."""
        assert self.images == sum(map(len, self)), "the images of the queue are miscounted"
        assert all(len(task) == 1 and task.attempt > 1 for task in self._suspects), "a suspect is not tried alone"


def _split(task: Task, max_images: int) -> tuple[Task, Task | None]:
    """Split a task into its first `max_images` images and the others; None if there are no others."""
    if max_images >= len(task):
        return task, None
    head, tail = task.indices[:max_images], task.indices[max_images:]
    return Task.of(task.unit, head, task.attempt), Task.of(task.unit, tail, task.attempt)
