"""The sign of life of a run, and what another terminal makes of it whatever the clocks say."""

from __future__ import annotations

import json
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from swift_server import Swift

from segray.cli.remote import describe_status
from segray.errors import InfrastructureError, LabelSetError
from segray.execution.events import ProgressUpdate, WorkerJoined
from segray.execution.progress import ProgressTracker, RunProgress
from segray.label_set.run_records import Run
from segray.monitoring import heartbeat, status
from segray.monitoring.heartbeat import HeartbeatWriter, uri_of
from segray.storage.store import StorageOptions, Store
from segray.tasks import InFlight, Progress

NOW_S = 1_800_000_000.0


def stamp(second: float) -> str:
    return datetime.fromtimestamp(second, UTC).isoformat()


def vitals(run: Run, done: int = 40) -> RunProgress:
    tracker = ProgressTracker()
    tracker.add_event(WorkerJoined("0", {"host": "slow-host", "device": "CPU"}), 0.0)
    tracker.add_event(ProgressUpdate("0", Progress(40, (InFlight(1, 2, "decode", 4.0),), 300 * 2**20)), 10.0)
    return tracker.progress(run, images=100, done=done, waiting=50, labelling=True)


class LabelSet:
    """One run's records, as a driver would have written them at some second of its clock."""

    def __init__(self, root: Path, state: str = "running") -> None:
        self.root, self.run, self.state = str(root), Run(str(root), "20270115T080000.000000Z-00000000"), state
        self.beats, self.ended = 0, state != "running"

    def beats_at(self, second: float) -> None:
        self.beats += 1
        self.run.save(Store(), {"state": self.state, "updated": stamp(second), "images": 100, "source": "s3://b/x"})
        beat = {
            "beat": self.beats,
            "every_s": 5.0,
            "ended": self.ended,
            "at": stamp(second),
            "driver": {"host": "h", "pid": 7, "job": "segray-x-1"},
            **heartbeat.record(vitals(self.run)),
        }
        Store().put(uri_of(self.run), json.dumps(beat).encode())

    def look(self, now_s: float = NOW_S, *, meanwhile: Any = None) -> tuple[status.Status, list[float]]:
        """What is found, and the seconds that were waited for it. meanwhile: called at each wait."""
        waited: list[float] = []

        def sleep(seconds: float) -> None:
            waited.append(seconds)
            if meanwhile:
                meanwhile()

        found = status.status(self.root, StorageOptions(), now=lambda: now_s + sum(waited), sleep=sleep)
        return found, waited


def test_a_fresh_beat_is_a_live_run(tmp_path: Path) -> None:
    labels = LabelSet(tmp_path)
    labels.beats_at(NOW_S - 4)
    found, waited = labels.look()
    assert (found.state, found.exit_code, waited) == ("live", 0, [])
    text = describe_status(found)
    assert "40 of 100 images (40%), 4.0 images/s, 15 s left" in text
    assert "slow-host (CPU): 4.0 images/s, 1 in flight, longest 4 s in decode, 300 MiB" in text
    assert "job segray-x-1" in text


def test_silence_is_watched_before_it_is_called_death(tmp_path: Path) -> None:
    labels = LabelSet(tmp_path)
    labels.beats_at(NOW_S - 600)
    found, waited = labels.look()
    assert (found.state, found.exit_code) == ("gone", 3)
    assert sum(waited) >= 10, "two beats"
    assert "no heartbeat for 10 min 0 s: the driver is probably gone" in describe_status(found)
    assert "run the same command again to resume" in describe_status(found)


@pytest.mark.parametrize("clock_ahead_s", [-3600.0, 3600.0])
def test_a_beat_that_comes_proves_life_whatever_the_clocks_say(tmp_path: Path, clock_ahead_s: float) -> None:
    labels = LabelSet(tmp_path)
    labels.beats_at(NOW_S - clock_ahead_s)
    found, _ = labels.look(meanwhile=lambda: labels.beats_at(NOW_S - clock_ahead_s + 5))
    assert found.state == "live"
    assert (found.skew_s is not None) == (clock_ahead_s < 0)
    assert labels.look()[0].state == "gone", "and none that comes is death, however young it looks"


