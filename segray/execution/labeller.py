"""The work of an actor, with no Ray in it: the images of a task become staged files.

Knows the pool of threads that labels the images of a task, and whose fault an error is. Knows nothing of scheduling,
batches or other workers. image_steps.py has the steps of one image.

Three things bound the memory of a worker. ImageMemory bounds files and pixels by the number of cores. Each thread of
the pool holds at most the inputs of one image. `engine.requests` bounds the outputs.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from segray.errors import ImageError, InfrastructureError, LastingError, UserError
from segray.execution.image_steps import ImageMemory, ImageSteps, LabellerSettings, LoadedModel
from segray.execution.in_flight import InFlightTracker
from segray.execution.stage_timer import ImageTimer, ProcessCpu, StageTimer, summed
from segray.execution.staging import ImageOutcome, drop_invalid_rows, stage
from segray.instances import ImageFailure, ImageRef
from segray.sources.reader import CoalescedRead, Files
from segray.storage.store import Store
from segray.tasks import Progress, Task, TaskReport, UnitReport, WithheldImage

# An image's row, or the error with which storage withheld it, or None for untried; and its seconds by stage.
_Answer: TypeAlias = "tuple[ImageOutcome | WithheldImage | None, StageTimer]"


class _Outage:
    """A detector that tells an outage of storage from the loss of some images. Any thread may call it.

    most: number of images that may be withheld while none is served.
    """

    def __init__(self, most: int) -> None:
        self._lock = threading.Lock()
        self._most, self._withheld, self._served = most, 0, False

    @property
    def certain(self) -> bool:
        """Return whether `most` images were withheld and none was served.

        No further image is worth a try then.
        """
        return not self._served and self._withheld >= self._most

    def served(self) -> None:
        """Record that storage gave an image."""
        self._served = True

    def withheld(self) -> None:
        """Count an image that storage did not give."""
        with self._lock:
            self._withheld += 1


@dataclass(frozen=True, slots=True)
class _Image:
    """An image of a task, and the source of its bytes.

    index: position in the unit.
    portion: the coalesced read that has the image.
    row: position among the images of the task.
    """

    ref: ImageRef
    unit: int
    index: int
    attempt: int
    portion: CoalescedRead
    row: int


class Labeller:
    """One compiled model and the threads that feed it. Several threads may call `label` at once.

    store: storage of images and staged files.
    staged: folder of staged files.
    in_flight_log: see InFlightTracker.
    memory: budgets of files and pixels; by default those for settings.cores.
    """

    def __init__(
        self,
        model: LoadedModel,
        settings: LabellerSettings,
        store: Store,
        staged: str,
        *,
        in_flight_log: Path | None = None,
        memory: ImageMemory | None = None,
    ) -> None:
        memory = memory or ImageMemory.for_cores(settings.cores)
        self._labels, self._store, self._staged = model.adapter.labels, store, staged
        self._files = Files(store, settings.limits, memory.files)
        self._steps = ImageSteps(model, settings, memory.pixels)
        self._threads = model.engine.requests + max(4, 2 * settings.cores)
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="image")
        self._submitting = threading.Lock()
        self._tracker = InFlightTracker(in_flight_log)
        self._cpu = ProcessCpu()

    def progress(self) -> Progress:
        """Return the number of images finished so far, and the images in flight."""
        return self._tracker.progress()

    def close(self) -> None:
        """Stop the threads. Running images are finished first."""
        self._pool.shutdown(cancel_futures=True)
        self._files.close()

    def label(self, task: Task, refs: Sequence[ImageRef]) -> TaskReport:
        """Label the task's images and stage their rows.

        An image that storage withheld has no row, and the report names it. Each run of neighbouring images with rows
        becomes a staged file. The first of these files carries the seconds of the whole task.

        Args:
            task: the images' positions.
            refs: the images, in order of `task.indices`.

        Raises:
            InfrastructureError: the rows cannot be staged.
            UserError: storage refuses access.
        """
        answers = self._answers(task, refs)
        by_index = dict(zip(task.indices, (answer for answer, _ in answers), strict=True))
        outcomes = {index: answer for index, answer in by_index.items() if isinstance(answer, ImageOutcome)}
        return TaskReport(
            task,
            self._stage(task, outcomes, [timer for _, timer in answers]) if outcomes else (),
            tuple(answer for answer in by_index.values() if isinstance(answer, WithheldImage)),
            tuple(index for index, answer in by_index.items() if answer is None),
        )

    def _answers(self, task: Task, refs: Sequence[ImageRef]) -> list[_Answer]:
        """Label the images on the threads of the pool; return an answer for each, in the order of refs."""
        portions = self._files.portions(refs)
        outage = _Outage(self._threads)
        with self._submitting:  # The images of a portion must be neighbours in the queue: see ImageMemory.
            futures = {
                row: self._pool.submit(self._one, image, outage)
                for portion in portions
                for row, image in _images(task, refs, portion)
            }
        return _results(futures, portions)

    def _stage(
        self, task: Task, outcomes: Mapping[int, ImageOutcome], timers: Sequence[StageTimer]
    ) -> tuple[UnitReport, ...]:
        timer = StageTimer("write")
        first, *rest = stage(self._store, self._staged, task, outcomes, self._labels)
        timer.stop()
        seconds, cpu_seconds = summed([timer, *timers])
        return replace(first, seconds=seconds, cpu_seconds=self._cpu.with_inference(cpu_seconds)), *rest

    def _one(self, image: _Image, outage: _Outage) -> _Answer:
        """Label one image.

        An error becomes a failed row or a withheld image, unless the configuration or a lasting fault is the cause.
        """
        if outage.certain:
            return None, StageTimer("read")
        timer = ImageTimer(self._tracker, (image.unit, image.index))
        withheld = False
        try:
            outcome = self._outcome(image, timer)
            outage.served()
            return outcome, timer
        except (UserError, LastingError):
            raise
        except InfrastructureError as exc:
            withheld = True
            outage.withheld()
            return WithheldImage(image.index, exc.short()), timer
        except FileNotFoundError as exc:
            failure = ImageFailure("read", "NotFound", f"the object is gone: {exc}")
        except ImageError as exc:
            failure = ImageFailure(exc.stage, "ImageError", str(exc))
        except Exception as exc:  # An error of one image must not cost its neighbours their rows.
            failure = ImageFailure(timer.stage, type(exc).__name__, str(exc))
        finally:
            timer.leave(finished=not withheld)
        return ImageOutcome(image.ref, image.attempt, max(image.ref.size_bytes, 0), failure=failure), timer

    def _outcome(self, image: _Image, timer: ImageTimer) -> ImageOutcome:
        facts, instances = self._steps.label(image.portion, image.row, timer)
        kept, dropped = drop_invalid_rows(instances, self._labels)
        size_bytes, size_hw, orientation = facts
        return ImageOutcome(image.ref, image.attempt, size_bytes, size_hw, orientation, kept, dropped=dropped)


def _images(task: Task, refs: Sequence[ImageRef], portion: CoalescedRead) -> list[tuple[int, _Image]]:
    """Return the images of a coalesced read by row of refs, in reading order."""
    return [(row, _Image(refs[row], task.unit, task.indices[row], task.attempt, portion, row)) for row in portion.rows]


def _results(futures: Mapping[int, Future[_Answer]], portions: Sequence[CoalescedRead]) -> list[_Answer]:
    """Wait for all answers and return them by row; cancel the rest on an error. Release all memory of the reads."""
    try:
        return [futures[row].result() for row in range(len(futures))]
    except BaseException:
        for future in futures.values():
            future.cancel()
        raise
    finally:
        for portion in portions:
            portion.close()
