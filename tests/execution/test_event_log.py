"""The event log: every event survives the file, and a run is replayed to the state that it had."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from properties import tried
from scheduling import CheckedScheduler
from test_run import ALL, DyingWorkers, Notes, chosen, keys, start

from segray import config
from segray.errors import InfrastructureError, SegrayError
from segray.execution import event_log, replay, run
from segray.execution.event_log import EventLog, Note
from segray.execution.events import (
    Assign,
    Event,
    ProgressUpdate,
    TaskFailed,
    TaskFinished,
    Tick,
    WorkerDraining,
    WorkerJoined,
    WorkerLost,
)
from segray.execution.scheduler import Policy
from segray.storage.store import Store
from segray.tasks import InFlight, Progress, Task, TaskReport, UnitReport, WithheldImage

__all__ = ["chosen"]

NUMBERS, TEXTS, SECONDS = st.integers(0, 2**40), st.text(max_size=8), st.floats(0, 1e9)
TASKS = st.builds(
    lambda unit, indices, attempt: Task.of(unit, sorted(indices), attempt),
    NUMBERS,
    st.sets(st.integers(0, 300), min_size=1, max_size=9),
    st.integers(1, 5),
)
IMAGES = st.lists(st.builds(InFlight, NUMBERS, NUMBERS, TEXTS, SECONDS), max_size=3).map(tuple)
REPORTS = st.builds(
    UnitReport, TASKS, TEXTS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.dictionaries(TEXTS, SECONDS, max_size=2)
)
EVENTS = st.one_of(
    st.builds(WorkerJoined, TEXTS, st.dictionaries(TEXTS, TEXTS, max_size=3)),
    st.builds(TaskFailed, TEXTS, TASKS, TEXTS, st.booleans()),
    st.builds(WorkerLost, TEXTS, TEXTS, st.booleans(), st.none() | IMAGES),
    st.builds(WorkerDraining, TEXTS),
    st.builds(ProgressUpdate, TEXTS, st.builds(Progress, NUMBERS, IMAGES, NUMBERS, st.none() | NUMBERS)),
    st.builds(
        TaskFinished,
        TEXTS,
        st.builds(
            TaskReport,
            TASKS,
            st.lists(REPORTS, max_size=2).map(tuple),
            st.lists(st.builds(WithheldImage, NUMBERS, TEXTS, st.booleans(), TEXTS), max_size=2).map(tuple),
            st.lists(NUMBERS, max_size=2).map(tuple),
        ),
    ),
    st.just(Tick()),
)


@tried(200)
@given(st.lists(st.tuples(SECONDS, EVENTS), max_size=6))
def test_every_event_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[float, Event]]
) -> None:
    folder = str(tmp_path_factory.mktemp("run"))
    tasks = [Task(0, 0, 5), Task(1, 2, 4, 2, (2, 3))]
    log = EventLog(Store(), folder, tasks, Policy(image_timeout_s=3.5), {(1, 3)}, pytest.fail)
    for now_s, event in events:
        log.record(event, now_s)
    log.note("batch 1 is committed")
    log.flush(lambda: {"done": 7}, last=True)
    (series,) = event_log.read(Store(), folder)
    assert (series.policy, list(series.tasks)) == (Policy(image_timeout_s=3.5), tasks)
    assert series.withheld_before == {(1, 3)}
    *entries, note, state = series.events()
    assert entries == events
    assert isinstance(note, Note)
    assert (note.text, state) == ("batch 1 is committed", {"done": 7})


def run_folder(chosen: config.Config) -> Path:
    (folder,) = Path(chosen.output.root).glob("_segray/runs/*")
    return folder


def test_a_run_is_replayed_to_the_state_that_it_had(chosen: config.Config, capsys: pytest.CaptureFixture[str]) -> None:
    lenient = chosen.model_copy(update={"max_failed_fraction": 0.5})
    run.label(lenient, Notes(), lambda spec, c: DyingWorkers(spec, "07.jpg"))
    assert keys(chosen) == ALL
    folder = run_folder(chosen)
    assert replay.main([str(folder)]) == 0
    told = capsys.readouterr().out
    assert "worker 0 on here is lost: killed by signal 11; images in flight: as in its last progress" in told
    assert "-> quarantine 07.jpg (image 3 of unit 1): worker 2 on here: killed by signal 11" in told
    assert told.rstrip().endswith("events replayed to the recorded state: 20 images done, complete")
    assert "batch 1: merging" in told
    assert "batch 1 is committed: " in told
    with pytest.raises(SystemExit):
        replay.main([str(folder), "--image", "5"])
    assert "argument --image: invalid" in capsys.readouterr().err
    assert replay.main([str(folder), "--image", "1:3"]) == 0
    one = capsys.readouterr().out
    assert one.count("assign unit 1") == 3
    assert "unit 0" not in one


def test_a_log_that_was_changed_or_is_incomplete_is_told(
    chosen: config.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    run.label(chosen, Notes(), start())
    (file,) = (run_folder(chosen) / "events").iterdir()
    lines = gzip.decompress(file.read_bytes()).splitlines()
    finished = next(at for at, line in enumerate(lines) if b"TaskFinished" in line)
    file.write_bytes(gzip.compress(b"\n".join([*lines[:finished], *lines[finished + 1 :]])))
    assert replay.main([str(run_folder(chosen))]) == 1
    assert "the replay reached another state than the run" in capsys.readouterr().err
    file.write_bytes(gzip.compress(b"\n".join(lines))[:-20])
    assert replay.main([str(run_folder(chosen))]) == 1
    assert "a file of the event log cannot be read" in capsys.readouterr().err
    file.rename(file.with_name(file.name.replace("-00001", "-00002")))
    with pytest.raises(SegrayError, match="a file of the event log is missing"):
        event_log.read(Store(), str(run_folder(chosen)))


def test_a_long_run_writes_as_it_goes_and_the_files_are_one_series(tmp_path: Path) -> None:
    now_s = 0.0
    tasks = [Task(unit, 0, 8) for unit in range(40)]
    scheduler = CheckedScheduler(tasks, Policy())
    log = EventLog(Store(), str(tmp_path), tasks, Policy(), (), pytest.fail, lambda: now_s)

    def handle(event: Event) -> list[Task]:
        log.record(event, now_s)
        return [action.task for action in scheduler.handle(event, now_s) if isinstance(action, Assign)]

    waiting = handle(WorkerJoined("a", {"host": "h"}))
    while waiting:
        now_s += 7
        waiting += handle(TaskFinished("a", TaskReport(waiting.pop(0), ())))
        log.flush(scheduler.state)
        if log._writing is not None:
            log._writing.result()
    log.flush(scheduler.state, last=True)
    names = sorted(path.name for path in (tmp_path / "events").iterdir())
    assert len(names) > 3
    (series,) = event_log.read(Store(), str(tmp_path))
    replayed = CheckedScheduler(series.tasks, series.policy)
    events = [event for _, event, _ in replay.replay(series, replayed)]
    assert (replayed.state(), len(events)) == (scheduler.state(), len(scheduler.history))


def test_a_run_whose_log_cannot_be_written_goes_on_and_says_so_once(
    chosen: config.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Store.put

    def refuse(self: Store, uri: str, data: bytes) -> None:
        if "/events/" in uri:
            raise InfrastructureError("storage is full", found="507")
        put(self, uri, data)

    monkeypatch.setattr(Store, "put", refuse)
    listener = Notes()
    run.label(chosen, listener, start())
    assert keys(chosen) == ALL
    told = [note for note in listener.notes if "event log" in note]
    assert told == ["the event log of this run ends here, since a file cannot be written (storage is full: 507)"]


def test_the_log_is_small(chosen: config.Config) -> None:
    run.label(chosen, Notes(), start())
    (file,) = (run_folder(chosen) / "events").iterdir()
    head = json.loads(gzip.decompress(file.read_bytes()).splitlines()[0])
    assert set(head) == {"policy", "tasks", "withheld_before"}
    assert file.stat().st_size < 10_000
