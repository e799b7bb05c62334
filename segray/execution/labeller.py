"""Label one slice of a unit: the work of an actor, with no Ray in it.

Knows the path of an image from bytes to row, and that a slice becomes one staged file. Knows nothing of
scheduling, batches or other workers.

Every image runs on one thread from end to end: read -> decode and prepare -> wait for a request -> infer ->
postprocess. What bounds the memory of a worker: budgets of bytes for files read and for pixels decoded, both by the
number of cores, the pool's threads, each holding at most the network's input, and `engine.requests` holding outputs.
"""

from __future__ import annotations

import difflib
import importlib
import platform
import threading
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import segray
from segray import config, rle
from segray._system.memory import Budget
from segray.errors import ConfigError, ImageError, ModelError, UserError, WorldError
from segray.execution.in_flight import Watch
from segray.imaging import decode, headers
from segray.imaging.opencv import cv2
from segray.imaging.tiling import Tiles, merge, place, windows
from segray.instances import Failure, ImageRef, Instances
from segray.label_set import schema
from segray.label_set.run_records import staged_name
from segray.limits import Limits
from segray.models import engine as runtime
from segray.models import resolve
from segray.models.adapters.adapter import Contract, Form, Options
from segray.models.engine import Engine
from segray.sources.reader import Files, Portion
from segray.storage.store import StorageOptions, Store, join
from segray.tasks import Progress, Task, TaskReport, UnitReport, WithheldImage

_MESSAGE_CHARS = 2000
_OPENCV_ERRORS = 2
# For each core, of files read and of pixels decoded at a time; a photograph of 12 megapixels has 36 MB.
_FILES_BYTES, _PIXELS_BYTES = 32 * 2**20, 96 * 2**20
WORKING_BYTES = _FILES_BYTES + _PIXELS_BYTES


@dataclass(frozen=True)
class Outcome:
    """What became of one image. Exactly one of instances and failure is set."""

    ref: ImageRef
    attempts: int
    bytes_read: int = 0
    size_hw: tuple[int, int] = (0, 0)
    orientation: int = 1
    instances: Instances | None = None
    failure: Failure | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def status(self) -> str:
        if self.instances is None:
            return "failed"
        return "ok" if len(self.instances) else "empty"


@dataclass(frozen=True)
class Recipe:
    """All that a worker needs to build its Labeller, wherever it runs; travels between processes.

    staged: where finished tasks are put. fingerprint: of the model files, which every worker checks against its own, as
    it does with the driver's version of segray.
    """

    model: config.Model
    fingerprint: str
    limits: Limits
    storage: StorageOptions
    staged: str
    tiles: Tiles | None = None
    version: str = segray.__version__


# One image's row, the error with which storage withheld it, or None for not tried; and its seconds by stage.
_Answer: TypeAlias = "tuple[Outcome | WithheldImage | None, _Stages]"


@contextmanager
def prepared() -> Iterator[None]:
    """Set for the block what labelling needs of the whole process.

    OpenCV computes on the thread that calls it: the threads of the pool are the parallelism. Libraries do not tell of
    broken files on stderr: their rows tell of them.
    """
    threads, level = cv2.getNumThreads(), cv2.utils.logging.getLogLevel()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        cv2.setNumThreads(1)
        cv2.utils.logging.setLogLevel(_OPENCV_ERRORS)
        try:
            yield
        finally:
            cv2.setNumThreads(threads)
            cv2.utils.logging.setLogLevel(level)


