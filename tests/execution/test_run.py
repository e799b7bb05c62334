"""label() from plan to summary, with workers in this process: no Ray, no inference."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import deltalake
import numpy as np
import pyarrow as pa
import pytest
from watchers import Notes

import segray
from segray import config
from segray.errors import ConfigError, InfrastructureError, Interrupted, LabelSetError, ModelError, SourceError
from segray.execution import run
from segray.execution.events import PoolEvent, ProgressUpdate, TaskFinished, WorkerJoined, WorkerLost
from segray.execution.staging import ImageOutcome, stage
from segray.execution.worker_pool import InProcess, WorkerPool
from segray.execution.worker_spec import WorkerSpec
from segray.instances import ImageRef, Instances
from segray.label_set import batches, commit, delta_log, maintenance, merge, schema
from segray.label_set.parquet_writer import DataFileWriter, SpillableRows
from segray.label_set.snapshot import open_table
from segray.label_set.validation import verify
from segray.storage.store import StorageOptions, Store
from segray.tasks import InFlight, Progress, Task, TaskReport, WithheldImage

FACTS = {"device": "FAKE", "precision": "f32", "host": "here"}
LABELS = {13: "stop sign"}


class Stub:
    """A labeller that finds one stop sign in every image, unless `before` raises."""

    def __init__(self, spec: WorkerSpec, before: Callable[[Task], None] = lambda task: None) -> None:
        self._spec, self._before = spec, before

    def label(self, task: Task, refs: Sequence[ImageRef]) -> TaskReport:
        self._before(task)
        found = Instances(
            np.array([13], np.int32), np.ones(1, np.float32), np.array([[0, 0, 2, 2]], np.float32), ("04",), (2, 2)
        )
        outcomes = [ImageOutcome(ref, task.attempt, 1, (2, 2), instances=found) for ref in refs]
        rows = dict(zip(task.indices, outcomes, strict=True))
        return TaskReport(task, stage(Store(), self._spec.staged, task, rows, LABELS))

    def progress(self) -> Progress:
        return Progress(0)

    def close(self) -> None: ...


def start(before: Callable[[Task], None] = lambda task: None) -> run.StartWorkers:
    return lambda spec, chosen: InProcess(Stub(spec, before), FACTS)


@pytest.fixture
def chosen(tmp_path: Path) -> config.Config:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(20):
        (folder / f"{i:02d}.jpg").write_bytes(bytes([i]))
    values = {
        "source": {"uri": str(folder)},
        "output": {"root": str(tmp_path / "labels")},
        "model": {"name": "stickers"},
    }
    return config.validate({**values, "unit_images": 4}, "test")


def keys(chosen: config.Config) -> list[str]:
    return sorted(segray.images(chosen.output.root).to_table().column("image_key").to_pylist())


ALL = [f"{i:02d}.jpg" for i in range(20)]


def test_every_image_is_labelled_once_and_the_summary_says_so(chosen: config.Config) -> None:
    summary = run.label(chosen, Notes(), start())
    assert keys(chosen) == ALL
    assert summary.images == {"ok": 20}
    assert summary.classes == {"stop sign": 20}
    assert (summary.tally.images, summary.exit_code) == (20, 0)
    assert summary.tally.replaced_files == 0


def test_the_summary_counts_confident_instances_unless_they_lie_in_too_many_files(
    chosen: config.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = run.label(chosen, Notes(), start())
    scores = segray.scan(chosen.output.root).to_table(["score"]).column("score").to_pylist()
    assert summary.confident == {"stop sign": sum(score >= 0.5 for score in scores)}
    monkeypatch.setattr(run, "_MOST_FILES_COUNTED", 0)
    again = run.label(chosen, Notes(), start())
    assert (again.classes, again.confident) == ({"stop sign": 20}, None)


def test_the_summary_counts_the_files_that_changed_and_retired_images_replaced(chosen: config.Config) -> None:
    run.label(chosen, Notes(), start())
    (Path(chosen.source.uri) / "03.jpg").write_bytes(b"other")
    replaced = run.label(chosen, Notes(), start()).tally.replaced_files
    assert replaced == len(removed_files(chosen)) > 0
    gone(chosen, "00.jpg", "01.jpg")
    retired = run.label(retiring(chosen), Notes(), start()).tally.replaced_files
    assert replaced + retired == len(removed_files(chosen)) > replaced


def removed_files(chosen: config.Config) -> set[str]:
    """The data files that lie in the folders of the tables, and that the logs no longer name."""
    root = Path(chosen.output.root)
    on_disk = {str(path) for name in ("instances", "images") for path in (root / name).rglob("*.parquet")}
    return on_disk - {
        path
        for table, read in (("instances", segray.scan), ("images", segray.images))
        for path in (str(root / table / file) for file in read(str(root)).files)
    }


def test_a_second_run_does_nothing_and_says_so(chosen: config.Config) -> None:
    run.label(chosen, Notes(), start())
    listener = Notes()
    summary = run.label(chosen, listener, lambda spec, c: pytest.fail("no worker is needed"))
    assert summary.tally.images == 0
    assert "nothing to do" in listener.notes[-1]


def test_an_interrupted_run_is_resumed_from_its_own_plan(chosen: config.Config) -> None:
    def stop(task: Task) -> None:
        if task.unit == 2:
            raise KeyboardInterrupt

    class Interrupting(InProcess):
        def _run(self, worker: str, task: Task, refs: Sequence[ImageRef]) -> None:
            try:
                super()._run(worker, task, refs)
            except KeyboardInterrupt:
                self.stopped = True

        stopped = False

        def events(self, timeout_s: float) -> list[PoolEvent]:
            if self.stopped:
                raise KeyboardInterrupt
            return super().events(timeout_s)

    with pytest.raises(Interrupted, match="run the same command again"):
        run.label(chosen, Notes(), lambda spec, c: Interrupting(Stub(spec, stop), FACTS))
    (Path(chosen.source.uri) / "99.jpg").write_bytes(b"new")
    listener = Notes()
    run.label(chosen, listener, start())
    assert any("resuming run" in note for note in listener.notes)
    assert keys(chosen) == [*ALL, "99.jpg"]


def test_storage_that_fails_for_good_stops_the_run_and_keeps_what_was_done(chosen: config.Config) -> None:
    def storm(task: Task) -> None:
        if task.unit == 3:
            raise InfrastructureError("storage is down", found="503")

    with pytest.raises(InfrastructureError, match="the same command again"):
        run.label(chosen, Notes(), start(storm), retry_s=0.01)
    assert 0 < len(keys(chosen)) < 20
    run.label(chosen, Notes(), start())
    assert keys(chosen) == ALL


def state(chosen: config.Config) -> str:
    """As the latest run's record has it."""
    (run_id,) = {path.parent.name for path in Path(chosen.output.root).glob("_segray/runs/*/run.json")}
    record = Path(chosen.output.root, "_segray", "runs", run_id, "run.json").read_text()
    return str(json.loads(record)["state"])


