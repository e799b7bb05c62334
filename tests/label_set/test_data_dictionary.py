"""The meaning of tables and columns: the same texts in the log of a new label set and in docs/data-dictionary.md."""

from __future__ import annotations

import re
from pathlib import Path

import label_sets
import pyarrow as pa
import pytest
from deltalake import DeltaTable
from label_sets import Image

import segray
from segray.label_set import delta_log, schema, snapshot
from segray.storage.store import StorageOptions

PAGE = (Path(__file__).parents[2] / "docs" / "data-dictionary.md").read_text("utf-8")
TABLES = {
    "instances": (schema.INSTANCES_WITH_PARTITION, schema.INSTANCES_DESCRIPTIONS),
    "images": (schema.IMAGES, schema.IMAGES_DESCRIPTIONS),
}


@pytest.mark.parametrize("name", TABLES)
def test_the_page_has_every_column_with_its_type_and_meaning(name: str) -> None:
    columns, descriptions = TABLES[name]
    section = PAGE.split(f"## {name}\n")[1].split("\n## ")[0]
    assert section.strip().startswith(schema.TABLE_DESCRIPTIONS[name])
    expected = [
        (column.name, f"{column.type}{' or null' if column.nullable else ''}", descriptions[column.name])
        for column in columns
    ]
    assert re.findall(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", section, re.MULTILINE) == expected
    assert set(descriptions) == set(columns.names)


@pytest.mark.parametrize("name", TABLES)
def test_the_log_of_a_new_label_set_says_what_its_columns_mean(tmp_path: Path, name: str) -> None:
    label_sets.write(tmp_path, {"a": Image((8, 10))})
    table = DeltaTable(tmp_path / name)
    assert table.metadata().description == schema.TABLE_DESCRIPTIONS[name]
    assert {field.name: field.metadata["comment"] for field in table.schema().fields} == TABLES[name][1]


def test_a_label_set_that_was_made_without_comments_keeps_its_log(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta_log, "table_schema", lambda name: TABLES[name][0])
        label_sets.write(tmp_path, {"a": Image((8, 10))})
    made = {path: path.read_bytes() for path in tmp_path.rglob("_delta_log/*")}
    label_sets.write(tmp_path, {"b": Image((8, 10))})
    assert {path: path.read_bytes() for path in made} == made
    assert all(not field.metadata for field in DeltaTable(tmp_path / "images").schema().fields)
    assert segray.images(str(tmp_path)).count_rows() == 2


def test_the_comments_change_neither_names_nor_types(tmp_path: Path) -> None:
    label_sets.write(tmp_path, {"a": Image((8, 10))})
    for name, (columns, _) in TABLES.items():
        state = snapshot.table_state(str(tmp_path), name, StorageOptions())
        assert state is not None
        assert pa.schema(state.schema).equals(columns)
