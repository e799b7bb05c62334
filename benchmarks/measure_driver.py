"""Cost of a large dataset in the driver: memory of a plan, and seconds until a resumed run labels again.

python -m benchmarks.measure_driver plan [--images 5000000] [--order sorted|shuffled] [--committed 0]
python -m benchmarks.measure_driver resume FOLDER [--units 10000] [--more 500] [--unit-images 256] [--instances 3]

`plan` lists generated objects, and runs all steps before a run's first image, in a temporary folder. `resume` first
builds a label set in FOLDER, unless FOLDER has one. A run without inference, in which every image gets the same
instances, is interrupted after so many units. `resume` then measures the same command, up to the moment when a worker
is given its first task. Both print one line of JSON.
"""

from __future__ import annotations

import argparse
import errno
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segray import config
from segray._system import memory
from segray.errors import Interrupted
from segray.execution import run
from segray.execution.events import PoolEvent
from segray.execution.progress import ProgressListener
from segray.execution.scheduler import Policy, Scheduler
from segray.execution.staging import ImageOutcome, stage
from segray.execution.worker_pool import InProcess
from segray.execution.worker_spec import WorkerSpec
from segray.instances import ImageRef, Instances
from segray.label_set import plan
from segray.sources import listing
from segray.storage.backend import WHOLE_TREE, Walk
from segray.storage.store import ListedObject, Store
from segray.tasks import Progress, Task, TaskReport

FACTS = {"device": "none", "precision": "f32", "host": "here"}


def main() -> None:
    options = _options()
    print(json.dumps(options.measure(options)))


# ---- memory of a plan -----------------------------------------------------------------------------


def measure_plan(options: argparse.Namespace) -> dict[str, Any]:
    """Build a plan of generated objects; return images, seconds and peak memory."""
    imported_mb, start_s = peak_mb(), time.monotonic()
    committed = plan.Committed(_committed_batches(options.committed)) if options.committed else None
    batches = listing.read("s3://a-bucket/raw", GeneratedBucket(options.images, options.order == "shuffled"))
    listed, total, _ = plan.build(batches, committed)
    with tempfile.TemporaryDirectory() as folder:
        frozen = plan.freeze(Store(), folder, listed, 256)
    Scheduler(frozen.tasks(), Policy())
    assert total == options.images
    assert frozen.images == options.images - options.committed
    return {
        "images": total,
        "order": options.order,
        "committed": options.committed,
        "seconds": round(time.monotonic() - start_s, 1),
        "imported_mb": imported_mb,
        "peak_mb": peak_mb(),
        "bytes_an_image": round((peak_mb() - imported_mb) * 1e6 / total),
    }


class GeneratedBucket(Store):
    """A bucket with `images` objects, with names, versions and sizes as cameras and S3 give them."""

    def __init__(self, images: int, shuffled: bool = False) -> None:
        super().__init__()
        self._images, self._shuffled = images, shuffled

    def stat(self, uri: str) -> ListedObject:
        raise FileNotFoundError(errno.ENOENT, "no such object", uri)

    def list(self, uri: str, *, prefix: str = "", walk: Walk = WHOLE_TREE) -> Iterator[ListedObject]:
        order: Sequence[int] = range(self._images)
        if self._shuffled:
            order = np.random.default_rng(0).permutation(self._images)  # type: ignore[assignment]
        for i in map(int, order):
            yield ListedObject(f"{uri}/{key(i)}", key(i), version(i), 2_000_000 + i)


def key(i: int) -> str:
    """Return the key of object `i`."""
    return f"camera-{i // 10_000:04d}/2024-06-01/IMG_{i:08d}.jpg"


def version(i: int) -> str:
    """Return the version of object `i`, 32 hex digits."""
    return f"{i * 2654435761 % 2**64:016x}{i:016x}"


def _committed_batches(images: int) -> Iterator[pa.RecordBatch]:
    """Yield batches as from the table `images`, for the first `images` objects."""
    for first in range(0, images, 65_536):
        rows = range(first, min(images, first + 65_536))
        yield pa.record_batch({"image_key": [key(i) for i in rows], "version": [version(i) for i in rows]})


def peak_mb() -> float:
    """Return the peak resident memory of this process so far, in MB."""
    return round(memory.peak_bytes() / 1e6, 1)


# ---- seconds until a resumed run labels ------------------------------------------------------------