def test_a_users_mistake_that_shows_in_mid_run_leaves_the_rest_for_the_same_command(chosen: config.Config) -> None:
    def late(task: Task) -> None:
        if task.unit == 3:
            raise ModelError("a worker has another model", found="fingerprint 12")

    with pytest.raises(ModelError, match=r"another model[\s\S]*not labelled yet[\s\S]*same command") as caught:
        run.label(chosen, Notes(), start(late))
    assert caught.value.exit_code == 2
    assert state(chosen) == "stopped"
    listener = Notes()
    run.label(chosen, listener, start())
    assert any("0 of 20 images committed, 12 staged" in note for note in listener.notes)
    assert keys(chosen) == ALL


def test_what_a_run_committed_is_not_merged_again_by_the_next(chosen: config.Config) -> None:
    def late(task: Task) -> None:
        if task.unit == 3:
            raise ModelError("a worker has another model")

    chosen = chosen.model_copy(update={"publish": config.PublishSettings(batch_images=4)})
    with pytest.raises(ModelError):
        run.label(chosen, Notes(), start(late))
    committed, watcher = len(keys(chosen)), Notes()
    assert 0 < committed < 20
    labelled = list(Path(chosen.output.root).glob("_segray/runs/*/staged/*"))
    run.label(chosen, watcher, start())
    (told,) = [found for note in watcher.notes if (found := re.search(r"(\d+) of 20 images committed, (\d+) st", note))]
    assert int(told[1]) >= committed
    assert int(told[1]) + int(told[2]) == 4 * len(labelled)
    assert keys(chosen) == ALL


