from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import label_sets
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from label_sets import Image

from segray import rle
from segray.analytics.evaluation import ground_truth
from segray.analytics.export.export import ExportSelection, export
from segray.analytics.query import key_ranges
from segray.analytics.query.key_ranges import KeyRange
from segray.label_set import snapshot
from segray.label_set.snapshot import Snapshot
from segray.storage.store import Store

SQUARE = rle.encode_crop(np.ones((3, 2), np.bool_), 1, 1, (8, 10))


def test_slices_that_hold_keys() -> None:
    parts = [KeyRange("", "d"), KeyRange("d", "k"), KeyRange("k", None)]
    assert list(key_ranges.holding(parts, {"z", "a", "k", "b"})) == [(parts[0], ["a", "b"]), (parts[2], ["k", "z"])]
    assert list(key_ranges.holding(parts, set())) == []


def test_a_filter_on_images_says_their_range() -> None:
    table = pa.table({"image_key": list("abcdef")})
    for keys in ({"b", "d"}, set("abcdef"), {"x"}, set[str]()):
        found = ds.dataset(table).to_table(filter=key_ranges.of_images(keys))
        assert set(found.column("image_key").to_pylist()) == keys & set("abcdef")
    assert 'image_key >= "b"' in str(key_ranges.of_images({"b", "d"}))


def test_an_export_of_some_images_reads_their_slices_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = {f"{i:02d}.jpg": Image((8, 10), [(13, 0.9, SQUARE)]) for i in range(20)}
    root = label_sets.write(tmp_path / "root", images)
    monkeypatch.setattr(key_ranges.KeySampler.cut, "__defaults__", (5,))
    read, instances = list[KeyRange](), key_ranges.instances

    def noted(shown: Snapshot, part: KeyRange, *rest: Any) -> pa.Table:
        read.append(part)
        return instances(shown, part, *rest)

    monkeypatch.setattr(key_ranges, "instances", noted)
    done = export(root, "coco", tmp_path / "some.json", ExportSelection(keys=frozenset({"03.jpg", "16.jpg", "17.jpg"})))
    assert (done.images, done.instances) == (3, 3)
    assert len(read) < 4
    assert len(set(read)) == len(read)


def test_large_masks_make_more_slices(tmp_path: Path) -> None:
    """A slice is of about as many bytes, whatever the masks."""
    noise, size_hw = np.random.default_rng(0), (200, 200)
    kinds: dict[str, Callable[[], str]] = {
        "plain": lambda: rle.encode_crop(np.ones((50, 50), np.bool_), 1, 1, size_hw),
        "wild": lambda: rle.encode(noise.random(size_hw) < 0.5),
    }
    cuts = {}
    for name, mask in kinds.items():
        images = {f"{i:02d}.jpg": Image(size_hw, [(13, 0.9, mask()) for _ in range(3)]) for i in range(20)}
        shown = snapshot.snapshot(label_sets.write(tmp_path / name, images))
        cuts[name] = len(key_ranges.cut(shown, slice_rows=160))
    assert cuts["plain"] == 1
    assert cuts["wild"] > 3


def test_a_truth_weighs_what_its_file_does(tmp_path: Path) -> None:
    for objects, least, most in ((1, 1, 2), (100, 8, 11)):
        rows = [{"id": i, "image_id": i % 10, "category_id": 13, "bbox": [1.5] * 4, "segmentation": [[1.5] * 40]}
                for i in range(10 * objects)]  # fmt: skip
        listed = [{"id": i, "file_name": f"{i}.jpg", "width": 9, "height": 9} for i in range(10)]
        categories = [{"id": 13, "name": "stop sign"}]
        content = {"images": listed, "categories": categories, "annotations": rows}
        (tmp_path / "truth.json").write_text(json.dumps(content))
        keys = key_ranges.KeySampler()
        ground_truth.read_index(str(tmp_path / "truth.json"), Store(), keys)
        assert least <= len(keys.cut(50)) <= most


def test_footers_are_not_kept(tmp_path: Path) -> None:
    """A file that was replaced is read anew, by its own footer."""
    path = tmp_path / "a.parquet"

    def write(rows: int) -> None:
        keys = [f"{i:04d}" for i in range(rows)]
        table = pa.table({"image_key": keys, "instance": [0] * rows, "n_instances": [1] * rows, "area": [5] * rows})
        pq.write_table(table, path)

    write(10)
    whole = ds.dataset(path)
    shown = Snapshot("made", 1, whole, whole, {})
    for rows in (10, 2000):
        write(rows)
        assert key_ranges.instances(shown, KeyRange(), ["area"]).num_rows == rows
        assert key_ranges.images(shown, KeyRange(), ["area"]).num_rows == rows
        assert len(key_ranges.cut(shown, slice_rows=rows)) >= 2