def build(
    recipe: Recipe, device: str, threads: int | None, trail: Path | None = None
) -> tuple[Labeller, Mapping[str, str]]:
    """Read and compile the model on this machine; the labeller, and the facts of its engine.

    trail: a file on this machine that tells what was in flight if the process dies (flight.py). The process is to be
    prepared() for as long as the labeller is used.
    Raises ModelError when the files here are missing or are not the ones that the run began with.
    """
    if recipe.version != segray.__version__:
        raise ConfigError(
            "a worker has another segray than the driver",
            where=platform.node(),
            found=f"{segray.__version__} there, {recipe.version} in the driver",
            do="install the same version on every node",
        )
    chosen = recipe.model
    try:
        model = resolve.resolve(chosen.name, chosen.path, chosen.form, chosen.labels)
    except ModelError as exc:  # The driver has found it, so it is this machine that lacks it.
        raise ModelError(
            exc.what, where=f"{platform.node()}: {exc.where}", found=exc.found, do="give every node the same files"
        ) from exc
    if model.fingerprint != recipe.fingerprint:
        raise ModelError(
            "the model files on this worker are not those the run began with",
            where=f"{platform.node()}: {model.path}",
            found=f"fingerprint {model.fingerprint[:12]}, expected {recipe.fingerprint[:12]}",
            do="give every node the same files",
        )
    cores = threads or runtime.available_cpus()
    settings = runtime.DeviceSettings(
        device, cores, chosen.precision, chosen.cache_dir, fixed_shapes=chosen.fixed_shapes
    )
    with ThreadPoolExecutor(1) as beside:
        # Takes seconds the first time on a machine.
        loops = beside.submit(
            importlib.import_module, "segray.masks._kernels_many" if recipe.tiles else "segray.masks._kernels"
        )
        engine = runtime.compile(model.path, model.form, settings)
        loops.result()
    contract = model.contract.with_size(model.form.name, engine.size_hw)
    form, options = contract.forms[model.form.name], options_of(chosen, contract)
    store = Store(recipe.storage, known=[recipe.staged])  # where the plan is already
    labeller = Labeller(
        engine,
        contract,
        form,
        options,
        recipe.limits,
        store,
        recipe.staged,
        cores=cores,
        trail=trail,
        scaled_decode=chosen.scaled_decode,
        tiles=recipe.tiles,
    )
    return labeller, {**engine.facts, "segray": segray.__version__, "host": platform.node()}


def options_of(chosen: config.Model, contract: Contract) -> Options:
    """What the configuration asks of decoding; ConfigError for a choice that this contract does not have."""
    for choice, default in (("nms", "per_class"), ("paste", None)):
        value = getattr(chosen, choice)
        if value != default and choice not in contract.choices:
            what = f"{chosen.name} leaves no choice of {choice}."
            do = f"Remove it, or set model.{choice} to {default or 'null'}."
            raise ConfigError(what, where=f"model.{choice}", found=repr(value), do=do)
    floor = 1.0 if chosen.score_floor is None else chosen.score_floor
    thresholds = {_class_id(key, contract.labels): min(least, floor) for key, least in chosen.class_thresholds.items()}
    return Options(
        min(chosen.score_threshold, floor),
        chosen.max_detections,
        chosen.nms,
        class_thresholds=thresholds,
        paste=chosen.paste,
        min_area=chosen.min_area,
    )


def _class_id(key: int | str, labels: Mapping[int, str]) -> int:
    """The id of a class that is given by name or id."""
    ids = {str(i): i for i in labels} | {name: i for i, name in labels.items()}
    if str(key) not in ids:
        near = difflib.get_close_matches(str(key), ids, n=1, cutoff=0.0)
        found, do = repr(key), f"Did you mean {near[0]!r}?"
        raise ConfigError("The label map has no such class.", where="model.class_thresholds", found=found, do=do)
    return ids[str(key)]


class _Outage:
    """Tell a task whose storage gives nothing from one in which storage withholds some images.

    most: images that may be withheld while none is served. Safe from any thread.
    """

    def __init__(self, most: int) -> None:
        self._lock = threading.Lock()
        self._most, self._withheld, self._served = most, 0, False

    @property
    def certain(self) -> bool:
        """Whether so many images were withheld, and none served, that no further one is worth a try."""
        return not self._served and self._withheld >= self._most

    def served(self) -> None:
        self._served = True

    def withheld(self) -> None:
        with self._lock:
            self._withheld += 1