class FakeLabeller:
    """A labeller that finds the same instances in every image, and counts the units until the interruption."""

    def __init__(self, spec: WorkerSpec, units: int, instances: int) -> None:
        self._staged, self._remaining_units = spec.staged, units
        box = np.array([[0, 0, 2, 2]], np.float32).repeat(instances, 0)
        classes = np.full(instances, 13, np.int32)
        self._instances = Instances(classes, np.full(instances, 0.5, np.float32), box, ("04",) * instances, (2, 2))

    def label(self, task: Task, refs: Sequence[ImageRef]) -> TaskReport:
        outcomes = [ImageOutcome(ref, task.attempt, 1, (2, 2), instances=self._instances) for ref in refs]
        self._remaining_units -= 1
        rows = dict(zip(task.indices, outcomes, strict=True))
        return TaskReport(task, stage(Store(), self._staged, task, rows, {13: "stop sign"}))

    @property
    def is_done(self) -> bool:
        return self._remaining_units <= 0

    def progress(self) -> Progress:
        return Progress(0)

    def close(self) -> None: ...


class InterruptingPool(InProcess):
    """A worker pool that interrupts the run when its labeller has finished enough units."""

    def __init__(self, labeller: FakeLabeller) -> None:
        super().__init__(labeller, FACTS)
        self._fake_labeller = labeller

    def events(self, timeout_s: float) -> list[PoolEvent]:
        if self._fake_labeller.is_done:
            raise KeyboardInterrupt
        return super().events(timeout_s)

    def assign(self, worker: str, task: Task, refs: Sequence[ImageRef]) -> None:
        if not self._fake_labeller.is_done:
            super().assign(worker, task, refs)


class FirstTask(Exception):
    """A worker was given its first task."""


class FirstTaskPool(InProcess):
    """A worker pool that raises FirstTask instead of labelling."""

    def assign(self, worker: str, task: Task, refs: Sequence[ImageRef]) -> None:
        raise FirstTask


class NotesOnly(ProgressListener):
    """A listener that prints only notes, to stderr."""

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def measure_resume(options: argparse.Namespace) -> dict[str, Any]:
    """Build an interrupted run if needed; return the seconds until the resumed run gives a worker a task."""
    folder: Path = options.folder
    if options.measured_from is None:
        if not (folder / "labels").exists():
            _build_interrupted_run(folder, options)
        command = [sys.executable, *sys.argv, "--measured-from", str(time.time())]
        process = subprocess.run(command, check=True, capture_output=True, text=True)
        result: dict[str, Any] = json.loads(process.stdout)
        return result
    try:
        run.label(_config(folder, options), NotesOnly(), lambda spec, c: FirstTaskPool(FakeLabeller(spec, 1, 1), FACTS))
    except FirstTask:
        seconds = time.time() - options.measured_from
    return {"units": options.units, "images": options.units * options.unit_images, "seconds": round(seconds, 1),
            "peak_mb": peak_mb()}  # fmt: skip


def _build_interrupted_run(folder: Path, options: argparse.Namespace) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = range((options.units + options.more) * options.unit_images)
    columns = {"uri": [f"s3://a-bucket/{key(i)}" for i in rows], "version": [version(i) for i in rows]}
    pq.write_table(pa.table(columns), folder / "images.parquet")
    try:
        run.label(
            _config(folder, options),
            NotesOnly(),
            lambda spec, c: InterruptingPool(FakeLabeller(spec, options.units, options.instances)),
        )
    except Interrupted as error:
        print(error, file=sys.stderr)


def _config(folder: Path, options: argparse.Namespace) -> config.Config:
    values = {
        "source": {"uri": str(folder / "images.parquet")},
        "output": {"root": str(folder / "labels")},
        "model": {"name": "stickers"},
        "unit_images": options.unit_images,
    }
    return config.validate(values, "measure_driver")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    plan_command = commands.add_parser("plan")
    plan_command.add_argument("--images", type=int, default=5_000_000)
    plan_command.add_argument("--order", choices=("sorted", "shuffled"), default="sorted")
    plan_command.add_argument("--committed", type=int, default=0, help="number of images that are already committed")
    plan_command.set_defaults(measure=measure_plan)
    resume_command = commands.add_parser("resume")
    resume_command.add_argument("folder", type=Path)
    resume_command.add_argument("--units", type=int, default=10_000, help="number of units before the interruption")
    resume_command.add_argument("--more", type=int, default=500, help="number of units after the interruption")
    resume_command.add_argument("--unit-images", type=int, default=256)
    resume_command.add_argument("--instances", type=int, default=3, help="number of instances in an image")
    resume_command.add_argument("--measured-from", type=float, help=argparse.SUPPRESS)
    resume_command.set_defaults(measure=measure_resume)
    return parser.parse_args()


if __name__ == "__main__":
    main()