class StoppedAtTheMerge(InProcess):
    """Interrupted when it is to merge the first batch, with another unit staged by then."""

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        self._pool.shutdown()
        raise KeyboardInterrupt


def test_an_interrupted_batch_is_made_again_and_what_was_staged_since_is_merged_too(chosen: config.Config) -> None:
    chosen = chosen.model_copy(update={"publish": config.PublishSettings(batch_images=4)})
    with pytest.raises(Interrupted):
        run.label(chosen, Notes(), lambda recipe, c: StoppedAtTheMerge(Stub(recipe), FACTS))
    (folder,) = Path(chosen.output.root).glob("_segray/runs/*")
    (inputs,) = (folder / "batches").glob("*inputs.json")
    assert 0 < len(json.loads(inputs.read_text())["staged"]) < len(list((folder / "staged").iterdir()))
    run.label(chosen, Notes(), start())
    assert keys(chosen) == ALL
    assert list(Path(chosen.output.root).glob("_segray/runs/*")) == [folder]


@pytest.mark.parametrize(
    ("error", "raised", "left"),
    [
        (ConfigError("cannot join the cluster"), ConfigError, "stopped"),
        (InfrastructureError("Ray could not start"), InfrastructureError, "stopped"),
        (KeyboardInterrupt(), Interrupted, "interrupted"),
    ],
    ids=["configuration", "world", "interrupt"],
)
def test_a_run_whose_workers_cannot_start_says_so_in_its_record(
    chosen: config.Config, error: BaseException, raised: type[Exception], left: str
) -> None:
    def refuse(spec: WorkerSpec, c: config.Config) -> WorkerPool:
        raise error

    with pytest.raises(raised):
        run.label(chosen, Notes(), refuse)
    assert state(chosen) == left
    run.label(chosen, Notes(), start())
    assert keys(chosen) == ALL


@pytest.mark.integration
def test_images_that_storage_withholds_hold_up_no_others(chosen: config.Config) -> None:
    dead = {"07.jpg", "12.jpg"}
    record = Path(chosen.output.root) / "_segray" / "left_over.json"

    class Dead(Stub):
        def label(self, task: Task, refs: Sequence[ImageRef]) -> TaskReport:
            read = {index: ref for index, ref in zip(task.indices, refs, strict=True) if ref.key not in dead}
            withheld = [WithheldImage(index, "no such host") for index in task.indices if index not in read]
            if not read:
                return TaskReport(task, (), tuple(withheld))
            done = super().label(Task.of(task.unit, list(read), task.attempt), list(read.values()))
            return TaskReport(task, done.staged, tuple(withheld))

    def starting(spec: WorkerSpec, c: config.Config) -> WorkerPool:
        return InProcess(Dead(spec), FACTS)

    for _ in range(2):
        listener = Notes()
        with pytest.raises(InfrastructureError, match=r"2 images could not be labelled[\s\S]*07.jpg: no such host"):
            run.label(chosen, listener, starting, retry_s=0.01)
        assert not [note for note in listener.notes if "nothing to" in note]
        assert keys(chosen) == [key for key in ALL if key not in dead]
        assert json.loads(record.read_text())["images"] == dict.fromkeys(sorted(dead), "no such host")
    (Path(chosen.source.uri) / "99.jpg").write_bytes(b"new")
    with pytest.raises(InfrastructureError, match="2 images could not be labelled"):
        run.label(chosen, Notes(), starting, retry_s=0.01)
    assert keys(chosen) == [*(key for key in ALL if key not in dead), "99.jpg"]
    dead.clear()
    run.label(chosen, Notes(), starting, retry_s=0.01)
    assert keys(chosen) == [*ALL, "99.jpg"]
    assert json.loads(record.read_text()) == {"count": 0, "images": {}}
    assert verify(chosen.output.root, StorageOptions()).violations == ()


