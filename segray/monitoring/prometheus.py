"""The metrics of a run for Prometheus, exported by Ray: every name, its kind, tags and meaning.

The driver counts from the reports that it accepts. A unit that was lost and done again counts once, which a count in
the workers could not promise. Nothing is lost with a worker that dies between two exports. Tags are bounded: statuses,
stages, devices and hosts, never keys or URIs. Ray puts `ray_` before each name and adds SessionName and WorkerId. The
WorkerId is the driver's, so each run has one. Ray exports every ten seconds, and once more when the driver ends.
"""

from __future__ import annotations

import importlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from segray.execution.progress import ProgressListener, RunProgress

COUNTERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "segray_images_total": ("Images labelled, by status: ok, empty or failed.", ("status",)),
    "segray_instances_total": ("Instances found.", ()),
    "segray_read_bytes_total": ("Bytes of image files read.", ()),
    "segray_stage_seconds_total": ("Seconds that images spent in a stage, summed over threads.", ("stage",)),
    "segray_stage_cpu_seconds_total": ("CPU seconds that workers computed, by stage.", ("stage",)),
    "segray_units_total": ("Units finished.", ()),
    "segray_retries_total": ("Units given out again.", ()),
    "segray_lost_workers_total": ("Workers that died or were replaced.", ()),
    "segray_commits_total": ("Batches committed.", ()),
    "segray_publish_seconds_total": ("Seconds of publishing, by stage: merge or commit.", ("stage",)),
}
GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "segray_plan_images": ("Images of the run's plan.", ()),
    "segray_done_images": ("Of these, labelled, by earlier processes too.", ()),
    "segray_waiting_images": ("Images of the plan that no worker was given yet.", ()),
    "segray_in_flight_images": ("Images that workers are at.", ()),
    "segray_images_per_second": ("Images a second of all workers, over about the last minute.", ()),
    "segray_workers": ("Workers that are ready, by device.", ("device",)),
    "segray_worker_rss_bytes": ("Resident memory of the largest worker of a host.", ("host",)),
}
NAMES = frozenset(f"ray_{name}" for name in (*COUNTERS, *GAUGES))

# A metric's name, and the values of its tags in order.
Series = tuple[str, tuple[str, ...]]


class Metrics(ProgressListener):
    """An exporter of a run's progress. Ray must be connected before the first beat."""

    def __init__(self) -> None:
        self._known: dict[str, Any] = {}
        self._counted: defaultdict[Series, float] = defaultdict(float)
        self._gauged: set[Series] = set()

    def beat(self, vitals: RunProgress) -> None:
        for series, total in totals(vitals):
            if (more := total - self._counted[series]) > 0:
                self._counted[series] = total
                self._metric(series[0]).inc(more, self._tags(series))
        now = levels(vitals)
        for series in self._gauged - now.keys():  # Devices and hosts that have no worker any more.
            now[series] = 0.0
        self._gauged |= now.keys()
        for series, value in now.items():
            self._metric(series[0]).set(value, self._tags(series))

    def _metric(self, name: str) -> Any:
        if name not in self._known:
            kinds = importlib.import_module("ray.util.metrics")
            kind, (text, tags) = (kinds.Counter, COUNTERS[name]) if name in COUNTERS else (kinds.Gauge, GAUGES[name])
            self._known[name] = kind(name, description=text, tag_keys=tags)
        return self._known[name]

    def _tags(self, series: Series) -> dict[str, str]:
        name, values = series
        _, keys = COUNTERS.get(name) or GAUGES[name]
        return dict(zip(keys, values, strict=True))


def totals(vitals: RunProgress) -> Iterator[tuple[Series, float]]:
    """Yield each counter with its total, which only grows while a driver lives."""
    tally = vitals.counters
    for status in ("ok", "empty", "failed"):
        yield ("segray_images_total", (status,)), getattr(tally, status)
    yield ("segray_instances_total", ()), tally.instances
    yield ("segray_read_bytes_total", ()), tally.bytes_read
    for stage, seconds in tally.seconds.items():
        yield ("segray_stage_seconds_total", (stage,)), seconds
    for stage, seconds in tally.cpu_seconds.items():
        yield ("segray_stage_cpu_seconds_total", (stage,)), seconds
    yield ("segray_units_total", ()), vitals.units
    yield ("segray_retries_total", ()), vitals.retries
    yield ("segray_lost_workers_total", ()), vitals.lost
    yield ("segray_commits_total", ()), vitals.commits
    yield ("segray_publish_seconds_total", ("merge",)), tally.merge_s
    yield ("segray_publish_seconds_total", ("commit",)), tally.commit_s


def levels(vitals: RunProgress) -> dict[Series, float]:
    """Return each gauge with its present value."""
    found: dict[Series, float] = {
        ("segray_plan_images", ()): vitals.images,
        ("segray_done_images", ()): vitals.done,
        ("segray_waiting_images", ()): vitals.waiting,
        ("segray_in_flight_images", ()): vitals.in_flight,
        ("segray_images_per_second", ()): vitals.images_per_s,
    }
    for device, count in Counter(each.device for each in vitals.workers).items():
        found["segray_workers", (device,)] = count
    for each in vitals.workers:
        series = "segray_worker_rss_bytes", (each.host,)
        found[series] = max(found.get(series, 0.0), each.rss_bytes)
    return found
