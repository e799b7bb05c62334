"""Replay a run from its event log: `python -m segray.execution.replay ROOT/_segray/runs/RUN_ID`.

Knows how to print the events and actions of a run, for one image or worker if asked. A new scheduler gets the recorded
events. The replay validates the scheduler's state after each event, and compares the state with the recorded states.
The program exits with 1 where two states differ.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from segray.errors import SegrayError
from segray.execution import event_log
from segray.execution.event_log import Note
from segray.execution.event_loop import PlanNames
from segray.execution.events import (
    Accept,
    Action,
    Assign,
    Event,
    FailImage,
    ProgressUpdate,
    Quarantine,
    ReleaseWorker,
    ReplaceWorker,
    TaskFailed,
    TaskFinished,
    Tick,
    WorkerDraining,
    WorkerJoined,
    WorkerLost,
)
from segray.execution.scheduler import DisplayNames, Scheduler
from segray.label_set import plan
from segray.storage.store import StorageOptions, Store
from segray.storage.uris import absolute
from segray.tasks import Task

# A larger run is not validated, since validation walks over every image after each event.
_MAX_VALIDATED_IMAGES = 20_000


class ReplayMismatch(SegrayError):
    """A difference between the replayed and the recorded state."""


def replay(series: event_log.Series, scheduler: Scheduler) -> Iterator[tuple[float, Event | Note, list[Action]]]:
    """Give a new scheduler the events of a process; yield each event or note with its time and the actions.

    Raises ReplayMismatch where the state is inconsistent or not the recorded one.
    """
    count = 0
    for entry in series.events():
        if isinstance(entry, Note):
            yield entry.now_s, entry, []
            continue
        if isinstance(entry, Mapping):
            _compare(scheduler.state(), entry, count)
            continue
        now_s, event = entry
        count += 1
        actions = scheduler.handle(event, now_s)
        if scheduler.images_total <= _MAX_VALIDATED_IMAGES:
            _validate(scheduler, count, event)
        yield now_s, event, actions


def _validate(scheduler: Scheduler, count: int, event: Event) -> None:
    try:
        scheduler.validate()
    except AssertionError as error:
        raise ReplayMismatch(
            "the scheduler's state is inconsistent",
            where=f"after event {count}, {event!r:.300}",
            found=str(error),
            hint="report the defect with the run's folder `events` and `plan`",
        ) from error


def _compare(replayed: Mapping[str, Any], recorded: Mapping[str, Any], count: int) -> None:
    for key in recorded:
        if replayed[key] != recorded[key]:
            raise ReplayMismatch(
                "the replay reached another state than the run",
                where=f"{key}, after event {count}",
                found=f"{replayed[key]!r}, recorded {recorded[key]!r}",
                hint="replay with the version of segray that wrote the event log",
            )


def main(args: Sequence[str] | None = None) -> int:
    """Print the events of a run; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m segray.execution.replay", description=__doc__.split("\n\n")[0])
    parser.add_argument("run", help="the run's folder, ROOT/_segray/runs/RUN_ID")
    parser.add_argument(
        "--image", metavar="UNIT:INDEX", type=image_position, help="print only events and actions of this image"
    )
    parser.add_argument("--worker", help="print only events and actions of this worker")
    parser.add_argument("--endpoint-url", help="URL of an S3 store other than AWS")
    arguments = parser.parse_args(args)
    store, folder = Store(StorageOptions(endpoint_url=arguments.endpoint_url)), absolute(arguments.run.rstrip("/"))
    try:
        frozen_plan, all_series = plan.load(store, folder), event_log.read(store, folder)
        if frozen_plan is None or not all_series:
            raise SegrayError("no event log is here", where=folder, hint="pass the folder ROOT/_segray/runs/RUN_ID")
        for number, series in enumerate(all_series, start=1):
            _print(number, series, PlanNames(frozen_plan), arguments.image, arguments.worker)
    except SegrayError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def image_position(text: str) -> tuple[int, int]:
    """Return unit and index of an image; raise ValueError for any other text."""
    unit, index = text.split(":")
    return int(unit), int(index)


