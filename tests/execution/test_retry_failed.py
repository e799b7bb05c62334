"""Failed images that are labelled again: which, once, and what the others are told as. No Ray, no inference."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
from test_run import FACTS, LABELS
from watchers import Notes

import segray
from segray import config
from segray.errors import ConfigError, Interrupted
from segray.execution import run
from segray.execution.estimate import _list_images
from segray.execution.events import PoolEvent
from segray.execution.staging import ImageOutcome, stage
from segray.execution.worker_pool import InProcess
from segray.execution.worker_spec import WorkerSpec
from segray.instances import ImageFailure, ImageRef, Instances
from segray.label_set.validation import verify
from segray.sources.passed_over import PassedOver
from segray.storage.store import StorageOptions, Store
from segray.tasks import Progress, Task, TaskReport

OVER_LIMIT = "30000x20000 = 600 MP is over the limit of 200 MP (image.max_pixels)"
DECODE = ImageFailure("decode", "ImageError", "truncated")
UNREACHABLE = ImageFailure("read", "Unreachable", "unreachable: no answer")
FAILURES = {"03.jpg": DECODE, "07.jpg": UNREACHABLE, "08.jpg": ImageFailure("decode", "ImageError", OVER_LIMIT)}


class World:
    """Images that fail, and how often each image was tried. die: raises in a task, before anything is staged."""

    def __init__(self, failures: Mapping[str, ImageFailure] = FAILURES) -> None:
        self.failures = dict(failures)
        self.tries: Counter[str] = Counter()
        self.die: Callable[[Task], None] = lambda task: None

    def start(self, spec: WorkerSpec, chosen: config.Config) -> InProcess:
        return _Dying(_Labels(spec, self), FACTS)


class _Labels:
    def __init__(self, spec: WorkerSpec, world: World) -> None:
        self._spec, self._world = spec, world

    def label(self, task: Task, refs: Sequence[ImageRef]) -> TaskReport:
        self._world.die(task)
        self._world.tries.update(ref.key for ref in refs)
        outcomes = [self._outcome(task, ref) for ref in refs]
        return TaskReport(
            task, stage(Store(), self._spec.staged, task, dict(zip(task.indices, outcomes, strict=True)), LABELS)
        )

    def _outcome(self, task: Task, ref: ImageRef) -> ImageOutcome:
        if failure := self._world.failures.get(ref.key):
            return ImageOutcome(ref, task.attempt, failure=failure)
        n = int(ref.key[1]) % 2
        boxes = np.tile(np.array([0, 0, 2, 2], np.float32), (n, 1))
        instances = Instances(np.full(n, 13, np.int32), np.ones(n, np.float32), boxes, ("04",) * n, (2, 2))
        return ImageOutcome(ref, task.attempt, 1, (2, 2), instances=instances)

    def progress(self) -> Progress:
        return Progress(0)

    def close(self) -> None: ...


class _Dying(InProcess):
    """One worker of a command that a KeyboardInterrupt in a task ends."""

    interrupted = False

    def _run(self, worker: str, task: Task, refs: Sequence[ImageRef]) -> None:
        try:
            super()._run(worker, task, refs)
        except KeyboardInterrupt:
            self.interrupted = True

    def events(self, timeout_s: float) -> list[PoolEvent]:
        if self.interrupted:
            raise KeyboardInterrupt
        return super().events(min(timeout_s, 0.05))


@pytest.fixture
def chosen(tmp_path: Path) -> config.Config:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(12):
        (folder / f"{i:02d}.jpg").write_bytes(bytes([i]))
    values = {"source": {"uri": str(folder)}, "output": {"root": str(tmp_path / "labels")}, "max_failed_fraction": 1,
              "model": {"name": "stickers"}, "unit_images": 2, "publish": {"batch_images": 2}}  # fmt: skip
    return config.validate(values, "test")


def altered(chosen: config.Config, **values: Any) -> config.Config:
    return chosen.model_copy(update={"source": chosen.source.model_copy(update=values)})


def failed(chosen: config.Config) -> list[str]:
    rows = segray.images(chosen.output.root).to_table(filter=pc.field("status") == "failed")
    return sorted(rows["image_key"].to_pylist())


def rows_of(chosen: config.Config) -> dict[str, list[dict[str, Any]]]:
    """Both tables, without the columns that tell one run from another."""
    of_a_run = {"batch", "run_id", "labelled_at", "attempts"}
    tables = {"images": segray.images(chosen.output.root), "instances": segray.scan(chosen.output.root)}
    return {
        name: sorted(
            ({key: value for key, value in row.items() if key not in of_a_run} for row in table.to_table().to_pylist()),
            key=lambda row: str(row["image_key"]),
        )
        for name, table in tables.items()
    }


def label_until(chosen: config.Config, world: World, *, unit: int, **options: Any) -> None:
    """Label until a task of this unit starts, and interrupt the command there."""

    def die(task: Task) -> None:
        if task.unit == unit:
            raise KeyboardInterrupt

    world.die = die
    with pytest.raises(Interrupted):
        run.label(chosen, Notes(), world.start, **options)
    world.die = lambda task: None


def assert_as_fresh(chosen: config.Config, world: World) -> None:
    """Assert that the label set is valid and has the rows of a new label set."""
    fresh = chosen.model_copy(
        update={"output": chosen.output.model_copy(update={"root": f"{chosen.output.root}-{os.urandom(4).hex()}"})}
    )
    run.label(fresh, Notes(), World(world.failures).start)
    assert rows_of(chosen) == rows_of(fresh)
    assert verify(chosen.output.root, StorageOptions()).violations == ()


def test_failed_images_stay_as_they_are_and_the_next_run_says_how_many_and_what_to_do(chosen: config.Config) -> None:
    world, listener = World(), Notes()
    run.label(chosen, Notes(), world.start)
    world.failures.clear()
    summary = run.label(chosen, listener, lambda spec, c: pytest.fail("no worker is needed"))
    assert failed(chosen) == sorted(FAILURES)
    said = listener.notes[-1]
    assert "nothing to do: all 12 images" in said
    assert "3 of them as failed. Failed: 2 at decode, 1 at read." in said
    assert "--retry-failed [STAGE...], or source.failed=retry" in said
    assert "Unreachable: 1, tried again from " in said
    assert "was raised" not in said
    assert (summary.failed_before, summary.of_runs) == ({"decode": 2, "read": 1}, {})


def test_failed_images_of_a_stage_are_labelled_again_and_no_others(chosen: config.Config) -> None:
    world, listener = World(), Notes()
    run.label(chosen, Notes(), world.start)
    world.failures.clear()
    world.tries.clear()
    summary = run.label(chosen, listener, world.start, retry_failed=["decode"])
    assert "2 of 12 images to label, 2 of them failed before" in listener.notes
    assert world.tries == {"03.jpg": 1, "08.jpg": 1}
    assert (summary.of_runs, summary.failed_before) == ({"ok": 1, "empty": 1}, {"read": 1})
    assert failed(chosen) == ["07.jpg"]
    run.label(chosen, Notes(), world.start, retry_failed=["all"])
    assert_as_fresh(chosen, world)


def test_an_image_that_fails_again_is_tried_once_a_command_and_keeps_one_row(chosen: config.Config) -> None:
    world = World()
    run.label(chosen, Notes(), world.start)
    for _ in range(2):
        world.tries.clear()
        assert run.label(altered(chosen, failed="retry"), Notes(), world.start).of_runs == {"failed": 3}
        assert world.tries == dict.fromkeys(FAILURES, 1)
    assert_as_fresh(chosen, world)


@pytest.mark.parametrize(
    ("killed_at", "failing"),
    [
        pytest.param(at, failing, marks=[] if (at, len(failing)) in ((0, 0), (3, 2)) else [pytest.mark.chaos])
        for at in range(5)
        for failing in ((), ("03.jpg", "08.jpg"))
    ],
)
def test_a_retry_that_is_interrupted_is_resumed_and_tries_no_image_twice(
    chosen: config.Config, killed_at: int, failing: Sequence[str]
) -> None:
    world = World({f"{i:02d}.jpg": DECODE for i in range(1, 11)})
    run.label(chosen, Notes(), world.start)
    world.failures = dict.fromkeys(failing, DECODE)
    world.tries.clear()
    label_until(chosen, world, unit=killed_at, retry_failed=["all"])
    again = altered(chosen, failed="retry") if failing else chosen  # The plan alone says what is left.
    run.label(again, Notes(), world.start)
    assert world.tries == {f"{i:02d}.jpg": 1 for i in range(1, 11)}
    assert_as_fresh(chosen, world)


def test_a_resumed_run_does_not_hide_the_failures_that_it_had_before(chosen: config.Config) -> None:
    world = World()
    label_until(chosen, world, unit=5)
    world.failures.clear()
    run.label(chosen, Notes(), world.start, retry_failed=["all"])
    assert_as_fresh(chosen, world)


def test_a_limit_holds_for_failed_images_too(chosen: config.Config) -> None:
    world = World()
    run.label(chosen, Notes(), world.start)
    world.failures.clear()
    assert run.label(chosen, Notes(), world.start, retry_failed=["all"], limit=1).of_runs == {"ok": 1}
    assert failed(chosen) == ["07.jpg", "08.jpg"]
    assert run.label(chosen, Notes(), world.start, retry_failed=["all"], dry_run=True).planned == 2
    assert failed(chosen) == ["07.jpg", "08.jpg"]


def test_failed_images_that_are_gone_are_retired_and_changed_ones_replaced(chosen: config.Config) -> None:
    world, folder = World(), Path(chosen.source.uri)
    run.label(chosen, Notes(), world.start)
    world.failures.clear()
    (folder / "03.jpg").unlink()
    (folder / "07.jpg").write_bytes(b"another version")
    retiring = altered(chosen, deleted="retire", max_retired_fraction=1.0, failed="retry")
    summary = run.label(retiring, Notes(), world.start)
    assert (summary.retired, summary.of_runs) == (1, {"ok": 1, "empty": 1})
    assert_as_fresh(chosen, world)


def test_unreachable_images_are_tried_again_once_they_are_old_enough(chosen: config.Config) -> None:
    world = World()
    run.label(chosen, Notes(), world.start)
    world.failures.clear()
    world.tries.clear()
    for seconds in (86_400.0, None):
        run.label(altered(chosen, retry_unreachable_after=seconds), Notes(), world.start)
        assert not world.tries
    run.label(altered(chosen, retry_unreachable_after=0.0), Notes(), world.start)
    assert world.tries == {"07.jpg": 1}
    assert failed(chosen) == ["03.jpg", "08.jpg"]


def test_a_limit_that_was_raised_since_is_named(chosen: config.Config) -> None:
    run.label(chosen, Notes(), World().start)
    raised = chosen.image.model_copy(update={"max_pixels": 700_000_000, "max_bytes": 2**40})
    listener = Notes()
    run.label(chosen.model_copy(update={"image": raised}), listener, World().start)
    assert (
        "image.max_pixels was raised since, from 200000000 to 700000000; images that it refused and that may fit now: 1"
        in listener.notes[-1]
    )
    assert "max_bytes" not in listener.notes[-1]


def test_a_run_is_judged_by_the_images_that_it_labelled(chosen: config.Config) -> None:
    strict = chosen.model_copy(update={"max_failed_fraction": 0.1})
    world = World()
    assert run.label(strict, Notes(), world.start).exit_code == 3
    assert run.label(strict, Notes(), world.start).exit_code == 0
    (Path(chosen.source.uri) / "20.jpg").write_bytes(b"new")
    summary = run.label(strict, Notes(), world.start)
    assert (summary.exit_code, summary.of_runs, summary.images["failed"]) == (0, {"empty": 1}, 3)
    assert summary.failures == ()
    (Path(chosen.source.uri) / "21.jpg").write_bytes(b"new")
    world.failures["21.jpg"] = DECODE
    summary = run.label(strict, Notes(), world.start)
    assert (summary.exit_code, summary.of_runs) == (3, {"failed": 1})
    assert summary.failures == (("21.jpg", "decode", "truncated"),)


def test_a_killed_run_is_judged_with_the_images_of_its_first_process(chosen: config.Config) -> None:
    strict = chosen.model_copy(update={"max_failed_fraction": 0.1})
    world = World()
    label_until(strict, world, unit=5)
    summary = run.label(strict, Notes(), world.start)
    assert (sum(summary.of_runs.values()), summary.of_runs["failed"], summary.exit_code) == (12, 3, 3)


def test_an_unknown_stage_is_refused(chosen: config.Config) -> None:
    with pytest.raises(ConfigError, match="no such stage") as caught:
        run.label(chosen, Notes(), World().start, retry_failed=["inference"])
    assert "read, decode, infer, postprocess, process" in caught.value.hint


def test_an_estimate_counts_failed_images_that_the_run_would_label_again(chosen: config.Config) -> None:
    run.label(chosen, Notes(), World().start)
    store = Store(StorageOptions())
    assert len(_list_images(chosen, store, store, PassedOver())[0]) == 0
    assert len(_list_images(altered(chosen, failed="retry"), store, store, PassedOver())[0]) == 3