def test_after_hours_nobody_waits(tmp_path: Path) -> None:
    labels = LabelSet(tmp_path)
    labels.beats_at(NOW_S - 86_400)
    found, waited = labels.look()
    assert (found.state, waited) == ("gone", [])


@pytest.mark.parametrize(("state", "code"), [("done", 0), ("interrupted", 3), ("stopped", 3)])
def test_how_the_last_run_ended(tmp_path: Path, state: str, code: int) -> None:
    labels = LabelSet(tmp_path, state)
    labels.beats_at(NOW_S - 86_400)
    found, _ = labels.look()
    assert (found.state, found.exit_code) == (state, code)
    assert ("work is left" in describe_status(found)) == (code == 3)


def test_a_run_that_ends_while_watched_has_ended(tmp_path: Path) -> None:
    labels = LabelSet(tmp_path)
    labels.beats_at(NOW_S - 600)

    def end() -> None:
        labels.state, labels.ended = "done", True
        labels.beats_at(NOW_S)

    assert labels.look(meanwhile=end)[0].state == "done"


def test_a_resumed_run_lives_though_its_record_still_says_how_it_was_left(tmp_path: Path) -> None:
    labels = LabelSet(tmp_path, "interrupted")
    labels.beats_at(NOW_S - 60)
    assert labels.look()[0].state == "interrupted"
    labels.ended = False
    labels.beats_at(NOW_S - 2)
    assert labels.look()[0].state == "live"
    assert labels.look(NOW_S + 600)[0].state == "gone"


def test_without_a_heartbeat_the_record_of_the_run_is_a_sign(tmp_path: Path) -> None:
    labels = LabelSet(tmp_path)
    labels.beats_at(NOW_S - 3)
    Store().delete(uri_of(labels.run))
    found, _ = labels.look()
    assert found.state == "live"
    assert "100 images" in describe_status(found)


def test_a_folder_that_is_no_label_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabelSetError, match="no label set"):
        status.status(str(tmp_path), StorageOptions())


def await_beat(heart: HeartbeatWriter) -> None:
    deadline = time.monotonic() + 60
    while not heart.beats:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_heart_beats_while_there_is_news_and_once_more_at_the_end(tmp_path: Path) -> None:
    run = Run(str(tmp_path), "r")
    heart = HeartbeatWriter(StorageOptions(), lambda text: pytest.fail(text), every_s=3600)
    heart.beat(vitals(run, done=1))
    await_beat(heart)
    written = Path(uri_of(run))
    assert json.loads(written.read_text())["ended"] is False
    heart.beat(vitals(run, done=2))
    heart.close()
    found = json.loads(written.read_text())
    assert (found["done"], found["beat"], found["ended"], heart.beats) == (2, 1, True, 2)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (InfrastructureError("storage is down", found="503"), "storage is down (503)"),
        (FileNotFoundError("not a directory"), "FileNotFoundError('not a directory')"),
    ],
    ids=["storage", "anything"],
)
def test_what_cannot_be_written_is_told_once_and_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    told: list[str] = []
    seen = threading.Semaphore(0)

    def refuse(store: Store, uri: str, data: bytes) -> None:
        assert store.options.retries == 0
        seen.release()
        raise error

    monkeypatch.setattr(Store, "put", refuse)
    heart = HeartbeatWriter(StorageOptions(), told.append, every_s=0.001)
    for _ in range(3):
        heart.beat(vitals(Run(str(tmp_path), "r")))
        assert seen.acquire(timeout=60)
    heart.close()
    assert heart.missed >= 3
    assert told == ["the heartbeat cannot be written, the run continues: " + words]


@pytest.mark.integration
def test_a_heartbeat_in_a_bucket_is_read_from_anywhere(swift_env: Swift) -> None:
    options = StorageOptions(endpoint_url=swift_env.endpoint_url)
    root = f"s3://{swift_env.bucket()}/labels"
    run = Run(root, "20270115T080000.000000Z-00000000")
    run.save(Store(options), {"state": "running", "updated": stamp(time.time())})
    heart = HeartbeatWriter(options, lambda text: pytest.fail(text), every_s=3600)
    heart.beat(vitals(run, done=1))
    await_beat(heart)
    found = status.status(root, options)
    assert (found.state, found.beat["done"], found.run_id) == ("live", 1, run.id)
    heart.close()
    assert status.status(root, options).state == "gone", "it ended, and did not say how"
