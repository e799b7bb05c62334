"""docs/format.md: its reader, which knows nothing of segray, gives the rows that segray gives."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import fences
import label_sets
import numpy as np
import pyarrow as pa
import pytest
from label_sets import Image

import segray
from segray import rle
from segray.label_set import commit
from segray.label_set.maintenance import maintain
from segray.storage.store import StorageOptions

SIZE_HW = (9, 7)
NAMES = {1: "stop sign", 2: "100 %", 3: "дорожный знак", 4: "007"}


def random_masks(seed: int) -> list[tuple[int, float, str]]:
    rng = np.random.default_rng(seed)
    return [(1 + int(rng.integers(4)), 0.5, rle.encode(rng.random(SIZE_HW) < 0.5)) for _ in range(4)]


@pytest.fixture(scope="module")
def batches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a label set `labels` of eleven batches."""
    folder = tmp_path_factory.mktemp("batches")
    root = str(folder / "labels")
    for batch in range(10):
        images = {f"{batch}-{i}": Image(SIZE_HW, random_masks(10 * batch + i)) for i in range(3)}
        images["changes"] = Image(SIZE_HW, random_masks(1000 + batch))
        label_sets.write(root, images, classes=NAMES)
    label_sets.write(root, {"failed": Image((0, 0), failed=True)}, classes=NAMES)
    return folder


@pytest.fixture(scope="module", params=["batches", "compacted", "empty"])
def folder(request: pytest.FixtureRequest, batches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "batches":
        return batches
    folder = tmp_path_factory.mktemp("format")
    root = str(folder / "labels")
    if request.param == "empty":
        label_sets.write(root, {"a": Image(SIZE_HW)}, classes=NAMES)
    else:
        shutil.copytree(batches / "labels", root)
        assert maintain(root, StorageOptions(), grace_hours=0).compacted
    return folder


def read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names of the page's program, after it ran in the folder."""
    (block,) = fences.blocks("docs/format.md", "python")
    assert "segray" not in block.code.replace('== "segray"', "")
    names: dict[str, Any] = {}
    monkeypatch.chdir(folder)
    exec(compile(block.code, str(block), "exec"), names)
    return names


def by_row(table: pa.Table | None) -> list[tuple[Any, ...]]:
    rows = [] if table is None else table.to_pylist()
    return sorted(tuple(sorted((key, str(value)) for key, value in row.items())) for row in rows)


def test_the_reader_of_the_page_gives_the_rows_of_segray(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = read(folder, monkeypatch)
    assert by_row(names["instances"]) == by_row(segray.scan("labels").to_table())
    assert by_row(names["images"]) == by_row(segray.images("labels").to_table())
    for row in (segray.scan("labels").to_table().to_pylist())[:40]:
        expected = rle.decode(row["rle"], (row["height"], row["width"]))
        assert np.array_equal(names["mask"](row["rle"], row["height"], row["width"]), expected)


def test_the_reader_of_the_page_sees_one_state_of_both_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = label_sets.write(tmp_path / "labels", {"a": Image(SIZE_HW, random_masks(1))}, classes=NAMES)
    before = by_row(segray.scan(root).to_table())
    commit_table = commit._commit_table

    def half(root: str, options: StorageOptions, name: str, *rest: Any) -> None:
        if name == "images":
            raise KeyboardInterrupt
        commit_table(root, options, name, *rest)

    monkeypatch.setattr(commit, "_commit_table", half)
    with pytest.raises(KeyboardInterrupt):
        label_sets.write(root, {"a": Image(SIZE_HW, random_masks(2))}, classes=NAMES)
    assert by_row(read(tmp_path, monkeypatch)["instances"]) == before
