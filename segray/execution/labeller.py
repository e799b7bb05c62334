"""The work of a worker without Ray: the images of a task become staged files.

Knows the pool of threads that labels the images of a task, and the cause of an error: image, storage or configuration.
Knows nothing of scheduling, batches or other workers. image_steps.py has the steps of one image.

Three things bound the memory of a worker. ImageMemory bounds files and pixels by the number of cores. Each thread of
the pool holds at most the inputs of one image. `engine.requests` bounds the outputs.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from segray.errors import AccessError, ImageError, InfrastructureError, LastingError
from segray.execution.image_steps import ImageMemory, ImageSteps, LabellerSettings, LoadedModel, thread_count
from segray.execution.in_flight import InFlightTracker
from segray.execution.served_files import ServedFiles
from segray.execution.stage_timer import ImageTimer, ProcessCpu, StageTimer, summed
from segray.execution.staging import ImageOutcome, stage
from segray.execution.valid_rows import drop_invalid_rows
from segray.instances import ImageFailure, ImageRef
from segray.label_set.failed_rows import UNREACHABLE
from segray.sources.reader import CoalescedRead, Files
from segray.sources.uris import file_of
from segray.storage.store import Store
from segray.storage.uris import bucket_and_key, is_http
from segray.tasks import Progress, Task, TaskReport, UnitReport, WithheldImage

REFUSED = "AccessDenied"
# A host whose answers end early serves the first byte of every file. Most images have fewer bytes than this.
_PROBE_BYTES = 2**20

# An image's outcome, or its withholding by storage, or None for an untried image; and the image's seconds by stage.
_Result: TypeAlias = "tuple[ImageOutcome | WithheldImage | None, StageTimer]"


class _OutageDetector:
    """A detector that distinguishes an outage of storage from a few withheld images. Threads may share a detector.

    outage_images: number of withheld images that shows an outage, while storage serves no image.
    """

    def __init__(self, outage_images: int) -> None:
        self._lock = threading.Lock()
        self._outage_images, self._withheld, self._has_served = outage_images, 0, False

    @property
    def is_outage(self) -> bool:
        """Return whether storage withheld `outage_images` images and served none. Then no other image needs a try."""
        return not self._has_served and self._withheld >= self._outage_images

    def add_served(self) -> None:
        """Record that storage gave an image."""
        self._has_served = True

    def add_withheld(self) -> None:
        """Count an image that storage did not give."""
        with self._lock:
            self._withheld += 1


@dataclass(frozen=True, slots=True)
class _Image:
    """An image of a task, and the source of its bytes.

    index: position in the unit.
    coalesced_read: the read that has the image.
    row: position among the images of the task.
    """

    ref: ImageRef
    unit: int
    index: int
    attempt: int
    coalesced_read: CoalescedRead
    row: int


class Labeller:
    """One compiled model and the threads that label images with the model. Several threads may call `label` at once.

    model: the compiled model.
    settings: limits of the work.
    store: storage of staged files.
    staged: folder of staged files.
    in_flight_log: file for the images in flight; see InFlightTracker.
    memory: budgets of files and pixels; by default those for settings.cores.
    source_store: storage of the images; None for `store`.
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
        source_store: Store | None = None,
    ) -> None:
        memory = memory or ImageMemory.for_cores(settings.cores)
        self._labels, self._store, self._staged = model.adapter.labels, store, staged
        self._files = Files(source_store or store, settings.limits, memory.files)
        self._steps = ImageSteps(model, settings, memory.pixels)
        self._threads = thread_count(model.engine, settings.cores)
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="image")
        self._submitting = threading.Lock()
        self._tracker = InFlightTracker(in_flight_log)
        self._cpu = ProcessCpu()
        self._served_files = ServedFiles(source_store or store)

    def progress(self) -> Progress:
        """Return the number of images finished so far, and the images in flight."""
        return self._tracker.progress()

    def close(self) -> None:
        """Finish the running images, then stop the threads."""
        self._pool.shutdown(cancel_futures=True)
        self._files.close()

    def label(self, task: Task, refs: Sequence[ImageRef]) -> TaskReport:
        """Label the task's images and stage their rows.

        An image that storage withheld has no row, and the report names it. Each run of neighbouring images with rows
        becomes a staged file. The first of these files carries the seconds of the whole task.

        Args:
            task: positions of the images.
            refs: the images, in order of `task.indices`.

        Returns:
            The staged files, the withheld images and the untried images of the task.

        Raises:
            InfrastructureError: the rows cannot be staged.
            AccessError: storage refuses access to the staged files.
        """
        results = self._label_images(task, refs)
        by_index = dict(zip(task.indices, (outcome for outcome, _ in results), strict=True))
        outcomes = {index: outcome for index, outcome in by_index.items() if isinstance(outcome, ImageOutcome)}
        withheld = [outcome for outcome in by_index.values() if isinstance(outcome, WithheldImage)]
        return TaskReport(
            task,
            self._stage(task, outcomes, [timer for _, timer in results]) if outcomes else (),
            self._with_row_errors(withheld, dict(zip(task.indices, refs, strict=True))),
            tuple(index for index, outcome in by_index.items() if outcome is None),
        )

    def _with_row_errors(
        self, withheld: Sequence[WithheldImage], ref_by_index: Mapping[int, ImageRef]
    ) -> tuple[WithheldImage, ...]:
        """Return withheld images with the errors of their rows, for those that storage withholds alone.

        Storage is asked once for each bucket and kind of error.
        """
        answers: dict[tuple[bool, str], tuple[str, bool]] = {}
        images = []
        for image in withheld:
            file = file_of(ref_by_index[image.index].uri)
            question = (image.refused, bucket_and_key(file)[0])
            if question not in answers:
                answers[question] = self._row_error(file, is_refused=image.refused)
            row_error, host_served = answers[question]
            images.append(replace(image, row_error=row_error, host_served=host_served))
        return tuple(images)

    def _row_error(self, file: str, *, is_refused: bool) -> tuple[str, bool]:
        """Return the error of the row of an image that storage withholds alone, and whether its host served before.

        The error is "" if storage is at fault. An object is refused alone, and a link is withheld alone, while its
        bucket or host serves another file. All links of a host are withheld alone while another host serves a file. A
        host that served before, and refuses everything now, has revoked its access: then the access is at fault.
        """
        if not (is_refused or is_http(file)):
            return "", False
        if self._served_files.place_serves(file, _PROBE_BYTES):
            return REFUSED if is_refused else UNREACHABLE, False
        host_served = self._served_files.has_served(file)
        if not is_http(file) or (is_refused and host_served):
            return "", False
        return (UNREACHABLE, host_served) if self._served_files.another_serves(file) else ("", False)

    def _label_images(self, task: Task, refs: Sequence[ImageRef]) -> list[_Result]:
        """Label the images on the threads of the pool; return a result for each image, in the order of refs."""
        reads = self._files.portions(refs)
        outage = _OutageDetector(self._threads)
        with self._submitting:  # The images of a coalesced read must be neighbours in the queue: see ImageMemory.
            futures = {
                row: self._pool.submit(self._label_image, image, outage)
                for read in reads
                for row, image in _images(task, refs, read)
            }
        return _wait(futures, reads)

    def _stage(
        self, task: Task, outcomes: Mapping[int, ImageOutcome], timers: Sequence[StageTimer]
    ) -> tuple[UnitReport, ...]:
        timer = StageTimer("write")
        first, *others = stage(self._store, self._staged, task, outcomes, self._labels)
        timer.stop()
        seconds, cpu_seconds = summed([timer, *timers])
        return replace(first, seconds=seconds, cpu_seconds=self._cpu.with_inference(cpu_seconds)), *others

    def _label_image(self, image: _Image, outage: _OutageDetector) -> _Result:
        """Label one image.

        An error becomes a failed row or a withheld image, unless a lasting fault is the cause.
        """
        if outage.is_outage:
            return None, StageTimer("read")
        timer = ImageTimer(self._tracker, (image.unit, image.index))
        withheld: WithheldImage | None = None
        try:
            outcome = self._outcome(image, timer)
            outage.add_served()
            self._served_files.add(image.ref.uri)
            return outcome, timer
        except LastingError:
            raise
        except (InfrastructureError, AccessError) as exc:
            withheld = WithheldImage(image.index, exc.short(), isinstance(exc, AccessError))
        except FileNotFoundError as exc:
            if self._served_files.place_is_lost(image.ref.uri):
                withheld = WithheldImage(image.index, f"all files are gone, also those that were read: {exc}")
            failure = ImageFailure("read", "NotFound", f"the object is gone: {exc}")
        except ImageError as exc:
            uri = image.ref.uri
            if exc.stage == "decode" and is_http(file_of(uri)) and self._served_files.place_is_lost(uri):
                reason = f"no image, also where the host served images before: {exc}"
                withheld = WithheldImage(image.index, reason)
            failure = ImageFailure(exc.stage, "ImageError", str(exc))
        except Exception as exc:  # An error of one image must not cost its neighbours their rows.
            failure = ImageFailure(timer.stage, type(exc).__name__, str(exc))
        finally:
            timer.leave(finished=withheld is None)
        if withheld is not None:
            outage.add_withheld()
            return withheld, timer
        return ImageOutcome(image.ref, image.attempt, max(image.ref.size_bytes, 0), failure=failure), timer

    def _outcome(self, image: _Image, timer: ImageTimer) -> ImageOutcome:
        facts, instances = self._steps.label(image.coalesced_read, image.row, timer)
        kept, dropped = drop_invalid_rows(instances, self._labels)
        return ImageOutcome(
            image.ref,
            image.attempt,
            facts.size_bytes,
            facts.size_hw,
            facts.orientation,
            kept,
            dropped=dropped,
            guessed_depth=facts.guessed_depth,
        )


def _images(task: Task, refs: Sequence[ImageRef], read: CoalescedRead) -> list[tuple[int, _Image]]:
    """Return the images of a coalesced read with their rows of refs, in reading order."""
    return [(row, _Image(refs[row], task.unit, task.indices[row], task.attempt, read, row)) for row in read.rows]


def _wait(futures: Mapping[int, Future[_Result]], reads: Sequence[CoalescedRead]) -> list[_Result]:
    """Wait for all results and return them by row; on an error cancel all other images. Release the reads' memory.

    The caller's thread is woken once: waking it for each image would take the global lock from the images' threads.
    """
    try:
        wait(futures.values(), return_when=FIRST_EXCEPTION)
        return [futures[row].result() for row in range(len(futures))]
    except BaseException:
        for future in futures.values():
            future.cancel()
        raise
    finally:
        for read in reads:
            read.close()