class Labeller:
    """One compiled model and the threads that feed it. `label` may be called from several threads at once."""

    def __init__(
        self,
        engine: Engine,
        contract: Contract,
        form: Form,
        options: Options,
        limits: Limits,
        store: Store,
        staged: str,
        *,
        cores: int,
        trail: Path | None = None,
        scaled_decode: bool = False,
        tiles: Tiles | None = None,
    ) -> None:
        self._engine, self._contract, self._form, self._options = engine, contract, form, options
        self._limits, self._store, self._staged = limits, store, staged
        self._decoders = threading.Semaphore(cores + 1)
        self._files = Files(store, limits, Budget((cores + 1) * _FILES_BYTES))
        self._pixels = Budget((cores + 1) * _PIXELS_BYTES)
        self._submitting = threading.Lock()
        self._requests = threading.Semaphore(engine.requests)
        self._threads = engine.requests + max(4, 2 * cores)
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="image")
        self._least_hw = engine.size_hw if scaled_decode else None
        self._tiles = tiles
        self._watch = Watch(trail)
        self._accounts, self._accounted_s = threading.Lock(), time.process_time()

    def progress(self) -> Progress:
        """Images finished so far and those in flight."""
        return self._watch.progress()

    def close(self) -> None:
        """Stop the threads; running images are finished first."""
        self._pool.shutdown(cancel_futures=True)
        self._files.close()

    def label(self, task: Task, refs: Sequence[ImageRef]) -> TaskReport:
        """Label the task's images, in order of `task.indices`, and stage their rows.

        An image that storage withheld has no row; the report names it. Each run of neighbouring images that have one
        becomes a staged file, and the first of these carries the seconds of the whole task.
        Raises WorldError when the rows cannot be staged, UserError when storage refuses access.
        """
        portions = self._files.portions(refs)
        # Portions hold memory until their last image is read: nothing may come between that waits for memory too.
        with self._submitting:
            outage = _Outage(self._threads)
            futures = {
                row: self._submit(task, row, refs[row], portion, outage) for portion in portions for row in portion.rows
            }
        try:
            results = [futures[row].result() for row in range(len(refs))]
        except BaseException:
            for future in futures.values():
                future.cancel()
            raise
        finally:
            for portion in portions:
                portion.close()
        answers = dict(zip(task.indices, (answer for answer, _ in results), strict=True))
        outcomes = {index: answer for index, answer in answers.items() if isinstance(answer, Outcome)}
        return TaskReport(
            task,
            self._stage(task, outcomes, [clock for _, clock in results]) if outcomes else (),
            tuple(answer for answer in answers.values() if isinstance(answer, WithheldImage)),
            tuple(index for index, answer in answers.items() if answer is None),
        )

    def _stage(self, task: Task, outcomes: Mapping[int, Outcome], clocks: Sequence[_Stages]) -> tuple[UnitReport, ...]:
        clock = _Stages("write")
        first, *rest = stage(self._store, self._staged, task, outcomes, self._contract.labels)
        clock.stop()
        spent = _summed([clock, *clocks])
        return replace(first, seconds=dict(spent.seconds), cpu_seconds=self._shared_out(spent.cpu_seconds)), *rest

    def _shared_out(self, cpu_seconds: Mapping[str, float]) -> Mapping[str, float]:
        """CPU seconds by stage, with what the process computed since the last report and no stage did as inference."""
        with self._accounts:
            now = time.process_time()
            since, self._accounted_s = now - self._accounted_s, now
        return {**cpu_seconds, "infer": since - sum(cpu_seconds.values()) + cpu_seconds.get("infer", 0.0)}

    def _submit(self, task: Task, row: int, ref: ImageRef, portion: Portion, outage: _Outage) -> Future[_Answer]:
        place = (task.unit, task.indices[row])
        return self._pool.submit(self._one, place, task.attempt, ref, lambda: portion.take(row), outage)

    def _one(
        self,
        place: tuple[int, int],
        attempt: int,
        ref: ImageRef,
        take: Callable[[], AbstractContextManager[bytes]],
        outage: _Outage,
    ) -> _Answer:
        if outage.certain:
            return None, _Stages("read")
        clock = _Clock(self._watch, place)
        withheld = False
        try:
            outcome = self._image(clock, attempt, ref, take)
            outage.served()
            return outcome, clock
        except UserError:
            raise
        except WorldError as exc:
            withheld = True
            outage.withheld()
            return WithheldImage(place[1], exc.short()), clock
        except FileNotFoundError as exc:
            failure = Failure("read", "NotFound", f"the object is gone: {exc}")
        except ImageError as exc:
            failure = Failure(exc.stage, "ImageError", str(exc))
        except Exception as exc:  # Whatever one image provokes must not cost its neighbours their rows.
            failure = Failure(clock.stage, type(exc).__name__, str(exc))
        finally:
            clock.leave(finished=not withheld)
        return Outcome(ref, attempt, max(ref.size_bytes, 0), failure=failure), clock

    def _image(
        self, clock: _Clock, attempt: int, ref: ImageRef, take: Callable[[], AbstractContextManager[bytes]]
    ) -> Outcome:
        clock.enter("read")
        if self._tiles is None:
            with self._decoded(clock, take) as (picture, size_bytes):
                inputs = self._contract.prepare(self._form, picture.image)
                size_hw, orientation = picture.size_hw, picture.orientation
                del picture
            found = self._infer(clock, inputs, size_hw)
        else:
            with self._decoded(clock, take) as (picture, size_bytes):
                size_hw, orientation = picture.size_hw, picture.orientation
                found = self._in_windows(clock, picture.image, self._tiles)
        kept, dropped = writable(found, self._contract.labels)
        return Outcome(ref, attempt, size_bytes, size_hw, orientation, kept, dropped=dropped)

    @contextmanager
    def _decoded(
        self, clock: _Clock, take: Callable[[], AbstractContextManager[bytes]]
    ) -> Iterator[tuple[decode.Decoded, int]]:
        """The picture, whose memory is lent for the block, and the bytes of its file, which is let go."""
        with ExitStack() as lent:
            with take() as data:
                clock.enter("decode")
                header = headers.admit(data, self._limits)
                clock.enter("wait")
                keep = lent.enter_context(self._pixels.lend(header.decoding_bytes))
                with self._decoders:
                    clock.enter("decode")
                    picture, size_bytes = decode.load(data, header, self._limits, self._least_hw), len(data)
                del data
                keep(picture.image.nbytes)
            yield picture, size_bytes

    def _in_windows(self, clock: _Clock, picture: NDArray[np.uint8], tiles: Tiles) -> Instances:
        """What is found in a large picture, one window after the other; other images are in flight meanwhile."""
        parts, size_hw = [], picture.shape[:2]
        for window in windows(size_hw, tiles):
            clock.enter("decode")
            inputs = self._contract.prepare(self._form, np.ascontiguousarray(picture[window.slices]))
            parts.append((window, place(self._infer(clock, inputs, window.size_hw), window, size_hw)))
        return parts[0][1] if len(parts) == 1 else merge(parts, size_hw, self._options.max_detections)

    def _infer(self, clock: _Clock, inputs: Mapping[str, NDArray[Any]], size_hw: tuple[int, int]) -> Instances:
        clock.enter("wait")
        with self._requests:
            clock.enter("infer")
            with self._engine.infer(inputs) as outputs:
                clock.enter("postprocess")
                return self._contract.decode(outputs, size_hw, self._options)