def _print(number: int, series: event_log.Series, names: DisplayNames, image: Any, worker: str | None) -> None:
    print(f"process {number}: {sum(map(len, series.tasks))} images in {len(series.tasks)} tasks; {series.policy}")
    scheduler = Scheduler(series.tasks, series.policy, names, series.withheld_before)
    begin_s, count = None, 0
    for now_s, event, actions in replay(series, scheduler):
        begin_s, count = now_s if begin_s is None else begin_s, count + 1
        if isinstance(event, Note):
            if image is None and worker is None:
                print(f"{now_s - begin_s:10.2f} s  {event.text}")
            continue
        entries = [entry for entry in (event, *actions) if _concerns(entry, image, worker)]
        lines = [text for entry in entries if (text := _describe(entry, names))]
        for position, text in enumerate(lines):
            arrow = "-> " if position else ""
            print(f"{now_s - begin_s:10.2f} s  {arrow}{text}")
    end = "complete" if scheduler.complete else scheduler.halted or f"{len(scheduler.left_over)} left over"
    print(f"{count} events replayed to the recorded state: {scheduler.images_done} images done, {end}")


def _concerns(entry: Event | Action, image: tuple[int, ...] | None, worker: str | None) -> bool:
    """Return whether an event or action is about the image and the worker; None stands for any."""
    task = _task_of(entry)
    if image is not None and (task is None or task.unit != image[0] or image[1] not in task.indices):
        in_flight = entry.in_flight or () if isinstance(entry, WorkerLost) else ()
        return image[:2] in {(other.unit, other.index) for other in in_flight}
    return worker is None or getattr(entry, "worker", None) == worker


def _task_of(entry: Event | Action) -> Task | None:
    """Return the task of an event or action; None for one without a task."""
    report = getattr(entry, "report", None)
    return getattr(entry, "task", None) if report is None else report.task


def _describe(entry: Event | Action, names: DisplayNames) -> str:
    """Return a line for an event or action; an empty line for those that repeat every second."""
    match entry:
        case Tick() | ProgressUpdate() | Accept():
            return ""
        case WorkerJoined(worker):
            return f"{names.worker(worker)} joins"
        case WorkerDraining(worker):
            return f"{names.worker(worker)} is on a node that is being drained"
        case WorkerLost(worker, reason, blame_images, in_flight):
            images = "as in its last progress"
            if in_flight is not None:
                images = ", ".join(f"{image.unit}:{image.index} {image.stage}" for image in in_flight) or "none"
            blame = f"images in flight: {images}" if blame_images else "no image is blamed"
            return f"{names.worker(worker)} is lost: {reason}; {blame}"
        case TaskFinished(worker, report):
            withheld = f", withheld {[image.index for image in report.withheld]}" if report.withheld else ""
            return f"{names.worker(worker)} finished {_images_of(report.task)}{withheld}"
        case TaskFailed(worker, task, reason):
            return f"{names.worker(worker)} failed {_images_of(task)}: {reason}"
        case Assign(worker, task):
            return f"assign {_images_of(task)} to {names.worker(worker)}"
        case ReplaceWorker(worker, reason):
            return f"replace {names.worker(worker)}: {reason}"
        case ReleaseWorker(worker, reason):
            return f"release {names.worker(worker)}: {reason}"
        case FailImage(task, error, reason):
            return f"fail {names.image(task.unit, task.start)}: {error}: {reason}"
        case Quarantine(task, reason):
            return f"quarantine {names.image(task.unit, task.start)}: {reason}"


def _images_of(task: Task) -> str:
    images = ",".join(map(str, task.only)) if task.only else f"{task.start}..{task.stop - 1}"
    return f"unit {task.unit} images {images} attempt {task.attempt}"


if __name__ == "__main__":
    sys.exit(main())
