"""A scheduler whose state is validated after every event, with a method for each.

Validation walks over every image, so of a run of many images it looks at the state after every thousandth event.
"""

from __future__ import annotations

from collections.abc import Iterable

from segray.execution.events import (
    Accept,
    Action,
    Event,
    ProgressUpdate,
    TaskFailed,
    TaskFinished,
    Tick,
    WorkerDraining,
    WorkerJoined,
    WorkerLost,
)
from segray.execution.scheduler import Scheduler
from segray.tasks import InFlight, Progress, Task, TaskReport, WithheldImage


def at_work(finished: int, *images: tuple[int, int, str, float]) -> Progress:
    """The progress of a worker that has these images in flight."""
    return Progress(finished, tuple(InFlight(*image) for image in images))


class CheckedScheduler(Scheduler):
    """Also keeps what happened: events with their times."""

    def __init__(self, tasks: Iterable[Task], *args: object) -> None:
        self.history: list[tuple[float, Event]] = []
        super().__init__(tasks, *args)  # type: ignore[arg-type]

    def handle(self, event: Event, now_s: float) -> list[Action]:
        self.history.append((now_s, event))
        actions = super().handle(event, now_s)
        if self.images_total < 5_000 or len(self.history) % 1_000 == 0:
            self.validate()
        return actions

    def joined(self, worker: str, now_s: float) -> list[Action]:
        return self.handle(WorkerJoined(worker, {}), now_s)

    def finished(
        self,
        worker: str,
        task: Task,
        now_s: float,
        withheld: Iterable[int | WithheldImage] = (),
        untried: Iterable[int] = (),
    ) -> tuple[bool, list[Action]]:
        """Whether the report counts, and the other actions."""
        images = tuple(WithheldImage(image, "no such host") if isinstance(image, int) else image for image in withheld)
        report = TaskReport(task, (), images, tuple(untried))
        actions = self.handle(TaskFinished(worker, report), now_s)
        accepted = [action for action in actions if isinstance(action, Accept)]
        assert all(action == Accept(worker, report) for action in accepted)
        return bool(accepted), [action for action in actions if not isinstance(action, Accept)]

    def failed(self, worker: str, task: Task, reason: str, now_s: float) -> list[Action]:
        return self.handle(TaskFailed(worker, task, reason), now_s)

    def lost(
        self,
        worker: str,
        reason: str,
        now_s: float,
        *,
        blame_images: bool,
        in_flight: Iterable[tuple[int, int, str, float]] | None = None,
    ) -> list[Action]:
        images = None if in_flight is None else tuple(InFlight(*image) for image in in_flight)
        return self.handle(WorkerLost(worker, reason, blame_images, images), now_s)

    def draining(self, worker: str, now_s: float) -> list[Action]:
        return self.handle(WorkerDraining(worker), now_s)

    def progressed(self, worker: str, progress: Progress, now_s: float) -> list[Action]:
        return self.handle(ProgressUpdate(worker, progress), now_s)

    def tick(self, now_s: float) -> list[Action]:
        return self.handle(Tick(), now_s)
