"""The staged rows of labelled images.

Knows the columns of staged files, and that neighbouring images become one file. Knows nothing of labelling.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa

from segray import rle
from segray.instances import ImageFailure, ImageRef, Instances
from segray.label_set import schema
from segray.label_set.run_records import staged_name
from segray.storage.store import Store
from segray.storage.uris import join
from segray.tasks import Task, UnitReport

_MESSAGE_CHARS = 2000


@dataclass(frozen=True)
class ImageOutcome:
    """The result of one image. Exactly one of instances and failure is set.

    ref: the image.
    attempts: number of the attempt that gave the result.
    bytes_read: size of the image's file in bytes.
    size_hw: height and width in pixels; (0, 0) if unknown.
    orientation: EXIF orientation, 1..8.
    dropped: dropped rows by reason.
    guessed_depth: bits that 16-bit samples were taken to use because of their values; None if not guessed.
    """

    ref: ImageRef
    attempts: int
    bytes_read: int = 0
    size_hw: tuple[int, int] = (0, 0)
    orientation: int = 1
    instances: Instances | None = None
    failure: ImageFailure | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    guessed_depth: int | None = None

    @property
    def status(self) -> str:
        """Return ok, empty or failed."""
        if self.instances is None:
            return "failed"
        return "ok" if len(self.instances) else "empty"


def stage(
    store: Store, staged: str, task: Task, outcomes: Mapping[int, ImageOutcome], labels: Mapping[int, str]
) -> tuple[UnitReport, ...]:
    """Write the outcomes of a task. Each run of neighbouring images becomes one file, named by the task's attempt.

    Args:
        store: storage of the staged files.
        staged: folder of the staged files.
        task: the task of the outcomes.
        outcomes: outcomes by position in the unit.
        labels: class names by id.

    Returns:
        A report of each file, in order. The reports have no seconds.
    """
    reports = []
    for run in Task.of(task.unit, sorted(outcomes), task.attempt).split_at_gaps():
        rows, name = [outcomes[index] for index in run.indices], staged_name(run)
        store.put(join(staged, name), schema.staged_bytes(_table(rows, labels, datetime.now(UTC))))
        reports.append(_report(run, name, rows))
    return tuple(reports)


def stage_failure(store: Store, staged: str, task: Task, ref: ImageRef, failure: ImageFailure) -> UnitReport:
    """Stage the failed row of an image that is quarantined, and return the report."""
    outcome = ImageOutcome(ref, task.attempt, max(ref.size_bytes, 0), failure=failure)
    (report,) = stage(store, staged, task, {task.start: outcome}, {})
    return report


def _report(task: Task, name: str, outcomes: Sequence[ImageOutcome]) -> UnitReport:
    images_by_status = Counter(outcome.status for outcome in outcomes)
    dropped: Counter[str] = Counter()
    for outcome in outcomes:
        dropped.update(outcome.dropped)
    return UnitReport(
        task,
        name,
        ok=images_by_status["ok"],
        empty=images_by_status["empty"],
        failed=images_by_status["failed"],
        instances=sum(len(outcome.instances) for outcome in outcomes if outcome.instances is not None),
        bytes_read=sum(outcome.bytes_read for outcome in outcomes),
        dropped=dict(dropped),
        guessed_depths=dict(
            Counter(outcome.guessed_depth for outcome in outcomes if outcome.guessed_depth is not None)
        ),
    )


def _table(outcomes: Sequence[ImageOutcome], labels: Mapping[int, str], now: datetime) -> pa.Table:
    """Return the rows of outcomes as schema.STAGED."""
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
    return pa.Table.from_arrays([*arrays, _instances_column(outcomes, labels)], schema=schema.STAGED)


def _instances_column(outcomes: Sequence[ImageOutcome], labels: Mapping[int, str]) -> pa.ListArray:
    """Return the `instances` column: one list for each image, which is empty for a failed image."""
    images = [o.instances if o.instances is not None else Instances.empty(o.size_hw) for o in outcomes]
    counts = np.array([len(instances) for instances in images], np.int64)
    boxes_xyxy = np.concatenate([np.zeros((0, 4), np.float32), *(instances.boxes_xyxy for instances in images)])
    class_ids = np.concatenate([np.zeros(0, np.int32), *(instances.class_ids for instances in images)])
    rles = [encoded for instances in images for encoded in instances.rles]
    columns = {
        "instance": np.concatenate([np.zeros(0, np.int16), *(np.arange(n, dtype=np.int16) for n in counts)]),
        "class_id": class_ids,
        "class_name": [labels[int(i)] for i in class_ids],
        "score": np.concatenate([np.zeros(0, np.float32), *(instances.scores for instances in images)]),
        "bbox_x": boxes_xyxy[:, 0],
        "bbox_y": boxes_xyxy[:, 1],
        "bbox_w": boxes_xyxy[:, 2] - boxes_xyxy[:, 0],
        "bbox_h": boxes_xyxy[:, 3] - boxes_xyxy[:, 1],
        "area": np.asarray(rle.area(rles), np.int32) if rles else np.zeros(0, np.int32),
        "rle": rles,
    }
    list_type = schema.STAGED.field("instances").type
    values = pa.StructArray.from_arrays(
        [pa.array(columns[field.name], field.type) for field in list_type.value_type],
        fields=list(list_type.value_type),
    )
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, values, type=list_type)
