from __future__ import annotations

from pathlib import Path

import label_sets
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from label_sets import Image

import segray
from segray import rle

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