class DyingWorkers:
    """Workers of which one at a time lives; an image that kills takes its worker along."""

    def __init__(self, spec: WorkerSpec, killer: str) -> None:
        self._stub, self._killer = Stub(spec), killer
        self._events: list[PoolEvent] = [WorkerJoined("0", FACTS)]
        self._lives = 0

    def events(self, timeout_s: float) -> list[PoolEvent]:
        found, self._events = self._events, []
        return found

    def assign(self, worker: str, task: Task, refs: Sequence[ImageRef]) -> None:
        bad = [i for i, ref in enumerate(refs) if ref.key == self._killer]
        if worker != str(self._lives):
            return
        if bad:
            self._lives += 1
            in_flight = (InFlight(task.unit, task.indices[bad[0]], "decode", 0.0),)
            self._events += [
                ProgressUpdate(worker, Progress(0, in_flight)),
                WorkerLost(worker, "killed by signal 11", blame_images=True),
                WorkerJoined(str(self._lives), FACTS),
            ]
        else:
            self._events.append(TaskFinished(worker, self._stub.label(task, refs)))

    def replace(self, worker: str) -> None: ...

    def release(self, worker: str) -> None: ...

    def set_needed(self, workers: int) -> None: ...

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return InProcess.call(self, function, *args)  # type: ignore[arg-type]

    def close(self) -> None: ...


def test_an_image_that_kills_its_worker_is_set_aside_and_its_neighbours_are_labelled(chosen: config.Config) -> None:
    lenient = chosen.model_copy(update={"max_failed_fraction": 0.5})
    workers: list[DyingWorkers] = []

    def dying(spec: WorkerSpec, c: config.Config) -> WorkerPool:
        workers.append(DyingWorkers(spec, "07.jpg"))
        return workers[-1]

    summary = run.label(lenient, Notes(), dying)
    assert keys(chosen) == ALL
    assert summary.failures == (("07.jpg", "process", "worker 2 on here: killed by signal 11"),)
    assert summary.images == {"ok": 19, "failed": 1}
    assert workers[0]._lives == 3


class HungWorkers(DyingWorkers):
    """Workers in which the first image of every task hangs; a retired one is replaced at once."""

    def __init__(self, spec: WorkerSpec) -> None:
        super().__init__(spec, "")
        self._at: tuple[float, Task] | None = None

    def assign(self, worker: str, task: Task, refs: Sequence[ImageRef]) -> None:
        self._at = self._at or (time.monotonic(), task)

    def events(self, timeout_s: float) -> list[PoolEvent]:
        time.sleep(0.002)
        found = super().events(timeout_s)
        if self._at is not None:
            since_s, task = self._at
            place = InFlight(task.unit, task.start, "infer", time.monotonic() - since_s)
            found.append(ProgressUpdate(str(self._lives), Progress(0, (place,))))
        return found

    def replace(self, worker: str) -> None:
        self._at = None
        self._lives += 1
        self._events.append(WorkerJoined(str(self._lives), FACTS))


def test_a_run_in_which_everything_hangs_ends_and_says_where(chosen: config.Config) -> None:
    impatient = chosen.model_copy(
        update={
            "image": config.ImageSettings(timeout_s=0.01),
            "cluster": config.ClusterSettings(stall_timeout_s=0.2),
            "max_attempts": 2,
        }
    )
    listener = Notes()
    with pytest.raises(InfrastructureError, match="no image gets labelled") as caught:
        run.label(impatient, listener, lambda spec, c: HungWorkers(spec))
    where = r"\d\d\.jpg \(image \d of unit \d\) has been in infer for 0 s"
    assert re.search(rf"the last: worker \d+ on here: {where}; 20 images", caught.value.found)
    assert any(re.fullmatch(rf"worker 0 on here is replaced: {where}", note) for note in listener.notes)
    run.label(chosen, Notes(), start())
    assert keys(chosen) == ALL


def test_a_merge_that_never_ends_stops_the_run(chosen: config.Config) -> None:
    class Silent(InProcess):
        def call(self, function: Callable[..., Any], *args: Any) -> Any:
            return Future()

    impatient = chosen.model_copy(update={"publish": config.PublishSettings(timeout_s=0.1)})
    with pytest.raises(InfrastructureError, match=r"not merged in time[\s\S]*publish\.timeout_s"):
        run.label(impatient, Notes(), lambda spec, c: Silent(Stub(spec), FACTS))
    run.label(chosen, Notes(), start())
    assert keys(chosen) == ALL