def writable(found: Instances, labels: Mapping[int, str]) -> tuple[Instances, Mapping[str, int]]:
    """The rows fit for the table, and how many were dropped by reason."""
    boxes = found.boxes_xyxy
    reasons = {
        "empty_mask": np.asarray(rle.area(found.rles)) <= 0 if len(found) else np.zeros(0, np.bool_),
        "empty_box": (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1]),
        "unnamed_class": ~np.isin(found.class_ids, list(labels)),
    }
    bad = np.zeros(len(found), np.bool_)
    dropped = {"unreadable": found.unreadable} if found.unreadable else {}
    for reason, rows in reasons.items():
        if count := int((rows & ~bad).sum()):
            dropped[reason] = count
        bad |= rows
    return (found.take(~bad) if bad.any() else found), dropped


# ---- staging --------------------------------------------------------------------------------------


def stage(
    store: Store, staged: str, task: Task, outcomes: Mapping[int, Outcome], labels: Mapping[int, str]
) -> tuple[UnitReport, ...]:
    """Write the outcomes of a task, by index in the unit: each run of neighbours as one file, unique to this attempt.

    Return a report of each file, in order; without seconds.
    """
    reports = []
    for run in Task.of(task.unit, sorted(outcomes), task.attempt).runs():
        rows, name = [outcomes[index] for index in run.indices], staged_name(run)
        store.put(join(staged, name), schema.staged_bytes(_table(rows, labels, datetime.now(UTC))))
        reports.append(_report(run, name, rows))
    return tuple(reports)


def stage_failure(store: Store, staged: str, task: Task, ref: ImageRef, failure: Failure) -> UnitReport:
    """Stage a single failed row, for an image that no worker survived."""
    outcome = Outcome(ref, task.attempt, max(ref.size_bytes, 0), failure=failure)
    (report,) = stage(store, staged, task, {task.start: outcome}, {})
    return report


