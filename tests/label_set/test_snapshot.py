from __future__ import annotations

import os
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path

import label_sets
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from label_sets import Image

import segray
from segray import rle
from segray.errors import LabelSetError
from segray.label_set import maintenance, snapshot
from segray.storage.store import StorageOptions

SQUARE = rle.encode_crop(np.ones((3, 2), np.bool_), 1, 1, (8, 10))


def test_a_filter_on_any_column_finds_its_rows(tmp_path: Path) -> None:
    """Also on those of whose values the log says nothing."""
    images = {"a": Image((8, 10), [(13, 0.9, SQUARE)]), "b": Image((8, 10)), "c": Image((0, 0), failed=True)}
    root = label_sets.write(tmp_path, images)
    for dataset in (segray.scan(root), segray.images(root)):
        for row in dataset.to_table().to_pylist():
            for name, value in row.items():
                chosen = ds.field(name).is_null() if value is None else ds.field(name) == pa.scalar(value)
                if isinstance(value, float):
                    chosen = (ds.field(name) > value - 0.01) & (ds.field(name) < value + 0.01)
                assert row in dataset.to_table(filter=chosen).to_pylist(), name


def changed_between(root: Path) -> datetime:
    """A label set of two batches, the second of which replaces the only image; the moment between them."""
    label_sets.write(root, {"a": Image((8, 10), [(13, 0.9, SQUARE)])})
    time.sleep(0.01)
    moment = datetime.now(UTC)
    time.sleep(0.01)
    label_sets.write(root, {"a": Image((8, 10))})
    return moment


@pytest.mark.parametrize("touched_s", [-86400, 86400])
def test_a_moment_is_that_of_the_commits_whatever_times_a_copys_files_have(tmp_path: Path, touched_s: int) -> None:
    moment = changed_between(tmp_path / "made")
    copy = Path(shutil.copytree(tmp_path / "made", tmp_path / "copy"))
    for path in copy.rglob("*.json"):
        os.utime(path, (moment.timestamp() + touched_s,) * 2)
    shown = snapshot.snapshot(str(copy), as_of=moment)
    assert (shown.batch, shown.instances.count_rows()) == (1, 1)


def test_an_earlier_state_whose_files_are_deleted_is_refused_at_once(tmp_path: Path) -> None:
    moment = changed_between(tmp_path)
    root = str(tmp_path)
    assert snapshot.snapshot(root, version=1).instances.count_rows() == 1
    maintenance.maintain(root, StorageOptions(), grace_hours=0)
    for state in ({"version": 1}, {"as_of": moment}):
        with pytest.raises(LabelSetError, match="1 of 1 files were deleted"):
            snapshot.snapshot(root, **state)  # type: ignore[arg-type]
    assert snapshot.snapshot(root, version=2).images.count_rows() == 1
    assert snapshot.snapshot(root).images.count_rows() == 1


def test_a_moment_before_compaction_is_read_from_what_compaction_made_of_it(tmp_path: Path) -> None:
    for key in "ab":
        label_sets.write(tmp_path, {key: Image((8, 10), [(13, 0.9, SQUARE)])})
    moment = datetime.now(UTC)
    time.sleep(0.01)
    done = maintenance.maintain(
        str(tmp_path), StorageOptions(), grace_hours=0, limits=maintenance.CompactionThresholds(files=2)
    )
    assert done.deleted["instances"] == 2
    assert snapshot.snapshot(str(tmp_path), as_of=moment).instances.count_rows() == 2