def test_losing_a_race_plans_again_and_labels_nothing_twice(
    chosen: config.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_batch, raced = commit.commit, []

    def race(*args: Any) -> None:
        if not raced:
            raced.append(True)
            run.label(chosen, Notes(), start())
        commit_batch(*args)

    monkeypatch.setattr(commit, "commit", race)
    listener = Notes()
    run.label(chosen, listener, start())
    assert any("planning again" in note for note in listener.notes)
    assert keys(chosen) == ALL
    assert segray.scan(chosen.output.root).count_rows() == 20


@pytest.mark.integration
def test_a_limited_run_that_loses_a_race_still_labels_the_first_images_and_no_more(
    chosen: config.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit_batch, raced = commit.commit, []

    def race(*args: Any) -> None:
        if not raced:
            raced.append(True)
            run.label(chosen, Notes(), start(), limit=3)
        commit_batch(*args)

    monkeypatch.setattr(commit, "commit", race)
    run.label(chosen, Notes(), start(), limit=7)
    assert keys(chosen) == ALL[:7]
    there = {path for path in Path(chosen.output.root).glob("*/**/*.parquet") if "_segray" not in path.parts}
    tables = (open_table(chosen.output.root, name, StorageOptions()) for name in ("images", "instances"))
    assert len(there) == sum(len(delta_log.files_of(table)) for table in tables if table), "the loser's files are gone"


def test_more_failures_than_allowed_end_with_exit_3(chosen: config.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    strict = chosen.model_copy(update={"max_failed_fraction": 0.0})
    summary = run.label(strict, Notes(), lambda spec, c: DyingWorkers(spec, "07.jpg"))
    assert summary.exit_code == 3


def test_two_precisions_under_auto_are_refused(chosen: config.Config) -> None:
    class Mixed(InProcess):
        def events(self, timeout_s: float) -> list[PoolEvent]:
            return [WorkerJoined("1", {**FACTS, "precision": "bf16"}), *super().events(timeout_s)]

    with pytest.raises(ConfigError, match="different precisions"):
        run.label(chosen, Notes(), lambda spec, c: Mixed(Stub(spec), FACTS))


@pytest.mark.parametrize(
    ("precision", "device", "reason"),
    [
        ("bf16", "CPU", "the CPU has bf16"),
        ("f32", "CPU", "the CPU has no bf16"),
        ("int8+f32", "CPU", "the model is quantised and the CPU has no bf16"),
        ("f16", "GPU", "f16 is the default of the device"),
    ],
)
def test_a_log_says_what_auto_chose_and_why(chosen: config.Config, precision: str, device: str, reason: str) -> None:
    facts = {**FACTS, "precision": precision, "device": device}
    told = Notes()
    run.label(chosen, told, lambda spec, c: InProcess(Stub(spec), facts), limit=1)
    assert [note for note in told.notes if f", {precision}, precision auto, since {reason}" in note]


def test_a_precision_that_is_set_needs_no_reason(chosen: config.Config) -> None:
    fixed = chosen.model_copy(update={"model": chosen.model.model_copy(update={"precision": "f32"})})
    told = Notes()
    run.label(fixed, told, start(), limit=1)
    assert [note for note in told.notes if note.startswith("worker ready")]
    assert not [note for note in told.notes if "auto" in note]


def test_a_limit_and_a_dry_run(chosen: config.Config) -> None:
    assert run.label(chosen, Notes(), start(), dry_run=True).planned == 20
    assert not Path(chosen.output.root).exists()
    run.label(chosen, Notes(), start(), limit=3)
    assert keys(chosen) == ALL[:3]


def test_an_empty_dataset_is_refused_and_leaves_nothing_behind(chosen: config.Config, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty = chosen.model_copy(update={"source": config.SourceSettings(uri=str(tmp_path / "empty"))})
    with pytest.raises(SourceError):
        run.label(empty, Notes(), start())
    assert not Path(chosen.output.root).exists()


def test_small_batches_are_committed_one_after_another(chosen: config.Config) -> None:
    small = chosen.model_copy(update={"publish": config.PublishSettings(batch_images=5)})
    run.label(small, Notes(), start())
    batches = set(segray.images(chosen.output.root).to_table().column("batch").to_pylist())
    assert len(batches) > 1
    assert batches == set(range(1, len(batches) + 1))
    assert keys(chosen) == ALL


def retiring(chosen: config.Config, most: float = 0.5) -> config.Config:
    source = chosen.source.model_copy(update={"deleted": "retire", "max_retired_fraction": most})
    return chosen.model_copy(update={"source": source, "publish": config.PublishSettings(batch_images=2)})


def gone(chosen: config.Config, *names: str) -> None:
    for name in names:
        (Path(chosen.source.uri) / name).unlink()


@pytest.mark.integration
def test_images_that_are_gone_keep_their_rows_unless_the_configuration_says_otherwise(chosen: config.Config) -> None:
    run.label(chosen, Notes(), start())
    gone(chosen, "00.jpg", "07.jpg", "19.jpg")
    run.label(chosen, Notes(), lambda spec, c: pytest.fail("no worker is needed"))
    assert keys(chosen) == ALL
    listener = Notes()
    assert run.label(retiring(chosen), listener, start(), dry_run=True).retired == 3
    assert "3 images to retire, which the source no longer has" in listener.notes[-1]
    assert keys(chosen) == ALL
    assert run.label(retiring(chosen), Notes(), start(), limit=5).retired == 0
    summary = run.label(retiring(chosen), Notes(), lambda spec, c: pytest.fail("no worker is needed"))
    assert (summary.retired, summary.images, summary.classes) == (3, {"ok": 17}, {"stop sign": 17})
    assert segray.scan(chosen.output.root).count_rows() == 17
    assert verify(chosen.output.root, StorageOptions()).violations == ()
    again = run.label(retiring(chosen), Notes(), lambda spec, c: pytest.fail("no worker is needed"))
    assert again.retired == 0


@pytest.mark.integration
def test_images_that_come_back_are_labelled_anew(chosen: config.Config) -> None:
    run.label(chosen, Notes(), start())
    path = Path(chosen.source.uri) / "07.jpg"
    away = path.rename(path.parents[1] / "07.jpg")
    run.label(retiring(chosen), Notes(), start())
    assert keys(chosen) == [key for key in ALL if key != "07.jpg"]
    away.rename(path)
    assert run.label(retiring(chosen), Notes(), start()).tally.images == 1
    assert keys(chosen) == ALL
    assert verify(chosen.output.root, StorageOptions()).violations == ()


def test_new_changed_and_deleted_images_in_one_run(chosen: config.Config) -> None:
    run.label(chosen, Notes(), start())
    gone(chosen, "00.jpg", "01.jpg", "02.jpg")
    for name in ("03.jpg", "99.jpg"):
        (Path(chosen.source.uri) / name).write_bytes(b"other")
    summary = run.label(retiring(chosen), Notes(), start())
    assert (summary.retired, summary.tally.images) == (3, 2)
    assert keys(chosen) == [*ALL[3:], "99.jpg"]
    assert verify(chosen.output.root, StorageOptions()).violations == ()


@pytest.mark.parametrize("entry", ["root", "parent"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_root_that_is_no_folder_is_refused(chosen: config.Config, tmp_path: Path, entry: str, kind: str) -> None:
    path = tmp_path / "place"
    path.write_bytes(b"") if kind == "file" else path.symlink_to(tmp_path / "gone")
    root = path if entry == "root" else path / "labels"
    moved = chosen.model_copy(update={"output": config.OutputSettings(root=str(root))})
    with pytest.raises(LabelSetError, match=r"not a folder|without a target") as caught:
        run.label(moved, Notes(), start())
    assert caught.value.where == str(path)
    assert [other.name for other in tmp_path.iterdir() if other.name != "images"] == ["place"]


@pytest.mark.parametrize("folder", ["", "images", "instances"])
def test_a_root_with_a_table_of_another_program_is_refused(chosen: config.Config, folder: str) -> None:
    table = Path(chosen.output.root, folder)
    deltalake.write_deltalake(table, pa.table({"price": [1]}))
    before = sorted(table.rglob("*"))
    for dry_run in (True, False):
        with pytest.raises(LabelSetError, match="Delta table of another program") as caught:
            run.label(chosen, Notes(), start(), dry_run=dry_run)
        assert caught.value.where == str(table)
    assert sorted(table.rglob("*")) == before


def test_rows_below_a_folder_that_cannot_be_listed_stay(chosen: config.Config, tmp_path: Path) -> None:
    photos, day = Path(chosen.source.uri), tmp_path / "disk" / "day"
    day.mkdir(parents=True)
    (day / "20.jpg").write_bytes(b"20")
    (photos / "day").symlink_to(day)
    assert run.label(chosen, Notes(), start()).images == {"ok": 21}
    day.parent.rename(tmp_path / "unmounted")
    (photos / "03.jpg").unlink()
    listener = Notes()
    assert run.label(retiring(chosen), listener, start()).retired == 1
    assert keys(chosen) == sorted({*ALL, "day/20.jpg"} - {"03.jpg"})
    assert "passed over: day (a link without a target)" in listener.notes


def test_a_source_that_lost_too_much_is_refused_and_nothing_is_retired(chosen: config.Config) -> None:
    run.label(chosen, Notes(), start())
    gone(chosen, *ALL[:11])
    with pytest.raises(SourceError, match=r"11 of 20 are not listed[\s\S]*max_retired_fraction"):
        run.label(retiring(chosen), Notes(), start())
    gone(chosen, *ALL[11:])
    with pytest.raises(SourceError):
        run.label(retiring(chosen, 1.0), Notes(), start())
    assert keys(chosen) == ALL


@pytest.mark.integration
def test_a_retirement_that_compaction_overtakes_is_finished(
    chosen: config.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dies between the two tables; the files of `images` are then rewritten by maintenance."""
    small = chosen.model_copy(update={"publish": config.PublishSettings(batch_images=2)})
    run.label(small, Notes(), start())
    gone(chosen, "00.jpg")
    write_transaction = delta_log._write_transaction

    def dying(table: Any, name: str, *args: Any, **kwargs: Any) -> None:
        if name == "images":
            raise InfrastructureError("dead")
        write_transaction(table, name, *args, **kwargs)

    monkeypatch.setattr(delta_log, "_write_transaction", dying)
    with pytest.raises(InfrastructureError):
        run.label(retiring(chosen), Notes(), start())
    monkeypatch.undo()
    assert segray.scan(chosen.output.root).count_rows() + 1 == segray.images(chosen.output.root).count_rows()
    _rewrite(chosen.output.root)
    run.label(retiring(chosen), Notes(), start())
    assert keys(chosen) == ALL[1:]
    assert verify(chosen.output.root, StorageOptions()).violations == ()


@pytest.mark.integration
def test_a_batch_that_compaction_overtakes_is_merged_again_by_the_same_workers(
    chosen: config.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = chosen.model_copy(update={"publish": config.PublishSettings(batch_images=2)})
    run.label(small, Notes(), start())
    for name in ALL[:3]:
        (Path(chosen.source.uri) / name).write_bytes(b"changed")
    merge_batch, merges, started = merge.merge, [], []

    def overtaken(*args: Any) -> batches.Batch:
        batch = merge_batch(*args)
        if not merges:
            maintenance.maintain(chosen.output.root, StorageOptions(), limits=maintenance.CompactionThresholds(files=2))
        merges.append(batch.number)
        return batch

    def starting(spec: WorkerSpec, c: config.Config) -> WorkerPool:
        started.append(1)
        return start()(spec, c)

    monkeypatch.setattr(merge, "merge", overtaken)
    listener = Notes()
    run.label(chosen, listener, starting)
    assert (len(merges), len(set(merges)), len(started)) == (2, 1, 1)
    assert any("merging them again" in note for note in listener.notes)
    assert keys(chosen) == ALL
    assert verify(chosen.output.root, StorageOptions()).violations == ()


def _rewrite(root: str) -> None:
    """One file of all rows of `images`, as compaction would make it."""
    table = open_table(root, "images", StorageOptions())
    assert table is not None
    rows = SpillableRows()
    rows.add(table.to_pyarrow_dataset().to_table().cast(schema.IMAGES).sort_by("image_key"))
    files = tuple(DataFileWriter(Store(), root, "c0", {}, 1000).write("images", rows))
    commit.replace_files(root, StorageOptions(), "images", delta_log.Changes(files, tuple(delta_log.files_of(table))))
