"""The metrics of a run for Prometheus, exported by Ray: name, kind, tags and meaning of each metric.

The driver counts from the reports that it accepts. So a unit that was lost and labelled again counts once. No count is
lost when a worker dies between two exports. Tags have few values: statuses, stages, devices, hosts and short names of
label sets, never keys or URIs. A counter is born with its first count. Ray puts `ray_` before each name and adds
SessionName and WorkerId. The WorkerId is the driver's, so each run has one. Ray exports every ten seconds, and once
more when the driver ends.
"""

from __future__ import annotations

import hashlib
import importlib
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from segray._system import signals
from segray.execution.progress import ProgressListener, RunProgress
from segray.storage import uris

COUNTERS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "segray_images_total": ("Images labelled, by status: ok, empty or failed.", ("status",)),
    "segray_instances_total": ("Instances found.", ()),
    "segray_read_bytes_total": ("Bytes read from image files.", ()),
    "segray_stage_seconds_total": ("Wall seconds that images spent in a stage, summed over threads.", ("stage",)),
    "segray_stage_cpu_seconds_total": ("CPU seconds of the workers, by stage.", ("stage",)),
    "segray_units_total": ("Finished units.", ()),
    "segray_retries_total": ("Tasks that were assigned again.", ()),
    "segray_lost_workers_total": ("Workers that died or were replaced.", ()),
    "segray_commits_total": ("Committed batches.", ()),
    "segray_publish_seconds_total": ("Seconds of publishing, by stage: merge or commit.", ("stage",)),
}
GAUGES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "segray_plan_images": ("Images in the plan of the run.", ()),
    "segray_done_images": ("Images of the plan that are labelled, by earlier processes too.", ()),
    "segray_waiting_images": ("Images of the plan that are not assigned to a worker yet.", ()),
    "segray_in_flight_images": ("Images that workers are labelling now.", ()),
    "segray_images_per_second": ("Images per second of all workers, over about the last minute.", ()),
    "segray_workers": ("Ready workers, by device.", ("device",)),
    "segray_left_images": (
        "Images of the plan that are not labelled; 0 once a signal has asked the driver to stop.",
        ("label_set",),
    ),
    "segray_started_seconds": ("Start of the driver, in seconds since 1970.", ("label_set",)),
    "segray_worker_rss_bytes": ("Resident memory of the largest worker on a host, in bytes.", ("host",)),
}
NAMES = frozenset(f"ray_{name}" for name in (*COUNTERS, *GAUGES))

# A metric's name, and the values of its tags in order.
Series = tuple[str, tuple[str, ...]]


class Metrics(ProgressListener):
    """An exporter of a run's progress. Ray must be connected before the first beat.

    root: root of the label set.
    """

    def __init__(self, root: str) -> None:
        self._label_set, self._started_s = label_set(root), time.time()
        self._metrics: dict[str, Any] = {}
        self._counted: defaultdict[Series, float] = defaultdict(float)
        self._gauged: set[Series] = set()

    def beat(self, progress: RunProgress) -> None:
        for series, total in totals(progress):
            if (increase := total - self._counted[series]) > 0:
                self._counted[series] = total
                self._metric(series[0]).inc(increase, self._tags(series))
        values = levels(progress)
        values["segray_left_images", (self._label_set,)] = _left_images(progress)
        values["segray_started_seconds", (self._label_set,)] = self._started_s
        for series in self._gauged - values.keys():  # Devices and hosts without a worker.
            values[series] = 0.0
        self._gauged |= values.keys()
        for series, value in values.items():
            self._metric(series[0]).set(value, self._tags(series))

    def _metric(self, name: str) -> Any:
        if name not in self._metrics:
            ray_metrics = importlib.import_module("ray.util.metrics")
            metric_class = ray_metrics.Counter if name in COUNTERS else ray_metrics.Gauge
            description, tags = COUNTERS.get(name) or GAUGES[name]
            self._metrics[name] = metric_class(name, description=description, tag_keys=tags)
        return self._metrics[name]

    def _tags(self, series: Series) -> dict[str, str]:
        name, values = series
        _, keys = COUNTERS.get(name) or GAUGES[name]
        # Ray 2.60.0 refuses tags that are not ASCII, such as the name of a label set.
        tags = (value.encode("ascii", "backslashreplace").decode() for value in values)
        return dict(zip(keys, tags, strict=True))


def label_set(root: str) -> str:
    """Return a short name of a label set, the same for each of its runs."""
    clean_root = root.rstrip("/")
    return f"{uris.name(clean_root)[:40]}-{hashlib.sha256(clean_root.encode()).hexdigest()[:10]}"


def _left_images(progress: RunProgress) -> int:
    """Return the number of images that are left. A run that a person stopped leaves none that need attention."""
    return 0 if signals.stop_requested() else max(0, progress.images - progress.done)


def totals(progress: RunProgress) -> Iterator[tuple[Series, float]]:
    """Yield each counter with its total. The total never falls while a driver lives."""
    counts = progress.counters
    for status in ("ok", "empty", "failed"):
        yield ("segray_images_total", (status,)), getattr(counts, status)
    yield ("segray_instances_total", ()), counts.instances
    yield ("segray_read_bytes_total", ()), counts.bytes_read
    for stage, seconds in counts.seconds.items():
        yield ("segray_stage_seconds_total", (stage,)), seconds
    for stage, seconds in counts.cpu_seconds.items():
        yield ("segray_stage_cpu_seconds_total", (stage,)), seconds
    yield ("segray_units_total", ()), progress.units
    yield ("segray_retries_total", ()), progress.retries
    yield ("segray_lost_workers_total", ()), progress.lost
    yield ("segray_commits_total", ()), progress.commits
    yield ("segray_publish_seconds_total", ("merge",)), counts.merge_s
    yield ("segray_publish_seconds_total", ("commit",)), counts.commit_s


def levels(progress: RunProgress) -> dict[Series, float]:
    """Return each gauge with its present value."""
    values: dict[Series, float] = {
        ("segray_plan_images", ()): progress.images,
        ("segray_done_images", ()): progress.done,
        ("segray_waiting_images", ()): progress.waiting,
        ("segray_in_flight_images", ()): progress.in_flight,
        ("segray_images_per_second", ()): progress.images_per_s,
    }
    for device, count in Counter(worker.device for worker in progress.workers).items():
        values["segray_workers", (device,)] = count
    for worker in progress.workers:
        series = "segray_worker_rss_bytes", (worker.host,)
        values[series] = max(values.get(series, 0.0), worker.rss_bytes)
    return values
