"""The tables of a label set made from one seed, and the data files made from fixed rows, are those of before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import golden_tables
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from golden_tables import DATA_FILES, LABEL_SET, Table

from segray import rle
from segray.label_set.schema import BBOX

# CPUs may add up a network's f32 in another order. (With AVX-512 and with ONEDNN_MAX_CPU_ISA=AVX2 the bits are equal.)
SCORE, BOX_PX, AREA_SHARE, MASK_IOU = 1e-4, 0.02, 0.002, 0.998
INEXACT = {"score", *BBOX, "area", "rle"}


@pytest.fixture(scope="module")
def golden() -> dict[str, Table]:
    tables: dict[str, Table] = json.loads(LABEL_SET.read_text("utf-8"))
    return tables


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Table]:
    return golden_tables.label_set(tmp_path_factory.mktemp("golden"))


def exact(rows: Table) -> Table:
    return [{name: value for name, value in row.items() if name not in INEXACT} for row in rows]


def test_a_seed_gives_the_images_of_before(golden: dict[str, Table], made: dict[str, Table]) -> None:
    assert [row["status"] for row in golden["images"]] == ["failed", "empty", "ok", "ok", "ok", "ok"]
    assert made["images"] == golden["images"]


def test_a_seed_gives_the_instances_of_before(golden: dict[str, Table], made: dict[str, Table]) -> None:
    assert len(golden["instances"]) == 12
    assert [list(row) for row in made["instances"]] == [list(row) for row in golden["instances"]]
    assert exact(made["instances"]) == exact(golden["instances"])
    for new, old in zip(made["instances"], golden["instances"], strict=True):
        where = f"{new['image_key']}, instance {new['instance']}"
        assert new["score"] == pytest.approx(old["score"], abs=SCORE), where
        assert [new[name] for name in BBOX] == pytest.approx([old[name] for name in BBOX], abs=BOX_PX), where
        assert new["area"] == rle.area(new["rle"]) == pytest.approx(old["area"], rel=AREA_SHARE), where
        ((iou,),) = rle.iou([new["rle"]], [old["rle"]], (new["height"], new["width"]))
        assert iou >= MASK_IOU, where


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A folder with the data files, and what is to be said of each."""
    folder = tmp_path_factory.mktemp("files")
    return folder, golden_tables.data_files(folder)


def test_fixed_rows_give_the_data_files_of_before(written: tuple[Path, list[dict[str, Any]]]) -> None:
    golden: list[dict[str, Any]] = json.loads(DATA_FILES.read_text("utf-8"))
    assert [file["path"] for file in written[1]] == [file["path"] for file in golden]
    for new, old in zip(written[1], golden, strict=True):
        sizes = [[chunk.pop("encoded_bytes") for chunk in chunks(file)] for file in (new, old)]
        assert new == old
        assert sizes[0] == pytest.approx(sizes[1], rel=5e-4, abs=200)  # Page headers differ between pyarrow 21 and 26.


def chunks(file: dict[str, Any]) -> list[dict[str, Any]]:
    return [chunk for group in file["row_groups"] for chunk in group["columns"]]


def test_a_damaged_page_is_noticed_by_its_checksum(written: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    folder, (*_, last) = written
    whole, path = (folder / last["table"] / last["path"]).read_bytes(), tmp_path / "damaged.parquet"
    group = pq.read_metadata(pa.BufferReader(whole)).row_group(0)
    for chunk in map(group.column, range(group.num_columns)):
        begin = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
        damaged = bytearray(whole)
        damaged[begin + chunk.total_compressed_size - 1] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(OSError, match="CRC checksum verification failed"):
            pq.read_table(path, columns=[chunk.path_in_schema], page_checksum_verification=True)