def _report(task: Task, name: str, outcomes: Sequence[Outcome]) -> UnitReport:
    status = Counter(outcome.status for outcome in outcomes)
    dropped: Counter[str] = Counter()
    for outcome in outcomes:
        dropped.update(outcome.dropped)
    return UnitReport(
        task,
        name,
        ok=status["ok"],
        empty=status["empty"],
        failed=status["failed"],
        instances=sum(len(outcome.instances) for outcome in outcomes if outcome.instances is not None),
        bytes_read=sum(outcome.bytes_read for outcome in outcomes),
        dropped=dict(dropped),
    )


def _table(outcomes: Sequence[Outcome], labels: Mapping[int, str], now: datetime) -> pa.Table:
    failures = [o.failure for o in outcomes]
    columns = {
        "image_id": [o.ref.image_id for o in outcomes],
        "image_key": [o.ref.key for o in outcomes],
        "uri": [o.ref.uri for o in outcomes],
        "version": [o.ref.version for o in outcomes],
        "bytes": [o.bytes_read for o in outcomes],
        "width": [o.size_hw[1] for o in outcomes],
        "height": [o.size_hw[0] for o in outcomes],
        "status": [o.status for o in outcomes],
        "n_instances": [len(o.instances) if o.instances is not None else 0 for o in outcomes],
        "stage": [f.stage if f else None for f in failures],
        "error": [f.error if f else None for f in failures],
        "message": [f.message[:_MESSAGE_CHARS] if f else None for f in failures],
        "attempts": [o.attempts for o in outcomes],
        "labelled_at": [now] * len(outcomes),
        "orientation": [o.orientation for o in outcomes],
    }
    arrays = [pa.array(columns[f.name], f.type) for f in schema.STAGED if f.name != "instances"]
    return pa.Table.from_arrays([*arrays, _found(outcomes, labels)], schema=schema.STAGED)


def _found(outcomes: Sequence[Outcome], labels: Mapping[int, str]) -> pa.ListArray:
    """The `instances` column: one list per image, failed images an empty one."""
    kept = [o.instances if o.instances is not None else Instances.empty(o.size_hw) for o in outcomes]
    counts = np.array([len(found) for found in kept], np.int64)
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(found.boxes_xyxy for found in kept)])
    class_ids = np.concatenate([np.zeros(0, np.int32), *(found.class_ids for found in kept)])
    rles = [counts for found in kept for counts in found.rles]
    columns = {
        "instance": np.concatenate([np.zeros(0, np.int16), *(np.arange(n, dtype=np.int16) for n in counts)]),
        "class_id": class_ids,
        "class_name": [labels[int(i)] for i in class_ids],
        "score": np.concatenate([np.zeros(0, np.float32), *(found.scores for found in kept)]),
        "bbox_x": boxes[:, 0],
        "bbox_y": boxes[:, 1],
        "bbox_w": boxes[:, 2] - boxes[:, 0],
        "bbox_h": boxes[:, 3] - boxes[:, 1],
        "area": np.asarray(rle.area(rles), np.int32) if rles else np.zeros(0, np.int32),
        "rle": rles,
    }
    kind = schema.STAGED.field("instances").type
    values = pa.StructArray.from_arrays(
        [pa.array(columns[f.name], f.type) for f in kind.value_type], fields=list(kind.value_type)
    )
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, values, type=kind)


# ---- how long it takes ---------------------------------------------------------------------------


class _Stages:
    """Wall and CPU seconds of one thread by stage."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.seconds: dict[str, float] = defaultdict(float)
        self.cpu_seconds: dict[str, float] = defaultdict(float)
        self._since = time.perf_counter(), time.thread_time()

    def stop(self) -> None:
        now = time.perf_counter(), time.thread_time()
        self.seconds[self.stage] += now[0] - self._since[0]
        self.cpu_seconds[self.stage] += now[1] - self._since[1]
        self._since = now


class _Clock(_Stages):
    """Which stage one image is in, and its seconds in each; waiting for a place counts to the stage before."""

    def __init__(self, watch: Watch, place: tuple[int, int]) -> None:
        super().__init__("read")
        self._watch, self._place = watch, place

    def enter(self, stage: str) -> None:
        self.stop()
        self.stage = stage
        self._watch.enter(self._place, stage)

    def leave(self, *, finished: bool) -> None:
        self.stop()
        self._watch.leave(self._place, finished=finished)


def _summed(clocks: Sequence[_Stages]) -> _Stages:
    total = _Stages("")
    for clock in clocks:
        for name, value in clock.seconds.items():
            total.seconds[name] += value
        for name, value in clock.cpu_seconds.items():
            total.cpu_seconds[name] += value
    return total
