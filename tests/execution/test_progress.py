"""What is counted while a run goes, and which numbers leave for Prometheus."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from segray.execution.events import ProgressUpdate, WorkerJoined, WorkerLost
from segray.execution.progress import ProgressTracker, RunProgress
from segray.label_set.run_records import Run
from segray.monitoring import prometheus
from segray.tasks import InFlight, Progress, Task, UnitReport

INFRA = Path(__file__).parents[2] / "infra"
RUN = Run("/labels", "r1")


def report(unit: int, ok: int = 4, failed: int = 0) -> UnitReport:
    task = Task(unit, 0, ok + failed)
    return UnitReport(task, "u", ok, 0, failed, 3 * ok, 100 * ok, {"read": 1.5, "infer": 2.0}, {"infer": 1.0})


def joined(worker: str, host: str = "a", device: str = "CPU") -> WorkerJoined:
    return WorkerJoined(worker, {"host": host, "device": device})


def look(tracker: ProgressTracker, done: int = 0, waiting: int = 0) -> RunProgress:
    return tracker.progress(RUN, images=100, done=done, waiting=waiting, labelling=True)


def test_rates_are_of_the_last_minute_and_tell_when_it_will_be_done() -> None:
    tracker = ProgressTracker()
    tracker.add_event(joined("0"), 0.0)
    assert look(tracker).eta_s is None
    for second in range(1, 601):
        tracker.add_event(
            ProgressUpdate("0", Progress(2 * second if second < 300 else 600 + (second - 300) // 2)), float(second)
        )
    found = look(tracker, done=50)
    assert found.images_per_s == pytest.approx(0.5, rel=0.1)
    assert found.eta_s == pytest.approx(100, rel=0.1)


def test_the_lost_are_counted_and_work_no_more() -> None:
    tracker = ProgressTracker()
    tracker.add_event(joined("0"), 0.0)
    tracker.add_event(joined("1", "b"), 0.0)
    tracker.add_event(
        ProgressUpdate("1", Progress(3, (InFlight(7, 1, "infer", 2.0), InFlight(7, 2, "read", 9.0)), 5_000)), 4.0
    )
    (_, other) = look(tracker).workers
    assert (other.in_flight, other.rss_bytes, other.longest) == (2, 5_000, ("read", 9.0))
    tracker.add_event(WorkerLost("1", "killed", True), 5.0)
    tracker.remove_worker("1")
    tracker.add_event(joined("2"), 5.0)
    tracker.remove_worker("2", released=True)
    tracker.add_event(ProgressUpdate("1", Progress(9)), 6.0)
    found = look(tracker)
    assert [each.worker for each in found.workers] == ["0"]
    assert found.lost == 1


class Recorder:
    """ray.util.metrics, without Ray."""

    def __init__(self) -> None:
        self.values: Counter[tuple[str, ...]] = Counter()

    def Counter(self, name: str, description: str, tag_keys: tuple[str, ...]) -> Recorded:  # noqa: N802
        return Recorded(self, name, tag_keys)

    Gauge = Counter


class Recorded:
    def __init__(self, to: Recorder, name: str, keys: tuple[str, ...]) -> None:
        self._to, self._name, self._keys = to, name, keys

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert value > 0
        assert tuple(tags) == self._keys
        self._to.values[self._name, *tags.values()] += value

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert tuple(tags) == self._keys
        self._to.values[self._name, *tags.values()] = value


def test_counters_tell_totals_however_often_they_are_asked_and_gauges_what_is(monkeypatch: pytest.MonkeyPatch) -> None:
    told, tracker, exported = Recorder(), ProgressTracker(), prometheus.Metrics("s3://labels/photos/")
    monkeypatch.setattr(prometheus.importlib, "import_module", lambda name: told)
    tracker.add_event(joined("0"), 0.0)
    tracker.add_event(ProgressUpdate("0", Progress(5, (InFlight(0, 1, "infer", 1.0),), 9_000)), 1.0)
    for unit in range(3):
        tracker.add_assignment(unit)
        tracker.add_report(report(unit, failed=1))
        exported.beat(look(tracker, done=5 * unit, waiting=80))
        exported.beat(look(tracker, done=5 * unit, waiting=80))
    tracker.add_commit(2.0, 0.5, 3)
    tracker.add_event(WorkerLost("0", "killed", True), 5.0)
    exported.beat(look(tracker, done=15))
    assert told.values["segray_images_total", "ok"] == 12
    assert told.values["segray_images_total", "failed"] == 3
    assert ("segray_images_total", "empty") not in told.values
    assert told.values["segray_stage_seconds_total", "infer"] == 6.0
    assert told.values["segray_publish_seconds_total", "merge"] == 2.0
    assert (told.values["segray_units_total",], told.values["segray_retries_total",]) == (3, 1)
    assert told.values["segray_workers", "CPU"] == told.values["segray_worker_rss_bytes", "a"] == 0
    assert told.values["segray_done_images",] == 15
    name = prometheus.label_set("s3://labels/photos")
    assert name.startswith("photos-")
    assert told.values["segray_left_images", name] == look(tracker, done=15).images - 15 > 0
    monkeypatch.setattr(prometheus.signals, "stop_requested", lambda: True)
    exported.beat(look(tracker, done=15))
    assert told.values["segray_left_images", name] == 0
    assert {name for name, *_ in told.values} == {*prometheus.COUNTERS, *prometheus.GAUGES}


def expressions() -> list[tuple[str, str]]:
    """Every expression of the dashboard and of the alerts, with the file that it is in."""
    dashboard = json.loads((INFRA / "grafana" / "segray.json").read_text())
    found = [("dashboard", target["expr"]) for panel in dashboard["panels"] for target in panel.get("targets", [])]
    rules = (INFRA / "prometheus" / "alerts.yml").read_text()
    return found + [
        ("alerts", line) for line in rules.splitlines() if "ray_" in line and not line.lstrip().startswith("#")
    ]


def test_every_expression_asks_for_a_name_that_is_exported() -> None:
    asked = {name for _, text in expressions() for name in re.findall(r"\bray_\w+", text)}
    assert asked <= prometheus.NAMES, asked - prometheus.NAMES
    shown = {name for file, text in expressions() if file == "dashboard" for name in re.findall(r"\bray_\w+", text)}
    assert shown == prometheus.NAMES, "the dashboard shows all that there is"


def test_no_tag_can_grow_without_bound() -> None:
    tags = {tag for _, tags in (*prometheus.COUNTERS.values(), *prometheus.GAUGES.values()) for tag in tags}
    assert tags == {"status", "stage", "device", "host", "label_set"}  # A driver has one label set.
